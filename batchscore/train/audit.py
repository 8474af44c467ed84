"""What the data look like before anything learns from them: what is missing, doubled, odd, or knows too much."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from batchscore.errors import TrainingError
from batchscore.job import Job
from batchscore.model.evaluation import Finding
from batchscore.recipe import Audit, Check

__all__ = ["audit", "refuse"]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

# Numbers are looked at in bins of about equal numbers of rows; a single column that tells the target shows in these.
_BINS = 64
# Below these a share or an AUC says little.
_FEWEST, _FEWEST_OF_CLASS = 30, 5
_MOST_CLASSES = 20


def audit(job: Job, rows: pl.DataFrame) -> list[Finding]:
    """Everything worth telling of training rows, the suspects first.

    Args:
        job: The job; it has `[training]`.
        rows: The training rows with their target, if the task has one. Test rows are none of its business.
    """
    bounds, private = job.training.audit if job.training else Audit(), job.source.private
    inputs = [name for name in rows.columns if name not in (*job.source.key, job.problem.target)]
    found = [*_duplicates(rows.select(inputs), bounds), *_columns(rows.select(inputs), bounds, private)]
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
            "Mend the rows at the source, raise the check's bound, or take the check out of refuse."
        )


def _duplicates(inputs: pl.DataFrame, bounds: Audit) -> Iterator[Finding]:
    doubled = inputs.height - inputs.unique().height if inputs.width else 0
    if doubled:
        told = f"{doubled:,} of {inputs.height:,} rows are like another in all but the key"
        share = doubled / inputs.height
        yield _finding("duplicates", None, share, share >= bounds.duplicates, told)


def _columns(inputs: pl.DataFrame, bounds: Audit, private: Collection[str]) -> Iterator[Finding]:
    for column in inputs.iter_columns():
        name, kept = column.name, column.drop_nulls()
        if column.null_count():
            share = column.null_count() / len(column)
            yield _finding(
                "missing", name, share, share >= bounds.missing, f"{name} is NULL in {share:.1%} of the rows"
            )
        if kept.n_unique() <= 1:
            held = "NULL" if kept.is_empty() else "the same" if name in private else f"{kept[0]!r}"
            yield _finding(
                "constant", name, 1.0, True, f"{name} is {held} in every row{' that has it' * bool(len(kept))}"
            )
        elif column.dtype.is_numeric():
            yield from _outliers(kept.cast(pl.Float64), bounds, quote=name not in private)


def _outliers(kept: pl.Series, bounds: Audit, *, quote: bool) -> Iterator[Finding]:
    """Values beyond 1.5 interquartile ranges from the quartiles (Tukey, "Exploratory Data Analysis", 1977)."""
    values = kept.filter(kept.is_finite()).to_numpy()
    if not len(values):
        return
    low, high = np.quantile(values, [0.25, 0.75])
    reach = 1.5 * (high - low)
    # A column that is one number in half of its rows or more has no spread to judge by.
    share = float(((values < low - reach) | (values > high + reach)).mean()) if reach > 0 else 0.0
    if share:
        told = f"{kept.name} has outliers in {share:.1%} of the rows"
        if quote:
            told = f"{kept.name} is beyond {low - reach:g} to {high + reach:g} in {share:.1%} of the rows: it goes "
            told += f"from {values.min():g} to {values.max():g}"
        yield _finding("outliers", kept.name, share, share >= bounds.outliers, told)


def _about_target(inputs: pl.DataFrame, target: pl.Series, numeric: bool, bounds: Audit) -> Iterator[Finding]:
    if not numeric:
        shares = target.alias("class").value_counts(sort=True, normalize=True)
        rarest, share = shares.row(-1)
        told = f"{target.name} = {rarest!r} in {share:.1%} of the rows"
        yield _finding("imbalance", None, share, share < bounds.rare_class, told)
    if inputs.height < _FEWEST:
        return
    half, outcomes = _halves(target), _outcomes(target, numeric)
    measure = "R²" if numeric else "AUC"
    for column in inputs.iter_columns():
        name, groups = column.name, _grouped(column)
        alone = max((_told_by(groups, half, outcome, numeric) for outcome in outcomes), default=0.0)
        if numeric and outcomes and column.dtype.is_numeric():
            # A long tail lies in one bin.
            alone = max(alone, _line(column, outcomes[0]))
        if alone >= bounds.leak:
            told = f"{name} alone tells {target.name} ({measure} {alone:.3f}): is it known when the row is scored?"
            yield _finding("leak", name, alone, True, told)
        if column.null_count():
            nulls = column.is_null().to_numpy().astype(np.int64)
            known = max((_told_by(nulls, half, outcome, numeric) for outcome in outcomes), default=0.0)
            if known >= bounds.null_pattern:
                told = f"where {name} is NULL tells {target.name} ({measure} {known:.3f}): is it filled in afterwards?"
                yield _finding("null_pattern", name, known, True, told)


def _halves(target: pl.Series) -> Indices:
    """The half, 0 or 1, of each row: drawn, with as much of every class, or of large and small targets, in both."""
    drawn = np.random.default_rng(0).permutation(len(target))
    order = drawn[target.gather(drawn).arg_sort().to_numpy()]
    half = np.empty(len(target), dtype=np.int64)
    half[order] = np.arange(len(target)) % 2
    return half


def _outcomes(target: pl.Series, numeric: bool) -> list[Floats]:
    """The target as numbers: itself, or one 0/1 for each class (one of two classes says all of the other)."""
    if numeric:
        values = target.cast(pl.Float64).to_numpy()
        # Centred and scaled, for what is summed are squares.
        return [(values - values.mean()) / spread] if (spread := values.std()) > 0 else []
    counted = target.alias("class").value_counts(sort=True).filter(pl.col("count") >= _FEWEST_OF_CLASS)
    classes = counted["class"].head(_MOST_CLASSES)
    chosen = classes[:1] if target.n_unique() == 2 and len(classes) == 2 else classes
    return [(target == label).cast(pl.Float64).to_numpy() for label in chosen] if target.n_unique() > 1 else []


def _grouped(column: pl.Series) -> Indices:
    """The number of each row's category, or of the bin that its number lies in; NULL is one of its own."""
    if not (column.dtype.is_numeric() or column.dtype.is_temporal()):
        return column.rank("dense").fill_null(0).to_numpy().astype(np.int64)
    values = column.to_physical().cast(pl.Float64).fill_nan(None)
    known = values.drop_nulls().to_numpy()
    cuts = np.quantile(known, np.arange(1, _BINS) / _BINS, method="lower") if len(known) else known
    edges, times = np.unique(cuts, return_counts=True)
    given = values.fill_null(np.inf).to_numpy()
    # A number that fills bins is one by itself: most rows may hold it, and the few others know something.
    below = np.searchsorted(edges[times > 1], given, side="right")
    return np.where(values.is_null().to_numpy(), 0, np.searchsorted(edges, given, side="left") + below + 1)


