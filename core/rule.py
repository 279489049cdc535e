"""What a combining rule is, and the plainest one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from fedrounds.core.frozen import Frozen
from fedrounds.core.params import Vector

Memory = Mapping[str, Vector]


class Told(NamedTuple):
    """What a reply says besides its update."""

    site: str
    weight: float
    loss: float  # mean over the training rows, under the model that came in


def _as_it_is(memory: Memory, update: Vector, told: Told) -> tuple[Vector, float]:
    del memory
    return update, told.weight


def _nothing(memory: Memory, losses: Mapping[str, float]) -> Memory:
    del memory, losses
    return {}


class Rule(NamedTuple):
    """A rule that turns weighted updates into one.

    >>> rule = weighted_mean()
    >>> total = rule.start(1)
    >>> for update, weight in [(np.array([2.0]), 1.0), (np.array([3.0]), 3.0)]:
    ...     total = rule.add(total, update, weight)
    >>> rule.finish(total)
    array([2.75])
    """

    start: Callable[[int], Any]  # number of parameters -> an empty total
    add: Callable[[Any, Vector, float], Any]  # (total, update, weight) -> total
    finish: Callable[[Any], Vector]
    counted: Callable[[Memory, Vector, Told], tuple[Vector, float]] = (
        _as_it_is  # what of it is added, where losses matter
    )
    after: Callable[[Memory, Mapping[str, float]], Memory] = (
        _nothing  # site -> mean training loss; to keep in the memory
    )


def length(update: Vector) -> float:
    """Euclidean norm of an update (size,); infinite where its square is beyond all numbers."""
    with np.errstate(over="ignore"):
        return float(np.linalg.norm(update))


class Adding(Frozen):
    """A rule that adds as it goes, whatever the number of updates."""

    needs: ClassVar[Literal["updates", "losses"]] = "updates"
    alike: ClassVar[bool] = False  # whether every site counts for one

    what: ClassVar[str]

    @property
    def fewest(self) -> int:
        """Of how many updates it can be taken."""
        return 1

    @property
    def title(self) -> str:
        """In a few words."""
        return self.what


class WeightedMean(Adding):
    """The mean of the updates by the study's weights (McMahan et al. 2017, algorithm 1)."""

    kind: Literal["weighted_mean"]
    what: ClassVar[str] = "a mean"

    def rule(self) -> Rule:
        """How updates become one."""
        return weighted_mean()


def weighted_mean() -> Rule:
    """sum(weight * update) / sum(weight) (McMahan et al. 2017, algorithm 1). Holds one update at a time."""

    def start(size: int) -> tuple[Vector, float]:
        return np.zeros(size), 0.0

    def add(total: tuple[Vector, float], update: Vector, weight: float) -> tuple[Vector, float]:
        return total[0] + weight * update, total[1] + weight

    def finish(total: tuple[Vector, float]) -> Vector:
        return total[0] / total[1]

    return Rule(start, add, finish)
