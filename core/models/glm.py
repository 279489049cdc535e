"""Generalised linear models by federated Newton: sites add up over their patients what each step of the pooled fit would need.

Four kinds, each by its mean as a function of the linear predictor η = Xθ:

    gaussian   μ = η            binomial   μ = σ(η)          poisson, gamma   μ = exp(η)

At the optimum the sums also carry the deviance, Pearson's X² and what the log-likelihood needs, so that standard errors, z, p and AIC are
those of one fit to all patients (`core/regression.py`). A case weight w lets a patient count w times.
Source: McCullagh and Nelder (1989), Generalized Linear Models, sections 2.2 to 2.5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedrounds.core.algorithm import Sums
from fedrounds.core.exact import Exact
from fedrounds.core.models.family import Family
from fedrounds.core.newton import Begin, newton
from fedrounds.core.params import Array, Vector
from fedrounds.core.strategy import Exact as Settings

if TYPE_CHECKING:
    from fedrounds.core.preprocess import Rows
    from fedrounds.core.study import Study

FIT = ("patients", "weight", "deviance", "pearson", "squares", "constant", "log_ratio")


@dataclass(frozen=True)
class Glm:
    """One kind.

    Attributes:
        mean: η (n,) -> μ (n,).
        residual: (μ, y) -> d loss/dη (n,), loss being half the deviance.
        curvature: (μ, y) -> d² loss/dη² (n,), not negative.
        information: (μ) -> its expectation (n,); None where it is the same.
        deviance: (μ, y) -> unit deviances (n,).
        variance: (μ) -> the variance function (n,).
        constant: y -> what the log-likelihood has besides (n,).
        dispersion: whether φ is estimated (Pearson's X² by n - p) rather than 1.
    """

    mean: Callable[[Array], Array]
    residual: Callable[[Array, Array], Array]
    curvature: Callable[[Array, Array], Array]
    information: Callable[[Array], Array] | None
    deviance: Callable[[Array, Array], Array]
    variance: Callable[[Array], Array]
    constant: Callable[[Array], Array]
    dispersion: bool
    begin: Callable[[float, float], float] | None = None
    """(slope, curvature of the loss by the intercept) -> by how much to move it before the first step, where a log link starts far off"""


def gaussian() -> Glm:
    """A number with equal variance about its mean; identity link."""
    return Glm(
        mean=lambda eta: eta,
        residual=lambda mu, y: mu - y,
        curvature=lambda mu, _: np.ones_like(mu),
        information=None,
        deviance=lambda mu, y: np.square(y - mu),
        variance=np.ones_like,
        constant=np.zeros_like,
        dispersion=True,
    )


def binomial() -> Glm:
    """Yes or no; logit link."""
    from scipy.special import expit, xlog1py, xlogy

    return Glm(
        mean=expit,
        residual=lambda mu, y: mu - y,
        curvature=lambda mu, _: mu * (1 - mu),
        information=None,
        deviance=lambda mu, y: -2 * (xlogy(y, mu) + xlog1py(1 - y, -mu)),
        variance=lambda mu: mu * (1 - mu),
        constant=np.zeros_like,
        dispersion=False,
    )


def poisson() -> Glm:
    """A count; log link."""
    from scipy.special import gammaln, xlogy

    return Glm(
        mean=np.exp,
        residual=lambda mu, y: mu - y,
        curvature=lambda mu, _: mu,
        information=None,
        deviance=lambda mu, y: 2 * (xlogy(y, y / mu) - (y - mu)),
        variance=lambda mu: mu,
        constant=lambda y: xlogy(y, y) - y - gammaln(y + 1),  # of the saturated model
        dispersion=False,
        begin=lambda slope, curvature: float(np.log((curvature - slope) / curvature)),
    )


def gamma() -> Glm:
    """A positive number whose spread grows with its mean; log link.

    The link is not the canonical one: the observed curvature steers, the expected one is reported.
    """
    return Glm(
        mean=np.exp,
        residual=lambda mu, y: 1 - y / mu,
        curvature=lambda mu, y: y / mu,
        information=np.ones_like,
        deviance=lambda mu, y: 2 * ((y - mu) / mu - np.log(y / mu)),
        variance=np.square,
        constant=lambda y: -np.log(y),
        dispersion=True,
        begin=lambda slope, curvature: float(np.log(curvature / (curvature + slope))),
    )


def regression(kind: Glm, study: Study, columns: tuple[str, ...], family: Family, l2: float) -> Exact:
    """A fit of one kind to a study's columns. Raises NoFit where they do not settle it."""
    assert isinstance(study.algorithm, Settings)
    parts, size = family.layout.shapes, family.layout.size
    names = (*columns, *(f"the {part}" for part in parts if part != "coef"))
    more = {"fit": (len(FIT),)} | ({"information": (size, size)} if kind.information else {})
    begin = _begin(kind, names.index("the intercept")) if "the intercept" in names else None
    known, settings = int("offset" in parts), study.algorithm
    return newton(_evaluate(kind), names, settings, l2, family.penalised, known, more, begin, study.grain)


def _begin(kind: Glm, intercept: int) -> Begin | None:
    if kind.begin is None:
        return None
    move = kind.begin

    def begin(at: Vector, totals: Sums) -> Vector | None:
        with np.errstate(all="ignore"):
            by = move(float(totals["gradient"][intercept]), float(totals["hessian"][intercept, intercept]))
        if not np.isfinite(by) or abs(by) <= 1:
            return None
        moved = at.copy()
        moved[intercept] += by
        return moved

    return begin


def _evaluate(kind: Glm) -> Callable[[Vector, Rows], Mapping[str, Array]]:
    def evaluate(theta: Vector, rows: Rows) -> Mapping[str, Array]:
        X, y = rows.X, rows.y
        w = np.ones(len(y)) if rows.weight is None else rows.weight
        mu = kind.mean(X @ theta)
        deviance = float(w @ kind.deviance(mu, y))
        curved = X * (w * kind.curvature(mu, y))[:, None]
        found = {
            "rows": np.array([w.sum()]),
            "loss": np.array([deviance / 2]),
            "gradient": X.T @ (w * kind.residual(mu, y)),
            "hessian": X.T @ curved,
            "fit": np.array(
                [
                    float(len(y)),
                    w.sum(),
                    deviance,
                    w @ (np.square(y - mu) / kind.variance(mu)),
                    w @ np.square(y - mu),
                    w @ kind.constant(y),
                    w @ np.log(y / mu) if kind.information else 0.0,
                ]
            ),
        }
        if kind.information:
            found["information"] = X.T @ (X * (w * kind.information(mu))[:, None])
        return found

    return evaluate
