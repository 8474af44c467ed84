"""One part of a job alone: rows read to nowhere or written from memory by a quick library, or scored as we score them.

    python parts.py read SOURCE WHAT          a Postgres URI and a query, or a Parquet file and its columns
    python parts.py score FILE COLUMNS NAME   a model of the registry
    python parts.py write TARGET ROWS         a Postgres URI or a DuckDB file

Prints the seconds, and the processor time of this process, without its start-up.
"""

import json
import sys
import time
from datetime import UTC, datetime

import numpy as np
import polars as pl

CHUNK = 50_000


def read(source: str, what: str) -> None:
    """Drain the rows in batches."""
    if source.startswith("postgresql:"):
        from adbc_driver_postgresql import dbapi

        with dbapi.connect(source) as connection, connection.cursor() as cursor, spent():
            cursor.execute(what)
            for _ in cursor.fetch_record_batch():
                pass
        return
    import pyarrow.parquet as pq

    with spent():
        for _ in pq.ParquetFile(source).iter_batches(CHUNK, columns=what.split(",")):
            pass


def score(file: str, columns: str, name: str) -> None:
    """Ask the model, with what makes it quick, for the predictions of chunk after chunk."""
    from batchscore.logs import configure
    from batchscore.model.compiled import put_to_use
    from batchscore.model.registry import Registry

    configure("silent")
    bundle = put_to_use(Registry.at("var/registry").load(name, 1), trusted=True)
    predictor = bundle.predictor
    rows = pl.read_parquet(file, columns=columns.split(",")).cast(dict(bundle.schema.empty().schema))
    predictor.predict(rows.head(100))
    with spent():
        for start in range(0, rows.height, CHUNK):
            predictor.predict(rows.slice(start, CHUNK))


def write(target: str, rows: str) -> None:
    """Write predictions with all the columns that this project's output has."""
    count = int(rows)
    frame = pl.select(
        id=pl.int_range(count),
        prediction=pl.int_range(count) % 3 == 0,
        score=pl.Series(np.random.default_rng(0).random(count)),
        model_name=pl.lit("boosting"),
        model_version=pl.lit(1, pl.Int64),
        interval_start=pl.lit(datetime(2014, 2, 1, tzinfo=UTC)),
        scored_at=pl.lit(datetime.now(UTC)),
        run_id=pl.lit("00000000-0000-0000-0000-000000000000"),
    )
    if target.startswith("postgresql:"):
        from adbc_driver_postgresql import dbapi

        with dbapi.connect(target) as connection, connection.cursor() as cursor, spent():
            cursor.adbc_ingest("by_parts", frame.to_arrow(), mode="create")
            connection.commit()
        return
    import duckdb

    with spent(), duckdb.connect(target) as connection:
        connection.sql("CREATE TABLE by_parts AS SELECT * FROM frame")


class spent:  # noqa: N801 - reads as a word
    """A block that tells what it took."""

    def __enter__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        print(json.dumps({"seconds": wall, "cpu_seconds": cpu}))


{"read": read, "score": score, "write": write}[sys.argv[1]](*sys.argv[2:])
