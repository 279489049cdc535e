"""Calibration by groups of patients large enough to be shown, and how sure one can be of a share or an area."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fedrounds.core.params import Array
from fedrounds.reports.words import SMALLEST

NORMAL_95 = 1.959964


class Group(NamedTuple):
    """Patients of neighbouring predicted risks: their mean risk, the share that had the outcome, and how many they are."""

    predicted: float
    observed: float
    rows: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the observed share."""
        return wilson(self.observed, self.rows)


def groups(histogram: Array, most: int = 10) -> list[Group]:
    """Up to `most` groups of equal width in risk; neighbours are joined where one would show too few patients.

    Guarantees:
        * no group has 1 to 9 patients, 1 to 9 with the outcome or 1 to 9 without it; none at all if all patients together do.

    Args:
        histogram: (2, bins) rows without and with the outcome by predicted probability.
    """
    bins = histogram.shape[1]
    of = np.arange(bins) * most // bins
    centre = (np.arange(bins) + 0.5) / bins
    sums = [
        np.array([np.bincount(of, weights, most)[g] for weights in (*histogram, histogram.sum(0) * centre)])
        for g in range(most)
    ]
    joined: list[Array] = []
    held = np.zeros(3)
    for part in sums:
        held = held + part
        if held[:2].sum() > 0 and not _few(held):
            joined.append(held)
            held = np.zeros(3)
    while joined and held[:2].sum() > 0:  # what is left at the end goes to its neighbours
        held = held + joined.pop()
        if not _few(held):
            joined.append(held)
            held = np.zeros(3)
    return [
        Group(float(risk / (no + yes)), float(yes / (no + yes)), round(float(no + yes))) for no, yes, risk in joined
    ]


def _few(sums: Array) -> bool:
    no, yes = float(sums[0]), float(sums[1])
    return any(0 < count < SMALLEST for count in (no, yes, no + yes))


def wilson(rate: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z2, p = NORMAL_95**2, min(max(rate, 0.0), 1.0)
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return middle - half, middle + half


def auc_interval(auc: float, negative: float, positive: float) -> tuple[float, float]:
    """The 95 % interval of an area under the ROC curve from so many patients without and with the outcome.

    Source: Hanley and McNeil (1982), Radiology 143, 29-36, eq. 1 and 2. Cut at 0 and 1.

    >>> [round(end, 3) for end in auc_interval(0.893, 58, 51)]
    [0.829, 0.957]
    """
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = auc * (1 - auc) + (positive - 1) * (q1 - auc * auc) + (negative - 1) * (q2 - auc * auc)
    half = NORMAL_95 * math.sqrt(variance / (negative * positive))
    return max(0.0, auc - half), min(1.0, auc + half)
