"""Public bins of columns by counts over all sites: a grid that fits any scale, made finer where rows are, then few bins of many rows.

    grid() -> counts -> finer(grid, counts) -> counts -> ... -> bins(grid, counts)

Cell j of edges e holds the rows with e[j-1] < x <= e[j]; edges ascend, and the places left over hold the largest float64, since messages
carry nothing infinite. All follows from the totals alone, so how the rows are spread over sites changes no bit.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.params import Array, Vector

CELLS = 1024  # of a column in one exchange
BEYOND = float(np.finfo(np.float64).max)  # an edge that nothing is beyond
SMALLEST, LARGEST = 1e-6, 1e12  # what is nearer to 0 is one cell of a grid, and so is what is beyond on either side


def grid(columns: int) -> Array:
    """(columns, CELLS - 1) edges to begin with: a cell is 8 % of the number it is about."""
    side = np.geomspace(SMALLEST, LARGEST, (CELLS - 1) // 2)
    return np.tile(_padded(np.concatenate([-side[::-1], side]), CELLS - 1), (columns, 1))


def codes(X: Array, edges: Array) -> NDArray[np.uint16]:
    """(n, columns) the cell of each number of X (n, columns)."""
    found = np.empty(X.shape, np.uint16)
    for column, ends in enumerate(edges):
        found[:, column] = np.searchsorted(ends, np.ascontiguousarray(X[:, column]), side="left")
    return found


def counts(X: Array, edges: Array) -> Array:
    """(columns, CELLS) rows of each cell, of X (n, columns) and edges (columns, CELLS - 1)."""
    found = np.empty((len(edges), edges.shape[1] + 1))
    for column, ends in enumerate(edges):  # sorting first is six times as fast as looking each number up
        until = np.asarray(np.searchsorted(np.sort(X[:, column]), ends, side="right"), np.float64)
        found[column] = np.diff(np.concatenate([[0.0], until, [float(len(X))]]))
    return found


def finer(edges: Array, counts: Array) -> Array:
    """(columns, CELLS - 1) edges, as many as before: of cells that hold rows, and more within one the more `counts` (columns, CELLS) it has."""
    return np.stack([_finer(*column) for column in zip(edges, counts, strict=True)])


def bins(edges: Array, counts: Array, most: int, fewest: float) -> Array:
    """(columns, most - 1) edges of at most so many bins of about as many rows each, and of `fewest` rows or more.

    A column of few values has a bin for each. An edge lies in the middle of the gap between the rows on its sides.

    Args:
        edges, counts: (columns, CELLS - 1) and (columns, CELLS).
    """
    return np.stack([_bins(*column, most, fewest) for column in zip(edges, counts, strict=True)])


def span(edges: Vector, counts: Vector) -> tuple[float, float]:
    """Between which edges (CELLS - 1,) the rows (CELLS,) of a column are; ±BEYOND where they are beyond the grid."""
    held = np.flatnonzero(counts)
    first, last = int(held[0]), int(held[-1])
    return float(edges[first - 1]) if first else -BEYOND, float(edges[last]) if last < len(edges) else BEYOND


def _finer(edges: Vector, counts: Vector) -> Vector:
    held = np.flatnonzero(counts)
    low = np.concatenate([[-BEYOND], edges])[held]
    high = np.concatenate([edges, [BEYOND]])[held]
    kept = np.unique(np.concatenate([low, high]))
    kept = kept[np.abs(kept) < BEYOND]
    spare, total = len(edges) - len(kept), counts.sum()
    inner: list[Array] = [kept]
    for start, stop, rows in zip(low, high, counts[held], strict=True):
        more = int(spare * rows // total)
        if more and max(-start, stop) < BEYOND:
            inner.append(start + (stop - start) * np.arange(1, more + 1) / (more + 1))
    return _padded(np.unique(np.concatenate(inner)), len(edges))


def _bins(edges: Vector, counts: Vector, most: int, fewest: float) -> Vector:
    held = np.flatnonzero(counts).tolist()
    left, kept, rows = float(counts.sum()), list[float](), 0.0
    each_its_own = len(held) <= most
    for cell, after in pairwise(held):
        rows += counts[cell]
        wanted = fewest if each_its_own else max(fewest, left / (most - len(kept)))
        if rows >= wanted and left - rows >= fewest and len(kept) < most - 1:
            kept.append(float(edges[cell] + edges[after - 1]) / 2)
            left, rows = left - rows, 0.0
    return _padded(np.array(kept), most - 1)


def _padded(edges: Array, size: int) -> Vector:
    return np.concatenate([edges, np.full(size - len(edges), BEYOND)])
