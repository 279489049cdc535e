"""An OMOP CDM becomes a table, on PostgreSQL and on SQLite, and the same one as a FHIR export of its patients; what is wrong is one line."""

from __future__ import annotations

import datetime as dt
import itertools
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clinic
import numpy as np
import pytest
from clinic import LOINC, SNOMED
from declared import CANARY, parse, refusal
from postgres import Postgres
from pydantic import ValidationError

from fedrounds.core.errors import DataContractError, StudyError
from fedrounds.sources import load, omop, sql

INDEX = dt.date(2025, 6, 1)
DATABASES = itertools.count(1)
YEAR = {"window_days": [-365, 0]}
PRESSURE = {
    "column": "sbp",
    "table": "measurement",
    "concept": [3004249],
    "value": "value_as_number",
    "unit_concept": 8876,
    "when": "last",
}
OMOP = [
    {"column": "age", "table": "person", "value": "age"},
    {"column": "sex", "table": "person", "value": "gender_concept_id", "words": {"8507": "male", "8532": "female"}},
    *({**PRESSURE, "column": when, "when": when, **YEAR} for when in ("first", "last", "mean", "min", "max")),
    {"column": "tests", "table": "measurement", "concept": [3000483], "when": "count", **YEAR},
    {**PRESSURE, "column": "glucose", "concept": [3000483], "unit_concept": 8840, "when": "mean"},
    {
        "column": "smoking",
        "table": "observation",
        "concept": [40766362],
        "value": "value_as_concept_id",
        "words": {str(concept): word for word, concept in clinic.SMOKING_CONCEPTS.items()},
        "when": "last",
    },
    {"column": "ill", "table": "condition_occurrence", "concept": [clinic.DIABETES], "descendants": True, "when": "any"},
]  # fmt: skip
PANEL = {"column": "sbp", "resource": "Observation", "code": [f"{LOINC}|8480-6"], "value": "quantity", "unit": "mm[Hg]"}
FHIR = [
    {"column": "age", "resource": "Patient", "value": "age"},
    {"column": "sex", "resource": "Patient", "value": "gender"},
    *({**PANEL, "column": when, "when": when, **YEAR} for when in ("first", "last", "mean", "min", "max")),
    {"column": "tests", "resource": "Observation", "code": [f"{LOINC}|2339-0"], "when": "count", **YEAR},
    {**PANEL, "column": "glucose", "code": [f"{LOINC}|2339-0"], "unit": "mg/dL", "when": "mean"},
    {
        "column": "smoking",
        "resource": "Observation",
        "code": [f"{LOINC}|72166-2"],
        "value": "concept",
        "words": {f"{SNOMED}|{code}": word for word, code in clinic.SMOKING.items()},
        "when": "last",
    },
    {"column": "ill", "resource": "Condition", "code": [f"{SNOMED}|44054006"], "when": "any"},
]


class Cdm:
    """A database of the model that a test may spoil, and a declaration about it."""

    def __init__(self, url: str, root: Path, people: clinic.Clinic, schema: str | None = None) -> None:
        made = url.replace("sqlite:///", f"sqlite:///{root}/")
        self.engine, self.tables = clinic.database(people, made, INDEX, schema)
        self.url, self.root, self.schema = url, root, schema

    def source(self, *columns: dict[str, Any], cohort: Any = None, **more: Any) -> Any:
        where = {"schema": self.schema} if self.schema else {}
        about = {"kind": "omop", "url": self.url, "cohort": cohort or {"id": 1}, "columns": list(columns or [PRESSURE])}
        return parse({**where, **about, **more})

    def load(self, *columns: dict[str, Any], **more: Any) -> Any:
        return load(self.source(*columns, **more), self.root, "north")

    def cells(self, *columns: dict[str, Any], **more: Any) -> list[Any]:
        """The first declared column's."""
        return list(self.load(*columns, **more).columns.values())[2].tolist()

    def refusal(self, kind: Any, *columns: dict[str, Any], **more: Any) -> str:
        return refusal(self.source(*columns, **more), self.root, kind)

    def say(self, statement: str, *values: dict[str, Any]) -> None:
        from sqlalchemy import text

        with self.engine.begin() as connection:
            connection.execute(text(statement), list(values) or None)


