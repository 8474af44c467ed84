"""A fingerprint of rows that does not depend on their order or on how they are cut into chunks. Pure.

Each row gets a 64-bit hash of its columns' names and values, and the hashes are summed: parts add up to the whole,
and a row that is added, removed or changed moves the sum. The hash is defined here, bit by bit, so that no release of
a library changes it. It finds accidents, not forgeries.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import reduce
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl

__all__ = ["Fingerprint"]

_Words = npt.NDArray[np.uint64]

_MASK = 2**64 - 1
# The finaliser of SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
# An odd number, so that its powers have inverses modulo 2^64.
_BASE = 0x9E3779B97F4A7C15
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


def _joined(row: _Words, column: _Words) -> _Words:
    return _mixed(row * np.uint64(_BASE) + column)


def _column(series: pl.Series) -> _Words:
    seed = np.uint64(int.from_bytes(hashlib.blake2b(series.name.encode(), digest_size=8).digest(), "little"))
    words = _mixed(_words(series) ^ seed)
    if series.null_count():
        words[series.is_null().to_numpy()] = _NULL ^ seed
    return words


def _words(series: pl.Series) -> _Words:
    if series.dtype == pl.String():
        return _texts(series)
    if series.dtype == pl.Float64():
        numbers = series.fill_null(0.0).to_numpy() + 0.0
        return np.where(np.isnan(numbers), np.nan, numbers).view(np.uint64)
    return series.to_physical().cast(pl.Int64).fill_null(0).to_numpy().view(np.uint64)


def _texts(series: pl.Series) -> _Words:
    """A polynomial in the bytes of each text, by sums over all of them at once; then the length."""
    array = series.fill_null("").rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    first, lengths = int(ends[0]), np.diff(ends).astype(np.uint64)
    size = int(ends[-1]) - first
    if not size:
        return lengths
    octets = np.frombuffer(data, np.uint8, size, first).astype(np.uint64) + np.uint64(1)
    sums = np.zeros(size + 1, np.uint64)
    np.cumsum(octets * _powers(_BASE, size), out=sums[1:])
    starts, stops = ends[:-1] - first, ends[1:] - first
    inverses = _powers(pow(_BASE, -1, 2**64), size + 1)
    return _mixed((sums[stops] - sums[starts]) * inverses[starts]) + lengths


def _powers(base: int, count: int) -> _Words:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    np.multiply.accumulate(powers, out=powers)
    return powers


def _mixed(words: _Words) -> _Words:
    words = words ^ (words >> np.uint64(30))
    words *= _FIRST
    words ^= words >> np.uint64(27)
    words *= _SECOND
    words ^= words >> np.uint64(31)
    return words
