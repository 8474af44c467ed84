"""What counts as drift: known shifts are found, chance is not."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from batchscore.distances import ks, psi
from batchscore.drift import BANDS, Drift, Metric, Times, compare
from batchscore.errors import ProfileMismatch
from batchscore.layout import Layout
from batchscore.profile import Profile

Draw = Callable[[np.random.Generator, int], Any]

HISTOGRAMS = st.integers(1, 30).flatmap(
    lambda bins: st.tuples(*[st.lists(st.integers(0, 10**6), min_size=bins, max_size=bins).map(np.array)] * 2)
)
STABLE: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "zero inflated": lambda rng, n: np.where(rng.random(n) < 0.6, 0.0, rng.exponential(size=n)),
    "rare value between two common": lambda rng, n: rng.choice([0.0, 0.5, 1.0], p=[0.4995, 0.001, 0.4995], size=n),
    "counts": lambda rng, n: rng.poisson(3, size=n),
    "long tail of words": lambda rng, n: rng.zipf(1.6, size=n).clip(0, 300).astype(str),
    "rare truth": lambda rng, n: rng.random(n) < 0.03,
    "rare NaN": lambda rng, n: np.where(rng.random(n) < 0.005, np.nan, 1.0),
}


def drifts(current: Any, reference: Any, layout: Layout | None = None) -> dict[Metric, Drift]:
    """The metrics of one column, its layout cut from the reference unless one is given."""
    frames = [pl.DataFrame({"x": pl.Series("x", values)}) for values in (current, reference)]
    layouts = {"x": layout} if layout else Profile.layouts_of(frames[1])
    return {drift.metric: drift for drift in compare(*(Profile.of(frame, layouts) for frame in frames))}


def moved(current: Any, reference: Any, layout: Layout | None = None) -> set[Metric]:
    """The metrics that say moved."""
    return {metric for metric, drift in drifts(current, reference, layout).items() if drift.verdict == "moved"}


class TestPsi:
    """`psi`."""

    @settings(deadline=None)
    @given(HISTOGRAMS)
    def test_formula(self, histograms: tuple[NDArray[np.int64], NDArray[np.int64]]) -> None:
        """It is the sum of both relative entropies of the shares with half a row more per bin, as scipy has them."""
        p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in histograms)

        assert psi(*histograms) == pytest.approx(stats.entropy(p, q) + stats.entropy(q, p), rel=1e-9, abs=1e-12)

    @settings(deadline=None)
    @given(HISTOGRAMS)
    def test_divergence(self, histograms: tuple[NDArray[np.int64], NDArray[np.int64]]) -> None:
        """It is symmetric, never negative, and 0 for equal counts."""
        one, two = histograms

        assert psi(one, two) == pytest.approx(psi(two, one), rel=1e-9, abs=1e-12)
        assert psi(one, two) >= 0
        assert psi(one, one) == 0.0

    def test_raw_values(self) -> None:
        """On a column it is the textbook's figure for the reference's deciles."""
        rng = np.random.default_rng(1)
        reference, current = rng.normal(size=200_000), rng.normal(0.5, 1.0, size=100_000)
        deciles = [-np.inf, *np.quantile(reference, np.arange(1, 10) / 10), np.inf]
        p, q = (np.histogram(values, deciles)[0] / len(values) for values in (current, reference))

        value = drifts(current, reference)["psi"].value

        assert value == pytest.approx(np.sum((p - q) * np.log(p / q)), rel=0.01)


class TestKs:
    """`ks`."""

    @pytest.mark.parametrize("shift", [0.0, 0.02, 0.3])
    def test_raw_values(self, shift: float) -> None:
        """It falls short of scipy's figure for the raw values by at most the mass of a bin."""
        rng = np.random.default_rng(2)
        reference, current = rng.lognormal(size=50_000), rng.lognormal(shift, size=20_000)
        raw = stats.ks_2samp(current, reference).statistic

        value = drifts(current, reference)["ks"].value

        assert value is not None
        assert raw - 0.005 <= value <= raw + 1e-12

    def test_few_values(self) -> None:
        """Where every value has its own bin it is scipy's figure."""
        rng = np.random.default_rng(3)
        reference, current = rng.poisson(3, size=5000), rng.poisson(4, size=3000)
        layout = Layout("numeric", tuple(map(float, range(20))))

        value = drifts(current, reference, layout)["ks"].value

        assert value == pytest.approx(stats.ks_2samp(current, reference).statistic, abs=1e-12)

    @settings(deadline=None)
    @given(HISTOGRAMS)
    def test_distance(self, histograms: tuple[NDArray[np.int64], NDArray[np.int64]]) -> None:
        """It is symmetric, between 0 and 1, and 0 for equal counts."""
        one, two = (counts + np.eye(1, len(counts), dtype=np.int64)[0] for counts in histograms)

        assert 0 <= ks(one, two) == ks(two, one) <= 1
        assert ks(one, one) == 0.0


