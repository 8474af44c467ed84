"""The heat map of drift: columns by intervals, and behind each cell its metrics and its distribution."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

import numpy as np

from batchscore.interval import Calendar, Every
from batchscore.layout import PRIVATE
from batchscore.ledger import Run
from batchscore.monitor.history import History
from batchscore.monitor.shapes import Shape
from batchscore.monitor.watch import starts_of
from batchscore.profile import ColumnProfile
from batchscore.watching import REFERENCES, Judged, Reference

__all__ = ["METRICS", "STATES", "Cell", "Heat", "Line", "Summary", "heat"]

METRICS: tuple[Judged, ...] = get_args(Judged)
State = Literal["few", "steady", "moved", "far"]
STATES: Mapping[State, tuple[str, str]] = {
    "steady": ("·", "steady"),
    "moved": ("○", "moved"),
    "far": ("●", "moved, three times what counts or more"),
    "few": ("?", "not enough data"),
}
"""The sign of each, and what it means."""

_FAR = 3.0
# More columns nobody can read; intervals are then taken together by day, week or month.
_MOST = 120
_COARSER: tuple[Every, ...] = ("day", "week", "month")


@dataclass(frozen=True, slots=True)
class Cell:
    """One column over some runs against one reference.

    Attributes:
        state: The worst of its metrics in any of the runs.
        values: By metric, of the run in which each was the largest.
        before: Of those that are the difference of two shares of rows, the reference's.
    """

    state: State
    values: Mapping[str, float]
    before: Mapping[str, float]

    @property
    def sign(self) -> str:
        """The state for those who do not see its colour."""
        return STATES[self.state][0]


@dataclass(frozen=True, slots=True)
class Summary:
    """Of the numbers of a column: how many there are, their mean, and the smallest and the largest."""

    count: int
    mean: float
    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Line:
    """One column of the map.

    Attributes:
        role: `input` or `output`.
        name: The column.
        importance: As in `batchscore_drift`.
        cells: By reference, a cell for each of the map's times; None where nothing was compared.
        shapes: The bars of its distribution by digest of the bundle; without bundles that are gone, and empty for a
            column that has none.
        counts: Rows by bar at each time; None where there are none.
        digests: The bundle whose bars those are, at each time.
        trained: What the column was in training, by digest, as `shapes`; empty for what is not a number.
        summaries: What it was at each time; None where it is not known.
    """

    role: str
    name: str
    importance: float | None
    cells: Mapping[str, Sequence[Cell | None]]
    shapes: Mapping[str, Shape]
    counts: Sequence[Sequence[int] | None]
    digests: Sequence[str]
    trained: Mapping[str, Summary]
    summaries: Sequence[Summary | None]


@dataclass(frozen=True, slots=True)
class Heat:
    """The map.

    Attributes:
        every: What one time is: the job's interval, or a longer one where there are too many.
        times: Their labels.
        lines: Outputs first, then inputs by importance.
        bands: The value at which each metric counts.
        others: By reference, the places of the times that each time was compared with, as far as they are on the map;
            empty where a time is several runs, of which each was compared with others.
    """

    every: Every
    times: Sequence[str]
    lines: Sequence[Line]
    bands: Mapping[str, float]
    others: Mapping[str, Sequence[Sequence[int]]]

    def data(self) -> dict[str, Any]:
        """What the page's script draws from, JSON-ready."""
        return {
            "times": self.times,
            "metrics": METRICS,
            "bands": [self.bands.get(metric) for metric in METRICS],
            "states": {state: [sign, told] for state, (sign, told) in STATES.items()},
            "others": self.others,
            "lines": [_line(line) for line in self.lines],
        }


