"""Tables of an OMOP Common Data Model 5.4, by a cohort: one row a patient, columns made of events around the day of entry.

Every statement is put together by SQLAlchemy from the model's own names (`sources/cdm.py`) with all values as parameters, in one
transaction that only reads and, on PostgreSQL, sees one state of the database.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.errors import DataContractError, StudyError
from fedrounds.core.table import Table
from fedrounds.sources import sql
from fedrounds.sources.cdm import EVENTS, LOCAL, PERSON
from fedrounds.sources.events import EPOCH, Days, Events, ages, day_of, moment_of, several, unseen, worded
from fedrounds.sources.omop_options import EventColumn, OmopSource, PersonColumn
from fedrounds.sources.omop_values import born, taken

AT_ONCE = 5000  # patients asked about in one statement: a parameter each, and SQLite takes 32,766


def read(source: OmopSource, root: Path, site: str) -> Table:
    """A row a patient of the cohort, in the order of `person_id`; the declaration's columns after the id and the day of entry.

    Raises:
        StudyError: the declaration names a concept or a cohort that is not there.
        DataContractError: the database does not answer, is no such model, or holds what the declaration does not allow.
    """
    with sql.opened(source.url, root, site, "`url`, `schema` and `cohort`", snapshot=True) as database:
        model = _Model(database, source, f"site '{site}'")
        model.check()
        people = model.cohort()
        persons = model.persons(people)
        gathered = {c.column: model.events(c, people) for c in source.columns if isinstance(c, EventColumn)}
    index = np.array(list(people.values()), np.int64)
    columns: dict[str, NDArray[Any]] = {
        source.patient_id: np.array(list(map(str, people)), dtype=object),
        source.event_time: np.array([_date(day).isoformat() for day in people.values()], dtype=object),
    }
    for column in source.columns:
        if isinstance(column, PersonColumn):
            columns[column.column] = model.of_person(column, persons, index)
        else:
            text = column.value in ("value_as_concept_id", "value_as_string")
            columns[column.column] = gathered[column.column].column(column, index, None, model.place, text)
    return Table(columns)


class _Model:
    """A database that holds the model, and what is asked of it."""

    def __init__(self, database: sql.Database, source: OmopSource, place: str) -> None:
        self.database, self.source, self.place = database, source, place
        self.moments: set[str] = set()  # tables whose times of day are there

    def check(self) -> None:
        """That the tables and the concepts of the declaration are there."""
        wanted: dict[tuple[str, str], set[str]] = {("person", self.source.schema_): set(PERSON)}
        for column in self.source.columns:
            names = wanted.setdefault((column.table, self.source.schema_), {"person_id"})
            if isinstance(column, PersonColumn):
                names |= {column.value} - {"age"}
                continue
            about = EVENTS[column.table]
            names |= {about.concept, about.date, *about.asked(column.value, moments=False)}
            if column.descendants:
                wanted[("concept_ancestor", self._vocabulary)] = {"ancestor_concept_id", "descendant_concept_id"}
        cohort = self.source.cohort
        if cohort.id is not None:
            names = {"cohort_definition_id", "subject_id", "cohort_start_date"}
            wanted[("cohort", cohort.schema_ or self.source.schema_)] = names
        for (table, schema), names in wanted.items():
            found = self.database.columns(table, schema)
            if missing := sorted(names - found):
                where = f" in schema '{schema}'" if schema else ""
                what = f"no column {', '.join(missing)}" if found else "no such table"
                raise DataContractError(
                    f"{self.place}: expected table '{table}' of OMOP CDM 5.4{where}, found {what}: correct `schema`, or the load of the"
                    " database"
                )
            if table in EVENTS and EVENTS[table].moment in found:
                self.moments.add(table)
        self._concepts()

    def _concepts(self) -> None:
        """That concepts are in the vocabulary and are those that records bear: another one would be found nowhere, in silence."""
        asked = {
            (c, column.descendants)
            for column in self.source.columns
            if isinstance(column, EventColumn)
            for c in column.concept
        }
        if not asked or not self.database.columns("concept", self._vocabulary):
            return
        concept = self._table("concept", ("concept_id", "standard_concept"), self._vocabulary)
        rows = self._in_parts(concept.select(), concept.c.concept_id, sorted({c for c, _ in asked}))
        standard = {row[0]: row[1] for row in rows}
        if missing := sorted({str(c) for c, _ in asked if c not in standard}):
            raise StudyError(
                f"{self.place}: expected concepts that the vocabulary has, found none {', '.join(missing)}: correct `concept`"
            )
        if odd := sorted(str(c) for c, below in asked if standard[c] != "S" and not below and c < LOCAL):
            raise StudyError(
                f"{self.place}: expected standard concepts, which records bear, found others: {', '.join(odd)}: name those that they map to"
            )

    def cohort(self) -> dict[int, int]:
        """person_id -> the day of entry, in the order of the ids."""
        about = self.source.cohort
        if about.id is not None:
            cohort = self._table(
                "cohort",
                ("cohort_definition_id", "subject_id", "cohort_start_date"),
                about.schema_ or self.source.schema_,
            )
            asked = _select(cohort.c.subject_id, cohort.c.cohort_start_date).where(
                cohort.c.cohort_definition_id == about.id
            )
            rows: Sequence[Any] = self.database.rows(asked)
        else:
            names, found = self.database.literally(about.query)
            lower = [name.lower() for name in names]
            if missing := [name for name in ("subject_id", "cohort_start_date") if lower.count(name) != 1]:
                raise DataContractError(
                    f"{self.place}: expected columns subject_id and cohort_start_date of the cohort's `query`, once each, found another"
                    f" number of {' and '.join(missing)}: name them with AS"
                )
            rows = [(row[lower.index("subject_id")], row[lower.index("cohort_start_date")]) for row in found]
        if not rows:
            raise DataContractError(
                f"{self.place}: expected patients in the cohort, found none: correct `cohort` in the site file"
            )
        if not all(isinstance(subject, int) and start is not None for subject, start in rows):
            raise DataContractError(
                f"{self.place}: expected a whole subject_id and a cohort_start_date in every row of the cohort, found rows without: repair the cohort"
            )
        entries = sorted((subject, self._day(start, "cohort_start_date")) for subject, start in rows)
        twice = sum(count > 1 for count in Counter(subject for subject, _ in entries).values())
        if twice and about.entry == "only":
            raise DataContractError(
                f"{self.place}: expected every patient once in the cohort, found {several(twice)} who enter several times: set entry ="
                ' "first" or "last" in `cohort`'
            )
        kept = dict(entries if about.entry == "last" else reversed(entries))  # of equal keys the last stays
        return dict(sorted(kept.items()))

    def persons(self, people: dict[int, int]) -> dict[str, NDArray[Any]]:
        """(n,) each column of `person` that is used, with 0 for NULL, and `born`: a day, 0 where the year is not known."""
        values = {c.value for c in self.source.columns if isinstance(c, PersonColumn)} - {"age"}
        names = list(dict.fromkeys([*PERSON, *sorted(values)]))
        person = self._table("person", names, self.source.schema_)
        rows = {row[0]: row for row in self._in_parts(person.select(), person.c.person_id, list(people))}
        if unknown := sum(subject not in rows for subject in people):
            raise DataContractError(
                f"{self.place}: expected every patient of the cohort in table 'person', found {several(unknown)} who are not: make the cohort"
                " anew from this database"
            )
        return {name: np.array([rows[subject][i] or 0 for subject in people], np.int64) for i, name in enumerate(names)}

    def of_person(self, column: PersonColumn, persons: dict[str, NDArray[Any]], index: Days) -> NDArray[Any]:
        """(n,) one cell a patient."""
        if column.value == "age":
            births = [born(*date) for date in zip(*(persons[name].tolist() for name in PERSON[2:]), strict=True)]
            years = ages(np.array(births, np.int64), index)
            if before := int((years < 0).sum()):
                raise DataContractError(
                    f"{self.place}: expected patients to be born before they enter the cohort, found {several(before)} who are not: repair"
                    " `person` or the cohort"
                )
            return years
        words = {0: "", **column.words}
        word = worded(words, column.other)
        said = [word([concept]) for concept in persons[column.value].tolist()]
        if unknown := said.count(None):
            raise DataContractError(
                f"{self.place}: expected `words` of column '{column.column}' to have every concept of {column.value}, found"
                f" {several(unknown)} patients with another: add it, or set `other`"
            )
        return np.array(said, dtype=object)

    def events(self, column: EventColumn, people: dict[int, int]) -> Events:
        """What the column is made of."""
        about, kept = EVENTS[column.table], Events()
        names = about.asked(column.value, column.table in self.moments)
        table = self._table(column.table, ("person_id", about.concept, about.date, *names), self.source.schema_)
        anybody = self._with_concepts(_select(table.c.person_id), table.c[about.concept], column)
        asked = anybody.add_columns(table.c[about.date], *(table.c[name] for name in names))
        # No patient's window reaches beyond these days; SQLite compares text, where a day may be followed by a time.
        first, after = min(people.values()) + column.window_days[0], max(people.values()) + column.window_days[1] + 1
        asked = asked.where(table.c[about.date] >= _date(first), table.c[about.date] < _date(after))
        value_of = taken(column)
        number = {subject: i for i, subject in enumerate(people)}
        for row in self._in_parts(asked, table.c.person_id, list(people)):
            cells = dict(zip(names, row[2:], strict=True))
            value, fit = value_of(cells)
            if value is not None:
                day = self._day(row[1], about.date)
                at = cells.get(about.moment)
                moment = (day - EPOCH) * 86400.0 if at is None else self._moment(at, about.moment)
                kept.add(number[row[0]], day, moment, float(cells.get(about.key, 0)), value, fit)
        if column.concept and not column.rare and not kept.patient and not self.database.rows(anybody.limit(1)):
            raise unseen(self.place, column, f"table '{column.table}'")
        return kept

    def _with_concepts(self, asked: Any, bears: Any, column: EventColumn) -> Any:
        """The statement, of rows alone whose concept is the column's."""
        if not column.concept:
            return asked
        own = bears.in_(column.concept)
        if not column.descendants:
            return asked.where(own)
        tree = self._table("concept_ancestor", ("ancestor_concept_id", "descendant_concept_id"), self._vocabulary)
        return asked.where(
            own | bears.in_(_select(tree.c.descendant_concept_id).where(tree.c.ancestor_concept_id.in_(column.concept)))
        )

    @property
    def _vocabulary(self) -> str:
        return self.source.vocabulary or self.source.schema_

    def _in_parts(self, asked: Any, of: Any, ids: list[int]) -> Iterator[Any]:
        for start in range(0, len(ids), AT_ONCE):
            yield from self.database.rows(asked.where(of.in_(ids[start : start + AT_ONCE])))

    def _table(self, name: str, columns: Sequence[str], schema: str) -> Any:
        import sqlalchemy as sa

        return sa.table(name, *(sa.column(column) for column in columns), schema=schema or None)

    def _day(self, cell: Any, column: str) -> int:
        try:
            return day_of(str(cell))
        except ValueError:
            pass
        raise DataContractError(
            f"{self.place}: expected dates in {column}, found another kind of cell: repair the load of the database"
        )

    def _moment(self, cell: Any, column: str) -> float:
        try:
            return moment_of(str(cell))
        except ValueError:
            pass
        raise DataContractError(
            f"{self.place}: expected moments in {column}, found another kind of cell: repair the load of the database"
        )


def _select(*columns: Any) -> Any:
    import sqlalchemy as sa

    return sa.select(*columns)


def _date(day: int) -> dt.date:
    return dt.date.fromordinal(min(max(day, 1), dt.date.max.toordinal()))
