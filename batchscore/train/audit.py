"""What the data look like before anything learns from them: what is missing, doubled, odd, or knows too much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
import polars.selectors as cs
from sklearn.metrics import r2_score, roc_auc_score

from batchscore.errors import TrainingError
from batchscore.job import Job
from batchscore.model.evaluation import Finding
from batchscore.recipe import Audit, Check

__all__ = ["audit", "refuse"]

# Numbers are looked at in bins of about equal numbers of rows; a single column that tells the target shows in these.
_BINS = 64
# Below these a share or an AUC says little.
_FEWEST = 30
_MOST_CLASSES = 20


def audit(job: Job, rows: pl.DataFrame) -> list[Finding]:
    """Everything worth telling of training rows, the suspects first.

    Args:
        job: The job; it has `[training]`.
        rows: The training rows with their target, if the task has one. Test rows are none of its business.
    """
    bounds = job.training.audit if job.training else Audit()
    inputs = [name for name in rows.columns if name not in (*job.source.key, job.problem.target)]
    found = [*_duplicates(rows.select(inputs), bounds), *_columns(rows.select(inputs), bounds)]
    if job.problem.target:
        found += _about_target(rows.select(inputs), rows[job.problem.target], job.problem.task == "regression", bounds)
    return sorted(found, key=lambda finding: not finding.suspect)


def refuse(found: Sequence[Finding], audit: Audit) -> None:
    """Stop at suspects of the checks that the job refuses.

    Raises:
        TrainingError: There are some; all of them are listed.
    """
    refused = [finding for finding in found if finding.suspect and finding.check in audit.refuse]
    if refused:
        listed = "\n".join(f"  {finding.check}: {finding.told}" for finding in refused)
        raise TrainingError(
            f"the audit of the training rows finds what [training] audit refuses:\n{listed}\n"
            "Mend the rows in the SQL, raise the check's bound, or take the check out of refuse."
        )


def _duplicates(inputs: pl.DataFrame, bounds: Audit) -> Iterator[Finding]:
    doubled = inputs.height - inputs.unique().height if inputs.width else 0
    if doubled:
        told = f"{doubled:,} of {inputs.height:,} rows are like another in all but the key"
        share = doubled / inputs.height
        yield _finding("duplicates", None, share, share >= bounds.duplicates, told)


def _columns(inputs: pl.DataFrame, bounds: Audit) -> Iterator[Finding]:
    for column in inputs.iter_columns():
        name, kept = column.name, column.drop_nulls()
        if column.null_count():
            share = column.null_count() / len(column)
            yield _finding(
                "missing", name, share, share >= bounds.missing, f"{name} is NULL in {share:.1%} of the rows"
            )
        if kept.n_unique() <= 1:
            held = f"{kept[0]!r}" if len(kept) else "NULL"
            yield _finding(
                "constant", name, 1.0, True, f"{name} is {held} in every row{' that has it' * bool(len(kept))}"
            )
        elif column.dtype.is_numeric():
            yield from _outliers(kept.cast(pl.Float64), bounds)


def _outliers(kept: pl.Series, bounds: Audit) -> Iterator[Finding]:
    """Values beyond 1.5 interquartile ranges from the quartiles (Tukey, "Exploratory Data Analysis", 1977)."""
    values = kept.filter(kept.is_finite()).to_numpy()
    if not len(values):
        return
    low, high = np.quantile(values, [0.25, 0.75])
    reach = 1.5 * (high - low)
    # A column that is one number in half of its rows or more has no spread to judge by.
    share = float(((values < low - reach) | (values > high + reach)).mean()) if reach > 0 else 0.0
    if share:
        told = f"{kept.name} is beyond {low - reach:g} to {high + reach:g} in {share:.1%} of the rows: it goes from "
        told += f"{values.min():g} to {values.max():g}"
        yield _finding("outliers", kept.name, share, share >= bounds.outliers, told)


def _about_target(inputs: pl.DataFrame, target: pl.Series, numeric: bool, bounds: Audit) -> Iterator[Finding]:
    if not numeric:
        shares = target.value_counts(sort=True, normalize=True)
        rarest, share = shares.row(-1)
        told = f"{target.name} = {rarest!r} in {share:.1%} of the rows"
        yield _finding("imbalance", None, share, share < bounds.rare_class, told)
    if inputs.height < _FEWEST:
        return
    outcomes = _outcomes(target, numeric)
    measure = "R²" if numeric else "AUC"
    for column in inputs.iter_columns():
        name = column.name
        alone = max(_told_by(_grouped(column), outcome, numeric) for outcome in outcomes)
        if alone >= bounds.leak:
            told = f"{name} alone tells {target.name} ({measure} {alone:.3f}): is it known when the row is scored?"
            yield _finding("leak", name, alone, True, told)
        if column.null_count():
            nulls = max(_told_by(column.is_null().cast(pl.UInt32), outcome, numeric) for outcome in outcomes)
            if nulls >= bounds.null_pattern:
                told = f"where {name} is NULL tells {target.name} ({measure} {nulls:.3f}): is it filled in afterwards?"
                yield _finding("null_pattern", name, nulls, True, told)


def _outcomes(target: pl.Series, numeric: bool) -> list[pl.Series]:
    """The target as numbers: itself, or one 0/1 for each class (one of two classes says all of the other)."""
    if numeric:
        return [target.cast(pl.Float64).rename("outcome")]
    classes = target.value_counts(sort=True)[target.name].head(_MOST_CLASSES)
    chosen = classes[:1] if len(classes) == 2 else classes
    return [(target == label).cast(pl.Float64).rename("outcome") for label in chosen]


def _grouped(column: pl.Series) -> pl.Series:
    """Each row's category, or the bin of its number; NULL is one of its own."""
    if column.dtype.is_numeric() or column.dtype.is_temporal():
        values = column.to_physical().cast(pl.Float64).fill_nan(None)
        known = values.drop_nulls().to_numpy()
        edges = np.unique(np.quantile(known, np.arange(1, _BINS) / _BINS)) if len(known) else known
        binned = np.searchsorted(edges, values.fill_null(np.inf).to_numpy(), side="left")
        return pl.Series(np.where(values.is_null().to_numpy(), -1, binned))
    return column.cast(pl.String).fill_null("\0")


def _told_by(groups: pl.Series, outcome: pl.Series, numeric: bool) -> float:
    """AUC or R² of the outcome's mean by group, taken from the rows of the other half.

    Out of fold, because the mean over a group of one row is that row's outcome.
    """
    frame = pl.DataFrame({"group": groups, "outcome": outcome}).with_row_index()
    half = pl.col("index") % 2 == 0
    guesses = []
    for learns, told in ((half, ~half), (~half, half)):
        means = frame.filter(learns).group_by("group").agg(guess=pl.col("outcome").mean())
        overall = frame.filter(learns)["outcome"].mean()
        guesses.append(
            frame.filter(told).join(means, on="group", how="left").with_columns(cs.by_name("guess").fill_null(overall))
        )
    together = pl.concat(guesses)
    truth, guess = together["outcome"].to_numpy(), together["guess"].to_numpy()
    if numeric:
        return float(r2_score(truth, guess))
    return float(roc_auc_score(truth, guess)) if 0 < truth.sum() < len(truth) else 0.0


def _finding(check: Check, column: str | None, value: float, suspect: bool, told: str) -> Finding:
    return Finding(check=check, column=column, value=value, suspect=suspect, told=told)
