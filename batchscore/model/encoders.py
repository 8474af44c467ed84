"""Encoders of scikit-learn's that look each category up once, and not once for each row that has it.

An encoder's answer for a value hangs on that value alone. So a column of text is told apart into its distinct values,
the encoder's own code is asked for those, and its answers are spread over the rows: the same numbers, bit for bit.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, TargetEncoder

__all__ = ["quickened"]

# Where an estimator keeps the list of its steps, with their names.
_LISTS = {Pipeline: "steps", ColumnTransformer: "transformers_", FeatureUnion: "transformer_list"}
# Rows for each distinct value from which on it is quicker.
_REPEATED = 4


def quickened(estimator: Any) -> Any:
    """A fitted estimator that gives the very same answers, with the encoders in it quicker where columns are text.

    The estimator that is given stays as it is; what has no such encoder is given back itself.
    """
    for kind, name in _LISTS.items():
        if isinstance(estimator, kind):
            return _with_parts(estimator, name)
    if isinstance(estimator, CalibratedClassifierCV):
        inner = [_with(each, "estimator") for each in estimator.calibrated_classifiers_]
        same = all(new is old for new, old in zip(inner, estimator.calibrated_classifiers_, strict=True))
        return estimator if same else _twin(estimator, calibrated_classifiers_=inner)
    name = "estimator" if isinstance(estimator, FrozenEstimator) else "best_estimator_"
    if hasattr(estimator, name):
        return _with(estimator, name)
    # Not a class that somebody made of one: what that one's methods do is not known.
    return _twin(estimator, __class__=_QUICK[type(estimator)]) if type(estimator) in _QUICK else estimator


def _with_parts(estimator: Any, name: str) -> Any:
    """The estimator with its list of names and estimators quickened."""
    parts = getattr(estimator, name)
    quick = [(step, quickened(part), *columns) for step, part, *columns in parts]
    same = all(new[1] is old[1] for new, old in zip(quick, parts, strict=True))
    return estimator if same else _twin(estimator, **{name: quick})


def _with(estimator: Any, name: str) -> Any:
    """The estimator with one that it holds quickened."""
    quick = quickened(held := getattr(estimator, name))
    return estimator if quick is held else _twin(estimator, **{name: quick})


def _twin(estimator: Any, /, **changes: Any) -> Any:
    twin = copy.copy(estimator)
    for name, value in changes.items():
        setattr(twin, name, value)
    return twin


class _Quick:
    """What an encoder does otherwise: of all three, `_transform` gives a category's number and whether there is one."""

    def _transform(self, X: Any, *given: Any, **named: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:  # noqa: N803 - scikit-learn's name
        told = _told_apart(X)
        if told is None:
            return super()._transform(X, *given, **named)  # type: ignore[misc, no-any-return]
        values, places = told
        numbers, known = super()._transform(values, *given, **named)  # type: ignore[misc]
        return tuple(  # type: ignore[return-value]
            np.column_stack([answer[place, column] for column, place in enumerate(places)])
            for answer in (numbers, known)
        )


_QUICK = {each: type(each.__name__, (_Quick, each), {}) for each in (OneHotEncoder, OrdinalEncoder, TargetEncoder)}


def _told_apart(rows: Any) -> tuple[pl.DataFrame, list[npt.NDArray[Any]]] | None:
    """Each column's distinct values, the shorter columns with one of their own repeated; and where each row's are.

    None where the rows are no frame of text, or have so many values that nothing is won.
    """
    if not isinstance(rows, pl.DataFrame) or any(dtype != pl.String() for dtype in rows.dtypes) or rows.is_empty():
        return None
    values, places = [], []
    for series in rows.iter_columns():
        coded = pa.chunked_array([series.to_arrow()]).combine_chunks().dictionary_encode(null_encoding="encode")
        values.append(pl.Series(series.name, coded.dictionary, dtype=pl.String))
        places.append(coded.indices.to_numpy())
    most = max(map(len, values))
    if most * _REPEATED > rows.height:
        return None
    return pl.DataFrame([each.extend(each.head(1).new_from_index(0, most - len(each))) for each in values]), places
