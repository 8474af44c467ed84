"""What kinds of airports are there? Scaled, turned onto three axes, and cut into four clusters."""

from __future__ import annotations

import polars as pl
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler


def features(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Turn rows of `rows.sql` into model inputs, each row on its own."""
    flights = pl.col("flights")
    return rows.select(
        pl.col("mean_distance", "carriers", "origins").cast(pl.Float64),
        flights_a_day=(flights / pl.col("days")).log1p(),
        early_share=pl.col("early_flights") / flights,
        late_share=pl.col("late_flights") / flights,
        weekend_share=pl.col("weekend_flights") / flights,
    )


def pipeline() -> Pipeline:
    """Return the unfitted pipeline."""
    return Pipeline(
        [
            ("scale", StandardScaler()),
            ("turn", PCA(n_components=3, random_state=0)),
            ("model", KMeans(n_clusters=4, n_init=10, random_state=0)),
        ]
    )
