"""Charts: whatever the numbers, well-formed SVG whose every coordinate is finite and inside its box."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscore import charts
from batchscore.charts import Axis, Bar, Series

anything = st.floats() | st.integers(-3, 3).map(float)
names = st.text(max_size=40)
points = st.lists(st.tuples(anything, anything), max_size=12)


def parsed(svg: str) -> ET.Element:
    """The drawing, whose coordinates were looked at."""
    root = ET.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in ("x", "x1", "cx", "width"):
                assert 0 <= float(value) <= width + 0.1, (name, element.attrib)
            elif name in ("y", "cy", "height"):
                assert 0 <= float(value) <= height + 0.1, (name, element.attrib)
            elif name == "r":
                assert 0 < float(value) < 20
            elif name == "points":
                pairs = [tuple(map(float, pair.split(","))) for pair in value.split()]
                assert all(0 <= x <= width + 0.1 and 0 <= y <= height + 0.1 for x, y in pairs), pairs
    return root


def texts(root: ET.Element) -> list[str]:
    """The texts that are shown."""
    return [element.text or "" for element in root.iter("text")]


class TestPlot:
    @given(points, points, names, st.booleans(), st.sampled_from(["line", "points", "dots", "hollow", "rule"]))
    @settings(max_examples=300, deadline=None)
    def test_any_numbers(
        self, one: list[tuple[float, float]], two: list[tuple[float, float]], name: str, log: bool, kind: str
    ) -> None:
        """NaN, infinities, the largest and the smallest floats, no points and equal ones all give a sound drawing."""
        spans = [(b, a) for a, b in one]
        series = [Series(name, one, kind, spans=spans), Series("b", two, "points", [abs(a) for a, _ in two])]  # type: ignore[arg-type]

        root = parsed(charts.plot(name, name, Axis(name, log=log), Axis("y"), series))

        drawn = [p for p in two if all(math.isfinite(v) and abs(v) < 1e100 for v in p) and (not log or 0 < p[0])]
        shown = [dot for dot in root.iter("circle") if "s1" in dot.attrib["class"] or kind in ("rule", "hollow")]
        assert len([dot for dot in shown if not {"mark", "hollow"} & set(dot.attrib["class"].split())]) == len(drawn)

    def test_places(self) -> None:
        """Points lie where the axes say: to the right and upwards, between fixed ends."""
        svg = charts.plot(
            "t", "d", Axis("x", 0, 10), Axis("y", 0, 1), [Series("", [(0, 0), (5, 0.5), (10, 1)], "dots")]
        )

        dots = [(float(d.attrib["cx"]), float(d.attrib["cy"])) for d in parsed(svg).iter("circle")]

        (left, bottom), middle, (right, top) = dots
        assert left < right
        assert top < bottom
        assert middle == pytest.approx(((left + right) / 2, (top + bottom) / 2), abs=0.1)

    def test_spans(self) -> None:
        """A point's span goes through it from end to end, and the axis reaches as far; a hollow point takes no colour."""
        series = [Series("", [(0, 1), (2, 1)], "hollow"), Series("", [(1, 2)], "dots", spans=[(0, 6)])]

        root = parsed(charts.plot("t", "d", Axis("x"), Axis("y"), series))

        (span,) = [line for line in root.iter("polyline") if line.attrib["class"] == "span"]
        (x, low), (other_x, high) = (map(float, pair.split(",")) for pair in span.attrib["points"].split())
        hollow, _, dot = root.iter("circle")
        assert (hollow.attrib["class"], dot.attrib["class"]) == ("dot hollow", "dot s0")
        assert x == other_x == float(dot.attrib["cx"])
        assert float(dot.attrib["cy"]) == pytest.approx(low + (high - low) / 3, abs=0.2)

    def test_ticks(self) -> None:
        """Ticks are round numbers, with no more decimals than they need; powers of ten on a logarithmic axis."""
        plain = charts.plot("t", "d", Axis("", 0, 1), Axis("", 0, 25_000), [])
        log = charts.plot("t", "d", Axis("", log=True), Axis("", 0, 1), [Series("", [(0.001, 0), (10, 1)])])

        assert texts(parsed(plain))[:6] == ["0", "5,000", "10,000", "15,000", "20,000", "25,000"]
        assert texts(parsed(plain))[6:12] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        assert texts(parsed(log))[6:11] == ["0.001", "0.01", "0.1", "1", "10"]

    def test_labels_apart(self) -> None:
        """The names of two lines that end at one height do not overlap."""
        lines = [Series("train", [(0, 0), (1, 0)]), Series("validation", [(0, 1), (1, 0)])]

        root = parsed(charts.plot("t", "d", Axis("x"), Axis("y"), lines))

        heights = [float(e.attrib["y"]) for e in root.iter("text") if e.text in ("train", "validation")]
        assert abs(heights[0] - heights[1]) >= 12

    def test_area_of_a_weight(self) -> None:
        """A dot's area is in proportion to its weight, also when a point before it is left out."""
        series = Series("", [(math.nan, 0), (0, 0), (1, 1)], "points", [9, 1, 4])

        radii = [
            float(d.attrib["r"]) for d in parsed(charts.plot("t", "d", Axis("x"), Axis("y"), [series])).iter("circle")
        ]

        assert radii == [3.5, 7.0]

    def test_names_on_an_axis(self) -> None:
        """Positions get their names, and hostile ones stay text."""
        root = parsed(
            charts.plot("t", "d", Axis("x", names=["<script>", "b\0"]), Axis("y"), [Series("", [(0, 1), (1, 2)])])
        )

        assert {"<script>", "b\ufffd"} <= set(texts(root))
        assert not list(root.iter("script"))