def heat(history: History) -> Heat:
    """The map of the published runs of a history."""
    every, buckets = _buckets(history.published, history.job.calendar)
    place = {run.run_id: i for i, (_, runs) in enumerate(buckets) for run in runs}
    rows: dict[tuple[str, str], dict[str, list[list[Mapping[str, Any]]]]] = {}
    bands: dict[str, float] = {}
    for row in history.drift:
        by_reference = rows.setdefault((row["role"], row["column_name"]), {})
        times = by_reference.setdefault(row["reference"], [[] for _ in buckets])
        times[place[row["run_id"]]].append(row)
        bands[row["metric"]] = row["band"]
    seen: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in history.seen:
        seen.setdefault((row["role"], row["column_name"]), {})[row["run_id"]] = row
    runs = [runs for _, runs in buckets]
    lines = [_drawn(history, runs, which, some, seen.get(which, {})) for which, some in rows.items()]
    lines.sort(key=lambda line: (line.role != "output", -(-1.0 if line.importance is None else line.importance)))
    others = _others(history.published, history.job.calendar) if all(len(some) == 1 for some in runs) else {}
    return Heat(every, [label for label, _ in buckets], lines, bands, others)


def _others(runs: Sequence[Run], calendar: Calendar) -> dict[str, list[list[int]]]:
    """By reference, the places of the runs that each was compared with, as far as they are among these."""
    place = {(run.bundle_digest, run.interval.start): i for i, run in enumerate(runs)}
    before: list[list[int]] = []
    last: dict[str, int] = {}
    for i, run in enumerate(runs):
        before.append([last[run.bundle_digest]] if run.bundle_digest in last else [])
        last[run.bundle_digest] = i
    earlier: tuple[Reference, ...] = ("last_week", "four_weeks")
    wanted = {
        each: [(run.bundle_digest, starts_of(calendar, [run.interval.start], each)) for run in runs] for each in earlier
    }
    found = {
        each: [[place[digest, at] for at in sorted(starts) if (digest, at) in place] for digest, starts in some]
        for each, some in wanted.items()
    }
    return {"previous": before} | {str(each): places for each, places in found.items()}


def _buckets(runs: Sequence[Run], calendar: Calendar) -> tuple[Every, list[tuple[str, list[Run]]]]:
    """The map's times, each with its runs."""
    every = calendar.every
    by_start: dict[datetime, list[Run]] = {run.interval.start: [run] for run in runs}
    for longer in _COARSER:
        if len(by_start) <= _MOST:
            break
        if longer == "day" and calendar.every != "hour":
            continue
        every, wide = longer, Calendar(longer, calendar.zone)
        by_start = {}
        for run in runs:
            by_start.setdefault(wide.containing(run.interval.start).start, []).append(run)
    cut = Calendar(every, calendar.zone)
    return every, [(cut.label(cut.containing(start)), some) for start, some in by_start.items()]


def _drawn(
    history: History,
    times: Sequence[Sequence[Run]],
    which: tuple[str, str],
    rows: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    seen: Mapping[str, Mapping[str, Any]],
) -> Line:
    role, name = which
    shapes, trained = {}, {}
    for digest, bundle in history.bundles.items():
        reference = bundle.input_reference if role == "input" else bundle.output_reference
        if name in reference.columns and (shape := Shape.of(reference.columns[name])):
            shapes[digest] = shape
            if summary := _summary_of(reference.columns[name]):
                trained[digest] = summary
    cells: dict[str, Sequence[Cell | None]] = {
        reference: [_cell(some) for some in rows[reference]] for reference in REFERENCES if reference in rows
    }
    # The bars of two versions are not the same; those of the last one of that time are shown.
    digests = [some[-1].bundle_digest for some in times]
    counts = [
        _counts(shapes.get(digest), [run for run in some if run.bundle_digest == digest], seen)
        for digest, some in zip(digests, times, strict=True)
    ]
    known = [row["importance"] for times_ in rows.values() for some in times_ for row in some]
    summaries = [
        _summary([seen[run.run_id] for run in some if run.bundle_digest == digest and run.run_id in seen])
        if digest in trained
        else None
        for digest, some in zip(digests, times, strict=True)
    ]
    return Line(role, name, known[-1], cells, shapes, counts, digests, trained, summaries)


