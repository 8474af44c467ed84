"""How a metric went over the last runs, drawn in a line of a terminal or of a file."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import toy
from toy import Project

from batchscore.cli.spark import spark
from tests.test_render import at_terminal

WINDOW = ("--from", "2024-02-01", "--to", "2024-02-06")
BLOCKS, PLAIN = "▁▂▃▄▅▆▇█", "_.:-=+*#"


class Terminal(io.TextIOWrapper):
    """A terminal of some encoding."""

    def isatty(self) -> bool:
        """It is one."""
        return True


@pytest.fixture(scope="module")
def drifting(trained: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Five scored days of 300 rows, of which `a` is larger from the third on; read, and not changed."""
    root = tmp_path_factory.mktemp("drifting") / "project"
    shutil.copytree(trained.root, root)
    project = Project(root, f"duckdb:///{root}/warehouse.duckdb")
    toy.load(project.url, toy.rows(a_day=300))
    toy.execute(project.url, "UPDATE toy SET a = a * 4 + 3 WHERE ts >= '2024-02-03'")
    assert project.call("backfill", "toy", *WINDOW).code == 0
    return project


def test_the_hint_of_a_backfill(drifting: Project, tmp_path: Path) -> None:
    """Of the intervals that saw something move, the command that is told shows the last."""
    shutil.copytree(drifting.root, tmp_path / "project")
    project = Project(tmp_path / "project", f"duckdb:///{tmp_path}/project/warehouse.duckdb")

    _, seen = at_terminal(project, "backfill", "toy", *WINDOW, "--only", "all", COLUMNS="200")

    assert re.search(r"3 interval\(s\) saw .*: batchscore drift toy --from 2024-02-05 --to 2024-02-06\n", seen)


class TestSpark:
    def test_heights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The largest value is the highest sign, whatever its side of 0; a run without a value is a gap."""
        monkeypatch.setattr(sys, "stdout", Terminal(io.BytesIO(), "utf-8"))

        assert spark([0.0, 0.5, None, -1.0, 0.99], 0.2) == "▁▅ ██"
        assert spark([0.0, 0.02, 0.04], 0.2) == "▁▁▂"
        assert spark([0.2, 0.1], 0.2) == "█▅"
        assert spark([None, 0.0], None) == " ▁"
        assert spark([], 0.2) == ""

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
    def test_a_terminal_without_blocks(self, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the encoding has no blocks the signs are ASCII, as many and in the same order."""
        values = [i / 7 for i in range(8)]
        monkeypatch.setattr(sys, "stdout", Terminal(io.BytesIO(), encoding))

        assert spark(values, None) == PLAIN
        assert not set(PLAIN) & set(BLOCKS)

    def test_no_terminal(self) -> None:
        """A pipe and a file get ASCII too."""
        assert spark([i / 7 for i in range(8)], None) == PLAIN


class TestCommands:
    def test_drift(self, drifting: Project) -> None:
        """`drift` shows beside what is merged each of the last runs by itself, with the values of the table as JSON."""
        sql = (
            "SELECT d.value FROM batchscore_drift d JOIN batchscore_runs r ON r.run_id = d.run_id "
            "WHERE d.reference = 'training' AND d.column_name = 'a' AND d.metric = 'psi' ORDER BY r.interval_start"
        )
        table = [value for (value,) in toy.query(drifting.url, sql)]

        (found,) = json.loads(drifting.call("drift", "toy", *WINDOW, "--format", "json").out)
        (row,) = [row for row in found["metrics"] if (row["column"], row["metric"]) == ("a", "psi")]
        printed = drifting.call("drift", "toy", *WINDOW).out

        assert row["history"] == table
        assert len(table) == 5
        line = next(line for line in printed.splitlines() if re.search(r"\ba +psi\b", line))
        assert re.fullmatch(r"__[*#=+]{3}", line.split()[-1])

    def test_show(self, drifting: Project) -> None:
        """`runs show` has the same for the run, up to it and no later."""
        runs = json.loads(drifting.call("runs", "list", "toy", "--format", "json").out)

        shown = json.loads(drifting.call("runs", "show", runs[2]["run_id"], "--format", "json").out)["moved"]
        (row,) = [
            each
            for each in shown
            if (each["reference"], each["column_name"], each["metric"]) == ("training", "a", "psi")
        ]

        assert len(row["history"]) == 3
        assert row["history"][-1] == row["value"] > 0.2 > row["history"][0]
        assert row["verdict"] == "moved"

    def test_at_a_terminal(self, drifting: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """A person sees blocks and coloured verdicts, a line for each metric in 100 columns; NO_COLOR takes colours away."""
        monkeypatch.setattr("tests.test_render._ANSI", re.compile(r"$^"))

        code, seen = at_terminal(drifting, "drift", "toy", *WINDOW, PYTHONIOENCODING="utf-8")
        plain = at_terminal(drifting, "drift", "toy", *WINDOW, PYTHONIOENCODING="ascii", NO_COLOR="1")[1]

        assert code == 0
        lines = [line for line in seen.splitlines() if re.search(r"\ba +psi\b", line)]
        assert len(lines) == 1
        assert re.search("\x1b\\[33mmoved\x1b\\[0m +\\S+ +▁▁[▄▅▆▇█]{3}", lines[0])
        assert "moved" in plain
        assert "\x1b[33m" not in plain
        assert not set(BLOCKS) & set(plain)

    def test_at_a_narrow_terminal(self, drifting: Project) -> None:
        """In 60 columns each metric still has one line, and what was left out for it is named, the columns told least by."""
        wide = at_terminal(drifting, "drift", "toy", *WINDOW, COLUMNS="200")[1]
        narrow = at_terminal(drifting, "drift", "toy", *WINDOW, COLUMNS="60")[1]
        everything = at_terminal(drifting, "drift", "toy", *WINDOW, "--all", COLUMNS="60")[1]

        lines = [re.split(" {2,}", line.strip()) for line in narrow.splitlines() if re.search(r"\ba +psi\b", line)]
        assert "Left out" not in wide
        assert "importance" in wide
        assert [line[:2] for line in lines] == [["a", "psi"]]
        assert narrow.splitlines()[-1] == "Left out for want of room: verdict, floor, importance, role."
        assert "verdict" not in everything.splitlines()[-1]
        assert "steady" in everything

    def test_both_shares(self, project: Project) -> None:
        """A difference of shares is shown as both, and kept as a difference beside them in JSON."""
        toy.load(project.url, toy.rows(a_day=300))
        toy.execute(project.url, "UPDATE toy SET b = NULL WHERE day = '2024-02-05' AND id % 2 = 0")
        day = ("--from", "2024-02-05", "--to", "2024-02-06")
        assert project.call("backfill", "toy", *day).code == 0

        (found,) = json.loads(project.call("drift", "toy", *day, "--format", "json").out)
        (row,) = [row for row in found["metrics"] if (row["column"], row["metric"]) == ("b", "null_share")]
        printed = project.call("drift", "toy", *day).out

        assert row["value"] == pytest.approx(row["share"] - row["reference_share"])
        assert f" {row['share']:.1%}, was {row['reference_share']:.1%} " in printed
