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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from batchscore import distances
from batchscore.columns import GROUPS, Columns, Grid
from batchscore.errors import ProfileMismatch
from batchscore.layout import Floats, Kind, Layout
from batchscore.profile import ColumnProfile, Profile

__all__ = ["BANDS", "MINIMUM_ROWS", "Drift", "Metric", "Times", "Verdict", "compare", "compare_columns"]

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
_MOST_CATEGORIES = 20
# What is measured over rows, and not over the values in them.
_OF_ROWS = ("null_share", "unseen_share", "outside_share", "staleness")
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
class _Values:
    """A metric of each column, shape `(columns,)`; what is no number is none."""

    value: Floats
    floor: Floats | None = None
    p_value: Floats | None = None
    share: Floats | None = None
    reference_share: Floats | None = None


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

    A private column with fewer than 256 distinct values at training has null_share alone, as has one that was made
    private since, on either side. `domain_auc` is of rows, and so none of these: see `[drift] sample`.

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
    pairs = [_alike(name, current.columns[name], reference.columns[name]) for name in names]
    grid = Grid({name: one.layout for name, (one, _) in zip(names, pairs, strict=True)})
    sides = (Columns.of(columns, grid) for columns in zip(*pairs, strict=True))
    return compare_columns(*sides, alpha=alpha, times=times, bands=bands) if names else []


def _alike(name: str, current: ColumnProfile, reference: ColumnProfile) -> tuple[ColumnProfile, ColumnProfile]:
    try:
        return current.alike(reference)
    except ProfileMismatch:
        layout, other = current.layout, reference.layout
        raise ProfileMismatch(
            f"Column {name} was counted against unlike layouts, {layout.digest[:12]} and {other.digest[:12]}: they "
            "belong to different model versions. Compare profiles of one model version.",
            column=name,
            want=other.digest,
            got=layout.digest,
        ) from None


def compare_columns(
    current: Columns,
    reference: Columns,
    *,
    alpha: float = 0.01,
    times: Times | None = None,
    bands: Mapping[Metric, float] = BANDS,
) -> list[Drift]:
    """As `compare`, of columns of one grid."""
    grid = reference.grid
    if not grid.names:
        return []
    pair = _Pair(current, reference, alpha / len(grid.names), times)
    wanted = [
        (place, name, metric)
        for place, (name, layout) in enumerate(grid.layouts.items())
        for metric in _metrics(layout)
        if times or metric != "staleness"
    ]
    # Every column is measured by every metric, and what is not of its kind left out: where nothing is to be measured,
    # that gives no number.
    with np.errstate(all="ignore"):
        found = {metric: pair.told(metric, bands.get(metric)) for metric in {metric for *_, metric in wanted}}
    return [found[metric](place, name) for place, name, metric in wanted]


def _metrics(layout: Layout) -> Sequence[Metric]:
    """Those of its kind; of a private column whose values are not hashed, of its NULLs alone."""
    return ("null_share",) if layout.kind == "private" and not layout.salt else _METRICS[layout.kind]


