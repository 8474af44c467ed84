"""Dask: map_partitions over a Parquet file, in processes, written as Parquet, which DuckDB then loads.

https://examples.dask.org/machine-learning/parallel-prediction.html
"""

import sys
import tempfile

import dask.dataframe as dd
import duckdb
import joblib
import pandas as pd


def predict(frame: pd.DataFrame, pipeline: object) -> pd.DataFrame:
    """Score a partition."""
    score = pipeline.predict_proba(frame.drop(columns="id"))[:, 1]
    return pd.DataFrame({"id": frame["id"], "prediction": score > 0.5, "score": score})


if __name__ == "__main__":
    file, columns, target, table, model = sys.argv[1:]
    pipeline = joblib.load(model)
    rows = dd.read_parquet(file, columns=columns.split(","), split_row_groups=True)
    meta = {"id": "int64", "prediction": "bool", "score": "float64"}
    scored = rows.map_partitions(predict, pipeline, meta=meta)
    with tempfile.TemporaryDirectory() as folder, duckdb.connect(target) as connection:
        scored.to_parquet(folder, write_index=False)
        connection.sql(
            f"CREATE OR REPLACE TABLE {table} AS SELECT *, now() AS scored_at FROM read_parquet('{folder}/*.parquet')"
        )
