"""What has been spent of a hospital's privacy, in one SQLite file beside its book: by dataset, over all studies, for good.

    number = budgets.reserve(...)     # on disk before a row is touched; a text is the refusal
    ...                               # work on the rows
    budgets.spend(number, reply)      # on disk, with the reply's bytes, before they leave

Guarantees:
    * what is reserved counts, whether or not a reply came of it: a process that dies in between has spent, never the other way round;
    * only `void` takes a reservation back, and it is called where nothing but a refusal leaves;
    * a question that was answered is answered by the same bytes, and costs nothing again;
    * lines are only ever added: SQLite refuses to change or remove one, and each carries a digest of the one before (`broken` finds
      a line that somebody changed, left out or put in by other means; that the newest lines are gone it cannot find alone).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedrounds.core.errors import StateError
from fedrounds.core.privacy.accounting import Budget, Event, epsilon, fits
from fedrounds.site.database import Database, script

TABLES = """
CREATE TABLE lines (
    number INTEGER PRIMARY KEY, at REAL NOT NULL, dataset TEXT NOT NULL, study TEXT NOT NULL, round INTEGER NOT NULL, question TEXT NOT NULL,
    kind TEXT NOT NULL, about INTEGER NOT NULL, events TEXT NOT NULL, reply TEXT NOT NULL, digest TEXT NOT NULL
);
CREATE UNIQUE INDEX settled ON lines (about) WHERE kind IN ('spend', 'void');
CREATE TABLE replies (question TEXT PRIMARY KEY, reply BLOB NOT NULL) WITHOUT ROWID;
CREATE TRIGGER never_changed BEFORE UPDATE ON lines BEGIN SELECT RAISE(ABORT, 'a line is never changed'); END;
CREATE TRIGGER never_removed BEFORE DELETE ON lines BEGIN SELECT RAISE(ABORT, 'a line is never removed'); END;
"""
COUNTED = """
SELECT study, round, events FROM lines AS one WHERE dataset = ? AND kind = 'reserve'
AND NOT EXISTS (SELECT 1 FROM lines WHERE about = one.number AND kind = 'void') ORDER BY number
"""


class Budgets(Database):
    """The ledger. Any thread and several processes may use it.

    Raises StateError where the file cannot be used.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(file, (script(TABLES),), "a privacy budget", "a privacy budget")

    def checkpoint(self) -> None:
        """Bring everything into the one file."""
        with self._one_line(), self._lock:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # --- spending -----------------------------------------------------------------------------------------------------

    def reserve(
        self,
        dataset: str,
        study: str,
        round: int,
        question: str,
        events: Sequence[Event],
        of_study: Budget,
        of_site: Budget | None = None,
    ) -> int | str:
        """Write down that these events are about to happen.

        Args:
            dataset: whose rows; a budget is theirs, whatever study asks.
            question: a digest of what is asked and of the rows that it is asked about.
            of_study: what this study may spend on the dataset.
            of_site: what all studies together may.

        Returns:
            The line's number, or why the budget does not allow it: then nothing is written.
        """
        with self._write() as db:
            kept = db.execute(COUNTED, (dataset,)).fetchall()
            own = [event for of, _, text in kept if of == study for event in _events(text)]
            for whose, before, budget in (
                ("the study", own, of_study),
                ("the site", [event for *_, text in kept for event in _events(text)], of_site),
            ):
                if budget is not None and not fits(before, events, budget):
                    return _refusal(whose, before, events, budget)
            return self._add(
                db, dataset, study, round, question, "reserve", 0, json.dumps([event.to_json() for event in events]), ""
            )

    def spend(self, number: int, reply: bytes, keep: bool = True) -> None:
        """The events of a reservation have happened, and this is what leaves.

        Args:
            keep: whether the bytes are kept here, to be given again. What was masked is kept by whoever keeps the secrets that it used up.
        """
        with self._write() as db:
            question = self._settle(db, number, "spend", sha256(reply).hexdigest())
            if keep:
                db.execute("INSERT INTO replies VALUES (?, ?)", (question, reply))

    def void(self, number: int) -> None:
        """Take a reservation back: nothing but a refusal leaves."""
        with self._write() as db:
            self._settle(db, number, "void", "")

    def reply(self, question: str) -> bytes | None:
        """What a question was answered, None if it was not."""
        with self._read() as db:
            found = db.execute("SELECT reply FROM replies WHERE question = ?", (question,)).fetchone()
        return found[0] if found else None

    # --- looking ------------------------------------------------------------------------------------------------------

    def datasets(self) -> list[str]:
        """Whose rows something was ever reserved for."""
        with self._read() as db:
            return [name for (name,) in db.execute("SELECT DISTINCT dataset FROM lines ORDER BY dataset")]

    def spent(self, dataset: str) -> Mapping[str, list[Event]]:
        """Study -> what it has spent on a dataset, in the order of its first line."""
        with self._read() as db:
            kept = db.execute(COUNTED, (dataset,)).fetchall()
        found: dict[str, list[Event]] = {}
        for study, _, text in kept:
            found.setdefault(study, []).extend(_events(text))
        return found

    def broken(self) -> int:
        """The number of the first line that does not follow from the one before, 0 if there is none."""
        with self._read() as db:
            lines = db.execute("SELECT * FROM lines ORDER BY number").fetchall()
        before = ""
        for expected, line in enumerate(lines, 1):
            if line[0] != expected or line[-1] != _digest(before, line[:-1]):
                return expected
            before = line[-1]
        return 0

    # --- inside -------------------------------------------------------------------------------------------------------

    def _settle(self, db: sqlite3.Connection, number: int, kind: str, reply: str) -> str:
        found = db.execute(
            "SELECT dataset, study, round, question FROM lines WHERE number = ? AND kind = 'reserve'", (number,)
        ).fetchone()
        if found is None:
            raise StateError(
                f"expected reservation {number} in {self.file}, found none: its file was put back or changed"
            )
        self._add(db, *found, kind, number, "[]", reply)
        return found[3]

    def _add(self, db: sqlite3.Connection, *values: Any) -> int:
        last = db.execute("SELECT number, digest FROM lines ORDER BY number DESC LIMIT 1").fetchone() or (0, "")
        line = (last[0] + 1, time.time(), *values)
        db.execute("INSERT INTO lines VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*line, _digest(last[1], line)))
        return line[0]


def _events(text: str) -> list[Event]:
    return [Event.of(found) for found in json.loads(text)]


def _digest(before: str, line: Sequence[Any]) -> str:
    return sha256((before + json.dumps(list(line))).encode()).hexdigest()


def _refusal(whose: str, before: Sequence[Event], events: Sequence[Event], budget: Budget) -> str:
    spent, after = (epsilon(these, budget.delta) for these in (before, [*before, *events]))
    return (
        f"its privacy budget would be exceeded: {whose} may spend ε = {budget.epsilon:.4g} (δ = {budget.delta:.3g}) on its rows,"
        f" ε = {spent:.4g} is spent, and this would make it {after:.4g}"
    )
