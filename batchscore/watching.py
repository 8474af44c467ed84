"""`[drift]`, `[performance]` and `[alerts]`: what is watched of published runs, and what is told of it, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from batchscore.problem import Age, Number, Table, Whole

__all__ = ["REFERENCES", "Alerting", "Evaluating", "Persist", "Reference", "Watching"]

Reference = Literal["training", "previous", "last_week", "four_weeks"]
REFERENCES: tuple[Reference, ...] = get_args(Reference)
Judged = Literal["psi", "ks", "null_share", "unseen_share", "outside_share", "staleness", "domain_auc"]


# As `drift.MINIMUM_ROWS`, which this layer does not know.
_FEWEST_ROWS = 200


class Persist(Table):
    """How often a metric must have moved before it is told.

    Attributes:
        runs: So many runs,
        of: of so many last ones, this one among them.
    """

    runs: Whole = Field(default=1, ge=1)
    of: Whole = Field(default=1, ge=1, le=366)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.runs > self.of:
            raise ValueError(f"{self.runs} of {self.of} runs is more than all of them")
        return self


class Watching(Table):
    """What is told of how runs differ; all of it is measured and kept whatever is told.

    Attributes:
        against: What a run is compared with before something is told: the rows of `training`; the `previous` run; the
            run a week before, `last_week`; the runs of the last 28 days at the same time of day, `four_weeks`. Only
            runs of the same bundle are compared.
        alpha: The chance, for each metric, that any column of a run is called moved without drift.
        bands: The effect at which a metric counts, where it is not the usual one.
        persist: How often it must have moved.
        least_importance: Columns that the model loses less by, as a share of what it loses by the most important one,
            are not told. A column that is none of the features has no importance, and is told.
        sample: So many rows of each side, for a classifier that is to tell them apart by all columns together: the
            metric `domain_auc` against each reference in `against`. 0 leaves it out. Rows of runs are read from the
            source once more; where they do not come within a minute, the metric is left out of that run. Training keeps
            so many of its rows in the bundle: for `training`, set it before `train`. Neither has the key, instants or
            private columns.
    """

    against: tuple[Reference, ...] = Field(default=("training",), min_length=1)
    alpha: Number = Field(default=0.01, gt=0, lt=1)
    bands: Mapping[Judged, Number] = Field(default_factory=dict)
    persist: Persist = Persist()
    least_importance: Number = Field(default=0.0, ge=0, le=1)
    sample: Whole = Field(default=0, ge=0, le=100_000)

    @model_validator(mode="after")
    def _sample_enough(self) -> Self:
        if 0 < self.sample < _FEWEST_ROWS:
            raise ValueError(
                f"sample: {self.sample} rows are fewer than the {_FEWEST_ROWS} that are judged; 0 is for none"
            )
        return self

    @model_validator(mode="after")
    def _bands_above_zero(self) -> Self:
        if low := [name for name, band in self.bands.items() if band <= 0]:
            raise ValueError(f"bands: {low[0]} must be above 0")
        return self


class Evaluating(Table):
    """How published predictions are held against labels.

    Attributes:
        mature: The share of a window's predictions whose label must be known before its metrics are compared with any
            others; until then they are shown as `immature`. Rows that never get a label count as not known.
        known_at: A column of the labels, an instant, that says when each became known; with it metrics are kept by that
            time too. A label with NULL there counts as known in the interval of its prediction.
        slices: Columns of the output table, key or carried, whose values metrics are kept for one by one: of each
            interval the 50 most frequent.
    """

    mature: Number = Field(default=0.9, ge=0, le=1)
    known_at: str | None = None
    slices: tuple[str, ...] = ()


class Alerting(Table):
    """Of what somebody is told, and how.

    Each alert is told once when it begins to fire, again after `repeat` while it goes on, and once when it has
    recovered, and by what: in the log, to the webhook that `BATCHSCORE_ALERT_WEBHOOK_URL` names, and by `command`.

    Attributes:
        on: What makes an alert fire. `failed`: a run failed, or a gate holds it, for each interval until that is
            published. `drift`: in the run of the latest published interval a column has moved so that `[drift]` wants
            it told, for each column. `performance`: in the latest interval that can be compared some metric is worse
            than on the test rows, as measured against labels by `evaluate`, or as estimated without.
        command: A program and its arguments, run without a shell and without the variables `BATCHSCORE_…`. It gets the
            notice as JSON on standard input, and 10 seconds; what it prints goes to standard error.
        repeat: After how long an alert that still fires is told again. Of an interval that failed, and behind which a
            later one is published by now, for the first 28 days alone; it goes on firing, and `alerts list` shows it.
    """

    on: tuple[Literal["failed", "drift", "performance"], ...] = ("failed", "drift", "performance")
    command: tuple[str, ...] = ()
    repeat: Age = "7d"
