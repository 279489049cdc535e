"""The gate: good data pass, bad data are named by expectation, column and count, and no value goes further than the hospital."""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrounds import sources
from fedrounds.cli.template_data import toy
from fedrounds.core.errors import DataContractError, StudyError
from fedrounds.core.preprocess import _numbers
from fedrounds.core.study import canonical
from fedrounds.core.table import Table
from fedrounds.tasks import folder as folders
from fedrounds.tasks import gate
from fedrounds.tasks.child import Child
from fedrounds.tasks.folder import Suite
from fedrounds.tasks.frame import frame, read_numbers
from fedrounds.tasks.verdict import CONTRACT, Failure, Verdict, counted, from_json, line, markdown, to_json

ROOT = Path(__file__).parent.parent
SHARED = ROOT / "../shared/data"
BETWEEN, IN_SET, NOT_NULL = (f"expect_column_values_to_{words}" for words in ("be_between", "be_in_set", "not_be_null"))
NUMBER, TEXT = "987654.321", "ZQXCANARY"


@pytest.fixture
def study(tmp_path):
    """What `fedrounds init` makes, read."""
    return folders.read(make(tmp_path / "readmission"))


def make(path: Path) -> Path:
    shutil.copytree(ROOT / "cli" / "template", path)
    (path / "data").mkdir()
    for site, text in toy(seed=1).items():
        (path / "data" / f"{site}.csv").write_text(text)
    return path


def spoilt(study, site: str, column: str, cell: str, rows: int) -> Table:
    """The site's table with that cell in the first rows of a column."""
    columns = dict(sources.load(study.sites[site].source, study.data, site).columns)
    columns[column] = columns[column].copy()
    columns[column][:rows] = cell
    return Table(columns)


def suite(*expectations) -> Suite:
    return Suite("mine", {"name": "mine", "expectations": list(expectations)}, "hash")


def everything_said(verdict: Verdict) -> str:
    return json.dumps(to_json(verdict)) + line(verdict) + markdown([verdict]) + repr(verdict)


# --- good data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [("diabetes", None), ("heart", "heart_disease_uci"), ("opt", "opt"), ("indo_rct", "indo_rct")],
)
def test_the_hospitals_of_every_study_pass_as_they_are(name, data):
    if data and not (SHARED / data).is_dir():
        pytest.skip(f"{SHARED / data} is not here: the product ships no patient file")
    study = folders.read(ROOT / "studies" / name, SHARED / data if data else None)
    verdicts = [gate.check(study, site) for site in study.sites]
    assert [line(verdict) for verdict in verdicts if verdict.failures] == []
    assert all(verdict.passed and verdict.checks >= 20 for verdict in verdicts)


def test_made_up_hospitals_pass(study):
    assert all(gate.check(study, site) == Verdict(site, True, 17) for site in study.sites)


def test_without_a_suite_the_contract_alone_is_checked(study):
    verdict = gate.check(replace(study, suite=None), "north")
    assert (verdict.passed, verdict.checks, verdict.note) == (True, 0, "no suite: the contract alone was checked")


def test_what_a_hospital_does_not_record_is_skipped_and_said(study):
    site = study.sites["north"].model_copy(update={"absent": ("creatinine",)})
    verdict = gate.check(replace(study, sites={"north": site}), "north")
    assert line(verdict) == "passed 15 checks (2 skipped: creatinine not recorded here)"


# --- bad data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "cell", "rows", "expected"),
    [
        ("age", NUMBER, 12, Failure(BETWEEN, "age", 300, 12)),
        ("age", NUMBER, 9, Failure(BETWEEN, "age", 300, None)),
        ("sex", TEXT, 25, Failure(IN_SET, "sex", 300, 25)),
        ("readmitted", "", 20, Failure(NOT_NULL, "readmitted", 300, 20)),
        ("creatinine", "NA", 150, Failure(NOT_NULL, "creatinine", 300, 0)),
        ("patient_id", TEXT, 11, Failure("expect_column_values_to_be_unique", "patient_id", 300, 11)),
    ],
)
def test_what_fails_is_named_by_expectation_column_and_counts(study, column, cell, rows, expected):
    verdict = gate.check(study, "north", spoilt(study, "north", column, cell, rows))
    failures = [failure for failure in verdict.failures if failure.severity == "critical"]
    if column == "creatinine":  # some were missing before
        assert failures[0].unexpected_count > rows
        failures[0] = replace(failures[0], unexpected_count=0)
    assert (verdict.passed, failures) == (False, [expected])
    assert from_json(json.loads(json.dumps(to_json(verdict)))) == verdict
    assert NUMBER not in everything_said(verdict)
    assert TEXT not in everything_said(verdict)


