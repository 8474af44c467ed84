"""What training found out about a model, whole: the content of `evaluation.json` and of the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from batchscore.model.predictor import Label
from batchscore.recipe import Check

__all__ = [
    "Bin",
    "Calibration",
    "Candidate",
    "Confusion",
    "Cost",
    "CrossValidation",
    "Curve",
    "Evaluation",
    "Finding",
    "Gap",
    "Importance",
    "Measured",
    "Point",
    "Search",
    "Slice",
    "Sliced",
    "Threshold",
]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measured(_Record):
    """A metric on test rows.

    Attributes:
        value: Its value over all of them.
        low: Where 95 % of its values over resampled rows begin; None where too few of them define it.
        high: Where they end.
    """

    value: float
    low: float | None = None
    high: float | None = None


class Gap(_Record):
    """How much better the model is on rows that it has seen than on others.

    Attributes:
        metric: The metric that is compared.
        train: Its value on training rows.
        held_out: Its value on `on`.
        on: Which rows those are.
        verdict: `overfits` when the difference is more than chance and more than it may be, else `fits`.
    """

    metric: str
    train: float
    held_out: float
    on: Literal["validation", "cross-validation", "test"]
    verdict: Literal["fits", "overfits"]


class Finding(_Record):
    """Something that the audit of the data saw.

    Attributes:
        check: Which check.
        column: Where; None for the rows as a whole.
        value: What was measured: a share, an AUC or an R².
        suspect: Whether it is past the check's bound.
        told: The same in words.
    """

    check: Check
    column: str | None
    value: float
    suspect: bool
    told: str


class Cost(_Record):
    """What wrong predictions cost in all, in the unit of the job's `false_positive` and `false_negative`.

    Attributes:
        rows: Of how many rows.
        model: The model's predictions.
        none: Predicting the second class of no row.
        every: Predicting it of every row.
    """

    rows: int
    model: float
    none: float
    every: float


class Threshold(_Record):
    """From which score on a row is predicted to be of the second class.

    Attributes:
        value: The score.
        by: What chose it, in words.
        rows: On how many validation rows.
        share: The share of them that are predicted to be of the second class.
        costs: Where it was chosen by cost: what predictions cost on `validation` and on `test` rows.
    """

    value: float
    by: str
    rows: int
    share: float
    costs: Mapping[Literal["validation", "test"], Cost] = {}


class Confusion(_Record):
    """Test rows by class: `counts[i][j]` rows of class `classes[i]` were predicted to be of class `classes[j]`."""

    classes: tuple[Label, ...]
    counts: tuple[tuple[int, ...], ...]


class Bin(_Record):
    """Test rows of similar score: their mean score, their share of the second class, and their number."""

    score: float
    observed: float
    rows: int


class Calibration(_Record):
    """How scores compare with what happened, on test rows.

    Attributes:
        method: What was fitted on validation rows to mend it; None where nothing was.
        bins: Of about equal numbers of rows, by score.
    """

    method: Literal["isotonic", "sigmoid"] | None
    bins: tuple[Bin, ...]


class Point(_Record):
    """One fit of a curve: the metric on the rows it was fitted on, and on validation rows or folds."""

    at: float | str
    train: float
    validation: float


class Curve(_Record):
    """A metric over a parameter of the pipeline, or over `rows`, the number of training rows."""

    over: str
    metric: str
    points: tuple[Point, ...]


class Importance(_Record):
    """How much worse the metric gets when a column of the features is shuffled: mean and deviation over repeats."""

    column: str
    mean: float
    deviation: float


class Slice(_Record):
    """Metrics of the test rows that hold one value in a column."""

    column: str
    value: str
    rows: int
    metrics: Mapping[str, float]


class Sliced(_Record):
    """What the slices of a column were chosen from.

    Attributes:
        column: The column.
        values: How many different ones the test rows hold, NULL among them.
        rows: Fewer rows make no slice.
        measured: How many values were measured: the most frequent of those with rows enough.
        kept: How many of these are told: the worst by the evaluation's metric.
    """

    column: str
    values: int
    rows: int
    measured: int
    kept: int


class CrossValidation(_Record):
    """Metrics by fold, of pipelines fitted on the other folds of the training rows.

    Attributes:
        by: How the folds were made.
        folds: How many there are.
        metrics: One value for each fold; one over all rows together for leave-one-out.
    """

    by: str
    folds: int
    metrics: Mapping[str, tuple[float, ...]]


class Candidate(_Record):
    """One setting that the search tried, and its mean metric; None where its fit failed."""

    parameters: Mapping[str, str]
    value: float | None


class Search(_Record):
    """What the search tried.

    Attributes:
        by: Which search.
        metric: What it went by.
        best: The parameters that it chose.
        candidates: The best first, 50 at most.
        tried: How many there were.
    """

    by: str
    metric: str
    best: Mapping[str, str]
    candidates: tuple[Candidate, ...]
    tried: int


class Evaluation(_Record):
    """What training found out about a model. A metric that the rows do not define is left out wherever it would stand.

    Attributes:
        metric: The metric of `[problem] success`; the task's first one where there is none.
        rows: Number of rows by part: `train`, `validation`, `test`.
        test: Every metric of the task, on rows that nothing else was decided by.
        resampled: What the intervals of `test` draw anew: `rows`, or the name of what keeps rows together.
        scatter: How much each metric varies from one interval of the job to the next: its standard deviation over those
            of the test rows that have 200 rows. Empty where the split is not by time, or fewer than 10 have.
        train: The same on training rows, 20,000 of them at most.
        validation: The same on validation rows; empty without any.
        baselines: The same on test rows for simpler models, and for the version that was in use (`champion`).
        ahead: By how much the model is better than each of them in `metric`, on the same resampled rows; above 0 it is
            better, whichever way the metric goes.
        gap: Training against held-out rows; None for a task without labels.
        latency_us_per_row: Microseconds that features and pipeline take for a row of the test.
        audit: What the data look like.
        threshold: Binary, where the job asks for one.
        confusion: Binary and multiclass.
        calibration: Binary.
        roc: Binary: points (false positive rate, recall), 200 at most.
        precision_recall: Binary: points (recall, precision), 200 at most.
        residuals: Regression: points (prediction, target), 500 at most.
        sizes: Clustering: test rows by cluster.
        importance: Each column of the features, the most important first.
        slices: By column and value, the worst of each column.
        sliced: What they were chosen from.
        cross_validation: Where the job asks for it.
        search: Where the job asks for it.
        curves: Those that `train` was asked for.
        parameters: What the pipeline was made with, by the names of scikit-learn, and the recipe of `[training]`, each
            with that in front; as text.
    """

    metric: str
    rows: Mapping[str, int]
    test: Mapping[str, Measured]
    resampled: str
    scatter: Mapping[str, float] = {}
    train: Mapping[str, float]
    validation: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, float]]
    ahead: Mapping[str, Measured]
    gap: Gap | None
    latency_us_per_row: float
    audit: tuple[Finding, ...]
    threshold: Threshold | None = None
    confusion: Confusion | None = None
    calibration: Calibration | None = None
    roc: tuple[tuple[float, float], ...] = ()
    precision_recall: tuple[tuple[float, float], ...] = ()
    residuals: tuple[tuple[float, float], ...] = ()
    sizes: Mapping[str, int] = {}
    importance: tuple[Importance, ...] = ()
    slices: tuple[Slice, ...] = ()
    sliced: tuple[Sliced, ...] = ()
    cross_validation: CrossValidation | None = None
    search: Search | None = None
    curves: tuple[Curve, ...] = ()
    parameters: Mapping[str, str] = {}
