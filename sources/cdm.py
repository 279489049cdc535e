"""The tables of the OMOP Common Data Model 5.4 that a column may be made of, and the names of their columns.

Source: https://ohdsi.github.io/CommonDataModel/cdm54.html. No other name ever enters a statement.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

EventTable = Literal[
    "measurement",
    "observation",
    "condition_occurrence",
    "condition_era",
    "drug_exposure",
    "drug_era",
    "procedure_occurrence",
    "device_exposure",
    "visit_occurrence",
    "death",
]
Value = Literal["value_as_number", "value_as_concept_id", "value_as_string", "quantity", "days_supply"]
PersonValue = Literal["age", "gender_concept_id", "race_concept_id", "ethnicity_concept_id"]


class Events(NamedTuple):
    """A table of events: the columns of what happened, when, in which order, and what was found. "" where there is none."""

    concept: str
    date: str
    moment: str
    key: str
    values: tuple[Value, ...] = ()
    unit: str = ""
    operator: str = ""
    any_concept: bool = False  # every row tells something, whatever its concept

    def asked(self, value: Value | None, moments: bool) -> list[str]:
        """The columns that a value needs besides person, concept and date.

        Args:
            moments: whether the table has times of day; the model lets them out.
        """
        beside = (self.unit, self.operator) if value == "value_as_number" else ()
        return [name for name in (self.moment if moments else "", self.key, value or "", *beside) if name]


EVENTS: dict[EventTable, Events] = {
    "measurement": Events(
        "measurement_concept_id",
        "measurement_date",
        "measurement_datetime",
        "measurement_id",
        ("value_as_number", "value_as_concept_id"),
        "unit_concept_id",
        "operator_concept_id",
    ),
    "observation": Events(
        "observation_concept_id",
        "observation_date",
        "observation_datetime",
        "observation_id",
        ("value_as_number", "value_as_concept_id", "value_as_string"),
        "unit_concept_id",
    ),
    "condition_occurrence": Events(
        "condition_concept_id", "condition_start_date", "condition_start_datetime", "condition_occurrence_id"
    ),
    "condition_era": Events("condition_concept_id", "condition_era_start_date", "", "condition_era_id"),
    "drug_exposure": Events(
        "drug_concept_id",
        "drug_exposure_start_date",
        "drug_exposure_start_datetime",
        "drug_exposure_id",
        ("quantity", "days_supply"),
    ),
    "drug_era": Events("drug_concept_id", "drug_era_start_date", "", "drug_era_id"),
    "procedure_occurrence": Events(
        "procedure_concept_id", "procedure_date", "procedure_datetime", "procedure_occurrence_id", ("quantity",)
    ),
    "device_exposure": Events(
        "device_concept_id",
        "device_exposure_start_date",
        "device_exposure_start_datetime",
        "device_exposure_id",
        ("quantity",),
    ),
    "visit_occurrence": Events(
        "visit_concept_id", "visit_start_date", "visit_start_datetime", "visit_occurrence_id", any_concept=True
    ),
    "death": Events("cause_concept_id", "death_date", "death_datetime", "", any_concept=True),
}
PERSON = ("person_id", "gender_concept_id", "year_of_birth", "month_of_birth", "day_of_birth")
EQUALS = 4172703  # the concept of the operator "="
LOCAL = 2_000_000_000  # from here on concepts are a hospital's own
