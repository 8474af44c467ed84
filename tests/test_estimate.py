"""Metrics estimated from scores alone, beside those that labels give afterwards."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import polars as pl
import pytest
from toy import Project

from batchscore.layout import Layout
from batchscore.model.bundle import Bundle
from batchscore.model.evaluation import Measured
from batchscore.model.metrics import evaluate
from batchscore.model.registry import Registry
from batchscore.model.tally import Tally
from batchscore.monitor.estimate import Estimator
from batchscore.monitor.verdict import worse
from batchscore.profile import ColumnProfile

CLASSES = (False, True)
SCORES = Layout.uniform(0.0, 1.0, 200)
KINDS = ("high", "low", "middle", "none")
OF_COUNTS = ("accuracy", "balanced_accuracy", "precision_macro", "recall_macro", "f1_macro")
METRICS = ("roc_auc", "average_precision", "brier", "log_loss", "accuracy", "precision", "recall", "f1", "base_rate")


@pytest.fixture(scope="module")
def bundle(trained: Project) -> Bundle:
    """The bundle of the toy job."""
    return Registry.at(trained.root / "var/registry").load("toy", 1)


def drawn(n: int, seed: int, center: float = -1.0, sharper: float = 1.0) -> tuple[pl.Series, pl.DataFrame]:
    """Labels, and the scores of a model that is the surer the more `sharper` is above 1."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(center, 1.5, n)
    score = 1 / (1 + np.exp(-sharper * logit))
    return pl.Series(rng.random(n) < 1 / (1 + np.exp(-logit))), pl.DataFrame(
        {"prediction": score > 0.5, "score": score}
    )


def estimator(bundle: Bundle, truth: pl.Series, answers: pl.DataFrame) -> Estimator:
    """One that knows these test rows."""
    return Estimator("toy", bundle, Tally.of("binary", CLASSES, truth, answers))


def drawn_of_kinds(n: int, seed: int, center: float = 0.0, sharper: float = 1.0) -> tuple[pl.Series, pl.DataFrame]:
    """The same of a model of four classes; the first is the more frequent the more `center` is above 0."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, 4)) - [0.0, 0.3, 0.6, 1.5] + [center, 0.0, 0.0, 0.0]
    likely, scores = (np.exp(sharpness * logits) for sharpness in (1.0, sharper))
    truth = (rng.random((n, 1)) * likely.sum(axis=1, keepdims=True) > likely.cumsum(axis=1)).sum(axis=1)
    scores /= scores.sum(axis=1, keepdims=True)
    names = np.array(KINDS)
    columns = {f"score_{name}": scores[:, i] for i, name in enumerate(KINDS)}
    return pl.Series(names[truth]), pl.DataFrame({"prediction": names[scores.argmax(axis=1)], **columns})


def estimator_of_kinds(bundle: Bundle, truth: pl.Series, answers: pl.DataFrame) -> Estimator:
    """One of four classes that knows these test rows."""
    return Estimator("toy", bundle, Tally.of("multiclass", KINDS, truth, answers))


def profiles(answers: pl.DataFrame) -> list[ColumnProfile]:
    """The profiles of the scores, of several classes with the rows that have each predicted."""
    if "score" in answers.columns:
        return [ColumnProfile.of(answers["score"], SCORES)]
    each = [(answers[f"score_{name}"], answers["prediction"] == name) for name in KINDS]
    return [ColumnProfile.of(scores, SCORES).choosing(scores, rows) for scores, rows in each]


def compared(known: Estimator, draw: Any = drawn, **kind: Any) -> dict[str, tuple[float, float]]:
    """By metric, in how many of 40 days of 600 rows the interval holds what is measured, and the mean error."""
    tested = known.tested
    names = METRICS if tested.task == "binary" else OF_COUNTS
    found: dict[str, list[tuple[bool, float]]] = {name: [] for name in names}
    for seed in range(40):
        truth, answers = draw(600, 100 + seed, **kind)
        estimated = known.estimate(profiles(answers))
        exact = evaluate(tested.task, truth, answers, tested.classes)
        for name in names:
            one = estimated[name]
            assert one.low is not None
            assert one.high is not None
            found[name].append((one.low <= exact[name] <= one.high, one.value - exact[name]))
    return {name: (np.mean([h for h, _ in pairs]), np.mean([e for _, e in pairs])) for name, pairs in found.items()}


class TestEstimate:
    @pytest.mark.parametrize("sharper", [1.0, 2.0], ids=["calibrated", "too sure"])
    @pytest.mark.parametrize("center", [-1.0, 0.5], ids=["as tested", "shifted"])
    def test_holds(self, bundle: Bundle, sharper: float, center: float) -> None:
        """A day's metrics mostly lie in the interval, whether or not scores are calibrated or inputs moved."""
        known = estimator(bundle, *drawn(20_000, 1, sharper=sharper))

        for name, (held, error) in compared(known, center=center, sharper=sharper).items():
            assert held >= 0.8, name
            assert abs(error) < 0.02, name

    def test_another_meaning(self, bundle: Bundle) -> None:
        """Where labels no longer follow from the scores as they did, the estimate does not know, and is wrong."""
        known = estimator(bundle, *drawn(20_000, 1))
        truth, answers = drawn(2_000, 2)
        estimated = known.estimate([ColumnProfile.of(answers["score"], SCORES)])
        measured = evaluate("binary", ~truth, answers, CLASSES)

        assert estimated["roc_auc"].value > 0.75
        assert measured["roc_auc"] < 0.25

    def test_says_nothing_of_calibration(self, bundle: Bundle) -> None:
        """It takes calibration for granted, and does not estimate it."""
        truth, answers = drawn(2_000, 2)
        found = estimator(bundle, truth, answers).estimate([ColumnProfile.of(answers["score"], SCORES)])

        assert evaluate("binary", truth, answers, CLASSES).keys() - found.keys() == {"ece", "bias"}

    @pytest.mark.parametrize("threshold", [0.2437, 0.25, None])
    def test_scores_beside_the_threshold(self, bundle: Bundle, threshold: float | None) -> None:
        """Of scores on both sides of the threshold, near one another, those from it on are predicted to be positive."""
        middle = 0.2437 if threshold == 0.2437 else threshold or 0.5
        near = [middle - 0.0005, middle + 0.0002] if threshold else [middle, middle + 0.0002]
        score = np.repeat([*near, middle], 1000) if threshold else np.repeat(near, 1000)
        truth = pl.Series(np.random.default_rng(0).random(len(score)) < 0.3)
        layout = Layout.uniform(0.0, 1.0, 200, threshold)
        predictor = replace(bundle.predictor, threshold=threshold)
        positive = score >= threshold if threshold else score > 0.5
        answers = pl.DataFrame({"prediction": positive, "score": score})

        known = estimator(replace(bundle, predictor=predictor), truth, answers)
        estimated = known.estimate([ColumnProfile.of(answers["score"], layout)])

        assert estimated["recall"].value == pytest.approx(positive.mean(), abs=0.05)

    def test_no_rows(self, bundle: Bundle) -> None:
        """Of no rows nothing is estimated."""
        assert {} == estimator(bundle, *drawn(500, 1)).estimate([ColumnProfile.empty(SCORES)])


