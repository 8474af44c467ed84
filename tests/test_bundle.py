"""A bundle comes back as it was packed, and no byte of one that was changed is run."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path
from types import ModuleType
from typing import Any

import joblib
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from sklearn.preprocessing import FunctionTransformer

from batchscore.errors import BundleCorrupt, BundleIncompatible, BundleUntrusted, TrainingError
from batchscore.model.bundle import Bundle, File, Manifest, libraries_changed, libraries_here, pack
from batchscore.model.features import Features, module_name
from batchscore.model.registry import Registry
from batchscore.model.scorer import check_golden, score
from tests.models import CLASSIFIER, REGRESSOR, SQL, bundle, slow, trips

NAMES = [
    "bundle.json",
    "card.html",
    "evaluation.json",
    "features.py",
    "golden_predictions.parquet",
    "golden_rows.parquet",
    "pipeline.joblib",
    "reference.json",
    "rows.sql",
    "tested.json",
]


SINGER = """
class Singer:
    def __init__(self, path):
        self.path = path

    def __setstate__(self, state):
        from pathlib import Path
        Path(state["path"]).write_text("sang")
"""


class Canary:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "sang")


@cache
def trained() -> Bundle:
    """A logistic regression behind its scaler."""
    return bundle()


@cache
def packed() -> dict[str, bytes]:
    """Its files as version 3."""
    return pack(trained(), 3)


@pytest.fixture(name="made")
def _made() -> Bundle:
    return trained()


@pytest.fixture(name="files")
def _files() -> dict[str, bytes]:
    return packed()


@pytest.fixture
def canaries(tmp_path: Path) -> list[Path]:
    """What appears when the features, or the pipeline, of `trapped` are run."""
    return [tmp_path / "features_ran", tmp_path / "pipeline_ran"]


@pytest.fixture
def trapped(files: dict[str, bytes], canaries: list[Path]) -> dict[str, bytes]:
    """Files with sound digests, whose features and pipeline each leave a trace when they are run."""
    source = f"from pathlib import Path\nPath({str(canaries[0])!r}).write_text('sang')\n" + SINGER + CLASSIFIER
    # A class of the features module is what a pipeline may hold, and its state is set as its author wrote.
    own = ModuleType(module_name(source))
    exec(SINGER, own.__dict__)
    sys.modules[own.__name__] = own
    try:
        pipeline = pickled(own.Singer(str(canaries[1])))
    finally:
        del sys.modules[own.__name__]
    return resealed(files | {"features.py": source.encode(), "pipeline.joblib": pipeline})


def pickled(thing: object) -> bytes:
    """The bytes of a pipeline file."""
    buffer = io.BytesIO()
    joblib.dump(thing, buffer)
    return buffer.getvalue()


def manifest_of(files: dict[str, bytes]) -> dict[str, Any]:
    """The content of the manifest."""
    return json.loads(files["bundle.json"])


def resealed(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    """The files with a manifest whose digests are theirs: what somebody can write who may write to the registry."""
    described = {
        name: File(sha256=_sha256(data), size=len(data)) for name, data in files.items() if name != "bundle.json"
    }
    manifest = Manifest.model_validate(manifest_of(files)).model_copy(update={"files": described, **changes}).sealed()
    return files | {"bundle.json": manifest.model_dump_json().encode()}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def flipped(data: bytes) -> bytes:
    """The bytes with one bit of the middle one changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


