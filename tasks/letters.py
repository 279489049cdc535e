"""The round as a coordinator's Prefect shows it: a task sends the question, and one a hospital waits for its answer.

Replies are unprotected updates: no result is kept, no cache is used.
"""

from __future__ import annotations

from typing import Any

from prefect import task

from fedrounds.core.messages import Ask
from fedrounds.core.phases import PHASES
from fedrounds.tasks.visit import PRIVATE
from fedrounds.tasks.waiting import post, tidy, wait


def _waiting(name: str, round: str = "") -> Any:
    return task(wait, name=name, task_run_name=f"{name} · {{group.label}}{round}", **PRIVATE)


clear = task(tidy, name="clear", task_run_name="clear the mailboxes", **PRIVATE)
ask = task(post, name="ask", task_run_name="ask {question.request.ask} · round {round}", **PRIVATE)
answered: dict[Ask, Any] = {
    "gate": _waiting("gate"),
    "statistics": _waiting("statistics"),
    "profile": _waiting("profile"),
    "train": _waiting("fit", " · round {round}"),
    "score": _waiting("score", " · round {round}"),
    **{phase: _waiting(phase, " · round {round}") for phase in sorted(PHASES)},
}
