"""A bundle: one model version, whole, in files that vouch for one another.

`bundle.json` is the manifest. It names every other file with its SHA-256 and size, and carries a digest over
itself, which is the bundle's digest. Bytes are read once, verified, and only then loaded from memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version as library_version
from pickle import PicklingError
from typing import TYPE_CHECKING, Any, Literal, Self

import joblib
import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from batchscore.errors import BundleCorrupt, BundleIncompatible, TrainingError, UsageError
from batchscore.layout import Layout
from batchscore.model import unpickle
from batchscore.model.built import BUILT, Built, architectures_in, file_of
from batchscore.model.evaluation import Evaluation
from batchscore.model.features import Features, module_name
from batchscore.model.predictor import Label, Predictor
from batchscore.model.tally import Tally
from batchscore.model.trust import SIGNATURE
from batchscore.problem import Problem
from batchscore.profile import Profile
from batchscore.schema import Schema, TypeName

if TYPE_CHECKING:
    from batchscore.model.explain import Explainer

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Bundle",
    "Manifest",
    "Training",
    "libraries_changed",
    "libraries_here",
    "pack",
    "pack_compiled",
]

FORMAT: Literal[3] = 3
MANIFEST = "bundle.json"
_EXPLAINER = "explain.json"
_TESTED = "tested.json"
_SAMPLE = "sample.parquet"
_LIBRARIES = ("scikit-learn", "numpy", "polars", "joblib", "scipy")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Table):
    """One file of a bundle."""

    sha256: str
    size: int


class Training(_Table):
    """What the pipeline learned from: the window in UTC, its rows, and the time of the latest that it learned from."""

    start: str
    end: str
    rows: int
    labelled: int
    fitted: int
    validated: int
    tested: int
    learned_until: str | None


class Manifest(_Table):
    """The contents of `bundle.json`; `digest` is over all the rest."""

    format: Literal[3]
    name: str
    version: int
    created_at: str
    batchscore: str
    job: str
    problem: Problem
    classes: tuple[Label, ...]
    threshold: float | None
    key: tuple[str, ...]
    columns: tuple[dict[str, Any], ...]
    output_types: dict[str, TypeName]
    training: Training
    metrics: dict[str, float]
    libraries: dict[str, str]
    files: dict[str, File]
    digest: str = ""

    def sealed(self) -> Self:
        """The same with its digest."""
        return self.model_copy(update={"digest": self.computed_digest()})

    def computed_digest(self) -> str:
        """The SHA-256 over the manifest's content, in hex."""
        content = self.model_dump(mode="json", exclude={"digest"})
        return _sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())

    @classmethod
    def verified(cls, files: Mapping[str, bytes], where: str) -> Self:
        """The manifest among a bundle's files, once every file is what it says.

        Raises:
            BundleCorrupt: A file is missing, added or changed, or the manifest is not one.
        """
        remedy = "Do not use it: restore the registry from its backup, or retrain."
        try:
            manifest = cls.model_validate_json(files[MANIFEST])
        except KeyError:
            raise BundleCorrupt(f"{where} has no {MANIFEST}. {remedy}") from None
        except ValidationError as error:
            raise BundleCorrupt(f"{where}: {MANIFEST} is not a manifest of format {FORMAT}. {remedy}") from error
        if manifest.digest != manifest.computed_digest():
            raise BundleCorrupt(f"{where}: {MANIFEST} was changed after it was written. {remedy}")
        present = files.keys() - {MANIFEST, SIGNATURE}
        if present != manifest.files.keys():
            odd = sorted(present ^ manifest.files.keys())
            raise BundleCorrupt(f"{where}: files were added or are gone: {', '.join(odd)}. {remedy}")
        for name, file in manifest.files.items():
            if (len(files[name]), _sha256(files[name])) != (file.size, file.sha256):
                raise BundleCorrupt(f"{where}: {name} was changed after it was written. {remedy}")
        return manifest


@dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded bundle, ready to score.

    Attributes:
        manifest: What it says of itself.
        schema: The input columns.
        predictor: The frozen features and the fitted pipeline.
        query: The frozen text of what gave its rows.
        input_reference: Profile of the training rows.
        output_reference: Profile of the predictions on held-out rows.
        golden_rows: Conforming rows, shape `(rows, columns)`.
        golden_predictions: `prediction` and the scores they had at training.
        evaluation: What training found out about it.
        tested: The labelled predictions of its test rows, counted; None for a task without labels.
        sample: Training rows without key, instants and private columns, for a classifier to tell others from; None
            where the job's `[drift] sample` was 0.
        signed_by: The id of the trusted key that signed it; None where no signature was looked at.
        compiled: The predictor's trees as shared libraries, by architecture, none of them loaded; see `compiled`.
        built: What compiled them; None where nothing is.
    """

    manifest: Manifest
    schema: Schema
    predictor: Predictor
    query: str
    input_reference: Profile
    output_reference: Profile
    golden_rows: pl.DataFrame
    golden_predictions: pl.DataFrame
    evaluation: Evaluation
    tested: Tally | None = None
    sample: pl.DataFrame | None = None
    signed_by: str | None = None
    compiled: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    built: Built | None = None

    @classmethod
    def load(cls, files: Mapping[str, bytes], where: str, modules: Collection[str] = ()) -> Self:
        """Verify the files, check the libraries, and only then unpickle from those very bytes.

        Args:
            files: Every file of the bundle; whose they are, `Trust.check` has said.
            where: What they are, for messages.
            modules: Modules and packages that the pipeline may name, beside those that `unpickle` knows.

        Raises:
            BundleCorrupt: The bytes are not those that were written.
            BundleUntrusted: The pipeline names what none may.
            BundleIncompatible: The scikit-learn here is not the one that fitted the pipeline, or something else that
                the features or the pipeline need is not installed.
        """
        manifest = Manifest.verified(files, where)
        _check_libraries(manifest, where)
        with _installed_here(where):
            pipeline = unpickle.checked(
                files["pipeline.joblib"], where, module_name(files["features.py"].decode()), modules
            )
        features = _features(files["features.py"], where)
        with _installed_here(where):
            fitted = pipeline()
        from batchscore.model.encoders import quickened

        references = json.loads(files["reference.json"])
        explainer = _explainer(fitted, files.get(_EXPLAINER))
        return cls(
            manifest=manifest,
            schema=Schema.from_dicts(manifest.columns),
            predictor=Predictor(
                features,
                fitted,
                manifest.problem.task,
                manifest.classes,
                manifest.output_types,
                manifest.threshold,
                explainer,
                fast=None if (quick := quickened(fitted)) is fitted else quick,
            ),
            query=files["rows.sql"].decode(),
            input_reference=_reference(references["input"]),
            output_reference=_reference(references["output"]),
            golden_rows=pl.read_parquet(io.BytesIO(files["golden_rows.parquet"])),
            golden_predictions=pl.read_parquet(io.BytesIO(files["golden_predictions.parquet"])),
            evaluation=Evaluation.model_validate_json(files["evaluation.json"]),
            tested=_tested(manifest, files.get(_TESTED)),
            sample=pl.read_parquet(io.BytesIO(files[_SAMPLE])) if _SAMPLE in files else None,
            compiled={each: files[file_of(each)] for each in architectures_in(files)},
            built=Built.model_validate_json(files[BUILT]) if BUILT in files else None,
        )

    def __str__(self) -> str:
        return f"{self.manifest.name} version {self.manifest.version}"

    def __repr__(self) -> str:
        # Its rows are somebody's data, and belong in no traceback.
        return f"Bundle({self})"

    @property
    def name(self) -> str:
        """The registry name."""
        return self.manifest.name

    @property
    def version(self) -> int:
        """The version, from 1."""
        return self.manifest.version

    @property
    def digest(self) -> str:
        """The SHA-256 over everything, in hex."""
        return self.manifest.digest

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of a row's identity."""
        return self.manifest.key

    def without_values(self, names: Collection[str]) -> Self:
        """The bundle as it scores where these columns are private, whether or not they were at training.

        Its profile of the training rows has nothing of their values, so that no run counts any, and its sample is
        without them. It is not to be written anywhere; its golden rows, which nobody is shown, are whole.
        """
        sample = None if self.sample is None else self.sample.drop(names, strict=False)
        return replace(self, input_reference=self.input_reference.without_values(names), sample=sample)

    def files(self) -> dict[str, bytes]:
        """Every file but the manifest, as bytes. Golden rows and profiles are written as they are.

        Raises:
            TrainingError: The pipeline holds what cannot be pickled.
        """
        references = {"input": _referenced(self.input_reference), "output": _referenced(self.output_reference)}
        explainer = self.predictor.explainer
        explained = {} if explainer is None else {_EXPLAINER: explainer.frozen().encode()}
        tested = {} if self.tested is None else {_TESTED: self.tested.to_json().encode()}
        sample = {} if self.sample is None else {_SAMPLE: _parquet(self.sample)}
        return (
            explained
            | tested
            | sample
            | _compiled(self.compiled, self.built)
            | {
                "rows.sql": self.query.encode(),
                "features.py": self.predictor.features.source.encode(),
                "pipeline.joblib": _pickle(self.predictor.pipeline),
                "reference.json": json.dumps(references, separators=(",", ":"), allow_nan=False).encode(),
                "golden_rows.parquet": _parquet(self.golden_rows),
                "golden_predictions.parquet": _parquet(self.golden_predictions),
                "evaluation.json": self.evaluation.model_dump_json(indent=1).encode(),
            }
        )


def pack(bundle: Bundle, version: int) -> dict[str, bytes]:
    """The files of the bundle as that version, manifest and digests included."""
    from batchscore.model.card import card

    files = bundle.files()
    # With the version as people will know it; a bundle that is only loaded has no use for a template engine.
    numbered = bundle.manifest.model_copy(update={"version": version})
    files["card.html"] = card(numbered, bundle.evaluation, bundle.built).encode()
    return _described(numbered, files)


