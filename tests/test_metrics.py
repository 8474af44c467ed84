"""The metrics are scikit-learn's, for every type of target, and undefined where the labels do not allow them."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from batchscore.model.metrics import evaluate, metrics_of
from batchscore.problem import METRICS, Task

CLASSES: dict[str, tuple[tuple[Any, Any, Any], pl.DataType]] = {
    "integer": ((-1, 3, 20), pl.Int64()),
    "string": (("a", "b", "z é"), pl.String()),
}
BINARY_CLASSES: dict[str, tuple[tuple[Any, Any], pl.DataType]] = {
    "boolean": ((False, True), pl.Boolean()),
    "zero and one": ((0, 1), pl.Int64()),
    "integer": ((7, 9), pl.Int64()),
    "string": (("late", "on time"), pl.String()),
}
CHANCES = st.floats(0, 1).map(lambda chance: round(chance, 3))


def binary(truth: list[bool], score: list[float], kind: str = "boolean") -> dict[str, float]:
    """The metrics of a binary task; `truth` says whether a label is the second class."""
    classes, dtype = BINARY_CLASSES[kind]
    predictions = pl.DataFrame(
        {"prediction": pl.Series([classes[s > 0.5] for s in score], dtype=dtype), "score": score},
        schema_overrides={"score": pl.Float64},
    )
    return evaluate("binary", pl.Series("y", [classes[t] for t in truth], dtype=dtype), predictions, classes)


def multiclass(labels: list[Any], scores: np.ndarray, kind: str = "string") -> dict[str, float]:
    """The metrics of a multiclass task with three classes; the predicted one has the highest score."""
    classes, dtype = CLASSES[kind]
    predictions = pl.DataFrame(
        {"prediction": pl.Series([classes[i] for i in scores.argmax(axis=1)], dtype=dtype)}
        | {f"score_{i}": scores[:, i] for i in range(3)}
    )
    return evaluate("multiclass", pl.Series("y", labels, dtype=dtype), predictions, classes)


def same(expected: dict[str, float], actual: dict[str, float]) -> bool:
    """Whether both have the same names and numbers, NaN being the same as NaN."""
    return expected.keys() == actual.keys() and all(
        math.isclose(value, actual[name], rel_tol=1e-12, abs_tol=1e-15)
        or (math.isnan(value) and math.isnan(actual[name]))
        for name, value in expected.items()
    )


class TestBinary:
    """`evaluate` of a binary task."""

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(st.booleans(), CHANCES), min_size=2, max_size=40), st.sampled_from(list(BINARY_CLASSES)))
    def test_is_scikit_learn(self, rows: list[tuple[bool, float]], kind: str) -> None:
        """Every metric is scikit-learn's on bare arrays of 0 and 1, the second class being 1, whatever the type."""
        y = np.array([truth for truth, _ in rows], dtype=int)
        p = np.array([score for _, score in rows])
        both = 0 < y.sum() < len(y)
        expected = {
            "roc_auc": sk.roc_auc_score(y, p) if both else math.nan,
            "average_precision": sk.average_precision_score(y, p) if y.any() else math.nan,
            "brier": np.mean((y - p) ** 2),
            "log_loss": sk.log_loss(y, p, labels=[0, 1]),
            "accuracy": np.mean((p > 0.5) == y),
            "balanced_accuracy": sk.recall_score(y, p > 0.5, average="macro", labels=np.unique(y)),
            "precision": sk.precision_score(y, p > 0.5, zero_division=0.0),
            "recall": sk.recall_score(y, p > 0.5) if y.any() else math.nan,
            "f1": sk.f1_score(y, p > 0.5) if y.any() else math.nan,
            "base_rate": y.mean(),
            # scikit-learn has neither.
            "ece": _ece(y, p),
            "bias": p.mean() - y.mean(),
        }

        assert same(expected, binary([truth for truth, _ in rows], p.tolist(), kind))

    def test_calibration(self) -> None:
        """Bins that are wrong in opposite ways are an error of calibration, and no bias."""
        measured = binary([False, True, False, True], [0.3, 0.3, 0.7, 0.7])

        assert math.isclose(0.2, measured["ece"])
        assert math.isclose(0.0, measured["bias"], abs_tol=1e-12)
        assert math.isclose(0.25, binary([False, False], [0.2, 0.3])["bias"])

    def test_known_values(self) -> None:
        """Three of four pairs are in order, so the area is 0.75; half of the rows are positive."""
        measured = binary([False, True, False, True], [0.1, 0.4, 0.6, 0.9])

        assert (0.75, 0.5, 0.5) == (measured["roc_auc"], measured["accuracy"], measured["base_rate"])

    @pytest.mark.parametrize("kind", list(BINARY_CLASSES))
    def test_only_positives(self, kind: str) -> None:
        """Where every label is the second class there is no ROC curve; all else is defined."""
        measured = binary([True, True], [0.2, 0.9], kind)

        assert {"roc_auc"} == {name for name, value in measured.items() if math.isnan(value)}
        assert (1.0, 0.5) == (measured["base_rate"], measured["accuracy"])

    @pytest.mark.parametrize("kind", list(BINARY_CLASSES))
    def test_only_negatives(self, kind: str) -> None:
        """Where every label is the first class there is nothing to be found, and no curve of it."""
        measured = binary([False], [0.2], kind)

        assert {"roc_auc", "average_precision", "recall", "f1"} == {
            name for name, value in measured.items() if math.isnan(value)
        }
        assert (0.0, 1.0) == (measured["base_rate"], measured["accuracy"])

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), min_size=1, max_size=20))
    def test_unknown_classes(self, rows: list[tuple[str, bool]]) -> None:
        """Labels of classes that the model does not know are misses, as scikit-learn counts them."""
        labels, guess = [label for label, _ in rows], ["b" if called else "a" for _, called in rows]
        predictions = pl.DataFrame({"prediction": guess, "score": [float(called) for _, called in rows]})
        measured = evaluate("binary", pl.Series("y", labels), predictions, ("a", "b"))

        assert math.isclose(sk.accuracy_score(labels, guess), measured["accuracy"])
        assert math.isclose(_balanced_accuracy(labels, guess), measured["balanced_accuracy"])


