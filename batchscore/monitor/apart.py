"""Whether a classifier can tell rows from other rows by all columns together: what each column for itself hides.

Columns that are shuffled against one another, or that no longer go together, keep every distribution and so every
metric of `batchscore.drift`. Lopez-Paz and Oquab, "Revisiting classifier two-sample tests", ICLR 2017.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist
from time import monotonic

import numpy as np
import numpy.typing as npt
import polars as pl

from batchscore.ahead import ahead
from batchscore.drift import MINIMUM_ROWS, Drift
from batchscore.interval import Interval
from batchscore.model.bundle import Bundle
from batchscore.model.sample import HASH, lowest, merged, sampled_columns
from batchscore.schema import Schema
from batchscore.sources import Source

__all__ = ["ALL_COLUMNS", "Apart", "Samples", "told_apart"]

ALL_COLUMNS = "*"
"""What stands for the column where a metric is of all of them."""

_FOLDS = 4
_MOST_TEXTS = 50
# Four weeks of 10,000 rows of 30 columns.
_BYTES_KEPT = 128 << 20

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Apart:
    """How well rows are told from others.

    Attributes:
        drift: The metric `domain_auc`, of all columns: the chance that of one row of either side the classifier names
            the right one as current; 0.5 where they cannot be told apart. Measured on rows that it was not fitted on.
        by: The columns that it goes by where it moved, the strongest first, at most three.
    """

    drift: Drift
    by: tuple[str, ...]


@dataclass(frozen=True)
class Samples:
    """Rows of a job's source, and of the training rows of its bundle: see `batchscore.model.sample`.

    Attributes:
        source: Where the rows of intervals come from.
        bundle: What declares them, and keeps a sample of the rows that it was trained on.
        rows: How many of each side at most.
        kept: Samples that were read, by interval; the oldest goes first. A backfill meets each interval often.
    """

    source: Source
    bundle: Bundle
    rows: int
    kept: dict[Interval, pl.DataFrame] = field(default_factory=dict)

    def of(self, intervals: Iterable[Interval], until: float = math.inf) -> pl.DataFrame:
        """The sample of some intervals, shape `(at most rows, columns)`; neither key, instants nor private columns.

        Args:
            intervals: Each is read from the source, unless it is kept.
            until: When to give up between two batches, by `time.monotonic`.

        Raises:
            TimeoutError: Not all was read in time.
            SchemaMismatch: A column is missing or cannot be cast exactly.
            WarehouseError: The database or file refuses.
            TransientError: The database cannot be reached.
        """
        return merged([self._of(interval, until) for interval in intervals], self.rows).drop(HASH)

    @property
    def training(self) -> pl.DataFrame | None:
        """The sample that training kept, or as much of it as is asked for; None where it kept none."""
        sample = self.bundle.sample
        return None if sample is None else sample.head(self.rows)

    @cached_property
    def columns(self) -> list[str]:
        """What is kept of each row."""
        return sampled_columns(self.bundle.input_reference.layouts, self.bundle.key)

    @cached_property
    def _schema(self) -> Schema:
        wanted = {*self.bundle.key, *self.columns}
        return Schema(tuple(column for column in self.bundle.schema if column.name in wanted))

    def _of(self, interval: Interval, until: float) -> pl.DataFrame:
        if interval not in self.kept:
            self.kept[interval] = self._read(interval, until)
            while len(self.kept) > 1 and sum(each.estimated_size() for each in self.kept.values()) > _BYTES_KEPT:
                del self.kept[next(iter(self.kept))]
        return self.kept[interval]

    def _read(self, interval: Interval, until: float) -> pl.DataFrame:
        schema, key = self._schema, self.bundle.key
        held = lowest(schema.empty(), self.columns, key, self.rows)
        # In a thread of its own, so that a signal need not wait for a driver that waits for its database.
        with ahead(self.source.batches(interval, columns=schema.types)) as batches:
            for batch in batches:
                rows = schema.conform(batch, self.source.where)
                held = merged([held, lowest(rows, self.columns, key, self.rows)], self.rows).rechunk()
                if monotonic() > until:
                    raise TimeoutError(
                        f"{self.source.where} took too long to give the rows that a classifier is to tell apart. Lower "
                        "[drift] sample or name fewer references in against, or let the query give them faster."
                    )
        return held


def told_apart(current: pl.DataFrame, reference: pl.DataFrame, *, alpha: float, band: float) -> Apart:
    """Fit a classifier that tells rows from others, and measure it on rows that it has not seen.

    Boosted trees, in four folds. NULLs are told by. Text counts by which of the 50 most common values it is, and by
    nothing where it is none of them.

    Args:
        current: Rows, shape `(rows, columns)`; no instants, by which any two days are told apart.
        reference: Rows of the same columns and types.
        alpha: The chance of a floor above the value without drift.
        band: The area at which it counts.
    """
    n, m = current.height, reference.height
    if min(n, m) < MINIMUM_ROWS or not current.columns:
        return Apart(Drift(ALL_COLUMNS, "domain_auc", None, None, None, band, "not enough data", n, m), ())
    # scikit-learn takes a second to import, and few jobs come here.
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    values = _numbers(pl.concat([current, reference]))
    side = np.repeat([1, 0], [n, m])
    scores, models = np.empty(n + m), []
    for fitted, held in StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(values, side):
        model = HistGradientBoostingClassifier(max_iter=40, max_leaf_nodes=15, early_stopping=False, random_state=0)
        model.fit(values[fitted], side[fitted])
        scores[held] = model.predict_proba(values[held])[:, 1]
        models.append((model, held))
    value = float(roc_auc_score(side, scores))
    # Mann and Whitney's normal law for rows that do not differ.
    law = NormalDist(0.5, math.sqrt((n + m + 1) / (12 * n * m)))
    floor, p_value = law.inv_cdf(1 - alpha), 1 - law.cdf(value)
    moved = value >= band and value > floor
    drift = Drift(ALL_COLUMNS, "domain_auc", value, floor, p_value, band, "moved" if moved else "steady", n, m)
    if not moved:
        return Apart(drift, ())
    losses = np.zeros(values.shape[1])
    rng = np.random.default_rng(0)
    for model, held in models:
        area = roc_auc_score(side[held], scores[held])
        for column in range(values.shape[1]):
            blurred = values[held]
            blurred[:, column] = rng.permutation(blurred[:, column])
            losses[column] += area - roc_auc_score(side[held], model.predict_proba(blurred)[:, 1])
    strongest = np.argsort(-losses, kind="stable")[:3]
    return Apart(drift, tuple(current.columns[at] for at in strongest if losses[at] > 0))


def _numbers(rows: pl.DataFrame) -> Floats:
    """Shape `(rows, columns)`, finite: NULL and NaN are a number below all others, infinities the largest there are."""
    columns = [_codes(series) if series.dtype == pl.String() else series.cast(pl.Float64) for series in rows]
    values = np.column_stack([column.fill_null(math.nan).to_numpy() for column in columns])
    values = np.nan_to_num(values, nan=math.nan)
    lowest = np.nan_to_num(np.fmin.reduce(values, axis=0))
    known: Floats = np.where(np.isnan(values), lowest - np.abs(lowest) - 1, values)
    return known


def _codes(texts: pl.Series) -> pl.Series:
    known = texts.drop_nulls()
    # By count and then by value, for the same codes at every call.
    common = known.value_counts(name="rows").sort(["rows", texts.name], descending=[True, False])[texts.name]
    ranks = {text: float(rank) for rank, text in enumerate(common.head(_MOST_TEXTS))}
    return texts.replace_strict(ranks, default=float(_MOST_TEXTS), return_dtype=pl.Float64).set(texts.is_null(), None)
