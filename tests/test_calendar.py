"""When a tick runs and when it is skipped: windows, missed ticks, time zones, calendars. No server in here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from fedrounds.core.errors import StudyError
from fedrounds.core.operations import Operations, Schedule, Window
from fedrounds.core.schedule import closes, decide, within
from fedrounds.tasks import folder as folders
from fedrounds.tasks.calendar import following

ZURICH = ZoneInfo("Europe/Zurich")


def zurich(text: str, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZURICH, fold=fold)


def hourly(**more) -> Schedule:
    return Schedule.model_validate({"cron": "0 * * * *", "timezone": "Europe/Zurich", **more})


# --- blackout windows -------------------------------------------------------------------------------------------------

WEEKEND = Window.model_validate({"days": ["sat", "sun"], "from": "00:00", "to": "24:00"})
NIGHT = Window.model_validate({"days": ["fri"], "from": "22:00", "to": "06:00"})
ROUND_THE_CLOCK = Window.model_validate({"days": ["wed"], "from": "08:00", "to": "08:00"})


@pytest.mark.parametrize(
    ("window", "when", "inside", "until"),
    [  # 2026-11-27 is a Friday
        (WEEKEND, "2026-11-27T23:59", False, None),
        (WEEKEND, "2026-11-28T00:00", True, "2026-11-29T00:00"),
        (WEEKEND, "2026-11-29T23:59", True, "2026-11-30T00:00"),
        (WEEKEND, "2026-11-30T00:00", False, None),
        (NIGHT, "2026-11-27T05:59", False, None),  # the window of Friday begins in the evening
        (NIGHT, "2026-11-27T22:00", True, "2026-11-28T06:00"),
        (NIGHT, "2026-11-28T05:59", True, "2026-11-28T06:00"),
        (NIGHT, "2026-11-28T06:00", False, None),
        (NIGHT, "2026-11-28T22:30", False, None),
        (ROUND_THE_CLOCK, "2026-11-25T07:59", False, None),
        (ROUND_THE_CLOCK, "2026-11-25T08:00", True, "2026-11-26T08:00"),
        (ROUND_THE_CLOCK, "2026-11-26T07:59", True, "2026-11-26T08:00"),
        (ROUND_THE_CLOCK, "2026-11-26T08:00", False, None),
    ],
)
def test_a_window_holds_by_the_clock_on_the_wall(window, when, inside, until):
    now = zurich(when)
    assert within(window, now) is inside
    if inside:
        assert closes(window, now) == zurich(until)


def test_a_tick_in_a_blackout_is_skipped_though_there_are_news_and_work_to_go_on_with():
    schedule = hourly(blackout=[{"days": ["fri"], "from": "22:00", "to": "06:00"}])
    due = zurich("2026-11-28T03:00")
    tick = decide(schedule, due + timedelta(seconds=2), due, unfinished=True, news=["north"])
    assert tick == ("skip", "a blackout window holds until Sat 06:00")
    assert (
        decide(schedule, zurich("2026-11-28T06:00"), due, news=["north"]).action == "run"
    )  # due in it, started after it


def test_a_window_holds_through_both_hours_of_the_night_when_summer_time_ends():
    schedule = hourly(blackout=[{"days": ["sun"], "from": "02:00", "to": "03:00"}])
    hours = [datetime(2026, 10, 25, hour, 30, tzinfo=UTC) for hour in (23, 0, 1, 2)]  # 25 October: 02:30 comes twice
    hours[0] -= timedelta(days=1)
    local = [hour.astimezone(ZURICH) for hour in hours]
    assert [f"{hour:%H:%M}" for hour in local] == ["01:30", "02:30", "02:30", "03:30"]
    assert [decide(schedule, hour, hour).action for hour in local] == ["run", "skip", "skip", "run"]


# --- missed ticks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("catch_up", "due", "now", "covered", "action"),
    [
        ("latest", "03:00", "03:00", None, "run"),
        ("latest", "03:00", "09:30", None, "run"),  # the first that starts after a standstill …
        ("latest", "04:00", "09:31", "09:30", "skip"),  # … stands for all that were due by then
        ("latest", "09:00", "09:32", "09:30", "skip"),
        ("latest", "09:30", "09:32", "09:30", "skip"),
        ("latest", "10:00", "10:00", "09:30", "run"),
        ("all", "04:00", "09:31", "09:30", "run"),
        ("none", "03:00", "03:59", None, "run"),
        ("none", "03:00", "04:00", None, "skip"),
        ("none", "04:00", "04:30", "04:10", "run"),
    ],
)
def test_a_missed_tick_is_caught_up_as_the_study_says(catch_up, due, now, covered, action):
    on = "2026-11-25T"
    due = zurich(on + due)
    tick = decide(
        hourly(catch_up=catch_up),
        zurich(on + now),
        due,
        following=due + timedelta(hours=1),
        covered=covered and zurich(on + covered),
        news=["north"],
    )
    assert tick.action == action


def test_missed_ticks_say_which_run_stood_for_them():
    due, covered = zurich("2026-11-25T04:00"), datetime(2026, 11, 25, 8, 30, tzinfo=UTC)
    assert decide(hourly(), zurich("2026-11-25T09:31"), due, covered=covered).reason == (
        "it was due Wed 2026-11-25 04:00, and the run of Wed 2026-11-25 09:30 stood for it (catch_up = latest)"
    )
    late = decide(hourly(catch_up="none"), zurich("2026-11-25T06:00"), due, following=zurich("2026-11-25T05:00"))
    assert late.reason == "it was due Wed 2026-11-25 04:00 and missed, the next one is due already (catch_up = none)"


def test_instants_are_compared_not_clocks_where_an_hour_comes_twice():
    first, second = zurich("2026-10-25T02:30", fold=0), zurich("2026-10-25T02:30", fold=1)
    assert second.timestamp() - first.timestamp() == 3600
    assert decide(hourly(catch_up="none"), first, first, following=second).action == "run"
    assert decide(hourly(catch_up="none"), second, first, following=second).action == "skip"
    assert decide(hourly(), second, second, covered=first).action == "run"  # equal on the wall, an hour apart


# --- news -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "unfinished", "news", "found"),
    [
        ({}, False, [], ("skip", "no site has new data since the last trained round")),
        ({}, False, ["east", "north"], ("run", "new data at east, north")),
        ({}, False, [f"s{n}" for n in range(10)], ("run", "new data at s0, s1, s2, s3, s4, s5, s6, s7 and 2 more")),
        ({}, True, [], ("run", "the last run did not reach its end: it goes on")),
        ({}, False, None, ("run", "it is due")),
        ({"skip_unchanged": False}, False, [], ("run", "it is due")),
    ],
)
def test_a_tick_without_news_is_skipped_unless_a_run_died_on_its_way(more, unfinished, news, found):
    due = zurich("2026-11-25T03:00")
    assert decide(hourly(**more), due, due, unfinished=unfinished, news=news) == found


# --- the calendar -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calendar", "after", "next_tick"),
    [
        ({"cron": "0 3 * * 1"}, "2026-11-25T09:00", "2026-11-30T03:00+01:00"),
        ({"cron": "30 2 * * *"}, "2026-03-28T12:00", "2026-03-29T03:00+02:00"),  # 02:30 does not exist that night
        ({"cron": "0 12 * * *"}, "2026-03-28T12:00", "2026-03-29T12:00+02:00"),
        ({"interval": "15m"}, "2026-11-25T09:07", "2026-11-25T09:15+01:00"),
        ({"interval": "6h"}, "2026-11-25T12:00", "2026-11-25T18:00+01:00"),
        ({"interval": "1d"}, "2026-03-28T12:00", "2026-03-29T00:00+01:00"),
        (
            {"interval": "1d"},
            "2026-07-15T12:00",
            "2026-07-16T01:00+02:00",
        ),  # time that passes; a cron keeps to the wall
        ({"interval": "7d"}, "2026-11-25T12:00", "2026-12-02T00:00+01:00"),  # counted from Wednesday, 1 January 2020
    ],
)
def test_the_next_tick_is_later_than_now_in_the_schedules_own_zone(calendar, after, next_tick):
    schedule = Schedule(**calendar, timezone="Europe/Zurich")
    assert following(schedule, zurich(after)).isoformat(timespec="minutes") == next_tick


@pytest.mark.parametrize(
    "calendar",
    [
        {"cron": "0 3 * * 1"},
        {"cron": "*/20 6-8 * * 1-5"},
        {"cron": "0 0 1,15 * *"},
        {"interval": "6h"},
        {"interval": "1d"},
    ],
)
@pytest.mark.parametrize("start", ["2026-11-25T09:00", "2026-07-15T09:00"])
def test_our_calendar_is_the_one_that_prefect_keeps(calendar, start):
    import asyncio

    from prefect.server.schemas import schedules

    from fedrounds.tasks.deployment import _calendar

    schedule = Schedule(**calendar, timezone="Europe/Zurich")
    client = _calendar(schedule).schedule
    kind = getattr(schedules, type(client).__name__)
    start = zurich(start)
    theirs = asyncio.run(kind.model_validate(client.model_dump()).get_dates(n=4, start=start))
    ours, after = [], start - timedelta(seconds=1)
    for _ in range(4):
        after = following(schedule, after)
        ours.append(after)
    assert [date.timestamp() for date in theirs] == [date.timestamp() for date in ours]


# --- operations.toml --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'cron = "every monday"',
            "expected five fields of cron (minute, hour, day, month, weekday) under [schedule] of",
        ),
        ('cron = "61 * * * *"', "expected five fields of cron"),
        (
            'cron = "0 3 * * 1"\ntimezone = "Europe/Atlantis"',
            "expected a time zone such as Europe/Zurich under [schedule] of",
        ),
        (
            'cron = "0 3 * * 1"\ninterval = "6h"',
            "expected either `cron` or `interval` under [schedule], found both: state one",
        ),
        ("rounds = 2", "expected either `cron` or `interval` under [schedule], found neither: state one"),
        ('interval = "30s"', "schedule.interval — String should match pattern"),
        (
            'interval = "6h"\nblackout = [{ days = ["saturday"] }]',
            "schedule.blackout.0.days.0 — expected it to be 'mon', 'tue',",
        ),
        ('interval = "6h"\nblackout = [{ from = "25:00" }]', "schedule.blackout.0.from — String should match pattern"),
        ('interval = "6h"\nnotify = ["mailto:x"]', "schedule.notify.0 — String should match pattern"),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_one_line(new_study, text, said):
    with (new_study / "operations.toml").open("a") as file:
        file.write(f"\n[schedule]\n{text}\n")
    with pytest.raises(StudyError) as error:
        folders.read(new_study)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_schedule_is_frozen_and_comes_back_from_the_ledgers_json():
    schedule = hourly(rounds=2, blackout=[{"days": ["sat"], "from": "01:00", "to": "02:00"}], notify=["http://a/b"])
    operations = Operations(rounds=3, schedule=schedule)
    assert Operations.model_validate(operations.model_dump(mode="json")) == operations
    with pytest.raises(ValidationError):
        schedule.rounds = 3
