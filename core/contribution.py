"""What each hospital brings to the model: the fall of the loss, shared out among the sites by Shapley's values.

    v(S) = loss of the first model - loss of the model of the sites S, on the patients set aside at all sites that show scores

The model of S is put together from the updates of the recorded rounds, those of the others left out: each round's updates of S are combined
and stepped as the study does, from where S stood. No site trains anew (Song, Tong and Wei 2019, doi:10.1109/BigData47090.2019.9006327,
one-round reconstruction). An exact fit has no updates to take apart: it is fitted anew to each S. Up to EXACT sites every S is looked at; for
more, orders of the sites are drawn and cut short where v(S) is near that of all (Ghorbani and Zou 2019, arXiv:1904.02868, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np

from fedrounds.core import baselines
from fedrounds.core.algorithm import Algorithm, Folded, Sums
from fedrounds.core.baselines import NO_MODEL, Setting
from fedrounds.core.errors import StudyError
from fedrounds.core.models.boosting import Boosting
from fedrounds.core.params import Vector
from fedrounds.core.plan import Plan, seed
from fedrounds.core.simulate import simulate
from fedrounds.core.state import RunState
from fedrounds.core.strategy import Exact

EXACT = 8  # sites up to which all subsets are looked at
GROWN = 5  # the same, of a model of trees, which are grown anew for each
ORDERS = 100  # drawn
NEAR = 0.01  # of v(all): from there on the rest of an order adds nothing

Value = Callable[[frozenset[str]], float]
Updates = Sequence[Sequence[tuple[str, Sums]]]  # of each exchange: site -> what it sent, in site order


class Share(NamedTuple):
    """What a site brings, in units of the mean loss.

    Attributes:
        shapley: its share; those of all sites add up to v(all).
        error: the standard error of a drawn share; 0 where every subset was looked at.
        alone: v of the site alone.
        last: v(all) less v of the others.
    """

    shapley: float
    error: float
    alone: float
    last: float


class Contribution(NamedTuple):
    """The sites' shares.

    Attributes:
        whole: v(all).
        orders: how many were drawn; 0: every subset was looked at.
        same: whether the rounds, put together of all sites, give the very model that the study has.
        anew: whether each subset was fitted, and not put together from the updates of all.
        unfit: subsets that fit no model: they are worth what the first model is.
    """

    shares: Mapping[str, Share]
    whole: float
    orders: int
    same: bool
    anew: bool
    unfit: int


def contribution(of: Setting, theta: Vector) -> Contribution:
    """Every site's share in the model of `of.rounds` rounds.

    Args:
        theta: (size,) the study's model, to compare with.

    Raises:
        StudyError: updates of few sites cannot be combined, or an exact fit would have to be made too often.
    """
    first = of.plan.start(of.statistics, of.start)
    lacking = [0]
    if isinstance(of.plan.study.algorithm, Exact):
        most = GROWN if isinstance(of.plan.study.model, Boosting) else EXACT
        if len(of.rows) > most:
            raise StudyError(
                f"expected at most {most} sites, to each set of which an exact fit is made anew, found {len(of.rows)}:"
                " `fedrounds baselines` leaves out one site at a time"
            )
        made = _fitted(of, first, lacking)
    else:
        made = _combined(of, first)
    sites = sorted(of.rows)
    try:
        whole = made(frozenset(sites))
    except NO_MODEL as error:
        raise StudyError(f"expected the rounds of the study to be made again, found: {error}") from None
    value, anew = _worth(of, made, first.theta), isinstance(of.plan.study.algorithm, Exact)
    try:
        shares, orders = _shares(sites, value, of.plan.digest)
    except NO_MODEL as error:
        raise _uncombined(error) from None
    return Contribution(shares, value(frozenset(sites)), orders, np.array_equal(whole, theta), anew, lacking[0])


def of_updates(
    plan: Plan, first: RunState, theta: Vector, updates: Updates, loss: Callable[[Vector], float]
) -> Contribution:
    """Every site's share in the model that recorded updates have led to.

    Args:
        first: the state that they began with.
        theta: (size,) the study's model, to compare with.
        updates: of every exchange of the study's rounds, in order.
        loss: a model (size,) -> its mean loss on the patients set aside; asked once for each set of sites.

    Raises:
        StudyError: updates of few sites cannot be combined. What `loss` raises comes through.
    """
    made = _put_together(plan.algorithms["train"], first, updates)
    sites = sorted({site for replies in updates for site, _ in replies})
    worth: dict[frozenset[str], float] = {}
    start = loss(first.theta)

    def model(chosen: frozenset[str]) -> Vector:
        try:
            return made(chosen)
        except NO_MODEL as error:
            raise _uncombined(error) from None

    def value(chosen: frozenset[str]) -> float:
        if chosen not in worth:
            worth[chosen] = start - loss(model(chosen))
        return worth[chosen]

    shares, orders = _shares(sites, value, plan.digest)
    same = np.array_equal(model(frozenset(sites)), theta)
    return Contribution(shares, value(frozenset(sites)), orders, same, False, 0)


def _uncombined(error: Exception) -> StudyError:
    return StudyError(f"expected updates that any sites can be combined of, found: {error}")


def _shares(sites: Sequence[str], value: Value, digest: str) -> tuple[dict[str, Share], int]:
    """Each site's, and how many orders were drawn for them."""
    if len(sites) <= EXACT:
        shares, orders = {site: (share, 0.0) for site, share in shapley(sites, value).items()}, 0
    else:
        shares, orders = sampled(sites, value, np.random.default_rng(seed(digest, "contribution"))), ORDERS
    every = value(frozenset(sites))
    found = {
        site: Share(*shares[site], value(frozenset([site])), every - value(frozenset(sites) - {site})) for site in sites
    }
    return found, orders


