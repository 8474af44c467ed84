"""The rows: flights that left New York in 2013, repeated with changes until there are enough; and wide ones, drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import psycopg

from batchscore.cli.flights import flight_tables
from benchmarks.speed.workloads import FLIGHT, KEY, WIDE

__all__ = ["add", "create", "flights_of", "index", "learned_flights", "learned_wide", "wide_of"]

_TYPES = {
    pl.Int64: "bigint",
    pl.Int32: "integer",
    pl.Float64: "double precision",
    pl.String: "text",
    pl.Boolean: "boolean",
}
_WIDE_DAY = date(2013, 1, 1)
_INSTANT = pl.Datetime("us", "UTC")


@cache
def _year() -> pl.DataFrame:
    return flight_tables()["flights"]


def learned_flights(rows: int) -> pl.DataFrame:
    """About so many flights of the whole year as they were, with `late`, by `id`; none that was cancelled."""
    flights = _year().filter(pl.col("arr_delay").is_not_null())
    flights = flights.gather_every(max(1, flights.height // rows))
    late = (pl.col("arr_delay") > 15).alias("late")
    return flights.select(pl.col("flight_id").alias(KEY), pl.col("scheduled_at").cast(_INSTANT), *FLIGHT, late)


def learned_wide(rows: int) -> pl.DataFrame:
    """So many wide rows, of a day of the year before, by `id`."""
    return pl.concat(wide_of(_WIDE_DAY, rows, 1))


def flights_of(day: date, rows: int, first: int) -> Iterator[pl.DataFrame]:
    """Flights of one day, as many as asked for, in parts, with ids from `first` on, and none late.

    The year's flights again and again: in each copy seven minutes later within their hour than in the last one, to
    arrive a minute later, a mile further on. They are spread evenly over the day.
    """
    year = _year().select(FLIGHT)
    for copy, start in enumerate(range(0, rows, year.height)):
        part = year.head(rows - start).with_columns(
            pl.col("minute") + 0 if copy == 0 else (pl.col("minute") + 7 * copy) % 60,
            pl.col("sched_arr_time") + copy,
            pl.col("distance") + copy,
        )
        yield _timed(part, day, rows, start, first)


def wide_of(day: date, rows: int, first: int) -> Iterator[pl.DataFrame]:
    """Rows of two hundred numbers each, drawn from a seed; late where three of them add up to much."""
    draw = np.random.default_rng(first)
    step = 50_000
    for start in range(0, rows, step):
        values = draw.normal(size=(min(step, rows - start), len(WIDE)))
        part = pl.DataFrame(values, schema=list(WIDE))
        late = pl.Series("late", values[:, :3].sum(axis=1) + draw.normal(size=len(values)) > 1)
        yield _timed(part, day, rows, start, first).with_columns(late)


def _timed(part: pl.DataFrame, day: date, rows: int, start: int, first: int) -> pl.DataFrame:
    midnight = datetime.combine(day, time(), UTC)
    since = pl.int_range(start, start + part.height, eager=True) * (timedelta(days=1).total_seconds() * 1e6 // rows)
    return part.select(
        (pl.int_range(0, part.height) + (first + start)).alias(KEY),
        (pl.lit(midnight) + since.cast(pl.Int64).cast(pl.Duration("us"))).cast(_INSTANT).alias("scheduled_at"),
        *part.columns,
        pl.lit(value=False).alias("late"),
    )


def create(connection: psycopg.Connection, table: str, like: pl.DataFrame) -> None:
    """Make an empty table with the columns of a frame."""
    columns = ", ".join(f"{name} {_sql_type(dtype)} NOT NULL" for name, dtype in like.schema.items())
    connection.execute(f"CREATE TABLE {table} ({columns})")


def _sql_type(dtype: pl.DataType) -> str:
    return "timestamptz" if dtype == _INSTANT else _TYPES[type(dtype)]


def add(connection: psycopg.Connection, table: str, parts: Iterable[pl.DataFrame], file: Path | None = None) -> None:
    """Append rows to a table, and write the same ones into a Parquet file, as a feed would deliver them."""
    kept = []
    for part in parts:
        with connection.cursor().copy(f"COPY {table} FROM STDIN (FORMAT csv)") as copy:
            copy.write(part.write_csv(include_header=False).encode())
        if file:
            kept.append(part)
    if file:
        file.parent.mkdir(exist_ok=True)
        pl.concat(kept).drop("scheduled_at", "late").write_parquet(file)


def index(connection: psycopg.Connection, table: str) -> None:
    """What such a table has: a primary key, and an index on its time."""
    connection.execute(f"ALTER TABLE {table} ADD PRIMARY KEY ({KEY})")
    connection.execute(f"CREATE INDEX ON {table} (scheduled_at)")
    connection.execute(f"VACUUM ANALYZE {table}")
