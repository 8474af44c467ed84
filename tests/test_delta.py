"""Runs whose output tables are Delta tables, on each database that may hold their ledger."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import psutil
import pytest
import toy
from deltalake import DeltaTable, Field, Schema
from deltalake.schema import PrimitiveType
from lakes import Lakeside
from s3 import bucket_at
from test_warehouse import DAY, EDGES, OUTPUT, WIDE
from toy import Project, Result

from batchscore.database import Database
from batchscore.errors import IntervalLeased, OutputMismatch, TransientError, UsageError, WarehouseError
from batchscore.faults import DELTA_POINTS, POINTS, VARIABLE
from batchscore.interval import Interval
from batchscore.warehouse import Lake, Output, OutputColumn, Sending, Warehouse, delta, open_warehouse

DAYS = ("--from", "2024-02-01", "--to", "2024-02-06")
ONE = ("--from", "2024-02-01", "--to", "2024-02-02", "--chunk-rows", "25")
STAMP: dict[str, str | int | datetime] = {
    "model_name": "m",
    "model_version": 3,
    "interval_start": DAY,
    "scored_at": datetime(2024, 1, 3, 1, 2, 3, 456_789, tzinfo=UTC),
    "run_id": "r" * 36,
}
# Whole runs beside a ledger in each database; in `make test` in the embedded one that admits many processes.
LEDGERS = ("sqlite", pytest.param("duckdb", marks=pytest.mark.long), *toy.LONG)
# Databases that admit a second process.
SHARED = ("sqlite", *toy.LONG)


@pytest.fixture(params=LEDGERS)
def lakeside(request: pytest.FixtureRequest, tmp_path: Path, trained: Project) -> Lakeside:
    """The toy project, unscored, with its ledger in each database and its output in a folder."""
    return Lakeside.of(toy.unscored(tmp_path, toy.url_of(request, tmp_path), trained))


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Warehouse]:
    """A warehouse on SQLite beside a lake."""
    database = Database.at(f"sqlite:///{tmp_path}/warehouse")
    with open_warehouse(database, delta_url=str(tmp_path / "lake")) as warehouse:
        yield warehouse


def lake_of(warehouse: Warehouse) -> Lake:
    """The warehouse's lake."""
    assert warehouse.lake
    return warehouse.lake


def put(
    warehouse: Warehouse,
    output: Output,
    rows: pl.DataFrame,
    start: datetime = DAY,
    ticket: int = 2,
    run: str = "r" * 36,
) -> bool:
    """Send rows into the output table."""
    lake = lake_of(warehouse)
    stamp = STAMP | {"interval_start": start, "run_id": run}
    sending = Sending("job", start, ticket)
    return lake.replace(lake.location(output.table), sending, output, stamp, {}, lambda: iter([rows]))


def read(warehouse: Warehouse, output: Output) -> pl.DataFrame:
    """All rows of the output table, by the first column."""
    table = DeltaTable(lake_of(warehouse).location(output.table))
    return pl.DataFrame(table.scan()).sort(output.columns[0].name)


def predictions(first: int, count: int = 3) -> pl.DataFrame:
    """Rows for `OUTPUT`."""
    ids = list(range(first, first + count))
    return pl.DataFrame({"id": ids, "label": ["x"] * count, "score": [0.5] * count})


