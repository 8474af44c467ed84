"""Performance over longer than an interval: the tallies of several runs, merged, with nothing lost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from statistics import stdev
from typing import Any

import polars as pl

from batchscore.ledger import Run
from batchscore.model.bootstrap import intervals
from batchscore.model.bundle import Bundle
from batchscore.model.evaluation import Bin, Measured
from batchscore.model.tally import Tally
from batchscore.monitor.verdict import FEWEST_ROWS, State, state_of
from batchscore.problem import better

__all__ = ["Pooled", "Sliced", "pooled", "worst_slices"]

_BINS = 10
# From the spread of fewer runs nothing follows for their mean.
_FEWEST_RUNS = 5


@dataclass(frozen=True, slots=True)
class Pooled:
    """Labelled predictions of several runs of one version, together.

    Attributes:
        runs: Those that were held against labels, by interval.
        predictions: Rows predicted in them.
        labelled: Those whose label is known.
        state: Whether they may be compared with others.
        metrics: By name, with 95 % intervals.
        predicted: The mean score of a binary task, the mean prediction of a regression; None for others.
        came: The share of the positive class, or the mean label.
        error: The standard error of their difference, over runs where there are five, for rows of one run are alike.
        bins: Ten bins of equal rows by score, binary only.
    """

    runs: Sequence[Run]
    predictions: int
    labelled: int
    state: State
    metrics: Mapping[str, Measured]
    predicted: float | None
    came: float | None
    error: float | None
    bins: Sequence[Bin]


def pooled(bundle: Bundle, runs: Sequence[Run], rows: Iterable[Mapping[str, Any]], mature: float) -> Pooled | None:
    """Merge what is known of runs that a bundle scored; None where no label of theirs is.

    Args:
        bundle: What scored them.
        runs: By interval.
        rows: Rows of `batchscore_tallies`, of whichever runs.
        mature: The share of the predictions whose label must be known before they are compared.
    """
    predictor = bundle.predictor
    label = predictor.output_types["prediction"]
    ids = {run.run_id for run in runs}
    by_run: dict[str, list[Tally]] = {}
    # One that was held against labels when none was known has an empty tally.
    evaluated = set()
    for row in rows:
        if row["run_id"] not in ids:
            continue
        evaluated.add(row["run_id"])
        if row["labelled"]:
            tally = Tally.from_json(row["tally"], predictor.task, predictor.classes, label)
            by_run.setdefault(row["run_id"], []).append(tally)
    merged = {run_id: reduce(Tally.merge, tallies) for run_id, tallies in by_run.items()}
    if not merged:
        return None
    whole = reduce(Tally.merge, merged.values())
    predicted, came = _means(whole)
    gaps = [b - a for a, b in map(_means, merged.values()) if a is not None and b is not None]
    of = [run for run in runs if run.run_id in evaluated]
    predictions = sum(run.predictions or 0 for run in of)
    return Pooled(
        of,
        predictions,
        whole.rows,
        state_of(whole.rows, predictions, mature),
        intervals(whole.metrics(), whole.resampled()),
        predicted,
        came,
        _error(whole, gaps),
        _bins(whole),
    )


@dataclass(frozen=True, slots=True)
class Sliced:
    """Labelled predictions of several runs of one version, of the rows with one value in a column.

    Attributes:
        column: The column.
        value: Its value.
        predictions: Rows predicted, in those runs in which some of them have a label.
        labelled: Those whose label is known.
        measured: The metric of them, with its 95 % interval.
    """

    column: str
    value: str
    predictions: int
    labelled: int
    measured: Measured


def worst_slices(bundle: Bundle, slices: Iterable[Sequence[Mapping[str, Any]]], metric: str, most: int) -> list[Sliced]:
    """The slices by which a metric is worst, the worst first, of those with 200 labelled rows or more.

    Args:
        bundle: What scored the runs.
        slices: Of one slice each, rows of `batchscore_tallies` of runs of that bundle; only one is held at a time.
        metric: Its name; of one that is good neither way there is no worst.
        most: So many at most.
    """
    if better(metric) is None:
        return []
    predictor = bundle.predictor
    label = predictor.output_types["prediction"]
    found = []
    for some in slices:
        if sum(row["labelled"] for row in some) < FEWEST_ROWS:
            continue
        which = (some[0]["slice_column"], some[0]["slice_value"])
        each = [Tally.from_json(row["tally"], predictor.task, predictor.classes, label) for row in some]
        tally = Tally.merged(each)
        value = tally.metrics().get(metric)
        if value is not None:
            # A run's parts by arrival have all its predictions each.
            predictions = sum({row["run_id"]: row["predictions"] for row in some}.values())
            found.append((value if better(metric) == "higher" else -value, which, predictions, tally))
    found.sort(key=lambda one: (one[0], one[1]))
    return [
        Sliced(*which, predictions, tally.rows, intervals(tally.metrics(), tally.resampled())[metric])
        for _, which, predictions, tally in found[:most]
    ]


def _means(tally: Tally) -> tuple[float | None, float | None]:
    """What was predicted and what came, on average."""
    cells = tally.cells
    if tally.task == "binary":
        came = cells.filter(pl.col("truth") == tally.classes[1])["count"].sum()
        return float(cells["score"].sum()) / tally.rows, float(came) / tally.rows
    if tally.task == "regression":
        return float(cells["prediction"].sum()) / tally.rows, float(cells["truth"].sum()) / tally.rows
    return None, None


def _error(whole: Tally, gaps: Sequence[float]) -> float | None:
    if len(gaps) >= _FEWEST_RUNS:
        return stdev(gaps) / math.sqrt(len(gaps))
    if whole.task == "binary":
        came = _means(whole)[1] or 0.0
        return math.sqrt(came * (1 - came) / whole.rows)
    return None


def _bins(tally: Tally) -> list[Bin]:
    if tally.task != "binary":
        return []
    cells = tally.cells.with_columns(came=pl.when(pl.col("truth") == tally.classes[1]).then("count").otherwise(0))
    by_score = cells.group_by("score_bin").agg(pl.col("score", "count", "came").sum()).sort("score_bin")
    middle = by_score["count"].cum_sum() - by_score["count"] / 2
    tenth = (middle * _BINS / tally.rows).cast(pl.Int64).clip(0, _BINS - 1)
    bins = by_score.with_columns(bin=tenth).group_by("bin").agg(pl.col("score", "count", "came").sum()).sort("bin")
    return [
        Bin(score=row["score"] / row["count"], observed=row["came"] / row["count"], rows=row["count"])
        for row in bins.iter_rows(named=True)
    ]