@dataclass(frozen=True)
class _Pair:
    """The columns of both sides, and what several metrics are measured by."""

    current: Columns
    reference: Columns
    level: float
    times: Times | None

    @property
    def grid(self) -> Grid:
        return self.reference.grid

    @cached_property
    def counts(self) -> tuple[Counts, Counts]:
        """Rows per bin, an infinity in the outermost bin; NULL and NaN left out."""
        return self.current.outer, self.reference.outer

    @cached_property
    def values(self) -> tuple[Counts, Counts]:
        """How many values each column has, shape `(columns,)`."""
        c, r = (distances.totals(counts, self.grid.starts) for counts in self.counts)
        return c, r

    @cached_property
    def coarse(self) -> tuple[Counts, Counts, NDArray[np.intp]]:
        """Both sides' counts over fewer bins, which adding fixed bins gives exactly, and where each column's begin."""
        grid, (c, r) = self.grid, self.counts
        left, _ = self.left_one_out
        groups = _equal_masses(np.where(grid.possible, r, 0), grid)
        for place in grid.of_kind("categorical"):
            its = slice(grid.starts[place], grid.ends[place])
            groups[its] = _common_categories(left[its], int(min(c[its].sum(), left[its].sum())))
        sketched = grid.sketched
        taken = np.flatnonzero(grid.possible & ~sketched[grid.column])
        slots, size = (grid.column * _MOST_CATEGORIES + groups)[taken], _MOST_CATEGORIES * len(grid.names)
        used = (np.bincount(slots, minlength=size) > 0).reshape(-1, _MOST_CATEGORIES)
        used[sketched, :GROUPS] = True
        sides = []
        for counts, side in ((c, self.current), (left, self.reference)):
            coarse = np.bincount(slots, counts[taken], size).astype(np.int64).reshape(-1, _MOST_CATEGORIES)
            coarse[sketched, :GROUPS] = side.groups[sketched]
            sides.append(coarse[used])
        bins = used.sum(1)
        return sides[0], sides[1], np.cumsum(bins) - bins

    @cached_property
    def left_one_out(self) -> tuple[Counts, Counts]:
        """Counts in which the training rows have the unseen values that new rows of the same kind would have.

        No value of the training rows is unseen, by construction, while of new rows a share is that is about the share
        of training rows whose value occurs once: each would be unseen had it been left out. Good, "The population
        frequencies of species and the estimation of population parameters", Biometrika 40 (1953). Without this every
        column with a long tail would be called moved. A reference that lacks a known value, or has unseen ones, is not
        the training rows, and stays as it is. An integer that occurs once is then one of those between the values.

        Returns:
            The reference's rows per bin, of categories; of other kinds as they are. And the rows of each column that
            are unseen, of integers too.
        """
        grid, (_, r) = self.grid, self.counts
        unseen = distances.totals(np.where(grid.unseen, r, 0), grid.starts)
        training = (unseen == 0) & np.logical_and.reduceat((r > 0) | ~grid.known, grid.starts)
        once = grid.known & (r == 1) & training[grid.column]
        unseen += distances.totals(once.astype(np.int64), grid.starts)
        categories = grid.of_kind("categorical")
        left = r.copy()
        left[once & np.isin(grid.column, categories)] = 0
        left[grid.ends[categories] - 1] = unseen[categories]
        return left, unseen

    def told(self, metric: Metric, band: float | None) -> Callable[[int, str], Drift]:
        """What is to be said of a column by a metric, by the column's place and name."""
        n, reference_n = (side.tolist() for side in self.sizes(metric))
        found = self.measured(metric)
        values = found.value.tolist()
        floors = found.floor.tolist() if found.floor is not None and band is not None else None
        p_values = found.p_value.tolist() if found.p_value is not None else None

        def shares(place: int) -> tuple[float | None, float | None]:
            if found.share is None or found.reference_share is None:
                return None, None
            return float(found.share[place]), float(found.reference_share[place])

        def drift(place: int, name: str) -> Drift:
            rows, reference_rows, value = n[place], reference_n[place], values[place]
            there = rows and reference_rows and math.isfinite(value)
            floor = floors[place] if floors else None
            verdict: Verdict
            if band is None:
                verdict = "not judged"
            elif not there or min(rows, reference_rows) < MINIMUM_ROWS:
                verdict = "not enough data"
            else:
                effect = value if metric == "staleness" else abs(value)
                verdict = "moved" if effect >= band and effect > (floor or 0.0) else "steady"
            if not there:
                return Drift(name, metric, None, None, None, band, verdict, rows, reference_rows)
            p_value = p_values[place] if p_values else None
            return Drift(name, metric, value, floor, p_value, band, verdict, rows, reference_rows, *shares(place))

        return drift

    def sizes(self, metric: Metric) -> tuple[Counts, Counts]:
        """What the metric is measured over on each side, shape `(columns,)`."""
        if metric in _OF_ROWS:
            return self.current.n, self.reference.n
        return (self.current.finite, self.reference.finite) if metric == "wasserstein" else self.values

    def measured(self, metric: Metric) -> _Values:  # noqa: PLR0911 - a case for each metric
        """The metric's value, noise floor and p-value, of each column."""
        starts = self.grid.starts
        match metric:
            case "null_share" | "outside_share" | "unseen_share":
                return self._share(metric)
            case "staleness":
                return self._staleness()
            case "wasserstein":
                one, two = self.current, self.reference
                far = distances.wasserstein(one.counts, one.sums, two.counts, two.sums, starts)
                # None beyond what a double holds, as of values beyond 1e154: not every database takes an infinity.
                return _Values(np.where(np.isfinite(two.std), far / two.std, np.nan))
            case "ks":
                spread, value = self._spread(*self.counts, starts), distances.ks(*self.counts, starts)
                floor = distances.ks_floor(spread, self.level)
                return _Values(value, floor, distances.ks_p_value(value, spread))
            case "js":
                return _Values(distances.js(*self.coarse))
            case "hellinger":
                return _Values(distances.hellinger(*self.coarse))
            case "cramers_v":
                value, p_value = distances.cramers_v(*self.coarse)
                return _Values(value, None, p_value)
            case _:
                value, spread = distances.psi(*self.coarse), self._spread(*self.coarse)
                bins = np.diff(self.coarse[2], append=len(self.coarse[0]))
                floor = distances.psi_floor(bins, spread, self.level)
                return _Values(value, floor, distances.psi_p_value(value, bins, spread))

    def _share(self, metric: Metric) -> _Values:
        current, reference = self.current, self.reference
        match metric:
            case "null_share":
                p, q = current.empty, reference.empty
            case "outside_share":
                p, q = current.outside, reference.outside
            case _:
                p = distances.totals(np.where(self.grid.unseen, current.counts, 0), self.grid.starts)
                q = self.left_one_out[1]
        one, two = p / current.n, q / reference.n
        sides = (one, current.n, two, reference.n)
        floor, p_value = distances.share_floor(*sides, self.level), distances.share_p_value(*sides)
        return _Values(one - two, floor, p_value, one, two)

    def _staleness(self) -> _Values:
        if self.times is None:
            return _Values(np.full(len(self.grid.names), np.nan))
        current = self.times.current_end.timestamp() - self.current.maximum / 1e6
        reference = self.times.reference_end.timestamp() - self.reference.maximum / 1e6
        return _Values((current - reference) / self.times.interval.total_seconds())

    def _spread(self, current: Counts, reference: Counts, starts: NDArray[np.intp]) -> Floats:
        one, two = (distances.totals(counts, starts) for counts in (current, reference))
        spread: Floats = 1 / one + 1 / two
        return spread


def _equal_masses(reference: Counts, grid: Grid) -> NDArray[np.intp]:
    """For each bin, one of ten groups of about equal reference mass: that in which the middle of its own mass lies.

    A bin that holds several tenths is a group alone. Bins beside it that the reference left empty then fall in another
    group, so that values on the wrong side of a constant or of a heavy zero are not added to it.
    """
    whole = np.maximum(distances.totals(reference, grid.starts), 1)[grid.column]
    middles = (distances.running(reference, grid.starts) - reference / 2) / whole
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
