"""The short form of what training found out about a model, for `train` and `models show`."""

from __future__ import annotations

from collections.abc import Iterable

from batchscore.cli.render import Cell, show
from batchscore.model.evaluation import Evaluation, Sliced
from batchscore.model.words import (
    costs_told,
    curve_told,
    folds_told,
    gap_told,
    importance_told,
    interval_told,
    search_told,
    sliced_told,
    verdict,
)
from batchscore.rounding import digits_of, rounded

__all__ = ["findings", "metric_rows", "show_evaluation"]

_COLUMNS, _SLICES = 5, 3


def show_evaluation(of: str, evaluation: Evaluation) -> None:
    """Print the metrics and the findings as two tables."""
    title = f"{of} on {evaluation.rows['test']:,} rows held out"
    show(metric_rows(evaluation), title=title, empty="the test rows define no metric")
    if told := [{"finding": what, "told": told} for what, told in findings(evaluation)]:
        print()
        show(told)


def metric_rows(evaluation: Evaluation) -> list[dict[str, Cell]]:
    """A row for each metric: on test rows with its interval, on training rows, and of each baseline."""
    rows: list[dict[str, Cell]] = []
    for metric, measured in evaluation.test.items():
        others = {name: values.get(metric) for name, values in evaluation.baselines.items()}
        digits = digits_of([measured.value, *others.values()])
        rows.append(
            {
                "metric": metric,
                "test": rounded(measured.value, digits),
                "95 % interval": interval_told(measured, digits) or None,
                "train": rounded(evaluation.train.get(metric), digits) or None,
                **{name: rounded(value, digits) or None for name, value in others.items()},
            }
        )
    return rows


def findings(evaluation: Evaluation) -> Iterable[tuple[str, str]]:
    """What there is to know beside the metrics, as pairs of a name and a sentence."""
    for baseline in evaluation.baselines:
        yield f"beside {baseline}", verdict(evaluation, baseline)
    if gap := gap_told(evaluation):
        yield "gap", gap
    yield from _asked_for(evaluation)
    if important := importance_told(evaluation, _COLUMNS):
        yield "most important", important
    yield "latency", f"{rounded(evaluation.latency_us_per_row)} µs a row"
    for one in evaluation.audit:
        if one.suspect:
            yield "suspect", one.told


def _asked_for(evaluation: Evaluation) -> Iterable[tuple[str, str]]:
    """The same of what a job or a command has to ask for."""
    told_already = evaluation.gap is not None and evaluation.gap.on == "validation"
    if not told_already and (value := evaluation.validation.get(evaluation.metric)) is not None:
        yield "validation", f"{evaluation.metric} {rounded(value)} on {evaluation.rows['validation']:,} validation rows"
    if (threshold := evaluation.threshold) is not None:
        chosen = f"by {threshold.by} on {threshold.rows:,} validation rows; {threshold.share:.1%} of them reach it"
        yield "threshold", f"{rounded(threshold.value)}, {chosen}"
        for on, cost in costs_told(evaluation):
            yield f"cost on {on}", cost
    if folds := folds_told(evaluation):
        yield "cross-validation", folds
    if evaluation.search is not None:
        yield "search", search_told(evaluation.search)
    for curve in evaluation.curves:
        yield "learning curve" if curve.over == "rows" else "curve", curve_told(evaluation, curve)
    for column in evaluation.sliced:
        yield "slices", _slices(evaluation, column)


def _slices(evaluation: Evaluation, of: Sliced) -> str:
    """How many there are, and the worst of them: they are in that order."""
    metric = evaluation.metric
    worst = [one for one in evaluation.slices if one.column == of.column and metric in one.metrics][:_SLICES]
    listed = ", ".join(f"{one.value} {rounded(one.metrics[metric])}" for one in worst)
    return f"{sliced_told(evaluation, of)}; {metric}: {listed}" if listed else sliced_told(evaluation, of)
