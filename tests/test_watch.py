"""What `drift` says of runs: by whom each was scored, what it was compared with, and what came of it."""

from __future__ import annotations

import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import toy
from toy import Project

from batchscore import ledger
from batchscore.cli.drift import watch
from batchscore.database import Database
from batchscore.job import read_job
from batchscore.model.registry import Registry
from batchscore.monitor.watch import Watcher
from batchscore.warehouse import open_warehouse

THREE_DAYS = ("--from", "2024-02-01", "--to", "2024-02-04")
ONE_DAY = ("--from", "2024-02-01", "--to", "2024-02-02")


def compared(project: Project, *options: str) -> list[dict[str, Any]]:
    """The comparisons that `drift` gives as JSON."""
    result = project.call("drift", "toy", *options, "--format", "json")
    assert result.code == 0, result.out
    found: list[dict[str, Any]] = json.loads(result.out)
    return found


def told(project: Project, *options: str) -> str:
    """What `drift` prints."""
    result = project.call("drift", "toy", *options)
    assert result.code == 0, result.out
    return result.out


class TestDrift:
    def test_nothing_published(self, project: Project) -> None:
        """Without a published run it says so, with and without dates, and never that nothing moved."""
        assert told(project) == "nothing published, so there is nothing to compare\n"
        assert told(project, *ONE_DAY) == "nothing published in this window, so there is nothing to compare\n"
        assert compared(project) == []

    def test_a_window_beside_what_is_published(self, project: Project) -> None:
        """Only the window's runs count: its end is left out."""
        project.call("backfill", "toy", *ONE_DAY)

        assert compared(project, "--to", "2024-02-01") == compared(project, "--from", "2024-02-02") == []
        assert len(compared(project, "--from", "2024-02-01")) == len(compared(project, "--to", "2024-02-02")) == 1

    def test_not_enough_data(self, project: Project) -> None:
        """A day of 100 rows is too few for any metric, and that is what is said."""
        project.call("backfill", "toy", *ONE_DAY)

        (only,) = compared(project)

        assert only["outcome"] == "not enough data"
        assert only["metrics"] == []
        assert re.fullmatch(
            r"2024-02-01: 1 run\(s\) by toy version 1, against its training rows: not enough data: "
            r"(\d+) of \1 metrics are over fewer than 200 rows on one side\n",
            told(project),
        )

    def test_nothing_moved(self, project: Project) -> None:
        """Three days of the same kind of rows are enough to say that nothing moved, and --all lists what stayed."""
        project.call("backfill", "toy", *THREE_DAYS)

        (only,) = compared(project, *THREE_DAYS, "--all")

        assert only["outcome"] == "nothing moved"
        assert (only["first"], only["last"], only["runs"], only["compared"]) == ("2024-02-01", "2024-02-03", 3, 3)
        assert {row["n"] for row in only["metrics"] if row["metric"] == "null_share"} == {300}
        assert told(project, *THREE_DAYS) == (
            "2024-02-01 to 2024-02-03: 3 run(s) by toy version 1, against its training rows: nothing moved\n"
        )

    def test_moved(self, project: Project) -> None:
        """What moved stands in a table below the line that counts it, under the names of the JSON but for the shares."""
        toy.execute(project.url, "UPDATE toy SET a = a + 10 WHERE ts >= '2024-02-01'")
        project.call("backfill", "toy", *THREE_DAYS)

        (only,) = compared(project, *THREE_DAYS)
        head, names, *rows = told(project, *THREE_DAYS).splitlines()

        assert only["outcome"] == "moved"
        assert {"a"} <= {row["column"] for row in only["metrics"]}
        assert re.search(rf"against its training rows: moved: {len(rows)} of \d+ metrics$", head)
        shown = [name for name in only["metrics"][0] if name not in ("share", "reference_share")]
        assert names.split() == " ".join(shown).replace("_", " ").split()
        assert len(rows) == len(only["metrics"])

    def test_each_run_is_compared_with_the_bundle_that_scored_it(self, project: Project) -> None:
        """Runs of two versions are two comparisons, each with its own training; the version in use does not matter."""
        project.call("backfill", "toy", *THREE_DAYS)
        project.edit("jobs/toy.toml", ("to = 2024-02-01", "to = 2024-01-25"))
        assert project.call("train", "toy", "--promote").code == 0
        project.call("backfill", "toy", "--from", "2024-02-02", "--to", "2024-02-05", "--only", "all")

        found = compared(project, "--from", "2024-02-01", "--all")

        assert [(each["model_version"], each["first"], each["last"], each["runs"]) for each in found] == [
            (1, "2024-02-01", "2024-02-01", 1),
            (2, "2024-02-02", "2024-02-04", 3),
        ]
        references = [{row["reference_n"] for row in each["metrics"] if row["role"] == "input"} for each in found]
        assert max(references[0]) == 3100
        assert max(references[1]) == 2400
        assert re.findall(r"by toy version (\d)", told(project, "--from", "2024-02-01")) == ["1", "2"]

    def test_a_version_that_is_gone(self, project: Project) -> None:
        """A run whose bundle the registry no longer holds is not compared, and nothing is claimed of it."""
        project.call("backfill", "toy", *THREE_DAYS)
        assert project.call("train", "toy", "--promote").code == 0
        shutil.rmtree(project.root / "var/registry/toy/1")

        (only,) = compared(project, *THREE_DAYS, "--all")

        assert (only["outcome"], only["metrics"], only["compared"]) == ("not compared", [], 0)
        assert "not compared: var/registry no longer holds that version" in told(project, *THREE_DAYS)

    def test_another_bundle_under_the_same_version(self, project: Project) -> None:
        """A registry that began again has a version 1 too, which is not what scored the run."""
        project.call("backfill", "toy", *THREE_DAYS)
        shutil.rmtree(project.root / "var/registry")
        project.edit("jobs/toy.toml", ("to = 2024-02-01", "to = 2024-01-25"))
        assert project.call("train", "toy").code == 0

        (only,) = compared(project, *THREE_DAYS)

        assert only["outcome"] == "not compared"
        assert "toy version 1 in var/registry is another one" in only["detail"]

    def test_a_profile_that_is_gone(self, project: Project) -> None:
        """A run whose profile was deleted counts as not compared; the others are compared without it."""
        project.call("backfill", "toy", *THREE_DAYS)
        ids = [run["run_id"] for run in json.loads(project.call("runs", "list", "--format", "json").out)]
        toy.execute(project.url, f"DELETE FROM batchscore_profiles WHERE run_id = '{ids[0]}' AND column_name = 'score'")

        (some,) = compared(project, *THREE_DAYS, "--all")
        assert (some["runs"], some["compared"], some["outcome"]) == (3, 2, "nothing moved")
        assert some["detail"].startswith("1 run(s) have no profile in the ledger; ")
        assert {row["n"] for row in some["metrics"] if row["metric"] == "null_share"} == {200}

        toy.execute(project.url, "DELETE FROM batchscore_profiles")
        (none,) = compared(project, *THREE_DAYS, "--all")
        assert (none["outcome"], none["metrics"]) == ("not compared", [])
        assert "not compared: 3 run(s) have no profile in the ledger" in told(project, *THREE_DAYS)

    def test_an_interval_without_rows(self, project: Project) -> None:
        """A published run of no rows has a profile, and no metric has anything to measure."""
        project.call("backfill", "toy", "--from", "2024-03-01", "--to", "2024-03-02")

        assert compared(project)[0]["outcome"] == "not enough data"

    def test_a_window_turned_round(self, project: Project) -> None:
        """--from behind --to is an error of use."""
        result = project.call("drift", "toy", "--from", "2024-02-02", "--to", "2024-02-01")

        assert result.code == 2
        assert "--from 2024-02-02 is not before --to 2024-02-01" in result.error


