"""From a site's table to a design matrix.

    table --clean--> cohort: one number a cell, a missing cell is NaN --encode with the study's statistics--> rows

The statistics (what to impute, centre and scale by) come from training rows alone, by sums over sites, in round 0; then they are a frozen
part of the model. Messages name columns, sites and counts, never a cell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.errors import DataContractError
from fedrounds.core.params import Array
from fedrounds.core.study import (
    Binary,
    Category,
    Feature,
    Label,
    Multiclass,
    NoTarget,
    Number,
    Regression,
    Study,
    Survival,
    Validation,
    canonical,
)
from fedrounds.core.table import Table

Statistics = Mapping[str, Array]  # impute (features,), center (width,), scale (width,); rows (1,) where sums are masked


@dataclass(frozen=True, repr=False, eq=False)
class Cohort:
    """A site's patients in the study's terms: numbers as they are, categories as the index of their level, NaN where missing.

    Like a table, it shows counts only when printed.
    """

    site: str
    values: Array  # (n, features)
    y: Array  # (n,)
    valid: NDArray[np.bool_]  # (n,) these rows only judge
    dropped: Mapping[str, int]  # why rows were left out -> how many
    offset: Array | None = None  # (n,) what is added to a patient's score as it is, where the study names one
    weight: Array | None = None  # (n,) how often a patient counts, where the study says

    @property
    def patients(self) -> int:
        """Rows that take part, training and validation."""
        return len(self.y)

    def __repr__(self) -> str:
        return f"Cohort({self.site!r}, {self.patients} rows, {int(self.valid.sum())} of them validation)"


@dataclass(frozen=True, repr=False, eq=False)
class Rows:
    """What a site trains and judges on: design matrices, ready for a model.

    X: (n, width), then a column of ones if the model has an intercept, then the offset if the study has one.
    """

    X: Array
    y: Array
    X_valid: Array
    y_valid: Array
    weight: Array | None = None  # (n,) how often a training row counts, where the study says

    @cached_property
    def mark(self) -> Array:
        """(n,) a number a training row that differs if one of its numbers does: a site knows by it which rows it worked something out of."""
        weigh = np.cos(np.arange(1.0, self.X.shape[1] + 2.0))
        mark = self.X @ weigh[:-1] + self.y * weigh[-1]
        return mark if self.weight is None else mark + self.weight * np.pi

    def __repr__(self) -> str:
        return f"Rows({len(self.y)} training, {len(self.y_valid)} validation)"


# --- clean ------------------------------------------------------------------------------------------------------------


def clean(table: Table, study: Study, site: str, absent: tuple[str, ...] = (), split_key: str = "") -> Cohort:
    """Read a table by the study's dictionary.

    Args:
        absent: features that this hospital does not record; they count as missing in every row.
        split_key: the site's secret for drawing validation rows; a patient's side never changes while it stays the same.

    Raises:
        DataContractError: a column is missing, not numeric, or has no value at all; a label is unknown; an id is empty.
    """
    _require_columns(table, study, site, absent)
    values = np.full((table.rows, len(study.features)), np.nan)
    for j, feature in enumerate(study.features):
        if feature.name not in absent:
            values[:, j] = _feature(table.columns[feature.name], feature, site)
    _one_row_a_patient(table, study, site)
    y = _target(table, study, site)
    if wanted := study.model.impossible(y):
        raise DataContractError(
            f"expected targets of a {study.model.kind} model that are {wanted} in column '{study.target.column}' at site '{site}', found"
            " others: correct the source, or choose another model"
        )
    beside = {column: _beside(table, column, site) for column in (study.offset, study.case_weights) if column}
    if study.case_weights and (beside[study.case_weights] <= 0).any():
        raise DataContractError(
            f"expected case weights above 0 in column '{study.case_weights}' at site '{site}', found others: leave such patients out"
        )
    train, valid = _split(table, study, site, split_key)
    dropped: dict[str, NDArray[np.bool_]] = {"no target": np.isnan(y), "in no fold": ~(train | valid)}
    dropped |= {f"no {column}": np.isnan(values) for column, values in beside.items()}
    if study.preprocess.missing == "drop_row":
        dropped["a feature is missing"] = np.any(np.isnan(values), axis=1)
    keep = ~np.any(list(dropped.values()), axis=0)
    counts = {reason: int(mask.sum()) for reason, mask in dropped.items() if mask.any()}
    offset, weight = (beside[column][keep] if column else None for column in (study.offset, study.case_weights))
    return Cohort(site, values[keep], y[keep], valid[keep], counts, offset, weight)


def _beside(table: Table, column: str, site: str) -> Array:
    """(n,) numbers that are no feature; NaN where missing."""
    found = _numbers(table.columns[column], {""}, column, "", site)
    if np.isnan(found).all():
        raise DataContractError(
            f"expected values in column '{column}' at site '{site}', found all {len(found)} rows missing: check the source"
        )
    return found


def _require_columns(table: Table, study: Study, site: str, absent: tuple[str, ...]) -> None:
    names = {feature.name for feature in study.features}
    unknown = sorted(set(absent) - names)
    if unknown:
        raise DataContractError(
            f"expected `absent` to name features of the study, found '{unknown[0]}' at site '{site}': mend its site file"
        )
    time = study.target.time if isinstance(study.target, Survival) else None
    reserved = [study.target.column, time, study.patient_id, study.validation.fold, study.offset, study.case_weights]
    wanted = [
        *(name for name in (f.name for f in study.features) if name not in absent),
        *(name for name in reserved if name),
    ]
    for column in wanted:
        if column not in table.columns:
            near = _nearest(column, [name for name in table.columns if name not in wanted])
            hint = f"; '{near}' looks like it, renamed" if near else ""
            raise DataContractError(
                f"expected column '{column}' at site '{site}', found {len(table.columns)} columns without it{hint}:"
                f" rename it in the site's data, or list it under `absent` in the site file"
            )
    if table.rows == 0:
        raise DataContractError(
            f"expected patients at site '{site}', found a table without rows: check the site's source"
        )


def _nearest(name: str, others: list[str]) -> str | None:
    """A column that differs in case and punctuation alone: any other might be a patient's cell, in a file declared to have a header."""

    def bare(text: str) -> str:
        return "".join(letter for letter in text.casefold() if letter.isalnum())

    return next((other for other in others if bare(other) == bare(name)), None)


