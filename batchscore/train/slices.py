"""Metrics of test rows by the values of a column."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from batchscore.job import Job
from batchscore.model.bootstrap import defined
from batchscore.model.evaluation import Slice, Sliced
from batchscore.model.predictor import Predictor
from batchscore.problem import better
from batchscore.train.fit import Part
from batchscore.train.measure import of_predictions

__all__ = ["slices_of"]

# Fewer rows make no metric, and of more values than these nobody waits for all.
_ROWS, _MOST_MEASURED = 30, 500
_MOST_KEPT = 20


def slices_of(
    job: Job, predictor: Predictor, predictions: pl.DataFrame, test: Part
) -> tuple[list[Slice], list[Sliced]]:
    """The metrics of the worst values of each column in `[training] slices`, and what they were chosen from.

    Args:
        job: The job; its metric says which values are the worst, and where it is good neither way the most frequent
            are kept instead.
        predictor: The model.
        predictions: What it gives for all test rows.
        test: The test rows; NULL is a value of its own.
    """
    kept: list[Slice] = []
    chosen: list[Sliced] = []
    for column in job.training.slices if job.training else ():
        values = test.rows[column].cast(pl.String).fill_null("NULL")
        counted = values.alias("value").value_counts().sort(["count", "value"], descending=[True, False])
        measured = [
            _slice(column, value, count, predictor, predictions, test, values)
            for value, count in counted.filter(pl.col("count") >= _ROWS).head(_MOST_MEASURED).iter_rows()
        ]
        worst = sorted(measured, key=_badness(job.problem.metric))[:_MOST_KEPT]
        kept += worst
        chosen.append(Sliced(column=column, values=len(counted), rows=_ROWS, measured=len(measured), kept=len(worst)))
    return kept, chosen


def _slice(
    column: str, value: str, count: int, predictor: Predictor, predictions: pl.DataFrame, test: Part, values: pl.Series
) -> Slice:
    there = values == value
    target = None if test.target is None else test.target.filter(there)
    metrics = of_predictions(predictor, test.features.filter(there), predictions.filter(there), target)
    return Slice(column=column, value=value, rows=count, metrics=defined(metrics))


def _badness(metric: str) -> Callable[[Slice], tuple[bool, float]]:
    """What puts the worst first; those that do not define the metric come last."""
    sign = {"lower": -1.0, "higher": 1.0, None: 0.0}[better(metric)]

    def badness(one: Slice) -> tuple[bool, float]:
        value = one.metrics.get(metric)
        return (value is None, sign * (value or 0.0))

    return badness
