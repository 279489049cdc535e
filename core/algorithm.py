"""What an algorithm is: what the coordinator asks, what a site answers, how the answers become the next state. Three pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fedrounds.core.params import Array
from fedrounds.core.state import RunState

Payload = Mapping[str, Array]  # what a request carries, of the shapes that `Algorithm.takes` states
Sums = Mapping[str, Array]  # what a reply carries, of the shapes that `Algorithm.shapes` states
SiteState = Mapping[str, Array]  # what a site remembers between rounds
Scores = Mapping[str, tuple[Array, Array]]  # site -> its validation sums and score histogram


@dataclass(frozen=True)
class Folded:
    """The next state, and what was learned on the way. The round is over when `state.exchange` is 0."""

    state: RunState
    scores: Scores = field(default_factory=dict[str, tuple[Array, Array]])
    paired: Mapping[str, Array] = field(default_factory=dict[str, Array])
    """site -> [n, sum of d, sum of d²] with d = loss(model) − loss(champion) of a validation row, where a champion was scored beside it; under
    differential privacy the variances of the noise in the three follow"""
    training: Mapping[str, tuple[float, float, float]] = field(default_factory=dict[str, tuple[float, float, float]])
    """site -> (training rows, sum of their losses under the model that came in, lambda)"""
    personal: Scores = field(default_factory=dict[str, tuple[Array, Array]])
    """site -> the same of a model of its own, on the same rows, where it keeps one"""
    profiles: Mapping[str, Sums] = field(
        default_factory=dict[str, Sums]
    )  # site -> its profile, where one was asked for
    explained: Mapping[str, Sums] = field(
        default_factory=dict[str, Sums]
    )  # site -> its sums by which a model is explained, where they were asked for
    compared: bool = False
    """whether the model is to be judged although nobody is told its scores: under differential privacy"""


def summed(parts: Iterable[Sums]) -> Sums:
    """Name by name the sums of all, added in the order given; of the parts' shapes."""
    total: dict[str, Array] = {}
    for sums in parts:
        total = {name: total.get(name, 0.0) + array for name, array in sums.items()}
    return total


class Algorithm(NamedTuple):
    """One way to run a round.

    Three hospitals that count their rows:

    >>> import numpy as np
    >>> count = Algorithm(
    ...     ask=lambda state: {},
    ...     answer=lambda payload, memory, rows, rng: (memory, {"n": np.array([float(len(rows))])}),
    ...     fold=lambda state, replies: sum(float(sums["n"][0]) for _, sums in replies),
    ...     shapes=lambda exchange: {"n": (1,)},
    ...     takes=lambda exchange: {},
    ... )
    >>> hospitals = {"east": [1, 2], "north": [3], "west": [4, 5, 6]}
    >>> count.fold(None, [(site, count.answer({}, {}, rows, None)[1]) for site, rows in hospitals.items()])
    6.0
    """

    ask: Callable[[RunState], Payload]
    answer: Callable[[Payload, SiteState, Any, np.random.Generator], tuple[SiteState, Sums]]
    fold: Callable[[RunState, Iterable[tuple[str, Sums]]], Folded]  # replies one by one, in site order
    shapes: Callable[[int], Mapping[str, tuple[int, ...]]]  # exchange -> the arrays that a reply must hold
    takes: Callable[
        [int], Mapping[str, tuple[int, ...]]
    ]  # exchange -> the arrays that a request must hold (`champion` may be absent)
