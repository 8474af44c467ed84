"""The statement of the problem: what the model is for, and which metric says whether it is good enough."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from batchscore.errors import nearest

__all__ = [
    "METRICS",
    "OF_SEVERAL",
    "REASON",
    "Age",
    "Number",
    "Problem",
    "Seed",
    "Success",
    "Table",
    "Task",
    "Whole",
    "better",
]

Task = Literal["binary", "multiclass", "regression", "clustering", "anomaly"]

METRICS: dict[Task, tuple[str, ...]] = {
    "binary": (
        "roc_auc",
        "average_precision",
        "brier",
        "log_loss",
        "accuracy",
        "balanced_accuracy",
        "precision",
        "recall",
        "f1",
        "base_rate",
        "ece",
        "bias",
    ),
    "multiclass": (
        "accuracy",
        "balanced_accuracy",
        "precision_macro",
        "recall_macro",
        "f1_macro",
        "roc_auc_macro",
        "log_loss",
    ),
    "regression": ("mae", "rmse", "r2", "median_error"),
    "clustering": ("silhouette", "clusters", "smallest_cluster", "largest_cluster"),
    "anomaly": ("contamination",),
}
"""Which metrics each task has; a job's `success.metric` is one of them.

Attributes:
    roc_auc: Area under the ROC curve.
    average_precision: Precision averaged over recall (PR-AUC).
    brier: Mean squared difference of score and outcome; lower is better.
    log_loss: Mean negative log-likelihood; lower is better.
    accuracy: Share of rows whose class is predicted.
    balanced_accuracy: Recall averaged over the classes that the labels have.
    precision: Share of the rows predicted to be of the second class that are; 0 where there are none.
    recall: Share of the second class's rows that are predicted to be of it.
    f1: Harmonic mean of precision and recall.
    base_rate: Share of rows of the second class: a fact of the labels, not of the model.
    ece: Expected calibration error: the difference of mean score and share of the second class, averaged over the rows
        of ten bins of score (Naeini and others, 2015); lower is better. The fewer rows, the more of it is chance.
    bias: Mean score less the share of the second class: above 0 the model says too much, below 0 too little; 0 is best.
    precision_macro: Precision averaged over the classes that labels or predictions have.
    recall_macro: Recall averaged over the classes that labels or predictions have.
    f1_macro: F1 averaged over the classes that labels or predictions have.
    roc_auc_macro: Area under the ROC curve of each class against the others, averaged over the classes.
    mae: Mean absolute error, in the target's unit; lower is better.
    rmse: Root of the mean squared error, in the target's unit; lower is better.
    r2: Share of the target's variance that is explained.
    median_error: Median absolute error, in the target's unit; lower is better.
    silhouette: How much nearer rows are to their own cluster than to the next, from -1 to 1, in what the pipeline's
        last step is given; of 5,000 rows at most.
    clusters: Number of clusters that have rows; good neither way.
    smallest_cluster: Share of rows in the smallest of them; good neither way.
    largest_cluster: Share of rows in the largest of them; good neither way.
    contamination: Share of rows that are called odd; good neither way.
