"""The ledger: whole visits or none, committed once, one runner at a time, whoever is killed whenever."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import psycopg2
import pytest
import warmed
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import StatementError
from sqlalchemy.schema import CreateTable

from fedrounds.core.errors import StateError
from fedrounds.core.operations import Operations
from fedrounds.core.state import Champion, RunState, dump
from fedrounds.core.study import Study
from fedrounds.ledger import Decision, Ledger, Verdict, Visit, lease, schema, sqlite
from fedrounds.ledger.database import put

STUDY = Study.model_validate(
    {
        "name": "toy",
        "target": {"kind": "binary", "column": "y", "positive_above": 0},
        "features": [{"type": "number", "name": "age"}],
        "model": {"kind": "logistic"},
        "algorithm": "fedavg",
    }
)
OPERATIONS = Operations(rounds=3)


def at(number, size=3):
    """The state after a round; its values say which."""
    return RunState(STUDY.digest, number, 0, np.full(size, number / 3), {}, {})


def visit(number, ask="train", **more):
    base, state = at(number - 1).model_digest, at(number)
    return Visit(number, ask, base, state, {"loss": 1 / number}, "suite", 1, 100.0, **more)


names = itertools.count(1)


@pytest.fixture
def path(ledger_at):
    """Where a ledger will be, in a file and on a server."""
    return ledger_at


@pytest.fixture
def file(tmp_path):
    """For what only a file can go through."""
    return tmp_path / "state" / "ledger.db"


def another(path):
    """A place for a second ledger beside the first."""
    if isinstance(path, Path):
        return path.with_name("second.db")
    return f"{path.partition('&study=')[0]}&study=test-{next(names)}"


@pytest.fixture
def ledger(path):
    with Ledger.open(path) as ledger:
        ledger.begin(STUDY)
        ledger.note_operations(OPERATIONS, 1)
        yield ledger


def sql(path, statement, *values):
    """Do to the database what no method of a ledger does."""
    if isinstance(path, Path):
        with closing(sqlite3.connect(path)) as connection, connection:
            return connection.execute(statement, values).fetchall()
    address, _, study = path.partition("&study=")
    with closing(psycopg2.connect(address, options=f'-c search_path="fedrounds_{study}"')) as connection, connection:
        cursor = connection.cursor()
        cursor.execute(statement.replace("?", "%s"), values)
        return cursor.fetchall() if cursor.description else []


def script(body, *arguments):
    """Start a process that opens the ledger `sys.argv[1]` and runs `body`."""
    imports = "import os, sys, time\nimport test_ledger as t\nledger = t.Ledger.open(sys.argv[1])\n"
    return subprocess.Popen(
        [sys.executable, "-c", imports + body, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )


def refusal(action, *arguments):
    """The one line that an action is refused with."""
    with pytest.raises(StateError) as caught:
        action(*arguments)
    line = str(caught.value)
    assert "expected" in line
    assert "found" in line
    assert "\n" not in line
    return line


# --- what goes in comes out -------------------------------------------------------------------------------------------


def test_a_visit_comes_back_as_it_was_committed(path, ledger):
    state = replace(at(1), memory={"m": np.array([0.1])}, champion=Champion(0, np.zeros(3)))
    committed = Visit(
        1,
        "train",
        "base",
        state,
        {"loss": 0.1 + 0.2, "site": {"north": [1, None, True]}},
        "suite",
        1,
        99.5,
        {"north": Verdict(True, {"columns": 3}), "south": Verdict(False, {"columns": 2})},
        [Decision(0, True, "the first", "abc")],
    )
    assert ledger.head() is None
    assert ledger.progress() is None
    before = time.time()
    assert ledger.commit(0, committed) == 1
    with Ledger.open(path) as other:
        head, entry = other.head(), other.progress()
        assert head.visit == 1
        assert dump(head.state) == dump(state) == dump(other.state(1))
        assert (entry.visit, entry.round, entry.ask, entry.base, entry.started) == (1, 1, "train", "base", 99.5)
        assert entry.model == state.model_digest
        assert entry.record == committed.record
        assert before <= entry.committed <= time.time()
        assert other.verdicts() == {
            "north": Verdict(True, {"columns": 3}, 1),
            "south": Verdict(False, {"columns": 2}, 1),
        }
        assert other.promotions() == [Decision(0, True, "the first", "abc", 1)]
        assert other.visits() == [entry]


def test_visits_come_in_order_and_in_parts(ledger):
    for number in range(5):
        ledger.commit(number, visit(number + 1))
    assert [entry.visit for entry in ledger.visits(after=1, limit=3)] == [2, 3, 4]
    assert [ledger.state(number).round for number in (1, 5)] == [1, 5]
    assert "visit 6" in refusal(ledger.state, 6)


def test_a_round_may_be_scored_more_than_once(ledger):
    for after, (number, ask) in enumerate([(1, "train"), (1, "score"), (1, "score"), (2, "train")]):
        ledger.commit(after, visit(number, ask))
    assert [(entry.round, entry.ask) for entry in ledger.visits()][1:3] == [(1, "score"), (1, "score")]
    assert ledger.head().state.round == 2


def test_the_protocol_comes_back_as_it_was_begun(path):
    with Ledger.open(path) as fresh:
        with pytest.raises(StateError, match="found none yet"):
            fresh.study()
        fresh.begin(STUDY)
        assert fresh.study() == STUDY


def test_the_lineage_is_made_once(path, ledger):
    with Ledger.open(path) as other:
        assert other.begin(STUDY) == ledger.begin(STUDY) == ledger.lineage()
    assert (ledger.lineage().name, len(ledger.lineage().lineage)) == ("toy", 32)
    with Ledger.open(another(path)) as second:
        assert second.lineage() is None
        assert second.begin(STUDY).lineage != ledger.lineage().lineage


def test_another_protocol_is_refused(ledger):
    changed = STUDY.model_copy(update={"seed": 1})
    line = refusal(ledger.begin, changed)
    assert STUDY.digest[:12] in line
    assert changed.digest[:12] in line
    assert "--fresh" in line
    line = refusal(ledger.commit, 0, replace(visit(1), state=replace(at(1), study=changed.digest)))
    assert changed.digest[:12] in line
    assert ledger.head() is None


def test_operations_get_a_version_when_they_differ_from_the_last(path, ledger):
    more = Operations(rounds=9)
    assert [ledger.note_operations(it, 4) for it in (OPERATIONS, more, more, OPERATIONS)] == [1, 2, 2, 3]
    assert sql(path, "SELECT version, from_round FROM operations") == [(1, 1), (2, 4), (3, 4)]


def test_a_site_keeps_its_verdict_until_it_gets_another(ledger):
    passed, failed = Verdict(True, {}), Verdict(False, {"column": "age"})
    ledger.commit(0, visit(1, verdicts={"south": passed, "north": passed}))
    ledger.commit(1, visit(2))
    ledger.commit(2, visit(3, verdicts={"north": failed}))
    assert ledger.verdicts() == {"north": replace(failed, since=3), "south": replace(passed, since=1)}
    assert list(ledger.verdicts(2)) == ["north", "south"]
    assert ledger.verdicts(2)["north"].passed


def test_a_failed_try_changes_nothing_but_its_record(ledger):
    ledger.commit(0, visit(1))
    before = ledger.progress()
    ledger.fail(2, "quorum", 7.0)
    ledger.fail(2, "halt", 8.0, "score")
    assert ledger.progress() == before
    ledger.commit(1, visit(2))
    ledger.fail(3, "quorum", 9.0)
    assert [(it.visit, it.attempt, it.round, it.ask, it.reason, it.started) for it in ledger.failures()] == [
        (2, 1, 2, "train", "quorum", 7.0),
        (2, 2, 2, "score", "halt", 8.0),
        (3, 1, 3, "train", "quorum", 9.0),
    ]


def test_the_projector_sees_what_it_has_not_marked(ledger):
    for number in range(3):
        ledger.commit(number, visit(number + 1))
    ledger.mark_projected(2)
    ledger.mark_projected(2)
    assert ledger.unprojected() == [1, 3]


def test_a_write_that_a_signal_has_cut_short_is_not_there_and_keeps_nobody_waiting(ledger):
    """As `with` leaves one whose end is interrupted before its first line: begun, and held by the exception's traceback."""
    ledger.note("before", 1)
    cut_short = ledger._database.write()
    put(cut_short.__enter__(), schema.notes, {"key": "cut"}, {"value": 2})
    ledger.note("after", 3)
    assert [ledger.noted(key) for key in ("before", "cut", "after")] == [1, None, 3]
    del cut_short  # it ends now
    ledger.note("later", 4)
    assert [ledger.noted(key) for key in ("before", "cut", "after", "later")] == [1, None, 3, 4]


