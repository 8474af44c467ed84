"""Leases: who may score an interval now, and how a writer that lost its lease is kept from committing.

Everything is a row and a transaction: nothing hangs on a session, so a pooling proxy may stand in between.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from batchscore.errors import IntervalLeased
from batchscore.interval import Interval
from batchscore.ledger.tables import LEASES, insert_new
from batchscore.sqltypes import Instant

__all__ = ["Lease", "Owner", "acquire", "check", "clock", "is_free", "keep_others_out", "release", "renew"]

# Postgres' CURRENT_TIMESTAMP is when the transaction began, before it had to wait; the others' has whole seconds.
_CLOCKS = {
    "postgresql": "clock_timestamp()",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now')",
    "mysql": "utc_timestamp(6)",
    "mariadb": "utc_timestamp(6)",
}
# Of the row that is locked where there is no interval to lock.
_NO_INTERVAL = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Owner:
    """A command at work: its host, its process, and a token of its own.

    Attributes:
        started: In which name space of process numbers the process started, and when, in the kernel's ticks: numbers
            are given out again, and two containers on one host's network have its name and numbers of their own.
    """

    host: str
    pid: int
    started: str
    token: str

    @classmethod
    def here(cls) -> Owner:
        """A new owner in this process."""
        started = ""
        with contextlib.suppress(OSError):
            started = _started(os.getpid())
        return cls(_host(), os.getpid(), started, uuid.uuid4().hex[:8])

    @classmethod
    def parse(cls, text: str) -> Owner:
        """What `str` wrote."""
        host, pid, started, token = text.rsplit("/", 3)
        return cls(host, int(pid), started, token)

    def __str__(self) -> str:
        return f"{self.host}/{self.pid}/{self.started}/{self.token}"

    @property
    def words(self) -> str:
        """For a message."""
        return f"process {self.pid} on {self.host}"

    def is_dead(self, *, alone: bool) -> bool:
        """Whether its process is known to have ended.

        Args:
            alone: The database admits one process, and this is it.
        """
        if (self.host, self.started.partition(":")[0]) == (_host(), _namespace()):
            return _is_known_dead(self.pid, self.started)
        return alone


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write an interval until someone else takes it, which raises the fence."""

    job: str
    interval: Interval
    owner: Owner
    fence: int


def clock(tx: sa.Connection) -> datetime:
    """The database's time: the one clock that every owner of a lease shares."""
    shown = _CLOCKS.get(tx.dialect.name, "CURRENT_TIMESTAMP")
    now: datetime = tx.execute(sa.select(sa.literal_column(shown, Instant()))).scalar_one()
    return now


def acquire(
    tx: sa.Connection, job: str, interval: Interval, owner: Owner, *, seconds: float, alone: bool = False
) -> Lease:
    """Take the interval's lease when it is free: released, expired, the owner's already, or a dead process's.

    Raises:
        IntervalLeased: Another process has it.
    """
    # Looked at before it is locked: its holder may be in the middle of a long commit, which a lock would wait for.
    _refuse_held(tx, job, interval, owner, alone=alone)
    insert_new(tx, LEASES, {"job": job, "interval_start": interval.start, "fence": 0})
    _lock(tx, _row(job, interval))
    fence, now = _refuse_held(tx, job, interval, owner, alone=alone)
    lease = Lease(job, interval, owner, fence + 1)
    taken = {"owner": str(owner), "fence": lease.fence, "expires_at": now + timedelta(seconds=seconds)}
    tx.execute(sa.update(LEASES).where(_row(job, interval)).values(taken))
    return lease


def _refuse_held(tx: sa.Connection, job: str, interval: Interval, owner: Owner, *, alone: bool) -> tuple[int, datetime]:
    """Refuse a lease that another has and that has not ended; its fence, and the time by the database's clock."""
    row = tx.execute(sa.select(LEASES).where(_row(job, interval))).one_or_none()
    now = clock(tx)
    if row is None:
        return 0, now
    holder = Owner.parse(row.owner) if row.owner else None
    if holder and holder != owner and row.expires_at > now and not holder.is_dead(alone=alone):
        raise IntervalLeased(
            f"{interval} of job {job} is leased by {holder.words} until {row.expires_at:%H:%M:%S}Z, and it renews that "
            "while it lives. Nothing was written: let it finish, or run again.",
            owner=row.owner,
        )
    return row.fence, now


