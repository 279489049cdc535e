"""Imports without garbage collection: what a library defines stays, and looking for garbage in it costs a fifth of its import."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def staying() -> Iterator[None]:
    """Nothing is collected inside, and what is there at its end is looked at by no later collection either."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
