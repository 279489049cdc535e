"""Principal components: the directions along which patients differ most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedrounds.core.algorithm import Payload, SiteState, Sums
from fedrounds.core.errors import NoFit, StudyError
from fedrounds.core.exact import Exact, Shapes, Solved
from fedrounds.core.models.family import Family, Kind, Task
from fedrounds.core.models.totals import weights_of
from fedrounds.core.params import Array, Layout, Vector

if TYPE_CHECKING:
    from fedrounds.core.preprocess import Rows
    from fedrounds.core.study import Study

ALIKE = 1e-11  # variances nearer to each other than this share of the largest leave their directions open


class Pca(Kind):
    """Principal component analysis: so many `components` of the encoded columns."""

    targets: ClassVar[tuple[str, ...]] = ("none",)
    algorithms: ClassVar[tuple[str, ...]] = ("exact",)
    paper: ClassVar[str] = "Hotelling (1933); Hastie, Tibshirani and Friedman (2009), section 14.5.1"
    kind: Literal["pca"]
    components: int = Field(default=2, ge=1)

    def family(self, width: int, classes: int, task: Task) -> Family:
        """The functions of a model with so many columns, the ones left out. Raises StudyError where there are fewer."""
        del classes, task
        return pca(width, self.components)

    def exact(self, study: Study, columns: tuple[str, ...], family: Family) -> Exact:
        """The covariance by sums."""
        del study, family
        return covariance(len(columns), self.components)


def pca(features: int, components: int) -> Family:
    """What is left of a row when its principal components are taken out.

    Source: Hastie, Tibshirani and Friedman (2009), The Elements of Statistical Learning, eq. 14.49 to 14.53.

    Args:
        features: Columns p of the encoded matrix, without the ones; X is (n, p) or (n, p + 1).
        components: Number of components c, p at most.

    Returns:
        A family with theta: component (c, p), rows of length 1; variance (c,) along each; mean (p,); total (1,), the variance of all
        columns together; rows (1,) that it was fitted to. It predicts (n, 2): the squared distance of a row from what its components say
        of it, which is its loss, and its squared distance from the mean. It has no gradient: it is fitted by `covariance`.

    Raises:
        StudyError: more components than columns.
    """
    if components > features:
        raise StudyError(
            f"expected {features} components at most, as the features become {features} columns, found {components}: lower `components`"
        )
    layout = Layout(
        {
            "component": (components, features),
            "variance": (components,),
            "mean": (features,),
            "total": (1,),
            "rows": (1,),
        }
    )

    def init(_rng: np.random.Generator) -> Vector:
        return layout.join(
            {
                "component": np.eye(components, features),
                "variance": np.zeros(components),
                "mean": np.zeros(features),
                "total": np.zeros(1),
                "rows": np.zeros(1),
            }
        )

    def predict(theta: Vector, X: Array) -> Array:
        parts = layout.split(theta)
        apart = X[:, :features] - parts["mean"]
        left = apart - (apart @ parts["component"].T) @ parts["component"]
        return np.column_stack([(left * left).sum(1), (apart * apart).sum(1)])

    def losses(prediction: Array, y: Array) -> Array:
        del y
        return prediction[:, 0]

    def estimator(theta: Vector) -> Any:
        from sklearn.decomposition import PCA
        from sklearn.linear_model import LinearRegression
        from sklearn.pipeline import Pipeline

        parts = layout.split(theta)
        rows, total = float(parts["rows"][0]), float(parts["total"][0])
        others = min(features, int(rows)) - components
        fitted: Any = PCA(n_components=components)
        fitted.components_ = parts["component"].copy()
        fitted.explained_variance_ = parts["variance"].copy()
        fitted.explained_variance_ratio_ = parts["variance"] / total if total else np.zeros(components)
        fitted.singular_values_ = np.sqrt(parts["variance"] * max(rows - 1.0, 0.0))
        fitted.mean_ = parts["mean"].copy()
        fitted.noise_variance_ = (total - float(parts["variance"].sum())) / others if others > 0 else 0.0
        fitted.n_components_ = components
        fitted.n_samples_ = int(rows)
        fitted.n_features_in_ = features
        scores: Any = LinearRegression()  # passes them on, so that `predict` gives them: MLflow serves no `transform`
        scores.coef_, scores.intercept_ = np.eye(components), np.zeros(components)
        scores.n_features_in_ = components
        return Pipeline([("components", fitted), ("scores", scores)])

    return Family(layout, np.zeros(layout.size), init, None, predict, losses, estimator)


def covariance(features: int, components: int) -> Exact:
    """Principal components from sums over all patients, in two exchanges.

    Exchange 0 sums the rows: their mean. Exchange 1 sums the distances d from that public point and their products d dᵀ, so that no digits
    cancel, however far the data are from zero; it counts again, as other sites may take part. The components are the leading eigenvectors
    of the covariance (n - 1), the largest loading of each made positive, as in scikit-learn's PCA.

    Source: Hastie, Tibshirani and Friedman (2009), eq. 14.53 (the eigen-decomposition of XᵀX, X centred); Chan, Golub and LeVeque (1983),
    eq. 1.7 (the correction for a mean that is only near).

    Args:
        features: Columns p, without the ones.
        components: Number of components c.

    Raises:
        NoFit: the rows do not span so many components, or two of them explain the same, so that no direction is theirs.
    """
    layout = pca(features, components).layout

    def start(theta: Vector, facts: Mapping[str, Array]) -> Mapping[str, Array]:
        del theta, facts
        return {}

    def sums(asked: Payload, memory: SiteState, rows: Rows) -> tuple[SiteState, Sums]:
        apart = rows.X[:, :features] - asked.get("about", np.zeros(features))
        weight = weights_of(rows)
        found: dict[str, Array] = {"rows": np.array([weight.sum()]), "sum": weight @ apart}
        return memory, found | ({"product": (apart * weight[:, None]).T @ apart} if "about" in asked else {})

    def solve(work: Mapping[str, Array], totals: Sums) -> Solved:
        n = float(totals["rows"][0])
        if n < 2:
            raise NoFit("expected two training patients or more over all sites, found fewer: they vary by nothing")
        shift = totals["sum"] / n
        if "about" not in work:
            return Solved(np.zeros(layout.size), {"about": shift}, False)
        spread = (totals["product"] - n * np.outer(shift, shift)) / (n - 1.0)
        values, vectors = np.linalg.eigh((spread + spread.T) / 2.0)
        values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        mean = work["about"] + shift
        _require_apart(values, components, 1e-14 * float(np.abs(mean).max()))
        found = vectors[:, :components].T
        largest = found[np.arange(components), np.abs(found).argmax(1)]
        theta = layout.join(
            {
                "component": found * np.sign(largest)[:, None],
                "variance": values[:components],
                "mean": mean,
                "total": np.array([values.sum()]),
                "rows": np.array([n]),
            }
        )
        return Solved(theta, {}, True, {"rows": np.array([n])})

    def shapes(exchange: int) -> Shapes:
        return {"rows": (1,), "sum": (features,), **({"product": (features, features)} if exchange else {})}

    def takes(exchange: int) -> Shapes:
        return {"about": (features,)} if exchange else {}

    return Exact(start, sums, solve, shapes, takes)


def _require_apart(values: Vector, components: int, rounding: float) -> None:
    """Raise NoFit unless the leading variances differ from each other, from the next and from zero.

    Args:
        values: (p,) variances, the largest first.
        rounding: standard deviations up to here are rounding.
    """
    open_ = max(ALIKE * float(values[0]), rounding * rounding)
    rank = int((values > open_).sum())
    if rank < components:
        raise NoFit(
            f"expected rows that vary along {components} components, found that they do along {rank}: lower `components`"
        )
    for i, gap in enumerate(-np.diff(values[: components + 1])):
        if gap <= open_:
            raise NoFit(
                f"expected components that explain different shares, found {i + 1} and {i + 2} alike, so that any direction between them would"
                " do: ask for another number of `components`, or leave out features"
            )
