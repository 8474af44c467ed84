"""What was promised, held against what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.speed.contenders import LOKY, OURS, PEERS
from benchmarks.speed.report import Cell, Floor, Start, Target

__all__ = ["targets_of"]

# The job, the peer, and how many times as long it should take as we do.
_RATIOS = (
    ("boosting_postgres_postgres", "pandas", 15.0),
    ("boosting_postgres_postgres", "pandas-copy", 4.0),
    ("boosting_postgres_postgres", "pandas-adbc", 4.0),
    ("boosting_postgres_postgres", "polars", 4.0),
    ("logistic_postgres_postgres", "pandas", 15.0),
    ("boosting_parquet_duckdb", "ray", 8.0),
    ("logistic_parquet_duckdb", "ray", 8.0),
)
_OVER_FLOOR = 1.25
_LOKY = 1.0
_MEMORY_GROWTH, _MOST_MB = 1.10, 700.0
_COST_GROWTH = 1.05
_HELP, _FIRST_CHUNK = 0.3, 1.5


def targets_of(cells: Sequence[Cell], floors: Sequence[Floor], start: Start | None) -> list[Target]:
    """Each target of which something was measured."""
    return [*_ratios(cells), *_over_floor(cells, floors), *_loky(cells), *_growth(cells, start), *_starts(start)]


def _ratios(cells: Sequence[Cell]) -> Iterator[Target]:
    measured = {(each.job, each.who): each for each in cells if each.measured}
    for job, key, bound in _RATIOS:
        peer, ours = measured.get((job, PEERS[key].name)), measured.get((job, OURS.name))
        if peer and ours:
            ratio = peer.median("seconds") / ours.median("seconds")
            words = f"{ours.workload}: time of {peer.who}, over ours"
            yield Target(f"{job}.{key}", words, ratio, bound, least=True, unit=" x")


def _over_floor(cells: Sequence[Cell], floors: Sequence[Floor]) -> Iterator[Target]:
    ours = {each.job: each for each in cells if each.who == OURS.name and each.measured}
    for floor in floors:
        if floor.job in ours:
            ratio = ours[floor.job].median("seconds") / floor.seconds
            yield Target(
                f"{floor.job}.floor", f"{floor.workload}: our time, over the floor", ratio, _OVER_FLOOR, unit=" x"
            )


def _loky(cells: Sequence[Cell]) -> Iterator[Target]:
    measured = {(each.job, each.rows, each.who): each for each in cells if each.measured}
    for (job, rows, who), cell in measured.items():
        if who == LOKY.name and (ours := measured.get((job, rows, OURS.name))):
            ratio = cell.median("seconds") / ours.median("seconds")
            words = f"{cell.workload}, {rows:,} rows: time of two loky workers, over that of one process"
            yield Target(f"{job}.loky", words, ratio, _LOKY, unit=" x")


def _growth(cells: Sequence[Cell], start: Start | None) -> Iterator[Target]:
    grown = sorted(
        (each for each in cells if each.job.endswith("_large") and each.who == OURS.name and each.measured),
        key=lambda each: each.rows,
    )
    if len(grown) < 2 or start is None:
        return
    small, large = grown
    sizes = f"at {large.rows:,} rows"
    memory = large.median("peak_mb") / small.median("peak_mb")
    yield Target(
        "large.memory_growth", f"peak memory {sizes}, over that at {small.rows:,}", memory, _MEMORY_GROWTH, unit=" x"
    )
    yield Target("large.memory", f"peak memory {sizes}", large.median("peak_mb"), _MOST_MB, unit=" MB")
    began = statistics.median(start.chunk_seconds)
    for name, words, less in (("cost", "", 0.0), ("cost_started", ", both without their start-up", began)):
        cost = [(each.median("seconds") - less) / each.rows for each in (large, small)]
        told = f"time a row {sizes}, over that at {small.rows:,}{words}"
        yield Target(f"large.{name}", told, cost[0] / cost[1], _COST_GROWTH, unit=" x")


def _starts(start: Start | None) -> Iterator[Target]:
    if start:
        yield Target("start.help", "`batchscore --help`", statistics.median(start.help_seconds), _HELP, unit=" s")
        read = statistics.median(start.chunk_seconds)
        yield Target("start.chunk", "a run's first chunk read after", read, _FIRST_CHUNK, unit=" s")
