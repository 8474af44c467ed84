"""The recipe of a model: its rows, which of them are held out, what is searched, chosen and looked at."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from batchscore.problem import Age, Number, Seed, Table, Whole

__all__ = ["Audit", "Check", "Condition", "Folds", "Moment", "Retrain", "Search", "Split", "Threshold", "Training"]

Check = Literal["duplicates", "missing", "constant", "outliers", "imbalance", "leak", "null_pattern"]


_AGE = re.compile(r"\d{1,9}[hdw]")


def _moment(value: object) -> object:
    # pydantic takes a number for seconds since 1970, and tells a text that is no date once for each type.
    if isinstance(value, str):
        with suppress(ValueError):
            value = date.fromisoformat(value) if len(value) == 10 else datetime.fromisoformat(value)
    if not isinstance(value, date):
        raise ValueError("write a date, such as 2013-10-01")  # noqa: TRY004 - pydantic collects ValueErrors
    return value


Moment = Annotated[date | datetime, BeforeValidator(_moment)]


class Split(Table):
    """Which training rows are held out: the last by time, a random share, or a random share of groups.

    At random, the classes of a classification keep their shares in every part.

    Attributes:
        by: How rows are chosen.
        column: With `by = "time"`: a date or timestamp column of the rows. With `by = "group"`: the column whose
            values stay together.
        validation: The share of rows by which something is chosen: a threshold, a calibration, the best of a search, a
            point of a curve. By time they are those just before the test.
        test: The share of rows that the model is measured on, once.
        seed: With `by = "random"` and `by = "group"`: what the draw starts from.
    """

    by: Literal["time", "random", "group"]
    column: str | None = None
    validation: Number = Field(default=0.0, ge=0, lt=1)
    test: Number = Field(default=0.2, gt=0, lt=1)
    seed: Seed = 0

    @model_validator(mode="after")
    def _column_where_one_is_read(self) -> Self:
        if (self.by == "random") != (self.column is None):
            raise ValueError("column goes with by = 'time' or 'group', and only with them")
        return self

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together leave no row to fit on: make their sum less than 1")
        return self


class Folds(Table):
    """How training rows are cut for cross-validation; it measures, and with a search it chooses too.

    Attributes:
        by: `k-fold`, at random; `stratified`, which keeps the classes' shares; `group`, which keeps the rows of a group
            together; `time`, where the rows measured on come after those fitted on; `leave-one-out`.
        column: With `group`: the groups' column. With `time`: a date or timestamp column of the rows.
        folds: How many; not for leave-one-out. By time there are so many, and the oldest rows are only fitted on.
        seed: With `k-fold` and `stratified`: what the draw starts from.
    """

    by: Literal["k-fold", "stratified", "group", "time", "leave-one-out"]
    column: str | None = None
    folds: Whole = Field(default=5, ge=2)
    seed: Seed = 0

    @model_validator(mode="after")
    def _column_where_one_is_read(self) -> Self:
        if (self.by in ("group", "time")) != (self.column is not None):
            raise ValueError("column goes with by = 'group' or 'time', and only with them")
        return self


class Search(Table):
    """How the parameters that `search_space()` names are chosen, by `[problem] success.metric`.

    It goes by cross-validation where the job has that, and by the validation rows otherwise.

    Attributes:
        by: `grid` tries everything, `random` draws candidates, `halving` draws them, tries them on few rows, and goes
            on with the best third and three times the rows until it has them all.
        candidates: How many are drawn.
        seed: What the draw starts from.
    """

    by: Literal["grid", "random", "halving"]
    candidates: Whole = Field(default=20, ge=2)
    seed: Seed = 0


class Threshold(Table):
    """How the score is chosen from which on a row is predicted to be of the second class, on validation rows.

    Attributes:
        by: `f_score`: the largest F-score; `cost`: the least cost of wrong predictions; `rate`: the share of rows
            predicted to be of the second class; where scores are equal, the nearest share that can be.
        beta: With `f_score`: how many times as much recall counts as precision.
        false_positive: With `cost`: what a wrong prediction of the second class costs.
        false_negative: With `cost`: what a row of the second class costs that is not predicted.
        rate: With `rate`: that share.
    """

    by: Literal["f_score", "cost", "rate"]
    beta: Number = Field(default=1.0, gt=0)
    false_positive: Number = Field(default=1.0, ge=0)
    false_negative: Number = Field(default=1.0, ge=0)
    rate: Number | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _rate_where_it_is_read(self) -> Self:
        if (self.by == "rate") != (self.rate is not None):
            raise ValueError("rate goes with by = 'rate', and only with it")
        return self

    def __str__(self) -> str:
        match self.by:
            case "f_score":
                return f"the largest F-score with beta {self.beta:g}"
            case "cost":
                costs = f"{self.false_positive:g} for a false positive, {self.false_negative:g} for a false negative"
                return f"the least cost, at {costs}"
            case _:
                return f"the share of rows nearest to {self.rate:g}"


class Audit(Table):
    """What the data are looked at for before training. Everything is told; what is listed in `refuse` is an error.

    Every column of the rows is looked at but the key, also one that `features()` leaves out.

    Attributes:
        refuse: Checks whose suspects stop the training: `duplicates` (rows alike in all but the key), `missing` (most
            of a column is NULL), `constant`, `outliers` (beyond 1.5 interquartile ranges), `imbalance` (a rare class),
            `leak` (a column tells the target alone), `null_pattern` (where a column is NULL tells the target).
        leak: The AUC, or R² for a regression, of a single column from which on it is a suspect.
        null_pattern: The same for where a column is NULL.
        missing: The share of NULLs from which on a column is a suspect.
        outliers: The same for outliers.
        duplicates: The share of rows like another in all but the key from which on they are suspects.
        rare_class: The share of rows below which a class is one.
    """

    refuse: tuple[Check, ...] = ()
    leak: Number = Field(default=0.95, gt=0, le=1)
    null_pattern: Number = Field(default=0.8, gt=0, le=1)
    missing: Number = Field(default=0.5, gt=0, le=1)
    outliers: Number = Field(default=0.1, gt=0, le=1)
    duplicates: Number = Field(default=0.01, ge=0, le=1)
    rare_class: Number = Field(default=0.05, ge=0, le=1)


class Training(Table):
    """The window `[from, to)` of rows to learn from, in the job's time zone, and what is done with them.

    Attributes:
        from_: The window's first instant.
        to: The first instant behind the window.
        split: What is held out of it.
        cross_validation: How the training rows are cut into folds; not done without it.
        search: How the parameters of `search_space()` are chosen; not done without it.
        threshold: Binary: how the threshold of `prediction` is chosen. Without it the more probable class is predicted.
        calibrate: Binary and multiclass: what is fitted on validation rows to turn scores into probabilities.
        slices: Columns of the rows for whose values the metrics are told: for the 20 of each that are the worst by the
            metric that counts, of those that 30 test rows or more have, the 500 most frequent of these at most.
        audit: What the data are looked at for.
    """

    from_: Moment = Field(alias="from")
    to: Moment
    split: Split
    cross_validation: Folds | None = None
    search: Search | None = None
    threshold: Threshold | None = None
    calibrate: Literal["isotonic", "sigmoid"] | None = None
    slices: tuple[str, ...] = ()
    audit: Audit = Audit()

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the rows that it names, by where it names them."""
        named = {f"slices, {name}": name for name in self.slices}
        for place, cut in (("split", self.split), ("cross_validation", self.cross_validation)):
            if cut is not None and cut.column is not None:
                named[place] = cut.column
        return named

    @model_validator(mode="after")
    def _choices_have_rows(self) -> Self:
        wanting = [name for name in ("threshold", "calibrate") if getattr(self, name) is not None]
        if self.search is not None and self.cross_validation is None:
            wanting.append("search")
        if wanting and not self.split.validation:
            more = " (or cross_validation)" if "search" in wanting else ""
            raise ValueError(f"{wanting[0]} is chosen on validation rows: give split a share of validation{more}")
        return self


