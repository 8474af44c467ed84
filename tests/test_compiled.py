"""Compiled trees give what the trees give, are loaded under the rules of the pipeline, and are used where they agree."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import structlog
import toy
from lightgbm import LGBMClassifier, LGBMRegressor
from lightgbm import early_stopping as lightgbm_stops
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    AdaBoostClassifier,
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
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from toy import Project
from xgboost import XGBClassifier, XGBRegressor

from batchscore.errors import BundleCorrupt, BundleUntrusted
from batchscore.model.built import architecture, file_of
from batchscore.model.bundle import Bundle, File, Manifest, pack
from batchscore.model.compiled import TOLERANCE, build, compiled, fast, put_to_use
from batchscore.model.compiling import compilers
from batchscore.model.ensemble import LEAF, NotCompiled, family_of, with_estimator
from batchscore.model.predictor import Predictor
from batchscore.model.registry import Registry
from batchscore.model.strange import strange
from batchscore.model.trust import Trust, write_keys
from tests.models import CLASSIFIER, bundle, trips

BOOSTED = CLASSIFIER.replace(
    "from sklearn.linear_model import LogisticRegression",
    "from sklearn.ensemble import HistGradientBoostingClassifier as LogisticRegression",
)
CANARY = """
#include <stdio.h>
__attribute__((constructor)) static void sing(void) {{ FILE *f = fopen("{path}", "w"); fclose(f); }}
"""


def rows_of(n: int, seed: int = 0, missing: float = 0.1) -> np.ndarray[Any, Any]:
    """Two columns of codes and four of numbers, many of them alike, of which some are missing."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, [7, 40], (n, 2)).astype(float)
    numbers = np.column_stack([rng.normal(size=(n, 2)), rng.integers(-5, 5, n), np.round(rng.lognormal(size=n), 1)])
    rows = np.hstack([codes, numbers])
    rows[rng.random(rows.shape) < missing] = np.nan
    return rows


def truth_of(rows: np.ndarray[Any, Any], classes: int = 0) -> np.ndarray[Any, Any]:
    """What the columns tell much of: a number, or so many classes of it, the first the rarest."""
    known = np.nan_to_num(rows, nan=1.5)
    number = known[:, 2] + (known[:, 1] % 3 == 1) * 2 + known[:, 0] % 2 - known[:, 4] / 5 + np.sin(known[:, 5])
    number = number + np.random.default_rng(7).normal(size=len(rows)) / 2
    return np.digitize(number, np.quantile(number, (np.arange(1, classes) / classes) ** 1.5)) if classes else number


Made = tuple[Any, bool]
HIST: dict[str, Any] = {"random_state": 0, "categorical_features": [0, 1]}
LIGHT: dict[str, Any] = {"verbose": -1, "random_state": 0, "n_jobs": 1, "n_estimators": 20}
EXTREME: dict[str, Any] = {"random_state": 0, "n_jobs": 1, "n_estimators": 20}
PLAIN: dict[str, Any] = {"random_state": 0, "n_estimators": 20}

