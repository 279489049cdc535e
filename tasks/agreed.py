"""The roster of keys by which sums are masked: a coordinator writes down who has joined, a hospital's people agree to it."""

from __future__ import annotations

from pathlib import Path

from fedrounds.coordinator import files, roster
from fedrounds.core import identity
from fedrounds.core import roster as rosters
from fedrounds.core.errors import StateError, StudyError, UpdateRejected
from fedrounds.tasks.hospital import Hospital
from fedrounds.tasks.mailboxes import public_key_of

FILE = "roster.json"


def publish(home: Path) -> tuple[Path, dict[str, bytes]]:
    """Write the keys of all that have joined and not left into the coordinator's folder; returns the file and what it holds.

    Raises StateError where they are too few to hide among.
    """
    joined = {name: site for name, site in roster.read(home).items() if site.status in ("active", "suspended")}
    text = rosters.dump({name: public_key_of(site.key, f"the {name}'s") for name, site in joined.items()})
    try:
        found = rosters.load(text)
    except UpdateRejected:
        raise StateError(
            f"expected three hospitals or more in {home / roster.FOLDER} that have joined, found {len(joined)}: invite more"
        ) from None
    files.write(home / FILE, text)
    return home / FILE, found


def published(home: Path) -> dict[str, bytes]:
    """The roster that the hospitals were sent. Raises StudyError where there is none."""
    try:
        return rosters.load((home / FILE).read_text(encoding="utf-8"))
    except (OSError, UpdateRejected):
        raise StudyError(
            f"expected the hospitals' keys in {home / FILE}, which masked sums need, found none: `fedrounds coordinator roster {home}`"
        ) from None


def agree(hospital: Hospital, file: Path) -> dict[str, bytes]:
    """Go by the keys in a file from now on.

    Raises StateError where it cannot be read, is no roster, or gives this hospital another key than its own; nothing has changed.
    """
    try:
        found = rosters.load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise StateError(
            f"expected a roster in {file}, found no file that can be read: name the one you were sent"
        ) from None
    except UpdateRejected as error:
        raise StateError(f"{error} (in {file})") from None
    if found.get(hospital.name) != identity.public_key(hospital.key):
        raise StateError(
            f"expected this hospital's own key for '{hospital.name}' in {file}, found another: do not go by it, and ask the coordinator"
        )
    hospital.book.learn("roster", {name: key.hex() for name, key in found.items()})
    return found
