"""Events of patients, gathered one by one in little memory, and one cell a patient out of those that count.

The result depends on the events alone, never on the order in which they came.
"""

from __future__ import annotations

import datetime as dt
import functools
from array import array
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.errors import DataContractError
from fedrounds.sources.reduced import Reduced, When

Floats = NDArray[np.float64]
Days = NDArray[np.int64]  # proleptic Gregorian ordinals, as datetime.date counts them; 0 where unknown
NOBODY, NO_DAY = -1, 0
EPOCH = dt.date(1970, 1, 1).toordinal()


class Fit(IntEnum):
    """Whether an event is as it was declared, and if not, what is wrong."""

    YES = 0
    UNIT = 1
    COMPARED = 2
    KIND = 3
    CODE = 4
    DATE = 5
    STATUS = 6
    NUMBER = 7
    PATIENT = 8


WORDS = {
    Fit.UNIT: "in another unit",
    Fit.COMPARED: "with a comparator (such as <)",
    Fit.KIND: "with another kind of value",
    Fit.CODE: "with a code that `words` lacks",
    Fit.DATE: "without a date",
    Fit.STATUS: "without a clinical status",
    Fit.NUMBER: "with a number that is not finite",
    Fit.PATIENT: "of no patient that is named",
}


class Events:
    """What one column is made of: 37 bytes an event, and its text once.

    `of` numbers the resource that told of the event, which a newer version may undo.
    """

    def __init__(self) -> None:
        self.patient, self.day, self.of = array("i"), array("i"), array("i")
        self.moment, self.tie, self.value = array("d"), array("d"), array("d")
        self.fit = array("b")
        self.labels: dict[str, int] = {}
        self.seen = False  # whether anybody had such an event, whenever it was

    def add(
        self, patient: int, day: int, moment: float, tie: float, value: float | str, fit: Fit = Fit.YES, of: int = 0
    ) -> None:
        """Keep an event.

        Args:
            day, moment: when it was, as an ordinal and in seconds; events of one moment are ordered by `tie`, then by value.
            fit: if it does not fit, its value does not count.
        """
        number = self.labels.setdefault(value, len(self.labels)) if isinstance(value, str) else value
        self.patient.append(patient)
        self.day.append(day)
        self.moment.append(moment)
        self.tie.append(tie)
        self.value.append(number)
        self.fit.append(fit)
        self.of.append(of)

    def column(
        self, about: Reduced, index: Days, valid: NDArray[np.bool_] | None, place: str, text: bool = False
    ) -> NDArray[Any]:
        """(n,) one cell a patient: a float64, NaN where nothing was found, or text, "" where nothing was.

        Args:
            index: (n,) the patients' index days; 0 leaves a patient out.
            valid: (resources,) which of them still stand; by default all.
            text: whether the values are words.

        Raises:
            DataContractError: a larger share of the events does not fit than may be left out.
        """
        patient, day = np.frombuffer(self.patient, np.intc), np.frombuffer(self.day, np.intc).astype(np.int64)
        fit, values = np.frombuffer(self.fit, np.int8), np.frombuffer(self.value, np.float64)
        there = np.ones(len(fit), bool) if valid is None else valid[np.frombuffer(self.of, np.intc)]
        # Of an event without a patient or a day nobody knows whether it counts: it might.
        known = (patient != NOBODY) & (day != NO_DAY)
        taken = index[patient] != 0
        since = day - index[patient]
        low, high = about.window_days
        there = there & np.where(known, taken & (since >= low) & (since <= high), taken | (patient == NOBODY))
        _judge(fit[there], about, place)
        there &= fit == Fit.YES
        ordered = sorted(self.labels)
        if text:
            rank = np.empty(len(ordered) + 1)
            rank[[self.labels[label] for label in ordered]] = np.arange(len(ordered))
            values = rank[values.astype(np.intp)]
        moment, tie = (np.frombuffer(a, np.float64)[there] for a in (self.moment, self.tie))
        cells = reduced(about.when, len(index), patient[there], moment, tie, values[there])
        if not text:
            return cells
        return np.array(["" if np.isnan(cell) else ordered[int(cell)] for cell in cells], dtype=object)


