"""Will an account leave? A random forest, on the accounts of `batchscore demo --data`."""

from __future__ import annotations

from typing import Any

import polars as pl
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import Pipeline

NUMBERS = ["tenure_months", "active_days", "monthly_spend", "support_tickets", "feature_adoption"]


def features(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Turn rows of `rows.sql` into model inputs, each row on its own."""
    return rows.select(pl.col(NUMBERS).cast(pl.Float64))


def pipeline() -> Pipeline:
    """Return the unfitted pipeline."""
    return Pipeline([("model", RandomForestClassifier(n_estimators=60, random_state=42))])


def search_space() -> dict[str, Any]:
    """Return what is tried: forests from shallow and smooth to deep and rough."""
    return {
        "model__max_depth": [2, 4, 6, 8, None],
        "model__min_samples_leaf": [1, 5, 10, 20],
        "model__max_features": [1, 2, 3],
    }
