"""Encoders that look each category up once."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler, TargetEncoder

from batchscore.model.encoders import quickened

WORDS = ["a", "b", "B", "", "é", "long enough to be cut off", "nan", "None"]
FITTED = pl.DataFrame(
    {
        "one": ["a", "b", "B", "é", None, "a", "b", "a"],
        "two": ["", "nan", "None", "", "a", "a", "nan", ""],
        "n": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    }
)
TARGET = np.array([0, 1, 0, 1, 1, 0, 1, 0])
TEXT = ["one", "two"]
ENCODERS = {
    "one_hot": OneHotEncoder(handle_unknown="ignore"),
    "one_hot_dense": OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32),
    "one_hot_drop": OneHotEncoder(handle_unknown="ignore", drop="first"),
    "one_hot_binary": OneHotEncoder(handle_unknown="ignore", drop="if_binary"),
    "one_hot_rare": OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=2),
    "ordinal": OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
    "ordinal_nan": OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=-2, max_categories=3
    ),
    "target": TargetEncoder(random_state=0),
}

rows = st.lists(st.tuples(*[st.sampled_from([*WORDS, None, "unseen"])] * 2), min_size=1, max_size=30).map(
    lambda some: pl.DataFrame(some * 9, schema={"one": pl.String, "two": pl.String}, orient="row")
)


def plain(answer: Any) -> Any:
    """The numbers, where a matrix is sparse too."""
    return answer.toarray() if sparse.issparse(answer) else answer


def same(estimator: Any, some: pl.DataFrame) -> None:
    """Both give the same numbers in the same form, bit for bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        slow, quick = estimator.transform(some), quickened(estimator).transform(some)
    assert type(slow) is type(quick)
    assert slow.dtype == quick.dtype
    np.testing.assert_array_equal(plain(slow), plain(quick))


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
@given(some=rows)
def test_every_encoder_gives_the_same(encoder: Any, some: pl.DataFrame) -> None:
    """Categories, NULLs, and values that training never saw: whatever the encoder makes of them."""
    same(encoder.fit(FITTED[TEXT], TARGET), some)


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_each_value_is_looked_up_once(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand rows the encoder's own code sees as many as there are values."""
    quick, seen = quickened(encoder.fit(FITTED[TEXT], TARGET)), []
    original = type(encoder)._transform

    def looked_up(self: Any, values: pl.DataFrame, *given: Any, **named: Any) -> Any:
        seen.append(len(values))
        return original(self, values, *given, **named)

    monkeypatch.setattr(type(encoder), "_transform", looked_up)

    quick.transform(pl.concat([FITTED[TEXT]] * 125))

    assert seen == [5]


def test_an_unseen_category_is_refused_in_the_same_words() -> None:
    """Where unknown categories are errors, they are the same error."""
    encoder = OneHotEncoder().fit(FITTED[TEXT])
    odd = pl.concat([FITTED[TEXT]] * 9).with_columns(one=pl.lit("odd"))

    with pytest.raises(ValueError, match="Found unknown categories") as slow:
        encoder.transform(odd)
    with pytest.raises(ValueError, match="Found unknown categories") as quick:
        quickened(encoder).transform(odd)

    assert str(slow.value) == str(quick.value)


@pytest.mark.parametrize(
    "some",
    [
        FITTED[TEXT][:0],
        FITTED[TEXT],
        pl.concat([FITTED[TEXT]] * 9).to_numpy(),
        pl.concat([FITTED[TEXT]] * 9).with_columns(pl.col("two").cast(pl.Categorical)),
        pl.concat([FITTED[TEXT]] * 9).to_pandas(),
    ],
    ids=["none", "few", "numpy", "categorical", "pandas"],
)
def test_other_rows_take_the_way_they_took(some: Any) -> None:
    """Rows that are no frame of text, or few, are left to the encoder."""
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1).fit(FITTED[TEXT])
    if len(some):
        same(encoder, some)
    else:
        with pytest.raises(ValueError, match="0 sample"):
            quickened(encoder).transform(some)


def test_they_are_found_inside_a_pipeline() -> None:
    """In steps, columns, unions, searches and calibrated classifiers; and the pipeline that was given stays as it was."""
    many = pl.concat([FITTED] * 9)
    columns = make_column_transformer(
        (make_union(OneHotEncoder(handle_unknown="ignore"), OrdinalEncoder()), ["two"]),
        (make_pipeline(OneHotEncoder(handle_unknown="ignore"), FunctionTransformer()), ["one"]),
        (StandardScaler(), ["n"]),
    )
    searched = GridSearchCV(make_pipeline(columns, LogisticRegression()), {}, cv=2).fit(many, np.tile(TARGET, 9))
    pipeline = make_pipeline(FunctionTransformer(), searched)
    calibrated = CalibratedClassifierCV(FrozenEstimator(pipeline), cv=2).fit(many, np.tile(TARGET, 9))
    before = pickle.dumps(calibrated)

    quick = quickened(calibrated)

    np.testing.assert_array_equal(calibrated.predict_proba(many), quick.predict_proba(many))
    assert pickle.dumps(calibrated) == before
    inner = quick.calibrated_classifiers_[0].estimator.estimator[1].best_estimator_[0]
    found = [inner.transformers_[0][1].transformer_list[0][1], inner.transformers_[1][1][0]]
    assert all(type(each) is not OneHotEncoder and isinstance(each, OneHotEncoder) for each in found)


def test_what_somebody_made_of_an_encoder_is_left_alone() -> None:
    """A class of its own may mean something else by any method."""

    class Own(OneHotEncoder):
        pass

    own = Own().fit(FITTED[TEXT])

    assert quickened(own) is own


def test_without_an_encoder_nothing_is_made() -> None:
    """A pipeline that holds none is given back itself."""
    pipeline = make_pipeline(make_column_transformer((StandardScaler(), ["n"])), LogisticRegression())
    calibrated = CalibratedClassifierCV(FrozenEstimator(pipeline.fit(FITTED, TARGET)), cv=2).fit(FITTED, TARGET)

    assert quickened(calibrated) is calibrated
