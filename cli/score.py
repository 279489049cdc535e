"""`fedrounds score`: predictions for the patients of a CSV file, a row for each of its rows."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrounds.core.errors import DataContractError

if TYPE_CHECKING:
    from fedrounds.tasks.scoring import Version

CHUNK = 5000  # rows at once


def score(version: Version, file: Path, out: Path, as_json: bool) -> int:
    """Write `out` as a whole or not at all, and say which rows were refused."""
    from fedrounds.core.dictionary import numbered

    if out.exists() and file.exists() and out.samefile(file):
        raise DataContractError(f"expected OUT.csv to be another file than IN.csv, found {out} twice")
    try:
        handle, part = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)  # readable for its owner alone
    except OSError as error:
        raise DataContractError(
            f"expected a folder that can be written at {out.parent}, found: {error.strerror}"
        ) from None
    try:
        with open(handle, "w", encoding="utf-8", newline="") as sink:
            rows, refused, unknown = _written(version, file, csv.writer(sink, lineterminator="\n"))
            sink.flush()
            os.fsync(handle)
        os.replace(part, out)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    told = {
        **version.about(),
        "rows": rows,
        "scored": rows - len(refused),
        "refused_rows": refused,
        "unknown_rows": unknown,
    }
    if as_json:
        print(json.dumps(told, ensure_ascii=False))
        return 0
    print(f"{told['study']} version {told['version']}: {told['scored']} of {rows} rows scored, in {out}")
    if refused:
        print(f"refused, and why is in the column `refused`: {numbered(refused)}")
    if unknown:
        print(f"with a level that the dictionary does not list, see the column `unknown`: {numbered(unknown)}")
    return 0


def _written(version: Version, file: Path, sink: Any) -> tuple[int, list[int], list[int]]:
    """Score a file into a writer; gives how many rows there were, those refused, those with a level that is not listed."""
    rows, refused, unknown = 0, [], []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            names = [name.strip() for name in next(reader, [])]
            places = _places(version, names, file)
            cells = _rows(reader, len(names), file)
            while chunk := list(islice(cells, CHUNK)):
                found = version.scored({name: [row[place] for row in chunk] for name, place in places.items()})
                if not rows:
                    sink.writerow(["row", *found.names, "refused", "unknown"])
                for i, row in enumerate(found.rows):
                    sink.writerow([rows + i + 1, *row])
                refused += [rows + i + 1 for i, row in enumerate(found.rows) if row[-2]]
                unknown += [rows + i + 1 for i, row in enumerate(found.rows) if row[-1]]
                rows += len(chunk)
            if not rows:
                raise DataContractError(f"{file}: expected rows below the header, found none")
        return rows, refused, unknown
    except OSError as error:
        problem = f"expected a file that can be read, found: {error.strerror}"
    except UnicodeError:
        problem = "expected text in UTF-8, found other bytes: save it so"
    except csv.Error:
        problem = f"expected well-formed cells, found a broken quotation or an endless cell after row {rows}: repair it"
    raise DataContractError(f"{file}: {problem}")  # out here: the exceptions above carry what they stumbled over


def _places(version: Version, names: Sequence[str], file: Path) -> dict[str, int]:
    """Where each feature's column is."""
    from fedrounds.core.dictionary import require_columns

    try:
        require_columns(version.dictionary, names, others=True)
    except DataContractError as error:
        raise DataContractError(f"{file}: {error}") from None
    return {name: names.index(name) for name in version.dictionary.names}


def _rows(reader: Any, width: int, file: Path) -> Iterator[list[str]]:
    """Rows of equal width; blank lines are no rows."""
    for row in reader:
        if len(row) == width:
            yield row
        elif row:
            raise DataContractError(
                f"{file}: expected {width} cells in every row, as in the header, found {len(row)} in line {reader.line_num}: repair that line"
            )
