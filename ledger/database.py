"""A database that is a ledger: its transactions, its tables, and one line for whatever goes wrong with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Engine, Table, insert, inspect, select, update
from sqlalchemy.exc import DBAPIError

from fedrounds.core.errors import ServiceError, StateError
from fedrounds.ledger import schema

Fault = Literal["away", "wrong", "bug"]


@dataclass(frozen=True, repr=False)  # no repr: an engine's may tell more than it should
class Dialect:
    """What SQLite and PostgreSQL do differently.

    `where` is what messages call the database; it holds no password. `reader` and `writer` share their connections.
    """

    where: str
    reader: Engine
    writer: Engine
    alone: Callable[[Connection], None]  # first in the transaction that makes the tables: of two that try, one waits
    now: Callable[[Connection], float]  # the clock that leases go by
    shared: bool  # whether other hosts write to it
    fault: Callable[[DBAPIError], Fault]  # `away`: the server does not answer, waiting may help; `bug`: one of ours
    advice: str  # what a person does when it is wrong


class Database:
    """Readers see a snapshot, writers work one at a time."""

    def __init__(self, dialect: Dialect) -> None:
        """Make the tables in an empty database, and bring older ones up to date.

        Raises:
            StateError: the database cannot be used, is not a ledger, or was written by a newer release; it is left as it was.
            ServiceError: its server does not answer.
        """
        self.where, self.shared = dialect.where, dialect.shared
        self._dialect = dialect
        self._mine = threading.local()
        self._prepare()

    def close(self) -> None:
        """Give the connections back."""
        self._dialect.reader.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One snapshot; nothing in it waits for a writer."""
        with self.one_line(), self._dialect.reader.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, and no other writer until it ends.

        Raises ServiceError if the server went away: what was written is not there, unless it went away in the very act of closing the
        transaction. Whoever repeats a write has to allow for that.
        """
        self._abandon()
        with self.one_line(), self._dialect.writer.connect() as connection:
            self._mine.connection = connection
            with connection.begin():
                found = self._lock(connection)
                if found != schema.VERSION:  # a newer release brought it up to date while this one ran
                    raise self._foreign(found)
                yield connection

    def _abandon(self) -> None:
        """Roll back what this thread has begun to write and a signal has cut short before `with` could end it: it would wait for itself."""
        before = getattr(self._mine, "connection", None)
        if before is not None and not before.closed:
            before.close()

    def now(self, connection: Connection) -> float:
        """Unix seconds by the one clock that all who write here share."""
        return self._dialect.now(connection)

    @contextmanager
    def one_line(self) -> Iterator[None]:
        """Turn the database's refusal into a StateError, its silence into a ServiceError."""
        try:
            yield
        except DBAPIError as error:
            fault, said = self._dialect.fault(error), " ".join(str(error.orig).split())
            if fault == "bug":
                raise
            if fault == "away":
                raise ServiceError(
                    f"expected an answer of the database server at {self.where}, found none: {said}: see that it runs; "
                    "nothing is lost, what waits for it goes on when it is back"
                ) from None
            raise StateError(
                f"expected a ledger that can be read and written at {self.where}, found: {said}: {self._dialect.advice}"
            ) from None

    def _lock(self, connection: Connection) -> int:
        """The tables' version; for PostgreSQL its row is locked until the transaction ends, SQLite locked at BEGIN."""
        return connection.scalar(select(schema.version.c.version).with_for_update()) or 0

    def _prepare(self) -> None:
        """Make the tables in an empty database; refuse what is not ours before a byte of it changes."""
        with self.read() as connection:
            tables = inspect(connection).get_table_names()
            ours = schema.version.name in tables
            found = connection.scalar(select(schema.version.c.version)) if ours else None
        if tables and not ours:
            raise StateError(
                f"expected a ledger at {self.where}, found a database of something else: choose another state folder"
            )
        if ours and not 1 <= (found or 0) <= schema.VERSION:
            raise self._foreign(found)
        if ours:
            if found != schema.VERSION:
                self._upgrade()
            return
        with self.one_line(), self._dialect.writer.begin() as connection:  # not `write`: there is no row to lock yet
            self._dialect.alone(connection)
            schema.metadata.create_all(connection)
            put(connection, schema.version, {"id": schema.ONLY}, {"version": schema.VERSION})

    def _upgrade(self) -> None:
        """From an earlier version to this one, in place and whole; of two processes that try, the second finds it done."""
        from fedrounds.ledger import migrations

        with self.one_line(), self._dialect.writer.begin() as connection:
            found = self._lock(connection)
            if not 1 <= found <= schema.VERSION:
                raise self._foreign(found)
            if found < schema.VERSION:
                migrations.upgrade(connection, found, schema.VERSION)
                connection.execute(update(schema.version).values(version=schema.VERSION))

    def _foreign(self, found: object) -> StateError:
        return StateError(
            f"expected a ledger of version 1 to {schema.VERSION} at {self.where}, found version {found}: "
            "another release of Fedrounds wrote it; install that release or a newer one"
        )


def put(connection: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Update the row with this key, or insert it; writers are alone, so nothing comes between."""
    if not connection.execute(update(table).filter_by(**key).values(**values)).rowcount:
        connection.execute(insert(table).values(**key, **values))
