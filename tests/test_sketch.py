"""How many values differ and how they spread, from their hashes alone."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscore.hashing import hashed
from batchscore.sketch import Sketch

PINNED_TEXTS = [
    "0000000000000000",
    "cbecfb5d24106de7",
    "43ff215c4e2c1a5a",
    "50f07f393d993843",
    "2ef509649d08681f",
    "a2c95a2d746c3f6d",
    "fc522b737fe08b34",
]
PINNED_NUMBERS = ["0000000000000000", "0000000000000000", "e72b41d4576e3468", "469bf2dcc1aa179b"]
TEXTS = st.lists(st.text("abcé\0 ", max_size=20), max_size=60)


def same(one: Sketch, two: Sketch) -> bool:
    """Whether two sketches are equal to the last bit."""
    return one.to_dict() == two.to_dict()


class TestHashed:
    """`hashed`."""

    def test_pinned(self) -> None:
        """The hash of a value is the same in every release: stored sketches depend on it."""
        texts = pl.Series(["", "a", "b", "ab", "ba", "JetBlue Airways", "é" * 20])
        numbers = pl.Series([0.0, -0.0, 1.5, float("nan")])

        assert [f"{word:016x}" for word in hashed(texts).tolist()] == PINNED_TEXTS
        assert [f"{word:016x}" for word in hashed(numbers).tolist()] == PINNED_NUMBERS

    @settings(deadline=None)
    @given(TEXTS, st.lists(st.integers(0, 60), max_size=4))
    def test_chunks(self, texts: list[str], cuts: list[int]) -> None:
        """A value's hash does not depend on its neighbours, nor on where a block of them ends."""
        texts = [text * 400 for text in texts]
        series = pl.Series(texts, dtype=pl.String)
        parts = [series[low:high] for low, high in pairwise([0, *sorted(cuts), len(texts)])]

        assert hashed(series).tolist() == [word for part in parts for word in hashed(part).tolist()]


class TestSketch:
    """`Sketch`."""

    @settings(deadline=None)
    @given(TEXTS, TEXTS)
    def test_merge(self, one: list[str], two: list[str]) -> None:
        """Two sketches merge into that of both, in either order; that of nothing changes nothing."""
        a, b, both = (Sketch.of(pl.Series(values, dtype=pl.String)) for values in (one, two, one + two))

        assert same(a.merge(b), both)
        assert same(b.merge(a), both)
        assert same(a.merge(Sketch.of(pl.Series([], dtype=pl.String))), a)
        assert same(Sketch.from_dict(json.loads(json.dumps(both.to_dict()))), both)
        assert both.buckets.sum() == len(one + two)

    @pytest.mark.parametrize("distinct", [0, 1, 10, 1000, 30_000, 300_000])
    def test_distinct(self, distinct: int) -> None:
        """It tells how many values differ to within four standard errors, however often each occurs."""
        values = pl.Series(np.arange(distinct) * 7919).cast(pl.String)
        told = Sketch.of(pl.concat([values, values[: distinct // 2]])).distinct

        assert abs(told - distinct) <= 4 * 0.0163 * distinct

    def test_spread(self) -> None:
        """Values that all differ are spread evenly over the buckets, as chi² has it."""
        buckets = Sketch.of(pl.Series(range(100_000)).cast(pl.String)).buckets
        statistic = float(((buckets - 100_000 / 256) ** 2 / (100_000 / 256)).sum())

        assert 170 < statistic < 350

    def test_tells_no_value(self) -> None:
        """Nothing of a value can be read in what is stored."""
        stored = json.dumps(Sketch.of(pl.Series(["John Smith", "4111111111111111"])).to_dict())

        assert "Smith" not in stored
        assert "4111" not in stored
