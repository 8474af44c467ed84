"""A container's limits are kept: threads follow its cores, and its memory is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from toy import Project

from batchscore import cgroup

V1 = Path("/sys/fs/cgroup")
POOLS = """
import json
from batchscore.cli import _limit_threads
_limit_threads()
import duckdb, joblib, polars, pyarrow, sklearn.ensemble, threadpoolctl
from batchscore import cgroup
print(json.dumps({
    "polars": polars.thread_pool_size(),
    "arrow": pyarrow.cpu_count(),
    "joblib": joblib.cpu_count(),
    "duckdb": duckdb.connect().execute("SELECT current_setting('threads')").fetchall()[0][0],
    **{pool["prefix"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()},
}))
"""


def tree(root: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A mount of control groups, and what a process is told of its own."""
    for name, text in files.items():
        (root / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "mount" / name).write_text(text)
    (root / "own").write_text(own)
    return root / "mount", root / "own"


CORES = len(os.sched_getaffinity(0))


class TestCores:
    @pytest.mark.parametrize(
        ("own", "files", "cores"),
        [
            ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
            ("0::/\n", {"cpu.max": "150000 100000\n"}, min(2, CORES)),
            ("0::/\n", {"cpu.max": "max 100000\n"}, CORES),
            ("0::/a/b\n", {"cpu.max": "max 100000\n", "a/cpu.max": "1000 100000", "a/b/cpu.max": "max 100000"}, 1),
            ("0::/docker/gone\n", {"cpu.max": "100000 100000\n"}, 1),
            ("0::/\n", {"unified/cpu.max": "100000 100000\n"}, 1),
            ("3:cpu,cpuacct:/x\n0::/\n", {"cpu/x/cpu.cfs_quota_us": "100000", "cpu/x/cpu.cfs_period_us": "100000"}, 1),
            ("3:cpu,cpuacct:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": "-1"}, CORES),
            ("3:memory:/\n", {"cpu/cpu.cfs_quota_us": "100", "cpu/cpu.cfs_period_us": "100000"}, CORES),
            ("0::/\n", {"cpu.max": "nonsense\n"}, CORES),
            ("", {}, CORES),
        ],
    )
    def test_of_a_group(self, tmp_path: Path, own: str, files: dict[str, str], cores: int) -> None:
        """The smallest quota of the process's group and those above counts, rounded up, and never more than the cores."""
        assert cgroup.cores(*tree(tmp_path, own, files)) == cores

    def test_where_there_are_none(self, tmp_path: Path) -> None:
        """Without control groups it is the cores."""
        assert cgroup.cores(tmp_path / "no", tmp_path / "no") == CORES
        assert cgroup.memory(tmp_path / "no", tmp_path / "no") == psutil.virtual_memory().total


class TestMemory:
    @pytest.mark.parametrize(
        ("own", "files", "limit"),
        [
            ("0::/\n", {"memory.max": "536870912\n"}, 2**29),
            ("0::/\n", {"memory.max": "max\n"}, None),
            ("0::/a\n", {"memory.max": "1000\n", "a/memory.max": "max"}, 1000),
            ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "1000\n"}, 1000),
            ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ],
    )
    def test_of_a_group(self, tmp_path: Path, own: str, files: dict[str, str], limit: int | None) -> None:
        """The smallest limit counts; where there is none, what the machine has does."""
        assert cgroup.memory(*tree(tmp_path, own, files)) == (limit or psutil.virtual_memory().total)


@pytest.fixture
def quota() -> Iterator[Path]:
    """A real control group of this test's own, with the time of one core."""
    group = V1 / "cpu" / f"batchscore-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text("100000")
    except OSError as error:
        pytest.skip(f"may not make a control group of version 1: {error}")
    yield group
    group.rmdir()


def pools(group: Path | None = None, **environment: str) -> dict[str, int]:
    """How many threads each library would start."""

    def join() -> None:
        if group:
            (group / "tasks").write_text(str(os.getpid()))

    unset = {name: value for name, value in os.environ.items() if not name.endswith(("_THREADS", "_CPU_COUNT"))}
    done = subprocess.run(
        [sys.executable, "-c", POOLS],
        env=unset | environment,
        preexec_fn=join,
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(json.loads(done.stdout))


class TestThreads:
    @pytest.mark.skipif(CORES == 1, reason="on one core there is nothing to limit")
    def test_follow_the_quota(self, quota: Path) -> None:
        """In a group with the time of one core every library starts one thread; outside as many as there are cores."""
        assert set(pools(quota).values()) == {1}
        assert set(pools().values()) == {CORES}

    def test_that_are_asked_for(self) -> None:
        """A number that the user set stays."""
        assert pools(POLARS_MAX_THREADS="3")["polars"] == 3


class TestMemoryOfChunks:
    def test_bounds_them(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the memory has no room for the job's chunks they are smaller, and it is told; one asked for is not."""
        day = ("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-02", "--only", "all")
        whole = project.call(*day)
        rows = project.table()
        monkeypatch.setattr(cgroup, "memory", lambda: 64_000)
        bounded = project.call(*day)
        halved = project.call(*day, "--workers", "2")
        asked = project.call(*day, "--chunk-rows", "60")

        chunks = [len(result.named("chunk.committed")) for result in (whole, bounded, halved, asked)]
        assert chunks[0] == 1
        assert 1 < chunks[1] < chunks[2]
        assert chunks[3] == 2
        (event,) = bounded.named("chunk.bounded")
        assert event["chunk_rows"] == bounded.named("chunk.committed")[0]["rows"]
        assert not whole.named("chunk.bounded")
        assert not asked.named("chunk.bounded")
        assert [row[:3] for row in project.table()] == [row[:3] for row in rows]
