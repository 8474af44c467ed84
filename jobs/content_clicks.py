"""Will a reader click? Gradient boosting, on the impressions of `batchscore demo --data`."""

from __future__ import annotations

import polars as pl
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder

CATEGORIES = ["device", "day_period"]
NUMBERS = ["relevance", "dwell_seconds", "visits_last_week", "article_age_days"]


def features(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Turn rows of `rows.sql` into model inputs, each row on its own."""
    hour = pl.col("hour_of_day")
    period = (
        pl.when(hour < 6)
        .then(pl.lit("night"))
        .when(hour < 12)
        .then(pl.lit("morning"))
        .when(hour < 18)
        .then(pl.lit("afternoon"))
        .otherwise(pl.lit("evening"))
    )
    return rows.with_columns(day_period=period).select(
        pl.col(CATEGORIES).cast(pl.String), pl.col(NUMBERS).cast(pl.Float64)
    )


def pipeline() -> Pipeline:
    """Return the unfitted pipeline: the encoder learns which devices there are, and is kept with the model."""
    # A device that training never saw is none of those it knows.
    encode = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = ColumnTransformer([("categories", encode, CATEGORIES), ("numbers", "passthrough", NUMBERS)])
    model = GradientBoostingClassifier(n_estimators=100, learning_rate=0.05, max_depth=2, subsample=0.8, random_state=7)
    return Pipeline([("columns", columns), ("model", model)])
