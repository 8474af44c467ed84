"""Fitted ensembles of trees as arrays, and an estimator whose trees are summed by something else.

Of scikit-learn, XGBoost and LightGBM. Everything but the sum over the trees stays the estimator's own code: how rows
are checked and prepared, what a sum begins with, and what is made of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from batchscore.model.shapley import LEAF
from batchscore.model.trees import bitset

__all__ = [
    "CompiledAlready",
    "Ensemble",
    "Family",
    "NoTrees",
    "Nodes",
    "NotCompiled",
    "Sums",
    "family_of",
    "has_trees",
    "with_estimator",
]

Array = npt.NDArray[Any]

_CODES = 256
# Each split by category has a bit for each.
_MOST_KINDS = 10_000


class Sums(Protocol):
    """What sums the trees, and makes of the sums what the ensemble's `link` says."""

    begin: Array
    """What the sums of a row begin with, shape `(outputs,)`."""

    def __call__(self, rows: Array, sums: Array) -> None:
        """Add to sums, shape `(rows, outputs)`, what the trees give for rows, shape `(rows, features)`."""


class NotCompiled(Exception):
    """A model's trees cannot be compiled, or what was compiled cannot be used; the message says why."""


class CompiledAlready(NotCompiled):
    """There is nothing left to compile for."""


