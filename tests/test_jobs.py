"""The jobs that show what else a job may be: each learns from the demo's own data, and scores them."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import toy
from sklearn.metrics import accuracy_score, roc_auc_score
from toy import Project

from batchscore.cli.flights import flight_tables
from batchscore.cli.load import load
from batchscore.cli.samples import accounts, churn_probability, click_probability, clicks, houses, sample_tables
from batchscore.database import Database

ROOT = Path(__file__).parent.parent
# The metric, its value on rows held out, and how many those are.
SMALL = {
    "saas_churn": ("roc_auc", 0.803, 150),
    "content_clicks": ("roc_auc", 0.770, 400),
    "houses": ("accuracy", 1.0, 2),
    "airport_segments": ("silhouette", 0.325, 156),
    "odd_weather": ("contamination", 0.001, 3_926),
}
LARGE = {
    "arrival_minutes": ("mae", 22.038, 48_947),
    "arrival_kind": ("balanced_accuracy", 0.487, 48_947),
    "flight_delay_lightgbm": ("roc_auc", 0.752, 48_947),
    "flight_delay_xgboost": ("roc_auc", 0.751, 48_947),
}
# The first interval of each, and its rows.
SCORED = {
    "saas_churn": ("2024-04-10", "2024-04-11", 10),
    "content_clicks": ("2024-04-10", "2024-04-11", 20),
    "houses": ("2024-01-01", "2024-02-01", 8),
    "airport_segments": ("2013-10-01", "2013-11-01", 91),
    "odd_weather": ("2013-02-12", "2013-02-13", 72),
}
THE_HOUSE = {"house_id": 9, "listed_at": "2024-01-09T00:00:00Z", "square_footage": 0.56}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The repository's jobs in a folder of their own, and a warehouse as `batchscore demo --data` fills it."""
    root = tmp_path_factory.mktemp("jobs")
    for folder in ("jobs", "sql"):
        shutil.copytree(ROOT / folder, root / folder)
    url = f"duckdb:///{root}/warehouse.duckdb"
    load(Database.at(url), flight_tables() | sample_tables())
    return Project(root, url)


@pytest.fixture(scope="module")
def small(data: Project) -> Project:
    """The same, with a model of each small job and an interval scored."""
    for name in SMALL:
        result = data.call("train", name)
        assert result.code == 0, result.out + result.err
        first, end, _ = SCORED[name]
        result = data.call("backfill", name, "--from", first, "--to", end)
        assert result.code == 0, result.out + result.err
    return data


def _evaluation(project: Project, name: str) -> dict[str, Any]:
    """What training found out about version 1."""
    return json.loads((project.root / f"var/registry/{name}/1/evaluation.json").read_text())


def _row(project: Project, table: str, where: str) -> dict[str, object]:
    """A row of the warehouse as JSON has it."""
    with toy.open_warehouse(Database.at(project.url)) as warehouse, warehouse.begin() as tx:
        given = tx.connection.execute(toy.sa.text(f"SELECT * FROM {table} WHERE {where}")).mappings().one()
        return {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in given.items()}


