"""Cox's partial likelihood from sums by interval, which is all that its value and its first two derivatives need.

With w = exp(xβ), each site adds up by interval: how many leave, Σx of its events, and Σw, Σwx, Σwxxᵀ of all who leave in it (with Efron's
ties those of its events too). Sums over the risk sets are running sums of these from the end, so they are the pooled ones.
Source: Breslow (1974), Biometrics 30, 89; Efron (1977), J. Am. Stat. Assoc. 72, 557; as eq. 8.4.1 and 8.4.2 of Klein and Moeschberger (2003),
Survival Analysis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.algorithm import Sums
from fedrounds.core.params import Array, Vector
from fedrounds.core.survival import ChiSquared, at_risk, counted, intervals

Ties = Literal["breslow", "efron"]


class Partial(NamedTuple):
    """The partial likelihood at a point.

    Attributes:
        value: log-likelihood.
        null: log-likelihood at β = 0, of the same patients.
        scores: (K, p) each interval's part of the gradient: the sum of its Schoenfeld residuals.
        information: (K, p, p) each interval's part of minus the Hessian.
        squares: (p,) what its diagonal is a difference from: tells what of it rounding may have left.
    """

    value: float
    null: float
    scores: Array
    information: Array
    squares: Vector


def shapes(width: int, count: int, ties: Ties) -> dict[str, tuple[int, ...]]:
    """Of the sums: p columns, K intervals."""
    half = width * (width + 1) // 2
    found: dict[str, tuple[int, ...]] = {"counts": (2, count), "x": (count, width)}
    for name in ("risk", *(["died"] if ties == "efron" else [])):
        found |= {f"{name}.0": (count,), f"{name}.1": (count, width), f"{name}.2": (count, half)}
    return found


def by_interval(X: Array, y: Array, beta: Vector, count: int, ties: Ties) -> dict[str, Array]:
    """A site's sums at beta (p,), as `shapes` has them; X (n, p), y (n,) of ±1 … ±K. Additive over patients."""
    index, event = intervals(y)
    with np.errstate(over="ignore"):
        weight = np.exp(X @ beta)
    found = {"counts": counted(y, count)[0], "x": np.zeros((count, X.shape[1]))}
    np.add.at(found["x"], index[event], X[event])
    found |= _moments("risk", X, weight, index, count)
    if ties == "efron":
        found |= _moments("died", X[event], weight[event], index[event], count)
    return found


def partial(sums: Sums, beta: Vector, ties: Ties) -> Partial:
    """The partial likelihood at `beta` (p,) of everyone in the sums, which were taken there."""
    events, width = sums["counts"][1], len(beta)
    risk0, risk1, risk2 = (at_risk(sums[f"risk.{power}"]) for power in range(3))
    people = at_risk(sums["counts"].sum(0))
    scores, information = np.zeros((len(events), width)), np.zeros((len(events), width, width))
    value = null = 0.0
    squares = np.zeros(width)
    for k in np.flatnonzero(events > 0):
        d = round(float(events[k]))
        # Efron: before the l-th of d tied events, l/d of their weight has left the risk set; Breslow: none has before all have
        gone = np.arange(d) / d if ties == "efron" else np.zeros(1)
        times = 1.0 if ties == "efron" else float(d)
        below = risk0[k] - (gone * sums["died.0"][k] if ties == "efron" else 0.0)
        once = times * np.array([(1 / below).sum(), (gone / below).sum()])
        twice = times * np.array([(gone**power / below**2).sum() for power in range(3)])
        died1, died2 = (sums["died.1"][k], sums["died.2"][k]) if ties == "efron" else (np.zeros(width), 0.0)
        scores[k] = sums["x"][k] - once[0] * risk1[k] + once[1] * died1
        cross = np.outer(risk1[k], died1)
        information[k] = (
            _square(once[0] * risk2[k] - once[1] * died2, width)
            - twice[0] * np.outer(risk1[k], risk1[k])
            + twice[1] * (cross + cross.T)
            - twice[2] * np.outer(died1, died1)
        )
        squares += times * len(gone) * risk2[k][_diagonal(width)] / risk0[k]
        value -= times * float(np.log(below).sum())
        null -= times * float(np.log(people[k] - gone * d).sum())
    return Partial(value + float(sums["x"].sum(0) @ beta), null, scores, information, squares)


