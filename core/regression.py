"""The regression table of an exact fit, in the dictionary's own units: what a statistician reads of one model fitted to all patients.

With H the information of the standardised coefficients, C = φ H⁻¹; on the original scale value = T theta and its covariance is T C Tᵀ, T being
the linear map that undoes the standardisation. Under a ridge penalty P it is φ (H + P)⁻¹ H (H + P)⁻¹: of the shrunk estimate, about which its
bias is not told. Source: McCullagh and Nelder (1989), Generalized Linear Models, sections 2.5 and 4.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import erfc, exp, lgamma, log, pi, sqrt
from statistics import NormalDist

import numpy as np

from fedrounds.core.models.glm import FIT
from fedrounds.core.params import Array, Vector
from fedrounds.core.plan import Plan
from fedrounds.core.preprocess import Statistics
from fedrounds.core.state import RunState

CONFIDENCE = 0.95
TOLD = ("coef", "intercept", "threshold")


@dataclass(frozen=True)
class Row:
    """One coefficient, in the dictionary's units.

    Attributes:
        name: Of the column, or `intercept`, or `threshold 1` (between the first class and the second), …
        value, error: The estimate and its standard error.
        z, p: Wald's statistic, and its two-sided p-value by the normal law.
        low, high: The 95 % confidence interval.
        scale: What a picture shows them per: a number's agreed standard deviation, 1 of a level; 0 of what stands in no picture.
    """

    name: str
    value: float
    error: float
    z: float
    p: float
    low: float
    high: float
    scale: float = 1.0

    @property
    def ratio(self) -> tuple[float, float, float]:
        """exp of the estimate and its interval."""
        return _exp(self.value), _exp(self.low), _exp(self.high)


@dataclass(frozen=True)
class Regression:
    """A fit's table.

    Attributes:
        model: Its kind.
        ratio: What exp(coefficient) is called; empty where it means nothing.
        rows: The coefficients, the intercept or the thresholds last.
        patients: Training rows that the fit is to.
        penalised: Whether a ridge penalty has shrunk it.
        log_likelihood, aic, deviance, dispersion: Of the fit; None where its kind has none.
        proportional: Of a Cox model, whether each effect stays the same over time, then all: term, χ², degrees of freedom, p.
    """

    model: str
    ratio: str
    rows: tuple[Row, ...]
    patients: int
    penalised: bool
    log_likelihood: float | None = None
    aic: float | None = None
    deviance: float | None = None
    dispersion: float | None = None
    proportional: tuple[tuple[str, float, int, float], ...] = ()


def regression(plan: Plan, state: RunState) -> Regression | None:
    """The table of a state's model; None where no exact fit of coefficients made it."""
    facts, layout = state.memory, plan.family.layout
    if "coef" not in layout.shapes or not {"hessian", "information"} & set(facts):
        return None
    free = sum(shape[0] for name, shape in layout.shapes.items() if name in TOLD)
    others = sum(shape[0] for name, shape in layout.shapes.items() if name != "offset")  # they count in the errors
    information = facts.get("information", facts.get("hessian"))
    assert information is not None
    information = information[:others, :others]
    fitted = len(information)
    model = plan.study.model
    l2 = float(getattr(model, "l2", 0.0))
    bread = np.linalg.inv(information + l2 * float(facts["rows"][0]) * np.diag(plan.family.penalised[:fitted]))
    covariance = (bread @ information @ bread)[:free, :free]
    said: dict[str, float] = {}
    if "fit" in facts:
        said = _likelihood(model.kind, _named(facts["fit"]), free)
    elif "log_likelihood" in facts:
        value = float(facts["log_likelihood"][0])
        said = {"log_likelihood": value, "aic": 2 * fitted - 2 * value}
    dispersion = said.get("dispersion") or 1.0
    T = _undone(state.statistics, free, 1.0 if "threshold" in layout.shapes else -1.0)
    values, errors = T @ state.theta[:free], np.sqrt(np.diag(T @ (dispersion * covariance) @ T.T))
    cuts = layout.shapes.get("threshold", (0,))[0]
    names = [*plan.columns, *([f"threshold {j + 1}" for j in range(cuts)] or ["intercept"])][:free]
    patients = int(facts["fit"][0]) if "fit" in facts else int(facts.get("patients", facts["rows"])[0])
    scales = [*(float(scale) for scale in state.statistics["scale"]), *([0.0] * free)][: len(values)]
    rows = tuple(
        _row(name, float(value), float(error), scale)
        for name, value, error, scale in zip(names, values, errors, scales, strict=True)
    )
    return Regression(model.kind, model.ratio, rows, patients, l2 > 0, **said, proportional=_proportional(facts, names))


def _proportional(facts: Mapping[str, Array], names: list[str]) -> tuple[tuple[str, float, int, float], ...]:
    tests = facts.get("proportionality", np.zeros((0, 2))).tolist()
    freedom = [*([1] * len(names)), len(names)]
    return tuple((name, x, k, p) for name, (x, p), k in zip([*names, "all"], tests, freedom, strict=False))


def _undone(statistics: Statistics, free: int, sign: float) -> Array:
    """T (p, p): standardised coefficients to those per unit; what centring leaves goes to the intercept.

    Args:
        sign: of what goes there: -1, or 1 to thresholds, from which the rest is subtracted.
    """
    center, scale = statistics["center"], statistics["scale"]
    T = np.eye(free)
    width = len(scale)
    T[:width, :width] /= scale[:, None]
    T[width:, :width] = sign * center / scale
    return T


def _row(name: str, value: float, error: float, scale: float) -> Row:
    z = value / error if error > 0 else float("nan")
    reach = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * error
    return Row(name, value, error, z, erfc(abs(z) / sqrt(2)), value - reach, value + reach, scale)


def _likelihood(kind: str, fit: dict[str, float], parameters: int) -> dict[str, float]:
    """Log-likelihood, AIC, deviance and dispersion, each as of one fit to all patients."""
    n, deviance = fit["weight"], fit["deviance"]
    dispersion = fit["pearson"] / (n - parameters) if kind in ("linear", "gamma") else 1.0
    if kind == "linear":
        said = -n / 2 * (log(2 * pi * fit["squares"] / n) + 1)
    elif kind == "gamma":
        shape = 1 / dispersion
        ratio = deviance / 2 + n + fit["log_ratio"]  # the sum of y/mu
        said = shape * (fit["log_ratio"] + n * log(shape) - ratio) - n * lgamma(shape) + fit["constant"]
    else:
        said = fit["constant"] - deviance / 2
    return {
        "log_likelihood": said,
        "aic": 2 * parameters - 2 * said,
        "deviance": deviance,
        "dispersion": dispersion,
    }


def _named(fit: Vector) -> dict[str, float]:
    return {name: float(value) for name, value in zip(FIT, fit, strict=True)}


def _exp(value: float) -> float:
    return exp(value) if value < 709 else float("inf")
