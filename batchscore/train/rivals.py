"""Other models on the same test rows: the baselines, and the version in use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from batchscore.errors import TrainingError
from batchscore.job import Job
from batchscore.logs import Event, log
from batchscore.model.bootstrap import Drawn, ahead, defined, intervals, resampled
from batchscore.model.bundle import Bundle
from batchscore.model.evaluation import Measured
from batchscore.model.predictor import Predictor
from batchscore.problem import better
from batchscore.schema import Schema
from batchscore.train.fit import Part, predicted
from batchscore.train.measure import of_predictions

__all__ = ["Rival", "champion_of", "learned_until", "measure"]

# On fewer rows no difference is told.
_FEWEST_ROWS = 30


@dataclass(frozen=True, slots=True)
class Rival:
    """A model to be measured beside the one that was trained.

    Attributes:
        predictor: It, fitted.
        rows: Which test rows it may be measured on, Boolean; all where None.
    """

    predictor: Predictor
    rows: pl.Series | None = None


def champion_of(job: Job, champion: Bundle, schema: Schema, test: Part) -> Rival | None:
    """The version in use, on those test rows that it has not learned from; None where nothing can be compared.

    Where no row has a time, or it was not kept when the version was trained, it is measured on all of them.
    """
    newer = _newer(job, champion, test.rows)
    if why := _obstacle(job, champion, schema, newer):
        log.warning(Event.BASELINE_FAILED, baseline="champion", error=why)
        return None
    return Rival(replace(champion.predictor, explainer=None, quote=job.source.quotable), newer)


def _obstacle(job: Job, champion: Bundle, schema: Schema, newer: pl.Series | None) -> str | None:
    theirs, ours = champion.manifest.problem, job.problem
    if (theirs.task, theirs.target) != (ours.task, ours.target):
        return f"{champion} predicts something else"
    if lacking := [name for name, type_ in champion.schema.types.items() if schema.types.get(name) != type_]:
        return f"{champion} reads {', '.join(lacking)}, which the rows lack or have in another type"
    if newer is not None and newer.sum() < _FEWEST_ROWS:
        return f"{newer.sum()} test rows are newer than those that {champion} learned from, too few to compare by"
    return None


def _newer(job: Job, champion: Bundle, rows: pl.DataFrame) -> pl.Series | None:
    """Which rows are newer than any that the version learned from, Boolean; None where that cannot be told."""
    column, until = _time_column(job, rows), champion.manifest.training.learned_until
    if column is None or until is None:
        return None
    times = rows[column]
    newer: pl.Series = times > (date.fromisoformat(until) if times.dtype == pl.Date else datetime.fromisoformat(until))
    return newer.fill_null(value=False)


def learned_until(job: Job, *rows: pl.DataFrame) -> str | None:
    """The latest time in the rows, as ISO text; None where none has a time."""
    column = _time_column(job, rows[0])
    latest: Any = None if column is None else pl.concat([each[column] for each in rows]).max()
    return None if latest is None else latest.isoformat()


def _time_column(job: Job, rows: pl.DataFrame) -> str | None:
    """The column that tells a row's time: that of the split, or of the source."""
    split = job.training.split if job.training else None
    named = split.column if split is not None and split.by == "time" else job.source.time_column
    return named if named in rows.columns and rows[named].dtype in (pl.Date, pl.Datetime) else None


def measure(
    rivals: Mapping[str, Rival],
    metric: str,
    ours: Predictor,
    predictions: pl.DataFrame,
    test: Part,
    tested: Mapping[str, Measured],
    drawn: Drawn,
    blocks: npt.NDArray[np.int64] | None,
) -> tuple[dict[str, dict[str, float]], dict[str, Measured]]:
    """Every metric of each rival, and by how much our model is better in one metric on the same rows.

    Args:
        rivals: By name. One that cannot take the rows is left out.
        metric: What they are compared by; nothing is where it is good neither way.
        ours: The model.
        predictions: What it gives for all test rows.
        test: The test rows.
        tested: Its metrics on them.
        drawn: The same, resampled.
        blocks: See `resampled`.
    """
    metrics: dict[str, dict[str, float]] = {}
    lead: dict[str, Measured] = {}
    for name, rival in rivals.items():
        part, own, own_drawn, numbers = test, tested, drawn, blocks
        if rival.rows is not None:
            part, mine = _only(test, rival.rows), predictions.filter(rival.rows)
            numbers = None if blocks is None else _renumbered(blocks[rival.rows.to_numpy()])
            own_drawn = resampled(ours, mine, part.target, numbers)
            own = intervals(of_predictions(ours, part.features, mine, part.target), own_drawn)
        try:
            theirs = predicted(rival.predictor, part.rows)
        except TrainingError as error:
            # Another model's failure is no fault of ours.
            log.warning(Event.BASELINE_FAILED, baseline=name, error=str(error))
            continue
        metrics[name] = defined(of_predictions(rival.predictor, part.features, theirs, part.target))
        if better(metric) is not None and metric in own and metric in metrics[name]:
            again = resampled(rival.predictor, theirs, part.target, numbers)
            lead[name] = ahead(metric, own, own_drawn, metrics[name], again)
    return metrics, lead


def _only(part: Part, rows: pl.Series) -> Part:
    target = None if part.target is None else part.target.filter(rows)
    return Part(part.rows.filter(rows), part.features.filter(rows), target)


def _renumbered(blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
    numbers = np.unique(blocks, return_inverse=True)[1]
    return numbers.astype(np.int64) if len(numbers) and numbers.max() > 0 else None
