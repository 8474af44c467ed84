"""Estimate metrics from the scores alone, before any label is known: confidence-based performance estimation.

A calibrated score says how likely each row is to be of the second class, and so how many rows of each score are to be
expected right. The calibration is that of the bundle's test rows; the scores are counted in the run's profile already,
so that no row is read again. Source: Białek, Kuberski, Perrakis and Bifet, "Estimating Model Performance Under
Covariate Shift Without Labels", arXiv 2401.08348 (2024), and NannyML's CBPE.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import sqlalchemy as sa
from sklearn.isotonic import IsotonicRegression

from batchscore import ledger
from batchscore.ledger import Run
from batchscore.model.bootstrap import RESAMPLES, defined, intervals
from batchscore.model.bundle import Bundle
from batchscore.model.evaluation import Measured
from batchscore.model.metrics import metrics_of
from batchscore.model.tally import Tally
from batchscore.monitor.verdict import FEWEST_ROWS, State, tested, verdict
from batchscore.profile import ColumnProfile

__all__ = ["Estimator"]

Floats = npt.NDArray[np.float64]

# The estimate takes calibration for granted, and can say nothing of it.
_TAKEN_FOR_GRANTED = ("ece", "bias")
# Without a threshold the more probable class is predicted, and of two the first where both tie. A bin holds the score
# at its upper edge, and not the one at its lower.
_EVEN = 0.5


@dataclass
class Estimator:
    """Estimates how good published predictions of one bundle are; of binary tasks alone.

    Attributes:
        job: The job's name.
        bundle: What scored.
        tested: The labelled predictions of its test rows.
    """

    job: str
    bundle: Bundle
    tested: Tally

    def record(self, tx: sa.Connection, run: Run, scores: ColumnProfile, now: datetime) -> None:
        """Keep the estimate of a published run in `batchscore_performance`, in place of any of its interval."""
        which = {
            "job": self.job,
            "cohort": "scored",
            "window_start": run.interval.start,
            "model_name": self.bundle.name,
            "model_version": self.bundle.version,
            "kind": "estimated",
        }
        few = min(self.tested.rows, scores.finite) < FEWEST_ROWS
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
                "predictions": scores.finite,
                "labelled": 0,
                "coverage": 0.0,
                "state": state,
                "verdict": verdict(self.bundle, metric, measured, state),
                "evaluated_at": now,
            }
            for metric, measured in self.estimate(scores).items()
        ]
        ledger.save_performance(tx, which, rows)

    def estimate(self, scores: ColumnProfile) -> dict[str, Measured]:
        """Each metric that is to be expected, with the interval that 95 % of draws lie in.

        A draw is a calibration fitted on resampled test rows, and for each bin of scores as many rows of the second
        class as a binomial law with that probability gives.

        Args:
            scores: The profile of the scores.

        Returns:
            By name; empty without rows.
        """
        filled = scores.counts > 0
        if not filled.any():
            return {}
        counts, means = scores.counts[filled], scores.sums[filled] / scores.counts[filled]
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
        expected, *drawn = (np.interp(means, *each) for each in self._calibrations)
        rng = np.random.default_rng(0)
        positives = [rng.binomial(counts, likely).astype(np.float64) for likely in drawn]
        samples = [metrics(np.concatenate([each, counts - each])) for each in positives]
        values = defined(metrics(np.concatenate([counts * expected, counts * (1 - expected)])))
        told = {name: value for name, value in values.items() if name not in _TAKEN_FOR_GRANTED}
        return intervals(told, {name: np.array([each[name] for each in samples]) for name in told})

    @cached_property
    def _calibrations(self) -> list[tuple[Floats, Floats]]:
        """Isotonic maps from score to probability, as points: on the test rows first, then on samples of them."""
        return list(self._fitted())

    def _fitted(self) -> Iterator[tuple[Floats, Floats]]:
        cells = self.tested.cells
        by_bin = cells.group_by("score_bin", maintain_order=True).agg(pl.col("score").sum() / pl.col("count").sum())
        place = {score_bin: i for i, score_bin in enumerate(by_bin["score_bin"])}
        places = np.array([place[each] for each in cells["score_bin"]])
        positive = (cells["truth"] == self.bundle.predictor.classes[1]).to_numpy()
        counts, means = cells["count"].cast(pl.Float64).to_numpy(), by_bin["score"].to_numpy()
        rng = np.random.default_rng(0)
        samples: list[Any] = [counts, *rng.multinomial(self.tested.rows, counts / counts.sum(), RESAMPLES)]
        for weights in samples:
            rows, hits = np.bincount(places, weights), np.bincount(places, weights * positive)
            there = rows > 0
            fit = IsotonicRegression(y_min=0.0, y_max=1.0).fit(means[there], hits[there] / rows[there], rows[there])
            yield fit.X_thresholds_, fit.y_thresholds_
