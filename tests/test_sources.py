"""One contract for every source, held against real databases and files."""

from __future__ import annotations

import gc
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import ClassVar
from zoneinfo import ZoneInfo

import duckdb
import polars as pl
import psutil
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from s3 import upload
from toy import MARIADB

from batchscore.database import Database
from batchscore.errors import (
    InputError,
    KeyViolation,
    SchemaMismatch,
    TransientError,
    UsageError,
    WarehouseError,
)
from batchscore.interval import Calendar, Interval
from batchscore.job import Rows
from batchscore.job import Source as JobSource
from batchscore.schema import Column, Schema
from batchscore.sources import WHOLE, Span, SqlSource, anysql, open_source, read_chunks, read_frame
from batchscore.sources.begun import begun
from batchscore.sources.ordered import Ordered
from batchscore.sources.statement import Statement

DAY = Interval(datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 3, tzinfo=UTC))
UTC_DAYS = Calendar("day", ZoneInfo("UTC"))
NIGHTLY = "SELECT * FROM input WHERE seen >= :interval_start AND seen < :interval_end"
TEXTS = ["a", "B", "ä", "Z", "b", "é", "zz", "A", "", "ß", "z", "漢", "\U0001f600", "~"]


def at(seconds: float = 0) -> datetime:
    """An instant so many seconds into DAY."""
    return DAY.start + timedelta(seconds=seconds)


def numbered(n: int, **columns: Sequence[object]) -> pl.DataFrame:
    """Rows with an integer key and a time inside DAY."""
    times = [at(i % 80_000) for i in range(n)]
    data = {"id": range(n), "seen": pl.Series(times, dtype=pl.Datetime("us", "UTC")), **columns}
    return pl.DataFrame(data)


def schema_of(frame: pl.DataFrame) -> Schema:
    """The frame's columns and types, each allowed to be NULL."""
    return Schema(tuple(Column(c.name, c.type, nullable=True) for c in Schema.of(frame)))


class DuckDBBench:
    """Rows in a DuckDB file."""

    odd: ClassVar = ("{'a': 1}", "[1, 2]", "INTERVAL 1 DAY", "'x'::BLOB", "MAP {'a': 1}", "'infinity'::DATE")

    def __init__(self, path: Path) -> None:
        self.database = Database.at(f"duckdb:///{path / 'rows.duckdb'}")

    def load(self, frame: pl.DataFrame, *, collated: bool = False) -> None:
        """Make the table `input`, its text columns in an order that is not bytewise if `collated`."""
        order = "COLLATE nocase" if collated else ""
        with closing(duckdb.connect(self.database.path)) as connection:
            connection.register("arrow", frame.to_arrow())
            listed = ", ".join(
                f'"{c}" {order} AS "{c}"' if t == pl.String else f'"{c}"' for c, t in frame.schema.items()
            )
            connection.sql(f"CREATE OR REPLACE TABLE input AS SELECT {listed} FROM arrow")

    def source(self, sql: str = NIGHTLY, **parameters: object):
        rows = Rows(sql="rows.sql", parameters=parameters)
        return open_source(rows, database=self.database, text=sql, where="rows.sql", calendar=UTC_DAYS)

    def odd_source(self):
        """The rows with columns `odd_0`, `odd_1` … that no schema can hold."""
        odd = [f"{value} AS odd_{i}" for i, value in enumerate(self.odd)]
        return self.source(NIGHTLY.replace("*", ", ".join(["*", *odd])))


class SQLiteBench(DuckDBBench):
    """Rows in an SQLite file."""

    odd: ClassVar = ("x'00'", "CASE WHEN id % 2 THEN 'text' ELSE 1 END")

    def __init__(self, path: Path) -> None:
        self.database = Database.at(f"sqlite:///{path / 'rows.sqlite'}")

    def load(self, frame: pl.DataFrame, *, collated: bool = False) -> None:
        order = "COLLATE NOCASE" if collated else ""
        spelled = frame.with_columns(
            pl.col(pl.Datetime).dt.strftime("%Y-%m-%d %H:%M:%S%.6f").str.strip_suffix(".000000"),
            pl.col(pl.Date).dt.strftime("%Y-%m-%d"),
        )
        listed = ", ".join(f'"{c}" TEXT {order}' if t == pl.String else f'"{c}"' for c, t in frame.schema.items())
        with closing(sqlite3.connect(self.database.path)) as connection, connection:
            connection.execute("DROP TABLE IF EXISTS input")
            connection.execute(f"CREATE TABLE input ({listed})")
            marks = ", ".join("?" * frame.width)
            connection.executemany(f"INSERT INTO input VALUES ({marks})", spelled.rows())


class PostgresBench(DuckDBBench):
    """Rows in Postgres, read through ADBC."""

    types: ClassVar = {
        pl.Int64: "bigint",
        pl.Float64: "double precision",
        pl.String: "text",
        pl.Boolean: "boolean",
        pl.Date: "date",
        pl.Datetime("us"): "timestamp",
        pl.Datetime("us", "UTC"): "timestamptz",
    }
    odd = (
        "'{}'::json",
        "'{}'::jsonb",
        "interval '1 day'",
        "ARRAY[gen_random_uuid()]",
        "ARRAY[interval '1 day']",
        "int4range(1, 2)",
        "time '10:00'",
    )

    def __init__(self, url: str) -> None:
        self.database = Database.at(url)

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(self.database.libpq_uri(), autocommit=True)

    def run(self, *statements: str) -> None:
        with closing(self.connect()) as connection:
            for statement in statements:
                connection.execute(statement)

    def load(self, frame: pl.DataFrame, *, collated: bool = False) -> None:
        # This build has no ICU: to sort or compare by this collation is an error.
        order = {pl.String: 'COLLATE "unicode"'} if collated else {}
        listed = ", ".join(
            f'"{name}" {self.types[dtype]} {order.get(dtype, "")}' for name, dtype in frame.schema.items()
        )
        self.run("DROP TABLE IF EXISTS input", f"CREATE TABLE input ({listed})")
        with closing(self.connect()) as connection, connection.cursor().copy("COPY input FROM STDIN") as copy:
            for row in frame.iter_rows():
                copy.write_row(row)


class AnySQLBench(PostgresBench):
    """The same Postgres, read as any database that SQLAlchemy knows."""

    def source(self, sql: str = NIGHTLY, **parameters: object):
        statement = Statement.parse(sql, "rows.sql", "postgresql")
        return SqlSource(self.database, statement, parameters, anysql.read)


class MariaDBBench(DuckDBBench):
    """Rows in MariaDB, whose instants are TIMESTAMP and booleans TINYINT(1)."""

    types: ClassVar = {
        pl.Int64: "bigint",
        pl.Float64: "double",
        pl.String: "text CHARACTER SET utf8mb4",
        pl.Boolean: "boolean",
        pl.Date: "date",
        pl.Datetime("us"): "datetime(6)",
        pl.Datetime("us", "UTC"): "timestamp(6)",
    }
    odd: ClassVar = ("x'00'", "CAST('10:00' AS time)")

    def __init__(self, url: str) -> None:
        self.database = Database.at(url)

    def run(self, *statements: str) -> None:
        with self.database.engine(poolclass=sa.NullPool).begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def load(self, frame: pl.DataFrame, *, collated: bool = False) -> None:
        order = {pl.String: "COLLATE utf8mb4_general_ci"} if collated else {}
        listed = ", ".join(f"`{c}` {self.types[t]} {order.get(t, '')} NULL" for c, t in frame.schema.items())
        self.run("DROP TABLE IF EXISTS input", f"CREATE TABLE input ({listed})")
        with self.database.engine(poolclass=sa.NullPool).begin() as connection:
            connection.exec_driver_sql("SET time_zone = '+00:00'")
            table = sa.table("input", *(sa.column(name) for name in frame.columns))
            if len(frame):
                connection.execute(sa.insert(table), frame.to_dicts())


