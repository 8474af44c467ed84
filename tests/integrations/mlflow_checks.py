"""A registry in the real MLflow server, and its real scoring server, which tests/test_integrations.py starts."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
import toy
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from toy import Project

from batchscore.database import Database
from batchscore.errors import BundleCorrupt, BundleNotFound
from batchscore.model.registry import Registry
from batchscore.warehouse import open_warehouse

DAYS = ("2024-02-01", "2024-02-06")
# Columns of the types that MLflow's users complain of, beside the job's own.
ROWS_SQL = """
SELECT id, ts, day, a, b, c,
    CASE WHEN id % 5 > 0 THEN id % 9 END AS seats,
    CASE WHEN id % 7 > 0 THEN id % 2 = 0 END AS late,
    9007199254740993 + id AS number,
    CASE WHEN id % 4 > 0 THEN CAST(ts AS TIMESTAMP) END AS booked
FROM toy
WHERE ts >= :interval_start AND ts < :interval_end
"""
FEATURES = (
    'rows.select("a", pl.col("b").fill_null(-1.0), "c", pl.col("seats").fill_null(-1), '
    'pl.col("late").cast(pl.Int64).fill_null(-1), pl.col("number") % 5, pl.col("ts").dt.hour().alias("hour"), '
    'pl.col("booked").dt.hour().fill_null(-1), pl.col("day").dt.weekday())'
)
PLAIN = '("passthrough", ["b", "seats", "late", "number", "hour", "booked", "day"])'


@contextmanager
def running(folder: Path, port: int, health: str, *arguments: str, **environment: str) -> Iterator[str]:
    """A command of MLflow's that serves; gives its URL once it answers, and ends it with all that it started."""
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # It starts programs by their names.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **environment,
    }
    command = [sys.executable, "-m", "mlflow", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with (folder / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(f"{url}{health}", process, Path(log.name))
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps its files."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[str]:
    """The URL of an MLflow server of this module's own."""
    arguments = ("server", "--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination")
    with running(home, free_port(), "/health", *arguments, str(home / "artifacts"), "--workers", "1") as url:
        yield url


@pytest.fixture(scope="module")
def client(server: str) -> MlflowClient:
    """What sees the server as others do."""
    return MlflowClient(server, server)


@pytest.fixture(scope="module")
def project(server: str, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project on DuckDB, trained into the server's registry, with five days scored from there."""
    root = tmp_path_factory.mktemp("project")
    project = Project.at(root, f"duckdb:///{root}/warehouse.duckdb")
    toy.load(project.url, toy.rows())
    (root / "sql/toy/rows.sql").write_text(ROWS_SQL)
    project.edit(
        "jobs/toy.py",
        ('rows.select("a", pl.col("b").fill_null(-1.0), "c")', FEATURES),
        ('("passthrough", ["b"])', PLAIN),
    )
    project.edit("jobs/toy.toml", ('target = "y"', 'target = "y"\nexplain_top = 2'))
    done(project, server, "train", "toy")
    done(project, server, "backfill", "toy", "--from", DAYS[0], "--to", DAYS[1])
    return project


def done(project: Project, server: str, *arguments: str) -> toy.Result:
    """Run a command on the registry of that server, which must succeed."""
    result = project.run(*arguments, timeout=600, BATCHSCORE_REGISTRY_URL=f"mlflow+{server}")
    assert result.code == 0, result.out + result.err
    return result


@pytest.fixture(scope="module")
def registry(server: str, project: Project) -> Registry:
    """The registry, in this process."""
    return Registry.at(f"mlflow+{server}")


@pytest.fixture(scope="module")
def scoring(server: str, project: Project, home: Path) -> Iterator[str]:
    """The URL of `mlflow models serve` over the alias."""
    arguments = ("models", "serve", "--model-uri", "models:/toy@champion", "--env-manager", "local")
    with running(home, free_port(), "/ping", *arguments, MLFLOW_TRACKING_URI=server) as url:
        yield f"{url}/invocations"


def asked(scoring: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """What the scoring server answers."""
    request = urllib.request.Request(scoring, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return list(json.load(answer)["predictions"])


def records(project: Project) -> list[dict[str, Any]]:
    """The rows of the scored days as JSON has them, in the order of the key."""
    sql = ROWS_SQL.replace(":interval_start", f"'{DAYS[0]}T00:00:00Z'").replace(
        ":interval_end", f"'{DAYS[1]}T00:00:00Z'"
    )
    with open_warehouse(Database.at(project.url)) as warehouse, warehouse.begin() as tx:
        rows = tx.connection.exec_driver_sql(f"{sql} ORDER BY id")
        return json.loads(json.dumps([dict(row) for row in rows.mappings()], default=lambda value: value.isoformat()))


def bits(value: Any) -> Any:
    """A value that is only equal to the very same: of a float its bits."""
    return struct.pack(">d", value) if isinstance(value, float) else (type(value), value)


OUTPUT = ("prediction", "score", "reason_1", "reason_1_value", "reason_2", "reason_2_value")


class TestServing:
    @pytest.mark.parametrize("form", ["dataframe_records", "dataframe_split"])
    def test_answers_are_those_in_the_table(self, form: str, project: Project, scoring: str) -> None:
        """Five days of rows, sent as JSON, come back with the very bits that `backfill` published of them."""
        table = project.table(OUTPUT)
        rows = records(project)
        columns = list(rows[0])
        split = {"columns": columns, "data": [[row[name] for name in columns] for row in rows]}

        answers = asked(scoring, {form: rows if form == "dataframe_records" else split})

        assert len(table) == len(answers) == 500
        assert any(row["seats"] is None for row in rows)
        assert any(row["late"] is None for row in rows)
        assert min(row["number"] for row in rows) > 2**53
        assert {answer["reject"] for answer in answers} == {None}
        assert [[bits(answer[name]) for name in OUTPUT] for answer in answers] == [
            [bits(value) for value in row] for row in table
        ]
        assert len({answer["score"] for answer in answers}) > 100

    def test_a_row_alone_has_the_answer_that_it_has_among_others(self, project: Project, scoring: str) -> None:
        """Twenty requests of one row each."""
        table = project.table(OUTPUT)

        for row, expected in zip(records(project)[:20], table, strict=False):
            (answer,) = asked(scoring, {"dataframe_records": [row]})
            assert [bits(answer[name]) for name in OUTPUT] == [bits(value) for value in expected]

    def test_a_row_that_cannot_be_scored_says_why(self, project: Project, scoring: str) -> None:
        """Beside another, which is answered; both are JSON that any reader takes."""
        row = records(project)[0]

        bad, failing, good = asked(scoring, {"dataframe_records": [row | {"a": None}, row | {"a": -1.0}, row]})

        assert (bad["prediction"], bad["reject"]) == (None, "unexpected_null: column a")
        assert (failing["score"], failing["reject"]) == (None, "pipeline_failed: ValueError: a is negative")
        assert good["reject"] is None

    def test_a_request_that_is_none_is_told(self, project: Project, scoring: str) -> None:
        """A fraction for a whole number is a bad request, in words, and no prediction."""
        row = records(project)[0] | {"seats": 1.5}

        with pytest.raises(urllib.error.HTTPError) as caught:
            asked(scoring, {"dataframe_records": [row]})

        assert caught.value.code == 400
        told = json.load(caught.value)["message"]
        assert "the request: column seats: want integer, got float, for instance 1.5" in told


class TestRun:
    def test_shows_the_training(self, server: str, client: MlflowClient, registry: Registry) -> None:
        """Parameters of recipe and pipeline, each metric with its interval, and the card of the bundle."""
        version = client.get_model_version_by_alias("toy", "champion")
        run = client.get_run(version.run_id)
        manifest = registry.manifest("toy", int(version.version))
        files = registry.read("toy", int(version.version))
        measured = json.loads(files["evaluation.json"])["test"]["roc_auc"]

        assert run.info.status == "FINISHED"
        assert run.info.run_name == "toy 1"
        assert run.data.params["training.split.test"] == "0.25"
        assert run.data.params["histgradientboostingclassifier__max_iter"] == "20"
        assert run.data.params["rows.train"] == str(manifest.training.fitted)
        assert run.data.metrics["roc_auc"] == manifest.metrics["roc_auc"]
        assert run.data.metrics["roc_auc.low"] == measured["low"]
        assert run.data.metrics["roc_auc.high"] == measured["high"]
        assert {"roc_auc.train", "roc_auc.dummy"} <= run.data.metrics.keys()
        assert run.data.tags["batchscore.digest"] == manifest.digest == version.tags["batchscore.digest"]
        card = download_artifacts(run_id=run.info.run_id, artifact_path="card.html", tracking_uri=server)
        assert Path(card).read_bytes() == files["card.html"]

    def test_commands_show_nothing_of_mlflow(self, project: Project, server: str) -> None:
        """`models list` and `score` write their own lines, and nothing else on stdout or stderr."""
        listed = done(project, server, "models", "list", "--format", "json")
        scored = done(project, server, "score", "toy", "--interval", DAYS[0])

        assert [row["name"] for row in json.loads(listed.out)] == ["toy"]
        assert scored.events
        assert "mlflow" not in f"{scored.err}{listed.err}".lower()


class TestRegistry:
    @pytest.fixture
    def name(self, registry: Registry, request: pytest.FixtureRequest) -> str:
        """A model of its own with two versions, of which the second is `live`, and the first was."""
        name = str(request.node.name)
        for version in (1, 2):
            assert registry.register(self.bundle(registry, name)) == version
            registry.promote(name, version, "live")
        return name

    def bundle(self, registry: Registry, name: str) -> Any:
        """The trained bundle under another name."""
        from dataclasses import replace

        bundle = registry.load("toy", 1)
        return replace(bundle, manifest=bundle.manifest.model_copy(update={"name": name}))

    def test_aliases_are_those_of_mlflow(self, name: str, registry: Registry, client: MlflowClient) -> None:
        """What is promoted here moves there, what is moved there is loaded here, and goes back."""
        assert client.get_model_version_by_alias(name, "live").version == "2"
        assert registry.before(name, "live") == 1
        registry.roll_back(name, "live", 1)
        assert client.get_model_version_by_alias(name, "live").version == "1"

        client.set_registered_model_alias(name, "live", "2")

        assert registry.load(name, "live").version == 2
        assert registry.history(name)[-1].by == "MLflow"
        assert registry.before(name, "live") == 1

    def test_a_version_is_there_when_it_is_whole(self, name: str, registry: Registry, client: MlflowClient) -> None:
        """What another program registers, or a training that was killed, is none of ours, and takes its number."""
        source = client.get_model_version(name, "2")
        client.create_model_version(name, source.source, source.run_id)

        assert registry.versions(name) == [1, 2]
        with pytest.raises(BundleNotFound):
            registry.load(name, 3)
        assert registry.register(self.bundle(registry, name)) == 4

    def test_a_training_that_fails_leaves_no_version(self, name: str, registry: Registry, client: MlflowClient) -> None:
        """Its number is used up, its run says that it failed."""

        def failing(version: int) -> dict[str, bytes]:
            raise ValueError(f"no files for {version}")

        with pytest.raises(ValueError, match="no files for 3"):
            registry.store.add(name, failing)

        assert [each.version for each in client.search_model_versions(f"name = '{name}'")] == ["2", "1"]
        (experiment,) = client.search_experiments(filter_string=f"name = '{name}'")
        assert next(run.info.status for run in client.search_runs([experiment.experiment_id])) == "FAILED"

    def test_two_that_train_at_once_get_two_versions(self, name: str, registry: Registry) -> None:
        """Each of four has a number of its own, and holds it."""
        with ThreadPoolExecutor(4) as pool:
            numbers = list(pool.map(lambda _: registry.register(self.bundle(registry, name)), range(4)))

        assert sorted(numbers) == [3, 4, 5, 6]
        assert [registry.manifest(name, number).version for number in numbers] == numbers

    def test_a_version_that_is_pruned_is_gone(self, name: str, registry: Registry) -> None:
        """Its number is not given again."""
        registry.register(self.bundle(registry, name))
        registry.register(self.bundle(registry, name))

        assert registry.prune(name, [1, 3]) == [3]

        assert registry.versions(name) == [1, 2, 4]
        assert registry.register(self.bundle(registry, name)) == 5

    def test_a_changed_artifact_is_refused(
        self, name: str, registry: Registry, client: MlflowClient, home: Path, server: str
    ) -> None:
        """A byte more on the server's disk: neither a batch nor the pyfunc loads it."""
        run = client.get_model_version(name, "2").run_id
        (path,) = (home / "artifacts").glob(f"*/{run}/artifacts/model/data/bundle/pipeline.joblib")
        with path.open("ab") as file:
            file.write(b" ")

        with pytest.raises(BundleCorrupt, match=r"pipeline\.joblib was changed"):
            registry.load(name, 2)
        mlflow.set_tracking_uri(server)
        with pytest.raises(BundleCorrupt, match=r"pipeline\.joblib was changed"):
            mlflow.pyfunc.load_model(f"models:/{name}/2")

    def test_what_is_not_there_is_told(self, registry: Registry) -> None:
        """An unknown model, version or alias is none of the server's errors."""
        with pytest.raises(BundleNotFound, match=r"holds no model 'toys'\. Did you mean toy"):
            registry.load("toys", "champion")
        with pytest.raises(BundleNotFound, match="Versions: 1; aliases: champion = 1"):
            registry.load("toy", "challenger")
