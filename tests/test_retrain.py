"""`retrain`: when it trains, what it compares, when it promotes, and what the ledger keeps of it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy
from toy import FULL, POOR, Project, Result

from batchscore.cli.retrain import _ALWAYS
from batchscore.cli.session import Session, runs_of
from batchscore.database import Database
from batchscore.job import read_job
from batchscore.ledger import Owner, history
from batchscore.model.registry import Registry
from batchscore.monitor.due import degraded
from batchscore.monitor.labelled import Evaluator
from batchscore.monitor.watch import Watcher
from batchscore.run.lease import leased
from batchscore.run.scoring import output_of
from batchscore.settings import load_settings
from batchscore.warehouse import open_warehouse

# Four days behind the rows that the first version learned from, of a hundred labels each.
TO = ("--to", "2024-02-05")


@pytest.fixture(scope="module")
def poorly_trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose champion lacks the best column, and whose features file has it again; never changed."""
    root = tmp_path_factory.mktemp("poor")
    project = Project.at(root, f"duckdb:///{root}/warehouse.duckdb")
    toy.load(project.url, toy.rows())
    project.edit("jobs/toy.py", (FULL, POOR))
    assert project.call("train", "toy").code == 0
    project.edit("jobs/toy.py", (POOR, FULL))
    return project


@pytest.fixture
def poor(poorly_trained: Project, tmp_path: Path) -> Project:
    """A copy of it, to be spoilt."""
    shutil.copytree(poorly_trained.root, tmp_path / "poor")
    return Project(tmp_path / "poor", f"duckdb:///{tmp_path}/poor/warehouse.duckdb")


def aliases(project: Project) -> dict[str, int]:
    """Which version each alias stands for."""
    listed = json.loads(project.call("models", "list", "--format", "json").out)
    return {alias: row["version"] for row in listed for alias in row["aliases"].split(", ") if alias}


def decided(result: Result) -> tuple[str, str]:
    """The decision of a command that ended well, and its words."""
    assert result.code == 0, result.out
    (event,) = result.named("retrain.decided")
    return event["decision"], event["told"]


def kept(project: Project, columns: str = "reason, decision, champion_version, challenger_version") -> list[Any]:
    """What the ledger has of retrainings."""
    return toy.query(project.url, f"SELECT {columns} FROM batchscore_retrains ORDER BY decided_at, reason")


