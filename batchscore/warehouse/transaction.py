"""Transactions against any backend: stage rows, replace an interval, count what is there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, Self

import polars as pl
import sqlalchemy as sa
from sqlalchemy.schema import CreateColumn, CreateTable, DropTable

from batchscore.database import Database
from batchscore.errors import WarehouseError
from batchscore.interval import Interval
from batchscore.logs import Event, log
from batchscore.schema import dtype_of
from batchscore.warehouse.delta import Lake
from batchscore.warehouse.destination import Destination, Tables
from batchscore.warehouse.tables import (
    READS,
    STAGE_PREFIX,
    LiveColumn,
    Narrow,
    Output,
    check_live,
    named,
    refuse_inexact,
    schema_beside,
)

__all__ = ["Backend", "Stamp", "Transaction", "Warehouse"]

Stamp = Mapping[str, str | int | datetime]


class Backend(Protocol):
    """What differs between databases."""

    engine: sa.Engine
    alone: bool
    """Whether the database admits one process."""

    def columns(self, connection: sa.Connection, table: sa.Table) -> dict[str, LiveColumn]:
        """The live table's columns by name; empty where there is no such table."""

    def full_name(self, connection: sa.Connection, table: sa.Table) -> str:
        """One name, schema and all, for a table that has several, there or not."""

    def load(self, connection: sa.Connection, table: sa.Table, frame: pl.DataFrame) -> None:
        """Append the frame to the table inside the connection's transaction, by column name."""

    def rows(
        self, connection: sa.Connection, query: sa.Select[Any], schema: Mapping[str, pl.DataType]
    ) -> Iterator[pl.DataFrame]:
        """What a query without parameters gives, in frames of that schema, of which few are in memory at a time."""

    def tables(self, connection: sa.Connection, schema: str | None) -> list[str]:
        """The names of the tables in a schema; None means the default one."""

    def schemas(self, connection: sa.Connection) -> list[str]:
        """The names of the schemas."""

    def is_fixed(self, connection: sa.Connection, table: sa.Table) -> bool:
        """Whether it is a view that rows can neither be deleted from nor inserted into, as far as this can be told."""

    def may_alter(self, connection: sa.Connection, table: sa.Table) -> bool:
        """Whether the user may change the columns of a table that is there, as far as this can be told."""

    def indexes(self, table: sa.Table) -> list[sa.Index]:
        """Indexes that a new output table gets."""

    def lock_tables(self, connection: sa.Connection) -> None:
        """Let one process at a time create tables; released with the transaction."""

    def missing_privileges(self, connection: sa.Connection, table: sa.Table) -> list[str]:
        """What the user may not do and a run must, in words."""

    def prove_rollback(self) -> None:
        """Refuse a database that keeps what a transaction did that is rolled back.

        Raises:
            WarehouseError: It does.
        """

    def settle(self) -> None:
        """Make what is published durable in the database's main file, where it has a log to fold in."""

    def close(self) -> None:
        """Close every connection."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """An open transaction. `connection` is for the ledger, which shares it."""

    connection: sa.Connection
    backend: Backend
    outputs: Destination

    def has_table(self, name: str) -> bool:
        """Whether a table or view of that name is there, in the default schema unless the name says which."""
        return bool(self.columns(name))

    def columns(self, name: str) -> dict[str, LiveColumn]:
        """The columns of a table or view, by name; none where there is no such."""
        return self.backend.columns(self.connection, named(name))

    def full_name(self, name: str) -> str:
        """The one name, schema and all, that the ledger knows an output table by."""
        return self.outputs.full_name(self, name)

    def create(self, *tables: sa.Table) -> None:
        """Create the tables that are not there; one process at a time does.

        On some databases, MariaDB among them, that commits all that the transaction did before, and lets its locks go.
        """
        self.backend.lock_tables(self.connection)
        for table in tables:
            self.connection.execute(CreateTable(table, if_not_exists=True))

    def stages(self, output_table: str) -> list[str]:
        """The names of all stages beside an output table, by its full name, whichever run's they are."""
        schema = schema_beside(output_table)
        return [name for name in self.backend.tables(self.connection, schema) if name.startswith(STAGE_PREFIX)]

    def drop_stages(self, output_table: str, names: Iterable[str]) -> None:
        """Drop stages beside an output table, by its full name."""
        schema = schema_beside(output_table)
        for name in names:
            self.connection.execute(DropTable(sa.Table(name, sa.MetaData(), schema=schema), if_exists=True))

    def open_stage(self, output: Output, stage: str) -> None:
        """Create the run's stage when it is missing or has not the columns that the output table wants of it.

        See `create` for what that does to the transaction.
        """
        table = self._stage(output, stage)
        live = self.backend.columns(self.connection, table)
        if list(live) != [column.name for column in output.staged]:
            self.drop_stage(output, stage)
            self.create(table)

    def empty_stage(self, output: Output, stage: str) -> None:
        """Delete all rows from the run's stage."""
        self.connection.execute(sa.delete(self._stage(output, stage)))

    def drop_stage(self, output: Output, stage: str) -> None:
        """Drop the run's stage when it is there."""
        self.connection.execute(DropTable(self._stage(output, stage), if_exists=True))

    def stage(self, output: Output, stage: str, narrow: Mapping[str, Narrow], rows: pl.DataFrame) -> None:
        """Append scored rows to the run's stage.

        Args:
            output: The table they are bound for.
            stage: The stage's name.
            narrow: What `Warehouse.prepare` returned.
            rows: `output.staged`, shape `(rows, columns)`.

        Raises:
            OutputMismatch: A value that the live output column would change.
        """
        if rows.height:
            refuse_inexact(rows, narrow, output.table)
            self.backend.load(self.connection, self._stage(output, stage), rows)

    def load(self, table: sa.Table, rows: pl.DataFrame) -> None:
        """Append rows to a table by column name; none is no statement."""
        if rows.height:
            self.backend.load(self.connection, table, rows)

    def staged(self, output: Output, stage: str) -> int | None:
        """How many rows the stage holds for the output table; None where there is no stage."""
        table = self._stage(output, stage)
        if not self.backend.columns(self.connection, table):
            return None
        count = sa.select(sa.func.count()).select_from(table).where(*_bound_for(output, table))
        return int(self.connection.execute(count).scalar_one())

    def replace(self, output: Output, stage: str, stamp: Stamp) -> None:
        """Put the staged rows, stamped, in place of the interval's rows in the output table.

        Raises:
            OutputMismatch: The live table cannot take them exactly, any more.
        """
        check_live(output, self.backend.columns(self.connection, output.sql_table()))
        table, staged = output.sql_table(), self._stage(output, stage)
        self._delete_interval(table, stamp["interval_start"])
        constants = [sa.literal(value, table.c[name].type).label(name) for name, value in stamp.items()]
        columns = (staged.c[column.staged_as or column.name] for column in output.columns)
        rows = sa.select(*columns, *constants).where(*_bound_for(output, staged))
        names = [*(column.name for column in output.columns), *stamp]
        self.connection.execute(sa.insert(table).from_select(names, rows))

    def clear(self, name: str, interval_start: datetime) -> None:
        """Delete an interval's rows from a table of published rows, where it is there and still has such."""
        table = Output(name, ()).sql_table()
        if "interval_start" in self.backend.columns(self.connection, table):
            self._delete_interval(table, interval_start)

    def _stage(self, output: Output, stage: str) -> sa.Table:
        return output.stage_table(stage, self.outputs.stage_schema(output.table))

    def _delete_interval(self, table: sa.Table, start: object) -> None:
        self.connection.execute(sa.delete(table).where(table.c.interval_start == start))


