"""Score one interval: read, score and commit chunk by chunk, then publish.

A run is a fold over chunks; a chunk is committed together with its ledger row or it never happened.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import chain

import polars as pl

import batchscore
from batchscore import ledger, stop
from batchscore.ahead import ahead
from batchscore.errors import BatchscoreError, GateTripped, IntervalLeased, SourceChanged, UsageError, nearest
from batchscore.faults import fault
from batchscore.fingerprint import Fingerprint
from batchscore.interval import Interval
from batchscore.job import Job
from batchscore.ledger import Lease, Owner, Progress, Run, Totals
from batchscore.logs import Event, about, log, redacted
from batchscore.model.bundle import Bundle
from batchscore.model.scorer import MOST_FAILURES, Scored, score
from batchscore.run.lease import leased
from batchscore.run.plan import revision_of
from batchscore.run.publish import SHARD, audit, clear_up, publish, refuse_shared_table
from batchscore.run.retry import Patience
from batchscore.run.sending import settle
from batchscore.run.shadow import MOST_FAILURES as MOST_SHADOW_FAILURES
from batchscore.run.shadow import Shadow, Shadowed, shadowed, with_shadow
from batchscore.sources import Chunk, Source, read_chunks
from batchscore.trace import each, span
from batchscore.warehouse import Narrow, Output, OutputColumn, Transaction, Warehouse

__all__ = ["Scoring", "make_tables", "output_of", "prepare", "score_interval"]

OnChunk = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Scoring:
    """Everything that stays the same from interval to interval of one command.

    Attributes:
        table: The output table's full name.
        narrow: The columns of the live output table that do not hold every value.
        shadow: What scores beside the bundle, into `output.side`; None where nothing does.
        query_digest: SHA-256 of the query that runs.
        sql_accepted: Why it is not the bundle's; None where it is.
        owner: Who takes the leases.
        lease_seconds: How long a lease lasts without being renewed.
        retry_seconds: How long to try again without progress.
    """

    job: Job
    bundle: Bundle
    source: Source
    warehouse: Warehouse
    output: Output
    table: str
    narrow: Mapping[str, Narrow]
    shadow: Shadow | None
    query_digest: str
    sql_accepted: str | None
    chunk_rows: int
    owner: Owner
    lease_seconds: float
    retry_seconds: float


def output_of(job: Job, bundle: Bundle) -> Output:
    """The output table that a job's predictions by a bundle go to.

    Raises:
        SourceChanged: The job's key is not the bundle's.
        UsageError: A carried or private column is not among the bundle's.
    """
    if job.source.key != bundle.key:
        raise SourceChanged(
            f"job {job.name} has key {list(job.source.key)}, and {bundle} was trained with {list(bundle.key)}. Retrain."
        )
    named = [("[output] carry", name) for name in job.output.carry]
    named += [("[source] private", name) for name in job.source.private]
    for place, name in named:
        if name not in bundle.schema.names:
            guess = f" Did you mean {near}?" if (near := nearest(name, bundle.schema.names)) else ""
            raise UsageError(
                f"{place} of job {job.name} names {name!r}, which is no column of {bundle}.{guess} Its columns: "
                f"{', '.join(bundle.schema.names)}. Name one of them, or give the column at the source and retrain."
            )
    passed = [OutputColumn(name, bundle.schema[name].type) for name in (*job.source.key, *job.output.carry)]
    given = [OutputColumn(name, type_) for name, type_ in bundle.predictor.output_types.items()]
    return Output(job.output.table, (*passed, *given))


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of a job; see `Scoring`."""

    output: Output
    table: str
    narrow: Mapping[str, Narrow]
    shadow: Shadow | None


def make_tables(job: Job, bundle: Bundle, warehouse: Warehouse, shadow: Bundle | None = None) -> Tables:
    """Make the ledger's tables and the output table where they are missing, and check the output table that is there.

    The same with the side table, for a shadow; what is wrong with that one is told in the log alone.

    Raises:
        UsageError: Another job has published into the same table.
        OutputMismatch: The output table cannot take the predictions exactly.
        SourceChanged, UsageError: See `output_of`.
    """
    output = output_of(job, bundle)
    warehouse.create(ledger.METADATA)
    with warehouse.begin("the ledger") as tx:
        refuse_shared_table(tx, job.name, output.table)
        table = tx.full_name(output.table)
    narrow = warehouse.prepare(output)
    output, beside = (output, None) if shadow is None else with_shadow(output, job, shadow, warehouse)
    return Tables(output, table, narrow, beside)


