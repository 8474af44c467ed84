"""Many columns at once: the same as one by one."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import numpy as np
import polars as pl

from batchscore import distances
from batchscore.columns import Columns, Grid
from batchscore.drift import compare
from batchscore.profile import Profile

FIELDS = ("counts", "sums", "groups", "tallies", "maximum", "mean", "m2")


def rows(seed: int, count: int) -> pl.DataFrame:
    """Rows with a column of every kind, with NULLs, NaN and infinities, and values that others lack."""
    rng = np.random.default_rng(seed)
    number = rng.normal(size=count)
    number[: count // 20] = np.nan
    number[count // 20 : count // 10] = np.inf * (-1) ** seed
    frame = pl.DataFrame(
        {
            "number": number,
            "whole": rng.integers(0, 9 + seed, count),
            "word": [f"w{each}" for each in rng.integers(0, 5 + seed, count)],
            "flag": rng.random(count) < 0.3,
            "at": pl.Series(rng.integers(0, 10**12, count)).cast(pl.Datetime("us", "UTC")),
            "text": [f"{each:x}" for each in rng.integers(0, 10**9, count)],
            "secret": rng.integers(0, 10**6, count),
            "hidden": [f"h{each}" for each in rng.integers(0, 3, count)],
        }
    )
    return frame.with_columns(pl.when(pl.Series(rng.random(count) < 0.9)).then(pl.all()))


def profiles(*counts: int) -> tuple[list[Profile], Grid]:
    """Profiles of so many rows each, against the layouts of others."""
    layouts = Profile.layouts_of(rows(0, 2_000), private=["secret", "hidden"])
    assert len({layout.kind for layout in layouts.values()}) == 7
    return [Profile.of(rows(seed, count), layouts) for seed, count in enumerate(counts)], Grid(layouts)


def test_merged() -> None:
    """Merging columns gives, to the bit, what merging profiles does, whichever of them are empty."""
    several, grid = profiles(900, 0, 40, 1_200, 0)
    for some in (several, several[1:], several[1:2], several[:1]):
        found = Columns.merged([Columns.of(list(each.columns.values()), grid) for each in some])
        wanted = Columns.of(list(reduce(Profile.merge, some).columns.values()), grid)

        for name in FIELDS:
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)


def test_compared_together() -> None:
    """A column compares beside others as it does alone, but for the floors, which the count of columns raises."""
    (one, two, nothing), grid = profiles(2_000, 900, 0)

    def told(current: Profile, names: list[str]) -> list[Any]:
        current, reference = (
            Profile({name: each.columns[name] for name in names}, {name: each.layouts[name] for name in names})
            for each in (current, one)
        )
        return [(each.column, each.metric, each.value, each.p_value, each.n) for each in compare(current, reference)]

    for current in (two, nothing):
        alone = [each for name in grid.names for each in told(current, [name])]
        together = told(current, list(grid.names))

        assert len(alone) == len(together)
        for found, wanted in zip(together, alone, strict=True):
            assert (found[:2], found[4]) == (wanted[:2], wanted[4])
            for a, b in zip(found[2:4], wanted[2:4], strict=True):
                assert a == b or math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-7), found
    assert compare(Profile({}, {}), Profile({}, {})) == []


def test_histograms_behind_one_another() -> None:
    """Each distance of several histograms is that of each by itself."""
    rng = np.random.default_rng(3)
    pairs = [(rng.integers(0, 50, bins), rng.integers(0, 50, bins)) for bins in (1, 2, 7, 40, 150)]
    pairs = [(c + (np.arange(len(c)) == 0), r + (np.arange(len(r)) == 0)) for c, r in pairs]
    sums = [np.cumsum(rng.random(len(c))) for c, _ in pairs]
    starts = np.cumsum([0, *(len(c) for c, _ in pairs[:-1])])
    current, reference = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))

    for measure in (distances.psi, distances.ks, distances.js, distances.hellinger, distances.cramers_v):
        together = measure(current, reference, starts)
        alone = np.array([measure(*pair) for pair in pairs]).T
        np.testing.assert_allclose(together, alone, rtol=1e-9, atol=1e-12, err_msg=measure.__name__)
    values = np.concatenate(sums)
    np.testing.assert_allclose(
        distances.wasserstein(current, current * values, reference, reference * values, starts),
        [distances.wasserstein(c, c * v, r, r * v) for (c, r), v in zip(pairs, sums, strict=True)],
        rtol=1e-9,
    )
