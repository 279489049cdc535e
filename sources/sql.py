"""One reading query on a database. Its URL and the database's own messages never appear in an error."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np

from fedrounds.core.errors import DataContractError, StudyError
from fedrounds.core.table import Table
from fedrounds.sources import cells
from fedrounds.sources.options import SqlSource
from fedrounds.sources.reading import ordered

T = TypeVar("T")


def read(source: SqlSource, root: Path, site: str) -> Table:
    """The answer to the query, on a connection that cannot write where the database lets a client say so.

    A database gives rows in any order unless ORDER BY says which: after a vacuum, say, in another one. So that the same rows are the same
    table, rows without an order are put into that of their keys.
    """
    with opened(source.url, root, site, "`url` and `query`") as database:
        names, rows = database.literally(source.query)
    if same := cells.same_name(names):
        raise DataContractError(
            f"site '{site}': expected distinct columns, found that {same}: rename one in `query` with AS"
        )
    if not rows:
        raise DataContractError(f"site '{site}': expected rows, found none: check `query` in the site file")
    table = cells.table(dict(zip(names, zip(*rows, strict=True), strict=True)), cells.column)
    return table if ordered(source.query) else table.take(np.argsort(table.row_keys()))


@contextmanager
def opened(url: str, root: Path, site: str, declared: str, snapshot: bool = False) -> Iterator[Database]:
    """A database on a connection that cannot write where it lets a client say so.

    Args:
        declared: what to check in the site file if it does not answer.
        snapshot: whether all statements shall see one state of the database, where it can do so.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    address = _address(url, root, site)

    def connected(stack: ExitStack) -> Any:
        engine = create_engine(address, poolclass=NullPool, hide_parameters=True)
        connection = stack.enter_context(engine.connect())
        if engine.dialect.name == "postgresql":
            connection.execution_options(postgresql_readonly=True)
            if snapshot:
                connection.execution_options(isolation_level="REPEATABLE READ")
        elif engine.dialect.name in ("mysql", "mariadb"):
            connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
        elif engine.dialect.name == "sqlite" and snapshot:
            connection.exec_driver_sql("BEGIN")  # the driver itself begins nothing to read
        return connection

    with ExitStack() as stack:
        yield Database(_answered(lambda: connected(stack), site, declared), site, declared)


class Database:
    """What may be asked of an open database. Its own messages never leave, since they may quote rows, the query or the password."""

    def __init__(self, connection: Any, site: str, declared: str) -> None:
        self._connection, self._site, self._declared = connection, site, declared

    def literally(self, query: str) -> tuple[list[str], list[Any]]:
        """The columns and rows of a query that is taken as it is written: a % is a %, whatever the driver's parameter style."""

        def ask() -> tuple[list[str], list[Any]]:
            result = self._connection.exec_driver_sql(query, execution_options={"no_parameters": True})
            return [name.strip() for name in result.keys()], list(result.fetchall())  # noqa: SIM118 - not a dict

        return _answered(ask, self._site, self._declared)

    def rows(self, statement: Any) -> list[Any]:
        """The rows of a statement of SQLAlchemy."""
        return _answered(lambda: list(self._connection.execute(statement).fetchall()), self._site, self._declared)

    def columns(self, table: str, schema: str) -> set[str]:
        """The columns of a table or a view, in lower case; none if there is no such table."""
        from sqlalchemy import inspect
        from sqlalchemy.exc import NoSuchTableError

        def ask() -> set[str]:
            try:
                return {about["name"].lower() for about in inspect(self._connection).get_columns(table, schema or None)}
            except NoSuchTableError:
                return set()

        return _answered(ask, self._site, self._declared)


def _answered(ask: Callable[[], T], site: str, declared: str) -> T:
    """What the database answers; whatever a driver raises ends here. (A context manager would hand its text on, as what an error came from.)"""
    try:
        return ask()
    except Exception as error:
        failure = type(error).__name__
    raise DataContractError(
        f"site '{site}': expected the database to answer, found {failure}: check {declared} in the site file, "
        "that the driver is installed and the server is up; its own log says more"
    )


def _address(url: str, root: Path, site: str) -> Any:
    """The URL with variables filled in; a SQLite file is found from `root` and opened read-only."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    credentials, at, rest = url.rpartition("@")
    filled = _filled(credentials, site, quoted=True) + at + _filled(rest, site, quoted=False)
    try:
        address = make_url(filled)
    except (ArgumentError, ValueError):
        address = None
    if address is None:
        raise StudyError(
            f"site '{site}': expected `url` like dialect://user:${{PASSWORD}}@host/database, found another form"
        )
    if address.get_backend_name() != "sqlite" or (address.database or "").startswith("file:"):
        return address
    file = root / (address.database or "")
    if not file.is_file():
        raise StudyError(
            f"site '{site}': expected a SQLite file where `url` says, found none: correct `url` in the site file"
        )
    return address.set(database=f"file:{quote(str(file.resolve()))}", query={"mode": "ro", "uri": "true"})


def _filled(part: str, site: str, quoted: bool) -> str:
    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise StudyError(
                f"site '{site}': expected the environment variable {match[1]} that `url` names, found none: set it"
            )
        return quote(found, safe="") if quoted else found

    return re.sub(r"\$\{(\w+)\}", value, part)
