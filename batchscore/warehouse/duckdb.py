"""DuckDB: one process per file, Arrow straight in, and a checkpoint after each publish.

No table of predictions has a PRIMARY KEY, UNIQUE or any index: DuckDB's log replay has failed on those after a crash
(duckdb#15836, #18732), and the protocol holds uniqueness without them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import sqlalchemy as sa
from duckdb_engine import ConnectionWrapper, Dialect

from batchscore import duckfile
from batchscore.database import Database
from batchscore.errors import WarehouseError
from batchscore.warehouse.tables import LiveColumn, make_folder, unwritable

__all__ = ["DuckDB"]

_DTYPES: dict[str, tuple[pl.DataType, ...]] = {
    "BOOLEAN": (pl.Boolean(),),
    "SMALLINT": (pl.Int16(),),
    "INTEGER": (pl.Int32(),),
    "BIGINT": (pl.Int64(),),
    "DOUBLE": (pl.Float64(),),
    "VARCHAR": (pl.String(),),
    "DATE": (pl.Date(),),
    "TIMESTAMP": (pl.Datetime("us"),),
    "TIMESTAMP WITH TIME ZONE": (pl.Datetime("us", "UTC"),),
}

_COLUMNS = sa.text(
    """
    SELECT column_name, data_type, is_nullable = 'NO' AND column_default IS NULL
    FROM information_schema.columns
    WHERE table_catalog = current_database()
        AND lower(table_name) = lower(:table)
        AND lower(table_schema) = lower(coalesce(:schema, current_schema()))
    ORDER BY ordinal_position
    """
)
_TABLES = sa.text(
    """
    SELECT table_name
    FROM information_schema.tables
    WHERE table_catalog = current_database() AND lower(table_schema) = lower(coalesce(:schema, current_schema()))
    """
)
_SCHEMAS = sa.text("SELECT schema_name FROM information_schema.schemata WHERE catalog_name = current_database()")
_IS_VIEW = sa.text(
    """
    SELECT bool_or(table_type = 'VIEW')
    FROM information_schema.tables
    WHERE table_catalog = current_database()
        AND lower(table_name) = lower(:table)
        AND lower(table_schema) = lower(coalesce(:schema, current_schema()))
    """
)
_ROWS_A_FRAME = 50_000


class _Dialect(Dialect):
    """duckdb_engine's own makes each statement anew; this one keeps what it made of one that is like it."""

    supports_statement_cache = True


sa.dialects.registry.register("duckdb.cached", __name__, "_Dialect")


class DuckDB:
    """The DuckDB backend."""

    alone = True

    def __init__(self, database: Database, *, read_only: bool) -> None:
        path = self._path = database.path
        if not read_only:
            make_folder(path)
        with database.translated("opening"):
            # A verb that only looks at a warehouse that is not there yet sees an empty one.
            empty = read_only and not os.path.exists(path)  # noqa: PTH110 - False where one may not look
            self._root = duckdb.connect(":memory:") if empty else duckfile.connect(path, read_only=read_only)
        # Every connection is a cursor of one root with DuckDB's own default configuration, so that a source may
        # open the same file in this process; the engine's own connect would give it another.
        self.engine = sa.create_engine(
            "duckdb+cached://", creator=lambda: ConnectionWrapper(self._cursor()), hide_parameters=True, max_overflow=-1
        )
        self._writes = not read_only and path != ":memory:"
        if self._writes:
            sa.event.listen(self.engine, "checkout", self._on_checkout)

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        cursor = self._root.cursor()
        cursor.execute("SET TimeZone = 'UTC'")
        return cursor

    def columns(self, connection: sa.Connection, table: sa.Table) -> dict[str, LiveColumn]:
        rows = connection.execute(_COLUMNS, {"table": table.name, "schema": table.schema})
        return {name: LiveColumn(declared, _DTYPES.get(declared, ()), required) for name, declared, required in rows}

    def full_name(self, connection: sa.Connection, table: sa.Table) -> str:
        # Upper case is no difference here.
        return f"{table.schema or connection.scalar(sa.select(sa.func.current_schema()))}.{table.name}".casefold()

    def load(self, connection: sa.Connection, table: sa.Table, frame: pl.DataFrame) -> None:
        quote = connection.dialect.identifier_preparer
        names = ", ".join(quote.quote(name) for name in frame.columns)
        raw: Any = connection.connection.driver_connection
        raw.register("batchscore_incoming", frame.to_arrow())
        connection.exec_driver_sql(
            f"INSERT INTO {quote.format_table(table)} ({names}) SELECT {names} FROM batchscore_incoming"
        )
        # Not after a failure: the rollback takes the view along, and until then DuckDB refuses every statement.
        raw.unregister("batchscore_incoming")

    def rows(
        self, connection: sa.Connection, query: sa.Select[Any], schema: Mapping[str, pl.DataType]
    ) -> Iterator[pl.DataFrame]:
        raw: Any = connection.connection.driver_connection
        with closing(raw.sql(str(query.compile(dialect=connection.dialect))).to_arrow_reader(_ROWS_A_FRAME)) as reader:
            for batch in _batches(reader):
                yield pl.DataFrame(batch, schema=schema)

    def tables(self, connection: sa.Connection, schema: str | None) -> list[str]:
        return list(connection.execute(_TABLES, {"schema": schema}).scalars())

    def schemas(self, connection: sa.Connection) -> list[str]:
        return list(connection.execute(_SCHEMAS).scalars())

    def is_fixed(self, connection: sa.Connection, table: sa.Table) -> bool:
        return bool(connection.execute(_IS_VIEW, {"table": table.name, "schema": table.schema}).scalar_one())

    def may_alter(self, connection: sa.Connection, table: sa.Table) -> bool:
        """Whoever may write the file may."""
        return True

    def indexes(self, table: sa.Table) -> list[sa.Index]:
        return []

    def lock_tables(self, connection: sa.Connection) -> None:
        """The file admits one process."""

    def missing_privileges(self, connection: sa.Connection, table: sa.Table) -> list[str]:
        return unwritable(self._path)

    def prove_rollback(self) -> None:
        """Every statement can be rolled back."""

    def settle(self) -> None:
        if self._writes:
            self._fold(duckfile.checkpoint)

    def _on_checkout(self, *_: object) -> None:
        self._fold(duckfile.checkpoint_large_log)

    def _fold(self, how: Callable[[duckdb.DuckDBPyConnection, str], None]) -> None:
        try:
            how(self._root, self._path)
        except (duckdb.Error, OSError) as error:
            raise WarehouseError(
                f"{self._path}: what was written is safe in its log, which could not be folded into the file: {error}. "
                "Look for room on the disk and the right to write there, and run the same command again."
            ) from None

    def close(self) -> None:
        self.engine.dispose()
        try:
            if self._writes and Path(f"{self._path}.wal").exists():
                with contextlib.suppress(WarehouseError):
                    self.settle()
        finally:
            self._root.close()


def _batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    try:
        yield from reader
    except (OSError, pa.ArrowException) as error:
        # Arrow's C stream carries the text of DuckDB's error, and not its class.
        raise duckdb.InvalidInputException(str(error)) from None
