"""Logistic regression of an outcome that is one of several classes."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from fedrounds.core.frozen import NonNegative
from fedrounds.core.models.family import Family, Kind, Task, class_log_losses, class_residual, softmax
from fedrounds.core.params import Array, Layout, Vector


class Multinomial(Kind):
    """Logistic regression of one of several classes."""

    targets: ClassVar[tuple[str, ...]] = ("multiclass",)
    clippable: ClassVar[bool] = True
    paper: ClassVar[str] = "Bishop 2006, section 4.3.4"
    kind: Literal["multinomial"]
    l2: NonNegative = 0.0

    def family(self, width: int, classes: int, task: Task) -> Family:
        """The functions of a model with so many columns, the ones left out."""
        del task
        return multinomial(width, classes)


def multinomial(features: int, classes: int) -> Family:
    """Probabilities of the classes as softmax(XW), one column of W a class and none held at zero.

    The loss is the mean log-loss, so its gradient is Xᵀ(P - Y)/n with Y the classes' indicators.
    Source: Bishop (2006), Pattern Recognition and Machine Learning, eq. 4.108 and 4.109.

    Args:
        features: Columns p of the encoded matrix, without the ones; X is (n, p + 1).
        classes: Number of classes k, two or more.

    Returns:
        A family with theta ((p + 1)k,): W (p + 1, k) row by row, the intercepts last.
    """
    layout = Layout({"coef": (features, classes), "intercept": (classes,)})
    shape = (features + 1, classes)
    penalised = np.ones(layout.size)
    penalised[features * classes :] = 0.0

    def init(_rng: np.random.Generator) -> Vector:
        return np.zeros(layout.size)

    def predict(theta: Vector, X: Array) -> Array:
        return softmax(X @ theta.reshape(shape))

    def gradient(theta: Vector, X: Array, y: Array) -> Vector:
        return (X.T @ class_residual(predict(theta, X), y) / len(y)).reshape(-1)

    def estimator(theta: Vector) -> Any:
        from sklearn.linear_model import LogisticRegression

        by_class = theta.reshape(shape).T  # (k, p + 1)
        if classes == 2:  # scikit-learn keeps one row for two classes; the softmax of two is the σ of their difference
            by_class = by_class[1:] - by_class[:1]
        fitted: Any = LogisticRegression()
        fitted.coef_ = by_class[:, :features].copy()
        fitted.intercept_ = by_class[:, features].copy()
        fitted.classes_ = np.arange(classes)
        fitted.n_features_in_ = features
        fitted.n_iter_ = np.zeros(1, np.int32)
        return fitted

    return Family(layout, penalised, init, gradient, predict, class_log_losses, estimator)
