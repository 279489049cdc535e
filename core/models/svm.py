"""A linear support vector machine: a line between two outcomes, with as much room beside it as there is."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from fedrounds.core.frozen import NonNegative
from fedrounds.core.models.family import Family, Kind, Task
from fedrounds.core.models.logistic import logistic
from fedrounds.core.params import Array, Vector


class Svm(Kind):
    """Linear support vector machine of yes or no, by squared hinge losses. scikit-learn's C means l2 = 1 / (C n)."""

    targets: ClassVar[tuple[str, ...]] = ("binary",)
    paper: ClassVar[str] = "Hsieh et al. 2008, equation 2, L2-SVM"
    kind: Literal["svm"]
    l2: NonNegative = 0.01

    def family(self, width: int, classes: int, task: Task) -> Family:
        """The functions of a model with so many columns, the ones left out."""
        del classes, task
        return svm(width)


def svm(features: int) -> Family:
    """Decision f = Xθ, and as a score σ(2f): above one half where f is above 0.

    The loss that is descended is the mean of max(0, 1 - sf)² with s = ±1, so its gradient is -2 Xᵀ(s max(0, 1 - sf))/n. Over all rows of
    one kind that loss is smallest at f = 2p - 1, with p the probability of class 1 (Zhang 2004, section 3): σ(2f) is (1 + f)/2 to the first
    order at f = 0, stays within 0 and 1, and keeps the order of f, so the area under the curve is the decision's own. It is a score and no
    calibrated probability; what is reported of a row is the log-loss of that score.

    Args:
        features: Columns p of the encoded matrix, without the ones; X is (n, p + 1).

    Returns:
        A family with theta (p + 1,): coefficients, then the intercept. Its estimator is a logistic regression of twice theta: the same score.
    """
    twice = logistic(features)

    def gradient(theta: Vector, X: Array, y: Array) -> Vector:
        side = 2.0 * y - 1.0
        return X.T.dot(side * np.maximum(1.0 - side * X.dot(theta), 0.0)) * (-2.0 / len(y))

    def predict(theta: Vector, X: Array) -> Array:
        return twice.predict(2.0 * theta, X)

    def estimator(theta: Vector) -> Any:
        return twice.estimator(2.0 * theta)

    return twice._replace(gradient=gradient, predict=predict, estimator=estimator)
