"""Time is cut along a zone's calendar, without gap or overlap."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from datetime import UTC, date, datetime, timedelta, timezone
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from batchscore.errors import UsageError
from batchscore.interval import Calendar, Every, Interval

# Half-hour changes, changes at midnight, a day that never was, quarter-hour offsets, a summer time that pauses.
ZONES = [
    "UTC",
    "Africa/Casablanca",
    "America/New_York",
    "America/Sao_Paulo",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Europe/Berlin",
    "Pacific/Apia",
]
# Clocks that changed at 00:01: a minute of the next day comes before the last hour of this one.
ODD_ZONES = ["America/St_Johns", "Antarctica/Casey", "Asia/Gaza"]
EVERY: list[Every] = ["hour", "day", "week", "month"]
FIRST, LAST = datetime(1995, 1, 1), datetime(2036, 1, 1)
TICK = timedelta(microseconds=1)
LONGEST = {
    "hour": timedelta(days=4),
    "day": timedelta(days=70),
    "week": timedelta(days=400),
    "month": timedelta(days=1500),
}
# The machine may be busy.
MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@cache
def changes(zone: str) -> list[datetime]:
    """The instants at which the zone's offset changed, to the minute."""
    found = []
    low = FIRST.replace(tzinfo=UTC)
    while low < LAST.replace(tzinfo=UTC):
        high = low + timedelta(days=1)
        before, after, step = low, high, high
        while offset(zone, before) != offset(zone, after) and after - before > timedelta(minutes=1):
            middle = before + (after - before) / 2
            if offset(zone, middle) == offset(zone, before):
                before = middle
            else:
                after = step = middle
        if step != high:
            found.append(step.replace(second=0, microsecond=0))
        low = high
    return found


def offset(zone: str, instant: datetime) -> timedelta | None:
    """What the zone's clocks are ahead of UTC."""
    return instant.astimezone(ZoneInfo(zone)).utcoffset()


@st.composite
def calendars(draw: st.DrawFn, zones: list[str] = ZONES) -> Calendar:
    """A calendar of any cut, in one of the zones."""
    return Calendar(draw(st.sampled_from(EVERY)), ZoneInfo(draw(st.sampled_from(zones))))


@st.composite
def instants(draw: st.DrawFn, calendar: Calendar) -> datetime:
    """An instant in UTC: anywhere in forty years, or within a day or two of a change of the clocks."""
    anywhere = st.datetimes(FIRST, LAST, timezones=st.just(UTC))
    if not (known := changes(calendar.zone.key)):
        return draw(anywhere)
    minutes = st.one_of(st.integers(-3000, 3000), st.integers(-130, 130))
    near = st.builds(
        lambda at, m, us: at + timedelta(minutes=m, microseconds=us), st.sampled_from(known), minutes, st.integers(0, 1)
    )
    return draw(st.one_of(anywhere, near))


def at(zone: str, every: Every, text: str) -> Interval:
    """The interval that starts at a text."""
    return Calendar(every, ZoneInfo(zone)).at(text)


class TestContaining:
    """Every instant lies in exactly one interval."""

    @given(st.data(), calendars(ZONES + ODD_ZONES))
    @MANY
    def test_it_holds_the_instant(self, data, calendar):
        """The interval around an instant contains it."""
        instant = data.draw(instants(calendar))

        interval = calendar.containing(instant)

        assert interval.start <= instant < interval.end
        assert instant in interval

    @given(st.data(), calendars(ZONES + ODD_ZONES))
    @MANY
    def test_intervals_touch_and_never_overlap(self, data, calendar):
        """Where one ends the next starts, and every instant of an interval finds that same interval."""
        interval = calendar.containing(data.draw(instants(calendar)))
        inside = data.draw(st.timedeltas(timedelta(0), interval.end - interval.start - TICK))

        assert calendar.containing(interval.end).start == interval.end
        assert calendar.containing(interval.start - TICK).end == interval.start
        assert {calendar.containing(interval.start + d) for d in (timedelta(0), inside)} == {interval}
        assert calendar.containing(interval.end - TICK) == interval

    @given(st.data(), calendars())
    @MANY
    def test_it_is_what_the_calendar_on_the_wall_says(self, data, calendar):
        """All instants of an interval show one local hour, date, week from Monday or month, and the next shows another."""
        instant = data.draw(instants(calendar))
        interval = calendar.containing(instant)

        def shown(moment: datetime) -> object:
            local = moment.astimezone(calendar.zone)
            match calendar.every:
                case "hour":
                    return local.date(), local.hour
                case "day":
                    return local.date()
                case "week":
                    return local.date() - timedelta(days=local.weekday())
                case "month":
                    return local.year, local.month

        assert shown(interval.start) == shown(instant) == shown(interval.end - TICK)
        if calendar.every != "hour":
            assert shown(interval.end) != shown(instant) != shown(interval.start - TICK)

    def test_any_aware_instant_will_do(self):
        """An instant with another offset lies where the same instant in UTC does."""
        calendar = Calendar("day", ZoneInfo("America/New_York"))
        instant = datetime(2013, 10, 1, 3, 59, tzinfo=UTC)

        assert calendar.containing(instant.astimezone(ZoneInfo("Asia/Kathmandu"))) == calendar.containing(instant)
        assert calendar.label(calendar.containing(instant)) == "2013-09-30"


