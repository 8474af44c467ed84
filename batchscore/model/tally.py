"""Labelled predictions, rounded and counted: enough for every metric of any set of intervals, without their rows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from batchscore.model.bootstrap import RESAMPLES, Drawn, defined
from batchscore.model.metrics import Metrics, mean_of, metrics_of, r2_of, ranking, surprise_of
from batchscore.model.predictor import Label
from batchscore.problem import Task
from batchscore.schema import TypeName, dtype_of

__all__ = ["Tally"]

Floats = npt.NDArray[np.float64]

# Scores near 0 and 1, where the log loss is steep, get bins of their own.
_TAIL = np.array([1e-6, 1e-5, 1e-4])
_EDGES = np.concatenate([_TAIL, np.arange(1, 1000) / 1000, 1 - _TAIL[::-1]])
_ERROR_STEP, _TRUTH_STEP = 0.01, 0.05
_LEAST = 1e-9
_SUMS = ("truth", "prediction", "score", "surprise", "error_square", "truth_square")
_MOST_CELLS = 8192
# So many times doubled, the bins on either side of 0 are one, for any float.
_COARSEST = 25
# Labels of a regression are joined first: the median is one of errors, and of labels there are their squares.
_LATER = 8
# Less than that share of the squares is what they were rounded by.
_ROUNDED = 1e-12


@dataclass(frozen=True, slots=True)
class Tally:
    """How often each outcome came.

    Rows of one cell have the same label, the same prediction and a score in the same bin, 1/1000 wide; of a regression
    they have errors of one sign within 1 % of one another and labels within 5 %. Of more than two classes a row is
    counted in one cell by the score of its label, and in one more for each other class by the score of that alone, and
    whether it is the predicted one: all scores of a row together would be a cell for each row. A cell stands for its
    rows with their means.

    Where that gives more than 8,192 cells, bins are joined by twos until it does not. Bins of any width begin where
    narrower ones do, and so a tally depends on its rows alone, however it was merged. Labels and predictions are never
    joined: as many cells remain as there are pairs of them.

    Exact are counts, whatever rests on labels and predictions alone (accuracy, precision, recall, F1), the log loss of
    more than two classes, and of a regression all but the median error, which is that of a row of the same bin. The ROC
    area is off by at most half the share of pairs of both classes that share a bin. The Brier score and the log loss of
    two classes are those of the rows to about a thousandth. What `resampled` gives of the ROC area of more than two
    classes takes the rows of one class for independent of those counted with another.

    Attributes:
        task: What kind of answers they are.
        classes: The labels in the order of the scores.
        cells: `count` of each cell and, by task, binary: `truth`, `prediction`, `score_bin` and the sum `score`;
            multiclass: the same, and `class`, the place of the class whose score it is, -1 for a label that is none,
            and the sum `surprise` of what the log loss is the mean of; where the row has another label, `truth` is
            NULL, and so is `prediction` unless it is the class; regression: `error_bin`, `truth_bin`, and the sums
            `truth`, `prediction` and of the squares of the errors and of the labels.
        joined: How often bins were joined by twos.
    """

    task: Task
    classes: tuple[Label, ...]
    cells: pl.DataFrame
    joined: int = 0

    @classmethod
    def of(cls, task: Task, classes: tuple[Label, ...], truth: pl.Series, answers: pl.DataFrame) -> Self:
        """Count labelled predictions.

        Args:
            task: Binary, multiclass or regression.
            classes: The labels in the order of the scores; the second is the positive one of a binary task.
            truth: The labels, no NULL, shape `(rows,)`.
            answers: `prediction` and the scores of the same rows.
        """
        rows = answers.with_columns(truth.alias("truth"))
        if task == "regression":
            rows = rows.select(pl.col("truth", "prediction").cast(pl.Float64))
            error = rows["truth"] - rows["prediction"]
            keys = [
                _stepped(error, _ERROR_STEP, "error_bin"),
                _stepped(rows["truth"], _TRUTH_STEP, "truth_bin"),
                (error**2).alias("error_square"),
                (rows["truth"] ** 2).alias("truth_square"),
            ]
        else:
            if task == "multiclass":
                rows = _by_class(rows, classes)
            keys = [pl.Series("score_bin", _EDGES.searchsorted(rows["score"].to_numpy()), pl.Int64)]
        return cls._bounded(task, classes, rows.with_columns(keys, count=pl.lit(1, pl.Int64)), 0)

    @property
    def rows(self) -> int:
        """Labelled rows."""
        return int(self._counts()[self._own()].sum())

    def merge(self, other: Self) -> Self:
        """The tally of both sets of rows."""
        return self.merged([self, other])

    @classmethod
    def merged(cls, tallies: Sequence[Self]) -> Self:
        """The tally of the rows of one or more, at once."""
        joined = max(each.joined for each in tallies)
        cells = [_joined(each.cells, each.joined, joined) for each in tallies]
        return cls._bounded(tallies[0].task, tallies[0].classes, pl.concat(cells), joined)

    @classmethod
    def _bounded(cls, task: Task, classes: tuple[Label, ...], rows: pl.DataFrame, joined: int) -> Self:
        """The tally of rows whose bins were joined so often, joined as often as it must be."""
        cells = _grouped(rows, task)
        while cells.height > _MOST_CELLS and joined < _COARSEST:
            cells, joined = _grouped(_joined(cells, joined, joined + 1), task), joined + 1
        return cls(task, classes, cells, joined)

    def metrics(self) -> dict[str, float]:
        """Every metric of the task that is defined, by name; none without rows."""
        return defined(self._weighted()(self._counts())) if self.rows else {}

    def resampled(self) -> Drawn:
        """Each metric over 200 samples of the rows, drawn with replacement; the same ones at every call."""
        if not self.rows:
            return {}
        counts, own, again = self._counts(), self._own(), self._weighted()
        rng = np.random.default_rng(0)
        drawn = np.zeros((RESAMPLES, len(counts)))
        for part in (own, ~own):
            if part.any():
                total = counts[part].sum()
                drawn[:, part] = rng.multinomial(int(total), counts[part] / total, RESAMPLES)
        samples = [again(weights) for weights in drawn]
        return {name: np.array([each[name] for each in samples]) for name in samples[0]}

    def to_json(self) -> str:
        """All of it but task and classes, which the bundle has."""
        data: dict[str, Any] = {name: self.cells[name].to_list() for name in self.cells.columns}
        return json.dumps(data | ({"joined": self.joined} if self.joined else {}), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, task: Task, classes: tuple[Label, ...], label: TypeName) -> Self:
        """Read back what `to_json` wrote.

        Args:
            text: What it wrote.
            task: The task.
            classes: The classes.
            label: The type of labels and predictions.
        """
        data = json.loads(text)
        joined = data.pop("joined", 0)
        whole = [name for name in data if name in ("count", "class") or name.endswith("_bin")]
        sums = {} if task == "regression" else dict.fromkeys(("truth", "prediction"), dtype_of(label))
        types = {name: pl.Int64 if name in whole else sums.get(name, pl.Float64) for name in data}
        return cls(task, classes, pl.DataFrame(data, schema=types), joined)

    def _counts(self) -> Floats:
        return self.cells["count"].cast(pl.Float64).to_numpy()

    def _own(self) -> npt.NDArray[np.bool_]:
        """Which cells count each row once; the others are of the scores of other classes than the label."""
        return self.cells["truth"].is_not_null().to_numpy()

    def _weighted(self) -> Metrics:
        count = self.cells["count"]
        if self.task == "regression":
            return self._of_numbers()
        # Rounded, for the means of equal scores may differ in their last bit, and what is a tie must stay one.
        score = (self.cells["score"] / count).round(12).alias("score")
        if self.task == "binary":
            answers = pl.DataFrame([self.cells["prediction"], score])
            return metrics_of(self.task, self.cells["truth"], answers, self.classes)
        return self._of_classes(score.to_numpy())

    def _of_numbers(self) -> Metrics:
        means = self.cells.select(pl.exclude("count") / pl.col("count"))
        truth, squares = means["truth"].to_numpy(), means["error_square"].to_numpy()
        once = metrics_of(self.task, means["truth"], means.select("prediction"), self.classes)
        beside = means["truth_square"].to_numpy() - truth**2
        within = np.where(beside > _ROUNDED * means["truth_square"].to_numpy(), beside, 0.0)

        def metrics(weights: Floats) -> dict[str, float]:
            total, missed = float(weights.sum()), float(weights @ squares)
            spread = float(weights @ ((truth - float(weights @ truth) / total) ** 2 + within))
            return once(weights) | {"rmse": math.sqrt(missed / total), "r2": r2_of(missed, spread, total)}

        return metrics

    def _of_classes(self, score: Floats) -> Metrics:
        own, place = self._own(), self.cells["class"].to_numpy()
        labelled = self.cells.filter(own)
        # The score whose log loss is the mean one of the cell; those of other classes are ranked below.
        likely = np.exp(-(labelled["surprise"] / labelled["count"]).to_numpy())
        scores = {f"score_{i}": np.where(place[own] == i, likely, 0.0) for i in range(len(self.classes))}
        answers = pl.DataFrame({"prediction": labelled["prediction"], **scores})
        once = metrics_of(self.task, labelled["truth"], answers, self.classes)
        of_class = [place == i for i in range(len(self.classes))]
        each = [ranking(own[here], score[here]) if here.any() else None for here in of_class]

        def metrics(weights: Floats) -> dict[str, float]:
            found = once(weights[own])
            areas = [ranked(weights[here])[0] for ranked, here in zip(each, of_class, strict=True) if ranked]
            unknown = weights[own & (place < 0)].any()
            return found | {"roc_auc_macro": math.nan if unknown else mean_of(areas)}

        return metrics


def _by_class(rows: pl.DataFrame, classes: tuple[Label, ...]) -> pl.DataFrame:
    """Each row with the score of its label, and once more with the score of each other class, without its label."""
    number = {label: i for i, label in enumerate(classes)}
    place = np.array([number.get(label, -1) for label in rows["truth"].to_list()], dtype=np.int64)
    scores = rows.select(name for name in rows.columns if name.startswith("score")).to_numpy()
    likely = np.where(place < 0, 0.0, scores[np.arange(len(place)), place])
    own = rows.select("truth", "prediction", pl.Series("class", place), pl.Series("score", likely))
    others = [
        rows.select(
            pl.when(pl.col("prediction") == label).then("prediction"),
            pl.Series("score", scores[:, i]),
            pl.lit(i, pl.Int64).alias("class"),
        ).filter(pl.Series(place != i))
        for label, i in number.items()
    ]
    own = own.with_columns(pl.Series("surprise", surprise_of(likely)))
    return pl.concat([own, *others], how="diagonal_relaxed").with_columns(pl.col("surprise").fill_null(0.0))


def _grouped(rows: pl.DataFrame, task: Task) -> pl.DataFrame:
    names = () if task == "regression" else ("truth", "prediction", "class")
    keys = [name for name in rows.columns if name in names or name.endswith("_bin")]
    sums = [name for name in _SUMS if name in rows.columns and name not in keys]
    # Sorted, so that the same rows give the same cells in the same order.
    return rows.group_by(keys).agg(*(pl.col(name).sum() for name in sums), pl.col("count").sum()).sort(keys)


def _joined(rows: pl.DataFrame, since: int, until: int) -> pl.DataFrame:
    """With bins joined by twos as often as is still to be done, on either side of 0, which keeps a bin of its own."""
    joined = []
    for name in rows.columns:
        if name.endswith("_bin"):
            later = _LATER if name == "error_bin" else 0
            times = max(until - later, 0) - max(since - later, 0)
            joined.append(pl.col(name).sign() * ((pl.col(name).abs() - 1).floordiv(2**times) + 1))
    return rows.with_columns(joined)


def _stepped(values: pl.Series, step: float, name: str) -> pl.Series:
    """The step of each value on a scale whose steps are that share of a value wide, negative ones below 0."""
    numbers = values.cast(pl.Float64).to_numpy()
    size = np.log(np.maximum(np.abs(numbers), _LEAST) / _LEAST) / math.log1p(step)
    return pl.Series(name, (np.sign(numbers) * (np.floor(size) + 1)).astype(np.int64))