# An estimator, how many classes it learns (0: a number), and what it is fitted with.
CASES: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "hist, binary": (HistGradientBoostingClassifier(**HIST), 2, {}),
    "hist, binary, two leaves": (HistGradientBoostingClassifier(max_leaf_nodes=2, **HIST), 2, {}),
    "hist, binary, no categories": (HistGradientBoostingClassifier(random_state=0), 2, {}),
    "hist, binary, large trees": (
        HistGradientBoostingClassifier(max_leaf_nodes=None, min_samples_leaf=5, **HIST),
        2,
        {},
    ),
    "hist, binary, many leaves": (
        HistGradientBoostingClassifier(max_leaf_nodes=256, min_samples_leaf=5, **HIST),
        2,
        {},
    ),
    "hist, multiclass": (HistGradientBoostingClassifier(max_iter=30, **HIST), 4, {}),
    "hist, multiclass, large trees": (
        HistGradientBoostingClassifier(max_iter=9, max_leaf_nodes=90, min_samples_leaf=5, **HIST),
        3,
        {},
    ),
    "hist, regression": (HistGradientBoostingRegressor(**HIST), 0, {}),
    "hist, regression of a logarithm": (HistGradientBoostingRegressor(loss="poisson", **HIST), 2, {}),
    "boosting, binary": (GradientBoostingClassifier(**PLAIN), 2, {}),
    "boosting, multiclass": (GradientBoostingClassifier(**PLAIN), 3, {}),
    "boosting, regression": (GradientBoostingRegressor(max_depth=8, **PLAIN), 0, {}),
    "forest, binary": (RandomForestClassifier(**PLAIN), 2, {}),
    "forest, multiclass": (RandomForestClassifier(max_depth=5, **PLAIN), 4, {}),
    "forest, multiclass, large trees": (RandomForestClassifier(**PLAIN), 4, {}),
    "forest, regression": (RandomForestRegressor(**PLAIN), 0, {}),
    "extra trees, binary": (ExtraTreesClassifier(**PLAIN), 2, {}),
    "extra trees, regression": (ExtraTreesRegressor(max_depth=4, **PLAIN), 0, {}),
    "isolation forest": (IsolationForest(random_state=0), -1, {}),
    "isolation forest, some features": (IsolationForest(max_features=0.5, random_state=0), -1, {}),
    "lightgbm, binary": (LGBMClassifier(**LIGHT), 2, {"categorical_feature": [0, 1]}),
    "lightgbm, binary, no categories": (LGBMClassifier(**LIGHT), 2, {}),
    "lightgbm, binary, large trees": (
        LGBMClassifier(num_leaves=200, min_child_samples=5, **LIGHT),
        2,
        {"categorical_feature": [0, 1]},
    ),
    "lightgbm, multiclass": (LGBMClassifier(**LIGHT), 4, {"categorical_feature": [0, 1]}),
    "lightgbm, regression": (LGBMRegressor(**LIGHT), 0, {"categorical_feature": [0, 1]}),
    "lightgbm, least deviation": (LGBMRegressor(objective="regression_l1", **LIGHT), 0, {}),
    "xgboost, binary": (XGBClassifier(**EXTREME), 2, {}),
    "xgboost, binary, large trees": (XGBClassifier(max_depth=10, min_child_weight=0, **EXTREME), 2, {}),
    "xgboost, binary, categories": (
        XGBClassifier(feature_types=["c", "c", "q", "q", "q", "q"], max_cat_to_onehot=4, **EXTREME),
        2,
        {},
    ),
    "xgboost, multiclass": (XGBClassifier(**EXTREME), 4, {}),
    "xgboost, regression": (XGBRegressor(**EXTREME), 0, {}),
}


@cache
def fitted(case: str) -> Any:
    """The estimator of a case."""
    estimator, classes, how = CASES[case]
    rows = rows_of(4_000)
    if case.startswith("boosting"):
        rows = np.nan_to_num(rows, nan=-9)
    return estimator.fit(rows) if classes < 0 else estimator.fit(rows, truth_of(rows, classes), **how)


@cache
def library(case: str) -> bytes:
    """Its trees as a library for this machine."""
    return build(fitted(case))[0][architecture()]


def quick(case: str) -> Any:
    """The estimator with its trees summed by the library."""
    return fast(predictor_of(fitted(case)), library(case)).fast


def predictor_of(estimator: Any) -> Predictor:
    """A predictor around an estimator, for what looks at its pipeline alone."""
    return Predictor(None, estimator, "binary", (False, True), {})  # type: ignore[arg-type]


def asked(estimator: Any) -> Callable[[Any], Any]:
    """The method that batchscore asks."""
    for name in ("predict_proba", "decision_function", "predict"):
        if hasattr(estimator, name):
            return getattr(estimator, name)  # type: ignore[no-any-return]
    raise AssertionError(estimator)


