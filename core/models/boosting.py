"""Gradient-boosted trees by federated histograms: sites add up gradients and Hessians per node, column and public bin.

A round grows a batch of trees, level by level, an exchange a level; three exchanges before agree on the bins and on where to start. Each
row's gradient and Hessian are rounded to a public grid BEFORE they are added up, so every sum is of whole numbers of steps, below 2^53 of
them and exact: how the rows are spread over sites, and in which order they are added, changes no bit of the trees. What decides is one
coordinator's arithmetic on those totals. (Two processors whose exp differs in its last digit can differ by a step of the grid.)

Source: Chen and Guestrin (2016), XGBoost, arXiv:1603.02754, eq. 5 to 7, algorithm 1; Friedman (2001), doi:10.1214/aos/1013203451.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrounds.core import quantiles
from fedrounds.core.algorithm import Payload, SiteState, Sums
from fedrounds.core.errors import NoFit, StudyError
from fedrounds.core.exact import Exact, Shapes, Solved
from fedrounds.core.frozen import NonNegative
from fedrounds.core.models.branches import branches, rounded
from fedrounds.core.models.family import Family, Kind, Task
from fedrounds.core.models.trees import Forest, forest_family
from fedrounds.core.params import Array, Vector
from fedrounds.core.strategy import Exact as Settings

if TYPE_CHECKING:
    from fedrounds.core.preprocess import Rows
    from fedrounds.core.study import Study

PASSES = 3  # exchanges that agree on bins, each a thousand times finer than the one before
LARGEST = 1 << 29  # bytes of one level's sums
HEAVIEST = 2.0**28  # weight of all patients: above it a sum could have more steps than float64 counts


class Boosting(Kind):
    """Gradient-boosted trees by histograms over all hospitals.

    `most`: trees (a class) in the end; `trees`: grown in a round; `depth`: levels of splits; `rate`: what a tree's step is multiplied by;
    `bins`: of a column at most; `min_rows`: patients of all hospitals in a leaf, and in a bin, at least; `min_weight`: sum of Hessians in a
    leaf at least; `l2`: λ, which shrinks leaves; `gamma`: what a split must gain.
    """

    targets: ClassVar[tuple[str, ...]] = ("regression", "binary", "multiclass")
    algorithms: ClassVar[tuple[str, ...]] = ("exact",)
    paper: ClassVar[str] = "Chen and Guestrin 2016, arXiv:1603.02754"
    kind: Literal["boosting"]
    most: int = Field(default=100, ge=1, le=2000)
    trees: int = Field(default=10, ge=1, le=2000)
    depth: int = Field(default=4, ge=1, le=8)
    rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    bins: int = Field(default=64, ge=2, le=256)
    min_rows: int = Field(default=20, ge=1)
    min_weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    l2: NonNegative = 1.0
    gamma: NonNegative = 0.0

    def forest(self, classes: int, task: Task) -> Forest:
        """How large the model is."""
        return Forest(self.most, classes if task == "multiclass" else 1, self.depth)

    def family(self, width: int, classes: int, task: Task) -> Family:
        """The functions of a model with so many columns, the ones left out."""
        return forest_family(self.forest(classes, task), width, task)

    def exact(self, study: Study, columns: tuple[str, ...], family: Family) -> Exact:
        """Trees grown from the totals of each level. Raises StudyError where a level's sums are too many, or settings would go unheeded."""
        task, outputs = study.target.kind, family.layout.shapes["base"][0]
        size = 8 * outputs * 2 ** (self.depth - 1) * len(columns) * self.bins * 3
        if size > LARGEST:
            raise StudyError(
                f"expected a level of trees whose sums fit {LARGEST >> 20} MiB, found {size >> 20} MiB for {len(columns)} columns of"
                f" {self.bins} bins at depth {self.depth}: lower model.bins or model.depth"
            )
        assert isinstance(study.algorithm, Settings)
        usual = Settings(preset="exact")
        for name in ("tolerance", "exchanges"):
            if getattr(study.algorithm, name) != getattr(usual, name):
                raise StudyError(
                    f"expected the exchanges of a boosting round to follow from its trees ({PASSES} + trees x depth), found"
                    f' algorithm.{name}: leave it out and set algorithm = "exact"'
                )
        return Growth(self, task, self.forest(outputs, task), len(columns)).exact()