class TestRuns:
    def test_as_in_a_table_of_the_warehouse(self, lakeside: Lakeside) -> None:
        """A backfill leaves the rows that it leaves in the warehouse's own table, and runs that say the same."""
        plain = Project(lakeside.root, lakeside.url)
        assert plain.call("backfill", "toy", *DAYS, "--chunk-rows", "30").code == 0
        ours = toy.query(plain.url, "SELECT id, prediction, score, model_version FROM toy_predictions ORDER BY id")
        theirs = toy.query(plain.url, f"SELECT {COUNTS} FROM batchscore_runs ORDER BY interval_start")

        result = lakeside.call("backfill", "toy", *DAYS, "--chunk-rows", "30")

        assert result.code == 0, result.out
        assert lakeside.table(("id", "prediction", "score", "model_version")) == [
            (id_, bool(yes), score, version) for id_, yes, score, version in ours
        ]
        query = f"SELECT {COUNTS} FROM batchscore_runs WHERE output_table LIKE '/%' ORDER BY interval_start"
        assert toy.query(lakeside.url, query) == theirs
        assert not [name for name in toy.tables(lakeside.url) if "stage" in name]

    def test_the_contract_with_readers(self, lakeside: Lakeside) -> None:
        """Its columns stand in the documented order and have Delta's types for ours; one file holds one interval."""
        assert lakeside.call("backfill", "toy", *DAYS).code == 0

        fields = [(field.name, field.type.type) for field in lakeside.delta().schema().fields]  # type: ignore[union-attr]
        assert fields == [
            ("id", "long"), ("day", "date"), ("prediction", "boolean"), ("score", "double"),
            ("model_name", "string"), ("model_version", "long"), ("interval_start", "timestamp"),
            ("scored_at", "timestamp"), ("run_id", "string"),
        ]  # fmt: skip
        assert len(lakeside.delta().file_uris()) == 5
        told = lakeside.writes()[0]
        assert told["batchscore.job"] == "toy"
        assert told["batchscore.run_id"] == lakeside.frame()["run_id"][0]

    def test_what_others_read(self, lakeside: Lakeside) -> None:
        """Polars and, over an Arrow dataset, DuckDB read what batchscore's own reader does."""
        assert lakeside.call("backfill", "toy", *DAYS).code == 0
        expected = lakeside.frame()

        assert pl.scan_delta(lakeside.location).sort("id").collect().equals(expected)
        dataset = lakeside.delta().to_pyarrow_dataset()  # noqa: F841 - DuckDB finds it by its name
        summed = "SELECT count(*), sum(score), min(interval_start) FROM dataset"
        count, total, first = duckdb.sql(summed).fetchall()[0]
        assert (count, first.astimezone(UTC)) == (500, datetime(2024, 2, 1, tzinfo=UTC))
        assert total == pytest.approx(expected["score"].sum())

    def test_rescoring_replaces_only_its_interval(self, lakeside: Lakeside) -> None:
        """A day that is scored again is replaced by one commit; files of other days, and older commits, stay."""
        assert lakeside.call("backfill", "toy", *DAYS).code == 0
        before, version, files = lakeside.frame(), lakeside.delta().version(), set(lakeside.delta().file_uris())

        result = lakeside.call("score", "toy", "--interval", "2024-02-03", "--force")

        assert result.code == 0, result.out
        after = lakeside.frame()
        assert after["id"].to_list() == before["id"].to_list()
        assert after.filter(after["run_id"] != before["run_id"])["id"].to_list() == list(range(3301, 3401))
        assert lakeside.delta().version() == version + 1
        assert len(files & set(lakeside.delta().file_uris())) == 4
        then = DeltaTable(lakeside.location, version=version)
        assert pl.DataFrame(then.scan()).sort("id").equals(before)

    def test_again_does_nothing(self, lakeside: Lakeside) -> None:
        """What is published is not due again, and no commit tells of a command that did nothing."""
        assert lakeside.call("backfill", "toy", *DAYS).code == 0
        version = lakeside.delta().version()

        assert lakeside.call("backfill", "toy", *DAYS).named("run.nothing_due")

        assert lakeside.delta().version() == version

    def test_an_empty_interval(self, lakeside: Lakeside) -> None:
        """An interval that has lost its rows is published with none, in the table too."""
        assert lakeside.call("backfill", "toy", *DAYS).code == 0
        toy.execute(lakeside.url, "DELETE FROM toy WHERE id BETWEEN 3301 AND 3400")

        result = lakeside.call("score", "toy", "--interval", "2024-02-03", "--force")

        assert result.code == 0, result.out
        assert lakeside.frame()["id"].to_list() == [*range(3101, 3301), *range(3401, 3601)]
        assert not lakeside.call("plan", "toy", *DAYS, "--format", "json").out.strip("[]\n ")

    def test_evaluate(self, lakeside: Lakeside) -> None:
        """Metrics are those of the same predictions in the warehouse's own table."""
        plain = Project(lakeside.root, lakeside.url)
        told = {}
        for project in (plain, lakeside):
            assert project.call("backfill", "toy", *DAYS).code == 0
            answer = project.call("evaluate", "toy", *DAYS, "--format", "json")
            assert answer.code == 0, answer.err
            told[project] = json.loads(answer.out)

        assert [row["labelled"] for row in told[lakeside]] == [100] * 5
        assert told[lakeside] == told[plain]

    def test_a_held_run(self, lakeside: Lakeside) -> None:
        """A gate keeps rows out of the table; overridden, they come in, and the ledger keeps why."""
        lakeside.edit("jobs/toy.toml", ("[limits]", "[publish]\nscore_range = [0.4, 0.6]\n\n[limits]"))
        assert lakeside.call("backfill", "toy", *ONE).code == 31
        assert lakeside.frame().is_empty()
        held = toy.query(lakeside.url, "SELECT run_id FROM batchscore_runs")[0][0]

        result = lakeside.call("runs", "publish", held, "--override", "--reason", "it is right")

        assert result.code == 0, result.out
        assert set(lakeside.frame()["run_id"]) == {held}
        kept = toy.query(lakeside.url, "SELECT status, override_reason FROM batchscore_runs")
        assert kept == [("published", "it is right")]

    def test_changed_input(self, lakeside: Lakeside) -> None:
        """Rows that changed since are scored again into the table."""
        assert lakeside.call("backfill", "toy", *DAYS).code == 0
        toy.execute(lakeside.url, "UPDATE toy SET a = a + 1 WHERE id = 3301")

        result = lakeside.call("backfill", "toy", *DAYS, "--only", "changed-input")

        assert [line["interval_start"][:10] for line in result.named("run.published")] == ["2024-02-03"]
        assert len(lakeside.frame()) == 500

    def test_pruning(self, lakeside: Lakeside) -> None:
        """Pruning leaves the table alone, and nothing of what an unfinished run had staged."""
        assert lakeside.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-03").code == 0
        rows = lakeside.table()
        broken = {"BATCHSCORE_FAULT": "after_commit:0:kill", "BATCHSCORE_LEASE_SECONDS": "1"}
        assert lakeside.run("score", "toy", "--interval", "2024-02-03", **broken).code == -9
        time.sleep(1.1)

        result = lakeside.call("runs", "prune", "--older-than", "0h")

        assert result.named("runs.pruned")[0]["stages"] == 1
        assert lakeside.table() == rows
        assert not [name for name in toy.tables(lakeside.url) if "stage" in name]

    def test_two_jobs_do_not_share_a_table(self, lakeside: Lakeside) -> None:
        """A job that names the table of another is refused before it writes anything."""
        assert lakeside.call("backfill", "toy", *ONE).code == 0
        text = (lakeside.root / "jobs/toy.toml").read_text().replace('name = "toy"', 'name = "other"', 1)
        (lakeside.root / "jobs/other.toml").write_text(text)
        shutil.copy(lakeside.root / "jobs/toy.py", lakeside.root / "jobs/other.py")

        result = lakeside.call("backfill", "other", *ONE)

        assert (result.code, "job toy has published into" in result.error) == (2, True)
        assert len(lakeside.writes()) == 1

    def test_a_lake_is_another_table(self, lakeside: Lakeside) -> None:
        """What is published into one lake is due in another, and stays where it is."""
        assert lakeside.call("backfill", "toy", *ONE).code == 0
        other = Lakeside(lakeside.root, lakeside.url, "other")

        assert other.call("backfill", "toy", *ONE).code == 0

        assert (len(lakeside.frame()), len(other.frame())) == (100, 100)

    def test_a_ledger_that_is_made_anew(self, lakeside: Lakeside) -> None:
        """Beside a ledger that knows nothing of it, an interval that is there is replaced all the same."""
        assert lakeside.call("backfill", "toy", *ONE).code == 0
        made = [name for name in toy.tables(lakeside.url) if name.startswith("batchscore_")]
        toy.execute(lakeside.url, *(f"DROP TABLE {name}" for name in made))

        assert lakeside.call("backfill", "toy", *ONE).code == 0

        assert len(lakeside.frame()) == 100
        assert len(lakeside.writes()) == 2


COUNTS = "status, rows_read, predictions, rejects, chunks, input_hash"


