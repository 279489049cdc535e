"""How far two profiles lie apart, and by how much more than chance.

Where few patients are, a site tells the rows of neighbouring cells together. Every measure then takes, of all tables that would give what
was told, the two that lie closest: it is a lower bound of what the whole tables would give, and exact where nothing was merged. The cells
themselves make it a lower bound of what the rows would give.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.operations import Drift
from fedrounds.core.params import Array, Vector
from fedrounds.core.profile import LABEL, names_of
from fedrounds.core.study import Binary, Number, Study, Survival

FALSE_ALARMS = 0.01  # share of profiles without any drift in which some comparison is told apart from chance
Profile = Mapping[str, Sequence[float]]  # array's name -> cells, as a site's profile has them


def closest(a: Vector, b: Vector) -> tuple[Vector, Vector]:
    """Rows in every cell of both sides, dealt within merged cells so that the sides differ least.

    The divergence below is convex in both sides together, and given one side it is least where the other is dealt in proportion to it:
    so each is dealt in turn until nothing moves. Several histograms may lie end to end: no group spans two.

    Args:
        a, b: (cells,) rows; 0 or more, or MERGED into the cell before.

    Returns:
        Both, (cells,), 0 or more.
    """
    q = _dealt(b, np.ones(len(b)))
    for _ in range(200):
        p = _dealt(a, q)
        before, q = q, _dealt(b, p)
        if np.abs(q - before).max(initial=0.0) < 1e-6:
            break
    return _dealt(a, q), q


def psi(p: Vector, q: Vector) -> float:
    """Population stability index, sum (p - q) ln(p / q) over the shares of cells: Kullback and Leibler's symmetric divergence (1951), named
    so by Siddiqi (Credit Risk Scorecards, 2006), who takes .1 for a shift to look into and .25 for one to act upon.

    An empty cell counts as half a row; a cell that is empty on both sides says nothing.

    Args:
        p, q: (cells,) rows.

    >>> round(psi(np.array([50.0, 50.0]), np.array([25.0, 75.0])), 4)  # .25 ln 2 + .25 ln 1.5
    0.2747
    """
    if not p.any() or not q.any():
        return 0.0
    used = (p > 0) | (q > 0)
    x, y = (np.where(side[used] == 0, 0.5, side[used]) / side.sum() for side in (p, q))
    return float(((x - y) * (np.log(x) - np.log(y))).sum())


def ks(a: Vector, b: Vector) -> float:
    """Kolmogorov and Smirnov's largest distance of two distribution functions, seen at the ends of cells, of a profile's cells (cells,).

    Source: Smirnov (1939). The last cell holds the missing ones, who are left out. 0 where either side has no known value.
    """
    (low_a, high_a), (low_b, high_b) = _distribution(a), _distribution(b)
    return float(np.clip(np.maximum(low_a - high_b, low_b - high_a), 0.0, 1.0).max(initial=0.0))


def beyond_chance(found: float, cells: int, rows: tuple[float, float], comparisons: int) -> float:
    """The index without what chance gives; 0 where chance alone gives as much.

    Without drift it is distributed as (1/n + 1/m) chi-square with B - 1 degrees of freedom for B cells (Yurdakul and Naranjo, Statistical
    properties of the population stability index, J. Risk Model Validation 14(4), 2020), so its mean is (B - 1)(1/n + 1/m): that is taken
    off. It counts at all only above the quantile that `comparisons` such comparisons together pass in FALSE_ALARMS of all profiles
    (Bonferroni): a small hospital is not held for being small.

    Args:
        cells: B, those that hold rows.
        rows: n and m.
    """
    if not min(rows):
        return 0.0
    freedom, scale = max(cells - 1, 1), 1 / rows[0] + 1 / rows[1]
    if found <= scale * chi_square(freedom, FALSE_ALARMS / comparisons):
        return 0.0
    return max(found - scale * freedom, 0.0)


def chi_square(freedom: int, tail: float) -> float:
    """The value that chi-square exceeds with probability `tail` (Wilson and Hilferty 1931: up to an eighth too much, far out).

    >>> round(chi_square(12, 0.001), 1)  # 32.9 by the book
    33.1
    """
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + NormalDist().inv_cdf(1 - tail) * sqrt(spread)) ** 3


# --- a study's sites --------------------------------------------------------------------------------------------------


def assess(
    study: Study, limits: Drift, profiles: Mapping[int, Mapping[str, Profile]], reference: int, sites: Iterable[str]
) -> dict[str, Any]:
    """Each site's latest profile against its reference, and against the other sites of today.

    Args:
        profiles: visit -> site -> its profile.
        reference: a site's reference is its first profile from this visit on; a site that has none before its latest is new.
        sites: those to look at.

    Returns:
        JSON: `sites` and `between`, both of site -> `features` of name -> `psi` (beyond chance), `raw` (as measured) and `ks`, and `label`;
        `worst` of `sites` if any is beyond chance, `limit`, and whether the worst is beyond it (`held`). Between sites merged cells are
        dealt by the shape of all sites: they differ by nature, and nothing is held for it.
    """
    watched = _watched(study, limits)
    latest: dict[str, Profile] = {}
    since: dict[str, int] = {}
    for site in sorted(sites):
        visits = [visit for visit in sorted(profiles) if site in profiles[visit]]
        if visits:
            latest[site] = profiles[visits[-1]][site]
            then = next((visit for visit in visits if visit >= reference), visits[-1])
            if then != visits[-1]:
                since[site] = then
    tried = max(len(watched) * len(latest), 1)
    own = {
        site: {"since": then} | _shifts(study, watched, latest[site], profiles[then][site], tried)
        for site, then in since.items()
    }
    worst = max(
        ((value, site, what) for site, found in own.items() for what, value in values(study, found).items()),
        key=lambda it: it[0],
        default=(0.0, "", ""),
    )
    return {
        "reference": reference,
        "sites": own,
        "between": _between(study, watched, latest, tried) if len(latest) > 1 else {},
        "worst": {"site": worst[1], "what": worst[2], "psi": worst[0]} if worst[0] > 0 else None,
        "limit": {"warn": limits.warn, "hold": limits.hold},
        "held": worst[0] > limits.hold,
    }


def values(study: Study, found: Mapping[str, Any]) -> dict[str, float]:
    """Column -> its index beyond chance, of one site's part of what `assess` found; the label under the target's name."""
    each = {name: shift["psi"] for name, shift in found["features"].items()}
    return each | ({study.target.column: found["label"]["psi"]} if found["label"] else {})


def _watched(study: Study, limits: Drift) -> dict[str, str]:
    """Array of a profile -> column, of those that the study wants watched."""
    names = names_of(study)
    label = {LABEL: names.pop(LABEL)} if limits.label and LABEL in names else {}
    return {
        name: column
        for name, column in names.items()
        if name != LABEL and (limits.features is None or column in limits.features)
    } | label


def _shifts(study: Study, watched: Mapping[str, str], now: Profile, then: Profile, tried: int) -> dict[str, Any]:
    """One site's latest profile against an earlier one."""
    sides = [(np.array(now[name], np.float64), np.array(then[name], np.float64)) for name in watched]
    if not sides:
        return {"features": {}, "label": None}
    p, q = closest(*(np.concatenate(side) for side in zip(*sides, strict=True)))
    ends = np.cumsum([len(a) for a, _ in sides])[:-1]
    dealt = list(zip(np.split(p, ends), np.split(q, ends), strict=True))
    return _told(study, watched, sides, dealt, tried)


