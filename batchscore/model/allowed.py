"""What a pipeline's pickle may name: short lists, what the features module defines, and what the operator adds."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection
from types import BuiltinFunctionType, FunctionType
from typing import Any, NoReturn

import numpy as np

from batchscore.errors import BundleUntrusted

__all__ = ["Allowed"]

# Packages of which every class may be made, but for what lies in parts of these names.
_PACKAGES = ("sklearn", "scipy.sparse", "scipy.special", "scipy.interpolate", "scipy.spatial", "polars.datatypes")
_NEVER = {"__main__", "_testing", "conftest", "datasets", "distutils", "externals", "f2py", "testing", "tests"}
# Single names: containers and values of Python's, the two classes of each booster, arrays.
_CLASSES = {
    "builtins": "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple",
    "collections": "Counter OrderedDict defaultdict deque",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "functools": "partial",
    "joblib.numpy_pickle": "NumpyArrayWrapper",
    "lightgbm.basic": "Booster",
    "lightgbm.sklearn": "LGBMClassifier LGBMRegressor LGBMRanker _LGBMLabelEncoder",
    "numpy": "dtype matrix ndarray",
    "numpy.ma": "MaskedArray",
    "xgboost.core": "Booster",
    "xgboost.sklearn": "XGBClassifier XGBRegressor XGBRanker XGBRFClassifier XGBRFRegressor",
}
# What a pickle may call, by the module that defines it: how values, arrays, generators, losses and trees are put
# together. All else it may only make empty, and hold.
_CALLED = {
    "builtins": "bytearray complex range slice",
    "collections": "Counter OrderedDict defaultdict deque",
    "copyreg": "_reconstructor",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "functools": "partial",
    "numpy": "dtype",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
    "numpy.ma.core": "_mareconstruct",
    "numpy.random._pickle": "__bit_generator_ctor __generator_ctor __randomstate_ctor",
    "numpy.random.bit_generator": "__pyx_unpickle_SeedSequence",
    "sklearn._loss._loss": "CyAbsoluteError CyExponentialLoss CyHalfBinomialLoss CyHalfGammaLoss CyHalfPoissonLoss "
    "CyHalfSquaredError CyHalfTweedieLoss CyHalfTweedieLossIdentity CyHuberLoss CyPinballLoss "
    "__pyx_unpickle_CyHalfMultinomialLoss",
    "sklearn.linear_model._sgd_fast": "EpsilonInsensitive Hinge ModifiedHuber SquaredEpsilonInsensitive SquaredHinge",
    "sklearn.metrics._dist_metrics": "newObj",
    "sklearn.neighbors._ball_tree": "newObj",
    "sklearn.neighbors._kd_tree": "newObj",
    "sklearn.neighbors._quad_tree": "_QuadTree",
    "sklearn.tree._tree": "Tree",
}
# Functions that a pipeline may hold, and its pickle may not call. None of them calls what it is given, or takes the
# name of a method: an estimator that hands out the methods of another object would make a writer of files out of one.
_HELD = {
    "numpy": "all amax amin any around asarray average clip cumsum diff digitize interp mean median nan_to_num nanmean "
    "nanmedian percentile prod quantile ravel reshape round searchsorted sort squeeze std sum var where",
    "scipy._lib.array_api_compat.numpy._aliases": "asarray",
    "sklearn.cluster._kmeans": "_kmeans_single_elkan _kmeans_single_lloyd",
    "sklearn.feature_selection._mutual_info": "mutual_info_classif mutual_info_regression",
    "sklearn.feature_selection._univariate_selection": "chi2 f_classif f_oneway f_regression r_regression",
    "sklearn.metrics._classification": "accuracy_score balanced_accuracy_score brier_score_loss cohen_kappa_score "
    "d2_brier_score d2_log_loss_score f1_score fbeta_score hamming_loss hinge_loss jaccard_score log_loss "
    "matthews_corrcoef precision_score recall_score zero_one_loss",
    "sklearn.metrics._ranking": "average_precision_score coverage_error dcg_score "
    "label_ranking_average_precision_score label_ranking_loss ndcg_score roc_auc_score top_k_accuracy_score",
    "sklearn.metrics._regression": "d2_absolute_error_score d2_pinball_score d2_tweedie_score explained_variance_score "
    "max_error mean_absolute_error mean_absolute_percentage_error mean_gamma_deviance mean_pinball_loss "
    "mean_poisson_deviance mean_squared_error mean_squared_log_error mean_tweedie_deviance median_absolute_error "
    "r2_score root_mean_squared_error root_mean_squared_log_error",
    "sklearn.metrics._scorer": "negative_likelihood_ratio positive_likelihood_ratio",
    "sklearn.metrics.cluster._supervised": "adjusted_mutual_info_score adjusted_rand_score completeness_score "
    "fowlkes_mallows_score homogeneity_score mutual_info_score normalized_mutual_info_score rand_score v_measure_score",
    "sklearn.metrics.pairwise": "additive_chi2_kernel chi2_kernel cosine_distances cosine_similarity "
    "euclidean_distances haversine_distances laplacian_kernel linear_kernel manhattan_distances "
    "nan_euclidean_distances polynomial_kernel rbf_kernel sigmoid_kernel",
    # Boosting keeps it for categories.
    "sklearn.utils.validation": "check_array",
}


class Allowed:
    """Which names are allowed, and what they stand for."""

    def __init__(self, where: str, own: str, modules: tuple[str, ...]) -> None:
        self.where, self.own, self.modules = where, own, modules

    def find(self, module: str, name: str) -> Any:
        """The class or function of that name."""
        if not self._known(module):
            self._refuse(module, name)
        first, *inner = name.split(".")
        found: Any = getattr(importlib.import_module(module), first)
        for part in inner:
            # Of a class it may be an inner one: a module that another one imports is no way to what that defines.
            if not isinstance(found, type):
                self._refuse(module, name)
            found = getattr(found, part)
        if not self._allowed(found, module):
            self._refuse(module, name)
        return found

    def trusted(self, found: Any) -> bool:
        """Whether the features module defines it or the operator allows it: then its own code answers for it."""
        home = str(getattr(found, "__module__", ""))
        return home == self.own or _within(f"{home}.{getattr(found, '__qualname__', '')}", self.modules)

    def check_called(self, found: Any) -> None:
        """Refuse what may be named, and not called.

        Raises:
            BundleUntrusted: It is neither on the short list nor trusted.
        """
        home, name = str(getattr(found, "__module__", "")), str(getattr(found, "__qualname__", ""))
        if not self.trusted(found) and name not in _CALLED.get(home, "").split():
            self._refuse(home, name, "calls")

    def _known(self, module: str) -> bool:
        # A package of the operator's list, or the module of a single name in it.
        if any(_within(module, (each,)) or each.startswith(f"{module}.") for each in self.modules):
            return True
        if _NEVER & set(module.split(".")):
            return False
        return module == self.own or module in (*_CLASSES, *_CALLED, *_HELD) or _within(module, (*_PACKAGES, "numpy"))

    def _allowed(self, found: Any, module: str) -> bool:
        # Where it was defined counts, and not where it was found.
        home = str(getattr(found, "__module__", ""))
        name = str(getattr(found, "__qualname__", ""))
        if isinstance(found, np.ufunc):
            return _within(module, ("numpy", "scipy.special"))
        if not isinstance(found, type) and not _is_function(found):
            return False
        if self.trusted(found):
            return True
        if _NEVER & set(home.split(".")):
            return False
        if isinstance(found, type):
            return (
                _within(home, _PACKAGES)
                or name in _CLASSES.get(home, "").split()
                or issubclass(found, np.generic | np.dtype)
                or _within(home, ("numpy.random",))
            )
        return name in f"{_CALLED.get(home, '')} {_HELD.get(home, '')}".split()

    def _refuse(self, module: str, name: str, does: str = "names") -> NoReturn:
        # Of a library that is allowed in part, or of Python's own, all would be too much.
        top = module.partition(".")[0]
        narrow = top in sys.stdlib_module_names or top in ("numpy", "scipy", "sklearn")
        raise BundleUntrusted(
            f"{self.where}: its pipeline {does} {module}.{name}, which is not allowed, so it was not loaded. If it is "
            "yours, allow it where you train and where you score: "
            f"BATCHSCORE_ALLOWED_MODULES={f'{module}.{name}' if narrow else top}. If you do not know it, find out who "
            "wrote the bundle.",
            module=module,
            name=name,
        )


def _within(module: str, packages: Collection[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _is_function(found: Any) -> bool:
    # Cython and numpy have function types of their own.
    kind = type(found).__name__
    return isinstance(found, FunctionType | BuiltinFunctionType) or kind in (
        "cython_function_or_method",
        "fused_cython_function",
        "_ArrayFunctionDispatcher",
    )
