"""What the columns of a pipeline add to its answers, held against the definition of a Shapley value."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.feature_selection import SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, PolynomialFeatures, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils.validation import check_is_fitted

from batchscore.errors import TrainingError
from batchscore.model.explain import Explainer, refuse_unexplainable
from batchscore.model.features import Features
from batchscore.model.origins import origins
from batchscore.model.shapley import LEAF, Inputs, Tree, add_contributions
from batchscore.train.workflow import train
from tests.models import CLASSIFIER, SQL, Frame, job, labels, slow, trips


def rows(n: int = 400, seed: int = 0) -> pl.DataFrame:
    """Two numbers, one with gaps, and two texts, one with gaps; `idle` tells nothing."""
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "speed": rng.normal(size=n),
            "gap": pl.Series(np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n))).fill_nan(None),
            "kind": rng.choice(["w", "x", "y", "z"], n),
            "place": pl.Series(rng.choice(["here", "there", ""], n)).replace("", None),
            "idle": np.zeros(n),
        }
    )


def answer(given: pl.DataFrame) -> np.ndarray:
    """A number that every column but `idle` has a part in."""
    kind = given["kind"].replace_strict({"w": -1.0, "x": 0.0, "y": 0.5, "z": 2.0}, return_dtype=pl.Float64)
    parts = (
        given["speed"]
        + kind
        + given["gap"].fill_null(1.0) * given["speed"]
        + (given["place"] == "here").fill_null(False)
    )
    return parts.to_numpy() + np.random.default_rng(9).normal(size=given.height) / 3


def encoded(model: Any) -> Any:
    """Categories as numbers, with missing and unknown ones as NaN, in another order than the rows have."""
    encode = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    columns = ColumnTransformer([("n", "passthrough", ["idle", "gap", "speed"]), ("c", encode, ["place", "kind"])])
    return make_pipeline(columns, model)


def one_hot(model: Any) -> Any:
    """Categories as columns of their own, and numbers filled and scaled."""
    encode = OneHotEncoder(handle_unknown="ignore", min_frequency=0.01)
    numbers = make_pipeline(SimpleImputer(add_indicator=True), StandardScaler())
    columns = [("c", encode, ["kind", "place"]), ("n", numbers, ["speed", "gap", "idle"])]
    return make_pipeline(ColumnTransformer(columns), model)


def weighted(tree: Tree, row: np.ndarray, known: frozenset[int], node: int = 0) -> float:
    """The tree's answer where only some features are known: by its definition, and not by this package's code."""
    if tree.feature[node] == LEAF:
        return float(tree.value[node])
    left, right = int(tree.left[node]), int(tree.right[node])
    if (feature := int(tree.feature[node])) in known:
        gone = np.isnan(row[feature])
        goes_left = tree.missing_left[node] if gone else row[feature] <= tree.threshold[node]
        return weighted(tree, row, known, left if goes_left else right)
    share = tree.cover[left] / (tree.cover[left] + tree.cover[right])
    return share * weighted(tree, row, known, left) + (1 - share) * weighted(tree, row, known, right)


def shapley(tree: Tree, row: np.ndarray) -> list[float]:
    """Shapley's formula over all subsets of the features (Lundberg et al. 2020, equation 2)."""
    features = range(len(row))
    values = []
    for feature in features:
        others = [other for other in features if other != feature]
        value = 0.0
        for size in range(len(others) + 1):
            weight = math.factorial(size) * math.factorial(len(others) - size) / math.factorial(len(others) + 1)
            for known in itertools.combinations(others, size):
                with_it = weighted(tree, row, frozenset({*known, feature}))
                value += weight * (with_it - weighted(tree, row, frozenset(known)))
        values.append(value)
    return values


