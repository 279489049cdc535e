"""What the coordinator does with the combined update: pairs of `init` and `step`, memory in, memory out.

`delta` is the combined update, sum(weight_i (theta_i - theta)) / sum(weight_i). Adagrad, Adam and Yogi follow Reddi et al. 2021
("Adaptive federated optimization"), algorithm 2, with v starting at tau^2 and no bias correction, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from fedrounds.core.frozen import Fraction, Frozen, Rate
from fedrounds.core.params import Vector

Memory = Mapping[str, Vector]


class ServerStep(NamedTuple):
    """A server optimiser.

    >>> rule = sgd(0.1)
    >>> rule.step(rule.init(1), np.array([1.0]), np.array([-0.5]))[1]
    array([0.95])
    """

    init: Callable[[int], Memory]  # number of parameters -> memory
    step: Callable[[Memory, Vector, Vector], tuple[Memory, Vector]]  # (memory, theta, delta) -> (memory, theta)


class Sgd(Frozen):
    """theta + rate * delta; rate 1 is the plain average (McMahan et al. 2017)."""

    kind: Literal["sgd"]
    rate: Rate = 1.0

    def rule(self) -> ServerStep:
        """What the coordinator does."""
        return sgd(self.rate)


def sgd(rate: float) -> ServerStep:
    """theta + rate * delta (McMahan et al. 2017, at rate 1)."""

    def step(memory: Memory, theta: Vector, delta: Vector) -> tuple[Memory, Vector]:
        return memory, theta + rate * delta

    return ServerStep(_memory(), step)


class Momentum(Frozen):
    """Momentum of the combined updates: FedAvgM (Hsu, Qi and Brown 2019)."""

    kind: Literal["momentum"]
    rate: Rate = 1.0
    beta: Fraction = 0.9

    def rule(self) -> ServerStep:
        """What the coordinator does."""
        return momentum(self.rate, self.beta)


def momentum(rate: float, beta: float) -> ServerStep:
    """v = beta v + delta; theta + rate v (Hsu, Qi and Brown 2019, FedAvgM)."""

    def step(memory: Memory, theta: Vector, delta: Vector) -> tuple[Memory, Vector]:
        v = beta * memory["v"] + delta
        return {"v": v}, theta + rate * v

    return ServerStep(_memory(v=0.0), step)


class Nesterov(Frozen):
    """Momentum that looks ahead (Sutskever et al. 2013)."""

    kind: Literal["nesterov"]
    rate: Rate = 1.0
    beta: Fraction = 0.9

    def rule(self) -> ServerStep:
        """What the coordinator does."""
        return nesterov(self.rate, self.beta)


def nesterov(rate: float, beta: float) -> ServerStep:
    """v = beta v + delta; theta + rate (delta + beta v) (Sutskever et al. 2013, as Bengio et al. 2013 write it, equation 7)."""

    def step(memory: Memory, theta: Vector, delta: Vector) -> tuple[Memory, Vector]:
        v = beta * memory["v"] + delta
        return {"v": v}, theta + rate * (delta + beta * v)

    return ServerStep(_memory(v=0.0), step)


class Adagrad(Frozen):
    """Steps that shrink with the squares of all updates so far: FedAdagrad (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["adagrad"]
    rate: Rate = 0.1
    tau: Rate = 1e-3

    def rule(self) -> ServerStep:
        """What the coordinator does."""
        return adagrad(self.rate, self.tau)


def adagrad(rate: float, tau: float) -> ServerStep:
    """v = v + delta^2; theta + rate delta / (sqrt(v) + tau) (Reddi et al. 2021, algorithm 2, with beta_1 = 0)."""

    def step(memory: Memory, theta: Vector, delta: Vector) -> tuple[Memory, Vector]:
        v = memory["v"] + delta * delta
        return {"v": v}, theta + rate * delta / (np.sqrt(v) + tau)

    return ServerStep(_memory(v=tau * tau), step)


class Adam(Frozen):
    """Steps by running means of updates and of their squares: FedAdam (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["adam"]
    rate: Rate = 0.1
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.99
    tau: Rate = 1e-3

    def rule(self) -> ServerStep:
        """What the coordinator does."""
        return adam(self.rate, self.beta_1, self.beta_2, self.tau)


def adam(rate: float, beta_1: float, beta_2: float, tau: float) -> ServerStep:
    """m = b1 m + (1 - b1) delta; v = b2 v + (1 - b2) delta^2; theta + rate m / (sqrt(v) + tau) (Reddi et al. 2021, algorithm 2)."""

    def second(v: Vector, square: Vector) -> Vector:
        return beta_2 * v + (1 - beta_2) * square

    return _adaptive(rate, beta_1, tau, second)


class Yogi(Frozen):
    """As adam, its squares moving by steps of bounded size: FedYogi (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["yogi"]
    rate: Rate = 0.1
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.99
    tau: Rate = 1e-3

    def rule(self) -> ServerStep:
        """What the coordinator does."""
        return yogi(self.rate, self.beta_1, self.beta_2, self.tau)


def yogi(rate: float, beta_1: float, beta_2: float, tau: float) -> ServerStep:
    """As Adam, with v = v - (1 - b2) delta^2 sign(v - delta^2): v moves by steps of bounded size (Reddi et al. 2021, algorithm 2)."""

    def second(v: Vector, square: Vector) -> Vector:
        return v - (1 - beta_2) * square * np.sign(v - square)

    return _adaptive(rate, beta_1, tau, second)


def _adaptive(rate: float, beta_1: float, tau: float, second: Callable[[Vector, Vector], Vector]) -> ServerStep:
    def step(memory: Memory, theta: Vector, delta: Vector) -> tuple[Memory, Vector]:
        m = beta_1 * memory["m"] + (1 - beta_1) * delta
        v = second(memory["v"], delta * delta)
        return {"m": m, "v": v}, theta + rate * m / (np.sqrt(v) + tau)

    return ServerStep(_memory(m=0.0, v=tau * tau), step)


def _memory(**starts: float) -> Callable[[int], Memory]:
    """Vectors by name, each starting at one value."""

    def init(size: int) -> Memory:
        return {name: np.full(size, start) for name, start in starts.items()}

    return init


Server = Annotated[Sgd | Momentum | Nesterov | Adagrad | Adam | Yogi, Field(discriminator="kind")]
