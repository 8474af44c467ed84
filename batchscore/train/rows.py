"""The rows to learn from, with their labels, as the job's queries give them."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from batchscore.errors import TrainingError, nearest
from batchscore.interval import Interval
from batchscore.job import Job
from batchscore.schema import Schema, TypeName, type_name
from batchscore.sources import Source, read_frame

__all__ = ["check_columns", "read_rows", "with_labels"]


def read_rows(job: Job, source: Source, window: Interval) -> pl.DataFrame:
    """Every row of the window, in the order of the key.

    Raises:
        TrainingError: There is none, or see `check_columns`.
        SchemaMismatch, KeyViolation: See `read_frame`.
    """

    def check(columns: Sequence[str]) -> None:
        check_columns(job, columns, source.where)

    given = read_frame(source, window, key=job.source.key, on_columns=check)
    if given.is_empty():
        raise TrainingError(f"{source.where} gives no row for {window}. Widen [training] from and to.")
    return given


def check_columns(job: Job, columns: Sequence[str], where: str) -> None:
    """Refuse rows whose columns are not those that the job is to be trained on.

    Args:
        job: The job.
        columns: Which columns the rows have.
        where: What gives them, for messages.

    Raises:
        TrainingError: The target is among them, or one that is carried or split by is not.
    """
    if job.problem.target and job.problem.target in columns:
        advice = "Leave it out of the rows"
        if job.source.parquet is not None:
            advice = "Write the files without it, or read them by a query of DuckDB that leaves it out ([source] sql)"
        raise TrainingError(
            f"{where} gives the target {job.problem.target!r} itself: the model would learn to read it. {advice}; "
            "it comes from [labels]."
        )
    named = [("[output] carry", name) for name in job.output.carry]
    named += [(f"[training] {place}", name) for place, name in (job.training.columns if job.training else {}).items()]
    for place, name in named:
        if name not in columns:
            guess = f" Did you mean {near}?" if (near := nearest(name, columns)) else ""
            raise TrainingError(
                f"{place} names {name!r}, which {where} does not give.{guess} It has: {', '.join(columns)}."
            )


def with_labels(job: Job, labels: Source, window: Interval, schema: Schema, given: pl.DataFrame) -> pl.DataFrame:
    """The rows whose label is known, with the target as one more column, in their order.

    Raises:
        TrainingError: There is none, the labels lack the key or the target, or its type is not the task's.
    """
    known = _read_labels(job, labels, window, schema)
    found = given.join(known, on=job.source.key, how="inner", maintain_order="left")
    if found.is_empty():
        raise TrainingError(
            f"none of the {given.height:,} rows of {window} has a label. Check that {labels.where} gives the same keys."
        )
    labelled = found.drop_nulls(job.problem.target)
    if labelled.is_empty():
        raise TrainingError(
            f"{labels.where} has {found.height:,} of the rows of {window}, and {job.problem.target} is NULL in all of "
            "them. Take a window whose labels are known."
        )
    _refuse_type(job, labelled[job.problem.target])
    return labelled


def _read_labels(job: Job, source: Source, window: Interval, schema: Schema) -> pl.DataFrame:
    target = job.problem.target
    wanted = {name: schema[name].type for name in job.source.key} | {target: None}
    given = read_frame(source, window, key=job.source.key, columns=wanted)
    if target not in given.columns:
        raise TrainingError(f"{source.where} has no column {target!r}, the target. It has: {', '.join(given.columns)}.")
    keys = Schema(tuple(schema[name] for name in job.source.key)).conform(given, source.where)
    return keys.with_columns(given[target])


def _refuse_type(job: Job, target: pl.Series) -> None:
    name = type_name(target.dtype)
    allowed: tuple[TypeName, ...] = ("boolean", "integer", "string")
    if job.problem.task == "regression":
        allowed = ("integer", "float")
    if name not in allowed:
        raise TrainingError(
            f"the target {target.name!r} is {name}; a {job.problem.task} target is {' or '.join(allowed)}. "
            "Cast it in the labels."
        )
    if name == "float" and not target.is_finite().all():
        raise TrainingError(f"the target {target.name!r} is NaN or infinite in some labels. Leave them out, or NULL.")
