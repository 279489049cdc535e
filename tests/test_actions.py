"""What a failure does: a site counts for less, sits out, stops the run or is only named; and rows that are few are set aside."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from fedrounds import sources
from fedrounds.core.errors import DataContractError, GateHalt
from fedrounds.core.messages import Reply
from fedrounds.core.operations import Gate, Operations
from fedrounds.core.plan import build
from fedrounds.core.round import Asking, Closed, close_exchange, open_round
from fedrounds.core.study import Study
from fedrounds.core.table import Table
from fedrounds.ledger import Ledger
from fedrounds.reports.summary import gate_of, gate_words
from fedrounds.tasks import folder as folders
from fedrounds.tasks import gate
from fedrounds.tasks.run import opened
from fedrounds.tasks.verdict import CONTRACT, Verdict, broken, line, to_json
from fedrounds.tasks.ward import Ward

BETWEEN, IN_SET = "expect_column_values_to_be_between", "expect_column_values_to_be_in_set"
AGE = {"type": BETWEEN, "kwargs": {"column": "age", "min_value": 18, "max_value": 110}}
CANARY, TEXT = "987654.321", "Zaphod-4711"


@pytest.fixture
def study(new_study):
    """What `fedrounds init` makes, read."""
    return folders.read(new_study)


def ruled(study, *expectations, **rules):
    """The study with a suite of its own and other rules for its gate."""
    operations = study.operations.model_copy(update={"gate": Gate(suite="mine", **rules)})
    suite = folders.Suite("mine", {"name": "mine", "expectations": list(expectations)}, json.dumps(expectations))
    return replace(study, operations=operations, suite=suite)


def spoilt(study, cells: dict[str, dict[int, str]], site: str = "north") -> Table:
    """The site's table with other cells: column -> row -> text."""
    columns = dict(sources.load(study.sites[site].source, study.data, site).columns)
    for name, changes in cells.items():
        columns[name] = columns[name].copy()
        for row, text in changes.items():
            columns[name][row] = text
    return Table(columns)


def written(study, cells: dict[str, dict[int, str]], site: str = "north") -> None:
    """The same, into the site's file."""
    table = spoilt(study, cells, site)
    rows = zip(*(column.tolist() for column in table.columns.values()), strict=True)
    text = "".join(",".join(row) + "\n" for row in [tuple(table.columns), *rows])
    (study.data / "data" / f"{site}.csv").write_text(text)


# --- λ ----------------------------------------------------------------------------------------------------------------


def one_round(weights, factors: dict[str, float] | None) -> Closed:
    """East with weight 1 moves by 10, west with weight 3 by 20, from a model at 0."""
    plan = build(
        Study.model_validate(
            {
                "name": "two",
                "weights": weights,
                "target": {"kind": "regression", "column": "y"},
                "features": [{"type": "number", "name": "x"}],
                "model": {"kind": "linear"},
                "algorithm": "fedavg",
            }
        )
    )
    state = plan.start(plan.no_statistics())
    asking = open_round(state, plan, "train", ["west", "east"], 2, factors)
    about = (asking.request.study, 1, 0, "train", asking.request.base)
    shapes = plan.algorithms["train"].shapes(0)

    def reply(site: str, rows: int, by: float) -> Reply:
        sums = {name: np.zeros(shape) for name, shape in shapes.items()}
        return Reply(*about, site, "", {**sums, "delta": np.full(2, by), "train": np.array([rows, 1.0])})

    closed = close_exchange(asking, plan, [reply("east", 1, 10.0), reply("west", 3, 20.0)])
    assert isinstance(closed, Closed)
    return closed


@pytest.mark.parametrize("weights", ["patients", {"east": 1, "west": 3}])
def test_a_down_weighted_site_counts_for_its_factor(weights):
    whole, half = one_round(weights, None), one_round(weights, {"west": 0.5})
    assert whole.state.theta.tolist() == [17.5, 17.5]  # (1·10 + 3·20) / 4
    assert half.state.theta.tolist() == [16.0, 16.0]  # (1·10 + 1.5·20) / 2.5
    assert {site: share for site, (_, _, share) in half.training.items()} == {"east": 1.0, "west": 1.5}


