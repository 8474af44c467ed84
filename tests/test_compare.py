"""`models compare`: two versions on the same rows."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import toy
from sklearn import metrics as sk
from toy import FULL, POOR, Project

from batchscore.model.registry import Registry


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a poor version 1 and a good version 2; never changed."""
    root = tmp_path_factory.mktemp("two")
    project = Project.at(root, f"duckdb:///{root}/warehouse.duckdb")
    toy.load(project.url, toy.rows())
    project.edit("jobs/toy.py", (FULL, POOR))
    assert project.call("train", "toy").code == 0
    project.edit("jobs/toy.py", (POOR, FULL))
    assert project.call("train", "toy").code == 0
    return project


def test_rows_behind_both(two: Project) -> None:
    """Without dates they are measured on all rows that neither learned from, each as it scores them itself."""
    shown = json.loads(two.call("models", "compare", "toy", "1", "2", "--format", "json").out)
    found = {row["metric"]: row for row in shown}
    for version in (1, 2):
        url = f"duckdb:///{two.root}/scored-{version}.duckdb"
        toy.load(url, toy.rows())
        project = Project(two.root, url)
        assert project.call("models", "promote", "toy", str(version)).code == 0
        assert project.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-06").code == 0
        pairs = toy.query(url, "SELECT y, score FROM toy JOIN toy_predictions USING (id)")
        assert len(pairs) == 500
        assert found["roc_auc"][f"version {version}"] == pytest.approx(sk.roc_auc_score(*zip(*pairs, strict=True)))

    assert found["roc_auc"]["better by"] == pytest.approx(found["roc_auc"]["version 2"] - found["roc_auc"]["version 1"])
    assert 0 < found["roc_auc"]["low"] < found["roc_auc"]["better by"] < found["roc_auc"]["high"]
    # Lower is better: the difference is above 0 for the better one all the same.
    assert found["brier"]["better by"] == pytest.approx(found["brier"]["version 1"] - found["brier"]["version 2"])
    assert found["base_rate"]["better by"] is None


def test_rows_that_a_run_would_reject(two: Project) -> None:
    """A row with a NULL that training never saw is left out, as a run would reject it."""
    url = f"duckdb:///{two.root}/holes.duckdb"
    toy.load(url, toy.rows().with_columns(a=pl.when(pl.col("id") % 5 > 0).then("a")))
    result = Project(two.root, url).call("models", "compare", "toy", "1", "2")

    assert result.code == 0
    assert "400 rows with a label" in result.out


def test_the_other_way_round(two: Project) -> None:
    """With the versions changed about, the difference changes its sign and nothing else."""
    there, back = (
        json.loads(two.call("models", "compare", "toy", *order, "--format", "json").out) for order in ("12", "21")
    )

    assert [row["better by"] and -row["better by"] for row in there] == pytest.approx(
        [row["better by"] for row in back]
    )


def test_a_window(two: Project) -> None:
    """A window of rows that a version has learned from is measured, with a word that this flatters it."""
    shown = two.call("models", "compare", "toy", "1", "2", "--from", "2024-01-10", "--to", "2024-01-12")

    assert shown.code == 0
    assert "200 rows with a label, from 2024-01-10 00:00Z to 2024-01-12 00:00Z" in shown.out
    assert "have learned from some of these: that flatters them" in shown.out
    assert "flatters" not in two.call("models", "compare", "toy", "1", "2").out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("toy", "1", "7"), 10, "has no version '7'"),
        (("toy", "1", "2", "--from", "2024-02-03", "--to", "2024-02-03"), 2, "is not before --to"),
        (("toy", "1", "2", "--to", "2024-02-01"), 2, "give --from and --to"),
        (("toy", "1", "2", "--from", "2024-03-01", "--to", "2024-03-02"), 11, "gives no row for"),
    ],
)
def test_refusals(two: Project, words: tuple[str, ...], code: int, told: str) -> None:
    """A version that is not there, and a window without rows, are told as such."""
    result = two.call("models", "compare", *words)

    assert result.code == code
    assert told in result.error


def test_golden_rows(two: Project, tmp_path: Path) -> None:
    """A version that does not give here what it gave at training is not measured, whichever of the two it is."""
    project = Project(tmp_path, two.url)
    Project.at(tmp_path, two.url)
    shutil.copytree(two.root / "var/registry", tmp_path / "var/registry")
    registry = Registry.at(tmp_path / "var/registry")
    bundle = registry.load("toy", 2)
    moved = bundle.golden_predictions.with_columns(pl.col("score") * (1 + 1e-8))
    registry.register(replace(bundle, golden_predictions=moved))

    for uses in (("1", "3"), ("3", "1")):
        result = project.call("models", "compare", "toy", *uses)
        assert result.code == 10
        assert "toy version 3: " in result.error
        assert "golden rows have another score here than at training" in result.error


def test_another_question(two: Project, tmp_path: Path) -> None:
    """Versions that predict something else are not compared."""
    project = Project(tmp_path, two.url)
    Project.at(tmp_path, two.url)
    (tmp_path / "var").mkdir()
    (tmp_path / "var/registry").symlink_to(two.root / "var/registry")
    project.edit("jobs/toy.toml", ('"binary"', '"multiclass"'), ("roc_auc", "accuracy"))
    assert project.call("train", "toy").code == 0
    result = project.call("models", "compare", "toy", "1", "3")

    assert result.code == 2
    assert "toy version 1 and toy version 3 do not predict the same" in result.error
