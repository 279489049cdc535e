"""Patience: what may pass by itself is tried again, with growing waits; what stays is a ServiceError."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from fedrounds.core.errors import ServiceError

FIRST_S, LONGEST_S = 0.1, 5.0
TRIES = 7  # about 6 s in all: who calls decides whether to wait longer

T = TypeVar("T")


def patiently(
    attempt: Callable[[], T],
    what: str,
    passing: tuple[type[Exception], ...],
    lasting: tuple[type[Exception], ...] = (),
    tries: int = TRIES,
) -> T:
    """What `attempt` returns, in the end.

    Args:
        what: that which is expected, for the message.
        passing: errors after which it is tried again.
        lasting: of these, the ones that no waiting mends.

    Raises:
        ServiceError: it failed `tries` times, or for good. Only the error's type is shown: its text may be anything.
    """
    wait = FIRST_S
    for left in reversed(range(tries)):
        try:
            return attempt()
        except passing as error:
            if left and not isinstance(error, lasting):
                time.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 (so that many sites do not come back at once)
                wait = min(2 * wait, LONGEST_S)
                continue
            tried = "" if isinstance(error, lasting) else f" {tries} times"
            raise ServiceError(
                f"expected {what}, found {type(error).__name__}{tried}: check the address, the network and the credentials"
            ) from None
    raise AssertionError("no try at all")
