"""A 64-bit hash of each value of a column, defined here bit by bit, so that no release of a library changes it. Pure.

It finds accidents and spreads values evenly; it keeps nothing secret and withstands no forger.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import polars as pl

__all__ = ["BASE", "HASH", "Words", "hashed", "mixed"]

Words = npt.NDArray[np.uint64]

HASH = "batchscore-splitmix64-1"
"""The name and version of this hash."""

# The finaliser of SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
# An odd number, so that its powers have inverses modulo 2^64.
BASE = 0x9E3779B97F4A7C15
_BLOCK = 1 << 14


def hashed(series: pl.Series, seed: int = 0) -> Words:
    """The hash of each value, shape `(rows,)`; that of a NULL means nothing.

    0.0 and -0.0 are the same, and so is every NaN.

    Args:
        series: Values in any type that `Schema.conform` gives.
        seed: Another gives another hash, of 64 bits.
    """
    return mixed(_words(series) ^ np.uint64(seed))


def _words(series: pl.Series) -> Words:
    if series.dtype == pl.String():
        return _texts(series)
    if series.dtype == pl.Float64():
        numbers = series.fill_null(0.0).to_numpy() + 0.0
        return np.where(np.isnan(numbers), np.nan, numbers).view(np.uint64)
    return series.to_physical().cast(pl.Int64).fill_null(0).to_numpy().view(np.uint64)


def _texts(series: pl.Series) -> Words:
    """A polynomial in the bytes of each text, by sums over many of them at once; then the length."""
    array = series.fill_null("").rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    words = np.diff(ends).astype(np.uint64)
    octets = np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)
    row = 0
    while row < len(words):
        # As many rows as the cache has room for, and one at least: fresh memory costs more than the arithmetic.
        stop = max(int(ends.searchsorted(ends[row] + _BLOCK, "right")) - 1, row + 1)
        bounds = ends[row : stop + 1] - ends[row]
        words[row:stop] += _polynomials(octets[ends[row] : ends[stop]], bounds)
        row = stop
    return words


def _polynomials(octets: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64]) -> Words:
    powers, inverses = _powers(1 << max(len(octets), _BLOCK).bit_length())
    sums = np.zeros(len(octets) + 1, np.uint64)
    np.cumsum((octets.astype(np.uint64) + np.uint64(1)) * powers[: len(octets)], out=sums[1:])
    at = sums[bounds]
    return mixed((at[1:] - at[:-1]) * inverses[bounds[:-1]])


@lru_cache(maxsize=1)
def _powers(count: int) -> tuple[Words, Words]:
    """The powers of the base from 0 on, and their inverses modulo 2^64."""
    powers = np.full((2, count + 1), [[BASE], [pow(BASE, -1, 2**64)]], np.uint64)
    powers[:, 0] = 1
    np.multiply.accumulate(powers, axis=1, out=powers)
    return powers[0], powers[1]


def mixed(words: Words) -> Words:
    """Each word with its bits spread over all of it; different words stay different."""
    words = words ^ (words >> np.uint64(30))
    words *= _FIRST
    words ^= words >> np.uint64(27)
    words *= _SECOND
    words ^= words >> np.uint64(31)
    return words
