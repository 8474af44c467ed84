"""`batchscore drift`, and what other commands compare with training."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from batchscore.cli.render import Cell, Format, on_terminal, print_json, show
from batchscore.cli.session import Session, history_of
from batchscore.cli.spark import Past, spark
from batchscore.drift import MINIMUM_ROWS
from batchscore.errors import BundleIncompatible, BundleNotFound, UsageError
from batchscore.job import Job
from batchscore.ledger import Run
from batchscore.logs import about
from batchscore.monitor.findings import span_of
from batchscore.monitor.harmless import harmless
from batchscore.monitor.shares import both_shares
from batchscore.monitor.watch import Comparison, Watched, Watcher
from batchscore.warehouse import Warehouse
from batchscore.watching import Reference

__all__ = ["SPARE", "drawn", "drift", "drift_rows", "watch", "with_shares"]

# What a narrow terminal does without first; of what moved alone the verdict says nothing.
SPARE = ("verdict", "floor", "importance")

_AGAINST: dict[Reference, str] = {
    "training": "its training rows",
    "previous": "as many runs before",
    "last_week": "the runs of a week before",
    "four_weeks": "the runs of the four weeks before",
}
_LEFT_OUT = ("p_value", "n", "reference_n")


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Published runs that one bundle scored, against a reference.

    Attributes:
        runs: The runs, by interval.
        made: What was found of those whose profile could be compared.
        obstacle: Why nothing, or not all, was compared; empty where all was.
        watcher: What compared them; None where nothing was.
        past: What each metric was in the last runs, each by itself; None where nothing was compared.
    """

    runs: Sequence[Run]
    made: Comparison
    obstacle: str = ""
    watcher: Watcher | None = None
    past: Past | None = None

    def told_apart(self) -> _Comparison:
        """The same with what a classifier tells, where it is asked to; the rows are read from the source."""
        return self if self.watcher is None else replace(self, made=self.watcher.tell_apart(self.made))

    def outcome(self) -> str:
        """`moved`, `nothing moved`, `not enough data` or `not compared`."""
        verdicts = [each.drift.verdict for each in self.made.found]
        if "moved" in verdicts:
            return "moved"
        if "steady" in verdicts:
            return "nothing moved"
        return "not enough data" if verdicts else "not compared"

    def detail(self) -> str:
        """What is to be known of the outcome; may be empty."""
        verdicts = [each.drift.verdict for each in self.made.found if each.drift.verdict != "not judged"]
        moved, few = verdicts.count("moved"), verdicts.count("not enough data")
        details = (
            (bool(self.obstacle), self.obstacle),
            (moved, f"{moved} of {len(verdicts)} metrics"),
            (few, f"{few} of {len(verdicts)} metrics are over fewer than {MINIMUM_ROWS} rows on one side"),
            (self.made.by, f"told apart by {', '.join(self.made.by)}"),
        )
        return "; ".join(text for present, text in details if present)


def drift(
    session: Session,
    name: str,
    first: str | None,
    last: str | None,
    reference: Reference | None,
    sample: int | None,
    everything: bool,
    format_: Format,
) -> None:
    """Print how what published runs saw differs from the training rows of the bundle that scored them, or other runs.

    Runs of one bundle are merged; those of different bundles are compared apart, each with its own training and runs.
    Without dates it is the last run. `reference` and `sample` stand in for those of the job's `[drift]`.
    """
    job = session.job(name)
    if sample is not None:
        if 0 < sample < MINIMUM_ROWS:
            raise UsageError(f"--sample {sample}: fewer than {MINIMUM_ROWS} rows are not judged; 0 is for none.")
        job = job.model_copy(update={"drift": job.drift.model_copy(update={"sample": sample})})
    start, end = job.calendar.window(first, last)
    with session.warehouse(read_only=True) as warehouse:
        runs = [run for run in history_of(warehouse, name) if run.status == "published"]
        if start or end:
            runs = [run for run in runs if (start or run.interval.start) <= run.interval.start < (end or session.now)]
        else:
            runs = runs[-1:]
        # What the module inside a bundle prints is not the answer.
        with warehouse.begin("the ledger") as tx, redirect_stdout(sys.stderr):
            references = (reference,) if reference else job.drift.against
            comparisons = [
                each for against in references for each in _compared(tx.connection, session, job, runs, against)
            ]
    # Without the warehouse, which would wait for as long as a source takes.
    with redirect_stdout(sys.stderr):
        comparisons = [each.told_apart() for each in comparisons]
    if format_ == "json":
        print_json([_as_json(job, each, everything) for each in comparisons])
        return
    if not comparisons:
        print(f"nothing published{' in this window' if first or last else ''}, so there is nothing to compare")
    for number, each in enumerate(comparisons):
        told = f"{each.outcome()}: {each.detail()}".removesuffix(": ")
        print("\n" * bool(number) + f"{_span(job, each)}, against {_AGAINST[each.made.reference]}: {told}")
        if rows := [drawn(row, _LEFT_OUT) for row in _with_past(each, everything=everything)]:
            show(rows, format_, spare=(*SPARE[everything:], "role"))


