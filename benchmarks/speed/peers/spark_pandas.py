"""Spark: mapInPandas over a Parquet file with the model as a broadcast, written as Parquet, which DuckDB then loads.

https://spark.apache.org/docs/latest/api/python/tutorial/sql/arrow_pandas.html#map
"""

import os
import sys
import tempfile
from collections.abc import Iterator

import duckdb
import joblib
import pandas as pd
from pyspark.sql import SparkSession

file, columns, target, table, model = sys.argv[1:]
os.environ["PYSPARK_PYTHON"] = sys.executable
spark = SparkSession.builder.master("local[*]").config("spark.ui.enabled", "false").getOrCreate()
pipeline = spark.sparkContext.broadcast(joblib.load(model))


def predict(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Score the batches of a partition."""
    for frame in frames:
        score = pipeline.value.predict_proba(frame.drop(columns="id"))[:, 1]
        yield pd.DataFrame({"id": frame["id"], "prediction": score > 0.5, "score": score})


with tempfile.TemporaryDirectory() as folder, duckdb.connect(target) as connection:
    rows = spark.read.parquet(file).select(columns.split(","))
    scored = rows.mapInPandas(predict, schema="id long, prediction boolean, score double")
    scored.write.parquet(folder, mode="overwrite")
    connection.sql(
        f"CREATE OR REPLACE TABLE {table} AS SELECT *, now() AS scored_at FROM read_parquet('{folder}/*.parquet')"
    )
spark.stop()