def _feature(column: NDArray[Any], feature: Feature, site: str) -> Array:
    """(n,) numbers, or level indices with len(levels) for any other value."""
    missing = {canonical(code) for code in feature.missing} | {""}
    match feature:
        case Number():
            found = _numbers(column, missing, feature.name, feature.unit, site)
        case Category():
            level = {canonical(name): float(i) for i, name in enumerate(feature.categories)}
            unseen = float(len(level)) if feature.encode == "one_hot" else np.nan
            found = _mapped(column, lambda cell: _level(canonical(cell), missing, level, unseen))
    if np.isnan(found).all():
        raise DataContractError(
            f"expected values in column '{feature.name}' at site '{site}', found all {len(found)} rows missing:"
            f" list it under `absent` in the site file if the hospital does not record it"
        )
    return found


def _numbers(column: NDArray[Any], missing: set[str], name: str, unit: str, site: str) -> Array:
    """(n,) float64 with NaN for missing; what is no number is refused and counted, never shown."""
    codes = [number for number in map(_as_number, missing) if np.isfinite(number)]
    if column.dtype == np.float64:
        found = np.where(np.isin(column, codes), np.nan, column)
    else:

        def number(text: str) -> float:
            value = _as_number(text)
            if np.isinf(value):
                return np.nan if text.strip() in missing else np.inf
            return np.nan if value in codes else value

        found = _mapped(column, number)
    bad = int(np.isinf(found).sum())
    if bad:
        unit = f" ({unit})" if unit else ""
        raise DataContractError(
            f"expected numbers in column '{name}'{unit} at site '{site}', found {bad} of {len(found)} cells that are none:"
            f" mend the data, or add their code to `missing` in study.toml"
        )
    return found


