"""What a registered version says of the columns that it takes, and whether rows keep to it.

It lies beside the model as `dictionary.json`. Cells mean what they mean in training (`core.preprocess.clean`); here a cell that cannot be
meant is found row by row, so that one patient's typing error is one patient's refusal. What is said names features and rows, never a cell.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np

from fedrounds.core.errors import DataContractError
from fedrounds.core.frozen import Frozen
from fedrounds.core.params import Array
from fedrounds.core.study import Category, Feature, Number, Study, Target, canonical

DICTIONARY = "dictionary.json"
SHOWN = 10  # row numbers in one message
_WRONG = np.inf  # of a cell: no number, no level, nothing that means missing


class Dictionary(Frozen):
    """The part of a study that scoring needs. `missing`: what the study does with a patient of whom a feature is missing."""

    format: Literal[1] = 1
    study: str
    digest: str
    target: Target
    missing: Literal["impute", "drop_row"]
    features: tuple[Feature, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that the model takes, in its order."""
        return tuple(feature.name for feature in self.features)


def described(study: Study) -> str:
    """The dictionary of a study as a document."""
    said = Dictionary(
        study=study.name,
        digest=study.digest,
        target=study.target,
        missing=study.preprocess.missing,
        features=study.features,
    )
    return json.dumps(said.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class Fault:
    """Rows (the first is 1) in which a feature is not as the dictionary says."""

    feature: str
    expected: str
    rows: tuple[int, ...]

    def __str__(self) -> str:
        return f"expected {self.expected} in '{self.feature}', found otherwise in {numbered(self.rows)}"


@dataclass(frozen=True, repr=False, eq=False)
class Checked:
    """Rows in the dictionary's terms, as `clean` would have them, and where they are not in them.

    values: (n, features) numbers, level indices with len(levels) for any other value, NaN where missing or where there is a fault.
    unknown: feature -> rows (the first is 1) whose value is none of its levels: it counts as `other` or as missing, as in training.
    """

    values: Array
    faults: tuple[Fault, ...]
    unknown: Mapping[str, tuple[int, ...]]


def numbered(rows: Sequence[int]) -> str:
    """Row numbers as people read them.

    >>> numbered([3]), numbered([1, 2, 5]), numbered(range(1, 15))
    ('row 3', 'rows 1, 2 and 5', 'rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 4 more')
    """
    shown = [str(row) for row in rows[:SHOWN]]
    if len(rows) > SHOWN:
        return f"rows {', '.join(shown)} and {len(rows) - SHOWN} more"
    return f"row {shown[0]}" if len(shown) == 1 else f"rows {', '.join(shown[:-1])} and {shown[-1]}"


def require_columns(dictionary: Dictionary, found: Sequence[str], others: bool = False) -> None:
    """Raise DataContractError where a column is missing, is there twice or, unless `others`, is none of the dictionary's.

    A name that nobody declared may be a patient's cell, in a file without a header: it is told by its position.
    """
    known = set(dictionary.names)
    if lacking := [name for name in dictionary.names if name not in found]:
        raise DataContractError(
            f"expected the {len(known)} columns of the dictionary of '{dictionary.study}', found none called"
            f" {_quoted(lacking)}: send each, with null where nothing was measured"
        )
    if twice := [name for name in dictionary.names if list(found).count(name) > 1]:
        raise DataContractError(f"expected each column once, found {_quoted(twice)} twice: leave one out")
    strange = [place for place, name in enumerate(found, 1) if name not in known]
    if strange and not others:
        places = numbered(strange).replace("row", "column")
        raise DataContractError(
            f"expected the {len(known)} columns of the dictionary of '{dictionary.study}' alone, found others as {places}: leave them out"
        )


def check(dictionary: Dictionary, columns: Mapping[str, Sequence[Any]], spelled: bool = False) -> Checked:
    """Read cells by the dictionary.

    Args:
        columns: those of the dictionary, of one length; a cell is text, a number or None.
        spelled: a number may be spelled out in text, as in a file of text.
    """
    rows = len(columns[dictionary.names[0]])
    values = np.empty((rows, len(dictionary.features)))
    faults: list[Fault] = []
    unknown: dict[str, tuple[int, ...]] = {}
    for j, feature in enumerate(dictionary.features):
        meaning = _number(feature, spelled) if isinstance(feature, Number) else _level(feature)
        found = np.fromiter(map(meaning, columns[feature.name]), np.float64, rows)
        wrong = np.isinf(found)
        if isinstance(feature, Category):
            if (strange := found == len(feature.categories)).any():
                unknown[feature.name] = _rows(strange)
            if feature.encode == "drop_first":
                found[strange] = np.nan
        elif feature.range:
            wrong |= (found < feature.range[0]) | (found > feature.range[1])
        empty = np.isnan(found) & (dictionary.missing == "drop_row")
        asked = (_expected(feature), wrong), ("a value (the study leaves out who lacks one)", empty)
        faults += [Fault(feature.name, expected, _rows(where)) for expected, where in asked if where.any()]
        found[wrong] = np.nan
        values[:, j] = found
    return Checked(values, tuple(faults), unknown)


def _rows(where: Any) -> tuple[int, ...]:
    return tuple(int(row) + 1 for row in np.flatnonzero(where))


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _expected(feature: Feature) -> str:
    if isinstance(feature, Category):
        return f"one of its {len(feature.categories)} levels, as text or number"
    unit = f" {feature.unit}" if feature.unit else ""
    if feature.range is None:
        return f"a finite number{unit and ' of' + unit}"
    return f"a number from {feature.range[0]:g} to {feature.range[1]:g}{unit}"


def _number(feature: Number, spelled: bool) -> Callable[[Any], float]:
    """What a cell of a column of numbers means."""
    missing = {canonical(code) for code in feature.missing} | {""}
    codes = {float(code) for code in missing if isfinite(_spelled(code))}

    def meaning(cell: Any) -> float:
        if cell is None:
            return np.nan
        if isinstance(cell, str):
            if canonical(cell) in missing:
                return np.nan
            value = _spelled(cell) if spelled else _WRONG
        elif isinstance(cell, int | float) and not isinstance(cell, bool):
            try:
                value = float(cell)
            except OverflowError:
                return _WRONG
        else:
            return _WRONG
        if not isfinite(value):
            return _WRONG
        return np.nan if value in codes else value

    return meaning


def _spelled(text: str) -> float:
    """The number that a text spells; infinity where it spells none."""
    try:
        return float(text) if "_" not in text else _WRONG
    except ValueError:
        return _WRONG


def _level(feature: Category) -> Callable[[Any], float]:
    """What a cell of a category means: the place of its level, or the one after all levels."""
    level = {canonical(name): float(place) for place, name in enumerate(feature.categories)}
    level |= {canonical(code): np.nan for code in feature.missing} | {"": np.nan}
    unknown = float(len(feature.categories))

    def meaning(cell: Any) -> float:
        if cell is None:
            return np.nan
        if isinstance(cell, bool) or not isinstance(cell, str | int | float):
            return _WRONG
        return level.get(canonical(cell), unknown)

    return meaning
