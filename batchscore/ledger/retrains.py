"""Retrainings: which reason led to which version, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from batchscore.ledger.tables import RETRAINS, insert_new

__all__ = ["last_retrained", "record_retrain", "retrained_for"]


def retrained_for(tx: sa.Connection, job: str, window_end: datetime) -> dict[str, str]:
    """The reasons for which the job was trained on rows up to that instant, each with what was decided, in words."""
    c = RETRAINS.c
    query = sa.select(c.reason, c.told).where(c.job == job, c.window_end == window_end)
    return {row.reason: row.told for row in tx.execute(query)}


def last_retrained(tx: sa.Connection, job: str) -> tuple[datetime, str] | None:
    """When `retrain` last trained the job, and what was decided, in words; None where it never did."""
    c = RETRAINS.c
    # Ordered here and not MAX: SQLite has no type for what a function gives.
    query = sa.select(c.decided_at, c.told).where(c.job == job).order_by(c.decided_at.desc()).limit(1)
    row = tx.execute(query).one_or_none()
    return None if row is None else (row.decided_at, row.told)


def record_retrain(
    tx: sa.Connection, job: str, window_end: datetime, reasons: Sequence[str], facts: Mapping[str, Any]
) -> None:
    """Keep what became of a training, a row of `batchscore_retrains` for each reason; `facts` are its other columns."""
    for reason in reasons:
        insert_new(tx, RETRAINS, {"job": job, "window_end": window_end, "reason": reason, **facts})
