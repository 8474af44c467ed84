"""Fitting: a pipeline, its calibration, its threshold; what the user's code raises is told as training's error."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import polars as pl
import polars.selectors as cs
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import precision_recall_curve
from sklearn.pipeline import Pipeline

from batchscore.errors import BatchscoreError, TrainingError
from batchscore.job import Job
from batchscore.model import evaluation
from batchscore.model.features import Features
from batchscore.model.predictor import Predictor, StageError, in_threads
from batchscore.problem import REASON
from batchscore.recipe import Threshold
from batchscore.schema import TypeName, type_name
from batchscore.train.baseline import baselines

__all__ = [
    "Part",
    "baselines_of",
    "calibrated",
    "fitted",
    "guarded",
    "part_of",
    "pipeline_of",
    "predicted",
    "raw_times",
    "threshold",
    "unfitted",
]

_BASELINE_ROWS = 50_000
_NOT_QUOTED = "What it says is left out, for it may hold a value of a column under [source] private."
# What estimators say of values that are no numbers; for nothing else is a column of text to blame.
_OF_TYPES = re.compile(r"could not convert|dtype|datatype|datetime|timestamp|'str'", re.IGNORECASE)
# scikit-learn's calibration cuts its rows in five, though what it calibrates is fitted already.
_FEWEST_TO_CALIBRATE = 5


@dataclass(frozen=True)
class Part:
    """Training, validation or test rows, ready to learn from or to measure on.

    Attributes:
        rows: As the schema has them, shape `(rows, columns)`.
        features: Shape `(rows, features)`.
        target: Shape `(rows,)`, no NULL; None for a task without one.
    """

    rows: pl.DataFrame
    features: pl.DataFrame
    target: pl.Series | None

    def __len__(self) -> int:
        return self.rows.height

    def some(self, most: int) -> Part:
        """An even sample of so many rows at most."""
        every = max(1, -(-len(self) // most))
        target = None if self.target is None else self.target.gather_every(every)
        return Part(self.rows.gather_every(every), self.features.gather_every(every), target)


def part_of(job: Job, features: Features, rows: pl.DataFrame, target: pl.Series | None) -> Part:
    """The rows with their features."""
    return Part(rows, guarded("features()", features.transform, rows, quote=job.source.quotable), target)


def guarded(what: str, call: Callable[..., Any], *args: Any, quote: bool) -> Any:
    """Call the user's code; its failure is an error of training's, with the cause kept.

    Args:
        what: What is called, for the message.
        call: The code.
        args: What it is called with.
        quote: Whether its failure is told in its own words, which may hold values; by its class alone otherwise.

    Raises:
        TrainingError: It failed.
        BatchscoreError: It was told already what is wrong.
    """
    try:
        return call(*args)
    except (BatchscoreError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        told = f"{type(error).__name__}: {error}." if quote else f"{type(error).__name__}. {_NOT_QUOTED}"
        raise TrainingError(f"{what} fails on the training rows: {told}") from error


def pipeline_of(features: Features) -> Any:
    """What `pipeline()` gives, unfitted.

    Raises:
        TrainingError: It fails, or gives what is no estimator.
    """
    # It has seen no row.
    pipeline = guarded("pipeline()", features.pipeline, quote=True)
    if not hasattr(pipeline, "fit") or isinstance(pipeline, type):
        told = "None" if pipeline is None else f"{pipeline!r:.80}"
        raise TrainingError(
            f"pipeline() returned {told}, which is no estimator to fit. End it with: return make_pipeline(…)."
        )
    return pipeline


def unfitted(job: Job, features: Features, target: pl.Series | None) -> Predictor:
    """The job's predictor with its pipeline not fitted yet.

    Args:
        job: The job.
        features: Its features module.
        target: The training rows' target; None for a task without one.

    Raises:
        TrainingError: The target's classes are not what the task wants, or see `pipeline_of`.
    """
    pipeline, quote = pipeline_of(features), job.source.quotable
    types: dict[str, TypeName]
    if target is None:
        types = {"prediction": "integer"} if job.problem.task == "clustering" else _ODD
        return Predictor(features, pipeline, job.problem.task, (), types, quote=quote)
    if job.problem.task == "regression":
        return Predictor(features, pipeline, "regression", (), {"prediction": "float"}, quote=quote)
    classes = tuple(np.unique(target.to_numpy()).tolist())
    if len(classes) < 2:
        raise TrainingError(
            f"the rows to fit on have one class of {target.name} only: {classes[0]!r}. Widen the training window."
        )
    if job.problem.task == "binary" and len(classes) != 2:
        raise TrainingError(f"the task is binary, but the target has classes {classes}. Say task = 'multiclass'.")
    names = ["score"] if job.problem.task == "binary" else [f"score_{_plain(label)}" for label in classes]
    if len(set(names)) < len(names):
        raise TrainingError(f"two classes would share a score column: {', '.join(sorted(names))}. Rename a class.")
    types = {"prediction": _type_of(target)} | dict.fromkeys(names, "float")
    return Predictor(features, pipeline, job.problem.task, classes, types, quote=quote)


_ODD: dict[str, TypeName] = {"prediction": "boolean", "score": "float"}


def _type_of(target: pl.Series) -> TypeName:
    name = type_name(target.dtype)
    if name is None:
        raise TrainingError(f"the target {target.name!r} is {target.dtype}, which no column has. Cast it.")
    return name


def _plain(label: object) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "_" for c in str(label).lower())


def fitted(predictor: Predictor, train: Part) -> Predictor:
    """The predictor with its pipeline fitted on training rows, and on nothing else.

    Raises:
        TrainingError: The pipeline fails, or cannot give what the task wants.
    """
    truth = None if train.target is None else train.target.to_numpy()

    def fit() -> Any:
        with in_threads():
            return predictor.pipeline.fit(train.features, truth)

    try:
        pipeline = guarded("pipeline().fit", fit, quote=predictor.quote)
    except TrainingError as error:
        if _OF_TYPES.search(str(error.__cause__)) and (
            hint := _hint(train.features, str(error.__cause__), quote=predictor.quote)
        ):
            raise TrainingError(f"{error} {hint}") from error.__cause__
        raise
    wanted = {"clustering": "predict", "anomaly": "decision_function", "regression": "predict"}
    method = wanted.get(predictor.task, "predict_proba")
    if not hasattr(pipeline, method):
        raise TrainingError(
            f"pipeline() gives no probabilities. {_CALIBRATE}"
            if method == "predict_proba"
            else (f"the last step of pipeline() has no {method}(), which a {predictor.task} task needs.")
        )
    if predictor.classes and tuple(np.asarray(getattr(pipeline, "classes_", ())).tolist()) != predictor.classes:
        raise TrainingError(
            "the last step of pipeline() does not keep the classes that it was fitted on, sorted, in classes_: "
            "what its probabilities are of cannot be told."
        )
    return replace(predictor, pipeline=pipeline)


_CALIBRATE = "Wrap its last step in CalibratedClassifierCV."


def _hint(features: pl.DataFrame, failure: str, *, quote: bool) -> str:
    """What columns that most estimators refuse there are, in words; of text only those with a value that it names."""
    told = [raw] if (raw := raw_times(features)) else []
    if words := features.select(cs.string()).columns:
        named = re.findall(r"'([^']*)'", failure)
        words = [name for name in words if features[name].is_in(named).any()] or words
        value = next((each for each in named if each in features[words[0]]), features[words[0]].drop_nulls().first())
        # A feature may hold a column's values under another name.
        instance = f", for instance {value!r}" if quote else ""
        told.append(
            f"{', '.join(words)} is text{instance}: encode it in the pipeline, or cast it in features() where it "
            "should be a number"
        )
    return f"Of the features, {'; '.join(told)}." if told else ""


def refuse_fatal(predictor: Predictor, features: pl.DataFrame) -> None:
    """Refuse columns on which the library that would get them ends the process, where nothing can be caught.

    LightGBM does so with whatever is no number in a table that it reads as Arrow.

    Raises:
        TrainingError: There are such columns, and nothing before LightGBM encodes them.
    """
    first = predictor.pipeline
    while isinstance(first, Pipeline):
        first = next(step for _, step in first.steps if step not in ("passthrough", None))
    if not type(first).__module__.startswith("lightgbm"):
        return
    if refused := features.select(~(cs.numeric() | cs.boolean())).columns:
        listed = ", ".join(f"{name} ({type_name(features.schema[name]) or features.schema[name]})" for name in refused)
        raise TrainingError(
            f"LightGBM takes numbers alone, and of the features it would get {listed}. Encode text in a step before "
            "it, and make numbers of dates in features()."
        )


def raw_times(features: pl.DataFrame) -> str:
    """Which features are dates or times as they are, in words; empty where none is.

    Many estimators take them for numbers without a word, and a number that no later row has again tells them nothing.
    """
    times = features.select(cs.temporal()).columns
    return f"{', '.join(times)} is a date or time: take its weekday, month or hour in features()" if times else ""


def predicted(predictor: Predictor, rows: pl.DataFrame) -> pl.DataFrame:
    """What the predictor gives for rows that it was not fitted on.

    Raises:
        TrainingError: It fails, or gives what is no number.
    """
    try:
        predictions = predictor.predict(rows)
    except StageError as error:
        raise TrainingError(f"the {error.stage} fails on the rows held out: {error}.") from error
    for series in predictions.select(cs.float() - cs.starts_with(REASON)):
        if odd := series.len() - int(series.is_finite().sum()):
            raise TrainingError(f"the pipeline gives no finite {series.name} for {odd} of {rows.height} rows held out.")
    return predictions


def calibrated(predictor: Predictor, method: Literal["isotonic", "sigmoid"], validation: Part) -> Predictor:
    """The predictor with its scores mapped onto the frequencies of the validation rows; the pipeline stays as it is.

    Raises:
        TrainingError: The validation rows have fewer than five of a class, or one that the training rows lack.
    """
    target = pl.Series() if validation.target is None else validation.target.alias("class")
    counted = dict(target.value_counts().iter_rows())
    fewest, rarest = min((counted.get(label, 0), str(label)) for label in predictor.classes)
    if fewest < _FEWEST_TO_CALIBRATE:
        raise TrainingError(
            f"the validation rows have {fewest} of the class {rarest}, and {_FEWEST_TO_CALIBRATE} are wanted to "
            "calibrate on. Widen the training window, or [training] split validation."
        )
    if unknown := sorted(set(counted) - set(predictor.classes)):
        raise TrainingError(
            f"the validation rows have classes that the training rows lack: {', '.join(map(repr, unknown))}. Widen the "
            "training window, or leave calibrate out."
        )
    wrapped = CalibratedClassifierCV(FrozenEstimator(predictor.pipeline), method=method)
    with in_threads():
        guarded("the calibration", wrapped.fit, validation.features, target.to_numpy(), quote=predictor.quote)
    return replace(predictor, pipeline=wrapped)


def threshold(predictor: Predictor, how: Threshold, validation: Part) -> evaluation.Threshold:
    """The score from which on the second class is predicted, chosen on validation rows.

    Of several that are equally good it is the lowest. It lies in the middle between two scores.

    Raises:
        TrainingError: The validation rows have one class only.
    """
    predictions = predicted(predictor, validation.rows)
    score = predictions["score"].to_numpy()
    truth = (validation.target == predictor.classes[1]).to_numpy()  # type: ignore[union-attr]
    if truth.all() or not truth.any():
        raise TrainingError(
            "the validation rows have one class only, and no threshold can be chosen. Widen the window."
        )
    match how.by:
        case "rate":
            value = _nearest(score, how.rate or 0.0)
        case "f_score":
            precision, recall, at = precision_recall_curve(truth, score)
            weight = how.beta**2
            below = weight * precision + recall
            gain = np.divide((1 + weight) * precision * recall, below, out=np.zeros_like(below), where=below > 0)
            value = float(at[gain[:-1].argmax()])
        case "cost":
            value = _cheapest(score, truth, how)
    at = _between(score, value)
    return evaluation.Threshold(value=at, by=str(how), rows=len(validation), share=float((score >= at).mean()))


def _between(score: Any, value: float) -> float:
    """A threshold that divides the scores as `value` does, and lies on none of them where there is room.

    What rounding makes of a score, which is another on another machine, must not decide on a class.
    """
    lower = score[score < value]
    middle = (float(lower.max()) + value) / 2 if len(lower) else value
    return middle if not len(lower) or lower.max() < middle else value


def _nearest(score: Any, rate: float) -> float:
    """The score that the share of rows reaches which is nearest to the rate: rows of equal score go together."""
    scores, counts = np.unique(score, return_counts=True)
    shares = counts[::-1].cumsum()[::-1] / len(score)
    return float(scores[np.abs(shares - rate).argmin()])


def _cheapest(score: Any, truth: Any, how: Threshold) -> float:
    order = np.argsort(score, kind="stable")
    score, truth = score[order], truth[order]
    # With the threshold at row i, the rows before it are predicted to be of the first class, and the others are not.
    missed = np.concatenate([[0], np.cumsum(truth)])
    alarms = np.concatenate([np.cumsum((~truth)[::-1])[::-1], [0]])
    cost = how.false_negative * missed + how.false_positive * alarms
    first = np.concatenate([[True], score[1:] > score[:-1], [True]])
    best = int(np.flatnonzero(first)[cost[first].argmin()])
    # Above every score, where it costs least to predict the second class of none.
    return float(score[best]) if best < len(score) else float(np.nextafter(score[-1], np.inf))


def baselines_of(predictor: Predictor, train: Part) -> dict[str, Predictor]:
    """Simpler models fitted on the same rows, 50,000 of them at most; none for a task without labels.

    One that cannot be fitted on these features is left out: it is there to be compared with, and stops nothing.
    """
    some = train.some(_BASELINE_ROWS)
    if some.target is None:
        return {}
    found = {}
    with warnings.catch_warnings(), in_threads():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for name, model in baselines(some.features, regression=predictor.task == "regression").items():
            with contextlib.suppress(ValueError):
                found[name] = replace(predictor, pipeline=model.fit(some.features, some.target.to_numpy()))
    return found
