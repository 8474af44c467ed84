"""Anything that can happen to one interval, in any order, against a model of a few lines."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import Queue
from typing import ClassVar

import polars as pl
import pytest
import sqlalchemy as sa
import toy
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from toy import Project

from batchscore.cli.session import Session, runs_of
from batchscore.errors import IntervalLeased
from batchscore.ledger import LEASES, RUNS, Run
from batchscore.model.bundle import Bundle
from batchscore.model.scorer import score
from batchscore.run.execute import score_interval
from batchscore.run.plan import plan
from batchscore.settings import load_settings

CHUNKS, CHUNK_ROWS = 3, 10
FIRST_ID = 3101
LONG_AGO = datetime(2024, 1, 1, tzinfo=UTC)
ACTIONS = ["start", "start", "force", "go on", "go on", "finish", "finish", "kill", "expire", "change", "promote"]
OUTPUT = ["id", "day", "prediction", "score"]


class Killed(BaseException):
    """The process is gone: nothing that handles errors sees it."""


@dataclass(eq=False)
class Worker:
    """A process that scores the interval, in a thread that stands still whenever it has committed a chunk.

    Attributes:
        version: Which rows it read.
        bundle: Which bundle it scores them with.
        revision: How often the interval was published when it began.
    """

    version: int
    bundle: int
    revision: int
    reports: Queue[object] = field(default_factory=Queue)
    orders: Queue[bool] = field(default_factory=Queue)
    thread: threading.Thread = field(default_factory=threading.Thread)

    def start(self, work: Callable[[Callable[[int], None]], object]) -> object:
        """Work until the first chunk is committed, or to the end: None, or what became of it."""
        self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.thread.start()
        return self.reports.get(timeout=60)

    def order(self, *, live: bool = True) -> object:
        """Let it go on to the next chunk or to the end, or end it where it stands; see `start`."""
        self.orders.put(live)
        return self.reports.get(timeout=60)

    def _run(self, work: Callable[[Callable[[int], None]], object]) -> None:
        try:
            self.reports.put(work(self._stop))
        except (Exception, Killed) as error:  # noqa: BLE001 - the test looks at it
            self.reports.put(error)

    def _stop(self, _: int) -> None:
        self.reports.put(None)
        if not self.orders.get(timeout=60):
            raise Killed


class Machine(RuleBasedStateMachine):
    """One interval of three chunks in SQLite.

    The model: which rows there are, which bundle is champion, who took the lease last and whether it has expired, how
    many chunks each unfinished run has committed of which rows, and which rows by which bundle were published last.
    """

    template: ClassVar[Path]
    models: ClassVar[tuple[Bundle, Bundle]]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.url = f"sqlite:///{self.folder}/warehouse"
        shutil.copy(self.template, self.folder / "warehouse")
        self.session = Session.of(load_settings({"warehouse_url": self.url}))
        self.job = self.session.job("toy")
        self.interval = self.job.calendar.at("2024-02-01")
        self.warehouse = self.session.warehouse()
        self.versions = [toy.rows(32, a_day=100)[FIRST_ID - 1 :][: CHUNKS * CHUNK_ROWS]]
        self.champion = 0
        self.workers: dict[str, Worker] = {}
        self.holder: Worker | None = None
        self.expired = False
        self.done: dict[tuple[int, int], tuple[int, int]] = {}
        self.published: list[tuple[int, int]] = []

    @rule(action=st.sampled_from(ACTIONS), name=st.sampled_from(["one", "two"]), chunk=st.integers(0, CHUNKS - 1))
    def step(self, action: str, name: str, chunk: int) -> None:
        """One rule, for hypothesis leaves some out of every example: they are of use together only."""
        match action:
            case "start" | "force":
                self.start(name, force=action == "force")
            case "go on" | "finish" if name in self.workers:
                self.go_on(name, to_the_end=action == "finish")
            case "kill" if name in self.workers:
                self.kill(name)
            case "expire":
                self.expire()
            case "change":
                self.change(chunk)
            case "promote":
                self.champion = 1 - self.champion

    def start(self, name: str, *, force: bool) -> None:
        """Whoever starts finds it published, or leased by another, or takes it up where the ledger says."""
        if name in self.workers:
            return
        worker = Worker(len(self.versions) - 1, self.champion, len(self.published))

        result = worker.start(lambda stop: self._score(worker, stop, force=force))

        if self.published and not force:
            assert result == "nothing to do"
        elif self.holder and not self.expired:
            assert isinstance(result, IntervalLeased)
        else:
            self.holder, self.expired = worker, False
            done = self._done(worker)
            self.done[worker.bundle, worker.revision] = (worker.version, done)
            self.workers[name] = worker
            self._goes_on(name, result)

    def go_on(self, name: str, *, to_the_end: bool) -> None:
        """Who still has the lease commits the next chunk or publishes; who lost it stops."""
        worker = self.workers[name]
        while True:
            result = worker.order()
            if self.holder is worker:
                self._goes_on(name, result)
            else:
                assert isinstance(result, IntervalLeased)
                del self.workers[name]
            if name not in self.workers or not to_the_end:
                return

    def kill(self, name: str) -> None:
        """A process that dies leaves its lease as it is."""
        left = self._leases()
        assert isinstance(self.workers.pop(name).order(live=False), Killed)
        with self.warehouse.begin() as tx:
            tx.connection.execute(sa.update(LEASES).values(left))

    def expire(self) -> None:
        """Time passes without a sign of life."""
        with self.warehouse.begin() as tx:
            if tx.has_table(LEASES.name):
                tx.connection.execute(sa.update(LEASES).where(LEASES.c.owner.is_not(None)).values(expires_at=LONG_AGO))
        self.expired = True

    def change(self, chunk: int) -> None:
        """A row of the source gets another value."""
        row, value = chunk * CHUNK_ROWS + 4, float(len(self.versions))
        toy.execute(self.url, f"UPDATE toy SET b = {value} WHERE id = {FIRST_ID + row}")
        changed = pl.when(pl.col("id") == FIRST_ID + row).then(value).otherwise("b").alias("b")
        self.versions.append(self.versions[-1].with_columns(changed))

    @invariant()
    def the_table_is_that_of_the_last_publish(self) -> None:
        """Readers see the last published rows by the last published bundle, whole, and the ledger says whose they are."""
        with self.warehouse.begin() as tx:
            if not tx.has_table("toy_predictions"):
                assert not self.published
                return
            found = [
                tuple(row)
                for row in tx.connection.execute(
                    sa.text(f"SELECT {', '.join(OUTPUT)} FROM toy_predictions ORDER BY id")
                )
            ]
            runs = tx.connection.execute(sa.select(RUNS.c.status, RUNS.c.published_at)).all()
        assert found == (self._expected(*self.published[-1]) if self.published else [])
        assert sum(run.status == "published" for run in runs) == bool(self.published)
        assert sum(run.published_at is not None for run in runs) == len(self.published)

    def teardown(self) -> None:
        """Let every thread end."""
        for worker in self.workers.values():
            worker.orders.put(False)
            worker.thread.join(60)
        self.warehouse.close()
        shutil.rmtree(self.folder)

    def _score(self, worker: Worker, stop: Callable[[int], None], *, force: bool) -> object:
        """What `score --interval`, with or without `--force`, does."""
        bundle = self.models[worker.bundle]
        with self.session.warehouse() as warehouse:
            scoring = self.session.scoring(self.job, bundle, warehouse, None, CHUNK_ROWS)
            history = runs_of(warehouse, self.job)
            window = {"first": self.interval.start, "last": self.interval.end}
            (planned,) = plan(self.job, history, **window, now=self.session.now, digest=bundle.digest)
            if planned.state in ("published", "stale-model") and not force:
                return "nothing to do"
            return score_interval(scoring, self.interval, history, stop)

    def _done(self, worker: Worker) -> int:
        """How many chunks the worker finds done: those of rows that are still the same, or none."""
        version, chunks = self.done.get((worker.bundle, worker.revision), (0, 0))
        then, now = (self.versions[v].head(chunks * CHUNK_ROWS) for v in (version, worker.version))
        return chunks if then.equals(now) else 0

    def _goes_on(self, name: str, result: object) -> None:
        worker = self.workers[name]
        run = (worker.bundle, worker.revision)
        version, chunks = self.done[run]
        if chunks < CHUNKS:
            assert result is None
            self.done[run] = (version, chunks + 1)
            return
        assert isinstance(result, Run)
        assert result.status == "published"
        self.published.append((worker.version, worker.bundle))
        self.done, self.holder = {}, None
        del self.workers[name]

    def _expected(self, version: int, bundle: int) -> list[tuple[object, ...]]:
        rows = self.models[bundle].schema.conform(self.versions[version].drop("y"), "the model")
        scored = score(self.models[bundle], rows, ["day"]).predictions.select(OUTPUT)
        return scored.with_columns(pl.col("day").cast(pl.String), pl.col("prediction").cast(pl.Int64)).rows()

    def _leases(self) -> dict[str, object]:
        with self.warehouse.begin() as tx:
            row = tx.connection.execute(sa.select(LEASES).where(LEASES.c.job == "toy")).mappings().one()
        return {name: row[name] for name in ("fence", "owner", "expires_at")}


@pytest.fixture
def machine(trained: Project, tmp_path: Path) -> Iterator[type[Machine]]:
    """The machine with two bundles, and a database to copy that has the rows and nothing else."""
    project = Project.at(tmp_path, f"duckdb:///{trained.root}/warehouse.duckdb")
    for iterations in ("max_iter=20", "max_iter=5"):
        project.edit("jobs/toy.py", ("max_iter=20", iterations))
        assert project.call("train", "toy").code == 0
    Machine.template = tmp_path / "template"
    toy.load(f"sqlite:///{Machine.template}", toy.rows(32)[FIRST_ID - 1 :][: CHUNKS * CHUNK_ROWS])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setenv("BATCHSCORE_LEASE_SECONDS", "3600")
        registry = Session.of(load_settings({"warehouse_url": f"sqlite:///{Machine.template}"})).registry
        Machine.models = (registry.load("toy", 1), registry.load("toy", 2))
        yield Machine


@pytest.mark.parametrize("examples", [15, pytest.param(150, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_anything_in_any_order(machine: type[Machine], examples: int) -> None:
    """Whatever is started, killed, overtaken, changed or forced: the table is the last published run's, whole."""
    checks = list(HealthCheck)
    options = settings(max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=checks)
    run_state_machine_as_test(machine, settings=options)
