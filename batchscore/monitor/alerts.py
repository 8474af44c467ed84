"""What fires, from the ledger alone, and notices of it: each sent once, whatever becomes of the process."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from batchscore import ledger
from batchscore.errors import UsageError
from batchscore.interval import age_of
from batchscore.job import Job
from batchscore.ledger import Alarms, Run
from batchscore.logs import Event, log, redacted
from batchscore.monitor.channels import Channel, Undelivered
from batchscore.warehouse import Warehouse

__all__ = ["look", "notice", "tell"]

# Longer than all channels together may take: whoever does not settle a claim within that has died.
_CLAIM = timedelta(minutes=2)
# How long a run that failed is told again and again, once the job has gone on without it.
_PASSED = timedelta(days=28)
# Of the text for people; the fields beside it hold every alert.
_LINES = 10
_LONGEST = 300
_LOG = "log"
_FAILED = "failed "

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
    if "failed" in job.alerts.on:
        _unpublished(tx, job, table, last, alarms)
    if "performance" in job.alerts.on:
        _worse(tx, job, alarms)
    if "drift" in job.alerts.on and last is not None:
        _moved(tx, job, last, alarms)
    return alarms


def _moved(tx: sa.Connection, job: Job, last: Run, alarms: Alarms) -> None:
    """The columns that moved in the run of the latest published interval; and those not judged."""
    interval = job.calendar.label(job.calendar.containing(last.interval.start))
    columns: dict[str, list[_Row]] = {}
    for row in ledger.drift_of(tx, last.run_id):
        columns.setdefault(f"drift {row['role']} {row['column_name']}", []).append(row)
    for alert, rows in columns.items():
        if told := [row for row in rows if row["told"]]:
            alarms.firing[alert] = f"{interval}: moved: {'; '.join(_measured(row) for row in told)}"
        elif not any(row["verdict"] in ("moved", "steady") for row in rows):
            alarms.unknown.add(alert)
    if not columns:
        # The comparison failed, so that nothing is known of any.
        alarms.unknown |= {row["alert"] for row in ledger.alerts_of(tx, job.name) if row["alert"].startswith("drift ")}


def _unpublished(tx: sa.Connection, job: Job, table: str, last: Run | None, alarms: Alarms) -> None:
    """The runs that failed or are held; the alerts of those that are not at their end, and of those nobody asks for."""
    c = ledger.RUNS.c
    unfinished = ("running", "failed", "held")
    runs = ledger.select_runs(tx, c.job == job.name, c.output_table == table, c.status.in_(unfinished))
    for run in sorted(runs, key=lambda run: (run.interval.start, run.scored_at)):
        alert = f"{_FAILED}{job.calendar.label(job.calendar.containing(run.interval.start))}"
        if last is not None and run.interval.start < last.interval.start:
            alarms.passed.add(alert)
        if run.status == "running":
            if ledger.is_free(tx, job.name, run.interval):
                alarms.firing[alert] = "a process was stopped or killed over it: score it again"
            else:
                alarms.unknown.add(alert)
            continue
        why = " ".join(redacted(run.error or "").split())
        why = f"{why[:_LONGEST]} …" if len(why) > _LONGEST else why
        alarms.firing[alert] = f"{'held by a gate' if run.status == 'held' else 'failed'}: {why}"
    known = {row["alert"] for row in ledger.alerts_of(tx, job.name) if row["alert"].startswith(_FAILED)}
    over = known - alarms.firing.keys() - alarms.unknown
    alarms.dropped |= {alert for alert in over if not _is_published(tx, job, table, alert.removeprefix(_FAILED))}


def _is_published(tx: sa.Connection, job: Job, table: str, label: str) -> bool:
    """Whether an interval of that name is published; one that is cut otherwise now, or went elsewhere, is not."""
    try:
        interval = job.calendar.at(label)
    except UsageError:
        return False
    c = ledger.RUNS.c
    ours = (c.job == job.name, c.output_table == table, c.interval_start == interval.start, c.status == "published")
    return job.calendar.label(interval) == label and bool(ledger.select_runs(tx, *ours))


def _worse(tx: sa.Connection, job: Job, alarms: Alarms) -> None:
    """The metrics that are worse than on the test rows, and what is not judged."""
    for kind in ("measured", "estimated"):
        judged = ledger.judged_last(tx, job.name, kind)
        if not judged:
            alarms.unknown.add(f"performance {kind}")
        if worse := [row for row in judged if row["verdict"] == "worse"]:
            interval = job.calendar.label(job.calendar.containing(worse[0]["window_start"]))
            metrics = "; ".join(_with_interval(row) for row in worse)
            told = f"{interval}: {worse[0]['model_name']} {worse[0]['model_version']} is worse than on its test rows"
            alarms.firing[f"performance {kind}"] = f"{told}: {metrics}"


def _with_interval(row: _Row) -> str:
    return f"{row['metric']} {row['value']:.4g} ({row['low']:.4g} to {row['high']:.4g})"


def _measured(row: _Row) -> str:
    against = row["reference"].replace("_", " ")
    return f"{row['metric']} {row['value']:.4g} against {against}, where {row['band']:.4g} matters"


def tell(warehouse: Warehouse, job: Job, channels: Sequence[Channel], *, logged: bool = True) -> None:
    """See what fires, and send one notice of all that is due.

    Whoever does not get it is told again by the next command. Two processes never send the same notice; one that dies
    after it sent and before it could write so down leaves it to be sent again.

    Args:
        warehouse: The warehouse.
        job: The job.
        channels: Who is told.
        logged: Whether the log is told too.

    Raises:
        WarehouseError: The ledger refused.
        TransientError: It may take it later.
    """
    with warehouse.begin("the alerts") as tx:
        if not all(tx.has_table(table.name) for table in (ledger.RUNS, ledger.DRIFT, ledger.LEASES, ledger.ALERTS)):
            return
    with warehouse.begin("the alerts") as tx:
        ledger.keep_others_out(tx.connection)
        now = ledger.clock(tx.connection)
        alarms = look(tx.connection, job, tx.full_name(job.output.table))
        told_before = now - age_of(job.alerts.repeat, "repeat")
        ledger.observe(tx.connection, job.name, alarms, job.alerts.on, now, told_before, now - _PASSED)
        claimed = ledger.claim_alerts(tx.connection, job.name, str(uuid.uuid4()), now, now + _CLAIM)
    # A notice that has reached some of them already is sent to the others; whoever does not answer is asked once.
    gone: set[str] = set()
    for reached in {row["told_to"] for row in claimed}:
        rows = [row for row in claimed if row["told_to"] == reached]
        asked = [channel for channel in channels if channel.name not in gone]
        got = _deliver(job, rows, asked, {name for name in reached.split(",") if name}, logged=logged)
        gone |= {channel.name for channel in asked} - got
        with warehouse.begin("the alerts") as tx:
            wanted = {channel.name for channel in channels}
            ledger.settle_claim(tx.connection, rows, got, ledger.clock(tx.connection), complete=got >= wanted)


def _deliver(
    job: Job, rows: Sequence[_Row], channels: Sequence[Channel], reached: set[str], *, logged: bool
) -> set[str]:
    """Send a notice to all whom it has not reached, and give all whom it has."""
    if logged and _LOG not in reached:
        for row in rows:
            facts = {"alert": row["alert"], "detail": row["detail"], "first_at": row["first_at"].isoformat()}
            if row["state"] == "firing":
                log.warning(Event.ALERT_FIRING, times=row["times"], **facts)
            else:
                log.info(Event.ALERT_RECOVERED, **facts)
    got = {*reached, _LOG} if logged else set(reached)
    body = notice(job.name, rows)
    for channel in channels:
        if channel.name not in got:
            try:
                channel.send(body)
                got.add(channel.name)
            except Undelivered as error:
                log.warning(Event.ALERTS_UNDELIVERED, channel=channel.name, alerts=len(rows), error=str(error))
    return got


def notice(job: str, rows: Sequence[_Row], text: str = "") -> bytes:
    """A notice as JSON: `text` for people, in the markup of Slack, and each alert in fields of its own.

    Args:
        job: The job's name.
        rows: Rows of `batchscore_alerts`.
        text: In the place of what the rows say.
    """
    by_state: dict[str, list[_Row]] = {"firing": [], "recovered": []}
    for row in rows:
        by_state[row["state"]].append(row)
    lines = [f"{state}: {row['alert']} ({row['detail']})" for state, found in by_state.items() for row in found]
    if len(lines) > _LINES:
        lines = [*lines[:_LINES], f"and {len(lines) - _LINES} more: batchscore alerts list {job}"]
    counted = ", ".join(f"{len(found)} {state}" for state, found in by_state.items() if found)
    content = {
        "text": _escaped(text or "\n".join([f"batchscore {job}: {counted}", *lines])),
        "job": job,
        "sent_at": datetime.now(UTC).isoformat(),
        **{state: [_fields(row) for row in found] for state, found in by_state.items()},
    }
    return json.dumps(content).encode()


def _fields(row: _Row) -> dict[str, Any]:
    instants = {name: row[name].isoformat() for name in ("first_at", "last_at")}
    return {"alert": row["alert"], "detail": row["detail"], **instants, "times": row["times"]}


def _escaped(text: str) -> str:
    """As Slack wants it: what a value holds is no mention of everybody."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
