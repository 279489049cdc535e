"""A drafted suite: it finds the faults that real files have, catches what breaks them, and never undoes what people did to it."""

from __future__ import annotations

import csv
import datetime as dt
import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrounds import sources
from fedrounds.cli.main import main
from fedrounds.core.errors import StudyError
from fedrounds.core.operations import Gate, Schedule
from fedrounds.core.study import Study
from fedrounds.core.table import Table
from fedrounds.tasks import draft as drafting
from fedrounds.tasks import folder as folders
from fedrounds.tasks import gate
from fedrounds.tasks.redraft import merged, text
from fedrounds.tasks.verdict import Verdict

ROOT = Path(__file__).parents[1]
SHARED = ROOT / "../shared/data"
NOW = dt.datetime(2020, 6, 20, 12, tzinfo=dt.UTC)
BETWEEN, IN_SET, NOT_NULL = (f"expect_column_values_to_{words}" for words in ("be_between", "be_in_set", "not_be_null"))
MEAN, EXISTS, UNIQUE = "expect_column_mean_to_be_between", "expect_column_to_exist", "expect_column_values_to_be_unique"
ROWS, NEWEST = "expect_table_row_count_to_be_between", "expect_column_min_to_be_between"
PAIR = "expect_column_pair_values_a_to_be_greater_than_b"
CANARY = "987654.321"

COVID = """
name = "covid"
event_time = "seen"
features = [
  { type = "number", name = "age", unit = "years", range = [0, 110] },
  { type = "category", name = "gender", categories = ["female", "male"] },
  { type = "number", name = "ct_result", range = [5, 45] },
  { type = "number", name = "col_rec_tat", unit = "hours", range = [0, 1000] },
  { type = "number", name = "rec_ver_tat", unit = "hours", range = [0, 1000] },
]
target = { kind = "binary", column = "result", positive = ["positive"], negative = ["negative"], missing = ["invalid"] }
model = { kind = "logistic" }
algorithm = "fedavg"
"""
CKD = """
name = "ckd"
features = [
  { type = "number", name = "age", unit = "years", range = [0, 110], missing = ["?"] },
  { type = "category", name = "rbc", categories = ["normal", "abnormal"], missing = ["?"] },
  { type = "number", name = "bu", unit = "mg/dl, urea", range = [1, 500], missing = ["?"] },
  { type = "number", name = "sc", unit = "mg/dl, creatinine", range = [0.1, 100], missing = ["?"] },
  { type = "number", name = "sod", unit = "mEq/l", range = [100, 180], missing = ["?"] },
  { type = "number", name = "hemo", unit = "g/dl", range = [2, 25], missing = ["?"] },
]
target = { kind = "binary", column = "class", positive = ["ckd"], negative = ["notckd"] }
model = { kind = "logistic" }
algorithm = "fedavg"
"""


def copied(name: str, tmp_path: Path) -> Path:
    """A study of `studies/` without a suite of its own."""
    folder = shutil.copytree(ROOT / "studies" / name, tmp_path / name, ignore=shutil.ignore_patterns("mlruns"))
    operations = folder / "operations.toml"
    operations.write_text(re.sub(r"(?m)^suite = .*$", f'suite = "{name}"', operations.read_text()))
    return folder