class TestFloors:
    """Noise floors."""

    def test_formulas(self) -> None:
        """They are scipy's quantiles at alpha over the number of columns, times sqrt(1/n + 1/N) or its square."""
        rng = np.random.default_rng(4)
        frames = [pl.DataFrame(rng.normal(size=(rows, 5))) for rows in (1000, 4000)]
        layouts = Profile.layouts_of(frames[1])
        level, spread = 0.05 / 5, 1 / 1000 + 1 / 4000

        found = compare(*(Profile.of(frame, layouts) for frame in frames), alpha=0.05)

        judged = [drift for drift in found if drift.verdict != "not judged"]
        assert [drift.metric for drift in judged] == ["psi", "ks", "null_share", "outside_share"] * 5
        assert {"js", "hellinger", "wasserstein"} == {drift.metric for drift in found if drift not in judged}
        for drift in judged:
            outside = (drift.value or 0.0) * 1000 / 5000 if drift.metric == "outside_share" else 0.0
            z = stats.norm.isf(level / 2)
            share = z * math.sqrt(outside * (1 - outside) * spread) + (z**2 + 2) / 6000
            floor = {"psi": stats.chi2.isf(level, 9) * spread, "ks": stats.kstwobign.isf(level) * math.sqrt(spread)}
            assert drift.floor == pytest.approx(floor.get(drift.metric, share), rel=1e-4)

    def test_p_values(self) -> None:
        """They are those of scipy's tests of the same rows, counts or shares."""
        rng = np.random.default_rng(12)
        one, two = rng.integers(0, 6, 900), rng.integers(0, 6, 4000)
        by_value = drifts(one.astype(str), two.astype(str))
        table = np.stack([np.bincount(side, minlength=6) for side in (one, two)])
        continuous = rng.normal(0.05, 1, 3000), rng.normal(size=5000)
        truths = drifts(np.arange(1000) < 130, np.arange(3000) < 300)

        assert by_value["cramers_v"].p_value == pytest.approx(stats.chi2_contingency(table).pvalue)
        # PSI has one bin more, of what training never saw.
        value = (by_value["psi"].value or 0.0) / (1 / 900 + 1 / 4000)
        assert by_value["psi"].p_value == pytest.approx(stats.chi2.sf(value, 6))
        assert truths["cramers_v"].value == pytest.approx(
            stats.contingency.association([[130, 870], [300, 2700]], method="cramer")
        )
        expected = stats.ks_2samp(*continuous, method="asymp").pvalue
        assert drifts(*continuous)["ks"].p_value == pytest.approx(expected, rel=0.5)
        nulls = drifts([None] * 100 + [True] * 900, [None] * 100 + [True] * 1900)["null_share"]
        assert nulls.p_value == pytest.approx(
            stats.chi2_contingency([[100, 900], [100, 1900]], correction=False).pvalue
        )

    def test_share(self) -> None:
        """A share's floor is the normal bound for the pooled share, and its allowance for skew and steps."""
        drift = drifts([None] * 100 + [True] * 900, [None] * 100 + [True] * 1900)["null_share"]
        z, pooled = stats.norm.isf(0.005), 200 / 3000

        assert drift.value == pytest.approx(0.05)
        assert drift.floor == pytest.approx(
            z * math.sqrt(pooled * (1 - pooled) * (1 / 1000 + 1 / 2000)) + (z * z + 2) / 6000
        )

    def test_promise(self) -> None:
        """Without drift, at most alpha of 2,000 columns of every shape move, by any one metric."""
        rng = np.random.default_rng(5)
        tally: Counter[str] = Counter()
        for draw in STABLE.values():
            for size, reference_size in [(250, 5000), (300, 300), (5000, 400)]:
                for _ in range(2000 // 21 + 1):
                    training = draw(rng, reference_size)
                    tally.update(moved(draw(rng, size), training))

        assert all(count <= 0.01 * 2000 for count in tally.values()), tally

    def test_floors_alone(self) -> None:
        """Without the bands, the floors of PSI and KS are passed by chance about as often as alpha says."""
        rng = np.random.default_rng(6)
        passed: Counter[str] = Counter()
        for _ in range(1000):
            found = drifts(rng.normal(size=400), rng.normal(size=2000))
            passed.update(drift.metric for drift in found.values() if abs(drift.value or 0.0) > (drift.floor or 0.0))

        assert 1 <= passed["psi"] <= 20
        assert passed["ks"] <= 20
        assert passed["null_share"] == 0

    def test_wide_table(self) -> None:
        """A table of 500 columns without drift gives no alarm at all."""
        rng = np.random.default_rng(7)
        frames = [pl.DataFrame(rng.normal(size=(rows, 500))) for rows in (250, 1000)]
        layouts = Profile.layouts_of(frames[1])

        found = compare(*(Profile.of(frame, layouts) for frame in frames))

        assert {"steady", "not judged"} == {drift.verdict for drift in found}

    def test_rare_share(self) -> None:
        """A rare NULL passes its floor no more often than promised, at the fewest rows and at the strictest level."""
        n, reference_n, level = 200, 10**6, 0.01 / 100
        for share in (0.0005, 0.002, 0.005, 0.02, 0.1):
            nulls = np.arange(n + 1)
            pooled = (nulls + share * reference_n) / (n + reference_n)
            z = stats.norm.isf(level / 2)
            floor = z * np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / reference_n)) + (z * z + 2) / (6 * n)
            chance = stats.binom.pmf(nulls, n, share)[nulls / n - share > floor].sum()

            assert chance <= level


