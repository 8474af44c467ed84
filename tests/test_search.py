"""Which settings a search finds best, by folds and by validation rows, what it says of those that fail, and curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import uniform
from sklearn import model_selection as sk
from sklearn.tree import DecisionTreeClassifier
from toy import Project

import batchscore.train.explore as exploring
from batchscore.errors import TrainingError, UsageError
from batchscore.job import Job
from batchscore.model.bundle import Bundle
from batchscore.model.features import Features
from batchscore.model.metrics import evaluate
from batchscore.model.registry import Registry
from batchscore.problem import OF_SEVERAL
from batchscore.train.explore import Asked
from batchscore.train.search import asked_curve
from batchscore.train.split import split
from batchscore.train.workflow import train
from tests.models import FEATURES, SQL, Frame, job, labels, slow, trips

N = 240
VALIDATION = {"by": "random", "validation": 0.25, "test": 0.25}
FOLDS = {"by": "stratified", "folds": 3}
BY_TIME = {"by": "time", "column": "started", "test": 0.25}
FOLDS_BY_TIME = {"by": "time", "column": "started", "folds": 3}
# Two of three folds by time fit on rows without the second class.
LATE = pl.Series([i >= 100 for i in range(N)])

SELECTED = 'pl.col("distance"),'
TREE = f"""{FEATURES}
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.tree import DecisionTreeClassifier


def halved(values):
    return values / 2


def pipeline():
    return Pipeline([("half", FunctionTransformer(halved)), ("model", DecisionTreeClassifier(random_state=0))])


def search_space():
    return SPACE
"""
LINE = f"""{FEATURES}
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler


def pipeline():
    return Pipeline([("scale", StandardScaler()), ("model", Ridge())])


def search_space():
    return SPACE
"""
CLUSTERS = """
import polars as pl
from sklearn.cluster import KMeans
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler


def features(rows):
    return rows.select("distance", "speed")


def pipeline():
    return Pipeline([("scale", StandardScaler()), ("model", KMeans(n_init=2, random_state=0))])


def search_space():
    return SPACE
