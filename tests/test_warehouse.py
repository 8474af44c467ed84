"""One contract for every warehouse, held against real databases."""

from __future__ import annotations

import math
import re
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import duckdb
import polars as pl
import psycopg
import pytest
import sqlalchemy as sa
from disk import Disk
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy.schema import CreateTable, DropTable
from toy import MARIADB

from batchscore import ledger
from batchscore.database import Database
from batchscore.errors import OutputMismatch, TransientError, UsageError, WarehouseError
from batchscore.run.retry import Patience
from batchscore.schema import TypeName, dtype_of
from batchscore.sqltypes import TABLE_OPTIONS
from batchscore.warehouse import Output, OutputColumn, Warehouse, open_warehouse
from batchscore.warehouse.anysql import AnySQL

DAY = datetime(2024, 1, 2, tzinfo=UTC)
OUTPUT = Output(
    "predictions",
    (OutputColumn("id", "integer"), OutputColumn("label", "string"), OutputColumn("score", "float")),
)
WIDE = Output(
    "wide",
    (
        OutputColumn("id", "integer"),
        OutputColumn("yes", "boolean"),
        OutputColumn("n", "integer"),
        OutputColumn("x", "float"),
        OutputColumn("text", "string"),
        OutputColumn("day", "date"),
        OutputColumn("local", "timestamp"),
        OutputColumn("instant", "timestamp_tz"),
    ),
)
EDGES: Mapping[str, Sequence[Any]] = {
    "yes": [True, False, None],
    "n": [0, -1, 2**63 - 1, -(2**63), 2**53 + 1, None],
    "x": [0.0, 1e-300, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, 1 / 3, math.inf, -math.inf, 2.0**53, 1e22, None],
    "text": [
        "",
        None,
        "NULL",
        "\\N",
        "\\.",
        "a\n\\.\nb",
        'a"b""c',
        "it's",
        "a,b;c\td",
        "line\r\nline\n",
        "\\",
        "C:\\n\\t\\0",
        "%s %(x)s 100%",
        ":x $1 ?",
        " spaced ",
        "é ß 漢 \U0001f600 \u202e \ufeff",
        "e\u0301",
        "{}",
    ],
    "day": [date(1, 1, 1), date(1969, 12, 31), date(1970, 1, 1), date(2024, 2, 29), date(9999, 12, 31), None],
    "local": [
        datetime(1, 1, 1),
        datetime(1969, 12, 31, 23, 59, 59, 999_999),
        datetime(2024, 3, 31, 2, 30),
        datetime(9999, 12, 31, 23, 59, 59, 999_999),
        None,
    ],
    "instant": [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2024, 10, 27, 0, 30, 0, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        None,
    ],
}

# The integers next to those that a type holds.
INT16, INT32, DOUBLE = (-(2**15) - 1, 2**15), (-(2**31) - 1, 2**31), (-(2**53) - 1, 2**53 + 1)

Query = Callable[[str], Sequence[tuple[Any, ...]]]


class Bench:
    """A database, and what is true of it alone.

    Attributes:
        declared: How a user declares a column of each type.
        narrow: Other declarations that an integer column may have, each with the integers nearest 0 it cannot hold.
        refused: Declarations that lose something of the type they are for.
        nan, infinite, negative_zero, nul: Whether these come back as they went in.
        rolls_back_tables: A table that was made is gone with the transaction.
        folds_case: Names that differ in case are one.
        measures_text: A text longer than its column's declared length is refused.
    """

    declared: ClassVar[Mapping[TypeName, str]]
    narrow: ClassVar[Mapping[str, tuple[int, int]]]
    refused: ClassVar[Sequence[tuple[TypeName, str]]]
    nan = infinite = negative_zero = nul = rolls_back_tables = True
    folds_case = measures_text = False

    def __init__(self, url: str | sa.URL) -> None:
        self.database = Database(sa.make_url(url))

    def open(self, *, read_only: bool = False) -> Warehouse:
        return open_warehouse(self.database, read_only=read_only)

    @contextmanager
    def reader(self) -> Iterator[Query]:
        """Another connection than the warehouse's, that waits for no lock."""
        raise NotImplementedError

    def query(self, sql: str) -> Sequence[tuple[Any, ...]]:
        with self.reader() as query:
            return query(sql)

    def run(self, *statements: str) -> None:
        with self.open() as warehouse, warehouse.begin() as tx:
            for statement in statements:
                tx.connection.exec_driver_sql(statement)

    def create(self, output: Output, extra: Sequence[str] = (), **declared: str) -> None:
        """Make the output table as a user would, some of its columns declared otherwise."""
        columns = [f"{c.name} {declared.get(c.name, self.declared[c.type])}" for c in output.all_columns]
        self.run(f"CREATE TABLE {output.table} ({', '.join([*columns, *extra])})")


class DuckDBBench(Bench):
    """A DuckDB file."""

    declared: ClassVar = {
        "boolean": "BOOLEAN",
        "integer": "BIGINT",
        "float": "DOUBLE",
        "string": "VARCHAR",
        "date": "DATE",
        "timestamp": "TIMESTAMP",
        "timestamp_tz": "TIMESTAMPTZ",
    }
    narrow: ClassVar = {"INTEGER": INT32, "SMALLINT": INT16, "DOUBLE": DOUBLE}
    refused: ClassVar = [
        ("float", "REAL"),
        ("float", "DECIMAL(18, 3)"),
        ("float", "BIGINT"),
        ("integer", "REAL"),
        ("integer", "DECIMAL(18, 0)"),
        ("integer", "UBIGINT"),
        ("integer", "VARCHAR"),
        ("integer", "TIMESTAMPTZ"),
        ("string", "VARCHAR[]"),
        ("string", "BLOB"),
        ("boolean", "INTEGER"),
        ("date", "TIMESTAMP"),
        ("timestamp", "TIMESTAMPTZ"),
        ("timestamp", "TIMESTAMP_S"),
        ("timestamp_tz", "TIMESTAMP"),
        ("timestamp_tz", "VARCHAR"),
    ]
    folds_case = True

    @contextmanager
    def reader(self) -> Iterator[Query]:
        with closing(duckdb.connect(self.database.path)) as connection:
            yield lambda sql: connection.execute(sql).fetchall()


class SQLiteBench(Bench):
    """An SQLite file."""

    declared: ClassVar = {
        "boolean": "BOOLEAN",
        "integer": "INTEGER",
        "float": "REAL",
        "string": "TEXT",
        "date": "DATE",
        "timestamp": "DATETIME",
        "timestamp_tz": "TIMESTAMP",
    }
    narrow: ClassVar = {"REAL": DOUBLE}
    refused: ClassVar = [
        ("float", "NUMERIC"),
        ("float", "DECIMAL(18, 3)"),
        ("float", "INTEGER"),
        ("integer", "TEXT"),
        ("integer", "NUMERIC"),
        ("string", "STRING"),
        ("string", "INTEGER"),
        ("string", "BLOB"),
        ("boolean", "REAL"),
        ("timestamp", "DATE"),
        ("timestamp_tz", "INTEGER"),
    ]
    nan = negative_zero = False
    folds_case = True

    @contextmanager
    def reader(self) -> Iterator[Query]:
        with closing(sqlite3.connect(self.database.path, timeout=0, check_same_thread=False)) as connection:
            yield lambda sql: connection.execute(sql).fetchall()


class PostgresBench(Bench):
    """A database of a Postgres server."""

    declared: ClassVar = {
        "boolean": "boolean",
        "integer": "bigint",
        "float": "double precision",
        "string": "text",
        "date": "date",
        "timestamp": "timestamp",
        "timestamp_tz": "timestamptz",
    }
    narrow: ClassVar = {"integer": INT32, "smallint": INT16, "double precision": DOUBLE}
    refused: ClassVar = [
        ("float", "real"),
        ("float", "numeric"),
        ("float", "bigint"),
        ("integer", "real"),
        ("integer", "numeric(20, 0)"),
        ("integer", "text"),
        ("integer", "timestamptz"),
        ("string", "char(20)"),
        ("string", "varchar(20)[]"),
        ("string", "json"),
        ("boolean", "integer"),
        ("date", "timestamp"),
        ("timestamp", "timestamptz"),
        ("timestamp", "timestamp(3)"),
        ("timestamp_tz", "timestamp"),
        ("timestamp_tz", "timestamptz(0)"),
    ]
    nul = False
    measures_text = True

    @contextmanager
    def reader(self) -> Iterator[Query]:
        with closing(psycopg.connect(self.database.libpq_uri(), autocommit=True)) as connection:
            connection.execute("SET lock_timeout = '100ms'")

            def query(sql: str) -> Sequence[tuple[Any, ...]]:
                cursor = connection.execute(sql.encode())
                return cursor.fetchall() if cursor.description else []

            yield query

    def as_role(self, role: str, password: str | None = None) -> PostgresBench:
        return PostgresBench(self.database.url.set(username=role, password=password))


