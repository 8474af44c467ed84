"""Logistic regression on flights."""

import polars as pl
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

CATEGORIES = ["carrier", "origin", "dest"]
NUMBERS = ["month", "hour", "minute", "sched_arr_time", "distance"]


def features(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The eight columns as they are."""
    return rows.select(*CATEGORIES, *NUMBERS)


def pipeline() -> Pipeline:
    """Categories one-hot, numbers scaled."""
    columns = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), CATEGORIES), (StandardScaler(), NUMBERS))
    return make_pipeline(columns, LogisticRegression(max_iter=500))
