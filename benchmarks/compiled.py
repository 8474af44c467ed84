"""Ensembles of trees as they were fitted, and compiled: rows a second of both, beside each other in one run.

Flights from New York with eight columns, of which two are codes of categories; a million rows to score. Both take as
many threads as OMP_NUM_THREADS says.

    OMP_NUM_THREADS=1 python benchmarks/compiled.py [--rows 1000000] [--rounds 3]

It needs the extras `compile`, `demo`, `lightgbm` and `xgboost`, and a C compiler.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from lightgbm import LGBMClassifier
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from xgboost import XGBClassifier

from batchscore import cgroup
from batchscore.cli.flights import flight_tables
from batchscore.model.built import architecture
from batchscore.model.compiled import build, fast
from batchscore.model.predictor import Predictor

CODES = [0, 1]
TREES = 100


def flights() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Eight columns of each flight, some NaN among them, and by how many minutes it was late."""
    tables = flight_tables()
    weather = tables["weather"].select("origin", "time_hour", "temp", "wind_speed")
    known = tables["flights"].filter(pl.col("arr_delay").is_not_null())
    known = known.join(weather, on=["origin", "time_hour"], how="left", maintain_order="left")
    columns = known.select(
        pl.col("carrier").rank("dense") - 1,
        pl.col("dest").rank("dense") - 1,
        pl.col("sched_dep_time") // 100 * 60 + pl.col("sched_dep_time") % 100,
        pl.col("flight_date").dt.weekday(),
        "distance",
        "dep_delay",
        "temp",
        "wind_speed",
    )
    return columns.cast(pl.Float64).to_numpy(), known["arr_delay"].cast(pl.Float64).to_numpy()


def estimators() -> dict[str, tuple[Any, int]]:
    """Each kind, and how many classes it learns; 0 for the minutes themselves."""
    hist: dict[str, Any] = {
        "max_iter": TREES,
        "categorical_features": CODES,
        "early_stopping": False,
        "random_state": 0,
    }
    threads = int(os.environ.get("OMP_NUM_THREADS", cgroup.cores()))
    return {
        "HistGradientBoosting, 100 trees": (HistGradientBoostingClassifier(**hist), 2),
        "the same, three classes": (HistGradientBoostingClassifier(**hist), 3),
        "the same, regression": (HistGradientBoostingRegressor(**hist), 0),
        "the same, 255 leaves": (HistGradientBoostingClassifier(max_leaf_nodes=255, **hist), 2),
        "RandomForest, 100 of depth 10": (
            RandomForestClassifier(TREES, max_depth=10, n_jobs=threads, random_state=0),
            2,
        ),
        "GradientBoosting, 100 of depth 3": (GradientBoostingClassifier(subsample=0.3, random_state=0), 2),
        "LightGBM, 100 trees": (LGBMClassifier(n_jobs=threads, verbose=-1, random_state=0), 2),
        "XGBoost, 100 of depth 6": (XGBClassifier(n_estimators=TREES, n_jobs=threads, random_state=0), 2),
    }


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    """Fit each, compile it, and print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    rows, late = flights()
    rng = np.random.default_rng(0)
    many = rows[rng.integers(0, len(rows), asked.rows)]
    # No two flights have quite the same weather and delay.
    many[:, 5:] += rng.normal(size=(len(many), 3))
    print(
        f"{asked.rows:,} rows, {len(rows[0])} columns, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}"
    )
    print("| model | original | compiled | times | compiling | library | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for name, (estimator, classes) in estimators().items():
        takes_nan = not isinstance(estimator, GradientBoostingClassifier)
        given, scored = (each if takes_nan else np.nan_to_num(each, nan=-99.0) for each in (rows, many))
        truth = late if not classes else np.digitize(late, [15.0, 60.0][: classes - 1])
        fitted = estimator.fit(given, truth)
        began = time.perf_counter()
        library = build(fitted)[0][architecture()]
        compiling = time.perf_counter() - began
        other = fast(Predictor(None, fitted, "binary", (), {}), library).fast  # type: ignore[arg-type]
        ask = "predict_proba" if classes else "predict"
        took: dict[str, list[float]] = {"original": [], "compiled": []}
        for _ in range(asked.rounds):
            took["original"].append(seconds(partial(getattr(fitted, ask), scored)))
            took["compiled"].append(seconds(partial(getattr(other, ask), scored)))
        want, got = getattr(fitted, ask)(scored), getattr(other, ask)(scored)
        apart = float(np.max(np.abs(got - want) / np.maximum(np.abs(want), np.finfo(float).tiny)))
        original, quick = (len(scored) / statistics.median(took[each]) / 1e6 for each in ("original", "compiled"))
        print(
            f"| {name} | {original:.2f}M/s | {quick:.2f}M/s | {quick / original:.1f} | {compiling:.1f} s "
            f"| {len(library) / 1024:.0f} KB | {apart:.0e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
