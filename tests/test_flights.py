"""The main job on real flights, as `batchscore demo` runs it, and the same job on other databases."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import duckdb
import pytest
import sqlalchemy as sa
import toy
from toy import Project

from batchscore.cli.flights import flight_tables
from batchscore.cli.load import load
from batchscore.database import Database
from batchscore.errors import UsageError
from batchscore.problem import Task

ROOT = Path(__file__).parent.parent
ANSWER = "flight_id, prediction, score"
OCTOBER = ("--from", "2013-10-01", "--to", "2013-11-01")


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The repository's own job in a folder of its own, after one `batchscore demo`."""
    root = tmp_path_factory.mktemp("flights")
    shutil.copytree(ROOT / "jobs", root / "jobs")
    shutil.copytree(ROOT / "sql", root / "sql")
    (root / "first.txt").write_text(_demo(root))
    return Project(root, f"duckdb:///{root}/var/warehouse.duckdb")


def _demo(root: Path) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BATCHSCORE_")}
    command = [sys.executable, "-m", "batchscore", "demo"]
    done = subprocess.run(command, cwd=root, env=kept, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.long
class TestDemo:
    def test_every_flight_of_the_quarter_is_predicted_once(self, flights: Project) -> None:
        """84,292 flights of October to December, one prediction each, in 92 published runs."""
        assert toy.query(flights.url, "SELECT count(*), count(DISTINCT flight_id) FROM flight_delay_predictions") == [
            (84_292, 84_292)
        ]
        assert toy.query(
            flights.url, "SELECT status, count(*), sum(rejects) FROM batchscore_runs GROUP BY 1"
        ) == [("published", 92, 0)]  # fmt: skip

    def test_it_tells_the_metrics_it_reaches(self, flights: Project) -> None:
        """Monthly AUC for arr_delay > 15 is at least 0.66, 0.64 and 0.68 on months that were never trained on."""
        table = re.findall(
            r"^(2013-1[012])\s+[\d,]+\s+[\d,]+\s+(0\.\d+)", (flights.root / "first.txt").read_text(), re.MULTILINE
        )

        reached = {month: float(auc) for month, auc in table}

        assert reached.keys() == {"2013-10", "2013-11", "2013-12"}
        assert reached["2013-10"] >= 0.66
        assert reached["2013-11"] >= 0.64
        assert reached["2013-12"] >= 0.68

    def test_cancelled_flights_are_predicted_and_not_measured(self, flights: Project) -> None:
        """Flights that never landed have a prediction and no label."""
        cancelled = "SELECT flight_id FROM flights WHERE arr_delay IS NULL AND flight_date >= '2013-10-01'"
        count = toy.query(flights.url, f"SELECT count(*) FROM ({cancelled})")[0][0]

        predicted = toy.query(
            flights.url, f"SELECT count(*) FROM flight_delay_predictions WHERE flight_id IN ({cancelled})"
        )[0][0]

        assert predicted == count == 84_292 - 82_609

    def test_the_lost_weather_of_31_december_is_seen(self, flights: Project) -> None:
        """The profile of 31 December has no temperature at all, and its drift says so."""
        run = "SELECT run_id FROM batchscore_runs WHERE interval_start = TIMESTAMPTZ '2013-12-31 05:00:00+00'"
        profile = f"SELECT null_count, row_count FROM batchscore_profiles WHERE column_name = 'weather_temp' AND run_id = ({run})"
        drift = f"SELECT verdict FROM batchscore_drift WHERE column_name = 'weather_temp' AND metric = 'null_share' AND reference = 'training' AND run_id = ({run})"

        assert toy.query(flights.url, profile) == [(776, 776)]
        assert toy.query(flights.url, drift) == [("moved",)]

    def test_the_report_of_the_quarter(self, flights: Project) -> None:
        """It says what the season moved and what it did not, that the weather was lost, and where scores were off."""
        window = ("--from", "2013-10-01", "--to", "2014-01-01")
        assert flights.call("evaluate", "flight_delay", *window).code == 0
        assert flights.call("report", "flight_delay", *window).out == "flight_delay-report.html\n"
        page = (flights.root / "flight_delay-report.html").read_bytes()
        text = re.sub("</?(span|code)[^>]*>", "", page.decode().partition("<script")[0])
        words = " ".join(re.sub("<[^>]+>", " ", text).split())

        temperature = re.search(
            r"weather_temp moved against training, in every run since 2013-10-01: psi ([\d.]+) in the last 28 runs.*?"
            r"Against the 28 runs before it is ([\d.]+), which is little: it moved slowly, which looks seasonal",
            words,
        )
        assert temperature
        assert float(temperature[1]) > 4 * float(temperature[2])
        assert re.search(r"weather_temp, [^.]* are NULL or NaN in all rows of 2013-12-31\.", words)
        (steady,) = re.findall(r"note ([^.]*) are steady against training in the last 28 runs\.", words)
        assert {"distance", "sched_dep_time", "sched_arr_time", "carrier", "origin", "dest"} <= set(steady.split(", "))
        found = re.search(
            r"scores are too low: predicted were ([\d.]+)% and ([\d.]+)% came in 2013-12-01 to 2013-12-31\.", words
        )
        assert found
        assert float(found[2]) > float(found[1]) + 5
        assert "Label coverage is 83% in 2013-12-05, 2013-12-10, 2013-12-14 and 2013-12-17" in words
        assert len(page) < 1_500_000

    def test_nothing_unknown_at_departure_is_used(self, flights: Project) -> None:
        """No input of the bundle is one of the columns that are measured on the flight itself."""
        shown = json.loads(flights.call("models", "show", "flight_delay", "--format", "json").out)

        names = {column["name"] for column in shown["columns"]}

        assert names.isdisjoint({"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "late"})
        sql = (ROOT / "sql/flight_delay/rows.sql").read_text()
        code = "\n".join(line.split("--")[0] for line in sql.splitlines())
        assert not re.search(r"\b(dep_time|dep_delay|arr_time|arr_delay|air_time)\b", code)

    def test_the_readme_shows_what_it_prints(self, flights: Project) -> None:
        """The output in the README is the demo's own, but for its time and for what a platform rounds otherwise."""
        shown = re.search(r"```text\n(\n?1\. Data.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

        assert shown
        assert_alike(shown[1], (flights.root / "first.txt").read_text())

    def test_alike_is_not_anything(self) -> None:
        """Seconds, and measures by one in a hundred, may differ; a word, a count, a date or a line may not."""
        shown = "2013-10  28,889  0.682\nband 0.02\nDone in 45 s. 92 runs"
        assert_alike(shown, "2013-10  28,889  0.68\nband  0.02\nDone in 7 s. 92 runs\n")

        for old, new in (
            ("28,889", "28,888"), ("0.682", "0.672"), ("0.02", "0.03"), ("2013-10", "2013-11"), ("92 runs", "91 runs"),
            ("runs", "rows"), ("band 0.02\n", ""), ("0.682", "682"), ("45 s", "s"),
        ):  # fmt: skip
            with pytest.raises(AssertionError):
                assert_alike(shown, shown.replace(old, new))

    def test_a_second_demo_scores_nothing_and_says_so(self, flights: Project) -> None:
        """Everything is published: no chunk is scored again, and the same metrics are told."""
        before = toy.query(flights.url, "SELECT run_id, scored_at FROM batchscore_runs ORDER BY 1")

        second = _demo(flights.root)

        assert second.count("nothing to do") == 2
        assert toy.query(flights.url, "SELECT run_id, scored_at FROM batchscore_runs ORDER BY 1") == before
        first = (flights.root / "first.txt").read_text()
        assert second[second.index("4. ") :].splitlines()[:4] == first[first.index("4. ") :].splitlines()[:4]


class TestWarehouse:
    def test_holds_the_flights(self, tmp_path: Path, postgres_url: str) -> None:
        """Postgres gets the rows that the file has, and a second time none more."""
        # Without the fixture: these tests may be another process's, which would have to run the whole demo for it.
        tables = flight_tables()
        load(Database.at(f"duckdb:///{tmp_path}/warehouse.duckdb"), tables)
        sums = "SELECT count(*), sum(flight_id), min(scheduled_at), max(flight_date), sum(distance) FROM flights"

        counts = [load(Database.at(postgres_url), tables) for _ in range(2)]

        assert counts == [{"flights": 336_776, "weather": 26_115, "planes": 3_322}] * 2
        assert toy.query(postgres_url, sums) == toy.query(f"duckdb:///{tmp_path}/warehouse.duckdb", sums)

    @pytest.mark.parametrize("made", ["CREATE TABLE planes (tail TEXT)", "CREATE TABLE weather AS SELECT 1 AS origin"])
    def test_leaves_what_is_not_its_own(self, tmp_path: Path, made: str) -> None:
        """A table of one of its names that holds something else is refused, and nothing is written."""
        url = f"duckdb:///{tmp_path}/warehouse.duckdb"
        toy.execute(url, made)
        before = toy.tables(url)

        with pytest.raises(UsageError, match="a database of its own"):
            load(Database.at(url), flight_tables())

        assert toy.tables(url) == before

    def test_the_query_is_for_two_databases(self, tmp_path: Path) -> None:
        """Another database than those that the query was written for is refused."""
        with pytest.raises(UsageError, match="DuckDB and Postgres"):
            load(Database.at(f"sqlite:///{tmp_path}/warehouse.sqlite"), {})

    @pytest.mark.long
    def test_the_whole_demo(self, flights: Project, postgres_url: str, tmp_path: Path) -> None:
        """In Postgres it publishes the same 84,292 predictions, and prints no password."""
        url = sa.make_url(postgres_url).set(username="guarded", password="right")
        toy.execute(postgres_url, "GRANT ALL ON SCHEMA public TO guarded")
        shutil.copytree(flights.root, tmp_path / "there")
        there = Project(tmp_path / "there", url.render_as_string(hide_password=False))

        result = there.run("demo", "--warehouse", timeout=280)

        assert result.code == 0, result.out + result.err
        assert "84,292 predictions of 92 published runs, 0 rejects" in result.out
        assert "right@" not in result.out
        predicted = f"SELECT {ANSWER} FROM flight_delay_predictions ORDER BY flight_id"
        assert toy.query(there.url, predicted) == toy.query(flights.url, predicted)


class TestJobFile:
    def test_names_the_tasks_there_are(self) -> None:
        """The file that people copy lists every task that a job may have, and no other."""
        listed = re.search(r"^task = .*# (.*)$", (ROOT / "jobs/flight_delay.toml").read_text(), re.MULTILINE)

        assert listed
        assert tuple(listed[1].split(" | ")) == get_args(Task)


@pytest.mark.long
class TestElsewhere:
    def test_the_same_bits_from_postgres_in_chunks_of_any_size(
        self, flights: Project, postgres_url: str, tmp_path: Path
    ) -> None:
        """October as one interval in Postgres, in chunks of 1,000, 10,000 and 100,000: DuckDB's predictions, bit for bit."""
        load(Database.at(postgres_url), flight_tables())
        month = monthly(flights, tmp_path, postgres_url)
        expected = toy.query(
            flights.url,
            f"SELECT {ANSWER} FROM flight_delay_predictions WHERE flight_date < '2013-11-01' ORDER BY flight_id",
        )
        counts = []

        for chunk_rows in ("1000", "10000", "100000"):
            result = month.call("backfill", "monthly", *OCTOBER, "--only", "all", "--chunk-rows", chunk_rows)
            assert result.code == 0, result.out
            table = toy.query(month.url, f"SELECT {ANSWER} FROM monthly_predictions ORDER BY flight_id")
            assert table == expected
            counts.append(_counts(month.url, result.named("run.published")[0]["run_id"]))

        assert len(expected) == 28_889
        assert counts[0] == counts[1] == counts[2]

    def test_the_same_bits_from_parquet(self, flights: Project, tmp_path: Path) -> None:
        """The rows as Parquet files, unsorted, give the very same predictions."""
        month = monthly(flights, tmp_path, f"duckdb:///{tmp_path}/other.duckdb")
        sql = (ROOT / "sql/flight_delay/rows.sql").read_text()
        sql = sql.replace(":interval_start", "TIMESTAMPTZ '2013-10-01 04:00:00+00'")
        sql = sql.replace(":interval_end", "TIMESTAMPTZ '2013-11-01 04:00:00+00'")
        with duckdb.connect(str(flights.root / "var/warehouse.duckdb"), read_only=True) as connection:
            connection.sql(sql).pl().sample(fraction=1.0, shuffle=True, seed=3).write_parquet(
                tmp_path / "2013-10.parquet"
            )
        month.edit(
            "jobs/monthly.toml",
            ('sql = "flight_delay/rows.sql"', f'parquet = "{tmp_path}/{{interval_start:%Y-%m}}.parquet"'),
        )

        result = month.call("backfill", "monthly", *OCTOBER, "--accept-sql", "exported", "--chunk-rows", "10000")

        assert result.code == 0, result.out
        expected = f"SELECT {ANSWER} FROM flight_delay_predictions WHERE flight_date < '2013-11-01' ORDER BY flight_id"
        assert toy.query(month.url, f"SELECT {ANSWER} FROM monthly_predictions ORDER BY flight_id") == toy.query(
            flights.url, expected
        )


def assert_alike(shown: str, printed: str) -> None:
    """Check that two outputs have the same words and counts, and the same measures to one in a hundred."""
    told, said = (re.sub(r"\bin \d+ s\.", "in N s.", text).split("\n") for text in (shown.strip(), printed.strip()))
    measure = re.compile(r"(?<![\d.])\d+\.\d+(?![\d.])")
    # Columns are as wide as what stands in them.
    words = [[" ".join(measure.sub("#", line).split()) for line in lines] for lines in (told, said)]
    assert words[0] == words[1]
    measures = [[float(each) for each in measure.findall("\n".join(lines))] for lines in (told, said)]
    assert measures[0] == pytest.approx(measures[1], rel=0.01)


def monthly(flights: Project, root: Path, url: str) -> Project:
    """The same job and bundle, cut by months, on another warehouse."""
    shutil.copytree(ROOT / "sql", root / "sql")
    (root / "jobs").mkdir()
    (root / "var").mkdir()
    (root / "var/registry").symlink_to(flights.root / "var/registry")
    text = (ROOT / "jobs/flight_delay.toml").read_text()
    text = text.replace('[job]\nname = "flight_delay"', '[job]\nname = "monthly"').replace(
        'every = "day"', 'every = "month"'
    )
    (root / "jobs/monthly.toml").write_text(text.replace("flight_delay_predictions", "monthly_predictions"))
    return Project(root, url)


def _counts(url: str, run_id: str) -> list[tuple[object, ...]]:
    sql = f"SELECT role, column_name, row_count, null_count, profile FROM batchscore_profiles WHERE run_id = '{run_id}' ORDER BY 1, 2"
    return [(*row[:4], json.loads(row[4])["counts"]) for row in toy.query(url, sql)]