class ParquetBench:
    """Rows in two Parquet files."""

    def __init__(self, path: Path) -> None:
        self.folder = path

    def load(self, frame: pl.DataFrame, *, collated: bool = False) -> None:
        half = len(frame) // 2
        frame[half:].write_parquet(self.folder / "1.parquet")
        frame[:half].write_parquet(self.folder / "2.parquet")

    def source(self):
        rows = JobSource(parquet=str(self.folder / "*.parquet"), key=("id",), time_column="seen")
        return open_source(rows, database=None, text=None, where="rows.parquet", calendar=UTC_DAYS)

    def odd_source(self):
        odd = [
            ({"a": 1}, pa.struct([("a", pa.int64())])),
            ([1, 2], pa.list_(pa.int64())),
            ([("a", 1)], pa.map_(pa.string(), pa.int64())),
            (b"x", pa.binary()),
            (1, pa.time64("us")),
        ]
        for path in self.folder.glob("*.parquet"):
            table = pq.read_table(path)
            for i, (value, type_) in enumerate(odd):
                table = table.append_column(f"odd_{i}", pa.array([value] * len(table), type_))
            pq.write_table(table, path)
        return self.source()


class ObjectsBench(ParquetBench):
    """The same files in an object store."""

    def __init__(self, path: Path, url: str) -> None:
        super().__init__(path)
        self.url = url

    def source(self):
        rows = JobSource(parquet=f"{self.url}/*.parquet", key=("id",), time_column="seen")
        upload(self.folder, self.url)
        return open_source(rows, database=None, text=None, where="rows.parquet", calendar=UTC_DAYS)


@pytest.fixture(params=["duckdb", "sqlite", "postgres", "anysql", MARIADB, "parquet", "objects"])
def bench(request, tmp_path):
    """Each kind of source in turn."""
    match request.param:
        case "duckdb":
            return DuckDBBench(tmp_path)
        case "sqlite":
            return SQLiteBench(tmp_path)
        case "parquet":
            return ParquetBench(tmp_path)
        case "objects":
            return ObjectsBench(tmp_path, request.getfixturevalue("s3_url"))
        case "postgres":
            return PostgresBench(request.getfixturevalue("postgres_url"))
        case "anysql":
            return AnySQLBench(request.getfixturevalue("postgres_url"))
        case "mariadb":
            return MariaDBBench(request.getfixturevalue("mariadb_url"))


@pytest.fixture(params=["local", "objects"])
def parquet(request, tmp_path):
    """Makes sources over Parquet files in `tmp_path`, and over the same files in an object store."""
    url = request.getfixturevalue("s3_url") if request.param == "objects" else None

    def source(path, *, time_column=None, calendar=UTC_DAYS):
        place = str(path) if url is None else f"{url}/{str(path).removeprefix(f'{tmp_path}/')}"
        rows = JobSource(parquet=place, key=("id",), time_column=time_column)
        opened = open_source(rows, database=None, text=None, where="rows.parquet", calendar=calendar)
        return opened if url is None else Uploaded(opened, tmp_path, url)

    return source


class Uploaded:
    """A source over a folder in an object store, to which a local one is copied as it is when it is read."""

    def __init__(self, source, folder: Path, url: str) -> None:
        self.where, self.caution, self.private = source.where, source.caution, source.private
        self._source, self._folder, self._url = source, folder, url

    def batches(self, *args, **options):
        upload(self._folder, self._url)
        return self._source.batches(*args, **options)


@pytest.fixture(params=["postgres", "anysql"])
def server(request, postgres_url):
    """Postgres through both readers."""
    return (PostgresBench if request.param == "postgres" else AnySQLBench)(postgres_url)


@pytest.fixture
def postgres(postgres_url):
    """Postgres through ADBC."""
    return PostgresBench(postgres_url)


def chunks(source, frame_or_schema, *, key=("id",), chunk_rows=1000, on_extra=None, interval=DAY, span=WHOLE):
    """Every chunk of an interval, read against a schema or a frame's."""
    schema = schema_of(frame_or_schema) if isinstance(frame_or_schema, pl.DataFrame) else frame_or_schema
    given = {"schema": schema, "key": list(key), "chunk_rows": chunk_rows, "on_extra": on_extra, "span": span}
    return list(read_chunks(source, interval, **given))


def column(parts, name):
    """One column's values over all chunks."""
    return [value for part in parts for value in part.rows[name]]


def test_every_type_comes_through_as_declared(bench):
    """The seven types, NULLs among them, are the same values from every source."""
    frame = numbered(
        4,
        flag=[True, None, False, True],
        whole=[1, -(2**53) - 1, None, 2**62],
        real=[0.5, 1e300, None, -0.25],
        text=["it's", None, "ü\n", ""],
        day=[date(2024, 2, 29), None, date(1, 1, 1), date(9999, 12, 31)],
        naive=[datetime(2024, 1, 1, 12, 30, 0, 5), None, datetime(1969, 12, 31, 23, 59, 59), datetime(2024, 7, 1)],
    )
    bench.load(frame)

    (chunk,) = chunks(bench.source(), frame)

    assert chunk.rows.schema == frame.schema
    assert chunk.rows.equals(frame)


def test_the_interval_is_half_open(bench):
    """A row at exactly the start is in, one at exactly the end and one just before the start are out."""
    times = [at(-1), at(0), at(86_399), at(86_400), at(90_000)]
    frame = pl.DataFrame({"id": range(5), "seen": times})
    bench.load(frame)

    assert column(chunks(bench.source(), frame), "id") == [1, 2]


@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
def test_chunks_are_cut_to_size_in_key_order(bench, chunk_rows):
    """Whatever the size, the same rows come in ascending order, each chunk full but the last, with its own bounds."""
    frame = numbered(150)
    bench.load(frame.sample(fraction=1, shuffle=True, seed=1))

    parts = chunks(bench.source(), frame, chunk_rows=chunk_rows)

    assert column(parts, "id") == list(range(150))
    assert [len(part.rows) for part in parts[:-1]] == [chunk_rows] * (len(parts) - 1)
    assert 1 <= len(parts[-1].rows) <= chunk_rows
    assert all(part.low == (part.rows["id"][0],) and part.high == (part.rows["id"][-1],) for part in parts)


