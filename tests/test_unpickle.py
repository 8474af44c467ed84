"""A pickle that names what no pipeline needs is refused before any of it has run; real pipelines are loaded as ever."""

from __future__ import annotations

import builtins
import collections
import contextlib
import copyreg
import functools
import io
import operator
import os
import pickle
import posix
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import joblib
import numpy as np
import pytest
import scipy.sparse
import sklearn.datasets
from numpy.random._pickle import __bit_generator_ctor as _bit_generator
from numpy.random._pickle import __generator_ctor as _generator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    StackingClassifier,
)
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.metrics import get_scorer, get_scorer_names
from sklearn.metrics._scorer import _cached_call, _Scorer
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    OneHotEncoder,
    OrdinalEncoder,
    QuantileTransformer,
    SplineTransformer,
    StandardScaler,
    TargetEncoder,
)
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import Bunch
from sklearn.utils._tags import Tags, TargetTags

from batchscore.errors import BundleCorrupt, BundleUntrusted
from batchscore.model.unpickle import checked, names_in

RNG = np.random.default_rng(0)
X = RNG.uniform(0.1, 1, (120, 4))
Y = (X.sum(axis=1) + RNG.normal(scale=0.2, size=120) > 2.2).astype(int)


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Build:
    """Pickles as a function's result, changed by a state."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], state: Any) -> None:
        self.call = function, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def dumped(thing: object, compress: Any = ("zlib", 3)) -> bytes:
    """The bytes of a pipeline file."""
    buffer = io.BytesIO()
    joblib.dump(thing, buffer, compress=compress)
    return buffer.getvalue()


def load(data: bytes, *modules: str) -> Any:
    """What a bundle loads from the bytes."""
    return checked(data, "here", "batchscore_features_0", modules)()


def columns() -> ColumnTransformer:
    """One of each way to prepare columns."""
    return ColumnTransformer(
        [
            ("log", FunctionTransformer(np.log1p), [0]),
            ("clip", FunctionTransformer(np.clip, kw_args={"a_min": 0.0, "a_max": 1.0}), [1]),
            ("one", OneHotEncoder(handle_unknown="ignore", dtype=np.float32), [2]),
            ("union", FeatureUnion([("pca", PCA(2)), ("scale", StandardScaler())]), [0, 1, 2]),
            ("same", "passthrough", [3]),
        ],
        sparse_threshold=0,
    )


FITTED = [
    lambda: make_pipeline(columns(), LogisticRegression()),
    lambda: make_pipeline(QuantileTransformer(n_quantiles=20), SGDClassifier(random_state=np.random.RandomState(3))),
    lambda: make_pipeline(
        KBinsDiscretizer(3, encode="ordinal", quantile_method="averaged_inverted_cdf"),
        SplineTransformer(),
        SelectKBest(f_classif, k=3),
        GaussianNB(),
    ),
    lambda: make_pipeline(OrdinalEncoder(), TargetEncoder(), SVC()),
    lambda: HistGradientBoostingClassifier(max_iter=5, early_stopping=True),
    lambda: make_pipeline(
        KBinsDiscretizer(3, encode="ordinal", quantile_method="averaged_inverted_cdf"),
        HistGradientBoostingClassifier(max_iter=5, categorical_features=[0]),
    ),
    lambda: HistGradientBoostingRegressor(max_iter=5, loss="quantile", quantile=0.5),
    lambda: GradientBoostingClassifier(n_estimators=5),
    lambda: RandomForestClassifier(5),
    lambda: DecisionTreeClassifier(random_state=np.random.RandomState(0)),
    lambda: IsolationForest(n_estimators=10, random_state=0),
    lambda: KMeans(2, n_init=2, random_state=0),
    lambda: KNeighborsClassifier(algorithm="kd_tree"),
    lambda: KNeighborsClassifier(algorithm="ball_tree"),
    lambda: MLPClassifier(max_iter=2000, hidden_layer_sizes=(4,), random_state=0),
    lambda: GaussianProcessRegressor(alpha=0.1, optimizer=None),
    lambda: CalibratedClassifierCV(GaussianNB(), method="isotonic"),
    lambda: CalibratedClassifierCV(FrozenEstimator(GaussianNB().fit(X, Y)), method="sigmoid"),
    lambda: TransformedTargetRegressor(LinearRegression(), func=np.log1p, inverse_func=np.expm1),
    lambda: make_pipeline(
        FunctionTransformer(functools.partial(np.clip, a_min=0.2, a_max=0.8)), FrozenEstimator(GaussianNB().fit(X, Y))
    ),
    lambda: FixedThresholdClassifier(LogisticRegression(), threshold=0.4),
    lambda: StackingClassifier([("a", GaussianNB()), ("b", DummyClassifier())]),
    lambda: GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, scoring="roc_auc"),
]


class TestPipelines:
    """What people fit."""

    @pytest.mark.parametrize("number", range(len(FITTED)))
    def test_fitted(self, number: int) -> None:
        """A fitted pipeline is loaded, and predicts what joblib's own loading of it predicts."""
        data = dumped(FITTED[number]().fit(X, Y))

        np.testing.assert_array_equal(joblib.load(io.BytesIO(data)).predict(X), load(data).predict(X))

    @pytest.mark.parametrize(
        "loss", ["hinge", "log_loss", "modified_huber", "squared_hinge", "perceptron", "huber", "epsilon_insensitive"]
    )
    def test_gradient_descent(self, loss: str) -> None:
        """A linear model keeps its loss, which its pickle calls by name, and is loaded."""
        data = dumped(SGDClassifier(loss=loss, random_state=0).fit(X, Y))

        np.testing.assert_array_equal(joblib.load(io.BytesIO(data)).predict(X), load(data).predict(X))

    @pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "gamma", "poisson", "quantile"])
    def test_boosting(self, loss: str) -> None:
        """So is boosting with each of its losses."""
        data = dumped(HistGradientBoostingRegressor(loss=loss, quantile=0.5, max_iter=3).fit(X, Y + 1))

        np.testing.assert_array_equal(joblib.load(io.BytesIO(data)).predict(X), load(data).predict(X))

    def test_scorers(self) -> None:
        """A search keeps its scorer: every scorer that has a name is loaded."""
        scorers = {name: get_scorer(name) for name in get_scorer_names()}
        found = load(dumped(scorers))

        assert {name: repr(scorer) for name, scorer in scorers.items()} == {
            name: repr(scorer) for name, scorer in found.items()
        }

    def test_isotonic(self) -> None:
        """An isotonic regression, which keeps a function of scipy's, is loaded."""
        data = dumped(IsotonicRegression().fit(X[:, 0], Y))

        np.testing.assert_array_equal(joblib.load(io.BytesIO(data)).predict(X[:, 0]), load(data).predict(X[:, 0]))

    def test_lightgbm(self) -> None:
        """A booster of LightGBM, where that is installed, is loaded."""
        lightgbm = pytest.importorskip("lightgbm", exc_type=(ImportError, OSError))
        data = dumped(lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(X, Y))

        np.testing.assert_array_equal(joblib.load(io.BytesIO(data)).booster_.predict(X), load(data).booster_.predict(X))

    def test_xgboost(self) -> None:
        """A booster of XGBoost, where that is installed, is loaded."""
        xgboost = pytest.importorskip("xgboost")
        data = dumped(xgboost.XGBClassifier(n_estimators=5).fit(X, Y))

        np.testing.assert_array_equal(joblib.load(io.BytesIO(data)).predict(X), load(data).predict(X))

    @pytest.mark.parametrize("compress", [("zlib", 3), 0])
    def test_values(self, compress: Any) -> None:
        """Arrays of any kind and order, sparse ones, generators and Python's own values come back as they were."""
        values = {
            "arrays": [np.arange(12.0).reshape(3, 4), np.asfortranarray(np.arange(12).reshape(3, 4)), np.zeros((0, 3))],
            "objects": np.array([None, "é", 1.5, (1, 2)], dtype=object),
            "odd": [np.array(["2024-01-01"], dtype="M8[D]"), np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])],
            "scalars": [np.float64(0.1), np.bool_(True), np.datetime64("2024-01-01"), 1 + 2j, {3}, frozenset({4})],
            "wide": np.arange(300_000),
        }
        found = load(dumped(values, compress))

        for name in ("arrays", "odd"):
            for want, got in zip(values[name], found[name], strict=True):
                np.testing.assert_array_equal(want, got)
                assert (want.dtype, want.flags.f_contiguous) == (got.dtype, got.flags.f_contiguous)
        assert values["objects"].tolist() == found["objects"].tolist()
        assert values["scalars"] == found["scalars"]
        np.testing.assert_array_equal(values["wide"], found["wide"])
        sparse = load(dumped(scipy.sparse.csr_matrix(np.eye(3)), compress))
        np.testing.assert_array_equal(np.eye(3), sparse.toarray())
        assert np.random.default_rng(5).random() == load(dumped(np.random.default_rng(5), compress)).random()

    def test_own_module(self) -> None:
        """What the features module defines is allowed, and what it imports is not for that."""
        own = ModuleType("batchscore_features_0")
        sys.modules[own.__name__] = own
        try:
            exec("from os import system\nclass Mine: pass\ndef double(x): return 2 * x", own.__dict__)
            transformer = load(dumped(FunctionTransformer(own.double)))
            assert isinstance(load(dumped(own.Mine())), own.Mine)
            assert 4 == transformer.transform(2)
            assert 6 == load(dumped(Call(own.double, 3)))
            with pytest.raises(BundleCorrupt, match="another __setstate__"):
                load(dumped(Made(own.Mine, {"__setstate__": own.double})))
            with pytest.raises(BundleUntrusted, match=r"names batchscore_features_0\.system"):
                load(b"\x80\x04cbatchscore_features_0\nsystem\n.")
        finally:
            del sys.modules[own.__name__]

    def test_names(self) -> None:
        """The names are those that the bytes hold, nested arrays of objects included, and nothing is imported."""
        data = dumped([FunctionTransformer(np.log1p), np.array([Call(os.system, "true")], dtype=object)])

        assert [
            "joblib.numpy_pickle.NumpyArrayWrapper",
            "numpy._core.multiarray._reconstruct",
            "numpy.dtype",
            "numpy.log1p",
            "numpy.ndarray",
            "posix.system",
            "sklearn.preprocessing._function_transformer.FunctionTransformer",
        ] == names_in(data, "here")


