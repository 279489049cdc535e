"""A gate's verdict as it leaves a hospital: which expectations failed, in which column, on how many rows. Never a value.

Guarantees:
    * a failure carries a name, a column and two counts, and has no place for a cell, an observed value or a text of GX;
    * `counted` is the only door for counts, and turns 1 to 9 into None, shown as "fewer than 10".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

SMALLEST = 10  # counts below it, other than 0, are not shown


@dataclass(frozen=True)
class Failure:
    """One expectation that did not hold. `severity` other than "critical" is listed and does not fail the gate."""

    expectation: str
    column: str | None
    element_count: int | None
    unexpected_count: int | None  # None: suppressed, or an expectation about no single row (see `per_row`)
    per_row: bool = True
    severity: str = "critical"

    def __str__(self) -> str:
        name = f"{self.expectation} · {self.column}" if self.column else self.expectation
        severity = "" if self.severity == "critical" else f" ({self.severity})"
        return f"{name}: {self.rows}{severity}" if self.per_row else f"{name}{severity}"

    @property
    def rows(self) -> str:
        """How many rows, in words; empty for an expectation about no single row."""
        if not self.per_row:
            return ""
        unexpected = f"fewer than {SMALLEST}" if self.unexpected_count is None else str(self.unexpected_count)
        return unexpected if self.element_count is None else f"{unexpected} of {self.element_count}"


@dataclass(frozen=True)
class Verdict:
    """What a site's gate found. `checks` counts the expectations that were tried; `note` says what else a reader should know."""

    site: str
    passed: bool
    checks: int
    failures: tuple[Failure, ...] = ()
    note: str = ""


def counted(count: int | None) -> int | None:
    """The count as it may be shown: None for 1 to 9.

    >>> [counted(count) for count in (0, 1, 9, 10)]
    [0, None, None, 10]
    """
    return None if count is None or 0 < count < SMALLEST else int(count)


def to_json(verdict: Verdict) -> dict[str, Any]:
    """As plain JSON types."""
    return asdict(verdict)


def from_json(document: Mapping[str, Any]) -> Verdict:
    """The verdict that `to_json` wrote."""
    failures = tuple(Failure(**failure) for failure in document["failures"])
    return Verdict(**{**document, "failures": failures})


def line(verdict: Verdict) -> str:
    """For a person, without the site's name.

    >>> line(Verdict("north", True, 18))
    'passed 18 checks'
    >>> line(Verdict("north", False, 18, (Failure("expect_column_values_to_be_between", "age", 303, 12),)))
    'failed 1 of 18 checks — expect_column_values_to_be_between · age: 12 of 303'
    """
    listed, checks = "; ".join(map(str, verdict.failures)), _counted_noun(verdict.checks)
    found = {
        (True, False): f"passed {checks}",
        (True, True): f"passed, though {len(verdict.failures)} of {checks} gave a warning — {listed}",
    }.get((verdict.passed, bool(listed)), f"failed {len(verdict.failures)} of {checks} — {listed}")
    return f"{found} ({verdict.note})" if verdict.note else found


def markdown(verdicts: Iterable[Verdict]) -> str:
    """A table of every site's verdict, a row a failure; a column that nobody needs is left out."""
    rows = [("site", "verdict", "expectation", "column", "rows", "note")]
    for verdict in verdicts:
        word = f"{'passed' if verdict.passed else 'FAILED'} ({_counted_noun(verdict.checks)})"
        for failure in verdict.failures or (None,):
            about = (failure.expectation, failure.column or "", failure.rows) if failure else ("", "", "")
            severity = f" ({failure.severity})" if failure and failure.severity != "critical" else ""
            rows.append((verdict.site, word, about[0] + severity, about[1], about[2], verdict.note))
    kept = [column for column in range(len(rows[0])) if any(row[column] for row in rows[1:])]
    head, *body = ["| " + " | ".join(row[column].replace("|", "\\|") for column in kept) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(kept), *body]) + "\n"


def _counted_noun(checks: int) -> str:
    return f"{checks} check{'' if checks == 1 else 's'}"
