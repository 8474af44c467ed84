"""What is tried on training rows before the model is fitted: the search, cross-validation, curves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from sklearn.base import clone
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import Pipeline

from batchscore.errors import TrainingError, UsageError
from batchscore.job import Job
from batchscore.model.evaluation import CrossValidation, Curve, Search
from batchscore.model.features import Features
from batchscore.model.predictor import Predictor
from batchscore.recipe import Search as How
from batchscore.recipe import Training
from batchscore.train.fit import Part, fitted, guarded
from batchscore.train.measure import measured, refitted
from batchscore.train.search import (
    Cuts,
    Trial,
    asked_curve,
    check_names,
    cross_validate,
    learning_curve,
    search,
    validation_curve,
)
from batchscore.train.split import folds

__all__ = ["Asked", "Explored", "explore", "model_is_searched"]

# How long nothing is told of fits.
_QUIET_SECONDS = 5.0

Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """Which curves a training is asked for; each costs many fits.

    Attributes:
        curve: `step__parameter=1:25`: the metric over the values of one parameter.
        learning_curve: The metric over the number of training rows.
    """

    curve: str | None = None
    learning_curve: bool = False

    @property
    def any(self) -> bool:
        """Whether one is wanted."""
        return self.curve is not None or self.learning_curve

    def check(self, job: Job, pipeline: Any) -> None:
        """Refuse what cannot be drawn, before a row is read.

        Args:
            job: The job.
            pipeline: Its pipeline, unfitted.

        Raises:
            UsageError: The curve is not written as it must be, names no parameter of the pipeline's, or there are no
                rows to measure it on that define the metric.
        """
        if self.curve is not None:
            check_names(pipeline, [asked_curve(self.curve)[0]], "--curve")
        recipe = job.training
        held_out = recipe is not None and (recipe.cross_validation is not None or recipe.split.validation > 0)
        if self.any and not held_out:
            raise UsageError(
                "a curve is measured on rows that nothing is fitted on, and the test rows are none of its business: "
                "give [training] split a share of validation, or cross_validation."
            )
        if self.any and (single := job.single_rows()):
            raise UsageError(f"a curve goes by {single}, or let [problem] success go by another metric.")


@dataclass(frozen=True, slots=True)
class Explored:
    """The predictor to fit, and what was found out on the way to it."""

    predictor: Predictor
    search: Search | None
    cross_validation: CrossValidation | None
    curves: tuple[Curve, ...]


def explore(
    job: Job, predictor: Predictor, rows: pl.DataFrame, train: Part, validation: Part, asked: Asked, on_step: Step
) -> Explored:
    """Search, cross-validate and draw curves: on folds of the training rows, or on validation rows without folds.

    Args:
        job: The job; it has `[training]`.
        predictor: Its pipeline is unfitted.
        rows: The training rows with their target, for the columns that folds go by.
        train: The same, as the pipeline takes them.
        validation: The validation rows; may be empty.
        asked: Which curves are wanted.
        on_step: Told in words what is being done.

    Raises:
        UsageError: The search space or the curve names no parameter of the pipeline's.
        TrainingError: A fit fails, or the rows cannot be cut into folds.
    """
    recipe = job.training
    if recipe is None or not (recipe.search or recipe.cross_validation or asked.any):
        return Explored(predictor, None, None, ())
    trial = _trial(job, recipe, predictor, rows, train, validation)
    if lacking := _lacking(trial):
        on_step(lacking)
    if recipe.search or asked.any:
        _refuse_undefined(trial)
    tried = _guard(lacking, quote=predictor.quote)

    found = None
    if recipe.search is not None:
        space = _search_space(predictor.features)
        settings = _settings(recipe.search, space)
        total = settings and settings * len(trial.cuts)
        telling = _telling(f"searching by {recipe.search.by}", total, trial, on_step, best=True)
        try:
            pipeline, found = tried("the search", search, predictor.pipeline, space, recipe.search, telling)
        except TrainingError as error:
            _as_without_search(predictor, train, error)
            raise
        predictor = replace(predictor, pipeline=pipeline)
        told = ", ".join(f"{name} = {value}" for name, value in found.best.items())
        on_step(f"{found.tried} settings tried; the best is {told}")
    crossed = None
    if recipe.cross_validation is not None:
        on_step(f"cross-validating on {len(trial.cuts):,} folds")
        telling = _telling("cross-validating", len(trial.cuts), trial, on_step)
        crossed = tried("cross-validation", cross_validate, predictor.pipeline, recipe.cross_validation, telling)
    curves = tuple(_curves(asked, predictor.pipeline, trial, tried, on_step))
    return Explored(predictor, found, crossed, curves)


def _guard(lacking: str, *, quote: bool) -> Callable[..., Any]:
    """What calls as `guarded` does, and tells of folds that lack a class where the call fails."""

    def tried(what: str, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return guarded(what, call, *args, quote=quote)
        except TrainingError as error:
            raise TrainingError(f"{error} {lacking}".rstrip()) from error.__cause__

    return tried


def _curves(asked: Asked, pipeline: Any, trial: Trial, tried: Callable[..., Any], on_step: Step) -> Iterator[Curve]:
    if asked.curve is not None:
        over, values = asked_curve(asked.curve)
        on_step(f"drawing the curve over {len(values)} values of {over}")
        # Each fit is measured on the rows that it has seen and on others.
        telling = _telling("drawing the curve", 2 * len(values) * len(trial.cuts), trial, on_step)
        yield tried("--curve", validation_curve, pipeline, over, values, telling)
    if asked.learning_curve:
        on_step("drawing the learning curve")
        telling = _telling("drawing the learning curve", None, trial, on_step)
        yield tried("--learning-curve", learning_curve, pipeline, telling)


def _trial(
    job: Job, recipe: Training, predictor: Predictor, rows: pl.DataFrame, train: Part, validation: Part
) -> Trial:
    def quiet(value: float) -> None:
        """Nothing is told of a fit."""

    def trial(features: pl.DataFrame, target: pl.Series | None, cuts: Cuts) -> Trial:
        return Trial(predictor, job.problem.metric, features, target, cuts, quiet)

    if recipe.cross_validation is not None:
        return trial(train.features, train.target, folds(rows, recipe.cross_validation, job.problem.target))
    both = None
    if train.target is not None and validation.target is not None:
        both = pl.concat([train.target, validation.target])
    first, last = len(train), len(train) + len(validation)
    return trial(pl.concat([train.features, validation.features]), both, [(np.arange(first), np.arange(first, last))])


def _lacking(trial: Trial) -> str:
    """How many folds are fitted on rows without some class, and what to do, in words; empty where none is."""
    classes, target = set(trial.predictor.classes), trial.target
    gone = [classes - set(target[fit].unique()) if target is not None and classes else () for fit, _ in trial.cuts]
    if not any(gone):
        return ""
    first = next(i for i, each in enumerate(gone) if each)
    return (
        f"{sum(map(bool, gone))} of {len(gone)} folds are fitted on rows that lack a class, fold {first + 1} on none "
        f"of {', '.join(sorted(map(repr, gone[first])))}. Widen the training window, or take stratified folds."
    )


def _refuse_undefined(trial: Trial) -> None:
    """Refuse folds, or validation rows, that do not define the metric: a guess that ignores the columns tells."""
    if trial.target is None:
        return
    dummy = DummyClassifier(strategy="prior") if trial.predictor.classes else DummyRegressor()
    guess = refitted(trial.predictor, dummy.fit(trial.features, trial.truth))
    for i, (_, test) in enumerate(trial.cuts):
        if not np.isfinite(measured(guess, trial.features[test], trial.target[test])[trial.metric]):
            where = f"the {len(test)} rows of fold {i + 1}" if len(trial.cuts) > 1 else "the validation rows"
            raise TrainingError(
                f"{where} do not define {trial.metric}, which settings are compared by: they lack a class, or have one "
                "that the others lack. Take fewer or stratified folds, or widen the training window."
            )


def _as_without_search(predictor: Predictor, train: Part, error: TrainingError) -> None:
    """Tell a failure that no setting is to blame for as a training without a search tells it.

    Raises:
        TrainingError: pipeline() as it is fails on the training rows in the same way.
    """
    if error.__cause__ is None:
        return
    try:
        fitted(replace(predictor, pipeline=clone(predictor.pipeline)), train)
    except TrainingError as plain:
        if type(plain.__cause__) is type(error.__cause__):
            raise plain from plain.__cause__


def model_is_searched(job: Job, features: Features, pipeline: Any) -> bool:
    """Whether a search may make another kind of model of the pipeline's last step, or of how it is built.

    A number changes no kind; a word may, as a kernel does.
    """
    if job.training is None or job.training.search is None:
        return False
    last = f"{pipeline.steps[-1][0]}__" if isinstance(pipeline, Pipeline) else ""
    space = _search_space(features)
    if not isinstance(space, Mapping):
        return True
    return not all(_numbers(given) for name, given in space.items() if f"{name}__".startswith(last))


def _numbers(given: Any) -> bool:
    """Whether a parameter's values, or what is drawn for it, are numbers."""
    if hasattr(given, "rvs"):
        return True
    return isinstance(given, Iterable) and all(isinstance(each, (int, float, np.number)) for each in given)


