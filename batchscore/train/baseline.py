"""Simpler models beside the pipeline: one that looks at nothing, and a linear one."""

from __future__ import annotations

from typing import Any

import polars as pl
import polars.selectors as cs
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

__all__ = ["baselines"]

_LARGEST = 1e100


def baselines(features: pl.DataFrame, *, regression: bool) -> dict[str, Any]:
    """Unfitted pipelines for features of these types, by name.

    `dummy` gives the shares of the classes, or the mean, whatever the row. `linear` is a logistic regression, or a
    ridge regression, on scaled numbers (a missing one is the median, and says that it is missing) and on the 50 most
    frequent values of each text. Times are left out; without any other column there is no `linear`.
    """
    found: dict[str, Any] = {"dummy": DummyRegressor() if regression else DummyClassifier(strategy="prior")}
    numbers = features.select(cs.numeric() | cs.boolean()).columns
    words = features.select(cs.string() | cs.categorical() | cs.enum()).columns
    if numbers or words:
        linear = Ridge() if regression else LogisticRegression(max_iter=500)
        found["linear"] = Pipeline([("columns", _columns(numbers, words)), ("model", linear)])
    return found


def _columns(numbers: list[str], words: list[str]) -> ColumnTransformer:
    scaled = make_pipeline(
        FunctionTransformer(_finite),
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
        StandardScaler(),
    )
    encoded = make_pipeline(
        FunctionTransformer(_words), OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=50)
    )
    return ColumnTransformer([("numbers", scaled, numbers), ("words", encoded, words)])


def _finite(columns: pl.DataFrame) -> Any:
    """NULL, infinities and what has no finite square as NaN."""
    given = columns.cast(pl.Float64).with_columns(pl.when(pl.all().abs() < _LARGEST).then(pl.all()))
    return given.fill_null(float("nan")).to_numpy()


def _words(columns: pl.DataFrame) -> Any:
    return columns.cast(pl.String).fill_null("").to_numpy()
