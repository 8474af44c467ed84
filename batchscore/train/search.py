"""Trying settings of a pipeline on the training rows: folds, the search over `search_space()`, and curves."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from joblib import Parallel, delayed
from sklearn import model_selection as sk
from sklearn.base import clone
from sklearn.exceptions import FitFailedWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - scikit-learn wants it said

from batchscore.cgroup import cores
from batchscore.errors import TrainingError, UsageError, nearest
from batchscore.model.evaluation import Candidate, CrossValidation, Curve, Point, Search
from batchscore.model.predictor import Predictor, in_threads
from batchscore.problem import better
from batchscore.recipe import Folds
from batchscore.recipe import Search as How
from batchscore.train.measure import measured, of_predictions, refitted

__all__ = ["Trial", "asked_curve", "check_names", "cross_validate", "learning_curve", "search", "validation_curve"]

Cuts = Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]

_SHOWN = 50
_MOST_VALUES = 1000
_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Trial:
    """Rows to try pipelines on.

    Attributes:
        predictor: What turns a fitted pipeline into a predictor; its own pipeline is unfitted.
        metric: What settings are compared by.
        features: Shape `(rows, features)`.
        target: Shape `(rows,)`; None for a task without one.
        cuts: Positions to fit on and positions to measure on.
        on_fit: Told of each time that a fit was measured, with its metric.
    """

    predictor: Predictor
    metric: str
    features: pl.DataFrame
    target: pl.Series | None
    cuts: Cuts
    on_fit: Callable[[float], None]

    @property
    def truth(self) -> Any:
        """The target as scikit-learn takes it."""
        return None if self.target is None else self.target.to_numpy()

    def metrics(self, fitted: Any, features: pl.DataFrame, truth: Any = None) -> dict[str, float]:
        """Every metric of a pipeline that was fitted on some of the rows; NaN where those given do not define it."""
        target = None if truth is None else pl.Series(truth)
        given = measured(refitted(self.predictor, fitted), features, target)
        self.on_fit(given[self.metric])
        return given

    def score(self, fitted: Any, features: pl.DataFrame, truth: Any = None) -> float:
        """The metric, negative where a lower one is better, as scikit-learn's searches want it."""
        return self.sign * self.metrics(fitted, features, truth)[self.metric]

    @property
    def sign(self) -> int:
        """What turns the metric into one that is the better the higher it is."""
        return -1 if better(self.metric) == "lower" else 1


def cross_validate(pipeline: Any, how: Folds, trial: Trial) -> CrossValidation:
    """Every metric by fold; of leave-one-out, where a fold is one row, over the predictions of all folds together."""
    with in_threads():
        if how.by == "leave-one-out":
            by_fold = [_together(pipeline, trial)]
        else:
            scoring: Any = trial.metrics
            given = sk.cross_validate(
                pipeline,
                trial.features,
                trial.truth,
                cv=trial.cuts,
                scoring=scoring,
                n_jobs=cores(),
                error_score="raise",
            )
            names = [name.removeprefix("test_") for name in given if name.startswith("test_")]
            by_fold = [{name: float(given[f"test_{name}"][i]) for name in names} for i in range(len(trial.cuts))]
    metrics = {name: tuple(fold[name] for fold in by_fold) for name in by_fold[0]}
    defined = {name: values for name, values in metrics.items() if np.isfinite(values).all()}
    return CrossValidation(by=how.by, folds=len(trial.cuts), metrics=defined)


def _together(pipeline: Any, trial: Trial) -> dict[str, float]:
    def fold(fit: Any, test: Any) -> pl.DataFrame:
        truth = trial.truth
        fitted = clone(pipeline).fit(trial.features[fit], None if truth is None else truth[fit])
        given = refitted(trial.predictor, fitted).predict_from(trial.features[test])
        # A row by itself may have no metric.
        trial.on_fit(math.nan)
        return given

    given = Parallel(n_jobs=cores())(delayed(fold)(fit, test) for fit, test in trial.cuts)
    order = np.concatenate([test for _, test in trial.cuts])
    target = None if trial.target is None else trial.target[order]
    return of_predictions(trial.predictor, trial.features[order], pl.concat(given), target)


