"""How far metrics would move on other rows of the same kind, and how far two models are apart: the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

from batchscore.model.evaluation import Measured
from batchscore.model.metrics import metrics_of
from batchscore.model.predictor import Predictor
from batchscore.problem import better

__all__ = ["Drawn", "ahead", "defined", "intervals", "resampled"]

Drawn = Mapping[str, npt.NDArray[np.float64]]

RESAMPLES = 200
# Values of fewer resamples have no 95 % to speak of.
_FEWEST = 100


def defined(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those that are a number."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def resampled(
    predictor: Predictor, predictions: pl.DataFrame, target: pl.Series | None, blocks: npt.NDArray[np.int64] | None
) -> Drawn:
    """Each metric over 200 samples of the rows, drawn with replacement; the same ones at every call for the same rows.

    With blocks, whole blocks are drawn, because rows of a block are not independent. A silhouette is not among them.

    Args:
        predictor: What gave the predictions.
        predictions: `prediction` and the scores, shape `(rows, 1 + scores)`.
        target: Shape `(rows,)`; None for a task without one.
        blocks: The block of each row, from 0, shape `(rows,)`.

    Returns:
        Values by name, shape `(200,)`, NaN where a sample does not define the metric.
    """
    rng = np.random.default_rng(0)
    again = metrics_of(predictor.task, target, predictions, predictor.classes)
    samples = [again(_counts(rng, predictions.height, blocks)) for _ in range(RESAMPLES)]
    return {name: np.array([each[name] for each in samples]) for name in samples[0]}


def intervals(metrics: Mapping[str, float], drawn: Drawn) -> dict[str, Measured]:
    """Each metric that is defined, with its 95 % interval by the bootstrap, the percentile one.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.

    Args:
        metrics: On the rows as they are.
        drawn: See `resampled`.
    """
    return {name: _measured(value, drawn.get(name, np.empty(0))) for name, value in defined(metrics).items()}


def ahead(
    metric: str, one: Mapping[str, Measured], drawn: Drawn, other: Mapping[str, float], theirs: Drawn
) -> Measured:
    """By how much one model is better than another on the same rows, above 0 for better whatever the metric.

    Both are measured on the very same samples, so that what is hard for both is not taken for a difference.

    Args:
        metric: One that both define.
        one: The one model's metrics.
        drawn: The same, resampled.
        other: The other's.
        theirs: The same, resampled from the same rows.
    """
    sign = -1 if better(metric) == "lower" else 1
    value = _difference(np.array([one[metric].value]), np.array([other[metric]]))
    # A silhouette is not resampled.
    nothing = np.empty(0)
    differences = _difference(drawn.get(metric, nothing), theirs.get(metric, nothing))
    # Adding 0.0 turns -0.0 into 0.0.
    return _measured(sign * float(value[0]) + 0.0, sign * differences + 0.0)


def _difference(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """One less the other; nothing where they differ only by how their sums were rounded."""
    return np.where(np.isclose(one, other, rtol=1e-12, atol=0.0), 0.0, one - other)


def _counts(rng: np.random.Generator, rows: int, blocks: npt.NDArray[np.int64] | None) -> npt.NDArray[np.float64]:
    """How often each row is drawn, when as many rows, or blocks, are drawn as there are."""
    units = rows if blocks is None else int(blocks.max()) + 1
    times = np.bincount(rng.integers(units, size=units), minlength=units).astype(np.float64)
    return times if blocks is None else times[blocks]


def _measured(value: float, drawn: npt.NDArray[np.float64]) -> Measured:
    there = drawn[np.isfinite(drawn)]
    if len(there) < _FEWEST:
        return Measured(value=value)
    low, high = np.quantile(there, [0.025, 0.975]).tolist()
    return Measured(value=value, low=low, high=high)
