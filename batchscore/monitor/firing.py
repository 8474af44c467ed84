"""Which alerts fire, from the ledger alone, and by what one that fired has recovered."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from batchscore import ledger
from batchscore.job import Job
from batchscore.ledger import Alarms, Firing, Run
from batchscore.logs import redacted
from batchscore.monitor.shares import shares_told
from batchscore.monitor.verdict import TWO_SIDED

__all__ = ["RecoveredBy", "look", "metrics_of", "recovered_by"]

RecoveredBy = Literal["data", "configuration", "model", "override"]

_LONGEST = 300
_MEASURED = ("reference", "metric", "value", "share", "reference_share", "band")
_JUDGED = ("metric", "value", "low", "high", "test_value", "bound")

_Row = Mapping[str, Any]


def look(tx: sa.Connection, job: Job, table: str) -> Alarms:
    """What fires by the ledger, and of what it says nothing now: the rows were too few, or a run is not at its end.

    Args:
        tx: An open transaction.
        job: The job.
        table: Its output table's full name.
    """
    alarms = Alarms()
    last = ledger.published_last(tx, job.name, table)
    before = {row["alert"]: row for row in ledger.alerts_of(tx, job.name) if row["state"] == "firing"}
    if "failed" in job.alerts.on:
        _unpublished(tx, job, table, last, alarms)
    if "performance" in job.alerts.on:
        _worse(tx, job, before, alarms)
    if "drift" in job.alerts.on and last is not None:
        _moved(tx, job, last, before, alarms)
    return alarms


def recovered_by(tx: sa.Connection, job: Job, table: str, row: _Row) -> RecoveredBy | None:
    """By what an alert that fired, and by `look` does so no longer, has recovered.

    Args:
        tx: An open transaction.
        job: The job, as it is now.
        table: Its output table's full name.
        row: Of `batchscore_alerts`.

    Returns:
        None where that is not known, as of an alert that an earlier version entered.
    """
    kind = row["alert"].partition(" ")[0]
    if kind not in job.alerts.on:
        return "configuration"
    if not (found := _found(row)):
        return None
    if kind == "failed":
        return _published_by(tx, job, table, row["first_interval"], found)
    if kind == "drift":
        return _steadied_by(tx, job, table, row["alert"], found)
    return _bettered_by(tx, job, row["alert"].partition(" ")[2], found)


def _found(row: _Row) -> _Row:
    """What an alert was told by; empty where a version before did not keep it."""
    found: _Row = json.loads(row["found"] or "{}")
    return found


def _moved(tx: sa.Connection, job: Job, last: Run, before: Mapping[str, _Row], alarms: Alarms) -> None:
    """The columns that moved in the run of the latest published interval; and those not judged."""
    columns: dict[tuple[str, str], list[_Row]] = {}
    for row in ledger.drift_of(tx, last.run_id):
        columns.setdefault((row["role"], row["column_name"]), []).append(row)
    told = {which: some for which, rows in columns.items() if (some := [row for row in rows if row["told"]])}
    since = {which: start for which in told if (start := before.get(_drift(which), {}).get("first_interval"))}
    since |= ledger.told_since(tx, last, told.keys() - since.keys())
    for which, rows in columns.items():
        alert = _drift(which)
        if which in told:
            first = since[which]
            words = f"{_label(job, last.interval.start)}: moved: {'; '.join(map(_measured, told[which]))}"
            found = {
                "model": _model(last),
                "settings": job.drift.model_dump(mode="json"),
                "metrics": [{name: row[name] for name in _MEASURED} for row in told[which]],
            }
            alarms.firing[alert] = Firing(f"{words}; first interval {_label(job, first)}", first, found)
        elif not any(row["verdict"] in ("moved", "steady") for row in rows):
            alarms.unknown.add(alert)
    measured = {(_drift(which), row["reference"], row["metric"]) for which, rows in columns.items() for row in rows}
    alarms.unknown |= {
        alert
        for alert, row in before.items()
        if alert.startswith("drift ") and (not columns or _is_unmeasured(job, last, row, measured))
    }


def _drift(which: tuple[str, str]) -> str:
    return f"drift {' '.join(which)}"


def _column(alert: str) -> str:
    return alert.split(" ", 2)[2]


def _is_unmeasured(job: Job, last: Run, row: _Row, measured: Collection[tuple[str, str, str]]) -> bool:
    """Whether what an alert was told by could not be measured this time, with the same model and the same job file."""
    found = _found(row)
    if not found or _column(row["alert"]) in job.source.private:
        return False
    same = found["model"] == _model(last) and found["settings"] == job.drift.model_dump(mode="json")
    return same and any((row["alert"], each["reference"], each["metric"]) not in measured for each in found["metrics"])


def _steadied_by(tx: sa.Connection, job: Job, table: str, alert: str, found: _Row) -> RecoveredBy:
    """Configuration where what was measured last would still be told by the settings of then, or is not measured."""
    last = ledger.published_last(tx, job.name, table)
    if last is None:
        # The job has another table now.
        return "configuration"
    if found["model"] != _model(last):
        return "model"
    private = _column(alert) in job.source.private
    if found["settings"] == job.drift.model_dump(mode="json") and not private:
        return "data"
    now = {
        (row["reference"], row["metric"]): row
        for row in ledger.drift_of(tx, last.run_id)
        if alert == f"drift {row['role']} {row['column_name']}"
    }
    same_alpha = found["settings"]["alpha"] == job.drift.alpha
    for metric in found["metrics"]:
        row = now.get((metric["reference"], metric["metric"]))
        if row is None:
            return "configuration"
        if row["value"] is None or abs(row["value"]) < metric["band"]:
            continue
        if not same_alpha or abs(row["value"]) > (row["floor"] or 0.0):
            return "configuration"
    return "data"


def _unpublished(tx: sa.Connection, job: Job, table: str, last: Run | None, alarms: Alarms) -> None:
    """The runs that failed or are held; and the alerts of those that are not at their end."""
    c = ledger.RUNS.c
    unfinished = ("running", "failed", "held")
    runs = ledger.select_runs(tx, c.job == job.name, c.output_table == table, c.status.in_(unfinished))
    for run in sorted(runs, key=lambda run: (run.interval.start, run.scored_at)):
        start = run.interval.start
        alert = f"failed {_label(job, start)}"
        found = {"status": run.status, "settings": _barred_by(job)}
        if last is not None and start < last.interval.start:
            alarms.passed.add(alert)
        if run.status == "running":
            if ledger.is_free(tx, job.name, run.interval):
                alarms.firing[alert] = Firing("a process was stopped or killed over it: score it again", start, found)
            else:
                alarms.unknown.add(alert)
            continue
        why = " ".join(redacted(run.error or "").split())
        why = f"{why[:_LONGEST]} …" if len(why) > _LONGEST else why
        words = f"{'held by a gate' if run.status == 'held' else 'failed'}: {why}"
        alarms.firing[alert] = Firing(words, start, found)


def _published_by(tx: sa.Connection, job: Job, table: str, start: datetime, found: _Row) -> RecoveredBy:
    """Configuration where the bars of then would still have kept the run back, or the job has another table now."""
    c = ledger.RUNS.c
    there = (c.job == job.name, c.output_table == table, c.interval_start == start, c.status == "published")
    runs = ledger.select_runs(tx, *there)
    if not runs:
        return "configuration"
    run, bars, now = runs[0], found["settings"], _barred_by(job)
    if run.override_reason is not None:
        return "override"
    if found["status"] == "held" and bars["publish"] != now["publish"]:
        return "configuration"
    return "configuration" if (run.rejects or 0) > bars["rejects"] * (run.rows_read or 0) else "data"


def _barred_by(job: Job) -> dict[str, Any]:
    return {"publish": job.publish.model_dump(mode="json"), "rejects": job.limits.rejects}


def _worse(tx: sa.Connection, job: Job, before: Mapping[str, _Row], alarms: Alarms) -> None:
    """The metrics that are worse than on the test rows, and what is not judged."""
    for kind in ("measured", "estimated"):
        judged = ledger.judged_last(tx, job.name, kind)
        if not judged:
            alarms.unknown.add(f"performance {kind}")
        elif _was_later(job, before.get(f"performance {kind}"), judged[0]["window_start"]):
            # What it fired of was scored again since, and is not evaluated yet.
            alarms.unknown.add(f"performance {kind}")
        if worse := [row for row in judged if row["verdict"] == "worse"]:
            since = ledger.worse_since(tx, worse)
            start = worse[0]["window_start"]
            first = min(since.values(), default=start)
            model = f"{worse[0]['model_name']} {worse[0]['model_version']}"
            words = f"{_label(job, start)}: {model} is worse than on its test rows"
            found = {
                "model": [worse[0]["model_name"], worse[0]["model_version"]],
                "mature": job.performance.mature,
                "interval": start.isoformat(),
                "metrics": [
                    {name: row[name] for name in _JUDGED}
                    | {"first_interval": _label(job, since.get(row["metric"], start))}
                    for row in worse
                ],
            }
            told = f"{words}: {'; '.join(map(_judged, worse))}; first interval {_label(job, first)}"
            alarms.firing[f"performance {kind}"] = Firing(told, first, found)


def _was_later(job: Job, row: _Row | None, start: datetime) -> bool:
    """Whether an alert fired of a later interval than that one, by the same job file."""
    found = _found(row) if row else {}
    return (
        bool(found) and found["mature"] == job.performance.mature and start < datetime.fromisoformat(found["interval"])
    )


def _bettered_by(tx: sa.Connection, job: Job, kind: str, found: _Row) -> RecoveredBy:
    """Configuration where `mature` of then would judge another interval."""
    judged = ledger.judged_last(tx, job.name, kind)
    if [judged[0]["model_name"], judged[0]["model_version"]] != found["model"]:
        return "model"
    if found["mature"] == job.performance.mature:
        return "data"
    earlier = judged[0]["window_start"] < datetime.fromisoformat(found["interval"])
    too_few = kind == "measured" and judged[0]["labelled"] < found["mature"] * judged[0]["predictions"]
    return "configuration" if earlier or too_few else "data"


def _model(run: Run) -> list[Any]:
    return [run.model_name, run.model_version]


def _label(job: Job, start: datetime) -> str:
    return job.calendar.label(job.calendar.containing(start))


def _judged(row: _Row) -> str:
    told = f"{row['metric']} {row['value']:.4g} ({row['low']:.4g} to {row['high']:.4g})"
    if row["test_value"] is None or row["bound"] is None:
        return told
    side = "±" if row["metric"] == TWO_SIDED else ""
    return f"{told}, {row['test_value']:.4g} on test rows and worse beyond {side}{row['bound']:.4g}"


def _measured(row: _Row) -> str:
    if row["share"] is not None and row["reference_share"] is not None:
        shares = shares_told(row["metric"], row["share"], row["reference_share"], row["reference"])
        return f"{shares}, where a difference of {row['band']:.1%} matters"
    against = row["reference"].replace("_", " ")
    return f"{row['metric']} {row['value']:.4g} against {against}, where {row['band']:.4g} matters"


def metrics_of(row: _Row) -> Sequence[_Row]:
    """The metrics behind an alert, a row of `batchscore_alerts`; none of a failed run."""
    found: Sequence[_Row] = _found(row).get("metrics", [])
    return found
