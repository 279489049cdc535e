"""A suite drafted from the dictionary: what a hospital's data should be, as far as study.toml and counts over all sites can say it.

Each expectation says in its `meta` that it was drafted and from what. Limits that need data (missing shares, rows, rates, means) come from
counts over all sites together, widened by the slack stated below; where no rows can be read they are the stated defaults, or left out.
Great Expectations is not needed to write a suite, and not imported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log10
from typing import Any

import numpy as np

from fedrounds.core.errors import StudyError
from fedrounds.core.operations import Gate, relation
from fedrounds.core.study import Binary, Category, NoTarget, Number, Study, Survival, canonical
from fedrounds.core.table import Table
from fedrounds.tasks.frame import NUMERIC, PADDED, SINCE, columns_of, levels, numeric, read_numbers, share
from fedrounds.tasks.verdict import SMALLEST

DEFAULT_MISSING = 0.2, 0.5  # share of a site's cells: above the first a warning, above the second a failure
MISSING = (2, 0.05), (4, 0.25)  # the same from the share m over all sites: 2m + 5%, 4m + 25%
ODDS = (
    4,
    20,
)  # a rate's odds over all sites, divided and multiplied by: outside the first a warning, the second a failure
SPREAD = 1.0  # standard deviations of all patients that a site's mean may be off before it is a warning
FEWEST, MOST = 0.5, 10  # times the rows of the smallest and of the largest site
FRESH_DAYS = 30
DUPLICATES = 0.95  # of the rows of a study without ids should be no copies of another

Expectation = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """Counts over all sites that could be read; what rests on fewer than 10 rows is left out.

    missing: column -> (missing cells, cells). common: column -> (its commonest level, its cells, all levelled cells).
    means: column -> (mean, standard deviation). positive: (cells, labelled cells) of a yes/no target.
    """

    sites: int = 0
    rows: tuple[int, int] | None = None  # of the smallest and of the largest site
    missing: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    common: Mapping[str, tuple[str, int, int]] = field(default_factory=dict[str, tuple[str, int, int]])
    means: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    positive: tuple[int, int] | None = None

    @property
    def source(self) -> str:
        return f"counts over {self.sites} site{'' if self.sites == 1 else 's'}"


def evidence(study: Study, tables: Mapping[str, tuple[Table, Collection[str]]]) -> Evidence:
    """Count over the sites' tables, each with the columns that the hospital does not record."""
    if not tables:
        return Evidence()
    missing: dict[str, tuple[int, int]] = {}
    common: dict[str, tuple[str, int, int]] = {}
    means: dict[str, tuple[float, float]] = {}
    for name, codes in numeric(study).items():
        value = _joined(tables, name, lambda column, codes=codes: read_numbers(column, codes)[0])
        known = value[~np.isnan(value)]
        missing[name] = len(value) - len(known), len(value)
        if len(known) >= SMALLEST:
            means[name] = float(known.mean()), float(known.std())
    for name, all_levels in levels(study).items():
        counts = {
            level: _joined(tables, name, lambda c, n=name, at=level: share(c, n, at, study)) for level in all_levels
        }
        first = next(iter(counts.values()))
        known = int((~np.isnan(first)).sum())
        missing[name] = len(first) - known, len(first)
        of = {level: int(np.nansum(found)) for level, found in counts.items()}
        level = max(of, key=lambda name: of[name])
        if of[level] >= SMALLEST:
            common[name] = level, of[level], known
    rows = sorted(table.rows for table, _ in tables.values())
    return Evidence(len(tables), (rows[0], rows[-1]), missing, common, means, _positive(study, tables))


def _positive(study: Study, tables: Mapping[str, tuple[Table, Collection[str]]]) -> tuple[int, int] | None:
    if not isinstance(study.target, Binary):
        return None
    target = study.target.column
    found = _joined(tables, target, lambda column: share(column, target, "", study))
    yes, labelled = int(np.nansum(found)), int((~np.isnan(found)).sum())
    return (yes, labelled) if min(yes, labelled - yes) >= SMALLEST else None


def _joined(tables: Mapping[str, tuple[Table, Collection[str]]], name: str, read: Any) -> Any:
    """(rows of all sites that record it,)"""
    found = [read(t.columns[name]) for t, absent in tables.values() if name in t.columns and name not in absent]
    return np.concatenate(found) if found else np.empty(0)


# --- expectations -----------------------------------------------------------------------------------------------------


