"""Seven column types, and casts between them that lose nothing or refuse."""

from __future__ import annotations

import json
import math
import re
import uuid
from dataclasses import FrozenInstanceError
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from itertools import product
from typing import Any, get_args

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from batchscore.errors import SchemaMismatch
from batchscore.schema import Column, Schema, TypeName, dtype_of, type_name
from batchscore.sources.arrow import canonical

TYPES = get_args(TypeName)
EXACT = {
    ("integer", "float"),
    ("integer", "boolean"),
    ("float", "integer"),
    ("string", "date"),
    ("string", "timestamp"),
    ("string", "timestamp_tz"),
}
VALUE = {
    "boolean": True,
    "integer": 7,
    "float": 1.5,
    "string": "a",
    "date": date(2013, 10, 1),
    "timestamp": datetime(2013, 10, 1, 6),
    "timestamp_tz": datetime(2013, 10, 1, 6, tzinfo=UTC),
}
NOON = datetime(2013, 10, 1, 12)
INT64 = st.integers(-(2**63), 2**63 - 1)
# The machine may be busy.
MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def conform(values: list[Any], got: str, want: str) -> list[Any]:
    """The values of a column of one canonical type, cast to what a bundle declares."""
    frame = pl.DataFrame([pl.Series("delay", values, dtype=dtype_of(got))])
    result = Schema((Column("delay", want, nullable=True),)).conform(frame, "rows.sql")
    assert result.schema == {"delay": dtype_of(want)}
    return result["delay"].to_list()


def refusal(values: list[Any], got: str, want: str) -> str:
    """The message with which the cast is refused; it names place, column, want and got."""
    with pytest.raises(SchemaMismatch) as caught:
        conform(values, got, want)
    message = str(caught.value)
    assert message.startswith(f"rows.sql: column delay: want {want}, got {got}")
    assert caught.value.context["column"] == "delay"
    assert caught.value.context["want"] == want
    return message


def arrow(values: pa.Array | pa.ChunkedArray, where: str = "rows.sql") -> pl.Series:
    """A column of Arrow, canonical."""
    return canonical(pa.table({"delay": values}), where)["delay"]


class TestNumbers:
    """Casts between numbers, exact or refused."""

    @given(st.lists(st.none() | st.integers(-(2**53), 2**53)))
    @example([2**53, -(2**53), 0, None])
    @MANY
    def test_integers_become_floats_where_a_double_holds_each(self, values):
        """Every integer up to 2**53 is its own double, and NULL stays NULL."""
        assert conform(values, "integer", "float") == values

    @given(
        st.lists(st.none() | st.integers(-(2**53), 2**53)), st.integers(2**53 + 1, 2**63 - 1), st.sampled_from([1, -1])
    )
    @example([], 2**53 + 1, 1)
    @example([], 2**53 + 1, -1)
    @example([1], 2**62, 1)
    @MANY
    def test_greater_integers_are_refused(self, values, large, sign):
        """One integer past 2**53 stops the chunk, and is shown, though a double may happen to hold it."""
        assert f"for instance {sign * large}" in refusal([*values, sign * large], "integer", "float")

    @given(st.lists(st.none() | st.floats()))
    @example([2.0**53, -(2.0**53), -0.0, None])
    @example([2.0**53 + 2])
    @example([math.nan])
    @example([-math.inf])
    @example([0.5])
    @MANY
    def test_floats_become_integers_where_they_are_whole(self, values):
        """A column of whole floats up to 2**53 becomes those integers; a fraction, NaN, infinity or greater one refuses."""
        guilty = [v for v in values if v is not None and not (abs(v) <= 2**53 and v.is_integer())]
        if not guilty:
            assert conform(values, "float", "integer") == values
        else:
            message = refusal(values, "float", "integer")
            assert f"for instance {guilty[0]!r}" in message
            assert f"({len(guilty)} such value(s))" in message

    @given(st.lists(st.none() | st.sampled_from([0, 1, 0, 1, 2, -1]) | INT64))
    @MANY
    def test_zero_and_one_become_booleans(self, values):
        """A column of 0 and 1 becomes false and true; any other integer refuses."""
        guilty = [v for v in values if v not in (0, 1, None)]
        if not guilty:
            assert conform(values, "integer", "boolean") == [None if v is None else v == 1 for v in values]
        else:
            assert f"for instance {guilty[0]}" in refusal(values, "integer", "boolean")


