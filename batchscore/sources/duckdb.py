"""Rows from a DuckDB file, in Arrow batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing

import duckdb
import polars as pl
import pyarrow as pa

from batchscore import duckfile
from batchscore.job import Value
from batchscore.sources.arrow import canonical, no_rows
from batchscore.sources.statement import Page, Query

__all__ = ["marker", "read", "stream"]

# The collation of a column survives every COLLATE put on it; its bytes have none.
_TEXT_ORDER = "encode(CAST({} AS VARCHAR))"


def read(query: Query) -> Iterator[pl.DataFrame]:
    """The rows of a query in canonical batches, the first one empty.

    The transaction is read-only and its time zone UTC. The file may be open in this process already, as a warehouse.

    Raises:
        WarehouseError: There is no such file, or DuckDB refuses the query.
        TransientError: Another process holds the file.
        SchemaMismatch: A wanted column has no canonical type, a name occurs twice, or a key column is missing.
    """
    query.database.existing_file()
    with query.database.translated(query.where), closing(_connect(query.database.path)) as connection:
        yield from stream(connection, query.statement.render(marker), query.values(), query.page, query.where)


def stream(
    connection: duckdb.DuckDBPyConnection, inner: str, values: Mapping[str, Value], page: Page, where: str
) -> Iterator[pl.DataFrame]:
    """One page of the query `inner` on an open connection, in canonical batches, the first one empty.

    Raises:
        SchemaMismatch: A wanted column has no canonical type, a name occurs twice, or a key column is missing.
        duckdb.Error: What DuckDB refuses, for `Database.translated`.
    """
    connection.sql("SET TimeZone = 'UTC'")
    connection.sql("BEGIN TRANSACTION READ ONLY")
    # Asked of the query itself: around a subquery DuckDB renames the second of two columns of one name.
    page.check(connection.sql(inner, params=dict(values)).columns, where)
    rows = connection.sql(page.sql(inner, _TEXT_ORDER, marker), params={**values, **page.span.values})
    with closing(rows.to_arrow_reader(page.batch_rows)) as reader:
        yield canonical(no_rows(reader.schema), where, page.columns)
        for batch in _batches(reader):
            yield canonical(batch, where, page.columns)


def marker(name: str) -> str:
    """How DuckDB writes a parameter."""
    return f"${name}"


def _connect(path: str) -> duckdb.DuckDBPyConnection:
    try:
        return duckfile.connect(path, read_only=True)
    except duckdb.ConnectionException:
        # This process has the file open for writing, and every connection to it must be opened alike.
        return duckdb.connect(path)


def _batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    try:
        yield from reader
    except (OSError, pa.ArrowException) as error:
        # Arrow's C stream carries the text of DuckDB's error, and not its class.
        raise duckdb.InvalidInputException(str(error)) from None
