"""The ledger on a PostgreSQL server: it is killed, cut off, misaddressed and shared, and nothing is lost, doubled or told."""

from __future__ import annotations

import random
import re
import socket
import threading
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import psycopg2
import pytest
from sqlalchemy import MetaData, create_engine, inspect, text

from fedrounds.core import asking as askings
from fedrounds.core.errors import ServiceError, StateError, StudyBusy
from fedrounds.core.messages import Request
from fedrounds.core.operations import Operations
from fedrounds.core.round import Asking
from fedrounds.core.state import RunState
from fedrounds.core.study import Study
from fedrounds.ledger import Ledger, Receipt, Verdict, Visit, lease, migrations, postgres, schema

STUDY = Study.model_validate(
    {
        "name": "toy",
        "target": {"kind": "binary", "column": "y", "positive_above": 0},
        "features": [{"type": "number", "name": "age"}],
        "model": {"kind": "logistic"},
        "algorithm": "fedavg",
    }
)


def at(number):
    return RunState(STUDY.digest, number, 0, np.full(3, number / 3), {}, {})


def visit(number, started=100.0):
    record = {"loss": 1 / number, "sites": {"north": {}}, "pair": (0.1, None)}
    return Visit(
        number,
        "train",
        at(number - 1).model_digest,
        at(number),
        record,
        "suite",
        1,
        started,
        {"north": Verdict(True, {})},
    )


def asked(round):
    state = at(round - 1)
    return askings.dump(Asking(state, Request(STUDY.digest, round, 0, "train", state.model_digest, {}), ("north",), 1))


def begun(address):
    ledger = Ledger.open(address)
    ledger.begin(STUDY)
    ledger.note_operations(Operations(rounds=3), 1)
    return ledger


@pytest.fixture
def ledger(new_address):
    with begun(new_address) as ledger:
        yield ledger


def raw(address, statement, *values):
    plain, _, study = address.partition("&study=")
    with closing(psycopg2.connect(plain, options=f'-c search_path="fedrounds_{study}"')) as connection, connection:
        cursor = connection.cursor()
        cursor.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


# --- the server goes away ---------------------------------------------------------------------------------------------


def test_a_server_that_was_killed_and_restarted_between_two_calls_is_not_noticed(postgres, ledger):
    ledger.acquire()
    ledger.commit(0, visit(1))
    ledger.open_attempt(1, asked(2), 5000.0)
    for number in (2, 3):
        postgres.kill()
        postgres.start()
        assert ledger.head().visit == number - 1
        assert (ledger.attempt() is not None) == (number == 2)
        postgres.kill()
        postgres.start()
        assert ledger.commit(number - 1, visit(number)) == number
    assert [entry.visit for entry in ledger.visits()] == [1, 2, 3]


def test_while_the_server_is_down_every_call_says_so_and_goes_on_when_it_is_back(postgres, new_address, ledger):
    ledger.acquire()
    postgres.kill()
    try:
        for action in (ledger.head, ledger.renew, lambda: ledger.commit(0, visit(1)), lambda: Ledger.open(new_address)):
            with pytest.raises(
                ServiceError, match="expected an answer of the database server at postgresql://fedrounds@/ledgers"
            ):
                action()
    finally:
        postgres.start()
    ledger.renew()
    assert ledger.commit(0, visit(1)) == 1  # the one that found no server never began
    assert ledger.commit(1, visit(2)) == 2


def test_a_server_that_is_killed_at_random_instants_loses_and_doubles_nothing(postgres, ledger):
    """A runner that waits and repeats the same call, while its server dies and comes back under it."""
    instants, done, away = random.Random(7), threading.Event(), 0

    def kill():
        for _ in range(4):
            time.sleep(instants.uniform(0.02, 0.25))
            postgres.kill()
            postgres.start()
        done.set()

    def insist(action, *arguments):
        nonlocal away
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                return action(*arguments)
            except ServiceError:
                away += 1
                time.sleep(0.02)
        raise AssertionError("the server did not come back")

    killer = threading.Thread(target=kill)
    insist(ledger.acquire)
    killer.start()
    number = 0
    while not done.is_set() or number < 20:
        attempt = insist(ledger.open_attempt, number, asked(number + 1), 5000.0)
        insist(ledger.note_reply, Receipt(attempt.number, 0, "north", "a" * 64, "taken"))
        number = insist(ledger.commit, number, visit(number + 1))
    killer.join()
    assert away
    expected = list(range(1, number + 1))
    assert [entry.visit for entry in ledger.visits()] == expected
    assert [(it.number, it.visit, it.outcome) for it in ledger.attempts()] == [(n, n, "committed") for n in expected]
    assert [it.attempt for it in ledger.replies()] == expected
    assert ledger.head().state.model_digest == at(number).model_digest