class TestLengths:
    """What changes of the clocks do to an interval."""

    @pytest.mark.parametrize(
        ("zone", "day", "hours"),
        [
            ("America/New_York", "2024-03-09", 24),
            ("America/New_York", "2024-03-10", 23),
            ("America/New_York", "2024-11-03", 25),
            ("Europe/Berlin", "2024-03-31", 23),
            ("Europe/Berlin", "2024-10-27", 25),
            ("Australia/Lord_Howe", "2024-10-06", 23.5),
            ("Australia/Lord_Howe", "2024-04-07", 24.5),
            ("America/Sao_Paulo", "2017-10-15", 23),  # its clocks go from 00:00 to 01:00
            ("America/Sao_Paulo", "2018-02-17", 25),  # and back from 24:00 to 23:00
            ("Africa/Casablanca", "2024-03-10", 25),  # Ramadan
            ("Africa/Casablanca", "2024-04-14", 23),
            ("Pacific/Apia", "2011-12-29", 24),
            ("Asia/Kathmandu", "2024-03-31", 24),
            ("UTC", "2024-03-31", 24),
        ],
    )
    def test_days(self, zone, day, hours):
        """A day is as long as its clocks make it."""
        interval = at(zone, "day", day)

        assert interval.end - interval.start == timedelta(hours=hours)

    def test_a_day_without_midnight_begins_when_it_begins(self):
        """Where midnight is skipped, the day starts with its first instant."""
        assert at("America/Sao_Paulo", "day", "2017-10-15").start == datetime(2017, 10, 15, 3, tzinfo=UTC)

    def test_the_day_that_never_was(self):
        """Samoa went from the 29th to the 31st: there is no interval of the 30th, and its midnight names the 31st's."""
        calendar = Calendar("day", ZoneInfo("Pacific/Apia"))
        around = calendar.between(calendar.parse("2011-12-28"), calendar.parse("2012-01-02"))

        assert [calendar.label(day) for day in around] == ["2011-12-28", "2011-12-29", "2011-12-31", "2012-01-01"]
        assert calendar.at("2011-12-30") == calendar.at("2011-12-31")
        week = at("Pacific/Apia", "week", "2011-12-26")
        assert week.end - week.start == timedelta(days=6)

    def test_the_repeated_hour_is_two_intervals(self):
        """In autumn 01:00 comes twice, and each has its own interval, label and way back."""
        calendar = Calendar("hour", ZoneInfo("America/New_York"))
        day = at("America/New_York", "day", "2024-11-03")
        hours = list(calendar.between(day.start, day.end))
        ones = [hour for hour in hours if "T01:00" in calendar.label(hour)]

        assert len(hours) == len({calendar.label(hour) for hour in hours}) == 25
        assert [calendar.label(hour) for hour in ones] == ["2024-11-03T01:00-04:00", "2024-11-03T01:00-05:00"]
        assert [calendar.at(calendar.label(hour)) for hour in ones] == ones
        assert ones[0].end == ones[1].start
        assert all(hour.end - hour.start == timedelta(hours=1) for hour in hours)

    def test_the_skipped_hour_is_none(self):
        """In spring there is no 02:00, and 03:00 follows 01:00 at once."""
        calendar = Calendar("hour", ZoneInfo("America/New_York"))
        day = at("America/New_York", "day", "2024-03-10")
        labels = [calendar.label(hour) for hour in calendar.between(day.start, day.end)]

        assert len(labels) == 23
        assert labels[1:3] == ["2024-03-10T01:00-05:00", "2024-03-10T03:00-04:00"]

    def test_half_an_hour_makes_no_interval_of_its_own(self):
        """On Lord Howe the hour after which clocks go back by 30 minutes has 90, the one they jump into has 30."""
        calendar = Calendar("hour", ZoneInfo("Australia/Lord_Howe"))

        autumn, spring = calendar.at("2024-04-07T01:00+11:00"), calendar.at("2024-10-06T02:30+11:00")

        assert autumn.end - autumn.start == timedelta(minutes=90)
        assert spring.end - spring.start == timedelta(minutes=30)

    def test_hours_of_a_quarter_hour_zone_start_on_its_own_clock(self):
        """Kathmandu's hours start at a quarter past those of UTC."""
        assert at("Asia/Kathmandu", "hour", "2024-01-01T10:00").start == datetime(2024, 1, 1, 4, 15, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("zone", "every", "instant", "start", "end"),
        [
            # 00:01 to 01:01: the rest of the hour that begins at 01:01 is one with the minute before.
            ("America/St_Johns", "hour", "1995-04-02T03:40", "1995-04-02T03:30", "1995-04-02T04:30"),
            # 00:01 back to 23:01: the new day has begun, and does not end again.
            ("America/St_Johns", "hour", "2010-11-07T03:00", "2010-11-07T02:30", "2010-11-07T03:30"),
            ("America/St_Johns", "day", "2010-11-07T03:00", "2010-11-07T02:30", "2010-11-08T03:30"),
            # 00:01 to 03:01.
            ("Antarctica/Casey", "hour", "2020-10-03T16:30", "2020-10-03T16:00", "2020-10-03T17:00"),
        ],
    )
    def test_clocks_that_change_past_midnight(self, zone, every, instant, start, end):
        """A change at 00:01 leaves no instant outside its interval."""
        calendar = Calendar(every, ZoneInfo(zone))

        interval = calendar.containing(datetime.fromisoformat(f"{instant}Z"))

        assert interval == Interval(datetime.fromisoformat(f"{start}Z"), datetime.fromisoformat(f"{end}Z"))

    @pytest.mark.parametrize(
        ("every", "first", "end"),
        [
            ("week", "2024-02-26", "2024-03-04"),
            ("week", "2024-12-30", "2025-01-06"),
            ("month", "2024-02-01", "2024-03-01"),
            ("month", "2023-02-01", "2023-03-01"),
            ("month", "2024-12-01", "2025-01-01"),
            ("month", "2024-01-01", "2024-02-01"),
        ],
    )
    def test_weeks_and_months(self, every, first, end):
        """Weeks run from Monday to Monday, months from first to first, across leap days and years."""
        calendar = Calendar(every, ZoneInfo("America/New_York"))

        assert calendar.at(first) == Interval(calendar.parse(first), calendar.parse(end))


