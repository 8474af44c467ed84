"""The views for dashboards say what the tables say: every number is held against polars over the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import sqlalchemy as sa
import toy
from psql import grant
from toy import Project

from batchscore import views
from batchscore.job import read_job

ZONE = "America/New_York"
DAYS = ("--from", "2024-02-01", "--to", "2024-02-04")
LEDGER = set(views.OVER_LEDGER)
OURS = LEDGER | {"toy_predictions_latest", "toy_predictions_daily"}


def frame(url: str, sql: str) -> pl.DataFrame:
    """The rows of a query, whatever the database, with instants as they are there."""
    with toy.open_warehouse(toy.Database.at(url)) as warehouse, warehouse.begin() as tx:
        result = tx.connection.execute(sa.text(sql))
        return pl.DataFrame(
            [tuple(row) for row in result], schema=list(result.keys()), orient="row", infer_schema_length=None
        )


@pytest.fixture(
    scope="module", params=["duckdb", "sqlite", "postgres", pytest.param("mariadb", marks=pytest.mark.long)]
)
def scored(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, trained: Project
) -> Iterator[Project]:
    """Three days scored, one of them by two versions; a run that failed; performance of both kinds; and the views."""
    folder = tmp_path_factory.mktemp("views")
    # A database of the module's own: the fixture's is emptied after each test.
    url = f"{request.param}:///{folder}/warehouse.{request.param}"
    if request.param in ("postgres", "mariadb"):
        server = request.getfixturevalue(f"{request.param}_server")
        with sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool).connect() as connection:
            connection.execute(sa.text("CREATE DATABASE views"))
        url = server.set(database="views").render_as_string(hide_password=False)
    project = toy.unscored(folder, url, trained)
    project.edit("jobs/toy.toml", ('every = "day"', f'every = "day"\ntimezone = "{ZONE}"'))
    toy.load(url, toy.rows(a_day=300))
    assert project.call("backfill", "toy", *DAYS).code == 0
    toy.execute(url, "UPDATE toy SET a = NULL WHERE ts >= '2024-02-04 05:00:00'")
    assert project.call("backfill", "toy", "--from", "2024-02-04", "--to", "2024-02-05").code == 11
    # The one key that is in two intervals, as where a row is late: the later one counts.
    # What is estimated while it scores is in the way of numbers that are known.
    toy.execute(
        url,
        "DELETE FROM batchscore_performance",
        "INSERT INTO toy_predictions SELECT id, day, NOT prediction, 0.125, model_name, model_version, "
        "(SELECT max(interval_start) FROM toy_predictions), scored_at, run_id FROM toy_predictions "
        "WHERE id = (SELECT min(id) FROM toy_predictions)",
        *(
            "INSERT INTO batchscore_performance VALUES ('toy', 'scored', '2024-02-01 05:00:00', 'toy', 1, '', '', "
            f"'roc_auc', '{kind}', '2024-02-02 05:00:00', {value}, {value} - 0.1, NULL, NULL, NULL, 300, {labelled}, "
            f"{labelled} / 300.0, 'mature', '{verdict}', '2024-03-01 00:00:00')"
            for kind, value, labelled, verdict in (("measured", 0.75, 270, "as good"), ("estimated", 0.5, 0, "worse"))
        ),
    )
    result = project.call("views", "apply", "toy")
    assert result.code == 0, result.out
    assert set(result.named("views.ready")[0]["views"].values()) == {"made"}
    yield project
    if request.param in ("postgres", "mariadb"):
        with sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool).connect() as connection:
            connection.execute(sa.text("DROP DATABASE views"))


class TestNumbers:
    def test_latest(self, scored: Project) -> None:
        """Each key once, with the row of its latest interval, and every column of the output table."""
        table, latest = (frame(scored.url, f"SELECT * FROM toy_predictions{end}") for end in ("", "_latest"))

        wanted = table.sort("interval_start").unique("id", keep="last").sort("id")

        assert latest.sort("id").equals(wanted)
        assert table.height == wanted.height + 1
        assert 0.125 in latest["score"].to_list()

    def test_daily(self, scored: Project) -> None:
        """Counts, means and quantiles of each local day are those of its scores; a quantile is a value that is there."""
        table = frame(scored.url, "SELECT interval_start, model_version, score FROM toy_predictions")
        daily = frame(scored.url, "SELECT * FROM toy_predictions_daily ORDER BY day")

        starts = table["interval_start"].cast(pl.String).str.slice(0, 10)
        assert [str(day) for day in daily["day"]] == sorted(set(starts)) == ["2024-02-01", "2024-02-02", "2024-02-03"]
        for row in daily.iter_rows(named=True):
            rows = table.filter(starts == str(row["day"]))
            scores = rows["score"].sort()
            assert (row["column_name"], row["model_name"], row["model_version"]) == ("score", "toy", 1)
            assert (row["predictions"], row["lowest"], row["highest"]) == (rows.height, scores[0], scores[-1])
            assert row["mean"] == pytest.approx(scores.mean(), rel=1e-12)
            for share in (5, 25, 50, 75, 95):
                assert row[f"p{share:02}"] == scores[math.ceil(share * rows.height / 100) - 1], share

    def test_drift(self, scored: Project) -> None:
        """Each row of the ledger's drift once, with its run's interval and its strength in bands."""
        drift = frame(scored.url, "SELECT * FROM batchscore_drift")
        runs = frame(
            scored.url, "SELECT run_id, job, interval_start, interval_end, model_version, status FROM batchscore_runs"
        )
        found = frame(scored.url, "SELECT * FROM batchscore_drift_over_time")

        wanted = drift.join(runs.filter(pl.col("status") == "published"), on="run_id").with_columns(
            strength=pl.col("value").abs() / pl.col("band")
        )
        key = ["interval_start", "reference", "role", "column_name", "metric"]
        compared = [
            *key,
            "value",
            "floor",
            "band",
            "strength",
            "p_value",
            "verdict",
            "told",
            "importance",
            "interval_end",
        ]

        assert found.height == wanted.height > 100
        one, other = (each.select(compared).sort(key) for each in (found, wanted))
        assert one.drop("strength").equals(other.drop("strength"))
        assert (one["strength"] - other["strength"]).abs().max() < 1e-12
        assert one["strength"].null_count() == other["strength"].null_count() > 0

    def test_performance(self, scored: Project) -> None:
        """What is measured stands beside what is estimated of the same window, in one row."""
        (row,) = frame(scored.url, "SELECT * FROM batchscore_performance_over_time").iter_rows(named=True)

        assert (row["value"], row["low"], row["high"]) == (0.75, 0.65, None)
        assert row["state"] == "mature"
        assert (row["estimated"], row["estimated_low"], row["labelled"]) == (0.5, 0.4, 270)
        assert (row["verdict"], row["estimated_verdict"]) == ("as good", "worse")
        assert row["coverage"] == pytest.approx(0.9)

    def test_freshness(self, scored: Project) -> None:
        """The job is as fresh as its last published interval; the run that failed behind it is told with its error."""
        (row,) = frame(scored.url, "SELECT * FROM batchscore_freshness").iter_rows(named=True)
        end = datetime(2024, 2, 4, 5, tzinfo=UTC)

        assert (row["job"], row["published"], row["failed"], row["held"]) == ("toy", 3, 1, 0)
        assert str(row["published_until"]).startswith("2024-02-04 05:00:00")
        assert float(row["hours_behind"]) == pytest.approx((datetime.now(UTC) - end) / timedelta(hours=1), abs=0.2)
        assert (row["last_status"], "rejects" in row["last_error"]) == ("failed", True)


class TestColumns:
    @pytest.mark.parametrize("name", [*views.OVER_LEDGER, *(f"toy_predictions{end}" for end in views.OVER_JOBS)])
    def test_documented(self, scored: Project, name: str) -> None:
        """What the SQL file documents is what the view has, in order, and each has a meaning."""
        text = views.text_of(name.removeprefix("toy_predictions"))
        live = toy.columns(scored.url, name)

        assert live == (toy.columns(scored.url, "toy_predictions") if "*" in text.columns else list(text.columns))
        assert all(meaning.endswith(".") for meaning in (text.meaning, *text.columns.values()))

    def test_comments(self, scored: Project) -> None:
        """Where a database keeps comments, the view and each of its columns carry that text."""
        told = {
            "duckdb": "SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'batchscore_freshness'",
            "postgresql": "SELECT attname, col_description(attrelid, attnum) FROM pg_attribute "
            "WHERE attrelid = 'batchscore_freshness'::regclass AND attnum > 0",
        }
        dialect = toy.Database.at(scored.url).dialect
        if dialect not in told:
            pytest.skip(f"{dialect} keeps no comment of a view")

        assert dict(toy.query(scored.url, told[dialect])) == views.text_of("batchscore_freshness").columns


class TestApply:
    def test_again(self, scored: Project) -> None:
        """Said again it replaces each view by the same one."""
        before = frame(scored.url, "SELECT * FROM toy_predictions_daily ORDER BY day")

        result = scored.call("views", "apply", "toy")

        assert result.named("views.ready")[0]["views"] == dict.fromkeys(
            [*views.OVER_LEDGER, "toy_predictions_latest", "toy_predictions_daily"], "replaced"
        )
        assert frame(scored.url, "SELECT * FROM toy_predictions_daily ORDER BY day").equals(before)

    def test_a_table_with_another_column(self, scored: Project) -> None:
        """A view whose table has got a column is made anew with it."""
        toy.execute(scored.url, "ALTER TABLE toy_predictions ADD COLUMN note INTEGER")
        try:
            result = scored.call("views", "apply", "toy")
            assert result.named("views.ready")[0]["views"]["toy_predictions_latest"] == "made anew"
            assert toy.columns(scored.url, "toy_predictions_latest")[-1] == "note"
        finally:
            toy.execute(scored.url, "DROP VIEW toy_predictions_latest", "ALTER TABLE toy_predictions DROP COLUMN note")
            assert scored.call("views", "apply", "toy").code == 0

    def test_scoring_goes_on(self, scored: Project) -> None:
        """A table with views over it is scored into as before, and looked at and migrated."""
        again = scored.call("backfill", "toy", "--from", "2024-02-03", "--to", "2024-02-04", "--only", "all")
        checked, migrated = scored.call("check", "toy"), scored.call("migrate", "toy")

        assert (again.code, migrated.code) == (0, 0), again.out
        assert checked.code == 0, checked.out


class TestWithoutAJob:
    def test_ledger_only(self, project: Project) -> None:
        """Without a job the ledger's views are made, with the ledger itself where it is missing."""
        result = project.call("views", "apply")

        assert result.code == 0, result.out
        assert set(toy.tables(project.url)) & OURS == LEDGER

    def test_no_output_table(self, project: Project) -> None:
        """Over a table that is not there nothing is made, and the message says what makes it."""
        result = project.call("views", "apply", "toy")

        assert result.code == 2
        assert "batchscore migrate toy" in result.error
        assert not set(toy.tables(project.url)) & OURS

    def test_a_table_of_that_name(self, project: Project) -> None:
        """A table that has the name of a view is left alone."""
        toy.execute(project.url, "CREATE TABLE batchscore_freshness (mine INTEGER)")

        result = project.call("views", "apply")

        assert result.code == 12
        assert "batchscore_freshness" in result.error
        assert toy.columns(project.url, "batchscore_freshness") == ["mine"]


