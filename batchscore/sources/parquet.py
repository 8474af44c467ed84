"""Rows from Parquet files, local or in an object store, by path or glob, ordered by an in-memory DuckDB."""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date
from urllib.parse import unquote

import duckdb
import polars as pl

from batchscore.database import Database
from batchscore.errors import SchemaMismatch, UsageError, WarehouseError
from batchscore.interval import Calendar, Interval
from batchscore.job import Value
from batchscore.schema import Column, TypeName
from batchscore.sources.duckdb import marker
from batchscore.sources.engine import Engine, fetch, literal
from batchscore.sources.ordered import Ordered
from batchscore.sources.statement import WHOLE, Page, Span, Wanted, identifier

__all__ = ["ParquetSource"]

_ENGINE = Database.at("duckdb:///:memory:")
_FIELD = "interval_start"
# What DuckDB makes of a directory's name, by the declared type; text where there is none.
_HIVE_TYPES: Mapping[TypeName, str] = {"integer": "BIGINT", "date": "DATE"}
_NO_VALUE = ("__hive_default_partition__", "null")


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """Rows of Parquet files.

    Files may differ in their columns' order and width; a column that is not in all of them is left out, so that a
    declared one is missed and not read as NULL. Directories named `key=value` become columns of the type that is
    declared; where none is, of integers or dates if all of them are such, and of text otherwise.

    Attributes:
        path: A path or glob, of local files or of the objects of one bucket; `{interval_start:%Y-%m-%d}` stands for an
            interval's local start.
        where: What the rows are called in messages.
        time_column: The column whose time lies in the interval: a timestamp (UTC where it has no zone), or a date
            of the calendar's zone. None takes every row of the files.
        calendar: The job's way of cutting time.
        tied: Each interval must get rows of its own, as rows to score do. Labels, which are joined by key, need not.
        private: See `Source.private`.
    """

    path: str
    where: str
    time_column: str | None
    calendar: Calendar
    tied: bool = True
    private: Collection[str] = ()

    def __post_init__(self) -> None:
        """Refuse a path that cannot be filled in or reached, and files that nothing ties to an interval.

        Raises:
            UsageError: The path has another field, there is neither `{interval_start}` nor a time column, or see
                `Engine.refuse`.
        """
        Engine.refuse(self.path)
        templated = _has_field(self.path, self.where)
        if self.tied and not templated and self.time_column is None:
            raise UsageError(
                f"{self.where}: {self.path} would be read whole for every interval. Write {{interval_start:%Y-%m-%d}} "
                "into the path, or name the time_column under [source]."
            )

    @property
    def caution(self) -> str | None:
        """Files that a path and a time column do not tie to an interval are refused."""
        return None

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
        """The rows of an interval; see `Source.batches`.

        Raises:
            WarehouseError: No file matches, or a file cannot be read; or an object store refuses.
            TransientError: An object store does not answer, or an object was replaced since it was listed.
            SchemaMismatch: A wanted column has no canonical type, or the key or time column is missing.
            UsageError: The path or the time column is too coarse to tell one interval from the next.
        """
        page = Page(order, limit, batch_rows, columns)
        with self._ordered(interval, page, span) as rows:
            yield from rows.batches()

    def cuts(self, interval: Interval, column: Column, parts: int) -> list[int | str]:
        """Where to cut an interval's rows, by a sample of them; see `Source.cuts`."""
        page = Page((column,), columns={column.name: column.type})
        with self._ordered(interval, page, WHOLE) as rows:
            return [value for (value,) in rows.cuts(parts) if isinstance(value, (int, str))]

    @contextmanager
    def _ordered(self, interval: Interval, page: Page, span: Span) -> Iterator[Ordered]:
        """The files' rows."""
        with _ENGINE.translated(self.where), Engine.reading(self.path, page) as engine:
            with closing(engine.connect()) as connection:
                found = self._files(engine, connection, interval)
                files = self._in_time(found, interval, page.columns)
                engine.look_ahead(connection, files)
                inner, values = self._query(connection, found, files, interval, page, span)
            try:
                yield Ordered(engine.connect, inner, values, page, self.where)
            except duckdb.Error as error:
                raise duckdb.IOException(f"{engine.guilty(files, page, error)} cannot be read: {error}") from None

    def _query(
        self,
        connection: duckdb.DuckDBPyConnection,
        found: Sequence[str],
        files: Sequence[str],
        interval: Interval,
        page: Page,
        span: Span,
    ) -> tuple[str, dict[str, Value]]:
        """The rows of some of the files that were found, of which only the wanted columns are read."""
        listed = ", ".join(map(literal, files))
        # DuckDB would type a directory by what the interval's happen to be called.
        table = f"read_parquet([{listed}], union_by_name = true, hive_types_autocast = false)"
        types = dict(fetch(connection, f"SELECT column_name, column_type FROM (DESCRIBE FROM {table})"))
        partitions = {name: texts for name, texts in _partitions(found).items() if name in types}
        if typed := self._partition_types(partitions, page.columns):
            given = ", ".join(f"{literal(name)}: {type_}" for name, type_ in typed.items())
            table = f"{table[:-1]}, hive_types = {{{given}}})"
            types |= typed
        partial = _partial(connection, listed)
        names = [name for name in types if name not in partial]
        read = [identifier(name) if page.wants(name) else f"NULL AS {identifier(name)}" for name in names]
        query, values, conditions = f"SELECT {', '.join(read)} FROM {table}", dict(span.values), list[str]()
        # Bare text compares by its bytes here, and lets DuckDB leave out row groups.
        if page.order and page.order[0].name in types:
            conditions += span.conditions(identifier(page.order[0].name), marker)
        if self.time_column is not None:
            values["interval_start"], values["interval_end"] = self._bounds(interval, types)
            column = identifier(self.time_column)
            conditions += [f"{column} >= $interval_start", f"{column} < $interval_end"]
        return f"{query} WHERE {' AND '.join(conditions)}" if conditions else query, values

    def _in_time(self, files: list[str], interval: Interval, columns: Wanted) -> list[str]:
        """The files whose directories do not say that all their rows are of other dates; one, if all of them say so."""
        name = self.time_column or ""
        texts = [_directories(file).get(name, "") for file in files]
        dates = all(_reads_as("date", text) or text.lower() in _NO_VALUE for text in texts)
        if not dates or (columns or {}).get(name) not in (None, "date"):
            return files
        first, last = (str(bound) for bound in self._local_dates(interval))
        return [file for file, text in zip(files, texts, strict=True) if first <= text < last] or files[:1]

    def _partition_types(self, found: Mapping[str, set[str]], columns: Wanted) -> dict[str, str]:
        """DuckDB's types of the directories' columns that are more than text."""
        typed = {}
        for name, texts in found.items():
            declared = columns.get(name) if columns else None
            if declared is not None and (odd := [text for text in sorted(texts) if not _reads_as(declared, text)]):
                got = f"a directory {name}={odd[0]}"
                advice = "Name the directories so, or retrain if they have changed for good."
                raise SchemaMismatch.type_of(name, declared, got, self.where, advice)
            guesses = (kind for kind in _HIVE_TYPES if texts and all(_reads_as(kind, text) for text in texts))
            kind = declared or next(guesses, None)
            if kind is not None and kind in _HIVE_TYPES:
                typed[name] = _HIVE_TYPES[kind]
        return typed

    def _bounds(self, interval: Interval, types: dict[str, str]) -> tuple[Value, Value]:
        """The interval's bounds as values of the time column's type."""
        name = self.time_column or ""
        if name not in types:
            advice = "Give the column in the files, or correct time_column in the job file."
            raise SchemaMismatch.missing([name], types, self.where, "[source] time_column names", advice)
        match types[name]:
            case "TIMESTAMP WITH TIME ZONE":
                return interval.start, interval.end
            case "TIMESTAMP" | "TIMESTAMP_NS" | "TIMESTAMP_MS" | "TIMESTAMP_S":
                return interval.start.replace(tzinfo=None), interval.end.replace(tzinfo=None)
            case "DATE":
                return self._local_dates(interval)
        advice = "Give the time_column of [source] one of these types when the files are written."
        raise SchemaMismatch.type_of(name, "timestamp or date", types[name], self.where, advice)

    def _local_dates(self, interval: Interval) -> tuple[Value, Value]:
        first, last = (bound.astimezone(self.calendar.zone) for bound in (interval.start, interval.end))
        if any(self.calendar.instant(bound.date()) != bound for bound in (first, last)):
            raise UsageError(
                f"{self.where}: the time column {self.time_column} holds dates, which cannot tell the rows of "
                f"{interval} from others of its day. Name a timestamp column, or cut intervals by day."
            )
        return first.date(), last.date()

    def _files(self, engine: Engine, connection: duckdb.DuckDBPyConnection, interval: Interval) -> list[str]:
        patterns = list(dict.fromkeys(self._patterns(interval)))
        found = engine.find_all(connection, patterns)
        if not found:
            listed = patterns[0] if len(patterns) == 1 else f"{patterns[0]}, nor any other up to {patterns[-1]}"
            raise WarehouseError(
                f"{self.where}: no file matches {listed}. Check that the files of {interval} have arrived, and the "
                "parquet path under [source]."
            )
        return found

    def _patterns(self, window: Interval) -> Iterator[str]:
        interval = self.calendar.containing(window.start)
        while interval.start < window.end:
            following = self.calendar.containing(interval.end)
            if self.tied and self.time_column is None and self._pattern(interval) == self._pattern(following):
                raise UsageError(
                    f"{self.where}: {self.path} names one file for several intervals, each of which would read it "
                    "whole. Write the interval's start into it in full, or name the time_column under [source]."
                )
            # Without a time column, an interval that reaches beyond the window would bring rows from outside.
            inside = window.start <= interval.start and interval.end <= window.end
            if inside or not self.tied or self.time_column is not None:
                yield self._pattern(interval)
            interval = following

    def _pattern(self, interval: Interval) -> str:
        return self.path.format(**{_FIELD: interval.start.astimezone(self.calendar.zone)})


