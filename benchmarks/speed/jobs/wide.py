"""scikit-learn's gradient boosting on two hundred numbers."""

import polars as pl
import polars.selectors as cs
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline, make_pipeline


def features(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The columns as they are."""
    return rows.select(cs.starts_with("c"))


def pipeline() -> Pipeline:
    """A hundred trees."""
    return make_pipeline(HistGradientBoostingClassifier(max_iter=100, early_stopping=False, random_state=0))