class MariaDBBench(Bench):
    """A database of a MariaDB server."""

    declared: ClassVar = {
        "boolean": "boolean",
        "integer": "bigint",
        "float": "double",
        "string": "longtext CHARACTER SET utf8mb4",
        "date": "date",
        "timestamp": "datetime(6)",
        "timestamp_tz": "datetime(6)",
    }
    narrow: ClassVar = {"integer": INT32, "smallint": INT16, "double": DOUBLE}
    refused: ClassVar = [
        ("float", "float"),
        ("float", "decimal(18, 3)"),
        ("float", "bigint"),
        ("integer", "bigint unsigned"),
        ("integer", "float"),
        ("integer", "text"),
        ("string", "char(20)"),
        ("string", "enum('a', 'b')"),
        ("string", "set('a', 'b')"),
        ("string", "blob"),
        ("boolean", "integer"),
        ("boolean", "tinyint(4)"),
        ("date", "datetime(6)"),
        ("timestamp", "datetime"),
        ("timestamp", "datetime(3)"),
        ("timestamp_tz", "timestamp"),
    ]
    nan = infinite = negative_zero = rolls_back_tables = False
    measures_text = True

    @contextmanager
    def reader(self) -> Iterator[Query]:
        engine = sa.create_engine(self.database.url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql("SET SESSION lock_wait_timeout = 1, innodb_lock_wait_timeout = 1")

            def query(sql: str) -> Sequence[tuple[Any, ...]]:
                result = connection.exec_driver_sql(sql)
                return [tuple(row) for row in result] if result.returns_rows else []

            yield query


class AnyBench(PostgresBench):
    """A Postgres database by way of the backend for dialects that have none of their own."""

    def open(self, *, read_only: bool = False) -> Warehouse:
        return Warehouse(self.database, AnySQL(self.database, read_only=read_only))


@pytest.fixture
def mariadb(mariadb_url: str) -> MariaDBBench:
    """An empty MariaDB database."""
    return MariaDBBench(mariadb_url)


@pytest.fixture
def postgres(postgres_url: str) -> PostgresBench:
    """An empty Postgres database."""
    return PostgresBench(postgres_url)


@pytest.fixture
def embedded_duckdb(tmp_path: Path) -> DuckDBBench:
    """A DuckDB file that is not there yet."""
    return DuckDBBench(f"duckdb:///{tmp_path / 'warehouse'}")


@pytest.fixture
def embedded_sqlite(tmp_path: Path) -> SQLiteBench:
    """An SQLite file that is not there yet."""
    return SQLiteBench(f"sqlite:///{tmp_path / 'warehouse'}")


@pytest.fixture(params=["embedded_duckdb", "embedded_sqlite"])
def embedded(request: pytest.FixtureRequest) -> Bench:
    """Each database that is a file."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def anysql(postgres_url: str) -> AnyBench:
    """An empty Postgres database, taken for one of a dialect without a backend of its own."""
    return AnyBench(postgres_url)


KNOWN = ("embedded_duckdb", "embedded_sqlite", "postgres", MARIADB)


@pytest.fixture(params=[*KNOWN, pytest.param("anysql", marks=pytest.mark.long)])
def bench(request: pytest.FixtureRequest) -> Bench:
    """Each database."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def warehouse(bench: Bench) -> Iterator[Warehouse]:
    """The database opened for a run."""
    with bench.open() as opened:
        yield opened


def open_stage(warehouse: Warehouse, output: Output, stage: str) -> None:
    """Create a stage in a transaction of its own."""
    with warehouse.begin() as tx:
        tx.open_stage(output, stage)


def drop_stage(warehouse: Warehouse, output: Output, stage: str) -> None:
    """Drop a stage in a transaction of its own, and settle."""
    with warehouse.begin() as tx:
        tx.drop_stage(output, stage)
    warehouse.settle()


def frame_of(output: Output, **columns: Sequence[Any]) -> pl.DataFrame:
    """Rows of the output table's own columns; the missing ones are NULL and `id` counts."""
    n = max(len(values) for values in columns.values())
    columns = {"id": range(n)} | columns
    return pl.DataFrame(
        {
            column.name: pl.Series(columns.get(column.name, [None] * n), dtype=dtype_of(column.type))
            for column in output.columns
        }
    )


def predictions(n: int, label: str = "a") -> pl.DataFrame:
    """Rows of `OUTPUT`."""
    return frame_of(OUTPUT, id=range(n), label=[label] * n, score=[0.5] * n)


def stamp(run_id: str = "run", start: datetime = DAY) -> dict[str, Any]:
    """What a run adds to its rows."""
    return {
        "model_name": "model",
        "model_version": 3,
        "interval_start": start,
        "scored_at": datetime(2024, 1, 3, 1, 2, 3, 456_789, tzinfo=UTC),
        "run_id": run_id,
    }


def publish(
    warehouse: Warehouse, output: Output, rows: pl.DataFrame, run_id: str = "run", start: datetime = DAY
) -> None:
    """Prepare, stage, replace: the way of a run."""
    narrow = warehouse.prepare(output)
    open_stage(warehouse, output, "stage")
    with warehouse.begin() as tx:
        tx.stage(output, "stage", narrow, rows)
        tx.replace(output, "stage", stamp(run_id, start))
    drop_stage(warehouse, output, "stage")


def published(warehouse: Warehouse, output: Output) -> list[tuple[Any, ...]]:
    """The output table's rows by `id`, instants aware."""
    table = output.sql_table()
    with warehouse.begin() as tx:
        rows = tx.connection.execute(sa.select(table).order_by(table.c.id)).all()
    types = [column.type for column in output.all_columns]
    return [tuple(_aware(value, type_) for value, type_ in zip(row, types, strict=True)) for row in rows]


def _aware(value: Any, type_: TypeName) -> Any:
    # SQLite has no zones: its instants are UTC by convention.
    return value.replace(tzinfo=value.tzinfo or UTC) if type_ == "timestamp_tz" and value else value


def count(warehouse: Warehouse, table: str) -> int:
    """How many rows a table has."""
    with warehouse.begin() as tx:
        return tx.connection.execute(sa.select(sa.func.count()).select_from(sa.table(table))).scalar_one()


def bits(value: float | None) -> bytes | None:
    """A double as it is in memory, any NaN alike."""
    return value if value is None else b"NaN" if math.isnan(value) else struct.pack(">d", value)


class Undo(Exception):
    """Rolls a transaction back."""


def through(warehouse: Warehouse, output: Output, rows: pl.DataFrame) -> pl.DataFrame:
    """What the output table holds once the rows are published into it; the transaction is rolled back."""
    table = output.sql_table()
    found: list[tuple[Any, ...]] = []
    with suppress(Undo), warehouse.begin() as tx:
        tx.stage(output, "stage", {}, rows)
        tx.replace(output, "stage", stamp())
        selected = sa.select(*(table.c[column.name] for column in output.columns)).order_by(table.c.id)
        found = [tuple(row) for row in tx.connection.execute(selected)]
        raise Undo
    return pl.DataFrame(found, schema=rows.schema, orient="row")


def a_reject() -> pl.DataFrame:
    """One row of `batchscore_rejects`."""
    values = {"run_id": "run", "shard": 0, "chunk": 0, "row_key": "[1]", "stage": "predict", "reason": "x"}
    return pl.DataFrame({name: [value] for name, value in values.items()} | {"detail": [None]})


def live_ledger(warehouse: Warehouse) -> dict[str, dict[str, Any]]:
    """The columns of the ledger's tables as the database has them, without their order."""
    with warehouse.begin() as tx:
        return {table.name: tx.columns(table.name) for table in ledger.METADATA.sorted_tables}


def earlier_ledger(warehouse: Warehouse, has: Callable[[sa.Column[Any]], bool]) -> None:
    """Make the ledger's tables anew, with these columns alone."""
    with warehouse.begin() as tx:
        for table in ledger.METADATA.sorted_tables:
            tx.connection.execute(DropTable(table, if_exists=True))
            columns = [column._copy() for column in table.columns if has(column)]
            tx.connection.execute(CreateTable(sa.Table(table.name, sa.MetaData(), *columns, **TABLE_OPTIONS)))


def texts(n: int) -> pl.DataFrame:
    """Rows that no compression makes small."""
    return predictions(n).with_columns(
        label=pl.int_range(n).hash(1).cast(pl.String) + pl.int_range(n).hash(2).cast(pl.String)
    )


def stage_one(warehouse: Warehouse) -> None:
    """Stage a row of `OUTPUT`."""
    with warehouse.begin() as tx:
        tx.stage(OUTPUT, "stage", {}, predictions(1))


@pytest.fixture(params=[DuckDBBench, SQLiteBench])
def embedded_on_it(request: pytest.FixtureRequest, small_disk: Disk) -> Bench:
    """Each database that is a file, on the small disk."""
    name = "duckdb" if request.param is DuckDBBench else "sqlite"
    return request.param(f"{name}:///{small_disk.folder / 'warehouse'}")


class TestPrepare:
    """`create`, `prepare` and `open_stage`."""

    def test_columns(self, bench: Bench, warehouse: Warehouse) -> None:
        """A new output table has the output's columns, then the stamp, in that order, and holds every value."""
        narrow = warehouse.prepare(OUTPUT)

        with warehouse.begin() as tx:
            names = list(tx.connection.execute(sa.text("SELECT * FROM predictions")).keys())
        assert names == [
            "id", "label", "score", "model_name", "model_version", "interval_start", "scored_at", "run_id",
        ]  # fmt: skip
        assert narrow == {}

    def test_again(self, bench: Bench, warehouse: Warehouse) -> None:
        """Preparing what is there changes nothing: rows of the output, the stage and the ledger stay."""
        publish(warehouse, OUTPUT, predictions(3))
        warehouse.create(ledger.METADATA)
        open_stage(warehouse, OUTPUT, "stage")
        with warehouse.begin() as tx:
            tx.stage(OUTPUT, "stage", {}, predictions(2))
            tx.load(ledger.REJECTS, a_reject())

        for _ in range(2):
            warehouse.create(ledger.METADATA)
            assert warehouse.prepare(OUTPUT) == {}
            open_stage(warehouse, OUTPUT, "stage")

        counts = [count(warehouse, name) for name in ("predictions", "stage", "batchscore_rejects")]
        assert counts == [3, 2, 1]

    def test_an_earlier_ledger(self, bench: Bench, warehouse: Warehouse) -> None:
        """A ledger without any column that may be NULL gets them all, as in a new one; its rows stay, with NULL in them."""
        warehouse.create(ledger.METADATA)
        wanted = live_ledger(warehouse)
        earlier_ledger(warehouse, lambda column: not column.nullable)
        with warehouse.begin() as tx:
            tx.load(ledger.REJECTS, a_reject().drop("detail"))
        outdated = warehouse.outdated(ledger.METADATA)
        for _ in range(2):
            warehouse.complete(ledger.METADATA)
            with warehouse.begin() as tx:
                tx.load(ledger.REJECTS, a_reject().with_columns(detail=pl.lit("told"), row_values=pl.lit("{}")))

        assert {"detail", "row_values"} == set(outdated["batchscore_rejects"])
        assert {table.name for table in ledger.METADATA.sorted_tables if any(c.nullable for c in table.c)} == set(
            outdated
        )
        assert wanted == live_ledger(warehouse)
        assert {} == warehouse.outdated(ledger.METADATA)
        kept = bench.query("SELECT detail, row_values FROM batchscore_rejects")
        assert sorted(map(str, kept)) == ["('told', '{}')", "('told', '{}')", "(None, None)"]

    def test_an_earlier_ledger_that_cannot_be_mended(self, bench: Bench, warehouse: Warehouse) -> None:
        """A column that no row may be without is added to no table: the error names all, and does what it says."""
        gone = {ledger.DRIFT.c.told, ledger.DRIFT.c.importance}
        earlier_ledger(warehouse, lambda column: column not in gone)

        for attempt in (lambda: warehouse.outdated(ledger.METADATA), lambda: warehouse.complete(ledger.METADATA)):
            with pytest.raises(WarehouseError) as error:
                attempt()
            assert "batchscore_drift on " in str(error.value)
            assert "lacks importance, told. No row may be without told" in str(error.value)
        rename = re.search(r"ALTER TABLE \w+ RENAME TO \w+", str(error.value))
        assert rename
        with warehouse.begin() as tx:
            assert not {"told", "importance"} & tx.columns("batchscore_drift").keys()
            tx.connection.exec_driver_sql(rename[0])
        warehouse.create(ledger.METADATA)

        assert {} == warehouse.outdated(ledger.METADATA)
        assert count(warehouse, "batchscore_drift_before") == 0

    @pytest.mark.parametrize("bench", ["embedded_sqlite", "postgres", MARIADB], indirect=True)
    def test_an_earlier_ledger_at_once(self, bench: Bench) -> None:
        """Processes that start together on such a ledger all find it whole."""
        with bench.open() as warehouse:
            earlier_ledger(warehouse, lambda column: not column.nullable)
        start = threading.Barrier(4)

        def begin() -> None:
            with bench.open() as warehouse:
                start.wait()
                Patience(30).persist(lambda: warehouse.complete(ledger.METADATA))
                assert warehouse.outdated(ledger.METADATA) == {}

        with ThreadPoolExecutor(4) as pool:
            for each in [pool.submit(begin) for _ in range(4)]:
                each.result()

    @pytest.mark.parametrize("bench", ["embedded_sqlite", "postgres", MARIADB], indirect=True)
    def test_at_once(self, bench: Bench) -> None:
        """Processes that start together on an empty database all find or make the tables."""
        for table in ("one", "two", "three", "four"):
            output = Output(table, OUTPUT.columns)
            start = threading.Barrier(4)

            def begin(start: threading.Barrier = start) -> None:
                with bench.open() as warehouse:
                    start.wait()
                    Patience(30).persist(lambda: make(warehouse))

            def make(warehouse: Warehouse, output: Output = output) -> None:
                warehouse.create(ledger.METADATA)
                warehouse.prepare(output)
                open_stage(warehouse, output, f"stage_{output.table}")

            with ThreadPoolExecutor(4) as pool:
                for each in [pool.submit(begin) for _ in range(4)]:
                    each.result()

        with bench.open() as warehouse:
            assert [count(warehouse, name) for name in ("one", "stage_four", "batchscore_runs")] == [0, 0, 0]

    def test_check(self, bench: Bench, warehouse: Warehouse) -> None:
        """Checking says whether the table is there, and makes none."""
        before = warehouse.check(OUTPUT), warehouse.check(OUTPUT)
        warehouse.prepare(OUTPUT)

        assert (*before, warehouse.check(OUTPUT)) == (False, False, True)

    def test_has_table(self, bench: Bench, warehouse: Warehouse) -> None:
        """A view counts as a table, another name does not."""
        bench.run("CREATE VIEW seen AS SELECT 1 AS one")

        with warehouse.begin() as tx:
            assert (tx.has_table("seen"), tx.has_table("unseen")) == (True, False)

    @pytest.mark.parametrize("bench", ["embedded_duckdb", "postgres"], indirect=True)
    def test_schema(self, bench: Bench, warehouse: Warehouse) -> None:
        """A table with a schema is made and replaced there, and one of the same name elsewhere is left alone."""
        bench.run("CREATE SCHEMA analytics", "CREATE TABLE predictions (id integer)")
        output = Output("analytics.predictions", OUTPUT.columns)

        publish(warehouse, output, predictions(2), "old")
        publish(warehouse, output, predictions(3), "new")

        assert [row[0] for row in published(warehouse, output)] == [0, 1, 2]
        assert bench.query("SELECT count(*) FROM predictions") == [(0,)]
        with warehouse.begin() as tx:
            assert (tx.has_table("analytics.predictions"), tx.has_table("analytics.none")) == (True, False)

    def test_full_name(self, bench: Bench, warehouse: Warehouse) -> None:
        """A table has one full name, its own and nobody else's, with and without its schema, there or not."""
        for there in (False, True):
            with warehouse.begin() as tx:
                names = {name: tx.full_name(name) for name in ("predictions", "other.predictions", "Predictions")}
                again = {full: tx.full_name(full) for full in names.values()}
            assert again == {full: full for full in names.values()}
            assert names["other.predictions"] == "other.predictions"
            assert names["predictions"] != names["other.predictions"]
            assert (names["Predictions"] == names["predictions"]) == bench.folds_case
            if not there:
                warehouse.prepare(OUTPUT)
        with warehouse.begin() as tx:
            assert tx.has_table(names["predictions"])

    @pytest.mark.parametrize("bench", ["embedded_duckdb", "postgres"], indirect=True)
    def test_stage_in_schema(self, bench: Bench, warehouse: Warehouse) -> None:
        """The stage is made in the output table's schema, where the run may create tables."""
        bench.run("CREATE SCHEMA analytics")

        open_stage(warehouse, Output("analytics.predictions", OUTPUT.columns), "stage")

        with warehouse.begin() as tx:
            assert (tx.has_table("analytics.stage"), tx.has_table("stage")) == (True, False)

    def test_no_such_schema(self, bench: Bench, warehouse: Warehouse) -> None:
        """A schema that is not there is refused by name, by a look too."""
        for look in (warehouse.prepare, warehouse.check):
            with pytest.raises(
                WarehouseError, match=r"(there is no schema nowhere\. Create it|unknown database 'nowhere')"
            ):
                look(Output("nowhere.predictions", OUTPUT.columns))

    @pytest.mark.parametrize("bench", ["embedded_duckdb", "embedded_sqlite"], indirect=True)
    def test_schema_in_any_case(self, bench: Bench, warehouse: Warehouse) -> None:
        """Where names are folded, a schema is found by any."""
        output = Output("MAIN.predictions", OUTPUT.columns)

        assert not warehouse.check(output)
        assert warehouse.prepare(output) == {}

    def test_longest_name(self, bench: Bench, warehouse: Warehouse) -> None:
        """A table name as long as a job may give is taken."""
        output = Output("t" * 63, OUTPUT.columns)

        publish(warehouse, output, predictions(1))

        assert len(published(warehouse, output)) == 1

    def test_case(self, bench: Bench, warehouse: Warehouse) -> None:
        """A name that differs from a table's in case is that table or another one, as the database has it."""
        warehouse.prepare(OUTPUT)
        upper = Output("Predictions", OUTPUT.columns)

        assert warehouse.check(upper) == bench.folds_case
        publish(warehouse, upper, predictions(2))
        assert count(warehouse, "predictions") == (2 if bench.folds_case else 0)


class TestValues:
    """What goes in comes out."""

    @pytest.mark.parametrize("column", [column.name for column in WIDE.columns if column.name in EDGES])
    def test_edges(self, bench: Bench, warehouse: Warehouse, column: str) -> None:
        """The extremes of every type come back as they were, and NULL is no other value."""
        values = [value for value in EDGES[column] if bench.infinite or value not in (math.inf, -math.inf)]

        publish(warehouse, WIDE, frame_of(WIDE, **{column: values}))

        position = [each.name for each in WIDE.columns].index(column)
        assert [row[position] for row in published(warehouse, WIDE)] == values

    @pytest.mark.parametrize("column", ["yes", "n", "x", "day", "local", "instant"])
    def test_edges_of_one_length(self, bench: Bench, warehouse: Warehouse, column: str) -> None:
        """The same where every value of a row is as long as those of the others: without text, and without NULL."""
        values = [v for v in EDGES[column] if v is not None and (bench.infinite or v not in (math.inf, -math.inf))]
        output = Output("fixed", tuple(each for each in WIDE.columns if each.name in ("id", column)))

        publish(warehouse, output, frame_of(output, **{column: values}))

        assert [row[:2] for row in published(warehouse, output)] == list(enumerate(values))

    @pytest.mark.parametrize("live", ["DOUBLE PRECISION", "NUMERIC(20, 2)", "INTEGER", "TEXT"])
    def test_no_bits_of_another_type(self, postgres: PostgresBench, live: str) -> None:
        """Where the live column is of another type, it has the values all the same, and never their bits."""
        table = sa.Table("other", sa.MetaData(), sa.Column("id", sa.BigInteger))
        with postgres.open() as warehouse, warehouse.begin() as tx:
            tx.connection.execute(sa.text(f"CREATE TABLE other (id {live})"))

            tx.load(table, pl.DataFrame({"id": [1, -2, 3_000]}))

        assert postgres.query("SELECT CAST(id AS BIGINT) FROM other ORDER BY 1") == [(-2,), (1,), (3_000,)]

    @pytest.mark.long
    def test_infinity(self, mariadb: MariaDBBench) -> None:
        """Where there are no infinities, the column is refused by its name, and nothing is written."""
        with mariadb.open() as warehouse:
            with pytest.raises(
                OutputMismatch, match="column score holds an infinity, which MySQL and MariaDB have not"
            ):
                publish(warehouse, OUTPUT, frame_of(OUTPUT, score=[1.0, -math.inf]))
            assert (count(warehouse, "stage"), count(warehouse, "predictions")) == (0, 0)

    def test_types(self, bench: Bench, warehouse: Warehouse) -> None:
        """A value keeps its type: True is no 1, 1.0 no 1, and an instant has a zone where the database has zones."""
        row = (0, True, 1, 1.0, "1", date(2024, 1, 2), datetime(2024, 1, 2, 3), DAY)

        publish(warehouse, WIDE, pl.DataFrame([row], schema=pl.Schema(frame_of(WIDE, n=[1]).schema), orient="row"))

        found = published(warehouse, WIDE)[0][: len(row)]
        assert [(type(value), value) for value in found] == [(type(value), value) for value in row]

    def test_stamp(self, bench: Bench, warehouse: Warehouse) -> None:
        """Every row carries the model, its version, the interval's start, one instant of scoring, and the run."""
        publish(warehouse, OUTPUT, predictions(2))

        assert [row[3:] for row in published(warehouse, OUTPUT)] == [tuple(stamp().values())] * 2

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=60))
    @example(values=[-0.0, 0.0])
    def test_doubles(self, bench: Bench, warehouse: Warehouse, values: list[float]) -> None:
        """Every double comes back bit for bit; SQLite and MariaDB keep no sign of zero, and MariaDB no infinity."""
        warehouse.prepare(OUTPUT)
        open_stage(warehouse, OUTPUT, "stage")
        if not bench.negative_zero:
            values = [value or 0.0 for value in values]
        if not bench.infinite:
            values = [value for value in values if math.isfinite(value)]

        found = through(warehouse, OUTPUT, frame_of(OUTPUT, score=values))

        assert [bits(value) for value in found["score"]] == [bits(value) for value in values]

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        values=st.lists(
            st.none()
            | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
            | st.text(st.sampled_from("\\\"',;\r\n\t .N0%{}"), max_size=12),
            min_size=1,
            max_size=60,
        )
    )
    def test_text(self, bench: Bench, warehouse: Warehouse, values: list[str | None]) -> None:
        """Every text comes back character for character, and neither "" nor any other is NULL."""
        warehouse.prepare(OUTPUT)
        open_stage(warehouse, OUTPUT, "stage")

        found = through(warehouse, OUTPUT, frame_of(OUTPUT, label=values))

        assert found["label"].to_list() == values

    def test_nan(self, bench: Bench, warehouse: Warehouse) -> None:
        """NaN stays NaN and apart from NULL; where the database would make it NULL, nothing is written."""
        rows = frame_of(OUTPUT, score=[1.0, math.nan, None])
        if bench.nan:
            publish(warehouse, OUTPUT, rows)
            assert [bits(row[2]) for row in published(warehouse, OUTPUT)] == [bits(1.0), b"NaN", None]
            return

        with pytest.raises(OutputMismatch, match="column score holds NaN"):
            publish(warehouse, OUTPUT, rows)
        assert (count(warehouse, "stage"), count(warehouse, "predictions")) == (0, 0)

    @pytest.mark.parametrize("bench", KNOWN, indirect=True)
    def test_nul(self, bench: Bench, warehouse: Warehouse) -> None:
        """A NUL inside a text comes back, or is refused by its column and row, and nothing is written."""
        rows = frame_of(OUTPUT, id=[17, 18, 19], label=["fine", None, "a\0b"])
        if bench.nul:
            publish(warehouse, OUTPUT, rows)
            assert [row[1] for row in published(warehouse, OUTPUT)] == ["fine", None, "a\0b"]
            return

        with pytest.raises(OutputMismatch, match=r"column label holds a NUL .* id = 19: 'a\\x00b'\. Take it out"):
            publish(warehouse, OUTPUT, rows)
        assert (count(warehouse, "stage"), count(warehouse, "predictions")) == (0, 0)

    @pytest.mark.parametrize("name", ["order", "Mixed Case", 'quo"te', "it's", "100%", "%s", "a:b", "$1", "(x)", "é"])
    def test_names(self, bench: Bench, warehouse: Warehouse, name: str) -> None:
        """A column may have any name that a query can give it."""
        output = Output("named", (OutputColumn("id", "integer"), OutputColumn(name, "string")))

        publish(warehouse, output, frame_of(output, **{name: ["a", "b"]}), "old")
        publish(warehouse, output, frame_of(output, **{name: ["c"]}), "new")

        assert [row[:2] for row in published(warehouse, output)] == [(0, "c")]

    def test_many_rows(self, bench: Bench, warehouse: Warehouse) -> None:
        """A chunk larger than any batch of a driver arrives whole."""
        n = 25_001
        publish(warehouse, OUTPUT, predictions(n))

        assert bench.query("SELECT count(*), count(DISTINCT id), min(id), max(id) FROM predictions") == [
            (n, n, 0, n - 1)
        ]

    def test_no_rows(self, bench: Bench, warehouse: Warehouse) -> None:
        """An interval without rows is published as none."""
        publish(warehouse, OUTPUT, predictions(3), "old")
        publish(warehouse, OUTPUT, predictions(3).clear(), "new")

        assert published(warehouse, OUTPUT) == []

    def test_sqlite_text(self, embedded_sqlite: SQLiteBench) -> None:
        """SQLite holds dates and instants as text in UTC, in the form of its own date functions."""
        row = (0, None, None, None, None, date(2024, 1, 2), datetime(2024, 1, 2, 3, 4, 5), DAY)
        schema = frame_of(WIDE, n=[1]).schema
        with embedded_sqlite.open() as warehouse:
            publish(warehouse, WIDE, pl.DataFrame([row], schema=schema, orient="row"))

        assert embedded_sqlite.query("SELECT day, local, instant, interval_start FROM wide") == [
            ("2024-01-02", "2024-01-02 03:04:05.000000", "2024-01-02 00:00:00.000000", "2024-01-02 00:00:00.000000")
        ]


