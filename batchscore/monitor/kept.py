"""Rows of the ledger that monitoring keeps by the hundred, in bulk: one by one they take longer than to work out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import sqlalchemy as sa

from batchscore import ledger
from batchscore.sqltypes import TEXT, Instant
from batchscore.warehouse import Transaction

__all__ = ["keep_performance", "load"]

_TYPES: Mapping[type, pl.DataType] = {
    sa.String: pl.String(),
    type(TEXT): pl.String(),
    sa.Double: pl.Float64(),
    sa.BigInteger: pl.Int64(),
    sa.Boolean: pl.Boolean(),
    Instant: pl.Datetime("us", "UTC"),
}


def load(tx: Transaction, table: sa.Table, rows: Sequence[Sequence[Any]]) -> None:
    """Append rows, with all columns of a table of the ledger in their order; none is no statement."""
    if rows:
        # By columns, which takes polars a third of the time that rows do.
        columns = list(zip(*rows, strict=True))
        tx.load(table, pl.DataFrame(columns, schema={each.name: _TYPES[type(each.type)] for each in table.columns}))


def keep_performance(tx: Transaction, which: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Put rows, none too, in place of all that are there of a job, cohort, window, version and kind.

    Args:
        tx: An open transaction.
        which: The values of these columns.
        rows: The other columns' values.
    """
    ledger.forget_performance(tx.connection, which)
    names = [column.name for column in ledger.PERFORMANCE.columns]
    load(tx, ledger.PERFORMANCE, [[{**which, **row}[name] for name in names] for row in rows])
