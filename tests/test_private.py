"""What training tells of a job with private columns: of their values nothing, whatever fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import toy
from toy import Project

from batchscore.errors import TrainingError
from batchscore.interval import Interval
from batchscore.layout import PRIVATE
from batchscore.model.features import Features
from batchscore.train.compare import compare
from batchscore.train.workflow import train
from tests.models import CLASSIFIER, SQL, Frame, job, labels, slow, trips

N = 160
SECRET = "John Smith"
RECIPE: Mapping[str, Any] = {"split": {"by": "random", "validation": 0.25, "test": 0.25}}

HEAD = "import polars as pl\nfrom sklearn.linear_model import LogisticRegression\n"
AS_IT_IS = (
    "def features(rows):\n    return rows.select('distance', pl.col('carrier').fill_null('John Smith').alias('who'))\n"
)
MODEL = "def pipeline():\n    return LogisticRegression()\n"
SPACE = "def search_space():\n    return {'C': [0.1, 1.0]}\n"
PICKY = """
class Picky(LogisticRegression):
    def fit(self, X, y):
        if self.C > 5:
            raise ValueError(f"cannot take {''.join(X['who'])}")
        return super().fit(X.with_columns(who=0.0), y)


def pipeline():
    return Picky()


def search_space():
    return {"C": [10.0, 20.0]}
"""
HELD_OUT = """
def features(rows):
    return rows.select('distance', pl.col('carrier').fill_null('').alias('who'))


class Frail(LogisticRegression):
    def fit(self, X, y):
        return super().fit(X.with_columns(who=0.0), y)

    def predict_proba(self, X):
        if 'John' in ''.join(X['who']):
            raise ValueError(f"cannot take {''.join(X['who'])}")
        return super().predict_proba(X.with_columns(who=0.0))


def pipeline():
    return Frail()
