"""What the audit finds and what it leaves alone, at each bound, and that it looks at training rows only."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from batchscore.errors import TrainingError
from batchscore.model.evaluation import Finding
from batchscore.model.features import Features
from batchscore.recipe import Audit
from batchscore.train.audit import audit, refuse
from batchscore.train.workflow import train
from tests.models import CLASSIFIER, SQL, Frame, job, labels, slow, trips

N = 400
RNG = np.random.default_rng(3)
BINARY = RNG.random(N) < 0.4


def found(rows: dict[str, Any], target: Any = BINARY, task: str = "binary", **bounds: Any) -> dict[str, Finding]:
    """The findings by check and column, such as `leak x`."""
    training = {"audit": bounds} if bounds else {}
    asked = job(problem={"task": task}, training=training, output={"carry": []})
    frame = pl.DataFrame({"id": range(len(target)), **rows, "slow": target}, strict=False)
    return {f"{each.check} {each.column or ''}".strip(): each for each in audit(asked, frame)}


def suspects(rows: dict[str, Any], target: Any = BINARY, task: str = "binary", **bounds: Any) -> set[str]:
    """The names of those that are past their bound."""
    return {name for name, each in found(rows, target, task, **bounds).items() if each.suspect}


class TestColumns:
    """What is told of a column by itself, and of the rows."""

    @pytest.mark.parametrize(("nulls", "suspect"), [(0, None), (199, False), (200, True), (399, True)])
    def test_missing(self, nulls: int, suspect: bool | None) -> None:
        """NULLs are told with their share, and are suspect from half of the rows on."""
        told = found({"x": [None if i < nulls else float(i % 97) for i in range(N)]})

        if suspect is None:
            assert "missing x" not in told
        else:
            assert (nulls / N, suspect) == (told["missing x"].value, told["missing x"].suspect)
            assert f"x is NULL in {nulls / N:.1%} of the rows" == told["missing x"].told

    @pytest.mark.parametrize(
        ("values", "shown"),
        [
            ([3] * N, "3"),
            (["a"] * N, "'a'"),
            ([None, *[2.5] * (N - 1)], "2.5"),
            ([math.nan] * N, "nan"),
            ([True] * N, "True"),
            ([date(2024, 1, 1)] * N, "datetime.date(2024, 1, 1)"),
            (pl.Series([None] * N, dtype=pl.Float64), "NULL"),
            (pl.Series([None] * N, dtype=pl.String), "NULL"),
        ],
    )
    def test_constant(self, values: Any, shown: str) -> None:
        """A column with one value, or none, is constant, whatever its type; one odd row makes it not."""
        told = found({"x": values})["constant x"]

        assert told.suspect
        assert f"x is {shown} in every row" in told.told
        assert "constant x" not in found({"x": [0, *[3] * (N - 1)]})

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.floats(-1e6, 1e6), min_size=30, max_size=60))
    def test_outliers(self, values: list[float]) -> None:
        """The share of outliers is that of Tukey's fences, as numpy's quartiles draw them."""
        low, high = np.quantile(values, [0.25, 0.75])
        reach = 1.5 * (high - low)
        share = np.mean([value < low - reach or value > high + reach for value in values]) if reach else 0.0
        told = found({"x": values}, [i % 2 == 0 for i in range(len(values))]).get("outliers x")

        assert share == (told.value if told else 0.0)

    @pytest.mark.parametrize(("odd", "suspect"), [(0, None), (39, False), (40, True)])
    def test_outliers_bound(self, odd: int, suspect: bool | None) -> None:
        """A tenth of the rows beyond the fences is suspect; NULL, NaN and infinities are no outliers."""
        values = [1e6 if i < odd else float(i % 50) for i in range(N)]
        told = found({"x": values}).get("outliers x")
        spoilt = found({"x": [*values, None, math.nan, math.inf, -math.inf]}, [*BINARY, True, True, True, False])

        assert suspect == (told.suspect if told else None)
        assert ("outliers x" in spoilt) == (odd > 0)
        if told:
            assert "it goes from 0 to 1e+06" in told.told

    @pytest.mark.parametrize(
        "column", [[True, False] * 200, ["a", "b"] * 200, [date(1, 1, 1), *[date(2024, 1, 1)] * 399]]
    )
    def test_no_number_no_outlier(self, column: list[Any]) -> None:
        """Booleans, texts and dates have no outliers."""
        assert not [name for name in found({"x": column}) if name.startswith("outliers")]

    @pytest.mark.parametrize(("doubled", "suspect"), [(0, None), (3, False), (4, True), (200, True)])
    def test_duplicates(self, doubled: int, suspect: bool | None) -> None:
        """Rows alike in all but key and target are counted, the first of them not; one in a hundred is suspect."""
        told = found({"x": [0 if i < doubled else i for i in range(N)], "y": "same"}).get("duplicates")
        count = max(0, doubled - 1)

        assert (count / N if count else None) == (told.value if told else None)
        assert (count / N >= 0.01 if count else None) == (told.suspect if told else None)

    @pytest.mark.parametrize(("rare", "suspect"), [(19, True), (20, False), (200, False)])
    def test_imbalance(self, rare: int, suspect: bool) -> None:
        """The rarest class is told with its share; below one in twenty it is suspect."""
        told = found({"x": RNG.random(N)}, [i < rare for i in range(N)])["imbalance"]

        assert (rare / N, suspect) == (told.value, told.suspect)

    def test_bounds(self) -> None:
        """Each bound is the job's to move."""
        rows = {
            "x": [None if i < 100 else [float(i % 50), 1e6][i < 110] for i in range(N)],
            "y": 1.0 * BINARY + RNG.random(N),
        }
        loose: dict[str, Any] = {"missing": 0.9, "outliers": 0.9, "rare_class": 0.01, "duplicates": 1.0, "leak": 1.0}
        strict: dict[str, Any] = {"missing": 0.25, "outliers": 0.03, "rare_class": 0.5, "duplicates": 0.0, "leak": 0.6}

        assert set() == suspects(rows, **loose)
        assert {"missing x", "outliers x", "imbalance", "leak y"} == suspects(rows, **strict)

    def test_nothing_to_see(self) -> None:
        """Rows without any other column than the key, and few rows, are no trouble."""
        assert {"imbalance"} == set(found({}))
        assert {"imbalance", "constant x"} == set(found({"x": [1]}, [True]))

    def test_without_target(self) -> None:
        """A task without labels is told of its columns, and not of a target."""
        asked = job(problem={"task": "clustering", "target": ""}, labels=None, output={"carry": []})
        rows = pl.DataFrame({"id": range(N), "x": 1, "y": RNG.random(N)})

        assert [("constant", "x")] == [(each.check, each.column) for each in audit(asked, rows)]


