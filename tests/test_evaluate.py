"""What is measured of a model: intervals that hold, verdicts, importance, slices, gates; and tasks without labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
import toy
from sklearn import metrics as sk
from toy import Project

from batchscore.errors import TrainingError
from batchscore.model import bootstrap
from batchscore.model.bootstrap import ahead, resampled
from batchscore.model.bootstrap import intervals as intervals_of
from batchscore.model.bundle import Bundle
from batchscore.model.evaluation import CrossValidation, Evaluation, Measured
from batchscore.model.features import Features
from batchscore.model.metrics import evaluate
from batchscore.model.predictor import Predictor
from batchscore.model.words import sliced_told
from batchscore.train.evaluate import blocks_of
from batchscore.train.evaluate import evaluate as evaluate_all
from batchscore.train.fit import Part
from batchscore.train.rivals import Rival
from batchscore.train.workflow import train
from tests.models import CLASSIFIER, SQL, Frame, Given, job, labels, slow, trips

RAW = Features.of("def features(rows):\n    return rows\n\n\ndef pipeline():\n    return None\n", "jobs/raw.py")
REGRESSION = Predictor(RAW, None, "regression", (), {"prediction": "float"})
BINARY = Predictor(RAW, None, "binary", (False, True), {"prediction": "boolean", "score": "float"})


def intervals(predictor, metrics, predictions, target, blocks):
    """The intervals of metrics over samples of the rows."""
    return intervals_of(metrics, resampled(predictor, predictions, target, blocks))


def of_errors(errors: Any, blocks: Any = None) -> Mapping[str, Any]:
    """The metrics of a regression that is wrong by these amounts, with their intervals."""
    predictions = pl.DataFrame({"prediction": np.asarray(errors, dtype=float)})
    target = pl.Series("y", np.zeros(len(errors)))
    return intervals(REGRESSION, evaluate("regression", target, predictions, ()), predictions, target, blocks)


class TestIntervals:
    """`intervals`."""

    def test_covers(self) -> None:
        """Over 250 draws of 150 rows the 95 % interval of the mean error holds the true mean in nearly 95 % of them."""
        rng = np.random.default_rng(0)
        held = [
            measured.low <= 1.0 <= measured.high
            for measured in (of_errors(rng.exponential(size=150))["mae"] for _ in range(250))
        ]

        assert 0.90 <= np.mean(held) <= 0.98

    def test_blocks(self) -> None:
        """Where rows come in copies, drawing whole blocks holds the truth as often, and drawing rows does not."""
        rng = np.random.default_rng(0)
        blocks = np.repeat(np.arange(60), 20)
        rows_held, blocks_held = [], []
        for _ in range(100):
            errors = np.repeat(rng.exponential(size=60), 20)
            alone, together = of_errors(errors)["mae"], of_errors(errors, blocks)["mae"]
            rows_held.append(alone.low <= 1.0 <= alone.high)
            blocks_held.append(together.low <= 1.0 <= together.high)
            assert together.high - together.low > 2 * (alone.high - alone.low)

        assert np.mean(rows_held) < 0.6
        assert np.mean(blocks_held) > 0.86

    @pytest.mark.parametrize("n", [40, 2_000])
    def test_around_the_value(self, n: int) -> None:
        """Every binary metric lies in its interval; more rows make it narrower."""
        rng = np.random.default_rng(1)
        truth = rng.random(n) < 0.4
        score = np.clip(0.4 + 0.2 * truth + rng.normal(0, 0.2, n), 0, 1)
        predictions = pl.DataFrame({"prediction": score > 0.5, "score": score})
        target = pl.Series("y", truth)
        found = intervals(BINARY, evaluate("binary", target, predictions, (False, True)), predictions, target, None)

        assert len(found) == 12
        for measured in found.values():
            assert measured.low <= measured.value <= measured.high
        assert math.isclose(sk.roc_auc_score(truth, score), found["roc_auc"].value)
        assert (found["roc_auc"].high - found["roc_auc"].low > 0.15) == (n == 40)

    def test_too_few_resamples(self) -> None:
        """A metric that most resamples do not define has a value and no interval."""
        truth = np.array([True] + [False] * 9)
        predictions = pl.DataFrame({"prediction": truth, "score": truth * 1.0})
        target = pl.Series("y", truth)
        metrics = evaluate("binary", target, predictions, (False, True))
        found = intervals(BINARY, metrics, predictions[:1].vstack(predictions[1:]), target, np.arange(10))
        one = intervals(BINARY, {"roc_auc": math.nan, "accuracy": 1.0}, predictions, target, None)

        assert 1.0 == found["roc_auc"].value
        assert "roc_auc" not in one
        assert bootstrap.RESAMPLES == 200


def trained(
    source: str = CLASSIFIER,
    rows: pl.DataFrame | None = None,
    target: Any = None,
    problem: Mapping[str, Any] | None = None,
    interval: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> Bundle:
    """Train on rows in memory, with a recipe."""
    rows = trips(400) if rows is None else rows
    wanted = job(problem=problem or {}, training=recipe, interval=interval or {})
    target = slow(rows) if target is None else pl.Series("slow", target)
    known = labels(rows, target).rename({"slow": wanted.problem.target})
    return train(wanted, Features.of(source, "jobs/trips.py"), SQL, Frame(rows), Frame(known), lambda step: None)


def part(rows: int, right: float) -> Part:
    """Rows of which so large a share is predicted right; each ten of them are a group."""
    truth = np.arange(rows) % 2 == 0
    wrong = np.random.default_rng(0).permutation(rows) >= round(right * rows)
    frame = pl.DataFrame({"p": np.where(truth ^ wrong, 0.9, 0.1), "ten": np.arange(rows) // 10})
    return Part(frame, frame, pl.Series("slow", truth))


def measured(
    train: Part,
    validation: Part,
    test: Part,
    features: Features = RAW,
    rivals: Mapping[str, Rival] | None = None,
    folds: tuple[float, ...] = (),
    limits: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> Evaluation:
    """The evaluation of `Given` on parts of known accuracy."""
    asked = job(
        problem={"success": {"metric": "accuracy", "at_least": 0.1}},
        training={"split": {"by": "random", "validation": 0.2}} | recipe,
        limits=limits or {},
    )
    crossed = CrossValidation(by="k-fold", folds=len(folds), metrics={"accuracy": folds}) if folds else None
    nothing: dict[str, Any] = {"findings": (), "threshold": None, "search": None, "curves": ()}
    predictor = replace(BINARY, features=features, pipeline=Given())
    return evaluate_all(asked, predictor, rivals or {}, train, validation, test, cross_validation=crossed, **nothing)[0]


def with_model(model: str, select: str = "'distance', 'speed'") -> str:
    """A job's Python file with features of these columns and that model."""
    return f"""
import polars as pl
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor


def features(rows):
    return rows.select({select})


def pipeline():
    return make_pipeline(StandardScaler(), {model})
"""


