"""A hospital that takes part from afar: it looks into its mailbox, decides by its own policy, answers, and remembers. No Prefect in here.

    hospital = Hospital(Path("site"))
    while letter := hospital.look():
        hospital.answer(letter)

It runs installed code on data alone: a coordinator can ask only for what its algorithms know, of the table and the columns that site.toml
names, and every request must bear the coordinator's signature.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedrounds.core import answer as answers
from fedrounds.core import identity
from fedrounds.core.algorithm import SiteState
from fedrounds.core.encrypted import third_party
from fedrounds.core.encrypting import opens
from fedrounds.core.errors import StudyError, UpdateRejected
from fedrounds.core.groups import roster_of
from fedrounds.core.identity import About
from fedrounds.core.masked import Self
from fedrounds.core.messages import Finding, Reply, Request, answer_to, decode, encode, pack, unpack
from fedrounds.core.phases import PHASES
from fedrounds.core.privacy import vault as vaults
from fedrounds.core.privacy.epoch import roster_digest
from fedrounds.exchange.name import Name, folder
from fedrounds.site.book import Asked, Book, Question
from fedrounds.site.budget import Budgets
from fedrounds.tasks import consent, privacy
from fedrounds.tasks.folder import read_site
from fedrounds.tasks.joined import Joined, forget, join, stale
from fedrounds.tasks.mailboxes import mailbox_of, public_key_of, read_key
from fedrounds.tasks.memory import begins
from fedrounds.tasks.verdict import Verdict, broken, line, to_json
from fedrounds.tasks.withheld import withheld
from fedrounds.tasks.witness import Witness

LARGEST_REQUEST = 256 << 20  # bytes; what a coordinator may make a hospital read
OFF_RECORD = "the coordinator shows no log, and the key holder opens a sum only when the log holds whose it is and what each signed"
NO_ROSTER = "its people have not agreed on the hospitals' keys, which masks need: `fedrounds site roster`"
OTHER_GROUP = (
    "its group under masks would be another one by the roster that its people agreed on since: two groups' sums would tell of one site, so begin"
    " a new study"
)
NOT_ITS = "it has no patients, and the study does not name it as the `holder` of its key"
OTHER_ROSTER = "the coordinator's log says that it was asked under another roster than the one that its people agreed on: compare the digests"
OF_ANY_ROUND = {"explain", *PHASES}  # an old champion may be asked about; epochs and indices protect masks
GATE_S = 900  # of one gate; a suite may hold a pattern that never ends


@dataclass(frozen=True, repr=False)
class Letter:
    """A request that is the coordinator's, about this hospital, and not answered yet."""

    name: Name
    about: About
    request: Request
    size: int  # bytes that came
    unlogged: str = ""  # why the coordinator's log does not bear it out
    rosters: tuple[str, ...] | None = None  # under which it was asked, as that log says; None where it is not shown

    def __repr__(self) -> str:
        return f"Letter({self.name.folder})"


@dataclass(frozen=True, repr=False)
class Answer:
    """What goes back: the message's bytes, what they are in words, and the state that they leave."""

    message: bytes
    outcome: str  # answered, again, refused
    reason: str = ""
    state: bytes | None = None

    def __repr__(self) -> str:
        return f"Answer({self.outcome})"


