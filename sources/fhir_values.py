"""What one resource of FHIR R4 says to a column: its value, whether that fits, and when it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedrounds.sources.events import NO_DAY, Fit, day_of, moment_of, worded
from fedrounds.sources.fhir_options import ConditionColumn, ObservationColumn

UCUM = "http://unitsofmeasure.org"
WHEN = {
    "Observation": ("effectiveDateTime", "effectiveInstant", "effectivePeriod", "issued"),
    "Condition": ("onsetDateTime", "onsetPeriod", "recordedDate"),
    "Encounter": ("period",),
}

Value = Callable[[dict[str, Any]], tuple[float | str | None, Fit]]
"""What an element of a resource says, None if nothing, and whether that fits."""


def codings(concept: dict[str, Any]) -> list[str]:
    """`system|code` of each coding."""
    return [f"{coding.get('system')}|{coding.get('code')}" for coding in concept.get("coding", ())]


def observed(column: ObservationColumn) -> Value:
    """How a column takes an Observation, or one of its components."""
    if column.value is None:
        return lambda element: (None if "dataAbsentReason" in element else 1.0, Fit.YES)
    key = {"quantity": "valueQuantity", "integer": "valueInteger", "concept": "valueCodeableConcept"}[column.value]
    factors = {**column.convert, column.unit or "": 1.0}
    word = worded(column.words, column.other)

    def value(element: dict[str, Any]) -> tuple[float | str | None, Fit]:
        if key not in element:
            return (0.0, Fit.KIND) if any(name.startswith("value") for name in element) else (None, Fit.YES)
        found = element[key]
        if column.value == "quantity":
            return _quantity(found, factors, column.convert)
        if column.value == "integer":
            return _number(found), Fit.YES
        said = word(codings(found))
        return (None, Fit.YES) if said == "" else (said or "", Fit.CODE if said is None else Fit.YES)

    return value


def _quantity(
    found: dict[str, Any], coded: Mapping[str, float], written: Mapping[str, float]
) -> tuple[float | None, Fit]:
    """A number in the column's unit; `coded` and `written` are what to multiply it by, by UCUM code and by the unit's words without one."""
    if "value" not in found:
        return None, Fit.YES
    number = _number(found["value"])
    if found.get("comparator"):
        return 0.0, Fit.COMPARED
    if "code" in found and found.get("system") != UCUM:
        return 0.0, Fit.UNIT
    factor = coded.get(found["code"]) if "code" in found else written.get(found.get("unit", ""))
    if factor is None:
        return 0.0, Fit.UNIT
    number *= factor
    return (number, Fit.YES) if np.isfinite(number) else (0.0, Fit.NUMBER)


def _number(cell: Any) -> float:
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        raise TypeError
    return float(cell)


def diagnosed(column: ConditionColumn) -> Value:
    """How a column takes a Condition."""

    def value(condition: dict[str, Any]) -> tuple[float | None, Fit]:
        said, found = onset(condition), codes(condition.get("clinicalStatus"))
        if not column.status or said[0] is None:
            return said
        if not found:
            return 0.0, Fit.STATUS
        return (None, Fit.YES) if found.isdisjoint(column.status) else said

    return value


def onset(element: dict[str, Any]) -> tuple[float | None, Fit]:
    """An event whose day is all that counts."""
    return None if "refuted" in codes(element.get("verificationStatus")) else 1.0, Fit.YES


def codes(concept: Any) -> set[str]:
    """The codes of a concept, whatever their systems; none if there is no concept."""
    return {coding.get("code") for coding in concept.get("coding", ())} if concept else set()


def classes(class_: Any) -> set[str]:
    """An Encounter's class is a Coding in R4 and a list of concepts in R5."""
    if isinstance(class_, dict):
        return {class_.get("code", "")}
    return set().union(*(codes(concept) for concept in class_))


def when(resource: dict[str, Any]) -> tuple[int, float]:
    """The day and the moment, by the first of its dates; of a period the start. No day where it has none."""
    for name in WHEN[resource["resourceType"]]:
        found = resource.get(name)
        if isinstance(found, dict):
            found = found.get("start")
        if found:
            return day_of(found), moment_of(found)
    return NO_DAY, 0.0
