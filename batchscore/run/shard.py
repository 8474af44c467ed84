"""Score one shard of a run: read, score and commit chunk by chunk, each step ahead of the next.

A shard is a fold over chunks; a chunk is committed together with its ledger row or it never happened.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import chain

import polars as pl

from batchscore import ledger, stop
from batchscore.ahead import ahead
from batchscore.errors import TransientError, WarehouseError
from batchscore.faults import fault
from batchscore.fingerprint import Fingerprint
from batchscore.ledger import Lease, Progress, Run, Totals
from batchscore.logs import Event, log, redacted
from batchscore.model.scorer import MOST_FAILURES, Scored, score
from batchscore.run.scoring import Scoring
from batchscore.run.shadow import MOST_FAILURES as MOST_SHADOW_FAILURES
from batchscore.run.shadow import Shadowed, shadowed
from batchscore.sources import Chunk, Span, read_chunks
from batchscore.trace import each, span
from batchscore.warehouse import Transaction

__all__ = ["InputMoved", "Shard", "score_shard"]

OnChunk = Callable[[int], None]


class InputMoved(Exception):
    """The rows behind the committed chunks are no longer those."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a run, and how far it has come.

    Attributes:
        number: Its number, from 0.
        span: Which of the interval's rows it has.
        done: What of them is committed.
    """

    number: int
    span: Span
    done: Progress


def score_shard(scoring: Scoring, run: Run, lease: Lease, shard: Shard, on_chunk: OnChunk) -> int:
    """Read, score and commit what is left of a shard, each one chunk ahead of the next.

    Args:
        scoring: What it takes.
        run: The run, whose stage is there.
        lease: That of its interval.
        shard: Which rows, and how far they are committed.
        on_chunk: Told how many rows each committed chunk has read.

    Returns:
        How many chunks the shard has.

    Raises:
        InputMoved: The rows that were committed are no longer what they were.
        BatchscoreError: See `score_interval`.
    """
    done, number = shard.done, shard.done.chunks
    unshadowed, failures, first_failure = 0, done.shadow_failures, None
    with (
        ahead(_read(scoring, run, shard)) as chunks,
        ahead(_score(scoring, chunks, done)) as scored,
    ):
        # With the first new chunk the old ones have been seen to be as they were.
        first = next(scored, None)
        if done.chunks:
            log.info(
                Event.RUN_RESUMED, run_id=run.run_id, shard=shard.number, chunks=done.chunks, rows=done.inputs.rows
            )
        for part in chain([first] if first else [], scored):
            _commit(scoring, run, lease, shard.number, number, part)
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


def _read(scoring: Scoring, run: Run, shard: Shard) -> Iterator[_Read]:
    """The chunks behind those that are done.

    Raises:
        InputMoved: The rows that were done are no longer what they were.
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
        span=shard.span,
        begun=scoring.begun,
    )
    done = shard.done
    again, number = Fingerprint(), done.chunks
    with contextlib.closing(chunks):
        for chunk in each("read", chunks):
            left = done.inputs.rows - again.rows
            if left:
                again += Fingerprint.of(chunk.rows.head(left))
                if again.rows == done.inputs.rows and again != done.inputs:
                    raise InputMoved
            if new := chunk.behind(left):
                read = _Read(new, Fingerprint.of(new.rows))
                fault("after_read", number)
                yield read
                number += 1
    if again != done.inputs:
        raise InputMoved


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


def _commit(scoring: Scoring, run: Run, lease: Lease, shard: int, number: int, part: _Part) -> None:
    totals = part.totals
    fault("after_score", number)
    stop.check()
    try:
        with (
            span(
                "commit", {"batchscore.shard": shard, "batchscore.chunk": number, "batchscore.rows": totals.rows_read}
            ),
            scoring.warehouse.begin(f"chunk {number} of {run.interval}") as tx,
        ):
            _write(tx, scoring, run, lease, shard, number, part)
    except WarehouseError:
        # Whoever has taken the interval meanwhile may have dropped the stage; a worker that was given up for dead, and
        # has the same lease, may have committed this chunk.
        with scoring.warehouse.begin(f"the lease of {run.interval}") as tx:
            ledger.check(tx.connection, lease)
            there = ledger.progress(tx.connection, run.run_id, shard).chunks
        if there > number:
            raise TransientError(
                f"chunk {number} of shard {shard} of {run.interval} was committed by another worker. It is taken up "
                "again behind what is committed."
            ) from None
        raise
    fault("after_commit", number)
    log.info(
        Event.CHUNK_COMMITTED,
        run_id=run.run_id,
        shard=shard,
        chunk=number,
        rows=totals.rows_read,
        predictions=totals.predictions,
        rejects=totals.rejects,
    )


def _write(tx: Transaction, scoring: Scoring, run: Run, lease: Lease, shard: int, number: int, part: _Part) -> None:
    chunk, result = part.chunk, part.scored
    tx.stage(scoring.output, run.stage, scoring.narrow, part.staged)
    if result.rejects.height:
        tx.load(ledger.REJECTS, _reject_rows(run, shard, number, result.rejects, scoring.job.source.private))
    fault("after_stage", number)
    # Last: it keeps the commits of the run's other shards waiting.
    ledger.check(tx.connection, lease)
    ledger.complete(
        tx.connection,
        run.run_id,
        shard=shard,
        chunk=number,
        keys=(chunk.low, chunk.high),
        totals=part.totals,
        inputs=part.inputs,
        profile={"input": result.inputs.to_dict(), "output": result.outputs.to_dict()},
        committed_at=datetime.now(UTC),
    )
    fault("before_commit", number)


def _reject_rows(run: Run, shard: int, number: int, rejects: pl.DataFrame, private: Sequence[str]) -> pl.DataFrame:
    keys = [ledger.encode_key(row) for row in rejects["key"].struct.unnest().rows()]
    shown = rejects["values"].struct.unnest().drop(private, strict=False)
    values = [json.dumps({name: _plain(value) for name, value in row.items()}) for row in shown.iter_rows(named=True)]
    return rejects.select(
        pl.lit(run.run_id).alias("run_id"),
        pl.lit(shard, pl.Int64).alias("shard"),
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
