"""The column types batchscore knows, and the exact casts between them.

Seven types carry every row, whichever database or file it came from, so that one bundle reads the same values
everywhere. Sources give them; `Schema.conform` takes them to what a bundle declares.

| type         | Polars               | comes from                                                        |
|--------------|----------------------|-------------------------------------------------------------------|
| boolean      | Boolean              | booleans; declared boolean also takes the integers 0 and 1        |
| integer      | Int64                | all integers; declared integer also takes whole floats            |
| float        | Float64              | floats, and decimals by rounding to the nearest double            |
| string       | String               | text, dictionaries of text, UUIDs                                 |
| date         | Date                 | dates; declared date also takes ISO text                          |
| timestamp    | Datetime("us")       | timestamps without zone; declared so also takes ISO text          |
| timestamp_tz | Datetime("us","UTC") | timestamps with zone, as UTC; declared so also takes ISO text,    |
|              |                      | which is UTC where it has no offset (SQLite's own convention)     |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal, Self, get_args

import polars as pl

from batchscore.errors import SchemaMismatch

__all__ = ["Column", "Reason", "Schema", "TypeName", "dateable", "dtype_of", "type_name"]

TypeName = Literal["boolean", "integer", "float", "string", "date", "timestamp", "timestamp_tz"]


class Reason(StrEnum):
    """Why a row cannot be scored.

    Attributes:
        UNEXPECTED_NULL: A column holds NULL, which training never saw in it.
        UNEXPECTED_NAN: The same with NaN.
        UNEXPECTED_INFINITY: The same with an infinity.
        FEATURES_FAILED: `features` raised.
        PIPELINE_FAILED: The pipeline raised.
        SCORE_NOT_FINITE: The pipeline gave no number.
    """

    UNEXPECTED_NULL = "unexpected_null"
    UNEXPECTED_NAN = "unexpected_nan"
    UNEXPECTED_INFINITY = "unexpected_infinity"
    FEATURES_FAILED = "features_failed"
    PIPELINE_FAILED = "pipeline_failed"
    SCORE_NOT_FINITE = "score_not_finite"


_DTYPES: dict[TypeName, pl.DataType] = {
    "boolean": pl.Boolean(),
    "integer": pl.Int64(),
    "float": pl.Float64(),
    "string": pl.String(),
    "date": pl.Date(),
    "timestamp": pl.Datetime("us"),
    "timestamp_tz": pl.Datetime("us", "UTC"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

_TEXT_BYTES = 32

# Every integer up to here has a double of its own.
_EXACT_FLOAT = 2**53

# One form of ISO 8601 each; zeros past the microsecond lose nothing.
_ISO_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_ISO_TIME = r"[0-9]{2}:[0-9]{2}:[0-5][0-9](\.[0-9]{1,6}0*)?"
_ISO_OFFSET = r"[Zz]|[+-][0-9]{2}(:?[0-9]{2})?"

# 0001-01-01 and 9999-12-31, from 1970-01-01.
_DAYS = (-719_162, 2_932_896)
_MICROSECONDS_A_DAY = 86_400_000_000


def dtype_of(name: TypeName) -> pl.DataType:
    """The Polars type that carries a column of the named type."""
    return _DTYPES[name]


def type_name(dtype: pl.DataType) -> TypeName | None:
    """The name of a canonical Polars type; None for any other."""
    return _NAMES.get(dtype)


@dataclass(frozen=True, slots=True)
class Column:
    """One declared input column.

    Attributes:
        name: As the query or file gives it.
        type: One of the seven.
        nullable: Training saw a NULL here.
        nan: Training saw a NaN here (floats only).
        infinite: Training saw an infinity here (floats only).
    """

    name: str
    type: TypeName
    nullable: bool
    nan: bool = False
    infinite: bool = False

    def __post_init__(self) -> None:
        if self.type not in get_args(TypeName):
            raise ValueError(f"column {self.name}: unknown type {self.type!r}")

    @property
    def dtype(self) -> pl.DataType:
        """The Polars type of the column."""
        return _DTYPES[self.type]


@dataclass(frozen=True, slots=True)
class Schema:
    """The input columns of a bundle, in the order of the training query."""

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Self:
        """What canonical training rows, shape `(rows, columns)`, allow: types, NULLs, NaNs and infinities seen."""
        return cls(tuple(_observed(series) for series in frame.iter_columns()))

    @classmethod
    def from_dicts(cls, columns: Sequence[dict[str, Any]]) -> Self:
        """Read back what `to_dicts` wrote."""
        return cls(tuple(Column(**column) for column in columns))

    def to_dicts(self) -> list[dict[str, Any]]:
        """One JSON-ready mapping a column."""
        return [asdict(column) for column in self.columns]

    @property
    def row_bytes(self) -> int:
        """About how many bytes of memory a row takes; text by a guess."""
        return sum(_TEXT_BYTES if column.type == "string" else 8 for column in self.columns)

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)

    def __getitem__(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    @property
    def names(self) -> list[str]:
        """The column names in order."""
        return [column.name for column in self.columns]

    @property
    def types(self) -> dict[str, TypeName]:
        """Each column's type, by name, in order."""
        return {column.name: column.type for column in self.columns}

    def undeclared(self, frame: pl.DataFrame) -> list[str]:
        """Columns of the frame that are not declared."""
        return [name for name in frame.columns if name not in self.names]

    def empty(self) -> pl.DataFrame:
        """No rows, shape `(0, columns)`, with the declared types."""
        return pl.DataFrame(schema={column.name: column.dtype for column in self.columns})

    def conform(self, frame: pl.DataFrame, where: str) -> pl.DataFrame:
        """The declared columns of canonical rows, in order, each cast exactly to its declared type.

        Args:
            frame: Canonical rows, any column order; columns that are not declared are left out.
            where: What the rows are, for the message: "rows.sql".

        Raises:
            SchemaMismatch: A column is missing, or its type or some value cannot be cast without loss.
        """
        if missing := [name for name in self.names if name not in frame.columns]:
            raise SchemaMismatch.missing(missing, frame.columns, where)
        return pl.DataFrame([_cast(frame[column.name], column, where) for column in self.columns])

    def surprises(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows that hold what training never saw, with the first such column of each.

        Args:
            frame: Conforming rows.

        Returns:
            `row` (UInt32, position), `reason` (one of `Reason`), `column`.
        """
        found = [expr for column in self.columns for expr in _surprise(column)]
        first = (
            pl.coalesce(*found, pl.lit(None, pl.String)).str.splitn(" ", 2).struct.rename_fields(["reason", "column"])
        )
        marked = frame.select(first.alias("surprise")).with_row_index("row").unnest("surprise")
        return marked.filter(pl.col("reason").is_not_null())


def dateable(series: pl.Series) -> pl.Series:
    """Which dates or timestamps lie in the years 1 to 9999, shape kept, Boolean; NULL where NULL."""
    days = series.to_physical() // (1 if series.dtype == pl.Date() else _MICROSECONDS_A_DAY)
    return days.is_between(*_DAYS)


def _observed(series: pl.Series) -> Column:
    name = type_name(series.dtype)
    if name is None:
        raise SchemaMismatch.type_of(
            series.name, "a typed column", str(series.dtype), "the training rows",
            "Every value is NULL; cast it at the source to the type it should have, or leave it out.",
        )  # fmt: skip
    floating = name == "float"
    return Column(
        series.name,
        name,
        nullable=series.null_count() > 0,
        nan=floating and bool(series.is_nan().any()),
        infinite=floating and bool(series.is_infinite().any()),
    )


def _surprise(column: Column) -> Iterator[pl.Expr]:
    value = pl.col(column.name)
    if not column.nullable:
        yield pl.when(value.is_null()).then(pl.lit(f"{Reason.UNEXPECTED_NULL} {column.name}"))
    if column.type == "float" and not column.nan:
        yield pl.when(value.is_nan()).then(pl.lit(f"{Reason.UNEXPECTED_NAN} {column.name}"))
    if column.type == "float" and not column.infinite:
        yield pl.when(value.is_infinite()).then(pl.lit(f"{Reason.UNEXPECTED_INFINITY} {column.name}"))


def _cast(series: pl.Series, column: Column, where: str) -> pl.Series:
    if series.dtype == column.dtype:
        return series
    if series.dtype == pl.Null():
        return series.cast(column.dtype)
    got = type_name(series.dtype) or str(series.dtype)
    cast = _EXACT_CASTS.get((got, column.type))
    if cast is None:
        advice = (
            f"Cast it at the source, or retrain if the column's type has changed for good.{_zone_advice(got, column)}"
        )
        raise SchemaMismatch.type_of(column.name, column.type, got, where, advice)
    result = cast(series)
    lost = series.filter(series.is_not_null() & result.is_null())
    if len(lost):
        example = f"{got}, for instance {lost[0]!r}, which is no exact {column.type} ({len(lost)} such value(s))"
        raise SchemaMismatch.type_of(column.name, column.type, example, where, "Cast it at the source.")
    return result


def _zone_advice(got: str, column: Column) -> str:
    if {got, column.type} == {"timestamp", "timestamp_tz"}:
        return " Say which zone it is in: <column> AT TIME ZONE 'UTC'."
    return ""


def _integer_to_float(series: pl.Series) -> pl.Series:
    exact = series.is_between(-_EXACT_FLOAT, _EXACT_FLOAT)
    return series.set(~exact, None).cast(pl.Float64)


def _float_to_integer(series: pl.Series) -> pl.Series:
    exact = (series.round(0) == series) & (series.abs() <= _EXACT_FLOAT)
    return series.set(~exact.fill_null(False), None).cast(pl.Int64)


def _integer_to_boolean(series: pl.Series) -> pl.Series:
    return series.set(~series.is_in([0, 1]).fill_null(False), None).cast(pl.Boolean)


def _text_to_date(series: pl.Series) -> pl.Series:
    return _within_calendar(_matching(series, f"^{_ISO_DATE}$").str.to_date("%Y-%m-%d", strict=False))


def _text_to_timestamp(series: pl.Series) -> pl.Series:
    text = _matching(series, f"^{_ISO_DATE}[T ]{_ISO_TIME}$").str.replace("T", " ", literal=True)
    return _within_calendar(text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False))


def _text_to_timestamp_tz(series: pl.Series) -> pl.Series:
    text = _matching(series, f"^{_ISO_DATE}[T ]{_ISO_TIME}({_ISO_OFFSET})?$").str.replace("T", " ", literal=True)
    zoned = text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%#z", time_unit="us", strict=False, exact=True)
    bare = text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    return _within_calendar(
        zoned.dt.convert_time_zone("UTC").zip_with(zoned.is_not_null(), bare.dt.replace_time_zone("UTC"))
    )


def _matching(series: pl.Series, pattern: str) -> pl.Series:
    """The texts of the pattern, NULL for all others: Polars reads far more than ISO."""
    return series.set(~series.str.contains(pattern), None)


def _within_calendar(series: pl.Series) -> pl.Series:
    """The dates that Python has, NULL for all others: an offset may carry the last day of the year 9999 past it."""
    return series.set(~dateable(series), None)


_EXACT_CASTS: dict[tuple[str, TypeName], Callable[[pl.Series], pl.Series]] = {
    ("integer", "float"): _integer_to_float,
    ("float", "integer"): _float_to_integer,
    ("integer", "boolean"): _integer_to_boolean,
    ("string", "date"): _text_to_date,
    ("string", "timestamp"): _text_to_timestamp,
    ("string", "timestamp_tz"): _text_to_timestamp_tz,
}
