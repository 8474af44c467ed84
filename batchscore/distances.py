"""Distances between two histograms of the same bins, and what chance makes of each.

A histogram is the rows per bin, int64, shape `(B,)`. Where the bins' order counts, it is theirs. `spread` is
1/n + 1/N, of the rows of both sides: with it the laws without drift scale.
"""

from __future__ import annotations

import math
from statistics import NormalDist

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
    "share_floor",
    "share_p_value",
    "wasserstein",
]

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def psi(current: Counts, reference: Counts) -> float:
    """Population stability index, in nats: sum of (p - q) ln(p / q) over the bins.

    It is the symmetric divergence J of Jeffreys, "An invariant form for the prior probability in estimation problems",
    Proc. R. Soc. A 186 (1946). Each bin gets half a row more on both sides and the shares are taken of the enlarged
    totals (Jeffreys' prior), so that an empty bin gives a finite, small term: p = (c + 0.5) / (n + 0.5 B).
    """
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (current, reference))
    return float(np.sum((p - q) * np.log(p / q)))


def psi_floor(bins: int, spread: float, level: float) -> float:
    """What PSI passes by chance with probability `level`: the chi²(B - 1) quantile times (1/n + 1/N).

    To second order PSI is the two-sample chi² statistic times (1/n + 1/N): Yurdakul & Naranjo, "Statistical properties
    of the population stability index", Journal of Risk Model Validation 14 (2020).
    """
    # Imported late, here and below: it takes 0.3 s, which a command that compares nothing should not wait for.
    from scipy.special import chdtri

    return float(chdtri(bins - 1, level)) * spread if bins > 1 else 0.0


def psi_p_value(value: float, bins: int, spread: float) -> float:
    """The chance of a PSI at least as large without drift; see `psi_floor`."""
    from scipy.special import chdtrc

    return float(chdtrc(bins - 1, value / spread)) if bins > 1 else 1.0


def ks(current: Counts, reference: Counts) -> float:
    """Kolmogorov-Smirnov distance: the largest |F - G| at the bins' right edges.

    The distance of the raw values exceeds it by at most the largest share that a bin of either side holds. Each side
    has a row at least.
    """
    f, g = (np.cumsum(counts) / counts.sum() for counts in (current, reference))
    return float(np.abs(f - g).max())


def ks_floor(spread: float, level: float) -> float:
    """What KS passes by chance with probability `level`, or less with ties: sqrt(ln(2 / level) (1/n + 1/N) / 2).

    The first term of the limit law: Smirnov, "Table for estimating the goodness of fit of empirical distributions",
    Annals of Mathematical Statistics 19 (1948).
    """
    return math.sqrt(math.log(2 / level) / 2 * spread)


def ks_p_value(value: float, spread: float) -> float:
    """The chance of a KS at least as large without drift, by the limit law; an upper bound with ties."""
    from scipy.special import kolmogorov

    return float(kolmogorov(value / math.sqrt(spread)))


def wasserstein(current: Counts, current_sums: Floats, reference: Counts, reference_sums: Floats) -> float:
    """The first Wasserstein distance, in the values' unit: the area between both distribution functions.

    The rows of a bin stand at their mean. The distance of the raw values differs from it by at most the mean absolute
    deviation of rows from the mean of their bin, both sides' together. Each side has a row at least.

    Args:
        current: Rows per bin.
        current_sums: The sum of their values per bin.
        reference: Rows of the same bins.
        reference_sums: The sum of their values.
    """
    sides = ((current, current_sums, 1.0), (reference, reference_sums, -1.0))
    filled = [(counts > 0, counts, sums, sign) for counts, sums, sign in sides]
    values = np.concatenate([sums[some] / counts[some] for some, counts, sums, _ in filled])
    steps = np.concatenate([sign * counts[some] / counts.sum() for some, counts, _, sign in filled])
    order = np.argsort(values, kind="stable")
    return float(np.sum(np.abs(np.cumsum(steps[order])[:-1]) * np.diff(values[order])))


def js(current: Counts, reference: Counts) -> float:
    """Jensen-Shannon distance, from 0 to 1: the root of the divergence in bits.

    Source: Endres & Schindelin, "A new metric for probability distributions", IEEE Trans. Inf. Theory 49 (2003). The
    base of the logarithm is 2; with the natural one it is 0.83 times as large.
    """
    p, q = current / current.sum(), reference / reference.sum()
    middle = (p + q) / 2
    parts = (side[side > 0] @ np.log2(side[side > 0] / middle[side > 0]) for side in (p, q))
    return math.sqrt(max(sum(map(float, parts)) / 2, 0.0))


def hellinger(current: Counts, reference: Counts) -> float:
    """Hellinger distance, from 0 to 1: the root of 1 - sum of sqrt(p q)."""
    p, q = current / current.sum(), reference / reference.sum()
    return math.sqrt(max(1 - float(np.sqrt(p * q).sum()), 0.0))


def cramers_v(current: Counts, reference: Counts) -> tuple[float, float]:
    """Cramér's V of the table of sides and bins, from 0 to 1, and the p-value of its chi² test.

    Bins empty on both sides are left out.
    """
    from scipy.special import chdtrc

    table = np.stack([current, reference]).astype(np.float64)
    table = table[:, table.sum(0) > 0]
    if table.shape[1] < 2:
        return 0.0, 1.0
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    chi2 = float(((table - expected) ** 2 / expected).sum())
    return math.sqrt(chi2 / float(table.sum())), float(chdtrc(table.shape[1] - 1, chi2))


def share_floor(p: float, n: int, q: float, reference_n: int, level: float) -> float:
    """What the difference of two shares passes, up or down, by chance with probability `level`.

    z sqrt(s (1 - s) (1/n + 1/N)) + (z² + 2) / (6 min(n, N)), with s the share in both sides' rows together and z the
    normal quantile of 1 - level / 2. The second term bounds the skew of a rare event's count (Cornish & Fisher,
    "Moments and cumulants in the specification of distributions", Revue de l'Institut International de Statistique 5
    (1938)) and its steps of one row; without it a share near 0 passes the bound several times as often as promised.
    """
    z = -NormalDist().inv_cdf(level / 2)
    return z * _deviation(p, n, q, reference_n) + (z * z + 2) / (6 * min(n, reference_n))


def share_p_value(p: float, n: int, q: float, reference_n: int) -> float:
    """The chance of two shares at least as far apart without drift, by the normal law."""
    deviation = _deviation(p, n, q, reference_n)
    return math.erfc(abs(p - q) / deviation / math.sqrt(2)) if deviation else 1.0


def _deviation(p: float, n: int, q: float, reference_n: int) -> float:
    pooled = (p * n + q * reference_n) / (n + reference_n)
    return math.sqrt(max(pooled * (1 - pooled), 0.0) * (1 / n + 1 / reference_n))
