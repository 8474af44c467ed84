"""Reason codes: how much each column adds to a row's score.

A row's contributions and one base value, the same for all rows, add up to the model's answer on the scale on which it
sums: log-odds for linear and boosted classifiers, the probability for a decision tree or a forest of them, the value
for regressors (its logarithm where the loss or the link is logarithmic). They are Shapley values: of a linear model
those of Lundberg and Lee 2017 for independent columns, coefficient x (value - mean over the rows fitted on); of trees
see `shapley`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import polars as pl
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from batchscore.errors import TrainingError
from batchscore.model.origins import origins
from batchscore.model.shapley import DEEPEST, Floats, add_contributions
from batchscore.model.trees import HistTrees, PlainTrees, has_trees, trees_of
from batchscore.problem import REASON
from batchscore.schema import TypeName

__all__ = ["TOLERANCE", "Explainer", "reason_types", "refuse_unexplainable"]

TOLERANCE = 1e-6
"""How far base and contributions may miss the model's answer, relative to the largest of the answers."""

# Relative to the strongest contribution of the row.
_NOTHING = 1e-12

_TRIED_ROWS = 20

# These add up their trees in single precision.
_SINGLE_PRECISION = 1e-4


def reason_types(top: int) -> dict[str, TypeName]:
    """The columns that `Explainer.reasons` gives, with their types, in order."""
    types: dict[str, TypeName] = {}
    for k in range(1, top + 1):
        types |= {f"{REASON}{k}": "string", f"{REASON}{k}_value": "float"}
    return types


def refuse_unexplainable(pipeline: Any) -> None:
    """Refuse an unfitted pipeline whose last step is no model that can be explained, where that can be known.

    What an estimator has when it is fitted shows on a few numbers of our own; one that does not take them is let pass.

    Raises:
        TrainingError: It is none.
    """
    estimator = _opened(pipeline)[1]
    if _native(estimator) or has_trees(estimator):
        return
    rows = np.random.default_rng(0).normal(size=(_TRIED_ROWS, 2))
    target = np.arange(_TRIED_ROWS) % 2 == 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = clone(estimator).fit(rows, target if is_classifier(estimator) else 1.0 + target)
            _model(_opened(fitted)[1], rows.mean(axis=0))
    except TrainingError:
        raise
    except Exception:  # noqa: BLE001 - whatever an estimator raises of rows that are not its own
        return


class _Model(Protocol):
    """The last step of a pipeline, as something that adds up."""

    tolerance: float

    def contributions(self, rows: Any, columns: Sequence[int], width: int) -> Floats:
        """What each column adds, shape `(rows, width)`; `columns` has the column of each feature."""


