"""What a site does with the global model: one small function a paper.

A local rule is `train(gradient, theta, X, y, rng) -> theta`: X (rows, columns), y (rows,), `gradient(theta, X, y)` of the mean
objective. It never writes to the `theta` it was given. Beside each stands the word for it in a study, whose `rule()` it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedrounds.core.frozen import Fraction, Frozen, NonNegative, Rate
from fedrounds.core.params import Array, Vector

Gradient = Callable[[Vector, Array, Array], Vector]
Train = Callable[[Gradient, Vector, Array, Array, np.random.Generator], Vector]
Epochs = Annotated[int, Field(ge=1, le=10_000)]
Batch = Annotated[int, Field(ge=1)] | Literal["all"]


class Sgd(Frozen):
    """Plain mini-batch gradient descent at the site."""

    kind: Literal["sgd"]
    rate: Rate = 0.05
    epochs: Epochs = 1
    batch: Batch = 32

    def rule(self) -> Train:
        """What a site does."""
        return sgd(self.rate, self.epochs, self.batch)


def sgd(rate: float, epochs: int, batch: Batch) -> Train:
    """Mini-batch gradient descent: theta - rate * gradient, `epochs` times over the rows."""

    def train(gradient: Gradient, theta: Vector, X: Array, y: Array, rng: np.random.Generator) -> Vector:
        theta = theta.copy()
        for X_part, y_part in batches(X, y, epochs, batch, rng):
            theta -= rate * gradient(theta, X_part, y_part)
        return theta

    return train


class Adam(Frozen):
    """Adam at the site, its memory fresh each round (Kingma and Ba 2015)."""

    kind: Literal["adam"]
    rate: Rate = 0.01
    epochs: Epochs = 1
    batch: Batch = 32
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Rate = 1e-8

    def rule(self) -> Train:
        """What a site does."""
        return adam(self.rate, self.epochs, self.batch, self.beta_1, self.beta_2, self.epsilon)


def adam(rate: float, epochs: int, batch: Batch, beta_1: float, beta_2: float, epsilon: float) -> Train:
    """Adam with bias correction (Kingma and Ba 2015, algorithm 1); its memory starts anew each round."""

    def train(gradient: Gradient, theta: Vector, X: Array, y: Array, rng: np.random.Generator) -> Vector:
        theta, m, v = theta.copy(), np.zeros_like(theta), np.zeros_like(theta)
        for t, (X_part, y_part) in enumerate(batches(X, y, epochs, batch, rng), start=1):
            g = gradient(theta, X_part, y_part)
            m = beta_1 * m + (1 - beta_1) * g
            v = beta_2 * v + (1 - beta_2) * g * g
            theta -= rate * (m / (1 - beta_1**t)) / (np.sqrt(v / (1 - beta_2**t)) + epsilon)
        return theta

    return train


class Proximal(Frozen):
    """Gradient descent tied to the global model by mu/2 |w - w_global|^2 (Li et al. 2020, FedProx)."""

    kind: Literal["proximal"]
    mu: NonNegative = 0.01
    rate: Rate = 0.05
    epochs: Epochs = 1
    batch: Batch = 32

    def rule(self) -> Train:
        """What a site does."""
        return proximal(self.mu, self.rate, self.epochs, self.batch)


def proximal(mu: float, rate: float, epochs: int, batch: Batch) -> Train:
    """Gradient descent on the objective + mu/2 |theta - theta_global|^2 (Li et al. 2020, FedProx, equation 2)."""
    descend = sgd(rate, epochs, batch)

    def train(gradient: Gradient, theta: Vector, X: Array, y: Array, rng: np.random.Generator) -> Vector:
        start = theta
        return descend(lambda w, A, b: gradient(w, A, b) + mu * (w - start), theta, X, y, rng)

    return train


def batches(X: Array, y: Array, epochs: int, batch: Batch, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """The rows in a fresh random order each epoch, cut into batches; `"all"` is every row in its own order, and draws nothing."""
    if batch == "all":
        for _ in range(epochs):
            yield X, y
        return
    for _ in range(epochs):
        order = rng.permutation(len(y))
        X_shuffled, y_shuffled = X[order], y[order]
        for start in range(0, len(y), batch):
            yield X_shuffled[start : start + batch], y_shuffled[start : start + batch]


Local = Annotated[Sgd | Adam | Proximal, Field(discriminator="kind")]