def _between(study: Study, watched: Mapping[str, str], latest: Mapping[str, Profile], tried: int) -> dict[str, Any]:
    """Each site against all others as one."""
    tables: list[tuple[Array, Array]] = []  # what was told, and rows in every cell, both (sites, cells)
    for name in watched:
        told = np.array([profile[name] for profile in latest.values()], np.float64)
        shape = np.sum([_dealt(row, np.ones(len(row))) for row in told], 0)
        tables.append((told, np.array([_dealt(row, shape) for row in told])))
    found: dict[str, Any] = {}
    for k, site in enumerate(latest):
        sides: list[tuple[Vector, Vector]] = []
        pairs: list[tuple[Vector, Vector]] = []
        for told, dealt in tables:
            others, rest = np.delete(told, k, 0), np.delete(dealt, k, 0).sum(0)
            sides.append((told[k], others.sum(0) if others.min() >= 0 else rest))
            pairs.append((dealt[k], rest))
        found[site] = _told(study, watched, sides, pairs, tried)
        if LABEL in watched and np.delete(tables[-1][0], k, 0).min() < 0:
            found[site]["label"]["reference_rate"] = None  # it would be that of merged cells as they were dealt
    return found


def _told(
    study: Study,
    watched: Mapping[str, str],
    sides: Sequence[tuple[Vector, Vector]],
    dealt: Sequence[tuple[Vector, Vector]],
    tried: int,
) -> dict[str, Any]:
    """JSON of each comparison.

    Args:
        sides: cells as they were told, of each that is watched.
        dealt: the same with rows in every cell.
    """
    numbers = {feature.name for feature in study.features if isinstance(feature, Number)}
    features: dict[str, Any] = {}
    label: dict[str, Any] | None = None
    for (name, column), (a, b), (p, q) in zip(watched.items(), sides, dealt, strict=True):
        raw = psi(p, q)
        groups = max(np.count_nonzero(a > 0), np.count_nonzero(b > 0))
        found: dict[str, Any] = {
            "psi": beyond_chance(raw, int(groups), (float(p.sum()), float(q.sum())), tried),
            "raw": raw,
        }
        if name == LABEL:
            label = found | {"rate": _rate(study, a), "reference_rate": _rate(study, b)}
        else:
            features[column] = found | {"ks": ks(a, b) if column in numbers else None}
    return {"features": features, "label": label}


