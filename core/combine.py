"""How updates become one: `start`, `add` in site order, `finish`. The memory is that of one model wherever the rule allows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedrounds.core.params import Vector


class Combine(NamedTuple):
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


def weighted_mean() -> Combine:
    """sum(weight * update) / sum(weight) (McMahan et al. 2017, algorithm 1). Holds one update at a time."""

    def start(size: int) -> tuple[Vector, float]:
        return np.zeros(size), 0.0

    def add(total: tuple[Vector, float], update: Vector, weight: float) -> tuple[Vector, float]:
        return total[0] + weight * update, total[1] + weight

    def finish(total: tuple[Vector, float]) -> Vector:
        return total[0] / total[1]

    return Combine(start, add, finish)
