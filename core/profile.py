"""A site's profile: how many training rows fall into each cell of each feature and of the label. Counts only, thinned before they leave.

Cells come from what is public and frozen in a lineage, so that profiles of any two days and any two sites can be laid side by side:

    a number with a `range`      below it, ten equal cells, above it, missing
    a number without             ten cells that end at the deciles of a normal curve with round 0's agreed mean and deviation, missing
    … that is not standardised   (then nothing was agreed) and a target that is a number: ISO 3's preferred numbers of ten steps a decade
    a category                   a cell a level, other values, missing
    a label                      a cell a class; of survival: censored, event

What few patients are in leaves merged with its neighbours (`privacy.disclosure.merge_cells`), marked by MERGED.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.algorithm import Algorithm, Folded, Payload, SiteState, Sums
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.params import Array, Vector
from fedrounds.core.preprocess import Cohort, columns_of, standardised
from fedrounds.core.privacy.disclosure import MERGED
from fedrounds.core.state import RunState
from fedrounds.core.study import Category, Multiclass, NoTarget, Regression, Study, Survival

LABEL = "cells.label"
DECILES = np.array([NormalDist().inv_cdf(step / 10) for step in range(1, 10)])
STEPS = np.array([1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0])  # ISO 3:1973, R10
POSITIVE = np.concatenate([*(STEPS * 10.0**power for power in range(-3, 6)), [1e6]])
PREFERRED = np.concatenate([-POSITIVE[::-1], POSITIVE])


def profiling(study: Study) -> Algorithm:
    """Ask every site for its profile; the state does not change."""
    width = sum(len(columns_of(feature)) for feature in study.features)
    any_ends = edges(study, {"center": np.zeros(width), "scale": np.ones(width)})  # as many as there will be
    cells = {_key(j): len(ends) + 2 for j, ends in enumerate(any_ends)}
    cells |= {} if isinstance(study.target, NoTarget) else {LABEL: _label_cells(study)}

    def ask(state: RunState) -> Payload:
        return state.statistics

    def answer(payload: Payload, memory: SiteState, data: Cohort, rng: np.random.Generator) -> tuple[SiteState, Sums]:
        del rng
        training = ~data.valid
        sums = {LABEL: _counts(_classes(data.y[training], study), cells[LABEL])} if LABEL in cells else {}
        for j, ends in enumerate(edges(study, payload)):
            values = data.values[training, j]
            cell = np.where(np.isnan(values), len(ends) + 1, np.searchsorted(ends, values, side="right"))
            sums[_key(j)] = _counts(cell, cells[_key(j)])
        return memory, sums

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        return Folded(state, profiles={site: _whole(site, sums) for site, sums in replies})

    def shapes(exchange: int) -> dict[str, tuple[int, ...]]:
        del exchange
        return {name: (count,) for name, count in cells.items()}

    def takes(exchange: int) -> dict[str, tuple[int, ...]]:
        del exchange
        return {"impute": (len(study.features),), "center": (width,), "scale": (width,)}

    return Algorithm(ask, answer, fold, shapes, takes)


def names_of(study: Study) -> dict[str, str]:
    """Array of a profile -> the column that it is about, the label's last where there is one."""
    label = {} if isinstance(study.target, NoTarget) else {LABEL: study.target.column}
    return {_key(j): feature.name for j, feature in enumerate(study.features)} | label


def edges(study: Study, statistics: Mapping[str, Array]) -> list[Vector]:
    """For each feature (cells - 2,), where its cells begin, but for the first one: a value on an edge is in the cell above it.

    Args:
        statistics: round 0's; only numbers without a range need them.
    """
    found: list[Vector] = []
    agreed, column = standardised(study), 0
    for feature in study.features:
        if isinstance(feature, Category):
            ends = np.arange(1.0, len(feature.categories) + 1)
        elif feature.range:
            low, high = feature.range
            ends = np.append(np.linspace(low, high, 11)[:-1], np.nextafter(high, np.inf))  # a range includes its ends
        elif agreed[column]:
            ends = statistics["center"][column] + statistics["scale"][column] * DECILES
        else:
            ends = PREFERRED
        found.append(ends)
        column += len(columns_of(feature))
    return found


def _key(j: int) -> str:
    return f"cells.{j}"


def _label_cells(study: Study) -> int:
    match study.target:
        case Regression():
            return len(PREFERRED) + 1
        case Multiclass(classes=classes):
            return len(classes)
        case _:
            return 2


def _classes(y: Array, study: Study) -> NDArray[np.intp]:
    if isinstance(study.target, Regression):
        return np.searchsorted(PREFERRED, y, side="right")
    return (y > 0).astype(np.intp) if isinstance(study.target, Survival) else y.astype(np.intp)


def _counts(cell: NDArray[np.intp], cells: int) -> Vector:
    return np.bincount(cell, minlength=cells).astype(np.float64)


def _whole(site: str, sums: Sums) -> Sums:
    """The profile as it came. Raises UpdateRejected unless it is whole counts, and of the same rows in every histogram."""
    totals = {float(np.maximum(counts, 0.0).sum()) for counts in sums.values()}
    right = (
        bool(counts[0] >= 0) and bool(np.all((counts == np.floor(counts)) & (counts >= MERGED)))
        for counts in sums.values()
    )
    if not all(right) or len(totals) != 1:
        raise UpdateRejected(
            f"expected counts of the same rows in every histogram of site '{site}', found others: the profile was refused"
        )
    return sums