@dataclass(frozen=True, slots=True)
class Explainer:
    """What the columns of a fitted pipeline's input add to its answers.

    A calibrated pipeline is explained as it was before calibration, which does not add up.

    Attributes:
        pipeline: The fitted pipeline.
        top: How many reasons a row gets.
        base: The answer for a row of which nothing is known, on the scale of the sum.
        names: What contributes: input columns in their order, and then what mixes several, see `origins`.
        columns: For each input of the last step, the place of its name.
        means: Of a linear model: the mean of each of its inputs over the rows that `fitted` saw; else None.
    """

    pipeline: Any
    top: int
    base: float
    names: tuple[str, ...]
    columns: tuple[int, ...]
    means: tuple[float, ...] | None
    _model: _Model = field(repr=False, compare=False)

    @classmethod
    def fitted(cls, pipeline: Any, features: pl.DataFrame, top: int, *, quote: bool = True) -> Self:
        """Learn from the rows that the pipeline was fitted on, or some of them, what is to be known in advance.

        Args:
            pipeline: A fitted classifier of two classes or a regressor, or a pipeline that ends in one.
            features: At least one row of its input.
            top: How many reasons a row is to get.
            quote: Whether what the model's library raises is told in its own words, which may hold values.

        Raises:
            TrainingError: It is no model that can be explained, its library fails at it, or its contributions do not
                add up.
        """
        steps, estimator = _opened(pipeline)
        with _explaining(estimator, quote=quote):
            rows = _transformed(steps, features)
            model = _model(estimator, _means(rows))
            named = _names(steps, features.columns, rows.shape[1])
            names = tuple(dict.fromkeys([*(name for name in features.columns if name in named), *named]))
            columns = tuple(names.index(name) for name in named)
            means = tuple(model.means.tolist()) if isinstance(model, _Linear) else None
            sums = model.contributions(rows, columns, len(names)).sum(axis=1)
            base = _base(estimator, rows, sums, model.tolerance)
        return cls(pipeline, top, base, names, columns, means, model)

    @classmethod
    def thawed(cls, pipeline: Any, frozen: str) -> Self:
        """The explainer of that pipeline that `frozen` was written from."""
        held: Mapping[str, Any] = json.loads(frozen)
        means = None if held["means"] is None else tuple(held["means"])
        model = _model(_opened(pipeline)[1], None if means is None else np.array(means))
        return cls(pipeline, held["top"], held["base"], tuple(held["names"]), tuple(held["columns"]), means, model)

    def frozen(self) -> str:
        """All but the pipeline, as JSON."""
        held = {name: getattr(self, name) for name in ("top", "base", "names", "columns", "means")}
        return json.dumps(held, allow_nan=False, separators=(",", ":"))

    def contributions(self, features: pl.DataFrame) -> Floats:
        """What each of `names` adds to each row's answer, shape `(rows, names)`.

        Args:
            features: Rows as the pipeline takes them.
        """
        rows = _transformed(_opened(self.pipeline)[0], features)
        return self._model.contributions(rows, self.columns, len(self.names))

    def check(self, features: pl.DataFrame, *, quote: bool = True) -> None:
        """Compare base and contributions with the model's answers.

        Args:
            features: Rows as the pipeline takes them.
            quote: See `fitted`.

        Raises:
            TrainingError: They do not add up on these rows, or the model's library fails at it.
        """
        steps, estimator = _opened(self.pipeline)
        with _explaining(estimator, quote=quote):
            rows = _transformed(steps, features)
            sums = self._model.contributions(rows, self.columns, len(self.names)).sum(axis=1)
            _base(estimator, rows, sums, self._model.tolerance, self.base)

    def reasons(self, features: pl.DataFrame) -> pl.DataFrame:
        """The names that contribute most, the strongest first, with what they contribute.

        Of two that contribute alike, to seven digits, the one that comes first in `names` comes first.

        Returns:
            `reason_1` (String), `reason_1_value` (Float64) and so on for each of `top`; NULL where there are fewer
            names than that.
        """
        contributions = self.contributions(features)
        # What rounding leaves of nothing is nothing.
        contributions[np.abs(contributions) <= _NOTHING * np.abs(contributions).max(axis=1, keepdims=True)] = 0.0
        # In single precision, so that what is a tie but for rounding is one.
        strength = np.abs(contributions).astype(np.float32)
        order = np.argsort(-strength, axis=1, kind="stable")[:, : self.top]
        values = np.take_along_axis(contributions, order, axis=1)
        names = pl.Series(self.names, dtype=pl.String)
        nothing = pl.Series([None], dtype=pl.String).new_from_index(0, len(contributions))
        found = [
            (names.gather(order[:, k]), pl.Series(values[:, k]))
            if k < order.shape[1]
            else (nothing, nothing.cast(pl.Float64))
            for k in range(self.top)
        ]
        given = [series for pair in found for series in pair]
        return pl.DataFrame([series.alias(name) for name, series in zip(reason_types(self.top), given, strict=True)])


@contextmanager
def _explaining(estimator: Any, *, quote: bool) -> Iterator[None]:
    try:
        yield
    except (TrainingError, MemoryError):
        raise
    except Exception as error:
        kind = type(estimator)
        # On one line: XGBoost appends the stack of its C++ code.
        words = next(iter(str(error).strip().splitlines()), "")
        told = f"{type(error).__name__}: {words}" if quote else type(error).__name__
        raise TrainingError(
            f"{kind.__name__} of {kind.__module__.partition('.')[0]} cannot be explained, for it fails at that: "
            f"{told}. Leave explain_top out, or change the model."
        ) from error


def _opened(pipeline: Any) -> tuple[list[Any], Any]:
    """The transformers in order and the estimator behind them, whatever they are wrapped in."""
    steps: list[Any] = []
    while True:
        if isinstance(pipeline, Pipeline):
            steps += [step for _, step in pipeline.steps[:-1] if step not in (None, "passthrough")]
            pipeline = pipeline.steps[-1][1]
        elif isinstance(pipeline, FrozenEstimator):
            pipeline = pipeline.estimator
        elif (
            isinstance(pipeline, CalibratedClassifierCV) and len(getattr(pipeline, "calibrated_classifiers_", ())) == 1
        ):
            pipeline = pipeline.calibrated_classifiers_[0].estimator
        elif hasattr(pipeline, "best_estimator_"):
            pipeline = pipeline.best_estimator_
        else:
            return steps, pipeline


def _transformed(steps: Sequence[Any], features: pl.DataFrame) -> Any:
    rows: Any = features
    for step in steps:
        rows = step.transform(rows)
    return rows


def _names(steps: Sequence[Any], columns: Sequence[str], width: int) -> list[str]:
    names: list[str] = list(columns)
    for step in steps:
        names = origins(step, names)
    return names if len(names) == width else [f"column{k}" for k in range(width)]


def _means(rows: Any) -> Floats:
    """The mean of each column that is a number; NaN of any other, which no linear model takes."""
    try:
        return np.asarray(rows.mean(axis=0) if hasattr(rows, "toarray") else np.mean(np.asarray(rows, float), axis=0))
    except (TypeError, ValueError):
        return np.full(rows.shape[1], np.nan)


