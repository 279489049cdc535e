"""Approval through Prefect: a flow run that shows the version that waits, and goes on with a person's answer.

    python -m fedrounds.flows.approve DIR             # needs PREFECT_API_URL: somebody answers there, in the UI or through the API

It is the command `fedrounds promote` with a form in place of a terminal, and writes the same act. Deployed, the run is suspended and holds
no process while it waits; started by hand it is paused, and its process waits. Killed, it has decided nothing: start it again.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.flow_runs import apause_flow_run, asuspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from prefect.states import Completed

from fedrounds.tasks import acts
from fedrounds.tasks import folder as folders


class Approval(RunInput):
    """What a person answers. Prefect knows no names: `by` is on trust."""

    approve: bool
    by: str
    reason: str = ""


def _name() -> str:
    return Path(flow_run.parameters["folder"]).resolve().name


@flow(name="approve", flow_run_name=_name, persist_result=False, validate_parameters=False)
async def approve(folder: str, state: str | None = None, hours: float = 168, poll_s: int = 5) -> State[Any]:
    """Ask a person about the version that waits for approval, for at most `hours`; the answer is an act in the study's ledger."""
    read = folders.read(Path(folder))
    place = folders.state_of(read.path, read.study.name, Path(state) if state else None)
    asked = acts.asked(place)
    if asked is None:
        return Completed(message="no version waits for approval")
    form = Approval.with_initial_data(description=asked.markdown)
    within: dict[str, Any] = {"timeout": int(3600 * hours), "key": f"round-{asked.round}"}
    if deployment.id:
        answer = await asuspend_flow_run(wait_for_input=form, **within)
    else:
        answer = await apause_flow_run(wait_for_input=form, poll_interval=poll_s, **within)
    answered = acts.promote if answer.approve else acts.reject
    done = answered(place, reason=answer.reason, by=answer.by, waiting=asked.round)
    return Completed(message=acts.told(done.act) if done.act else "nothing to do")


if __name__ == "__main__":
    asyncio.run(approve(str(Path(sys.argv[1]).resolve())))
