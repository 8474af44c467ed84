"""Small jobs, rows and bundles, made by the real `train` from frames in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from batchscore.interval import Interval
from batchscore.job import Job
from batchscore.model.bundle import Bundle
from batchscore.model.features import Features
from batchscore.schema import Column
from batchscore.sources import Key
from batchscore.train.workflow import train

SQL = "SELECT * FROM trips WHERE started >= :interval_start AND started < :interval_end"

FEATURES = """
import polars as pl


def features(rows):
    return rows.select(
        pl.col("distance"),
        pl.col("distance").log1p().alias("log_distance"),
        pl.col("speed"),
        (pl.col("carrier") == "AA").fill_null(False).alias("aa"),
        pl.col("started").dt.hour().alias("hour"),
    )
"""
CLASSIFIER = (
    FEATURES
    + """

def pipeline():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression())
"""
)
REGRESSOR = CLASSIFIER.replace("LogisticRegression", "LinearRegression")


@dataclass(frozen=True)
class Frame:
    """A source whose every interval holds the same rows."""

    rows: pl.DataFrame
    where: str = "trips/rows.sql"
    caution: str | None = None
    private: tuple[str, ...] = ()

    def batches(
        self,
        interval: Interval,
        *,
        order: Sequence[Column] = (),
        after: Key | None = None,
        limit: int | None = None,
        batch_rows: int = 50_000,
        columns: Collection[str] | None = None,
    ) -> Iterator[pl.DataFrame]:
        """All of them, in one batch."""
        yield self.rows


@dataclass
class Given:
    """A fitted binary classifier whose probability is a column of the rows."""

    classes_: Any = (False, True)

    def predict_proba(self, rows: pl.DataFrame) -> Any:
        """The column and what is left of 1."""
        score = rows["p"].to_numpy()
        return np.stack([1 - score, score], axis=1)


def trips(n: int, seed: int = 0) -> pl.DataFrame:
    """Rows in key order, one each hour; `carrier` has NULLs, and nothing else has."""
    rng = np.random.default_rng(seed)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    return pl.DataFrame(
        {
            "id": pl.Series(range(n), dtype=pl.Int64),
            "started": pl.Series([start + timedelta(hours=i) for i in range(n)], dtype=pl.Datetime("us", "UTC")),
            "day": pl.Series([date(2024, 1, 1) + timedelta(days=i // 24) for i in range(n)], dtype=pl.Date),
            "distance": pl.Series(rng.uniform(1, 100, n), dtype=pl.Float64),
            "speed": pl.Series(rng.uniform(5, 50, n), dtype=pl.Float64),
            "carrier": pl.Series([("AA", "UA", None)[i % 3] for i in range(n)], dtype=pl.String),
        }
    )


def slow(rows: pl.DataFrame, seed: int = 1) -> pl.Series:
    """A Boolean target that the features tell much of, and not all."""
    noise = np.random.default_rng(seed).normal(size=rows.height)
    return pl.Series("slow", rows["distance"].to_numpy() / 50 - rows["speed"].to_numpy() / 25 + noise / 2 > 0)


def job(**tables: Mapping[str, Any] | None) -> Job:
    """A binary job over `trips`; each keyword replaces keys of one table, None leaves the table out."""
    data: dict[str, dict[str, Any]] = {
        "job": {"name": "trips"},
        "problem": {"objective": "say whether a trip is slow", "task": "binary", "target": "slow"},
        "source": {"sql": "trips/rows.sql", "key": ["id"], "time_column": "started"},
        "interval": {"every": "day", "start": date(2024, 1, 1)},
        "labels": {"sql": "trips/labels.sql"},
        "training": {
            "from": date(2024, 1, 1),
            "to": date(2025, 1, 1),
            "split": {"by": "time", "column": "started", "test": 0.25},
        },
        "model": {"name": "trips"},
        "output": {"table": "trips_predictions", "carry": ["day"]},
    }
    for table, changes in tables.items():
        data[table] = data.get(table, {}) | dict(changes or {})
    return Job.model_validate({table: data[table] for table in data if tables.get(table, "") is not None})


def labels(rows: pl.DataFrame, target: pl.Series) -> pl.DataFrame:
    """The key with the target."""
    return rows.select("id", target.alias("slow"))


def bundle(
    source: str = CLASSIFIER,
    task: str = "binary",
    target: pl.Series | None = None,
    n: int = 160,
    explain_top: int = 0,
) -> Bundle:
    """A bundle of that features text, as `train` makes it."""
    rows = trips(n)
    target = slow(rows) if target is None else target
    trained = job(problem={"task": task, "explain_top": explain_top})
    return train(trained, Features.of(source, "jobs/trips.py"), SQL, Frame(rows), Frame(labels(rows, target)), _quiet)


def _quiet(step: str) -> None:
    """Nobody watches."""
