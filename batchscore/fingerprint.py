"""A fingerprint of rows that does not depend on their order or on how they are cut into chunks. Pure.

Each row gets a 64-bit hash of its columns' names and values, and the hashes are summed: parts add up to the whole,
and a row that is added, removed or changed moves the sum. It finds accidents, not forgeries.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import reduce
from typing import Self

import numpy as np
import polars as pl

from batchscore.hashing import BASE, Words, hashed, mixed

__all__ = ["Fingerprint"]

_MASK = 2**64 - 1
_NULL = np.uint64(0x5851F42D4C957F2D)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """How many rows, and the sum of their hashes modulo 2^64."""

    rows: int = 0
    total: int = 0

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Self:
        """The fingerprint of rows in the types that `Schema.conform` gives, shape `(rows, columns)`.

        0.0 and -0.0 are the same, and so is every NaN; NULL is like no value. Columns count by name and position.
        """
        if frame.is_empty():
            return cls()
        rows = reduce(_joined, (_column(series) for series in frame), np.zeros(frame.height, np.uint64))
        return cls(frame.height, int(rows.sum(dtype=np.uint64)))

    def __add__(self, other: Self) -> Self:
        return type(self)(self.rows + other.rows, (self.total + other.total) & _MASK)

    def __str__(self) -> str:
        return f"{self.total:016x}"

    @classmethod
    def parse(cls, rows: int, text: str) -> Self:
        """What `str` wrote, with its rows."""
        return cls(rows, int(text, 16))


def _joined(row: Words, column: Words) -> Words:
    return mixed(row * np.uint64(BASE) + column)


def _column(series: pl.Series) -> Words:
    seed = int.from_bytes(hashlib.blake2b(series.name.encode(), digest_size=8).digest(), "little")
    words = hashed(series, seed)
    if series.null_count():
        words[series.is_null().to_numpy()] = _NULL ^ np.uint64(seed)
    return words
