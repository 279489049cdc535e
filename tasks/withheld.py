"""What may be said of an exception that is not ours: its type and where it was raised, never its text, which may quote a patient's cell."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedrounds.core.errors import FedroundsError, ServiceError


@contextmanager
def withheld(what: str) -> Iterator[None]:
    """Around all that touches rows: whatever goes wrong in here leaves as an error of ours.

    Raises:
        ServiceError: in place of any exception that is not ours; its traceback is kept, its text is not.
    """
    try:
        yield
    except FedroundsError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}, line {last.lineno}"
        raise ServiceError(
            f"expected {what}, found {type(error).__name__} in {place} (its text may quote a row and is withheld): try again, report it if it stays"
        ).with_traceback(error.__traceback__) from None


def trace(error: BaseException) -> str:
    """The traceback for a log: frames and types, and the text of our own errors alone."""
    text = f": {error}" if isinstance(error, FedroundsError) else ""
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"Traceback (most recent call last):\n{frames}{type(error).__qualname__}{text}"
