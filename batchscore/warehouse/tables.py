"""The output table and the stage in front of it: their columns, and what a live table's columns can take."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import sqlalchemy as sa

from batchscore.errors import OutputMismatch, WarehouseError
from batchscore.schema import TypeName, dtype_of
from batchscore.sqltypes import TABLE_OPTIONS, TEXT, TIMESTAMP, Instant

__all__ = [
    "READS",
    "STAGE_PREFIX",
    "STAMP",
    "LiveColumn",
    "Narrow",
    "Output",
    "OutputColumn",
    "check_live",
    "fetched",
    "make_folder",
    "named",
    "refuse_inexact",
    "schema_beside",
    "unwritable",
]

STAMP: Mapping[str, TypeName] = {
    "model_name": "string",
    "model_version": "integer",
    "interval_start": "timestamp_tz",
    "scored_at": "timestamp_tz",
    "run_id": "string",
}
"""What every published row carries beside what was staged.

Attributes:
    model_name: The bundle's name in the registry.
    model_version: Its version.
    interval_start: The first instant of the interval that the row belongs to.
    scored_at: One instant for the whole run.
    run_id: The run in the ledger.
"""

STAGE_PREFIX = "batchscore_stage_"
"""What a run's `stage` begins with."""

READS = "batchscore_reads"
"""The execution option of a connection whose transactions only read, for as long as somebody else writes."""

_SQL_TYPES: dict[TypeName, sa.types.TypeEngine[Any]] = {
    "boolean": sa.Boolean(create_constraint=False),
    "integer": sa.BigInteger(),
    "float": sa.Double(),
    "string": TEXT,
    "date": sa.Date(),
    "timestamp": TIMESTAMP,
    "timestamp_tz": Instant(),
}

# Integers go into a narrower or a floating column when every value of theirs does.
_EXACT_BY_VALUE: dict[TypeName, tuple[pl.DataType, ...]] = {"integer": (pl.Int32(), pl.Int16(), pl.Float64())}

_ROWS_A_FRAME = 10_000
# Of what a run stamps its rows with: how long it always is.
_LENGTHS = {"run_id": 36}
# Of a text that is quoted.
_QUOTED = 60


@dataclass(frozen=True, slots=True)
class OutputColumn:
    """A column of the output table and its type here.

    Attributes:
        name: Its name.
        type: Its type.
        staged_as: What it is called in a stage where that is not its name. A row in which the stage has NULL there is
            not published into the table.
    """

    name: str
    type: TypeName
    staged_as: str | None = None


@dataclass(frozen=True, slots=True)
class LiveColumn:
    """A column of a table as the database describes it.

    Attributes:
        declared: The type in the database's own words.
        dtypes: The Polars types whose every value it holds; empty where batchscore knows none.
        required: NOT NULL without a default: an INSERT must name it.
        length: The most characters that it keeps of a text; None where it keeps all.
        size: The same in bytes of UTF-8.
    """

    declared: str
    dtypes: tuple[pl.DataType, ...]
    required: bool = False
    length: int | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Narrow:
    """A live column that does not hold every value of ours.

    Attributes:
        live: The column.
        dtype: The type in which it takes our values.
    """

    live: LiveColumn
    dtype: pl.DataType

    def holds(self, series: pl.Series) -> pl.Series:
        """Which of our values it holds exactly, shape kept, Boolean; NULL always."""
        held = series.cast(self.dtype, strict=False).cast(series.dtype, strict=False).eq_missing(series)
        if self.live.length is not None:
            held &= (series.str.len_chars() <= self.live.length).fill_null(value=True)
        if self.live.size is not None:
            held &= (series.str.len_bytes() <= self.live.size).fill_null(value=True)
        return held


@dataclass(frozen=True, slots=True)
class Output:
    """An output table: the key, the carried columns, the predictions; then the stamp.

    Attributes:
        table: Name, with its schema before a dot where it has one.
        columns: What is staged, in order.
        side: A second table that takes its rows from the same stage: some of these columns, and some `staged_as`.
    """

    table: str
    columns: tuple[OutputColumn, ...]
    side: Output | None = None

    @property
    def all_columns(self) -> tuple[OutputColumn, ...]:
        """Every column of the output table, in order."""
        return (*self.columns, *(OutputColumn(name, type_) for name, type_ in STAMP.items()))

    @property
    def staged(self) -> tuple[OutputColumn, ...]:
        """Every column of a stage, in order."""
        beside = [column for column in self.side.columns if column.staged_as] if self.side else []
        return tuple(OutputColumn(column.staged_as or column.name, column.type) for column in (*self.columns, *beside))

    def sql_table(self) -> sa.Table:
        """The output table for SQLAlchemy."""
        schema, _, bare = self.table.rpartition(".")
        return _table(bare, schema or None, self.all_columns)

    def stage_table(self, name: str, schema: str | None) -> sa.Table:
        """A stage of that name."""
        return _table(name, schema, self.staged)