COMMIT = b"COMMIT\0"  # as a statement: a transaction that begins says "READ COMMITTED"


class Wire:
    """Between a ledger and its server: passes all on, until it is told to cut the connection at a word."""

    def __init__(self, server: Path) -> None:
        self.server = server
        self.cut: tuple[bytes, str] | None = None  # at which word, `before` the server has it or `after` it answered
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self.listening.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self.server))
                swallow, answered = threading.Event(), threading.Event()  # of this connection alone
                for carry in (self._questions, self._answers):
                    threading.Thread(target=carry, args=(client, server, swallow, answered), daemon=True).start()

    def _questions(self, client, server, swallow, answered):
        with both_ended(client, server):
            while data := client.recv(1 << 16):
                if self.cut and self.cut[0] in data:
                    when, self.cut = self.cut[1], None
                    if when == "after":
                        swallow.set()
                        server.sendall(data)
                        assert answered.wait(20)
                    return
                server.sendall(data)

    def _answers(self, client, server, swallow, answered):
        with both_ended(client, server):
            while data := server.recv(1 << 16):
                if swallow.is_set():
                    answered.set()
                else:
                    client.sendall(data)


@contextmanager
def both_ended(*ends):
    """Whichever end breaks, the other is told."""
    with suppress(OSError):
        yield
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def wire(postgres):
    made = Wire(postgres.home / ".s.PGSQL.5432")
    yield made
    made.listening.close()


def through(wire, address):
    """The same address, by way of the wire."""
    return re.sub(r"@/(\w+)\?host=[^&]*", rf"@127.0.0.1:{wire.port}/\1?sslmode=disable", address)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_whose_answer_was_lost_is_there_once_when_it_is_repeated(when, wire, new_address):
    begun(new_address).close()
    with Ledger.open(through(wire, new_address)) as ledger, Ledger.open(new_address) as direct:
        ledger.acquire()
        ledger.open_attempt(0, asked(1), 5000.0)
        wire.cut = (COMMIT, when)
        with pytest.raises(ServiceError, match="expected an answer"):
            ledger.commit(0, visit(1))
        there = len(direct.visits())
        assert there == (when == "after")
        assert (direct.attempt() is None) == (when == "after")
        assert ledger.commit(0, visit(1)) == 1
        assert len(direct.visits()) == 1
        assert list(direct.verdicts()) == ["north"]
        assert direct.attempt() is None
        with pytest.raises(StateError, match="found visit 1"):
            ledger.commit(0, visit(1))  # the answer was had: this one is a mistake
        assert ledger.commit(1, visit(2)) == 2


def test_only_what_this_runner_sent_counts_as_its_own(wire, new_address):
    begun(new_address).close()
    with Ledger.open(through(wire, new_address)) as ledger, Ledger.open(new_address) as other:
        wire.cut = (COMMIT, "after")
        with pytest.raises(ServiceError):
            ledger.commit(0, visit(1))
        for action in (lambda: other.commit(0, visit(1)), lambda: ledger.commit(0, visit(1, started=101.0))):
            with pytest.raises(StateError, match="another runner"):
                action()
        assert ledger.commit(0, visit(1)) == 1
    with Ledger.open(through(wire, new_address)) as ledger, Ledger.open(new_address) as other:
        wire.cut = (COMMIT, "before")
        with pytest.raises(ServiceError):
            ledger.commit(1, visit(2))
        assert other.commit(1, visit(2, started=101.0)) == 2  # somebody else was quicker
        with pytest.raises(StateError, match="another runner"):
            ledger.commit(1, visit(2))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failure_an_attempt_and_a_reply_whose_answer_was_lost_are_there_once(when, wire, new_address):
    begun(new_address).close()
    with Ledger.open(through(wire, new_address)) as ledger:
        actions = (
            lambda: ledger.open_attempt(0, asked(1), 5000.0),
            lambda: ledger.note_reply(Receipt(1, 0, "north", "a" * 64, "taken")),
            lambda: ledger.fail(1, "quorum", 7.0),
            lambda: ledger.acquire(),
            lambda: ledger.note("key", 1),
        )
        for action in actions:
            wire.cut = (COMMIT, when)
            with pytest.raises(ServiceError):
                action()
            action()
        assert [(it.number, it.outcome) for it in ledger.attempts()] == [(1, "failed")]
        assert (len(ledger.replies()), len(ledger.failures()), ledger.noted("key")) == (1, 1, 1)


