"""Columns that moved or were missing, in words: findings from what the ledger knows of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from batchscore.drift import Drift
from batchscore.interval import Calendar
from batchscore.ledger import Run
from batchscore.monitor.findings import Finding, Level, intervals_told, listed, window_of
from batchscore.monitor.shares import both_shares, shares_told
from batchscore.monitor.watch import Comparison, Watched
from batchscore.rounding import rounded

__all__ = ["Step", "gone_from", "gone_lately", "moved_since", "of_columns", "of_nulls", "of_rows"]

# A column is gone where hardly a row has it; one that most training rows lack may be missing for a day by nature.
_GONE, _OFTEN_MISSING = 0.9, 0.5
# What differs from the runs before by so little of what it differs from training by has moved slowly, as a season does.
_SLOWLY = 0.25
# Below so much of the most important column the model hardly reads it.
_HARDLY = 0.05
_LISTED = 4
_SHARES = ("null_share", "unseen_share")
# A column that moved by so many times what counts is looked at, whatever the model makes of it.
_FAR = 3
# In a single run less is enough of a column that the model reads.
_FAR_AT_ONCE = 2
_ANEW, _IF = "batchscore retrain ", " --if drifted"


@dataclass(frozen=True, slots=True)
class Step:
    """A column that has moved in each of the last runs, and had not before.

    Attributes:
        runs: Those runs, by interval.
        strongest: Its strongest metric over them, merged, against training.
        means: Its mean over them, and in training; None where it has none.
        unseen: Categories that training never saw, with how often each came in the last of them.
    """

    runs: Sequence[Run]
    strongest: Watched
    means: tuple[float, float] | None
    unseen: Mapping[str, int]


def gone_from(
    runs: Sequence[Run], seen: Iterable[Mapping[str, Any]], usual: Mapping[str, float]
) -> dict[str, dict[int, float]]:
    """The share of rows without a value of columns that hardly a row of a run had: by column and place of the run.

    Args:
        runs: Published runs, by interval.
        seen: Rows of `batchscore_profiles` of those runs.
        usual: The share of training rows without a value, by column.
    """
    place = {run.run_id: i for i, run in enumerate(runs)}
    found: dict[str, dict[int, float]] = {}
    for row in seen:
        name, share = row["column_name"], row["null_share"]
        if row["role"] != "input" or share is None or row["run_id"] not in place:
            continue
        if share >= _GONE and usual.get(name, 1.0) < _OFTEN_MISSING:
            found.setdefault(name, {})[place[row["run_id"]]] = share
    return found


def gone_lately(gone: Mapping[str, Mapping[int, float]], first: int) -> set[str]:
    """The columns of `gone_from` that were gone from the run at that place or from a later one."""
    return {name for name, places in gone.items() if max(places) >= first}


def of_nulls(runs: Sequence[Run], gone: Mapping[str, Mapping[int, float]], calendar: Calendar) -> Iterator[Finding]:
    """Columns that were missing from whole runs, those that went together in one finding.

    Args:
        runs: Published runs, by interval.
        gone: See `gone_from`.
        calendar: How the job cuts time.
    """
    together: dict[tuple[int, ...], list[str]] = {}
    for name, shares in gone.items():
        together.setdefault(tuple(sorted(shares)), []).append(name)
    for which, unsorted in sorted(together.items()):
        names = sorted(unsorted)
        of = [runs[i].interval for i in which]
        share = min(each for name in names for each in gone[name].values())
        rows = "all rows" if share == 1 else f"at least {share:.0%} of the rows"
        verb = "is" if len(names) == 1 else "are"
        words = f"{listed(names, len(names))} {verb} NULL or NaN in {rows} of {intervals_told(of, calendar)}."
        advice = (
            "The feed had stopped: ask its owner. When the rows are there, score again: "
            f"batchscore backfill {runs[0].job} {window_of(of, calendar)} --only changed-input"
        )
        level: Level = "act" if which[-1] == len(runs) - 1 else "look"
        yield Finding(listed(names, 2), of[0].start, words, advice, level)


def of_columns(
    training: Comparison,
    before: Comparison,
    means: Mapping[str, tuple[float, float]],
    since: Mapping[tuple[str, str], datetime],
    calendar: Calendar,
    gone: Collection[str] = (),
    steps: Collection[Step] = (),
) -> Iterator[Finding]:
    """How columns and answers of runs, merged, differ from training, and whether they differ from earlier runs as much.

    Args:
        training: The runs against training.
        before: The same runs against as many before; nothing found where there are none.
        means: The mean of each column in the runs and in training, of those that have one.
        since: From when on each role and column has moved against training in every run.
        calendar: How the job cuts time.
        gone: Columns of which it is told already that they were missing.
        steps: Columns that began to move lately, what they are since then.
    """
    strongest: dict[tuple[str, str], Watched] = {}
    steady: list[str] = []
    begun = {(each.strongest.role, each.strongest.drift.column): each for each in steps}
    begun = {which: each for which, each in begun.items() if which[1] not in gone}
    yield from _of_steps(begun.values(), calendar)
    found = [each for each in training.found if (each.role, each.drift.column) not in begun]
    for (role, name), some in groupby(found, lambda each: (each.role, each.drift.column)):
        told = name in gone and role == "input"
        judged = [
            each for each in some if each.drift.band is not None and not (told and each.drift.metric == "null_share")
        ]
        moved = [each for each in judged if each.drift.verdict == "moved"]
        if moved:
            strongest[role, name] = max(moved, key=lambda each: each.strength)
        # Of a private column it may be known no more than how often it is missing, and that is not all of it.
        elif role == "input" and any(
            each.drift.verdict == "steady" and each.drift.metric != "null_share" for each in judged
        ):
            steady.append(name)
    earlier = {(each.role, each.drift.column, each.drift.metric): each for each in before.found}
    ordered = sorted(strongest.items(), key=lambda item: (-(item[1].importance or 0.0), -item[1].strength))
    unread: list[str] = []
    for (role, name), each in ordered:
        other = earlier.get((role, name, each.drift.metric))
        if role == "input" and _hardly_read(each) and _restless(each, other):
            unread.append(name)
        else:
            yield _moved(training, before, each, other, means.get(name), since.get((role, name)), calendar)
    if unread:
        words = f"{listed(unread, len(unread))} moved against training too, and differ between runs as much."
        yield Finding(listed(unread, 2), None, words, "The model hardly reads them, or not at all.", "note")
    if steady:
        words = f"{listed(steady, len(steady))} {'is' if len(steady) == 1 else 'are'} steady against training"
        yield Finding("steady", None, f"{words} in {_runs(training)}.", "", "note")


def _hardly_read(each: Watched) -> bool:
    return each.importance is None or each.importance < _HARDLY


def _is_read(each: Watched) -> bool:
    return each.role == "input" and not _hardly_read(each)


def _restless(each: Watched, before: Watched | None) -> bool:
    """Whether it differs from the runs before about as much as from training."""
    return before is not None and before.drift.verdict == "moved" and before.strength > _SLOWLY * each.strength


def _moved(
    training: Comparison,
    before: Comparison,
    each: Watched,
    other: Watched | None,
    means: tuple[float, float] | None,
    since: datetime | None,
    calendar: Calendar,
) -> Finding:
    drift = each.drift
    # Of the last run alone it goes without saying.
    unbroken = since is not None and since < training.runs[-1].interval.start
    always = f", in every run since {calendar.label(calendar.containing(since))}" if since and unbroken else ""
    words = f"{drift.column} moved against training{always}: {_figure(each, f'in {_runs(training)}')}."
    if means is not None and drift.metric not in _SHARES:
        words += f" Its mean is {rounded(means[0])}, and was {rounded(means[1])} in training."
    level: Level = "note" if _hardly_read(each) else "look"
    job = training.runs[-1].job
    advice = f"See its distribution. If it is right, train on newer rows: {_ANEW}{job}{_IF}"
    if other is not None and other.drift.value is not None:
        so_far = f"Against the {len(before.others)} runs before it is {_value(other.drift)}"
        if _restless(each, other):
            words += f" {so_far}: it differs between these runs too, by nature or because it moves now."
        else:
            quiet = "quiet" if other.drift.verdict != "moved" else "little"
            words += f" {so_far}, which is {quiet}: it moved slowly, which looks seasonal, or has stayed where it went."
            advice = f"If nothing is broken, train on rows of a whole year, or again on newer ones: {_ANEW}{job}{_IF}"
    if each.role == "output":
        advice = "The answers follow the columns: see those, and the labels when they come."
        level = "look"
    elif each.importance is None:
        advice = "It is none of the features: the model does not read it itself."
    elif _hardly_read(each):
        advice = f"The model hardly reads it: {each.importance:.1%} of what it loses by its most important column."
    return Finding(drift.column, since, words, advice, level, _is_read(each))


def moved_since(runs: Sequence[Run], rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], datetime]:
    """From which interval on each role and column has moved against training in every run up to the last.

    Args:
        runs: Published runs, by interval.
        rows: Rows of `batchscore_drift` of those runs.
    """
    moved: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row["reference"] == "training" and row["verdict"] == "moved":
            moved.setdefault((row["role"], row["column_name"]), set()).add(row["run_id"])
    found = {}
    for which, ids in moved.items():
        for run in reversed(runs):
            if run.run_id not in ids:
                break
            found[which] = run.interval.start
    return found


def _of_steps(steps: Collection[Step], calendar: Calendar) -> Iterator[Finding]:
    """Columns that began to move lately: each by itself, but those together that moved little in the last run alone."""
    little = []
    for step in steps:
        if len(step.runs) > 1 or _at_once(step.strongest):
            yield _began(step, calendar)
        else:
            little.append(step)
    if little:
        names = [step.strongest.drift.column for step in little]
        figures = [_figure(step.strongest, "") for step in little]
        told = figures if len(names) == 1 else [f"{name} {figure}" for name, figure in zip(names, figures, strict=True)]
        words = f"{listed(names, len(names))} moved against training in the last run alone: {'; '.join(told)}."
        yield Finding(listed(names, 2), little[0].runs[0].interval.start, words, "See the map.", "note")


def _at_once(each: Watched) -> bool:
    """Whether a column that the model reads, or an answer, has moved so far that a single run is enough to look."""
    return each.strength >= _FAR_AT_ONCE and (each.role == "output" or _is_read(each))


def _figure(each: Watched, where: str) -> str:
    """The value of a metric, and how far it is; of a difference of two shares both, for alone it says little."""
    drift = each.drift
    times = f"{rounded(each.strength, 1)} times what counts"
    if drift.share is not None and drift.reference_share is not None:
        shares = shares_told(drift.metric, drift.share, drift.reference_share, "training")
        return f"{f'{where} {shares}'.strip()}, a difference of {times}"
    return f"{f'{drift.metric} {rounded(drift.value)} {where}'.strip()}, {times}"


def _value(drift: Drift) -> str:
    if drift.share is not None and drift.reference_share is not None:
        return both_shares(drift.share, drift.reference_share)
    return rounded(drift.value)


def _began(step: Step, calendar: Calendar) -> Finding:
    each, first = step.strongest, step.runs[0].interval
    drift = each.drift
    since = f"since {calendar.label(first)}, in each of {len(step.runs)} runs and not in the one before"
    where = "in them"
    if len(step.runs) == 1:
        since, where = f"in the last run alone, {calendar.label(first)}", ""
    words = f"{drift.column} moved against training {since}: {_figure(each, where)}."
    if step.means is not None and drift.metric not in _SHARES:
        words += f" Its mean is {rounded(step.means[0])}, and was {rounded(step.means[1])} in training."
    if step.unseen:
        most = sorted(step.unseen, key=lambda name: -step.unseen[name])
        words += f" Training never saw {listed([repr(name) for name in most], _LISTED)}."
    advice = f"See what changed on {calendar.label(first)}: a feed, a unit, a code."
    if each.role == "output":
        advice = "The answers follow the columns: see those, and the labels when they come."
    elif each.importance is not None and _hardly_read(each):
        advice += f" The model hardly reads it: {each.importance:.1%} of what it loses by its most important column."
    level: Level = "note" if _hardly_read(each) and each.role == "input" and each.strength < _FAR else "look"
    return Finding(drift.column, first.start, words, advice, level, _is_read(each))


def of_rows(run: Run, rows: Iterable[Mapping[str, Any]], calendar: Calendar) -> Iterator[Finding]:
    """Whether a classifier tells the last run's rows from others by all columns together.

    Args:
        run: The last published run.
        rows: Rows of `batchscore_drift`.
        calendar: How the job cuts time.
    """
    for row in rows:
        if row["run_id"] == run.run_id and row["metric"] == "domain_auc" and row["told"]:
            against = row["reference"].replace("_", " ")
            words = (
                f"Rows of {calendar.label(run.interval)} can be told from those of {against} by all columns together: "
                f"the classifier's area is {rounded(row['value'])}, where {rounded(row['band'])} counts."
            )
            window = window_of([run.interval], calendar)
            advice = f"See by which columns: batchscore drift {run.job} {window} --against {row['reference']}"
            yield Finding("all columns together", run.interval.start, words, advice, "look")


def _runs(compared: Comparison) -> str:
    count = len(compared.runs)
    return "the last run" if count == 1 else f"the last {count} runs"
