"""Notices of what fires: each sent once, whatever becomes of the process."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from batchscore import ledger
from batchscore.interval import age_of
from batchscore.job import Job
from batchscore.logs import Event, log
from batchscore.monitor.channels import Channel, Undelivered
from batchscore.monitor.firing import look, metrics_of, recovered_by
from batchscore.warehouse import Warehouse

__all__ = ["notice", "tell"]

# Longer than all channels together may take: whoever does not settle a claim within that has died.
_CLAIM = timedelta(minutes=2)
# How long a run that failed is told again and again, once the job has gone on without it.
_PASSED = timedelta(days=28)
# Of the text for people; the fields beside it hold every alert.
_LINES = 10
_LOG = "log"
_RECOVERED = {
    "configuration": "by a change of the job file",
    "model": "by another version",
    "override": "by an override",
}

_Row = Mapping[str, Any]


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
        table = tx.full_name(job.output.table)
        alarms = look(tx.connection, job, table)
        why = partial(recovered_by, tx.connection, job, table)
        told_before = now - age_of(job.alerts.repeat, "repeat")
        ledger.observe(tx.connection, job.name, alarms, why, now, told_before, now - _PASSED)
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
            facts = {
                "alert": row["alert"],
                "detail": row["detail"],
                "first_at": row["first_at"].isoformat(),
                "first_interval": _first_interval(job, row),
            }
            if row["state"] == "firing":
                log.warning(Event.ALERT_FIRING, times=row["times"], **facts)
            else:
                log.info(Event.ALERT_RECOVERED, recovered_by=row["recovered_by"], **facts)
    got = {*reached, _LOG} if logged else set(reached)
    body = notice(job, rows)
    for channel in channels:
        if channel.name not in got:
            try:
                channel.send(body)
                got.add(channel.name)
            except Undelivered as error:
                log.warning(Event.ALERTS_UNDELIVERED, channel=channel.name, alerts=len(rows), error=str(error))
    return got


def notice(job: Job, rows: Sequence[_Row], text: str = "") -> bytes:
    """A notice as JSON: `text` for people, in the markup of Slack, and each alert in fields of its own.

    Args:
        job: The job.
        rows: Rows of `batchscore_alerts`.
        text: In the place of what the rows say.
    """
    by_state: dict[str, list[_Row]] = {"firing": [], "recovered": []}
    for row in rows:
        by_state[row["state"]].append(row)
    lines = [f"{_stands(row)}: {row['alert']} ({row['detail']})" for found in by_state.values() for row in found]
    if len(lines) > _LINES:
        lines = [*lines[:_LINES], f"and {len(lines) - _LINES} more: batchscore alerts list {job.name}"]
    counted = ", ".join(f"{len(found)} {state}" for state, found in by_state.items() if found)
    content = {
        "text": _escaped(text or "\n".join([f"batchscore {job.name}: {counted}", *lines])),
        "job": job.name,
        "sent_at": datetime.now(UTC).isoformat(),
        **{state: [_fields(job, row) for row in found] for state, found in by_state.items()},
    }
    return json.dumps(content).encode()


def _stands(row: _Row) -> str:
    """Its state, and of one that did not recover by itself what it recovered by."""
    by = _RECOVERED.get(row["recovered_by"] or "", "")
    return f"{row['state']} {by}".rstrip()


def _fields(job: Job, row: _Row) -> dict[str, Any]:
    instants = {name: row[name].isoformat() for name in ("first_at", "last_at")}
    fields = {
        "alert": row["alert"],
        "detail": row["detail"],
        "first_interval": _first_interval(job, row),
        "metrics": metrics_of(row),
        **instants,
        "times": row["times"],
    }
    return fields if row["state"] == "firing" else fields | {"recovered_by": row["recovered_by"]}


def _first_interval(job: Job, row: _Row) -> str | None:
    start = row["first_interval"]
    return None if start is None else job.calendar.label(job.calendar.containing(start))


def _escaped(text: str) -> str:
    """As Slack wants it: what a value holds is no mention of everybody."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