class Retrain(Table):
    """What `retrain` goes by, and when the version that it trains takes the place of the one in use.

    Attributes:
        reasons: Each may lead to a training: `drifted`, `degraded`, `older-than=7d`, `new-labels=10000`; see `--if`.
            Without them it is the age of `[problem] retrain_every`.
        over: Drift and metrics are those of so many of the last intervals that the version in use has scored.
        margin: By how much the new version must be better in the metric, on the same rows.
        cooldown: How long after a training there is no other.
    """

    reasons: tuple[str, ...] = ()
    over: Whole = Field(default=7, ge=1)
    margin: Number = Field(default=0.0, ge=0)
    cooldown: Age = "1d"

    @field_validator("reasons")
    @classmethod
    def _known(cls, reasons: tuple[str, ...]) -> tuple[str, ...]:
        for reason in reasons:
            Condition.parse(reason)
        return reasons


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition of `retrain --if`.

    Attributes:
        name: Which.
        bound: The age or the number of labels that it goes by; empty for the others.
    """

    name: Literal["drifted", "degraded", "older-than", "new-labels"]
    bound: str = ""

    @classmethod
    def parse(cls, text: str) -> Condition:
        """What `drifted`, `degraded`, `older-than=7d` or `new-labels=10000` says.

        Raises:
            ValueError: It is none of them.
        """
        name, _, bound = text.strip().partition("=")
        match name, bound:
            case ("drifted" | "degraded") as plain, "":
                return cls(plain)
            case "older-than", _ if _AGE.fullmatch(bound):
                return cls("older-than", bound)
            case "new-labels", _ if bound.isdecimal() and int(bound):
                return cls("new-labels", bound)
        raise ValueError(
            f"{text!r} is no reason to retrain. Known are drifted, degraded, older-than=7d and new-labels=10000. "
            "An age is a number and h, d or w."
        )

    def __str__(self) -> str:
        return f"{self.name}={self.bound}" if self.bound else self.name