class NoTrees(NotCompiled):
    """A model has no trees that are known, so that there is nothing to compile."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """One tree, in arrays over its nodes; node 0 is the root.

    Attributes:
        feature: What a node splits on, or `LEAF`.
        limit: A number up to it goes left, in the type of the ensemble's rows.
        missing_left: Whether a missing value goes left.
        left: The left child.
        right: The right child.
        value: What a leaf adds, shape `(nodes, 1)` or `(nodes, outputs)`.
        categories: For a node that splits on a category: whether each code goes left, then any other code, then a
            missing value, shape `(kinds + 2,)`.
    """

    feature: npt.NDArray[np.intp]
    limit: Array
    missing_left: npt.NDArray[np.bool_]
    left: npt.NDArray[np.intp]
    right: npt.NDArray[np.intp]
    value: Array
    categories: Mapping[int, npt.NDArray[np.bool_]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """All trees, and how rows and sums are held.

    Attributes:
        trees: In the order in which they are summed; where a leaf adds one number, that of tree `t` goes to the output
            `t % outputs`.
        features: How many there are.
        outputs: How many sums a row has.
        rows: The type in which rows are compared.
        sums: The type in which leaves are summed.
        kinds: How many codes a categorical feature has.
        link: What becomes of the sums of a row, besides: a probability, or one for each output.
        alpha: What `sigmoid` multiplies the sum by first.
        begin: What the sums of a row begin with, where the estimator does not say so itself.
        tiny: A number that is no larger is 0.
    """

    trees: Sequence[Nodes]
    features: int
    outputs: int
    rows: type[np.floating[Any]]
    sums: type[np.floating[Any]]
    kinds: Mapping[int, int] = field(default_factory=dict)
    link: Literal["", "sigmoid", "softmax"] = ""
    alpha: float = 1.0
    begin: Sequence[float] = ()
    tiny: float = 0.0


class Family(Protocol):
    """What is known of one kind of estimator."""

    def ensemble(self) -> Ensemble:
        """Its trees.

        Raises:
            NotCompiled: They are of a kind that is not known.
        """

    def shape(self) -> tuple[int, int, type[np.floating[Any]], type[np.floating[Any]]]:
        """Features, outputs, and the types of rows and sums."""

    def summed_by(self, sums: Sums) -> Any:
        """The estimator, with its trees summed so; it itself is left as it is."""


def family_of(pipeline: Any) -> Family:
    """What is known of the estimator at the end of a pipeline.

    Raises:
        NoTrees: It is none of those that are known.
    """
    estimator = _last(pipeline)
    kind = type(estimator)
    for known, family in _FAMILIES:
        # A subclass may predict otherwise.
        if kind in known:
            return family(estimator)
    if kind.__module__.startswith("xgboost.") and kind.__name__ in ("XGBClassifier", "XGBRegressor"):
        return _XGBoost(estimator)
    if kind.__module__.startswith("lightgbm.") and kind.__name__ in ("LGBMClassifier", "LGBMRegressor"):
        return _LightGBM(estimator)
    raise NoTrees(f"{kind.__name__} is no ensemble of trees that is known")


def has_trees(pipeline: Any) -> bool:
    """Whether a fitted pipeline ends with trees that are known."""
    try:
        family_of(pipeline)
    except NoTrees:
        return False
    return True


def with_estimator(pipeline: Any, estimator: Any) -> Any:
    """The pipeline with another estimator at its end; it itself is left as it is."""
    if isinstance(pipeline, Pipeline):
        name, last = pipeline.steps[-1]
        return _twin(pipeline, steps=[*pipeline.steps[:-1], (name, with_estimator(last, estimator))])
    if isinstance(pipeline, FrozenEstimator):
        return _twin(pipeline, estimator=with_estimator(pipeline.estimator, estimator))
    if (calibrated := _calibrated(pipeline)) is not None:
        inner = _twin(calibrated, estimator=with_estimator(calibrated.estimator, estimator))
        return _twin(pipeline, calibrated_classifiers_=[inner])
    if hasattr(pipeline, "best_estimator_"):
        return _twin(pipeline, best_estimator_=with_estimator(pipeline.best_estimator_, estimator))
    return estimator


def _last(pipeline: Any) -> Any:
    while True:
        if isinstance(pipeline, Pipeline):
            pipeline = pipeline.steps[-1][1]
        elif isinstance(pipeline, FrozenEstimator):
            pipeline = pipeline.estimator
        elif (calibrated := _calibrated(pipeline)) is not None:
            pipeline = calibrated.estimator
        elif hasattr(pipeline, "best_estimator_"):
            pipeline = pipeline.best_estimator_
        else:
            return pipeline


def _calibrated(pipeline: Any) -> Any:
    """The one calibrated classifier of a calibration behind a fitted pipeline; None where it is none, or of several."""
    if not isinstance(pipeline, CalibratedClassifierCV):
        return None
    fitted: Any = getattr(pipeline, "calibrated_classifiers_", ())
    return fitted[0] if len(fitted) == 1 else None


def _twin(fitted: Any, /, **changed: Any) -> Any:
    """One of the same class that shares all but what is changed."""
    twin = object.__new__(type(fitted))
    twin.__dict__.update(fitted.__dict__ | changed)
    return twin


class _Hist:
    """`HistGradientBoosting…`, in the layout of scikit-learn 1.9, to which it is private; see `trees`."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def ensemble(self) -> Ensemble:
        estimator = self.estimator
        known, place = estimator._bin_mapper.make_known_categories_bitsets()  # noqa: SLF001
        trees = [
            self._nodes(predictor, known, place)
            for stage in estimator._predictors  # noqa: SLF001
            for predictor in stage
        ]
        split_on = {int(tree.feature[node]) for tree in trees for node in tree.categories}
        return Ensemble(trees, *self.shape(), kinds=dict.fromkeys(split_on, _CODES))

    def shape(self) -> tuple[int, int, type[np.floating[Any]], type[np.floating[Any]]]:
        return self.estimator.n_features_in_, self.estimator.n_trees_per_iteration_, np.float64, np.float64

    def summed_by(self, sums: Sums) -> Any:
        estimator = self.estimator

        def predict_iterations(rows: Array, predictors: Any, raw: Array, *how: Any) -> None:
            if predictors is not estimator._predictors:  # noqa: SLF001
                # Some of them, for a prediction stage by stage.
                type(estimator)._predict_iterations(estimator, rows, predictors, raw, *how)  # noqa: SLF001
                return
            # Theirs lie column by column.
            whole = np.ascontiguousarray(raw)
            sums(rows, whole)
            raw[...] = whole

        return _twin(estimator, _predict_iterations=predict_iterations)

    @staticmethod
    def _nodes(predictor: Any, known: Array, place: Array) -> Nodes:
        nodes = predictor.nodes
        leaf, missing_left = nodes["is_leaf"].astype(bool), nodes["missing_go_to_left"].astype(bool)
        categories = {}
        for node in np.flatnonzero(nodes["is_categorical"].astype(bool) & ~leaf).tolist():
            left = bitset(predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]])
            # A category that training did not see is a missing value.
            seen = left | bitset(known[place[nodes["feature_idx"][node]]])
            otherwise = missing_left[node]
            categories[node] = np.append(np.where(seen, left, otherwise), [otherwise, otherwise])
        return Nodes(
            feature=np.where(leaf, LEAF, nodes["feature_idx"]).astype(np.intp),
            limit=nodes["num_threshold"].astype(np.float64),
            missing_left=missing_left,
            left=nodes["left"].astype(np.intp),
            right=nodes["right"].astype(np.intp),
            value=nodes["value"].astype(np.float64)[:, None],
            categories=categories,
        )


