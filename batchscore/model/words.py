"""What an evaluation comes to, in words."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean, stdev

from batchscore.model.evaluation import Curve, Evaluation, Measured, Search, Sliced
from batchscore.problem import better
from batchscore.rounding import rounded

__all__ = [
    "costs_told",
    "curve_told",
    "folds_told",
    "gap_told",
    "held_out_told",
    "importance_told",
    "interval_told",
    "search_told",
    "sliced_told",
    "verdict",
]

_BASELINES = {
    "dummy": "a guess that ignores the columns",
    "linear": "the linear model",
    "champion": "the version in use",
}
_HELD_OUT = {"validation": "validation rows", "cross-validation": "held-out folds", "test": "test rows"}


def verdict(evaluation: Evaluation, baseline: str) -> str:
    """How the model compares with a baseline by the evaluation's metric, in words."""
    other = _BASELINES.get(baseline, baseline)
    lead, theirs = evaluation.ahead.get(baseline), evaluation.baselines[baseline].get(evaluation.metric)
    if lead is None or theirs is None or better(evaluation.metric) is None:
        return f"not comparable with {other}"
    if lead.low is None or lead.high is None:
        return f"too few rows to compare with {other}"
    if lead.low == lead.high == 0:
        return f"the same as {other}: {evaluation.metric} {rounded(theirs)}"
    if lead.high < 0:
        how, difference = "worse", f"{rounded(-lead.high)} to {rounded(-lead.low)} worse"
    else:
        how = "better" if lead.low > 0 else "no better"
        difference = f"{rounded(lead.low)} to {rounded(lead.high)} better"
    return f"{how} than {other}: {evaluation.metric} {rounded(theirs)} there, and {difference} here"


def gap_told(evaluation: Evaluation) -> str:
    """The gap of training against held-out rows and its verdict, in words; empty where there is none."""
    if (gap := evaluation.gap) is None:
        return ""
    figures = f"{gap.metric} {rounded(gap.train)} on training rows, {rounded(gap.held_out)} on {_HELD_OUT[gap.on]}"
    if gap.verdict == "overfits":
        return f"Overfits: {figures}. The difference is more than chance, and more than it may be."
    return f"Fits: {figures}. The difference is chance, or no more than it may be."


def costs_told(evaluation: Evaluation) -> Iterable[tuple[str, str]]:
    """Which rows, and what predictions cost on them, beside what it costs to predict without a model, in words."""
    if evaluation.threshold is None or evaluation.confusion is None:
        return
    yes = evaluation.confusion.classes[1]
    for on, cost in evaluation.threshold.costs.items():
        model, none, every = (f"{value:,.10g}" for value in (cost.model, cost.none, cost.every))
        each = f"{rounded(cost.model / cost.rows)} a row"
        yield on, f"{model}, or {each}; predicting {yes} of no row would cost {none}, of every row {every}"


def folds_told(evaluation: Evaluation) -> str:
    """The metric over the folds of the cross-validation, in words; empty without one."""
    if (cross := evaluation.cross_validation) is None:
        return ""
    values = cross.metrics.get(evaluation.metric)
    if not values:
        return f"{evaluation.metric} is not defined on all of the {cross.folds:,} folds, {cross.by}"
    told = f"{evaluation.metric} {rounded(mean(values))}"
    if len(values) == 1:
        return f"{told} on what {cross.folds:,} folds give together, {cross.by}"
    return f"{told} ± {rounded(stdev(values))} over {cross.folds:,} folds, {cross.by}"


def search_told(search: Search) -> str:
    """What the search chose of how many settings, in words."""
    best = ", ".join(f"{name} = {value}" for name, value in search.best.items())
    reached = search.candidates[0].value if search.candidates else None
    with_metric = f", {search.metric} {rounded(reached)}" if reached is not None else ""
    return f"{best}: the best of {search.tried:,} settings, {search.by}{with_metric}"


def held_out_told(evaluation: Evaluation) -> str:
    """What curves are measured on, in a word: folds where there are some."""
    return "folds" if evaluation.cross_validation else "validation rows"


def curve_told(evaluation: Evaluation, curve: Curve) -> str:
    """Where a curve is best, or what more rows do, in words."""
    on = held_out_told(evaluation)
    if not (points := curve.points):
        return f"{on} define {curve.metric} nowhere"
    if curve.over == "rows":
        ends = (f"{rounded(each.validation)} with {each.at:,.0f} rows" for each in (points[0], points[-1]))
        return f"{curve.metric} {', '.join(ends)}, on {on}"
    sign = -1 if better(curve.metric) == "lower" else 1
    best = max(points, key=lambda each: sign * each.validation)
    at = best.at if isinstance(best.at, str) else f"{best.at:g}"
    told = f"{curve.metric} {rounded(best.validation)} with {curve.over} = {at}"
    return f"{told}, the best of {len(points)} values on {on}"


def importance_told(evaluation: Evaluation, most: int) -> str:
    """The most important columns that are important at all, in words; empty where nothing was measured."""
    if not evaluation.importance:
        return ""
    first = [one for one in evaluation.importance if one.mean > 0][:most]
    if not first:
        return f"no column: {evaluation.metric} gets no worse without any"
    listed = ", ".join(f"{one.column} {rounded(one.mean)}" for one in first)
    return f"{listed} ({evaluation.metric} lost without it)"


def sliced_told(evaluation: Evaluation, one: Sliced) -> str:
    """How many values a sliced column has, and which of them are told, in words."""
    if not one.measured:
        return f"{one.column} has {one.values:,} values, none of them in {one.rows} test rows"
    if one.measured == one.values:
        told = f"{one.column} has {one.values:,} values"
    else:
        enough = f"{one.measured:,} that {one.rows} rows or more have are measured"
        told = f"{one.column} has {one.values:,} values, and {enough}"
    if one.kept == one.measured:
        return told
    chosen = "most frequent" if better(evaluation.metric) is None else f"worst by {evaluation.metric}"
    return f"{told}; these are the {one.kept} {chosen}"


def interval_told(measured: Measured, digits: int | None = None) -> str:
    """The metric's interval with that many decimals; empty where there is none."""
    if measured.low is None or measured.high is None:
        return ""
    return f"{rounded(measured.low, digits)} to {rounded(measured.high, digits)}"