def prepare(
    job: Job,
    bundle: Bundle,
    source: Source,
    warehouse: Warehouse,
    *,
    shadow: Bundle | None,
    query_digest: str,
    sql_accepted: str | None,
    chunk_rows: int,
    lease_seconds: float,
    retry_seconds: float,
) -> Scoring:
    """Everything that scoring needs, with its tables made or checked.

    Raises:
        BatchscoreError: See `make_tables`.
    """
    tables = make_tables(job, bundle, warehouse, shadow)
    return Scoring(
        job,
        bundle,
        source,
        warehouse,
        tables.output,
        tables.table,
        tables.narrow,
        tables.shadow,
        query_digest,
        sql_accepted,
        chunk_rows,
        Owner.here(),
        lease_seconds,
        retry_seconds,
    )


def score_interval(scoring: Scoring, interval: Interval, history: Sequence[Run], on_chunk: OnChunk) -> Run:
    """Score an interval and publish it; an interrupted run of the same work goes on behind its last chunk.

    A lost connection is met by taking the run up again from the ledger, which knows what was committed.

    Args:
        scoring: What `prepare` gave.
        interval: The interval.
        history: The job's runs as the ledger had them.
        on_chunk: Told how many rows each committed chunk has read.

    Returns:
        The run, published.

    Raises:
        InputError: The rows break the bundle's contract, or too many were rejected; nothing of it is published.
        IntervalLeased: Another process has the interval, or took it.
        WarehouseError: See there.
        TransientError: The same, and `retry_seconds` have passed without progress.
    """
    begun = time.monotonic()
    patience = Patience(scoring.retry_seconds)
    planned = _plan_run(scoring, interval, history)

    def told(rows: int) -> None:
        patience.progress()
        on_chunk(rows)

    with about(planned.run_id, interval.start, planned.model_version), span("interval", _attributes(planned)):
        try:
            return patience.persist(lambda: _attempt(scoring, planned, history, told, begun))
        except IntervalLeased as error:
            log.warning(Event.RUN_LEFT, run_id=planned.run_id, interval=str(interval), error=str(error))
            raise
        except Exception as error:
            log.error(Event.RUN_FAILED, run_id=planned.run_id, interval=str(interval), error=str(error))
            raise


def _attributes(run: Run) -> dict[str, str | int]:
    return {
        "batchscore.job": run.job,
        "batchscore.run_id": run.run_id,
        "batchscore.interval_start": run.interval.start.isoformat(),
        "batchscore.model_name": run.model_name,
        "batchscore.model_version": run.model_version,
    }


def _attempt(scoring: Scoring, planned: Run, history: Sequence[Run], on_chunk: OnChunk, begun: float) -> Run:
    """Score and publish the run from where the ledger has it, under the interval's lease."""
    stop.check()
    warehouse, interval = scoring.warehouse, planned.interval
    with leased(warehouse, planned.job, interval, scoring.owner, scoring.lease_seconds) as lease:
        fault("after_lease")
        settle(warehouse, planned.job, planned.output_table, lease)
        run, done = _take_up(scoring, planned, lease, history)
        if run.status == "published":
            log.info(Event.RUN_FOUND, run_id=run.run_id, interval=str(interval))
            clear_up(warehouse, scoring.output, [run])
            return run
        try:
            if not _score_chunks(scoring, run, lease, done, on_chunk):
                log.warning(Event.RUN_EMPTY, run_id=run.run_id, interval=str(interval))
            with span("publish", {"db.collection.name": run.output_table}):
                return publish(warehouse, scoring.output, run, lease, scoring.bundle, scoring.job, begun=begun)
        except (IntervalLeased, GateTripped):
            raise
        except Exception as error:
            _record_failure(scoring, run, lease, error)
            raise


def _plan_run(scoring: Scoring, interval: Interval, history: Sequence[Run]) -> Run:
    job, bundle = scoring.job, scoring.bundle
    revision = revision_of(interval, history)
    shadow = scoring.shadow.bundle if scoring.shadow else None
    run_id = ledger.run_id_of(
        job.name,
        interval,
        bundle_digest=bundle.digest,
        query_digest=scoring.query_digest,
        table=scoring.table,
        carry=job.output.carry,
        revision=revision,
        shadow_digest=shadow.digest if shadow else None,
    )
    return Run(
        run_id=run_id,
        job=job.name,
        interval=interval,
        model_name=bundle.name,
        model_version=bundle.version,
        bundle_digest=bundle.digest,
        revision=revision,
        output_table=scoring.table,
        scored_at=datetime.now(UTC),
        shadow_version=shadow.version if shadow else None,
        sql_accepted=scoring.sql_accepted,
    )