"""


def rows() -> pl.DataFrame:
    """Trips, whose carriers are names."""
    return trips(N).with_columns(carrier=pl.col("carrier").replace(["AA", "UA"], [SECRET, f"{SECRET} Junior"]))


def refused(source: str, *, private: bool = True, **recipe: Any) -> str:
    """What is said when the job cannot be trained."""
    hidden = {"private": ["carrier"]} if private else {}
    asked = job(source=hidden, training={**RECIPE, **recipe})
    given = rows()
    with pytest.raises(TrainingError) as error:
        train(asked, Features.of(HEAD + source, "jobs/trips.py"), SQL, Frame(given), Frame(_known()), lambda _: None)
    return str(error.value)


def _known() -> pl.DataFrame:
    return labels(rows(), slow(trips(N)))


class TestFails:
    """What user code raises is told by its class alone."""

    @pytest.mark.parametrize(
        ("source", "recipe", "says"),
        [
            (
                "def features(rows):\n    raise ValueError(rows.collect()['carrier'].to_list())\n" + MODEL,
                {},
                "features() fails on the training rows: ValueError",
            ),
            (AS_IT_IS + MODEL, {}, "pipeline().fit fails on the training rows: ValueError"),
            (
                AS_IT_IS + MODEL + SPACE,
                {"search": {"by": "grid"}},
                "pipeline().fit fails on the training rows: ValueError",
            ),
            (AS_IT_IS + PICKY, {"search": {"by": "grid"}}, "search_space() cannot be searched by grid: ValueError"),
            (
                AS_IT_IS + MODEL,
                {"cross_validation": {"by": "k-fold", "folds": 3}},
                "cross-validation fails on the training rows: ValueError",
            ),
            (HELD_OUT, {}, "fails on the rows held out: ValueError"),
            (
                HELD_OUT,
                {"cross_validation": {"by": "k-fold", "folds": 3}},
                "fails on rows that it is measured on: ValueError",
            ),
        ],
    )
    def test_by_its_class(self, source: str, recipe: dict[str, Any], says: str) -> None:
        """The same failure quotes the value where no column is private, and does not where its column is."""
        assert SECRET in refused(source, private=False, **recipe)
        told = refused(source, **recipe)

        assert says in told
        assert SECRET not in told

    def test_calibration(self) -> None:
        """What calibrating raises is told by its class too."""
        source = HELD_OUT.replace("predict_proba", "decision_function")

        assert SECRET in refused(source, private=False, calibrate="sigmoid")
        told = refused(source, calibrate="sigmoid")
        assert "the calibration fails on the training rows: ValueError" in told
        assert SECRET not in told

    def test_hint(self) -> None:
        """Text among the features is named, and no value of it is: it may be a private one under another name."""
        told = refused(AS_IT_IS + MODEL)

        assert "who is text: encode it in the pipeline" in told

    def test_pipeline_in_its_own_words(self) -> None:
        """What `pipeline()` raises is told whole: it has seen no row."""
        assert "TypeError: no such thing" in refused(
            AS_IT_IS + "def pipeline():\n    raise TypeError('no such thing')\n"
        )

    def test_compare(self) -> None:
        """Neither does a version that fails on a row it is compared on."""
        made = train(
            job(training=RECIPE),
            Features.of(CLASSIFIER, "jobs/trips.py"),
            SQL,
            Frame(trips(N)),
            Frame(labels(trips(N), slow(trips(N)))),
            lambda _: None,
        )
        frail = train(
            job(training=RECIPE),
            Features.of(HEAD + HELD_OUT, "jobs/trips.py"),
            SQL,
            Frame(trips(N)),
            Frame(labels(trips(N), slow(trips(N)))),
            lambda _: None,
        )
        for hidden in ([], ["carrier"]):
            asked = job(training=RECIPE, source={"private": hidden})
            window: Interval = asked.training_window()
            with pytest.raises(TrainingError, match="ValueError") as error:
                compare(asked, made, frail, Frame(rows()), Frame(_known()), window)
            assert (SECRET in str(error.value)) == (hidden == [])


@pytest.fixture
def odd(tmp_path: Path) -> Project:
    """The toy job, whose column c is a name in every row, and a has one value far from all others."""
    project = Project.at(tmp_path, f"duckdb:///{tmp_path}/warehouse.duckdb")
    far = pl.when(pl.col("id") == 17).then(987_654.25).otherwise("a")
    toy.load(project.url, toy.rows().with_columns(c=pl.lit(SECRET), a=far))
    return project


class TestAudit:
    """`train` and what it registers."""

    @pytest.mark.parametrize("private", [True, False])
    def test_nowhere(self, odd: Project, private: bool) -> None:
        """No value of a private column is printed, on the card, in the evaluation, or shown; the findings are."""
        if private:
            odd.edit("jobs/toy.toml", ('key = ["id"]', 'key = ["id"]\nprivate = ["a", "c"]'))
        done = [
            odd.call("train", "toy"),
            odd.call("models", "show", "toy"),
            odd.call("models", "show", "toy", "--format", "json"),
        ]
        assert [0, 0, 0] == [each.code for each in done]
        bundle = odd.root / "var/registry/toy/1"
        told = [each.out + each.err for each in done[1:]]
        told += [(bundle / name).read_text() for name in ("evaluation.json", "card.html")]
        found = json.loads((bundle / "evaluation.json").read_text())["audit"]

        assert {"constant c", "outliers a"} <= {f"{each['check']} {each['column']}" for each in found}
        assert [private] * 4 == [SECRET not in text and "987654" not in text for text in told]
        assert not private or SECRET not in done[0].out + done[0].err

    def test_refused(self, odd: Project) -> None:
        """What the audit refuses is told without them."""
        odd.edit(
            "jobs/toy.toml",
            ('key = ["id"]', 'key = ["id"]\nprivate = ["a", "c"]'),
            ("test = 0.25 }", 'test = 0.25 }\naudit = { outliers = 0.0001, refuse = ["constant", "outliers"] }'),
        )
        result = odd.call("train", "toy")

        assert result.code == 11
        assert "constant: c is the same in every row that has it" in result.error
        assert "outliers: a has outliers in " in result.error
        assert SECRET not in result.out
        assert "987654" not in result.out


class TestTypes:
    """A value that is not of its column's type."""

    @pytest.mark.parametrize("private", [True, False])
    def test_mixed(self, tmp_path: Path, private: bool) -> None:
        """A column with text among its numbers is told without either, by `check` as by `train`."""
        project = Project.at(tmp_path, f"sqlite:///{tmp_path}/warehouse.sqlite")
        toy.load(project.url, toy.rows())
        toy.execute(project.url, f"UPDATE toy SET a = CASE WHEN id % 100 = 17 THEN '{SECRET}' ELSE 987654.25 END")
        if private:
            project.edit("jobs/toy.toml", ('key = ["id"]', 'key = ["id"]\nprivate = ["a"]'))
        trained, checked = project.call("train", "toy"), project.call("check", "toy")
        told = [trained.out + trained.err, checked.out + checked.err]

        assert trained.code == 11
        assert "toy/rows.sql: column a: want one type, got " in trained.error
        assert "column a: want one type" in told[1]
        assert [private] * 2 == [SECRET not in text and "987654" not in text for text in told]

    @pytest.mark.parametrize("private", [True, False])
    def test_not_exact(self, tmp_path: Path, private: bool) -> None:
        """A whole number that became a fraction is told without it by whatever reads the rows with a bundle."""
        project = Project.at(tmp_path, f"duckdb:///{tmp_path}/warehouse.duckdb")
        whole = toy.rows().with_columns(pl.col("a").cast(pl.Int64))
        toy.load(project.url, whole, columns=toy.COLUMNS | {"a": toy.COLUMNS["id"]})
        if private:
            project.edit("jobs/toy.toml", ('key = ["id"]', 'key = ["id"]\nprivate = ["a"]'))
        assert project.call("train", "toy").code == 0
        toy.load(project.url, whole.with_columns(a=pl.lit(987_654.25)))
        done = [
            project.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-02"),
            project.call("models", "compare", "toy", "1", "1", "--to", "2024-02-05"),
            project.call("check", "toy"),
        ]

        assert [each.code for each in done] == [11, 11, 11]
        assert all("toy/rows.sql: column a: want integer, got " in each.out + each.err for each in done)
        assert [private] * 3 == ["987654" not in each.out + each.err for each in done]