def sings(canary: Path) -> dict[str, object]:
    """Things whose pickle makes the file when joblib loads it."""
    touch = f"touch {canary}"
    write = f"open({str(canary)!r}, 'w').close()"
    system = Call(os.system, touch)
    return {
        "os.system": system,
        "subprocess": Call(subprocess.call, ["touch", str(canary)]),
        "eval": Call(builtins.eval, write),
        "exec": Call(builtins.exec, write),
        "path": Call(Path.touch, canary),
        "in a list": [1, {"a": (system,)}],
        "in an array": np.array([system, None], dtype=object),
        "in an estimator": make_pipeline(StandardScaler(), FunctionTransformer(kw_args={"a": system})),
        "in an allowed call": Call(functools.partial, Call(functools.partial, dict), system),
        "in a scalar": Call(np.float64, system),
        "memmap": Call(np.memmap, str(canary), "u1", "w+", 0, (1,)),
        "numpy.load": Call(np.savetxt, str(canary), [1.0]),
        "joblib.load": Call(joblib.dump, 1, str(canary)),
    }


class Made:
    """Pickles as an empty object of a class, which is then given a state."""

    def __init__(self, kind: type, state: Any) -> None:
        self.made = kind, state

    # A pickler asks for it.
    __class__ = property(lambda self: self.made[0])  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        kind, state = self.made
        return copyreg.__newobj__, (kind,), state  # type: ignore[attr-defined]


