"""What a suite sees of a table: the study's columns in the dictionary's terms, and columns that are made of them, where the suite asks.

    age                 a number (NaN = missing, or no number), or a level in its one way of writing; an empty cell is null
    age as written      the cell as it came, before it was stripped
    age is a number     1 where the cell is a number or one of its codes for missing, else 0
    age is padded       1 where white space surrounded the cell, else 0
    sex is f            1, 0 or null: for each level of a category and each label; `readmitted is positive` for a yes/no target
    days since seen     whole days on the calendar from the cell's day to today; null where it names no day

A column of the study goes before a made one of the same name. Nothing here imports Great Expectations.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.errors import StudyError
from fedrounds.core.operations import Operations
from fedrounds.core.study import Binary, Category, Label, Multiclass, Number, Regression, Study, Survival, canonical
from fedrounds.core.table import Table

if TYPE_CHECKING:
    from pandas import DataFrame

WRITTEN, NUMERIC, PADDED, SINCE = " as written", " is a number", " is padded", "days since "
Floats = NDArray[np.float64]


def today(operations: Operations, now: dt.datetime | None = None) -> dt.date:
    """The calendar day of the study's time zone (its schedule's, else UTC), by which a suite counts days."""
    zone = zone_of(operations)
    return (now or dt.datetime.now(dt.UTC)).astimezone(ZoneInfo(zone)).date()


def zone_of(operations: Operations) -> str:
    """The study's time zone; a moment that names none is in it."""
    zone = operations.schedule.timezone if operations.schedule else "UTC"
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError):
        raise StudyError(
            f"expected a time zone such as Europe/Zurich in [schedule] of operations.toml, found '{zone}': correct it"
        ) from None
    return zone


def columns_of(study: Study) -> list[str]:
    """Every column that the study reads and a suite may ask about, in the dictionary's order."""
    time = study.target.time if isinstance(study.target, Survival) else None
    named = [study.patient_id, study.event_time, *(f.name for f in study.features), time, study.target.column]
    return list(dict.fromkeys(name for name in named if name))


def numeric(study: Study) -> dict[str, Sequence[Label]]:
    """The columns of numbers, with their codes for missing."""
    found: dict[str, Sequence[Label]] = {f.name: f.missing for f in study.features if isinstance(f, Number)}
    target = study.target
    if isinstance(target, Regression) or (isinstance(target, Binary) and target.positive_above is not None):
        found[target.column] = target.missing
    if isinstance(target, Survival):
        found[target.time] = target.missing
    return found


def levels(study: Study) -> dict[str, list[str]]:
    """The columns of levels or labels, with all that may stand there."""
    found = {f.name: [canonical(c) for c in f.categories] for f in study.features if isinstance(f, Category)}
    match study.target:
        case Binary(positive_above=None) as target:
            found[target.column] = [canonical(label) for label in (*target.negative, *target.positive)]
        case Survival() as target:
            found[target.column] = [canonical(label) for label in (*target.censored, *target.happened)]
        case Multiclass() as target:
            found[target.column] = [canonical(label) for label in target.classes]
        case _:
            pass
    return found


def origin(name: str, study: Study) -> str | None:
    """The column of the study that a suite's column is, or is made of; None where there is no such column."""
    known = columns_of(study)
    if name in known:
        return name
    if name.startswith(SINCE) and name.removeprefix(SINCE) in known:
        return name.removeprefix(SINCE)
    for ending, of in ((WRITTEN, known), (PADDED, known), (NUMERIC, numeric(study))):
        if name.endswith(ending) and name.removesuffix(ending) in of:
            return name.removesuffix(ending)
    share = _share_of(name, study)
    return share and share[0]


def _share_of(name: str, study: Study) -> tuple[str, str] | None:
    """The column and the level that `COLUMN is LEVEL` names; the level is "" for `is positive`."""
    if isinstance(study.target, Binary) and name == f"{study.target.column} is positive":
        return study.target.column, ""
    return next(((c, level) for c, all_ in levels(study).items() for level in all_ if name == f"{c} is {level}"), None)


