"""Thresholds, calibrations, baselines, and what is said of columns that no estimator takes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.ensemble import RandomForestClassifier
from sklearn.naive_bayes import GaussianNB
from toy import Project

from batchscore.errors import TrainingError
from batchscore.model.bundle import Bundle
from batchscore.model.features import Features
from batchscore.model.metrics import evaluate
from batchscore.model.predictor import Predictor
from batchscore.model.registry import Registry
from batchscore.recipe import Threshold
from batchscore.train.fit import Part, baselines_of, calibrated, fitted, threshold
from batchscore.train.measure import measured
from batchscore.train.workflow import train
from tests.models import CLASSIFIER, FEATURES, SQL, Frame, Given, job, labels, slow, trips

RAW = Features.of("def features(rows):\n    return rows\n\n\ndef pipeline():\n    return None\n", "jobs/raw.py")
TYPES: Mapping[str, Any] = {"prediction": "boolean", "score": "float"}
BY_TIME = {"by": "time", "column": "started", "validation": 0.25, "test": 0.25}


def part(features: pl.DataFrame, target: Any) -> Part:
    """Rows that are their own features."""
    return Part(features, features, None if target is None else pl.Series("y", target))


def chosen(score: list[float], truth: list[bool], **how: Any) -> float:
    """The threshold chosen for these validation rows."""
    predictor = Predictor(RAW, Given(), "binary", (False, True), TYPES)
    made = threshold(predictor, Threshold(**how), part(pl.DataFrame({"p": score}), truth))
    assert made.share == np.mean(np.array(score) >= made.value)
    return made.value


SCORED = st.lists(
    st.tuples(st.integers(0, 12).map(lambda twelfths: twelfths / 12), st.booleans()), min_size=2, max_size=40
).filter(lambda rows: len({truth for _, truth in rows}) == 2)


def cost(score: Any, truth: Any, at: float, false_positive: float, false_negative: float) -> float:
    """What predictions from a threshold on cost."""
    called = np.asarray(score) >= at
    return float(false_positive * (called & ~np.asarray(truth)).sum() + false_negative * (~called & truth).sum())


class TestThreshold:
    """`threshold`."""

    @settings(deadline=None, max_examples=80)
    @given(SCORED, st.sampled_from([0.25, 0.5, 1.0, 2.0, 5.0]))
    def test_f_score(self, rows: list[tuple[float, bool]], beta: float) -> None:
        """No other threshold has a larger F-score, as scikit-learn counts it; of equal ones it is the lowest."""
        score, truth = map(np.array, zip(*rows, strict=True))
        at = chosen(score.tolist(), truth.tolist(), by="f_score", beta=beta)
        gains = {c: sk.fbeta_score(truth, score >= c, beta=beta, zero_division=0.0) for c in np.unique(score)}
        reached = sk.fbeta_score(truth, score >= at, beta=beta, zero_division=0.0)

        assert math.isclose(max(gains.values()), reached, rel_tol=1e-12)
        below = [candidate for candidate in gains if (score >= candidate).sum() > (score >= at).sum()]
        assert all(gains[candidate] < reached for candidate in below)

    @settings(deadline=None, max_examples=80)
    @given(SCORED, st.sampled_from([0.0, 1.0, 2.0, 7.0]), st.sampled_from([0.0, 1.0, 3.0, 100.0]))
    def test_cost(self, rows: list[tuple[float, bool]], alarm: float, miss: float) -> None:
        """No other threshold costs less, never and always predicting among them; of equal ones it is the lowest."""
        score, truth = map(np.array, zip(*rows, strict=True))
        at = chosen(score.tolist(), truth.tolist(), by="cost", false_positive=alarm, false_negative=miss)
        candidates = [*np.unique(score), 2.0]
        costs = [cost(score, truth, candidate, alarm, miss) for candidate in candidates]
        lowest = candidates[int(np.argmin(costs))]

        assert min(costs) == cost(score, truth, at, alarm, miss)
        assert (score >= lowest).tolist() == (score >= at).tolist()

    @pytest.mark.parametrize(
        ("costs", "called"), [((1.0, 0.0), 0), ((0.0, 1.0), 4), ((1.0, 1000.0), 3), ((1000.0, 1.0), 0)]
    )
    def test_extreme_costs(self, costs: tuple[float, float], called: int) -> None:
        """Where an alarm costs all, none is raised; where a miss does, none is missed."""
        score, truth = [0.1, 0.4, 0.6, 1.0], [False, True, True, False]
        at = chosen(score, truth, by="cost", false_positive=costs[0], false_negative=costs[1])

        assert called == sum(each >= at for each in score)

    @settings(deadline=None, max_examples=80)
    @given(SCORED, st.floats(0.01, 0.99))
    def test_rate(self, rows: list[tuple[float, bool]], rate: float) -> None:
        """No other threshold that some row reaches has a share of rows nearer to the rate, though scores are equal."""
        score = np.array([each for each, _ in rows])
        at = chosen(score.tolist(), [truth for _, truth in rows], by="rate", rate=rate)
        shares = [(score >= candidate).mean() for candidate in np.unique(score)]

        assert (score >= at).mean() in shares
        assert abs((score >= at).mean() - rate) == min(abs(share - rate) for share in shares)

    @settings(deadline=None, max_examples=60)
    @given(SCORED, st.sampled_from([{"by": "f_score"}, {"by": "cost"}, {"by": "rate", "rate": 0.3}]))
    def test_lies_between_scores(self, rows: list[tuple[float, bool]], how: dict[str, Any]) -> None:
        """No row's class hangs on the last bit of its score, but for the lowest score of all."""
        score = [each for each, _ in rows]
        at = chosen(score, [truth for _, truth in rows], **how)

        assert at not in score or at == min(score)

    def test_neighbours(self) -> None:
        """Between two scores with no number between them it is the higher one."""
        score = [0.5, math.nextafter(0.5, 1.0)]

        assert score[1] == chosen(score, [False, True], by="f_score")

    @pytest.mark.parametrize("truth", [[True, True], [False, False]])
    def test_one_class(self, truth: list[bool]) -> None:
        """Validation rows of one class choose no threshold."""
        with pytest.raises(TrainingError, match=r"validation rows have one class only.*Widen the window"):
            chosen([0.1, 0.9], truth, by="f_score")

    def test_told(self) -> None:
        """What chose it is told in words."""
        assert "the largest F-score with beta 2" == str(Threshold(by="f_score", beta=2.0))
        assert "the least cost, at 5 for a false positive, 1 for a false negative" == str(
            Threshold(by="cost", false_positive=5.0)
        )
        assert "the share of rows nearest to 0.1" == str(Threshold(by="rate", rate=0.1))

    def test_reaches_the_table(self, project: Project) -> None:
        """Of a scored run the prediction follows the threshold of the bundle, which is far from a half."""
        project.edit(
            "jobs/toy.toml",
            (
                'split = { by = "time", column = "ts", test = 0.25 }',
                'split = { by = "time", column = "ts", validation = 0.25, test = 0.25 }\ncalibrate = "isotonic"',
            ),
            (
                'calibrate = "isotonic"',
                'calibrate = "isotonic"\nthreshold = { by = "cost", false_positive = 1.0, false_negative = 9.0 }',
            ),
        )
        done = project.call("train", "toy", "--promote")
        assert 0 == done.code, done.out
        assert 0 == project.call("score", "toy", "--interval", "2024-02-01").code
        rows = project.table(("prediction", "score", "model_version"))
        shown = project.call("models", "show", "toy", "2")

        assert 100 == len(rows)
        assert {2} == {version for _, _, version in rows}
        at = max(score for said, score, _ in rows if not said), min(score for said, score, _ in rows if said)
        assert at[0] < at[1] < 0.4
        # No bin of the scores that are counted holds both.
        bundle = Registry.at(project.root / "var/registry").load("toy", 2)
        begins = np.nextafter(bundle.predictor.threshold, 0)
        assert begins in bundle.output_reference.columns["score"].layout.edges
        assert 0 == shown.code
        told = json.loads(project.call("models", "show", "toy", "2", "--format", "json").out)["evaluation"]
        costs = told["threshold"]["costs"]
        (kept, alarms), (missed, found) = told["confusion"]["counts"]
        assert (alarms + 9 * missed, 9 * (missed + found), kept + alarms) == (
            costs["test"]["model"],
            costs["test"]["none"],
            costs["test"]["every"],
        )
        assert told["rows"]["test"] == costs["test"]["rows"]
        assert told["rows"]["validation"] == costs["validation"]["rows"]
        # It was chosen there.
        assert costs["validation"]["model"] <= min(costs["validation"]["none"], costs["validation"]["every"])
        assert (
            f"predicting True of no row would cost {9 * (missed + found):,}, of every row {kept + alarms}" in shown.out
        )
        assert f"{alarms + 9 * missed:,}, or " in shown.out