class TestTarget:
    """What knows too much."""

    NUMBER = RNG.normal(size=N)
    KINDS = np.array(["a", "b", "c", "d"])[RNG.integers(0, 4, N)]

    LEAKS: tuple[tuple[str, Any, Any, str], ...] = (
        ("its copy", BINARY, BINARY, "binary"),
        ("its opposite", ~BINARY, BINARY, "binary"),
        ("a noisy copy", BINARY ^ (RNG.random(N) < 0.02), BINARY, "binary"),
        ("a code", np.where(BINARY, "yes", "no"), BINARY, "binary"),
        ("many codes", [f"{'y' if y else 'n'}{i % 20}" for i, y in enumerate(BINARY)], BINARY, "binary"),
        ("in the middle", np.where(BINARY, 0.0, RNG.choice([-1.0, 1.0], N)) + RNG.normal(0, 0.1, N), BINARY, "binary"),
        ("a date", [date(2024, 1, 1) + timedelta(days=int(y)) for y in BINARY], BINARY, "binary"),
        ("an instant", [datetime(2024, 1, 1 + y, tzinfo=UTC) for y in BINARY.astype(int)], BINARY, "binary"),
        ("NULL and not", [1.0 if y else None for y in BINARY], BINARY, "binary"),
        ("few below most", np.where(np.arange(N) < 20, -1.0, 0.0), np.arange(N) < 20, "binary"),
        ("few above most", np.where(np.arange(N) < 20, 1.0, 0.0), np.arange(N) < 20, "binary"),
        ("one after the other", np.arange(N) % 2, np.arange(N) % 2 == 0, "binary"),
        ("its class", KINDS, KINDS, "multiclass"),
        ("its class's number", [ord(kind) for kind in KINDS], KINDS, "multiclass"),
        ("one class of four", KINDS == "b", KINDS, "multiclass"),
        ("its number", NUMBER, NUMBER, "regression"),
        ("its number, scaled", 1e9 - 1e6 * NUMBER, NUMBER, "regression"),
        ("a noisy number", NUMBER + RNG.normal(0, 0.05, N), NUMBER, "regression"),
        ("a curve of it", np.exp(-2 * NUMBER), NUMBER, "regression"),
        ("its copy, of a long tail", np.exp(3 * NUMBER), np.exp(3 * NUMBER), "regression"),
        ("its copy, with gaps", np.where(np.arange(N) % 50, NUMBER, np.nan), NUMBER, "regression"),
        ("a large target", NUMBER, 1e12 + NUMBER, "regression"),
    )

    @pytest.mark.parametrize(
        ("column", "target", "task"), [each[1:] for each in LEAKS], ids=[each[0] for each in LEAKS]
    )
    def test_leak(self, column: Any, target: Any, task: str) -> None:
        """A column that tells the target alone is a suspect, however it says it; noise beside it is none."""
        told = found({"x": column, "noise": np.random.default_rng(9).random(N)}, target, task, leak=0.9)

        assert [name for name in told if name.startswith("leak")] == ["leak x"]
        assert "x alone tells slow" in told["leak x"].told
        assert 0.9 <= told["leak x"].value <= 1

    INNOCENT: tuple[tuple[str, Any, Any, str], ...] = (
        ("an id in text", [f"id{i}" for i in range(N)], BINARY, "binary"),
        ("an id in text, ordered target", [f"id{i}" for i in range(N)], np.arange(N) < 200, "binary"),
        ("noise", np.random.default_rng(5).random(N), BINARY, "binary"),
        ("a signal", BINARY + np.random.default_rng(5).random(N) * 1.5, BINARY, "binary"),
        ("one number", [1.0] * N, BINARY, "binary"),
        ("no value", pl.Series([None] * N, dtype=pl.Float64), BINARY, "binary"),
        ("NaN", [math.nan] * N, BINARY, "binary"),
        ("infinities", [math.inf, -math.inf, 0.0, math.nan] * (N // 4), BINARY, "binary"),
        ("an id in text, of numbers", [f"id{i}" for i in range(N)], NUMBER, "regression"),
        ("noise, of numbers", np.random.default_rng(5).random(N), NUMBER, "regression"),
        ("noise, of one number", np.random.default_rng(5).random(N), [5.0] * N, "regression"),
        ("noise, of one class", np.random.default_rng(5).random(N), ["only"] * N, "multiclass"),
        ("noise, of rare classes", np.random.default_rng(5).random(N), [f"k{i // 3}" for i in range(N)], "multiclass"),
    )

    @pytest.mark.parametrize(
        ("column", "target", "task"), [each[1:] for each in INNOCENT], ids=[each[0] for each in INNOCENT]
    )
    def test_innocent(self, column: Any, target: Any, task: str) -> None:
        """What does not tell the target of other rows is no leak, however many values it has."""
        assert not [name for name in found({"x": column}, target, task) if name.startswith(("leak", "null"))]

    @settings(deadline=None, max_examples=60)
    @given(st.integers(0, 10**6), st.sampled_from([2, 5, 40]))
    def test_noise_is_no_leak(self, seed: int, classes: int) -> None:
        """Noise is never a leak, with two classes or forty of which some are rare."""
        rng = np.random.default_rng(seed)
        target = np.minimum(rng.geometric(min(0.5, 4 / classes), N), classes)
        rows = {"x": rng.random(N), "y": rng.integers(0, 200, N), "z": [f"{i}" for i in rng.integers(0, 60, N)]}

        assert not [name for name in found(rows, target, "multiclass") if name.startswith("leak")]

    def test_auc(self) -> None:
        """For a column of few values the figure is the AUC that guessing by it reaches, to within sampling."""
        chance = np.array([0.1, 0.4, 0.9])
        group = RNG.integers(0, 3, 20_000)
        target = RNG.random(20_000) < chance[group]
        told = found({"x": group}, target, leak=0.5)["leak x"]

        assert math.isclose(roc_auc_score(target, chance[group]), told.value, abs_tol=0.01)

    def test_r2(self) -> None:
        """For numbers it is the share of the variance that the column explains."""
        x = RNG.normal(size=20_000)
        told = found({"x": x}, 3 * x + RNG.normal(size=20_000), "regression", leak=0.5)["leak x"]

        assert math.isclose(0.9, told.value, abs_tol=0.01)

    @pytest.mark.parametrize(("flipped", "suspect"), [(0.0, True), (0.1, True), (0.4, False)])
    def test_null_pattern(self, flipped: float, suspect: bool) -> None:
        """Where a column is NULL may tell the target though its values do not: it is filled in after the event."""
        there = BINARY ^ (np.random.default_rng(2).random(N) < flipped)
        values = [float(i % 13) if known else None for i, known in enumerate(there)]
        told = found({"closed_by": values})

        assert suspect == ("null_pattern closed_by" in told)
        if suspect:
            assert "is it filled in afterwards?" in told["null_pattern closed_by"].told

    def test_null_pattern_of_numbers(self) -> None:
        """The same against a number."""
        target = np.where(BINARY, 10.0, 0.0) + np.random.default_rng(2).normal(size=N)

        assert "null_pattern x" in found({"x": [1.0 if y else None for y in BINARY]}, target, "regression")

    def test_few_rows(self) -> None:
        """Of fewer than thirty rows nothing is said of leaks."""
        assert "leak x" not in found({"x": BINARY[:29]}, BINARY[:29])
        assert "leak x" in found({"x": BINARY[:60]}, BINARY[:60])


class TestRefuse:
    """`refuse`, and what of it reaches `train`."""

    def test_all_are_listed(self) -> None:
        """What the job refuses stops the training, all of it in one message; the rest is only told."""
        rows = pl.DataFrame(
            {"id": range(N), "x": BINARY, "same": 1, "null": [None] * 300 + [1.0] * 100, "slow": BINARY}
        )
        findings = audit(job(output={"carry": []}), rows)
        refuse(findings, Audit())
        refuse(findings, Audit(refuse=("imbalance", "outliers")))
        with pytest.raises(TrainingError) as refused:
            refuse(findings, Audit(refuse=("leak", "missing", "imbalance")))

        told = str(refused.value)
        assert "\n  leak: x alone tells slow" in told
        assert "\n  missing: null is NULL in 75.0% of the rows" in told
        assert "constant" not in told
        assert "Mend the rows at the source, raise the check's bound, or take the check out of refuse" in told

    def test_test_rows_are_not_looked_at(self) -> None:
        """What only test or validation rows hold is neither told nor refused; the same in training rows is."""
        split = {"by": "time", "column": "started", "validation": 0.25, "test": 0.25}

        def trained(spoilt: pl.Expr) -> None:
            rows = trips(160)
            target = slow(rows)
            leaking = rows.with_columns(
                secret=pl.when(spoilt).then(target.cast(pl.Float64)).otherwise(pl.col("distance")),
                odd=pl.when(spoilt & (pl.col("id") % 4 == 0)).then(1e9).otherwise(pl.col("speed")),
            )
            asked = job(training={"split": split, "audit": {"refuse": ["leak", "outliers"]}})
            frames = [Frame(leaking), Frame(labels(rows, target))]
            train(asked, Features.of(CLASSIFIER, "f.py"), SQL, *frames, lambda step: None)

        trained(pl.col("id") >= 80)
        with pytest.raises(TrainingError, match=r"(?s)outliers: odd is beyond .*leak: secret alone tells slow"):
            trained(pl.col("id") < 80)
