"""What a profile counts, and that merging chunks gives the profile of the whole."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscore.errors import ProfileMismatch
from batchscore.layout import PRIVATE, Layout
from batchscore.profile import ColumnProfile, Profile
from batchscore.sketch import Sketch

NUMBERS = st.one_of(
    st.floats(),
    st.floats(-10, 10),
    st.sampled_from([0.0, -0.0, 1.0, math.inf, -math.inf, math.nan, 5e-324, 1.7976931348623157e308]),
)
TAME = st.floats(-1e6, 1e6)
TYPES: dict[str, tuple[pl.DataType, st.SearchStrategy[Any]]] = {
    "float": (pl.Float64(), NUMBERS),
    "integer": (pl.Int64(), st.one_of(st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1))),
    "boolean": (pl.Boolean(), st.booleans()),
    "string": (pl.String(), st.text("abcé\0 ", max_size=3)),
    "date": (pl.Date(), st.dates()),
    "timestamp": (pl.Datetime("us"), st.datetimes()),
    "timestamp_tz": (pl.Datetime("us", "UTC"), st.datetimes(timezones=st.just(UTC))),
}
MANY = settings(max_examples=200, deadline=None)


@st.composite
def columns(draw: st.DrawFn, values: tuple[pl.DataType, st.SearchStrategy[Any]] | None = None) -> pl.Series:
    """A column of any canonical type, NULLs among its values."""
    dtype, value = values or draw(st.sampled_from(list(TYPES.values())))
    return pl.Series("x", draw(st.lists(st.none() | value, max_size=60)), dtype=dtype)


@st.composite
def chunked(draw: st.DrawFn, values: tuple[pl.DataType, st.SearchStrategy[Any]] | None = None) -> list[pl.Series]:
    """A column cut into chunks, some of size 0 or 1, in any order."""
    column = draw(columns(values))
    cuts = sorted(draw(st.lists(st.integers(0, len(column)), max_size=8)))
    chunks = [column[low:high] for low, high in pairwise([0, *cuts, len(column)])]
    return draw(st.permutations(chunks))


def layout_for(draw: st.DataObject, column: pl.Series) -> Layout:
    """A layout of the column's own values, or of others of its type."""
    other = draw.draw(columns((column.dtype, next(value for dtype, value in TYPES.values() if dtype == column.dtype))))
    return Layout.of(draw.draw(st.sampled_from([column, other])))


def exact(profile: ColumnProfile) -> dict[str, Any]:
    """The parts that must not depend on order or chunking at all."""
    names = ("n", "null", "nan", "pos_inf", "neg_inf", "zero", "negative", "minimum", "maximum", "finite")
    return {name: getattr(profile, name) for name in names} | {"counts": profile.counts.tolist()}


def profile_of(values: Any, layout: Layout | None = None) -> ColumnProfile:
    """The profile of some values, by default against their own layout."""
    column = pl.Series("x", values)
    return ColumnProfile.of(column, layout or Layout.of(column))