def _search_space(features: Features) -> Any:
    asked = getattr(features.module, "search_space", None)
    if not callable(asked):
        raise UsageError(
            "[training] search wants search_space() beside pipeline() in the job's Python file: "
            "def search_space(): return {'step__parameter': [values, …]}."
        )
    # It has seen no row.
    return guarded("search_space()", asked, quote=True)


def _settings(how: How, space: Any) -> int | None:
    """How many settings a search will try; None where that turns out on the way, or the space is none."""
    if how.by == "halving":
        return None
    try:
        known = len(ParameterGrid(space))
    except (TypeError, ValueError):
        return how.candidates if how.by == "random" else None
    return min(known, how.candidates) if how.by == "random" else known


def _telling(what: str, total: int | None, trial: Trial, on_step: Step, *, best: bool = False) -> Trial:
    """The trial, which tells now and then how much is measured, and the best metric of a single fit so far."""
    count, highest, told = 0, float("-inf"), time.monotonic()
    of = "" if total is None else f" of {total:,}"

    def on_fit(value: float) -> None:
        nonlocal count, highest, told
        count, highest = count + 1, max(highest, trial.sign * value)
        if time.monotonic() - told > _QUIET_SECONDS:
            told = time.monotonic()
            found = f", the best {trial.metric} of one is {trial.sign * highest:.4f}" if best else ""
            on_step(f"{what}: {count:,}{of} measured{found}")

    return replace(trial, on_fit=on_fit)