class TestCommands:
    """What is said, and what is not for a Delta table."""

    def test_check_and_migrate(self, lakeside: Lakeside) -> None:
        """`check` says where the table is or will be, and makes nothing; `migrate` makes it."""
        first = {
            row["check"]: row["detail"] for row in json.loads(lakeside.call("check", "toy", "--format", "json").out)
        }
        assert not (lakeside.root / "lake").exists()
        assert lakeside.call("migrate", "toy").code == 0
        then = {
            row["check"]: row["detail"] for row in json.loads(lakeside.call("check", "toy", "--format", "json").out)
        }

        assert first["output"] == f"{lakeside.location}: not there yet; the first run creates it"
        assert then["output"] == f"{lakeside.location}: there, and its columns take the predictions"
        assert then["delta_url"] == "lake (from BATCHSCORE_DELTA_URL)"
        assert lakeside.frame().is_empty()

    def test_flag(self, tmp_path: Path, trained: Project) -> None:
        """`--delta-url` is the setting, before the environment's."""
        project = Lakeside.of(toy.unscored(tmp_path, f"sqlite:///{tmp_path}/warehouse", trained))

        assert project.call("--delta-url", "elsewhere", "backfill", "toy", *ONE).code == 0

        assert len(Lakeside(project.root, project.url, "elsewhere").frame()) == 100
        assert not (tmp_path / "lake").exists()

    def test_views(self, lakeside: Lakeside) -> None:
        """Views over the output are refused with the reason; those over the ledger are made."""
        assert lakeside.call("migrate", "toy").code == 0

        refused, made = lakeside.call("views", "apply", "toy"), lakeside.call("views", "apply")

        assert (refused.code, "is the Delta table" in refused.error) == (2, True)
        assert made.code == 0

    def test_shadow(self, lakeside: Lakeside) -> None:
        """A shadow is not scored beside, which a warning tells; the predictions are published."""
        assert lakeside.call("train", "toy", BATCHSCORE_REGISTRY_URL="own").code == 0
        assert lakeside.call("train", "toy", BATCHSCORE_REGISTRY_URL="own").code == 0
        lakeside.edit("jobs/toy.toml", ('name = "toy"\n\n[output]', 'name = "toy"\nuse = 1\nshadow = 2\n\n[output]'))

        result = lakeside.call("backfill", "toy", *ONE, BATCHSCORE_REGISTRY_URL="own")

        assert result.code == 0, result.out
        assert "Take shadow out of [model]" in result.named("shadow.off")[0]["error"]
        assert len(lakeside.frame()) == 100
        assert [path.name for path in (lakeside.root / "lake").iterdir()] == ["toy_predictions"]
        checked = lakeside.call("check", "toy", "--format", "json", BATCHSCORE_REGISTRY_URL="own")
        assert {row["check"]: row["status"] for row in json.loads(checked.out)}["shadow"] == "off"

    def test_without_the_package(self, lakeside: Lakeside, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the extra is not installed, the command says how to, and nothing is begun."""
        monkeypatch.setitem(sys.modules, "deltalake", None)

        result = lakeside.call("backfill", "toy", *ONE)

        assert (result.code, "pip install 'batchscore[delta]'" in result.error) == (2, True)
        assert toy.tables(lakeside.url) in (["toy"], ["sqlite_autoindex_toy_1", "toy"])

    @pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://key:secret@bucket/x", "gs://bucket/x", "s3://b/x?y=z"])
    def test_url(self, url: str) -> None:
        """A place that is no folder and no bucket is refused, and not repeated: it may hold a secret."""
        with pytest.raises(UsageError, match="write a folder, or s3://bucket/prefix") as refused:
            Lake.at(url)
        assert "secret" not in str(refused.value)

    def test_long_name(self, tmp_path: Path) -> None:
        """A place whose name the ledger has no room for is refused before anything is written."""
        lake = Lake.at(str(tmp_path / ("x" * 100)))
        with pytest.raises(UsageError, match="the ledger keeps 128"):
            lake.location("predictions")

    def test_schema(self, embedded: Warehouse) -> None:
        """A table with a schema is a folder in a folder; its stages lie in the default schema."""
        output = Output("marts.predictions", OUTPUT.columns)
        embedded.prepare(output)
        with embedded.begin() as tx:
            tx.open_stage(output, "batchscore_stage_a")
            assert tx.full_name(output.table).endswith("/lake/marts/predictions")
            assert tx.stages(tx.full_name(output.table)) == ["batchscore_stage_a"]
            tx.drop_stages(tx.full_name(output.table), ["batchscore_stage_a"])
            assert tx.stages("predictions") == []


class TestValues:
    @pytest.mark.parametrize("column", [column.name for column in WIDE.columns[1:]])
    def test_edges(self, embedded: Warehouse, column: str) -> None:
        """Every value comes back as it was, to each reader."""
        values = EDGES.get(column, [])
        frame = pl.DataFrame({"id": range(len(values))}).with_columns(
            pl.Series(name, values if name == column else [None] * len(values), dtype=dtype)
            for name, dtype in _schema(WIDE).items()
            if name != "id"
        )
        embedded.prepare(WIDE)

        assert put(embedded, WIDE, frame)

        assert read(embedded, WIDE).select(frame.columns).equals(frame)
        location = lake_of(embedded).location("wide")
        assert pl.read_delta(location).sort("id").select(frame.columns).equals(frame)
        assert pl.DataFrame(DeltaTable(location).to_pyarrow_table()).sort("id").select(frame.columns).equals(frame)

    def test_nan(self, embedded: Warehouse) -> None:
        """NaN and negative zero are kept."""
        embedded.prepare(OUTPUT)
        put(embedded, OUTPUT, pl.DataFrame({"id": [1, 2], "label": ["a", "b"], "score": [float("nan"), -0.0]}))

        nan, zero = read(embedded, OUTPUT)["score"]
        assert nan != nan
        assert str(zero) == "-0.0"

    def test_stamp(self, embedded: Warehouse) -> None:
        """Every row carries the stamp, in microseconds and UTC."""
        embedded.prepare(OUTPUT)
        put(embedded, OUTPUT, predictions(1))

        assert read(embedded, OUTPUT).select(list(STAMP)).rows() == [tuple(STAMP.values())] * 3

    def test_staged(self, tmp_path: Path, database: Database) -> None:
        """What is staged in each database is read back as it was, and a writer need not wait meanwhile."""
        kept = {
            name: [value for value in values if value not in (math.inf, -math.inf)] for name, values in EDGES.items()
        }
        count, schema = 25_000, _schema(WIDE)
        values = {name: (kept[name] * count)[:count] for name in schema if name != "id"}
        rows = pl.DataFrame({"id": list(range(count)), **values}, schema=schema)
        with open_warehouse(database, delta_url=str(tmp_path / "lake")) as warehouse:
            with warehouse.begin() as tx:
                tx.open_stage(WIDE, "batchscore_stage_a")
            with warehouse.begin() as tx:
                tx.stage(WIDE, "batchscore_stage_a", {}, rows)
            frames = warehouse.staged_rows(WIDE, "batchscore_stage_a")
            first = next(frames)
            with warehouse.begin() as tx:
                tx.open_stage(WIDE, "batchscore_stage_b")
            found = pl.concat([first, *frames])
            # One that is left in the middle lets go.
            left = warehouse.staged_rows(WIDE, "batchscore_stage_a")
            next(left)
            left.close()  # type: ignore[attr-defined]
            with warehouse.begin() as tx:
                tx.drop_stage(WIDE, "batchscore_stage_a")

        assert found.sort("id").equals(rows)

    def test_no_stage(self, tmp_path: Path, database: Database) -> None:
        """A stage that another hand has dropped is told as what it is."""
        with (
            open_warehouse(database, delta_url=str(tmp_path / "lake")) as warehouse,
            pytest.raises(WarehouseError, match="batchscore_stage_a"),
        ):
            list(warehouse.staged_rows(WIDE, "batchscore_stage_a"))

    def test_names(self, embedded: Warehouse) -> None:
        """Columns may be called whatever a class or a source calls them, in any case."""
        names = ["ID", "score_very late, or (not)", "Größe = x", 'a"b`c']
        output = Output("odd", tuple(OutputColumn(name, "integer") for name in names))
        frame = pl.DataFrame({name: [number, number + 10] for number, name in enumerate(names)})
        embedded.prepare(output)

        for ticket in (2, 4):
            assert put(embedded, output, frame, ticket=ticket)

        window = Interval(DAY, DAY + timedelta(days=1))
        assert embedded.published(output, window, ["r" * 36]).sort("ID").equals(frame)
        assert pl.read_delta(lake_of(embedded).location("odd")).select(names).sort("ID").equals(frame)

    def test_published(self, embedded: Warehouse) -> None:
        """Rows are read by window and run; none where there is no table."""
        window = Interval(DAY, DAY + timedelta(days=2))
        assert embedded.published(OUTPUT, window, ["a"]).is_empty()
        embedded.prepare(OUTPUT)
        for day in range(3):
            put(embedded, OUTPUT, predictions(10 * day), DAY + timedelta(days=day), run="ab"[day % 2])

        assert embedded.published(OUTPUT, window, ["a", "b"]).sort("id")["id"].to_list() == [0, 1, 2, 10, 11, 12]
        assert embedded.published(OUTPUT, window, ["b"]).equals(predictions(10))


def _schema(output: Output) -> dict[str, pl.DataType]:
    from batchscore.schema import dtype_of

    return {column.name: dtype_of(column.type) for column in output.columns}


def made(warehouse: Warehouse, output: Output, *more: Field, **types: str) -> str:
    """A Delta table of a user's own: the output's columns, some of other types, backwards and behind others."""
    ours = {"integer": "long", "float": "double", "timestamp_tz": "timestamp"}
    fields = [
        Field(column.name, PrimitiveType(types.get(column.name, ours.get(column.type, column.type))))
        for column in reversed(output.all_columns)
        if types.get(column.name) != "none"
    ]
    location = lake_of(warehouse).location(output.table)
    DeltaTable.create(location, Schema([*more, *fields]))
    return location


class TestLiveTable:
    def test_a_table_of_ones_own(self, embedded: Warehouse) -> None:
        """Columns in any order, of a narrower type that holds the values, beside others: these are NULL."""
        made(embedded, OUTPUT, Field("theirs", PrimitiveType("double")), id="integer")

        narrow = embedded.prepare(OUTPUT)
        put(embedded, OUTPUT, predictions(1))

        assert set(narrow) == {"id"}
        found = pl.DataFrame(DeltaTable(lake_of(embedded).location("predictions")).scan()).sort("id")
        assert found.select("id", "score", "theirs").rows() == [(1, 0.5, None), (2, 0.5, None), (3, 0.5, None)]
        assert found.schema["id"] == pl.Int32
        assert embedded.published(OUTPUT, Interval(DAY, DAY + timedelta(days=1)), ["r" * 36]).schema["id"] == pl.Int64

    @pytest.mark.parametrize(
        ("types", "words"),
        [
            ({"score": "float"}, "score: want float .*, got float"),
            ({"score": "none"}, "score: want float, got no such column"),
            ({"label": "long"}, "label: want string .*, got long"),
            ({"interval_start": "timestamp_ntz"}, "interval_start: want timestamp_tz .*, got timestamp_ntz"),
        ],
    )
    def test_other_types(self, embedded: Warehouse, types: dict[str, str], words: str) -> None:
        """A column that is not there or does not hold our values is named, with what is wanted and what is there."""
        made(embedded, OUTPUT, **types)

        for look in (embedded.prepare, embedded.check):
            with pytest.raises(OutputMismatch, match=words):
                look(OUTPUT)
        with pytest.raises(OutputMismatch, match=words):
            put(embedded, OUTPUT, predictions(1))

    def test_required(self, embedded: Warehouse) -> None:
        """A column of others that must have a value cannot get one."""
        made(embedded, OUTPUT, Field("theirs", PrimitiveType("double"), nullable=False))

        with pytest.raises(OutputMismatch, match="theirs: is NOT NULL"):
            embedded.check(OUTPUT)

    def test_append_only(self, embedded: Warehouse) -> None:
        """A table whose rows may not be replaced is refused at once."""
        table = DeltaTable(made(embedded, OUTPUT))
        table.alter.set_table_properties({"delta.appendOnly": "true"})

        with pytest.raises(OutputMismatch, match="append-only"):
            embedded.check(OUTPUT)

    def test_constraint(self, embedded: Warehouse) -> None:
        """Rows that break a constraint of the table are refused, and not quoted."""
        table = DeltaTable(made(embedded, OUTPUT))
        table.alter.add_constraint({"small": "id < 2"})

        with pytest.raises(WarehouseError, match="failed validation check") as refused:
            put(embedded, OUTPUT, predictions(777))
        assert "777" not in str(refused.value)
        assert read(embedded, OUTPUT).is_empty()

    def test_no_delta_table(self, embedded: Warehouse) -> None:
        """A folder of other files, and a file, are left alone."""
        location = Path(lake_of(embedded).location("predictions"))
        location.mkdir(parents=True)
        (location / "theirs.csv").touch()

        with pytest.raises(WarehouseError, match="holds files and is no Delta table"):
            embedded.prepare(OUTPUT)
        assert [path.name for path in location.iterdir()] == ["theirs.csv"]
        shutil.rmtree(location)
        location.touch()
        with pytest.raises(WarehouseError, match="is no folder"):
            embedded.prepare(OUTPUT)

    def test_a_broken_log(self, embedded: Warehouse) -> None:
        """A log that cannot be read stops the run, in one sentence."""
        log = Path(made(embedded, OUTPUT)) / "_delta_log"
        (log / "00000000000000000000.json").write_text('{"commitInfo"')

        with pytest.raises(WarehouseError, match=r"cannot be read: .*Mend it") as refused:
            embedded.check(OUTPUT)
        assert "unknown" not in str(refused.value)

    def test_gone(self, embedded: Warehouse) -> None:
        """A table that goes while a run is on stops it."""
        embedded.prepare(OUTPUT)
        shutil.rmtree(lake_of(embedded).location("predictions"))

        with pytest.raises(WarehouseError, match="the Delta table is gone"):
            put(embedded, OUTPUT, predictions(1))

    def test_what_cannot_be_read_back(self, embedded: Warehouse) -> None:
        """An error in reading the rows is raised as what it is, and nothing of them is in the table."""

        def broken() -> Iterator[pl.DataFrame]:
            yield predictions(1)
            raise TransientError("the line is dead")

        embedded.prepare(OUTPUT)
        lake = lake_of(embedded)
        with pytest.raises(TransientError, match=r"^the line is dead$"):
            lake.replace(lake.location("predictions"), Sending("job", DAY, 2), OUTPUT, STAMP, {}, broken)
        assert read(embedded, OUTPUT).is_empty()

    def test_made_at_once(self, tmp_path: Path) -> None:
        """Of several processes that begin together one makes the table."""
        database = Database.at(f"sqlite:///{tmp_path}/warehouse")
        ready = threading.Barrier(4)

        def make() -> None:
            with open_warehouse(database, delta_url=str(tmp_path / "lake")) as warehouse:
                ready.wait()
                warehouse.prepare(OUTPUT)

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert DeltaTable(str(tmp_path / "lake/predictions")).version() == 0


class TestCommits:
    """What one commit does to another."""

    def test_the_same_again(self, embedded: Warehouse) -> None:
        """What is there already is not written again."""
        embedded.prepare(OUTPUT)
        assert put(embedded, OUTPUT, predictions(1), ticket=2)

        assert put(embedded, OUTPUT, predictions(5), ticket=2)

        assert read(embedded, OUTPUT)["id"].to_list() == [1, 2, 3]

    def test_a_lower_number(self, embedded: Warehouse) -> None:
        """What was sent under a higher number is not replaced by one that is behind."""
        embedded.prepare(OUTPUT)
        put(embedded, OUTPUT, predictions(1), ticket=4)

        with pytest.raises(IntervalLeased, match="under a higher number"):
            put(embedded, OUTPUT, predictions(5), ticket=2)

        assert read(embedded, OUTPUT)["id"].to_list() == [1, 2, 3]

    @pytest.mark.parametrize("winner", ["rows", "no_rows", "kept_out"])
    def test_overtaken_in_the_middle(self, embedded: Warehouse, winner: str) -> None:
        """A process that read the table before another sent its interval, or kept it out, commits nothing."""
        embedded.prepare(OUTPUT)
        lake, location = lake_of(embedded), lake_of(embedded).location("predictions")

        def slow() -> Iterator[pl.DataFrame]:
            yield predictions(1)
            if winner == "kept_out":
                assert lake.settled(location, Sending("job", DAY, 2)) is False
            else:
                assert put(embedded, OUTPUT, predictions(5, 3 if winner == "rows" else 0), ticket=4)

        assert not lake.replace(location, Sending("job", DAY, 2), OUTPUT, STAMP, {}, slow)
        with pytest.raises(IntervalLeased):
            put(embedded, OUTPUT, predictions(1), ticket=2)
        assert read(embedded, OUTPUT)["id"].to_list() == ([5, 6, 7] if winner == "rows" else [])

    @pytest.mark.parametrize("columns", [3, 60])
    def test_another_interval_in_the_middle(self, embedded: Warehouse, columns: int) -> None:
        """Processes that replace different intervals both have their way at once, however many columns there are."""
        more = [OutputColumn(f"x{number}", "float") for number in range(columns - 3)]
        output = Output("predictions", (*OUTPUT.columns, *more))
        wide = [pl.lit(0.5).alias(column.name) for column in more]
        embedded.prepare(output)
        days = [DAY, DAY + timedelta(hours=1)]
        for number, day in enumerate(days):
            put(embedded, output, predictions(10 * number).with_columns(wide), day, ticket=2)
        lake = lake_of(embedded)

        def slow() -> Iterator[pl.DataFrame]:
            assert put(embedded, output, predictions(15).with_columns(wide), days[1], ticket=4)
            yield predictions(5).with_columns(wide)

        sending = Sending("job", days[0], 4)
        assert lake.replace(lake.location("predictions"), sending, output, STAMP, {}, slow)
        assert read(embedded, output)["id"].to_list() == [5, 6, 7, 15, 16, 17]

    def test_settled(self, embedded: Warehouse) -> None:
        """What was sent is found; what was not is kept out; a table that is gone has nothing."""
        lake, location = lake_of(embedded), lake_of(embedded).location("predictions")
        assert lake.settled(location, Sending("job", DAY, 2)) is False
        embedded.prepare(OUTPUT)
        put(embedded, OUTPUT, predictions(1), ticket=2)
        assert lake.settled(location, Sending("job", DAY, 2)) is True

        assert lake.settled(location, Sending("job", DAY, 4)) is False
        assert lake.settled(location, Sending("job", DAY, 4)) is False
        with pytest.raises(IntervalLeased):
            put(embedded, OUTPUT, predictions(5), ticket=4)
        # Another job, or another interval, is another matter.
        assert put(embedded, OUTPUT, predictions(5), DAY + timedelta(days=1), ticket=2)
        assert read(embedded, OUTPUT)["id"].to_list() == [1, 2, 3, 5, 6, 7]

    def test_compacted(self, embedded: Warehouse) -> None:
        """Where files hold several intervals, a replacement takes its own alone; vacuumed, all is still there."""
        embedded.prepare(OUTPUT)
        for day in range(4):
            put(embedded, OUTPUT, predictions(10 * day), DAY + timedelta(days=day))
        table = DeltaTable(lake_of(embedded).location("predictions"))
        table.optimize.compact()
        assert len(table.file_uris()) == 1

        put(embedded, OUTPUT, predictions(15), DAY + timedelta(days=1), ticket=4)
        table.update_incremental()
        table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)

        assert read(embedded, OUTPUT)["id"].to_list() == [0, 1, 2, 15, 16, 17, 20, 21, 22, 30, 31, 32]
        assert len(list(Path(lake_of(embedded).location("predictions")).rglob("*.parquet"))) == len(table.file_uris())

    def test_compacted_in_the_middle(self, embedded: Warehouse) -> None:
        """A compaction that is quicker is in the way once, and nothing is lost or doubled."""
        embedded.prepare(OUTPUT)
        for day in range(3):
            put(embedded, OUTPUT, predictions(10 * day), DAY + timedelta(days=day))
        lake, location = lake_of(embedded), lake_of(embedded).location("predictions")

        def slow() -> Iterator[pl.DataFrame]:
            DeltaTable(location).optimize.compact()
            yield predictions(5)

        done = lake.replace(location, Sending("job", DAY, 4), OUTPUT, STAMP, {}, slow)
        if not done:
            assert put(embedded, OUTPUT, predictions(5), ticket=4)

        assert read(embedded, OUTPUT)["id"].to_list() == [5, 6, 7, 10, 11, 12, 20, 21, 22]


# Where a run is broken: once in each chunk's course, and at each boundary of the two stores.
PLACES = [*(point for point in POINTS if point != "in_publish")]
PLACES[PLACES.index("before_publish_commit") + 1 : PLACES.index("before_publish_commit") + 1] = DELTA_POINTS
TWO_STORES = PLACES[PLACES.index("before_publish_commit") : PLACES.index("after_publish") + 1]
HOWS = ("kill", "raise", "lose")
FIRST = date(2024, 2, 1)
CASES = [(point, how) for point in PLACES for how in HOWS]


@dataclass
class Bench:
    """A project beside a lake, and the same job under another name for calm runs."""

    project: Lakeside

    def run(self, day: date, job: str = "toy", fault: str | None = None) -> Result:
        """Backfill a day in four chunks."""
        broken = {VARIABLE: fault} if fault else {}
        window = ("--from", str(day), "--to", str(day + timedelta(days=1)))
        return self.project.run("backfill", job, *window, "--chunk-rows", "25", **broken)

    def found(self, day: date, job: str = "toy") -> dict[str, Any]:
        """What a day has left behind, but for ids and times."""
        location = str(self.project.root / "lake" / f"{job}_predictions")
        rows = pl.DataFrame(DeltaTable(location).scan()).filter(pl.col("interval_start").dt.date() == day).sort("id")
        counts = "status, revision, rows_read, predictions, rejects, chunks, rows_so_far, input_hash, error"
        runs = f"SELECT run_id FROM batchscore_runs WHERE job = '{job}' AND {_on(day)}"
        queries = {
            "runs": f"SELECT {counts} FROM batchscore_runs WHERE job = '{job}' AND {_on(day)}",
            "chunks": "SELECT chunk, key_low, key_high, rows_read, predictions, rejects, input_hash, profile "
            f"FROM batchscore_chunks WHERE run_id IN ({runs}) ORDER BY chunk",
            "profiles": "SELECT role, column_name, kind, row_count, null_count, mean, std, profile "
            f"FROM batchscore_profiles WHERE run_id IN ({runs}) ORDER BY role, column_name",
            "drift": "SELECT reference, role, column_name, metric, value, verdict FROM batchscore_drift "
            f"WHERE run_id IN ({runs}) ORDER BY reference, role, column_name, metric",
        }
        found: dict[str, Any] = {name: toy.query(self.project.url, sql) for name, sql in queries.items()}
        ids = toy.query(self.project.url, runs)
        return found | {
            "rows": rows.select("id", "day", "prediction", "score", "model_version").rows(),
            "one run": [(run,) for run in rows["run_id"].unique()] == ids and rows["scored_at"].n_unique() == 1,
        }


def _on(day: date) -> str:
    return f"interval_start >= '{day}' AND interval_start < '{day + timedelta(days=1)}'"


@pytest.fixture(
    scope="module", params=["sqlite", *(pytest.param(name, marks=pytest.mark.long) for name in ("duckdb", "postgres"))]
)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A database with the two jobs, and a lake."""
    root = tmp_path_factory.mktemp(request.param)
    server = request.getfixturevalue("postgres_server") if request.param == "postgres" else None
    url = (
        f"{request.param}:///{root}/warehouse" if server is None else server.set(database="postgres").render_as_string()
    )
    project = Lakeside.of(Project.at(root, url))
    toy.load(url, toy.rows(days=32 + len(CASES)))
    assert project.call("train", "toy").code == 0
    for file in ("toml", "py"):
        text = (root / f"jobs/toy.{file}").read_text()
        calm = text.replace('[job]\nname = "toy"', '[job]\nname = "calm"')
        (root / f"jobs/calm.{file}").write_text(calm.replace("toy_predictions", "calm_predictions"))
    yield Bench(project)
    if server is not None:
        made = [name for name in toy.tables(url) if name.startswith(("toy", "batchscore_"))]
        toy.execute(url, *(f"DROP TABLE {name}" for name in made))


class TestFaults:
    @pytest.mark.parametrize(
        ("point", "how"),
        [
            pytest.param(point, how, marks=[] if point in TWO_STORES and how == "kill" else [pytest.mark.long])
            for point, how in CASES
        ],
    )
    def test_nothing_is_lost_or_doubled(self, bench: Bench, point: str, how: str) -> None:
        """Broken anywhere and run again, a day's rows and all that the ledger says of them are those of a calm run.

        From the commit of the Delta table on the rows are there, and no other commit is made for them.
        """
        day = FIRST + timedelta(days=CASES.index((point, how)))
        chunk = 2 if point in POINTS[4:9] else 0

        broken = bench.run(day, fault=f"{point}:{chunk}:{how}")
        version = DeltaTable(bench.project.location).version() if point not in POINTS[:1] else None
        again = bench.run(day)

        assert broken.code == {"kill": -9, "raise": 70, "lose": 0}[how], broken.out
        assert again.code == 0, again.out
        if point in PLACES[PLACES.index("after_delta_commit") :]:
            assert DeltaTable(bench.project.location).version() == version
        assert bench.run(day, "calm").code == 0
        found = bench.found(day)
        assert found["one run"]
        assert found == bench.found(day, "calm")

    def test_nothing_is_left_over(self, bench: Bench) -> None:
        """After all that no stage is left, and every day was written into the table once."""
        assert bench.project.call("runs", "prune", "--older-than", "0h").code == 0

        assert not [name for name in toy.tables(bench.project.url) if "stage" in name]
        written = Counter(each["batchscore.interval_start"] for each in bench.project.writes())
        assert set(written.values()) == {1}


class TestDoubt:
    """A process died between the two stores, and the next one has other plans."""

    @pytest.fixture
    def project(self, tmp_path: Path, trained: Project) -> Lakeside:
        return Lakeside.of(toy.unscored(tmp_path, f"sqlite:///{tmp_path}/warehouse", trained))

    def broken(self, project: Lakeside, point: str) -> None:
        """Kill a backfill of one day there."""
        assert project.run("backfill", "toy", *ONE, BATCHSCORE_FAULT=f"{point}:0:kill").code == -9

    def test_is_recorded_before_anything_is_planned(self, project: Lakeside) -> None:
        """The next command, whatever it is to do, records what is in the table, and says so."""
        self.broken(project, "after_delta_commit")
        assert project.runs()[0][0] == "running"

        result = project.call("backfill", "toy", "--from", "2024-02-02", "--to", "2024-02-03")

        assert [line["level"] for line in result.named("run.confirmed")] == ["warning"]
        assert [run[0] for run in project.runs()] == ["published", "published"]
        assert project.call("backfill", "toy", *ONE).named("run.nothing_due")
        assert len(project.writes()) == 2

    def test_evaluate(self, project: Lakeside) -> None:
        """`evaluate` finds the rows that are there, and not none for a run that nobody recorded."""
        self.broken(project, "after_delta_commit")

        answer = project.call("evaluate", "toy", "--format", "json")

        assert [row["labelled"] for row in json.loads(answer.out)] == [100]

    def test_another_model(self, project: Lakeside) -> None:
        """Where another version is in use by now, the first run is published, and then replaced as any other."""
        self.broken(project, "after_delta_commit")
        registry = project.root / "var/registry"
        kept = registry.resolve()
        registry.unlink()
        shutil.copytree(kept, registry)
        project.edit("jobs/toy.py", ("max_iter=20", "max_iter=21"))
        assert project.call("train", "toy").code == 0
        assert project.call("models", "promote", "toy", "2").code == 0

        result = project.call("backfill", "toy", *ONE, "--only", "all")

        assert result.code == 0, result.out
        statuses = sorted((status, revision) for status, revision, *_ in project.runs())
        assert statuses == [("published", 1), ("superseded", 0)]
        assert project.frame()["run_id"].n_unique() == 1

    def test_not_sent(self, project: Lakeside) -> None:
        """A run that was announced and not sent is kept out, goes on from its chunks, and is sent under a new number."""
        self.broken(project, "before_delta_commit")
        ((first,),) = toy.query(project.url, "SELECT ticket FROM batchscore_runs")

        result = project.call("backfill", "toy", *ONE)

        assert result.code == 0, result.out
        assert len(result.named("run.disowned")) == 1
        assert not result.named("chunk.committed")
        ((second,),) = toy.query(project.url, "SELECT ticket FROM batchscore_runs")
        assert (first % 2, second % 2, second > first + 1) == (0, 0, True)

    def test_a_gate_then(self, project: Lakeside) -> None:
        """What was kept out stays out where the next attempt is held by a gate."""
        self.broken(project, "before_delta_commit")
        project.edit("jobs/toy.toml", ("[limits]", "[publish]\nscore_range = [0.4, 0.6]\n\n[limits]"))

        assert project.call("backfill", "toy", *ONE).code == 31

        assert project.frame().is_empty()
        assert project.runs()[0][0] == "held"

    @pytest.mark.parametrize("point", ["before_delta_commit", "after_delta_commit", "before_confirm_commit"])
    def test_an_override(self, project: Lakeside, point: str) -> None:
        """A held run that was in the table when the process died keeps its reason; one that was not is held again."""
        project.edit("jobs/toy.toml", ("[limits]", "[publish]\nscore_range = [0.4, 0.6]\n\n[limits]"))
        assert project.call("backfill", "toy", *ONE).code == 31
        ((held,),) = toy.query(project.url, "SELECT run_id FROM batchscore_runs")
        override = ("runs", "publish", held, "--override", "--reason", "it is right")
        assert project.run(*override, BATCHSCORE_FAULT=f"{point}:0:kill").code == -9

        again = project.call("score", "toy", "--interval", "2024-02-01")

        kept = toy.query(project.url, "SELECT status, override_reason FROM batchscore_runs")
        if point == "before_delta_commit":
            assert (again.code, kept, len(project.frame())) == (31, [("held", None)], 0)
            assert project.call(*override).code == 0
        else:
            assert again.code == 0, again.out
        assert toy.query(project.url, "SELECT status, override_reason FROM batchscore_runs") == [
            ("published", "it is right")
        ]
        assert len(project.frame()) == 100

    @pytest.mark.parametrize("point", ["before_delta_commit", "after_delta_commit"])
    def test_pruning_leaves_it(self, project: Lakeside, point: str) -> None:
        """A prune in between takes nothing that finding out may need."""
        self.broken(project, point)

        assert project.call("runs", "prune", "--older-than", "0h").code == 0

        result = project.call("backfill", "toy", *ONE)
        assert result.code == 0, result.out
        assert not result.named("chunk.committed")
        assert project.runs()[0][:4] == ("published", 0, 100, 100)
        assert len(project.frame()) == 100


class TestCrowd:
    """Processes that meet."""

    @pytest.fixture(params=SHARED)
    def project(self, request: pytest.FixtureRequest, tmp_path: Path, trained: Project) -> Lakeside:
        return Lakeside.of(toy.unscored(tmp_path, toy.url_of(request, tmp_path), trained))

    @pytest.mark.parametrize("point", ["before_delta_commit", "after_delta_commit"])
    def test_waking_without_the_lease(self, project: Lakeside, point: str) -> None:
        """A process that stood still beyond its lease finds the interval published by another, and writes nothing."""
        first = project.start("backfill", "toy", *ONE, BATCHSCORE_FAULT=f"{point}:0:stop", BATCHSCORE_LEASE_SECONDS="1")
        while psutil.Process(first.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.05)
        time.sleep(1.2)
        try:
            second = project.run("backfill", "toy", *ONE, timeout=200)
            published = project.frame()
            version = project.delta().version()
            first.send_signal(signal.SIGCONT)
            out, _ = first.communicate(timeout=100)
        finally:
            first.kill()
            first.communicate()

        assert second.code == 0, second.out
        assert first.returncode == 0, out
        assert project.frame().equals(published)
        assert project.delta().version() == version
        assert len(project.writes()) == 1
        assert [run[0] for run in project.runs()] == ["published"]

    def test_a_stage_spoilt_at_the_last_moment(self, project: Lakeside) -> None:
        """What another hand takes out of the stage between the two stores is noticed, and nothing is published."""
        process = project.start("backfill", "toy", *ONE, BATCHSCORE_FAULT="before_delta_commit:0:stop")
        while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.05)
        (stage,) = (name for name in toy.tables(project.url) if name.startswith("batchscore_stage_"))
        toy.execute(project.url, f"DELETE FROM {stage} WHERE id = 3101")
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate(timeout=100)

        assert process.returncode == 12, out
        assert "held 100 rows a moment ago, and 99 now" in out
        assert project.frame().is_empty()
        again = project.call("backfill", "toy", *ONE)
        assert again.named("run.spoilt")
        assert len(project.frame()) == 100

    @pytest.mark.parametrize("windows", ["apart", "same"])
    def test_at_once(self, project: Lakeside, windows: str) -> None:
        """Two backfills at once leave every day published once, whether they are of the same days or of others."""
        mine, theirs = (("--part", f"{number}/2") if windows == "apart" else () for number in (0, 1))
        processes = [
            project.start("backfill", "toy", *DAYS, "--chunk-rows", "25", "--workers", "2", *part)
            for part in (mine, theirs)
        ]
        told = [process.communicate(timeout=120)[0] for process in processes]

        codes = {process.returncode for process in processes}
        assert codes <= ({0} if windows == "apart" else {0, 21}), told
        assert project.frame()["id"].to_list() == list(range(3101, 3601))
        assert [run[0] for run in project.runs()] == ["published"] * 5
        assert len(project.writes()) == 5

    def test_readers_see_intervals_whole(self, project: Lakeside) -> None:
        """While days are scored again and again, each is there whole, by one run, at every look."""
        assert project.call("backfill", "toy", *DAYS).code == 0
        looks, stopped, failed = 0, threading.Event(), list[BaseException]()

        def look() -> None:
            nonlocal looks
            counted = duckdb.connect()
            try:
                while not stopped.is_set():
                    for frame in (pl.DataFrame(project.delta().scan()), pl.scan_delta(project.location).collect()):
                        days = frame.group_by("interval_start", "run_id").len()
                        assert days["len"].to_list() == [100] * 5, days
                        assert frame["id"].n_unique() == 500
                    counted.register("dataset", project.delta().to_pyarrow_dataset())
                    rows = counted.execute("SELECT count(*) FROM dataset GROUP BY interval_start, run_id").fetchall()
                    assert rows == [(100,)] * 5
                    looks += 1
            except BaseException as error:  # noqa: BLE001 - the one who waits raises it
                failed.append(error)

        reader = threading.Thread(target=look)
        reader.start()
        for _ in range(2):
            assert project.run("backfill", "toy", *DAYS, "--only", "all", "--workers", "3").code == 0
        killed = project.start("backfill", "toy", *DAYS, "--only", "all", "--chunk-rows", "25")
        toy.wait_for_chunks(killed, 6)
        killed.kill()
        killed.communicate()
        stopped.set()
        reader.join()

        assert not failed, failed
        assert looks > 4


