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

import sqlalchemy as sa

from batchscore import ledger
from batchscore.columns import Columns, Grid
from batchscore.drift import BANDS, Drift, Metric, Times, compare, compare_columns
from batchscore.interval import Calendar
from batchscore.job import Job
from batchscore.ledger import Run
from batchscore.logs import Event, log
from batchscore.model.bundle import Bundle
from batchscore.monitor.apart import Samples, told_apart
from batchscore.monitor.estimate import Estimator
from batchscore.monitor.kept import load
from batchscore.profile import Profile
from batchscore.warehouse import Transaction, Warehouse
from batchscore.watching import REFERENCES, Reference

__all__ = ["Comparison", "Watched", "Watcher", "starts_of"]

_FOUR_WEEKS = 28
# A backfill meets each run in four weeks of others, and parsing what it saw costs more than all that comes after.
_PROFILES_KEPT = 64
# How long a run may wait for the samples of its rows and of others; then it does without.
_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a run saw, by role.

    Attributes:
        profiles: All of it.
        columns: What is compared of it: of the inputs all but the key; None where a column was private then that is not
            by now, or the other way round.
    """

    profiles: Mapping[str, Profile]
    columns: Mapping[str, Columns] | None


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
        met: Runs that were looked at, by id, as they were published.
    """

    job: Job
    bundle: Bundle
    samples: Samples | None = None
    kept: dict[str, Seen] = field(default_factory=dict)
    met: dict[str, Run] = field(default_factory=dict)

    def record(self, tx: Transaction, run: Run, *, again: bool = False) -> list[Watched] | None:
        """Compare a published run with every reference, keep the result in the ledger, and log what is told.

        Of a classifier it also keeps how good its predictions are by the scores alone: see `Estimator`.

        Args:
            tx: An open transaction.
            run: The run.
            again: Whether it was left by a process that is gone, and may be another's by now.

        Returns:
            What is told, against whichever reference; None, and nothing is done, where it is another's, or the run is
            published no longer.
        """
        ledger.lock_run(tx.connection, run.run_id)
        replaced = not ledger.is_published(tx.connection, run)
        if replaced or (again and ledger.is_compared(tx.connection, run.run_id)):
            return None
        self.met[run.run_id] = run
        moves = self._moves(tx.connection, run)
        lately = self._lately(tx.connection, [run])
        compared = [self.compare(tx.connection, [run], reference, moves, lately) for reference in REFERENCES]
        ledger.forget_drift(tx.connection, run.run_id)
        load(tx, ledger.DRIFT, _rows(run, compared))
        for each in compared:
            if each.found and each.reference in self.job.drift.against:
                _log(run, each)
        self._estimate(tx, run)
        return [one for each in compared for one in each.found if one.told]

    def _estimate(self, tx: Transaction, run: Run) -> None:
        seen = self._profiles(tx.connection, [run]).get(run.run_id)
        # A version that predicted this interval before is replaced, whether or not anything can be estimated.
        ledger.forget_replaced(tx.connection, self.job.name, run)
        if self._estimator is not None and seen is not None:
            outputs = seen.profiles["output"].columns
            scores = [column for name, column in outputs.items() if name.startswith("score")]
            self._estimator.record(tx, run, scores, ledger.clock(tx.connection))

    @cached_property
    def _estimator(self) -> Estimator | None:
        tested = self.bundle.tested
        if tested is None or tested.task not in ("binary", "multiclass"):
            return None
        return Estimator(self.job.name, self.bundle, tested)

    def compare(
        self,
        tx: sa.Connection,
        runs: Sequence[Run],
        reference: Reference = "training",
        moves: Mapping[tuple[str, str, str, str], int] | None = None,
        lately: Sequence[Run] | None = None,
    ) -> Comparison:
        """Merge what published runs saw, and compare it with the rows that the bundle was trained on, or other runs.

        The key is left out: new rows have new ones by nature.

        Args:
            tx: An open transaction on the ledger.
            runs: Runs of this very bundle, by interval.
            reference: What they are compared with.
            moves: In how many of the runs before that `[drift]` looks at each metric has moved; where None, that a
                metric has moved is enough to tell it.
            lately: The published runs of the four weeks before, where they are known already.

        Returns:
            The comparison, empty where the ledger holds no profile of either side.
        """
        seen = self._profiles(tx, runs)
        compared = [run for run in runs if run.run_id in seen]
        others = self._others(tx, compared, reference, lately) if compared else []
        before = self._profiles(tx, others)
        others = [run for run in others if run.run_id in before]
        if not compared or (reference != "training" and not others):
            return Comparison(reference, compared, others, [])
        current = [seen[run.run_id] for run in compared]
        against = [before[run.run_id] for run in others] if others else [self._training]
        end = others[-1].interval.end if others else datetime.fromisoformat(self.bundle.manifest.training.end)
        last = compared[-1].interval
        times = Times(last.end, end, last.end - last.start)
        drifts = [(role, each) for role in self._grids for each in self._drifts(role, current, against, times)]
        return Comparison(reference, compared, others, [self._watched(reference, *each, moves) for each in drifts])

    def _drifts(self, role: str, current: Sequence[Seen], against: Sequence[Seen], times: Times) -> list[Drift]:
        judged: Any = {"alpha": self.job.drift.alpha, "times": times, "bands": self._bands()}
        sides = [[each.columns[role] for each in side if each.columns] for side in (current, against)]
        if (len(sides[0]), len(sides[1])) == (len(current), len(against)):
            return compare_columns(*map(Columns.merged, sides), **judged)
        names = self._grids[role].names
        return compare(*(_merged(side, role, names) for side in (current, against)), **judged)

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
            lately = self._lately(tx.connection, [run])
            others = {each: self._others(tx.connection, [run], each, lately) for each in self.job.drift.against}
        until, compared = monotonic() + _SECONDS, []
        try:
            for each, some in others.items():
                compared.append(self.tell_apart(Comparison(each, [run], some, []), moves, until))
        except TimeoutError as error:
            log.warning(Event.MONITORING_FAILED, run_id=run.run_id, error=str(error))
        if any(done.found for done in compared):
            with warehouse.begin("the drift of a run") as tx:
                ledger.lock_run(tx.connection, run.run_id)
                ledger.forget_drift(tx.connection, run.run_id, "domain_auc")
                load(tx, ledger.DRIFT, _rows(run, compared))
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
        return ledger.moves_of(tx, [each.run_id for each in self._before(tx, run, count)]) if count else {}

    def _lately(self, tx: sa.Connection, runs: Sequence[Run]) -> list[Run]:
        """The published runs of the bundle from four weeks before the first to the last, by interval."""
        first, last = runs[0].interval.start, runs[-1].interval.start
        span = timedelta(days=_FOUR_WEEKS + 1)
        found = ledger.published_ids(tx, self.job.name, self.bundle.digest, first - span, last)
        if unmet := [run_id for run_id in found if run_id not in self.met]:
            self.met |= {run.run_id: run for run in ledger.select_runs(tx, ledger.RUNS.c.run_id.in_(unmet))}
        return [self.met[run_id] for run_id in found if run_id in self.met]

    def _others(
        self, tx: sa.Connection, runs: Sequence[Run], reference: Reference, lately: Sequence[Run] | None = None
    ) -> list[Run]:
        """The published runs of the bundle that a reference is merged of, by interval; none for `training`."""
        if reference == "training":
            return []
        lately = self._lately(tx, runs) if lately is None else lately
        first = runs[0].interval.start
        if reference == "previous":
            before = [run for run in lately if run.interval.start < first][-len(runs) :]
            return before if len(before) == len(runs) else self._before(tx, runs[0], len(runs))
        starts = [run.interval.start for run in runs]
        wanted = starts_of(self.job.calendar, starts[:1] if reference == "four_weeks" else starts, reference)
        taken = {run.interval.start for run in runs}
        return [run for run in lately if run.interval.start in wanted - taken]

    def _before(self, tx: sa.Connection, run: Run, count: int) -> list[Run]:
        return ledger.published_before(tx, self.job.name, self.bundle.digest, run.interval.start, count)

    @cached_property
    def _grids(self) -> Mapping[str, Grid]:
        layouts = {"input": self.bundle.input_reference.layouts, "output": self.bundle.output_reference.layouts}
        key = {"input": self.bundle.key, "output": ()}
        return {
            role: Grid({name: layout for name, layout in named.items() if name not in key[role]})
            for role, named in layouts.items()
        }

    @cached_property
    def _training(self) -> Seen:
        return self._seen({"input": self.bundle.input_reference, "output": self.bundle.output_reference})

    def _seen(self, profiles: Mapping[str, Profile]) -> Seen:
        columns = {}
        for role, grid in self._grids.items():
            some = [profiles[role].columns[name] for name in grid.names]
            if [each.layout for each in some] != list(grid.layouts.values()):
                return Seen(profiles, None)
            columns[role] = Columns.of(some, grid)
        return Seen(profiles, columns)

    def _profiles(self, tx: sa.Connection, runs: Sequence[Run]) -> dict[str, Seen]:
        """What each run saw, by role; without those of which the ledger no longer holds all."""
        unread = [run.run_id for run in runs if run.run_id not in self.kept]
        rows: dict[str, dict[tuple[str, str], str]] = {}
        for run_id, role, name, profile in ledger.texts_of(tx, *unread) if unread else []:
            rows.setdefault(run_id, {})[role, name] = profile
        layouts = {role: profile.layouts for role, profile in self._training.profiles.items()}
        found = {run.run_id: self.kept[run.run_id] for run in runs if run.run_id in self.kept}
        for run_id, columns in rows.items():
            if all((role, name) in columns for role, named in layouts.items() for name in named):
                read = {
                    role: Profile.from_dict({name: json.loads(columns[role, name]) for name in named}, named)
                    for role, named in layouts.items()
                }
                found[run_id] = self._seen(read)
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


def _merged(seen: Sequence[Seen], role: str, names: Sequence[str]) -> Profile:
    return reduce(Profile.merge, (each.profiles[role].only(names) for each in seen))


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


def _rows(run: Run, compared: Iterable[Comparison]) -> list[tuple[Any, ...]]:
    """Rows of `batchscore_drift`."""
    return [
        (
            run.run_id,
            each.reference,
            one.role,
            drift.column,
            drift.metric,
            drift.value,
            drift.share,
            drift.reference_share,
            drift.floor,
            drift.p_value,
            drift.band,
            drift.verdict,
            one.importance,
            one.told,
            drift.n,
            drift.reference_n,
        )
        for each in compared
        for one in each.found
        for drift in [one.drift]
    ]
