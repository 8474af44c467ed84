"""pandas as most people write it: read_sql, predict_proba, to_sql.

https://pandas.pydata.org/docs/user_guide/io.html#sql-queries
"""

import sys

import joblib
import pandas as pd
from sqlalchemy import create_engine

uri, query, table, model = sys.argv[1:]
engine = create_engine(uri.replace("postgresql://", "postgresql+psycopg://"))
pipeline = joblib.load(model)

frame = pd.read_sql(query, engine)
score = pipeline.predict_proba(frame.drop(columns="id"))[:, 1]
predictions = pd.DataFrame({"id": frame["id"], "prediction": score > 0.5, "score": score})
predictions["scored_at"] = pd.Timestamp.now(tz="UTC")
predictions.to_sql(table, engine, if_exists="replace", index=False)
