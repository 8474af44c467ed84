"""Rows from PostgreSQL, as ADBC streams them: `COPY … TO STDOUT` in Arrow batches, no Python object per value.

Its DB-API would import pyarrow's datasets, and these import pandas where it is installed: .3 s before the first row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from datetime import date, datetime

import adbc_driver_manager
import adbc_driver_postgresql
import polars as pl
import pyarrow as pa
from adbc_driver_manager import AdbcConnection, AdbcStatement
from adbc_driver_manager._reader import AdbcRecordBatchReader

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

    The transaction is read-only and its time zone UTC. Text travels as settings of that transaction, because ADBC
    collects the whole result in memory once a query has bound parameters; all else is written out by its type. Postgres
    asks for a setting once a row, which for the interval's bounds takes longer than to read it, and of a constant it
    knows how many rows there will be.

    Raises:
        WarehouseError: The database refuses the login or the query.
        TransientError: The database cannot be reached, or the connection breaks.
        SchemaMismatch: A wanted column has no canonical type, or a key column is missing.
    """
    with (
        query.database.translated(query.where),
        adbc_driver_postgresql.connect(query.database.libpq_uri()) as database,
        AdbcConnection(database) as connection,
        AdbcStatement(connection) as statement,
    ):
        connection.set_autocommit(False)
        markers = _begin(statement, query.values() | query.page.span.values)
        yield from _stream(statement, query, markers)


def _begin(statement: AdbcStatement, values: Mapping[str, Value]) -> dict[str, str]:
    """Open the transaction with its texts set, and give the SQL that stands for each parameter."""
    for setting in ("SET TRANSACTION READ ONLY", "SET LOCAL TIME ZONE 'UTC'"):
        statement.set_sql_query(setting)
        statement.execute_update()
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    if texts:
        calls = ", ".join(f"set_config('batchscore.{name}', ${i}, true)" for i, name in enumerate(texts, start=1))
        statement.set_sql_query(f"SELECT {calls}")
        statement.prepare()
        # By way of Polars: where pyarrow makes an array of Python's values, it looks for pandas too.
        statement.bind_stream(pl.DataFrame(texts).to_arrow(compat_level=pl.CompatLevel.oldest()))
        for _ in _batches(statement):
            pass
    markers = {}
    for name, value in values.items():
        if isinstance(value, str):
            markers[name] = f"(current_setting('batchscore.{name}'))"
        else:
            text, type_ = _spelled(value)
            markers[name] = f"('{text}'::{type_})"
    return markers


def _stream(statement: AdbcStatement, query: Query, markers: Mapping[str, str]) -> Iterator[pl.DataFrame]:
    marker = markers.__getitem__
    statement.set_sql_query(f"SELECT * FROM (\n{query.statement.render(marker)}\n) AS batchscore_rows")
    columns = pa.schema(statement.execute_schema())
    query.page.check(columns.names, query.where)
    yield canonical(no_rows(columns), query.where, query.page.columns)
    hint, most = min(query.page.batch_rows * _ROW_BYTES, _LARGEST_BATCH), query.page.batch_rows
    statement.set_options(**{_BATCH_SIZE: str(hint)})
    statement.set_sql_query(query.sql(marker, _TEXT_ORDER))
    drained = False
    try:
        for batch in _batches(statement):
            for start in range(0, batch.num_rows, most):
                yield canonical(batch.slice(start, most), query.where, query.page.columns)
        drained = True
    finally:
        if not drained:
            # Closing waits for the rest of the result, however long; a connection that is gone needs no cancelling.
            with suppress(adbc_driver_manager.Error):
                statement.cancel()


def _batches(statement: AdbcStatement) -> Iterator[pa.RecordBatch]:
    # pyarrow's own reader turns an error in mid-stream into an OSError without SQLSTATE, this one does not:
    # https://github.com/apache/arrow-adbc/issues/1523
    stream, _ = statement.execute_query()
    with closing(AdbcRecordBatchReader._import_from_c(stream.address)) as reader:  # noqa: SLF001
        yield from reader


def _spelled(value: bool | float | datetime | date) -> tuple[str, str]:
    """A value as text, in which no quote can be, and the Postgres type that reads it back."""
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