class TestMerge:
    """Merging."""

    @MANY
    @given(chunked(), st.data())
    def test_any_chunking(self, chunks: list[pl.Series], data: st.DataObject) -> None:
        """Counts, minima and maxima of merged chunks are those of one pass, whatever the cuts and their order."""
        whole = pl.concat(chunks)
        layout = layout_for(data, whole)

        merged = reduce(ColumnProfile.merge, [ColumnProfile.of(chunk, layout) for chunk in chunks])

        assert exact(ColumnProfile.of(whole, layout)) == exact(merged)

    @MANY
    @given(chunked((pl.Float64(), TAME)))
    def test_sums_to_rounding(self, chunks: list[pl.Series]) -> None:
        """Sums, mean and M2 of merged chunks are those of exact arithmetic, to a few units in the last place."""
        values = pl.concat(chunks).drop_nulls().to_list()
        layout = Layout.of(pl.concat(chunks))

        merged = reduce(ColumnProfile.merge, [ColumnProfile.of(chunk, layout) for chunk in chunks])

        scale = max(map(abs, values), default=0.0)
        assert merged.sums.sum() == pytest.approx(math.fsum(values), rel=0, abs=1e-14 * scale * (len(values) + 1))
        if values:
            mean = math.fsum(values) / len(values)
            assert merged.mean == pytest.approx(mean, rel=0, abs=1e-14 * scale)
            squares = math.fsum((value - mean) ** 2 for value in values)
            assert merged.m2 == pytest.approx(squares, rel=1e-12, abs=1e-14 * scale**2)

    @MANY
    @given(columns(), st.integers(0, 60), st.data())
    def test_commutes(self, column: pl.Series, cut: int, data: st.DataObject) -> None:
        """Which of two profiles is merged into which makes no difference in any bit."""
        layout = layout_for(data, column)
        one, two = ColumnProfile.of(column[:cut], layout), ColumnProfile.of(column[cut:], layout)

        assert one.merge(two) == two.merge(one)

    @MANY
    @given(chunked((pl.Float64(), TAME)))
    def test_associates(self, chunks: list[pl.Series]) -> None:
        """Merging from the left or from the right gives the same counts, and the same mean to rounding."""
        layout = Layout.of(pl.concat(chunks))
        profiles = [ColumnProfile.of(chunk, layout) for chunk in chunks]

        left = reduce(ColumnProfile.merge, profiles)
        right = reduce(lambda late, early: early.merge(late), reversed(profiles))

        assert exact(left) == exact(right)
        assert left.mean == (None if right.mean is None else pytest.approx(right.mean, rel=1e-12, abs=1e-8))

    @MANY
    @given(columns(), st.data())
    def test_empty_is_identity(self, column: pl.Series, data: st.DataObject) -> None:
        """The profile of no rows changes nothing, on either side."""
        layout = layout_for(data, column)
        profile = ColumnProfile.of(column, layout)

        assert profile == profile.merge(ColumnProfile.empty(layout)) == ColumnProfile.empty(layout).merge(profile)
        assert ColumnProfile.empty(layout) == ColumnProfile.of(column[:0], layout)

    def test_one_row_at_a_time(self) -> None:
        """A thousand chunks of one row give the moments of the whole: no chunk is too small to count."""
        values = np.random.default_rng(1).normal(1e9, 1.0, 1000)
        layout = Layout.of(pl.Series(values))

        merged = reduce(ColumnProfile.merge, [profile_of([value], layout) for value in values])

        assert merged.n == merged.finite == 1000
        assert merged.mean == pytest.approx(values.mean(), rel=1e-15)
        assert merged.std == pytest.approx(values.std(ddof=1), rel=1e-6)

    def test_constant_stays_constant(self) -> None:
        """Merged chunks of one repeated value have exactly that mean and no spread."""
        layout = Layout.of(pl.Series([0.1]))

        merged = reduce(ColumnProfile.merge, [profile_of([0.1] * size, layout) for size in (1, 7, 0, 1000, 3)])

        assert (merged.minimum, merged.maximum, merged.mean, merged.std) == (0.1, 0.1, 0.1, 0.0)

    def test_unlike_layouts(self) -> None:
        """Profiles with other edges or categories refuse to merge, even when as many."""
        numbers = profile_of([1.0], Layout("numeric", (0.0, 1.0))), profile_of([1.0], Layout("numeric", (0.0, 2.0)))
        words = (
            profile_of(["a"], Layout("categorical", (), ("a",))),
            profile_of(["a"], Layout("categorical", (), ("b",))),
        )

        for one, two in (numbers, words):
            with pytest.raises(ProfileMismatch, match="unlike layouts"):
                one.merge(two)


