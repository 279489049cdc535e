"""One study's ledger: what closed, what failed, who runs it.

    ledger = Ledger.open(Path("state/ledger.db"))      # or "postgresql://…?study=NAME", see `postgres`
    lineage = ledger.begin(study)
    ledger.acquire()
    head = ledger.head()                              # None before the first visit
    visit = ledger.commit(head.visit if head else 0, Visit(...))

Guarantees:
    * a visit is wholly in the ledger or not at all: one transaction, whenever the process is killed or the power fails;
    * a visit is committed once: `commit` names the head that it continues from, and of two committers the second is refused;
    * what was done is in the audit log too, in the same transaction, once a key signs it (`audit`);
    * one runner at a time: a lease, free again the moment its process is dead;
    * any number of processes and threads may read while one writes; writers wait for each other;
    * a server that went away is a ServiceError: nothing is lost, and the same call may be made again when it is back. Only `act` is for a
      person to repeat, who looks first whether it was recorded.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self

from sqlalchemy import Connection, func, insert, select, true

from fedrounds.core import state as states
from fedrounds.core.errors import ServiceError, StateError
from fedrounds.core.operations import Operations
from fedrounds.core.state import RunState
from fedrounds.core.study import Study
from fedrounds.ledger import attempts, audit, lease, schema, sqlite
from fedrounds.ledger.attempts import Attempts
from fedrounds.ledger.audit import Audited
from fedrounds.ledger.database import Database, put
from fedrounds.ledger.projected import Projected
from fedrounds.ledger.queries import ENTRY, is_last, last, lineage_of, newest
from fedrounds.ledger.rows import Act, Decision, Entry, Failure, Head, Lineage, Verdict, Visit
from fedrounds.ledger.standing import Standing, standing


class Ledger(Audited, Attempts, Projected):
    """A study's ledger. Times are Unix seconds.

    Every method raises StateError if the database cannot be used, and ServiceError if its server does not answer.
    Threads may share one ledger, processes may not: each opens its own.
    """

    def __init__(self, database: Database, key: bytes | None = None) -> None:
        """Use `open`."""
        self._database, self._key, self._signer = database, key, None
        self._owner = uuid.uuid4().hex
        self._unanswered = ""  # the fingerprint of the visit whose commit the server left without an answer
        self._lease_s = 0.0  # above 0 while this ledger has the lease

    @classmethod
    def open(cls, where: Path | str, key: bytes | None = None) -> Self:
        """The ledger in a file, or at an address `postgresql://…`; it is created if it is absent, and brought up to date if it is older.

        Args:
            key: the private key that signs the audit log. Where there is none, no log is begun, and one that was begun is not gone on with.

        Raises:
            StateError: it cannot be made, is not a ledger, or was written by a newer release; it is left as it was.
            ServiceError: the server does not answer.
        """
        if isinstance(where, str) and "://" in where:
            from fedrounds.ledger import postgres

            return cls(postgres.database(where), key)
        return cls(sqlite.database(Path(where)), key)

    def close(self) -> None:
        """Give the connections back; the last one to leave folds the write-ahead log into the file."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the study ----------------------------------------------------------------------------------------------------

    def begin(self, study: Study) -> Lineage:
        """The lineage of `study`: made on the first call, found on every later one.

        Raises:
            StateError: the ledger holds another protocol.
        """
        with self._database.write() as connection:
            lineage = lineage_of(connection)
            if lineage is None:
                lineage = Lineage(study.name, study.digest, uuid.uuid4().hex, time.time())
                row = {"id": schema.ONLY, "protocol": study.model_dump(mode="json"), **asdict(lineage)}
                connection.execute(insert(schema.study).values(row))
        if lineage.digest != study.digest:
            raise StateError(
                f"expected study digest {lineage.digest[:12]}, found {study.digest[:12]} for '{study.name}' in {self._database.where}: "
                "the protocol changed; use --fresh to start a new lineage"
            )
        return lineage

    def lineage(self) -> Lineage | None:
        """The lineage in this ledger, None before `begin`."""
        with self._database.read() as connection:
            return lineage_of(connection)

    def study(self) -> Study:
        """The protocol that `begin` wrote. Raises StateError before that."""
        with self._database.read() as connection:
            protocol = connection.scalar(select(schema.study.c.protocol))
        if protocol is None:
            raise StateError(f"expected a study in {self._database.where}, found none yet: `fedrounds run` begins one")
        return Study.model_validate(protocol)

    def note_operations(self, operations: Operations, from_round: int) -> int:
        """The version of `operations`; a new one, holding from `from_round`, if they differ from the last."""
        found = operations.model_dump(mode="json")
        with self._database.write() as connection:
            before = connection.execute(last(schema.operations.c.version, schema.operations)).first()
            if before and before.operations == found:
                return before.version
            version = before.version + 1 if before else 1
            connection.execute(
                insert(schema.operations).values(version=version, from_round=from_round, operations=found)
            )
            return version

    def operations(self) -> dict[str, Any]:
        """The operations that hold now, as plain JSON; empty before the first are noted."""
        with self._database.read() as connection:
            before = connection.execute(last(schema.operations.c.version, schema.operations)).first()
        return dict(before.operations) if before else {}

    # --- visits -------------------------------------------------------------------------------------------------------

    def head(self) -> Head | None:
        """The last visit's number and the state that it left, None before the first."""
        with self._database.read() as connection:
            row = connection.execute(last(schema.visits.c.visit, schema.visits)).first()
        return Head(row.visit, self._load(row)) if row else None

    def commit(self, after: int, visit: Visit) -> int:
        """Write a closed visit, all of it in one transaction, renew the lease and close the open attempt.

        If the server went away in the act of closing the transaction, nobody here knows on which side of it. The same call then finds out:
        what this very object sent, to the bit, and finds as the last visit is what it committed, since no other could have sent it with
        this `started` while the lease was ours. Any other twin of the last visit is refused, as it was another runner's.

        Args:
            after: the head that the visit continues from, 0 for none.

        Returns:
            The visit's number, `after + 1`.

        Raises:
            StateError: another runner committed in between, or took the lease; nothing was written.
            ServiceError: the server went away; call again with the same visit.
        """
        state, number = states.dump(visit.state), after + 1
        row = {name: getattr(visit, name) for name in ("round", "ask", "base", "suite_hash", "operations_version")}
        row |= {"visit": number, "record": dict(visit.record), "started": visit.started}
        row |= {"model": visit.state.model_digest, "checksum": hashlib.sha256(state).hexdigest()}
        more = [sorted(visit.verdicts.items()), [asdict(decision) for decision in visit.promotions]]
        fingerprint = hashlib.sha256(repr([sorted(row.items()), more]).encode()).hexdigest()
        try:
            with self._database.write() as connection:
                if self._unanswered == fingerprint and is_last(connection, row):
                    self._unanswered = ""
                    return number
                self._refuse_unless_mine(connection, after, visit)
                row |= {"committed": time.time()}
                connection.execute(insert(schema.visits).values(row | {"state": state}))
                if visit.verdicts:
                    found = visit.verdicts.items()
                    verdicts = [{"site": site, "passed": it.passed, "verdict": dict(it.verdict)} for site, it in found]
                    connection.execute(insert(schema.verdicts), [{"visit": number} | verdict for verdict in verdicts])
                if visit.promotions:
                    connection.execute(
                        insert(schema.promotions),
                        [asdict(decision) | {"visit": number} for decision in visit.promotions],
                    )
                said = {site: it.verdict for site, it in visit.verdicts.items()}
                leaf = audit.of_visit(row, said, attempts.number_open(connection))
                self._record(connection, leaf, *(audit.of_decision(number, it) for it in visit.promotions))
                attempts.close(connection, "committed", self._database.now(connection))
        except ServiceError:
            self._unanswered = fingerprint
            raise
        self._unanswered = ""
        return number

    def fail(self, round: int, reason: str, started: float, ask: str = "train") -> None:
        """Record a try that did not close, and close the open attempt. Nothing else changes: the next try continues from the same head.

        The try that began at `started` is recorded once, so a call whose answer was lost may be repeated.
        """
        with self._database.write() as connection:
            self._hold(connection)
            visit = newest(connection) + 1
            told = {"visit": visit, "round": round, "ask": ask, "reason": reason, "started": started}
            before = connection.execute(last(schema.failures.c.attempt, schema.failures).filter_by(visit=visit)).first()
            if before is None or any(before._mapping[name] != value for name, value in told.items()):
                number = before.attempt + 1 if before else 1
                row = told | {"attempt": number, "failed": time.time()}
                connection.execute(insert(schema.failures).values(row))
                self._record(connection, audit.of_failure(row))
            attempts.close(connection, "failed", self._database.now(connection))

    def visits(self, after: int = 0, limit: int | None = None, ask: str | None = None) -> list[Entry]:
        """The visits later than `after`, in order, at most `limit`; of one kind only if `ask` says so."""
        kind = schema.visits.c.ask == ask if ask else true()
        with self._database.read() as connection:
            rows = connection.execute(
                select(*ENTRY).where(schema.visits.c.visit > after, kind).order_by(schema.visits.c.visit).limit(limit)
            )
            return [Entry(**row) for row in rows.mappings()]

    def progress(self, besides: str = "") -> Entry | None:
        """The last visit, or the last that did not ask for `besides`, without its state: cheap enough to ask several times a second."""
        with self._database.read() as connection:
            found = last(schema.visits.c.visit, *ENTRY).where(schema.visits.c.ask != besides)
            row = connection.execute(found).mappings().first()
        return Entry(**row) if row else None

    def state(self, visit: int) -> RunState:
        """The state that a visit left."""
        with self._database.read() as connection:
            row = connection.execute(select(schema.visits).where(schema.visits.c.visit == visit)).first()
        if row is None:
            raise StateError(
                f"expected visit {visit} in the ledger {self._database.where}, found none: see `fedrounds status`"
            )
        return self._load(row)

    def failures(self) -> list[Failure]:
        """Every try that did not close, in order."""
        with self._database.read() as connection:
            rows = connection.execute(select(schema.failures).order_by(*schema.failures.primary_key))
            return [Failure(**row) for row in rows.mappings()]

    def verdicts(self, visit: int | None = None) -> dict[str, Verdict]:
        """Site -> the verdict in force after `visit`, or now, in site order."""
        table = schema.verdicts
        rows = select(table).order_by(table.c.site, table.c.visit)
        with self._database.read() as connection:
            found = connection.execute(rows if visit is None else rows.where(table.c.visit <= visit))
            return {row.site: Verdict(row.passed, row.verdict, row.visit) for row in found}  # a site's last row stays

    def promotions(self) -> list[Decision]:
        """Every decision on a champion, in order."""
        with self._database.read() as connection:
            rows = connection.execute(select(schema.promotions).order_by(*schema.promotions.primary_key))
            return [Decision(**row) for row in rows.mappings()]

    # --- acts of people -----------------------------------------------------------------------------------------------

    def act(self, act: Literal["promote", "reject", "rollback"], round: int, reason: str, by: str) -> Act:
        """Record what a person did about the version of `round`, after the last visit; the caller has the lease, and looked at `standing`.

        Raises:
            StateError: another runner took the lease; nothing was written.
        """
        with self._database.write() as connection:
            self._renew(connection)
            number = (connection.scalar(select(func.max(schema.acts.c.number))) or 0) + 1
            model = connection.scalar(select(schema.promotions.c.model).where(schema.promotions.c.round == round))
            done = Act(number, newest(connection), time.time(), act, round, model or "", reason, by)
            connection.execute(insert(schema.acts).values(asdict(done)))
            self._record(connection, audit.of_act(done))
        return done

    def acts(self) -> list[Act]:
        """What people did, in order."""
        with self._database.read() as connection:
            rows = connection.execute(select(schema.acts).order_by(schema.acts.c.number))
            return [Act(**row) for row in rows.mappings()]

    def standing(self) -> Standing:
        """Who is champion and who waits for a person, by the rule's decisions and people's acts."""
        return standing(self.promotions(), self.acts())

    def deciding(self, round: int) -> Entry:
        """The visit that judged the version of `round`."""
        visit = next(decision.visit for decision in self.promotions() if decision.round == round)
        return self.visits(after=visit - 1, limit=1)[0]

    def closed(self, round: int) -> int:
        """The visit that trained the model of `round`."""
        with self._database.read() as connection:
            visits = schema.visits.c
            found = connection.scalar(select(visits.visit).where(visits.ask == "train", visits.round == round))
        if found is None:
            raise StateError(
                f"expected round {round} in the ledger {self._database.where}, found none: see `fedrounds status`"
            )
        return found

    # --- the lease ----------------------------------------------------------------------------------------------------

    def acquire(self, lease_s: float = lease.LEASE_S) -> None:
        """Take the study for this ledger object, or take it over from a runner that is dead.

        A runner on this host is dead when its process is. One on another host is believed until its lease ends, so `lease_s` must be
        longer than a round; `commit` and `renew` start it afresh.

        Raises:
            StateError: another runner works on the study.
        """
        with self._database.write() as connection:
            now, shared = self._database.now(connection), self._database.shared
            lease.take(connection, self._owner, lease_s, self._database.where, now, shared)
        self._lease_s = lease_s

    def renew(self) -> None:
        """Start the lease afresh. Raises StateError if another runner took it over, and if it was never acquired."""
        with self._database.write() as connection:
            self._renew(connection)

    def release(self) -> None:
        """Let the next runner in; does nothing without the lease."""
        with self._database.write() as connection:
            lease.drop(connection, self._owner)
        self._lease_s = 0.0

    # --- notes --------------------------------------------------------------------------------------------------------

    def note(self, key: str, value: Any) -> None:
        """Keep a small JSON value under `key`, in place of the last one."""
        with self._database.write() as connection:
            put(connection, schema.notes, {"key": key}, {"value": value})

    def noted(self, key: str) -> Any:
        """The value under `key`, None if there is none."""
        with self._database.read() as connection:
            return connection.scalar(select(schema.notes.c.value).where(schema.notes.c.key == key))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _refuse_unless_mine(self, connection: Connection, after: int, visit: Visit) -> None:
        found, lineage = newest(connection), lineage_of(connection)
        if lineage is None or lineage.digest != visit.state.study:
            begun = lineage.digest[:12] if lineage else "none"
            raise StateError(
                f"expected study digest {visit.state.study[:12]} in the ledger {self._database.where}, found {begun}: begin the study first"
            )
        if found != after:
            raise StateError(
                f"expected visit {after} as the last in {self._database.where}, found visit {found}: another runner works on this study; "
                "nothing was written, end one of them"
            )
        self._hold(connection)

    def _hold(self, connection: Connection) -> None:
        if self._lease_s:
            self._renew(connection)

    def _renew(self, connection: Connection) -> None:
        lease.renew(connection, self._owner, self._lease_s, self._database.where, self._database.now(connection))

    def _load(self, row: Any) -> RunState:
        if hashlib.sha256(row.state).hexdigest() != row.checksum:
            raise StateError(
                f"expected the state of visit {row.visit} as it was written, found damaged bytes in {self._database.where}: "
                "restore the ledger from a copy"
            )
        return states.load(row.state)
