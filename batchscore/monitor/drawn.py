"""The charts of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from batchscore import charts
from batchscore.charts import Axis, Series
from batchscore.monitor.history import History
from batchscore.monitor.pooled import Pooled
from batchscore.problem import better
from batchscore.rounding import rounded

__all__ = ["calibration", "over_time"]

_MONTHS = 6
_HALF = 0.5


def over_time(history: History) -> Iterator[str]:
    """The metric of the problem over the intervals, and what was predicted beside what came."""
    metric, (_, place) = history.job.problem.metric, _times(history)
    # Labels may become known in an interval that has no place on the axis.
    performance, arrivals = (
        [row for row in rows if row["window_start"] in place] for rows in (history.performance, history.arrivals)
    )
    for name in dict.fromkeys((metric, "brier", "log_loss")):
        if rows := [row for row in performance if row["metric"] == name]:
            yield _metric(history, name, rows, f"{name} over time")
    if rows := [row for row in arrivals if row["metric"] == metric]:
        yield _metric(history, metric, rows, f"{metric} over time, by when labels became known")
    if came := [row for row in performance if row["metric"] == "base_rate" and row["kind"] == "measured"]:
        yield _rates(history, came)


def _metric(history: History, metric: str, rows: Sequence[Mapping[str, Any]], title: str) -> str:
    names, place = _times(history)
    measured = [row for row in rows if row["kind"] == "measured"]
    estimated = [row for row in rows if row["kind"] == "estimated"]
    mature = [row for row in measured if row["state"] == "mature"]
    others = [row for row in measured if row["state"] != "mature"]

    def points(some: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
        return [(place[row["window_start"]], row["value"]) for row in some]

    spans = [(_or(row["low"], row["value"]), _or(row["high"], row["value"])) for row in mature]
    series = [Series("", points(mature), "dots", spans=spans)]
    if estimated:
        series.insert(0, Series("estimated", points(estimated)))
    if others:
        series.append(Series("", points(others), "hollow"))
    bundle = history.bundles.get(history.published[-1].bundle_digest) if history.published else None
    if bundle and (test := bundle.evaluation.test.get(metric)):
        series.insert(0, Series("test rows", [(0, test.value), (len(names) - 1, test.value)], "rule"))
    meant = mature or rows
    values = [row["value"] for row in meant]
    # Two versions may have labels that became known in the same one.
    count = len({row["window_start"] for row in meant})
    told = f"From {rounded(min(values))} to {rounded(max(values))} over {count} intervals."
    arrow = {"lower": ", lower is better", "higher": "", None: ""}[better(metric)]
    by = title.partition(" over time")[2]
    return charts.plot(title, told, _across(names), Axis(f"{metric}{by}{arrow}"), series)


def _rates(history: History, rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean score of each run beside the share of the positive class among its labels."""
    names, place = _times(history)
    starts = {run.run_id: run.interval.start for run in history.published}
    predicted = {
        starts[row["run_id"]]: row["mean"]
        for row in history.seen
        if row["role"] == "output" and row["column_name"] == "score" and row["mean"] is not None
    }
    mature = [(place[row["window_start"]], row["value"]) for row in rows if row["state"] == "mature"]
    others = [(place[row["window_start"]], row["value"]) for row in rows if row["state"] != "mature"]
    line = sorted((place[start], mean) for start, mean in predicted.items())
    series = [Series("predicted", line), Series("came", mature, "points")]
    if others:
        series.append(Series("", others, "hollow"))
    told = "The mean score of each interval, and the share of the positive class among its labels."
    return charts.plot(
        "Predicted and came", told, _across(names), Axis(f"share of {history.job.problem.target}", 0.0), series
    )


def calibration(history: History) -> Iterator[str]:
    """The calibration curves of the last months, all on one scale."""
    months = [month for month in history.months if month.bins][-_MONTHS:]
    most = max((max(one.score, one.observed) for month in months for one in month.bins), default=1.0)
    for month in months:
        yield _curve(history, month, 1.0 if most > _HALF else 1.1 * most or 1.0)


def _curve(history: History, month: Pooled, end: float) -> str:
    label = history.job.calendar.label
    span = f"{label(month.runs[0].interval)} to {label(month.runs[-1].interval)}"
    told = f"{month.labelled:,} labels of {span}, in {len(month.bins)} bins of score."
    return charts.plot(
        f"Calibration, {span}",
        told,
        Axis("mean score of the bin", 0, end),
        Axis(f"came · {span}", 0, end),
        [
            Series("exact", [(0, 0), (end, end)], "rule"),
            Series("", [(one.score, one.observed) for one in month.bins], "points", [one.rows for one in month.bins]),
        ],
    )


def _times(history: History) -> tuple[list[str], dict[Any, float]]:
    """The labels of the published intervals, and the place of each on the axis."""
    intervals = list(dict.fromkeys(run.interval for run in history.published))
    names = [history.job.calendar.label(each) for each in intervals]
    return names, {each.start: float(i) for i, each in enumerate(intervals)}


def _across(names: Sequence[str]) -> Axis:
    """The axis of the intervals; of one year it is told once."""
    years = {name[:5] for name in names}
    if len(years) > 1:
        return Axis("interval", names=names)
    return Axis(f"interval, {names[0][:4]}", names=[name[5:] for name in names], whole=names)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