def on_the_limits(estimator: Any, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The rows with limits of the trees in them, and the numbers just below and above these."""
    rng, rows = np.random.default_rng(3), rows.copy()
    ensemble = family_of(estimator).ensemble()
    for feature in range(ensemble.features):
        limits = np.concatenate(
            [
                tree.limit[(tree.feature == feature) & ~np.isin(np.arange(len(tree.feature)), [*tree.categories])]
                for tree in ensemble.trees
            ]
        ).astype(float)
        limits = limits[np.isfinite(limits)]
        if len(limits):
            drawn = rng.choice(limits, len(rows))
            near = [drawn, np.nextafter(drawn, np.inf), np.nextafter(drawn, -np.inf)]
            near.append(np.nextafter(drawn.astype(np.float32), np.float32(np.inf)).astype(float))
            place = rng.integers(0, 8, len(rows))
            rows[:, feature] = np.choose(np.minimum(place, 4), [*near, rows[:, feature]])
    return rows


@pytest.mark.parametrize("case", CASES)
def test_compiled_trees_give_what_the_trees_give(case: str) -> None:
    """Scores differ by no more than 1e-12 of each and labels by nothing, whatever the rows hold."""
    original, other = fitted(case), quick(case)
    seen = rows_of(3_000, seed=1)
    unseen = np.where(rows_of(3_000, seed=2) > 4, np.round(rows_of(3_000, seed=4) * 9), rows_of(3_000, seed=2))
    wide = seen * np.array([1, 1, 1e6, -1e-6, 100, 1e300])
    nothing = np.full((10, 6), np.nan)
    between = seen - np.array([0.5, 0.5, 0, 0, 0, 0]) * case.startswith("lightgbm")
    for given in (seen, unseen, on_the_limits(original, seen), wide, nothing, between):
        rows = given
        if not case.startswith(("hist", "lightgbm")):
            # They take single precision, and boosting no NaN.
            rows = np.clip(np.nan_to_num(rows, nan=-9) if case.startswith("boosting") else rows, -1e30, 1e30)
        want, got = asked(original)(rows), asked(other)(rows)
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=TOLERANCE, atol=0)
        np.testing.assert_array_equal(other.predict(rows), original.predict(rows))


@pytest.mark.parametrize("case", ["hist, binary", "forest, multiclass, large trees", "xgboost, multiclass"])
def test_how_rows_are_cut_changes_nothing(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row at a time, many in threads, and several calls at once give the same bits."""
    other = quick(case)
    rows = rows_of(40_000, seed=5)
    whole = asked(other)(rows)
    single = np.concatenate([asked(other)(rows[i : i + 1]) for i in range(300)])
    np.testing.assert_array_equal(single, whole[:300])
    monkeypatch.setattr("batchscore.model.compiled._threads", lambda: 4)
    np.testing.assert_array_equal(asked(other)(rows), whole)
    with ThreadPoolExecutor(4) as pool:
        for again in pool.map(lambda _: asked(other)(rows), range(8)):
            np.testing.assert_array_equal(again, whole)


def test_the_original_is_left_as_it_is() -> None:
    """The estimator that is put aside still sums its own trees, and pickles without the library."""
    original, calls = fitted("hist, binary"), []
    family = family_of(original)

    class Counting:
        begin = np.zeros(1)

        def __call__(self, rows: Any, sums: Any) -> None:
            calls.append(len(rows))

    other = family.summed_by(Counting())
    original.predict_proba(rows_of(10))
    assert not calls
    assert "_predict_iterations" not in vars(original)
    other.predict_proba(rows_of(10))
    assert calls == [10]


@pytest.mark.parametrize("make", [LGBMClassifier, XGBClassifier])
def test_rounds_behind_the_best_do_not_count(make: Any) -> None:
    """A booster that stopped early predicts with its rounds up to the best, compiled too."""
    rows = rows_of(3_000)
    truth, later = truth_of(rows, 2), rows_of(1_000, seed=9)
    options = {"n_estimators": 300, "learning_rate": 0.5, "random_state": 0, "n_jobs": 1}
    truth_later = np.random.default_rng(0).integers(0, 2, len(later)) | truth_of(later, 2)
    if make is LGBMClassifier:
        stops = [lightgbm_stops(5, verbose=False)]
        made = make(verbose=-1, **options).fit(rows, truth, eval_X=later, eval_y=truth_later, callbacks=stops)
    else:
        made = make(early_stopping_rounds=5, **options)
        made.fit(rows, truth, eval_set=[(later, truth_later)], verbose=False)
    best = made.best_iteration_ if make is LGBMClassifier else made.best_iteration + 1
    assert best < 250
    assert len(family_of(made).ensemble().trees) == best
    other = fast(predictor_of(made), build(made)[0][architecture()]).fast
    np.testing.assert_allclose(other.predict_proba(later), made.predict_proba(later), rtol=TOLERANCE, atol=0)


def test_trees_are_found_behind_what_wraps_them() -> None:
    """In a pipeline, in a calibration of one, and in both; what stands before them stays."""
    rows = rows_of(2_000)
    truth = truth_of(rows, 2)
    inner = make_pipeline(StandardScaler(), HistGradientBoostingClassifier(random_state=0)).fit(rows, truth)
    calibrated = CalibratedClassifierCV(FrozenEstimator(inner), method="sigmoid").fit(rows, truth)
    for pipeline in (inner, calibrated):
        other = fast(predictor_of(pipeline), build(pipeline)[0][architecture()]).fast
        np.testing.assert_allclose(other.predict_proba(rows), pipeline.predict_proba(rows), rtol=TOLERANCE, atol=0)
        marked = with_estimator(pipeline, family_of(pipeline).summed_by(_refuse))
        with pytest.raises(RuntimeError, match="summed"):
            marked.predict_proba(rows)


def _refuse(rows: Any, sums: Any) -> None:
    raise RuntimeError("summed")


@pytest.mark.parametrize(
    ("estimator", "why"),
    [
        (LogisticRegression(), "LogisticRegression is no ensemble of trees that is known"),
        (AdaBoostClassifier(n_estimators=2), "AdaBoostClassifier is no ensemble of trees that is known"),
        (XGBClassifier(booster="dart", n_estimators=2), "booster='dart' does more than sum trees"),
        (XGBClassifier(missing=-1.0, n_estimators=2), "missing=-1.0 is a number"),
        (XGBRegressor(objective="count:poisson", n_estimators=2), "the objective count:poisson is none of"),
        (LGBMRegressor(objective="poisson", n_estimators=2, verbose=-1), "the objective poisson is none of"),
    ],
)
def test_what_cannot_be_compiled_says_why(estimator: Any, why: str) -> None:
    """An estimator whose answer is more than a sum of known trees is named, and nothing is compiled of it."""
    rows = rows_of(200, missing=0)
    with pytest.raises(NotCompiled, match=why.replace("(", r"\(")):
        build(estimator.fit(rows, truth_of(rows, 2)))


def test_a_forest_of_two_targets_is_not_compiled() -> None:
    """Its answer has another shape than a score for a class."""
    rows = rows_of(200, missing=0)
    two = RandomForestRegressor(n_estimators=2).fit(rows, rows[:, :2])
    with pytest.raises(NotCompiled, match="2 targets at once"):
        build(two)


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No compiler on the PATH and none in CC: it says so; one that fails is named."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert compilers() == {}
    with pytest.raises(NotCompiled, match="there is no C compiler here"):
        build(fitted("hist, binary"))
    failing = tmp_path / "cc"
    failing.write_text("#!/bin/sh\necho 'kernel.c: error: not today' >&2\nexit 1\n")
    failing.chmod(0o755)
    with pytest.raises(NotCompiled, match=r"cc failed: kernel\.c: error: not today"):
        build(fitted("hist, binary"))
    monkeypatch.setenv("CC", "/no/such")
    with pytest.raises(NotCompiled, match="there is no /no/such here, which CC names"):
        build(fitted("hist, binary"))
    monkeypatch.setenv("CC", "/bin/false")
    with pytest.raises(NotCompiled, match="/bin/false failed: exit code 1"):
        build(fitted("hist, binary"))


def test_a_cross_compiler_makes_the_other_architecture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that is called as Debian calls it is found, and what it makes is kept under its architecture."""
    other = "aarch64" if architecture() == "x86_64" else "x86_64"
    cross = tmp_path / f"{other}-linux-gnu-gcc"
    cross.write_text('#!/bin/sh\ncase $* in\n--version) echo "cross 1.0";;\n*) printf made > library.so;;\nesac\n')
    cross.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    libraries, told = build(fitted("hist, binary"))
    assert libraries[other] == b"made"
    assert told[other] == "cross 1.0"
    assert set(libraries) == {"aarch64", "x86_64"}


def test_two_libraries_in_a_process_are_not_taken_for_each_other() -> None:
    """A shadow's trees beside a champion's, loaded one behind the other, each give their own scores."""
    rows = rows_of(500)
    for _ in range(3):
        for case in ("hist, binary", "hist, binary, two leaves", "lightgbm, binary"):
            np.testing.assert_allclose(asked(quick(case))(rows), asked(fitted(case))(rows), rtol=TOLERANCE, atol=0)


def test_nothing_is_written_to_load_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a read-only root it is loaded all the same; where memory cannot be a file, by way of a private one."""
    rows = rows_of(100)
    library("hist, binary")

    def read_only(*_: Any, **__: Any) -> Any:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkdtemp", read_only)
        np.testing.assert_array_equal(asked(quick("hist, binary"))(rows), asked(fitted("hist, binary"))(rows))
        with pytest.raises(NotCompiled, match=r"failed: .*Read-only"):
            build(fitted("hist, binary"))
        patch.setattr("os.memfd_create", read_only)
        with pytest.raises(NotCompiled, match=r"it cannot be loaded: .*Read-only"):
            quick("hist, binary")
    with monkeypatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr("os.memfd_create", read_only)
        patch.setattr(tempfile, "tempdir", folder)
        np.testing.assert_array_equal(asked(quick("hist, binary"))(rows), asked(fitted("hist, binary"))(rows))
        assert not list(Path(folder).iterdir())


def test_a_library_of_another_shape_is_not_called() -> None:
    """One for other features, classes or types is told before it is given a row; so is one that is none of ours."""
    with pytest.raises(NotCompiled, match="an ensemble of another shape"):
        fast(predictor_of(fitted("hist, multiclass")), library("hist, binary"))
    with pytest.raises(NotCompiled, match="an ensemble of another shape"):
        fast(predictor_of(fitted("hist, binary")), library("xgboost, binary"))
    with pytest.raises(NotCompiled, match="cannot be loaded"):
        fast(predictor_of(fitted("hist, binary")), b"\x7fELF and no more")


def test_strange_rows_are_the_same_at_every_call() -> None:
    """They have numbers between and beyond those seen, unseen texts and NULLs, and keep every column's type."""
    seen = pl.DataFrame(
        {"x": [1.0, 2.0, 9.0], "n": [1, 5, 9], "t": ["a", "b", None], "b": [True, False, True]},
        schema_overrides={"n": pl.Int32},
    )
    frames = list(strange(seen, 1_000))
    assert all(frame.schema == seen.schema for frame in frames)
    for one, other in zip(frames, strange(seen, 1_000), strict=True):
        assert one.equals(other)
    drawn, moved, odd = frames
    assert set(drawn["x"]) == {1.0, 2.0, 9.0}
    assert moved["x"].n_unique() > 400
    assert moved["x"].max() > 9.0
    assert moved["n"].n_unique() > 9
    assert odd["t"].n_unique() == 4
    assert all(odd[0::2, name].null_count() == (moved[0::2, name].null_count()) for name in odd.columns)
    assert all(odd[1::2, name].null_count() > 20 for name in odd.columns)


@cache
def trained() -> Bundle:
    """A boosted bundle as `train` makes it, its trees compiled."""
    return bundle(BOOSTED, n=400)


@cache
def other_model() -> Bundle:
    """The same with trees that differ."""
    return bundle(BOOSTED.replace("StandardScaler(), LogisticRegression()", "LogisticRegression(max_iter=7)"), n=400)


@pytest.fixture(name="told")
def _told() -> Iterator[list[Any]]:
    """What is logged behind the two trainings."""
    trained()
    other_model()
    # A command of another test may have left the process quiet.
    structlog.reset_defaults()
    with structlog.testing.capture_logs() as logged:
        yield logged


def test_rows_that_are_no_array_of_numbers_are_the_originals(told: list[Any]) -> None:
    """An estimator that gets a frame of texts and numbers sums its own trees, and no library is said to."""
    source = BOOSTED.replace(
        "make_pipeline(StandardScaler(), LogisticRegression())",
        "make_pipeline(LGBMClassifier(n_estimators=5, verbose=-1, random_state=0, n_jobs=1))",
    ).replace("    from sklearn.pipeline", "    from lightgbm import LGBMClassifier\n    from sklearn.pipeline")
    steps: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.models._quiet", steps.append)
        made = bundle(source, n=400)
    assert steps[-1] == "its trees are not compiled: the estimator is not given its rows as an array of numbers"
    assert made.compiled == {}


def test_training_compiles_and_a_loaded_bundle_uses_it(tmp_path: Path, told: list[Any]) -> None:
    """The library is a file of the bundle that its manifest names; it scores once it agrees with the original."""
    registry = Registry.at(tmp_path)
    version = registry.register(trained())
    found = registry.verified("trips", version)
    assert found.manifest.files[file_of(architecture())].size == len(found.files[file_of(architecture())])
    loaded = registry.load("trips", version)
    assert not loaded.predictor.compiled
    used = put_to_use(loaded, trusted=True)
    assert used.predictor.compiled
    assert told[-1]["event"] == "model.compiled"
    assert told[-1]["agrees_on"] > 4_000
    rows = trips(500, seed=3)
    assert used.predictor.predict(rows).equals(loaded.predictor.predict(rows))
    # What is written of it is the original.
    assert used.files() == loaded.files()


def test_training_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: list[Any]) -> None:
    """The bundle is as it ever was, and has no file of a library."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    steps: list[str] = []
    monkeypatch.setattr("tests.models._quiet", steps.append)
    made = bundle(BOOSTED)
    assert made.compiled == {}
    assert not [name for name in made.files() if name.startswith("compiled")]
    assert (
        steps[-1]
        == "its trees are not compiled: there is no C compiler here: neither cc nor gcc nor clang, and CC is not set"
    )
    assert put_to_use(made, trusted=True) is made
    assert not [line for line in told if line["event"].startswith("model.")]


def test_trees_of_another_model_are_not_used(told: list[Any]) -> None:
    """A library that gives other scores than the original is found out, and the original scores."""
    wrong = replace(trained(), compiled=other_model().compiled)
    used = put_to_use(wrong, trusted=True)
    assert used is wrong
    (line,) = told
    assert (line["event"], line["log_level"]) == ("model.uncompiled", "warning")
    assert "it does not give what the original gives" in line["why"] or "another shape" in line["why"]


def test_one_wrong_leaf_is_found_out(told: list[Any]) -> None:
    """A library that differs in the last digits of its leaves is not used."""
    import re

    name = architecture()
    estimator = family_of(trained().predictor.pipeline).estimator  # type: ignore[attr-defined]
    leaf = next(node["value"] for node in estimator._predictors[0][0].nodes if node["is_leaf"])
    wanted = re.escape(np.float64(leaf).tobytes())
    data = re.sub(
        wanted, np.float64(leaf * (1 + 1e-9)).tobytes().replace(b"\\", b"\\\\"), trained().compiled[name], count=1
    )
    assert data != trained().compiled[name]
    used = put_to_use(replace(trained(), compiled={name: data}), trusted=True)
    assert not used.predictor.compiled
    assert "rows have another score" in told[0]["why"]


def test_on_another_architecture_the_original_scores(told: list[Any]) -> None:
    """It is told at info, with what it is compiled for; and no library is loaded."""
    other = "aarch64" if architecture() == "x86_64" else "x86_64"
    elsewhere = replace(trained(), compiled={other: b"no library"})
    assert put_to_use(elsewhere, trusted=True) is elsewhere
    (line,) = told
    assert (line["event"], line["log_level"]) == ("model.uncompiled", "info")
    assert line["why"] == f"its trees are compiled for {other}; the original scores"


def test_a_library_for_another_machine_under_our_name_is_not_used(told: list[Any]) -> None:
    """The loader refuses it, and the log says why."""
    data = bytearray(trained().compiled[architecture()])
    # e_machine of an ELF file: RISC-V.
    data[18:20] = (243).to_bytes(2, "little")
    used = put_to_use(replace(trained(), compiled={architecture(): bytes(data)}), trusted=True)
    assert not used.predictor.compiled
    assert "it cannot be loaded" in told[0]["why"]


def canary(tmp_path: Path) -> tuple[bytes, Path]:
    """A library that writes a file as soon as it is loaded, and the file."""
    song = tmp_path / "song"
    (tmp_path / "canary.c").write_text(CANARY.format(path=song))
    command = compilers()[architecture()]
    subprocess.run([*command, "-shared", "-fPIC", "-o", tmp_path / "canary.so", tmp_path / "canary.c"], check=True)
    return (tmp_path / "canary.so").read_bytes(), song


def test_the_canary_sings(tmp_path: Path) -> None:
    """A library runs code when it is loaded: what the tests below look for would be there."""
    _, song = canary(tmp_path)
    ctypes.CDLL(str(tmp_path / "canary.so"))
    assert song.exists()


def test_no_changed_library_is_loaded(tmp_path: Path) -> None:
    """One that was put in the place of the bundle's is found by its digest, before anything of it runs."""
    data, song = canary(tmp_path)
    registry = Registry.at(tmp_path / "registry")
    version = registry.register(trained())
    (tmp_path / "registry" / "trips" / str(version) / file_of(architecture())).write_bytes(data)
    with pytest.raises(BundleCorrupt, match="was changed after it was written"):
        registry.load("trips", version)
    assert not song.exists()


