"""A study under differential privacy, as it is run: what it does not go with, the sites' ledgers, and what has been spent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrounds.core.answer import Policy
from fedrounds.core.errors import StudyError
from fedrounds.core.messages import Request, encode
from fedrounds.core.operations import Operations, Promotion
from fedrounds.core.privacy.accounting import Budget, epsilon
from fedrounds.core.privacy.patient import Scores
from fedrounds.core.study import Study
from fedrounds.site.budget import Budgets
from fedrounds.tasks.calendar import following

if TYPE_CHECKING:
    from fedrounds.tasks.run import Run

FILE = "budget.db"
MOST_TICKS = 100_000  # that a forecast counts


def agrees(study: Study, operations: Operations) -> None:
    """Raise StudyError where a study under differential privacy is run by what would tell more than its budget counts."""
    dp = study.privacy.dp
    if dp is None:
        return
    for found, why in (
        (operations.drift is not None, "[drift] sends exact profiles of the rows: drop it from operations.toml"),
        (
            operations.promotion != Promotion() and not compares(study),
            "[promotion] compares exact scores of each site, which stay there: drop it from operations.toml, or state privacy.dp.scores",
        ),
        (
            operations.promotion.confidence == 0,
            "a promotion by the mean alone would heed the noise in it as if it were none: state a `confidence` above 0 in operations.toml",
        ),
        (
            compares(study) is not None and study.validation.fold is None and study.validation.fraction == 0,
            "privacy.dp.scores holds versions against the champion on validation patients, and there are none: state validation.fraction",
        ),
        (
            operations.gate.quarantine > 0,
            "`quarantine` under [gate] may set a patient's row aside for what another's holds: drop it from operations.toml",
        ),
        (
            operations.rounds > dp.rounds,
            f"found {operations.rounds} rounds in operations.toml, and noise for {dp.rounds} in privacy.dp: make them agree",
        ),
    ):
        if found:
            raise StudyError(f"expected what goes with differential privacy: {why}")


def compares(study: Study) -> Scores | None:
    """How versions are compared under differential privacy, None where they are not, or where there is none."""
    return study.privacy.dp.scores if study.privacy.dp else None


def due(run: Run) -> bool:
    """Whether the version at hand must be held against the champion, under differential privacy, before the study trains on."""
    scores = compares(run.plan.study)
    return scores is not None and scores.due(run.state.round) and not run.scored


def ledgers(run: Run) -> None:
    """Give every site of a run in this process its ledger. Raises StudyError where the sites are in other processes that have none."""
    if run.plan.study.privacy.dp is None or run.carrier == "mail":
        return
    if run.on_dask:
        raise StudyError(
            "expected the sites of a study under differential privacy in this process or apart, found `--runner dask`: leave it out"
        )
    budgets = Budgets(run.place.own / FILE)
    for ward in run.wards.values():
        ward.budgets = budgets


def limits(study: Study, policy: Policy) -> tuple[Budget, Budget | None]:
    """What the study may spend on a site's rows, and what all studies together may, if the site says so."""
    assert study.privacy.dp is not None
    return study.privacy.dp.budget, Budget(policy.epsilon, policy.delta) if policy.epsilon else None


def uncounted(study: Study, policy: Policy) -> str:
    """Why the site's own budget cannot count what this study costs; empty if it can.

    It adds up what is learnt of a patient. What hides a hospital by zero in its place hides one of its patients half as well: an update turns
    into another within the clip.
    """
    if policy.epsilon and study.privacy.dp and study.privacy.dp.unit == "hospital":
        return "the site's own privacy budget counts what is learnt of a patient, and this study states ε of a hospital"
    return ""


def question(asked: Request, fingerprint: str, site: str) -> str:
    """A digest of what is asked, and of the rows that it is asked about."""
    return sha256(encode(asked) + f"{fingerprint}\0{site}".encode()).hexdigest()


def spent(run: Run, round: int) -> dict[str, Any]:
    """What a study has spent on the most expensive site's rows by the end of a round, for the ledger and MLflow; empty without privacy.

    In one process it is what the sites' ledgers hold. Of sites that are apart it is what the closed rounds cost: what a lost attempt cost
    beside them only the sites know.
    """
    dp = run.plan.study.privacy.dp
    if dp is None:
        return {}
    digest, wards = run.plan.digest, {} if run.carrier == "mail" else run.wards
    held = [ward.budgets.spent(name).get(digest, []) for name, ward in wards.items() if ward.budgets]
    trained, delta = dp.training_event(), dp.budget.delta
    compared = dp.comparing(run.state.round)  # the model that came in is the last that was compared
    closed = [dp.statistics_event(), trained._replace(times=trained.times * round), *compared]
    return {"epsilon": max((epsilon(events, delta) for events in (held or [closed])), default=0.0), "delta": delta}


def in_a_year(operations: Operations, start: datetime | None = None) -> int:
    """Rounds that the schedule makes in the 365 days from a moment on, 0 without one; each tick counts, as if new data came before it."""
    if operations.schedule is None:
        return 0
    tick = start or datetime.now(UTC)
    end, ticks = tick + timedelta(days=365), 0
    while (tick := following(operations.schedule, tick)) <= end and ticks < MOST_TICKS:
        ticks += 1
    return ticks * operations.schedule.rounds


def carried_over(before: Path, after: Path) -> None:
    """A study that starts anew has not forgotten what it spent: its ledger goes with it."""
    if (before / FILE).exists():
        from shutil import copyfile

        held = Budgets(before / FILE)  # what is still in its log goes into the file
        held.checkpoint()
        held.close()
        copyfile(before / FILE, after / FILE)
