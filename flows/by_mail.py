"""How a round is carried to hospitals that are really apart: a question into every mailbox, and answers until all are there or time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fedrounds.core.errors import QuorumError
from fedrounds.core.round import Asking
from fedrounds.flows.step import do
from fedrounds.tasks import letters
from fedrounds.tasks.correspondence import Correspondence, spoken
from fedrounds.tasks.desk import Question
from fedrounds.tasks.verdict import Verdict


async def carried(run: Correspondence, asking: Asking) -> list[bytes]:
    """The replies to an open exchange. Too few at the deadline: the question is asked again, under a new number."""
    for left in reversed(range(run.folder.operations.federation.attempts)):
        replies = await answers(run, run.question(asking), asking.sites)
        answered = run.answering(replies)
        if answered >= asking.quorum or not left:
            return replies
        run.unanswered(asking.request, answered, asking.quorum)
    raise AssertionError("a question is asked at least once")


async def verdicts(run: Correspondence) -> list[Verdict]:
    """What each hospital's gate says of its data. Raises QuorumError where too few say anything; it is in the ledger first."""
    asking = run.gate()
    sites, quorum = asking.sites, asking.quorum
    for left in reversed(range(run.folder.operations.federation.attempts)):
        findings = await answers(run, run.question(asking), asking.sites)
        found = run.found(findings)
        if len(found) >= quorum:
            return [found[name] for name in sorted(found)]
        if left:
            run.unanswered(asking.request, len(found), quorum)
    unheard = spoken(run.unheard(findings))
    run.failed(
        QuorumError(
            f"expected the gates of at least {quorum} of {len(sites)} sites to answer, found {len(found)} ({unheard})"
        )
    )
    raise AssertionError("it has been raised")


async def answers(run: Correspondence, question: Question, sites: Sequence[str]) -> list[bytes]:
    """Ask the sites, and wait for what they say: in site order."""
    number, wait = question.request.round, letters.answered[question.request.ask]
    await do(run, letters.ask, run, question, sites, number)
    found = await asyncio.gather(*(do(run, wait, run, group, question, number) for group in run.groups(sites)))
    return [message for group in found for message in group]
