"""Distances between two histograms of the same bins, and what chance makes of each.

A histogram is the rows per bin, int64, shape `(B,)`. Where the bins' order counts, it is theirs. Several may stand one
behind the other, shape `(bins of all,)`; `starts`, shape `(histograms,)`, then says where each begins, and what comes
of them has that shape. Each has a bin at least. `spread` is 1/n + 1/N, of the rows of both sides: with it the laws
without drift scale.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "cramers_v",
    "hellinger",
    "js",
    "ks",
    "ks_floor",
    "ks_p_value",
    "psi",
    "psi_floor",
    "psi_p_value",
    "running",
    "share_floor",
    "share_p_value",
    "totals",
    "wasserstein",
]

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Starts = NDArray[np.intp]
# A float of one histogram, and an array of several.
Value = Any


def totals(values: NDArray[Any], starts: Starts | None = None) -> Value:
    """What each histogram adds up to."""
    return values.sum() if starts is None else np.add.reduceat(values, starts)


def _per_bin(values: Value, starts: Starts | None, bins: int) -> Value:
    """A value of each histogram, at each of its bins."""
    return values if starts is None else np.repeat(values, np.diff(starts, append=bins))


def _shares(counts: NDArray[Any], starts: Starts | None) -> Floats:
    shares: Floats = counts / _per_bin(totals(counts, starts), starts, len(counts))
    return shares


def running(counts: Counts, starts: Starts | None) -> Counts:
    """Running totals, of each histogram by itself."""
    whole: Counts = np.cumsum(counts)
    return whole if starts is None else whole - _per_bin(whole[starts] - counts[starts], starts, len(counts))


def psi(current: Counts, reference: Counts, starts: Starts | None = None) -> Value:
    """Population stability index, in nats: sum of (p - q) ln(p / q) over the bins.

    It is the symmetric divergence J of Jeffreys, "An invariant form for the prior probability in estimation problems",
    Proc. R. Soc. A 186 (1946). Each bin gets half a row more on both sides and the shares are taken of the enlarged
    totals (Jeffreys' prior), so that an empty bin gives a finite, small term: p = (c + 0.5) / (n + 0.5 B).
    """
    p, q = (_shares(counts + 0.5, starts) for counts in (current, reference))
    return totals((p - q) * np.log(p / q), starts)


def psi_floor(bins: Value, spread: Value, level: float) -> Value:
    """What PSI passes by chance with probability `level`: the chi²(B - 1) quantile times (1/n + 1/N).

    To second order PSI is the two-sample chi² statistic times (1/n + 1/N): Yurdakul & Naranjo, "Statistical properties
    of the population stability index", Journal of Risk Model Validation 14 (2020).
    """
    # Imported late, here and below: it takes 0.3 s, which a command that compares nothing should not wait for.
    from scipy.special import chdtri

    return np.where(bins > 1, chdtri(np.maximum(bins - 1, 1), level) * spread, 0.0)


def psi_p_value(value: Value, bins: Value, spread: Value) -> Value:
    """The chance of a PSI at least as large without drift; see `psi_floor`."""
    from scipy.special import chdtrc

    return np.where(bins > 1, chdtrc(np.maximum(bins - 1, 1), value / spread), 1.0)


def ks(current: Counts, reference: Counts, starts: Starts | None = None) -> Value:
    """Kolmogorov-Smirnov distance: the largest |F - G| at the bins' right edges.

    The distance of the raw values exceeds it by at most the largest share that a bin of either side holds. Each side
    has a row at least.
    """
    far = np.abs(_reached(current, starts) - _reached(reference, starts))
    return far.max() if starts is None else np.maximum.reduceat(far, starts)


def _reached(counts: Counts, starts: Starts | None) -> Floats:
    """The distribution function at the bins' right edges."""
    reached: Floats = running(counts, starts) / _per_bin(totals(counts, starts), starts, len(counts))
    return reached


def ks_floor(spread: Value, level: float) -> Value:
    """What KS passes by chance with probability `level`, or less with ties: sqrt(ln(2 / level) (1/n + 1/N) / 2).

    The first term of the limit law: Smirnov, "Table for estimating the goodness of fit of empirical distributions",
    Annals of Mathematical Statistics 19 (1948).
    """
    return np.sqrt(math.log(2 / level) / 2 * spread)


def ks_p_value(value: Value, spread: Value) -> Value:
    """The chance of a KS at least as large without drift, by the limit law; an upper bound with ties."""
    from scipy.special import kolmogorov

    return kolmogorov(value / np.sqrt(spread))


def wasserstein(
    current: Counts, current_sums: Floats, reference: Counts, reference_sums: Floats, starts: Starts | None = None
) -> Value:
    """The first Wasserstein distance, in the values' unit: the area between both distribution functions.

    The rows of a bin stand at their mean. The distance of the raw values differs from it by at most the mean absolute
    deviation of rows from the mean of their bin, both sides' together. Each side has a row at least.

    Args:
        current: Rows per bin, in the order of the bins' values.
        current_sums: The sum of their values per bin.
        reference: Rows of the same bins.
        reference_sums: The sum of their values.
        starts: Where each histogram begins.
    """
    f, g = _reached(current, starts), _reached(reference, starts)
    p, q = _shares(current, starts), _shares(reference, starts)
    means = [
        np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
        for counts, sums in ((current, current_sums), (reference, reference_sums))
    ]
    low, high = np.fmin(*means), np.fmax(*means)
    # Inside of a bin one side has come to its rows there, and the other has not.
    apart = np.where(means[0] < means[1], f - (g - q), (f - p) - g)
    areas = np.where((current > 0) & (reference > 0), np.abs(apart) * (high - low), 0.0)
    filled = np.flatnonzero((current > 0) | (reference > 0))
    gaps = np.abs(f - g)[filled[:-1]] * (low[filled[1:]] - high[filled[:-1]])
    if starts is not None:
        of = _per_bin(np.arange(len(starts)), starts, len(current))[filled]
        gaps = np.where(of[1:] == of[:-1], gaps, 0.0)
    areas[filled[:-1]] += gaps
    return totals(areas, starts)


def js(current: Counts, reference: Counts, starts: Starts | None = None) -> Value:
    """Jensen-Shannon distance, from 0 to 1: the root of the divergence in bits.

    Source: Endres & Schindelin, "A new metric for probability distributions", IEEE Trans. Inf. Theory 49 (2003). The
    base of the logarithm is 2; with the natural one it is 0.83 times as large.
    """
    p, q = _shares(current, starts), _shares(reference, starts)
    middle = (p + q) / 2
    parts = (side * np.log2(np.divide(side, middle, out=np.ones(len(side)), where=side > 0)) for side in (p, q))
    return np.sqrt(np.maximum(totals(sum(parts, np.zeros(len(p))), starts) / 2, 0.0))


def hellinger(current: Counts, reference: Counts, starts: Starts | None = None) -> Value:
    """Hellinger distance, from 0 to 1: the root of 1 - sum of sqrt(p q)."""
    p, q = _shares(current, starts), _shares(reference, starts)
    return np.sqrt(np.maximum(1 - totals(np.sqrt(p * q), starts), 0.0))


def cramers_v(current: Counts, reference: Counts, starts: Starts | None = None) -> tuple[Value, Value]:
    """Cramér's V of the table of sides and bins, from 0 to 1, and the p-value of its chi² test.

    Bins empty on both sides are left out.
    """
    from scipy.special import chdtrc

    both = current + reference
    rows, bins = totals(both, starts), totals(both > 0, starts)
    chi2 = sum(
        totals(np.divide((side - expected) ** 2, expected, out=np.zeros(len(both)), where=both > 0), starts)
        for side in (current, reference)
        for expected in [_per_bin(totals(side, starts) / rows, starts, len(both)) * both]
    )
    there = bins > 1
    return np.where(there, np.sqrt(chi2 / rows), 0.0), np.where(there, chdtrc(np.maximum(bins - 1, 1), chi2), 1.0)


def share_floor(p: Value, n: Value, q: Value, reference_n: Value, level: float) -> Value:
    """What the difference of two shares passes, up or down, by chance with probability `level`.

    z sqrt(s (1 - s) (1/n + 1/N)) + (z² + 2) / (6 min(n, N)), with s the share in both sides' rows together and z the
    normal quantile of 1 - level / 2. The second term bounds the skew of a rare event's count (Cornish & Fisher,
    "Moments and cumulants in the specification of distributions", Revue de l'Institut International de Statistique 5
    (1938)) and its steps of one row; without it a share near 0 passes the bound several times as often as promised.
    """
    z = -NormalDist().inv_cdf(level / 2)
    return z * _deviation(p, n, q, reference_n) + (z * z + 2) / (6 * np.minimum(n, reference_n))


def share_p_value(p: Value, n: Value, q: Value, reference_n: Value) -> Value:
    """The chance of two shares at least as far apart without drift, by the normal law."""
    from scipy.special import erfc

    deviation = _deviation(p, n, q, reference_n)
    there = deviation > 0
    return np.where(there, erfc(abs(p - q) / np.where(there, deviation, 1.0) / math.sqrt(2)), 1.0)


def _deviation(p: Value, n: Value, q: Value, reference_n: Value) -> Value:
    pooled = (p * n + q * reference_n) / (n + reference_n)
    return np.sqrt(np.maximum(pooled * (1 - pooled), 0.0) * (1 / n + 1 / reference_n))
