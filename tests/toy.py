"""A small job of our own invention: a month to learn from, days to score, on any database."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa
import structlog
from forked import Forked
from sqlalchemy.dialects import mysql

from batchscore.cli import main
from batchscore.database import Database
from batchscore.sqltypes import MYSQL
from batchscore.warehouse import open_warehouse

JOB = """
[job]
name = "toy"

[problem]
objective = "Say whether y is above its middle"
task = "binary"
target = "y"
success = {{ metric = "roc_auc", at_least = 0.6 }}

[source]
{source}
key = ["id"]
time_column = "ts"

[interval]
every = "day"
start = 2024-02-01

[labels]
sql = "toy/labels.sql"

[training]
from = 2024-01-01
to = 2024-02-01
split = {{ by = "time", column = "ts", test = 0.25 }}

[model]
name = "toy"

[output]
table = "toy_predictions"
carry = ["day"]

[limits]
rejects = 0.05
"""

FEATURES = '''
import polars as pl
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder


def log1p(values):
    """A function of this module inside the pipeline: it must travel with the bundle."""
    import numpy as np

    if (values.to_numpy() < 0).any():
        raise ValueError("a is negative")
    return np.log1p(values)


def features(rows):
    return rows.select("a", pl.col("b").fill_null(-1.0), "c")


def pipeline():
    columns = make_column_transformer(
        (FunctionTransformer(log1p), ["a"]),
        ("passthrough", ["b"]),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["c"]),
    )
    return make_pipeline(columns, HistGradientBoostingClassifier(max_iter=20, random_state=0))
'''

# What `features` ends with, and the same without the column that tells most.
FULL = 'return rows.select("a", pl.col("b").fill_null(-1.0), "c")'
POOR = 'return rows.select(pl.lit(1.0).alias("a"), pl.col("b").fill_null(-1.0), "c")'

ROWS_SQL = "SELECT id, ts, day, a, b, c FROM toy WHERE ts >= :interval_start AND ts < :interval_end\n"
LABELS_SQL = "SELECT id, y FROM toy WHERE ts >= :interval_start AND ts < :interval_end\n"

# Where the ledger is tried; what every warehouse must do is tried on MariaDB in `make test` too.
MARIADB = pytest.param("mariadb", marks=pytest.mark.long)
DATABASES = ("duckdb", "sqlite", "postgres", MARIADB)
# Where whole runs are tried: on the database that admits many processes, and on the rest in `make proof`. The commands
# are tried on DuckDB.
RUNS = tuple(
    pytest.param(name, marks=[] if name == "postgres" else [pytest.mark.long])
    for name in ("duckdb", "sqlite", "postgres", "mariadb")
)
LONG = tuple(pytest.param(name, marks=pytest.mark.long) for name in ("postgres", "mariadb"))

COLUMNS = {
    "id": sa.BigInteger(),
    "ts": sa.DateTime(timezone=True).with_variant(mysql.TIMESTAMP(fsp=6), *MYSQL),
    "day": sa.Date(),
    "a": sa.Double(),
    "b": sa.Double(),
    "c": sa.Text(),
    "y": sa.Boolean(),
}


def rows(days: int = 36, a_day: int = 100, first: datetime = datetime(2024, 1, 1, tzinfo=UTC)) -> pl.DataFrame:
    """Rows spread evenly over `days` days, the same at every call."""
    count = days * a_day
    rng = np.random.default_rng(7)
    instants = [first + timedelta(seconds=i * 86_400 / a_day) for i in range(count)]
    a, b = rng.exponential(size=count), rng.normal(size=count)
    kind = rng.integers(0, 3, size=count)
    signal = np.log1p(a) + 0.5 * b + 0.4 * kind + rng.normal(scale=0.5, size=count)
    return pl.DataFrame(
        {
            "id": np.arange(1, count + 1),
            "ts": pl.Series(instants, dtype=pl.Datetime("us", "UTC")),
            "day": [instant.date() for instant in instants],
            "a": a,
            "b": pl.Series(b).set(pl.Series(rng.random(count) < 0.1), None),
            "c": np.array(["x", "y", "z"])[kind],
            "y": signal > np.median(signal),
        }
    )


def url_of(request: pytest.FixtureRequest, folder: Path) -> str:
    """Where the database is that a fixture was parametrized with: a server's, or a file in the folder."""
    if request.param in ("postgres", "mariadb"):
        return str(request.getfixturevalue(f"{request.param}_url"))
    return f"{request.param}:///{folder}/warehouse.{request.param}"


def load(url: str, frame: pl.DataFrame, table: str = "toy", columns: Mapping[str, Any] | None = None) -> None:
    """Replace a table of the source by the frame's rows."""
    columns = columns or COLUMNS
    target = sa.Table(table, sa.MetaData(), *(sa.Column(name, columns[name]) for name in frame.columns))
    with open_warehouse(Database.at(url)) as warehouse, warehouse.begin() as tx:
        tx.connection.execute(sa.schema.DropTable(target, if_exists=True))
        tx.connection.execute(sa.schema.CreateTable(target))
        tx.load(target, frame)


