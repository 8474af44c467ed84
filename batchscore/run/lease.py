"""Holding an interval's lease while a block runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from batchscore import ledger
from batchscore.errors import BatchscoreError
from batchscore.interval import Interval
from batchscore.ledger import Lease, Owner
from batchscore.logs import Event, log
from batchscore.warehouse import Warehouse

__all__ = ["leased"]

# How long to wait for a renewal that hangs on a database which is gone.
_JOIN_SECONDS = 1.0


@contextmanager
def leased(warehouse: Warehouse, job: str, interval: Interval, owner: Owner, seconds: float) -> Iterator[Lease]:
    """Take the interval's lease, put off its end from a thread of its own, and let it go when the block ends.

    Args:
        warehouse: Where the ledger is.
        job: The job.
        interval: Its interval.
        owner: Whoever takes it.
        seconds: How long it lasts without being renewed: what others wait for when this process dies.

    Raises:
        IntervalLeased: Another process has it.
    """
    alone = warehouse.backend.alone
    with warehouse.begin(f"the lease of {interval}") as tx:
        lease = ledger.acquire(tx.connection, job, interval, owner, seconds=seconds, alone=alone)
    stopped = threading.Event()
    thread = threading.Thread(
        target=_renew, args=(warehouse, lease, seconds, stopped), daemon=True, name="batchscore-lease"
    )
    # Where no other process can come in, none can take it either.
    if not alone:
        thread.start()
    try:
        yield lease
    finally:
        stopped.set()
        if not alone:
            thread.join(_JOIN_SECONDS)
        # A warehouse that is gone lets go by itself, when the lease expires.
        with contextlib.suppress(BatchscoreError), warehouse.begin(f"the lease of {interval}") as tx:
            ledger.release(tx.connection, lease)


def _renew(warehouse: Warehouse, lease: Lease, seconds: float, stopped: threading.Event) -> None:
    while not stopped.wait(seconds / 3):
        # What cannot be renewed now may be in a moment; who has lost it is told at the next commit.
        try:
            with warehouse.begin(f"the lease of {lease.interval}") as tx:
                ledger.renew(tx.connection, lease, seconds=seconds)
        except Exception as error:  # noqa: BLE001 - a bug must not end the thread, and the lease with it, in silence
            log.warning(Event.LEASE_UNRENEWED, interval=str(lease.interval), error=str(error))
