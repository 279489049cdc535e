"""A FHIR bulk export (HL7 FHIR R4; Bulk Data Access 2.0): newline-delimited JSON, read once, line by line.

Nothing of a line is kept but the few numbers that a column needs, and 24 bytes a resource to find those that came twice: of one type and
id the newest `meta.lastUpdated` stands, and of equal ones the later in the order of file names and lines. What is `entered-in-error` or
`cancelled` is left out.
"""

from __future__ import annotations

import datetime as dt
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.errors import DataContractError
from fedrounds.core.table import Table
from fedrounds.sources import ndjson
from fedrounds.sources.events import NO_DAY, NOBODY, Days, Events, Fit, ages, day_of, moment_of, several, worded
from fedrounds.sources.fhir_options import ConditionColumn, FhirSource, ObservationColumn, PatientColumn
from fedrounds.sources.reduced import Reduced

UCUM = "http://unitsofmeasure.org"
VOID = {"entered-in-error", "cancelled"}
WHEN = {
    "Observation": ("effectiveDateTime", "effectiveInstant", "effectivePeriod", "issued"),
    "Condition": ("onsetDateTime", "onsetPeriod", "recordedDate"),
    "Encounter": ("period",),
}
_PATIENT = re.compile(r"(?:(?P<server>.+)/)?Patient/(?P<id>[A-Za-z0-9.-]{1,64})(?:/_history/[A-Za-z0-9.-]{1,64})?")
_URN = re.compile(r"urn:(?:uuid|oid):(?P<id>[A-Za-z0-9.-]{1,64})")
_OTHER = re.compile(r"(?:.+/)?[A-Z][A-Za-z]+/.+")
_INDEX = Reduced(column="index", when="first", window_days=(-4_000_000, 4_000_000))


def read(source: FhirSource, root: Path, site: str) -> Table:
    """A row a patient who lives on the index day, in the order of their ids; the declaration's columns after the id and that day.

    Raises:
        StudyError: there is no such file.
        DataContractError: a line is no resource, events do not fit their column, or no patient has an index day.
    """
    files = ndjson.files(root, source.path, site)
    export = _Export(source)
    for file in files:
        place = f"site '{site}', {file}"
        for number, resource in ndjson.resources(file, place, export.wanted):
            if problem := export.take(resource):
                raise DataContractError(f"{place}: expected {problem} in line {number}: export it anew")
    return export.table(f"site '{site}', {root / source.path}")


