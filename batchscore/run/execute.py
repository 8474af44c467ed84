"""Score one interval: read, score and commit chunk by chunk, then publish.

A run is a fold over chunks; a chunk is committed together with its ledger row or it never happened.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

import batchscore
from batchscore import ledger
from batchscore.ahead import ahead
from batchscore.errors import BatchscoreError, InputError, IntervalLeased, SourceChanged, UsageError, nearest
from batchscore.interval import Interval
from batchscore.job import Job
from batchscore.ledger import Run, Totals
from batchscore.logs import Event, log
from batchscore.model.bundle import Bundle
from batchscore.model.scorer import MOST_FAILURES, Scored, score
from batchscore.run.plan import revision_of
from batchscore.run.publish import audit, publish, refuse_shared_table
from batchscore.sources import Chunk, Source, read_chunks
from batchscore.warehouse import Output, OutputColumn, Warehouse

__all__ = ["Scoring", "output_of", "prepare", "score_interval"]

# One shard a run for now; the ledger already tells them apart.
SHARD = 0

OnChunk = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Scoring:
    """Everything that stays the same from interval to interval of one command.

    Attributes:
        casts: What the live output table's columns make of ours.
        query_digest: SHA-256 of the query that runs.
        sql_accepted: Why it is not the bundle's; None where it is.
    """

    job: Job
    bundle: Bundle
    source: Source
    warehouse: Warehouse
    output: Output
    casts: Mapping[str, pl.DataType]
    query_digest: str
    sql_accepted: str | None
    chunk_rows: int


def output_of(job: Job, bundle: Bundle) -> Output:
    """The output table that a job's predictions by a bundle go to.

    Raises:
        SourceChanged: The job's key is not the bundle's.
        UsageError: A carried column is not among the bundle's.
    """
    if job.source.key != bundle.key:
        raise SourceChanged(
            f"job {job.name} has key {list(job.source.key)}, and {bundle} was trained with {list(bundle.key)}. Retrain."
        )
    if missing := [name for name in job.output.carry if name not in bundle.schema.names]:
        guess = f" Did you mean {near}?" if (near := nearest(missing[0], bundle.schema.names)) else ""
        raise UsageError(
            f"[output] carry of job {job.name} names {missing[0]!r}, which is no column of {bundle}.{guess} Its "
            f"columns: {', '.join(bundle.schema.names)}. Name one of them, or give the column in the query and retrain."
        )
    passed = [OutputColumn(name, bundle.schema[name].type) for name in (*job.source.key, *job.output.carry)]
    given = [OutputColumn(name, type_) for name, type_ in bundle.predictor.output_types.items()]
    return Output(job.output.table, (*passed, *given))


def prepare(
    job: Job,
    bundle: Bundle,
    source: Source,
    warehouse: Warehouse,
    *,
    query_digest: str,
    sql_accepted: str | None,
    chunk_rows: int,
) -> Scoring:
    """Make the ledger's tables and the output table, or check the one that is there.

    Raises:
        UsageError: Another job has published into the same table.
        OutputMismatch: The output table cannot take the predictions exactly.
        SourceChanged, UsageError: See `output_of`.
    """
    output = output_of(job, bundle)
    warehouse.create(ledger.METADATA)
    with warehouse.begin("the ledger") as tx:
        refuse_shared_table(tx, job.name, output.table)
    casts = warehouse.prepare(output)
    return Scoring(job, bundle, source, warehouse, output, casts, query_digest, sql_accepted, chunk_rows)


def score_interval(scoring: Scoring, interval: Interval, history: Sequence[Run], on_chunk: OnChunk) -> Run:
    """Score an interval and publish it; an interrupted run of the same work goes on behind its last chunk.

    Args:
        scoring: What `prepare` gave.
        interval: The interval.
        history: The job's runs as the ledger had them.
        on_chunk: Told how many rows each committed chunk has read.

    Returns:
        The run, published.

    Raises:
        InputError: The rows break the bundle's contract, or too many were rejected; nothing of it is published.
        IntervalLeased: Another process took the run up.
        WarehouseError, TransientError: See there.
    """
    begun = time.monotonic()
    planned = _plan_run(scoring, interval, history)
    with scoring.warehouse.begin("the ledger") as tx:
        run = ledger.begin(tx.connection, planned, batchscore.__version__)
    if run.status == "published":
        return run
    if run.status == "superseded":
        raise IntervalLeased(f"{interval} has been scored again by another process since this one looked. Run again.")
    try:
        if not _score_chunks(scoring, run, on_chunk):
            log.warning(Event.RUN_EMPTY, run_id=run.run_id, interval=str(run.interval))
        limit = scoring.job.limits.rejects
        return publish(scoring.warehouse, scoring.output, run, scoring.bundle, reject_limit=limit, begun=begun)
    except IntervalLeased:
        raise
    except Exception as error:
        # Rows that must be mended before a run can pass may be rows that earlier chunks have read.
        _record_failure(scoring, run, error, start_again=isinstance(error, InputError))
        raise


def _plan_run(scoring: Scoring, interval: Interval, history: Sequence[Run]) -> Run:
    job, bundle = scoring.job, scoring.bundle
    revision = revision_of(interval, bundle.digest, history)
    run_id = ledger.run_id_of(
        job.name,
        interval,
        bundle_digest=bundle.digest,
        query_digest=scoring.query_digest,
        table=scoring.output.table,
        carry=job.output.carry,
        revision=revision,
    )
    return Run(
        run_id=run_id,
        job=job.name,
        interval=interval,
        model_name=bundle.name,
        model_version=bundle.version,
        bundle_digest=bundle.digest,
        revision=revision,
        output_table=scoring.output.table,
        scored_at=datetime.now(UTC),
        sql_accepted=scoring.sql_accepted,
    )


def _score_chunks(scoring: Scoring, run: Run, on_chunk: OnChunk) -> int:
    """Read, score and commit, each one chunk ahead of the next.

    Returns:
        How many chunks the run has.
    """
    done = _take_up(scoring, run)
    number = done.chunks
    with (
        ahead(_read(scoring, run, done.key_high)) as chunks,
        ahead(_score(scoring, chunks, done.failures)) as scored,
    ):
        for chunk, result in scored:
            _commit(scoring, run, number, chunk, result)
            on_chunk(result.rows_read)
            number += 1
    return number


def _take_up(scoring: Scoring, run: Run) -> ledger.Progress:
    """Where the run goes on, with a stage that holds exactly what its committed chunks staged."""
    with scoring.warehouse.begin(f"the stage of {run.interval}") as tx:
        ledger.hold(tx.connection, run)
        sound = audit(tx, scoring.output, run) is not None
        spoilt = not sound and ledger.progress(tx.connection, run.run_id, SHARD).chunks > 0
        if not sound:
            tx.drop_stage(scoring.output, run.stage)
            ledger.forget_chunks(tx.connection, run.run_id)
            ledger.forget_rejects(tx.connection, run.run_id)
            tx.open_stage(scoring.output, run.stage)
        done = ledger.progress(tx.connection, run.run_id, SHARD)
    if spoilt:
        log.warning(Event.RUN_SPOILT, run_id=run.run_id, stage=run.stage)
    if done.chunks:
        log.info(Event.RUN_RESUMED, run_id=run.run_id, chunks=done.chunks, after=done.key_high)
    else:
        log.info(Event.RUN_STARTED, run_id=run.run_id, interval=str(run.interval), model_version=run.model_version)
    return done


def _read(scoring: Scoring, run: Run, after: tuple[object, ...] | None) -> Iterator[Chunk]:
    def log_extra(names: list[str]) -> None:
        log.info(Event.COLUMNS_IGNORED, run_id=run.run_id, columns=names)

    return read_chunks(
        scoring.source,
        run.interval,
        schema=scoring.bundle.schema,
        key=scoring.bundle.key,
        after=after,  # type: ignore[arg-type]
        chunk_rows=scoring.chunk_rows,
        on_extra=log_extra,
    )


def _score(scoring: Scoring, chunks: Iterable[Chunk], failures: int) -> Iterator[tuple[Chunk, Scored]]:
    """Score the chunks in turn; `failures` is what earlier chunks have spent of the run's `MOST_FAILURES`."""
    for chunk in chunks:
        result = score(scoring.bundle, chunk.rows, scoring.job.output.carry, failures_left=MOST_FAILURES - failures)
        failures += result.failures
        yield chunk, result


