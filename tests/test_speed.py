"""The benchmark of `make bench`, at a size that says nothing of speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.speed.contenders import PEERS, Interpreters
from benchmarks.speed.measure import Failed, Measured, measure
from benchmarks.speed.report import Cell, Difference, Floor, Left, Report, Target

ROOT = Path(__file__).parent.parent
MACHINE = {"processor": "P", "cores": 2, "memory_gb": 1, "system": "S", "python": "3", "load_before": 0, "commit": "c"}
HOW = {"command": "make bench", "words": "Words.", "minutes": 1}
ROWS = 2_000

# It leaves a daemon behind that holds 64 MB, and that would wait for a minute.
LEAVES_A_DAEMON = """
import os, sys, time
if not os.fork():
    os.setsid()
    if os.fork():
        os._exit(0)
    open(sys.argv[1], "w").write(str(os.getpid()))
    held = bytearray(os.urandom(1) * 64 * 2**20)
    begun = time.process_time()
    while time.process_time() < begun + 0.2:
        pass
    time.sleep(60)
time.sleep(1.5)
print("said")
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What a run of the benchmark writes: the JSON, and the Markdown."""
    out = tmp_path_factory.mktemp("out")
    small = ["--rows", str(ROWS), "--rounds", "1", "--only", "logistic_parquet_postgres"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", *small, "--out", out, "--peers", out / "none"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return json.loads((out / "results.json").read_text()), (out / "RESULTS.md").read_text()


class TestRun:
    def test_everyone_scored_every_row_alike(self, told: tuple[dict[str, Any], str]) -> None:
        """A peer's predictions are ours, row by row, and the JSON says so."""
        ours, peer = told[0]["cells"]

        assert (ours["who"], ours["n"]) == ("batchscore", 1)
        assert (peer["who"], peer["n"]) == ("Polars by hand", 1)
        assert (peer["difference"]["rows"], peer["difference"]["labels"], peer["differs"]) == (ROWS, 0, False)
        assert ours["seconds"][0] > 0
        assert ours["peak_mb"] > 50
        assert ours["cpu_seconds"] > 0.5
        assert "| Polars by hand | 2,000 | 1 |" in told[1]

    def test_the_floor_comes_from_the_parts(self, told: tuple[dict[str, Any], str]) -> None:
        """A workload has its parts alone, and our time over their floor among the targets."""
        (floor,) = told[0]["floors"]
        (target,) = told[0]["targets"]

        assert set(floor["parts"]) == {"read", "score", "write"}
        assert floor["floor"] == max(floor["longest"], floor["work"]) > 0
        assert (target["id"], target["met"]) == ("logistic_parquet_postgres.floor", False)

    def test_it_tells_where_our_time_goes(self, told: tuple[dict[str, Any], str]) -> None:
        """Our phases make up our time, most of which is outside of so small a run; a peer has none."""
        ours, peer = told[0]["cells"]

        assert sum(ours["phases"].values()) == pytest.approx(ours["seconds"][0], abs=0.01)
        assert 0 < ours["phases"]["publishing"] < ours["phases"]["outside"] > ours["phases"]["chunks"] > 0
        assert peer["phases"] is None
        assert "## Where our time goes" in told[1]

    def test_it_tells_what_a_run_leaves(self, told: tuple[dict[str, Any], str]) -> None:
        """A row of the output takes some hundred bytes there, and more in the log, which has its stage too."""
        (left,) = told[0]["left"]

        assert (left["rows"], left["chunks"]) == (ROWS, 1)
        assert 80 * ROWS < left["output"] < left["log"]
        assert 8_192 < left["ledger"] < 2_000_000
        assert "## What a run leaves in Postgres" in told[1]

    def test_it_says_what_it_ran_on(self, told: tuple[dict[str, Any], str]) -> None:
        """Machine, versions and commit are there for whoever compares figures."""
        assert told[0]["machine"]["cores"] == os.cpu_count()
        assert {"batchscore", "scikit-learn", "polars"} <= set(told[0]["versions"])
        assert told[0]["machine"]["postgres"]["server_version"] in told[1]


