"""The log between a coordinator and its hospitals: it is shown beside each question, and a hospital cosigns what it has verified.

    NNNNNN/AAA/checkpoint-E/…     from the coordinator, before the question     (`core.privacy.witness`)
    NNNNNN/AAA/witness-E/…        from the hospital, before its answer          {"size": leaves, "line": its line below that checkpoint}

They lie beside questions and answers, which stay as they were: a release that knows nothing of a log passes them over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fedrounds.core.errors import LogBroken, UpdateRejected
from fedrounds.core.privacy import note as notes
from fedrounds.core.privacy import witness
from fedrounds.core.privacy.note import Checkpoint
from fedrounds.core.privacy.witness import Shown
from fedrounds.exchange.name import Name, folder

if TYPE_CHECKING:
    from fedrounds.exchange.exchange import Exchange
    from fedrounds.ledger import Ledger
    from fedrounds.site.book import Book
    from fedrounds.tasks.desk import Desk, Question

MOST_OBJECTS = 8  # of one phase of one question; more are not read
LARGEST_LINE = 4096  # bytes of what a witness says
LARGEST_LOG = 1 << 31  # leaves; what a witness says of a larger one is not even looked for
UNSHOWN = "the coordinator has shown its log before, and shows none with this question"


# --- at the coordinator -----------------------------------------------------------------------------------------------


def shown(ledger: Ledger, attempt: int, sites: tuple[str, ...]) -> dict[str, bytes]:
    """What each hospital is shown of the log beside the question of this attempt; nothing where there is no log."""
    found = ledger.logged("asked", attempt)
    if found is None:
        return {}
    leaf, note = found
    lines, _ = ledger.log(leaf, leaf + 1)
    tree, size = ledger.log_tree(), notes.read_note(note)[0].size
    inclusion, witnesses = tree.inclusion(leaf, size), ledger.witnesses()
    seen = {site: witnesses[site][0] if site in witnesses else 0 for site in sites}
    heads = [head for head, _ in ledger.log_heads(min(seen.values(), default=0)) if head < size]
    made: dict[int, bytes] = {}
    for last in seen.values():
        if last not in made:
            since = [head for head in heads if head > last][-witness.MOST_SIZES :]
            sizes = [*([last] if 0 < last < size else []), *since]
            growth = {head: tree.consistency(head, size) for head in sizes}
            made[last] = witness.encode(Shown(note, leaf, lines[0], inclusion, growth))
    return {site: made[last] for site, last in seen.items()}


def collect(ledger: Ledger, desk: Desk, question: Question) -> None:
    """Keep what a hospital cosigned; what is no cosignature of one of our heads is passed over."""
    for name in desk.mailbox.list(folder(*question.folder("witness")))[:MOST_OBJECTS]:
        try:
            said = json.loads(desk.mailbox.get(name, LARGEST_LINE) or b"")
            size, line = int(said["size"]), str(said["line"])
        except (UpdateRejected, ValueError, LookupError, TypeError, RecursionError):
            continue
        note = ledger.checkpoint(size) if 0 < size < LARGEST_LOG else ""
        if note and "\n" not in line:
            head = notes.read_note(note)[0]
            if notes.cosigned(line, desk.name, desk.public, head) is not None:
                ledger.witnessed(size, desk.name, line)


# --- at a hospital ----------------------------------------------------------------------------------------------------


class Borne(NamedTuple):
    """What a log says of a question: why it is not answered, as the log does not bear it out (empty if it does, or there never was a log);
    and under which rosters it was asked, None where no log was shown.
    """

    refusal: str
    rosters: tuple[str, ...] | None


class Witness:
    """A hospital as it watches its coordinator's logs. What it believes is in its book before it answers.

    Args:
        public: the coordinator's key.
        key: the hospital's own private key.
    """

    def __init__(self, name: str, mailbox: Exchange, book: Book, public: bytes, key: bytes) -> None:
        self._name, self._mailbox, self._book, self._public, self._key = name, mailbox, book, public, key

    def kept(self, study: str) -> Mapping[str, Any]:
        """What the book holds of a study's log: `note` and `line` of the last head, `before`: those of logs that another took the place of."""
        return self._book.fact(f"log {study}") or {}

    def borne(self, at: Name, study: str, request: bytes) -> Borne:
        """What the coordinator's log says of a question."""
        kept, reason = self.kept(study), ""
        seen = notes.read_note(kept["note"])[0] if kept else None
        for name in self._mailbox.list(folder(at.round, at.attempt, _phase(at, "checkpoint")))[:MOST_OBJECTS]:
            try:
                data = self._mailbox.get(name, witness.LARGEST)
                given = witness.decode(data or b"")
                head = witness.believed(given, self._public, seen, self._name, request)
                rosters = witness.rosters_in(given, self._public)
            except (LogBroken, UpdateRejected) as error:
                reason = str(error)
                continue
            self._believe(study, kept, seen, head, given.note)
            return Borne("", rosters)
        return Borne(reason or (UNSHOWN if kept else ""), None)

    def _believe(
        self, study: str, kept: Mapping[str, Any], seen: Checkpoint | None, head: Checkpoint, note: str
    ) -> None:
        if seen == head:
            return
        before = list(kept.get("before", ()))
        if seen and seen.origin != head.origin:
            before.append(kept["note"])
        line = notes.cosign(self._key, self._name, head, int(time.time()))
        self._book.learn(f"log {study}", {"note": note, "line": line, "before": before})

    def sign(self, at: Name, study: str) -> None:
        """Leave the line below the last head that was believed beside the answer to a question; again is the same bytes again."""
        kept = self.kept(study)
        if kept:
            said = {"size": notes.read_note(kept["note"])[0].size, "line": kept["line"]}
            data = json.dumps(said).encode()
            self._mailbox.put(Name.of(data, at.round, at.attempt, _phase(at, "witness")), data)


def _phase(at: Name, word: str) -> str:
    """The phase beside a question's."""
    return at.phase.replace("request", word)
