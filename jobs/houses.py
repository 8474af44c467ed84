"""Is a house dear? A logistic regression, on the eight houses of `batchscore demo --data`."""

from __future__ import annotations

import polars as pl
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler


def features(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Turn rows of `rows.sql` into model inputs, each row on its own."""
    return rows.select("square_footage")


def pipeline() -> Pipeline:
    """Return the unfitted pipeline."""
    # Of so few rows the usual penalty (C = 1) would outweigh what they say.
    return Pipeline([("scale", StandardScaler()), ("model", LogisticRegression(C=100))])
