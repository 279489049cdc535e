"""A SQLite file of a hospital's own: its owner alone reads it, several processes may, and what is committed is on the disk."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedrounds.core.errors import StateError

Step = Callable[[sqlite3.Connection], None]


class Database:
    """The file, opened. Any thread may use it.

    Args:
        versions: what makes each version out of the last one, the first out of nothing; those that are missing are made, all or none.
        called: what the file is, in a message about its version.
        wanted: what is expected, in a message about a file that cannot be used.

    Raises StateError where the file cannot be used, or a later release has written it.
    """

    def __init__(self, file: Path, versions: Sequence[Step], called: str, wanted: str) -> None:
        self.file, self._wanted, self._lock = file, wanted, threading.Lock()
        with self._one_line():
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = sqlite3.connect(file, timeout=30, isolation_level=None, check_same_thread=False)
            file.chmod(0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute(
                "PRAGMA secure_delete = ON"
            )  # what is forgotten, keys for masks say, is gone from the file too
            found = self._version()
            if found < len(versions):
                with self._write() as db:
                    for number, step in enumerate(versions, 1):
                        if self._version() < number:  # else another process was quicker
                            step(db)
                            db.execute(f"PRAGMA user_version = {number}")
        if found > len(versions):
            raise StateError(
                f"expected {called} up to version {len(versions)} in {file}, found version {found}: install the release that wrote it, or a newer one"
            )

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

    def _version(self) -> int:
        return self._db.execute("PRAGMA user_version").fetchone()[0]

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._one_line(), self._lock:
            yield self._db

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction, that nobody else writes beside."""
        with self._one_line(), self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StateError(
                f"expected {self._wanted} that can be read and written at {self.file}, found: {error}: check its rights and the disk's free space"
            ) from None


def script(sql: str) -> Step:
    """A step that carries out these statements, within its caller's transaction."""

    def step(db: sqlite3.Connection) -> None:
        part = ""
        for line in sql.splitlines(keepends=True):
            part += line
            if sqlite3.complete_statement(part):
                db.execute(part)
                part = ""

    return step
