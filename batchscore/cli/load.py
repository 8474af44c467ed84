"""Putting the demo's tables into a warehouse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import sqlalchemy as sa

from batchscore.database import Database
from batchscore.errors import UsageError
from batchscore.warehouse import Transaction, open_warehouse

__all__ = ["load"]

TYPES: dict[pl.DataType, sa.types.TypeEngine[Any]] = {
    pl.Boolean(): sa.Boolean(),
    pl.Int64(): sa.BigInteger(),
    pl.Int32(): sa.Integer(),
    pl.Float64(): sa.Double(),
    pl.String(): sa.Text(),
    pl.Date(): sa.Date(),
    pl.Datetime("us", "UTC"): sa.DateTime(timezone=True),
}


def load(database: Database, tables: Mapping[str, pl.DataFrame]) -> dict[str, int]:
    """Write tables into a warehouse's default schema, all or none, and return their row counts.

    A table that is there with all its rows is left as it is.

    Raises:
        UsageError: A table of one of the names holds something else, or the warehouse is neither DuckDB nor Postgres.
    """
    if database.dialect not in ("duckdb", "postgresql"):
        raise UsageError(f"{database}: the demo's queries are written for DuckDB and Postgres.")
    with open_warehouse(database) as warehouse, warehouse.begin("the demo's tables") as tx:
        for name, rows in tables.items():
            table = sa.Table(name, sa.MetaData(), *(sa.Column(c, TYPES[dtype]) for c, dtype in rows.schema.items()))
            if not tx.has_table(name):
                tx.create(table)
                tx.load(table, rows)
            elif not _holds(tx, table, rows):
                raise UsageError(
                    f"{database}: there is a table {name} that holds something else than the demo's. Give the demo a "
                    "database of its own."
                )
    return {name: rows.height for name, rows in tables.items()}


def _holds(tx: Transaction, table: sa.Table, rows: pl.DataFrame) -> bool:
    """Whether a table has the columns, and as many rows."""
    live = tx.connection.execute(sa.select(sa.text("*")).select_from(table).limit(0)).keys()
    count = tx.connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
    return list(live) == rows.columns and count == rows.height
