"""What goes into a ledger and comes out of it: plain values, which know of no database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedrounds.core.state import RunState


@dataclass(frozen=True)
class Lineage:
    """One protocol's life in one ledger: MLflow's parent run."""

    name: str
    digest: str
    lineage: str  # random
    created: float


@dataclass(frozen=True)
class Verdict:
    """What a site's gate said of its data. `verdict` holds only what may leave a site; `since` is the visit that it was given on."""

    passed: bool
    verdict: Mapping[str, Any]
    since: int = 0  # set by the ledger


@dataclass(frozen=True)
class Decision:
    """Whether the model of `round` became champion by the rule, and why; `pending`: it passed, and waits for a person."""

    round: int
    promoted: bool
    reason: str
    model: str
    visit: int = 0  # set by the ledger
    pending: bool = False


@dataclass(frozen=True)
class Act:
    """What a person did about a version: made it champion, turned it down, or went back to it. It came after `visit` and before the next."""

    number: int
    visit: int
    at: float
    act: Literal["promote", "reject", "rollback"]
    round: int
    model: str
    reason: str
    by: str


@dataclass(frozen=True)
class Visit:
    """A visit to the sites that closed, to be committed.

    `round` is the training round that it closes, 0 for statistics, and the round that was scored for a closing `score`. Numbers in
    `record` are finite; None says undefined. `verdicts` are the new ones: a site that is not named keeps its last.
    """

    round: int
    ask: str
    base: str  # digest of the model that came in
    state: RunState  # after the visit
    record: Mapping[str, Any]
    suite_hash: str
    operations_version: int
    started: float
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    promotions: Sequence[Decision] = ()


@dataclass(frozen=True)
class Entry:
    """A committed visit, without its state."""

    visit: int
    round: int
    ask: str
    base: str
    model: str  # digest of the model after the visit
    suite_hash: str
    operations_version: int
    started: float
    committed: float
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """A try that did not close: the `attempt`th at `visit`."""

    visit: int
    attempt: int
    round: int
    ask: str
    reason: str
    started: float
    failed: float


@dataclass(frozen=True)
class Head:
    """Where the study stands."""

    visit: int
    state: RunState


@dataclass(frozen=True)
class Attempt:
    """Requests that went out for `visit`; its number is used once. `asking` is empty once it has closed."""

    number: int
    visit: int
    round: int
    exchange: int
    opened: float
    deadline: float
    closed: float | None
    outcome: Literal["", "committed", "failed", "dropped"]
    asking: bytes = field(repr=False)


@dataclass(frozen=True)
class Receipt:
    """What came in from a site for an attempt, and what became of it: only what was `taken` is in a model.

    `declined` is the site's own refusal, `refused` ours. `digest` is that of the message; the bytes are as they travelled.
    """

    attempt: int
    exchange: int
    site: str
    digest: str
    outcome: Literal["taken", "declined", "late", "refused"]
    reason: str = ""
    bytes_in: int = 0  # to the site
    bytes_out: int = 0  # from it
    received: float = 0.0  # set by the ledger
