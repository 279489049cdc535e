"""A question on its way to hospitals and their answers back: put into mailboxes, and looked for until its time is over. No Prefect in here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fedrounds.tasks.correspondence import Correspondence
from fedrounds.tasks.desk import Question
from fedrounds.tasks.run import Group


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


async def tidy(run: Correspondence) -> None:
    """Drop what is left in the mailboxes."""
    await asyncio.to_thread(run.clear)


async def answers(run: Correspondence, question: Question) -> list[bytes]:
    """Ask everybody whom the question is for, and wait for what they say: in site order."""
    sites, number = question.asking.sites, question.request.round
    await post(run, question, sites, number)
    found = await asyncio.gather(*(wait(run, group, question, number) for group in run.groups(sites)))
    return [message for group in found for message in group]
