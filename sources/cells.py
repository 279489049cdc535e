"""From the values of a typed source to the two kinds of column a table has, and from the outside world to a path."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.errors import DataContractError, StudyError
from fedrounds.core.table import Table

EXACT = 2**53  # whole numbers up to here are float64 without loss; longer ones are identifiers and stay text


def text(cells: Iterable[str]) -> NDArray[Any]:
    """A column of text, stripped."""
    return np.array([cell.strip() for cell in cells], dtype=object)


def as_written(values: Sequence[Any], stripped: NDArray[Any]) -> NDArray[Any] | None:
    """A column's cells as text before stripping; None where stripping changed nothing."""
    if stripped.dtype != object or stripped.tolist() == list(values):  # str.strip gives back what it need not change
        return None
    if all(value == value.strip() for value in values if isinstance(value, str)):
        return None
    return np.array([_written(value) for value in values], dtype=object)


def column(values: Sequence[Any]) -> NDArray[Any]:
    """Numbers and booleans alone give float64 with NaN for None; anything else, or nothing but None, gives text."""
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, float | Decimal) or _exact(value) for value in present):
        return np.array([np.nan if value is None else float(value) for value in values])
    return text(map(_written, values))


def table(values: Mapping[str, Sequence[Any]], read: Callable[[Sequence[Any]], NDArray[Any]]) -> Table:
    """The columns as `read` takes them, and as they were written where that differs."""
    columns = {name: read(cells) for name, cells in values.items()}
    written = {name: as_written(cells, columns[name]) for name, cells in values.items()}
    return Table(columns, {name: cells for name, cells in written.items() if cells is not None})


def _exact(value: Any) -> bool:
    return isinstance(value, int) and abs(value) <= EXACT


def _written(value: Any) -> str:
    if value is None or value != value:  # NaN, NaT
        return ""
    if isinstance(value, dt.date | dt.time):  # a datetime is a date
        return value.isoformat()
    return str(value)


def same_name(names: Sequence[str]) -> str | None:
    """Says which two columns share a name, by position: in a file without a header a name is a patient's value."""
    first: dict[str, int] = {}
    for position, name in enumerate(names, 1):
        if first.setdefault(name, position) != position:
            return f"columns {first[name]} and {position} have the same name"
    return None


def number(cell: str) -> float | None:
    """The number a cell spells, or None."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def existing(root: Path, path: str, site: str) -> Path:
    """The file that `path` names, checked to be one that can be opened and is not empty."""
    file = root / path
    place = f"site '{site}': expected a data file at {file}, found"
    try:
        with file.open("rb") as stream:
            start = stream.read(1)
    except IsADirectoryError:
        raise StudyError(f"{place} a folder: correct `path` in the site file so that it names one file") from None
    except (FileNotFoundError, NotADirectoryError):
        raise StudyError(f"{place} nothing: correct `path` in the site file (relative ones start at {root})") from None
    except OSError as error:
        raise StudyError(f"{place} one that cannot be opened ({type(error).__name__}): check permissions") from None
    if not start:
        raise DataContractError(f"{place} an empty one: check the export that writes it")
    return file