class TestGap:
    """The verdict on training against held-out rows."""

    SPLIT: Mapping[str, Any] = {"by": "random", "validation": 0.25, "test": 0.25}

    @pytest.mark.parametrize(
        ("model", "verdict"), [("DecisionTreeClassifier(random_state=0)", "overfits"), ("LogisticRegression()", "fits")]
    )
    @pytest.mark.parametrize(
        ("recipe", "on"),
        [
            ({"split": SPLIT}, "validation"),
            ({"split": {"by": "random", "test": 0.25}, "cross_validation": {"by": "k-fold"}}, "cross-validation"),
            ({"split": {"by": "random", "test": 0.25}}, "test"),
        ],
        ids=["validation", "folds", "test"],
    )
    def test_classifier(self, model: str, verdict: str, recipe: dict[str, Any], on: str) -> None:
        """A tree that knows its rows by heart overfits and a line does not, whatever the gap is measured on."""
        made = trained(with_model(model), trips(800), **recipe).evaluation

        assert made.gap is not None
        assert (verdict, on, "roc_auc") == (made.gap.verdict, made.gap.on, made.gap.metric)
        assert made.train["roc_auc"] == made.gap.train
        if on == "validation":
            assert made.validation["roc_auc"] == made.gap.held_out

    @pytest.mark.parametrize(
        ("model", "verdict"), [("DecisionTreeRegressor(random_state=0)", "overfits"), ("LinearRegression()", "fits")]
    )
    def test_regressor(self, model: str, verdict: str) -> None:
        """The same for an error, which is the better the lower it is."""
        rows = trips(800)
        target = rows["distance"].to_numpy() + np.random.default_rng(0).normal(0, 30, 800)
        made = trained(with_model(model), rows, target, {"task": "regression"}, split=self.SPLIT).evaluation

        assert made.gap is not None
        assert (verdict, "mae") == (made.gap.verdict, made.gap.metric)

    @pytest.mark.parametrize(
        ("recipe", "folds", "on"),
        [
            ({}, (0.8, 0.7), "validation"),
            ({"threshold": {"by": "f_score"}}, (0.8, 0.7), "cross-validation"),
            ({"calibrate": "sigmoid"}, (0.8, 0.7), "cross-validation"),
            ({"threshold": {"by": "f_score"}}, (), "test"),
            ({"search": {"by": "grid"}}, (), "test"),
            ({"search": {"by": "grid"}, "cross_validation": {"by": "k-fold"}}, (0.8, 0.7), "validation"),
            (
                {"search": {"by": "grid"}, "cross_validation": {"by": "k-fold"}, "calibrate": "sigmoid"},
                (0.8, 0.7),
                "test",
            ),
        ],
    )
    def test_held_out(self, recipe: dict[str, Any], folds: tuple[float, ...], on: str) -> None:
        """The gap is on the first of validation rows, folds and test rows that nothing was chosen on."""
        gap = measured(part(200, 0.9), part(200, 0.8), part(200, 0.7), folds=folds, **recipe).gap

        assert gap is not None
        held_out = {"validation": 0.8, "cross-validation": 0.75, "test": 0.7}[on]
        assert (on, 0.9, pytest.approx(held_out)) == (gap.on, gap.train, gap.held_out)

    @pytest.mark.parametrize(
        ("rows", "lost", "verdict"), [(20, 0.1, "fits"), (4_000, 0.03, "fits"), (4_000, 0.1, "overfits")]
    )
    def test_verdict(self, rows: int, lost: float, verdict: str) -> None:
        """A difference within chance, or within what may be lost, is no overfitting; one beyond both of them is."""
        found = measured(part(rows, 0.9), part(rows, 0.9 - lost), part(rows, 0.9))
        accuracy = found.test["accuracy"]
        assert accuracy.low is not None
        assert accuracy.high is not None
        chance = (accuracy.high - accuracy.low) / 2
        # Half the width of the interval is chance, and 0.05 may be lost.
        assert (lost > chance, lost > 0.05) == (rows == 4_000, lost == 0.1)

        assert found.gap is not None
        assert verdict == found.gap.verdict