@dataclass(frozen=True)
class Growth:
    """A round of boosting.

    Exchanges 0 to 2 count rows per cell of a grid, for every column (and the target, in a regression), each time finer; the last of them
    also tells what the first model, a constant, is made of. Then level d of a tree has the sums of 2^d nodes.

    Attributes:
        columns: of X that can be split on, the first ones.
    """

    options: Boosting
    task: Task
    forest: Forest
    columns: int

    def exact(self) -> Exact:
        """The round's functions. Raises NoFit where nothing can be learnt: one class alone, or no split in the first tree."""
        return Exact(self.start, self.sums, self.solve, self.shapes, self.takes)

    @property
    def counted(self) -> int:
        """Columns that are counted by cells: the target of a regression is the last."""
        return self.columns + (self.task == "regression")

    def start(self, theta: Vector, facts: Mapping[str, Array]) -> Mapping[str, Array]:
        """The first grid: `turn` (2,), `edges` (counted, CELLS - 1), `unit` (1,) and the `forest` that came in (size,)."""
        del facts
        begun = np.array([-float(PASSES), 0.0])
        return {"turn": begun, "edges": quantiles.grid(self.counted), "unit": np.ones(1), "forest": theta}

    def sums(self, asked: Payload, memory: SiteState, rows: Rows) -> tuple[SiteState, Sums]:
        """`counts` (counted, CELLS) and, of the last pass, `outcome` (1 + k,); or the `branches` of a level."""
        turn = int(asked["turn"][0])
        if turn >= 0:
            return branches(asked, memory, rows, self.task, self.forest, self.options.bins)
        beside = [rows.y[:, None]] if self.task == "regression" else []
        found = {"counts": quantiles.counts(np.hstack([rows.X[:, : self.columns], *beside]), asked["edges"])}
        if turn == -1:
            found["outcome"] = _outcome(rows, self.task, self.forest.outputs, float(asked["unit"][0]))
        return memory, found

    def solve(self, work: Mapping[str, Array], totals: Sums) -> Solved:
        """Finer cells, then bins, then a level of splits a time; totals as `shapes` states. Raises NoFit where the first tree has no split."""
        turn, level = (int(number) for number in work["turn"])
        theta = work["forest"]
        if turn < 0 and self.forest.grown(theta) == self.forest.most:
            return Solved(theta, {}, True)
        if turn < -1:
            edges = quantiles.finer(work["edges"], totals["counts"])
            on = {"turn": np.array([turn + 1.0, 0.0]), "edges": edges, "unit": self._unit(work, totals, 0.0)}
            return Solved(theta, {**work, **on}, False)
        if turn < 0:
            return Solved(theta, self._begun(work, totals), False)
        scale = np.array([float(work["unit"][0]), 1.0, 1.0])
        after, split = deeper(self.options, self.forest, theta, turn, level, work["edges"], totals["branches"] * scale)
        if not level and not split:
            if turn:
                return Solved(theta, {}, True)
            raise NoFit(
                f"expected a split that gains something, found none in {self.columns} columns over all hospitals together:"
                " lower model.min_rows or model.gamma, or name other features"
            )
        turn, level = (turn, level + 1) if level + 1 < self.forest.depth else (turn + 1, 0)
        on = {"turn": np.array([float(turn), float(level)]), "forest": after}
        return Solved(after, {**work, **on}, turn == int(work["last"][0]))

    def _begun(self, work: Mapping[str, Array], totals: Sums) -> Mapping[str, Array]:
        theta, already, columns = work["forest"].copy(), self.forest.grown(work["forest"]), self.columns
        base = self.forest.layout.split(theta)["base"]
        if not already:
            base[:] = _base(totals["outcome"], self.task, float(work["unit"][0]))
        fewest, last = float(self.options.min_rows), min(already + self.options.trees, self.forest.most)
        return {
            "turn": np.array([float(already), 0.0]),
            "edges": quantiles.bins(work["edges"][:columns], totals["counts"][:columns], self.options.bins, fewest),
            "unit": self._unit(work, totals, float(base[0])),
            "forest": theta,
            "last": np.array([float(last)]),
        }

    def _unit(self, work: Mapping[str, Array], totals: Sums, base: float) -> Vector:
        """(1,) a power of two that the target's distance from `base` is within; 1 for classes."""
        if self.task != "regression":
            return np.ones(1)
        low, high = quantiles.span(work["edges"][-1], totals["counts"][-1])
        if max(-low, high) == quantiles.BEYOND:
            raise NoFit(f"expected targets within ±{quantiles.LARGEST:g}, found larger ones: give them in another unit")
        return np.array([2.0 ** np.ceil(np.log2(max(high - base, base - low, quantiles.SMALLEST)))])

    def shapes(self, exchange: int) -> Shapes:
        """What an exchange adds up."""
        if exchange >= PASSES:
            nodes = 2 ** ((exchange - PASSES) % self.forest.depth)
            return {"branches": (self.forest.outputs * nodes, self.columns, self.options.bins, 3)}
        last: Shapes = {"outcome": (1 + self.forest.outputs,)} if exchange == PASSES - 1 else {}
        return {"counts": (self.counted, quantiles.CELLS), **last}

    def takes(self, exchange: int) -> Shapes:
        """What is sent for it."""
        if exchange < PASSES:
            return {"turn": (2,), "unit": (1,), "edges": (self.counted, quantiles.CELLS - 1)}
        edges = (self.columns, self.options.bins - 1)
        return {"turn": (2,), "unit": (1,), "edges": edges, "forest": (self.forest.layout.size,)}


