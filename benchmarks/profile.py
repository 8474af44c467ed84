"""What profiles cost: values a second over the flights' columns, and their share of a scoring run.

A peer goes beside: polars' own `describe()` of the same rows, which counts nothing per bin and merges with nothing.
The run is a backfill of the flights' last quarter by the job `flight_delay`, which it trains first. Run it with
`python benchmarks/profile.py`; it needs the extra `demo`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

# Figures are of one core.
os.environ |= {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}

import polars as pl

from batchscore.cli import main
from batchscore.cli.flights import flight_tables
from batchscore.monitor.watch import Watcher
from batchscore.profile import Profile

CHUNK = 50_000
ROUNDS = 7


def seconds(work: Callable[[], object]) -> float:
    """The fewest seconds of processor time that it took, of seven times."""
    taken = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return min(taken)


def values() -> None:
    """Print how many values a second are profiled, beside polars' `describe`."""
    flights = flight_tables()["flights"]
    layouts = Profile.layouts_of(flights.filter(pl.col("month") < 10))
    chunk = flights.filter(pl.col("month") >= 10).head(CHUNK).rechunk()
    count = chunk.height * len(layouts)
    ours, peer = seconds(lambda: Profile.of(chunk, layouts)), seconds(chunk.describe)
    print(f"{chunk.height:,} rows of {len(layouts)} columns, one core")
    print(f"profiles: {count / ours / 1e6:.0f} M values/s")
    print(f"polars' describe: {count / peer / 1e6:.0f} M values/s, {peer / ours:.1f} times as long")


@dataclass
class Spent:
    """What calls took, in seconds: with other programs at work, the processor time is the steadier of the two."""

    wall: float = 0.0
    cpu: float = 0.0


def share() -> None:
    """Print which share of a scoring run's time goes into profiles, and into comparing them."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BATCHSCORE_WAREHOUSE_URL"] = f"duckdb:///{folder}/warehouse.duckdb"
        os.environ["BATCHSCORE_REGISTRY_URL"] = f"{folder}/registry"
        called("demo", "--data", "--warehouse")
        called("train", "flight_delay", "--promote")
        spent = {"profiles": Spent(), "comparisons": Spent()}
        for name in ("of", "merge", "to_dict"):
            timed(Profile, name, spent["profiles"])
        timed(Watcher, "record", spent["comparisons"])
        begun, cpu = time.perf_counter(), time.process_time()
        called("backfill", "flight_delay", "--from", "2013-10-01", "--to", "2014-01-01")
        whole, cpu = time.perf_counter() - begun, time.process_time() - cpu
    print(f"\nbackfill of 92 days, {whole:.1f} s, {cpu:.1f} s of processor time:")
    for name, part in spent.items():
        told = f"{part.cpu:.2f} s, {part.cpu / cpu:.1%} of processor time"
        print(f"{name}: {part.wall:.2f} s, {part.wall / whole:.1%}; {told}")


def called(*words: str) -> None:
    """Run a command in this process, without its output."""
    sys.argv = ["batchscore", *words]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main()


def timed(owner: type, name: str, spent: Spent) -> None:
    """Have a method add up what it takes."""
    inside = inspect.getattr_static(owner, name)
    method = inside.__func__ if isinstance(inside, classmethod) else inside

    @functools.wraps(method)
    def around(*args: object, **options: object) -> object:
        # The thread's own: what others do meanwhile is no part of it.
        begun, cpu = time.perf_counter(), time.thread_time()
        try:
            return method(*args, **options)
        finally:
            spent.wall += time.perf_counter() - begun
            spent.cpu += time.thread_time() - cpu

    setattr(owner, name, classmethod(around) if isinstance(inside, classmethod) else around)


if __name__ == "__main__":
    values()
    share()
