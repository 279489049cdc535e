"""The plain loop: every site in one process, no orchestrator, no files. What Prefect and the network must reproduce bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fedrounds.core import encrypted
from fedrounds.core.algorithm import SiteState
from fedrounds.core.answer import Policy, empty, handle, handle_masked
from fedrounds.core.identity import new_key, public_key
from fedrounds.core.masked import Self
from fedrounds.core.messages import Ask, Reply, Request, decode, encode
from fedrounds.core.params import Array
from fedrounds.core.plan import Plan
from fedrounds.core.preprocess import Cohort, Rows
from fedrounds.core.preprocess import encode as encode_rows
from fedrounds.core.privacy.holder import Safe
from fedrounds.core.privacy.secagg import Vault
from fedrounds.core.round import Asking, Closed, Keys, Roll, close_exchange, open_round
from fedrounds.core.state import RunState

OPEN = Policy(minimum_patients=1, finest_bins=10_000, merge_scores=False, explanations=True)


def simulate(
    plan: Plan,
    data: Mapping[str, Cohort | Rows],
    rounds: int,
    *,
    state: RunState | None = None,
    rng_of: Callable[[int, str], np.random.Generator] | None = None,
    quorum: int = 1,
    policy: Policy | Mapping[str, Policy] = OPEN,
    wire: bool = False,
    lost: Callable[[Request, str], bool] | None = None,
    epochs: Callable[[int], Mapping[str, int]] | None = None,
) -> Iterator[Closed]:
    """Agree on statistics, train `rounds` rounds, score the last model; yields each closed round (the last one asked only for scores).

    Args:
        data: site -> clean table; or rows that are a design matrix already, and then no statistics are agreed.
        state: where to go on from; the start of the study by default.
        rng_of: (round, site) -> what the site draws from; by the study's seed otherwise.
        policy: what every site allows, or each by its name; a name that is not there allows all.
        wire: carry every message as bytes.
        lost: (request, site) -> whether the site's answer is lost on its way.
        epochs: round -> what each site was asked for by its speed, as the ledger of a run has it.
    """
    encoded = {site: rows for site, rows in data.items() if isinstance(rows, Rows)}
    state = state or plan.start(plan.no_statistics() if encoded else None)
    visit = _visits(plan, data, rng_of or plan.rng, quorum, policy, wire, lost, epochs)
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


def asked(
    plan: Plan, data: Mapping[str, Cohort], ask: Ask, state: RunState, policy: Policy | Mapping[str, Policy] = OPEN
) -> Closed:
    """One visit beside the rounds, to whoever answers. Raises QuorumError where nobody does."""
    return _visits(plan, data, plan.rng, 1, policy)(state, ask, data)


def _visits(
    plan: Plan,
    data: Mapping[str, Cohort | Rows],
    rng_of: Callable[[int, str], np.random.Generator],
    quorum: int,
    policy: Policy | Mapping[str, Policy],
    wire: bool = False,
    lost: Callable[[Request, str], bool] | None = None,
    epochs: Callable[[int], Mapping[str, int]] | None = None,
) -> Callable[[RunState, Ask, Mapping[str, Cohort | Rows]], Closed]:
    """What asks the sites of a study, who remember from one visit to the next."""
    holder = encrypted.third_party(plan.study)  # it has no rows
    keys = {site: new_key() for site in [*data, *([holder] if holder else [])]} if plan.study.masked else {}
    roster = {site: public_key(key) for site, key in keys.items()}
    everything = OPEN.model_copy(update={"modules": plan.study.model.runs})
    allowed = policy if isinstance(policy, Mapping) else {} if policy == OPEN else dict.fromkeys(keys or data, policy)
    sites = {
        site: _Site(site, plan, allowed.get(site, everything), rng_of, Self(site, keys[site], roster) if keys else None)
        for site in keys or data
    }
    keyring: Keys | None = None

    def visit(state: RunState, ask: Ask, rows: Mapping[str, Cohort | Rows]) -> Closed:
        nonlocal keyring
        roll = Roll(roster, 1 + max(site.vault.number for site in sites.values()), keyring)
        asking: Asking | Closed = open_round(state, plan, ask, rows, quorum, roll=roll)
        if epochs and ask == "train":
            asking = replace(asking, epochs=epochs(asking.request.round))
        while isinstance(asking, Asking):
            asking = close_exchange(asking, plan, _replies(asking, rows, sites, wire, lost))
        keyring = asking.keyring
        return asking

    return visit


@dataclass
class _Site:
    """A site of the plain loop: who it is, and what it remembers."""

    name: str
    plan: Plan
    policy: Policy
    rng_of: Callable[[int, str], np.random.Generator]
    me: Self | None
    memory: SiteState = field(default_factory=dict[str, Array])
    vault: Vault | Safe = field(init=False)

    def __post_init__(self) -> None:
        self.vault = empty(self.plan)

    def answer(self, request: Request, data: Cohort | Rows | None) -> Reply:
        """Answer a request, and keep what it leaves."""
        rng = self.rng_of(request.round, self.name)
        if self.me is None:
            assert data is not None
            self.memory, reply = handle(request, self.memory, data, self.plan, self.policy, self.name, rng)
        else:
            self.vault, self.memory, reply = handle_masked(
                request, self.vault, self.me, self.memory, data, self.plan, self.policy, rng
            )
        return reply


def _replies(
    asking: Asking,
    data: Mapping[str, Cohort | Rows],
    sites: Mapping[str, _Site],
    wire: bool,
    lost: Callable[[Request, str], bool] | None,
) -> Iterator[Reply]:
    for name in asking.sites:
        request = asking.request_to(name)
        reply = sites[name].answer(decode(encode(request), Request) if wire else request, data.get(name))
        if lost is None or not lost(request, name):
            yield decode(encode(reply), Reply) if wire else reply
