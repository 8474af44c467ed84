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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from batchscore import distances
from batchscore.errors import ProfileMismatch
from batchscore.layout import Kind, Layout
from batchscore.profile import ColumnProfile, Profile

__all__ = ["BANDS", "MINIMUM_ROWS", "Drift", "Metric", "Times", "Verdict", "compare"]

Metric = Literal[
    "psi",
    "ks",
    "wasserstein",
    "js",
    "hellinger",
    "cramers_v",
    "null_share",
    "unseen_share",
    "outside_share",
    "staleness",
    "domain_auc",
]
Verdict = Literal["steady", "moved", "not enough data", "not judged"]
Counts = NDArray[np.int64]

BANDS: Mapping[Metric, float] = {
    "psi": 0.2,
    "ks": 0.1,
    "null_share": 0.02,
    "unseen_share": 0.01,
    "outside_share": 0.01,
    "staleness": 1.0,
    "domain_auc": 0.6,
}
"""The effect at which each metric counts as moved. The others are measured and not judged: they say the same again."""

MINIMUM_ROWS = 200
"""With fewer on either side, no metric says moved or steady."""

_SHAPE: tuple[Metric, ...] = ("psi", "js", "hellinger")
# A calendar moves by nature, so the values of a datetime column are not compared, only how old the newest is.
_METRICS: Mapping[Kind, tuple[Metric, ...]] = {
    "numeric": (*_SHAPE, "ks", "wasserstein", "null_share", "outside_share"),
    "integer": (*_SHAPE, "ks", "wasserstein", "null_share", "unseen_share"),
    "categorical": (*_SHAPE, "cramers_v", "null_share", "unseen_share"),
    "boolean": (*_SHAPE, "cramers_v", "null_share"),
    "datetime": ("null_share", "staleness"),
    "text": (*_SHAPE, "ks", "null_share"),
    "private": (*_SHAPE, "null_share"),
}
_COARSE_BINS = 10
_HASHED_BINS = 16
_MOST_CATEGORIES = 20
_RARE_SHARE = 0.005
_LEAST_EXPECTED = 10


@dataclass(frozen=True, slots=True)
class Drift:
    """One metric of one column, current against reference.

    Attributes:
        column: The column's name.
        metric: Which metric; see `compare`.
        value: The metric; signed for shares and staleness (current less reference). None where either side has nothing
            to measure.
        floor: Noise floor: what |value| stays below by chance. None with `value`, and for a metric that is not judged.
        p_value: The chance of a value at least as large without drift, for a single look. None with `value`, and for
            js, hellinger, wasserstein and staleness. Nothing is judged by it: with rows enough it is always small.
        band: The effect at which |value| counts; None for a metric that is not judged.
        verdict: Whether |value| has reached the band and is above the floor.
        n: What the metric is measured over in the current rows: values that are not NULL or NaN; for the shares and
            staleness, rows.
        reference_n: The same in the reference.
        share: Of a metric that is the difference of two shares of rows, the current one; None for others.
        reference_share: That of the reference.
    """

    column: str
    metric: Metric
    value: float | None
    floor: float | None
    p_value: float | None
    band: float | None
    verdict: Verdict
    n: int
    reference_n: int
    share: float | None = None
    reference_share: float | None = None


@dataclass(frozen=True, slots=True)
class Times:
    """When both sides' rows end, and how long an interval is: what the staleness of an instant is measured by."""

    current_end: datetime
    reference_end: datetime
    interval: timedelta


@dataclass(frozen=True, slots=True)
class _Value:
    value: float
    floor: float | None = None
    p_value: float | None = None
    share: float | None = None
    reference_share: float | None = None


