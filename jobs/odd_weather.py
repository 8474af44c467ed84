"""Which readings of the weather are odd? An isolation forest, without any label."""

from __future__ import annotations

import polars as pl
from sklearn.ensemble import IsolationForest
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline

NUMBERS = ["temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib"]


def features(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Turn rows of `rows.sql` into model inputs, each row on its own; a missing value stays null."""
    return rows.select(pl.col(NUMBERS).cast(pl.Float64))


def pipeline() -> Pipeline:
    """Return the unfitted pipeline: of the training rows, two in a thousand are called odd."""
    # Each tree sees all rows. Of the usual 256 a single wrong reading is almost never one, and to a tree without it, it
    # is no odder than the strongest wind there is: some 3,700 readings of the year are then odder than a wind of 1,048.
    model = IsolationForest(n_estimators=200, max_samples=1.0, contamination=0.002, random_state=0)
    return Pipeline([("fill", SimpleImputer(strategy="median")), ("model", model)])
