"""Will a flight arrive late? Features from one row at a time, and the pipeline that learns from them."""

from __future__ import annotations

import numpy as np
import polars as pl
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

CATEGORIES = ["carrier", "origin", "dest", "plane_previous_dest", "plane_manufacturer"]
NUMBERS = [
    "departure_minute",
    "scheduled_minutes",
    "weekday",
    "distance",
    "origin_hour_flights",
    "origin_day_flights",
    "origin_flights_so_far",
    "carrier_day_flights",
    "dest_day_flights",
    "plane_leg",
    "plane_minutes_since_previous",
    "plane_turnaround_minutes",
    "plane_age",
    "plane_seats",
    "weather_temp",
    "weather_dewp",
    "weather_humid",
    "weather_wind_dir",
    "weather_wind_speed",
    "weather_wind_gust",
    "weather_precip",
    "weather_precip_max_6h",
    "weather_pressure",
    "weather_pressure_change_3h",
    "weather_visib",
    "weather_visib_min_6h",
]
MANUFACTURERS = {
    "AIRBUS INDUSTRIE": "AIRBUS",
    "MCDONNELL DOUGLAS AIRCRAFT CO": "MCDONNELL DOUGLAS",
    "MCDONNELL DOUGLAS CORPORATION": "MCDONNELL DOUGLAS",
}


def features(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Turn rows of `rows.sql` into model inputs, each row on its own; a missing value stays null."""
    departure, arrival = minute_of_day("sched_dep_time"), minute_of_day("sched_arr_time")
    since_previous = (pl.col("scheduled_at") - pl.col("plane_previous_scheduled_at")).dt.total_minutes()
    # Out and back at 450 miles an hour, with half an hour for taxiing and climbing each way.
    round_trip = 2 * (30 + pl.col("plane_previous_distance") / 7.5)
    return rows.with_columns(
        departure_minute=departure,
        # Arrival is in the local time of the destination: the offset is the same for all its flights.
        scheduled_minutes=(arrival - departure) % 1440,
        weekday=pl.col("flight_date").dt.weekday(),
        plane_minutes_since_previous=since_previous,
        plane_turnaround_minutes=since_previous - round_trip,
        plane_age=pl.col("flight_date").dt.year() - pl.col("plane_year"),
        plane_manufacturer=pl.col("plane_manufacturer").cast(pl.String).replace(MANUFACTURERS),
        weather_pressure_change_3h=pl.col("weather_pressure") - pl.col("weather_pressure_3h_before"),
    ).select(pl.col(CATEGORIES).cast(pl.String), pl.col(NUMBERS).cast(pl.Float64))


def pipeline() -> Pipeline:
    """Return the unfitted pipeline: everything that learns from the data lives in it."""
    # A category that is missing, or was never seen in training, is a missing value to the trees.
    # They take at most 255 categories a column, so the rarest share one.
    encode = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan, max_categories=250)
    columns = ColumnTransformer([("categories", encode, CATEGORIES), ("numbers", "passthrough", NUMBERS)])
    model = HistGradientBoostingClassifier(
        categorical_features=range(len(CATEGORIES)),
        learning_rate=0.06,
        max_iter=200,
        min_samples_leaf=500,
        l2_regularization=10,
        max_features=0.3,
        early_stopping=False,
        random_state=0,
    )
    return Pipeline([("columns", columns), ("model", model)])


def minute_of_day(hhmm: str) -> pl.Expr:
    """Return the minute of the day of a clock reading such as 1745."""
    return pl.col(hhmm) // 100 * 60 + pl.col(hhmm) % 100
