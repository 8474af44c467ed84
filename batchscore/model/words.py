"""What an evaluation comes to, in words."""

from __future__ import annotations

from collections.abc import Iterable

from batchscore.model.evaluation import Evaluation, Measured, Sliced
from batchscore.problem import better
from batchscore.rounding import rounded

__all__ = ["costs_told", "gap_told", "interval_told", "sliced_told", "verdict"]

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
        return f"the same as {other}: {rounded(theirs)}"
    if lead.high < 0:
        return (
            f"worse than {other}: {rounded(theirs)} there, and {rounded(-lead.high)} to {rounded(-lead.low)} worse here"
        )
    word = "better" if lead.low > 0 else "no better"
    return f"{word} than {other}: {rounded(theirs)} there, and {rounded(lead.low)} to {rounded(lead.high)} better here"


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
