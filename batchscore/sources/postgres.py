"""Rows from PostgreSQL, as ADBC streams them: `COPY … TO STDOUT` in Arrow batches, no Python object per value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from datetime import date, datetime

import adbc_driver_manager
import polars as pl
import pyarrow as pa
from adbc_driver_manager._reader import AdbcRecordBatchReader
from adbc_driver_postgresql import dbapi

from batchscore.job import Value
from batchscore.sources.arrow import canonical, no_rows
from batchscore.sources.statement import Query

__all__ = ["read"]

_TEXT_ORDER = 'CAST({} AS TEXT) COLLATE "C"'
_BATCH_SIZE = "adbc.postgresql.batch_size_hint_bytes"
# What a row of some eight columns takes; a batch is bounded in bytes, so wide rows make it shorter, never larger.
_ROW_BYTES = 80
_LARGEST_BATCH = 4 * 2**20


def read(query: Query) -> Iterator[pl.DataFrame]:
    """The rows of a query in canonical batches of at most some 4 MiB, the first one empty.

    The transaction is read-only and its time zone UTC. Parameters travel as settings of that transaction, because
    ADBC collects the whole result in memory once a query has bound ones.

    Raises:
        WarehouseError: The database refuses the login or the query.
        TransientError: The database cannot be reached, or the connection breaks.
        SchemaMismatch: A wanted column has no canonical type, or a key column is missing.
    """
    with (
        query.database.translated(query.where),
        closing(dbapi.connect(query.database.libpq_uri())) as connection,
        closing(connection.cursor()) as cursor,
    ):
        types = _begin(cursor, query.values() | query.page.span.values)
        yield from _stream(cursor, query, types)


def _begin(cursor: dbapi.Cursor, values: Mapping[str, Value]) -> dict[str, str]:
    """Open the transaction with its parameters set, and give each parameter's SQL type."""
    cursor.execute("SET TRANSACTION READ ONLY")
    cursor.execute("SET LOCAL TIME ZONE 'UTC'")
    spelled = {name: _spelled(value) for name, value in values.items()}
    if spelled:
        calls = ", ".join(f"set_config('batchscore.{name}', ${i}, true)" for i, name in enumerate(spelled, start=1))
        cursor.execute(f"SELECT {calls}", tuple(text for text, _ in spelled.values()))
        cursor.fetchall()
    return {name: type_ for name, (_, type_) in spelled.items()}


def _stream(cursor: dbapi.Cursor, query: Query, types: Mapping[str, str]) -> Iterator[pl.DataFrame]:
    def marker(name: str) -> str:
        return f"(current_setting('batchscore.{name}')::{types[name]})"

    columns = cursor.adbc_execute_schema(f"SELECT * FROM (\n{query.statement.render(marker)}\n) AS batchscore_rows")
    query.page.check(columns.names, query.where)
    yield canonical(no_rows(columns), query.where, query.page.columns)
    hint = min(query.page.batch_rows * _ROW_BYTES, _LARGEST_BATCH)
    cursor.adbc_statement.set_options(**{_BATCH_SIZE: str(hint)})
    cursor.execute(query.sql(marker, _TEXT_ORDER))
    drained = False
    try:
        for batch in _batches(cursor, query.page.batch_rows):
            yield canonical(batch, query.where, query.page.columns)
        drained = True
    finally:
        if not drained:
            # Closing waits for the rest of the result, however long; a connection that is gone needs no cancelling.
            with suppress(adbc_driver_manager.Error):
                cursor.adbc_cancel()


def _batches(cursor: dbapi.Cursor, most: int) -> Iterator[pa.RecordBatch]:
    # The reader of fetch_record_batch() turns an error in mid-stream into an OSError without SQLSTATE, this one does
    # not: https://github.com/apache/arrow-adbc/issues/1523
    stream = cursor.fetch_arrow()
    with closing(AdbcRecordBatchReader._import_from_c(stream.address)) as reader:  # noqa: SLF001
        for batch in reader:
            yield from (batch.slice(start, most) for start in range(0, batch.num_rows, most))


def _spelled(value: Value) -> tuple[str, str]:
    """A value as text and the Postgres type that reads it back."""
    match value:
        case bool():
            return str(value).lower(), "boolean"
        case int():
            return str(value), "bigint" if -(2**63) <= value < 2**63 else "numeric"
        case float():
            return repr(value), "double precision"
        case datetime():
            return value.isoformat(), "timestamp" if value.tzinfo is None else "timestamptz"
        case date():
            return value.isoformat(), "date"
        case str():
            return value, "text"
