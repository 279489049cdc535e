"""What a federated model is compared with: other ways to learn from the same rows, each scored at every site.

    local      a site alone, by the study's own rule
    pooled     one pool of all rows, by the study's own rule
    without    the study with one site left out: how a model fares at a hospital that it has never seen
    cyclic     one model carried from hospital to hospital
    ensemble   the mean of what the local models predict, from one exchange in all

All take over the study's statistics and its number of rounds. They need every site's rows in one place, so only a simulation knows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from fedrounds.core.answer import Policy
from fedrounds.core.averaging import scoring
from fedrounds.core.combine import WeightedMean
from fedrounds.core.errors import NoFit, QuorumError, StudyError, UpdateRejected
from fedrounds.core.evaluate import HEADLINE, LOSS, metrics, total
from fedrounds.core.params import Array, Layout, Vector
from fedrounds.core.participation import Participation
from fedrounds.core.plan import Plan, build
from fedrounds.core.preprocess import Rows, Statistics
from fedrounds.core.round import Closed
from fedrounds.core.server import Sgd
from fedrounds.core.simulate import simulate
from fedrounds.core.state import RunState
from fedrounds.core.strategy import Exact

Kind = Literal["federated", "pooled", "ensemble", "cyclic", "local", "without"]
POOL = "pooled"  # who trains on all rows
NO_MODEL = (NoFit, QuorumError, StudyError, UpdateRejected)  # what says that there is none


@dataclass(frozen=True)
class Setting:
    """What every way of learning starts from.

    Attributes:
        rows: site -> its design matrices, encoded by `statistics`.
        policies: site -> what it allows; a site that has none allows all.
        rounds: closed training rounds of the study.
        start: (size,) the model that the study began with, where that is a registered version's; else its seed says.
    """

    plan: Plan
    rows: Mapping[str, Rows]
    statistics: Statistics
    rounds: int
    policies: Mapping[str, Policy]
    start: Vector | None = None


class Model(NamedTuple):
    """A trained model.

    Attributes:
        plan: by which it is read.
        state: None if there is none.
        remark: why there is none, or what else is to be known of it.
    """

    plan: Plan
    state: RunState | None
    remark: str = ""


class Cell(NamedTuple):
    """A model's scores on the validation rows of a site; None where the rows cannot carry them.

    Attributes:
        metric: the headline metric (`evaluate.HEADLINE`).
        loss: the mean loss (`evaluate.LOSS`).
        error: the most by which binning can have moved the metric; 0 where nothing is binned.
    """

    metric: float | None
    loss: float
    error: float


class Line(NamedTuple):
    """A model at every site.

    Attributes:
        site: whose own the model is, or who was left out; empty where it is of all.
        cells: site -> scores; a site whose policy or rows allow none is absent.
        everywhere: on the validation rows of these sites together.
        remark: why there is no model, or what else is to be known of it.
    """

    kind: Kind
    site: str
    cells: Mapping[str, Cell]
    everywhere: Cell | None
    remark: str = ""


class Matrix(NamedTuple):
    """Every model at every site; `refused`: site -> why it takes part in no comparison."""

    lines: tuple[Line, ...]
    refused: Mapping[str, str]


# --- ways to learn ----------------------------------------------------------------------------------------------------


def local(of: Setting, site: str) -> Model:
    """The site alone. Updates combine by their mean: there is no median of one site's, and nothing to be fair to."""
    return _trained(of, _by_mean(of.plan), {site: of.rows[site]})


def pooled(of: Setting) -> Model:
    """All training rows in one place, in the order of the sites' names, by the same local rule."""
    parts = [of.rows[site] for site in sorted(of.rows)]
    weights = [part.weight for part in parts if part.weight is not None]
    rows = Rows(
        np.concatenate([part.X for part in parts]),
        np.concatenate([part.y for part in parts]),
        np.concatenate([part.X_valid for part in parts]),
        np.concatenate([part.y_valid for part in parts]),
        np.concatenate(weights) if weights else None,
    )
    model = _trained(of, _by_mean(of.plan), {POOL: rows})
    if getattr(of.plan.study.model, "strata", None) == "site" and model.state:
        return model._replace(remark="in one pool there are no hospitals to be strata: it has one baseline hazard")
    return model


def without(of: Setting, site: str) -> Model:
    """The study, as it is, of all other sites; the statistics are still those that the site took part in agreeing."""
    others = of.rows.keys() - {site}
    return of_sites(of, others) if others else Model(of.plan, None, "no other hospital is left to learn from")


def of_sites(of: Setting, sites: Set[str]) -> Model:
    """The study, as it is, of these sites."""
    return _trained(of, of.plan, {name: rows for name, rows in of.rows.items() if name in sites})


def cyclic(of: Setting) -> Model:
    """One model carried from site to site in the order of their names, as many times as the study has rounds.

    Each visit is the study's local rule; what it leaves goes to the next site, and nothing else does: no server step, no memory. The last
    sites sway it most, as they do in the paper.
    Source: Chang et al. (2018), J. Am. Med. Inform. Assoc. 25, 945 (cyclical weight transfer).
    """
    if isinstance(of.plan.study.algorithm, Exact):
        return Model(
            of.plan,
            None,
            "an exact fit does not go on from the model that it is given: the last hospital's would be left",
        )
    parts = {"combine": WeightedMean(kind="weighted_mean"), "server": Sgd(kind="sgd")}
    plan = _alone(of.plan, parts)
    start = state = plan.start(of.statistics, of.start)
    try:
        for number in range(of.rounds):
            for site in sorted(of.rows):
                handed = replace(start, round=number, theta=state.theta)
                state = next(simulate(plan, {site: of.rows[site]}, 1, state=handed, policy=of.policies)).state
    except NO_MODEL as error:
        return Model(plan, None, str(error))
    return Model(plan, state)