"""

OF_SEVERAL = frozenset({"roc_auc", "average_precision", "recall", "f1", "roc_auc_macro", "r2"})
"""Metrics that a single row does not define, or not when it is of the first class."""

REASON = "reason_"
"""What the names of the columns begin with that say why a row has its score."""

_UNLABELLED = ("clustering", "anomaly")
_LOWER = {"brier", "log_loss", "ece", "mae", "rmse", "median_error"}
# A fact of the labels, or of how many clusters were asked for, is good neither way; a bias is bad both ways.
_NEITHER = {"base_rate", "bias", "clusters", "smallest_cluster", "largest_cluster", "contamination"}
_HIGHER = {metric for known in METRICS.values() for metric in known} - _LOWER - _NEITHER


def better(metric: str) -> Literal["higher", "lower"] | None:
    """Which values of a metric are the better ones; None for what is good neither way."""
    return "lower" if metric in _LOWER else "higher" if metric in _HIGHER else None


# pydantic would take "1000" for a number, and true for 1.
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
# A number of hours, days or weeks.
Age = Annotated[str, StringConstraints(pattern=r"^\d{1,9}[hdw]$")]
# As scikit-learn takes it.
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]


class Table(BaseModel):
    """A table of a job's TOML file: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Success(Table):
    """The metric on held-out rows that a model must reach to be worth scoring with.

    Attributes:
        metric: One of the task's metrics.
        at_least: The least value that will do, for a metric that should be high.
        at_most: The largest value that will do, for a metric that should be low.
    """

    metric: str
    at_least: Number | None = None
    at_most: Number | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give exactly one of at_least and at_most")
        return self

    def wrong_way(self) -> str | None:
        """What is wrong where the worst models reach the bar, in words; None where the better ones do."""
        if self.metric in _LOWER and self.at_least is not None:
            return f"{self.metric} is the better the lower it is: write at_most = {self.at_least}, and not at_least"
        if self.metric in _HIGHER and self.at_most is not None:
            return f"{self.metric} is the better the higher it is: write at_least = {self.at_most}, and not at_most"
        return None

    def met_by(self, value: float) -> bool:
        """Whether a measured value reaches the bound; NaN never does."""
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)

    def __str__(self) -> str:
        bound = f"at least {self.at_least}" if self.at_least is not None else f"at most {self.at_most}"
        return f"{self.metric} {bound}"


class Problem(Table):
    """What the model is for, agreed before any code.

    Attributes:
        objective: The purpose in one sentence.
        task: What kind of answer the pipeline gives.
        target: The column of the labels to predict; clustering and anomaly have neither labels nor target.
        success: The bar for `train` to promote a version; without one every version passes. Models, settings and slices
            are compared by its metric, and without one by the task's first: see the table of metrics.
        max_latency_us_per_row: Another bar: the most microseconds that features and pipeline may take for a row, in
            chunks of [limits] chunk_rows, 10,000 at most, on the machine that trains, with its trees not compiled.
        retrain_every: The age of the version in use from which on `retrain` finds it due, such as 30d.
        explain_top: So many reasons go with each prediction: the columns that add most to its score, or take most from
            it, and how much. For binary tasks and regressions.
    """

    objective: str
    task: Task
    target: str = Field(default="", validate_default=True)
    success: Success | None = None
    max_latency_us_per_row: Number | None = Field(default=None, gt=0)
    retrain_every: Age | None = None
    explain_top: Annotated[Whole, Field(ge=0, le=20)] = 0

    @property
    def supervised(self) -> bool:
        """Whether the task learns from labels."""
        return self.task not in _UNLABELLED

    @property
    def metric(self) -> str:
        """What models are compared by: the metric of `success`, or else the task's first."""
        return self.success.metric if self.success else METRICS[self.task][0]

    @field_validator("target")
    @classmethod
    def _target_where_labels_are(cls, target: str, info: ValidationInfo) -> str:
        task = info.data.get("task")
        if task in _UNLABELLED and target:
            raise ValueError(f"a {task} task has no target; leave it out")
        if task is not None and task not in _UNLABELLED and not target:
            raise PydanticCustomError("missing", "a task with labels has a target")
        return target

    @model_validator(mode="after")
    def _explained(self) -> Self:
        if self.explain_top and self.task not in ("binary", "regression"):
            raise ValueError(f"explain_top explains the one score of a binary task or a regression, not {self.task}")
        return self

    @model_validator(mode="after")
    def _measured(self) -> Self:
        known = METRICS[self.task]
        if self.success is not None and (metric := self.success.metric) not in known:
            guess = f" Did you mean {near}?" if (near := nearest(metric, known)) else ""
            raise ValueError(
                f"success.metric {metric!r} is not measured for {self.task}.{guess} Known here: {', '.join(known)}."
            )
        if self.success is not None and (wrong := self.success.wrong_way()):
            raise ValueError(wrong)
        return self
