"""Compare what runs saw with what training saw and with runs before them, from the profiles in the ledger alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property, reduce
from time import monotonic
from typing import Any

import polars as pl
import sqlalchemy as sa

from batchscore import ledger
from batchscore.drift import BANDS, Drift, Metric, Times, compare
from batchscore.interval import Calendar
from batchscore.job import Job
from batchscore.ledger import Run
from batchscore.logs import Event, log
from batchscore.model.bundle import Bundle
from batchscore.monitor.apart import Samples, told_apart
from batchscore.monitor.estimate import Estimator
from batchscore.profile import Profile
from batchscore.warehouse import Transaction, Warehouse
from batchscore.watching import REFERENCES, Reference

__all__ = ["Comparison", "Watched", "Watcher", "starts_of"]

_FOUR_WEEKS = 28
# Parsing a profile costs a hundred times as much as merging it, and a backfill meets each run in four weeks of others.
_PROFILES_KEPT = 64
# How long a run may wait for the samples of its rows and of others; then it does without.
_SECONDS = 60.0

Seen = Mapping[str, Profile]

_TYPE_OF: Mapping[type, pl.DataType] = {
    sa.String: pl.String(),
    sa.Double: pl.Float64(),
    sa.BigInteger: pl.Int64(),
    sa.Boolean: pl.Boolean(),
}
_TYPES = {column.name: _TYPE_OF[type(column.type)] for column in ledger.DRIFT.columns}


@dataclass(frozen=True, slots=True)
class Watched:
    """One metric of one column of published runs.

    Attributes:
        role: `input` or `output`.
        drift: What was measured.
        importance: What the model loses by the column, as a share of what it loses by the most important one; None for
            a column that is none of the features.
        told: Whether it is told, as the job's `[drift]` has it.
    """

    role: str
    drift: Drift
    importance: float | None
    told: bool

    @property
    def strength(self) -> float:
        """How many times its band a judged metric's value is; 0 where it has none."""
        return abs(self.drift.value or 0.0) / self.drift.band if self.drift.band else 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Published runs of one bundle, merged, against one reference.

    Attributes:
        reference: What they are compared with.
        runs: Those whose profile the ledger holds.
        others: The runs that the reference is merged of; none for `training`.
        found: Every column and metric.
        by: The columns by which the rows are told apart, where a classifier was asked to.
    """

    reference: Reference
    runs: Sequence[Run]
    others: Sequence[Run]
    found: Sequence[Watched]
    by: Sequence[str] = ()


@dataclass
class Watcher:
    """Compares runs of one bundle.

    Attributes:
        job: The job.
        bundle: What scored them.
        samples: Rows for a classifier to tell apart; None where none is asked to.
        kept: Profiles that were read, by run; the oldest goes first.
    """

    job: Job
    bundle: Bundle
    samples: Samples | None = None
    kept: dict[str, Seen] = field(default_factory=dict)

    def record(self, tx: Transaction, run: Run) -> list[Watched]:
        """Compare a published run with every reference, keep the result in the ledger, and log what is told.

        Of a binary task it also keeps how good its predictions are by the scores alone: see `Estimator`.

        Returns:
            What is told, against whichever reference.
        """
        moves = self._moves(tx.connection, run)
        compared = [self.compare(tx.connection, [run], reference, moves) for reference in REFERENCES]
        rows = [_row(run, each, one) for each in compared for one in each.found]
        ledger.forget_drift(tx.connection, run.run_id)
        tx.load(ledger.DRIFT, pl.DataFrame(rows, schema=_TYPES, orient="row"))
        for each in compared:
            if each.found and each.reference in self.job.drift.against:
                _log(run, each)
        self._estimate(tx.connection, run)
        return [one for each in compared for one in each.found if one.told]

    def _estimate(self, tx: sa.Connection, run: Run) -> None:
        seen = self._profiles(tx, [run]).get(run.run_id)
        # A version that predicted this interval before is replaced, whether or not anything can be estimated.
        ledger.forget_replaced(tx, self.job.name, run)
        if self._estimator is not None and seen is not None:
            self._estimator.record(tx, run, seen["output"].columns["score"], ledger.clock(tx))

    @cached_property
    def _estimator(self) -> Estimator | None:
        tested = self.bundle.tested
        if tested is None or tested.task != "binary":
            return None
        return Estimator(self.job.name, self.bundle, tested)

    def compare(
        self,
        tx: sa.Connection,
        runs: Sequence[Run],
        reference: Reference = "training",
        moves: Mapping[tuple[str, str, str, str], int] | None = None,
    ) -> Comparison:
        """Merge what published runs saw, and compare it with the rows that the bundle was trained on, or other runs.

        The key is left out: new rows have new ones by nature.

        Args:
            tx: An open transaction on the ledger.
            runs: Runs of this very bundle, by interval.
            reference: What they are compared with.
            moves: In how many of the runs before that `[drift]` looks at each metric has moved; where None, that a
                metric has moved is enough to tell it.

        Returns:
            The comparison, empty where the ledger holds no profile of either side.
        """
        seen = self._profiles(tx, runs)
        compared = [run for run in runs if run.run_id in seen]
        others = self._others(tx, compared, reference) if compared else []
        before = self._profiles(tx, others)
        others = [run for run in others if run.run_id in before]
        if not compared or (reference != "training" and not others):
            return Comparison(reference, compared, others, [])
        current = _merged(seen[run.run_id] for run in compared)
        against = _merged(before[run.run_id] for run in others) if others else self._training()
        end = others[-1].interval.end if others else datetime.fromisoformat(self.bundle.manifest.training.end)
        last = compared[-1].interval
        times = Times(last.end, end, last.end - last.start)
        drifts = [
            (role, each)
            for role in current
            for each in compare(
                _without(current[role], self.bundle.key),
                against[role],
                alpha=self.job.drift.alpha,
                times=times,
                bands=self._bands(),
            )
        ]
        return Comparison(reference, compared, others, [self._watched(reference, *each, moves) for each in drifts])

    def record_apart(self, warehouse: Warehouse, run: Run) -> list[Watched]:
        """Have a classifier tell a published run's rows from those of each reference that `[drift]` names, and keep it.

        The rows are read outside of any transaction, and nothing of them is kept. Where they do not come within a
        minute the rest is left out, and logged.

        Returns:
            What is told, against whichever reference.
        """
        if not self.samples:
            return []
        with warehouse.begin("the runs before a run") as tx:
            moves = self._moves(tx.connection, run)
            others = {each: self._others(tx.connection, [run], each) for each in self.job.drift.against}
        until, compared = monotonic() + _SECONDS, []
        try:
            for each, some in others.items():
                compared.append(self.tell_apart(Comparison(each, [run], some, []), moves, until))
        except TimeoutError as error:
            log.warning(Event.MONITORING_FAILED, run_id=run.run_id, error=str(error))
        rows = [_row(run, done, one) for done in compared for one in done.found]
        if rows:
            with warehouse.begin("the drift of a run") as tx:
                tx.load(ledger.DRIFT, pl.DataFrame(rows, schema=_TYPES, orient="row"))
        for done in compared:
            if done.found:
                _log(run, done)
        return [one for done in compared for one in done.found if one.told]

    def tell_apart(
        self,
        compared: Comparison,
        moves: Mapping[tuple[str, str, str, str], int] | None = None,
        until: float = math.inf,
    ) -> Comparison:
        """A comparison with the metric `domain_auc` added; as it is without samples or another side.

        Args:
            compared: Its runs and other runs say which rows are read.
            moves: As `compare` takes them.
            until: When to give up reading, by `time.monotonic`.

        Raises:
            TimeoutError: Not all was read in time.
            SchemaMismatch: The source no longer gives what the bundle declares.
            WarehouseError: The database or file refuses.
            TransientError: The database cannot be reached.
        """
        samples = self.samples
        if not samples or not compared.runs:
            return compared
        reference = samples.training if compared.reference == "training" else None
        if compared.others:
            reference = samples.of((run.interval for run in compared.others), until)
        if reference is None:
            return compared
        apart = told_apart(
            samples.of((run.interval for run in compared.runs), until),
            reference,
            alpha=self.job.drift.alpha,
            band=self._bands()["domain_auc"],
        )
        told = self._watched(compared.reference, "input", apart.drift, moves)
        return replace(compared, found=[*compared.found, told], by=apart.by)

    def _watched(
        self, reference: Reference, role: str, drift: Drift, moves: Mapping[tuple[str, str, str, str], int] | None
    ) -> Watched:
        importance = self.importance.get(drift.column) if role == "input" else None
        told = drift.verdict == "moved"
        if told and moves is not None:
            persist = self.job.drift.persist
            often = 1 + moves.get((reference, role, drift.column, drift.metric), 0)
            told = reference in self.job.drift.against and often >= persist.runs
        if importance is not None and importance < self.job.drift.least_importance:
            told = False
        return Watched(role, drift, importance, told)

    def _bands(self) -> dict[Metric, float]:
        return dict(BANDS) | dict(self.job.drift.bands.items())

    @cached_property
    def importance(self) -> dict[str, float]:
        """What the model loses by each feature, as a share of what it loses by the most important one."""
        found = self.bundle.evaluation.importance
        most = max((each.mean for each in found), default=0.0)
        return {each.column: max(each.mean, 0.0) / most for each in found} if most > 0 else {}

    def _moves(self, tx: sa.Connection, run: Run) -> Mapping[tuple[str, str, str, str], int]:
        """How often each metric has moved in the runs before this one that `[drift] persist` looks at."""
        count = self.job.drift.persist.of - 1
        before = self._before(tx, run, count) if count else []
        return ledger.moves_of(tx, [each.run_id for each in before])

    def _others(self, tx: sa.Connection, runs: Sequence[Run], reference: Reference) -> list[Run]:
        """The published runs of the bundle that a reference is merged of, by interval; none for `training`."""
        first = runs[0].interval.start
        if reference == "training":
            return []
        if reference == "previous":
            return self._before(tx, runs[0], len(runs))
        starts = [run.interval.start for run in runs]
        wanted = starts_of(self.job.calendar, starts[:1] if reference == "four_weeks" else starts, reference)
        taken = {run.interval.start for run in runs}
        span = timedelta(days=_FOUR_WEEKS + 1)
        last = runs[-1].interval.start
        found = ledger.published_by(tx, self.job.name, self.bundle.digest, first - span, last)
        return [run for run in found if run.interval.start in wanted - taken]

    def _before(self, tx: sa.Connection, run: Run, count: int) -> list[Run]:
        return ledger.published_before(tx, self.job.name, self.bundle.digest, run.interval.start, count)

    def _training(self) -> dict[str, Profile]:
        return {"input": self.bundle.input_reference, "output": self.bundle.output_reference}

    def _profiles(self, tx: sa.Connection, runs: Sequence[Run]) -> dict[str, Seen]:
        """What each run saw, by role; without those of which the ledger no longer holds all."""
        unread = [run.run_id for run in runs if run.run_id not in self.kept]
        rows: dict[str, dict[tuple[str, str], str]] = {}
        for row in ledger.profiles_of(tx, *unread) if unread else []:
            rows.setdefault(row["run_id"], {})[row["role"], row["column_name"]] = row["profile"]
        layouts = {role: profile.layouts for role, profile in self._training().items()}
        found = {run.run_id: self.kept[run.run_id] for run in runs if run.run_id in self.kept}
        for run_id, columns in rows.items():
            if all((role, name) in columns for role, named in layouts.items() for name in named):
                found[run_id] = {
                    role: Profile.from_dict({name: json.loads(columns[role, name]) for name in named}, named)
                    for role, named in layouts.items()
                }
        self.kept |= found
        for run_id in list(self.kept)[:-_PROFILES_KEPT]:
            del self.kept[run_id]
        return found


def starts_of(calendar: Calendar, starts: Iterable[datetime], reference: Reference) -> set[datetime]:
    """When the intervals start that `last_week` or `four_weeks` means of intervals that start then."""
    days = (7,) if reference == "last_week" else range(1, _FOUR_WEEKS + 1)
    return {_earlier(calendar, start, each) for start in starts for each in days}


def _earlier(calendar: Calendar, start: datetime, days: int) -> datetime:
    """The instant so many days before, at the same time of the local day."""
    local = start.astimezone(calendar.zone).replace(tzinfo=None)
    return calendar.instant(local - timedelta(days=days))


def _merged(profiles: Iterable[Seen]) -> Seen:
    return reduce(lambda one, two: {role: one[role].merge(two[role]) for role in one}, profiles)


def _without(profile: Profile, names: Sequence[str]) -> Profile:
    columns = {name: column for name, column in profile.columns.items() if name not in names}
    return Profile(columns, {name: profile.layouts[name] for name in columns})


def _log(run: Run, compared: Comparison) -> None:
    verdicts = [each.drift.verdict for each in compared.found]
    log.info(
        Event.RUN_DRIFT,
        run_id=run.run_id,
        reference=compared.reference,
        moved=verdicts.count("moved"),
        steady=verdicts.count("steady"),
        not_enough_data=verdicts.count("not enough data"),
        moves=[_move(each) for each in compared.found if each.drift.verdict == "moved"],
    )


def _move(each: Watched) -> dict[str, Any]:
    drift = each.drift
    measured = {"value": drift.value, "floor": drift.floor, "band": drift.band, "told": each.told}
    return {"role": each.role, "column": drift.column, "metric": drift.metric, **measured}


def _row(run: Run, compared: Comparison, each: Watched) -> tuple[Any, ...]:
    """A row of `batchscore_drift`."""
    drift = each.drift
    return (
        run.run_id,
        compared.reference,
        each.role,
        drift.column,
        drift.metric,
        drift.value,
        drift.share,
        drift.reference_share,
        drift.floor,
        drift.p_value,
        drift.band,
        drift.verdict,
        each.importance,
        each.told,
        drift.n,
        drift.reference_n,
    )
