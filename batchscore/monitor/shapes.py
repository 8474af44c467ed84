"""Distributions as people look at them: a dozen named bars for a column, counted alike in training and in any run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from batchscore.layout import Layout
from batchscore.profile import ColumnProfile

__all__ = ["Shape"]

_BARS = 12
_MISSING = "NULL or NaN"
# The edge just below a zero.
_NOTHING = 1e-300


@dataclass(frozen=True, slots=True)
class Shape:
    """How the bins of a column's profile make bars.

    Attributes:
        names: What each bar holds, the last one missing values.
        training: Rows of the training rows by bar.
        groups: The bar of each bin, shape `(layout.bins,)`.
    """

    names: tuple[str, ...]
    training: tuple[int, ...]
    groups: npt.NDArray[np.intp]

    @classmethod
    def of(cls, reference: ColumnProfile) -> Self | None:
        """The bars of a column; None where it has no values to show: it is private, or a calendar, or was empty."""
        layout = reference.layout
        counts = reference.counts
        if layout.kind in ("private", "datetime") or not counts.sum():
            return None
        match layout.kind:
            case "boolean":
                groups, names = np.array([0, 1]), ["false", "true"]
            case "categorical":
                groups, names = _categories(layout, counts)
            case "integer" if len(layout.edges) <= _BARS:
                groups, names = _values(layout)
            case "integer":
                groups, names = _numbers(_merged_gaps(counts), layout.edges, whole=True)
            case _:
                groups, names = _numbers(counts, layout.edges, whole=False)
        shape = cls((*names, _MISSING), (), groups)
        return cls(shape.names, shape.counted(reference.to_dict()), groups)

    def counted(self, profile: Mapping[str, Any]) -> tuple[int, ...]:
        """Rows by bar of what `ColumnProfile.to_dict` gave against the same layout."""
        counts = np.array(profile["counts"], np.int64)
        counts[0] += profile.get("neg_inf", 0)
        counts[-1] += profile.get("pos_inf", 0)
        bars = np.bincount(self.groups, counts, len(self.names) - 1).astype(np.int64)
        return (*map(int, bars), profile.get("null", 0) + profile.get("nan", 0))


def _categories(layout: Layout, counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.intp], list[str]]:
    """The most frequent at training by name, the rest together, and what training never saw."""
    largest = np.argsort(-counts[:-1], kind="stable")[: _BARS - 1]
    groups = np.full(len(counts), len(largest))
    groups[largest] = np.arange(len(largest))
    names = [layout.categories[i] for i in largest]
    if len(largest) < len(layout.categories):
        names.append(f"{len(layout.categories) - len(largest)} others")
    groups[-1] = len(names)
    return groups, [*names, "not seen in training"]


def _values(layout: Layout) -> tuple[npt.NDArray[np.intp], list[str]]:
    groups = np.full(layout.bins, len(layout.edges))
    groups[1::2] = np.arange(len(layout.edges))
    return groups, [*(f"{value:,.15g}" for value in layout.edges), "not seen in training"]


def _merged_gaps(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Counts by value, with those between a value and the one before it; what is above all goes to the last."""
    by_value = counts[1::2] + counts[:-1:2]
    by_value[-1] += counts[-1]
    return by_value


def _numbers(
    counts: npt.NDArray[np.int64], edges: Sequence[float], *, whole: bool
) -> tuple[npt.NDArray[np.intp], list[str]]:
    """Bars that held about as many training rows each."""
    middles = (np.cumsum(counts) - counts / 2) / counts.sum()
    groups: npt.NDArray[np.intp] = np.unique(np.minimum(middles * _BARS, _BARS - 1).astype(int), return_inverse=True)[1]
    names = []
    for group in range(int(groups.max()) + 1):
        first, last = np.flatnonzero(groups == group)[[0, -1]]
        if whole:
            low, high = edges[first], edges[last]
            names.append(f"{low:,.15g}" if low == high else f"{low:,.15g} to {high:,.15g}")
        else:
            names.append(_span(edges, int(first), int(last)))
    if whole:
        # Value i has the bins 2i and 2i + 1, and the last one also what lies above.
        return np.append(np.repeat(groups, 2), groups[-1]), names
    return groups, names


def _span(edges: Sequence[float], first: int, last: int) -> str:
    low = _number(edges[first - 1]) if first else None
    high = _number(edges[last]) if last < len(edges) else None
    if low is None:
        below = last < len(edges) and 0 < -edges[last] < _NOTHING
        return "all" if high is None else f"below {high}" if below else f"up to {high}"
    if high is None:
        return f"above {low}"
    # The bin of a value that many rows have begins just below it.
    return high if low == high else f"{low} to {high}"


def _number(edge: float) -> str:
    return "0" if abs(edge) < _NOTHING else f"{edge:,.4g}"
