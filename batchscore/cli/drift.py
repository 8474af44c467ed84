"""`batchscore drift`, and what other commands compare with training."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import groupby

import sqlalchemy as sa

from batchscore.cli.render import Cell, Format, print_json, show
from batchscore.cli.session import Session, history_of
from batchscore.drift import MINIMUM_ROWS, Drift
from batchscore.errors import BatchscoreError, BundleIncompatible, BundleNotFound
from batchscore.job import Job
from batchscore.ledger import Run
from batchscore.logs import Event, about, log
from batchscore.model.bundle import Bundle
from batchscore.monitor.watch import compare_with_training, record_drift
from batchscore.warehouse import Warehouse

__all__ = ["drift", "drift_rows", "watch"]


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Published runs that one bundle scored, against the rows it was trained on.

    Attributes:
        runs: The runs, by interval.
        compared: Those whose profile could be compared.
        found: Role and drift for every column and metric.
        obstacle: Why nothing, or not all, was compared; empty where all was.
    """

    runs: Sequence[Run]
    compared: Sequence[Run]
    found: Sequence[tuple[str, Drift]]
    obstacle: str = ""

    def outcome(self) -> str:
        """`moved`, `nothing moved`, `not enough data` or `not compared`."""
        verdicts = [each.verdict for _, each in self.found]
        if "moved" in verdicts:
            return "moved"
        if "steady" in verdicts:
            return "nothing moved"
        return "not enough data" if verdicts else "not compared"

    def detail(self) -> str:
        """What is to be known of the outcome; may be empty."""
        verdicts = [each.verdict for _, each in self.found]
        moved, few = verdicts.count("moved"), verdicts.count("not enough data")
        details = (
            (bool(self.obstacle), self.obstacle),
            (moved, f"{moved} of {len(verdicts)} metrics"),
            (few, f"{few} of {len(verdicts)} metrics are over fewer than {MINIMUM_ROWS} rows on one side"),
        )
        return "; ".join(text for present, text in details if present)


def drift(session: Session, name: str, first: str | None, last: str | None, everything: bool, format_: Format) -> None:
    """Print how what published runs saw differs from the training rows of the bundle that scored them.

    Runs of one bundle are merged; those of different bundles are compared apart, each with its own training. Without
    dates it is the last run.
    """
    job = session.job(name)
    start, end = job.calendar.window(first, last)
    with session.warehouse(read_only=True) as warehouse:
        runs = [run for run in history_of(warehouse, name) if run.status == "published"]
        if start or end:
            runs = [run for run in runs if (start or run.interval.start) <= run.interval.start < (end or session.now)]
        else:
            runs = runs[-1:]
        # What the module inside a bundle prints is not the answer.
        with warehouse.begin("the ledger") as tx, redirect_stdout(sys.stderr):
            comparisons = list(_compared(tx.connection, session, runs))
    if format_ is Format.json:
        print_json([_as_json(job, each, everything) for each in comparisons])
        return
    if not comparisons:
        print(f"nothing published{' in this window' if first or last else ''}, so there is nothing to compare")
    for number, each in enumerate(comparisons):
        told = f"{each.outcome()}: {each.detail()}".removesuffix(": ")
        print("\n" * bool(number) + f"{_span(job, each)}, against its training rows: {told}")
        if rows := _rows(each.found, everything=everything):
            show(rows, format_)


def _compared(tx: sa.Connection, session: Session, runs: Sequence[Run]) -> Iterator[_Comparison]:
    def bundle_of(run: Run) -> tuple[str, int, str]:
        return run.model_name, run.model_version, run.bundle_digest

    # The sort is stable, so the runs of a bundle stay in the order of their intervals.
    for (name, version, digest), group in groupby(sorted(runs, key=bundle_of), bundle_of):
        scored = list(group)
        try:
            bundle = session.load(name, version)
        except BundleNotFound:
            yield _Comparison(scored, [], [], f"{session.registry} no longer holds that version")
            continue
        except BundleIncompatible as error:
            yield _Comparison(scored, [], [], str(error))
            continue
        if bundle.digest != digest:
            yield _Comparison(scored, [], [], f"{bundle} in {session.registry} is another one than scored them")
            continue
        compared, found = compare_with_training(tx, bundle, scored)
        lost = len(scored) - len(compared)
        yield _Comparison(scored, compared, found, f"{lost} run(s) have no profile in the ledger" if lost else "")


def _span(job: Job, comparison: _Comparison) -> str:
    first, last = (job.calendar.label(run.interval) for run in (comparison.runs[0], comparison.runs[-1]))
    days = first if first == last else f"{first} to {last}"
    scorer = f"{comparison.runs[0].model_name} version {comparison.runs[0].model_version}"
    return f"{days}: {len(comparison.runs)} run(s) by {scorer}"


def _as_json(job: Job, comparison: _Comparison, everything: bool) -> dict[str, object]:
    return {
        "model_name": comparison.runs[0].model_name,
        "model_version": comparison.runs[0].model_version,
        "reference": "training",
        "first": job.calendar.label(comparison.runs[0].interval),
        "last": job.calendar.label(comparison.runs[-1].interval),
        "runs": len(comparison.runs),
        "compared": len(comparison.compared),
        "outcome": comparison.outcome(),
        "detail": comparison.detail(),
        "metrics": _rows(comparison.found, everything=everything),
    }


def watch(warehouse: Warehouse, bundle: Bundle, run: Run) -> int:
    """Compare a published run with training. Its predictions stand: failing here is told and stops nothing.

    Returns:
        How many metrics moved.
    """
    with about(run.run_id, run.interval.start, run.model_version):
        try:
            with warehouse.begin("the drift of a run") as tx:
                return sum(drift.verdict == "moved" for _, drift in record_drift(tx.connection, bundle, run))
        except BatchscoreError as error:
            log.error(Event.MONITORING_FAILED, run_id=run.run_id, error=str(error))
            return 0


def drift_rows(tx: sa.Connection, bundle: Bundle, runs: Sequence[Run]) -> list[dict[str, Cell]]:
    """What moved in runs of a bundle against its training, the strongest first, as rows to show."""
    _, found = compare_with_training(tx, bundle, runs)
    return _rows(found, everything=False)


def _rows(found: Sequence[tuple[str, Drift]], *, everything: bool) -> list[dict[str, Cell]]:
    kept = [(role, each) for role, each in found if everything or each.verdict == "moved"]
    return [_row(role, each) for role, each in sorted(kept, key=lambda pair: -_strength(pair[1]))]


def _strength(each: Drift) -> float:
    return abs(each.value or 0.0) / each.band


def _row(role: str, each: Drift) -> dict[str, Cell]:
    return {
        "role": role,
        "column": each.column,
        "metric": each.metric,
        "value": each.value,
        "band": each.band,
        "floor": each.floor,
        "verdict": each.verdict,
        "n": each.n,
        "reference_n": each.reference_n,
    }