def _level(text: str, missing: set[str], level: Mapping[str, float], unseen: float) -> float:
    return np.nan if text in missing else level.get(text, unseen)


def _as_number(text: str) -> float:
    """The number a cell spells; infinity where it spells none."""
    try:
        value = float(text) if "_" not in text else np.inf
    except ValueError:
        return np.inf
    return value if np.isfinite(value) else np.inf


def _mapped(column: NDArray[Any], meaning: Callable[[str], float]) -> Array:
    """Each cell's meaning, worked out once for each distinct cell; a NaN in a typed column means missing."""
    known: dict[Any, float] = {}
    result = np.empty(len(column))
    for i, cell in enumerate(column.tolist()):
        value = known.get(cell)
        if value is None:
            value = np.nan if cell != cell else meaning(cell if isinstance(cell, str) else canonical(cell))
            if cell == cell:
                known[cell] = value
        result[i] = value
    return result


def _target(table: Table, study: Study, site: str) -> Array:
    """(n,) value, 0/1, class index or, of survival, ± the interval; NaN where the label is missing; zeros where there is nothing to predict."""
    target = study.target
    if isinstance(target, NoTarget):
        return np.zeros(table.rows)
    column = table.columns[target.column]
    missing = {canonical(code) for code in target.missing} | {""}
    match target:
        case Regression():
            y = _numbers(column, missing, target.column, target.unit, site)
        case Binary() if target.positive_above is not None:
            y = _numbers(column, missing, target.column, "", site)
            y = np.where(np.isnan(y), np.nan, y > target.positive_above)
        case Binary():
            y = _labels(column, (target.negative, target.positive), missing, target.column, site)
        case Multiclass():
            y = _labels(column, tuple((label,) for label in target.classes), missing, target.column, site)
        case Survival():
            y = _until(table, target, missing, site)
    if np.isnan(y).all():
        raise DataContractError(
            f"expected labels in target column '{target.column}' at site '{site}', found all {len(y)} rows missing: check the source"
        )
    return y


def _until(table: Table, target: Survival, missing: set[str], site: str) -> Array:
    """(n,) the number of the interval, 1 … K, in which a time lies: + where it happened, - where the patient was last seen then."""
    time = _numbers(table.columns[target.time], missing, target.time, target.unit, site)
    bad = int((time <= 0).sum())
    if bad:
        raise DataContractError(
            f"expected times above 0 in column '{target.time}' ({target.unit}) at site '{site}', found {bad} of {len(time)} that are not:"
            " correct them, or add their code to the target's `missing`"
        )
    happened = _labels(table.columns[target.event], (target.censored, target.happened), missing, target.event, site)
    ends = np.array(target.ends)
    interval = np.searchsorted(ends, time) + 1.0  # an end belongs to the interval that it ends
    seen = np.where((happened == 1) & (interval <= len(ends)), interval, -np.minimum(interval, len(ends)))
    return np.where(np.isnan(time) | np.isnan(happened), np.nan, seen)


def _labels(
    column: NDArray[Any], groups: tuple[tuple[Label, ...], ...], missing: set[str], name: str, site: str
) -> Array:
    index = {canonical(label): float(i) for i, group in enumerate(groups) for label in group}
    y = _mapped(column, lambda cell: _level(canonical(cell), missing, index, np.inf))
    bad = int(np.isinf(y).sum())
    if bad:
        raise DataContractError(
            f"expected target column '{name}' at site '{site}' to hold one of {len(index)} stated labels, found {bad} of {len(y)} cells that do not:"
            f" add the label to study.toml, or its code to the target's `missing`"
        )
    return y


def _one_row_a_patient(table: Table, study: Study, site: str) -> None:
    """Under differential privacy a patient is a row: a second one would double what may be learnt of them."""
    if study.privacy.dp is None or study.privacy.dp.unit != "patient" or study.patient_id is None:
        return
    ids = _ids(table.columns[study.patient_id], study.patient_id, site)
    if len(set(ids)) < len(ids):
        raise DataContractError(
            f"expected one row a patient at site '{site}', as differential privacy protects a patient, found ids of '{study.patient_id}'"
            f" twice: give each patient one row"
        )


