"""Timetables: the instants at which a schedule fires.

A timetable is one of

cron
    Five fields, or a word of `WORDS`, read in a time zone; as Debian's cron understands them (see the library cronsim).
    Where minute and hour are fixed (neither begins with a star), it means times of day: one that does not exist, as
    clocks go forward, fires once at the first instant after the gap, and one that there is twice fires the first time.
    Else it means real time: each minute whose local time fits.
every
    Seconds, counted from an anchor.
at
    A single instant.

All bounded by `start` and `end`, both included. `jitter` lets each fire up to so many seconds late: how many depends on
the schedule and the instant alone, so that whoever computes it gets the same.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

from cronsim import CronSim, CronSimError

WORDS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_LEAP = timedelta(hours=26)  # more than any clock was ever put forward or back at once
_MINUTE, _TICK = timedelta(minutes=1), timedelta(microseconds=1)
_END = datetime(9000, 1, 1, tzinfo=UTC)  # beyond it calendars and zones know no end


class Unusable(Exception):
    """What is not a timetable; the message is a sentence for people."""

    def __init__(self, message: str, field: str | None = None) -> None:
        """`field` is the one that it is about; None: that which tells the times."""
        super().__init__(message)
        self.field = field


@lru_cache(maxsize=1000)
def zone(name: str) -> zoneinfo.ZoneInfo:
    """A time zone of the IANA's database, by its name such as ``Europe/Berlin``. Raises `Unusable`."""
    if not re.fullmatch(r"[A-Za-z0-9_+-]{1,30}(/[A-Za-z0-9_+-]{1,30}){0,2}", name, re.ASCII):
        raise Unusable("Must be the name of a time zone, such as Europe/Berlin.")
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, OSError, ValueError):
        raise Unusable(f"There is no time zone {name}; names are such as Europe/Berlin.") from None


class Cron:
    """A line of cron, read in a time zone."""

    def __init__(self, text: str, timezone: zoneinfo.ZoneInfo) -> None:
        """Raises `Unusable` for what is none, or never fires."""
        self._zone = timezone
        line = WORDS.get(text.strip().lower(), text)
        fields = line.split()
        if len(fields) != 5:
            raise Unusable(f"Must have five fields, or be one of {', '.join(WORDS)}.")
        # A range of one value is that value, whatever the step; the library would go on from there.
        self._line = re.sub(r"\b(\w+)-\1/\d+", r"\1", " ".join(fields))
        try:
            parsed = CronSim(self._line, datetime(2024, 1, 1))
            next(parsed)
        except CronSimError as error:
            raise Unusable(f"Not a line of cron, or it never fires: {str(error).lower()}.") from None
        except StopIteration:
            raise Unusable("It never fires.") from None
        self._fixed = not (fields[0].startswith("*") or fields[1].startswith("*"))
        self._parsed = parsed

    @property
    def shortest(self) -> timedelta:
        """The least time between two fires, by a clock that is never changed."""
        times = sorted(60 * hour + minute for hour in self._parsed.hours for minute in self._parsed.minutes)
        around = [times[0] + 1440 - times[-1]] if self._on_days_in_a_row() else []
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)] + around
        return min(gaps, default=1440) * _MINUTE

    def _on_days_in_a_row(self) -> bool:
        days = (date(2024, 1, 1) + timedelta(days=number) for number in range(4 * 366))
        fits = (day.month in self._parsed.months and self._parsed.match_day(day) for day in days)
        return any(one and other for one, other in itertools.pairwise(fits))

    def after(self, instant: datetime) -> Iterator[datetime]:
        """The instants after this one, in UTC, as they come."""
        while True:
            if shift := self._shift_near(instant):
                # Where clocks are changed, local times come twice, or in another order than instants: take them all.
                end = instant + 2 * shift
                yield from sorted(self._between(instant, end, shift))
                instant = end
            else:
                following = self._next(instant)
                if following is None:
                    return
                yield following
                instant = following

    def _between(self, begin: datetime, end: datetime, shift: timedelta) -> set[datetime]:
        """The instants after `begin` and up to `end`, which local times stand for that are up to `shift` elsewhere."""
        last = self._local(end) + shift
        times = itertools.takewhile(lambda time: time <= last, CronSim(self._line, self._local(begin) - shift))
        return {item for time in times for item in self._instants(time) if begin < item <= end}

    def _next(self, instant: datetime) -> datetime | None:
        for time in CronSim(self._line, self._local(instant)):
            if found := self._instants(time):
                return found[0]
        return None

    def _local(self, instant: datetime) -> datetime:
        return instant.astimezone(self._zone).replace(tzinfo=None)

    def _shift_near(self, instant: datetime) -> timedelta:
        """By how much clocks are changed about this instant; mostly not at all."""
        shift = self._change(instant, _LEAP)
        return shift if shift and self._change(instant, shift) else timedelta()

    def _change(self, instant: datetime, distance: timedelta) -> timedelta:
        around = (instant + number * distance for number in range(-2, 3))
        offsets = [item.astimezone(self._zone).utcoffset() or timedelta() for item in around]
        return max(offsets) - min(offsets)

    def _instants(self, local: datetime) -> list[datetime]:
        """The instants that a local time of the line stands for."""
        both = [local.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1)]
        real = [item for item in both if self._local(item) == local]
        if self._fixed:
            # In a gap, the first reading is as far behind its end as the time is behind its beginning.
            return real[:1] or [self._end_of_gap(both[0])]
        return sorted(set(real))

    def _end_of_gap(self, beyond: datetime) -> datetime:
        """The instant at which clocks were put forward last before `beyond`."""
        low, high = beyond - _LEAP, beyond
        offset = high.astimezone(self._zone).utcoffset()
        while high - low > timedelta(seconds=1):
            middle = (low + (high - low) / 2).replace(microsecond=0)
            if middle.astimezone(self._zone).utcoffset() == offset:
                high = middle
            else:
                low = middle
        return high