class TestJson:
    """Stored profiles."""

    @MANY
    @given(columns(), st.integers(0, 60), st.data())
    def test_round_trip(self, column: pl.Series, cut: int, data: st.DataObject) -> None:
        """A merged profile comes back from strict JSON equal in every bit, as does its layout."""
        layout = layout_for(data, column)
        profile = ColumnProfile.of(column[:cut], layout).merge(ColumnProfile.of(column[cut:], layout))

        stored = json.loads(json.dumps([layout.to_dict(), profile.to_dict()], allow_nan=False))
        read_layout = Layout.from_dict(stored[0])
        read = ColumnProfile.from_dict(stored[1], read_layout)

        assert (layout, profile) == (read_layout, read)
        assert profile.sums.tobytes() == read.sums.tobytes()
        assert (profile.counts.dtype, profile.sums.dtype) == (read.counts.dtype, read.sums.dtype)

    def test_overflow(self) -> None:
        """Sums beyond a double are stored as text, since JSON has no infinity, and read back as one."""
        profile = profile_of([-1.7e308, 1.7e308, 1.7e308])

        stored = json.loads(json.dumps(profile.to_dict(), allow_nan=False))

        assert "inf" in stored["sums"]
        assert "inf" == stored["m2"]
        assert profile == ColumnProfile.from_dict(stored, profile.layout)

    def test_layouts_stay_in_the_bundle(self) -> None:
        """A stored profile names its layouts by digest only, and is refused with others."""
        frame = pl.DataFrame({"x": np.arange(1000.0), "y": ["a", "b"] * 500})
        layouts = Profile.layouts_of(frame)
        profile = Profile.of(frame, layouts)

        stored = json.loads(json.dumps(profile.to_dict()))

        assert profile == Profile.from_dict(stored, layouts)
        assert "edges" not in json.dumps(stored)
        assert layouts["x"].digest == stored["x"]["layout"]
        with pytest.raises(ProfileMismatch, match="unlike layouts"):
            Profile.from_dict(stored, layouts | {"x": Layout("numeric", (1.0,))})
        with pytest.raises(ProfileMismatch, match="y"):
            Profile.from_dict(stored, {"x": layouts["x"]})

    def test_digest(self) -> None:
        """The digest is of the content alone and does not change between releases."""
        layout = Layout("numeric", (0.1, 2.0))

        assert layout.digest == Layout.from_dict(layout.to_dict()).digest
        assert layout.digest != Layout("datetime", (0.1, 2.0)).digest
        assert layout.digest == "692c0509b335deba48d552b11d26571e40e1ed48dbd65af5ac3c3f1c3f97e4b0"

    def test_other_version(self) -> None:
        """A layout written under other rules is refused, and so is a sketch by another hash."""
        with pytest.raises(ProfileMismatch, match="version 3"):
            Layout.from_dict(Layout("boolean").to_dict() | {"version": 3})
        stored = profile_of(["a"], Layout("text")).to_dict()
        stored["sketch"]["hash"] = "another-1"
        with pytest.raises(ProfileMismatch, match="hashed by another-1"):
            ColumnProfile.from_dict(stored, Layout("text"))