def _model(estimator: Any, means: Floats | None) -> _Model:
    if is_classifier(estimator) and len(estimator.classes_) != 2:
        raise TrainingError(
            f"explain_top explains one score a row, and {type(estimator).__name__} gives one for each of "
            f"{len(estimator.classes_)} classes. Leave explain_top out, or make the task binary."
        )
    if _native(estimator):
        return _Native(estimator)
    if getattr(estimator, "n_outputs_", 1) == 1 and (trees := trees_of(estimator)) is not None:
        return _Forest(trees)
    if means is not None and np.size(getattr(estimator, "coef_", ())) == len(np.ravel(means)):
        return _Linear(np.ravel(np.asarray(estimator.coef_, dtype=np.float64)), np.ravel(means))
    raise TrainingError(
        f"explain_top cannot explain {type(estimator).__name__}. It takes linear models with coef_, decision trees, "
        "random and extra trees, gradient boosting of scikit-learn, XGBoost and LightGBM, and one of them calibrated "
        "without folds of its own (CalibratedClassifierCV around a FrozenEstimator). Leave explain_top out, or change "
        "the model."
    )


def _native(estimator: Any) -> bool:
    return type(estimator).__module__.partition(".")[0] in {"xgboost", "lightgbm"}


class _Linear:
    """A linear model: coefficient x (value - mean)."""

    tolerance = TOLERANCE

    def __init__(self, coefficients: Floats, means: Floats) -> None:
        self._coefficients, self.means = coefficients, means

    def contributions(self, rows: Any, columns: Sequence[int], width: int) -> Floats:
        folded = np.zeros((len(columns), width))
        folded[np.arange(len(columns)), list(columns)] = self._coefficients
        values = rows if hasattr(rows, "toarray") else np.asarray(rows, dtype=np.float64)
        added: Floats = np.asarray(values @ folded) - self.means @ folded
        return added


class _Forest:
    """One tree or many."""

    tolerance = TOLERANCE

    def __init__(self, trees: PlainTrees | HistTrees) -> None:
        self._trees = trees
        if any(tree.deepest() > DEEPEST for tree in trees.trees):
            raise TrainingError(
                f"explain_top explains trees whose paths split on at most {DEEPEST} features. Set max_depth, or leave "
                "explain_top out."
            )

    def contributions(self, rows: Any, columns: Sequence[int], width: int) -> Floats:
        inputs, order = self._trees.inputs(rows), self._trees.features()
        placed = list(columns) if order is None else [columns[j] for j in order]
        out = np.zeros((width, inputs.count))
        for tree in self._trees.trees:
            add_contributions(tree, inputs, placed, out)
        return out.T


class _Native:
    """XGBoost or LightGBM, which bring their own TreeSHAP."""

    tolerance = _SINGLE_PRECISION

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator

    def contributions(self, rows: Any, columns: Sequence[int], width: int) -> Floats:
        if hasattr(self._estimator, "get_booster"):
            import xgboost  # type: ignore[import-not-found, unused-ignore]

            matrix = xgboost.DMatrix(rows, nthread=self._estimator.n_jobs)
            given = self._estimator.get_booster().predict(matrix, pred_contribs=True, validate_features=False)
        else:
            given = self._estimator.predict(rows, pred_contrib=True)
        # The last column is their base value.
        added = np.zeros((len(given), width))
        for feature, column in enumerate(columns):
            added[:, column] += given[:, feature]
        return added


def _answers(estimator: Any, rows: Any) -> Iterator[Floats]:
    """The estimator's answers on each scale on which it may add up."""
    if not is_classifier(estimator):
        # A link or loss that is logarithmic adds up on that scale.
        values = np.asarray(estimator.predict(rows), dtype=np.float64)
        yield values
        if (values > 0).all():
            yield np.log(values)
    elif _native(estimator):
        raw = {"output_margin" if hasattr(estimator, "get_booster") else "raw_score": True}
        yield np.asarray(estimator.predict(rows, **raw), dtype=np.float64)
    elif hasattr(estimator, "decision_function"):
        yield np.asarray(estimator.decision_function(rows), dtype=np.float64)
    else:
        yield np.asarray(estimator.predict_proba(rows), dtype=np.float64)[:, 1]


def _base(estimator: Any, rows: Any, sums: Floats, tolerance: float, base: float | None = None) -> float:
    """What the contributions lack of the answers, the same in every row."""
    missed = []
    for answers in _answers(estimator, rows):
        lacking = answers.ravel() - sums
        middle = float(np.median(lacking)) if base is None else base
        missed.append(float(np.abs(lacking - middle).max()) / max(float(np.abs(answers).max()), 1e-12))
        if missed[-1] <= tolerance:
            return middle
    raise TrainingError(
        f"the contributions to {type(estimator).__name__} do not add up to its answers: they miss by {min(missed):.2g} "
        f"of the largest, and {tolerance:g} is allowed. Leave explain_top out, or change the model."
    )
