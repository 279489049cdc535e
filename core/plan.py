"""`build(study)` puts the functions that the words of a study mean together. It is the only place that does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

import numpy as np

from fedrounds.core import encrypted, server
from fedrounds.core.algorithm import Algorithm
from fedrounds.core.averaging import averaging, scoring
from fedrounds.core.evaluate import Task
from fedrounds.core.evaluate import score as score_of
from fedrounds.core.exact import exact
from fedrounds.core.explain import explaining
from fedrounds.core.messages import Ask
from fedrounds.core.models.family import Family, with_offset
from fedrounds.core.models.linear import Linear
from fedrounds.core.pace import Gradient
from fedrounds.core.params import Array, Vector
from fedrounds.core.participation import paced
from fedrounds.core.personal import Layers, beside
from fedrounds.core.preprocess import Statistics, columns_of
from fedrounds.core.privacy import joint, private, sufficient, updates
from fedrounds.core.privacy.compared import comparing
from fedrounds.core.privacy.hospital import Hospitals
from fedrounds.core.privacy.patient import Differential
from fedrounds.core.privacy.settings import Private
from fedrounds.core.profile import profiling
from fedrounds.core.sheets import UNKNOWN, share
from fedrounds.core.state import RunState
from fedrounds.core.statistics import statistics
from fedrounds.core.strategy import Exact
from fedrounds.core.study import Multiclass, Study, Survival


@dataclass(frozen=True)
class Plan:
    """A study as functions. Built at the coordinator and at every site from the same file, so it never travels."""

    study: Study
    digest: str  # the study's
    columns: tuple[str, ...]  # of the design matrix, the column of ones left out
    ones: bool  # whether the design matrix ends in a column of ones
    task: Task
    classes: int  # of a survival target: intervals of its grid
    bins: int
    family: Family
    algorithms: Mapping[Ask, Algorithm]
    memory: Callable[[], server.Memory]  # of a server optimiser that has seen nothing

    def rng(self, round_number: int, site: str) -> np.random.Generator:
        """What a site draws from in a round: seeded by study, round and site (DESIGN 4.3)."""
        return np.random.default_rng(seed(self.digest, str(round_number), site))

    def start(self, statistics: Statistics | None = None, theta: Vector | None = None) -> RunState:
        """The state before anything was asked; with `statistics`, as if round 0 had agreed on them; with `theta`, of that model, not the seed's."""
        if theta is None:
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
    classes = len(study.target.ends) if isinstance(study.target, Survival) else classes
    family = study.model.family(len(columns), classes, study.target.kind)
    family = with_offset(family) if study.offset else family
    encrypted.require(study, family.layout.size)
    agreed = {"impute": (len(study.features),), "center": (len(columns),), "scale": (len(columns),)}
    agreed |= {"rows": (1,)} if study.masked and not study.privacy.dp else {}
    bins = study.validation.bins
    ones = not (isinstance(study.model, Linear) and not study.model.intercept)
    algorithms: dict[Ask, Algorithm]
    if study.privacy.dp:
        algorithms = _noised(study, study.privacy.dp, family, agreed)
    else:
        score = scoring(family, study.target.kind, classes, bins, agreed)
        if isinstance(study.algorithm, Exact):
            train = exact(score, family, study.model.exact(study, columns, family))
        else:
            parts = study.algorithm
            pace, combine, step = study.participation.pace, parts.combine.rule(), parts.server.rule()
            local_rule = paced(parts.local, pace) if pace else parts.local.rule()
            local_rule = (
                parts.personal.kept(local_rule, family.layout) if isinstance(parts.personal, Layers) else local_rule
            )
            gradient = _penalised(family, study)
            train = averaging(score, family, gradient, local_rule, combine, step, _weight(study))
            if own := parts.own(family.layout):
                judge = partial(score_of, study.target.kind, bins=bins)
                train, score = (beside(it, own, family, gradient, judge) for it in (train, score))
        algorithms = {"statistics": statistics(study), "train": train, "score": score, "profile": profiling(study)}
        algorithms["explain"] = explaining(study, family, classes, ones, agreed)
    return Plan(
        study=study,
        digest=study.digest,
        columns=columns,
        ones=ones,
        task=study.target.kind,
        classes=classes,
        bins=bins,
        family=family,
        algorithms=algorithms,
        memory=lambda: (
            {} if isinstance(study.algorithm, Exact) else study.algorithm.server.rule().init(family.layout.size)
        ),
    )


def _noised(study: Study, dp: Private, family: Family, agreed: Mapping[str, tuple[int, ...]]) -> dict[Ask, Algorithm]:
    """What is asked where differential privacy holds: nothing but what is noised."""
    together = partial(joint.surplus, dp) if study.masked and isinstance(dp, Differential) else None
    first = joint.statistics(study, dp) if study.masked else private.statistics(study, dp)
    if isinstance(study.algorithm, Exact):
        assert isinstance(dp, Differential)
        penalty = study.model.penalty * family.penalised
        train = sufficient.training(dp, family.layout.size, penalty, agreed, together)
    else:
        train = _descending(study, dp, family, agreed)
    score = private.silent(train)
    if isinstance(dp, Differential) and dp.scores:
        score = comparing(dp, dp.scores, family, agreed, together)
    return {"statistics": first, "train": train, "score": score}


def _descending(study: Study, dp: Private, family: Family, agreed: Mapping[str, tuple[int, ...]]) -> Algorithm:
    """Training by noised updates."""
    parts = study.averaging
    step = parts.server.rule()
    if isinstance(dp, Hospitals):
        gradient = _penalised(family, study)
        return updates.training(dp, family.layout.size, gradient, parts.local.rule(), step, agreed)
    if study.masked:
        return joint.training(study, dp, family, step, agreed)
    return private.training(study, dp, family, parts.combine.rule(), step, _weight(study), agreed)


def _penalised(family: Family, study: Study) -> Gradient:
    """Gradient of mean loss + l2/2 |theta|^2, intercepts free. scikit-learn's C means l2 = 1 / (C n)."""
    plain, l2 = family.gradient, study.model.penalty
    assert plain is not None
    if l2 == 0:
        return plain
    penalty = l2 * family.penalised

    def gradient(theta: Vector, X: Array, y: Array) -> Vector:
        return plain(theta, X, y) + penalty * theta

    return gradient


def _weight(study: Study) -> Callable[[str, float], float]:
    def weight(site: str, rows: float) -> float:
        if study.masked:  # one reply of all together: each site has weighed its part
            return rows
        return share(study, site, rows)

    return weight
