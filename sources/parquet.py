"""A Parquet file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fedrounds.core.errors import DataContractError
from fedrounds.core.table import Table
from fedrounds.sources import cells
from fedrounds.sources.options import ParquetSource


def read(source: ParquetSource, root: Path, site: str) -> Table:
    """Numbers and booleans as float64 (NaN = null), moments as ISO 8601 text, everything else as text ('' = null)."""
    import pyarrow as pa
    from pyarrow import parquet

    file = cells.existing(root, source.path, site)
    place = f"site '{site}', {file}"
    data, failure = None, ""
    try:
        data = parquet.ParquetFile(file).read()
    except (pa.ArrowException, OSError) as error:
        failure = type(error).__name__
    if data is None:  # raised out here, without Arrow's message and its look at the bytes
        raise DataContractError(
            f"{place}: expected a Parquet file, found one that cannot be read ({failure}): export it anew"
        )
    names = [name.strip() for name in data.column_names]
    if same := cells.same_name(names):
        raise DataContractError(f"{place}: expected distinct column names, found that {same}: rename one")
    if not data.num_rows:
        raise DataContractError(f"{place}: expected rows, found none: check the export that writes the file")
    columns = {name: _column(values) for name, values in zip(names, data.columns, strict=True)}
    raw = zip(names, data.columns, strict=True)
    written = {name: cells.as_written(values.to_pylist(), columns[name]) for name, values in raw if _is_text(values)}
    return Table(columns, {name: values for name, values in written.items() if values is not None})


def _is_text(values: Any) -> bool:
    import pyarrow as pa

    kinds, kind = pa.types, values.type
    return kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_dictionary(kind)


def _column(values: Any) -> NDArray[Any]:
    import pyarrow as pa

    kinds = pa.types
    if kinds.is_integer(values.type) or kinds.is_floating(values.type) or kinds.is_boolean(values.type):
        try:
            return values.cast(pa.float64()).to_numpy()
        except pa.ArrowInvalid:  # whole numbers that float64 cannot hold
            pass
    return cells.column(values.to_pylist())