def _summary_of(column: ColumnProfile) -> Summary | None:
    """Of a column of numbers in training; never of a private one, nor of an instant or the length of a text."""
    if column.layout.kind not in ("numeric", "integer"):
        return None
    if column.mean is None or column.minimum is None or column.maximum is None:
        return None
    return Summary(column.finite, column.mean, column.minimum, column.maximum)


def _summary(rows: Sequence[Mapping[str, Any]]) -> Summary | None:
    """Of rows of `batchscore_profiles` together."""
    known = [row for row in rows if None not in (row["mean"], row["minimum"], row["maximum"], row["null_share"])]
    counts = [round(row["row_count"] * (1 - row["null_share"])) for row in known]
    if not sum(counts):
        return None
    mean = sum(row["mean"] * count for row, count in zip(known, counts, strict=True)) / sum(counts)
    return Summary(sum(counts), mean, min(row["minimum"] for row in known), max(row["maximum"] for row in known))


def _cell(rows: Sequence[Mapping[str, Any]]) -> Cell | None:
    if not rows:
        return None
    values: dict[str, float] = {}
    before: dict[str, float] = {}
    for row in rows:
        value = row["value"]
        if value is not None and abs(value) >= abs(values.get(row["metric"], 0.0)):
            values[row["metric"]] = value
            if row["reference_share"] is not None:
                before[row["metric"]] = row["reference_share"]
            else:
                before.pop(row["metric"], None)
    moved = [abs(row["value"]) / row["band"] for row in rows if row["verdict"] == "moved"]
    if moved:
        return Cell("far" if max(moved) >= _FAR else "moved", values, before)
    return Cell("steady" if any(row["verdict"] == "steady" for row in rows) else "few", values, before)


def _counts(shape: Shape | None, runs: Sequence[Run], seen: Mapping[str, Mapping[str, Any]]) -> list[int] | None:
    if shape is None:
        return None
    profiles = [json.loads(seen[run.run_id]["profile"]) for run in runs if run.run_id in seen]
    # The column was private for a while.
    counted = [shape.counted(profile) for profile in profiles if profile["layout"] != PRIVATE.digest]
    return [int(total) for total in np.sum(counted, axis=0)] if counted else None


def _line(line: Line) -> dict[str, Any]:
    digests = list(line.shapes)
    return {
        "name": line.name,
        "role": line.role,
        "importance": line.importance,
        "cells": {reference: list(map(_plain, cells)) for reference, cells in line.cells.items()},
        "shapes": [{"names": shape.names, "training": shape.training} for shape in line.shapes.values()],
        "shape": [digests.index(digest) if digest in digests else None for digest in line.digests],
        "counts": line.counts,
        "before": {reference: list(map(_before, cells)) for reference, cells in line.cells.items()},
        "trained": [_figures(line.trained.get(digest)) for digest in digests],
        "summaries": list(map(_figures, line.summaries)),
    }


def _before(cell: Cell | None) -> dict[str, float] | None:
    """The reference's shares of those metrics that differ from them, by the metric's place."""
    if cell is None:
        return None
    return {str(METRICS.index(metric)): float(f"{share:.4g}") for metric, share in cell.before.items()} or None


def _figures(summary: Summary | None) -> list[float] | None:
    if summary is None:
        return None
    return [summary.count, *(float(f"{each:.6g}") for each in (summary.mean, summary.minimum, summary.maximum))]


def _plain(cell: Cell | None) -> list[Any] | None:
    """The state and the values in the order of the metrics, to four digits; what is missing at the end is left out."""
    return None if cell is None else [cell.state, *_values(cell)]


def _values(cell: Cell) -> Iterator[float | None]:
    last = max((i for i, metric in enumerate(METRICS) if metric in cell.values), default=-1)
    for metric in METRICS[: last + 1]:
        yield float(f"{cell.values[metric]:.4g}") if metric in cell.values else None