class TestBins:
    """Edges, and which bin a value is in."""

    @MANY
    @given(columns((pl.Float64(), NUMBERS)), st.data())
    def test_definition(self, column: pl.Series, data: st.DataObject) -> None:
        """Bin i holds edges[i-1] < x <= edges[i], as counted value by value."""
        layout = layout_for(data, column)
        finite = [value for value in column.drop_nulls() if math.isfinite(value)]
        borders = [-math.inf, *layout.edges, math.inf]

        counts = [sum(low < value <= high for value in finite) for low, high in pairwise(borders)]

        assert counts == ColumnProfile.of(column, layout).counts.tolist()

    def test_right_closed(self) -> None:
        """A value equal to an edge belongs to the bin that ends there."""
        profile = profile_of([0.0, 1.0, 1.5, 2.0, 2.5], Layout("numeric", (0.0, 1.0, 2.0)))

        assert [1, 1, 2, 1] == profile.counts.tolist()
        assert [0.0, 1.0, 3.5, 2.5] == profile.sums.tolist()

    def test_equal_masses(self) -> None:
        """Continuous values get 139 edges, with at most 1/128 of the rows between two; the outer bins are empty."""
        values = np.random.default_rng(2).lognormal(size=50_000)
        layout = Layout.of(pl.Series(values))

        assert len(layout.edges) == 139
        assert set(layout.edges[1:]) <= set(values)
        assert (np.nextafter(values.min(), 0), values.max()) == (layout.edges[0], layout.edges[-1])
        assert [0, 0] == profile_of(values, layout).counts[[0, -1]].tolist()
        assert profile_of(values, layout).counts.max() <= math.ceil(50_000 / 128)

    @MANY
    @given(st.lists(st.integers(-3, 3) | st.integers(-(10**6), 10**6), min_size=1, max_size=400))
    def test_atoms_stand_alone(self, values: list[int]) -> None:
        """A value that holds 1/128 of the rows, and more than one, has a bin to itself."""
        heavy = [value for value in set(values) if values.count(value) >= max(2, len(values) / 128)]

        profile = profile_of(pl.Series(values).cast(pl.Float64))
        for value in heavy:
            place = profile.layout.edges.index(float(value))
            assert value - 1 <= profile.layout.edges[place - 1] < value
            assert values.count(value) == profile.counts[place]

    @MANY
    @given(st.lists(st.integers(-3, 3) | st.integers(-(10**6), 10**6), min_size=1, max_size=400), st.data())
    def test_integers(self, values: list[int], data: st.DataObject) -> None:
        """Each whole number of training is counted by itself, and what lies between and beyond them apart."""
        layout = Layout.of(pl.Series(values))
        known = sorted(set(values))
        others = data.draw(st.lists(st.integers(-5, 5) | st.sampled_from(known)))
        profile = profile_of(others, layout)

        assert ("integer", known) == (layout.kind, list(layout.edges))
        assert [others.count(value) for value in known] == profile.counts[1::2].tolist()
        between = [sum(low < value < high for value in others) for low, high in pairwise([-math.inf, *known, math.inf])]
        assert between == profile.counts[::2].tolist()
        assert profile.unseen_share == pytest.approx(sum(between) / max(len(others), 1))

    def test_too_many_integers(self) -> None:
        """With more than 1,000 values a whole number is binned as any other."""
        assert ["integer", "numeric"] == [Layout.of(pl.Series(range(n))).kind for n in (1000, 1001)]

    def test_zero_inflated(self) -> None:
        """Zeros, the negative values that training did not have, and small positive ones are three bins."""
        rng = np.random.default_rng(3)
        layout = Layout.of(pl.Series(np.where(rng.random(5000) < 0.6, 0.0, rng.exponential(size=5000))))

        places = [profile_of([value], layout).counts.argmax() for value in (-1e-300, 0.0, -0.0, 1e-9)]

        assert [0, 1, 1, 2] == places
        assert -np.finfo(np.float64).tiny == layout.edges[0]
        assert len(layout.edges) < 70

    def test_constant(self) -> None:
        """Against a constant column, what lies below, at and above it is told apart."""
        for values, profile in [([4, 5, 6], profile_of([5] * 9)), ([4.99, 5.0, 5.01], profile_of([5.0] * 9))]:
            assert [0, 9, 0] == profile.counts.tolist()
            assert [1, 1, 1] == profile_of(values, profile.layout).counts.tolist()

    def test_uniform(self) -> None:
        """Scores fall in bins of equal width, and values outside the interval in two of their own."""
        layout = Layout.uniform(0.0, 1.0, 200)
        profile = profile_of([-1e-9, -0.0, 0.0, 0.005, 0.0051, 1.0, 1.1], layout)

        assert (202, [0, 1, 2, 200, 201]) == (len(profile.counts), profile.counts.nonzero()[0].tolist())
        assert profile.outside_share == pytest.approx(2 / 7)

    def test_uniform_with_a_threshold(self) -> None:
        """A bin begins with the threshold, wherever it lies, and no bin is lost."""
        for threshold in (0.2437, 0.25, 1.0):
            layout = Layout.uniform(0.0, 1.0, 200, threshold)
            values = [np.nextafter(threshold, 0), threshold, 0.3, 0.7]

            places = [profile_of([value], layout).counts.argmax() for value in values]

            assert len(layout.edges) == 202
            assert places[1] == places[0] + 1
            assert places[2] < places[3]
        assert Layout.uniform(0.0, 1.0, 200, 0.0) == Layout.uniform(0.0, 1.0, 200)

    def test_nothing_to_cut(self) -> None:
        """A column without a finite value has one bin, and can still be counted against."""
        for column in (pl.Series([None] * 3, dtype=pl.Float64), pl.Series([math.nan, math.inf]), pl.Series([None])):
            layout = Layout.of(column)

            assert () == layout.edges
            assert [2] == profile_of([1.0, 2.0], layout).counts.tolist()

    def test_largest_double(self) -> None:
        """Edges stay finite beside the smallest and largest doubles."""
        huge = 1.7976931348623157e308

        assert all(map(math.isfinite, Layout.of(pl.Series([-huge] * 5 + [huge] * 5)).edges))


