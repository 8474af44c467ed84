"""Which alerts fire, and who was told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from batchscore.ledger.tables import ALERTS

__all__ = ["Alarms", "Firing", "alerts_of", "claim_alerts", "observe", "settle_claim"]

_Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Firing:
    """What an alert has found.

    Attributes:
        detail: In words.
        first_interval: The start of the first interval in which it was so; None where none is known.
        found: The metrics behind it and what they were judged by, JSON-ready.
    """

    detail: str
    first_interval: datetime | None = None
    found: Mapping[str, Any] = field(default_factory=dict)

    def columns(self) -> dict[str, Any]:
        """Those of `batchscore_alerts`."""
        return {"detail": self.detail, "first_interval": self.first_interval, "found": json.dumps(self.found)}


@dataclass(slots=True)
class Alarms:
    """What is wrong now.

    Attributes:
        firing: What fires, by alert.
        unknown: Alerts of which nothing is known now, which stay as they are.
        passed: Those that fire of an interval behind which a later one is published.
    """

    firing: dict[str, Firing] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    passed: set[str] = field(default_factory=set)


def alerts_of(tx: sa.Connection, job: str | None = None) -> list[_Row]:
    """The alerts of a job, or of every job: those that fire first, and the oldest of them first."""
    c = ALERTS.c
    query = sa.select(ALERTS).order_by(c.state, c.job, c.first_at, c.alert)
    return [dict(row) for row in tx.execute(query if job is None else query.where(c.job == job)).mappings()]


def observe(
    tx: sa.Connection,
    job: str,
    alarms: Alarms,
    why: Callable[[_Row], str | None],
    at: datetime,
    told_before: datetime,
    passed_before: datetime,
) -> None:
    """Enter what fires now; a notice becomes due of what has begun, has recovered, or was told too long ago.

    Args:
        tx: A transaction that keeps other observers out.
        job: The job's name.
        alarms: What is wrong.
        why: By what an alert that fired has recovered: `recovered_by` of its row.
        at: Now.
        told_before: Of what still fires, a notice is due again where the last one is older,
        passed_before: and of what has passed only where it has begun after this.
    """
    c = ALERTS.c
    rows = {row["alert"]: row for row in alerts_of(tx, job)}
    for alert, found in alarms.firing.items():
        now = found.columns()
        begun = now | {"state": "firing", "recovered_by": None, "first_at": at, "last_at": at, "times": 1, "due": True}
        if alert not in rows:
            tx.execute(sa.insert(ALERTS).values(job=job, alert=alert, told_to="", **begun))
        elif rows[alert]["state"] == "recovered":
            tx.execute(_update(job, alert).values(notified_at=None, told_to="", **begun))
        else:
            tx.execute(_update(job, alert).values(last_at=at, times=c.times + 1, **now))
            again = sa.and_(sa.not_(c.due), c.notified_at < told_before)
            if alert in alarms.passed:
                again = sa.and_(again, c.first_at > passed_before)
            tx.execute(_update(job, alert).where(again).values(due=True, told_to=""))
    for alert, row in rows.items():
        if row["state"] == "firing" and alert not in alarms.firing and alert not in alarms.unknown:
            # Of what nobody was told, nobody wants to hear that it is over.
            was_told = sa.case((sa.or_(c.notified_at.is_not(None), c.told_to != ""), True), else_=False)
            over = {"state": "recovered", "recovered_by": why(row), "last_at": at, "due": was_told, "told_to": ""}
            tx.execute(_update(job, alert).values(over))


def claim_alerts(tx: sa.Connection, job: str, owner: str, at: datetime, until: datetime) -> list[_Row]:
    """Take up the notices that are due and that nobody else is sending, one process each.

    Args:
        tx: An open transaction.
        job: The job's name.
        owner: Who takes them, a name that nobody else ever has.
        at: Now.
        until: When another may have them, should this process not live to settle the claim.
    """
    c = ALERTS.c
    free = sa.or_(c.claimed_until.is_(None), c.claimed_until < at)
    claim = sa.update(ALERTS).where(c.job == job, c.due, free)
    tx.execute(claim.values(claimed_by=owner, claimed_until=until))
    return [row for row in alerts_of(tx, job) if row["claimed_by"] == owner]


def settle_claim(
    tx: sa.Connection, claimed: Sequence[_Row], reached: Iterable[str], at: datetime, *, complete: bool
) -> None:
    """Give a claim back, and enter whom the notice has reached.

    Args:
        tx: An open transaction.
        claimed: What `claim_alerts` gave.
        reached: Those who have got it by now.
        at: Now.
        complete: Whether these are all who are to get it, so that it is due no longer.
    """
    c = ALERTS.c
    told_to = ",".join(sorted(reached))
    free = {"claimed_by": None, "claimed_until": None}
    for row in claimed:
        ours = _update(row["job"], row["alert"]).where(c.claimed_by == row["claimed_by"])
        told = {"notified_at": at} if complete else {}
        as_it_was = ours.where(c.state == row["state"])
        if not tx.execute(as_it_was.values(due=not complete, told_to=told_to, **told, **free)).rowcount:
            # It has changed meanwhile: what was told is no longer true, and that has to be told as well.
            tx.execute(ours.values(due=True, **told, **free))


def _update(job: str, alert: str) -> sa.Update:
    return sa.update(ALERTS).where(ALERTS.c.job == job, ALERTS.c.alert == alert)
