"""Publishing into a Delta table, which commits apart from the ledger.

The table is what a reader sees, so its commit is the publication, and the ledger follows. Before it the run is
announced: the ledger has all that it will say of it, and a ticket, a number that rises within the interval and goes
into the table's commit. Whoever finds a run announced and not confirmed, because a process died in between or lost an
answer, looks for the ticket in the table, under the interval's lease. Where it is there, the run is published, and only
that is recorded. Where it is not, the number behind it is written there, which keeps the run out for good: a process
that stood still and wakes up finds a higher number than its own.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

import polars as pl

from batchscore import ledger
from batchscore.errors import IntervalLeased, TransientError, WarehouseError
from batchscore.faults import fault
from batchscore.ledger import Lease, Owner, Run
from batchscore.logs import Event, log
from batchscore.run.lease import leased
from batchscore.run.retry import Patience
from batchscore.warehouse import Lake, Output, Sending, Warehouse

__all__ = ["send", "settle", "settle_all"]

# Each is another process at work on the table; all but those that touch the same files have their way at once.
_ATTEMPTS = 20


def send(warehouse: Warehouse, lake: Lake, output: Output, run: Run, lease: Lease) -> list[Run]:
    """Publish an announced run: commit its rows to the Delta table, then record that they are there.

    Returns:
        The runs overtaken before they were published: their stages serve nobody any more.

    Raises:
        IntervalLeased: Another process took the interval.
        OutputMismatch, WarehouseError, TransientError: See `Lake.replace`.
    """
    for attempt in range(_ATTEMPTS):
        # Whoever was in the way may have taken the interval.
        with warehouse.begin(f"publishing {run.interval}") as tx:
            ledger.check(tx.connection, lease)
        fault("before_delta_commit")
        if lake.replace(
            run.output_table,
            _sending(run),
            output,
            run.stamp,
            {name: str(value) for name, value in {"job": run.job, **run.stamp}.items()},
            lambda: _whole(warehouse, output, run),
        ):
            break
        _step_aside(attempt)
    else:
        raise TransientError(
            f"{run.output_table}: other commits were in the way {_ATTEMPTS} times. Nothing is lost: run again."
        )
    fault("after_delta_commit")
    return _confirm(warehouse, run, lease)


def settle(warehouse: Warehouse, job: str, output_table: str, lease: Lease) -> None:
    """Find out what became of a run of the lease's interval that was announced and not confirmed, and record it.

    Raises:
        IntervalLeased: Another process took the interval.
        WarehouseError, TransientError: The Delta table cannot be read.
    """
    if warehouse.lake is None:
        return
    with warehouse.begin("the ledger") as tx:
        doubtful = ledger.doubtful(tx.connection, job, output_table, lease.interval.start)
    for run in doubtful:
        for attempt in range(_ATTEMPTS):
            is_there = warehouse.lake.settled(output_table, _sending(run))
            if is_there is not None:
                break
            _step_aside(attempt)
        else:
            raise TransientError(f"{output_table}: other commits were in the way {_ATTEMPTS} times. Run again.")
        if is_there:
            overtaken = _confirm(warehouse, run, lease)
            log.warning(Event.RUN_CONFIRMED, run_id=run.run_id, interval=str(run.interval), ticket=run.ticket)
            with warehouse.begin(f"the stage of {run.interval}") as tx:
                tx.drop_stages(output_table, [each.stage for each in (run, *overtaken)])
        else:
            with warehouse.begin("the ledger") as tx:
                ledger.check(tx.connection, lease)
                ledger.disown(tx.connection, run)
            log.warning(Event.RUN_DISOWNED, run_id=run.run_id, interval=str(run.interval), ticket=run.ticket)


def settle_all(warehouse: Warehouse, job: str, table: str, patience: Patience, lease_seconds: float) -> None:
    """The same for every interval of a job that nobody works on.

    Raises:
        WarehouseError, TransientError: See `settle`.
    """
    if warehouse.lake is None:
        return
    with warehouse.begin("the ledger") as tx:
        if not tx.has_table(ledger.RUNS.name):
            return
        output_table = tx.full_name(table)
        doubtful = ledger.doubtful(tx.connection, job, output_table)

    def one(run: Run) -> None:
        with leased(warehouse, job, run.interval, owner, lease_seconds) as lease:
            settle(warehouse, job, output_table, lease)

    owner = Owner.here()
    for run in doubtful:
        with contextlib.suppress(IntervalLeased):
            patience.persist(partial(one, run))


def _whole(warehouse: Warehouse, output: Output, run: Run) -> Iterator[pl.DataFrame]:
    """The rows of the run's stage, and an error in place of the end where they are not as many as were announced."""
    count = 0
    for rows in warehouse.staged_rows(output, run.stage):
        count += rows.height
        yield rows
    if count != run.predictions:
        raise WarehouseError(
            f"run {run.run_id} of {run.interval}: {run.stage} held {run.predictions} rows a moment ago, and {count} "
            "now; something else has changed it. Nothing was published. Run again: it starts from nothing."
        )


def _confirm(warehouse: Warehouse, run: Run, lease: Lease) -> list[Run]:
    with warehouse.begin(f"recording {run.interval}") as tx:
        ledger.check(tx.connection, lease)
        overtaken = ledger.confirm(tx.connection, run, datetime.now(UTC))
        fault("before_confirm_commit")
    return overtaken


def _sending(run: Run) -> Sending:
    if run.ticket is None:
        raise ValueError(f"run {run.run_id} was not announced")
    return Sending(run.job, run.interval.start, run.ticket)


def _step_aside(attempt: int) -> None:
    time.sleep(random.uniform(0, min(1.0, 0.02 * 2**attempt)))  # noqa: S311 - it keeps nothing secret
