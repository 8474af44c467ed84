"""Who takes part: this project, its parts without what makes it exact, and its peers, each a script of its own."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed.machine import versions
from benchmarks.speed.project import Project
from benchmarks.speed.workloads import KEY, Workload

__all__ = ["LOKY", "OURS", "PEERS", "STRAIGHT", "Contender", "Interpreters"]

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Interpreters:
    """Where packages are: first those of this process, then those of the peers' own environment."""

    paths: tuple[str, ...]

    @classmethod
    def found(cls, peers: Path) -> Interpreters:
        """This interpreter, and that of the peers where it is there."""
        return cls((sys.executable, *([str(peers)] if peers.exists() else [])))

    def having(self, contender: Contender) -> str | None:
        """The first interpreter that has all that a contender needs; None where none has."""
        if not all(map(shutil.which, contender.programs)):
            return None
        enough = (path for path in self.paths if set(contender.packages) <= set(versions(contender.packages, path)))
        return next(enough, None)


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to score a workload.

    Attributes:
        name: What the table calls it.
        script: Its file, below this folder; empty for this project's own command.
        packages: What must be installed for it.
        programs: What else must be.
        variables: What its environment has besides.
        options: What this project's own command is given besides.
    """

    name: str
    script: str = ""
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether it is this project's own command."""
        return not self.script

    def command(self, project: Project, workload: Workload, python: str) -> list[str]:
        """What scores the workload's interval, into `output`."""
        if self.is_ours:
            return [*project.command(workload), *self.options]
        script = str(_HERE / self.script)
        if self == STRAIGHT:
            return [python, script, workload.job, str(workload.day), self.output(project, workload)]
        model = (
            project.saved_model(workload) if self.script.endswith("mlflow_pyfunc.py") else project.model_file(workload)
        )
        into = [self.output(project, workload), str(model)]
        if workload.source == "postgres":
            return [python, script, project.uri, project.query(workload), *into]
        columns = ",".join((KEY, *workload.at.columns))
        return [python, script, str(project.file(workload)), columns, self.target(project, workload), *into]

    def output(self, project: Project, workload: Workload) -> str:
        """The table that the predictions go to."""
        return project.output(workload) if self.is_ours else f"by_{Path(self.script).stem}"

    def target(self, project: Project, workload: Workload) -> str:
        """The database of that table: a Postgres URI or a DuckDB file."""
        if workload.target == "postgres":
            return project.uri
        name = f"{workload.job}.duckdb" if self.is_ours else f"{Path(self.script).stem}.duckdb"
        return str(project.root / name)

    def environment(self, project: Project, workload: Workload) -> dict[str, str]:
        """The environment of its process."""
        given = project.environment(workload) if self.is_ours or self == STRAIGHT else os.environ
        # What they leave in the folder of temporary files goes with ours.
        scratch = {name: str(project.root) for name in ("TMPDIR", "SPARK_LOCAL_DIRS")}
        return {**given, **scratch, **dict(self.variables)}


OURS = Contender("batchscore")
LOKY = Contender("batchscore, 2 loky workers", options=("--workers", "2", "--backend", "loky"))
STRAIGHT = Contender("the same without stage, ledger, lease and fingerprint", "straight.py")
_PANDAS = ("pandas", "sqlalchemy", "psycopg")
_POLARS = ("polars", "adbc-driver-postgresql", "duckdb")
_WORKERS = ("pandas", "pyarrow", "duckdb", "scikit-learn")
PEERS = {
    "pandas": Contender("pandas: read_sql, predict_proba, to_sql", "peers/pandas_to_sql.py", _PANDAS),
    "pandas-copy": Contender("pandas tuned: COPY", "peers/pandas_copy.py", _PANDAS),
    "pandas-adbc": Contender("pandas tuned: ADBC", "peers/pandas_adbc.py", ("pandas", "adbc-driver-postgresql")),
    "polars": Contender("Polars by hand, ADBC", "peers/polars_postgres.py", _POLARS),
    "polars-files": Contender("Polars by hand", "peers/polars_parquet.py", _POLARS),
    "mlflow": Contender("MLflow pyfunc over batches", "peers/mlflow_pyfunc.py", ("mlflow", *_WORKERS)),
    "ray": Contender(
        "Ray Data",
        "peers/ray_data.py",
        ("ray", *_WORKERS),
        # Its servers listen on every interface but for this, which is what it does where it has no clusters.
        variables=(("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"), ("RAY_USAGE_STATS_ENABLED", "0")),
    ),
    "dask": Contender("Dask", "peers/dask_dataframe.py", ("dask", *_WORKERS)),
    "spark": Contender(
        "Spark",
        "peers/spark_pandas.py",
        ("pyspark", *_WORKERS),
        ("java",),
        (("SPARK_LOCAL_IP", "127.0.0.1"),),
    ),
}