def draft(study: Study, gate: Gate, seen: Evidence) -> list[Expectation]:
    """The expectations, in the dictionary's order, each with its `meta`.

    Raises:
        StudyError: a rule of operations.toml is about a column that is no number of the study.
    """
    return [
        *_rows(seen),
        *_identity(study),
        *_freshness(study),
        *(one for feature in study.features for one in _feature(feature, seen)),
        *_target(study, seen),
        *_relations(study, gate),
        *_copies(study),
    ]


def _made(of: str, what: str, source: str, kind: str, severity: str = "critical", **kwargs: Any) -> Expectation:
    made: Expectation = {"type": kind, "kwargs": kwargs}
    if severity != "critical":
        made["severity"] = severity
    return {**made, "meta": {"drafted": {"id": f"{of} · {what}" if of else what, "from": source}}}


def _rows(seen: Evidence) -> Iterator[Expectation]:
    kind = "expect_table_row_count_to_be_between"
    if seen.rows is None:
        yield _made("", "rows", f"default: at least {SMALLEST}", kind, min_value=SMALLEST)
        return
    low, high = max(SMALLEST, floor(_down(seen.rows[0] * FEWEST))), ceil(_up(seen.rows[1] * MOST))
    source = f"{seen.source}: half the rows of the smallest to {MOST} times those of the largest"
    yield _made("", "rows", source, kind, min_value=low, max_value=high)


def _identity(study: Study) -> Iterator[Expectation]:
    if study.patient_id is None:
        return
    name, source = study.patient_id, "study.toml: patient_id"
    yield _exists(name, source)
    yield _made(name, "no empty id", source, "expect_column_values_to_not_be_null", column=name)
    yield _made(name, "unique", source, "expect_column_values_to_be_unique", column=name)
    yield _padded(name)


def _freshness(study: Study) -> Iterator[Expectation]:
    if study.event_time is None:
        return
    name, source = study.event_time, "study.toml: event_time"
    days, between = f"{SINCE}{name}", "expect_column_values_to_be_between"
    yield _exists(name, source)
    mostly = {"column": days, "mostly": 1 - DEFAULT_MISSING[0]}
    yield _made(name, "is a day", f"{source}; default share", "expect_column_values_to_not_be_null", **mostly)
    ahead = "default: a clock may be a day ahead, not more"
    yield _made(name, "not in the future", f"{source}; {ahead}", between, column=days, min_value=-1)
    newest = f"{source}; default: the newest event is at most {FRESH_DAYS} days old"
    yield _made(name, "fresh", newest, "expect_column_min_to_be_between", column=days, max_value=FRESH_DAYS)


def _feature(feature: Number | Category, seen: Evidence) -> Iterator[Expectation]:
    name = feature.name
    yield _exists(name, f"study.toml: a {feature.type}")
    if isinstance(feature, Number):
        yield _number(name, feature.missing)
        if feature.range:
            low, high = feature.range
            source = f"study.toml: range {low:g} to {high:g}{f' {feature.unit}' if feature.unit else ''}"
            yield _made(
                name, "range", source, "expect_column_values_to_be_between", column=name, min_value=low, max_value=high
            )
        yield from _mean(name, seen)
    else:
        yield _levels(name, [canonical(level) for level in feature.categories], "categories")
        yield from _commonest(name, seen)
    yield from _missing(name, seen)
    yield _padded(name)


def _target(study: Study, seen: Evidence) -> Iterator[Expectation]:
    target, name = study.target, study.target.column
    if isinstance(target, NoTarget):
        return
    yield _exists(name, "study.toml: the target")
    if name in numeric(study):
        yield _number(name, target.missing)
    else:
        yield _levels(name, levels(study)[name], "labels")
    yield from _missing(name, seen)
    yield _padded(name)
    if isinstance(target, Survival):
        yield _exists(target.time, "study.toml: the target's time")
        yield _number(target.time, target.missing)
        yield from _missing(target.time, seen)
        yield from _mean(target.time, seen)
    if isinstance(target, Binary):
        kind, column = "expect_column_mean_to_be_between", f"{name} is positive"
        if seen.positive is None:
            yield _made(
                name,
                "label rate",
                "default: both labels are there",
                kind,
                column=column,
                min_value=0.001,
                max_value=0.999,
            )
        else:
            for odds, severity in zip(ODDS, ("warning", "critical"), strict=True):
                low, high = _rate(*seen.positive, odds)
                source = f"{seen.source}: the odds of the rate, within a factor of {odds}"
                words = "label rate" if severity == "critical" else "usual label rate"
                yield _made(name, words, source, kind, severity, column=column, min_value=low, max_value=high)
    elif name in seen.means:
        yield from _mean(name, seen)
    else:
        yield from _commonest(name, seen)