class Hospital:
    """One hospital's side of its studies.

    Args:
        home: the folder that `fedrounds site join` wrote: site.toml, site.key, state/.

    Raises:
        StudyError, StateError: the folder says what it cannot mean, or lacks something.
    """

    def __init__(self, home: Path) -> None:
        self.home, self.file = home, read_site(home / "site.toml")
        if self.file.coordinator is None:
            raise StudyError(
                f"expected [coordinator] in {home / 'site.toml'}, found none: `fedrounds site join` writes it"
            )
        self.name = self.file.name
        self.key = read_key(home / "site.key")
        self.coordinator = public_key_of(self.file.coordinator.key, "the coordinator's")
        self.mailbox = mailbox_of(self.file.coordinator, home)
        self.book = Book(home / "state" / "book.db")
        self.witness = Witness(self.name, self.mailbox, self.book, self.coordinator, self.key)
        self.budgets = Budgets(home / "state" / privacy.FILE)
        self._joined: dict[str, Joined] = {}

    def close(self) -> None:
        """Let go of the book and of the helper processes."""
        for joined in self._joined.values():
            joined.gates.kill()
        self.book.close()
        self.budgets.close()

    # --- the mailbox --------------------------------------------------------------------------------------------------

    def look(self) -> Letter | None:
        """The newest request, if it is still to be answered; what is not to be trusted is written down and passed over.

        Older ones are not looked at: a coordinator has one question open at a time.

        Raises:
            ServiceError: the mailbox cannot be reached.
        """
        name = self._newest()
        if name is None or self.book.dealt_with(str(name)):
            return None
        try:
            return self._opened(name)
        except UpdateRejected as error:
            self.book.note(Asked(time.time(), str(name), "", 0, "", "rejected", str(error), 0, 0, 0.0))
            return None

    def _newest(self) -> Name | None:
        where = ""
        for _ in range(2):  # the last round, its last attempt
            inside = self.mailbox.folders(where)
            if not inside or inside[-1] == folder(0):
                return None
            where = inside[-1]
        phases = [
            path for path in self.mailbox.folders(where) if re.fullmatch(r"request-[0-9]+", path.rpartition("/")[2])
        ]
        names = self.mailbox.list(max(phases, key=_exchange)) if phases else []
        return names[-1] if names else None

    def _opened(self, name: Name) -> Letter | None:
        signed = self.mailbox.get(name, LARGEST_REQUEST)
        if signed is None:  # dropped meanwhile
            return None
        about = identity.claim(signed, LARGEST_REQUEST)
        payload = self._verified(about, signed)
        request = decode(payload, Request, LARGEST_REQUEST)
        if (about.site, about.direction, about.attempt % 1000) != (self.name, "request", name.attempt):
            raise UpdateRejected(
                f"expected a request to '{self.name}' at {name.folder}, found another one there: it was refused"
            )
        said = request.study, request.round, request.exchange, request.base
        if said != (about.study, about.round, about.exchange, about.base):
            raise UpdateRejected("expected a request about what its envelope says, found another one: it was refused")
        if request.round + 1 < (newest := self.book.newest(request.study)) and request.ask not in OF_ANY_ROUND:
            raise UpdateRejected(
                f"expected a request about round {newest} or later, found one about round {request.round}: it is an old one"
            )
        return Letter(name, about, request, len(signed), *self.witness.borne(name, request.study, payload))

    def _verified(self, about: About, signed: bytes) -> bytes:
        return identity.verify(self.coordinator, about, signed, LARGEST_REQUEST)

    def send(self, letter: Letter, answer: Answer, started: float | None = None) -> int:
        """Sign an answer, put it into the mailbox and write it down; returns its bytes. Again is the same bytes again."""
        about = replace(letter.about, direction="reply")
        signed = identity.sign(self.key, about, answer.message)
        phase = letter.name.phase.replace("request", "reply")
        self.witness.sign(letter.name, letter.request.study)
        self.mailbox.put(Name.of(signed, letter.name.round, letter.name.attempt, phase), signed)
        seconds = 0.0 if started is None else time.monotonic() - started
        self.book.note(
            Asked(
                time.time(), str(letter.name), letter.request.study, letter.request.round, letter.request.ask,
                answer.outcome, answer.reason, letter.size, len(signed), seconds,
            )
        )  # fmt: skip
        return len(signed)

    # --- answering ----------------------------------------------------------------------------------------------------

    def answer(self, letter: Letter) -> Answer:
        """Decide, work, remember, send."""
        started = time.monotonic()
        answer = self.given(letter) or self.work(letter)
        self.send(letter, answer, started)
        return answer

    def given(self, letter: Letter) -> Answer | None:
        """The answer without any work: the one that was given before, or the policy's refusal; None if there is work to do."""
        if self.file.source is None and letter.request.ask not in PHASES:
            return self._refused(letter.request, answers.NO_ROWS)
        unlogged = letter.unlogged or (OFF_RECORD if self._off_record(letter.request) else "")
        if unlogged:
            return self._refused(letter.request, unlogged)
        before = self.book.reply(self.question(letter.request))
        if before is not None:
            return Answer(before, "again")
        refusal = consent.refusal(letter.request, self.file, self.book)
        return self._refused(letter.request, refusal) if refusal else None

    def _off_record(self, request: Request) -> bool:
        """Whether an encrypted sum is to be opened that no log bears out. Masked sums need none: their sites agree among each other."""
        return opens(request) and not self.witness.kept(request.study)

    def question(self, request: Request) -> Question:
        """What is asked, however often it is sent, and what its answer hangs on."""
        judged = self.book.fact(f"judged {request.study}") or {}
        here = [judged.get("fingerprint"), judged.get("said"), self.file.policy.model_dump(mode="json")]
        about = sha256(encode(request) + json.dumps(here, sort_keys=True).encode()).hexdigest()
        return Question(request.study, request.round, request.exchange, request.ask, request.base, about)

    def work(self, letter: Letter) -> Answer:
        """The answer that takes the hospital's rows: stored, with the state that it leaves, before anybody sees it.

        Raises:
            ServiceError: the rows cannot be had now, or the disk is full: nothing was sent, a later look tries again.
        """
        with withheld("an answer to a request"):
            return self._worked(letter.request, letter.rosters)

    def _worked(self, request: Request, rosters: tuple[str, ...] | None) -> Answer:
        if request.ask == "gate" and stale(request.study, self.mailbox, self.home):
            self._forget(request.study)
        joined = self.joined(request.study)
        if isinstance(joined, str):
            return self._refused(request, joined)
        if request.ask == "gate":
            try:
                return self.found(request, self.judged(joined))
            except StudyError:  # waiting mends it no more than asking again does
                return self._refused(request, "the study's suite says what the gate here cannot check")
            except TimeoutError:
                return self._refused(request, f"its gate found nothing within {GATE_S} s")
        refusal = "" if request.ask in PHASES else self.changed(joined)
        if refusal:
            return self._refused(request, refusal)
        after, reply, learnt = self._answered(request, joined, rosters)
        if reply.refusal:
            return self._refused(request, reply.refusal)
        answer = Answer(encode(reply), "answered", state=pack({}, after))
        if request.ask == "profile":
            learnt = {**learnt, f"profiled {request.study}": joined.ward.fingerprint}
        state = answer.state if request.ask == "train" else None
        self.book.keep(self.question(request), answer.message, state, **learnt)
        return answer

    def _answered(
        self, request: Request, joined: Joined, rosters: tuple[str, ...] | None
    ) -> tuple[SiteState, Reply, Mapping[str, Any]]:
        """The memory that the answer leaves, the answer, and what must be in the book before it is sent."""
        ward, arrays = joined.ward, request.arrays
        agreed = {name: arrays[name].tobytes() for name in ("impute", "center", "scale") if name in arrays}
        if len(agreed) == 3 and (ward.rows is None or agreed != joined.statistics):
            ward.rows, joined.statistics = None, {}
            if all(
                arrays[name].shape == shape
                for name, shape in joined.plan.algorithms["score"].takes(0).items()
                if name in agreed
            ):
                ward.preprocess({name: arrays[name] for name in agreed})
                joined.statistics = agreed
        kept = self.book.state(request.study, begins(request))
        memory: SiteState = unpack(kept)[1] if kept else {}
        if joined.plan.study.masked is None:
            return *ward.reply(request, memory), {}
        if self.file.source is None and third_party(joined.plan.study) != self.name:
            return memory, answer_to(request, self.name, NOT_ITS), {}
        roster, key = self.roster(), f"vault {request.study}"
        if not roster:
            return memory, answer_to(request, self.name, NO_ROSTER), {}
        groups = joined.plan.study.masked.groups
        group = roster_of(self.name, roster, groups, request.study) if groups > 1 else {}
        mine = {name: public.hex() for name, public in group.items()}
        if (self.book.fact(f"group {request.study}") or mine) != mine:
            return memory, answer_to(request, self.name, OTHER_GROUP), {}
        if rosters is not None and roster_digest(group or roster).hex() not in rosters:
            return memory, answer_to(request, self.name, OTHER_ROSTER), {}
        vault = self.book.fact(key)
        before = vaults.load(bytes.fromhex(vault)) if vault else answers.empty(joined.plan)
        secrets, after, reply = ward.masked(request, before, Self(self.name, self.key, roster), memory)
        kept = {f"group {request.study}": mine} if mine else {}
        return after, reply, {key: vaults.dump(secrets).hex(), **kept}

    def roster(self) -> Mapping[str, bytes]:
        """Whose keys count under masks, as people here have agreed with the other hospitals; empty until they have."""
        agreed: Mapping[str, str] = self.book.fact("roster") or {}
        return {name: bytes.fromhex(key) for name, key in agreed.items()}

    def judged(self, joined: Joined) -> Verdict:
        """The gate's verdict, written down with what it is about: the coming rounds rest on it."""
        verdict, ward = self.verdict(joined), joined.ward
        said = {"fingerprint": ward.fingerprint, "action": verdict.action, "said": line(verdict), "at": time.time()}
        self.book.learn(f"judged {joined.plan.digest}", said)
        return verdict

    def verdict(self, joined: Joined) -> Verdict:
        """Read the rows anew and pass them through the gate."""
        ward = joined.ward
        ward.load(strict=False)
        joined.statistics = {}
        verdict = joined.memory.verdict(ward)
        if verdict is None:
            try:
                found = joined.gates.ask(self.name, ward.problem).result(GATE_S)
            finally:
                joined.gates.kill()  # it holds a good part of a gigabyte, and data change once a week
            verdict = joined.memory.keep(ward, found)
            joined.memory.save()
        if ward.fingerprint:
            joined.memory.set_aside(ward)
        if verdict.passed and ward.problem:
            return broken(self.name, ward.problem, joined.folder.operations.gate.policy)
        return verdict

    def changed(self, joined: Joined) -> str:
        """Why the rows here are not those that the gate let through; empty if they are."""
        judged = self.book.fact(f"judged {joined.plan.digest}")
        if judged is None:
            return "its gate has not been asked about its data: the next run asks"
        if judged["action"] in ("exclude", "halt"):
            return "its data did not pass the gate"
        ward = joined.ward
        if not ward.fingerprint:  # the agent was started again since
            ward.load(strict=False)
            joined.memory.set_aside(ward)
        if ward.fingerprint != judged["fingerprint"] or ward.cohort is None:
            return "its data have changed since its gate let them through: the next run asks the gate again"
        return ""

    def found(self, request: Request, verdict: Verdict) -> Answer:
        """What the gate said, as it leaves the hospital."""
        judged, profiled = (self.book.fact(f"{what} {request.study}") for what in ("judged", "profiled"))
        fresh = judged["fingerprint"] not in ("", profiled)  # data that cannot be read are no new ones
        return Answer(self.finding(request, verdict, fresh), "answered", line(verdict))

    def finding(self, request: Request, verdict: Verdict, fresh: bool) -> bytes:
        """A verdict as a message."""
        asked = request.study, request.round, request.exchange, request.ask, request.base
        return encode(Finding(*asked, self.name, "", fresh, to_json(verdict)))

    def _refused(self, request: Request, reason: str) -> Answer:
        if request.ask == "gate":
            asked = request.study, request.round, request.exchange, request.ask, request.base
            return Answer(encode(Finding(*asked, self.name, _printable(reason), False, {})), "refused", reason)
        return Answer(encode(answer_to(request, self.name, _printable(reason))), "refused", reason)

    def joined(self, digest: str) -> Joined | str:
        """The study of this digest, fetched when it is first asked about; a text says why the site takes no part in it."""
        known = self._joined.get(digest)
        found = known or join(digest, self.mailbox, self.coordinator, self.file, self.home)
        if isinstance(found, Joined):
            found.ward.budgets = self.budgets
            self._joined[digest] = found
        return found

    def _forget(self, digest: str) -> None:
        """Take the study anew from the mailbox: the coordinator left another suite or other rules for the gate there."""
        known = self._joined.pop(digest, None)
        if known is not None:
            known.gates.kill()
        forget(digest, self.home)

    def called(self, digest: str) -> str:
        """The study's name, where it is known here already."""
        joined = self._joined.get(digest)
        return joined.folder.study.name if joined else digest[:12]

    @staticmethod
    def words(request: Request) -> str:
        """What a request asks, for people."""
        return f"{'fit' if request.ask == 'train' else request.ask} · round {request.round}"


def _printable(reason: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in reason)[:1000]


def _exchange(phase: str) -> int:
    return int(phase.rpartition("-")[2])


def summary(book: Book) -> Mapping[str, Any]:
    """What `fedrounds site status` tells: the last requests, totals, what waits for a person."""
    people = {"waits": book.fact("waits"), "approved": book.fact("approved") or []}
    book.unbroken()
    lines, head = book.head()
    log = {"log": {"requests": lines, "head": head}, "witnessed": book.like("log ")}
    return {"asked": [asked._asdict() for asked in book.asked()], **book.totals(), **people, **log}
