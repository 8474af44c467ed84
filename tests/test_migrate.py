"""The tables can be made by a role that owns them, and the role that scores every night needs no more than it uses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa
import toy
from monitoring import told
from psql import grant
from toy import Project

from batchscore import ledger

ROOT = Path(__file__).parent.parent
DAY = ("--from", "2024-02-01", "--to", "2024-02-02")


class TestMigrate:
    def test_makes_what_scoring_needs(self, anywhere: Project) -> None:
        """It makes the ledger's tables and the output table, scores nothing, and may be said again; scoring adds none."""
        first = anywhere.call("migrate", "toy")
        made = set(toy.tables(anywhere.url))
        again = anywhere.call("migrate", "toy")

        assert (first.code, again.code) == (0, 0), first.out
        (told,) = first.named("tables.ready")
        assert (told["output_table"].rpartition(".")[2], told["ledger_tables"]) == (
            "toy_predictions",
            len(ledger.METADATA.tables),
        )
        assert {"toy_predictions", "batchscore_runs", "batchscore_leases"} < made
        assert anywhere.table() == []
        assert anywhere.call("backfill", "toy", *DAY).code == 0
        assert set(toy.tables(anywhere.url)) == made

    def test_tables_of_an_earlier_version(self, anywhere: Project) -> None:
        """`check` tells what they lack and changes nothing; `migrate` adds it, or else the first run, which then goes on."""
        assert anywhere.call("migrate", "toy").code == 0
        lacking = {"batchscore_runs": "override_by", "batchscore_rejects": "row_values"}
        lacking |= {"batchscore_alerts": "found", "batchscore_drift": "share", "batchscore_performance": "bound"}
        old = [f"ALTER TABLE {table} DROP COLUMN {column}" for table, column in lacking.items()]
        toy.execute(anywhere.url, *old)
        told = [f"{column} ({table})" for table, column in lacking.items()]

        listed = anywhere.call("runs", "list")
        checks = [anywhere.call("check", "toy", "--format", "json") for _ in range(2)]
        migrated = anywhere.call("migrate", "toy")
        toy.execute(anywhere.url, *old)
        scored = anywhere.call("backfill", "toy", *DAY)
        last = anywhere.call("check", "toy", "--format", "json")

        assert [each.code for each in (*checks, migrated, scored, last)] == [0] * 5, scored.out
        assert [[words in each.out for words in told] for each in (*checks, last)] == [[True] * 5] * 2 + [[False] * 5]
        assert listed.code == 12
        assert all(words in listed.error for words in [*told, "batchscore migrate"])
        for result in (migrated, scored):
            assert {each["table"]: each["column"] for each in result.named("column.added")} == lacking

    def test_a_table_that_cannot_take_the_predictions(self, anywhere: Project) -> None:
        """A table that is there and cannot take the predictions is refused as it is by a run."""
        toy.execute(anywhere.url, "CREATE TABLE toy_predictions (id INTEGER)")

        result = anywhere.call("migrate", "toy")

        assert result.code == 12
        assert "toy_predictions" in result.error


class TestPart:
    def test_of_a_window(self, anywhere: Project) -> None:
        """Each of three processes takes every third interval, whichever are published, and together they take all."""
        days = ("--from", "2024-02-01", "--to", "2024-02-06")
        assert anywhere.call("backfill", "toy", *DAY).code == 0

        found = [anywhere.call("backfill", "toy", *days, "--part", f"{index}/3") for index in range(3)]

        assert [result.code for result in found] == [0, 0, 0]
        published = [[event["interval_start"][8:10] for event in each.named("run.published")] for each in found]
        assert published == [["04"], ["02", "05"], ["03"]]

    def test_more_than_there_are(self, project: Project) -> None:
        """A part behind the last interval has nothing to do."""
        result = project.call("backfill", "toy", *DAY, "--part", "7/8")

        assert result.code == 0
        assert result.named("run.nothing_due")

    @pytest.mark.parametrize("part", ["8/8", "1", "-1/8", "a/b", "1/0", ""])
    def test_wrong(self, project: Project, part: str) -> None:
        """What is no part is a usage error that shows one."""
        result = project.call("backfill", "toy", *DAY, f"--part={part}")

        assert result.code == 2
        assert "Write 0/8 for the first of eight" in result.error


@pytest.fixture
def nightly(trained: Project, tmp_path: Path, postgres_url: str) -> Project:
    """The toy project as a role that scores into tables that another owns."""
    owner = toy.unscored(tmp_path, postgres_url, trained)
    assert owner.call("migrate", "toy").code == 0
    grant(postgres_url, "postgres.sql", role="guarded", schema="public", output="toy_predictions")
    toy.execute(postgres_url, "GRANT SELECT ON toy TO guarded")
    url = sa.make_url(postgres_url).set(username="guarded", password="right")
    return Project(owner.root, url.render_as_string(hide_password=False))


