"""Ray Data: a class that loads the model once for each worker, over batches; DuckDB takes what comes back.

https://docs.ray.io/en/latest/data/batch_inference.html
"""

import sys
from datetime import UTC, datetime

import duckdb
import joblib
import pandas as pd
import ray

file, columns, target, table, model = sys.argv[1:]


class Predictor:
    """The guide's callable class: the model is loaded when a worker starts."""

    def __init__(self) -> None:
        self.pipeline = joblib.load(model)

    def __call__(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Score a batch."""
        score = self.pipeline.predict_proba(frame.drop(columns="id"))[:, 1]
        return pd.DataFrame({"id": frame["id"], "prediction": score > 0.5, "score": score})


ray.init(include_dashboard=False, log_to_driver=False)
rows = ray.data.read_parquet(file, columns=columns.split(","))
scored = rows.map_batches(Predictor, batch_format="pandas", batch_size=50_000, concurrency=(1, 2))
now = datetime.now(UTC).isoformat()
with duckdb.connect(target) as connection:
    connection.sql(
        f"CREATE OR REPLACE TABLE {table} (id BIGINT, prediction BOOLEAN, score DOUBLE, scored_at TIMESTAMPTZ)"
    )
    for batch in scored.iter_batches(batch_format="pyarrow", batch_size=None):
        connection.register("batch", batch)
        connection.execute(f"INSERT INTO {table} SELECT id, prediction, score, '{now}' FROM batch")