def test_without_factors_the_bits_are_the_same():
    plain, none = one_round("patients", None), one_round("patients", {})
    assert plain.state.theta.tobytes() == none.state.theta.tobytes()
    assert plain.state.model_digest == none.state.model_digest


# --- severity and action ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("severity", "own", "rules", "action", "passed"),
    [
        ("critical", None, {}, "exclude", False),
        ("critical", None, {"policy": "halt"}, "halt", False),
        ("critical", None, {"policy": "down-weight"}, "down-weight", False),
        ("critical", None, {"policy": "warn"}, "warn", False),
        ("critical", "down-weight", {"policy": "halt"}, "down-weight", False),
        ("warning", None, {}, "warn", True),
        ("warning", None, {"warning": "down-weight"}, "down-weight", False),
        ("info", None, {"warning": "halt"}, "warn", True),
        ("info", "exclude", {}, "exclude", False),
    ],
)
def test_each_failure_does_what_its_severity_or_its_own_word_says(study, severity, own, rules, action, passed):
    meta = {"meta": {"action": own}} if own else {}
    verdict = gate.check(ruled(study, AGE | {"severity": severity} | meta, **rules), "north", old(study, 12))
    assert (verdict.action, verdict.passed, len(verdict.failures)) == (action, passed, 1)


def old(study, rows: int) -> Table:
    return spoilt(study, {"age": dict.fromkeys(range(rows), CANARY)})


def test_the_worst_of_the_failures_decides(study):
    mild = AGE | {"meta": {"action": "warn"}}
    both = ruled(study, mild, AGE | {"meta": {"action": "down-weight"}}, mild)
    assert gate.check(both, "north", old(study, 12)).action == "down-weight"


def test_an_action_that_is_none_is_refused_in_one_line(study):
    wrong = ruled(study, AGE | {"meta": {"action": "ignore"}})
    with pytest.raises(
        Exception, match=r"^suite 'mine', expectation 1 .*expected action to be warn, down-weight, exclude, halt"
    ):
        gate.check(wrong, "north")


def test_operations_say_what_a_gate_may_do():
    with pytest.raises(ValueError, match="expected a rule like 'diastolic <= systolic'"):
        Operations.model_validate({"rounds": 1, "gate": {"rules": ["a and b"]}})
    with pytest.raises(ValueError, match="less than 1"):
        Operations.model_validate({"rounds": 1, "gate": {"down_weight": 1.0}})


# --- a run ------------------------------------------------------------------------------------------------------------


def carried(study, tmp_path):
    """A round of statistics and one of training, without Prefect; gives the open run to look at."""
    place = folders.state_of(study.path, study.study.name, tmp_path / "state")
    folders.prepare(place, fresh=False)
    return opened(study, place)


def admitted(run) -> None:
    for ward in run.wards.values():
        ward.load(strict=False)
        if run.remembered(ward) is None:
            table = sources.load(ward.site.source, ward.data, ward.name)
            judged = gate.judge(run.folder, ward.name, table, problem=ward.problem)
            answer = {"verdict": to_json(judged.verdict), "aside": judged.aside, "day": judged.day}
            run.judge(ward, answer | {"fingerprint": table.fingerprint()})
        if ward.fingerprint:
            run.memory.set_aside(ward)
    run.admit({name: run.remembered(ward) for name, ward in run.wards.items()})


def visited(run, ask: str) -> None:
    asking = run.open(ask)
    while isinstance(asking, Asking):
        requests = asking.requests
        asking = run.aggregate(asking, [run.wards[site].answer(requests[site]) for site in asking.sites])