def reduced(when: When, n: int, patient: NDArray[Any], moment: Floats, tie: Floats, value: Floats) -> Floats:
    """(n,) one number a patient out of parallel arrays of events.

    >>> patient, when = np.array([0, 0, 2]), np.array([5.0, 4.0, 4.0])
    >>> reduced("last", 3, patient, when, when, np.array([1.0, 2.0, 3.0])), reduced("count", 2, patient[:2], when, when, when)
    (array([ 1., nan,  3.]), array([2., 0.]))
    """
    count = np.bincount(patient, minlength=n)
    if when in ("count", "any"):
        return count.astype(np.float64) if when == "count" else (count > 0).astype(np.float64)
    keys = (value, tie, moment, patient) if when in ("first", "last") else (value, patient)
    order = np.lexsort(keys)  # the last key counts most
    value, ends = value[order], np.cumsum(count)
    found, cells = count > 0, np.full(n, np.nan)
    if when == "mean":
        cells[found] = np.bincount(patient[order], value, minlength=n)[found] / count[found]
    elif when in ("last", "max"):
        cells[found] = value[ends[found] - 1]
    else:
        cells[found] = value[(ends - count)[found]]
    return cells


def _judge(fit: NDArray[np.int8], about: Reduced, place: str) -> None:
    counts = {kind: int((fit == kind).sum()) for kind in WORDS}
    wrong = sum(counts.values())
    if wrong > about.misfits * len(fit):
        said = ", ".join(f"{several(count)} {WORDS[kind]}" for kind, count in counts.items() if count)
        but = f", but for a share of {about.misfits:.4g}," if about.misfits else ""
        raise DataContractError(
            f"{place}: expected all events of column '{about.column}'{but} to fit what the site file declares, found {said}: correct the"
            " column there, or let a share of them be left out with `misfits`"
        )


def unseen(place: str, about: Reduced, where: str) -> DataContractError:
    """What to raise where nobody ever had an event of a column: a mistyped code would give a column of zeros, and nobody would know."""
    return DataContractError(
        f"{place}: expected an event of column '{about.column}' somewhere in {where}, found none of any patient at any time: correct its"
        " codes in the site file, or set rare = true there if nobody had one"
    )


def several(count: int) -> str:
    """A count as it may be told: one below ten is about few people."""
    return "fewer than 10" if count < 10 else str(count)


# --- days -------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def day_of(text: str) -> int:
    """The day as it is written, `2024-03-31T23:30:00-05:00` too; July 1 of a year alone and the 15th of a month alone are their middles.

    Raises:
        ValueError: it is no date.

    >>> dt.date.fromordinal(day_of("2024-03")), dt.date.fromordinal(day_of("2024"))
    (datetime.date(2024, 3, 15), datetime.date(2024, 7, 1))
    """
    if len(text) in (4, 7):
        text += "-07-01" if len(text) == 4 else "-15"
    if len(text) > 10 and text[10] not in "T ":
        raise ValueError
    return dt.date.fromisoformat(text[:10]).toordinal()


def moment_of(text: str) -> float:
    """Seconds since 1970 in UTC; the first of its day where it names no time, and UTC where it names no zone."""
    if len(text) <= 10:
        return (day_of(text) - EPOCH) * 86400.0
    found = dt.datetime.fromisoformat(text)
    return (found if found.tzinfo else found.replace(tzinfo=dt.UTC)).timestamp()


def ages(born: Days, index: Days) -> Floats:
    """(n,) whole years between two days, as birthdays count them; NaN where one of them is unknown."""
    return np.array([_years(b, i) if b and i else np.nan for b, i in zip(born.tolist(), index.tolist(), strict=True)])


def _years(born: int, index: int) -> float:
    start, end = dt.date.fromordinal(born), dt.date.fromordinal(index)
    return float(end.year - start.year - ((end.month, end.day) < (start.month, start.day)))


def worded(codes: Mapping[Any, str], other: str | None) -> Callable[[list[Any]], str | None]:
    """Gives the word of the first code that has one, or the word for others; None where there is none."""

    def word(found: list[Any]) -> str | None:
        return next((codes[code] for code in found if code in codes), other)

    return word