class TestMeasure:
    def test_takes_in_what_is_left_behind_and_ends_it(self, tmp_path: Path) -> None:
        """Memory and processor time of a daemon that nobody waits for are counted, and it is gone."""
        script = [sys.executable, "-c", LEAVES_A_DAEMON, str(tmp_path / "pid")]

        measured = measure(script, tmp_path, os.environ)

        assert measured.peak_mb > 64
        assert measured.cpu_seconds > 0.2
        assert measured.processes >= 2
        assert 1.5 < measured.seconds < 30
        assert measured.output == "said\n"
        assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))

    def test_a_command_that_fails_is_no_measurement(self, tmp_path: Path) -> None:
        """Its last words are the error; one that does not end in time is ended."""
        with pytest.raises(Failed, match=r"^ValueError: no$"):
            measure([sys.executable, "-c", "raise ValueError('no')"], tmp_path, os.environ)
        with pytest.raises(Failed, match="more than"):
            measure(["sleep", "60"], tmp_path, os.environ, most=1.5)


def _report(cell: Cell, target: Target, folder: Path) -> tuple[dict[str, Any], str]:
    left = Left("W", 10, 100, 800, 2, 1_000)
    floor = Floor("W", "w", 10, {"read": (1.0, 1.0), "score": (2.0, 4.0), "write": (1.0, 3.0)}, 2)
    Report({**MACHINE, "postgres": {}}, {}, HOW, [cell], [floor], None, [left], [target]).write(folder)
    return json.loads((folder / "results.json").read_text()), (folder / "RESULTS.md").read_text()


class TestContenders:
    def test_one_that_lacks_a_package_or_a_program_is_not_at_hand(self) -> None:
        """It is run by the first interpreter that has all, and by none where none has."""
        here = Interpreters((sys.executable,))

        assert here.having(PEERS["polars"]) == sys.executable
        assert here.having(replace(PEERS["polars"], packages=("polars", "no-such-package"))) is None
        assert here.having(replace(PEERS["polars"], programs=("no-such-program",))) is None


class TestReport:
    def test_a_peer_that_is_not_at_hand_stays_in_the_table(self, tmp_path: Path) -> None:
        """With what it needs, and without figures."""
        cell = Cell("W", "w", "a peer", 10, note="not at hand: needs much")

        told, page = _report(cell, Target("t", "T", 1.0, 2.0), tmp_path)

        assert (told["cells"][0]["n"], told["cells"][0]["note"]) == (0, "not at hand: needs much")
        assert "| a peer | 10 | 0 | not at hand: needs much |" in page

    @pytest.mark.parametrize("found", [Difference(9, 0, 0.0), Difference(10, 1, 0.0), Difference(10, 0, 1e-6)])
    def test_other_predictions_are_told_of(self, found: Difference, tmp_path: Path) -> None:
        """A missing row, another label or another score is in the table, in bold."""
        cell = Cell("W", "w", "a peer", 10, [Measured(1.0, 1.0, 1.0, 1)], [0.0], difference=found)

        told, page = _report(cell, Target("t", "T", 1.0, 2.0), tmp_path)

        assert told["cells"][0]["differs"]
        assert "**differs**" in page

    def test_a_missed_target_stays_and_has_no_reason_of_its_own(self, tmp_path: Path) -> None:
        """It says missed, and nothing else where nobody has said why."""
        cell = Cell("W", "w", "batchscore", 10, [Measured(1.0, 1.0, 1.0, 1)], [0.0])

        told, page = _report(cell, Target("t", "T", 3.0, 15.0, least=True, unit=" x"), tmp_path)

        assert (told["targets"][0]["met"], told["targets"][0]["reason"]) == (False, None)
        assert "| T | 3.00 x | ≥ 15 x | missed |" in page

    def test_the_floor_is_the_longest_part_or_the_work_of_all_cores(self, tmp_path: Path) -> None:
        """Eight seconds of work on two cores take four, whatever the longest part takes."""
        told, _ = _report(Cell("W", "w", "batchscore", 10), Target("t", "T", 1.0, 2.0), tmp_path)

        assert (told["floors"][0]["longest"], told["floors"][0]["work"], told["floors"][0]["floor"]) == (2.0, 4.0, 4.0)


def test_larger_nights_are_as_they_are_printed() -> None:
    """The figures of docs/scale.md are those that its command makes of the committed results."""
    told = subprocess.run([sys.executable, "benchmarks/scale.py"], cwd=ROOT, check=True, capture_output=True, text=True)

    page = (ROOT / "docs/scale.md").read_text()

    assert page.partition("<!-- scale -->\n")[2].partition("<!-- end -->")[0] == told.stdout
