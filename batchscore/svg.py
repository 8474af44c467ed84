"""SVG text: the elements of one drawing, and about how wide a word is in it."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass, field
from html import escape
from typing import Literal

__all__ = ["WIDTH", "Drawing", "length"]

WIDTH = 440.0
# About, of the fonts there are: nobody can ask before a browser shows it.
_LETTER, _CAPITAL, _WIDE = 6.7, 8.4, 12.5


@dataclass(slots=True)
class Drawing:
    """Elements of one SVG, painted in the order in which they are added.

    Attributes:
        title: The picture in a few words, for those who do not see it.
        told: What there is to see in it, for the same.
        height: Of the viewBox; its width is `WIDTH`.
        parts: The elements.
    """

    title: str
    told: str
    height: float
    parts: list[str] = field(default_factory=list)

    def line(self, kind: str, *points: tuple[float, float]) -> None:
        """Straight lines from point to point."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline class="{kind}" points="{path}"/>')

    def dot(self, kind: str, x: float, y: float, radius: float, tip: str) -> None:
        """A disc; a pointer that rests on it is shown the tip."""
        self.parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{_tip(tip)}</circle>')

    def box(self, kind: str, x: float, y: float, width: float, height: float, tip: str, shade: float = 1.0) -> None:
        """A filled rectangle, of an opacity from 0 to 1."""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{max(0.0, height):.1f}"'
        self.parts.append(f'<rect class="{kind}" {place} fill-opacity="{shade:.2f}">{_tip(tip)}</rect>')

    def text(
        self,
        kind: str,
        x: float,
        y: float,
        text: str,
        anchor: Literal["start", "middle", "end"] = "start",
        room: float = math.inf,
        upwards: bool = False,
    ) -> None:
        """Text on one line; what there is no room for becomes `…`, and its whole a tip."""
        shown = _clipped(text, room)
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if upwards else ""
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}'
        self.parts.append(f'<text class="{kind}" {place}>{_safe(shown)}{_tip(text) if shown != text else ""}</text>')

    def __str__(self) -> str:
        return (
            f'<svg class="chart" role="img" viewBox="0 0 {WIDTH:g} {self.height:g}">'
            f"<title>{_safe(self.title)}</title><desc>{_safe(self.told)}</desc>{''.join(self.parts)}</svg>"
        )


def length(text: str) -> float:
    """About how long a text is, in units of the viewBox."""
    return sum(
        _WIDE if unicodedata.east_asian_width(c) in "WF" else _CAPITAL if c.isupper() or c in "mw@%_" else _LETTER
        for c in text
    )


def _clipped(text: str, room: float) -> str:
    if length(text) <= room:
        return text
    kept, used = 0, _LETTER
    while (used := used + length(text[kept])) <= room:
        kept += 1
    return text[:kept] + "…"


def _tip(text: str) -> str:
    return f"<title>{_safe(text)}</title>"


def _safe(text: str) -> str:
    """Text for XML, which has no place for control characters and halves of a pair even when they are escaped."""
    odd = {c for c in text if c not in "\t\n" and (unicodedata.category(c) in ("Cc", "Cs") or c in "\ufffe\uffff")}
    return escape("".join("\ufffd" if c in odd else c for c in text))