def grown(seed: int, features: int, leaves: int) -> Tree:
    """A tree of random splits, values and covers, as ragged as chance has it."""
    rng = np.random.default_rng(seed)
    count = 2 * leaves - 1
    feature, left, right = np.full(count, LEAF), np.full(count, -1), np.full(count, -1)
    cover = np.zeros(count)
    cover[0], nodes = 1000.0, 1
    open_leaves = [0]
    while nodes < count:
        node = open_leaves.pop(rng.integers(len(open_leaves)))
        feature[node], left[node], right[node] = rng.integers(features), nodes, nodes + 1
        share = rng.uniform(0.05, 0.95)
        cover[nodes], cover[nodes + 1] = cover[node] * share, cover[node] * (1 - share)
        open_leaves += [nodes, nodes + 1]
        nodes += 2
    return Tree(
        feature=feature,
        threshold=rng.normal(size=count),
        missing_left=rng.random(count) < 0.5,
        left=left,
        right=right,
        value=rng.normal(size=count),
        cover=cover,
        categories={},
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), features=st.integers(1, 6), leaves=st.integers(1, 40))
def test_a_tree_agrees_with_the_definition(seed: int, features: int, leaves: int) -> None:
    """Of any tree, with features that split again and again and with missing values, the values are Shapley's."""
    tree = grown(seed, features, leaves)
    rng = np.random.default_rng(seed)
    given = rng.normal(size=(5, features))
    given[rng.random(given.shape) < 0.2] = np.nan
    out = np.zeros((features, 5))
    add_contributions(tree, Inputs(given), range(features), out)
    np.testing.assert_allclose(out.T, [shapley(tree, row) for row in given], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("depth", [14, 30])
def test_a_long_path_adds_up(depth: int) -> None:
    """A path that splits on more features than a table has bits for is followed all the same."""
    nodes = np.arange(depth)
    tree = Tree(
        feature=np.concatenate([nodes, np.full(depth + 1, LEAF)]),
        threshold=np.zeros(2 * depth + 1),
        missing_left=np.zeros(2 * depth + 1, dtype=bool),
        left=np.concatenate([nodes + 1, np.full(depth + 1, -1)]),
        right=np.concatenate([nodes + 1 + depth, np.full(depth + 1, -1)]),
        value=np.arange(2 * depth + 1, dtype=float),
        cover=np.concatenate([0.7**nodes, [0.7**depth], 0.3 * 0.7**nodes]),
        categories={},
    )
    given = np.random.default_rng(0).normal(size=(50, depth)) - 1
    out = np.zeros((depth, 50))
    add_contributions(tree, Inputs(given), range(depth), out)
    answers = [weighted(tree, row, frozenset(range(depth))) for row in given]
    np.testing.assert_allclose(out.sum(axis=0) + weighted(tree, given[0], frozenset()), answers, rtol=1e-9)


def test_many_rows_and_few_rows_have_the_same_values() -> None:
    """A row has the contributions that it has alone, whatever rows it comes with."""
    given = rows(300)
    pipeline = encoded(HistGradientBoostingRegressor(max_iter=10, categorical_features=[3, 4], min_samples_leaf=3))
    explainer = Explainer.fitted(pipeline.fit(given, answer(given)), given, top=2)
    alone = np.vstack([explainer.contributions(given[i]) for i in range(0, 300, 50)])
    np.testing.assert_allclose(alone, explainer.contributions(given)[::50], rtol=1e-12, atol=1e-14)


CLASSIFIERS = {
    "linear": one_hot(LogisticRegression()),
    "histogram": encoded(HistGradientBoostingClassifier(categorical_features=[3, 4], max_iter=20, min_samples_leaf=5)),
    "boosted": one_hot(GradientBoostingClassifier(n_estimators=20, max_depth=4, learning_rate=0.2)),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_adds_up_to_its_log_odds(name: str) -> None:
    """On rows it never saw, with gaps and unknown categories, base and contributions give the probability."""
    given = rows()
    pipeline = CLASSIFIERS[name].fit(given, answer(given) > 0)
    explainer = Explainer.fitted(pipeline, given, top=3)
    unseen = rows(seed=1).with_columns(kind=pl.lit("never"), gap=pl.lit(None, dtype=pl.Float64))
    log_odds = explainer.base + explainer.contributions(unseen).sum(axis=1)
    np.testing.assert_allclose(1 / (1 + np.exp(-log_odds)), pipeline.predict_proba(unseen)[:, 1], rtol=1e-9)


@pytest.mark.parametrize(
    "model",
    [DecisionTreeClassifier(max_depth=5), RandomForestClassifier(10, max_depth=6), RandomForestClassifier(3)],
)
def test_a_forest_adds_up_to_its_probability(model: Any) -> None:
    """The mean of trees of shares adds up as it is, without a link."""
    given = rows()
    pipeline = encoded(model).fit(given, answer(given) > 0)
    explainer = Explainer.fitted(pipeline, given, top=3)
    unseen = rows(seed=1)
    sums = explainer.base + explainer.contributions(unseen).sum(axis=1)
    np.testing.assert_allclose(sums, pipeline.predict_proba(unseen)[:, 1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("pipeline", "logarithm"),
    [
        (one_hot(LinearRegression()), False),
        (one_hot(PoissonRegressor()), True),
        (encoded(HistGradientBoostingRegressor(max_iter=10)), False),
        (encoded(HistGradientBoostingRegressor(loss="poisson", max_iter=10)), True),
        (one_hot(GradientBoostingRegressor(n_estimators=10)), False),
        (encoded(ExtraTreesRegressor(5, max_depth=5)), False),
        (encoded(DecisionTreeRegressor()), False),
    ],
)
def test_a_regressor_adds_up_to_its_value(pipeline: Any, logarithm: bool) -> None:
    """A value or, where the link is logarithmic, its logarithm is base and contributions."""
    given = rows()
    pipeline.fit(given, np.abs(answer(given)))
    explainer = Explainer.fitted(pipeline, given, top=3)
    values = pipeline.predict(unseen := rows(seed=1))
    sums = explainer.base + explainer.contributions(unseen).sum(axis=1)
    np.testing.assert_allclose(sums, np.log(values) if logarithm else values, rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.floats(-100, 100), min_size=1, max_size=5),
    shift=st.floats(-1e3, 1e3),
    seed=st.integers(0, 1000),
)
def test_a_linear_model_gives_each_column_its_coefficient_times_its_deviation(
    weights: list[float], shift: float, seed: int
) -> None:
    """A contribution is coefficient x (value - mean), and the base is the answer at the means."""
    values = np.random.default_rng(seed).normal(loc=shift, size=(40, len(weights)))
    given = pl.DataFrame(values, schema=[f"x{j}" for j in range(len(weights))])
    model = LinearRegression().fit(given, values @ weights + 3)
    explainer = Explainer.fitted(model, given, top=1)
    expected = (values - values.mean(axis=0)) * model.coef_
    np.testing.assert_allclose(explainer.contributions(given), expected, rtol=1e-6, atol=1e-8 * (1 + abs(shift)))


@pytest.mark.parametrize("pipeline", [one_hot(LogisticRegression()), one_hot(RandomForestClassifier(5, max_depth=4))])
def test_a_one_hot_encoding_counts_as_the_column_it_comes_from(pipeline: Any) -> None:
    """The names are the input columns, in their order, and none of an encoder's or imputer's making."""
    given = rows()
    explainer = Explainer.fitted(pipeline.fit(given, answer(given) > 0), given, top=3)
    assert explainer.names == ("speed", "gap", "kind", "place", "idle")


def test_a_column_that_tells_nothing_contributes_nothing() -> None:
    """A constant column has a contribution of exactly zero in every row."""
    given = rows()
    for pipeline in (encoded(HistGradientBoostingClassifier(max_iter=5)), encoded(DecisionTreeClassifier())):
        explainer = Explainer.fitted(pipeline.fit(given, answer(given) > 0), given, top=1)
        assert (explainer.contributions(given)[:, explainer.names.index("idle")] == 0).all()


def test_two_columns_that_do_the_same_contribute_the_same() -> None:
    """Where the answer is a = b, both that are true have one half each of what they make of it together."""
    tree = Tree(
        feature=np.array([0, 1, 1, LEAF, LEAF, LEAF, LEAF]),
        threshold=np.full(7, 0.5),
        missing_left=np.zeros(7, dtype=bool),
        left=np.array([1, 3, 5, -1, -1, -1, -1]),
        right=np.array([2, 4, 6, -1, -1, -1, -1]),
        value=np.array([0, 0, 0, 0, 0, 0, 1.0]),
        cover=np.array([4.0, 2, 2, 1, 1, 1, 1]),
        categories={},
    )
    out = np.zeros((2, 1))
    add_contributions(tree, Inputs(np.array([[1.0, 1.0]])), range(2), out)
    np.testing.assert_allclose(out[:, 0], [0.375, 0.375])


@pytest.mark.parametrize("method", ["isotonic", "sigmoid"])
def test_a_calibrated_pipeline_is_explained_as_it_was_before(method: str) -> None:
    """The reasons of a calibrated pipeline are those of the pipeline within."""
    given = rows()
    late = answer(given) > 0
    inner = one_hot(LogisticRegression()).fit(given, late)
    outer = CalibratedClassifierCV(FrozenEstimator(inner), method=method).fit(given, late)
    assert Explainer.fitted(outer, given, 2).reasons(given).equals(Explainer.fitted(inner, given, 2).reasons(given))


def test_reasons_are_the_strongest_first_and_ties_in_order() -> None:
    """The reasons of a row stand in order of strength, and equal ones in the order of the columns."""
    given = pl.DataFrame({"b": [0.0, 2.0, 4.0], "a": [0.0, 2.0, 4.0], "c": [4.0, 3.0, -1.0]})
    model = LinearRegression().fit(given, [0.0, 1.0, 2.0])
    model.coef_, model.intercept_ = np.array([1.0, -1.0, -2.0]), 0.0
    reasons = Explainer.fitted(model, given, top=4).reasons(given)
    assert reasons.columns == [f"reason_{k}{end}" for k in (1, 2, 3, 4) for end in ("", "_value")]
    assert reasons.row(0) == ("c", -4.0, "b", -2.0, "a", 2.0, None, None)
    assert reasons.row(1) == ("c", -2.0, "b", 0.0, "a", 0.0, None, None)


def test_an_explainer_comes_back_from_its_text() -> None:
    """What was frozen at training explains other rows as the original does."""
    given, unseen = rows(), rows(seed=3)
    for pipeline in CLASSIFIERS.values():
        explainer = Explainer.fitted(pipeline.fit(given, answer(given) > 0), given, top=2)
        again = Explainer.thawed(pipeline, explainer.frozen())
        assert again.reasons(unseen).equals(explainer.reasons(unseen))
        again.check(unseen)


def test_another_model_than_the_explained_one_is_noticed() -> None:
    """Contributions of one fit do not pass for those of another."""
    given = rows()
    frozen = Explainer.fitted(one_hot(LogisticRegression()).fit(given, answer(given) > 0), given, top=2).frozen()
    other = one_hot(LogisticRegression()).fit(given, answer(given) > 1)
    with pytest.raises(TrainingError, match="do not add up"):
        Explainer.thawed(other, frozen).check(given)


@pytest.mark.parametrize(
    ("model", "target", "message"),
    [
        (DummyClassifier(), "two", "cannot explain DummyClassifier"),
        (LogisticRegression(), "three", "for each of 3 classes"),
        (CalibratedClassifierCV(LogisticRegression(), cv=2), "two", "cannot explain CalibratedClassifierCV"),
    ],
)
def test_a_model_that_cannot_be_explained_is_refused(model: Any, target: str, message: str) -> None:
    """The error names the model, what can be explained, and what to do."""
    given = rows()
    labels = np.digitize(answer(given), [0] if target == "two" else [-0.5, 1])
    with pytest.raises(TrainingError, match=f"{message}.*Leave explain_top out"):
        Explainer.fitted(one_hot(model).fit(given, labels), given, top=1)


@pytest.mark.parametrize("quote", [True, False])
def test_a_library_that_fails_at_it_is_named(quote: bool) -> None:
    """What the model's library raises is an error of training's, with its words where they may be quoted."""
    lightgbm = pytest.importorskip("lightgbm", exc_type=(ImportError, OSError))
    given = rows()
    # LightGBM gives no contributions of trees whose leaves are linear.
    model = one_hot(lightgbm.LGBMClassifier(n_estimators=5, linear_tree=True, verbose=-1))
    with pytest.raises(
        TrainingError, match=r"^LGBMClassifier of lightgbm cannot be explained.*: LightGBMError.*Leave explain_top out"
    ) as refused:
        Explainer.fitted(model.fit(given, answer(given) > 0), given, top=2, quote=quote)

    assert quote == ("linear trees" in str(refused.value))


def test_rows_that_the_model_cannot_take_are_told() -> None:
    """Where rows held out fail in a step of the pipeline, it is an error of training's too."""
    given = rows()
    explainer = Explainer.fitted(encoded(DecisionTreeClassifier()).fit(given, answer(given) > 0), given, top=2)
    with pytest.raises(TrainingError, match=r"DecisionTreeClassifier of sklearn cannot be explained.*: ValueError"):
        explainer.check(given.rename({"gap": "hole"}))


def named(transformer: Any, given: pl.DataFrame) -> list[str]:
    """The origins of its outputs, once it is fitted; there are as many as it has outputs."""
    width = transformer.fit_transform(given, np.arange(given.height) % 2).shape[1]
    found = origins(transformer, given.columns)
    assert len(found) in (0, width)
    return found


def test_outputs_are_named_after_what_they_come_from() -> None:
    """Scaled, chosen, binned and encoded columns keep their name; mixtures have their own."""
    given = rows(60).select("speed", "idle").with_columns(idle=pl.col("speed") ** 2)
    assert named(StandardScaler(), given) == ["speed", "idle"]
    assert named(SelectKBest(k=1), given) in (["speed"], ["idle"])
    assert named(PCA(2), given) == ["pca0", "pca1"]
    assert named(make_pipeline(PCA(2), StandardScaler()), given) == ["pca0", "pca1"]
    assert named(PolynomialFeatures(include_bias=False), given) == ["speed", "idle", "speed", "speed idle", "idle"]
    assert named(FeatureUnion([("pca", PCA(1)), ("as", "passthrough")]), given) == ["pca0", "speed", "idle"]
    assert named(FunctionTransformer(np.abs), given) == []
    words = CountVectorizer(analyzer=lambda number: ["many", "words"])
    places: list[Any] = [["idle"], [1], slice(1, 2), slice("idle", "idle"), [False, True]]
    for place in places:
        rest = ColumnTransformer([("a", StandardScaler(), place), ("b", "drop", [0])])
        assert named(rest, given) == ["idle"], place
    assert named(ColumnTransformer([("words", words, "idle")]), given) == ["idle", "idle"]
    plain = FunctionTransformer(np.abs)
    assert named(ColumnTransformer([("size", plain, ["speed"])], remainder="passthrough"), given) == ["speed", "idle"]
    assert named(ColumnTransformer([("size", plain, ["speed", "idle"])]), given) == ["size0", "size1"]


def test_a_category_that_reads_like_a_column_is_no_column() -> None:
    """Columns `a` and `a_b`, with categories that make their encoded names equal, are told apart."""
    given = pl.DataFrame({"a": ["b_c", "x", "b_c"], "a_b": ["c", "y", "y"]})
    assert named(OneHotEncoder(), given) == ["a", "a", "a_b", "a_b"]


NEIGHBOURS = CLASSIFIER.replace(
    "linear_model import LogisticRegression", "neighbors import KNeighborsClassifier"
).replace("LogisticRegression()", "KNeighborsClassifier()")


class TestBeforeTheRows:
    """What `explain_top` refuses before a row is read."""

    @staticmethod
    def steps(source: str, space: str = "", **recipe: Any) -> tuple[list[str], str]:
        """What a training with reasons tells before it is refused, and how it is."""
        told: list[str] = []
        recipe = {"split": {"by": "random", "validation": 0.25}} | recipe
        rows = trips(160)
        frames = Frame(rows), Frame(labels(rows, slow(rows)))
        features = Features.of(f"{source}\n\ndef search_space():\n    return {space or None}\n", "jobs/trips.py")
        with pytest.raises(TrainingError) as refused:
            train(job(problem={"explain_top": 2}, training=recipe), features, SQL, *frames, told.append)
        return told, str(refused.value)

    @pytest.mark.parametrize("space", ["", "{'kneighborsclassifier__n_neighbors': [1, 5]}"])
    def test_a_model_that_cannot_be_explained(self, space: str) -> None:
        """It is told at once, with a search over its numbers too."""
        told, error = self.steps(NEIGHBOURS, space, **({"search": {"by": "grid"}} if space else {}))

        assert error.startswith("explain_top cannot explain KNeighborsClassifier. It takes linear models")
        assert told == []

    def test_a_model_that_the_search_chooses(self) -> None:
        """Where the search may take another model, it is told when there is one; here it is the same again."""
        space = "{'kneighborsclassifier': [__import__('sklearn.neighbors').neighbors.KNeighborsClassifier(1)]}"
        told, error = self.steps(NEIGHBOURS, space, search={"by": "grid"})

        assert error.startswith("explain_top cannot explain KNeighborsClassifier.")
        assert "fitting on 88 rows" in told

    @pytest.mark.parametrize(
        ("model", "explained"),
        [
            (SVC(), False),
            (SVC(kernel="linear"), True),
            (CalibratedClassifierCV(LogisticRegression(), cv=2), False),
            (make_pipeline(StandardScaler(), Ridge()), True),
            (PoissonRegressor(), True),
            (GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}), True),
            # It takes no negative number, and so nothing is known of it.
            (MultinomialNB(), True),
        ],
    )
    def test_kinds(self, model: Any, explained: bool) -> None:
        """Those that can be explained pass, and those of which nothing can be known; the model stays unfitted."""
        with nullcontext() if explained else pytest.raises(TrainingError, match="cannot explain"):
            refuse_unexplainable(model)

        with pytest.raises(NotFittedError):
            check_is_fitted(model)