class TestStatistics:
    """What is counted for each type."""

    def test_missing_and_infinite(self) -> None:
        """NULL, NaN, +inf and -inf are four things, and none is in the bins."""
        profile = profile_of([None, None, math.nan, math.inf, math.inf, math.inf, -math.inf, 0.0, -2.0, 1.0])

        assert (10, 2, 1, 3, 1, 3) == (
            profile.n,
            profile.null,
            profile.nan,
            profile.pos_inf,
            profile.neg_inf,
            profile.finite,
        )
        assert (1, 1, 3) == (profile.zero, profile.negative, profile.counts.sum())
        assert 0.3 == profile.null_share

    def test_moments(self) -> None:
        """Minimum, maximum, mean, standard deviation and the sums per bin are numpy's."""
        values = np.random.default_rng(5).lognormal(size=10_000)
        layout = Layout.of(pl.Series(values))
        profile = profile_of(values, layout)
        sums, _ = np.histogram(values, [0.0, *np.nextafter(layout.edges, np.inf), np.inf], weights=values)

        assert (values.min(), values.max()) == (profile.minimum, profile.maximum)
        assert profile.mean == pytest.approx(values.mean(), rel=1e-13)
        assert profile.std == pytest.approx(values.std(ddof=1), rel=1e-13)
        assert profile.sums == pytest.approx(sums, rel=1e-12)

    def test_without_values(self) -> None:
        """A profile without a value has shares of 0 and no moments."""
        for layout in (Layout("numeric", (1.0,)), Layout("boolean"), Layout("categorical", (), ("a",))):
            profile = ColumnProfile.empty(layout)

            assert (0.0, 0.0, None, None, None) == (
                profile.null_share,
                profile.unseen_share,
                profile.mean,
                profile.std,
                profile.minimum,
            )
        assert profile_of([1.0]).std is None

    def test_null_type(self) -> None:
        """A column that a database gave no type, all NULL, fits every layout."""
        for layout in (
            Layout("datetime"),
            Layout("text", (1.0,)),
            Layout("boolean"),
            Layout("categorical", (), ("a",)),
        ):
            profile = profile_of([None, None], layout)

            assert (2, 2, 0) == (profile.n, profile.null, profile.counts.sum())

    @pytest.mark.parametrize("dtype", [pl.String(), pl.Categorical(), pl.Enum(["z", "c", "b", "a"])])
    def test_categories(self, dtype: pl.DataType) -> None:
        """Categories are counted in sorted order, then unseen ones; NULL is no category, however it is stored."""
        layout = Layout.of(pl.Series(["b", "a", None, "b", "a"], dtype=dtype))
        profile = ColumnProfile.of(pl.Series(["z", "a", "c", "b", None, "b"], dtype=dtype), layout)

        assert ("categorical", ("a", "b")) == (layout.kind, layout.categories)
        assert [1, 2, 2] == profile.counts.tolist()
        assert (1, 2 / 6) == (profile.null, profile.unseen_share)

    def test_empty_string_is_a_category(self) -> None:
        """An empty string is a value like any other, not NULL."""
        assert [2, 1, 0] == profile_of(["", "", "a", None]).counts.tolist()

    def test_all_null_text(self) -> None:
        """Of a text column that was all NULL at training, every value is unseen."""
        layout = Layout.of(pl.Series([None, None], dtype=pl.String))

        assert 0.5 == profile_of(["a", None], layout).unseen_share

    @pytest.mark.parametrize(
        ("rows", "distinct", "kind"),
        [
            (3, 2, "categorical"),
            (10, 10, "categorical"),
            (20, 11, "text"),
            (22, 11, "categorical"),
            (500, 500, "text"),
            (2000, 1000, "categorical"),
            (5000, 1001, "text"),
        ],
    )
    def test_categorical_or_text(self, rows: int, distinct: int, kind: str) -> None:
        """Text is categorical up to 1,000 distinct values and half of the rows; ten are few in any case."""
        values = [f"v{row % distinct}" for row in range(rows)]

        assert kind == Layout.of(pl.Series([*values, *[None] * rows])).kind

    def test_text(self) -> None:
        """Of text the lengths in characters are profiled, and an empty string counts as zero."""
        layout = Layout.of(pl.Series([f"{'é' * (row % 7)}{row}" for row in range(100)]))
        profile = profile_of(["", "é", "aé", None], layout)

        assert "text" == layout.kind
        assert (1, 1, 0.0, 2.0, 1.0) == (profile.zero, profile.null, profile.minimum, profile.maximum, profile.mean)

    def test_boolean(self) -> None:
        """A boolean counts false, then true."""
        profile = profile_of([True, False, True, None])

        assert ([1, 2], 1, 3) == (profile.counts.tolist(), profile.null, profile.finite)

    def test_instants(self) -> None:
        """Dates and timestamps, of any unit and zone, are microseconds since 1970 in UTC."""
        noon = datetime(1970, 1, 2, 12, tzinfo=UTC)
        columns = [
            pl.Series([noon], dtype=pl.Datetime("us", "UTC")),
            pl.Series([noon], dtype=pl.Datetime("us", "UTC")).dt.convert_time_zone("America/New_York"),
            pl.Series([noon.replace(tzinfo=None)], dtype=pl.Datetime("ns")),
            pl.Series([noon.replace(tzinfo=None)], dtype=pl.Datetime("ms")),
        ]

        assert {36 * 3600 * 1e6} == {ColumnProfile.of(column, Layout.of(column)).mean for column in columns}
        assert 86400 * 1e6 == profile_of([date(1970, 1, 2)]).maximum
        with pytest.raises(ProfileMismatch, match="no profile describes"):
            Layout.of(pl.Series("wait", [timedelta(1)]))

    def test_other_numbers(self) -> None:
        """Decimals, small floats and integers beyond 2**53 are binned as doubles."""
        assert 0.25 == profile_of([Decimal("0.50"), Decimal("0.00")]).mean
        assert 0.5 == profile_of(pl.Series([0.5], dtype=pl.Float32)).minimum
        assert 2.0**63 == profile_of([2**63 - 1]).maximum

    def test_wrong_type(self) -> None:
        """A column of another type than training's is refused by name."""
        for column, layout in [
            (pl.Series("fare", ["1"]), Layout("numeric")),
            (pl.Series("fare", [1]), Layout("text")),
            (pl.Series("fare", [1.0]), Layout("boolean")),
        ]:
            with pytest.raises(ProfileMismatch, match="Column fare"):
                ColumnProfile.of(column, layout)


