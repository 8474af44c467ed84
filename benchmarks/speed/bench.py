"""The runs of a plan, one process after the other."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import duckdb
import polars as pl

from benchmarks.speed import data
from benchmarks.speed.contenders import LOKY, OURS, PEERS, STRAIGHT, Contender, Interpreters
from benchmarks.speed.machine import Postgres, versions
from benchmarks.speed.measure import Failed, Measured, measure
from benchmarks.speed.plan import Entry, Plan
from benchmarks.speed.project import Project
from benchmarks.speed.report import Cell, Difference, Floor, Left, Phases, Start
from benchmarks.speed.workloads import KEY, LARGE, Workload

__all__ = ["Bench"]

_HERE = Path(__file__).parent
# A model is as slow as one that learned from ten times as many.
_LEARNED = 30_000
_PART_ROUNDS = 3
_PARTS = "by_parts.duckdb"
_FIRST_ID = 1_000_000
# Of the packages that a start imports, so many are told.
_HEAVIEST = 10
_JOINED = (
    "SELECT count(*), count(*) FILTER (WHERE o.prediction <> t.prediction), max(abs(o.score - t.score)) "
    f"FROM {{}} AS o JOIN {{}} AS t USING ({KEY})"
)


@dataclass(slots=True)
class Bench:
    """A plan, and what has been measured of it."""

    plan: Plan
    project: Project
    server: Postgres
    interpreters: Interpreters
    cells: list[Cell] = field(default_factory=list)
    floors: list[Floor] = field(default_factory=list)
    start: Start | None = None
    left: list[Left] = field(default_factory=list)
    _begun: float = field(default_factory=time.monotonic)
    _parts: dict[tuple[str, ...], tuple[float, float]] = field(default_factory=dict)
    _used: dict[Contender, str] = field(default_factory=dict)

    def run(self) -> None:
        """All of it; what may have fewer turns where time is short comes last."""
        self._prepare()
        if self.plan.starts:
            self.start = self._starts(self.plan.entries[0].workload)
        if self.plan.large:
            self._grow(*self.plan.large)
        for entry in self.plan.entries:
            self._compete(entry)
            self._floor(entry.workload)

    def versions(self) -> Mapping[str, str]:
        """Of what took part: the version of each package, in the interpreter that ran it."""
        found = dict(versions(("batchscore", "scikit-learn", "lightgbm", "numpy", "polars", "pyarrow", "duckdb")))
        for contender, python in self._used.items():
            found |= {name: given for name, given in versions(contender.packages, python).items() if name not in found}
        return found

    def _prepare(self) -> None:
        workloads = [entry.workload for entry in self.plan.entries]
        self.project.write([*workloads, *(self.plan.large or ())])
        with _told("rows"):
            for table in dict.fromkeys(each.at.table for each in workloads):
                self._fill(table, [each for each in workloads if each.at.table == table])
        for model in dict.fromkeys(each.model for each in workloads):
            with _told(f"training {model}"):
                self.project.train(model)

    def _fill(self, table: str, workloads: Sequence[Workload]) -> None:
        """Make a table of rows to learn from and of one day to score, and the file of that day."""
        rows = max(each.rows for each in workloads)
        drawn: Callable[..., Iterator[pl.DataFrame]] = data.wide_of if table == "wide" else data.flights_of
        learned = (data.learned_wide if table == "wide" else data.learned_flights)(min(rows, _LEARNED))
        with self.project.connected() as connection:
            data.create(connection, table, learned)
            data.add(connection, table, [learned])
            parts = drawn(workloads[0].day, rows, _FIRST_ID)
            data.add(connection, table, parts, self.project.file(workloads[0]))
            data.index(connection, table)

    def _compete(self, entry: Entry) -> None:
        """Take turns, and compare what came of it."""
        workload = entry.workload
        # Ours behind that by loky, which writes into the same table: it is the one that others are compared with.
        besides = ([LOKY], [STRAIGHT]) if entry.straight else ([], [])
        contenders = [*besides[0], OURS, *(PEERS[name] for name in entry.peers), *besides[1]]
        cells = {each: Cell(workload.name, workload.job, each.name, workload.rows) for each in contenders}
        self.cells += cells.values()
        running = {each: python for each in contenders if (python := self._python(each, cells[each], workload))}
        for turn in range(self.plan.rounds):
            for each, python in running.items():
                if self._has_time(cells[each], math.inf if each == OURS else entry.spend):
                    self._turn(each, workload, python, cells[each])
            if turn == 0:
                self._compare(workload, cells)
        self.project.forget("by\\_%")

    def _python(self, contender: Contender, cell: Cell, workload: Workload) -> str | None:
        """Who runs it; None where nobody can, and the cell says so."""
        python = self.interpreters.having(contender)
        if python is None:
            cell.note = "not at hand: needs " + ", ".join((*contender.packages, *contender.programs))
            return None
        self._used[contender] = python
        if contender == PEERS["mlflow"]:
            save = [python, str(_HERE / "peers/mlflow_save.py")]
            subprocess.run(
                [*save, str(self.project.model_file(workload)), str(self.project.saved_model(workload))],
                check=True,
                capture_output=True,
            )
        return python

    def _has_time(self, cell: Cell, spend: float) -> bool:
        """Whether another turn fits into what a contender may spend."""
        if cell.note:
            return False
        if not cell.measured:
            return True
        taken = [each.seconds for each in cell.measured]
        late = time.monotonic() - self._begun > self.plan.minutes * 60
        return not late and sum(taken) + max(taken) <= spend

    def _turn(self, contender: Contender, workload: Workload, python: str, cell: Cell) -> None:
        if contender.is_ours:
            self.project.evening(workload)
            self.project.forget()
        elif workload.target == "duckdb":
            Path(contender.target(self.project, workload)).unlink(missing_ok=True)
        else:
            self.project.forget(contender.output(self.project, workload))
        command = contender.command(self.project, workload, python)
        before, log = self.server.cpu_seconds(), self.server.wal_bytes()
        try:
            measured = measure(command, self.project.root, contender.environment(self.project, workload))
        except Failed as error:
            if contender == OURS:
                raise SystemExit(f"{workload.name}: {error}") from error
            cell.note = f"failed: {error}"
            return
        cell.measured.append(measured)
        cell.server_cpu.append(self.server.cpu_seconds() - before)
        if contender in (OURS, LOKY):
            cell.phases.append(_phases(measured))
        if contender == OURS and workload.target == "postgres" and len(cell.measured) == 1:
            logged = self.server.wal_bytes() - log
            self.left.append(Left(workload.name, workload.rows, *self.project.sizes(workload), logged))
        _say(f"{workload.job}, {workload.rows:,} rows: {contender.name}: {measured.seconds:.2f} s")

    def _compare(self, workload: Workload, cells: Mapping[Contender, Cell]) -> None:
        for each, cell in cells.items():
            if cell.measured and each != LOKY:
                found = self._difference(workload, each)
                if each != OURS:
                    cell.difference = found
                elif (found.rows, found.labels, found.score) != (workload.rows, 0, 0.0):
                    raise SystemExit(f"{workload.name}: of {workload.rows} rows there are {found.rows} predictions")

    def _difference(self, workload: Workload, contender: Contender) -> Difference:
        """Its predictions beside ours, joined by the key."""
        ours, theirs = (each.output(self.project, workload) for each in (OURS, contender))
        if workload.target == "postgres":
            with self.project.connected() as connection:
                connection.execute("SET work_mem = '256MB'")
                row = connection.execute(_JOINED.format(ours, theirs)).fetchone()
        else:
            with duckdb.connect() as connection:
                connection.execute(f"ATTACH '{OURS.target(self.project, workload)}' AS o (READ_ONLY)")
                if contender != OURS:
                    connection.execute(f"ATTACH '{contender.target(self.project, workload)}' AS t (READ_ONLY)")
                there = "o" if contender == OURS else "t"
                row = connection.execute(_JOINED.format(f"o.{ours}", f"{there}.{theirs}")).fetchone()
        assert row is not None
        return Difference(*row)

    def _floor(self, workload: Workload) -> None:
        """The parts of a workload, each measured once for all that have it."""
        file, columns = str(self.project.file(workload)), ",".join((KEY, *workload.at.columns))
        rows = (self.project.uri, self.project.query(workload)) if workload.source == "postgres" else (file, columns)
        target = self.project.uri if workload.target == "postgres" else str(self.project.root / _PARTS)
        parts = {
            "read": self._part("read", *rows),
            "score": self._part("score", file, columns, workload.model),
            "write": self._part("write", target, str(workload.rows)),
        }
        self.floors.append(Floor(workload.name, workload.job, workload.rows, parts, os.cpu_count() or 1))

    def _part(self, *what: str) -> tuple[float, float]:
        """The least seconds and processor time of a part alone, of three times: it is for a floor."""
        if what not in self._parts:
            told = [self._part_once(*what) for _ in range(min(self.plan.rounds, _PART_ROUNDS))]
            self._parts[what] = (min(s for s, _ in told), min(c for _, c in told))
            _say(f"{what[0]} alone: {self._parts[what][0]:.2f} s")
        return self._parts[what]

    def _part_once(self, *what: str) -> tuple[float, float]:
        self.project.forget("by\\_parts")
        (self.project.root / _PARTS).unlink(missing_ok=True)
        before = self.server.cpu_seconds()
        measured = measure([sys.executable, str(_HERE / "parts.py"), *what], self.project.root, os.environ)
        told = json.loads(measured.output)
        return told["seconds"], told["cpu_seconds"] + self.server.cpu_seconds() - before

    def _starts(self, workload: Workload) -> Start:
        """How long a help takes, and a run until it has read its first chunk."""
        root, environment = self.project.root, OURS.environment(self.project, workload)
        asked = [sys.executable, "-m", "batchscore", "--help"]
        helped = [measure(asked, root, environment).seconds for _ in range(self.plan.starts)]
        killed = environment | {"BATCHSCORE_FAULT": "after_begun:0:kill"}
        read = []
        for _ in range(self.plan.starts):
            self.project.evening(workload)
            read.append(measure(self.project.command(workload), root, killed, killed=True).seconds)
        self.project.evening(workload)
        command = self.project.command(workload)
        timed = [command[0], "-X", "importtime", *command[1:]]
        told = subprocess.run(
            timed, cwd=root, env=killed, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        _say(f"start: {statistics.median(helped):.2f} s, {statistics.median(read):.2f} s")
        return Start(helped, read, _heaviest(told.stderr.decode()))

    def _grow(self, small: Workload, large: Workload) -> None:
        """Score a small and a large interval of one table, and nothing else."""
        with _told(f"{large.rows:,} rows"), self.project.connected() as connection:
            first = 0
            data.create(connection, LARGE, data.learned_flights(1))
            for each in (small, large):
                data.add(connection, LARGE, data.flights_of(each.day, each.rows, first))
                first += each.rows
            data.index(connection, LARGE)
        for each, rounds in ((small, self.plan.rounds), (large, 1)):
            cell = Cell(each.name, each.job, OURS.name, each.rows)
            self.cells.append(cell)
            for _ in range(rounds):
                self._turn(OURS, each, sys.executable, cell)
            self._compare(each, {OURS: cell})
        self.project.forget(LARGE, self.project.output(small))


def _heaviest(told: str) -> list[tuple[str, float]]:
    """The packages whose own modules took longest to import, from what `-X importtime` says."""
    own: Counter[str] = Counter()
    for micros, name in re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", told, re.MULTILINE):
        own[name.partition(".")[0]] += int(micros)
    return [(name, micros / 1e6) for name, micros in own.most_common(_HEAVIEST)]


def _phases(measured: Measured) -> Phases:
    """What its log tells of a run of ours, which has one interval."""
    events = [json.loads(line) for line in measured.output.splitlines()]
    # Of chunks the last one stays.
    at = {each["event"]: datetime.fromisoformat(each["timestamp"]) for each in events}
    chunks = (at["chunk.committed"] - at["run.started"]).total_seconds()
    publishing = (at["run.published"] - at["chunk.committed"]).total_seconds()
    return Phases(measured.seconds - chunks - publishing, chunks, publishing)


@contextmanager
def _told(what: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    _say(f"{what}: {time.monotonic() - begun:.1f} s to set up")


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
