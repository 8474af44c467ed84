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
    """Return the unfitted pipeline: of the training rows, one in a thousand is called odd."""
    # Each tree sees all rows. In the usual 256 a single wrong reading is almost never there, and where it is not it is
    # no odder to a tree than the strongest wind that is: a wind of 1,048 is then the 3,671st oddest reading of the year.
    model = IsolationForest(n_estimators=200, max_samples=1.0, contamination=0.001, random_state=0)
    return Pipeline([("fill", SimpleImputer(strategy="median")), ("model", model)])
