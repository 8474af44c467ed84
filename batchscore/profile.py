"""Mergeable summaries of columns, so that what a run saw can be compared without keeping its rows.

A `Layout` is fixed from the training rows and never moves; a `ColumnProfile` counts rows against it; a `Profile` holds
one for every column. Profiles of two chunks merge into the profile of both: counts exactly and in any order, sums,
means and squares to the last bits of a double. Whatever cannot be counted, merged or read back against its layout
raises `ProfileMismatch`.

Bins are right-closed. `edges` e[0] < … < e[k-1] make k + 1 bins: bin 0 holds x <= e[0], bin i holds e[i-1] < x <= e[i],
bin k holds x > e[k-1]. A value equal to an edge belongs to the bin that ends there, so the running total of the counts
up to bin i, divided by the total, is exactly the distribution function at e[i]. The k values of an integer column make
2k + 1 bins: bin 2i + 1 holds the value v[i] alone, bin 2i what lies between it and the one before.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batchscore.errors import ProfileMismatch
from batchscore.hashing import hashed
from batchscore.layout import PRIVATE, Floats, Layout, numbers_of, refuse_type
from batchscore.sketch import Sketch

__all__ = ["ColumnProfile", "Counts", "Profile"]

Counts = NDArray[np.int64]

_TALLIES = ("n", "null", "nan", "pos_inf", "neg_inf", "zero", "negative")
_MOMENTS = ("minimum", "maximum", "mean", "m2")
_MOST_UNSEEN = 20
_LONGEST = 128


@dataclass(frozen=True, slots=True, eq=False)
class ColumnProfile:
    """What was seen in one column.

    `n` = `null` + `nan` + `pos_inf` + `neg_inf` + `finite`, and `counts` adds up to `finite`. From `zero` on, the
    statistics are of the finite values alone, in the unit of the layout's edges; a text's value is its length.

    Attributes:
        layout: What the counts are counted against.
        counts: int64, shape `(layout.bins,)`: rows per bin; or per category, then all unseen ones; or false, true; of a
            private column all rows with a value, shape `(1,)`.
        sums: float64, sum of the values per bin, in the shape of `counts`; `(0,)` for categorical, boolean and private.
        n: Rows.
        null: Rows with NULL. A NaN is not NULL.
        nan: Rows with NaN.
        pos_inf: Rows with +infinity.
        neg_inf: Rows with -infinity.
        zero: Values equal to 0; for text, empty strings. 0 for categorical, boolean and private, as are the others
            below.
        negative: Values below 0.
        minimum: Smallest value; None when there is none, as for categorical, boolean and private.
        maximum: Largest value; None likewise.
        mean: Arithmetic mean; None likewise.
        m2: Sum of squared deviations from the mean; infinite when a value is beyond about 1e154.
        sketch: How many values differ, and how they spread; text, and private with a salt; None for others.
        unseen: Categories that training never saw, cut to 128 characters, with how often each was met; of more than 20
            those whose hashes are the smallest, so that every chunk that met one of them has counted it.
        chosen: int64, in the shape of `counts`: of a class's score, the rows for which that class is predicted; None
            where that was not counted.
    """

    layout: Layout
    counts: Counts
    sums: Floats
    n: int = 0
    null: int = 0
    nan: int = 0
    pos_inf: int = 0
    neg_inf: int = 0
    zero: int = 0
    negative: int = 0
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    m2: float = 0.0
    sketch: Sketch | None = None
    unseen: Mapping[str, int] = field(default_factory=dict)
    chosen: Counts | None = None

    def __post_init__(self) -> None:
        self.counts.setflags(write=False)
        self.sums.setflags(write=False)
        if self.chosen is not None:
            self.chosen.setflags(write=False)

    @classmethod
    def empty(cls, layout: Layout) -> Self:
        """The profile of no rows: merging it changes nothing."""
        return cls.of(pl.Series(dtype=pl.Null), layout)

    @classmethod
    def of(cls, series: pl.Series, layout: Layout) -> Self:
        """Count one column; the cost is one sort of its values.

        Integers beyond 2**53 are binned as the nearest double. A column of type Null fits any layout.
        """
        refuse_type(series, layout.kind)
        n, null, kept = len(series), series.null_count(), series.drop_nulls()
        match layout.kind:
            case "boolean":
                true = int(kept.sum() or 0)
                return cls(layout, np.array([len(kept) - true, true], np.int64), np.zeros(0), n, null)
            case "categorical":
                counts, unseen = _category_counts(kept, layout.categories)
                return cls(layout, counts, np.zeros(0), n, null, unseen=unseen)
            case "private":
                nan = int(kept.is_nan().sum()) if kept.dtype.is_float() else 0
                counts = np.array([len(kept) - nan], np.int64)
                sketch = Sketch.of(kept, layout.salt) if layout.salt else None
                return cls(layout, counts, np.zeros(0), n, null, nan, sketch=sketch)
            case _:
                sketch = Sketch.of(kept) if layout.kind == "text" else None
                return cls._measured(np.sort(numbers_of(kept, layout.kind)), layout, n, null, sketch)

    @classmethod
    def _measured(cls, values: Floats, layout: Layout, n: int, null: int, sketch: Sketch | None) -> Self:
        # The sort has put -inf first, then +inf, then NaN last, so that searching finds how many there are of each.
        low, high = _rank(values, -np.inf, "right"), _rank(values, np.inf, "left")
        numbers, finite = _rank(values, np.inf, "right"), values[low:high]
        counts, sums = _bin(finite, layout)
        negative, not_positive = _rank(finite, 0.0, "left"), _rank(finite, 0.0, "right")
        tallies = (n, null, len(values) - numbers, numbers - high, low, not_positive - negative, negative)
        return cls(layout, counts, sums, *tallies, *_moments(finite, sums), sketch)

    def choosing(self, series: pl.Series, rows: pl.Series) -> ColumnProfile:
        """The same, with `chosen` counted: of the series that it was made of those rows, Boolean."""
        return replace(self, chosen=ColumnProfile.of(series.filter(rows), self.layout).counts)

    @property
    def finite(self) -> int:
        """Rows that hold a value: neither NULL nor NaN nor infinite."""
        return self.n - self.null - self.nan - self.pos_inf - self.neg_inf

    @property
    def std(self) -> float | None:
        """Standard deviation of the sample (divisor one less than the values); None below two values."""
        return math.sqrt(self.m2 / (self.finite - 1)) if self.mean is not None and self.finite > 1 else None

    @property
    def null_share(self) -> float:
        """Share of rows without a value, NULL or NaN, for a model reads both as missing; 0 without rows."""
        return (self.null + self.nan) / self.n if self.n else 0.0

    @property
    def unseen_share(self) -> float:
        """Share of rows with a category or integer that training never saw; 0 without rows and for other kinds."""
        match self.layout.kind:
            case "categorical":
                count = self.counts[-1]
            case "integer":
                count = self.counts[::2].sum()
            case _:
                count = 0
        return int(count) / self.n if self.n else 0.0

    @property
    def outside_share(self) -> float:
        """Share of rows with a number or instant beyond the range of the layout, infinities too; 0 for other kinds."""
        if self.layout.kind not in ("numeric", "datetime") or not self.n:
            return 0.0
        return (int(self.counts[0]) + int(self.counts[-1]) + self.neg_inf + self.pos_inf) / self.n

    def without_values(self) -> ColumnProfile:
        """The same rows in the layout `PRIVATE`, which any profile fits into: how many have a value."""
        if self.layout == PRIVATE:
            return self
        counts = np.array([self.n - self.null - self.nan], np.int64)
        return ColumnProfile(PRIVATE, counts, np.zeros(0), self.n, self.null, self.nan)

    def alike(self, other: ColumnProfile) -> tuple[ColumnProfile, ColumnProfile]:
        """Both in one layout; in `PRIVATE` where one of them is, for the column was made private in between.

        Raises:
            ProfileMismatch: They were counted against two others.
        """
        if self.layout is other.layout or self.layout == other.layout:
            return self, other
        if PRIVATE not in (self.layout, other.layout):
            raise _unlike(self.layout.digest, other.layout.digest)
        return self.without_values(), other.without_values()

    def merge(self, other: ColumnProfile) -> ColumnProfile:
        """The profile of both sets of rows, brought into one layout as by `alike`.

        Counts add. Mean and M2 merge pairwise: Chan, Golub & LeVeque, "Algorithms for computing the sample variance",
        The American Statistician 37 (1983). Commutative to the bit; associative to rounding.
        """
        one, two = self.alike(other)
        with np.errstate(over="ignore", invalid="ignore"):
            counts, sums = one.counts + two.counts, one.sums + two.sums
        merged: dict[str, Any] = {name: getattr(one, name) + getattr(two, name) for name in _TALLIES}
        merged["minimum"] = min((end for end in (one.minimum, two.minimum) if end is not None), default=None)
        merged["maximum"] = max((end for end in (one.maximum, two.maximum) if end is not None), default=None)
        merged["mean"], merged["m2"] = _chan(one, two)
        if one.sketch and two.sketch:
            merged["sketch"] = one.sketch.merge(two.sketch)
        if one.unseen or two.unseen:
            merged["unseen"] = _fewest(Counter(one.unseen) + Counter(two.unseen))
        # Rows of which it was not counted leave nothing to say of the whole; no rows do no harm.
        counted = [side.chosen for side in (one, two) if side.n or side.chosen is not None]
        if counted and all(each is not None for each in counted):
            merged["chosen"] = sum(counted)
        return ColumnProfile(one.layout, counts, sums, **merged)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ColumnProfile):
            return NotImplemented
        return self.layout == other.layout and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.layout, self.n))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content with the layout's digest in place of the layout; counters of 0 are left out.

        Floats read back to the same bit. One that overflowed is the string "inf", "-inf" or "nan", for JSON has none.
        """
        tallies = {name: tally for name in _TALLIES if (tally := getattr(self, name))}
        moments = {name: _plain(value) for name in _MOMENTS if (value := getattr(self, name)) is not None}
        sums = self.sums.tolist()
        if not np.isfinite(self.sums).all():
            sums = [_plain(value) for value in sums]
        rest = {"sketch": self.sketch.to_dict()} if self.sketch else {}
        if self.unseen:
            rest["unseen"] = dict(self.unseen)
        if self.chosen is not None:
            rest["chosen"] = self.chosen.tolist()
        counts = self.counts.tolist()
        return {"layout": self.layout.digest, **tallies, **moments, "counts": counts, "sums": sums, **rest}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], layout: Layout) -> Self:
        """Read back what `to_dict` wrote; `layout` must be the one it was counted against, or either be `PRIVATE`."""
        scalars = {name: data[name] for name in _TALLIES if name in data}
        if PRIVATE.digest in (data["layout"], layout.digest):
            n, null, nan = (scalars.get(name, 0) for name in ("n", "null", "nan"))
            return cls(PRIVATE, np.array([n - null - nan], np.int64), np.zeros(0), n, null, nan)
        if data["layout"] != layout.digest:
            raise _unlike(layout.digest, data["layout"])
        scalars |= {name: float(data[name]) for name in _MOMENTS if name in data}
        scalars["sketch"] = Sketch.from_dict(data["sketch"]) if "sketch" in data else None
        scalars["unseen"] = data.get("unseen", {})
        scalars["chosen"] = np.array(data["chosen"], np.int64) if "chosen" in data else None
        return cls(layout, np.array(data["counts"], np.int64), np.array(data["sums"], np.float64), **scalars)


