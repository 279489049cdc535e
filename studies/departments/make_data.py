"""Four departments of a made-up hospital, each with a system of its own: `python studies/departments/make_data.py` fills data/.

    emergency    a delimited file            surgery      tables of an OMOP Common Data Model 5.4 (SQLite)
    intensive    a Parquet file              cardiology   a FHIR R4 bulk export, creatinine in another unit

Nobody in them ever lived. Who comes in may have acute kidney injury within 90 days; RISK says with what log-odds.
"""

from __future__ import annotations

import csv
import datetime as dt
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np

DEPARTMENTS = {"cardiology": 600, "emergency": 800, "intensive": 450, "surgery": 550}  # patients
ADMITTED = dt.date(2025, 1, 6)  # the first; one comes in every eight hours
NAMES = ("patient_id", "age", "sex", "sbp", "creatinine", "diabetes", "kidney_injury")
FOLDER = Path(__file__).parent / "data"
LOINC, SNOMED, UCUM = "http://loinc.org", "http://snomed.info/sct", "http://unitsofmeasure.org"
UMOL = 88.42  # µmol/L of creatinine in 1 mg/dL


def risk(age: Any, sbp: Any, creatinine: Any, diabetes: Any) -> Any:
    """Log-odds of kidney injury: low pressure harms those whose creatinine is high already, which no straight line tells."""
    poor = creatinine > 1.4
    return -2.6 + 0.02 * (age - 65) + 1.2 * poor + 0.6 * diabetes + np.where(poor, 1.6, 0.2) * (sbp < 105)


def patients(department: str, seed: int) -> list[dict[str, Any]]:
    """A department's patients in the order in which they came: numbers and words as study.toml has them, creatinine in mg/dL."""
    rng, n = np.random.default_rng([seed, *department.encode()]), DEPARTMENTS[department]
    sick = {"cardiology": 0.3, "emergency": 0.2, "intensive": 0.7, "surgery": 0.25}[department]
    age = rng.normal(66, 13, n).clip(18, 98).astype(int)
    diabetes = rng.random(n) < 0.15 + 0.2 * (age > 60)
    sbp = rng.normal(128 - 16 * sick, 19, n).clip(70, 220).round()
    creatinine = np.exp(rng.normal(np.log(0.95 + 0.45 * sick), 0.3, n)).clip(0.3, 9.0).round(2)
    injured = rng.random(n) < 1 / (1 + np.exp(-risk(age, sbp, creatinine, diabetes)))
    sex = rng.choice(["female", "male"], n)
    columns = (age, sex, sbp, creatinine, diabetes.astype(int), injured.astype(int))
    first = 1 + 10_000 * sorted(DEPARTMENTS).index(department)
    rows = zip(range(first, first + n), *(column.tolist() for column in columns), strict=True)
    return [dict(zip(NAMES, row, strict=True)) for row in rows]