class _Plain:
    """Ensembles of scikit-learn's plain trees, which compare in single precision and sum in double."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def ensemble(self) -> Ensemble:
        return Ensemble([_plain(*each) for each in self._members()], *self.shape())

    def shape(self) -> tuple[int, int, type[np.floating[Any]], type[np.floating[Any]]]:
        return self.estimator.n_features_in_, self._outputs(), np.float32, np.float64

    def _outputs(self) -> int:
        return 1

    def _members(self) -> Iterator[tuple[Any, Array]]:
        """Each tree with what its nodes add."""
        raise NotImplementedError


class _Boosted(_Plain):
    def summed_by(self, sums: Sums) -> Any:
        estimator = self.estimator

        def raw_predict(rows: Any) -> Array:
            checked = estimator.estimators_[0, 0]._validate_X_predict(rows, check_input=True)  # noqa: SLF001
            if issparse(checked):
                return type(estimator)._raw_predict(estimator, rows)  # type: ignore[no-any-return]  # noqa: SLF001
            raw = np.ascontiguousarray(estimator._raw_predict_init(checked))  # noqa: SLF001
            sums(checked, raw)
            return raw

        return _twin(estimator, _raw_predict=raw_predict)

    def _outputs(self) -> int:
        return int(self.estimator.estimators_.shape[1])

    def _members(self) -> Iterator[tuple[Any, Array]]:
        for member in self.estimator.estimators_.ravel():
            yield member.tree_, self.estimator.learning_rate * member.tree_.value[:, 0, :1]


class _Forest(_Plain):
    def ensemble(self) -> Ensemble:
        if self.estimator.n_outputs_ != 1:
            raise NotCompiled(f"the forest predicts {self.estimator.n_outputs_} targets at once")
        return super().ensemble()

    def summed_by(self, sums: Sums) -> Any:
        estimator, outputs, name = self.estimator, self._outputs(), self._method()

        def predict(rows: Any) -> Array:
            checked = estimator._validate_X_predict(rows)  # noqa: SLF001
            if issparse(checked):
                return getattr(type(estimator), name)(estimator, rows)  # type: ignore[no-any-return]
            means = np.zeros((len(checked), outputs))
            sums(checked, means)
            means /= len(estimator.estimators_)
            return means if name == "predict_proba" else means[:, 0]

        return _twin(estimator, **{name: predict})

    def _method(self) -> str:
        return "predict_proba" if hasattr(self.estimator, "n_classes_") else "predict"

    def _outputs(self) -> int:
        return int(getattr(self.estimator, "n_classes_", 1)) if self.estimator.n_outputs_ == 1 else 1

    def _members(self) -> Iterator[tuple[Any, Array]]:
        for member in self.estimator.estimators_:
            yield member.tree_, member.tree_.value[:, 0, :]


class _Isolation(_Plain):
    def summed_by(self, sums: Sums) -> Any:
        estimator = self.estimator

        def compute_score_samples(rows: Any, subsample_features: bool) -> Array:
            if issparse(rows):
                own = type(estimator)._compute_score_samples  # noqa: SLF001
                return own(estimator, rows, subsample_features)  # type: ignore[no-any-return]
            depths = np.zeros((rows.shape[0], 1))
            sums(rows, depths)
            most = len(estimator.estimators_) * _average_path_length([estimator._max_samples])  # noqa: SLF001
            return np.asarray(2 ** (-np.divide(depths[:, 0], most, out=np.ones_like(depths[:, 0]), where=most != 0)))

        return _twin(estimator, _compute_score_samples=compute_score_samples)

    def _members(self) -> Iterator[tuple[Any, Array]]:
        lengths, means = self.estimator._decision_path_lengths, self.estimator._average_path_length_per_tree  # noqa: SLF001
        for member, length, mean in zip(self.estimator.estimators_, lengths, means, strict=True):
            yield member.tree_, np.asarray(length + mean - 1.0)[:, None]

    def ensemble(self) -> Ensemble:
        chosen = self.estimator.estimators_features_
        trees = [
            _plain(tree, value, np.asarray(features))
            for (tree, value), features in zip(self._members(), chosen, strict=True)
        ]
        return Ensemble(trees, *self.shape())


def _average_path_length(samples: Any) -> Any:
    from sklearn.ensemble._iforest import _average_path_length as own

    return own(samples)


def _plain(tree: Any, value: Array, features: Array | None = None) -> Nodes:
    leaf = tree.children_left == -1
    feature = tree.feature if features is None else features[np.where(leaf, 0, tree.feature)]
    return Nodes(
        feature=np.where(leaf, LEAF, feature).astype(np.intp),
        limit=_down(tree.threshold),
        missing_left=tree.missing_go_to_left.astype(bool),
        left=tree.children_left.astype(np.intp),
        right=tree.children_right.astype(np.intp),
        value=np.ascontiguousarray(value, dtype=np.float64),
    )


def _down(limits: Array) -> Array:
    """The largest singles that are not above these doubles: no single lies in between."""
    with np.errstate(over="ignore"):
        singles = limits.astype(np.float32)
    return np.where(singles > limits, np.nextafter(singles, np.float32(-np.inf)), singles)


class _Boosters:
    """Estimators around a booster of their library's, which treelite reads."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def _read(self, booster: Any, **told: Any) -> Ensemble:
        """The trees of a booster."""
        model, features = _opened(booster), self.estimator.n_features_in_
        header = model.get_header_accessor()
        outputs = max(1, int(header.get_field("num_class")[0]))
        rows, sums = np.dtype(model.input_type).type, np.dtype(model.output_type).type
        # Where each goes is told by its number here.
        wanted = [tree % outputs for tree in range(model.num_tree)]
        if header.get_field("class_id").tolist() != wanted or any(header.get_field("average_tree_output")):
            raise NotCompiled(f"{type(self.estimator).__name__} does not sum one tree a class in turn")
        fields = [_fields(model.get_tree_accessor(tree)) for tree in range(model.num_tree)]
        kinds: dict[int, int] = {}
        for each in fields:
            for node in np.flatnonzero(each["node_type"] == _BY_CATEGORY).tolist():
                feature, listed = int(each["split_index"][node]), _listed(each, node)
                kinds[feature] = max(kinds.get(feature, 0), int(listed.max(initial=0)) + 1)
        numeric = {int(j) for each in fields for j in each["split_index"][each["node_type"] == _BY_NUMBER]}
        if mixed := kinds.keys() & numeric:
            raise NotCompiled(f"feature {min(mixed)} is split on as a number and as a category")
        if (most := max(kinds.values(), default=0)) > _MOST_KINDS:
            raise NotCompiled(f"a feature has {most:,} categories, and at most {_MOST_KINDS:,} are compiled")
        trees = [_boosted_nodes(each, kinds, rows) for each in fields]
        begin = header.get_field("base_scores").astype(sums).tolist()
        return Ensemble(trees, features, outputs, rows, sums, kinds, begin=begin, **told)


