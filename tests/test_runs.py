"""The main job on each database: train, score, backfill, resume, publish."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa
import toy
from toy import Project

from batchscore import faults, ledger
from batchscore.cli import score
from batchscore.cli.session import Session
from batchscore.errors import IntervalLeased, UsageError, WarehouseError
from batchscore.interval import Interval
from batchscore.ledger import Lease, Run
from batchscore.run.execute import _plan_run, _take_up, score_interval
from batchscore.run.publish import publish
from batchscore.run.scoring import Scoring
from batchscore.run.shard import _commit, _read, _score
from batchscore.settings import load_settings

DAYS = ("--from", "2024-02-01", "--to", "2024-02-06")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A trained toy project on DuckDB, made once; tests copy its registry."""
    root = tmp_path_factory.mktemp("trained")
    project = Project.at(root, f"duckdb:///{root}/warehouse.duckdb")
    toy.load(project.url, toy.rows())
    result = project.call("train", "toy")
    assert result.code == 0, result.out
    return project


@pytest.fixture(params=toy.RUNS)
def project(request: pytest.FixtureRequest, tmp_path: Path, trained: Project) -> Project:
    """The toy project on each database, with the bundle that was trained on DuckDB."""
    return toy.unscored(tmp_path, toy.url_of(request, tmp_path), trained)


