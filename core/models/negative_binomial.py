"""Negative binomial regression (NB2): counts that vary more than a Poisson's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from fedrounds.core.algorithm import Sums
from fedrounds.core.errors import NoFit
from fedrounds.core.exact import Exact, Solved
from fedrounds.core.frozen import NonNegative
from fedrounds.core.models.family import Family, Kind, Task, squared_errors
from fedrounds.core.models.totals import likely, weights_of
from fedrounds.core.newton import newton
from fedrounds.core.params import Array, Layout, Vector
from fedrounds.core.strategy import Exact as Settings

if TYPE_CHECKING:
    from fedrounds.core.preprocess import Rows
    from fedrounds.core.study import Study

POISSON = 1e-7  # of alpha times the mean count: below it no data tell the variance from the mean
MOST = 10_000_000  # a count: of every number below it a logarithm is taken


class NegativeBinomial(Kind):
    """Negative binomial regression (NB2) of a count: mean exp(xβ), variance mean + alpha mean², alpha fitted too."""

    targets: ClassVar[tuple[str, ...]] = ("regression",)
    algorithms: ClassVar[tuple[str, ...]] = ("exact",)
    paper: ClassVar[str] = "Lawless (1987), Negative binomial and mixed Poisson regression"
    ratio: ClassVar[str] = "rate ratio"
    kind: Literal["negative_binomial"]
    l2: NonNegative = 0.0

    def family(self, width: int, classes: int, task: Task) -> Family:
        """The functions of a model with so many columns, the ones left out."""
        del classes, task
        return negative_binomial(width)

    def exact(self, study: Study, columns: tuple[str, ...], family: Family) -> Exact:
        """Newton's method by sums."""
        del family
        assert isinstance(study.algorithm, Settings)
        return overdispersed_counts(columns, study.algorithm, self.l2, study.grain)

    def impossible(self, y: Array) -> str:
        """Counts (n,), and none beyond what is summed up to."""
        known = y[~np.isnan(y)]
        counts = ((known >= 0) & (known == np.floor(known)) & (known <= MOST)).all()
        return "" if counts else f"whole numbers from 0 to {MOST:,}"


def negative_binomial(features: int) -> Family:
    """Mean of a count as exp(Xθ).

    Source: Cameron and Trivedi (2013), Regression Analysis of Count Data, section 3.3.1 (NB2).

    Args:
        features: Columns p of the encoded matrix, without the ones; X is (n, p + 1).

    Returns:
        A family with theta: coef (p,), intercept (1,), alpha (1,): the variance beyond the mean, per mean²; 0 before it was fitted. It has
        no gradient: it is fitted by `overdispersed_counts`.
    """
    layout = Layout({"coef": (features,), "intercept": (1,), "alpha": (1,)})
    penalised = np.ones(layout.size)
    penalised[features:] = 0.0

    def init(_rng: np.random.Generator) -> Vector:
        return np.zeros(layout.size)

    def predict(theta: Vector, X: Array) -> Array:
        return np.exp(X @ theta[:-1])

    def estimator(theta: Vector) -> Any:
        from sklearn._loss.loss import HalfPoissonLoss
        from sklearn.linear_model import PoissonRegressor

        fitted: Any = PoissonRegressor()  # of the same mean
        fitted.coef_ = theta[:features].copy()
        fitted.intercept_ = float(theta[features])
        fitted.n_features_in_ = features
        fitted.n_iter_ = 0
        fitted._base_loss = HalfPoissonLoss()
        return fitted

    return Family(layout, penalised, init, None, predict, squared_errors, estimator)


