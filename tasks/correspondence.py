"""A study whose hospitals are really apart: the same run, carried by mail. No Prefect in here.

A question is put into every mailbox under a number that is never used again, and closes when all have answered, or at the deadline with a
quorum. Nothing of a question that did not close is needed any more: after a crash the run asks anew, and a hospital that has answered
before signs the very same bytes for the new number.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from threading import Lock
from typing import Any

from fedrounds.core.asking import dump
from fedrounds.core.encrypted import Encrypting
from fedrounds.core.groups import Grouped
from fedrounds.core.masked import Masking
from fedrounds.core.messages import Ask, Finding, Reply, Request, decode
from fedrounds.core.phases import step_of, subject_of
from fedrounds.core.privacy.agreed import rosters_of
from fedrounds.core.round import Asking, Roll
from fedrounds.ledger import Receipt
from fedrounds.tasks import drift, participation, updates, witness
from fedrounds.tasks.acts import present
from fedrounds.tasks.desk import Desk, Question
from fedrounds.tasks.run import Run
from fedrounds.tasks.verdict import Verdict, received

FRESH = (
    "fresh data"  # the ledger's note: site -> the visit after which it said that it has other data than were profiled
)
LATE = "it came after its question had closed"
ENOUGH = "it came after as many as the round wants"
REMEMBERED = 8  # sums of whom it is known who was in them: more than a visit has
GRACE_S = 2.0  # that the last few have to sign or to open, once as many as are needed have
AWAY = "no answer before the deadline"


class Correspondence(Run):
    """A run whose wards are desks: what a hospital says comes by mail, or not at all."""

    wards: dict[str, Desk]  # type: ignore[assignment]
    everybody: Mapping[str, Desk]  # type: ignore[assignment]
    carrier = "mail"

    def resume(self) -> None:
        """Go on from the ledger after something went away: what was under way is asked again.

        Raises:
            ServiceError: it is still away.
        """
        self.close()  # the projector: its connections are as lost as ours were
        self._track = self._tracking = None
        self.ledger.renew()
        head = self.ledger.head()
        if head:
            self.visit, self.state = head.visit, present(self.ledger, head)

    def __init__(self, *opened: Any) -> None:
        super().__init__(*opened)
        study, federation = self.folder.study, self.folder.operations.federation
        if federation.keep_updates and not (study.masked or study.privacy.dp):  # else there are none of one hospital
            self.plan = updates.keeping(self.plan, self.place.own / updates.FOLDER)

    # --- one question -------------------------------------------------------------------------------------------------

    def open(self, ask: Ask) -> Asking:
        """The next round, with the epochs that each hospital is asked for, where the study chooses them by speed."""
        return participation.at_their_pace(self, super().open(ask))

    def question(self, asking: Asking) -> Question:
        """An open exchange under a number of its own, which is in the ledger before anybody hears of it."""
        deadline = time.time() + self.folder.operations.federation.deadline_s
        self.ledger.drop_attempt()  # of a run that died, or of the exchange before: nothing of it is needed
        digests = {site: sha256(request).hexdigest() for site, request in asking.requests.items()}
        rosters = rosters_of(asking.masking)
        opened = self.ledger.open_attempt(self.visit, dump(asking), deadline, digests, rosters)
        self._looked_at = {name: set[str]() for name in self.everybody}
        self._answered, self._enough = 0, 0.0
        self._places, self._came, self._turn = list[str](), set[str](), Lock()
        if (
            asking.goal
        ):  # who had answered before a crash keeps its place, so that a crash changes nothing of who counts
            before = self.ledger.first_to_answer(self.visit + 1, asking.request.round)
            self._places = [site for site in before if site in asking.sites]
        shown = witness.shown(self.ledger, opened.number, asking.sites)
        self.asked = Question(self.visit + 1, opened.number, asking, deadline, shown)
        return self.asked

    def roll(self) -> Roll:
        """The keys of a masked round: a number that was never used is that of the next question."""
        keyring, self._keyring = self._keyring, None
        roster = next(iter(self.wards.values())).roster
        return Roll(roster, 1 + self.ledger.newest_attempt(), keyring, self._before())

    def opening(self, masking: Masking | Grouped | Encrypting) -> None:
        """Note of whom a sum will be opened, before anybody is asked to: hospitals never open it of others."""
        self.ledger.note("opened", {**self._before(), subject_of(masking.outer): masking.alive})

    def _before(self) -> Mapping[str, tuple[str, ...]]:
        """Of whom the last few sums were opened, or may have been."""
        known: Mapping[str, Sequence[str]] = self.ledger.noted("opened") or {}
        return {subject: tuple(known[subject]) for subject in list(known)[-REMEMBERED:]}

    def gate(self) -> Asking:
        """With what every run begins: do the data of each hospital pass its gate?"""
        request = Request(self.state.study, self.state.round, 0, "gate", self.state.model_digest, {})
        sites = tuple(sorted(self.wards))
        return Asking(self.state, request, sites, self.folder.operations.quorum_of(len(sites)))

    def post(self, question: Question, sites: Sequence[str]) -> None:
        """Clear each mailbox of what is over, and put the question into it."""
        for name in sites:
            self._clear(name, question)
            self.everybody[name].ask(question)
        if question.asking.goal:  # who is not asked this time need not go on with the last question
            for name in sorted(self.everybody.keys() - set(question.asking.sites)):
                self._clear(name, question)

    def clear(self) -> None:
        """Leave every mailbox empty but for the study, after the last question."""
        for name in self.everybody:
            self._clear(name, self.asked, all_of_it=True)

    def _clear(self, name: str, question: Question, all_of_it: bool = False) -> None:
        """Drop what is over; a reply among it that was not taken came too late, and is written down."""
        for left in self.everybody[name].sweep(None if all_of_it else question):
            number, exchange = question.number_of(left), int(left.phase.rpartition("-")[2])
            if number > 0:  # else a name that no question ever had
                self.ledger.note_reply(Receipt(number, exchange, name, left.digest, "late", LATE))

    def look(self, site: str, question: Question) -> bytes | None:
        """What the site has answered, None while it has not; what is no answer is written down and passed over."""
        desk, number, exchange = self.everybody[site], question.attempt, question.request.exchange
        for it in desk.received(question, self._looked_at[site]):
            outcome = "refused" if it.refused else "declined" if it.declined else "taken"
            reason = it.refused or it.declined
            with self._turn:  # what the ledger has in order is what counts
                if outcome == "taken" and not self._place(site, question.asking.goal):
                    outcome, reason = "late", ENOUGH
                self.ledger.note_reply(Receipt(number, exchange, site, it.name, outcome, reason, desk.sent, it.size))
            if outcome in ("taken", "declined"):
                desk.crossed(step_of(question.request), desk.sent, it.size)
                self._answered += not it.declined
                witness.collect(self.ledger, desk, question)
                return it.message
        return None

    def _place(self, site: str, goal: int) -> bool:
        """Whether a site's answer is among those that count: the first, as many as the round wants."""
        if site not in self._places and 0 < goal <= len(self._places):
            return False
        self._came.add(site)
        self._places += [site] if site not in self._places else []
        return True

    def enough(self, question: Question) -> bool:
        """Whether nobody else need be waited for: a round has its goal, or of shares and signatures, what is needed is as good as all."""
        if goal := question.asking.goal:
            return len(self._places) >= goal and self._came.issuperset(self._places)
        masking = question.asking.masking
        waits = masking.waits if masking else question.asking.quorum
        if question.request.ask not in ("agree", "open") or self._answered < waits:
            return False
        self._enough = self._enough or time.monotonic()
        return time.monotonic() - self._enough > GRACE_S  # one who lies must not keep out one who is a moment later

    def answering(self, replies: Sequence[bytes]) -> int:
        """How many of the replies are no refusals."""
        return sum(not decode(reply, Reply).refusal for reply in replies)

    def unanswered(self, request: Request, found: int, quorum: int) -> None:
        """Record a question that closed without a quorum, and is asked again."""
        reason = f"expected answers of at least {quorum} sites before the deadline, found {found}: asked again"
        self.ledger.fail(request.round, reason, self.started, request.ask)

    def late(self, question: Question) -> bool:
        """Whether the question's time is over, by the coordinator's clock alone."""
        return time.time() >= question.deadline

    # --- the gate -----------------------------------------------------------------------------------------------------

    def found(self, findings: Sequence[bytes]) -> dict[str, Verdict]:
        """The verdicts that came. Who refused, or did not answer, is asked in the rounds all the same: it may be back by then.

        Which hospitals have data that no profile has seen yet is kept in the ledger, with the visit after which they said so.
        """
        said = [decode(message, Finding) for message in findings]
        fresh = {it.site: self.visit for it in said if it.fresh}
        if fresh:
            self.ledger.note(FRESH, (self.ledger.noted(FRESH) or {}) | fresh)
        return {it.site: received(it.site, it.verdict) for it in said if not it.refusal}

    def unprofiled(self) -> bool:
        """Whether a hospital that takes part has said that it has data which no profile has seen."""
        profiled = {site: visit for visit, its in drift.known(self).items() for site in its}
        fresh = self.ledger.noted(FRESH) or {}
        return any(profiled.get(site, -1) <= fresh.get(site, -1) or site not in profiled for site in self.taking_part)

    def profiled(self, sites: Iterable[str], visit: int) -> None:
        """The ledger's own profiles say it."""

    def unheard(self, findings: Sequence[bytes]) -> Mapping[str, str]:
        """Who gave no verdict, and why."""
        said = {it.site: it.refusal for it in (decode(message, Finding) for message in findings)}
        return {name: said.get(name, AWAY) for name in self.wards if said.get(name, AWAY)}


def spoken(unheard: Mapping[str, Any]) -> str:
    """Who gave no verdict, in a line."""
    return "; ".join(f"{site}: {reason}" for site, reason in unheard.items())
