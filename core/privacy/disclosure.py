"""Small counts stay at the site: the one place where a reply's sums are thinned before they leave."""

from __future__ import annotations

import numpy as np

from fedrounds.core.algorithm import Sums
from fedrounds.core.params import Array, Vector

MERGED = -1.0  # in a histogram: this cell's rows are counted with those of the cell before


def withhold(sums: Sums, minimum: int, scores: bool = True) -> Sums:
    """The sums without what is about fewer than `minimum` patients.

    Args:
        scores: whether scores of a model at this site may leave; if not, they leave as of no rows.

    Guarantees:
        * a feature that fewer than `minimum` patients have a value of leaves as if none had (its sum would be theirs);
        * a level that fewer than `minimum` patients have leaves as 0;
        * scores of fewer than `minimum` validation rows, and their histogram, leave as of no rows;
        * differences to the champion of fewer than `minimum` validation rows leave as of no rows;
        * a cell of a profile that fewer than `minimum` patients are in leaves together with its neighbours (see `merge_cells`).

    Updates and their training loss are not thinned: a site below its minimum cohort sends none at all.
    """
    thinned: dict[str, Array] = dict(sums)
    if "observed" in sums:
        few = sums["observed"] < minimum
        thinned["observed"], thinned["sum"] = np.where(few, 0.0, sums["observed"]), np.where(few, 0.0, sums["sum"])
        thinned["levels"] = np.where(sums["levels"] < minimum, 0.0, sums["levels"])
    for about, names in (("scores", ("scores", "histogram")), ("paired", ("paired",))):
        if about in sums and (sums[about][0] < minimum or not scores):
            thinned |= {name: np.zeros_like(sums[name]) for name in names}
    for name in [name for name in sums if name.startswith("cells.")]:
        thinned[name] = merge_cells(sums[name], minimum)
    return thinned


def merge_cells(counts: Vector, minimum: int) -> Vector:
    """A histogram whose small cells are counted together with the cells after them, until there are `minimum` rows.

    Args:
        counts: (cells,) whole numbers, `minimum` or more in all.

    Returns:
        (cells,) the rows of each group in its first cell, and MERGED in its others. The last group takes what is left over.

    Guarantees:
        * a count of 1 to `minimum` - 1 never leaves, nor any sum of fewer rows: a group has 0 rows or at least `minimum`;
        * from a minimum of 3 on, no count within a group can be worked out from the histogram that leaves (a test tries every small one);
        * the sum stays what it was. The rows of a site are known from training anyway: there is no total to subtract from.

    Not protected: that a cell is empty; counts of `minimum` and more, which are exact, so that two profiles of a growing table differ by
    the patients who came; what is told elsewhere and can be subtracted (round 0 tells how many rows have a value of a feature).

    >>> merge_cells(np.array([0.0, 40.0, 3.0, 0.0, 12.0, 30.0, 4.0]), 10).tolist()
    [0.0, 40.0, 15.0, -1.0, -1.0, 34.0, -1.0]
    """
    merged = counts.copy()
    first, last, rows = -1, 0, 0.0  # of the open group, -1: there is none; where the last closed one begins
    for j, count in enumerate(counts.tolist()):
        if first < 0 and count == 0:
            continue
        if first < 0:
            first, rows = j, 0.0
        rows += count
        merged[j] = MERGED
        if rows >= minimum:
            merged[first], first, last = rows, -1, first
    if first >= 0:
        before, end = max(merged[last], 0.0), int(np.flatnonzero(counts)[-1]) + 1
        merged[last:end], merged[end:] = MERGED, 0.0
        merged[last] = before + rows
    return merged
