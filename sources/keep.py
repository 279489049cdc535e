"""Which rows of a file a site uses: a published split first, since it counts the file's rows, then a filter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.errors import DataContractError, StudyError
from fedrounds.core.table import Table
from fedrounds.sources import cells, csv_file
from fedrounds.sources.options import CsvSource, FoldFile, ParquetSource, Where


def recipe(table: Table, source: CsvSource | ParquetSource, root: Path, site: str) -> Table:
    """The rows that the split lists and the filter lets through."""
    if source.fold is not None:
        table = _split(table, source.fold, root, site)
    return matching(table, source.where or {}, f"site '{site}', {root / source.path}")


def matching(table: Table, where: Where, place: str) -> Table:
    """The rows whose cells equal every value of `where`, as text or as numbers."""
    for name, value in where.items():
        table = table.take(_equal(_column(table, name, place), value))
    if not table.rows:
        raise StudyError(
            f"{place}: expected rows with the `where` of the site file ({', '.join(where)}), found none: correct it"
        )
    return table


def _equal(column: NDArray[np.object_] | NDArray[np.float64], value: str | float) -> NDArray[np.bool_]:
    wanted = str(value).strip()
    amount = cells.number(wanted)
    if column.dtype != object:
        return column == (np.nan if amount is None else amount)
    # Cells repeat: each distinct one is judged once.
    same = {cell for cell in set(column) if cell == wanted or (amount is not None and cells.number(cell) == amount)}
    return np.array([cell in same for cell in column], dtype=bool)


def _column(table: Table, name: str, place: str) -> NDArray[np.object_] | NDArray[np.float64]:
    if name not in table.columns:
        raise StudyError(
            f"{place}: expected a column '{name}', found {len(table.columns)} others: correct the site file"
        )
    return table.columns[name]


def _split(table: Table, fold: FoldFile, root: Path, site: str) -> Table:
    place = f"site '{site}', {root / fold.path}"
    listed = matching(csv_file.read(CsvSource(path=fold.path), root, site), fold.where or {}, place)
    numbers = [cells.number(cell) for cell in _column(listed, fold.row, place)]
    folds = _column(listed, fold.fold, place)
    fits = [number is not None and number % 1 == 0 and 0 <= number < table.rows for number in numbers]
    if wrong := fits.count(False):
        raise DataContractError(
            f"{place}: expected row numbers 0 to {table.rows - 1} in '{fold.row}', found {wrong} others: "
            "check that the split belongs to this file"
        )
    rows = np.array(numbers, dtype=np.intp)
    if twice := len(rows) - len(set(rows.tolist())):
        raise DataContractError(
            f"{place}: expected every row once, found {twice} repeated: narrow `where` of the split"
        )
    if unknown := int(np.sum(~np.isin(folds.astype(str), ("train", "valid", "test")))):
        raise DataContractError(f"{place}: expected train, valid or test in '{fold.fold}', found {unknown} other cells")
    if fold.as_ in table.columns:
        raise StudyError(
            f"{place}: expected '{fold.as_}' to be a new column, found it in the table: choose another name with `as`"
        )
    order = np.argsort(rows)
    kept = table.take(rows[order])
    return Table({**kept.columns, fold.as_: folds[order]}, kept.written)