def test_a_note_is_written_over(ledger):
    assert ledger.noted("baselines") is None
    ledger.note("baselines", {"pooled": 0.5})
    ledger.note("baselines", {"pooled": 0.8})
    assert ledger.noted("baselines") == {"pooled": 0.8}


# --- whole or not at all ----------------------------------------------------------------------------------------------


def test_the_second_committer_is_refused(path, ledger):
    with Ledger.open(path) as other:
        ledger.commit(0, visit(1))
        line = refusal(other.commit, 0, visit(1, verdicts={"north": Verdict(True, {})}))
        assert "visit 0" in line
        assert "found visit 1" in line
        assert "another runner" in line
        assert "visit 5" in refusal(other.commit, 5, visit(1))
    assert [entry.visit for entry in ledger.visits()] == [1]
    assert ledger.verdicts() == {}


def test_of_threads_that_commit_the_same_visit_one_succeeds(ledger):
    outcomes = []

    def commit():
        try:
            outcomes.append(ledger.commit(0, visit(1)))
        except StateError:
            outcomes.append("refused")

    threads = [threading.Thread(target=commit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes, key=str) == [1] + ["refused"] * 7


@pytest.mark.parametrize(
    "broken",
    [
        visit(1, promotions=[Decision(0, True, "", "m"), Decision(0, True, "twice", "m")]),
        visit(1, verdicts={"north": Verdict(True, {"found": float("nan")})}),
        replace(visit(1), record={"loss": float("inf")}),
        replace(visit(1), operations_version=9),
    ],
)
def test_a_visit_that_cannot_be_written_leaves_nothing(ledger, broken):
    with pytest.raises(StatementError):
        ledger.commit(0, broken)
    assert (ledger.head(), ledger.verdicts(), ledger.promotions()) == (None, {}, [])
    assert ledger.commit(0, visit(1)) == 1


COMMIT_FOR_EVER = """
while True:
    head = ledger.head()
    number = head.visit + 1 if head else 1
    verdicts = {f"site-{i}": t.Verdict(True, {"n": number}) for i in range(20)}
    state = t.at(number, 20_000)
    print(ledger.commit(number - 1, t.replace(t.visit(number), state=state, verdicts=verdicts)), flush=True)
"""


def settled(ledger):
    """Its head, once a server has ended what one that was killed had asked of it."""
    before, head = None, ledger.head()
    while before is None or before.visit != head.visit:
        time.sleep(0.1)
        before, head = head, ledger.head()
    return head


def test_kill_9_at_any_instant_leaves_a_whole_ledger(path, ledger):
    instants = random.Random(5)
    for _ in range(5):
        runner = script(COMMIT_FOR_EVER, path)
        told = [runner.stdout.readline()]
        time.sleep(instants.uniform(0, 0.15))
        runner.kill()
        told += runner.communicate()[0].splitlines()
        last = int(told[-1])
        head, entries = settled(ledger), ledger.visits()
        assert head.visit in (last, last + 1)  # what it told us is there; one more may have closed before it could tell
        assert [entry.visit for entry in entries] == list(range(1, head.visit + 1))
        assert head.state.round == entries[-1].round == head.visit
        assert head.state.model_digest == entries[-1].model
        assert {it.verdict["n"] for it in ledger.verdicts().values()} == {head.visit}
        if isinstance(path, Path):
            assert sql(path, "PRAGMA integrity_check") == [("ok",)]
        assert sql(path, "SELECT count(*) FROM verdicts") == [(20 * head.visit,)]
    ledger.commit(head.visit, visit(head.visit + 1))


def test_a_projector_reads_and_marks_while_the_runner_commits(path, ledger):
    projector = script(
        """
print("ready", flush=True)
seen = []
while len(seen) < 60:
    for number in ledger.unprojected():
        assert ledger.state(number).round == ledger.visits(number - 1, 1)[0].round == number
        ledger.mark_projected(number)
        seen.append(number)
print(*seen)
""",
        path,
    )
    assert projector.stdout.readline() == "ready\n"
    for number in range(60):
        ledger.commit(number, visit(number + 1))
    assert projector.communicate(timeout=30)[0].split() == [str(number) for number in range(1, 61)]
    assert ledger.unprojected() == []


def test_processes_may_open_a_new_ledger_at_once(path):
    openers = [script("print(ledger.begin(t.STUDY).lineage)", path) for _ in range(3)]
    assert len({opener.communicate()[0] for opener in openers}) == 1
    if isinstance(path, Path):
        assert sql(path, "PRAGMA journal_mode") == [("wal",)]


def test_a_new_file_that_others_hold_is_waited_for(file, monkeypatch):
    file.parent.mkdir()
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(sqlite, "BUSY_S", 0.1)
        assert "locked" in refusal(Ledger.open, file)
        monkeypatch.setattr(sqlite, "BUSY_S", 10)
        release = threading.Timer(0.3, other.execute, ["ROLLBACK"])
        release.start()
        Ledger.open(file).close()
        release.join()
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN IMMEDIATE")  # stops the change to a write-ahead log, which SQLite does not wait for
        monkeypatch.setattr(sqlite, "BUSY_S", 0.1)
        assert "locked" in refusal(Ledger.open, file)


# --- one runner at a time ---------------------------------------------------------------------------------------------


def test_a_living_runner_keeps_the_study_and_a_killed_one_does_not(path, ledger):
    with warmed.true_programs():  # a child of this test
        runner = script("ledger.acquire(); print('held', flush=True); time.sleep(60)", path)
    try:
        assert runner.stdout.readline() == "held\n"
        assert f"pid {runner.pid} " in refusal(ledger.acquire)
        ledger.release()  # not ours
        assert f"pid {runner.pid} " in refusal(ledger.acquire)
        os.kill(runner.pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while lease.born(runner.pid):
            assert time.monotonic() < deadline
        ledger.acquire()  # its parent, this test, has not waited for it yet: a zombie is dead
    finally:
        runner.kill()
        runner.communicate()
    with Ledger.open(path) as other:
        assert f"pid {os.getpid()} " in refusal(other.acquire)
        ledger.acquire()
        ledger.release()
        other.acquire()


def test_a_recycled_pid_is_another_process(path, ledger):
    ledger.acquire()
    sql(path, "UPDATE lease SET born = 'long ago'")
    with Ledger.open(path) as other:
        other.acquire()


def test_a_runner_on_another_host_is_believed_until_its_lease_ends(path, ledger):
    ledger.acquire()
    sql(path, "UPDATE lease SET host = 'elsewhere'")
    with Ledger.open(path) as other:
        line = refusal(other.acquire)
        assert "on elsewhere" in line
        assert "its lease ends" in line
        sql(path, "UPDATE lease SET expires = ?", time.time() - 1)
        other.acquire()


def test_a_runner_that_lost_its_lease_commits_nothing(path, ledger):
    ledger.acquire()
    sql(path, "UPDATE lease SET host = 'elsewhere', expires = 0")
    with Ledger.open(path) as other:
        other.acquire()
        for action in (ledger.renew, lambda: ledger.commit(0, visit(1))):
            assert "another runner took it" in refusal(action)
        assert other.commit(0, visit(1)) == 1
    refusal(Ledger.open(path).renew)


def test_commit_and_renew_start_the_lease_afresh(path, ledger):
    ledger.acquire(50)
    for action in (ledger.renew, lambda: ledger.commit(0, visit(1))):
        sql(path, "UPDATE lease SET expires = 0")
        action()
        assert sql(path, "SELECT expires FROM lease")[0][0] == pytest.approx(time.time() + 50, abs=5)


def test_a_process_has_a_birth_and_its_absence_has_none(monkeypatch):
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        exists = Path.exists
        for proc in (True, False):  # without /proc, `ps` tells
            monkeypatch.setattr(Path, "exists", lambda self, proc=proc: proc and exists(self))
            assert lease.born(sleeper.pid)
            assert lease.born(sleeper.pid) == lease.born(sleeper.pid)
        sleeper.kill()
        os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet collected
        for proc in (True, False):
            monkeypatch.setattr(Path, "exists", lambda self, proc=proc: proc and exists(self))
            assert lease.born(sleeper.pid) == ""
    finally:
        sleeper.kill()
        sleeper.wait()
    assert lease.born(sleeper.pid) == ""
    monkeypatch.setattr(Path, "exists", lambda self: True)
    assert lease.born(sleeper.pid) == ""


# --- what is not a ledger ---------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / "file") in refusal(Ledger.open, tmp_path / "file" / "ledger.db")
    assert "/proc/fedrounds" in refusal(Ledger.open, Path("/proc/fedrounds/ledger.db"))
    assert "/proc/ledger.db" in refusal(Ledger.open, Path("/proc/ledger.db"))
    assert str(tmp_path) in refusal(Ledger.open, tmp_path)


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"not a database\n" * 500])
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "ledger.db"
    path.write_bytes(content)
    assert str(path) in refusal(Ledger.open, path)
    assert [it.name for it in tmp_path.iterdir()] == ["ledger.db"]
    assert path.read_bytes() == content


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "mlflow.db"
    sql(path, "CREATE TABLE runs (id TEXT)")
    before = path.read_bytes()
    assert "something else" in refusal(Ledger.open, path)
    assert [it.name for it in tmp_path.iterdir()] == ["mlflow.db"]
    assert path.read_bytes() == before


def test_a_ledger_of_a_newer_release_is_refused(path, ledger):
    sql(path, "UPDATE fedrounds_ledger SET version = 9")
    assert "found version 9" in refusal(Ledger.open, path)


def test_a_damaged_state_is_refused(path, ledger):
    ledger.commit(0, visit(1))
    good = bytes(sql(path, "SELECT state FROM visits")[0][0])
    sql(path, "UPDATE visits SET state = ?", good[:-1] + bytes([good[-1] ^ 1]))
    assert "damaged" in refusal(ledger.head)


def test_a_killed_creation_is_made_good(file):
    file.parent.mkdir()
    file.touch()
    Ledger.open(file).close()
    assert sql(file, "SELECT version FROM fedrounds_ledger") == [(schema.VERSION,)]


def test_every_table_has_a_form_in_postgresql():
    for table in schema.metadata.sorted_tables:
        assert f"CREATE TABLE {table.name}" in str(CreateTable(table).compile(dialect=postgresql.dialect()))
