"""A suite before a table, and what Great Expectations' results mean for the site: failures, with names and counts and nothing else.

It reads objects of Great Expectations and imports none of it: `tasks.gate` does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fedrounds.core.operations import Gate
from fedrounds.core.study import Study
from fedrounds.core.table import Table
from fedrounds.tasks.frame import columns_of, origin
from fedrounds.tasks.verdict import Failure, Verdict, acts, broken, counted, worst

Expectation = Any  # Great Expectations' own class
EXISTS = "expect_column_to_exist"


class Tried:
    """A suite before a table: which of its expectations can be tried, and which columns they ask for."""

    def __init__(self, suite: Sequence[Expectation], study: Study, absent: Collection[str], table: Table) -> None:
        self.tried: list[Expectation] = []
        self.missing: list[
            Any
        ] = []  # configurations of those about a column that is not there, unless one says so already
        self.skipped: list[str] = []  # the columns that those ask about which the hospital need not answer
        self.lost: list[str] = []  # the columns that are not there, once for each expectation about them
        self.asked: list[str] = []
        told = [e.configuration for e in suite]
        exists = {about.kwargs["column"] for about in told if about.type == EXISTS}
        for expectation, about in zip(suite, told, strict=True):
            named = columns_about(about.kwargs)
            bases = [origin(column, study) or column for column in named]
            gone = [base for base in bases if base not in table.columns]
            if not set(bases).isdisjoint(absent):
                self.skipped.append(next(base for base in bases if base in absent))
            elif gone and about.type != EXISTS:
                self.lost.append(gone[0])
                self.missing += [] if exists.issuperset(gone) else [about]
            else:
                self.tried.append(expectation)
                self.asked += [*named, *(columns_of(study) if asks_for_all(about) else ())]

    @property
    def checks(self) -> int:
        """How many expectations the verdict counts."""
        return len(self.tried) + len(self.missing)


def asks_for_all(about: Any) -> bool:
    """Whether it may look at columns beyond those that it names."""
    return about.type.startswith("expect_table_column") or not {"row_condition", "column_set"}.isdisjoint(about.kwargs)


def columns_about(kwargs: Mapping[str, Any]) -> list[str]:
    """The columns that an expectation is about, in its order."""
    one = [kwargs[key] for key in ("column", "column_A", "column_B") if kwargs.get(key)]
    return one + list(kwargs.get("column_list") or [])


def failure_of(result: Any, rows: int, rules: Gate) -> Failure:
    """Of a result: its name, its columns and its counts."""
    configuration, counts = result.expectation_config, result.result
    per_row = "unexpected_count" in counts and not raised(result)
    return Failure(
        expectation=configuration.type,
        column=", ".join(columns_about(configuration.kwargs)) or None,
        element_count=counted(counts.get("element_count", rows)),
        unexpected_count=counted(counts["unexpected_count"]) if per_row else None,
        per_row=per_row,
        severity=configuration.severity.value,
        action=_action(configuration, rules),
    )


def failure_untried(configuration: Any, rules: Gate) -> Failure:
    """Of an expectation about a column that is not there, where the suite does not ask whether it is."""
    named, severity = ", ".join(columns_about(configuration.kwargs)), configuration.severity.value
    return Failure(configuration.type, named, None, None, False, severity, _action(configuration, rules))


def _action(configuration: Any, rules: Gate) -> str:
    """What its failing does: its own word, else its severity's."""
    by_severity = {"critical": rules.policy, "warning": rules.warning, "info": rules.info}
    return configuration.meta["action"] or by_severity[configuration.severity.value]


def raised(result: Any) -> bool:
    """Whether computing it ended in an exception; its text may quote a cell and is not read."""
    about = result.exception_info
    return any(one.get("raised_exception") for one in (about, *about.values()) if isinstance(one, dict))


def note_on(suite: Tried, absent: Sequence[str], raised: int) -> str:
    """What else a reader of the verdict should know."""
    not_recorded = ", ".join(column for column in absent if column in suite.skipped)
    notes = [
        f"{len(suite.skipped)} skipped: {not_recorded} not recorded here" if suite.skipped else "",
        f"{len(suite.lost)} not tried: {', '.join(dict.fromkeys(suite.lost))} not there" if suite.lost else "",
        f"{raised} could not be computed" if raised else "",
    ]
    return "; ".join(filter(None, notes))


def verdict_of(
    site: str, checks: int, failures: tuple[Failure, ...], note: str, problem: str, rules: Gate, aside: int
) -> Verdict:
    """All of it together; `problem` is how the table breaks the contract, `aside` how many rows are set aside."""
    if problem:
        return broken(site, problem, rules.policy, checks, failures, note)
    failed = any(f.action != "quarantine" and (f.severity == "critical" or acts(f.action)) for f in failures)
    action = worst(failure.action for failure in failures)
    return Verdict(site, not failed, checks, failures, note, action, counted(aside))
