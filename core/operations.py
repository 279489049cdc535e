"""operations.toml: how a study is run. Versioned in the ledger with the round from which it holds; it never changes the mathematics."""

from __future__ import annotations

from math import ceil
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from fedrounds.core.study import Frozen, Name, NonNegative


class Gate(Frozen):
    """Which suite a site's data must pass, and what happens where it does not.

    `suite` is a file beside the study (`expectations/NAME.json`) or one that ships with Fedrounds; None checks the contract only.
    """

    suite: str | None = None
    policy: Literal["exclude", "halt", "warn"] = "exclude"


class Promotion(Frozen):
    """When a version becomes champion: the pooled validation loss falls by more than `improvement` (in loss units), and
    no site's rises by more than `margin`.
    """

    improvement: NonNegative = 0.0
    margin: NonNegative = 0.05


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
        if self.interval is None:
            return None
        return int(self.interval[:-1]) * {"m": 60, "h": 3600, "d": 86_400}[self.interval[-1]]


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