class TestBetween:
    """The whole intervals inside a window."""

    @given(st.data(), calendars(ZONES + ODD_ZONES))
    @MANY
    def test_whole_ones_only_in_order_and_all_of_them(self, data, calendar):
        """What is given lies inside the window, one after the other, and not one more would fit on either side."""
        first = data.draw(instants(calendar))
        if data.draw(st.booleans()):
            first = calendar.containing(first).start
        last = first + data.draw(st.timedeltas(timedelta(0), LONGEST[calendar.every]))
        if data.draw(st.booleans()):
            last = max(first, calendar.containing(last).start)

        found = list(calendar.between(first, last))

        assert all(calendar.containing(interval.start) == interval for interval in found)
        assert all(before.end == after.start for before, after in pairwise(found))
        if found:
            assert first <= found[0].start
            assert found[-1].end <= last
            assert calendar.containing(found[0].start - TICK).start < first
            assert calendar.containing(found[-1].end).end > last
        else:
            around = calendar.containing(first)
            assert (around if around.start == first else calendar.containing(around.end)).end > last

    def test_bounds_are_half_open(self):
        """A window from one start to another holds the first and not the second."""
        calendar = Calendar("day", ZoneInfo("America/New_York"))
        window = calendar.parse("2013-10-01"), calendar.parse("2013-10-03")

        assert [calendar.label(day) for day in calendar.between(*window)] == ["2013-10-01", "2013-10-02"]

    def test_part_of_an_interval_is_none(self):
        """A window that misses an instant of an interval does not hold it."""
        calendar = Calendar("day", ZoneInfo("UTC"))
        first, last = calendar.parse("2013-10-01"), calendar.parse("2013-10-02")

        assert list(calendar.between(first, last)) == [Interval(first, last)]
        assert list(calendar.between(first + TICK, last)) == []
        assert list(calendar.between(first, last - TICK)) == []

    def test_an_empty_or_backward_window_holds_nothing(self):
        """No interval lies between an instant and itself, or an earlier one."""
        calendar = Calendar("hour", ZoneInfo("UTC"))
        noon = calendar.parse("2013-10-01T12:00")

        assert list(calendar.between(noon, noon)) == []
        assert list(calendar.between(noon, noon - timedelta(hours=5))) == []