def _relations(study: Study, gate: Gate) -> Iterator[Expectation]:
    numbers = numeric(study)
    for rule in gate.rules:
        low, sign, high = relation(rule)
        unknown = [name for name in (low, high) if name not in numbers]
        if unknown:
            raise StudyError(
                f"expected [gate] rules of operations.toml to be about numbers of the study, found '{unknown[0]}' in '{rule}': correct it"
            )
        kind = "expect_column_pair_values_a_to_be_greater_than_b"
        pair = {"column_A": high, "column_B": low, "or_equal": sign == "<=", "ignore_row_if": "either_value_is_missing"}
        yield _made("", f"{low} {sign} {high}", "operations.toml: rules", kind, **pair)


def _copies(study: Study) -> Iterator[Expectation]:
    if study.patient_id is None:
        of_all = {"column_list": columns_of(study), "mostly": DUPLICATES, "ignore_row_if": "never"}
        source = f"default: of the rows of a study without ids {DUPLICATES:.0%} are no copies"
        yield _made("", "copied rows", source, "expect_compound_columns_to_be_unique", "warning", **of_all)


# --- what several columns share ---------------------------------------------------------------------------------------


def _exists(name: str, source: str) -> Expectation:
    return _made(name, "exists", source, "expect_column_to_exist", column=name)


def _number(name: str, missing: Sequence[Any]) -> Expectation:
    codes = f", or {' or '.join(map(str, missing))} for missing" if missing else ""
    source = f"study.toml: a number{codes}"
    return _made(name, "numbers", source, "expect_column_values_to_be_in_set", column=f"{name}{NUMERIC}", value_set=[1])


def _levels(name: str, all_levels: Sequence[str], word: str) -> Expectation:
    return _made(
        name, word, f"study.toml: {word}", "expect_column_values_to_be_in_set", column=name, value_set=list(all_levels)
    )


def _padded(name: str) -> Expectation:
    source = "default: no white space around a cell (it is stripped)"
    return _made(
        name, "not padded", source, "expect_column_values_to_be_in_set", "info", column=f"{name}{PADDED}", value_set=[0]
    )


def _missing(name: str, seen: Evidence) -> Iterator[Expectation]:
    gone, cells = seen.missing.get(name, (0, 0))
    for place, (words, severity) in enumerate((("seldom missing", "warning"), ("not missing", "critical"))):
        if cells < SMALLEST:
            limit, source = DEFAULT_MISSING[place], "default"
        else:
            times, more = MISSING[place]
            limit = min(0.95, ceil(round(20 * (times * gone / cells + more), 6)) / 20)
            source = f"{seen.source}: {times} times the missing share, and {more:.0%} more"
        kind, mostly = "expect_column_values_to_not_be_null", round(1 - limit, 2)
        yield _made(name, words, source, kind, severity, column=name, mostly=mostly)


def _mean(name: str, seen: Evidence) -> Iterator[Expectation]:
    if name in seen.means:
        mean, spread = seen.means[name]
        limits = {"min_value": _down(mean - SPREAD * spread), "max_value": _up(mean + SPREAD * spread)}
        source = f"{seen.source}: the mean, give or take {SPREAD:g} standard deviation"
        yield _made(name, "mean", source, "expect_column_mean_to_be_between", "warning", column=name, **limits)


def _commonest(name: str, seen: Evidence) -> Iterator[Expectation]:
    if name in seen.common:
        level, cells, of = seen.common[name]
        if of - cells >= SMALLEST:
            low, high = _rate(cells, of, ODDS[0])
            source = f"{seen.source}: the odds of the commonest level, within a factor of {ODDS[0]}"
            limits = {"column": f"{name} is {level}", "min_value": low, "max_value": high}
            yield _made(name, "commonest level", source, "expect_column_mean_to_be_between", "warning", **limits)


def _rate(cells: int, of: int, factor: float) -> tuple[float, float]:
    """The rates whose odds are those of `cells` out of `of`, divided and multiplied; rounded outward.

    >>> _rate(50, 100, 4)
    (0.2, 0.8)
    """
    odds = cells / (of - cells)
    low, high = (o / (1 + o) for o in (odds / factor, odds * factor))
    return _down(low), round(1 - _down(1 - high), 6)


def _down(value: float, digits: int = 2) -> float:
    """Rounded towards minus infinity to so many significant digits.

    >>> _down(0.2349), _down(-187.0), _down(0.0), -_down(-187.0)
    (0.23, -190.0, 0.0, 190.0)
    """
    if value == 0:
        return 0.0
    step = 10.0 ** (floor(log10(abs(value))) - digits + 1)
    return float(f"{floor(round(value / step, 6)) * step:.12g}")


def _up(value: float) -> float:
    return -_down(-value)