# --- where boosting begins --------------------------------------------------------------------------------------------


def _outcome(rows: Rows, task: Task, outputs: int, unit: float) -> Vector:
    """(1 + outputs,) the weight of the rows, then their weighted targets, or the weight of each class; on the grid."""
    weight = np.ones(len(rows.y)) if rows.weight is None else rows.weight
    if task == "multiclass":
        told = np.bincount(rows.y.astype(np.intp), rounded(weight), outputs)
    else:
        told = np.array([rounded(weight * rounded(rows.y / unit)).sum()])
    return np.concatenate([[rounded(weight).sum()], told])


def _base(outcome: Vector, task: Task, unit: float) -> Array:
    """(k,) the score that fits best without any tree: the mean, its log-odds, or the logarithm of each class's share."""
    weight, told = float(outcome[0]), outcome[1:]
    if not 0 < weight <= HEAVIEST:
        raise NoFit(
            f"expected patients of a weight of at most {HEAVIEST:g} in all, found more: divide the case weights"
        )
    if task == "regression":
        return unit * told / weight
    share = told / weight
    absent = (share <= 0) | (share >= 1)
    if absent.any():
        raise NoFit(
            "expected patients of every outcome, found one that nobody or everybody has: there is nothing to learn"
        )
    return np.log(share / (1 - share)) if task == "binary" else np.log(share)


# --- what the totals of a level say -----------------------------------------------------------------------------------


def deeper(
    options: Boosting, forest: Forest, theta: Vector, turn: int, level: int, edges: Array, sums: Array
) -> tuple[Vector, bool]:
    """The forest with one more level of splits, and whether there is any.

    Of splits that gain the same the one by the first column is taken, and of its bins the lowest.

    Args:
        theta: (size,) the forest so far.
        edges: (columns, bins - 1) of bins.
        sums: (k 2^level, columns, bins, 3) gradients, Hessians and rows, over all sites.
    """
    after = theta.copy()
    parts, first, some = forest.layout.split(after), 2**level - 1, False
    for output, of_bins in enumerate(np.split(sums, forest.outputs)):
        column, threshold, value = (parts[name][turn, output] for name in ("column", "threshold", "value"))
        gain, place, left, whole = best(options, of_bins)
        if not level:
            value[0] = _leaf(options, whole)[0]
        at = np.flatnonzero(gain > 0)
        node, (of, cell) = first + at, np.unravel_index(place[at], edges.shape)
        column[node], threshold[node] = of, edges[of, cell]
        value[2 * node + 1], value[2 * node + 2] = _leaf(options, left[at]), _leaf(options, whole[at] - left[at])
        some = some or bool(len(at))
    return after, some


def best(options: Boosting, sums: Array) -> tuple[Vector, NDArray[np.intp], Array, Array]:
    """The best split of each node: Chen and Guestrin (2016), eq. 7.

    Args:
        sums: (nodes, columns, bins, 3) gradients, Hessians and rows.

    Returns:
        Its gain (nodes,), -inf where none is allowed; its place (nodes,) among (columns, bins - 1); the sums (nodes, 3) of the rows that
        go left, and of all rows.
    """
    left = np.cumsum(sums, axis=2)[:, :, :-1]
    whole = sums[:, 0].sum(axis=1)
    g, h, n = np.moveaxis(left, -1, 0)
    of_all, of_weight, of_rows = (whole[:, i, None, None] for i in range(3))
    rest, weight, rows = of_all - g, of_weight - h, of_rows - n
    allowed = (np.minimum(n, rows) >= options.min_rows) & (np.minimum(h, weight) >= options.min_weight)
    with np.errstate(divide="ignore", invalid="ignore"):  # of nodes and bins without rows, which are not allowed
        gain = (
            g * g / (h + options.l2) + rest * rest / (weight + options.l2) - of_all * of_all / (of_weight + options.l2)
        )
    gain = np.where(allowed, gain / 2 - options.gamma, -np.inf).reshape(len(sums), -1)
    place, node = gain.argmax(axis=1), np.arange(len(sums))
    return gain[node, place], place, left.reshape(len(sums), -1, 3)[node, place], whole


def _leaf(options: Boosting, sums: Array) -> Vector:
    """(leaves,) what rows with these sums (leaves, 3) add to their scores: eq. 5, times the rate."""
    return -options.rate * sums[:, 0] / (sums[:, 1] + options.l2)
