"""What the ledger no longer needs to keep."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from batchscore.ledger.chunks import forget_chunks, forget_rejects, rejects_kept
from batchscore.ledger.leases import is_free
from batchscore.ledger.runs import Run, in_doubt, select_runs
from batchscore.ledger.tables import ALERTS, CHUNKS, DRIFT, PROFILES, REJECTS, RUNS, TALLIES

__all__ = ["abandoned", "forget_old", "forget_work", "stages_in_use"]

_UNFINISHED = ("running", "failed")


def forget_old(tx: sa.Connection, before: datetime, *, dry_run: bool = False) -> tuple[int, int]:
    """Remove superseded runs begun before an instant, with all that is known of them, and old rejects and alerts.

    Of a published run only the rejected rows go: their count stays. A held run stays whole, for somebody has to decide.
    An alert goes when it had recovered before, and whoever is to know was told.

    Args:
        tx: An open transaction.
        before: The instant.
        dry_run: Count, and write nothing.

    Returns:
        How many runs and how many rejects.
    """
    # By condition and not by a list of ids, of which no statement takes as many as a ledger may have in years.
    old = RUNS.c.scored_at < before
    superseded = sa.and_(old, RUNS.c.status == "superseded")
    of_rejected = REJECTS.c.run_id.in_(_ids(sa.and_(old, RUNS.c.status.in_(("superseded", "published")))))
    counts = [
        int(tx.execute(sa.select(sa.func.count()).select_from(table).where(condition)).scalar_one())
        for table, condition in ((RUNS, superseded), (REJECTS, of_rejected))
    ]
    if not dry_run:
        tx.execute(sa.delete(REJECTS).where(of_rejected))
        for table in (CHUNKS, PROFILES, DRIFT, TALLIES):
            tx.execute(sa.delete(table).where(table.c.run_id.in_(_ids(superseded))))
        tx.execute(sa.delete(RUNS).where(superseded))
        over = sa.and_(ALERTS.c.state == "recovered", sa.not_(ALERTS.c.due), ALERTS.c.last_at < before)
        tx.execute(sa.delete(ALERTS).where(over))
    return counts[0], counts[1]


def abandoned(tx: sa.Connection, before: datetime) -> list[Run]:
    """The unfinished runs begun before an instant that nobody has the lease of, and none that may be in a Delta table.

    Of such a one the next command that scores finds out, and needs what there is of it.
    """
    old = select_runs(tx, _unfinished(), RUNS.c.scored_at < before)
    return [run for run in old if is_free(tx, run.job, run.interval)]


def forget_work(tx: sa.Connection, run: Run, *, dry_run: bool = False) -> tuple[bool, int] | None:
    """Forget the chunks and rejects of an unfinished run, which begins anew if it is ever taken up; its line stays.

    Args:
        tx: A transaction that has checked the interval's lease, unless it writes nothing.
        run: The run, as it was when nobody had the lease.
        dry_run: Count, and write nothing.

    Returns:
        Whether it had any chunk, and how many rejects; None for a run that has ended or gone since, or may be in a
        Delta table, which keeps all.
    """
    if not select_runs(tx, RUNS.c.run_id == run.run_id, _unfinished()):
        return None
    had_chunks = tx.execute(sa.select(CHUNKS.c.run_id).where(CHUNKS.c.run_id == run.run_id).limit(1)).first()
    rejects = rejects_kept(tx, run.run_id)
    if not dry_run:
        forget_chunks(tx, run.run_id)
        forget_rejects(tx, run.run_id)
    return had_chunks is not None, rejects


def stages_in_use(tx: sa.Connection) -> set[str]:
    """The stages of runs that may still be published."""
    return {run.stage for run in select_runs(tx, RUNS.c.status.in_((*_UNFINISHED, "held")))}


def _unfinished() -> sa.ColumnElement[bool]:
    return sa.and_(RUNS.c.status.in_(_UNFINISHED), sa.or_(RUNS.c.ticket.is_(None), sa.not_(in_doubt())))


def _ids(condition: sa.ColumnElement[bool]) -> sa.Select[tuple[str]]:
    return sa.select(RUNS.c.run_id).where(condition)