def shapley(players: Sequence[str], value: Value) -> dict[str, float]:
    """The values of a game, over every subset; v of nobody is taken as 0.

    Source: Shapley (1953).

    >>> shapley("ab", lambda s: {0: 0.0, 1: 1.0, 2: 4.0}[len(s)])
    {'a': 2.0, 'b': 2.0}
    """
    n = len(players)
    found = dict.fromkeys(players, 0.0)
    for size in range(1, n + 1):
        for chosen in combinations(players, size):
            whole = frozenset(chosen)
            for player in chosen:
                before = whole - {player}
                gain = value(whole) - (value(before) if before else 0.0)
                found[player] += gain / (n * comb(n - 1, size - 1))
    return found


def sampled(
    players: Sequence[str], value: Value, rng: np.random.Generator, orders: int = ORDERS, near: float = NEAR
) -> dict[str, tuple[float, float]]:
    """The values by drawn orders, with their standard errors."""
    whole, gains = value(frozenset(players)), np.zeros((orders, len(players)))
    for order in gains:
        before, chosen = 0.0, frozenset[str]()
        for at in rng.permutation(len(players)):
            if chosen and abs(whole - before) <= near * abs(whole):
                break
            chosen |= {players[int(at)]}
            after = value(chosen)
            order[at], before = after - before, after
    means, errors = gains.mean(0), gains.std(0, ddof=1) / np.sqrt(orders)
    return {player: (float(means[at]), float(errors[at])) for at, player in enumerate(players)}


def _worth(of: Setting, made: Callable[[frozenset[str]], Vector], first: Vector) -> Value:
    """v, worked out once for each subset that is asked for again."""
    shown = baselines.scored(of, baselines.federated(of, first))
    judging = sorted(site for site, (sums, _) in shown.scores.items() if sums[0] > 0) if shown else []
    if not judging:
        raise StudyError("expected patients set aside whose scores a site shows, found none: nothing can be weighed")
    X, y = (np.concatenate([getattr(of.rows[site], name) for site in judging]) for name in ("X_valid", "y_valid"))
    family = of.plan.family
    known: dict[frozenset[str], float] = {}

    def loss(theta: Vector) -> float:
        return float(family.losses(family.predict(theta, X), y).mean())

    start, many = loss(first), len(of.rows)

    def value(sites: frozenset[str]) -> float:
        if sites in known:
            return known[sites]
        found = start - loss(made(sites))
        if many <= EXACT or len(sites) == 1 or len(sites) >= many - 1:  # no drawn order meets another set again
            known[sites] = found
        return found

    return value


def _combined(of: Setting, first: RunState) -> Callable[[frozenset[str]], Vector]:
    """The model of any sites, of the updates that all of them made in the study's rounds."""
    train = of.plan.algorithms["train"]
    rounds: list[Sequence[tuple[str, Sums]]] = []

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        rounds.append(tuple(replies))
        return train.fold(state, rounds[-1])

    plan = replace(of.plan, algorithms={**of.plan.algorithms, "train": train._replace(fold=fold)})
    visits = simulate(plan, of.rows, of.rounds, state=first, policy=of.policies)
    for _ in range(of.rounds):
        next(visits)
    return _put_together(train, first, rounds)


def _put_together(train: Algorithm, first: RunState, updates: Updates) -> Callable[[frozenset[str]], Vector]:
    """The model of any sites, of these updates."""

    def made(sites: frozenset[str]) -> Vector:
        state = first
        for replies in updates:
            mine = [(site, sums) for site, sums in replies if site in sites]
            state = train.fold(state, mine).state if mine else state
        return state.theta

    return made


def _fitted(of: Setting, first: RunState, lacking: list[int]) -> Callable[[frozenset[str]], Vector]:
    """The model of any sites, fitted to their patients; the first model where these fit none."""

    def made(sites: frozenset[str]) -> Vector:
        state = baselines.of_sites(of, sites).state
        lacking[0] += state is None
        return first.theta if state is None else state.theta

    return made