def check(tx: sa.Connection, lease: Lease) -> None:
    """Make sure, until the transaction ends, that nobody has taken the lease; one that expired untaken is good.

    Raises:
        IntervalLeased: Another process took it.
    """
    row = _row(lease.job, lease.interval)
    _lock(tx, row)
    if tx.execute(sa.select(LEASES.c.fence).where(row)).scalar_one_or_none() != lease.fence:
        raise IntervalLeased(
            f"{lease.interval} of job {lease.job}: another process has taken its lease since. This one stops and "
            "writes nothing more; let the other finish, or run again when it has ended.",
        )


def keep_others_out(tx: sa.Connection) -> None:
    """Wait for, and from now to the end of the transaction keep out, every other process that asks for this."""
    # DuckDB admits one process, and two of its transactions that write one row conflict instead of waiting.
    if tx.dialect.name != "duckdb":
        insert_new(tx, LEASES, {"job": "", "interval_start": _NO_INTERVAL, "fence": 0})
        _lock(tx, LEASES.c.job == "")


def is_free(tx: sa.Connection, job: str, interval: Interval) -> bool:
    """Whether nobody has the interval's lease now."""
    row = tx.execute(sa.select(LEASES.c.owner, LEASES.c.expires_at).where(_row(job, interval))).one_or_none()
    return row is None or row.owner is None or row.expires_at <= clock(tx)


def renew(tx: sa.Connection, lease: Lease, *, seconds: float) -> bool:
    """Put off the lease's end; False when another process took it."""
    return _update(tx, lease, {"expires_at": clock(tx) + timedelta(seconds=seconds)})


def release(tx: sa.Connection, lease: Lease) -> bool:
    """Let the lease go, so that the next need not wait for its end; False when another process took it."""
    return _update(tx, lease, {"owner": None, "expires_at": None})


def _update(tx: sa.Connection, lease: Lease, values: dict[str, Any]) -> bool:
    still_ours = sa.and_(_row(lease.job, lease.interval), LEASES.c.fence == lease.fence)
    return bool(tx.execute(sa.update(LEASES).where(still_ours).values(values)).rowcount)


def _lock(tx: sa.Connection, rows: sa.ColumnElement[bool]) -> None:
    """Keep others from writing these rows until the transaction ends; wait while another does."""
    # An UPDATE that changes nothing, for not every database has SELECT … FOR UPDATE; for DuckDB see keep_others_out.
    if tx.dialect.name != "duckdb":
        tx.execute(sa.update(LEASES).where(rows).values(fence=LEASES.c.fence))


def _row(job: str, interval: Interval) -> sa.ColumnElement[bool]:
    return sa.and_(LEASES.c.job == job, LEASES.c.interval_start == interval.start)


@cache
def _host() -> str:
    return socket.gethostname()


@cache
def _namespace() -> str:
    """Of process numbers, of this machine since it started; empty where there is no /proc to ask."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text()[:8]}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process of this host started; empty where there is none that lives.

    Raises:
        OSError: There is no /proc, it hides other users' processes, or the process has ended for good.
    """
    # Behind the command's name, which may hold anything, come its state and, as the twentieth field, the start.
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    # A zombie has ended and waits for its parent, which as a container's first process may never ask.
    return "" if fields[0] == "Z" else f"{_namespace()}:{fields[19]}"


def _is_known_dead(pid: int, started: str) -> bool:
    # A line that was cut short tells as little as none.
    with contextlib.suppress(OSError, IndexError):
        return _started(pid) != started
    # Whoever is hidden from /proc, another user's process perhaps, can still be asked for.
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False
