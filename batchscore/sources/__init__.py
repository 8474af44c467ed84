"""Rows in: from a database by SQL or from Parquet files, as chunks in key order, typed as the bundle declares."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol, TypedDict

import polars as pl

from batchscore.ahead import ahead
from batchscore.database import Database
from batchscore.errors import KeyViolation, SchemaMismatch
from batchscore.interval import Calendar, Interval
from batchscore.job import Rows, Value
from batchscore.job import Source as RowsToScore
from batchscore.schema import Column, Schema, TypeName, type_name
from batchscore.sources.statement import WHOLE, Key, Page, Query, Span, Statement, Wanted

if TYPE_CHECKING:
    from batchscore.sources.begun import Begun

__all__ = [
    "WHOLE",
    "Chunk",
    "Key",
    "Reading",
    "Source",
    "Span",
    "SqlSource",
    "open_source",
    "read_chunks",
    "read_frame",
    "reading_of",
]

_KEY_TYPES: tuple[TypeName, ...] = ("integer", "string", "date", "timestamp", "timestamp_tz", "boolean")
_TWICE = "it occurs more than once. Make it unique at the source, or add a column to the key of the job's [source]."
_DISORDER = "it comes behind {}, where the key's declared type puts it before. Cast it at the source to that type."

_NO_KEY = "Give the column at the source, or correct the key in the job file."

# Of an interval's keys so many are looked at, at most, to cut it into parts.
_SAMPLE = 1_000_000

Reader = Callable[[Query], Iterator[pl.DataFrame]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows, to be scored and committed together.

    Attributes:
        rows: The declared columns in the schema's order and types, in ascending key order; at least one row.
        key: The columns that identify a row.
    """

    rows: pl.DataFrame
    key: tuple[str, ...]

    @property
    def low(self) -> Key:
        """The key of the first row."""
        return self.rows.select(self.key).row(0)

    @property
    def high(self) -> Key:
        """The key of the last row."""
        return self.rows.select(self.key).row(-1)

    def behind(self, count: int) -> Chunk | None:
        """What is left of it behind its first `count` rows."""
        rows = self.rows.slice(count)
        return Chunk(rows, self.key) if rows.height else None


class Source(Protocol):
    """Somewhere that rows come from."""

    @property
    def where(self) -> str:
        """What the rows are called in messages: "flight_delay/rows.sql"."""

    @property
    def caution(self) -> str | None:
        """What may be wrong with it, though it is allowed, in words; None where nothing is."""

    @property
    def private(self) -> Collection[str]:
        """Columns of which no message may tell a value."""

    def batches(
        self,
        interval: Interval,
        *,
        order: Sequence[Column] = (),
        limit: int | None = None,
        batch_rows: int = 50_000,
        columns: Wanted = None,
        span: Span = WHOLE,
    ) -> Generator[pl.DataFrame]:
        """The rows of an interval in canonical batches; the first may be empty and only say which columns there are.

        The connection is opened when the first batch is asked for, and closed with the generator.

        Args:
            interval: The rows' time.
            order: The key columns with their declared types, to order by; text goes by its UTF-8 bytes.
            limit: The most rows to give.
            batch_rows: The most rows of a batch.
            columns: The columns whose values are wanted, each with the type it is declared to have, or None where it
                is not; None for all. Every other one comes as NULLs of type Null, whatever its type is.
            span: Of an ordered reading, the part of it that the first key column lies in.

        Raises:
            SchemaMismatch: A wanted column has no canonical type, a name occurs twice, or a key column is missing.
            WarehouseError: The database or file refuses.
            TransientError: The database cannot be reached, or the connection breaks.
        """

    def cuts(self, interval: Interval, column: Column, parts: int) -> list[int | str]:
        """The values of a key column, integers or text, that cut an interval's rows into about equal parts.

        Fewer than `parts - 1` where there are too few values, ascending in the order of the keys; each part begins with
        its value.

        Raises:
            BatchscoreError: See `batches`.
        """


@dataclass(frozen=True, slots=True)
class SqlSource:
    """The rows of a query, whose placeholders have been checked, on a database, as the backend `read` gives them."""

    database: Database
    statement: Statement
    parameters: Mapping[str, Value]
    read: Reader
    private: Collection[str] = ()

    @property
    def where(self) -> str:
        """The query's file, for messages."""
        return self.statement.where

    @property
    def caution(self) -> str | None:
        """See `Statement.caution`."""
        return self.statement.caution

    def batches(
        self,
        interval: Interval,
        *,
        order: Sequence[Column] = (),
        limit: int | None = None,
        batch_rows: int = 50_000,
        columns: Wanted = None,
        span: Span = WHOLE,
    ) -> Generator[pl.DataFrame]:
        """The rows of an interval; see `Source.batches`."""
        page = Page(order, limit, batch_rows, columns, span)
        yield from self.read(Query(self.database, self.statement, self.parameters, interval, page))

    def cuts(self, interval: Interval, column: Column, parts: int) -> list[int | str]:
        """Where to cut an interval's rows; see `Source.cuts`."""
        page = Page((column,), keys=True)
        found = self.read(Query(self.database, self.statement, self.parameters, interval, page))
        return _cuts((frame[column.name] for frame in found if frame.height), parts)


