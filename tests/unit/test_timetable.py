"""Timetables fire when they say, in every time zone: held against a reference that looks at each minute."""

from __future__ import annotations

import functools
import itertools
import random
import time
import zoneinfo
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shell_service.timetable import WORDS, Cron, Timetable, Unusable, zone

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
_STEP = 10 * DAY  # no clocks are changed twice within
FIRST, LAST = datetime(2020, 1, 1, tzinfo=UTC), datetime(2038, 1, 1, tzinfo=UTC)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def first(table: Timetable, after: datetime, count: int) -> list[datetime]:
    return list(itertools.islice(table.after(after), count))


# -- the reference -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A line of cron whose fields are known by what they stand for."""

    text: str
    fixed: bool
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 is Sunday
    both: bool  # whether day and weekday must fit, or one of them

    def fits(self, local: datetime) -> bool:
        day, weekday = local.day in self.days, local.isoweekday() % 7 in self.weekdays
        return (
            local.minute in self.minutes
            and local.hour in self.hours
            and local.month in self.months
            and (day and weekday if self.both else day or weekday)
        )


def some_field(chance: random.Random, low: int, high: int, star: float) -> tuple[str, frozenset[int]]:
    """A field as text, and its values."""
    whole = range(low, high + 1)
    kind = chance.random()
    if kind < star:
        return "*", frozenset(whole)
    if kind < star + 0.15:
        step = chance.randint(1, max(1, (high - low) // 2))
        return f"*/{step}", frozenset(whole[::step])
    if kind < star + 0.3:
        a, b = sorted((chance.randint(low, high), chance.randint(low, high)))
        step = chance.choice((1, 1, 2, 5))
        return f"{a}-{b}/{step}", frozenset(range(a, b + 1, step))
    chosen = sorted({chance.randint(low, high) for _ in range(chance.randint(1, 3))})
    return ",".join(map(str, chosen)), frozenset(chosen)


def some_line(chance: random.Random, around: Sequence[int]) -> Line:
    """A line that mostly has something to say about these hours."""
    minute, minutes = some_field(chance, 0, 59, 0.15)
    hour, hours = some_field(chance, 0, 23, 0.3)
    if chance.random() < 0.6:
        chosen = sorted({chance.choice(around) for _ in range(2)})
        hour, hours = ",".join(map(str, chosen)), frozenset(chosen)
    day, days = ("*", frozenset(range(1, 32))) if chance.random() < 0.8 else some_field(chance, 1, 31, 0.2)
    month, months = ("*", frozenset(range(1, 13))) if chance.random() < 0.9 else some_field(chance, 1, 12, 0.2)
    weekday, weekdays = ("*", frozenset(range(7))) if chance.random() < 0.8 else some_field(chance, 0, 6, 0.2)
    return Line(
        f"{minute} {hour} {day} {month} {weekday}", not (minute[0] == "*" or hour[0] == "*"),
        minutes, hours, days, months, weekdays, day[0] == "*" or weekday[0] == "*",
    )  # fmt: skip


def reference(line: Line, place: zoneinfo.ZoneInfo, begin: datetime, end: datetime) -> Iterator[datetime]:
    """The instants from `begin` to `end`, both included, by looking at each minute from an hour with peace before."""
    instant = begin - 3 * HOUR
    before = (instant - MINUTE).astimezone(place).replace(tzinfo=None)
    seen: set[datetime] = set()
    while instant <= end:
        local = instant.astimezone(place).replace(tzinfo=None)
        fires = line.fits(local) and not (line.fixed and local in seen)
        if line.fixed:
            missing = before + MINUTE
            while missing < local:  # clocks went forward
                fires = fires or line.fits(missing)
                missing += MINUTE
        seen.add(local)
        before = local
        if fires and instant >= begin:
            yield instant
        instant += MINUTE


@functools.cache
def changes() -> dict[str, tuple[tuple[datetime, timedelta], ...]]:
    """When clocks are changed in each zone, and to which offset."""
    found = {}
    for name in sorted(zoneinfo.available_timezones() - {"localtime"}):
        place, steps = zone(name), []
        day, offset = FIRST - DAY, (FIRST - DAY).astimezone(zone(name)).utcoffset()
        while day < LAST + DAY:
            low, high = day, day + _STEP
            if high.astimezone(place).utcoffset() != offset:
                before = offset
                while high - low > MINUTE:
                    middle = low + (high - low) / 2
                    middle = middle.replace(second=0, microsecond=0)
                    if middle.astimezone(place).utcoffset() == before:
                        low = middle
                    else:
                        high = middle
                offset = high.astimezone(place).utcoffset()
                steps.append((high, offset or timedelta()))
            day += _STEP
        found[name] = tuple(steps)
    return found


def rules() -> dict[tuple[Any, ...], list[str]]:
    """The zones by what their clocks do."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for name, steps in changes().items():
        found.setdefault((FIRST.astimezone(zone(name)).utcoffset(), steps), []).append(name)
    return found


@pytest.mark.parametrize("seed", range(2))
def test_cron_fires_as_the_reference_in_all_zones(seed: int) -> None:
    chance = random.Random(seed)
    compared = fired = 0
    assert len(changes()) > 400
    for (_, steps), names in rules().items():
        for change, _ in steps or [(FIRST + chance.random() * (LAST - FIRST), timedelta())]:
            place = zone(chance.choice(names))
            moment = change.replace(second=0, microsecond=0)
            begin, end = moment - 3 * HOUR, moment + 3 * HOUR
            near = [(change + number * HOUR).astimezone(place).hour for number in range(-2, 3)]
            line = some_line(chance, near)
            expected = list(reference(line, place, begin, end))
            found = itertools.takewhile(lambda item, end=end: item <= end, Cron(line.text, place).after(begin - MINUTE))
            assert list(found) == expected, (line.text, str(place), moment)
            compared += 1
            fired += len(expected)
    assert compared > 1000 and fired > 3000


@pytest.mark.parametrize("seed", range(2))
def test_over_long_times_nothing_is_lost(seed: int) -> None:
    """Across a change from far away, where only the day of the fire itself has one."""
    chance = random.Random(seed)
    for _ in range(60):
        name = chance.choice([name for name, steps in changes().items() if steps])
        change, _ = chance.choice(changes()[name])
        place = zone(name)
        local = change.astimezone(place).replace(tzinfo=None) - chance.choice((0, 30, 61)) * MINUTE
        line = f"{local.minute} {local.hour} {local.day} {local.month} *"
        wild = f"*/{chance.choice((7, 20))} {local.hour} {local.day} {local.month} *"
        for text in (line, wild):
            fires = list(
                itertools.takewhile(
                    lambda item, end=change + DAY: item <= end, Cron(text, place).after(change - 90 * DAY)
                )
            )
            near = list(
                itertools.takewhile(lambda item, end=change + DAY: item <= end, Cron(text, place).after(change - DAY))
            )
            assert fires == near and (fires or text == wild)  # in a gap there is no real time that fits


# -- what the documentation says ---------------------------------------------------------------------------------------


def test_a_time_that_does_not_exist_fires_at_the_end_of_the_gap() -> None:
    table = Timetable(cron="30 2 * * *", timezone="Europe/Berlin")
    assert first(table, utc("2026-03-28T00:00"), 3) == [
        utc("2026-03-28T01:30"), utc("2026-03-29T01:00"), utc("2026-03-30T00:30"),
    ]  # fmt: skip
    several = Timetable(cron="0,15,30 2,3 * * *", timezone="Europe/Berlin")  # all of two o'clock is one fire
    assert first(several, utc("2026-03-29T00:00"), 3) == [
        utc("2026-03-29T01:00"), utc("2026-03-29T01:15"), utc("2026-03-29T01:30"),
    ]  # fmt: skip


def test_a_time_that_there_is_twice_fires_the_first_time() -> None:
    table = Timetable(cron="30 2 * * *", timezone="Europe/Berlin")
    assert first(table, utc("2026-10-24T12:00"), 2) == [utc("2026-10-25T00:30"), utc("2026-10-26T01:30")]


def test_wildcards_follow_real_time() -> None:
    hourly = Timetable(cron="15 * * * *", timezone="Europe/Berlin")
    for day in ("2026-03-29", "2026-10-25"):
        assert first(hourly, utc(f"{day}T00:00"), 4) == [utc(f"{day}T0{hour}:15") for hour in range(4)]
    at_two = Timetable(cron="*/30 2 * * *", timezone="Europe/Berlin")
    assert first(at_two, utc("2026-10-25T00:00") - MINUTE, 4) == [
        utc(f"2026-10-25T{time}") for time in ("00:00", "00:30", "01:00", "01:30")
    ]
    assert first(at_two, utc("2026-03-29T00:00"), 1) == [utc("2026-03-30T00:00")]  # there is no two o'clock


@pytest.mark.parametrize("word", WORDS)
def test_words(word: str) -> None:
    assert first(Timetable(cron=word), FIRST, 3) == first(Timetable(cron=WORDS[word]), FIRST, 3)
    assert first(Timetable(cron=f" {word.upper()} "), FIRST, 1) == first(Timetable(cron=word), FIRST, 1)


@pytest.mark.parametrize("text", ["", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "0 0 0 * *", "0 0 32 * *",
                                  "0 0 * 13 *", "0 0 * * 8", "a * * * *", "*/0 * * * *", "5-1 * * * *", "@reboot",
                                  "0 0 30 2 *", "0 0 31 4,6,9,11 *", "* * * * *\n* * * * *", "-1 * * * *",
                                  "1.5 * * * *",
                                  "0 0 * * MON#6", "\u0661 * * * *"])  # fmt: skip
def test_what_is_no_line_or_never_fires(text: str) -> None:
    with pytest.raises(Unusable):
        Timetable(cron=text).check(60, FIRST)


@pytest.mark.parametrize("name", ["../etc/passwd", "/etc/localtime", "Europe/../UTC", "", "Mars/Base", "UTC\n", "é",
                                  "Europe/Berlin\0", "a/b/c/d", "posixrules/", "." * 30])  # fmt: skip
def test_what_is_no_zone(name: str) -> None:
    with pytest.raises(Unusable):
        zone(name)


def test_how_often_is_bounded() -> None:
    for text, shortest in (
        ("* * * * *", 60), ("*/5 * * * *", 300), ("0,59 * * * *", 60), ("0 0 * * *", 86_400), ("0,1 0 1 1 *", 60),
        ("59 23 * * *", 86_400), ("0 0,23 * * *", 3600), ("0 0,23 * * 1", 82_800),
        ("0 0,23 * * 0-6", 3600), ("0 0,23 1,2 * *", 3600), ("0 0,23 1,15 * *", 82_800),
    ):  # fmt: skip
        assert Cron(text, zone("UTC")).shortest.total_seconds() == shortest, text
        Timetable(cron=text).check(shortest, FIRST)
        with pytest.raises(Unusable, match="the most often"):
            Timetable(cron=text).check(shortest + 1, FIRST)
    with pytest.raises(Unusable, match="at least 60"):
        Timetable(every=59, anchor=FIRST).check(60, FIRST)


def test_regular_times_count_from_their_start() -> None:
    table = Timetable(every=90, anchor=FIRST)
    assert first(table, FIRST, 2) == [FIRST + timedelta(seconds=90), FIRST + timedelta(seconds=180)]
    assert first(table, FIRST - DAY, 1) == [FIRST]
    later = Timetable(every=0.5 * 86_400, anchor=FIRST, start=FIRST + HOUR, end=FIRST + DAY + HOUR)
    assert first(later, FIRST, 9) == [FIRST + HOUR, FIRST + 13 * HOUR, FIRST + 25 * HOUR]
    assert first(later, FIRST + HOUR, 1) == [FIRST + 13 * HOUR]


def test_one_instant() -> None:
    table = Timetable(at=FIRST)
    assert first(table, FIRST - MINUTE, 2) == [FIRST] and table.next(FIRST) is None
    with pytest.raises(Unusable, match="never fires any more"):
        table.check(60, FIRST)


def test_start_and_end_are_included() -> None:
    table = Timetable(cron="0 * * * *", start=FIRST + 2 * HOUR, end=FIRST + 4 * HOUR)
    assert first(table, FIRST, 9) == [FIRST + number * HOUR for number in (2, 3, 4)]
    with pytest.raises(Unusable):
        Timetable(cron="0 * * * *", end=FIRST).check(60, FIRST)


def test_lateness_is_even_and_always_the_same() -> None:
    tables = [Timetable(every=60, anchor=FIRST, jitter=30, salt=salt) for salt in range(500)]
    late = [(table.late(FIRST) - FIRST).total_seconds() for table in tables]
    assert late == [(table.late(FIRST) - FIRST).total_seconds() for table in tables]
    assert 0 <= min(late) < 2 and 28 < max(late) < 30 and 13 < sum(late) / len(late) < 17
    assert Timetable(every=60, anchor=FIRST).late(FIRST) == FIRST


def test_jitter_is_less_than_the_time_between() -> None:
    for table in (Timetable(every=60, anchor=FIRST, jitter=60), Timetable(cron="* * * * *", jitter=90)):
        with pytest.raises(Unusable, match="jitter"):
            table.check(60, FIRST)
    Timetable(at=LAST, jitter=86_400).check(60, FIRST)


def test_the_end_of_time() -> None:
    last = datetime(8999, 12, 31, 23, 59, tzinfo=UTC)
    for table in (Timetable(cron="* * * * *"), Timetable(every=60, anchor=last), Timetable(cron="0 0 1 1 *")):
        assert len(first(table, last - MINUTE, 5)) <= 3
        assert first(table, datetime(9000, 1, 1, tzinfo=UTC), 5) == []


def test_the_latest_are_found_without_looking_at_all() -> None:
    table = Timetable(cron="* * * * *")
    begun = time.monotonic()
    found = table.latest(FIRST, LAST, 3)
    assert found == [LAST - 2 * MINUTE, LAST - MINUTE, LAST]
    assert time.monotonic() - begun < 1
    yearly = Timetable(cron="@yearly")
    assert yearly.latest(FIRST, LAST, 2) == [LAST.replace(year=2037), LAST]
    assert yearly.latest(FIRST + DAY, FIRST + 2 * DAY, 5) == []
    assert yearly.latest(FIRST, FIRST, 5) == [FIRST]
