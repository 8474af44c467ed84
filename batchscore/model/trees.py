"""The trees inside fitted scikit-learn estimators, and their inputs, in the arrays that `shapley` reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from batchscore.model.shapley import LEAF, MISSING, Bools, Floats, Indices, Inputs, Tree

__all__ = ["HistTrees", "PlainTrees", "bitset", "has_trees", "trees_of"]

_HIST = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)
_BOOSTED = (GradientBoostingClassifier, GradientBoostingRegressor)
_FORESTS = (RandomForestClassifier, RandomForestRegressor, ExtraTreesClassifier, ExtraTreesRegressor)
_SINGLE = (DecisionTreeClassifier, DecisionTreeRegressor)


class PlainTrees:
    """The trees of a decision tree, a forest or a `GradientBoosting…`: each leaf holds what it adds to the answer.

    For a classifier of the first two that is a probability, and for a boosted one log-odds.

    Args:
        estimator: Fitted; of two classes, or a regressor.
    """

    def __init__(self, estimator: Any) -> None:
        if isinstance(estimator, _BOOSTED):
            members, self._scale = list(estimator.estimators_.ravel()), float(estimator.learning_rate)
        elif isinstance(estimator, _SINGLE):
            members, self._scale = [estimator], 1.0
        else:
            members, self._scale = list(estimator.estimators_), 1.0 / len(estimator.estimators_)
        self.trees = [self._tree(member.tree_) for member in members]

    def inputs(self, rows: Any) -> Inputs:
        """The rows as these trees read them: in single precision."""
        return Inputs(_dense(rows).astype(np.float32).astype(np.float64))

    def features(self) -> Indices | None:
        """The order of the features is that of the rows."""
        return None

    def _tree(self, tree: Any) -> Tree:
        # A regressor's leaf holds one number, and a classifier's the share of each class.
        return Tree(
            feature=np.where(tree.children_left == -1, LEAF, tree.feature).astype(np.intp),
            threshold=tree.threshold,
            missing_left=tree.missing_go_to_left.astype(bool),
            left=tree.children_left,
            right=tree.children_right,
            value=tree.value[:, 0, -1] * self._scale,
            cover=tree.weighted_n_node_samples,
            categories={},
        )


class HistTrees:
    """The trees of a `HistGradientBoosting…`: each leaf holds what it adds on the scale of the link.

    They are private to scikit-learn, in the layout of its version 1.9; whoever reads them compares their sums with
    the answers of the estimator.

    Args:
        estimator: Fitted; of two classes, or a regressor.
    """

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator
        self.trees = [self._tree(predictor) for (predictor,) in estimator._predictors]  # noqa: SLF001
        known, place = estimator._bin_mapper.make_known_categories_bitsets()  # noqa: SLF001
        order, categorical = self.features(), estimator.is_categorical_
        if categorical is None:
            categorical = np.zeros(estimator.n_features_in_, dtype=bool)
        ordered = categorical if order is None else categorical[order]
        self._known = {int(j): bitset(known[place[j]]) for j in np.flatnonzero(ordered)}

    def inputs(self, rows: Any) -> Inputs:
        """The rows as these trees read them: with codes for what is categorical."""
        numbers = np.asarray(self._estimator._preprocess_X(rows, reset=False), dtype=np.float64)  # noqa: SLF001
        return Inputs(numbers, {j: _codes(numbers[:, j], known) for j, known in self._known.items()})

    def features(self) -> Indices | None:
        """For each of the trees' features its place in the rows, where the estimator puts categories first."""
        if self._estimator._preprocessor is None:  # noqa: SLF001
            return None
        categorical = self._estimator.is_categorical_
        return np.concatenate([np.flatnonzero(categorical), np.flatnonzero(~categorical)])

    @staticmethod
    def _tree(predictor: Any) -> Tree:
        nodes = predictor.nodes
        leaf, missing_left = nodes["is_leaf"].astype(bool), nodes["missing_go_to_left"].astype(bool)
        return Tree(
            feature=np.where(leaf, LEAF, nodes["feature_idx"]),
            threshold=nodes["num_threshold"],
            missing_left=missing_left,
            left=nodes["left"].astype(np.intp),
            right=nodes["right"].astype(np.intp),
            value=nodes["value"],
            cover=nodes["count"].astype(np.float64),
            categories={
                int(node): np.append(
                    bitset(predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]]), missing_left[node]
                )
                for node in np.flatnonzero(nodes["is_categorical"].astype(bool) & ~leaf)
            },
        )


def has_trees(estimator: Any) -> bool:
    """Whether the estimator, fitted or not, is of those whose trees are known."""
    return isinstance(estimator, (*_SINGLE, *_FORESTS, *_BOOSTED, *_HIST))


def trees_of(estimator: Any) -> PlainTrees | HistTrees | None:
    """The estimator's trees; None where it is none of those that have some."""
    if isinstance(estimator, _HIST):
        return HistTrees(estimator)
    return PlainTrees(estimator) if has_trees(estimator) else None


def _dense(rows: Any) -> Floats:
    return np.asarray(rows.toarray() if hasattr(rows, "toarray") else rows, dtype=np.float64)


def bitset(words: npt.NDArray[np.uint32]) -> Bools:
    """Eight words as 256 Booleans, by code."""
    return np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little").astype(bool)


def _codes(values: Floats, known: Bools) -> Indices:
    """The category of each value; one that is missing, negative or unknown goes where missing values go."""
    codes = np.where(values >= 0, values, -1).astype(np.intp)
    # As scikit-learn reads a code: in eight bits.
    return np.where((codes >= 0) & known[codes & 0xFF], codes & 0xFF, MISSING)
