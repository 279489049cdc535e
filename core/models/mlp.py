"""A small neural network: one or two hidden layers of rectified linear units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedrounds.core.frozen import NonNegative
from fedrounds.core.models.family import (
    Family,
    Kind,
    Task,
    binary_log_losses,
    class_log_losses,
    class_residual,
    residual,
    softmax,
    squared_errors,
)
from fedrounds.core.params import Array, Layout, Vector

Pairwise = Callable[[Array, Array], Array]  # (prediction, y) -> something of each row


class Mlp(Kind):
    """A neural network with one or two hidden layers of so many units."""

    targets: ClassVar[tuple[str, ...]] = ("regression", "binary", "multiclass")
    clippable: ClassVar[bool] = True
    paper: ClassVar[str] = "Bishop 2006, section 5.3"
    kind: Literal["mlp"]
    hidden: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(default=(16,), min_length=1, max_length=2)
    l2: NonNegative = 0.0

    @property
    def layers(self) -> tuple[str, ...]:
        """`hidden_1`, `hidden_2` if there is one, `output`."""
        return (*(f"hidden_{number}" for number, _ in enumerate(self.hidden, 1)), "output")

    def family(self, width: int, classes: int, task: Task) -> Family:
        """The functions of a model with so many columns, the ones left out."""
        return mlp(width, self.hidden, task, classes)


def mlp(features: int, hidden: tuple[int, ...], task: Task, classes: int = 2) -> Family:
    """Linear, σ or softmax outputs over hidden layers max(0, ·).

    The loss is half the mean squared error or the mean log-loss, and the gradient is back-propagation's.
    Source: Bishop (2006), Pattern Recognition and Machine Learning, eq. 5.53 to 5.56. Weights start from normal draws
    with mean 0 and variance 2/inputs where a rectifier follows (He et al., 2015, arXiv:1502.01852, eq. 10), and
    2/(inputs + outputs) in the output layer (Glorot and Bengio, 2010, eq. 12); biases start at zero.

    Args:
        features: Columns p of the encoded matrix, without the ones; X is (n, p + 1).
        hidden: Units of each hidden layer, one or two numbers.
        task: What y is.
        classes: Number of classes k of the task multiclass; the others have one output.

    Returns:
        A family whose theta is hidden_1 (p + 1, h1) with its biases as last row, then the weights and biases of each
        further layer.
    """
    link, differ, losses = ends(task)
    outputs = classes if task == "multiclass" else 1
    later = ["hidden_2", "output"] if len(hidden) == 2 else ["output"]  # layers whose biases are a part of their own
    shapes: dict[str, tuple[int, ...]] = {"hidden_1": (features + 1, hidden[0])}
    for name, inputs, units in zip(later, hidden, (*hidden[1:], outputs), strict=True):
        shapes |= {name: (inputs, units), f"{name}_bias": (units,)}
    layout = Layout(shapes)

    penalised = np.ones(layout.size)
    marks = layout.split(penalised)
    marks["hidden_1"][-1] = 0.0
    for name in later:
        marks[f"{name}_bias"][:] = 0.0

    def forward(parts: dict[str, Array], X: Array) -> tuple[list[Array], Array]:
        """What each hidden layer passes on, and the output's scores (n, outputs)."""
        passed: list[Array] = []
        scores = X @ parts["hidden_1"]
        for name in later:
            passed.append(np.maximum(scores, 0.0))
            scores = passed[-1] @ parts[name] + parts[f"{name}_bias"]
        return passed, scores

    def init(rng: np.random.Generator) -> Vector:
        theta = np.zeros(layout.size)
        parts = layout.split(theta)
        for name in ("hidden_1", *later):
            weights = parts[name][:-1] if name == "hidden_1" else parts[name]
            inputs, units = weights.shape
            variance = 2.0 / (inputs + units) if name == "output" else 2.0 / inputs
            weights[:] = rng.normal(0.0, np.sqrt(variance), weights.shape)
        return theta

    def predict(theta: Vector, X: Array) -> Array:
        return link(forward(layout.split(theta), X)[1])

    def gradient(theta: Vector, X: Array, y: Array) -> Vector:
        parts = layout.split(theta)
        passed, scores = forward(parts, X)
        slope = np.empty(layout.size)
        into = layout.split(slope)
        error = differ(link(scores), y).reshape(len(y), outputs) / len(y)
        for name, signal in zip(reversed(later), reversed(passed), strict=True):
            np.matmul(signal.T, error, out=into[name])
            np.sum(error, axis=0, out=into[f"{name}_bias"])
            error = error @ parts[name].T * (signal > 0.0)
        np.matmul(X.T, error, out=into["hidden_1"])
        return slope

    def estimator(theta: Vector) -> Any:
        from sklearn.neural_network import MLPClassifier, MLPRegressor
        from sklearn.preprocessing import LabelBinarizer

        parts = {name: part.copy() for name, part in layout.split(theta).items()}
        fitted: Any = (MLPRegressor if task == "regression" else MLPClassifier)(hidden_layer_sizes=hidden)
        fitted.coefs_ = [parts["hidden_1"][:-1], *(parts[name] for name in later)]
        fitted.intercepts_ = [parts["hidden_1"][-1], *(parts[f"{name}_bias"] for name in later)]
        fitted.n_features_in_ = features
        fitted.n_layers_ = len(hidden) + 2
        fitted.n_outputs_ = outputs
        fitted.n_iter_ = 0
        fitted.out_activation_ = {"regression": "identity", "binary": "logistic", "multiclass": "softmax"}[task]
        if task != "regression":
            fitted.classes_ = np.arange(max(outputs, 2))
            fitted._label_binarizer = LabelBinarizer().fit(fitted.classes_)
        return fitted

    return Family(layout, penalised, init, gradient, predict, losses, estimator)


def ends(task: Task) -> tuple[Callable[[Array], Array], Pairwise, Pairwise]:
    """How scores (n, outputs) become a prediction, the slope of the loss by the scores, and the losses reported."""
    if task == "multiclass":
        return softmax, class_residual, class_log_losses
    if task == "regression":
        return lambda scores: scores[:, 0], residual, squared_errors
    from scipy.special import expit  # here, because `fedrounds --help` must not load scipy

    return lambda scores: expit(scores[:, 0]), residual, binary_log_losses
