"""Survival from sums: Kaplan-Meier, log-rank and concordance need no more than counts by interval of a public grid.

A study's grid ends 0 < t_1 < … < t_K cuts time into K intervals; a patient is ±k: k the interval (t_{k-1}, t_k] in which the patient was
last seen, + where the event happened, - where not (censored). Within an interval events come first, so whoever is censored in it was at
risk of all of them. Everything here takes counts, which add up over sites, and gives what all patients in one place, with the same
binned times, would give.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.params import Array, Vector


class Curve(NamedTuple):
    """A Kaplan-Meier curve.

    Attributes:
        survival: (K,) probability of no event up to the end of each interval.
        error: (K,) its standard error by Greenwood's formula; 0 before the first event, and where nobody is left.
    """

    survival: Vector
    error: Vector


class ChiSquared(NamedTuple):
    """A chi-squared test."""

    statistic: float
    freedom: int
    p: float


def intervals(y: Array) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Interval (n,), from 0, and whether the event happened (n,), of ±1 … ±K.

    >>> index, event = intervals(np.array([3.0, -1.0]))
    >>> index.tolist(), event.tolist()
    ([2, 0], [True, False])
    """
    return np.abs(y).astype(np.intp) - 1, y > 0


def counted(y: Array, count: int, group: NDArray[np.intp] | None = None, groups: int = 1) -> Array:
    """Patients by group, outcome (0 censored, 1 event) and interval: (groups, 2, K). Adds up over sites.

    Args:
        y: (n,) ±1 … ±K.
        count: K.
        group: (n,) 0 … groups - 1; one group by default.
    """
    index, event = intervals(y)
    of = np.zeros(len(y), np.intp) if group is None else group
    cell = (of * 2 + event) * count + index
    return np.bincount(cell, minlength=groups * 2 * count).reshape(groups, 2, count).astype(np.float64)


def at_risk(leaving: Array) -> Array:
    """Sums over everyone not seen last before an interval (K, …), of sums by the interval in which they were seen last (K, …).

    >>> at_risk(np.array([1.0, 2.0, 4.0])).tolist()
    [7.0, 6.0, 4.0]
    """
    return np.cumsum(leaving[::-1], axis=0)[::-1]


def kaplan_meier(counts: Array) -> Curve:
    """The curve of one group.

    Source: Kaplan and Meier (1958), J. Am. Stat. Assoc. 53, 457; Klein and Moeschberger (2003), Survival Analysis, eq. 4.2.1 and 4.2.2.

    Args:
        counts: (2, K) censored and events by interval.

    >>> kaplan_meier(np.array([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])).survival.tolist()
    [0.75, 0.5, 0.5]
    """
    events, risk = counts[1], at_risk(counts.sum(0))
    share = np.divide(events, risk, out=np.zeros_like(risk), where=risk > 0)
    survival = np.cumprod(1.0 - share, dtype=np.float64)
    left = risk - events
    part = np.divide(events, risk * left, out=np.zeros_like(risk), where=left > 0)
    return Curve(survival, survival * np.sqrt(np.cumsum(part)))


def log_rank_sums(counts: Array) -> tuple[Vector, Array]:
    """Events less those expected if no group differed (groups,), and their covariance (groups, groups), of one stratum.

    Both add up over strata: where each site is one, it sends these and no counts.
    Source: Mantel (1966), Cancer Chemother. Rep. 50, 163; Klein and Moeschberger (2003), Survival Analysis, section 7.3.

    Args:
        counts: (groups, 2, K).
    """
    risk = np.cumsum(counts.sum(1)[:, ::-1], axis=1)[:, ::-1]
    events, all_ = counts[:, 1].sum(0), risk.sum(0)
    share = np.divide(risk, all_, out=np.zeros_like(risk), where=all_ > 0)
    spread = np.divide(events * (all_ - events), all_ - 1, out=np.zeros_like(all_), where=all_ > 1)
    covariance = np.diag(share @ spread) - (share * spread) @ share.T
    return counts[:, 1].sum(1) - share @ events, covariance


def log_rank(difference: Vector, covariance: Array) -> ChiSquared | None:
    """Whether survival differs between groups, from what `log_rank_sums` gave, added up; None where the data cannot tell.

    Args:
        difference, covariance: (groups,) and (groups, groups).

    The groups' differences add up to 0, so that one of them is left out, and so is a group of which nobody was ever at risk.
    """
    from scipy.stats import chi2

    held = np.flatnonzero(np.diag(covariance) > 0)
    if len(held) < 2:
        return None
    kept = held[1:]
    statistic = float(difference[kept] @ np.linalg.solve(covariance[np.ix_(kept, kept)], difference[kept]))
    return ChiSquared(statistic, len(kept), float(chi2.sf(statistic, len(kept))))


def concordance(histogram: Array) -> tuple[float, float] | None:
    """Harrell's C, and the most by which binning the scores can have moved it; None where no two patients can be compared.

    Two patients can be compared where one had the event and the other was seen at risk of it and had none in that interval: last seen in
    a later one, or censored in this one. The pair counts 1 where the first has the higher score, and ½ where both scores fall into one
    bin: each such pair may really be 0 or 1, so the true C lies within (pairs in one bin) / (2 pairs) of the value.
    Source: Harrell, Lee and Mark (1996), Stat. Med. 15, 361.

    Args:
        histogram: (K, 2, bins) patients by interval, outcome (0 censored, 1 event) and bin of the score.

    >>> concordance(np.array([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]]))
    (0.75, 0.25)
    """
    events = histogram[:, 1]  # (K, bins)
    others = at_risk(histogram.sum(1)) - events  # in no case one another's: events of the same interval
    pairs = float((events.sum(1) * others.sum(1)).sum())
    if pairs == 0:
        return None
    below = np.cumsum(others, axis=1) - others
    ties = float((events * others).sum()) / 2
    return (float((events * below).sum()) + ties) / pairs, ties / pairs


def score_bins(score: Array, bins: int) -> NDArray[np.intp]:
    """(n,) in which of equal bins each linear predictor (n,) lies, by 1 / (1 + exp(-1.702 score)): public, and in the order of the scores.

    That is nearly the normal law, so that scores which spread by about 1 fill the bins alike.
    """
    with np.errstate(over="ignore"):
        share = 1 / (1 + np.exp(-1.702 * score))
    cell = np.fmax(share * bins, 0.0).astype(np.intp)  # what is not a number must not crash: its loss tells
    return np.minimum(cell, bins - 1)


def pairs_in_order(score: Array, y: Array) -> tuple[float, float]:
    """Of the pairs that `concordance` compares, among these rows alone and without bins: how many are in order (ties a half), and how many are.

    Args:
        score, y: (n,) linear predictors, and (n,) ±1 … ±K.

    >>> pairs_in_order(np.array([2.0, 1.0, 1.0]), np.array([1.0, 2.0, -2.0]))
    (2.5, 3.0)
    """
    index, event = intervals(y)
    order = pairs = 0.0
    for k in np.unique(index[event]):
        mine = score[event & (index == k)]
        others = np.sort(score[(index > k) | ((index == k) & ~event)])
        pairs += float(len(mine) * len(others))
        order += float(np.searchsorted(others, mine).sum() + np.searchsorted(others, mine, side="right").sum()) / 2
    return order, pairs