class TestRows:
    @given(st.lists(st.tuples(names, anything, st.none() | anything, st.none() | anything), max_size=8), anything)
    @settings(max_examples=300, deadline=None)
    def test_any_numbers(self, rows: list[tuple[str, float, float | None, float | None]], mark: float) -> None:
        """Bars and dots are as sound as points are."""
        given = [Bar(label, value, f"{value}", low, high) for label, value, low, high in rows]
        known = sum(math.isfinite(value) and abs(value) < 1e100 for _, value, _, _ in rows)

        assert len(list(parsed(charts.bars("t", "d", Axis("x"), given)).iter("rect"))) == known
        assert len(list(parsed(charts.dots("t", "d", Axis("x"), given, (mark, "m"))).iter("circle"))) == known

    def test_bars_from_0(self) -> None:
        """A bar is as long as its value, and a negative one lies on the other side of 0."""
        root = parsed(charts.bars("t", "d", Axis("x"), [Bar("a", 4, "4"), Bar("b", 2, "2"), Bar("c", -2, "-2")]))

        a, b, c = ((float(r.attrib["x"]), float(r.attrib["width"])) for r in root.iter("rect"))
        assert a[1] == pytest.approx(2 * b[1], abs=0.2)
        assert a[0] == b[0]
        assert c[0] + c[1] == pytest.approx(a[0], abs=0.2)

    def test_whisker(self) -> None:
        """A whisker goes from low to high."""
        axis = Axis("x", 0, 10)
        root = parsed(charts.dots("t", "d", axis, [Bar("a", 5, "", 0, 10), Bar("b", 0, ""), Bar("c", 10, "")]))

        (whisker,) = (e.attrib["points"] for e in root.iter("polyline") if e.attrib["class"] == "whisker")
        _, low, high = (float(dot.attrib["cx"]) for dot in root.iter("circle"))
        assert [float(pair.split(",")[0]) for pair in whisker.split()] == [low, high]

    def test_long_name(self) -> None:
        """A name that has no room is cut, and told whole to a pointer that rests on it."""
        root = parsed(charts.bars("t", "d", Axis("x"), [Bar("n" * 200, 1, "1")]))

        (cut,) = (e for e in root.iter("text") if (e.text or "").startswith("nnn"))
        assert cut.text is not None
        assert re.fullmatch("n{5,40}…", cut.text)
        assert cut.findtext("title") == "n" * 200


class TestMatrix:
    @given(st.integers(0, 60), names, st.integers(0, 10**7), st.integers(0, 10**7))
    def test_any_counts(self, classes: int, name: str, right: int, wrong: int) -> None:
        """There is a cell for each pair of classes, also of classes without rows and of many."""
        counts = [[right if i == j else wrong for j in range(classes)] for i in range(classes)]

        assert len(list(parsed(charts.matrix("t", "d", [name] * classes, counts)).iter("rect"))) == classes**2

    def test_shade(self) -> None:
        """A cell is the darker the more of its row it holds; a row without rows is light."""
        root = parsed(charts.matrix("t", "d", ["a", "b"], [[9, 1], [0, 0]]))

        shades = [float(cell.attrib["fill-opacity"]) for cell in root.iter("rect")]
        assert shades[0] > shades[1] > shades[2] == shades[3]
        assert {"9", "90.0%", "1", "10.0%"} <= set(texts(root))


def test_told_to_those_who_do_not_see_it() -> None:
    """A chart is an image with a title and a description, and markup in them stays text."""
    root = parsed(charts.plot("<b>&", 'a "d"', Axis("x"), Axis("y"), []))

    assert root.attrib["role"] == "img"
    assert (root.findtext("title"), root.findtext("desc")) == ("<b>&", 'a "d"')
