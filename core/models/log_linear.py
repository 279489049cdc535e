"""Regressions of what is never negative, by a log link: counts (Poisson) and positive numbers (gamma)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from fedrounds.core.frozen import NonNegative
from fedrounds.core.models import glm
from fedrounds.core.models.family import Family, Kind, Task, squared_errors
from fedrounds.core.params import Array, Layout, Vector

if TYPE_CHECKING:
    from fedrounds.core.exact import Exact
    from fedrounds.core.study import Study


class Poisson(Kind):
    """Regression of a count or, with an offset, of a rate: the logarithm of its mean is linear."""

    targets: ClassVar[tuple[str, ...]] = ("regression",)
    algorithms: ClassVar[tuple[str, ...]] = ("averaging", "exact")
    additive: ClassVar[bool] = True
    ratio: ClassVar[str] = "rate ratio"
    paper: ClassVar[str] = "McCullagh and Nelder 1989, chapter 6"
    kind: Literal["poisson"]
    l2: NonNegative = 0.0

    def family(self, width: int, classes: int, task: Task) -> Family:
        """The functions of a model with so many columns, the ones left out."""
        del classes, task
        return log_linear(width, lambda mu, y: mu - y)

    def exact(self, study: Study, columns: tuple[str, ...], family: Family) -> Exact:
        """Newton's method by sums."""
        return glm.regression(glm.poisson(), study, columns, family, self.l2)

    def impossible(self, y: Array) -> str:
        """Counts (n,) are 0 or more."""
        return "0 or more" if (y < 0).any() else ""


class Gamma(Kind):
    """Regression of a positive number, such as days or costs: the logarithm of its mean is linear."""

    targets: ClassVar[tuple[str, ...]] = ("regression",)
    algorithms: ClassVar[tuple[str, ...]] = ("averaging", "exact")
    additive: ClassVar[bool] = True
    ratio: ClassVar[str] = "ratio of means"
    paper: ClassVar[str] = "McCullagh and Nelder 1989, chapter 8"
    kind: Literal["gamma"]
    l2: NonNegative = 0.0

    def family(self, width: int, classes: int, task: Task) -> Family:
        """The functions of a model with so many columns, the ones left out."""
        del classes, task
        return log_linear(width, lambda mu, y: 1 - y / mu)

    def exact(self, study: Study, columns: tuple[str, ...], family: Family) -> Exact:
        """Newton's method by sums."""
        return glm.regression(glm.gamma(), study, columns, family, self.l2)

    def impossible(self, y: Array) -> str:
        """Only what is above 0 has a logarithm, of targets (n,)."""
        return "above 0" if (y <= 0).any() else ""


def log_linear(features: int, residual: Callable[[Array, Array], Array]) -> Family:
    """Mean of y as exp(Xθ); what is reported of a row is its squared error.

    Source: McCullagh and Nelder (1989), Generalized Linear Models, section 2.2.

    Args:
        features: Columns p of the encoded matrix, without the ones; X is (n, p + 1).
        residual: (μ, y) -> slope (n,) of the loss by the linear predictor.

    Returns:
        A family with theta (p + 1,): coefficients, then the intercept.
    """
    layout = Layout({"coef": (features,), "intercept": (1,)})
    penalised = np.ones(layout.size)
    penalised[features:] = 0.0

    def init(_rng: np.random.Generator) -> Vector:
        return np.zeros(layout.size)

    def gradient(theta: Vector, X: Array, y: Array) -> Vector:
        return X.T.dot(residual(np.exp(X.dot(theta)), y)) / len(y)

    def predict(theta: Vector, X: Array) -> Array:
        return np.exp(X @ theta)

    def estimator(theta: Vector) -> Any:
        from sklearn.compose import TransformedTargetRegressor
        from sklearn.linear_model import LinearRegression

        fitted: Any = TransformedTargetRegressor(LinearRegression(), func=np.log, inverse_func=np.exp)
        fitted.fit(np.eye(features), np.ones(features))  # makes its parts; what they say is set below
        fitted.regressor_.coef_ = theta[:features].copy()
        fitted.regressor_.intercept_ = float(theta[features])
        return fitted

    return Family(layout, penalised, init, gradient, predict, squared_errors, estimator)
