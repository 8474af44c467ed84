"""Estimate metrics from the scores alone, before any label is known: confidence-based performance estimation.

A calibrated score says how likely each row is to be of its class, and so how many rows of each score are to be expected
right. The calibration is that of the bundle's test rows; the scores are counted in the run's profile already, so that
no row is read again. Source: Białek, Kuberski, Perrakis and Bifet, "Estimating Model Performance Under
Covariate Shift Without Labels", arXiv 2401.08348 (2024), and NannyML's CBPE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from batchscore.ledger import Run
from batchscore.model.bootstrap import RESAMPLES, Drawn, defined, intervals
from batchscore.model.bundle import Bundle
from batchscore.model.evaluation import Measured
from batchscore.model.metrics import metrics_of, of_counts
from batchscore.model.tally import Tally
from batchscore.monitor.kept import keep_performance
from batchscore.monitor.verdict import FEWEST_ROWS, State, tested, verdict
from batchscore.profile import ColumnProfile, Counts
from batchscore.warehouse import Transaction

__all__ = ["Estimator"]

Floats = npt.NDArray[np.float64]
# Maps from score to probability, as points: on the test rows first, then on samples of them.
Calibrations = list[tuple[Floats, Floats]]

# The estimate takes calibration for granted, and can say nothing of it.
_TAKEN_FOR_GRANTED = ("ece", "bias")
# Without a threshold the more probable class is predicted, and of two the first where both tie. A bin holds the score
# at its upper edge, and not the one at its lower.
_EVEN = 0.5


@dataclass
class Estimator:
    """Estimates how good published predictions of one bundle are; of binary and multiclass tasks.

    Attributes:
        job: The job's name.
        bundle: What scored.
        tested: The labelled predictions of its test rows.
    """

    job: str
    bundle: Bundle
    tested: Tally

    def record(self, tx: Transaction, run: Run, scores: Sequence[ColumnProfile], now: datetime) -> None:
        """Keep the estimate of a published run in `batchscore_performance`, in place of any of its interval.

        Args:
            tx: An open transaction.
            run: The run.
            scores: See `estimate`.
            now: When it is made.
        """
        which = {
            "job": self.job,
            "cohort": "scored",
            "window_start": run.interval.start,
            "model_name": self.bundle.name,
            "model_version": self.bundle.version,
            "kind": "estimated",
        }
        rows_scored = scores[0].finite
        few = min(self.tested.rows, rows_scored) < FEWEST_ROWS
        state: State = "not enough data" if few else "mature"
        rows = [
            {
                "slice_column": "",
                "slice_value": "",
                "metric": metric,
                "window_end": run.interval.end,
                "value": measured.value,
                "low": measured.low,
                "high": measured.high,
                **tested(self.bundle, metric),
                "predictions": rows_scored,
                "labelled": 0,
                "coverage": 0.0,
                "state": state,
                "verdict": verdict(self.bundle, metric, measured, state),
                "evaluated_at": now,
            }
            for metric, measured in self.estimate(scores).items()
        ]
        keep_performance(tx, which, rows)

    def estimate(self, scores: Sequence[ColumnProfile]) -> dict[str, Measured]:
        """Each metric that is to be expected, with the interval that 95 % of draws lie in.

        A draw is a calibration fitted on resampled test rows, and for each bin of scores as many rows of the class as a
        binomial law with that probability gives.

        Args:
            scores: The profiles of the scores: of a binary task one, of a multiclass task one for each class, in order.

        Returns:
            By name; empty without rows, and where a run or bundle of a multiclass task is from before such rows were
            counted apart as had the class predicted.
        """
        if not scores[0].finite:
            return {}
        return self._of_two(scores[0]) if self.tested.task == "binary" else self._of_several(scores)

    def _of_two(self, scores: ColumnProfile) -> dict[str, Measured]:
        filled = scores.counts > 0
        counts, means = scores.counts[filled], _means(scores)[filled]
        classes = self.bundle.predictor.classes
        threshold = self.bundle.predictor.threshold
        below = _EVEN if threshold is None else np.nextafter(threshold, -np.inf)
        # By the bin's lower edge: the mean of equal scores may lie beside them.
        lower = np.concatenate([[-np.inf], scores.layout.edges])[filled]
        predicted = [classes[int(edge >= below)] for edge in lower.tolist()]
        # Every bin twice: its rows of the second class, and of the first.
        labels = pl.Series([classes[1]] * len(means) + [classes[0]] * len(means))
        answers = pl.DataFrame({"prediction": predicted * 2, "score": np.tile(means, 2)})
        metrics = metrics_of("binary", labels, answers, classes)
        found, *drawn = _drawn(np.random.default_rng(0), counts, means, self._calibrations)
        expected = metrics(np.concatenate([found, counts - found]))
        positives = np.array(drawn)
        samples: Drawn = metrics(np.hstack([positives, counts - positives]))
        told = {name: value for name, value in defined(expected).items() if name not in _TAKEN_FOR_GRANTED}
        return intervals(told, samples)

    def _of_several(self, scores: Sequence[ColumnProfile]) -> dict[str, Measured]:
        """What rests on how many rows of each class there are, and how many of these are found."""
        chosen = [each.chosen for each in scores if each.chosen is not None]
        if len(chosen) < len(scores) or not self._calibrations_by_class:
            return {}
        rng = np.random.default_rng(0)
        hits, others = [], []
        for column, called, (right, missed) in zip(scores, chosen, self._calibrations_by_class, strict=True):
            means = _means(column)
            hits.append(_drawn(rng, called, means, right).sum(axis=1))
            others.append(_drawn(rng, column.counts - called, means, missed).sum(axis=1))
        found, missing = np.column_stack(hits), np.column_stack(others)
        totals = np.array([each.sum() for each in chosen])
        # Each row that is predicted wrongly is of one of the other classes.
        wrong, of_all = totals.sum() - found.sum(axis=1), missing.sum(axis=1)
        share = np.divide(wrong, of_all, out=np.zeros(len(wrong)), where=of_all > 0)
        true = found + missing * share[:, np.newaxis]
        expected, *samples = [of_counts(*each, totals) for each in zip(found, true, strict=True)]
        return intervals(expected, {name: np.array([each[name] for each in samples]) for name in expected})

    @cached_property
    def _calibrations(self) -> Calibrations:
        positive = pl.col("truth") == pl.lit(self.bundle.predictor.classes[1])
        return _fitted(np.random.default_rng(0), self.tested.cells, positive)

    @cached_property
    def _calibrations_by_class(self) -> list[tuple[Calibrations, Calibrations]]:
        """By class, for the rows that have it predicted, and for the rest; none where test rows are not counted so."""
        parts = []
        for place, label in enumerate(self.tested.classes):
            cells = self.tested.cells.filter(pl.col("class") == place)
            predicted = pl.col("prediction").eq_missing(pl.lit(label))
            parts.append((cells.filter(predicted), cells.filter(~predicted)))
        if sum(int(chosen["count"].sum()) for chosen, _ in parts) < self.tested.rows:
            return []
        rng, of_it = np.random.default_rng(0), pl.col("truth").is_not_null()
        return [(_fitted(rng, chosen, of_it), _fitted(rng, others, of_it)) for chosen, others in parts]


def _means(scores: ColumnProfile) -> Floats:
    """The mean score of each bin; 0 where it holds none."""
    return np.divide(scores.sums, scores.counts, out=np.zeros(len(scores.counts)), where=scores.counts > 0)


def _drawn(rng: np.random.Generator, counts: Counts, means: Floats, calibrations: Calibrations) -> Floats:
    """Rows of the class by bin that has any, `(1 + draws, bins)`: those to be expected, then as chance has them."""
    filled = counts > 0
    expected, *likely = (np.interp(means[filled], *each) for each in calibrations)
    return np.vstack([counts[filled] * expected, rng.binomial(counts[filled], likely)])


def _fitted(rng: np.random.Generator, cells: pl.DataFrame, positive: pl.Expr) -> Calibrations:
    """Isotonic fits of the share of positive rows by score; without any rows a score is taken at its word."""
    from scipy.optimize import isotonic_regression

    if cells.is_empty():
        return [(np.array([0.0, 1.0]), np.array([0.0, 1.0]))] * (1 + RESAMPLES)
    by_bin = cells.group_by("score_bin").agg(pl.col("score").sum() / pl.col("count").sum()).sort("score_bin")
    places = by_bin["score_bin"].search_sorted(cells["score_bin"]).to_numpy()
    counts, hit = cells["count"].cast(pl.Float64).to_numpy(), cells.select(positive).to_series().to_numpy()
    samples: list[Any] = [counts, *rng.multinomial(int(counts.sum()), counts / counts.sum(), RESAMPLES)]
    fits = []
    for weights in samples:
        rows, hits = np.bincount(places, weights), np.bincount(places, weights * hit)
        there = rows > 0
        share = isotonic_regression(hits[there] / rows[there], weights=rows[there]).x
        fits.append((by_bin["score"].to_numpy()[there], share))
    return fits