@pytest.fixture
def cdm(tmp_path: Path) -> Iterator[Cdm]:
    """Three patients in SQLite, nothing known of them but what a test adds."""
    made = Cdm("sqlite:///cdm.db", tmp_path, clinic.Clinic(clinic.made(3, 0).people, []))
    yield made
    made.engine.dispose()


def measured(cdm: Cdm, *rows: tuple[Any, ...], table: str = "measurement") -> None:
    """(person, day, value, more…)"""
    for number, (person, day, value, *more) in enumerate(rows, 1):
        row = {
            "measurement_id": number,
            "person_id": clinic.FIRST + person,
            "measurement_concept_id": 3004249,
            "measurement_date": dt.date.fromisoformat(day),
            "measurement_type_concept_id": clinic.EHR,
            "value_as_number": value,
            "unit_concept_id": 8876,
            **(more[0] if more else {}),
        }
        with cdm.engine.begin() as connection:
            connection.execute(cdm.tables[table].insert(), row)


# ── what becomes of what ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["sqlite", "postgresql"])
def hospital(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Cdm, clinic.Clinic]]:
    """Forty patients and all that happened to them, in a file and on a server."""
    people = clinic.made(40, 4, seed=3)
    if request.param == "sqlite":
        made = Cdm("sqlite:///cdm.db", tmp_path, people)
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        made = Cdm(postgres.database(f"cdm{next(DATABASES)}"), tmp_path, people, "cdm")
    yield made, people
    made.engine.dispose()


def test_a_cohort_gives_what_a_plain_loop_over_its_events_gives(hospital: Any) -> None:
    made, people = hospital
    table = made.load(*OMOP)
    assert table.columns["patient_id"].tolist() == [str(person.id) for person in people.people]
    assert set(table.columns["index_date"]) == {"2025-06-01"}
    for row, person in enumerate(people.people):
        mine = sorted((e for e in people.events if e.person == person.id and e.at.date() <= INDEX), key=lambda e: e.at)
        year = [e for e in mine if e.at.date() >= INDEX - dt.timedelta(365)]
        sbp = [e.value for e in year if e.kind == "sbp"]
        glucose = [e.value for e in mine if e.kind == "glucose"]
        born = person.born
        expected = {
            "age": INDEX.year - born.year - ((INDEX.month, INDEX.day) < (born.month, born.day)),
            "sex": person.gender,
            **dict(zip(("first", "last", "mean", "min", "max"), _five(sbp), strict=True)),
            "tests": sum(e.kind == "glucose" for e in year),
            "glucose": _five(glucose)[2],
            "smoking": next((e.value for e in reversed(mine) if e.kind == "smoking"), ""),
            "ill": float(any(e.kind == "diabetes" for e in mine)),
        }
        for name, value in expected.items():
            cell = table.columns[name][row]
            assert cell == (value if isinstance(value, str) else pytest.approx(value, rel=1e-14, nan_ok=True)), name


def _five(values: list[float]) -> tuple[float, ...]:
    if not values:
        return (np.nan,) * 5
    return values[0], values[-1], sum(values) / len(values), min(values), max(values)


def test_the_same_patients_as_a_fhir_export_are_the_same_table_bit_for_bit(hospital: Any) -> None:
    made, people = hospital
    clinic.export(clinic.resources(people), made.root / "export")
    fhir = parse({"kind": "fhir", "path": "export", "index": {"date": INDEX}, "columns": FHIR})
    assert load(fhir, made.root, "north").fingerprint() == made.load(*OMOP).fingerprint()


