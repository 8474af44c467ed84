"""Remove what is old and serves nobody: superseded runs, rejects, and the work of runs that nobody finished."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from batchscore import ledger
from batchscore.errors import IntervalLeased
from batchscore.ledger import Owner, Run
from batchscore.run.lease import leased
from batchscore.run.retry import Patience
from batchscore.warehouse import Warehouse

__all__ = ["Pruned", "prune", "would_prune"]


@dataclass(slots=True)
class Pruned:
    """How much was, or would be, removed."""

    superseded_runs: int = 0
    abandoned_runs: int = 0
    stages: int = 0
    rejects: int = 0

    def count(self, had_chunks: bool, rejects: int, *, staged: bool) -> None:
        """Count the work of one unfinished run."""
        self.abandoned_runs += had_chunks
        self.rejects += rejects
        self.stages += staged


def would_prune(warehouse: Warehouse, before: datetime) -> Pruned:
    """What `prune` would remove; writes and locks nothing."""
    with warehouse.begin("the ledger") as tx:
        if not tx.has_table(ledger.RUNS.name):
            return Pruned()
        superseded, rejects = ledger.forget_old(tx.connection, before, dry_run=True)
        pruned = Pruned(superseded, 0, 0, rejects)
        for run in ledger.abandoned(tx.connection, before):
            if found := ledger.forget_work(tx.connection, run, dry_run=True):
                pruned.count(*found, staged=run.stage in tx.stages(run.output_table))
    pruned.stages += len(_unused_stages(warehouse))
    return pruned


def prune(warehouse: Warehouse, before: datetime, *, lease_seconds: float, patience: Patience) -> Pruned:
    """Remove superseded runs begun before an instant, old rejects, and what unfinished old runs have left.

    Each step commits for itself, so that a prune which is stopped, or loses its connection, is simply said again. The
    work of an unfinished run goes under its interval's lease: whoever had it and stood still can commit no more.

    Raises:
        WarehouseError: See there.
        TransientError: The same, when the patience is at its end.
    """
    pruned, owner = Pruned(), Owner.here()
    with warehouse.begin("the ledger") as tx:
        if not tx.has_table(ledger.RUNS.name):
            return pruned

    def old() -> tuple[int, int]:
        with warehouse.begin("the ledger") as tx:
            return ledger.forget_old(tx.connection, before)

    def abandoned() -> list[Run]:
        with warehouse.begin("the ledger") as tx:
            return ledger.abandoned(tx.connection, before)

    work: dict[str, tuple[bool, int]] = {}

    def work_of(run: Run) -> None:
        with leased(warehouse, run.job, run.interval, owner, lease_seconds) as lease:
            with warehouse.begin(f"the work of run {run.run_id}") as tx:
                ledger.check(tx.connection, lease)
                found = ledger.forget_work(tx.connection, run)
            if found is None:
                return
            # What an attempt has committed is gone for the next, which may lose its connection behind it.
            had_chunks, rejects = max(found, work.get(run.run_id, (False, 0)))
            work[run.run_id] = (had_chunks, rejects)
            # A transaction of its own: on some databases DROP TABLE commits what was before it.
            with warehouse.begin(f"the stage of run {run.run_id}") as tx:
                ledger.check(tx.connection, lease)
                staged = run.stage in tx.stages(run.output_table)
                if staged:
                    tx.drop_stages(run.output_table, [run.stage])
        pruned.count(*work[run.run_id], staged=staged)

    def drop(table: str, stage: str) -> None:
        with warehouse.begin(f"the stage {stage}") as tx:
            tx.drop_stages(table, [stage])

    pruned.superseded_runs, pruned.rejects = patience.persist(old)
    for run in patience.persist(abandoned):
        # Where somebody has taken the run up since, it is no longer abandoned.
        with contextlib.suppress(IntervalLeased):
            patience.persist(partial(work_of, run))
    for table, stage in patience.persist(lambda: _unused_stages(warehouse)):
        patience.persist(partial(drop, table, stage))
        pruned.stages += 1
    patience.persist(warehouse.settle)
    return pruned


def _unused_stages(warehouse: Warehouse) -> list[tuple[str, str]]:
    """Stages of which no run has any use, each behind an output table that it lies beside."""
    with warehouse.begin("the stages") as tx:
        # Listed before the runs are asked: whoever makes a stage has entered its run by then.
        there = {
            (table.rpartition(".")[0], stage): table
            for table in ledger.output_tables(tx.connection)
            for stage in tx.stages(table)
        }
        used = ledger.stages_in_use(tx.connection)
    return [(table, stage) for (_, stage), table in there.items() if stage not in used]