def _cuts(columns: Iterable[pl.Series], parts: int) -> list[int | str]:
    """Values that cut all others into about equal parts, by every so-manieth of them."""
    kept, every = pl.Series(), 1
    for values in columns:
        some = values.drop_nulls().gather_every(every)
        kept = some if kept.is_empty() else kept.append(some)
        while len(kept) > _SAMPLE:
            kept, every = kept.gather_every(2), every * 2
    # Of text too the order is that of its bytes. Before the first value lies no row.
    kept = kept.sort()
    places = (-(-len(kept) * part // parts) for part in range(1, parts))
    found = {kept[place] for place in places if place < len(kept)}
    return sorted(found - {kept[0]} if found else found)


def open_source(rows: Rows, *, database: Database | None, text: str | None, where: str, calendar: Calendar) -> Source:
    """The source that a job names. Nothing is connected to yet.

    Args:
        rows: The job's `[source]` or `[labels]`.
        database: Where the SQL runs; None for Parquet.
        text: The SQL; None for Parquet.
        where: What the rows are called in messages.
        calendar: The job's way of cutting time.

    Raises:
        UsageError: The SQL is not one query that uses the interval and every parameter, or the path cannot be used.
    """
    # Labels are joined to the rows by key, so a table of them without a time will do.
    tied = isinstance(rows, RowsToScore)
    private = getattr(rows, "private", ())
    if rows.parquet is not None:
        from batchscore.sources.parquet import ParquetSource

        return ParquetSource(rows.parquet, where, getattr(rows, "time_column", None), calendar, tied, private)
    if database is None or text is None:
        raise ValueError("a SQL source needs its database and its text")
    statement = Statement.parse(text, where, database.dialect)
    statement.require(rows.parameters, tied=tied)
    return SqlSource(database, statement, rows.parameters, _reader_of(database.dialect), private)


def _reader_of(dialect: str) -> Reader:
    # Imported on demand, as the reader of files is: a job reads from one place, and each driver takes a while.
    match dialect:
        case "postgresql":
            from batchscore.sources.postgres import read
        case "duckdb":
            from batchscore.sources.duckdb import read
        case "sqlite":
            from batchscore.sources.sqlite import read
        case _:
            from batchscore.sources.anysql import read
    return read


def read_chunks(
    source: Source,
    interval: Interval,
    *,
    schema: Schema,
    key: Sequence[str],
    chunk_rows: int,
    on_extra: Callable[[list[str]], None] | None = None,
    span: Span = WHOLE,
    begun: Begun | None = None,
) -> Generator[Chunk]:
    """The rows of an interval in key order, in chunks of exactly `chunk_rows`, the last one shorter.

    Args:
        source: Where they come from.
        interval: Their time.
        schema: What the bundle declares; every chunk has these columns and types, whatever its values are.
        key: The columns that identify a row, in order.
        chunk_rows: Rows in a chunk.
        on_extra: Called once with the columns that the schema does not declare, if there are any.
        span: Which of the rows; keys that occur twice are found where they are in one.
        begun: What is being read already; where it is all this, that is gone on with.

    Raises:
        SchemaMismatch: A column is missing or cannot be cast exactly, or the key is of a type that has no exact order.
        KeyViolation: A key is NULL, occurs twice, or the source's order is not the key's.
    """
    asked = reading_of(schema, key, chunk_rows)
    for column in asked["order"]:
        _check_key_type(column.name, column.dtype, source.where)
    previous = None
    held, told = schema.empty(), on_extra is None
    there = begun.taken(interval, asked) if begun and span == WHOLE else None
    # In a thread: while it waits for the source, the rows before are looked at.
    with (
        SchemaMismatch.unquoted(source.private, source.where),
        there or ahead(source.batches(interval, **asked, span=span)) as batches,
    ):
        for batch in batches:
            if on_extra is not None and not told and (extra := schema.undeclared(batch)):
                on_extra(extra)
                told = True
            held = held.vstack(schema.conform(batch, source.where))
            while len(held) >= chunk_rows:
                chunk, held = held.head(chunk_rows), held.slice(chunk_rows)
                yield _chunk(chunk, previous, key, source.where)
                previous = chunk.select(key).tail(1)
    if len(held):
        yield _chunk(held, previous, key, source.where)


def read_frame(
    source: Source,
    interval: Interval,
    *,
    key: Sequence[str],
    limit: int | None = None,
    columns: Wanted = None,
    on_columns: Callable[[list[str]], None] | None = None,
) -> pl.DataFrame:
    """All rows of a window, shape `(rows, columns)`, sorted by key; for training and labels.

    A column of NULLs alone has the type Null.

    Args:
        source: Where they come from.
        interval: The window.
        key: The columns that identify a row.
        limit: Only so many rows are read, whichever they are.
        columns: The columns whose values are wanted, the key among them, with their types; None for all. See
            `Source.batches`.
        on_columns: Told which columns there are, as soon as that is known; what it raises ends the reading.

    Raises:
        SchemaMismatch: A key column is missing or a float, a wanted column has no canonical type, or one has another
            type from one batch to the next.
        KeyViolation: A key is NULL or occurs twice.
    """
    # In a thread: a signal reaches the main one only between two calls, and a query may take an hour.
    with (
        SchemaMismatch.unquoted(source.private, source.where),
        ahead(source.batches(interval, limit=limit, columns=columns)) as batches,
    ):
        first = list(islice(batches, 1))
        if on_columns is not None and first:
            on_columns(first[0].columns)
        frame = _united([*first, *batches], source.where)
    if missing := [name for name in key if name not in frame.columns]:
        raise SchemaMismatch.missing(missing, frame.columns, source.where, "[source] key names", _NO_KEY)
    for name in key:
        _check_key_type(name, frame.schema[name], source.where)
    frame = frame.sort(key)
    _check_keys(frame.select(key), None, source.where)
    return frame


class Reading(TypedDict):
    """How chunks ask a source for batches; see `Source.batches`."""

    order: Sequence[Column]
    batch_rows: int
    columns: Wanted


def reading_of(schema: Schema, key: Sequence[str], chunk_rows: int) -> Reading:
    """How the rows of a schema are asked for, to be cut into chunks; see `read_chunks`."""
    return {"order": [schema[name] for name in key], "batch_rows": _batch_rows(chunk_rows), "columns": schema.types}


def _batch_rows(chunk_rows: int) -> int:
    """What to ask a source for: reading row by row is slow, a million at once is much memory."""
    return min(max(chunk_rows, 1_000), 50_000)


def _chunk(rows: pl.DataFrame, previous: pl.DataFrame | None, key: Sequence[str], where: str) -> Chunk:
    keys = rows.select(key)
    _check_keys(keys, previous, where)
    return Chunk(rows.rechunk(), tuple(key))


def _check_key_type(name: str, dtype: pl.DataType, where: str) -> None:
    type_ = type_name(dtype)
    # A column of NULLs has no type yet, and is refused for its NULLs.
    if type_ not in _KEY_TYPES and dtype != pl.Null():
        advice = "Its values have no exact text to find a row by: cast the key to one of these at the source."
        raise SchemaMismatch.type_of(name, f"a key of {', '.join(_KEY_TYPES)}", type_ or str(dtype), where, advice)


def _check_keys(keys: pl.DataFrame, previous: pl.DataFrame | None, where: str) -> None:
    """Check that keys, shape `(rows, key columns)`, have no NULL and rise strictly, behind the `previous` one too."""
    for series in keys:
        if series.null_count():
            example = keys.filter(series.is_null()).row(0)
            raise _violation(keys, example, where, f"{series.name} is NULL in it. Leave such rows out at the source.")
    both = keys if previous is None else pl.concat([previous, keys])
    rises = _greater(keys.columns, lambda name: pl.col(name).shift(1))
    falls = both.select((~rises).fill_null(False)).to_series().arg_true()
    if len(falls):
        before, now = both.row(falls[0] - 1), both.row(falls[0])
        raise _violation(keys, now, where, _TWICE if before == now else _DISORDER.format(before))


def _greater(key: Sequence[str], other: Callable[[str], pl.Expr]) -> pl.Expr:
    """Whether a row's key is greater than the one whose columns `other` gives, in lexical order."""
    greater = pl.lit(False)
    for name in reversed(key):
        greater = (pl.col(name) > other(name)) | ((pl.col(name) == other(name)) & greater)
    return greater


def _violation(keys: pl.DataFrame, example: Key, where: str, what: str) -> KeyViolation:
    shown = ", ".join(f"{name} = {value!s}" for name, value in zip(keys.columns, example, strict=True))
    values = [str(value) for value in example]
    return KeyViolation(f"{where}: the key ({shown}): {what}", key=keys.columns, example=values)


def _united(frames: Sequence[pl.DataFrame], where: str) -> pl.DataFrame:
    """Batches as one frame: where one has NULLs only, or integers, the type of the others that have more."""
    if not frames:
        return pl.DataFrame()
    seen = {name: [type_name(frame.schema[name]) for frame in frames] for name in frames[0].columns}
    typed = {name: [type_ for type_ in types if type_] for name, types in seen.items()}
    common = {name: "float" if "float" in types else types[0] for name, types in typed.items() if types}
    schema = Schema(tuple(Column(name, type_, nullable=True) for name, type_ in common.items()))
    return pl.concat([frame.with_columns(schema.conform(frame, where)) for frame in frames])