def trained(
    source: str = CLASSIFIER, n: int = 400, spoil: pl.Expr | None = None, explain_top: int = 0, **recipe: Any
) -> Bundle:
    """Train on rows in memory, some of them spoilt, with a recipe."""
    rows = trips(n)
    target = slow(rows)
    if spoil is not None:
        target = rows.select(slow=pl.when(spoil).then(~target).otherwise(target)).to_series()
        rows = rows.with_columns(speed=pl.when(spoil).then(pl.col("speed") * 7 + 3).otherwise("speed"))
    frames = [Frame(rows), Frame(labels(rows, target))]
    wanted = job(problem={"explain_top": explain_top}, training={"split": BY_TIME} | recipe)
    return train(wanted, Features.of(source, "jobs/trips.py"), SQL, *frames, lambda step: None)


def parameters(pipeline: Any) -> list[bytes]:
    """Every fitted number of a scaler and a linear model behind it."""
    scaler, model = [step for _, step in pipeline.steps]
    return [array.tobytes() for array in (scaler.mean_, scaler.scale_, model.coef_, model.intercept_)]


class TestPoison:
    """Who learns from which rows."""

    RECIPE: Mapping[str, Any] = {"threshold": {"by": "f_score"}, "calibrate": "sigmoid", "explain_top": 2}
    VALIDATION, TEST = pl.col("id").is_between(200, 299), pl.col("id") >= 300

    def test_test_rows(self) -> None:
        """Whatever the test rows hold, pipeline, calibration, threshold, audit and reasons stay as they are."""
        clean, spoilt = trained(**self.RECIPE), trained(spoil=self.TEST, **self.RECIPE)

        assert parameters(_inner(clean)) == parameters(_inner(spoilt))
        assert _calibration(clean) == _calibration(spoilt)
        assert clean.evaluation.threshold == spoilt.evaluation.threshold
        assert clean.evaluation.train == spoilt.evaluation.train
        assert clean.evaluation.validation == spoilt.evaluation.validation
        assert clean.evaluation.importance == spoilt.evaluation.importance
        assert clean.evaluation.audit == spoilt.evaluation.audit
        assert _reasons(clean) == _reasons(spoilt)
        assert clean.manifest.metrics != spoilt.manifest.metrics

    def test_gap(self) -> None:
        """Where nothing is chosen on validation rows, test rows have no part in the figures of the gap."""
        clean, spoilt = trained().evaluation, trained(spoil=self.TEST).evaluation

        assert clean.gap is not None
        assert spoilt.gap is not None
        assert clean.gap.model_dump(exclude={"verdict"}) == spoilt.gap.model_dump(exclude={"verdict"})
        assert clean.test != spoilt.test

    def test_validation_rows(self) -> None:
        """What validation rows hold moves calibration and threshold, of the baselines too, and not the pipeline."""
        clean, spoilt = trained(**self.RECIPE), trained(spoil=self.VALIDATION, **self.RECIPE)

        assert parameters(_inner(clean)) == parameters(_inner(spoilt))
        assert clean.evaluation.baselines["linear"] != spoilt.evaluation.baselines["linear"]
        assert clean.evaluation.audit == spoilt.evaluation.audit
        assert _reasons(clean) == _reasons(spoilt)
        assert _calibration(clean) != _calibration(spoilt)
        assert clean.evaluation.threshold != spoilt.evaluation.threshold

    def test_baselines(self) -> None:
        """Where nothing is chosen on validation rows, what they hold moves no baseline: it was fitted without them."""
        clean, spoilt = trained(), trained(spoil=self.VALIDATION)

        assert clean.evaluation.baselines == spoilt.evaluation.baselines
        assert clean.evaluation.validation != spoilt.evaluation.validation

    def test_training_rows(self) -> None:
        """Spoilt training rows do move all of them: what is compared above can move."""
        clean, spoilt = trained(**self.RECIPE), trained(spoil=pl.col("id") < 120, **self.RECIPE)

        assert parameters(_inner(clean)) != parameters(_inner(spoilt))
        assert clean.evaluation.baselines["linear"] != spoilt.evaluation.baselines["linear"]
        assert clean.evaluation.baselines["dummy"] != spoilt.evaluation.baselines["dummy"]
        assert clean.evaluation.audit != spoilt.evaluation.audit
        assert _reasons(clean) != _reasons(spoilt)


