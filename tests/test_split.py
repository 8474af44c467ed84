"""Which rows are held out, and how the others are cut into folds: every row once, and nothing on both sides."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from batchscore.errors import TrainingError
from batchscore.recipe import Folds, Split
from batchscore.train.split import folds, split
from tests.models import trips


def frame(n: int, **columns: Any) -> pl.DataFrame:
    """Rows with a number each, and the columns given."""
    return pl.DataFrame({"row": range(n), **columns})


class TestSplit:
    """`split`."""

    FRAMES = st.lists(st.integers(0, 8), min_size=2, max_size=60).map(
        lambda hours: pl.DataFrame(
            {
                "row": range(len(hours)),
                "started": [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=hour) for hour in hours],
            }
        )
    )
    SHARES = st.sampled_from([0.1, 0.2, 0.25, 1 / 3, 0.5, 0.9])

    @settings(deadline=None, max_examples=50)
    @given(FRAMES, SHARES)
    def test_latest_share(self, rows: pl.DataFrame, share: float) -> None:
        """By time, the share that is latest is held out, with all rows of its first instant and no earlier one."""
        want = max(1, round(share * rows.height))
        border = sorted(rows["started"])[-want]
        how = Split(by="time", column="started", test=share)
        if border == rows["started"].min():
            with pytest.raises(TrainingError, match="leaves 0 rows to fit on"):
                split(rows, how)
            return
        parts = split(rows, how)
        fit, test = parts.train, parts.test

        assert_frame_equal(rows, pl.concat([fit, test]).sort("row"))
        assert fit["started"].max() < test["started"].min() == border
        assert test.filter(pl.col("started") > border).height < want <= test.height

    @pytest.mark.parametrize(("share", "held_out"), [(0.1, 1), (0.2, 2), (0.3, 3), (0.7, 7), (0.9, 9)])
    def test_share_is_exact(self, share: float, held_out: int) -> None:
        """Where no two rows have the same instant, the share is the share, by time and at random."""
        rows = trips(10)
        for how in (Split(by="time", column="started", test=share), Split(by="random", test=share)):
            parts = split(rows, how)
            assert (10 - held_out, 0, held_out) == (parts.train.height, parts.validation.height, parts.test.height)

    @settings(deadline=None, max_examples=50)
    @given(st.integers(10, 80), SHARES, st.integers(0, 2**32 - 1))
    def test_random(self, n: int, share: float, seed: int) -> None:
        """At random, the seed alone decides which rows are held out; each is on one side, in the order given."""
        rows, how = trips(n), Split(by="random", test=share, seed=seed)
        parts = split(rows, how)
        fit, test = parts.train, parts.test

        assert_frame_equal(rows, pl.concat([fit, test]).sort("id"))
        assert round(n * share) == test.height
        assert fit["id"].is_sorted()
        assert test["id"].is_sorted()
        assert test["id"].to_list() == split(rows.with_columns(distance=0.0), how).test["id"].to_list()

    def test_seeds(self) -> None:
        """Another seed holds out other rows, and no seed holds out the last ones only."""
        held_out = [
            tuple(split(trips(100), Split(by="random", test=0.2, seed=seed)).test["id"].to_list()) for seed in range(20)
        ]

        assert 20 == len(set(held_out))
        assert tuple(range(80, 100)) not in held_out
        assert len({row for rows in held_out for row in rows}) > 90

    @pytest.mark.parametrize(
        ("rows", "how", "says"),
        [
            (trips(9), Split(by="time", column="distance"), "'distance' is float, and must be a date or timestamp"),
            (
                trips(9).with_columns(started=pl.lit("2024-01-01")),
                Split(by="time", column="started"),
                "'started' is string, and must .* in SQLite declare it",
            ),
            (
                trips(9).with_columns(started=pl.lit(None, pl.Datetime)),
                Split(by="time", column="started"),
                "'started' is NULL in 9 of 9 rows",
            ),
            (
                trips(9).with_columns(started=datetime(2024, 1, 1)),
                Split(by="time", column="started"),
                "0 rows to fit on and 9",
            ),
            (trips(1), Split(by="time", column="started"), "0 rows to fit on and 1"),
            (trips(1), Split(by="random"), "1 rows to fit on and 0"),
        ],
    )
    def test_refuses(self, rows: pl.DataFrame, how: Split, says: str) -> None:
        """Without a time to split by, or with a side that would be empty, there is nothing to measure by."""
        with pytest.raises(TrainingError, match=says):
            split(rows, how)

    @pytest.mark.parametrize(
        "how",
        [
            Split(by="time", column="started", validation=0.2, test=0.3),
            Split(by="random", validation=0.2, test=0.3, seed=4),
            Split(by="group", column="group", validation=0.2, test=0.3, seed=4),
        ],
        ids=lambda how: how.by,
    )
    def test_three_parts(self, how: Split) -> None:
        """Each row is in one part, in the order given, and both shares are shares of the whole."""
        rows = trips(200).with_columns(group=pl.col("id") % 50)
        parts = split(rows, how)

        assert_frame_equal(rows, pl.concat([parts.train, parts.validation, parts.test]).sort("id"))
        assert (100, 40, 60) == (parts.train.height, parts.validation.height, parts.test.height)
        for part in (parts.train, parts.validation, parts.test):
            assert part["id"].is_sorted()

    @settings(deadline=None, max_examples=50)
    @given(FRAMES, st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([0.1, 0.2, 0.5]))
    def test_time_runs_forward(self, rows: pl.DataFrame, validation: float, test: float) -> None:
        """By time, what is chosen by comes after what is fitted on, and the test last; an instant is in one part."""
        how = Split(by="time", column="started", validation=validation, test=test)
        shuffled = rows.sample(fraction=1, shuffle=True, seed=1)
        if rows["started"].n_unique() < 3:
            with pytest.raises(TrainingError, match=r"rows to fit on, \d+ to choose by and \d+ to test on"):
                split(shuffled, how)
            return
        try:
            parts = split(shuffled, how)
        except TrainingError as error:
            assert "the split leaves 0 rows to fit on" in str(error)  # noqa: PT017 - either way is right
            return

        assert parts.train["started"].max() < parts.validation["started"].min()
        assert parts.validation["started"].max() < parts.test["started"].min()
        assert rows["row"].to_list() == sorted(pl.concat([parts.train, parts.validation, parts.test])["row"])

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g"]), min_size=7, max_size=60), st.integers(0, 99))
    def test_groups_stay_together(self, groups: list[str], seed: int) -> None:
        """By group, no group is in two parts, and the shares are shares of the groups."""
        names = sorted(set(groups))
        how = Split(by="group", column="group", validation=0.25, test=0.25, seed=seed)
        rows = frame(len(groups), group=groups)
        if round(len(names) * 0.25) == 0 or len(names) < 3:
            with pytest.raises(TrainingError, match="Widen the training window"):
                split(rows, how)
            return
        parts = split(rows, how)
        held = [set(part["group"]) for part in (parts.train, parts.validation, parts.test)]

        assert names == sorted(name for part in held for name in part)
        assert round(len(names) * 0.25) == len(held[2])
        assert rows["row"].to_list() == sorted(pl.concat([parts.train, parts.validation, parts.test])["row"])

    @pytest.mark.parametrize("dtype", [pl.Int64, pl.Float64, pl.String, pl.Boolean, pl.Date])
    def test_groups_of_every_type(self, dtype: Any) -> None:
        """Whatever the type of the groups' column, a group is on one side."""
        rows = frame(40, group=pl.Series([i % 2 for i in range(40)]).cast(pl.Int32 if dtype == pl.Date else pl.Int64))
        rows = rows.with_columns(pl.col("group").cast(dtype))
        parts = split(rows, Split(by="group", column="group", test=0.5))

        assert (1, 1) == (parts.train["group"].n_unique(), parts.test["group"].n_unique())
        assert parts.train["group"][0] != parts.test["group"][0]

    def test_group_is_null(self) -> None:
        """A row whose group is NULL is of none, and the split says how many there are and where to mend them."""
        rows = frame(10, group=[None, None, *range(8)])

        with pytest.raises(
            TrainingError, match=r"split: column 'group' is NULL in 2 of 10 rows.*Fill it at the source"
        ):
            split(rows, Split(by="group", column="group"))
        with pytest.raises(TrainingError, match=r"cross_validation: column 'group' is NULL in 2 of 10 rows"):
            folds(rows, Folds(by="group", column="group", folds=2), "")

    @settings(deadline=None, max_examples=50)
    @given(st.integers(5, 40), st.integers(20, 200), st.integers(0, 99))
    def test_classes_keep_their_shares(self, few: int, many: int, seed: int) -> None:
        """At random each part has its share of each class, to within a row."""
        rows = frame(few + many, y=[True] * few + [False] * many)
        parts = split(rows, Split(by="random", validation=0.2, test=0.2, seed=seed), "y")

        for part, share in ((parts.train, 0.6), (parts.validation, 0.2), (parts.test, 0.2)):
            assert abs(part["y"].sum() - few * share) <= 1.5
            assert abs((~part["y"]).sum() - many * share) <= 1.5

    @pytest.mark.parametrize("labels", [["rare"] + ["often"] * 99, [7] + [1] * 99])
    def test_class_too_rare(self, labels: list[Any]) -> None:
        """A class of one row cannot be in two parts, and is named with what to do."""
        says = rf"100 rows .* y = {labels[0]!r} has 1 of them. Widen the training window, or leave the class out"

        with pytest.raises(TrainingError, match=says):
            split(frame(100, y=labels), Split(by="random"), "y")

    def test_more_classes_than_rows_held_out(self) -> None:
        """A part with fewer rows than there are classes is refused."""
        with pytest.raises(TrainingError, match="cannot be split with every class in each part"):
            split(frame(20, y=[i % 10 for i in range(20)]), Split(by="random", test=0.2), "y")


