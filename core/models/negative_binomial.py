"""Negative binomial regression (NB2): counts that vary more than a Poisson's."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from fedrounds.core.errors import DataContractError
from fedrounds.core.frozen import Frozen, NonNegative
from fedrounds.core.models.family import Family, squared_errors
from fedrounds.core.params import Array, Layout, Vector

MOST = 10_000_000  # a count: of every number below it a logarithm is taken


class NegativeBinomial(Frozen):
    """Negative binomial regression (NB2) of a count: mean exp(xβ), variance mean + alpha mean², alpha fitted too."""

    targets: ClassVar[tuple[str, ...]] = ("regression",)
    algorithms: ClassVar[tuple[str, ...]] = ("exact",)
    paper: ClassVar[str] = "Lawless (1987), Negative binomial and mixed Poisson regression"
    kind: Literal["negative_binomial"]
    l2: NonNegative = 0.0


def negative_binomial(features: int) -> Family:
    """Mean of a count as exp(Xθ).

    Source: Cameron and Trivedi (2013), Regression Analysis of Count Data, section 3.3.1 (NB2).

    Args:
        features: Columns p of the encoded matrix, without the ones; X is (n, p + 1).

    Returns:
        A family with theta: coef (p,), intercept (1,), log_alpha (1,): alpha is the variance beyond the mean, per mean². It has no
        gradient: it is fitted by `count_likelihood`.
    """
    layout = Layout({"coef": (features,), "intercept": (1,), "log_alpha": (1,)})
    penalised = np.ones(layout.size)
    penalised[features:] = 0.0

    def init(_rng: np.random.Generator) -> Vector:
        return np.zeros(layout.size)

    def predict(theta: Vector, X: Array) -> Array:
        return np.exp(X @ theta[:-1])

    def estimator(theta: Vector) -> Any:
        from sklearn._loss.loss import HalfPoissonLoss
        from sklearn.linear_model import PoissonRegressor

        # Of the same mean; its alpha is a penalty, not the dispersion
        fitted: Any = PoissonRegressor(alpha=0.0)
        fitted.coef_ = theta[:features].copy()
        fitted.intercept_ = float(theta[features])
        fitted.n_features_in_ = features
        fitted.n_iter_ = 0
        fitted._base_loss = HalfPoissonLoss()
        return fitted

    return Family(layout, penalised, init, None, predict, squared_errors, estimator)


def count_likelihood(theta: Vector, X: Array, y: Array) -> tuple[float, Vector, Array]:
    """Log-likelihood, its gradient (q,) and the observed information (q, q) of q = p + 2 parameters; sums over rows.

    log Γ(y + 1/α) - log Γ(1/α) + y log α is taken as Σ_{j<y} log(1 + αj), so that nothing cancels where α is small.

    Source: Lawless (1987), Negative binomial and mixed Poisson regression, Canadian Journal of Statistics 15, eq. 2.3 to 2.7.

    Args:
        theta: coefficients and intercept (p + 1,), then log α.
        X: (n, p + 1), the ones last.
        y: (n,) counts.

    Raises:
        DataContractError: y are no counts up to ten million.
    """
    from scipy.special import gammaln

    require_counts(y)
    alpha, size = float(np.exp(theta[-1])), len(theta)
    score = X @ theta[:-1]
    mean = np.exp(score)
    z = alpha * mean
    whole, first, second = _below(y, alpha)
    value = (whole - gammaln(y + 1.0) + y * score - (y + 1.0 / alpha) * np.log1p(z)).sum()

    by_score = (y - mean) / (1.0 + z)
    curve, bend = _curve(z)
    by_alpha = first + mean * mean * curve - y * mean / (1.0 + z)
    by_alpha_twice = -second + mean**3 * bend + y * (mean / (1.0 + z)) ** 2
    gradient = np.append(X.T @ by_score, alpha * by_alpha.sum())

    information = np.empty((size, size))
    information[:-1, :-1] = (X * (mean * (1.0 + alpha * y) / (1.0 + z) ** 2)[:, None]).T @ X
    across = X.T @ (alpha * (y - mean) * mean / (1.0 + z) ** 2)
    information[-1, :-1], information[:-1, -1] = across, across
    information[-1, -1] = -(alpha * alpha * by_alpha_twice + alpha * by_alpha).sum()
    return float(value), gradient, information


def require_counts(y: Array) -> None:
    """Raise DataContractError unless y (n,) are whole numbers from 0 to `MOST`."""
    wrong = int(np.count_nonzero((y < 0) | (y != np.floor(y)) | (y > MOST)))
    if wrong:
        raise DataContractError(
            f"expected counts as the target (whole numbers, 0 to {MOST:,}), found others in the training rows: mend the data,"
            " or take another model"
        )


def _below(y: Array, alpha: float) -> tuple[Array, Array, Array]:
    """Σ log(1 + αj), Σ j/(1 + αj) and Σ (j/(1 + αj))² over j < y, each (n,)."""
    j = np.arange(max(int(y.max(initial=0.0)), 1), dtype=np.float64)
    share = j / (1.0 + alpha * j)
    sums = (np.insert(np.cumsum(terms), 0, 0.0) for terms in (np.log1p(alpha * j), share, share * share))
    whole, first, second = (table[y.astype(np.intp)] for table in sums)
    return whole, first, second


def _curve(z: Array) -> tuple[Array, Array]:
    """A(z) = (log(1 + z) - z/(1 + z))/z² and its derivative, (n,) each; by their series where z is small, as there they would cancel.

    A = Σ_{i≥0} (-z)^i (i + 1)/(i + 2).
    """
    small = z < 0.02
    near, far = np.where(small, z, 0.0), np.where(small, 1.0, z)
    i = np.arange(12)
    series = (-1.0) ** i * (i + 1) / (i + 2)
    slope = series[1:] * i[1:]
    a = (np.log1p(far) - far / (1.0 + far)) / far**2
    value = np.where(small, np.polynomial.polynomial.polyval(near, series), a)
    return value, np.where(small, np.polynomial.polynomial.polyval(near, slope), ((1.0 + far) ** -2 - 2.0 * a) / far)
