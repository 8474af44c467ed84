"""Charts as SVG text, to stand inside an HTML page: numbers in, markup out. Colours are `STYLE`'s, light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from batchscore.svg import WIDTH, Drawing, length

__all__ = ["STYLE", "Axis", "Bar", "Series", "bars", "dots", "matrix", "plot"]

# Of Okabe and Ito's palette, which the colour-blind tell apart; lines differ in dashes too, for a printer without ink.
STYLE = """\
:root { --c0: #0072b2; --c1: #c24e00; --ink: #1a1a1a; --faint: #666; --rule: #ccc; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --c0: #62b8ec; --c1: #f0a03c; --ink: #e8e6e3; --faint: #a3a09b; --rule: #444; --paper: #161616; }
}
@media print {
  :root { --c0: #0072b2; --c1: #c24e00; --ink: #000; --faint: #555; --rule: #bbb; --paper: #fff; }
}
svg.chart { display: block; width: 100%; max-width: 480px; height: auto; overflow: visible; }
.chart text { fill: var(--ink); font: 12px system-ui, sans-serif; font-variant-numeric: tabular-nums; }
.chart .tick, .chart .axis { fill: var(--faint); }
.chart .grid { stroke: var(--rule); stroke-width: .5; fill: none; }
.chart polyline.mark { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 2 3; fill: none; }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.chart .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
.chart .line.s0 { stroke: var(--c0); }
.chart .line.s1 { stroke: var(--c1); stroke-dasharray: 6 3; }
.chart .dot.s0, .chart .bar { fill: var(--c0); }
.chart .dot.s1 { fill: var(--c1); }
.chart .many { fill-opacity: .45; }
.chart .dot.hollow { fill: var(--paper); stroke: var(--faint); stroke-width: 1.5; }
.chart .span { stroke: var(--c0); stroke-opacity: .35; stroke-width: 1.5; }
.chart .whisker { stroke: var(--ink); stroke-width: 1.5; }
.chart text.s0 { fill: var(--c0); }
.chart text.s1 { fill: var(--c1); }
.chart text.mark { fill: var(--faint); }
"""

_HEIGHT = 300.0
_LINE = 15.0
_ROW = 24.0
# Past it a difference of two numbers is infinite, and no chart is of any use.
_HUGE, _TINY = 1e100, 1e-90
_MANY = 60


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a chart.

    Attributes:
        title: What is measured, with its unit.
        low: Where it begins; None for where the data do.
        high: Where it ends.
        names: Of the positions 0, 1, 2, …, instead of numbers.
        log: By powers of ten; values up to 0 are left out.
        whole: The names as they are told of a single point, where those on the axis are shortened.
    """

    title: str
    low: float | None = None
    high: float | None = None
    names: Sequence[str] = ()
    log: bool = False
    whole: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one kind.

    Attributes:
        name: Told at the end of the line, or beside a single point; empty for none.
        points: (x, y); one that is not finite is left out.
        kind: A line, a line with its points, points alone, points that do not count, or a thin line to compare with.
        weights: What each point's area is in proportion to; none for points of one size.
        spans: From where to where each point may lie; none where nobody knows.
    """

    name: str
    points: Sequence[tuple[float, float]]
    kind: Literal["line", "points", "dots", "hollow", "rule"] = "line"
    weights: Sequence[float] = ()
    spans: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a chart of rows: its name, its value, the ends of its whisker, and the value in words."""

    label: str
    value: float
    told: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class _Point:
    """A point in the axes' own units, its weight, and its values in words."""

    x: float
    y: float
    weight: float
    told: str


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to shares of an axis, 0 to 1; what lies outside is moved to the nearer end."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]

    @classmethod
    def of(cls, axis: Axis, values: Sequence[float], *, whole: bool) -> _Scale:
        """The scale of values; from tick to tick where it is to be whole, and else from end to end."""
        if axis.names:
            return cls(-0.5, len(axis.names) - 0.5, [(float(at), name) for at, name in enumerate(axis.names)])
        low = min(values, default=0.0) if axis.low is None else axis.low
        high = max(values, default=0.0) if axis.high is None else axis.high
        most = max(abs(low), abs(high))
        # So near to one another that they are one number, and its ticks would be too.
        if high - low <= 1e-6 * most or most < _TINY:
            room = most / 20 if most >= _TINY else 1.0
            low, high = low - room, high + room
        if axis.log:
            first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
            every = max(1, (last - first) // 6)
            return cls(low, high, [(float(power), f"{10.0**power:g}") for power in range(first, last + 1, every)])
        step = _step((high - low) / 5)
        if whole:
            low, high = math.floor(low / step + 1e-6) * step, math.ceil(high / step - 1e-6) * step
        first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
        return cls(low, high, [(at * step, _number(at * step, step)) for at in range(first, last + 1)])

    def __call__(self, value: float) -> float:
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def plot(title: str, told: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """Lines and points over two axes.

    Args:
        title: The chart in a few words, for those who do not see it.
        told: What there is to see in it, for the same.
        x: To the right.
        y: Upwards.
        series: Two at most that are neither rules nor hollow; the later ones are painted over the earlier.

    Returns:
        An `<svg>` element, well-formed XML; every coordinate is finite and within its box.
    """
    drawn = [(one, _drawn(one, x, y)) for one in series]
    across = _Scale.of(_lies(x), [p.x for _, points in drawn for p in points], whole=False)
    heights = [p.y for _, points in drawn for p in points]
    heights += [end for one in series for _, *ends in _spans(one, x, y) for end in ends]
    up = _Scale.of(_lies(y), heights, whole=True)
    names = [one.name for one, points in drawn if len(points) > 1]
    right = WIDTH - max(14.0, max((min(100.0, length(name)) + 10 for name in names), default=0.0))
    left = min(84.0, max((length(text) for _, text in up.ticks), default=0.0) + 10)
    top, bottom = 28.0, _HEIGHT - 42.0

    def at(a: float, b: float) -> tuple[float, float]:
        return left + across(a) * (right - left), bottom - up(b) * (bottom - top)

    drawing = Drawing(title, told, _HEIGHT)
    for value, text in up.ticks:
        height = at(across.low, value)[1]
        drawing.line("grid", (left, height), (right, height))
        drawing.text("tick", left - 6, height + 4, text, "end", left - 8)
    _x_ticks(drawing, across, left, right, bottom)
    drawing.text("axis", 2, 14, y.title, room=WIDTH - 4)
    drawing.text("axis", (left + right) / 2, _HEIGHT - 6, x.title, "middle", right - left)
    labels: list[tuple[float, str, str]] = []
    colors = iter(("s0", "s1"))
    for one, points in drawn:
        kind = {"rule": "mark", "hollow": "hollow"}.get(one.kind) or next(colors)
        places = [at(p.x, p.y) for p in points]
        for a, low, high in _spans(one, x, y):
            drawing.line("span", at(a, low), at(a, high))
        if one.kind not in ("dots", "hollow") and len(places) > 1:
            drawing.line("mark" if one.kind == "rule" else f"line {kind}", *places)
        if one.kind in ("points", "dots", "hollow") or len(places) == 1:
            _points(drawing, one.name, kind, points, places)
        if one.name and len(places) == 1:
            _beside(drawing, one.name, kind, places[0], left, right)
        elif one.name and places:
            labels.append((places[-1][1], kind, one.name))
    labels.sort()
    for height, (_, kind, name) in zip(_apart([label[0] for label in labels], bottom), labels, strict=True):
        drawing.text(f"halo {kind}", right + 6, height + 4, name, room=100)
    return str(drawing)


def bars(title: str, told: str, axis: Axis, rows: Sequence[Bar]) -> str:
    """Horizontal bars from 0, one a row, each with its value in words behind it.

    Args:
        title: The chart in a few words, for those who do not see it.
        told: What there is to see in it, for the same.
        axis: Of the values.
        rows: From the top; one whose value is not finite has no bar.

    Returns:
        As `plot`.
    """
    return _rows(title, told, axis, rows, None, from_zero=True)


def dots(title: str, told: str, axis: Axis, rows: Sequence[Bar], mark: tuple[float, str] | None = None) -> str:
    """Points on one axis, one a row, with whiskers: for values that are not amounts, and need no 0.

    Args:
        title: The chart in a few words, for those who do not see it.
        told: What there is to see in it, for the same.
        axis: Of the values.
        rows: From the top.
        mark: Where a line crosses all rows, and its name.

    Returns:
        As `plot`.
    """
    return _rows(title, told, axis, rows, mark, from_zero=False)


def matrix(title: str, told: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A confusion matrix: the share of its row shades a cell.

    Args:
        title: The chart in a few words, for those who do not see it.
        told: What there is to see in it, for the same.
        names: The classes.
        counts: Shape `(classes, classes)`: actual classes down, predicted ones across.

    Returns:
        As `plot`.
    """
    longest = max((length(name) for name in names), default=0.0) + 12
    left = max(length("actual") + 4, min(140.0, longest))
    size = min(84.0, (WIDTH - left - 2) / max(1, len(names)))
    upwards = longest > size
    top = 18.0 + (min(110.0, longest) if upwards else 22.0)
    drawing = Drawing(title, told, top + size * len(names) + 4)
    with_share = size >= 52
    with_count = all(length(f"{count:,}") <= size - 4 for row in counts for count in row)
    drawing.text("axis", left, 13, "predicted")
    drawing.text("axis", 2, top - 8, "actual", room=left)
    for i, (name, row) in enumerate(zip(names, counts, strict=True)):
        middle, across = top + (i + 0.5) * size, left + (i + 0.5) * size
        if size >= 11:
            drawing.text("tick", left - 7, middle + 4, name, "end", left - 9)
            if upwards:
                drawing.text("tick", across + 4, top - 6, name, room=top - 26, upwards=True)
            else:
                drawing.text("tick", across, top - 7, name, "middle")
        for j, count in enumerate(row):
            share = count / sum(row) if sum(row) else 0.0
            tip = f"{count:,} of {name} predicted as {names[j]}: {share:.1%}"
            drawing.box("bar", left + j * size + 1, top + i * size + 1, size - 2, size - 2, tip, 0.03 + 0.52 * share)
            across = left + (j + 0.5) * size
            if with_count:
                drawing.text("cell", across, middle + (-2 if with_share else 4), f"{count:,}", "middle")
            if with_share:
                drawing.text("cell", across, middle + 14, f"{share:.1%}", "middle")
    return str(drawing)


def _rows(
    title: str, told: str, axis: Axis, rows: Sequence[Bar], mark: tuple[float, str] | None, *, from_zero: bool
) -> str:
    crossed = mark is not None and _finite(mark[0])
    known = [end for row in rows for end in (row.value, row.low, row.high) if end is not None and _finite(end)]
    known += ([0.0] if from_zero else []) + ([mark[0]] if mark and crossed else [])
    scale = _Scale.of(axis, known, whole=True)
    left = min(WIDTH * 0.36, max((length(row.label) for row in rows), default=0.0) + 10)
    right = WIDTH - min(130.0, max((length(row.told) for row in rows), default=0.0) + 16)
    top = 28.0 if crossed else 10.0
    bottom = top + _ROW * len(rows)

    def at(value: float) -> float:
        return left + scale(value) * (right - left)

    drawing = Drawing(title, told, bottom + 42)
    for value, _ in scale.ticks:
        drawing.line("grid", (at(value), top), (at(value), bottom))
    _x_ticks(drawing, scale, left, right, bottom)
    middle = (left + right) / 2
    drawing.text("axis", middle, bottom + 36, axis.title, "middle", 2 * min(middle, WIDTH - middle))
    if mark and crossed:
        drawing.line("mark", (at(mark[0]), top - 8), (at(mark[0]), bottom))
        share = at(mark[0]) / WIDTH
        drawing.text(
            "axis", at(mark[0]), 14, mark[1], "start" if share < 0.3 else "end" if share > 0.7 else "middle", 120
        )
    for i, row in enumerate(rows):
        middle = top + (i + 0.5) * _ROW
        drawing.text("name", left - 8, middle + 4, row.label, "end", left - 8)
        drawing.text("value", WIDTH - 2, middle + 4, row.told, "end", WIDTH - right - 4)
        if not _finite(row.value):
            continue
        if from_zero:
            start, end = sorted((at(0.0), at(row.value)))
            drawing.box("bar", start, middle - 7, end - start, 14, f"{row.label}: {row.told}")
        if row.low is not None and row.high is not None and _finite(row.low) and _finite(row.high):
            drawing.line("whisker", (at(row.low), middle), (at(row.high), middle))
        if not from_zero:
            drawing.dot("dot s0", at(row.value), middle, 5, f"{row.label}: {row.told}")
    return str(drawing)


def _x_ticks(drawing: Drawing, scale: _Scale, left: float, right: float, bottom: float) -> None:
    drawing.line("grid", (left, bottom), (right, bottom))
    widest = max((min(length(text), 90.0) for _, text in scale.ticks), default=0.0)
    every = math.ceil((widest + 10) * max(1, len(scale.ticks)) / (right - left))
    for value, text in list(scale.ticks)[:: max(1, every)]:
        across = left + scale(value) * (right - left)
        drawing.text("tick", across, bottom + 17, text, "middle", 90)


def _points(
    drawing: Drawing, name: str, kind: str, points: Sequence[_Point], places: Sequence[tuple[float, float]]
) -> None:
    many = len(points) > _MANY
    most = max((point.weight for point in points), default=0.0)
    for point, (across, height) in zip(points, places, strict=True):
        radius = max(1.5, 7 * math.sqrt(point.weight / most)) if most else 2.5 if many else 3.0
        drawing.dot(
            f"dot {kind} many" if many else f"dot {kind}", across, height, radius, f"{name} {point.told}".strip()
        )


def _beside(drawing: Drawing, name: str, kind: str, place: tuple[float, float], left: float, right: float) -> None:
    """The name of a single point, below it, on the side that has more room."""
    across, height = place
    if across < (left + right) / 2:
        drawing.text(f"halo {kind}", across + 9, height + 15, name, room=right - across - 9)
    else:
        drawing.text(f"halo {kind}", across - 9, height + 15, name, "end", across - left - 9)


def _apart(heights: Sequence[float], bottom: float) -> list[float]:
    """The heights of labels, given in order, moved down, and from the bottom up again, until no two overlap."""
    moved = list(heights)
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + _LINE)
    lowest = bottom
    for i in reversed(range(len(moved))):
        moved[i] = lowest = min(moved[i], lowest)
        lowest -= _LINE
    return moved


def _drawn(one: Series, x: Axis, y: Axis) -> list[_Point]:
    weights = one.weights or [0.0] * len(one.points)
    placed = [
        _Point(_placed(x, a), _placed(y, b), weight if _finite(weight) else 0.0, _told(x, a, b))
        for (a, b), weight in zip(one.points, weights, strict=True)
    ]
    return [point for point in placed if _finite(point.x) and _finite(point.y)]


def _told(x: Axis, a: float, b: float) -> str:
    names = x.whole or x.names
    return f"{names[int(a)]}: {b:.4g}" if a in range(len(names)) else f"{a:g}, {b:.4g}"


def _spans(one: Series, x: Axis, y: Axis) -> Iterator[tuple[float, float, float]]:
    """Where each point with a span lies, and its ends, in the axes' own units."""
    for (a, _), ends in zip(one.points, one.spans, strict=False):
        placed = (_placed(x, a), *(_placed(y, end) for end in ends))
        if all(map(_finite, placed)):
            yield placed[0], placed[1], placed[2]


def _lies(axis: Axis) -> Axis:
    """The axis with its ends where `_placed` puts them."""
    if not axis.log:
        return axis
    low, high = (None if end is None else _placed(axis, end) for end in (axis.low, axis.high))
    return Axis(axis.title, low, high, axis.names, log=True)


def _placed(axis: Axis, value: float) -> float:
    if not axis.log:
        return value
    return math.log10(value) if 0 < value < _HUGE else math.nan


def _finite(value: float) -> bool:
    return math.isfinite(value) and abs(value) < _HUGE


def _step(raw: float) -> float:
    """The least of 1, 2, 5 and 10 times a power of ten that is as much."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= raw * (1 - 1e-9))


def _number(value: float, step: float) -> str:
    if abs(value) >= 1e6 or step < 1e-4:
        return f"{value:.4g}"
    return f"{value + 0.0:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