def cut(rows: pl.DataFrame, target: str = "y", **how: Any) -> list[tuple[list[int], list[int]]]:
    """The folds as lists of positions."""
    return [(fit.tolist(), test.tolist()) for fit, test in folds(rows, Folds(**how), target)]


class TestFolds:
    """`folds`."""

    ROWS = frame(
        60,
        y=[i % 4 == 0 for i in range(60)],
        group=[f"g{i % 7}" for i in range(60)],
        day=[date(2024, 1, 1) + timedelta(days=(i * 7) % 20) for i in range(60)],
    )
    ALL = (
        {"by": "k-fold", "folds": 4},
        {"by": "stratified", "folds": 4},
        {"by": "group", "column": "group", "folds": 4},
        {"by": "leave-one-out"},
    )

    @pytest.mark.parametrize("how", ALL, ids=lambda how: how["by"])
    def test_each_row_is_tested_once(self, how: dict[str, Any]) -> None:
        """But for folds by time, each row is measured on once, and never in the fold that it is fitted in."""
        cuts = cut(self.ROWS, **how)

        assert how.get("folds", 60) == len(cuts)
        assert list(range(60)) == sorted(row for _, test in cuts for row in test)
        for fit, test in cuts:
            assert list(range(60)) == sorted([*fit, *test])

    @pytest.mark.parametrize("by", ["k-fold", "stratified"])
    def test_seed(self, by: str) -> None:
        """The seed alone decides, and the folds are not the rows' order cut in pieces."""
        one = cut(self.ROWS, by=by, seed=1)

        assert one == cut(self.ROWS, by=by, seed=1) != cut(self.ROWS, by=by, seed=2)
        assert any(test[-1] - test[0] >= len(test) for _, test in one)

    def test_stratified(self) -> None:
        """Each fold has the class's share."""
        for fit, test in cut(self.ROWS, by="stratified", folds=5):
            assert (12, 3) == (sum(i % 4 == 0 for i in fit), sum(i % 4 == 0 for i in test))

    @pytest.mark.parametrize("dtype", [pl.String, pl.Int64, pl.Float64, pl.Date])
    def test_group(self, dtype: Any) -> None:
        """No group is on both sides of a fold, whatever its type."""
        group = pl.Series([i % 7 for i in range(60)]).cast(pl.Int32).cast(dtype)
        for fit, test in cut(self.ROWS.with_columns(group=group), by="group", column="group", folds=3):
            assert not {i % 7 for i in fit} & {i % 7 for i in test}

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.integers(0, 12), min_size=2, max_size=60), st.integers(2, 5))
    def test_time(self, days: list[int], count: int) -> None:
        """By time, what is fitted on comes before what is measured on, whatever the order and however many share a day."""
        rows = frame(len(days), day=[date(2024, 1, 1) + timedelta(days=day) for day in days])
        if len(set(days)) <= count:
            with pytest.raises(TrainingError, match=rf"{len(days)} training rows cannot be cut into {count} folds"):
                cut(rows, by="time", column="day", folds=count)
            return
        cuts = cut(rows, by="time", column="day", folds=count)
        tested = [row for _, test in cuts for row in test]

        assert count == len(cuts)
        assert len(tested) == len(set(tested))
        for fit, test in cuts:
            assert max(days[i] for i in fit) < min(days[i] for i in test)
        assert max(days) == max(days[i] for i in cuts[-1][1])

    @pytest.mark.parametrize(
        ("rows", "how", "says"),
        [
            (frame(3, y=[1, 2, 3]), {"by": "k-fold"}, "3 training rows cannot be cut into 5 folds.*Lower .* folds, or"),
            (frame(3, y=[1, 1, 1]), {"by": "stratified"}, r"3 training rows cannot .* rarest class of y has 3 rows"),
            (frame(30, y=[0] * 28 + [1] * 2), {"by": "stratified"}, r"the rarest class of y has 2 rows"),
            (
                frame(30, y=0, group=[i % 2 for i in range(30)]),
                {"by": "group", "column": "group"},
                "30 training rows cannot be cut into 5 folds .group.: .*number of groups: 2",
            ),
            (
                frame(3, y=[1, 2, 3], day=date(2024, 1, 1)),
                {"by": "time", "column": "day"},
                "cannot be cut into 5 folds",
            ),
            (
                frame(9, y=0, day=5.0),
                {"by": "time", "column": "day"},
                "cross_validation: column 'day' is float, and must be a date or timestamp",
            ),
            (frame(1, y=[1]), {"by": "leave-one-out"}, "1 training row cannot be left out one by one"),
        ],
    )
    def test_refuses(self, rows: pl.DataFrame, how: dict[str, Any], says: str) -> None:
        """Fewer rows, groups, instants or rows of a class than folds are refused, with what there is and what to do."""
        with pytest.raises(TrainingError, match=says) as refused:
            cut(rows, **how)

        assert ".." not in str(refused.value)