@pytest.mark.parametrize(
    ("key", "columns"),
    [
        (("id",), {}),
        (("text",), {"text": TEXTS}),
        (("text", "number"), {"text": [t for t in TEXTS[:7] for _ in (0, 1)], "number": [2, 1] * 7}),
        (("number", "text"), {"number": [1, 2] * 7, "text": TEXTS}),
        (("day", "text"), {"day": [date(2024, 1, 1 + i // 5) for i in range(14)], "text": TEXTS}),
        (("seen",), {}),
        (("flag", "id"), {"flag": [True, False] * 7}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_rows_come_in_the_order_of_any_key(bench, key, columns):
    """Chunks follow one another in the key's order, text by its UTF-8 bytes, and tell their first and last key."""
    frame = numbered(14, **columns)
    bench.load(frame.sample(fraction=1, shuffle=True, seed=2), collated=True)
    expected = sorted(frame.select(key).rows(), key=lambda row: [v.encode() if isinstance(v, str) else v for v in row])

    parts = chunks(bench.source(), frame, key=key, chunk_rows=5)

    assert [row for part in parts for row in part.rows.select(key).rows()] == expected
    assert [(part.low, part.high) for part in parts] == [
        (expected[first], expected[min(first + 4, 13)]) for first in (0, 5, 10)
    ]
    assert parts[0].behind(5) is None
    assert parts[0].behind(2).rows.rows() == parts[0].rows[2:].rows()


@pytest.mark.parametrize(
    ("key", "columns"),
    [
        (("id",), {}),
        (("text", "id"), {"text": TEXTS}),
        (("group", "id"), {"group": [i // 5 for i in range(14)]}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("parts", [2, 3, 40])
def test_cuts_part_the_rows(bench, key, columns, parts):
    """Between the cuts, and before and behind them, lies each row once, in the order of all; no part is empty."""
    frame = numbered(14, **columns)
    bench.load(frame.sample(fraction=1, shuffle=True, seed=2), collated=True)
    whole = chunks(bench.source(), frame, key=key)[0].rows
    first = Column(key[0], schema_of(frame).types[key[0]], nullable=False)

    cuts = bench.source().cuts(DAY, first, parts)

    spans = [Span(low, high) for low, high in pairwise([None, *cuts, None])]
    found = [chunks(bench.source(), frame, key=key, span=span)[0].rows for span in spans]
    assert pl.concat(found).equals(whole)
    most = whole[key[0]].value_counts()["count"].max()
    assert 1 <= len(cuts) < min(parts, whole[key[0]].n_unique())
    assert max(part.height for part in found) <= -(-14 // parts) + most


def test_what_has_begun_is_gone_on_with(bench):
    """Whoever asks for the rows that are being read gets them, and so does who asks again, or for other ones."""
    frame = numbered(2_500)
    bench.load(frame.sample(fraction=1, shuffle=True, seed=3))
    source, given = bench.source(), {"schema": schema_of(frame), "key": ["id"], "chunk_rows": 1_000}
    whole = [part.rows for part in read_chunks(source, DAY, **given)]

    with begun(source, DAY, **given) as reading:
        spanned = list(read_chunks(source, DAY, **given, begun=reading, span=Span(1_000, None)))
        first, second = ([part.rows for part in read_chunks(source, DAY, **given, begun=reading)] for _ in range(2))

    assert len(whole) == 3
    assert all(found.equals(rows) for found, rows in zip([*first, *second], [*whole, *whole], strict=True))
    assert pl.concat([part.rows for part in spanned]).equals(pl.concat(whole).slice(1_000))


def test_what_has_begun_is_read_once(tmp_path):
    """The source is asked when it begins, and not again by the first who goes on with it; by the second it is."""
    bench, frame, asked = DuckDBBench(tmp_path), numbered(10), []
    bench.load(frame)
    there = bench.source()
    source = replace(there, read=lambda query: asked.append(query.interval) or there.read(query))
    given = {"schema": schema_of(frame), "key": ["id"], "chunk_rows": 4}

    counts = []
    with begun(source, DAY, **given) as reading:
        for _ in range(2):
            assert len(list(read_chunks(source, DAY, **given, begun=reading))) == 3
            counts.append(len(asked))

    assert counts == [1, 2]


def test_what_cannot_be_begun_fails_where_it_is_used(bench):
    """That a table is not there is told to whoever reads it, and to nobody where nobody does."""
    given = {"schema": schema_of(numbered(1)), "key": ["id"], "chunk_rows": 4}

    with begun(bench.source(), DAY, **given):
        pass
    with begun(bench.source(), DAY, **given) as reading, pytest.raises(WarehouseError):
        list(read_chunks(bench.source(), DAY, **given, begun=reading))


@pytest.mark.parametrize("chunk_rows", [10, 4, 3])
def test_a_key_that_occurs_twice_stops_the_read(bench, chunk_rows):
    """Inside a chunk or across two, a duplicate is a KeyViolation that names the key, and its chunk is not given."""
    frame = numbered(8).with_columns(id=pl.Series([0, 1, 2, 3, 3, 4, 5, 6]))
    bench.load(frame)
    given = []

    with pytest.raises(KeyViolation, match=r"rows\.\w+: the key \(id = 3\): it occurs more than once") as caught:
        given.extend(read_chunks(bench.source(), DAY, schema=schema_of(frame), key=["id"], chunk_rows=chunk_rows))

    assert column(given, "id") == list(range(8))[: 4 // chunk_rows * chunk_rows]
    assert caught.value.context == {"key": ["id"], "example": ["3"]}


def test_a_null_in_the_key_stops_the_read(bench):
    """A NULL in any key column is a KeyViolation: it is never compared away."""
    frame = numbered(4).with_columns(id=pl.Series([1, 2, 3, None]), text=pl.Series(["a", "b", None, "d"]))
    for row, name in ((2, "text"), (3, "id")):
        broken = frame[[0, 1, row]]
        bench.load(broken)

        with pytest.raises(KeyViolation, match=rf"the key \(.*None.*\): {name} is NULL in it"):
            chunks(bench.source(), frame, key=("id", "text"))


def test_a_missing_column_is_named_with_its_neighbour(bench):
    """A declared column that the rows lack is a SchemaMismatch, also when there is no row at all."""
    frame = numbered(3, dep_delay=[1.0, 2.0, 3.0])
    bench.load(frame.drop("dep_delay").with_columns(dep_delays=pl.lit(1.0)))
    empty = Interval(DAY.end, DAY.end + timedelta(days=1))

    for interval in (DAY, empty):
        with pytest.raises(SchemaMismatch, match=r"dep_delay \(nearest: dep_delays\)"):
            chunks(bench.source(), frame, interval=interval)


def test_a_missing_key_column_is_a_mismatch_and_no_refusal_of_the_database(bench):
    """The key is looked for before the database is asked to order by it."""
    frame = numbered(3)
    bench.load(frame.rename({"id": "number"}))

    with pytest.raises(SchemaMismatch, match=r"lacks 1 column.*id"):
        chunks(bench.source(), frame)
    with pytest.raises(SchemaMismatch, match=r"lacks 1 column.*id"):
        read_frame(bench.source(), DAY, key=["id"])


def test_text_where_numbers_are_declared_is_refused(bench):
    """The message says which column, what was declared and what came."""
    bench.load(numbered(3, amount=["1", "2", "x"]))

    with pytest.raises(SchemaMismatch, match=r"column amount: want integer, got string"):
        chunks(bench.source(), numbered(3, amount=[1, 2, 3]))


def test_types_do_not_hang_on_the_first_rows(bench):
    """A first chunk of NULLs, then integers with NULLs among them, has the declared type throughout."""
    frame = numbered(9, late=[None] * 4 + [7, None, 8, None, 9], real=[None] * 8 + [0.5], text=[None] * 8 + ["x"])
    bench.load(frame)

    parts = chunks(bench.source(), frame, chunk_rows=2)

    assert {tuple(part.rows.schema.items()) for part in parts} == {tuple(frame.schema.items())}
    assert column(parts, "late") == frame["late"].to_list()


def test_an_extra_column_is_left_out_and_told_once(bench):
    """Columns that nobody declared do not stop a run."""
    frame = numbered(9)
    bench.load(frame.with_columns(novel=pl.lit(1, pl.Int64), other=pl.lit("x")))
    told = []

    parts = chunks(bench.source(), frame, chunk_rows=2, on_extra=told.append)

    assert told == [["novel", "other"]]
    assert {tuple(part.rows.columns) for part in parts} == {("id", "seen")}


def test_an_extra_column_of_a_type_that_no_schema_has_is_left_out_too(bench):
    """JSON, a list, a blob or a mixture that nobody declared is told like any extra column, and never looked at."""
    frame = numbered(9)
    bench.load(frame)
    source, told = bench.odd_source(), []

    parts = chunks(source, frame, chunk_rows=2, on_extra=told.append)
    sample = read_frame(source, DAY, key=["id"], columns=dict.fromkeys(["id", "seen"]))

    (names,) = told
    assert names == [f"odd_{i}" for i in range(len(names))]
    assert column(parts, "id") == list(range(9))
    assert schema_of(frame).undeclared(sample) == names
    assert sample.columns == ["id", "seen", *names]
    assert sample["id"].to_list() == list(range(9))
    for name in names:
        with pytest.raises(SchemaMismatch, match=f"column {name}: want"):
            read_frame(source, DAY, key=["id"], columns=dict.fromkeys(["id", "seen", name]))


def test_a_frame_without_a_schema_takes_no_type_outside_the_seven(bench):
    """Training reads every column of the query, so one that no schema can hold is an error there, by name."""
    bench.load(numbered(9))

    with pytest.raises(SchemaMismatch, match="column odd_0: want"):
        read_frame(bench.odd_source(), DAY, key=["id"])


def test_a_float_is_no_key(bench):
    """Floats are refused as keys, with what to do."""
    frame = numbered(2, real=[0.5, 1.5])
    bench.load(frame)

    with pytest.raises(SchemaMismatch, match=r"column real: want a key of integer.*got float.*cast the key"):
        chunks(bench.source(), frame, key=("real",))
    with pytest.raises(SchemaMismatch, match=r"column real: want a key of integer.*got float.*cast the key"):
        read_frame(bench.source(), DAY, key=["real"])


def test_a_frame_holds_the_window_sorted_by_key(bench):
    """read_frame gives every row of the window, canonical, in key order, with NULLs typed by the values elsewhere."""
    frame = numbered(3000, real=[None] * 2999 + [0.5])
    bench.load(
        pl.concat(
            [frame.sample(fraction=1, shuffle=True, seed=3), numbered(1, real=[1.0]).with_columns(seen=at(86_400))]
        )
    )

    read = read_frame(bench.source(), DAY, key=["id"])

    assert read["id"].to_list() == list(range(3000))
    assert read["real"].to_list() == frame["real"].to_list()
    assert len(read_frame(bench.source(), DAY, key=("id", "seen"), limit=10)) == 10


@pytest.mark.parametrize(("ids", "message"), [([1, 2, 2], "id = 2.*more than once"), ([1, None, 3], "id is NULL")])
def test_a_frame_with_a_broken_key_is_refused(bench, ids, message):
    """Training and labels hold to the same key."""
    bench.load(numbered(3).with_columns(id=pl.Series(ids)))

    with pytest.raises(KeyViolation, match=message):
        read_frame(bench.source(), DAY, key=["id"])


def test_a_window_without_rows_is_no_error(bench):
    """No row is no chunk, and a frame with its columns and no rows."""
    frame = numbered(3)
    bench.load(frame)
    empty = Interval(DAY.end, DAY.end + timedelta(days=1))

    assert chunks(bench.source(), frame, interval=empty) == []
    assert read_frame(bench.source(), empty, key=["id"]).columns == ["id", "seen"]


def test_batches_are_bounded_limited_and_typed(bench):
    """A source keeps to the batch size and to the limit, and the first batch says which columns there are."""
    bench.load(numbered(5000))

    sizes = [len(batch) for batch in bench.source().batches(DAY, batch_rows=1000, limit=4500)]

    assert sizes[0] == 0
    assert sum(sizes) == 4500
    assert max(sizes) == 1000


def test_a_generator_may_be_closed_early_and_from_another_thread(bench):
    """A consumer that stops, in whichever thread, leaves no connection behind: the rows can be replaced at once."""
    frame = numbered(20_000)
    bench.load(frame)
    batches = bench.source().batches(DAY, order=[Column("id", "integer", nullable=False)], batch_rows=1000)
    reader = threading.Thread(target=lambda: [next(batches) for _ in range(3)])
    reader.start()
    reader.join()

    batches.close()

    bench.load(numbered(5))
    assert len(chunks(bench.source(), frame)[0].rows) == 5


@pytest.fixture(params=["duckdb", "sqlite", "postgres", "anysql", MARIADB])
def sql_bench(request, tmp_path):
    """Each kind of database in turn."""
    match request.param:
        case "duckdb":
            return DuckDBBench(tmp_path)
        case "sqlite":
            return SQLiteBench(tmp_path)
        case "postgres":
            return PostgresBench(request.getfixturevalue("postgres_url"))
        case "anysql":
            return AnySQLBench(request.getfixturevalue("postgres_url"))
        case "mariadb":
            return MariaDBBench(request.getfixturevalue("mariadb_url"))


def test_parameters_of_every_type_are_bound(sql_bench):
    """The job's own parameters reach the query as values: quotes and semicolons in them are text."""
    frame = numbered(4, text=["a'; DROP TABLE input; --", "b", "c", "d"], rate=[0.5, 1.5, 2.5, 3.5])
    sql_bench.load(frame)
    sql = f"{NIGHTLY} AND text = :text AND id <= :whole AND rate > :real AND :flag AND ':text' <> text -- :nothing"
    values = {"text": "a'; DROP TABLE input; --", "whole": 3, "real": 0.25, "flag": True}

    assert column(chunks(sql_bench.source(sql, **values), frame), "id") == [0]
    assert column(chunks(sql_bench.source(sql, **{**values, "flag": False}), frame), "id") == []


def test_dates_and_local_times_are_bound_as_such(sql_bench):
    """A date, a naive and a zoned datetime of the job file compare with columns of their kind."""
    frame = numbered(3, day=[date(2024, 1, i) for i in (1, 2, 3)], naive=[datetime(2024, 1, i, 6) for i in (1, 2, 3)])
    sql_bench.load(frame)
    sql = f"{NIGHTLY} AND day >= :day AND naive <= :naive AND seen < :zoned"
    zoned = datetime(2024, 1, 1, 19, 0, 2, tzinfo=ZoneInfo("America/New_York"))
    source = sql_bench.source(sql, day=date(2024, 1, 2), naive=datetime(2024, 1, 3, 6), zoned=zoned)

    assert column(chunks(source, frame), "id") == [1]


@pytest.mark.parametrize("sql_bench", ["duckdb", "postgres"], indirect=True)
def test_dates_are_cut_in_the_zone_of_the_job(sql_bench):
    """The how-to's way to compare a DATE gives the day of the job's zone; the plain comparison gives the next one."""
    frame = numbered(3, day=[date(2024, 1, i) for i in (1, 2, 3)])
    sql_bench.load(frame)
    there = Calendar("day", ZoneInfo("America/New_York")).at("2024-01-02")
    recipe = (
        (Path(__file__).parent.parent / "docs/howto.md")
        .read_text("utf-8")
        .split("-- DuckDB and Postgres\n")[1]
        .split("```")[0]
    )
    plain = "WHERE day >= :interval_start AND day < :interval_end"

    found = {
        where: column(
            chunks(sql_bench.source(f"SELECT id, seen, day FROM input {where}"), frame, interval=there), "day"
        )
        for where in (recipe, plain)
    }

    assert found == {recipe: [date(2024, 1, 2)], plain: [date(2024, 1, 3)]}


def test_a_query_may_be_anything_that_selects(sql_bench):
    """WITH, UNION, an ORDER BY of its own, a trailing semicolon and a trailing comment live inside the wrapping."""
    frame = numbered(6)
    sql_bench.load(frame)
    sql = f"""WITH nightly AS ({NIGHTLY})
        SELECT id, seen FROM nightly WHERE id < 3 UNION ALL SELECT id, seen FROM nightly WHERE id > 3
        ORDER BY id DESC ; -- the end"""

    assert column(chunks(sql_bench.source(sql), frame, chunk_rows=2), "id") == [0, 1, 2, 4, 5]


def test_a_column_named_twice_is_refused(sql_bench):
    """Which of the two was meant cannot be known, also where the database renames one."""
    frame = numbered(3)
    sql_bench.load(frame)
    sql = NIGHTLY.replace("*", "id, seen, 1 AS n, 2 AS n")

    # MariaDB itself refuses.
    twice = pytest.raises((SchemaMismatch, WarehouseError), match=r"gives column n twice|Duplicate column name 'n'")
    with twice:
        chunks(sql_bench.source(sql), frame)
    with twice:
        read_frame(sql_bench.source(sql), DAY, key=["id"])


def test_a_table_that_is_not_there_is_the_warehouse_s_refusal(sql_bench):
    """The error says where, and keeps the driver's words."""
    frame = numbered(1)
    sql_bench.load(frame)

    with pytest.raises(WarehouseError, match=r"^rows\.sql on .*nowhere"):
        chunks(sql_bench.source(NIGHTLY.replace("input", "nowhere")), frame)


def test_an_error_in_mid_stream_is_translated(sql_bench):
    """A row that cannot be computed stops the read with a WarehouseError after the rows before it."""
    sql_bench.load(numbered(60_000))
    failing = {
        "duckdb": "CASE WHEN id = 55000 THEN error('division') ELSE 1 END",
        "sqlite": "abs(-9223372036854775808 + (id <> 55000))",
        "mariadb": "9223372036854775807 + (id = 55000)",
    }
    sql = NIGHTLY.replace("*", f"id, seen, {failing.get(sql_bench.database.dialect, '1 / (id - 55000)')} AS n")

    with pytest.raises(WarehouseError, match=r"division|overflow|out of range"):
        for _ in sql_bench.source(sql).batches(DAY, batch_rows=1000):
            pass


def test_a_number_among_text_keys_is_not_skipped(sql_bench):
    """An order that is not the declared type's is found, not followed."""
    frame = numbered(3).with_columns(id=pl.Series(["10", "9", "100"]))
    sql_bench.load(numbered(3).with_columns(id=pl.Series([10, 9, 100])))

    with pytest.raises(InputError):
        chunks(sql_bench.source(), frame)


def test_open_source_checks_the_sql_before_anything_is_connected_to(tmp_path):
    """A second statement, an unknown placeholder and an ignored interval are seen without a database."""
    bench = DuckDBBench(tmp_path)

    with pytest.raises(UsageError, match="second statement"):
        bench.source(f"{NIGHTLY}; DELETE FROM input")
    with pytest.raises(UsageError, match=r":carrier.*\[source\]"):
        bench.source(f"{NIGHTLY} AND carrier = :carrier")
    rows = JobSource(sql="rows.sql", key=("id",))
    with pytest.raises(UsageError, match="whole table"):
        open_source(rows, database=bench.database, text="SELECT * FROM input", where="rows.sql", calendar=UTC_DAYS)


def test_labels_need_no_time(tmp_path):
    """Labels are joined by key, so a query or a file that ignores the interval gives them all."""
    bench = DuckDBBench(tmp_path)
    bench.load(numbered(3))
    numbered(3).write_parquet(tmp_path / "labels.parquet")

    from_sql = read_frame(bench.source("SELECT id FROM input"), days(5, 6), key=["id"])
    rows = Rows(parquet=str(tmp_path / "labels.parquet"))
    labels = open_source(rows, database=None, text=None, where="labels", calendar=UTC_DAYS)
    from_files = read_frame(labels, days(5, 6), key=["id"])

    assert from_sql["id"].to_list() == from_files["id"].to_list() == [0, 1, 2]


@pytest.mark.parametrize("kind", [DuckDBBench, SQLiteBench])
def test_a_file_that_is_not_there_is_not_made(kind, tmp_path):
    """Reading from a mistyped path refuses, and leaves no empty database behind."""
    source = kind(tmp_path).source()

    with pytest.raises(WarehouseError, match="no such file"):
        next(source.batches(DAY))
    assert list(tmp_path.iterdir()) == []


def test_duckdb_shares_its_file_with_a_writer_in_this_process(tmp_path):
    """The warehouse may be the source, open for writing; the read still cannot write, and sees one snapshot."""
    bench, frame = DuckDBBench(tmp_path), numbered(5)
    bench.load(frame)
    with closing(duckdb.connect(bench.database.path)) as writer:
        writer.sql("CREATE SEQUENCE numbers")
        assert column(chunks(bench.source(), frame), "id") == [0, 1, 2, 3, 4]
        batches = bench.source().batches(DAY)
        next(batches)
        writer.sql("DELETE FROM input")
        assert sum(len(batch) for batch in batches) == 5
        with pytest.raises(WarehouseError, match="read-only"):
            next(bench.source(NIGHTLY.replace("*", "nextval('numbers') AS id, seen")).batches(DAY))


def test_duckdb_held_by_another_process_is_worth_another_try(tmp_path):
    """A lock goes with the process that holds it."""
    bench = DuckDBBench(tmp_path)
    bench.load(numbered(1))
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, bench.database.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(TransientError, match="lock"):
            next(bench.source().batches(DAY))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("INTERVAL 1 DAY", "interval"),
        ("'x'::BLOB", "binary"),
        ("[1, 2]", "list"),
        ("{'a': 1}", "struct"),
        ("TIME '10:00'", "time"),
        ("18446744073709551615::UBIGINT", "exact value"),
        ("'infinity'::TIMESTAMP", "infinity"),
        ("'infinity'::DATE", "infinity"),
    ],
)
def test_duckdb_types_outside_the_seven_are_refused(tmp_path, expression, message):
    """The column is named, with what to do."""
    bench = DuckDBBench(tmp_path)
    bench.load(numbered(1))

    with pytest.raises(SchemaMismatch, match=rf"column odd: .*{message}") as caught:
        read_frame(bench.source(NIGHTLY.replace("*", f"*, {expression} AS odd")), DAY, key=["id"])
    assert "Cast it at the source" in str(caught.value)


def test_duckdb_types_of_any_width_are_canonical(tmp_path):
    """Decimals, huge and small integers, enums, UUIDs and timestamps of every precision have a place in the seven."""
    bench = DuckDBBench(tmp_path)
    bench.load(numbered(1))
    sql = NIGHTLY.replace(
        "*",
        """*, 1.50::DECIMAL(20,2) AS d, 7::HUGEINT AS h, 7::UTINYINT AS u, 'b'::ENUM('b', 'a') AS e,
        0.5::FLOAT AS f, uuid '11111111-2222-3333-4444-555555555555' AS k,
        TIMESTAMP_NS '2024-01-01' AS n, TIMESTAMP_S '2024-01-01' AS s""",
    )

    row = read_frame(bench.source(sql), DAY, key=["k"]).row(0, named=True)

    midnight = datetime(2024, 1, 1)
    uuid = "11111111-2222-3333-4444-555555555555"
    expected = {"d": 1.5, "h": 7, "u": 7, "e": "b", "f": 0.5, "k": uuid, "n": midnight, "s": midnight}
    assert {name: row[name] for name in expected} == expected


def test_sqlite_columns_are_typed_by_their_values(tmp_path):
    """Integers and floats of one column are floats, whichever batch they come in; text among numbers is refused."""
    bench = SQLiteBench(tmp_path)
    bench.load(numbered(3))
    with closing(sqlite3.connect(bench.database.path)) as connection, connection:
        connection.execute("ALTER TABLE input ADD COLUMN x")
        connection.execute("UPDATE input SET x = 1")
        connection.execute("UPDATE input SET x = 2.5 WHERE id = 2")
        connection.commit()
        parts = list(bench.source().batches(DAY, batch_rows=2))
        assert [part.schema["x"] for part in parts] == [pl.Null, pl.Int64, pl.Float64]
        assert read_frame(bench.source(), DAY, key=["id"])["x"].to_list() == [1.0, 1.0, 2.5]
        connection.execute("UPDATE input SET x = 'many' WHERE id = 1")
        connection.commit()
        with pytest.raises(SchemaMismatch, match=r"column x: want one type, got int, for instance 1 and str.*'many'"):
            list(bench.source().batches(DAY, batch_rows=2))
        connection.execute("UPDATE input SET x = x'00'")
        connection.commit()
        with pytest.raises(SchemaMismatch, match=r"column x: .*bytes has no column type"):
            list(bench.source().batches(DAY))


def test_a_sqlite_file_with_a_log_is_left_as_it_was(tmp_path):
    """Reading a database in WAL mode leaves no file beside it."""
    bench = SQLiteBench(tmp_path)
    bench.load(numbered(3))
    with closing(sqlite3.connect(bench.database.path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    before = sorted(tmp_path.iterdir())

    assert len(read_frame(bench.source(), DAY, key=["id"])) == 3

    assert sorted(tmp_path.iterdir()) == before


WIDE = pl.DataFrame(
    {
        "id": pl.int_range(40_000, eager=True).shuffle(seed=1),
        "text": pl.int_range(40_000, eager=True).shuffle(seed=2).cast(pl.String) + "é",
        "half": pl.Series([1, 2] * 20_000),
        "day": pl.Series([date(2024, 1, 1), date(2024, 1, 2)] * 20_000),
        **{f"c{n}": pl.Series([float(n)] * 40_000) + pl.int_range(40_000, eager=True) / 7 for n in range(200)},
    }
)


WIDE_TYPES = {"id": "integer", "text": "string", "half": "integer", "day": "date"}
WIDE_SCHEMA = Schema(tuple(Column(name, WIDE_TYPES.get(name, "float"), nullable=True) for name in WIDE.columns))


def read_wide(parquet, tmp_path, monkeypatch, rows, key, megabytes):
    """The rows in chunks, by a sort that has so much memory, and the bounds between which they were sorted."""
    rows.write_parquet(tmp_path / f"{DAY.start:%Y-%m-%d}.parquet", row_group_size=5_000)
    monkeypatch.setattr("batchscore.cgroup.memory", lambda: 4 * megabytes * 1_000_000)
    ranges, between = [], Ordered._between

    def noted(self, bounds):
        ranges.append(bounds)
        return between(self, bounds)

    monkeypatch.setattr(Ordered, "_between", noted)
    source = parquet(tmp_path / "{interval_start:%Y-%m-%d}.parquet")
    chunks = list(read_chunks(source, DAY, schema=WIDE_SCHEMA, key=key, chunk_rows=3_000))
    return pl.concat([chunk.rows for chunk in chunks]), ranges


@pytest.mark.parametrize("key", [["id"], ["text"], ["half", "id"], ["day", "text"]])
def test_wide_parquet_in_little_memory(parquet, tmp_path, monkeypatch, key):
    """Rows of 200 columns that a sort has no room for come in order and whole, a range of keys at a time."""
    found, ranges = read_wide(parquet, tmp_path, monkeypatch, WIDE, key, 50)

    assert len(ranges) > 1
    assert found.equals(WIDE.sort(key))


def test_a_null_in_the_key_of_wide_parquet(parquet, tmp_path, monkeypatch):
    """A row without a key is not left out with the ranges: it is an error."""
    rows = WIDE.with_columns(id=pl.when(pl.col("id") == 7).then(None).otherwise("id"))

    with pytest.raises(KeyViolation, match="id is NULL"):
        read_wide(parquet, tmp_path, monkeypatch, rows, ["id"], 50)


def test_parquet_for_which_there_is_no_memory_at_all(parquet, tmp_path, monkeypatch):
    """Where not even one key's rows find room, the error says that memory is what is missing."""
    with pytest.raises(WarehouseError, match="Out of Memory"):
        read_wide(parquet, tmp_path, monkeypatch, WIDE, ["id"], 3)


def test_no_room_for_a_temporary_folder(tmp_path, monkeypatch):
    """Where no temporary folder can be made, the error says so and what to set."""
    numbered(3).write_parquet(tmp_path / "rows.parquet")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    source = open_source(
        JobSource(parquet=f"{tmp_path}/{{interval_start:%Y}}/../rows.parquet", key=["id"]),
        database=None, text=None, where="rows", calendar=Calendar("day", ZoneInfo("UTC")),
    )  # fmt: skip

    with pytest.raises(WarehouseError, match=r"no temporary folder can be made.*TMPDIR"):
        list(source.batches(DAY))


def test_sqlite_is_opened_for_reading_only(tmp_path):
    """A file without a database in it, or one that another connection has locked, is refused and left alone."""
    bench = SQLiteBench(tmp_path)
    bench.load(numbered(3))
    with closing(sqlite3.connect(bench.database.path)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TransientError, match="locked"):
            next(bench.source().batches(DAY))
    Path(bench.database.path).write_bytes(b"not a database" * 100)
    with pytest.raises(WarehouseError, match="not a database"):
        next(bench.source().batches(DAY))


def test_postgres_numbers_and_keys_of_its_own_types(server):
    """NUMERIC is a float even where the first rows are NULL, and a UUID is a text key."""
    server.run(
        "CREATE TABLE input (id uuid, seen timestamptz, price numeric, small smallint, real real, code char(3))",
        f"INSERT INTO input SELECT md5(i::text)::uuid, '{at()}', CASE WHEN i > 3 THEN i + 0.25 END, i, i, 'ab' "
        "FROM generate_series(1, 5) i",
    )
    frame = read_frame(server.source(), DAY, key=["id"])

    parts = chunks(server.source(), frame, chunk_rows=2)

    assert sorted(value for value in column(parts, "price") if value is not None) == [4.25, 5.25]
    assert {part.rows.schema["price"] for part in parts} == {pl.Float64()}
    assert column(parts, "id") == sorted(frame["id"])


def test_postgres_reads_naive_times_as_utc(server):
    """Whatever zone the database defaults to, an interval over a timestamp without zone is one of UTC."""
    server.run(f"ALTER DATABASE {server.database.url.database} SET timezone = 'Asia/Tokyo'")
    frame = pl.DataFrame({"id": [1, 2, 3], "seen": [t.replace(tzinfo=None) for t in (at(-1), at(0), at(86_400))]})
    server.load(frame)

    assert column(chunks(server.source(), frame), "id") == [2]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("interval '1 day'", "interval|timedelta"),
        ("'{}'::jsonb", "json|dict"),
        ("'\\x00'::bytea", "binary|bytes"),
        ("ARRAY[1, 2]", "list"),
        ("'10:00'::time", "time"),
        ("'1.1.1.1'::inet", "inet|IPv4"),
    ],
)
def test_postgres_types_outside_the_seven_are_refused(server, expression, message):
    """The column is named, with what to do; no type makes Polars panic."""
    server.load(numbered(1))

    with pytest.raises(SchemaMismatch, match=rf"column odd: .*({message}).*Cast it at the source"):
        read_frame(server.source(NIGHTLY.replace("*", f"*, {expression} AS odd")), DAY, key=["id"])


@pytest.mark.parametrize("expression", ["'infinity'::date", "'-infinity'::timestamptz", "'4713-01-01 BC'::timestamp"])
def test_postgres_dates_that_python_lacks_are_refused(postgres, expression):
    """Infinity comes through ADBC as a wrapped number, which would be a date like any other."""
    postgres.load(numbered(1))

    with pytest.raises(SchemaMismatch, match=r"column odd: .*infinity"):
        read_frame(postgres.source(NIGHTLY.replace("*", f"*, {expression} AS odd")), DAY, key=["id"])


def test_postgres_cannot_be_written_to(server):
    """A query with a side effect is refused by a transaction that only reads."""
    server.load(numbered(1))
    server.run("CREATE SEQUENCE numbers")

    with pytest.raises(WarehouseError, match="read-only transaction"):
        read_frame(server.source(NIGHTLY.replace("*", "nextval('numbers') AS id, seen")), DAY, key=["id"])
    with closing(server.connect()) as connection:
        assert connection.execute("SELECT is_called FROM numbers").fetchone() == (False,)


def test_postgres_early_stop_ends_the_query(server):
    """A consumer that stops amid a result of 10^12 rows is not made to wait for it, and its session is gone."""
    million = "generate_series(1, 1000000)"
    sql = f"SELECT a AS id, b AS n FROM {million} a, {million} b WHERE now() >= :interval_start"
    batches = server.source(sql).batches(DAY)
    assert sum(len(next(batches)) for _ in range(3)) > 0

    batches.close()

    with closing(server.connect()) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        deadline = datetime.now(UTC) + timedelta(seconds=5)
        while connection.execute(query).fetchone() != (0,):
            assert datetime.now(UTC) < deadline


def test_postgres_tells_a_refusal_from_a_bad_moment(server, postgres_server, tmp_path):
    """A wrong password and a missing privilege stay wrong; a host that does not answer may answer later."""
    server.load(numbered(1))
    guarded = server.database.url.set(username="guarded")
    cases = [
        (guarded.set(password="wr/o:ng"), WarehouseError, "password authentication failed"),
        (guarded, WarehouseError, "password"),
        (guarded.set(password="right"), WarehouseError, "permission denied"),
        (server.database.url.set(database="nowhere"), WarehouseError, "does not exist"),
        (server.database.url.set(query={"host": str(tmp_path)}), TransientError, "No such file"),
        (sa.make_url("postgresql+psycopg://x:wr%2Fo@127.0.0.1:1/x"), TransientError, "refused"),
    ]
    for url, kind, message in cases:
        server.database = Database(url)
        with pytest.raises(kind, match=message) as caught:
            list(server.source().batches(DAY))
        assert "wr/o" not in str(caught.value)
        assert "wr%2Fo" not in str(caught.value)


def test_postgres_a_connection_that_breaks_is_worth_another_try(server):
    """The administrator's restart in mid-stream is a TransientError."""
    server.load(numbered(1))
    sql = NIGHTLY.replace("*", "*, pg_terminate_backend(pg_backend_pid()) AS gone")

    with pytest.raises(TransientError, match=r"terminating connection|closed the connection"):
        list(server.source(sql).batches(DAY))


def test_postgres_streams_in_bounded_memory(postgres):
    """A result of some 140 MB passes through without ever being held."""
    sql = (
        "SELECT i AS id, repeat('x', 120) AS text, now() AS seen FROM generate_series(1, 1000000) i "
        "WHERE now() >= :interval_start"
    )
    process = psutil.Process()
    gc.collect()
    before, rows, peak = process.memory_info().rss, 0, 0
    for batch in postgres.source(sql).batches(DAY):
        rows += len(batch)
        peak = max(peak, process.memory_info().rss - before)

    assert rows == 1_000_000
    assert peak < 60 * 2**20


def test_a_tinyint_that_is_no_boolean(mariadb_url):
    """MariaDB's TINYINT(1) is a boolean; another number in it is refused with what to write instead."""
    bench = MariaDBBench(mariadb_url)
    frame = numbered(3, flag=[True, None, False])
    bench.load(frame)
    assert column(chunks(bench.source(), frame), "flag") == [True, None, False]

    bench.run("UPDATE input SET flag = 2 WHERE id = 2")
    with pytest.raises(SchemaMismatch, match=r"want boolean, got integer, for instance 2\. .* write flag \+ 0 AS flag"):
        chunks(bench.source(), frame)

    number = frame.with_columns(flag=pl.Series([1, None, 2]))
    assert column(chunks(bench.source(NIGHTLY.replace("*", "id, seen, flag + 0 AS flag")), number), "flag") == [
        1,
        None,
        2,
    ]


def test_any_other_database_needs_its_driver():
    """A URL whose driver is missing says what to install; an unknown dialect is refused."""
    for url, kind, message in (
        ("oracle+oracledb://u:p@h/d", UsageError, "Python module oracledb, is not installed"),
        ("nonsense://u:p@h/d", UsageError, "SQLAlchemy knows no nonsense"),
    ):
        rows = Rows(sql="rows.sql")
        source = open_source(rows, database=Database.at(url), text=NIGHTLY, where="rows.sql", calendar=UTC_DAYS)
        with pytest.raises(kind, match=message):
            next(source.batches(DAY))


def days(first: int, last: int, zone: str = "UTC") -> Interval:
    """Days of January 2024 in a zone."""
    calendar = Calendar("day", ZoneInfo(zone))
    return Interval(calendar.instant(date(2024, 1, first)), calendar.instant(date(2024, 1, last)))


def test_parquet_paths_follow_the_calendar(parquet, tmp_path):
    """The path names the interval's local start; a window of many reads those that exist, each once."""
    for day in (1, 2, 4):
        numbered(2).with_columns(id=pl.Series([day * 10, day * 10 + 1])).write_parquet(
            tmp_path / f"2024-01-0{day}.parquet"
        )
    calendar = Calendar("day", ZoneInfo("America/New_York"))
    source = parquet(tmp_path / "{interval_start:%Y-%m-%d}.parquet", calendar=calendar)

    one = read_frame(source, days(2, 3, "America/New_York"), key=["id"])
    many = read_frame(source, days(1, 9, "America/New_York"), key=["id"])

    assert one["id"].to_list() == [20, 21]
    assert many["id"].to_list() == [10, 11, 20, 21, 40, 41]
    with pytest.raises(WarehouseError, match=r"no file matches .*2024-01-03\.parquet"):
        next(source.batches(days(3, 4, "America/New_York")))
    with pytest.raises(WarehouseError, match=r"no file matches .*2024-01-05.*up to .*2024-01-08"):
        next(source.batches(days(5, 9, "America/New_York")))


def test_parquet_hive_directories_are_columns(parquet, tmp_path):
    """`day=2024-01-02/` is a column too, and may be the time column, in the calendar's zone."""
    for day in (1, 2, 3):
        folder = tmp_path / f"day=2024-01-0{day}"
        folder.mkdir()
        pl.DataFrame({"id": [day]}).write_parquet(folder / "part-0.parquet")
    calendar = Calendar("day", ZoneInfo("Asia/Tokyo"))

    whole = read_frame(
        parquet(tmp_path / "*/*.parquet", time_column="day", calendar=calendar), days(2, 4, "Asia/Tokyo"), key=["id"]
    )
    one = read_frame(parquet(tmp_path / "day={interval_start:%Y-%m-%d}/*.parquet"), days(3, 4), key=["id"])

    assert whole.rows() == [(2, date(2024, 1, 2)), (3, date(2024, 1, 3))]
    assert one.rows() == [(3, date(2024, 1, 3))]


@pytest.fixture
def partitioned(parquet, tmp_path):
    """Makes sources over files in directories `name=value`, whose ids count up in the order given."""

    def source(**named: Sequence[str]):
        (name, values), *_ = named.items()
        for number, value in enumerate(values):
            inside = tmp_path / f"{name}={value}"
            inside.mkdir(parents=True)
            pl.DataFrame({"id": [number], "seen": [at(0)]}).write_parquet(inside / "part-0.parquet")
        return parquet(tmp_path / "*/*.parquet", time_column="seen")

    return source


@pytest.mark.parametrize(
    ("values", "typed"),
    [
        (["1", "02", "-3"], [1, 2, -3]),
        ([str(2**63 - 1), "__HIVE_DEFAULT_PARTITION__"], [2**63 - 1, None]),
        ([str(2**63), "1"], [str(2**63), "1"]),
        (["7", "7a"], ["7", "7a"]),
        (["2024-01-02", "2024-01-03"], [date(2024, 1, 2), date(2024, 1, 3)]),
        (["2024-01-02", "2024-02-30"], ["2024-01-02", "2024-02-30"]),
        (["New%20York", "it's"], ["New York", "it's"]),
        (["__HIVE_DEFAULT_PARTITION__"], [None]),
    ],
)
def test_parquet_directories_are_typed_at_training(partitioned, values, typed):
    """Where no type is declared, directories are integers or dates if every one of them is, and text otherwise."""
    assert read_frame(partitioned(part=values), DAY, key=["id"])["part"].to_list() == typed


@pytest.mark.parametrize(
    ("values", "declared"),
    [
        (["12", "13"], ["north", "12"]),
        (["2024-01-02"], ["early", "late"]),
        (["007", "7"], ["7", "x"]),
        (["12", "013"], [1, 2]),
        (["2024-01-02"], [date(2024, 1, 1)]),
        (["__HIVE_DEFAULT_PARTITION__"], [1]),
    ],
)
def test_parquet_directories_have_the_declared_type(partitioned, values, declared):
    """An interval whose directories happen to be all digits, or all dates, has the type that training had."""
    source, schema = partitioned(part=values), schema_of(numbered(len(declared), part=declared))
    read = {int: int, str: str, date: date.fromisoformat}[type(declared[0])]
    expected = [None if value.startswith("__") else read(value) for value in values]

    assert column(chunks(source, schema), "part") == expected
    assert read_frame(source, DAY, key=["id"], columns=schema.types)["part"].to_list() == expected


@pytest.mark.parametrize(
    ("value", "declared", "message"),
    [
        ("north", 1, r"column part: want integer, got a directory part=north\. Name the directories so, or retrain"),
        ("20240102", date(2024, 1, 1), r"want date, got a directory part=1\."),
        ("1.0", 1, r"want integer, got a directory part=1\.0"),
        ("2", 0.5, r"want float, got string"),
    ],
)
def test_parquet_directories_of_another_type_are_refused(partitioned, value, declared, message):
    """A directory whose name is no value of the declared type is an error that names it."""
    with pytest.raises(SchemaMismatch, match=message):
        chunks(partitioned(part=["1", value]), numbered(1, part=[declared]))


def test_parquet_dates_cannot_tell_hours(parquet, tmp_path):
    """An hour of a day is no date: refused, with what to do."""
    pl.DataFrame({"id": [1], "day": [date(2024, 1, 2)]}).write_parquet(tmp_path / "1.parquet")
    source = parquet(tmp_path / "1.parquet", time_column="day", calendar=Calendar("hour", ZoneInfo("UTC")))

    with pytest.raises(UsageError, match=r"holds dates.*Name a timestamp column"):
        next(source.batches(Interval(at(3600), at(7200))))


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_parquet_naive_times_are_utc(parquet, tmp_path, unit):
    """Timestamps without a zone, of any precision, are instants in UTC."""
    times = pl.Series([t.replace(tzinfo=None) for t in (at(-1), at(0), at(86_399), at(86_400))])
    pl.DataFrame({"id": range(4), "seen": times.cast(pl.Datetime(unit))}).write_parquet(tmp_path / "1.parquet")

    assert read_frame(parquet(tmp_path / "1.parquet", time_column="seen"), DAY, key=["id"])["id"].to_list() == [1, 2]


def test_parquet_files_that_differ_are_not_bent_to_the_first(parquet, tmp_path):
    """A float in the second file stays one, and a column that one file lacks is missed, not read as NULL."""
    numbered(1, x=[1], y=[1]).write_parquet(tmp_path / "1.parquet")
    numbered(2, y=[1, 1]).with_columns(x=pl.Series([0.0, 1.5]))[1:].write_parquet(tmp_path / "2.parquet")
    source = parquet(tmp_path / "*.parquet", time_column="seen")
    declared = numbered(1, x=[1.0], y=[1])

    assert column(chunks(source, declared), "x") == [1.0, 1.5]

    numbered(3, x=[1, 1, 1])[2:].write_parquet(tmp_path / "3.parquet")
    with pytest.raises(SchemaMismatch, match=r"lacks 1 column.*\by\b"):
        chunks(source, declared)


def test_parquet_that_cannot_be_read_is_named(parquet, tmp_path):
    """A file that is no Parquet, or is damaged inside, is a WarehouseError with its path."""
    good = tmp_path / "good.parquet"
    numbered(50_000, text=[f"value {i}" for i in range(50_000)]).write_parquet(good)
    damaged = bytearray(good.read_bytes())
    damaged[1000 : len(damaged) // 2] = b"\xff" * (len(damaged) // 2 - 1000)
    for name, content in (("no.parquet", b"nothing of the kind"), ("damaged.parquet", damaged)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WarehouseError, match=name):
            read_frame(parquet(tmp_path / name, time_column="seen"), DAY, key=["id"])


def test_a_parquet_file_at_fault_is_named_among_others(parquet, tmp_path):
    """The file that cannot be read is named, wherever it stands among the others, and no database is."""
    for number in range(3):
        numbered(50_000, text=[f"value {number} {i}" for i in range(50_000)]).write_parquet(
            tmp_path / f"{number}.parquet"
        )
    damaged = bytearray((tmp_path / "1.parquet").read_bytes())
    damaged[1000 : len(damaged) // 2] = b"\xff" * (len(damaged) // 2 - 1000)
    (tmp_path / "1.parquet").write_bytes(damaged)

    with pytest.raises(WarehouseError, match=r"^rows\.parquet: [^ ]+/1\.parquet cannot be read: ") as caught:
        read_frame(parquet(tmp_path / "*.parquet", time_column="seen"), DAY, key=["id"])

    assert "duckdb:" not in str(caught.value)


def test_parquet_messages_speak_of_no_query(parquet, tmp_path):
    """What is wrong with a column or a key of files is to be mended at the source, for there is no query."""
    numbered(2, x=["a", "b"]).with_columns(id=pl.lit(1)).write_parquet(tmp_path / "1.parquet")
    source = parquet(tmp_path / "1.parquet", time_column="seen")

    for declared in (numbered(1, x=[1]), numbered(1, y=[1]), numbered(1, x=["a"])):
        with pytest.raises(InputError, match="at the source") as caught:
            chunks(source, declared)
        assert "query" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "every", "message"),
    [
        ("rows.parquet", "day", "read whole for every interval"),
        ("{day}.parquet", "day", r"holds \{day\}.*interval_start"),
        ("{interval_start}.parquet", "day", "with a format"),
        ("{interval_start.year:d}.parquet", "day", "no other field"),
        ("{interval_start:%Y.parquet", "day", "cannot be read"),
        ("{}.parquet", "day", "no other field"),
        ("{interval_start:%Y-%m}.parquet", "day", "one file for several intervals"),
        ("{interval_start:%Y-%m-%d}.parquet", "hour", "one file for several intervals"),
    ],
)
def test_parquet_paths_that_tie_nothing_to_an_interval_are_refused(parquet, path, every, message):
    """What would score the same rows every night is a UsageError, before any file is looked for."""
    with pytest.raises(UsageError, match=message):
        next(parquet(path, calendar=Calendar(every, ZoneInfo("UTC"))).batches(DAY))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("text", SchemaMismatch, "want timestamp or date"),
        ("gone", SchemaMismatch, r"lacks 1 column.s. that \[source\] time_column names: gone"),
    ],
)
def test_parquet_time_column_must_be_a_time(parquet, tmp_path, name, error, message):
    """A time column of text, or one that is not there, is refused by name."""
    numbered(1, text=["2024-01-02"]).write_parquet(tmp_path / "1.parquet")

    with pytest.raises(error, match=message):
        next(parquet(tmp_path / "1.parquet", time_column=name).batches(DAY))
