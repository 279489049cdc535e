"""Bad input ends in one clear line and its own exit code, and writes nothing: no traceback, no patient's value, no password."""

# ruff: noqa: E501  a case is a line of the table

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedrounds.cli.main import main

STUDY, DATA, GATE, STATE, USAGE = 10, 11, 12, 15, 2
CANARY = "Zaphod-4711"  # a patient's value
SECRET = "hunter2-geheim"  # a hospital's password


@dataclass(frozen=True)
class Case:
    """How to break a study that `fedrounds init` wrote, and what `fedrounds` must then say of it."""

    name: str
    spoil: Callable[[Path], object]
    code: int
    says: tuple[str, ...]
    command: tuple[str, ...] = ("run", "{}")


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    """A line of a study's file, said otherwise."""

    def spoil(folder: Path) -> None:
        text = (folder / file).read_text()
        assert re.search(old, text), f"{old!r} is no longer in {file}"
        (folder / file).write_text(re.sub(old, lambda _: new, text, count=1))

    return spoil


def cells(column: str, value: str, rows: slice = slice(None), site: str = "north") -> Callable[[Path], None]:
    """Cells of a hospital's column, overwritten."""

    def spoil(folder: Path) -> None:
        file = folder / "data" / f"{site}.csv"
        header, *lines = (line.split(",") for line in file.read_text().splitlines())
        for line in lines[rows]:
            line[header.index(column)] = value
        file.write_text("".join(",".join(line) + "\n" for line in (header, *lines)))

    return spoil


def first_column_names(old: str, new: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "data" / "north.csv"
        names, rest = file.read_text().split("\n", 1)
        assert old in names.split(",")
        file.write_text(",".join(new if name == old else name for name in names.split(",")) + "\n" + rest)

    return spoil


def write(file: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(text)


def only_rows(count: int, site: str = "north") -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        file = folder / "data" / f"{site}.csv"
        file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[: count + 1]))

    return spoil