# --- split ------------------------------------------------------------------------------------------------------------


def _split(table: Table, study: Study, site: str, key: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(n,) training and (n,) validation masks; a row may be in neither when a fold column says so."""
    rule = study.validation
    if rule.fold is not None:
        word = [canonical(cell) for cell in table.columns[rule.fold].tolist()]
        train = np.isin(word, [canonical(name) for name in rule.train])
        return train, np.isin(word, [canonical(name) for name in rule.valid]) & ~train
    keys = (
        table.row_keys() if study.patient_id is None else _ids(table.columns[study.patient_id], study.patient_id, site)
    )
    valid = _drawn(keys, rule, key or f"{study.seed}:{site}")
    return ~valid, valid


def _ids(column: NDArray[Any], name: str, site: str) -> list[str]:
    ids = [canonical(cell) for cell in column.tolist()]
    empty = sum(text.lower() in ("", "nan") for text in ids)
    if empty:
        raise DataContractError(
            f"expected an id in every row of column '{name}' at site '{site}', found {empty} of {len(ids)} empty: mend the data"
        )
    return ids


def _drawn(keys: Any, rule: Validation, secret: str) -> NDArray[np.bool_]:
    """Rows whose keyed hash falls under the validation share: the same patient is always on the same side."""
    limit = int(rule.fraction * 2**64)
    hashed = (
        hashlib.blake2b(str(key).encode(), digest_size=8, key=hashlib.sha256(secret.encode()).digest()) for key in keys
    )
    return np.array([int.from_bytes(h.digest(), "big") < limit for h in hashed], bool)


# --- encode -----------------------------------------------------------------------------------------------------------


def columns_of(feature: Feature) -> list[str]:
    """Names of the design-matrix columns that a feature becomes."""
    if isinstance(feature, Number):
        return [feature.name]
    levels = [canonical(level) for level in feature.categories]
    if feature.encode == "drop_first":
        return [f"{feature.name}={level}" for level in levels[1:]]
    return [f"{feature.name}={level}" for level in levels] + [f"{feature.name}=other"]


def spread(values: Array, study: Study, impute: Array) -> Array:
    """(n, features) -> (n, width): missing cells filled by `impute` (features,), categories spread over 0/1 columns, nothing standardised yet."""
    blocks: list[Array] = []
    for j, feature in enumerate(study.features):
        column = np.where(np.isnan(values[:, j]), impute[j], values[:, j])
        if isinstance(feature, Number):
            blocks.append(column[:, None])
        else:
            first = int(feature.encode == "drop_first")
            levels = np.arange(first, first + len(columns_of(feature)))
            blocks.append((column[:, None] == levels).astype(np.float64))
    return np.concatenate(blocks, axis=1)


def standardised(study: Study) -> NDArray[np.bool_]:
    """(width,) which design-matrix columns are centred and scaled."""
    rule = study.preprocess.standardise
    flags = [
        rule == "all" or (rule == "numbers" and isinstance(f, Number)) for f in study.features for _ in columns_of(f)
    ]
    return np.array(flags, bool)


def encode(cohort: Cohort, study: Study, statistics: Statistics, ones: bool) -> Rows:
    """Apply the study's frozen statistics: impute, spread, (z - center) / scale, and a last column of ones for an intercept."""
    Z = (spread(cohort.values, study, statistics["impute"]) - statistics["center"]) / statistics["scale"]
    beside = [np.ones((len(Z), 1))] if ones else []
    beside += [cohort.offset[:, None]] if cohort.offset is not None else []
    X = np.ascontiguousarray(np.hstack([Z, *beside]) if beside else Z)
    train = ~cohort.valid
    weight = None if cohort.weight is None else cohort.weight[train]
    return Rows(X[train], cohort.y[train], X[cohort.valid], cohort.y[cohort.valid], weight)
