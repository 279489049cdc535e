"""Small counts stay at the site: the one place where a reply's sums are thinned before they leave. No paper: rules of our own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.algorithm import Sums
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.params import Array, Vector

EXPLAINED = ("shuffled", "dependence", "attribution", "attributed")  # what explains a model, beside its subgroups
HISTOGRAM = ".histogram"
MERGED = -1.0  # in a histogram: this cell's rows are counted with those of the cell before


def withhold(
    sums: Sums, minimum: int, scores: bool = True, fine: bool = True, alone: bool = True, by_time: bool = False
) -> Sums:
    """The sums without what is about fewer than `minimum` patients, each of its shape.

    Args:
        scores: whether scores of a model at this site may leave; if not, they leave as of no rows.
        fine: whether score histograms, and sums by bin or by interval of time, may leave cell by cell; if not, small cells of histograms leave
            together (see `merge_scores`), and the others not at all.
        by_time: whether a histogram's problems are intervals of time.
        alone: whether the sums leave as they are; if not, they are hidden among those of other sites.

    Raises:
        UpdateRejected: the sums are about groups of patients (`groups` counts each), and one of them has 1 to `minimum` - 1: a sum over so
            few would tell of each, and without it the fit would be another one. So with sums by bin (trees) or by interval (survival), unless
            `fine`. Not raised where the sums are hidden.

    Guarantees:
        * a feature that fewer than `minimum` patients have a value of leaves as if none had (its sum would be theirs);
        * a level that fewer than `minimum` patients have leaves as 0;
        * scores of fewer than `minimum` validation rows, and their histogram, leave as of no rows;
        * so do scores of a model of the site's own (`personal`), and its histogram is thinned as the other is;
        * so does all else that explains a model (`explain`);
        * a subgroup of 1 to `minimum` - 1 validation rows leaves as of none, and with it the next smallest ones until those left out hold
          `minimum` rows or more together: what is left out cannot be had by subtracting the others from all (see `few_of`);
        * Shapley values of a category leave as of none where fewer than `minimum` validation rows have one of its levels: they may tell how many;
        * histograms of subgroups leave none at all unless `fine`: subtracted from that of all they could tell of few;
        * differences to the champion of fewer than `minimum` validation rows leave as of no rows; those that are noised where their noised
          count is below it, and where they get their noise later, under masks, only where no scores may leave: the true count must decide nothing;
        * a cell of a profile that fewer than `minimum` patients are in leaves together with its neighbours (see `merge_cells`).

    Updates and their training loss are not thinned: a site below its minimum cohort sends none at all.
    """
    thinned: dict[str, Array] = dict(sums)
    if alone and "groups" in sums and ((sums["groups"] > 0) & (sums["groups"] < minimum)).any():
        raise UpdateRejected(
            f"a group of its patients that it would send sums of is below the site's minimum of {minimum}: merge groups, or mask the sums"
        )
    if alone and not fine and any(((cells > 0) & (cells < minimum)).any() for cells in _cells(sums, by_time)):
        raise UpdateRejected(
            f"it would send sums of fewer than {minimum} of its patients, by bin or by interval of time: mask the sums (privacy.protect), or"
            " let the study have a coarser grid"
        )
    if "observed" in sums:
        few = sums["observed"] < minimum
        thinned["observed"], thinned["sum"] = np.where(few, 0.0, sums["observed"]), np.where(few, 0.0, sums["sum"])
        thinned["levels"] = np.where(sums["levels"] < minimum, 0.0, sums["levels"])
    groups = [name for name in sums if name.startswith("subgroup.") and not name.endswith(HISTOGRAM)]
    for name in groups:
        few, of = few_of(sums[name][:, 0], minimum), f"{name}{HISTOGRAM}"
        thinned[name] = np.where(few[:, None], 0.0, sums[name])
        thinned[of] = np.where(few.reshape(-1, 1, 1, 1) if fine else True, 0.0, sums[of])
    if "attributed" in sums:
        enough = sums["attributed"] >= minimum
        thinned["attribution"] = sums["attribution"] * enough[:, None, None]
        thinned["attributed"] = sums["scores"][0] * enough
    explained = [*EXPLAINED, *groups, *(f"{name}{HISTOGRAM}" for name in groups)]
    for about, names in (
        ("scores", ("scores", "histogram", *(name for name in explained if name in sums))),
        ("personal", ("personal", "personal.histogram")),
        ("paired", ("paired",)),
        *([("compared", ("compared",))] if alone or not scores else []),
    ):
        if about in sums and (sums[about][0] < minimum or not scores):
            thinned |= {name: np.zeros_like(sums[name]) for name in names}
    for name in [name for name in ("histogram", "personal.histogram") if name in thinned and not fine]:
        thinned[name] = whole_or_not(thinned[name], minimum) if by_time else merge_scores(thinned[name], minimum)
    for name in [name for name in sums if name.startswith("cells.")]:
        thinned[name] = merge_cells(sums[name], minimum)
    return thinned


def few_of(counts: Vector, minimum: int) -> NDArray[np.bool_]:
    """(groups,) which groups of one parting stay out: those of few patients, and as many of the next smallest as hide them.

    >>> few_of(np.array([40.0, 4.0, 12.0, 0.0]), 10).tolist(), few_of(np.array([6.0, 40.0, 7.0]), 10).tolist()
    ([False, True, True, False], [True, False, True])
    """
    few = (counts > 0) & (counts < minimum)
    for at in np.argsort(counts, kind="stable"):
        if not 0 < float(counts[few].sum()) < minimum:
            break
        few[at] = counts[at] > 0
    return few


def _cells(sums: Sums, by_time: bool) -> list[Array]:
    """How many patients each sum of a finely cut reply is of: by interval who was last seen in it, by bin of a column who is in it."""
    found = [sums["branches"][..., 2]] if "branches" in sums else []
    if "counts" in sums and sums["counts"].ndim == 2:
        found.append(sums["counts"].sum(0) if by_time else sums["counts"])
    return found


def whole_or_not(histogram: Array, minimum: int) -> Array:
    """A histogram (intervals, 2, bins) by intervals of time, or none of it where some cell has 1 to `minimum` - 1 rows.

    Merging bins differently in each interval would reorder patients of different intervals, by more than the bound beside a concordance.

    >>> whole_or_not(np.array([[[0.0, 12.0], [10.0, 0.0]]]), 10).tolist(), whole_or_not(np.array([[[0.0, 9.0], [10.0, 0.0]]]), 10).tolist()
    ([[[0.0, 12.0], [10.0, 0.0]]], [[[0.0, 0.0], [0.0, 0.0]]])
    """
    return np.zeros_like(histogram) if ((histogram > 0) & (histogram < minimum)).any() else histogram


def merge_scores(histogram: Array, minimum: int) -> Array:
    """A score histogram in which neighbouring bins are counted together until each outcome has no row there, or `minimum` and more.

    Args:
        histogram: (problems, 2, bins) rows of outcome 0 and 1 by predicted probability.

    Returns:
        The same shape. A group's rows stand in the bin of their mean prediction, so what is expected in all stays right to half a bin,
        and the area under the curve counts pairs of one group as halves: its error bound grows by itself. A problem with 1 to
        `minimum` - 1 rows of an outcome in all leaves as of no rows.

    >>> merge_scores(np.array([[[8.0, 4.0, 0.0, 1.0], [0.0, 0.0, 12.0, 11.0]]]), 10).tolist()
    [[[0.0, 0.0, 13.0, 0.0], [0.0, 0.0, 23.0, 0.0]]]
    >>> merge_scores(np.array([[[30.0, 10.0, 0.0, 0.0], [0.0, 4.0, 12.0, 11.0]]]), 10).tolist()
    [[[30.0, 10.0, 0.0, 0.0], [0.0, 16.0, 0.0, 11.0]]]
    """
    return np.stack([_merged_scores(one, minimum) for one in histogram]) if len(histogram) else histogram


def _merged_scores(one: Array, minimum: int) -> Array:
    groups: list[tuple[int, int]] = []  # bins [first, end)
    first, bins = 0, one.shape[1]
    for end in range(1, bins + 1):
        if _sound(one[:, first:end], minimum):
            groups.append((first, end))
            first = end
    if first < bins:  # what is left over goes with the last groups, as many as it takes
        while groups and not _sound(one[:, first:], minimum):
            first = groups.pop()[0]
        groups.append((first, bins))
    merged = np.zeros_like(one)
    for start, end in groups:
        rows = one[:, start:end].sum(1)
        if rows.sum() and _sound(one[:, start:end], minimum):
            merged[:, round(float(one[:, start:end].sum(0) @ np.arange(start, end) / rows.sum()))] += rows
    return merged


def _sound(cells: Array, minimum: int) -> bool:
    rows = cells.sum(1)
    return bool(((rows == 0) | (rows >= minimum)).all())


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
