"""Gaussian naive Bayes: each class has a mean and a variance of every column, and columns are taken as independent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedrounds.core.algorithm import Payload, SiteState, Sums
from fedrounds.core.errors import NoFit
from fedrounds.core.exact import Exact, Shapes, Solved
from fedrounds.core.frozen import Rate
from fedrounds.core.models.family import Family, Kind, Task, binary_log_losses, class_log_losses, softmax
from fedrounds.core.models.totals import require_groups, weights_of
from fedrounds.core.params import Array, Layout, Vector

if TYPE_CHECKING:
    from fedrounds.core.preprocess import Rows
    from fedrounds.core.study import Study


class NaiveBayes(Kind):
    """Gaussian naive Bayes of one of two or several classes.

    `var_smoothing`: the share of the largest variance of all columns that is added to every variance, as scikit-learn has it.
    `fewest`: patients that every class must have over all sites, as a mean of fewer would tell of each.
    """

    targets: ClassVar[tuple[str, ...]] = ("binary", "multiclass")
    algorithms: ClassVar[tuple[str, ...]] = ("exact",)
    paper: ClassVar[str] = "Hastie, Tibshirani and Friedman (2009), section 6.6.3; Chan, Golub and LeVeque (1983)"
    kind: Literal["naive_bayes"]
    var_smoothing: Rate = 1e-9
    fewest: int = Field(default=10, ge=1)

    def family(self, width: int, classes: int, task: Task) -> Family:
        """The functions of a model with so many columns, the ones left out."""
        del task
        return naive_bayes(width, classes)

    def exact(self, study: Study, columns: tuple[str, ...], family: Family) -> Exact:
        """Moments by sums."""
        del study
        return class_moments(len(columns), family.layout.shapes["rows"][0], self.var_smoothing, self.fewest)


def naive_bayes(features: int, classes: int) -> Family:
    """Probabilities of the classes in proportion to P(class) ∏ N(x_j; mean_j, variance_j).

    Source: Hastie, Tibshirani and Friedman (2009), The Elements of Statistical Learning, eq. 6.24 to 6.26 with normal densities.

    Args:
        features: Columns p of the encoded matrix, without the ones; X is (n, p) or (n, p + 1), and its ones are not looked at.
        classes: Number of classes k, two or more.

    Returns:
        A family with theta: rows (k,) of each class, mean (k, p), variance (k, p) with the smoothing in it, and smoothing (1,), in the
        columns' units squared. It has no gradient: it is fitted by `class_moments`.
    """
    layout = Layout(
        {"rows": (classes,), "mean": (classes, features), "variance": (classes, features), "smoothing": (1,)}
    )

    def init(_rng: np.random.Generator) -> Vector:
        return layout.join(
            {
                "rows": np.ones(classes),
                "mean": np.zeros((classes, features)),
                "variance": np.ones((classes, features)),
                "smoothing": np.zeros(1),
            }
        )

    def predict(theta: Vector, X: Array) -> Array:
        parts = layout.split(theta)
        scores = np.empty((len(X), classes))
        shares = parts["rows"] / parts["rows"].sum()
        for k, (mean, variance) in enumerate(zip(parts["mean"], parts["variance"], strict=True)):
            far = ((X[:, :features] - mean) ** 2 / variance).sum(1)
            scores[:, k] = np.log(shares[k]) - 0.5 * (np.log(2.0 * np.pi * variance).sum() + far)
        probability = softmax(scores)
        return probability[:, 1] if classes == 2 else probability

    def estimator(theta: Vector) -> Any:
        from sklearn.naive_bayes import GaussianNB

        parts = layout.split(theta)
        fitted: Any = GaussianNB()
        fitted.classes_ = np.arange(classes)
        fitted.class_count_ = parts["rows"].copy()
        fitted.class_prior_ = parts["rows"] / parts["rows"].sum()
        fitted.theta_ = parts["mean"].copy()
        fitted.var_ = parts["variance"].copy()
        fitted.epsilon_ = float(parts["smoothing"][0])
        fitted.n_features_in_ = features
        return fitted

    losses = binary_log_losses if classes == 2 else class_log_losses
    return Family(layout, np.zeros(layout.size), init, None, predict, losses, estimator)


def class_moments(features: int, classes: int, var_smoothing: float = 1e-9, fewest: int = 1) -> Exact:
    """Each class's mean and variance from sums over all patients, in two exchanges.

    Exchange 0 sums each class's rows: their mean. Exchange 1 sums the distances from that public point and their squares, so that no
    digits cancel, however far the data are from zero; it counts again, as other sites may take part. With d = Σ(x - about) and
    s = Σ(x - about)²: mean = about + d/n and variance = s/n - (d/n)². The smoothing is `var_smoothing` times the largest variance that a
    column has over all classes, as in scikit-learn's GaussianNB.

    Source: Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance, The American Statistician 37, eq. 1.7 (shifted
    data and the corrected two-pass formula).

    Args:
        features: Columns p, without the ones.
        classes: Number of classes k; y is (n,) of class indices.
        var_smoothing: Share of the largest variance.
        fewest: Patients that every class must have.

    Raises:
        NoFit: a class has fewer patients than `fewest`, or no column varies at all.
    """
    layout = naive_bayes(features, classes).layout
    wide = (classes, features)

    def start(theta: Vector, facts: Mapping[str, Array]) -> Mapping[str, Array]:
        del theta, facts
        return {}

    def sums(asked: Payload, memory: SiteState, rows: Rows) -> tuple[SiteState, Sums]:
        about = asked.get("about", np.zeros(wide))
        total, square = np.zeros(wide), np.zeros(wide)
        of_class, weight = rows.y.astype(np.intp), weights_of(rows)
        for k in range(classes):
            distance = rows.X[of_class == k, :features] - about[k]
            total[k], square[k] = weight[of_class == k] @ distance, weight[of_class == k] @ (distance * distance)
        found: dict[str, Array] = {
            "groups": np.bincount(of_class, minlength=classes).astype(np.float64),
            "rows": np.bincount(of_class, weight, classes).astype(np.float64),
            "sum": total,
        }
        return memory, found | ({"square": square} if "about" in asked else {})

    def solve(work: Mapping[str, Array], totals: Sums) -> Solved:
        require_groups(totals["groups"], fewest, "class")
        n = totals["rows"]
        shift = totals["sum"] / n[:, None]
        if "about" not in work:
            return Solved(np.zeros(layout.size), {"about": shift}, False)
        mean, within = work["about"] + shift, np.maximum(totals["square"] / n[:, None] - shift * shift, 0.0)
        share = (n / n.sum())[:, None]
        overall = (share * mean).sum(0)
        variance = (share * (within + (mean - overall) ** 2)).sum(0)
        if not (variance > (1e-14 * overall) ** 2).any():  # to the last digits, all are constant
            raise NoFit(
                "expected a feature that varies, found every one constant over all sites: naive Bayes has nothing to tell classes apart by"
            )
        smoothing = var_smoothing * float(variance.max())
        theta = layout.join(
            {"rows": n, "mean": mean, "variance": within + smoothing, "smoothing": np.array([smoothing])}
        )
        return Solved(theta, {}, True, {"rows": np.array([n.sum()])})

    def shapes(exchange: int) -> Shapes:
        return {"groups": (classes,), "rows": (classes,), "sum": wide, **({"square": wide} if exchange else {})}

    def takes(exchange: int) -> Shapes:
        return {"about": wide} if exchange else {}

    return Exact(start, sums, solve, shapes, takes)