class TestLatency:
    """How long a row takes."""

    def test_unit(self) -> None:
        """Features that take 50 ms for a chunk of 1,000 rows take 50 µs for a row, and the pipeline a little more."""
        idle = "import time\n\n\ndef features(rows):\n    time.sleep(0.05)\n    return rows\n\n\ndef pipeline():\n    ...\n"
        parts = part(20, 0.9), part(20, 0.9), part(300, 0.9)
        found = measured(*parts, features=Features.of(idle, "jobs/idle.py"), limits={"chunk_rows": 1_000})

        assert 50 <= found.latency_us_per_row < 250


class TestRivals:
    """Other models on the same test rows."""

    @pytest.mark.parametrize("some", [False, True], ids=["all rows", "some rows"])
    def test_same_samples(self, some: bool) -> None:
        """A rival that predicts the same is ahead in no sample: both are drawn by the same groups of rows."""
        test = part(400, 0.8)
        rival = Rival(replace(BINARY, pipeline=Given()), test.rows["ten"] >= 15 if some else None)
        parts = part(20, 0.9), part(20, 0.9), test
        found = measured(*parts, rivals={"same": rival}, split={"by": "group", "column": "ten"})

        assert ("ten", Measured(value=0.0, low=0.0, high=0.0)) == (found.resampled, found.ahead["same"])


