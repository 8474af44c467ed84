"""What changed and what to do, in words: from rows of the ledger alone, for whoever tells it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby, pairwise
from typing import Any, Literal

from batchscore.interval import Calendar, Interval
from batchscore.ledger import Run
from batchscore.model.bundle import Bundle
from batchscore.model.evaluation import Measured
from batchscore.monitor.pooled import Pooled
from batchscore.monitor.verdict import verdict
from batchscore.rounding import rounded

__all__ = [
    "Finding",
    "Level",
    "causes_first",
    "in_order",
    "intervals_told",
    "listed",
    "of_alerts",
    "of_labels",
    "of_performance",
    "of_rejects",
    "of_runs",
    "of_unevaluated",
    "span_of",
    "window_of",
]

Level = Literal["act", "look", "note"]
_LEVELS: tuple[Level, ...] = ("act", "look", "note")

# A score is off by what a person would act on, and by more than chance explains.
_OFF, _ERRORS = 0.02, 2.0
_LISTED = 4
_OR_LABELS = "Where few intervals are far off, see their labels and how they are joined; else train on newer rows"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know.

    Attributes:
        subject: What it is about: a column, several, a metric, or the runs.
        since: The start of the interval from which on it holds; None where it has none.
        words: What was found, with figures.
        advice: What to do; may be empty.
        level: `act`: something is wrong; `look`: it may be; `note`: to know.
        moved: Whether it is a column that the model reads and that has moved, by which performance may have fallen.
    """

    subject: str
    since: datetime | None
    words: str
    advice: str
    level: Level
    moved: bool = False


def in_order(found: Iterable[Finding]) -> list[Finding]:
    """The most urgent first, and otherwise as they come."""
    return sorted(found, key=lambda each: _LEVELS.index(each.level))


def of_runs(runs: Sequence[Run], calendar: Calendar, until: datetime) -> Iterator[Finding]:
    """What is not published by `until`, what went wrong, and which versions scored.

    Args:
        runs: Of one job into one table, by interval and then by age.
        calendar: How the job cuts time.
        until: The instant by which every interval that has ended should be there.
    """
    published = [run for run in runs if run.status == "published"]
    if not published:
        yield Finding("runs", None, "No interval is published.", f"See: batchscore plan{_job(runs)}.", "act")
    else:
        yield from _gaps(published, calendar, until)
    done = {run.interval.start for run in published}
    for start, group in groupby(runs, lambda run: run.interval.start):
        last = max(group, key=lambda run: run.scored_at)
        if start not in done and last.status in ("failed", "held"):
            label = calendar.label(last.interval)
            words = f"The run of {label} {'failed' if last.status == 'failed' else 'is held'}: {last.error}"
            yield Finding("runs", start, words, f"See: batchscore runs show {last.run_id[:8]}.", "act")
    for run in published:
        if run.override_reason is not None:
            words = f"{calendar.label(run.interval)} was published past a gate: {run.override_reason}"
            yield Finding("runs", run.interval.start, words, "", "note")
    for before, after in pairwise(published):
        if (before.model_name, before.model_version) != (after.model_name, after.model_version):
            words = (
                f"{after.model_name} version {after.model_version} scores since {calendar.label(after.interval)}, "
                f"version {before.model_version} until then."
            )
            advice = "Runs of different versions are compared with their own training rows."
            yield Finding("model", after.interval.start, words, advice, "note")


def _gaps(published: Sequence[Run], calendar: Calendar, until: datetime) -> Iterator[Finding]:
    done = {run.interval.start for run in published}
    job, last = published[0].job, published[-1].interval
    holes = [each for each in calendar.between(published[0].interval.start, last.end) if each.start not in done]
    if holes:
        words = (
            f"{intervals_told(holes, calendar)} {'is' if len(holes) == 1 else 'are'} not published, and later ones are."
        )
        advice = f"batchscore backfill {job} {window_of(holes, calendar)}"
        yield Finding("runs", holes[0].start, words, advice, "act")
    late = list(calendar.between(last.end, until))
    if late:
        words = f"{calendar.label(last)} is the last published interval; {len(late):,} more have ended since."
        advice = f"See whether the schedule runs; then: batchscore backfill {job} {window_of(late, calendar)}"
        yield Finding("runs", last.end, words, advice, "act")