@dataclass(frozen=True, slots=True)
class Profile:
    """One summary for every column of some rows.

    Attributes:
        columns: By column name.
        layouts: The layout of each, under the same names.
    """

    columns: Mapping[str, ColumnProfile]
    layouts: Mapping[str, Layout]

    @staticmethod
    def layouts_of(frame: pl.DataFrame, private: Collection[str] = ()) -> dict[str, Layout]:
        """Fix a layout for every column of the training rows; see `Layout.of`."""
        return {series.name: Layout.of(series, private=series.name in private) for series in frame.iter_columns()}

    @classmethod
    def empty(cls, layouts: Mapping[str, Layout]) -> Self:
        """The profile of no rows: merging it changes nothing."""
        return cls({name: ColumnProfile.empty(layout) for name, layout in layouts.items()}, layouts)

    @classmethod
    def of(
        cls, frame: pl.DataFrame, layouts: Mapping[str, Layout], chosen: Mapping[str, pl.Series] | None = None
    ) -> Self:
        """Count every column that has a layout; the frame's other columns are left out.

        Args:
            frame: The rows.
            layouts: By column.
            chosen: By column of a class's score, for which rows that class is predicted.
        """
        _refuse_missing(layouts, frame.columns)
        columns = {name: ColumnProfile.of(frame[name], layout) for name, layout in layouts.items()}
        told = {name: columns[name].choosing(frame[name], rows) for name, rows in (chosen or {}).items()}
        return cls(columns | told, layouts)

    def merge(self, other: Profile) -> Profile:
        """The profile of both sets of rows; see `ColumnProfile.merge`."""
        _refuse_missing(self.columns, other.columns)
        _refuse_missing(other.columns, self.columns)
        return Profile._of({name: column.merge(other.columns[name]) for name, column in self.columns.items()})

    def only(self, names: Collection[str]) -> Profile:
        """Of these columns alone."""
        return Profile._of({name: self.columns[name] for name in names})

    def without_values(self, names: Collection[str]) -> Profile:
        """The same with nothing of the values of these columns, but of those that have a layout of their own for it."""
        hidden = {name for name in names if name in self.columns and self.layouts[name].kind != "private"}
        columns = self.columns.items()
        return Profile._of({name: column.without_values() if name in hidden else column for name, column in columns})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content by column; of the layouts only their digests, since a bundle holds them."""
        return {name: column.to_dict() for name, column in self.columns.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], layouts: Mapping[str, Layout]) -> Self:
        """Read back what `to_dict` wrote; `layouts` are those it was counted against: see `ColumnProfile.from_dict`."""
        _refuse_missing(layouts, data)
        _refuse_missing(data, layouts)
        return cls._of({name: ColumnProfile.from_dict(data[name], layout) for name, layout in layouts.items()})

    @classmethod
    def _of(cls, columns: Mapping[str, ColumnProfile]) -> Self:
        return cls(columns, {name: column.layout for name, column in columns.items()})


def _refuse_missing(want: Iterable[str], found: Iterable[str]) -> None:
    if missing := sorted(set(want) - set(found)):
        listed = ", ".join(missing)
        raise ProfileMismatch(f"Column(s) on one side of a profile only: {listed}. Retrain.", missing=missing)


def _unlike(want: str, got: str) -> ProfileMismatch:
    return ProfileMismatch(
        f"Profiles counted against unlike layouts, {want[:12]} and {got[:12]}, belong to different model versions and "
        "cannot be merged or compared. Take the profiles of one model version.",
        want=want,
        got=got,
    )


def _category_counts(kept: pl.Series, categories: tuple[str, ...]) -> tuple[Counts, dict[str, int]]:
    known = kept.cast(pl.Enum(categories), strict=False)
    seen = np.bincount(known.drop_nulls().to_physical().to_numpy(), minlength=len(categories))
    strange: dict[str, int] = {}
    if known.null_count():
        others = kept.filter(known.is_null()).cast(pl.String).str.slice(0, _LONGEST)
        strange = _fewest(Counter(dict(others.value_counts().iter_rows())))
    return np.append(seen, known.null_count()).astype(np.int64), strange


def _fewest(unseen: Mapping[str, int]) -> dict[str, int]:
    """Of all categories those with the smallest hashes: whichever chunk met one of them, it is among its own fewest."""
    names = pl.Series(sorted(unseen), dtype=pl.String)
    kept = names.gather(np.argsort(hashed(names), kind="stable")[:_MOST_UNSEEN])
    return {name: unseen[name] for name in kept.sort()}


def _rank(ordered: Floats, value: float, side: Literal["left", "right"]) -> int:
    return int(ordered.searchsorted(value, side))


def _bin(finite: Floats, layout: Layout) -> tuple[Counts, Floats]:
    """Count and add up sorted values per bin."""
    inner = finite.searchsorted(layout.edges, "right")
    if layout.kind == "integer":
        inner = np.column_stack([finite.searchsorted(layout.edges, "left"), inner]).ravel()
    bounds = np.concatenate([[0], inner, [len(finite)]]).astype(np.int64)
    counts = np.diff(bounds)
    sums = np.zeros(len(counts))
    # reduceat gives an empty segment the value at its start; leaving those out lets each run to the start of the next.
    filled = counts > 0
    if filled.any():
        with np.errstate(over="ignore"):
            sums[filled] = np.add.reduceat(finite, bounds[:-1][filled])
    return counts, sums


def _moments(finite: Floats, sums: Floats) -> tuple[float | None, float | None, float | None, float]:
    """Minimum, maximum, mean and M2 of sorted values."""
    if not len(finite):
        return None, None, None, 0.0
    low, high = float(finite[0]), float(finite[-1])
    with np.errstate(over="ignore", invalid="ignore"):
        # Clipped, because rounding may put the mean of equal values beside them, and M2 then above 0.
        mean = min(max(float(sums.sum()) / len(finite), low), high)
        return low, high, mean, float(np.square(finite - mean).sum())


def _chan(one: ColumnProfile, two: ColumnProfile) -> tuple[float | None, float]:
    # The larger side leads, whichever it is: the merge is then commutative to the bit.
    large, small = sorted((one, two), key=lambda side: (side.finite, side.mean or 0.0), reverse=True)
    if large.mean is None or small.mean is None:
        return large.mean, large.m2
    share = small.finite / (large.finite + small.finite)
    delta = small.mean - large.mean
    return large.mean + delta * share, large.m2 + small.m2 + delta * delta * large.finite * share


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
