"""Rows from every other database that SQLAlchemy speaks to, typed by the values seen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import polars as pl
import sqlalchemy as sa

from batchscore.errors import SchemaMismatch
from batchscore.sources.statement import Page, Query
from batchscore.sqltypes import MYSQL

__all__ = ["frame_of", "read"]

# What makes a session read-only and its time UTC. Elsewhere the transaction is only ever rolled back.
_SETUP = {
    "postgresql": ("SET TRANSACTION READ ONLY", "SET LOCAL TIME ZONE 'UTC'"),
    "mysql": ("SET SESSION TRANSACTION READ ONLY", "SET time_zone = '+00:00'"),
    "mariadb": ("SET SESSION TRANSACTION READ ONLY", "SET time_zone = '+00:00'"),
}
# Text in the order of its bytes, where the database's own order depends on a locale.
_TEXT_ORDER: dict[str, Callable[[sa.ColumnElement[Any]], sa.ColumnElement[Any]]] = {
    "postgresql": lambda text: sa.cast(text, sa.Text).collate("C"),
    "mysql": lambda text: sa.cast(text, sa.LargeBinary),
    "mariadb": lambda text: sa.cast(text, sa.LargeBinary),
    "mssql": lambda text: sa.cast(text, sa.Unicode).collate("Latin1_General_100_BIN2_UTF8"),
}
_NUMBERS = {int, float, Decimal}
# How MySQL's drivers number a TINYINT, a boolean if it is one wide, and a TIMESTAMP, an instant that is shown in the
# session's zone; DATETIME is a local time.
_MYSQL_TINYINT, _MYSQL_TIMESTAMP = 1, 7


def read(query: Query) -> Iterator[pl.DataFrame]:
    """The rows of a query in canonical batches, the first one empty, each column typed by the values seen in it.

    Raises:
        UsageError: The driver of the URL is not installed.
        WarehouseError: The database refuses the login or the query.
        TransientError: The database cannot be reached, or the connection breaks.
        SchemaMismatch: A wanted column has no canonical type, a name occurs twice, or a key column is missing.
    """
    with query.database.translated(query.where):
        engine = query.database.engine(poolclass=sa.NullPool)
        with engine.connect() as connection:
            for statement in _SETUP.get(query.database.dialect, ()):
                connection.exec_driver_sql(statement)
            yield from _stream(connection, query)


def _stream(connection: sa.Connection, query: Query) -> Iterator[pl.DataFrame]:
    inner = sa.text(_escaped(query) + "\n").columns().subquery("batchscore_rows")
    rows: sa.Select[Any] = sa.select(sa.literal_column("*")).select_from(inner)
    values = {name: _in_utc(value) for name, value in query.values().items()}
    with closing(connection.execute(rows.limit(0), values)) as none:
        names: Sequence[str] = list(none.keys())
    query.page.check(names, query.where)
    yield frame_of(names, [], query.where, query.page.columns)
    size = query.page.batch_rows
    streaming = connection.execution_options(stream_results=True, max_row_buffer=size)
    rows = _paged(rows, query.page, query.database.dialect)
    names = query.page.given(names)
    with closing(streaming.execute(rows, values)) as result:
        described = result.cursor.description if result.cursor and query.database.dialect in MYSQL else ()
        for part in result.partitions(size):
            frame = frame_of(names, part, query.where, query.page.columns)
            yield _as_mysql_means(frame, described, query.where)


def _in_utc(value: Any) -> Any:
    # The session's zone is UTC, and a driver may leave a value's own zone out.
    return value.astimezone(UTC) if isinstance(value, datetime) and value.tzinfo else value


def _as_mysql_means(frame: pl.DataFrame, described: Sequence[Sequence[Any]], where: str) -> pl.DataFrame:
    """The columns with the types that the driver's Python values do not show."""
    typed = []
    for name, code, _, width, *_ in described:
        column = frame[name]
        if (code, width) == (_MYSQL_TINYINT, 1) and column.dtype.is_integer():
            if (number := column.filter(~column.is_in([0, 1]).fill_null(value=True))).len():
                hint = f"A TINYINT(1) is read as one: write {name} + 0 AS {name} in the query for a number."
                raise SchemaMismatch.type_of(name, "boolean", f"integer, for instance {number[0]}", where, hint)
            typed.append(column.cast(pl.Boolean))
        elif code == _MYSQL_TIMESTAMP and column.dtype.is_temporal():
            typed.append(column.dt.replace_time_zone("UTC"))
    return frame.with_columns(typed)


