"""Which input column each column of a fitted transformer's output comes from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline

__all__ = ["origins"]

# Stands for an input column while a transformer names its outputs. Of a private-use plane: in no category.
_FIRST_TOKEN = 0xF0000


def origins(transformer: Any, names: Sequence[str]) -> list[str]:
    """Name the outputs of a fitted transformer after what they come from.

    An output that comes from one input has that input's name: a scaled number, an encoded category, one of the columns
    of a one-hot encoding, a word of a text. An output that mixes several, or whose transformer does not tell, has a
    name of its own, such as `pca0` or `speed distance`.

    Args:
        transformer: A fitted transformer; a `Pipeline`, `ColumnTransformer` or `FeatureUnion` of them is looked into.
        names: The names of its inputs, in order.

    Returns:
        One name for each output, in order.
    """
    if isinstance(transformer, Pipeline):
        for _, step in transformer.steps:
            names = origins(step, names)
        return list(names)
    if isinstance(transformer, ColumnTransformer):
        return _of_columns(transformer, names)
    if isinstance(transformer, FeatureUnion):
        return [name for _, part in transformer.transformer_list for name in origins(part, names)]
    if transformer is None or isinstance(transformer, str):
        return [] if transformer == "drop" else list(names)
    return _of_one(transformer, names)


def _of_columns(transformer: ColumnTransformer, names: Sequence[str]) -> list[str]:
    given = list(getattr(transformer, "feature_names_in_", names))
    found = [""] * max(place.stop for place in transformer.output_indices_.values())
    for step, part, columns in transformer.transformers_:
        place = transformer.output_indices_[step]
        if place.stop > place.start:
            taken = [names[j] for j in _places(columns, given)]
            known = origins(part, taken)
            width = place.stop - place.start
            if len(known) != width:
                known = taken * width if len(taken) == 1 else [f"{step}{k}" for k in range(width)]
            found[place] = known
    return found


def _places(columns: Any, given: Sequence[str]) -> list[int]:
    """What a ColumnTransformer's list of columns says, as positions."""
    if isinstance(columns, slice) and any(isinstance(end, str) for end in (columns.start, columns.stop)):
        start = 0 if columns.start is None else given.index(columns.start)
        # As in pandas, a slice of names holds its last.
        stop = len(given) if columns.stop is None else given.index(columns.stop) + 1
        return list(range(start, stop))
    if isinstance(columns, slice):
        return list(range(len(given)))[columns]
    if isinstance(columns, (str, int)):
        columns = [columns]
    listed = np.asarray(columns)
    if listed.dtype == bool:
        return np.flatnonzero(listed).tolist()
    return [given.index(column) if isinstance(column, str) else range(len(given))[column] for column in listed.tolist()]


def _of_one(transformer: Any, names: Sequence[str]) -> list[str]:
    """Let the transformer name its outputs with a token for each input, and see which tokens are in a name."""
    tokens = {chr(_FIRST_TOKEN + j): name for j, name in enumerate(names)}
    # One that was fitted with names takes no others.
    twin = copy.copy(transformer)
    vars(twin).pop("feature_names_in_", None)
    try:
        outputs = [str(name) for name in twin.get_feature_names_out(list(tokens))]
    except (AttributeError, ValueError, TypeError):
        return []
    return [_named(output, tokens) for output in outputs]


def _named(output: str, tokens: dict[str, str]) -> str:
    held = tokens.keys() & set(output)
    if len(held) == 1 or len(tokens) == 1:
        return tokens[next(iter(held or tokens))]
    return "".join(tokens.get(letter, letter) for letter in output)