class TestRoundTrip:
    """`pack` and `Bundle.load`."""

    def test_comes_back(self, made: Bundle, files: dict[str, bytes]) -> None:
        """Everything in it comes back, and it scores what it scored, to the bit."""
        loaded = Bundle.load(files, "here")
        rows = trips(30, seed=9)

        assert made.schema == loaded.schema
        assert made.query == loaded.query == SQL
        assert made.predictor.features.source == loaded.predictor.features.source
        assert (made.predictor.task, made.predictor.classes) == (loaded.predictor.task, loaded.predictor.classes)
        assert list(made.predictor.output_types.items()) == list(loaded.predictor.output_types.items())
        assert made.input_reference == loaded.input_reference
        assert made.output_reference == loaded.output_reference
        assert_frame_equal(made.golden_rows, loaded.golden_rows)
        assert_frame_equal(made.golden_predictions, loaded.golden_predictions)
        assert_frame_equal(score(made, rows, ["day"]).predictions, score(loaded, rows, ["day"]).predictions)
        check_golden(loaded)

    def test_says_who_it_is(self, made: Bundle, files: dict[str, bytes]) -> None:
        """The version is the one it was packed as; everything else of the manifest stands as training wrote it."""
        loaded = Bundle.load(files, "here")
        changed = {"version": 3, "files": loaded.manifest.files, "digest": loaded.digest}

        assert made.manifest.model_copy(update=changed) == loaded.manifest
        assert ("trips", 3, ("id",)) == (loaded.name, loaded.version, loaded.key)
        assert "trips version 3" == str(loaded)
        assert NAMES == sorted(files) == sorted(["bundle.json", *loaded.manifest.files])

    def test_repr_has_no_rows(self, made: Bundle) -> None:
        """A traceback that shows a bundle shows none of the rows in it."""
        assert "Bundle(trips version 0)" == repr(made)

    @pytest.mark.parametrize("values", [(0, 1), (False, True), ("no", "yes"), ("0", "1")])
    def test_classes_keep_their_type(self, values: tuple[Any, Any]) -> None:
        """Classes come back with their type: 1 is not True, and neither is the text 1."""
        loaded = Bundle.load(
            pack(bundle(target=pl.Series("slow", [values[is_slow] for is_slow in slow(trips(160))])), 1), "here"
        )

        assert [(type(value), value) for value in values] == [(type(c), c) for c in loaded.predictor.classes]

    def test_text_of_any_kind(self, made: Bundle) -> None:
        """Features and SQL come back to the character, line ends and accents too."""
        source = CLASSIFIER + "# é\r\n\n"
        odd = replace(made, query="SELECT 'é'\r\n\t-- 𝄞\n")
        odd = replace(odd, predictor=replace(odd.predictor, features=Features.of(source, "f.py")))
        loaded = Bundle.load(pack(odd, 1), "here")

        assert (odd.query, source) == (loaded.query, loaded.predictor.features.source)

    def test_unwritable_pipeline(self, made: Bundle) -> None:
        """A pipeline with a lambda in it is refused when it is packed, with what to write instead."""
        pipeline = FunctionTransformer(lambda frame: frame)

        with pytest.raises(TrainingError, match=r"cannot be written: .*lambda.* at the top of the features file"):
            pack(replace(made, predictor=replace(made.predictor, pipeline=pipeline)), 1)


class TestDigest:
    """The digest of a bundle."""

    def test_same_content(self, made: Bundle, files: dict[str, bytes]) -> None:
        """Packing the same bundle as the same version gives the same bytes."""
        assert files == pack(made, 3)

    def test_order(self, files: dict[str, bytes]) -> None:
        """The order in which files are listed, on disk or in the manifest, does not matter."""
        manifest = manifest_of(files)
        turned = dict(reversed(manifest.items())) | {"files": dict(reversed(manifest["files"].items()))}
        shuffled = dict(reversed(files.items())) | {"bundle.json": json.dumps(turned).encode()}

        assert shuffled["bundle.json"] != files["bundle.json"]
        assert manifest["digest"] == Bundle.load(shuffled, "here").digest

    def test_any_content(self, made: Bundle) -> None:
        """Versions, queries, features and pipelines that differ all have digests that differ."""
        other = bundle(CLASSIFIER.replace("log1p", "sqrt"))
        variants = [
            pack(made, 1),
            pack(made, 2),
            pack(replace(made, query=SQL + " "), 1),
            pack(replace(made, query=""), 1),
            pack(replace(made, predictor=replace(made.predictor, features=other.predictor.features)), 1),
            pack(replace(made, predictor=replace(made.predictor, pipeline=other.predictor.pipeline)), 1),
            pack(replace(made, golden_predictions=made.golden_predictions.reverse()), 1),
        ]
        digests = [manifest_of(files)["digest"] for files in variants]

        assert len(set(digests)) == len(variants)

    def test_follows_the_files(self, files: dict[str, bytes]) -> None:
        """The manifest's SHA-256 and sizes are those of the files, as any other tool computes them."""
        listed = manifest_of(files)["files"]

        assert {n: (_sha256(d), len(d)) for n, d in files.items() if n != "bundle.json"} == {
            name: (file["sha256"], file["size"]) for name, file in listed.items()
        }


