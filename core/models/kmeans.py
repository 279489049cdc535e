"""k-means from given starts: every patient belongs to the nearest centre, and a centre is the mean of its patients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from fedrounds.core.algorithm import Payload, SiteState, Sums
from fedrounds.core.errors import NoFit, StudyError
from fedrounds.core.exact import Exact, Shapes, Solved
from fedrounds.core.frozen import Finite
from fedrounds.core.models.family import Family, Kind, Task
from fedrounds.core.models.totals import require_groups, weights_of
from fedrounds.core.params import Array, Layout, Vector
from fedrounds.core.strategy import Exact as Settings

if TYPE_CHECKING:
    from fedrounds.core.preprocess import Rows
    from fedrounds.core.study import Study


class KMeans(Kind):
    """k-means clusters by Lloyd's steps from given starts.

    `starts`: a row for each cluster, a number for each column that the features become, in their order and as standardised (1.0 is one
    standard deviation above the mean). Every round starts there again, so what it finds depends on nothing else but the patients.
    `emptied`: what a cluster that lost its last patient means: `refuse` ends the round, `stay` leaves its centre where it is. (scikit-learn
    moves it to the patient furthest away, which would tell of that one.)
    `fewest`: patients that every cluster must end with over all sites, as the centre of fewer would tell of each.
    """

    targets: ClassVar[tuple[str, ...]] = ("none",)
    algorithms: ClassVar[tuple[str, ...]] = ("exact",)
    paper: ClassVar[str] = "Lloyd (1982), Least squares quantization in PCM"
    kind: Literal["kmeans"]
    starts: tuple[tuple[Finite, ...], ...] = Field(min_length=1)
    emptied: Literal["refuse", "stay"] = "refuse"
    fewest: int = Field(default=10, ge=1)

    def family(self, width: int, classes: int, task: Task) -> Family:
        """The functions of a model with so many columns, the ones left out. Raises StudyError where the starts have other ones."""
        del classes, task
        starts = np.array(self.starts, np.float64)
        require_width(starts, width)
        return kmeans(starts)

    def exact(self, study: Study, columns: tuple[str, ...], family: Family) -> Exact:
        """Lloyd's steps by sums."""
        del columns, family
        assert isinstance(study.algorithm, Settings)
        settings = study.algorithm
        starts = np.array(self.starts, np.float64)
        return lloyd(starts, settings.tolerance, settings.exchanges, self.emptied, self.fewest)

    @model_validator(mode="after")
    def _alike(self) -> KMeans:
        if len({len(start) for start in self.starts}) > 1:
            raise ValueError("expected starts of one length, a number for each column, found several lengths")
        if len(set(self.starts)) < len(self.starts):
            raise ValueError("expected starts that differ, found one twice: its cluster would be empty")
        return self


def kmeans(starts: Array) -> Family:
    """The nearest of k centres.

    Source: Hastie, Tibshirani and Friedman (2009), The Elements of Statistical Learning, eq. 14.33 and algorithm 14.1.

    Args:
        starts: (k, p) centres to begin with, p columns of the encoded matrix without the ones; X is (n, p) or (n, p + 1).

    Returns:
        A family with theta: center (k, p), then mean (p,) of all training rows. It predicts (n, 2): a row's squared distance to its nearest
        centre, which is its loss, and its squared distance to the mean. It has no gradient: it is fitted by `lloyd`.
    """
    clusters, features = _shape(starts)
    layout = Layout({"center": (clusters, features), "mean": (features,)})

    def init(_rng: np.random.Generator) -> Vector:
        return layout.join({"center": starts, "mean": np.zeros(features)})

    def predict(theta: Vector, X: Array) -> Array:
        parts = layout.split(theta)
        to_mean = X[:, :features] - parts["mean"]
        return np.column_stack([distances(X, parts["center"]).min(1), (to_mean * to_mean).sum(1)])

    def losses(prediction: Array, y: Array) -> Array:
        del y
        return prediction[:, 0]

    def estimator(theta: Vector) -> Any:
        from sklearn import cluster

        stock: Any = cluster.KMeans
        fitted = stock(n_clusters=clusters, init=starts.copy(), n_init=1, algorithm="lloyd")
        fitted.cluster_centers_ = layout.split(theta)["center"].copy()
        fitted.n_features_in_ = features
        fitted._n_threads = 1
        return fitted

    return Family(layout, np.zeros(layout.size), init, None, predict, losses, estimator)


def distances(X: Array, centers: Array) -> Array:
    """Squared distances (n, k) of rows X (n, p or more; the columns after the p-th are not looked at) to centres (k, p).

    By differences, a centre at a time: no digits cancel where the data are far from zero.
    """
    found = np.empty((len(X), len(centers)))
    for k, center in enumerate(centers):
        apart = X[:, : len(center)] - center
        found[:, k] = np.einsum("ij,ij->i", apart, apart)
    return found


