"""A round, without any input or output. Prefect, a plain loop and a network carry the same two functions.

    asking = open_round(state, plan, "train", sites, quorum)
    while isinstance(asking, Asking):
        replies = ...                      # carry asking.request to asking.sites, bring back what they answer
        asking = close_exchange(asking, plan, replies)
    asking.state                           # a Closed round: the next state, and what was learned

Arrival order never changes a bit: replies are folded in the order of site names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedrounds.core.algorithm import Folded, Scores, Sums
from fedrounds.core.codec import foreign, narrow, widen
from fedrounds.core.errors import QuorumError, UpdateRejected
from fedrounds.core.evaluate import PAIRED
from fedrounds.core.messages import Ask, Reply, Request
from fedrounds.core.params import Array
from fedrounds.core.plan import Plan
from fedrounds.core.state import RunState


@dataclass(frozen=True)
class Asking:
    """An open exchange: one request, and the sites that it goes to."""

    state: RunState
    request: Request
    sites: tuple[str, ...]  # in name order
    quorum: int
    refused: Mapping[str, str] = field(
        default_factory=dict[str, str]
    )  # site -> reason, from earlier exchanges of the round
    factors: Mapping[str, float] = field(default_factory=dict[str, float])  # site -> what its lambda is multiplied by


@dataclass(frozen=True)
class Closed:
    """A closed round. `scores` judge the model that came in (`scored` is its round), `training` is about what was asked of it."""

    state: RunState
    ask: Ask
    scored: int
    scores: Scores
    paired: Mapping[str, Array]  # site -> [n, Σd, Σd²] against the champion, empty if there was none to compare with
    training: Mapping[str, tuple[float, float, float]]  # site -> (rows, sum of losses, lambda)
    refused: Mapping[str, str]
    profiles: Mapping[str, Sums] = field(default_factory=dict[str, Sums])  # site -> its profile


def open_round(
    state: RunState,
    plan: Plan,
    ask: Ask,
    sites: Iterable[str],
    quorum: int = 1,
    factors: Mapping[str, float] | None = None,
) -> Asking:
    """Open a round: agree on statistics first (round 0), then train; `score` asks for scores alone, `profile` for profiles.

    Args:
        factors: of the sites that count for less: what their lambda is multiplied by when the replies are folded.
    """
    return _ask(state, plan, ask, tuple(sorted(sites)), quorum, {}, factors or {})


def close_exchange(asking: Asking, plan: Plan, replies: Iterable[Reply]) -> Asking | Closed:
    """Fold the replies, given in site order, one at a time.

    Returns:
        The round's next exchange, or the closed round.

    Raises:
        UpdateRejected: a reply is foreign, out of turn, given twice or not of the expected shape.
        QuorumError: too few sites answered; nothing has changed.
    """
    refused = dict(asking.refused)
    algorithm = plan.algorithms[asking.request.ask]
    answered: list[str] = []
    folded: Folded = algorithm.fold(asking.state, _accepted(asking, plan, replies, answered, refused))
    if (
        folded.state.exchange
    ):  # a site that missed an exchange takes no part in the round's next: sums are over the same sites
        return _ask(folded.state, plan, asking.request.ask, tuple(answered), asking.quorum, refused, asking.factors)
    return Closed(
        folded.state,
        asking.request.ask,
        asking.state.round,
        folded.scores,
        folded.paired,
        folded.training,
        refused,
        folded.profiles,
    )


def _ask(
    state: RunState,
    plan: Plan,
    ask: Ask,
    sites: tuple[str, ...],
    quorum: int,
    refused: Mapping[str, str],
    factors: Mapping[str, float],
) -> Asking:
    payload = narrow(plan.algorithms[ask].ask(state), plan.study.protocol.codec)
    number = state.round + 1 if ask == "train" else state.round
    request = Request(state.study, number, state.exchange, ask, state.model_digest, payload)
    return Asking(state, request, sites, quorum, refused, factors)


def _accepted(
    asking: Asking, plan: Plan, replies: Iterable[Reply], answered: list[str], refused: dict[str, str]
) -> Iterator[tuple[str, Sums]]:
    """The sums of each reply that keeps to the request; who answered and who refused is noted in the last two.

    Raises QuorumError at the end if too few are left.
    """
    shapes = plan.algorithms[asking.request.ask].shapes(asking.request.exchange)
    last = ""
    for reply in replies:
        check(reply, asking.request, asking.sites, shapes)
        if said := foreign(reply.arrays, plan.study.protocol.codec):
            raise UpdateRejected(f"{said} from site '{reply.site}': its study file is another one, or its Fedrounds is")
        if reply.site <= last:
            raise UpdateRejected(f"expected one reply a site, in site order, found '{reply.site}' after '{last}'")
        last = reply.site
        if reply.refusal:
            refused[reply.site] = reply.refusal
            continue
        answered.append(reply.site)
        factor = asking.factors.get(reply.site)
        sums = widen(reply.arrays)
        yield reply.site, sums if factor is None else {**sums, "factor": np.array(factor)}
    if len(answered) < asking.quorum:
        reasons = (
            "; ".join(f"{site}: {reason}" for site, reason in sorted(refused.items())) or "the others did not answer"
        )
        raise QuorumError(
            f"expected answers of at least {asking.quorum} sites, found {len(answered)} of {len(asking.sites)} ({reasons})"
        )


def check(reply: Reply, request: Request, sites: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UpdateRejected unless the reply answers this request, comes from a site that was asked, and has the expected shapes."""
    if reply.site not in sites:
        raise UpdateRejected(
            f"expected a reply of {', '.join(sites[:8])}, found one of '{reply.site[:63]}': it was refused"
        )
    for name in ("study", "round", "exchange", "ask", "base"):
        asked, answered = getattr(request, name), getattr(reply, name)
        if asked != answered:
            raise UpdateRejected(
                f"expected {name} {str(asked)[:12]} in the reply of '{reply.site}', found {str(answered)[:12]}: it was refused"
            )
    if reply.refusal:
        return
    if "champion" in request.arrays:
        shapes = {**shapes, "paired": (PAIRED,)}
    if reply.arrays.keys() != shapes.keys():
        raise UpdateRejected(
            f"expected arrays {sorted(shapes)} from site '{reply.site}', found {sorted(reply.arrays)[:12]}: it was refused"
        )
    for name, shape in shapes.items():
        if reply.arrays[name].shape != shape:
            raise UpdateRejected(
                f"expected {name} of shape {shape}, found {reply.arrays[name].shape} from site '{reply.site}':"
                f" its cohort lacks or adds a column of the study"
            )
