"""Whether rows are told from others by all columns together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import toy
from toy import Project

from batchscore.database import Database
from batchscore.drift import compare
from batchscore.interval import Interval
from batchscore.job import read_job
from batchscore.model.registry import Registry
from batchscore.monitor.apart import Apart, Samples, told_apart
from batchscore.profile import Profile
from batchscore.sources import Source, open_source

BROKEN = 5


def rows(seed: int, count: int = 1000) -> pl.DataFrame:
    """Rows of which the second column follows the first, with text, NULLs and a constant beside."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=count)
    return pl.DataFrame(
        {
            "x": pl.Series(x).set(pl.Series(rng.random(count) < 0.1), None),
            "y": 2 * x + rng.normal(scale=0.2, size=count),
            "word": rng.choice(["a", "b", "c"], count, p=[0.7, 0.2, 0.1]),
            "id": rng.integers(0, 2**40, count).astype(str),
            "yes": rng.random(count) < 0.3,
            "never": pl.Series([None] * count, dtype=pl.Float64),
        }
    )


def apart(current: pl.DataFrame, reference: pl.DataFrame) -> Apart:
    """What is told with the usual alpha and band."""
    return told_apart(current, reference, alpha=0.01, band=0.6)


def test_the_same_kind_of_rows() -> None:
    """Rows of one kind are not told apart: in 12 draws the area stays below the floor but for chance, and the band."""
    found = [apart(rows(2 * draw, 400), rows(2 * draw + 1, 800)).drift for draw in range(12)]

    assert {each.verdict for each in found} == {"steady"}
    assert sum((each.value or 0) > (each.floor or 0) for each in found) <= 1
    assert abs(np.mean([each.value or 0 for each in found]) - 0.5) < 0.02


def test_a_shuffled_column() -> None:
    """A column shuffled against the others moves no metric of one column, and is told apart, by that column."""
    reference = rows(0)
    current = rows(1).with_columns(pl.col("y").shuffle(seed=0))
    layouts = Profile.layouts_of(reference)
    alone = compare(Profile.of(current, layouts), Profile.of(reference, layouts))
    found = apart(current, reference)

    assert "moved" not in {each.verdict for each in alone}
    assert ("moved", "*", "domain_auc") == (found.drift.verdict, found.drift.column, found.drift.metric)
    assert (found.drift.value or 0) > 0.8
    assert (found.drift.p_value or 0) < 1e-9
    assert {"x", "y"} == set(found.by[:2])


def test_a_new_word() -> None:
    """Text counts by its value: where a common one has gone, rows are told apart by it."""
    current = rows(1).with_columns(word=pl.lit("c"))

    assert "word" == apart(current, rows(0)).by[0]


def test_too_few_rows() -> None:
    """Below 200 rows of either side nothing is measured."""
    found = apart(rows(0, 199), rows(1))

    assert ("not enough data", None, 199, 1000) == (
        found.drift.verdict,
        found.drift.value,
        found.drift.n,
        found.drift.reference_n,
    )