def test_a_connection_that_breaks_amid_a_transaction_leaves_nothing(wire, new_address):
    begun(new_address).close()
    with Ledger.open(through(wire, new_address)) as ledger:
        for word in (b"FOR UPDATE", b"INTO visits", b"INTO verdicts"):
            wire.cut = (word, "before")
            with pytest.raises(ServiceError):
                ledger.commit(0, visit(1))
            assert (ledger.head(), ledger.verdicts()) == (None, {})
        assert ledger.commit(0, visit(1)) == 1


# --- several at once --------------------------------------------------------------------------------------------------


def test_a_reader_sees_one_snapshot_and_cannot_write(ledger):
    ledger.commit(0, visit(1))
    with ledger._database.read() as connection:
        assert connection.scalar(text("SELECT count(*) FROM visits")) == 1
        ledger.commit(1, visit(2))
        assert connection.scalar(text("SELECT count(*) FROM visits")) == 1
        with pytest.raises(Exception, match="read-only"):
            connection.execute(text("DELETE FROM visits"))
    assert len(ledger.visits()) == 2


def test_a_writer_that_does_not_end_is_waited_for_and_then_told_of(new_address, ledger, monkeypatch):
    monkeypatch.setattr(postgres, "BUSY_S", 1)
    plain, _, study = new_address.partition("&study=")
    with Ledger.open(new_address) as hasty, closing(psycopg2.connect(plain)) as slow:
        slow.cursor().execute(f'SELECT * FROM "fedrounds_{study}".fedrounds_ledger FOR UPDATE')
        with pytest.raises(ServiceError, match="lock timeout"):
            hasty.commit(0, visit(1))
        release = threading.Timer(0.3, slow.rollback)
        release.start()
        assert hasty.commit(0, visit(1)) == 1
        release.join()


def test_studies_on_one_server_have_a_schema_each_and_do_not_meet(ledgers):
    long = "x" * 60
    with (
        begun(postgres.address(ledgers, "one.a-B")) as one,
        begun(postgres.address(ledgers, long)) as two,
        begun(ledgers) as three,
    ):
        one.acquire(), two.acquire(), three.acquire()
        one.commit(0, visit(1))
        assert (two.head(), three.head()) == (None, None)
    engine = create_engine(ledgers.replace("postgresql:", "postgresql+psycopg2:"))
    names = set(inspect(engine).get_schema_names())
    engine.dispose()
    (shortened,) = {name for name in names if name.startswith("fedrounds_" + "x" * 40)}
    assert {"fedrounds", "fedrounds_one.a-B"} <= names
    assert len(shortened) == 63


# --- who runs ---------------------------------------------------------------------------------------------------------


def test_a_machine_of_the_same_name_is_another_machine(new_address, ledger, monkeypatch):
    ledger.acquire()
    with Ledger.open(new_address) as other:
        with pytest.raises(StudyBusy, match=r"pid \d+ on"):
            other.acquire()
        raw(new_address, "UPDATE lease SET born = 'dead'")  # here: it can be asked, and is dead
        other.acquire()
    monkeypatch.setattr(lease.os, "readlink", lambda _: "pid:[1]")  # a container beside ours, where nobody can be asked
    with Ledger.open(new_address) as third, pytest.raises(StudyBusy, match="its lease ends"):
        third.acquire()


def test_leases_go_by_the_servers_clock_so_a_wrong_one_takes_nothing_over(new_address, ledger, monkeypatch):
    ledger.acquire(600)
    raw(new_address, "UPDATE lease SET host = 'elsewhere'")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400)
    with Ledger.open(new_address) as other, pytest.raises(StudyBusy):
        other.acquire()
    ((ends,),) = raw(new_address, "SELECT expires FROM lease")
    assert ends == pytest.approx(real() + 600, abs=60)


def test_a_runner_that_wakes_up_after_its_time_commits_nothing(new_address, ledger):
    ledger.acquire(0.05)
    raw(new_address, "UPDATE lease SET host = 'elsewhere', expires = expires - 1")
    with Ledger.open(new_address) as other:
        other.acquire()
        with pytest.raises(StateError, match="another runner took it"):
            ledger.commit(0, visit(1))
        ledger.release()  # not its own
        assert other.commit(0, visit(1)) == 1


# --- addresses --------------------------------------------------------------------------------------------------------

SECRET = "s3cr3t-of-the-test"


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://ada:{SECRET}@127.0.0.1:1/ledgers",
        f"postgresql+psycopg://ada:{SECRET}@127.0.0.1:1/ledgers?study=toy",
        f"postgresql://127.0.0.1:1/ledgers?user=ada&password={SECRET}",
        f"postgresql://ada:{SECRET}@127.0.0.1:{SECRET}/ledgers",
        f"postgresql://ada:{SECRET}@127.0.0.1",
        f"mysql://ada:{SECRET}@127.0.0.1/ledgers",
        f"://{SECRET}",
        f"postgresql://ada:{SECRET}@127.0.0.1:1/ledgers?study=a b",
        f"postgresql://ada:at@{SECRET}@127.0.0.1:1/ledgers",
    ],
)
def test_a_password_is_in_no_message(address):
    with pytest.raises((StateError, ServiceError)) as caught:
        Ledger.open(address)
    line = str(caught.value)
    assert line.startswith("expected")
    assert SECRET not in line
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert SECRET not in repr(caught.value)