def _commit(scoring: Scoring, run: Run, number: int, chunk: Chunk, result: Scored) -> None:
    totals = Totals(1, result.rows_read, result.predictions.height, result.rejects.height)
    with scoring.warehouse.begin(f"chunk {number} of {run.interval}") as tx:
        ledger.hold(tx.connection, run)
        tx.stage(scoring.output, run.stage, scoring.casts, result.predictions)
        tx.load(ledger.REJECTS, _reject_rows(run, number, result.rejects))
        ledger.complete(
            tx.connection,
            run.run_id,
            shard=SHARD,
            chunk=number,
            keys=(chunk.low, chunk.high),
            totals=totals,
            profile={"input": result.inputs.to_dict(), "output": result.outputs.to_dict()},
            committed_at=datetime.now(UTC),
        )
    log.info(Event.CHUNK_COMMITTED, run_id=run.run_id, chunk=number, rows=totals.rows_read, rejects=totals.rejects)


def _reject_rows(run: Run, number: int, rejects: pl.DataFrame) -> pl.DataFrame:
    keys = [ledger.encode_key(row) for row in rejects["key"].struct.unnest().rows()]
    return rejects.select(
        pl.lit(run.run_id).alias("run_id"),
        pl.lit(SHARD, pl.Int64).alias("shard"),
        pl.lit(number, pl.Int64).alias("chunk"),
        pl.Series("row_key", keys, pl.String),
        "stage",
        "reason",
        "detail",
    )


def _record_failure(scoring: Scoring, run: Run, error: Exception, *, start_again: bool) -> None:
    log.error(Event.RUN_FAILED, run_id=run.run_id, interval=str(run.interval), error=str(error))
    # The first error is the one to tell; a warehouse that is gone cannot take the record of it.
    with contextlib.suppress(BatchscoreError), scoring.warehouse.begin("the ledger") as tx:
        ledger.hold(tx.connection, run)
        ledger.fail(tx.connection, run.run_id, f"{type(error).__name__}: {error}")
        if start_again:
            ledger.forget_chunks(tx.connection, run.run_id)
