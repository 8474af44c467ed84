"""What the ledger knows of a job's runs over some time, read once, for whoever tells it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, Self

import sqlalchemy as sa

from batchscore import ledger
from batchscore.interval import Calendar, Interval
from batchscore.job import Job
from batchscore.ledger import Run
from batchscore.model.bundle import Bundle
from batchscore.monitor import findings, moves
from batchscore.monitor.apart import ALL_COLUMNS
from batchscore.monitor.findings import Finding
from batchscore.monitor.pooled import Pooled, Sliced, pooled, worst_slices
from batchscore.monitor.verdict import FEWEST_ROWS
from batchscore.monitor.watch import Watcher

__all__ = ["RECENT", "History"]

# So many of the last runs are compared as one: a single day is often unlike others, four weeks hold each weekday alike.
RECENT = 28
"""How many of the last runs are taken together."""
# So many slices are shown.
_WORST = 8

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class History:
    """A job's runs over some time, and what is known of them.

    Attributes:
        job: The job.
        runs: All of them, by interval and then by age.
        until: The instant by which every interval that has ended should be published.
        bundles: What scored them, by digest; without those that the registry no longer holds.
        drift: Rows of `batchscore_drift` of the published ones, by the metrics that are judged; of columns that are
            private by now those that depend on no value.
        seen: Rows of `batchscore_profiles` of the published ones.
        performance: Rows of `batchscore_performance` of their intervals, of all rows, for the cohort `scored`.
        arrivals: The same for the cohort `labelled`.
        slices: The slices of the last runs by which the metric of the problem is worst.
        months: Labelled predictions by version and month.
        rejects: How many rows of the published ones were rejected, by run, stage, reason and detail.
        findings: What changed and what to do, the most urgent first.
    """

    job: Job
    runs: Sequence[Run]
    until: datetime
    bundles: Mapping[str, Bundle]
    drift: Rows
    seen: Rows
    performance: Rows
    arrivals: Rows
    slices: Sequence[Sliced]
    months: Sequence[Pooled]
    rejects: Rows
    findings: Sequence[Finding]

    @classmethod
    def of(
        cls, tx: sa.Connection, job: Job, runs: Sequence[Run], bundles: Mapping[str, Bundle], until: datetime
    ) -> Self:
        """Read all that is known of these runs.

        Args:
            tx: An open transaction on the ledger.
            job: The job.
            runs: By interval and then by age.
            bundles: What scored them, by digest, as far as it is there.
            until: The instant by which every interval that has ended should be published.
        """
        published = [run for run in runs if run.status == "published"]
        ids = [run.run_id for run in published]
        if not ids:
            # There may be no ledger yet.
            told = findings.in_order(findings.of_runs(runs, job.calendar, until))
            return cls(job, runs, until, bundles, [], [], [], [], [], [], [], told)
        drift, seen = _shown(job, published, bundles, ledger.judged_of(tx, ids)), ledger.profiles_of(tx, *ids)
        of_all = ledger.performance_of(tx, job.name, published[0].interval.start, published[-1].interval.end)
        whole = [row for row in of_all if not row["slice_column"]]
        performance = [row for row in whole if row["cohort"] == "scored"]
        arrivals = [row for row in whole if row["cohort"] == "labelled"]
        tallies = ledger.tallies_of(tx, ids)
        months = list(_months(job, published, bundles, tallies))
        rejects = ledger.reject_counts(tx, ids)
        of_metric = [row for row in performance if row["metric"] == job.problem.metric]
        measured = [row for row in of_metric if row["kind"] == "measured"]
        found = [
            *findings.of_runs(runs, job.calendar, until),
            *findings.of_alerts(job.name, ledger.alerts_of(tx, job.name)),
            *findings.causes_first(
                list(_of_performance(job, measured, months, published, bundles)),
                list(_of_columns(tx, job, published, bundles, drift, seen)),
                job.calendar,
            ),
            *findings.of_labels(measured, job.calendar),
            *_of_evaluations(job, published, bundles, performance, {row["run_id"] for row in tallies}),
            *findings.of_rejects(published, rejects, job.calendar),
        ]
        told = findings.in_order(found)
        slices = _slices(tx, job, published, bundles)
        return cls(job, runs, until, bundles, drift, seen, performance, arrivals, slices, months, rejects, told)

    @property
    def published(self) -> list[Run]:
        """Those that are published, by interval."""
        return [run for run in self.runs if run.status == "published"]


def _shown(job: Job, published: Sequence[Run], bundles: Mapping[str, Bundle], drift: Rows) -> Rows:
    """Without what was measured of the values of columns that are private by now; by hashes it may have been."""
    digest_of = {run.run_id: run.bundle_digest for run in published}
    hashed = {
        (digest, name)
        for digest, bundle in bundles.items()
        for name, layout in bundle.input_reference.layouts.items()
        if layout.kind == "private" and layout.salt
    }
    return [
        row
        for row in drift
        if row["metric"] == "null_share"
        or row["column_name"] not in job.source.private
        or (digest_of[row["run_id"]], row["column_name"]) in hashed
    ]


def _slices(tx: sa.Connection, job: Job, published: Sequence[Run], bundles: Mapping[str, Bundle]) -> Sequence[Sliced]:
    """The worst slices of the last runs of the version that scored last."""
    bundle = bundles.get(published[-1].bundle_digest)
    if bundle is None:
        return []
    ids = [run.run_id for run in published if run.bundle_digest == bundle.digest][-RECENT:]
    slices = (ledger.slice_tallies_of(tx, ids, *each) for each in ledger.slices_of(tx, ids, FEWEST_ROWS))
    return worst_slices(bundle, slices, job.problem.metric, _WORST)


def _months(job: Job, published: Sequence[Run], bundles: Mapping[str, Bundle], tallies: Rows) -> Iterator[Pooled]:
    months = Calendar("month", job.calendar.zone)

    def month_of(run: Run) -> tuple[str, datetime]:
        return run.bundle_digest, months.containing(run.interval.start).start

    for (digest, _), some in groupby(published, month_of):
        if digest in bundles and (found := pooled(bundles[digest], list(some), tallies, job.performance.mature)):
            yield found


def _of_columns(
    tx: sa.Connection,
    job: Job,
    published: Sequence[Run],
    bundles: Mapping[str, Bundle],
    drift: Rows,
    seen: Rows,
) -> Iterator[Finding]:
    """Findings of the runs of the version that scored last."""
    bundle = bundles.get(published[-1].bundle_digest)
    if bundle is None:
        return
    runs = [run for run in published if run.bundle_digest == bundle.digest]
    reference = bundle.input_reference.columns
    usual = {name: column.null_share for name, column in reference.items()}
    gone = moves.gone_from(runs, seen, usual)
    yield from moves.of_nulls(runs, gone, job.calendar)
    watcher = Watcher(job, bundle)
    recent = runs[-RECENT:]
    training, before = (watcher.compare(tx, recent, against) for against in ("training", "previous"))
    # What was missing for a day long ago says nothing of more NULLs now.
    lately = moves.gone_lately(gone, len(runs) - len(recent))
    since = moves.moved_since(runs, drift)
    known = runs[-2 * RECENT :][0].interval.start
    late = {which: start for which, start in since.items() if start > known and which[1] != ALL_COLUMNS}
    steps = list(_steps(tx, watcher, runs, late, seen))
    means = _means(bundle, recent, seen)
    yield from moves.of_columns(training, before, means, since, job.calendar, lately, steps)
    yield from moves.of_rows(runs[-1], drift, job.calendar)


def _steps(
    tx: sa.Connection, watcher: Watcher, runs: Sequence[Run], late: Mapping[tuple[str, str], datetime], seen: Rows
) -> Iterator[moves.Step]:
    """What each column that has moved since some run is since then."""
    for start in sorted(set(late.values())):
        some = [run for run in runs if run.interval.start >= start]
        found, means = watcher.compare(tx, some).found, _means(watcher.bundle, some, seen)
        for (role, name), began in late.items():
            moved = [
                each
                for each in found
                if (each.role, each.drift.column) == (role, name) and each.drift.verdict == "moved"
            ]
            if began == start and moved:
                last = (row for row in seen if row["run_id"] == some[-1].run_id and row["column_name"] == name)
                unseen: dict[str, int] = next((json.loads(row["profile"]).get("unseen", {}) for row in last), {})
                if name in watcher.job.source.private:
                    unseen = {}
                yield moves.Step(some, max(moved, key=lambda each: each.strength), means.get(name), unseen)


def _means(bundle: Bundle, runs: Sequence[Run], seen: Rows) -> dict[str, tuple[float, float]]:
    """The mean of each number over these runs, and in training."""
    ids = {run.run_id for run in runs}
    totals: dict[str, tuple[float, int]] = {}
    for row in seen:
        if row["run_id"] in ids and row["mean"] is not None:
            rows = row["row_count"] - row["null_count"]
            total, count = totals.get(row["column_name"], (0.0, 0))
            totals[row["column_name"]] = (total + row["mean"] * rows, count + rows)
    found = {}
    for profile in (bundle.input_reference, bundle.output_reference):
        for name, column in profile.columns.items():
            total, count = totals.get(name, (0.0, 0))
            if column.layout.kind in ("numeric", "integer") and column.mean is not None and count:
                found[name] = (total / count, column.mean)
    return found


def _of_evaluations(
    job: Job, published: Sequence[Run], bundles: Mapping[str, Bundle], performance: Rows, tallied: Collection[str]
) -> Iterator[Finding]:
    """Of runs that could be held against labels: the job has some, and what scored them is there."""
    if job.labels is not None:
        measured = {row["window_start"] for row in performance if row["kind"] == "measured"}
        runs = [run for run in published if run.bundle_digest in bundles]
        yield from findings.of_unevaluated(runs, tallied, measured, job.calendar)


def _of_performance(
    job: Job, measured: Rows, months: Sequence[Pooled], published: Sequence[Run], bundles: Mapping[str, Bundle]
) -> Iterator[Finding]:
    metric = job.problem.metric
    if bundle := bundles.get(published[-1].bundle_digest):
        of_it = [row for row in measured if (row["model_name"], row["model_version"]) == (bundle.name, bundle.version)]
        worse = [Interval(row["window_start"], row["window_end"]) for row in of_it if row["verdict"] == "worse"]
        yield from findings.of_performance(months, metric, bundle, job.calendar, worse)