def test_who_is_not_let_in_is_told_so_and_need_not_wait(postgres, ledgers):
    raw(ledgers, "CREATE ROLE guest LOGIN")
    for address in (
        f"postgresql://nobody@/ledgers?host={postgres.home}",
        f"postgresql://fedrounds@/nowhere?host={postgres.home}",
        f"postgresql://guest@/ledgers?host={postgres.home}&study=guests",
    ):
        with pytest.raises(StateError, match="check the address, the password"):
            Ledger.open(address)


def test_a_schema_of_something_else_is_refused_and_left_alone(new_address):
    plain, _, study = new_address.partition("&study=")
    raw(plain + "&study=x", f'CREATE SCHEMA "fedrounds_{study}"')
    raw(new_address, "CREATE TABLE runs (id TEXT)")
    with pytest.raises(StateError, match="something else"):
        Ledger.open(new_address)
    assert raw(new_address, "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()") == [("runs",)]


# --- versions ---------------------------------------------------------------------------------------------------------


def test_a_ledger_migrated_step_by_step_equals_one_made_at_once(ledger_at, tmp_path):
    Ledger.open(ledger_at).close()
    if isinstance(ledger_at, Path):
        made, stepped = (create_engine(f"sqlite:///{file}") for file in (ledger_at, tmp_path / "stepped.db"))
    else:
        plain, _, study = ledger_at.partition("&study=")
        plain = plain.replace("postgresql:", "postgresql+psycopg2:")
        names = (f"fedrounds_{study}", f"stepped_{study}")
        made, stepped = (create_engine(plain, connect_args={"options": f'-c search_path="{name}"'}) for name in names)
        raw(ledger_at, f'CREATE SCHEMA "{names[1]}"')
    with stepped.begin() as connection:
        migrations.upgrade(connection, 0, schema.VERSION)
    found = [shape(engine) for engine in (made, stepped)]
    assert found[0] == found[1]
    assert found[0].keys() == schema.metadata.tables.keys()
    made.dispose(), stepped.dispose()


def shape(engine):
    """Everything that a database says of its tables."""
    reflected = MetaData()
    reflected.reflect(engine)
    looked = inspect(engine)
    return {
        name: {
            "columns": [
                (
                    c.name,
                    str(c.type.compile(engine.dialect)),
                    c.nullable,
                    c.primary_key,
                    c.autoincrement,
                    str(getattr(c.server_default, "arg", "")),
                )
                for c in table.columns
            ],
            "key": looked.get_pk_constraint(name),
            "foreign": sorted(map(str, looked.get_foreign_keys(name))),
            "unique": looked.get_unique_constraints(name),
            "indexes": looked.get_indexes(name),
            "checks": looked.get_check_constraints(name),
        }
        for name, table in reflected.tables.items()
    }


def test_a_ledger_of_version_2_comes_up_whole_on_either_database(ledger_at):
    with begun(ledger_at) as ledger:
        ledger.commit(0, visit(1))
        head, entries = ledger.head(), ledger.visits()
        with ledger._database.write() as connection:  # what versions 3 and 4 added was not there
            for table in ("replies", "attempts", "cosignatures", "heads", "log"):
                connection.execute(text(f"DROP TABLE {table}"))
            connection.execute(text("UPDATE fedrounds_ledger SET version = 2"))
        with pytest.raises(StateError, match="found version 2"):  # a runner of another release writes nothing
            ledger.commit(1, visit(2))
    with Ledger.open(ledger_at) as ledger:
        assert ledger.head().state.model_digest == head.state.model_digest
        assert (ledger.visits(), ledger.attempts(), ledger.replies()) == (entries, [], [])
        assert ledger.open_attempt(1, asked(2), 5000.0).number == 1
        assert ledger.commit(1, visit(2)) == 2


def test_opening_a_ledger_loads_neither_alembic_nor_the_driver_of_a_server(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys, fedrounds.ledger as f; f.Ledger.open(sys.argv[1]).close(); "
        "print(sorted({'alembic', 'psycopg2', 'fedrounds.ledger.postgres'} & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "l.db")], capture_output=True, text=True, check=True
    )
    assert said.stdout == "[]\n"