def compare(
    current: Profile,
    reference: Profile,
    *,
    alpha: float = 0.01,
    times: Times | None = None,
    bands: Mapping[Metric, float] = BANDS,
) -> list[Drift]:
    """Compare every column that both profiles have, in the reference's order.

    | metric        | kinds                           | value                                          | band |
    |---------------|---------------------------------|------------------------------------------------|------|
    | psi           | all but datetime                | population stability index over at most 10     | 0.2  |
    |               |                                 | bins, 20 categories or 16 groups of hashes     |      |
    | ks            | numeric, integer, text (length) | Kolmogorov-Smirnov distance over all bins      | 0.1  |
    | null_share    | all                             | difference of the shares of rows, NULL or NaN  | 0.02 |
    | unseen_share  | categorical, integer            | difference of the shares of rows               | 0.01 |
    | outside_share | numeric                         | the same, beyond the range of training         | 0.01 |
    | staleness     | datetime                        | intervals between the newest and the end, less | 1    |
    |               |                                 | the same of the reference                      |      |
    | wasserstein   | numeric, integer                | first Wasserstein distance, in standard        | none |
    |               |                                 | deviations of the reference; none that is not  |      |
    |               |                                 | finite                                         |      |
    | js, hellinger | as psi                          | Jensen-Shannon and Hellinger distance over the | none |
    |               |                                 | bins of psi                                    |      |
    | cramers_v     | categorical, boolean            | Cramér's V over the bins of psi                | none |

    A private column with fewer than 256 distinct values at training has null_share alone. `domain_auc` is of rows, and
    so none of these: see `[drift] sample`.

    NULL and NaN are no part of psi and ks: a surge of them is null_share's to report, and would otherwise be reported
    twice. An infinity counts in the outermost bin. Unseen values are a bin of psi. Where the reference is the training
    rows, a value that occurs once in them counts as unseen: new rows of the same kind bring as many.

    Args:
        current: What is judged.
        reference: What it is judged by; counted against the same layouts.
        alpha: Chance, for each metric, of calling any column moved without drift.
        times: What staleness is measured by; without it, it is not.
        bands: The effect at which each metric counts.

    Raises:
        ProfileMismatch: A column's layouts differ.
    """
    names = [name for name in reference.columns if name in current.columns]
    level = alpha / max(len(names), 1)
    pairs = {name: _pair(name, current.columns[name], reference.columns[name]) for name in names}
    return [
        _judged(name, metric, pair, level, times, bands)
        for name, pair in pairs.items()
        for metric in _metrics(pair.layout)
        if times or metric != "staleness"
    ]


def _metrics(layout: Layout) -> Sequence[Metric]:
    """Those of its kind; of a private column whose values are not hashed, of its NULLs alone."""
    return ("null_share",) if layout.kind == "private" and not layout.salt else _METRICS[layout.kind]


def _pair(name: str, current: ColumnProfile, reference: ColumnProfile) -> _Pair:
    layout, other = current.layout, reference.layout
    if layout is not other and layout != other:
        raise ProfileMismatch(
            f"Column {name} was counted against unlike layouts, {layout.digest[:12]} and {other.digest[:12]}: they "
            "belong to different model versions. Compare profiles of one model version.",
            column=name,
            want=other.digest,
            got=layout.digest,
        )
    return _Pair(current, reference)


@dataclass(frozen=True)
class _Pair:
    """One column on both sides, and what several metrics are measured by."""

    current: ColumnProfile
    reference: ColumnProfile

    @property
    def layout(self) -> Layout:
        return self.reference.layout

    @cached_property
    def counts(self) -> tuple[Counts, Counts]:
        return _counts(self.current), _counts(self.reference)

    @cached_property
    def coarse(self) -> tuple[Counts, Counts]:
        """Both sides' counts over fewer bins, which adding fixed bins gives exactly."""
        if self.current.sketch and self.reference.sketch:
            c, r = (each.buckets.reshape(_HASHED_BINS, -1) for each in (self.current.sketch, self.reference.sketch))
            return c.sum(1), r.sum(1)
        c, r = self.counts
        if self.layout.kind == "categorical":
            r = _left_one_out(self.reference)
            groups = _common_categories(r, int(min(c.sum(), r.sum())))
        else:
            if self.layout.kind == "integer":
                possible = _possible(self.layout)
                c, r = c[possible], r[possible]
            groups = _equal_masses(r)
        size = int(groups.max()) + 1
        c, r = (np.bincount(groups, counts, size).astype(np.int64) for counts in (c, r))
        used = np.isin(np.arange(size), groups)
        return c[used], r[used]

    def sizes(self, metric: Metric) -> tuple[int, int]:
        """What the metric is measured over on each side."""
        match metric:
            case "null_share" | "unseen_share" | "outside_share" | "staleness":
                return self.current.n, self.reference.n
            case "wasserstein":
                return self.current.finite, self.reference.finite
            case _:
                c, r = self.counts
                return int(c.sum()), int(r.sum())


def _judged(
    name: str, metric: Metric, pair: _Pair, level: float, times: Times | None, bands: Mapping[Metric, float]
) -> Drift:
    n, reference_n = pair.sizes(metric)
    band = bands.get(metric)
    found = _measured(metric, pair, level, times) if n and reference_n else None
    verdict: Verdict
    if band is None:
        verdict = "not judged"
    elif found is None or min(n, reference_n) < MINIMUM_ROWS:
        verdict = "not enough data"
    else:
        effect = found.value if metric == "staleness" else abs(found.value)
        verdict = "moved" if effect >= band and effect > (found.floor or 0.0) else "steady"
    if found is None:
        return Drift(name, metric, None, None, None, band, verdict, n, reference_n)
    floor = found.floor if band is not None else None
    shares = found.share, found.reference_share
    return Drift(name, metric, found.value, floor, found.p_value, band, verdict, n, reference_n, *shares)