class TestGrants:
    def test_all_that_a_night_does(self, nightly: Project, postgres_url: str) -> None:
        """With these grants it checks, scores, scores again, rejects, looks, compares, evaluates and prunes; and has metrics."""
        toy.execute(postgres_url, "UPDATE toy SET a = NULL WHERE id = 3101")
        folder = str(nightly.root)

        codes = [
            nightly.call(*command, BATCHSCORE_METRICS_DIR=folder).code
            for command in (
                ("check", "toy"),
                ("backfill", "toy", *DAY),
                ("backfill", "toy", *DAY, "--only", "all", "--chunk-rows", "40"),
                ("rejects", "toy", "--interval", "2024-02-01"),
                ("runs", "list"),
                ("drift", "toy"),
                ("evaluate", "toy"),
                ("runs", "prune", "--older-than", "0h"),
            )
        ]

        assert codes == [0] * len(codes)
        assert len(nightly.table()) == 99
        assert told((nightly.root / "batchscore_toy.prom").read_text())["runs_published_total"] == 2
        assert not [name for name in toy.tables(postgres_url) if "stage" in name]

    @pytest.mark.parametrize(
        "statement",
        [
            "DROP TABLE toy_predictions",
            "ALTER TABLE toy_predictions ADD COLUMN x INTEGER",
            "TRUNCATE toy_predictions",
            "UPDATE toy_predictions SET score = 1",
            "DROP TABLE batchscore_runs",
            "TRUNCATE batchscore_runs",
            "DELETE FROM toy",
        ],
    )
    def test_no_more(self, nightly: Project, statement: str) -> None:
        """It can neither change nor drop what it does not own, nor write where it only reads."""
        with pytest.raises(Exception, match=r"permission denied|must be owner"):
            toy.execute(nightly.url, statement)

    @pytest.mark.parametrize("revoked", ["SELECT", "INSERT", "DELETE"])
    def test_no_less(self, nightly: Project, postgres_url: str, revoked: str) -> None:
        """Without one of the grants on the output table, `check` says which is missing."""
        toy.execute(postgres_url, f"REVOKE {revoked} ON toy_predictions FROM guarded")

        result = nightly.call("check", "toy")

        assert result.code == 12
        assert f"{revoked} on the output table" in result.out

    @pytest.mark.parametrize("cut", ["REVOKE USAGE, CREATE ON SCHEMA public FROM PUBLIC, guarded", None])
    def test_no_schema_to_work_in(self, nightly: Project, postgres_url: str, cut: str | None) -> None:
        """Where no schema of the search_path is there, or may be used, `check` says so and exits as a run does."""
        if cut:
            toy.execute(postgres_url, cut)
        else:
            toy.execute(postgres_url, "ALTER ROLE guarded SET search_path = nowhere")
        try:
            result, run = nightly.call("check", "toy"), nightly.call("backfill", "toy", *DAY)
        finally:
            toy.execute(postgres_url, "ALTER ROLE guarded RESET search_path")

        assert (result.code, run.code) == (12, 12)
        assert "USAGE on any schema of its search_path" in result.out

    def test_tables_of_an_earlier_version(self, nightly: Project, postgres_url: str) -> None:
        """What their owner has not migrated yet `check` refuses as a run does, by name, and with what to do; it helps."""
        owner = Project(nightly.root, postgres_url)
        toy.execute(postgres_url, "ALTER TABLE batchscore_runs DROP COLUMN override_by, DROP COLUMN error")

        commands = [("check", "toy", "--format", "json"), ("backfill", "toy", *DAY), ("evaluate", "toy")]
        refused = [nightly.call(*command) for command in commands]
        migrated = owner.call("migrate", "toy")
        scored = nightly.call("backfill", "toy", *DAY)

        assert [each.code for each in refused] == [12] * 3, refused[0].out
        for said in (refused[0].out, refused[1].error, refused[2].error):
            assert "batchscore_runs on " in said
            assert "lacks error, override_by. This user does not own it" in said
            assert "batchscore migrate" in said
        assert (migrated.code, scored.code) == (0, 0)

    def test_readers(self, nightly: Project, postgres_url: str) -> None:
        """A role that reads sees predictions, runs and drift, and no rejected values; it writes nothing."""
        assert nightly.call("backfill", "toy", *DAY).code == 0
        toy.execute(postgres_url, "CREATE ROLE reader LOGIN")
        try:
            grant(postgres_url, "readers.sql", role="reader", schema="public", output="toy_predictions")
            url = sa.make_url(postgres_url).set(username="reader").render_as_string(hide_password=False)
            reader = Project(nightly.root, url)

            assert len(toy.query(url, "SELECT * FROM toy_predictions")) == 100
            assert json.loads(reader.call("runs", "list", "--format", "json").out)[0]["status"] == "published"
            for statement in ("SELECT * FROM batchscore_rejects", "SELECT * FROM toy"):
                with pytest.raises(Exception, match="permission denied"):
                    toy.query(url, statement)
            with pytest.raises(Exception, match="permission denied"):
                toy.execute(url, "DELETE FROM toy_predictions")
        finally:
            toy.execute(postgres_url, "DROP OWNED BY reader", "DROP ROLE reader")
