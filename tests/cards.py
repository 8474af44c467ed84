"""Evaluations made by hand, and the manifests and problems beside them: one for each task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from batchscore.model.bundle import Manifest, Training
from batchscore.model.evaluation import (
    Bin,
    Calibration,
    Candidate,
    Confusion,
    Cost,
    CrossValidation,
    Curve,
    Evaluation,
    Finding,
    Gap,
    Importance,
    Measured,
    Point,
    Search,
    Slice,
    Sliced,
    Threshold,
)
from batchscore.problem import METRICS, Problem, Success


@dataclass(frozen=True)
class Case:
    """What a card is made of."""

    manifest: Manifest
    evaluation: Evaluation


def manifest(problem: Problem, classes: tuple[Any, ...] = (), **changes: Any) -> Manifest:
    """The manifest of a version of `trips`."""
    content: dict[str, Any] = {
        "format": 3,
        "name": "trips",
        "version": 3,
        "created_at": "2024-06-02T03:04:05+00:00",
        "batchscore": "0.5.0",
        "job": "trips",
        "problem": problem,
        "classes": classes,
        "threshold": None,
        "key": ("id",),
        "columns": (
            {"name": "id", "type": "integer", "nullable": False, "nan": False},
            {"name": "distance", "type": "float", "nullable": True, "nan": True},
            {"name": "carrier", "type": "string", "nullable": True, "nan": False},
        ),
        "output_types": {"prediction": "float"},
        "training": Training(
            start="2024-01-01T00:00:00+00:00",
            end="2024-06-01T00:00:00+00:00",
            rows=54_321,
            labelled=54_000,
            fitted=37_800,
            validated=8_100,
            tested=8_100,
            learned_until=None,
        ),
        "metrics": {},
        "libraries": {"python": "3.12.4", "scikit-learn": "1.9.0"},
        "files": {},
    }
    return Manifest(**content | changes)


def problem(task: str, **changes: Any) -> Problem:
    """A problem statement of the task."""
    content = {"objective": "Say which trips are slow", "task": task, "target": "slow"}
    return Problem.model_validate(content | changes)


_BINARY = ("roc_auc", "average_precision", "brier", "log_loss", "accuracy", "base_rate")


def binary(**changes: Any) -> Case:
    """A classifier of two classes of which everything is known; each keyword replaces a field of the evaluation."""
    rng = np.random.default_rng(0)
    at = np.linspace(0, 1, 120)
    content: dict[str, Any] = {
        "metric": "roc_auc",
        "rows": {"train": 37_800, "validation": 8_100, "test": 8_100},
        "test": {
            metric: Measured(value=value, low=value - 0.011, high=value + 0.012)
            for metric, value in zip(_BINARY, (0.7312, 0.441, 0.1523, 0.4721, 0.7832, 0.2211), strict=True)
        },
        "resampled": "rows",
        "train": {"roc_auc": 0.7791, "average_precision": 0.52, "brier": 0.141, "log_loss": 0.44, "accuracy": 0.802},
        "validation": {"roc_auc": 0.733, "average_precision": 0.446, "brier": 0.151, "log_loss": 0.47},
        "baselines": {
            "dummy": {"roc_auc": 0.5, "average_precision": 0.2211, "brier": 0.1722, "log_loss": 0.5283},
            "linear": {"roc_auc": 0.7265, "average_precision": 0.43, "brier": 0.1544, "log_loss": 0.4768},
        },
        "ahead": {
            "dummy": Measured(value=0.2312, low=0.2202, high=0.2432),
            "linear": Measured(value=0.0047, low=-0.0011, high=0.0105),
        },
        "gap": Gap(metric="roc_auc", train=0.7791, held_out=0.733, on="validation", verdict="overfits"),
        "latency_us_per_row": 12.3456,
        "audit": (
            Finding(check="missing", column="carrier", value=0.12, suspect=False, told="carrier: 12.0 % are missing"),
            Finding(
                check="leak", column="arrived", value=0.99, suspect=True, told="arrived alone tells slow: AUC 0.990"
            ),
        ),
        "threshold": Threshold(value=0.3141, by="F1", rows=8_100, share=0.2719),
        "confusion": Confusion(classes=("on time", "slow"), counts=((5_210, 1_099), (688, 1_103))),
        "calibration": Calibration(
            method=None,
            bins=tuple(
                Bin(score=float(s), observed=float(np.clip(s + rng.normal(0, 0.03), 0, 1)), rows=int(rows))
                for s, rows in zip(
                    np.linspace(0.05, 0.85, 10), (1500, 1400, 1200, 1000, 900, 800, 600, 400, 200, 100), strict=True
                )
            ),
        ),
        "roc": tuple((float(x), float(x**0.4)) for x in at),
        "precision_recall": tuple((float(x), float(0.9 - 0.6789 * x**0.7)) for x in at[1:]),
        "importance": tuple(
            Importance(column=name, mean=mean, deviation=0.004)
            for name, mean in (
                ("distance", 0.1123),
                ("speed", 0.0721),
                ("carrier", 0.0311),
                ("how_many_minutes_late_the_previous_trip_of_this_vehicle_was", 0.0112),
                ("hour", -0.0021),
            )
        ),
        "slices": tuple(
            Slice(column="carrier", value=name, rows=rows, metrics={"roc_auc": auc, "accuracy": 0.8})
            for name, rows, auc in (("AA", 4_000, 0.75), ("UA", 3_000, 0.71), ("OO", 42, 0.61))
        ),
        "cross_validation": CrossValidation(
            by="stratified",
            folds=5,
            metrics={"roc_auc": (0.731, 0.742, 0.725, 0.736, 0.729), "brier": (0.151, 0.149, 0.155, 0.15, 0.152)},
        ),
        "search": Search(
            by="halving",
            metric="roc_auc",
            best={"model__max_depth": "6"},
            candidates=(
                Candidate(parameters={"model__max_depth": "6", "model__learning_rate": "0.1"}, value=0.7342),
                Candidate(parameters={"model__max_depth": "9", "model__learning_rate": "0.1"}, value=0.7311),
                Candidate(parameters={"model__max_depth": "-1", "model__learning_rate": "0.1"}, value=None),
            ),
            tried=24,
        ),
        "curves": (
            Curve(
                over="rows",
                metric="roc_auc",
                points=tuple(
                    Point(at=n, train=0.95 - 0.02 * i, validation=0.65 + 0.012 * i)
                    for i, n in enumerate((1_000, 3_000, 5_000, 10_000, 20_000, 30_000, 37_800))
                ),
            ),
            Curve(
                over="model__max_depth",
                metric="roc_auc",
                points=tuple(
                    Point(at=d, train=0.6 + 0.016 * d, validation=0.72 - 0.0007 * (d - 6) ** 2) for d in range(1, 26)
                ),
            ),
            Curve(
                over="model__C",
                metric="roc_auc",
                points=tuple(Point(at=10.0**e, train=0.7 + e / 100, validation=0.7) for e in range(-3, 4)),
            ),
            Curve(
                over="model__solver",
                metric="roc_auc",
                points=tuple(Point(at=s, train=0.73, validation=0.72) for s in ("lbfgs", "liblinear", "saga")),
            ),
        ),
    }
    return Case(
        manifest(problem("binary", success=Success(metric="roc_auc", at_least=0.7)), ("on time", "slow")),
        Evaluation.model_validate(content | changes),
    )


def rare(**changes: Any) -> Case:
    """A class in two of a hundred rows, called 1, with a threshold by cost, a calibration, and slices of every metric."""
    metrics = METRICS["binary"]
    rng = np.random.default_rng(4)
    content: dict[str, Any] = {
        "metric": "average_precision",
        "rows": {"train": 3_600, "validation": 1_200, "test": 1_200},
        "test": {metric: Measured(value=0.1234, low=0.1101, high=0.1402) for metric in metrics},
        "confusion": Confusion(classes=(0, 1), counts=((1_140, 22), (31, 7))),
        "threshold": Threshold(
            value=0.1716,
            by="the least cost, at 1 for a false positive, 12 for a false negative",
            rows=1_200,
            share=0.024,
            costs={
                "test": Cost(rows=1_200, model=394, none=456, every=1_162),
                "validation": Cost(rows=1_200, model=458.5, none=468, every=1_161),
            },
        ),
        "calibration": Calibration(
            method="isotonic",
            bins=tuple(Bin(score=0.003 * i, observed=0.0029 * i, rows=120) for i in range(10)),
        ),
        "parameters": {"training.calibrate": "isotonic"},
        "slices": tuple(
            Slice(column=column, value=value, rows=int(rng.integers(30, 2_000)), metrics=dict.fromkeys(metrics, 0.1234))
            for column, value in [("shift", "early"), *(("machine_of_the_line", f"M{i:02}") for i in range(20))]
        ),
        "sliced": (
            Sliced(column="shift", values=3, rows=30, measured=1, kept=1),
            Sliced(column="machine_of_the_line", values=80, rows=30, measured=60, kept=20),
        ),
    }
    of = problem("binary", target="scrap", success=Success(metric="average_precision", at_least=0.05))
    return Case(manifest(of, (0, 1)), binary(**content | changes).evaluation)


def multiclass(classes: int = 4) -> Case:
    """A classifier of several classes."""
    names = tuple(f"class {i}" for i in range(classes))
    counts = np.random.default_rng(1).poisson(10 + 300 * np.eye(classes))
    return Case(
        manifest(problem("multiclass"), names),
        Evaluation(
            metric="f1_macro",
            rows={"train": 900, "test": 300},
            test={"accuracy": Measured(value=0.8), "f1_macro": Measured(value=0.71, low=0.66, high=0.75)},
            resampled="rows",
            train={"f1_macro": 0.75},
            validation={},
            baselines={"dummy": {"f1_macro": 0.1}, "linear": {"f1_macro": 0.6}},
            ahead={
                "dummy": Measured(value=0.61, low=0.55, high=0.65),
                "linear": Measured(value=0.11, low=0.1, high=0.12),
            },
            gap=Gap(metric="f1_macro", train=0.75, held_out=0.71, on="test", verdict="fits"),
            latency_us_per_row=3.0,
            audit=(),
            confusion=Confusion(classes=names, counts=tuple(tuple(map(int, row)) for row in counts)),
        ),
    )


def regression() -> Case:
    """A regression whose metric is the better the lower it is."""
    rng = np.random.default_rng(2)
    guess = rng.gamma(3, 10, 400)
    return Case(
        manifest(problem("regression", target="minutes", success=Success(metric="mae", at_most=10.0))),
        Evaluation(
            metric="mae",
            rows={"train": 9_000, "validation": 1_000, "test": 1_000},
            test={"mae": Measured(value=12.34, low=11.9, high=12.8), "r2": Measured(value=0.31, low=0.28, high=0.34)},
            resampled="rows",
            train={"mae": 11.8, "r2": 0.4},
            validation={"mae": 12.2, "r2": 0.3},
            baselines={"dummy": {"mae": 18.2, "r2": 0.0}, "linear": {"mae": 13.5, "r2": 0.2}},
            ahead={"dummy": Measured(value=5.86, low=5.2, high=6.4), "linear": Measured(value=1.16, low=0.9, high=1.4)},
            gap=Gap(metric="mae", train=11.8, held_out=12.2, on="validation", verdict="fits"),
            latency_us_per_row=5.0,
            audit=(),
            residuals=tuple((float(a), float(a + e)) for a, e in zip(guess, rng.normal(0, 12, 400), strict=True)),
            slices=(
                Slice(column="carrier", value="AA", rows=500, metrics={"mae": 11.0}),
                Slice(column="carrier", value="UA", rows=500, metrics={"mae": 14.0}),
                Slice(column="carrier", value="OO", rows=9, metrics={}),
            ),
        ),
    )


def clustering() -> Case:
    """Clusters, which have no labels."""
    return Case(
        manifest(problem("clustering", target="")),
        Evaluation(
            metric="silhouette",
            rows={"train": 900, "test": 300},
            test={"silhouette": Measured(value=0.41, low=0.38, high=0.44)},
            resampled="rows",
            train={"silhouette": 0.42},
            validation={},
            baselines={},
            ahead={},
            gap=None,
            latency_us_per_row=1.0,
            audit=(),
            sizes={"0": 120, "1": 100, "2": 80},
        ),
    )


def anomaly() -> Case:
    """Anomalies, which have no labels either."""
    return Case(
        manifest(problem("anomaly", target="")),
        Evaluation(
            metric="contamination",
            rows={"train": 900, "test": 300},
            test={"contamination": Measured(value=0.021, low=0.01, high=0.04)},
            resampled="rows",
            train={"contamination": 0.02},
            validation={},
            baselines={},
            ahead={},
            gap=None,
            latency_us_per_row=9.0,
            audit=(),
        ),
    )


CASES = {"binary": binary, "rare": rare, "multiclass": multiclass, "regression": regression, "clustering": clustering, "anomaly": anomaly}  # fmt: skip