class TestMulticlass:
    """`evaluate` of a multiclass task."""

    @settings(max_examples=60, deadline=None)
    @given(st.data(), st.sampled_from(list(CLASSES)), st.integers(1, 30))
    def test_is_scikit_learn(self, data: st.DataObject, kind: str, n: int) -> None:
        """Every metric is scikit-learn's on bare arrays of class numbers, classes missing on either side or not."""
        classes, _ = CLASSES[kind]
        y = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
        raw = np.random.default_rng(data.draw(st.integers(0, 99))).dirichlet([1, 1, 1], size=n)
        guess = raw.argmax(axis=1)
        recalls = [np.mean(guess[y == c] == c) for c in np.unique(y)]
        expected = {
            "accuracy": np.mean(y == guess),
            "balanced_accuracy": np.mean(recalls),
            "precision_macro": sk.precision_score(y, guess, average="macro", zero_division=0.0),
            "recall_macro": sk.recall_score(y, guess, average="macro", zero_division=0.0),
            "f1_macro": sk.f1_score(y, guess, average="macro", zero_division=0.0),
            "roc_auc_macro": np.mean(areas) if (areas := _areas(y, raw)) else math.nan,
            "log_loss": -np.mean(np.log(raw[np.arange(n), y])),
        }

        assert same(expected, multiclass([classes[i] for i in y], raw, kind))

    def test_balanced_accuracy(self) -> None:
        """Balanced accuracy is scikit-learn's function of that name."""
        scores = np.eye(3)[[0, 0, 1, 2, 2, 1]]
        labels = ["a", "a", "a", "b", "z é", "z é"]
        guess = ["a", "a", "b", "z é", "z é", "b"]
        expected = sk.balanced_accuracy_score(labels, guess)

        assert math.isclose(expected, multiclass(labels, scores)["balanced_accuracy"])

    @pytest.mark.parametrize("kind", list(CLASSES))
    def test_one_class(self, kind: str) -> None:
        """Labels of one class are measured without a warning, predictions of other classes among them."""
        first = CLASSES[kind][0][0]
        measured = multiclass([first, first], np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]]), kind)

        assert (0.5, 0.5) == (measured["accuracy"], measured["balanced_accuracy"])
        assert {"roc_auc_macro"} == {name for name, value in measured.items() if math.isnan(value)}

    @pytest.mark.parametrize(("kind", "unknown"), [("integer", 4), ("string", "new")])
    def test_unknown_class(self, kind: str, unknown: Any) -> None:
        """A label that the model was not fitted on counts as missed; its likelihood is undefined, and no error."""
        first = CLASSES[kind][0][0]
        measured = multiclass([first, unknown], np.array([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1]]), kind)

        assert {"roc_auc_macro", "log_loss"} == {name for name, value in measured.items() if math.isnan(value)}
        assert (0.5, 0.5) == (measured["accuracy"], measured["balanced_accuracy"])

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 2)), min_size=1, max_size=20))
    def test_unknown_classes(self, rows: list[tuple[str, int]]) -> None:
        """Several classes that the model was not fitted on count each as scikit-learn counts them."""
        labels, guess = [label for label, _ in rows], ["abc"[called] for _, called in rows]
        scores = np.eye(3)[[called for _, called in rows]]
        predictions = pl.DataFrame({"prediction": guess} | {f"score_{i}": scores[:, i] for i in range(3)})
        measured = evaluate("multiclass", pl.Series("y", labels), predictions, ("a", "b", "c"))

        assert math.isclose(_balanced_accuracy(labels, guess), measured["balanced_accuracy"])
        for name, theirs in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
            assert math.isclose(theirs(labels, guess, average="macro", zero_division=0.0), measured[f"{name}_macro"])

    def test_class_without_a_row(self) -> None:
        """Where every row is predicted right, no class that the rows lack takes anything from that."""
        measured = multiclass(["a", "a", "b"], np.eye(3)[[0, 0, 1]])

        assert {1.0} == {measured[name] for name in METRICS["multiclass"] if name != "log_loss"}


