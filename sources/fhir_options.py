"""What a site file may say about a FHIR bulk export."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fedrounds.sources.frozen import Options
from fedrounds.sources.reduced import COUNTED, NUMERIC, ColumnName, Reduced, distinct


def _coded(code: str) -> str:
    system, bar, rest = code.partition("|")
    if not (system and bar and rest) or "|" in rest or any(map(str.isspace, code)):
        raise ValueError("expected a code as system|code, such as http://loinc.org|8480-6")
    return code


Code = Annotated[str, AfterValidator(_coded)]
"""`system|code`, such as http://loinc.org|8480-6."""
Status = Literal["active", "recurrence", "relapse", "inactive", "remission", "resolved"]


class Index(Options):
    """Each patient's index day: one for all, the first of a condition, or an encounter. Who has none is in no row."""

    date: dt.date | None = None
    condition: tuple[Code, ...] = ()
    """The first onset of a Condition with one of these codes."""
    encounter: Literal["first", "last"] | None = None
    """The start of the first or the last Encounter."""
    class_: tuple[str, ...] = Field((), alias="class")
    """The codes of an Encounter's class that count, such as IMP; by default all."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.date is not None) + bool(self.condition) + (self.encounter is not None) != 1:
            raise ValueError("expected one of `date`, `condition` and `encounter`, which say each patient's index day")
        if self.class_ and self.encounter is None:
            raise ValueError("expected `class` beside `encounter`")
        return self


class PatientColumn(Options):
    """A column of what a Patient says: the age in whole years on the index day, or the gender as FHIR's word."""

    column: ColumnName
    resource: Literal["Patient"]
    value: Literal["age", "gender"]


class ObservationColumn(Reduced):
    """A column of Observations, or of their components, with one of the codes."""

    resource: Literal["Observation"]
    code: tuple[Code, ...] = Field(min_length=1)
    value: Literal["quantity", "integer", "concept"] | None = None
    unit: str | None = Field(None, min_length=1)
    """The UCUM code of `quantity`, such as mm[Hg]; "1" is a number without a unit."""
    convert: dict[str, float] = Field({})
    """Another unit's UCUM code -> what to multiply its numbers by; where a quantity has no code, its unit as it is written."""

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if (self.value is None) != (self.when in COUNTED):
            raise ValueError("expected `value` exactly where `when` is first, last, mean, min or max")
        if self.when in NUMERIC and self.value == "concept":
            raise ValueError("expected a `value` of numbers where `when` is mean, min or max")
        if (self.value == "quantity") != (self.unit is not None):
            raise ValueError("expected `unit`, a UCUM code, exactly where `value` is quantity")
        if self.convert and self.unit is None:
            raise ValueError("expected `convert` beside `unit`")
        if (self.value == "concept") != bool(self.words):
            raise ValueError("expected `words`, system|code -> word, exactly where `value` is concept")
        return self


class ConditionColumn(Reduced):
    """A column of Conditions with one of the codes, by their onset; those that were refuted do not count."""

    resource: Literal["Condition"]
    code: tuple[Code, ...] = Field(min_length=1)
    status: tuple[Status, ...] = ()
    """The clinical statuses that count; by default all."""

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if self.when not in COUNTED or self.words:
            raise ValueError("expected `when` to be any or count of a Condition, and no `words`")
        return self


class FhirSource(Options):
    """The patients of a FHIR bulk export (R4), a row a patient."""

    kind: Literal["fhir"] = "fhir"
    path: str
    """A folder with files .ndjson or .ndjson.gz, or one such file."""
    index: Index
    patient_id: ColumnName = "patient_id"
    event_time: ColumnName = "index_date"
    columns: tuple[
        Annotated[PatientColumn | ObservationColumn | ConditionColumn, Field(discriminator="resource")], ...
    ] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        distinct((column.column for column in self.columns), self.patient_id, self.event_time)
        return self
