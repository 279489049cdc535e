"""operations.toml: how a study is run. Versioned in the ledger with the round from which it holds; it never changes the mathematics."""

from __future__ import annotations

from math import ceil
from typing import Annotated, Literal

from pydantic import Field

from fedrounds.core.study import Fraction, Frozen, Name, NonNegative


class Gate(Frozen):
    """Which suite a site's data must pass, and what happens where it does not.

    `suite` is a file beside the study (`expectations/NAME.json`) or one that ships with Fedrounds; None checks the contract only.
    """

    suite: str | None = None
    policy: Literal["exclude", "halt", "warn"] = "exclude"


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


class Operations(Frozen):
    """Roster, rounds, gate, quorum, promotion, schedule."""

    rounds: int = Field(ge=1, le=100_000)
    sites: tuple[Name, ...] | None = None
    quorum: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] = 2
    gate: Gate = Gate()
    promotion: Promotion = Promotion()
    schedule: Schedule | None = None

    def quorum_of(self, sites: int) -> int:
        """Sites that must take part, out of a roster of `sites`; a fraction is rounded up."""
        return self.quorum if isinstance(self.quorum, int) else max(1, ceil(self.quorum * sites - 1e-9))
