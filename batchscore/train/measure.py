"""Metrics of a fitted predictor on rows, and how far they would move on other rows of the same kind."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

from batchscore.errors import TrainingError
from batchscore.model.evaluation import Measured
from batchscore.model.metrics import evaluate, metrics_of, silhouette
from batchscore.model.predictor import Predictor, StageError
from batchscore.problem import METRICS

__all__ = ["defined", "intervals", "measured", "of_predictions", "predictions_of"]

RESAMPLES = 200
_SILHOUETTE_ROWS = 5_000
# Values of fewer resamples have no 95 % to speak of.
_FEWEST = 100


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


def defined(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those that are a number."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def intervals(
    predictor: Predictor,
    metrics: Mapping[str, float],
    predictions: pl.DataFrame,
    target: pl.Series | None,
    blocks: npt.NDArray[np.int64] | None,
) -> dict[str, Measured]:
    """Each metric that is defined, with its 95 % interval by the bootstrap, the percentile one.

    Rows are drawn anew 200 times; with blocks, whole blocks are, because rows of a block are not independent. A
    silhouette gets no interval.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 8.6 and 13.

    Args:
        predictor: What gave the predictions.
        metrics: Their metrics.
        predictions: `prediction` and the scores, shape `(rows, 1 + scores)`.
        target: Shape `(rows,)`; None for a task without one.
        blocks: The block of each row, from 0, shape `(rows,)`.
    """
    rng = np.random.default_rng(0)
    again = metrics_of(predictor.task, target, predictions, predictor.classes)
    resampled = [again(_counts(rng, predictions.height, blocks)) for _ in range(RESAMPLES)]
    drawn = {name: [each[name] for each in resampled if math.isfinite(each.get(name, math.nan))] for name in metrics}
    return {name: _measured(value, drawn[name]) for name, value in defined(metrics).items()}


def _counts(rng: np.random.Generator, rows: int, blocks: npt.NDArray[np.int64] | None) -> npt.NDArray[np.float64]:
    """How often each row is drawn, when as many rows, or blocks, are drawn as there are."""
    units = rows if blocks is None else int(blocks.max()) + 1
    times = np.bincount(rng.integers(units, size=units), minlength=units).astype(np.float64)
    return times if blocks is None else times[blocks]


def _measured(value: float, drawn: list[float]) -> Measured:
    if len(drawn) < _FEWEST:
        return Measured(value=value)
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    return Measured(value=value, low=low, high=high)