class TestDecision:
    """What becomes of a challenger."""

    def test_a_better_one_is_promoted(self, poor: Project) -> None:
        """One that is better on the same rows takes the champion's place, was trained up to --to, and the ledger says so."""
        decision, told = decided(poor.call("retrain", "toy", "--if", "new-labels=400", *TO))

        assert decision == "promoted"
        assert told == "toy version 2 takes the place of version 1"
        assert aliases(poor) == {"champion": 2, "challenger": 2}
        assert kept(poor) == [("new-labels", "promoted", 1, 2)]
        training = json.loads(poor.call("models", "show", "toy", "--format", "json").out)["training"]
        # As long as [training] says, and up to where it was told.
        assert (training["start"], training["end"]) == ("2024-01-05T00:00:00+00:00", "2024-02-05T00:00:00+00:00")

    def test_the_figures_are_of_the_same_rows(self, poor: Project) -> None:
        """What the ledger has of the champion is what that version scores on the challenger's own test rows."""
        decided(poor.call("retrain", "toy", "--if", "new-labels=400", *TO))
        ((champion, challenger, ahead, low, high, rows),) = kept(
            poor, "champion, challenger, ahead, ahead_low, ahead_high, row_count"
        )
        evaluation = json.loads(poor.call("models", "show", "toy", "2", "--format", "json").out)["evaluation"]

        assert rows == evaluation["rows"]["test"] == 775
        assert champion == evaluation["baselines"]["champion"]["roc_auc"]
        # All of the test rows are newer than what the champion learned from.
        assert challenger == pytest.approx(evaluation["test"]["roc_auc"]["value"])
        assert ahead == pytest.approx(challenger - champion)
        assert 0 < low < ahead < high

    @pytest.mark.parametrize(
        ("edit", "told"),
        [
            (('[model]\n', '[retrain]\nmargin = 0.9\n\n[model]\n'), "better than toy version 1 on the same rows, and must be more than 0.9 better"),
            (("at_least = 0.6", "at_least = 0.99"), "on held-out rows, want roc_auc at least 0.99"),
            (("at_least = 0.6 }", "at_least = 0.6 }\nmax_latency_us_per_row = 0.001"), "µs, want at most 0.001"),
            (('name = "toy"\n\n[output]', 'name = "toy"\nuse = 1\n\n[output]'), "the job uses version 1, whatever is better"),
        ],
    )  # fmt: skip
    def test_what_keeps_the_champion(self, poor: Project, edit: tuple[str, str], told: str) -> None:
        """Below the margin or a bar, or where the job names a number, the new version is challenger, and no more."""
        poor.edit("jobs/toy.toml", edit)
        decision, words = decided(poor.call("retrain", "toy", "--if", "new-labels=400", *TO))

        assert decision == "kept"
        assert told in words
        assert aliases(poor) == {"champion": 1, "challenger": 2}
        assert kept(poor) == [("new-labels", "kept", 1, 2)]

    def test_a_worse_one_is_kept_out(self, project: Project) -> None:
        """A challenger that lost a column is told by how much it is worse, and does not replace a good champion."""
        project.edit("jobs/toy.py", (FULL, POOR))
        decision, told = decided(project.call("retrain", "toy", "--if", "new-labels=400", *TO))

        assert decision == "kept"
        assert "worse than toy version 1 on the same rows" in told
        assert aliases(project) == {"champion": 1, "challenger": 2}

    def test_as_good_is_not_better(self, project: Project) -> None:
        """A challenger that is exactly as good as the champion does not take its place."""
        # One column alone orders the rows alike, whatever was learned from it.
        project.edit("jobs/toy.py", (FULL, 'return rows.select("a")'))
        path = project.root / "jobs/toy.py"
        kept_source = path.read_text().partition("def pipeline():")[0]
        path.write_text(
            f"from sklearn.linear_model import LogisticRegression\n{kept_source}def pipeline():\n"
            "    return LogisticRegression()\n"
        )
        assert project.call("train", "toy", "--promote").code == 0
        decision, told = decided(project.call("retrain", "toy", "--if", "new-labels=400", *TO))

        assert decision == "kept"
        assert "by roc_auc it is 0.0000 better than toy version 2 on the same rows" in told
        assert kept(project, "ahead") == [(0.0,)]
        assert aliases(project) == {"champion": 2, "challenger": 3}

    def test_a_champion_that_reads_other_columns(self, poor: Project) -> None:
        """A champion that needs a column which the query no longer gives cannot be compared, and stays."""
        poor.edit("sql/toy/rows.sql", ("id, ts, day, a, b, c", "id, ts, day, a, b, c AS d"))
        poor.edit("jobs/toy.py", ('"c")', 'pl.col("d").alias("c"))'))
        decision, told = decided(poor.call("retrain", "toy", "--if", "new-labels=400", *TO))

        assert decision == "kept"
        assert "cannot be compared with toy version 1 on the same rows" in told
        assert "batchscore models promote toy 2" in told

    def test_the_first(self, tmp_path: Path) -> None:
        """Where there is no model, it trains the first on the window of [training], and the ledger has it."""
        project = Project.at(tmp_path, f"duckdb:///{tmp_path}/warehouse.duckdb")
        toy.load(project.url, toy.rows())
        dry = decided(project.call("retrain", "toy", "--if", "drifted", *TO, "--dry-run"))
        assert dry[0] == "due"
        assert "It would train on rows of [2024-01-01T00:00Z, 2024-02-01T00:00Z)" in dry[1]
        assert toy.tables(project.url) == ["toy"]
        decision, told = decided(project.call("retrain", "toy", "--if", "drifted", *TO))

        assert decision == "first"
        assert told.startswith("toy version 1 is registered: roc_auc 0.")
        assert aliases(project) == {"champion": 1}
        assert kept(project) == [("unused", "first", None, 1)]
        ((champion, challenger, ahead),) = kept(project, "champion, challenger, ahead")
        assert (champion, ahead) == (None, None)
        assert f"roc_auc {challenger:.3f} on" in told

    def test_only_newer_rows_count(self, poor: Project) -> None:
        """With a random split, whose test rows the champion knows in part, it is compared on the newer ones alone."""
        split = 'split = { by = "time", column = "ts", test = 0.25 }'
        poor.edit("jobs/toy.toml", (split, 'split = { by = "random", test = 0.25 }'))
        poor.edit("jobs/toy.py", (FULL, POOR))
        assert poor.call("train", "toy", "--promote").code == 0
        poor.edit("jobs/toy.py", (POOR, FULL))
        assert decided(poor.call("retrain", "toy", "--if", "new-labels=400", *TO))[0] == "promoted"
        evaluation = json.loads(poor.call("models", "show", "toy", "--format", "json").out)["evaluation"]
        ((champion, challenger),) = kept(poor, "champion, challenger")

        # The metric of few rows is no multiple of what all test rows have.
        assert challenger != pytest.approx(evaluation["test"]["roc_auc"]["value"])
        assert evaluation["ahead"]["champion"]["value"] == pytest.approx(challenger - champion)

    def test_too_few_newer_rows(self, poor: Project) -> None:
        """Where hardly a test row is newer than what the champion learned from, it stays, and the log says why."""
        result = poor.call("retrain", "toy", "--if", "older-than=0h", "--to", "2024-01-24")
        (event,) = result.named("training.baseline_failed")

        assert decided(result)[0] == "kept"
        assert "test rows are newer than those that toy version 1 learned from, too few to compare by" in event["error"]

    @pytest.mark.parametrize("first", [True, False])
    def test_a_registry_that_vanishes(self, poor: Project, first: bool) -> None:
        """Gone between the pipeline and its alias: told with the version and what to do, and not trained for again."""
        registry = poor.root / "var/registry"
        if first:
            shutil.rmtree(registry)
        version, path = 1 if first else 2, poor.root / "jobs/toy.py"
        vanish = f"if os.path.isdir('var/registry/toy/{version}'): os.rename('var/registry', 'var/gone')"
        path.write_text("import os\n" + path.read_text().replace(FULL, f"{vanish}\n    {FULL}"))
        command = ("retrain", "toy", "--if", "new-labels=400", *TO)
        result = poor.call(*command)
        # As it was, but for what the features do.
        (poor.root / "var/gone").rename(registry)
        (told,) = re.findall("When that is mended: batchscore (models promote toy .*)", result.error)

        assert result.code == 10
        assert f"toy version {version} is registered all the same." in result.error
        assert told == f"models promote toy {version} --alias champion"
        assert kept(poor) == [("unused", "first", None, 1) if first else ("new-labels", "kept", 1, 2)]
        decision, waits = decided(poor.call(*command))
        assert (decision, told in waits) == ("waiting", True)
        assert aliases(poor) == ({} if first else {"champion": 1})
        assert poor.call(*told.split()).code == 0
        assert aliases(poor) == {"champion": version}

    def test_moved_meanwhile(self, poor: Project) -> None:
        """An alias that somebody moved while the challenger was trained is left where they moved it."""
        assert poor.call("train", "toy").code == 0
        path = poor.root / "jobs/toy.py"
        promote = (
            "from batchscore.model.registry import Registry; Registry.at('var/registry').promote('toy', 2, 'champion')"
        )
        path.write_text(path.read_text().replace("def pipeline():\n", f"def pipeline():\n    {promote}\n"))
        decision, told = decided(poor.call("retrain", "toy", "--if", "new-labels=400", *TO))

        assert decision == "kept"
        assert "champion was moved from version 1 while it was trained" in told
        assert aliases(poor) == {"champion": 2, "challenger": 3}

    def test_a_lost_lease(self, poor: Project) -> None:
        """A process whose lease was taken while it trained promotes nothing and records nothing."""
        path = poor.root / "jobs/toy.py"
        steal = "import sqlite3; sqlite3.connect('ledger.sqlite', isolation_level=None).execute('UPDATE batchscore_leases SET fence = fence + 1')"
        path.write_text(path.read_text().replace("def pipeline():\n", f"def pipeline():\n    {steal}\n"))
        url = f"sqlite:///{poor.root}/ledger.sqlite"
        toy.load(url, toy.rows())
        project = Project(poor.root, url)
        result = project.call("retrain", "toy", "--if", "new-labels=400", *TO)

        assert result.code == 21
        assert aliases(project) == {"champion": 1, "challenger": 2}
        assert kept(project) == []

    @pytest.mark.parametrize("task", ["clustering", "anomaly"])
    def test_without_labels(self, tmp_path: Path, task: str) -> None:
        """A clustering is compared by its silhouette; of anomalies nothing says which are better found, so nothing moves."""
        project = Project.at(tmp_path, f"duckdb:///{tmp_path}/warehouse.duckdb")
        toy.load(project.url, toy.rows())
        project.edit(
            "jobs/toy.toml",
            ('task = "binary"\ntarget = "y"\n', f'task = "{task}"\n'),
            ('success = { metric = "roc_auc", at_least = 0.6 }\n', ""),
            ('[labels]\nsql = "toy/labels.sql"\n', ""),
        )
        step = (
            "KMeans(3, n_init=1, random_state=0)"
            if task == "clustering"
            else "IsolationForest(n_estimators=20, random_state=0)"
        )
        (tmp_path / "jobs/toy.py").write_text(
            "from sklearn.cluster import KMeans\nfrom sklearn.ensemble import IsolationForest\n\n\n"
            "def features(rows):\n    return rows.select('a')\n\n\n"
            f"def pipeline():\n    return {step}\n"
        )
        assert project.call("train", "toy").code == 0
        decision, told = decided(project.call("retrain", "toy", "--if", "older-than=0h", *TO))

        assert kept(project, "metric") == [("silhouette" if task == "clustering" else "contamination",)]
        if task == "anomaly":
            assert decision == "kept"
            assert "cannot be compared with toy version 1" in told

    def test_after_a_first_that_missed(self, tmp_path: Path) -> None:
        """While no version is in use it trains the next one, on rows up to now, and not the old rows again."""
        project = Project.at(tmp_path, f"duckdb:///{tmp_path}/warehouse.duckdb")
        toy.load(project.url, toy.rows())
        project.edit("jobs/toy.toml", ("at_least = 0.6", "at_least = 0.99"))
        assert project.call("train", "toy").code == 31
        project.edit("jobs/toy.toml", ("at_least = 0.99", "at_least = 0.6"))
        decision, _ = decided(project.call("retrain", "toy", "--if", "drifted", *TO))

        assert decision == "first"
        assert aliases(project) == {"champion": 2}
        training = json.loads(project.call("models", "show", "toy", "--format", "json").out)["training"]
        assert training["end"] == "2024-02-05T00:00:00+00:00"