class TestEvent:
    def test_one_for_each_run(self, project: Project) -> None:
        """Each published run logs one `run.drift` at info level, with counts, whether or not anything moved."""
        events = project.call("backfill", "toy", *THREE_DAYS).named("run.drift")

        assert len(events) == len({event["run_id"] for event in events}) == 3
        for event in events:
            assert (event["level"], event["reference"], event["moves"]) == ("info", "training", [])
            assert (event["moved"], event["steady"], event["not_enough_data"]) == (0, 0, 21)

    def test_tells_what_moved(self, project: Project) -> None:
        """What moved stands in it as the ledger has it: column, metric, value, floor and band."""
        project.edit("jobs/toy.toml", ('every = "day"', 'every = "week"'), ("start = 2024-02-01", "start = 2024-01-29"))
        toy.execute(project.url, "UPDATE toy SET a = a + 10 WHERE ts >= '2024-01-29'")

        (event,) = project.call("backfill", "toy", "--from", "2024-01-29", "--to", "2024-02-05").named("run.drift")

        kept = toy.query(
            project.url,
            "SELECT role, column_name, metric, value, floor, band FROM batchscore_drift WHERE verdict = 'moved'",
        )
        assert kept
        names = ("role", "column", "metric", "value", "floor", "band")
        assert sorted(tuple(move[name] for name in names) for move in event["moves"]) == sorted(kept)
        assert event["moved"] == len(kept)
        assert event["moved"] + event["steady"] + event["not_enough_data"] == 21


FIRST_MOVED = 12
DAYS = 22


