"""What a person or a CronJob meets: exit codes, messages, output, for good input and bad."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa
import toy
from toy import Project

import batchscore
from batchscore.model.registry import Registry

DAY = ("--from", "2024-02-01", "--to", "2024-02-02")
HEAVY = {"sqlalchemy", "duckdb", "polars", "numpy", "pyarrow", "scipy", "sklearn", "structlog", "rich"}


def sql(statement: str) -> Callable[[Project], None]:
    """Spoil the data."""
    return lambda project: toy.execute(project.url, statement)


def edit(file: str, old: str, new: str) -> Callable[[Project], None]:
    """Spoil a file."""
    return lambda project: project.edit(file, (old, new))


def change_query(new: str) -> Callable[[Project], None]:
    """Another query, and a bundle that was trained with it, so that the query alone is at fault."""

    def spoil(project: Project) -> None:
        (project.root / "sql/toy/rows.sql").write_text(new)

    return spoil


def column_as(type_: str, using: str) -> Callable[[Project], None]:
    """Give column a another type."""
    return sql(f"ALTER TABLE toy ALTER a TYPE {type_} USING {using}")


BAD_RUNS: dict[str, tuple[Callable[[Project], None], int, str]] = {
    "a key twice": (sql("INSERT INTO toy SELECT * FROM toy WHERE id = 3150"), 11, r"id.*3150"),
    "a key that is NULL": (sql("UPDATE toy SET id = NULL WHERE id = 3150"), 11, r"id.*NULL"),
    "a missing column": (sql("ALTER TABLE toy RENAME a TO aa"), 12, r"\"a\""),
    "text where numbers were": (column_as("VARCHAR", "'n' || a"), 11, r"column a: want float, got string"),
    "a wrong type": (column_as("DATE", "DATE '2024-01-01'"), 11, r"column a: want float, got date"),
    "NULL everywhere": (sql("UPDATE toy SET a = NULL"), 11, r"100 of 100 rows.*unexpected_null \(column a\)"),
    "infinity everywhere": (sql("UPDATE toy SET a = 'inf'"), 11, r"unexpected_infinity \(column a\)"),
    "no such table": (sql("DROP TABLE toy"), 12, r"toy/rows\.sql.*toy does not exist"),
    "an unknown alias": (edit("jobs/toy.toml", 'name = "toy"\n\n[output]', 'name = "toy"\nuse = "best"\n\n[output]'), 10, r"no alias 'best'.*champion = 1"),
    "an unknown model": (edit("jobs/toy.toml", 'name = "toy"\n\n[output]', 'name = "tyo"\n\n[output]'), 10, r"no model 'tyo'.*Did you mean toy"),
    "an unknown key": (edit("jobs/toy.toml", "carry =", "cary ="), 2, r"output\.cary: unknown key\. Did you mean carry\?"),
    "another query": (edit("sql/toy/rows.sql", "b, c", "b + 1 AS b, c"), 10, r"(?s)not what toy version 1.*-SELECT.*\+SELECT.*--accept-sql"),
    "another key": (edit("jobs/toy.toml", 'key = ["id"]', 'key = ["ts"]'), 10, r"key \['ts'\].*trained with \['id'\]"),
    "a carried column of nowhere": (edit("jobs/toy.toml", 'carry = ["day"]', 'carry = ["dya"]'), 2, r"carry of job toy names 'dya'.*Did you mean day\?"),
    "a table of another job": (
        lambda project: toy.execute(
            project.url,
            *(str(sa.schema.CreateTable(table)) for table in _ledger()),
            "INSERT INTO batchscore_runs (run_id, job, interval_start, interval_end, model_name, model_version, "
            "bundle_digest, revision, status, output_table, scored_at, published_at, batchscore_version) VALUES "
            "('x', 'other', now(), now(), 'm', 1, 'd', 0, 'published', 'main.toy_predictions', now(), now(), '0')",
        ),
        2,
        r"job other has published into toy_predictions",
    ),
    "an output table that does not fit": (
        sql("CREATE TABLE toy_predictions (id BIGINT, day DATE, prediction BOOLEAN, score BIGINT, model_name VARCHAR, "
            "model_version BIGINT, interval_start TIMESTAMPTZ, scored_at TIMESTAMPTZ, run_id VARCHAR)"),
        12,
        r"score: want float \(DOUBLE\), got BIGINT",
    ),
    "a warehouse that is no database": (lambda project: (project.root / "warehouse.duckdb").write_text("x" * 9999), 12, r"not a valid DuckDB"),
}  # fmt: skip


def _ledger() -> list[sa.Table]:
    from batchscore import ledger

    return [ledger.RUNS]


class TestBadInput:
    @pytest.mark.parametrize("case", BAD_RUNS)
    def test_a_run_stops_with_a_clear_error(self, project: Project, case: str) -> None:
        """Each fault gives its exit code and a message that names it, no traceback, and publishes nothing."""
        spoil, code, pattern = BAD_RUNS[case]
        spoil(project)

        result = project.call("backfill", "toy", *DAY)

        assert result.code == code, result.out
        assert re.search(pattern, result.error), result.error
        assert "Traceback" not in result.out
        assert not result.named("run.published")

    @pytest.mark.parametrize(
        ("query", "pattern"),
        [
            ("SELECT 1 AS id; SELECT 2 AS id", r"second statement"),
            ("DELETE FROM toy", r"SELECT"),
            ("SELECT id, ts, day, a, b, c FROM toy WHERE ts >= :interval_strat AND ts < :interval_end", r"interval_strat.*interval_start"),
            ("SELECT id, ts, day, a, b, c FROM toy", r"interval_start"),
            ("SELEC id FROM toy WHERE ts >= :interval_start AND ts < :interval_end", r"SELEC"),
            ("", r"holds no SQL"),
        ],
    )  # fmt: skip
    def test_a_query_is_refused(self, project: Project, query: str, pattern: str) -> None:
        """A query that is not one read-only statement over the interval is a usage error that says why."""
        (project.root / "sql/toy/rows.sql").write_text(query)

        result = project.call("train", "toy")

        assert result.code == 2, result.out
        assert re.search(pattern, result.error), result.error

    def test_rows_survive_a_failed_run(self, project: Project) -> None:
        """What was published before stays when a later run of the interval fails."""
        project.call("backfill", "toy", *DAY)
        before = project.table()
        toy.execute(project.url, "UPDATE toy SET a = NULL")

        assert project.call("backfill", "toy", *DAY, "--only", "all").code == 11
        assert project.table() == before

    def test_a_failed_interval_does_not_stop_the_others(self, project: Project) -> None:
        """A backfill goes on past a failure and ends with its exit code; the rest is published."""
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE day = '2024-02-02'")

        result = project.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-04")

        assert result.code == 11
        assert [event["interval_start"][:10] for event in result.named("run.published")] == ["2024-02-01", "2024-02-03"]
        failed = json.loads(project.call("plan", "toy", "--only", "failed", "--format", "json").out)
        assert [row["interval"] for row in failed] == ["2024-02-02"]
        assert "unexpected_null" in failed[0]["why"]

    def test_an_accepted_query_runs_and_the_ledger_keeps_why(self, project: Project) -> None:
        """`--accept-sql` runs a query that is not the bundle's, and `runs show` tells the reason."""
        project.edit("sql/toy/rows.sql", ("FROM toy", "FROM toy /* renamed */"))

        result = project.call("backfill", "toy", *DAY, "--accept-sql", "a comment only")

        assert result.code == 0, result.out
        run = result.named("run.published")[0]["run_id"]
        shown = json.loads(project.call("runs", "show", run, "--format", "json").out)
        assert shown["run"]["sql_accepted"] == "a comment only"

    def test_a_query_that_nobody_accepted_never_runs(self, project: Project, postgres_url: str) -> None:
        """Not even to be ahead of the model: it is refused before a row is read."""
        toy.load(postgres_url, toy.rows())
        project.edit("sql/toy/rows.sql", ("FROM toy", "FROM toy /* renamed */"))

        def scans() -> int:
            # A session's counts are there a moment after it has ended.
            time.sleep(0.5)
            counts = "SELECT seq_scan + coalesce(idx_scan, 0) FROM pg_stat_user_tables WHERE relname = 'toy'"
            return int(toy.query(postgres_url, counts)[0][0])

        before = scans()
        refused = project.run("backfill", "toy", *DAY, BATCHSCORE_SOURCE_URL=postgres_url)
        between = scans()
        accepted = project.run("backfill", "toy", *DAY, "--accept-sql", "a comment", BATCHSCORE_SOURCE_URL=postgres_url)

        assert (refused.code, accepted.code) == (10, 0)
        assert before == between < scans()

    def test_an_accepted_query_wants_a_reason(self, project: Project) -> None:
        """An empty reason is none."""
        project.edit("sql/toy/rows.sql", ("FROM toy", "FROM toy /* renamed */"))

        result = project.call("backfill", "toy", *DAY, "--accept-sql", " ")

        assert result.code == 2
        assert "wants a reason" in result.error

    def test_other_parameters_are_another_query(self, project: Project) -> None:
        """A changed value of a query's own parameter is told like changed SQL, and makes other runs."""
        clause = "ts >= :interval_start AND ts < :interval_end"
        project.edit("sql/toy/rows.sql", (clause, f"{clause} AND a >= :least"))
        project.edit("jobs/toy.toml", ('sql = "toy/rows.sql"', 'sql = "toy/rows.sql"\nparameters = { least = 0 }'))
        trained = project.call("train", "toy", "--promote", BATCHSCORE_REGISTRY_URL="own")
        assert trained.code == 0, trained.out
        first = project.call("backfill", "toy", *DAY, BATCHSCORE_REGISTRY_URL="own")
        project.edit("jobs/toy.toml", ("least = 0", "least = 1"))

        refused = project.call("backfill", "toy", *DAY, "--only", "all", BATCHSCORE_REGISTRY_URL="own")
        accepted = project.call(
            "backfill", "toy", *DAY, "--only", "all", "--accept-sql", "less", BATCHSCORE_REGISTRY_URL="own"
        )

        assert refused.code == 10
        assert re.search(r"-- parameter least = 0\n.*\+-- parameter least = 1", refused.error)
        assert accepted.code == 0, accepted.out
        run, other = (result.named("run.published")[0] for result in (first, accepted))
        assert run["run_id"] != other["run_id"]
        assert run["predictions"] > other["predictions"] > 0

    def test_golden_rows_that_differ_stop_everything(self, project: Project) -> None:
        """A sound bundle that gives other predictions here than at training exits 10, and the warehouse stays as it was."""
        registry = Registry.at(str(project.root / "var/registry"))
        bundle = registry.load("toy", 1)
        moved = bundle.golden_predictions.with_columns(pl.col("score") * (1 + 1e-8))
        registry.register(replace(bundle, golden_predictions=moved))
        project.call("models", "promote", "toy", "2")
        before = toy.tables(project.url)

        result = project.call("backfill", "toy", *DAY)

        assert result.code == 10
        assert "golden rows have another score here than at training" in result.error
        assert toy.tables(project.url) == before

    def test_other_libraries_are_told(self, project: Project) -> None:
        """A bundle made with another numpy runs, for its golden rows agree, and a warning names both versions."""
        registry = Registry.at(str(project.root / "var/registry"))
        bundle = registry.load("toy", 1)
        libraries = bundle.manifest.libraries | {"numpy": "1.0.0"}
        registry.register(replace(bundle, manifest=bundle.manifest.model_copy(update={"libraries": libraries})))
        project.call("models", "promote", "toy", "2")

        result = project.call("backfill", "toy", *DAY)

        assert result.code == 0, result.out
        (told,) = result.named("bundle.libraries")
        assert told["level"] == "warning"
        assert told["libraries"] == {"numpy": ["1.0.0", np.__version__]}

    @pytest.mark.parametrize("name", ["TOY_predictions", "main.toy_predictions"])
    def test_a_table_of_another_job_under_another_name(self, project: Project, name: str) -> None:
        """Neither case nor a schema that goes without saying lets two jobs share a table."""
        assert project.call("backfill", "toy", *DAY).code == 0
        for file in ("toml", "py"):
            text = (project.root / f"jobs/toy.{file}").read_text()
            (project.root / f"jobs/second.{file}").write_text(
                text.replace('[job]\nname = "toy"', '[job]\nname = "second"').replace("toy_predictions", name)
            )

        result = project.call("backfill", "second", *DAY)

        assert result.code == 2
        assert f"job toy has published into {name}" in result.error

    def test_a_tampered_bundle_is_refused(self, project: Project) -> None:
        """One changed byte anywhere in a bundle exits 10, before the warehouse is touched."""
        path = project.root / "var/registry/toy/1/pipeline.joblib"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

        for command in (("backfill", "toy", *DAY), ("models", "verify", "toy")):
            result = project.call(*command)
            assert result.code == 10, result.out
            assert "pipeline.joblib was changed" in result.error

    def test_a_bug_is_told_as_one(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """An exception that nobody foresaw gives a traceback and exit code 70."""
        import batchscore.cli.runs

        def broken(*_: object) -> None:
            raise ZeroDivisionError("division by zero")

        monkeypatch.setattr(batchscore.cli.runs, "list_", broken)

        result = project.call("runs", "list")

        assert result.code == 70
        assert result.out == ""
        event = json.loads(result.err)
        assert event["error_type"] == "ZeroDivisionError"
        assert event["exception"][0]["frames"]

    def test_usage_errors_exit_with_2(self, project: Project) -> None:
        """An unknown command, option or job exits with 2."""
        assert project.call("scoer").code == 2
        assert project.call("score", "toy", "--nope").code == 2
        unknown = project.call("score", "tyo")
        assert unknown.code == 2
        assert "Did you mean toy?" in unknown.error

    def test_no_warehouse(self, project: Project) -> None:
        """Without a warehouse the message says which variable to set."""
        result = project.call("score", "toy", BATCHSCORE_WAREHOUSE_URL="nonsense")
        assert result.code == 2
        assert "nonsense" not in result.out


class TestPostgresRefusals:
    def test_a_wrong_password(self, project: Project, postgres_url: str) -> None:
        """A refused login exits 12 and never prints the password."""
        url = sa.make_url(postgres_url).set(username="guarded", password="WRONG%canary")

        result = project.call("score", "toy", BATCHSCORE_WAREHOUSE_URL=url.render_as_string(hide_password=False))

        assert result.code == 12, result.out
        assert "authentication failed" in result.error
        assert "canary" not in result.out

    def test_nobody_listens(self, project: Project) -> None:
        """A server that does not answer is asked again for a while, and then it exits 20: it may answer later."""
        elsewhere = {"BATCHSCORE_WAREHOUSE_URL": "postgresql://u:canary@127.0.0.1:9/x", "BATCHSCORE_RETRY_SECONDS": "1"}
        result = project.call("score", "toy", **elsewhere)

        assert result.code == 20, result.out
        assert result.named("attempt.failed")
        assert "canary" not in result.out

    def test_a_role_that_may_not_write(self, project: Project, postgres_url: str) -> None:
        """A role without CREATE exits 12, says so, and `check` says it before."""
        toy.load(postgres_url, toy.rows())
        toy.execute(postgres_url, "GRANT SELECT ON toy TO guarded", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        url = sa.make_url(postgres_url).set(username="guarded", password="right").render_as_string(hide_password=False)

        checked = project.call("check", "toy", "--format", "json", BATCHSCORE_WAREHOUSE_URL=url)
        result = project.call("backfill", "toy", *DAY, BATCHSCORE_WAREHOUSE_URL=url)

        rows = {row["check"]: row for row in json.loads(checked.out)}
        assert rows["warehouse"]["status"] == "failed"
        assert "CREATE on the schema" in rows["warehouse"]["detail"]
        assert result.code == 12, result.out
        assert "permission denied" in result.error


class TestCheck:
    def test_touches_nothing(self, project: Project) -> None:
        """`check` of a job that has never run leaves no table, no file and no changed byte."""
        before = {path: path.read_bytes() for path in project.root.rglob("*") if path.is_file()}

        result = project.call("check", "toy", "--format", "json")

        assert result.code == 0, result.out
        assert {row["status"] for row in json.loads(result.out)} == {"ok", "none"}
        assert {path: path.read_bytes() for path in project.root.rglob("*") if path.is_file()} == before

    def test_tells_where_each_value_came_from(self, project: Project) -> None:
        """Every setting stands there with its origin; a password does not."""
        (project.root / "url").write_text("postgresql://u:canary@127.0.0.1:9/x\n")

        result = project.call(
            "--sql-dir", "sql", "check", "toy", "--format", "json",
            BATCHSCORE_SOURCE_URL_FILE=str(project.root / "url"),
            BATCHSCORE_REGISTRY_URL="var/registry",
        )  # fmt: skip

        details = {row["check"]: row["detail"] for row in json.loads(result.out)}
        assert details["sql_dir"] == "sql (from --sql-dir)"
        assert details["registry_url"] == "var/registry (from BATCHSCORE_REGISTRY_URL)"
        assert details["source_url"] == "postgresql://u:***@127.0.0.1:9/x (from BATCHSCORE_SOURCE_URL_FILE)"
        assert details["jobs_dir"] == "jobs (from default)"
        assert "canary" not in result.out
        assert result.code == 20


class TestTraining:
    def test_the_first_good_version_is_used_and_the_next_waits(self, project: Project) -> None:
        """The first version that reaches the bar becomes champion; a later one only with --promote."""
        assert project.call("train", "toy").code == 0
        listed = json.loads(project.call("models", "list", "--format", "json").out)
        assert [(row["version"], row["aliases"]) for row in listed] == [(1, "champion"), (2, "")]

        assert project.call("models", "promote", "toy", "2").code == 0
        listed = json.loads(project.call("models", "list", "--format", "json").out)
        assert [(row["version"], row["aliases"]) for row in listed] == [(1, ""), (2, "champion")]

    def test_workers_of_a_pipeline_know_its_functions(self, project: Project) -> None:
        """A pipeline that fits with n_jobs may use functions of the features module."""
        project.edit(
            "jobs/toy.py",
            ('["c"]),\n    )', '["c"]),\n        n_jobs=2,\n    )'),
        )

        result = project.run("train", "toy", BATCHSCORE_WAREHOUSE_URL=f"duckdb:///{project.root}/warehouse.duckdb")

        assert result.code == 0, result.out + result.err

    def test_a_model_below_the_bar_is_not_promoted(self, project: Project) -> None:
        """A version that misses the success metric is registered, exits 31, and does not become champion."""
        project.edit("jobs/toy.toml", ("at_least = 0.6", "at_least = 0.999"))
        shutil.rmtree(project.root / "var/registry")

        result = project.call("train", "toy")

        assert result.code == 31
        assert re.search(r"roc_auc is 0\.\d+ on held-out rows, want roc_auc at least 0.999", result.error)
        assert "No version is in use yet. To use it all the same: batchscore models promote toy 1" in result.error
        assert json.loads(project.call("models", "list", "--format", "json").out)[0]["aliases"] == ""
        assert project.call("score", "toy").code == 10
        for command in ("card", "show"):
            newest = project.call("models", command, "toy")
            assert newest.code == 10
            assert newest.error.endswith(f" For the newest: batchscore models {command} toy 1.")
        assert project.call("models", "promote", "toy", "1").code == 0
        assert "What was in use stays in use." in project.call("train", "toy").error

    def test_features_that_look_at_other_rows_are_refused(self, project: Project) -> None:
        """A transform that is not row-wise is refused by column at training."""
        project.edit("jobs/toy.py", ('rows.select("a",', 'rows.select(pl.col("a") - pl.col("a").mean(),'))

        result = project.call("train", "toy")

        assert result.code == 11
        assert "not row-wise: column a" in result.error

    def test_the_bundle_runs_its_own_features(self, project: Project) -> None:
        """Scoring executes the frozen features: breaking or deleting the file in jobs/ changes nothing."""
        assert project.call("backfill", "toy", *DAY).code == 0
        before = project.table()
        (project.root / "jobs/toy.py").write_text("raise SystemError('must not run')\n")

        result = project.call("backfill", "toy", *DAY, "--only", "all")

        assert result.code == 0, result.out
        assert project.table() == before
        assert result.named("features.differ")


class TestModelsList:
    @pytest.mark.parametrize(
        ("spoil", "says"),
        [
            (lambda v: (v / "rows.sql").write_text("SELECT 1"), "toy version 1: rows.sql was changed"),
            (lambda v: (v / "bundle.json").unlink(), "toy version 1 has no bundle.json"),
        ],
    )
    def test_a_corrupt_version_hides_no_other(
        self,
        project: Project,
        spoil: Callable[[Path], None],
        says: str,
    ) -> None:
        """The others are listed with their facts; the corrupt one is told by its status, on stderr and by the code."""
        home = project.root / "var/registry/toy"
        assert project.call("train", "toy").code == 0
        spoil(home / "1")

        result = project.call("models", "list", "--format", "json")

        listed = json.loads(result.out)
        assert [(row["version"], row["aliases"], row["status"]) for row in listed] == [
            (1, "champion", "corrupt"),
            (2, "", "ok"),
        ]
        assert listed[0].keys() == listed[1].keys()
        assert (listed[0]["task"], listed[1]["task"]) == (None, "binary")
        assert result.code == 10
        assert result.error.startswith(says)

    def test_a_broken_alias_file_hides_no_version(self, project: Project) -> None:
        """Versions are listed, their aliases unknown, and the file is named."""
        (project.root / "var/registry/toy/aliases.json").write_text("{")

        result = project.call("models", "list", "--format", "json")

        assert [(row["version"], row["aliases"], row["status"]) for row in json.loads(result.out)] == [(1, None, "ok")]
        assert result.code == 10
        assert "aliases.json is not an alias file" in result.err

    def test_a_version_that_is_not_there(self, project: Project) -> None:
        """`models show` of a number that is no version says which there are, and advises no alias of that number."""
        result = project.call("models", "show", "toy", "9")

        assert result.code == 10
        assert "model 'toy' has no version '9'. Versions: 1; aliases: champion = 1. Give one of these." in result.error


class TestAliases:
    def test_an_alias_is_a_word(self, project: Project) -> None:
        """An alias that reads as a version number could never be used, and is refused."""
        result = project.call("models", "promote", "toy", "1", "--alias", "3")

        assert result.code == 2
        assert "'3'" in result.error

    def test_an_alias_that_is_there_already(self, project: Project) -> None:
        """An alias that stands for the new version already, as after an answer that was lost, is told as done."""
        (project.root / "own/toy").mkdir(parents=True)
        (project.root / "own/toy/aliases.json").write_text('{"champion": 1}')
        result = project.call("train", "toy", BATCHSCORE_REGISTRY_URL="own")

        assert result.named("bundle.promoted")

    def test_a_version_that_is_not_sound(self, project: Project) -> None:
        """A version whose files were changed is not promoted, and the aliases stay."""
        (project.root / "var/registry/toy/1/rows.sql").write_text("SELECT 1")
        before = (project.root / "var/registry/toy/aliases.json").read_bytes()
        result = project.call("models", "promote", "toy", "1", "--alias", "next")

        assert result.code == 10
        assert "toy version 1" in result.error
        assert (project.root / "var/registry/toy/aliases.json").read_bytes() == before


class TestParquet:
    def test_the_same_job_from_files(self, project: Project, tmp_path: Path) -> None:
        """Rows from Parquet files, one a day by name, give the same predictions as from the database."""
        project.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-04")
        expected = project.table()
        for (day,), rows in toy.rows().drop("y").group_by("day"):
            (tmp_path / f"day={day}").mkdir()
            rows.drop("day").sample(fraction=1.0, shuffle=True, seed=1).write_parquet(
                tmp_path / f"day={day}/rows.parquet"
            )
        path = f"{tmp_path}/day={{interval_start:%Y-%m-%d}}/*.parquet"
        project.edit("jobs/toy.toml", ('sql = "toy/rows.sql"', f'parquet = "{path}"'))
        project.edit("jobs/toy.toml", ('table = "toy_predictions"', 'table = "from_files"'))

        result = project.call(
            "backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-04", "--only", "all", "--accept-sql", "exported"
        )

        assert result.code == 0, result.out
        columns = "id, day, prediction, score, model_version"
        assert toy.query(project.url, f"SELECT {columns} FROM from_files ORDER BY id") == expected

    def test_a_missing_file_names_the_pattern(self, project: Project, tmp_path: Path) -> None:
        """A day without a file is an error, not an empty day."""
        project.edit(
            "jobs/toy.toml", ('sql = "toy/rows.sql"', f'parquet = "{tmp_path}/{{interval_start:%Y}}/x.parquet"')
        )

        result = project.call("backfill", "toy", *DAY, "--accept-sql", "exported")

        assert result.code == 12
        assert "2024/x.parquet" in result.error

    def test_an_unreadable_file(self, project: Project, tmp_path: Path) -> None:
        """A file that is no Parquet is named."""
        (tmp_path / "x.parquet").write_text("not parquet")
        project.edit("jobs/toy.toml", ('sql = "toy/rows.sql"', f'parquet = "{tmp_path}/x.parquet"'))

        result = project.call("backfill", "toy", *DAY, "--accept-sql", "exported")

        assert result.code == 12
        assert "x.parquet" in result.error

    def test_a_file_that_never_comes_holds_up_no_other(self, project: Project, tmp_path: Path) -> None:
        """`score` goes on past days whose files are missing or no Parquet, publishes the rest, and exits with 12."""
        for (day,), rows in toy.rows().drop("y").group_by("day"):
            rows.write_parquet(tmp_path / f"{day}.parquet")
        for day in (1, 2):
            (tmp_path / f"2024-02-0{day}.parquet").unlink()
        (tmp_path / "2024-02-04.parquet").write_text("not parquet")
        project.edit(
            "jobs/toy.toml", ('sql = "toy/rows.sql"', f'parquet = "{tmp_path}/{{interval_start:%Y-%m-%d}}.parquet"')
        )
        project.edit("jobs/toy.toml", ("start = 2024-02-01", "start = 2024-02-01\ncatch_up = 5"))

        result = project.call("score", "toy", "--accept-sql", "exported")

        assert result.code == 12
        days = [event["interval_start"][:10] for event in result.named("run.published")]
        assert days == ["2024-02-03", "2024-02-05"]
        assert [event["interval"][1:11] for event in result.named("run.failed")] == [
            "2024-02-01", "2024-02-02", "2024-02-04"
        ]  # fmt: skip


class TestGone:
    """A source that stays gone."""

    @pytest.mark.parametrize(
        "command", [("score", "toy"), ("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-04")]
    )
    @pytest.mark.parametrize("workers", ["1", "2"])
    def test_the_rest_is_not_tried(
        self, project: Project, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], workers: str
    ) -> None:
        """Patience is spent once a worker, not once an interval; how many were not tried is told, and the code is 20."""
        monkeypatch.setattr("batchscore.cli.score.on_terminal", lambda: True)
        project.edit("jobs/toy.toml", ("start = 2024-02-01", "start = 2024-02-01\ncatch_up = 3"))

        result = project.call(
            *command, "--workers", workers,
            BATCHSCORE_SOURCE_URL="postgresql://u:canary@127.0.0.1:9/x", BATCHSCORE_RETRY_SECONDS="0",
        )  # fmt: skip

        assert result.code == 20
        failed, left = int(workers), 3 - int(workers)
        assert len(result.named("run.failed")) == failed
        assert [event["left"] for event in result.named("plan.intervals_left") if "why" in event] == [left]
        assert f"{failed} of 3 interval(s) not done; stopped, {left} not tried\n" in result.err


class TestWithoutACommand:
    def test_version(self, project: Project) -> None:
        """`--version` prints the version and nothing else."""
        result = project.call("--version")

        assert (result.code, result.out) == (0, f"{batchscore.__version__}\n")

    def test_help_says_where_databases_are_set(self, project: Project) -> None:
        """No option sets a database, so the help names the variables that do."""
        result = project.call("--help")

        assert result.code == 0
        for name in ("BATCHSCORE_WAREHOUSE_URL", "BATCHSCORE_SOURCE_URL", "BATCHSCORE_WAREHOUSE_URL_FILE"):
            assert name in result.out


class TestOutput:
    def test_a_container_logs_one_object_a_line(self, project: Project) -> None:
        """Standard output of a run is JSON lines and nothing else, each with event, level, timestamp and job."""
        result = project.run("backfill", "toy", *DAY)

        assert result.code == 0, result.out
        assert result.err == ""
        assert all({"event", "level", "timestamp", "job"} <= event.keys() for event in result.events)
        profile = {event["column"]: event for event in result.named("run.profile")}
        assert profile.keys() == {"id", "ts", "day", "a", "b", "c", "prediction", "score"}
        frame = toy.rows().filter(pl.col("day").cast(pl.String) == "2024-02-01")
        assert profile["b"]["null_count"] == frame["b"].null_count()
        assert profile["a"]["mean"] == pytest.approx(frame["a"].mean())

    def test_no_secret_in_any_line(self, project: Project, postgres_url: str) -> None:
        """A password in a URL is in no line of a run that works, nor of `check`."""
        toy.load(postgres_url, toy.rows())
        toy.execute(
            postgres_url, "GRANT ALL ON ALL TABLES IN SCHEMA public TO guarded", "GRANT ALL ON SCHEMA public TO guarded"
        )
        url = sa.make_url(postgres_url).set(username="guarded", password="right").render_as_string(hide_password=False)

        for command in (("check", "toy"), ("backfill", "toy", *DAY), ("runs", "list"), ("drift", "toy", "--all")):
            result = project.call(*command, BATCHSCORE_WAREHOUSE_URL=url)
            assert result.code == 0, result.out
            assert ":right@" not in result.out

    @pytest.mark.parametrize(
        "command",
        [
            ("check", "toy"),
            ("plan", "toy", "--only", "all"),
            ("drift", "toy", "--all"),
            ("models", "show", "toy"),
            ("runs", "list"),
            ("runs", "show", "{run}"),
        ],
    )
    def test_standard_output_is_the_answer(self, project: Project, command: tuple[str, ...]) -> None:
        """What a verb that looks prints as JSON is JSON whole, though the user's own module prints when it is loaded."""
        project.edit("jobs/toy.py", ("import polars as pl\n", "import polars as pl\n\nprint('loaded')\n"))
        assert project.call("train", "toy", "--promote").code == 0
        (run,) = project.call("backfill", "toy", *DAY).named("run.published")
        command = tuple(word.format(run=run["run_id"]) for word in command)

        # A process of its own: here the module is loaded already.
        result = project.run(*command, "--format", "json")

        assert result.code == 0, result.err
        assert json.loads(result.out)

    @pytest.mark.parametrize(
        "command",
        [
            ("check", "toy"),
            ("plan", "toy"),
            ("drift", "toy"),
            ("models", "show", "toy"),
            ("runs", "list"),
            ("runs", "show", "0"),
        ],
    )
    def test_errors_go_beside_the_answer(self, project: Project, command: tuple[str, ...]) -> None:
        """A verb that looks tells its errors on standard error: a program that reads its answer never reads one."""
        result = project.call(*command, "--format", "json", BATCHSCORE_WAREHOUSE_URL="nonsense")
        if command[0] == "models":
            (project.root / "var/registry/toy/aliases.json").write_text("nonsense")
            result = project.call(*command, "--format", "json")

        assert result.code != 0
        assert result.out == ""
        assert json.loads(result.err)["event"] == "command.failed"

    def test_what_a_job_prints_stands_beside_the_log(self, project: Project) -> None:
        """Off a terminal, standard output is one JSON object a line, whatever the job's own code prints."""
        project.edit(
            "jobs/toy.py", ("def features(rows):", "print('imported')\n\n\ndef features(rows):\n    print('called')")
        )
        project.edit("jobs/toy.toml", ('name = "toy"\n\n[output]', 'name = "talks"\n\n[output]'))

        for command in (("train", "toy"), ("backfill", "toy", *DAY), ("models", "verify", "talks")):
            result = project.run(*command, BATCHSCORE_WAREHOUSE_URL=f"duckdb:///{project.root}/warehouse.duckdb")

            assert result.code == 0, result.err
            assert result.events
            assert "called" in result.err

    def test_features_that_may_not_be_read(self, project: Project) -> None:
        """Scoring runs the bundle's features: a file in the job folder that cannot be read stops nothing."""
        (project.root / "jobs/toy.py").unlink()
        (project.root / "jobs/toy.py").mkdir()

        assert project.call("backfill", "toy", *DAY).code == 0

    def test_the_demo_tells_why_it_stopped(self, project: Project) -> None:
        """The demo logs nothing, so where its output goes into a file it tells its error all the same."""
        result = project.call("demo")

        assert result.code == 2
        assert "there is no job 'flight_delay' in jobs/" in result.err

    def test_lists_give_the_same_names_as_tables_and_json(self, project: Project) -> None:
        """`--format table` has the columns of `--format json`, spelled with spaces."""
        project.call("backfill", "toy", *DAY)
        for command in (
            ("plan", "toy", "--only", "all"),
            ("models", "list"),
        ):
            names = json.loads(project.call(*command, "--format", "json").out)[0].keys()
            table = project.call(*command, "--format", "table").out
            assert all(name.replace("_", " ") in table for name in names), command


class TestStart:
    @pytest.mark.parametrize(
        ("command", "without"),
        [
            (("backfill", "--help"), HEAVY),
            (("plan", "toy"), {"sklearn", "scipy"}),
            (("runs", "list"), {"sklearn", "scipy"}),
        ],
        ids=["help", "plan", "runs"],
    )
    def test_imports_what_it_needs(self, project: Project, command: tuple[str, ...], without: set[str]) -> None:
        """A help needs no database driver and no data frame; to look at what ran needs nothing that models are of."""
        code = """
            import sys
            from batchscore.cli import main
            try:
                main()
            finally:
                print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), *command],
            cwd=project.root,
            env=project.environment(),
            capture_output=True,
            text=True,
            check=False,
        )

        assert done.returncode == 0, done.stderr
        assert not without & set(done.stderr.splitlines()[-1].split())
