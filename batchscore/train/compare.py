"""Two versions of a model beside each other, on the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import polars as pl

from batchscore.errors import SchemaMismatch, TrainingError, UsageError
from batchscore.interval import Interval
from batchscore.job import Job
from batchscore.model.bootstrap import ahead, defined, intervals, resampled
from batchscore.model.bundle import Bundle
from batchscore.model.evaluation import Measured
from batchscore.problem import better
from batchscore.schema import Schema
from batchscore.sources import Source
from batchscore.train.evaluate import blocks_of
from batchscore.train.fit import predicted
from batchscore.train.measure import of_predictions
from batchscore.train.rows import read_rows, with_labels

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Metrics of two versions on the same rows.

    Attributes:
        rows: How many rows with a label there were, that both take.
        one: The one's metrics, with their intervals.
        other: The other's.
        ahead: By how much the other is better than the one, metric by metric; above 0 it is, whichever way the metric
            goes. Metrics that are good neither way are left out.
    """

    rows: int
    one: Mapping[str, Measured]
    other: Mapping[str, Measured]
    ahead: Mapping[str, Measured]


def compare(job: Job, one: Bundle, other: Bundle, rows: Source, labels: Source, window: Interval) -> Comparison:
    """Score the rows of a window with both versions, each by its own features, and measure.

    A row that a run of either would reject for what its columns hold is left out.

    Raises:
        UsageError: They do not answer the same question.
        TrainingError: The window has no row with a label, or a version fails on one.
        SchemaMismatch: The rows lack a column that a version reads.
    """
    asked = (one.manifest.problem.task, one.manifest.problem.target)
    if asked != (other.manifest.problem.task, other.manifest.problem.target):
        raise UsageError(f"{one} and {other} do not predict the same, and cannot be compared.")
    given = read_rows(job, rows, window)
    labelled = with_labels(job, labels, window, Schema.of(given), given)
    for bundle in (one, other):
        with SchemaMismatch.unquoted(rows.private, rows.where):
            odd = bundle.schema.surprises(bundle.schema.conform(labelled, rows.where))["row"]
        labelled = labelled.filter(~pl.int_range(labelled.height, dtype=pl.UInt32, eager=True).is_in(odd.implode()))
    if labelled.is_empty():
        raise TrainingError(f"{rows.where} gives no row for {window} with a label that both versions take.")
    target = labelled[job.problem.target]
    blocks, _ = blocks_of(job, labelled)
    found = []
    for bundle in (one, other):
        predictor = replace(bundle.predictor, explainer=None, quote=job.source.quotable)
        predictions = predicted(predictor, bundle.schema.conform(labelled, rows.where))
        drawn = resampled(predictor, predictions, target, blocks)
        measured = defined(of_predictions(predictor, predictions, predictions, target))
        found.append((measured, intervals(measured, drawn), drawn))
    (mine, _, my_draws), (_, theirs, their_draws) = found
    lead = {
        name: ahead(name, theirs, their_draws, mine, my_draws)
        for name in theirs
        if name in mine and better(name) is not None
    }
    return Comparison(labelled.height, found[0][1], theirs, lead)
