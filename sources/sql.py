"""One reading query on a database. Its URL and the database's own messages never appear in an error."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedrounds.core.errors import DataContractError, StudyError
from fedrounds.core.table import Table
from fedrounds.sources import cells
from fedrounds.sources.options import SqlSource


def read(source: SqlSource, root: Path, site: str) -> Table:
    """The answer to the query, on a connection that cannot write where the database lets a client say so."""
    names, rows = _ask(_address(source.url, root, site), source.query, site)
    if same := cells.same_name(names):
        raise DataContractError(
            f"site '{site}': expected distinct columns, found that {same}: rename one in `query` with AS"
        )
    if not rows:
        raise DataContractError(f"site '{site}': expected rows, found none: check `query` in the site file")
    return cells.table(dict(zip(names, zip(*rows, strict=True), strict=True)), cells.column)


def _ask(address: Any, query: str, site: str) -> tuple[list[str], list[Any]]:
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    try:
        engine = create_engine(address, poolclass=NullPool, hide_parameters=True)
        # no_parameters: a % in the query is a %, whatever the driver's parameter style.
        with engine.connect().execution_options(no_parameters=True) as connection:
            if engine.dialect.name == "postgresql":
                connection.execution_options(postgresql_readonly=True)
            elif engine.dialect.name in ("mysql", "mariadb"):
                connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
            result = connection.exec_driver_sql(query)
            return [name.strip() for name in result.keys()], list(result.fetchall())  # noqa: SIM118 - not a dict
    except Exception as error:  # whatever a driver raises: its message may quote rows, the query or the password
        failure = type(error).__name__
    raise DataContractError(
        f"site '{site}': expected the database to answer, found {failure}: check `url` and `query` in the site file, "
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
