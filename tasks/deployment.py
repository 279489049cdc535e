"""A study on a Prefect server: the deployment `study/NAME`, its calendar, its work pool, and who hears when something is wrong.

Everything is found by its name before it is made, so that deploying again changes what is there and doubles nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from fedrounds.core.errors import ServiceError, StudyError
from fedrounds.core.operations import Schedule
from fedrounds.tasks.calendar import ANCHOR, following, zone
from fedrounds.tasks.folder import Folder, State
from fedrounds.tasks.notify import addresses, notify

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

FLOW, ENTRYPOINT = "study", "fedrounds.flows.scheduled.scheduled"
POOL = "hospitals"


@dataclass(frozen=True)
class Deployed:
    """What is on the server now."""

    id: str
    name: str
    created: bool
    paused: bool
    calendar: str
    next: str | None
    notifications: tuple[str, ...]


RUNNING = ("RUNNING",)
BEGUN = ("RUNNING", "PENDING", "CANCELLING")  # where no worker is at work yet, all of these are dead


async def deploy(
    folder: Folder, place: State, paused: bool | None, command: str | None = None, dead: Sequence[str] = ()
) -> Deployed:
    """Create or update the deployment and its automations; `paused` None leaves it as it is.

    `command` is how a worker of our own starts a tick: one process, where Prefect's default starts three, two of which prepare a
    workspace that nothing needs. A foreign worker is left to its own interpreter. `dead` are the states whose flow runs have no
    process any more, as the caller knows.

    Raises:
        StudyError: operations.toml has no [schedule], or a variable that it names is not set.
    """
    from prefect import get_client
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions

    schedule = _schedule(folder)
    webhooks = addresses(schedule)
    async with get_client() as client:
        await _pool(client)
        before = await _find(client, folder.study.name)
        halted = before.paused if paused is None and before else bool(paused)
        id_ = await client.create_deployment(
            flow_id=await client.create_flow_from_name(FLOW),
            name=folder.study.name,
            schedules=[_calendar(schedule)],
            concurrency_limit=1,
            concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
            parameters=_parameters(folder, place),
            parameter_openapi_schema=SCHEMA,
            description=f"{folder.study.title}\n\n{_words(schedule)}, {schedule.rounds} round{'s' * (schedule.rounds > 1)} a tick",
            work_pool_name=POOL,
            tags=["fedrounds", folder.study.name],
            entrypoint=ENTRYPOINT,
            pull_steps=[],
            job_variables={"command": command} if command else {},
            paused=halted,
            enforce_parameter_schema=True,
        )
        if dead:
            await bury(client, id_, dead)
        notifications = await notify(client, folder.study.name, str(id_), webhooks)
    tick = None if halted else following(schedule, datetime.now(zone(schedule))).isoformat()
    name = f"{FLOW}/{folder.study.name}"
    return Deployed(str(id_), name, before is None, halted, _words(schedule), tick, tuple(notifications))


async def remove(folder: Folder) -> bool:
    """Take the deployment, its automations and webhooks off the server; False if there was none. Ledger and MLflow are not touched."""
    from prefect import get_client

    async with get_client() as client:
        found = await _find(client, folder.study.name)
        await notify(client, folder.study.name, "", ())
        if found is not None:
            await client.delete_deployment(found.id)
        return found is not None


async def bury(
    client: PrefectClient, deployment: UUID, states: Sequence[str] = RUNNING, but: UUID | None = None
) -> None:
    """Mark the deployment's flow runs in those states as crashed, other than `but`: their processes are gone, and they hold its one slot."""
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Crashed

    wanted: Any = {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": list(states)}}}
    for dead in await client.read_flow_runs(flow_run_filter=FlowRunFilter(**wanted)):
        if dead.id != but:
            crashed = Crashed(message="its process died; the study goes on from the ledger")
            await client.set_flow_run_state(dead.id, crashed, force=True)


SCHEMA = {
    "title": "Parameters",
    "type": "object",
    "properties": {
        name: {"title": name, "type": "string", "position": position, "description": what}
        for position, (name, what) in enumerate(
            {
                "folder": "the study's folder, as the worker sees it",
                "data": "where the sites' relative paths start",
                "state": "the state folder (mlruns)",
            }.items()
        )
    },
    "required": ["folder", "data", "state"],
}


def _parameters(folder: Folder, place: State) -> dict[str, str]:
    return {
        "folder": str(folder.path.resolve()),
        "data": str(folder.data.resolve()),
        "state": str(place.mlruns.resolve()),
    }


def _schedule(folder: Folder) -> Schedule:
    if folder.operations.schedule is None:
        raise StudyError(
            f'expected a [schedule] in {folder.path / "operations.toml"}, found none: add one, such as `cron = "0 3 * * 1"`'
        )
    return folder.operations.schedule


def _words(schedule: Schedule) -> str:
    return (f"cron {schedule.cron}" if schedule.cron else f"every {schedule.interval}") + f", {schedule.timezone}"


def _calendar(schedule: Schedule) -> Any:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

    if schedule.cron is not None:
        calendar: Any = CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
    else:
        step = timedelta(seconds=schedule.interval_s or 0)
        anchor = datetime(*ANCHOR, tzinfo=zone(schedule))
        calendar = IntervalSchedule(interval=step, anchor_date=anchor, timezone=schedule.timezone)  # type: ignore[arg-type]
    return DeploymentScheduleCreate(schedule=calendar, active=True, slug="calendar")


async def _find(client: PrefectClient, study: str) -> DeploymentResponse | None:
    from prefect.exceptions import ObjectNotFound

    try:
        return await client.read_deployment_by_name(f"{FLOW}/{study}")
    except ObjectNotFound:
        return None


async def _pool(client: PrefectClient) -> None:
    """Make the pool, of processes, unless it is there. Another kind of the same name is somebody else's."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    try:
        found = await client.read_work_pool(POOL)
    except ObjectNotFound:
        from prefect.workers.process import ProcessWorker  # two seconds, for the one time that it is needed

        template = ProcessWorker.get_default_base_job_template()
        with suppress(ObjectAlreadyExists):  # somebody was quicker
            await client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        found = await client.read_work_pool(POOL)
    if found.type != "process":
        raise ServiceError(
            f"expected the work pool '{POOL}' to be of type process, found {found.type} on this server: rename that one"
        )


def dumped(deployed: Deployed) -> dict[str, Any]:
    """As plain JSON types."""
    return json.loads(json.dumps(deployed.__dict__))