def single(study: str, header: str, rows: list[str], folder: Path, operations: str = "") -> Path:
    """A study of one hospital, whose file is written beside it."""
    (folder / "sites").mkdir(parents=True)
    (folder / "study.toml").write_text(study)
    (folder / "operations.toml").write_text(f'rounds = 1\nquorum = 1\n[gate]\nsuite = "mine"\n{operations}')
    (folder / "sites" / "one.toml").write_text('[source]\nkind = "csv"\npath = "one.csv"\n')
    (folder / "one.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def present(data: str) -> Path:
    if not (SHARED / data).is_dir():
        pytest.skip(f"{SHARED / data} is not here: the product ships no patient file")
    return SHARED / data


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """name -> (its folder as read, with the suite that `fedrounds expectations draft` wrote; what that found at each site)."""
    made: dict[str, tuple[folders.Folder, dict[str, Verdict]]] = {}

    def study(name: str) -> tuple[folders.Folder, dict[str, Verdict]]:
        if name not in made:
            base = tmp_path_factory.mktemp(name)
            folder, data = MAKERS[name](base)
            assert main(["expectations", "draft", str(folder), *(["--data", str(data)] if data else []), "--json"]) == 0
            read = folders.read(folder, data)
            made[name] = read, {site: gate.check(read, site, now=NOW) for site in read.sites}
        return made[name]

    return study


def heart(base: Path) -> tuple[Path, Path]:
    """The dictionary as one writes it who does not know that 0 means "not measured"."""
    data, folder = present("heart_disease_uci"), copied("heart", base)
    study, swiss = folder / "study.toml", folder / "sites" / "switzerland.toml"
    study.write_text(study.read_text().replace('missing = ["?", 0]', 'missing = ["?"]'))
    swiss.write_text(re.sub(r"(?m)^absent = .*$", "", swiss.read_text()))
    return folder, data


def opt(base: Path) -> tuple[Path, Path]:
    return copied("opt", base), present("opt")


def covid(base: Path) -> tuple[Path, None]:
    """The file counts the days of the pandemic; a study of today would have dates."""
    with (present("covid_testing_chop") / "covid_testing.csv").open() as file:
        header, *rows = csv.reader(file)
    day = header.index("pan_day")
    dated = [[*row, (dt.date(2020, 3, 1) + dt.timedelta(float(row[day]))).isoformat()] for row in rows]
    return single(COVID, ",".join([*header, "seen"]), [",".join(row) for row in dated], base / "covid"), None


def ckd(base: Path) -> tuple[Path, None]:
    lines = (present("ckd_uci") / "chronic_kidney_disease_full.arff").read_text().splitlines()
    names = [line.split("'")[1] for line in lines if line.startswith("@attribute")]
    rows = [line for line in lines if line and line[0] not in "%@"]
    return single(CKD, ",".join(names), rows, base / "ckd", 'rules = ["sc < bu"]'), None


MAKERS = {"heart": heart, "opt": opt, "covid": covid, "ckd": ckd}


def table_of(study: folders.Folder, site: str) -> Table:
    return sources.load(study.sites[site].source, study.data, site)


def changed(table: Table, column: str, change) -> Table:
    """The table with each cell of a column as `change(cell, row)` has it."""
    cells = np.array([change(cell, row) for row, cell in enumerate(table.columns[column])], object)
    return Table({**table.columns, column: cells}, table.written)


def named(verdict: Verdict) -> dict[tuple[str, str | None], str]:
    return {(failure.expectation, failure.column): failure.rows for failure in verdict.failures}


# --- what is wrong with the files as they are -------------------------------------------------------------------------


def test_hidden_zeros_are_found_at_the_hospitals_that_have_them(real):
    _, found = real("heart")
    assert named(found["switzerland"])[BETWEEN, "chol"] == "123 of 123"
    assert named(found["long-beach"])[BETWEEN, "chol"] == "49 of 200"
    assert named(found["long-beach"])[BETWEEN, "trestbps"] == "fewer than 10 of 200"
    assert {site: verdict.action for site, verdict in found.items()} == {
        "cleveland": "pass",
        "hungary": "pass",
        "long-beach": "exclude",
        "switzerland": "exclude",
    }


def test_padded_blanks_are_found_column_by_column_and_stop_nobody(real):
    _, found = real("opt")
    padded = {column for kind, column in named(found["kentucky"]) if kind == IN_SET and "is padded" in (column or "")}
    assert {"Preg.ended...37.wk is padded", "Hypertension is padded", "Diabetes is padded"} <= padded
    assert "PID is padded" not in padded
    assert all(verdict.passed for verdict in found.values())
    assert {f.severity for f in found["kentucky"].failures if f.column in padded} == {"info"}


def test_negative_and_absurd_times_are_found(real):
    failures = named(real("covid")[1]["one"])
    assert failures[BETWEEN, "rec_ver_tat"] == "fewer than 10 of 15524"
    assert failures[BETWEEN, "col_rec_tat"] == "fewer than 10 of 15524"
    assert (BETWEEN, "age") in failures  # 138 years
    assert (NEWEST, "days since seen") not in failures


def test_a_sodium_that_nobody_survives_and_columns_that_changed_places_are_found(real):
    assert named(real("ckd")[1]["one"]) == {
        (BETWEEN, "sod"): "fewer than 10 of 400",
        (PAIR, "bu, sc"): "fewer than 10 of 400",  # a creatinine above the urea
    }


# --- what breaks them -------------------------------------------------------------------------------------------------


def units(study):  # mg/dl became mmol/l
    table = table_of(study, "cleveland")
    return "cleveland", changed(table, "chol", lambda cell, _: f"{float(cell) / 38.67:.2f}")


def codes(study):  # 0 and 1 became 1 and 2
    table = table_of(study, "cleveland")
    return "cleveland", changed(table, "sex", lambda cell, _: str(int(float(cell)) + 1))


def swapped(study):  # 0 became 1, 1 became 0
    table = table_of(study, "hungary")
    return "hungary", changed(table, "sex", lambda cell, _: str(1 - int(float(cell))))


def renamed(study):
    table = table_of(study, "hungary")
    return "hungary", Table({"max_hr" if name == "thalach" else name: c for name, c in table.columns.items()})


def doubled(study):  # an export that was appended to itself
    table = table_of(study, "harlem")
    return "harlem", table.take(np.r_[np.arange(table.rows), np.arange(30)])


def texts(study):
    return "harlem", changed(table_of(study, "harlem"), "Age", lambda cell, row: f"{cell} y" if row < 20 else cell)


def truncated(study):
    return "one", table_of(study, "one").take(np.arange(5000))


def stale(study):
    return "one", changed(
        table_of(study, "one"), "seen", lambda cell, _: (dt.date.fromisoformat(cell) - dt.timedelta(31)).isoformat()
    )


def flipped(study):  # positive and negative changed places
    other = {"positive": "negative", "negative": "positive"}
    return "one", changed(table_of(study, "one"), "result", lambda cell, _: other.get(cell, cell))


def emptied(study):
    return "one", changed(table_of(study, "one"), "hemo", lambda cell, row: "" if row % 5 else cell)


def exchanged(study):  # two columns changed places, each in the other's range
    table = table_of(study, "one")
    return "one", Table({**table.columns, "sc": table.columns["bu"], "bu": table.columns["sc"]})


@pytest.mark.parametrize(
    ("name", "spoil", "expectation", "column"),
    [
        ("heart", units, BETWEEN, "chol"),
        ("heart", codes, IN_SET, "sex"),
        ("heart", renamed, EXISTS, "thalach"),
        ("opt", doubled, UNIQUE, "PID"),
        ("opt", texts, IN_SET, "Age is a number"),
        ("covid", truncated, ROWS, None),
        ("covid", stale, NEWEST, "days since seen"),
        ("covid", flipped, MEAN, "result is positive"),
        ("ckd", emptied, NOT_NULL, "hemo"),
        ("ckd", exchanged, PAIR, "bu, sc"),
    ],
)
def test_a_broken_version_is_caught_by_the_right_expectation(real, name, spoil, expectation, column):
    study, before = real(name)
    site, table = spoil(study)
    verdict, sought = gate.check(study, site, table, NOW), (expectation, column)
    assert not verdict.passed
    failure = next(f for f in verdict.failures if (f.expectation, f.column, f.severity) == (*sought, "critical"))
    assert failure.action == "exclude"
    assert named(verdict)[sought] != named(before[site]).get(sought)


def test_codes_that_changed_places_are_a_warning(real):
    study, before = real("heart")
    site, table = swapped(study)
    assert before[site].failures == ()
    verdict = gate.check(study, site, table, NOW)
    assert [(f.expectation, f.column, f.severity) for f in verdict.failures] == [(MEAN, "sex is 1", "warning")]


def test_every_drafted_expectation_says_from_what(real):
    for name in MAKERS:
        for one in real(name)[0].suite.document["expectations"]:
            assert re.match(
                r"(study|operations)\.toml: |default|counts over \d+ sites?: ", one["meta"]["drafted"]["from"]
            )


# --- a toy study: the command, the file, the second draft --------------------------------------------------------------


@pytest.fixture
def toy(new_study, capfd):
    """A study without a suite, and what is wanted of the command: its document."""
    shutil.rmtree(new_study / "expectations")
    operations = new_study / "operations.toml"
    operations.write_text(operations.read_text().replace('suite = "readmission"', "# no suite"))

    def run(*words: str) -> dict:
        capfd.readouterr()
        assert main(["expectations", "draft", str(new_study), "--json", *words]) == 0
        return json.loads(capfd.readouterr().out)

    return new_study, run, new_study / "expectations" / "toy.json"


def edit(file: Path, name: str, change) -> None:
    """Let `change` have the expectation with that id; what it returns stands in its place, None takes it out."""
    document = json.loads(file.read_text())
    found = [change(one) if id_of(one) == name else one for one in document["expectations"]]
    file.write_text(json.dumps({**document, "expectations": [one for one in found if one is not None]}))


def ids(file: Path) -> list[str]:
    return [id_of(one) for one in json.loads(file.read_text())["expectations"]]


def id_of(one: dict) -> str:
    return one.get("meta", {}).get("drafted", {}).get("id", one["type"])


def one_of(file: Path, name: str) -> dict:
    return next(one for one in json.loads(file.read_text())["expectations"] if id_of(one) == name)


def test_the_first_draft_says_what_to_add_and_passes_where_nothing_is_wrong(toy):
    folder, run, file = toy
    said = run()
    assert said["file"] == str(file)
    assert said["add_to_operations"] == 'suite = "toy"'
    assert said["expectations"] == len(said["added"]) == 51
    assert all(verdict["passed"] and not verdict["failures"] for verdict in said["findings"].values())
    assert ids(file)[:6] == [
        "rows",
        "patient_id · exists",
        "patient_id · no empty id",
        "patient_id · unique",
        "patient_id · not padded",
        "age · exists",
    ]
    operations = folder / "operations.toml"
    operations.write_text(operations.read_text().replace("# no suite", 'suite = "toy"'))
    assert gate.check(folders.read(folder), "north") == Verdict("north", True, 51)


def test_a_second_draft_is_the_same_to_the_byte(toy):
    _, run, file = toy
    run()
    before = file.read_bytes()
    said = run()
    assert file.read_bytes() == before
    assert (said["added"], said["updated"], len(said["unchanged"])) == ([], [], 51)


def test_what_people_changed_added_and_took_out_stays_so(toy):
    folder, run, file = toy
    run()
    edit(file, "age · range", lambda one: {**one, "kwargs": {**one["kwargs"], "max_value": 99}})
    edit(file, "sex · categories", lambda one: {**one, "meta": {**one["meta"], "action": "halt"}})
    edit(file, "smoker · not padded", lambda _: None)
    document = json.loads(file.read_text())
    own = {
        "type": "expect_column_median_to_be_between",
        "kwargs": {"column": "age", "min_value": 40},
        "severity": "info",
    }
    document["expectations"].insert(7, own)
    file.write_text(json.dumps(document))
    study = folder / "study.toml"
    study.write_text(study.read_text().replace("range = [50, 300]", "range = [60, 280]"))
    order = ids(file)
    said = run()
    assert ids(file) == order
    assert json.loads(file.read_text())["expectations"][7] == own
    assert one_of(file, "age · range")["kwargs"]["max_value"] == 99
    assert one_of(file, "sex · categories")["meta"]["action"] == "halt"
    assert one_of(file, "systolic_bp · range")["kwargs"] == {"column": "systolic_bp", "min_value": 60, "max_value": 280}
    assert {key: said[key] for key in ("added", "updated", "edited", "removed", "own")} == {
        "added": [],
        "updated": ["systolic_bp · range"],
        "edited": ["age · range", "sex · categories"],
        "removed": ["smoker · not padded"],
        "own": ["expect_column_median_to_be_between · age"],
    }
    before = file.read_bytes()
    run()
    assert file.read_bytes() == before


def test_the_draft_follows_the_dictionary(toy):
    folder, run, file = toy
    run()
    study = folder / "study.toml"
    words = study.read_text()
    study.write_text(re.sub(r'.*name = "smoker".*\n', "", words))
    said = run()
    assert [name.partition(" · ")[0] for name in said["withdrawn"]] == ["smoker"] * 6
    assert not [name for name in ids(file) if name.startswith("smoker")]
    study.write_text(words)
    assert len(run()["added"]) == 6
    assert [name for name in ids(file) if name.startswith(("smoker", "diabetes · exists"))][-1] == "diabetes · exists"


def test_what_people_wrote_themselves_is_not_drafted_again(new_study, capfd):
    capfd.readouterr()
    assert main(["expectations", "draft", str(new_study), "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    file = new_study / "expectations" / "readmission.json"
    assert said["add_to_operations"] is None
    assert len(said["own"]) == 17
    found = json.loads(file.read_text())["expectations"]
    about = [(one["type"], one["kwargs"].get("column")) for one in found]
    assert about.count((BETWEEN, "age")) == about.count((UNIQUE, "patient_id")) == 1
    assert "age · numbers" in said["added"]


def test_where_no_rows_can_be_read_limits_are_the_stated_defaults(toy):
    folder, run, file = toy
    for data in (folder / "data").iterdir():
        data.unlink()
    said = run()
    assert (said["findings"], said["not_read"]) == ({}, ["east", "north", "south", "west"])
    assert one_of(file, "rows")["kwargs"] == {"min_value": 10}
    assert one_of(file, "age · not missing")["kwargs"]["mostly"] == 0.5
    assert one_of(file, "readmitted · label rate")["kwargs"]["max_value"] == 0.999
    assert not [name for name in ids(file) if name.endswith(("mean", "commonest level"))]


def test_people_are_told_in_words(toy, capfd):
    folder, run, file = toy
    run()
    edit(file, "age · range", lambda one: {**one, "kwargs": {**one["kwargs"], "min_value": 90}})
    capfd.readouterr()
    assert main(["expectations", "draft", str(folder)]) == 0
    out = capfd.readouterr().out
    assert f"{file}: 51 expectations\n  50 unchanged\n  1 edited by hand and kept: age · range\n" in out
    assert re.search(rf"\nnorth: would fail, 1 of 51 checks found something\n  {BETWEEN} · age: \d+ of 300\n", out)
    assert f'To use it, add under [gate] in {folder / "operations.toml"}: suite = "toy"\n' in out


def test_a_suite_that_is_none_is_not_written_over(toy, capfd):
    folder, run, file = toy
    run()
    file.write_text("{expectations")
    assert main(["expectations", "draft", str(folder)]) == StudyError.exit_code
    assert file.read_text() == "{expectations"
    assert "a GX suite as JSON" in capfd.readouterr().err


def test_rules_must_be_about_numbers(toy):
    study = folders.read(toy[0]).study
    rules = Gate(rules=("creatinine < age",))
    pair = next(one for one in drafting.draft(study, rules, drafting.Evidence()) if one["type"] == PAIR)
    assert pair["kwargs"] == {
        "column_A": "age",
        "column_B": "creatinine",
        "or_equal": False,
        "ignore_row_if": "either_value_is_missing",
    }
    with pytest.raises(StudyError, match=r"numbers of the study, found 'sex' in 'sex <= age'"):
        drafting.draft(study, Gate(rules=("sex <= age",)), drafting.Evidence())


def test_limits_are_the_stated_ones():
    """Two hospitals of 100 and 300 rows; of 400 cells of x 20 are missing, the others are 0 or 2; 100 of 400 are yes."""
    study = Study.model_validate(
        {
            "name": "s",
            "features": [{"type": "number", "name": "x"}],
            "target": {"kind": "binary", "column": "y", "positive": ["yes"], "negative": ["no"]},
            "model": {"kind": "logistic"},
            "algorithm": "fedavg",
        }
    )

    def table(rows: int) -> tuple[Table, tuple[str, ...]]:
        x = ["" if row % 20 == 0 else "02"[row % 2] for row in range(rows)]
        y = ["yes" if row % 4 == 0 else "no" for row in range(rows)]
        return Table({"x": np.array(x, object), "y": np.array(y, object)}), ()

    seen = drafting.evidence(study, {"a": table(100), "b": table(300)})
    assert (seen.sites, seen.rows, seen.missing["x"], seen.positive) == (2, (100, 300), (20, 400), (100, 400))
    limits = {one["meta"]["drafted"]["id"]: one["kwargs"] for one in drafting.draft(study, Gate(), seen)}
    assert limits["rows"] == {"min_value": 50, "max_value": 3000}
    assert limits["x · seldom missing"]["mostly"] == 0.85  # 2 · 5% + 5%
    assert limits["x · not missing"]["mostly"] == 0.55  # 4 · 5% + 25%
    rates = [
        (limits[f"y · {name}"]["min_value"], limits[f"y · {name}"]["max_value"])
        for name in ("usual label rate", "label rate")
    ]
    assert rates == [(0.076, 0.58), (0.016, 0.87)]  # odds 1/3: over and times 4, over and times 20


def test_a_merge_keeps_what_it_does_not_know():
    document, done = merged(
        "m", {"name": "other", "notes": "n", "expectations": [{"type": "t", "kwargs": {}}], "meta": {"by": "us"}}, []
    )
    assert document == {
        "name": "other",
        "notes": "n",
        "meta": {"by": "us", "drafted": []},
        "expectations": [{"type": "t", "kwargs": {}}],
    }
    assert done.own == ["t"]
    assert json.loads(text(document)) == document


# --- nothing gets out -------------------------------------------------------------------------------------------------


def test_no_planted_value_is_in_the_draft_its_findings_or_the_sites_page(toy, capfd):
    folder, _, file = toy
    data = folder / "data" / "north.csv"
    header, *rows = (line.split(",") for line in data.read_text().splitlines())
    for row in random.Random(1).sample(rows, 40):
        row[header.index("age")] = CANARY
        row[header.index("sex")] = f" Zaphod-{CANARY} "
    data.write_text("".join(",".join(line) + "\n" for line in (header, *rows)))
    capfd.readouterr()
    assert main(["expectations", "draft", str(folder)]) == 0
    operations = folder / "operations.toml"
    operations.write_text(operations.read_text().replace("# no suite", 'suite = "toy"'))
    assert main(["site", "docs", str(folder)]) == 0
    pages = [page.read_text() for page in (folder / "mlruns" / "toy" / "docs").rglob("index.html")]
    assert len(pages) == 4
    said = "".join(capfd.readouterr()) + file.read_text() + "".join(pages)
    assert f"  {BETWEEN} · age: 40 of 300\n" in said
    for word in (CANARY, CANARY.split(".")[0], "Zaphod"):
        assert word not in said


# --- a site's page ----------------------------------------------------------------------------------------------------


def test_a_sites_page_shows_its_last_validation_and_asks_nobody_for_anything(new_study, capfd):
    capfd.readouterr()
    assert (
        main(["site", "docs", str(new_study), "--site", "north", "--state", str(new_study / "elsewhere"), "--json"])
        == 0
    )
    out, err = capfd.readouterr()
    file = new_study / "elsewhere" / "toy" / "docs" / "north" / "index.html"
    assert (json.loads(out), err) == ({"study": "toy", "docs": {"north": str(file)}}, "")
    assert [path.name for path in file.parents[1].iterdir()] == ["north"]
    assert file.parent.stat().st_mode & 0o777 == 0o700
    page = file.read_text()
    assert "<h1>north · toy</h1>\n<p>passed 17 checks</p>" in page
    assert "Must have greater than or equal to" in page
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|<script|<link|<img|<a\b|\son\w+=", page)


def test_a_page_of_a_site_that_is_none_is_refused(new_study, capfd):
    assert main(["site", "docs", str(new_study), "--site", "mars"]) == StudyError.exit_code
    assert "found 'mars': it has east, north, south, west" in capfd.readouterr().err


# --- made columns -----------------------------------------------------------------------------------------------------


def test_freshness_counts_days_on_the_calendar_of_the_studys_zone(new_study):
    study = folders.read(new_study)
    words = study.study.model_dump() | {"event_time": "seen"}
    suite = folders.Suite(
        "s", {"expectations": [{"type": NEWEST, "kwargs": {"column": "days since seen", "max_value": 2}}]}, "h"
    )
    dated = replace(study, study=type(study.study).model_validate(words), suite=suite)
    table = table_of(study, "north")
    seen = np.full(table.rows, "2026-03-01", object)
    seen[:2] = "2026-03-27T23:30:00-05:00", "2026-03-20"
    late = Table({**table.columns, "seen": seen})

    def passed(now: str, zone: str) -> bool:
        operations = study.operations.model_copy(update={"schedule": Schedule(cron="0 3 * * *", timezone=zone)})
        judged = gate.judge(replace(dated, operations=operations), "north", late, dt.datetime.fromisoformat(now))
        return judged.verdict.passed

    # 23:30 in New York is 4:30 on the 28th in UTC, and 5:30 on the 28th in Zurich, whose clocks change on the 29th.
    assert passed("2026-03-30T21:00:00+00:00", "Europe/Zurich")
    assert not passed("2026-03-30T22:00:00+00:00", "Europe/Zurich")  # midnight: the 31st
    assert passed("2026-03-30T22:00:00+00:00", "UTC")
    assert not passed("2026-03-30T22:00:00+00:00", "Asia/Tokyo")
