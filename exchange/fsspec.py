"""An exchange in a folder, or wherever a URL of fsspec leads: SFTP, S3, Azure, GCS, SMB and their kin.

On a file system a piece is written under another name and then renamed, which is one step; an object store shows an object only when all of
it has come. Where neither holds, the place is refused.

SFTP needs the extra `sftp` (paramiko) and the server's public key, pinned: fsspec alone would trust whoever answers.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fedrounds.core.errors import ServiceError, StudyError, UpdateRejected
from fedrounds.exchange.retry import TRIES, patiently

WHOLE_OR_ABSENT = {"memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl"}  # object stores: a put is one step
SSH = {"sftp", "ssh"}
TIMEOUT_S = 30.0
CHUNK = 1 << 16

T = TypeVar("T")


class Folder:
    """A store under a URL. One thread at a time.

    Args:
        url: `/srv/exchange/north`, `sftp://user@host:port/folder`, `s3://bucket/folder`…
        host_key: SFTP only: the server's public key as `ssh-keyscan` and known_hosts write it, `ssh-ed25519 AAAA…`.
        tries: how often what may pass by itself is tried.
        options: for fsspec: credentials and the like (`key_filename` for SFTP).

    Raises StudyError where the URL cannot hold an exchange, ServiceError where it does not answer.
    """

    def __init__(self, url: str, host_key: str = "", tries: int = TRIES, **options: Any) -> None:
        import fsspec
        from fsspec.utils import get_protocol

        self._protocol = get_protocol(url)
        if "::" in url:
            raise StudyError(
                f"expected the URL of one place, found a chain of {url.count('::') + 1}: name the last alone"
            )
        self._tries = tries
        self._passing, self._lasting = (OSError, EOFError), (PermissionError, IsADirectoryError, NotADirectoryError)
        if self._protocol in SSH:
            options = self._ssh(host_key, options)
        self._open: Callable[[], tuple[Any, str]] = lambda: fsspec.url_to_fs(url, skip_instance_cache=True, **options)
        self._fs: Any = None
        self._root = ""
        self._do(lambda _: None)

    def write(self, path: str, data: bytes) -> None:
        """Write under another name, then rename; or put it in one step."""
        folder, _, file = path.rpartition("/")

        def write(fs: Any) -> None:
            if self._protocol in WHOLE_OR_ABSENT:
                fs.pipe_file(self._at(path), data)
                return
            unfinished = self._at(f"{folder}/.{file}.{secrets.token_hex(8)}")
            fs.makedirs(self._at(folder), exist_ok=True)
            try:
                with fs.open(unfinished, "wb") as out:
                    if self._protocol in SSH:
                        out.set_pipelined(True)  # else every 32 KiB waits for its answer
                    out.write(data)
                    if self._protocol in ("file", "local"):
                        out.flush()
                        os.fsync(out.fileno())
                found = fs.info(unfinished)["size"]
                if found != len(data):  # what went wrong in a pipeline is not always told
                    raise OSError(f"{found} of {len(data)} bytes were written")
                fs.mv(unfinished, self._at(path))
            except BaseException:
                with contextlib.suppress(Exception):
                    fs.rm(unfinished)
                raise

        self._do(write)

    def read(self, path: str, largest: int) -> bytes | None:
        """The bytes of a plain file."""

        def read(fs: Any) -> bytes | None:
            try:
                info = fs.info(self._at(path))
                if info["type"] != "file" or info.get("islink"):
                    return None
                with fs.open(self._at(path), "rb") as file:
                    if self._protocol in SSH and 0 < info["size"] <= largest:
                        file.prefetch(info["size"])
                    data = _at_most(file, largest + 1)
            except FileNotFoundError:
                return None
            if len(data) > largest:
                raise UpdateRejected(f"expected at most {largest} bytes at {path}, found more: it was refused unread")
            if len(data) != info["size"]:
                raise EOFError  # the connection ended first
            return data

        return self._do(read)

    def scan(self, folder: str) -> Mapping[str, int | None]:
        """What is directly in a folder; neither links, nor what is still being written."""

        def scan(fs: Any) -> dict[str, int | None]:
            fs.invalidate_cache()  # fsspec may remember listings
            try:
                listed = fs.ls(self._at(folder), detail=True)
            except FileNotFoundError:
                return {}
            sizes = {"file": lambda size: size, "directory": lambda _: None}
            found = {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in listed}
            return {
                name: sizes[entry["type"]](entry["size"])
                for name, entry in found.items()
                if entry["type"] in sizes and not name.startswith(".")
            }

        return self._do(scan)

    def remove(self, path: str) -> None:
        """Remove a file, what a write that was killed has left of it, and the folders that are empty then."""
        folder, _, file = path.rpartition("/")

        def remove(fs: Any) -> None:
            fs.invalidate_cache()
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(self._at(path))
            if self._protocol in WHOLE_OR_ABSENT:
                return
            with contextlib.suppress(FileNotFoundError):
                for left in fs.ls(self._at(folder), detail=False):
                    if left.rpartition("/")[2].startswith(f".{file}."):
                        fs.rm_file(left)
            with contextlib.suppress(
                OSError
            ):  # the folders too, once they are empty; who makes one anew meanwhile tries again
                parts = folder.split("/")
                for depth in range(len(parts), 0, -1):
                    fs.rmdir(self._at("/".join(parts[:depth])))

        self._do(remove)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _do(self, act: Callable[[Any], T]) -> T:
        """Do it, connecting first if need be; after an error, on a new connection."""

        def attempt() -> T:
            if self._fs is None:
                self._connect()
            try:
                return act(self._fs)
            except self._passing:
                self._close()
                raise

        return patiently(attempt, f"{self._protocol} to hold the exchange", self._passing, self._lasting, self._tries)

    def _connect(self) -> None:
        from fsspec import AbstractFileSystem

        try:
            fs, root = self._open()
        except (ValueError, ImportError) as error:  # an unknown word, or a library that is not installed
            raise StudyError(
                f"expected a URL that fsspec knows and can open, found {self._protocol} ({type(error).__name__}): install its library, or mend it"
            ) from None
        renames = type(fs).mv is not AbstractFileSystem.mv
        if self._protocol not in WHOLE_OR_ABSENT and not renames:
            raise StudyError(
                f"expected a place where a file appears whole, found {self._protocol}: use a folder, SFTP or an object store"
            )
        if self._protocol in SSH:
            fs.ftp.get_channel().settimeout(TIMEOUT_S)
        self._fs, self._root = fs, root.rstrip("/")

    def _close(self) -> None:
        if self._protocol in SSH and self._fs is not None:
            self._fs.client.close()
            self._fs = None

    def _ssh(self, host_key: str, options: dict[str, Any]) -> dict[str, Any]:
        """Options of a connection to exactly one server, by exactly the given credentials."""
        try:
            import paramiko
        except ModuleNotFoundError:
            raise StudyError(
                "expected paramiko for an exchange over SFTP, found none: pip install 'fedrounds[sftp]'"
            ) from None

        kind, _, key = host_key.partition(" ")
        if not kind or not key:
            raise StudyError(
                "expected `host_key` as 'ssh-ed25519 AAAA…', found none: ask the server's owner, or see ssh-keyscan"
            )

        class Pinned(paramiko.MissingHostKeyPolicy):
            def missing_host_key(self, client: Any, hostname: str, found: Any) -> None:  # noqa: ARG002
                if (found.get_name(), found.get_base64()) != (kind, key.split()[0]):
                    raise ServiceError(
                        f"expected {hostname} to hold the pinned host key, found another: somebody may be in between"
                    )

        self._passing = (*self._passing, paramiko.SSHException)
        self._lasting = (*self._lasting, paramiko.AuthenticationException)
        quiet = {"look_for_keys": False, "allow_agent": False}
        waits = dict.fromkeys(("timeout", "banner_timeout", "auth_timeout", "channel_timeout"), TIMEOUT_S)
        return {**quiet, **waits, **options, "host_key_policy": Pinned()}


def _at_most(file: Any, largest: int) -> bytes:
    """The first bytes of a file. In small steps: paramiko copies what it has at each."""
    chunks: list[bytes] = []
    while largest > 0 and (chunk := file.read(min(largest, CHUNK))):
        chunks.append(chunk)
        largest -= len(chunk)
    return b"".join(chunks)