def query(url: str, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query."""
    with open_warehouse(Database.at(url)) as warehouse, warehouse.begin() as tx:
        return [tuple(row) for row in tx.connection.execute(sa.text(sql))]


def columns(url: str, table: str) -> list[str]:
    """The names of a table's columns, in order."""
    with open_warehouse(Database.at(url)) as warehouse, warehouse.begin() as tx:
        return list(tx.connection.execute(sa.text(f"SELECT * FROM {table}")).keys())


def tables(url: str) -> list[str]:
    """The names of all tables, sorted."""
    listed = (
        "SELECT name FROM sqlite_master"
        if url.startswith("sqlite")
        else "SELECT table_name FROM information_schema.tables WHERE table_schema IN ('main', 'public', 'testing', 'test')"
    )
    return sorted(name for (name,) in query(url, listed))


def execute(url: str, *statements: str) -> None:
    """Run statements in one transaction."""
    with open_warehouse(Database.at(url)) as warehouse, warehouse.begin() as tx:
        for statement in statements:
            tx.connection.execute(sa.text(statement))


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """The log lines; every line of a command that is not asked for a list must be one."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> str:
        """The message of the error that ended it; a command that is asked for something tells it beside its answer."""
        last = [line for text in (self.out, self.err) for line in text.splitlines() if '"command.failed"' in line][-1]
        return str(json.loads(last)["error"])

    def named(self, event: str) -> list[dict[str, Any]]:
        """The log lines of that event."""
        return [each for each in self.events if each["event"] == event]


@dataclass(frozen=True)
class Project:
    """A folder with the toy job in it, and the database it works on."""

    root: Path
    url: str

    @classmethod
    def at(cls, root: Path, url: str, source: str = 'sql = "toy/rows.sql"') -> Project:
        """Write the job's files into a folder."""
        (root / "jobs").mkdir(parents=True, exist_ok=True)
        (root / "sql/toy").mkdir(parents=True, exist_ok=True)
        (root / "jobs/toy.toml").write_text(JOB.format(source=source))
        (root / "jobs/toy.py").write_text(FEATURES)
        (root / "sql/toy/rows.sql").write_text(ROWS_SQL)
        (root / "sql/toy/labels.sql").write_text(LABELS_SQL)
        return cls(root, url)

    def edit(self, file: str, *changes: tuple[str, str]) -> None:
        """Replace text in one of the project's files."""
        path = self.root / file
        text = path.read_text()
        for old, new in changes:
            assert old in text, f"{file} does not hold {old!r}"
            text = text.replace(old, new)
        path.write_text(text)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a command on this project."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BATCHSCORE_")}
        return kept | {"BATCHSCORE_WAREHOUSE_URL": self.url} | more

    def run(self, *args: str, timeout: float = 120, **environment: str) -> Result:
        """Run the real command in a process of its own, in the project's folder."""
        process = Forked(
            [sys.executable, "-m", "batchscore", *args],
            cwd=self.root,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return Result(process.returncode, out, err)

    def call(self, *args: str, **environment: str) -> Result:
        """Run the command in this process: the same `main`, without a second to start."""
        out, err = io.StringIO(), io.StringIO()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            for name in [name for name in os.environ if name.startswith("BATCHSCORE_")]:
                patch.delenv(name)
            for name, value in ({"BATCHSCORE_WAREHOUSE_URL": self.url} | environment).items():
                patch.setenv(name, value)
            patch.chdir(self.root)
            patch.setattr(sys, "argv", ["batchscore", *args])
            try:
                with pytest.raises(SystemExit) as ended:
                    main()
            finally:
                # What a command binds to its log lines, and its handlers, end with its process; here that goes on.
                structlog.contextvars.clear_contextvars()
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, out.getvalue(), err.getvalue())

    def start(self, *args: str, **environment: str) -> subprocess.Popen[str]:
        """Start the real command and leave it running."""
        return Forked(
            [sys.executable, "-m", "batchscore", *args],
            cwd=self.root,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def table(
        self, columns: Sequence[str] = ("id", "day", "prediction", "score", "model_version")
    ) -> list[tuple[Any, ...]]:
        """The output table's rows by key."""
        return query(self.url, f"SELECT {', '.join(columns)} FROM toy_predictions ORDER BY id")


def unscored(folder: Path, url: str, trained: Project) -> Project:
    """The project in another folder and on another database, with its rows and the bundle of the trained one."""
    project = Project.at(folder, url)
    (folder / "var").mkdir()
    (folder / "var/registry").symlink_to(trained.root / "var/registry")
    load(url, rows())
    return project


def slow_down(project: Project) -> None:
    """Train, into the registry `slow`, a bundle that takes its time: features that sleep for every chunk."""
    original = (project.root / "jobs/toy.py").read_text()
    slow = original.replace(
        "def features(rows):\n",
        "def features(rows):\n    import time\n    time.sleep(0.15 if os.environ.get('SLOW') else 0)\n",
    ).replace("import polars as pl\n", "import os\nimport polars as pl\n", 1)
    (project.root / "jobs/toy.py").write_text(slow)
    result = project.call("train", "toy", BATCHSCORE_REGISTRY_URL="slow")
    assert result.code == 0, result.out
    (project.root / "jobs/toy.py").write_text(original)


def wait_for_chunks(process: subprocess.Popen[str], count: int) -> int:
    """Read the process's log until so many chunks are committed."""
    seen, heard = 0, []
    deadline = time.monotonic() + 60
    while seen < count and time.monotonic() < deadline:
        assert process.stdout
        line = process.stdout.readline()
        assert line, f"the process ended before it was interrupted: {heard}"
        heard.append(line)
        seen += json.loads(line)["event"] == "chunk.committed"
    return seen


@contextlib.contextmanager
def locked_until(url: str, table: str, count: int) -> Iterator[None]:
    """Hold a lock on a table of a Postgres until so many, whom the block starts, have read and wait to write."""
    engine = sa.create_engine(url)
    waiting = sa.text("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted")
    with engine.begin() as tx, engine.connect().execution_options(isolation_level="AUTOCOMMIT") as looking:
        tx.execute(sa.text(f"LOCK TABLE {table} IN EXCLUSIVE MODE"))
        yield
        until = time.monotonic() + 60
        while looking.scalar(waiting) < count and time.monotonic() < until:
            time.sleep(0.05)
        assert looking.scalar(waiting) == count
    engine.dispose()