class TestBlocks:
    """What the intervals draw anew."""

    @pytest.mark.parametrize(
        ("split", "every", "named"),
        [
            ({"by": "time", "column": "started", "test": 0.9}, "day", "days of started"),
            ({"by": "time", "column": "started", "test": 0.5}, "hour", "hours of started"),
            ({"by": "time", "column": "day", "test": 0.9}, "day", "days of day"),
            ({"by": "time", "column": "day", "test": 0.9}, "hour", "hours of day"),
            ({"by": "time", "column": "started", "test": 0.9}, "month", "rows"),
            ({"by": "group", "column": "distance", "test": 0.5}, "day", "distance"),
            ({"by": "group", "column": "name", "test": 0.5}, "day", "name"),
            ({"by": "group", "column": "flag", "test": 0.5}, "day", "rows"),
            ({"by": "random", "test": 0.5}, "day", "rows"),
        ],
    )
    def test_named(self, split: dict[str, Any], every: str, named: str) -> None:
        """Intervals of the job, or groups, are drawn whole where there are ten of them, and rows otherwise."""
        rows = trips(400).with_columns(
            name=pl.format("n{}", pl.col("id") % 60), flag=pl.col("id") % 2 == 0, started=pl.col("started")
        )
        made = trained(with_model("LogisticRegression()"), rows, split=split, interval={"every": every})

        assert named == made.evaluation.resampled

    def test_scatter(self) -> None:
        """How far a metric varies is its deviation over the days of the test, of those that have 200 rows."""
        start = datetime(2024, 1, 1, tzinfo=UTC)
        instants = [start + timedelta(minutes=5 * i) for i in range(288 * 24 + 100)]
        rows = trips(len(instants)).with_columns(started=pl.Series(instants, dtype=pl.Datetime("us", "UTC")))
        made = trained(with_model("LogisticRegression()"), rows, split={"by": "time", "column": "started", "test": 0.5})
        tested = rows.with_columns(slow(rows)).tail(made.manifest.training.tested)
        answers = made.predictor.predict(tested.drop("slow"))
        right = tested.select(pl.col("started").dt.date().alias("date"), right=answers["prediction"] == tested["slow"])
        days = right.group_by("date").agg(pl.len(), pl.col("right").mean()).filter(pl.col("len") >= 200)

        assert 11 <= days.height < right["date"].n_unique()
        assert math.isclose(days["right"].std(ddof=0), made.evaluation.scatter["accuracy"])
        assert made.evaluation.scatter.keys() == made.evaluation.test.keys()

    @pytest.mark.parametrize("split", [{"by": "random"}, {"by": "time", "column": "started"}])
    def test_no_scatter(self, split: dict[str, Any]) -> None:
        """At random there are no days, and with 24 rows each they say nothing."""
        assert {} == trained(with_model("LogisticRegression()"), trips(1_200), split=split).evaluation.scatter

    @pytest.mark.parametrize("by", ["group", "time"])
    def test_without_a_value(self, by: str) -> None:
        """Rows without a value are a block beside the others."""
        rows = trips(480).with_columns(day=pl.when(pl.col("day") != date(2024, 1, 5)).then("day"))
        blocks, named = blocks_of(job(training={"split": {"by": by, "column": "day"}}), rows)

        assert named == ("day" if by == "group" else "days of day")
        assert blocks is not None
        assert [24] * 20 == np.bincount(blocks).tolist()
        assert 1 == len(set(blocks[rows["day"].is_null().to_numpy()]))

    def test_no_midnight(self) -> None:
        """A day that has no midnight, as clocks go forward there at 0:00, is a day all the same."""
        rows = trips(400).with_columns(
            started=pl.Series([datetime(2018, 10, 28, tzinfo=UTC) + timedelta(hours=i) for i in range(400)])
        )
        window = {"from": date(2018, 10, 1), "to": date(2019, 1, 1)}
        made = trained(
            rows=rows,
            interval={"timezone": "America/Sao_Paulo"},
            split={"by": "time", "column": "started", "test": 0.9},
            **window,
        )

        assert "days of started" == made.evaluation.resampled