class TestTransactions:
    """Whole or not at all."""

    def test_stage_is_apart(self, bench: Bench, warehouse: Warehouse) -> None:
        """Staged rows are counted in the stage and are not in the output table."""
        warehouse.prepare(OUTPUT)
        open_stage(warehouse, OUTPUT, "stage")

        for rows in (2, 3):
            with warehouse.begin() as tx:
                tx.stage(OUTPUT, "stage", {}, predictions(rows))

        with warehouse.begin() as tx:
            assert tx.staged(OUTPUT, "stage") == 5
        assert published(warehouse, OUTPUT) == []

    def test_rollback(self, bench: Bench, warehouse: Warehouse) -> None:
        """A transaction that raises leaves no row, no record and no table, and the exception is the caller's own."""
        publish(warehouse, OUTPUT, predictions(2), "old")
        warehouse.create(ledger.METADATA)
        open_stage(warehouse, OUTPUT, "stage")

        def work() -> None:
            with warehouse.begin() as tx:
                tx.stage(OUTPUT, "stage", {}, predictions(3))
                tx.load(ledger.REJECTS, a_reject())
                tx.replace(OUTPUT, "stage", stamp("new"))
                if bench.rolls_back_tables:
                    tx.connection.exec_driver_sql("CREATE TABLE left_over (id integer)")
                raise Undo

        with pytest.raises(Undo):
            work()

        assert {row[-1] for row in published(warehouse, OUTPUT)} == {"old"}
        assert (count(warehouse, "stage"), count(warehouse, "batchscore_rejects")) == (0, 0)
        with warehouse.begin() as tx:
            assert not tx.has_table("left_over")

    def test_many_connections(self, bench: Bench, warehouse: Warehouse) -> None:
        """As many workers as a command may have find a connection each, and none waits for another's."""
        with ExitStack() as opened:
            for _ in range(64):
                opened.enter_context(warehouse.backend.engine.connect())

    def test_failed_statement(self, bench: Bench, warehouse: Warehouse) -> None:
        """A load that the database refuses is told in the database's words, and takes what was before it along."""
        warehouse.create(ledger.METADATA)

        def work() -> None:
            with warehouse.begin() as tx:
                tx.load(ledger.REJECTS, a_reject())
                tx.stage(OUTPUT, "no_such_stage", {}, predictions(1))

        with pytest.raises(WarehouseError, match="no_such_stage"):
            work()

        assert count(warehouse, "batchscore_rejects") == 0
        publish(warehouse, OUTPUT, predictions(1))
        assert count(warehouse, "predictions") == 1

    def test_replace(self, bench: Bench, warehouse: Warehouse) -> None:
        """Exactly one interval is replaced: its neighbours, an instant away or a day, stay."""
        near, far = DAY - timedelta(microseconds=1), DAY + timedelta(days=1)
        for start, name in ((near, "near"), (DAY, "old"), (far, "far")):
            publish(warehouse, OUTPUT, predictions(2), name, start)

        publish(warehouse, OUTPUT, predictions(3), "new")

        found = bench.query("SELECT run_id, count(*) FROM predictions GROUP BY run_id ORDER BY run_id")
        assert found == [("far", 2), ("near", 2), ("new", 3)]

    def test_drop_stage(self, bench: Bench, warehouse: Warehouse) -> None:
        """A stage goes with its rows, and dropping one that is not there is nothing."""
        open_stage(warehouse, OUTPUT, "stage")
        with warehouse.begin() as tx:
            tx.stage(OUTPUT, "stage", {}, predictions(2))

        drop_stage(warehouse, OUTPUT, "stage")
        drop_stage(warehouse, OUTPUT, "stage")

        open_stage(warehouse, OUTPUT, "stage")
        assert count(warehouse, "stage") == 0

    def test_reader(self, bench: Bench, warehouse: Warehouse) -> None:
        """A reader waits for no publish, and at every instant sees one run's rows, all of them, and the neighbour's."""
        publish(warehouse, OUTPUT, predictions(7), "beside", DAY + timedelta(days=1))
        publish(warehouse, OUTPUT, predictions(1000), "0")
        seen: set[tuple[tuple[str, int], ...]] = set()
        ready, done = threading.Event(), threading.Event()

        def poll() -> None:
            with bench.reader() as query:
                while not done.is_set():
                    seen.add(tuple(query("SELECT run_id, count(*) FROM predictions GROUP BY run_id ORDER BY run_id")))
                    ready.set()

        with ThreadPoolExecutor(1) as pool:
            polling = pool.submit(poll)
            try:
                ready.wait(10)
                for number in range(1, 26):
                    publish(warehouse, OUTPUT, predictions(1000 + number), str(number))
            finally:
                done.set()
            polling.result()

        assert seen <= {((str(number), 1000 + number), ("beside", 7)) for number in range(26)}
        assert len(seen) > 2

    def test_open_reader(self, bench: Bench, warehouse: Warehouse) -> None:
        """A reader in the middle of its transaction holds no publish up, nor the clearing away after it."""
        publish(warehouse, OUTPUT, predictions(1), "old")
        with bench.reader() as query:
            query("BEGIN")
            query("SELECT run_id FROM predictions")

            publish(warehouse, OUTPUT, predictions(1), "new")

        assert [row[-1] for row in published(warehouse, OUTPUT)] == ["new"]

    def test_lost_connection(self, postgres: PostgresBench) -> None:
        """A connection that the server ends is transient: nothing is written, and the next transaction has another."""
        with postgres.open() as warehouse:
            warehouse.prepare(OUTPUT)
            open_stage(warehouse, OUTPUT, "stage")

            def work() -> None:
                with warehouse.begin() as tx:
                    tx.stage(OUTPUT, "stage", {}, predictions(2))
                    pid = tx.connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
                    postgres.query(f"SELECT pg_terminate_backend({pid})")
                    tx.stage(OUTPUT, "stage", {}, predictions(2))

            with pytest.raises(TransientError):
                work()
            assert count(warehouse, "stage") == 0