class TestText:
    """Intervals and instants as people write them."""

    @given(st.data(), calendars(ZONES + ODD_ZONES))
    @MANY
    def test_a_label_leads_back(self, data, calendar):
        """`at` reads what `label` wrote, and neighbours have labels of their own."""
        interval = calendar.containing(data.draw(instants(calendar)))
        following = calendar.containing(interval.end)

        assert calendar.at(calendar.label(interval)) == interval
        assert calendar.label(following) != calendar.label(interval)

    @given(st.data(), calendars())
    @MANY
    def test_the_middle_of_an_interval_is_refused_with_its_start(self, data, calendar):
        """A text that does not start an interval is an error that says where the one around it starts."""
        instant = data.draw(instants(calendar))
        interval = calendar.containing(instant)
        assume(instant != interval.start)

        with pytest.raises(UsageError) as caught:
            calendar.at(instant.isoformat())

        assert calendar.label(interval) in str(caught.value)
        assert calendar.every in str(caught.value)
        assert calendar.zone.key in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "utc"),
        [
            ("2013-10-01", "2013-10-01T04:00"),
            ("2013-12-01", "2013-12-01T05:00"),
            ("2013-10-01T06:00", "2013-10-01T10:00"),
            ("2013-10-01 06:00:30", "2013-10-01T10:00:30"),
            ("2013-10-01T06:00Z", "2013-10-01T06:00"),
            ("2013-10-01T06:00+05:45", "2013-10-01T00:15"),
            ("2013-10-01T06:00-04:00", "2013-10-01T10:00"),
            ("2013-10-01T06:00-05:00", "2013-10-01T11:00"),
            ("2013-11-03T01:30", "2013-11-03T05:30"),  # the first of two
        ],
    )
    def test_parse(self, text, utc):
        """A date is its local midnight, a bare time is local, and an offset says what it says; the result is UTC."""
        instant = Calendar("day", ZoneInfo("America/New_York")).parse(text)

        assert instant == datetime.fromisoformat(f"{utc}Z")
        assert instant.utcoffset() == timedelta(0)

    @given(calendars(), st.datetimes(FIRST, LAST), st.integers(-14 * 60, 14 * 60))
    @MANY
    def test_bare_text_is_local_and_offsets_are_honoured(self, calendar, wall, minutes):
        """Any time without offset is the zone's own, the earlier of two, any time with one is not."""
        other = timezone(timedelta(minutes=minutes))

        assert calendar.parse(wall.isoformat()) == wall.replace(tzinfo=calendar.zone, fold=0).astimezone(UTC)
        assert calendar.parse(wall.replace(tzinfo=other).isoformat()) == wall.replace(tzinfo=other)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "yesterday",
            "10/01/2013",
            "2013-13-01",
            "2013-02-29",
            "2013-10-01T25:00",
            "2013-10-01T06:00 America/New_York",
            "0001-01-01",
            "9999-12-31",
            "9999-12-31T23:59:59.999999+00:00",
        ],
    )
    @pytest.mark.parametrize("read", [Calendar.parse, Calendar.at])
    @pytest.mark.parametrize("every", EVERY)
    def test_what_is_no_date_is_refused(self, text, read, every):
        """A text that names no instant is an error of use that repeats it and shows how to write one."""
        with pytest.raises(UsageError) as caught:
            read(Calendar(every, ZoneInfo("Europe/Berlin")), text)

        assert repr(text) in str(caught.value)
        assert "2013-10-01" in str(caught.value)
        assert "Europe/Berlin" in str(caught.value)

    @pytest.mark.parametrize("every", EVERY)
    @pytest.mark.parametrize("zone", ["Pacific/Apia", "UTC", "America/New_York"])
    @pytest.mark.parametrize("text", ["0002-01-01", "9998-12-31"])
    def test_the_rim_of_time_is_no_crash(self, zone, every, text):
        """An interval around the first and the last date that is taken has a start and an end."""
        calendar = Calendar(every, ZoneInfo(zone))
        instant = calendar.parse(text)

        assert instant in calendar.containing(instant)

    def test_instant_takes_values_as_parse_takes_texts(self):
        """A date, a bare datetime and an aware one mean what their texts mean."""
        calendar = Calendar("day", ZoneInfo("America/New_York"))

        assert calendar.instant(date(2013, 10, 1)) == calendar.parse("2013-10-01")
        assert calendar.instant(datetime(2013, 10, 1, 6)) == calendar.parse("2013-10-01T06:00")
        assert calendar.instant(datetime(2013, 10, 1, 6, tzinfo=UTC)) == datetime(2013, 10, 1, 6, tzinfo=UTC)

    def test_a_window_is_two_instants_in_order(self):
        """Each side is read as a text is, and a side that is not given stays open."""
        calendar = Calendar("day", ZoneInfo("America/New_York"))
        first, last = calendar.parse("2013-10-01"), calendar.parse("2013-10-02")

        assert calendar.window("2013-10-01", "2013-10-02") == (first, last)
        assert calendar.window("2013-10-01", None) == (first, None)
        assert calendar.window(None, "2013-10-02") == (None, last)
        assert calendar.window(None, None) == (None, None)

    @pytest.mark.parametrize(
        ("first", "last"),
        [("2013-10-02", "2013-10-01"), ("2013-10-01", "2013-10-01"), ("2013-10-01", "2013-10-01T04:00Z")],
    )
    def test_a_window_without_an_instant_is_refused(self, first, last):
        """`--from` on or behind `--to`, however each is written, is an error of use that repeats both."""
        with pytest.raises(UsageError, match=f"--from {first} is not before --to {last}"):
            Calendar("day", ZoneInfo("America/New_York")).window(first, last)

    @pytest.mark.parametrize("value", [date.min, date.max, datetime.min, datetime.max])
    def test_values_outside_time_are_refused(self, value):
        """The first and the last year are a ValueError, never an overflow later."""
        with pytest.raises(ValueError, match="outside the years 2 to 9998"):
            Calendar("day", ZoneInfo("Pacific/Apia")).instant(value)