@pytest.fixture(scope="module")
def made() -> Bundle:
    """A classifier of trips, one of whose features is noise."""
    rows = trips(800).with_columns(noise=pl.Series(np.random.default_rng(8).random(800)))
    rows = rows.with_columns(count=pl.col("carrier").fill_null("none"))
    source = with_model("LogisticRegression()", "'noise', 'distance', 'speed'")
    split = {"by": "time", "column": "started", "test": 0.25}
    return trained(source, rows, split=split, slices=["carrier", "count", "day"])


class TestPictures:
    """Confusion, bins, curves, slices, importance."""

    def test_confusion(self, made: Bundle) -> None:
        """The confusion counts every test row once, and agrees with the metrics."""
        confusion, test = made.evaluation.confusion, made.evaluation.test
        assert confusion is not None
        (tn, fp), (fn, tp) = confusion.counts

        assert (False, True) == confusion.classes
        assert 200 == tn + fp + fn + tp
        assert math.isclose((tn + tp) / 200, test["accuracy"].value)
        assert math.isclose(tp / (tp + fn), test["recall"].value)
        assert math.isclose(tp / (tp + fp), test["precision"].value)

    def test_calibration(self, made: Bundle) -> None:
        """The bins hold every test row, in the order of their score, and their shares make the base rate."""
        calibration = made.evaluation.calibration
        assert calibration is not None
        bins = calibration.bins

        assert calibration.method is None
        assert [20] * 10 == [each.rows for each in bins]
        assert [each.score for each in bins] == sorted(each.score for each in bins)
        rate = sum(each.observed * each.rows for each in bins) / 200
        assert math.isclose(made.evaluation.test["base_rate"].value, rate)

    def test_curves(self, made: Bundle) -> None:
        """The ROC curve goes from corner to corner, and the area under it is the metric's."""
        x, y = zip(*made.evaluation.roc, strict=True)

        assert ((0.0, 0.0), (1.0, 1.0)) == (made.evaluation.roc[0], made.evaluation.roc[-1])
        assert math.isclose(np.trapezoid(y, x), made.evaluation.test["roc_auc"].value, abs_tol=0.01)
        assert 0.0 == made.evaluation.precision_recall[0][0]
        assert 1.0 == made.evaluation.precision_recall[-1][0]

    def test_importance(self, made: Bundle) -> None:
        """The signal is first, and a column of noise is worth nothing."""
        importance = {each.column: each for each in made.evaluation.importance}

        assert ["distance", "speed", "noise"] == list(importance)
        assert importance["distance"].mean > 0.2
        assert abs(importance["noise"].mean) < 0.02
        assert importance["distance"].deviation > 0

    def test_importance_of_an_error(self) -> None:
        """Of an error that is better when low, importance is how much it grows."""
        rows = trips(400)
        made = trained(
            with_model("LinearRegression()"), rows, rows["distance"], {"task": "regression"}, split={"by": "random"}
        )
        first, second = made.evaluation.importance

        assert ("distance", "speed") == (first.column, second.column)
        assert first.mean > 20
        assert abs(second.mean) < 1e-6

    def test_slices(self, made: Bundle) -> None:
        """Slices hold the metrics of the rows with one value, NULL among the values, and leave small ones out."""
        slices = {(each.column, each.value): each for each in made.evaluation.slices}

        assert {"AA", "UA", "NULL"} == {value for column, value in slices if column == "carrier"}
        assert 200 == sum(each.rows for (column, _), each in slices.items() if column == "carrier")
        assert slices["carrier", "NULL"].metrics == slices["count", "none"].metrics
        assert not [value for column, value in slices if column == "day"]
        weighted = sum(each.rows * each.metrics["accuracy"] for (name, _), each in slices.items() if name == "carrier")
        assert math.isclose(weighted / 200, made.evaluation.test["accuracy"].value)

    def test_worst_of_many_slices(self) -> None:
        """Of more values than are kept, those with the worst metric are, whatever they are called, and it is told."""
        rows = trips(3_000).with_columns(machine=pl.format("M{}", pl.col("id") % 40 + 10))
        odd = rows["machine"].is_in(["M11", "M49"])
        target = slow(rows) ^ (odd & pl.Series(np.random.default_rng(3).random(3_000) < 0.5))
        few = rows.with_columns(machine=pl.when(pl.col("id") >= 2_990).then(pl.lit("rare")).otherwise("machine"))
        made = trained(CLASSIFIER, few, target, split={"by": "random", "test": 0.5}, slices=["machine", "carrier"])
        kept = [each for each in made.evaluation.slices if each.column == "machine"]
        machine, carrier = made.evaluation.sliced

        areas = [each.metrics["roc_auc"] for each in kept]
        assert {"M11", "M49"} == {each.value for each in kept[:2]}
        assert areas == sorted(areas)
        assert areas[1] < 0.7 < areas[2]
        assert (41, 20, 20) == (machine.values, machine.kept, len(kept))
        assert 20 < machine.measured <= 40
        assert all(each.rows >= 30 for each in kept)
        assert ("carrier", 3, 3, 3) == (carrier.column, carrier.values, carrier.measured, carrier.kept)
        assert "carrier has 3 values" == sliced_told(made.evaluation, carrier)
        assert (
            f"machine has 41 values, and {machine.measured} that 30 rows or more have are measured; these are the 20 "
            "worst by roc_auc"
        ) == sliced_told(made.evaluation, machine)

    def test_baselines(self, made: Bundle) -> None:
        """Simpler models are measured on the same rows; the dummy ranks nothing."""
        baselines = made.evaluation.baselines

        assert 0.5 == baselines["dummy"]["roc_auc"]
        assert math.isclose(baselines["linear"]["roc_auc"], made.evaluation.test["roc_auc"].value, abs_tol=0.02)

    def test_new_class(self) -> None:
        """A class that only test rows have is a row and a column of the confusion, and no prediction."""
        target = ["a", "b"] * 190 + ["new", "b"] * 10
        made = trained(target=target, problem={"task": "multiclass"}, split={"by": "time", "column": "started"})
        confusion = made.evaluation.confusion

        assert confusion is not None
        assert ("a", "b", "new") == confusion.classes
        assert 10 == sum(confusion.counts[2])
        assert 0 == sum(row[2] for row in confusion.counts)
        assert "roc_auc_macro" not in made.evaluation.test

    def test_third_class_of_two(self) -> None:
        """A third label among a binary task's test rows is wrong however it is scored, and the area undefined."""
        target = ["a", "b"] * 190 + ["new", "b"] * 10
        made = trained(target=target, split={"by": "time", "column": "started"})

        assert ("a", "b") == made.manifest.classes
        assert "roc_auc" not in made.evaluation.test
        assert made.evaluation.test["accuracy"].value <= 70 / 80

    @pytest.mark.parametrize("name", ["count", "proportion", "index", "guess", "outcome", "row", "target"])
    def test_names(self, name: str) -> None:
        """A target may have the name of what is counted on the way."""
        made = trained(
            problem={"target": name, "task": "multiclass"},
            split={"by": "random", "validation": 0.25},
            calibrate="isotonic",
            slices=["carrier"],
        )

        assert "accuracy" in made.manifest.metrics

    def test_pipeline_that_cannot_be_measured(self) -> None:
        """A pipeline that fails on rows it is measured on is an error of training, with its words."""
        source = (
            with_model("Picky()")
            + """

class Picky(LogisticRegression):
    def predict_proba(self, X):
        if len(X) > 100:
            raise ValueError("too many at once")
        return super().predict_proba(X)
"""
        )
        with pytest.raises(TrainingError, match=r"fails on .*: ValueError: too many at once"):
            trained(source, split={"by": "time", "column": "started", "test": 0.25}, calibrate=None)