def lloyd(
    starts: Array,
    tolerance: float = 1e-4,
    exchanges: int = 300,
    emptied: Literal["refuse", "stay"] = "refuse",
    fewest: int = 1,
) -> Exact:
    """k-means from given starts, an exchange a step, until the centres move no more; one exchange more counts who is where.

    A site assigns each row to the nearest centre (the first, if two are equally near) and sums, by cluster, rows, distances from the centre
    and squared distances. The centre moves to the mean of its rows. It is over when the squares of all moves together are at most
    `tolerance` times the mean variance of the columns: as in scikit-learn's KMeans(init=starts, n_init=1, algorithm="lloyd"), with which it
    agrees to rounding, unless a cluster empties or a row lies just between two centres.

    Source: Lloyd (1982), Least squares quantization in PCM, IEEE Transactions on Information Theory 28, section III (method I).

    Args:
        starts: (k, p).
        tolerance: scikit-learn's `tol`.
        exchanges: steps at most, scikit-learn's `max_iter`.
        emptied: what an empty cluster means, see `KMeans`.
        fewest: patients that every cluster must end with; an empty one that stays is none.

    Raises:
        NoFit: a cluster emptied, or ended with fewer patients than `fewest`; the centres still moved after all `exchanges`.
    """
    clusters, features = _shape(starts)
    layout = kmeans(starts).layout
    shape = {"groups": (clusters,), "rows": (clusters,), "sum": (clusters, features), "square": (clusters,)}

    def start(theta: Vector, facts: Mapping[str, Array]) -> Mapping[str, Array]:
        del theta, facts
        return {"center": starts}

    def sums(asked: Payload, memory: SiteState, rows: Rows) -> tuple[SiteState, Sums]:
        center = asked["center"]
        square = distances(rows.X, center)
        nearest, weight = square.argmin(1), weights_of(rows)
        total = np.zeros((clusters, features))
        for k in range(clusters):
            total[k] = weight[nearest == k] @ (rows.X[nearest == k, :features] - center[k])
        return memory, {
            "groups": np.bincount(nearest, minlength=clusters).astype(np.float64),
            "sum": total,
            "rows": np.bincount(nearest, weight, clusters).astype(np.float64),
            "square": np.bincount(nearest, weight * square.min(1), clusters).astype(np.float64),
        }

    def solve(work: Mapping[str, Array], totals: Sums) -> Solved:
        center, n = work["center"], totals["rows"]
        step = 1.0 + float(work["step"][0]) if "step" in work else 1.0
        _require_filled(n, emptied)
        shift = totals["sum"] / np.where(n > 0, n, 1.0)[:, None]
        mean = n @ (center + shift) / n.sum()
        if "settled" in work:
            require_groups(np.where(n > 0, totals["groups"], np.inf), fewest, "cluster")
            facts = {
                "rows": np.array([n.sum()]),
                "groups": totals["groups"],
                "inertia": np.array([totals["square"].sum()]),
            }
            return Solved(layout.join({"center": center, "mean": mean}), {}, True, facts)
        off = center - mean  # Σ(x - mean)² from Σ(x - center): what each centre is off the mean
        spread = totals["square"].sum() + 2.0 * (off * totals["sum"]).sum() + float(n @ (off * off).sum(1))
        settled = float((shift * shift).sum()) <= tolerance * spread / (n.sum() * features)
        if not settled and step >= exchanges:
            raise NoFit(
                f"expected centres that move no more after {exchanges} exchanges, found that they still do:"
                " allow more `exchanges` or a larger `tolerance` in study.toml"
            )
        moved = center + shift
        after = {"center": moved, "step": np.array([step])} | ({"settled": np.ones(1)} if settled else {})
        return Solved(layout.join({"center": moved, "mean": mean}), after, False)

    def shapes(exchange: int) -> Shapes:
        del exchange
        return shape

    def takes(exchange: int) -> Shapes:
        del exchange
        return {"center": (clusters, features)}

    return Exact(start, sums, solve, shapes, takes)


def _shape(starts: Array) -> tuple[int, int]:
    clusters, features = starts.shape
    return int(clusters), int(features)


def _require_filled(counts: Vector, emptied: str) -> None:
    empty = np.flatnonzero(counts == 0)
    if empty.size and (emptied == "refuse" or empty.size == len(counts)):
        raise NoFit(
            f"expected patients in every cluster, found none in cluster {empty[0] + 1} of {len(counts)}, as study.toml has their starts in order:"
            ' start it nearer to the data, ask for fewer clusters, or say `emptied = "stay"`'
        )


def require_width(starts: Array, width: int) -> None:
    """Raise StudyError unless the starts (k, p) have a number for each of `width` columns."""
    if starts.shape[1] != width:
        raise StudyError(
            f"expected starts of {width} numbers, one for each column that the features become, found {starts.shape[1]}: mend `starts`"
        )
