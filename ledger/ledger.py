"""One study's ledger: what closed, what failed, who runs it.

    ledger = Ledger.open(Path("state/ledger.db"))
    lineage = ledger.begin(study)
    ledger.acquire()
    head = ledger.head()                              # None before the first visit
    visit = ledger.commit(head.visit if head else 0, Visit(...))

Guarantees:
    * a visit is wholly in the ledger or not at all: one transaction, whenever the process is killed or the power fails;
    * a visit is committed once: `commit` names the head that it continues from, and of two committers the second is refused;
    * one runner at a time: a lease, free again the moment its process is dead;
    * any number of processes and threads may read while one writes; writers wait for each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Engine, Select, Table, create_engine, event, func, insert, inspect, select, update
from sqlalchemy import delete as delete_from
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError, ProgrammingError

from fedrounds.core import state as states
from fedrounds.core.errors import StateError
from fedrounds.core.operations import Operations
from fedrounds.core.state import RunState
from fedrounds.core.study import Study
from fedrounds.ledger import schema

BUSY_S = 30  # how long a writer waits for another
LEASE_S = 900  # how long a runner on another host is believed to live without a sign


@dataclass(frozen=True)
class Lineage:
    """One protocol's life in one ledger: MLflow's parent run."""

    name: str
    digest: str
    lineage: str  # random
    created: float


@dataclass(frozen=True)
class Verdict:
    """What a site's gate said of its data. `verdict` holds only what may leave a site; `since` is the visit that it was given on."""

    passed: bool
    verdict: Mapping[str, Any]
    since: int = 0  # set by the ledger


@dataclass(frozen=True)
class Decision:
    """Whether the model of `round` became champion, and why."""

    round: int
    promoted: bool
    reason: str
    model: str
    visit: int = 0  # set by the ledger


@dataclass(frozen=True)
class Visit:
    """A visit to the sites that closed, to be committed.

    `round` is the training round that it closes, 0 for statistics, and the round that was scored for a closing `score`. Numbers in
    `record` are finite; None says undefined. `verdicts` are the new ones: a site that is not named keeps its last.
    """

    round: int
    ask: str
    base: str  # digest of the model that came in
    state: RunState  # after the visit
    record: Mapping[str, Any]
    suite_hash: str
    operations_version: int
    started: float
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    promotions: Sequence[Decision] = ()


@dataclass(frozen=True)
class Entry:
    """A committed visit, without its state."""

    visit: int
    round: int
    ask: str
    base: str
    model: str  # digest of the model after the visit
    suite_hash: str
    operations_version: int
    started: float
    committed: float
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """A try that did not close: the `attempt`th at `visit`."""

    visit: int
    attempt: int
    round: int
    ask: str
    reason: str
    started: float
    failed: float


@dataclass(frozen=True)
class Head:
    """Where the study stands."""

    visit: int
    state: RunState


