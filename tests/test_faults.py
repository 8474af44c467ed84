"""A run that is broken at each boundary, and what the next one makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import pytest
import toy
from forked import Command
from toy import Project

from batchscore.faults import POINTS, VARIABLE

BEFORE, CHUNK_POINTS, DONE = POINTS[:4], POINTS[4:9], POINTS[-2:]
CHUNKS = {"first": 0, "middle": 2, "last": 3}
PLACES = [(point, where) for point in POINTS for where in (CHUNKS if point in CHUNK_POINTS else ["only"])]
HOWS = ("kill", "hang", "raise", "lose")
# What `make test` leaves out of the kills too.
MORE = [(point, where) for point in CHUNK_POINTS for where in ("first", "last")]
MORE += [(point, "only") for point in ("after_begun", "after_lease", "after_take_up", "after_clear_up")]
FIRST = date(2024, 2, 1)
DAYS = len(PLACES) * len(HOWS)
# Databases that every server has.
SERVERS = {"postgres": "postgres", "mariadb": "test"}
COLUMNS = "id, prediction, score, model_version"


def day_of(place: tuple[str, str], how: str) -> date:
    """Each case breaks a day of its own, so that they share a database."""
    return FIRST + timedelta(days=HOWS.index(how) * len(PLACES) + PLACES.index(place))


@dataclass
class Bench:
    """A project on a database."""

    project: Project

    def run(self, day: date, job: str = "toy") -> tuple[int, Command]:
        """Backfill a day in four chunks."""
        command = self.start(day, job=job)
        return command.process.wait(), command

    def start(self, day: date, fault: str | None = None, job: str = "toy") -> Command:
        """Start a backfill of a day."""
        window = ("--from", str(day), "--to", str(day + timedelta(days=1)))
        broken = {VARIABLE: fault} if fault else {}
        return Command.start(
            ("backfill", job, *window, "--chunk-rows", "25"), self.project.root, self.project.environment(**broken)
        )

    def chunks(self, day: date) -> int:
        """How many chunks of a day are committed."""
        runs = f"SELECT run_id FROM batchscore_runs WHERE job = 'toy' AND {_on(day)}"
        ((count,),) = toy.query(self.project.url, f"SELECT count(*) FROM batchscore_chunks WHERE run_id IN ({runs})")
        return int(count)

    def found(self, day: date, job: str = "toy", table: str = "toy_predictions") -> dict[str, Any]:
        """Everything that a day has left behind, but for ids and times."""
        first = (day - date(2024, 1, 1)).days * 100 + 1
        runs = f"SELECT run_id FROM batchscore_runs WHERE job = '{job}' AND {_on(day)} AND status = 'published'"
        counts = "status, rows_read, predictions, rejects, chunks, input_hash, error"
        queries = {
            "rows": f"SELECT {COLUMNS} FROM {table} WHERE id BETWEEN {first} AND {first + 99} ORDER BY id, score",
            "runs": f"SELECT {counts} FROM batchscore_runs WHERE job = '{job}' AND {_on(day)}",
            "chunks": "SELECT chunk, key_low, key_high, rows_read, predictions, rejects, input_hash "
            f"FROM batchscore_chunks WHERE run_id IN ({runs}) ORDER BY chunk",
            "rejects": "SELECT chunk, row_key, stage, reason, detail, row_values FROM batchscore_rejects "
            f"WHERE run_id IN ({runs}) ORDER BY row_key",
            "profiles": "SELECT role, column_name, kind, row_count, null_count, mean, std, profile "
            f"FROM batchscore_profiles WHERE run_id IN ({runs}) ORDER BY role, column_name",
            "drift": "SELECT reference, role, column_name, metric, value, verdict FROM batchscore_drift "
            f"WHERE run_id IN ({runs}) ORDER BY reference, role, column_name, metric",
        }
        return {name: toy.query(self.project.url, sql) for name, sql in queries.items()}


def _on(day: date) -> str:
    return f"interval_start >= '{day}' AND interval_start < '{day + timedelta(days=1)}'"


@pytest.fixture(scope="module", params=toy.RUNS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Each database with a job, the same job under another name for calm runs, and a bad row in each chunk."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param in SERVERS:
        server = request.getfixturevalue(f"{request.param}_server")
        url = server.set(database=SERVERS[request.param]).render_as_string(hide_password=False)
    else:
        url = f"{request.param}:///{root}/warehouse.{request.param}"
    project = Project.at(root, url)
    project.edit("jobs/toy.toml", ("rejects = 0.05", "rejects = 0.05\nchunk_rows = 25"))
    toy.load(url, toy.rows(days=32 + DAYS))
    assert project.call("train", "toy").code == 0
    toy.execute(url, "UPDATE toy SET a = NULL WHERE id > 3100 AND id % 25 = 7")
    for file in ("toml", "py"):
        text = (root / f"jobs/toy.{file}").read_text()
        calm = text.replace('[job]\nname = "toy"', '[job]\nname = "calm"').replace(
            "toy_predictions", "calm_predictions"
        )
        (root / f"jobs/calm.{file}").write_text(calm)
    assert all(project.call("migrate", job).code == 0 for job in ("toy", "calm"))
    yield Bench(project)
    if request.param in SERVERS:
        tables = ("toy", *(name for name in toy.tables(url) if name.startswith(("toy_", "calm_", "batchscore_"))))
        toy.execute(url, *(f"DROP TABLE {name}" for name in tables))


def _cases() -> list[Any]:
    """Every place and way; all but kills are left to `make proof`."""
    return [
        pytest.param(
            place,
            how,
            id=f"{place[0]}-{place[1]}-{how}",
            marks=[] if how == "kill" and place not in MORE else [pytest.mark.long],
        )
        for place in PLACES
        for how in HOWS
    ]


@pytest.mark.parametrize(("place", "how"), _cases())
def test_nothing_is_lost_or_doubled(bench: Bench, place: tuple[str, str], how: str) -> None:
    """Broken anywhere and run again, a day's rows, rejects, profiles, drift and counts are those of a calm run.

    What was committed before is not scored again.
    """
    day = day_of(place, how)
    point, where = place
    chunk = CHUNKS.get(where, 0)

    command = bench.start(day, f"{point}:{chunk}:{how}")
    if how == "hang":
        command.wait_until_it_hangs()
        code = command.kill()
    else:
        code = command.process.wait()
    done = bench.chunks(day)

    if point == "after_read":
        # The reader is ahead of the commits.
        assert done <= chunk or how == "lose"
    elif point in CHUNK_POINTS and how != "lose":
        assert done == chunk + (point == "after_commit")
    elif how != "lose":
        assert done == (0 if point in BEFORE else 4)
    assert code == {"kill": -9, "hang": -9, "raise": 70, "lose": 0}[how], command.out.read_text()
    assert len(command.named("attempt.failed")) == (how == "lose")
    if how != "lose":
        code, again = bench.run(day)
        assert code == 0, again.out.read_text()
        assert len(again.named("chunk.committed")) == 4 - done
        assert bool(again.named("run.nothing_due")) is (point in DONE)
    assert bench.run(day, "calm")[0] == 0
    assert bench.found(day) == bench.found(day, "calm", "calm_predictions")


def test_nothing_is_left_over(bench: Bench) -> None:
    """After all that, pruning leaves no stage behind, whatever died where."""
    assert bench.run(FIRST + timedelta(days=DAYS))[0] == 0
    assert bench.project.call("runs", "prune", "--older-than", "0h").code == 0

    assert not [name for name in toy.tables(bench.project.url) if "stage" in name]
    statuses = {status for (status,) in toy.query(bench.project.url, "SELECT status FROM batchscore_runs")}
    assert statuses == {"published"}
    assert json.loads(bench.project.call("plan", "toy", "--only", "failed", "--format", "json").out or "[]") == []
