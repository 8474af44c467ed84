"""What the ledger no longer needs to keep."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from batchscore.ledger.chunks import forget_chunks, forget_rejects
from batchscore.ledger.leases import is_free
from batchscore.ledger.runs import Run, select_runs
from batchscore.ledger.tables import CHUNKS, DRIFT, PROFILES, REJECTS, RUNS

__all__ = ["Pruned", "prune", "stages_in_use"]

_UNFINISHED = ("running", "failed", "held")


@dataclass(frozen=True, slots=True)
class Pruned:
    """How much was, or would be, removed."""

    superseded_runs: int
    abandoned_runs: int
    rejects: int


def prune(tx: sa.Connection, before: datetime) -> Pruned:
    """Remove superseded runs begun before an instant, with all that is known of them, and old rejects.

    A run that nobody finished loses its chunks and rejects, and begins anew if it is ever taken up; its line stays. Of
    a published run only the rejected rows go: their count stays.
    """
    old = select_runs(tx, RUNS.c.scored_at < before)
    superseded = [run.run_id for run in old if run.status == "superseded"]
    abandoned = [run for run in _abandoned(tx, before) if _has_chunks(tx, run)]
    published = [run.run_id for run in old if run.status == "published"]
    kept = sa.select(sa.func.count()).where(REJECTS.c.run_id.in_(published))
    rejects = int(tx.execute(kept).scalar_one())
    tx.execute(sa.delete(REJECTS).where(REJECTS.c.run_id.in_(published)))
    for table in (CHUNKS, PROFILES, DRIFT, REJECTS, RUNS):
        tx.execute(sa.delete(table).where(table.c.run_id.in_(superseded)))
    for run in abandoned:
        forget_chunks(tx, run.run_id)
        forget_rejects(tx, run.run_id)
    return Pruned(len(superseded), len(abandoned), rejects)


def stages_in_use(tx: sa.Connection, before: datetime) -> set[str]:
    """The stages of runs that may still be taken up, but for those that nobody finished since before an instant."""
    unfinished = select_runs(tx, RUNS.c.status.in_(_UNFINISHED))
    return {run.stage for run in unfinished} - {run.stage for run in _abandoned(tx, before)}


def _abandoned(tx: sa.Connection, before: datetime) -> list[Run]:
    old = select_runs(tx, RUNS.c.status.in_(_UNFINISHED), RUNS.c.scored_at < before)
    return [run for run in old if is_free(tx, run.job, run.interval)]


def _has_chunks(tx: sa.Connection, run: Run) -> bool:
    return tx.execute(sa.select(CHUNKS.c.run_id).where(CHUNKS.c.run_id == run.run_id).limit(1)).first() is not None