class TestOnce:
    """How often it trains."""

    def test_a_reason_counts_once_for_a_window(self, poor: Project) -> None:
        """The same reason does not train on the same window again, whatever the cooldown."""
        poor.edit("jobs/toy.toml", ("[model]\n", '[retrain]\nmargin = 0.9\ncooldown = "0h"\n\n[model]\n'))
        command = ("retrain", "toy", "--if", "new-labels=400", *TO)
        decided(poor.call(*command))
        decision, told = decided(poor.call(*command))

        assert decision == "waiting"
        assert "trained for this already, on rows up to 2024-02-05 00:00Z: new-labels" in told
        assert aliases(poor)["challenger"] == 2
        # Another window is another matter.
        assert decided(poor.call("retrain", "toy", "--if", "new-labels=300", "--to", "2024-02-04"))[0] == "kept"

    def test_cooldown(self, poor: Project) -> None:
        """Within the cooldown another reason waits too, and is told until when."""
        poor.edit("jobs/toy.toml", ("[model]\n", "[retrain]\nmargin = 0.9\n\n[model]\n"))
        decided(poor.call("retrain", "toy", "--if", "new-labels=400", *TO))
        decision, told = decided(poor.call("retrain", "toy", "--if", "older-than=0h", *TO))

        assert decision == "waiting"
        assert "the cooldown lasts until" in told
        assert len(kept(poor)) == 1

    def test_two_at_once(self, poor: Project) -> None:
        """While another process has the retraining, this one trains nothing and exits with 21."""
        other = Owner("elsewhere", 1, "x:1", "token")
        url = f"sqlite:///{poor.root}/ledger.sqlite"
        toy.load(url, toy.rows())
        project = Project(poor.root, url)
        decided(project.call("retrain", "toy", "--if", "new-labels=9999", *TO))
        command = ("retrain", "toy", "--if", "new-labels=400", *TO)
        with open_warehouse(Database.at(url)) as warehouse, leased(warehouse, "retrain:toy", _ALWAYS, other, 60.0):
            anew, first = project.call(*command), project.call(*command, BATCHSCORE_REGISTRY_URL="empty")

        assert [anew.code, first.code] == [21, 21]
        assert "another process retrains job toy" in anew.error
        assert aliases(project) == {"champion": 1}
        assert not (project.root / "empty").exists()

    def test_another_was_faster(self, poor: Project) -> None:
        """What another process has trained for between the first look and the lease is not trained for again."""
        url = f"sqlite:///{poor.root}/ledger.sqlite"
        toy.load(url, toy.rows())
        project = Project(poor.root, url)
        decided(project.call("retrain", "toy", "--if", "new-labels=9999", *TO))
        toy.execute(
            url,
            "CREATE TRIGGER faster AFTER UPDATE ON batchscore_leases WHEN NEW.owner IS NOT NULL BEGIN "
            "INSERT OR IGNORE INTO batchscore_retrains (job, window_end, reason, decision, told, challenger_version, "
            "metric, row_count, decided_at) VALUES ('toy', '2024-02-05 00:00:00.000000', 'new-labels', 'kept', "
            "'toy version 9 stays.', 9, 'roc_auc', 1, '2024-02-05 00:00:00.000000'); END",
        )
        result = project.call("retrain", "toy", "--if", "new-labels=400", *TO)
        decision, told = decided(result)

        assert any("due: " in str(event) for event in result.events)
        assert decision == "waiting"
        assert "new-labels. toy version 9 stays." in told
        assert aliases(project) == {"champion": 1}

    def test_a_failure_is_tried_again(self, poor: Project) -> None:
        """A training that failed leaves no decision behind: the next one trains."""
        poor.edit(
            "jobs/toy.py", ("HistGradientBoostingClassifier(max_iter=20", "HistGradientBoostingClassifier(max_iter=-1")
        )
        assert poor.call("retrain", "toy", "--if", "new-labels=400", *TO).code == 11
        poor.edit("jobs/toy.py", ("max_iter=-1", "max_iter=20"))

        assert kept(poor) == []
        assert decided(poor.call("retrain", "toy", "--if", "new-labels=400", *TO))[0] == "promoted"


