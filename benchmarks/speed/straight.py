"""An interval read, scored and written as this project does, but straight into the table: nothing to go on from."""

import sys
from dataclasses import replace
from datetime import UTC, datetime

import polars as pl

from batchscore.ahead import ahead
from batchscore.cli.session import Session
from batchscore.model.scorer import score
from batchscore.run.scoring import output_of
from batchscore.settings import load_settings
from batchscore.sources import read_chunks

name, day, table = sys.argv[1:]
session = Session.of(load_settings())
job = session.job(name)
bundle = session.bundle(job)
output = replace(output_of(job, bundle), table=table)
interval = job.calendar.at(day)
stamp = {
    "model_name": pl.lit(bundle.name),
    "model_version": pl.lit(bundle.version, pl.Int64),
    "interval_start": pl.lit(interval.start),
    "scored_at": pl.lit(datetime.now(UTC)),
    "run_id": pl.lit("00000000-0000-0000-0000-000000000000"),
}
with session.warehouse() as warehouse:
    warehouse.prepare(output)
    source = session.source(job, job.source)
    chunks = read_chunks(source, interval, schema=bundle.schema, key=bundle.key, chunk_rows=job.limits.chunk_rows)
    with ahead(chunks) as read, ahead(score(bundle, chunk.rows, job.output.carry) for chunk in read) as scored:
        for result in scored:
            with warehouse.begin() as tx:
                tx.load(output.sql_table(), result.predictions.with_columns(**stamp))