def test_a_down_weighted_site_trains_for_less_and_the_record_says_so(study, tmp_path):
    written(study, {"age": dict.fromkeys(range(12), CANARY)})
    half = ruled(study, AGE, policy="down-weight", down_weight=0.25)
    with carried(half, tmp_path) as run:
        admitted(run)
        visited(run, "statistics")
        for ward in run.wards.values():
            ward.preprocess(run.state.statistics)
        visited(run, "train")
        record = run.ledger.progress().record
    training = {site: record["sites"][site]["training"] for site in record["sites"]}
    ratio = {site: about["weight"] / about["patients"] for site, about in training.items()}
    assert ratio == {"north": 0.25, "east": 1.0, "south": 1.0, "west": 1.0}
    assert record["gate"]["north"] == {"passed": False, "action": "down-weight", "quarantined": 0, "factor": 0.25}
    assert record["gate"]["east"] == {"passed": True, "action": "pass", "quarantined": 0, "factor": 1.0}
    assert gate_words(record) == {"north": "down-weighted"}
    assert gate_of(record, "north") == f"down-weighted: λ times 0.25, failed 1 of 1 check — {BETWEEN} · age: 12 of 300"


def test_one_halt_among_many_ends_the_run_on_record(study, tmp_path):
    written(study, {"age": dict.fromkeys(range(12), CANARY)})
    with carried(ruled(study, AGE, policy="halt"), tmp_path) as run:
        with pytest.raises(GateHalt, match=r"policy halt\), found 'north': failed 1 of 1 check"):
            admitted(run)
        assert run.ledger.failures()[0].reason.startswith("expected every site to pass")


# --- the contract -----------------------------------------------------------------------------------------------------


def test_a_ward_holds_what_breaks_the_contract_where_it_need_not_be_raised(study):
    written(study, {"age": dict.fromkeys(range(12), "n/a")})
    ward = Ward(study.sites["north"], build(study.study), study.data)
    with pytest.raises(DataContractError, match="12 of 300 cells"):
        ward.load()
    assert (ward.load(strict=False), ward.cohort) == (0, None)
    assert "found 12 of 300 cells that are none" in ward.problem
    written(study, {"age": dict.fromkeys(range(12), "44")})
    assert (ward.load(strict=False), ward.problem) == (300, "")


def test_a_table_that_cannot_be_read_is_a_problem_without_its_path(study):
    (study.data / "data" / "north.csv").write_text("")
    ward = Ward(study.sites["north"], build(study.study), study.data)
    assert ward.load(strict=False) == 0
    assert ward.problem == (
        "expected a table at site 'north', found one that cannot be read: `fedrounds check` there says why"
    )


@pytest.mark.parametrize("policy", ["warn", "down-weight", "exclude"])
def test_a_site_whose_data_break_the_contract_sits_out_and_the_others_train(study, tmp_path, policy):
    written(study, {"age": {3: "n/a"}})
    with carried(ruled(study, AGE, policy=policy), tmp_path) as run:
        admitted(run)
        assert (run.excluded, run.factors) == (["north"], {})
        visited(run, "statistics")
        record = run.ledger.progress().record
    assert sorted(record["sites"]) == ["east", "south", "west"]
    assert CONTRACT in record["excluded"]["north"]
    assert "found fewer than 10 of 300 cells that are none" in record["excluded"]["north"]


def test_without_a_suite_the_contract_still_decides(study, tmp_path):
    written(study, {"age": {3: "n/a"}})
    alone = replace(study, suite=None)
    assert gate.check(alone, "north").failures[0].expectation == CONTRACT
    with carried(alone, tmp_path) as run:
        admitted(run)
        assert run.excluded == ["north"]


def test_a_missing_column_is_named_once_and_the_rest_is_still_judged(study):
    table = spoilt(study, {"sex": dict.fromkeys(range(12), "x")})
    gone = Table({name: column for name, column in table.columns.items() if name != "age"})
    levels = {"type": IN_SET, "kwargs": {"column": "sex", "value_set": ["f", "m"]}}
    exists = {"type": "expect_column_to_exist", "kwargs": {"column": "age"}}
    verdict = gate.check(ruled(study, exists, AGE, levels), "north", gone)
    assert [(f.expectation, f.column) for f in verdict.failures] == [
        ("expect_column_to_exist", "age"),
        (IN_SET, "sex"),
        (CONTRACT, None),
    ]
    assert verdict.note.startswith("1 not tried: age not there; expected column 'age'")
    named = gate.check(ruled(study, AGE, levels), "north", gone).failures
    assert [(f.expectation, f.column, f.rows) for f in named[:2]] == [
        (BETWEEN, "age", ""),
        (IN_SET, "sex", "12 of 300"),
    ]