class TestSamples:
    def test_an_oracle_is_no_better_than_the_docs_say(self) -> None:
        """Whoever knows each row's probability reaches these figures, and the page of the jobs names them."""
        known, shown = accounts(1000, seed=42), clicks(2000, seed=7)
        left, clicked = churn_probability(known), click_probability(shown)

        reached = {
            "accuracy": accuracy_score(known["churned"], left > 0.5),
            "churn": roc_auc_score(known["churned"], left),
            "clicks": roc_auc_score(shown["clicked"], clicked),
        }

        assert reached == pytest.approx({"accuracy": 0.764, "churn": 0.8383, "clicks": 0.7547}, abs=5e-4)
        page = (ROOT / "docs/jobs.md").read_text()
        assert all(f"{value:.3f}" in page for value in reached.values())
        # What the tutorials print is out of reach.
        assert reached["accuracy"] < 0.81
        assert reached["clicks"] < 0.841

    def test_the_probabilities_are_those_of_the_rows(self) -> None:
        """Among many rows of about one probability, as large a share has the outcome."""
        for drawn, probability, outcome in (
            (many := accounts(200_000, seed=1), churn_probability(many), "churned"),
            (many := clicks(200_000, seed=1), click_probability(many), "clicked"),
        ):
            tenths = pl.DataFrame({"p": probability, "y": drawn[outcome]}).with_columns(
                tenth=(pl.col("p") * 10).floor()
            )
            for _, rows in tenths.group_by("tenth"):
                assert rows["y"].mean() == pytest.approx(rows["p"].mean(), abs=4 * 0.5 / rows.height**0.5)

    def test_half_leave_and_half_click(self) -> None:
        """The classes are about as frequent."""
        assert accounts(1000, seed=42)["churned"].mean() == pytest.approx(0.5, abs=0.03)
        assert clicks(2000, seed=7)["clicked"].mean() == pytest.approx(0.5, abs=0.03)

    def test_spend_and_hour_say_nothing(self) -> None:
        """Another spend, or another hour, changes no probability; more adoption makes an account stay."""
        known, shown = accounts(100, seed=42), clicks(100, seed=7)

        other = known.with_columns(monthly_spend=0.0)
        later = shown.with_columns(hour_of_day=(pl.col("hour_of_day") + 12) % 24)
        keener = known.with_columns(feature_adoption=pl.col("feature_adoption") + 0.1)

        assert churn_probability(other).equals(churn_probability(known))
        assert click_probability(later).equals(click_probability(shown))
        assert (churn_probability(keener) < churn_probability(known)).all()

    def test_are_the_same_every_time(self) -> None:
        """Two calls give the same tables, and what is to be scored lies behind what is learned from."""
        first, second = sample_tables(), sample_tables()

        assert all(first[name].equals(second[name]) for name in first)
        for name, learned in (("accounts", 1000), ("clicks", 2000)):
            time = first[name].to_series(1)
            assert time[:learned].max() < toy.datetime(2024, 4, 10, tzinfo=toy.UTC) <= time[learned:].min()


class TestSmallJobs:
    @pytest.mark.parametrize("name", SMALL)
    def test_reaches_what_was_measured(self, small: Project, name: str) -> None:
        """The metric on held-out rows is the one of the day it was measured."""
        metric, value, tested = SMALL[name]

        found = _evaluation(small, name)

        assert found["rows"]["test"] == tested
        assert found["metric"] == metric
        assert found["test"][metric]["value"] == pytest.approx(value, abs=0.01)

    @pytest.mark.parametrize("name", SMALL)
    def test_scores_an_interval(self, small: Project, name: str) -> None:
        """Each row of its first interval has one prediction."""
        counted = toy.query(small.url, f"SELECT count(*), min(model_name) FROM {name}_predictions")

        assert counted == [(SCORED[name][2], name)]

    def test_the_parts_are_those_of_the_recipe(self, small: Project) -> None:
        """Of 1,000 accounts 700 are fitted on, 150 chosen on and 150 tested on; parameters and threshold are chosen."""
        found = _evaluation(small, "saas_churn")

        assert found["rows"] == {"train": 700, "validation": 150, "test": 150}
        assert found["search"]["tried"] == 8
        assert found["threshold"]["rows"] == 150
        assert len(found["cross_validation"]["metrics"]["roc_auc"]) == 5

    def test_no_honest_figure_is_above_the_oracle(self, small: Project) -> None:
        """Averaged over five folds, neither model beats whoever knows the probabilities."""
        for name, best in (("saas_churn", 0.8383), ("content_clicks", 0.7547)):
            folds = _evaluation(small, name)["cross_validation"]["metrics"]["roc_auc"]
            assert 0.7 < sum(folds) / len(folds) < best

    def test_each_house_gets_its_own_label(self, small: Project) -> None:
        """All eight, those that were held out too."""
        predicted = toy.query(small.url, "SELECT prediction FROM houses_predictions ORDER BY house_id")

        assert [dear for (dear,) in predicted] == houses()["dear"].to_list()
        assert houses()["dear"].cast(pl.Int64).to_list() == [0, 0, 0, 1, 1, 0, 1, 1]

    def test_each_house_is_left_out_once(self, small: Project) -> None:
        """Six houses make six folds of leave-one-out."""
        found = _evaluation(small, "houses")["cross_validation"]

        assert (found["by"], found["folds"]) == ("leave-one-out", 6)

    def test_the_wind_is_found(self, small: Project) -> None:
        """A thousand miles an hour at Newark is the oddest reading of its day, and called odd."""
        (oddest,) = toy.query(
            small.url,
            "SELECT origin, CAST(time_hour AT TIME ZONE 'UTC' AS VARCHAR), round(wind_speed), prediction "
            "FROM odd_weather_predictions ORDER BY score DESC LIMIT 1",
        )
        odd = toy.query(small.url, "SELECT count(*) FROM odd_weather_predictions WHERE prediction")

        assert oddest == ("EWR", "2013-02-12 08:00:00", 1048, True)
        assert odd[0][0] < 5

    def test_airports_are_of_several_kinds(self, small: Project) -> None:
        """The clusters of October tell far airports from near ones."""
        clusters = toy.query(
            small.url,
            "SELECT prediction, count(*), avg(miles) FROM airport_segments_predictions JOIN "
            "(SELECT dest, avg(distance) AS miles FROM flights GROUP BY 1) USING (dest) GROUP BY 1",
        )

        assert {number for number, _, _ in clusters} <= {0, 1, 2, 3}
        assert len(clusters) >= 3
        assert max(miles for *_, miles in clusters) > 2 * min(miles for *_, miles in clusters)


