"""The flights in a Postgres."""

from __future__ import annotations

import polars as pl
import sqlalchemy as sa
import toy

from batchscore.cli.flights import flight_tables


def load_postgres(url: str) -> None:
    """The three tables, with the types a Postgres warehouse would give them."""
    types = {
        pl.Int64(): sa.BigInteger(), pl.Int32(): sa.Integer(), pl.Float64(): sa.Double(), pl.String(): sa.Text(),
        pl.Date(): sa.Date(), pl.Datetime("us", "UTC"): sa.DateTime(timezone=True),
    }  # fmt: skip
    for name, frame in flight_tables().items():
        toy.load(url, frame, name, {column: types[dtype] for column, dtype in frame.schema.items()})