def hazards(sums: Sums) -> Vector:
    """Increments (K,) of Breslow's baseline cumulative hazard, at x = 0; 0 where nobody was left.

    Source: Breslow (1972), discussion of Cox, J. R. Stat. Soc. B 34, 216; Klein and Moeschberger (2003), eq. 8.8.2.

    Args:
        sums: `counts` and `risk.0` are read.
    """
    risk, events = at_risk(sums["risk.0"]), sums["counts"][1]
    return np.divide(events, risk, out=np.zeros_like(risk), where=(events > 0) & (risk > 0))


def tilted(scores: Array, information: Array) -> dict[str, Array]:
    """What the test of proportionality needs of a stratum, additive over strata: moments of its parts by the interval's number.

    Returns:
        tilt.1: (p,) Σ g_k score_k. tilt.2, tilt.3: (p, p) Σ g_k and Σ g_k² times information_k. g runs from -1 to 1 over the grid.
    """
    g = np.linspace(-1.0, 1.0, len(scores)) if len(scores) > 1 else np.zeros(1)
    return {
        "tilt.1": g @ scores,
        "tilt.2": np.einsum("k,kij->ij", g, information),
        "tilt.3": np.einsum("k,kij->ij", g * g, information),
    }


def proportionality(information: Array, tilts: Mapping[str, Array]) -> list[ChiSquared]:
    """Whether effects change with time: the score tests of β_j + γ_j g(t) against γ_j = 0 at the fitted β, each column's and all together.

    Being a score test it weighs the Schoenfeld residuals by g and allows for β having been fitted.
    Source: Grambsch and Therneau (1994), Biometrika 81, 515, section 2; Therneau and Grambsch (2000), section 6.2.

    Args:
        information: (p, p) of β, at its optimum.
        tilts: what `tilted` gave there, added up.

    Returns:
        p tests with one degree of freedom, then one with p.
    """
    from scipy.stats import chi2

    inverse = np.linalg.inv(information)
    spread = tilts["tilt.3"] - tilts["tilt.2"] @ inverse @ tilts["tilt.2"]
    size, slope = len(information), tilts["tilt.1"]
    tests: list[ChiSquared] = []
    for kept in [*([j] for j in range(size)), list(range(size))]:
        block = spread[np.ix_(kept, kept)]
        if not _sound(block, tilts["tilt.3"][np.ix_(kept, kept)]):
            tests.append(
                ChiSquared(float("nan"), len(kept), float("nan"))
            )  # all events in one interval: nothing can change
            continue
        found = float(slope[kept] @ np.linalg.solve(block, slope[kept]))
        tests.append(ChiSquared(found, len(kept), float(chi2.sf(found, len(kept)))))
    return tests


def _sound(block: Array, whole: Array) -> bool:
    scale = 1 / np.sqrt(np.maximum(np.diag(whole), np.finfo(float).tiny))
    return bool(np.linalg.eigvalsh(scale[:, None] * block * scale)[0] > 1e-10)


def _moments(name: str, X: Array, weight: Vector, index: NDArray[np.intp], count: int) -> dict[str, Array]:
    """Σw, Σwx and the upper triangle of Σwxxᵀ by interval."""
    order = np.argsort(index, kind="stable")
    ends = np.searchsorted(index[order], np.arange(count + 1))
    upper = np.triu_indices(X.shape[1])
    second = np.zeros((count, len(upper[0])))
    first = np.zeros((count, X.shape[1]))
    for k in np.flatnonzero(np.diff(ends)):
        rows = order[ends[k] : ends[k + 1]]
        weighed = X[rows] * weight[rows, None]
        first[k] = weighed.sum(0)
        second[k] = (X[rows].T @ weighed)[upper]
    return {f"{name}.0": np.bincount(index, weight, count).astype(np.float64), f"{name}.1": first, f"{name}.2": second}


def _diagonal(width: int) -> NDArray[np.bool_]:
    """Which numbers of an upper triangle are on the diagonal."""
    row, column = np.triu_indices(width)
    return row == column


def _square(upper: Array, width: int) -> Array:
    """A symmetric matrix of its upper triangle."""
    found = np.zeros((width, width))
    found[np.triu_indices(width)] = upper
    return found + np.triu(found, 1).T