class _Export:
    """What the resources of an export said, as far as the columns need it."""

    def __init__(self, source: FhirSource) -> None:
        self.source = source
        self.numbers: dict[str, int] = {}  # a patient's id -> the number by which the rest calls them
        self.references: dict[str, int] = {}
        self.servers: set[str] = set()
        self.ids, self.updated = bytearray(), array("d")  # of every resource
        self.people: list[array[int]] = [array("i") for _ in range(5)]  # resource, patient, born, died, gender
        self.genders: list[str] = [""]
        self.index = Events()
        self.events = {column.column: Events() for column in source.columns if not isinstance(column, PatientColumn)}
        self.by_code: dict[str, dict[str, list[_Taker]]] = {"Observation": {}, "Condition": {}}
        for column in source.columns:
            if isinstance(column, ObservationColumn | ConditionColumn):
                make = _observed if isinstance(column, ObservationColumn) else _diagnosed
                taker = (self.events[column.column], make(column))
                for code in column.code:
                    self.by_code[column.resource].setdefault(code, []).append(taker)
        for code in source.index.condition:
            self.by_code["Condition"].setdefault(code, []).append((self.index, _onset))
        kinds = {"Patient", *(kind for kind, codes in self.by_code.items() if codes)}
        self.wanted = frozenset(kinds | ({"Encounter"} if source.index.encounter else set()))

    def take(self, resource: dict[str, Any]) -> str:
        """Keep what a resource says; returns what was expected of it and what was found, "" if it is in order."""
        kind = resource["resourceType"]
        try:
            number = len(self.updated)
            updated = resource.get("meta", {}).get("lastUpdated")
            self.updated.append(moment_of(updated) if updated else -np.inf)
            self.ids += blake2b(f"{kind}/{resource['id']}".encode(), digest_size=16).digest()
            if kind == "Patient":
                self._person(resource, number)
            elif resource.get("status") not in VOID and not _codes(resource.get("verificationStatus")) & VOID:
                self._event(kind, resource, number)
        except (ValueError, TypeError, KeyError, AttributeError):
            return f"a resource of type {kind} as FHIR R4 describes it, found another form"
        return ""

    def _person(self, patient: dict[str, Any], number: int) -> None:
        born, died, gender = (patient.get(name) for name in ("birthDate", "deceasedDateTime", "gender"))
        if gender and gender not in self.genders:
            if gender not in ("male", "female", "other", "unknown"):
                raise ValueError
            self.genders.append(gender)
        person = self.numbers.setdefault(patient["id"], len(self.numbers))
        about = (number, person, day_of(born) if born else NO_DAY, day_of(died) if died else NO_DAY)
        for kept, cell in zip(self.people, (*about, self.genders.index(gender or "")), strict=True):
            kept.append(cell)

    def _event(self, kind: str, resource: dict[str, Any], number: int) -> None:
        found: list[tuple[Events, float | str, Fit]] = []
        if kind == "Encounter":
            classes = self.source.index.class_
            if not classes or not set(classes).isdisjoint(_classes(resource["class"])):
                found.append((self.index, 1.0, Fit.YES))
        else:
            takers = self.by_code[kind]
            for element in (resource, *resource.get("component", ())):
                for kept, value_of in _matching(takers, element):
                    value, fit = value_of(element)
                    if value is not None:
                        found.append((kept, value, fit))
        if not found:
            return
        person = self._person_of(resource.get("subject"))
        if person is None:  # a device, a group, a place
            return
        day, moment = _when(resource, WHEN[kind])
        adrift = Fit.PATIENT if person == NOBODY else Fit.DATE if day == NO_DAY else Fit.YES
        for kept, value, fit in found:
            if kept is not self.index:
                kept.add(person, day, moment, self.updated[number], value, fit or adrift, number)
            elif not adrift:
                kept.add(person, day, moment, self.updated[number], day, of=number)

    def _person_of(self, subject: Any) -> int | None:
        reference = (subject or {}).get("reference", "")
        if reference in self.references:
            return self.references[reference]
        known = _PATIENT.fullmatch(reference) or _URN.fullmatch(reference)
        if known is None:
            return None if _OTHER.fullmatch(reference) else NOBODY
        if server := known.groupdict().get("server"):
            self.servers.add(server)
        self.references[reference] = self.numbers.setdefault(known["id"], len(self.numbers))
        return self.references[reference]

    # --- the table ----------------------------------------------------------------------------------------------------

    def table(self, place: str) -> Table:
        """What the export says of each patient, in the order of their ids."""
        if len(self.servers) > 1:
            raise DataContractError(
                f"{place}: expected references to patients of one server, found {len(self.servers)} servers, where one id may be two"
                " patients: load each export by itself"
            )
        valid = _newest(self.ids, self.updated)
        resource, person, *about = (np.frombuffer(kept, np.intc).astype(np.int64) for kept in self.people)
        known = valid[resource]
        born, died, gender = (np.zeros(len(self.numbers), np.int64) for _ in about)
        for cells, kept in zip((born, died, gender), about, strict=True):
            cells[person[known]] = kept[known]
        there = np.zeros(len(self.numbers), bool)
        there[person[known]] = True
        self._refuse_strangers(there, valid, place)
        index = self._index_days(valid, place)
        index[~there | (born > index) | ((died != NO_DAY) & (died < index))] = NO_DAY
        names = list(self.numbers)
        rows = np.array(sorted(np.flatnonzero(index), key=names.__getitem__), np.intp)
        if not len(rows):
            raise DataContractError(
                f"{place}: expected patients who live on their index day, found none among {several(int(there.sum()))} patients: correct"
                " `index` in the site file"
            )
        columns: dict[str, NDArray[Any]] = {
            self.source.patient_id: np.array([names[row] for row in rows], dtype=object),
            self.source.event_time: _dates(index[rows]),
        }
        for column in self.source.columns:
            if isinstance(column, PatientColumn):
                words = np.array(self.genders, dtype=object)
                cells = ages(born, index) if column.value == "age" else words[gender]
            else:
                text = isinstance(column, ObservationColumn) and column.value == "concept"
                cells = self.events[column.column].column(column, index, valid, place, text)
            columns[column.column] = cells[rows]
        return Table(columns)

    def _refuse_strangers(self, there: NDArray[np.bool_], valid: NDArray[np.bool_], place: str) -> None:
        """References that lead nowhere at all would give a table of patients with nothing."""
        for kept in (self.index, *self.events.values()):
            person = np.frombuffer(kept.patient, np.intc)[valid[np.frombuffer(kept.of, np.intc)]]
            person = person[person != NOBODY]
            if len(person) and not there[person].any():
                raise DataContractError(
                    f"{place}: expected references to patients of this export, found none that leads to one: export Patient with the rest"
                )

    def _index_days(self, valid: NDArray[np.bool_], place: str) -> Days:
        index = self.source.index
        if index.date is not None:
            return np.full(len(self.numbers), index.date.toordinal(), np.int64)
        about = _INDEX.model_copy(update={"when": index.encounter or "first"})
        days = self.index.column(about, np.ones(len(self.numbers), np.int64), valid, place)
        return np.where(np.isnan(days), NO_DAY, days).astype(np.int64)


