"""The warehouse: transactions, bulk loads, and the tables that predictions pass through on their way out.

Rows are staged in a table of the run's own and move to the output table in one transaction, by DELETE of the
interval and INSERT … SELECT. That is chosen over attaching partitions because it is one path for every database, for
a table the user made, for the first publish and the tenth, and for any number of intervals; it never asks for a lock
that a reader would wait for.
"""

from __future__ import annotations

from batchscore.database import Database
from batchscore.warehouse.tables import Narrow, Output, OutputColumn
from batchscore.warehouse.transaction import Backend, Transaction, Warehouse

__all__ = ["Narrow", "Output", "OutputColumn", "Transaction", "Warehouse", "open_warehouse"]


def open_warehouse(database: Database, *, read_only: bool = False) -> Warehouse:
    """Connect to the warehouse; close it, or use it as a context manager.

    Args:
        database: Where it is. An embedded file is made when missing, and its folder too, unless `read_only`.
        read_only: For verbs that only look. A file that is not there reads as an empty warehouse.

    Raises:
        UsageError: There is no such dialect, or its driver is not installed.
        WarehouseError: Login, privilege, or a file that is no database.
        TransientError: The server does not answer, or another process has the file open.
    """
    return Warehouse(database, _backend(database, read_only))


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
