"""A sample of a job's rows: those whose keys have the lowest hashes, so the same ones in whatever order they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

import numpy as np
import polars as pl

from batchscore.hashing import BASE, hashed, mixed
from batchscore.layout import Layout

__all__ = ["HASH", "lowest", "merged", "sampled_columns"]

HASH = "__batchscore_hash"
"""The column that a sample is taken and merged by. It is of the key, so it is kept nowhere."""


def sampled_columns(layouts: Mapping[str, Layout], key: Sequence[str]) -> list[str]:
    """What is kept of each row: neither the key, nor instants, nor what is private."""
    left_out = {name for name, layout in layouts.items() if layout.kind in ("datetime", "private")}
    return [name for name in layouts if name not in left_out | set(key)]


def lowest(rows: pl.DataFrame, columns: Sequence[str], key: Sequence[str], count: int) -> pl.DataFrame:
    """The sample of some rows, the lowest hash first.

    Args:
        rows: Conforming rows, shape `(rows, columns)`.
        columns: Which are kept.
        key: The columns of a row's identity.
        count: How many rows at most.

    Returns:
        Shape `(at most count, columns)`, and the column `HASH` beside.
    """
    hashes = (hashed(rows[name], place) for place, name in enumerate(key))
    of_rows = reduce(lambda row, column: mixed(row * np.uint64(BASE) + column), hashes)
    return merged([rows.select(columns).with_columns(pl.Series(HASH, of_rows))], count)


def merged(samples: Iterable[pl.DataFrame], count: int) -> pl.DataFrame:
    """The sample of all rows that samples of at least as many were taken of, the lowest hash first."""
    return pl.concat(samples).bottom_k(count, by=HASH).sort(HASH)
