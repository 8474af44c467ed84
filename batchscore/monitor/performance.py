"""How good published predictions were, once their labels are known."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import polars as pl
import sqlalchemy as sa

from batchscore.interval import Interval
from batchscore.job import Job
from batchscore.model.bootstrap import intervals, resampled
from batchscore.model.bundle import Bundle
from batchscore.model.evaluation import Measured
from batchscore.model.metrics import evaluate
from batchscore.schema import Schema, dtype_of
from batchscore.sources import Source, read_frame
from batchscore.warehouse import Output

__all__ = ["Performance", "performance", "published_rows"]


@dataclass(frozen=True, slots=True)
class Performance:
    """Metrics of the predictions of one window.

    Attributes:
        window: The intervals that start in it.
        predictions: Published rows.
        labelled: Those whose label is known; the metrics are of them alone.
        metrics: By name; empty without labels.
        intervals: The same with their 95 % intervals, where they were asked for; rows are taken for independent.
    """

    window: Interval
    predictions: int
    labelled: int
    metrics: dict[str, float]
    intervals: Mapping[str, Measured] = field(default_factory=dict)


def performance(
    tx: sa.Connection,
    job: Job,
    bundle: Bundle,
    output: Output,
    labels: Source,
    window: Interval,
    runs: Collection[str] | None = None,
    *,
    resample: bool = False,
) -> Performance:
    """Join the published predictions of a window with their labels by key, and measure.

    Rows without a label (not known yet, or never: a cancelled flight) count as predictions and are left out of the
    metrics.

    Args:
        tx: An open transaction on the warehouse.
        job: The job.
        bundle: What scored them.
        output: The output table.
        labels: The job's labels.
        window: The intervals that start in it.
        runs: The ids of the runs whose rows count; all where None.
        resample: Whether intervals are wanted.
    """
    published = published_rows(tx, output, window, runs)
    key = Schema(tuple(bundle.schema[name] for name in job.source.key))
    known = read_frame(labels, window, key=key.names, columns={**key.types, job.problem.target: None})
    keys = key.conform(known, labels.where)
    truth = keys.with_columns(known[job.problem.target]).drop_nulls(job.problem.target)
    joined = published.join(truth, on=list(job.source.key), how="inner")
    metrics, measured = {}, {}
    if joined.height:
        answers = joined.select(list(bundle.predictor.output_types))
        metrics = evaluate(bundle.predictor.task, joined[job.problem.target], answers, bundle.predictor.classes)
        if resample:
            drawn = resampled(bundle.predictor, answers, joined[job.problem.target], None)
            measured = intervals(metrics, drawn)
    return Performance(window, published.height, joined.height, metrics, measured)


def published_rows(
    tx: sa.Connection, output: Output, window: Interval, runs: Collection[str] | None = None
) -> pl.DataFrame:
    """The rows of the output table whose intervals start in a window, of these runs where some are given."""
    table = output.sql_table()
    started = sa.and_(table.c.interval_start >= window.start, table.c.interval_start < window.end)
    if runs is not None:
        started = sa.and_(started, table.c.run_id.in_(runs))
    rows = tx.execute(sa.select(*(table.c[column.name] for column in output.columns)).where(started)).all()
    schema = {column.name: dtype_of(column.type) for column in output.columns}
    return pl.DataFrame([tuple(row) for row in rows], schema=schema, orient="row")