def normal(rows: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """SQLite keeps dates as text and booleans as integers; everything else is told as it is."""
    return [(id_, str(day), bool(label), score, version) for id_, day, label, score, version in rows]


class TestBackfill:
    def test_every_row_is_predicted_once(self, project: Project) -> None:
        """A backfill leaves one prediction for each row of its window, and one published run for each interval."""
        result = project.call("backfill", "toy", *DAYS)

        assert result.code == 0, result.out
        ids = [row[0] for row in project.table()]
        assert ids == list(range(3101, 3601))
        runs = json.loads(project.call("runs", "list", "toy", "--format", "json").out)
        assert [run["status"] for run in runs] == ["published"] * 5
        assert [run["predictions"] for run in runs] == [100] * 5
        assert not [name for name in toy.tables(project.url) if "stage" in name]

    def test_same_predictions_on_every_database(self, project: Project, trained: Project) -> None:
        """The bundle gives the same table, bit for bit, whichever database it reads and writes."""
        project.call("backfill", "toy", *DAYS)
        if not (trained.root / "done").exists():
            trained.call("backfill", "toy", *DAYS)
            (trained.root / "done").touch()

        assert normal(project.table()) == normal(trained.table())

    @pytest.mark.parametrize("chunk_rows", [1, 7, 99, 100, 1000])
    def test_chunk_size_changes_nothing(self, project: Project, chunk_rows: int) -> None:
        """Any chunk size gives the same table and the same merged counts."""
        project.call("backfill", "toy", *DAYS[:3], "2024-02-02", "--chunk-rows", "100000")
        whole = (project.table(), _counts(project))

        result = project.call(
            "backfill", "toy", *DAYS[:3], "2024-02-02", "--only", "all", "--chunk-rows", str(chunk_rows)
        )

        assert result.code == 0, result.out
        assert (project.table(), _counts(project)) == whole

    def test_again_does_nothing(self, project: Project) -> None:
        """A second backfill of a published window scores nothing and says so."""
        project.call("backfill", "toy", *DAYS)

        again = project.call("backfill", "toy", *DAYS)

        assert again.code == 0
        assert [event["event"] for event in again.events][-1] == "run.nothing_due"
        assert not again.named("chunk.committed")

    def test_rescoring_replaces_only_its_interval(self, project: Project) -> None:
        """`--only all` on one day publishes new rows for it, supersedes its run, and leaves the other days alone."""
        project.call("backfill", "toy", *DAYS)
        before = project.table(("id", "run_id", "scored_at"))

        project.call("backfill", "toy", "--from", "2024-02-03", "--to", "2024-02-04", "--only", "all")

        after = project.table(("id", "run_id", "scored_at"))
        assert [row[0] for row in after] == [row[0] for row in before]
        changed = [old[0] for old, new in zip(before, after, strict=True) if old != new]
        assert changed == list(range(3301, 3401))
        runs = json.loads(project.call("runs", "list", "toy", "--format", "json").out)
        assert sorted(run["status"] for run in runs) == ["published"] * 5 + ["superseded"]

    def test_an_empty_interval_is_published(self, project: Project) -> None:
        """An interval without rows is published with none, and is not due again."""
        result = project.call("backfill", "toy", "--from", "2024-03-01", "--to", "2024-03-02")

        assert result.code == 0, result.out
        assert result.named("run.published")[0]["predictions"] == 0
        assert [event["level"] for event in result.named("run.empty")] == ["warning"]
        assert project.call("plan", "toy", "--from", "2024-03-01", "--to", "2024-03-02").out.startswith("nothing to do")


class TestTable:
    def test_columns_stand_in_the_documented_order(self, project: Project) -> None:
        """Key, carried columns, prediction, score, then where they came from: the contract with dashboards."""
        project.call("backfill", "toy", *DAYS)

        assert toy.columns(project.url, "toy_predictions") == [
            "id", "day", "prediction", "score",
            "model_name", "model_version", "interval_start", "scored_at", "run_id",
        ]  # fmt: skip

    def test_scored_at_is_one_instant_for_a_run(self, project: Project) -> None:
        """All rows of a run carry the same `scored_at`, however many chunks it took."""
        project.call("backfill", "toy", *DAYS, "--chunk-rows", "13")

        pairs = toy.query(project.url, "SELECT DISTINCT run_id, scored_at FROM toy_predictions")

        assert len(pairs) == 5


class TestInterruption:
    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    def test_goes_on_behind_the_last_chunk(self, project: Project, how: signal.Signals) -> None:
        """Killed between chunks, the next run scores the rest only, and the table is that of an undisturbed run."""
        project.call("backfill", "toy", *DAYS[:3], "2024-02-02")
        undisturbed = (normal(project.table()), _counts(project))
        command = ("backfill", "toy", "--from", "2024-02-02", "--to", "2024-02-03", "--chunk-rows", "10")
        toy.slow_down(project)

        process = project.start(*command, SLOW="1", BATCHSCORE_REGISTRY_URL="slow")
        committed = toy.wait_for_chunks(process, 3)
        process.send_signal(how)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}.get(how, -how)
        if how is not signal.SIGKILL:
            last = json.loads(out.splitlines()[-1])
            assert (last["event"], last["exit_code"]) == ("command.failed", process.returncode)
            assert "Traceback" not in out
        assert (normal(project.table()), _counts(project)) == undisturbed

        again = project.call(*command, BATCHSCORE_REGISTRY_URL="slow")

        assert again.code == 0, again.out
        resumed = again.named("run.resumed")
        assert resumed
        assert resumed[0]["chunks"] >= committed
        assert len(again.named("chunk.committed")) == 10 - resumed[0]["chunks"]
        assert [row[0] for row in project.table()] == list(range(3101, 3301))
        assert again.named("run.published")[0]["rows_read"] == 100

    def test_a_process_that_lost_its_run_cannot_commit(self, project: Project) -> None:
        """A paused process keeps others out while its lease lasts; woken up after that, it writes nothing.

        It ends with 0 all the same, for the other has published the interval.
        """
        if project.url.startswith("duckdb"):
            pytest.skip("DuckDB admits one process to a file: the second cannot open it")
        command = ("backfill", "toy", "--from", "2024-02-02", "--to", "2024-02-03", "--chunk-rows", "10")
        toy.slow_down(project)
        slow = {"BATCHSCORE_REGISTRY_URL": "slow", "BATCHSCORE_LEASE_SECONDS": "3"}
        first = project.start(*command, SLOW="1", **slow)
        toy.wait_for_chunks(first, 2)
        first.send_signal(signal.SIGSTOP)
        try:
            early = project.call(*command, **slow)
            time.sleep(3)
            second = project.call(*command, **slow)
        finally:
            first.send_signal(signal.SIGCONT)
        out, _ = first.communicate(timeout=60)

        if second.code == 20:
            pytest.fail(f"the paused process held a lock: {second.out}")
        assert (early.code, early.named("chunk.committed")) == (21, [])
        assert f"is leased by process {first.pid} on" in early.error
        assert second.code == 0, second.out
        assert first.returncode == 0, out
        events = [json.loads(line) for line in out.splitlines()]
        assert [event["interval"][1:11] for event in events if event["event"] == "run.left"] == ["2024-02-02"]
        assert not [event for event in events if event["event"] == "run.published"]
        assert [row[0] for row in project.table()] == list(range(3201, 3301))

    def test_waking_before_the_first_chunk_harms_nobody(self, project: Project) -> None:
        """A process paused before it made its stage, and overtaken, leaves the stage of the other as it is."""
        with _scoring(project) as scoring:
            interval = scoring.job.calendar.at("2024-02-02")
            planned = _plan_run(scoring, interval, [])
            first, second = _lease(scoring, interval), _lease(scoring, interval)
            run, _ = _take_up(scoring, planned, second, [])
            rows = pl.DataFrame({"id": [1], "day": [interval.start.date()], "prediction": [True], "score": [0.5]})
            with scoring.warehouse.begin() as tx:
                tx.stage(scoring.output, run.stage, scoring.narrow, rows)

            with pytest.raises(IntervalLeased):
                _take_up(scoring, planned, first, [])

            with scoring.warehouse.begin() as tx:
                assert tx.staged(scoring.output, run.stage) == 1

    def test_an_overtaken_run_leaves_nothing(self, project: Project) -> None:
        """A run that stopped, and whose interval another run has published, leaves no stage, chunk or reject."""
        day = (*DAYS[:3], "2024-02-02", "--chunk-rows", "10")
        toy.execute(project.url, "UPDATE toy SET id = 3150 WHERE id = 3151")
        assert project.call("backfill", "toy", *day).code == 11
        assert [name for name in toy.tables(project.url) if "stage" in name]

        project.edit("sql/toy/rows.sql", ("FROM toy WHERE", "FROM toy WHERE id <> 3150 AND"))
        other = project.call("backfill", "toy", *day, "--accept-sql", "without the doubled row")

        assert other.code == 0, other.out
        assert not [name for name in toy.tables(project.url) if "stage" in name]
        runs = toy.query(project.url, "SELECT run_id, status FROM batchscore_runs ORDER BY status")
        assert [status for _, status in runs] == ["published", "superseded"]
        assert {(runs[0][0],)} == set(toy.query(project.url, "SELECT DISTINCT run_id FROM batchscore_chunks"))

    @pytest.mark.parametrize(
        "spoil",
        [
            "DROP TABLE {stage}",
            "DELETE FROM {stage} WHERE id = 3101",
            "INSERT INTO {stage} SELECT * FROM {stage} WHERE id = 3101",
            "ALTER TABLE {stage} ADD COLUMN more INTEGER",
            "DELETE FROM batchscore_rejects",
        ],
    )
    def test_a_spoilt_stage_is_made_anew(self, project: Project, spoil: str) -> None:
        """What is not as the chunks committed it is never gone on with: the run starts from nothing and says so."""
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE id = 3105")
        with _scoring(project) as scoring:
            run, _ = _two_chunks_in(scoring)
        toy.execute(project.url, spoil.format(stage=run.stage))

        result = project.call("backfill", "toy", *DAYS[:3], "2024-02-02")

        assert result.code == 0, result.out
        assert result.named("run.spoilt")
        assert not result.named("run.resumed")
        published = result.named("run.published")[0]
        assert published["run_id"] == run.run_id
        assert (published["rows_read"], published["rejects"]) == (100, 1)
        assert [row[0] for row in project.table()] == [id_ for id_ in range(3101, 3201) if id_ != 3105]

    def test_a_stage_spoilt_at_the_last_moment_is_not_published(self, project: Project) -> None:
        """Rows that another hand takes from the stage stop the publish with 12: nothing reaches the output table."""
        with _scoring(project) as scoring:
            run, lease = _two_chunks_in(scoring)
            toy_rows = f"DELETE FROM {run.stage} WHERE id = 3101"
            with scoring.warehouse.begin() as tx:
                tx.connection.execute(sa.text(toy_rows))

            with pytest.raises(WarehouseError, match=f"{run.stage} or batchscore_rejects does not hold"):
                publish(scoring.warehouse, scoring.output, run, lease, scoring.bundle, scoring.job, begun=0.0)

        assert project.table() == []

    def test_two_jobs_that_begin_together_do_not_share_a_table(self, project: Project) -> None:
        """Of two jobs that found a table free and publish into it, the second stops with nothing of it published."""
        for file in ("toml", "py"):
            text = (project.root / f"jobs/toy.{file}").read_text()
            (project.root / f"jobs/second.{file}").write_text(
                text.replace('[job]\nname = "toy"', '[job]\nname = "second"')
            )
        with _scoring(project, "second") as second:
            assert project.call("backfill", "toy", *DAYS[:3], "2024-02-02").code == 0
            before = project.table(("id", "run_id"))

            with pytest.raises(UsageError, match="job toy has published into toy_predictions"):
                score_interval(second, second.job.calendar.at("2024-02-01"), [], lambda _: None)

        assert project.table(("id", "run_id")) == before

    def test_a_profile_that_cannot_be_read_stops_nothing(self, project: Project) -> None:
        """Whatever monitoring runs into is told in the log, and the next interval is scored as ever."""
        first, second = ("2024-02-01", "2024-02-02"), ("2024-02-02", "2024-02-03")
        project.call("backfill", "toy", "--from", first[0], "--to", first[1])
        toy.execute(project.url, "DELETE FROM batchscore_drift", "UPDATE batchscore_profiles SET profile = '{'")

        again = project.call("backfill", "toy", "--from", second[0], "--to", second[1])

        assert again.code == 0
        assert len(again.named("run.published")) == 1
        assert "JSONDecodeError" in again.named("monitoring.failed")[0]["error"]

    def test_drift_that_nobody_lived_to_record_is_recorded_by_the_next(self, project: Project) -> None:
        """A process that died between publishing and comparing leaves the comparing to the next command."""
        project.call("backfill", "toy", *DAYS)
        drift = "SELECT run_id, reference, role, column_name, metric, value, verdict FROM batchscore_drift ORDER BY 1, 2, 3, 4, 5"
        whole = toy.query(project.url, drift)
        assert len({row[0] for row in whole}) == 5
        toy.execute(
            project.url,
            "DELETE FROM batchscore_drift WHERE run_id IN "
            "(SELECT run_id FROM batchscore_runs WHERE interval_start < '2024-02-03')",
        )

        again = project.call("backfill", "toy", *DAYS)

        assert again.code == 0
        assert not again.named("run.published")
        assert toy.query(project.url, drift) == whole


