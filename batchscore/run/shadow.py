"""A second version beside the one that scores: the same rows, in the same pass, into a side table.

Whatever becomes of it stops nothing: a row that it fails on is left out, and one that fails on many is given up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import polars as pl

from batchscore import ledger
from batchscore.errors import BatchscoreError, SourceChanged, TransientError, UsageError, WarehouseError
from batchscore.job import Job
from batchscore.logs import Event, log
from batchscore.model.bundle import Bundle
from batchscore.model.predictor import StageError
from batchscore.model.scorer import predict
from batchscore.problem import REASON
from batchscore.schema import TypeName, dtype_of
from batchscore.warehouse import Narrow, Output, OutputColumn, Transaction, Warehouse

__all__ = [
    "MOST_FAILURES",
    "Shadow",
    "Shadowed",
    "check_fits",
    "refuse_lake",
    "refuse_shadow_table",
    "shadowed",
    "side_of",
    "with_shadow",
    "without_reasons",
]

# Its code fails on more rows of a run than this: it is given up. Each takes a score of calls to find, which the
# predictions wait for. Counted over the run, and kept with the chunks, so that neither their size nor a kill matters.
MOST_FAILURES = 100


@dataclass(frozen=True, slots=True)
class Shadow:
    """What scores beside.

    Attributes:
        bundle: The version, without its reasons.
        narrow: The columns of the live side table that do not hold every value.
    """

    bundle: Bundle
    narrow: Mapping[str, Narrow]


@dataclass(frozen=True, slots=True)
class Shadowed:
    """What a shadow gave for the rows of one chunk.

    Attributes:
        columns: What is staged, one row for each prediction, in order; NULL where the shadow gave nothing.
        predictions: How many rows have its own.
        failures: Rows on which its features or pipeline failed; one more than it may have where it is given up.
        first: What the first row without one failed with; None where all have one.
    """

    columns: pl.DataFrame
    predictions: int
    failures: int
    first: str | None


def check_fits(shadow: Bundle, bundle: Bundle, query: str) -> None:
    """Refuse a shadow that cannot score the rows that the bundle does.

    Args:
        shadow: What is to score beside.
        bundle: What scores.
        query: The query that runs.

    Raises:
        SourceChanged: It was trained with another key, query or columns.
    """
    remedy = "Retrain it on what the job reads now."
    if shadow.key != bundle.key:
        raise SourceChanged(f"{shadow} was trained with key {list(shadow.key)}, not {list(bundle.key)}. {remedy}")
    # Where a changed query was accepted for the bundle, it was so for whoever was trained with the same.
    if shadow.query not in (query, bundle.query):
        raise SourceChanged(f"{shadow} was trained with another query than the one that runs. {remedy}")
    theirs = bundle.schema.types
    if other := [f"{name} ({type_})" for name, type_ in shadow.schema.types.items() if theirs.get(name) != type_]:
        raise SourceChanged(f"{shadow} needs columns that {bundle} has not, or not so: {', '.join(other)}. {remedy}")


def without_reasons(bundle: Bundle) -> Bundle:
    """The same model, that does not say why: nobody reads the reasons of a shadow, and they take long."""
    types = {name: type_ for name, type_ in bundle.predictor.output_types.items() if not name.startswith(REASON)}
    return replace(bundle, predictor=replace(bundle.predictor, explainer=None, output_types=types))


def side_of(output: Output, job: Job, types: Mapping[str, TypeName]) -> Output:
    """The side table of a shadow that gives `types`, by name; its reasons are left out."""
    key = [column for column in output.columns if column.name in job.source.key]
    given = [(name, type_) for name, type_ in types.items() if not name.startswith(REASON)]
    # By number, for a name with anything before it may be longer than a database keeps.
    numbered = [OutputColumn(name, type_, f"shadow_{place}") for place, (name, type_) in enumerate(given, 1)]
    return Output(job.shadow_table, (*key, *numbered))


def refuse_shadow_table(tx: Transaction, job: Job) -> None:
    """Refuse a side table that some job publishes into.

    Raises:
        UsageError: There is such a job.
    """
    if users := ledger.users_of_table(tx.connection, tx.full_name(job.shadow_table)):
        raise UsageError(
            f"job {min(users)} has published into {job.shadow_table}, where the shadow's predictions would go: name "
            f"another table in [output] of job {job.name}."
        )


def refuse_lake(warehouse: Warehouse) -> None:
    """Refuse a shadow where output tables are Delta tables: two of those cannot be published by one commit.

    Raises:
        UsageError: They are.
    """
    if warehouse.lake:
        raise UsageError(
            "output tables are Delta tables (delta_url), and a shadow's side table beside one could not be published "
            "together with it. Take shadow out of [model], or score it as a job of its own."
        )


def with_shadow(output: Output, job: Job, shadow: Bundle, warehouse: Warehouse) -> tuple[Output, Shadow | None]:
    """The output table with its side table, which is made where it is missing and checked where it is there.

    Returns:
        Those and the shadow; the output table alone and None, which the log tells, where the side table is not right.

    Raises:
        TransientError: The warehouse may answer later.
    """
    side = side_of(output, job, shadow.predictor.output_types)
    try:
        refuse_lake(warehouse)
        with warehouse.begin("the ledger") as tx:
            refuse_shadow_table(tx, job)
        narrow = warehouse.prepare(side)
        if missing := warehouse.missing_privileges(job.shadow_table):
            raise WarehouseError(f"{job.shadow_table}: this user lacks {', '.join(missing)}. Have it granted.")
    except TransientError:
        raise
    except BatchscoreError as error:
        again = "" if warehouse.lake else f" Or drop {job.shadow_table}: the next run makes it anew."
        why = f"{error}{again}"
        log.warning(Event.SHADOW_OFF, shadow=str(shadow), error=why)
        return output, None
    return replace(output, side=side), Shadow(shadow, narrow)


def shadowed(
    shadow: Shadow, side: Output, rows: pl.DataFrame, keys: pl.DataFrame, *, failures_left: int, quote: bool
) -> Shadowed:
    """Score the rows of a chunk that have a prediction.

    Args:
        shadow: What scores.
        side: The table that it is for.
        rows: The chunk, shape `(rows, columns)`.
        keys: The key of each prediction, in the same order; shape `(predictions, key columns)`.
        failures_left: On how many rows its code may still fail; below 0 when it is given up already.
        quote: Whether its errors are told in their own words, which may hold values; by their class alone otherwise.
    """
    if failures_left < 0:
        return Shadowed(_staged(side, keys.height), 0, 0, None)
    taken = rows if keys.height == rows.height else rows.join(keys, on=keys.columns, how="semi", maintain_order="left")
    try:
        given, missed = predict(
            shadow.bundle, taken.select(shadow.bundle.schema.names), failures_left=failures_left, quote=quote
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the shadow's, and the predictions are good
        cause = error.__cause__ if isinstance(error.__cause__, StageError) else error
        kind = cause.kind if isinstance(cause, StageError) else type(cause).__name__
        told = str(cause) if quote else kind
        return Shadowed(_staged(side, keys.height), 0, failures_left + 1, told)
    failures = int(missed["stage"].is_in(["features", "pipeline"]).sum())
    held = given.filter(_held(keys[given["row"]].hstack(given.drop("row")), shadow.narrow))
    first = None
    if held.height < keys.height:
        first = missed.sort("row")["detail"][0] if missed.height else f"{side.table} cannot hold its values exactly"
    return Shadowed(_staged(side, keys.height, held), held.height, failures, first)


def _held(rows: pl.DataFrame, narrow: Mapping[str, Narrow]) -> pl.Series:
    """Which rows the side table holds exactly, Boolean."""
    held = pl.repeat(True, rows.height, dtype=pl.Boolean, eager=True)
    for name in narrow.keys() & set(rows.columns):
        held &= narrow[name].holds(rows[name])
    return held


def _staged(side: Output, height: int, given: pl.DataFrame | None = None) -> pl.DataFrame:
    """The columns of the stage, `height` rows: NULL in those whose number is no `row` of what is given."""
    columns = {column.name: column for column in side.columns if column.staged_as}
    if given is None:
        given = pl.DataFrame(schema={"row": pl.UInt32} | {name: dtype_of(each.type) for name, each in columns.items()})
    numbers = pl.int_range(height, dtype=pl.UInt32, eager=True).alias("row").to_frame()
    whole = numbers.join(given, on="row", how="left", maintain_order="left")
    return whole.select(pl.col(name).alias(each.staged_as or name) for name, each in columns.items())