def scored(project: Project, change: str | None = None) -> Project:
    """The project with four days published, after a change of the rows that they are of."""
    if change:
        toy.execute(project.url, f"UPDATE toy SET {change} WHERE ts >= '2024-02-01'")
    result = project.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-05")
    assert result.code == 0, result.out
    return project


class TestReasons:
    """What a reason goes by."""

    @pytest.mark.parametrize(
        ("condition", "told"),
        [
            ("new-labels=401", "400 labels since 2024-02-01 00:00Z, and 401 are the bound"),
            ("older-than=1d", "toy version 1 is 0 day(s) and 0 hour(s) old, and 1 day(s) is the bound"),
            ("drifted", "no published run of toy version 1 to look at"),
            ("degraded", "no published run of toy version 1 to look at"),
        ],
    )
    def test_none(self, project: Project, condition: str, told: str) -> None:
        """Short of its bound a reason does not hold: nothing is trained, and the figures say why."""
        result = project.call("retrain", "toy", "--if", condition, *TO)

        assert decided(result)[0] == "not due"
        assert told in decided(result)[1]
        assert aliases(project) == {"champion": 1}

    def test_labels_count_where_they_are_known(self, project: Project) -> None:
        """A row whose label is NULL is not counted, and none before the end of the champion's own window is."""
        toy.execute(project.url, "UPDATE toy SET y = NULL WHERE ts >= '2024-02-04'")

        assert decided(project.call("retrain", "toy", "--if", "new-labels=301", *TO))[0] == "not due"
        assert decided(project.call("retrain", "toy", "--if", "new-labels=300", *TO, "--dry-run"))[0] == "due"

    def test_steady_runs(self, project: Project) -> None:
        """Runs that look as training did are neither drift nor loss, and the metric is told with its bound."""
        result = scored(project).call("retrain", "toy", "--if", "drifted,degraded", *TO)
        decision, told = decided(result)

        assert decision == "not due"
        assert "on 400 labelled rows over the last 4 run(s) of toy version 1, at best 0." in told
        assert [event["holds"] for event in result.named("retrain.reason")] == [False, False]

    def test_drifted(self, project: Project) -> None:
        """What moved in an important column is a reason, by the column's name."""
        decision, told = decided(
            scored(project, "a = a + 5").call("retrain", "toy", "--if", "drifted", *TO, "--dry-run")
        )

        assert decision == "due"
        assert "a, " in told
        assert "moved over the last 4 run(s) of toy version 1" in told

    def test_degraded(self, project: Project) -> None:
        """Labels that turned round are a reason, with the metric and its bound; one --if that holds is enough."""
        decision, told = decided(
            scored(project, "y = NOT y").call("retrain", "toy", "--if", "drifted,degraded", *TO, "--dry-run")
        )

        assert decision == "due"
        assert "roc_auc is 0." in told

    def test_what_varies_by_nature(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """As in the verdict of the table, what twice the metric's scatter over the test rows explains is no loss."""
        scored(project, "y = NOT y")
        monkeypatch.chdir(project.root)
        monkeypatch.setenv("BATCHSCORE_WAREHOUSE_URL", project.url)
        session = Session.of(load_settings({}))
        job, bundle = session.job("toy"), session.load("toy", 1)
        with session.warehouse(read_only=True) as warehouse:
            runs = runs_of(warehouse, job)
            scattered = (
                replace(bundle, evaluation=bundle.evaluation.model_copy(update={"scatter": {"roc_auc": each}}))
                for each in (0.001, 0.4)
            )
            often, seldom = (
                degraded(warehouse, Evaluator(job, each, output_of(job, each), session.labels(job)), runs)
                for each in scattered
            )

        assert (often.holds, seldom.holds) == (True, False)
        low = bundle.evaluation.test["roc_auc"].low
        assert low is not None
        assert f"and {low - 0.002:.4f} is the bound" in often.told

    def test_few_labels(self, project: Project) -> None:
        """Fewer than 200 rows with a label are no loss, whatever they say."""
        scored(project, "y = NOT y")
        toy.execute(project.url, "UPDATE toy SET y = NULL WHERE ts >= '2024-02-02' AND id % 100 > 32")
        few = decided(project.call("retrain", "toy", "--if", "degraded", *TO, "--dry-run"))
        toy.execute(project.url, "UPDATE toy SET y = true WHERE ts >= '2024-02-02' AND ts < '2024-02-03' AND y IS NULL")
        enough = decided(project.call("retrain", "toy", "--if", "degraded", *TO, "--dry-run"))

        assert few[0] == "not due"
        assert "199 of 400 rows have a label over the last 4 run(s) of toy version 1, too few for roc_auc" in few[1]
        assert enough[0] == "due"

    def test_few_rows(self, project: Project) -> None:
        """Runs that were empty, or nearly, say nothing of drift: that is told, and not that nothing has moved."""
        toy.execute(project.url, "DELETE FROM toy WHERE ts >= '2024-02-01'")
        empty = decided(scored(project).call("retrain", "toy", "--if", "drifted", *TO))

        assert empty == (
            "not due",
            "0 rows were read over the last 4 run(s) of toy version 1, too few to tell whether anything has moved",
        )

    def test_only_important_columns_count(self, project: Project) -> None:
        """What moved in a column that is not of the five most important ones is drift, and no reason."""
        # The pipeline drops all but the first three, and so the sixth of the features is the sixth in importance.
        project.edit(
            "jobs/toy.py", (FULL, FULL.replace('"c")', '"c", pl.col("b").alias("d"), pl.lit(0).alias("e"), "side")'))
        )
        side = "b + CASE WHEN ts >= '2024-02-01' THEN 9 ELSE 0 END AS side"
        project.edit("sql/toy/rows.sql", ("id, ts, day, a, b, c", f"id, ts, day, a, b, c, {side}"))
        assert project.call("train", "toy", "--promote").code == 0
        decision, told = decided(scored(project).call("retrain", "toy", "--if", "drifted", *TO, "--dry-run"))
        bundle = Registry.at(project.root / "var/registry").load("toy", 2)
        job = read_job("toy", project.root / "jobs")
        with open_warehouse(Database.at(project.url)) as warehouse, warehouse.begin() as tx:
            found = Watcher(job, bundle).compare(tx.connection, history(tx.connection, "toy")).found

        assert "side" in [each.drift.column for each in found if each.drift.verdict == "moved"]
        assert (decision, told.partition(" have")[0]) == (
            "not due",
            "neither predictions nor the most important columns",
        )

    def test_only_the_last_runs_count(self, project: Project) -> None:
        """`over` says how many runs are looked at: what was wrong before is past."""
        project.edit("jobs/toy.toml", ("[model]\n", "[retrain]\nover = 2\n\n[model]\n"))
        toy.execute(project.url, "UPDATE toy SET a = a + 5 WHERE ts >= '2024-02-01' AND ts < '2024-02-03'")
        decision, told = decided(scored(project).call("retrain", "toy", "--if", "drifted", *TO))

        assert decision == "not due"
        assert "over the last 2 run(s)" in told

    def test_dry_run(self, poor: Project) -> None:
        """--dry-run tells the reason and the window, and trains and records nothing."""
        decision, told = decided(poor.call("retrain", "toy", "--if", "new-labels=400", *TO, "--dry-run"))

        assert decision == "due"
        assert "It would train on rows of [2024-01-05T00:00Z, 2024-02-05T00:00Z)" in told
        assert aliases(poor) == {"champion": 1}
        assert toy.tables(poor.url) == ["toy"]

    @pytest.mark.parametrize("dry", [("--dry-run",), ()])
    def test_a_window_without_rows(self, project: Project, dry: tuple[str, ...]) -> None:
        """Where the rows end before the window begins, a dry run says so as the training would, and which --to would do."""
        command = ("retrain", "toy", "--if", "older-than=0h", *dry, "--to")
        unknown = project.call(*command, "2025-02-05")
        late = scored(project).call(*command, "2025-02-05")

        assert (unknown.code, late.code) == (11, 11)
        assert "toy/rows.sql gives no row for [2025-01-05T00:00Z, 2025-02-05T00:00Z)" in late.error
        assert unknown.error.endswith("Say where the rows to learn from end: with --to.")
        assert late.error.endswith("--to 2024-02-05 is where the last run with rows ended.")
        assert aliases(project) == {"champion": 1}
        assert project.call(*command, "2024-02-05").code == 0

    def test_of_the_job(self, poor: Project) -> None:
        """Without --if the job's own reasons count, and without those the age of [problem] retrain_every."""
        assert "write [retrain] reasons in its file" in poor.call("retrain", "toy", *TO).error
        poor.edit("jobs/toy.toml", ('target = "y"\n', 'target = "y"\nretrain_every = "30d"\n'))
        assert "30 day(s) is the bound" in decided(poor.call("retrain", "toy", *TO))[1]
        poor.edit("jobs/toy.toml", ("[model]\n", '[retrain]\nreasons = ["new-labels=500"]\n\n[model]\n'))
        assert "500 are the bound" in decided(poor.call("retrain", "toy", *TO))[1]


class TestRefusals:
    """What is asked wrongly."""

    @pytest.mark.parametrize(
        "text", ["drift", "older-than", "older-than=7", "new-labels=0", "new-labels=many", "drifted=1", ""]
    )
    def test_conditions(self, project: Project, text: str) -> None:
        """A reason that is none is refused with those that there are, on the command line and in the job file."""
        known = "Known are drifted, degraded, older-than=7d and new-labels=10000. An age is a number and h, d or w."
        result = project.call("retrain", "toy", "--if", text, *TO)

        assert result.code == 2
        assert f"--if: '{text}' is no reason to retrain. {known}" in result.error
        project.edit("jobs/toy.toml", ("[model]\n", f'[retrain]\nreasons = ["{text}"]\n\n[model]\n'))
        assert known in project.call("retrain", "toy", *TO).error

    def test_a_first_that_misses_the_bar(self, tmp_path: Path) -> None:
        """A first version below the bar is registered and not promoted: 31, and no other on the same rows or at once."""
        project = Project.at(tmp_path, f"duckdb:///{tmp_path}/warehouse.duckdb")
        toy.load(project.url, toy.rows())
        project.edit("jobs/toy.toml", ("at_least = 0.6", "at_least = 0.99"))
        command = ("retrain", "toy", "--if", "drifted", *TO)
        assert project.call(*command).code == 31
        assert aliases(project) == {}
        assert kept(project) == [("unused", "first", None, 1)]
        assert "the cooldown lasts until" in decided(project.call(*command))[1]
        project.edit("jobs/toy.toml", ("[model]\n", '[retrain]\ncooldown = "0h"\n\n[model]\n'))
        assert project.call(*command).code == 31
        decision, told = decided(project.call(*command))

        assert decision == "waiting"
        assert "on rows up to 2024-02-05 00:00Z: unused. toy version 2 is registered and not promoted: roc_auc" in told
        assert len(json.loads(project.call("models", "list", "--format", "json").out)) == 2

    def test_inside_an_interval(self, project: Project) -> None:
        """--to is where an interval starts."""
        result = project.call("retrain", "toy", "--if", "drifted", "--to", "2024-02-05T06:00")

        assert result.code == 2
        assert "does not start an interval" in result.error
