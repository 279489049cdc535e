"""How updates become one, against sites that send what they like: one small function a paper.

n updates of which up to f are an attacker's; beside each rule stands the word for it in a study, whose `rule()` it is. What a rule is
stands in `core/rule.py`, and those for fairness in `core/fair.py`; `Combine`, at the end, is the list of all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedrounds.core.errors import QuorumError
from fedrounds.core.fair import Afl, QFfl
from fedrounds.core.frozen import Frozen, Rate
from fedrounds.core.params import Array, Vector
from fedrounds.core.rule import Adding, Rule, WeightedMean, length, weighted_mean


class Against(Frozen):
    """A rule that holds all updates, each counting alike, so that up to `attackers` sites may send what they like."""

    attackers: int = Field(default=1, ge=1, le=31)
    what: ClassVar[str]
    least: ClassVar[tuple[int, int]]  # times the attackers, and more
    needs: ClassVar[Literal["updates", "losses"]] = "updates"
    alike: ClassVar[bool] = True

    @property
    def fewest(self) -> int:
        """Of how many updates, or groups, its bound holds."""
        return _fewest(type(self), self.attackers)

    @property
    def title(self) -> str:
        """In a few words."""
        return f"{self.what} that {self.attackers} cannot sway"


def _fewest(word: type[Against], attackers: int) -> int:
    times, more = word.least
    return times * attackers + more


def _gather(finish: Callable[[list[tuple[Vector, float]]], Vector]) -> Rule:
    """A rule that looks at nothing before all updates and their weights are there."""

    def start(size: int) -> list[tuple[Vector, float]]:
        del size
        return []

    def add(held: list[tuple[Vector, float]], update: Vector, weight: float) -> list[tuple[Vector, float]]:
        return [*held, (update, weight)]

    return Rule(start, add, finish)


def hold(word: type[Against], attackers: int, combined: Callable[[Array], Vector]) -> Rule:
    """A rule over all updates at once, (n, parameters). Raises QuorumError, at the end, where they are too few for its bound."""

    def finish(held: list[tuple[Vector, float]]) -> Vector:
        if len(held) < (needed := _fewest(word, attackers)):
            raise QuorumError(
                f"expected {needed} updates or more for {word.what} that {attackers} cannot sway, found {len(held)}"
            )
        with np.errstate(over="ignore"):  # what is beyond all numbers is far from the others, and left out as such
            return combined(np.stack([update for update, _ in held]))

    return _gather(finish)


class Median(Against):
    """The coordinate-wise median (Yin et al. 2018) of updates, or under masks of the means of groups of sites: as many as `attackers`
    may send what they like, and no number of the result lies outside those of the others."""

    kind: Literal["median"]
    what: ClassVar[str] = "a median"
    least: ClassVar[tuple[int, int]] = (2, 1)

    def rule(self) -> Rule:
        """How updates become one."""
        return median(self.attackers)


def median(attackers: int) -> Rule:
    """The median of each number (Yin et al. 2018, definition 1), weights aside. Holds all updates.

    Guarantees:
        * with up to `attackers` arbitrary updates, each number lies within the range of the other updates' numbers.

    Raises QuorumError, at the end, unless there are 2 `attackers` + 1 updates or more.
    """
    return hold(Median, attackers, lambda updates: np.median(updates, axis=0))


class TrimmedMean(Against):
    """Of each number the mean without the `attackers` largest and the `attackers` smallest (Yin et al. 2018)."""

    kind: Literal["trimmed_mean"]
    what: ClassVar[str] = "a trimmed mean"
    least: ClassVar[tuple[int, int]] = (2, 1)

    def rule(self) -> Rule:
        """How updates become one."""
        return trimmed_mean(self.attackers)


def trimmed_mean(attackers: int) -> Rule:
    """Each number's mean without its f largest and f smallest (Yin et al. 2018, definition 2, beta = f/n). Holds all updates.

    Guarantees:
        * with up to `attackers` arbitrary updates, each number lies within the range of the other updates' numbers.

    Raises QuorumError, at the end, unless there are 2 `attackers` + 1 updates or more.
    """
    return hold(
        TrimmedMean,
        attackers,
        lambda updates: np.sort(updates, axis=0)[attackers : len(updates) - attackers].mean(axis=0),
    )


class Krum(Against):
    """The one update that is nearest to its neighbours (Blanchard et al. 2017)."""

    kind: Literal["krum"]
    what: ClassVar[str] = "Krum"
    least: ClassVar[tuple[int, int]] = (2, 3)

    def rule(self) -> Rule:
        """How updates become one."""
        return krum(self.attackers)


class MultiKrum(Against):
    """The mean of all updates but the `attackers` that are furthest from their neighbours (Blanchard et al. 2017)."""

    kind: Literal["multi_krum"]
    what: ClassVar[str] = "multi-Krum"
    least: ClassVar[tuple[int, int]] = (2, 3)

    def rule(self) -> Rule:
        """How updates become one."""
        return krum(self.attackers, one=False)


def krum(attackers: int, one: bool = True) -> Rule:
    """The update of least score, the sum of squared distances to its n - f - 2 nearest (Blanchard et al. 2017, section 4).

    Multi-Krum (section 5, m = n - f) is the mean of the n - f of least score. Holds all updates; of equal scores the first site's
    counts.

    Guarantees:
        * with up to `attackers` arbitrary updates, an update that counts is one of the others, or within D sqrt((n-f-2) / (n-2f-1))
          of one of them, D being their largest distance from each other.

    Raises QuorumError, at the end, unless there are 2 `attackers` + 3 updates or more.
    """

    def combined(updates: Array) -> Vector:
        near = _scores(_squares(updates), len(updates) - attackers - 2)
        kept = 1 if one else len(updates) - attackers
        return updates[np.argsort(near, kind="stable")[:kept]].mean(axis=0)

    return hold(Krum if one else MultiKrum, attackers, combined)


class Bulyan(Against):
    """What Krum selects, one after another, and of each number the mean of those nearest to the median (El Mhamdi et al. 2018)."""

    kind: Literal["bulyan"]
    what: ClassVar[str] = "Bulyan"
    least: ClassVar[tuple[int, int]] = (4, 3)

    def rule(self) -> Rule:
        """How updates become one."""
        return bulyan(self.attackers)


def bulyan(attackers: int) -> Rule:
    """Krum's choice n - 2f times, then each number's mean of the n - 4f nearest to the median of those (El Mhamdi et al. 2018, section 4).

    Holds all updates. Where Krum is left with too few to leave f + 2 out, it looks at the nearest one alone.

    Guarantees:
        * with up to `attackers` arbitrary updates, each number lies within the range of the other updates' numbers or no further
          from it than that range is wide.

    Raises QuorumError, at the end, unless there are 4 `attackers` + 3 updates or more.
    """

    def combined(updates: Array) -> Vector:
        squares, left, chosen = _squares(updates), list(range(len(updates))), list[int]()
        while len(chosen) < len(updates) - 2 * attackers:
            near = _scores(squares[np.ix_(left, left)], max(len(left) - attackers - 2, 1))
            chosen.append(left.pop(int(np.argmin(near))))
        return around(updates[chosen], np.median(updates[chosen], axis=0), len(chosen) - 2 * attackers)

    return hold(Bulyan, attackers, combined)


class GeometricMedian(Against):
    """The point whose distances to all updates add up to least: RFA (Pillutla et al. 2022)."""

    kind: Literal["geometric_median"]
    smoothing: Rate = 1e-6
    passes: int = Field(default=100, ge=1, le=10_000)
    what: ClassVar[str] = "a geometric median"
    least: ClassVar[tuple[int, int]] = (2, 1)

    def rule(self) -> Rule:
        """How updates become one."""
        return geometric_median(self.attackers, self.smoothing, self.passes)


def geometric_median(attackers: int, smoothing: float, passes: int) -> Rule:
    """Weiszfeld's steps with distances of `smoothing` at least (Pillutla et al. 2022, algorithm 2), from the median, until one is short.

    Holds all updates.

    Guarantees:
        * with up to `attackers` arbitrary updates and the others within r of some point, the result is within 2r (n-f) / (n-2f)
          of it, but for what the steps are short of the least sum, over n - 2f (Chen et al. 2017, lemma 1).

    Raises QuorumError, at the end, unless there are 2 `attackers` + 1 updates or more.
    """

    def combined(updates: Array) -> Vector:
        at = np.median(updates, axis=0)
        for _ in range(passes):
            near = 1 / np.maximum(smoothing, np.linalg.norm(updates - at, axis=1))
            before, at = at, (near[:, None] * updates).sum(axis=0) / near.sum()
            if np.linalg.norm(at - before) <= smoothing * 1e-3:
                break
        return at

    return hold(GeometricMedian, attackers, combined)


def around(updates: Array, centre: Vector, count: int) -> Vector:
    """(size,) of each number the mean of the `count` that are nearest to the centre's (size,), of updates (n, size)."""
    nearest = np.argsort(np.abs(updates - centre), axis=0, kind="stable")[:count]
    return np.take_along_axis(updates, nearest, axis=0).mean(axis=0)


