"""The calendar of a schedule: whether it can be read, and which tick comes next."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from fedrounds.core.errors import StudyError
from fedrounds.core.operations import Schedule

ANCHOR = (2020, 1, 1)  # a midnight from which intervals are counted, so that deploying again moves no tick
WHERE = "under [schedule] of operations.toml"


def zone(schedule: Schedule) -> ZoneInfo:
    """The schedule's time zone. Raises StudyError if there is none of that name."""
    try:
        return ZoneInfo(schedule.timezone)
    except (KeyError, ValueError, OSError):
        raise StudyError(
            f"expected a time zone such as Europe/Zurich {WHERE}, found {schedule.timezone!r}: correct `timezone`"
        ) from None


def check_calendar(schedule: Schedule) -> None:
    """Raise StudyError, one line, unless the schedule has a next tick."""
    following(schedule, datetime.now(zone(schedule)))


def following(schedule: Schedule, after: datetime) -> datetime:
    """When the first tick later than `after` is due."""
    from cronsim import CronSim, CronSimError

    local = after.astimezone(zone(schedule))
    if schedule.cron is None:
        return _multiple(schedule, local)
    try:
        if len(schedule.cron.split()) != 5:
            raise CronSimError("five fields")
        return next(CronSim(schedule.cron, local))
    except (CronSimError, StopIteration):
        raise StudyError(
            f"expected five fields of cron (minute, hour, day, month, weekday) {WHERE}, found {schedule.cron!r}: correct `cron`,"
            f' or state an `interval` such as "6h"'
        ) from None


def _multiple(schedule: Schedule, local: datetime) -> datetime:
    """The next multiple of the interval since the anchor, in time that passes, as Prefect counts: in summer a day begins at one."""
    step_s = schedule.interval_s
    assert step_s is not None
    anchor = datetime(*ANCHOR, tzinfo=local.tzinfo).timestamp()
    return datetime.fromtimestamp(anchor + ((local.timestamp() - anchor) // step_s + 1) * step_s, local.tzinfo)