def day(number: int) -> dt.date:
    """When the number-th patient came in."""
    return ADMITTED + dt.timedelta(days=number // 3)


def born(patient: dict[str, Any], came: dt.date) -> dt.date:
    """A birthday that makes the patient as old as the rows say."""
    return dt.date(came.year - patient["age"], 1, 1)


# --- what each system holds -------------------------------------------------------------------------------------------


def delimited(rows: list[dict[str, Any]]) -> None:
    """A file as a spreadsheet writes one."""
    with (FOLDER / "emergency.csv").open("w", newline="", encoding="cp1252") as file:
        out = csv.DictWriter(file, NAMES, delimiter=";")
        out.writeheader()
        out.writerows(rows)


def parquet(rows: list[dict[str, Any]]) -> None:
    """A file as a data warehouse writes one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), FOLDER / "intensive.parquet")


def fhir(rows: list[dict[str, Any]]) -> None:
    """A bulk export: a file a type."""
    found: dict[str, list[dict[str, Any]]] = {"Patient": [], "Encounter": [], "Observation": [], "Condition": []}

    def add(kind: str, patient: dict[str, Any], name: str, **said: Any) -> None:
        about = {} if kind == "Patient" else {"subject": {"reference": f"Patient/{patient['patient_id']}"}}
        found[kind].append({"resourceType": kind, "id": f"{patient['patient_id']}{name}", **about, **said})

    def coded(system: str, code: str) -> dict[str, Any]:
        return {"coding": [{"system": system, "code": code}]}

    def quantity(value: float, unit: str) -> dict[str, Any]:
        return {"value": value, "unit": unit, "system": UCUM, "code": unit}

    def condition(patient: dict[str, Any], name: str, code: str, onset: dt.date) -> None:
        status = coded("http://terminology.hl7.org/CodeSystem/condition-clinical", "active")
        add(
            "Condition", patient, name, clinicalStatus=status, code=coded(SNOMED, code), onsetDateTime=onset.isoformat()
        )

    for number, patient in enumerate(rows):
        came = day(number)
        at = f"{came.isoformat()}T08:00:00Z"
        inpatient = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"}
        add("Patient", patient, "", gender=patient["sex"], birthDate=born(patient, came).isoformat())
        add("Encounter", patient, "-e", status="finished", **{"class": inpatient}, period={"start": at, "end": at})
        for name, code, value in (
            ("-p", "8480-6", quantity(patient["sbp"], "mm[Hg]")),
            ("-c", "2160-0", quantity(round(patient["creatinine"] * UMOL, 1), "umol/L")),
        ):
            said = {"status": "final", "code": coded(LOINC, code), "effectiveDateTime": at, "valueQuantity": value}
            add("Observation", patient, name, **said)
        if patient["diabetes"]:
            condition(patient, "-d", "44054006", came - dt.timedelta(days=400))
        if patient["kidney_injury"]:
            condition(patient, "-k", "14669001", came + dt.timedelta(days=9))
    folder = FOLDER / "cardiology"
    folder.mkdir(exist_ok=True)
    for kind, resources in found.items():
        (folder / f"{kind}.ndjson").write_text("".join(json.dumps(one) + "\n" for one in resources), encoding="utf-8")


def omop(rows: list[dict[str, Any]]) -> None:
    """The tables of the model that the study reads, and the columns of them that matter here."""
    file = FOLDER / "surgery.db"
    file.unlink(missing_ok=True)
    with sqlite3.connect(file) as tables:
        tables.executescript(
            """
            CREATE TABLE person (person_id INTEGER, gender_concept_id INTEGER, year_of_birth INTEGER, month_of_birth INTEGER,
                day_of_birth INTEGER, birth_datetime TEXT);
            CREATE TABLE cohort (cohort_definition_id INTEGER, subject_id INTEGER, cohort_start_date TEXT, cohort_end_date TEXT);
            CREATE TABLE measurement (measurement_id INTEGER, person_id INTEGER, measurement_concept_id INTEGER, measurement_date TEXT,
                measurement_datetime TEXT, operator_concept_id INTEGER, value_as_number REAL, value_as_concept_id INTEGER,
                unit_concept_id INTEGER);
            CREATE TABLE condition_occurrence (condition_occurrence_id INTEGER, person_id INTEGER, condition_concept_id INTEGER,
                condition_start_date TEXT, condition_start_datetime TEXT);
            """
        )
        measured, happened = 0, 0
        for number, patient in enumerate(rows):
            came, who = day(number), patient["patient_id"]
            at, birth = came.isoformat(), born(patient, came)
            gender = {"female": 8532, "male": 8507}[patient["sex"]]
            tables.execute(
                "INSERT INTO person VALUES (?, ?, ?, ?, ?, NULL)", (who, gender, birth.year, birth.month, birth.day)
            )
            tables.execute("INSERT INTO cohort VALUES (7, ?, ?, ?)", (who, at, at))
            for concept, value, unit in ((3004249, patient["sbp"], 8876), (3016723, patient["creatinine"], 8840)):
                measured += 1
                row = (measured, who, concept, at, f"{at} 08:00:00", value, unit)
                tables.execute("INSERT INTO measurement VALUES (?, ?, ?, ?, ?, 0, ?, NULL, ?)", row)
            for concept, there, days in ((201826, patient["diabetes"], -400), (197320, patient["kidney_injury"], 9)):
                if there:
                    happened += 1
                    on = (came + dt.timedelta(days=days)).isoformat()
                    row = (happened, who, concept, on, f"{on} 08:00:00")
                    tables.execute("INSERT INTO condition_occurrence VALUES (?, ?, ?, ?, ?)", row)
    tables.close()


def main() -> None:
    """Fill every department's system."""
    FOLDER.mkdir(exist_ok=True)
    for department, write in (
        ("emergency", delimited),
        ("intensive", parquet),
        ("cardiology", fhir),
        ("surgery", omop),
    ):
        write(patients(department, seed=31))


if __name__ == "__main__":
    main()
