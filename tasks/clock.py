"""Where the wall time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Counts every moment once, for the innermost part that is open.

    Helper processes work meanwhile: what hides behind another part shows as nothing, only waiting for it does.
    """

    def __init__(self, part: str = "start-up") -> None:
        self._part, self._since = part, time.perf_counter()
        self._spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what happens in here for `part`."""
        outer = self._turn(part)
        try:
            yield
        finally:
            self._turn(outer)

    def _turn(self, part: str) -> str:
        now, before = time.perf_counter(), self._part
        self._spent[before] = self._spent.get(before, 0.0) + now - self._since
        self._part, self._since = part, now
        return before

    def spent(self) -> dict[str, float]:
        """Seconds by part, in the order in which they were first left."""
        self._turn(self._part)
        return dict(self._spent)
