"""Logistic regression on one number: next to nothing to read, to compute or to write."""

import polars as pl
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler


def features(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The distance."""
    return rows.select("distance")


def pipeline() -> Pipeline:
    """The number scaled."""
    return make_pipeline(StandardScaler(), LogisticRegression())