class TestFound:
    """Drift that must be seen."""

    normal = np.random.default_rng(8).normal(size=5000)

    def test_shift(self) -> None:
        """Six tenths of a standard deviation, on a thousand rows, moves both PSI and KS."""
        assert {"psi", "ks"} == moved(0.6 + self.normal[:1000], self.normal)

    def test_small_effect(self) -> None:
        """A difference that a p-value would call certain is steady while it is small."""
        rng = np.random.default_rng(11)
        found = drifts(rng.normal(0.1, 1.0, size=100_000), rng.normal(size=100_000))

        assert {"steady", "not judged"} == {drift.verdict for drift in found.values()}
        assert (found["psi"].value or 0.0) > (found["psi"].floor or 0.0)

    def test_constant(self) -> None:
        """A constant that becomes another constant has moved, and lies outside."""
        assert {"psi", "ks", "outside_share"} == moved([5.5] * 300, [5.0] * 1000) == moved([4.5] * 300, [5.0] * 1000)

    def test_wrong_side_of_zero(self) -> None:
        """Negative values in place of a heavy zero have moved, and lie outside."""
        values = np.maximum(self.normal, 0.0)

        assert {"psi", "ks", "outside_share"} == moved(np.where(values == 0, -1.0, values), values)

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_infinite(self, sign: float) -> None:
        """An infinity counts as a value beyond every edge does."""
        infinite, huge = (
            drifts(np.where(np.arange(5000) % 3 == 0, sign * value, self.normal), self.normal)
            for value in (np.inf, 1e300)
        )

        assert ("moved", 5000) == (infinite["psi"].verdict, infinite["psi"].n)
        assert {"psi", "ks", "outside_share"} == {
            metric for metric, each in infinite.items() if each.verdict == "moved"
        }
        for metric in ("psi", "ks", "js", "outside_share"):
            assert huge[metric] == infinite[metric]

    @pytest.mark.parametrize("missing", [None, math.nan])
    def test_missing(self, missing: float | None) -> None:
        """A surge of NULL or of NaN moves the null share, and PSI of what is left does not change."""
        surge = [missing if row % 10 == 0 else value for row, value in enumerate(self.normal)]

        assert {"null_share"} == moved(surge, self.normal)

    def test_all_null(self) -> None:
        """A column that turns all NULL has no PSI and no KS, but its null share has moved."""
        found = drifts(pl.Series([None] * 500, dtype=pl.Float64), self.normal)

        for metric in ("psi", "ks"):
            assert found[metric] == Drift("x", metric, None, None, None, BANDS[metric], "not enough data", 0, 5000)
        assert ("moved", 1.0, 500) == (
            found["null_share"].verdict,
            found["null_share"].value,
            found["null_share"].n,
        )

    def test_nulls_vanish(self) -> None:
        """A share that falls has moved as one that rises has, and is negative."""
        drift = drifts([True] * 500, [True, None] * 500)["null_share"]

        assert ("moved", -0.5) == (drift.verdict, drift.value)

    def test_unseen(self) -> None:
        """Two in a hundred rows with a new category move the unseen share alone."""
        assert {"unseen_share"} == moved(["a", "b"] * 490 + ["c"] * 20, ["a", "b"] * 1000)

    def test_categories_swap(self) -> None:
        """Categories that trade places have moved."""
        assert {"psi"} == moved(["a"] * 300 + ["b"] * 700, ["a"] * 700 + ["b"] * 300)

    def test_boolean(self) -> None:
        """A truth that becomes common has moved."""
        assert {"psi"} == moved([True, False] * 200, [True] * 100 + [False] * 900)

    def test_text_lengths(self) -> None:
        """Text whose lengths change has moved by KS; values that are all new are spread as the old ones were."""
        words = [f"{row:05}" for row in range(1000)]

        assert {"ks"} == moved([f"{word}!" for word in words], words)

    def test_text_values(self) -> None:
        """Text of the same lengths in which some values become common has moved by the hashes' PSI."""
        words = [f"{row:05}" for row in range(3000)]

        assert {"psi"} == moved(words[:1000] + words[:3] * 300, words)
        assert set() == moved(words[1000:2500], words)

    @pytest.mark.parametrize(
        ("current", "reference"),
        [([1e308] * 1000, [0.0, 1.0] * 500), ([1.0] * 1000, [0.0, 1e200] * 500), ([1e300] * 1000, [0.0, 1e-150] * 500)],
    )
    @pytest.mark.filterwarnings("error::RuntimeWarning:batchscore.drift", "error::RuntimeWarning:batchscore.distances")
    def test_values_beyond_a_double(self, current: list[float], reference: list[float]) -> None:
        """Every metric is finite or there is none, where sums, deviations or their quotient are beyond a double."""
        found = drifts(current, reference)

        assert found["wasserstein"].value is None
        assert all(math.isfinite(each.value) for each in found.values() if each.value is not None)
        assert "moved" == found["psi"].verdict

    def test_integers(self) -> None:
        """A whole number that training never saw is unseen, between the known ones too."""
        assert {"unseen_share"} == moved([1, 2, 4] * 330 + [3] * 30, [1, 2, 4] * 1000)
        assert set() == moved([1, 2, 4] * 330, [1, 2, 4] * 1000)

    def test_private(self) -> None:
        """A private column is compared by its hashes and its NULLs alone, and by these alone where it has few values."""
        known, few = [f"p{row % 400}" for row in range(8000)], [f"p{row % 40}" for row in range(8000)]
        many, hidden = (Layout.of(pl.Series(values), private=True) for values in (known, few))

        assert ["psi", "js", "hellinger", "null_share"] == list(drifts(known, known, many))
        assert {"psi"} == moved([f"p{row % 4}" for row in range(1000)], known, many)
        assert {"null_share"} == moved([None] * 100 + known[:900], known, many)
        assert set() == moved(known[:4000], known, many)
        assert ["null_share"] == list(drifts(few, few, hidden))
        assert {"null_share"} == moved([None] * 100 + few[:900], few, hidden)

    def test_staleness(self) -> None:
        """A feed that stopped is seen by its newest instant: one interval late is stale, and half of one is not."""
        day = timedelta(days=1)
        training = pl.DataFrame({"x": [datetime(2024, 1, 1) + timedelta(hours=h) for h in range(24 * 60)]})
        layouts = Profile.layouts_of(training)
        reference = Profile.of(training, layouts)
        times = Times(datetime(2024, 4, 2, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC), day)

        def judged(last: datetime) -> tuple[str, float]:
            rows = pl.DataFrame({"x": [last - timedelta(minutes=m) for m in range(300)]})
            found = {each.metric: each for each in compare(Profile.of(rows, layouts), reference, times=times)}
            return found["staleness"].verdict, found["staleness"].value or 0.0

        assert ("moved", 1.0) == judged(datetime(2024, 3, 31, 23))
        assert ("steady", 0.5) == judged(datetime(2024, 4, 1, 11))
        assert ("steady", 0.0) == judged(datetime(2024, 4, 1, 23))


