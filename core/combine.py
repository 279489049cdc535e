"""How updates become one: `start`, `add` in site order, `finish`. The memory is that of one model wherever the rule allows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from fedrounds.core.errors import QuorumError
from fedrounds.core.frozen import Frozen
from fedrounds.core.params import Vector


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


class WeightedMean(Frozen):
    """The mean of the updates by the study's weights."""

    kind: Literal["weighted_mean"]

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


class Median(Frozen):
    """The coordinate-wise median (Yin et al. 2018) of updates, or under masks of the means of groups of sites: as many as `attackers`
    may send what they like, and no number of the result lies outside those of the others."""

    kind: Literal["median"]
    attackers: int = Field(default=1, ge=1, le=31)

    @property
    def fewest(self) -> int:
        """Of how many updates, or groups, the honest ones are more than half."""
        return 2 * self.attackers + 1

    def rule(self) -> Rule:
        """How updates become one."""
        return median(self.attackers)


def median(attackers: int) -> Rule:
    """The median of each number (Yin et al. 2018, definition 1), weights aside. Holds all updates.

    Guarantees:
        * with up to `attackers` arbitrary updates, each number lies within the range of the other updates' numbers.

    Raises QuorumError, at the end, unless there are 2 `attackers` + 1 updates or more.
    """

    def start(size: int) -> list[Vector]:
        del size
        return []

    def add(total: list[Vector], update: Vector, weight: float) -> list[Vector]:
        del weight
        return [*total, update]

    def finish(total: list[Vector]) -> Vector:
        if len(total) < 2 * attackers + 1:
            raise QuorumError(
                f"expected {2 * attackers + 1} updates or more for a median that {attackers} cannot sway, found {len(total)}"
            )
        return np.median(np.stack(total), axis=0)

    return Rule(start, add, finish)


Combine = Annotated[WeightedMean | Median, Field(discriminator="kind")]