def removed(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    """The files without that one."""
    return {other: data for other, data in files.items() if other != name}


TAMPERED: dict[str, Callable[[dict[str, bytes], str], dict[str, bytes]]] = {
    "flipped": lambda files, name: files | {name: flipped(files[name])},
    "truncated": lambda files, name: files | {name: files[name][:-1]},
    "lengthened": lambda files, name: files | {name: files[name] + b"\0"},
    "emptied": lambda files, name: files | {name: b""},
    "removed": removed,
}


class TestTampering:
    """Files that are not those that were written."""

    def test_traps_work(self, trapped: dict[str, bytes], canaries: list[Path]) -> None:
        """The traps of the tests below do go off where all digests agree."""
        Bundle.load(trapped, "here")

        assert [True, True] == [canary.exists() for canary in canaries]

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("how", list(TAMPERED))
    def test_one_file(self, trapped: dict[str, bytes], canaries: list[Path], name: str, how: str) -> None:
        """A file changed or gone is refused by its name, and nothing of the bundle has run."""
        with pytest.raises(BundleCorrupt, match=rf"^here.*{name}.*restore the registry from its backup, or retrain"):
            Bundle.load(TAMPERED[how](trapped, name), "here")

        assert not any(canary.exists() for canary in canaries)

    def test_pipeline_that_reaches_out(self, trapped: dict[str, bytes], canaries: list[Path], tmp_path: Path) -> None:
        """A pipeline that calls what none needs is refused though all digests agree, and not even the features run."""
        planted = resealed(trapped | {"pipeline.joblib": pickled(Canary(tmp_path / "ran"))})

        with pytest.raises(BundleUntrusted, match=r"^here: its pipeline names pathlib\.[\w.]+, which is not allowed"):
            Bundle.load(planted, "here")
        assert not any(canary.exists() for canary in (*canaries, tmp_path / "ran"))

    def test_added_file(self, trapped: dict[str, bytes], canaries: list[Path]) -> None:
        """A file that the manifest does not list is refused by its name, and nothing has run."""
        with pytest.raises(BundleCorrupt, match=r"added or are gone: sitecustomize\.py"):
            Bundle.load(trapped | {"sitecustomize.py": b""}, "here")

        assert not any(canary.exists() for canary in canaries)

    def test_size(self, files: dict[str, bytes]) -> None:
        """A size that is not the file's is noticed like its digest."""
        listed = Manifest.model_validate(manifest_of(files)).files
        wrong = listed | {"rows.sql": listed["rows.sql"].model_copy(update={"size": len(files["rows.sql"]) + 1})}
        content = Manifest.model_validate(manifest_of(files)).model_copy(update={"files": wrong}).sealed()

        with pytest.raises(BundleCorrupt, match=r"rows\.sql was changed"):
            Bundle.load(files | {"bundle.json": content.model_dump_json().encode()}, "here")

    def test_planted_pickle(self, files: dict[str, bytes], tmp_path: Path) -> None:
        """A pickle put in place of the pipeline, the digests left alone, is refused and does not run."""
        canary = tmp_path / "ran"
        with pytest.raises(BundleCorrupt, match=r"pipeline\.joblib was changed"):
            Bundle.load(files | {"pipeline.joblib": pickled(Canary(canary))}, "here")

        assert not canary.exists()

    @pytest.mark.parametrize(("one", "two"), list(permutations(["golden_rows.parquet", "rows.sql"])))
    def test_swapped_files(self, files: dict[str, bytes], one: str, two: str) -> None:
        """Two files that have changed places are refused, though each is one that was written."""
        with pytest.raises(BundleCorrupt, match="was changed"):
            Bundle.load(files | {one: files[two], two: files[one]}, "here")

    @settings(max_examples=150, deadline=None)
    @given(place=st.integers(0, 10**9), bit=st.integers(0, 7), name=st.sampled_from(NAMES))
    def test_any_bit(self, place: int, bit: int, name: str) -> None:
        """Any one bit is noticed, unless it is one of the manifest's that leaves its meaning as it was."""
        files = packed()
        data = bytearray(files[name])
        data[place % len(data)] ^= 1 << bit
        try:
            manifest = Manifest.verified(files | {name: bytes(data)}, "here")
        except BundleCorrupt:
            return

        assert "bundle.json" == name
        assert Manifest.verified(files, "here") == manifest

    @pytest.mark.parametrize(
        "edit",
        [
            {"version": 4},
            {"threshold": 0.1},
            {"metrics": {"roc_auc": 0.99}},
            {"created_at": "2030-01-01T00:00:00+00:00"},
            {"classes": [True, False]},
            {"libraries": {"scikit-learn": "0.1"}},
            {"digest": "0" * 64},
            {"digest": ""},
        ],
    )
    def test_edited_manifest(self, trapped: dict[str, bytes], canaries: list[Path], edit: dict[str, Any]) -> None:
        """A manifest in which one entry was edited is refused, and nothing has run."""
        edited = json.dumps(manifest_of(trapped) | edit).encode()

        with pytest.raises(BundleCorrupt, match=r"bundle\.json was changed after it was written"):
            Bundle.load(trapped | {"bundle.json": edited}, "here")
        assert not any(canary.exists() for canary in canaries)

    @pytest.mark.parametrize(
        "edit", [{"format": 1}, {"format": 0}, {"format": None}, {"signature": "x"}, {"files": []}, {"task": "magic"}]
    )
    def test_other_format(self, trapped: dict[str, bytes], canaries: list[Path], edit: dict[str, Any]) -> None:
        """A manifest of another format, or with entries that this one has not, is refused, and nothing has run."""
        edited = json.dumps(manifest_of(trapped) | edit).encode()

        with pytest.raises(BundleCorrupt, match=r"bundle\.json is not a manifest of format 3"):
            Bundle.load(trapped | {"bundle.json": edited}, "here")
        assert not any(canary.exists() for canary in canaries)

    @pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe", b'{"format": 1'])
    def test_no_manifest(self, files: dict[str, bytes], content: bytes) -> None:
        """What is no manifest at all is refused."""
        with pytest.raises(BundleCorrupt, match=r"bundle\.json is not a manifest"):
            Bundle.load(files | {"bundle.json": content}, "here")

    def test_loads_what_was_verified(self, made: Bundle, tmp_path: Path) -> None:
        """A bundle is loaded from the bytes that were verified: what happens on disk meanwhile does not reach it."""
        registry = Registry.at(tmp_path)
        registry.register(made)
        read = registry.read("trips", 1)
        canary = tmp_path / "ran"
        for path in (tmp_path / "trips" / "1").iterdir():
            path.write_bytes(pickled(Canary(canary)))
        loaded = Bundle.load(read, "here")

        check_golden(loaded)
        assert not canary.exists()
        with pytest.raises(BundleCorrupt):
            registry.load("trips", 1)
        assert not canary.exists()


class TestLibraries:
    """Bundles that were made with what is not here."""

    @pytest.mark.parametrize("version", ["1.8.2", "2.9.1", "0.24", "1.90.1", "unknown"])
    def test_other_scikit_learn(self, trapped: dict[str, bytes], canaries: list[Path], version: str) -> None:
        """Another minor version of scikit-learn is refused, with both, before anything has run."""
        libraries = manifest_of(trapped)["libraries"] | {"scikit-learn": version}

        with pytest.raises(BundleIncompatible) as caught:
            Bundle.load(resealed(trapped, libraries=libraries), "here")
        assert f"scikit-learn {version}, and {libraries_here()['scikit-learn']} is installed" in str(caught.value)
        assert not any(canary.exists() for canary in canaries)

    def test_no_scikit_learn_named(self, trapped: dict[str, bytes], canaries: list[Path]) -> None:
        """A bundle that does not say which scikit-learn it was made with is refused too."""
        with pytest.raises(BundleIncompatible, match="scikit-learn unknown"):
            Bundle.load(resealed(trapped, libraries={}), "here")

        assert not any(canary.exists() for canary in canaries)

    def test_other_patch(self, files: dict[str, bytes]) -> None:
        """Another patch release of it, or another numpy, loads: the golden rows are what decides."""
        minor = ".".join(libraries_here()["scikit-learn"].split(".")[:2])
        libraries = manifest_of(files)["libraries"] | {"scikit-learn": f"{minor}.99", "numpy": "1.0"}

        check_golden(Bundle.load(resealed(files, libraries=libraries), "here"))

    def test_changed(self, files: dict[str, bytes]) -> None:
        """Libraries of another version than here are told, then and here; of Python only its feature version counts."""
        here = libraries_here()
        manifest = Manifest.model_validate(manifest_of(files))
        major, minor, patch = here["python"].split(".")
        other = here | {"polars": "1.0.0", "numpy": "1.0", "python": f"{major}.{minor}.{patch}9"}
        del other["scipy"]

        assert {} == libraries_changed(manifest)
        assert {
            "numpy": ("1.0", here["numpy"]),
            "polars": ("1.0.0", here["polars"]),
            "scipy": ("unknown", here["scipy"]),
        } == libraries_changed(manifest.model_copy(update={"libraries": other}))
        assert {"python": ("3.1.0", here["python"])} == libraries_changed(
            manifest.model_copy(update={"libraries": here | {"python": "3.1.0"}})
        )

    @pytest.mark.parametrize("gone", ["module", "class"])
    def test_pipeline_needs_more(self, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
        """A pipeline made of a class that is not installed here is incompatible, and the message names it."""
        library = ModuleType("vanished_library")
        exec("class Booster: pass", library.__dict__)
        monkeypatch.setitem(sys.modules, "vanished_library", library)
        changed = resealed(files | {"pipeline.joblib": pickled(library.Booster())})
        if gone == "module":
            monkeypatch.delitem(sys.modules, "vanished_library")
        else:
            del library.Booster

        with pytest.raises(BundleIncompatible, match=r"needs what is not installed here: .*vanished_library"):
            Bundle.load(changed, "here", ["vanished_library"])

    def test_features_need_more(self, files: dict[str, bytes]) -> None:
        """Features that import what is not installed here are incompatible as well: the job's file is not at fault."""
        source = f"import vanished_library\n{REGRESSOR}".encode()

        with pytest.raises(BundleIncompatible, match=r"No module named 'vanished_library'.*Install what it needs"):
            Bundle.load(resealed(files | {"features.py": source}), "here")
