"""Hold published predictions against their labels, interval by interval, and keep what came of it in the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Any, Literal, NamedTuple

import polars as pl
import sqlalchemy as sa

from batchscore import ledger
from batchscore.interval import Interval
from batchscore.job import Job
from batchscore.ledger import Run
from batchscore.model.bootstrap import intervals, resampled
from batchscore.model.bundle import Bundle
from batchscore.model.evaluation import Measured
from batchscore.model.metrics import evaluate
from batchscore.model.tally import Tally
from batchscore.monitor.kept import keep_performance
from batchscore.monitor.truth import with_labels
from batchscore.monitor.verdict import FEWEST_ROWS, State, Verdict, state_of, tested, verdict
from batchscore.sources import Source
from batchscore.warehouse import Output, Transaction, Warehouse

__all__ = ["Cohort", "Evaluator", "Performance", "Slice"]

Cohort = Literal["scored", "labelled"]

# Rows of `batchscore_tallies`, by when their labels became known.
_Others = Mapping[datetime, Sequence[Mapping[str, Any]]]

_LONGEST = 128
# A slice by the key would be a slice for each row.
_MOST_VALUES = 50


class Slice(NamedTuple):
    """Rows that have one value in a column; both empty for all rows."""

    column: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class Performance:
    """Metrics of the predictions of one version in one interval.

    Attributes:
        cohort: `scored`: predictions of the interval; `labelled`: those whose label became known in it.
        window: The interval.
        slice: Which of the rows.
        predictions: Rows predicted.
        labelled: Those whose label is known; the metrics are of them alone.
        state: Whether the metrics may be compared with others: see `batchscore_performance`.
        metrics: By name, with 95 % intervals where there is data enough; empty without labels. Rows are taken for
            independent.
    """

    cohort: Cohort
    window: Interval
    slice: Slice
    predictions: int
    labelled: int
    state: State
    metrics: dict[str, Measured]


@dataclass(frozen=True, slots=True)
class _Counted:
    """The tally of some of a run's rows.

    Attributes:
        known_from: The start of the interval in which their labels became known.
        slice: Which rows.
        predictions: Rows of the run in that slice, labelled or not.
        tally: Of the labelled ones.
    """

    known_from: datetime
    slice: Slice
    predictions: int
    tally: Tally


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Holds predictions of one bundle against labels.

    Attributes:
        job: The job.
        bundle: What scored them.
        output: The output table.
        labels: The job's labels.
    """

    job: Job
    bundle: Bundle
    output: Output
    labels: Source

    def evaluate(self, warehouse: Warehouse, run: Run) -> list[Performance] | None:
        """Join a published run with its labels by key, and keep tallies and metrics in place of what was kept of it.

        Labels are read, and metrics worked out, between transactions: neither locks the ledger. Rows without a label
        (not known yet, or never: a cancelled flight) count as predictions and are left out of the metrics. What was
        kept of other versions' predictions of the interval, which these have replaced, is forgotten.

        Returns:
            The metrics of the run's interval, of all rows first, then by slice; None, and nothing is kept, where
            another run has replaced it meanwhile.

        Raises:
            SchemaMismatch: The labels lack a column, or one has another type than the bundle's.
        """
        counted = list(self._counted(self._joined(warehouse, [run]), run))
        found = [self._measured("scored", run.interval, each, list(some)) for each, some in _by_slice(counted)]
        before = self._others(warehouse, run, counted)
        arrived = self._arrived(before, counted)
        with warehouse.begin("the performance of a run") as tx:
            # Two that keep what they found at once would each miss the other's labels.
            ledger.keep_others_out(tx.connection)
            if not ledger.is_published(tx.connection, run):
                return None
            now = ledger.clock(tx.connection)
            others = self._others_in(tx.connection, run, counted)
            ledger.forget_tallies(tx.connection, run.run_id)
            tx.load(ledger.TALLIES, _as_rows(run, counted))
            self._keep(tx, "scored", run.interval, found, now)
            ledger.forget_replaced(tx.connection, self.job.name, run)
            self._keep_arrived(tx, arrived if others == before else self._arrived(others, counted), now)
        return found

    def together(self, warehouse: Warehouse, runs: Sequence[Run], *, resample: bool) -> Performance:
        """The metrics of published runs taken together, row by row; nothing is kept.

        As in `evaluate`, labels are read between transactions, and rows without one count as predictions alone.

        Args:
            warehouse: Where they are published.
            runs: At least one, by interval.
            resample: Whether the metrics are wanted with their intervals.

        Raises:
            SchemaMismatch: See `evaluate`.
        """
        published = self._joined(warehouse, runs)
        known = published.drop_nulls("label")
        metrics: dict[str, Measured] = {}
        if known.height:
            predictor, answers = self.bundle.predictor, known.select(list(self.bundle.predictor.output_types))
            drawn = resampled(predictor, answers, known["label"], None) if resample else {}
            metrics = intervals(evaluate(predictor.task, known["label"], answers, predictor.classes), drawn)
        state = state_of(known.height, published.height, self.job.performance.mature)
        window = Interval(runs[0].interval.start, runs[-1].interval.end)
        return Performance("scored", window, Slice(), published.height, known.height, state, metrics)

    def withdraw(self, warehouse: Warehouse, run: Run) -> None:
        """Forget the tallies of a run that is no longer published, and take its labels out of the metrics by arrival.

        What was measured of its interval goes when the run that replaced it is evaluated.
        """
        before = self._others(warehouse, run, ())
        arrived = self._arrived(before, ())
        with warehouse.begin("the tallies of a replaced run") as tx:
            ledger.keep_others_out(tx.connection)
            if not ledger.is_published(tx.connection, run):
                others = self._others_in(tx.connection, run, ())
                ledger.forget_tallies(tx.connection, run.run_id)
                arrived = arrived if others == before else self._arrived(others, ())
                self._keep_arrived(tx, arrived, ledger.clock(tx.connection))

    def verdict(self, found: Performance, metric: str) -> Verdict:
        """How a metric that was found compares with the bundle's test rows; a slice is compared with nothing."""
        if found.slice.column and found.state == "mature":
            return "not compared"
        return verdict(self.bundle, metric, found.metrics[metric], found.state)

    def _joined(self, warehouse: Warehouse, runs: Sequence[Run]) -> pl.DataFrame:
        return with_labels(warehouse, self.job, self.bundle, self.output, self.labels, runs)

    def _counted(self, joined: pl.DataFrame, run: Run) -> Iterator[_Counted]:
        predictor = self.bundle.predictor
        answers = [name for name in predictor.output_types if name == "prediction" or name.startswith("score")]
        for each, rows in _sliced(joined, self.job.performance.slices):
            known = rows.drop_nulls("label")
            parts = known.partition_by("known_from", as_dict=True) or {(run.interval.start,): known}
            for (start,), some in parts.items():
                tally = Tally.of(predictor.task, predictor.classes, some["label"], some.select(answers))
                yield _Counted(start, each, rows.height, tally)

    def _others(self, warehouse: Warehouse, run: Run, counted: Iterable[_Counted]) -> _Others:
        with warehouse.begin("the tallies of other runs") as tx:
            return self._others_in(tx.connection, run, counted)

    def _others_in(self, tx: sa.Connection, run: Run, counted: Iterable[_Counted]) -> _Others:
        """By arrival, the tallies of other runs of the bundle where a run's own change; none without `known_at`."""
        starts = ledger.tallied_from(tx, run.run_id) | {each.known_from for each in counted}
        return {
            start: [row for row in self._known(tx, start) if row["run_id"] != run.run_id] for start in sorted(starts)
        }

    def _known(self, tx: sa.Connection, start: datetime) -> list[Mapping[str, Any]]:
        if not self.job.performance.known_at:
            return []
        return ledger.tallies_known(tx, self.job.name, self.bundle.digest, start)

    def _arrived(self, others: _Others, counted: Iterable[_Counted]) -> dict[Interval, list[Performance]]:
        """The metrics by arrival that change where these are a run's tallies in place of what is kept of it.

        They are of the labels that became known in an interval, of whichever runs of the bundle; none without
        `known_at`.
        """
        counted = list(counted) if self.job.performance.known_at else []
        found = {}
        for start, rows in others.items():
            window = self.job.calendar.containing(start)
            theirs = [
                _Counted(start, Slice(row["slice_column"], row["slice_value"]), 0, self._tally(row["tally"]))
                for row in rows
            ]
            there = _by_slice([*theirs, *(each for each in counted if each.known_from == start)])
            found[window] = [self._measured("labelled", window, each, some) for each, some in there]
        return found

    def _keep_arrived(self, tx: Transaction, arrived: Mapping[Interval, Iterable[Performance]], now: datetime) -> None:
        for window, found in arrived.items():
            self._keep(tx, "labelled", window, found, now)

    def _keep(
        self, tx: Transaction, cohort: Cohort, window: Interval, found: Iterable[Performance], now: datetime
    ) -> None:
        which = {
            "job": self.job.name,
            "cohort": cohort,
            "window_start": window.start,
            "model_name": self.bundle.name,
            "model_version": self.bundle.version,
            "kind": "measured",
        }
        keep_performance(tx, which, [row for each in found for row in self._rows(each, now)])

    def _tally(self, text: str) -> Tally:
        predictor = self.bundle.predictor
        return Tally.from_json(text, predictor.task, predictor.classes, predictor.output_types["prediction"])

    def _measured(self, cohort: Cohort, window: Interval, which: Slice, counted: Sequence[_Counted]) -> Performance:
        tally = reduce(Tally.merge, (each.tally for each in counted))
        # A run's parts by arrival have all its predictions each; what arrived is as many as were labelled.
        predictions = counted[0].predictions if cohort == "scored" else tally.rows
        state = state_of(tally.rows, predictions, self.job.performance.mature)
        # Below that an interval would be told of what is not to be compared, at the price of most slices.
        drawn = tally.resampled() if tally.rows >= FEWEST_ROWS else {}
        metrics = intervals(tally.metrics(), drawn)
        return Performance(cohort, window, which, predictions, tally.rows, state, metrics)

    def _rows(self, each: Performance, now: datetime) -> Iterator[dict[str, object]]:
        for metric, measured in each.metrics.items():
            yield {
                **tested(self.bundle, None if each.slice.column else metric),
                "slice_column": each.slice.column,
                "slice_value": each.slice.value,
                "metric": metric,
                "window_end": each.window.end,
                "value": measured.value,
                "low": measured.low,
                "high": measured.high,
                "predictions": each.predictions,
                "labelled": each.labelled,
                "coverage": each.labelled / each.predictions if each.cohort == "scored" else None,
                "state": each.state,
                "verdict": self.verdict(each, metric),
                "evaluated_at": now,
            }


