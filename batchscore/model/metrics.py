"""Metrics of predictions against labels, for rows that count once, or several times.

As scikit-learn's of the same names, which the tests compare them with. A bootstrap wants each of them some hundred
times over the same rows, and so what does not depend on how often a row counts is worked out once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from batchscore.model.predictor import Label
from batchscore.problem import Task

__all__ = [
    "Metrics",
    "evaluate",
    "mean_of",
    "metrics_of",
    "of_counts",
    "r2_of",
    "ranking",
    "silhouette",
    "surprise_of",
]

Floats = npt.NDArray[np.float64]
# Each a float; where it takes several samples, an array.
Metrics = Callable[[Floats], dict[str, Any]]

_TENTHS = np.arange(1, 10) / 10


def evaluate(
    task: Task, labels: pl.Series | None, predictions: pl.DataFrame, classes: tuple[Label, ...]
) -> dict[str, float]:
    """Every metric of the task, by name, with each row counted once: see `metrics_of`."""
    return metrics_of(task, labels, predictions, classes)(np.ones(predictions.height))


def metrics_of(task: Task, labels: pl.Series | None, predictions: pl.DataFrame, classes: tuple[Label, ...]) -> Metrics:
    """Every metric of the task, by name, as a function of how often each row counts; NaN where they do not allow it.

    One class only has no ROC curve, and a class that the model was not fitted on no likelihood. A cluster's silhouette
    needs more than predictions: see `silhouette`.

    Args:
        task: What kind of answers they are.
        labels: Known values of the target, shape `(rows,)`, no NULL, at least one row; None for a task without labels.
        predictions: `prediction` and the score columns for the same rows, in the same order.
        classes: The labels in the order of the scores; the second is the positive one of a binary task.

    Returns:
        A function of weights, shape `(rows,)`, numbers from 0 on with a sum above 0. Of a binary task they may have the
        shape `(samples, rows)`, and the metrics are then arrays of shape `(samples,)`.
    """
    if labels is None:
        return _clustering(predictions) if task == "clustering" else _anomaly(predictions)
    match task:
        case "binary":
            return _binary(labels, predictions, classes)
        case "multiclass":
            return _multiclass(labels, predictions, classes)
        case _:
            return _regression(labels, predictions)


def silhouette(inputs: Floats, clusters: pl.Series) -> float:
    """How much nearer rows are to their own cluster than to the next, from -1 to 1; NaN with one cluster only.

    Source: Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis", Journal
    of Computational and Applied Mathematics 20 (1987).

    Args:
        inputs: What the clusters were made from, shape `(rows, dimensions)`.
        clusters: The cluster of each row.
    """
    if not 2 <= clusters.n_unique() < len(clusters):
        return math.nan
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(inputs, clusters.to_numpy()))


def _binary(labels: pl.Series, predictions: pl.DataFrame, classes: tuple[Label, ...]) -> Metrics:
    kinds = _numbered(labels, classes)
    truth, unknown = kinds == 1, kinds > 1
    guess = (predictions["prediction"] == classes[1]).to_numpy()
    # A label that is neither of the classes is wrong whatever is predicted.
    right = (labels == predictions["prediction"]).to_numpy()
    score = predictions["score"].to_numpy()
    surprise, miss = surprise_of(np.where(truth, score, 1 - score)), (score - truth) ** 2
    ranked = ranking(truth, score)
    excess = score - truth
    # As floats once, and not in each of the hundreds of calls.
    positives, guesses, found, agrees = (each.astype(np.float64) for each in (truth, guess, truth & guess, right))
    bins = _TENTHS.searchsorted(score)

    def metrics(weights: Floats) -> dict[str, Any]:
        total, positive = weights.sum(-1), weights @ positives
        hit, called = weights @ found, weights @ guesses
        roc_auc, average_precision = ranked(weights)
        known = weights @ unknown == 0
        values = {
            "roc_auc": np.where(known, roc_auc, math.nan),
            "average_precision": np.where(known, average_precision, math.nan),
            "brier": np.where(known, weights @ miss / total, math.nan),
            "log_loss": np.where(known, weights @ surprise / total, math.nan),
            "accuracy": weights @ agrees / total,
            "balanced_accuracy": _recall(kinds, right, weights),
            "precision": _share(hit, called, 0.0),
            "recall": _share(hit, positive, math.nan),
            "f1": np.where(positive > 0, _share(2 * hit, called + positive, 0.0), math.nan),
            "base_rate": positive / total,
            "ece": np.where(known, np.abs(_by(bins, weights * excess)).sum(-1) / total, math.nan),
            "bias": np.where(known, weights @ excess / total, math.nan),
        }
        return values if weights.ndim > 1 else {name: float(value) for name, value in values.items()}

    return metrics


def _numbered(labels: pl.Series, classes: tuple[Label, ...]) -> npt.NDArray[np.int64]:
    """The place of each label among the classes; a label that is none of them has a number of its own behind theirs."""
    number = {label: i for i, label in enumerate(classes)}
    return np.array([number.setdefault(label, len(number)) for label in labels.to_list()], dtype=np.int64)


def _recall(kinds: npt.NDArray[np.int64], right: npt.NDArray[np.bool_], weights: Floats) -> Any:
    """Recall averaged over the classes that the labels have; one that the model does not know is never found."""
    found, rows = _by(kinds, weights * right), _by(kinds, weights)
    there = rows > 0
    return np.divide(found, rows, out=np.zeros(rows.shape), where=there).sum(-1) / there.sum(-1)


def _by(groups: npt.NDArray[Any], values: Floats) -> npt.NDArray[Any]:
    """Sums of values by the group of each, along the last axis."""
    if values.ndim == 1:
        return np.bincount(groups, values)
    return np.stack([np.bincount(groups, each) for each in values])


def surprise_of(likelihood: Floats) -> Floats:
    """What the log loss is the mean of; a likelihood of 0 or 1 counts as the smallest step away from it."""
    eps = np.finfo(np.float64).eps
    return -np.log(np.clip(likelihood, eps, 1 - eps))


def ranking(truth: npt.NDArray[np.bool_], score: Floats) -> Callable[[Floats], tuple[Any, Any]]:
    """The area under the ROC curve and the average precision, as a function of weights; NaN without both classes.

    Rows of equal score enter both curves together. Of weights of shape `(samples, rows)` both are arrays.
    """
    order = np.argsort(-score, kind="stable")
    ordered, positives = score[order], truth[order].astype(np.float64)
    negatives = 1.0 - positives
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))

    def ranked(weights: Floats) -> tuple[Any, Any]:
        counts = weights[..., order]
        hits = np.cumsum(counts * positives, axis=-1)[..., ends]
        alarms = np.cumsum(counts * negatives, axis=-1)[..., ends]
        positive, negative = hits[..., -1], alarms[..., -1]
        gained = _steps(hits)
        called, before = hits + alarms, hits - gained
        precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
        average_precision = _share(np.vecdot(gained, precision), positive, math.nan)
        area = np.vecdot(_steps(alarms), before + gained / 2)
        return _share(area, positive * negative, math.nan), average_precision

    return ranked


def _steps(sums: Floats) -> Floats:
    """What each sum adds to the one before; `numpy.diff` with a prefix takes several times as long."""
    steps = sums.copy()
    steps[..., 1:] -= sums[..., :-1]
    return steps


def _share(part: Any, whole: Any, of_nothing: float) -> Any:
    there = whole > 0
    return np.where(there, part / np.where(there, whole, 1.0), of_nothing)


def _multiclass(labels: pl.Series, predictions: pl.DataFrame, classes: tuple[Label, ...]) -> Metrics:
    truth, guess = _numbered(labels, classes), _numbered(predictions["prediction"], classes)
    right, known = truth == guess, truth < len(classes)
    width = max(len(classes), int(truth.max()) + 1)
    scores = predictions.drop("prediction").to_numpy()
    surprise = surprise_of(scores[np.arange(len(truth)), np.where(known, truth, 0)])
    each = [ranking(truth == i, score) for i, score in enumerate(scores.T)]

    def metrics(weights: Floats) -> dict[str, float]:
        total = float(weights.sum())
        hits = np.bincount(truth, weights * right, width)
        true, called = np.bincount(truth, weights, width), np.bincount(guess, weights, width)
        unknown = float(weights @ ~known)
        areas = [ranked(weights)[0] for ranked in each]
        return of_counts(hits, true, called) | {
            "roc_auc_macro": mean_of(areas) if not unknown else math.nan,
            "log_loss": float(weights @ surprise) / total if not unknown else math.nan,
        }

    return metrics


def of_counts(hits: npt.NDArray[Any], true: npt.NDArray[Any], called: npt.NDArray[Any]) -> dict[str, float]:
    """The metrics of a multiclass task for which it is enough to count rows by class; NaN where they do not allow it.

    Args:
        hits: Rows of the class that are predicted to be of it, shape `(classes,)`, as the others.
        true: Rows of the class.
        called: Rows that are predicted to be of it; their sum is above 0.
    """
    # A class that neither labels nor predictions have says nothing of the model.
    there = true + called > 0
    recall = np.divide(hits, true, out=np.zeros(len(hits)), where=true > 0)
    precision = np.divide(hits, called, out=np.zeros(len(hits)), where=called > 0)
    return {
        "accuracy": float(hits.sum() / called.sum()),
        "balanced_accuracy": float(recall[true > 0].mean()) if true.any() else math.nan,
        "precision_macro": float(precision[there].mean()),
        "recall_macro": float(recall[there].mean()),
        "f1_macro": float((2 * hits[there] / (true + called)[there]).mean()),
    }


def mean_of(values: list[float]) -> float:
    """The mean of those that are a number; NaN without any."""
    there = [value for value in values if math.isfinite(value)]
    return sum(there) / len(there) if there else math.nan


def _regression(labels: pl.Series, predictions: pl.DataFrame) -> Metrics:
    truth = labels.cast(pl.Float64).to_numpy()
    error = np.abs(truth - predictions["prediction"].to_numpy())
    order = np.argsort(error, kind="stable")

    def metrics(weights: Floats) -> dict[str, float]:
        total = float(weights.sum())
        squares = float(weights @ error**2)
        spread = float(weights @ (truth - float(weights @ truth) / total) ** 2)
        return {
            "mae": float(weights @ error) / total,
            "rmse": math.sqrt(squares / total),
            "r2": r2_of(squares, spread, total),
            "median_error": _median(error[order], weights[order]),
        }

    return metrics


def r2_of(squares: float, spread: float, rows: float) -> float:
    """The share of the spread that is explained; NaN of one row, and of equal labels as scikit-learn has it."""
    if rows <= 1:
        return math.nan
    return 1 - squares / spread if spread else float(squares == 0)


def _median(ascending: Floats, weights: Floats) -> float:
    reached = np.cumsum(weights)
    middle = [math.floor((reached[-1] - 1) / 2), math.ceil((reached[-1] - 1) / 2)]
    return float(ascending[np.searchsorted(reached, middle, side="right")].mean())


def _clustering(predictions: pl.DataFrame) -> Metrics:
    clusters: Any = predictions["prediction"].rank("dense").to_numpy().astype(np.int64) - 1

    def metrics(weights: Floats) -> dict[str, float]:
        counted = np.bincount(clusters, weights)
        there = counted[counted > 0] / weights.sum()
        return {
            "clusters": float(len(there)),
            "smallest_cluster": float(there.min()),
            "largest_cluster": float(there.max()),
        }

    return metrics


def _anomaly(predictions: pl.DataFrame) -> Metrics:
    odd = predictions["prediction"].to_numpy()

    def metrics(weights: Floats) -> dict[str, float]:
        return {"contamination": float(weights @ odd) / float(weights.sum())}

    return metrics
