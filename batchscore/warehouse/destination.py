"""Where output tables are: tables of the warehouse's database, unless a lake has them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Protocol

import polars as pl
import sqlalchemy as sa

from batchscore.errors import OutputMismatch, WarehouseError
from batchscore.interval import Interval
from batchscore.schema import dtype_of
from batchscore.warehouse.tables import LiveColumn, Narrow, Output, check_live, named, schema_beside

if TYPE_CHECKING:
    from batchscore.warehouse.transaction import Transaction, Warehouse

__all__ = ["Destination", "Tables"]


class Destination(Protocol):
    """What differs between the places of output tables; how rows get there, see `batchscore.run.publish`."""

    def full_name(self, tx: Transaction, table: str) -> str:
        """The one name that the ledger knows an output table by; it holds a slash where no SQL reaches it."""

    def called(self, table: str) -> str:
        """What to call an output table in a message."""

    def stage_schema(self, table: str) -> str | None:
        """The schema that stages of an output table lie in; None is the default one."""

    def prepare(self, warehouse: Warehouse, output: Output) -> dict[str, Narrow]:
        """See `Warehouse.prepare`."""

    def check(self, warehouse: Warehouse, output: Output) -> bool:
        """See `Warehouse.check`."""

    def missing_privileges(self, warehouse: Warehouse, table: str) -> list[str]:
        """See `Warehouse.missing_privileges`."""

    def published(self, warehouse: Warehouse, output: Output, window: Interval, runs: Collection[str]) -> pl.DataFrame:
        """See `Warehouse.published`."""


class Tables:
    """Tables of the warehouse's own database, which commit with the ledger."""

    def full_name(self, tx: Transaction, table: str) -> str:
        return tx.backend.full_name(tx.connection, named(table))

    def called(self, table: str) -> str:
        return table

    def stage_schema(self, table: str) -> str | None:
        return schema_beside(table)

    def prepare(self, warehouse: Warehouse, output: Output) -> dict[str, Narrow]:
        table, backend = output.sql_table(), warehouse.backend
        with warehouse.begin(f"the output table {output.table}") as tx:
            if not _columns(tx, table):
                tx.create(table)
                for index in backend.indexes(table):
                    index.create(tx.connection, checkfirst=True)
            return check_live(output, backend.columns(tx.connection, table))

    def check(self, warehouse: Warehouse, output: Output) -> bool:
        with warehouse.begin(f"the output table {output.table}") as tx:
            live = _columns(tx, output.sql_table())
        if live:
            check_live(output, live)
        return bool(live)

    def missing_privileges(self, warehouse: Warehouse, table: str) -> list[str]:
        with warehouse.begin("privileges") as tx:
            return warehouse.backend.missing_privileges(tx.connection, named(table))

    def published(self, warehouse: Warehouse, output: Output, window: Interval, runs: Collection[str]) -> pl.DataFrame:
        table = output.sql_table()
        started = sa.and_(table.c.interval_start >= window.start, table.c.interval_start < window.end)
        ours = sa.select(*(table.c[column.name] for column in output.columns)).where(started, table.c.run_id.in_(runs))
        schema = {column.name: dtype_of(column.type) for column in output.columns}
        with warehouse.begin("published predictions") as tx:
            rows = [tuple(row) for row in tx.connection.execute(ours).all()]
        return pl.DataFrame(rows, schema=schema, orient="row")


def _columns(tx: Transaction, table: sa.Table) -> dict[str, LiveColumn]:
    """The live columns of the output table; none where it can be made."""
    live = tx.backend.columns(tx.connection, table)
    if live and tx.backend.is_fixed(tx.connection, table):
        raise OutputMismatch(
            f"{table.fullname} is a view that rows cannot be deleted from and inserted into. Name a table in "
            "[output] table. Nothing was written."
        )
    # Where names are folded, and how, is the database's affair.
    if not live and table.schema and not _among(table.schema, tx.backend.schemas(tx.connection)):
        raise WarehouseError(
            f"the table {table.fullname} cannot be made: there is no schema {table.schema}. Create it, or name "
            "another in [output] table."
        )
    return live


def _among(name: str, names: Iterable[str]) -> bool:
    return name.casefold() in {each.casefold() for each in names}
