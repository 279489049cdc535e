"""What a hospital's agent remembers, in one SQLite file of its own that nobody else reads: replies, state, facts, and all that was asked.

Guarantees:
    * a reply and the state that comes with it are stored in one transaction, before either is of any effect: a killed agent sends the
      same bytes again, or trains again from the same state by the same seed;
    * at most one reply a question about the same data: whoever asks again gets the same bytes;
    * state takes effect when a later round begins, which proves that its own has closed: a round that failed leaves none behind;
    * what was asked and what became of it is never changed or removed, and `unbroken` finds where somebody else did: each line is hashed
      with all before it. That the newest lines are gone, hashes and all, it cannot tell: keep `head` elsewhere.
"""

from __future__ import annotations

import json
import sqlite3
import time
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from fedrounds.core.errors import LogBroken
from fedrounds.core.privacy.log import canonical
from fedrounds.site.database import Database, script

KEPT = 2  # rounds of which replies and states are kept, besides the newest: nobody asks for older ones again
TABLES = """
CREATE TABLE IF NOT EXISTS replies (
    study TEXT, round INTEGER, exchange INTEGER, ask TEXT, base TEXT, about TEXT, reply BLOB NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (study, round, exchange, ask, base, about)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS states (study TEXT, round INTEGER, state BLOB NOT NULL, PRIMARY KEY (study, round)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS asked (
    number INTEGER PRIMARY KEY, at REAL NOT NULL, name TEXT NOT NULL, study TEXT NOT NULL, round INTEGER NOT NULL, ask TEXT NOT NULL,
    outcome TEXT NOT NULL, reason TEXT NOT NULL, bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL, seconds REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS asked_name ON asked (name);
"""


LEARN = "INSERT OR REPLACE INTO facts VALUES (?, ?)"
TRAINED = """
SELECT count(DISTINCT study || ' ' || round) FROM asked AS one WHERE ask = 'train' AND at >= ? AND (
    outcome = 'answered'
    OR outcome = 'again' AND NOT EXISTS (
        SELECT 1 FROM asked WHERE study = one.study AND round = one.round AND ask = 'train' AND outcome = 'answered'
    )
)
"""


class Question(NamedTuple):
    """What a request asks, however often it is asked.

    `about` is a digest of all else that its answer hangs on: the numbers that came with it (a champion is none of `base`), the data that
    the gate let through, the policy. Where one of them is another, an old answer would be a wrong one.
    """

    study: str
    round: int
    exchange: int
    ask: str
    base: str
    about: str


class Asked(NamedTuple):
    """A line for the hospital's IT: a request that came, and what became of it."""

    at: float  # Unix seconds
    name: str  # of the request in the mailbox, what it is known by
    study: str
    round: int
    ask: str
    outcome: (
        str  # answered, again (the stored reply was sent once more), refused (with a reply), rejected (without one)
    )
    reason: str
    bytes_in: int
    bytes_out: int
    seconds: float


