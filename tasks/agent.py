"""A hospital's agent: a plain loop that reaches outwards alone. It looks, answers, waits; whatever fails is tried again later."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from fedrounds.core.errors import FedroundsError, ServiceError
from fedrounds.tasks.consent import may_work
from fedrounds.tasks.hospital import Answer, Hospital, Letter
from fedrounds.tasks.locked import locked
from fedrounds.tasks.withheld import withheld

QUIET_S = 60.0  # after so long without a question the agent looks less often
IDLE = 8  # times the poll interval, at most, between two looks while nothing comes
LONGEST_S = 60.0  # between two tries while something fails, and between two looks at the clock outside working hours

Visit = Callable[[Letter], Answer]
Say = Callable[[str], None]


def serve(hospital: Hospital, visit: Visit, say: Say, stop: Event, idle: Say | None = None) -> None:
    """Answer what comes until `stop` is set.

    Args:
        visit: answers one request.
        say: takes a line for a person: what was answered, what failed.
        idle: is told whether the agent waits for its hours ("closed") or for a question ("open"), when that changes.
    """
    poll = hospital.file.agent.poll
    dice = random.SystemRandom()  # agents that start together must not knock together
    pause, heard, failures, told = poll, time.monotonic(), 0, ""
    while not stop.is_set():
        open_now = may_work(hospital.file.agent)
        state = "open" if open_now else "closed"
        if idle is not None and state != told:
            idle(state)
        told = state
        if not open_now:
            stop.wait(min(LONGEST_S, 30 * poll))
            continue
        try:
            letter = hospital.look()
            if letter is not None:
                answer = visit(letter)
                say(_said(letter, answer))
                pause, heard, failures = poll, time.monotonic(), 0
                continue
            failures = 0
            pause = poll if time.monotonic() - heard < QUIET_S else min(IDLE * poll, pause * 1.1)
        except Exception as error:  # an agent that nobody watches goes on, whatever it was
            failures += 1
            pause = min(LONGEST_S, poll * 2 ** min(failures, 16))  # beyond a thousand it would be no number any more
            say(f"{_why(error)} (tried again in about {pause:.0f} s)")
        stop.wait(pause * dice.uniform(0.75, 1.25))


def _why(error: Exception) -> str:
    """In one line; the text of what is no error of ours may quote a row."""
    if isinstance(error, OSError) and error.strerror:
        return f"expected files that can be read and written, found: {error.strerror}"
    try:
        with withheld("the agent to do its part"):
            raise error
    except FedroundsError as ours:
        return str(ours)


def _said(letter: Letter, answer: Answer) -> str:
    about = letter.request
    reason = f": {answer.reason}" if answer.reason else ""
    return f"study {about.study[:12]} · round {about.round} · {about.ask}: {answer.outcome}{reason}"


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """The only agent of a site's folder. Raises StateError while another one works there."""
    file = home / "state" / "agent.lock"
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = locked(file, f"expected no other agent in {home}, found one at work: end it first")
    except OSError as error:
        raise ServiceError(f"expected a folder that can be written at {file.parent}, found: {error.strerror}") from None
    with held:
        yield
