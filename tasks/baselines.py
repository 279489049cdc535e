"""What a federated model is compared with: each site's own, and one of all rows. Only where all rows are in one process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fedrounds.core.answer import Policy, handle
from fedrounds.core.combine import WeightedMean
from fedrounds.core.errors import NoFit
from fedrounds.core.evaluate import metrics, total
from fedrounds.core.plan import Plan, build
from fedrounds.core.preprocess import Cohort
from fedrounds.core.preprocess import encode as encode_rows
from fedrounds.core.round import open_round
from fedrounds.core.simulate import simulate
from fedrounds.tasks.withheld import withheld

if TYPE_CHECKING:
    from fedrounds.tasks.run import Run

COMPARED = 64  # sites up to which each also trains alone, to compare with


def compare(run: Run) -> None:
    """Note in the ledger what each site would have alone, and what one pool of all rows would give.

    They take over the study's statistics: a site that does not record a feature could not agree on its own. What is too few to be
    scored in a round is too few here.
    """
    cohorts = {name: ward.cohort for name, ward in run.wards.items() if name in run.last["sites"] and ward.cohort}
    rounds = run.state.round
    known = run.ledger.noted("baselines") or {}
    inputs = {"round": rounds, "data": {name: run.wards[name].fingerprint for name in cohorts}}
    token = _digest(inputs)
    if known.get("token") == token or len(cohorts) > COMPARED:
        return
    if not cohorts or run.folder.study.masked:  # rows are elsewhere, or what one has alone is not to be known
        run.ledger.note("baselines", {})
        return
    local: dict[str, Any] = {}
    plan = _by_mean(run.plan)
    with withheld("to train the models to compare with"):
        for name, cohort in cohorts.items():
            start, policy = plan.start(run.state.statistics), run.wards[name].policy
            try:
                closed = list(simulate(plan, {name: cohort}, rounds, state=start, policy=policy))[-1]
            except NoFit:  # what all patients settle, those of one hospital may leave open: it has no model alone
                continue
            local[name] = metrics(run.plan.task, *closed.scores[name])
        policies = {name: run.wards[name].policy for name in cohorts}
        pooled = _pooled(plan, cohorts, policies, rounds, run.state.statistics)
    table = {
        "local": local,
        "pooled": {name: metrics(run.plan.task, *scores) for name, scores in pooled.items()},
        "pooled_all": metrics(run.plan.task, *total(pooled)),
        "patients": {name: cohort.patients for name, cohort in cohorts.items()},
        "token": token,
    }
    run.ledger.note("baselines", table)


def _by_mean(plan: Plan) -> Plan:
    """The study where updates combine by their mean: there is no median of one site's, or of the pool's, and nothing to be fair to."""
    study = plan.study
    if study.combine is None or isinstance(study.combine, WeightedMean):
        return plan
    algorithm = study.averaging.model_copy(update={"combine": WeightedMean(kind="weighted_mean")})
    return build(study.model_copy(update={"algorithm": algorithm}))


def _pooled(
    plan: Any, cohorts: dict[str, Any], policies: Mapping[str, Policy], rounds: int, statistics: Any
) -> dict[str, tuple[Any, Any]]:
    """Scores at each site of a model trained on all rows in one place by the same local rule."""

    names = sorted(cohorts)
    parts = [cohorts[name] for name in names]
    pool = Cohort(
        "pooled",
        np.concatenate([c.values for c in parts]),
        np.concatenate([c.y for c in parts]),
        np.concatenate([c.valid for c in parts]),
        {},
        _joined([c.offset for c in parts]),
        _joined([c.weight for c in parts]),
    )
    state = list(simulate(plan, {"pooled": pool}, rounds, state=plan.start(statistics)))[-1].state
    request = open_round(state, plan, "score", names).request
    scores: dict[str, tuple[Any, Any]] = {}
    for name in names:
        rows = encode_rows(cohorts[name], plan.study, state.statistics, plan.ones)
        reply = handle(request, {}, rows, plan, policies[name], name, plan.rng(0, name))[1]
        scores[name] = reply.arrays["scores"], reply.arrays["histogram"]
    return scores


def _joined(parts: list[Any]) -> Any:
    return None if parts[0] is None else np.concatenate(parts)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