def test_no_library_is_loaded_that_no_trusted_key_signed(tmp_path: Path, told: list[Any]) -> None:
    """Where keys are set an unsigned bundle is refused; let in past them, its pipeline scores and no library is loaded."""
    data, song = canary(tmp_path)
    write_keys(tmp_path / "keys")
    keys = (tmp_path / "keys/verify_keys.pem").read_text()
    forged = replace(trained(), compiled={architecture(): data})
    Registry.at(tmp_path / "registry").register(forged)
    with pytest.raises(BundleUntrusted, match="is not signed"):
        Registry.at(tmp_path / "registry", Trust.of(keys)).load("trips", 1)
    let_in = Registry.at(tmp_path / "registry", Trust.of(keys, allow_unsigned=True)).load("trips", 1)
    used = put_to_use(let_in, trusted=False)
    assert not used.predictor.compiled
    assert told[-1]["why"] == "no trusted key has signed it; the original scores"
    assert not song.exists()


def test_a_signature_covers_the_library(tmp_path: Path) -> None:
    """A signed bundle whose library and manifest were both changed is refused, and nothing of it runs."""
    data, song = canary(tmp_path)
    write_keys(tmp_path / "keys")
    keys, key = ((tmp_path / "keys" / name).read_text() for name in ("verify_keys.pem", "signing_key.pem"))
    registry = Registry.at(tmp_path / "registry", Trust.of(keys, key))
    registry.register(trained())
    changed = pack(replace(trained(), compiled={architecture(): data}), 1)
    for name, content in changed.items():
        (tmp_path / "registry/trips/1" / name).write_bytes(content)
    with pytest.raises(BundleUntrusted, match="was changed after key"):
        registry.load("trips", 1)
    assert not song.exists()


