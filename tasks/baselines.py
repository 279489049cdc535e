"""What a run's federated model is compared with: each site's own, and one of all rows. Only where all rows are in one process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedrounds.core import baselines
from fedrounds.core.baselines import Setting
from fedrounds.core.evaluate import metrics, total
from fedrounds.core.params import Vector
from fedrounds.core.plan import Plan
from fedrounds.core.preprocess import encode
from fedrounds.core.state import RunState
from fedrounds.tasks.origin import recorded
from fedrounds.tasks.withheld import withheld

if TYPE_CHECKING:
    from fedrounds.tasks.run import Run
    from fedrounds.tasks.ward import Ward

COMPARED = 64  # sites up to which each also trains alone, to compare with


def compare(run: Run) -> None:
    """Note in the ledger what each site would have alone, and what one pool of all rows would give.

    They take over the study's statistics: a site that does not record a feature could not agree on its own. What is too few to be
    scored in a round is too few here.
    """
    wards = {name: ward for name, ward in run.wards.items() if name in run.last["sites"] and ward.cohort}
    rounds = run.state.round
    known = run.ledger.noted("baselines") or {}
    token = about(wards, rounds)
    if known.get("token") == token:
        return
    if not wards:  # rows are elsewhere
        run.ledger.note("baselines", {})
        return
    if len(wards) > COMPARED or run.folder.study.masked:  # that takes long, or what one has alone is not to be known
        run.ledger.note("baselines", {"sites": sorted(wards), "token": token})
        return
    with withheld("to train the models to compare with"):
        of = setting(run.plan, wards, run.state, recorded(run.folder.study, run.ledger))
        local = {name: _metrics(replace(of, rows={name: of.rows[name]}), baselines.local(of, name)) for name in of.rows}
        pooled = baselines.scored(of, baselines.pooled(of))
    pools = pooled.scores if pooled else {}
    table = {
        "local": {name: found[name] for name, found in local.items() if name in found},
        "pooled": {name: metrics(run.plan.task, *scores) for name, scores in pools.items()},
        "pooled_all": metrics(run.plan.task, *total(pools)) if pools else {},
        "rounds": rounds,
        "sites": sorted(wards),
        "patients": {name: ward.cohort.patients for name, ward in wards.items() if ward.cohort},
        "token": token,
    }
    run.ledger.note("baselines", table)


def setting(plan: Plan, wards: Mapping[str, Ward], state: RunState, start: Vector | None = None) -> Setting:
    """The wards' rows by the study's agreed statistics, what each ward's policy allows, and what the study began with (`origin.recorded`)."""
    rows = {
        name: encode(ward.cohort, plan.study, state.statistics, plan.ones)
        for name, ward in sorted(wards.items())
        if ward.cohort
    }
    policies = {name: wards[name].policy for name in rows}
    return Setting(plan, rows, state.statistics, state.round, policies, start)


def about(wards: Mapping[str, Ward], rounds: int) -> str:
    """A digest of the rounds and of all data that a comparison is about."""
    return digest({"round": rounds, "data": {name: ward.fingerprint for name, ward in wards.items()}})


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _metrics(of: Setting, model: baselines.Model) -> dict[str, dict[str, float]]:
    closed = baselines.scored(of, model)
    return {name: metrics(of.plan.task, *scores) for name, scores in closed.scores.items()} if closed else {}
