"""Publish a run: one transaction, after every chunk, that checks before it replaces.

Into a Delta table it is one commit of that table, between two transactions of the ledger; see `run.sending`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import reduce
from typing import Any

from batchscore import ledger
from batchscore.errors import BatchscoreError, GateTripped, TooManyRejects, UsageError, WarehouseError
from batchscore.faults import fault
from batchscore.job import SHADOW, Job, Limits
from batchscore.ledger import Lease, Progress, Run, Totals
from batchscore.logs import Event, log
from batchscore.model.bundle import Bundle
from batchscore.model.scorer import MOST_FAILURES
from batchscore.profile import ColumnProfile, Profile
from batchscore.run.gates import times, tripped
from batchscore.run.sending import send
from batchscore.run.shadow import MOST_FAILURES as MOST_SHADOW_FAILURES
from batchscore.warehouse import Output, Transaction, Warehouse

__all__ = ["audit", "clear_up", "publish", "refuse_shared_table"]


def publish(
    warehouse: Warehouse, output: Output, run: Run, lease: Lease, bundle: Bundle, job: Job, *, begun: float
) -> Run:
    """Replace the interval's rows by the run's staged ones and mark it published, or leave everything as it was.

    What it has for a side table is published in the same transaction, or without it where that table refuses. Where a
    gate trips, the run is held: its rows stay staged. One with an `override_reason` passes every gate.

    Args:
        warehouse: Where it is staged.
        output: The table it is bound for.
        run: The run, all of whose chunks are committed.
        lease: That of its interval.
        bundle: What scored it.
        job: What it is for; its limits and gates are asked.
        begun: `time.monotonic()` when this process took the run up, for the log.

    Raises:
        TooManyRejects: More rows were rejected than the job's limits allow, or more failed than any run may have.
        GateTripped: A gate of the job's `[publish]` is not passed.
        IntervalLeased: Another process took the run up.
        UsageError: Another job has published into the same table since this one looked, or this one intervals that
            are cut otherwise.
        OutputMismatch: The output table was changed since it was checked, and cannot take the rows exactly.
        WarehouseError: The stage or the rejects are not what the chunks committed: another hand was in them.
    """
    try:
        return _publish(warehouse, output, run, lease, bundle, job, begun=begun)
    except WarehouseError as error:
        if output.side is None:
            raise
        # Where it was not the side table's fault, this raises it once more.
        published = _publish(warehouse, replace(output, side=None), run, lease, bundle, job, begun=begun)
        log.warning(Event.SHADOW_OFF, shadow=f"{run.model_name} version {run.shadow_version}", error=str(error))
        return published


def _publish(
    warehouse: Warehouse, output: Output, run: Run, lease: Lease, bundle: Bundle, job: Job, *, begun: float
) -> Run:
    now = datetime.now(UTC)
    with warehouse.begin(f"publishing {run.interval}") as tx:
        ledger.check(tx.connection, lease)
        if run.job not in ledger.users_of_table(tx.connection, run.output_table):
            # What is published into a table for the first time, by two processes at once, is seen only one by one.
            ledger.keep_others_out(tx.connection)
            refuse_shared_table(tx, run.job, output.table)
        _refuse_other_cut(tx, run, job)
        done = ledger.progress(tx.connection, run.run_id)
        totals = audit(tx, output, run, done)
        if totals is None:
            raise WarehouseError(
                f"run {run.run_id} of {run.interval}: {run.stage} or batchscore_rejects does not hold what the run "
                "committed; something else has changed it. Nothing was published. Run again: it starts from nothing."
            )
        _refuse_failures(done, bundle)
        _check_rejects(tx, run, totals, job.limits)
        side = output.side if totals.shadow_failures <= MOST_SHADOW_FAILURES else None
        totals = totals if side else replace(totals, shadow_predictions=0)
        profiles = _merge_chunks(ledger.chunk_profiles(tx.connection, run.run_id), bundle)
        earlier = ledger.rows_of_last(tx.connection, run, job.publish.over)
        faults = tripped(job.publish, totals, earlier, profiles["output"], bundle.output_reference)
        kept = _profile_rows(profiles)
        if faults and run.override_reason is None:
            ledger.hold_back(tx.connection, run, totals, done.inputs, kept, "\n".join(faults))
        elif warehouse.lake:
            faults = []
            run = ledger.announce(tx.connection, run, totals, done.inputs, kept)
        else:
            faults = []
            before = ledger.published(tx.connection, run)
            tx.replace(output, run.stage, run.stamp)
            fault("in_publish")
            if side and run.shadow_version is not None:
                tx.replace(side, run.stage, run.stamp | {"model_version": run.shadow_version})
            elif before and before.shadow_predictions:
                # They would tell of a run that is no longer there.
                tx.clear(job.shadow_table, run.interval.start)
            overtaken = ledger.publish(tx.connection, run, totals, done.inputs, kept, now)
        fault("before_publish_commit")
    if faults:
        raise GateTripped(
            f"{run.interval} is scored and not published: {'; '.join(faults)}. The output table is as it was. See "
            f"batchscore runs show {run.run_id[:8]}; to publish it all the same: batchscore runs publish "
            f'{run.run_id[:8]} --override --reason "why it is right".',
            run_id=run.run_id,
            gates=faults,
        )
    if warehouse.lake:
        overtaken = send(warehouse, warehouse.lake, output, run, lease)
    fault("after_publish")
    clear_up(warehouse, output, [run, *overtaken])
    fault("after_clear_up")
    published = replace(
        run,
        status="published",
        published_at=now,
        rows_read=totals.rows_read,
        predictions=totals.predictions,
        rejects=totals.rejects,
        chunks=totals.chunks,
        shadow_predictions=None if run.shadow_version is None else totals.shadow_predictions,
        input_hash=str(done.inputs),
    )
    _log(published, profiles, time.monotonic() - begun)
    return published


def _refuse_other_cut(tx: Transaction, run: Run, job: Job) -> None:
    """Refuse an interval that [interval] does not cut so, and one beside others that it does not."""
    last = ledger.published_last(tx.connection, run.job, run.output_table)
    for interval, is_what in [(run.interval, "scored"), *([(last.interval, "published")] if last else [])]:
        if job.calendar.containing(interval.start) != interval:
            raise UsageError(
                f"job {run.job}: {interval} is {is_what}, and [interval] cuts time otherwise now. Rows would be there "
                "twice, so nothing was published. Keep one [interval], or give the job another name and output table."
            )


def refuse_shared_table(tx: Transaction, job: str, table: str) -> None:
    """Refuse an output table that another job publishes into, or a shadow.

    Raises:
        UsageError: There is such a job.
    """
    if others := ledger.users_of_table(tx.connection, tx.full_name(table)) - {job}:
        raise UsageError(
            f"job {min(others)} has published into {table}. Two jobs would replace each other's intervals: "
            f"name another table in [output] of job {job}."
        )
    stem = table.removesuffix(SHADOW)
    if stem != table and (others := ledger.shadowers_of_table(tx.connection, tx.full_name(stem))):
        raise UsageError(
            f"the shadow of job {min(others)} has published into {table}: name another table in [output] of job {job}."
        )


def clear_up(warehouse: Warehouse, output: Output, runs: Sequence[Run]) -> None:
    """Drop the stages that a publish has left over; failing at it is told, for the predictions stand."""
    try:
        with warehouse.begin(f"the stage of {runs[0].interval}") as tx:
            for run in runs:
                tx.drop_stage(output, run.stage)
        warehouse.settle()
    except BatchscoreError as error:
        stages = [run.stage for run in runs]
        log.warning(Event.STAGE_LEFT, run_id=runs[0].run_id, stages=stages, error=str(error))


def audit(tx: Transaction, output: Output, run: Run, done: Progress) -> Totals | None:
    """Sums over the run's chunks; None where the stage or the rejects do not hold exactly what those committed.

    What is for the side table is looked at where the output has one.
    """
    totals = ledger.totals_of(tx.connection, run.run_id)
    staged = tx.staged(output, run.stage)
    if staged is None:
        return None
    rejected = ledger.rejects_kept(tx.connection, run.run_id)
    shadowed = tx.staged(output.side, run.stage) if output.side else totals.shadow_predictions
    held = (staged, rejected, done.chunks, staged + rejected, shadowed)
    counted = (totals.predictions, totals.rejects, totals.chunks, totals.rows_read, totals.shadow_predictions)
    return totals if held == counted else None


def _refuse_failures(done: Progress, bundle: Bundle) -> None:
    # No shard knows of the others' failures.
    if done.failures > MOST_FAILURES:
        raise TooManyRejects(
            f"the features and the pipeline of {bundle} fail on {done.failures:,} rows of the run, more than "
            f"{MOST_FAILURES:,}. Nothing was published. Mend the rows at the source, or retrain with features that "
            "take them."
        )


def _check_rejects(tx: Transaction, run: Run, totals: Totals, limits: Limits) -> None:
    most = {"rejects": times(limits.rejects, totals.rows_read)}
    if limits.reject_rows is not None:
        most["reject_rows"] = Fraction(limits.reject_rows)
    if passed := [name for name, bound in most.items() if totals.rejects > bound]:
        limit = f"limits.{passed[0]} = {getattr(limits, passed[0])}"
        raise TooManyRejects(
            f"{totals.rejects} of {totals.rows_read} rows of {run.interval} were rejected, more than {limit} allows: "
            f"{_reasons(tx, run)}. Nothing was published. Mend the rows, raise the limit, or retrain; `batchscore runs "
            f"show {run.run_id[:8]}` lists them."
        )


def _reasons(tx: Transaction, run: Run) -> str:
    counts = ledger.reject_reasons(tx.connection, run.run_id)
    return "; ".join(f"{count} x {reason} ({detail})" for reason, detail, count in counts)


def _merge_chunks(chunks: Sequence[Mapping[str, Any]], bundle: Bundle) -> dict[str, Profile]:
    """The profiles of the whole run, by role, from those of its chunks."""
    references = {"input": bundle.input_reference, "output": bundle.output_reference}
    whole = {}
    for role, reference in references.items():
        read = (Profile.from_dict(chunk[role], reference.layouts) for chunk in chunks)
        whole[role] = reduce(Profile.merge, read) if chunks else Profile.empty(reference.layouts)
    return whole


def _profile_rows(profiles: Mapping[str, Profile]) -> list[dict[str, Any]]:
    return [
        {
            "role": role,
            "column_name": name,
            **_summary(column),
            "profile": json.dumps(column.to_dict(), allow_nan=False),
        }
        for role, profile in profiles.items()
        for name, column in profile.columns.items()
    ]


def _summary(column: ColumnProfile) -> dict[str, Any]:
    return {
        "kind": column.layout.kind,
        "row_count": column.n,
        "null_count": column.null,
        "null_share": column.null_share if column.n else None,
        "unseen_share": column.unseen_share if column.n and column.layout.kind in ("categorical", "integer") else None,
        "outside_share": column.outside_share if column.n and column.layout.kind == "numeric" else None,
        "distinct_count": round(column.sketch.distinct) if column.sketch else None,
        "mean": _finite(column.mean),
        "std": _finite(column.std),
        "minimum": column.minimum,
        "maximum": column.maximum,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _log(run: Run, profiles: Mapping[str, Profile], seconds: float) -> None:
    for role, profile in profiles.items():
        for name, column in profile.columns.items():
            log.info(Event.RUN_PROFILE, run_id=run.run_id, role=role, column=name, **_summary(column))
    log.info(
        Event.RUN_PUBLISHED,
        run_id=run.run_id,
        job=run.job,
        interval_start=run.interval.start.isoformat(),
        interval_end=run.interval.end.isoformat(),
        model_name=run.model_name,
        model_version=run.model_version,
        rows_read=run.rows_read,
        predictions=run.predictions,
        rejects=run.rejects,
        chunks=run.chunks,
        shadow_version=run.shadow_version,
        shadow_predictions=run.shadow_predictions,
        output_table=run.output_table,
        seconds=round(seconds, 3),
    )
