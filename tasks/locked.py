"""A file that one living process has to itself."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from fedrounds.core.errors import StateError


def locked(file: Path, busy: str) -> IO[str]:
    """The open file, locked until it is closed or its process is gone, even by kill -9.

    Raises:
        StateError: another process has it; `busy` says so.
        OSError: the file cannot be made.
    """
    lock = file.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StateError(busy) from None
    return lock
