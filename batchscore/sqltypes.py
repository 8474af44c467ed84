"""SQL types that hold the same values on every database."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

__all__ = ["MYSQL", "TABLE_OPTIONS", "TEXT", "TIMESTAMP", "Instant"]

MYSQL = ("mysql", "mariadb")
"""The dialects of one family: SQLAlchemy names a database by its URL."""

# There, DATETIME has whole seconds and TEXT 64 KB, unless they are asked for more.
TEXT = sa.Text().with_variant(mysql.LONGTEXT(), *MYSQL)
"""A text of any length."""

TIMESTAMP = sa.DateTime(timezone=False).with_variant(mysql.DATETIME(fsp=6), *MYSQL)
"""A local time, in microseconds."""

TABLE_OPTIONS: Mapping[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in MYSQL
    for option, value in {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_bin"}.items()
}
"""Keyword arguments of `sqlalchemy.Table`: transactions, every character, and upper case apart from lower."""


class Instant(sa.types.TypeDecorator[datetime]):
    """An aware instant in microseconds, in UTC on the way in and out, on databases with and without time zones."""

    impl = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), *MYSQL)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name in MYSQL else utc

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
