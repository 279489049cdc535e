"""A ledger on a PostgreSQL server: one schema a study, so that an operator gives one address and one backup holds all of them.

    postgresql://fedrounds@server/fedrounds?study=toy      the schema "fedrounds_toy"; without `study` the schema "fedrounds"

A schema is made in the same transaction as its tables, which a database cannot be, and needs the right CREATE on one database only.
"""

from __future__ import annotations

import hashlib
import re

from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, ProgrammingError

from fedrounds.core.errors import StateError
from fedrounds.ledger.database import Database, Dialect, Fault
from fedrounds.ledger.sqlite import BUSY_S, to_json

CONNECT_S = 5  # how long a server may take to be reached
SILENT_S = 20  # how long it may leave our bytes unacknowledged before the connection counts as lost
STATEMENT_S = (
    60  # how long a statement may take, and a transaction may do nothing: a stopped writer blocks others no longer
)
# SQLSTATE of a server that is there again later: connection lost, out of resources, shutting down, starting up, another writer is slow.
LATER = re.compile(r"08...|53...|57P0[1-5]|57014|55P03|25P03|40001|40P01")
# What it says for ever, without a SQLSTATE, to whoever connects wrongly; in another language the server counts as away.
NEVER = re.compile(
    r"authentication failed|does not exist|no pg_hba\.conf entry|no password supplied|not permitted to log in|permission denied for database"
    r"|invalid connection option|invalid (?:sslmode|integer|port)|SSL, but SSL was required|certificate"
)
STUDY = re.compile(r"[A-Za-z0-9_.-]{0,63}")  # as in `core.study`
LONGEST = 63  # characters that PostgreSQL keeps of a name


def address(server: str, study: str) -> str:
    """The address of a study's ledger on a server.

    >>> address("postgresql://fedrounds@db.example/fedrounds", "toy")
    'postgresql://fedrounds@db.example/fedrounds?study=toy'
    """
    return _parse(server).update_query_dict({"study": study}).render_as_string(hide_password=False)


def database(where: str) -> Database:
    """The ledger's database at an address; schema and tables are made if they are absent.

    Raises:
        StateError: the address is none, the server lets us not in, or what lies there is no ledger; it is left as it was.
        ServiceError: the server does not answer.
    """
    url = _parse(where)
    study = url.query.get("study", "")
    if not isinstance(study, str) or not STUDY.fullmatch(study):
        raise StateError(
            "expected one `study` of at most 63 letters, digits, dots, dashes and underscores in the ledger's address, found another text"
        )
    name = f"fedrounds_{study}" if study else "fedrounds"
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    options = (
        f'-c search_path="{name}" -c lock_timeout={BUSY_S}s -c statement_timeout={STATEMENT_S}s '
        f"-c idle_in_transaction_session_timeout={STATEMENT_S}s"
    )
    given = url.query.get("options", "")
    url = url.difference_update_query(["study", "options"])
    try:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg2"),
            connect_args={
                "options": f"{given} {options}".strip(),
                "connect_timeout": CONNECT_S,
                "tcp_user_timeout": SILENT_S * 1000,
                "keepalives_idle": SILENT_S,
                "application_name": "fedrounds",
            },
            pool_pre_ping=True,  # a server that came back between two calls is reached anew
            pool_timeout=BUSY_S,
            hide_parameters=True,
            json_serializer=to_json,
        )
    except ImportError:
        raise StateError(
            "expected the PostgreSQL driver psycopg2 for this ledger, found none: install fedrounds[coordinator]"
        ) from None
    dialect = Dialect(
        _named(url, name),
        engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True),  # one snapshot
        engine.execution_options(isolation_level="READ COMMITTED"),  # sees, once it has the lock, all that was written
        lambda connection: _make(connection, name),
        _now,
        True,
        _fault,
        "check the address, the password, and that the role may create and write the schema",
    )
    try:
        return Database(dialect)
    except BaseException:
        engine.dispose()
        raise


def _parse(where: str) -> URL:
    try:
        url = make_url(where)
        good = url.get_backend_name() == "postgresql" and bool(url.database) and "@" not in (url.host or "")
    except (ArgumentError, NoSuchModuleError, ValueError):
        good = False
    if not good:  # what was found is not shown: it may hold a password
        raise StateError(
            "expected the ledger's address as a path or postgresql://user:password@host:port/database, found another text: write signs in the "
            "password as %40 and the like"
        )
    return url


def _named(url: URL, name: str) -> str:
    """What messages call it: no password, wherever it stood in the address."""
    plain = URL.create("postgresql", url.username, None, url.host, url.port, url.database)
    socket = f" ({url.query['host']})" if "host" in url.query else ""
    return f"{plain.render_as_string()}{socket}, schema {name}"


def _make(connection: Connection, name: str) -> None:
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
    if not connection.scalar(text("SELECT count(*) FROM pg_namespace WHERE nspname = :name"), {"name": name}):
        connection.exec_driver_sql(f'CREATE SCHEMA "{name}"')


def _now(connection: Connection) -> float:
    return connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())::double precision"))


def _fault(error: DBAPIError) -> Fault:
    code = getattr(error.orig, "pgcode", None)
    if code == "42501" or (code or "").startswith("28"):  # the role lacks a right, or is not let in
        return "wrong"
    if isinstance(error, IntegrityError | ProgrammingError):
        return "bug"
    if code is None:  # it never came to a statement, or the connection broke in it
        return "wrong" if not error.connection_invalidated and NEVER.search(str(error.orig)) else "away"
    return "away" if error.connection_invalidated or LATER.fullmatch(code) else "wrong"
