"""Least squares under differential privacy of patients: a round is one noised release of the two sums that settle the fit.

Of each patient x is the encoded row, the column of ones included, and u the target on [-1, 1] of its stated range. With w = min(1, R / |x|),
R = clip √columns, a site adds up

    Σ w² x xᵀ (upper triangle, off the diagonal times √2)       and       R Σ w² x u         one patient: R⁴ + R² R² = 2 R⁴ at most, squared

and releases both as one vector with one draw of noise. A weight that hangs on x alone leaves a linear model unbiased. The fit is that to the
totals, with as much ridge as the noise calls for (AdaSSP; Wang 2018, "Revisiting differentially private linear regression", algorithm 2):

    theta = (A + max(0, E - λ_min(A)) I + n l2 P)⁻¹ b            E: how far noise of this size moves an eigenvalue, about

Wang releases λ_min by itself; here it is that of the noised A, which costs nothing more. Of other families no such sums exist: a Newton fit
takes them anew at each point that it comes to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import isqrt, sqrt

import numpy as np

from fedrounds.core.algorithm import Algorithm, Folded, Payload, SiteState, Sums
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.params import Array, Vector
from fedrounds.core.preprocess import Rows
from fedrounds.core.privacy.noise import SLACK, Bits, Gaussian
from fedrounds.core.privacy.patient import Differential
from fedrounds.core.state import RunState

NAME = "moments"  # of the vector in an answer


def columns_of(size: int) -> int:
    """How many columns a vector of so many numbers is about.

    >>> [columns_of(columns * (columns + 3) // 2) for columns in (2, 11, 400)]
    [2, 11, 400]
    """
    return (isqrt(8 * size + 9) - 3) // 2


def mechanism(dp: Differential, columns: int) -> Gaussian:
    """How the sums of a model with so many columns, the ones included, are released."""
    reach = dp.clip * sqrt(columns)
    return Gaussian(sqrt(2) * reach * reach, dp.training_event().multiplier, columns * (columns + 3) // 2)


def vector(X: Array, y: Array, clip: float, low: float, high: float) -> Vector:
    """The two sums of a site's rows, (columns (columns + 3) / 2,).

    Args:
        X: (n, columns), the ones included.
        y: (n,) cut to `low` and `high`.

    Guarantees:
        * a patient moves it by √2 R² at most, R = clip √columns, whatever is in the row; one whose numbers are not finite adds nothing.
    """
    columns = X.shape[1]
    reach = clip * sqrt(columns)
    with np.errstate(all="ignore"):
        length = np.sqrt(np.einsum("ij,ij->i", X, X))
        u = np.clip((y - (low + high) / 2) / ((high - low) / 2), -1.0, 1.0)
        known = np.isfinite(length) & np.isfinite(u)
        weight = np.where(known, np.minimum(1.0, reach * (1 - SLACK) / np.maximum(length, 1e-300)), 0.0)
    x, u = np.where(known[:, None], X, 0.0) * weight[:, None], np.where(known, u, 0.0) * weight
    upper = np.triu_indices(columns)
    square = (x.T @ x)[upper] * np.where(upper[0] == upper[1], 1.0, sqrt(2))
    return np.concatenate([square, reach * (x.T @ u)])


def fitted(total: Vector, noise: float, columns: int, dp: Differential, penalty: Vector) -> Vector:
    """Parameters (columns,), from the sum of all sites' vectors and the standard deviation of the noise in each of its numbers.

    Args:
        total: (columns (columns + 3) / 2,) as `vector` gives it, added up.
        penalty: (columns,) l2 where it applies, 0 elsewhere.
    """
    assert dp.target is not None
    low, high = dp.target
    upper = np.triu_indices(columns)
    half, b = np.zeros((columns, columns)), total[len(upper[0]) :] / (dp.clip * sqrt(columns))
    half[upper] = total[: len(upper[0])] / np.where(upper[0] == upper[1], 1.0, sqrt(2))
    A = half + np.triu(half, 1).T
    edge = noise * sqrt(
        2 * columns
    )  # of a symmetric matrix of Gaussians, σ on the diagonal and σ/√2 off it (Wigner 1958)
    ridge = max(0.0, edge - float(np.linalg.eigvalsh(A)[0]))
    rows = max(float(A[-1, -1]), 1.0)
    theta = np.linalg.solve(A + (ridge + SLACK) * np.eye(columns) + np.diag(rows * penalty), b) * (high - low) / 2
    theta[-1] += (low + high) / 2
    return theta


def training(
    dp: Differential,
    columns: int,
    penalty: Vector,
    agreed: Mapping[str, tuple[int, ...]],
    together: Callable[[Sums], float] | None = None,
) -> Algorithm:
    """A round: one exchange, one release, one fit.

    Args:
        penalty: (columns,) l2 where it applies, 0 elsewhere.
        together: under masks, from what is known of a sum how many times the noise's variance that is accounted for is in it; noise is then
            made on the way into words.

    Guarantees:
        * nothing of the rows leaves but one vector with one draw of noise, whatever model is asked about;
        * every round draws anew: no noise comes from a study's seed.

    Raises UpdateRejected, when asked, in any exchange but the first; and where a site is set to count for less.
    """
    release = mechanism(dp, columns)
    assert dp.target is not None
    low, high = dp.target

    def ask(state: RunState) -> Payload:
        return {"theta": state.theta, **state.statistics}

    def answer(payload: Payload, memory: SiteState, rows: Rows, rng: np.random.Generator) -> tuple[SiteState, Sums]:
        del payload, rng
        found = vector(rows.X, rows.y, dp.clip, low, high)
        return memory, {NAME: found if together else release.release(found, Bits())}

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        total, variance = np.zeros(release.size), 0.0
        for site, sums in replies:
            if float(sums.get("factor", 1.0)) != 1.0:
                raise UpdateRejected(
                    f"expected every patient to count alike in an exact fit, found site '{site}' set to count for less: exclude it, or average"
                )
            total, variance = total + sums[NAME], variance + (together(sums) if together else 1.0)
        theta = fitted(total, release.deviation * sqrt(variance), columns, dp, penalty)
        return Folded(replace(state, round=state.round + 1, theta=theta))

    def shapes(exchange: int) -> dict[str, tuple[int, ...]]:
        del exchange
        return {NAME: (release.size,)}

    def takes(exchange: int) -> dict[str, tuple[int, ...]]:
        if exchange:
            raise UpdateRejected(f"expected a fit in one exchange, was asked for exchange {exchange}")
        return {"theta": (columns,), **agreed}

    return Algorithm(ask, answer, fold, shapes, takes)