class TestResume:
    """A run that was broken off after some chunks of ten rows, taken up again."""

    @pytest.mark.parametrize("chunk_rows", ["7", "10", "25", "1000"])
    def test_another_chunk_size(self, project: Project, chunk_rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Chunks of any size go on behind the row that was reached; table and counts are those of a run in one piece."""
        day = (*DAYS[:3], "2024-02-02")
        project.call("backfill", "toy", *day)
        whole = (project.table(), _counts(project), _input_of_first_day(project))
        _break_off(project, monkeypatch, *day, "--only", "all")

        result = project.call("backfill", "toy", *day, "--only", "all", "--chunk-rows", chunk_rows)

        assert result.code == 0, result.out
        assert [(event["chunks"], event["rows"]) for event in result.named("run.resumed")] == [(4, 40)]
        # The chunks are cut where they would have been; of the one that was half done the rest is scored.
        rows = [event["rows"] for event in result.named("chunk.committed")]
        assert rows == {"7": [2, *[7] * 8, 2], "10": [10] * 6, "25": [10, 25, 25], "1000": [60]}[chunk_rows]
        assert (project.table(), _counts(project), _input_of_first_day(project)) == whole

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE toy SET b = 0.5 WHERE id = 3105",
            "UPDATE toy SET c = NULL WHERE id = 3140",
            "DELETE FROM toy WHERE id = 3101",
            "DELETE FROM toy WHERE id = 3140",
            "DELETE FROM toy WHERE id > 3139",
            "UPDATE toy SET id = 50 WHERE id = 3200",
        ],
        ids=["changed", "NULL", "first gone", "last gone", "fewer than read", "one more"],
    )
    def test_changed_before_the_watermark(self, project: Project, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rows that were read and are no longer the same cost all that was done: the table is that of the new rows."""
        day = (*DAYS[:3], "2024-02-02")
        _break_off(project, monkeypatch, *day)
        toy.execute(project.url, change)

        result = project.call("backfill", "toy", *day, "--chunk-rows", "10")

        assert result.code == 0, result.out
        assert [(event["chunks"], event["rows"]) for event in result.named("run.restarted")] == [(4, 40)]
        assert not result.named("run.resumed")
        found = (project.table(), _counts(project), _input_of_first_day(project))
        project.call("backfill", "toy", *day, "--only", "all")
        assert found == (project.table(), _counts(project), _input_of_first_day(project))

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE toy SET b = 0.5 WHERE id = 3141",
            "DELETE FROM toy WHERE id = 3141",
            "DELETE FROM toy WHERE id > 3140",
            "UPDATE toy SET id = 9999 WHERE id = 3180",
        ],
        ids=["changed", "gone", "none left", "moved"],
    )
    def test_changed_behind_the_watermark(self, project: Project, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rows that were not read yet may change: the run goes on, and the table is that of the new rows."""
        day = (*DAYS[:3], "2024-02-02")
        _break_off(project, monkeypatch, *day)
        toy.execute(project.url, change)

        result = project.call("backfill", "toy", *day, "--chunk-rows", "10")

        assert result.code == 0, result.out
        assert [(event["chunks"], event["rows"]) for event in result.named("run.resumed")] == [(4, 40)]
        assert not result.named("run.restarted")
        found = (project.table(), _counts(project), _input_of_first_day(project))
        project.call("backfill", "toy", *day, "--only", "all")
        assert found == (project.table(), _counts(project), _input_of_first_day(project))


class TestAnotherProcess:
    """Two commands over the same intervals at once."""

    def test_still_at_work(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """Intervals that another has do not hold up the rest; each is told, and while they have no rows the code is 21."""
        monkeypatch.setattr("batchscore.cli.score.on_terminal", lambda: True)
        with _scoring(project) as other:
            for day in ("2024-02-02", "2024-02-03"):
                _lease(other, other.job.calendar.at(day))

            result = project.call("backfill", "toy", *DAYS)

        assert result.code == 21
        assert result.error.startswith("left to another process: [2024-02-02")
        assert [event["interval_start"][8:10] for event in result.named("run.published")] == ["01", "04", "05"]
        assert [event["interval"][1:11] for event in result.named("run.left")] == ["2024-02-02", "2024-02-03"]
        assert "2 of 5 interval(s) not done\n" in result.err
        assert result.err.count("left to another process: ") == 2

    @pytest.mark.parametrize("published_before", [False, True])
    def test_done(self, project: Project, monkeypatch: pytest.MonkeyPatch, published_before: bool) -> None:
        """What another has published by the end is no failure; what it had published before this began is no proof."""
        look = score._look_again
        told = []
        if published_before:
            assert project.call("backfill", "toy", *DAYS).code == 0
        with _scoring(project) as other:
            days = [other.job.calendar.at(day) for day in ("2024-02-02", "2024-02-03")]
            for day in days:
                _lease(other, day)

            def late(*args: Any) -> None:
                score_interval(other, days[0], args[1], lambda _: None)
                look(*args)
                told.append(score._words(other.job, args[2]))

            monkeypatch.setattr(score, "_look_again", late)
            one = project.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-03", "--only", "all")
            both = project.call("backfill", "toy", "--from", "2024-02-02", "--to", "2024-02-04", "--only", "all")

        assert (one.code, both.code) == (0, 21)
        assert [event["interval"][1:11] for event in one.named("run.left")] == ["2024-02-02"]
        assert "\n1 interval(s) left to another process, which has published them" in told[0]
        assert both.error.startswith("left to another process: [2024-02-03")


class TestWorkers:
    """`--workers`."""

    def test_same_table(self, project: Project) -> None:
        """Four at a time give the table, the counts and the drift that one gives, every interval once."""
        drift = """
            SELECT r.interval_start, d.reference, d.role, d.column_name, d.metric, d.value, d.verdict
            FROM batchscore_drift AS d JOIN batchscore_runs AS r ON r.run_id = d.run_id
            WHERE r.status = 'published' ORDER BY 1, 2, 3, 4, 5
        """
        assert project.call("backfill", "toy", *DAYS, "--chunk-rows", "20").code == 0
        one = (project.table(), _counts(project), toy.query(project.url, drift))

        four = project.call("backfill", "toy", *DAYS, "--only", "all", "--chunk-rows", "20", "--workers", "4")

        assert four.code == 0, four.out
        assert len(four.named("run.published")) == 5
        assert len(four.named("chunk.committed")) == 25
        assert {event["job"] for event in four.events if event["event"].startswith(("run.", "chunk."))} == {"toy"}
        assert (project.table(), _counts(project), toy.query(project.url, drift)) == one
        statuses = [status for (status,) in toy.query(project.url, "SELECT status FROM batchscore_runs ORDER BY 1")]
        assert statuses == ["published"] * 5 + ["superseded"] * 5
        assert not [name for name in toy.tables(project.url) if "stage" in name]

    def test_many(self, project: Project) -> None:
        """More workers than the warehouse has connections in its pool wait for one another, and all of them get done."""
        window = ("--from", "2024-02-01", "--to", "2024-03-11")

        result = project.call("backfill", "toy", *window, "--chunk-rows", "25", "--workers", "30")

        assert result.code == 0, result.out
        assert len(result.named("run.published")) == 39
        assert [row[0] for row in project.table()] == list(range(3101, 3601))

    def test_one_fails(self, project: Project) -> None:
        """An interval that fails stops none of the others, and gives the exit code."""
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE id BETWEEN 3301 AND 3350")

        result = project.call("backfill", "toy", *DAYS, "--workers", "3")

        assert result.code == 11
        assert "50 of 100 rows" in result.error
        days = sorted(event["interval_start"][8:10] for event in result.named("run.published"))
        assert days == ["01", "02", "04", "05"]

    def test_score(self, project: Project) -> None:
        """`score` takes workers too, and no more intervals for it."""
        project.edit("jobs/toy.toml", ("start = 2024-02-01", "start = 2024-02-01\ncatch_up = 3"))

        result = project.call("score", "toy", "--workers", "2")

        assert result.code == 0, result.out
        days = sorted(event["interval_start"][8:10] for event in result.named("run.published"))
        assert days == ["01", "02", "03"]

    @pytest.mark.parametrize("project", ["duckdb", "postgres"], indirect=True)
    def test_sigterm(self, project: Project) -> None:
        """A signal ends all of them after the chunk in hand, with 143; their leases are free, and nothing is lost."""
        command = ("backfill", "toy", *DAYS, "--chunk-rows", "10", "--workers", "2")
        toy.slow_down(project)
        process = project.start(*command, SLOW="1", BATCHSCORE_REGISTRY_URL="slow")
        committed = toy.wait_for_chunks(process, 3)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)

        assert process.returncode == 143
        assert time.monotonic() - begun < 8
        events = [json.loads(line) for line in out.splitlines()]
        assert [event["exit_code"] for event in events if event["event"] == "command.failed"] == [143]
        assert not [event for event in events if event["event"] in ("run.published", "run.failed")]
        committed += sum(event["event"] == "chunk.committed" for event in events)
        assert toy.query(project.url, "SELECT count(*) FROM batchscore_leases WHERE owner IS NOT NULL") == [(0,)]

        again = project.call(*command, BATCHSCORE_REGISTRY_URL="slow")
        assert again.code == 0, again.out
        assert len(again.named("run.resumed")) == 2
        # The signal may come between a commit and its log line, in each of the two.
        assert 50 - committed - 2 <= len(again.named("chunk.committed")) <= 50 - committed
        assert [row[0] for row in project.table()] == list(range(3101, 3601))


class TestStopping:
    @pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    @pytest.mark.parametrize("database", ["duckdb", "postgres"])
    def test_training_stops_in_the_middle_of_a_query(
        self, how: signal.Signals, code: int, database: str, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        """A signal ends a command at once with its own exit code, also while it waits for a query of an hour."""
        postgres = database == "postgres"
        url = request.getfixturevalue("postgres_url") if postgres else f"duckdb:///{tmp_path}/warehouse.duckdb"
        project = Project.at(tmp_path, url)
        toy.load(url, toy.rows())
        endless = "pg_sleep(3600) IS NOT NULL" if postgres else "(SELECT sum(sin(range)) FROM range(100000000000)) > 0"
        project.edit("sql/toy/rows.sql", ("FROM toy WHERE", f"FROM toy WHERE {endless} AND"))

        with project.start("train", "toy") as process:
            try:
                assert process.stdout
                assert "reading rows" in process.stdout.readline()
                time.sleep(0.5)
                process.send_signal(how)
                out, _ = process.communicate(timeout=20)
            finally:
                process.kill()

        assert process.returncode == code
        assert [json.loads(line)["exit_code"] for line in out.splitlines()] == [code]


class TestRejects:
    def test_a_few_bad_rows_are_set_aside(self, project: Project) -> None:
        """Rows with a NULL that training never saw are rejected with key and reason; the others are published."""
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE id IN (3105, 3150)")

        result = project.call("backfill", "toy", *DAYS[:3], "2024-02-02")

        assert result.code == 0, result.out
        published = result.named("run.published")[0]
        assert (published["rows_read"], published["predictions"], published["rejects"]) == (100, 98, 2)
        assert {3105, 3150}.isdisjoint(row[0] for row in project.table())
        shown = json.loads(project.call("runs", "show", published["run_id"][:8], "--format", "json").out)
        assert [(json.loads(r["row_key"]), r["stage"], r["reason"], r["detail"]) for r in shown["rejects"]] == [
            ([3105], "input", "unexpected_null", "column a"),
            ([3150], "input", "unexpected_null", "column a"),
        ]

    def test_too_many_stop_the_run_unpublished(self, project: Project) -> None:
        """More rejects than the limit leave the old rows in place, exit 11 and name the column; mended, it runs."""
        day = (*DAYS[:3], "2024-02-02")
        project.call("backfill", "toy", *day)
        before = project.table()
        toy.execute(
            project.url, "CREATE TABLE spare AS SELECT id, a FROM toy", "UPDATE toy SET a = NULL WHERE id < 3111"
        )

        refused = project.call("backfill", "toy", *day, "--only", "all", "--chunk-rows", "30")

        assert refused.code == 11
        assert "10 of 100 rows" in refused.error
        assert "column a" in refused.error
        assert project.table() == before
        toy.execute(project.url, "UPDATE toy SET a = (SELECT spare.a FROM spare WHERE spare.id = toy.id)")
        mended = project.call("backfill", "toy", *day, "--only", "all", "--chunk-rows", "30")
        assert mended.code == 0, mended.out
        assert mended.named("run.published")[0]["rejects"] == 0
        assert mended.named("run.restarted")
        assert not mended.named("run.resumed")
        assert project.table() == before

    def test_mended_rows_are_all_read_again(self, project: Project) -> None:
        """A run whose rows have changed since it read them starts from nothing, and says so."""
        toy.execute(project.url, "UPDATE toy SET id = 3150 WHERE id = 3151")
        day = (*DAYS[:3], "2024-02-02", "--chunk-rows", "10")

        stopped = project.call("backfill", "toy", *day)
        toy.execute(project.url, "DELETE FROM toy WHERE id IN (3101, 3150)")
        mended = project.call("backfill", "toy", *day)

        assert stopped.code == 11
        assert "3150" in stopped.error
        assert mended.code == 0, mended.out
        assert [event["level"] for event in mended.named("run.restarted")] == ["warning"]
        assert not mended.named("run.resumed")
        assert mended.named("run.published")[0]["rows_read"] == 97

    def test_values_are_kept(self, project: Project) -> None:
        """`rejects` shows what a row held: text with quotes, dates and instants, and a number that is none by its name."""
        # MariaDB reads what follows a backslash.
        backslash = "\\\\" if project.url.startswith("mariadb") else "\\"
        has_nan = not project.url.startswith(("sqlite", "mariadb"))
        toy.execute(
            project.url,
            f"UPDATE toy SET a = NULL, c = 'it''s \"x\"\n{backslash} é' WHERE id = 3105",
            *(["UPDATE toy SET b = 'NaN' WHERE id = 3150"] if has_nan else []),
        )
        ((b,),) = toy.query(project.url, "SELECT b FROM toy WHERE id = 3105")
        assert project.call("backfill", "toy", *DAYS[:3], "2024-02-02").code == 0

        listed = project.call("rejects", "toy", "--interval", "2024-02-01", "--format", "json")
        shown = project.call("rejects", "toy", "--interval", "2024-02-01").out

        found = json.loads(listed.out)
        first = json.loads(found[0]["row_values"])
        ts = datetime.fromisoformat(first.pop("ts"))
        assert (ts - datetime(2024, 2, 1, tzinfo=UTC)) / timedelta(seconds=1) == pytest.approx(4 * 864)
        assert first == {"day": "2024-02-01", "a": None, "b": b, "c": 'it\'s "x"\n\\ é'}
        told = {name: found[0][name] for name in ("row_key", "stage", "reason", "detail")}
        assert told == {"row_key": "[3105]", "stage": "input", "reason": "unexpected_null", "detail": "column a"}
        if has_nan:
            assert [reject["reason"] for reject in found] == ["unexpected_null", "unexpected_nan"]
            assert json.loads(found[1]["row_values"])["b"] == "nan"
        assert "unexpected_null" in shown
        assert "[3105]" in shown

    def test_private_columns_are_not_kept(self, project: Project) -> None:
        """A private column is nowhere in the ledger; with all of them private a reject has its key and reason alone."""
        toy.execute(project.url, "UPDATE toy SET a = NULL, c = 'secret' WHERE id = 3105")
        project.edit("jobs/toy.toml", ('key = ["id"]', 'key = ["id"]\nprivate = ["c", "b"]'))
        day = (*DAYS[:3], "2024-02-02")

        some = project.call("backfill", "toy", *day)
        kept = toy.query(project.url, "SELECT row_values FROM batchscore_rejects")
        project.edit("jobs/toy.toml", ('private = ["c", "b"]', 'private = ["ts", "day", "a", "b", "c"]'))
        none = project.call("backfill", "toy", *day, "--only", "all")

        assert (some.code, none.code) == (0, 0)
        assert [set(json.loads(values)) for (values,) in kept] == [{"ts", "day", "a"}]
        rejects = json.loads(project.call("rejects", "toy", "--interval", "2024-02-01", "--format", "json").out)
        assert [(reject["row_key"], reject["row_values"]) for reject in rejects] == [("[3105]", "{}")]
        whole = [toy.query(project.url, f"SELECT * FROM {name}") for name in ("batchscore_rejects", "batchscore_runs")]
        assert "secret" not in repr(whole)

    @pytest.mark.parametrize("most", ["0.05", "0"])
    def test_an_error_that_quotes_a_private_value(self, project: Project, most: str) -> None:
        """scikit-learn's words for a category it does not know hold its value: where that is private, nothing does."""
        project.edit("jobs/toy.py", ('handle_unknown="ignore"', 'handle_unknown="error"'))
        project.edit("jobs/toy.toml", ('key = ["id"]', 'key = ["id"]\nprivate = ["c"]'), ("0.05", most))
        registry = {"BATCHSCORE_REGISTRY_URL": str(project.root / "strict")}
        assert project.call("train", "toy", **registry).code == 0
        toy.execute(project.url, "UPDATE toy SET c = 'John Smith 1970' WHERE id = 3105")

        result = project.call("backfill", "toy", *DAYS[:3], "2024-02-02", **registry)

        assert result.code == (0 if most == "0.05" else 11)
        assert toy.query(project.url, "SELECT reason, detail FROM batchscore_rejects") == [
            ("pipeline_failed", "ValueError")
        ]
        shown = [
            project.call("rejects", "toy", "--interval", "2024-02-01"),
            project.call("runs", "list", "toy", "--format", "json"),
        ]
        ledgers = [name for name in toy.tables(project.url) if name.startswith("batchscore_")]
        kept = [toy.query(project.url, f"SELECT * FROM {name}") for name in ledgers]
        assert "ValueError" in repr((result, kept))
        assert "Smith" not in repr((result, shown, kept))

    def test_a_private_column_that_is_not_there(self, project: Project) -> None:
        """A private column that the bundle does not have, as one that is misspelt, is refused before a row is read."""
        project.edit("jobs/toy.toml", ('key = ["id"]', 'key = ["id"]\nprivate = ["c", "tss"]'))

        result = project.call("backfill", "toy", *DAYS[:3], "2024-02-02")

        assert result.code == 2
        assert "[source] private of job toy names 'tss', which is no column of toy version 1" in result.error
        assert "Did you mean ts?" in result.error
        assert not result.named("run.started")

    def test_which_rejects_are_shown(self, project: Project) -> None:
        """Those of the latest run, published or not; the first so many; and in words when there are none."""
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE id IN (3101, 3102, 3103)")
        day = (*DAYS[:3], "2024-02-02")

        def shown(*options: str) -> list[str]:
            listed = project.call("rejects", "toy", *options, "--format", "json")
            assert listed.code == 0, listed.out
            return [reject["row_key"] for reject in json.loads(listed.out)]

        never = project.call("rejects", "toy", "--interval", "2024-02-01").out
        project.call("backfill", "toy", *DAYS[:3], "2024-02-03")
        assert shown("--interval", "2024-02-01") == ["[3101]", "[3102]", "[3103]"]
        assert shown("--interval", "2024-02-01", "--limit", "2") == ["[3101]", "[3102]"]
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE id BETWEEN 3104 AND 3190")
        assert project.call("backfill", "toy", *day, "--only", "all").code == 11
        assert len(shown("--interval", "2024-02-01")) == 90
        assert project.call("rejects", "toy", "--interval", "2024-02-01").out.splitlines()[0].endswith(", failed")

        assert "2024-02-01 was never scored" in never
        assert "has no rejects" in project.call("rejects", "toy", "--interval", "2024-02-02").out
        assert project.call("rejects", "toy", "--interval", "someday").code == 2

    @pytest.mark.parametrize(
        ("limits", "passed"),
        [
            ("rejects = 1.0\nreject_rows = 28", "limits.reject_rows = 28"),
            ("rejects = 1.0\nreject_rows = 29", None),
            ("rejects = 0.28\nreject_rows = 29", "limits.rejects = 0.28"),
            ("rejects = 0.29", None),
        ],
    )
    def test_limits(self, project: Project, limits: str, passed: str | None) -> None:
        """A share and a number bound the rejects, each reached and not passed, whichever is less."""
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE id BETWEEN 3101 AND 3129")
        project.edit("jobs/toy.toml", ("rejects = 0.05", limits))

        result = project.call("backfill", "toy", *DAYS[:3], "2024-02-02", "--chunk-rows", "10")

        if passed:
            assert result.code == 11
            assert f"29 of 100 rows of [2024-02-01T00:00Z, 2024-02-02T00:00Z) were rejected, more than {passed}" in (
                result.error
            )
        else:
            assert result.code == 0, result.out
            assert result.named("run.published")[0]["rejects"] == 29

    def test_rows_mended_behind_what_was_read_cost_nothing(self, project: Project) -> None:
        """A run that stopped at a bad row, with the rows before it as they were, goes on behind its last chunk."""
        toy.execute(project.url, "UPDATE toy SET id = 3154 WHERE id = 3155")
        day = (*DAYS[:3], "2024-02-02")

        assert project.call("backfill", "toy", *day, "--chunk-rows", "10").code == 11
        toy.execute(project.url, "DELETE FROM toy WHERE id = 3154")
        mended = project.call("backfill", "toy", *day, "--chunk-rows", "7")

        assert mended.code == 0, mended.out
        resumed = mended.named("run.resumed")
        assert [(event["chunks"], event["rows"]) for event in resumed] == [(5, 50)]
        assert [row[0] for row in project.table()] == [id_ for id_ in range(3101, 3201) if id_ not in (3154, 3155)]

    @pytest.mark.parametrize("chunk_rows", ["1", "10", "100"])
    def test_failing_rows_are_counted_over_the_run(
        self, project: Project, chunk_rows: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """How many rows may fail before bisecting is given up does not depend on the size of a chunk."""
        monkeypatch.setattr("batchscore.run.shard.MOST_FAILURES", 3)
        day = (*DAYS[:3], "2024-02-02", "--chunk-rows", chunk_rows)
        toy.execute(project.url, "UPDATE toy SET a = -2 WHERE id IN (3101, 3150, 3200)")
        assert project.call("backfill", "toy", *day).code == 0
        toy.execute(project.url, "UPDATE toy SET a = -2 WHERE id = 3151")

        stopped = project.call("backfill", "toy", *day, "--only", "all")

        assert stopped.code == 11
        assert "a is negative" in stopped.error

    def test_a_failing_pipeline_rejects_the_guilty_rows(self, project: Project) -> None:
        """Values on which the pipeline itself fails cost their own rows and no others, and keep its words."""
        toy.execute(project.url, "UPDATE toy SET a = -2 WHERE id IN (3101, 3150, 3200)")

        result = project.call("backfill", "toy", *DAYS[:3], "2024-02-02")

        assert result.code == 0, result.out
        published = result.named("run.published")[0]
        assert (published["predictions"], published["rejects"]) == (97, 3)
        shown = json.loads(project.call("runs", "show", published["run_id"], "--format", "json").out)
        assert [(r["row_key"], r["reason"], r["detail"]) for r in shown["rejects"]] == [
            (f"[{id_}]", "pipeline_failed", "ValueError: a is negative") for id_ in (3101, 3150, 3200)
        ]


class TestSchedule:
    def test_score_takes_what_is_due_oldest_first(self, project: Project) -> None:
        """`score` without an interval catches up with the oldest `catch_up` intervals and says what it left."""
        project.edit("jobs/toy.toml", ("start = 2024-02-01", "start = 2024-02-01\ncatch_up = 3"))

        result = project.call("score", "toy")

        assert result.code == 0, result.out
        starts = [event["interval_start"] for event in result.named("run.published")]
        first = date(2024, 2, 1)
        assert starts == [f"{first + timedelta(days=i)}T00:00:00+00:00" for i in range(3)]
        assert result.named("plan.intervals_left")[0]["left"] > 100

    def test_bad_rows_do_not_hold_up_the_days_behind_them(self, project: Project) -> None:
        """`score` goes on past an interval whose rows break the contract, and exits with 11 when it is through."""
        project.edit("jobs/toy.toml", ("start = 2024-02-01", "start = 2024-02-01\ncatch_up = 3"))
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE id BETWEEN 3101 AND 3150")

        result = project.call("score", "toy")

        assert result.code == 11
        starts = [event["interval_start"][:10] for event in result.named("run.published")]
        assert starts == ["2024-02-02", "2024-02-03"]

    def test_an_interval_that_kills_its_process_does_not_hold_up_others(self, project: Project) -> None:
        """What was tried before and did not end comes behind what never was."""
        project.edit("jobs/toy.toml", ("start = 2024-02-01", "start = 2024-02-01\ncatch_up = 2"))
        killed = project.run("score", "toy", BATCHSCORE_FAULT="after_commit:0:kill")

        result = project.call("score", "toy")

        assert killed.code == -9
        starts = [event["interval_start"][8:10] for event in result.named("run.published")]
        assert starts == ["02", "03"]

    def test_another_output_table_is_another_history(self, project: Project) -> None:
        """A job that names another output table is due from its start, and what it published before stays published."""
        project.call("backfill", "toy", *DAYS)
        project.edit("jobs/toy.toml", ('table = "toy_predictions"', 'table = "elsewhere"'))

        moved = project.call("backfill", "toy", *DAYS)

        assert len(moved.named("run.published")) == 5
        assert len(project.table()) == 500
        statuses = toy.query(project.url, "SELECT DISTINCT status FROM batchscore_runs")
        assert statuses == [("published",)]

    @pytest.mark.parametrize("project", ["duckdb", "postgres"], indirect=True)
    def test_the_same_name_in_another_schema_is_another_table(self, project: Project) -> None:
        """With its schema the table is the same one; in another schema it is another, and nothing is there yet."""
        project.call("backfill", "toy", *DAYS)
        default = "main" if project.url.startswith("duckdb") else "public"
        toy.execute(project.url, "CREATE SCHEMA other")
        project.edit("jobs/toy.toml", ('table = "toy_predictions"', f'table = "{default}.toy_predictions"'))
        same = project.call("backfill", "toy", *DAYS)
        project.edit("jobs/toy.toml", (f'table = "{default}.toy_predictions"', 'table = "other.toy_predictions"'))
        other = project.call("backfill", "toy", *DAYS)

        assert same.named("run.nothing_due")
        assert len(other.named("run.published")) == 5
        assert toy.query(project.url, "SELECT count(*) FROM other.toy_predictions") == [(500,)]
        assert toy.query(project.url, "SELECT DISTINCT status FROM batchscore_runs") == [("published",)]

    def test_an_interval_is_scored_when_it_has_ended(self, project: Project) -> None:
        """Tomorrow is not due: nothing is scored, and that is no error."""
        tomorrow = str(date.today() + timedelta(days=1))

        result = project.call("score", "toy", "--interval", tomorrow)

        assert result.code == 0
        assert result.named("run.nothing_due")

    def test_why_nothing_is_due(self, project: Project) -> None:
        """The log says why there was nothing to do, each reason in its own words."""
        project.call("backfill", "toy", *DAYS)
        tomorrow = str(date.today() + timedelta(days=1))

        def why(*command: str) -> str:
            (event,) = project.call(*command).named("run.nothing_due")
            return str(event["why"])

        assert why("score", "toy", "--interval", tomorrow).endswith("Z, and is scored when it has ended")
        assert why("score", "toy", "--interval", "2024-01-31") == ("2024-01-31 is before the job's start, 2024-02-01")
        assert why("score", "toy", "--interval", "2024-02-01").startswith(
            "2024-02-01 is published. To score it again: "
        )
        assert why("backfill", "toy", *DAYS) == "5 complete interval(s) in the window, none of them missing"
        project.edit("jobs/toy.toml", ("start = 2024-02-01", f"start = {tomorrow}"))
        assert why("score", "toy") == f"no interval since the job's start, {tomorrow}, has ended yet"
        project.edit("jobs/toy.toml", (f"start = {tomorrow}", f"start = {date.today() - timedelta(days=1)}"))
        assert project.call("score", "toy").code == 0
        assert why("score", "toy") == "every complete interval of toy is published"

    def test_a_window_before_the_start(self, project: Project) -> None:
        """`plan` and `backfill` say in the same words that the job begins later."""
        window = ("--from", "2024-01-01", "--to", "2024-02-01")
        words = "the window ends before the job's start, 2024-02-01"

        assert project.call("plan", "toy", *window).out == f"nothing to do: {words}\n"
        assert project.call("backfill", "toy", *window).named("run.nothing_due")[0]["why"] == words

    def test_plan_writes_nothing(self, project: Project) -> None:
        """`plan` lists the intervals and leaves no table behind."""
        listed = json.loads(project.call("plan", "toy", *DAYS, "--format", "json").out)

        assert [(row["interval"], row["state"]) for row in listed] == [
            (f"2024-02-0{i}", "missing") for i in range(1, 6)
        ]
        with pytest.raises(Exception, match="batchscore_runs"):
            toy.query(project.url, "SELECT * FROM batchscore_runs")

    def test_only_what_changed(self, project: Project) -> None:
        """`--only changed-input` is for published intervals whose rows are not those that were scored, and no others."""
        window = (*DAYS[:3], "2024-02-05", "--only", "changed-input")

        def plan() -> list[tuple[str, str]]:
            listed = json.loads(project.call("plan", "toy", *window, "--format", "json").out or "[]")
            return [(row["interval"], row["state"]) for row in listed]

        assert project.call("backfill", "toy", *DAYS[:3], "2024-02-04").code == 0
        toy.execute(project.url, "UPDATE toy SET b = b, y = NOT y WHERE id < 3401")
        assert plan() == []
        assert project.call("backfill", "toy", *window).named("run.nothing_due")
        toy.execute(
            project.url, "UPDATE toy SET b = 0.25 WHERE id = 3150", "DELETE FROM toy WHERE id IN (3250, 3350, 3351)"
        )
        toy.execute(project.url, "UPDATE toy SET id = 3350 WHERE id = 3450", "UPDATE toy SET a = 0 WHERE id = 3451")
        before = project.table(("id", "run_id"))

        listed, result = plan(), project.call("backfill", "toy", *window)

        assert listed == [(f"2024-02-0{day}", "changed-input") for day in (1, 2, 3)]
        assert result.code == 0, result.out
        assert [event["rows_read"] for event in result.named("run.published")] == [100, 99, 98]
        after = project.table(("id", "run_id"))
        assert {run_id for _, run_id in before}.isdisjoint({run_id for _, run_id in after})
        assert plan() == []

    def test_looking_for_changes_writes_nothing(self, project: Project) -> None:
        """`plan --only changed-input` reads every published interval and writes nothing."""
        project.call("backfill", "toy", *DAYS[:3], "2024-02-03")
        toy.execute(project.url, "UPDATE toy SET b = 0.25 WHERE id = 3150")
        names = [name for name in toy.tables(project.url) if name.startswith(("batchscore_", "toy_"))]
        before = {name: toy.query(project.url, f"SELECT * FROM {name}") for name in names}

        assert project.call("plan", "toy", "--only", "changed-input").code == 0

        assert [name for name in toy.tables(project.url) if name.startswith(("batchscore_", "toy_"))] == names
        assert {name: toy.query(project.url, f"SELECT * FROM {name}") for name in names} == before

    def test_looking_back(self, project: Project) -> None:
        """`score` scores what is due, then those of the last `lookback` published intervals whose rows have changed."""
        project.call("backfill", "toy", *DAYS)
        project.edit("jobs/toy.toml", ("start = 2024-02-01", "start = 2024-02-01\ncatch_up = 1\nlookback = 2"))
        toy.execute(project.url, "UPDATE toy SET b = 0.25 WHERE id IN (3350, 3550)")

        first, second = project.call("score", "toy"), project.call("score", "toy")

        assert (first.code, second.code) == (0, 0)
        days = [[event["interval_start"][8:10] for event in each.named("run.published")] for each in (first, second)]
        assert days == [["06", "05"], ["07"]]

    def test_looking_back_leaves_another_version_alone(self, project: Project) -> None:
        """The last intervals are the last, whichever version scored them, and what another version scored stays."""
        project.call("backfill", "toy", *DAYS)
        registry = project.root / "var/registry"
        trained = registry.resolve()
        registry.unlink()
        shutil.copytree(trained, registry)
        project.edit("jobs/toy.py", ("max_iter=20", "max_iter=5"))
        assert project.call("train", "toy", "--promote").code == 0
        project.call("score", "toy", "--interval", "2024-02-01", "--force")
        project.edit("jobs/toy.toml", ("start = 2024-02-01", "start = 2024-02-01\ncatch_up = 1\nlookback = 2"))
        toy.execute(project.url, "UPDATE toy SET b = 0.25 WHERE id IN (3150, 3550)")

        result = project.call("score", "toy")

        assert result.code == 0, result.out
        assert [event["interval_start"][8:10] for event in result.named("run.published")] == ["06"]

    def test_a_day_that_cannot_be_looked_back_at(self, project: Project) -> None:
        """A key that came twice into a published day fails that day alone: what is due is scored, and so is what changed."""
        project.call("backfill", "toy", *DAYS)
        before = project.table(("id", "run_id"))
        project.edit("jobs/toy.toml", ("start = 2024-02-01", "start = 2024-02-01\ncatch_up = 1\nlookback = 3"))
        toy.execute(
            project.url, "UPDATE toy SET id = 3350 WHERE id = 3349", "UPDATE toy SET b = 0.25 WHERE id IN (3450, 3550)"
        )

        result = project.call("score", "toy")

        assert result.code == 11
        assert [event["interval_start"][8:10] for event in result.named("run.published")] == ["06", "04", "05"]
        (unread,) = result.named("run.unread")
        assert (unread["run_id"], unread["interval"][1:11]) == (dict(before)[3349], "2024-02-03")
        assert "3350" in unread["error"]
        assert project.table(("id", "run_id"))[200:300] == before[200:300]

    def test_nothing_but_a_day_that_cannot_be_looked_back_at(self, project: Project) -> None:
        """Where nothing is due and nothing else has changed, a published day that cannot be read still gives the code."""
        project.call("backfill", "toy", *DAYS)
        toy.execute(project.url, "UPDATE toy SET id = 3350 WHERE id = 3349")
        window = (*DAYS, "--only", "changed-input")

        result, plan = project.call("backfill", "toy", *window), project.call("plan", "toy", *window)

        assert (result.code, plan.code) == (11, 11)
        assert len(result.named("run.unread")) == 1
        assert not result.named("run.nothing_due")

    def test_changes_are_shown_beside_a_day_that_cannot_be_read(self, project: Project) -> None:
        """`plan --only changed-input` lists what changed and what it could not read, and ends with the code of that."""
        project.call("backfill", "toy", *DAYS)
        toy.execute(project.url, "UPDATE toy SET id = 3350 WHERE id = 3349", "UPDATE toy SET b = 0.25 WHERE id = 3450")

        plan = project.call("plan", "toy", *DAYS, "--only", "changed-input", "--format", "json")

        assert plan.code == 11
        found = [(row["interval"], row["state"]) for row in json.loads(plan.out)]
        assert found == [("2024-02-03", "unread"), ("2024-02-04", "changed-input")]
        events = [json.loads(line) for line in plan.err.splitlines()]
        assert [event["event"] for event in events] == ["run.unread", "command.failed"]

    def test_looking_back_at_a_source_that_stays_gone(self, project: Project) -> None:
        """The first published day spends the patience, and the others are not read; how many is told."""
        project.call("backfill", "toy", *DAYS)
        gone = {"BATCHSCORE_SOURCE_URL": "postgresql://u:canary@127.0.0.1:9/x", "BATCHSCORE_RETRY_SECONDS": "0"}

        result = project.call("backfill", "toy", *DAYS, "--only", "changed-input", **gone)

        assert result.code == 20
        assert len(result.named("run.unread")) == 1
        assert [event["left"] for event in result.named("plan.intervals_left")] == [4]

    def test_not_looking_back(self, project: Project) -> None:
        """Without `lookback` a published interval is left alone, whatever became of its rows."""
        project.call("backfill", "toy", *DAYS)
        project.edit("jobs/toy.toml", ("start = 2024-02-01", "start = 2024-02-01\ncatch_up = 1"))
        toy.execute(project.url, "UPDATE toy SET b = 0.25 WHERE id = 3550")

        result = project.call("score", "toy")

        assert [event["interval_start"][8:10] for event in result.named("run.published")] == ["06"]

    def test_by_force(self, project: Project) -> None:
        """`score --interval --force` scores a published interval again, under another id; nothing else takes force."""
        one = ("score", "toy", "--interval", "2024-02-02")
        assert project.call(*one, "--force").code == 0
        before = project.table(("id", "run_id"))

        idle, forced, without = (
            project.call(*one),
            project.call(*one, "--force"),
            project.call("score", "toy", "--force"),
        )

        assert idle.named("run.nothing_due")
        assert (forced.code, len(forced.named("chunk.committed"))) == (0, 1)
        after = project.table(("id", "run_id"))
        assert [id_ for id_, _ in after] == [id_ for id_, _ in before]
        assert {run_id for _, run_id in before}.isdisjoint({run_id for _, run_id in after})
        assert (without.code, without.error.startswith("--force scores one interval again: name it")) == (2, True)

    def test_a_new_champion_leaves_published_intervals_alone(self, project: Project, tmp_path: Path) -> None:
        """Published by the old version, an interval is stale and stays; `--only stale-model` scores it again."""
        (tmp_path / "var/registry").unlink()
        assert project.call("train", "toy").code == 0
        project.call("backfill", "toy", *DAYS)
        project.edit("jobs/toy.py", ("max_iter=20", "max_iter=5"))
        assert project.call("train", "toy", "--promote").code == 0

        assert project.call("backfill", "toy", *DAYS).named("run.nothing_due")
        plan = json.loads(project.call("plan", "toy", *DAYS, "--only", "stale-model", "--format", "json").out)
        assert len(plan) == 5
        assert {row[4] for row in project.table()} == {1}

        assert project.call("backfill", "toy", *DAYS, "--only", "stale-model").code == 0
        assert {row[4] for row in project.table()} == {2}
        assert [row[0] for row in project.table()] == list(range(3101, 3601))


def _counts(project: Project) -> list[tuple[object, ...]]:
    """Name and counts of the merged profile of the latest published run of the first day, without its sums."""
    sql = """
        SELECT p.role, p.column_name, p.row_count, p.null_count, p.profile
        FROM batchscore_profiles AS p JOIN batchscore_runs AS r ON r.run_id = p.run_id
        WHERE r.status = 'published' AND r.interval_start < '2024-02-02' ORDER BY 1, 2
    """
    return [(*row[:4], json.loads(row[4])["counts"]) for row in toy.query(project.url, sql)]


def _input_of_first_day(project: Project) -> list[tuple[object, ...]]:
    """What the ledger has of the rows that the first day's published run read."""
    return toy.query(
        project.url,
        "SELECT rows_read, predictions, rejects, input_hash FROM batchscore_runs "
        "WHERE status = 'published' AND interval_start < '2024-02-02'",
    )


def _break_off(project: Project, monkeypatch: pytest.MonkeyPatch, *window: str) -> None:
    """Let a backfill in chunks of ten rows end with a bug after its fourth chunk."""
    monkeypatch.setattr(faults, "_spent", False)
    broken = project.call("backfill", "toy", *window, "--chunk-rows", "10", BATCHSCORE_FAULT="after_commit:3:raise")
    assert (broken.code, len(broken.named("chunk.committed"))) == (70, 3)


def _lease(scoring: Scoring, interval: Interval) -> Lease:
    """The interval's lease, in the hands of this process."""
    with scoring.warehouse.begin() as tx:
        return ledger.acquire(tx.connection, scoring.job.name, interval, scoring.owner, seconds=60)


def _two_chunks_in(scoring: Scoring) -> tuple[Run, Lease]:
    """The first day's run, taken up and left after the first two of its chunks of ten rows."""
    scoring = replace(scoring, chunk_rows=10)
    interval = scoring.job.calendar.at("2024-02-01")
    lease = _lease(scoring, interval)
    run, (shard,) = _take_up(scoring, _plan_run(scoring, interval, []), lease, [])
    for number, part in enumerate(_score(scoring, islice(_read(scoring, run, shard), 2), shard.done)):
        _commit(scoring, run, lease, 0, number, part)
    with scoring.warehouse.begin() as tx:
        ledger.release(tx.connection, lease)
    return run, lease


@contextmanager
def _scoring(project: Project, name: str = "toy") -> Iterator[Scoring]:
    """What a command has before it scores its first interval."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        patch.setenv("BATCHSCORE_WAREHOUSE_URL", project.url)
        session = Session.of(load_settings())
        job = session.job(name)
        with session.warehouse() as warehouse:
            bundle = session.bundle(job)
            yield session.scoring(job, bundle, warehouse, None, session.chunk_rows(job, bundle.schema))
