"""Delimited text, read by the standard library, since pandas pads a short row in silence."""

from __future__ import annotations

import csv
from pathlib import Path

from fedrounds.core.errors import DataContractError
from fedrounds.core.table import Table
from fedrounds.sources import cells
from fedrounds.sources.options import CsvSource


def read(source: CsvSource, root: Path, site: str) -> Table:
    """Every cell as stripped text; blank lines are skipped, a header cell left empty is called column_1, column_2, …"""
    file = cells.existing(root, source.path, site)
    place = f"site '{site}', {file}"
    encoding = "utf-8-sig" if source.encoding.lower() in ("utf-8", "utf8") else source.encoding
    names = None if source.columns is None else [name.strip() for name in source.columns]
    rows: list[list[str]] = []
    problem = ""
    line = 0
    try:
        with file.open(encoding=encoding, newline="") as stream:
            reader = csv.reader(stream, delimiter=source.separator, strict=True)
            for row in reader:
                line = reader.line_num
                if not row:
                    continue
                if names is None:
                    names = [name.strip() or f"column_{position}" for position, name in enumerate(row, 1)]
                elif len(row) == len(names):
                    rows.append(row)
                else:
                    problem = (
                        f"expected {len(names)} cells in every row, found {len(row)} in line {line}: "
                        f"check `separator`, `header` and `columns`, or repair that line"
                    )
                    break
    except UnicodeError:
        problem = (
            f"expected text in {source.encoding}, found other bytes: set `encoding`, for example to cp1252 or latin-1"
        )
    except csv.Error:
        problem = (
            f"expected well-formed cells, found a broken quotation or an endless cell after line {line}: repair it"
        )
    # Raised out here, because the exceptions above carry the bytes they stumbled over.
    if problem:
        raise DataContractError(f"{place}: {problem}")
    if same := cells.same_name(names or []):
        raise DataContractError(
            f"{place}: expected distinct column names, found that {same}: rename one, "
            "or set header = false and `columns` if the file has no header"
        )
    if not names or not rows:
        raise DataContractError(
            f"{place}: expected rows, found none below the header: check the export that writes the file"
        )
    return cells.table(dict(zip(names, zip(*rows, strict=True), strict=True)), cells.text)
