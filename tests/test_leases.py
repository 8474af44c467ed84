"""One writer an interval: leases on every database, by rows and the database's clock alone."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
import toy
from forked import Command
from structlog.testing import CapturingLogger
from toy import Project

from batchscore import ledger
from batchscore.database import Database
from batchscore.errors import IntervalLeased
from batchscore.interval import Interval
from batchscore.ledger import LEASES, Lease, Owner
from batchscore.ledger.leases import is_free
from batchscore.run.lease import leased
from batchscore.warehouse import Warehouse, open_warehouse

DAY = Interval(datetime(2024, 2, 1, tzinfo=UTC), datetime(2024, 2, 2, tzinfo=UTC))
NEXT_DAY = Interval(DAY.end, DAY.end + timedelta(days=1))

many_writers = pytest.mark.parametrize("database", toy.DATABASES[1:], indirect=True)


@pytest.fixture
def mine() -> Owner:
    """A command at work in this process."""
    return Owner.here()


@pytest.fixture
def other() -> Owner:
    """Another command at work in this process, which lives."""
    return Owner.here()


@pytest.fixture
def elsewhere(mine: Owner) -> Owner:
    """A command on another host, of which nobody here can tell whether it lives."""
    return replace(mine, host="elsewhere.example", token="far")


def acquire(
    warehouse: Warehouse, owner: Owner, interval: Interval = DAY, *, seconds: float = 60, alone: bool = False
) -> Lease:
    """Take a lease in a transaction of its own."""
    with warehouse.begin() as tx:
        return ledger.acquire(tx.connection, "toy", interval, owner, seconds=seconds, alone=alone)


def call(warehouse: Warehouse, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function of the ledger in a transaction of its own."""
    with warehouse.begin() as tx:
        return function(tx.connection, *args, **kwargs)


def check(warehouse: Warehouse, lease: Lease) -> None:
    """Check a lease the way that a commit does."""
    call(warehouse, ledger.check, lease)


def left(warehouse: Warehouse) -> timedelta:
    """How long the one lease there is will last, by the database's clock."""
    with warehouse.begin() as tx:
        expires = tx.connection.execute(sa.select(LEASES.c.expires_at)).scalar_one()
        return expires - ledger.clock(tx.connection)


def expire(warehouse: Warehouse) -> None:
    """Let the leases end now."""
    with warehouse.begin() as tx:
        past = ledger.clock(tx.connection) - timedelta(milliseconds=1)
        tx.connection.execute(sa.update(LEASES).values(expires_at=past))


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it holds before the seconds are over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


