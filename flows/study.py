"""The flow of a study: gate, round 0, training rounds, a closing visit that scores the last model.

Run by `fedrounds run`, or by any Prefect worker: `fedrounds.flows.study:study`. Its parameters are paths and numbers; patient rows stay in
the wards of this process, and the ledger alone decides what is still to do.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Task, flow, get_client, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed

from fedrounds.core.messages import Ask
from fedrounds.core.round import Asking
from fedrounds.reports.summary import markdown_table
from fedrounds.tasks import folder as folders
from fedrounds.tasks import visit as tasks
from fedrounds.tasks.run import Run, opened, request_bytes
from fedrounds.tasks.verdict import markdown

at_hand: ContextVar[Run | None] = ContextVar("at_hand", default=None)
"""A run that the caller has opened already (the command line has, to be quick); a worker's flow opens its own."""


def _name() -> str:
    return Path(flow_run.parameters["folder"]).resolve().name


@flow(name="study", flow_run_name=_name, persist_result=False, validate_parameters=False)
async def study(folder: str, data: str | None = None, state: str | None = None, more: int = 0) -> None:
    """Bring the study in `folder` to its rounds, or `more` rounds further."""
    run = at_hand.get()
    if run is not None:
        await rounds(run, more)
        return
    read = folders.read(Path(folder), Path(data) if data else None)
    place = folders.state_of(read.path, read.study.name, Path(state) if state else None)
    folders.prepare(place, fresh=False)
    with opened(read, place) as own:
        await rounds(own, more)


async def rounds(run: Run, more: int) -> None:
    """The whole of a run, as a paragraph."""
    await begin(run)
    await admit(run)
    if not run.state.statistics:
        await visit(run, "statistics", tasks.statistics)
    for name in run.taking_part:
        await do(run, tasks.preprocess, run.wards[name], run)
    run.aim(more)
    while run.state.round < run.target:
        await visit(run, "train", tasks.fit)
    if not run.scored:
        await visit(run, "score", tasks.score)
    await do(run, finish, run)
    run.ledger.flow_ended(run.flow_run)


async def begin(run: Run) -> None:
    """Note this flow run in the ledger; mark those that died before it as crashed, since Prefect would show them running for ever."""
    run.flow_run = str(flow_run.id)
    async with get_client() as client:
        for dead in run.ledger.open_flow_runs():
            with contextlib.suppress(ObjectNotFound):
                await client.set_flow_run_state(
                    UUID(dead), Crashed(message="its process died; the study went on from the ledger"), force=True
                )
            run.ledger.flow_ended(dead)
    run.ledger.flow_started(run.flow_run)


async def do(run: Run, what: Task[..., Any], *arguments: Any) -> Any:
    """Call a task, and count it: the command line waits until Prefect has stored them all."""
    run.tasks += 1
    return await what(*arguments)


async def admit(run: Run) -> None:
    """Load every site's rows, pass them through the gate, apply the policy."""
    run.warm_up()
    for ward in run.wards.values():
        await do(run, tasks.load, ward)
    verdicts = await asyncio.gather(*(do(run, tasks.gate, run, ward) for ward in run.wards.values()))
    await acreate_markdown_artifact(markdown(verdicts), key="gate", description="What each site's gate found")
    run.admit({verdict.site: verdict for verdict in verdicts})


async def visit(run: Run, ask: Ask, carry: Task[..., Any]) -> None:
    """One round, or one closing visit: exchanges until it is closed."""
    asking = run.open(ask)
    number = asking.request.round
    while isinstance(asking, Asking):
        request = request_bytes(asking)
        replies = [
            reply for group in run.groups(asking.sites) for reply in await do(run, carry, group, request, number)
        ]
        asking = await do(run, tasks.aggregate, run, asking, replies, number)
    await do(run, tasks.track, run, number)


@task(name="finish", task_run_name="baselines and reports", persist_result=False, cache_policy=NO_CACHE)
async def finish(run: Run) -> None:
    """What each site would have alone and pooled, and everything in MLflow."""
    run.last = run.last or dict(run.ledger.progress().record)
    run.baselines()
    await asyncio.wrap_future(run.finish_tracking())
    table = markdown_table(run.folder.study, run.ledger.visits(), run.ledger.noted("baselines") or {})
    await acreate_markdown_artifact(
        table, key="result", description="The federated model beside what each site has alone"
    )