def _compared(
    tx: sa.Connection, session: Session, job: Job, runs: Sequence[Run], reference: Reference
) -> Iterator[_Comparison]:
    def bundle_of(run: Run) -> tuple[str, int, str]:
        return run.model_name, run.model_version, run.bundle_digest

    # The sort is stable, so the runs of a bundle stay in the order of their intervals.
    for _, group in groupby(sorted(runs, key=bundle_of), bundle_of):
        scored, nothing = list(group), Comparison(reference, [], [], [])
        try:
            bundle = session.scorer(job, scored[0])
        except BundleNotFound:
            yield _Comparison(scored, nothing, f"{session.registry} no longer holds that version")
            continue
        except BundleIncompatible as error:
            yield _Comparison(scored, nothing, str(error))
            continue
        watcher = session.watcher(job, bundle)
        compared = watcher.compare(tx, scored, reference)
        lost = len(scored) - len(compared.runs)
        obstacle = f"{lost} run(s) have no profile in the ledger" if lost else ""
        if not lost and reference != "training" and not compared.others:
            obstacle = f"{bundle} has scored none of the runs that {reference} means"
        elif not lost and reference == "training" and watcher.samples and watcher.samples.training is None:
            obstacle = f"{bundle} was trained without [drift] sample, so no classifier tells rows from its training"
        past = Past.of(tx, compared.runs[-1]) if compared.runs else None
        yield _Comparison(scored, compared, obstacle, watcher, past)


def _span(job: Job, comparison: _Comparison) -> str:
    days = span_of(comparison.runs, job.calendar)
    scorer = f"{comparison.runs[0].model_name} version {comparison.runs[0].model_version}"
    return f"{days}: {len(comparison.runs)} run(s) by {scorer}"


def _as_json(job: Job, comparison: _Comparison, everything: bool) -> dict[str, object]:
    return {
        "model_name": comparison.runs[0].model_name,
        "model_version": comparison.runs[0].model_version,
        "reference": comparison.made.reference,
        "first": job.calendar.label(comparison.runs[0].interval),
        "last": job.calendar.label(comparison.runs[-1].interval),
        "runs": len(comparison.runs),
        "compared": len(comparison.made.runs),
        "outcome": comparison.outcome(),
        "detail": comparison.detail(),
        "told_apart_by": list(comparison.made.by),
        "metrics": _with_past(comparison, everything=everything),
    }


def _with_past(comparison: _Comparison, *, everything: bool) -> list[dict[str, Any]]:
    """The rows, with the values of the last runs, each by itself: what is merged into one above them."""
    rows = _rows(comparison.made.found, everything=everything)
    past, reference = comparison.past, comparison.made.reference
    if past is None:
        return [*rows]
    return [
        {**row, "history": past(reference, str(row["role"]), str(row["column"]), str(row["metric"]))} for row in rows
    ]


def drawn(row: Mapping[str, Any], left_out: Collection[str]) -> dict[str, Cell]:
    """A row as a table has it; a person's leaves out what is rarely asked for, so that it fits."""
    told = with_shares({**row, "history": spark(row["history"], row["band"])})
    return {name: value for name, value in told.items() if not (on_terminal() and name in left_out)}


def with_shares(row: Mapping[str, Any]) -> dict[str, Cell]:
    """A row as a table has it: in the place of a difference of two shares, both of them."""
    rest = {name: value for name, value in row.items() if name not in ("share", "reference_share")}
    if row["share"] is None or row["reference_share"] is None:
        return rest
    return rest | {"value": both_shares(row["share"], row["reference_share"])}


def watch(warehouse: Warehouse, watcher: Watcher, run: Run, *, again: bool = False) -> int:
    """Compare a published run with every reference. Its predictions stand: failing here is told and stops nothing.

    Args:
        warehouse: The warehouse.
        watcher: What compares it.
        run: The run.
        again: Whether a process that is gone left it; where another has taken it up since, nothing is done.

    Returns:
        How many metrics moved that the job wants told.
    """
    found = None
    with about(run.run_id, run.interval.start, run.model_version):
        with harmless(run_id=run.run_id), warehouse.begin("the drift of a run") as tx:
            found = watcher.record(tx, run, again=again)
        if found is None:
            # By rows of the classifier alone it would count as compared.
            return 0
        told = len(found)
        with harmless(run_id=run.run_id):
            told += len(watcher.record_apart(warehouse, run))
    return told


def drift_rows(tx: sa.Connection, watcher: Watcher, runs: Sequence[Run]) -> list[dict[str, Cell]]:
    """What moved in runs of a bundle against its training, the strongest first, as rows to show."""
    return _rows(watcher.compare(tx, runs).found, everything=False)


def _rows(found: Sequence[Watched], *, everything: bool) -> list[dict[str, Cell]]:
    kept = [each for each in found if everything or each.drift.verdict == "moved"]
    return [_row(each) for each in sorted(kept, key=lambda each: -each.strength)]


def _row(each: Watched) -> dict[str, Cell]:
    drift = each.drift
    return {
        "role": each.role,
        "column": drift.column,
        "metric": drift.metric,
        "value": drift.value,
        "share": drift.share,
        "reference_share": drift.reference_share,
        "band": drift.band,
        "floor": drift.floor,
        "p_value": drift.p_value,
        "verdict": drift.verdict,
        "importance": each.importance,
        "n": drift.n,
        "reference_n": drift.reference_n,
    }
