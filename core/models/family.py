"""What a model is to the averaging algorithms: one vector and the functions that read it.

A family is made by `linear`, `logistic`, `multinomial` or `mlp`, and every function in it is pure. Rows come as a
design matrix X (n, p + 1) whose last column is ones, so that an intercept is one more coefficient; a linear model
without an intercept takes X (n, p). Targets y are (n,) float64: a value, 0 or 1, or a class's index 0..k-1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np

from fedrounds.core.frozen import Frozen
from fedrounds.core.params import Array, Layout, Vector

if TYPE_CHECKING:
    from fedrounds.core.exact import Exact
    from fedrounds.core.study import Study

Task = Literal["regression", "binary", "multiclass", "survival", "none"]
CLOSEST = 1e-12  # a reported probability of what happened is never nearer to 0 or 1, so a log-loss is at most 27.7


class Kind(Frozen):
    """What the word for a kind of model says of it.

    Attributes:
        targets: The kinds of target that it predicts.
        algorithms: Whether its rounds can average, be exact, or either.
        additive: Whether its score is a sum over the columns, so that an offset can be added to it.
        clippable: Whether one patient's gradient can be clipped by itself (`privacy.dpsgd`), for differential privacy.
        settled: Whether its exact fit is one of sums whose bound a patient's is known beforehand (`privacy.sufficient`), for differential privacy.
        ratio: What exp(coefficient) is called; empty where it means nothing.
        paper: Where it comes from.
        flavour: By which part of MLflow a registered version is loaded.
    """

    targets: ClassVar[tuple[str, ...]]
    algorithms: ClassVar[tuple[str, ...]] = ("averaging",)
    additive: ClassVar[bool] = False
    clippable: ClassVar[bool] = False
    settled: ClassVar[bool] = False
    ratio: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    flavour: ClassVar[Literal["sklearn", "pyfunc"]] = "sklearn"

    def family(self, width: int, classes: int, task: Task) -> Family:
        """The functions of a model with so many columns, the ones left out."""
        raise NotImplementedError

    def exact(self, study: Study, columns: tuple[str, ...], family: Family) -> Exact:
        """How it is fitted by sums."""
        raise NotImplementedError

    @property
    def penalty(self) -> float:
        """The L2 penalty beside the mean loss; 0 where there is none."""
        return float(getattr(self, "l2", 0.0))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of its layers, where it has some: a layout's parts, biases (`NAME_bias`) counted with them."""
        return ()

    @property
    def runs(self) -> tuple[str, ...]:
        """The installed code that the model is, beside ours."""
        return ()

    def barred(self, allowed: Collection[str]) -> str:
        """Why a site that allows this installed code, and no other, must not import the model's; empty if it may."""
        foreign = [name for name in self.runs if name not in allowed]
        if not foreign:
            return ""
        return (
            f"its model is the module {foreign[0]}, which the site's own file does not name in `modules` under [policy]"
        )

    def impossible(self, y: Array) -> str:
        """What targets (n,) it expects, where some of these are none; empty if all are."""
        del y
        return ""


def _ready(allowed: Collection[str]) -> str:
    del allowed
    return ""


class Family(NamedTuple):
    """One kind of model.

    Attributes:
        layout: The named parts of theta.
        penalised: 1.0 where the L2 penalty applies, 0.0 at intercepts and biases; as long as theta.
        init: rng -> theta to start from.
        gradient: (theta, X, y) -> gradient of the mean loss over the rows, without the L2 term; None where nothing
            descends it. For classes the loss is the log-loss; in a regression it is half the squared error, so no 2
            stands before Xᵀ(p - y)/n.
        predict: (theta, X) -> the mean (n,), the probability of class 1 (n,), or of every class (n, k).
        losses: (prediction, y) -> what is reported for each row (n,): the squared error, not halved, or the log-loss.
        estimator: theta -> a fitted scikit-learn estimator that predicts the same from X without its column of ones.
            Its arrays are copies. Of a PyTorch module it is a module (`models/predicting.py`).
        unready: installed code that a site allows -> why it cannot train the model; empty if it can. Nothing else imports foreign code first.
        named: theta -> its parts by finer names than the layout's, where it has such.
    """

    layout: Layout
    penalised: Vector
    init: Callable[[np.random.Generator], Vector]
    gradient: Callable[[Vector, Array, Array], Vector] | None
    predict: Callable[[Vector, Array], Array]
    losses: Callable[[Array, Array], Array]
    estimator: Callable[[Vector], Any]
    unready: Callable[[Collection[str]], str] = _ready
    named: Callable[[Vector], Mapping[str, Array]] | None = None


def with_offset(family: Family) -> Family:
    """The family where X has one more column, an offset: what is added to the score as it is, by a coefficient known to be 1.

    The estimator predicts for an offset of 0.
    """
    gradient = family.gradient

    def descend(theta: Vector, X: Array, y: Array) -> Vector:
        assert gradient is not None
        slope = gradient(theta, X, y)
        slope[-1] = 0.0
        return slope

    def init(rng: np.random.Generator) -> Vector:
        return np.append(family.init(rng), 1.0)

    def estimator(theta: Vector) -> Any:
        return family.estimator(theta[:-1])

    return family._replace(
        layout=Layout({**family.layout.shapes, "offset": (1,)}),
        penalised=np.append(family.penalised, 0.0),
        init=init,
        gradient=descend,
        estimator=estimator,
    )


def squared_errors(prediction: Array, y: Array) -> Array:
    """(y - p)² of each row; prediction (n,), y (n,)."""
    return np.square(y - prediction)


def binary_log_losses(prediction: Array, y: Array) -> Array:
    """-log of the probability given to what happened; prediction (n,) of class 1, y (n,) of 0 and 1."""
    return _surprise(np.where(y == 1.0, prediction, 1.0 - prediction))


def class_log_losses(prediction: Array, y: Array) -> Array:
    """-log of the probability given to what happened; prediction (n, k), y (n,) of class indices."""
    return _surprise(prediction[np.arange(len(y)), y.astype(np.intp)])


def residual(prediction: Array, y: Array) -> Array:
    """p - y; prediction (n,), y (n,). The slope of the loss by the score, since every family has its canonical link."""
    return prediction - y


def class_residual(prediction: Array, y: Array) -> Array:
    """p - y with y as indicators; prediction (n, k), y (n,) of class indices."""
    error = prediction.copy()
    error[np.arange(len(y)), y.astype(np.intp)] -= 1.0
    return error


def softmax(scores: Array) -> Array:
    """Probabilities (n, k) of scores (n, k); a row's highest score is taken off first, so nothing overflows."""
    grown = np.exp(scores - scores.max(axis=1, keepdims=True))
    grown /= grown.sum(axis=1, keepdims=True)
    return grown


def _surprise(probability: Array) -> Array:
    return -np.log(np.clip(probability, CLOSEST, 1.0 - CLOSEST))