def ensemble(of: Setting, models: Mapping[str, Model]) -> Model:
    """The plain mean of what the sites' models predict of a row: numbers, probabilities, or linear predictors and cumulative hazards.

    Source: Guha, Talwalkar and Smith (2019), "One-shot federated learning", section 3.

    Args:
        models: site -> its local model; a site without one has no say.
    """
    if of.plan.task == "none":
        return Model(of.plan, None, "nothing is predicted, so there is no mean of predictions")
    members = [model.state for _, model in sorted(models.items()) if model.state]
    if not members:
        return Model(of.plan, None, "no hospital has a model of its own")
    family, many = of.plan.family, len(members)

    def predict(theta: Vector, X: Array) -> Array:
        found = [family.predict(one, X) for one in theta.reshape(many, -1)]
        return np.mean(found, axis=0)

    stacked = family._replace(layout=Layout({"models": (many, family.layout.size)}), predict=predict)
    agreed = {name: array.shape for name, array in of.statistics.items()}
    score = scoring(stacked, of.plan.task, of.plan.classes, of.plan.bins, agreed)
    remark = f"the mean of {many} models of {len(models)} hospitals" if many < len(models) else ""
    theta = np.concatenate([state.theta for state in members])
    return Model(replace(of.plan, algorithms={"score": score}), replace(members[0], theta=theta, memory={}), remark)


def federated(of: Setting, theta: Vector) -> Model:
    """The study's own model, of theta (size,) as the plan's family lays it out."""
    return Model(of.plan, replace(of.plan.start(of.statistics), round=of.rounds, theta=theta))


def _by_mean(plan: Plan) -> Plan:
    """The study of one site: no median of one update, none drawn out of one; its weight, which cancels, is not stated for a pool."""
    if isinstance(plan.study.algorithm, Exact):
        return plan
    all_of_it = isinstance(plan.study.combine, WeightedMean) and plan.study.participation == Participation()
    if all_of_it and not isinstance(plan.study.weights, dict):
        return plan
    return _alone(plan, {"combine": WeightedMean(kind="weighted_mean")})


def _alone(plan: Plan, parts: Mapping[str, object]) -> Plan:
    """The study with other parts of its algorithm, and the same seeds: what it starts from is the same model."""
    algorithm = plan.study.averaging.model_copy(update={"participation": None, **parts})
    weights = "uniform" if isinstance(plan.study.weights, dict) else plan.study.weights
    changed = plan.study.model_copy(update={"algorithm": algorithm, "weights": weights})
    return replace(build(changed), digest=plan.digest)


def _trained(of: Setting, plan: Plan, rows: Mapping[str, Rows]) -> Model:
    """Trained by all of these sites: where one cannot answer, there is no model."""
    try:
        start = plan.start(of.statistics, of.start)
        state = start
        quorum = plan.study.participation.goal(len(rows))
        visits = simulate(plan, rows, of.rounds, state=start, quorum=quorum, policy=of.policies)
        for _ in range(of.rounds):
            state = next(visits).state
    except NO_MODEL as error:
        return Model(plan, None, str(error))
    return Model(plan, state)


# --- scores -----------------------------------------------------------------------------------------------------------


def scored(of: Setting, model: Model) -> Closed | None:
    """The visit that scores a model at every site, by what each allows; None if there is no model."""
    if model.state is None:
        return None
    state = replace(model.state, champion=None)
    return next(simulate(model.plan, of.rows, 0, state=state, quorum=0, policy=of.policies))


def line(of: Setting, kind: Kind, site: str, model: Model) -> Line:
    """A model's row of the matrix."""
    closed = scored(of, model)
    if closed is None:
        return Line(kind, site, {}, None, model.remark)
    cells = {name: cell(of.plan, *scores) for name, scores in closed.scores.items()}
    shown = {name: found for name, found in cells.items() if found}
    return Line(kind, site, shown, cell(of.plan, *total(closed.scores)), model.remark)


def cell(plan: Plan, sums: Array, histogram: Array) -> Cell | None:
    """What these sums (4,) and this histogram (problems, 2, bins) say of a model, None if they are of no rows."""
    found, metric = metrics(plan.task, sums, histogram), HEADLINE[plan.task]
    if LOSS[plan.task] not in found:
        return None
    return Cell(found.get(metric), found[LOSS[plan.task]], found.get(f"{metric}_error", 0.0))


def matrix(of: Setting, theta: Vector) -> Matrix:
    """Every model at every site: the federated one, the pool's, the ensemble, the carried one, each site's own, and each site left out.

    A site whose policy refuses the study trains none of them, and none is scored there.

    Args:
        theta: (size,) the federated model after `of.rounds` rounds.
    """
    ours = federated(of, theta)
    first = scored(of, ours)
    assert first is not None
    sites = sorted(set(of.rows) - set(first.refused))
    training = replace(of, rows={site: of.rows[site] for site in sites})
    others = (line(training, *model) for model in _models(training))
    return Matrix((line(of, "federated", "", ours), *others), first.refused)


def _models(of: Setting) -> Iterator[tuple[Kind, str, Model]]:
    own = {site: local(of, site) for site in of.rows}
    if own:
        yield "pooled", "", pooled(of)
        yield "ensemble", "", ensemble(of, own)
        yield "cyclic", "", cyclic(of)
    for site, model in own.items():
        yield "local", site, model
    for site in own:
        yield "without", site, without(of, site)
