"""A hospital's visit on its own Prefect: one short flow run a question, `study · round`. Nobody else reaches that server."""

from __future__ import annotations

from contextvars import ContextVar

from prefect import flow, tags, task
from prefect.cache_policies import NO_CACHE

from fedrounds.tasks.hospital import Answer, Hospital, Letter

at_hand: ContextVar[tuple[Hospital, Letter]] = ContextVar("at_hand")
PRIVATE = {"persist_result": False, "cache_policy": NO_CACHE}


async def visit(hospital: Hospital, letter: Letter) -> Answer:
    """Answer one request, as a flow run."""
    at_hand.set((hospital, letter))
    request = letter.request
    with tags(f"study {request.study[:12]}"):
        return await answer(f"{hospital.called(request.study)} · {hospital.words(request)}")


@flow(name="visit", flow_run_name="{label}", persist_result=False, validate_parameters=False)
async def answer(label: str) -> Answer:
    """Decide, work, remember, send."""
    del label
    hospital, letter = at_hand.get()
    found = hospital.given(letter)
    if found is None:
        found = await work(hospital, letter, hospital.words(letter.request))
    await send(hospital, letter, found)
    return found


@task(name="work", task_run_name="{words} · {hospital.name}", **PRIVATE)
async def work(hospital: Hospital, letter: Letter, words: str) -> Answer:
    """What takes the hospital's rows: its gate, statistics, a fit, scores."""
    del words
    return hospital.work(letter)


@task(name="send", task_run_name="send · {hospital.name}", **PRIVATE)
async def send(hospital: Hospital, letter: Letter, found: Answer) -> None:
    """Sign it, put it into the mailbox, write it down."""
    hospital.send(letter, found)
