"""Which rows are held out, decided before anything is fitted."""

from __future__ import annotations

import numpy as np
import polars as pl

from batchscore.errors import TrainingError
from batchscore.job import Split

__all__ = ["split"]


def split(rows: pl.DataFrame, how: Split) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows to fit on and the rows to test on; every row is in one of them.

    By time the test rows are the last share: all from one instant on, so rows of the same instant stay together. At
    random the share is drawn with the seed, by position.

    Raises:
        TrainingError: One side would be empty, or the time column is not a time, or has NULLs.
    """
    if how.by == "time":
        late = _late(rows, str(how.column), how.test)
    else:
        count = round(rows.height * how.test)
        late = pl.Series(
            np.isin(np.arange(rows.height), np.random.default_rng(how.seed).permutation(rows.height)[:count])
        )
    fit, test = rows.filter(~late), rows.filter(late)
    if fit.is_empty() or test.is_empty():
        raise TrainingError(
            f"the split leaves {fit.height} rows to fit on and {test.height} to test on, of {rows.height} labelled. "
            "Widen the training window, or change [training] split."
        )
    return fit, test


def _late(rows: pl.DataFrame, column: str, share: float) -> pl.Series:
    times = rows[column]
    if not times.dtype.is_temporal() or times.null_count():
        raise TrainingError(f"[training] split: column {column!r} must be a date or timestamp without NULLs.")
    first = times.sort()[-max(1, round(len(times) * share))]
    late: pl.Series = times >= first
    return late
