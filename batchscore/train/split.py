"""Which rows are held out, and how the others are cut into folds, decided before anything is fitted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn import model_selection as sk

from batchscore.errors import TrainingError
from batchscore.recipe import Folds, Split, Training
from batchscore.schema import type_name

__all__ = ["Parts", "check_times", "folds", "split"]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Parts:
    """The labelled rows, each in one part, in the order they came in.

    Attributes:
        train: All that learns is fitted on these.
        validation: What is chosen is chosen on these; empty where nothing is.
        test: The model is measured on these, once.
    """

    train: pl.DataFrame
    validation: pl.DataFrame
    test: pl.DataFrame


def split(rows: pl.DataFrame, how: Split, stratify: str | None = None) -> Parts:
    """Cut the rows in three.

    By time the test rows are the last share, all from one instant on, so rows of the same instant stay together, and
    the validation rows are those before them. At random and by group the shares are drawn with the seed.

    Args:
        rows: Shape `(rows, columns)`.
        how: The job's `[training] split`.
        stratify: A column whose values keep their shares in every part, when it goes at random.

    Raises:
        TrainingError: A part would be empty, the time column is no time, the column has NULLs, or a class has one row,
            or a part fewer rows than there are classes.
    """
    # Of the rows before the test, so that both shares are of the whole.
    rest = how.validation / (1 - how.test)
    before, test = _cut(rows, how, how.test, stratify)
    train, validation = _cut(before, how, rest, stratify) if how.validation else (before, before.clear())
    if train.is_empty() or test.is_empty() or (how.validation and validation.is_empty()):
        asked = f", {validation.height} to choose by" if how.validation else ""
        raise TrainingError(
            f"the split leaves {train.height} rows to fit on{asked} and {test.height} to test on, of {rows.height} "
            "labelled. Widen the training window, or change [training] split."
        )
    return Parts(train, validation, test)


def _cut(rows: pl.DataFrame, how: Split, share: float, stratify: str | None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows that stay, and the share of them that is held out."""
    if how.by == "time":
        late = _late(rows, str(how.column), share)
    elif how.by == "group":
        late = _drawn_groups(rows, str(how.column), share, how.seed)
    else:
        late = _drawn(rows, share, how.seed, stratify)
    return rows.filter(~late), rows.filter(late)


def _late(rows: pl.DataFrame, column: str, share: float) -> pl.Series:
    times = _times(rows, column, "split")
    if times.is_empty():
        return pl.Series([], dtype=pl.Boolean)
    first = times.sort()[-max(1, round(len(times) * share))]
    late: pl.Series = times >= first
    return late


def _drawn(rows: pl.DataFrame, share: float, seed: int, stratify: str | None) -> pl.Series:
    count = round(rows.height * share)
    if not 0 < count < rows.height:
        return pl.repeat(count > 0, rows.height, dtype=pl.Boolean, eager=True)
    classes = None if stratify is None else rows[stratify].to_numpy()
    try:
        _, drawn = sk.train_test_split(np.arange(rows.height), test_size=count, random_state=seed, stratify=classes)
    except ValueError as error:
        shown = rows[str(stratify)].alias("class").value_counts(sort=True)
        rare, times = shown.row(-1)
        raise TrainingError(
            f"{rows.height} rows cannot be split with every class in each part: {stratify} = {rare!r} has {times} of "
            "them. Widen the training window, or leave the class out of the labels."
        ) from error
    return pl.Series(np.isin(np.arange(rows.height), drawn))


def _drawn_groups(rows: pl.DataFrame, column: str, share: float, seed: int) -> pl.Series:
    groups = _groups(rows, column, "split")
    names = groups.unique().sort()
    count = round(len(names) * share)
    drawn = np.random.default_rng(seed).permutation(len(names))[:count]
    return groups.is_in(names.gather(drawn.tolist()).implode())