class TestAcquire:
    """`acquire`."""

    def test_free(self, warehouse: Warehouse, mine: Owner) -> None:
        """A lease that nobody ever had is given with the first fence, for as long as was asked."""
        lease = acquire(warehouse, mine, seconds=100)

        assert lease == Lease("toy", DAY, mine, 1)
        assert timedelta(seconds=90) < left(warehouse) <= timedelta(seconds=100)
        check(warehouse, lease)

    def test_released(self, warehouse: Warehouse, mine: Owner, other: Owner) -> None:
        """A lease that was let go is anybody's at once, with the next fence."""
        assert call(warehouse, ledger.release, acquire(warehouse, mine))

        assert acquire(warehouse, other).fence == 2

    def test_own(self, warehouse: Warehouse, mine: Owner) -> None:
        """The owner's own lease is given again with a higher fence, and the earlier one is worth nothing."""
        first, second = acquire(warehouse, mine), acquire(warehouse, mine)

        assert (first.fence, second.fence) == (1, 2)
        check(warehouse, second)
        with pytest.raises(IntervalLeased):
            check(warehouse, first)

    def test_living(self, warehouse: Warehouse, mine: Owner, other: Owner) -> None:
        """A living owner's lease is refused, naming process and host; the refusal changes nothing."""
        lease = acquire(warehouse, mine)

        with pytest.raises(IntervalLeased, match=f"leased by process {os.getpid()} on {socket.gethostname()} until"):
            acquire(warehouse, other)

        check(warehouse, lease)
        assert call(warehouse, ledger.renew, lease, seconds=60)

    def test_expired(self, warehouse: Warehouse, mine: Owner, other: Owner) -> None:
        """A lease that was not renewed is anybody's, though its owner lives."""
        lease = acquire(warehouse, mine)
        expire(warehouse)

        assert acquire(warehouse, other).fence == lease.fence + 1

    def test_clock(self, warehouse: Warehouse, mine: Owner, other: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
        """The database's clock counts: it tells fractions of a second, and a host whose own clock is wrong is no matter."""
        before, earlier = datetime.now(UTC), call(warehouse, ledger.clock)
        time.sleep(0.05)
        later, after = call(warehouse, ledger.clock), datetime.now(UTC)
        assert timedelta(milliseconds=40) < later - earlier <= after - before + timedelta(milliseconds=2)

        class Wrong(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return datetime(2050, 1, 1, tzinfo=tz)

        monkeypatch.setattr("batchscore.ledger.leases.datetime", Wrong)
        monkeypatch.setattr(time, "time", lambda: 2.5e9)
        acquire(warehouse, mine)
        with pytest.raises(IntervalLeased):
            acquire(warehouse, other)

    def test_clock_of_a_waiting_transaction(self, warehouse: Warehouse, mine: Owner) -> None:
        """A lease lasts from the moment it is written, not from when a transaction began that then had to wait."""
        lease = acquire(warehouse, mine)
        with warehouse.begin() as tx:
            first = ledger.clock(tx.connection)
            time.sleep(0.3)
            ledger.renew(tx.connection, lease, seconds=60)
            expires = tx.connection.execute(sa.select(LEASES.c.expires_at)).scalar_one()

        if not warehouse.backend.alone:
            assert expires - first > timedelta(seconds=60.25)

    def test_dead(self, warehouse: Warehouse, mine: Owner) -> None:
        """The lease of a process of this host that was killed is taken at once, before it is reaped and after."""
        code = "from batchscore.ledger import Owner; print(Owner.here(), flush=True); import time; time.sleep(60)"
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        owner = Owner.parse(process.stdout.readline().strip())
        assert owner.pid == process.pid
        acquire(warehouse, owner)
        with pytest.raises(IntervalLeased, match=f"process {process.pid} on"):
            acquire(warehouse, mine)

        process.kill()
        assert eventually(lambda: owner.is_dead(alone=False))
        lease = acquire(warehouse, mine)
        process.communicate()

        assert lease.fence == 2
        assert owner.is_dead(alone=False)

    def test_number_given_out_again(self, warehouse: Warehouse, mine: Owner) -> None:
        """A process that has the number of a dead one is not taken for it."""
        here = mine.started.partition(":")[0]
        acquire(warehouse, replace(mine, started=f"{here}:1", token="dead"))

        assert acquire(warehouse, mine).fence == 2

    def test_another_container_of_the_host(self, warehouse: Warehouse, mine: Owner) -> None:
        """A process whose number is of another name space, as containers on one host's network have, may live."""
        acquire(warehouse, replace(mine, started="1:1", token="beside"))

        with pytest.raises(IntervalLeased, match="is leased by process"):
            acquire(warehouse, mine)

    def test_another_host(self, warehouse: Warehouse, mine: Owner, elsewhere: Owner) -> None:
        """What lives on another host cannot be told: its lease is taken when it has ended, and not before."""
        acquire(warehouse, replace(elsewhere, started="1"))
        with pytest.raises(IntervalLeased, match=r"process \d+ on elsewhere\.example"):
            acquire(warehouse, mine)

        expire(warehouse)

        assert acquire(warehouse, mine).fence == 2

    def test_another_host_of_a_database_for_one(self, warehouse: Warehouse, mine: Owner, elsewhere: Owner) -> None:
        """Where the database admits one process, whoever is in it knows that the other host's process has ended."""
        acquire(warehouse, elsewhere)

        assert acquire(warehouse, mine, alone=True).fence == 2

    def test_another_thread_of_a_database_for_one(self, warehouse: Warehouse, mine: Owner, other: Owner) -> None:
        """A command in this very process lives, though the database admits one process."""
        acquire(warehouse, mine)

        with pytest.raises(IntervalLeased):
            acquire(warehouse, other, alone=True)

    def test_others(self, warehouse: Warehouse, mine: Owner, other: Owner) -> None:
        """The lease of one interval of one job says nothing of other intervals and jobs."""
        lease = acquire(warehouse, mine)

        acquire(warehouse, other, NEXT_DAY)
        call(warehouse, ledger.acquire, "trains", DAY, other, seconds=60)

        check(warehouse, lease)

    @many_writers
    def test_at_once(self, database: Database, warehouse: Warehouse) -> None:
        """Of four that take a lease together exactly one gets it, the first time and when it has expired."""
        owners = [Owner.here() for _ in range(4)]
        rivals = [open_warehouse(database) for _ in owners]
        try:
            with ThreadPoolExecutor(len(owners)) as pool:
                for fence in range(1, 7):
                    barrier = threading.Barrier(len(owners))

                    def one(process: Warehouse, owner: Owner, barrier: threading.Barrier = barrier) -> Lease | None:
                        barrier.wait()
                        try:
                            return acquire(process, owner)
                        except IntervalLeased:
                            return None

                    (lease,) = [lease for lease in pool.map(one, rivals, owners) if lease]
                    assert lease.fence == fence
                    check(warehouse, lease)
                    expire(warehouse)
        finally:
            for each in rivals:
                each.close()

    @many_writers
    def test_waits_for_a_commit(self, database: Database, warehouse: Warehouse, mine: Owner, other: Owner) -> None:
        """A lease is not taken in the middle of a commit that has checked it: the chunk counts, then its owner is out."""
        lease = acquire(warehouse, mine)
        expire(warehouse)
        with open_warehouse(database) as rival, ThreadPoolExecutor(1) as pool:
            with warehouse.begin() as tx:
                ledger.check(tx.connection, lease)
                taking = pool.submit(acquire, rival, other)
                with pytest.raises(TimeoutError):
                    taking.result(timeout=0.3)
            assert taking.result().fence == lease.fence + 1
        with pytest.raises(IntervalLeased):
            check(warehouse, lease)

    # SQLite admits one transaction that writes, and the others wait for it.
    @pytest.mark.parametrize("database", toy.DATABASES[2:], indirect=True)
    def test_does_not_wait_for_a_holder(
        self, database: Database, warehouse: Warehouse, mine: Owner, other: Owner
    ) -> None:
        """Whoever meets an interval in the middle of its owner's long commit is refused at once."""
        lease = acquire(warehouse, mine)
        with open_warehouse(database) as rival, warehouse.begin() as tx:
            ledger.check(tx.connection, lease)
            begun = time.monotonic()
            with pytest.raises(IntervalLeased):
                acquire(rival, other)
            assert time.monotonic() - begun < 5


class TestCheck:
    """`check`, `renew` and `release`."""

    def test_expired(self, warehouse: Warehouse, mine: Owner) -> None:
        """A lease that has ended, and that nobody took, is good still, and can be renewed."""
        lease = acquire(warehouse, mine)
        expire(warehouse)

        check(warehouse, lease)
        assert call(warehouse, ledger.renew, lease, seconds=60)
        assert left(warehouse) > timedelta(seconds=50)

    def test_lost(self, warehouse: Warehouse, mine: Owner, other: Owner) -> None:
        """Whoever lost the lease is out for good, when the new owner has released it too; it harms nobody's lease."""
        lost = acquire(warehouse, mine)
        expire(warehouse)
        new = acquire(warehouse, other)

        for _ in range(2):
            with pytest.raises(IntervalLeased, match="another process has taken its lease"):
                check(warehouse, lost)
            assert call(warehouse, ledger.renew, lost, seconds=1) is False
            assert call(warehouse, ledger.release, lost) is False
            assert call(warehouse, ledger.release, new)

    def test_taken_with_it(self, warehouse: Warehouse, mine: Owner, other: Owner) -> None:
        """What was written in the transaction of a failed check is not there."""
        lost = acquire(warehouse, mine)
        expire(warehouse)
        acquire(warehouse, other)

        def commit() -> None:
            with warehouse.begin() as tx:
                ledger.acquire(tx.connection, "toy", NEXT_DAY, mine, seconds=60)
                ledger.check(tx.connection, lost)

        with pytest.raises(IntervalLeased):
            commit()
        with warehouse.begin() as tx:
            assert tx.connection.execute(sa.select(sa.func.count()).select_from(LEASES)).scalar_one() == 1

    def test_never_taken(self, warehouse: Warehouse, mine: Owner) -> None:
        """A lease of which the ledger knows nothing is none."""
        with pytest.raises(IntervalLeased):
            check(warehouse, Lease("toy", DAY, mine, 1))


class TestIsFree:
    """`is_free`."""

    def test_life(self, warehouse: Warehouse, mine: Owner) -> None:
        """An interval is free before its lease was ever taken, when it is released, and when it has expired."""

        def free() -> bool:
            return bool(call(warehouse, is_free, "toy", DAY))

        found = [free()]
        lease = acquire(warehouse, mine)
        found.append(free())
        expire(warehouse)
        found.append(free())
        call(warehouse, ledger.renew, lease, seconds=60)
        found.append(free())
        call(warehouse, ledger.release, lease)
        found.append(free())

        assert found == [True, False, True, False, True]


class TestOwner:
    """`Owner`."""

    def test_round_trip(self, mine: Owner) -> None:
        """An owner comes back from its text, whatever its host is called."""
        for owner in (mine, replace(mine, host="a/b c/é"), replace(mine, started="")):
            assert Owner.parse(str(owner)) == owner

    def test_each_command_is_its_own(self) -> None:
        """Two commands of one process are two owners."""
        assert Owner.here() != Owner.here()

    def test_where_nothing_can_be_told(self, mine: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where /proc tells nothing, or hides others' processes, only one that the kernel does not know is dead."""
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        started = (Path("/proc") / str(process.pid) / "stat").read_text().rpartition(")")[2].split()[19]
        owner = replace(mine, pid=process.pid, started=f"{mine.started.partition(':')[0]}:{started}")
        assert not owner.is_dead(alone=False)

        def hidden(path: Path, *_: Any, **__: Any) -> str:
            raise FileNotFoundError(path)

        monkeypatch.setattr(Path, "read_text", hidden)
        try:
            assert not owner.is_dead(alone=False)
        finally:
            process.kill()
            process.wait()
        assert owner.is_dead(alone=False)


class TestLeased:
    """`leased`."""

    @many_writers
    def test_renewed(self, database: Database, warehouse: Warehouse, mine: Owner, other: Owner) -> None:
        """While the block runs the lease outlives its seconds by far; afterwards it is free and no thread is left."""
        with open_warehouse(database) as rival:
            with leased(warehouse, "toy", DAY, mine, 0.6) as lease:
                deadline = time.monotonic() + 2
                while time.monotonic() < deadline:
                    with pytest.raises(IntervalLeased):
                        acquire(rival, other)
                    time.sleep(0.05)
                check(warehouse, lease)
            assert not [thread for thread in threading.enumerate() if thread.name == "batchscore-lease"]
            assert call(warehouse, is_free, "toy", DAY)
            assert acquire(rival, other).fence == 2

    def test_released_after_an_error(self, warehouse: Warehouse, mine: Owner, other: Owner) -> None:
        """A block that raises lets the lease go as well, and its error is the one that is told."""

        def fail() -> None:
            with leased(warehouse, "toy", DAY, mine, 60):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()

        assert acquire(warehouse, other).fence == 2

    @many_writers
    def test_renewal_goes_on(self, database: Database, warehouse: Warehouse, mine: Owner, other: Owner) -> None:
        """A renewal that fails in a way nobody foresaw is told, and the next one is made all the same."""
        with pytest.MonkeyPatch.context() as patch, open_warehouse(database) as rival:
            told = CapturingLogger()
            patch.setattr("batchscore.run.lease.log", structlog.wrap_logger(told, [], structlog.BoundLogger))
            tries: list[int] = []
            renew = ledger.renew

            def bad_once(*args: Any, **kwargs: Any) -> bool:
                tries.append(1)
                if len(tries) == 1:
                    raise ZeroDivisionError("unforeseen")
                return renew(*args, **kwargs)

            patch.setattr(ledger, "renew", bad_once)
            with leased(warehouse, "toy", DAY, mine, 1.5):
                assert eventually(lambda: len(tries) >= 4)
                with pytest.raises(IntervalLeased):
                    acquire(rival, other)
        assert [(call.kwargs["event"], call.kwargs["error"]) for call in told.calls] == [
            ("lease.unrenewed", "unforeseen")
        ]

    def test_lost(self, warehouse: Warehouse, mine: Owner, other: Owner) -> None:
        """A block whose lease was taken ends without touching the new owner's."""
        with leased(warehouse, "toy", DAY, mine, 60) as lease:
            expire(warehouse)
            new = acquire(warehouse, other)
            with pytest.raises(IntervalLeased):
                check(warehouse, lease)

        check(warehouse, new)
        assert not call(warehouse, is_free, "toy", DAY)

    def test_refused(self, warehouse: Warehouse, mine: Owner, other: Owner) -> None:
        """Where another command has the lease the block never begins, and that command keeps it."""
        held = acquire(warehouse, mine)
        begun = []

        def take() -> None:
            with leased(warehouse, "toy", DAY, other, 60):
                begun.append(True)

        with pytest.raises(IntervalLeased, match=re.escape(f"{DAY} of job toy is leased by process")):
            take()

        assert begun == []
        check(warehouse, held)


@pytest.mark.parametrize("anywhere", ["postgres"], indirect=True)
def test_what_was_begun_for_a_leased_interval_is_let_go(anywhere: Project) -> None:
    """Rows that were being read of an interval that another process has hold no transaction open for the next ones."""
    url = anywhere.url
    columns = "id + 100000 * g, ts, day, a, b, c"
    many = f"SELECT {columns} FROM toy, generate_series(1, 3000) AS g WHERE day = '2024-02-01'"
    toy.execute(url, f"INSERT INTO toy (id, ts, day, a, b, c) {many}")
    ours = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
    reading = f"SELECT count(*) FROM pg_stat_activity WHERE query ILIKE '%batchscore_rows%' AND {ours}"

    def hanging(fault: str) -> Command:
        args = ("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-03", "--chunk-rows", "10")
        command = Command.start(args, anywhere.root, anywhere.environment(BATCHSCORE_FAULT=fault))
        command.wait_until_it_hangs()
        return command

    holder = hanging("after_take_up:0:hang")
    held = toy.query(url, reading)
    second = hanging("after_commit:0:hang")
    both = toy.query(url, reading)
    codes = [second.kill(), holder.kill()]

    assert codes == [-9, -9]
    assert second.named("run.left")
    assert held == both == [(1,)]
