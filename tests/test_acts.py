"""People's acts: in the ledger, on the command line, in MLflow; a ledger of the first release becomes one of the second."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from fedrounds.core.errors import StateError
from fedrounds.core.operations import Operations
from fedrounds.core.state import RunState
from fedrounds.core.study import Study
from fedrounds.ledger import Decision, Ledger, Visit, schema

STUDY = Study.model_validate(
    {
        "name": "toy",
        "target": {"kind": "binary", "column": "y", "positive_above": 0},
        "features": [{"type": "number", "name": "age"}],
        "model": {"kind": "logistic"},
        "algorithm": "fedavg",
    }
)
VERSION_1 = """
CREATE TABLE fedrounds_ledger (id INTEGER NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (id));
CREATE TABLE study (id INTEGER NOT NULL, name VARCHAR NOT NULL, digest VARCHAR NOT NULL, lineage VARCHAR NOT NULL, created DOUBLE NOT NULL,
    protocol JSON NOT NULL, PRIMARY KEY (id));
CREATE TABLE operations (version INTEGER NOT NULL, from_round INTEGER NOT NULL, operations JSON NOT NULL, PRIMARY KEY (version));
CREATE TABLE failures (visit INTEGER NOT NULL, attempt INTEGER NOT NULL, round INTEGER NOT NULL, ask VARCHAR NOT NULL, reason TEXT NOT NULL,
    started DOUBLE NOT NULL, failed DOUBLE NOT NULL, PRIMARY KEY (visit, attempt));
CREATE TABLE lease (id INTEGER NOT NULL, owner VARCHAR NOT NULL, pid INTEGER NOT NULL, host VARCHAR NOT NULL, born VARCHAR NOT NULL,
    taken DOUBLE NOT NULL, expires DOUBLE NOT NULL, PRIMARY KEY (id));
CREATE TABLE notes ("key" VARCHAR NOT NULL, value JSON NOT NULL, PRIMARY KEY ("key"));
CREATE TABLE visits (visit INTEGER NOT NULL, round INTEGER NOT NULL, ask VARCHAR NOT NULL, base VARCHAR NOT NULL, model VARCHAR NOT NULL,
    suite_hash VARCHAR NOT NULL, operations_version INTEGER NOT NULL, started DOUBLE NOT NULL, committed DOUBLE NOT NULL, record JSON NOT NULL,
    checksum VARCHAR NOT NULL, state BLOB NOT NULL, PRIMARY KEY (visit), FOREIGN KEY(operations_version) REFERENCES operations (version));
CREATE TABLE projected (visit INTEGER NOT NULL, at DOUBLE NOT NULL, PRIMARY KEY (visit), FOREIGN KEY(visit) REFERENCES visits (visit));
CREATE TABLE verdicts (visit INTEGER NOT NULL, site VARCHAR NOT NULL, passed BOOLEAN NOT NULL, verdict JSON NOT NULL, PRIMARY KEY (visit, site),
    FOREIGN KEY(visit) REFERENCES visits (visit));
CREATE TABLE promotions (visit INTEGER NOT NULL, round INTEGER NOT NULL, promoted BOOLEAN NOT NULL, reason TEXT NOT NULL, model VARCHAR NOT NULL,
    PRIMARY KEY (visit, round), FOREIGN KEY(visit) REFERENCES visits (visit));
INSERT INTO fedrounds_ledger VALUES (1, 1);
"""


def visit(number, *decisions):
    state = RunState(STUDY.digest, number, 0, np.full(3, number / 3), {}, {})
    base = replace(state, theta=np.full(3, (number - 1) / 3)).model_digest
    return Visit(number, "train", base, state, {"loss": 1.0}, "suite", 1, 100.0, promotions=decisions)


@pytest.fixture
def ledger(tmp_path):
    """Three rounds: the first was promoted, the second waits."""
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        filled(ledger)
        yield ledger


def filled(ledger):
    ledger.begin(STUDY)
    ledger.note_operations(Operations(rounds=3), 1)
    ledger.commit(0, visit(1))
    ledger.commit(1, visit(2, Decision(1, True, "first", "a")))
    ledger.commit(2, visit(3, Decision(2, False, "passed", "b", pending=True)))


# --- the ledger -------------------------------------------------------------------------------------------------------


def test_an_act_comes_back_as_it_was_recorded_and_moves_the_champion(tmp_path, ledger):
    assert (ledger.standing().champion, ledger.standing().challenger) == (1, 2)
    ledger.acquire()
    done = ledger.act("promote", 2, "seen by the board", "ada")
    back = ledger.act("rollback", 1, "complaints", "bob")
    ledger.release()
    assert (done.number, done.visit, done.act, done.round, done.model) == (1, 3, "promote", 2, "b")
    assert (back.number, back.visit, back.model, back.reason, back.by) == (2, 3, "a", "complaints", "bob")
    with Ledger.open(tmp_path / "ledger.db") as other:
        assert other.acts() == [done, back]
        assert (other.standing().champions, other.standing().challenger) == ((1,), None)


def test_an_act_needs_the_lease(ledger):
    with pytest.raises(StateError, match="expected this process to have the lease"):
        ledger.act("promote", 2, "", "ada")
    assert ledger.acts() == []


def test_a_round_that_was_not_trained_has_no_visit(ledger):
    assert [ledger.closed(round) for round in (1, 2, 3)] == [1, 2, 3]
    with pytest.raises(StateError, match=r"expected round 4 in the ledger .*, found none: see `fedrounds status`"):
        ledger.closed(4)


def version_1(path):
    """A ledger as the first release made it, with two rounds."""
    with Ledger.open(path.with_name("new.db")) as ledger:
        filled(ledger)
    with closing(sqlite3.connect(path)) as old, old:
        old.executescript(VERSION_1)
        old.execute("ATTACH ? AS new", (str(path.with_name("new.db")),))
        for table in ("study", "operations", "visits"):
            old.execute(f"INSERT INTO {table} SELECT * FROM new.{table}")
        old.execute("INSERT INTO promotions VALUES (2, 1, 1, 'first', 'a'), (3, 2, 0, 'kept', 'b')")


def tables(path):
    with closing(sqlite3.connect(path)) as connection:
        names = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        ]
        return {name: [row[1:4] for row in connection.execute(f"PRAGMA table_info({name})")] for name in names}


def test_a_ledger_of_version_1_is_brought_up_to_date_in_place_and_loses_nothing(tmp_path):
    path = tmp_path / "ledger.db"
    version_1(path)
    with Ledger.open(path) as ledger, Ledger.open(tmp_path / "new.db") as new:
        assert ledger.promotions() == [Decision(1, True, "first", "a", 2), Decision(2, False, "kept", "b", 3)]
        assert ledger.head().state.model_digest == new.head().state.model_digest
        assert ledger.visits() == new.visits()
        ledger.acquire()
        ledger.act("promote", 2, "better on reflection", "ada")
        ledger.commit(3, visit(4, Decision(3, False, "passed", "c", pending=True)))
        assert (ledger.standing().champion, ledger.standing().challenger) == (2, 3)
    assert tables(path) == tables(tmp_path / "new.db")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version FROM fedrounds_ledger").fetchall() == [(schema.VERSION,)]


def test_an_upgrade_that_is_cut_short_leaves_version_1_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "ledger.db"
    version_1(path)
    before = tables(path)

    def pulled(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(schema.acts, "create", pulled)
        with pytest.raises(KeyboardInterrupt):
            Ledger.open(path)
    assert tables(path) == before
    Ledger.open(path).close()
    assert tables(path) != before