def test_a_broken_export_fails_by_its_number_of_rows(study):
    table = sources.load(study.sites["north"].source, study.data, "north").take(np.arange(12))
    verdict = gate.check(study, "north", table)
    assert line(verdict).startswith("failed 1 of 17 checks — expect_table_row_count_to_be_between")
    assert ":" not in line(verdict)


def test_a_warning_is_listed_and_fails_nothing(study):
    verdict = gate.check(study, "north", spoilt(study, "north", "age", "20", 290))
    assert verdict.passed
    assert line(verdict) == (
        "passed, though 1 of 17 checks gave a warning — expect_column_mean_to_be_between · age (warning)"
    )


def test_a_check_that_cannot_be_computed_has_failed_and_its_exception_stays(study):
    broken = suite({"type": BETWEEN, "kwargs": {"column": "smoker", "min_value": 0}})
    verdict = gate.check(replace(study, suite=broken), "north", spoilt(study, "north", "smoker", TEXT, 12))
    assert verdict.failures == (Failure(BETWEEN, "smoker", 300, None, per_row=False),)
    assert line(verdict) == f"failed 1 of 1 check — {BETWEEN} · smoker (1 could not be computed)"
    assert TEXT not in everything_said(verdict)


def test_results_keep_the_suites_order_and_one_table_does_not_colour_the_next(study):
    bad = spoilt(study, "north", "sex", TEXT, 20)
    columns = dict(bad.columns)
    columns["age"] = np.array([NUMBER] * bad.rows, object)
    verdict = gate.check(study, "north", Table(columns))
    named = [failure.column for failure in verdict.failures]
    assert named == ["age", "sex", "age"]
    assert gate.check(study, "north").passed


def test_levels_are_compared_in_the_dictionarys_writing(study):
    text = (study.path / "study.toml").read_text()
    (study.path / "study.toml").write_text(text.replace('"sex", categories = ["f", "m"]', '"sex", categories = [0, 1]'))
    coded = folders.read(study.path)
    columns = dict(sources.load(coded.sites["west"].source, coded.data, "west").columns)
    columns["sex"] = np.array([["0", "1.0"][row % 2] for row in range(120)], object)
    levels = suite({"type": IN_SET, "kwargs": {"column": "sex", "value_set": [0, 1]}})
    assert gate.check(replace(coded, suite=levels), "west", Table(columns)).passed


# --- nothing leaves ---------------------------------------------------------------------------------------------------


