"""How far a site walks in a round, and what a local rule is to the averaging algorithms. The rules themselves are in `core/local.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fedrounds.core.algorithm import Payload, SiteState, Sums
from fedrounds.core.frozen import Frozen, NonNegative, Rate
from fedrounds.core.params import Array, Vector

Gradient = Callable[[Vector, Array, Array], Vector]
Epochs = Annotated[int, Field(ge=1, le=10_000)]
Batch = Annotated[int, Field(ge=1)] | Literal["all"]
Memory = Mapping[str, Vector]
Shapes = Mapping[str, tuple[int, ...]]
Heard = Mapping[str, tuple[float, Sums]]  # site -> its lambda, and what it sent beside its update


# --- what a rule is ---------------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """What a site trains on: X (rows, columns), y (rows,).

    Attributes:
        gradient: (theta, X, y) -> gradient of the mean objective.
        loss: theta -> the mean of the losses that are reported of its training rows.
        rng: what it draws from.
    """

    gradient: Gradient
    loss: Callable[[Vector], float]
    X: Array
    y: Array
    rng: np.random.Generator


class Left(NamedTuple):
    """What a visit leaves: the update (size,), what the site remembers (if the round closes), and what it sends beside the update."""

    delta: Vector
    memory: Mapping[str, Array] = {}
    beside: Mapping[str, Array] = {}


def _no_shapes(size: int) -> Shapes:
    del size
    return {}


def _nothing(kept: Memory, number: int, size: int) -> Payload:
    del kept, number, size
    return {}


def _as_it_is(kept: Memory, update: Vector, heard: Heard) -> tuple[Memory, Vector]:
    del heard
    return kept, update


class Rule(NamedTuple):
    """A local rule, as `core/averaging.py` runs it. A plain one has a `visit` alone.

    Attributes:
        visit: (work, theta, what the site remembers, the request's arrays) -> what it leaves. It never writes to what it is given.
        sends: number of parameters -> shapes of what goes with the model.
        asks: (what `close` kept, rounds that have closed, number of parameters) -> what goes with the model.
        beside: number of parameters -> shapes of what comes back beside the update.
        close: (kept, combined update, heard) -> (kept, update that the server steps along).
    """

    visit: Callable[[Work, Vector, SiteState, Payload], Left]
    sends: Callable[[int], Shapes] = _no_shapes
    asks: Callable[[Memory, int, int], Payload] = _nothing
    beside: Callable[[int], Shapes] = _no_shapes
    close: Callable[[Memory, Vector, Heard], tuple[Memory, Vector]] = _as_it_is


def aside(rng: np.random.Generator) -> np.random.Generator:
    """A generator that is seeded by another, which it leaves as it was."""
    return rng.spawn(1)[0]


Own = Callable[[Work, Vector, SiteState], Vector]  # (work, theta, what the site remembers) -> a model of the site's own


class Step(NamedTuple):
    """One step of descent. `step` may write to the model that it is given: `walk` gives it a copy of its own."""

    init: Callable[[int], Memory]
    step: Callable[[Memory, Vector, Vector], tuple[Memory, Vector]]  # (memory, theta, gradient)


# --- how far a site walks ---------------------------------------------------------------------------------------------


class Power(Frozen):
    """rate * by^round, rounds counted from 0. No paper: what everybody does."""

    kind: Literal["power"]
    by: float = Field(gt=0, le=1)

    def at(self, number: int) -> float:
        """By what the rate is multiplied."""
        return self.by**number


class Inverse(Frozen):
    """rate / (1 + by * round), rounds counted from 0: with `by` above 0 their sum diverges, that of squares does not (Robbins and Monro 1951)."""

    kind: Literal["inverse"]
    by: NonNegative

    def at(self, number: int) -> float:
        """By what the rate is multiplied."""
        return 1 / (1 + self.by * number)


class Pace(Frozen):
    """How far a site walks in a round, whatever its rule.

    Args:
        epochs: times over the rows; or
        steps: so many batches, however many rows there are.
        decay: how the rate falls from round to round.
        early_stop: end when the site's training loss has risen over an epoch, with the model before that epoch. The first epoch always
            counts. The loss is the one that is reported, which for some models is not the one that is descended.
    """

    rate: Rate = 0.05
    epochs: Epochs = 1
    batch: Batch = 32
    steps: Epochs | None = None
    decay: Annotated[Power | Inverse, Field(discriminator="kind")] | None = None
    early_stop: bool = False
    remembers: ClassVar[bool] = False  # whether a site keeps state between rounds
    alone: ClassVar[bool] = True  # whether the update is all that there is to it

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Studies that are older than these words keep their digest."""
        later: dict[str, Any] = {"steps": None, "decay": None, "early_stop": False}
        return {name: value for name, value in plain(self).items() if name not in later or value != later[name]}

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.steps is not None and self.epochs != 1:
            raise ValueError(
                f"expected `epochs` or `steps`, found both ({self.epochs} and {self.steps}): leave one out"
            )
        return self

    @property
    def usual(self) -> bool:
        """Whether nothing is stated but epochs and batch."""
        return self.steps is None and self.decay is None and not self.early_stop

    def own(self) -> Own | None:
        """The site's own model that the rule keeps beside the global one; None where it keeps none."""
        return None

    def rate_at(self, sent: Payload) -> float:
        """The rate of the round at hand: `round` (1,) of what was sent, where the rate hangs on it."""
        return self.rate if self.decay is None else self.rate * self.decay.at(int(sent["round"][0]))

    def sends(self, size: int) -> Shapes:
        """The round goes with the model where the rate hangs on it."""
        del size
        return {} if self.decay is None else {"round": (1,)}

    def asks(self, kept: Memory, number: int, size: int) -> Payload:
        """`round` (1,), where the rate hangs on it."""
        del kept, size
        return {} if self.decay is None else {"round": np.array([float(number)])}

    def walk(self, step: Step, work: Work, theta: Vector, bent: Gradient | None = None) -> tuple[Vector, int]:
        """Where so many steps lead from theta (size,), along the work's gradient or a bent one, and how many there were."""
        loss = work.loss if self.early_stop else None
        gradient = bent or work.gradient
        return walk(step, gradient, theta, work.X, work.y, work.rng, self.epochs, self.batch, self.steps, loss)

    def plain(self, step: Callable[[float], Step]) -> Rule:
        """The rule that walks by a step, and nothing else."""

        def visit(work: Work, theta: Vector, memory: SiteState, sent: Payload) -> Left:
            del memory
            return Left(self.walk(step(self.rate_at(sent)), work, theta)[0] - theta)

        return Rule(visit, self.sends, self.asks)


def walk(
    rule: Step,
    gradient: Gradient,
    theta: Vector,
    X: Array,
    y: Array,
    rng: np.random.Generator,
    epochs: int,
    batch: Batch,
    steps: int | None = None,
    loss: Callable[[Vector], float] | None = None,
) -> tuple[Vector, int]:
    """Where steps lead from theta (p,), and how many were taken: one a batch, `epochs` times over the rows, or `steps`.

    Args:
        X, y: (n, columns) and (n,).
        loss: ends the walk where it has risen since the epoch before, or is no number; what counts is then where that epoch ended.
    """
    parts = batches(X, y, epochs, batch, rng) if steps is None else islice(batches(X, y, steps, batch, rng), steps)
    epoch = 1 if batch == "all" else -(-len(y) // batch)
    theta, memory, taken = theta.copy(), rule.init(theta.size), 0
    best, lowest = (theta, 0), np.inf
    for X_part, y_part in parts:
        memory, theta = rule.step(memory, theta, gradient(theta, X_part, y_part))
        taken += 1
        if loss is not None and (taken % epoch == 0 or taken == steps):
            now = loss(theta)
            if best[1] and not now <= lowest:
                return best
            best, lowest = (theta.copy(), taken), now
    return theta, taken


def batches(X: Array, y: Array, epochs: int, batch: Batch, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """Rows X (n, columns), y (n,) in a fresh random order each epoch, cut into batches; `"all"` is every row in its own order, and draws nothing."""
    if batch == "all":
        for _ in range(epochs):
            yield X, y
        return
    for _ in range(epochs):
        order = rng.permutation(len(y))
        X_shuffled, y_shuffled = X[order], y[order]
        for start in range(0, len(y), batch):
            yield X_shuffled[start : start + batch], y_shuffled[start : start + batch]
