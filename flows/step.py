"""What every flow does: call a task, name what it shows."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from prefect import Task

from fedrounds.tasks.run import Run


async def do(run: Run, what: Task[..., Any], *arguments: Any) -> Any:
    """Call a task, and count it: the command line waits until Prefect has stored them all."""
    run.tasks += 1
    await asyncio.sleep(0)  # Prefect's tasks never yield: here a cancellation can arrive
    return await what(*arguments)


def tag(run: Run) -> str:
    """What the Prefect UI shows on a flow run: the name of its lineage's run in MLflow."""
    return f"{run.folder.study.name} · {run.lineage.lineage[:6]}"


def key(what: str, run: Run) -> str:
    """An artifact's key, the study's own on a server that several share: small letters, digits and dashes."""
    return f"{what}-{re.sub('[^a-z0-9]+', '-', run.folder.study.name.lower())}".strip("-")