class TestSeveral:
    """Of more than two classes."""

    @pytest.mark.parametrize("sharper", [1.0, 2.0, 0.5], ids=["calibrated", "too sure", "too shy"])
    @pytest.mark.parametrize("center", [0.0, 0.7], ids=["as tested", "shifted"])
    def test_holds(self, bundle: Bundle, sharper: float, center: float) -> None:
        """A day's metrics mostly lie in the interval, whether or not scores are calibrated or inputs moved."""
        known = estimator_of_kinds(bundle, *drawn_of_kinds(20_000, 1, sharper=sharper))

        for name, (held, error) in compared(known, drawn_of_kinds, center=center, sharper=sharper).items():
            assert held >= 0.8, name
            assert abs(error) < 0.02, name

    def test_sees_what_is_harder(self, bundle: Bundle) -> None:
        """Of rows that the model is less sure of fewer are expected right, as fewer are."""
        known = estimator_of_kinds(bundle, *drawn_of_kinds(20_000, 2))
        truth, answers = drawn_of_kinds(20_000, 52)
        unsure = pl.max_horizontal(pl.exclude("prediction", "truth")) < 0.5
        hard = answers.with_columns(truth=truth).filter(unsure)
        measured = evaluate("multiclass", hard["truth"], hard.drop("truth"), KINDS)

        assert measured["accuracy"] < 0.45
        for name, one in known.estimate(profiles(hard)).items():
            assert one.value == pytest.approx(measured[name], abs=0.02), name

    def test_says_what_counts_say(self, bundle: Bundle) -> None:
        """What lives on scores near 0, where bins hold them together, is not estimated."""
        known = estimator_of_kinds(bundle, *drawn_of_kinds(2_000, 1))

        assert set(OF_COUNTS) == known.estimate(profiles(drawn_of_kinds(600, 2)[1])).keys()

    def test_any_chunking(self, bundle: Bundle) -> None:
        """From chunks of any size the counts are those of all rows, and so is the estimate."""
        known = estimator_of_kinds(bundle, *drawn_of_kinds(2_000, 1))
        answers = drawn_of_kinds(1_000, 2)[1]
        whole = profiles(answers)

        for size in (1, 7, 999):
            chunks = [profiles(chunk) for chunk in answers.iter_slices(size)]
            merged = [reduce(ColumnProfile.merge, each) for each in zip(*chunks, strict=True)]
            assert [each.to_dict()["chosen"] for each in whole] == [each.to_dict()["chosen"] for each in merged]
            assert sum(sum(each.to_dict()["chosen"]) for each in merged) == 1_000
            for name, one in known.estimate(merged).items():
                assert one.value == pytest.approx(known.estimate(whole)[name].value), name

    def test_a_class_that_tests_never_predicted(self, bundle: Bundle) -> None:
        """Its scores are taken at their word, for no test row says what they mean."""
        truth, answers = drawn_of_kinds(5_000, 1)
        seen = answers["prediction"] != "none"
        known = estimator_of_kinds(bundle, truth.filter(seen), answers.filter(seen))
        fresh = drawn_of_kinds(20_000, 2)[1].filter(pl.col("prediction") == "none")

        assert known.estimate(profiles(fresh))["accuracy"].value == pytest.approx(fresh["score_none"].mean(), abs=0.005)

    @pytest.mark.filterwarnings("error")
    def test_a_row_at_a_time(self, bundle: Bundle) -> None:
        """Of single rows no draw may have any of any class, and it is estimated all the same."""
        known = estimator_of_kinds(bundle, *drawn_of_kinds(200, 1))

        for row in drawn_of_kinds(50, 2)[1].iter_slices(1):
            assert 0 <= known.estimate(profiles(row))["accuracy"].value <= 1

    def test_from_before(self, bundle: Bundle) -> None:
        """Without the rows that have each class predicted, of the run or of the test, nothing is estimated."""
        truth, answers = drawn_of_kinds(2_000, 1)
        known = estimator_of_kinds(bundle, truth, answers)
        counted = profiles(answers)
        cells = known.tested.cells
        before = cells.with_columns(prediction=pl.when(pl.col("truth").is_not_null()).then("prediction"))

        assert {} == known.estimate([replace(each, chosen=None) for each in counted])
        assert {} == known.estimate([*counted[:-1], replace(counted[-1], chosen=None)])
        assert {} == replace(known, tested=replace(known.tested, cells=before)).estimate(counted)

    def test_no_rows(self, bundle: Bundle) -> None:
        """Of no rows nothing is estimated."""
        known = estimator_of_kinds(bundle, *drawn_of_kinds(500, 1))

        assert {} == known.estimate(profiles(drawn_of_kinds(10, 2)[1].clear()))