def frame(
    table: Table,
    study: Study,
    absent: Collection[str] = (),
    asked: Collection[str] | None = None,
    day: dt.date | None = None,
    zone: str = "UTC",
) -> DataFrame:
    """The columns that are asked for (by default: the study's own) and can be had, a row a row of the table.

    A column that the table lacks, or that the hospital does not record, is left out. A cell of a column of numbers that is no number is NaN:
    `is a number` tells it from a missing one.
    """
    import pandas as pd

    wanted = columns_of(study) if asked is None else list(dict.fromkeys(asked))
    made: dict[str, Any] = {}
    read = functools.cache(lambda base: read_numbers(table.columns[base], codes[base]))  # two columns are made of it
    codes = numeric(study)
    for name in wanted:
        base = origin(name, study)
        if base is None or base in absent or base not in table.columns:
            continue
        if base in codes and name in (base, f"{base}{NUMERIC}"):
            made[name] = read(base)[0] if name == base else read(base)[1].astype(np.float64)
        else:
            made[name] = _made(name, base, table, study, day, zone)
    return pd.DataFrame(made, index=pd.RangeIndex(table.rows))


def _made(name: str, base: str, table: Table, study: Study, day: dt.date | None, zone: str) -> Any:
    column = table.columns[base]
    if name == base:
        return _text(column, _missing(base, study))
    if name.startswith(SINCE):
        return days_since(column, day or dt.datetime.now(ZoneInfo(zone)).date(), zone)
    if name.endswith(WRITTEN):
        return _as_written(table.written.get(base, column))
    if name.endswith(PADDED):
        raw = table.written.get(base)
        return np.zeros(table.rows) if raw is None else (raw != column).astype(np.float64)
    level = name.removeprefix(f"{base} is ")
    return share(column, base, "" if level == "positive" and isinstance(study.target, Binary) else level, study)


def share(column: NDArray[Any], base: str, level: str, study: Study) -> Floats:
    """(n,) 1 where the cell is that level (of the target, "" is the positive side), 0 where it is another, NaN where it is missing."""
    target = study.target
    if base == target.column and isinstance(target, Binary) and target.positive_above is not None:
        value = read_numbers(column, target.missing)[0]
        return np.where(np.isnan(value), np.nan, value > target.positive_above)
    codes, distinct = _distinct(column)
    wanted = {canonical(label) for label in target.positive} if level == "" and isinstance(target, Binary) else {level}
    gone = {canonical(code) for code in _missing(base, study)} | {"", "nan"}
    meaning = [np.nan if text in gone else float(text in wanted) for text in map(_canonical, distinct)]
    return np.array([*meaning, np.nan])[codes]


def _missing(base: str, study: Study) -> Sequence[Label]:
    if base == study.target.column or (isinstance(study.target, Survival) and base == study.target.time):
        return study.target.missing
    return next((feature.missing for feature in study.features if feature.name == base), ())


# --- cells ------------------------------------------------------------------------------------------------------------


def read_numbers(column: NDArray[Any], missing: Sequence[Label]) -> tuple[Floats, NDArray[np.bool_]]:
    """(n,) float64, NaN where missing or no number; and (n,) whether the cell is a number or a code for missing."""
    codes = {canonical(code) for code in missing}
    amounts = [number for number in map(_number, codes) if number is not None]
    if column.dtype == np.float64:
        known = np.isfinite(column) | np.isnan(column)
        return np.where(np.isin(column, amounts) | ~np.isfinite(column), np.nan, column), known
    fast = _parsed(column, codes)
    if fast is not None:
        value, known = fast, np.ones(len(column), bool)
    else:
        place, distinct = _distinct(column)
        numbers = [_number(text) for text in distinct]
        value = np.array([np.nan if number is None else number for number in numbers])[place]
        known = np.array(
            [n is not None or text.strip() in codes | {""} for n, text in zip(numbers, distinct, strict=True)]
        )
        known = known[place]
    return np.where(np.isin(value, amounts), np.nan, value) if amounts else value, known


