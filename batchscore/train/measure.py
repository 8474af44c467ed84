"""Metrics of a fitted predictor on rows."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from batchscore.errors import TrainingError
from batchscore.model.metrics import evaluate, silhouette
from batchscore.model.predictor import Predictor, StageError
from batchscore.problem import METRICS

__all__ = ["measured", "of_predictions", "predictions_of"]

_SILHOUETTE_ROWS = 5_000


def measured(predictor: Predictor, features: pl.DataFrame, target: pl.Series | None) -> dict[str, float]:
    """Every metric of the task, NaN where the rows do not define it, or the pipeline does not know every class.

    Args:
        predictor: With a fitted pipeline.
        features: Shape `(rows, features)`.
        target: Shape `(rows,)`; None for a task without one.

    Raises:
        TrainingError: The pipeline fails.
    """
    if predictor.classes and tuple(np.asarray(predictor.pipeline.classes_).tolist()) != predictor.classes:
        return dict.fromkeys(METRICS[predictor.task], math.nan)
    return of_predictions(predictor, features, predictions_of(predictor, features), target)


def predictions_of(predictor: Predictor, features: pl.DataFrame) -> pl.DataFrame:
    """What the predictor gives for rows that are features already.

    Raises:
        TrainingError: The pipeline fails.
    """
    try:
        return predictor.predict_from(features)
    except StageError as error:
        raise TrainingError(f"the {error.stage} fails on rows that it is measured on: {error}.") from error


def of_predictions(
    predictor: Predictor, features: pl.DataFrame, predictions: pl.DataFrame, target: pl.Series | None
) -> dict[str, float]:
    """The same of predictions that are there already."""
    given = evaluate(predictor.task, target, predictions, predictor.classes)
    if predictor.task == "clustering":
        given["silhouette"] = _silhouette(predictor, features, predictions["prediction"])
    return given


def _silhouette(predictor: Predictor, features: pl.DataFrame, clusters: pl.Series) -> float:
    every = max(1, math.ceil(features.height / _SILHOUETTE_ROWS))
    sample = features.gather_every(every)
    before = predictor.pipeline[:-1] if hasattr(predictor.pipeline, "steps") else None
    inputs = before.transform(sample) if before is not None and len(before) else sample.to_numpy()
    dense = inputs.toarray() if hasattr(inputs, "toarray") else inputs
    return silhouette(np.asarray(dense, dtype=np.float64), clusters.gather_every(every))
