"""What is known of published predictions by now: the one place where labels are joined with them."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from batchscore.errors import SchemaMismatch
from batchscore.interval import Interval
from batchscore.job import Job
from batchscore.ledger import Run
from batchscore.model.bundle import Bundle
from batchscore.schema import Column, Schema
from batchscore.sources import Source, read_frame
from batchscore.warehouse import Output, Warehouse

__all__ = ["check_labels", "with_labels"]


def with_labels(
    warehouse: Warehouse, job: Job, bundle: Bundle, output: Output, labels: Source, runs: Sequence[Run]
) -> pl.DataFrame:
    """The rows that runs have published, and of each what is known by now.

    Labels are read outside of any transaction on the warehouse.

    Args:
        warehouse: Where they are published.
        job: The job.
        bundle: What scored them.
        output: The output table.
        labels: The job's labels.
        runs: At least one, by interval.

    Returns:
        The output's columns, and beside them `label`, NULL where none is known, and `known_from`, the start of the
        interval in which it became known: where the labels do not say when, that of the first run's.

    Raises:
        SchemaMismatch: The labels lack a column, or one has another type than the bundle's.
    """
    window = Interval(runs[0].interval.start, runs[-1].interval.end)
    published = warehouse.published(output, window, {run.run_id for run in runs})
    return published.join(_known(job, bundle, labels, window), on=list(job.source.key), how="left")


def _known(job: Job, bundle: Bundle, labels: Source, window: Interval) -> pl.DataFrame:
    """The key, `label` and `known_from` of what is known in a window."""
    where, target, known_at = labels.where, job.problem.target, job.performance.known_at
    label = Column(target, bundle.predictor.output_types["prediction"], nullable=True)
    arrival = (Column(known_at, "timestamp_tz", nullable=True),) if known_at else ()
    schema = Schema((*(bundle.schema[name] for name in job.source.key), label, *arrival))

    def check(columns: list[str]) -> None:
        check_labels(job, columns, where)

    read = read_frame(labels, window, key=job.source.key, columns=schema.types | {target: None}, on_columns=check)
    truth = schema.conform(read, where).drop_nulls(target)
    if label.type == "float" and not truth[target].is_finite().all():
        raise SchemaMismatch(
            f"{where}: the target {target!r} is NaN or infinite in some labels. Leave them out, or give NULL."
        )
    starts = [window.start] * truth.height
    if known_at:
        instants = truth[known_at].to_list()
        starts = [window.start if at is None else job.calendar.containing(at).start for at in instants]
    return truth.select(
        *job.source.key,
        pl.col(target).alias("label"),
        pl.Series("known_from", starts, dtype=pl.Datetime("us", "UTC")),
    )


def check_labels(job: Job, columns: Sequence[str], where: str) -> None:
    """Refuse labels without a column that they must have.

    Raises:
        SchemaMismatch: Of the key, the target or `[performance] known_at`, one is not there.
    """
    known_at = job.performance.known_at
    wanted = (*job.source.key, job.problem.target, *((known_at,) if known_at else ()))
    if missing := [name for name in wanted if name not in columns]:
        raise SchemaMismatch(
            f"{where} has no column {', '.join(missing)}. It has: {', '.join(columns)}. Labels are the key "
            f"({', '.join(job.source.key)}) and the target ({job.problem.target})"
            f"{f', and [performance] known_at names {known_at}' if known_at else ''}: give them there."
        )