class TestShow:
    def test_what_apply_runs(self, project: Project) -> None:
        """The statements that are printed make the views when somebody else runs them, and printing makes none."""
        assert project.call("migrate", "toy").code == 0
        shown = project.call("views", "show", "toy")
        assert shown.code == 0, shown.err
        assert not set(toy.tables(project.url)) & OURS

        toy.execute(project.url, *(text for text in shown.out.split(";\n\n") if text))

        assert set(toy.tables(project.url)) >= OURS
        assert toy.query(project.url, "SELECT * FROM toy_predictions_daily") == []


class TestDay:
    """The local day, where a database has no time zones."""

    @pytest.mark.parametrize("zone", ["UTC", ZONE, "Pacific/Auckland", "Australia/Lord_Howe", "Asia/Kolkata"])
    def test_sqlite(self, tmp_path: Path, project: Project, zone: str) -> None:
        """Every hour of two years, and of one in twenty years, falls on the day that Python's zones give it."""
        project.edit("jobs/toy.toml", ('every = "day"', f'every = "hour"\ntimezone = "{zone}"'))
        url = f"sqlite:///{tmp_path}/days.sqlite"
        first = [datetime(2024, 2, 1, 12, tzinfo=UTC), datetime(2044, 1, 1, tzinfo=UTC)]
        hours = [start + timedelta(hours=n) for start in first for n in range(2 * 366 * 24)]
        toy.load(url, pl.DataFrame({"ts": hours}), "hours")
        toy.execute(url, "CREATE VIEW named AS SELECT ts AS interval_start FROM hours")

        job = read_job("toy", project.root / "jobs")
        with toy.open_warehouse(toy.Database.at(url)) as warehouse, warehouse.begin() as tx:
            day = views._day(tx.connection.dialect, job)
            found = tx.connection.execute(sa.text(f"SELECT interval_start, {day} FROM named")).all()

        instants = pl.Series([at for at, _ in found]).str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_zone="UTC")
        assert len(found) == len(hours)
        assert instants.dt.convert_time_zone(zone).dt.strftime("%Y-%m-%d").to_list() == [day for _, day in found]


class TestReaders:
    def test_grants(self, trained: Project, tmp_path: Path, postgres_url: str) -> None:
        """A role with the readers' grants reads each view; one that owns nothing cannot make them."""
        owner = toy.unscored(tmp_path, postgres_url, trained)
        assert owner.call("migrate", "toy").code == 0
        assert owner.call("views", "apply", "toy").code == 0
        grant(postgres_url, "readers.sql", role="guarded", schema="public", output="toy_predictions", views="1")
        url = sa.make_url(postgres_url).set(username="guarded", password="right").render_as_string(hide_password=False)

        for name in OURS:
            assert isinstance(toy.query(url, f"SELECT * FROM {name}"), list)
        refused = Project(owner.root, url).call("views", "apply", "toy")

        assert refused.code == 12
        assert "permission denied" in refused.error
