"""SQLite: write-ahead log with full syncs, and the write lock taken when a transaction begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import sqlalchemy as sa

from batchscore.database import Database
from batchscore.errors import OutputMismatch
from batchscore.warehouse.tables import READS, LiveColumn, fetched, make_folder, unwritable

__all__ = ["SQLite"]

_BUSY_SECONDS = 30
_INTEGERS = (pl.Int64(), pl.Int32(), pl.Int16())
_TIMES = (pl.Datetime("us"), pl.Datetime("us", "UTC"))
_DTYPES: dict[str, tuple[pl.DataType, ...]] = {
    "BOOLEAN": (pl.Boolean(),),
    "BIGINT": _INTEGERS,
    "INTEGER": (*_INTEGERS, pl.Boolean()),
    "INT": _INTEGERS,
    "DOUBLE": (pl.Float64(),),
    "DOUBLE PRECISION": (pl.Float64(),),
    "REAL": (pl.Float64(),),
    "FLOAT": (pl.Float64(),),
    "TEXT": (pl.String(), pl.Date(), *_TIMES),
    "VARCHAR": (pl.String(),),
    "DATE": (pl.Date(),),
    "DATETIME": _TIMES,
    "TIMESTAMP": _TIMES,
}
_ROWS_A_CALL = 10_000


class SQLite:
    """The SQLite backend. Instants are stored as SQLAlchemy and SQLite write them: UTC text without offset."""

    alone = False

    def __init__(self, database: Database, *, read_only: bool) -> None:
        path = self._path = database.path
        if not read_only:
            make_folder(path)
        self._read_only = read_only
        empty = path == ":memory:" or (read_only and not Path(path).exists())
        # Read-only is up to query_only: a connection in mode=ro would leave the log's two files behind.
        query = {"uri": "true", "mode": "rw" if read_only else "rwc"}
        self.engine = sa.create_engine(
            sa.URL.create("sqlite")
            if empty
            else sa.URL.create("sqlite", database=f"file:{quote(str(Path(path).absolute()))}", query=query),
            connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False},
            hide_parameters=True,
            # In memory a thread has one connection, and there is no such limit.
            **({} if empty else {"max_overflow": -1}),
        )
        sa.event.listen(self.engine, "connect", self._on_connect)
        sa.event.listen(self.engine, "begin", self._on_begin)

    def _on_connect(self, raw: Any, _: object) -> None:
        # The driver must not begin transactions of its own: it would do so after the first read.
        raw.isolation_level = None
        if self._read_only:
            raw.execute("PRAGMA query_only = ON")
        else:
            raw.execute("PRAGMA journal_mode = WAL")
            raw.execute("PRAGMA synchronous = FULL")

    def _on_begin(self, connection: sa.Connection) -> None:
        reads = self._read_only or connection.get_execution_options().get(READS)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    def columns(self, connection: sa.Connection, table: sa.Table) -> dict[str, LiveColumn]:
        described = connection.execute(
            sa.text(
                'SELECT name, upper(type), "notnull" AND dflt_value IS NULL FROM pragma_table_info(:table, :schema)'
            ),
            {"table": table.name, "schema": table.schema or "main"},
        )
        return {
            name: LiveColumn(declared, _DTYPES.get(declared.partition("(")[0], ()), bool(required))
            for name, declared, required in described
        }

    def full_name(self, connection: sa.Connection, table: sa.Table) -> str:
        # Upper case is no difference here.
        return f"{table.schema or 'main'}.{table.name}".casefold()

    def load(self, connection: sa.Connection, table: sa.Table, frame: pl.DataFrame) -> None:
        if lost := [s.name for s in frame.iter_columns() if s.dtype.is_float() and s.is_nan().any()]:
            raise OutputMismatch(
                f"column {lost[0]} holds NaN, which SQLite would keep as NULL. Give NULL at the source, or leave the "
                "column out of [output] carry."
            )
        preparer = connection.dialect.identifier_preparer
        names = ", ".join(preparer.quote(name) for name in frame.columns)
        marks = ", ".join("?" * frame.width)
        statement = f"INSERT INTO {preparer.format_table(table)} ({names}) VALUES ({marks})"
        for rows in _storable(frame):
            connection.exec_driver_sql(statement, rows)

    def rows(
        self, connection: sa.Connection, query: sa.Select[Any], schema: Mapping[str, pl.DataType]
    ) -> Iterator[pl.DataFrame]:
        return fetched(connection, query, schema)

    def tables(self, connection: sa.Connection, schema: str | None) -> list[str]:
        return sa.inspect(connection).get_table_names(schema)

    def schemas(self, connection: sa.Connection) -> list[str]:
        return sa.inspect(connection).get_schema_names()

    def is_fixed(self, connection: sa.Connection, table: sa.Table) -> bool:
        schema = connection.dialect.identifier_preparer.quote(table.schema or "main")
        instead = "SELECT count(*) FROM {}.sqlite_master WHERE tbl_name = :table COLLATE NOCASE AND {}"
        is_view, *helped = (
            connection.execute(sa.text(instead.format(schema, wanted)), {"table": table.name}).scalar_one()
            for wanted in ("type = 'view'", *(f"sql LIKE '%INSTEAD OF {verb}%'" for verb in ("INSERT", "DELETE")))
        )
        return bool(is_view) and not all(helped)

    def may_alter(self, connection: sa.Connection, table: sa.Table) -> bool:
        """Whoever may write the file may."""
        return True

    def indexes(self, table: sa.Table) -> list[sa.Index]:
        return [sa.Index(None, table.c.interval_start)]

    def lock_tables(self, connection: sa.Connection) -> None:
        """Every transaction that writes holds the file's one write lock from its start."""

    def missing_privileges(self, connection: sa.Connection, table: sa.Table) -> list[str]:
        return unwritable(self._path)

    def prove_rollback(self) -> None:
        """Every statement can be rolled back."""

    def settle(self) -> None:
        """Committed is durable: every commit syncs the log."""

    def close(self) -> None:
        self.engine.dispose()


def _storable(frame: pl.DataFrame) -> Iterator[Sequence[tuple[object, ...]]]:
    """The rows as SQLite stores them: dates and instants as text, as SQLAlchemy's own types write them."""
    text: dict[pl.DataType, str] = {
        pl.Date(): "%Y-%m-%d",
        pl.Datetime("us"): "%Y-%m-%d %H:%M:%S%.6f",
        pl.Datetime("us", "UTC"): "%Y-%m-%d %H:%M:%S%.6f",
    }
    written = frame.with_columns(
        pl.col(name).dt.strftime(text[dtype]) for name, dtype in frame.schema.items() if dtype in text
    )
    for part in written.iter_slices(_ROWS_A_CALL):
        yield part.rows()
