"""`check` tells beforehand what would stop a run, with the run's exit code, and leaves everything as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import toy
from toy import Project

from batchscore.warehouse import open_warehouse

DAY = ("--from", "2024-02-01", "--to", "2024-02-02")


def checked(project: Project, *options: str, **environment: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit code, and status and detail of each check."""
    result = project.call("check", "toy", "--format", "json", *options, **environment)
    return result.code, {row["check"]: (row["status"], row["detail"]) for row in json.loads(result.out)}


def failed(rows: dict[str, tuple[str, str]]) -> dict[str, str]:
    """The detail of what failed."""
    return {name: detail for name, (status, detail) in rows.items() if status == "failed"}


def files(root: Path) -> dict[Path, bytes]:
    """Every file below a folder, with its bytes."""
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


class Evening(datetime):
    """A clock that stands in the evening of a day in February, when the day itself is not over yet."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Evening:
        return cls(2024, 2, 4, 20, tzinfo=tz)


class TestAsARun:
    """The exit code of `check` is that of the run."""

    def test_all_is_well(self, project: Project) -> None:
        """Every check of a job that can run is ok, before and after its first run."""
        before = checked(project)
        assert project.call("backfill", "toy", *DAY).code == 0
        after = checked(project)

        for code, rows in (before, after):
            assert (code, failed(rows)) == (0, {})
            assert {"job", "bundle", "query", "source", "warehouse", "output", "features", "labels"} <= rows.keys()
        assert before[1]["output"][1] == "toy_predictions: not there yet; the first run creates it"
        assert after[1]["output"][1] == "toy_predictions: there, and its columns take the predictions"

    @pytest.mark.parametrize(
        ("spoil", "row", "words"),
        [
            (lambda p: p.edit("sql/toy/rows.sql", ("b, c", "b + 1 AS b, c")), "query", "+SELECT"),
            (lambda p: p.edit("sql/toy/rows.sql", ("b, c", "b")), "query", "-SELECT"),
            (lambda p: p.edit("jobs/toy.toml", ('carry = ["day"]', 'carry = ["dya"]')), "output", "Did you mean day"),
            (lambda p: p.edit("jobs/toy.toml", ('key = ["id"]', 'key = ["ts"]')), "output", "Retrain"),
            (lambda p: toy.execute(p.url, "ALTER TABLE toy ALTER a TYPE VARCHAR USING 'n' || a"), "source", "column a"),
            (lambda p: toy.execute(p.url, "CREATE TABLE toy_predictions (id BIGINT)"), "output", "score: want float"),
        ],
    )
    def test_the_same_code_as_the_run(
        self, project: Project, spoil: Callable[[Project], None], row: str, words: str
    ) -> None:
        """What stops a run fails a check of that name, with the run's exit code and what is wrong."""
        spoil(project)

        code, rows = checked(project)

        assert words in failed(rows)[row]
        assert code == project.call("backfill", "toy", *DAY).code != 0

    def test_an_accepted_query(self, project: Project) -> None:
        """With the reason that the run would be given, a changed query is no failure."""
        project.edit("sql/toy/rows.sql", ("FROM toy", "FROM toy /* renamed */"))

        code, rows = checked(project, "--accept-sql", "a comment only")

        assert code == 0
        assert rows["query"][0] == "accepted"
        assert rows["query"][1].startswith("a comment only\n")
        assert checked(project, "--accept-sql", "x")[1]["bundle"][0] == "ok"

    def test_the_table_of_another_job(self, project: Project) -> None:
        """A table that another job has published into exits with 2, as the run does."""
        assert project.call("backfill", "toy", *DAY).code == 0
        toy.execute(project.url, "UPDATE batchscore_runs SET job = 'other'")

        code, rows = checked(project)

        assert failed(rows).keys() == {"output"}
        assert "job other has published into toy_predictions" in rows["output"][1]
        assert code == 2 == project.call("backfill", "toy", *DAY).code

    @pytest.mark.parametrize("due", [True, False])
    def test_a_lake_that_keeps_no_old_days(self, project: Project, tmp_path: Path, due: bool) -> None:
        """Rows are read of the first interval that is due, or of the last one: those that are done may be gone."""
        for (day,), rows in toy.rows().drop("y").group_by("day"):
            rows.write_parquet(tmp_path / f"{day}.parquet")
        path = f"{tmp_path}/{{interval_start:%Y-%m-%d}}.parquet"
        project.edit("jobs/toy.toml", ('sql = "toy/rows.sql"', f'parquet = "{path}"'))
        accepted = ("--accept-sql", "exported")
        days = ("--from", "2024-02-01", "--to", "2024-02-04")
        assert project.call("backfill", "toy", *days, *accepted).code == 0
        for number in (1, 2):
            (tmp_path / f"2024-02-0{number}.parquet").unlink()
        with pytest.MonkeyPatch.context() as patch:
            if not due:
                patch.setattr("batchscore.cli.session.datetime", Evening)
            code, rows = checked(project, *accepted)
            run = project.call("score", "toy", "--interval", "2024-02-04", *accepted)

        assert (code, failed(rows)) == (0, {})
        assert f"100 rows of 2024-02-0{4 if due else 3} read" in rows["source"][1]
        assert run.code == 0

    def test_the_first_failure_gives_the_code(self, project: Project) -> None:
        """Of several faults the one that the run would meet first decides; what only training needs comes last."""
        project.edit("sql/toy/rows.sql", ("b, c", "b + 1 AS b, c"))
        toy.execute(project.url, "CREATE TABLE toy_predictions (id BIGINT)")
        (project.root / "sql/toy/labels.sql").write_text("SELEC")

        code, rows = checked(project)

        assert failed(rows).keys() == {"query", "output", "labels"}
        assert code == 10
        shutil.rmtree(project.root / "var/registry")
        assert checked(project)[1]["bundle"][1].endswith("holds no model 'toy'. Train it: batchscore train toy.")

    @pytest.mark.parametrize(("opening", "rows"), [(2, {"output", "plan"}), (3, {"plan"})])
    def test_a_warehouse_that_goes_away(self, project: Project, opening: int, rows: set[str]) -> None:
        """What can no longer be looked at has failed, and all that was found and the rest are told."""
        file, opened = project.root / "w.sqlite", []
        elsewhere = {
            "BATCHSCORE_SOURCE_URL": project.url,
            "BATCHSCORE_WAREHOUSE_URL": f"sqlite:///{file}",
            "BATCHSCORE_RETRY_SECONDS": "0",
        }
        assert project.call("backfill", "toy", *DAY, **elsewhere).code == 0

        def leaving(*args: Any, **options: Any) -> Any:
            opened.append(args)
            if len(opened) == opening:
                file.write_bytes(b"no database" * 100)
            return open_warehouse(*args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("batchscore.cli.session.open_warehouse", leaving)
            code, found = checked(project, **elsewhere)

        assert failed(found).keys() == rows
        assert code == 12
        assert found["warehouse"][0] == found["source"][0] == found["labels"][0] == "ok"


class TestPostgres:
    """What a role may not do."""

    def guarded(self, url: str) -> str:
        """The URL of the role `guarded`."""
        return sa.make_url(url).set(username="guarded", password="right").render_as_string(hide_password=False)

    def test_no_right_to_create(self, project: Project, postgres_url: str) -> None:
        """A role that may not create tables exits with 12, as its run does."""
        toy.load(postgres_url, toy.rows())
        toy.execute(postgres_url, "GRANT SELECT ON toy TO guarded")
        url = self.guarded(postgres_url)

        code, rows = checked(project, BATCHSCORE_WAREHOUSE_URL=url)

        assert failed(rows).keys() == {"warehouse"}
        assert "CREATE on the schema" in rows["warehouse"][1]
        assert code == 12 == project.call("backfill", "toy", *DAY, BATCHSCORE_WAREHOUSE_URL=url).code

    @pytest.mark.parametrize("privilege", ["SELECT", "INSERT", "UPDATE", "DELETE"])
    def test_a_ledger_that_is_another_s(self, project: Project, postgres_url: str, privilege: str) -> None:
        """A ledger that somebody else made must be granted whole: each privilege on each of its tables."""
        toy.load(postgres_url, toy.rows())
        assert project.call("backfill", "toy", *DAY, BATCHSCORE_WAREHOUSE_URL=postgres_url).code == 0
        toy.execute(postgres_url, "GRANT ALL ON SCHEMA public TO guarded")
        toy.execute(postgres_url, "GRANT ALL ON ALL TABLES IN SCHEMA public TO guarded")
        url = self.guarded(postgres_url)
        assert checked(project, BATCHSCORE_WAREHOUSE_URL=url)[0] == 0
        toy.execute(postgres_url, f"REVOKE {privilege} ON batchscore_chunks FROM guarded")

        code, rows = checked(project, BATCHSCORE_WAREHOUSE_URL=url)

        assert code == 12
        assert "SELECT, INSERT, UPDATE and DELETE on every batchscore_ table." in failed(rows)["warehouse"]


class TestTraining:
    """What only `train` needs."""

    def test_features_that_differ(self, project: Project) -> None:
        """A features file that is not the bundle's is told and stops nothing: the bundle's own ones run."""
        (project.root / "jobs/toy.py").write_text(toy.FEATURES + "\n# later\n")

        code, rows = checked(project)

        assert rows["features"][0] == "differs"
        assert "Runs use the bundle's own" in rows["features"][1]
        assert code == 0

    @pytest.mark.parametrize(
        ("query", "code", "words"),
        [
            ("SELEC id", 2, "SELEC"),
            ("SELECT id, y FROM toy; SELECT 1", 2, "second statement"),
            ("SELECT id, y FROM nowhere", 12, "nowhere"),
            ("SELECT y FROM toy", 11, "has no column id"),
            ("SELECT id, a FROM toy", 11, "has no column y"),
        ],
    )
    def test_labels_that_cannot_be_joined(self, project: Project, query: str, code: int, words: str) -> None:
        """Labels that are no query, or lack the key or the target, fail with the code that `train` would give."""
        (project.root / "sql/toy/labels.sql").write_text(query)

        found, rows = checked(project)

        assert failed(rows).keys() == {"labels"}
        assert words in rows["labels"][1]
        assert found == code == project.call("train", "toy").code

    def test_a_split_by_no_column(self, project: Project) -> None:
        """A column to split by that the rows do not have fails as `train` would, and the job can score all the same."""
        project.edit("jobs/toy.toml", ('by = "time", column = "ts"', 'by = "time", column = "tss"'))

        code, rows = checked(project)

        assert failed(rows).keys() == {"training"}
        assert "Did you mean ts?" in rows["training"][1]
        assert code == 11 == project.call("train", "toy").code

    def test_a_split_by_text(self, project: Project) -> None:
        """A column of text to split by time fails as `train` would, with what it is and how it becomes a time."""
        project.edit("jobs/toy.toml", ('by = "time", column = "ts"', 'by = "time", column = "c"'))

        code, rows = checked(project)

        assert failed(rows).keys() == {"training"}
        assert "split: column 'c' is string, and must be a date or timestamp. Cast it" in rows["training"][1]
        assert code == 11 == project.call("train", "toy").code

    def test_a_job_without_labels(self, project: Project) -> None:
        """A job that only scores has no labels, and nothing is wrong with that."""
        text = (project.root / "jobs/toy.toml").read_text()
        head, _, rest = text.partition("[labels]")
        (project.root / "jobs/toy.toml").write_text(head + "[model]" + rest.partition("[model]")[2])

        code, rows = checked(project)

        assert code == 0
        assert "cannot be trained" in rows["labels"][1]


class TestTouchesNothing:
    @pytest.mark.parametrize("scheme", ["duckdb", "sqlite"])
    def test_of_what_is_there(self, project: Project, scheme: str) -> None:
        """No table, no file and no byte changes, before the first run and after it."""
        there = {"BATCHSCORE_SOURCE_URL": project.url, "BATCHSCORE_WAREHOUSE_URL": f"{scheme}:///{project.root}/w"}
        for _ in range(2):
            before = files(project.root)
            assert checked(project, **there)[0] == 0
            assert files(project.root) == before
            assert project.call("backfill", "toy", *DAY, **there).code == 0

    @pytest.mark.parametrize("scheme", ["duckdb", "sqlite"])
    def test_of_a_warehouse_that_is_not_there(self, project: Project, scheme: str) -> None:
        """The warehouse's file and folder are left for the first run to make."""
        code, rows = checked(
            project,
            BATCHSCORE_SOURCE_URL=project.url,
            BATCHSCORE_WAREHOUSE_URL=f"{scheme}:///{project.root}/new/warehouse",
        )

        assert (code, failed(rows)) == (0, {})
        assert not (project.root / "new").exists()


class TestAlerts:
    """Whoever would be told, and cannot be, is found before the night in which it matters; it stops no run."""

    def row(self, project: Project, **environment: str) -> tuple[str, str]:
        """What is told of the alerts, of a job that is well otherwise."""
        code, rows = checked(project, **environment)
        assert code == 0
        return rows["alerts"]

    def test_nobody(self, project: Project) -> None:
        """Without a command and a webhook it is said that the log alone is told, and what would have to be set."""
        status, detail = self.row(project)

        assert status == "none"
        assert "BATCHSCORE_ALERT_WEBHOOK_URL is not set, and [alerts] has no command" in detail

    def test_a_webhook(self, project: Project) -> None:
        """A webhook that is set is told, and its URL is not."""
        status, detail = self.row(project, BATCHSCORE_ALERT_WEBHOOK_URL="https://hooks.example/s3cret")

        assert (status, detail) == ("ok", "told are the log, the webhook")

    @pytest.mark.parametrize(
        ("command", "status", "words"),
        [
            ("sh", "ok", "told are the log, the command sh; no webhook: BATCHSCORE_ALERT_WEBHOOK_URL is not set"),
            ("no-such-program", "off", "no-such-program is not there, in no folder of PATH; the log alone is told"),
            ("./gone.sh", "off", "./gone.sh is not there; the log alone is told"),
            ("./plain.sh", "off", "./plain.sh may not be executed by this user"),
            ("./jobs", "off", "./jobs may not be executed"),
        ],
    )
    def test_a_command(self, project: Project, command: str, status: str, words: str) -> None:
        """A command that can be run is told; one that is not there, or no program, is off, and why."""
        (project.root / "plain.sh").write_text("#!/bin/sh\n")
        project.edit("jobs/toy.toml", ("[output]", f'[alerts]\ncommand = ["{command}"]\n\n[output]'))

        told, detail = self.row(project)

        assert told == status
        assert words in detail
