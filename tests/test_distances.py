"""Distances between histograms, beside scipy's of the same shares and of the rows themselves."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import jensenshannon

from batchscore.distances import cramers_v, hellinger, js, ks_p_value, psi_p_value, share_p_value, wasserstein
from batchscore.layout import Layout
from batchscore.profile import ColumnProfile

Counts = NDArray[np.int64]
PAIRS = st.integers(2, 20).flatmap(
    lambda bins: st.tuples(*[st.lists(st.integers(0, 50), min_size=bins, max_size=bins).filter(any)] * 2)
)
FAMILIES: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "lognormal": lambda rng, n: rng.lognormal(size=n),
    "heavy tails": lambda rng, n: rng.standard_t(2, size=n),
    "zero inflated": lambda rng, n: np.where(rng.random(n) < 0.6, 0.0, rng.exponential(size=n)),
    "few whole numbers": lambda rng, n: rng.poisson(3, size=n).astype(np.float64),
}


def histograms(pair: tuple[list[int], list[int]]) -> tuple[Counts, Counts]:
    """Both sides as arrays."""
    one, two = pair
    return np.array(one, np.int64), np.array(two, np.int64)


@settings(deadline=None)
@given(PAIRS)
def test_js(pair: tuple[list[int], list[int]]) -> None:
    """It is scipy's Jensen-Shannon distance to base 2."""
    one, two = histograms(pair)

    assert math.isclose(js(one, two), jensenshannon(one / one.sum(), two / two.sum(), base=2), abs_tol=1e-7)


@settings(deadline=None)
@given(PAIRS)
def test_hellinger(pair: tuple[list[int], list[int]]) -> None:
    """It is the Euclidean distance of the roots of the shares, over the root of 2; from 0 to 1, and symmetric."""
    one, two = histograms(pair)
    roots = np.sqrt(one / one.sum()) - np.sqrt(two / two.sum())

    assert math.isclose(hellinger(one, two), float(np.linalg.norm(roots)) / math.sqrt(2), abs_tol=1e-7)
    assert math.isclose(hellinger(one, two), hellinger(two, one), abs_tol=1e-9)
    assert hellinger(one, two) <= 1


@settings(deadline=None)
@given(PAIRS)
def test_cramers_v(pair: tuple[list[int], list[int]]) -> None:
    """V and p-value are scipy's of the table without bins that are empty on both sides."""
    one, two = histograms(pair)
    table = np.stack([one, two])
    table = table[:, table.sum(0) > 0]
    value, p_value = cramers_v(one, two)

    if table.shape[1] < 2:
        assert (0.0, 1.0) == (value, p_value)
        return
    expected = stats.chi2_contingency(table, correction=False)
    assert math.isclose(value, stats.contingency.association(table, method="cramer", correction=False), abs_tol=1e-9)
    assert math.isclose(p_value, expected.pvalue, abs_tol=1e-12)


@settings(deadline=None)
@given(PAIRS, st.integers(0, 99))
def test_wasserstein_of_bins(pair: tuple[list[int], list[int]], seed: int) -> None:
    """With every bin's rows at one value it is scipy's distance of those values."""
    one, two = histograms(pair)
    places = np.sort(np.random.default_rng(seed).normal(size=len(one)))
    expected = stats.wasserstein_distance(places, places, one, two)

    assert math.isclose(wasserstein(one, one * places, two, two * places), expected, abs_tol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change", ["none", "shift", "stretch"])
def test_wasserstein_of_rows(family: str, change: str) -> None:
    """From the bins of training it is within 5 % of scipy's of the rows, or a hundredth of their deviation."""
    rng = np.random.default_rng(1)
    reference, current = FAMILIES[family](rng, 50_000), FAMILIES[family](rng, 10_000)
    current = {"none": current, "shift": current + 0.1, "stretch": current * 1.1}[change]
    layout = Layout.of(pl.Series(reference))
    one, two = (ColumnProfile.of(pl.Series(side), layout) for side in (current, reference))
    measured = wasserstein(one.counts, one.sums, two.counts, two.sums)
    exact = stats.wasserstein_distance(current, reference)

    assert math.isclose(measured, exact, rel_tol=0.05, abs_tol=0.01 * float(np.std(reference)))


def test_p_values() -> None:
    """Without drift a p-value is below 5 % as often as that, and that of KS no more often."""
    rng = np.random.default_rng(2)
    below = dict.fromkeys(("psi", "ks", "share"), 0)
    for _ in range(1000):
        one, two = (np.bincount(rng.integers(0, 10, n), minlength=10) for n in (800, 3000))
        spread = 1 / 800 + 1 / 3000
        shares = [(side + 0.5) / (side.sum() + 5) for side in (one, two)]
        value = float(((shares[0] - shares[1]) * np.log(shares[0] / shares[1])).sum())
        far = np.abs(np.cumsum(one) / 800 - np.cumsum(two) / 3000).max()
        below["psi"] += psi_p_value(value, 10, spread) < 0.05
        below["ks"] += ks_p_value(float(far), spread) < 0.05
        below["share"] += share_p_value(one[0] / 800, 800, two[0] / 3000, 3000) < 0.05

    assert 30 <= below["psi"] <= 75
    assert 30 <= below["share"] <= 75
    assert below["ks"] <= 60