@pytest.fixture(scope="module")
def broken(trained: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A week of February in which b follows a, until it is shuffled from the fifth on."""
    root = tmp_path_factory.mktemp("broken") / "project"
    shutil.copytree(trained.root, root)
    project = Project(root, f"duckdb:///{root}/warehouse.duckdb")
    given = toy.rows(31 + 8, 300).with_columns(b=pl.col("a") + 1)
    late = pl.col("ts") >= datetime(2024, 2, BROKEN, tzinfo=UTC)
    shuffled = pl.col("b").shuffle(seed=0).over(pl.col("ts").dt.date())
    toy.load(project.url, given.with_columns(b=pl.when(late).then(shuffled).otherwise("b")))
    project.edit("jobs/toy.toml", ("[output]", '[drift]\nsample = 250\nagainst = ["previous", "training"]\n\n[output]'))
    trained_anew = project.call("train", "toy", "--promote")
    assert trained_anew.code == 0, trained_anew.error
    # All that training read is gone, as where a source keeps a month.
    toy.execute(project.url, "DELETE FROM toy WHERE ts < '2024-02-01 00:00:00+00'")
    done = project.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-08")
    assert done.code == 0, done.out
    return project


def rows_of(project: Project, text: str = toy.ROWS_SQL) -> Source:
    """The job's source."""
    job = read_job("toy", project.root / "jobs")
    return open_source(job.source, database=Database.at(project.url), text=text, where="rows", calendar=job.calendar)


@dataclass
class Counted:
    """A source that remembers which intervals were read."""

    source: Source
    read: list[Interval] = field(default_factory=list)

    @property
    def where(self) -> str:
        return self.source.where

    @property
    def caution(self) -> str | None:
        return self.source.caution

    @property
    def private(self) -> Collection[str]:
        return self.source.private

    def batches(self, interval: Interval, **wanted: Any) -> Generator[pl.DataFrame]:
        self.read.append(interval)
        return self.source.batches(interval, **wanted)


def test_kept_for_each_run(broken: Project) -> None:
    """Each run has a row against each reference that is named, and only the first day of the fault is told."""
    kept = toy.query(
        broken.url,
        "SELECT r.interval_start, d.reference, d.verdict, d.told, d.row_count, d.reference_count, d.role "
        "FROM batchscore_drift d JOIN batchscore_runs r ON r.run_id = d.run_id "
        "WHERE metric = 'domain_auc' AND column_name = '*' ORDER BY 1, 2",
    )

    assert {(250, 250, "input")} == {row[4:] for row in kept}
    assert {"previous": 6, "training": 7} == {
        each: sum(row[1] == each for row in kept) for each in ("previous", "training")
    }
    moved = [row[0].astimezone(UTC).day for row in kept if row[1] == "previous" and row[2] == "moved"]
    assert [BROKEN] == moved
    assert [BROKEN] == [row[0].astimezone(UTC).day for row in kept if row[1] == "previous" and row[3]]


def test_command(broken: Project) -> None:
    """`drift` says the same and by which columns, `--sample` says of how many rows, and 0 leaves it out."""
    window = ("--from", f"2024-02-0{BROKEN}", "--to", f"2024-02-0{BROKEN + 1}", "--against", "previous")
    (found,) = json.loads(broken.call("drift", "toy", *window, "--format", "json").out)
    (metric,) = [row for row in found["metrics"] if row["metric"] == "domain_auc"]
    kept = toy.query(
        broken.url,
        "SELECT d.value, d.p_value FROM batchscore_drift d JOIN batchscore_runs r ON r.run_id = d.run_id "
        f"WHERE metric = 'domain_auc' AND reference = 'previous' AND interval_start = '2024-02-0{BROKEN} 00:00:00+00'",
    )
    table = broken.call("drift", "toy", *window).out
    (more,) = json.loads(broken.call("drift", "toy", *window, "--sample", "300", "--format", "json").out)
    (none,) = json.loads(broken.call("drift", "toy", *window, "--sample", "0", "--all", "--format", "json").out)

    assert [(metric["value"], metric["p_value"])] == [tuple(row) for row in kept]
    assert {"a", "b"} <= set(found["told_apart_by"])
    assert f"told apart by {', '.join(found['told_apart_by'])}" in table
    assert {300} == {row["n"] for row in more["metrics"] if row["metric"] == "domain_auc"}
    assert "domain_auc" not in {row["metric"] for row in none["metrics"]}
    assert [] == none["told_apart_by"]


def test_the_source_is_gone(broken: Project, tmp_path: Path) -> None:
    """Without the columns that the bundle declares the command says so and ends with 11."""
    shutil.copytree(broken.root, tmp_path / "project")
    project = Project(tmp_path / "project", f"duckdb:///{tmp_path}/project/warehouse.duckdb")
    project.edit("sql/toy/rows.sql", ("a, b, c", "a, c"))
    result = project.call("drift", "toy")

    assert 11 == result.code
    assert "toy/rows.sql lacks 1 column(s) that the bundle needs: b" in result.error


def test_a_comparison_that_fails(broken: Project, tmp_path: Path) -> None:
    """Nothing of the classifier is kept without it, or the run would count as compared; the next command compares it."""
    shutil.copytree(broken.root, tmp_path / "project")
    project = Project(tmp_path / "project", f"duckdb:///{tmp_path}/project/warehouse.duckdb")
    last = "run_id = (SELECT run_id FROM batchscore_runs ORDER BY interval_start DESC LIMIT 1)"
    count = f"SELECT count(*), count(CASE WHEN metric = 'domain_auc' THEN 1 END) FROM batchscore_drift WHERE {last}"
    before = toy.query(project.url, count)
    ((right,),) = toy.query(project.url, f"SELECT profile FROM batchscore_profiles WHERE {last} AND column_name = 'a'")
    spoil = f"UPDATE batchscore_profiles SET profile = '%s' WHERE {last} AND column_name = 'a'"
    toy.execute(project.url, f"DELETE FROM batchscore_drift WHERE {last}", spoil % "{")

    failed = project.call("backfill", "toy", "--from", "2024-02-07", "--to", "2024-02-08")
    between = toy.query(project.url, count)
    toy.execute(project.url, spoil % right)
    again = project.call("backfill", "toy", "--from", "2024-02-07", "--to", "2024-02-08")

    assert (0, 0) == (failed.code, again.code)
    assert failed.named("monitoring.failed")
    assert [(0, 0)] == between
    assert before == toy.query(project.url, count)
    assert before[0][1] == 2


def test_the_bundle_keeps_the_training_rows(broken: Project) -> None:
    """Of training rows there are as many as its job asked for, whatever is asked for later, and the source has none."""
    bundle = Registry.at(str(broken.root / "var/registry")).load("toy", 2)
    (more,) = json.loads(
        broken.call("drift", "toy", "--sample", "280", "--against", "training", "--format", "json").out
    )
    (fewer,) = json.loads(
        broken.call("drift", "toy", "--sample", "220", "--against", "training", "--format", "json", "--all").out
    )
    sizes = [
        {(row["n"], row["reference_n"]) for row in each["metrics"] if row["metric"] == "domain_auc"}
        for each in (more, fewer)
    ]

    assert [{(280, 250)}, {(220, 220)}] == sizes
    assert bundle.sample is not None
    assert (250, ["a", "b", "c"]) == (bundle.sample.height, [name for name in bundle.sample.columns if name != "day"])


def test_trained_without_a_sample(broken: Project, tmp_path: Path) -> None:
    """A bundle that keeps no training rows is told apart from other runs, and `drift` says why not from training."""
    shutil.copytree(broken.root, tmp_path / "project")
    project = Project(tmp_path / "project", f"duckdb:///{tmp_path}/project/warehouse.duckdb")
    assert project.call("models", "promote", "toy", "1").code == 0
    assert project.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-03", "--only", "all").code == 0
    window = ("--from", "2024-02-02", "--to", "2024-02-03", "--all", "--format", "json")
    (training,), (previous,) = (
        json.loads(project.call("drift", "toy", *window, "--against", each).out) for each in ("training", "previous")
    )

    assert "toy version 1 was trained without [drift] sample" in training["detail"]
    assert "domain_auc" not in {row["metric"] for row in training["metrics"]}
    assert "domain_auc" in {row["metric"] for row in previous["metrics"]}
    assert "without [drift] sample" not in previous["detail"]


def test_too_slow(broken: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows do not come in time the run has no such metric, the log says why, and all else is kept."""
    shutil.copytree(broken.root, tmp_path / "project")
    project = Project(tmp_path / "project", f"duckdb:///{tmp_path}/project/warehouse.duckdb")
    monkeypatch.setattr("batchscore.monitor.watch._SECONDS", 0.0)
    done = project.call("score", "toy", "--interval", "2024-02-07", "--force")
    (warned,) = done.named("monitoring.failed")
    kept = toy.query(
        project.url,
        "SELECT metric FROM batchscore_drift JOIN batchscore_runs USING (run_id) "
        "WHERE status = 'published' AND interval_start = '2024-02-07 00:00:00+00'",
    )

    assert (0, "warning") == (done.code, warned["level"])
    assert "toy/rows.sql took too long" in warned["error"]
    assert ("psi",) in kept
    assert ("domain_auc",) not in kept


def test_each_interval_is_read_once(broken: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read of an interval serves again, alone and with others, until there is too much of it."""
    days = [read_job("toy", broken.root / "jobs").calendar.at(f"2024-02-0{day}") for day in range(1, 5)]
    bundle = Registry.at(str(broken.root / "var/registry")).load("toy", 2)
    source = Counted(rows_of(broken))
    samples = Samples(source, bundle, 150)
    found = [samples.of(days[:3]), samples.of(days[1:]), samples.of(days[1:2])]

    assert days == source.read
    assert [Samples(rows_of(broken), bundle, 150).of(some).rows() for some in (days[:3], days[1:], days[1:2])] == [
        each.rows() for each in found
    ]

    monkeypatch.setattr("batchscore.monitor.apart._BYTES_KEPT", 0)
    samples = Samples(source, bundle, 150)

    assert samples.of(days[1:]).equals(found[1])
    assert samples.of(days[1:]).equals(found[1])
    assert [*days, *days[1:], *days[1:]] == source.read


def test_the_sample_is_the_same_in_any_order(broken: Project) -> None:
    """It is taken by key: whichever order rows and intervals come in, and without key, instants or more rows."""
    job = read_job("toy", broken.root / "jobs")
    bundle = Registry.at(str(broken.root / "var/registry")).load("toy", 1)
    days = [job.calendar.at("2024-02-01"), job.calendar.at("2024-02-02")]
    samples = [
        Samples(rows_of(broken, f"SELECT * FROM ({toy.ROWS_SQL}) AS rows ORDER BY {order}"), bundle, 150).of(intervals)
        for order, intervals in (("id", days), ("a", days[::-1]))
    ]

    assert 150 == samples[0].height
    assert samples[0].equals(samples[1])
    assert {"a", "b", "c"} <= set(samples[0].columns)
    assert set(samples[0].columns).isdisjoint({"id", "ts"})
