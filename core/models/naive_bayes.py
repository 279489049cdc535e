"""Gaussian naive Bayes: each class has a mean and a variance of every column, and columns are taken as independent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedrounds.core.algorithm import Payload, SiteState, Sums
from fedrounds.core.errors import DataContractError
from fedrounds.core.exact import Exact, Shapes, Solved
from fedrounds.core.frozen import Frozen, Rate
from fedrounds.core.models.family import Family, binary_log_losses, class_log_losses, softmax
from fedrounds.core.params import Array, Layout, Vector
from fedrounds.core.preprocess import Rows


class NaiveBayes(Frozen):
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
        DataContractError: a class has fewer patients than `fewest`, or no column varies at all.
    """
    layout = naive_bayes(features, classes).layout
    wide = (classes, features)

    def start(theta: Vector, facts: Mapping[str, Array]) -> Mapping[str, Array]:
        del theta, facts
        return {}

    def sums(asked: Payload, memory: SiteState, rows: Rows) -> tuple[SiteState, Sums]:
        about = asked.get("about", np.zeros(wide))
        total, square = np.zeros(wide), np.zeros(wide)
        of_class = rows.y.astype(np.intp)
        for k in range(classes):
            distance = rows.X[of_class == k, :features] - about[k]
            total[k], square[k] = distance.sum(0), (distance * distance).sum(0)
        found: dict[str, Array] = {"groups": np.bincount(of_class, minlength=classes).astype(np.float64), "sum": total}
        return memory, found | ({"square": square} if "about" in asked else {})

    def solve(work: Mapping[str, Array], totals: Sums) -> Solved:
        n = totals["groups"]
        require_groups(n, fewest, "class")
        shift = totals["sum"] / n[:, None]
        if "about" not in work:
            return Solved(np.zeros(layout.size), {"about": shift}, False)
        mean, within = work["about"] + shift, np.maximum(totals["square"] / n[:, None] - shift * shift, 0.0)
        share = (n / n.sum())[:, None]
        overall = (share * mean).sum(0)
        variance = (share * (within + (mean - overall) ** 2)).sum(0)
        if not (variance > (1e-14 * overall) ** 2).any():  # to the last digits, all are constant
            raise DataContractError(
                "expected a feature that varies, found every one constant over all sites: naive Bayes has nothing to tell classes apart by"
            )
        smoothing = var_smoothing * float(variance.max())
        theta = layout.join(
            {"rows": n, "mean": mean, "variance": within + smoothing, "smoothing": np.array([smoothing])}
        )
        return Solved(theta, {}, True, {"rows": np.array([n.sum()])})

    def shapes(exchange: int) -> Shapes:
        return {"groups": (classes,), "sum": wide, **({"square": wide} if exchange else {})}

    def takes(exchange: int) -> Shapes:
        return {"about": wide} if exchange else {}

    return Exact(start, sums, solve, shapes, takes)


def require_groups(counts: Vector, fewest: int, what: str) -> None:
    """Raise DataContractError unless every group has `fewest` patients over all sites, at least one.

    Args:
        counts: (groups,) patients of each.
        what: what a group is called, in the message.
    """
    few = np.flatnonzero(counts < max(fewest, 1))
    if few.size:
        found = "none" if counts[few[0]] == 0 else "fewer"
        raise DataContractError(
            f"expected {max(fewest, 1)} training patients of every {what} at the sites that took part, found {found} of {what}"
            f" {few[0] + 1} of {len(counts)}, as study.toml has them in order: merge or leave out the {what}, or change `fewest`"
        )
