"""Metrics of a fitted predictor on rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from batchscore.errors import TrainingError
from batchscore.model.metrics import evaluate, silhouette
from batchscore.model.predictor import Label, Predictor, StageError

__all__ = ["measured", "of_predictions", "predictions_of", "refitted"]

_SILHOUETTE_ROWS = 5_000


def refitted(predictor: Predictor, pipeline: Any) -> Predictor:
    """The predictor with a pipeline that was fitted on other rows; a class that those lack has the probability 0."""
    if predictor.classes and tuple(np.asarray(pipeline.classes_).tolist()) != predictor.classes:
        pipeline = _Widened(pipeline, predictor.classes)
    return replace(predictor, pipeline=pipeline, fast=None, compiled=False)


@dataclass(frozen=True, slots=True)
class _Widened:
    pipeline: Any
    classes: tuple[Label, ...]

    def predict_proba(self, features: pl.DataFrame) -> npt.NDArray[np.float64]:
        probabilities = np.zeros((features.height, len(self.classes)))
        places = [self.classes.index(label) for label in np.asarray(self.pipeline.classes_).tolist()]
        probabilities[:, places] = self.pipeline.predict_proba(features)
        return probabilities


def measured(predictor: Predictor, features: pl.DataFrame, target: pl.Series | None) -> dict[str, float]:
    """Every metric of the task, NaN where the rows do not define it.

    Args:
        predictor: With a fitted pipeline.
        features: Shape `(rows, features)`.
        target: Shape `(rows,)`; None for a task without one.

    Raises:
        TrainingError: The pipeline fails.
    """
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