def _squares(updates: Array) -> Array:
    """Squared distances, (n, n), a row at a time."""
    return np.array([((updates - one) ** 2).sum(axis=1) for one in updates])


def _scores(squares: Array, neighbours: int) -> Vector:
    return np.sort(squares, axis=1)[:, 1 : 1 + neighbours].sum(axis=1)  # the nearest is itself


class NormClip(Adding):
    """The mean of updates none of which is longer than a stated bound, or than their median length (Sun et al. 2019)."""

    kind: Literal["norm_clip"]
    bound: Rate | Literal["median"] = "median"
    what: ClassVar[str] = "a mean of clipped updates"

    def rule(self) -> Rule:
        """How updates become one."""
        return norm_clip(self.bound)


def norm_clip(bound: float | Literal["median"]) -> Rule:
    """sum(weight * update * min(1, bound / |update|)) / sum(weight) (Sun et al. 2019, section 4.2, without its noise).

    Holds one update at a time; with the median length as the bound, all.

    Guarantees:
        * the result is at most `bound` long, whoever attacks;
        * of n that weigh the same, f arbitrary ones move it by 2 f/n `bound` at most;
        * the median length, for 2 f < n, is at most the longest length of the other updates.
    """
    mean = weighted_mean()

    def clip(update: Vector, most: float) -> Vector:
        long = length(update)
        return update if long <= most else update * (most / long)

    if bound != "median":

        def add(total: tuple[Vector, float], update: Vector, weight: float) -> tuple[Vector, float]:
            return mean.add(total, clip(update, bound), weight)

        return mean._replace(add=add)

    def finish(held: list[tuple[Vector, float]]) -> Vector:
        most, total = float(np.median([length(update) for update, _ in held])), mean.start(held[0][0].size)
        for update, weight in held:
            total = mean.add(total, clip(update, most), weight)
        return mean.finish(total)

    return _gather(finish)


Combine = Annotated[
    WeightedMean
    | Median
    | TrimmedMean
    | Krum
    | MultiKrum
    | Bulyan
    | GeometricMedian
    | NormClip
    | QFfl
    | Afl,
    Field(discriminator="kind"),
]  # fmt: skip