class TestBundles:
    def test_the_encoder_and_the_hours_bins_travel(self, small: Project, tmp_path: Path) -> None:
        """Where no job's Python file is, the next day is scored all the same, by a process of its own."""
        shutil.copytree(small.root, tmp_path / "there")
        for file in (tmp_path / "there/jobs").glob("*.py"):
            file.unlink()
        there = Project(tmp_path / "there", f"duckdb:///{tmp_path}/there/warehouse.duckdb")

        result = there.run("backfill", "content_clicks", "--from", "2024-04-11", "--to", "2024-04-12")

        assert result.code == 0, result.out + result.err
        assert toy.query(there.url, "SELECT count(*) FROM content_clicks_predictions") == [(40,)]

    def test_a_device_never_seen_is_no_error(self, small: Project) -> None:
        """It is encoded as none of those that training saw."""
        given = _row(small, "clicks", "impression_id = 2001") | {"device": "watch"}
        del given["clicked"]

        result = small.call("predict", "content_clicks", "--row", json.dumps(given), "--format", "json")

        assert result.code == 0, result.err
        assert 0 < json.loads(result.out)[0]["score"] < 1


class TestPredict:
    def predicted(self, project: Project, job: str, given: object) -> toy.Result:
        """What `batchscore predict` does."""
        return project.call("predict", job, "--row", json.dumps(given), "--format", "json")

    @pytest.mark.parametrize(
        ("name", "table", "key", "target"),
        [
            ("saas_churn", "accounts", "account_id", "churned"),
            ("content_clicks", "clicks", "impression_id", "clicked"),
            ("houses", "houses", "house_id", "dear"),
        ],
    )
    def test_says_what_was_published(self, small: Project, name: str, table: str, key: str, target: str) -> None:
        """For each row of the scored interval: the same prediction, and the same score to the last bit."""
        published = toy.query(small.url, f"SELECT {key}, prediction, score FROM {name}_predictions ORDER BY 1")
        given = [_row(small, table, f"{key} = {number}") for number, *_ in published]
        assert all(row.pop(target) is not None for row in given)

        result = self.predicted(small, name, given)

        assert result.code == 0, result.err
        assert [tuple(row.values()) for row in json.loads(result.out)] == published
        assert list(json.loads(result.out)[0]) == [key, "prediction", "score"]

    def test_the_table_is_as_the_output_table(self, small: Project) -> None:
        """Its columns have the names of the output table, and above it stands the threshold that was chosen."""
        given = _row(small, "accounts", "account_id = (SELECT max(account_id) FROM accounts)")
        del given["churned"]
        title, names, _ = small.call("predict", "saas_churn", "--row", json.dumps(given)).out.splitlines()

        version = json.loads(small.call("models", "show", "saas_churn", "--format", "json").out)
        assert names.split() == ["account_id", "prediction", "score"]
        shown = re.fullmatch(r"saas_churn version 1, which predicts (\w+) from a score of (\S+) on", title)
        assert shown
        assert (shown[1], float(shown[2])) == (
            str(version["classes"][1]),
            pytest.approx(version["threshold"], rel=1e-3),
        )

    def test_dates_are_iso_text_both_ways(self, small: Project) -> None:
        """A key that is a date is read and printed as ISO text; a clustering has no score."""
        row = {
            "month": "2013-10-01", "dest": "ZZZ", "flights": 31, "days": 31, "mean_distance": 500.0, "carriers": 1,
            "origins": 1, "early_flights": 0, "late_flights": 0, "weekend_flights": 8,
        }  # fmt: skip

        (told,) = json.loads(self.predicted(small, "airport_segments", row).out)

        assert told.keys() == {"month", "dest", "prediction"}
        assert (told["month"], told["dest"]) == ("2013-10-01", "ZZZ")

    def test_needs_no_warehouse_and_writes_nothing(self, small: Project) -> None:
        """Without any database set it answers, and no file of the project is other than before."""
        before = {path: path.stat().st_mtime_ns for path in small.root.rglob("*") if "__pycache__" not in str(path)}

        result = Project(small.root, "").call("predict", "houses", "--row", json.dumps(THE_HOUSE))

        assert result.code == 0, result.err
        assert "houses version 1" in result.out
        after = {path: path.stat().st_mtime_ns for path in small.root.rglob("*") if "__pycache__" not in str(path)}
        assert after == before

    def test_a_column_that_was_null_in_training_may_be_left_out(self, small: Project) -> None:
        """It is NULL then, as where it is null."""
        reading = _row(small, "weather", "origin = 'JFK' ORDER BY time_hour LIMIT 1")
        row = {
            name: reading[name]
            for name in ("origin", "time_hour", "temp", "dewp", "humid", "wind_speed", "precip", "visib")
        }

        without, with_null = (self.predicted(small, "odd_weather", each) for each in (row, row | {"wind_gust": None}))

        assert without.code == 0, without.err
        assert without.out == with_null.out

    def test_reads_a_file_and_standard_input(self, small: Project, tmp_path: Path, monkeypatch: Any) -> None:
        """`@FILE` and `-` are what they hold: one object, or a list."""
        (tmp_path / "rows.json").write_text(json.dumps([THE_HOUSE, THE_HOUSE | {"house_id": 10}]))
        with (tmp_path / "rows.json").open() as rows:
            monkeypatch.setattr(sys, "stdin", rows)
            answers = [
                small.call("predict", "houses", "--row", given, "--format", "json")
                for given in (f"@{tmp_path}/rows.json", "-")
            ]

        assert answers[0].out == answers[1].out
        assert [row["house_id"] for row in json.loads(answers[0].out)] == [9, 10]

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"square_footage": "big"}, 'row 2: column square_footage: want float, got "big". Write a number'),
            ({"square_footage": [1]}, r"want float, got [1]"),
            ({"square_footage": True}, "want float, got true"),
            ({"house_id": 1.5}, "want integer, got 1.5. Write a whole number"),
            ({"house_id": 2**70}, f"want integer, got {2**70}"),
            ({"listed_at": "yesterday"}, 'want timestamp_tz, got "yesterday". Write "2013-10-01T08:00:00Z"'),
            ({"listed_at": "\ud800"}, r'want timestamp_tz, got "\ud800"'),
            ({"square_fotage": 1}, "column square_fotage is none of the bundle's. Did you mean square_footage?"),
            ({"square_footage": None}, "row 2 cannot be scored: unexpected_null in input (column square_footage)"),
        ],
        ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
    )
    def test_a_row_that_does_not_fit(self, small: Project, change: dict[str, object], told: str) -> None:
        """The second row is refused with exit code 11: which column, what is wanted, what is there."""
        result = self.predicted(small, "houses", [THE_HOUSE, THE_HOUSE | change])

        assert result.code == 11
        assert result.out == ""
        assert told in result.error

    def test_a_column_that_is_missing(self, small: Project) -> None:
        """Every column that is wanting is named with its type."""
        result = self.predicted(small, "houses", {"house_id": 1})

        assert result.code == 11
        assert (
            "lacks 2 column(s) that the bundle needs: listed_at (timestamp_tz), square_footage (float)" in result.error
        )

    @pytest.mark.parametrize("given", ["{", "[]", "[1]", "3", '{"house_id": NaN}', "[" * 100_000, "@nowhere", "@."])
    def test_what_is_no_row(self, small: Project, given: str) -> None:
        """What is not JSON, or not an object or a list of them, or cannot be read, is an error of use."""
        result = small.call("predict", "houses", "--row", given)

        assert result.code == 2
        assert result.out == ""
        assert "--row" in result.error

    def test_what_a_job_prints_is_not_the_answer(self, small: Project, tmp_path: Path) -> None:
        """The JSON is alone on standard output where the features print something."""
        for folder in ("jobs", "sql"):
            shutil.copytree(small.root / folder, tmp_path / folder)
        talking = Project(tmp_path, small.url)
        talking.edit("jobs/houses.py", ("    return rows.select(", "    print('called')\n    return rows.select("))
        assert talking.call("train", "houses").code == 0

        result = self.predicted(talking, "houses", THE_HOUSE)

        assert json.loads(result.out)[0]["house_id"] == 9
        assert "called" in result.err


