"""What each feature adds to a patient's score, compared with the study's reference patient: exact Shapley values of the features.

The reference patient is public: every standardised column at its agreed mean, every other feature at the value that missing ones get (a
number's agreed mean, a category's most frequent level). A coalition S of features has the score of a patient whose features in S are their
own and whose others are the reference's; the values of all features add up to score(patient) - score(reference). The columns of one
category are one feature. Scores are those that the link is applied to: log-odds, a log rate, a log hazard, the mean of a linear model.

Sources: Lundberg and Lee (2017), arXiv:1705.07874, of linear models corollary 1; Lundberg et al. (2020), doi:10.1038/s42256-019-0138-9,
algorithm 3 (interventional) of trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import factorial, prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.models.boosting import Boosting
from fedrounds.core.models.family import Family
from fedrounds.core.models.trees import Forest
from fedrounds.core.params import Array, Vector
from fedrounds.core.preprocess import Statistics, columns_of, spread, standardised

if TYPE_CHECKING:
    from fedrounds.core.study import Study

Attribute = Callable[[Vector, Array, Vector], Array]  # (theta, X, reference) -> (n, features, k)


def blocks(study: Study) -> list[slice]:
    """The columns of the design matrix that each feature becomes."""
    found: list[slice] = []
    for feature in study.features:
        start = found[-1].stop if found else 0
        found.append(slice(start, start + len(columns_of(feature))))
    return found


def reference(study: Study, statistics: Statistics) -> Vector:
    """(width,) the encoded columns of the reference patient."""
    row = spread(statistics["impute"][None], study, statistics["impute"])[0]
    return np.where(standardised(study), 0.0, (row - statistics["center"]) / statistics["scale"])


def attributing(study: Study, family: Family, classes: int) -> tuple[Attribute, int] | None:
    """How the model's scores are shared out, and how many scores k it has; None for a model that is neither linear nor a forest."""
    parts = blocks(study)
    if isinstance(study.model, Boosting):
        forest = study.model.forest(classes, study.target.kind)
        owner = np.repeat(np.arange(len(parts)), [part.stop - part.start for part in parts])
        return (lambda theta, X, at: of_trees(forest, theta, X, at, owner)), forest.outputs
    if "coef" not in family.layout.shapes:
        return None
    width = parts[-1].stop

    def linear(theta: Vector, X: Array, at: Vector) -> Array:
        coef = family.layout.split(theta)["coef"].reshape(width, -1)
        away = X[:, :width] - at
        return np.stack([away[:, part] @ coef[part] for part in parts], axis=1)

    return linear, prod(family.layout.shapes["coef"]) // width


def of_trees(forest: Forest, theta: Vector, X: Array, at: Vector, owner: NDArray[np.intp]) -> Array:
    """(n, features, k) of a forest.

    A leaf is reached by the coalitions that hold all features U by which only the patient goes there, and none of V by which only the
    reference does: of such a game a feature of U gets (u - 1)! v! / (u + v)! of the leaf's value, one of V the negative of
    u! (v - 1)! / (u + v)!.

    Args:
        X: (n, width), or more columns, which are not looked at.
        at: (width,) the reference patient's columns.
        owner: (width,) the feature that each column belongs to.
    """
    found = np.zeros((len(X), int(owner[-1]) + 1, forest.outputs))
    parts = forest.layout.split(theta)
    gains, losses = _weights(forest.depth)
    for turn in range(forest.grown(theta)):
        for output in range(forest.outputs):
            column, threshold, value = (parts[name][turn, output] for name in ("column", "threshold", "value"))
            for leaf, path in _leaves(column, threshold):
                if not path:
                    continue
                own: dict[int, NDArray[np.bool_]] = {}
                theirs: dict[int, bool] = {}
                for of, cut, right in path:
                    feature = int(owner[of])
                    own[feature] = own.get(feature, np.ones(len(X), bool)) & ((X[:, of] > cut) == right)
                    theirs[feature] = theirs.get(feature, True) and (bool(at[of] > cut) == right)
                _add(found[:, :, output], own, theirs, float(value[leaf]), gains, losses)
    return found


def _add(
    found: Array,
    own: dict[int, NDArray[np.bool_]],
    theirs: dict[int, bool],
    value: float,
    gains: Array,
    losses: Array,
) -> None:
    """A leaf's share of each feature on its path."""
    u = sum(not there for there in theirs.values())
    reached = np.ones(len(found), bool)
    v = np.zeros(len(found), np.intp)
    for feature, there in theirs.items():
        if there:
            v += ~own[feature]
        else:
            reached &= own[feature]
    for feature, there in theirs.items():
        if there:
            found[:, feature] -= value * np.where(reached & ~own[feature], losses[u, v], 0.0)
        else:
            found[:, feature] += value * np.where(reached, gains[u, v], 0.0)


def _weights(depth: int) -> tuple[Array, Array]:
    """(depth + 1, depth + 1) what a feature of U gains, and one of V loses, by u and v."""
    gains, losses = np.zeros((depth + 1, depth + 1)), np.zeros((depth + 1, depth + 1))
    for u in range(depth + 1):
        for v in range(depth + 1):
            if u:
                gains[u, v] = factorial(u - 1) * factorial(v) / factorial(u + v)
            if v:
                losses[u, v] = factorial(u) * factorial(v - 1) / factorial(u + v)
    return gains, losses


def _leaves(column: Vector, threshold: Vector) -> Iterator[tuple[int, list[tuple[int, float, bool]]]]:
    """Each leaf of a tree, and the splits on its way: column, threshold, whether it goes right."""
    open_: list[tuple[int, list[tuple[int, float, bool]]]] = [(0, [])]
    while open_:
        node, path = open_.pop()
        if node >= len(column) or column[node] < 0:
            yield node, path
            continue
        split = int(column[node]), float(threshold[node])
        open_ += [(2 * node + 1 + right, [*path, (*split, bool(right))]) for right in (0, 1)]
