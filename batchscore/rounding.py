"""Measured numbers as people read them: four digits, and as many decimals down a column."""

from __future__ import annotations

from collections.abc import Iterable
from math import floor, isfinite, log10

__all__ = ["digits_of", "rounded"]


def digits_of(values: Iterable[float | None]) -> int:
    """Decimals with which the largest of the values shows four digits."""
    most = max((abs(value) for value in values if value is not None and isfinite(value)), default=0.0)
    return 4 if most < 1e-3 else min(6, max(0, 3 - max(floor(log10(most)), -1)))


def rounded(value: float | None, digits: int | None = None) -> str:
    """A number with that many decimals, or with four digits; empty for None."""
    if value is None:
        return ""
    if value and (abs(value) >= 1e9 or abs(value) < 1e-4):
        return f"{value:.3g}"
    return f"{value:,.{digits_of([value]) if digits is None else digits}f}"
