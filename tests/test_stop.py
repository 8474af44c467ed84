"""A request to stop is met, wherever it comes in."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import toy
from toy import Project

from batchscore import stop
from batchscore.database import Database
from batchscore.errors import Interrupted, Terminated

SLOW = """
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.5); RETURN NEW; END'
"""


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """Both signals are requests to stop, in the test alone."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stop.listen()
    stop.roll_back()
    yield
    stop.listen()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "kind", "code"), [(signal.SIGTERM, Terminated, 143), (signal.SIGINT, Interrupted, 130)]
)
def test_is_raised_at_once(number: signal.Signals, kind: type[Terminated], code: int) -> None:
    """The signal ends what the main thread does, with the exit code that a shell would give."""
    stop.check()

    with pytest.raises(kind) as ended:
        signal.raise_signal(number)

    assert ended.value.exit_code == code
    with pytest.raises(kind):
        stop.check()


@pytest.mark.parametrize("delay", [0.15, 0.25, 0.4, 0.6, 0.8, 1.0])
def test_ends_a_command_that_is_starting(project: Project, delay: float) -> None:
    """Whatever is being imported, the exit code is that of the request, and what is told is one line in JSON."""
    process = project.start("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-29")
    time.sleep(delay)
    process.terminate()
    said, _ = process.communicate(timeout=60)

    # Until Python runs our first line, the signal has its default: the shell's 143 too.
    assert process.returncode in (143, -signal.SIGTERM)
    assert process.returncode == 143 or not said
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["event"] for line in lines].count("command.failed") == (process.returncode == 143)


@pytest.mark.parametrize(
    "command", [("train", "toy"), ("retrain", "toy", "--if", "older-than=0h", "--to", "2024-02-05")]
)
def test_a_training_is_lost(project: Project, command: tuple[str, ...]) -> None:
    """What ends a training says that nothing of it is kept: there are no chunks to go on behind."""
    project.edit("jobs/toy.py", ("def features(rows):\n", "def features(rows):\n    import time\n    time.sleep(30)\n"))
    process = project.start(*command)
    assert process.stdout
    for line in process.stdout:
        if "row-wise" in line:
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)

    assert process.returncode == 130
    error = json.loads(rest.splitlines()[-1])["error"]
    assert error == "interrupted: what was trained and is not registered yet is lost. The same command begins anew."


def test_other_threads_do_not_stop_by_themselves() -> None:
    """A thread that looks goes on: the main thread ends what it works for."""
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)

    with ThreadPoolExecutor() as pool:
        assert pool.submit(stop.check).result() is None
        assert pool.submit(stop.roll_back).result() is None


def test_is_raised_again_where_python_dropped_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a finalizer raises is lost; the next check has it all the same."""
    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)

    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    Finalized()
    assert [each.exc_type for each in dropped] == [Terminated]

    with pytest.raises(Terminated):
        stop.check()


def test_takes_the_place_of_the_error_it_caused() -> None:
    """A driver's error behind a request to stop is no failed connection, to be tried again."""
    with pytest.raises(Terminated), Database.at("postgresql://127.0.0.1/x").translated("the warehouse"):
        try:
            signal.raise_signal(signal.SIGTERM)
        except Terminated:
            raise psycopg.OperationalError("cannot exit pipeline mode while busy") from None


def test_ends_a_run_that_it_meets_in_a_pipeline(trained: Project, tmp_path: Path, postgres_url: str) -> None:
    """Psycopg raises an error of its own where a pipeline is cut short; the command ends with 143 nevertheless."""
    project = toy.unscored(tmp_path, postgres_url, trained)
    assert project.call("migrate", "toy").code == 0
    toy.execute(
        postgres_url, SLOW, "CREATE TRIGGER slow BEFORE INSERT ON batchscore_profiles FOR EACH ROW EXECUTE FUNCTION wait()"
    )  # fmt: skip

    process = project.start("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-04")
    assert process.stdout
    for line in process.stdout:
        if "chunk.committed" in line:
            break
    time.sleep(0.7)
    process.terminate()
    rest, _ = process.communicate(timeout=60)

    assert process.returncode == 143
    lines = [json.loads(line) for line in rest.splitlines()]
    assert lines[-1]["event"] == "command.failed"
    assert "attempt.failed" not in [line["event"] for line in lines]
    assert toy.query(postgres_url, "SELECT count(*) FROM toy_predictions") == [(0,)]