def _parsed(column: NDArray[Any], codes: set[str]) -> Floats | None:
    """The whole column at once, where every cell is empty, a code or a plain number; else None."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        text = pa.array(column, pa.string())
        gone = pc.is_in(text, pa.array([*codes, ""], pa.string()))
        value = pc.if_else(gone, None, text).cast(pa.float64()) if pc.any(gone).as_py() else text.cast(pa.float64())
    except (pa.ArrowException, UnicodeEncodeError):
        return None
    known = value.drop_null() if value.null_count else value
    return value.to_numpy(zero_copy_only=False) if pc.all(pc.is_finite(known), min_count=0).as_py() else None


def _number(text: str) -> float | None:
    """The finite number that a cell spells, or None: an underscore spells none, nor do "nan" and "inf"."""
    try:
        value = float(text) if "_" not in text else np.inf
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _distinct(column: NDArray[Any]) -> tuple[NDArray[np.intp], list[Any]]:
    """(n,) which of the distinct cells each one is (-1: a typed null), and those."""
    import pandas as pd

    place, distinct = pd.factorize(column)
    return place, distinct.tolist()


def _text(column: NDArray[Any], missing: Sequence[Label]) -> Any:
    """Text in its one way of writing, null where it is missing."""
    import pandas as pd

    codes = {canonical(code) for code in missing} | {"", "nan"}
    if column.dtype == object and len(set(column[:1000].tolist())) > 500:  # an id, likely
        as_it_is = _plain(column, codes)
        if as_it_is is not None:
            return as_it_is
    place, distinct = _distinct(column)
    written = [None if (text := _canonical(cell)) in codes else text for cell in distinct]
    return pd.array([*written, None], dtype="str").take(np.where(place < 0, len(written), place))


def _as_written(column: NDArray[Any]) -> Any:
    """Text as it is; null where the cell is empty."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pa.array(column).cast(pa.string()) if column.dtype == np.float64 else pa.array(column, pa.string())
    return pd.array(pc.if_else(pc.equal(text, ""), None, text), dtype="str")


def _plain(column: NDArray[Any], codes: set[str]) -> Any:
    """The column at once, where every cell is text in its one way of writing and none is missing; else None."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pa.array(column, pa.string())
    plain = pc.all(pc.match_substring_regex(text, f"^(?:{PLAIN})$")).as_py()
    return (
        pd.array(text, dtype="str") if plain and not pc.any(pc.is_in(text, pa.array(sorted(codes)))).as_py() else None
    )


# Nothing but `inf` and `nan` begins with a letter and is a number; so many digits are their own canonical form.
PLAIN = r"[A-HJ-MO-Za-hj-mo-z][!-~]*|0|[1-9][0-9]{0,14}"


def _canonical(cell: Any) -> str:
    """`canonical`, without its cost where the cell stands in its one way of writing already."""
    text = str(cell)
    return text if re.fullmatch(PLAIN, text) else canonical(text)


# --- days -------------------------------------------------------------------------------------------------------------


def days_since(column: NDArray[Any], today: dt.date, zone: str) -> Floats:
    """(n,) whole days on the calendar of `zone`; a moment without a zone is taken as local, a cell that is no day is NaN.

    >>> days_since(np.array(["2026-01-01", "2025-12-31T23:30:00-05:00", ""], object), __import__("datetime").date(2026, 1, 3), "UTC").tolist()
    [2.0, 2.0, nan]
    """
    if column.dtype == np.float64:
        return np.full(len(column), np.nan)
    place, distinct = _distinct(column)
    where = ZoneInfo(zone)
    days = [_day(cell, where) for cell in distinct]
    since = [np.nan if day is None else float((today - day).days) for day in days]
    return np.array([*since, np.nan])[place]


def _day(cell: str, zone: ZoneInfo) -> dt.date | None:
    try:
        moment = dt.datetime.fromisoformat(cell)
        return moment.date() if moment.tzinfo is None else moment.astimezone(zone).date()
    except (ValueError, OverflowError):
        return None
