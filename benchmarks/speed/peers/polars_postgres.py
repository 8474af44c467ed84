"""Polars by hand, with ADBC both ways.

https://docs.pola.rs/user-guide/io/database/
"""

import sys
from datetime import UTC, datetime

import joblib
import polars as pl

uri, query, table, model = sys.argv[1:]
pipeline = joblib.load(model)

frame = pl.read_database_uri(query, uri, engine="adbc")
score = pipeline.predict_proba(frame.drop("id"))[:, 1]
predictions = frame.select("id", prediction=score > 0.5, score=score, scored_at=datetime.now(UTC))
predictions.write_database(table, uri, engine="adbc", if_table_exists="replace")
