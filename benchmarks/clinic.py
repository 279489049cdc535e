"""A made-up hospital, written as a database of OMOP CDM 5.4 and as a FHIR R4 bulk export of the same patients: for tests and the benchmark.

Tables and columns are those of the CDM's published definition (https://ohdsi.github.io/CommonDataModel/cdm54.html), resources those of
https://hl7.org/fhir/R4; the tests validate each with `fhir.resources`.
"""

from __future__ import annotations

import datetime as dt
import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LOINC, SNOMED, UCUM = "http://loinc.org", "http://snomed.info/sct", "http://unitsofmeasure.org"
HL7 = "http://terminology.hl7.org/CodeSystem"
LOINC_CODES = {"sbp": "8480-6", "dbp": "8462-4", "glucose": "2339-0", "smoking": "72166-2"}
SMOKING = {"never": "266919005", "former": "8517006", "daily": "449868002"}
CONCEPTS = {"sbp": 3004249, "dbp": 3012888, "glucose": 3000483, "smoking": 40766362}
DIABETES, TYPE_2 = 201820, 201826  # the second is below the first
UNITS = {"mm[Hg]": 8876, "mg/dL": 8840, "mmol/L": 8753}
SMOKING_CONCEPTS = {"never": 45879404, "former": 45883458, "daily": 45881517}
GENDERS = {"female": 8532, "male": 8507}
KEPT = {3004249: "S", 3012888: "S", 3000483: "S", 40766362: "S", DIABETES: "S", TYPE_2: "S", 44826459: None}
FIRST = 100_001  # the first patient's number


class Person(NamedTuple):
    id: int
    born: dt.date
    gender: str
    died: dt.date | None


class Event(NamedTuple):
    person: int
    kind: str
    at: dt.datetime
    value: float | str | None
    unit: str = ""


class Clinic(NamedTuple):
    people: list[Person]
    events: list[Event]


def made(patients: int, visits: int, seed: int = 0, first: int = FIRST) -> Clinic:
    """So many patients with about so many visits each from 2023 to 2025; a visit measures both blood pressures and glucose."""
    rng = np.random.default_rng(seed)
    people, events = [], []
    for number in range(first, first + patients):
        born = dt.date(1930, 1, 1) + dt.timedelta(days=int(rng.integers(0, 25_000)))
        died = dt.date(2026, 1, 1) + dt.timedelta(days=int(rng.integers(0, 90))) if rng.random() < 0.1 else None
        people.append(Person(number, born, str(rng.choice(list(GENDERS))), died))
        sick = rng.random() < 0.4
        for _ in range(int(rng.integers(0, 2 * visits + 1)) if visits > 1 else visits):
            at = dt.datetime(2023, 1, 1, 8) + dt.timedelta(minutes=int(rng.integers(0, 1095 * 1440)))
            pressure = rng.normal(135 if sick else 122, 12)
            events += [
                Event(number, "visit", at, None),
                Event(number, "sbp", at, float(round(pressure)), "mm[Hg]"),
                Event(number, "dbp", at, float(round(pressure * 0.62 + rng.normal(0, 5))), "mm[Hg]"),
                Event(number, "glucose", at, round(float(rng.normal(140 if sick else 95, 15)), 1), "mg/dL"),
            ]
            if rng.random() < 0.3:
                events.append(Event(number, "smoking", at, str(rng.choice(list(SMOKING)))))
        if sick:
            at = dt.datetime(2020, 1, 1) + dt.timedelta(days=int(rng.integers(0, 2000)))
            events.append(Event(number, "diabetes", at, None))
    return Clinic(people, events)


# --- FHIR -------------------------------------------------------------------------------------------------------------


def concept(system: str, code: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}]}


def quantity(value: float, unit: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "system": UCUM, "code": unit}