def folds(rows: pl.DataFrame, how: Folds, target: str) -> list[tuple[Indices, Indices]]:
    """Rows to fit on and rows to measure on, as positions, for each fold.

    Args:
        rows: The training rows with their target.
        how: The job's `[training] cross_validation`.
        target: The target's column; empty for a task without one.

    Raises:
        TrainingError: There are fewer rows, groups, instants, or rows of a class than folds, or the column is not what
            it must be.
    """
    if how.by == "leave-one-out" and rows.height < 2:
        raise TrainingError(f"{rows.height} training row cannot be left out one by one. Widen the training window.")
    try:
        return list(_folds(rows, how, target))
    except ValueError as error:
        # Its messages name n_splits and how many there are.
        told = str(error).rstrip(".")
        raise TrainingError(
            f"{rows.height} training rows cannot be cut into {how.folds} folds ({how.by}): {told}. Lower [training] "
            "cross_validation folds, or widen the training window."
        ) from error


def _folds(rows: pl.DataFrame, how: Folds, target: str) -> Iterator[tuple[Indices, Indices]]:
    positions = np.arange(rows.height)
    match how.by:
        case "k-fold":
            yield from sk.KFold(how.folds, shuffle=True, random_state=how.seed).split(positions)
        case "stratified":
            labels = rows[target].to_numpy()
            if (rarest := int(np.unique(labels, return_counts=True)[1].min())) < how.folds:
                # scikit-learn only warns, and leaves the class out of some folds.
                raise ValueError(f"the rarest class of {target} has {rarest} rows")
            yield from sk.StratifiedKFold(how.folds, shuffle=True, random_state=how.seed).split(positions, labels)
        case "group":
            groups = _groups(rows, str(how.column), "cross_validation").rank("dense").to_numpy()
            yield from sk.GroupKFold(how.folds).split(positions, groups=groups)
        case "time":
            # Rows of an instant stay together, as in the split.
            number = _times(rows, str(how.column), "cross_validation").rank("dense").to_numpy() - 1
            instants = np.arange(int(number.max()) + 1)
            cuts: Any = sk.TimeSeriesSplit(how.folds).split(instants)
            yield from ((positions[np.isin(number, fit)], positions[np.isin(number, test)]) for fit, test in cuts)
        case "leave-one-out":
            yield from sk.LeaveOneOut().split(positions)


def check_times(training: Training, rows: pl.DataFrame) -> None:
    """Refuse rows whose column to cut by time is no date or timestamp; one of NULLs alone may still become one.

    Args:
        training: The job's `[training]`.
        rows: Shape `(rows, columns)`, with every column that it names.

    Raises:
        TrainingError: There is such a column.
    """
    for place, how in (("split", training.split), ("cross_validation", training.cross_validation)):
        if how is not None and how.by == "time" and rows[str(how.column)].dtype != pl.Null():
            _check_time(rows[str(how.column)], place)


def _check_time(times: pl.Series, place: str) -> None:
    if not times.dtype.is_temporal():
        raise TrainingError(
            f"[training] {place}: column {times.name!r} is {type_name(times.dtype) or times.dtype}, and must be a date "
            "or timestamp. Cast it in the query; in SQLite declare it DATE or DATETIME in its table, for an expression "
            "is read as text there."
        )


def _times(rows: pl.DataFrame, column: str, place: str) -> pl.Series:
    times = rows[column]
    if nulls := times.null_count():
        raise TrainingError(
            f"[training] {place}: column {column!r} is NULL in {nulls} of {rows.height} rows, which are of no time "
            "then. Fill it at the source, or leave these rows out."
        )
    _check_time(times, place)
    return times


def _groups(rows: pl.DataFrame, column: str, place: str) -> pl.Series:
    groups = rows[column]
    if groups.null_count():
        raise TrainingError(
            f"[training] {place}: column {column!r} is NULL in {groups.null_count()} of {rows.height} rows, which "
            "belong to no group then. Fill it at the source."
        )
    return groups
