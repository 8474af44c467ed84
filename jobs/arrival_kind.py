"""Will a flight arrive early, on time or late? Gradient boosting on the rows of flight_delay."""

from __future__ import annotations

import numpy as np
import polars as pl
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

CATEGORIES = ["carrier", "origin", "dest"]
NUMBERS = [
    "departure_minute",
    "scheduled_minutes",
    "weekday",
    "distance",
    "origin_hour_flights",
    "origin_flights_so_far",
    "carrier_day_flights",
    "plane_leg",
    "minutes_since_previous",
    "weather_temp",
    "weather_humid",
    "weather_wind_speed",
    "weather_precip_max_6h",
    "weather_pressure",
    "weather_visib_min_6h",
]


def features(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Turn rows of flight_delay's `rows.sql` into model inputs, each row on its own; a missing value stays null."""
    departure, arrival = minute_of_day("sched_dep_time"), minute_of_day("sched_arr_time")
    return rows.with_columns(
        departure_minute=departure,
        scheduled_minutes=(arrival - departure) % 1440,
        weekday=pl.col("flight_date").dt.weekday(),
        minutes_since_previous=(pl.col("scheduled_at") - pl.col("plane_previous_scheduled_at")).dt.total_minutes(),
    ).select(pl.col(CATEGORIES).cast(pl.String), pl.col(NUMBERS).cast(pl.Float64))


def pipeline() -> Pipeline:
    """Return the unfitted pipeline."""
    # A category that was never seen in training is a missing value to the trees.
    encode = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    columns = ColumnTransformer([("categories", encode, CATEGORIES), ("numbers", "passthrough", NUMBERS)])
    model = HistGradientBoostingClassifier(
        categorical_features=range(len(CATEGORIES)),
        learning_rate=0.1,
        max_iter=100,
        min_samples_leaf=500,
        early_stopping=False,
        random_state=0,
    )
    return Pipeline([("columns", columns), ("model", model)])


def minute_of_day(hhmm: str) -> pl.Expr:
    """Return the minute of the day of a clock reading such as 1745."""
    return pl.col(hhmm) // 100 * 60 + pl.col(hhmm) % 100