def test_champion_that_fails(odd: Project) -> None:
    """What the version in use fails with on the test rows is logged by its class alone."""
    toy.load(odd.url, toy.rows())
    odd.edit("jobs/toy.py", ('handle_unknown="ignore"', 'handle_unknown="error"'))
    odd.edit("jobs/toy.toml", ('key = ["id"]', 'key = ["id"]\nprivate = ["c"]'))
    assert odd.call("train", "toy").code == 0
    toy.load(odd.url, toy.rows().with_columns(c=pl.lit(SECRET) + pl.col("c")))
    result = odd.call("retrain", "toy", "--if", "new-labels=1", "--to", "2024-02-05")

    (failed,) = [each for each in result.named("training.baseline_failed") if each["baseline"] == "champion"]
    assert failed["error"].endswith("ValueError.")
    assert SECRET not in result.out + result.err


# A name that no training row has; of those that one has, a profile counts the place in the bundle's list.
NEW = "Mary Major"
LEDGER = ("batchscore_runs", "batchscore_chunks", "batchscore_rejects", "batchscore_profiles", "batchscore_drift")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """250 rows a day, learned from before anything was private; c holds names, and a one far value a day."""
    root = tmp_path_factory.mktemp("learned")
    project = Project.at(root, f"duckdb:///{root}/warehouse.duckdb")
    far = pl.when(pl.col("id") % 250 == 17).then(987_654.25).otherwise("a")
    names = pl.col("c").replace(["x", "y", "z"], [SECRET, "Jane Doe", "Ann Poe"])
    unseen = (pl.col("id") % 250 == 18) & (pl.col("id") > 250 * 31)
    toy.load(project.url, toy.rows(36, 250).with_columns(c=pl.when(unseen).then(pl.lit(NEW)).otherwise(names), a=far))
    project.edit("jobs/toy.toml", ("[output]", '[drift]\nsample = 250\nagainst = ["training", "previous"]\n\n[output]'))
    assert project.call("train", "toy").code == 0
    assert project.call(*days(1, 3)).code == 0
    return project


@pytest.fixture
def later(learned: Project, tmp_path: Path) -> Project:
    """The same, with a and c private from now on."""
    shutil.copytree(learned.root, tmp_path / "project")
    project = Project(tmp_path / "project", f"duckdb:///{tmp_path}/project/warehouse.duckdb")
    project.edit("jobs/toy.toml", ('key = ["id"]', 'key = ["id"]\nprivate = ["a", "c"]'))
    return project


def days(first: int, last: int) -> tuple[str, ...]:
    """The command that scores these days of February, and not the last."""
    return ("backfill", "toy", "--from", f"2024-02-0{first}", "--to", f"2024-02-0{last}")


def kept_of(project: Project, day: int) -> tuple[str, dict[str, str], dict[tuple[str, str], set[str]]]:
    """What the ledger keeps of the published run of a day: all of it, each input's profile, and metrics by column."""
    ((run_id,),) = toy.query(
        project.url,
        "SELECT run_id FROM batchscore_runs WHERE status = 'published' "
        f"AND interval_start = '2024-02-0{day} 00:00:00+00'",
    )
    all_ = str([toy.query(project.url, f"SELECT * FROM {table} WHERE run_id = '{run_id}'") for table in LEDGER])
    profiles = toy.query(
        project.url,
        f"SELECT column_name, profile FROM batchscore_profiles WHERE role = 'input' AND run_id = '{run_id}'",
    )
    metrics: dict[tuple[str, str], set[str]] = {}
    for reference, name, metric in toy.query(
        project.url, f"SELECT reference, column_name, metric FROM batchscore_drift WHERE run_id = '{run_id}'"
    ):
        metrics.setdefault((reference, name), set()).add(metric)
    return all_, dict(profiles), metrics