STORE = """
import sys
sys.path.insert(0, sys.argv[1])
from moto.server import DomainDispatcherApplication, create_backend_app
from s3 import serving

moto = DomainDispatcherApplication(create_backend_app)

def app(environ, start):
    if "careless" in sys.argv:
        environ.pop("HTTP_IF_NONE_MATCH", None)
    return moto(environ, start)

with serving(app) as endpoint:
    print(endpoint, flush=True)
    sys.stdin.read()
"""


@contextmanager
def storing(*how: str) -> Iterator[str]:
    """The endpoint of an object store in a process of its own.

    Some calls of delta-rs keep every thread of their process waiting for the store, and one in it would wait with them.
    """
    command = [sys.executable, "-c", STORE, str(Path(__file__).parent), *how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        yield process.stdout.readline().strip()
        process.stdin.close()


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """The endpoint of an object store."""
    with storing() as endpoint:
        yield endpoint


class TestBucket:
    """Tables in an object store."""

    @pytest.fixture
    def bucket(self, store: str, monkeypatch: pytest.MonkeyPatch) -> str:
        """The URL of a place in a new bucket, with the environment that leads to it."""
        return bucket_at(store, monkeypatch)

    @pytest.fixture
    def project(self, tmp_path: Path, trained: Project, bucket: str) -> Lakeside:
        return Lakeside.of(toy.unscored(tmp_path, f"sqlite:///{tmp_path}/warehouse", trained), bucket)

    def test_runs(self, project: Lakeside) -> None:
        """Published, scored again, and read, as in a folder; two processes at once have both their way."""
        processes = [project.start("backfill", "toy", *DAYS, "--part", f"{number}/2") for number in (0, 1)]
        told = [process.communicate(timeout=120)[0] for process in processes]
        again = project.run("score", "toy", "--interval", "2024-02-03", "--force")
        evaluated = project.run("evaluate", "toy", "--format", "json")

        assert [process.returncode for process in processes] == [0, 0], told
        assert again.code == 0, again.out
        assert project.frame()["id"].to_list() == list(range(3101, 3601))
        assert [row["labelled"] for row in json.loads(evaluated.out)] == [100] * 5
        assert len(project.writes()) == 6

    def test_killed(self, project: Lakeside) -> None:
        """Killed between the two stores, the next one only records it."""
        assert project.run("backfill", "toy", *ONE, BATCHSCORE_FAULT="after_delta_commit:0:kill").code == -9

        again = project.run("backfill", "toy", *ONE)

        assert again.code == 0, again.out
        assert again.named("run.confirmed")
        assert len(project.writes()) == 1

    def test_a_store_that_overwrites(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A store that lets one commit take another's place is found out before any prediction is written."""
        database = Database.at(f"sqlite:///{tmp_path}/warehouse")
        with (
            storing("careless") as endpoint,
            open_warehouse(database, delta_url=bucket_at(endpoint, monkeypatch)) as warehouse,
            pytest.raises(WarehouseError, match="the store overwrites what it is asked to leave alone"),
        ):
            warehouse.prepare(OUTPUT)

    def test_no_such_bucket(self, tmp_path: Path, bucket: str) -> None:
        """A bucket that is not there is told in one sentence, for good."""
        database = Database.at(f"sqlite:///{tmp_path}/warehouse")
        with (
            open_warehouse(database, delta_url="s3://no-such-bucket/lake") as warehouse,
            pytest.raises(WarehouseError, match=r"cannot be read: NoSuchBucket\. Check the bucket"),
        ):
            warehouse.check(OUTPUT)

    def test_nobody_answers(self, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A store that does not answer may do so later."""
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        monkeypatch.setitem(delta._STORE, "max_retries", "1")
        database = Database.at(f"sqlite:///{tmp_path}/warehouse")
        with (
            open_warehouse(database, delta_url="s3://bucket/lake") as warehouse,
            pytest.raises(
                TransientError, match=r"the store does not answer\. .* Check AWS_ENDPOINT_URL and the network"
            ),
        ):
            warehouse.check(OUTPUT)
