"""A hospital's ledger of privacy: each guarantee of `site/budget.py`, a process that dies at any point, and a simulated year."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest

from fedrounds.core.errors import StateError
from fedrounds.core.privacy.accounting import Budget, Event, epsilon, multiplier
from fedrounds.site.budget import Budgets

STUDY = Budget(1.0, 1e-5)
ROUND = (Event(20.0, 1.0, 1),)


@pytest.fixture
def budgets(tmp_path):
    opened = Budgets(tmp_path / "budget.db")
    yield opened
    opened.close()


def reserve(budgets, question="q", events=ROUND, study="s", limit=STUDY, site=None, dataset="north"):
    return budgets.reserve(dataset, study, 1, question, events, limit, site)


def test_what_is_reserved_counts_whether_or_not_a_reply_came_of_it(budgets):
    assert reserve(budgets) == 1
    assert budgets.spent("north") == {"s": [Event(20.0)]}
    budgets.spend(1, b"reply")
    assert budgets.spent("north") == {"s": [Event(20.0)]}, "spending counts nothing twice"


@pytest.mark.parametrize("moment", ["reserved", "worked", "spent"])
def test_a_process_that_dies_has_spent(tmp_path, moment):
    file = tmp_path / "budget.db"
    program = f"""
import os, sys
from pathlib import Path
from fedrounds.core.privacy.accounting import Budget, Event
from fedrounds.site.budget import Budgets
budgets = Budgets(Path(sys.argv[1]))
number = budgets.reserve("north", "s", 1, "q", [Event(20.0)], Budget(1.0, 1e-5))
if "{moment}" == "spent":
    budgets.spend(number, b"reply")
os.kill(os.getpid(), 9)
"""
    ended = subprocess.run([sys.executable, "-c", program, str(file)], timeout=60, check=False)
    assert ended.returncode == -9
    budgets = Budgets(file)
    assert budgets.spent("north") == {"s": [Event(20.0)]}
    assert budgets.reply("q") == (b"reply" if moment == "spent" else None)
    assert budgets.broken() == 0
    budgets.close()


def test_only_a_refusal_gives_a_reservation_back_and_only_once(budgets):
    number = reserve(budgets)
    budgets.void(number)
    assert budgets.spent("north") == {}
    with pytest.raises(StateError):
        budgets.spend(number, b"late")
    with pytest.raises(StateError, match="expected reservation 7"):
        budgets.spend(7, b"of nothing")


def test_a_question_that_was_answered_has_the_same_bytes(budgets):
    budgets.spend(reserve(budgets, "one"), b"bytes")
    assert budgets.reply("one") == b"bytes"
    assert budgets.reply("another") is None


def test_what_would_exceed_the_budget_is_refused_with_the_numbers_and_nothing_is_written(budgets):
    granted = 0
    while isinstance(said := reserve(budgets, f"q{granted}"), int):
        granted += 1
    assert epsilon([Event(20.0, 1.0, granted)], 1e-5) <= 1.0 < epsilon([Event(20.0, 1.0, granted + 1)], 1e-5)
    assert said == (
        "its privacy budget would be exceeded: the study may spend ε = 1 (δ = 1e-05) on its rows,"
        f" ε = {epsilon([Event(20.0, 1.0, granted)], 1e-5):.4g} is spent,"
        f" and this would make it {epsilon([Event(20.0, 1.0, granted + 1)], 1e-5):.4g}"
    )
    assert budgets.spent("north") == {"s": [Event(20.0)] * granted}


def test_a_sites_own_budget_is_over_all_studies_and_another_dataset_has_its_own(budgets):
    own = Budget(0.6, 1e-5)
    assert reserve(budgets, "a", study="one", site=own) == 1
    while isinstance(said := reserve(budgets, "b", study="two", site=own), int):
        pass
    assert said.startswith("its privacy budget would be exceeded: the site may spend ε = 0.6")
    assert isinstance(reserve(budgets, "c", study="three", site=own), str)
    assert isinstance(reserve(budgets, "c", study="three", site=own, dataset="south"), int)


def test_a_line_is_never_changed_or_removed(budgets):
    reserve(budgets)
    other = sqlite3.connect(budgets.file)
    for statement in ("UPDATE lines SET events = '[]'", "DELETE FROM lines"):
        with pytest.raises(sqlite3.IntegrityError, match="a line is never"):
            other.execute(statement)
    other.close()


@pytest.mark.parametrize(
    "change", ["UPDATE lines SET events = '[]' WHERE number = 2", "DELETE FROM lines WHERE number = 2"]
)
def test_a_line_that_somebody_changed_or_left_out_all_the_same_is_found(budgets, change):
    for question in "abc":
        reserve(budgets, question)
    assert budgets.broken() == 0
    other = sqlite3.connect(budgets.file)
    other.executescript(f"DROP TRIGGER never_changed; DROP TRIGGER never_removed; {change};")
    other.close()
    assert budgets.broken() == 2


def test_a_file_that_is_none_is_one_clear_line(tmp_path):
    (tmp_path / "budget.db").write_bytes(b"no database, but long enough to look like one" * 100)
    with pytest.raises(StateError, match="expected a privacy budget that can be read"):
        Budgets(tmp_path / "budget.db")


def test_a_year_of_weekly_rounds_costs_what_was_forecast_and_the_53rd_is_refused(budgets):
    year = Budget(8.0, 1e-4)
    z = multiplier(year, 0.25, 52 * 5)
    week = [Event(z, 0.25, 5)]
    for number in range(52):
        budgets.spend(reserve(budgets, f"week {number}", week, limit=year), b"update")
    spent = budgets.spent("north")["s"]
    assert epsilon(spent, year.delta) == pytest.approx(epsilon([Event(z, 0.25, 52 * 5)], year.delta), rel=1e-9)
    assert 7.99 < epsilon(spent, year.delta) <= 8.0
    assert "would be exceeded" in reserve(budgets, "week 53", week, limit=year)
    assert budgets.spent("north")["s"] == spent