class TestGates:
    """What keeps a version from being promoted, through the command."""

    def test_latency(self, project: Project) -> None:
        """A pipeline slower than the job allows is registered, not promoted, and the exit code says so."""
        project.edit("jobs/toy.toml", ('target = "y"', 'target = "y"\nmax_latency_us_per_row = 0.0001'))
        done = project.call("train", "toy", "--promote")

        assert 31 == done.code
        assert "toy version 2 is registered and not promoted: a row takes" in done.error
        assert "µs, want at most 0.0001" in done.error

    def test_both(self, project: Project) -> None:
        """Both bars that are missed are told at once; one that is reached is not."""
        project.edit(
            "jobs/toy.toml",
            ('target = "y"', 'target = "y"\nmax_latency_us_per_row = 0.0001'),
            ("at_least = 0.6", "at_least = 0.999"),
        )
        done = project.call("train", "toy")

        assert 31 == done.code
        assert "on held-out rows, want roc_auc at least 0.999; a row takes" in done.error

    def test_fast_enough(self, project: Project) -> None:
        """A pipeline that is fast enough is promoted."""
        project.edit("jobs/toy.toml", ('target = "y"', 'target = "y"\nmax_latency_us_per_row = 100000.0'))

        assert 0 == project.call("train", "toy", "--promote").code