@dataclass(slots=True)
class Warehouse:
    """A connected warehouse. Threads may share it: each transaction has a connection of its own.

    Attributes:
        database: Where it is.
        backend: What speaks to it.
        lake: Where output tables are Delta tables; None where they are tables of the database.
    """

    database: Database
    backend: Backend
    lake: Lake | None = None

    @property
    def outputs(self) -> Destination:
        """Where output tables are."""
        return self.lake or Tables()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def begin(self, where: str = "the warehouse") -> Iterator[Transaction]:
        """A transaction: committed when the block ends, rolled back when it raises.

        Args:
            where: What is being done, for an error's message.

        Raises:
            WarehouseError: The database refused for good.
            TransientError: It may accept later.
        """
        with self.database.translated(where), self.backend.engine.begin() as connection:
            yield Transaction(connection, self.backend, self.outputs)

    def create(self, metadata: sa.MetaData) -> None:
        """Create the tables of `metadata` that are not there.

        Raises:
            WarehouseError: The database does not take back what a transaction did that is rolled back.
        """
        with self.database.translated("the first transaction"):
            self.backend.prove_rollback()
        with self.begin("creating the ledger's tables") as tx:
            missing = [table for table in metadata.sorted_tables if not self.backend.columns(tx.connection, table)]
            if missing:
                tx.create(*missing)

    def complete(self, metadata: sa.MetaData) -> None:
        """Add to the tables of `metadata` that are there the columns that they lack.

        Raises:
            WarehouseError: See `outdated`; or the database refuses.
        """
        for name, columns in self.outdated(metadata).items():
            for column in columns:
                self._add(metadata.tables[name].c[column])

    def outdated(self, metadata: sa.MetaData) -> dict[str, list[str]]:
        """The columns that tables of `metadata` lack, by table, for an earlier version made them; writes nothing.

        Rows that are there can have NULL in each.

        Raises:
            WarehouseError: They cannot, or the user may not add columns; the message names the table and all that it
                lacks.
        """
        found: dict[str, list[str]] = {}
        with self.begin("the ledger's tables") as tx:
            for table in metadata.sorted_tables:
                live = self.backend.columns(tx.connection, table)
                if lacking := [column for column in table.columns if live and column.name not in live]:
                    found[table.name] = [column.name for column in lacking]
                    self._refuse_lack(tx, table, lacking)
        return found

    def _refuse_lack(self, tx: Transaction, table: sa.Table, lacking: Iterable[sa.Column[Any]]) -> None:
        names = ", ".join(column.name for column in lacking)
        lacks = f"{table.name} on {self.database} was made by an earlier version, and lacks {names}"
        if needed := [column.name for column in lacking if not column.nullable]:
            raise WarehouseError(
                f"{lacks}. No row may be without {', '.join(needed)}, so it cannot be added to rows that are there. Go "
                "on with the version that made the table; or have it made anew, without what it held: ALTER TABLE "
                f"{table.name} RENAME TO {table.name}_before, then batchscore migrate."
            )
        if not self.backend.may_alter(tx.connection, table):
            raise WarehouseError(
                f"{lacks}. This user does not own it, and cannot add that. Run batchscore migrate with the role that "
                "does."
            )

    def _add(self, column: sa.Column[Any]) -> None:
        table = column.table
        where = f"adding {column.name} to {table.name}, which an earlier version made (batchscore migrate does)"
        try:
            with self.begin(where) as tx:
                self.backend.lock_tables(tx.connection)
                # Another process may have been at it meanwhile.
                if column.name in tx.columns(table.name):
                    return
                declared = CreateColumn(column).compile(dialect=tx.connection.dialect)
                tx.connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {declared}")
        except WarehouseError:
            # Or it was while this one was, on a database where nothing keeps them apart.
            with self.begin("the ledger's tables") as tx:
                if column.name not in tx.columns(table.name):
                    raise
        log.info(Event.COLUMN_ADDED, table=table.name, column=column.name)

    def prepare(self, output: Output) -> dict[str, Narrow]:
        """Create the output table when it is missing, check it when it is there.

        Returns:
            The live columns that do not hold every value, for `Transaction.stage`.

        Raises:
            WarehouseError: Its schema is missing, or it cannot be made or read.
            OutputMismatch: It takes no rows, or some live column cannot take its values exactly.
        """
        return self.outputs.prepare(self, output)

    def check(self, output: Output) -> bool:
        """Whether the output table exists; writes nothing.

        Raises:
            WarehouseError: Its schema is missing, or it cannot be read.
            OutputMismatch: It takes no rows, or some column cannot take its values exactly.
        """
        return self.outputs.check(self, output)

    def missing_privileges(self, table: str) -> list[str]:
        """What the user may not do and a run that publishes into `table` must, in words; writes nothing."""
        return self.outputs.missing_privileges(self, table)

    def published(self, output: Output, window: Interval, runs: Collection[str]) -> pl.DataFrame:
        """The rows of the output table that these runs have published, of intervals that start in a window.

        Returns:
            The output's columns, shape `(rows, columns)`, in any order of rows.
        """
        return self.outputs.published(self, output, window, runs)

    def staged_rows(self, output: Output, stage: str) -> Iterator[pl.DataFrame]:
        """The rows of a run's stage in frames of some ten thousand, the output's columns, in any order.

        They are those of one instant, and nobody who writes waits for whoever reads them.

        Raises:
            WarehouseError, TransientError: The stage cannot be read.
        """
        table = output.stage_table(stage, self.outputs.stage_schema(output.table))
        query = sa.select(*(table.c[column.name] for column in output.columns))
        schema = {column.name: dtype_of(column.type) for column in output.columns}
        engine = self.backend.engine.execution_options(**{READS: True})
        with self.database.translated(f"the stage {stage}"), engine.begin() as connection:
            yield from self.backend.rows(connection, query, schema)

    def settle(self) -> None:
        """Fold what is committed into the database's main file, where it keeps a log beside it.

        Raises:
            WarehouseError: There is no room for it; what is committed stays committed.
        """
        with self.database.translated("the warehouse"):
            self.backend.settle()

    def close(self) -> None:
        """Close every connection."""
        self.backend.close()


def _bound_for(output: Output, stage: sa.Table) -> list[sa.ColumnElement[bool]]:
    """What a staged row must meet to be published into the output table."""
    return [stage.c[column.staged_as].is_not(None) for column in output.columns if column.staged_as]
