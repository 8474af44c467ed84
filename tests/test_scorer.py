"""Scoring is the same for any chunking, loses no row, and refuses a model that is not the one of training."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from batchscore.errors import GoldenRowsDiffer, Terminated, TooManyRejects
from batchscore.model.bundle import Bundle
from batchscore.model.registry import Registry
from batchscore.model.scorer import Scored, check_golden, score
from batchscore.profile import Profile
from tests.models import CLASSIFIER, REGRESSOR, bundle, slow, trips

# Distances that FRAGILE and its likes fail on; training rows have none of them.
BAD_FEATURE, BAD_STEP, NAN_SCORE, INF_SCORE = 1_000.0, 2_000.0, 3_000.0, 4_000.0

FRAGILE = f"""
import numpy as np
import polars as pl
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

CALLS = []


def features(rows):
    CALLS.append(1)
    return rows.select(pl.col("distance").map_elements(checked, pl.Float64))


def checked(distance):
    if distance == {BAD_FEATURE}:
        raise ValueError("no trip is that long")
    return distance


def refuse(frame):
    if (frame["distance"] == {BAD_STEP}).any():
        raise KeyError("unknown road")
    return frame


class Far(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        distance = X["distance"].to_numpy()
        far = distance / (distance + 50)
        far = np.select([distance == {NAN_SCORE}, distance == {INF_SCORE}], [np.nan, np.inf], far)
        return np.column_stack([1 - far, far])

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def pipeline():
    return make_pipeline(FunctionTransformer(refuse), Far())
"""
OUTCOMES = {
    BAD_FEATURE: ("features", "features_failed", "ValueError: no trip is that long"),
    BAD_STEP: ("pipeline", "pipeline_failed", "KeyError: 'unknown road'"),
    NAN_SCORE: ("prediction", "score_not_finite", "the pipeline gave NaN, infinity or nothing"),
    INF_SCORE: ("prediction", "score_not_finite", "the pipeline gave NaN, infinity or nothing"),
    math.nan: ("input", "unexpected_nan", "column distance"),
    math.inf: ("input", "unexpected_infinity", "column distance"),
    None: ("input", "unexpected_null", "column distance"),
}
DISTANCES = st.lists(st.one_of(st.floats(1, 100), st.sampled_from(list(OUTCOMES))), max_size=40)
CUTS = st.lists(st.integers(0, 40), max_size=6)


# Functions beside the fixtures, because hypothesis prints every argument of a test that fails, a bundle at length.
@cache
def linear() -> Bundle:
    """A logistic regression behind its scaler."""
    return bundle()


@cache
def failing() -> Bundle:
    """A model that fails on marked distances, and counts the calls of its features."""
    return bundle(FRAGILE)


@pytest.fixture(name="sound")
def _sound() -> Bundle:
    return linear()


@pytest.fixture(name="fragile")
def _fragile() -> Bundle:
    return failing()


def with_distances(distances: list[float | None]) -> pl.DataFrame:
    """Rows in key order with these distances; the keys are the multiples of 10."""
    rows = trips(len(distances))
    return rows.with_columns(pl.Series("distance", distances, dtype=pl.Float64), pl.col("id") * 10)


def marked(n: int, marks: dict[int, float | None]) -> pl.DataFrame:
    """`n` rows, of which those at the given positions have the given distance."""
    return with_distances([marks.get(i, 20.0) for i in range(n)])


def in_chunks(bundle: Bundle, rows: pl.DataFrame, cuts: list[int]) -> list[Scored]:
    """What scoring gives chunk by chunk, the chunks being cut at those positions."""
    borders = [0, *sorted(min(cut, rows.height) for cut in cuts), rows.height]
    return [score(bundle, rows[low:high], ["day"]) for low, high in pairwise(borders)]


def counts_of(profile: Profile) -> dict[str, Any]:
    """What of a profile merges exactly."""
    return {name: (c.n, c.null, c.nan, c.pos_inf, c.counts.tolist()) for name, c in profile.columns.items()}


class TestScore:
    """`score`."""

    def test_is_the_pipeline(self, sound: Bundle) -> None:
        """Predictions are what the pipeline itself says of the features, beside key and carried columns."""
        rows = trips(50, seed=5)
        scored = score(sound, rows, ["day", "carrier"])
        pipeline, features = sound.predictor.pipeline, sound.predictor.features.transform(rows)

        assert ["id", "day", "carrier", "prediction", "score"] == scored.predictions.columns
        assert_frame_equal(rows.select("id", "day", "carrier"), scored.predictions.select("id", "day", "carrier"))
        assert pipeline.predict(features).tolist() == scored.predictions["prediction"].to_list()
        assert pipeline.predict_proba(features)[:, 1].tolist() == scored.predictions["score"].to_list()
        assert scored.rejects.is_empty()
        assert {True, False} == set(scored.predictions["prediction"])

    @settings(max_examples=60, deadline=None)
    @given(distances=DISTANCES, cuts=CUTS)
    def test_any_chunking(self, distances: list[float | None], cuts: list[int]) -> None:
        """Chunks of any size, none of them lost and empty ones among them, give what the whole gives."""
        rows = with_distances(distances)
        whole, parts = score(failing(), rows, ["day"]), in_chunks(failing(), rows, cuts)
        inputs, outputs = parts[0].inputs, parts[0].outputs
        for part in parts[1:]:
            inputs, outputs = inputs.merge(part.inputs), outputs.merge(part.outputs)

        assert_frame_equal(whole.predictions, pl.concat([part.predictions for part in parts]))
        assert_frame_equal(whole.rejects.sort("key"), pl.concat([part.rejects for part in parts]).sort("key"))
        assert counts_of(whole.inputs) == counts_of(inputs)
        assert counts_of(whole.outputs) == counts_of(outputs)

    @settings(max_examples=20, deadline=None)
    @given(cuts=CUTS)
    def test_any_chunking_of_a_linear_model(self, cuts: list[int]) -> None:
        """It holds for a product of matrices too, to the last bits, in which that depends on their shape."""
        rows = trips(40, seed=6)
        whole = score(linear(), rows, ["day"]).predictions
        parts = pl.concat([part.predictions for part in in_chunks(linear(), rows, cuts)])

        assert_frame_equal(whole, parts, rel_tol=1e-13, abs_tol=0)

    @settings(max_examples=100, deadline=None)
    @given(distances=DISTANCES)
    def test_no_row_is_lost(self, distances: list[float | None]) -> None:
        """Every key comes out once, as a prediction in order or a reject with its reason, whatever the others are."""
        rows = with_distances(distances)
        scored = score(failing(), rows)
        outcomes = {str(distance): outcome for distance, outcome in OUTCOMES.items()}  # by text: NaN equals nothing
        expected = {
            key: outcomes[str(d)][:2] for key, d in zip(rows["id"], distances, strict=True) if str(d) in outcomes
        }

        assert expected == {key["id"]: (stage, reason) for key, _, stage, reason, _ in scored.rejects.rows()}
        assert [key for key in rows["id"] if key not in expected] == scored.predictions["id"].to_list()
        assert rows.height == scored.rows_read == scored.predictions.height + scored.rejects.height

    @pytest.mark.parametrize("mark", list(OUTCOMES), ids=str)
    def test_says_why(self, fragile: Bundle, mark: float | None) -> None:
        """A reject's detail is the column, or the user's own error, on one line."""
        stage, reason, detail = OUTCOMES[mark]
        key, _, *why, said = score(fragile, marked(9, {4: mark})).rejects.row(0)

        assert ({"id": 40}, stage, reason) == (key, *why)
        assert said.startswith(detail)
        assert "\n" not in said

    def test_without_quotes(self, fragile: Bundle) -> None:
        """Without quotes an error is told by its class alone, in the rejects and where the rows are given up."""
        rows = marked(9, {4: BAD_STEP})
        with pytest.raises(TooManyRejects, match=r"the last error was KeyError\. Nothing"):
            score(fragile, rows, failures_left=0, quote=False)

        assert ["KeyError"] == score(fragile, rows, quote=False).rejects["detail"].to_list()

    def test_rejects_have_the_key(self, fragile: Bundle) -> None:
        """A reject is its key, its other columns and three texts, whether there are any or not."""
        others = {name: dtype for name, dtype in trips(1).schema.items() if name != "id"}
        texts = dict.fromkeys(("stage", "reason", "detail"), pl.String)
        schema = {"key": pl.Struct({"id": pl.Int64}), "values": pl.Struct(others), **texts}

        assert schema == score(fragile, marked(5, {3: None})).rejects.schema
        assert schema == score(fragile, marked(5, {})).rejects.schema

    def test_rejects_have_their_values(self, fragile: Bundle) -> None:
        """A reject's values are those of its own row, whichever stage it failed in."""
        marks = {2: None, 3: BAD_FEATURE, 5: BAD_STEP, 6: NAN_SCORE}
        rows = marked(9, marks)

        rejects = score(fragile, rows).rejects

        assert sorted(key["id"] for key in rejects["key"]) == [rows["id"][row] for row in marks]
        by_key = {row["id"]: row for row in rows.rows(named=True)}
        for key, values in zip(rejects["key"], rejects["values"], strict=True):
            assert key | values == by_key[key["id"]]

    @pytest.mark.parametrize("n", [1, 2, 1_000])
    @pytest.mark.parametrize("mark", [BAD_FEATURE, BAD_STEP])
    @pytest.mark.parametrize("guilty", [{0}, {0, 1}, {17, 500, 501, 999}])
    def test_calls(self, fragile: Bundle, n: int, mark: float, guilty: set[int]) -> None:
        """Finding k guilty rows among n takes at most 1 + 2 k log2(n) calls, not n."""
        guilty = {row for row in guilty if row < n}
        calls = fragile.predictor.features.module.CALLS
        calls.clear()
        scored = score(fragile, marked(n, dict.fromkeys(guilty, mark)))

        assert sorted(10 * row for row in guilty) == sorted(scored.rejects["key"].struct["id"])
        assert len(calls) <= 1 + 2 * len(guilty) * math.ceil(math.log2(n))

    def test_one_call_where_nothing_fails(self, fragile: Bundle) -> None:
        """Surprises among the inputs are found before the features run, and cost no call."""
        calls = fragile.predictor.features.module.CALLS
        calls.clear()
        scored = score(fragile, marked(100, {3: None, 50: math.nan, 99: NAN_SCORE}))

        assert 3 == scored.rejects.height
        assert 1 == len(calls)

    @pytest.mark.parametrize(("budget", "given_up"), [(2, True), (3, False), (4, False)])
    def test_budget(self, fragile: Bundle, budget: int, given_up: bool) -> None:
        """One failing row more than the run may still have gives it up, in the words of the user's error."""
        rows = marked(50, dict.fromkeys((4, 5, 40), BAD_STEP) | {6: None, 7: NAN_SCORE})
        if given_up:
            with pytest.raises(
                TooManyRejects, match=r"the pipeline of trips version 0 .* 10,000 rows .* 'unknown road'"
            ):
                score(fragile, rows, failures_left=budget)
        else:
            scored = score(fragile, rows, failures_left=budget)
            assert (5, 3) == (scored.rejects.height, scored.failures)

    def test_budget_bounds_the_calls(self, fragile: Bundle) -> None:
        """A chunk in which every row fails is given up after the budget's share of calls."""
        calls = fragile.predictor.features.module.CALLS
        calls.clear()
        with pytest.raises(TooManyRejects, match="no trip is that long"):
            score(fragile, with_distances([BAD_FEATURE] * 4_096), failures_left=10)

        assert len(calls) <= 2 * (10 + 12)

    def test_empty_chunk(self, sound: Bundle) -> None:
        """No rows give no predictions and no rejects, with the types that rows would have."""
        scored, one = score(sound, trips(0), ["day"]), score(sound, trips(1), ["day"])

        assert 0 == scored.rows_read
        assert one.predictions.schema == scored.predictions.schema
        assert one.rejects.schema == scored.rejects.schema
        assert 0 == scored.inputs.columns["distance"].n == scored.outputs.columns["score"].n

    @pytest.mark.parametrize("mark", list(OUTCOMES), ids=str)
    def test_every_row_rejected(self, fragile: Bundle, mark: float | None) -> None:
        """A chunk without a sound row is all rejects, and its predictions are empty and typed."""
        scored = score(fragile, with_distances([mark] * 5), ["day"])

        assert 5 == scored.rejects.height
        assert scored.predictions.is_empty()
        assert score(fragile, trips(1), ["day"]).predictions.schema == scored.predictions.schema

    def test_profiles(self, fragile: Bundle) -> None:
        """The profile of the inputs has the rejected rows in it, that of the outputs has not."""
        scored = score(fragile, marked(20, {1: None, 2: math.nan, 3: math.inf, 4: BAD_FEATURE, 5: NAN_SCORE}))
        distance = scored.inputs.columns["distance"]

        assert (20, 1, 1, 1) == (distance.n, distance.null, distance.nan, distance.pos_inf)
        assert NAN_SCORE == distance.maximum
        assert (15, 0) == (scored.outputs.columns["score"].n, scored.outputs.columns["score"].nan)

    def test_known_gaps_are_scored(self, sound: Bundle) -> None:
        """A NULL where training had NULLs is no surprise."""
        rows = trips(6).with_columns(carrier=pl.lit(None, pl.String))

        assert 6 == score(sound, rows).predictions.height

    def test_several_surprises(self, sound: Bundle) -> None:
        """A row with several surprises is rejected once, for the first column of the schema."""
        rows = trips(2).with_columns(distance=pl.lit(math.nan), speed=pl.lit(None, pl.Float64))
        rejects = score(sound, rows).rejects

        assert [("unexpected_nan", "column distance")] * 2 == rejects.select("reason", "detail").rows()

    def test_column_called_row(self, sound: Bundle) -> None:
        """An input column may be called as the scorer calls a row's position inside."""
        columns = [replace(column, name={"speed": "row"}.get(column.name, column.name)) for column in sound.schema]
        source = CLASSIFIER.replace('pl.col("speed")', 'pl.col("row").alias("speed")')
        predictor = replace(sound.predictor, features=type(sound.predictor.features).of(source, "f.py"))
        layouts = {c.name: sound.input_reference.layouts["speed" if c.name == "row" else c.name] for c in columns}
        renamed = replace(
            sound,
            schema=type(sound.schema)(tuple(columns)),
            predictor=predictor,
            input_reference=Profile.empty(layouts),
        )
        rows = trips(9).with_columns(distance=pl.Series([*range(1, 9), None], dtype=pl.Float64))
        scored = score(renamed, rows.rename({"speed": "row"}), ["row"])

        assert score(sound, rows).predictions["score"].to_list() == scored.predictions["score"].to_list()
        assert rows["speed"][:8].to_list() == scored.predictions["row"].to_list()
        assert [{"id": 8}] == scored.rejects["key"].to_list()

    def test_pipeline_that_drops_rows(self, sound: Bundle) -> None:
        """A pipeline with fewer answers than rows has failed on them: nobody can say whose the answers are."""
        short = _Short(sound.predictor.pipeline)
        scored = score(replace(sound, predictor=replace(sound.predictor, pipeline=short)), trips(3))

        assert scored.predictions.is_empty()
        assert ["ValueError: the pipeline gave 0 predictions for 1 rows"] * 3 == scored.rejects["detail"].to_list()

    @pytest.mark.parametrize("passing", [MemoryError, KeyboardInterrupt, Terminated])
    def test_no_row_s_fault(self, sound: Bundle, passing: type[BaseException]) -> None:
        """A chunk too large for memory, and a request to stop, are nobody's row: they pass."""
        stopped = replace(sound, predictor=replace(sound.predictor, pipeline=_Raising(passing())))

        with pytest.raises(passing):
            score(stopped, trips(3))

    def test_pipeline_that_exits(self, sound: Bundle) -> None:
        """A pipeline that would end the process has failed on its rows, and the process goes on."""
        leaving = replace(sound, predictor=replace(sound.predictor, pipeline=_Raising(SystemExit(0))))

        assert ["SystemExit: 0"] * 3 == score(leaving, trips(3)).rejects["detail"].to_list()

    def test_detail_fits_every_database(self, sound: Bundle) -> None:
        """The words of an error come without NUL, which Postgres would refuse together with the whole chunk."""
        odd = replace(sound, predictor=replace(sound.predictor, pipeline=_Raising(ValueError("a\0b\nc"))))

        assert [r"ValueError: a\0b c"] == score(odd, trips(1)).rejects["detail"].to_list()


class _Short:
    """A pipeline that forgets the last row."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def predict_proba(self, features: pl.DataFrame) -> np.ndarray:
        return self.pipeline.predict_proba(features)[:-1]


class _Raising:
    """A pipeline that only raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def predict_proba(self, features: pl.DataFrame) -> np.ndarray:
        raise self.error


class TestTasks:
    """What each task and each type of target gives."""

    @pytest.mark.parametrize(
        ("values", "dtype"),
        [
            ((False, True), pl.Boolean()),
            ((0, 1), pl.Int64()),
            ((-3, 7), pl.Int64()),
            (("late", "on time"), pl.String()),
            (("b", "a"), pl.String()),
        ],
    )
    def test_binary(self, values: tuple[Any, Any], dtype: pl.DataType) -> None:
        """The prediction has the target's values and type; the score is the probability of the last class in order."""
        rows = trips(160)
        target = pl.Series("slow", [values[is_slow] for is_slow in slow(rows)], dtype=dtype)
        made = bundle(target=target)
        predictions = score(made, rows).predictions
        pipeline, features = made.predictor.pipeline, made.predictor.features.transform(rows)

        assert tuple(sorted(values)) == made.manifest.classes
        assert dtype == predictions.schema["prediction"]
        assert pipeline.predict(features).tolist() == predictions["prediction"].to_list()
        assert max(values) == predictions.sort("score")["prediction"][-1]
        assert min(values) == predictions.sort("score")["prediction"][0]

    @pytest.mark.parametrize("values", [("low", "mid", "high"), (3, -1, 10)])
    def test_multiclass(self, values: tuple[Any, ...]) -> None:
        """There is one score for each class, named after it; they add up to 1, and the prediction has the highest."""
        rows = trips(160)
        target = pl.Series("slow", [values[min(int(d / 34), 2)] for d in rows["distance"]])
        made = bundle(task="multiclass", target=target)
        predictions = score(made, rows).predictions
        names = [f"score_{str(value).replace('-', '_')}" for value in sorted(values)]
        scores = predictions.select(names).to_numpy()

        assert ["id", "prediction", *names] == predictions.columns
        assert target.dtype == predictions.schema["prediction"]
        assert np.allclose(1, scores.sum(axis=1))
        assert [sorted(values)[i] for i in scores.argmax(axis=1)] == predictions["prediction"].to_list()
        assert set(values) == set(predictions["prediction"])
        for value, name in zip(sorted(values), names, strict=True):
            chosen = score(made, rows).outputs.columns[name].chosen
            assert chosen is not None
            assert chosen.sum() == (predictions["prediction"] == value).sum()

    @pytest.mark.parametrize("dtype", [pl.Float64(), pl.Int64()])
    def test_regression(self, dtype: pl.DataType) -> None:
        """The prediction is the pipeline's number, a float for an integer target too, and there is no score."""
        rows = trips(160)
        made = bundle(REGRESSOR, "regression", target=(rows["distance"] * 3).cast(dtype).alias("slow"))
        predictions = score(made, rows).predictions
        features = made.predictor.features.transform(rows)

        assert {"id": pl.Int64(), "prediction": pl.Float64()} == predictions.schema
        assert made.predictor.pipeline.predict(features).tolist() == predictions["prediction"].to_list()

    def test_tie(self, fragile: Bundle) -> None:
        """Where two classes are as likely, the first of them is predicted."""
        predictions = score(fragile, with_distances([50.0])).predictions

        assert [(0.5, False)] == predictions.select("score", "prediction").rows()


def _nudged(by: float) -> Callable[[Bundle], Bundle]:
    """The bundle with its coefficients changed by that share."""

    def change(bundle: Bundle) -> Bundle:
        pipeline = deepcopy(bundle.predictor.pipeline)
        pipeline[-1].coef_ *= 1 + by
        return replace(bundle, predictor=replace(bundle.predictor, pipeline=pipeline))

    return change


def _without_scaler(bundle: Bundle) -> Bundle:
    return replace(bundle, predictor=replace(bundle.predictor, pipeline=deepcopy(bundle.predictor.pipeline)[1:]))


def _labels_flipped(bundle: Bundle) -> Bundle:
    """The same scores, and the other label for each."""
    return replace(bundle, predictor=replace(bundle.predictor, classes=bundle.predictor.classes[::-1]))


def _other_features(bundle: Bundle) -> Bundle:
    source = bundle.predictor.features.source.replace("log1p()", "sqrt()")
    features = type(bundle.predictor.features).of(source, "f.py")
    return replace(bundle, predictor=replace(bundle.predictor, features=features))


def _missing_feature(bundle: Bundle) -> Bundle:
    source = bundle.predictor.features.source.replace('pl.col("speed"),', "")
    features = type(bundle.predictor.features).of(source, "f.py")
    return replace(bundle, predictor=replace(bundle.predictor, features=features))


def _one_label(bundle: Bundle) -> Bundle:
    """One golden row of all that was predicted otherwise at training, its score as it is."""
    then = bundle.golden_predictions
    labels = then["prediction"].to_list()
    labels[-1] = not labels[-1]
    return replace(bundle, golden_predictions=then.with_columns(pl.Series("prediction", labels)))


class TestGolden:
    """`check_golden`."""

    def test_fresh_process(self, sound: Bundle, tmp_path: Path) -> None:
        """A registered bundle reproduces its golden rows in another process, and gives the scores it gives here."""
        Registry.at(tmp_path).register(sound)
        script = (
            "import sys; from pathlib import Path; from batchscore.model.registry import Registry; "
            "from batchscore.model.scorer import check_golden, score; "
            "bundle = Registry.at(sys.argv[1]).load('trips', 1); check_golden(bundle); "
            "print(score(bundle, bundle.golden_rows).predictions['score'].to_list())"
        )
        command = [sys.executable, "-c", script, tmp_path]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout

        assert f"{score(sound, sound.golden_rows).predictions['score'].to_list()}\n" == printed

    @pytest.mark.parametrize("change", [lambda bundle: bundle, _nudged(1e-12), _nudged(-1e-12)])
    def test_accepts(self, sound: Bundle, change: Callable[[Bundle], Bundle]) -> None:
        """The bundle itself passes, and so does what another build of a library may do to the last digits."""
        check_golden(change(sound))

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (_nudged(1e-6), "golden rows have another score here"),
            (_nudged(-1e-6), "golden rows have another score here"),
            (_without_scaler, "golden rows have another"),
            (_labels_flipped, "40 of 40 golden rows have another prediction"),
            (_one_label, "1 of 40 golden rows have another prediction"),
            (_other_features, "golden rows fail here in pipeline|golden rows have another"),
            (_missing_feature, "golden rows fail here in pipeline"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:X has feature names")
    def test_refuses(self, sound: Bundle, change: Callable[[Bundle], Bundle], says: str) -> None:
        """A model that scores otherwise, by a millionth or by a label, is refused by name, with what to do."""
        with pytest.raises(GoldenRowsDiffer, match=says) as caught:
            check_golden(change(sound))

        assert "trips version 0" in str(caught.value)
        assert "use the image it was trained with, or retrain" in str(caught.value)

    def test_refuses_nan(self) -> None:
        """A regression that gives NaN now is refused, where a difference with NaN would be no difference."""
        rows = trips(160)
        made = bundle(REGRESSOR, "regression", target=rows["distance"].alias("slow"))
        made.predictor.pipeline[-1].intercept_ = math.nan

        with pytest.raises(GoldenRowsDiffer, match="40 of 40 golden rows have another prediction"):
            check_golden(made)
