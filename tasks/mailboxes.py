"""Which mailbox a hospital and its coordinator share, and the keys that each end signs with."""

from __future__ import annotations

from pathlib import Path

from fedrounds.coordinator import files
from fedrounds.core.errors import StateError, StudyError
from fedrounds.exchange.exchange import Exchange
from fedrounds.sources.site_file import Coordinator


def mailbox_of(coordinator: Coordinator, home: Path, tries: int | None = None) -> Exchange:
    """A hospital's mailbox, as its site.toml says.

    Args:
        home: the folder that holds site.toml: relative paths start there, and secrets lie there.

    Raises:
        StudyError: the address is none.
        StateError: a secret is missing.
    """
    more = {} if tries is None else {"tries": tries}
    url = coordinator.exchange
    if url.startswith(("https://", "http://")):
        from fedrounds.exchange.mlflow import Artifacts

        ca = str(home / coordinator.ca) if coordinator.ca else None
        password = _secret(home / "password", "the site's password")
        return Exchange(Artifacts(url, coordinator.experiment, coordinator.user, password, ca, **more), at_once=2)
    from fedrounds.exchange.fsspec import Folder

    if "://" not in url:
        return Exchange(Folder(str((home / url).resolve()), **more))
    options = {"key_filename": str(home / "ssh.key")} if url.startswith(("sftp://", "ssh://")) else {}
    return Exchange(Folder(url, host_key=coordinator.host_key, **more, **options))


def read_key(file: Path) -> bytes:
    """A private key, 32 bytes. Raises StateError where the file holds none, or others may read it."""
    key = _key(_secret(file, "a private key of 64 hex digits"))
    if key is None:
        raise StateError(
            f"expected a private key of 64 hex digits in {file}, found another text: restore it from a copy"
        )
    return key


def public_key_of(text: str, whose: str) -> bytes:
    """A public key as it is written, 32 bytes. Raises StudyError where it is none."""
    key = _key(text)
    if key is None:
        raise StudyError(f"expected {whose} public key as 64 hex digits, found another text: ask for it again")
    return key


def write_secret(file: Path, text: str) -> None:
    """Put a secret into a file that its owner alone reads, wholly or not at all; it is on the disk when this returns."""
    files.write(file, f"{text}\n", files.SECRET)


def _secret(file: Path, what: str) -> str:
    return files.secret(file, what, "`fedrounds site join` writes it").strip()


def _key(text: str) -> bytes | None:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        return None
    return key if len(key) == 32 else None
