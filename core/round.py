"""A round, without any input or output. Prefect, a plain loop and a network carry the same two functions.

    asking = open_round(state, plan, "train", sites, quorum)
    while isinstance(asking, Asking):
        replies = ...                      # carry asking.request to asking.sites, bring back what they answer
        asking = close_exchange(asking, plan, replies)
    asking.state                           # a Closed round: the next state, and what was learned

Arrival order never changes a bit: replies are folded in the order of site names. Where a study masks its sums, an exchange takes several
such steps (`core/masked.py`) before the sum of all is folded as one reply.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from fedrounds.core import encrypted, phases, sheets
from fedrounds.core.algorithm import Folded, Scores, Sums
from fedrounds.core.codec import beside, foreign, narrow, read
from fedrounds.core.encrypted import Encrypting
from fedrounds.core.errors import QuorumError, StudyError, UpdateRejected
from fedrounds.core.evaluate import PAIRED
from fedrounds.core.groups import Grouped, Parts, Rings, grouped, merged, opened_sums
from fedrounds.core.masked import TOGETHER, Keyring, Masking, Opened
from fedrounds.core.messages import Ask, Reply, Request, encode
from fedrounds.core.params import Array
from fedrounds.core.participation import EPOCHS, draw, first
from fedrounds.core.plan import Plan
from fedrounds.core.privacy.joint import HEARD
from fedrounds.core.privacy.sheet import Sheet
from fedrounds.core.state import RunState
from fedrounds.core.worse import Worse, counted

Keys = Keyring | Rings | encrypted.Keyring  # of one sum, of the sums of groups, of encrypted ones


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
    masking: Masking | Grouped | Encrypting | None = None  # where it stands, if the study hides its sums
    goal: int = 0  # replies that count, where not every site is asked or counts
    epochs: Mapping[str, int] = field(default_factory=dict[str, int])  # site -> how many it is asked for, by its speed

    def request_to(self, site: str) -> Request:
        """The request as one site gets it: the same for all, but for its epochs, what only it can unseal, or what its group is asked."""
        private = self.masking.private(site) if self.masking else None
        private = {EPOCHS: np.array([float(self.epochs[site])])} if site in self.epochs else private
        request = self.masking.request_of(site) if isinstance(self.masking, Grouped) else self.request
        return replace(request, arrays={**request.arrays, **private}) if private else request

    @cached_property
    def requests(self) -> Mapping[str, bytes]:
        """The request as it travels to each site: the same bytes for all, but for what masks let one alone unseal."""
        same, requests = encode(self.request), {site: self.request_to(site) for site in self.sites}
        return {site: same if request is self.request else encode(request) for site, request in requests.items()}


@dataclass(frozen=True)
class Roll:
    """What a masked round needs besides the study.

    Args:
        roster: site -> public Ed25519 key, as all have agreed outside the coordinator.
        number: for the next epoch of keys: higher than any that was ever used for this study.
        keyring: of the epoch at hand; None: new keys are asked for. Of a round that failed it must not be used again.
        before: what was asked (`phases.subject_of`) -> the sites of which its sum may have been opened before a crash: only they are
            asked again, since hospitals never open it of others.
    """

    roster: Mapping[str, bytes]
    number: int
    keyring: Keys | None = None
    before: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


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
    heard: tuple[str, ...] = ()  # under masks: whose sum it is; scores and training are then of all together
    clipped: int = 0  # under masks: numbers that were beyond the clip
    keyring: Keys | None = None  # under masks: for the next round
    worse: Worse | None = (
        None  # under masks: at how many sites the loss rose above the champion's, where that is counted
    )
    personal: Scores = field(
        default_factory=dict[str, tuple[Array, Array]]
    )  # of sites' own models, where they have any
    asked: tuple[str, ...] = ()  # in name order
    goal: int = 0  # replies that counted at most, where not every site was asked or counts
    counted: tuple[str, ...] = ()  # then: whose did
    epochs: Mapping[str, int] = field(default_factory=dict[str, int])  # site -> how many it was asked for, by its speed
    explained: Mapping[str, Sums] = field(
        default_factory=dict[str, Sums]
    )  # site -> sums by which the model is explained
    compared: bool = False  # under differential privacy: the model is to be judged, though it has no scores


def open_round(
    state: RunState,
    plan: Plan,
    ask: Ask,
    sites: Iterable[str],
    quorum: int = 1,
    factors: Mapping[str, float] | None = None,
    roll: Roll | None = None,
) -> Asking:
    """Open a round: agree on statistics first (round 0), then train; `score` asks for scores alone, `profile` for profiles.

    Only training draws sites (`core/participation.py`): the others ask all.

    Args:
        factors: of the sites that count for less: what their lambda is multiplied by when the replies are folded.
        roll: keys, where the study masks its sums.
    """
    everybody, goal = tuple(sorted(sites)), 0
    if ask == "train":
        everybody, goal, quorum = draw(plan.study.participation, state.study, state.round + 1, everybody, quorum)
    asking = _ask(state, plan, ask, everybody, quorum, {}, factors or {}, roll)
    if not goal:
        return asking
    unjudged = {
        name: array for name, array in asking.request.arrays.items() if name != "champion"
    }  # by some sites alone
    return replace(asking, goal=goal, request=replace(asking.request, arrays=unjudged))


def close_exchange(asking: Asking, plan: Plan, replies: Iterable[Reply]) -> Asking | Closed:
    """Fold the replies, given in site order, one at a time.

    Returns:
        The round's next exchange (under masks: or the exchange's next step), or the closed round.

    Raises:
        UpdateRejected: a reply is foreign, out of turn, given twice or not of the expected shape.
        QuorumError: too few sites answered; nothing has changed.
    """
    refused = dict(asking.refused)
    if asking.masking:
        return _unmasked(asking, asking.masking, plan, replies, refused)
    answered: list[str] = []
    algorithm = plan.algorithms[asking.request.ask]
    folded = algorithm.fold(asking.state, _accepted(asking, plan, replies, answered, refused))
    return _closed(asking, plan, folded, asking.request.ask, tuple(answered), refused)


def _closed(
    asking: Asking,
    plan: Plan,
    folded: Folded,
    ask: Ask,
    answered: tuple[str, ...],
    refused: Mapping[str, str],
    opened: Opened | Parts | None = None,
    clipped: int = 0,
    worse: Worse | None = None,
) -> Asking | Closed:
    masking = asking.masking
    keyring = opened.keyring if opened else None
    if folded.state.exchange:  # who missed an exchange takes no part in the round's next: sums are over the same sites
        roll = Roll(masking.roster, masking.number + 1, keyring, masking.before) if masking else None
        quorum = masking.quorum if masking else asking.quorum
        return _ask(folded.state, plan, ask, answered, quorum, refused, asking.factors, roll)
    return Closed(
        folded.state,
        ask,
        asking.state.round,
        folded.scores,
        folded.paired,
        folded.training,
        refused,
        folded.profiles,
        answered if masking else (),
        clipped,
        keyring,
        worse,
        folded.personal,
        asking.sites,
        asking.goal,
        answered if asking.goal else (),
        asking.epochs,
        folded.explained,
        folded.compared,
    )


def _unmasked(
    asking: Asking,
    masking: Masking | Grouped | Encrypting,
    plan: Plan,
    replies: Iterable[Reply],
    refused: dict[str, str],
) -> Asking | Closed:
    """The next step of an exchange under masks; after the last, the sum of those who were heard is folded."""
    after = masking.step(_kept(asking, plan, replies, refused), refused)
    if not isinstance(after, Opened | Parts):
        request, needed = after.request, after.needed
        return replace(asking, request=request, sites=after.sites, quorum=needed, refused=refused, masking=after)
    ask = masking.outer.ask
    sheet = sheet_of(plan, masking.outer)
    scale = sheets.scale(plan.study, masking.outer.arrays)
    if isinstance(after, Parts):
        groups, heard, clipped = opened_sums(after, sheet, scale, refused)
        folded = merged(plan.algorithms[ask].fold(asking.state, groups))
        return _closed(asking, plan, folded, ask, heard, refused, after, clipped)
    sheet.lighten(after.words, after.sites, len(after.heard), after.spare)
    sheet.require(after.words, after.sites, len(after.heard))
    sums, clipped = sheet.sums(after.words, after.sites)
    whole = sheets.together(sums, scale)
    if plan.study.privacy.dp:
        whole = {**whole, HEARD: np.array([len(after.heard), len(after.spare), after.sites])}
    folded = plan.algorithms[ask].fold(asking.state, [(TOGETHER, whole)])
    margin = plan.study.masked.margin if plan.study.masked else None
    worse = counted(sums["worse"], margin, len(after.heard)) if "worse" in sums and margin is not None else None
    return _closed(asking, plan, folded, ask, after.heard, refused, after, clipped, worse)


def sheet_of(plan: Plan, asked: Request) -> Sheet:
    """How the sums of an exchange become words under masks."""
    shapes = plan.algorithms[asked.ask].shapes(asked.exchange)
    return sheets.sheet(plan.study, asked.ask, asked.exchange, shapes, "champion" in asked.arrays)


def _kept(asking: Asking, plan: Plan, replies: Iterable[Reply], refused: dict[str, str]) -> Iterator[Reply]:
    """Each reply that keeps to the request and is no refusal; who refused is noted."""
    shapes, last = expected(asking.request, plan), ""
    for reply in replies:
        if isinstance(asking.masking, Grouped) and reply.site in asking.sites:  # groups may be of other sizes
            shapes = expected(asking.masking.request_of(reply.site), plan)
        check(reply, asking.request, asking.sites, shapes)
        if reply.site <= last:
            raise UpdateRejected(f"expected one reply a site, in site order, found '{reply.site}' after '{last}'")
        last = reply.site
        if reply.refusal:
            refused[reply.site] = reply.refusal
        else:
            yield reply


def _ask(
    state: RunState,
    plan: Plan,
    ask: Ask,
    sites: tuple[str, ...],
    quorum: int,
    refused: Mapping[str, str],
    factors: Mapping[str, float],
    roll: Roll | None,
) -> Asking:
    payload = narrow(plan.algorithms[ask].ask(state), plan.study.protocol.codec)
    number = state.round + 1 if ask == "train" else state.round
    request = Request(state.study, number, state.exchange, ask, state.model_digest, payload)
    protect = plan.study.masked
    if protect is None:
        return Asking(state, request, sites, quorum, refused, factors)
    if roll is None:
        raise StudyError(
            "expected keys for a study that masks its sums, found none: this way of running it has no masks"
        )
    again = roll.before.get(phases.subject_of(request), sites)
    sites = tuple(site for site in sites if site in again)
    if ckks := encrypted.protecting(plan.study):
        layout = sheet_of(plan, request).layout()
        masking = encrypted.begin(
            request, sites, roll.roster, roll.number, ckks, quorum, layout, roll.keyring, roll.before
        )
        return Asking(state, masking.request, masking.sites, masking.needed, refused, factors, masking)
    masking = Masking(request, sites, roll.roster, roll.number, protect.batch, quorum, before=roll.before)
    if plan.study.median:
        rings, missing = roll.keyring if isinstance(roll.keyring, Rings) else None, dict(refused)
        parts = grouped(masking, protect.groups, plan.study.median.fewest, rings, missing)
        return Asking(state, parts.request, parts.sites, parts.needed, missing, factors, parts)
    if isinstance(roll.keyring, Keyring) and roll.keyring.serves(sites):
        masking = replace(masking, phase="masked", keyring=roll.keyring)
    return Asking(state, masking.request, sites, masking.needed, refused, factors, masking)


def _accepted(
    asking: Asking, plan: Plan, replies: Iterable[Reply], answered: list[str], refused: dict[str, str]
) -> Iterator[tuple[str, Sums]]:
    """The sums of each reply that keeps to the request; who answered and who refused is noted in the last two.

    Raises QuorumError at the end if too few are left.
    """
    for reply in _counted(asking, _kept(asking, plan, replies, refused)):
        if said := foreign(reply.arrays, plan.study.protocol.codec):
            raise UpdateRejected(f"{said} from site '{reply.site}': its study file is another one, or its Fedrounds is")
        answered.append(reply.site)
        factor = asking.factors.get(reply.site)
        sums = read(reply.arrays, plan.study.protocol.codec, asking.request)
        yield reply.site, sums if factor is None else {**sums, "factor": np.array(factor)}
    if len(answered) < asking.quorum:
        reasons = (
            "; ".join(f"{site}: {reason}" for site, reason in sorted(refused.items())) or "the others did not answer"
        )
        raise QuorumError(
            f"expected answers of at least {asking.quorum} sites, found {len(answered)} of {len(asking.sites)} ({reasons})"
        )


def _counted(asking: Asking, replies: Iterator[Reply]) -> Iterator[Reply]:
    """No more than the goal, if there is one: then all replies are held until it is known who has answered."""
    if not asking.goal:
        yield from replies
        return
    held = list(replies)
    counts = first(asking.request.study, asking.request.round, (reply.site for reply in held), asking.goal)
    yield from (reply for reply in held if reply.site in counts)


Shapes = Mapping[str, tuple[tuple[int, ...], str]]  # name -> shape and, of words, the type


def check(reply: Reply, request: Request, sites: tuple[str, ...], shapes: Shapes) -> None:
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
    if reply.arrays.keys() != shapes.keys():
        raise UpdateRejected(
            f"expected arrays {sorted(shapes)} from site '{reply.site}', found {sorted(reply.arrays)[:12]}: it was refused"
        )
    for name, (shape, words) in shapes.items():
        found = reply.arrays[name]
        if found.shape != shape:
            raise UpdateRejected(
                f"expected {name} of shape {shape}, found {found.shape} from site '{reply.site}':"
                f" its cohort lacks or adds a column of the study"
            )
        if words and found.dtype != words:
            raise UpdateRejected(
                f"expected {name} as {words}, found {found.dtype} from site '{reply.site}': it was refused"
            )


def expected(request: Request, plan: Plan) -> Shapes:
    """What an answer holds."""
    of_rows = request.ask not in phases.PHASES
    if encrypted.protecting(plan.study):
        return encrypted.expected(request, sheet_of(plan, request).layout() if of_rows else {})
    if not of_rows:
        return phases.expected(request, {})
    if plan.study.masked:
        return phases.expected(request, sheet_of(plan, request).layout())
    shapes = beside(plan.algorithms[request.ask].shapes(request.exchange), plan.study.protocol.codec)
    if "champion" in request.arrays:
        shapes = {**shapes, ("compared" if plan.study.privacy.dp else "paired"): (PAIRED,)}
    return {name: (shape, "") for name, shape in shapes.items()}
