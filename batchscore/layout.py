"""What is fixed about a column at training, so that later rows can be counted against it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batchscore.errors import ProfileMismatch

__all__ = ["Floats", "Kind", "Layout", "numbers_of", "refuse_type"]

Kind = Literal["numeric", "categorical", "boolean", "datetime", "text"]
Floats = NDArray[np.float64]

# Part of every digest: raise it when bins, categories or counters change their meaning.
_VERSION = 1
_MOST_CATEGORIES = 1000
_STEPS = 128
_TAIL = np.array([0.0001, 0.0005, 0.001, 0.002, 0.004])
_GRID = np.concatenate([_TAIL, np.arange(1, _STEPS) / _STEPS, 1 - _TAIL])


@dataclass(frozen=True, slots=True)
class Layout:
    """What is fixed about a column at training time.

    Attributes:
        kind: Which statistics the column has.
        edges: Inner bin edges, ascending, finite; numeric: in the column's unit, datetime: microseconds since
            1970-01-01 UTC, text: characters. Empty for other kinds and for a column without a finite value.
        categories: The values seen at training, sorted; categorical only.
    """

    kind: Kind
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()

    @classmethod
    def of(cls, series: pl.Series) -> Self:
        """Fix the layout from training values of any canonical type; NULL, NaN and infinities set nothing.

        Numbers, timestamps and lengths of text get about 138 edges: the values at every 1/128 of the distribution and
        at .0001 .0005 .001 .002 .004 from either end. Each is a value that occurs (the inverted empirical distribution
        function), not an interpolated one. Ties collapse. A value that holds 1/128 of the rows or more, such as the
        zero of a zero-inflated column, also gets an edge just below it, so that a bin holds it alone: otherwise the
        bin of a zero would also take every negative value, and a constant column could not be told from a smaller one.

        Text is categorical when it has at most 1,000 distinct values and they are at most half of the rows, so that an
        id is not a category; up to ten distinct values are categories however few the rows are.
        """
        kind = _kind_of(series)
        kept = series.drop_nulls()
        if kind == "boolean":
            return cls(kind)
        if kind == "text" and kept.n_unique() <= min(max(len(kept) / 2, 10), _MOST_CATEGORIES):
            return cls("categorical", categories=tuple(kept.cast(pl.String).unique().sort().to_list()))
        values = np.sort(numbers_of(kept, kind))
        return cls(kind, _edges(values[np.isfinite(values)], whole=not series.dtype.is_float()))

    @classmethod
    def uniform(cls, low: float, high: float, bins: int) -> Self:
        """Numeric bins of equal width over [low, high], as scores want; values outside fall in the outer bins."""
        return cls("numeric", tuple(np.linspace(low, high, bins + 1)[1:-1].tolist()))

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the canonical JSON of `to_dict()`."""
        return _digest(self)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content, all of it."""
        lists = {"edges": list(self.edges), "categories": list(self.categories)}
        return {"version": _VERSION, "kind": self.kind, **lists}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read back what `to_dict` of the same version wrote."""
        if data["version"] != _VERSION:
            raise ProfileMismatch(
                f"A profile layout has version {data['version']}, this batchscore knows {_VERSION}. "
                "Retrain with this release, or run the release that trained the model.",
                want=_VERSION,
                got=data["version"],
            )
        return cls(data["kind"], tuple(map(float, data["edges"])), tuple(data["categories"]))


@lru_cache(maxsize=4096)
def _digest(layout: Layout) -> str:
    canonical = json.dumps(layout.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _kind_of(series: pl.Series) -> Kind:
    """The kind of a column's type; text may yet turn out categorical."""
    match series.dtype:
        case pl.Boolean():
            return "boolean"
        case pl.Date() | pl.Datetime():
            return "datetime"
        case pl.String() | pl.Categorical() | pl.Enum():
            return "text"
        case dtype if dtype.is_numeric() or dtype == pl.Null():
            return "numeric"
        case dtype:
            advice = "Cast it at the source or leave it out."
            raise ProfileMismatch(f"Column {series.name} has type {dtype}, which no profile describes. {advice}")


def refuse_type(series: pl.Series, want: Kind) -> None:
    """Refuse a column that cannot be counted as `want`.

    Raises:
        ProfileMismatch: Its type is of another kind.
    """
    if series.dtype == pl.Null() or (got := _kind_of(series)) == want or (got, want) == ("text", "categorical"):
        return
    advice = "Give it its old type at the source, or retrain."
    raise ProfileMismatch(f"Column {series.name} is {want} in the profile of training, now {series.dtype}. {advice}")


def numbers_of(kept: pl.Series, kind: Kind) -> Floats:
    """The numbers of a column without NULLs that are binned, float64, in the column's order."""
    if kept.is_empty():
        return np.zeros(0)
    match kind:
        case "datetime":
            kept = kept.dt.epoch("us")
        case "text":
            kept = kept.cast(pl.String).str.len_chars()
    return kept.cast(pl.Float64).to_numpy()


def _edges(values: Floats, *, whole: bool) -> tuple[float, ...]:
    """The inner edges for sorted finite values; `whole` when no value can lie between two integers."""
    if not len(values):
        return ()
    points = np.unique(values[np.ceil(_GRID * len(values)).astype(np.int64) - 1])
    held = values.searchsorted(points, "right") - values.searchsorted(points, "left")
    atoms = points[(held > 1) & (held * _STEPS >= len(values))]
    with np.errstate(over="ignore"):
        below = np.nextafter(atoms, -np.inf)
    # A subnormal edge would equal 0 in a process where some library has switched to flushing subnormals.
    below[atoms == 0] = -np.finfo(np.float64).tiny
    if whole:
        below = np.minimum(below, atoms - 1)
    # Adding 0.0 turns -0.0 into 0.0, which is equal but has another digest.
    edges = np.unique(np.concatenate([below, points])) + 0.0
    return tuple(edges[np.isfinite(edges)].tolist())
