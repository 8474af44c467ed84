"""A random forest on flights."""

import polars as pl
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OrdinalEncoder

CATEGORIES = ["carrier", "origin", "dest"]
NUMBERS = ["month", "hour", "minute", "sched_arr_time", "distance"]


def features(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The eight columns as they are."""
    return rows.select(*CATEGORIES, *NUMBERS)


def pipeline() -> Pipeline:
    """Categories by number, and a hundred trees of depth 10."""
    encode = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = make_column_transformer((encode, CATEGORIES), ("passthrough", NUMBERS))
    return make_pipeline(columns, RandomForestClassifier(n_estimators=100, max_depth=10, n_jobs=-1, random_state=0))
