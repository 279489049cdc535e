"""A ledger in a SQLite file. `postgres` is its like for a server."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError

from fedrounds.core.errors import StateError
from fedrounds.ledger.database import Database, Dialect, Fault

BUSY_S = 30  # how long a writer waits for another


def database(path: Path) -> Database:
    """The ledger's database in the file `path`, which is created if it is absent.

    Raises:
        StateError: the file cannot be made, is not a ledger, or was written by another release; it is left as it was.
    """
    path = Path(path).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(
            f"expected a folder for the ledger at {path.parent}, found: {error.strerror}: choose a state folder that can be written"
        ) from None
    engine = _engine(path)
    dialect = Dialect(
        str(path),
        engine,
        engine.execution_options(begin="BEGIN IMMEDIATE"),
        lambda _: None,  # BEGIN IMMEDIATE has the file
        lambda _: time.time(),
        False,
        _fault,
        "check the folder's rights and free space, and that the file is a ledger",
    )
    try:
        opened = Database(dialect)
        with opened.one_line():
            _log_ahead(engine)  # after the look inside: it changes the file
    except BaseException:
        engine.dispose()
        raise
    return opened


def _engine(path: Path) -> Engine:
    """An engine for a SQLite file.

    synchronous=FULL waits for the disk once a commit. NORMAL would outlive kill -9 as well, but may lose the last commits when the power
    fails; by then MLflow and the sites know of a round that the ledger, the truth, would have forgotten.
    """
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_S, "check_same_thread": False},
        json_serializer=to_json,
    )

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # Python begins no transactions of its own
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        # A writer locks before it reads: a reader that begins to write after somebody else did is refused, not made to wait.
        begin = connection.get_execution_options().get("begin", "BEGIN")
        if begin:
            connection.exec_driver_sql(begin)

    return engine


def _log_ahead(engine: Engine) -> None:
    """Write-ahead log: readers and the writer never wait for each other. The file remembers it; a copy made by SQLite does not."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            with engine.execution_options(begin="").connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            return
        except OperationalError as error:  # SQLite does not wait here if another process opens the same new file
            if "locked" not in str(error.orig) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _fault(error: DBAPIError) -> Fault:
    return "bug" if isinstance(error, IntegrityError | ProgrammingError) else "wrong"


def to_json(value: Any) -> str:
    """How values become JSON, in either database."""
    return json.dumps(value, allow_nan=False)  # NaN is no JSON: PostgreSQL and every other reader would refuse it