_BY_NUMBER, _BY_CATEGORY = 1, 2
_BELOW, _UP_TO = 2, 3
_FIELDS = (
    *("node_type", "cleft", "cright", "split_index", "default_left", "leaf_value", "threshold", "cmp"),
    *("category_list_right_child", "category_list", "category_list_begin", "category_list_end"),
)


def _fields(tree: Any) -> dict[str, Array]:
    # Copies: treelite's are views of its own memory.
    return {name: np.array(tree.get_field(name)) for name in _FIELDS}


def _listed(tree: Mapping[str, Array], node: int) -> Array:
    begin, end = int(tree["category_list_begin"][node]), int(tree["category_list_end"][node])
    return tree["category_list"][begin:end]


def _boosted_nodes(tree: Mapping[str, Array], kinds: Mapping[int, int], rows: type[np.floating[Any]]) -> Nodes:
    by_number, default_left = tree["node_type"] == _BY_NUMBER, tree["default_left"].astype(bool)
    if not np.isin(tree["cmp"][by_number], (_BELOW, _UP_TO)).all():
        raise NotCompiled("a split compares in a way that is not known")
    limit = tree["threshold"].astype(rows)
    limit = np.where(tree["cmp"] == _BELOW, np.nextafter(limit, rows(-np.inf)), limit)
    categories = {}
    for node in np.flatnonzero(tree["node_type"] == _BY_CATEGORY).tolist():
        count, right = kinds[int(tree["split_index"][node])], bool(tree["category_list_right_child"][node])
        left = np.full(count + 2, right)
        left[_listed(tree, node)] = not right
        left[-1] = default_left[node]
        categories[node] = left
    splits = by_number | (tree["node_type"] == _BY_CATEGORY)
    return Nodes(
        feature=np.where(splits, tree["split_index"], LEAF).astype(np.intp),
        limit=limit,
        missing_left=default_left,
        left=tree["cleft"].astype(np.intp),
        right=tree["cright"].astype(np.intp),
        value=tree["leaf_value"][:, None],
        categories=categories,
    )


