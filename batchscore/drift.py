"""How far a run's columns have moved from a reference: another run, or the training rows.

Every number comes from two profiles against the same layout; no row is read. A metric has moved when it is both large
enough to matter, its effect band, and larger than chance makes it at these row counts, its noise floor. A p-value alone
would call every difference drift once there are enough rows; an effect size alone fires on chance when there are few.

The noise floors are cut at `alpha` divided by the number of columns (Bonferroni). So, for each metric, the chance that
any column of a run without drift is called moved is at most about `alpha`; the band makes it far smaller for all but
small runs.

The floors assume rows that are drawn independently. Rows of one day rarely are: flights share an airport's weather,
orders share a campaign, and so a day's rows tell as much as fewer independent ones would. Without any lasting change,
small excesses over the floor are then common, and the promise above does not hold for them; it is the band that keeps
them from counting. A value just above its band on one day is a reason to look at the days around it, not an alarm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from batchscore.errors import ProfileMismatch
from batchscore.layout import Kind
from batchscore.profile import ColumnProfile, Profile

__all__ = ["BANDS", "MINIMUM_ROWS", "Drift", "Metric", "Verdict", "compare", "ks", "psi"]

Metric = Literal["psi", "ks", "null_share", "unseen_share"]
Verdict = Literal["steady", "moved", "not enough data"]
Counts = NDArray[np.int64]

BANDS: Mapping[Metric, float] = {"psi": 0.2, "ks": 0.1, "null_share": 0.02, "unseen_share": 0.01}
"""The effect at which each metric counts as moved."""

MINIMUM_ROWS = 200
"""With fewer on either side, no metric says moved or steady."""

# A calendar moves by nature, so the values of a datetime column are not compared; of text only the lengths are known.
_METRICS: Mapping[Kind, tuple[Metric, ...]] = {
    "numeric": ("psi", "ks", "null_share"),
    "categorical": ("psi", "null_share", "unseen_share"),
    "boolean": ("psi", "null_share"),
    "datetime": ("null_share",),
    "text": ("ks", "null_share"),
}
_COARSE_BINS = 10
_MOST_CATEGORIES = 20
_RARE_SHARE = 0.005
_LEAST_EXPECTED = 10


@dataclass(frozen=True, slots=True)
class Drift:
    """One metric of one column, current against reference.

    Attributes:
        column: The column's name.
        metric: Which metric; see `psi`, `ks` and `compare`.
        value: The metric; signed for the two shares (current less reference). None where either side has nothing to
            measure.
        floor: Noise floor: what |value| stays below by chance. None with `value`.
        band: The effect at which |value| counts.
        verdict: Whether |value| has reached the band and is above the floor.
        n: What the metric is measured over in the current rows: for psi and ks, values that are not NULL or NaN; for
            the shares, rows.
        reference_n: The same in the reference.
    """

    column: str
    metric: Metric
    value: float | None
    floor: float | None
    band: float
    verdict: Verdict
    n: int
    reference_n: int


def compare(current: Profile, reference: Profile, *, alpha: float = 0.01) -> list[Drift]:
    """Compare every column that both profiles have, in the reference's order.

    | metric       | kinds                         | value                                         | band |
    |--------------|-------------------------------|-----------------------------------------------|------|
    | psi          | numeric, categorical, boolean | `psi` over at most 10 bins or 20 categories   | 0.2  |
    | ks           | numeric, text (its length)    | `ks` over all bins                            | 0.1  |
    | null_share   | all                           | difference of the shares of rows, NULL or NaN | 0.02 |
    | unseen_share | categorical                   | difference of the shares of rows              | 0.01 |

    NULL and NaN are no part of psi and ks: a surge of them is null_share's to report, and would otherwise be reported
    twice. An infinity counts in the outermost bin. Unseen categories are a bin of psi. Where the reference is the
    training rows, a category that occurs once in them counts as unseen: new rows of the same kind bring as many.

    Args:
        current: What is judged.
        reference: What it is judged by; counted against the same layouts.
        alpha: Chance, for each metric, of calling any column moved without drift.

    Raises:
        ProfileMismatch: A column's layouts differ.
    """
    names = [name for name in reference.columns if name in current.columns]
    return [
        _drift(name, metric, current.columns[name], reference.columns[name], alpha / len(names))
        for name in names
        for metric in _METRICS[_common_kind(name, current, reference)]
    ]


def psi(current_counts: Counts, reference_counts: Counts) -> float:
    """Population stability index, in nats: sum of (p - q) ln(p / q) over the bins.

    It is the symmetric divergence J of Jeffreys, "An invariant form for the prior probability in estimation problems",
    Proc. R. Soc. A 186 (1946). Each bin gets half a row more on both sides and the shares are taken of the enlarged
    totals (Jeffreys' prior), so that an empty bin gives a finite, small term: p = (c + 0.5) / (n + 0.5 B).

    Args:
        current_counts: Rows per bin, shape `(B,)`.
        reference_counts: Rows of the same bins.
    """
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (current_counts, reference_counts))
    return float(np.sum((p - q) * np.log(p / q)))


def ks(current_counts: Counts, reference_counts: Counts) -> float:
    """Kolmogorov-Smirnov distance: the largest |F - G| at the bins' right edges.

    The distance of the raw values exceeds it by at most the largest share that a bin of either side holds.

    Args:
        current_counts: Rows per bin, in the bins' order, shape `(B,)`, at least one row.
        reference_counts: Rows of the same bins, at least one row.
    """
    f, g = (np.cumsum(counts) / counts.sum() for counts in (current_counts, reference_counts))
    return float(np.abs(f - g).max())


def _common_kind(name: str, current: Profile, reference: Profile) -> Kind:
    layout, other = current.columns[name].layout, reference.columns[name].layout
    if layout != other:
        raise ProfileMismatch(
            f"Column {name} was counted against unlike layouts, {layout.digest[:12]} and {other.digest[:12]}: they "
            "belong to different model versions. Compare profiles of one model version.",
            column=name,
            want=other.digest,
            got=layout.digest,
        )
    return layout.kind


def _drift(name: str, metric: Metric, current: ColumnProfile, reference: ColumnProfile, level: float) -> Drift:
    n, reference_n = (_size(side, metric) for side in (current, reference))
    band = BANDS[metric]
    if not n or not reference_n:
        return Drift(name, metric, None, None, band, "not enough data", n, reference_n)
    value, floor = _measure(metric, current, reference, level)
    verdict: Verdict = "moved" if abs(value) >= band and abs(value) > floor else "steady"
    if min(n, reference_n) < MINIMUM_ROWS:
        verdict = "not enough data"
    return Drift(name, metric, value, floor, band, verdict, n, reference_n)


def _size(side: ColumnProfile, metric: Metric) -> int:
    return side.n if metric in ("null_share", "unseen_share") else int(_counts(side).sum())


def _counts(side: ColumnProfile) -> Counts:
    """Rows per bin or category, an infinity in the outermost bin; NULL and NaN left out."""
    counts = side.counts.copy()
    counts[0] += side.neg_inf
    counts[-1] += side.pos_inf
    return counts


def _measure(metric: Metric, current: ColumnProfile, reference: ColumnProfile, level: float) -> tuple[float, float]:
    """The metric's value and its noise floor."""
    c, r = _counts(current), _counts(reference)
    if current.layout.kind == "categorical":
        r = _left_one_out(r)
    match metric:
        case "psi":
            c, r = _coarsened(c, r, current.layout.kind)
            return psi(c, r), _psi_floor(c, r, level)
        case "ks":
            return ks(c, r), _ks_floor(c, r, level)
        case "null_share":
            p, q = current.null_share, reference.null_share
        case "unseen_share":
            p, q = current.unseen_share, int(r[-1]) / reference.n
    return p - q, _share_floor(p, current.n, q, reference.n, level)


def _left_one_out(reference: Counts) -> Counts:
    """Category counts in which the training rows have the unseen values that new rows of the same kind would have.

    No value of the training rows is unseen, by construction, while of new rows a share is that is about the share of
    training rows whose category occurs once: each would be unseen had it been left out. Good, "The population
    frequencies of species and the estimation of population parameters", Biometrika 40 (1953). Without this every
    column with a long tail would be called moved. A reference that lacks a category, or has unseen ones, is not the
    training rows, and stays as it is.
    """
    if reference[-1] or not reference[:-1].all():
        return reference
    once = np.append(reference[:-1] == 1, False)
    left = np.where(once, 0, reference)
    left[-1] = once.sum()
    return left


def _coarsened(current: Counts, reference: Counts, kind: Kind) -> tuple[Counts, Counts]:
    """Both sides' counts over fewer bins, which adding fixed bins gives exactly."""
    if kind == "categorical":
        groups = _common_categories(reference, int(min(current.sum(), reference.sum())))
    else:
        groups = _equal_masses(reference)
    size = int(groups.max()) + 1
    c, r = (np.bincount(groups, counts, size).astype(np.int64) for counts in (current, reference))
    used = np.isin(np.arange(size), groups)
    return c[used], r[used]


def _equal_masses(reference: Counts) -> NDArray[np.intp]:
    """For each bin, one of ten groups of about equal reference mass: that in which the middle of its own mass lies.

    A bin that holds several tenths is a group alone. Bins beside it that the reference left empty then fall in another
    group, so that values on the wrong side of a constant or of a heavy zero are not added to it.
    """
    middles = (np.cumsum(reference) - reference / 2) / reference.sum()
    groups: NDArray[np.intp] = np.minimum(middles * _COARSE_BINS, _COARSE_BINS - 1).astype(np.intp)
    return groups


def _common_categories(reference: Counts, smaller: int) -> NDArray[np.intp]:
    """For each category its group: its own for the common ones, then one for all rare ones, then one for unseen ones.

    Rare is a category with less than 0.5 % of the reference, or of which the smaller side would have fewer than ten
    rows (chi² is no law for less), or that is not among the 18 largest.
    """
    shares = reference[:-1] / reference.sum()
    largest = np.argsort(-shares, kind="stable")[: _MOST_CATEGORIES - 2]
    common = largest[(shares[largest] >= _RARE_SHARE) & (shares[largest] * smaller >= _LEAST_EXPECTED)]
    groups = np.full(len(reference), len(common))
    groups[common] = np.arange(len(common))
    groups[-1] = len(common) + 1
    return groups


def _psi_floor(current: Counts, reference: Counts, level: float) -> float:
    """What PSI passes by chance with probability `level`: the chi²(B - 1) quantile times (1/n + 1/N).

    To second order PSI is the two-sample chi² statistic times (1/n + 1/N): Yurdakul & Naranjo, "Statistical properties
    of the population stability index", Journal of Risk Model Validation 14 (2020).
    """
    # Imported late: it takes 0.3 s, which a command that compares nothing should not wait for.
    from scipy.special import chdtri

    freedom = len(reference) - 1
    return float(chdtri(freedom, level)) * _spread(current.sum(), reference.sum()) if freedom else 0.0


def _ks_floor(current: Counts, reference: Counts, level: float) -> float:
    """What KS passes by chance with probability `level`, or less with ties: sqrt(ln(2 / level) (1/n + 1/N) / 2).

    The first term of the limit law: Smirnov, "Table for estimating the goodness of fit of empirical distributions",
    Annals of Mathematical Statistics 19 (1948).
    """
    return math.sqrt(math.log(2 / level) / 2 * _spread(current.sum(), reference.sum()))


def _share_floor(p: float, n: int, q: float, reference_n: int, level: float) -> float:
    """What the difference of two shares passes, up or down, by chance with probability `level`.

    z sqrt(s (1 - s) (1/n + 1/N)) + (z² + 2) / (6 min(n, N)), with s the share in both sides' rows together and z the
    normal quantile of 1 - level / 2. The second term bounds the skew of a rare event's count (Cornish & Fisher,
    "Moments and cumulants in the specification of distributions", Revue de l'Institut International de Statistique 5
    (1938)) and its steps of one row; without it a share near 0 passes the bound several times as often as promised.
    """
    z = -NormalDist().inv_cdf(level / 2)
    pooled = (p * n + q * reference_n) / (n + reference_n)
    return z * math.sqrt(pooled * (1 - pooled) * _spread(n, reference_n)) + (z * z + 2) / (6 * min(n, reference_n))


def _spread(n: int, reference_n: int) -> float:
    return float(1 / n + 1 / reference_n)