class TestLiveTable:
    """An output table that somebody made before."""

    def test_as_declared(self, bench: Bench, warehouse: Warehouse) -> None:
        """A table with the types that a user would choose takes everything without a cast."""
        bench.create(WIDE)

        assert warehouse.prepare(WIDE) == {}
        publish(warehouse, WIDE, frame_of(WIDE, text=["a"], instant=[DAY]))
        assert published(warehouse, WIDE)[0][:8] == (0, None, None, None, "a", None, None, DAY)

    def test_missing_column(self, bench: Bench, warehouse: Warehouse) -> None:
        """A column that the table lacks is named, with every other fault."""
        bench.run(f"CREATE TABLE predictions (id {bench.declared['integer']}, label {bench.declared['float']})")

        for look in (warehouse.prepare, warehouse.check):
            with pytest.raises(OutputMismatch) as caught:
                look(OUTPUT)
            assert "score: want float, got no such column" in str(caught.value)
            assert "run_id: want string, got no such column" in str(caught.value)
            assert "label: want string (TEXT), got " in str(caught.value)
            assert "  id:" not in str(caught.value)

    def test_refused_types(self, bench: Bench, warehouse: Warehouse) -> None:
        """A column whose type would change some value is refused, and no other with it."""
        for number, (type_, declared) in enumerate(bench.refused):
            output = Output(f"refused_{number}", (OutputColumn("id", "integer"), OutputColumn("value", type_)))
            bench.create(output, value=declared)

            with pytest.raises(OutputMismatch, match=f"value: want {type_} .*, got") as caught:
                warehouse.prepare(output)
            assert str(caught.value).count("want") == 1, declared

    def test_order(self, bench: Bench, warehouse: Warehouse) -> None:
        """The order of the table's columns does not matter."""
        columns = [f"{column.name} {bench.declared[column.type]}" for column in reversed(OUTPUT.all_columns)]
        bench.run(f"CREATE TABLE predictions ({', '.join(columns)})")

        publish(warehouse, OUTPUT, predictions(1, "a"))

        assert published(warehouse, OUTPUT) == [(0, "a", 0.5, *stamp().values())]

    def test_narrow_integers(self, bench: Bench, warehouse: Warehouse) -> None:
        """A narrower column takes the integers that fit it; one that does not is refused, and nothing is staged."""
        for number, (declared, (below, above)) in enumerate(bench.narrow.items()):
            output = Output(f"narrow_{number}", (OutputColumn("id", "integer"), OutputColumn("value", "integer")))
            bench.create(output, value=declared)
            fitting = [below + 1, above - 1, 0, None]
            narrow = warehouse.prepare(output)
            open_stage(warehouse, output, "stage")

            for lost in (below, above, 2**63 - 1):
                with pytest.raises(OutputMismatch, match=rf"column value .* {lost} exactly"), warehouse.begin() as tx:
                    tx.stage(output, "stage", narrow, frame_of(output, value=[1, lost]))
            assert count(warehouse, "stage") == 0

            publish(warehouse, output, frame_of(output, value=fitting))
            assert [row[1] for row in published(warehouse, output)] == fitting, declared

    def test_labels_in_a_double(self, bench: Bench, warehouse: Warehouse) -> None:
        """Integer labels in a column of doubles are the same numbers, seen by any reader; no bits pass for others."""
        output = Output("labels", (OutputColumn("id", "integer"), OutputColumn("value", "integer")))
        bench.create(output, value=bench.declared["float"])
        values = [0, 1, -1, 2, 1_000_000_007, 2**53, -(2**53), 2**60]

        publish(warehouse, output, frame_of(output, value=values))

        found = [value for (value,) in bench.query("SELECT value FROM labels ORDER BY id")]
        assert [bits(value) for value in found] == [bits(float(value)) for value in values]

    def test_narrow_version(self, bench: Bench, warehouse: Warehouse) -> None:
        """The stamp's integer may be narrow too."""
        bench.create(OUTPUT, model_version=next(iter(bench.narrow)))

        publish(warehouse, OUTPUT, predictions(1))

        assert published(warehouse, OUTPUT)[0][4] == 3

    def test_foreign_required(self, bench: Bench, warehouse: Warehouse) -> None:
        """A column of somebody else's that must be filled is refused."""
        bench.create(OUTPUT, ["region VARCHAR(8) NOT NULL"])

        with pytest.raises(OutputMismatch, match="region: is NOT NULL without a default"):
            warehouse.prepare(OUTPUT)

    def test_foreign(self, bench: Bench, warehouse: Warehouse) -> None:
        """Columns of somebody else's that may be NULL or have a default are left to themselves."""
        bench.create(OUTPUT, ["note VARCHAR(8)", "region VARCHAR(8) DEFAULT 'eu' NOT NULL"])

        publish(warehouse, OUTPUT, predictions(1))

        assert bench.query("SELECT id, note, region FROM predictions") == [(0, None, "eu")]

    def test_short_text(self, bench: Bench, warehouse: Warehouse) -> None:
        """A text too long for its column is refused when it is staged, by blanks too, or the database keeps it whole."""
        bench.create(OUTPUT, label="VARCHAR(3)")
        narrow = warehouse.prepare(OUTPUT)
        for text in ("abc", "éàü", "", " "):
            publish(warehouse, OUTPUT, predictions(1, text), "old")
            assert published(warehouse, OUTPUT)[0][1] == text
        for text in ("abcd", "abc ", "éàüé"):
            if not bench.measures_text:
                publish(warehouse, OUTPUT, predictions(1, text), "new")
                assert published(warehouse, OUTPUT)[0][1] == text
                continue
            open_stage(warehouse, OUTPUT, "stage")
            refused = rf"(?i)predictions: column label is (character varying|varchar)\(3\) .* hold '{text}' exactly"
            with pytest.raises(OutputMismatch, match=refused), warehouse.begin() as tx:
                tx.stage(OUTPUT, "stage", narrow, frame_of(OUTPUT, label=[None, "abc", text]))
            assert count(warehouse, "stage") == 0

    def test_short_run_id(self, bench: Bench, warehouse: Warehouse) -> None:
        """A column for run ids that is too short for them is refused at once, or the database measures no text."""
        bench.create(OUTPUT, run_id="VARCHAR(32)")

        if bench.measures_text:
            with pytest.raises(OutputMismatch, match="run_id: want room for 36 characters, got "):
                warehouse.prepare(OUTPUT)
        else:
            assert warehouse.prepare(OUTPUT) == {}

    @pytest.mark.long
    def test_text_measured_in_bytes(self, mariadb: MariaDBBench) -> None:
        """A text of more bytes than TEXT has is refused when it is staged, and quoted by its beginning."""
        mariadb.create(OUTPUT, label="text CHARACTER SET utf8mb4")
        with mariadb.open() as warehouse:
            narrow = warehouse.prepare(OUTPUT)
            publish(warehouse, OUTPUT, predictions(1, "é" * 32_767))
            open_stage(warehouse, OUTPUT, "stage")
            refused = r"column label is (?i:text).* cannot hold 'é{60}'… \(32,768 characters\) exactly"
            with pytest.raises(OutputMismatch, match=refused), warehouse.begin() as tx:
                tx.stage(OUTPUT, "stage", narrow, predictions(1, "é" * 32_768))

    def test_required_of_ours(self, bench: Bench, warehouse: Warehouse) -> None:
        """A NULL for a column that must not be NULL is refused and leaves the interval as it was."""
        bench.create(OUTPUT, label=f"{bench.declared['string']} NOT NULL")
        publish(warehouse, OUTPUT, predictions(1), "old")

        with pytest.raises(WarehouseError, match="label"):
            publish(warehouse, OUTPUT, frame_of(OUTPUT, label=[None]), "new")
        assert [row[-1] for row in published(warehouse, OUTPUT)] == ["old"]


