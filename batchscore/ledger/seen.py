"""What published runs saw, and how it compares with training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from batchscore.ledger.runs import Run, history
from batchscore.ledger.tables import DRIFT, PROFILES, RUNS

__all__ = ["drift_of", "profiles_of", "runs_without_drift", "save_drift"]


def profiles_of(tx: sa.Connection, run_id: str) -> list[Mapping[str, Any]]:
    """The merged profile of a published run, one row of `batchscore_profiles` a column."""
    return [dict(row) for row in tx.execute(sa.select(PROFILES).where(PROFILES.c.run_id == run_id)).mappings()]


def save_drift(tx: sa.Connection, run_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace what is known of a run's drift. Rows of `batchscore_drift` without `run_id`."""
    tx.execute(sa.delete(DRIFT).where(DRIFT.c.run_id == run_id))
    listed = [{"run_id": run_id, **row} for row in rows]
    if listed:
        tx.execute(sa.insert(DRIFT), listed)


def drift_of(tx: sa.Connection, run_id: str) -> list[Mapping[str, Any]]:
    """How a run's columns compare with training, by role, column and metric."""
    c = DRIFT.c
    query = sa.select(DRIFT).where(c.run_id == run_id).order_by(c.role, c.column_name, c.metric)
    return [dict(row) for row in tx.execute(query).mappings()]


def runs_without_drift(tx: sa.Connection, job: str, bundle_digest: str) -> list[Run]:
    """The job's published runs of a bundle that were never compared with training: a process died before it could."""
    compared = sa.exists().where(DRIFT.c.run_id == RUNS.c.run_id)
    published = sa.and_(RUNS.c.job == job, RUNS.c.bundle_digest == bundle_digest, RUNS.c.status == "published")
    missing = set(tx.execute(sa.select(RUNS.c.run_id).where(published, ~compared)).scalars())
    return [run for run in history(tx, job) if run.run_id in missing] if missing else []
