"""`build(study)` turns every word of a study into a function. It is the only place that does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import assert_never

import numpy as np

from fedrounds.core import encrypted, local, server
from fedrounds.core.algorithm import Algorithm
from fedrounds.core.averaging import averaging, scoring
from fedrounds.core.combine import Combine, median, weighted_mean
from fedrounds.core.evaluate import Task
from fedrounds.core.messages import Ask
from fedrounds.core.models.family import Family
from fedrounds.core.models.linear import linear
from fedrounds.core.models.logistic import logistic
from fedrounds.core.models.mlp import mlp
from fedrounds.core.models.multinomial import multinomial
from fedrounds.core.params import Array, Vector
from fedrounds.core.preprocess import Statistics, columns_of
from fedrounds.core.privacy import joint, private, updates
from fedrounds.core.privacy.hospital import Hospitals
from fedrounds.core.profile import profiling
from fedrounds.core.sheets import UNKNOWN, share
from fedrounds.core.state import RunState
from fedrounds.core.statistics import statistics
from fedrounds.core.study import (
    Linear,
    LocalAdam,
    LocalProximal,
    LocalSgd,
    Logistic,
    Mlp,
    Multiclass,
    Multinomial,
    ServerAdagrad,
    ServerAdam,
    ServerMomentum,
    ServerSgd,
    ServerYogi,
    Study,
)


@dataclass(frozen=True)
class Plan:
    """A study as functions. Built at the coordinator and at every site from the same file, so it never travels."""

    study: Study
    digest: str  # the study's
    columns: tuple[str, ...]  # of the design matrix, the column of ones left out
    ones: bool  # whether the design matrix ends in a column of ones
    task: Task
    classes: int
    bins: int
    family: Family
    algorithms: Mapping[Ask, Algorithm]
    memory: Callable[[], server.Memory]  # of a server optimiser that has seen nothing

    def rng(self, round_number: int, site: str) -> np.random.Generator:
        """What a site draws from in a round: seeded by study, round and site (DESIGN 4.3)."""
        return np.random.default_rng(seed(self.digest, str(round_number), site))

    def start(self, statistics: Statistics | None = None) -> RunState:
        """The state before anything was asked; with `statistics`, as if round 0 had agreed on them."""
        theta = self.family.init(np.random.default_rng(seed(self.digest, "initial model")))
        return RunState(self.digest, 0, 0, theta, self.memory(), statistics or {})

    def no_statistics(self) -> Statistics:
        """Statistics that change nothing: for rows that are a design matrix already."""
        width = len(self.columns)
        nothing = {"impute": np.zeros(len(self.study.features)), "center": np.zeros(width), "scale": np.ones(width)}
        rows = self.study.masked and not self.study.privacy.dp
        return nothing | ({"rows": np.array([UNKNOWN])} if rows else {})


def seed(*words: str) -> np.random.SeedSequence:
    """A seed that depends on every word."""
    return np.random.SeedSequence(int.from_bytes(sha256("\0".join(words).encode()).digest(), "big"))


def build(study: Study) -> Plan:
    """The functions that the study's words mean."""
    columns = tuple(name for feature in study.features for name in columns_of(feature))
    classes = len(study.target.classes) if isinstance(study.target, Multiclass) else 2
    family = _family(study, len(columns), classes)
    encrypted.require(study, family.layout.size)
    step, bins = _server(study), study.validation.bins
    agreed = {"impute": (len(study.features),), "center": (len(columns),), "scale": (len(columns),)}
    agreed |= {"rows": (1,)} if study.masked and not study.privacy.dp else {}
    combine, weight = _combine(study), _weight(study)
    algorithms: dict[Ask, Algorithm]
    if dp := study.privacy.dp:
        if isinstance(dp, Hospitals):
            first = joint.statistics(study, dp)
            gradient = _penalised(family, study.model.l2)
            train = updates.training(dp, family.layout.size, gradient, _local(study), step, agreed)
        elif study.masked:
            first, train = joint.statistics(study, dp), joint.training(study, dp, family, step, agreed)
        else:
            first = private.statistics(study, dp)
            train = private.training(study, dp, family, combine, step, weight, agreed)
        algorithms = {"statistics": first, "train": train, "score": private.silent(train)}
    else:
        score = scoring(family, study.target.kind, classes, bins, agreed)
        train = averaging(score, family, _penalised(family, study.model.l2), _local(study), combine, step, weight)
        algorithms = {"statistics": statistics(study), "train": train, "score": score, "profile": profiling(study)}
    return Plan(
        study=study,
        digest=study.digest,
        columns=columns,
        ones=not (isinstance(study.model, Linear) and not study.model.intercept),
        task=study.target.kind,
        classes=classes,
        bins=bins,
        family=family,
        algorithms=algorithms,
        memory=lambda: step.init(family.layout.size),
    )


def _family(study: Study, width: int, classes: int) -> Family:
    match study.model:
        case Linear(intercept=intercept):
            return linear(width, intercept)
        case Logistic():
            return logistic(width)
        case Multinomial():
            return multinomial(width, classes)
        case Mlp(hidden=hidden):
            return mlp(width, hidden, study.target.kind, classes)
        case _:
            assert_never(study.model)


def _penalised(family: Family, l2: float) -> local.Gradient:
    """Gradient of mean loss + l2/2 |theta|^2, intercepts free. scikit-learn's C means l2 = 1 / (C n)."""
    if l2 == 0:
        return family.gradient
    penalty = l2 * family.penalised

    def gradient(theta: Vector, X: Array, y: Array) -> Vector:
        return family.gradient(theta, X, y) + penalty * theta

    return gradient


def _local(study: Study) -> local.Train:
    match study.algorithm.local:
        case LocalSgd(rate=rate, epochs=epochs, batch=batch):
            return local.sgd(rate, epochs, batch)
        case LocalAdam() as chosen:
            return local.adam(chosen.rate, chosen.epochs, chosen.batch, chosen.beta_1, chosen.beta_2, chosen.epsilon)
        case LocalProximal() as chosen:
            return local.proximal(chosen.mu, chosen.rate, chosen.epochs, chosen.batch)
        case _:
            assert_never(study.algorithm.local)


def _server(study: Study) -> server.ServerStep:
    match study.algorithm.server:
        case ServerSgd(rate=rate):
            return server.sgd(rate)
        case ServerMomentum(rate=rate, beta=beta):
            return server.momentum(rate, beta)
        case ServerAdagrad(rate=rate, tau=tau):
            return server.adagrad(rate, tau)
        case ServerAdam(rate=rate, beta_1=beta_1, beta_2=beta_2, tau=tau):
            return server.adam(rate, beta_1, beta_2, tau)
        case ServerYogi(rate=rate, beta_1=beta_1, beta_2=beta_2, tau=tau):
            return server.yogi(rate, beta_1, beta_2, tau)
        case _:
            assert_never(study.algorithm.server)


def _combine(study: Study) -> Combine:
    return median(study.median.attackers) if study.median else weighted_mean()


def _weight(study: Study) -> Callable[[str, float], float]:
    def weight(site: str, rows: float) -> float:
        if study.masked:  # one reply of all together: each site has weighed its part
            return rows
        return share(study, site, rows)

    return weight
