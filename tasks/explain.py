"""What a study's model goes by, for whom it works and what each hospital brought: on demand, of the sites' present rows.

Nothing is trained or asked under the lease: it is taken to write the result down, which is a note in the ledger, and then files in MLflow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedrounds.core.contribution import Contribution, contribution
from fedrounds.core.errors import StudyError
from fedrounds.core.explained import understood
from fedrounds.core.plan import Plan
from fedrounds.core.round import Closed
from fedrounds.core.simulate import asked
from fedrounds.core.state import RunState
from fedrounds.core.study import Study
from fedrounds.tasks.baselines import setting
from fedrounds.tasks.folder import Folder, State
from fedrounds.tasks.matrix import Ready, keep, ready
from fedrounds.tasks.withheld import withheld

NOTE = "explained"  # the ledger's note
BROUGHT = 256  # hospitals whose shares are worked out, by drawn orders: minutes
HIDDEN = "the study hides its sums: what a hospital brought is not to be known from one model to the next"


def explain(folder: Folder, place: State) -> dict[str, Any]:
    """Ask the sites, put the sums together, and keep the result; what was found for the same data and model is not asked again.

    Returns:
        The note: what `core.explained.understood` says, with `round`, `asked` (the sites), `refused` and `contribution`.

    Raises:
        StudyError: the study is differentially private, or its rows are elsewhere.
        StateError: it has not run to the end on the present data, or another runner is at work.
        QuorumError: no site answers.
    """
    require(folder.study)
    found = ready(folder, place, NOTE, champion=True)
    note = found.before if found.before.get("token") == found.token else _found(found) | {"token": found.token}
    keep(place, found.lineage, NOTE, note)
    return note


def require(study: Study) -> None:
    """Raise StudyError where nothing may leave that is not noised."""
    if study.privacy.dp:
        raise StudyError(
            "expected a study whose sites may answer questions about its model, found one that is differentially private: nothing leaves a"
            " site there that is not noised and counted, and these sums are not"
        )


def _found(of: Ready) -> dict[str, Any]:
    cohorts = {name: ward.cohort for name, ward in sorted(of.wards.items()) if ward.cohort}
    policies = {name: of.wards[name].policy for name in cohorts}
    with withheld("to explain the model"):
        closed = asked(of.plan, cohorts, "explain", of.state, policies)
        return noted(of.plan, of.state, cohorts, closed, closed.refused, _brought(of))


def noted(
    plan: Plan,
    state: RunState,
    sites: Iterable[str],
    closed: Closed,
    refused: Mapping[str, str],
    brought: Mapping[str, Any],
) -> dict[str, Any]:
    """What the sums of a closed visit say of the model of `state`, as the ledger notes it."""
    return {
        "round": state.round,
        "asked": sorted(sites),
        "masked": len(closed.heard) if plan.study.masked else 0,
        **understood(plan, state.statistics, closed.explained),
        "refused": dict(refused),
        "contribution": brought,
    }


def _brought(of: Ready) -> dict[str, Any]:
    """The sites' shares, or `none`: why there are none."""
    if of.plan.study.masked:
        return {"none": HIDDEN}
    wards = {name: ward for name, ward in of.wards.items() if ward.cohort}
    if len(wards) < 2:
        return {"none": "one hospital alone brought all of it"}
    if len(wards) > BROUGHT:
        return {"none": f"it is worked out for {BROUGHT} hospitals at most"}
    try:
        return as_told(contribution(setting(of.plan, wards, of.state, of.start), of.state.theta))
    except StudyError as error:
        return {"none": str(error)}


def as_told(found: Contribution) -> dict[str, Any]:
    """The sites' shares as the ledger notes them."""
    return {**found._asdict(), "shares": {site: share._asdict() for site, share in found.shares.items()}}