def _counts(side: ColumnProfile) -> Counts:
    """Rows per bin or category, an infinity in the outermost bin; NULL and NaN left out."""
    counts = side.counts.copy()
    counts[0] += side.neg_inf
    counts[-1] += side.pos_inf
    return counts


def _measured(metric: Metric, pair: _Pair, level: float, times: Times | None) -> _Value | None:
    """The metric's value, noise floor and p-value; None where there is nothing to measure it by."""
    current, reference = pair.current, pair.reference
    match metric:
        case "null_share" | "outside_share" | "unseen_share":
            return _share(metric, current, reference, level)
        case "staleness":
            return _staleness(current, reference, times)
        case "wasserstein":
            return _wasserstein(current, reference)
        case "ks":
            spread, value = _spread(*pair.counts), distances.ks(*pair.counts)
            return _Value(value, distances.ks_floor(spread, level), distances.ks_p_value(value, spread))
        case _:
            return _shape(metric, *pair.coarse, level)


def _wasserstein(current: ColumnProfile, reference: ColumnProfile) -> _Value | None:
    """Nothing where a double does not hold it, as for values beyond 1e154: not every database takes an infinity."""
    if not reference.std:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        far = distances.wasserstein(current.counts, current.sums, reference.counts, reference.sums) / reference.std
    return _Value(far) if math.isfinite(far) and math.isfinite(reference.std) else None


def _share(metric: Metric, current: ColumnProfile, reference: ColumnProfile, level: float) -> _Value:
    p, q = (float(getattr(side, metric)) for side in (current, reference))
    if metric == "unseen_share":
        q = _unseen(_left_one_out(reference), reference) / reference.n
    sides = (p, current.n, q, reference.n)
    return _Value(p - q, distances.share_floor(*sides, level), distances.share_p_value(*sides), p, q)


def _shape(metric: Metric, current: Counts, reference: Counts, level: float) -> _Value:
    spread, bins = _spread(current, reference), len(reference)
    match metric:
        case "js":
            return _Value(distances.js(current, reference))
        case "hellinger":
            return _Value(distances.hellinger(current, reference))
        case "cramers_v":
            value, p_value = distances.cramers_v(current, reference)
            return _Value(value, None, p_value)
        case _:
            value = distances.psi(current, reference)
            floor = distances.psi_floor(bins, spread, level)
            return _Value(value, floor, distances.psi_p_value(value, bins, spread))


def _staleness(current: ColumnProfile, reference: ColumnProfile, times: Times | None) -> _Value | None:
    if times is None or current.maximum is None or reference.maximum is None:
        return None
    ages = (
        times.current_end.timestamp() - current.maximum / 1e6,
        times.reference_end.timestamp() - reference.maximum / 1e6,
    )
    return _Value((ages[0] - ages[1]) / times.interval.total_seconds())


def _spread(current: Counts, reference: Counts) -> float:
    return float(1 / current.sum() + 1 / reference.sum())


def _left_one_out(reference: ColumnProfile) -> Counts:
    """Counts in which the training rows have the unseen values that new rows of the same kind would have.

    No value of the training rows is unseen, by construction, while of new rows a share is that is about the share of
    training rows whose value occurs once: each would be unseen had it been left out. Good, "The population frequencies
    of species and the estimation of population parameters", Biometrika 40 (1953). Without this every column with a
    long tail would be called moved. A reference that lacks a known value, or has unseen ones, is not the training
    rows, and stays as it is. An integer that occurs once is then one of those between the values.
    """
    counts = _counts(reference)
    if reference.layout.kind == "categorical":
        known, unseen = slice(0, -1), -1
    elif reference.layout.kind == "integer":
        known, unseen = slice(1, None, 2), 0
    else:
        return counts
    if _unseen(counts, reference) or not counts[known].all():
        return counts
    once = counts[known] == 1
    counts[known][once] = 0
    counts[unseen] = once.sum()
    return counts


def _unseen(counts: Counts, side: ColumnProfile) -> int:
    return int(counts[::2].sum() if side.layout.kind == "integer" else counts[-1])


def _possible(layout: Layout) -> NDArray[np.bool_]:
    """Which bins of an integer column a whole number can fall in: none lies between two that follow one another."""
    possible = np.ones(layout.bins, np.bool_)
    possible[2:-1:2] = np.diff(layout.edges) > 1
    return possible


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