@pytest.mark.parametrize("bench", ["postgres"], indirect=True)
def test_a_partitioned_table_is_as_good_as_one(bench: Bench, warehouse: Warehouse) -> None:
    """An output table whose owner has partitioned it by interval takes an interval, and another in its place."""
    bench.create(Output("beneath", OUTPUT.columns))
    bench.run(
        "CREATE TABLE predictions (LIKE beneath) PARTITION BY RANGE (interval_start)",
        "CREATE TABLE before_2025 PARTITION OF predictions FOR VALUES FROM (MINVALUE) TO ('2025-01-01')",
        "CREATE TABLE since_2025 PARTITION OF predictions FOR VALUES FROM ('2025-01-01') TO (MAXVALUE)",
    )

    publish(warehouse, OUTPUT, predictions(2), "old")
    publish(warehouse, OUTPUT, predictions(3), "new")

    assert warehouse.check(OUTPUT)
    assert count(warehouse, "predictions") == 3


class TestView:
    """A view in the place of the output table."""

    @pytest.mark.parametrize("bench", KNOWN, indirect=True)
    def test_fixed(self, bench: Bench, warehouse: Warehouse) -> None:
        """A view that takes no rows is refused by name before anything is written, by a look too."""
        bench.create(Output("beneath", OUTPUT.columns))
        bench.run("CREATE VIEW predictions AS SELECT DISTINCT * FROM beneath")

        for look in (warehouse.prepare, warehouse.check):
            with pytest.raises(OutputMismatch, match=r"^predictions is a view .* Name a table in \[output\] table"):
                look(OUTPUT)

    @pytest.mark.parametrize("bench", ["postgres", MARIADB], indirect=True)
    def test_updatable(self, bench: Bench, warehouse: Warehouse) -> None:
        """A view that passes rows on to its table is as good as the table."""
        bench.create(Output("beneath", OUTPUT.columns))
        bench.run("CREATE VIEW predictions AS SELECT * FROM beneath")

        publish(warehouse, OUTPUT, predictions(2), "old")
        publish(warehouse, OUTPUT, predictions(3), "new")

        assert warehouse.check(OUTPUT)
        assert count(warehouse, "beneath") == 3

    def test_sqlite_triggers(self, embedded_sqlite: SQLiteBench) -> None:
        """In SQLite a view takes rows when it has triggers for both, and not with one of them."""
        embedded_sqlite.create(Output("beneath", OUTPUT.columns))
        names = ", ".join(column.name for column in OUTPUT.all_columns)
        values = ", ".join(f"NEW.{column.name}" for column in OUTPUT.all_columns)
        embedded_sqlite.run(
            "CREATE VIEW predictions AS SELECT * FROM beneath",
            "CREATE TRIGGER gone INSTEAD OF DELETE ON predictions BEGIN DELETE FROM beneath WHERE id = OLD.id; END",
        )
        with embedded_sqlite.open() as warehouse:
            with pytest.raises(OutputMismatch, match="is a view"):
                warehouse.prepare(OUTPUT)
            embedded_sqlite.run(
                "CREATE TRIGGER added INSTEAD OF INSERT ON predictions "
                f"BEGIN INSERT INTO beneath ({names}) VALUES ({values}); END"
            )
            publish(warehouse, OUTPUT, predictions(2), "old")
            publish(warehouse, OUTPUT, predictions(3), "new")

            assert count(warehouse, "beneath") == 3


