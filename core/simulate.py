"""The plain loop: every site in one process, no orchestrator, no files. What Prefect and the network must reproduce bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from fedrounds.core.algorithm import SiteState
from fedrounds.core.answer import Policy, handle
from fedrounds.core.messages import Ask, Reply, Request, decode, encode
from fedrounds.core.plan import Plan
from fedrounds.core.preprocess import Cohort, Rows
from fedrounds.core.preprocess import encode as encode_rows
from fedrounds.core.round import Asking, Closed, close_exchange, open_round
from fedrounds.core.state import RunState

OPEN = Policy(minimum_patients=1, finest_bins=10_000, merge_scores=False)


def simulate(
    plan: Plan,
    data: Mapping[str, Cohort | Rows],
    rounds: int,
    *,
    state: RunState | None = None,
    rng_of: Callable[[int, str], np.random.Generator] | None = None,
    quorum: int = 1,
    policy: Policy = OPEN,
    wire: bool = False,
) -> Iterator[Closed]:
    """Agree on statistics, train `rounds` rounds, score the last model; yields each closed round (the last one asked only for scores).

    Args:
        data: site -> clean table; or rows that are a design matrix already, and then no statistics are agreed.
        state: where to go on from; the start of the study by default.
        rng_of: (round, site) -> what the site draws from; by the study's seed otherwise.
        wire: carry every message as bytes.
    """
    encoded = {site: rows for site, rows in data.items() if isinstance(rows, Rows)}
    state = state or plan.start(plan.no_statistics() if encoded else None)
    carry = _by_wire if wire else _by_hand
    memories: dict[str, SiteState] = {}

    def visit(state: RunState, ask: Ask, rows: Mapping[str, Cohort | Rows]) -> Closed:
        asking = open_round(state, plan, ask, rows, quorum)
        while isinstance(asking, Asking):
            asking = close_exchange(
                asking, plan, _replies(asking, rows, memories, plan, policy, rng_of or plan.rng, carry)
            )
        return asking

    if not state.statistics:
        closed = visit(state, "statistics", data)
        yield closed
        state = closed.state
    for site, rows in data.items():
        if isinstance(rows, Cohort):
            encoded[site] = encode_rows(rows, plan.study, state.statistics, plan.ones)
    for _ in range(rounds):
        closed = visit(state, "train", encoded)
        yield closed
        state = closed.state
    yield visit(state, "score", encoded)


def _replies(
    asking: Asking,
    data: Mapping[str, Cohort | Rows],
    memories: dict[str, SiteState],
    plan: Plan,
    policy: Policy,
    rng_of: Callable[[int, str], np.random.Generator],
    carry: Callable[[Request | Reply], Request | Reply],
) -> Iterator[Reply]:
    request = carry(asking.request)
    assert isinstance(request, Request)
    for site in asking.sites:
        rng, memory = rng_of(request.round, site), memories.get(site, {})
        memories[site], answered = handle(request, memory, data[site], plan, policy, site, rng)
        reply = carry(answered)
        assert isinstance(reply, Reply)
        yield reply


def _by_hand(message: Request | Reply) -> Request | Reply:
    return message


def _by_wire(message: Request | Reply) -> Request | Reply:
    data = encode(message)
    return decode(data, Request) if isinstance(message, Request) else decode(data, Reply)
