"""The flow that a schedule starts: decide whether to run, run, and end in a state whose name says what became of the tick.

    Completed            trained and scored
    Skipped  (completed) nothing to do: no new data, a blackout, a missed tick that another one stood for, a runner at work
    Held     (failed)    drift beyond the study's limit: somebody has to look
    Failed   (failed)    one line says what was expected, what was found, where, what to do

A worker loads it as `fedrounds.flows.scheduled.scheduled`. Its parameters are paths; everything else it reads from the study's folder, so
that a change of operations.toml holds from the next tick on.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from httpx import HTTPError
from prefect import flow, get_client
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State, StateType
from prefect.runtime import deployment, flow_run

from fedrounds.core.errors import DriftHold, FedroundsError, StudyBusy
from fedrounds.flows.study import begin, rounds
from fedrounds.tasks import schedule
from fedrounds.tasks.deployment import bury
from fedrounds.tasks.opening import opening
from fedrounds.tasks.run import Run


class Outcome(NamedTuple):
    """How a tick ended: the state's name and type as Prefect shows them, and one line."""

    name: str
    type: StateType
    said: str

    def state(self) -> State[Any]:
        """As Prefect keeps it. Whatever watches for it listens to the event `prefect.flow-run.NAME`."""
        return State(type=self.type, name=self.name, message=self.said)


def outcome_of(error: FedroundsError) -> Outcome:
    """The state that an error of ours ends a tick in."""
    match error:
        case StudyBusy():
            return Outcome("Skipped", StateType.COMPLETED, str(error))
        case DriftHold():
            return Outcome("Held", StateType.FAILED, str(error))
        case _:
            return Outcome("Failed", StateType.FAILED, str(error))


def _name() -> str:
    return f"{Path(flow_run.parameters['folder']).name} · {flow_run.scheduled_start_time:%Y-%m-%d %H:%M}"


@flow(name="study", flow_run_name=_name, persist_result=False, validate_parameters=False)
async def scheduled(folder: str, data: str | None = None, state: str | None = None) -> State[Any]:
    """One tick of the schedule of the study in `folder`."""
    try:
        with opening(Path(folder), Path(data) if data else None, Path(state) if state else None) as run:
            return (await tick(run)).state()
    except FedroundsError as error:
        return outcome_of(error).state()
    except HTTPError as error:
        said = (
            f"expected Prefect's server to answer, found {type(error).__name__}: the next tick goes on from the ledger"
        )
        return Outcome("Failed", StateType.FAILED, said).state()


async def tick(run: Run) -> Outcome:
    """Decide, run, remember; the artifact says the same as the state."""
    started, before = datetime.now(UTC), run.state.round
    due = flow_run.scheduled_start_time or started
    if (
        deployment.id is not None
    ):  # this run has the study's lease: what else is shown as running died before it could say what it is
        async with get_client() as client:
            await bury(client, UUID(deployment.id), but=UUID(str(flow_run.id)))
    await begin(run)
    decided = schedule.look(run, due, started)
    if decided.action == "skip":
        outcome = Outcome("Skipped", StateType.COMPLETED, decided.reason)
    else:
        outcome = await trained(run, decided.reason, before)
        schedule.settle(run, started)
    key = "tick-" + re.sub("[^a-z0-9]+", "-", run.folder.study.name.lower()).strip("-")
    await acreate_markdown_artifact(
        schedule.told(run, outcome.name, outcome.said, due, before),
        key=key,
        description=f"{outcome.name}: {outcome.said}",
    )
    return outcome


async def trained(run: Run, reason: str, before: int) -> Outcome:
    """The study's rounds, and how they ended."""
    asked = run.folder.operations.schedule
    try:
        await rounds(run, asked.rounds if asked else 0)
    except FedroundsError as error:
        return outcome_of(error)
    schedule.remember(run)
    run.ledger.note("finished", run.visit)
    sat_out = f"; {', '.join(run.excluded)} sat out" if run.excluded else ""
    return Outcome("Completed", StateType.COMPLETED, f"round {before} → {run.state.round}, {reason}{sat_out}")