class Filled:
    """Pickles as an empty object of a class, which is then given items."""

    def __init__(self, kind: type, items: list[Any] | None = None, pairs: dict[Any, Any] | None = None) -> None:
        self.made = kind, items, pairs

    __class__ = property(lambda self: self.made[0])  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        kind, items, pairs = self.made
        return copyreg.__newobj__, (kind,), None, iter(items or ()), iter((pairs or {}).items())  # type: ignore[attr-defined]


def bound(function: Any, *arguments: Any) -> Build:
    """A `functools.partial` of anything."""
    return Build(functools.partial, (np.mean,), (function, arguments, {}, None))


def writes(canary: Path, made: Any) -> dict[str, object]:
    """Pickles of allowed classes that write the file by the method of an array; `made` makes a class's object."""
    array = np.frombuffer(b"print('sang')", dtype=np.uint8).copy()
    tags = bound(Tags, None, Call(TargetTags, False))
    frozen = made(
        FrozenEstimator, {"estimator": array, "__sklearn_tags__": tags, "_sklearn_version": sklearn.__version__}
    )
    state = {"_sign": 1, "_kwargs": {}, "_response_method": "tofile", "_metadata_request": None}
    scorer = made(_Scorer, {"_score_func": np.mean, **state})
    return {
        "function": Call(_cached_call, None, frozen, "tofile", str(canary)),
        "generator": Call(_generator, "MT19937", bound(scorer, frozen, str(canary))),
    }


