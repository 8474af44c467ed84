"""What published runs saw, and how it compares with training and with runs before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from batchscore.ledger.runs import Run, history
from batchscore.ledger.tables import DRIFT, PROFILES, RUNS

__all__ = [
    "drift_of",
    "forget_drift",
    "is_compared",
    "judged_of",
    "lock_run",
    "moves_of",
    "profiles_of",
    "runs_without_drift",
    "texts_of",
    "told_since",
    "values_of",
]

_MOST_BEFORE = 100


def profiles_of(tx: sa.Connection, *run_ids: str) -> list[Mapping[str, Any]]:
    """The merged profiles of published runs, one row of `batchscore_profiles` for each run and column."""
    return [dict(row) for row in tx.execute(sa.select(PROFILES).where(PROFILES.c.run_id.in_(run_ids))).mappings()]


def texts_of(tx: sa.Connection, *run_ids: str) -> list[tuple[str, str, str, str]]:
    """The same, no more of each than run, role, column and the profile itself."""
    c = PROFILES.c
    query = sa.select(c.run_id, c.role, c.column_name, c.profile).where(c.run_id.in_(run_ids))
    return [(run_id, role, name, profile) for run_id, role, name, profile in tx.execute(query)]


def lock_run(tx: sa.Connection, run_id: str) -> None:
    """Keep others from writing how a run compares until the transaction ends; wait while another does."""
    # An UPDATE that changes nothing, for not every database has SELECT … FOR UPDATE. DuckDB admits one process, and two
    # of its transactions that write one row conflict instead of waiting.
    if tx.dialect.name != "duckdb":
        tx.execute(sa.update(RUNS).where(RUNS.c.run_id == run_id).values(revision=RUNS.c.revision))


def is_compared(tx: sa.Connection, run_id: str) -> bool:
    """Whether it is known how a run compares."""
    return tx.execute(sa.select(DRIFT.c.run_id).where(DRIFT.c.run_id == run_id).limit(1)).first() is not None


def forget_drift(tx: sa.Connection, run_id: str, metric: str | None = None) -> None:
    """Forget how a run compares, by all metrics or one.

    What takes its place is some hundred rows, which the warehouse loads in bulk.
    """
    one = sa.true() if metric is None else DRIFT.c.metric == metric
    tx.execute(sa.delete(DRIFT).where(DRIFT.c.run_id == run_id, one))


def drift_of(tx: sa.Connection, run_id: str) -> list[Mapping[str, Any]]:
    """How a run's columns compare with each reference, by reference, role, column and metric."""
    c = DRIFT.c
    query = sa.select(DRIFT).where(c.run_id == run_id).order_by(c.reference, c.role, c.column_name, c.metric)
    return [dict(row) for row in tx.execute(query).mappings()]


def judged_of(tx: sa.Connection, run_ids: Collection[str]) -> list[Mapping[str, Any]]:
    """How the columns of these runs compare with each reference, by the metrics that are judged, in no order."""
    judged = sa.select(DRIFT).where(DRIFT.c.run_id.in_(run_ids), DRIFT.c.band.is_not(None))
    return [dict(row) for row in tx.execute(judged).mappings()]


def values_of(tx: sa.Connection, run_ids: Collection[str]) -> dict[tuple[str, str, str, str], dict[str, float | None]]:
    """The value in each of these runs of each reference, role, column and metric."""
    c = DRIFT.c
    rows = sa.select(c.reference, c.role, c.column_name, c.metric, c.run_id, c.value).where(c.run_id.in_(run_ids))
    found: dict[tuple[str, str, str, str], dict[str, float | None]] = {}
    for *which, run_id, value in tx.execute(rows):
        found.setdefault((which[0], which[1], which[2], which[3]), {})[run_id] = value
    return found


def moves_of(tx: sa.Connection, run_ids: Collection[str]) -> Counter[tuple[str, str, str, str]]:
    """In how many of these runs each reference, role, column and metric has moved."""
    c = DRIFT.c
    moved = sa.select(c.reference, c.role, c.column_name, c.metric).where(c.run_id.in_(run_ids), c.verdict == "moved")
    return Counter((reference, role, column, metric) for reference, role, column, metric in tx.execute(moved))


def told_since(tx: sa.Connection, run: Run, told: Collection[tuple[str, str]]) -> dict[tuple[str, str], datetime]:
    """Since which interval each column is told in every published run of a job and table that could be judged.

    No more than the last 100 runs are looked at, for the others are many.

    Args:
        tx: An open transaction.
        run: The run up to which.
        told: Role and name of columns that are told of it.
    """
    c = DRIFT.c
    if not told:
        return {}
    published = sa.and_(RUNS.c.job == run.job, RUNS.c.output_table == run.output_table, RUNS.c.status == "published")
    runs = sa.select(RUNS.c.run_id, RUNS.c.interval_start).where(published)
    lately = runs.where(RUNS.c.interval_start <= run.interval.start).order_by(RUNS.c.interval_start.desc())
    starts = {row.run_id: row.interval_start for row in tx.execute(lately.limit(_MOST_BEFORE))}
    query = (
        sa.select(c.run_id, c.role, c.column_name, sa.func.max(sa.case((c.told, 1), else_=0)))
        .where(c.run_id.in_(starts), c.verdict.in_(("moved", "steady")))
        .where(c.column_name.in_({name for _, name in told}))
        .group_by(c.run_id, c.role, c.column_name)
    )
    found: dict[tuple[str, str], datetime] = {}
    over: set[tuple[str, str]] = set()
    rows = sorted(tx.execute(query).all(), key=lambda row: starts[row[0]], reverse=True)
    for run_id, role, name, was_told in rows:
        if was_told and (role, name) not in over:
            found[role, name] = starts[run_id]
        else:
            over.add((role, name))
    return {which: found.get(which, run.interval.start) for which in told}


def runs_without_drift(tx: sa.Connection, job: str, bundle_digest: str) -> list[Run]:
    """The job's published runs of a bundle that were never compared with training: a process died before it could."""
    compared = sa.exists().where(DRIFT.c.run_id == RUNS.c.run_id)
    published = sa.and_(RUNS.c.job == job, RUNS.c.bundle_digest == bundle_digest, RUNS.c.status == "published")
    missing = set(tx.execute(sa.select(RUNS.c.run_id).where(published, ~compared)).scalars())
    return [run for run in history(tx, job) if run.run_id in missing] if missing else []
