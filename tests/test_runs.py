"""The main job on each database: train, score, backfill, resume, publish."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from itertools import islice
from pathlib import Path

import polars as pl
import pytest
import sqlalchemy as sa
import toy
from toy import Project

from batchscore import ledger
from batchscore.cli.session import Session
from batchscore.errors import IntervalLeased, UsageError, WarehouseError
from batchscore.ledger import Run
from batchscore.run import execute
from batchscore.run.execute import Scoring, _commit, _plan_run, _read, _score, _take_up, score_interval
from batchscore.run.publish import publish
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


@pytest.fixture(params=["duckdb", "sqlite", "postgres"])
def project(request: pytest.FixtureRequest, tmp_path: Path, trained: Project) -> Project:
    """The toy project on each database, with the bundle that was trained on DuckDB."""
    match request.param:
        case "postgres":
            url = request.getfixturevalue("postgres_url")
        case name:
            url = f"{name}:///{tmp_path}/warehouse.{name}"
    (tmp_path / "var").mkdir()
    (tmp_path / "var/registry").symlink_to(trained.root / "var/registry")
    project = Project.at(tmp_path, url)
    toy.load(url, toy.rows())
    return project


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
        _slow_down(project)

        process = project.start(*command, SLOW="1", BATCHSCORE_REGISTRY_URL="slow")
        committed = _wait_for_chunks(process, 3)
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
        """A process paused in mid-run, whose run another has taken up and published, stops and writes nothing."""
        if project.url.startswith("duckdb"):
            pytest.skip("DuckDB admits one process to a file: the second cannot open it")
        command = ("backfill", "toy", "--from", "2024-02-02", "--to", "2024-02-03", "--chunk-rows", "10")
        _slow_down(project)
        first = project.start(*command, SLOW="1", BATCHSCORE_REGISTRY_URL="slow")
        _wait_for_chunks(first, 2)
        first.send_signal(signal.SIGSTOP)
        try:
            second = project.call(*command, BATCHSCORE_REGISTRY_URL="slow")
        finally:
            first.send_signal(signal.SIGCONT)
        out, _ = first.communicate(timeout=60)

        if second.code == 20:
            pytest.fail(f"the paused process held a lock: {second.out}")
        assert second.code == 0, second.out
        assert first.returncode == 21, out
        assert [row[0] for row in project.table()] == list(range(3201, 3301))

    def test_waking_before_the_first_chunk_harms_nobody(self, project: Project) -> None:
        """A process paused before it made its stage, and overtaken, leaves the stage of the other as it is."""
        with _scoring(project) as scoring:
            interval = scoring.job.calendar.at("2024-02-02")
            planned = _plan_run(scoring, interval, [])
            with scoring.warehouse.begin() as tx:
                first = ledger.begin(tx.connection, planned, "0")
            with scoring.warehouse.begin() as tx:
                second = ledger.begin(tx.connection, planned, "0")
            _take_up(scoring, second)
            rows = pl.DataFrame({"id": [1], "day": [interval.start.date()], "prediction": [True], "score": [0.5]})
            with scoring.warehouse.begin() as tx:
                tx.stage(scoring.output, second.stage, scoring.casts, rows)

            with pytest.raises(IntervalLeased):
                _take_up(scoring, first)

            with scoring.warehouse.begin() as tx:
                assert tx.staged(scoring.output, second.stage) == 1

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
            run = _two_chunks_in(scoring)
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
            run = _two_chunks_in(scoring)
            toy_rows = f"DELETE FROM {run.stage} WHERE id = 3101"
            with scoring.warehouse.begin() as tx:
                tx.connection.execute(sa.text(toy_rows))

            with pytest.raises(WarehouseError, match=f"{run.stage} or batchscore_rejects does not hold"):
                publish(scoring.warehouse, scoring.output, run, scoring.bundle, reject_limit=1.0, begun=0.0)

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

    def test_drift_that_nobody_lived_to_record_is_recorded_by_the_next(self, project: Project) -> None:
        """A process that died between publishing and comparing leaves the comparing to the next command."""
        project.call("backfill", "toy", *DAYS)
        drift = "SELECT run_id, role, column_name, metric, value, verdict FROM batchscore_drift ORDER BY 1, 2, 3, 4"
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

        process = project.start("train", "toy")
        assert process.stdout
        assert "reading rows" in process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(how)
        out, _ = process.communicate(timeout=20)

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
        assert not mended.named("run.resumed")
        assert project.table() == before

    def test_mended_rows_are_all_read_again(self, project: Project) -> None:
        """A run that its rows have stopped starts from nothing: mending may have touched rows it had read."""
        toy.execute(project.url, "UPDATE toy SET id = 3150 WHERE id = 3151")
        day = (*DAYS[:3], "2024-02-02", "--chunk-rows", "10")

        stopped = project.call("backfill", "toy", *day)
        toy.execute(project.url, "DELETE FROM toy WHERE id IN (3101, 3150)")
        mended = project.call("backfill", "toy", *day)

        assert stopped.code == 11
        assert "3150" in stopped.error
        assert mended.code == 0, mended.out
        assert not mended.named("run.resumed")
        assert mended.named("run.published")[0]["rows_read"] == 97

    @pytest.mark.parametrize("chunk_rows", ["1", "10", "100"])
    def test_failing_rows_are_counted_over_the_run(
        self, project: Project, chunk_rows: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """How many rows may fail before bisecting is given up does not depend on the size of a chunk."""
        monkeypatch.setattr(execute, "MOST_FAILURES", 3)
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

    def test_another_output_table_is_another_history(self, project: Project) -> None:
        """A job that names another output table is due from its start, and what it published before stays published."""
        project.call("backfill", "toy", *DAYS)
        project.edit("jobs/toy.toml", ('table = "toy_predictions"', 'table = "elsewhere"'))

        moved = project.call("backfill", "toy", *DAYS)

        assert len(moved.named("run.published")) == 5
        assert len(project.table()) == 500
        statuses = toy.query(project.url, "SELECT DISTINCT status FROM batchscore_runs")
        assert statuses == [("published",)]

    def test_an_interval_is_scored_when_it_has_ended(self, project: Project) -> None:
        """Tomorrow is not due: nothing is scored, and that is no error."""
        tomorrow = str(date.today() + timedelta(days=1))

        result = project.call("score", "toy", "--interval", tomorrow)

        assert result.code == 0
        assert result.named("run.nothing_due")

    def test_plan_writes_nothing(self, project: Project) -> None:
        """`plan` lists the intervals and leaves no table behind."""
        listed = json.loads(project.call("plan", "toy", *DAYS, "--format", "json").out)

        assert [(row["interval"], row["state"]) for row in listed] == [
            (f"2024-02-0{i}", "missing") for i in range(1, 6)
        ]
        with pytest.raises(Exception, match="batchscore_runs"):
            toy.query(project.url, "SELECT * FROM batchscore_runs")

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


def _two_chunks_in(scoring: Scoring) -> Run:
    """The first day's run, taken up and left after the first two of its chunks of ten rows."""
    scoring = replace(scoring, chunk_rows=10)
    interval = scoring.job.calendar.at("2024-02-01")
    with scoring.warehouse.begin() as tx:
        run = ledger.begin(tx.connection, _plan_run(scoring, interval, []), "0")
    done = _take_up(scoring, run)
    for number, (chunk, result) in enumerate(_score(scoring, islice(_read(scoring, run, done.key_high), 2), 0)):
        _commit(scoring, run, number, chunk, result)
    return run


