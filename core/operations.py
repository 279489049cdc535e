"""operations.toml: how a study is run. Versioned in the ledger with the round from which it holds; it never changes the mathematics."""

from __future__ import annotations

import re
from math import ceil
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedrounds.core.study import Fraction, Frozen, Name, NonNegative

Action = Literal["warn", "down-weight", "exclude", "halt"]


class Gate(Frozen):
    """Which suite a site's data must pass, and what happens where it does not.

    `suite` is a file beside the study (`expectations/NAME.json`) or one that ships with Fedrounds; None checks the contract only.
    `policy`, `warning` and `info` say what a failure of that severity does (`policy`: a critical one). A down-weighted site's λ is
    multiplied by `down_weight`. `quarantine` is the largest share of a site's rows that may be set aside, so that the others take part.
    `rules` are relations between columns of numbers ("diastolic <= systolic"), from which a draft makes expectations.
    """

    suite: str | None = None
    policy: Action = "exclude"
    warning: Action = "warn"
    info: Action = "warn"
    down_weight: Annotated[float, Field(gt=0, lt=1)] = 0.5
    quarantine: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rules: tuple[str, ...] = ()

    @field_validator("rules")
    @classmethod
    def _relations(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        for rule in rules:
            relation(rule)
        return rules


def relation(rule: str) -> tuple[str, str, str]:
    """The two columns of a rule and what stands between them.

    >>> relation("diastolic <= systolic")
    ('diastolic', '<=', 'systolic')
    """
    found = re.fullmatch(r"\s*(\S.*?)\s+(<=|<)\s+(\S.*?)\s*", rule)
    if not found:
        raise ValueError(f"expected a rule like 'diastolic <= systolic' (or <), found {rule!r}: correct it")
    return found[1], found[2], found[3]


class Promotion(Frozen):
    """When a version becomes champion: the pooled validation loss falls by more than `improvement` (in loss units), and
    no site's rises by more than `margin`.

    `confidence`: of the interval of the mean paired difference, whose upper end must show the fall; 0 asks the mean alone.
    `gates`: "passed" asks that every site's data passed the gate in the version's round, those that sat it out for it included.
    `approval`: "required" lets a person have the last word on what passes (`fedrounds promote`).
    A privacy budget has no say here yet: nothing spends one.
    """

    improvement: NonNegative = 0.0
    margin: NonNegative = 0.05
    confidence: Fraction = 0.95
    gates: Literal["any", "passed"] = "any"
    approval: Literal["none", "required"] = "none"


class Schedule(Frozen):
    """When Prefect runs the study by itself."""

    cron: str
    timezone: str = "UTC"


class Drift(Frozen):
    """When new data at a site count as drifted; without this section nobody looks.

    `warn` and `hold` are population stability indices, after the allowance for chance: beyond `warn` it is told, beyond `hold` the study
    does not go on until somebody accepts the new data. `features` names those to watch (all by default), `label` watches the target too.
    `calibration` warns when ln(observed / expected) is surely beyond it at a site or over all; 0 does not look.
    """

    warn: NonNegative = 0.1
    hold: NonNegative = 0.25
    features: tuple[str, ...] | None = None
    label: bool = True
    calibration: NonNegative = 0.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.warn > self.hold:
            raise ValueError(f"expected `warn` of at most `hold`, found {self.warn:g} above {self.hold:g}: lower it")
        return self


class Operations(Frozen):
    """Roster, rounds, gate, quorum, promotion, schedule, drift."""

    rounds: int = Field(ge=1, le=100_000)
    sites: tuple[Name, ...] | None = None
    quorum: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] = 2
    gate: Gate = Gate()
    promotion: Promotion = Promotion()
    schedule: Schedule | None = None
    drift: Drift | None = None

    def quorum_of(self, sites: int) -> int:
        """Sites that must take part, out of a roster of `sites`; a fraction is rounded up."""
        return self.quorum if isinstance(self.quorum, int) else max(1, ceil(self.quorum * sites - 1e-9))
