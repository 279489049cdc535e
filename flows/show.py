"""What a person watches in Prefect while a run goes on: its progress, every round in words, the hospitals in a table."""

from __future__ import annotations

import time
from uuid import UUID

from prefect import get_client
from prefect.artifacts import MarkdownArtifact, ProgressArtifact, TableArtifact, aupdate_progress_artifact

from fedrounds.reports import round_words as words
from fedrounds.tasks.run import Run

PACE_S = 1.0  # a request costs 10 to 20 ms of two processes: what only moves need not move more often than people look


async def show(run: Run, name: str) -> None:
    """Update the run's artifacts after a closed visit, on the flow's own client.

    Every round has its own version under the key `round-NAME`. The progress (one artifact, which moves) and the table of hospitals follow
    at most once in `PACE_S`, and at the run's end.

    Args:
        name: the study's part of the keys.
    """
    study, record, number = run.folder.study, run.last, run.state.round
    if "metrics" not in record:  # a visit that neither trained nor scored
        return
    said = words.line(study, record, number, run.target)
    async with get_client() as client:
        told = words.markdown(study, record, number, run.target)
        await MarkdownArtifact(key=f"round-{name}", markdown=told, description=said).acreate(client)
        if time.monotonic() - run.shown < PACE_S and number < run.target:
            return
        share = min(100.0, 100.0 * number / run.target)
        if run.progress:
            await aupdate_progress_artifact(UUID(run.progress), share, said, client)
        else:
            made = await ProgressArtifact(key=f"progress-{name}", progress=share, description=said).acreate(client)
            run.progress = str(made.id)
        rows = words.table(study, record)
        if rows:
            await TableArtifact(key=f"sites-{name}", table=rows, description=said).acreate(client)
    run.shown = time.monotonic()
