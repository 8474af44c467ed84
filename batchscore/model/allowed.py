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
# Functions, by the module that defines them: how arrays and generators are put together, and what pipelines compute.
_FUNCTIONS = {
    "copyreg": "_reconstructor",
    "numpy": "all amax amin any around asarray average clip cumsum diff digitize interp mean median nan_to_num nanmean "
    "nanmedian percentile prod quantile ravel reshape round searchsorted sort squeeze std sum var where",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
    "numpy.ma.core": "_mareconstruct",
    "scipy._lib.array_api_compat.numpy._aliases": "asarray",
    "sklearn.cluster._kmeans": "_kmeans_single_elkan _kmeans_single_lloyd",
    # Boosting keeps it for categories.
    "sklearn.utils.validation": "check_array",
    "sklearn.neighbors._ball_tree": "newObj",
    "sklearn.neighbors._kd_tree": "newObj",
    "numpy.random._pickle": "__bit_generator_ctor __generator_ctor __randomstate_ctor",
}
# Modules of which every function that they define may be named: scores, distances, tests of features.
_COMPUTING = (
    "sklearn.metrics",
    "sklearn.feature_selection._mutual_info",
    "sklearn.feature_selection._univariate_selection",
)


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

    def _known(self, module: str) -> bool:
        # A package of the operator's list, or the module of a single name in it.
        if any(_within(module, (each,)) or each.startswith(f"{module}.") for each in self.modules):
            return True
        if _NEVER & set(module.split(".")):
            return False
        return module == self.own or module in (*_CLASSES, *_FUNCTIONS) or _within(module, (*_PACKAGES, "numpy"))

    def _allowed(self, found: Any, module: str) -> bool:
        # Where it was defined counts, and not where it was found.
        home = str(getattr(found, "__module__", ""))
        name = str(getattr(found, "__qualname__", ""))
        if isinstance(found, np.ufunc):
            return _within(module, ("numpy", "scipy.special"))
        if not isinstance(found, type) and not _is_function(found):
            return False
        if home == self.own or _within(f"{home}.{name}", self.modules):
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
        return (
            name in _FUNCTIONS.get(home, "").split()
            or _within(home, _COMPUTING)
            or (_within(home, ("sklearn", "numpy.random")) and name.startswith("__pyx_unpickle_"))
        )

    def _refuse(self, module: str, name: str) -> NoReturn:
        # Of a library that is allowed in part, or of Python's own, all would be too much.
        top = module.partition(".")[0]
        narrow = top in sys.stdlib_module_names or top in ("numpy", "scipy", "sklearn")
        raise BundleUntrusted(
            f"{self.where}: its pipeline names {module}.{name}, which is not allowed, so it was not loaded. If it is "
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
