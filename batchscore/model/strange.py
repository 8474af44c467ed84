"""Rows that nobody has seen, made from some that were: for holding two ways to score them against each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

__all__ = ["strange"]

_SEED = 20240229
_UNSEEN = "no category that training saw"
# Shares of the values, where a row has any.
_MISSING, _STRANGE = 0.1, 0.05


def strange(features: pl.DataFrame, count: int) -> Iterator[pl.DataFrame]:
    """Frames of so many rows each, the same ones for the same features, each stranger than the one before.

    - Every column's values, drawn each by itself.
    - Numbers between those values too, and beyond them.
    - NULLs and texts that are in no column besides, in half of the rows. Not every pipeline takes these.

    Args:
        features: At least one row, shape `(rows, features)`.
        count: How many rows a frame has.
    """
    rng = np.random.default_rng(_SEED)
    drawn = [series.gather(rng.integers(0, len(series), count)) for series in features.iter_columns()]
    yield pl.DataFrame(drawn)
    moved = [_moved(series, features[series.name], rng) for series in drawn]
    yield pl.DataFrame(moved)
    yield pl.DataFrame([_odd(series, rng) for series in moved])


def _moved(drawn: pl.Series, seen: pl.Series, rng: np.random.Generator) -> pl.Series:
    """The numbers moved towards another of the column, or past it."""
    if not drawn.dtype.is_numeric():
        return drawn
    other = seen.gather(rng.integers(0, len(seen), len(drawn)))
    by = pl.Series(rng.choice([0.0, 1.0, -0.5, 1.5], len(drawn), p=[0.3, 0.5, 0.1, 0.1]) * rng.random(len(drawn)))
    moved = drawn.cast(pl.Float64) + (other.cast(pl.Float64) - drawn.cast(pl.Float64)) * by
    if drawn.dtype.is_float():
        return moved.cast(drawn.dtype)
    return moved.fill_nan(None).round().cast(drawn.dtype, strict=False)


def _odd(series: pl.Series, rng: np.random.Generator) -> pl.Series:
    upper = np.arange(len(series)) % 2 == 1
    if series.dtype == pl.String():
        unseen = pl.Series(upper & (rng.random(len(series)) < _STRANGE))
        series = series.set(unseen, _UNSEEN)
    missing = pl.Series(upper & (rng.random(len(series)) < _MISSING))
    return pl.select(pl.when(~missing).then(series).alias(series.name)).to_series()
