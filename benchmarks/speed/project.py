"""A folder with a job for each workload, the models they share, and a warehouse that is as it was every evening."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg.sql import SQL, Identifier

from benchmarks.speed.workloads import DAY, KEY, Workload

__all__ = ["Project"]

_JOBS = Path(__file__).parent / "jobs"
_JOB = """
[job]
name = "{job}"

[problem]
objective = "Say whether a flight will arrive more than 15 minutes late"
task = "binary"
target = "late"

[source]
{source}
key = ["{key}"]

[interval]
every = "day"
start = {start}

[labels]
sql = "labels_{rows.table}.sql"

[training]
from = {rows.learn[0]}
to = {rows.learn[1]}
split = {{ by = "random", test = 0.2 }}

[model]
name = "{model}"

[output]
table = "{table}"
"""
_LABELS = f"SELECT {KEY}, late FROM {{}} WHERE scheduled_at >= :interval_start AND scheduled_at < :interval_end"
_WHY = "the rows are those of the table, in a file"


@dataclass(frozen=True, slots=True)
class Project:
    """The folder, and the Postgres that has its rows."""

    root: Path
    uri: str

    def write(self, workloads: Sequence[Workload]) -> None:
        """Write the files of the jobs."""
        (self.root / "jobs").mkdir()
        (self.root / "sql").mkdir()
        # A model is trained by the job that goes from Postgres to Postgres, whether that is to score or not.
        for each in dict.fromkeys([*workloads, *(Workload(each.model, 0, DAY) for each in workloads)]):
            query = f"{each.model}_{each.at.table}.sql"
            given = {"job": each.job, "model": each.model, "rows": each.at, "table": self.output(each), "key": KEY}
            source = (
                f'sql = "{query}"' if each.source == "postgres" else f'parquet = "{self.file(each, templated=True)}"'
            )
            job = _JOB.format(**given, source=source, start=each.at.learn[0])
            (self.root / f"jobs/{each.job}.toml").write_text(job)
            shutil.copy(_JOBS / f"{each.model}.py", self.root / f"jobs/{each.job}.py")
            (self.root / "sql" / query).write_text(each.at.select(":interval_start", ":interval_end") + "\n")
            (self.root / f"sql/labels_{each.at.table}.sql").write_text(_LABELS.format(each.at.table) + "\n")

    def file(self, workload: Workload, *, templated: bool = False) -> Path:
        """The Parquet file of a day of the rows, of which a workload's columns are read."""
        day = "{interval_start:%Y-%m-%d}" if templated else workload.day
        return self.root / f"rows/{workload.at.table}_{day}.parquet"

    def output(self, workload: Workload) -> str:
        """The table that a job publishes into."""
        return f"{workload.job}_predictions"

    def train(self, model: str) -> None:
        """Train a model, from Postgres."""
        workload = Workload(model, 0, DAY)
        self.run(workload, "train", workload.job)

    def model_file(self, workload: Workload) -> Path:
        """The fitted pipeline, as joblib wrote it."""
        return self.root / f"var/registry/{workload.model}/1/pipeline.joblib"

    def saved_model(self, workload: Workload) -> Path:
        """The same in MLflow's format, where it has been saved so."""
        return self.root / f"mlflow/{workload.model}"

    def query(self, workload: Workload) -> str:
        """The query for the interval's rows, as someone would write it by hand."""
        day, next_day = (f"'{each} 00:00:00+00'" for each in (workload.day, workload.day + timedelta(days=1)))
        return workload.at.select(day, next_day)

    def command(self, workload: Workload) -> list[str]:
        """What scores the workload's interval."""
        window = ["--from", str(workload.day), "--to", str(workload.day + timedelta(days=1))]
        return [sys.executable, "-m", "batchscore", "backfill", workload.job, *window, "--accept-sql", _WHY]

    def environment(self, workload: Workload) -> Mapping[str, str]:
        """The environment of the process that does."""
        there = self.uri if workload.target == "postgres" else f"duckdb:///{self.root}/{workload.job}.duckdb"
        given = {"BATCHSCORE_WAREHOUSE_URL": there}
        if workload.source == "postgres":
            given["BATCHSCORE_SOURCE_URL"] = self.uri
        return os.environ | given

    def run(self, workload: Workload, *command: str) -> None:
        """Run one of our commands, which must succeed."""
        told = subprocess.run(
            [sys.executable, "-m", "batchscore", *command],
            cwd=self.root,
            env=dict(self.environment(workload)),
            check=False,
            capture_output=True,
            text=True,
        )
        if told.returncode:
            raise SystemExit(f"batchscore {' '.join(command)}: {told.stdout}{told.stderr}")

    def evening(self, workload: Workload) -> None:
        """Have the tables there, and nothing in them: every round is the first to publish, as a night is."""
        if workload.target == "duckdb":
            made, empty = (self.root / f"{workload.job}{end}" for end in (".duckdb", ".empty"))
            if not empty.exists():
                self.run(workload, "migrate", workload.job)
                shutil.move(made, empty)
            shutil.copy(empty, made)
            return
        if not self._tables(self.output(workload)):
            self.run(workload, "migrate", workload.job)
        with self.connected() as connection:
            for name in (*self._tables("batchscore\\_%"), self.output(workload)):
                connection.execute(SQL("TRUNCATE {}").format(Identifier(name)))

    def sizes(self, workload: Workload) -> tuple[int, int, int]:
        """Of the run that is there: the bytes of its output and of the ledger, and how many chunks it had."""
        with self.connected() as connection:

            def first(query: LiteralString, *values: str) -> int:
                row = connection.execute(query, values).fetchone()
                assert row is not None
                return int(row[0])

            def size(name: str) -> int:
                return first("SELECT pg_total_relation_size(%s::regclass)", f'"{name}"')

            ledger = sum(map(size, self._tables("batchscore\\_%")))
            return size(self.output(workload)), ledger, first("SELECT count(*) FROM batchscore_chunks")

    def forget(self, *likes: str) -> None:
        """Drop tables by the pattern of their names, and leave nothing to write to the disk behind."""
        with self.connected() as connection:
            for name in chain.from_iterable(map(self._tables, likes)):
                connection.execute(SQL("DROP TABLE {}").format(Identifier(name)))
            connection.execute("CHECKPOINT")

    def connected(self) -> psycopg.Connection:
        """A connection to Postgres."""
        return psycopg.connect(self.uri, autocommit=True)

    def _tables(self, like: str) -> list[str]:
        with self.connected() as connection:
            found = connection.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE %s", [like])
            return [name for (name,) in found.fetchall()]
