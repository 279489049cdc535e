"""operations.toml: how a study is run. Versioned in the ledger with the round from which it holds; it never changes the mathematics."""

from __future__ import annotations

import re
from math import ceil
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, field_validator, model_validator

from fedrounds.core.frozen import Fraction, Frozen, Name, NonNegative

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
    """The two columns of a rule and what stands between them. Raises ValueError where it is no such rule.

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
    A study under differential privacy has a champion where `privacy.dp.scores` lets noised comparisons leave; else scores stay at the sites.
    """

    improvement: NonNegative = 0.0
    margin: NonNegative = 0.05
    confidence: Fraction = 0.95
    gates: Literal["any", "passed"] = "any"
    approval: Literal["none", "required"] = "none"


Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
Clock = Annotated[str, StringConstraints(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$")]


class Window(Frozen):
    """Hours in which no tick may start, by the clock on the wall in the schedule's time zone: from `from` on each of `days` until
    `to`, which is the next day's where it is not later than `from`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    days: tuple[Day, ...] = DAYS
    start: Clock = Field(default="00:00", alias="from")
    end: Clock = Field(default="24:00", alias="to")


class Schedule(Frozen):
    """When Prefect runs the study by itself: `cron` or `interval` ("15m", "6h", "7d", in time that passes
    since a winter's midnight in the time zone; a cron keeps to the clock on the wall).

    Args:
        rounds: how far one tick goes.
        blackout: hours in which none starts.
        catch_up: what becomes of ticks that were missed while nothing ran. "latest": one run for all of them; "all": a run each;
            "none": a tick that starts when its successor is due already is dropped.
        skip_unchanged: do nothing where no site has new data since the last trained visit; a run that died on its way goes on.
        notify: webhooks that hear of a missed, failed, crashed or held run.
        notify_env: the environment variable of whoever deploys that holds one more: an address may be a secret.
    """

    cron: str | None = None
    interval: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,3}[mhd]$")] | None = None
    timezone: str = "UTC"
    rounds: int = Field(default=1, ge=1, le=100_000)
    blackout: tuple[Window, ...] = ()
    catch_up: Literal["latest", "all", "none"] = "latest"
    skip_unchanged: bool = True
    notify: tuple[Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$")], ...] = ()
    notify_env: str | None = None

    @model_validator(mode="after")
    def _one_calendar(self) -> Self:
        if (self.cron is None) == (self.interval is None):
            found = "neither" if self.cron is None else "both"
            raise ValueError(f"expected either `cron` or `interval` under [schedule], found {found}: state one")
        return self

    @property
    def interval_s(self) -> int | None:
        """Seconds between two ticks, None where a cron says when."""
        return None if self.interval is None else seconds(self.interval)


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


class Federation(Frozen):
    """How a coordinator waits for hospitals that are really apart.

    Args:
        deadline: how long a question stays open ("30s", "10m", "12h"); then it closes with whoever answered, if they are a quorum.
        attempts: how often a question without a quorum is asked before the run ends; the next run goes on from there.
        poll: seconds between two looks for replies.
        patience: how long a run waits for a database or a server that went away.
        keep_updates: whether the coordinator keeps what each hospital has sent in training, to tell later what each brought.
    """

    deadline: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,3}[smhd]$")] = "10m"
    attempts: int = Field(default=3, ge=1, le=100)
    poll: float = Field(default=0.2, ge=0.01, le=60)
    patience: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,3}[smhd]$")] = "1h"
    keep_updates: bool = False

    @property
    def deadline_s(self) -> int:
        """The deadline in seconds."""
        return seconds(self.deadline)

    @property
    def patience_s(self) -> int:
        """The patience in seconds."""
        return seconds(self.patience)


def seconds(span: str) -> int:
    """A span such as "10m" in seconds.

    >>> seconds("90s"), seconds("2h")
    (90, 7200)
    """
    return int(span[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[span[-1]]


class Operations(Frozen):
    """Roster, rounds, gate, quorum, promotion, schedule, drift; how long hospitals that are apart are waited for."""

    rounds: int = Field(ge=1, le=100_000)
    sites: tuple[Name, ...] | None = None
    quorum: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] = 2
    gate: Gate = Gate()
    promotion: Promotion = Promotion()
    schedule: Schedule | None = None
    drift: Drift | None = None
    federation: Federation = Federation()

    def quorum_of(self, sites: int) -> int:
        """Sites that must take part, out of a roster of `sites`; a fraction is rounded up."""
        return self.quorum if isinstance(self.quorum, int) else max(1, ceil(self.quorum * sites - 1e-9))
