"""Every other database that SQLAlchemy speaks to, if it takes back what a transaction did that is rolled back.

MariaDB is the one that the tests know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from uuid import uuid4

import polars as pl
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from batchscore.database import Database
from batchscore.errors import OutputMismatch, WarehouseError
from batchscore.sqltypes import MYSQL, TABLE_OPTIONS
from batchscore.warehouse.tables import STAGE_PREFIX, LiveColumn, fetched

__all__ = ["AnySQL"]

_ROWS_A_CALL = 10_000
# Time in UTC; an end to whoever stands still inside a transaction, holding its locks, which MySQL has no word for; a
# value that does not fit refused and not cut; no locks on the gaps between rows.
_MYSQL_SESSION = (
    "SET SESSION time_zone = '+00:00' /*M!100300 , idle_transaction_timeout = 60 */",
    "SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION')",
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
)
_MYSQL_ENGINE = sa.text(
    """
    SELECT t.engine
    FROM information_schema.tables AS t
    JOIN information_schema.engines AS e ON e.engine = t.engine
    WHERE t.table_schema = coalesce(:schema, database()) AND t.table_name = :table AND e.transactions <> 'YES'
    """
)
_MYSQL_VIEW = sa.text(
    """
    SELECT is_updatable
    FROM information_schema.views
    WHERE table_schema = coalesce(:schema, database()) AND table_name = :table
    """
)

_DTYPES: tuple[tuple[tuple[type, ...], pl.DataType], ...] = (
    ((sa.Boolean,), pl.Boolean()),
    ((sa.SmallInteger,), pl.Int16()),
    ((sa.BigInteger,), pl.Int64()),
    ((sa.Integer,), pl.Int32()),
    ((sa.Double,), pl.Float64()),
    ((sa.Date,), pl.Date()),
    ((sa.Text, sa.VARCHAR, sa.NVARCHAR, mysql.MEDIUMTEXT, mysql.LONGTEXT), pl.String()),
)
# Of the texts that are measured in bytes.
_MYSQL_SIZES = {mysql.TEXT: 2**16 - 1, mysql.MEDIUMTEXT: 2**24 - 1}


class AnySQL:
    """The backend of every dialect that has none of its own: plain INSERT, and what SQLAlchemy knows of tables."""

    alone = False

    def __init__(self, database: Database, *, read_only: bool) -> None:
        self._database = database
        self._read_only = read_only
        self.engine = database.engine(hide_parameters=True, max_overflow=-1)
        if database.dialect in MYSQL:
            sa.event.listen(self.engine, "connect", self._on_connect_mysql)

    def _on_connect_mysql(self, raw: Any, _: object) -> None:
        with raw.cursor() as cursor:
            for statement in _MYSQL_SESSION:
                cursor.execute(statement)
            if self._read_only:
                cursor.execute("SET SESSION TRANSACTION READ ONLY")

    def columns(self, connection: sa.Connection, table: sa.Table) -> dict[str, LiveColumn]:
        if connection.dialect.name in MYSQL:
            _refuse_engine(connection, table)
        try:
            described = sa.inspect(connection).get_columns(table.name, table.schema)
        except sa.exc.NoSuchTableError:
            return {}
        return {
            column["name"]: LiveColumn(
                column["type"].compile(connection.dialect),
                _dtypes(column["type"]),
                _is_required(column),
                _length(column["type"]),
                next((size for kind, size in _MYSQL_SIZES.items() if type(column["type"]) is kind), None),
            )
            for column in described
        }

    def full_name(self, connection: sa.Connection, table: sa.Table) -> str:
        return f"{table.schema or sa.inspect(connection).default_schema_name}.{table.name}"

    def load(self, connection: sa.Connection, table: sa.Table, frame: pl.DataFrame) -> None:
        if connection.dialect.name in MYSQL:
            _refuse_not_finite(frame)
        for rows in frame.iter_slices(_ROWS_A_CALL):
            connection.execute(sa.insert(table), rows.to_dicts())

    def rows(
        self, connection: sa.Connection, query: sa.Select[Any], schema: Mapping[str, pl.DataType]
    ) -> Iterator[pl.DataFrame]:
        return fetched(connection, query, schema)

    def tables(self, connection: sa.Connection, schema: str | None) -> list[str]:
        return sa.inspect(connection).get_table_names(schema)

    def schemas(self, connection: sa.Connection) -> list[str]:
        return sa.inspect(connection).get_schema_names()

    def is_fixed(self, connection: sa.Connection, table: sa.Table) -> bool:
        if connection.dialect.name not in MYSQL:
            return False
        found = connection.execute(_MYSQL_VIEW, {"schema": table.schema, "table": table.name})
        return found.scalar_one_or_none() == "NO"

    def may_alter(self, connection: sa.Connection, table: sa.Table) -> bool:
        """Nobody can tell for every database: the first try does."""
        return True

    def indexes(self, table: sa.Table) -> list[sa.Index]:
        return [sa.Index(f"ix_{table.name}"[:63], table.c.interval_start)]

    def lock_tables(self, connection: sa.Connection) -> None:
        """Whoever makes a table that another is making waits for it, or is told so and tries again."""

    def missing_privileges(self, connection: sa.Connection, table: sa.Table) -> list[str]:
        """Nobody can tell for every database: the first run does."""
        return []

    def prove_rollback(self) -> None:
        table = sa.Table(
            f"{STAGE_PREFIX}{uuid4().hex[:20]}", sa.MetaData(), sa.Column("n", sa.Integer), **TABLE_OPTIONS
        )
        with self.engine.begin() as connection:
            table.create(connection)
        try:
            with self.engine.connect() as connection:
                connection.execute(sa.insert(table).values(n=1))
                connection.rollback()
            with self.engine.connect() as connection:
                kept = connection.execute(sa.select(table.c.n)).first()
        finally:
            with suppress(sa.exc.DBAPIError), self.engine.begin() as connection:
                table.drop(connection)
        if kept:
            raise WarehouseError(
                f"{self._database} keeps what a transaction wrote that was rolled back, and readers would see half an "
                "interval. Take autocommit out of its URL where it is there; otherwise it cannot be the warehouse."
            )

    def settle(self) -> None:
        """The server looks after its own log."""

    def close(self) -> None:
        self.engine.dispose()


def _refuse_engine(connection: sa.Connection, table: sa.Table) -> None:
    engine = connection.execute(_MYSQL_ENGINE, {"schema": table.schema, "table": table.name}).scalar_one_or_none()
    if engine:
        raise WarehouseError(
            f"the table {table.fullname} is stored by {engine}, which has no transactions: readers would see half an "
            f"interval. Nothing was written. Say ALTER TABLE {table.fullname} ENGINE = InnoDB."
        )


def _refuse_not_finite(frame: pl.DataFrame) -> None:
    for series in frame.iter_columns():
        if series.dtype.is_float() and (lost := series.filter(~series.is_finite())).len():
            value = "NaN" if lost.is_nan()[0] else "an infinity"
            raise OutputMismatch(
                f"column {series.name} holds {value}, which MySQL and MariaDB have not. Give NULL at the source, or "
                "leave the column out of [output] carry."
            )


def _is_required(column: Any) -> bool:
    filled = column.get("default") is not None or column.get("autoincrement") is True
    return not column.get("nullable", True) and not filled and not column.get("computed") and not column.get("identity")


def _length(type_: sa.types.TypeEngine[Any]) -> int | None:
    length = getattr(type_, "length", None)
    return length if isinstance(length, int) else None


def _dtypes(type_: sa.types.TypeEngine[Any]) -> tuple[pl.DataType, ...]:
    """The Polars types whose every value a column of a reflected type holds."""
    if isinstance(type_, (mysql.DATETIME, mysql.TIMESTAMP)):
        # Without a zone, in a session whose zone is UTC.
        return (pl.Datetime("us"), pl.Datetime("us", "UTC")) if type_.fsp == 6 else ()
    if isinstance(type_, sa.DateTime):
        cut = getattr(type_, "precision", None) is not None
        return () if cut else (pl.Datetime("us", "UTC" if type_.timezone else None),)
    if isinstance(type_, mysql.TINYINT):
        return (pl.Boolean(),) if type_.display_width == 1 else ()
    if getattr(type_, "unsigned", False) or isinstance(type_, (sa.Enum, mysql.SET)):
        return ()
    return next(((dtype,) for kinds, dtype in _DTYPES if isinstance(type_, kinds)), ())