def of_alerts(job: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    """Which alerts fire, whatever the window.

    Args:
        job: The job's name.
        rows: Of `batchscore_alerts`, of that job.
    """
    firing = [row for row in rows if row["state"] == "firing"]
    if firing:
        words = f"{len(firing):,} alert(s) fire: {listed([row['alert'] for row in firing], _LISTED)}."
        first = min((row["first_interval"] for row in firing if row["first_interval"]), default=None)
        yield Finding("alerts", first, words, f"batchscore alerts list {job}", "look")


def of_performance(
    months: Sequence[Pooled], metric: str, bundle: Bundle, calendar: Calendar, worse: Sequence[Interval] = ()
) -> Iterator[Finding]:
    """Where the metric of a version is worse than on its test rows, and where its scores are off what came.

    Months of other versions, and those too few labels of which are known, are left out.

    Args:
        months: By time, of whichever versions.
        metric: The one that the problem is judged by.
        bundle: The version that is judged.
        calendar: How the job cuts time.
        worse: The intervals in which the metric is worse by itself.
    """
    months = [each for each in months if each.runs[0].bundle_digest == bundle.digest and each.state == "mature"]
    measured = [each for each in months if metric in each.metrics]
    for told, group in groupby(measured, lambda each: verdict(bundle, metric, each.metrics[metric], each.state)):
        if told == "worse":
            some = list(group)
            figures = "; ".join(f"{_interval(each.metrics[metric])} in {span_of(each.runs, calendar)}" for each in some)
            words = f"{metric} is worse than on test rows, where it was {_interval(bundle.evaluation.test[metric])}: "
            yield Finding(
                metric, _known_since(some[0], worse), f"{words}{figures}.", _OR_LABELS + _anew(months), "look"
            )
    if worse:
        where = intervals_told(worse, calendar)
        words = f"{metric} is worse than on test rows in {where}{', each by itself' * (len(worse) > 1)}."
        yield Finding(metric, worse[0].start, words, _OR_LABELS + _anew(months), "look")
    for high, group in groupby(months, _off):
        off = list(group)
        if high == 0:
            continue
        figures = "; ".join(
            f"{_told(each.predicted, each)} and {_told(each.came, each)} came in {span_of(each.runs, calendar)}"
            for each in off
        )
        side = "low" if high > 0 else "high"
        words = f"Calibration slipped, scores are too {side}: predicted were {figures}."
        advice = f"Where scores are taken for rates, calibrate again on newer rows{_anew(months)}"
        yield Finding("calibration", _known_since(off[0], worse), words, advice, "look")


def _known_since(month: Pooled, worse: Sequence[Interval]) -> datetime:
    """The first interval of a month that is worse by itself; where none is, the last, for nobody knows since when."""
    starts = {run.interval.start for run in month.runs}
    return next((each.start for each in worse if each.start in starts), month.runs[-1].interval.start)


def causes_first(performance: Sequence[Finding], columns: Sequence[Finding], calendar: Calendar) -> list[Finding]:
    """Findings of performance and of columns, with those columns first that moved no later than performance fell.

    Of those the source is to be mended first. The command that trains anew is told once.

    Args:
        performance: Of `of_performance`.
        columns: Of columns.
        calendar: How the job cuts time.
    """
    known = [(each.since, each.subject) for each in performance if each.since]
    fell, what = min(known, key=lambda each: each[0], default=(None, ""))
    causes, others = [], []
    for each in columns:
        if fell is None or each.since is None or each.since > fell or each.level == "note" or not each.moved:
            others.append(each)
            continue
        label = calendar.label(calendar.containing(each.since))
        advice = (
            f"Mend the source first, for it moved no later than {what} got worse: see what changed on {label}, a feed, "
            "a unit, a code. Then score again what it spoiled."
        )
        causes.append(replace(each, advice=advice))
    told = []
    for place, each in enumerate(performance):
        advice, _, command = each.advice.partition(": batchscore retrain")
        if place and command:
            advice += ", as above."
        elif command:
            advice = each.advice
        if causes:
            advice = f"Mend the source first, see {listed([one.subject for one in causes], _LISTED)}. {advice}"
        told.append(replace(each, advice=advice))
    return [*causes, *told, *others]


def _anew(months: Sequence[Pooled]) -> str:
    return f": batchscore retrain {months[0].runs[0].job} --if degraded" if months else "."


def of_unevaluated(
    runs: Sequence[Run], tallied: Collection[str], measured: Collection[datetime], calendar: Calendar
) -> Iterator[Finding]:
    """Runs that nobody has held against labels: never, or not since they were scored again.

    Args:
        runs: Published runs, by interval.
        tallied: The ids of those of which there are tallies.
        measured: When the intervals start of which there are metrics, of whichever run.
        calendar: How the job cuts time.
    """
    without = [run.interval for run in runs if run.run_id not in tallied]
    if again := [each for each in without if each.start in measured]:
        one = len(again) == 1
        verb = "has been scored again since it was" if one else "have been scored again since they were"
        words = f"{intervals_told(again, calendar)} {verb} evaluated: {'its' if one else 'their'} labels are left out."
        advice = f"batchscore evaluate {runs[0].job} {window_of(again, calendar)}"
        yield Finding("labels", again[0].start, words, advice, "look")
    if never := [each for each in without if each.start not in measured]:
        words = f"Not evaluated: {len(never):,} interval(s), {intervals_told(never, calendar)}."
        advice = f"When their labels are known: batchscore evaluate {runs[0].job} {window_of(never, calendar)}"
        yield Finding("labels", never[0].start, words, advice, "look")


def _off(month: Pooled) -> int:
    """1 where more came than was predicted, -1 where less did, 0 where neither is more than chance."""
    if month.predicted is None or month.came is None or month.error is None:
        return 0
    gap = month.came - month.predicted
    least = _OFF if month.bins else _OFF * abs(month.came)
    if abs(gap) < least or abs(gap) <= _ERRORS * month.error:
        return 0
    return 1 if gap > 0 else -1


def _told(value: float | None, month: Pooled) -> str:
    return f"{value:.1%}" if month.bins and value is not None else rounded(value)


def of_labels(rows: Iterable[Mapping[str, Any]], calendar: Calendar) -> Iterator[Finding]:
    """Intervals too few labels of which are known.

    Args:
        rows: Of `batchscore_performance`: measured, scored, of all rows, one for each interval.
        calendar: How the job cuts time.
    """
    immature = [row for row in rows if row["state"] == "immature"]
    if not immature:
        return
    intervals = [Interval(row["window_start"], row["window_end"]) for row in immature]
    known, predicted = (sum(row[name] for row in immature) for name in ("labelled", "predictions"))
    where = intervals_told(intervals, calendar)
    words = f"Label coverage is {known / predicted:.0%} in {where}: immature, and not compared."
    advice = "Evaluate again when more labels are there. Rows that never get one count as not known."
    yield Finding("labels", intervals[0].start, words, advice, "note")


def of_rejects(runs: Sequence[Run], counts: Sequence[Mapping[str, Any]], calendar: Calendar) -> Iterator[Finding]:
    """How many rows could not be scored, and mostly why.

    Args:
        runs: Published runs, by interval.
        counts: Stage, reason, detail and count of rejects by run.
        calendar: How the job cuts time.
    """
    rejects, read = (sum(getattr(run, name) or 0 for run in runs) for name in ("rejects", "rows_read"))
    if not rejects:
        return
    first, last = ([run for run in runs if run.rejects][i] for i in (0, -1))
    reasons: dict[str, int] = {}
    for row in counts:
        what = f"{row['reason']} ({row['detail']})" if row["stage"] == "input" and row["detail"] else row["reason"]
        reasons[what] = reasons.get(what, 0) + row["rejects"]
    mostly = sorted(reasons, key=lambda what: -reasons[what])[:_LISTED]
    words = f"{rejects:,} of {read:,} rows could not be scored"
    words += f", mostly {', '.join(f'{what} {reasons[what]:,}' for what in mostly)}." if mostly else "."
    advice = f"See: batchscore rejects {last.job} --interval {calendar.label(last.interval)}"
    yield Finding("rejects", first.interval.start, words, advice, "look")


def _job(runs: Sequence[Run]) -> str:
    return f" {runs[0].job}" if runs else ""


def _interval(measured: Measured) -> str:
    if measured.low is None or measured.high is None:
        return rounded(measured.value)
    return f"{rounded(measured.value)} ({rounded(measured.low)} to {rounded(measured.high)})"


def listed(names: Sequence[str], most: int) -> str:
    """So many of the names, and how many more there are."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def span_of(runs: Sequence[Run], calendar: Calendar) -> str:
    """The first interval and the last, or the only one."""
    first, last = (calendar.label(run.interval) for run in (runs[0], runs[-1]))
    return first if first == last else f"{first} to {last}"


def window_of(intervals: Sequence[Interval], calendar: Calendar) -> str:
    """The options that name the intervals from the first to the last."""
    end = calendar.containing(intervals[-1].end)
    return f"--from {calendar.label(intervals[0])} --to {calendar.label(end)}"


def intervals_told(intervals: Collection[Interval], calendar: Calendar) -> str:
    """The intervals by their labels, those that follow one another as a span; of many spans how many intervals."""
    spans: list[tuple[Interval, Interval]] = []
    for each in intervals:
        if spans and spans[-1][1].end == each.start:
            spans[-1] = (spans[-1][0], each)
        else:
            spans.append((each, each))
    told = [calendar.label(a) if a == b else f"{calendar.label(a)} to {calendar.label(b)}" for a, b in spans]
    if len(told) <= _LISTED:
        return " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)
    return f"{len(intervals)} intervals between {calendar.label(spans[0][0])} and {calendar.label(spans[-1][1])}"
