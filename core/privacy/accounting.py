"""What releases cost: every one is an event, and what events cost together is Rényi's sum (Mironov 2017) until a person asks for a report.

The arithmetic is `dp-accounting`'s; it takes a second to import, so it is imported where it is needed. A release is made with a
discrete Gaussian and accounted as a Gaussian: for one that is not sampled that is a theorem (Canonne, Kamath and Steinke 2020, theorem 4);
under Poisson sampling it is the continuous limit, which noise of 1024 steps and more (`noise.Gaussian`) is beyond floating point close to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from math import inf, log, sqrt
from typing import Any, NamedTuple, cast

import numpy as np

from fedrounds.core.params import Vector

LEAST = 0.4  # noise multiplier: below it a round's cost is beyond any budget worth the name
PRECISION = 1e-4  # relative: how near below the budget a calibrated study ends


class Event(NamedTuple):
    """`times` releases with noise of `multiplier` times the sensitivity, each about patients drawn with probability `rate`.

    Neighbours are two sets of patients of which one has one patient more.
    """

    multiplier: float
    rate: float = 1.0
    times: int = 1

    def to_json(self) -> dict[str, float | int]:
        """For a ledger."""
        return {"multiplier": self.multiplier, "rate": self.rate, "times": self.times}

    @classmethod
    def of(cls, found: dict[str, Any]) -> Event:
        """What `to_json` gave. Raises ValueError if it is none."""
        event = cls(float(found["multiplier"]), float(found["rate"]), int(found["times"]))
        if not (0 < event.multiplier < inf and 0 < event.rate <= 1 and event.times >= 0):
            raise ValueError(
                "expected a multiplier above 0, a rate up to 1 and a number of times: the ledger's event is none"
            )
        return event


class Budget(NamedTuple):
    """(ε, δ) that may be spent in all."""

    epsilon: float
    delta: float


def epsilon(events: Iterable[Event], delta: float) -> float:
    """ε of all the events together at δ, by Rényi divergences: what the filter goes by.

    Guarantees:
        * never below the true cost, whatever was known when each event was chosen;
        * the order of events does not matter, and an event more never costs less.
    """
    spent = _divergences(events)
    if not spent.any():
        return 0.0
    from dp_accounting import rdp

    return float(cast(Any, rdp).compute_epsilon(_orders(), spent, delta)[0])


def fits(spent: Iterable[Event], more: Iterable[Event], budget: Budget) -> bool:
    """The filter: whether some order's divergence, with what is asked for, stays within the budget's.

    Valid where events are chosen by what earlier ones told (Feldman and Zrnic 2021; Whitehouse et al. 2023).
    """
    return epsilon([*spent, *more], budget.delta) <= budget.epsilon


def reported(events: Iterable[Event], delta: float) -> float:
    """ε by privacy loss distributions: tighter, for reports of schedules that were fixed beforehand. Takes a second."""
    from dp_accounting import pld

    accountant: Any = cast(Any, pld).PLDAccountant()
    for (multiplier, rate), count in _gathered(events).items():
        if count:
            accountant.compose(_dp_event(multiplier, rate), count)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=64)
def multiplier(budget: Budget, rate: float, count: int, before: tuple[Event, ...] = ()) -> float:
    """The least noise multiplier (to a relative 1e-4, rounded up) with which `times` releases still fit the budget after `before`.

    Raises:
        ValueError: `before` alone is beyond the budget.
    """
    if not fits(before, (), budget):
        raise ValueError(
            f"expected what comes first to cost less than ε = {budget.epsilon:g}, found more: give it a smaller share"
        )

    def excess(z: float) -> float:
        """ln of what it costs over what there is, falling in z."""
        return log(max(epsilon([*before, Event(z, rate, count)], budget.delta), 1e-12) / budget.epsilon)

    high = max(
        rate * sqrt(2 * count * log(1 / budget.delta)) / budget.epsilon, 0.5
    )  # about right (Abadi et al. 2016, theorem 1)
    over = excess(high)
    while over > 0:
        if high > 1e6:
            raise ValueError(f"expected a budget that {count} releases fit in, found ε = {budget.epsilon:g}: raise it")
        high *= 1.25
        over = excess(high)
    low, under = high / 1.25, excess(high / 1.25)
    while under <= 0 and low > LEAST:
        high, over, low = low, under, low / 1.25
        under = excess(low)
    while high - low > PRECISION * high and under > 0:  # the secant's zero, and a little to the side that has not moved
        middle = low + (high - low) * under / (under - over)
        middle = min(max(middle, low + 0.3 * PRECISION * high), high - 0.3 * PRECISION * high)
        found = excess(middle)
        if found > 0:
            low, under = middle, found
        else:
            high, over = middle, found
    return high


def _gathered(events: Iterable[Event]) -> Counter[tuple[float, float]]:
    alike: Counter[tuple[float, float]] = Counter()
    for event in events:
        alike[event.multiplier, event.rate] += event.times
    return alike


def _divergences(events: Iterable[Event]) -> Vector:
    """(orders,) Rényi divergence of all together."""
    alike = _gathered(events)
    if not any(alike.values()):
        return np.zeros(1)
    return np.sum([count * _divergence(*kind) for kind, count in sorted(alike.items()) if count], axis=0)


@lru_cache(maxsize=4096)
def _divergence(multiplier: float, rate: float) -> Vector:
    """(orders,) of one release: what takes the time, and is worked out once."""
    from dp_accounting import rdp

    cast(Any, rdp).rdp_privacy_accountant.logging.set_verbosity(
        "error"
    )  # an order that does not converge is left out: looser, never wrong
    accountant: Any = cast(Any, rdp).RdpAccountant()
    accountant.compose(_dp_event(multiplier, rate), 1)
    return np.asarray(accountant.rdp, np.float64)


@lru_cache(maxsize=1)
def _orders() -> Vector:
    from dp_accounting import rdp

    return np.asarray(cast(Any, rdp).RdpAccountant().orders, np.float64)


def _dp_event(multiplier: float, rate: float) -> Any:
    import dp_accounting

    events = cast(Any, dp_accounting)
    gaussian = events.GaussianDpEvent(multiplier)
    return gaussian if rate >= 1 else events.PoissonSampledDpEvent(rate, gaussian)
