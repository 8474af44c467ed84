"""MLflow: a model of its scikit-learn flavour, loaded as pyfunc, over the batches of a Parquet file; DuckDB takes them.

https://mlflow.org/docs/latest/ml/traditional-ml/sklearn/ The model was saved once, by mlflow_save.py.
"""

import sys

import duckdb
import mlflow
import pandas as pd
import pyarrow.parquet as pq

file, columns, target, table, model = sys.argv[1:]
pyfunc = mlflow.pyfunc.load_model(model)

with duckdb.connect(target) as connection:
    connection.sql(
        f"CREATE OR REPLACE TABLE {table} (id BIGINT, prediction BOOLEAN, score DOUBLE, scored_at TIMESTAMPTZ)"
    )
    for batch in pq.ParquetFile(file).iter_batches(50_000, columns=columns.split(",")):
        frame = batch.to_pandas()
        score = pyfunc.predict(frame.drop(columns="id"))[:, 1]
        predictions = pd.DataFrame({"id": frame["id"], "prediction": score > 0.5, "score": score})
        connection.execute(f"INSERT INTO {table} SELECT *, now() FROM predictions")
