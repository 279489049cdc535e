"""A site's rows as they came. What they mean is the dictionary's to say, later."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, repr=False, eq=False)
class Table:
    """Columns of equal length, by name: float64 from a typed source (NaN = empty), else text as an object array of str.

    Text is stripped of surrounding white space and an empty cell is ''. Its `repr` shows counts only, so a table that
    strays into a log or a traceback shows no patient. `written` holds a text column's cells before they were stripped, for
    those columns alone where that changed anything; it is no part of what a row is, so fingerprint and row keys do not see it.

    >>> table = Table({"age": np.array([63.0, 28.0]), "sex": np.array(["f", ""], object)})
    >>> table, table.take(table.columns["age"] > 60).rows
    (Table(2 rows, 2 columns), 1)
    """

    columns: Mapping[str, NDArray[Any]]
    written: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])

    def __post_init__(self) -> None:
        assert all(column.dtype in (np.float64, object) for column in self.columns.values()), "float64 or text"
        assert len({column.shape for column in self.columns.values()}) <= 1, "one cell a row in every column"
        assert all(len(cells) == len(self.columns[name]) for name, cells in self.written.items()), "of the same rows"

    def __repr__(self) -> str:
        return f"Table({self.rows} rows, {len(self.columns)} columns)"

    @property
    def rows(self) -> int:
        """Number of rows."""
        return next((len(column) for column in self.columns.values()), 0)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Table:
        """The rows that `index` (k,) names, in its order, or those where it (n,) is true."""
        written = {name: cells[index] for name, cells in self.written.items()}
        return Table({name: column[index] for name, column in self.columns.items()}, written)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of names, types and cells, in name order: tells new data from old. It stays at the site."""
        sha = hashlib.sha256()
        for name, column in sorted(self.columns.items()):
            if column.dtype == object:
                kind, text = "text", "\x1f".join(column.tolist())
                if text.count("\x1f") != len(column) - 1:  # a cell holds the separator
                    kind, text = "quoted text", ascii(column.tolist())
                cells = text.encode("utf-8", "surrogatepass")
            else:
                kind, cells = "float64", _canonical(column).tobytes()
            sha.update(ascii((name, kind, len(column), len(cells))).encode())
            sha.update(cells)
        return sha.hexdigest()

    def row_keys(self) -> NDArray[Any]:
        """(n,) of str: a digest of each row's cells as they are, in name order; equal rows share a key.

        It depends on nothing but the row, so a row keeps its key as the table grows. '63' and '63.0' differ.
        """
        named = [column for _, column in sorted(self.columns.items())]
        text = [column.tolist() for column in named if column.dtype == object]
        floats = [_canonical(column) for column in named if column.dtype != object]
        words = zip(*text, strict=True) if text else iter([()] * self.rows)
        numbers = np.column_stack(floats) if floats else np.empty((self.rows, 0))
        keys = np.empty(self.rows, object)
        # ascii() of a tuple quotes and escapes: unambiguous, and the same in every version of Python and of Unicode.
        keys[:] = [
            hashlib.sha256(ascii(row).encode() + number.tobytes()).hexdigest()[:32]
            for row, number in zip(words, numbers, strict=True)
        ]
        return keys


def _canonical(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Little-endian, with one NaN and one zero."""
    return np.where(np.isnan(column), np.nan, column + 0.0).astype("<f8")
