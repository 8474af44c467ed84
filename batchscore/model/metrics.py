"""Metrics of predictions against labels, from scikit-learn."""

from __future__ import annotations

import numpy as np
import polars as pl
from sklearn import metrics as sk

from batchscore.model.predictor import Label
from batchscore.problem import Task

__all__ = ["evaluate"]


def evaluate(task: Task, labels: pl.Series, predictions: pl.DataFrame, classes: tuple[Label, ...]) -> dict[str, float]:
    """Every metric of the task, by name; NaN where the labels do not allow it.

    One class only has no ROC curve, and a class that the model was not fitted on no likelihood.

    Args:
        task: binary, multiclass or regression.
        labels: Known values of the target, shape `(rows,)`, no NULL, at least one row.
        predictions: `prediction` and the score columns for the same rows, in the same order.
        classes: The labels in the order of the scores; the second is the positive one of a binary task.
    """
    match task:
        case "binary":
            return _binary(labels, predictions, classes)
        case "multiclass":
            return _multiclass(labels, predictions, classes)
        case "regression":
            return _regression(labels, predictions)


def _binary(labels: pl.Series, predictions: pl.DataFrame, classes: tuple[Label, ...]) -> dict[str, float]:
    truth = (labels == classes[1]).to_numpy()
    score = predictions["score"].to_numpy()
    both = bool(truth.any() and not truth.all())
    return {
        "roc_auc": float(sk.roc_auc_score(truth, score)) if both else float("nan"),
        "average_precision": float(sk.average_precision_score(truth, score)) if truth.any() else float("nan"),
        "brier": float(sk.brier_score_loss(truth, score, pos_label=True)),
        "log_loss": float(sk.log_loss(truth, score, labels=[False, True])),
        "accuracy": float((labels == predictions["prediction"]).mean()),  # type: ignore[arg-type]
        "base_rate": float(truth.mean()),
    }


def _multiclass(labels: pl.Series, predictions: pl.DataFrame, classes: tuple[Label, ...]) -> dict[str, float]:
    truth, guess = labels.to_numpy(), predictions["prediction"].to_numpy()
    scores = predictions.drop("prediction").to_numpy()
    known = set(truth.tolist()) <= set(classes)
    return {
        "accuracy": float(sk.accuracy_score(truth, guess)),
        # As balanced_accuracy_score, which warns when a predicted class is not among the labels.
        "balanced_accuracy": float(sk.recall_score(truth, guess, average="macro", labels=np.unique(truth))),
        "f1_macro": float(sk.f1_score(truth, guess, average="macro", labels=list(classes), zero_division=0.0)),
        "log_loss": float(sk.log_loss(truth, scores, labels=list(classes))) if known else float("nan"),
    }


def _regression(labels: pl.Series, predictions: pl.DataFrame) -> dict[str, float]:
    truth = labels.cast(pl.Float64).to_numpy()
    guess = predictions["prediction"].to_numpy()
    return {
        "mae": float(sk.mean_absolute_error(truth, guess)),
        "rmse": float(sk.root_mean_squared_error(truth, guess)),
        "r2": float(sk.r2_score(truth, guess)) if len(truth) > 1 else float("nan"),
        "median_error": float(np.median(np.abs(truth - guess))),
    }