def pack_compiled(
    files: Mapping[str, bytes], compiled: Mapping[str, bytes], built: Built, version: int
) -> dict[str, bytes]:
    """The files of a version as another one, with its trees compiled besides.

    Args:
        files: Every file of a version, verified.
        compiled: Shared libraries, by architecture.
        built: What compiled these and those that are there.
        version: Which the other one is.
    """
    from batchscore.model.card import card

    numbered = Manifest.model_validate_json(files[MANIFEST]).model_copy(update={"version": version})
    kept = {name: data for name, data in files.items() if name not in (MANIFEST, SIGNATURE)}
    kept |= _compiled(compiled, built)
    kept["card.html"] = card(numbered, Evaluation.model_validate_json(files["evaluation.json"]), built).encode()
    return _described(numbered, kept)


def _described(manifest: Manifest, files: dict[str, bytes]) -> dict[str, bytes]:
    """The files with a manifest that names them all."""
    described = {name: File(sha256=_sha256(data), size=len(data)) for name, data in sorted(files.items())}
    sealed = manifest.model_copy(update={"files": described}).sealed()
    return files | {MANIFEST: sealed.model_dump_json(indent=2).encode() + b"\n"}


def _compiled(compiled: Mapping[str, bytes], built: Built | None) -> dict[str, bytes]:
    told = {} if built is None else {BUILT: built.model_dump_json(indent=1).encode()}
    return {file_of(each): data for each, data in compiled.items()} | told


def libraries_changed(manifest: Manifest) -> dict[str, tuple[str, str]]:
    """The libraries whose version is another here than at training: name to (then, here), in order of name.

    Of Python only the feature version (3.12) counts. One that the manifest does not name was "unknown" then.
    """
    here = libraries_here()
    then = {name: manifest.libraries.get(name, "unknown") for name in here}
    changed = {name: (then[name], here[name]) for name in sorted(here) if then[name] != here[name]}
    if "python" in changed and _feature_version(then["python"]) == _feature_version(here["python"]):
        del changed["python"]
    return changed


def libraries_here() -> dict[str, str]:
    """The versions of Python and of the libraries that a pipeline depends on."""
    return {"python": platform.python_version()} | {name: library_version(name) for name in _LIBRARIES}


def _check_libraries(manifest: Manifest, where: str) -> None:
    here, then = libraries_here()["scikit-learn"], manifest.libraries.get("scikit-learn", "unknown")
    # scikit-learn promises nothing for a pickle of another minor version, and says so only by a warning.
    if _feature_version(here) != _feature_version(then):
        raise BundleIncompatible(
            f"{where} was fitted with scikit-learn {then}, and {here} is installed. "
            "Use the image it was trained with, or retrain.",
            want=then,
            got=here,
        )


def _feature_version(version: str) -> list[str]:
    return version.split(".")[:2]


def _explainer(pipeline: Any, frozen: bytes | None) -> Explainer | None:
    if frozen is None:
        return None
    from batchscore.model.explain import Explainer

    return Explainer.thawed(pipeline, frozen.decode())


def _tested(manifest: Manifest, counted: bytes | None) -> Tally | None:
    if counted is None:
        return None
    label = manifest.output_types["prediction"]
    return Tally.from_json(counted.decode(), manifest.problem.task, manifest.classes, label)


def _features(source: bytes, where: str) -> Features:
    try:
        return Features.of(source.decode(), f"{where}/features.py")
    except UsageError as error:
        # It ran at training, so what it lacks is lacking here.
        raise BundleIncompatible(f"{error} Install what it needs, or use the image it was trained with.") from error


def _pickle(pipeline: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        joblib.dump(pipeline, buffer, compress=("zlib", 3))
    except (PicklingError, AttributeError, TypeError) as error:
        raise TrainingError(
            f"the pipeline cannot be written: {error}. A lambda or a function inside a function cannot be found again: "
            "define it at the top of the features file, with def."
        ) from error
    return buffer.getvalue()


@contextmanager
def _installed_here(where: str) -> Iterator[None]:
    """A block that loads the pipeline, or imports what it is made of."""
    try:
        with warnings.catch_warnings():
            # The versions were compared before, and golden rows gate what a patch release may change.
            warnings.filterwarnings("ignore", module="sklearn")
            yield
    except (ImportError, AttributeError) as error:
        raise BundleIncompatible(
            f"{where}: its pipeline needs what is not installed here: {error}. "
            "Install it, or use the image it was trained with."
        ) from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _referenced(profile: Profile) -> dict[str, Any]:
    layouts = {name: layout.to_dict() for name, layout in profile.layouts.items()}
    return {"layouts": layouts, "profile": profile.to_dict()}


def _reference(data: Mapping[str, Any]) -> Profile:
    layouts = {name: Layout.from_dict(layout) for name, layout in data["layouts"].items()}
    return Profile.from_dict(data["profile"], layouts)
