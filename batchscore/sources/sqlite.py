"""Rows from an SQLite file.

SQLite has no type for time. `:interval_start` and every other datetime is bound as the text that its own date
functions give, in UTC: `YYYY-MM-DD HH:MM:SS`, with `.ffffff` where there are microseconds; a date as `YYYY-MM-DD`.
Compare them with columns that hold the same form, or bring the column to it with datetime() or date().

A column that is declared DATE, DATETIME, TIMESTAMP or BOOLEAN in its table comes as that type, text without an offset
being UTC; an expression, and text that is no ISO date, comes as the text or number it is.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import quote

import polars as pl

from batchscore.errors import SchemaMismatch
from batchscore.job import Value
from batchscore.sources.anysql import frame_of
from batchscore.sources.statement import Query

__all__ = ["read"]

_TEXT_ORDER = "{} COLLATE BINARY"


def _declared(parse: Callable[[str], Any]) -> Callable[[bytes], Any]:
    def convert(stored: bytes) -> Any:
        text = stored.decode()
        try:
            return parse(text)
        except ValueError:
            # The column then holds a mixture, or is text throughout: both are told as such further on.
            return text

    return convert


def _instant(text: str) -> datetime:
    instant = datetime.fromisoformat(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


# The module keeps these for the process; only a connection that asks for PARSE_DECLTYPES uses them.
sqlite3.register_converter("DATE", _declared(date.fromisoformat))
sqlite3.register_converter("DATETIME", _declared(_instant))
sqlite3.register_converter("TIMESTAMP", _declared(_instant))
sqlite3.register_converter("BOOLEAN", _declared(lambda text: {"0": False, "1": True}.get(text, text)))


def read(query: Query) -> Iterator[pl.DataFrame]:
    """The rows of a query in canonical batches, the first one empty, each column typed by the values seen in it.

    Raises:
        WarehouseError: There is no such file, it is no database, or SQLite refuses the query.
        TransientError: A writer holds the file for longer than a second.
        SchemaMismatch: A wanted column mixes text and numbers or holds bytes, a name occurs twice, or a key column is
            missing.
    """
    query.database.existing_file()
    uri = f"file:{quote(query.database.path)}?mode=rw"
    with (
        query.database.translated(query.where),
        # The generator may be closed by another thread than the one that read from it, never by two at a time.
        closing(
            sqlite3.connect(uri, timeout=1, uri=True, check_same_thread=False, detect_types=sqlite3.PARSE_DECLTYPES)
        ) as connection,
    ):
        connection.execute("PRAGMA query_only = ON")
        yield from _stream(connection, query)


def _stream(connection: sqlite3.Connection, query: Query) -> Iterator[pl.DataFrame]:
    values = {name: _text(value) for name, value in (query.values() | query.page.span.values).items()}
    names = _columns(connection, query, values)
    yield frame_of(names, [], query.where, query.page.columns)
    names = query.page.given(names)
    with closing(connection.execute(query.sql(_marker, _TEXT_ORDER), values)) as cursor:
        while rows := cursor.fetchmany(query.page.batch_rows):
            yield frame_of(names, rows, query.where, query.page.columns)


def _columns(connection: sqlite3.Connection, query: Query, values: Mapping[str, Value]) -> Sequence[str]:
    # Unknown names in double quotes are text to SQLite: ORDER BY would take a missing key for a constant.
    sql = f"SELECT * FROM (\n{query.statement.render(_marker)}\n) LIMIT 0"
    with closing(connection.execute(sql, values)) as cursor:
        names = [column[0] for column in cursor.description]
    # Around a subquery SQLite renames the second `a` to `a:1`.
    if doubled := [match[1] for name in names if (match := re.fullmatch(r"(.+):\d+", name)) and match[1] in names]:
        raise SchemaMismatch(f"{query.where} gives column {doubled[0]} twice. Name every column once, with AS.")
    query.page.check(names, query.where)
    return names


def _marker(name: str) -> str:
    return f":{name}"


def _text(value: Value) -> Value:
    """A date or instant as text, any other value as it is."""
    if not isinstance(value, date):
        return value
    if not isinstance(value, datetime):
        return value.isoformat()
    naive = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    return naive.isoformat(" ")