UNSUPERVISED = """
import polars as pl
from sklearn.cluster import KMeans
from sklearn.ensemble import IsolationForest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def features(rows):
    return rows.select("a", pl.col("b").fill_null(0.0))


def pipeline():
    return make_pipeline(StandardScaler(), MODEL)
"""


class TestWithoutLabels:
    """Clustering and anomalies, from training to the table, the card and drift."""

    @pytest.mark.parametrize(
        ("task", "success", "model", "columns"),
        [
            ("clustering", "silhouette", "KMeans(3, n_init=2, random_state=0)", ("id", "day", "prediction")),
            (
                "anomaly",
                "contamination",
                "IsolationForest(n_estimators=20, contamination=0.05, random_state=0)",
                ("id", "day", "prediction", "score"),
            ),
        ],
    )
    def test_whole(self, tmp_path: Any, task: str, success: str, model: str, columns: tuple[str, ...]) -> None:
        """It trains without labels, scores into the table, is shown, and its drift is told."""
        project = Project.at(tmp_path, f"duckdb:///{tmp_path}/warehouse.duckdb")
        moved = pl.when(pl.col("day") == date(2024, 2, 2)).then(pl.col("a") * 20).otherwise("a")
        toy.load(project.url, toy.rows(a_day=250).with_columns(a=moved))
        project.edit(
            "jobs/toy.toml",
            ('task = "binary"\ntarget = "y"', f'task = "{task}"'),
            ('metric = "roc_auc", at_least = 0.6', f'metric = "{success}", at_least = 0.01'),
            ('[labels]\nsql = "toy/labels.sql"\n', ""),
        )
        (tmp_path / "jobs/toy.py").write_text(UNSUPERVISED.replace("MODEL", model))
        done = project.call("train", "toy")
        assert 0 == done.code, done.out
        for day in ("2024-02-01", "2024-02-02"):
            scored = project.call("score", "toy", "--interval", day)
            assert 0 == scored.code, scored.out
        rows = project.table((*columns, "model_version"))

        assert 500 == len(rows)
        said = [row[2] for row in rows]
        if task == "clustering":
            assert {0, 1, 2} == set(said)
        else:
            assert 100 < sum(map(bool, said)) < 300
            assert all((score > 0) == bool(odd) for _, _, odd, score, _ in rows)
        shown = project.call("models", "show", "toy", "1")
        assert 0 == shown.code, shown.out + shown.err
        assert success in shown.out
        drift = project.call("drift", "toy")
        assert 0 == drift.code, drift.out + drift.err
        assert [] != [line for line in drift.out.splitlines() if "prediction" in line and "moved" in line]

    def test_labels_are_refused(self, project: Project) -> None:
        """A task without labels that has a [labels] table is a mistake in the job."""
        project.edit(
            "jobs/toy.toml", ('task = "binary"\ntarget = "y"', 'task = "clustering"'), ("roc_auc", "silhouette")
        )
        done = project.call("train", "toy")

        assert 2 == done.code
        assert "labels: a clustering task has none; leave the table out" in done.error