def resources(clinic: Clinic) -> Iterator[dict[str, Any]]:
    """Patients first, then what happened to them; a visit's two blood pressures are one panel."""
    for person in clinic.people:
        yield {
            "resourceType": "Patient",
            "id": str(person.id),
            "meta": {"lastUpdated": "2026-01-01T00:00:00Z"},
            "name": [{"family": f"Made-up-{person.id}"}],
            "gender": person.gender,
            "birthDate": person.born.isoformat(),
            **({"deceasedDateTime": person.died.isoformat()} if person.died else {}),
        }
    panels: dict[tuple[int, dt.datetime], list[dict[str, Any]]] = {}
    for number, event in enumerate(clinic.events):
        about = {
            "id": f"{event.person}-{number}",
            "meta": {"lastUpdated": "2026-01-01T00:00:00Z"},
            "subject": {"reference": f"Patient/{event.person}"},
        }
        at = event.at.isoformat() + "+00:00"
        if event.kind in ("sbp", "dbp"):
            component = {"code": concept(LOINC, LOINC_CODES[event.kind])}
            component["valueQuantity"] = quantity(event.value, event.unit)
            key = (event.person, event.at)
            if key not in panels:
                panels[key] = [component]
                continue
            components = [*panels[key], component]
            yield _observation(about, at, concept(LOINC, "85354-9"), {"component": components}, "vital-signs")
        elif event.kind == "glucose":
            value = {"valueQuantity": quantity(event.value, event.unit)}
            yield _observation(about, at, concept(LOINC, LOINC_CODES["glucose"]), value, "laboratory")
        elif event.kind == "smoking":
            value = {"valueCodeableConcept": concept(SNOMED, SMOKING[event.value])}
            yield _observation(about, at, concept(LOINC, LOINC_CODES["smoking"]), value, "social-history")
        elif event.kind == "diabetes":
            yield {
                "resourceType": "Condition",
                **about,
                "clinicalStatus": concept(f"{HL7}/condition-clinical", "active"),
                "verificationStatus": concept(f"{HL7}/condition-ver-status", "confirmed"),
                "code": concept(SNOMED, "44054006"),
                "onsetDateTime": at,
            }
        else:
            yield {
                "resourceType": "Encounter",
                **about,
                "status": "finished",
                "class": {"system": f"{HL7}/v3-ActCode", "code": "AMB"},
                "period": {"start": at, "end": at},
            }


def _observation(
    about: dict[str, Any], at: str, code: dict[str, Any], value: dict[str, Any], kind: str
) -> dict[str, Any]:
    category = [concept(f"{HL7}/observation-category", kind)]
    found = {"status": "final", "category": category, "code": code, "effectiveDateTime": at, **value}
    return {"resourceType": "Observation", **about, **found}