def _sliced(rows: pl.DataFrame, columns: Iterable[str]) -> Iterator[tuple[Slice, pl.DataFrame]]:
    """All rows, and those of each of a column's most frequent values."""
    yield Slice(), rows
    for column in columns:
        values = rows[column].cast(pl.String).fill_null("NULL").str.slice(0, _LONGEST)
        # "a" and "a " are one key to MariaDB.
        values = values.str.strip_chars_end(" ").alias("value")
        often = values.value_counts().sort("count", "value", descending=[True, False]).head(_MOST_VALUES)
        for value in often["value"]:
            yield Slice(column, value), rows.filter(values == value)


def _by_slice(counted: Iterable[_Counted]) -> Iterator[tuple[Slice, list[_Counted]]]:
    found: dict[Slice, list[_Counted]] = {}
    for each in counted:
        found.setdefault(each.slice, []).append(each)
    yield from found.items()


def _as_rows(run: Run, counted: Sequence[_Counted]) -> pl.DataFrame:
    """Rows of `batchscore_tallies`."""
    return pl.DataFrame(
        {
            "run_id": pl.Series([run.run_id] * len(counted), dtype=pl.String),
            "known_from": pl.Series([each.known_from for each in counted], dtype=pl.Datetime("us", "UTC")),
            "slice_column": pl.Series([each.slice.column for each in counted], dtype=pl.String),
            "slice_value": pl.Series([each.slice.value for each in counted], dtype=pl.String),
            "predictions": pl.Series([each.predictions for each in counted], dtype=pl.Int64),
            "labelled": pl.Series([each.tally.rows for each in counted], dtype=pl.Int64),
            "tally": pl.Series([each.tally.to_json() for each in counted], dtype=pl.String),
        }
    )
