"""Polars by hand: a Parquet file in, and out into DuckDB, which reads the frame itself, or by ADBC into Postgres.

https://docs.pola.rs/user-guide/io/parquet/ and https://duckdb.org/docs/stable/guides/python/polars
"""

import sys
from datetime import UTC, datetime

import duckdb
import joblib
import polars as pl

file, columns, target, table, model = sys.argv[1:]
pipeline = joblib.load(model)

frame = pl.read_parquet(file, columns=columns.split(","))
score = pipeline.predict_proba(frame.drop("id"))[:, 1]
predictions = frame.select("id", prediction=score > 0.5, score=score, scored_at=datetime.now(UTC))
if target.startswith("postgresql:"):
    predictions.write_database(table, target, engine="adbc", if_table_exists="replace")
else:
    with duckdb.connect(target) as connection:
        connection.sql(f"CREATE OR REPLACE TABLE {table} AS SELECT * FROM predictions")