class TestRegression:
    """`evaluate` of a regression."""

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(st.integers(-100, 100), st.floats(-100, 100)), min_size=2, max_size=30), st.booleans())
    def test_is_scikit_learn(self, rows: list[tuple[int, float]], whole: bool) -> None:
        """Every metric is scikit-learn's on bare arrays, for integer and for float targets."""
        y, guess = (np.array(side, dtype=float) for side in zip(*rows, strict=True))
        labels = pl.Series("y", y).cast(pl.Int64 if whole else pl.Float64)
        expected = {
            "mae": np.mean(np.abs(y - guess)),
            "rmse": np.sqrt(np.mean((y - guess) ** 2)),
            "r2": sk.r2_score(y, guess),
            "median_error": np.median(np.abs(y - guess)),
        }

        assert same(expected, evaluate("regression", labels, pl.DataFrame({"prediction": guess}), ()))

    def test_one_row(self) -> None:
        """One row has errors, and no share of variance explained."""
        measured = evaluate("regression", pl.Series("y", [3.0]), pl.DataFrame({"prediction": [5.0]}), ())

        assert (2.0, 2.0, 2.0) == (measured["mae"], measured["rmse"], measured["median_error"])
        assert math.isnan(measured["r2"])


@pytest.mark.parametrize("task", list(METRICS))
def test_names(task: Task) -> None:
    """Every task measures exactly what METRICS says it has, so that a job can name any of it."""
    measured = {
        "binary": lambda: binary([True, False], [0.5, 0.5]),
        "multiclass": lambda: multiclass(["a"], np.array([[0.2, 0.3, 0.5]])),
        "regression": lambda: evaluate("regression", pl.Series([1.0]), pl.DataFrame({"prediction": [1.0]}), ()),
        # The silhouette wants the rows too: see `silhouette`.
        "clustering": lambda: {"silhouette": 0.0} | evaluate("clustering", None, pl.DataFrame({"prediction": [1]}), ()),
        "anomaly": lambda: evaluate("anomaly", None, pl.DataFrame({"prediction": [True], "score": [0.1]}), ()),
    }[task]()

    assert METRICS[task] == tuple(measured)


