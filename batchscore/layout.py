"""What is fixed about a column at training, so that later rows can be counted against it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from secrets import token_hex
from typing import Any, Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batchscore.errors import ProfileMismatch

__all__ = ["PRIVATE", "Floats", "Kind", "Layout", "numbers_of", "refuse_type"]

Kind = Literal["numeric", "integer", "categorical", "boolean", "datetime", "text", "private"]
Floats = NDArray[np.float64]

# Part of every digest: raise it when bins, categories or counters change their meaning.
_VERSION = 2
_MOST_VALUES = 1000
# So that each of 16 groups of hashes is one of some 16 values or more.
_FEWEST_HASHED = 256
# What a column of a type may turn out to be by its values.
_NARROWER: Mapping[Kind, Kind] = {"text": "categorical", "numeric": "integer"}
_STEPS = 128
_TAIL = np.array([0.0001, 0.0005, 0.001, 0.002, 0.004])
_GRID = np.concatenate([_TAIL, np.arange(1, _STEPS) / _STEPS, 1 - _TAIL])


@dataclass(frozen=True, slots=True)
class Layout:
    """What is fixed about a column at training time.

    Attributes:
        kind: Which statistics the column has.
        edges: Inner bin edges, ascending, finite; numeric: in the column's unit, datetime: microseconds since
            1970-01-01 UTC, text: characters. Of an integer column the values themselves, each a bin of its own between
            the bins of what lies between them. Empty for other kinds and for a column without a finite value.
        categories: The values seen at training, sorted; categorical only.
        salt: 128 random bits in hex, by which the values of a private column are hashed; empty for other kinds, and for
            a private column with fewer than 256 distinct values at training, of which no hashes are kept. It is in the
            bundle, and nowhere else; the digest, which is in the ledger, does not lead back to it.
    """

    kind: Kind
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    salt: str = field(default="", repr=False)

    @classmethod
    def of(cls, series: pl.Series, *, private: bool = False) -> Self:
        """Fix the layout from training values of any canonical type; NULL, NaN and infinities set nothing.

        A whole number with at most 1,000 distinct values is an integer, counted value by value. Other numbers,
        timestamps and lengths of text get about 140 edges: the values at every 1/128 of the distribution, at .0001
        .0005 .001 .002 .004 from either end, and at both ends, so that the outermost bins hold what training never
        reached. Each is a value that occurs (the inverted empirical distribution
        function), not an interpolated one. Ties collapse. A value that holds 1/128 of the rows or more, such as the
        zero of a zero-inflated column, also gets an edge just below it, so that a bin holds it alone: otherwise the
        bin of a zero would also take every negative value, and a constant column could not be told from a smaller one.

        Text is categorical when it has at most 1,000 distinct values and they are at most half of the rows, so that an
        id is not a category; up to ten distinct values are categories however few the rows are.

        A private column has no more in its layout than that it is private, and the salt of its hashes: another at each
        call. Of few values the hashes would tell how often each occurs, if not which is which, so there are none.
        """
        kind, kept = _kind_of(series), series.drop_nulls()
        if private:
            return cls("private", salt=token_hex(16) if kept.n_unique() >= _FEWEST_HASHED else "")
        if kind == "boolean":
            return cls(kind)
        if kind == "text" and kept.n_unique() <= min(max(len(kept) / 2, 10), _MOST_VALUES):
            return cls("categorical", categories=tuple(kept.cast(pl.String).unique().sort().to_list()))
        if series.dtype.is_integer() and kept.n_unique() <= _MOST_VALUES:
            return cls("integer", tuple((np.unique(numbers_of(kept, kind)) + 0.0).tolist()))
        values = np.sort(numbers_of(kept, kind))
        return cls(kind, _edges(values[np.isfinite(values)], whole=not series.dtype.is_float()))

    @classmethod
    def uniform(cls, low: float, high: float, bins: int, begin: float | None = None) -> Self:
        """Numeric bins of equal width over [low, high], as scores want, between two for the values outside.

        With `begin`, one begins with that value too, and so none holds values on both sides of a threshold.
        """
        edges = np.linspace(low, high, bins + 1)
        edges[0] = min(np.nextafter(low, -np.inf), -np.finfo(np.float64).tiny)
        if begin is not None and low < begin <= high:
            edges = np.union1d(edges, [np.nextafter(begin, -np.inf)])
        return cls("numeric", tuple(edges.tolist()))

    @property
    def bins(self) -> int:
        """How many bins or categories its counts have."""
        match self.kind:
            case "boolean":
                return 2
            case "categorical":
                return len(self.categories) + 1
            case "integer":
                return 2 * len(self.edges) + 1
            case _:
                return len(self.edges) + 1

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the canonical JSON of `to_dict()`."""
        return _digest(self)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content, all of it."""
        lists = {"edges": list(self.edges), "categories": list(self.categories)}
        salt = {"salt": self.salt} if self.salt else {}
        return {"version": _VERSION, "kind": self.kind, **lists, **salt}

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
        return cls(data["kind"], tuple(map(float, data["edges"])), tuple(data["categories"]), data.get("salt", ""))


PRIVATE = Layout("private")
"""That of a column of which nothing is counted but whether it has a value."""


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
    got = _kind_of(series)
    if series.dtype == pl.Null() or want == got or want == _NARROWER.get(got) or want == "private":
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
    points = np.unique(np.append(values[np.ceil(_GRID * len(values)).astype(np.int64) - 1], values[-1]))
    held = values.searchsorted(points, "right") - values.searchsorted(points, "left")
    # Below the least value too, so that the first bin holds what training never reached, as the last one does.
    atoms = np.union1d(points[(held > 1) & (held * _STEPS >= len(values))], values[:1])
    with np.errstate(over="ignore"):
        below = np.nextafter(atoms, -np.inf)
    # A subnormal edge would equal 0 in a process where some library has switched to flushing subnormals.
    below[atoms == 0] = -np.finfo(np.float64).tiny
    if whole:
        below = np.minimum(below, atoms - 1)
    # Adding 0.0 turns -0.0 into 0.0, which is equal but has another digest.
    edges = np.unique(np.concatenate([below, points])) + 0.0
    return tuple(edges[np.isfinite(edges)].tolist())
