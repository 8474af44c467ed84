"""OpenLineage events, as a collector gets them."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa
import toy
from monitoring import listening
from openlineage.client import facet_v2
from toy import Project

from batchscore.database import Database
from batchscore.monitor.lineage import _named, _tables
from batchscore.sources import SqlSource
from batchscore.sources.statement import Statement

WINDOW = ("--from", "2024-02-01", "--to", "2024-02-03")
KEY = "canary-k3y"


@dataclass
class Collector:
    """What a collector of OpenLineage has been sent.

    Attributes:
        url: Its address.
        status: What it answers.
        events: Every event that it took.
        headers: Those of each request.
    """

    url: str = ""
    status: int = 201
    events: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def of(self, state: str) -> list[dict[str, Any]]:
        """The events of a state, by interval."""
        found = [event for event in self.events if event["eventType"] == state]
        return sorted(found, key=lambda event: str(event["run"]["facets"]["nominalTime"]["nominalStartTime"]))


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector on loopback, at the path that OpenLineage's API gives for events."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/api/v1/lineage"
            collector.events.append(json.loads(body))
            collector.headers.append(dict(self.headers))
            self.send_response(collector.status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing is said."""

    with listening(Handler) as url:
        collector.url = url
        yield collector


def facets(found: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every facet of an event, with its name."""
    if isinstance(found, dict):
        for name, value in found.items():
            if name in ("facets", "inputFacets", "outputFacets"):
                yield from value.items()
            yield from facets(value)
    if isinstance(found, list):
        for each in found:
            yield from facets(each)


def shapes() -> dict[str, type]:
    """The client's classes of facets, by the address of their schema."""
    modules = [each for each in vars(facet_v2).values() if isinstance(each, ModuleType)]
    classes = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    return {each._get_schema(): each for each in classes if hasattr(each, "_get_schema")}


class TestEvents:
    def test_a_delta_table(self, project: Project, collector: Collector) -> None:
        """A Delta table is named by its files, as the naming specification has it, and not by the ledger's database."""
        result = project.call("backfill", "toy", *WINDOW, OPENLINEAGE_URL=collector.url, BATCHSCORE_DELTA_URL="lake")

        assert result.code == 0, result.out
        (output,) = collector.of("COMPLETE")[0]["outputs"]
        assert (output["namespace"], output["name"]) == ("file", f"{project.root}/lake/toy_predictions")

    def test_of_a_backfill(self, project: Project, collector: Collector) -> None:
        """Each interval begins and completes as a run of its own, named by its time, job and version."""
        result = project.call("backfill", "toy", *WINDOW, OPENLINEAGE_URL=collector.url)

        assert result.code == 0, result.out
        assert [event["eventType"] for event in collector.events] == ["START", "COMPLETE"] * 2
        starts, ends = collector.of("START"), collector.of("COMPLETE")
        ids = [uuid.UUID(event["run"]["runId"]) for event in starts]
        assert len(set(ids)) == 2
        assert [uuid.UUID(event["run"]["runId"]) for event in ends] == ids
        published = [line for line in result.events if line["event"] == "run.published"]
        for day, (event, line) in enumerate(zip(ends, published, strict=True), start=1):
            told = event["run"]["facets"]
            assert datetime.fromisoformat(told["nominalTime"]["nominalStartTime"]) == datetime(2024, 2, day, tzinfo=UTC)
            assert datetime.fromisoformat(told["nominalTime"]["nominalEndTime"]) == datetime(
                2024, 2, day + 1, tzinfo=UTC
            )
            assert told["processing_engine"]["name"] == "batchscore"
            ours = told["batchscore_run"]
            assert (ours["modelName"], ours["modelVersion"], ours["runId"]) == ("toy", 1, line["run_id"])
            assert (event["job"]["namespace"], event["job"]["name"]) == ("default", "toy")
            assert event["job"]["facets"]["sql"]["query"] == toy.ROWS_SQL.strip()
            assert event["job"]["facets"]["jobType"]["processingType"] == "BATCH"

    def test_of_the_datasets(self, project: Project, collector: Collector) -> None:
        """The table read and the table written are named, with their columns, and what was seen and written of them."""
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE id = 3101")
        assert project.call("backfill", "toy", *WINDOW, OPENLINEAGE_URL=collector.url).code == 0

        event = collector.of("COMPLETE")[0]
        (source,), (output,) = event["inputs"], event["outputs"]
        namespace = f"duckdb://{project.root}/warehouse.duckdb"
        assert (source["namespace"], source["name"]) == (namespace, "main.toy")
        assert (output["namespace"], output["name"]) == (namespace, "main.toy_predictions")
        assert [each["name"] for each in source["facets"]["schema"]["fields"]] == ["id", "ts", "day", "a", "b", "c"]
        written = toy.columns(project.url, "toy_predictions")
        assert [each["name"] for each in output["facets"]["schema"]["fields"]] == written
        assert output["outputFacets"]["outputStatistics"]["rowCount"] == 99
        assert source["inputFacets"]["inputStatistics"]["rowCount"] == 100
        quality = source["inputFacets"]["dataQualityMetrics"]
        ((low, high, nulls),) = toy.query(
            project.url,
            "SELECT min(b), max(b), sum(CASE WHEN b IS NULL THEN 1 ELSE 0 END) FROM toy WHERE day = '2024-02-01'",
        )
        b = quality["columnMetrics"]["b"]
        assert (b["min"], b["max"], b["nullCount"], b["count"]) == (low, high, nulls, 100 - nulls)
        assert quality["columnMetrics"]["a"]["nullCount"] == 1
        # Microseconds are no value of the column.
        assert "min" not in quality["columnMetrics"]["ts"]
        # What is not known before is not told before.
        (before,) = collector.of("START")[0]["inputs"]
        assert (before["name"], before["inputFacets"]) == ("main.toy", {})

    def test_have_the_shape_of_the_standard(self, project: Project, collector: Collector) -> None:
        """Each facet is what the client's class of its schema takes, with a producer; and so is the event."""
        parent = f"airflow/nightly.score/{uuid.uuid4()}"
        variables = {"OPENLINEAGE_URL": collector.url, "OPENLINEAGE_PARENT_ID": parent}
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE id > 3200")
        assert project.call("backfill", "toy", *WINDOW, **variables).code == 11

        known, seen = shapes(), set()
        for event in collector.events:
            assert event["schemaURL"].endswith("/OpenLineage.json#/$defs/RunEvent")
            assert event["producer"].startswith("https://")
            assert datetime.fromisoformat(event["eventTime"]).tzinfo
            assert {"run", "job", "inputs", "outputs"} <= set(event)
            for name, facet in facets(event):
                assert facet["_producer"] == event["producer"]
                assert facet["_schemaURL"].startswith("https://openlineage.io/spec/")
                if name != "batchscore_run":
                    own = {key: value for key, value in facet.items() if not key.startswith("_")}
                    known[facet["_schemaURL"]](**own)
                seen.add(name)
        assert seen == {
            "nominalTime", "processing_engine", "parent", "errorMessage", "batchscore_run", "jobType", "sql", "schema",
            "inputStatistics", "dataQualityMetrics", "outputStatistics",
        }  # fmt: skip
        assert {event["run"]["facets"]["parent"]["run"]["runId"] for event in collector.events} == {parent[-36:]}
        (started,) = {json.dumps(event["run"]["facets"]["parent"]["job"]) for event in collector.events}
        assert '"airflow"' in started
        assert '"nightly.score"' in started

    def test_of_a_private_column(self, project: Project, collector: Collector) -> None:
        """No value of it is sent, though it was not private when the model was trained."""
        project.edit("jobs/toy.toml", ("[interval]", 'private = ["a"]\n\n[interval]'))

        assert project.call("backfill", "toy", *WINDOW, OPENLINEAGE_URL=collector.url).code == 0

        (source,) = collector.of("COMPLETE")[0]["inputs"]
        columns = source["inputFacets"]["dataQualityMetrics"]["columnMetrics"]
        assert not {"min", "max"} & set(columns["a"])
        assert {"min", "max"} <= set(columns["b"])
        assert columns["a"]["nullCount"] == 0

    def test_of_a_failure(self, project: Project, collector: Collector) -> None:
        """It says why, without a secret, and nothing of what it would have written; the next attempt is another run."""
        url = "postgresql://ana:s3cr3t@127.0.0.1:1/none"
        variables = {"OPENLINEAGE_URL": collector.url, "OPENLINEAGE_NAMESPACE": "nightly"}

        failed = project.call(
            "backfill", "toy", *WINDOW, BATCHSCORE_SOURCE_URL=url, BATCHSCORE_RETRY_SECONDS="0", **variables
        )
        again = project.call("score", "toy", "--interval", "2024-02-01", **variables)

        assert (failed.code, again.code) == (20, 0)
        assert [event["eventType"] for event in collector.events] == ["START", "FAIL", "START", "COMPLETE"]
        error = collector.events[1]["run"]["facets"]["errorMessage"]
        assert error["programmingLanguage"] == "PYTHON"
        assert "127.0.0.1" in error["message"]
        assert "s3cr3t" not in json.dumps(collector.events)
        assert collector.events[1]["outputs"][0].get("outputFacets", {}) == {}
        (source,) = collector.events[1]["inputs"]
        assert (source["namespace"], source["name"]) == ("postgres://127.0.0.1:1", "none.public.toy")
        assert len({event["run"]["runId"] for event in collector.events}) == 2
        assert {event["job"]["namespace"] for event in collector.events} == {"nightly"}

    def test_of_a_command_that_is_stopped(self, project: Project, collector: Collector) -> None:
        """An interval that SIGTERM ends is aborted."""
        toy.slow_down(project)
        slow = {"SLOW": "1", "BATCHSCORE_REGISTRY_URL": "slow", "OPENLINEAGE_URL": collector.url}
        process = project.start("backfill", "toy", *WINDOW, "--chunk-rows", "20", **slow)
        toy.wait_for_chunks(process, 1)

        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)

        assert process.returncode == 143
        assert [event["eventType"] for event in collector.events] == ["START", "ABORT"]

    def test_of_parquet(self, project: Project, collector: Collector) -> None:
        """The files are the input, by their path."""
        toy.rows().drop("y").write_parquet(project.root / "rows.parquet")
        project.edit("jobs/toy.toml", ('sql = "toy/rows.sql"', 'parquet = "rows.parquet"'))
        reason = ("--accept-sql", "the same rows")

        assert project.call("backfill", "toy", *WINDOW, *reason, OPENLINEAGE_URL=collector.url).code == 0

        (source,) = collector.of("COMPLETE")[0]["inputs"]
        assert (source["namespace"], source["name"]) == ("file", f"{project.root}/rows.parquet")
        assert "sql" not in collector.of("COMPLETE")[0]["job"]["facets"]
        assert pl.read_parquet(source["name"]).height == 3600