class Ledger:
    """A study's ledger. Times are Unix seconds.

    Every method raises StateError if the database cannot be used. Threads may share one ledger, processes may not: each opens its own.
    """

    def __init__(self, engine: Engine, where: str) -> None:
        """Use `open` for a file. `where` is what messages call the database."""
        self._where = where
        self._owner = uuid.uuid4().hex
        self._lease_s = 0.0  # above 0 while this ledger has the lease
        self._engine = engine
        self._writer = engine.execution_options(begin="BEGIN IMMEDIATE")  # the same connections; see `_sqlite`
        self._prepare()

    @classmethod
    def open(cls, path: Path) -> Self:
        """The ledger in the file `path`, which is created if it is absent.

        Raises:
            StateError: the file cannot be made, is not a ledger, or was written by a newer release; it is left as it was.
        """
        path = Path(path).absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(
                f"expected a folder for the ledger at {path.parent}, found: {error.strerror}: choose a state folder that can be written"
            ) from None
        engine = _sqlite(path)
        try:
            ledger = cls(engine, str(path))
            with ledger._one_line():
                _log_ahead(engine)
        except BaseException:
            engine.dispose()
            raise
        return ledger

    def close(self) -> None:
        """Give the connections back; the last one to leave folds the write-ahead log into the file."""
        self._engine.dispose()

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
        with self._write() as connection:
            lineage = _lineage(connection)
            if lineage is None:
                lineage = Lineage(study.name, study.digest, uuid.uuid4().hex, time.time())
                row = {"id": schema.ONLY, "protocol": study.model_dump(mode="json"), **asdict(lineage)}
                connection.execute(insert(schema.study).values(row))
        if lineage.digest != study.digest:
            raise StateError(
                f"expected study digest {lineage.digest[:12]}, found {study.digest[:12]} for '{study.name}' in {self._where}: "
                "the protocol changed; use --fresh to start a new lineage"
            )
        return lineage

    def lineage(self) -> Lineage | None:
        """The lineage in this ledger, None before `begin`."""
        with self._read() as connection:
            return _lineage(connection)

    def study(self) -> Study:
        """The protocol that `begin` wrote. Raises StateError before that."""
        with self._read() as connection:
            protocol = connection.scalar(select(schema.study.c.protocol))
        if protocol is None:
            raise StateError(f"expected a study in {self._where}, found none yet: `fedrounds run` begins one")
        return Study.model_validate(protocol)

    def note_operations(self, operations: Operations, from_round: int) -> int:
        """The version of `operations`; a new one, holding from `from_round`, if they differ from the last."""
        found = operations.model_dump(mode="json")
        with self._write() as connection:
            last = connection.execute(_last(schema.operations.c.version, schema.operations)).first()
            if last and last.operations == found:
                return last.version
            version = last.version + 1 if last else 1
            connection.execute(
                insert(schema.operations).values(version=version, from_round=from_round, operations=found)
            )
            return version

    # --- visits -------------------------------------------------------------------------------------------------------

    def head(self) -> Head | None:
        """The last visit's number and the state that it left, None before the first."""
        with self._read() as connection:
            row = connection.execute(_last(schema.visits.c.visit, schema.visits)).first()
        return Head(row.visit, self._load(row)) if row else None

    def commit(self, after: int, visit: Visit) -> int:
        """Write a closed visit, all of it in one transaction, and renew the lease.

        Args:
            after: the head that the visit continues from, 0 for none.

        Returns:
            The visit's number, `after + 1`.

        Raises:
            StateError: another runner committed in between, or took the lease; nothing was written.
        """
        state, number = states.dump(visit.state), after + 1
        with self._write() as connection:
            self._refuse_unless_mine(connection, after, visit)
            row = {name: getattr(visit, name) for name in ("round", "ask", "base", "suite_hash", "operations_version")}
            row |= {"visit": number, "record": dict(visit.record), "started": visit.started, "committed": time.time()}
            row |= {"model": visit.state.model_digest, "checksum": hashlib.sha256(state).hexdigest(), "state": state}
            connection.execute(insert(schema.visits).values(row))
            if visit.verdicts:
                found = visit.verdicts.items()
                verdicts = [{"site": site, "passed": it.passed, "verdict": dict(it.verdict)} for site, it in found]
                connection.execute(insert(schema.verdicts), [{"visit": number} | verdict for verdict in verdicts])
            if visit.promotions:
                connection.execute(
                    insert(schema.promotions), [asdict(decision) | {"visit": number} for decision in visit.promotions]
                )
        return number

    def fail(self, round: int, reason: str, started: float, ask: str = "train") -> None:
        """Record a try that did not close. Nothing else changes: the next try continues from the same head."""
        with self._write() as connection:
            visit = _newest(connection) + 1
            tries = select(func.count()).select_from(schema.failures).where(schema.failures.c.visit == visit)
            failure = Failure(visit, connection.scalar(tries) + 1, round, ask, reason, started, time.time())
            connection.execute(insert(schema.failures).values(asdict(failure)))

    def visits(self, after: int = 0, limit: int | None = None) -> list[Entry]:
        """The visits later than `after`, in order, at most `limit`."""
        with self._read() as connection:
            rows = connection.execute(
                select(*_ENTRY).where(schema.visits.c.visit > after).order_by(schema.visits.c.visit).limit(limit)
            )
            return [Entry(**row) for row in rows.mappings()]

    def progress(self) -> Entry | None:
        """The last visit, without its state: cheap enough to ask several times a second."""
        with self._read() as connection:
            row = connection.execute(_last(schema.visits.c.visit, *_ENTRY)).mappings().first()
        return Entry(**row) if row else None

    def state(self, visit: int) -> RunState:
        """The state that a visit left."""
        with self._read() as connection:
            row = connection.execute(select(schema.visits).where(schema.visits.c.visit == visit)).first()
        if row is None:
            raise StateError(f"expected visit {visit} in the ledger {self._where}, found none: see `fedrounds status`")
        return self._load(row)

    def failures(self) -> list[Failure]:
        """Every try that did not close, in order."""
        with self._read() as connection:
            rows = connection.execute(select(schema.failures).order_by(*schema.failures.primary_key))
            return [Failure(**row) for row in rows.mappings()]

    def verdicts(self, visit: int | None = None) -> dict[str, Verdict]:
        """Site -> the verdict in force after `visit`, or now, in site order."""
        table = schema.verdicts
        rows = select(table).order_by(table.c.site, table.c.visit)
        with self._read() as connection:
            found = connection.execute(rows if visit is None else rows.where(table.c.visit <= visit))
            return {row.site: Verdict(row.passed, row.verdict, row.visit) for row in found}  # a site's last row stays

    def promotions(self) -> list[Decision]:
        """Every decision on a champion, in order."""
        with self._read() as connection:
            rows = connection.execute(select(schema.promotions).order_by(*schema.promotions.primary_key))
            return [Decision(**row) for row in rows.mappings()]

    # --- the projector ------------------------------------------------------------------------------------------------

    def unprojected(self) -> list[int]:
        """The visits that MLflow does not hold yet, in order."""
        done = select(schema.projected.c.visit)
        with self._read() as connection:
            waiting = select(schema.visits.c.visit).where(schema.visits.c.visit.not_in(done))
            return list(connection.scalars(waiting.order_by(schema.visits.c.visit)))

    def mark_projected(self, visit: int) -> None:
        """Say that MLflow holds a visit; saying it again changes nothing."""
        with self._write() as connection:
            _put(connection, schema.projected, {"visit": visit}, {"at": time.time()})

    # --- the lease ----------------------------------------------------------------------------------------------------

    def acquire(self, lease_s: float = LEASE_S) -> None:
        """Take the study for this ledger object, or take it over from a runner that is dead.

        A runner on this host is dead when its process is. One on another host is believed until its lease ends, so `lease_s` must be
        longer than a round; `commit` and `renew` start it afresh.

        Raises:
            StateError: another runner works on the study.
        """
        now = time.time()
        with self._write() as connection:
            held = connection.execute(select(schema.lease)).first()
            if held and held.owner != self._owner:
                here = held.host == platform.node()
                if (here and _born(held.pid) == held.born) or (not here and held.expires > now):
                    until = "" if here else f", its lease ends {_utc(held.expires)}"
                    raise StateError(
                        f"expected no other runner on this study, found one at work (pid {held.pid} on {held.host}, since "
                        f"{_utc(held.taken)}{until}) in {self._where}: wait until it ends, or end it"
                    )
            mine = {"owner": self._owner, "pid": os.getpid(), "host": platform.node(), "born": _born(os.getpid())}
            _put(connection, schema.lease, {"id": schema.ONLY}, mine | {"taken": now, "expires": now + lease_s})
        self._lease_s = lease_s

    def renew(self) -> None:
        """Start the lease afresh. Raises StateError if another runner took it over, and if it was never acquired."""
        with self._write() as connection:
            self._renew(connection)

    def release(self) -> None:
        """Let the next runner in; does nothing without the lease."""
        with self._write() as connection:
            connection.execute(delete_from(schema.lease).where(schema.lease.c.owner == self._owner))
        self._lease_s = 0.0

    # --- flow runs and notes ------------------------------------------------------------------------------------------

    def flow_started(self, flow_run: str) -> None:
        """Remember a Prefect flow run, so that the next start can mark it crashed if this process dies."""
        with self._write() as connection:
            _put(connection, schema.flow_runs, {"id": flow_run}, {"started": time.time(), "ended": None})

    def flow_ended(self, flow_run: str) -> None:
        """Forget about a flow run: Prefect knows its end."""
        with self._write() as connection:
            runs = schema.flow_runs
            connection.execute(update(runs).where(runs.c.id == flow_run).values(ended=time.time()))

    def open_flow_runs(self) -> list[str]:
        """The flow runs that started and did not end, oldest first."""
        runs = schema.flow_runs
        with self._read() as connection:
            return list(connection.scalars(select(runs.c.id).where(runs.c.ended.is_(None)).order_by(runs.c.started)))

    def note(self, key: str, value: Any) -> None:
        """Keep a small JSON value under `key`, in place of the last one."""
        with self._write() as connection:
            _put(connection, schema.notes, {"key": key}, {"value": value})

    def noted(self, key: str) -> Any:
        """The value under `key`, None if there is none."""
        with self._read() as connection:
            return connection.scalar(select(schema.notes.c.value).where(schema.notes.c.key == key))

    # --- inside -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        """One snapshot; nothing in it waits for a writer."""
        with self._one_line(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """One transaction, and no other writer until it ends."""
        with self._one_line(), self._writer.begin() as connection:
            connection.execute(select(schema.version).with_for_update())  # for PostgreSQL; SQLite locked at BEGIN
            yield connection

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except (IntegrityError, ProgrammingError):  # a bug of ours
            raise
        except DatabaseError as error:
            raise StateError(
                f"expected a ledger that can be read and written at {self._where}, found: {error.orig}: check the folder's rights and "
                "free space, and that the file is a ledger"
            ) from None

    def _prepare(self) -> None:
        """Make the tables in an empty database; refuse what is not ours before a byte of it changes."""
        with self._read() as connection:
            tables = inspect(connection).get_table_names()
            ours = schema.version.name in tables
            found = connection.scalar(select(schema.version.c.version)) if ours else None
        if tables and not ours:
            raise StateError(
                f"expected a ledger at {self._where}, found a database of something else: choose another state folder"
            )
        if ours and found != schema.VERSION:
            raise StateError(
                f"expected a ledger of version {schema.VERSION} at {self._where}, found version {found}: "
                "another release of Fedrounds wrote it; install that release or a newer one"
            )
        if ours:
            return
        with self._one_line(), self._writer.begin() as connection:  # not _write: there is no row to lock yet
            schema.metadata.create_all(connection)
            _put(connection, schema.version, {"id": schema.ONLY}, {"version": schema.VERSION})

    def _refuse_unless_mine(self, connection: Connection, after: int, visit: Visit) -> None:
        newest, lineage = _newest(connection), _lineage(connection)
        if lineage is None or lineage.digest != visit.state.study:
            found = lineage.digest[:12] if lineage else "none"
            raise StateError(
                f"expected study digest {visit.state.study[:12]} in the ledger {self._where}, found {found}: begin the study first"
            )
        if newest != after:
            raise StateError(
                f"expected visit {after} as the last in {self._where}, found visit {newest}: another runner works on this study; "
                "nothing was written, end one of them"
            )
        if self._lease_s:
            self._renew(connection)

    def _renew(self, connection: Connection) -> None:
        mine = update(schema.lease).where(schema.lease.c.owner == self._owner)
        if not connection.execute(mine.values(expires=time.time() + self._lease_s)).rowcount:
            raise StateError(
                f"expected this process to have the lease of {self._where}, found that another runner took it: nothing was written, "
                "end one of them"
            )

    def _load(self, row: Any) -> RunState:
        if hashlib.sha256(row.state).hexdigest() != row.checksum:
            raise StateError(
                f"expected the state of visit {row.visit} as it was written, found damaged bytes in {self._where}: "
                "restore the ledger from a copy"
            )
        return states.load(row.state)


_ENTRY = [column for column in schema.visits.c if column.name not in ("state", "checksum")]


def _last(key: Any, *columns: Any) -> Select[Any]:
    return select(*columns).order_by(key.desc()).limit(1)


def _newest(connection: Connection) -> int:
    return connection.scalar(select(func.max(schema.visits.c.visit))) or 0


def _lineage(connection: Connection) -> Lineage | None:
    row = connection.execute(select(schema.study)).first()
    return Lineage(row.name, row.digest, row.lineage, row.created) if row else None


def _put(connection: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Update the row with this key, or insert it; writers are alone, so nothing comes between."""
    if not connection.execute(update(table).filter_by(**key).values(**values)).rowcount:
        connection.execute(insert(table).values(**key, **values))


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))


def _born(pid: int) -> str:
    """When a living process started, in words that no other process of this host shares; empty if there is no such process.

    A killed process that nobody waited for (a zombie) is not living.
    """
    try:
        if Path("/proc/self/stat").exists():  # ticks since boot: unlike a time of day, they never shift
            state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return "" if state in "ZX" else f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {rest[18]}"
        ps = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
        state, _, started = subprocess.run(ps, capture_output=True, text=True).stdout.strip().partition(" ")
        return "" if state.startswith("Z") else started.strip()
    except OSError:
        return ""


# --- SQLite: the only lines that PostgreSQL would not take ------------------------------------------------------------


def _sqlite(path: Path) -> Engine:
    """An engine for a SQLite file.

    synchronous=FULL waits for the disk once a commit. NORMAL would outlive kill -9 as well, but may lose the last commits when the power
    fails; by then MLflow and the sites know of a round that the ledger, the truth, would have forgotten.
    """
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_S, "check_same_thread": False},
        json_serializer=_json,
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


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)  # NaN is no JSON: PostgreSQL and every other reader would refuse it