class TestForged:
    """Pickles that name what pipelines need, and make something else of it."""

    @pytest.mark.parametrize(
        ("how", "named"),
        [
            ("function", r"names sklearn\.metrics\._scorer\._cached_call,"),
            ("generator", r"calls sklearn\.utils\._tags\.TargetTags,"),
        ],
    )
    @pytest.mark.parametrize(
        "made", [Made, lambda kind, state: Build(copyreg._reconstructor, (kind, object, None), state)]
    )
    def test_never_writes(self, tmp_path: Path, how: str, named: str, made: Any) -> None:
        """It writes the file when joblib loads it; here it is refused by name, and has not."""
        canary = tmp_path / "sang"
        data = dumped(writes(canary, made)[how])
        with contextlib.suppress(Exception):
            joblib.load(io.BytesIO(data))
        assert b"print('sang')" == canary.read_bytes()
        canary.unlink()

        with pytest.raises(BundleUntrusted, match=named):
            load(data)
        assert not canary.exists()

    @pytest.mark.parametrize(
        ("forged", "told"),
        [
            (Made(FrozenEstimator, {"estimator": np.zeros(3)}), "FrozenEstimator what is no estimator"),
            (Made(FrozenEstimator, {"estimator": GaussianNB(), "__sklearn_tags__": 1}), "another __sklearn_tags__"),
            (Made(StandardScaler, {"__setstate__": np.mean}), "another __setstate__"),
            (Made(StandardScaler, {"transform": np.mean}), "another transform"),
            (Made(StandardScaler, {"_sklearn_version": GaussianNB()}), "a version that is no text"),
            (Made(StandardScaler, {1: 2}), "another 1"),
            (Made(Tags, (None, {"estimator_type": "a"})), "what is no state"),
            (bound(Made(_Scorer, {}), 1), "what is no function"),
            (bound(GaussianNB, 1), "what is no function"),
            (Build(functools.partial, (np.mean,), (np.mean, (), {}, {"mean": 1})), "what is no function"),
            (Call(functools.partial, dict), r"gives functools\.partial"),
            (Call(_generator, "MT19937", np.mean), r"gives numpy\.random\._pickle\.__generator_ctor"),
            (Call(_generator, "MT19937"), r"gives numpy\.random\._pickle\.__generator_ctor"),
            (Call(_bit_generator, GaussianNB), r"gives numpy\.random\._pickle\.__bit_generator_ctor"),
            (Call(copyreg._reconstructor, GaussianNB, object, None), r"gives copyreg\._reconstructor"),
            (Call(collections.Counter, GaussianNB()), r"gives collections\.Counter"),
            (Made(GaussianNB, ({"__setstate__": np.mean}, None)), "a name of Python's own"),
            (
                Call(np._core.multiarray._reconstruct, GaussianNB, (0,), b"b"),
                r"gives numpy\._core\.multiarray\._reconst",
            ),
            (Filled(GaussianNB, [1]), "fills what is no container"),
            (Filled(GaussianNB, pairs={"a": 1}), "fills what is no container"),
            (Filled(Bunch, pairs={"__array__": np.mean}), "gives Bunch a name of Python's own"),
        ],
    )
    def test_odd(self, forged: object, told: str) -> None:
        """A call with an object, a state that hides a method, and the filling of no container are refused as corrupt."""
        with pytest.raises(BundleCorrupt, match=rf"^here: pipeline\.joblib is not what a training writes.*{told}"):
            load(dumped(forged))

    @pytest.mark.parametrize(
        "called",
        [
            Call(np.mean, [1.0]),
            Call(GaussianNB),
            Call(f_classif, X, Y),
            np.array([Call(GaussianNB)], dtype=object),
            Call(Tags, None, None),
        ],
    )
    def test_held_is_not_called(self, called: object) -> None:
        """What a pipeline may hold, its pickle may not call."""
        with pytest.raises(BundleUntrusted, match=r"its pipeline calls [\w.]+, which is not allowed"):
            load(dumped(called))


