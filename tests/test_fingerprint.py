"""The fingerprint of a run's input."""

from __future__ import annotations

import itertools
import math
import random
from datetime import UTC, date, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing.parametric import column, dataframes

from batchscore.fingerprint import Fingerprint

TYPES = (pl.Int64(), pl.Float64(), pl.String(), pl.Boolean(), pl.Date(), pl.Datetime("us"), pl.Datetime("us", "UTC"))
FRAMES = dataframes(
    [column(f"c{i}", dtype=dtype, allow_null=True) for i, dtype in enumerate(TYPES)], max_size=30, allow_chunks=True
)


@given(FRAMES, st.lists(st.integers(0, 30), max_size=4), st.randoms(use_true_random=False))
def test_order_and_cuts_change_nothing(frame: pl.DataFrame, cuts: list[int], chance: random.Random) -> None:
    """However rows are ordered and cut, their fingerprints add up to that of the whole."""
    order = list(range(frame.height))
    chance.shuffle(order)
    bounds = sorted({0, frame.height, *(cut for cut in cuts if cut <= frame.height)})
    parts = [frame[order][start:stop] for start, stop in itertools.pairwise(bounds)]

    assert sum((Fingerprint.of(part) for part in parts), Fingerprint()) == Fingerprint.of(frame)


@given(FRAMES.filter(lambda frame: frame.height > 0), st.data())
def test_every_value_counts(frame: pl.DataFrame, data: st.DataObject) -> None:
    """A value set to NULL, or a row left out, is another fingerprint."""
    row = data.draw(st.integers(0, frame.height - 1))
    name = data.draw(st.sampled_from(frame.columns))
    without = frame.with_row_index("row").filter(pl.col("row") != row).drop("row")
    assert Fingerprint.of(without) != Fingerprint.of(frame)

    if frame[name][row] is not None:
        changed = frame.with_columns(
            pl.when(pl.int_range(pl.len()) == row).then(None).otherwise(pl.col(name)).alias(name)
        )
        assert Fingerprint.of(changed) != Fingerprint.of(frame)


@given(st.lists(st.text(max_size=12), unique=True, max_size=60))
def test_texts_differ(texts: list[str]) -> None:
    """Texts that differ, empty ones and common beginnings among them, have hashes that differ."""
    totals = {Fingerprint.of(pl.DataFrame({"text": [text]})).total for text in texts}

    assert len(totals) == len(texts)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([0.0], [-0.0], True),
        ([math.nan], [-math.nan], True),
        ([math.inf], [-math.inf], False),
        ([1.0, None], [None, 1.0], True),
        (["ab", "c"], ["a", "bc"], False),
        (["", None], [None, ""], True),
        ([""], [None], False),
        (["a\0"], ["a"], False),
        ([True], [False], False),
    ],
)
def test_values(one: list[object], other: list[object], same: bool) -> None:
    """What is equal as a value is equal here, and a NULL equals nothing else."""
    frames = [pl.DataFrame({"x": pl.Series(values, dtype=pl.Series([*one, *other]).dtype)}) for values in (one, other)]

    assert (Fingerprint.of(frames[0]) == Fingerprint.of(frames[1])) is same


def test_columns_count() -> None:
    """The same values under other names, or in exchanged columns, are another input."""
    frame = pl.DataFrame({"a": [1, 2], "b": [3, 4]})

    assert len({Fingerprint.of(f) for f in (frame, frame.rename({"b": "c"}), frame.select(a="b", b="a"))}) == 3
    assert Fingerprint.of(frame.select("b", "a")) != Fingerprint.of(frame)


def test_defined_here() -> None:
    """The hash is what it was: runs in the ledger are compared across releases, machines and libraries."""
    frame = pl.DataFrame(
        {
            "id": [1, -2, 2**62],
            "x": [0.1, math.nan, None],
            "s": ["", "Zürich", None],
            "b": [True, None, False],
            "d": [date(2013, 10, 1), None, date(1969, 12, 31)],
            "t": pl.Series([datetime(2013, 10, 1, 4, tzinfo=UTC), None, None], dtype=pl.Datetime("us", "UTC")),
        }
    )

    assert (Fingerprint.of(frame).rows, str(Fingerprint.of(frame))) == (3, "5c80b929a4282736")
    assert Fingerprint.parse(3, str(Fingerprint.of(frame))) == Fingerprint.of(frame)
