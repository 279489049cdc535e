"""A database that is a ledger: its transactions, its tables, and one line for whatever goes wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, Table, insert, inspect, select, update
from sqlalchemy.exc import DatabaseError, IntegrityError, ProgrammingError

from fedrounds.core.errors import StateError
from fedrounds.ledger import schema


class Database:
    """Readers see a snapshot, writers work one at a time. `where` is what messages call the database."""

    def __init__(self, engine: Engine, where: str) -> None:
        """Make the tables in an empty database.

        Raises:
            StateError: the database cannot be used, is not a ledger, or was written by another release; it is left as it was.
        """
        self.where = where
        self._engine = engine
        self._writer = engine.execution_options(begin="BEGIN IMMEDIATE")  # the same connections; see `sqlite`
        self._prepare()

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One snapshot; nothing in it waits for a writer."""
        with self.one_line(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, and no other writer until it ends."""
        with self.one_line(), self._writer.begin() as connection:
            connection.execute(select(schema.version).with_for_update())  # for PostgreSQL; SQLite locked at BEGIN
            yield connection

    @contextmanager
    def one_line(self) -> Iterator[None]:
        """Turn the database's refusal into a StateError."""
        try:
            yield
        except (IntegrityError, ProgrammingError):  # a bug of ours
            raise
        except DatabaseError as error:
            raise StateError(
                f"expected a ledger that can be read and written at {self.where}, found: {error.orig}: check the folder's rights and "
                "free space, and that the file is a ledger"
            ) from None

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
        if ours and not 1 <= found <= schema.VERSION:
            raise StateError(
                f"expected a ledger of version 1 to {schema.VERSION} at {self.where}, found version {found}: "
                "another release of Fedrounds wrote it; install that release or a newer one"
            )
        if ours:
            if found < schema.VERSION:
                self._upgrade()
            return
        with self.one_line(), self._writer.begin() as connection:  # not `write`: there is no row to lock yet
            schema.metadata.create_all(connection)
            put(connection, schema.version, {"id": schema.ONLY}, {"version": schema.VERSION})

    def _upgrade(self) -> None:
        """From an earlier version to this one, in place and whole; of two processes that try, the second finds it done."""
        with self.write() as connection:
            found = connection.scalar(select(schema.version.c.version)) or schema.VERSION
            if found < schema.VERSION:
                schema.upgrade(connection, found)
                connection.execute(update(schema.version).values(version=schema.VERSION))


def put(connection: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Update the row with this key, or insert it; writers are alone, so nothing comes between."""
    if not connection.execute(update(table).filter_by(**key).values(**values)).rowcount:
        connection.execute(insert(table).values(**key, **values))
