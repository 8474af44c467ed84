"""Everything that is measured of a fitted model, the test rows once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn import metrics as sk

from batchscore.job import Job
from batchscore.model.bootstrap import defined, intervals, resampled
from batchscore.model.evaluation import (
    Bin,
    Calibration,
    Confusion,
    Cost,
    CrossValidation,
    Curve,
    Evaluation,
    Finding,
    Gap,
    Importance,
    Measured,
    Search,
    Threshold,
)
from batchscore.model.metrics import evaluate as metrics_by_rows
from batchscore.model.predictor import Predictor
from batchscore.problem import better
from batchscore.recipe import Threshold as By
from batchscore.train.fit import Part, predicted
from batchscore.train.made import parameters
from batchscore.train.measure import measured, of_predictions, predictions_of
from batchscore.train.rivals import Rival, measure
from batchscore.train.slices import slices_of

__all__ = ["blocks_of", "evaluate"]

_TRAIN_ROWS = 20_000
_IMPORTANCE_ROWS, _REPEATS = 1_000, 5
_POINTS, _DOTS, _BINS = 200, 500, 10
_LATENCY_ROWS, _LATENCY_TIMES = 10_000, 3
# How much better a model may be on the rows it has seen: of a share, and as a share of an error.
_GAP = 0.05
_GAP_OF_ERROR = 0.1
_TRUNCATED = {"hour": "1h", "day": "1d", "week": "1w", "month": "1mo"}
# Fewer blocks make no distribution.
_FEWEST_BLOCKS = 10
# Fewer rows of an interval make a metric that varies by chance alone.
_INTERVAL_ROWS = 200


def evaluate(
    job: Job,
    predictor: Predictor,
    rivals: Mapping[str, Rival],
    train: Part,
    validation: Part,
    test: Part,
    *,
    findings: Sequence[Finding],
    threshold: Threshold | None,
    cross_validation: CrossValidation | None,
    search: Search | None,
    curves: Sequence[Curve],
) -> tuple[Evaluation, pl.DataFrame]:
    """Measure a fitted predictor.

    Args:
        job: The job; it has `[training]`.
        predictor: Fitted on the training rows, its threshold and calibration chosen on the validation rows.
        rivals: Simpler models, and the version in use, by name.
        train: What it was fitted on.
        validation: What anything was chosen on; may be empty.
        test: What nothing was fitted or chosen on.
        findings: Of the audit.
        threshold: How it was chosen.
        cross_validation: Of the pipeline on the training rows.
        search: What chose its parameters.
        curves: Those asked for.

    Returns:
        The evaluation, and the predictions of the test rows.

    Raises:
        TrainingError: The pipeline fails on rows held out.
    """
    predictions = predicted(predictor, test.rows)
    on_test = of_predictions(predictor, test.features, predictions, test.target)
    blocks, drawn_by = blocks_of(job, test.rows)
    drawn = resampled(predictor, predictions, test.target, blocks)
    tested = intervals(on_test, drawn)
    on_train = defined(_measured(predictor, train.some(_TRAIN_ROWS)))
    on_validation = defined(_measured(predictor, validation)) if len(validation) else {}
    metric = job.problem.metric
    others, lead = measure(rivals, metric, predictor, predictions, test, tested, drawn, blocks)
    costs = _costs(job, predictor, predictions, validation, test)
    slices, sliced = slices_of(job, predictor, predictions, test)
    measurements = Evaluation(
        metric=metric,
        rows={"train": len(train), "validation": len(validation), "test": len(test)},
        test=tested,
        resampled=drawn_by,
        scatter=_scatter(job, predictor, predictions, test, blocks),
        train=on_train,
        validation=on_validation,
        baselines=others,
        ahead=lead,
        gap=None if test.target is None else _gap(job, on_train, on_validation, cross_validation, tested),
        latency_us_per_row=_latency(predictor, test, job.limits.chunk_rows),
        audit=tuple(findings),
        threshold=threshold and threshold.model_copy(update={"costs": costs}),
        importance=tuple(_importance(predictor, metric, validation if len(validation) else test)),
        slices=tuple(slices),
        sliced=tuple(sliced),
        cross_validation=cross_validation,
        search=search,
        curves=tuple(curves),
        parameters=parameters(job, predictor.pipeline),
        **_pictures(job, predictor, predictions, test),
    )
    return measurements, predictions


def _measured(predictor: Predictor, part: Part) -> dict[str, float]:
    return measured(predictor, part.features, part.target)


def blocks_of(job: Job, rows: pl.DataFrame) -> tuple[npt.NDArray[np.int64] | None, str]:
    """What keeps test rows together: a group, or the interval that a time lies in; None where rows stand alone."""
    split = job.training.split if job.training else None
    if split is None or split.column is None:
        return None, "rows"
    named, column = split.column, rows[split.column]
    if split.by == "time":
        if isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone is not None:
            # Without its zone, where some days have no midnight to be cut at.
            column = column.dt.convert_time_zone(job.calendar.zone.key).dt.replace_time_zone(None)
        column = column.cast(pl.Datetime("us")).dt.truncate(_TRUNCATED[job.interval.every])
        named = f"{job.interval.every}s of {split.column}"
    # Rows without a value are a block of their own.
    numbers = np.unique(column.rank("dense").fill_null(0), return_inverse=True)[1].astype(np.int64)
    return (numbers, named) if numbers.max() + 1 >= _FEWEST_BLOCKS else (None, "rows")


def _scatter(
    job: Job, predictor: Predictor, predictions: pl.DataFrame, test: Part, blocks: npt.NDArray[np.int64] | None
) -> dict[str, float]:
    """The deviation of each metric over the intervals of the test rows."""
    if blocks is None or test.target is None or job.training is None or job.training.split.by != "time":
        return {}
    large = [block for block, rows in enumerate(np.bincount(blocks)) if rows >= _INTERVAL_ROWS]
    if len(large) < _FEWEST_BLOCKS:
        return {}
    by_block = [
        metrics_by_rows(predictor.task, test.target.filter(of_block), predictions.filter(of_block), predictor.classes)
        for of_block in (pl.Series(blocks == block) for block in large)
    ]
    found = {name: [each[name] for each in by_block if np.isfinite(each[name])] for name in by_block[0]}
    return {name: pstdev(values) for name, values in found.items() if len(values) >= _FEWEST_BLOCKS}


def _costs(job: Job, predictor: Predictor, predictions: pl.DataFrame, validation: Part, test: Part) -> dict[str, Cost]:
    how = job.training.threshold if job.training else None
    if how is None or how.by != "cost":
        return {}
    on_validation = predictions_of(predictor, validation.features)
    return {
        "test": _cost(how, predictor, predictions, test),
        "validation": _cost(how, predictor, on_validation, validation),
    }


def _cost(how: By, predictor: Predictor, predictions: pl.DataFrame, part: Part) -> Cost:
    yes = predictor.classes[1]
    truth, called = (part.target == yes).to_numpy(), (predictions["prediction"] == yes).to_numpy()  # type: ignore[union-attr]
    alarms, misses = int((called & ~truth).sum()), int((truth & ~called).sum())
    return Cost(
        rows=len(part),
        model=how.false_positive * alarms + how.false_negative * misses,
        none=how.false_negative * int(truth.sum()),
        every=how.false_positive * int((~truth).sum()),
    )


def _gap(
    job: Job,
    train: Mapping[str, float],
    validation: Mapping[str, float],
    folds: CrossValidation | None,
    test: Mapping[str, Measured],
) -> Gap | None:
    """Training rows against validation rows, or folds, or test rows: the first of them that nothing was chosen on."""
    metric, recipe = job.problem.metric, job.training
    tested = test.get(metric)
    if metric not in train or tested is None or recipe is None:
        return None
    searched_on = None if recipe.search is None else "validation" if folds is None else "folds"
    chosen_on_validation = recipe.threshold or recipe.calibrate or searched_on == "validation"
    if metric in validation and not chosen_on_validation:
        on, held_out = "validation", validation[metric]
    elif folds is not None and metric in folds.metrics and searched_on != "folds":
        on, held_out = "cross-validation", fmean(folds.metrics[metric])
    else:
        on, held_out = "test", tested.value
    lost = held_out - train[metric] if better(metric) == "lower" else train[metric] - held_out
    chance = (tested.high - tested.low) / 2 if tested.high is not None and tested.low is not None else 0.0
    allowed = _GAP_OF_ERROR * abs(held_out) if better(metric) == "lower" else _GAP
    verdict = "overfits" if lost > max(chance, allowed) else "fits"
    return Gap.model_validate(
        {"metric": metric, "train": train[metric], "held_out": held_out, "on": on, "verdict": verdict}
    )


def _latency(predictor: Predictor, test: Part, chunk_rows: int) -> float:
    """Microseconds a row, the best of three times over a chunk of test rows, which are repeated to fill it."""
    wanted = min(chunk_rows, _LATENCY_ROWS)
    rows = pl.concat([test.rows] * -(-wanted // len(test)), rechunk=True).head(wanted)

    def seconds() -> float:
        begun = time.perf_counter()
        predictor.predict(rows)
        return time.perf_counter() - begun

    return min(seconds() for _ in range(_LATENCY_TIMES)) / rows.height * 1e6


def _importance(predictor: Predictor, metric: str, part: Part) -> Iterator[Importance]:
    """Permutation importance (Breiman, "Random Forests", Machine Learning 45, 2001), the largest first.

    On rows that the pipeline was not fitted on, for it knows its own rows by columns that say nothing of others.
    """
    some = part.some(_IMPORTANCE_ROWS)
    whole = _measured(predictor, some).get(metric, np.nan)
    if some.target is None or not np.isfinite(whole):
        return
    rng = np.random.default_rng(0)
    sign = -1 if better(metric) == "lower" else 1
    found = []
    # All repeats of a column in one call: starting one costs as much as some thousand rows.
    repeated = pl.concat([some.features] * _REPEATS, rechunk=True)
    for name in some.features.columns:
        orders = np.concatenate([rng.permutation(len(some)) for _ in range(_REPEATS)])
        predictions = predictions_of(predictor, repeated.with_columns(some.features[name].gather(orders)))
        lost = [
            sign * (whole - of_predictions(predictor, some.features, part, some.target)[metric])
            for part in predictions.iter_slices(len(some))
        ]
        found.append(Importance(column=name, mean=fmean(lost), deviation=pstdev(lost)))
    yield from sorted(found, key=lambda each: -each.mean)


def _pictures(job: Job, predictor: Predictor, predictions: pl.DataFrame, test: Part) -> dict[str, Any]:
    """What a task has to look at beside its metrics."""
    target = test.target
    if predictor.task == "clustering":
        counted = predictions["prediction"].value_counts().sort("prediction")
        return {"sizes": {str(cluster): count for cluster, count in counted.iter_rows()}}
    if target is None:
        return {}
    if predictor.task == "regression":
        dots = pl.DataFrame([predictions["prediction"], target.cast(pl.Float64).alias("target")])
        return {"residuals": tuple(dots.gather_every(-(-dots.height // _DOTS)).iter_rows())}
    pictures: dict[str, Any] = {"confusion": _confusion(predictor, predictions["prediction"], target)}
    if predictor.task == "binary":
        truth, score = (target == predictor.classes[1]).to_numpy(), predictions["score"].to_numpy()
        method = job.training.calibrate if job.training else None
        pictures["calibration"] = Calibration(method=method, bins=tuple(_bins(truth, score)))
        if truth.any() and not truth.all():
            false_alarms, recall, _ = sk.roc_curve(truth, score)
            precision, found, _ = sk.precision_recall_curve(truth, score)
            pictures["roc"] = _thinned(false_alarms, recall)
            pictures["precision_recall"] = _thinned(found[::-1], precision[::-1])
    return pictures


def _confusion(predictor: Predictor, prediction: pl.Series, target: pl.Series) -> Confusion:
    # A class that training never saw can be no prediction, and is told all the same.
    classes = (*predictor.classes, *sorted(set(target.unique().to_list()) - set(predictor.classes)))
    counts = [[int(((target == true) & (prediction == told)).sum()) for told in classes] for true in classes]
    return Confusion(classes=classes, counts=tuple(map(tuple, counts)))


def _bins(truth: npt.NDArray[np.bool_], score: npt.NDArray[np.float64]) -> Iterator[Bin]:
    for rows in np.array_split(np.argsort(score, kind="stable"), min(_BINS, len(score))):
        yield Bin(score=float(score[rows].mean()), observed=float(truth[rows].mean()), rows=len(rows))


def _thinned(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS)).round().astype(int))
    return tuple(zip(x[kept].tolist(), y[kept].tolist(), strict=True))
