"""What happens to a warehouse at night, while a run is on."""

from __future__ import annotations

import os
import re
import signal
import time

import psutil
import pytest
import toy
from disk import Disk
from toy import Project

pytestmark = pytest.mark.long

DAYS = ("--from", "2024-02-01", "--to", "2024-02-06")
DAY = ("--from", "2024-02-01", "--to", "2024-02-02", "--chunk-rows", "10")
SLOW = {"SLOW": "1", "BATCHSCORE_REGISTRY_URL": "slow"}


def calm(project: Project, **environment: str) -> list[tuple[object, ...]]:
    """A day's predictions by a run that nothing disturbs, taken away again."""
    assert project.call("backfill", "toy", *DAY, **environment).code == 0
    rows = project.table()
    made = [name for name in toy.tables(project.url) if name.startswith(("toy_", "batchscore_"))]
    toy.execute(project.url, *(f"DROP TABLE {name}" for name in made))
    return rows


class TestCrash:
    @pytest.mark.parametrize("anywhere", ["postgres"], indirect=True)
    def test_a_server_that_crashes_and_comes_back(self, anywhere: Project) -> None:
        """Postgres loses every connection in mid-run and recovers: the same process goes on behind its last chunk."""
        toy.slow_down(anywhere)
        rows = calm(anywhere, BATCHSCORE_REGISTRY_URL="slow")

        process = anywhere.start("backfill", "toy", *DAY, **SLOW)
        toy.wait_for_chunks(process, 3)
        backends = "SELECT pid FROM pg_stat_activity WHERE application_name = 'batchscore' AND pid <> pg_backend_pid()"
        # One server process that is killed takes all others along, and the server starts anew from its log.
        os.kill(toy.query(anywhere.url, backends)[0][0], signal.SIGKILL)
        out, _ = process.communicate(timeout=90)

        result = toy.Result(process.returncode, out, "")
        assert result.code == 0, out
        assert result.named("attempt.failed")
        assert result.named("run.resumed")
        assert anywhere.table() == rows
        assert toy.query(anywhere.url, "SELECT status, rows_read FROM batchscore_runs") == [("published", 100)]


class TestStandstill:
    @pytest.mark.parametrize("anywhere", ["postgres"], indirect=True)
    def test_a_process_that_stands_still_inside_a_transaction(self, anywhere: Project) -> None:
        """Its session is ended by the server, the next process waits for that and publishes; what wakes finds it done."""
        rows = calm(anywhere)
        first = anywhere.start(
            "backfill", "toy", *DAY, BATCHSCORE_FAULT="before_commit:1:stop", BATCHSCORE_LEASE_SECONDS="2"
        )
        while psutil.Process(first.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.05)
        # Until its lease, which it cannot renew, is over.
        time.sleep(2)
        try:
            second = anywhere.run("backfill", "toy", *DAY, timeout=200)
            published = anywhere.table(("id", "run_id", "scored_at"))
            first.send_signal(signal.SIGCONT)
            out, _ = first.communicate(timeout=100)
        finally:
            first.kill()
            first.communicate()

        assert second.code == 0, second.out
        assert second.named("attempt.failed")
        assert anywhere.table() == rows
        woken = toy.Result(first.returncode, out, "")
        assert woken.code == 0, out
        assert woken.named("attempt.failed")
        assert woken.named("run.found")
        assert anywhere.table(("id", "run_id", "scored_at")) == published


class TestDisk:
    @pytest.mark.parametrize("name", ["duckdb", "sqlite"])
    def test_a_disk_that_fills_up(self, small_disk: Disk, trained: Project, name: str) -> None:
        """A full disk stops the run with 12 and says so; with room again the next one goes on, and nothing is lost."""
        project = toy.unscored(small_disk.folder, f"{name}:///{small_disk.folder}/warehouse.{name}", trained)
        toy.slow_down(project)
        rows = calm(project, BATCHSCORE_REGISTRY_URL="slow")

        process = project.start("backfill", "toy", *DAY, **SLOW)
        committed = toy.wait_for_chunks(process, 2)
        with small_disk.full(process=process.pid):
            out, _ = process.communicate(timeout=60)
            result = toy.Result(process.returncode, out, "")
            assert result.code == 12, out
            assert re.search("full|No space left|File too large|disk I/O error", result.error)
        again = project.call("backfill", "toy", *DAY, BATCHSCORE_REGISTRY_URL="slow")

        assert again.code == 0, again.out
        assert again.named("run.resumed")[0]["chunks"] >= committed
        assert project.table() == rows
        assert toy.query(project.url, "SELECT status, rows_read FROM batchscore_runs") == [("published", 100)]


class TestCrowd:
    # DuckDB admits one process to a file: the second cannot open it.
    @pytest.mark.parametrize("anywhere", ["sqlite", *toy.LONG], indirect=True)
    def test_two_backfills_and_a_nightly_run(self, anywhere: Project) -> None:
        """Commands that meet on the same days leave each day published once, by whichever of them."""
        anywhere.edit("jobs/toy.toml", ("start = 2024-02-01", "start = 2024-02-01\ncatch_up = 5"))
        commands = [("backfill", "toy", *DAYS), ("backfill", "toy", *DAYS, "--workers", "2"), ("score", "toy")]
        processes = [anywhere.start(*command, "--chunk-rows", "25") for command in commands]
        outs = [process.communicate(timeout=120)[0] for process in processes]

        results = [toy.Result(process.returncode, out, "") for process, out in zip(processes, outs, strict=True)]
        assert {result.code for result in results} <= {0, 21}, outs
        rest = anywhere.call("backfill", "toy", *DAYS)
        assert rest.code == 0, rest.out
        assert [row[0] for row in anywhere.table()] == list(range(3101, 3601))
        # The nightly run may have found the days done, and have gone on behind them.
        asked = "status = 'published' AND interval_start < '2024-02-06'"
        runs = f"SELECT interval_start, count(*) FROM batchscore_runs WHERE {asked} GROUP BY interval_start"
        assert sorted(count for _, count in toy.query(anywhere.url, runs)) == [1] * 5
        assert not [name for name in toy.tables(anywhere.url) if "stage" in name]
        published = [event["run_id"] for result in [*results, rest] for event in result.named("run.published")]
        assert sorted(published) == sorted(set(published))