class TestMadePrivateLater:
    """A column that became private after the bundle was trained."""

    def test_a_run_keeps_nothing_of_its_values(self, later: Project) -> None:
        """What is kept of a run from then on is how many rows have one, compared with any run; the rest is as before."""
        before, _, _ = kept_of(later, 2)
        result = later.call(*days(3, 5))
        all_, profiles, metrics = kept_of(later, 3)

        assert result.code == 0, result.out
        assert NEW in before
        assert "987654" in before
        for secret in (SECRET, "Jane Doe", "Ann Poe", NEW, "987654"):
            assert secret not in all_
            assert secret not in result.out
        for name in ("a", "c"):
            kept = json.loads(profiles[name])
            assert kept == {"layout": PRIVATE.digest, "n": 250, "counts": [250], "sums": [], "m2": 0.0}
            for reference in ("training", "previous"):
                assert metrics[reference, name] == {"null_share"}
        assert {"psi", "ks"} < metrics["previous", "b"]
        assert {"domain_auc"} == metrics["training", "*"] == metrics["previous", "*"]

    def test_rows_are_told_apart_without_it(self, later: Project) -> None:
        """What moves in such a column alone, no classifier goes by; and it does where the column is not private."""
        apart = {}
        toy.execute(later.url, "UPDATE toy SET a = a + 100, c = 'Somebody Else' WHERE ts >= '2024-02-03'")
        for private in (True, False):
            if not private:
                later.edit("jobs/toy.toml", ('private = ["a", "c"]\n', ""))
            assert later.call(*days(3, 4), "--only", "all").code == 0
            apart[private] = dict(
                toy.query(
                    later.url,
                    "SELECT reference, value FROM batchscore_drift JOIN batchscore_runs USING (run_id) WHERE metric = "
                    "'domain_auc' AND status = 'published' AND interval_start = '2024-02-03 00:00:00+00'",
                )
            )

        assert all(value < 0.6 for value in apart[True].values()), apart
        assert all(value > 0.9 for value in apart[False].values()), apart

    def test_of_what_was_counted_before(self, later: Project) -> None:
        """Chunks that were committed before it was private are published without its values."""
        gate = "[publish]\nscore_range = [0.4, 0.6]\n\n[drift]"
        later.edit("jobs/toy.toml", ('private = ["a", "c"]\n', ""), ("[drift]", gate))
        held = later.call(*days(3, 4))
        ((counted,),) = toy.query(
            later.url,
            "SELECT profile FROM batchscore_chunks JOIN batchscore_runs USING (run_id) WHERE status = 'held'",
        )
        later.edit("jobs/toy.toml", ('key = ["id"]', 'key = ["id"]\nprivate = ["a", "c"]'))
        ((run_id,),) = toy.query(later.url, "SELECT run_id FROM batchscore_runs WHERE status = 'held'")
        published = later.call("runs", "publish", run_id, "--override", "--reason", "they are right")
        all_, _, metrics = kept_of(later, 3)

        assert (held.code, published.code) == (31, 0), published.out
        for secret in ("987654", NEW):
            assert secret in counted
            assert secret not in all_
        assert metrics["previous", "a"] == {"null_share"}

    def test_no_longer_private(self, later: Project) -> None:
        """Runs are counted whole again, compared with those in between by what both have; and nothing fails."""
        assert later.call(*days(3, 4)).code == 0
        later.edit("jobs/toy.toml", ('private = ["a", "c"]\n', ""))
        done = [
            later.call(*days(4, 5)),
            later.call("drift", "toy", "--from", "2024-02-01", "--to", "2024-02-05"),
            later.call("report", "toy", "--to", "2024-02-06"),
        ]
        all_, _, metrics = kept_of(later, 4)

        assert [each.code for each in done] == [0, 0, 0], [each.err + each.out for each in done]
        assert NEW in all_
        assert metrics["previous", "c"] == {"null_share"}
        assert "psi" in metrics["training", "c"]

    def test_the_report_shows_none(self, later: Project) -> None:
        """Neither runs of before nor training lend the report a value."""
        assert later.call(*days(3, 4)).code == 0
        assert later.call("report", "toy", "--to", "2024-02-05", "--output", "page.html").code == 0
        page = (later.root / "page.html").read_text()

        assert not [secret for secret in (SECRET, "Jane Doe", NEW, "987,654", "987654") if secret in page]