def export(found: Iterable[dict[str, Any]], folder: Path, packed: bool = False, part: str = "") -> Path:
    """A file a type, as a server's $export gives them; of a large one, several parts."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {}
    for resource in found:
        lines.setdefault(resource["resourceType"], []).append(json.dumps(resource) + "\n")
    for kind, text in lines.items():
        data = "".join(text).encode()
        (folder / f"{kind}{part}.ndjson{'.gz' if packed else ''}").write_bytes(
            gzip.compress(data, 1) if packed else data
        )
    return folder


# --- OMOP -------------------------------------------------------------------------------------------------------------

TABLES = {
    "person": "person_id! gender_concept_id! year_of_birth! month_of_birth day_of_birth birth_datetime race_concept_id! ethnicity_concept_id!"
    " person_source_value gender_source_value",
    "visit_occurrence": "visit_occurrence_id! person_id! visit_concept_id! visit_start_date! visit_start_datetime visit_end_date!"
    " visit_end_datetime visit_type_concept_id! visit_source_value",
    "condition_occurrence": "condition_occurrence_id! person_id! condition_concept_id! condition_start_date! condition_start_datetime"
    " condition_end_date condition_type_concept_id! condition_status_concept_id condition_source_value",
    "measurement": "measurement_id! person_id! measurement_concept_id! measurement_date! measurement_datetime measurement_type_concept_id!"
    " operator_concept_id value_as_number value_as_concept_id unit_concept_id range_low range_high measurement_source_value",
    "observation": "observation_id! person_id! observation_concept_id! observation_date! observation_datetime observation_type_concept_id!"
    " value_as_number value_as_string value_as_concept_id unit_concept_id observation_source_value",
    "drug_exposure": "drug_exposure_id! person_id! drug_concept_id! drug_exposure_start_date! drug_exposure_start_datetime"
    " drug_exposure_end_date! drug_type_concept_id! quantity days_supply drug_source_value",
    "death": "person_id! death_date! death_datetime death_type_concept_id cause_concept_id",
    "cohort": "cohort_definition_id! subject_id! cohort_start_date! cohort_end_date!",
    "concept": "concept_id! concept_name! domain_id! vocabulary_id! concept_class_id! standard_concept concept_code! valid_start_date!"
    " valid_end_date!",
    "concept_ancestor": "ancestor_concept_id! descendant_concept_id! min_levels_of_separation! max_levels_of_separation!",
}
TEXTS = ("name", "value", "string", "code", "domain_id", "vocabulary_id", "class_id", "standard_concept")
EHR = 32817  # the type concept of what comes from a record


def database(clinic: Clinic, url: str, index: dt.date, schema: str | None = None) -> Any:
    """Make the tables and fill them; cohort 1 is everybody from `index` on. Gives the engine, and the tables by name."""
    import sqlalchemy as sa

    data = sa.MetaData(schema=schema)
    tables = {name: sa.Table(name, data, *map(_column, columns.split())) for name, columns in TABLES.items()}
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        if schema:
            connection.execute(sa.schema.CreateSchema(schema))
        data.create_all(connection)
        for name, rows in _rows(clinic, index).items():
            connection.execute(tables[name].insert(), rows)
    return engine, tables


def _column(word: str) -> Any:
    import sqlalchemy as sa

    name = word.rstrip("!")
    if name.endswith("_datetime"):
        kind: Any = sa.DateTime
    elif name.endswith("_date"):
        kind = sa.Date
    elif name in ("value_as_number", "range_low", "range_high") or (name == "quantity"):
        kind = sa.Numeric
    else:
        kind = sa.String if name.endswith(TEXTS) else sa.Integer
    return sa.Column(name, kind, nullable=not word.endswith("!"))


def _rows(clinic: Clinic, index: dt.date) -> dict[str, list[dict[str, Any]]]:
    far = dt.date(2099, 12, 31)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for person in clinic.people:
        rows["person"].append(
            {
                "person_id": person.id,
                "gender_concept_id": GENDERS[person.gender],
                "year_of_birth": person.born.year,
                "month_of_birth": person.born.month,
                "day_of_birth": person.born.day,
                "race_concept_id": 0,
                "ethnicity_concept_id": 0,
            }
        )
        rows["cohort"].append(
            {"cohort_definition_id": 1, "subject_id": person.id, "cohort_start_date": index, "cohort_end_date": index}
        )
        if person.died:
            rows["death"].append({"person_id": person.id, "death_date": person.died, "death_type_concept_id": EHR})
    for number, event in enumerate(clinic.events, 1):
        table = {"visit": "visit_occurrence", "diabetes": "condition_occurrence", "smoking": "observation"}.get(
            event.kind, "measurement"
        )
        stem = table.removesuffix("_occurrence")
        start = "_start" if stem in ("visit", "condition") else ""
        row = {
            f"{table}_id": number,
            "person_id": event.person,
            f"{stem}_type_concept_id": EHR,
            f"{stem}{start}_date": event.at.date(),
            f"{stem}{start}_datetime": event.at,
        }
        if table == "visit_occurrence":
            row |= {"visit_concept_id": 9202, "visit_end_date": event.at.date()}
        elif table == "condition_occurrence":
            row |= {"condition_concept_id": TYPE_2}
        elif table == "observation":
            row |= {"observation_concept_id": CONCEPTS["smoking"], "value_as_concept_id": SMOKING_CONCEPTS[event.value]}
        else:
            about = {"value_as_number": event.value, "unit_concept_id": UNITS[event.unit]}
            row |= {"measurement_concept_id": CONCEPTS[event.kind], "operator_concept_id": 0, **about}
        rows[table].append(row)
    for id_, standard in KEPT.items():
        rows["concept"].append(
            {
                "concept_id": id_,
                "concept_name": f"concept {id_}",
                "domain_id": "Metadata",
                "vocabulary_id": "None",
                "concept_class_id": "Undefined",
                "standard_concept": standard,
                "concept_code": str(id_),
                "valid_start_date": dt.date(1970, 1, 1),
                "valid_end_date": far,
            }
        )
    for above, below in ((DIABETES, DIABETES), (DIABETES, TYPE_2), (TYPE_2, TYPE_2)):
        levels = {"min_levels_of_separation": 0, "max_levels_of_separation": int(above != below)}
        rows["concept_ancestor"].append({"ancestor_concept_id": above, "descendant_concept_id": below, **levels})
    return {name: found for name, found in rows.items() if found}