def check_names(pipeline: Any, names: Iterable[str], where: str) -> None:
    """Refuse names of parameters that the pipeline does not have.

    Raises:
        UsageError: There is one; the nearest is named. Or it does not tell its parameters.
    """
    if not hasattr(pipeline, "get_params"):
        kind = type(pipeline).__name__
        raise UsageError(f"{where} names a parameter, and pipeline() returns {kind}, which has no get_params().")
    known = list(pipeline.get_params(deep=True))
    for name in names:
        if name not in known:
            guess = f" Did you mean {near}?" if (near := nearest(name, known)) else ""
            raise UsageError(
                f"{where} names {name!r}, which is no parameter of pipeline().{guess} A parameter of a step is written "
                "step__parameter."
            )


def search(pipeline: Any, space: Mapping[str, Any], how: How, trial: Trial) -> tuple[Any, Search]:
    """Try settings of a pipeline.

    Args:
        pipeline: Unfitted.
        space: Values, or a distribution of scipy's, by the name of the parameter.
        how: The job's `[training] search`.
        trial: What to try them on.

    Returns:
        The pipeline with the best of them, unfitted, and what was tried.

    Raises:
        UsageError: The space is empty or names no parameter of the pipeline's.
        TrainingError: No setting could be fitted and measured, or the space cannot be searched in that way.
    """
    if not isinstance(space, Mapping) or not space:
        raise UsageError("search_space() must return {'step__parameter': [values, …], …} with one name or more.")
    check_names(pipeline, space, "search_space()")
    searching = _search(clone(pipeline), space, how, trial)
    try:
        with in_threads(), warnings.catch_warnings():
            _hush()
            searching.fit(trial.features, trial.truth)
    except (ValueError, TypeError) as error:
        cause = _first_failure(_search(clone(pipeline), space, how, trial), trial) or error
        told = f"{type(cause).__name__}: {cause}" if trial.predictor.quote else type(cause).__name__
        raise TrainingError(
            f"search_space() cannot be searched by {how.by}: {told.rstrip('.')}. No setting of it can be fitted."
        ) from cause
    results = searching.cv_results_
    values = trial.sign * np.asarray(results["mean_test_score"], dtype=np.float64)
    # Of halving, the last round that a setting reached counts: it was measured on most rows there.
    rounds = np.asarray(results.get("iter", np.zeros(len(values))))
    last = {repr(results["params"][i]): i for i in np.argsort(rounds, kind="stable")}.values()
    order = sorted(last, key=lambda i: (not np.isfinite(values[i]), -rounds[i], -trial.sign * values[i]))
    if not np.isfinite(values[order[0]]):
        raise TrainingError(
            f"none of the {len(order)} settings of search_space() could be fitted, and measured by {trial.metric}."
        )
    tried = [
        Candidate(
            parameters={name: _plain(value) for name, value in results["params"][i].items()},
            value=float(values[i]) if np.isfinite(values[i]) else None,
        )
        for i in order[:_SHOWN]
    ]
    best = clone(pipeline).set_params(**results["params"][order[0]])
    found = Search(by=how.by, metric=trial.metric, best=tried[0].parameters, candidates=tuple(tried), tried=len(order))
    return best, found


def _first_failure(searching: Any, trial: Trial) -> Exception | None:
    """What the first fit of a search raises in which all fits fail: scikit-learn quotes their tracebacks instead."""
    try:
        with in_threads():
            searching.set_params(error_score="raise").fit(trial.features, trial.truth)
    except Exception as error:  # noqa: BLE001 - whatever an estimator raises
        return error
    return None


