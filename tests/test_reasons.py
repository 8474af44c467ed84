"""Reasons in the output table, from training to the table that dashboards read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import toy
from models import bundle, trips
from toy import Project

from batchscore.errors import GoldenRowsDiffer, TrainingError
from batchscore.job import Publish
from batchscore.ledger import Totals
from batchscore.model.bundle import Bundle, pack
from batchscore.model.explain import Explainer, reason_types
from batchscore.model.scorer import check_golden, score
from batchscore.profile import Profile
from batchscore.run.gates import tripped

REASONS = tuple(reason_types(4))


@pytest.fixture(name="project", scope="module")
def _project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The toy, trained with one reason more than it has columns, and a day of it scored."""
    root = tmp_path_factory.mktemp("reasons")
    project = Project.at(root, f"duckdb:///{root}/warehouse.duckdb")
    explain(project, 4)
    toy.load(project.url, toy.rows())
    for command in (("train", "toy"), ("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-02")):
        result = project.call(*command)
        assert result.code == 0, result.out
    return project


def explain(project: Project, top: int, more: str = "") -> None:
    """Ask for so many reasons in the job's file."""
    path = project.root / "jobs/toy.toml"
    path.write_text(path.read_text().replace('target = "y"', f'target = "y"\nexplain_top = {top}{more}'))


def folder(project: Project) -> Path:
    """Where the bundle lies."""
    (path,) = project.root.rglob("explain.json")
    return path.parent


def test_the_table_has_the_reasons_behind_the_score(project: Project) -> None:
    """Each row names every column once, the strongest first, and NULL where there is no further one."""
    columns = toy.columns(project.url, "toy_predictions")
    assert columns[2:13] == ["prediction", "score", *REASONS, "model_name"]
    rows = toy.query(project.url, f"SELECT {', '.join(REASONS)} FROM toy_predictions")
    assert len(rows) == 100
    for row in rows:
        assert sorted(row[0:6:2]) == ["a", "b", "c"]
        assert sorted(map(abs, row[1:6:2]), reverse=True) == [abs(value) for value in row[1:6:2]]
        assert row[6:] == (None, None)
    assert len({row[0] for row in rows}) > 1


def test_all_reasons_and_the_base_are_the_score(project: Project) -> None:
    """Base and reasons of a published row add up to its score's log-odds."""
    base = json.loads((folder(project) / "explain.json").read_text())["base"]
    values = "reason_1_value + reason_2_value + reason_3_value"
    rows = np.array(toy.query(project.url, f"SELECT score, {values} FROM toy_predictions"), dtype=float)
    np.testing.assert_allclose(rows[:, 0], 1 / (1 + np.exp(-base - rows[:, 1])), rtol=1e-9)


def test_reasons_are_those_of_the_row(project: Project) -> None:
    """A column that the row has nothing special in does not lead: what leads moves with the row's own values."""
    led = toy.query(
        project.url,
        "SELECT avg(t.a) FILTER (reason_1_value > 0), avg(t.a) FILTER (reason_1_value < 0) "
        "FROM toy_predictions p JOIN toy t ON t.id = p.id WHERE reason_1 = 'a'",
    )
    raised, lowered = led[0]
    assert raised > lowered


def test_a_multiclass_job_is_refused(project: Project, tmp_path: Path) -> None:
    """A task with a score for each class has no reasons, and the job's check says so."""
    other = Project.at(tmp_path, project.url)
    path = tmp_path / "jobs/toy.toml"
    explain(other, 1)
    path.write_text(path.read_text().replace('"binary"', '"multiclass"').replace("roc_auc", "accuracy"))
    result = other.call("check", "toy")
    assert result.code == 2
    assert "explain_top explains the one score of a binary task" in result.out + result.err


def test_a_key_with_the_name_of_a_reason_is_refused(project: Project, tmp_path: Path) -> None:
    """A carried column cannot have the name of a reason's column; a reason that is not asked for takes no name."""
    other = Project.at(tmp_path, project.url)
    path = tmp_path / "jobs/toy.toml"
    explain(other, 2)
    written = path.read_text()
    for column, code in (("reason_2_value", 2), ("reason_3", 0)):
        path.write_text(written.replace('carry = ["day"]', f'carry = ["{column}"]'))
        result = other.call("plan", "toy", "--from", "2024-02-01", "--to", "2024-02-02")
        assert ("has the name of a column batchscore writes" in result.out + result.err) == (code == 2)


def explained(top: int = 2) -> Bundle:
    """The logistic regression of the trips, with reasons."""
    return bundle(explain_top=top)


def test_reasons_that_do_not_add_up_on_test_rows() -> None:
    """A model that is linear over the rows it is fitted on, and not over the test rows, has no reasons."""
    source = """
import numpy as np
import polars as pl
from sklearn.linear_model import LinearRegression


class Bent(LinearRegression):
    def predict(self, X):
        return np.where(X["id"] < 120, super().predict(X), 0.0)


def features(rows):
    return rows.select(pl.col("id").cast(pl.Float64), "distance")


def pipeline():
    return Bent()
"""
    target = trips(160)["distance"] * 2
    bundle(source, "regression", target)
    with pytest.raises(TrainingError, match="contributions to Bent do not add up"):
        bundle(source, "regression", target, explain_top=1)


def test_golden_rows_hold_the_reasons() -> None:
    """A bundle whose reasons are not those of training is refused, and one that is whole passes."""
    whole = explained()
    check_golden(Bundle.load(pack(whole, 1), "trips"))
    assert isinstance(whole.predictor.explainer, Explainer)
    frozen = json.loads(whole.predictor.explainer.frozen())
    frozen["means"][0] += 1
    predictor = replace(whole.predictor, explainer=Explainer.thawed(whole.predictor.pipeline, json.dumps(frozen)))
    with pytest.raises(GoldenRowsDiffer, match="another reason_"):
        check_golden(replace(whole, predictor=predictor))


def test_rows_with_too_few_columns_are_no_rejects() -> None:
    """NULL reasons leave a row its prediction."""
    scored = score(explained(top=7), trips(30))
    assert scored.rejects.is_empty()
    assert scored.predictions["reason_5"].null_count() == 0
    assert scored.predictions["reason_6"].null_count() == 30


def test_gates_do_not_judge_reasons() -> None:
    """What a reason's number does is no business of the bars for scores."""
    frame = pl.DataFrame({"prediction": [True, False], "score": [0.2, 0.8], "reason_1": ["a", "a"]})
    frame = frame.with_columns(reason_1_value=pl.lit(-7.0))
    seen = Profile.of(frame, Profile.layouts_of(frame))
    gates = Publish(varying=True, score_range=(0.0, 1.0))
    assert tripped(gates, Totals(1, 2, 2, 0), (), seen, seen) == []