def _opened(booster: Any) -> Any:
    """The booster as treelite reads it."""
    try:
        from treelite import TreeliteError, frontend
    except ImportError:
        raise NotCompiled(
            "its trees are read by treelite, which is not installed: pip install 'batchscore[compile]'"
        ) from None
    try:
        if type(booster).__module__.startswith("xgboost."):
            return frontend.from_xgboost(booster)
        return frontend.from_lightgbm(booster)
    except TreeliteError as error:
        raise NotCompiled(f"treelite cannot read its trees: {str(error).strip().splitlines()[-1]}") from error


class _Replaced:
    """A booster that sums its trees otherwise, and is the same in all else."""

    def __init__(self, booster: Any, **methods: Callable[..., Any]) -> None:
        self._booster = booster
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._booster, name)


class _XGBoost(_Boosters):
    """XGBoost sums and compares in single precision, and begins with its base score."""

    def ensemble(self) -> Ensemble:
        estimator, objective = self.estimator, str(self.estimator.objective)
        if (booster := estimator.get_params().get("booster") or "gbtree") != "gbtree":
            raise NotCompiled(f"booster={booster!r} does more than sum trees")
        if not np.isnan(estimator.missing):
            raise NotCompiled(f"missing={estimator.missing!r} is a number")
        if objective not in _XGBOOST_LINKS:
            raise NotCompiled(f"the objective {objective} is none of {', '.join(_XGBOOST_LINKS)}")
        read = self._read(self._trees(), link=_XGBOOST_LINKS[objective])
        return replace(read, begin=[self._logit()]) if objective == "binary:logistic" else read

    def _logit(self) -> float:
        """What XGBoost makes of the base score of two classes, in single precision; treelite's may be the next one."""
        config = json.loads(self.estimator.get_booster().save_config())
        score = np.float32(config["learner"]["learner_model_param"]["base_score"].strip("[]"))
        return float(np.float32(-math.log(float(np.float32(1) / score - np.float32(1)))))

    def shape(self) -> tuple[int, int, type[np.floating[Any]], type[np.floating[Any]]]:
        outputs = int(self.estimator.n_classes_) if self.estimator.objective == "multi:softprob" else 1
        return self.estimator.n_features_in_, outputs, np.float32, np.float32

    def _trees(self) -> Any:
        """The booster with the trees that predict: up to its best round where it stopped early."""
        booster = self.estimator.get_booster()
        best = getattr(self.estimator, "best_iteration", None) if booster.attr("best_iteration") is not None else None
        return booster if best is None else booster[: best + 1]

    def summed_by(self, sums: Sums) -> Any:
        booster, (_, outputs, _, _) = self.estimator.get_booster(), self.shape()

        def inplace_predict(data: Any, **asked: Any) -> Any:
            plain = isinstance(data, np.ndarray) and data.ndim == 2 and data.dtype.kind in "fiub"
            if not plain or asked.get("predict_type") != "value" or asked.get("base_margin") is not None:
                return booster.inplace_predict(data, **asked)
            whole = np.repeat(sums.begin[None, :], len(data), axis=0)
            sums(data, whole)
            return whole if outputs > 1 else whole[:, 0]

        return _twin(self.estimator, _Booster=_Replaced(booster, inplace_predict=inplace_predict))


