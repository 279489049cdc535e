"""Gradient descent that no single patient can move far (Abadi et al. 2016, algorithm 1), in whole numbers.

    theta <- theta - rate * ( ( Σ_{i drawn} clip_C(g_i) + noise ) / (q n) + l2 * theta )

Each patient is drawn with probability q at each step, by the operating system's entropy; n is a public number. The sum is put on a grid and
noised by a discrete Gaussian (`noise.Gaussian`). No gradient of one patient is ever formed: of a generalised linear model it is x_i r_iᵀ, so
that its norm is |x_i| |r_i|; of a network's layers the same holds one by one (Goodfellow 2015; Li et al. 2022, ghost clipping).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedrounds.core.models import Model
from fedrounds.core.models.family import class_residual, residual, softmax
from fedrounds.core.models.linear import Linear
from fedrounds.core.models.logistic import Logistic
from fedrounds.core.models.mlp import Mlp
from fedrounds.core.models.multinomial import Multinomial
from fedrounds.core.params import Array, Layout, Vector
from fedrounds.core.privacy.noise import SLACK, Bits, Gaussian

AT_ONCE = 1 << 20  # numbers of noise that are drawn together
Clipped = Callable[[Vector, Array, Array], Vector]  # (theta, X, y) -> the sum of the rows' clipped gradients


class Descent(NamedTuple):
    """How a round descends: learning rate, steps, a patient's chance q, the public batch q n, and what noises a step's sum."""

    rate: float
    steps: int
    sample_rate: float
    batch: float
    mechanism: Gaussian


def descend(clipped: Clipped, penalty: Vector, how: Descent, theta: Vector, X: Array, y: Array) -> Vector:
    """Parameters after a round's steps; the rows are used only through noised sums.

    Args:
        penalty: (parameters,) l2 where it applies, 0 elsewhere: what is added to the gradient needs no noise.
        theta: (parameters,) to begin with; it is not written to.
        X, y: (n, columns) and (n,).

    Guarantees:
        * every step draws its patients anew, each by itself;
        * every step adds noise, also one that drew nobody, and there are exactly `steps` of them;
        * what a step divides by is public: neither the rows there are nor those that were drawn;
        * two rounds from the same rows differ: nothing here comes from a study's seed.
    """
    theta, bits, size = theta.copy(), Bits(), len(theta)
    together = max(1, min(how.steps, AT_ONCE // max(size, len(y), 1)))
    for start in range(0, how.steps, together):
        steps = min(together, how.steps - start)
        drawn, noise = bits.chosen(how.sample_rate, (steps, len(y))), how.mechanism.noise(steps, bits)
        for step in range(steps):
            rows = np.flatnonzero(drawn[step])
            total = how.mechanism.grid(clipped(theta, X[rows], y[rows]), noise[step])
            theta -= how.rate * (total / how.batch + penalty * theta)
    return theta


def clipping(model: Model, layout: Layout, task: str, bound: float) -> Clipped:
    """The sum of clipped gradients for a model.

    Guarantees:
        * a row adds a vector of norm at most `bound`, whatever is in it; one whose gradient is not finite adds nothing;
        * a row whose gradient is within the bound adds that gradient.
    """
    match model:
        case Linear():
            return _linear(lambda scores: scores, residual, 1, bound)
        case Logistic():
            from scipy.special import expit

            return _linear(expit, residual, 1, bound)
        case Multinomial():
            return _linear(softmax, class_residual, layout.shapes["intercept"][0], bound)
        case Mlp():
            return _network(layout, task, bound)
        case _:
            raise AssertionError(model.kind)  # a study that names such a model is refused


def _shares(squared: Array, bound: float) -> Array:
    """(n,) what each row's gradient is multiplied by, from the squares of their norms."""
    with np.errstate(all="ignore"):
        shares = np.minimum(1.0, bound * (1 - SLACK) / np.sqrt(squared))
    return np.where(np.isfinite(squared), shares, 0.0)


def _linear(
    link: Callable[[Array], Array], differ: Callable[[Array, Array], Array], outputs: int, bound: float
) -> Clipped:
    def clipped(theta: Vector, X: Array, y: Array) -> Vector:
        if outputs == 1:
            error = differ(link(X.dot(theta)), y)
            squared = error * error * np.einsum("ij,ij->i", X, X)
            return X.T.dot(_bounded(error, _shares(squared, bound)))
        error = differ(link(X @ theta.reshape(-1, outputs)), y)
        squared = np.einsum("ij,ij->i", error, error) * np.einsum("ij,ij->i", X, X)
        return (X.T @ _bounded(error, _shares(squared, bound)[:, None])).reshape(-1)

    return clipped


def _bounded(error: Array, shares: Array) -> Array:
    """Each row's error times its share; 0 where the share is, even if the error is not finite."""
    return np.where(shares > 0, error, 0.0) * shares


def _network(layout: Layout, task: str, bound: float) -> Clipped:
    later = [name for name in ("hidden_2", "output") if name in layout.shapes]
    outputs = layout.shapes["output_bias"][0]

    def differ(scores: Array, y: Array) -> Array:
        if task == "multiclass":
            return class_residual(softmax(scores), y)
        if task == "regression":
            return residual(scores[:, 0], y)[:, None]
        from scipy.special import expit

        return residual(expit(scores[:, 0]), y)[:, None]

    def clipped(theta: Vector, X: Array, y: Array) -> Vector:
        parts, signals = layout.split(theta), list[Array]()
        scores = X @ parts["hidden_1"]
        for name in later:
            signals.append(np.maximum(scores, 0.0))
            scores = signals[-1] @ parts[name] + parts[f"{name}_bias"]
        errors = [differ(scores, y).reshape(len(y), outputs)]
        for name, signal in zip(reversed(later), reversed(signals), strict=True):
            errors.append(errors[-1] @ parts[name].T * (signal > 0.0))
        errors.reverse()  # of hidden_1 first
        squared = _squares(errors[0]) * _squares(X)
        for error, signal in zip(errors[1:], signals, strict=True):
            squared = squared + _squares(error) * (_squares(signal) + 1.0)  # 1: the bias
        share = _shares(squared, bound)[:, None]
        total = np.empty(layout.size)
        into = layout.split(total)
        np.matmul(X.T, _bounded(errors[0], share), out=into["hidden_1"])
        for name, error, signal in zip(later, errors[1:], signals, strict=True):
            kept = _bounded(error, share)
            np.matmul(np.where(share > 0, signal, 0.0).T, kept, out=into[name])
            np.sum(kept, axis=0, out=into[f"{name}_bias"])
        return total

    return clipped


def _squares(rows: Array) -> Array:
    return np.einsum("ij,ij->i", rows, rows)
