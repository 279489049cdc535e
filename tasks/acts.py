"""What people do about versions: make one champion, turn one down, go back. The ledger first, MLflow after it.

Every act takes the study's lease, so none falls into a run; killed between ledger and MLflow, the next run's projector catches up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from fedrounds.core.errors import StateError
from fedrounds.core.state import Champion, RunState
from fedrounds.ledger import Act, Head, Ledger, Standing
from fedrounds.ledger.standing import said
from fedrounds.reports.decision import decision_markdown
from fedrounds.tasks.audit import signing_key
from fedrounds.tasks.folder import State

LONGEST = 1000  # characters of a reason or a name


@dataclass(frozen=True)
class Done:
    """An act, how the study stands after it, and what was put right in MLflow on the way. No act: it was so already."""

    act: Act | None
    standing: Standing
    reports: list[str]


@dataclass(frozen=True)
class Asked:
    """What a person is asked about: the version of `round`, and its decision as Markdown."""

    round: int
    markdown: str


def asked(place: State) -> Asked | None:
    """The version that waits for approval, None if there is none."""
    if not place.begun:
        return None
    with Ledger.open(place.ledger) as ledger:
        round = ledger.standing().challenger
        if round is None:
            return None
        record = ledger.deciding(round).record
        return Asked(round, decision_markdown(ledger.study().name, round, record["decision"]))


def promote(place: State, round: int | None = None, *, reason: str, by: str, waiting: int | None = None) -> Done:
    """Make a version champion: the one that waits for approval, or that of any round that was judged.

    Args:
        waiting: the round that the person was shown, if it was shown at all: another one that waits by now is not meant.

    Raises:
        StateError: none waits, the round was not judged, or another runner is at work; nothing was written.
    """
    with projector(place) as project, held(place) as ledger:
        now = ledger.standing()
        _same(place, now, waiting)
        if round is None and now.challenger is None:
            raise StateError(
                f"expected a version that waits for approval in {place.own}, found none: `--round N` promotes any round that was scored"
            )
        chosen = now.challenger if round is None else round
        if chosen not in now.said:
            scored = f"{min(now.said)} to {max(now.said)}" if now.said else "none yet"
            raise StateError(
                f"expected a round that was scored ({scored}), found {chosen} in {place.own}: see `fedrounds status`"
            )
        act = None if chosen == now.champion else ledger.act("promote", chosen, _line(reason), _line(by))
        return Done(act, ledger.standing(), project()["reports"])


def reject(place: State, *, reason: str, by: str, waiting: int | None = None) -> Done:
    """Turn down the version that waits for approval; the champion stays.

    Raises:
        StateError: none waits, or another runner is at work; nothing was written.
    """
    with projector(place) as project, held(place) as ledger:
        challenger = ledger.standing().challenger
        _same(place, ledger.standing(), waiting)
        if challenger is None:
            raise StateError(
                f"expected a version that waits for approval in {place.own}, found none: nothing to reject"
            )
        act = ledger.act("reject", challenger, _line(reason), _line(by))
        return Done(act, ledger.standing(), project()["reports"])


def rollback(place: State, to: int | None = None, *, reason: str, by: str) -> Done:
    """Go back to the champion before the present one, or to that of round `to`.

    Raises:
        StateError: there was none before, `to` was not one, or another runner is at work; nothing was written.
    """
    with projector(place) as project, held(place) as ledger:
        before = ledger.standing().champions[:-1]
        if not before:
            raise StateError(
                f"expected an earlier champion to go back to in {place.own}, found none: nothing was changed"
            )
        if to is not None and to not in before:
            rounds = ", ".join(str(round) for round in dict.fromkeys(before))
            raise StateError(
                f"expected a round that was champion before ({rounds}), found {to} in {place.own}: `fedrounds promote --round {to}` promotes it"
            )
        act = ledger.act("rollback", before[-1] if to is None else to, _line(reason), _line(by))
        return Done(act, ledger.standing(), project()["reports"])


@contextmanager
def projector(place: State) -> Iterator[Callable[..., dict[str, Any]]]:
    """What brings MLflow up to date with the ledger, by the same helper as a run: asked with more to do or none, it gives the answer.

    The helper is forked first where that may be, before a ledger is open: it imports while the ledger is looked at, and has less to import.
    """
    from fedrounds.tasks.child import Child
    from fedrounds.tasks.forked import Forked, alone
    from fedrounds.tasks.run import QUIET, TRACK

    forked = Forked(TRACK, (), place.log, {**os.environ, **QUIET}) if place.begun and alone() else None
    asked: list[Child] = []

    def project(**more: bool) -> dict[str, Any]:
        asked.append(Child(TRACK, place.log, QUIET, forked))
        return asked[0].call(place.told | more).result()

    try:
        yield project
    finally:
        if asked:
            asked[0].kill()
        elif forked is not None:
            forked.kill()
            forked.wait()


def present(ledger: Ledger, head: Head) -> RunState:
    """The state to go on from: what the last visit left, with the champion that people's acts have made of it since."""
    champion, kept = ledger.standing().champion, head.state.champion
    if champion is None or (kept and kept.round == champion):
        return head.state
    return replace(head.state, champion=Champion(champion, ledger.state(ledger.closed(champion)).theta))


def ungated(ledger: Ledger, round: int) -> list[str]:
    """Sites whose data had not passed the gate when `round` was trained, those that sat it out for it included."""
    if round < 1:
        return []
    visit = ledger.closed(round)
    record = ledger.visits(after=visit - 1, limit=1)[0].record
    about = {*record["sites"], *record["excluded"], *record["refused"]}
    return [site for site, verdict in ledger.verdicts(visit).items() if site in about and not verdict.passed]


def told(act: Act) -> str:
    """An act for the status: what, by whom, why and when."""
    at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(act.at))
    return f"round {act.round} {said(act)} ({at})" if act.act != "rollback" else f"{said(act)} ({at})"


@contextmanager
def held(place: State) -> Iterator[Ledger]:
    """The study's ledger, with its lease."""
    if not place.begun:
        raise StateError(f"expected a study that has run in {place.own}, found no ledger: `fedrounds run` starts it")
    with Ledger.open(place.ledger, signing_key(place)) as ledger:
        ledger.acquire()
        try:
            yield ledger
        finally:
            ledger.release()


def _same(place: State, now: Standing, waiting: int | None) -> None:
    if waiting is not None and now.challenger != waiting:
        found = "none" if now.challenger is None else f"round {now.challenger}"
        raise StateError(
            f"expected round {waiting} to wait for approval in {place.own}, found {found}: it was decided meanwhile, look again"
        )


def _line(text: str) -> str:
    return " ".join(text.split())[:LONGEST]
