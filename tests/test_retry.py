"""What fails for now is tried again, for as long as something gets done; nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import structlog
import toy
from toy import Project

from batchscore import faults
from batchscore.errors import (
    BatchscoreError,
    IntervalLeased,
    Terminated,
    TransientError,
    UsageError,
    WarehouseError,
)
from batchscore.logs import configure
from batchscore.run import retry
from batchscore.run.retry import Patience


class Clock:
    """Time that passes when somebody sleeps, and when work is said to take some."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        """The time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let it pass."""
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The one clock that waiting and its deadline go by."""
    clock = Clock()
    monkeypatch.setattr(retry.time, "monotonic", clock.monotonic)
    monkeypatch.setattr("time.sleep", clock.sleep)
    return clock


def failing(times: int, error: BaseException, take: Callable[[], None] = lambda: None) -> tuple[Any, list[int]]:
    """A call that fails so many times and then gives `done`; and the list of its attempts."""
    attempts: list[int] = []

    def call() -> str:
        attempts.append(len(attempts) + 1)
        take()
        if len(attempts) <= times:
            raise error
        return "done"

    return call, attempts


class TestPatience:
    """`Patience`."""

    def test_at_once(self, clock: Clock) -> None:
        """What succeeds is called once, and nothing is waited for or logged."""
        call, attempts = failing(0, TransientError("gone"))

        configure("json")
        with structlog.testing.capture_logs() as logged:
            assert Patience(60).persist(call) == "done"

        assert (attempts, clock.slept, logged) == ([1], [], [])

    def test_each_attempt_is_told(self, clock: Clock) -> None:
        """Each attempt that failed is one event, with its number, its error, the wait, and the time that is left."""
        call, attempts = failing(3, TransientError("the server is gone."))

        configure("json")
        with structlog.testing.capture_logs() as logged:
            assert Patience(600).persist(call) == "done"

        assert attempts == [1, 2, 3, 4]
        assert [event["event"] for event in logged] == ["attempt.failed"] * 3
        assert [event["log_level"] for event in logged] == ["warning"] * 3
        assert [event["attempt"] for event in logged] == [1, 2, 3]
        assert [event["error"] for event in logged] == ["the server is gone."] * 3
        assert [event["waits_seconds"] for event in logged] == [round(seconds, 3) for seconds in clock.slept]
        ends = [600 - sum(clock.slept[:number]) for number in range(3)]
        assert [event["gives_up_in_seconds"] for event in logged] == [round(end, 1) for end in ends]

    @pytest.mark.parametrize(
        "error",
        [
            WarehouseError("refused"),
            UsageError("wrong"),
            IntervalLeased("another's"),
            BatchscoreError("some"),
            RuntimeError("a bug"),
            Terminated("terminated"),
            KeyboardInterrupt(),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_nothing_else(self, clock: Clock, error: BaseException) -> None:
        """What would fail again, what another process must end first, and a bug are told at once, as they are."""
        call, attempts = failing(1, error)

        with structlog.testing.capture_logs() as logged, pytest.raises(type(error)) as caught:
            Patience(600).persist(call)

        assert caught.value is error
        assert (attempts, clock.slept, logged) == ([1], [], [])

    def test_deadline(self, clock: Clock) -> None:
        """The last error is told when the time would be over, after some attempts and never after the deadline."""
        errors = iter(range(1, 10_000))

        def call() -> None:
            raise TransientError(f"attempt {next(errors)}")

        configure("json")
        with structlog.testing.capture_logs() as logged, pytest.raises(TransientError) as caught:
            Patience(300).persist(call)

        assert len(logged) > 3
        assert str(caught.value) == f"attempt {len(logged) + 1}"
        assert 300 - 60 <= sum(clock.slept) <= 300

    def test_no_patience(self, clock: Clock) -> None:
        """With no seconds there is one attempt."""
        call, attempts = failing(1, TransientError("gone"))

        with pytest.raises(TransientError):
            Patience(0).persist(call)

        assert (attempts, clock.slept) == ([1], [])

    def test_progress(self, clock: Clock) -> None:
        """The deadline counts from the last progress: work that gets on may take a hundred times as long in all."""
        patience = Patience(70)

        def some() -> None:
            clock.now += 60
            patience.progress()

        call, attempts = failing(100, TransientError("gone"), some)

        assert patience.persist(call) == "done"
        assert len(attempts) == 101
        assert clock.now > 1000 + 6000

    def test_no_progress(self, clock: Clock) -> None:
        """Work that takes long and gets nothing done spends the time."""

        def none() -> None:
            clock.now += 40

        call, attempts = failing(100, TransientError("gone"), none)

        with pytest.raises(TransientError):
            Patience(70).persist(call)

        assert len(attempts) == 2

    def test_begins_with_the_call(self, clock: Clock) -> None:
        """Time before the first attempt is nobody's."""
        patience = Patience(70)
        clock.now += 1000
        call, attempts = failing(1, TransientError("gone"))

        assert patience.persist(call) == "done"
        assert attempts == [1, 2]

    def test_jitter(self, clock: Clock) -> None:
        """Waits are drawn anew each time from nothing up to a bound that doubles to a minute, so that no two agree."""
        drawn: list[list[float]] = []
        for _ in range(200):
            clock.slept.clear()
            call, _attempts = failing(10, TransientError("gone"))
            with structlog.testing.capture_logs():
                Patience(1e9).persist(call)
            drawn.append(list(clock.slept))

        for number, waits in enumerate(zip(*drawn, strict=True)):
            bound = min(0.5 * 2**number, 60)
            assert 0 <= min(waits) < bound * 0.1
            assert bound * 0.9 < max(waits) <= bound
        assert len({tuple(waits) for waits in drawn}) == 200


class TestCommand:
    """A command that loses its connection."""

    WINDOW = ("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-02", "--chunk-rows", "25")
    COLUMNS = "job, status, rows_read, predictions, rejects, chunks, input_hash, error"

    def found(self, project: Project) -> list[list[tuple[Any, ...]]]:
        """What a run leaves behind."""
        return [
            project.table(),
            toy.query(project.url, f"SELECT {self.COLUMNS} FROM batchscore_runs WHERE status = 'published'"),
            toy.query(project.url, "SELECT count(*) FROM batchscore_leases WHERE owner IS NOT NULL"),
        ]

    def test_one_call(self, anywhere: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """A connection that is lost in the middle of a chunk costs that chunk's work and no second call."""
        monkeypatch.setattr(faults, "_spent", False)

        lost = anywhere.call(*self.WINDOW, BATCHSCORE_FAULT="after_stage:1:lose")

        assert lost.code == 0, lost.out
        (failed,) = lost.named("attempt.failed")
        assert failed["error"].startswith("a fault was asked for at after_stage of chunk 1")
        assert [(event["chunks"], event["rows"]) for event in lost.named("run.resumed")] == [(1, 25)]
        assert [event["chunk"] for event in lost.named("chunk.committed")] == [0, 1, 2, 3]
        assert not lost.named("run.failed")
        found = self.found(anywhere)
        assert anywhere.call(*self.WINDOW, "--only", "all").code == 0
        assert self.found(anywhere) == found
        assert [row[0] for row in found[0]] == list(range(3101, 3201))

    def test_no_patience(self, anywhere: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """With no time to try again it exits with 20, and the next call goes on behind what is committed."""
        monkeypatch.setattr(faults, "_spent", False)

        lost = anywhere.call(*self.WINDOW, BATCHSCORE_FAULT="after_stage:1:lose", BATCHSCORE_RETRY_SECONDS="0")
        plan = anywhere.call("plan", "toy", *self.WINDOW[2:6], "--only", "failed").out
        again = anywhere.call(*self.WINDOW)

        assert (lost.code, lost.named("attempt.failed")) == (20, [])
        assert "failed: a fault was asked for at after_stage of chunk 1" in plan
        assert again.code == 0, again.out
        assert [event["chunks"] for event in again.named("run.resumed")] == [1]
        assert [row[0] for row in anywhere.table()] == list(range(3101, 3201))
