"""`evaluate` and what it keeps: metrics of published predictions, as far as their labels are known."""

from __future__ import annotations

import json
import math
import re
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import polars as pl
import pytest
import toy
from toy import Project

from batchscore import ledger
from batchscore.cli.evaluate import _lately, _worst_slices
from batchscore.cli.session import Session, runs_of
from batchscore.interval import Calendar
from batchscore.ledger import Run
from batchscore.model.metrics import evaluate
from batchscore.monitor.due import degraded
from batchscore.monitor.labelled import Evaluator, Performance
from batchscore.run.scoring import output_of
from batchscore.settings import load_settings
from batchscore.sources import Source
from batchscore.warehouse import Warehouse
from tests.test_render import at_terminal

T = TypeVar("T")

LABELS = "SELECT id, y, known_at FROM toy JOIN arrivals USING (id) WHERE ts >= :interval_start AND ts < :interval_end\n"
PERFORMANCE = """
[performance]
known_at = "known_at"
slices = ["c", "b"]

[output]"""
FIRST = ("--from", "2024-02-01", "--to", "2024-02-02")
WINDOW = ("--from", "2024-02-01", "--to", "2024-02-06")
# Of the 250 rows a day, how many have a label, by day of February.
KNOWN = {1: 250, 2: 225, 3: 224, 4: 40, 5: 0}
LONG = "w" * 128


