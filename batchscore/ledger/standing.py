"""How a job stands: what it has published, ever and last, how that drifted, and how good it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from batchscore.ledger.runs import Run, select_runs
from batchscore.ledger.seen import drift_of
from batchscore.ledger.tables import PERFORMANCE, RUNS

__all__ = ["Standing", "standing"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What the ledger knows of a job.

    Attributes:
        runs: How many runs were ever published, those replaced and pruned since among them.
        rows: How many rows they read.
        last: The published run of the latest interval; None before there is one.
        drift: How that one compares, as rows of `batchscore_drift`.
        performance: Rows of `batchscore_performance` over all rows of the latest mature window of each kind.
    """

    runs: int
    rows: int
    last: Run | None
    drift: Sequence[Mapping[str, Any]]
    performance: Sequence[Mapping[str, Any]]


def standing(tx: sa.Connection, job: str) -> Standing:
    """How a job stands now."""
    c = RUNS.c
    published = sa.and_(c.job == job, c.status == "published")
    # An interval's first run has revision 0, and its published run is never pruned: neither sum ever falls.
    counts = sa.select(sa.func.sum(c.revision + 1), sa.func.sum(c.rows_so_far)).where(published)
    runs, rows = tx.execute(counts).one()
    latest = sa.select(sa.func.max(c.interval_start)).where(published).scalar_subquery()
    found = select_runs(tx, published, c.interval_start == latest)
    last = max(found, key=lambda run: run.scored_at, default=None)
    drift = drift_of(tx, last.run_id) if last else []
    return Standing(int(runs or 0), int(rows or 0), last, drift, _performance(tx, job))


def _performance(tx: sa.Connection, job: str) -> list[Mapping[str, Any]]:
    c = PERFORMANCE.c
    mature = sa.and_(c.job == job, c.cohort == "scored", c.slice_column == "", c.state == "mature")
    latest = sa.select(c.kind, sa.func.max(c.window_start).label("latest")).where(mature).group_by(c.kind).subquery()
    same = sa.and_(latest.c.kind == c.kind, latest.c.latest == c.window_start)
    # Where two versions predicted in that window, the later one is what scores now.
    query = sa.select(PERFORMANCE).join(latest, same).where(mature).order_by(c.kind, c.metric, c.model_version)
    by_metric = {(row["kind"], row["metric"]): dict(row) for row in tx.execute(query).mappings()}
    return list(by_metric.values())