def overdispersed_counts(columns: tuple[str, ...], settings: Settings, l2: float = 0.0, grain: float = 0.0) -> Exact:
    """The maximum-likelihood fit of coefficients and alpha together, by Newton's method over sums.

    The first exchange tells mean and variance of the counts, from which the intercept and alpha start. Far from the optimum the likelihood
    may bend the wrong way: there a step goes by the size of the curvature, so that it leads uphill still (Nocedal and Wright 2006, section
    3.4). A step of alpha below 0 goes to a tenth of it instead.

    Args:
        columns: Names of the p columns, without the ones.
        settings: The tolerance, and the most exchanges.
        grain: As `newton` has it.
        l2: The penalty on the coefficients; the intercept and alpha are free.

    Raises:
        NoFit: the counts vary no more than a Poisson's, so that alpha goes to 0; they are all 0; or as `newton` says.
    """
    family = negative_binomial(len(columns))
    names = (*columns, "the intercept", "the dispersion alpha")

    def evaluate(theta: Vector, rows: Rows) -> Mapping[str, Array]:
        y, weight = rows.y, weights_of(rows)
        value, gradient, information = count_likelihood(theta, rows.X, y, weight)
        return {
            "rows": np.array([weight.sum()]),
            "loss": np.array([-value]),
            "gradient": -gradient,
            "hessian": information,
            "patients": np.array([float(len(y))]),
            "counts": np.array([weight @ y, weight @ (y * y)]),
        }

    def begin(at: Vector, totals: Sums) -> Vector | None:
        if at[-1] > 0:  # of an earlier fit
            return None
        mean, square = totals["counts"] / totals["rows"]
        alpha = max((square - mean * mean - mean) / (mean * mean), 0.01 / mean)
        return np.concatenate([np.zeros(len(columns)), [np.log(mean), alpha]])

    rule = newton(
        evaluate,
        names,
        settings,
        l2,
        family.penalised,
        grain=grain,
        more={"counts": (2,), "patients": (1,)},
        begin=begin,
    )

    def solve(work: Mapping[str, Array], totals: Sums) -> Solved:
        mean, alpha = float(totals["counts"][0] / totals["rows"][0]), float(work["at"][-1])
        if mean == 0.0:
            raise NoFit("expected counts above 0 at some site, found every one 0: there is nothing to explain")
        if 0 < alpha * mean < POISSON:
            raise NoFit(
                "expected counts that vary more than a Poisson's, found that they do not, so that alpha goes to 0: take the poisson model"
            )
        if "best" in work:  # the likelihood has terms of y log y, whose rounding must not pass for a rise
            slack = 1e-15 * totals["counts"][0] * (1.0 + np.log1p(mean))
            work = {**work, "best": work["best"] + np.array([slack, 0.0])}
        solved = rule.solve(work, {**totals, "hessian": _upright(totals["hessian"])})
        if solved.done:
            return likely(solved, totals)
        if "step" not in solved.work or solved.work["at"][-1] > 0:
            return solved
        return solved._replace(work={**solved.work, **_kept_positive(solved.work, totals)})

    def _kept_positive(work: Mapping[str, Array], totals: Sums) -> Mapping[str, Array]:
        """A step that takes alpha to a tenth of what it was, and the coefficients to where they are best beside that."""
        at, less, rows = work["from"], -0.9 * float(work["from"][-1]), float(totals["rows"][0])
        hessian, penalty = totals["hessian"], rows * l2 * family.penalised[:-1]
        slope = totals["gradient"][:-1] + penalty * at[:-1] + hessian[:-1, -1] * less
        step: Vector = np.full(len(at), less)
        step[:-1] = -np.linalg.solve(hessian[:-1, :-1] + np.diag(penalty), slope)
        return {"step": step, "at": at + step}

    return rule._replace(solve=solve)


def _upright(information: Array) -> Array:
    """An information matrix (q, q) or, where it is not positive definite, what is of its diagonal blocks, alpha's by its size."""
    diagonal = np.diag(information)
    if not (np.isfinite(information).all() and (diagonal[:-1] > 0).all()):
        return information
    scale = 1.0 / np.sqrt(np.maximum(np.abs(diagonal), 1e-300))
    if diagonal[-1] > 0 and np.linalg.eigvalsh(scale[:, None] * information * scale)[0] > 1e-9:
        return information
    blocks = information.copy()
    blocks[-1, :-1] = blocks[:-1, -1] = 0.0
    blocks[-1, -1] = np.abs(diagonal[-1])
    return blocks


