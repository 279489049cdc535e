"""An exchange within one process: for simulations and tests."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from fedrounds.core.errors import UpdateRejected


class Memory:
    """A store that ends with its process; any thread may use it."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def write(self, path: str, data: bytes) -> None:
        """Keep the bytes."""
        with self._lock:
            self._files[path] = data

    def read(self, path: str, largest: int) -> bytes | None:
        """The bytes, if there are any."""
        with self._lock:
            data = self._files.get(path)
        if data is not None and len(data) > largest:
            raise UpdateRejected(
                f"expected at most {largest} bytes at {path}, found {len(data)}: it was refused unread"
            )
        return data

    def scan(self, folder: str) -> Mapping[str, int | None]:
        """What is directly in a folder."""
        prefix = f"{folder}/" if folder else ""
        found: dict[str, int | None] = {}
        with self._lock:
            for path, data in self._files.items():
                if path.startswith(prefix):
                    child, slash, _ = path[len(prefix) :].partition("/")
                    found[child] = None if slash else len(data)
        return found

    def remove(self, path: str) -> None:
        """Forget the bytes."""
        with self._lock:
            self._files.pop(path, None)