def test_no_planted_value_leaves_the_helper_or_stays_in_its_log(tmp_path):
    folder = make(tmp_path / "readmission")
    for site, column in (("north", 1), ("east", 5), ("south", 3), ("west", 7)):
        file = folder / "data" / f"{site}.csv"
        header, *rows = [row.split(",") for row in file.read_text().splitlines()]
        for row in rows[:30]:
            row[column] = NUMBER if site == "north" else TEXT
        file.write_text("\n".join(map(",".join, [header, *rows])))
    helper = Child("fedrounds.tasks.gate", tmp_path / "gate.log")
    north, east, south, west, nowhere = (
        helper.call({"folder": str(folder), "data": None, "site": site})
        for site in ("north", "east", "south", "west", "nowhere")
    )
    answers = [site.result(60) for site in (north, east, south, west)]
    said = [line(from_json(answer["verdict"])) for answer in answers]
    assert said[:2] == [
        f"failed 2 of 17 checks — {BETWEEN} · age: 30 of 300; expect_column_mean_to_be_between · age (warning)",
        f"failed 1 of 17 checks — {IN_SET} · smoker: 30 of 240",
    ]
    # A table that breaks the contract is judged all the same. This suite does not ask for numbers; the dictionary does.
    assert said[2].startswith(
        f"failed 2 of 18 checks — {NOT_NULL} · systolic_bp: 37 of 180; {CONTRACT} (expected numbers"
    )
    assert "'systolic_bp' (mmHg) at site 'south', found 30 of 180 cells that are none" in said[2]
    assert said[3].startswith(f"failed 2 of 18 checks — {IN_SET} · readmitted: 30 of 120; {CONTRACT} (expected target")
    assert [answer["rows"] for answer in answers] == [300, 240, 180, 120]
    assert len({answer["fingerprint"] for answer in answers}) == 4
    with pytest.raises(StudyError, match="found 'nowhere': it has east, north, south, west"):
        nowhere.result(60)
    helper.close()
    said = json.dumps(answers) + (tmp_path / "gate.log").read_text()
    said += "".join(everything_said(from_json(answer["verdict"])) for answer in answers)
    assert "Traceback" in said
    assert NUMBER.split(".")[0] not in said
    assert TEXT not in said


def test_a_helper_sees_that_the_folder_changed(study):
    request = {"folder": str(study.path), "data": None, "site": "north"}
    assert gate.handle(request)["verdict"]["checks"] == 17
    file = study.path / "expectations" / "readmission.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"expectations": document["expectations"][:3]}))
    assert gate.handle(request)["verdict"]["checks"] == 3


def test_the_gate_is_cheap_to_import():
    program = (
        "import sys, fedrounds.tasks.gate; print([m for m in ('great_expectations', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- made columns, and what is left out for speed ---------------------------------------------------------------------

CELLS = [
    "63",
    "63.0",
    "1e5",
    "-9",
    "-9.0",
    "+5",
    "",
    "?",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "1_0",
    "x",
    "0x1A",
    "1e999",
    "007",
    ".5",
]


@pytest.mark.parametrize("codes", [(), ("?",), (-9,), ("?", "NaN", -9)])
@pytest.mark.parametrize("cells", [CELLS, ["1", "2.5", "", "?", "-9"], ["1", "2"], ["", ""]], ids=len)
def test_the_frame_reads_numbers_as_the_contract_does(cells, codes):
    column = np.array(cells, object)
    value, known = read_numbers(column, codes)
    for row, cell in enumerate(cells):  # the contract judges a whole column: one cell at a time, and one that is right
        try:
            expected = _numbers(np.array([cell], object), {canonical(code) for code in codes} | {""}, "x", "", "s")[0]
        except DataContractError:
            assert (known[row], np.isnan(value[row])) == (False, True), cell
        else:
            assert known[row], cell
            assert value[row] == expected or (np.isnan(value[row]) and np.isnan(expected)), cell


def test_made_columns_are_what_they_say(study):
    table = spoilt(study, "north", "age", "", 0).take(np.arange(4))
    columns = {
        **table.columns,
        "age": np.array(["61", "x", "", "7"], object),
        "sex": np.array(["f", "m", "", "?"], object),
    }
    written = {"age": np.array([" 61", "x", "  ", "7"], object)}
    made = [
        "age",
        "age as written",
        "age is a number",
        "age is padded",
        "sex is f",
        "sex is padded",
        "readmitted is positive",
    ]
    found = frame(Table(columns, written), study.study, asked=made)
    assert list(found.columns) == made
    assert found["age"].fillna(-1).tolist() == [61, -1, -1, 7]
    assert found["age as written"].tolist() == [" 61", "x", "  ", "7"]
    assert found["age is a number"].tolist() == [1, 0, 1, 1]
    assert found["age is padded"].tolist() == [1, 0, 1, 0]
    assert found["sex is f"].fillna(-1).tolist() == [1, 0, -1, 0]
    assert found["sex is padded"].tolist() == [0, 0, 0, 0]
    assert set(found["readmitted is positive"]) <= {0.0, 1.0}


def test_what_is_asked_of_cells_as_written_is_answered(study):
    table = spoilt(study, "north", "age", "61", 300)
    padded = Table(table.columns, {"age": np.array([" 61" if row < 12 else "61" for row in range(300)], object)})
    plain = suite(
        {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "age as written", "regex": "^[0-9]+$"}}
    )
    verdict = gate.check(replace(study, suite=plain), "north", padded)
    assert [str(failure) for failure in verdict.failures] == [
        "expect_column_values_to_match_regex · age as written: 12 of 300"
    ]
    assert gate.check(replace(study, suite=plain), "north", table).passed


