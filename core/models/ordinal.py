"""Ordinal logistic regression: an outcome in ordered classes, by proportional odds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from fedrounds.core.algorithm import Sums
from fedrounds.core.exact import Exact, Solved
from fedrounds.core.frozen import NonNegative
from fedrounds.core.models.family import Family, Kind, Task, class_log_losses
from fedrounds.core.models.totals import likely, require_groups, weights_of
from fedrounds.core.newton import newton
from fedrounds.core.params import Array, Layout, Vector
from fedrounds.core.strategy import Exact as Settings

if TYPE_CHECKING:
    from fedrounds.core.preprocess import Rows
    from fedrounds.core.study import Study


class Ordinal(Kind):
    """Proportional-odds logistic regression of classes that are in order, the least first."""

    targets: ClassVar[tuple[str, ...]] = ("multiclass",)
    algorithms: ClassVar[tuple[str, ...]] = ("exact",)
    paper: ClassVar[str] = "McCullagh (1980), Regression models for ordinal data"
    ratio: ClassVar[str] = "odds ratio"
    kind: Literal["ordinal"]
    l2: NonNegative = 0.0

    def family(self, width: int, classes: int, task: Task) -> Family:
        """The functions of a model with so many columns, the ones left out."""
        del task
        return ordinal(width, classes)

    def exact(self, study: Study, columns: tuple[str, ...], family: Family) -> Exact:
        """Newton's method by sums."""
        assert isinstance(study.algorithm, Settings)
        return proportional_odds(
            columns, family.layout.shapes["threshold"][0] + 1, study.algorithm, self.l2, study.grain
        )


def ordinal(features: int, classes: int) -> Family:
    """Probability of a class or a lower one as σ(threshold - xβ): a positive coefficient makes higher classes likelier.

    Source: McCullagh (1980), Regression models for ordinal data, JRSS B 42, eq. 2.3 (the proportional odds model).

    Args:
        features: Columns p of the encoded matrix, without the ones; X is (n, p) or (n, p + 1), and its ones are not looked at: the
            thresholds are the intercepts.
        classes: Number of classes k, in order, two or more.

    Returns:
        A family with theta: coef (p,), threshold (k - 1,), which increase. It has no gradient: it is fitted by `proportional_odds`.
    """
    from scipy.special import expit

    layout = Layout({"coef": (features,), "threshold": (classes - 1,)})
    penalised = np.ones(layout.size)
    penalised[features:] = 0.0

    def init(_rng: np.random.Generator) -> Vector:
        return starting_thresholds(features, classes)

    def predict(theta: Vector, X: Array) -> Array:
        parts = layout.split(theta)
        up_to = expit(parts["threshold"] - (X[:, :features] @ parts["coef"])[:, None])
        return np.diff(up_to, axis=1, prepend=0.0, append=1.0)

    def estimator(theta: Vector) -> Any:
        from sklearn.neural_network import MLPClassifier
        from sklearn.preprocessing import LabelBinarizer

        # Exactly a network: hidden unit j is σ(threshold_j - xβ), and class j is unit j less unit j - 1
        parts = layout.split(theta)
        fitted: Any = MLPClassifier(hidden_layer_sizes=(classes - 1,), activation="logistic")
        fitted.coefs_ = [
            np.repeat(-parts["coef"][:, None], classes - 1, axis=1),
            np.eye(classes - 1, classes) - np.eye(classes - 1, classes, 1),
        ]
        fitted.intercepts_ = [parts["threshold"].copy(), np.eye(classes)[-1]]
        fitted.n_features_in_ = features
        fitted.n_layers_ = 3
        fitted.n_outputs_ = classes
        fitted.n_iter_ = 0
        fitted.out_activation_ = "identity"
        fitted.classes_ = np.arange(classes)
        fitted._label_binarizer = LabelBinarizer().fit(fitted.classes_)
        return fitted

    return Family(layout, penalised, init, None, predict, class_log_losses, estimator)


def starting_thresholds(features: int, classes: int) -> Vector:
    """theta (p + k - 1,) that gives every row every class with probability 1/k."""
    share = np.arange(1, classes) / classes
    return np.concatenate([np.zeros(features), np.log(share / (1.0 - share))])