class TestProfile:
    """Whole frames."""

    def test_frames_merge(self) -> None:
        """Profiles of parts, merged, are the profile of the whole, from an empty start."""
        rng = np.random.default_rng(6)
        frame = pl.DataFrame({"x": rng.normal(size=500), "late": rng.random(500) < 0.2, "to": ["JFK", "LGA"] * 250})
        layouts = Profile.layouts_of(frame)

        parts = [Profile.of(part, layouts) for part in frame.iter_slices(99)]
        merged = reduce(Profile.merge, parts, Profile.empty(layouts))
        whole = Profile.of(frame, layouts)

        assert {name: exact(column) for name, column in whole.columns.items()} == {
            name: exact(column) for name, column in merged.columns.items()
        }
        assert (layouts, layouts) == (whole.layouts, merged.layouts)

    def test_columns(self) -> None:
        """A column without a layout is left out; a layout without its column is refused, as is another set of them."""
        layouts = {"x": Layout("numeric")}

        assert ["x"] == list(Profile.of(pl.DataFrame({"y": [1], "x": [1]}), layouts).columns)
        with pytest.raises(ProfileMismatch, match="x"):
            Profile.of(pl.DataFrame({"y": [1]}), layouts)
        for pair in [({}, layouts), (layouts, {})]:
            with pytest.raises(ProfileMismatch, match="x"):
                Profile.empty(pair[0]).merge(Profile.empty(pair[1]))

    def test_frozen(self) -> None:
        """Counts and sums cannot be written to, so that profiles may share them."""
        for profile in (profile_of([1.0]), ColumnProfile.empty(Layout("boolean")), profile_of(["a"])):
            for values in (profile.counts, profile.sums):
                assert not values.flags.writeable