_XGBOOST_LINKS: dict[str, Literal["", "sigmoid", "softmax"]] = {
    "binary:logistic": "sigmoid",
    "multi:softprob": "softmax",
    "reg:squarederror": "",
}


class _LightGBM(_Boosters):
    """LightGBM sums and compares in double precision."""

    def ensemble(self) -> Ensemble:
        name, *told = str(self.estimator.booster_.dump_model(num_iteration=1)["objective"]).split()
        options = dict(each.split(":", 1) for each in told if ":" in each)
        if name not in _LIGHTGBM_LINKS or "sqrt" in told:
            raise NotCompiled(f"the objective {' '.join([name, *told])} is none of {', '.join(_LIGHTGBM_LINKS)}")
        return self._read(
            self.estimator.booster_,
            link=_LIGHTGBM_LINKS[name],
            alpha=float(options.get("sigmoid", 1)),
            tiny=_LIGHTGBM_ZERO,
        )

    def shape(self) -> tuple[int, int, type[np.floating[Any]], type[np.floating[Any]]]:
        booster = self.estimator.booster_
        return self.estimator.n_features_in_, booster.num_model_per_iteration(), np.float64, np.float64

    def summed_by(self, sums: Sums) -> Any:
        booster, (_, outputs, _, _) = self.estimator.booster_, self.shape()

        def predict(data: Any, **asked: Any) -> Any:
            plain = isinstance(data, np.ndarray) and data.ndim == 2 and data.dtype.kind in "fiub"
            odd = [name for name in ("raw_score", "pred_leaf", "pred_contrib", "start_iteration") if asked.get(name)]
            if not plain or odd or asked.get("num_iteration") is not None:
                return booster.predict(data, **asked)
            whole = np.repeat(sums.begin[None, :], len(data), axis=0)
            sums(data, whole)
            return whole if outputs > 1 else whole[:, 0]

        return _twin(self.estimator, _Booster=_Replaced(booster, predict=predict))


# Its kZeroThreshold, a single.
_LIGHTGBM_ZERO = float(np.float32(1e-35))
_LIGHTGBM_LINKS: dict[str, Literal["", "sigmoid", "softmax"]] = {
    "binary": "sigmoid",
    "multiclass": "softmax",
    **dict.fromkeys(("regression", "regression_l1", "huber", "fair", "quantile", "mape"), ""),
}

_FAMILIES: tuple[tuple[tuple[type, ...], Callable[[Any], Family]], ...] = (
    ((HistGradientBoostingClassifier, HistGradientBoostingRegressor), _Hist),
    ((GradientBoostingClassifier, GradientBoostingRegressor), _Boosted),
    ((RandomForestClassifier, RandomForestRegressor, ExtraTreesClassifier, ExtraTreesRegressor), _Forest),
    ((IsolationForest,), _Isolation),
)
