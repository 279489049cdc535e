"""A gate's verdict as it leaves a hospital: which expectations failed, in which column, on how many rows. Never a value.

Guarantees:
    * a failure carries a name, a column and two counts, and has no place for a cell, an observed value or a text of GX;
    * `counted` is the only door for counts, and turns 1 to 9 into None, shown as "fewer than 10".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedrounds.core.errors import UpdateRejected

MOST_FAILURES = 500  # of one verdict that comes from afar
SMALLEST = 10  # counts below it, other than 0, are not shown


# What a failure does, the mildest first; "quarantine": its rows are set aside, and the site takes part with the others.
ACTIONS = ("pass", "quarantine", "warn", "down-weight", "exclude", "halt")
WORDS = {"pass": "passed", "warn": "warned", "down-weight": "down-weighted", "exclude": "excluded", "halt": "halted"}
NO_SUITE = "no suite: the contract alone was checked"
CONTRACT = "expect_table_to_keep_to_the_dictionary"  # ours: `clean` judges, not a suite


@dataclass(frozen=True)
class Failure:
    """One expectation that did not hold. `severity` other than "critical" is listed and does not fail the gate, unless its `action` does."""

    expectation: str
    column: str | None
    element_count: int | None
    unexpected_count: int | None  # None: suppressed, or an expectation about no single row (see `per_row`)
    per_row: bool = True
    severity: str = "critical"
    action: str = "exclude"

    def __str__(self) -> str:
        name = f"{self.expectation} · {self.column}" if self.column else self.expectation
        return f"{name}: {self.rows}{self.remark}" if self.per_row else f"{name}{self.remark}"

    @property
    def remark(self) -> str:
        """What else a reader should know of it, in brackets."""
        return (
            " (set aside)"
            if self.action == "quarantine"
            else ""
            if self.severity == "critical"
            else f" ({self.severity})"
        )

    @property
    def rows(self) -> str:
        """How many rows, in words; empty for an expectation about no single row."""
        if not self.per_row:
            return ""
        unexpected = some(self.unexpected_count)
        return unexpected if self.element_count is None else f"{unexpected} of {self.element_count}"


@dataclass(frozen=True)
class Verdict:
    """What a site's gate found. `checks` counts the expectations that were tried; `note` says what else a reader should know.

    `action` is the worst of its failures' ("pass" without any); `quarantined` counts the rows that were set aside (None: 1 to 9).
    """

    site: str
    passed: bool
    checks: int
    failures: tuple[Failure, ...] = ()
    note: str = ""
    action: str = "pass"
    quarantined: int | None = 0


def worst(actions: Iterable[str]) -> str:
    """The hardest of the actions; "pass" where there is none, or where rows are set aside and that is all.

    >>> worst(["warn", "exclude", "quarantine"]), worst(["quarantine"])
    ('exclude', 'pass')
    """
    hardest = max(actions, key=ACTIONS.index, default="pass")
    return "pass" if hardest == "quarantine" else hardest


def acts(action: str) -> bool:
    """Whether a site that has it does not take part as one that passed."""
    return ACTIONS.index(action) > ACTIONS.index("warn")


def broken(
    site: str, problem: str, policy: str, checks: int = 0, failures: tuple[Failure, ...] = (), note: str = ""
) -> Verdict:
    """The verdict on a table that breaks the contract: no such site can take part, whatever the policy.

    Args:
        problem: the contract's error; its small counts are withheld.
        failures, note: what the suite has found beside it.
    """
    action = "halt" if policy == "halt" else "exclude"
    contract = Failure(CONTRACT, None, None, None, per_row=False, action=action)
    said = re.sub(r"\bfound (all )?[1-9]\b", rf"found \1fewer than {SMALLEST}", problem)
    found = (*failures, contract)
    return Verdict(
        site, False, checks + 1, found, f"{note}; {said}" if note else said, worst(failure.action for failure in found)
    )


def counted(count: int | None) -> int | None:
    """The count as it may be shown: None for 1 to 9.

    >>> [counted(count) for count in (0, 1, 9, 10)]
    [0, None, None, 10]
    """
    return None if count is None or 0 < count < SMALLEST else int(count)


def some(count: int | None) -> str:
    """A count as it is shown.

    >>> some(counted(3)), some(counted(12))
    ('fewer than 10', '12')
    """
    return f"fewer than {SMALLEST}" if count is None else str(count)


def to_json(verdict: Verdict) -> dict[str, Any]:
    """As plain JSON types."""
    return asdict(verdict)


def from_json(document: Mapping[str, Any]) -> Verdict:
    """The verdict that `to_json` wrote."""
    failures = tuple(Failure(**failure) for failure in document["failures"])
    return Verdict(**{**document, "failures": failures})


def received(site: str, document: Mapping[str, Any]) -> Verdict:
    """The verdict that a hospital far away sent. Raises UpdateRejected unless it is one, in every part, of a size that people read."""
    try:
        listed = document["failures"]
        verdict = from_json({**document, "failures": listed if isinstance(listed, list) else None})
    except (KeyError, TypeError, ValueError):
        raise UpdateRejected(
            f"expected a gate's verdict from site '{site}', found another document: it was refused"
        ) from None
    texts = [
        verdict.site,
        verdict.note,
        *(text for it in verdict.failures for text in (it.expectation, it.severity)),
        *(it.column for it in verdict.failures if it.column is not None),
        verdict.action,
        *(it.action for it in verdict.failures),
    ]
    counts = [
        verdict.checks,
        verdict.quarantined,
        *(n for it in verdict.failures for n in (it.element_count, it.unexpected_count)),
    ]
    sound = (
        verdict.site == site
        and len(verdict.failures) <= MOST_FAILURES
        and all(isinstance(text, str) and len(text) <= 1000 and text.isprintable() for text in texts)
        and all(n is None or (type(n) is int and 0 <= n < 1 << 40) for n in counts)
        and verdict.checks is not None
        and all(type(flag) is bool for flag in (verdict.passed, *(it.per_row for it in verdict.failures)))
        and {verdict.action, *(it.action for it in verdict.failures)} <= set(ACTIONS)
    )
    if not sound:
        raise UpdateRejected(
            f"expected a gate's verdict on '{site}', found one with words or counts that no gate says: it was refused"
        )
    return verdict


def line(verdict: Verdict) -> str:
    """For a person, without the site's name.

    >>> line(Verdict("north", True, 18))
    'passed 18 checks'
    >>> line(Verdict("north", False, 18, (Failure("expect_column_values_to_be_between", "age", 303, 12),)))
    'failed 1 of 18 checks — expect_column_values_to_be_between · age: 12 of 303'
    """
    listed, checks = "; ".join(map(str, verdict.failures)), _counted_noun(verdict.checks)
    aside = "" if verdict.quarantined == 0 else f", with {some(verdict.quarantined)} rows set aside"
    found = {
        (True, False): f"passed {checks}",
        (
            True,
            True,
        ): f"passed{aside}, though {len(verdict.failures)} of {checks} {'did not hold' if aside else 'gave a warning'} — {listed}",
    }.get((verdict.passed, bool(listed)), f"failed {len(verdict.failures)} of {checks} — {listed}")
    return f"{found} ({verdict.note})" if verdict.note else found


def markdown(verdicts: Iterable[Verdict]) -> str:
    """A table of every site's verdict, a row a failure; a column that nobody needs is left out."""
    rows = [("site", "verdict", "expectation", "column", "rows", "note")]
    for verdict in verdicts:
        done = f", {WORDS[verdict.action]}" if acts(verdict.action) else ""
        word = f"{'passed' if verdict.passed else 'FAILED'}{done} ({_counted_noun(verdict.checks)})"
        for failure in verdict.failures or (None,):
            about = (failure.expectation, failure.column or "", failure.rows) if failure else ("", "", "")
            remark = failure.remark if failure else ""
            rows.append((verdict.site, word, about[0] + remark, about[1], about[2], verdict.note))
    kept = [column for column in range(len(rows[0])) if any(row[column] for row in rows[1:])]
    head, *body = ["| " + " | ".join(row[column].replace("|", "\\|") for column in kept) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(kept), *body]) + "\n"


def _counted_noun(checks: int) -> str:
    return f"{checks} check{'' if checks == 1 else 's'}"