class TestChosen:
    """How many rows of a bin have the class of the score predicted."""

    LAYOUT = Layout.uniform(0.0, 1.0, 10)

    def of(self, scores: list[float], rows: list[bool]) -> ColumnProfile:
        """The profile of scores, of which these rows have their class predicted."""
        column = pl.Series(scores, dtype=pl.Float64)
        return ColumnProfile.of(column, self.LAYOUT).choosing(column, pl.Series(rows, dtype=pl.Boolean))

    @MANY
    @given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60), st.lists(st.integers(0, 60), max_size=6))
    def test_any_chunking(self, rows: list[tuple[float, bool]], cuts: list[int]) -> None:
        """Merged chunks count exactly what one pass counts, through JSON too."""
        whole = self.of(*([each[i] for each in rows] for i in (0, 1)))
        spans = pairwise([0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)])
        parts = [self.of(*([each[i] for each in rows[low:high]] for i in (0, 1))) for low, high in spans]
        read = [ColumnProfile.from_dict(json.loads(json.dumps(each.to_dict())), self.LAYOUT) for each in parts]

        merged = reduce(ColumnProfile.merge, read[::-1], ColumnProfile.empty(self.LAYOUT))

        expected = [0] * self.LAYOUT.bins
        for score, chosen in rows:
            expected[int(np.searchsorted(self.LAYOUT.edges, score))] += chosen
        assert merged.chosen is not None
        assert whole.chosen is not None
        assert expected == whole.chosen.tolist() == merged.chosen.tolist()
        assert not merged.chosen.flags.writeable

    def test_a_part_without(self) -> None:
        """Where some rows are from before it was counted, nothing is told of the whole; without rows it does no harm."""
        counted, before = self.of([0.2, 0.8], [False, True]), ColumnProfile.of(pl.Series([0.5]), self.LAYOUT)
        nothing = self.of([], [])

        assert counted.merge(before) == before.merge(counted)
        assert counted.merge(before).chosen is None
        assert before.merge(nothing).chosen is None
        assert "chosen" not in before.to_dict()
        assert nothing.merge(ColumnProfile.empty(self.LAYOUT)) == nothing


class TestUnseen:
    """Which categories training never saw."""

    @MANY
    @given(st.lists(st.integers(0, 60), max_size=300), st.lists(st.integers(0, 300), max_size=6))
    def test_counted_whole(self, values: list[int], cuts: list[int]) -> None:
        """However rows are cut into chunks, at most twenty are told, each as often as it occurs."""
        layout = Layout("categorical", categories=("v0", "v1"))
        column = pl.Series("x", [f"v{value}" for value in values], dtype=pl.String)
        parts = [column[low:high] for low, high in pairwise([0, *sorted(cuts), len(values)])]
        whole = ColumnProfile.of(column, layout)
        merged = reduce(ColumnProfile.merge, (ColumnProfile.of(part, layout) for part in parts))
        strange = {f"v{value}": values.count(value) for value in values if value > 1}

        assert whole == merged
        assert whole.unseen.items() <= strange.items()
        assert len(whole.unseen) == min(len(strange), 20)

    def test_long_values_are_cut(self) -> None:
        """A value of any length is told by its first 128 characters."""
        profile = profile_of(["a" * 200, "a" * 300, None], Layout("categorical", categories=("a",)))

        assert {"a" * 128: 2} == profile.unseen
        assert profile == ColumnProfile.from_dict(json.loads(json.dumps(profile.to_dict())), profile.layout)