class Book(Database):
    """The agent's memory. Any thread may use it, and several processes may read while one writes.

    Raises StateError where the file cannot be used.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(file, (script(TABLES), _chained), "a site's book", "a file")

    # --- replies and state --------------------------------------------------------------------------------------------

    def reply(self, question: Question) -> bytes | None:
        """The reply that was given, None if there was none."""
        found = self._one(
            "SELECT reply FROM replies WHERE (study, round, exchange, ask, base, about) = (?, ?, ?, ?, ?, ?)", *question
        )
        return found[0] if found else None

    def keep(self, question: Question, reply: bytes, state: bytes | None, **facts: Any) -> None:
        """Store a reply, the state that it leaves behind if its round closes, and facts that it makes; what is old is forgotten."""
        study, number = question.study, question.round
        with self._write() as db:
            db.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*question, reply, time.time()))
            db.executemany(LEARN, [(key, json.dumps(value)) for key, value in facts.items()])
            if state is not None:
                db.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?)", (study, number, state))
            db.execute("DELETE FROM replies WHERE study = ? AND round < ?", (study, number - KEPT))
            db.execute(
                "DELETE FROM states WHERE study = ?1 AND round < (SELECT max(round) FROM states WHERE study = ?1 AND round < ?2)",
                (study, number - KEPT),
            )

    def state(self, study: str, number: int) -> bytes | None:
        """The state that round `number` begins with: what the last round before it left."""
        found = self._one(
            "SELECT state FROM states WHERE study = ? AND round < ? ORDER BY round DESC LIMIT 1", study, number
        )
        return found[0] if found else None

    def newest(self, study: str) -> int:
        """The last round that a reply was given to, 0 before the first."""
        return self._one("SELECT max(round) FROM replies WHERE study = ?", study)[0] or 0

    # --- what was asked -----------------------------------------------------------------------------------------------

    def note(self, asked: Asked) -> None:
        """Write down a request and what became of it; the same request of the same outcome is one line."""
        same = "SELECT 1 FROM asked WHERE name = ? AND outcome = ?"
        with self._write() as db:
            if not db.execute(same, (asked.name, asked.outcome)).fetchone():
                done = db.execute("INSERT INTO asked VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", asked)
                _chain(db, done.lastrowid or 0)

    def dealt_with(self, name: str) -> bool:
        """Whether a request has had its answer, or will never have one."""
        return bool(self._one("SELECT 1 FROM asked WHERE name = ?", name))

    def asked(self, limit: int = 20) -> list[Asked]:
        """The last requests, the newest first."""
        with self._read() as db:
            rows = db.execute("SELECT * FROM asked ORDER BY number DESC LIMIT ?", (limit,)).fetchall()
        return [Asked(*row[1:]) for row in rows]

    def head(self) -> tuple[int, str]:
        """How many requests are written down, and the hash over all of them, hex; empty before the first."""
        lines, newest = self._one("SELECT count(*), max(number) FROM chain")
        return lines, self._one("SELECT hash FROM chain WHERE number = ?", newest)[0].hex() if lines else ""

    def unbroken(self) -> None:
        """Raise LogBroken at the first request that is not as it was written down."""
        with self._read() as db:
            rows = db.execute("SELECT * FROM asked ORDER BY number").fetchall()
            hashes = dict(db.execute("SELECT number, hash FROM chain"))
        before = b""
        for row in rows:
            before = _hashed(before, row)
            if hashes.pop(row[0], b"") != before:
                raise LogBroken(
                    f"expected request {row[0]} in {self.file} as it was written down, found another: it, or one before it, was changed"
                )
        if hashes:
            raise LogBroken(
                f"expected request {min(hashes)} in {self.file} as it was written down, found none: it was removed"
            )

    def trained(self, since: float) -> int:
        """How many rounds were trained since a moment (Unix seconds): also those of which a killed agent only sent what it had stored."""
        return self._one(TRAINED, since)[0]

    def totals(self) -> dict[str, Any]:
        """Requests by outcome, and bytes each way."""
        with self._read() as db:
            outcomes = dict(
                db.execute("SELECT outcome, count(*) FROM asked GROUP BY outcome ORDER BY outcome").fetchall()
            )
        bytes_in, bytes_out = self._one("SELECT coalesce(sum(bytes_in), 0), coalesce(sum(bytes_out), 0) FROM asked")
        return {"outcomes": outcomes, "bytes_in": bytes_in, "bytes_out": bytes_out}

    # --- facts --------------------------------------------------------------------------------------------------------

    def fact(self, key: str) -> Any:
        """A small JSON value, None if there is none."""
        found = self._one("SELECT value FROM facts WHERE key = ?", key)
        return json.loads(found[0]) if found else None

    def like(self, start: str) -> dict[str, Any]:
        """The facts whose keys start so, by what follows."""
        with self._read() as db:
            rows = db.execute("SELECT key, value FROM facts ORDER BY key").fetchall()
        return {key.removeprefix(start): json.loads(value) for key, value in rows if key.startswith(start)}

    def learn(self, key: str, value: Any) -> None:
        """Keep a small JSON value in place of the last one."""
        with self._write() as db:
            db.execute(LEARN, (key, json.dumps(value)))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _one(self, query: str, *values: Any) -> Any:
        with self._read() as db:
            return db.execute(query, values).fetchone()


def _chained(db: sqlite3.Connection) -> None:
    """Version 2: the lines of `asked` are chained, those that are found as they are found."""
    db.execute("CREATE TABLE chain (number INTEGER PRIMARY KEY, hash BLOB NOT NULL)")
    for (number,) in db.execute("SELECT number FROM asked ORDER BY number").fetchall():
        _chain(db, number)


def _chain(db: sqlite3.Connection, number: int) -> None:
    row = db.execute("SELECT * FROM asked WHERE number = ?", (number,)).fetchone()
    last = db.execute("SELECT hash FROM chain ORDER BY number DESC LIMIT 1").fetchone()
    db.execute("INSERT INTO chain VALUES (?, ?)", (number, _hashed(last[0] if last else b"", row)))


def _hashed(before: bytes, row: tuple[Any, ...]) -> bytes:
    return sha256(before + canonical(list(row))).digest()