class TestLeftBehind:
    """A run that was published by a process which did not live to compare it."""

    def test_two_at_once(self, tmp_path: Path, trained: Project, postgres_url: str) -> None:
        """Of two processes that find it, one compares it, the other leaves it to that one, and neither complains."""
        project = toy.unscored(tmp_path, postgres_url, trained)
        assert project.call("backfill", "toy", *ONE_DAY).code == 0
        compared = "SELECT reference, role, column_name, metric, value, told FROM batchscore_drift ORDER BY 1, 2, 3, 4"
        before = toy.query(postgres_url, compared)
        toy.execute(postgres_url, "DELETE FROM batchscore_drift")

        # Both have found it, and neither has written, until this lets go.
        with toy.locked_until(postgres_url, "batchscore_drift", 2):
            both = [project.start("backfill", "toy", *ONE_DAY) for _ in range(2)]
        outputs = [process.communicate(timeout=60)[0] for process in both]

        assert [process.returncode for process in both] == [0, 0]
        assert "".join(outputs).count('"event": "run.drift"') == 1
        assert not any("monitoring.failed" in output for output in outputs), outputs
        assert toy.query(postgres_url, compared) == before


def test_a_run_that_was_replaced(project: Project) -> None:
    """Comparing it late changes nothing that is kept of the run in its place, and keeps nothing of it."""
    assert project.call("backfill", "toy", *ONE_DAY).code == 0
    assert project.call("train", "toy").code == 0
    assert project.call("models", "promote", "toy", "2").code == 0
    assert project.call("backfill", "toy", *ONE_DAY, "--only", "all").code == 0
    tables = ("batchscore_drift", "batchscore_performance")
    before = [sorted(toy.query(project.url, f"SELECT * FROM {table}"), key=repr) for table in tables]
    job, registry = read_job("toy", project.root / "jobs"), Registry.at(project.root / "var/registry")
    with open_warehouse(Database.at(project.url)) as warehouse:
        with warehouse.begin() as tx:
            (run,) = ledger.select_runs(tx.connection, ledger.RUNS.c.status == "superseded")
        found = watch(warehouse, Watcher(job, registry.load("toy", "1")), run)

    assert found == 0
    assert [sorted(toy.query(project.url, f"SELECT * FROM {table}"), key=repr) for table in tables] == before
    assert all(before)