class TestReadOnly:
    """`open_warehouse(read_only=True)`."""

    def test_reads(self, bench: Bench, warehouse: Warehouse) -> None:
        """What is there is seen."""
        publish(warehouse, OUTPUT, predictions(2))
        warehouse.close()

        with bench.open(read_only=True) as looking:
            assert looking.check(OUTPUT)
            assert len(published(looking, OUTPUT)) == 2

    @pytest.mark.parametrize("bench", KNOWN, indirect=True)
    def test_writes(self, bench: Bench, warehouse: Warehouse) -> None:
        """Every write is refused, rows and tables."""
        publish(warehouse, OUTPUT, predictions(2))
        open_stage(warehouse, OUTPUT, "stage")
        warehouse.close()

        with bench.open(read_only=True) as looking:
            for write in (
                lambda: open_stage(looking, OUTPUT, "another"),
                lambda: drop_stage(looking, OUTPUT, "stage"),
                lambda: looking.create(ledger.METADATA),
                lambda: stage_one(looking),
            ):
                with pytest.raises(WarehouseError, match=r"(?i)read-?\s?only"):
                    write()
            assert [count(looking, name) for name in ("predictions", "stage")] == [2, 0]

    def test_missing_file(self, embedded: Bench) -> None:
        """A file that is not there reads as a warehouse without tables; neither it nor its folder is made."""
        path = Path(embedded.database.path).parent / "none" / "yet"
        with type(embedded)(embedded.database.url.set(database=str(path))).open(read_only=True) as looking:
            with looking.begin() as tx:
                assert not tx.has_table(ledger.RUNS.name)
            assert not looking.check(OUTPUT)
            assert looking.missing_privileges("predictions") == []

        assert not path.parent.exists()

    def test_leaves_no_file(self, embedded: Bench) -> None:
        """Looking leaves no file beside the database's."""
        path = Path(embedded.database.path)
        with embedded.open() as warehouse:
            publish(warehouse, OUTPUT, predictions(1))
        before = sorted(path.parent.iterdir())

        with embedded.open(read_only=True) as looking:
            published(looking, OUTPUT)

        assert sorted(path.parent.iterdir()) == before == [path]