class TestTested:
    def test_travels_with_the_bundle(self, bundle: Bundle) -> None:
        """The counted test rows are in the bundle: as many as were tested on, and with the metrics of that test."""
        assert bundle.tested is not None
        assert bundle.tested.rows == bundle.manifest.training.tested
        metrics = bundle.tested.metrics()
        for name, measured in bundle.evaluation.test.items():
            assert metrics[name] == pytest.approx(measured.value, abs=0.003), name


class TestWorse:
    @pytest.mark.parametrize(
        ("metric", "now", "then", "expected"),
        [
            ("roc_auc", (0.60, 0.69), (0.70, 0.80), True),
            ("roc_auc", (0.60, 0.70), (0.70, 0.80), False),
            ("roc_auc", (0.81, 0.90), (0.70, 0.80), False),
            ("log_loss", (0.41, 0.50), (0.30, 0.40), True),
            ("log_loss", (0.20, 0.29), (0.30, 0.40), False),
            ("bias", (0.03, 0.05), (-0.01, 0.02), True),
            ("bias", (-0.05, -0.03), (-0.01, 0.02), True),
            ("bias", (-0.05, 0.01), (-0.01, 0.02), False),
            ("ece", (0.2, 0.3), (0.01, 0.02), None),
            ("base_rate", (0.2, 0.3), (0.01, 0.02), None),
            ("roc_auc", (None, None), (0.70, 0.80), None),
        ],
    )
    def test_beyond(self, metric: str, now: tuple[Any, Any], then: tuple[Any, Any], expected: bool | None) -> None:
        """It is worse when the whole interval is past the worse end of the other; some metrics are never judged."""
        one, other = (Measured(value=0.0, low=low, high=high) for low, high in (now, then))

        assert worse(metric, one, other) is expected

    @pytest.mark.parametrize("metric", ["roc_auc", "log_loss", "bias"])
    def test_scatter(self, metric: str) -> None:
        """What two deviations from day to day explain is not worse."""
        then = Measured(value=0.0, low=-0.1, high=0.1)
        now = (
            Measured(value=0.0, low=-0.4, high=-0.2) if metric == "roc_auc" else Measured(value=0.0, low=0.2, high=0.4)
        )

        assert [True, True, False] == [worse(metric, now, then, scatter) for scatter in (0.0, 0.04, 0.06)]
