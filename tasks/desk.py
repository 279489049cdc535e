"""A hospital out in the world, as its coordinator sees it: a name, a key, a mailbox, and what came of the last question. No rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from fedrounds.core import identity
from fedrounds.core.codec import foreign
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.identity import ENVELOPE, About
from fedrounds.core.messages import LARGEST_HEADER, Finding, Reply, Request, decode
from fedrounds.core.plan import Plan
from fedrounds.core.round import Asking, check, expected
from fedrounds.exchange.exchange import Exchange
from fedrounds.exchange.name import Name, folder
from fedrounds.tasks.traffic import Traffic
from fedrounds.tasks.verdict import received

MOST_OBJECTS = 8  # of one site in answer to one question; more are not read
REPLY = re.compile(r"reply-[0-9]{1,6}")


@dataclass(frozen=True)
class Question:
    """One request to every taking-part site: what the ledger calls it, and its words."""

    visit: int
    attempt: int
    asking: Asking
    deadline: float  # Unix seconds, by the coordinator's clock
    shown: Mapping[str, bytes] = field(default_factory=dict[str, bytes])  # what each site is shown of the audit log

    @property
    def request(self) -> Request:
        """What is asked of all; under masks, what only one site can unseal comes besides."""
        return self.asking.request

    def about(self, site: str, direction: identity.Direction) -> About:
        """What the envelope of a request to a site, or of its reply, says."""
        asked = self.request
        return About(asked.study, asked.round, self.attempt, asked.exchange, site, direction, asked.base)

    def number_of(self, name: Name) -> int:
        """The attempt, of this or an earlier question, that an object belongs to: its name holds the last three digits."""
        return self.attempt - (self.attempt - name.attempt) % 1000

    def folder(self, phase: str) -> tuple[int, int, str]:
        """Where in a mailbox its requests or replies are."""
        return self.visit, self.attempt % 1000, f"{phase}-{self.request.exchange}"


@dataclass(frozen=True)
class Received:
    """What came of a site: the bytes of a message that keeps to the question, or why they were refused."""

    name: str  # the object's digest
    message: bytes
    refused: str
    size: int  # bytes that came
    declined: str = ""  # the hospital's own refusal


class Desk(Traffic):
    """One hospital of the roster.

    Args:
        public: its public key, 32 bytes.
        key: the coordinator's private key.
    """

    def __init__(self, name: str, mailbox: Exchange, public: bytes, key: bytes, plan: Plan) -> None:
        super().__init__()
        self.name, self.mailbox, self.plan = name, mailbox, plan
        self.public, self._key = public, key
        self.roster: Mapping[str, bytes] = {}  # whose keys count under masks
        self.cohort = self.rows = None  # they are at the hospital, and stay there
        self.fingerprint = self.problem = ""
        self.sent = 0  # bytes of the last question, in its envelope
        self.fresh = False  # it has data that no profile has seen

    def __repr__(self) -> str:
        return f"Desk({self.name})"

    def ask(self, question: Question) -> None:
        """Put the question into the mailbox; again changes nothing. Raises ServiceError where the mailbox does not do its part."""
        request = question.asking.requests[self.name]
        signed = identity.sign(self._key, question.about(self.name, "request"), request)
        self.sent = len(signed)
        if shown := question.shown.get(self.name):  # before the question: who finds that looks for this
            self.mailbox.put(Name.of(shown, *question.folder("checkpoint")), shown)
        self.mailbox.put(Name.of(signed, *question.folder("request")), signed)

    def received(self, question: Question, known: set[str]) -> list[Received]:
        """What has come since: each object once.

        Args:
            known: names of objects that were looked at already; what is looked at now is added.
        """
        found: list[Received] = []
        for name in self.mailbox.list(folder(*question.folder("reply")))[:MOST_OBJECTS]:
            if name.digest not in known:
                known.add(name.digest)
                found.append(self._looked_at(name, question))
        return found

    def _looked_at(self, name: Name, question: Question) -> Received:
        try:
            signed = self.mailbox.get(name, self._largest(question.asking.request_to(self.name)) + ENVELOPE)
            if signed is None:
                raise UpdateRejected(f"expected an object at {name.folder}, found none: it was dropped")
            payload = identity.verify(self.public, question.about(self.name, "reply"), signed)
            declined = self._checked(payload, question)
        except UpdateRejected as error:
            return Received(name.digest, b"", str(error), 0)
        return Received(name.digest, payload, "", len(signed), declined)

    def _checked(self, payload: bytes, question: Question) -> str:
        """The hospital's own refusal, empty if it answered.

        Raises UpdateRejected unless the payload is an answer to the question, of this site, in the expected shape.
        """
        request = question.request
        if request.ask == "gate":
            found = decode(payload, Finding)
            said = found.study, found.round, found.exchange, found.ask, found.base, found.site
            if said != (request.study, request.round, request.exchange, request.ask, request.base, self.name):
                raise UpdateRejected(
                    f"expected what the gate of '{self.name}' found, found another message: it was refused"
                )
            if not found.refusal:
                received(self.name, found.verdict)
            return found.refusal
        reply, request = (
            decode(payload, Reply),
            question.asking.request_to(self.name),
        )  # groups under masks are asked by themselves
        check(reply, request, (self.name,), expected(request, self.plan))
        if not self.plan.study.masked and (said := foreign(reply.arrays, self.plan.study.protocol.codec)):
            raise UpdateRejected(f"{said} from site '{self.name}': it was refused")
        return reply.refusal

    def _largest(self, request: Request) -> int:
        """Bytes that an answer can have at most."""
        if request.ask == "gate":
            return LARGEST_HEADER
        return LARGEST_HEADER + 8 * sum(prod(shape) for shape, _ in expected(request, self.plan).values())

    def sweep(self, question: Question | None = None) -> list[Name]:
        """Drop what is left of other questions than this one; returns the replies among it, of which no more than a few are told:
        counted ones, and those that came too late. What is no reply's name is dropped in silence: a site may put anything there.
        """
        kept = question.folder("any")[:2] if question else (0, 0)
        left: list[Name] = []
        for place in self.mailbox.folders():
            if place == folder(0):
                continue
            for name in self.mailbox.list(place):
                if (name.round, name.attempt) != kept:
                    left += [name] if REPLY.fullmatch(name.phase) else []
                    self.mailbox.drop(name)
        return left[: 4 * MOST_OBJECTS]