def test_a_version_compiled_later_is_another_version(tmp_path: Path) -> None:
    """All its files but the library, the card and the manifest are the same, and the earlier one is as it was."""
    registry = Registry.at(tmp_path)
    plain = replace(trained(), compiled={}, built=None)
    assert registry.register(plain) == 1
    before = registry.read("trips", 1)
    again = registry.register_compiled("trips", 1, compiled(registry.load("trips", 1), trained().golden_rows))
    assert again == 2
    assert registry.read("trips", 1) == before
    files = registry.read("trips", 2)
    same = {name for name in before if files[name] == before[name]}
    assert set(files) - same == {"bundle.json", "card.html", "compiled.json", file_of(architecture())}
    assert put_to_use(registry.load("trips", 2), trusted=True).predictor.compiled
    assert registry.load("trips", 2).digest != registry.load("trips", 1).digest
    with pytest.raises(NotCompiled, match=f"compiled for {architecture()} already"):
        compiled(registry.load("trips", 2), trained().golden_rows)


@pytest.fixture(name="project", scope="module")
def _project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The toy, trained with its trees compiled."""
    root = tmp_path_factory.mktemp("compiled")
    project = Project.at(root, f"duckdb:///{root}/toy.duckdb")
    toy.load(project.url, toy.rows())
    result = project.call("train", "toy")
    assert result.code == 0, result.out
    assert any("its trees are compiled for" in step["doing"] for step in result.named("training.progress"))
    return project


def test_a_backfill_writes_the_same_with_and_without(project: Project, tmp_path: Path) -> None:
    """Labels are the same and scores within 1e-12, whatever the size of a chunk."""
    tables = {}
    for way, compile_, rows in (("with", "true", 1_000), ("in parts", "true", 7), ("without", "false", 50_000)):
        other = toy.unscored(tmp_path / way, f"duckdb:///{tmp_path}/{way}.duckdb", project)
        other.edit("jobs/toy.toml", ('name = "toy"\n\n[output]', f'name = "toy"\ncompile = {compile_}\n\n[output]'))
        other.edit("jobs/toy.toml", ("rejects = 0.05", f"rejects = 0.05\nchunk_rows = {rows}"))
        result = other.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-05")
        assert result.code == 0, result.out
        assert len(result.named("model.compiled")) == (compile_ == "true")
        tables[way] = other.table()
    wanted = tables.pop("without")
    assert len(wanted) > 300
    for table in tables.values():
        assert [row[:3] for row in table] == [row[:3] for row in wanted]
        np.testing.assert_allclose([row[3] for row in table], [row[3] for row in wanted], rtol=TOLERANCE, atol=0)


def test_commands_say_what_is_compiled(project: Project) -> None:
    """`models show`, the card and `check` name the architectures."""
    shown = project.call("models", "show", "toy")
    assert f"{architecture()};" in shown.out
    assert (
        f'"compiled": [\n    "{architecture()}"\n  ]' in project.call("models", "show", "toy", "--format", "json").out
    )
    card = project.call("models", "card", "toy", "--to", "card.html")
    assert card.code == 0
    assert f"The trees are compiled for {architecture()};" in (project.root / "card.html").read_text()
    checked = project.call("check", "toy")
    assert "and give here what the original gives" in " ".join(checked.out.split())
    verified = project.call("models", "verify", "toy")
    assert verified.named("model.compiled")


def test_models_compile_registers_a_version_more(tmp_path: Path) -> None:
    """Of a version without compiled trees; the alias stays until it is promoted, and then a run uses them."""
    project = Project.at(tmp_path, f"duckdb:///{tmp_path}/toy.duckdb")
    toy.load(project.url, toy.rows())
    without = ('name = "toy"\n\n[output]', 'name = "toy"\ncompile = false\n\n[output]')
    project.edit("jobs/toy.toml", without)
    assert project.call("train", "toy").code == 0
    assert "has no compiled trees" in " ".join(project.call("check", "toy").out.split())
    made = project.call("models", "compile", "toy")
    assert made.code == 0, made.out
    (line,) = made.named("bundle.compiled")
    assert (line["version"], line["of"], line["made"]) == (2, 1, [architecture()])
    project.edit("jobs/toy.toml", without[::-1])
    assert not project.call("score", "toy").named("model.compiled")
    assert project.call("models", "promote", "toy", "2").code == 0
    (used,) = project.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-02", "--only", "all").named(
        "model.compiled"
    )
    assert (used["version"], used["architecture"]) == (2, architecture())
    again = project.call("models", "compile", "toy")
    assert again.code == 0
    assert [(line["version"], line["made"]) for line in again.named("bundle.compiled")] == [(2, [])]


def test_models_compile_without_a_compiler_changes_nothing(project: Project, tmp_path: Path) -> None:
    """Exit code 2, with what is missing."""
    result = project.call("models", "compile", "toy", PATH=str(tmp_path))
    assert result.code == 2
    assert "there is no C compiler here" in result.error
    assert Registry.at(project.root / "var/registry").versions("toy") == [1]


def test_a_manifest_names_each_file_of_what_was_compiled() -> None:
    """A reader of an earlier release, which knows no libraries, verifies them all the same."""
    files = pack(trained(), 1)
    manifest = Manifest.verified(files, "trips version 1")
    assert {name for name in manifest.files if name.startswith("compiled")} == {
        "compiled.json",
        file_of(architecture()),
    }
    assert all(isinstance(file, File) for file in manifest.files.values())


def test_a_split_is_a_leaf_or_has_a_feature() -> None:
    """What is read of each library's trees is whole: leaves have a value, and splits two children behind them."""
    for case in ("hist, binary", "lightgbm, binary", "xgboost, binary", "forest, multiclass", "isolation forest"):
        for tree in family_of(fitted(case)).ensemble().trees:
            splits = np.flatnonzero(tree.feature != LEAF)
            children = np.concatenate([tree.left[splits], tree.right[splits]])
            assert sorted(children) == list(range(1, len(tree.feature)))
