"""What a site file may say about tables of an OMOP Common Data Model."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedrounds.sources.cdm import EVENTS, EventTable, PersonValue, Value
from fedrounds.sources.frozen import Options
from fedrounds.sources.reading import reads
from fedrounds.sources.reduced import COUNTED, NUMERIC, ColumnName, Reduced, distinct

Concept = Annotated[int, Field(ge=1)]  # 0 is "no matching concept"
SchemaName = Annotated[str, Field(pattern=r"^(\w+(\.\w+)?)?$")]


class Cohort(Options):
    """Whose rows, and each one's index day: a cohort's rows in a `cohort` table, or a query that gives such rows."""

    id: int | None = None
    """The rows with this `cohort_definition_id`."""
    schema_: SchemaName = Field("", alias="schema")
    """Where the `cohort` table is, if not where the CDM is."""
    query: str = ""
    """One reading query; of its columns `subject_id` and `cohort_start_date` count."""
    entry: Literal["only", "first", "last"] = "only"
    """Which entry counts of a patient who enters several times; "only" refuses such patients."""

    @field_validator("query")
    @classmethod
    def _reads(cls, query: str) -> str:
        return reads(query) if query else query

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.id is None) == (not self.query):
            raise ValueError("expected `id` (a cohort_definition_id) or `query`, one of them")
        if self.query and self.schema_:
            raise ValueError("expected `schema` with `id` alone: a query names its own")
        return self


class PersonColumn(Options):
    """A column of what `person` says: the age in whole years on the index day, or a concept."""

    column: ColumnName
    table: Literal["person"]
    value: PersonValue
    words: dict[int, str] = Field({})
    """A concept -> the word for it in the study; "" is a missing value, as concept 0 is."""
    other: str | None = None
    """The word for every concept that `words` does not have; without it, such a concept is refused."""

    @model_validator(mode="after")
    def _worded(self) -> Self:
        if (self.value == "age") == bool(self.words):
            raise ValueError(
                'expected `words` with a concept, such as { 8507 = "male", 8532 = "female" }, and with it alone'
            )
        return self


class EventColumn(Reduced):
    """A column of what a table of events says."""

    table: EventTable
    concept: tuple[Concept, ...] = ()
    descendants: bool = False
    """Whether the concepts below these count too, by `concept_ancestor`."""
    value: Value | None = None
    unit_concept: int | None = Field(None, ge=0)
    """The unit of `value_as_number`; 0 where none is stated."""
    convert: dict[int, float] = Field({})
    """Another unit's concept -> what to multiply its numbers by."""

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        about = EVENTS[self.table]
        if not self.concept and not about.any_concept:
            raise ValueError(f"expected `concept` of a column from {self.table}: one or several concept ids")
        if (self.value is None) != (self.when in COUNTED):
            raise ValueError("expected `value` exactly where `when` is first, last, mean, min or max")
        if self.value is not None and self.value not in about.values:
            raise ValueError(f"expected `value` to be {' or '.join(about.values) or 'left out'} in {self.table}")
        if self.when in NUMERIC and self.value in ("value_as_concept_id", "value_as_string"):
            raise ValueError("expected a `value` of numbers where `when` is mean, min or max")
        if (self.value == "value_as_number") != (self.unit_concept is not None):
            raise ValueError("expected `unit_concept` exactly with value_as_number: 0 says that no unit is stated")
        if self.convert and self.unit_concept is None:
            raise ValueError("expected `convert` beside `unit_concept`")
        if (self.value == "value_as_concept_id" and not self.words) or (self.words and self.value not in _WORDED):
            raise ValueError("expected `words` with value_as_concept_id, and else with value_as_string alone")
        return self

    @field_validator("words")
    @classmethod
    def _concepts(cls, words: dict[str, str]) -> dict[str, str]:
        return {code.strip(): word for code, word in words.items()}


_WORDED = ("value_as_concept_id", "value_as_string")


class OmopSource(Options):
    """A cohort's patients in an OMOP CDM, a row a patient."""

    kind: Literal["omop"] = "omop"
    url: str = Field(repr=False)
    """A SQLAlchemy URL, as of a source of kind "sql"."""
    schema_: SchemaName = Field("", alias="schema")
    """The schema of the CDM's tables; by default the connection's own."""
    vocabulary: SchemaName = ""
    """The schema of `concept` and `concept_ancestor`, if it is another."""
    cohort: Cohort
    patient_id: ColumnName = "patient_id"
    event_time: ColumnName = "index_date"
    columns: tuple[Annotated[PersonColumn | EventColumn, Field(discriminator="table")], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        distinct((column.column for column in self.columns), self.patient_id, self.event_time)
        return self
