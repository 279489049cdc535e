"""Ctrl-C and SIGTERM: stop where we are, and be sure that it was heard."""

from __future__ import annotations

import signal
import sys
from typing import Any, NoReturn

AGAIN_S = 0.01


def heed() -> None:
    """Let both raise KeyboardInterrupt in the main thread.

    What is raised while Python finalises an object, or tells a weak reference of its end, as imports do by the hundred, it reports and drops
    (`sys.unraisablehook`): the program would go on as if nobody had asked. Then the interrupt comes again, a moment later.
    """
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(stop, _interrupt)
    report = sys.unraisablehook

    def dropped(what: sys.UnraisableHookArgs) -> None:
        if interrupted(what.exc_value):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        else:
            report(what)

    sys.unraisablehook = dropped


def interrupted(error: BaseException | None) -> bool:
    """Whether a signal is behind it: a library that is interrupted while it sets something up may stumble over what is missing."""
    while error is not None:
        if type(error).__name__ in ("KeyboardInterrupt", "TerminationSignal"):  # ours; Prefect's, while its flow runs
            return True
        error = error.__cause__ or error.__context__
    return False


def _interrupt(*_: Any) -> NoReturn:
    """Stop where we are. asyncio would rather cancel the flow when it next waits, which is at its end: Prefect's tasks do not wait."""
    raise KeyboardInterrupt
