"""The flow of a study: gate, round 0, a profile where drift is watched, training rounds, a closing visit that scores the last model.

Run by `fedrounds run`, or by any Prefect worker: `fedrounds.flows.study:study`. Its parameters are paths and numbers; patient rows stay in
the wards of this process, and the ledger alone decides what is still to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from uuid import UUID

from httpx import HTTPError, HTTPStatusError
from prefect import Task, flow, get_client, tags, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import FlowRunFilter
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.states import Crashed

from fedrounds.core.errors import ServiceError, StateError
from fedrounds.core.messages import Ask
from fedrounds.core.round import Asking
from fedrounds.flows import by_mail
from fedrounds.flows.show import show
from fedrounds.flows.step import do, key, tag
from fedrounds.reports.drift import drift_table
from fedrounds.reports.summary import markdown_table
from fedrounds.tasks import drift, letters, privacy
from fedrounds.tasks import visit as tasks
from fedrounds.tasks.correspondence import Correspondence
from fedrounds.tasks.opening import opening
from fedrounds.tasks.run import Run
from fedrounds.tasks.schedule import remember
from fedrounds.tasks.verdict import Verdict, markdown

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
    with opening(Path(folder), Path(data) if data else None, Path(state) if state else None) as own:
        await rounds(own, more)


async def carry(run: Run, more: int = 0) -> None:
    """The flow, on a run that is open already.

    Raises:
        ServiceError: Prefect's server went away; what was committed stays, and the next run goes on from there.
    """
    at_hand.set(run)
    try:
        with tags(tag(run)):
            await study(str(run.folder.path), more=more)
        remember(run)
        run.ledger.note("finished", run.visit)  # nothing is left to do, now that Prefect shows it as completed
    except HTTPError as error:
        if isinstance(error, HTTPStatusError) and error.response.status_code in (401, 403):
            raise StateError(
                "expected Prefect's server to let this run in, found that it does not: set PREFECT_API_AUTH_STRING as its operator says"
            ) from None
        raise ServiceError(
            f"expected Prefect's server to answer, found {type(error).__name__} after round {run.state.round}: run again to go on from there"
        ) from None


async def rounds(run: Run, more: int) -> None:
    """The whole of a run, as a paragraph."""
    await begin(run)
    await admit(run)
    if not run.state.statistics:
        await visit(run, "statistics", tasks.statistics)
    await watch(run)
    if not isinstance(run, Correspondence):
        for group in run.groups(run.taking_part):
            await do(run, tasks.preprocess, group, run)
    run.aim(more)
    while run.state.round < run.target:
        if privacy.due(run):
            await visit(run, "score", tasks.score)
        await visit(run, "train", tasks.fit)
    if not run.scored:
        await visit(run, "score", tasks.score)
        tell(run, "warned", drift.miscalibrated(run))
    await do(run, finish, run)
    if isinstance(run, Correspondence):
        await do(run, letters.clear, run)


async def begin(run: Run) -> None:
    """Mark the lineage's flow runs that died before this one as crashed: Prefect would show them running for ever."""
    run.flow_run = str(flow_run.id)
    open_still: Any = {"tags": {"all_": [tag(run)]}, "state": {"type": {"any_": ["RUNNING", "PENDING"]}}}
    async with get_client() as client:
        for dead in await client.read_flow_runs(flow_run_filter=FlowRunFilter(**open_still)):
            if dead.id != UUID(run.flow_run):
                crashed = Crashed(message="its process died; the study went on from the ledger")
                await client.set_flow_run_state(dead.id, crashed, force=True)
        if tag(run) not in flow_run.tags:  # started by a worker
            await client.update_flow_run(UUID(run.flow_run), tags=[*flow_run.tags, tag(run)])


async def admit(run: Run) -> None:
    """Every site's verdict on its rows, and the policy."""
    run.warm_up()
    with run.clock("gate"):
        found = await (by_mail.verdicts(run) if isinstance(run, Correspondence) else verdicts(run))
    await acreate_markdown_artifact(markdown(found), key=key("gate", run), description="What each site's gate found")
    run.admit({verdict.site: verdict for verdict in found})


async def verdicts(run: Run) -> list[Verdict]:
    """Load the rows of the sites of this process, and pass them through the gate."""
    groups = run.groups(list(run.wards))
    for group in groups:
        await do(run, tasks.load, group)
    found = await asyncio.gather(*(do(run, tasks.gate, run, group) for group in groups))
    return [verdict for group in found for verdict in group]


async def watch(run: Run) -> None:
    """Where the study watches for drift: data that changed are profiled, and beyond the limit the run ends here.

    Raises:
        DriftHold: a site's data have drifted too far. The profile is in the ledger and in MLflow; nothing else has changed.
    """
    changed = drift.due(run)
    if changed:
        await visit(run, "profile", tasks.profile)
    found = drift.standing(run)
    if found is None:
        return
    if changed:
        table = drift_table(run.folder.study, found)
        await acreate_markdown_artifact(
            table, key=key("drift", run), description="How far each site's data have drifted"
        )
        tell(run, "warned", drift.warning(run.folder.study, found))
    if found["held"]:
        tell(run, "held", drift.news(run.folder.study, found))
        if changed or run.ledger.unprojected():  # a run that died may have left the profile untold
            await asyncio.wrap_future(run.finish_tracking())
        run.failed(drift.hold(found))


def tell(run: Run, word: str, news: Mapping[str, Any] | None) -> None:
    """Raise a Prefect event about the study's drift, if there is news; its payload is names and numbers."""
    name = run.folder.study.name
    if news:
        about = {"prefect.resource.id": f"fedrounds.study.{name}", "prefect.resource.name": name}
        emit_event(f"fedrounds.drift.{word}", resource=about, payload=dict(news))


async def visit(run: Run, ask: Ask, carry: Task[..., Any]) -> None:
    """One round, or one closing visit: exchanges until it is closed."""
    asking = run.open(ask)
    number = asking.request.round
    while isinstance(asking, Asking):
        by_post = isinstance(run, Correspondence)
        replies = await (by_mail.carried(run, asking) if by_post else carried(run, asking, carry))
        asking = await do(run, tasks.aggregate, run, asking, replies, number)
    await do(run, tasks.track, run, number)
    await show(run, key("", run))


async def carried(run: Run, asking: Asking, carry: Task[..., Any]) -> list[bytes]:
    """The replies of the sites of this process to an open exchange."""
    requests, number = asking.requests, asking.request.round
    groups, carry = run.groups(asking.sites), tasks.phases.get(asking.request.ask, carry)
    run.send(groups, requests)
    return [reply for group in groups for reply in await do(run, carry, group, requests, number)]


@task(name="finish", task_run_name="baselines and reports", persist_result=False, cache_policy=NO_CACHE)
async def finish(run: Run) -> None:
    """What each site would have alone and pooled, and everything in MLflow."""
    run.last = run.last or dict(run.ledger.progress().record)
    with run.clock("baselines"):
        run.baselines()
    with run.clock("MLflow"):
        tracked = await asyncio.wrap_future(run.finish_tracking())
    run.ledger.note("reports", tracked["reports"])
    table = markdown_table(run.folder.study, run.ledger.visits(), run.ledger.noted("baselines") or {})
    await acreate_markdown_artifact(
        table, key=key("result", run), description="The federated model beside what each site has alone"
    )
