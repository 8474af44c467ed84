"""Half-open intervals in UTC, cut along the calendar of a time zone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, UTC, date, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from batchscore.errors import UsageError

__all__ = ["Calendar", "Every", "Interval", "age_of"]

Every = Literal["hour", "day", "week", "month"]

# No zone's calendar hour is shorter than this, so stepping by it never jumps over a boundary.
_SHORTEST_HOUR = timedelta(minutes=15)


def age_of(text: str, where: str) -> timedelta:
    """The length of time that is written `90d`, `12h` or `4w`.

    Args:
        text: The text.
        where: What it was given as, for the message.

    Raises:
        UsageError: It is none.
    """
    match = re.fullmatch(r"(\d{1,9})([hdw])", text)
    if not match:
        raise UsageError(f"{where} {text!r} is no age. Write a number and h, d or w: 90d.")
    return timedelta(hours=int(match[1]) * {"h": 1, "d": 24, "w": 168}[match[2]])


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """The instants `start <= t < end`, both aware and in UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start.utcoffset() != timedelta(0) or self.end.utcoffset() != timedelta(0):
            raise ValueError(f"an interval's bounds are in UTC: {self.start!r}, {self.end!r}")
        if self.start >= self.end:
            raise ValueError(f"an interval ends after it starts: {self.start!r}, {self.end!r}")

    def __contains__(self, instant: datetime) -> bool:
        return self.start <= instant < self.end

    def __str__(self) -> str:
        return f"[{self.start:%Y-%m-%dT%H:%MZ}, {self.end:%Y-%m-%dT%H:%MZ})"


@dataclass(frozen=True, slots=True)
class Calendar:
    """Cuts time into hours, days, weeks (from Monday) or months of one time zone.

    The intervals of a calendar follow one another without gap or overlap, across changes of daylight saving time
    too: such a day has 23 or 25 hours, and a local hour that the zone skips does not exist.
    """

    every: Every
    zone: ZoneInfo

    def containing(self, instant: datetime) -> Interval:
        """The one interval in which an aware instant lies."""
        # Clocks put back at 00:01 leave a minute of the next day, or hour, before the rest of this one.
        probe = instant
        while (start := self._floor(probe)) > instant:
            probe -= _SHORTEST_HOUR
        while (end := self._after(start)) <= instant:
            start = end
        return Interval(start, end)

    def between(self, first: datetime, last: datetime) -> Iterator[Interval]:
        """Every whole interval inside `[first, last)`, oldest first."""
        around = self.containing(first)
        start = around.start if around.start == first else around.end
        while (end := self._after(start)) <= last:
            yield Interval(start, end)
            start = end

    def parse(self, text: str) -> datetime:
        """An instant in UTC from an ISO date or datetime; without an offset it is local time of the zone.

        Raises:
            UsageError: The text is no ISO date or datetime.
        """
        try:
            return self.instant(date.fromisoformat(text) if len(text) == 10 else datetime.fromisoformat(text))
        except ValueError:
            raise UsageError(
                f"{text!r} is not a date. Write 2013-10-01, 2013-10-01T06:00 (in {self.zone.key}) or 2013-10-01T10:00Z."
            ) from None

    def at(self, text: str) -> Interval:
        """The interval that starts at the instant written in `text`.

        Raises:
            UsageError: The text is no date, or lies inside an interval; the message names the interval's start.
        """
        instant = self.parse(text)
        interval = self.containing(instant)
        if interval.start != instant:
            raise UsageError(
                f"{text} does not start an interval: this job's are one {self.every} long in {self.zone.key}. "
                f"The one around it starts at {self.label(interval)}."
            )
        return interval

    def window(self, first: str | None, last: str | None) -> tuple[datetime | None, datetime | None]:
        """The instants of `--from` and `--to`, each as `parse` reads it; None where it is not given.

        Raises:
            UsageError: One of them is no date or lies inside an interval, or `first` is not before `last`.
        """
        start, end = (None if text is None else self.at(text).start for text in (first, last))
        if start is not None and end is not None and start >= end:
            raise UsageError(
                f"--from {first} is not before --to {last}, so there is no interval between them. --to is the first "
                "instant left out: for one interval, write where the next one starts."
            )
        return start, end

    def instant(self, value: date | datetime) -> datetime:
        """A date (its local midnight) or datetime (local unless aware) as an instant in UTC.

        Raises:
            ValueError: It is in Python's first or last year, where an interval could begin or end outside both.
        """
        if not MINYEAR < value.year < MAXYEAR:
            raise ValueError(f"{value} is outside the years {MINYEAR + 1} to {MAXYEAR - 1}")
        return self._utc(value)

    def _utc(self, value: date | datetime) -> datetime:
        if not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        return (value if value.tzinfo else value.replace(tzinfo=self.zone)).astimezone(UTC)

    def label(self, interval: Interval) -> str:
        """The interval's local start: `2013-10-01`, or `2013-10-01T06:00-04:00` for hours; `at` reads it back."""
        local = interval.start.astimezone(self.zone)
        return local.isoformat(timespec="minutes") if self.every == "hour" else local.date().isoformat()

    def _floor(self, instant: datetime) -> datetime:
        local = instant.astimezone(self.zone)
        if self.every == "hour":
            # The fold is kept: the two hours that share a name in autumn are two intervals.
            hour = local.replace(minute=0, second=0, microsecond=0)
            start = hour.astimezone(UTC)
            # Clocks put forward at 00:01 skip the beginning of the hour they land in; it is one with the hour before.
            return start if start <= instant else hour.replace(fold=1).astimezone(UTC)
        day = local.date()
        if self.every == "week":
            day -= timedelta(days=day.weekday())
        elif self.every == "month":
            day = day.replace(day=1)
        return self._utc(day)

    def _after(self, start: datetime) -> datetime:
        """The first boundary later than the boundary `start`."""
        if self.every == "hour":
            probe = start
            while (boundary := self._floor(probe)) <= start:
                probe += _SHORTEST_HOUR
            return boundary
        return self._utc(self._next_day(start.astimezone(self.zone).date()))

    def _next_day(self, day: date) -> date:
        if self.every == "month":
            return (day.replace(day=28) + timedelta(days=4)).replace(day=1)
        return day + timedelta(days=7 if self.every == "week" else 1)