class TestLibraries:
    @pytest.mark.parametrize("package", ["lightgbm", "xgboost"])
    def test_a_missing_one_is_named_with_its_remedy(self, data: Project, package: str, monkeypatch: Any) -> None:
        """Where it is not installed, `train` ends with 2 and says what to type, which is an extra of the package."""
        monkeypatch.setitem(sys.modules, package, None)

        result = data.call("train", f"flight_delay_{package}")

        assert result.code == 2
        assert f"pip install 'batchscore[{package}]'" in result.error
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert package in extras

    def test_a_missing_package_of_another_kind(self, small: Project, tmp_path: Path) -> None:
        """It is named, and no extra is made up for it."""
        for folder in ("jobs", "sql"):
            shutil.copytree(small.root / folder, tmp_path / folder)
        there = Project(tmp_path, small.url)
        there.edit("jobs/houses.py", ("import polars as pl", "import no_such_package.part"))

        result = there.call("train", "houses")

        assert result.code == 2
        assert "Install what it needs: pip install the package that has no_such_package" in result.error

    @pytest.mark.parametrize(
        ("name", "trees"),
        [(name, "max_iter=100" if name.startswith("arrival") else "n_estimators=200") for name in LARGE],
    )
    def test_learns_from_a_month(self, data: Project, tmp_path: Path, name: str, trees: str) -> None:
        """From September alone, with few trees, it scores a day of October on flight_delay's query."""
        for folder in ("jobs", "sql"):
            shutil.copytree(data.root / folder, tmp_path / folder)
        there = Project(tmp_path, data.url)
        text = (tmp_path / f"jobs/{name}.toml").read_text()
        text = text.replace("from = 2013-01-01", "from = 2013-09-01")
        text = re.sub(r"at_least = 0\.\d+", "at_least = 0.35", text)
        (tmp_path / f"jobs/{name}.toml").write_text(text)
        there.edit(f"jobs/{name}.py", (trees, f"{trees.split('=', maxsplit=1)[0]}=20"))

        trained = there.call("train", name)
        (there.root / f"jobs/{name}.py").unlink()
        scored = there.call("backfill", name, "--from", "2013-10-01", "--to", "2013-10-02")

        assert trained.code == 0, trained.out
        assert scored.code == 0, scored.out + scored.err
        answers = toy.query(there.url, f"SELECT count(*), count(DISTINCT flight_id) FROM {name}_predictions")
        assert answers == [(965, 965)]


