"""A request to score patients, as MLflow's scoring protocol has it: bytes of JSON in, columns of cells out.

    {"dataframe_split": {"columns": ["age", "sex"], "data": [[63, "f"]]}}
    {"dataframe_records": [{"age": 63, "sex": "f"}]}
    {"instances": [{"age": 63, "sex": "f"}]}
    {"inputs": {"age": [63], "sex": ["f"]}}

Stricter than MLflow where it guesses: no NaN and Infinity, which are no JSON; no name twice; every row has every column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

from fedrounds.core.dictionary import Dictionary, require_columns
from fedrounds.core.errors import DataContractError

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
MOST_ROWS = 10_000
MOST_BYTES = 10_000_000
Columns = Mapping[str, Sequence[Any]]
Table = tuple[Sequence[str], Sequence[Sequence[Any]]]  # names, rows of cells


class Refused(DataContractError):
    """A request that is not scored, and the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def columns(body: bytes, dictionary: Dictionary, most: int = MOST_ROWS) -> Columns:
    """The cells of a request, by the dictionary's columns.

    Raises:
        Refused: 400 it is no JSON or in no known form; 413 there are too many rows; 422 its columns are not the dictionary's.
    """
    form, given = next(iter(document.items())) if len(document := _named(_document(body)) or {}) == 1 else ("", None)
    if form not in FORMS:
        raise Refused(400, f"expected an object with one key of {', '.join(FORMS)}, found otherwise")
    if form == "dataframe_split":
        names, rows = _split(given)
    elif form == "inputs" and (by_column := _named(given)) is not None:
        names, rows = _by_column(by_column)
    else:
        names, rows = _records(form, given, dictionary)
    if not rows:
        raise Refused(400, f"expected at least one row in {form}, found none")
    if len(rows) > most:
        raise Refused(413, f"expected at most {most} rows in one request, found {len(rows)}: send them in several")
    try:
        require_columns(dictionary, names)
    except DataContractError as error:
        raise Refused(422, str(error)) from None
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def _document(body: bytes) -> object:
    problem = ""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_number, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        problem = f"expected JSON in UTF-8, found byte {error.start + 1} to be none"
    except json.JSONDecodeError as error:  # its own words may quote the text
        problem = f"expected JSON, found none at line {error.lineno}, column {error.colno}"
    except RecursionError:
        problem = "expected JSON of a table, found it nested deeper than any table"
    except ValueError:
        problem = "expected numbers that fit 64 bits, found one of thousands of digits"
    raise Refused(400, problem)  # out here: the exceptions above carry what they stumbled over


def _no_number(word: str) -> NoReturn:
    raise Refused(400, f"expected JSON, found {word}, which it has no word for: send null where nothing was measured")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise Refused(400, "expected each name once in an object, found one twice")
    return made


def _named(value: object) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _listed(value: object) -> list[Any] | None:
    return cast("list[Any]", value) if isinstance(value, list) else None


def _split(given: object) -> Table:
    """Names, and rows of cells."""
    parts = _named(given) or {}
    names, rows = _listed(parts.get("columns")), _listed(parts.get("data"))
    if names is None or rows is None or parts.keys() - {"columns", "data", "index"}:
        raise Refused(400, 'expected dataframe_split to be {"columns": […], "data": [[…], …]}, found otherwise')
    if not all(isinstance(name, str) for name in names):
        raise Refused(400, "expected `columns` of dataframe_split to be names, found otherwise")
    for number, row in enumerate(rows, 1):
        if len(_listed(row) or ()) != len(names):
            raise Refused(
                400, f"expected {len(names)} cells in every row of dataframe_split, found otherwise in row {number}"
            )
    return names, rows


def _by_column(given: Mapping[str, Any]) -> Table:
    cells = [_listed(column) for column in given.values()]
    if any(column is None for column in cells) or len({len(column or ()) for column in cells}) > 1:
        raise Refused(400, "expected `inputs` to give each column as a list, all of one length, found otherwise")
    return list(given), list(zip(*(column or () for column in cells), strict=True))


def _records(form: str, given: object, dictionary: Dictionary) -> Table:
    records = _listed(given)
    if records is None:
        raise Refused(400, f"expected {form} to be a list of rows, each {{column: cell}}, found otherwise")
    names: list[str] = []
    rows: list[Sequence[Any]] = []
    for number, record in enumerate(records, 1):
        row = _named(record)
        if row is None:
            raise Refused(400, f"expected every row of {form} to be {{column: cell}}, found otherwise in row {number}")
        names = names or list(row)
        if row.keys() != set(names):
            lacking = [name for name in dictionary.names if name in names and name not in row]
            what = f"no '{lacking[0]}'" if lacking else "others"
            raise Refused(
                422,
                f"expected the same columns in every row, found {what} in row {number}: write null for what is missing",
            )
        rows.append([row[name] for name in names])
    return names, rows