"""
DEPTHS = "{'model__max_depth': [1, 2, 3, 5, 9], 'model__min_samples_leaf': [1, 20]}"


def trained(
    space: str = DEPTHS,
    source: str = TREE,
    target: pl.Series | None = None,
    rows: pl.DataFrame | None = None,
    asked: Asked | None = None,
    told: list[str] | None = None,
    problem: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> Bundle:
    """Train on rows in memory, with a recipe."""
    rows = trips(N) if rows is None else rows
    wanted = _job(problem, **recipe)
    known = Frame(labels(rows, slow(rows) if target is None else target)) if wanted.problem.supervised else None
    features = Features.of(source.replace("SPACE", space), "jobs/trips.py")
    steps = [] if told is None else told
    return train(wanted, features, SQL, Frame(rows), known, steps.append, asked)


def _job(problem: Mapping[str, Any] | None = None, **recipe: Any) -> Job:
    tables: dict[str, Any] = {"problem": dict(problem or {}), "training": {"split": VALIDATION} | recipe}
    if tables["problem"].get("task") in ("clustering", "anomaly"):
        tables |= {"labels": None}
        tables["problem"]["target"] = ""
    return job(**tables)


class TestSearch:
    """`[training] search`."""

    @pytest.mark.parametrize("by", ["grid", "random", "halving"])
    @pytest.mark.parametrize("folds", [None, FOLDS], ids=["validation", "folds"])
    def test_same_seed_same_choice(self, by: str, folds: dict[str, Any] | None) -> None:
        """Each search, by validation rows and by folds, chooses the same again, and the bundle is fitted with it."""
        recipe = {"search": {"by": by, "candidates": 6}, "cross_validation": folds}
        one, two = trained(**recipe), trained(**recipe)
        found = one.evaluation.search

        assert found is not None
        assert found == two.evaluation.search
        assert by == found.by
        model = one.predictor.pipeline.named_steps["model"]
        assert found.best == {
            "model__max_depth": str(model.max_depth),
            "model__min_samples_leaf": str(model.min_samples_leaf),
        }
        assert (10 if by == "grid" else 6) == found.tried == len(found.candidates)
        assert found.candidates[0].parameters == found.best
        assert len({str(each.parameters) for each in found.candidates}) == found.tried

    def test_is_scikit_learn(self) -> None:
        """By folds, what is chosen is what scikit-learn's own grid search on the training rows alone chooses."""
        made = trained(search={"by": "grid"}, cross_validation=FOLDS)
        rows = trips(N).with_columns(slow=slow(trips(N)))
        wanted = _job(search={"by": "grid"}, cross_validation=FOLDS)
        assert wanted.training is not None
        fit_on = split(rows, wanted.training.split, "slow").train
        features = made.predictor.features
        cuts = sk.StratifiedKFold(3, shuffle=True, random_state=0)
        theirs = sk.GridSearchCV(features.pipeline(), features.module.search_space(), scoring="roc_auc", cv=cuts)
        theirs.fit(features.transform(fit_on.drop("slow")), fit_on["slow"].to_numpy())

        assert made.evaluation.search is not None
        ours = {str(each.parameters): each.value for each in made.evaluation.search.candidates}
        assert {str({n: str(v) for n, v in p.items()}) for p in theirs.cv_results_["params"]} == set(ours)
        assert made.evaluation.search.candidates[0].value == pytest.approx(theirs.best_score_)

    def test_what_is_chosen_is_measured(self) -> None:
        """Folds and curves measure the pipeline that the search chose, and not the one that it began with."""
        space, asked = "{'model__max_depth': [1]}", Asked("model__min_samples_leaf=1,40", learning_curve=True)
        made = trained(space, search={"by": "grid"}, cross_validation=FOLDS, asked=asked).evaluation
        curve, learning = made.curves

        assert made.search is not None
        assert made.cross_validation is not None
        chosen = pytest.approx(made.search.candidates[0].value)
        assert chosen == np.mean(made.cross_validation.metrics["roc_auc"])
        assert chosen == curve.points[0].validation
        # A tree of no depth's limit knows every row.
        assert learning.points[-1].train < 0.95

    def test_better_settings_are_first(self) -> None:
        """Candidates are listed from the best down, by a metric that is good when high."""
        found = trained(search={"by": "grid"}).evaluation.search

        assert found is not None
        values = [each.value for each in found.candidates]
        assert values == sorted(values, key=lambda value: -(value or 0.0))
        assert ("roc_auc", 10) == (found.metric, found.tried)

    @pytest.mark.parametrize("folds", [None, {"by": "k-fold", "folds": 3}], ids=["validation", "folds"])
    def test_lower_is_better(self, folds: dict[str, Any] | None) -> None:
        """With an error to go by, the setting with the least error is chosen: here the least shrinkage."""
        problem = {"task": "regression", "success": {"metric": "rmse", "at_most": 1e9}}
        target = trips(N)["distance"] * 3 + trips(N)["speed"]
        space = "{'model__alpha': [1e-6, 10.0, 1e3, 1e6]}"
        recipe = {"search": {"by": "grid"}, "cross_validation": folds}
        found = trained(space, LINE, target, problem=problem, **recipe).evaluation.search

        assert found is not None
        assert {"model__alpha": "1e-06"} == found.best
        values = [each.value or 0.0 for each in found.candidates]
        assert values == sorted(values)
        assert values[0] < 0.01 < 30 < values[-1]

    def test_clusters(self) -> None:
        """Clusters are searched by their silhouette: of three heaps of rows three clusters are found."""
        rows = trips(N).with_columns(
            distance=pl.col("id") % 3 * 100.0 + pl.col("distance") / 20, speed=pl.col("id") % 3 * 7.0
        )
        made = trained(
            "{'model__n_clusters': [2, 3, 5, 8]}",
            CLUSTERS,
            rows=rows,
            problem={"task": "clustering"},
            search={"by": "grid"},
        )

        assert made.evaluation.search is not None
        assert ("silhouette", {"model__n_clusters": "3"}) == (
            made.evaluation.search.metric,
            made.evaluation.search.best,
        )
        assert 60 == sum(made.evaluation.sizes.values())
        assert ["0", "1", "2"] == list(made.evaluation.sizes)

    def test_halving_ends_with_all_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Halving begins with few rows and fits the last settings on more than half of the training rows."""
        fitted: list[int] = []
        whole = DecisionTreeClassifier.fit

        def counting(self: Any, X: Any, *args: Any, **more: Any) -> Any:  # noqa: N803 - as scikit-learn has it
            fitted.append(len(X))
            return whole(self, X, *args, **more)

        monkeypatch.setattr(DecisionTreeClassifier, "fit", counting)
        trained(search={"by": "halving", "candidates": 9})

        searched = fitted[:-1]
        assert sorted(searched) == searched
        assert searched[0] < 30
        assert max(searched) > 60
        assert 9 == searched.count(searched[0])

    def test_distributions(self) -> None:
        """A random search draws from a distribution of scipy's; the seed says what."""
        made = [
            trained(
                "{'model__ccp_alpha': __import__('scipy.stats').stats.uniform(0, 0.1)}",
                search={"by": "random", "candidates": 4, "seed": seed},
            ).evaluation.search
            for seed in (1, 1, 2)
        ]

        assert made[0] == made[1] != made[2]
        assert made[0] is not None
        assert 4 == len({each.parameters["model__ccp_alpha"] for each in made[0].candidates})
        drawn = uniform(0, 0.1).rvs(random_state=1)
        assert f"{drawn:.6g}" in {each.parameters["model__ccp_alpha"] for each in made[0].candidates}

    def test_setting_that_fails(self) -> None:
        """A setting that cannot be fitted is told without a value, and another is chosen."""
        found = trained("{'model__max_depth': [-5, 2]}", search={"by": "grid"}).evaluation.search

        assert found is not None
        assert [("2", True), ("-5", False)] == [
            (each.parameters["model__max_depth"], each.value is not None) for each in found.candidates
        ]

    def test_setting_that_cannot_score(self) -> None:
        """A setting that fits and cannot predict is told without a value too."""
        source = TREE.replace(
            "def halved(values):",
            "def spoilt(values):\n    if len(values) < 100:\n        raise ValueError('few')\n    return values\n\n\n"
            "def halved(values):",
        )
        found = trained("{'half__func': [spoilt, halved]}", source, search={"by": "grid"}).evaluation.search

        assert found is not None
        assert [True, False] == [each.value is not None for each in found.candidates]
        assert "halved" in found.best["half__func"]

    @pytest.mark.parametrize(
        ("space", "error", "says"),
        [
            (
                "{'model__max_depht': [1]}",
                UsageError,
                r"^search_space\(\) names 'model__max_depht'.*Did you mean model__max_depth",
            ),
            (
                "{'max_depth': [1]}",
                UsageError,
                r"no parameter of pipeline\(\).*A parameter of a step is written step__par",
            ),
            ("{}", UsageError, r"^search_space\(\) must return"),
            ("None", UsageError, r"^search_space\(\) must return"),
            ("[1, 2]", UsageError, r"^search_space\(\) must return"),
            ("1 / 0", TrainingError, r"^search_space\(\) fails .* ZeroDivisionError"),
            ("{'model__max_depth': []}", TrainingError, r"^search_space\(\) cannot be searched by grid"),
            ("{'model__max_depth': 5}", TrainingError, r"^search_space\(\) cannot be searched by grid"),
            (
                "{'model__max_depth': [-1, -2]}",
                TrainingError,
                r"^search_space\(\) cannot be searched by grid: InvalidParameterError: .*max_depth.* No setting of it can",
            ),
        ],
    )
    def test_refuses(self, space: str, error: type, says: str) -> None:
        """A space that is none, or names what is no parameter, or whose every setting fails, is refused in words."""
        with pytest.raises(error, match=says) as refused:
            trained(space, search={"by": "grid"})

        assert type(refused.value) is error

    def test_no_space(self) -> None:
        """A job that searches and defines no search_space() is told how to."""
        with pytest.raises(
            UsageError, match=r"wants search_space\(\) beside pipeline\(\).*def search_space\(\): return"
        ):
            trained(source=TREE.replace("def search_space", "def other"), search={"by": "grid"})

    @pytest.mark.parametrize("by", ["grid", "random", "halving"])
    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (SELECTED, 'pl.col("carrier"),'),
            ("FunctionTransformer(halved)", 'ColumnTransformer([("one", "passthrough", ["distnace"])])'),
            ("DecisionTreeClassifier(random_state=0)", "DecisionTreeClassifier(criterion='ginni')"),
        ],
        ids=["text", "column", "parameter"],
    )
    def test_failure_that_no_setting_is_to_blame_for(self, by: str, old: str, new: str) -> None:
        """What fails without a search too is told in the same words, hint and all."""
        assert old in TREE
        source = TREE.replace(old, new).replace(
            "def halved", "from sklearn.compose import ColumnTransformer\n\n\ndef halved"
        )
        with pytest.raises(TrainingError) as plain:
            trained(source=source)
        with pytest.raises(TrainingError) as searched:
            trained(source=source, search={"by": by, "candidates": 3})

        assert str(plain.value).startswith("pipeline().fit fails on the training rows: ")
        assert str(plain.value) == str(searched.value)

    @pytest.mark.parametrize(
        ("problem", "metric"), [({}, "roc_auc"), ({"success": {"metric": "f1", "at_least": 0.1}}, "f1")]
    )
    def test_leave_one_out(self, problem: Mapping[str, Any], metric: str) -> None:
        """A metric that a single row does not define is refused when the job is read, and one that it defines is not."""
        recipe: dict[str, Any] = {"search": {"by": "grid"}, "cross_validation": {"by": "leave-one-out"}}
        with pytest.raises(ValueError, match=rf"search goes by {metric}, which a single row does not define"):
            _job(problem, **recipe)

        other = {"success": {"metric": "log_loss", "at_most": 9}}
        found = trained("{'model__max_depth': [1, 9]}", rows=trips(40), problem=other, **recipe).evaluation.search
        assert found is not None
        assert all(each.value for each in found.candidates)

    def test_metrics_that_a_row_defines(self) -> None:
        """Which metrics a single row does not define is what they are of one row of each class."""
        both, undefined = np.array([False, True]), set()
        score = pl.DataFrame({"prediction": both, "score": both * 0.5})
        scores = pl.DataFrame({"prediction": both, "score_false": 1 - both * 0.5, "score_true": both * 0.5})
        given = {
            "binary": score,
            "multiclass": scores,
            "regression": score.select(pl.col("score").alias("prediction")),
        }
        for task, predictions in given.items():
            for i in range(2):
                truth = pl.Series("y", both)[i : i + 1]
                found = evaluate(task, truth, predictions[i : i + 1], (False, True))
                undefined |= {name for name, value in found.items() if not np.isfinite(value)}

        assert undefined == OF_SEVERAL

    def test_undefined_metric(self) -> None:
        """Folds, or validation rows, that do not define the metric are refused before the first fit of the search."""
        few = pl.Series([i % 40 == 7 for i in range(N)])
        told: list[str] = []
        with pytest.raises(TrainingError, match=r"rows of fold \d do not define roc_auc.* fewer or stratified folds"):
            trained(target=few, search={"by": "grid"}, cross_validation={"by": "k-fold", "folds": 20}, told=told)
        with pytest.raises(TrainingError, match=r"^the validation rows do not define roc_auc"):
            trained(
                target=pl.Series([(i < 50 or i >= 200) and i % 3 == 0 for i in range(N)]),
                search={"by": "grid"},
                split={"by": "time", "column": "started", "validation": 0.25, "test": 0.25},
            )

        assert not [step for step in told if step.startswith("searching")]

    def test_neither_way(self) -> None:
        """Nothing is searched by what is good neither way."""
        with pytest.raises(ValueError, match="search goes by contamination, which is good neither way"):
            _job({"task": "anomaly"}, search={"by": "grid"})

    def test_progress(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who waits is told how many fits were measured and the best so far, and in the end what was chosen."""
        monkeypatch.setattr(exploring, "_QUIET_SECONDS", 0.0)
        told: list[str] = []
        found = trained(told=told, search={"by": "grid"}).evaluation.search

        assert found is not None
        counted = [step for step in told if step.startswith("searching by grid: ")]
        assert 10 == len(counted)
        best = f"the best roc_auc of one is {found.candidates[0].value:.4f}"
        assert f"searching by grid: 10 of 10 measured, {best}" in counted
        best = ", ".join(f"{name} = {value}" for name, value in found.best.items())
        assert f"10 settings tried; the best is {best}" in told

    @pytest.mark.parametrize(
        ("recipe", "asked", "says"),
        [
            (
                {"search": {"by": "random", "candidates": 4}, "cross_validation": FOLDS},
                None,
                "searching by random: 12 of 12 m",
            ),
            ({"search": {"by": "random", "candidates": 99}}, None, "searching by random: 10 of 10 m"),
            ({"search": {"by": "halving", "candidates": 4}}, None, "searching by halving: 4 measured"),
            ({"cross_validation": FOLDS}, None, "cross-validating: 3 of 3 measured"),
            ({"cross_validation": {"by": "leave-one-out"}}, None, "cross-validating: 120 of 120 measured"),
            ({}, Asked("model__max_depth=1:3"), "drawing the curve: 6 of 6 measured"),
        ],
    )
    def test_totals(
        self, monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any], asked: Asked | None, says: str
    ) -> None:
        """Where it is known how much there is to measure, that is told too."""
        monkeypatch.setattr(exploring, "_QUIET_SECONDS", -1.0)
        told: list[str] = []
        trained(told=told, asked=asked, **recipe)

        assert [step for step in told if step.startswith(says)]

    def test_test_rows_choose_nothing(self) -> None:
        """Whatever the test rows hold, the search chooses the same; validation rows do choose."""
        split = {"by": "time", "column": "started", "validation": 0.25, "test": 0.25}

        def values(spoilt: pl.Expr) -> Any:
            rows, noise = trips(N), np.random.default_rng(1).random(N) < 0.5
            target = rows.select(pl.when(spoilt).then(pl.Series(noise)).otherwise(slow(rows))).to_series()
            other = rows.with_columns(distance=pl.when(spoilt).then(-1e6).otherwise("distance"))
            return trained(rows=other.with_columns(speed="speed"), target=target, split=split, search={"by": "grid"})

        clean, test = values(pl.lit(False)).evaluation.search, values(pl.col("id") >= 180).evaluation.search
        validation = values((pl.col("id") >= 120) & (pl.col("id") < 180)).evaluation.search

        assert clean == test
        assert [each.value for each in clean.candidates] != [each.value for each in validation.candidates]


class TestCrossValidation:
    """`[training] cross_validation`."""

    def test_is_scikit_learn(self) -> None:
        """Each fold's metric is scikit-learn's own."""
        folds = {"by": "k-fold", "folds": 4, "seed": 2}
        made = trained(split={"by": "time", "column": "started", "test": 0.25}, cross_validation=folds)
        rows = trips(N)[:180]
        cuts = sk.KFold(4, shuffle=True, random_state=2)
        features = made.predictor.features
        theirs = sk.cross_validate(
            features.pipeline(),
            features.transform(rows),
            slow(trips(N)).to_numpy()[:180],
            cv=cuts,
            scoring=["roc_auc", "accuracy", "neg_brier_score"],
        )

        ours = made.evaluation.cross_validation
        assert ours is not None
        assert ("k-fold", 4) == (ours.by, ours.folds)
        assert ours.metrics["roc_auc"] == pytest.approx(theirs["test_roc_auc"])
        assert ours.metrics["accuracy"] == pytest.approx(theirs["test_accuracy"])
        assert ours.metrics["brier"] == pytest.approx(-theirs["test_neg_brier_score"])

    def test_leave_one_out(self) -> None:
        """Of single rows the metrics are those of all their predictions together."""
        made = trained(
            rows=trips(40),
            split={"by": "time", "column": "started", "test": 0.25},
            cross_validation={"by": "leave-one-out"},
        )
        rows, features = trips(40)[:30], made.predictor.features
        y = slow(trips(40)).to_numpy()[:30]
        guess = sk.cross_val_predict(features.pipeline(), features.transform(rows), y, cv=sk.LeaveOneOut())
        ours = made.evaluation.cross_validation

        assert ours is not None
        assert ("leave-one-out", 30) == (ours.by, ours.folds)
        assert (np.mean(guess == y),) == ours.metrics["accuracy"]

    @pytest.mark.parametrize(
        "folds",
        [
            {"by": "group", "column": "day", "folds": 3},
            {"by": "time", "column": "started", "folds": 3},
            {"by": "stratified", "folds": 3},
        ],
        ids=lambda folds: folds["by"],
    )
    def test_kinds(self, folds: dict[str, Any]) -> None:
        """Folds of every kind measure every metric."""
        ours = trained(cross_validation=folds).evaluation.cross_validation

        assert ours is not None
        assert {3} == {len(values) for values in ours.metrics.values()}
        assert {"roc_auc", "log_loss", "f1"} <= ours.metrics.keys()

    def test_fold_without_a_class(self) -> None:
        """A metric that some fold does not define is left out, and the others stay; what the folds lack is told."""
        told: list[str] = []
        ours = trained(target=LATE, told=told, split=BY_TIME, cross_validation=FOLDS_BY_TIME)
        metrics = ours.evaluation.cross_validation.metrics

        always = {"accuracy", "balanced_accuracy", "brier", "log_loss", "precision", "base_rate"}
        assert always | {"ece", "bias"} == metrics.keys()
        # Fitted on the first class alone, and measured on 45 rows of that, and then on 10 of it and 35 others.
        assert (1.0, 10 / 45) == metrics["accuracy"][:2]
        lacking = "2 of 3 folds are fitted on rows that lack a class, fold 1 on none of True."
        assert f"{lacking} Widen the training window, or take stratified folds." in told

    def test_fold_without_a_class_of_three(self) -> None:
        """A pipeline fitted on two of three classes gives the third no chance, and knows the two by their names."""
        target = pl.Series(["a" if late else "cbb"[i % 3] for i, late in enumerate(LATE)])
        ours = trained(
            target=target, problem={"task": "multiclass"}, split=BY_TIME, cross_validation=FOLDS_BY_TIME
        ).evaluation.cross_validation

        assert ours is not None
        # The carrier tells b from c.
        assert (1.0, 10 / 45) == ours.metrics["accuracy"][:2]

    def test_fold_that_cannot_be_fitted(self) -> None:
        """Where an estimator takes no rows of one class, the error names the fold and says what to do."""
        source = TREE.replace("DecisionTreeClassifier(random_state=0)", "LogisticRegression()").replace(
            "import DecisionTreeClassifier",
            "import DecisionTreeClassifier\nfrom sklearn.linear_model import LogisticRegression",
        )
        with pytest.raises(TrainingError, match=r"cross-validation fails.*2 classes.*fold 1 on none of True. Widen"):
            trained(source=source, target=LATE, split=BY_TIME, cross_validation=FOLDS_BY_TIME)

    def test_fewer_rows_than_folds(self) -> None:
        """More folds than there are rows of a class is an error that says what to lower."""
        with pytest.raises(
            TrainingError, match=r"rarest class of slow has \d+ rows. Lower \[training\] cross_validation"
        ):
            trained(rows=trips(40), cross_validation={"by": "stratified", "folds": 30})


class TestCurves:
    """`train --curve` and `--learning-curve`."""

    def test_overfitting(self, toy: Project) -> None:
        """Through the command: deeper trees learn their rows by heart, and do worse on the validation rows."""
        done = toy.call("train", "toy", "--curve", "tree__max_depth=1:20", "--learning-curve")
        assert 0 == done.code, done.out
        curve, learning = _bundle(toy).evaluation.curves
        train_, validation = ([getattr(point, side) for point in curve.points] for side in ("train", "validation"))

        assert ("tree__max_depth", list(range(1, 21))) == (curve.over, [point.at for point in curve.points])
        assert train_ == sorted(train_)
        assert train_[-1] > 0.99
        assert max(validation[:8]) > validation[-1] + 0.05
        assert 2 <= validation.index(max(validation)) + 1 <= 8
        assert "rows" == learning.over
        assert [point.at for point in learning.points] == sorted({point.at for point in learning.points})

    @pytest.mark.parametrize(
        ("asked", "says"),
        [
            ("tree__max_depth=", "is no parameter with 2 to 1000 values"),
            ("tree__max_depth", "is no parameter with 2 to 1000 values"),
            ("=1:3", "is no parameter with"),
            ("tree__max_depht=1:3", "Did you mean tree__max_depth?"),
        ],
    )
    def test_bad_range(self, toy: Project, asked: str, says: str) -> None:
        """A curve that cannot be drawn is a mistake in the command, told before much is done."""
        done = toy.call("train", "toy", "--curve", asked)

        assert 2 == done.code
        assert says in done.error

    def test_no_rows_to_measure_on(self, toy: Project) -> None:
        """Without validation rows or folds there is nothing to measure a curve on, and no row is read for it."""
        toy.edit("jobs/toy.toml", (", validation = 0.2", ""))
        for asked in (["--curve", "tree__max_depth=1:3"], ["--learning-curve"]):
            done = toy.call("train", "toy", *asked)

            assert 2 == done.code
            assert "give [training] split a share of validation, or cross_validation" in done.error

    @pytest.mark.parametrize(
        ("curve", "says"), [("model__max_depht=1:3", "Did you mean model__max_depth"), ("max_depth=1:3", "step__para")]
    )
    def test_unknown_name(self, curve: str, says: str) -> None:
        """A parameter that the pipeline does not have is refused before a row is read."""
        told: list[str] = []
        with pytest.raises(UsageError, match=rf"^--curve names 'm.*no parameter of pipeline\(\).*{says}"):
            trained(asked=Asked(curve), told=told)

        assert told == []

    def test_leave_one_out(self) -> None:
        """No curve goes by a metric that a single row does not define; this is told before a row is read."""
        told: list[str] = []
        with pytest.raises(UsageError, match="a curve goes by roc_auc, which a single row does not define"):
            trained(asked=Asked(learning_curve=True), cross_validation={"by": "leave-one-out"}, told=told)

        assert told == []

    @pytest.mark.parametrize(
        ("text", "values"),
        [
            ("1:4", [1, 2, 3, 4]),
            ("4:1:-1", [4, 3, 2, 1]),
            ("0:1:0.25", [0.0, 0.25, 0.5, 0.75, 1.0]),
            ("0:10:4", [0, 4, 8]),
            ("gini, entropy", ["gini", "entropy"]),
            ("true,none,0.5,7", [True, None, 0.5, 7]),
        ],
    )
    def test_values(self, text: str, values: list[Any]) -> None:
        """Ranges have their ends, steps may be parts or go down, and lists are read value by value."""
        name, given = asked_curve(f"a__b={text}")

        assert ("a__b", values) == (name, given)
        assert [type(value) for value in values] == [type(value) for value in given]

    @pytest.mark.parametrize(
        "text",
        [
            "1:a",
            "1:2:3:4",
            "1:9:0",
            "9:1",
            "1:nan",
            "1:inf",
            "nan:1",
            "0:1:1e-9",
            "1,,3",
            "5",
            "1:5:-1",
            ":",
            "true:5",
            "1:1",
        ],
    )
    def test_no_values(self, text: str) -> None:
        """What is no range or list of two values or more is refused with what to write."""
        with pytest.raises(UsageError, match=r"Write model__max_depth=1:25, model__alpha=0:1:0.1 or model__criterion="):
            asked_curve(f"a__b={text}")

    def test_by_folds(self) -> None:
        """With folds a curve is the mean over them, of the training rows alone."""
        made = trained(asked=Asked("model__max_depth=1:3"), cross_validation=FOLDS)
        (curve,) = made.evaluation.curves

        assert [1, 2, 3] == [point.at for point in curve.points]
        assert all(point.train >= point.validation - 0.1 for point in curve.points)

    def test_words(self) -> None:
        """Values that are no numbers are told as words."""
        (curve,) = trained(asked=Asked("model__criterion=gini,entropy")).evaluation.curves

        assert ["gini", "entropy"] == [point.at for point in curve.points]

    def test_error_is_no_negative(self) -> None:
        """The curve of an error has the error itself."""
        problem = {"task": "regression", "success": {"metric": "mae", "at_most": 1e9}}
        target = trips(N)["distance"] * 3 + trips(N)["speed"]
        asked = Asked("model__alpha=0.001,1000000", learning_curve=True)
        over, learning = trained("{}", LINE, target, problem=problem, asked=asked).evaluation.curves

        assert 0 <= over.points[0].validation < 1 < over.points[1].validation
        errors = [point.validation for point in learning.points]
        assert errors[0] > errors[-1] > 0

    def test_learning_curve_of_few_rows(self) -> None:
        """Points whose rows are too few to fit on are left out, and the others are drawn."""
        source = TREE.replace("DecisionTreeClassifier(random_state=0)", "LogisticRegression()").replace(
            "import DecisionTreeClassifier",
            "import DecisionTreeClassifier\nfrom sklearn.linear_model import LogisticRegression",
        )
        target = pl.Series([i % 12 == 0 for i in range(N)])
        (curve,) = trained("{}", source, target, rows=trips(N), asked=Asked(learning_curve=True)).evaluation.curves

        assert curve.points[-1].at == 120
        assert 1 <= len(curve.points) <= 5


@pytest.fixture
def toy(project: Project) -> Project:
    """The toy job with a decision tree and validation rows."""
    project.edit("jobs/toy.toml", ("test = 0.25", "validation = 0.2, test = 0.25"))
    project.edit(
        "jobs/toy.py",
        ("make_pipeline(columns, HistGradientBoostingClassifier(max_iter=20, random_state=0))", "_tree(columns)"),
    )
    more = """

def _tree(columns):
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.tree import DecisionTreeClassifier

    return Pipeline([("columns", columns), ("tree", DecisionTreeClassifier(max_depth=4, random_state=0))])
"""
    path = project.root / "jobs/toy.py"
    path.write_text(path.read_text() + more)
    return project


def _bundle(project: Project) -> Bundle:
    registry = Registry.at(str(project.root / "var/registry"))
    return registry.load("toy", max(registry.versions("toy")))