class TestNotFound:
    """What must not be called drift."""

    def test_few_rows(self) -> None:
        """Below 200 rows on either side the verdict is that there is not enough data, whatever the value."""
        for sizes in [(199, 1000), (1000, 199), (0, 1000), (1000, 0), (0, 0)]:
            current, reference = (np.full(size, float(side)) for side, size in enumerate(sizes))
            layout = Layout("numeric", (0.0, 0.5))
            found = drifts(current, reference, layout)

            assert {"not enough data", "not judged"} == {drift.verdict for drift in found.values()}
            assert {sizes} == {(drift.n, drift.reference_n) for drift in found.values()}
            assert all((drift.value is None) == (0 in sizes) for drift in found.values() if drift.metric in BANDS)
        assert {"psi", "ks"} == moved(np.zeros(200), np.ones(200), layout)

    def test_calendar(self) -> None:
        """A datetime moves on by nature: only its null share is compared."""
        days = [date(2020, 1, 1) + timedelta(row) for row in range(400)]

        assert ["null_share"] == list(drifts(days, days))
        assert set() == moved([day + timedelta(1000) for day in days], days)

    def test_long_tail(self) -> None:
        """New values of a column that always had new values are expected, when the reference is the training rows."""
        rng = np.random.default_rng(9)
        reference, current = (rng.zipf(1.7, size=size).clip(0, 10**6).astype(str) for size in (5000, 5000))
        found = drifts(current, reference)
        layouts = Profile.layouts_of(pl.DataFrame({"x": reference}))
        share = Profile.of(pl.DataFrame({"x": current}), layouts).columns["x"].unseen_share

        assert share > 2 * BANDS["unseen_share"]
        assert {"steady", "not judged"} == {drift.verdict for drift in found.values()}
        assert abs(found["unseen_share"].value or 0.0) < share / 2

    def test_rare_categories(self) -> None:
        """Rare categories share a bin, and no more than 20 bins are compared."""
        for categories, rows, bins in [(2, 1000, 3), (18, 1000, 19), (25, 1000, 20), (150, 1000, 2), (400, 9000, 2)]:
            values = [f"v{row % categories}" for row in range(30_000)]
            drift = drifts(values[:rows], values)["psi"]

            assert drift.floor == pytest.approx(stats.chi2.isf(0.01, bins - 1) * (1 / rows + 1 / 30_000))

    def test_coarse_bins(self) -> None:
        """PSI is over ten bins of continuous values; of one or three values, over these and the two sides of them."""
        rng = np.random.default_rng(10)
        for values, bins in [(rng.normal(size=2000), 10), (rng.integers(0, 3, 2000), 5), (np.ones(2000), 3)]:
            drift = drifts(values, values)["psi"]

            assert (0.0, "steady") == (drift.value, drift.verdict)
            assert drift.floor == pytest.approx(stats.chi2.isf(0.01, bins - 1) * 2 / 2000)

    def test_unlike_layouts(self) -> None:
        """Profiles of two model versions, whose bins differ, are refused by column."""
        frame = pl.DataFrame({"fare": [1.0]})
        one, two = (Profile.of(frame, {"fare": Layout("numeric", (edge,))}) for edge in (1.0, 2.0))

        with pytest.raises(ProfileMismatch, match="Column fare"):
            compare(one, two)

    def test_shared_columns(self) -> None:
        """Columns of one side only are left out; the order is the reference's."""
        layouts = {name: Layout("boolean") for name in "abc"}
        current, reference = (Profile.empty({name: layouts[name] for name in names}) for names in ("ac", "cba"))

        assert ["c", "a"] == list(dict.fromkeys(drift.column for drift in compare(current, reference)))
        assert [] == compare(Profile.empty({}), reference)

    def test_starts_fast(self) -> None:
        """Importing the module does not import scipy."""
        script = "import sys, batchscore.drift; sys.exit('scipy' in sys.modules)"

        assert 0 == subprocess.run([sys.executable, "-c", script], check=False).returncode