class TestAhead:
    """`ahead`: one model against another on the same samples."""

    def test_is_paired(self) -> None:
        """Two models that differ by one row in a hundred differ by chance no more than by few such rows."""
        rng = np.random.default_rng(0)
        truth = pl.Series(rng.random(400) < 0.5)
        guess = truth.to_numpy() ^ (rng.random(400) < 0.3)
        other = guess.copy()
        wrong = np.flatnonzero(guess != truth.to_numpy())[:20]
        other[wrong] = truth.to_numpy()[wrong]
        frames = [pl.DataFrame({"prediction": each, "score": each.astype(float)}) for each in (other, guess)]
        metrics = [evaluate("binary", truth, frame, (False, True)) for frame in frames]
        draws = [resampled(BINARY, frame, truth, None) for frame in frames]
        better = ahead("accuracy", intervals_of(metrics[0], draws[0]), draws[0], metrics[1], draws[1])
        alone = intervals_of(metrics[0], draws[0])["accuracy"]

        assert better.value == pytest.approx(0.05)
        assert 0.02 < better.low < 0.05 < better.high < 0.08
        # The interval of the one alone holds what the other reaches.
        assert alone.low < metrics[1]["accuracy"] + 0.02

    def test_lower_is_better(self) -> None:
        """For an error the sign is turned: above 0 is better."""
        truth = pl.Series(np.arange(200.0))
        frames = [pl.DataFrame({"prediction": truth + off}) for off in (1.0, 3.0)]
        metrics = [evaluate("regression", truth, frame, ()) for frame in frames]
        draws = [resampled(REGRESSION, frame, truth, None) for frame in frames]
        lead = ahead("mae", intervals_of(metrics[0], draws[0]), draws[0], metrics[1], draws[1])

        assert (lead.value, lead.low, lead.high) == (2.0, 2.0, 2.0)

    def test_rounding_is_no_difference(self) -> None:
        """Sums that were rounded otherwise are the same."""
        drawn = {"mae": np.full(200, 0.1 + 0.2)}
        lead = ahead("mae", intervals_of({"mae": 0.1 + 0.2}, drawn), drawn, {"mae": 0.3}, {"mae": np.full(200, 0.3)})

        assert (lead.value, lead.low, lead.high) == (0.0, 0.0, 0.0)
