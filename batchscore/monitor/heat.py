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
from batchscore.watching import REFERENCES, Judged

__all__ = ["METRICS", "STATES", "Cell", "Heat", "Line", "heat"]

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
    """

    state: State
    values: Mapping[str, float]

    @property
    def sign(self) -> str:
        """The state for those who do not see its colour."""
        return STATES[self.state][0]


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
    """

    role: str
    name: str
    importance: float | None
    cells: Mapping[str, Sequence[Cell | None]]
    shapes: Mapping[str, Shape]
    counts: Sequence[Sequence[int] | None]
    digests: Sequence[str]


@dataclass(frozen=True, slots=True)
class Heat:
    """The map.

    Attributes:
        every: What one time is: the job's interval, or a longer one where there are too many.
        times: Their labels.
        lines: Outputs first, then inputs by importance.
        bands: The value at which each metric counts.
    """

    every: Every
    times: Sequence[str]
    lines: Sequence[Line]
    bands: Mapping[str, float]

    def data(self) -> dict[str, Any]:
        """What the page's script draws from, JSON-ready."""
        return {
            "times": self.times,
            "metrics": METRICS,
            "bands": [self.bands.get(metric) for metric in METRICS],
            "states": {state: [sign, told] for state, (sign, told) in STATES.items()},
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
    seen: dict[tuple[str, str], dict[str, str]] = {}
    for row in history.seen:
        seen.setdefault((row["role"], row["column_name"]), {})[row["run_id"]] = row["profile"]
    runs = [runs for _, runs in buckets]
    lines = [_drawn(history, runs, which, some, seen.get(which, {})) for which, some in rows.items()]
    lines.sort(key=lambda line: (line.role != "output", -(-1.0 if line.importance is None else line.importance)))
    return Heat(every, [label for label, _ in buckets], lines, bands)


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
    seen: Mapping[str, str],
) -> Line:
    role, name = which
    shapes = {}
    for digest, bundle in history.bundles.items():
        reference = bundle.input_reference if role == "input" else bundle.output_reference
        if name in reference.columns and (shape := Shape.of(reference.columns[name])):
            shapes[digest] = shape
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
    return Line(role, name, known[-1], cells, shapes, counts, digests)


def _cell(rows: Sequence[Mapping[str, Any]]) -> Cell | None:
    if not rows:
        return None
    values: dict[str, float] = {}
    for row in rows:
        value = row["value"]
        if value is not None and abs(value) >= abs(values.get(row["metric"], 0.0)):
            values[row["metric"]] = value
    moved = [abs(row["value"]) / row["band"] for row in rows if row["verdict"] == "moved"]
    if moved:
        return Cell("far" if max(moved) >= _FAR else "moved", values)
    return Cell("steady" if any(row["verdict"] == "steady" for row in rows) else "few", values)


def _counts(shape: Shape | None, runs: Sequence[Run], seen: Mapping[str, str]) -> list[int] | None:
    if shape is None:
        return None
    profiles = [json.loads(seen[run.run_id]) for run in runs if run.run_id in seen]
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
    }


def _plain(cell: Cell | None) -> list[Any] | None:
    """The state and the values in the order of the metrics, to four digits; what is missing at the end is left out."""
    return None if cell is None else [cell.state, *_values(cell)]


def _values(cell: Cell) -> Iterator[float | None]:
    last = max((i for i, metric in enumerate(METRICS) if metric in cell.values), default=-1)
    for metric in METRICS[: last + 1]:
        yield float(f"{cell.values[metric]:.4g}") if metric in cell.values else None