def _reasons(bundle: Bundle) -> str:
    assert bundle.predictor.explainer is not None
    return bundle.predictor.explainer.frozen()


def _inner(bundle: Bundle) -> Any:
    return bundle.predictor.pipeline.calibrated_classifiers_[0].estimator.estimator


def _calibration(bundle: Bundle) -> tuple[float, float]:
    (calibrator,) = bundle.predictor.pipeline.calibrated_classifiers_[0].calibrators
    return calibrator.a_, calibrator.b_


class TestCalibrated:
    """`calibrated`."""

    @pytest.mark.parametrize("method", ["isotonic", "sigmoid"])
    def test_brier(self, method: Any) -> None:
        """A model that is much too sure of itself is mended: Brier and log loss fall on rows it never saw."""
        rng = np.random.default_rng(0)
        y = rng.random(6_000) < 0.5
        # Ten copies of one signal: naive Bayes takes each for new evidence.
        signal = y + rng.normal(0, 1.2, 6_000)
        frame = pl.DataFrame({f"x{i}": signal + rng.normal(0, 0.01, 6_000) for i in range(10)})
        model = GaussianNB().fit(frame[:2_000], y[:2_000])
        raw = Predictor(RAW, model, "binary", (False, True), TYPES)
        mended = calibrated(raw, method, part(frame[2_000:4_000], y[2_000:4_000]))
        before, after = (measured(each, frame[4_000:], pl.Series(y[4_000:])) for each in (raw, mended))

        assert after["brier"] < before["brier"] - 0.02
        assert after["log_loss"] < before["log_loss"] / 1.5
        assert math.isclose(before["roc_auc"], after["roc_auc"], abs_tol=0.01)

    @pytest.mark.parametrize("method", ["isotonic", "sigmoid"])
    def test_multiclass(self, method: Any) -> None:
        """With three classes too, and the scores stay probabilities of the classes in their order."""
        rng = np.random.default_rng(0)
        y = rng.integers(0, 3, 4_000)
        frame = pl.DataFrame({f"x{i}": y % 3 + rng.normal(0, 1.0, 4_000) for i in range(4)})
        model = RandomForestClassifier(5, random_state=0).fit(frame[:1_000], np.array(["a", "b", "c"])[y[:1_000]])
        types: Any = {"prediction": "string", "score_a": "float", "score_b": "float", "score_c": "float"}
        raw = Predictor(RAW, model, "multiclass", ("a", "b", "c"), types)
        kinds = pl.Series(np.array(["a", "b", "c"])[y])
        mended = calibrated(raw, method, part(frame[1_000:3_000], kinds[1_000:3_000]))
        before, after = (measured(each, frame[3_000:], kinds[3_000:]) for each in (raw, mended))
        scores = mended.predict_from(frame[3_000:]).drop("prediction").to_numpy()

        assert after["log_loss"] < before["log_loss"] - 0.1
        assert after["accuracy"] > before["accuracy"] - 0.03
        assert np.allclose(1, scores.sum(axis=1))

    @pytest.mark.parametrize(
        ("truth", "says"),
        [
            ([True] * 20, "have 0 of the class False, and 5 are wanted to calibrate on. Widen"),
            ([True] * 16 + [False] * 4, "have 4 of the class False"),
        ],
    )
    def test_too_few(self, truth: list[bool], says: str) -> None:
        """Too few validation rows of a class calibrate nothing, and the error says how many there are."""
        predictor = Predictor(RAW, Given(), "binary", (False, True), TYPES)
        with pytest.raises(TrainingError, match=says):
            calibrated(predictor, "isotonic", part(pl.DataFrame({"p": [0.5] * 20}), truth))

    def test_unknown_class(self) -> None:
        """A class that only validation rows have cannot be calibrated, and is named."""
        rng = np.random.default_rng(0)
        frame = pl.DataFrame({"x": rng.random(60)})
        kinds = ["a", "b"] * 20 + ["new"] * 20
        model = GaussianNB().fit(frame[:40], kinds[:40])
        predictor = Predictor(RAW, model, "multiclass", ("a", "b"), {"prediction": "string"})
        with pytest.raises(TrainingError, match="classes that the training rows lack: 'new'"):
            calibrated(predictor, "sigmoid", part(frame, kinds))


