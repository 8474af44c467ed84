"""What is scored: rows from somewhere, a model, and a table to put its predictions into."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal

__all__ = ["DAY", "KEY", "LARGE", "MODELS", "Rows", "Workload"]

Source = Literal["postgres", "parquet"]
Target = Literal["postgres", "duckdb"]

KEY = "id"
FLIGHT = ("carrier", "origin", "dest", "month", "hour", "minute", "sched_arr_time", "distance")
WIDE = tuple(f"c{i:03}" for i in range(200))


@dataclass(frozen=True, slots=True)
class Rows:
    """A table to learn from and to score.

    Attributes:
        table: Its name in Postgres; a Parquet file holds the rows of one day of it.
        columns: What is read beside the key, and given to the pipeline.
        learn: From and to, half open: the days of the rows to learn from.
    """

    table: str
    columns: tuple[str, ...]
    learn: tuple[date, date]

    def select(self, start: str, end: str) -> str:
        """The query for the rows between two instants, each written as SQL has it."""
        columns = ", ".join((KEY, *self.columns))
        return f"SELECT {columns} FROM {self.table} WHERE scheduled_at >= {start} AND scheduled_at < {end}"


_FLIGHTS = Rows("flights", FLIGHT, (date(2013, 1, 1), date(2014, 1, 2)))
# What each model learns from and scores; its features and pipeline are in jobs/, in the file of its name.
MODELS = {
    "logistic": _FLIGHTS,
    "boosting": _FLIGHTS,
    "forest": _FLIGHTS,
    "lightgbm": _FLIGHTS,
    "narrow": Rows("flights", ("distance",), _FLIGHTS.learn),
    "wide": Rows("wide", WIDE, (date(2013, 1, 1), date(2013, 1, 2))),
}
_MODEL_NAMES = {
    "logistic": "logistic regression",
    "boosting": "HistGradientBoosting, 100 trees",
    "forest": "forest, 100 trees of depth 10",
    "lightgbm": "LightGBM, 100 trees",
    "narrow": "one column, logistic regression",
    "wide": "200 columns, HistGradientBoosting",
}
_NAMES = {"postgres": "Postgres", "parquet": "Parquet", "duckdb": "DuckDB"}
# The table in which a small and a large interval lie beside each other.
LARGE = "flights_large"


@dataclass(frozen=True, slots=True)
class Workload:
    """One interval's rows, one model, one way from source to target.

    Attributes:
        model: One of `MODELS`.
        rows: How many the interval has.
        day: The interval.
        source: Where the rows are.
        target: Where the predictions go.
        table: The table of the rows, where it is not the model's own.
    """

    model: str
    rows: int
    day: date
    source: Source = "postgres"
    target: Target = "postgres"
    table: str | None = None

    @property
    def name(self) -> str:
        """What it is called in the table of results."""
        route = f"{_NAMES[self.source]} → {_NAMES[self.target]}"
        return f"{_MODEL_NAMES[self.model]}: {route}" + (", intervals of one table" if self.table else "")

    @property
    def job(self) -> str:
        """The name of the job that does it."""
        return f"{self.model}_{self.source}_{self.target}" + ("_large" if self.table else "")

    @property
    def at(self) -> Rows:
        """The rows that the model takes, in the table that has them."""
        rows = MODELS[self.model]
        return Rows(self.table or rows.table, rows.columns, rows.learn)


DAY = date(2014, 2, 1)
