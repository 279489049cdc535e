"""`fedrounds plan` and `fedrounds site budget`: the forecast before, the ledger after, and the warnings between."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from fedrounds.cli.main import main
from fedrounds.core.operations import Operations, Schedule
from fedrounds.core.plan import build
from fedrounds.core.privacy import private
from fedrounds.core.privacy.accounting import epsilon
from fedrounds.core.privacy.forecast import forecast
from fedrounds.core.study import Study
from fedrounds.site.budget import Budgets
from fedrounds.tasks import privacy


def protocol(**changes):
    dp = {"unit": "patient", "epsilon": 3.0, "delta": 1e-3, "patients": 400, "rounds": 4} | changes
    age = {"type": "number", "name": "age", "range": [0, 100]}
    target = {"kind": "binary", "column": "ill", "positive": ["yes"], "negative": ["no"]}
    algorithm = {"preset": "fedavg", "local": {"rate": 0.5}}
    words = {"name": "private", "weights": "uniform", "features": [age], "target": target}
    return words | {"model": {"kind": "logistic"}, "algorithm": algorithm, "privacy": {"dp": dp}}


def plan_of(**changes):
    return build(Study.model_validate(protocol(**changes)))


def test_the_forecast_of_each_round_is_what_the_ledger_says_after_it(tmp_path):
    plan = plan_of()
    found, budgets = forecast(plan, 3, 4), Budgets(tmp_path / "budget.db")
    for number, asked in enumerate(["statistics", "train", "train", "train", "train"]):
        budgets.reserve(
            "north", "s", number, str(number), private.events(plan.study, asked), plan.study.privacy.dp.budget
        )
        assert epsilon(budgets.spent("north")["s"], 1e-3) == pytest.approx(found.epsilons[number], rel=1e-12)
    budgets.close()
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("changes", "rounds", "said"),
    [
        ({}, 9, "the budget is calibrated for 4 rounds: of 9, sites refuse those after round 4"),
        ({"epsilon": 0.05, "patients": 20}, 4, "the study cannot work"),
        ({"delta": 0.01}, 4, "δ = 0.01 is more than one patient in 400"),
        ({"epsilon": 20.0}, 4, "ε = 20 bounds next to nothing"),
        ({"statistics": 0.002}, 4, "raise privacy.dp.statistics"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_round(changes, rounds, said):
    assert any(said in text for text in forecast(plan_of(**changes), 3, rounds).warnings)


def test_without_differential_privacy_there_is_nothing_to_forecast():
    plain = {key: value for key, value in protocol().items() if key != "privacy"}
    assert forecast(build(Study.model_validate(plain)), 3, 4) is None


def test_a_weekly_schedule_makes_52_rounds_a_year():
    start = datetime(2026, 1, 1, tzinfo=UTC)
    weekly = Operations(rounds=1, schedule=Schedule(interval="7d"))
    assert privacy.in_a_year(weekly, start) == 52
    assert privacy.in_a_year(Operations(rounds=1, schedule=Schedule(cron="0 3 1 * *", rounds=2)), start) == 24
    assert privacy.in_a_year(Operations(rounds=1), start) == 0


def test_plan_and_budget_print_one_document_each(tmp_path, capsys):
    assert main(["init", str(tmp_path / "toy")]) == 0
    study = tmp_path / "toy" / "study.toml"
    text = (
        study.read_text().replace('weights = "patients"', 'weights = "uniform"').replace(", epochs = 2, batch = 32", "")
    )
    study.write_text(text + '\n[privacy]\ndp = { unit = "patient", epsilon = 8.0, patients = 200, rounds = 10 }\n')
    capsys.readouterr()
    operations = study.with_name("operations.toml")
    usual = operations.read_text()
    operations.write_text(usual.replace("margin = 0.05", "margin = 0.1"))
    assert main(["plan", str(study.parent), "--json"]) == 10
    assert "[promotion] compares exact scores" in json.loads(capsys.readouterr().out)["error"]["message"]
    operations.write_text(usual)
    assert main(["plan", str(study.parent), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["sites"], told["rounds"], len(told["privacy"]["epsilons"])) == (4, 10, 11)
    assert 7.99 < told["privacy"]["epsilons"][-1] <= 8.0
    assert main(["site", "budget", str(study.parent), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "delta": 1 / 2000,
        "limit": None,
        "spent": [],
        "first_broken_line": None,
    }