def _escaped(query: Query) -> str:
    """The SQL as sa.text reads it: our placeholders are its only ones."""
    text, position, parts = query.statement.text, 0, []
    for name, start in query.statement.placeholders:
        parts += [text[position:start].replace(":", r"\:"), f":{name}"]
        position = start + 1 + len(name)
    return "".join([*parts, text[position:].replace(":", r"\:")])


def _paged(rows: sa.Select[Any], page: Page, dialect: str) -> sa.Select[Any]:
    bytewise = _TEXT_ORDER.get(dialect, _as_it_is)
    forms = [bytewise if column.type == "string" else _as_it_is for column in page.order]
    keys = [form(sa.column(column.name)) for form, column in zip(forms, page.order, strict=True)]
    if page.keys:
        return sa.select(sa.column(page.order[0].name)).select_from(*rows.get_final_froms())
    low, high = page.span.low, page.span.high
    if low is not None:
        above = keys[0] >= forms[0](sa.literal(low))
        rows = rows.where(above if high is not None else sa.or_(above, keys[0].is_(None)))
    if high is not None:
        rows = rows.where(keys[0] < forms[0](sa.literal(high)))
    return rows.order_by(*keys).limit(page.limit)


def _as_it_is(text: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return text


def frame_of(
    names: Sequence[str], rows: Sequence[Sequence[Any]], where: str, wanted: Collection[str] | None = None
) -> pl.DataFrame:
    """Rows of Python values as canonical columns, shape `(rows, names)`; a column of NULLs has the type Null.

    A column that is not among the `wanted` is NULL throughout; None wants all.

    Raises:
        SchemaMismatch: A wanted column mixes types that have no common one, or holds a type outside the seven.
    """
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    return pl.DataFrame(
        [
            _series(name, values if wanted is None or name in wanted else (None,) * len(rows), where)
            for name, values in zip(names, columns, strict=True)
        ]
    )


def _series(name: str, values: Sequence[Any], where: str) -> pl.Series:
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds:
        return pl.Series(name, values, dtype=pl.Null)
    if len(kinds) > 1 and not kinds <= _NUMBERS:
        raise _mixed(name, values, where)
    try:
        return _typed(name, values, kinds)
    except (OverflowError, ValueError, pl.exceptions.PolarsError) as error:
        got = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise SchemaMismatch.type_of(name, "an exact value", got, where, f"Cast it at the source: {error}") from None


def _typed(name: str, values: Sequence[Any], kinds: set[type]) -> pl.Series:
    if kinds <= _NUMBERS and kinds != {int}:
        return pl.Series(name, [_float(value) for value in values], dtype=pl.Float64)
    (kind,) = kinds
    if kind is datetime:
        return _instants(name, values)
    if kind is UUID:
        return pl.Series(name, [None if value is None else str(value) for value in values], dtype=pl.String)
    dtypes: dict[type, Any] = {bool: pl.Boolean, int: pl.Int64, str: pl.String, date: pl.Date}
    if kind not in dtypes:
        raise ValueError(f"{kind.__name__} has no column type here")
    return pl.Series(name, values, dtype=dtypes[kind])


def _float(value: float | Decimal | None) -> float | None:
    if isinstance(value, int) and int(float(value)) != value:
        raise ValueError(f"{value} has no exact float")
    return None if value is None else float(value)


def _instants(name: str, values: Sequence[datetime | None]) -> pl.Series:
    zoned = {value.tzinfo is not None for value in values if value is not None}
    if zoned == {False}:
        return pl.Series(name, values, dtype=pl.Datetime("us"))
    if zoned == {True}:
        utc = [None if value is None else value.astimezone(UTC) for value in values]
        return pl.Series(name, utc, dtype=pl.Datetime("us", "UTC"))
    raise ValueError("some timestamps have a zone and some have none")


def _mixed(name: str, values: Sequence[Any], where: str) -> SchemaMismatch:
    examples: dict[str, Any] = {type(value).__name__: value for value in values if value is not None}
    got = " and ".join(f"{kind}, for instance {value!r}" for kind, value in sorted(examples.items()))
    return SchemaMismatch.type_of(name, "one type", got, where, "Cast it at the source.")