def day(number: int) -> datetime:
    """The start of a day of February in New York."""
    return datetime(2024, 2, number, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def scored(trained: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Five days of New York, scored, of which each has fewer labels than the one before; never changed.

    Labels become known in the evening of the next day by UTC, those of rows after midnight there a day later.
    """
    root = tmp_path_factory.mktemp("labelled") / "project"
    shutil.copytree(trained.root, root)
    project = Project(root, f"duckdb:///{root}/warehouse.duckdb")
    rows = toy.rows(38, 250)
    # Two long values that begin alike.
    c = pl.when(pl.col("id") % 10 == 0).then(pl.lit(f"{LONG}a")).when(pl.col("id") % 10 == 1).then(pl.lit(f"{LONG}b"))
    c = c.when((pl.col("id") % 10 == 2) & (pl.col("c") == "x")).then(pl.lit("x  "))
    late = rows.filter(pl.col("ts") >= day(1)).with_columns(c=c.otherwise("c"), b=pl.col("b").round())
    toy.load(project.url, pl.concat([rows.filter(pl.col("ts") < day(1)), late]))
    known = " OR ".join(
        f"id IN (SELECT id FROM toy WHERE ts >= '{day(number)}' ORDER BY ts LIMIT {count})"
        for number, count in KNOWN.items()
    )
    toy.execute(
        project.url,
        "CREATE TABLE arrivals AS SELECT id, date_trunc('day', ts) + INTERVAL 40 HOUR AS known_at "
        f"FROM toy WHERE ts < '{day(1)}' OR {known}",
    )
    (root / "sql/toy/labels.sql").write_text(LABELS)
    project.edit(
        "jobs/toy.toml",
        ("start = 2024-02-01", 'start = 2024-02-01\ntimezone = "America/New_York"'),
        ('carry = ["day"]', 'carry = ["day", "c", "b"]'),
        ("\n[output]", PERFORMANCE),
    )
    assert project.call("backfill", "toy", *WINDOW).code == 0
    (root / "evaluated.json").write_text(json.dumps(evaluated(project, "--all")))
    return project


@pytest.fixture
def project_of(scored: Project, tmp_path: Path) -> Project:
    """A copy of it, to be spoilt."""
    shutil.copytree(scored.root, tmp_path / "project")
    return Project(tmp_path / "project", f"duckdb:///{tmp_path}/project/warehouse.duckdb")


def kept(project: Project, where: str = "TRUE", columns: str = "*", kind: str = "measured") -> list[dict[str, Any]]:
    """Rows of batchscore_performance, by window, slice and metric."""
    where = f"{where} AND kind = '{kind}'"
    names = toy.columns(project.url, "batchscore_performance") if columns == "*" else columns.split(", ")
    order = "window_start, slice_column, slice_value, metric"
    rows = toy.query(project.url, f"SELECT {columns} FROM batchscore_performance WHERE {where} ORDER BY {order}")
    return [dict(zip(names, row, strict=True)) for row in rows]


def joined(project: Project, where: str) -> tuple[pl.Series, pl.DataFrame]:
    """Labels, and predictions of the same rows, as the database joins them."""
    rows = toy.query(
        project.url,
        "SELECT y, p.prediction, p.score FROM toy_predictions p JOIN toy USING (id) JOIN arrivals USING (id) "
        f"WHERE {where}",
    )
    frame = pl.DataFrame(rows, schema=["y", "prediction", "score"], orient="row")
    return frame["y"], frame.drop("y")


def evaluated(project: Project, *options: str) -> list[dict[str, Any]]:
    """The rows that `evaluate` gives as JSON."""
    result = project.call("evaluate", "toy", *options, "--format", "json")
    assert result.code == 0, result.err
    found: list[dict[str, Any]] = json.loads(result.out)
    return found


def assert_measured(rows: list[dict[str, Any]], truth: pl.Series, answers: pl.DataFrame) -> None:
    """The rows hold every metric of those labels and predictions, and from 200 labels on an interval about each."""
    exact = {name: value for name, value in evaluate("binary", truth, answers, (False, True)).items() if value == value}
    found = {row["metric"]: row for row in rows}
    assert found.keys() == exact.keys()
    for name, row in found.items():
        assert math.isclose(row["value"], exact[name], abs_tol=0.003), name
        assert row["labelled"] == len(truth)
    for row in rows:
        if row["metric"] in ("roc_auc", "accuracy"):
            assert row["low"] is None if len(truth) < 200 else row["low"] < row["value"] < row["high"]


class TestScored:
    """By the interval of the prediction."""

    @pytest.mark.parametrize("number", [1, 2, 3, 4])
    def test_metrics(self, scored: Project, number: int) -> None:
        """Each metric of training is there, and is that of the rows which the database itself joins."""
        where = f"window_start = '{day(number)}' AND cohort = 'scored' AND slice_column = ''"

        assert_measured(kept(scored, where), *joined(scored, f"p.interval_start = '{day(number)}'"))

    def test_states(self, scored: Project) -> None:
        """From nine labels of ten on an interval is mature, and below 200 labels there is not enough data at all."""
        everything = json.loads((scored.root / "evaluated.json").read_text())
        found = {row["interval"]: row for row in everything if row["metric"] == "roc_auc" and not row["slice"]}

        columns = ("predictions", "labelled", "coverage", "state", "verdict")
        assert [
            (250, 250, 1.0, "mature", "as good"),
            (250, 225, 0.9, "mature", "as good"),
            (250, 224, 0.896, "immature", "immature"),
            (250, 40, 0.16, "not enough data", "not enough data"),
            (250, 0, 0.0, "not enough data", "not enough data"),
        ] == [tuple(found[f"2024-02-0{number}"][name] for name in columns) for number in KNOWN]
        assert found["2024-02-05"]["value"] is None
        for number in (1, 2, 3, 4):
            (row,) = kept(scored, f"window_start = '{day(number)}' AND cohort = 'scored' AND metric = 'roc_auc' AND slice_column = ''")  # fmt: skip
            shown = found[f"2024-02-0{number}"]
            assert all(row[name] == shown[name] for name in ("value", "low", "high", "coverage", "state", "metric"))
            assert (row["model_name"], row["model_version"], row["kind"]) == ("toy", 1, "measured")
            assert row["window_end"].astimezone(UTC) == day(number + 1)

    def test_slices(self, scored: Project) -> None:
        """Each value is a slice; alike for 128 characters, or but for spaces at the end, they are one; NULL is one too."""
        where = f"window_start = '{day(1)}' AND cohort = 'scored' AND slice_column = "
        by_c = kept(scored, f"{where} 'c'")

        # MariaDB takes them for one key.
        assert toy.query(scored.url, f"SELECT count(*) > 5 FROM toy WHERE c = 'x  ' AND ts >= '{day(1)}'") == [(True,)]
        assert {"x", "y", "z", LONG} == {row["slice_value"] for row in by_c}
        for value in ("x", LONG):
            rows = [row for row in by_c if row["slice_value"] == value]
            of_slice = f"p.interval_start = '{day(1)}' AND rtrim(substr(p.c, 1, 128)) = '{value}'"
            assert_measured(rows, *joined(scored, of_slice))
            assert {row["predictions"] for row in rows} == {row["labelled"] for row in rows}
        assert_measured(
            kept(scored, f"{where} 'b' AND slice_value = 'NULL'"),
            *joined(scored, f"p.interval_start = '{day(1)}' AND p.b IS NULL"),
        )

    def test_worst_slices_in_little_memory(self, project_of: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """The slices of all the runs are never held at once: the most that is held is far less than their tallies."""
        # Each is of many bytes, and of so many rows that it counts.
        grown = "tally = tally || repeat(' ', 500000), labelled = labelled + 200"
        toy.execute(project_of.url, f"UPDATE batchscore_tallies SET {grown} WHERE labelled > 0")
        ((size,),) = toy.query(
            project_of.url, "SELECT CAST(sum(length(tally)) AS BIGINT) FROM batchscore_tallies WHERE slice_column <> ''"
        )
        monkeypatch.chdir(project_of.root)
        monkeypatch.setenv("BATCHSCORE_WAREHOUSE_URL", project_of.url)
        session = Session.of(load_settings({}))
        job, bundle = session.job("toy"), session.load("toy", 1)
        evaluator = Evaluator(job, bundle, output_of(job, bundle), session.labels(job))

        with session.warehouse(read_only=True) as warehouse:
            chosen = [(run, evaluator) for run in runs_of(warehouse, job)]
            tracemalloc.start()
            try:
                worst = _worst_slices(warehouse, chosen, job)
                most = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        assert 2 < len(worst) <= 8
        assert most < size / 2

    def test_hours(self, project: Project) -> None:
        """Without dates an hourly job is evaluated for all hours of the last 31 days, and not for 31 of them."""
        project.edit("jobs/toy.toml", ('every = "day"', 'every = "hour"'))
        assert 0 == project.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-02T12:00").code

        assert 36 == len(evaluated(project))

    @pytest.mark.parametrize(("every", "count"), [("hour", 31 * 24 - 24 + 12), ("day", 31), ("week", 31)])
    def test_lately(self, every: Any, count: int) -> None:
        """The last 31 days end with that of the last interval; of longer intervals there are 31."""
        calendar = Calendar(every, ZoneInfo("America/New_York"))
        start, end = (calendar.containing(datetime(year, 11, 20, 16, 30, tzinfo=UTC)).end for year in (2023, 2024))
        runs = [SimpleNamespace(interval=each) for each in calendar.between(start, end)]

        lately = _lately(runs, calendar)  # type: ignore[arg-type]

        # An hour of that November came twice.
        assert lately == runs[-(count + (every == "hour")) :]

    def test_most_slices(self, project: Project) -> None:
        """Of a column whose values are all different there are 50 slices and no more."""
        project.edit("jobs/toy.toml", ("\n[output]", '\n[performance]\nslices = ["id"]\n\n[output]'))
        assert 0 == project.call("backfill", "toy", *FIRST).code

        assert 51 == len({row["slice"] for row in evaluated(project, "--all")})

    def test_shown(self, scored: Project) -> None:
        """The job's metric alone is shown; --all shows every metric of every slice."""
        everything = json.loads((scored.root / "evaluated.json").read_text())

        assert {("roc_auc", "")} == {(row["metric"], row["slice"]) for row in evaluated(scored, *FIRST)}
        assert {"", "c = x", "b = NULL"} <= {row["slice"] for row in everything}
        first = [row for row in everything if row["interval"] == "2024-02-01" and not row["slice"]]
        assert {row["metric"] for row in first} == {
            row["metric"] for row in kept(scored, f"window_start = '{day(1)}' AND slice_column = ''")
        }

    def test_learned_from(self, project: Project) -> None:
        """Of days whose rows the version has learned from it is said, and not of those that it was tested on."""
        project.edit("jobs/toy.toml", ("start = 2024-02-01", "start = 2024-01-01"))
        assert project.call("backfill", "toy", "--from", "2024-01-20", "--to", "2024-01-27").code == 0

        both = project.call("evaluate", "toy")
        later = project.call("evaluate", "toy", "--from", "2024-01-25", "--to", "2024-01-27")

        assert "toy version 1 learned from rows of 2024-01-20 to 2024-01-24: that flatters it there\n" in both.err
        assert "learned from" not in later.err

    def test_narrow(self, scored: Project) -> None:
        """A narrow terminal keeps what tells two rows apart, and an interval's ends leave it together."""
        _, wide = at_terminal(scored, "evaluate", "toy", *FIRST, "--all", COLUMNS="140")
        _, narrow = at_terminal(scored, "evaluate", "toy", *FIRST, COLUMNS="80")
        _, sliced = at_terminal(scored, "evaluate", "toy", *FIRST, "--all", COLUMNS="80")

        assert re.search(r"2024-02-01 +c = x +.* roc_auc ", wide)
        assert "Left out for want of room: version, predictions, estimated low, estimated high" in wide
        assert re.search(r"2024-02-01 .* roc_auc ", narrow)
        assert re.search(r"2024-02-01 +c = x +.* roc_auc ", sliced)
        assert sliced.splitlines()[-1].endswith("low, high.")

    def test_window(self, scored: Project) -> None:
        """--from and --to choose intervals; beside what is published there is nothing, which is said."""
        found = evaluated(scored, "--from", "2024-02-02", "--to", "2024-02-04")
        nothing = scored.call("evaluate", "toy", "--to", "2024-02-01")

        assert ["2024-02-02", "2024-02-03"] == [row["interval"] for row in found]
        assert "nothing published in this window, so there is nothing to hold against labels\n" == nothing.out
        assert 2 == scored.call("evaluate", "toy", "--from", "2024-02-02", "--to", "2024-02-01").code

    def test_flipped_labels(self, project_of: Project) -> None:
        """Where half of a day's labels are wrong, its metrics are worse than on the test rows; its slices are not judged."""
        toy.execute(
            project_of.url, f"UPDATE toy SET y = NOT y WHERE id % 2 = 0 AND ts >= '{day(1)}' AND ts < '{day(2)}'"
        )
        found = [row for row in evaluated(project_of, "--all") if row["interval"] in ("2024-02-01", "2024-02-02")]
        verdicts = {(row["interval"], row["slice"], row["metric"]): row["verdict"] for row in found}

        for metric in ("roc_auc", "brier", "accuracy"):
            assert "worse" == verdicts["2024-02-01", "", metric]
            assert "as good" == verdicts["2024-02-02", "", metric]
            assert verdicts["2024-02-01", "c = x", metric] in ("not compared", "not enough data")
        assert {"not compared"} == {verdicts["2024-02-01", "", metric] for metric in ("base_rate", "ece")}
        where = f"cohort = 'scored' AND slice_column = '' AND window_start = '{day(1)}'"
        assert {verdicts["2024-02-01", "", row["metric"]] == row["verdict"] for row in kept(project_of, where)} == {
            True
        }

    def test_later_labels(self, project_of: Project) -> None:
        """What is known later takes the place of what was kept, and an interval becomes mature."""
        toy.execute(
            project_of.url,
            f"INSERT INTO arrivals SELECT id, '{day(6)}' FROM toy WHERE ts >= '{day(3)}' AND ts < '{day(4)}' "
            "AND id NOT IN (SELECT id FROM arrivals)",
        )
        found = {row["interval"]: row for row in evaluated(project_of)}

        assert (250, "mature") == tuple(found["2024-02-03"][name] for name in ("labelled", "state"))
        where = f"window_start = '{day(3)}' AND cohort = 'scored' AND slice_column = ''"
        assert_measured(kept(project_of, where), *joined(project_of, f"p.interval_start = '{day(3)}'"))

    def test_withdrawn_labels(self, project_of: Project) -> None:
        """Labels that are gone leave no metric behind."""
        toy.execute(project_of.url, "DELETE FROM arrivals")

        assert {None} == {row["value"] for row in evaluated(project_of)}
        assert [] == kept(project_of)


class TestEstimated:
    """From the scores alone, as soon as a run is published."""

    def test_without_labels(self, scored: Project) -> None:
        """Every published run has it, and it stands beside what is measured, and where nothing is."""
        found = {
            row["interval"]: row
            for row in json.loads((scored.root / "evaluated.json").read_text())
            if row["metric"] == "roc_auc" and not row["slice"]
        }
        rows = kept(scored, "metric = 'roc_auc'", kind="estimated")

        assert list(KNOWN) == [(row["window_start"] - day(1)).days + 1 for row in rows]
        for number, row in zip(KNOWN, rows, strict=True):
            shown = found[f"2024-02-0{number}"]
            assert (row["value"], row["low"], row["high"]) == tuple(
                shown[name] for name in ("estimated", "estimated_low", "estimated_high")
            )
            assert (row["state"], row["verdict"], row["labelled"], row["predictions"]) == ("mature", "as good", 0, 250)
        assert found["2024-02-05"]["value"] is None

    def test_holds_what_is_measured(self, scored: Project) -> None:
        """On the days that have all labels the measured metrics lie in the intervals of the estimate, most of them."""
        pairs = toy.query(
            scored.url,
            "SELECT m.metric, m.value, e.low, e.high FROM batchscore_performance m JOIN batchscore_performance e "
            "USING (cohort, window_start, slice_column, slice_value, metric) "
            "WHERE m.kind = 'measured' AND e.kind = 'estimated' AND m.state = 'mature'",
        )
        held = [low <= value <= high for _, value, low, high in pairs]

        assert 20 == len(held)
        assert sum(held) >= 18

    def test_sees_no_wrong_label(self, project_of: Project) -> None:
        """Labels are nothing to it: where they turn, only what is measured tells."""
        before = kept(project_of, columns="window_start, slice_column, slice_value, metric, value", kind="estimated")
        toy.execute(project_of.url, "UPDATE toy SET y = NOT y")
        evaluated(project_of)

        columns = "window_start, slice_column, slice_value, metric, value"
        assert before == kept(project_of, columns=columns, kind="estimated")

    def test_few_rows(self, project: Project) -> None:
        """A hundred rows are too few to judge by."""
        assert 0 == project.call("backfill", "toy", *FIRST).code

        assert {("not enough data", "not enough data")} == {
            (row["state"], row["verdict"]) for row in kept(project, kind="estimated")
        }

    def test_another_version(self, project: Project) -> None:
        """What another version has replaced has no estimate any more."""
        assert 0 == project.call("backfill", "toy", *FIRST).code
        assert 0 == project.call("train", "toy", "--promote").code
        assert 0 == project.call("backfill", "toy", *FIRST, "--only", "all").code

        assert {2} == {row["model_version"] for row in kept(project, kind="estimated")}


class TestLabelled:
    """By the interval in which the label became known."""

    def test_metrics(self, scored: Project) -> None:
        """The metrics of a window are of all labels that arrived in it, of whichever run; their coverage is unknown."""
        arrived = f"known_at >= '{day(3)}' AND known_at < '{day(4)}'"
        runs = toy.query(
            scored.url,
            "SELECT DISTINCT interval_start FROM toy_predictions JOIN arrivals USING (id) WHERE " + arrived,
        )
        rows = kept(scored, f"window_start = '{day(3)}' AND cohort = 'labelled' AND slice_column = ''")

        assert len(runs) > 1
        assert_measured(rows, *joined(scored, arrived))
        assert {None} == {row["coverage"] for row in rows}
        assert {row["labelled"] for row in rows} == {row["predictions"] for row in rows}

    def test_every_label_once(self, scored: Project) -> None:
        """Over all windows each label counts once."""
        rows = kept(scored, "cohort = 'labelled' AND metric = 'accuracy' AND slice_column = ''", "labelled")

        assert sum(KNOWN.values()) == sum(row["labelled"] for row in rows)

    def test_another_time(self, project_of: Project) -> None:
        """A label whose time is mended moves to that window, and one without a time to its prediction's."""
        toy.execute(
            project_of.url,
            f"UPDATE arrivals SET known_at = '{day(20)}' FROM toy WHERE toy.id = arrivals.id AND ts >= '{day(1)}'",
            f"UPDATE arrivals SET known_at = NULL FROM toy WHERE toy.id = arrivals.id AND ts >= '{day(4)}'",
        )
        evaluated(project_of)
        rows = kept(project_of, "cohort = 'labelled' AND metric = 'accuracy' AND slice_column = ''")

        assert [(day(4), 40), (day(20), 699)] == [
            (row["window_start"].astimezone(UTC), row["labelled"]) for row in rows
        ]

    def test_no_longer_asked_for(self, project_of: Project) -> None:
        """Without `known_at` nothing is kept by arrival."""
        project_of.edit("jobs/toy.toml", ('known_at = "known_at"\n', ""))
        evaluated(project_of)

        assert [] == [
            row for row in kept(project_of, "cohort = 'labelled'") if row["window_start"].astimezone(UTC) <= day(5)
        ]

    @pytest.mark.parametrize(
        ("column", "message"),
        [
            ("known_at::TIMESTAMP AS known_at", "column known_at: want timestamp_tz, got timestamp."),
            ("known_at AS arrived", "toy/labels.sql has no column known_at. It has: id, y, arrived."),
        ],
    )
    def test_no_instant(self, project_of: Project, column: str, message: str) -> None:
        """A time without its zone, or none at all, is refused with what to do, and `check` finds the missing one."""
        (project_of.root / "sql/toy/labels.sql").write_text(LABELS.replace("known_at", column, 1))
        result = project_of.call("evaluate", "toy")

        assert 11 == result.code
        assert message in result.error
        if "no column" in message:
            assert message in project_of.call("check", "toy").out


class TestReplaced:
    """What becomes of the metrics of predictions that others have replaced."""

    @pytest.fixture
    def rescored(self, project_of: Project) -> Project:
        """The second day scored by another version."""
        project_of.edit("jobs/toy.toml", ("to = 2024-02-01", "to = 2024-01-25"))
        assert 0 == project_of.call("train", "toy", "--promote").code
        window = ("--from", "2024-02-02", "--to", "2024-02-03")
        assert 0 == project_of.call("backfill", "toy", *window, "--only", "all").code
        return project_of

    def test_by_another_version(self, rescored: Project) -> None:
        """Of the interval there are the metrics of the new version alone, and labels by arrival count for it alone."""
        evaluated(rescored)
        versions = kept(
            rescored, "cohort = 'scored' AND metric = 'accuracy' AND slice_column = ''", "window_start, model_version"
        )
        arrived = kept(
            rescored, "cohort = 'labelled' AND metric = 'accuracy' AND slice_column = ''", "model_version, labelled"
        )

        assert [1, 2, 1, 1] == [row["model_version"] for row in versions]
        assert 225 == sum(row["labelled"] for row in arrived if row["model_version"] == 2)
        assert sum(KNOWN.values()) == sum(row["labelled"] for row in arrived)
        where = f"window_start = '{day(2)}' AND cohort = 'scored' AND slice_column = ''"
        assert_measured(kept(rescored, where), *joined(rescored, f"p.interval_start = '{day(2)}'"))

    def test_evaluating_another_day(self, rescored: Project) -> None:
        """`evaluate` of another day evaluates what was scored again since too, and says so: no label is lost by arrival.

        It is not among what is printed, and once is enough.
        """
        window = ("--from", "2024-02-03", "--to", "2024-02-04", "--format", "json")
        first, second = (rescored.call("evaluate", "toy", *window) for _ in range(2))
        arrived = kept(rescored, "cohort = 'labelled' AND metric = 'accuracy' AND slice_column = ''", "labelled")

        assert ["2024-02-03"] == [row["interval"] for row in json.loads(first.out)]
        assert "evaluated again too, for they were scored again since: 2024-02-02\n" in first.err
        assert sum(KNOWN.values()) == sum(row["labelled"] for row in arrived)
        assert "evaluated again" not in second.err

    def test_pruned(self, rescored: Project) -> None:
        """The tallies of a replaced run go with it, and those of published runs stay."""
        assert 0 == rescored.call("runs", "prune", "--older-than", "0h").code
        statuses = "SELECT DISTINCT r.status FROM batchscore_tallies t LEFT JOIN batchscore_runs r USING (run_id)"

        assert [("published",)] == toy.query(rescored.url, statuses)

    def test_by_the_same_version(self, project_of: Project) -> None:
        """Rows that have changed are scored again, and the labels of the run before count no more."""
        toy.execute(project_of.url, f"UPDATE toy SET a = a * 1.2 WHERE ts >= '{day(2)}' AND ts < '{day(3)}'")
        window = ("--from", "2024-02-02", "--to", "2024-02-03")
        assert 0 == project_of.call("backfill", "toy", *window, "--only", "changed-input").code
        evaluated(project_of)
        rows = kept(project_of, "cohort = 'labelled' AND metric = 'accuracy' AND slice_column = ''", "labelled")

        assert sum(KNOWN.values()) == sum(row["labelled"] for row in rows)
        where = f"window_start = '{day(2)}' AND cohort = 'scored' AND slice_column = ''"
        assert_measured(kept(project_of, where), *joined(project_of, f"p.interval_start = '{day(2)}'"))

    def test_a_version_that_is_gone(self, rescored: Project) -> None:
        """Runs whose bundle is gone are left out, which is said once, and the others are evaluated."""
        shutil.rmtree(rescored.root / "var/registry/toy/1")
        result = rescored.call("evaluate", "toy", "--format", "json")

        assert ["2024-02-02"] == [row["interval"] for row in json.loads(result.out)]
        assert 1 == result.err.count("left out are the runs of toy version 1: ")

    def test_a_replaced_version_that_is_gone(self, rescored: Project) -> None:
        """What it left is forgotten once what took its place is evaluated, which is then not done at every turn."""
        tallied = "SELECT count(*) FROM batchscore_tallies JOIN batchscore_runs USING (run_id) WHERE status = '{}'"
        shutil.rmtree(rescored.root / "var/registry/toy/1")
        replaced, published = (toy.query(rescored.url, tallied.format(each)) for each in ("superseded", "published"))
        assert replaced > [(0,)]

        window = ("--from", "2024-02-02", "--to", "2024-02-03")
        first, second = (rescored.call("evaluate", "toy", *window) for _ in range(2))

        assert 1 == first.err.count("left out are the runs of toy version 1: ")
        assert "left out" not in second.err
        assert [(0,)] == toy.query(rescored.url, tallied.format("superseded"))
        assert published < toy.query(rescored.url, tallied.format("published"))


@dataclass
class Interrupting:
    """Labels that do something before they are read."""

    source: Source
    then: Callable[[], None]

    def batches(self, *args: Any, **options: Any) -> Iterator[pl.DataFrame]:
        """Those of the source."""
        self.then()
        yield from self.source.batches(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


class TestMeanwhile:
    """What others do while labels are read and metrics worked out."""

    def while_labels_are_read(
        self,
        project: Project,
        monkeypatch: pytest.MonkeyPatch,
        statement: str,
        call: Callable[[Evaluator, Warehouse, list[Run]], T],
    ) -> T:
        """What came of the published runs, where another process executes a statement while labels are read."""
        monkeypatch.chdir(project.root)
        monkeypatch.setenv("BATCHSCORE_WAREHOUSE_URL", project.url)
        session = Session.of(load_settings({}))
        job = session.job("toy")
        bundle = session.load("toy", 1)

        labels = Interrupting(session.labels(job), lambda: toy.execute(project.url, statement))
        evaluator = Evaluator(job, bundle, output_of(job, bundle), labels)  # type: ignore[arg-type]
        with session.warehouse() as warehouse:
            warehouse.create(ledger.METADATA)
            return call(evaluator, warehouse, runs_of(warehouse, job))

    def evaluated_while(
        self, project: Project, monkeypatch: pytest.MonkeyPatch, statement: str
    ) -> list[Performance] | None:
        """What came of the first run."""
        return self.while_labels_are_read(
            project, monkeypatch, statement, lambda evaluator, warehouse, runs: evaluator.evaluate(warehouse, runs[0])
        )

    @pytest.fixture
    def sqlite(self, tmp_path: Path, trained: Project) -> Project:
        """A scored day in SQLite, where one transaction that writes locks out every other."""
        project = toy.unscored(tmp_path, f"sqlite:///{tmp_path}/warehouse.sqlite", trained)
        assert 0 == project.call("backfill", "toy", *FIRST).code
        return project

    def test_the_ledger_is_free(self, sqlite: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """While labels are read another process can write to the ledger."""
        found = self.evaluated_while(sqlite, monkeypatch, "UPDATE batchscore_runs SET error = 'a word'")

        assert found
        assert (100, 100) == (found[0].predictions, found[0].labelled)
        assert {"measured", "estimated"} == {
            kind for (kind,) in toy.query(sqlite.url, "SELECT DISTINCT kind FROM batchscore_performance")
        }

    def test_the_ledger_is_free_of_retrain(self, sqlite: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """So it can while `retrain` asks whether a metric is worse."""
        found = self.while_labels_are_read(
            sqlite,
            monkeypatch,
            "UPDATE batchscore_runs SET error = 'a word'",
            lambda evaluator, warehouse, runs: degraded(warehouse, evaluator, runs),
        )

        assert "100 of 100 rows have a label over the last 1 run(s)" in found.told
        assert toy.query(sqlite.url, "SELECT error FROM batchscore_runs") == [("a word",)]

    def test_a_run_that_is_replaced(self, sqlite: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a run that is published no more by then nothing is kept."""
        found = self.evaluated_while(sqlite, monkeypatch, "UPDATE batchscore_runs SET status = 'superseded'")

        assert found is None
        assert [] == kept(sqlite) == toy.query(sqlite.url, "SELECT * FROM batchscore_tallies")

    def test_two_at_once(self, tmp_path: Path, trained: Project, postgres_url: str) -> None:
        """Two processes that evaluate two days whose labels arrived together keep metrics of the labels of both."""
        project = toy.unscored(tmp_path, postgres_url, trained)
        (project.root / "sql/toy/labels.sql").write_text(
            "SELECT id, y, TIMESTAMPTZ '2024-02-04 12:00Z' AS known_at FROM toy "
            "WHERE ts >= :interval_start AND ts < :interval_end\n"
        )
        project.edit("jobs/toy.toml", ("\n[output]", PERFORMANCE.replace('slices = ["c", "b"]\n', "")))
        assert project.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-03").code == 0

        # Both have read what others know, and neither has written, until this lets go.
        with toy.locked_until(postgres_url, "batchscore_tallies", 2):
            windows = (("2024-02-01", "2024-02-02"), ("2024-02-02", "2024-02-03"))
            both = [project.start("evaluate", "toy", "--from", first, "--to", end) for first, end in windows]
        outputs = [process.communicate(timeout=60)[0] for process in both]

        assert [process.returncode for process in both] == [0, 0], outputs
        assert not [line for output in outputs for line in output.splitlines() if "attempt.failed" in line]
        labelled = {row["labelled"] for row in kept(project, "cohort = 'labelled'")}
        assert labelled == {sum(row["labelled"] for row in kept(project, "cohort = 'scored' AND metric = 'brier'"))}


# What of several classes is estimated without labels.
COUNTED = {"accuracy", "balanced_accuracy", "precision_macro", "recall_macro", "f1_macro"}
# What fits, what it is to predict, and the bar.
TASKS = {
    "multiclass": ("HistGradientBoostingClassifier", "c || '!'", 'metric = "accuracy", at_least = 0.1'),
    "regression": (
        "HistGradientBoostingRegressor",
        "(a + coalesce(b, 0) + id % 7)::DOUBLE",
        'metric = "mae", at_most = 100.0',
    ),
}


class TestTasks:
    """Every task that has labels."""

    @pytest.mark.parametrize("task", list(TASKS))
    def test_metrics(self, tmp_path: Path, task: str) -> None:
        """Every metric is that of the rows."""
        estimator, target, success = TASKS[task]
        project = Project.at(tmp_path, f"duckdb:///{tmp_path}/warehouse.duckdb")
        toy.load(project.url, toy.rows(33, 250))
        (tmp_path / "sql/toy/labels.sql").write_text(toy.LABELS_SQL.replace("y FROM", f"{target} AS y FROM"))
        project.edit("jobs/toy.py", ("HistGradientBoostingClassifier", estimator))
        project.edit(
            "jobs/toy.toml",
            ('task = "binary"', f'task = "{task}"'),
            ('metric = "roc_auc", at_least = 0.6', success),
        )
        assert 0 == project.call("train", "toy").code
        assert 0 == project.call("backfill", "toy", *FIRST).code
        found = evaluated(project, "--all")
        classes = ("x!", "y!", "z!") if task == "multiclass" else ()
        names = ["prediction", *(f"score_{name.replace('!', '_')}" for name in classes)]
        rows = toy.query(
            project.url,
            f"SELECT {target.replace('c ', 'toy.c ')}, {', '.join(names)} FROM toy_predictions JOIN toy USING (id)",
        )
        frame = pl.DataFrame(rows, schema=["y", *names], orient="row")
        exact = evaluate(task, frame["y"], frame.drop("y"), classes)  # type: ignore[arg-type]

        assert {row["metric"] for row in found} == exact.keys()
        estimated = {row["metric"]: row for row in kept(project, kind="estimated")}
        assert estimated.keys() == (COUNTED if task == "multiclass" else set())
        assert ("estimated" in found[0]) == (task == "multiclass")
        if task == "multiclass":
            for row in found:
                assert row["estimated"] == estimated.get(row["metric"], {"value": None})["value"]
            assert all((row["predictions"], row["labelled"]) == (250, 0) for row in estimated.values())
            shown = [row for row in found if row["metric"] in COUNTED]
            assert all(row["estimated_low"] <= row["value"] <= row["estimated_high"] for row in shown)
        for row in found:
            assert math.isclose(row["value"], exact[row["metric"]], rel_tol=0.01, abs_tol=0.003), row
            assert (row["labelled"], row["state"]) == (250, "mature")


class TestRefused:
    """What cannot be evaluated, and is told."""

    def test_no_labels(self, project: Project) -> None:
        """A job without labels is an error of use that says what to add."""
        project.edit("jobs/toy.toml", ('[labels]\nsql = "toy/labels.sql"\n', ""))
        result = project.call("evaluate", "toy")

        assert 2 == result.code
        assert "job toy has no [labels]. Add it to the job's file" in result.error

    @pytest.mark.parametrize(
        ("private", "slices", "message"),
        [
            ("", "c", "performance.slices: c is no column of the output table; name it in output.carry too"),
            (
                'private = ["day"]\n',
                "day",
                "performance.slices: day is in source.private, and slices would tell its values",
            ),
        ],
    )
    def test_slices(self, project: Project, private: str, slices: str, message: str) -> None:
        """A slice by a column that is not published, or is private, is refused before anything is read."""
        project.edit(
            "jobs/toy.toml",
            ('time_column = "ts"\n', f'time_column = "ts"\n{private}'),
            ("\n[output]", f'\n[performance]\nslices = ["{slices}"]\n\n[output]'),
        )
        for command in ("evaluate", "check"):
            result = project.call(command, "toy")
            assert 2 == result.code
            assert message in result.out + result.err

    def test_a_table_without_the_column(self, project: Project) -> None:
        """A carried column that the table of predictions does not have yet is told as scoring tells it."""
        assert 0 == project.call("backfill", "toy", *FIRST).code
        project.edit(
            "jobs/toy.toml",
            ('carry = ["day"]', 'carry = ["day", "c"]'),
            ("\n[output]", '\n[performance]\nslices = ["c"]\n\n[output]'),
        )
        for command in ("evaluate", "check"):
            result = project.call(command, "toy")
            assert 12 == result.code
            assert "toy_predictions" in result.out + result.err
            assert "c: want string, got no such column" in result.out + result.err

    def test_labels_of_another_type(self, project: Project) -> None:
        """Labels of another type than those of training are refused."""
        assert 0 == project.call("backfill", "toy", *FIRST).code
        project.edit("sql/toy/labels.sql", ("y FROM", "y::TEXT AS y FROM"))
        result = project.call("evaluate", "toy")

        assert 11 == result.code
        assert "toy/labels.sql: column y: want boolean, got string." in result.error

    def test_nothing_published(self, project: Project) -> None:
        """Before the first run there is nothing, and nothing is made."""
        result = project.call("evaluate", "toy")

        assert (0, "nothing published, so there is nothing to hold against labels\n") == (result.code, result.out)
        assert ["toy"] == toy.tables(project.url)
