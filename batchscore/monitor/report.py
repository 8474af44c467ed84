"""The report: one HTML page with how a job fares, for people to read and to print; it needs no network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from batchscore import page
from batchscore.ledger import Run
from batchscore.monitor.drawn import calibration, over_time
from batchscore.monitor.findings import span_of
from batchscore.monitor.heat import METRICS, STATES, heat
from batchscore.monitor.history import RECENT, History
from batchscore.monitor.pooled import Pooled
from batchscore.monitor.verdict import verdict
from batchscore.watching import REFERENCES

__all__ = ["report"]

_SCRIPT = Path(__file__).with_name("report.js")
# Of findings that somebody would still read; the rest follow the heat map that says the same.
_FIRST = 16
_REJECTS = 40


def report(history: History, made: datetime) -> str:
    """The page: HTML with its style, data, pictures and one script in it, and nothing that a browser would fetch.

    Its policy names that script and that style by their hashes and allows no others. What the ledger does not know is
    left out. Names and values of the data are escaped; of private columns there are none.

    Args:
        history: What is known of the job.
        made: When it is made.
    """
    script, style = _SCRIPT.read_text("utf-8"), page.style() + _sheet()
    published = history.published
    map_ = heat(history)
    return page.template(
        Path(__file__).with_name("report.html")
    ).render(
        job=history.job,
        history=history,
        made=made,
        policy=f"default-src 'none'; script-src {page.source_hash(script)}; style-src {page.source_hash(style)}",
        script=Markup(script),  # noqa: S704 - ours
        style=style,
        data=Markup(_embedded(map_.data())),  # noqa: S704 - escaped there
        glance=list(_glance(history)),
        findings=history.findings[:_FIRST],
        more=history.findings[_FIRST:],
        label=history.job.calendar.label,
        runs=list(reversed(history.runs)),
        heat=map_,
        references=REFERENCES,
        metrics=METRICS,
        states=STATES,
        charts=[Markup(svg) for svg in over_time(history)],  # noqa: S704 - escaped there
        calibration=[Markup(svg) for svg in calibration(history)],  # noqa: S704 - escaped there
        months=history.months,
        # Of many classes there is neither.
        means=any(month.predicted is not None for month in history.months),
        verdict=lambda month: _verdict(history, month),
        recent=RECENT,
        span=lambda runs: span_of(runs, history.job.calendar),
        rejects=_rejects(history)[:_REJECTS],
        versions=list(_versions(history, published)),
    )


def _sheet() -> Markup:
    return Markup(Path(__file__).with_name("report.css").read_text("utf-8"))  # noqa: S704 - ours


def _embedded(content: object) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or begins another."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _glance(history: History) -> Iterable[tuple[str, str, bool]]:
    """A name, what there is, and whether it is bad."""
    job, published = history.job, history.published
    if not published:
        yield "last published", "nothing", True
        return
    last = published[-1]
    ended = len(list(job.calendar.between(last.interval.end, history.until)))
    yield "last published", job.calendar.label(last.interval), False
    yield "late", f"by {ended:,} interval(s)" if ended else "no", ended > 0
    unfinished = [run for run in history.runs if run.status in ("failed", "held") and not _done(run, published)]
    yield "failed or held", str(len(unfinished)), bool(unfinished)
    yield "scored by", f"{last.model_name} version {last.model_version}", False
    told = {(row["role"], row["column_name"]) for row in history.drift if row["told"] and row["run_id"] == last.run_id}
    yield "drift told of the last run", f"{len(told)} column(s)" if told else "none", bool(told)
    metric = job.problem.metric
    if history.months and (measured := history.months[-1].metrics.get(metric)):
        month = history.months[-1]
        not_mature = "" if month.state == "mature" else f", {month.state}"
        yield f"{metric}, last month", f"{measured.value:.4g}{not_mature}", _worse(history, month)
    rejects, read = (sum(getattr(run, name) or 0 for run in published) for name in ("rejects", "rows_read"))
    yield "rejects", f"{rejects:,} of {read:,} rows", False


def _verdict(history: History, month: Pooled) -> str:
    """How the metric of a month compares with the test rows of its version; empty where it has none."""
    metric, bundle = history.job.problem.metric, history.bundles.get(month.runs[0].bundle_digest)
    if bundle is None or metric not in month.metrics:
        return ""
    return verdict(bundle, metric, month.metrics[metric], month.state)


def _worse(history: History, month: Pooled) -> bool:
    """Whether the metric is worse in the month, or in an interval of it by itself."""
    metric = history.job.problem.metric
    starts = {run.interval.start for run in month.runs}
    alone = (
        row["verdict"] == "worse" and row["kind"] == "measured" and row["window_start"] in starts
        for row in history.performance
        if row["metric"] == metric
    )
    return _verdict(history, month) == "worse" or any(alone)


def _done(run: Run, published: Sequence[Run]) -> bool:
    return any(each.interval.start == run.interval.start for each in published)


def _rejects(history: History) -> list[dict[str, Any]]:
    """By stage, reason and detail, the most frequent first, with the intervals they came in."""
    place = {run.run_id: run for run in history.published}
    found: dict[tuple[str, str, str], list[tuple[Run, int]]] = {}
    for row in history.rejects:
        which = (row["stage"], row["reason"], row["detail"] or "")
        found.setdefault(which, []).append((place[row["run_id"]], row["rejects"]))
    rows = []
    for (stage, reason, detail), some in found.items():
        runs = sorted((run for run, _ in some), key=lambda run: run.interval.start)
        count = sum(count for _, count in some)
        span = span_of(runs, history.job.calendar)
        rows.append({"stage": stage, "reason": reason, "detail": detail, "rejects": count, "span": span})
    return sorted(rows, key=lambda row: -row["rejects"])


def _versions(history: History, published: Sequence[Run]) -> Iterable[dict[str, Any]]:
    """The versions that scored, by time, with what they were trained on."""

    def scorer(run: Run) -> tuple[str, int, str]:
        return run.model_name, run.model_version, run.bundle_digest

    for (name, version, digest), some in groupby(published, scorer):
        runs = list(some)
        bundle = history.bundles.get(digest)
        yield {
            "name": name,
            "version": version,
            "digest": digest[:12],
            "span": span_of(runs, history.job.calendar),
            "runs": len(runs),
            "training": bundle.manifest.training if bundle else None,
            "accepted": sorted({run.sql_accepted for run in runs if run.sql_accepted}),
        }
