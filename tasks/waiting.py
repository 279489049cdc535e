"""A question on its way to hospitals and their answers back: put into mailboxes, and looked for until its time is over. No Prefect in here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from fedrounds.core.errors import QuorumError
from fedrounds.core.messages import Reply
from fedrounds.core.round import Asking, Closed, close_exchange
from fedrounds.tasks.correspondence import AWAY, Correspondence, spoken
from fedrounds.tasks.desk import Question
from fedrounds.tasks.run import Group
from fedrounds.tasks.ward import read_reply


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


def closed(run: Correspondence, asking: Asking, reached: set[str]) -> Closed:
    """Exchanges until the sums are there; whoever was asked is added to `reached`."""
    now: Asking | Closed = asking
    while isinstance(now, Asking):
        reached |= set(now.sites)
        replies = [read_reply(reply) for reply in _replies(run, now)]
        _enough(now, replies)
        now = close_exchange(now, run.plan, replies)
        if isinstance(now, Asking) and now.masking and now.masking.phase == "open":
            run.opening(now.masking)
    return now


def _replies(run: Correspondence, asking: Asking) -> list[bytes]:
    """The replies to an open exchange. Too few at the deadline: it is asked again, unless all have said what they say."""
    for left in reversed(range(run.folder.operations.federation.attempts)):
        replies = asyncio.run(answers(run, run.question(asking)))
        if run.answering(replies) >= asking.quorum or len(replies) == len(asking.sites) or not left:
            return replies
    raise AssertionError("a question is asked at least once")


def _enough(asking: Asking, replies: Iterable[Reply]) -> None:
    """Raise QuorumError, with everybody's reason, where too few tell for the exchange to close."""
    unheard = dict.fromkeys(asking.sites, AWAY) | {it.site: it.refusal for it in replies}
    silent = {site: reason for site, reason in unheard.items() if reason}
    told = len(unheard) - len(silent)
    if told < asking.quorum:
        raise QuorumError(
            f"expected at least {asking.quorum} of {len(unheard)} hospitals to tell, found {told} ({spoken(silent)}): ask again when they may"
        )
