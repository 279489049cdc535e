"""What a tick of a schedule does: run, or be skipped for a reason. Times come in as the clock on the wall of the schedule's time zone.

Whoever calls knows the calendar (`following`) and the ledger (`covered`, `unfinished`, `news`); here is only the decision, so that a
table of cases can hold it to its word.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from fedrounds.core.operations import DAYS, Schedule, Window


class Tick(NamedTuple):
    """What to do, and why, in words for people."""

    action: Literal["run", "skip"]
    reason: str


def decide(
    schedule: Schedule,
    now: datetime,
    due: datetime,
    *,
    following: datetime | None = None,
    covered: datetime | None = None,
    unfinished: bool = False,
    news: Sequence[str] | None = None,
) -> Tick:
    """Decide on the tick that was due at `due` and starts at `now`.

    Args:
        now: with the schedule's time zone.
        following: when the next tick after `due` is due; None if that does not matter.
        covered: when the last tick that came to an end had started: ticks due until then were missed, and it ran for them too.
        unfinished: a run died on its way, or did not reach its rounds.
        news: sites with data that no trained visit has seen; None if nobody looked.
    """
    late, instant = (
        due.astimezone(now.tzinfo),
        now.timestamp(),
    )  # instants: two times of one zone compare by the wall clock alone
    window = next((window for window in schedule.blackout if within(window, now)), None)
    if window is not None:
        return Tick("skip", f"a blackout window holds until {closes(window, now):%a %H:%M}")
    if schedule.catch_up == "none" and following is not None and following.timestamp() <= instant:
        return Tick(
            "skip", f"it was due {late:%a %Y-%m-%d %H:%M} and missed, the next one is due already (catch_up = none)"
        )
    if schedule.catch_up == "latest" and covered is not None and due.timestamp() <= covered.timestamp():
        ran = covered.astimezone(now.tzinfo)
        return Tick(
            "skip",
            f"it was due {late:%a %Y-%m-%d %H:%M}, and the run of {ran:%a %Y-%m-%d %H:%M} stood for it (catch_up = latest)",
        )
    if unfinished:
        return Tick("run", "the last run did not reach its end: it goes on")
    if news is None or not schedule.skip_unchanged:
        return Tick("run", "it is due")
    if not news:
        return Tick("skip", "no site has new data since the last trained round")
    return Tick("run", f"new data at {', '.join(news[:8])}" + (f" and {len(news) - 8} more" if news[8:] else ""))


def within(window: Window, now: datetime) -> bool:
    """Whether the clock on the wall is in the window; over midnight it belongs to the day that it begins on.

    >>> night = Window(days=("fri",), start="22:00", end="06:00")
    >>> [within(night, datetime(2026, 11, day, hour)) for day, hour in ((27, 21), (27, 22), (28, 5), (28, 6), (28, 22))]
    [False, True, True, False, False]
    """
    clock, today, yesterday = f"{now:%H:%M}", DAYS[now.weekday()], DAYS[now.weekday() - 1]
    if window.start < window.end:
        return today in window.days and window.start <= clock < window.end
    return (today in window.days and clock >= window.start) or (yesterday in window.days and clock < window.end)


def closes(window: Window, now: datetime) -> datetime:
    """When the window that `now` is in ends, by the clock on the wall."""
    hours, minutes = map(int, window.end.split(":"))
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    over = window.start >= window.end and f"{now:%H:%M}" >= window.start
    return midnight + timedelta(days=int(over), hours=hours, minutes=minutes)
