"""A forest of boosted trees as one vector of fixed size, and what it predicts.

Every tree is a full binary tree of the stated depth: the children of node i are 2i + 1 and 2i + 2, and a row goes left if its number in the
node's column is at most the threshold. A leaf has the column -1; a tree that is not grown yet is a leaf at its root that adds nothing.

    score = base + the value of the row's leaf in each tree, in their order

Source: Hastie, Tibshirani and Friedman (2009), The Elements of Statistical Learning, eq. 10.25 to 10.28.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.models.family import (
    Family,
    Task,
    binary_log_losses,
    class_log_losses,
    softmax,
    squared_errors,
)
from fedrounds.core.params import Array, Layout, Vector

Places = NDArray[np.intp]


@dataclass(frozen=True)
class Forest:
    """How large a forest is, and the functions that read its vector.

    Attributes:
        most: Turns of boosting at most.
        outputs: Scores k, each with a tree a turn: one, or one a class.
        depth: Levels of splits.
    """

    most: int
    outputs: int
    depth: int

    @cached_property
    def layout(self) -> Layout:
        """Parts: `base` (k,), `column` and `threshold` (most, k, 2^depth - 1), `value` (most, k, 2^(depth + 1) - 1)."""
        trees, inner = (self.most, self.outputs), 2**self.depth - 1
        shapes = {"base": (self.outputs,), "column": (*trees, inner), "threshold": (*trees, inner)}
        return Layout(shapes | {"value": (*trees, 2 * inner + 1)})

    def empty(self) -> Vector:
        """A forest without trees, (size,) of the layout."""
        theta = np.zeros(self.layout.size)
        self.layout.split(theta)["column"][:] = -1.0
        return theta

    def grown(self, theta: Vector) -> int:
        """How many turns of theta (size,) have trees: each has a split in one of its k at least."""
        bare = (self.layout.split(theta)["column"][:, :, 0] < 0).all(axis=1)
        return int(np.argmax(bare)) if bare.any() else self.most

    def until(self, theta: Vector, turn: int, level: int) -> Vector:
        """The forest (size,) as it was when a turn had so many levels of splits: the later ones erased."""
        earlier = theta.copy()
        parts, inner = self.layout.split(earlier), 2**level - 1
        for name, blank, kept in (("column", -1.0, inner), ("threshold", 0.0, inner), ("value", 0.0, 2 * inner + 1)):
            parts[name][turn, :, kept if level or name != "value" else 0 :] = blank
            parts[name][turn + 1 :] = blank
        return earlier

    def moved(self, theta: Vector, turn: int, output: int, X: Array, node: Places) -> Places:
        """(n,) where rows X (n, columns) at `node` (n,) of a tree are one level further down; those in a leaf stay."""
        parts, leaves = self.layout.split(theta), np.full(2**self.depth, -1.0)
        column = np.concatenate([parts["column"][turn, output], leaves])[node].astype(np.intp)
        threshold = np.concatenate([parts["threshold"][turn, output], leaves])[node]
        cell = X.reshape(-1)[np.arange(0, X.size, X.shape[1]) + np.maximum(column, 0)]
        return np.where(column < 0, node, 2 * node + 1 + (cell > threshold))

    def node(self, theta: Vector, turn: int, output: int, X: Array, level: int) -> Places:
        """(n,) where rows X (n, columns) are in a tree after so many levels."""
        node = np.zeros(len(X), np.intp)
        for _ in range(level):
            node = self.moved(theta, turn, output, X, node)
        return node

    def scores(self, theta: Vector, X: Array, turns: int) -> Array:
        """(n, k) the sum of the first `turns` trees of each output, of rows X (n, columns)."""
        parts = self.layout.split(theta)
        scores = np.tile(parts["base"], (len(X), 1))
        for turn in range(turns):
            for output in range(self.outputs):
                leaf = self.node(theta, turn, output, X, self.depth)
                scores[:, output] += parts["value"][turn, output][leaf]
        return scores


def linked(task: Task, scores: Array) -> Array:
    """What scores (n, k) predict: the mean (n,), the probability of class 1 (n,), or of every class (n, k)."""
    if task == "multiclass":
        return softmax(scores)
    if task == "regression":
        return scores[:, 0]
    from scipy.special import expit  # here, because `fedrounds --help` must not load scipy

    return expit(scores[:, 0])


def forest_family(forest: Forest, features: int, task: Task) -> Family:
    """The functions of a forest over so many columns; a last column of ones is not looked at."""
    losses = {"regression": squared_errors, "binary": binary_log_losses, "multiclass": class_log_losses}[task]

    def init(_rng: np.random.Generator) -> Vector:
        return forest.empty()

    def predict(theta: Vector, X: Array) -> Array:
        return linked(task, forest.scores(theta, X, forest.grown(theta)))

    def estimator(theta: Vector) -> Any:
        return _estimator(forest, features, task, theta)

    return Family(forest.layout, np.zeros(forest.layout.size), init, None, predict, losses, estimator)


def _estimator(forest: Forest, features: int, task: Task, theta: Vector) -> Any:
    """scikit-learn's own histogram boosting with these trees in it: its trees compare float64, so none falls to another side."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind: Any = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    fitted: Any = kind(max_iter=1, max_depth=1, min_samples_leaf=1, early_stopping=False)
    labels = max(forest.outputs, 2)
    fitted.fit(np.repeat(np.arange(float(labels)), 2)[:, None] * np.ones(features), np.repeat(np.arange(labels), 2))
    parts, turns = forest.layout.split(theta), forest.grown(theta)
    one: Any = fitted._predictors[0][0]
    make: Any = one.__class__
    dtype, bits = one.nodes.dtype, one.raw_left_cat_bitsets[:0]
    column, threshold, value = (parts[name] for name in ("column", "threshold", "value"))
    fitted._predictors = [
        [
            make(_nodes(column[turn, k], threshold[turn, k], value[turn, k], features, dtype), bits, bits)
            for k in range(forest.outputs)
        ]
        for turn in range(turns)
    ]
    fitted._baseline_prediction = parts["base"].copy()[None]
    fitted.max_iter, fitted.max_depth = max(turns, 1), forest.depth
    return fitted


def _nodes(column: Vector, threshold: Vector, value: Vector, features: int, dtype: Any) -> Any:
    """A tree as scikit-learn keeps it: the nodes that there are, parents first."""
    order, places = [0], {0: 0}
    for node in order:  # grows as it is walked
        if node < len(column) and column[node] >= 0:
            for child in (2 * node + 1, 2 * node + 2):
                places[child] = len(order)
                order.append(child)
    nodes = np.zeros(len(order), dtype)
    for place, node in enumerate(order):
        made = nodes[place]
        made["value"], made["depth"] = value[node], int(np.log2(node + 1))
        made["is_leaf"] = 2 * node + 1 not in places
        if not made["is_leaf"]:
            made["feature_idx"], made["num_threshold"] = min(int(column[node]), features - 1), threshold[node]
            made["left"], made["right"] = places[2 * node + 1], places[2 * node + 2]
    return nodes
