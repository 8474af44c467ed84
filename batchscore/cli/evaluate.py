"""`batchscore evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from batchscore import ledger
from batchscore.cli.alerts import alerting
from batchscore.cli.render import Cell, Format, intervals_progress, on_terminal, show
from batchscore.cli.session import Session, runs_of
from batchscore.errors import BundleIncompatible, BundleNotFound
from batchscore.interval import Calendar, Interval
from batchscore.job import Job
from batchscore.ledger import Run
from batchscore.logs import redacted
from batchscore.model.bundle import Bundle
from batchscore.monitor.findings import intervals_told
from batchscore.monitor.labelled import Evaluator, Performance
from batchscore.monitor.pooled import worst_slices
from batchscore.monitor.verdict import FEWEST_ROWS
from batchscore.run.scoring import output_of
from batchscore.sources import Source
from batchscore.warehouse import Warehouse

__all__ = ["evaluate"]

# Labels come late, and those of earlier intervals have come.
_LAST = 31
_WORST = 8
# What a narrow terminal does without first, behind what every row says alike.
_SPARE = ("predictions", ("estimated_low", "estimated_high"), "estimated", "labelled", "coverage", ("low", "high"))
_ESTIMATED = {"": "value", "_low": "low", "_high": "high"}

Estimates = Mapping[str, Mapping[str, Any]]


def evaluate(
    session: Session, name: str, first: str | None, last: str | None, everything: bool, format_: Format
) -> None:
    """Hold published predictions against the labels that are known by now, keep the metrics, and print them.

    Raises:
        UsageError: The job has no labels, or the window is none.
        WarehouseError: Output table, ledger or labels cannot be read or written.
    """
    job = session.job(name)
    labels = session.labels(job)
    start, end = job.calendar.window(first, last)
    with session.warehouse() as warehouse, alerting(session, warehouse, job, looks=True):
        session.settle(warehouse, job)
        history = runs_of(warehouse, job)
        runs = [run for run in history if run.status == "published"]
        if start or end:
            runs = [run for run in runs if (start or run.interval.start) <= run.interval.start < (end or session.now)]
        else:
            runs = _lately(runs, job.calendar)
        replaced = _replaced(warehouse, job, history)
        again = {run.interval for run in replaced} - {run.interval for run in runs}
        also = [run for run in history if run.status == "published" and run.interval in again]
        rows: list[dict[str, Cell]] = []
        # What the module inside a bundle prints is not the answer.
        with (
            intervals_progress(len(runs) + len(also), job.name) as (next_interval, more_rows),
            redirect_stdout(sys.stderr) if not on_terminal() else nullcontext(),
        ):
            evaluators = _Evaluators(session, job, labels)
            chosen = [(run, evaluator) for run in (*runs, *also) if (evaluator := evaluators.of(run))]
            for output in {evaluator.output for _, evaluator in chosen}:
                warehouse.check(output)
            if chosen:
                session.patience().persist(lambda: warehouse.create(ledger.METADATA))
            for run, evaluator in chosen:
                next_interval(job.calendar.label(run.interval))
                told = _evaluated(session, warehouse, evaluator, run, everything=everything)
                rows += told if run.interval not in again else []
                more_rows(run.predictions or 0)
            if chosen:
                # Behind what takes their place: whoever stops between finds them again.
                _withdraw(warehouse, evaluators, replaced)
        chosen = [(run, evaluator) for run, evaluator in chosen if run.interval not in again]
        worst = _worst_slices(warehouse, chosen, job) if format_ == "table" and not everything else []
    if also:
        days = intervals_told([run.interval for run in also], job.calendar)
        print(f"evaluated again too, for they were scored again since: {days}", file=sys.stderr)
    _tell_learned(job, chosen)
    empty = "nothing published in this window" if first or last else "nothing published"
    if format_ == "table":
        # What only says the state again.
        rows = [row | {"verdict": None if row["verdict"] == row["state"] else row["verdict"]} for row in rows]
    show(rows, format_, empty=f"{empty}, so there is nothing to hold against labels", spare=_spare(rows))
    if worst:
        print()
        show(worst, format_, title=f"The slices of them all by which {job.problem.metric} is worst")


def _tell_learned(job: Job, chosen: Sequence[tuple[Run, Evaluator]]) -> None:
    """Tell of intervals with rows that the version which scored them learned from."""
    found: dict[str, list[Interval]] = {}
    for run, evaluator in chosen:
        if run.interval.start < _learned_until(job, evaluator.bundle):
            found.setdefault(str(evaluator.bundle), []).append(run.interval)
    for bundle, intervals in found.items():
        told = f"{bundle} learned from rows of {intervals_told(intervals, job.calendar)}: that flatters it there"
        print(redacted(told), file=sys.stderr)


def _learned_until(job: Job, bundle: Bundle) -> datetime:
    """The instant behind the last row that a version learned from; the end of its window where that is not known."""
    training = bundle.manifest.training
    end = datetime.fromisoformat(training.end)
    if training.learned_until is None:
        return end
    last = job.calendar.instant(datetime.fromisoformat(training.learned_until))
    return min(end, last + timedelta(microseconds=1))


def _spare(rows: Sequence[Mapping[str, Cell]]) -> list[str | tuple[str, ...]]:
    """What a narrow terminal does without first; never what tells two rows apart."""
    wanted: list[str | tuple[str, ...]] = ["slice", "version", *_SPARE, "metric"]
    apart = [name for name in ("slice", "version", "metric") if len({row[name] for row in rows}) != 1]
    return [name for name in wanted if name not in apart]


def _worst_slices(warehouse: Warehouse, chosen: Sequence[tuple[Run, Evaluator]], job: Job) -> list[dict[str, Cell]]:
    """Of the runs of the version that scored last, as rows to show."""
    if not chosen or not job.performance.slices:
        return []
    bundle = chosen[-1][1].bundle
    ids = [run.run_id for run, evaluator in chosen if evaluator.bundle.digest == bundle.digest]
    worst = worst_slices(bundle, _by_slice(warehouse, ids), job.problem.metric, _WORST)
    return [
        {
            "version": bundle.version,
            "slice": f"{each.column} = {each.value}",
            "predictions": each.predictions,
            "labelled": each.labelled,
            "metric": job.problem.metric,
            "value": each.measured.value,
            "low": each.measured.low,
            "high": each.measured.high,
        }
        for each in worst
    ]


def _by_slice(warehouse: Warehouse, run_ids: Sequence[str]) -> Iterator[list[Mapping[str, Any]]]:
    """The tallies of one slice after the other; what is done with them in between locks nothing."""
    with warehouse.begin("the slices") as tx:
        slices = ledger.slices_of(tx.connection, run_ids, FEWEST_ROWS)
    for column, value in slices:
        with warehouse.begin("the tallies of a slice") as tx:
            some = ledger.slice_tallies_of(tx.connection, run_ids, column, value)
        yield some


def _lately(published: Sequence[Run], calendar: Calendar) -> list[Run]:
    """The last 31 intervals, and of hours all of the last 31 days up to the last."""
    if not published:
        return []
    last = published[-1].interval.start.astimezone(calendar.zone).date()
    since = min(published[-_LAST:][0].interval.start, calendar.instant(last - timedelta(days=_LAST - 1)))
    return [run for run in published if run.interval.start >= since]


def _evaluated(
    session: Session, warehouse: Warehouse, evaluator: Evaluator, run: Run, *, everything: bool
) -> list[dict[str, Cell]]:
    """Evaluate a run, and give what is to be shown of it; of one that was replaced meanwhile it is told."""
    found, estimates = session.patience().persist(partial(_measured, warehouse, evaluator, run))
    if found is None:
        label = evaluator.job.calendar.label(run.interval)
        told = f"left out is {label}: another run has replaced it meanwhile. Evaluate again."
        print(redacted(told), file=sys.stderr)
    return [row for each in found or () for row in _rows(evaluator, run, each, estimates, everything=everything)]


def _measured(warehouse: Warehouse, evaluator: Evaluator, run: Run) -> tuple[list[Performance] | None, Estimates]:
    found = evaluator.evaluate(warehouse, run)
    with warehouse.begin("the estimate of a run") as tx:
        return found, ledger.estimates_of(tx.connection, evaluator.job.name, run)


def _replaced(warehouse: Warehouse, job: Job, history: Sequence[Run]) -> list[Run]:
    """The runs that were evaluated, and that others have replaced since.

    Their labels go out of the metrics by arrival, and those of what replaced them have to come in, or the metrics of
    every interval in which some of them became known would be of fewer rows than before.
    """
    with warehouse.begin("the tallies of replaced runs") as tx:
        if not tx.has_table(ledger.TALLIES.name):
            return []
        tallied = ledger.runs_with_tallies(tx.connection, job.name)
    return [run for run in history if run.run_id in tallied and run.status != "published"]


def _withdraw(warehouse: Warehouse, evaluators: _Evaluators, replaced: Sequence[Run]) -> None:
    """Take replaced runs out of the metrics by arrival; without their bundle they can only be forgotten."""
    for run in replaced:
        evaluator = evaluators.of(run)
        withdraw = evaluator.withdraw if evaluator else _forget
        evaluators.session.patience().persist(partial(withdraw, warehouse, run))


def _forget(warehouse: Warehouse, run: Run) -> None:
    """Forget the tallies of a replaced run, for which its interval would be evaluated again every time."""
    with warehouse.begin("the tallies of a replaced run") as tx:
        ledger.keep_others_out(tx.connection)
        if not ledger.is_published(tx.connection, run):
            ledger.forget_tallies(tx.connection, run.run_id)


@dataclass
class _Evaluators:
    """What evaluates each run: one for each bundle; a bundle that is gone is told once, and its runs are left out."""

    session: Session
    job: Job
    labels: Source
    made: dict[tuple[str, int, str], Evaluator | None] = field(default_factory=dict)

    def of(self, run: Run) -> Evaluator | None:
        """The evaluator with the bundle that scored the run."""
        which = (run.model_name, run.model_version, run.bundle_digest)
        if which not in self.made:
            self.made[which] = self._make(run)
        return self.made[which]

    def _make(self, run: Run) -> Evaluator | None:
        try:
            bundle = self.session.scorer(self.job, run)
        except (BundleNotFound, BundleIncompatible) as error:
            told = f"left out are the runs of {run.model_name} version {run.model_version}: {error}"
            print(redacted(told), file=sys.stderr)
            return None
        return Evaluator(self.job, bundle, output_of(self.job, bundle), self.labels)


def _rows(
    evaluator: Evaluator, run: Run, found: Performance, estimates: Estimates, *, everything: bool
) -> Iterator[dict[str, Cell]]:
    if not everything and found.slice.column:
        return
    job = evaluator.job
    names = list(found.metrics) if everything and found.metrics else [job.problem.metric]
    for name in names:
        measured = found.metrics.get(name)
        row: dict[str, Cell] = {
            "interval": job.calendar.label(run.interval),
            "version": run.model_version,
            "slice": f"{found.slice.column} = {found.slice.value}" if found.slice.column else "",
            "predictions": found.predictions,
            "labelled": found.labelled,
            "coverage": found.labelled / found.predictions if found.predictions else None,
            "state": found.state,
            "metric": name,
            "value": measured.value if measured else None,
            "low": measured.low if measured else None,
            "high": measured.high if measured else None,
            "verdict": evaluator.verdict(found, name) if measured else found.state,
        }
        if job.problem.task in ("binary", "multiclass"):
            estimate = {} if found.slice.column else estimates.get(name, {})
            row |= {f"estimated{end}": estimate.get(column) for end, column in _ESTIMATED.items()}
        yield row