@contextmanager
def _scoring(project: Project, name: str = "toy") -> Iterator[Scoring]:
    """What a command has before it scores its first interval."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        patch.setenv("BATCHSCORE_WAREHOUSE_URL", project.url)
        session = Session.of(load_settings())
        job = session.job(name)
        with session.warehouse() as warehouse:
            yield session.scoring(job, session.bundle(job), warehouse, None, None)


def _slow_down(project: Project) -> None:
    """Train, into the registry `slow`, a bundle that takes its time: features that sleep for every chunk."""
    original = (project.root / "jobs/toy.py").read_text()
    slow = original.replace(
        "def features(rows):\n",
        "def features(rows):\n    import time\n    time.sleep(0.15 if os.environ.get('SLOW') else 0)\n",
    ).replace("import polars as pl\n", "import os\nimport polars as pl\n", 1)
    (project.root / "jobs/toy.py").write_text(slow)
    result = project.call("train", "toy", BATCHSCORE_REGISTRY_URL="slow")
    assert result.code == 0, result.out
    (project.root / "jobs/toy.py").write_text(original)


def _wait_for_chunks(process: object, count: int) -> int:
    """Read the process's log until so many chunks are committed."""
    seen = 0
    deadline = time.monotonic() + 60
    while seen < count and time.monotonic() < deadline:
        line = process.stdout.readline()  # type: ignore[attr-defined]
        assert line, "the process ended before it was interrupted"
        seen += json.loads(line)["event"] == "chunk.committed"
    return seen