def _has_field(path: str, where: str) -> bool:
    try:
        fields = [(name, spec) for _, name, spec, _ in string.Formatter().parse(path) if name is not None]
    except ValueError as error:
        raise UsageError(f"{where}: the path {path} cannot be read: {error}. Double a brace that is meant.") from None
    if wrong := [name for name, spec in fields if name != _FIELD or not spec]:
        raise UsageError(
            f"{where}: the path {path} holds {{{wrong[0]}}}. It may hold {{interval_start:%Y-%m-%d}}, with a format as "
            "strftime reads it, and no other field."
        )
    return bool(fields)


def _partitions(files: Sequence[str]) -> dict[str, set[str]]:
    """The values of the directories named `key=value`, by key."""
    found: dict[str, set[str]] = {}
    for folder in {file.rpartition("/")[0] for file in files}:
        for name, value in _directories(f"{folder}/").items():
            found.setdefault(name, set()).update([] if value.lower() in _NO_VALUE else [unquote(value)])
    return found


def _directories(file: str) -> dict[str, str]:
    """The directories named `key=value` of one file, as they are written."""
    parts = (part.partition("=") for part in file.split("/")[:-1])
    return {name: value for name, equals, value in parts if equals}


def _reads_as(type_: TypeName, text: str) -> bool:
    """Whether a directory's text is exactly a value of the type, as far as it can be told before it is read."""
    if type_ == "integer":
        return re.fullmatch(r"-?[0-9]{1,19}", text) is not None and -(2**63) <= int(text) < 2**63
    if type_ == "date":
        return re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) is not None and _is_date(text)
    return True


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _partial(connection: duckdb.DuckDBPyConnection, listed: str) -> list[str]:
    """The columns that some of the files lack."""
    sql = (
        f"SELECT name FROM parquet_schema([{listed}]) GROUP BY name HAVING count(DISTINCT file_name) < "
        f"(SELECT count(DISTINCT file_name) FROM parquet_schema([{listed}]))"
    )
    return [name for (name,) in fetch(connection, sql)]
