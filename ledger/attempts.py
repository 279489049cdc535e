"""Attempts: what was asked of sites out in the world, under a number that is never used twice, and what came in for it.

    attempt = ledger.attempt() or ledger.open_attempt(head.visit, asking.dump(asked), deadline)
    ledger.note_reply(Receipt(attempt.number, …))                  # each message that came in, whatever became of it
    attempt = ledger.advance_attempt(attempt.number, asking.dump(asked), deadline)     # a round may take several exchanges
    ledger.commit(head.visit, visit)                               # or `fail`: either closes it, in the same transaction

Whoever is killed finds the open attempt and asks the very same bytes again. Each of these may be repeated when its answer was lost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection, func, insert, select, update

from fedrounds.core import asking as askings
from fedrounds.core.errors import StateError
from fedrounds.ledger import audit, schema
from fedrounds.ledger.queries import newest
from fedrounds.ledger.rows import Attempt, Receipt

if TYPE_CHECKING:
    from fedrounds.core.privacy.agreed import Agreed
    from fedrounds.core.round import Asking
    from fedrounds.ledger.database import Database

_OPEN = select(schema.attempts).where(schema.attempts.c.closed.is_(None))


class Attempts(ABC):
    """The part of a ledger that is about requests to sites."""

    _database: Database

    @abstractmethod
    def _hold(self, connection: Connection) -> None:
        """Refuse a runner that lost its lease; start that of any other afresh."""

    @abstractmethod
    def _record(self, connection: Connection, *leaves: audit.Leaf) -> None:
        """Add to the audit log."""

    @abstractmethod
    def _unheld(self, connection: Connection, rosters: Iterable[Agreed]) -> list[audit.Leaf]:
        """Leaves about rosters that the audit log does not hold."""

    def open_attempt(
        self,
        after: int,
        asking: bytes,
        deadline: float,
        requests: Mapping[str, str] | None = None,
        rosters: Sequence[Agreed] = (),
    ) -> Attempt:
        """Begin the visit after `after`: write down what is asked, before anybody is.

        Args:
            asking: as `core.asking.dump` gives it.
            deadline: until when replies are waited for.
            requests: site -> SHA-256, hex, of the request that it will get, for the audit log.
            rosters: by whose keys what is asked is hidden, for the audit log too.

        Returns:
            The attempt, under a new number; the open one if it asks the same.

        Raises:
            StateError: another attempt is open, the ledger went on from `after`, or another runner took the lease; nothing was written.
        """
        asked = askings.load(asking)
        with self._database.write() as connection:
            self._hold(connection)
            last = newest(connection)
            digest = connection.scalar(select(schema.study.c.digest))
            self._refuse_foreign(asked, digest)
            if last != after:
                raise StateError(
                    f"expected visit {after} as the last in {self._database.where}, found visit {last}: another runner works on this "
                    "study; nothing was asked, end one of them"
                )
            found = _open(connection)
            if found:
                if (found.visit, found.asking) == (after + 1, asking):
                    return found
                raise StateError(
                    f"expected no open attempt in {self._database.where}, found attempt {found.number} at round {found.round}: go on "
                    "with it, or record that it failed"
                )
            number = (connection.scalar(select(func.max(schema.attempts.c.attempt))) or 0) + 1
            request = asked.request
            made = Attempt(
                number,
                after + 1,
                request.round,
                request.exchange,
                self._database.now(connection),
                deadline,
                None,
                "",
                asking,
            )
            connection.execute(insert(schema.attempts).values(_row(made)))
            question = audit.of_question(made, request, requests or {}, rosters)
            self._record(connection, *self._unheld(connection, rosters), question)
        return made

    def attempt(self) -> Attempt | None:
        """The open attempt."""
        with self._database.read() as connection:
            return _open(connection)

    def newest_attempt(self) -> int:
        """The highest number that an attempt ever had, 0 before the first."""
        with self._database.read() as connection:
            return connection.scalar(select(func.max(schema.attempts.c.attempt))) or 0

    def attempts(self) -> list[Attempt]:
        """Every attempt, in order."""
        with self._database.read() as connection:
            rows = connection.execute(select(schema.attempts).order_by(schema.attempts.c.attempt))
            return [_attempt(row) for row in rows]

    def advance_attempt(
        self, number: int, asking: bytes, deadline: float, requests: Mapping[str, str] | None = None
    ) -> Attempt:
        """Go on to a later exchange of the same round, under the same number.

        Returns:
            The attempt as it is now; as it was if it asks the same already.

        Raises:
            StateError: it is not open, asks this exchange or a later one already, or another runner took the lease; nothing was written.
        """
        asked = askings.load(asking)
        with self._database.write() as connection:
            self._hold(connection)
            found = _open(connection)
            if found is None or found.number != number:
                now = f"attempt {found.number}" if found else "none"
                raise StateError(
                    f"expected attempt {number} open in {self._database.where}, found {now}: it was closed, another runner may work on this study"
                )
            if found.asking == asking:
                return found
            before = askings.load(found.asking)
            self._refuse_foreign(asked, before.state.study)
            was, now = before.request, asked.request
            if (now.round, now.ask) != (was.round, was.ask) or now.exchange <= was.exchange:
                raise StateError(
                    f"expected a later exchange of round {was.round} ({was.ask}) than {was.exchange} for attempt {number} in "
                    f"{self._database.where}, found exchange {now.exchange} of round {now.round} ({now.ask}): nothing was written"
                )
            changed = {"exchange": now.exchange, "asking": asking, "deadline": deadline}
            connection.execute(update(schema.attempts).where(schema.attempts.c.attempt == number).values(changed))
            again = _open(connection)
            assert again
            self._record(connection, audit.of_question(again, now, requests or {}))
        return again

    def drop_attempt(self) -> None:
        """Close the open attempt, if there is one, with nothing to show for it: what it asked may be asked anew under another number.

        Raises:
            StateError: another runner took the lease; nothing was written.
        """
        with self._database.write() as connection:
            self._hold(connection)
            if number := number_open(connection):
                self._record(connection, audit.of_drop(number))
            close(connection, "dropped", self._database.now(connection))

    def note_reply(self, receipt: Receipt) -> None:
        """Record what came in. The same message of a site for the same exchange is recorded once, with what became of it first.

        Raises:
            StateError: there was no such attempt.
        """
        c = schema.replies.c
        key = {name: getattr(receipt, name) for name in ("attempt", "exchange", "site", "digest")}
        with self._database.write() as connection:
            if connection.scalar(select(c.attempt).filter_by(**key)) is not None:
                return
            if connection.scalar(select(schema.attempts.c.attempt).filter_by(attempt=receipt.attempt)) is None:
                raise StateError(
                    f"expected a reply to an attempt in {self._database.where}, found one to attempt {receipt.attempt}, which never was"
                )
            row = asdict(receipt) | {"received": receipt.received or self._database.now(connection)}
            connection.execute(insert(schema.replies).values(row))

    def replies(self, attempt: int | None = None) -> list[Receipt]:
        """What came in, for one attempt or for all: by attempt, exchange, site and time."""
        c = schema.replies.c
        rows = select(schema.replies).order_by(c.attempt, c.exchange, c.site, c.received, c.digest)
        with self._database.read() as connection:
            found = connection.execute(rows if attempt is None else rows.where(c.attempt == attempt))
            return [Receipt(**row) for row in found.mappings()]

    def first_to_answer(self, visit: int, round: int) -> list[str]:
        """Sites in the order in which their replies to the questions of a visit's round were first taken.

        A question that was dropped by a crash counts as the one that repeats it. One that failed, and all before it, are over.
        """
        a, r = schema.attempts.c, schema.replies.c
        its = (a.visit == visit) & (a.round == round)
        over = select(func.coalesce(func.max(a.attempt), 0)).where(its & (a.outcome == "failed")).scalar_subquery()
        live = select(a.attempt).where(its & (a.attempt > over))
        rows = select(r.site).where(r.attempt.in_(live), r.outcome == "taken").order_by(r.attempt, r.received, r.site)
        with self._database.read() as connection:
            return list(dict.fromkeys(connection.scalars(rows)))

    def _refuse_foreign(self, asked: Asking, digest: str | None) -> None:
        for study in (asked.state.study, asked.request.study):
            if study != digest:
                raise StateError(
                    f"expected an attempt for study digest {(digest or 'none')[:12]} in {self._database.where}, found one for {study[:12]}: "
                    "begin the study first"
                )


def close(connection: Connection, outcome: Literal["committed", "failed", "dropped"], now: float) -> None:
    """Close the open attempt, if there is one, in the transaction that says what became of it."""
    is_open = schema.attempts.c.closed.is_(None)
    connection.execute(update(schema.attempts).where(is_open).values(closed=now, outcome=outcome, asking=b""))


def number_open(connection: Connection) -> int:
    """The number of the open attempt, 0 if there is none."""
    return connection.scalar(select(schema.attempts.c.attempt).where(schema.attempts.c.closed.is_(None))) or 0


def _open(connection: Connection) -> Attempt | None:
    row = connection.execute(_OPEN).first()
    return _attempt(row) if row else None


def _attempt(row: Any) -> Attempt:
    values = dict(row._mapping)
    return Attempt(values.pop("attempt"), **values)


def _row(attempt: Attempt) -> dict[str, Any]:
    values = {name: getattr(attempt, name) for name in Attempt.__dataclass_fields__}
    return {"attempt": values.pop("number")} | values
