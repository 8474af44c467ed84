"""One interval in several shards: in threads, in processes, on the workers of a cluster."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import toy
from toy import Project

DAY = ("--from", "2024-02-01", "--to", "2024-02-02")
SHARDED = ("--workers", "3", "--chunk-rows", "10")
KILLED = {"BATCHSCORE_FAULT": "after_commit:1:kill"}


@pytest.fixture
def project(request: pytest.FixtureRequest, trained: Project, tmp_path: Any) -> Project:
    """The toy job, trained, on the database that the test names; on Postgres where it names none."""
    url = toy.url_of(request, tmp_path) if hasattr(request, "param") else request.getfixturevalue("postgres_url")
    return toy.unscored(tmp_path, url, trained)


def facts(project: Project) -> tuple[Any, ...]:
    """What one day leaves behind that does not hang on how it was cut."""
    ((run_id, *run),) = toy.query(
        project.url, "SELECT run_id, status, rows_read, predictions, rejects, input_hash FROM batchscore_runs"
    )
    profiles = toy.query(
        project.url,
        "SELECT role, column_name, row_count, null_count, minimum, maximum FROM batchscore_profiles "
        f"WHERE run_id = '{run_id}' ORDER BY role, column_name",
    )
    rejects = toy.query(project.url, "SELECT row_key, stage, reason FROM batchscore_rejects ORDER BY row_key")
    return run, project.table(), profiles, rejects


def forget(project: Project) -> None:
    """Take away all that was scored."""
    made = [name for name in toy.tables(project.url) if name.startswith(("toy_", "batchscore_"))]
    toy.execute(project.url, *(f"DROP TABLE {name}" for name in made))


def alone(project: Project) -> tuple[Any, ...]:
    """What one worker makes of the day, taken away again."""
    done = project.call("backfill", "toy", *DAY)
    assert done.code == 0, done.out
    found = facts(project)
    forget(project)
    return found


def shards(project: Project) -> list[tuple[Any, ...]]:
    """Shard, number of chunks, rows, and the first and last key, by shard."""
    sql = "SELECT shard, chunk, rows_read, key_low, key_high FROM batchscore_chunks ORDER BY shard, chunk"
    chunks = pl.DataFrame(toy.query(project.url, sql), orient="row", schema=["shard", "chunk", "rows", "low", "high"])
    found = chunks.group_by("shard", maintain_order=True).agg(
        pl.len(), pl.col("rows").sum(), pl.col("low").first(), pl.col("high").last()
    )
    return [
        (shard, count, rows, json.loads(low)[0], json.loads(high)[0]) for shard, count, rows, low, high in found.rows()
    ]


def spoil(project: Project) -> None:
    """Rows of the day that cannot be scored: one by its schema, one by its features."""
    toy.execute(
        project.url,
        "UPDATE toy SET a = NULL WHERE id = 3110",
        "UPDATE toy SET a = -1 WHERE id = 3190",
    )


class TestThreads:
    @pytest.mark.parametrize("project", toy.RUNS, indirect=True)
    def test_shards_make_what_one_worker_makes(self, project: Project) -> None:
        """A day cut in three has the very same predictions, counts, rejects and hash of its rows."""
        spoil(project)
        whole = alone(project)

        done = project.call("backfill", "toy", *DAY, *SHARDED)

        assert done.code == 0, done.out
        assert facts(project) == whole
        assert [event["shards"] for event in done.named("run.cut")] == [3]
        assert shards(project) == [(0, 4, 34, 3101, 3134), (1, 4, 33, 3135, 3167), (2, 4, 33, 3168, 3200)]

    def test_workers_are_shared_out_over_intervals(self, project: Project) -> None:
        """Of four workers two days get two shards each; four days are not cut."""
        two = project.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-03", "--workers", "4")
        forget(project)
        four = project.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-05", "--workers", "4")

        assert two.code == 0
        assert [event["shards"] for event in two.named("run.cut")] == [2, 2]
        assert (four.code, four.named("run.cut")) == (0, [])
        assert toy.query(project.url, "SELECT DISTINCT cuts FROM batchscore_runs") == [(None,)]

    def test_text_keys(self, project: Project) -> None:
        """Text is cut by its bytes, as rows are ordered, whatever the database's own order is."""
        project.edit(
            "sql/toy/rows.sql", ("SELECT id,", "SELECT CASE WHEN id % 2 = 0 THEN 'a' ELSE 'B' END || id AS id,")
        )
        project.edit(
            "sql/toy/labels.sql", ("SELECT id,", "SELECT CASE WHEN id % 2 = 0 THEN 'a' ELSE 'B' END || id AS id,")
        )
        (project.root / "var/registry").unlink()
        assert project.call("train", "toy").code == 0
        whole = alone(project)

        done = project.call("backfill", "toy", *DAY, *SHARDED)

        assert done.code == 0, done.out
        assert facts(project) == whole
        found = shards(project)
        assert [(shard, rows) for shard, _, rows, _, _ in found] == [(0, 34), (1, 33), (2, 33)]
        assert all(high < low for (*_, high), (*_, low, _) in pairwise(found))

    def test_a_null_in_the_key_is_met(self, project: Project) -> None:
        """The last shard has the rows whose key is NULL, which stop the run as ever."""
        toy.execute(project.url, "UPDATE toy SET id = NULL WHERE id = 3150")

        done = project.call("backfill", "toy", *DAY, *SHARDED)

        assert (done.code, "id is NULL" in done.error) == (11, True)

    def test_one_key_is_one_shard(self, project: Project) -> None:
        """Where there are fewer keys than workers there are fewer shards, and none is empty."""
        toy.execute(project.url, "DELETE FROM toy WHERE id > 3102 AND ts >= '2024-02-01 00:00:00+00'")

        done = project.call("backfill", "toy", *DAY, *SHARDED)

        assert done.code == 0, done.out
        assert [(shard, rows) for shard, _, rows, _, _ in shards(project)] == [(0, 1), (1, 1)]

    def test_no_row_at_all(self, project: Project) -> None:
        """A day without rows is published with none, by however many workers."""
        toy.execute(project.url, "DELETE FROM toy WHERE id BETWEEN 3101 AND 3200")

        done = project.call("backfill", "toy", *DAY, *SHARDED)

        assert (done.code, done.named("run.empty") != []) == (0, True)

    def test_parquet(self, trained: Project, tmp_path: Any) -> None:
        """Files are cut by the key too."""
        toy.rows().drop("y").write_parquet(tmp_path / "rows.parquet", row_group_size=500)
        project = Project.at(tmp_path, f"duckdb:///{tmp_path}/warehouse.duckdb", f'parquet = "{tmp_path}/rows.parquet"')
        toy.load(project.url, toy.rows())
        assert project.call("train", "toy").code == 0
        whole = alone(project)

        done = project.call("backfill", "toy", *DAY, *SHARDED)

        assert done.code == 0, done.out
        assert facts(project) == whole
        assert [rows for _, _, rows, _, _ in shards(project)] == [33, 33, 34]

    @pytest.mark.parametrize("workers", ["1", "3"])
    def test_a_run_that_was_killed_goes_on_in_its_shards(self, project: Project, workers: str) -> None:
        """Behind the last chunk of each, by as many workers or fewer, and with nothing twice."""
        whole = alone(project)
        killed = project.run("backfill", "toy", *DAY, *SHARDED, **KILLED)
        before = toy.query(project.url, "SELECT shard, chunk, committed_at FROM batchscore_chunks ORDER BY 1, 2")

        done = project.call("backfill", "toy", *DAY, "--chunk-rows", "10", "--workers", workers)

        assert killed.code == -signal.SIGKILL
        assert done.code == 0, done.out
        assert len(before) >= 2
        assert not done.named("run.cut")
        assert sum(event["chunks"] for event in done.named("run.resumed")) == len(before)
        after = toy.query(project.url, "SELECT shard, chunk, committed_at FROM batchscore_chunks ORDER BY 1, 2")
        assert set(before) <= set(after)
        assert facts(project) == whole

    def test_rows_that_changed_meanwhile_begin_all_shards_anew(self, project: Project) -> None:
        """A shard whose committed rows are no longer those takes the others along."""
        killed = project.run("backfill", "toy", *DAY, *SHARDED, **KILLED)
        toy.execute(project.url, "UPDATE toy SET a = a + 1 WHERE id BETWEEN 3101 AND 3200")

        done = project.call("backfill", "toy", *DAY, *SHARDED)

        assert killed.code == -signal.SIGKILL
        assert done.code == 0, done.out
        assert done.named("run.restarted")
        found = facts(project)
        forget(project)
        assert found == alone(project)

    def test_failures_are_counted_over_all_shards(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """However a run is cut, on more rows than a run may fail on nothing is published."""
        monkeypatch.setattr("batchscore.run.publish.MOST_FAILURES", 5)
        project.edit("jobs/toy.toml", ("rejects = 0.05", "rejects = 1.0"))
        toy.execute(project.url, "UPDATE toy SET a = -1 WHERE id IN (3101, 3102, 3140, 3150, 3190, 3191)")

        done = project.call("backfill", "toy", *DAY, *SHARDED)

        assert (done.code, "fail on 6 rows of the run" in done.error) == (11, True)
        assert project.table() == []


CLUSTERS = ("dask", "ray")
LATER = pytest.mark.parametrize("backend", ["loky", *(pytest.param(name, marks=pytest.mark.long) for name in CLUSTERS)])


class TestElsewhere:
    """Shards in other processes: of this machine, or on a local cluster of three workers."""

    @pytest.mark.parametrize("backend", ["loky", *CLUSTERS])
    def test_they_make_what_one_worker_makes(self, project: Project, backend: str) -> None:
        """Each shard in a process of its own: the same table, counts, rejects and profiles."""
        spoil(project)
        whole = alone(project)

        done = project.run("backfill", "toy", *DAY, *SHARDED, "--backend", backend)

        assert done.code == 0, done.out + done.err
        assert facts(project) == whole
        assert [rows for _, _, rows, _, _ in shards(project)] == [34, 33, 33]

    @LATER
    def test_workers_that_are_killed(self, project: Project, backend: str) -> None:
        """Each is killed behind the second chunk of its shard; others go on there, and nothing is lost or twice."""
        whole = alone(project)

        done = project.run("backfill", "toy", *DAY, *SHARDED, "--backend", backend, **KILLED)

        assert done.code == 0, done.out + done.err
        assert facts(project) == whole
        # Dask replaces them by itself.
        assert done.named("run.resumed" if backend == "dask" else "attempt.failed")

    @LATER
    def test_what_they_commit_is_progress(self, project: Project, backend: str) -> None:
        """One that is killed after longer than a command tries again is no reason to give up."""
        slow = "after_commit:20:kill"

        done = project.run(
            *("backfill", "toy", *DAY, "--workers", "2", "--chunk-rows", "2", "--backend", backend),
            BATCHSCORE_FAULT=slow, BATCHSCORE_RETRY_SECONDS="1",
        )  # fmt: skip

        assert done.code == 0, done.out + done.err
        assert [chunks for _, chunks, *_ in shards(project)] == [25, 25]

    @LATER
    def test_one_bad_interval_does_not_hold_up_the_others(self, project: Project, backend: str) -> None:
        """Its error is the command's, and the other days are published."""
        toy.execute(project.url, "UPDATE toy SET id = NULL WHERE id = 3250")
        window = ("--from", "2024-02-01", "--to", "2024-02-04")

        done = project.run("backfill", "toy", *window, *SHARDED, "--backend", backend)

        assert (done.code, "id is NULL" in done.error) == (11, True)
        runs = toy.query(project.url, "SELECT status FROM batchscore_runs ORDER BY interval_start")
        assert runs == [("published",), ("failed",), ("published",)]

    @LATER
    def test_an_error_of_a_worker_is_the_command_s(self, project: Project, backend: str) -> None:
        """What a worker cannot score ends the command with that error's code and words."""
        toy.execute(project.url, "UPDATE toy SET id = NULL WHERE id = 3150")

        done = project.run("backfill", "toy", *DAY, *SHARDED, "--backend", backend)

        assert (done.code, "id is NULL" in done.error) == (11, True)


CLUSTER = """
if __name__ == "__main__":
    import sys
    from distributed import LocalCluster

    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, scheduler_port=0)
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
"""


@contextmanager
def cluster(project: Project) -> Iterator[str]:
    """The address of a Dask cluster whose workers are at work in the project's folder."""
    (project.root / "cluster.py").write_text(CLUSTER)
    process = subprocess.Popen(
        [sys.executable, "cluster.py"], cwd=project.root, env=project.environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with process:
        assert process.stdout
        yield process.stdout.readline().strip()
        process.communicate("")


def night(day: int) -> tuple[str, ...]:
    """A backfill of a day of February on two workers of a cluster."""
    window = ("--from", f"2024-02-{day:02}", "--to", f"2024-02-{day + 1:02}")
    return ("backfill", "toy", *window, "--workers", "2", "--backend", "dask")


@pytest.mark.long
class TestWorkersThatStay:
    """Workers of a cluster, which outlive a command and have folders of their own."""

    def test_they_score_as_the_command_says(self, project: Project) -> None:
        """What the job's file, the query and an alias say by now counts, and not what they said a night before."""
        project.edit("jobs/toy.toml", ("[model]", '[model]\nshadow = "challenger"'))
        for _ in range(2):
            assert project.call("train", "toy").code == 0
        with cluster(project) as address:
            given = {"BATCHSCORE_DASK_SCHEDULER": address}
            assert project.call("models", "promote", "toy", "2", "--alias", "challenger").code == 0
            assert project.run(*night(1), **given).code == 0
            project.edit("jobs/toy.toml", ('carry = ["day"]', 'carry = ["day", "a"]'), ("toy_predictions", "other"))
            project.edit("sql/toy/rows.sql", ("FROM toy", "FROM toy /* the same */"))
            assert project.call("models", "promote", "toy", "3", "--alias", "challenger").code == 0

            done = project.run(*night(2), "--accept-sql", "a comment", **given)

        assert done.code == 0, done.out + done.err
        assert toy.query(project.url, "SELECT count(*), count(a) FROM other") == [(100, 100)]
        assert toy.query(project.url, "SELECT DISTINCT model_version FROM other_shadow") == [(3,)]
        shadowed = sorted(run for (run,) in toy.query(project.url, "SELECT shadow_version FROM batchscore_runs"))
        assert shadowed == [2, 3]

    def test_another_bundle_is_not_even_loaded(self, project: Project, tmp_path: Path) -> None:
        """A worker whose registry has another one under the version ends the command, and runs none of its code."""
        theirs = Project.at(tmp_path / "theirs", project.url)
        mark = tmp_path / "mark"
        with (theirs.root / "jobs/toy.py").open("a") as file:
            file.write(f"\n__import__('pathlib').Path({str(mark)!r}).touch()\n")
        assert theirs.call("train", "toy").code == 0
        mark.unlink()

        with cluster(theirs) as address:
            done = project.run(*night(1), BATCHSCORE_DASK_SCHEDULER=address)

        assert (done.code, "a worker has another toy version 1" in done.error) == (10, True)
        assert not mark.exists()


class TestAddresses:
    @pytest.mark.parametrize(
        ("variable", "address", "code", "words"),
        [
            ("DASK_SCHEDULER", "localhost", 2, "BATCHSCORE_DASK_SCHEDULER: missing port number"),
            ("DASK_SCHEDULER", "tcp://127.0.0.1:9", 20, "BATCHSCORE_DASK_SCHEDULER: no scheduler answers at tcp"),
            pytest.param("RAY_ADDRESS", "ray://127.0.0.1:9", 20, "BATCHSCORE_RAY_ADDRESS: no scheduler answers at ray",
                marks=pytest.mark.long),
        ],
    )  # fmt: skip
    def test_nobody_is_there(self, project: Project, variable: str, address: str, code: int, words: str) -> None:
        """An address that is none is a mistake of the settings, and one where nobody answers may work later."""
        backend = variable.partition("_")[0].lower()

        done = project.run(
            *("backfill", "toy", *DAY, "--workers", "2", "--backend", backend),
            **{f"BATCHSCORE_{variable}": address, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1s"},
        )

        assert (done.code, words in done.error) == (code, True), done.error
        assert "Traceback" not in done.err


class TestProcesses:
    def test_they_end_with_a_command_that_is_killed(self, project: Project) -> None:
        """Workers of this machine are gone seconds after the process that began them was killed."""
        with project.start(*("backfill", "toy", *DAY, *SHARDED, "--chunk-rows", "1", "--backend", "loky")) as process:
            toy.wait_for_chunks(process, 6)
            workers = psutil.Process(process.pid).children(recursive=True)
            process.kill()

        assert len(workers) >= 3
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive

    def test_a_file_admits_one_process(self, trained: Project, tmp_path: Any) -> None:
        """With a warehouse in a file the command says what to do instead, and writes nothing."""
        project = toy.unscored(tmp_path, f"duckdb:///{tmp_path}/warehouse.duckdb", trained)

        done = project.call("backfill", "toy", *DAY, "--workers", "2", "--backend", "loky")

        assert (done.code, "the workers are threads" in done.error) == (2, True)