N = 80
COLUMNS: Mapping[str, Any] = {
    "number": [float(i) for i in range(N)],
    "gaps": [None if i % 3 else float(i) for i in range(N)],
    "odd": [math.nan, math.inf, -math.inf, 1.0] * (N // 4),
    "huge": [1e308, -1e308, 1.0, 0.0] * (N // 4),
    "whole": pl.Series([2**62, -(2**62), 1, None] * (N // 4)),
    "flag": [True, False, None, True] * (N // 4),
    "word": ["a", "b", None, "c"] * (N // 4),
    "kind": pl.Series(["a", "b", None, "c"] * (N // 4), dtype=pl.Categorical),
    "enum": pl.Series(["a", "b", None, "a"] * (N // 4), dtype=pl.Enum(["a", "b"])),
    "id": [f"id{i}" for i in range(N)],
    "day": [date(2024, 1, 1)] * N,
    "instant": [datetime(2024, 1, 1, tzinfo=UTC)] * N,
    "empty": pl.Series([None] * N, dtype=pl.Float64),
    "empty_word": pl.Series([None] * N, dtype=pl.String),
    "nothing": pl.Series([None] * N, dtype=pl.Null),
    "same": [1.0] * N,
}
TARGETS: Mapping[str, tuple[Any, Any, Any]] = {
    "binary": ([i % 3 == 0 for i in range(N)], (False, True), {"prediction": "boolean", "score": "float"}),
    "multiclass": (
        [i % 3 for i in range(N)],
        (0, 1, 2),
        {"prediction": "integer"} | {f"score_{i}": "float" for i in range(3)},
    ),
    "regression": ([float(i % 7) for i in range(N)], (), {"prediction": "float"}),
}


class TestBaselines:
    """`baselines_of`."""

    @pytest.mark.parametrize("task", list(TARGETS))
    @pytest.mark.parametrize(
        "columns",
        [[name] for name in COLUMNS] + [list(COLUMNS)],
        ids=lambda names: names[0] if len(names) == 1 else "all",
    )
    def test_any_column(self, task: Any, columns: list[str]) -> None:
        """Whatever a column holds, baselines stop nothing and give finite numbers; the dummy is always there."""
        target, classes, types = TARGETS[task]
        features = pl.DataFrame({name: COLUMNS[name] for name in columns})
        predictor = Predictor(RAW, None, task, classes, types)
        found = baselines_of(predictor, part(features, target))

        assert "dummy" in found
        assert ("linear" in found) == bool(set(columns) - {"day", "instant", "nothing"})
        for each in found.values():
            given = each.predict_from(features.reverse())
            assert given.select(pl.all_horizontal(pl.col(pl.Float64).is_finite().all())).item()

    def test_dummy_and_linear(self) -> None:
        """The dummy says the share or the mean; the linear model finds a line, and a text's kinds."""
        rng = np.random.default_rng(0)
        x, kind = rng.normal(size=500), rng.integers(0, 3, 500)
        y = 3 * x + 10.0 * kind + rng.normal(0, 0.1, 500)
        features = pl.DataFrame({"x": x, "kind": np.array(["a", "b", "c"])[kind]})
        predictor = Predictor(RAW, None, "regression", (), {"prediction": "float"})
        found = baselines_of(predictor, part(features, y))

        assert math.isclose(y.mean(), found["dummy"].predict_from(features)["prediction"][0])
        assert measured(found["linear"], features, pl.Series(y))["r2"] > 0.99

    def test_without_labels(self) -> None:
        """A task without labels has none."""
        predictor = Predictor(RAW, None, "clustering", (), {"prediction": "integer"})

        assert {} == baselines_of(predictor, part(pl.DataFrame({"x": [1.0, 2.0]}), None))

    def test_test_rows_it_cannot_take(self) -> None:
        """A model is trained and measured though its features are of no use to a linear one."""
        source = """
import polars as pl
from sklearn.dummy import DummyClassifier


def features(rows):
    return rows.select("started")


def pipeline():
    return DummyClassifier(strategy="prior")
"""
        assert {"dummy"} == trained(source).evaluation.baselines.keys()


class TestHints:
    """What is said where an estimator refuses a column."""

    @staticmethod
    def model(columns: str) -> str:
        """A job that gives these columns to a logistic regression as they are."""
        start = FEATURES.index("def features")
        body = f"def features(rows):\n    return rows.select({columns})\n\n\n"
        return FEATURES[:start] + body + CLASSIFIER[CLASSIFIER.index("def pipeline") :]

    @pytest.mark.parametrize("before", ["", "'passthrough', "])
    def test_ends_the_process(self, before: str) -> None:
        """What LightGBM ends the process on is refused before it gets it; behind an encoder it may have it."""
        source = self.model("'carrier', 'distance', day=pl.col('started').dt.date()")
        model = "LGBMClassifier(n_estimators=2, verbose=-1)"
        start = source.index("def pipeline")
        head = (
            "def pipeline():\n    from lightgbm import LGBMClassifier\n    from sklearn.pipeline import make_pipeline\n"
        )
        alone = f"{head}    return make_pipeline({before}{model})\n" if before else f"{head}    return {model}\n"

        with pytest.raises(
            TrainingError, match=r"LightGBM takes numbers alone.* carrier \(string\), day \(date\)\. Enc"
        ):
            trained(source[:start] + alone)
        encoded = f"{head}    from sklearn.preprocessing import OrdinalEncoder\n"
        trained(
            source[:start]
            + encoded
            + f"    return make_pipeline(OrdinalEncoder(handle_unknown='use_encoded_value', unknown_value=-1), {model})\n"
        )

    @pytest.mark.parametrize(
        ("columns", "says"),
        [
            ("'distance', pl.format('{} mph', 'speed').alias('speed')", "speed is text, for instance '"),
            ("'distance', 'carrier'", "carrier is text, for instance 'AA': encode it in the pipeline, or cast it"),
            (
                "'carrier', 'day'",
                "day is a date or time: take its weekday, month or hour in features(); carrier is text",
            ),
        ],
    )
    def test_told(self, columns: str, says: str) -> None:
        """Text where a number belongs, and dates, are named with what to do; the cause is told too."""
        with pytest.raises(TrainingError) as refused:
            trained(self.model(columns))

        assert str(refused.value).startswith("pipeline().fit fails on the training rows: ")
        assert says in str(refused.value)

    def test_the_column_that_is_meant(self) -> None:
        """Of several columns of text the one is named whose value was refused, and with that value."""
        source = self.model("'carrier', pl.format('{} mph', 'speed').alias('speed')").replace(
            "StandardScaler()",
            "__import__('sklearn.compose').compose.make_column_transformer("
            "(__import__('sklearn.preprocessing').preprocessing.OneHotEncoder(), ['carrier']), remainder='passthrough')",
        )
        with pytest.raises(TrainingError) as refused:
            trained(source)

        value = str(refused.value).partition("to float: ")[2].partition("'. ")[0]
        assert value.endswith(" mph")
        assert f"Of the features, speed is text, for instance {value}': encode it" in str(refused.value)

    @pytest.mark.parametrize("columns", ["'distance', 'day'", "'started'"])
    def test_raw_date(self, columns: str) -> None:
        """A raw date, which an estimator takes for a number, is told while the model is trained."""
        told: list[str] = []
        rows = trips(160)
        frames = [Frame(rows), Frame(labels(rows, slow(rows)))]
        train(job(), Features.of(self.model(columns), "jobs/trips.py"), SQL, *frames, told.append)
        (hint,) = [step for step in told if step.startswith("of the features")]

        assert "is a date or time: take its weekday, month or hour in features(), unless the pipeline does so" in hint

    @pytest.mark.parametrize(
        ("steps", "says"),
        [
            ("LogisticRegression(C=-1)", "'C' parameter"),
            ("OneHotEncoder(), LogisticRegression(C=-1)", "'C' parameter"),
            ("OneHotEncoder(), FunctionTransformer(refuse), LogisticRegression()", "ValueError: speed is negative"),
        ],
    )
    def test_not_told(self, steps: str, says: str) -> None:
        """A failure that no column is to blame for gets no advice on columns, be there text that is encoded or not."""
        columns = "'carrier', 'distance'" if "OneHot" in steps else "'distance'"
        source = self.model(columns).replace("StandardScaler(), LogisticRegression()", steps)
        more = "from sklearn.preprocessing import FunctionTransformer, OneHotEncoder\n\n\ndef refuse(values):\n"
        with pytest.raises(TrainingError) as refused:
            trained(f"{source}\n{more}    raise ValueError('speed is negative')\n")

        assert says in str(refused.value)
        assert "Of the features" not in str(refused.value)


class TestFitted:
    """`fitted`."""

    def test_no_classes(self) -> None:
        """A classifier that does not tell its classes cannot be read, and is refused in words."""

        class Mute:
            def fit(self, X: Any, y: Any) -> Mute:  # noqa: N803 - as scikit-learn has it
                return self

            predict_proba = None

        predictor = Predictor(RAW, Mute(), "binary", (False, True), TYPES)
        with pytest.raises(TrainingError, match="does not keep the classes that it was fitted on"):
            fitted(predictor, part(pl.DataFrame({"x": [1.0, 2.0]}), [True, False]))

    @pytest.mark.parametrize(("task", "method"), [("clustering", "predict"), ("anomaly", "decision_function")])
    def test_no_method(self, task: Any, method: str) -> None:
        """A last step without the task's method is refused with its name."""

        class Nothing:
            def fit(self, X: Any, y: Any) -> Nothing:  # noqa: N803 - as scikit-learn has it
                return self

        predictor = Predictor(RAW, Nothing(), task, (), {"prediction": "integer"})
        with pytest.raises(TrainingError, match=rf"has no {method}\(\), which a {task} task needs"):
            fitted(predictor, part(pl.DataFrame({"x": [1.0, 2.0]}), None))


def test_unknown_binary_class_has_no_likelihood() -> None:
    """Labels that are neither of a binary model's classes are wrong, and define no area, no Brier score, no log loss and no calibration."""
    predictions = pl.DataFrame({"prediction": ["a", "b", "a"], "score": [0.1, 0.9, 0.2]})
    given = evaluate("binary", pl.Series(["a", "b", "new"]), predictions, ("a", "b"))

    assert {"roc_auc", "average_precision", "brier", "log_loss", "ece", "bias"} == {
        n for n, v in given.items() if math.isnan(v)
    }
    assert math.isclose(2 / 3, given["accuracy"])
    assert math.isclose(2 / 3, given["balanced_accuracy"])


def test_replaced_threshold_moves_predictions() -> None:
    """From the threshold on, and not above it only, a row is of the second class."""
    predictor = replace(Predictor(RAW, Given(), "binary", (False, True), TYPES), threshold=0.3)

    assert [False, True, True] == predictor.predict_from(pl.DataFrame({"p": [0.29, 0.3, 0.5]}))["prediction"].to_list()