# --- quarantine -------------------------------------------------------------------------------------------------------


def test_few_failing_rows_are_set_aside_and_the_site_passes(study):
    cells = {"age": dict.fromkeys(range(8), CANARY), "sex": dict.fromkeys(range(4, 12), "x")}
    levels = {"type": IN_SET, "kwargs": {"column": "sex", "value_set": ["f", "m"]}}
    few = ruled(study, AGE, levels, quarantine=0.04)
    judged = gate.judge(few, "north", spoilt(study, cells))
    assert judged.aside == tuple(range(12))  # 12 of 300 is 4%
    assert (judged.verdict.passed, judged.verdict.action, judged.verdict.quarantined) == (True, "pass", 12)
    assert line(judged.verdict) == (
        f"passed, with 12 rows set aside, though 2 of 2 checks did not hold — {BETWEEN} · age: fewer than 10 of 300"
        f" (set aside); {IN_SET} · sex: fewer than 10 of 300 (set aside)"
    )
    assert CANARY not in json.dumps(to_json(judged.verdict))
    assert "aside" not in to_json(judged.verdict)


def test_one_row_more_than_the_share_and_nothing_is_set_aside(study):
    judged = gate.judge(ruled(study, AGE, quarantine=0.04), "north", old(study, 13))
    assert (judged.aside, judged.verdict.passed, judged.verdict.action) == ((), False, "exclude")