def _score_chunks(scoring: Scoring, run: Run, lease: Lease, done: Progress, on_chunk: OnChunk) -> int:
    """Read, score and commit, each one chunk ahead of the next.

    Returns:
        How many chunks the run has.
    """
    try:
        return _go_on(scoring, run, lease, done, on_chunk)
    except _InputMoved:
        log.warning(Event.RUN_RESTARTED, run_id=run.run_id, chunks=done.chunks, rows=done.inputs.rows)
        with scoring.warehouse.begin(f"the stage of {run.interval}") as tx:
            ledger.check(tx.connection, lease)
            _start_again(tx, scoring, run)
        return _go_on(scoring, run, lease, Progress(0), on_chunk)


class _InputMoved(Exception):
    """The rows behind the committed chunks are no longer those."""


def _go_on(scoring: Scoring, run: Run, lease: Lease, done: Progress, on_chunk: OnChunk) -> int:
    number, unshadowed, failures, first_failure = done.chunks, 0, done.shadow_failures, None
    with (
        ahead(_read(scoring, run, done)) as chunks,
        ahead(_score(scoring, chunks, done)) as scored,
    ):
        # With the first new chunk the old ones have been seen to be as they were.
        first = next(scored, None)
        if done.chunks:
            log.info(Event.RUN_RESUMED, run_id=run.run_id, chunks=done.chunks, rows=done.inputs.rows)
        for part in chain([first] if first else [], scored):
            _commit(scoring, run, lease, number, part)
            on_chunk(part.scored.rows_read)
            number += 1
            if part.beside:
                unshadowed += part.scored.predictions.height - part.beside.predictions
                failures += part.beside.failures
                first_failure = first_failure or part.beside.first
    if unshadowed:
        given_up = failures > MOST_SHADOW_FAILURES
        log.warning(Event.SHADOW_FAILED, run_id=run.run_id, rows=unshadowed, first=first_failure, given_up=given_up)
    return number


def _take_up(scoring: Scoring, planned: Run, lease: Lease, history: Sequence[Run]) -> tuple[Run, Progress]:
    """The run as the ledger has it, with a stage that holds exactly what its committed chunks staged.

    Raises:
        IntervalLeased: Another process published the interval since `history` was read.
    """
    interval = planned.interval
    with scoring.warehouse.begin(f"the stage of {interval}") as tx:
        ledger.check(tx.connection, lease)
        there = ledger.published(tx.connection, planned)
        if there and there.run_id == planned.run_id:
            return there, Progress(0)
        if there and there.run_id not in {run.run_id for run in history}:
            raise IntervalLeased(
                f"{interval} was published by another process since this one looked, with version "
                f"{there.model_version}. Nothing was written; run again to see what is left to do."
            )
        run = ledger.begin(tx.connection, planned, batchscore.__version__)
        if run.status == "superseded":
            raise IntervalLeased(f"{interval} was scored again by another process since this one looked. Run again.")
        tx.open_stage(scoring.output, run.stage)
        # Again: making the stage may have ended the transaction, and let the lease's row go.
        ledger.check(tx.connection, lease)
        found = ledger.progress(tx.connection, run.run_id, SHARD)
        sound = audit(tx, scoring.output, run, found) is not None
        if not sound:
            _start_again(tx, scoring, run)
        fault("in_take_up")
    fault("after_take_up")
    done = found if sound else Progress(0)
    if found.chunks and not sound:
        log.warning(Event.RUN_SPOILT, run_id=run.run_id, stage=run.stage)
    if not done.chunks:
        log.info(Event.RUN_STARTED, run_id=run.run_id, interval=str(interval), model_version=run.model_version)
    return run, done


def _start_again(tx: Transaction, scoring: Scoring, run: Run) -> None:
    """Forget all that the run has done, and empty its stage."""
    tx.empty_stage(scoring.output, run.stage)
    ledger.forget_chunks(tx.connection, run.run_id)
    ledger.forget_rejects(tx.connection, run.run_id)


@dataclass(frozen=True, slots=True)
class _Read:
    """A chunk and the fingerprint of its rows."""

    chunk: Chunk
    inputs: Fingerprint


@dataclass(frozen=True, slots=True)
class _Part:
    """A chunk, the fingerprint of its rows, and what came of them, by the shadow too where there is one."""

    chunk: Chunk
    inputs: Fingerprint
    scored: Scored
    beside: Shadowed | None

    @property
    def totals(self) -> Totals:
        """What the ledger counts."""
        scored, beside = self.scored, self.beside
        counts = (beside.predictions, beside.failures) if beside else ()
        return Totals(1, scored.rows_read, scored.predictions.height, scored.rejects.height, *counts)

    @property
    def staged(self) -> pl.DataFrame:
        """The columns of a stage."""
        return self.scored.predictions.hstack(self.beside.columns) if self.beside else self.scored.predictions