def proportional_odds(
    columns: tuple[str, ...], classes: int, settings: Settings, l2: float = 0.0, grain: float = 0.0
) -> Exact:
    """The maximum-likelihood fit by Newton's method over sums.

    A step after which the thresholds would not increase is halved before it is sent: there is no likelihood there.

    Args:
        columns: Names of the p columns, without the ones.
        classes: Number of classes k, in order.
        settings: The tolerance, and the most exchanges.
        grain: As `newton` has it.
        l2: The penalty on the coefficients; thresholds are free.

    Raises:
        NoFit: a class has no patient at any site, or as `newton` says.
    """
    features = len(columns)
    family = ordinal(features, classes)
    names = (*columns, *(f"the threshold above class {j + 1}" for j in range(classes - 1)))

    def evaluate(theta: Vector, rows: Rows) -> Mapping[str, Array]:
        weight = weights_of(rows)
        value, gradient, information = ordinal_likelihood(theta, rows.X, rows.y, features, classes, weight)
        return {
            "rows": np.array([weight.sum()]),
            "loss": np.array([-value]),
            "gradient": -gradient,
            "hessian": information,
            "patients": np.array([float(len(rows.y))]),
            "classes": np.bincount(rows.y.astype(np.intp), minlength=classes).astype(np.float64),
        }

    rule = newton(
        evaluate, names, settings, l2, family.penalised, grain=grain, more={"classes": (classes,), "patients": (1,)}
    )

    def solve(work: Mapping[str, Array], totals: Sums) -> Solved:
        require_groups(totals["classes"], 1, "class")
        solved = rule.solve(work, totals)
        if solved.done:
            return likely(solved, totals)
        step, at = solved.work["step"], solved.work["at"]
        while not (np.diff(at[features:]) > 0).all():
            step = step / 2
            at = solved.work["from"] + step
        return solved._replace(work={**solved.work, "step": step, "at": at})

    return rule._replace(solve=solve)


def ordinal_likelihood(
    theta: Vector, X: Array, y: Array, features: int, classes: int, weight: Array | None = None
) -> tuple[float, Vector, Array]:
    """Log-likelihood, its gradient (q,) and the observed information (q, q) of q = p + k - 1 parameters; sums over rows.

    With b the upper and a the lower threshold of a row's class, less xβ: σ(b) - σ(a) = σ(b) σ(-a) (1 - exp(a - b)), whose logarithm is
    a sum of three concave terms, so nothing cancels in the tails and the optimum is unique (Pratt 1981).

    Source: McCullagh (1980), eq. 2.3; Pratt (1981), Concavity of the log likelihood, JASA 76.

    Args:
        theta: coef (p,), then thresholds (k - 1,).
        X: (n, p) or wider; the columns after the p-th are not looked at.
        y: (n,) class indices.
        weight: (n,) how often a row counts; once by default.

    Returns:
        -inf as the likelihood where the thresholds do not increase; then the gradient and the information are zeros.
    """
    from scipy.special import expit, log_expit

    cuts, size = theta[features:], len(theta)
    gradient, information = np.zeros(size), np.zeros((size, size))
    gaps = np.diff(cuts)
    if (gaps <= 0).any():
        return -np.inf, gradient, information
    x, of = X[:, :features], y.astype(np.intp)
    score = x @ theta[:features]
    upper = np.append(cuts, np.inf)[of] - score
    lower = np.insert(cuts, 0, -np.inf)[of] - score
    weight = np.ones(len(y)) if weight is None else weight
    by_upper, by_lower = weight * expit(-upper), weight * expit(lower)  # slopes of log σ(b) and of -log σ(-a)
    bend_upper, bend_lower = by_upper * expit(upper), by_lower * expit(-lower)
    inner = np.bincount(of, weight, classes)[1:-1]  # classes with a threshold on either side
    value = weight @ (log_expit(upper) + log_expit(-lower)) + inner @ np.log(-np.expm1(-gaps))
    pull, bend = 1.0 / np.expm1(gaps), 0.25 / np.sinh(gaps / 2.0) ** 2

    place = np.eye(classes)[of]  # (n, k); threshold j is the upper one of class j and the lower one of class j + 1
    up, low = place[:, :-1], place[:, 1:]
    gradient[:features] = x.T @ (by_lower - by_upper)
    cut = by_upper @ up - by_lower @ low
    cut[1:] += inner * pull
    cut[:-1] -= inner * pull
    gradient[features:] = cut

    information[:features, :features] = (x * (bend_upper + bend_lower)[:, None]).T @ x
    across = -(x.T @ (up * bend_upper[:, None] + low * bend_lower[:, None]))
    information[:features, features:], information[features:, :features] = across, across.T
    of_cuts = np.diag(bend_upper @ up + bend_lower @ low)
    j = np.arange(classes - 2)
    of_cuts[j + 1, j + 1] += inner * bend
    of_cuts[j, j] += inner * bend
    of_cuts[j + 1, j] -= inner * bend
    of_cuts[j, j + 1] -= inner * bend
    information[features:, features:] = of_cuts
    return float(value), gradient, information