def count_likelihood(theta: Vector, X: Array, y: Array, weight: Array | None = None) -> tuple[float, Vector, Array]:
    """Log-likelihood, its gradient (q,) and the observed information (q, q) of q = p + 2 parameters; sums over rows.

    log Γ(y + 1/α) - log Γ(1/α) is taken as a sum over j < y, so that nothing cancels where α is small (at α = 0 it is the Poisson's), and
    with the terms that it cancels against where αy is large.

    Source: Lawless (1987), Negative binomial and mixed Poisson regression, Canadian Journal of Statistics 15, eq. 2.3 to 2.7.

    Args:
        theta: coefficients and intercept (p + 1,), then α, not negative.
        X: (n, p + 1), the ones last.
        y: (n,) counts, whole numbers from 0 to `MOST`.
        weight: (n,) how often a row counts; once by default.
    """
    alpha, size = float(theta[-1]), len(theta)
    weight = np.ones(len(y)) if weight is None else weight
    score = X @ theta[:-1]
    mean = np.exp(score)
    z = alpha * mean
    of_counts, by_counts, twice = _of_counts(y, score, alpha)
    flat, curve, bend = _curves(z)
    value = weight @ (of_counts - mean * flat)

    by_score = (y - mean) / (1.0 + z)
    by_alpha = by_counts + mean * mean * curve
    by_alpha_twice = -twice + mean**3 * bend + y * (mean / (1.0 + z)) ** 2
    gradient = np.append(X.T @ (weight * by_score), weight @ by_alpha)

    information = np.empty((size, size))
    information[:-1, :-1] = (X * (weight * mean * (1.0 + alpha * y) / (1.0 + z) ** 2)[:, None]).T @ X
    across = X.T @ (weight * (y - mean) * mean / (1.0 + z) ** 2)
    information[-1, :-1], information[:-1, -1] = across, across
    information[-1, -1] = -(weight @ by_alpha_twice)
    return float(value), gradient, information


def _of_counts(y: Array, score: Array, alpha: float) -> tuple[Array, Array, Array]:
    """What the likelihood has of y beside its mean, by row, with its slope by α, and Σ_{j<y} (j/(1 + αj))²; (n,) each.

    Σ_{j<y} log(1 + αj) - log y! + y log(μ/(1 + αμ)), and the same rearranged: Σ_{1≤j≤y} log(1 + (1/α - 1)/j) - y log(1 + 1/(αμ)). The
    first has terms of y log y where the second has terms of log y / α, and the second of log(1/α) where the first has none.
    """
    from scipy.special import gammaln

    at, mean = y.astype(np.intp), np.exp(score)
    j = np.arange(max(int(y.max(initial=0.0)), 1), dtype=np.float64)
    share = j / (1.0 + alpha * j)
    twice = _sums(share * share)[at]
    z = alpha * mean
    value = _sums(np.log1p(alpha * j))[at] - gammaln(y + 1.0) + y * (score - np.log1p(z))
    slope = _sums(share)[at] - y * mean / (1.0 + z)
    large = alpha * y > 1.0
    if large.any():
        at, y, z = at[large], y[large], z[large]
        value[large] = _sums(np.log1p((1.0 / alpha - 1.0) / (j + 1.0)))[at] - y * np.log1p(1.0 / z)
        slope[large] = (y / (1.0 + z) - _sums(1.0 / (1.0 + alpha * j))[at]) / alpha
    return value, slope, twice


def _sums(terms: Array) -> Array:
    """Sums of no term, of the first, of the first two, …"""
    return np.insert(np.cumsum(terms), 0, 0.0)


def _curves(z: Array) -> tuple[Array, Array, Array]:
    """log(1 + z)/z, A(z) = (log(1 + z) - z/(1 + z))/z² and its derivative, (n,) each; by series where z is small and they would cancel.

    log(1 + z)/z = Σ_{i≥0} (-z)^i / (i + 1) and A = Σ_{i≥0} (-z)^i (i + 1)/(i + 2).
    """
    from numpy.polynomial.polynomial import polyval

    small = z < 0.02
    near, far = np.where(small, z, 0.0), np.where(small, 1.0, z)
    i = np.arange(12)
    signs = (-1.0) ** i
    series = signs * (i + 1) / (i + 2)
    a = (np.log1p(far) - far / (1.0 + far)) / far**2
    return (
        np.where(small, polyval(near, signs / (i + 1)), np.log1p(far) / far),
        np.where(small, polyval(near, series), a),
        np.where(small, polyval(near, series[1:] * i[1:]), ((1.0 + far) ** -2 - 2.0 * a) / far),
    )