class TestPlanted:
    """Pickles that reach out."""

    @pytest.mark.parametrize("how", list(sings(Path())))
    def test_never_runs(self, tmp_path: Path, how: str) -> None:
        """It would run in joblib; here it is refused by the name it reaches for, and has not run."""
        canary = tmp_path / "sang"
        data = dumped(sings(canary)[how])
        joblib.load(io.BytesIO(data))
        assert canary.exists()
        canary.unlink()

        with pytest.raises(
            BundleUntrusted, match=r"^here: its pipeline names .*which is not allowed.*ALLOWED_MODULES="
        ):
            load(data)
        assert not canary.exists()

    @pytest.mark.parametrize("made", [functools.partial(os.system), operator.methodcaller("__len__")])
    def test_calls_what_it_made(self, tmp_path: Path, made: Any) -> None:
        """A pickle that calls an object which it has made, and no name, is refused: no pickler writes that."""
        with pytest.raises(BundleCorrupt, match="it calls what it made itself"):
            load(dumped(Call(made, f"touch {tmp_path / 'sang'}")))
        assert not (tmp_path / "sang").exists()

    @pytest.mark.parametrize(
        "name",
        [
            "os\nsystem",
            "posix\nsystem",
            "nt\nsystem",
            "builtins\n__import__",
            "builtins\nopen",
            "builtins\ngetattr",
            "importlib\nimport_module",
            "pickle\nloads",
            "joblib\nload",
            "joblib.numpy_pickle\nload",
            "numpy\nload",
            "numpy\nmemmap",
            "numpy\nfrompyfunc",
            "numpy.testing._private.utils\nrunstring",
            "numpy.f2py.diagnose\nrun_command",
            "numpy.ctypeslib._ctypeslib\nload_library",
            "sklearn.datasets\nload_files",
            "sklearn.utils._testing\nTempMemmap",
            "sklearn.base\nwarnings",
            "scipy.stats._distn_infrastructure\nrv_continuous",
            "scipy.io\nnetcdf_file",
            "functools\nreduce",
            "operator\nattrgetter",
            "types\nFunctionType",
            "batchscore.cli.app\nmain",
            "vanished_library\nBooster",
        ],
    )
    def test_names(self, name: str) -> None:
        """These are refused by name, whether they are installed or not."""
        with pytest.raises(BundleUntrusted, match=name.replace("\n", ".").replace(".", r"\.")):
            load(b"\x80\x04c" + name.encode() + b"\n.")

    @pytest.mark.parametrize(
        ("module", "name"),
        [
            ("sklearn.utils.validation", "warnings.sys.modules"),
            ("sklearn.base", "BaseEstimator.__init__.__globals__"),
            ("numpy", "testing.suppress_warnings"),
            ("numpy", "ndarray.tofile"),
        ],
    )
    def test_dotted(self, module: str, name: str) -> None:
        """A path through a module or to a method is no name of a class."""
        data = (
            b"\x80\x04" + b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93."
        )

        with pytest.raises(BundleUntrusted, match="which is not allowed"):
            load(data)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x80\x04",
            b"\x80\x04]",
            b"not a pickle",
            b"\x80\x04K\x01K\x02\x85R.",
            b"\x80\x04cbuiltins\nrange\n]K\x01aR.",
            b"\x80\x04csklearn.base\nBaseEstimator\n}K\x01K\x02sb.",
            b"\x80\x04(isklearn.base\nBaseEstimator\n.",
            b"\x80\x04Psomething\n.",
            dumped(np.arange(1000.0), 0)[:-100],
        ],
    )
    def test_no_pickle(self, data: bytes) -> None:
        """What is no pickle, is cut short, calls a number or changes a class is refused as corrupt."""
        with pytest.raises(BundleCorrupt, match=r"^here: pipeline\.joblib is not what a training writes"):
            load(data)

    def test_allowed_class_is_not_changed(self) -> None:
        """A pickle cannot give an allowed class another method."""
        data = pickle.dumps(Build(functools.partial, (np.log1p,), None))
        assert load(data)(0) == 0
        before = StandardScaler.fit
        planted = b"\x80\x04csklearn.preprocessing._data\nStandardScaler\nN}\x8c\x03fitcbuiltins\ndict\ns\x86b."

        with pytest.raises(BundleCorrupt, match="it changes what it names"):
            load(planted)
        assert before is StandardScaler.fit

    def test_array_that_calls(self) -> None:
        """The state of an array's place cannot give it another way of reading."""
        place = b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81"
        planted = b"\x80\x04" + place + b"}\x8c\x04readcbuiltins\ndict\nsb."

        with pytest.raises(BundleCorrupt, match="an array in it is not described as one"):
            load(planted)

    def test_operator_allows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What an operator allows may be named, and what it imports from elsewhere may not."""
        library = ModuleType("their_library")
        exec("from os import system\nclass Booster: pass\ndef score(x): return x", library.__dict__)
        monkeypatch.setitem(sys.modules, "their_library", library)
        data = dumped([library.Booster(), library.score])

        with pytest.raises(BundleUntrusted, match=r"names their_library.Booster.*ALLOWED_MODULES=their_library"):
            load(data)
        assert library.score is load(data, "other", "their_library")[1]
        with pytest.raises(BundleUntrusted, match=r"their_library\.system"):
            load(b"\x80\x04ctheir_library\nsystem\n.", "their_library")

    def test_single_name(self) -> None:
        """Of a library that is allowed in part the message names the function alone, and to allow that allows no more."""
        data = dumped(FunctionTransformer(np.vander))

        with pytest.raises(BundleUntrusted, match=r"ALLOWED_MODULES=numpy\.vander\."):
            load(data)
        assert np.vander is load(data, "numpy.vander").func
        with pytest.raises(BundleUntrusted, match=r"names numpy\.load,"):
            load(b"\x80\x04cnumpy\nload\n.", "numpy.vander")

    def test_names_are_there(self) -> None:
        """The functions that this page refuses are there: a name that a release has moved would test nothing."""
        assert all(map(callable, (posix.system, sklearn.datasets.load_files, np.frompyfunc, np.savetxt, np.memmap)))