def both(*spoils: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [spoil(folder) for spoil in spoils]


def as_sql(url: str) -> Callable[[Path], object]:
    return edit(
        "sites/north.toml", r'(?s)kind = "csv".*?path = [^\n]*', f'kind = "sql"\nurl = "{url}"\nquery = "SELECT 1"'
    )


def nothing(folder: Path) -> None: ...


CASES = [
    # study.toml
    Case("unknown key", edit("study.toml", "seed = 0", "sead = 0"), STUDY, ("study.toml", "a key that the file knows", "'sead'")),
    Case("unknown key deep down", edit("study.toml", "fraction = 0.25", "share = 0.25"), STUDY, ("validation — ", "'share'", "drop it")),
    Case("unknown model", edit("study.toml", '"logistic"', '"forest"'), STUDY, ("model", "found 'forest'", "'logistic'")),
    Case("model for another target", edit("study.toml", '"logistic"', '"linear"'), STUDY, ("binary target", "logistic or svm or naive_bayes", "'linear'")),
    Case("unknown preset", edit("study.toml", '"fedavg"', '"fedsgd"'), STUDY, ("preset", "fedavg, fedavgm", "'fedsgd'")),
    Case("rate that is no number", edit("study.toml", "rate = 0.1", "rate = nan"), STUDY, ("algorithm.local", "rate", "finite", "found nan")),
    Case("negative rate", edit("study.toml", "rate = 0.1", "rate = -0.1"), STUDY, ("algorithm.local", "rate", "greater than 0", "found -0.1")),
    Case("no TOML", edit("study.toml", 'name = "toy"', "name = toy"), STUDY, ("expected TOML", "study.toml", "line")),
    Case("text in another encoding", lambda f: (f / "study.toml").write_bytes(b"title = '\xff'"), STUDY, ("text in utf-8", "study.toml", "save it")),
    Case("no study file", lambda f: (f / "study.toml").unlink(), STUDY, ("expected study.toml", "no such file", "fedrounds init")),
    Case("feature twice", edit("study.toml", '"systolic_bp"', '"age"'), STUDY, ("each feature once", "age twice")),
    Case("target as a feature", edit("study.toml", '"systolic_bp"', '"readmitted"'), STUDY, ("'readmitted' is the target", "cannot be a feature")),
    Case("identity as a feature", edit("study.toml", '"systolic_bp"', '"patient_id"'), STUDY, ("'patient_id' is the patient_id", "identity")),
    Case("level twice", edit("study.toml", r'\["no", "yes"\]', '["yes", " yes"]'), STUDY, ("categories of 'diabetes' must differ",)),
    Case("range upside down", edit("study.toml", r"\[18, 110\]", "[110, 18]"), STUDY, ("range of 'age'", "low to high")),
    Case("weights of other sites", edit("study.toml", '"patients"', "{ north = 1, mars = 2 }"), STUDY, ("expected `weights`", "north", "mars")),
    Case("MLflow's name", edit("study.toml", 'name = "toy"', 'name = "artifacts"'), STUDY, ("'artifacts'", "choose another `name`")),
    # operations.toml
    Case("negative rounds", edit("operations.toml", "rounds = 3", "rounds = -3"), STUDY, ("operations.toml", "rounds", "greater than or equal to 1", "found -3")),
    Case("no rounds", edit("operations.toml", "rounds = 3", "rounds = 0"), STUDY, ("operations.toml", "rounds", "greater than or equal to 1", "found 0")),
    Case("quorum of more than there are", edit("operations.toml", "quorum = 3", "quorum = 5"), STUDY, ("quorum of at most 4", "found 5")),
    Case("no such suite", edit("operations.toml", 'suite = "readmission"', 'suite = "mars"'), STUDY, ("suite 'mars'", "leave `suite` out")),
    Case("site without a file", edit("operations.toml", '# sites = .*"]', 'sites = ["north", "mars"]'), STUDY, ("site file for 'mars'", "add mars.toml")),
    Case("suite that is no JSON", write("expectations/readmission.json", "{expectations"), STUDY, ("GX suite as JSON", "readmission.json")),
    # sites/*.toml
    Case("no sites", lambda f: shutil.rmtree(f / "sites"), STUDY, ("a file a hospital", "sites", "sites/NAME.toml")),
    Case("site twice", edit("sites/east.toml", r"\A", 'name = "north"\n'), STUDY, ("each site once", "'north' again", "north.toml")),
    Case("unknown key of a site", edit("sites/east.toml", "simulated", "simulate"), STUDY, ("east.toml", "'simulate'", "drop it")),
    Case("absent feature that is none", edit("sites/north.toml", '# absent = .*"]', 'absent = ["hair"]'), DATA, ("`absent`", "'hair'", "'north'")),
    Case("no data file", lambda f: (f / "data" / "north.csv").unlink(), STUDY, ("'north'", "north.csv", "correct `path`")),
    Case("database that does not answer", as_sql(f"postgresql://fed:{SECRET}@127.0.0.1:1/clinic"), DATA, ("'north'", "database to answer", "`url`")),
    Case("database that is a wish", as_sql(f"oracel-{SECRET}"), STUDY, ("'north'", "dialect://", "another form")),
    Case("unknown source", edit("sites/north.toml", 'kind = "csv"', f'kind = "{SECRET}"'), STUDY, ("north.toml", "'csv'", "found another")),
    # data
    Case("empty file", write("data/north.csv", ""), DATA, ("'north'", "north.csv", "empty", "check the export")),
    Case("header alone", only_rows(0), DATA, ("'north'", "north.csv", "none below the header")),
    Case("missing column", first_column_names("age", "unit_number"), DATA, ("column 'age'", "'north'", "rename it", "`absent`")),
    Case("renamed column", first_column_names("age", "Age"), DATA, ("column 'age'", "'north'", "'Age' looks like it")),
    Case("no header", edit("data/north.csv", r"(?m)\A.*", f"{CANARY},71,f,140,1,never,no,yes"), DATA, ("column 'age'", "'north'", "8 columns without it")),
    Case("text among numbers", cells("age", CANARY, slice(5, 17)), DATA, ("numbers in column 'age' (years)", "'north'", "12 of 300", "`missing`")),
    Case("nothing but missing", cells("creatinine", "NA"), DATA, ("'creatinine'", "'north'", "all 300 rows missing", "`absent`")),
    Case("no target column", first_column_names("readmitted", "again"), DATA, ("column 'readmitted'", "'north'")),
    Case("no label", cells("readmitted", ""), DATA, ("'readmitted'", "'north'", "all 300 rows missing")),
    Case("unknown label", cells("readmitted", CANARY, slice(0, 20)), DATA, ("'readmitted'", "'north'", "20 of 300 cells", "add the label")),
    Case("patient without an id", cells("patient_id", "", slice(0, 15)), DATA, ("an id in every row", "'patient_id'", "15 of 300")),
    Case("column twice", first_column_names("sex", "age"), DATA, ("distinct column names", "columns 2 and 3", "rename one")),
    Case("ragged row", edit("data/north.csv", "N0007,", f"N0007,{CANARY},"), DATA, ("8 cells in every row", "found 9 in line 8", "repair")),
    Case("bytes of another encoding", lambda f: (f / "data" / "north.csv").write_bytes(b"age\n\xff\xfe\n"), DATA, ("utf-8", "set `encoding`")),
    Case("too few patients", both(*(only_rows(5, site) for site in ("north", "east"))), DATA, ("at least 3 sites", "found 2", "minimum cohort of 10")),
    # places
    Case("no study folder", nothing, STUDY, ("study folder", "no folder at", "fedrounds init"), ("run", "{}/not-here")),
    Case("file for a study folder", nothing, STUDY, ("study folder", "a file at", "study.toml"), ("run", "{}/study.toml")),
    Case("no data folder", nothing, STUDY, ("folder of data", "mend --data"), ("run", "{}", "--data", "{}/not-here")),
    Case("file for a state folder", write("mlruns/toy", ""), STATE, ("state folder", "mlruns/toy", "a file in its place", "--state")),
    Case("state under a file", nothing, STATE, ("state folder", "study.toml", "--state"), ("run", "{}", "--state", "{}/study.toml")),
    Case("state where nobody writes", nothing, STATE, ("state folder", "/proc/fedrounds", "--state"), ("run", "{}", "--state", "/proc/fedrounds")),
    Case("init into a folder in use", nothing, STATE, ("new or empty folder", "choose another name"), ("init", "{}")),
    Case("init into a file", nothing, STATE, ("new or empty folder", "study.toml"), ("init", "{}/study.toml")),
    Case("init below a file", nothing, STATE, ("write a study into", "choose another folder"), ("init", "{}/study.toml/deep")),
    Case("init where nobody writes", nothing, STATE, ("write a study into", "choose another folder"), ("init", "/proc/fedrounds")),
    Case("UIs of a study that has not run", nothing, STATE, ("a study that has run", "`fedrounds run"), ("ui", "{}")),
    # words on the command line
    Case("no further rounds", nothing, USAGE, ("--more", "above 0", "'0'", "fedrounds run --help"), ("run", "{}", "--more", "0")),
    Case("rounds back", nothing, USAGE, ("--more", "above 0", "'-1'"), ("run", "{}", "--more=-1")),
    Case("rounds in words", nothing, USAGE, ("--more", "above 0", "'two'"), ("run", "{}", "--more", "two")),
    Case("unknown option", nothing, USAGE, ("--fast", "fedrounds --help"), ("run", "{}", "--fast")),
    Case("unknown command", nothing, USAGE, ("'train'", "'init', 'models', 'strategies', 'check', 'plan', 'run'"), ("train", "{}")),
    Case("no folder named", nothing, USAGE, ("DIR", "fedrounds run --help"), ("run",)),
]  # fmt: skip
CHECKS = [case for case in CASES if case.command == ("run", "{}") and case.code in (STUDY, DATA)]


def listing(folder: Path, files_only: bool = False) -> dict[str, tuple[int, int]]:
    """Everything below a folder, with its time and size. Who reads an SQLite file leaves a mark on its folder's time."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in sorted([folder, *folder.rglob("*")])
        if path.is_file() or not files_only
    }


def one_line(capfd: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What was said on standard output, and the only line on standard error."""
    out, err = capfd.readouterr()
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert err.startswith("fedrounds: ")
    assert "Traceback" not in err
    return out, err


def refused(words: list[str], code: int, says: tuple[str, ...], folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Run a command that must end in one line, and leave `folder` as it is; returns the line."""
    has_state = any(folder.glob("*/mlruns/mlflow.db"))
    before = listing(folder, has_state)
    assert main(words) == code
    out, line = one_line(capfd)
    assert listing(folder, has_state) == before
    assert not out
    missing = [word for word in says if word not in line]
    assert not missing, f"expected {missing} in: {line}"
    assert CANARY not in line
    assert SECRET not in line
    assert len(line) < 420
    return line


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_gives_one_line_and_writes_nothing(case, new_study, capfd):
    case.spoil(new_study)
    words = [word.format(new_study) for word in case.command]
    refused(words, case.code, case.says, new_study.parent, capfd)


@pytest.mark.parametrize("case", CHECKS, ids=lambda case: case.name)
def test_check_finds_what_run_would_refuse(case, new_study, capfd):
    case.spoil(new_study)
    refused(["check", str(new_study)], case.code, case.says, new_study.parent, capfd)


def test_names_are_distinct():
    assert len({case.name for case in CASES}) == len(CASES)


def test_an_error_is_a_document_too(new_study, capfd):
    (new_study / "study.toml").unlink()
    assert main(["check", str(new_study), "--json"]) == STUDY
    out, line = one_line(capfd)
    said = json.loads(out)["error"]
    assert said["kind"] == "StudyError"
    assert said["exit_code"] == STUDY
    assert line == f"fedrounds: {said['message']}\n"


def test_a_suite_that_asks_for_a_column_of_no_one_is_refused(new_study, capfd):
    edit("expectations/readmission.json", r'"column": "age"', '"column": "hair"')(new_study)
    says = ("suite 'readmission', expectation", "'hair'", "study.toml")
    refused(["check", str(new_study), "--gate"], STUDY, says, new_study.parent, capfd)


# --- beside a study that has run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def has_run(toy_study, tmp_path_factory):
    """A study that has run, to break and mend again."""
    return toy_study.copy(tmp_path_factory.mktemp("ran") / "toy")


LATER = [
    Case("other protocol", edit("study.toml", "rate = 0.1", "rate = 0.2"), STUDY, ("study.toml as it ran", "--fresh")),
    Case("other dictionary", edit("study.toml", r"  \{ type = \"category\", name = \"smoker\".*\n", ""), STUDY, ("dictionary", "6 features", "new `name`")),
    Case("other dictionary, afresh", edit("study.toml", r"  \{ type = \"category\", name = \"smoker\".*\n", ""), STUDY, ("dictionary", "new `name`"), ("run", "{}", "--fresh")),
    Case("data gone", lambda f: (f / "data" / "north.csv").unlink(), STUDY, ("'north'", "north.csv", "correct `path`"), ("run", "{}", "--more", "1")),
    Case("ledger that is none", write("mlruns/toy/ledger.db", "no ledger at all " * 99), STATE, ("ledger", "ledger.db"), ("run", "{}", "--more", "1")),
]  # fmt: skip


@pytest.mark.parametrize("case", LATER, ids=lambda case: case.name)
def test_a_study_that_has_run_stays_as_it_is(case, has_run, tmp_path, capfd):
    kept = shutil.copytree(has_run, tmp_path / "kept")
    case.spoil(has_run)
    try:
        refused([word.format(has_run) for word in case.command], case.code, case.says, has_run.parent, capfd)
    finally:
        for file in ("study.toml", "data/north.csv", "mlruns/toy/ledger.db"):
            shutil.copy(kept / file, has_run / file)
