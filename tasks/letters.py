"""The round as a coordinator's Prefect shows it: a task sends the question, and one a hospital waits for its answer.

Replies are unprotected updates: no result is kept, no cache is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from prefect import task

from fedrounds.core.messages import Ask
from fedrounds.core.phases import PHASES
from fedrounds.tasks.correspondence import Correspondence
from fedrounds.tasks.desk import Question
from fedrounds.tasks.run import Group
from fedrounds.tasks.visit import PRIVATE


async def post(run: Correspondence, question: Question, sites: Sequence[str], round: int) -> None:
    """Put the question into every mailbox; `round` names the task."""
    del round
    await asyncio.to_thread(run.post, question, sites)


async def wait(run: Correspondence, group: Group, question: Question, round: int) -> list[bytes]:
    """The answers of a group's hospitals, in site order: all of them, or those that came before the deadline."""
    del round
    poll, found = run.folder.operations.federation.poll, dict[str, bytes]()
    waiting = [ward.name for ward in group.wards]
    while True:
        last = run.late(question)  # looked at before the last look: what came in time is taken
        for name in waiting:
            message = await asyncio.to_thread(run.look, name, question)
            if message is not None:
                found[name] = message
        waiting = [name for name in waiting if name not in found]
        if last or not waiting or run.enough(question):
            return [found[name] for name in sorted(found)]
        await asyncio.sleep(poll)


def _waiting(name: str, round: str = "") -> Any:
    return task(wait, name=name, task_run_name=f"{name} · {{group.label}}{round}", **PRIVATE)


async def tidy(run: Correspondence) -> None:
    """Drop what is left in the mailboxes."""
    await asyncio.to_thread(run.clear)


clear = task(tidy, name="clear", task_run_name="clear the mailboxes", **PRIVATE)
ask = task(post, name="ask", task_run_name="ask {question.request.ask} · round {round}", **PRIVATE)
answered: dict[Ask, Any] = {
    "gate": _waiting("gate"),
    "statistics": _waiting("statistics"),
    "profile": _waiting("profile"),
    "train": _waiting("fit", " · round {round}"),
    "score": _waiting("score", " · round {round}"),
    **{phase: _waiting(phase, " · round {round}") for phase in sorted(PHASES)},
}
