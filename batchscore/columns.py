"""The columns of a profile in arrays, the bins of one behind those of another, to merge or compare all at once.

A column at a time, what numpy takes to be called would be most of the work: a night's profiles are small and many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from batchscore.layout import Floats, Layout
from batchscore.profile import ColumnProfile

__all__ = ["GROUPS", "Columns", "Grid"]

# Whole numbers; of what width, numpy's sums leave open.
Counts = NDArray[Any]

GROUPS = 16
"""How many groups the hashes of a sketched column are counted in."""

_TALLIES = ("n", "null", "nan", "pos_inf", "neg_inf")


@dataclass(frozen=True)
class Grid:
    """The layouts of some columns, and where the bins of each are.

    Attributes:
        layouts: By name, in their order.
    """

    layouts: Mapping[str, Layout]

    @cached_property
    def names(self) -> Sequence[str]:
        """The columns."""
        return tuple(self.layouts)

    @cached_property
    def sizes(self) -> NDArray[np.intp]:
        """How many bins each column has, shape `(columns,)`."""
        return np.array([layout.bins for layout in self.layouts.values()], np.intp)

    @cached_property
    def ends(self) -> NDArray[np.intp]:
        """Behind which bin each ends, shape `(columns,)`."""
        return np.cumsum(self.sizes)

    @cached_property
    def starts(self) -> NDArray[np.intp]:
        """At which bin each begins, shape `(columns,)`."""
        return self.ends - self.sizes

    @cached_property
    def column(self) -> NDArray[np.intp]:
        """The place of each bin's column, shape `(bins,)`."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @cached_property
    def sketched(self) -> NDArray[np.bool_]:
        """Which columns are sketched, shape `(columns,)`: text, and private ones that are hashed."""
        return np.array([each.kind == "text" or bool(each.salt) for each in self.layouts.values()], np.bool_)

    @cached_property
    def unseen(self) -> NDArray[np.bool_]:
        """Which bins hold values that training never saw, shape `(bins,)`; none of a kind without such."""
        found = np.zeros(int(self.sizes.sum()), np.bool_)
        for layout, start, end in zip(self.layouts.values(), self.starts, self.ends, strict=True):
            if layout.kind == "integer":
                found[start:end:2] = True
            elif layout.kind == "categorical":
                found[end - 1] = True
        return found

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """The other bins of the columns that have such, shape `(bins,)`."""
        return ~self.unseen & np.logical_or.reduceat(self.unseen, self.starts)[self.column]

    @cached_property
    def possible(self) -> NDArray[np.bool_]:
        """Which bins a value can fall in, shape `(bins,)`: no whole number lies between two that follow one another."""
        found = np.ones(int(self.sizes.sum()), np.bool_)
        for layout, start, end in zip(self.layouts.values(), self.starts, self.ends, strict=True):
            if layout.kind == "integer":
                found[start + 2 : end - 1 : 2] = np.diff(layout.edges) > 1
        return found

    def of_kind(self, *kinds: str) -> NDArray[np.intp]:
        """The places of the columns of some kinds."""
        return np.flatnonzero([layout.kind in kinds for layout in self.layouts.values()])


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What a `Profile` knows of its columns, as far as a comparison asks for it.

    Attributes:
        grid: The columns.
        counts: int64, shape `(bins,)`: those of `ColumnProfile`, column by column.
        sums: float64, shape `(bins,)`; 0 where a column has none.
        groups: int64, shape `(columns, 16)`: the buckets of its sketch, grouped; 0 where it has none.
        tallies: int64, shape `(5, columns)`: `n`, `null`, `nan`, `pos_inf` and `neg_inf`.
        maximum: float64, shape `(columns,)`, NaN where there is none.
        mean: The same.
        m2: float64, shape `(columns,)`.
    """

    grid: Grid
    counts: Counts
    sums: Floats
    groups: Counts
    tallies: Counts
    maximum: Floats
    mean: Floats
    m2: Floats

    @classmethod
    def of(cls, columns: Sequence[ColumnProfile], grid: Grid) -> Self:
        """The columns of the grid, in its order; each was counted against its layout there."""
        nothing = {size: np.zeros(size) for size in set(grid.sizes.tolist())}
        groups = np.zeros((len(columns), GROUPS), np.int64)
        for place in np.flatnonzero(grid.sketched).tolist():
            if sketch := columns[place].sketch:
                groups[place] = sketch.buckets.reshape(GROUPS, -1).sum(1)
        moments: list[Any] = [(each.maximum, each.mean, each.m2) for each in columns]
        return cls(
            grid,
            _joined([each.counts for each in columns], np.int64),
            _joined([each.sums if len(each.sums) else nothing[len(each.counts)] for each in columns], np.float64),
            groups,
            np.array([[getattr(each, name) for each in columns] for name in _TALLIES], np.int64),
            *np.array(moments, np.float64).reshape(-1, 3).T,
        )

    @classmethod
    def merged(cls, several: Sequence[Columns]) -> Columns:
        """Of all rows together: as `Profile.merge` of the first and the second, of that and the third, and so on."""
        first, *others = several
        if not others:
            return first
        with np.errstate(over="ignore", invalid="ignore"):
            finite, mean, m2 = first.finite, first.mean, first.m2
            for each in others:
                mean, m2 = _chan(finite, mean, m2, each)
                finite = finite + each.finite
            return Columns(
                first.grid,
                np.sum([each.counts for each in several], axis=0),
                np.sum([each.sums for each in several], axis=0),
                np.sum([each.groups for each in several], axis=0),
                np.sum([each.tallies for each in several], axis=0),
                np.fmax.reduce([each.maximum for each in several], axis=0),
                mean,
                m2,
            )

    @property
    def n(self) -> Counts:
        """Rows, shape `(columns,)`."""
        rows: Counts = self.tallies[0]
        return rows

    @property
    def finite(self) -> Counts:
        """Rows that hold a value, shape `(columns,)`."""
        rows: Counts = self.tallies[0] - self.tallies[1:].sum(0)
        return rows

    @property
    def empty(self) -> Counts:
        """Rows without a value, NULL or NaN, shape `(columns,)`."""
        rows: Counts = self.tallies[1] + self.tallies[2]
        return rows

    @property
    def outside(self) -> Counts:
        """Rows in the outermost bins and beyond, infinities among them, shape `(columns,)`."""
        starts, ends = self.grid.starts, self.grid.ends
        rows: Counts = self.counts[starts] + self.counts[ends - 1] + self.tallies[3] + self.tallies[4]
        return rows

    @property
    def std(self) -> Floats:
        """The standard deviation, shape `(columns,)`; NaN where there is none. See `ColumnProfile.std`."""
        finite = self.finite
        return np.where((finite > 1) & ~np.isnan(self.mean), np.sqrt(self.m2 / np.maximum(finite - 1, 1)), np.nan)

    @property
    def outer(self) -> Counts:
        """Rows per bin, shape `(bins,)`, an infinity in the outermost one; NULL and NaN left out."""
        counts = self.counts.copy()
        counts[self.grid.starts] += self.tallies[4]
        counts[self.grid.ends - 1] += self.tallies[3]
        return counts


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _chan(finite: Counts, mean: Floats, m2: Floats, other: Columns) -> tuple[Floats, Floats]:
    """As the merge of `ColumnProfile`, where the larger side leads."""
    theirs = other.finite
    swap = (theirs > finite) | ((theirs == finite) & (other.mean > mean))
    (large, small), (first, second), (one, two) = (
        (np.where(swap, b, a), np.where(swap, a, b)) for a, b in ((finite, theirs), (mean, other.mean), (m2, other.m2))
    )
    share, delta = small / np.maximum(large + small, 1), second - first
    there = (small > 0) & ~np.isnan(delta)
    return (
        np.where(there, first + delta * share, first),
        np.where(there, one + two + delta * delta * large * share, one),
    )