# --- one resource -----------------------------------------------------------------------------------------------------

Value = Callable[[dict[str, Any]], tuple[float | str | None, Fit]]
"""What an element of a resource says, None if nothing, and whether that fits."""
_Taker = tuple[Events, Value]


def _matching(takers: Mapping[str, list[_Taker]], element: dict[str, Any]) -> Iterator[_Taker]:
    """The columns that ask for one of the element's codes, each once."""
    codings = element["code"].get("coding", ())
    if len(codings) == 1:
        yield from takers.get(f"{codings[0].get('system')}|{codings[0].get('code')}", ())
        return
    found = [taker for c in codings for taker in takers.get(f"{c.get('system')}|{c.get('code')}", ())]
    yield from {id(taker): taker for taker in found}.values()


def _observed(column: ObservationColumn) -> Value:
    """How a column takes an Observation, or one of its components."""
    if column.value is None:
        return lambda element: (None if "dataAbsentReason" in element else 1.0, Fit.YES)
    key = {"quantity": "valueQuantity", "integer": "valueInteger", "concept": "valueCodeableConcept"}[column.value]
    factors = {**column.convert, column.unit: 1.0}
    word = worded(column.words, column.other)

    def value(element: dict[str, Any]) -> tuple[float | str | None, Fit]:
        if key not in element:
            return (0.0, Fit.KIND) if any(name.startswith("value") for name in element) else (None, Fit.YES)
        found = element[key]
        if column.value == "quantity":
            return _quantity(found, factors)
        if column.value == "integer":
            return _number(found), Fit.YES
        said = word([f"{coding.get('system')}|{coding.get('code')}" for coding in found.get("coding", ())])
        return (None, Fit.YES) if said == "" else (said or "", Fit.CODE if said is None else Fit.YES)

    return value


def _quantity(found: dict[str, Any], factors: Mapping[str | None, float]) -> tuple[float | None, Fit]:
    if "value" not in found:
        return None, Fit.YES
    number = _number(found["value"])
    if found.get("comparator"):
        return 0.0, Fit.COMPARED
    if found.get("system") != UCUM or found.get("code") not in factors:
        return 0.0, Fit.UNIT
    number *= factors[found["code"]]
    return (number, Fit.YES) if np.isfinite(number) else (0.0, Fit.NUMBER)


def _number(cell: Any) -> float:
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        raise TypeError
    return float(cell)


def _diagnosed(column: ConditionColumn) -> Value:
    """How a column takes a Condition."""

    def value(condition: dict[str, Any]) -> tuple[float | None, Fit]:
        if not column.status:
            return _onset(condition)
        found = _codes(condition.get("clinicalStatus"))
        if not found:
            return 0.0, Fit.STATUS
        return (None, Fit.YES) if found.isdisjoint(column.status) else _onset(condition)

    return value


def _onset(element: dict[str, Any]) -> tuple[float | None, Fit]:
    """An event whose day is all that counts."""
    return None if "refuted" in _codes(element.get("verificationStatus")) else 1.0, Fit.YES


def _codes(concept: Any) -> set[str]:
    return {coding.get("code") for coding in concept.get("coding", ())} if concept else set()


def _classes(class_: Any) -> set[str]:
    """An Encounter's class is a Coding in R4 and a list of concepts in R5."""
    if isinstance(class_, dict):
        return {class_.get("code", "")}
    return set().union(*(_codes(concept) for concept in class_))


def _when(resource: dict[str, Any], names: tuple[str, ...]) -> tuple[int, float]:
    """The day and the moment by the first of these that it has; of a period the start."""
    for name in names:
        found = resource.get(name)
        if isinstance(found, dict):
            found = found.get("start")
        if found:
            return day_of(found), moment_of(found)
    return NO_DAY, 0.0


# --- all of them ------------------------------------------------------------------------------------------------------


def _newest(ids: bytearray, updated: array[float]) -> NDArray[np.bool_]:
    """(resources,) whether it is the newest version of its type and id."""
    halves = np.frombuffer(ids, np.uint64).reshape(-1, 2)
    order = np.lexsort((np.frombuffer(updated, np.float64), halves[:, 0], halves[:, 1]))  # stable: the later wins a tie
    sorted_ = halves[order]
    last = np.ones(len(order), bool)
    last[:-1] = (sorted_[1:] != sorted_[:-1]).any(axis=1)
    newest = np.zeros(len(order), bool)
    newest[order[last]] = True
    return newest


def _dates(days: Days) -> NDArray[Any]:
    return np.array([dt.date.fromordinal(day).isoformat() for day in days.tolist()], dtype=object)