def _read(scoring: Scoring, run: Run, done: Progress) -> Iterator[_Read]:
    """The chunks behind those that are done.

    Raises:
        _InputMoved: The rows that were done are no longer what they were.
    """

    def log_extra(names: list[str]) -> None:
        log.info(Event.COLUMNS_IGNORED, run_id=run.run_id, columns=names)

    chunks = read_chunks(
        scoring.source,
        run.interval,
        schema=scoring.bundle.schema,
        key=scoring.bundle.key,
        chunk_rows=scoring.chunk_rows,
        on_extra=log_extra,
    )
    again, number = Fingerprint(), done.chunks
    with contextlib.closing(chunks):
        for chunk in each("read", chunks):
            left = done.inputs.rows - again.rows
            if left:
                again += Fingerprint.of(chunk.rows.head(left))
                if again.rows == done.inputs.rows and again != done.inputs:
                    raise _InputMoved
            if new := chunk.behind(left):
                read = _Read(new, Fingerprint.of(new.rows))
                fault("after_read", number)
                yield read
                number += 1
    if again != done.inputs:
        raise _InputMoved


def _score(scoring: Scoring, chunks: Iterable[_Read], done: Progress) -> Iterator[_Part]:
    """Score the chunks in turn; those that are done have spent some of the failures that a run may have."""
    failures, shadow_failures = done.failures, done.shadow_failures
    for read in chunks:
        left = MOST_FAILURES - failures
        job = scoring.job
        quote = job.source.quotable
        with span("score", {"batchscore.rows": read.chunk.rows.height}):
            result = score(scoring.bundle, read.chunk.rows, job.output.carry, failures_left=left, quote=quote)
        failures += result.failures
        beside = None
        if scoring.shadow and scoring.output.side:
            left = MOST_SHADOW_FAILURES - shadow_failures
            keys = result.predictions.select(scoring.bundle.key)
            with span("shadow", {"batchscore.rows": keys.height}):
                beside = shadowed(
                    scoring.shadow, scoring.output.side, read.chunk.rows, keys, failures_left=left, quote=quote
                )
            shadow_failures += beside.failures
        yield _Part(read.chunk, read.inputs, result, beside)


def _commit(scoring: Scoring, run: Run, lease: Lease, number: int, part: _Part) -> None:
    chunk, result = part.chunk, part.scored
    totals = part.totals
    fault("after_score", number)
    stop.check()
    told = {"batchscore.chunk": number, "batchscore.rows": totals.rows_read}
    with span("commit", told), scoring.warehouse.begin(f"chunk {number} of {run.interval}") as tx:
        ledger.check(tx.connection, lease)
        tx.stage(scoring.output, run.stage, scoring.narrow, part.staged)
        tx.load(ledger.REJECTS, _reject_rows(run, number, result.rejects, scoring.job.source.private))
        fault("after_stage", number)
        ledger.complete(
            tx.connection,
            run.run_id,
            shard=SHARD,
            chunk=number,
            keys=(chunk.low, chunk.high),
            totals=totals,
            inputs=part.inputs,
            profile={"input": result.inputs.to_dict(), "output": result.outputs.to_dict()},
            committed_at=datetime.now(UTC),
        )
        fault("before_commit", number)
    fault("after_commit", number)
    log.info(
        Event.CHUNK_COMMITTED,
        run_id=run.run_id,
        chunk=number,
        rows=totals.rows_read,
        predictions=totals.predictions,
        rejects=totals.rejects,
    )


def _reject_rows(run: Run, number: int, rejects: pl.DataFrame, private: Sequence[str]) -> pl.DataFrame:
    keys = [ledger.encode_key(row) for row in rejects["key"].struct.unnest().rows()]
    shown = rejects["values"].struct.unnest().drop(private, strict=False)
    values = [json.dumps({name: _plain(value) for name, value in row.items()}) for row in shown.iter_rows(named=True)]
    return rejects.select(
        pl.lit(run.run_id).alias("run_id"),
        pl.lit(SHARD, pl.Int64).alias("shard"),
        pl.lit(number, pl.Int64).alias("chunk"),
        pl.Series("row_key", keys, pl.String),
        "stage",
        "reason",
        pl.Series("detail", redacted(rejects["detail"].to_list()), pl.String),
        pl.Series("row_values", values, pl.String),
    )


def _plain(value: object) -> object:
    """A value as JSON has it; a date, an instant, and a number that is none, as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value.isoformat() if isinstance(value, date) else value


def _record_failure(scoring: Scoring, run: Run, lease: Lease, error: Exception) -> None:
    # The first error is the one to tell; a warehouse that is gone cannot take the record of it.
    # Ours are sentences; of others the message alone may say nothing.
    told = str(error) if isinstance(error, BatchscoreError) else f"{type(error).__name__}: {error}"
    with contextlib.suppress(BatchscoreError), scoring.warehouse.begin("the ledger") as tx:
        ledger.check(tx.connection, lease)
        ledger.fail(tx.connection, run.run_id, redacted(told))
