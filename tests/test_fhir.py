"""A FHIR bulk export becomes a table: exact numbers, versions and references as the standard has them, and one clear line where it cannot be."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import clinic
import numpy as np
import pytest
from clinic import LOINC, SNOMED, concept, quantity
from declared import CANARY, parse, refusal
from pydantic import ValidationError

from fedrounds.core.errors import DataContractError, StudyError
from fedrounds.core.table import Table
from fedrounds.sources import load, ndjson

SBP, GLUCOSE, SMOKING, DIABETES = f"{LOINC}|8480-6", f"{LOINC}|2339-0", f"{LOINC}|72166-2", f"{SNOMED}|44054006"
PRESSURE = {
    "column": "sbp",
    "resource": "Observation",
    "code": [SBP],
    "value": "quantity",
    "unit": "mm[Hg]",
    "when": "last",
}


def source(*columns: dict[str, Any], index: dict[str, Any] | None = None) -> Any:
    return parse({"kind": "fhir", "path": "export", "index": index or {"date": "2025-06-01"}, "columns": list(columns)})


def patient(id_: str = "1", **more: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": id_, "birthDate": "1960-05-31", "gender": "female", **more}


def pressure(value: Any, day: str = "2025-05-01", id_: str = "a", **more: Any) -> dict[str, Any]:
    about = {"code": concept(LOINC, "8480-6"), "subject": {"reference": "Patient/1"}, "effectiveDateTime": day}
    found = {"valueQuantity": quantity(value, "mm[Hg]")}
    return {"resourceType": "Observation", "id": id_, "status": "final", **about, **found, **more}


def condition(onset: str, id_: str = "c", who: str = "1", **more: Any) -> dict[str, Any]:
    about = {"code": concept(SNOMED, "44054006"), "subject": {"reference": f"Patient/{who}"}, "onsetDateTime": onset}
    return {"resourceType": "Condition", "id": id_, "clinicalStatus": concept("x", "active"), **about, **more}


def encounter(day: str, id_: str, who: str = "1", class_: str = "AMB") -> dict[str, Any]:
    about = {"status": "finished", "class": {"code": class_}, "subject": {"reference": f"Patient/{who}"}}
    return {"resourceType": "Encounter", "id": id_, **about, "period": {"start": day}}


def line(resource: dict[str, Any]) -> str:
    return json.dumps(resource) + "\n"


def loaded(folder: Path, resources: list[dict[str, Any]], *columns: dict[str, Any], index: Any = None) -> Table:
    clinic.export(resources, folder / "export")
    return load(source(*columns, index=index), folder, "north")


def cells(table: Table, name: str = "sbp") -> list[Any]:
    return table.columns[name].tolist()


# ── what becomes of what ─────────────────────────────────────────────────────────────────────────────────────────────


def test_every_resource_of_the_made_up_hospital_keeps_to_the_published_schema() -> None:
    from fhir.resources.R4B import get_fhir_model_class

    kinds = {}
    for resource in clinic.resources(clinic.made(12, 3)):
        kind = resource["resourceType"]
        get_fhir_model_class(kind).model_validate(resource)
        kinds[kind] = kinds.get(kind, 0) + 1
    assert kinds.keys() == {"Patient", "Observation", "Condition", "Encounter"}
    assert kinds["Observation"] > 50


def test_each_when_gives_its_number(tmp_path: Path) -> None:
    days = {"2024-05-31": 90, "2024-06-01": 120, "2025-01-01": 131, "2025-06-01T23:59:00-05:00": 118, "2025-06-02": 200}
    found = [patient(), patient("2"), *(pressure(v, d, f"o{v}") for d, v in days.items())]
    whens = ("first", "last", "mean", "min", "max", "count", "any")
    columns = [
        {**PRESSURE, "column": when, "when": when, "window_days": [-365, 0]}
        | ({"value": None, "unit": None} if when in ("count", "any") else {})
        for when in whens
    ]
    table = loaded(tmp_path, found, *columns)
    assert {name: cells(table, name)[0] for name in whens} == {
        "first": 120, "last": 118, "mean": 123, "min": 118, "max": 131, "count": 3, "any": 1
    }  # fmt: skip
    assert [cells(table, name)[1] for name in ("count", "any")] == [0, 0]
    assert all(np.isnan(cells(table, name)[1]) for name in whens[:5])


def test_a_table_has_a_row_a_patient_in_the_order_of_ids_with_the_index_day(tmp_path: Path) -> None:
    people = [patient("b"), patient("a", birthDate="1960-06-02", gender="male"), patient("c", birthDate="1960")]
    age = {"column": "age", "resource": "Patient", "value": "age"}
    sex = {"column": "sex", "resource": "Patient", "value": "gender"}
    table = loaded(tmp_path, people, age, sex)
    assert list(table.columns) == ["patient_id", "index_date", "age", "sex"]
    assert cells(table, "patient_id") == ["a", "b", "c"]
    assert cells(table, "index_date") == ["2025-06-01"] * 3
    assert cells(table, "age") == [64, 65, 64]
    assert cells(table, "sex") == ["male", "female", "female"]


def test_a_component_is_found_where_the_observation_is_a_panel(tmp_path: Path) -> None:
    panel = pressure(0)
    del panel["valueQuantity"]
    panel |= {"code": concept(LOINC, "85354-9")}
    panel["component"] = [
        {"code": concept(LOINC, "8462-4"), "valueQuantity": quantity(80, "mm[Hg]")},
        {"code": concept(LOINC, "8480-6"), "valueQuantity": quantity(121, "mm[Hg]")},
    ]
    assert cells(loaded(tmp_path, [patient(), panel], PRESSURE)) == [121]


def test_words_stand_for_codes_and_an_unknown_code_is_refused_unless_it_has_a_word(tmp_path: Path) -> None:
    def smoking(code: str, day: str, who: str = "1") -> dict[str, Any]:
        codings = {"coding": [{"system": "urn:local", "code": "x"}, {"system": SNOMED, "code": code}]}
        more = {"code": concept(LOINC, "72166-2"), "subject": {"reference": f"Patient/{who}"}}
        found = pressure(0, day, f"{who}{day}", **more, valueCodeableConcept=codings)
        del found["valueQuantity"]
        return found

    people = [patient(), patient("2"), patient("3")]
    column = {"column": "smoking", "resource": "Observation", "code": [SMOKING], "value": "concept", "when": "last"}
    column["words"] = {f"{SNOMED}|449868002": "yes", f"{SNOMED}|266919005": "no", f"{SNOMED}|266927001": ""}
    found = [*people, smoking("449868002", "2024-01-01"), smoking("266919005", "2025-01-01")]
    found += [smoking("266927001", "2025-02-01"), smoking("449868002", "2025-01-01", "2")]
    assert cells(loaded(tmp_path, found, column), "smoking") == ["no", "yes", ""]
    clinic.export([*found, smoking(CANARY, "2025-03-01")], tmp_path / "export")
    assert "fewer than 10 with a code that `words` lacks" in refusal(source(column), tmp_path, DataContractError)
    assert cells(load(source({**column, "other": "no"}), tmp_path, "north"), "smoking") == ["no", "yes", ""]


def test_a_whole_number_is_a_value_too(tmp_path: Path) -> None:
    score = pressure(0, valueInteger=14)
    del score["valueQuantity"]
    column = {**PRESSURE, "value": "integer", "unit": None}
    assert cells(loaded(tmp_path, [patient(), score], column)) == [14]
    clinic.export([patient(), pressure(14)], tmp_path / "export")
    assert "with another kind of value" in refusal(source(column), tmp_path, DataContractError)


def test_a_condition_counts_by_onset_status_and_verification(tmp_path: Path) -> None:
    flag = {"column": "ill", "resource": "Condition", "code": [DIABETES], "when": "any"}
    people = [patient(str(n)) for n in range(1, 6)]
    refuted = {"verificationStatus": concept("x", "refuted")}
    wrong = {"verificationStatus": concept("x", "entered-in-error")}
    found = [
        condition("2020-01-01"),
        condition("2025-06-02", "c2", "2"),
        condition("2020", "c3", "3", clinicalStatus=concept("x", "resolved")),
        condition("2020", "c4", "4", **refuted),
        condition("2020", "c5", "5", **wrong),
    ]
    assert cells(loaded(tmp_path, people + found, flag), "ill") == [1, 0, 1, 0, 0]
    assert cells(load(source({**flag, "status": ["active"]}), tmp_path, "north"), "ill") == [1, 0, 0, 0, 0]


# ── the index day ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_index_day_is_a_first_condition_or_an_encounter_and_who_has_none_has_no_row(tmp_path: Path) -> None:
    found = [patient(), patient("2"), condition("2021-03-04", "c1"), condition("2020-02-01", "c2")]
    found += [encounter("2019-01-01", "e1"), encounter("2024-01-01", "e2", class_="IMP"), encounter("2024-05-05", "e3")]
    found += [pressure(120, "2020-01-31"), pressure(140, "2020-02-02", "b")]
    table = loaded(tmp_path, found, PRESSURE, index={"condition": [DIABETES]})
    assert [cells(table, name) for name in table.columns] == [["1"], ["2020-02-01"], [120]]
    for index, day in (
        ({"encounter": "first"}, "2019-01-01"),
        ({"encounter": "last"}, "2024-05-05"),
        ({"encounter": "last", "class": ["IMP"]}, "2024-01-01"),
    ):
        assert cells(load(source(PRESSURE, index=index), tmp_path, "north"), "index_date") == [day]


def test_who_is_not_born_yet_or_dead_already_on_the_index_day_has_no_row(tmp_path: Path) -> None:
    people = [
        patient("1"),
        patient("2", birthDate="2025-06-02"),
        patient("3", deceasedDateTime="2025-05-31"),
        patient("4", deceasedDateTime="2025-06-01T10:00:00Z"),
        patient("5", deceasedBoolean=True),
    ]
    age = {"column": "age", "resource": "Patient", "value": "age"}
    assert cells(loaded(tmp_path, people, age), "patient_id") == ["1", "4", "5"]
    link = [{"other": {"reference": "Patient/5"}, "type": "replaced-by"}]
    clinic.export([*people, patient("6", link=link)], tmp_path / "export")
    assert cells(load(source(age), tmp_path, "north"), "patient_id") == ["1", "4", "5"]


def test_a_code_that_nobody_ever_had_is_refused_unless_it_is_rare(tmp_path: Path) -> None:
    flag = {"column": "ill", "resource": "Condition", "code": [f"{SNOMED}/|44054006"], "when": "any"}
    clinic.export([patient(), condition("2020-01-01")], tmp_path / "export")
    said = refusal(source(flag), tmp_path, DataContractError)
    assert "expected an event of column 'ill' somewhere in the export, found none of any patient at any time" in said
    assert cells(load(source({**flag, "rare": True}), tmp_path, "north"), "ill") == [0]
    assert cells(load(source({**flag, "code": [DIABETES], "window_days": [-7, 0]}), tmp_path, "north"), "ill") == [0]


# ── versions, references, order ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "reference",
    ["Patient/1", "Patient/1/_history/3", "https://ehr.example/fhir/Patient/1", "urn:uuid:1", "urn:oid:1"],
)
def test_every_form_of_reference_leads_to_the_patient(tmp_path: Path, reference: str) -> None:
    assert cells(loaded(tmp_path, [patient(), pressure(120, subject={"reference": reference})], PRESSURE)) == [120]


def test_what_is_about_a_device_or_a_patient_who_is_not_exported_is_left_out(tmp_path: Path) -> None:
    others = [
        pressure(1, id_="x", subject={"reference": "Device/1"}),
        pressure(2, id_="y", subject={"reference": "Patient/9"}),
    ]
    assert cells(loaded(tmp_path, [patient(), pressure(120), *others], PRESSURE)) == [120]


def test_the_newest_version_of_a_resource_stands_wherever_it_is(tmp_path: Path) -> None:
    old, new = {"meta": {"lastUpdated": "2025-05-02T00:00:00Z"}}, {"meta": {"lastUpdated": "2025-05-02T02:00:00+01:00"}}
    versions = [patient(), pressure(100, **old), pressure(120, **new)]
    assert cells(loaded(tmp_path / "a", versions, PRESSURE)) == [120]
    assert cells(loaded(tmp_path / "b", versions[::-1], PRESSURE)) == [120]
    withdrawn = pressure(120, status="entered-in-error", **new)
    assert np.isnan(cells(loaded(tmp_path / "c", [withdrawn, patient(), pressure(100, **old)], PRESSURE))).all()
    recoded = pressure(120, code=concept(LOINC, "1-1"), **new)
    assert np.isnan(cells(loaded(tmp_path / "d", [recoded, patient(), pressure(100, **old)], PRESSURE))).all()
    same = {"column": "n", "resource": "Observation", "code": [SBP], "when": "count"}
    assert cells(loaded(tmp_path / "e", [*versions, pressure(100, id_="b")], same), "n") == [2]
    people = [patient(birthDate="1950-01-01", **new), patient(**old)]
    assert cells(loaded(tmp_path / "f", people, {"column": "age", "resource": "Patient", "value": "age"}), "age") == [
        75
    ]


def test_the_order_of_lines_and_files_and_their_packing_change_nothing(tmp_path: Path) -> None:
    found = list(clinic.resources(clinic.made(30, 3)))
    columns = [PRESSURE, {**PRESSURE, "column": "mean", "when": "mean"}]
    first = loaded(tmp_path, found, *columns).fingerprint()
    clinic.export(found[::-1], tmp_path / "export")
    assert load(source(*columns), tmp_path, "north").fingerprint() == first
    for file in (tmp_path / "export").iterdir():
        half = file.read_text().splitlines(keepends=True)
        (file.parent / f"z{file.name}.gz").write_bytes(gzip.compress("\r\n".join(half[::2]).encode()))
        file.write_text("\ufeff\n" + "".join(half[1::2]))
    assert load(source(*columns), tmp_path, "north").fingerprint() == first


def test_one_file_with_all_types_is_an_export_too(tmp_path: Path) -> None:
    (tmp_path / "all.ndjson").write_text("".join(json.dumps(r) + "\n" for r in (pressure(120), patient())))
    one = source(PRESSURE).model_copy(update={"path": "all.ndjson"})
    assert cells(load(one, tmp_path, "north")) == [120]


def test_memory_grows_with_numbers_and_not_with_what_lines_hold(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    with (tmp_path / "export" / "Observation.ndjson").open("w") as file:
        file.write(line(patient()))
        file.writelines(line(pressure(n, id_=f"o{n}", note=[{"text": "x" * 50_000}])) for n in range(1, 601))
    tracemalloc.start()
    try:
        assert cells(load(source({**PRESSURE, "when": "mean"}), tmp_path, "north")) == [300.5]
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20  # of 29 MiB
    finally:
        tracemalloc.stop()


# ── what does not fit ────────────────────────────────────────────────────────────────────────────────────────────────

ODD = {
    "in another unit": [{"valueQuantity": quantity(16, "kPa")}, {"valueQuantity": {"value": 120, "unit": "mmHg"}}],
    "with a comparator": [{"valueQuantity": {**quantity(250, "mm[Hg]"), "comparator": ">"}}],
    "with another kind of value": [{"valueQuantity": None, "valueString": CANARY}],
    "without a date": [{"effectiveDateTime": None}],
    "of no patient that is named": [
        {"subject": None},
        {"subject": {"reference": "#p1"}},
        {"subject": {"display": CANARY}},
    ],
}


@pytest.mark.parametrize(("says", "more"), [(says, more) for says, all_ in ODD.items() for more in all_])
def test_an_observation_that_does_not_fit_its_column_is_refused_or_left_out(
    tmp_path: Path, says: str, more: Any
) -> None:
    odd = {key: value for key, value in pressure(1, "2025-05-02", "odd", **more).items() if value is not None}
    clinic.export([patient(), pressure(120), odd], tmp_path / "export")
    assert f"column 'sbp' to fit what the site file declares, found fewer than 10 {says}" in refusal(
        source(PRESSURE), tmp_path, DataContractError
    )
    assert cells(load(source({**PRESSURE, "misfits": 0.5}), tmp_path, "north")) == [120]
    assert "but for a share of 0.4" in refusal(source({**PRESSURE, "misfits": 0.4}), tmp_path, DataContractError)


def test_counts_of_ten_and_more_are_told(tmp_path: Path) -> None:
    odd = [pressure(16, id_=f"o{n}", valueQuantity=quantity(16, "kPa")) for n in range(12)]
    clinic.export([patient(), *odd], tmp_path / "export")
    assert "found 12 in another unit:" in refusal(source(PRESSURE), tmp_path, DataContractError)


def test_another_unit_is_converted_where_that_is_declared_and_does_not_matter_outside_the_window(
    tmp_path: Path,
) -> None:
    found = [patient(), pressure(16, valueQuantity=quantity(16, "kPa"))]
    assert cells(loaded(tmp_path, found, {**PRESSURE, "convert": {"kPa": 7.5}})) == [120]
    assert np.isnan(cells(load(source({**PRESSURE, "window_days": [-7, 0]}), tmp_path, "north"))).all()
    bare = [patient(), pressure(1, valueQuantity={"value": 118, "unit": "mm Hg"})]
    assert cells(loaded(tmp_path, bare, {**PRESSURE, "convert": {"mm Hg": 1}})) == [118]
    other = [patient(), pressure(1, valueQuantity={**quantity(16, "kPa"), "system": "urn:x"})]
    clinic.export(other, tmp_path / "export")
    assert "in another unit" in refusal(source({**PRESSURE, "convert": {"kPa": 7.5}}), tmp_path, DataContractError)


def test_an_observation_without_a_result_is_none(tmp_path: Path) -> None:
    absent = pressure(0, "2025-05-02", "b", dataAbsentReason=concept("x", "error"))
    del absent["valueQuantity"]
    count = {"column": "n", "resource": "Observation", "code": [SBP], "when": "count"}
    table = loaded(tmp_path, [patient(), pressure(120), absent], PRESSURE, count)
    assert [cells(table), cells(table, "n")] == [[120], [1]]


# ── malformed input ──────────────────────────────────────────────────────────────────────────────────────────────────


GOOD = line(patient()) + line(pressure(120))
MALFORMED: list[tuple[str | bytes, str]] = [
    ("", "an empty one"),
    (GOOD + line(pressure(CANARY))[:-40], "expected one resource of FHIR a line, found none in line 3"),
    (GOOD + f'"{CANARY}"\n', "found none in line 3"),
    (GOOD + f'{{"Patient": "{CANARY}"}}\n', "found none in line 3"),
    (json.dumps(patient(), indent=1), "found none in line 1"),
    (GOOD.encode() + b'{"resourceType": "Patient", "id": "\xff"}\n', "found none in line 3"),
    (GOOD + '{"resourceType": "Patient", "id": NaN}\n', "found none in line 3"),
    (GOOD + '{"a":' * 100_000 + '"Patient"' + "}" * 100_000, "found none in line 3"),
    (GOOD + line({"resourceType": "Bundle", "type": "transaction", "id": CANARY}), "found a Bundle in line 3"),
    (GOOD + line({"resourceType": "Patient", "gender": "male"}), "type Patient as FHIR R4 describes it, found another form in line 3"),
    (GOOD + line({**patient(), "id": int(CANARY)}), "found another form in line 3"),
    (GOOD + line(patient(f"{CANARY}|2")), "found another form in line 3"),
    (line({"resourceType": "Organization", "id": CANARY}), "found none among fewer than 10 patients"),
    (GOOD + line(patient("2", birthDate=f"{CANARY}")), "found another form in line 3"),
    (GOOD + line(patient("2", gender=CANARY)), "found another form in line 3"),
    (GOOD + line(pressure(CANARY, id_="b")), "type Observation as FHIR R4 describes it, found another form in line 3"),
    (GOOD + line(pressure(1, "2025-02-30", "b")), "found another form in line 3"),
    (GOOD + line(pressure(10**400, id_="b")), "found another form in line 3"),
    (GOOD + line(pressure(1, id_="b", code=CANARY)), "found another form in line 3"),
    (GOOD + line(pressure(1, id_="b", meta={"lastUpdated": CANARY})), "found another form in line 3"),
    (line(pressure(120)), "expected references to patients of this export, found none that leads to one"),
    (line(patient(birthDate="2030-01-01")), "expected patients who live on their index day, found none among fewer than 10"),
    (
        line(patient())
        + "".join(line(pressure(1, id_=s, subject={"reference": f"https://{s}/Patient/1"})) for s in ("a", "b")),
        "references to patients of one server, found 2",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("content", "says"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_export_is_refused_in_one_line(tmp_path: Path, content: str | bytes, says: str) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "all.ndjson").write_bytes(content if isinstance(content, bytes) else content.encode())
    if not content:
        (tmp_path / "export" / "all.ndjson").rename(tmp_path / "all.ndjson")
        one = source(PRESSURE).model_copy(update={"path": "all.ndjson"})
        assert says in refusal(one, tmp_path, DataContractError)
    else:
        assert says in refusal(source(PRESSURE), tmp_path, DataContractError)


def test_damaged_packing_and_endless_lines_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = clinic.export([patient(), pressure(120)], tmp_path / "export") / "z.ndjson.gz"
    whole = gzip.compress(line(patient("2")).encode() * 100)
    for damaged in (whole[:-9], b"no gzip " + CANARY.encode(), whole[:30] + b"\0" * 20 + whole[50:]):
        file.write_bytes(damaged)
        assert "a file that can be read to its end, found a damaged" in refusal(
            source(PRESSURE), tmp_path, DataContractError
        )
    monkeypatch.setattr(ndjson, "LONGEST", 10_000)
    file.write_bytes(gzip.compress(b"{" + b" " * 20_000_000))
    assert "found a longer one" in refusal(source(PRESSURE), tmp_path, DataContractError)


def test_a_folder_without_an_export_is_refused(tmp_path: Path) -> None:
    assert "expected a data file at" in refusal(source(PRESSURE), tmp_path, StudyError)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / f"{CANARY}.json").write_text("{}")
    assert "expected files .ndjson or .ndjson.gz" in refusal(source(PRESSURE), tmp_path, StudyError)


@pytest.mark.parametrize(
    "wrong",
    [
        {"unit": None},
        {"value": None},
        {"when": "any"},
        {"code": []},
        {"code": ["8480-6"]},
        {"code": ["http://loinc.org|8480-6 "]},
        {"words": {"a|b": "c"}},
        {"other": "x"},
        {"value": "concept", "unit": None, "words": {"a|b": "c"}, "when": "mean"},
        {"window_days": [0, -365]},
        {"misfits": 1},
        {"column": "patient_id"},
        {"resource": "Patient"},
    ],
    ids=str,
)
def test_declarations_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        source({**PRESSURE, **wrong})


@pytest.mark.parametrize(
    "index",
    [{"encounter": "first", "date": "2025-01-01"}, {"class": ["IMP"], "date": "2025-01-01"}, {"condition": ["x"]}],
    ids=str,
)
def test_an_index_day_is_declared_in_one_way(index: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        source(PRESSURE, index=index)
