"""A FHIR bulk export (HL7 FHIR R4; Bulk Data Access 2.0): newline-delimited JSON, read once, line by line.

Nothing of a line is kept but the few numbers that a column needs, and 24 bytes a resource to find those that came twice: of one type and
id the newest `meta.lastUpdated` stands, and of equal ones the later in the order of file names and lines. What is `entered-in-error` or
`cancelled` is left out.
"""

from __future__ import annotations

import datetime as dt
import re
from array import array
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.errors import DataContractError
from fedrounds.core.table import Table
from fedrounds.sources import ndjson
from fedrounds.sources.events import NO_DAY, NOBODY, Days, Events, Fit, ages, day_of, moment_of, several, unseen
from fedrounds.sources.fhir_options import ConditionColumn, FhirSource, ObservationColumn, PatientColumn
from fedrounds.sources.fhir_values import Value, classes, codes, codings, diagnosed, observed, onset, when
from fedrounds.sources.reduced import Reduced

VOID = {"entered-in-error", "cancelled"}
_ID = re.compile(r"[^\s/|#?]{1,255}")  # the standard allows less; some servers do not keep to it
_PATIENT = re.compile(rf"(?:(?P<server>.+)/)?Patient/(?P<id>{_ID.pattern})(?:/_history/{_ID.pattern})?")
_URN = re.compile(rf"urn:(?:uuid|oid):(?P<id>{_ID.pattern})")
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


Taker = tuple[Events, Value]


def _asked(takers: dict[str, list[Taker]], codes: list[str]) -> Iterable[Taker]:
    """The columns that ask for one of the codes, each once."""
    found = [taker for code in codes for taker in takers.get(code, ())]
    return found if len(codes) == 1 else {id(taker): taker for taker in found}.values()


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
        self.by_code: dict[str, dict[str, list[Taker]]] = {"Observation": {}, "Condition": {}}
        for column in source.columns:
            if isinstance(column, ObservationColumn | ConditionColumn):
                make = observed if isinstance(column, ObservationColumn) else diagnosed
                taker = (self.events[column.column], make(column))
                for code in column.code:
                    self.by_code[column.resource].setdefault(code, []).append(taker)
        for code in source.index.condition:
            self.by_code["Condition"].setdefault(code, []).append((self.index, onset))
        kinds = {"Patient", *(kind for kind, codes in self.by_code.items() if codes)}
        self.wanted = frozenset(kinds | ({"Encounter"} if source.index.encounter else set()))

    def take(self, resource: dict[str, Any]) -> str:
        """Keep what a resource says; returns what was expected of it and what was found, "" if it is in order."""
        kind = resource["resourceType"]
        try:
            number = len(self.updated)
            updated = resource.get("meta", {}).get("lastUpdated")
            self.updated.append(moment_of(updated) if updated else -np.inf)
            if not _ID.fullmatch(resource["id"]):
                raise ValueError
            self.ids += blake2b(f"{kind}/{resource['id']}".encode(), digest_size=16).digest()
            if kind == "Patient":
                self._person(resource, number)
            elif resource.get("status") not in VOID and not codes(resource.get("verificationStatus")) & VOID:
                self._event(kind, resource, number)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            return f"a resource of type {kind} as FHIR R4 describes it, found another form"
        return ""

    def _person(self, patient: dict[str, Any], number: int) -> None:
        born, died, gender = (patient.get(name) for name in ("birthDate", "deceasedDateTime", "gender"))
        if gender and gender not in self.genders:
            if gender not in ("male", "female", "other", "unknown"):
                raise ValueError
            self.genders.append(gender)
        if any(link.get("type") == "replaced-by" for link in patient.get("link", ())):
            return  # a record that "must no longer be used"
        person = self.numbers.setdefault(patient["id"], len(self.numbers))
        about = (number, person, day_of(born) if born else NO_DAY, day_of(died) if died else NO_DAY)
        for kept, cell in zip(self.people, (*about, self.genders.index(gender or "")), strict=True):
            kept.append(cell)

    def _event(self, kind: str, resource: dict[str, Any], number: int) -> None:
        found: list[tuple[Events, float | str, Fit]] = []
        if kind == "Encounter":
            wanted = self.source.index.class_
            if not wanted or not classes(resource["class"]).isdisjoint(wanted):
                found.append((self.index, 1.0, Fit.YES))
        else:
            takers = self.by_code[kind]
            for element in (resource, *resource.get("component", ())):
                for kept, value_of in _asked(takers, codings(element["code"])):
                    kept.seen = True
                    value, fit = value_of(element)
                    if value is not None:
                        found.append((kept, value, fit))
        if not found:
            return
        person = self._person_of(resource.get("subject"))
        if person is None:  # a device, a group, a place
            return
        day, moment = when(resource)
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
                if not (self.events[column.column].seen or column.rare):
                    raise unseen(place, column, "the export")
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