def test_a_cohort_asked_in_parts_is_the_same(hospital: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = hospital
    whole = made.load(*OMOP).fingerprint()
    monkeypatch.setattr(omop, "AT_ONCE", 7)
    assert made.load(*OMOP).fingerprint() == whole


def test_a_query_is_a_cohort_and_is_taken_literally(hospital: Any) -> None:
    made, people = hospital
    prefix = f"{made.schema}." if made.schema else ""
    query = f"""
        WITH seen AS (SELECT person_id, max(visit_start_date) AS day FROM {prefix}visit_occurrence WHERE '12:30%' LIKE '12:%' GROUP BY person_id)
        SELECT person_id AS subject_id, day AS cohort_start_date FROM seen WHERE day < '2025-01-01';  -- :comment
    """
    table = made.load(PRESSURE, cohort={"query": query})
    last = {e.person: e.at.date() for e in sorted(people.events, key=lambda e: e.at) if e.kind == "visit"}
    expected = {str(p): day.isoformat() for p, day in sorted(last.items()) if day < dt.date(2025, 1, 1)}
    assert dict(zip(table.columns["patient_id"], table.columns["index_date"], strict=True)) == expected
    assert 0 < len(expected) < 40


def test_the_database_cannot_be_written_and_all_statements_see_one_state(hospital: Any) -> None:
    made, _ = hospital
    name = made.tables["death"].fullname
    with sql.opened(made.url, made.root, "north", "`url`", snapshot=True) as database:
        before = database.literally(f"SELECT count(*) FROM {name}")[1][0][0]
        with pytest.raises(DataContractError, match="expected the database to answer"):
            database.literally(f"DELETE FROM {name}")
    with sql.opened(made.url, made.root, "north", "`url`", snapshot=True) as database:
        assert database.literally(f"SELECT count(*) FROM {name}")[1][0][0] == before
        if made.schema:  # a file of SQLite is locked for as long
            made.say(f"DELETE FROM {name}")
            assert database.literally(f"SELECT count(*) FROM {name}")[1][0][0] == before > 0


# ── one by one ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_last_of_one_day_is_by_its_time_and_then_by_its_id(cdm: Cdm) -> None:
    at = {"measurement_datetime": dt.datetime(2025, 5, 1, 9)}
    measured(
        cdm,
        (0, "2025-05-01", 3, at),
        (0, "2025-05-01", 1),
        (0, "2025-05-01", 2),
        (1, "2025-05-01", 9),
        (1, "2025-05-01", 8),
    )
    assert cdm.cells()[:2] == [3, 8]
    assert cdm.cells({**PRESSURE, "when": "first"})[:2] == [1, 9]


def test_the_days_of_a_window_are_its_ends_too(cdm: Cdm) -> None:
    days = ("2025-05-24", "2025-05-25", "2025-06-01", "2025-06-02")
    measured(cdm, *((0, day, 1) for day in days))
    count = {"column": "n", "table": "measurement", "concept": [3004249], "when": "count"}
    assert cdm.cells({**count, "window_days": [-7, 0]})[0] == 2
    assert cdm.cells({**count, "window_days": [1, 30]})[0] == 1
    assert cdm.cells(count)[0] == 3


def test_death_and_visits_need_no_concept(cdm: Cdm) -> None:
    cdm.say(f"INSERT INTO death (person_id, death_date) VALUES ({clinic.FIRST}, '2025-06-20')")
    died = {"column": "died", "table": "death", "when": "any", "window_days": [0, 30]}
    assert cdm.cells(died) == [1, 0, 0]
    assert cdm.cells({**died, "table": "visit_occurrence"}) == [0, 0, 0]


def test_drugs_have_a_supply_and_observations_have_words(cdm: Cdm) -> None:
    for number, (day, supply) in enumerate([("2025-05-01", 30), ("2025-05-20", 90), ("2025-05-25", None)], 1):
        cdm.say(
            "INSERT INTO drug_exposure (drug_exposure_id, person_id, drug_concept_id, drug_exposure_start_date, drug_exposure_end_date,"
            " drug_type_concept_id, days_supply) VALUES (:id, :who, 44826459, :day, :day, 0, :supply)",
            {"id": number, "who": clinic.FIRST, "day": day, "supply": supply},
        )
    cdm.say("UPDATE concept SET standard_concept = 'S'")
    supply = {
        "column": "supply",
        "table": "drug_exposure",
        "concept": [44826459],
        "value": "days_supply",
        "when": "last",
    }
    assert cdm.cells(supply)[0] == 90
    assert cdm.cells({"column": "n", "table": "drug_exposure", "concept": [44826459], "when": "count"}) == [3, 0, 0]
    for number, (who, said) in enumerate([(0, " daily "), (1, "Never"), (2, "")]):
        cdm.say(
            "INSERT INTO observation (observation_id, person_id, observation_concept_id, observation_date, observation_type_concept_id,"
            " value_as_string) VALUES (:id, :who, 40766362, '2025-05-01', 0, :said)",
            {"id": number, "who": clinic.FIRST + who, "said": said},
        )
    smoking = {
        "column": "smoking",
        "table": "observation",
        "concept": [40766362],
        "value": "value_as_string",
        "when": "last",
    }
    assert cdm.cells(smoking) == ["daily", "Never", ""]
    assert cdm.cells({**smoking, "words": {"daily": "yes"}, "other": "no"}) == ["yes", "no", ""]
    assert "that `words` lacks" in cdm.refusal(DataContractError, {**smoking, "words": {"daily": "yes"}})


def test_descendants_of_a_concept_count_only_where_that_is_declared(cdm: Cdm) -> None:
    cdm.say(
        "INSERT INTO condition_occurrence (condition_occurrence_id, person_id, condition_concept_id, condition_start_date,"
        f" condition_type_concept_id) VALUES (1, {clinic.FIRST}, {clinic.TYPE_2}, '2020-01-01', 0)"
    )
    ill = {"column": "ill", "table": "condition_occurrence", "concept": [clinic.DIABETES], "when": "any"}
    assert "an event of column 'ill' somewhere in table 'condition_occurrence', found none" in cdm.refusal(
        DataContractError, ill
    )
    assert cdm.cells({**ill, "rare": True}) == [0, 0, 0]
    assert cdm.cells({**ill, "descendants": True}) == [1, 0, 0]
    assert cdm.cells({**ill, "descendants": True, "window_days": [-7, 0]}) == [0, 0, 0]


def test_a_partial_birthday_is_the_middle_of_what_is_known(cdm: Cdm) -> None:
    for number, born in enumerate(["1960, NULL, NULL", "1960, 6, NULL", "1960, 5, 31"]):
        cdm.say(
            f"UPDATE person SET (year_of_birth, month_of_birth, day_of_birth) = ({born}) WHERE person_id = {clinic.FIRST + number}"
        )
    assert cdm.cells(OMOP[0]) == [64, 64, 65]


def test_who_enters_a_cohort_twice_is_refused_or_enters_first_or_last(cdm: Cdm) -> None:
    cdm.say(f"INSERT INTO cohort VALUES (1, {clinic.FIRST}, '2024-01-01', '2024-01-01')")
    assert "found fewer than 10 who enter several times" in cdm.refusal(DataContractError)
    days = [cdm.load(OMOP[0], cohort={"id": 1, "entry": entry}).columns["index_date"][0] for entry in ("first", "last")]
    assert days == ["2024-01-01", "2025-06-01"]


ODD = {
    "in another unit": {"unit_concept_id": 8840},
    "in another unit: ": {"unit_concept_id": None},
    "with a comparator": {"operator_concept_id": 4172704},
}


@pytest.mark.parametrize("says", ODD)
def test_a_measurement_that_does_not_fit_is_refused_or_left_out(cdm: Cdm, says: str) -> None:
    measured(cdm, (0, "2025-05-01", 120), (0, "2025-05-02", 1, ODD[says]), (0, "2025-05-03", None))
    assert f"found fewer than 10 {says.strip()}" in cdm.refusal(DataContractError)
    assert cdm.cells({**PRESSURE, "misfits": 0.5})[0] == 120
    if "unit" in says:
        assert cdm.cells({**PRESSURE, "convert": {"8840": 7.5, "0": 7.5}})[0] == 7.5


def test_new_rows_change_the_fingerprint_and_nothing_else_does(cdm: Cdm) -> None:
    measured(cdm, (0, "2025-05-01", 120), (1, "2025-05-01", 130))
    before = cdm.load().fingerprint()
    cdm.say("UPDATE measurement SET measurement_source_value = 'x'")
    assert cdm.load().fingerprint() == before
    cdm.say("UPDATE measurement SET value_as_number = 121 WHERE measurement_id = 1")
    assert cdm.load().fingerprint() != before


# ── what is wrong ────────────────────────────────────────────────────────────────────────────────────────────────────

WRONG: list[tuple[str, Any, str]] = [
    ("DROP TABLE measurement", DataContractError, "expected table 'measurement' of OMOP CDM 5.4, found no such table"),
    ("ALTER TABLE person DROP COLUMN year_of_birth", DataContractError, "found no column year_of_birth"),
    ("DELETE FROM cohort", DataContractError, "expected patients in the cohort, found none"),
    (f"INSERT INTO cohort VALUES (1, {CANARY}, '2024-01-01', '2024-01-01')", DataContractError, "in table 'person', found fewer than 10"),
    (f"UPDATE cohort SET subject_id = 'x{CANARY}'", DataContractError, "expected a whole subject_id"),
    (f"UPDATE cohort SET cohort_start_date = '{CANARY}'", DataContractError, "expected dates in cohort_start_date"),
    ("UPDATE measurement SET measurement_date = '2025-05-01x'", DataContractError, "expected dates in measurement_date"),
    ("UPDATE measurement SET measurement_datetime = '2025-05-01 25:00'", DataContractError, "moments in measurement_datetime"),
    (f"UPDATE measurement SET value_as_number = 'x{CANARY}'", DataContractError, "fewer than 10 with another kind of value"),
    ("UPDATE person SET year_of_birth = 2030", DataContractError, "to be born before they enter the cohort"),
    ("UPDATE person SET gender_concept_id = 8521", DataContractError, "to have every concept of gender_concept_id"),
    ("DELETE FROM concept WHERE concept_id = 3004249", StudyError, "that the vocabulary has, found none 3004249"),
    ("UPDATE concept SET standard_concept = NULL", StudyError, "expected standard concepts, which records bear, found others: 3004249"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "kind", "says"), WRONG, ids=range(len(WRONG)))
def test_a_database_that_is_no_such_model_is_refused_in_one_line(cdm: Cdm, spoil: str, kind: Any, says: str) -> None:
    measured(cdm, (0, "2025-05-01", 120))
    cdm.say(spoil)
    assert says in cdm.refusal(kind, *OMOP[:2], PRESSURE)


def test_a_cohort_query_without_its_columns_or_that_fails_is_refused(cdm: Cdm) -> None:
    other = {"query": f"SELECT subject_id AS '{CANARY}' FROM cohort"}
    said = cdm.refusal(DataContractError, cohort=other)
    assert "found another number of subject_id and cohort_start_date: name them with AS" in said
    broken = cdm.refusal(DataContractError, cohort={"query": f"SELECT {CANARY}x"})
    assert "expected the database to answer, found OperationalError: check `url`, `schema` and `cohort`" in broken


def test_a_schema_that_is_not_there_is_named(cdm: Cdm) -> None:
    said = cdm.refusal(DataContractError, vocabulary="elsewhere", cohort={"id": 1, "schema": "results"})
    assert "expected table 'cohort' of OMOP CDM 5.4 in schema 'results'" in said or "expected the database" in said


@pytest.mark.parametrize(
    "wrong",
    [
        {"table": "person"},
        {"table": "note"},
        {"concept": []},
        {"concept": [0]},
        {"value": None},
        {"value": "days_supply"},
        {"value": "value_as_concept_id", "unit_concept": None},
        {"unit_concept": None},
        {"when": "any"},
        {"words": {"1": "a"}},
        {"convert": {"x": 1}},
        {"column": "index_date"},
    ],
    ids=str,
)
def test_declarations_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Cdm.source(_Nowhere, {**PRESSURE, **wrong})  # type: ignore[arg-type]


class _Nowhere:
    url, schema = "sqlite:///x", None


@pytest.mark.parametrize(
    "more",
    [
        {"cohort": {"id": 1, "query": "SELECT 1"}},
        {"cohort": {"query": "DELETE FROM cohort"}},
        {"cohort": {"entry": "first"}},
        {"schema": 'cdm"; DROP TABLE x'},
        {"vocabulary": "a.b.c"},
    ],
    ids=str,
)
def test_a_cohort_and_a_schema_are_declared_in_one_way(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Cdm.source(_Nowhere, PRESSURE, **more)  # type: ignore[arg-type]


# ── in a study ───────────────────────────────────────────────────────────────────────────────────────────────────────

STUDY = """
name = "risk"
patient_id = "patient_id"
event_time = "index_date"
features = [
  { type = "number", name = "age", range = [18, 110] },
  { type = "category", name = "sex", categories = ["female", "male"] },
  { type = "number", name = "last", unit = "mmHg", range = [60, 260] },
]
target = { kind = "binary", column = "ill", positive = [1], negative = [0] }
model = { kind = "logistic" }
algorithm = "fedavg"
"""


def test_a_hospital_trains_on_a_cohort_knows_new_rows_and_drafts_a_suite(tmp_path: Path) -> None:
    from fedrounds.core.operations import Gate
    from fedrounds.core.plan import build
    from fedrounds.core.study import Study
    from fedrounds.sources.site_file import SiteFile
    from fedrounds.tasks import draft
    from fedrounds.tasks.ward import Ward

    made = Cdm("sqlite:///cdm.db", tmp_path, clinic.made(60, 5))
    study = Study.model_validate(tomllib.loads(STUDY))
    site = SiteFile(name="north", source=made.source(*OMOP))
    ward = Ward(site, build(study), tmp_path)
    assert ward.load() == 60
    first = ward.fingerprint
    made.say("UPDATE visit_occurrence SET visit_source_value = 'x'")  # no column is made of visits
    assert (ward.load(), ward.fingerprint) == (60, first)
    made.say(f"DELETE FROM cohort WHERE subject_id = {clinic.FIRST}")
    assert ward.load() == 59
    assert ward.fingerprint != first
    made.say("DROP TABLE cohort")
    assert (ward.load(strict=False), ward.fingerprint) == (0, "")
    made.engine.dispose()
    clinic.export(clinic.resources(clinic.made(60, 5)), tmp_path / "export")
    fhir = parse({"kind": "fhir", "path": "export", "index": {"date": INDEX}, "columns": FHIR})
    ward = Ward(SiteFile(name="north", source=fhir), build(study), tmp_path)
    assert (ward.load(), ward.fingerprint) == (60, first)
    table = load(fhir, tmp_path, "north")
    asked = draft.draft(study, Gate(), draft.evidence(study, {"north": (table, ())}))
    assert {"age", "sex", "last", "ill", "patient_id"} <= {about["kwargs"].get("column") for about in asked}