def test_what_is_about_no_row_cannot_be_set_aside(study):
    count = {"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 1000}}
    judged = gate.judge(ruled(study, AGE, count, quarantine=0.5), "north", old(study, 12))
    assert (judged.aside, judged.verdict.action) == ((), "exclude")
    warned = gate.judge(ruled(study, AGE, count | {"severity": "warning"}, quarantine=0.5), "north", old(study, 12))
    assert (len(warned.aside), warned.verdict.action, warned.verdict.passed) == (12, "warn", True)


def test_rows_that_break_the_contract_may_be_set_aside_too(study):
    numbers = {"type": IN_SET, "kwargs": {"column": "age is a number", "value_set": [1]}}
    table = spoilt(study, {"age": {3: "n/a", 8: "old"}})
    judged = gate.judge(ruled(study, numbers, quarantine=0.04), "north", table)
    assert (judged.aside, judged.verdict.passed, judged.verdict.quarantined) == ((3, 8), True, None)


def test_rows_set_aside_neither_train_nor_judge_and_are_written_nowhere(study, tmp_path):
    clean_rows = {name: ward_cohort(study, name) for name in study.sites}
    written(study, {"age": {3: "n/a", 250: "-5"}})
    numbers = {"type": IN_SET, "kwargs": {"column": "age is a number", "value_set": [1]}}
    few = ruled(study, AGE, numbers, quarantine=0.04)
    with carried(few, tmp_path) as run:
        admitted(run)
        assert run.excluded == []
        assert run.wards["north"].cohort.patients == 298
        kept = np.delete(np.arange(300), [3, 250])
        assert np.array_equal(run.wards["north"].cohort.values, clean_rows["north"].values[kept], equal_nan=True)
        assert np.array_equal(run.wards["north"].cohort.valid, clean_rows["north"].valid[kept])
        visited(run, "statistics")
        record = run.ledger.progress().record
        verdict = run.ledger.verdicts()["north"].verdict
    assert record["gate"]["north"] == {"passed": True, "action": "pass", "quarantined": None, "factor": 1.0}
    assert gate_words(record) == {"north": "quarantined"}
    memory = json.loads((tmp_path / "state" / "toy" / "sites.json").read_text())
    assert memory["north"]["aside"] == [3, 250]
    assert "250" not in json.dumps(verdict) + json.dumps(record["gate"]) + json.dumps(record["warned"])
    with carried(few, tmp_path) as again:  # the next run brings back verdict and rows from the site's memory
        ward = again.wards["north"]
        ward.load(strict=False)
        assert again.remembered(ward).quarantined is None
        again.memory.set_aside(ward)
        assert (ward.cohort.patients, ward.problem) == (298, "")


def ward_cohort(study, name: str):
    ward = Ward(study.sites[name], build(study.study), study.data)
    ward.load()
    return ward.cohort


def test_other_rules_or_another_day_ask_the_gate_again(study, tmp_path):
    fresh = {"type": "expect_column_min_to_be_between", "kwargs": {"column": "days since age", "max_value": 9}}
    fresh |= {"severity": "warning"}
    with carried(ruled(study, AGE), tmp_path) as run:
        admitted(run)
    with carried(ruled(study, AGE, quarantine=0.1), tmp_path) as run:
        run.wards["north"].load()
        assert run.remembered(run.wards["north"]) is None
    with carried(ruled(study, AGE, fresh), tmp_path) as run:
        admitted(run)
        assert run.remembered(run.wards["north"]) is not None
        memory = tmp_path / "state" / "toy" / "sites.json"
        day = json.loads(memory.read_text())["north"]["day"]
        memory.write_text(memory.read_text().replace(day, "1999-12-31"))
    with carried(ruled(study, AGE, fresh), tmp_path) as run:
        run.wards["north"].load()
        assert run.remembered(run.wards["north"]) is None


def test_a_broken_contract_is_said_without_small_counts():
    verdict = broken(
        "north", "expected ids at site 'north', found all 7 rows missing; found 3 of 12, found 12 of 300", "halt"
    )
    assert verdict == Verdict(
        "north",
        False,
        1,
        verdict.failures,
        "expected ids at site 'north', found all fewer than 10 rows missing; found fewer than 10 of 12, found 12 of 300",
        "halt",
    )
    assert os.linesep not in line(verdict)


# --- as a worker runs it ----------------------------------------------------------------------------------------------

WORKER = """
import asyncio, sys
from pathlib import Path
from fedrounds.cli.run import surroundings
from fedrounds.tasks.forked import alone
from fedrounds.tasks.prefect_server import PrefectServer, settings
home = Path(sys.argv[2])
server = PrefectServer(home / "prefect", home / "log", templates=Path(sys.argv[3]), begin=False)
server.begin(fork=alone())
try:
    with surroundings(settings(home / "prefect", server.api_url)):
        server.wait()
        from fedrounds.flows.study import study
        asyncio.run(study(sys.argv[1]))
finally:
    server.stop()
"""


def test_a_worker_goes_on_without_the_site_that_breaks_the_contract_and_without_a_few_bad_rows(
    new_study, tmp_path, templates, warm, python
):
    """North has lost a column; in east two cells of a number's column hold text, and the study may set as many rows aside."""
    warm(new_study / "mlruns")
    study = folders.read(new_study)
    north = new_study / "data" / "north.csv"
    written(study, {"age": {3: "n/a", 8: TEXT}}, "east")
    north.write_text(north.read_text().replace("age", "years_old", 1))
    suite = new_study / "expectations" / "readmission.json"
    document = json.loads(suite.read_text())
    numbers = {"type": IN_SET, "kwargs": {"column": "age is a number", "value_set": [1]}}
    suite.write_text(json.dumps(document | {"expectations": [*document["expectations"], numbers]}))
    operations = new_study / "operations.toml"
    operations.write_text(operations.read_text().replace("[promotion]", "quarantine = 0.01\n\n[promotion]"))
    (tmp_path / "worker").mkdir()
    done = python(WORKER, new_study, tmp_path / "worker", templates)
    assert done.returncode == 0, done.stderr[-3000:]
    with Ledger.open(new_study / "mlruns" / "toy" / "ledger.db") as ledger:
        record = ledger.progress().record
    assert sorted(record["sites"]) == ["east", "south", "west"]
    assert record["gate"]["east"] == {"passed": True, "action": "pass", "quarantined": None, "factor": 1.0}
    assert record["gate"]["north"] == {"passed": False, "action": "exclude", "quarantined": 0, "factor": 1.0}
    assert "expected column 'age' at site 'north'" in record["excluded"]["north"]
    assert TEXT not in json.dumps(record) + done.stdout + done.stderr
    east_file = json.loads((new_study / "mlruns" / "toy" / "sites.json").read_text())["east"]
    assert east_file["aside"] == [3, 8]