@pytest.mark.long
class TestPostgres:
    @pytest.mark.parametrize("name", SMALL)
    def test_the_queries_are_for_it_too(self, small: Project, postgres_url: str, tmp_path: Path, name: str) -> None:
        """From Postgres each small job learns the same, and scores as many rows."""
        for folder in ("jobs", "sql"):
            shutil.copytree(ROOT / folder, tmp_path / folder)
        load(Database.at(postgres_url), flight_tables() | sample_tables())
        there = Project(tmp_path, postgres_url)
        first, end, rows = SCORED[name]

        results = [there.call("train", name), there.call("backfill", name, "--from", first, "--to", end)]

        assert [result.code for result in results] == [0, 0], results
        here, known = (_evaluation(project, name)["test"] for project in (there, small))
        assert {each: here[each]["value"] for each in here} == pytest.approx(
            {each: known[each]["value"] for each in known}, rel=1e-6
        )
        assert toy.query(postgres_url, f"SELECT count(*) FROM {name}_predictions") == [(rows,)]


@pytest.mark.long
class TestLargeJobs:
    @pytest.mark.parametrize("name", LARGE)
    def test_reaches_what_was_measured(self, data: Project, name: str) -> None:
        """From nine months it learns what was measured, better than the linear model beside it."""
        metric, value, tested = LARGE[name]

        result = data.call("train", name)

        assert result.code == 0, result.out + result.err
        found = _evaluation(data, name)
        assert found["rows"]["test"] == tested
        assert found["test"][metric]["value"] == pytest.approx(value, rel=0.01)
        gain = found["test"][metric]["value"] - found["baselines"]["linear"][metric]
        assert gain * (-1 if metric == "mae" else 1) > 0.02


