"""The warehouse: transactions, bulk loads, and the tables that predictions pass through on their way out.

Rows are staged in a table of the run's own and move to the output table in one transaction, by DELETE of the
interval and INSERT … SELECT. That is chosen over attaching partitions because it is one path for every database, for
a table the user made, for the first publish and the tenth, and for any number of intervals; it never asks for a lock
that a reader would wait for. Where output tables are Delta tables, the rows go from there into one commit of such a
table's log.
"""

from __future__ import annotations

from batchscore.database import Database
from batchscore.warehouse.delta import Lake, Sending
from batchscore.warehouse.tables import Narrow, Output, OutputColumn
from batchscore.warehouse.transaction import Backend, Transaction, Warehouse

__all__ = ["Lake", "Narrow", "Output", "OutputColumn", "Sending", "Transaction", "Warehouse", "open_warehouse"]


def open_warehouse(database: Database, *, read_only: bool = False, delta_url: str | None = None) -> Warehouse:
    """Connect to the warehouse; close it, or use it as a context manager.

    Args:
        database: Where it is. An embedded file is made when missing, and its folder too, unless `read_only`.
        read_only: For verbs that only look. A file that is not there reads as an empty warehouse.
        delta_url: The folder or bucket in which output tables are Delta tables; None for tables of the database.

    Raises:
        UsageError: There is no such dialect, its driver is not installed, or that for Delta is not.
        WarehouseError: Login, privilege, or a file that is no database.
        TransientError: The server does not answer, or another process has the file open.
    """
    lake = None if delta_url is None else Lake.at(delta_url)
    return Warehouse(database, _backend(database, read_only), lake)


def _backend(database: Database, read_only: bool) -> Backend:
    # Imported on demand: a process talks to one database, and each driver takes a while to import.
    match database.dialect:
        case "duckdb":
            from batchscore.warehouse.duckdb import DuckDB

            return DuckDB(database, read_only=read_only)
        case "postgresql":
            from batchscore.warehouse.postgres import Postgres

            return Postgres(database, read_only=read_only)
        case "sqlite":
            from batchscore.warehouse.sqlite import SQLite

            return SQLite(database, read_only=read_only)
        case _:
            from batchscore.warehouse.anysql import AnySQL

            return AnySQL(database, read_only=read_only)
