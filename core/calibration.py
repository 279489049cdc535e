"""Whether as many patients fall ill as the model says: observed over expected, and the shift of all risks that would mend it."""

from __future__ import annotations

from collections.abc import Mapping
from math import log, sqrt
from typing import NamedTuple

import numpy as np

from fedrounds.core.params import Array, Vector

SURE = 1.959964  # standard errors: a 95 % interval


class Large(NamedTuple):
    """Calibration in the large. None where it is not defined: no rows, or all outcomes alike.

    `ratio` is observed / expected; `intercept` is what must be added to every log-odds for the two to agree (Cox 1958; Van Calster et al.
    2019); `error` is the standard error of ln ratio, sqrt((1 - rate) / observed) (Debray et al. 2017).
    """

    ratio: float | None
    intercept: float | None
    error: float | None


def in_the_large(histograms: Mapping[str, Array]) -> dict[str, Large]:
    """Calibration of each score histogram, a prediction being known to half a bin.

    Args:
        histograms: name -> (problems, 2, bins), as scores have it; of several classes that with the ratio furthest from 1 is told.

    >>> found = in_the_large({"east": np.array([[[4.0, 0.0], [0.0, 4.0]]])})["east"]  # told 1/4 and 3/4 of four patients each
    >>> found.ratio, abs(found.intercept) < 1e-9
    (1.0, True)
    """
    owners = [name for name, stack in histograms.items() for _ in stack]
    if not owners:
        return {}
    table = np.concatenate(list(histograms.values()))  # (problems of all, 2, bins)
    bins = table.shape[2]
    centre: Vector = (np.arange(bins, dtype=np.float64) + 0.5) / bins
    rows, observed = table.sum(1), table[:, 1].sum(1)
    expected = rows @ centre
    intercept = _shift(np.log(centre / (1 - centre)), rows, observed, expected)
    found: dict[str, Large] = {}
    for k, name in enumerate(owners):
        one = _large(float(rows[k].sum()), float(observed[k]), float(expected[k]), float(intercept[k]))
        if name not in found or _far(one) > _far(found[name]):
            found[name] = one
    return found


def surely_beyond(found: Large, limit: float) -> bool:
    """Whether |ln ratio| is beyond `limit` with all of its 95 % interval; never where the ratio is not defined."""
    if found.ratio is None or found.error is None:
        return False
    return abs(log(found.ratio)) - SURE * found.error > limit


def _large(rows: float, observed: float, expected: float, intercept: float) -> Large:
    if not rows or not 0 < observed < rows:
        return Large(None, None, None)
    return Large(observed / expected, intercept, sqrt((1 - observed / rows) / observed))


def _far(found: Large) -> float:
    return abs(log(found.ratio)) if found.ratio else -1.0


def _shift(log_odds: Vector, rows: Array, observed: Vector, expected: Vector) -> Vector:
    """(problems,) the root a of sum rows * sigmoid(log_odds + a) = observed, by Newton's steps, all at once; 0 where there is none."""
    n = rows.sum(1)
    there = (observed > 0) & (observed < n)
    n, seen, meant = np.where(there, n, 2.0), np.where(there, observed, 1.0), np.where(there, expected, 1.0)
    a = np.log(seen / (n - seen)) - np.log(meant / (n - meant))
    used = rows[there].any(0)
    log_odds, rows = log_odds[used], rows[:, used]
    for _ in range(30):
        risk = 1 / (1 + np.exp(-(log_odds + a[:, None])))
        slope = np.maximum((rows * risk * (1 - risk)).sum(1), 1e-12)
        step = np.where(there, np.clip((seen - (rows * risk).sum(1)) / slope, -2.0, 2.0), 0.0)
        a = a + step
        if np.abs(step).max(initial=0.0) < 1e-12:
            break
    return np.where(there, a, 0.0)