class TestRefusals:
    """A database that does not take part."""

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("mysql://host/db", "the Python module MySQLdb, is not installed"),
            ("postgre://host/db", r"knows no postgre\. Write postgresql://\."),
            ("gupta://host/db", r"knows no gupta\. If it is right, install"),
        ],
    )
    def test_dialect(self, url: str, words: str) -> None:
        """A dialect or a driver that is not there is refused by its name, with what was meant or is missing."""
        with pytest.raises(UsageError, match=words):
            open_warehouse(Database.at(url))

    @pytest.mark.long
    def test_autocommit(self, mariadb: MariaDBBench) -> None:
        """A connection that takes nothing back is refused at the start, and nothing is left of the attempt."""
        careless = MariaDBBench(mariadb.database.url.update_query_dict({"autocommit": "true"}))
        with careless.open() as warehouse, pytest.raises(WarehouseError, match="Take autocommit out of its URL"):
            warehouse.create(ledger.METADATA)

        assert mariadb.query("SHOW TABLES") == []

    @pytest.mark.long
    def test_table_without_transactions(self, mariadb: MariaDBBench) -> None:
        """An output table whose rows a rollback would not take back is refused, with the statement that mends it."""
        mariadb.create(OUTPUT)
        mariadb.run("ALTER TABLE predictions ENGINE = MyISAM")
        with mariadb.open() as warehouse:
            with pytest.raises(WarehouseError, match=r"by MyISAM, .* Say ALTER TABLE predictions ENGINE = InnoDB\."):
                warehouse.prepare(OUTPUT)
            mariadb.run("ALTER TABLE predictions ENGINE = InnoDB")
            assert warehouse.prepare(OUTPUT) == {}

    @pytest.mark.parametrize("name", ["with space", "100%", "p%41", "a#b", "naïve", "it's"])
    def test_path(self, embedded: Bench, tmp_path: Path, name: str) -> None:
        """A warehouse is made at its path, whatever the folder is called, and its folder with it."""
        path = tmp_path / "new" / name / "file"
        bench = type(embedded)(embedded.database.url.set(database=str(path)))

        for read_only in (False, True):
            with bench.open(read_only=read_only) as warehouse:
                warehouse.prepare(OUTPUT)

        assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]

    def test_question_mark(self, tmp_path: Path) -> None:
        """SQLite takes a path with a ? too; to DuckDB itself that ends a path."""
        path = tmp_path / "a?b" / "file"
        with SQLiteBench(sa.URL.create("sqlite", database=str(path))).open() as warehouse:
            warehouse.prepare(OUTPUT)

        assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]

    def test_under_a_file(self, embedded: Bench, tmp_path: Path) -> None:
        """A path that leads through a file cannot be a warehouse, and `missing_privileges` knows."""
        (tmp_path / "file").write_text("")
        bench = type(embedded)(embedded.database.url.set(database=str(tmp_path / "file" / "folder" / "warehouse")))

        with pytest.raises(WarehouseError, match=r"folder of .* cannot be made"):
            bench.open()
        with bench.open(read_only=True) as looking:
            assert looking.missing_privileges("predictions") == [f"write permission on {tmp_path / 'file'}"]

    @pytest.mark.parametrize("made", [lambda path: path.write_bytes(b"not a database" * 400), Path.mkdir])
    def test_no_database(self, embedded: Bench, made: Callable[[Path], object]) -> None:
        """A file that is no database, or a folder, is refused, opened for writing and for reading."""
        made(Path(embedded.database.path))

        for read_only in (False, True):
            with pytest.raises(WarehouseError), embedded.open(read_only=read_only) as warehouse:
                warehouse.check(OUTPUT)

    def test_settled_duckdb(self, embedded_duckdb: DuckDBBench) -> None:
        """Settling folds DuckDB's log into the file, so that nothing has to be replayed after a crash."""
        log = Path(f"{embedded_duckdb.database.path}.wal")
        with embedded_duckdb.open() as warehouse:
            with warehouse.begin() as tx:
                tx.connection.execute(sa.text("CREATE TABLE t (id integer)"))
            assert log.stat().st_size > 0

            warehouse.settle()

            assert not log.exists() or log.stat().st_size == 0

    def test_locked_duckdb(self, embedded_duckdb: DuckDBBench) -> None:
        """A DuckDB file that another process has open is busy, which passes, and the message names the lock."""
        embedded_duckdb.run("CREATE TABLE t (id integer)")
        holder = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
        command = [sys.executable, "-c", holder, embedded_duckdb.database.path]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"open\n"
            for read_only in (False, True):
                with pytest.raises(TransientError, match=f"lock is held in .*PID {other.pid}"):
                    embedded_duckdb.open(read_only=read_only)
            other.communicate()

        with embedded_duckdb.open() as warehouse:
            assert count(warehouse, "t") == 0

    def test_locked_sqlite(self, embedded_sqlite: SQLiteBench) -> None:
        """An SQLite file that another writer keeps is busy, which passes; readers need not wait for it."""
        with embedded_sqlite.open() as warehouse, closing(sqlite3.connect(embedded_sqlite.database.path)) as other:
            publish(warehouse, OUTPUT, predictions(1))
            with warehouse.begin() as tx:
                tx.connection.exec_driver_sql("PRAGMA busy_timeout = 50")
            other.execute("BEGIN IMMEDIATE")

            with pytest.raises(TransientError, match="database is locked"):
                warehouse.prepare(OUTPUT)
            with embedded_sqlite.open(read_only=True) as looking:
                assert len(published(looking, OUTPUT)) == 1

            other.execute("ROLLBACK")
            warehouse.prepare(OUTPUT)

    def test_full_disk(self, small_disk: Disk, embedded_on_it: Bench) -> None:
        """A full disk refuses a chunk and a publish; what was published stays whole, and so does what was staged."""
        with embedded_on_it.open() as warehouse:
            publish(warehouse, OUTPUT, predictions(500), "old")
            open_stage(warehouse, OUTPUT, "stage")
            with warehouse.begin() as tx:
                tx.stage(OUTPUT, "stage", {}, texts(10_000))

            with small_disk.full():
                with pytest.raises(WarehouseError), warehouse.begin() as tx:
                    tx.stage(OUTPUT, "stage", {}, texts(50_000))
                with pytest.raises(WarehouseError), warehouse.begin() as tx:
                    tx.replace(OUTPUT, "stage", stamp("new"))
                assert [row[-1] for row in published(warehouse, OUTPUT)] == ["old"] * 500

        with embedded_on_it.open() as warehouse:
            assert [row[-1] for row in published(warehouse, OUTPUT)] == ["old"] * 500
            with warehouse.begin() as tx:
                assert tx.staged(OUTPUT, "stage") == 10_000
                tx.replace(OUTPUT, "stage", stamp("new"))
            assert [row[-1] for row in published(warehouse, OUTPUT)] == ["new"] * 10_000

    @pytest.mark.parametrize("small_disk", ["mounted"], indirect=True)
    def test_full_disk_when_settling(self, small_disk: Disk) -> None:
        """Where DuckDB's log cannot be folded into a full disk, that is told, and the log has what was published."""
        bench = DuckDBBench(f"duckdb:///{small_disk.folder / 'warehouse'}")
        with bench.open() as warehouse:
            warehouse.prepare(OUTPUT)
            open_stage(warehouse, OUTPUT, "stage")
            with warehouse.begin() as tx:
                tx.stage(OUTPUT, "stage", {}, texts(20_000))
                tx.replace(OUTPUT, "stage", stamp("new"))

            with small_disk.full(leave=8192), pytest.raises(WarehouseError, match="safe in its log"):
                drop_stage(warehouse, OUTPUT, "stage")

        with bench.open() as warehouse:
            assert [row[-1] for row in published(warehouse, OUTPUT)] == ["new"] * 20_000

    @pytest.mark.parametrize(
        ("role", "password", "words"),
        [
            ("guarded", "wrong-Secret7", "authentication failed"),
            ("guarded", None, "no password"),
            ("nobody7", "Secret7", "does not exist"),
        ],
    )
    def test_login(self, postgres: PostgresBench, role: str, password: str | None, words: str) -> None:
        """A login that the server refuses would be refused again; the message holds no password."""
        with (
            postgres.as_role(role, password).open() as warehouse,
            pytest.raises(WarehouseError, match=words) as caught,
        ):
            warehouse.check(OUTPUT)

        assert "Secret7" not in str(caught.value)

    def test_right_password(self, postgres: PostgresBench) -> None:
        """The right password opens."""
        with postgres.as_role("guarded", "right").open() as warehouse:
            assert not warehouse.check(OUTPUT)

    def test_nobody_listens(self) -> None:
        """A server that is not there may be there later."""
        with PostgresBench("postgresql://127.0.0.1:9/db").open() as warehouse, pytest.raises(TransientError):
            warehouse.check(OUTPUT)

    def test_missing_privileges(self, postgres: PostgresBench) -> None:
        """What a run needs and the role may not do is named; with it granted nothing is, and a run works."""
        role = f"limited_{uuid4().hex[:8]}"
        postgres.run(f"CREATE ROLE {role} LOGIN", "CREATE SCHEMA own", f"GRANT USAGE ON SCHEMA own TO {role}")
        output = Output("own.predictions", OUTPUT.columns)
        try:
            postgres.create(output)
            with postgres.as_role(role).open(read_only=True) as looking:
                missing = [looking.missing_privileges(name) for name in ("own.predictions", "own.none", "predictions")]
            with postgres.as_role(role).open() as warehouse:
                for refused in (lambda: warehouse.create(ledger.METADATA), lambda: open_stage(warehouse, output, "s")):
                    with pytest.raises(WarehouseError, match="permission denied for schema"):
                        refused()

                postgres.run(
                    f"GRANT CREATE ON SCHEMA own, public TO {role}",
                    f"GRANT SELECT, INSERT, DELETE ON own.predictions TO {role}",
                )
                granted = warehouse.missing_privileges("own.predictions")
                warehouse.create(ledger.METADATA)
                publish(warehouse, output, predictions(2))
            assert postgres.query("SELECT count(*) FROM own.predictions") == [(2,)]
        finally:
            postgres.run(f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")

        schemas = ["CREATE on the schema (for stages)", "CREATE on the default schema (for the ledger)"]
        table = [f"{verb} on the output table" for verb in ("INSERT", "DELETE", "SELECT")]
        assert missing == [[*schemas, *table], schemas, schemas]
        assert granted == []

    def test_search_path(self, postgres: PostgresBench) -> None:
        """Options that the URL gives the server hold beside ours: tables go to its search path, and time is UTC."""
        postgres.run("CREATE SCHEMA team")
        url = postgres.database.url.update_query_dict({"options": "-c search_path=team -c TimeZone=Asia/Tokyo"})
        with PostgresBench(url).open() as warehouse:
            publish(warehouse, OUTPUT, predictions(1))
            with warehouse.begin() as tx:
                zone = tx.connection.exec_driver_sql("SHOW TimeZone").scalar_one()

        assert (postgres.query("SELECT count(*) FROM team.predictions"), zone) == ([(1,)], "UTC")
