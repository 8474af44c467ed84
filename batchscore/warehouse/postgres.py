"""Postgres: rows go in by COPY, in its binary form where the live columns are of the very types of ours.

The server takes binary values as they are, the bits of one type for another's, and so the live columns are asked for
first. Of any other type, and of columns with text or NULLs, it gets text, which it reads in each column's own type;
shortest-digits floats read back as the very same double.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import polars as pl
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier
from sqlalchemy.dialects import postgresql

from batchscore.database import Database
from batchscore.errors import OutputMismatch
from batchscore.warehouse.tables import LiveColumn

__all__ = ["Postgres"]

_DTYPES: dict[str, tuple[pl.DataType, ...]] = {
    "boolean": (pl.Boolean(),),
    "smallint": (pl.Int16(),),
    "integer": (pl.Int32(),),
    "bigint": (pl.Int64(),),
    "double precision": (pl.Float64(),),
    "text": (pl.String(),),
    "character varying": (pl.String(),),
    "date": (pl.Date(),),
    "timestamp without time zone": (pl.Datetime("us"),),
    "timestamp with time zone": (pl.Datetime("us", "UTC"),),
}

# Values of one length, as Postgres has them on the wire; its dates and times count from the year 2000.
_BINARY: dict[pl.DataType, str] = {
    pl.Boolean(): "u1",
    pl.Int64(): ">i8",
    pl.Float64(): ">f8",
    pl.Date(): ">i4",
    pl.Datetime("us"): ">i8",
    pl.Datetime("us", "UTC"): ">i8",
}
_DAYS = 10_957
_EPOCH: dict[pl.DataType, int] = {
    pl.Date(): _DAYS,
    pl.Datetime("us"): _DAYS * 86_400_000_000,
    pl.Datetime("us", "UTC"): _DAYS * 86_400_000_000,
}
# psycopg's doubles every % in a name, for statements that are formatted.
_UNFORMATTED = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
_BATCH_SIZE, _BATCH_BYTES = "adbc.postgresql.batch_size_hint_bytes", str(4 * 2**20)

_VARCHAR = re.compile(r"^character varying\((\d+)\)$")

_COLUMNS = sa.text(
    """
    SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
    FROM pg_attribute AS a
    WHERE a.attrelid = to_regclass(:name) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
    """
)
# Of a table on the search path; of one that is not there, where it would be made.
_SCHEMA = sa.text(
    """
    SELECT coalesce((SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass(:name)),
        current_schema())
    """
)
# Its bits for INSERT and DELETE; a view has them by itself, by rules or by triggers.
_IS_FIXED = sa.text("SELECT pg_relation_is_updatable(to_regclass(:name), true) & 24 <> 24")
_OWNS = sa.text("SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass(:name)")
_PRIVILEGES = sa.text(
    """
    SELECT
        current_schema() IS NOT NULL AS "USAGE on any schema of its search_path, if one is there",
        coalesce(has_schema_privilege(coalesce(:schema, current_schema()), 'CREATE'), current_schema() IS NULL)
            AS "CREATE on the schema (for stages)",
        to_regclass('batchscore_runs') IS NOT NULL OR has_schema_privilege(current_schema(), 'CREATE')
            AS "CREATE on the default schema (for the ledger)",
        has_table_privilege(to_regclass(:table), 'INSERT') AS "INSERT on the output table",
        has_table_privilege(to_regclass(:table), 'DELETE') AS "DELETE on the output table",
        has_table_privilege(to_regclass(:table), 'SELECT') AS "SELECT on the output table",
        (
            SELECT bool_and(
                has_table_privilege(t.oid, 'SELECT') AND has_table_privilege(t.oid, 'INSERT')
                AND has_table_privilege(t.oid, 'UPDATE') AND has_table_privilege(t.oid, 'DELETE')
            )
            FROM pg_class AS runs
            JOIN pg_class AS t ON t.relnamespace = runs.relnamespace AND t.relkind = 'r'
            WHERE runs.oid = to_regclass('batchscore_runs')
                AND starts_with(t.relname, 'batchscore_') AND NOT starts_with(t.relname, 'batchscore_stage_')
        ) AS "SELECT, INSERT, UPDATE and DELETE on every batchscore_ table"
    """
)
# Any number of our own; one process at a time creates tables under it.
_TABLE_LOCK = 0x62617463
# A line that is dead is noticed in a minute, and not after hours.
_DEFAULTS = {
    "application_name": "batchscore",
    "connect_timeout": "10",
    "keepalives_idle": "20",
    "keepalives_interval": "10",
    "keepalives_count": "4",
    "tcp_user_timeout": "60000",
}
# A process that stands still inside a transaction has the interval's row: who waits for it gives up for now, and its
# session ends.
_SETUP = (
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET LOCAL TIME ZONE 'UTC'",
    "SET LOCAL lock_timeout = '20s'",
    "SET LOCAL idle_in_transaction_session_timeout = '60s'",
)


class Postgres:
    """The Postgres backend."""

    alone = False

    def __init__(self, database: Database, *, read_only: bool) -> None:
        self._database = database
        self._setup = "; ".join([*_SETUP, *(["SET TRANSACTION READ ONLY"] if read_only else [])])
        self.engine = sa.create_engine(
            database.url.set(drivername="postgresql+psycopg"),
            hide_parameters=True,
            pool_pre_ping=False,
            # Each worker has a connection, and so has the thread that renews its lease.
            max_overflow=-1,
            connect_args={
                **{name: value for name, value in _DEFAULTS.items() if name not in database.url.query},
                # A pooling proxy hands each transaction another server session.
                "prepare_threshold": None,
            },
        )
        sa.event.listen(self.engine, "begin", self._on_begin)

    def _on_begin(self, connection: sa.Connection) -> None:
        # In each transaction and not when connecting, for the same reason; and a proxy may refuse startup options.
        connection.exec_driver_sql(self._setup)

    def columns(self, connection: sa.Connection, table: sa.Table) -> dict[str, LiveColumn]:
        name = connection.dialect.identifier_preparer.format_table(table)
        rows = connection.execute(_COLUMNS, {"name": name})
        return {column: _live(declared, required) for column, declared, required in rows}

    def full_name(self, connection: sa.Connection, table: sa.Table) -> str:
        name = connection.dialect.identifier_preparer.format_table(table)
        schema = table.schema or connection.scalar(_SCHEMA, {"name": name})
        return f"{schema}.{table.name}"

    def load(self, connection: sa.Connection, table: sa.Table, frame: pl.DataFrame) -> None:
        _refuse_nul(frame)
        raw: Any = connection.connection.driver_connection
        # Quoted by psycopg: the dialect doubles every % in a name, for statements that are formatted.
        into = Identifier(*([table.schema] if table.schema else []), table.name)
        names = SQL(", ").join(Identifier(name) for name in frame.columns)
        live = self.columns(connection, table)
        if _is_binary(frame, live):
            form, parts = "binary", _binary(frame)
        else:
            text = io.BytesIO()
            # Only text is quoted, so "" is an empty string and nothing at all is NULL.
            frame.write_csv(text, include_header=False, quote_style="non_numeric", null_value="")
            form, parts = "csv", [text.getbuffer()]
        statement = SQL("COPY {} ({}) FROM STDIN (FORMAT {})").format(into, names, SQL(form))
        with raw.cursor() as cursor, cursor.copy(statement) as copy:
            for part in parts:
                copy.write(part)

    def rows(
        self, connection: sa.Connection, query: sa.Select[Any], schema: Mapping[str, pl.DataType]
    ) -> Iterator[pl.DataFrame]:
        # Only what goes into a Delta table is read so.
        from adbc_driver_manager._reader import AdbcRecordBatchReader
        from adbc_driver_postgresql import dbapi

        # On a connection of its own, as sources read: a Python object for every value would take ten times as long.
        text = str(query.compile(dialect=_UNFORMATTED))
        with closing(dbapi.connect(self._database.libpq_uri())) as other, closing(other.cursor()) as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")
            cursor.execute("SET LOCAL TIME ZONE 'UTC'")
            cursor.adbc_statement.set_options(**{_BATCH_SIZE: _BATCH_BYTES})
            cursor.execute(text)
            # Not fetch_record_batch(), which turns an error in mid-stream into one of Arrow's, without SQLSTATE.
            stream = cursor.fetch_arrow()
            with closing(AdbcRecordBatchReader._import_from_c(stream.address)) as reader:  # noqa: SLF001
                try:
                    for batch in reader:
                        yield pl.DataFrame(batch).cast(dict(schema))  # type: ignore[arg-type]
                except GeneratorExit:
                    # Closing waits for the rest of the result, however long.
                    cursor.adbc_cancel()
                    raise

    def tables(self, connection: sa.Connection, schema: str | None) -> list[str]:
        return sa.inspect(connection).get_table_names(schema)

    def schemas(self, connection: sa.Connection) -> list[str]:
        return sa.inspect(connection).get_schema_names()

    def is_fixed(self, connection: sa.Connection, table: sa.Table) -> bool:
        name = connection.dialect.identifier_preparer.format_table(table)
        return bool(connection.execute(_IS_FIXED, {"name": name}).scalar_one())

    def may_alter(self, connection: sa.Connection, table: sa.Table) -> bool:
        name = connection.dialect.identifier_preparer.format_table(table)
        return bool(connection.execute(_OWNS, {"name": name}).scalar_one())

    def indexes(self, table: sa.Table) -> list[sa.Index]:
        # An interval's rows lie together. A B-tree costs as much as the rows themselves when they are published.
        return [
            sa.Index(None, table.c.interval_start, postgresql_using="brin", postgresql_with={"autosummarize": True})
        ]

    def lock_tables(self, connection: sa.Connection) -> None:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_TABLE_LOCK)))

    def missing_privileges(self, connection: sa.Connection, table: sa.Table) -> list[str]:
        name = connection.dialect.identifier_preparer.format_table(table)
        row = connection.execute(_PRIVILEGES, {"schema": table.schema, "table": name}).mappings().one()
        return [words for words, granted in row.items() if granted is False]

    def prove_rollback(self) -> None:
        """Every statement can be rolled back."""

    def settle(self) -> None:
        """The server looks after its own log."""

    def close(self) -> None:
        self.engine.dispose()


def _is_binary(frame: pl.DataFrame, live: Mapping[str, LiveColumn]) -> bool:
    """Whether every column can go to its live one as it is, each value as long as the others."""
    return all(
        series.dtype in _BINARY
        and not series.null_count()
        and series.name in live
        and live[series.name].dtypes == (series.dtype,)
        for series in frame.iter_columns()
    )


def _binary(frame: pl.DataFrame) -> list[bytes | memoryview]:
    """The rows as `COPY … (FORMAT binary)` reads them: numbers in network order, behind the length of each.

    Source: PostgreSQL 18 documentation, COPY, "Binary Format".
    """
    layout: list[tuple[str, str]] = [("columns", ">i2")]
    for place, dtype in enumerate(frame.dtypes):
        layout += [(f"length_{place}", ">i4"), (f"value_{place}", _BINARY[dtype])]
    rows = np.empty(frame.height, np.dtype(layout))
    rows["columns"] = frame.width
    for place, series in enumerate(frame.iter_columns()):
        rows[f"length_{place}"] = np.dtype(_BINARY[series.dtype]).itemsize
        values = series.to_physical().to_numpy()
        rows[f"value_{place}"] = values - _EPOCH[series.dtype] if series.dtype in _EPOCH else values
    return [b"PGCOPY\n\xff\r\n\0" + bytes(8), rows.view(np.uint8).data, b"\xff\xff"]


def _refuse_nul(frame: pl.DataFrame) -> None:
    for series in frame.iter_columns():
        if series.dtype == pl.String() and (found := series.str.contains("\0", literal=True).arg_true()).len():
            first = frame.columns[0]
            raise OutputMismatch(
                f"column {series.name} holds a NUL character, which Postgres text cannot, in the row with {first} = "
                f"{frame[first][found[0]]!r}: {series[found[0]]!r}. Take it out at the source, or leave the column out "
                "of [output] carry."
            )


def _live(declared: str, required: bool) -> LiveColumn:
    if measured := _VARCHAR.match(declared):
        return LiveColumn(declared, (pl.String(),), required, length=int(measured[1]))
    return LiveColumn(declared, _DTYPES.get(declared, ()), required)