class TestPages:
    @pytest.mark.parametrize("name", [*SMALL, *LARGE])
    def test_say_what_was_measured(self, name: str) -> None:
        """The table and the README have the figures that the tests measure."""
        metric, value, tested = (SMALL | LARGE)[name]

        page, readme = ((ROOT / file).read_text() for file in ("docs/jobs.md", "README.md"))

        row = re.search(rf"^\| `{name}` \|.*\| `{metric}` \| {value:.3f} ", page, re.MULTILINE)
        assert row
        assert f"{name} version 1 is registered: {metric} {value:.3f} on {tested:,} rows held out" in readme

    @pytest.mark.parametrize("name", [name for name in SMALL if name != "houses"])
    def test_tell_the_intervals(self, small: Project, name: str) -> None:
        """Behind each value stands its interval, where it has one."""
        metric, *_ = SMALL[name]
        found = _evaluation(small, name)["test"][metric]
        (row,) = re.findall(rf"^\| `{name}` \|.*$", (ROOT / "docs/jobs.md").read_text(), re.MULTILINE)

        told = re.search(r"\(([\d.]+) to ([\d.]+)\)", row)

        assert (told is None) == (found["low"] is None)
        assert told is None or [float(each) for each in told.groups()] == pytest.approx(
            [found["low"], found["high"]], abs=0.01
        )


class TestData:
    def test_the_demo_loads_the_data_and_stops(self, tmp_path: Path) -> None:
        """`demo --data` in an empty folder makes the warehouse, trains nothing, and says how to go on."""
        result = Project(tmp_path, "").call("demo", "--data")

        assert result.code == 0, result.err
        assert "accounts 1,200 rows, clicks 2,200 rows, houses 8 rows" in result.out
        assert "export BATCHSCORE_WAREHOUSE_URL=duckdb:///var/warehouse.duckdb" in result.out
        assert [path.name for path in (tmp_path / "var").iterdir()] == ["warehouse.duckdb"]
        tables = toy.tables(f"duckdb:///{tmp_path}/var/warehouse.duckdb")
        assert tables == ["accounts", "clicks", "flights", "houses", "planes", "weather"]