def _told_by(groups: Indices, half: Indices, outcome: Floats, numeric: bool) -> float:
    """AUC or R² of the outcome's mean by group, taken from the rows of the other half.

    Out of fold, because the mean over a group of one row is that row's outcome.
    """
    cells = groups * 2 + half
    size = 2 * (int(groups.max()) + 1)
    rows = np.bincount(cells, minlength=size).reshape(-1, 2)
    sums = np.bincount(cells, outcome, minlength=size).reshape(-1, 2)
    # A group that the other half lacks is taken to be like that half.
    guess = np.where(rows > 0, sums / np.maximum(rows, 1), sums.sum(axis=0) / rows.sum(axis=0))[:, ::-1]
    if numeric:
        squares = float(outcome @ outcome)
        return 1 - (squares - 2 * float((guess * sums).sum()) + float((guess**2 * rows).sum())) / squares
    _, place = np.unique(guess.ravel(), return_inverse=True)
    hits, others = np.bincount(place, sums.ravel()), np.bincount(place, (rows - sums).ravel())
    below = np.cumsum(others) - others / 2
    return float(hits @ below) / float(hits.sum() * others.sum())


def _line(column: pl.Series, outcome: Floats) -> float:
    """R² of a straight line through an outcome that is centred and scaled; what is no finite number is the mean."""
    values = column.cast(pl.Float64).to_numpy()
    finite = np.isfinite(values)
    if not finite.any():
        return 0.0
    off = np.where(finite, values, 0.0) / max(1.0, float(np.abs(values[finite]).max()))
    off = np.where(finite, off - off[finite].mean(), 0.0)
    spread = float(off @ off)
    return min(1.0, float(off @ outcome) ** 2 / (spread * float(outcome @ outcome))) if spread > 0 else 0.0


def _finding(check: Check, column: str | None, value: float, suspect: bool, told: str) -> Finding:
    return Finding(check=check, column=column, value=value, suspect=suspect, told=told)
