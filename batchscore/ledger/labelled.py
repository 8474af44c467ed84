"""What became of predictions once labels were known."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from batchscore.ledger.runs import Run
from batchscore.ledger.tables import PERFORMANCE, RUNS, TALLIES

__all__ = [
    "estimates_of",
    "forget_performance",
    "forget_replaced",
    "forget_tallies",
    "judged_last",
    "performance_of",
    "runs_with_tallies",
    "slice_tallies_of",
    "slices_of",
    "tallied_from",
    "tallies_known",
    "tallies_of",
    "worse_since",
]


def tallied_from(tx: sa.Connection, run_id: str) -> set[datetime]:
    """From when on the labels in the tallies of a run were known."""
    return set(tx.execute(sa.select(TALLIES.c.known_from).where(TALLIES.c.run_id == run_id)).scalars())


def forget_tallies(tx: sa.Connection, run_id: str) -> None:
    """Forget the tallies of a run."""
    tx.execute(sa.delete(TALLIES).where(TALLIES.c.run_id == run_id))


def runs_with_tallies(tx: sa.Connection, job: str) -> set[str]:
    """The ids of the job's runs of which there are tallies."""
    query = sa.select(TALLIES.c.run_id).join(RUNS, RUNS.c.run_id == TALLIES.c.run_id).where(RUNS.c.job == job)
    return set(tx.execute(query).scalars())


def tallies_known(tx: sa.Connection, job: str, bundle_digest: str, known_from: datetime) -> list[Mapping[str, Any]]:
    """Rows of `batchscore_tallies` of the job's published runs of a bundle, for labels that became known then."""
    query = (
        sa.select(TALLIES)
        .join(RUNS, RUNS.c.run_id == TALLIES.c.run_id)
        .where(
            RUNS.c.job == job,
            RUNS.c.bundle_digest == bundle_digest,
            RUNS.c.status == "published",
            TALLIES.c.known_from == known_from,
        )
        .order_by(RUNS.c.interval_start)
    )
    return [dict(row) for row in tx.execute(query).mappings()]


def tallies_of(tx: sa.Connection, run_ids: Collection[str]) -> list[Mapping[str, Any]]:
    """Rows of `batchscore_tallies` of these runs, of all their rows and not by slice, by run and arrival."""
    c = TALLIES.c
    query = sa.select(TALLIES).where(c.run_id.in_(run_ids), c.slice_column == "").order_by(c.run_id, c.known_from)
    return [dict(row) for row in tx.execute(query).mappings()]


def slices_of(tx: sa.Connection, run_ids: Collection[str], least: int) -> list[tuple[str, str]]:
    """Column and value of the slices of which so many labels or more of these runs are known."""
    c = TALLIES.c
    which = (c.slice_column, c.slice_value)
    query = sa.select(*which).where(c.run_id.in_(run_ids), c.slice_column != "").group_by(*which)
    found = tx.execute(query.having(sa.func.sum(c.labelled) >= least).order_by(*which))
    return [(column, value) for column, value in found]


def slice_tallies_of(tx: sa.Connection, run_ids: Collection[str], column: str, value: str) -> list[Mapping[str, Any]]:
    """Rows of `batchscore_tallies` of these runs of one slice; those of all slices of a year are hundreds of MB."""
    c = TALLIES.c
    of_it = (c.run_id.in_(run_ids), c.slice_column == column, c.slice_value == value, c.labelled > 0)
    return [dict(row) for row in tx.execute(sa.select(TALLIES).where(*of_it)).mappings()]


def forget_performance(tx: sa.Connection, which: Mapping[str, Any]) -> None:
    """Forget what is there with these values; what takes its place is some hundred rows, loaded in bulk."""
    tx.execute(sa.delete(PERFORMANCE).where(*(PERFORMANCE.c[name] == value for name, value in which.items())))


def estimates_of(tx: sa.Connection, job: str, run: Run) -> dict[str, Mapping[str, Any]]:
    """What is estimated of a published run: rows of `batchscore_performance`, by metric."""
    c = PERFORMANCE.c
    query = sa.select(PERFORMANCE).where(
        c.job == job,
        c.cohort == "scored",
        c.kind == "estimated",
        c.window_start == run.interval.start,
        c.model_name == run.model_name,
        c.model_version == run.model_version,
    )
    return {row["metric"]: dict(row) for row in tx.execute(query).mappings()}


def forget_replaced(tx: sa.Connection, job: str, run: Run) -> None:
    """Forget the performance of other versions in the interval of a published run, which has replaced theirs."""
    c = PERFORMANCE.c
    theirs = sa.or_(c.model_name != run.model_name, c.model_version != run.model_version)
    ours = sa.and_(c.job == job, c.cohort == "scored", c.window_start == run.interval.start)
    tx.execute(sa.delete(PERFORMANCE).where(ours, theirs))


def judged_last(tx: sa.Connection, job: str, kind: str) -> list[Mapping[str, Any]]:
    """Rows of `batchscore_performance` of the last interval with a verdict on all rows: of one version, by metric."""
    c = PERFORMANCE.c
    judged = sa.and_(c.job == job, c.cohort == "scored", c.kind == kind, c.verdict.in_(("worse", "as good")))
    last = sa.select(sa.func.max(c.window_start)).where(judged).scalar_subquery()
    query = sa.select(PERFORMANCE).where(judged, c.window_start == last).order_by(c.model_version.desc(), c.metric)
    rows = [dict(row) for row in tx.execute(query).mappings()]
    return [row for row in rows if all(row[name] == rows[0][name] for name in ("model_name", "model_version"))]


def worse_since(tx: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> dict[str, datetime]:
    """Since which interval each metric is worse in every interval with a verdict, by metric.

    Args:
        tx: An open transaction.
        rows: Rows of `batchscore_performance` of one job, window, version and kind, each `worse`.
    """
    c, last = PERFORMANCE.c, rows[0]
    of_it = (c[name] == last[name] for name in ("job", "cohort", "kind", "model_name", "model_version"))
    judged = (c.slice_column == "", c.verdict.in_(("worse", "as good")), c.window_start <= last["window_start"])
    metrics = c.metric.in_([row["metric"] for row in rows])
    query = sa.select(c.metric, c.window_start, c.verdict).where(*of_it, *judged, metrics)
    found: dict[str, datetime] = {}
    over: set[str] = set()
    for metric, start, verdict in tx.execute(query.order_by(c.window_start.desc())):
        if verdict == "worse" and metric not in over:
            found[metric] = start
        else:
            over.add(metric)
    return found


def performance_of(tx: sa.Connection, job: str, start: datetime, end: datetime) -> list[Mapping[str, Any]]:
    """Rows of `batchscore_performance` of windows that start in `[start, end)`, by cohort, window, slice and metric."""
    c = PERFORMANCE.c
    query = sa.select(PERFORMANCE).where(c.job == job, c.window_start >= start, c.window_start < end)
    ordered = query.order_by(c.cohort, c.window_start, c.model_version, c.slice_column, c.slice_value, c.metric)
    return [dict(row) for row in tx.execute(ordered).mappings()]