def _rate(study: Study, label: Vector) -> float | None:
    """Share of positives; None where the two were merged, and for other targets than yes or no."""
    if not isinstance(study.target, Binary | Survival) or label.min() < 0 or not label.any():
        return None
    return float(label[1] / label.sum())


# --- inside -----------------------------------------------------------------------------------------------------------


def _dealt(told: Vector, like: Vector) -> Vector:
    """Rows in every cell: those of merged cells in proportion to `like`, evenly where that has none there."""
    starts = np.flatnonzero(told >= 0)
    lengths = np.diff(np.append(starts, len(told)))
    totals = np.repeat(np.add.reduceat(like, starts), lengths)
    share = np.where(totals > 0, like / np.where(totals > 0, totals, 1.0), 1 / np.repeat(lengths, lengths))
    return np.repeat(told[starts], lengths) * share


def _distribution(told: Vector) -> tuple[Vector, Vector]:
    """Least and most that the share of known values can be up to the end of each cell but the last."""
    rows = np.maximum(told, 0.0)
    most = np.cumsum(rows)  # a group's rows are in its first cell
    ends = np.append(told[1:] >= 0, True)  # whether a group ends with this cell
    least = np.where(ends, most, most - rows[_start(told)])
    if told[-1] >= 0:
        fewest = known = most[-1] - told[-1]
    else:  # the missing ones are somewhere in the last group
        fewest, known = least[-2], most[-1]
    if fewest <= 0:
        return np.zeros(len(told) - 1), np.ones(len(told) - 1)
    return least[:-1] / known, np.minimum(most[:-1] / fewest, 1.0)


def _start(told: Vector) -> NDArray[np.intp]:
    """(cells,) where the group of each cell starts."""
    return np.maximum.accumulate(np.where(told >= 0, np.arange(len(told), dtype=np.intp), 0))
