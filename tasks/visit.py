"""The round as Prefect shows it: a task is a decoration of a plain function, named after what it does, where and when.

Tasks that touch rows or unprotected updates keep no result and use no cache; what they pass on lives in this process only.
"""

from __future__ import annotations

import asyncio
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from fedrounds.core.errors import ServiceError
from fedrounds.core.phases import PHASES
from fedrounds.core.round import Asking, Closed
from fedrounds.tasks.run import Group, Requests, Run
from fedrounds.tasks.verdict import Verdict, broken
from fedrounds.tasks.ward import Ward


def _passing(_task: Any, _run: Any, state: Any) -> bool:
    """Try again only what may pass by itself: a file share that was away, a helper that died. Never a refusal of ours."""
    return isinstance(state.result(raise_on_failure=False), ServiceError)


async def load_rows(group: Group) -> int:
    """Read sites' tables, unless the command line has just done so; returns their patients.

    A table that breaks the contract is its site's problem, which the gate reports: it does not end the others' run.
    """
    return sum(ward.cohort.patients if ward.cohort else ward.load(strict=False) for ward in group.wards)


async def check_gate(run: Run, group: Group) -> list[Verdict]:
    """The sites' verdicts."""
    return [await _verdict(run, ward) for ward in group.wards]


async def _verdict(run: Run, ward: Ward) -> Verdict:
    """Remembered while data and suite are the same, else asked of the gate's process."""
    verdict = run.remembered(ward)
    if verdict is None:
        verdict = run.judge(ward, await asyncio.wrap_future(run.ask_gate(ward)))
    if ward.fingerprint:
        run.memory.set_aside(ward)
    return (
        broken(ward.name, ward.problem, run.folder.operations.gate.policy)
        if verdict.passed and ward.problem
        else verdict
    )


async def encode_rows(group: Group, run: Run) -> None:
    """Encode sites' rows by the study's frozen statistics."""
    with run.clock("training"):
        for ward in group.wards:
            ward.preprocess(run.state.statistics)


async def answer(group: Group, requests: Requests, round: int) -> list[bytes]:
    """Carry a request to sites, and their replies back; `round` names the task."""
    del round
    return group.answer(requests)


async def close(run: Run, asking: Asking, replies: list[bytes], round: int) -> Asking | Closed:
    """Check, combine, step, commit to the ledger."""
    del round
    with run.clock("training"):
        return run.aggregate(asking, replies)


async def follow(run: Run, round: int) -> None:
    """Hand the visit to MLflow's projector."""
    del round
    run.track()


SITE: dict[str, Any] = {"retries": 2, "retry_delay_seconds": 1, "retry_condition_fn": _passing}
PRIVATE: dict[str, Any] = {"persist_result": False, "cache_policy": NO_CACHE}

load = task(load_rows, name="load", task_run_name="load · {group.label}", **SITE, **PRIVATE)
gate = task(check_gate, name="gate", task_run_name="gate · {group.label}", **SITE, **PRIVATE)
preprocess = task(encode_rows, name="preprocess", task_run_name="preprocess · {group.label}", **SITE, **PRIVATE)
statistics = task(answer, name="statistics", task_run_name="statistics · {group.label}", **SITE, **PRIVATE)
fit = task(answer, name="fit", task_run_name="fit · {group.label} · round {round}", **SITE, **PRIVATE)
score = task(answer, name="score", task_run_name="score · {group.label} · round {round}", **SITE, **PRIVATE)
profile = task(answer, name="profile", task_run_name="profile · {group.label}", **SITE, **PRIVATE)
phases = {  # of masked sums: what touches no row
    ask: task(answer, name=ask, task_run_name=f"{ask} · {{group.label}} · round {{round}}", **SITE, **PRIVATE)
    for ask in sorted(PHASES)
}
aggregate = task(close, name="aggregate", task_run_name="aggregate · round {round}", **PRIVATE)
track = task(follow, name="track", task_run_name="track · round {round}", **PRIVATE)
