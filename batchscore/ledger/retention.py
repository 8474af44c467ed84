"""What the ledger no longer needs to keep."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from batchscore.ledger.leases import is_free
from batchscore.ledger.runs import Run, select_runs
from batchscore.ledger.tables import CHUNKS, DRIFT, PROFILES, REJECTS, RUNS

__all__ = ["Pruned", "prune", "stages_in_use"]

_UNFINISHED = ("running", "failed")


@dataclass(frozen=True, slots=True)
class Pruned:
    """How much was, or would be, removed."""

    superseded_runs: int
    abandoned_runs: int
    rejects: int


def prune(tx: sa.Connection, before: datetime, *, dry_run: bool = False) -> Pruned:
    """Remove superseded runs begun before an instant, with all that is known of them, and old rejects.

    A run that nobody finished loses its chunks and rejects, and begins anew if it is ever taken up; its line stays. Of
    a published run only the rejected rows go: their count stays. A held run stays whole, for somebody has to decide.

    Args:
        tx: An open transaction.
        before: The instant.
        dry_run: Count, and write and lock nothing.
    """
    old = select_runs(tx, RUNS.c.scored_at < before)
    superseded = [run.run_id for run in old if run.status == "superseded"]
    published = [run.run_id for run in old if run.status == "published"]
    abandoned = [run.run_id for run in _abandoned(tx, before, lock=not dry_run) if _has_chunks(tx, run)]
    of_rejected = REJECTS.c.run_id.in_([*superseded, *published, *abandoned])
    rejects = int(tx.execute(sa.select(sa.func.count()).where(of_rejected)).scalar_one())
    if not dry_run:
        tx.execute(sa.delete(REJECTS).where(of_rejected))
        tx.execute(sa.delete(CHUNKS).where(CHUNKS.c.run_id.in_([*superseded, *abandoned])))
        for table in (PROFILES, DRIFT, RUNS):
            tx.execute(sa.delete(table).where(table.c.run_id.in_(superseded)))
    return Pruned(len(superseded), len(abandoned), rejects)


def stages_in_use(tx: sa.Connection, before: datetime, *, dry_run: bool = False) -> set[str]:
    """The stages of runs that may still be published, but for those that nobody finished since before an instant."""
    used = select_runs(tx, RUNS.c.status.in_((*_UNFINISHED, "held")))
    return {run.stage for run in used} - {run.stage for run in _abandoned(tx, before, lock=not dry_run)}


def _abandoned(tx: sa.Connection, before: datetime, *, lock: bool) -> list[Run]:
    old = select_runs(tx, RUNS.c.status.in_(_UNFINISHED), RUNS.c.scored_at < before)
    return [run for run in old if is_free(tx, run.job, run.interval, lock=lock)]


def _has_chunks(tx: sa.Connection, run: Run) -> bool:
    return tx.execute(sa.select(CHUNKS.c.run_id).where(CHUNKS.c.run_id == run.run_id).limit(1)).first() is not None