class TestPrivate:
    """A private column."""

    @pytest.mark.parametrize("values", [["John Smith", None, "Ann"], [4111.25, None, math.nan], [4111, None, 77]])
    def test_keeps_no_value(self, values: list[Any]) -> None:
        """Neither its layout nor its profile has a value, a bound or a mean; NULL and NaN are counted."""
        column = pl.Series("x", values, strict=False)
        layout = Layout.of(column, private=True)
        profile = ColumnProfile.of(column, layout)
        stored = json.dumps([layout.to_dict(), profile.to_dict()])

        assert not any(str(value) in stored for value in ("Smith", "Ann", "4111", "77.0"))
        assert [None] * 3 == [profile.minimum, profile.maximum, profile.mean]
        assert (3, 1) == (profile.n, profile.null)
        assert profile.nan == sum(value != value for value in values if value is not None)
        assert profile == ColumnProfile.of(column[:1], layout).merge(ColumnProfile.of(column[1:], layout))

    def test_few_values(self) -> None:
        """Of two values the profile has their sum alone, so that it is the same however often each occurs."""
        layout = Layout.of(pl.Series(["positive", "negative"] * 50), private=True)
        one, two = (profile_of(["positive"] * count + ["negative"] * (100 - count), layout) for count in (13, 87))

        assert one.to_dict() == two.to_dict()
        assert (100, None) == (one.n, one.sketch)

    def test_many_values(self) -> None:
        """Who knows every value and how often it occurs finds none of it: by the public hash, or another salt."""
        values = pl.Series([f"p{row % 300}" for row in range(3000)] + ["p7"] * 3000)
        layout, other = (Layout.of(values, private=True) for _ in range(2))
        seen, again, guessed = (profile_of(values, each).sketch for each in (layout, layout, other))
        public = Sketch.of(values)
        assert seen
        assert again
        assert guessed

        assert seen.to_dict() == again.to_dict()
        for guess in (public, guessed):
            alike = (seen.registers > 0) & (guess.registers > 0)
            # By chance 300 of 4,096 places and 300 others meet in about 22.
            assert 50 > alike.sum()
        assert (16, 6000) == (len(seen.buckets), seen.buckets.sum())
        assert abs(seen.distinct - 300) <= 4 * 0.0163 * 300

    def test_the_salt(self) -> None:
        """It is in the layout that the bundle keeps, and in no profile and no words about a layout."""
        values = pl.Series([f"p{row}" for row in range(256)])
        layout = Layout.of(values, private=True)

        assert 32 == len(layout.salt)
        assert layout == Layout.from_dict(json.loads(json.dumps(layout.to_dict())))
        assert layout.salt not in json.dumps(profile_of(values, layout).to_dict())
        assert layout.salt not in repr(layout)
        assert "" == Layout.of(values[:255], private=True).salt

    @pytest.mark.parametrize("values", [["John Smith", None, "Ann"], [4111.25, None, math.nan], [math.inf, None, 77.0]])
    def test_made_private_later(self, values: list[Any]) -> None:
        """A profile with values, stored or not, fits one without any, and what comes of both has none."""
        column = pl.Series("x", values, strict=False)
        layout = Layout.of(column)
        whole, hidden = ColumnProfile.of(column, layout), ColumnProfile.of(column, PRIVATE)
        stored = json.loads(json.dumps(whole.to_dict()))
        both = ColumnProfile.of(pl.concat([column, column]), PRIVATE)

        assert hidden == whole.without_values() == ColumnProfile.from_dict(stored, PRIVATE)
        assert hidden == ColumnProfile.from_dict(json.loads(json.dumps(hidden.to_dict())), layout)
        assert both == whole.merge(hidden) == hidden.merge(whole)
        assert PRIVATE == whole.merge(hidden).layout

    def test_made_private_later_among_others(self) -> None:
        """Of a profile only what is named loses its values, and a column with a secret of its own keeps that."""
        frame = pl.DataFrame({"a": range(300), "b": range(300), "c": range(300)})
        layouts = Profile.layouts_of(frame, ["c"])
        hidden = Profile.of(frame, layouts).without_values(["a", "c", "not there"])

        assert {"a": PRIVATE, "b": layouts["b"], "c": layouts["c"]} == hidden.layouts
        assert hidden == hidden.merge(Profile.empty(layouts))
        assert layouts["c"].salt