def _search(pipeline: Any, space: Mapping[str, Any], how: How, trial: Trial) -> Any:
    common: dict[str, Any] = {"scoring": trial.score, "cv": trial.cuts, "refit": False, "n_jobs": cores()}
    match how.by:
        case "grid":
            return sk.GridSearchCV(pipeline, dict(space), **common)
        case "random":
            return sk.RandomizedSearchCV(pipeline, dict(space), n_iter=how.candidates, random_state=how.seed, **common)
        case "halving":
            # So few rows to begin with that the last round has them all.
            drawn: dict[str, Any] = {"n_candidates": how.candidates, "min_resources": "exhaust"}
            return sk.HalvingRandomSearchCV(pipeline, dict(space), random_state=how.seed, **drawn, **common)


def _hush() -> None:
    """Leave to the results what scikit-learn warns of: fits and scores that fail, and a space smaller than asked."""
    warnings.simplefilter("ignore", FitFailedWarning)
    for told in ("One or more of the", "Scoring failed", "The total space of parameters"):
        warnings.filterwarnings("ignore", told)


def validation_curve(pipeline: Any, name: str, values: Sequence[Any], trial: Trial) -> Curve:
    """The metric over the values of one parameter of the pipeline."""
    with in_threads():
        train, validation = sk.validation_curve(
            pipeline,
            trial.features,
            trial.truth,
            param_name=name,
            param_range=list(values),
            cv=trial.cuts,
            scoring=trial.score,
            n_jobs=cores(),
            error_score="raise",
        )
    at = [value if _is_number(value) else str(value) for value in values]
    return _curve(name, at, train, validation, trial)


def _largest(cuts: Cuts) -> Cuts:
    """The cuts that fit on about all rows: of folds by time, each fits on more than the one before."""
    most = max(len(fit) for fit, _ in cuts)
    return [cut for cut in cuts if len(cut[0]) >= 0.9 * most]


def learning_curve(pipeline: Any, trial: Trial) -> Curve:
    """The metric over a tenth, a quarter, half, three quarters and all of the rows that are fitted on, drawn at random.

    Those are the training rows, or with cross-validation what a fold leaves of them.
    """
    with in_threads(), warnings.catch_warnings():
        # Rows may be too few to fit on, or of one class: that point is left out.
        _hush()
        sizes, train, validation = sk.learning_curve(
            pipeline,
            trial.features,
            trial.truth,
            train_sizes=_SHARES,
            cv=_largest(trial.cuts),
            scoring=trial.score,
            shuffle=True,
            random_state=0,
            n_jobs=cores(),
            error_score=np.nan,
        )
    return _curve("rows", [int(size) for size in sizes], train, validation, trial)


def _curve(over: str, at: Sequence[float | str], train: Any, validation: Any, trial: Trial) -> Curve:
    points = tuple(
        Point(at=each, train=trial.sign * fmean(seen), validation=trial.sign * fmean(unseen))
        for each, seen, unseen in zip(at, train.tolist(), validation.tolist(), strict=True)
        if np.isfinite([*seen, *unseen]).all()
    )
    return Curve(over=over, metric=trial.metric, points=points)


def asked_curve(text: str) -> tuple[str, list[Any]]:
    """The parameter and the values of `step__parameter=values`.

    Values are a range `1:25`, a range with a step `0:1:0.1`, or a list `gini,entropy`; ends are included.

    Raises:
        UsageError: It is none of these.
    """
    name, _, asked = text.partition("=")
    values = _values(asked)
    if not name or not 2 <= len(values) <= _MOST_VALUES:
        raise UsageError(
            f"--curve: {text!r} is no parameter with 2 to {_MOST_VALUES} values. Write model__max_depth=1:25, "
            "model__alpha=0:1:0.1 or model__criterion=gini,entropy."
        )
    return name, values


def _values(text: str) -> list[Any]:
    if ":" not in text:
        given = [each.strip() for each in text.split(",")]
        return [_value(each) for each in given] if all(given) else []
    numbers = [_value(part) for part in text.split(":")]
    if len(numbers) not in (2, 3) or not all(_is_number(number) and math.isfinite(number) for number in numbers):
        return []
    first, last, width = (*numbers, 1)[:3]
    count = (last - first) / width + 1e-9 if width else 0.0
    return [first + i * width for i in range(math.floor(count) + 1)] if 0 < count < _MOST_VALUES else []


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _value(text: str) -> Any:
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
