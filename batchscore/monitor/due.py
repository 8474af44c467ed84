"""Whether there is a reason to train anew: what a condition of `retrain` finds in the ledger and among the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from batchscore.interval import Interval
from batchscore.job import Job
from batchscore.ledger import Run
from batchscore.model.bundle import Bundle
from batchscore.monitor.labelled import Evaluator
from batchscore.monitor.verdict import FEWEST_ROWS, bound_of, worse
from batchscore.monitor.watch import Watcher
from batchscore.problem import better
from batchscore.sources import Source, read_frame
from batchscore.warehouse import Warehouse

__all__ = ["Reason", "degraded", "drifted", "new_labels", "older_than"]

# Of the columns by importance: what moves in one that the model hardly reads is no reason to train.
_MOST_IMPORTANT = 5


@dataclass(frozen=True, slots=True)
class Reason:
    """A condition, whether it holds, and its figures in words."""

    name: str
    holds: bool
    told: str


def older_than(bundle: Bundle, age: timedelta, now: datetime) -> Reason:
    """Whether the version was made longer ago than that."""
    made = datetime.fromisoformat(bundle.manifest.created_at)
    old = now - made
    told = f"{bundle} is {old.days} day(s) and {old.seconds // 3600} hour(s) old, and {_days(age)} is the bound"
    return Reason("older-than", old >= age, told)


def new_labels(job: Job, bundle: Bundle, labels: Source, end: datetime, at_least: int) -> Reason:
    """Whether so many labels are known, up to `end`, of rows behind those that the version learned from."""
    since = datetime.fromisoformat(bundle.manifest.training.end)
    count = 0
    if since < end:
        wanted = dict.fromkeys((*job.source.key, job.problem.target))
        known = read_frame(labels, Interval(since, end), key=job.source.key, columns=wanted)
        count = known.height - known[job.problem.target].null_count()
    told = f"{count:,} labels since {since:%Y-%m-%d %H:%MZ}, and {at_least:,} are the bound"
    return Reason("new-labels", count >= at_least, told)


def drifted(tx: sa.Connection, job: Job, bundle: Bundle, runs: Sequence[Run]) -> Reason:
    """Whether predictions, scores or the most important columns have moved against training over these runs, merged."""
    compared = Watcher(job, bundle).compare(tx, runs)
    if not compared.runs:
        return Reason("drifted", False, f"no published run of {bundle} to look at")
    important = {each.column for each in bundle.evaluation.importance[:_MOST_IMPORTANT]}
    counted = [each.drift for each in compared.found if each.role == "output" or each.drift.column in important]
    judged = [drift for drift in counted if drift.verdict != "not judged"]
    moved = {drift.column for drift in judged if drift.verdict == "moved"}
    over = f"over the last {len(compared.runs)} run(s) of {bundle}"
    if all(drift.verdict == "not enough data" for drift in judged):
        rows = sum(run.rows_read or 0 for run in compared.runs)
        return Reason("drifted", False, f"{rows:,} rows were read {over}, too few to tell whether anything has moved")
    if not moved:
        return Reason("drifted", False, f"neither predictions nor the most important columns have moved {over}")
    return Reason("drifted", True, f"{', '.join(sorted(moved))} moved {over}")


def degraded(warehouse: Warehouse, evaluator: Evaluator, runs: Sequence[Run]) -> Reason:
    """Whether the metric over these runs is worse than at training by more than chance.

    What is worse is said by `verdict.worse`. At least 200 of their rows must have a label. Labels are read outside of
    any transaction on the warehouse.
    """
    bundle, metric = evaluator.bundle, evaluator.job.problem.metric
    trained = bundle.evaluation.test.get(metric)
    if not runs or trained is None:
        return Reason("degraded", False, f"no published run of {bundle} to look at, or no {metric} at training")
    seen = evaluator.together(warehouse, runs, resample=True)
    over = f"over the last {len(runs)} run(s) of {bundle}"
    value = seen.metrics.get(metric)
    scatter = bundle.evaluation.scatter.get(metric, 0.0)
    bound = bound_of(metric, trained, scatter)
    best = None if value is None else value.low if better(metric) == "lower" else value.high
    if value is None or best is None or bound is None or seen.labelled < FEWEST_ROWS:
        told = f"{seen.labelled:,} of {seen.predictions:,} rows have a label {over}, too few for {metric}"
        return Reason("degraded", False, told)
    told = (
        f"{metric} is {value.value:.4f} on {seen.labelled:,} labelled rows {over}, at best {best:.4f}, and "
        f"{bound:.4f} is the bound"
    )
    return Reason("degraded", bool(worse(metric, value, trained, scatter)), told)


def _days(age: timedelta) -> str:
    return f"{age.days} day(s)" if not age.seconds else f"{age.days * 24 + age.seconds // 3600} hour(s)"