@st.composite
def moments(draw: st.DrawFn, offset: bool) -> tuple[str, datetime]:
    """An ISO text in any of its usual spellings, and the datetime it means; bare ones are UTC where an offset could be."""
    wall = draw(st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31)))
    digits = draw(st.integers(0, 6))
    wall = wall.replace(microsecond=wall.microsecond // 10 ** (6 - digits) * 10 ** (6 - digits))
    text = f"{wall:%H:%M:%S.%f}"[: 9 + digits].removesuffix(".")
    text = f"{wall.date()}{draw(st.sampled_from(' T'))}{text}"
    if digits == 6:
        text += "0" * draw(st.integers(0, 3))
    if not offset:
        return text, wall
    minutes = draw(st.just(0) | st.integers(-23, 23).map(lambda hours: hours * 60) | st.integers(-1439, 1439))
    zone = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
    spellings = [zone, zone.replace(":", "")]
    if minutes % 60 == 0:
        spellings.append(zone[:3])
    if minutes == 0:
        spellings += ["Z", "z", ""]
    return text + draw(st.sampled_from(spellings)), wall.replace(tzinfo=timezone(timedelta(minutes=minutes)))


NO_DATES = """
2013-1-1|20131001| 2013-10-01|2013-10-01 |+2013-10-01|2013-10-01T00:00:00|2013-02-29|01/10/2013|10000-01-01|-001-01-01
|0000-01-01|\u0662\u0660\u0661\u0663-10-01|infinity|today|"""
NO_TIMES = """
2013-10-01  06:00:00|T2013-10-01 06:00:00|2013-1-1 6:0:0|2013-10-01 24:00:00|2013-10-01 23:59:60|2013-10-01 06:00:00.
|2013-10-01 06:00:00,5|2013-10-01 06:00:00 |06:00:00|2013-10-01 06:00:00.1234567|2013-10-01T06:00:00T|1380607200
|0000-01-01 00:00:00|now|"""
NO_INSTANTS = """
2013-10-01 06:00:00+24:00|2013-10-01 06:00:00+5|2013-10-01 06:00:00 UTC|2013-10-01 06:00:00ZZ|2013-10-01 06:00:00 +05:00
|2013-10-01 06:00:00\u221202:00|9999-12-31 23:59:59-05:00|0001-01-01 00:00:00+05:00|2013-10-01 06:00:00.1234567Z"""
NOT_ISO = {
    "date": [*NO_DATES.replace("\n", "").split("|"), "2013-10-01\n"],
    "timestamp": [*NO_TIMES.replace("\n", "").split("|"), "2013-10-01 06:00:00Z", "2013-10-01 06:00:00+00:00"],
    "timestamp_tz": (NO_TIMES + "|" + NO_INSTANTS).replace("\n", "").split("|"),
}
# Pieces of ISO times, with and without what does not belong there.
NEAR_ISO = st.tuples(
    st.sampled_from(
        ["2013-10-01", "2013-10-1", "1999-12-31", "2016-02-29", "2013-02-29", "12013-10-01", "+2013-10-01"]
    ),
    st.sampled_from(["T", " ", "  ", "t"]),
    st.sampled_from(["06:00:00", "6:00:00", "23:59:59", "23:59:60", "24:00:00", "06:00"]),
    st.sampled_from(["", ".", ".5", ".123456", ".1234560", ".1234567", ".000000001"]),
    st.sampled_from(["", "Z", "z", "+00", "-0330", "+05:45", "-23:59", "+24:00", "+5", " +05:45", "UTC", "+05:45:30"]),
).map("".join)


class TestText:
    """ISO text as dates and times, as SQLite and files without types give them."""

    @given(st.lists(st.none() | st.dates()))
    @example([date.min, date.max])
    @MANY
    def test_dates(self, values):
        """ISO dates become those dates."""
        assert conform([v and v.isoformat() for v in values], "string", "date") == values

    @given(st.lists(moments(offset=False)))
    @MANY
    def test_timestamps(self, values):
        """ISO times become those times to the microsecond, with T or a space and any number of digits."""
        texts, wanted = [text for text, _ in values], [value for _, value in values]

        assert conform([*texts, None], "string", "timestamp") == [*wanted, None]

    @given(st.lists(moments(offset=True)))
    @MANY
    def test_timestamps_with_zone(self, values):
        """Times with an offset become those instants in UTC, and times without one are UTC; a column may mix them."""
        texts, wanted = [text for text, _ in values], [value for _, value in values]

        found = conform([*texts, None], "string", "timestamp_tz")

        assert found == [*wanted, None]
        assert all(value.utcoffset() == timedelta(0) for value in found if value is not None)

    @pytest.mark.parametrize(("want", "text"), [(want, text) for want, texts in NOT_ISO.items() for text in texts])
    def test_all_else_is_refused(self, want, text):
        """Text that is not ISO, names no date, or holds more digits than a microsecond has, is shown and refused."""
        good = "2013-10-01" if want == "date" else "2013-10-01 06:00:00"

        assert f"for instance {text!r}" in refusal([good, text, None], "string", want)

    @given(NEAR_ISO)
    @MANY
    def test_never_read_otherwise_than_python_does(self, text):
        """Whatever is accepted as an instant is the instant that Python reads, and loses no digit."""
        try:
            (found,) = conform([text], "string", "timestamp_tz")
        except SchemaMismatch:
            return
        wanted = datetime.fromisoformat(text.upper())
        fraction = re.search(r"\.(\d+)", text)

        assert found == (wanted if wanted.tzinfo else wanted.replace(tzinfo=UTC))
        assert fraction is None or Decimal(f"0.{fraction[1]}") == Decimal(found.microsecond) / 1_000_000


class TestConform:
    """Rows against the columns of a bundle."""

    @pytest.mark.parametrize("name", TYPES)
    def test_its_own_type_passes_through(self, name):
        """A column of the declared type is given as it is, NULL, NaN and infinity included."""
        values = [VALUE[name], None] if name != "float" else [1.5, None, math.inf]

        assert conform(values, name, name) == values

    @pytest.mark.parametrize("name", TYPES)
    def test_a_column_without_values_takes_the_declared_type(self, name):
        """A column that is NULL throughout, and so has no type, takes the declared one; so does one without rows."""
        schema = Schema((Column("delay", name, nullable=True),))
        for n in (0, 3):
            found = schema.conform(canonical(pa.table({"delay": pa.nulls(n)}), "rows.sql"), "rows.sql")

            assert_frame_equal(found, pl.DataFrame({"delay": [None] * n}, schema={"delay": dtype_of(name)}))

    @pytest.mark.parametrize(
        ("got", "want"), [pair for pair in product(TYPES, TYPES) if pair[0] != pair[1] and pair not in EXACT]
    )
    def test_no_other_cast_is_made(self, got, want):
        """Types with no exact cast between them are refused, by their names, whatever the values: text is never a number."""
        message = refusal([VALUE[got]], got, want)

        assert "Cast it at the source, or retrain" in message
        assert refusal([None], got, want) == message

    @pytest.mark.parametrize("text", ["7", "1.5", "true", "1", "0"])
    @pytest.mark.parametrize("want", ["integer", "float", "boolean"])
    def test_text_that_spells_a_number_is_text(self, text, want):
        """Digits in a text column do not make it a column of numbers."""
        refusal([text], "string", want)

    @pytest.mark.parametrize(("got", "want"), [("timestamp", "timestamp_tz"), ("timestamp_tz", "timestamp")])
    def test_naive_and_aware_are_not_alike(self, got, want):
        """A time without zone is no instant, nor the other way round, and the message says how to name the zone."""
        assert "AT TIME ZONE 'UTC'" in refusal([VALUE[got]], got, want)

    def test_the_zone_advice_is_for_zones(self):
        """No other mismatch speaks of time zones."""
        assert "TIME ZONE" not in refusal([1.5], "float", "timestamp")

    def test_a_missing_column_names_the_nearest(self):
        """A column that the rows lack is named with the nearest that they have, and nothing is cast before."""
        schema = Schema((Column("late", "boolean", nullable=False), Column("carrier", "string", nullable=False)))

        with pytest.raises(
            SchemaMismatch, match=r"rows\.sql lacks 1 column\(s\).*carrier \(nearest: carier\)"
        ) as caught:
            schema.conform(pl.DataFrame({"carier": ["AA"], "late": ["no boolean"]}), "rows.sql")

        assert caught.value.context == {"missing": ["carrier"]}

    def test_order_and_extra_columns(self):
        """The result has the declared columns in the declared order; others are told by `undeclared` and left out."""
        schema = Schema((Column("b", "integer", nullable=False), Column("a", "string", nullable=False)))
        frame = pl.DataFrame({"x": [1.5], "a": ["t"], "y": [None], "b": [1]})

        assert_frame_equal(schema.conform(frame, "rows.sql"), pl.DataFrame({"b": [1], "a": ["t"]}))
        assert schema.undeclared(frame) == ["x", "y"]
        assert schema.undeclared(frame.select("b", "a")) == []

    def test_no_rows(self):
        """Rows without any rows conform to the empty frame of the schema."""
        schema = Schema(tuple(Column(name, name, nullable=True) for name in TYPES))

        assert schema.empty().schema == {name: dtype_of(name) for name in TYPES}
        assert schema.empty().height == 0
        assert_frame_equal(schema.conform(schema.empty(), "rows.sql"), schema.empty())


class TestSchema:
    """What training rows declare."""

    def test_of_rows(self):
        """Types, NULLs, NaNs and infinities are declared as they were seen."""
        frame = pl.DataFrame(
            {"f": [1.0, None], "n": [math.nan, 1.0], "i": [-math.inf, 1.0], "k": [1, 2], "s": ["a", None]},
        )

        assert Schema.of(frame) == Schema(
            (
                Column("f", "float", nullable=True),
                Column("n", "float", nullable=False, nan=True),
                Column("i", "float", nullable=False, infinite=True),
                Column("k", "integer", nullable=False),
                Column("s", "string", nullable=True),
            )
        )

    def test_every_type_has_a_name(self):
        """Each of the seven leads to a Polars type and back, a schema declares it, and no other type has a name."""
        frame = pl.DataFrame({name: pl.Series([VALUE[name]], dtype=dtype_of(name)) for name in TYPES})

        assert [type_name(dtype_of(name)) for name in TYPES] == list(TYPES)
        assert [column.type for column in Schema.of(frame)] == list(TYPES)
        assert [column.dtype for column in Schema.of(frame)] == frame.dtypes
        assert type_name(pl.Int32()) is None

    def test_training_rows_must_have_a_type(self):
        """A column that is NULL in all of training is refused by name, with the way out."""
        with pytest.raises(
            SchemaMismatch, match=r"the training rows: column x: want a typed column.*cast it at the source"
        ):
            Schema.of(pl.DataFrame({"x": [None, None]}))

    @given(
        st.lists(
            st.builds(
                Column,
                st.text(),
                st.sampled_from(TYPES),
                nullable=st.booleans(),
                nan=st.booleans(),
                infinite=st.booleans(),
            )
        )
    )
    @MANY
    def test_json_round_trip(self, columns):
        """A schema comes back from JSON as it was, names of any kind included."""
        schema = Schema(tuple(columns))

        assert Schema.from_dicts(json.loads(json.dumps(schema.to_dicts()))) == schema

    def test_an_unknown_type_is_refused(self):
        """A schema that names a type outside the seven is not read."""
        with pytest.raises(ValueError, match="column x: unknown type 'int64'"):
            Schema.from_dicts([{"name": "x", "type": "int64", "nullable": True}])

    def test_a_schema_is_a_value(self):
        """Schemas of equal columns are equal, hash alike, and do not change."""
        schema = Schema((Column("a", "string", nullable=True),))

        assert hash(schema) == hash(Schema((Column("a", "string", nullable=True),)))
        with pytest.raises(FrozenInstanceError):
            schema.columns = ()  # type: ignore[misc]
        with pytest.raises(FrozenInstanceError):
            schema["a"].nullable = False  # type: ignore[misc]

    def test_columns_by_name(self):
        """A column is found by its name, and names are in order."""
        schema = Schema((Column("b", "integer", nullable=False), Column("a", "string", nullable=True)))

        assert schema["a"] == Column("a", "string", nullable=True)
        assert schema.names == ["b", "a"]


class TestSurprises:
    """Rows that hold what training never saw."""

    @given(st.data())
    @MANY
    def test_each_row_is_told_by_its_first_column(self, data):
        """A row is surprising where a value is NULL, NaN or infinite and its column was not; the first such column is told."""
        flags = st.tuples(st.booleans(), st.booleans(), st.booleans())
        columns = [Column(name, "float", *data.draw(flags)) for name in ("a", "late minutes", "c")]
        columns.append(Column("s", "string", nullable=data.draw(st.booleans())))
        n = data.draw(st.integers(0, 12))
        values = st.sampled_from([1.0, None, math.nan, math.inf, -math.inf, 1.0, 0.0])
        rows = {c.name: data.draw(st.lists(values, min_size=n, max_size=n)) for c in columns[:-1]}
        rows["s"] = data.draw(st.lists(st.sampled_from(["", None, "NaN"]), min_size=n, max_size=n))
        frame = pl.DataFrame(rows, schema={c.name: c.dtype for c in columns})

        def told(row: int) -> tuple[int, str, str] | None:
            for column in columns:
                value = rows[column.name][row]
                if value is None and not column.nullable:
                    return row, "unexpected_null", column.name
                if isinstance(value, float) and math.isnan(value) and not column.nan:
                    return row, "unexpected_nan", column.name
                if isinstance(value, float) and math.isinf(value) and not column.infinite:
                    return row, "unexpected_infinity", column.name
            return None

        found = Schema(tuple(columns)).surprises(frame)

        assert found.rows() == [each for row in range(n) if (each := told(row)) is not None]
        assert found.schema == {"row": pl.UInt32(), "reason": pl.String(), "column": pl.String()}

    def test_training_rows_do_not_surprise(self):
        """What a schema was made of holds nothing it never saw."""
        frame = pl.DataFrame({"x": [1.0, None, math.nan, math.inf], "k": [1, 2, 3, 4]})

        assert Schema.of(frame).surprises(frame).is_empty()


def opaque(texts: list[str | None], name: str = "numeric") -> pa.Array:
    """What ADBC gives for a Postgres type that Arrow cannot name."""
    return pa.ExtensionArray.from_storage(pa.opaque(pa.string(), name, "PostgreSQL"), pa.array(texts, pa.string()))


UUID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
ZONED = NOON.replace(tzinfo=UTC)
TAKEN = {
    "bool": (pa.array([True, None]), "boolean", [True, None]),
    **{f"{t}": (pa.array([7, None], t), "integer", [7, None]) for t in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{f"{t}": (pa.array([7, None], t), "integer", [7, None]) for t in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
    "int64 at its ends": (pa.array([-(2**63), 2**63 - 1]), "integer", [-(2**63), 2**63 - 1]),
    "uint64 that fits": (pa.array([2**63 - 1], pa.uint64()), "integer", [2**63 - 1]),
    "half": (pa.array([1.5, None], pa.float32()).cast(pa.float16()), "float", [1.5, None]),
    "float": (pa.array([0.5, None, math.inf], pa.float32()), "float", [0.5, None, math.inf]),
    "double": (pa.array([0.1, None]), "float", [0.1, None]),
    "decimal32": (pa.array([Decimal("0.10"), None], pa.decimal32(5, 2)), "float", [0.1, None]),
    "decimal64": (pa.array([Decimal("0.10"), None], pa.decimal64(10, 2)), "float", [0.1, None]),
    "decimal128": (pa.array([Decimal("0.10"), None], pa.decimal128(10, 2)), "float", [0.1, None]),
    "decimal128 of thousands": (pa.array([Decimal("12E3"), None], pa.decimal128(10, -3)), "float", [12000.0, None]),
    "decimal256": (pa.array([Decimal("0.10"), None], pa.decimal256(60, 2)), "float", [0.1, None]),
    "numeric": (opaque(["1.50", None, "NaN", "-Infinity", "1e3"]), "float", [1.5, None, math.nan, -math.inf, 1000.0]),
    "numeric of NULLs": (opaque([None, None]), "float", [None, None]),
    "string": (pa.array(["a", "", None]), "string", ["a", "", None]),
    "large_string": (pa.array(["a", None], pa.large_string()), "string", ["a", None]),
    "string_view": (pa.array(["a", None], pa.string_view()), "string", ["a", None]),
    "dictionary": (pa.array(["a", None, "a"]).dictionary_encode(), "string", ["a", None, "a"]),
    "dictionary of large strings": (pa.array(["a", None], pa.large_string()).dictionary_encode(), "string", ["a", None]),
    "dictionary of integers": (pa.array([7, None, 7]).dictionary_encode(), "integer", [7, None, 7]),
    "dictionary of times": (pa.array([NOON, None], pa.timestamp("ns")).dictionary_encode(), "timestamp", [NOON, None]),
    "uuid": (pa.array([UUID.bytes, None], pa.uuid()), "string", [str(UUID), None]),
    "date32": (pa.array([date(2013, 10, 1), None]), "date", [date(2013, 10, 1), None]),
    "date32 at its ends": (pa.array([date.min, date.max]), "date", [date.min, date.max]),
    "date64": (pa.array([date(2013, 10, 1), None], pa.date64()), "date", [date(2013, 10, 1), None]),
    "timestamp at its ends": (pa.array([datetime.min, datetime.max]), "timestamp", [datetime.min, datetime.max]),
    **{f"timestamp {unit}": (pa.array([NOON, None], pa.timestamp(unit)), "timestamp", [NOON, None]) for unit in ("s", "ms", "us", "ns")},
    **{
        f"timestamp {unit} {zone}": (pa.array([NOON, None], pa.timestamp(unit, zone)), "timestamp_tz", [ZONED, None])
        for unit in ("s", "ms", "us", "ns")
        for zone in ("UTC", "America/New_York", "+05:45", "-03:30")
    },
}  # fmt: skip
BEYOND = pa.array([2**62], pa.int64())
REFUSED_TYPES = {
    "binary": pa.array([b"a", None]),
    "large_binary": pa.array([b"a", None], pa.large_binary()),
    "fixed_size_binary": pa.array([b"a", None], pa.binary(1)),
    "binary_view": pa.array([b"a", None], pa.binary_view()),
    "list": pa.array([[1], None]),
    "large_list": pa.array([[1], None], pa.large_list(pa.int64())),
    "list of intervals": pa.array([[(1, 2, 3)], None], pa.list_(pa.month_day_nano_interval())),
    "list of decimal256": pa.array([[Decimal(1)], None], pa.list_(pa.decimal256(50, 1))),
    "struct": pa.array([{"a": 1}, None]),
    "struct of intervals": pa.array([{"a": (1, 2, 3)}], pa.struct([("a", pa.month_day_nano_interval())])),
    "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    "time32": pa.array([time(1, 2), None], pa.time32("s")),
    "time64": pa.array([time(1, 2), None], pa.time64("ns")),
    "duration": pa.array([timedelta(1), None]),
    "dictionary of durations": pa.array([timedelta(1), None]).dictionary_encode(),
    "interval": pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
    "json": pa.array(["{}", None], pa.json_(pa.string())),
    "geometry": opaque(["POINT (0 0)", None], "geometry"),
}
REFUSED_VALUES = {
    "uint64 past int64": pa.array([2**63, None], pa.uint64()),
    "nanoseconds": pa.array([1_001, None], pa.timestamp("ns")),
    "nanoseconds with zone": pa.array([1_001, None], pa.timestamp("ns", "UTC")),
    "dictionary of nanoseconds": pa.array([1_001, None], pa.timestamp("ns")).dictionary_encode(),
    "seconds past microseconds": BEYOND.cast(pa.timestamp("s")),
    "milliseconds past microseconds": BEYOND.cast(pa.timestamp("ms")),
    "seconds with zone past microseconds": BEYOND.cast(pa.timestamp("s", "UTC")),
    "infinity": pa.array([2**63 - 1], pa.timestamp("us")),
    "minus infinity with zone": pa.array([-(2**63) + 1], pa.timestamp("us", "UTC")),
    "infinity as a date": pa.array([2**31 - 1], pa.date32()),
    "the year 10000": pa.array([253_402_300_800], pa.timestamp("s")),
    "the year 0": pa.array([-719_163], pa.date32()),
    "part of a day": pa.array([1], pa.int64()).view(pa.date64()),
    "numeric of words": opaque(["1.5", "many"]),
}


def same(left: list[Any], right: list[Any]) -> bool:
    """Whether two lists are equal, NaN being itself."""
    return list(map(repr, left)) == list(map(repr, right))


class TestCanonical:
    """Arrow of any width as the seven types."""

    @pytest.mark.parametrize(("values", "name", "wanted"), TAKEN.values(), ids=TAKEN)
    def test_taken(self, values, name, wanted):
        """A type that has one of the seven becomes it, its values and NULLs exact."""
        series = arrow(values)

        assert type_name(series.dtype) == name
        found = [value.astimezone(UTC) if name == "timestamp_tz" and value else value for value in series]
        assert same(found, wanted)
        assert series.name == "delay"

    @pytest.mark.parametrize(("values", "name", "wanted"), TAKEN.values(), ids=TAKEN)
    def test_in_pieces(self, values, name, wanted):
        """Chunks, slices and no rows at all give what the whole gives, in the same type."""
        whole = arrow(values)
        chunked = pa.chunked_array([values, values.slice(1), values.slice(0, 0)])

        assert arrow(chunked).equals(pl.concat([whole, whole[1:]]), null_equal=True, check_dtypes=True)
        assert arrow(values.slice(1)).equals(whole[1:], check_dtypes=True)
        assert type_name(arrow(values.slice(0, 0)).dtype) == name
        assert type_name(arrow(pa.chunked_array([], type=values.type)).dtype) == name
        batch = canonical(pa.record_batch([values], names=["delay"]), "rows.sql")
        assert batch["delay"].equals(whole, check_dtypes=True)

    @pytest.mark.parametrize("values", REFUSED_TYPES.values(), ids=REFUSED_TYPES)
    def test_refused_types(self, values):
        """A type outside the seven is refused by column and type, with or without rows, and never a panic of Polars'."""
        for given_ in (values, values.slice(0, 0), pa.chunked_array([values, values])):
            with pytest.raises(SchemaMismatch) as caught:
                arrow(given_)

            assert str(caught.value).startswith("rows.sql: column delay: want ")
            assert f"got {values.type}. Cast it at the source" in str(caught.value)
            assert caught.value.context["got"] == str(values.type)

    @pytest.mark.parametrize("values", REFUSED_VALUES.values(), ids=REFUSED_VALUES)
    def test_refused_values(self, values):
        """A value that the type cannot hold exactly is refused by column and type, never cut, wrapped round or NULL."""
        with pytest.raises(SchemaMismatch) as caught:
            arrow(values)

        assert str(caught.value).startswith(f"rows.sql: column delay: want an exact value, got {values.type}. ")
        assert caught.value.context["column"] == "delay"

    @pytest.mark.parametrize("name", ["interval", "duration", "dictionary of durations"])
    def test_an_interval_s_seconds(self, name):
        """A column of intervals is refused with the way to have its seconds, which is a number."""
        with pytest.raises(SchemaMismatch, match=r"EXTRACT\(epoch FROM …\) gives its seconds"):
            arrow(REFUSED_TYPES[name])

    def test_null_type_keeps_its_rows(self):
        """A column without a type stays one, for `conform` to give it the declared type."""
        assert arrow(pa.nulls(2)).dtype == pl.Null()
        assert len(arrow(pa.nulls(2))) == 2

    def test_a_name_twice_is_refused(self):
        """Two columns of one name are refused by it."""
        twice = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["a", "b", "a"])

        with pytest.raises(SchemaMismatch, match=r"rows\.sql gives column a twice.*AS"):
            canonical(twice, "rows.sql")

    def test_shape_is_kept(self):
        """Columns come in order with their names, rows in order."""
        table = pa.table({"b": pa.array([2, 1], pa.int8()), "a": pa.array(["x", None])})

        assert_frame_equal(canonical(table, "rows.sql"), pl.DataFrame({"b": [2, 1], "a": ["x", None]}))

    @given(st.integers(1, 38), st.data())
    @MANY
    def test_decimals_round_to_the_nearest_double(self, precision, data):
        """A decimal of any precision becomes the double nearest to it, as Python's float() gives."""
        scale = data.draw(st.integers(0, precision))
        digits = data.draw(st.lists(st.integers(-(10**precision) + 1, 10**precision - 1), max_size=20))
        values = [Decimal((int(n < 0), tuple(map(int, str(abs(n)))), -scale)) for n in digits]

        assert arrow(pa.array(values, pa.decimal128(precision, scale))).to_list() == [float(v) for v in values]
        assert arrow(pa.array(values, pa.decimal256(precision, scale))).to_list() == [float(v) for v in values]
        assert arrow(opaque([str(v) for v in values])).to_list() == [float(v) for v in values]

    @given(
        st.lists(st.none() | st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1))), st.sampled_from(["us", "ns"])
    )
    @MANY
    def test_instants_are_kept(self, values, unit):
        """A time of any unit is the same time, and one with a zone the same instant, to the microsecond."""
        assert arrow(pa.array(values, pa.timestamp(unit))).to_list() == values
        zoned = arrow(pa.array(values, pa.timestamp(unit, "America/New_York"))).to_list()
        assert zoned == [value and value.replace(tzinfo=UTC) for value in values]

    @given(st.data())
    @MANY
    def test_canonical_is_a_fixed_point(self, data):
        """What is canonical stays as it is on another way through Arrow."""
        n = data.draw(st.integers(0, 5))
        names = data.draw(st.lists(st.sampled_from(TYPES), min_size=1, unique=True))
        frame = pl.DataFrame(
            [
                pl.Series(
                    name,
                    data.draw(st.lists(st.sampled_from([VALUE[name], None]), min_size=n, max_size=n)),
                    dtype_of(name),
                )
                for name in names
            ]
        )

        assert_frame_equal(canonical(frame.to_arrow(), "rows.sql"), frame)