class TestCollector:
    def test_its_password(self, project: Project) -> None:
        """A password in the URL is shown nowhere, in one that is none either."""
        result = project.call("backfill", "toy", *WINDOW, OPENLINEAGE_URL=f"user:{KEY}@127.0.0.1:1")

        assert result.code == 0
        assert result.named("lineage.off")
        assert KEY not in result.out + result.err

    def test_its_key(self, project: Project, collector: Collector) -> None:
        """The key is sent as a bearer token, and shown nowhere."""
        collector.status = 401
        variables = {"OPENLINEAGE_URL": collector.url, "OPENLINEAGE_API_KEY": KEY}

        result = project.call("backfill", "toy", *WINDOW, **variables)

        assert result.code == 0
        assert collector.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert KEY not in result.out + result.err
        (off,) = result.named("lineage.off")
        assert off["level"] == "warning"
        assert "401" in off["error"]
        # It would refuse the others as well.
        assert len(collector.events) == 1

    def test_gone(self, project: Project) -> None:
        """A collector that is not there costs the command one warning, and nothing else."""
        result = project.call("backfill", "toy", *WINDOW, OPENLINEAGE_URL="http://127.0.0.1:1")

        assert result.code == 0
        assert len(project.table()) == 200
        assert len(result.named("lineage.off")) == 1

    def test_that_does_not_answer(self, project: Project) -> None:
        """Where it takes the connection and says nothing, the command waits some seconds once, however many intervals."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            begun = time.monotonic()
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            result = project.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-05", OPENLINEAGE_URL=url)

        assert result.code == 0
        assert len(result.named("lineage.off")) == 1
        assert time.monotonic() - begun < 30

    @pytest.mark.parametrize("trickle", [False, True], ids=["late", "by the byte"])
    def test_that_is_slow(self, project: Project, monkeypatch: pytest.MonkeyPatch, trickle: bool) -> None:
        """One that answers late, each time before the time-out, gets no more once what it is late adds up to the bound."""
        monkeypatch.setattr("batchscore.monitor.lineage._MOST_SECONDS", 2.0)
        asked = []

        class Slow(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked.append(time.monotonic())
                self.rfile.read(int(self.headers["Content-Length"]))
                for byte in b"HTTP/1.0 201 Created\r\n\r\n" if trickle else b" ":
                    time.sleep(1.3)
                    with contextlib.suppress(OSError):
                        self.wfile.write(bytes([byte]) if trickle else b"HTTP/1.0 201 Created\r\n\r\n")

            def log_message(self, *_: Any) -> None:
                """Nothing is said."""

        window = ("--from", "2024-02-01", "--to", "2024-02-05")
        with listening(Slow) as url:
            result = project.call("backfill", "toy", *window, OPENLINEAGE_URL=url)

        assert result.code == 0
        assert len(project.table()) == 400
        (off,) = result.named("lineage.off")
        assert "together 2 s longer than 0.5 s each" in off["error"]
        # Of eight events that were to be sent.
        assert len(asked) == (1 if trickle else 3)

    def test_that_is_prompt(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that is well gets every event, however long they take together."""
        monkeypatch.setattr("batchscore.monitor.lineage._MOST_SECONDS", 0.3)
        asked = []

        class Prompt(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked.append(self.rfile.read(int(self.headers["Content-Length"])))
                time.sleep(0.1)
                self.send_response(201)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing is said."""

        with listening(Prompt) as url:
            result = project.call("backfill", "toy", *WINDOW, OPENLINEAGE_URL=url)

        assert result.code == 0
        assert not result.named("lineage.off")
        assert len(asked) == 4

    @pytest.mark.parametrize("variables", [{"OPENLINEAGE_PARENT_ID": "no run"}, {"OPENLINEAGE_URL": "no address"}])
    def test_a_variable_that_cannot_be_read(
        self, project: Project, collector: Collector, variables: dict[str, str]
    ) -> None:
        """It is told, and the run goes on without events."""
        result = project.call("backfill", "toy", *WINDOW, **({"OPENLINEAGE_URL": collector.url} | variables))

        assert result.code == 0
        assert len(result.named("lineage.off")) == 1
        assert collector.events == []

    def test_without_the_package(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the extra is not installed, one line tells how to, and the run goes on."""
        for name in [name for name in sys.modules if name.partition(".")[0] == "openlineage"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "openlineage", None)

        result = project.call("backfill", "toy", *WINDOW, OPENLINEAGE_URL="http://127.0.0.1:1")

        off = [line["error"] for line in result.named("lineage.off")]
        assert (result.code, off) == (0, ["OpenLineage is not installed: pip install 'batchscore[openlineage]'"])

    @pytest.mark.parametrize("variables", [{}, {"OPENLINEAGE_DISABLED": "true"}])
    def test_is_off_until_it_is_asked_for(
        self, project: Project, collector: Collector, variables: dict[str, str]
    ) -> None:
        """Without an address, or switched off by the client's variable, nothing is sent."""
        address = {"OPENLINEAGE_URL": collector.url} if variables else {}

        assert project.call("backfill", "toy", *WINDOW, **variables, **address).code == 0

        assert collector.events == []


class TestNames:
    @pytest.mark.parametrize(
        ("url", "table", "named"),
        [
            ("postgresql://u:p@db/shop", ("s", "t"), ("postgres://db:5432", "shop.s.t")),
            ("postgresql://db:6432/shop", ("", "t"), ("postgres://db:6432", "shop.public.t")),
            ("postgresql:///shop?host=/run/pg", ("", "t"), ("postgres://localhost:5432", "shop.public.t")),
            ("mariadb://db/shop", ("", "t"), ("mysql://db:3306", "shop.t")),
            ("mariadb://db:3307/shop", ("other", "t"), ("mysql://db:3307", "other.t")),
            ("sqlite:////data/a.db", ("", "t"), ("sqlite:///data/a.db", "main.t")),
            ("duckdb:////data/a.duckdb", ("s", "t"), ("duckdb:///data/a.duckdb", "s.t")),
            ("trino://host:8080/hive", ("s", "t"), ("trino://host:8080", "hive.s.t")),
        ],
    )
    def test_of_a_table(self, url: str, table: tuple[str, str], named: tuple[str, str]) -> None:
        """A table is named as the naming specification has it; a password is no part of it."""
        assert _named(Database(sa.make_url(url)), *table) == named

    @pytest.mark.parametrize(
        ("sql", "names"),
        [
            ("SELECT * FROM t WHERE ts < :interval_end", ["public.t"]),
            ("SELECT * FROM s.t JOIN u USING (id) WHERE ts < :interval_end::date", ["public.u", "s.t"]),
            ("WITH t AS (SELECT * FROM s.t) SELECT * FROM t, v WHERE ts < :interval_end", ["public.v", "s.t"]),
            ("SELECT * FROM t WHERE id IN (SELECT id FROM t UNION SELECT id FROM w) AND ts < :interval_end",
             ["public.t", "public.w"]),
            ("SELECT FROM ((( WHERE :interval_end", []),
        ],
    )  # fmt: skip
    def test_of_what_a_query_reads(self, sql: str, names: list[str]) -> None:
        """They are its tables, each once, and not what it names itself; of what sqlglot cannot read there are none."""
        statement = Statement(sql, "rows.sql", ())
        source = SqlSource(Database(sa.make_url("postgresql://db/shop")), statement, {}, lambda _: iter(()))

        assert [name for _, name in _tables(source)] == [f"shop.{name}" for name in names]


def test_the_extra_has_a_lock_file() -> None:
    """What the image is built from holds the client."""
    lock = Path(__file__).parent.parent / "requirements-openlineage.lock"

    assert "openlineage-python==" in lock.read_text()