def _table(name: str, schema: str | None, columns: Sequence[OutputColumn]) -> sa.Table:
    listed = [sa.Column(column.name, _SQL_TYPES[column.type]) for column in columns]
    return sa.Table(name, sa.MetaData(), *listed, schema=schema, **TABLE_OPTIONS)


def named(name: str) -> sa.Table:
    """A table of that name, of which nothing else is known."""
    schema, _, bare = name.rpartition(".")
    return sa.Table(bare, sa.MetaData(), schema=schema or None)


def schema_beside(full_name: str) -> str | None:
    """The schema of the stages of an output table, by its full name; None, the default one, for those of a lake."""
    return None if "/" in full_name else full_name.rpartition(".")[0] or None


def check_live(output: Output, live: Mapping[str, LiveColumn], called: str | None = None) -> dict[str, Narrow]:
    """The columns of the live table that do not hold every value of ours, for `refuse_inexact`.

    Args:
        output: The table as it is to be.
        live: Its columns as they are.
        called: What to call it, where that is not `output.table`.

    Raises:
        OutputMismatch: A column is missing, cannot take its values exactly, or a foreign column must be filled.
    """
    wanted = {column.name: column for column in output.all_columns}
    faults = [_fault(column, live.get(column.name)) for column in output.all_columns]
    faults += [
        f"{name}: is NOT NULL without a default, and batchscore does not fill it"
        for name, column in live.items()
        if name not in wanted and column.required
    ]
    if any(faults):
        listed = "\n".join(f"  {fault}" for fault in faults if fault)
        raise OutputMismatch(
            f"the table {called or output.table} exists, but its columns cannot take these predictions:\n{listed}\n"
            "Alter the table, or name another in [output] table. Nothing was written."
        )
    taken = {name: _accepting(column, live[name]) for name, column in wanted.items()}
    return {
        name: Narrow(live[name], dtype)
        for name, dtype in taken.items()
        if dtype is not None and (dtype != dtype_of(wanted[name].type) or live[name].length or live[name].size)
    }


def _fault(column: OutputColumn, live: LiveColumn | None) -> str | None:
    if live is None:
        return f"{column.name}: want {column.type}, got no such column"
    if _accepting(column, live) is None:
        return f"{column.name}: want {column.type} ({_SQL_TYPES[column.type].compile()}), got {live.declared}"
    if live.length is not None and live.length < (least := _LENGTHS.get(column.name, 0)):
        return f"{column.name}: want room for {least} characters, got {live.declared}"
    return None


def _accepting(column: OutputColumn, live: LiveColumn) -> pl.DataType | None:
    """The type in which the live column takes the column's values exactly; None where it cannot."""
    for dtype in (dtype_of(column.type), *_EXACT_BY_VALUE.get(column.type, ())):
        if dtype in live.dtypes:
            return dtype
    return None


def refuse_inexact(frame: pl.DataFrame, narrow: Mapping[str, Narrow], table: str) -> None:
    """Refuse rows that hold a value which the live table would change, or refuse only when it is published.

    Args:
        frame: Some of the output's columns, shape `(rows, columns)`.
        narrow: What `check_live` gave.
        table: The live table's name.

    Raises:
        OutputMismatch: There is such a value, by column and example.
    """
    for name in narrow.keys() & set(frame.columns):
        held = narrow[name].holds(frame[name])
        if not held.all():
            lost = _quoted(frame[name].filter(~held)[0])
            raise OutputMismatch(
                f"{table}: column {name} is {narrow[name].live.declared} and cannot hold {lost} exactly. "
                "Widen the column."
            )


def _quoted(value: object) -> str:
    if isinstance(value, str) and len(value) > _QUOTED:
        return f"{value[:_QUOTED]!r}… ({len(value):,} characters)"
    return repr(value)


def fetched(
    connection: sa.Connection, query: sa.Select[Any], schema: Mapping[str, pl.DataType]
) -> Iterator[pl.DataFrame]:
    """What a query gives, by way of Python's values, in frames of that schema."""
    streamed = connection.execute(query, execution_options={"stream_results": True, "max_row_buffer": _ROWS_A_FRAME})
    with closing(streamed) as result:
        for part in result.partitions(_ROWS_A_FRAME):
            yield pl.DataFrame([tuple(row) for row in part], schema=schema, orient="row")


def make_folder(path: str) -> None:
    """Make the folder of an embedded database where it is missing.

    Raises:
        WarehouseError: It cannot be made.
    """
    if path == ":memory:":
        return
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WarehouseError(f"the folder of {path} cannot be made: {error}. Give another path.") from None


def unwritable(path: str) -> list[str]:
    """What keeps this user from writing an embedded database, in words; a file that is not there needs its folder."""
    file = Path(path)
    if path == ":memory:" or (file.exists() and os.access(file, os.W_OK)):
        return []
    if file.exists():
        return [f"write permission on {file}"]
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    return [] if folder.is_dir() and os.access(folder, os.W_OK) else [f"write permission on {folder}"]