def _ece(y: np.ndarray, p: np.ndarray) -> float:
    """The same by its definition, bin by bin; a score on an edge is of the bin below."""
    bins = [(p > low / 10) & (p <= (low + 1) / 10) if low else p <= 0.1 for low in range(10)]
    return float(sum(rows.mean() * abs(p[rows].mean() - y[rows].mean()) for rows in bins if rows.any()))


def _balanced_accuracy(labels: list[str], guess: list[str]) -> float:
    """scikit-learn's, which warns of predictions of a class that the labels lack."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return float(sk.balanced_accuracy_score(labels, guess))


def _areas(y: np.ndarray, scores: np.ndarray) -> list[float]:
    """scikit-learn's area of each class that some rows are of and some are not."""
    return [sk.roc_auc_score(y == c, scores[:, c]) for c in range(3) if 0 < (y == c).sum() < len(y)]


class TestWeights:
    """`metrics_of`: rows that count several times."""

    @settings(max_examples=60, deadline=None)
    @given(
        st.sampled_from(list(METRICS)),
        st.lists(st.tuples(st.integers(0, 2), CHANCES, st.integers(0, 3)), min_size=3, max_size=30),
    )
    def test_is_repetition(self, task: Task, rows: list[tuple[int, float, int]]) -> None:
        """A row that counts three times is the same as three such rows, for every metric of every task."""
        kind, score, times = (np.array(side) for side in zip(*rows, strict=True))
        if not times.sum():
            times[0] = 1
        labels, predictions, classes = _example(task, kind, score)
        again = np.repeat(np.arange(len(kind)), times)
        repeated = evaluate(task, None if labels is None else labels[again], predictions[again], classes)
        weighted = metrics_of(task, labels, predictions, classes)(times.astype(float))

        assert {name: pytest.approx(value, rel=1e-9, nan_ok=True) for name, value in repeated.items()} == weighted


def _example(task: Task, kind: np.ndarray, score: np.ndarray) -> tuple[pl.Series | None, pl.DataFrame, tuple[Any, ...]]:
    """Labels, predictions and classes of a task, of small numbers."""
    match task:
        case "binary":
            return pl.Series(kind > 0), pl.DataFrame({"prediction": score > 0.5, "score": score}), (False, True)
        case "multiclass":
            scores = np.stack([score, (1 - score) * 0.75, (1 - score) * 0.25], axis=1)
            columns = {f"score_{i}": scores[:, i] for i in range(3)}
            return pl.Series(kind), pl.DataFrame({"prediction": scores.argmax(axis=1)} | columns), (0, 1, 2)
        case "regression":
            return pl.Series(kind), pl.DataFrame({"prediction": score}), ()
        case "clustering":
            return None, pl.DataFrame({"prediction": kind}), ()
        case _:
            return None, pl.DataFrame({"prediction": score > 0.5, "score": score}), ()


def test_of_samples() -> None:
    """Weights of several samples give what each of them does alone."""
    rng = np.random.default_rng(4)
    score = rng.random(60).round(1)
    labels = pl.Series(rng.random(60) < score)
    answers = pl.DataFrame({"prediction": score > 0.5, "score": score})
    metrics = metrics_of("binary", labels, answers, (False, True))
    weights = rng.integers(0, 3, (20, 60)).astype(np.float64)
    # One without positives, one without negatives.
    weights[0], weights[1] = ~labels.to_numpy(), labels.to_numpy()

    together = metrics(weights)

    for place, each in enumerate(weights):
        for name, value in metrics(each).items():
            np.testing.assert_allclose(together[name][place], value, rtol=1e-12, err_msg=name)