@lru_cache(maxsize=500)
def _cron(text: str, timezone: str) -> Cron:
    """A line of cron: many schedules have the same."""
    return Cron(text, zone(timezone))


@lru_cache(maxsize=500)
def _following(text: str, timezone: str, instant: datetime) -> datetime | None:
    """The first instant of a line of cron after this one: those that fire in one minute ask for the same."""
    return next(_cron(text, timezone).after(instant), None)


@dataclass(frozen=True)
class Timetable:
    """See the module."""

    cron: str | None = None
    every: float | None = None  # seconds
    at: datetime | None = None
    timezone: str = "UTC"
    start: datetime | None = None
    end: datetime | None = None
    anchor: datetime | None = None  # of `every`, where there is no start
    jitter: float = 0.0  # seconds
    salt: int = 0  # of jitter: the schedule's number

    @property
    def _cron(self) -> Cron:
        return _cron(self.cron or "", self.timezone)

    def check(self, shortest: float, now: datetime) -> None:
        """Raise `Unusable` for one that fires more often than every `shortest` seconds, or never from `now` on."""
        if self.cron is not None and (found := self._cron.shortest.total_seconds()) < shortest:
            raise Unusable(f"Fires every {found:g} seconds; every {shortest:g} is the most often that is allowed.")
        if self.every is not None and self.every < shortest:
            raise Unusable(f"Must be at least {shortest:g} seconds.")
        between = self.every if self.cron is None else self._cron.shortest.total_seconds()
        if between is not None and self.jitter >= between:
            raise Unusable(f"The jitter must be less than the {between:g} seconds from one fire to the next.", "jitter")
        if self.next(now) is None:
            raise Unusable("It never fires any more.")

    def after(self, instant: datetime) -> Iterator[datetime]:
        """The instants after this one, without jitter."""
        instant = self._from(instant)
        if self.at is not None:
            found: Iterator[datetime] = iter([self.at] if self.at > instant else [])
        elif self.every is not None:
            found = self._regular(instant)
        else:
            found = self._cron.after(instant)
        return itertools.takewhile(lambda item: item <= self._last, found)

    def _from(self, instant: datetime) -> datetime:
        return instant if self.start is None else max(instant, self.start - _TICK)

    @property
    def _last(self) -> datetime:
        return min(self.end or _END, _END)

    def _regular(self, instant: datetime) -> Iterator[datetime]:
        anchor = self.start or self.anchor
        assert anchor is not None and self.every is not None
        step = timedelta(seconds=self.every)
        first = max(0, (instant - anchor) // step + 1) if instant >= anchor else 0
        return (anchor + number * step for number in itertools.count(first))

    def next(self, instant: datetime) -> datetime | None:
        """The first instant after this one, without jitter; None where there is none."""
        if self.cron is None:
            return next(self.after(instant), None)
        found = _following(self.cron, self.timezone, self._from(instant))
        return found if found is not None and found <= self._last else None

    def late(self, instant: datetime) -> datetime:
        """When the fire that belongs to this instant is due: up to `jitter` later."""
        if not self.jitter:
            return instant
        digest = hashlib.sha256(f"{self.salt} {instant.timestamp()}".encode()).digest()
        return instant + timedelta(seconds=self.jitter * int.from_bytes(digest[:6]) / 2**48)

    def latest(self, since: datetime, until: datetime, most: int) -> list[datetime]:
        """Of the instants from `since` to `until`, both included, the last `most`.

        Looks back no farther than it has to, so that years of minutes take no longer than those that are wanted.
        """
        window = timedelta(hours=1)
        while True:
            begin = max(since, until - window)
            found = list(itertools.takewhile(lambda item: item <= until, self.after(begin - _TICK)))
            if len(found) >= most or begin == since:
                return found[-most:] if most else []
            window *= 4