class TestInterval:
    """The value itself."""

    NOON = datetime(2013, 10, 1, 12, tzinfo=UTC)
    HOUR = timedelta(hours=1)

    @pytest.mark.parametrize(
        ("start", "end"),
        [
            (NOON.replace(tzinfo=None), NOON + HOUR),
            (NOON, (NOON + HOUR).replace(tzinfo=None)),
            (NOON.astimezone(ZoneInfo("America/New_York")), NOON + HOUR),
            (NOON, (NOON + HOUR).astimezone(ZoneInfo("America/New_York"))),
        ],
    )
    def test_bounds_are_in_utc(self, start, end):
        """A bound without zone, or in another, is refused."""
        with pytest.raises(ValueError, match="in UTC"):
            Interval(start, end)

    @pytest.mark.parametrize("end", [NOON, NOON - HOUR])
    def test_it_is_never_empty(self, end):
        """An interval that ends where it starts, or before, is refused."""
        with pytest.raises(ValueError, match="ends after it starts"):
            Interval(self.NOON, end)

    def test_it_is_half_open(self):
        """The start is inside, the end is not."""
        interval = Interval(self.NOON, self.NOON + self.HOUR)

        assert self.NOON in interval
        assert self.NOON + self.HOUR - TICK in interval
        assert self.NOON + self.HOUR not in interval
        assert self.NOON - TICK not in interval

    def test_it_does_not_change(self):
        """Intervals and calendars are values: equal ones hash alike, and what they hold stays."""
        interval = Interval(self.NOON, self.NOON + self.HOUR)

        assert hash(interval) == hash(Interval(self.NOON, self.NOON + self.HOUR))
        with pytest.raises(FrozenInstanceError):
            Calendar("day", ZoneInfo("UTC")).every = "week"  # type: ignore[misc]
        with pytest.raises(FrozenInstanceError):
            interval.end = self.NOON  # type: ignore[misc]

    def test_it_sorts_by_time_and_reads_as_one(self):
        """Intervals sort oldest first, and print as a half-open window in UTC."""
        early, late = (
            Interval(self.NOON, self.NOON + self.HOUR),
            Interval(self.NOON + self.HOUR, self.NOON + 2 * self.HOUR),
        )

        assert sorted([late, early]) == [early, late]
        assert str(early) == "[2013-10-01T12:00Z, 2013-10-01T13:00Z)"
