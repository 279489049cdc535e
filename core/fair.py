"""Combining rules for fairness: sites where the model fares worse count for more. None of them is for attackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from fedrounds.core.errors import QuorumError, UpdateRejected
from fedrounds.core.frozen import NonNegative, Rate
from fedrounds.core.params import Vector
from fedrounds.core.rule import Adding, Memory, Rule, Told, length, weighted_mean

LAMBDA = "lambda."  # and a site: its weight in the coordinator's memory


class QFfl(Adding):
    """Sites count by the power `q` of their training loss (Li et al. 2020, q-FedAvg); `rate`: the sites' learning rate, 1/L."""

    kind: Literal["q_ffl"]
    q: NonNegative = 1.0
    rate: Rate = 0.05
    what: ClassVar[str] = "q-FFL"
    needs: ClassVar[Literal["updates", "losses"]] = "losses"

    def rule(self) -> Rule:
        """How updates become one."""
        return q_ffl(self.q, self.rate)


def q_ffl(q: float, rate: float) -> Rule:
    """sum(w F^q update) / sum(w (F^q + q F^(q-1) |update|^2 / rate)) (Li et al. 2020, "Fair resource allocation", algorithm 2).

    F is a site's mean training loss, of 1e-10 at least, w its weight in the study, and 1/rate the paper's L. With q = 0 it is the
    weighted mean. Holds one update at a time, as the mean of updates that are shortened by F / (F + q |update|^2 / rate).

    Not for attackers: who says that its loss is large counts for more.

    Raises UpdateRejected where a loss is below 0, or too large to be raised to q.
    """

    def counted(memory: Memory, update: Vector, told: Told) -> tuple[Vector, float]:
        del memory
        if told.loss < 0:
            raise UpdateRejected(
                f"expected a training loss of 0 or more for q-FFL, found less at site '{told.site}': average by the weighted mean"
            )
        loss = max(told.loss, 1e-10)
        with np.errstate(over="ignore"):
            more = 1 + q * length(update) ** 2 / (rate * loss)
            weight = float(told.weight * np.power(loss, q) * more)
        if not np.isfinite(weight):
            raise UpdateRejected(
                f"expected a training loss and an update of usual size for q-FFL, found larger at site '{told.site}'"
            )
        return update / more, weight

    return weighted_mean()._replace(counted=counted)


class Afl(Adding):
    """Sites count by weights that rise where the training loss is largest (Mohri et al. 2019, AFL); `rate`: a round's rise for a loss of 1."""

    kind: Literal["afl"]
    rate: Rate = 0.1
    what: ClassVar[str] = "agnostic learning"
    needs: ClassVar[Literal["updates", "losses"]] = "losses"

    def rule(self) -> Rule:
        """How updates become one."""
        return afl(self.rate)


def afl(rate: float) -> Rule:
    """min over theta, max over lambda of sum(lambda_i F_i) (Mohri et al. 2019, algorithm 1): updates are averaged by lambda, and then

        lambda <- project(lambda + rate F)      on lambda_i >= 0, sum(lambda) = 1

    with F the mean training losses under the model that came in. Sites begin alike; who joins later begins at the mean of the others,
    and who is away neither rises nor is forgotten. Holds one update at a time, and keeps a number a site between rounds.

    Not for attackers: who says that its loss is large soon counts alone.

    Raises:
        UpdateRejected: a loss is too large to be added.
        QuorumError: the sites that answered have no weight left, all of it being with those that did not.
    """

    def known(memory: Memory) -> dict[str, float]:
        return {name[len(LAMBDA) :]: float(value[0]) for name, value in memory.items() if name.startswith(LAMBDA)}

    def counted(memory: Memory, update: Vector, told: Told) -> tuple[Vector, float]:
        weights = known(memory)
        return update, told.weight * weights.get(told.site, _begin(weights, 1.0))

    def after(memory: Memory, losses: Mapping[str, float]) -> Memory:
        weights = known(memory)
        begin = _begin(weights, 1 / len(losses))
        names = sorted({*weights, *losses})
        with np.errstate(over="ignore"):
            risen = np.array([weights.get(name, begin) + rate * losses.get(name, 0.0) for name in names])
            fine = bool(np.isfinite(np.abs(risen).sum()))
        if not fine:
            raise UpdateRejected("expected training losses of usual size for agnostic learning, found a larger one")
        found = project(risen)
        return {LAMBDA + name: np.array([weight]) for name, weight in zip(names, found, strict=True)}

    mean = weighted_mean()

    def finish(total: tuple[Vector, float]) -> Vector:
        if total[1] <= 0:
            raise QuorumError(
                "expected an answer of a site that counts in agnostic learning, found only sites of weight 0"
            )
        return mean.finish(total)

    return mean._replace(finish=finish, counted=counted, after=after)


def _begin(weights: Mapping[str, float], first: float) -> float:
    """The weight of a site that is new: the mean of those there are."""
    return sum(weights.values()) / len(weights) if weights else first


def project(point: Vector) -> Vector:
    """(n,) the nearest to a point (n,) of those whose numbers are 0 or more and add up to 1 (Duchi et al. 2008, figure 1).

    >>> project(np.array([0.5, 0.75, -1.0]))
    array([0.375, 0.625, 0.   ])
    """
    point = point - point.max()  # which changes nothing, and keeps the digits of large numbers
    down = np.sort(point)[::-1]
    over = (np.cumsum(down) - 1) / np.arange(1, len(point) + 1)
    return np.maximum(point - over[np.flatnonzero(down > over)[-1]], 0.0)
