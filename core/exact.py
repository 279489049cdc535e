"""Exact algorithms: sites send sums over their patients, and what is fitted to the totals is what all rows in one place would give.

    work = start(theta)
    until done: totals = sum over sites of sums(asked, rows)
                theta, work, done = solve(work, totals)

A round runs to the end of that loop, an exchange a turn. The model that came in is scored in the first exchange; it stays the state's
model until the round has closed, so a round that fails changes nothing. Who misses an exchange takes no part in the rest of the round:
the totals of one exchange must never be taken from those of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedrounds.core.algorithm import Algorithm, Folded, Payload, SiteState, Sums
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.params import Array, Vector
from fedrounds.core.state import RunState

if TYPE_CHECKING:
    from fedrounds.core.models.family import Family
    from fedrounds.core.preprocess import Rows

Shapes = Mapping[str, tuple[int, ...]]
KEPT = ("scores", "histogram", "paired", "train")  # of the first exchange, until the round has closed


class Solved(NamedTuple):
    """What the totals of one exchange led to.

    Attributes:
        theta: the best model so far; of a solution that is `done` the new one.
        work: what the next exchange goes on from; the arrays that `takes` names are sent to the sites.
        done: whether the round is over.
        facts: with `done`, what else is known of the fit (an information matrix, a deviance): kept with the model, never sent.
    """

    theta: Vector
    work: Mapping[str, Array]
    done: bool
    facts: Mapping[str, Array] = {}


class Exact(NamedTuple):
    """One way to fit a family by sums.

    Three hospitals that agree on a mean, in one exchange:

    >>> import numpy as np
    >>> mean = Exact(
    ...     start=lambda theta, facts: {},
    ...     sums=lambda asked, memory, rows: (memory, {"n": np.array([float(len(rows.y))]), "sum": np.array([rows.y.sum()])}),
    ...     solve=lambda work, totals: Solved(totals["sum"] / totals["n"], {}, True),
    ...     shapes=lambda exchange: {"n": (1,), "sum": (1,)},
    ...     takes=lambda exchange: {},
    ... )
    >>> mean.solve({}, {"n": np.array([6.0]), "sum": np.array([21.0])}).theta
    array([3.5])
    """

    start: Callable[[Vector, Mapping[str, Array]], Mapping[str, Array]]  # (theta, facts of the last fit) -> first work
    sums: Callable[[Payload, SiteState, Rows], tuple[SiteState, Sums]]  # what a site answers; additive over patients
    solve: Callable[[Mapping[str, Array], Sums], Solved]  # (work, totals over sites)
    shapes: Callable[[int], Shapes]  # exchange -> the sums
    takes: Callable[[int], Shapes]  # exchange -> the part of `work` that is sent


def exact(score_only: Algorithm, family: Family, rule: Exact) -> Algorithm:
    """Score the model that came in, then fit a new one by sums, to the end.

    Raises:
        UpdateRejected: a site is set to count for less than its patients.
    """

    def ask(state: RunState) -> Payload:
        if state.exchange:
            return {**state.statistics, **_sent(state.work, state.exchange)}
        return {**score_only.ask(state), **_sent(rule.start(state.theta, state.memory), 0)}

    def _sent(work: Mapping[str, Array], exchange: int) -> Payload:
        return {name: work[name] for name in rule.takes(exchange)}

    def answer(payload: Payload, memory: SiteState, rows: Rows, rng: np.random.Generator) -> tuple[SiteState, Sums]:
        memory, sums = rule.sums(payload, memory, rows)
        if "theta" not in payload:
            return memory, sums
        loss = float(family.losses(family.predict(payload["theta"], rows.X), rows.y).sum())
        memory, scores = score_only.answer(payload, memory, rows, rng)
        return memory, {**sums, "train": np.array([len(rows.y), loss]), **scores}

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        totals, kept = _totals(replies, rule.shapes(state.exchange))
        kept |= {name: array for name, array in state.work.items() if name.partition(".")[0] in KEPT}
        work = state.work if state.exchange else rule.start(state.theta, state.memory)
        solved = rule.solve(work, totals)
        if not solved.done:
            return Folded(replace(state, exchange=state.exchange + 1, work={**solved.work, **kept}))
        after = replace(
            state, round=state.round + 1, exchange=0, theta=solved.theta, memory=dict(solved.facts), work={}
        )
        return _closed(after, kept)

    def shapes(exchange: int) -> dict[str, tuple[int, ...]]:
        first = {} if exchange else {"train": (2,), **score_only.shapes(0)}
        return {**rule.shapes(exchange), **first}

    def takes(exchange: int) -> dict[str, tuple[int, ...]]:
        asked = dict(score_only.takes(exchange))
        if exchange:
            del asked["theta"], asked["champion"]
        return {**asked, **rule.takes(exchange)}

    return Algorithm(ask, answer, fold, shapes, takes)


def _totals(replies: Iterable[tuple[str, Sums]], shapes: Shapes) -> tuple[dict[str, Array], dict[str, Array]]:
    """The sums of all sites, and what each said beside them, by `name.site`."""
    totals: dict[str, Array] = {name: np.zeros(shape) for name, shape in shapes.items()}
    kept: dict[str, Array] = {}
    for site, sums in replies:
        if "factor" in sums and float(sums["factor"]) != 1.0:
            raise UpdateRejected(
                f"expected every patient to count alike in an exact fit, found site '{site}' set to count for"
                f" {float(sums['factor']):g} of itself: exclude the site, or average"
            )
        totals = {name: total + sums[name] for name, total in totals.items()}
        kept |= {f"{name}.{site}": sums[name] for name in KEPT if name in sums}
    return totals, kept


def _closed(state: RunState, kept: Mapping[str, Array]) -> Folded:
    """The folded round, with the scores that its first exchange brought."""
    found: dict[str, dict[str, Array]] = {name: {} for name in KEPT}
    for key, array in kept.items():
        name, _, site = key.partition(".")
        found[name][site] = array
    scores = {site: (sums, found["histogram"][site]) for site, sums in found["scores"].items()}
    training = {site: (float(n), float(loss), float(n)) for site, (n, loss) in found["train"].items()}
    return Folded(state, scores, found["paired"], training)