def test_what_is_left_out_for_speed_changes_no_result(study, monkeypatch):
    """All of the study's own suite and more, with gaps and faults: whole and in groups, lean and as Great Expectations does by itself."""
    table = spoilt(study, "north", "age", NUMBER, 12)
    document = list(study.suite.document["expectations"])
    document += [
        {"type": "expect_compound_columns_to_be_unique", "kwargs": {"column_list": ["age", "sex"]}},
        {"type": "expect_table_column_count_to_equal", "kwargs": {"value": 8}},
        {"type": "expect_column_stdev_to_be_between", "kwargs": {"column": "creatinine", "min_value": 0.1}},
    ]
    rows = frame(table, study.study)

    def results() -> list[tuple]:
        expectations = gate.validate_suite(suite(*document), study.study)
        return [(r.success, r.result) for r in gate._validated(rows, "mine", expectations)]

    whole = results()
    monkeypatch.setattr(gate, "MANY", 1)
    assert results() == whole
    monkeypatch.setattr(gate, "_lean", nullcontext)
    assert results() == whole
    assert [success for success, _ in whole].count(False) == 3


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_small_counts_are_suppressed():
    assert [counted(count) for count in (None, 0, 1, 9, 10, np.int64(11))] == [None, 0, None, None, 10, 11]
    assert str(Failure("e", "c", counted(303), counted(3))) == "e · c: fewer than 10 of 303"
    assert str(Failure("e", "c", counted(7), counted(3))) == "e · c: fewer than 10"


def test_a_table_shows_every_sites_verdict():
    failed = Verdict("north", False, 2, (Failure("e", "a|b", 303, 12), Failure("t", None, 303, None, False, "warning")))
    assert markdown([failed, Verdict("south", True, 1, note="1 skipped")]).splitlines()[2:] == [
        "| north | FAILED (2 checks) | e | a\\|b | 12 of 303 |  |",
        "| north | FAILED (2 checks) | t (warning) |  |  |  |",
        "| south | passed (1 check) |  |  |  | 1 skipped |",
    ]


# --- suites -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"type": "expect_wonders", "kwargs": {}}, r"\(expect_wonders\): .*expect_wonders not found"),
        (
            {"type": BETWEEN, "kwargs": {"column": "age", "low": 1, "max_value": 2}},
            r"\(.*between\): .*low — extra fields",
        ),
        ({"type": BETWEEN, "kwargs": {"column": "age"}}, "cannot both be None"),
        (
            {"type": BETWEEN, "kwargs": {"column": "agee", "min_value": 1}},
            "a column that the study reads, found 'agee'",
        ),
        ({"type": BETWEEN, "kwargs": {"column": "age", "min_value": 1}, "severity": "dire"}, "Invalid severity 'dire'"),
        ({"type": BETWEEN, "kwargs": ["age"]}, "kwargs must be a dict"),
        ({"type": BETWEEN, "kwarg": {"column": "age"}}, "an object with `type` and `kwargs`"),
        ("expect_everything", "an object with `type` and `kwargs`"),
    ],
)
def test_a_suite_that_cannot_be_meant_is_refused_in_one_line(study, written, message):
    with pytest.raises(StudyError, match=f"^suite 'mine', expectation 1.*{message}") as refused:
        gate.validate_suite(suite(written), study.study)
    assert "\n" not in str(refused.value)