@pytest.fixture(scope="module")
def drifting(trained: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three weeks of February in which a moves on the twelfth for good, scored in their order."""
    root = tmp_path_factory.mktemp("drifting") / "project"
    shutil.copytree(trained.root, root)
    project = Project(root, f"duckdb:///{root}/warehouse.duckdb")
    rows = toy.rows(31 + DAYS, 250)
    late = pl.col("ts") >= datetime(2024, 2, FIRST_MOVED, tzinfo=UTC)
    toy.load(project.url, rows.with_columns(a=pl.when(late).then(pl.col("a") + 10).otherwise("a")))
    project.edit("jobs/toy.toml", ("[output]", "[drift]\npersist = { runs = 2, of = 3 }\n\n[output]"))
    done = project.call("backfill", "toy", "--from", "2024-02-01", "--to", f"2024-02-{DAYS}", "--workers", "2")
    assert done.code == 0, done.out
    return project


def psi_of_a(project: Project, reference: str, what: str = "verdict") -> dict[int, Any]:
    """By day of February, what the ledger has of the PSI of column a against a reference."""
    rows = toy.query(
        project.url,
        f"SELECT r.interval_start, d.{what} FROM batchscore_drift d JOIN batchscore_runs r ON r.run_id = d.run_id "
        f"WHERE reference = '{reference}' AND column_name = 'a' AND metric = 'psi' ORDER BY 1",
    )
    return {start.astimezone(UTC).day: value for start, value in rows}


class TestReferences:
    """What a run is compared with."""

    def test_training(self, drifting: Project) -> None:
        """Against training a column that moved for good stays moved."""
        assert [day for day, verdict in psi_of_a(drifting, "training").items() if verdict == "moved"] == list(
            range(FIRST_MOVED, DAYS)
        )

    def test_previous(self, drifting: Project) -> None:
        """Against the run before it moved once, and the first run has none before, whichever worker was faster."""
        found = psi_of_a(drifting, "previous")

        assert list(range(2, DAYS)) == list(found)
        assert [FIRST_MOVED] == [day for day, verdict in found.items() if verdict == "moved"]

    def test_last_week(self, drifting: Project) -> None:
        """Against the same weekday it is moved for a week; the first week has nothing to be compared with."""
        found = psi_of_a(drifting, "last_week")

        assert list(range(8, DAYS)) == list(found)
        moved = [day for day, verdict in found.items() if verdict == "moved"]
        assert list(range(FIRST_MOVED, FIRST_MOVED + 7)) == moved

    def test_four_weeks(self, drifting: Project) -> None:
        """The four weeks before are merged from profiles: as many rows as they had."""
        found = psi_of_a(drifting, "four_weeks", "reference_count")

        assert {day: 250 * (day - 1) for day in range(2, DAYS)} == found

    def test_told_when_it_persists(self, drifting: Project) -> None:
        """It is told from the second of three runs on, and against training alone, as nothing else was asked for."""
        told = {reference: psi_of_a(drifting, reference, "told") for reference in ("training", "previous", "last_week")}

        assert list(range(FIRST_MOVED + 1, DAYS)) == [day for day, value in told["training"].items() if value]
        assert not any(told["previous"].values())
        assert not any(told["last_week"].values())

    def test_importance(self, drifting: Project) -> None:
        """A column of the features has its share of the most important one's importance; others have none."""
        rows = dict(
            toy.query(
                drifting.url, "SELECT DISTINCT column_name, importance FROM batchscore_drift WHERE role = 'input'"
            )
        )

        assert max(value for value in rows.values() if value is not None) == 1.0
        assert rows["ts"] is None

    def test_command(self, drifting: Project) -> None:
        """`drift --against` tells the same of a window: what was moved against training is quiet against last week."""
        window = ("--from", "2024-02-20", "--to", "2024-02-22")
        ((training,), (week,)) = (compared(drifting, *window, "--against", ref) for ref in ("training", "last_week"))

        assert "a" in {row["column"] for row in training["metrics"]}
        assert "a" not in {row["column"] for row in week["metrics"]}
        assert "against the runs of a week before" in told(drifting, *window, "--against", "last_week")
        (nothing,) = compared(drifting, "--from", "2024-02-01", "--to", "2024-02-02", "--against", "previous")
        assert ("not compared", "toy version 1 has scored none of the runs that previous means") == (
            nothing["outcome"],
            nothing["detail"],
        )
        assert 2 == drifting.call("drift", "toy", "--against", "yesterday").code


class TestWatching:
    """`[drift]`."""

    def test_least_importance(self, project: Project) -> None:
        """Of columns below the least importance nothing is told, though it is measured and kept."""
        toy.execute(project.url, "UPDATE toy SET a = a + 10, b = b + 10 WHERE ts >= '2024-01-29'")
        project.edit(
            "jobs/toy.toml",
            ('every = "day"', 'every = "week"'),
            ("start = 2024-02-01", "start = 2024-01-29"),
            ("[output]", "[drift]\nleast_importance = 1.0\n\n[output]"),
        )
        assert 0 == project.call("backfill", "toy", "--from", "2024-01-29", "--to", "2024-02-05").code
        rows = toy.query(
            project.url,
            "SELECT column_name, told, importance FROM batchscore_drift "
            "WHERE role = 'input' AND verdict = 'moved' AND metric = 'psi' AND reference = 'training'",
        )

        assert {("a", True), ("b", True)} >= {(column, importance == 1.0) for column, told, importance in rows if told}
        assert {"a", "b"} == {column for column, _, _ in rows}
        assert {1.0} == {importance for _, told, importance in rows if told}
        assert any(not told for _, told, _ in rows)

    @pytest.mark.parametrize(
        ("line", "wanted"),
        [
            ("persist = { runs = 3, of = 2 }", "drift.persist: 3 of 2 runs is more than all of them"),
            ('against = ["yesterday"]', "drift.against: "),
            ("bands = { psi = 0.0 }", "drift: bands: psi must be above 0"),
            ("bands = { js = 0.1 }", "drift.bands: unknown key js"),
            ("alpha = 1.0", "drift.alpha: "),
        ],
    )
    def test_refused(self, project: Project, line: str, wanted: str) -> None:
        """What cannot be meant is an error that names the key."""
        project.edit("jobs/toy.toml", ("[output]", f"[drift]\n{line}\n\n[output]"))
        result = project.call("check", "toy")

        assert 2 == result.code
        assert wanted in " ".join(result.out.split())

    def test_bands(self, project: Project) -> None:
        """A band of one's own decides what has moved."""
        project.edit("jobs/toy.toml", ("[output]", "[drift]\nbands = { psi = 0.000001 }\nalpha = 0.9\n\n[output]"))
        project.call("backfill", "toy", *THREE_DAYS)
        (found,) = compared(project, *THREE_DAYS, "--all")

        assert {0.000001} == {row["band"] for row in found["metrics"] if row["metric"] == "psi"}
        assert "moved" in {row["verdict"] for row in found["metrics"] if row["metric"] == "psi"}
