"""Hold published predictions against their labels, interval by interval, and keep what came of it in the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Literal, NamedTuple

import polars as pl
import sqlalchemy as sa

from batchscore import ledger
from batchscore.errors import SchemaMismatch
from batchscore.interval import Interval
from batchscore.job import Job
from batchscore.ledger import Run
from batchscore.model.bootstrap import intervals
from batchscore.model.bundle import Bundle
from batchscore.model.evaluation import Measured
from batchscore.model.tally import Tally
from batchscore.monitor.performance import published_rows
from batchscore.monitor.verdict import FEWEST_ROWS, State, Verdict, state_of, tested, verdict
from batchscore.schema import Column, Schema
from batchscore.sources import Source, read_frame
from batchscore.sqltypes import Instant
from batchscore.warehouse import Output, Transaction, Warehouse

__all__ = ["Cohort", "Evaluator", "Performance", "Slice", "check_labels"]

Cohort = Literal["scored", "labelled"]

_LONGEST = 128
# A slice by the key would be a slice for each row.
_MOST_VALUES = 50


_TYPE_OF: Mapping[object, pl.DataType] = {
    sa.String: pl.String(),
    sa.Double: pl.Float64(),
    sa.BigInteger: pl.Int64(),
    Instant: pl.Datetime("us", "UTC"),
}
_TYPES = {column.name: _TYPE_OF[type(column.type)] for column in ledger.PERFORMANCE.columns}


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
        with warehouse.begin("published predictions") as tx:
            published = published_rows(tx.connection, self.output, run.interval, {run.run_id})
        counted = list(self._counted(self._joined(published, run), run))
        found = [self._measured("scored", run.interval, each, list(some)) for each, some in _by_slice(counted)]
        arrived = self._arrived(warehouse, run, counted)
        with warehouse.begin("the performance of a run") as tx:
            if not _is_published(tx.connection, run):
                return None
            now = ledger.clock(tx.connection)
            ledger.forget_tallies(tx.connection, run.run_id)
            tx.load(ledger.TALLIES, _as_rows(run, counted))
            self._keep(tx, "scored", run.interval, found, now)
            ledger.forget_replaced(tx.connection, self.job.name, run)
            self._keep_arrived(tx, arrived, now)
        return found

    def withdraw(self, warehouse: Warehouse, run: Run) -> None:
        """Forget the tallies of a run that is no longer published, and take its labels out of the metrics by arrival.

        What was measured of its interval goes when the run that replaced it is evaluated.
        """
        arrived = self._arrived(warehouse, run, ())
        with warehouse.begin("the tallies of a replaced run") as tx:
            if not _is_published(tx.connection, run):
                ledger.forget_tallies(tx.connection, run.run_id)
                self._keep_arrived(tx, arrived, ledger.clock(tx.connection))

    def verdict(self, found: Performance, metric: str) -> Verdict:
        """How a metric that was found compares with the bundle's test rows; a slice is compared with nothing."""
        if found.slice.column and found.state == "mature":
            return "not compared"
        return verdict(self.bundle, metric, found.metrics[metric], found.state)

    def _joined(self, published: pl.DataFrame, run: Run) -> pl.DataFrame:
        """The run's predictions with `label`, NULL where it is not known, and `known_from`."""
        where, target, known_at = self.labels.where, self.job.problem.target, self.job.performance.known_at
        label = Column(target, self.bundle.predictor.output_types["prediction"], nullable=True)
        arrival = (Column(known_at, "timestamp_tz", nullable=True),) if known_at else ()
        schema = Schema((*(self.bundle.schema[name] for name in self.job.source.key), label, *arrival))

        def check(columns: list[str]) -> None:
            check_labels(self.job, columns, where)

        read = read_frame(
            self.labels, run.interval, key=self.job.source.key, columns=schema.types | {target: None}, on_columns=check
        )
        truth = schema.conform(read, where).drop_nulls(target)
        if label.type == "float" and not truth[target].is_finite().all():
            raise SchemaMismatch(
                f"{where}: the target {target!r} is NaN or infinite in some labels. Leave them out, or give NULL."
            )
        starts = [run.interval.start] * truth.height
        if known_at:
            instants = truth[known_at].to_list()
            starts = [run.interval.start if at is None else self.job.calendar.containing(at).start for at in instants]
        truth = truth.select(
            *self.job.source.key,
            pl.col(target).alias("label"),
            pl.Series("known_from", starts, dtype=pl.Datetime("us", "UTC")),
        )
        return published.join(truth, on=list(self.job.source.key), how="left")

    def _counted(self, joined: pl.DataFrame, run: Run) -> Iterator[_Counted]:
        predictor = self.bundle.predictor
        answers = [name for name in predictor.output_types if name == "prediction" or name.startswith("score")]
        for each, rows in _sliced(joined, self.job.performance.slices):
            known = rows.drop_nulls("label")
            parts = known.partition_by("known_from", as_dict=True) or {(run.interval.start,): known}
            for (start,), some in parts.items():
                tally = Tally.of(predictor.task, predictor.classes, some["label"], some.select(answers))
                yield _Counted(start, each, rows.height, tally)

    def _arrived(
        self, warehouse: Warehouse, run: Run, counted: Iterable[_Counted]
    ) -> dict[Interval, list[Performance]]:
        """The metrics by arrival that change where these are a run's tallies in place of what is kept of it.

        They are of the labels that became known in an interval, of whichever runs of the bundle; none without
        `known_at`.
        """
        with warehouse.begin("the tallies of other runs") as tx:
            starts = ledger.tallied_from(tx.connection, run.run_id) | {each.known_from for each in counted}
            rows = [
                row
                for start in (sorted(starts) if self.job.performance.known_at else ())
                for row in ledger.tallies_known(tx.connection, self.job.name, self.bundle.digest, start)
                if row["run_id"] != run.run_id
            ]
        others = [
            _Counted(row["known_from"], Slice(row["slice_column"], row["slice_value"]), 0, self._tally(row["tally"]))
            for row in rows
        ]
        all_ = [*others, *counted] if self.job.performance.known_at else []
        found = {}
        for start in sorted(starts):
            window = self.job.calendar.containing(start)
            there = _by_slice(each for each in all_ if each.known_from == start)
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
        ledger.forget_performance(tx.connection, which)
        rows = [which | row for each in found for row in self._rows(each, now)]
        if rows:
            tx.load(ledger.PERFORMANCE, pl.DataFrame(rows, schema=_TYPES))

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


def _is_published(tx: sa.Connection, run: Run) -> bool:
    now = ledger.published(tx, run)
    return now is not None and now.run_id == run.run_id


def check_labels(job: Job, columns: Sequence[str], where: str) -> None:
    """Refuse labels without a column that they must have.

    Raises:
        SchemaMismatch: Of the key, the target or `[performance] known_at`, one is not there.
    """
    known_at = job.performance.known_at
    wanted = (*job.source.key, job.problem.target, *((known_at,) if known_at else ()))
    if missing := [name for name in wanted if name not in columns]:
        raise SchemaMismatch(
            f"{where} has no column {', '.join(missing)}. It has: {', '.join(columns)}. Labels are the key "
            f"({', '.join(job.source.key)}) and the target ({job.problem.target})"
            f"{f', and [performance] known_at names {known_at}' if known_at else ''}: give them there."
        )


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
