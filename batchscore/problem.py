"""The statement of the problem: what the model is for, and which metric says whether it is good enough."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from batchscore.errors import nearest

__all__ = ["METRICS", "REASON", "Number", "Problem", "Success", "Table", "Task", "Whole"]

Task = Literal["binary", "multiclass", "regression"]

METRICS: dict[Task, tuple[str, ...]] = {
    "binary": ("roc_auc", "average_precision", "brier", "log_loss", "accuracy", "base_rate"),
    "multiclass": ("accuracy", "balanced_accuracy", "f1_macro", "log_loss"),
    "regression": ("mae", "rmse", "r2", "median_error"),
}
"""Which metrics each task has; a job's `success.metric` is one of them.

Attributes:
    roc_auc: Area under the ROC curve.
    average_precision: Precision averaged over recall.
    brier: Mean squared difference of score and outcome; lower is better.
    log_loss: Mean negative log-likelihood; lower is better.
    accuracy: Share of rows whose class is predicted.
    base_rate: Share of rows of the second class: a fact of the labels, not of the model.
    balanced_accuracy: Recall averaged over the classes that the labels have.
    f1_macro: F1 averaged over the classes.
    mae: Mean absolute error, in the target's unit; lower is better.
    rmse: Root of the mean squared error, in the target's unit; lower is better.
    r2: Share of the target's variance that is explained.
    median_error: Median absolute error, in the target's unit; lower is better.
"""

REASON = "reason_"
"""What the names of the columns begin with that say why a row has its score."""

_LOWER = {"brier", "log_loss", "mae", "rmse", "median_error"}
# A fact of the labels is good neither way.
_HIGHER = {metric for known in METRICS.values() for metric in known} - _LOWER - {"base_rate"}

# pydantic would take "1000" for a number, and true for 1.
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


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
        target: The column of the labels to predict.
        success: The bar for `train` to promote a version; without one every version passes.
        explain_top: So many reasons go with each prediction: the columns that add most to its score, or take most from
            it, and how much. Not for a multiclass task.
    """

    objective: str
    task: Task
    target: str
    success: Success | None = None
    explain_top: Annotated[Whole, Field(ge=0, le=20)] = 0

    @model_validator(mode="after")
    def _explained(self) -> Self:
        if self.explain_top and self.task == "multiclass":
            raise ValueError("explain_top explains one score a row, and a multiclass task has one for each class")
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
