"""pandas tuned: to_sql with the COPY that its user guide gives as an insertion method.

https://pandas.pydata.org/docs/user_guide/io.html#io-sql-method
"""

import csv
import sys
from io import StringIO

import joblib
import pandas as pd
from sqlalchemy import create_engine


def psql_insert_copy(table, conn, keys, data_iter):
    """The guide's, for psycopg 3: the rows go in as the CSV of one COPY."""
    text = StringIO()
    csv.writer(text).writerows(data_iter)
    columns = ", ".join(f'"{key}"' for key in keys)
    with conn.connection.cursor() as cursor, cursor.copy(f"COPY {table.name} ({columns}) FROM STDIN WITH CSV") as copy:
        copy.write(text.getvalue())


uri, query, table, model = sys.argv[1:]
engine = create_engine(uri.replace("postgresql://", "postgresql+psycopg://"))
pipeline = joblib.load(model)

frame = pd.read_sql(query, engine)
score = pipeline.predict_proba(frame.drop(columns="id"))[:, 1]
predictions = pd.DataFrame({"id": frame["id"], "prediction": score > 0.5, "score": score})
predictions["scored_at"] = pd.Timestamp.now(tz="UTC")
predictions.to_sql(table, engine, if_exists="replace", index=False, method=psql_insert_copy)
