"""pandas tuned: the ADBC driver that its user guide recommends, which reads and writes Arrow by COPY.

https://pandas.pydata.org/docs/user_guide/io.html#connecting-using-an-adbc-driver
"""

import sys

import joblib
import pandas as pd
from adbc_driver_postgresql import dbapi

uri, query, table, model = sys.argv[1:]
pipeline = joblib.load(model)

with dbapi.connect(uri) as connection:
    frame = pd.read_sql(query, connection, dtype_backend="pyarrow")
    score = pipeline.predict_proba(frame.drop(columns="id"))[:, 1]
    predictions = pd.DataFrame({"id": frame["id"], "prediction": score > 0.5, "score": score})
    predictions["scored_at"] = pd.Timestamp.now(tz="UTC").as_unit("us")
    predictions.to_sql(table, connection, if_exists="replace", index=False)
