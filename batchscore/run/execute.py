"""Score one interval: take its run up, have its shards scored, then publish."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import pairwise

import batchscore
from batchscore import ledger, stop
from batchscore.errors import BatchscoreError, GateTripped, IntervalLeased, TransientError
from batchscore.faults import fault
from batchscore.interval import Interval
from batchscore.ledger import Lease, Progress, Run
from batchscore.logs import Event, about, log, redacted
from batchscore.run.crew import score_shards
from batchscore.run.lease import leased
from batchscore.run.plan import revision_of
from batchscore.run.publish import audit, clear_up, publish
from batchscore.run.retry import Patience
from batchscore.run.scoring import Scoring
from batchscore.run.sending import settle
from batchscore.run.shard import InputMoved, Shard
from batchscore.schema import Column
from batchscore.sources import Span
from batchscore.trace import span
from batchscore.warehouse import Transaction

__all__ = ["score_interval"]

OnChunk = Callable[[int], None]


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

    committed = 0

    def attempt() -> Run:
        nonlocal committed
        try:
            return _attempt(scoring, planned, history, told, begun)
        except TransientError:
            # What workers elsewhere commit is told when their shard is done, or never, where one was killed.
            before, committed = committed, _committed(scoring, planned.run_id)
            if committed > before:
                patience.progress()
            raise

    with about(planned.run_id, interval.start, planned.model_version), span("interval", _attributes(planned)):
        try:
            return patience.persist(attempt)
        except IntervalLeased as error:
            log.warning(Event.RUN_LEFT, run_id=planned.run_id, interval=str(interval), error=str(error))
            raise
        except Exception as error:
            log.error(Event.RUN_FAILED, run_id=planned.run_id, interval=str(interval), error=str(error))
            raise
        finally:
            # A reading that nobody took, for another process has the interval, would hold a transaction open.
            if scoring.begun and scoring.begun.interval == interval:
                scoring.begun.ends.close()


def _attributes(run: Run) -> dict[str, str | int]:
    return {
        "batchscore.job": run.job,
        "batchscore.run_id": run.run_id,
        "batchscore.interval_start": run.interval.start.isoformat(),
        "batchscore.model_name": run.model_name,
        "batchscore.model_version": run.model_version,
    }


def _committed(scoring: Scoring, run_id: str) -> int:
    """How many chunks of the run the ledger has; none where it cannot be asked."""
    with contextlib.suppress(BatchscoreError), scoring.warehouse.begin("the ledger") as tx:
        return ledger.progress(tx.connection, run_id).chunks
    return 0


def _attempt(scoring: Scoring, planned: Run, history: Sequence[Run], on_chunk: OnChunk, begun: float) -> Run:
    """Score and publish the run from where the ledger has it."""
    try:
        return _under_lease(scoring, planned, history, on_chunk, begun)
    except InputMoved:
        # From nothing, and under another lease: what the other shards still do does not count.
        return _under_lease(scoring, planned, history, on_chunk, begun)


def _under_lease(scoring: Scoring, planned: Run, history: Sequence[Run], on_chunk: OnChunk, begun: float) -> Run:
    stop.check()
    warehouse, interval = scoring.warehouse, planned.interval
    with leased(warehouse, planned.job, interval, scoring.owner, scoring.lease_seconds) as lease:
        fault("after_lease")
        settle(warehouse, planned.job, planned.output_table, lease)
        run, shards = _take_up(scoring, planned, lease, history)
        if run.status == "published":
            log.info(Event.RUN_FOUND, run_id=run.run_id, interval=str(interval))
            clear_up(warehouse, scoring.output, [run])
            return run
        try:
            if _is_to_be_cut(scoring, run, shards):
                shards = _cut(scoring, run, lease)
            if not score_shards(scoring, run, lease, shards, on_chunk):
                log.warning(Event.RUN_EMPTY, run_id=run.run_id, interval=str(interval))
            with span("publish", {"db.collection.name": run.output_table}):
                return publish(warehouse, scoring.output, run, lease, scoring.bundle, scoring.job, begun=begun)
        except InputMoved:
            done = [shard.done for shard in shards]
            counts = {"chunks": sum(each.chunks for each in done), "rows": sum(each.inputs.rows for each in done)}
            log.warning(Event.RUN_RESTARTED, run_id=run.run_id, **counts)
            with warehouse.begin(f"the stage of {interval}") as tx:
                ledger.check(tx.connection, lease)
                _start_again(tx, scoring, run)
            raise
        except (IntervalLeased, GateTripped):
            raise
        except Exception as error:
            _record_failure(scoring, run, lease, error)
            raise


def _plan_run(scoring: Scoring, interval: Interval, history: Sequence[Run]) -> Run:
    job, bundle = scoring.job, scoring.bundle
    revision = revision_of(interval, history)
    return Run(
        run_id=scoring.run_id(interval, revision),
        job=job.name,
        interval=interval,
        model_name=bundle.name,
        model_version=bundle.version,
        bundle_digest=bundle.digest,
        revision=revision,
        output_table=scoring.table,
        scored_at=datetime.now(UTC),
        shadow_version=scoring.shadow.bundle.version if scoring.shadow else None,
        sql_accepted=scoring.sql_accepted,
    )


def _take_up(scoring: Scoring, planned: Run, lease: Lease, history: Sequence[Run]) -> tuple[Run, Sequence[Shard]]:
    """The run as the ledger has it and its shards, with a stage that holds exactly what its committed chunks staged.

    Raises:
        IntervalLeased: Another process published the interval since `history` was read.
    """
    interval = planned.interval
    with scoring.warehouse.begin(f"the stage of {interval}") as tx:
        ledger.check(tx.connection, lease)
        there = ledger.published(tx.connection, planned)
        if there and there.run_id == planned.run_id:
            return there, []
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
        found = ledger.progress(tx.connection, run.run_id)
        spoilt = False
        if audit(tx, scoring.output, run, found) is None:
            spoilt = found.chunks > 0
            _start_again(tx, scoring, run)
            found = Progress(0)
        several = found.chunks and run.cuts is not None
        shards = _shards(run, lambda n: ledger.progress(tx.connection, run.run_id, n) if several else found)
        fault("in_take_up")
    fault("after_take_up")
    if spoilt:
        log.warning(Event.RUN_SPOILT, run_id=run.run_id, stage=run.stage)
    if not found.chunks:
        log.info(Event.RUN_STARTED, run_id=run.run_id, interval=str(interval), model_version=run.model_version)
    return run, shards


def _is_to_be_cut(scoring: Scoring, run: Run, shards: Sequence[Shard]) -> bool:
    """Whether the run, of which nothing is committed, is to have several shards and has one."""
    begun = any(shard.done.chunks for shard in shards)
    return scoring.shards > 1 and run.cuts is None and not begun and _cut_by(scoring).type in ("integer", "string")


def _cut(scoring: Scoring, run: Run, lease: Lease) -> list[Shard]:
    cuts = scoring.source.cuts(run.interval, _cut_by(scoring), scoring.shards)
    with scoring.warehouse.begin(f"the shards of {run.interval}") as tx:
        ledger.check(tx.connection, lease)
        run = ledger.cut(tx.connection, run, cuts)
    log.info(Event.RUN_CUT, run_id=run.run_id, shards=len(cuts) + 1)
    return _shards(run, lambda _: Progress(0))


def _cut_by(scoring: Scoring) -> Column:
    return scoring.bundle.schema[scoring.bundle.key[0]]


def _shards(run: Run, done: Callable[[int], Progress]) -> list[Shard]:
    spans = pairwise([None, *json.loads(run.cuts or "[]"), None])
    return [Shard(number, Span(low, high), done(number)) for number, (low, high) in enumerate(spans)]


def _start_again(tx: Transaction, scoring: Scoring, run: Run) -> None:
    """Forget all that the run has done, and empty its stage."""
    tx.empty_stage(scoring.output, run.stage)
    ledger.forget_chunks(tx.connection, run.run_id)
    ledger.forget_rejects(tx.connection, run.run_id)


def _record_failure(scoring: Scoring, run: Run, lease: Lease, error: Exception) -> None:
    # The first error is the one to tell; a warehouse that is gone cannot take the record of it.
    # Ours are sentences; of others the message alone may say nothing.
    told = str(error) if isinstance(error, BatchscoreError) else f"{type(error).__name__}: {error}"
    with contextlib.suppress(BatchscoreError), scoring.warehouse.begin("the ledger") as tx:
        ledger.check(tx.connection, lease)
        ledger.fail(tx.connection, run.run_id, redacted(told))
