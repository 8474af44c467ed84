"""A registry in MLflow: a version is a model version with its run, an alias is MLflow's alias.

MLflow numbers versions, and does so before the files of one are there. A version is there for batchscore when it has
the tag that is set last. MLflow cannot be asked to move an alias only if it stands where it was read: it is looked at
again just before, and who moves it in between is not seen.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from batchscore.errors import BatchscoreError, BundleCorrupt, BundleNotFound, TransientError, UsageError, WarehouseError
from batchscore.model.aliases import Aliases, Move
from batchscore.model.bundle import MANIFEST, Manifest
from batchscore.model.evaluation import Evaluation
from batchscore.model.store import ALIASES, VERSION, Change

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Tracking"]

_DIGEST = "batchscore.digest"
_OURS = f"tags.`{_DIGEST}` LIKE '%'"
_MOVES = "batchscore.moves."
_MODEL = "model"
# What servers keep of a registered model's tag.
_TAG_LENGTH = 5000
_AT_ONCE = 100
_NAME_LENGTH = 250
_NO_NAME = re.compile(r"[^\w\-. :/]")
_ATTEMPTS = 10
# Where nobody has said otherwise: nothing on stdout, where our log is, no word to others, and a server that is away is
# waited for by BATCHSCORE_RETRY_SECONDS, not for minutes in each request.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",
}
_LATER = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "BAD_GATEWAY")
_NOT_ALLOWED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")


@dataclass(frozen=True, slots=True)
class Tracking:
    """A server; credentials are those of the MLFLOW_TRACKING_ environment."""

    url: str
    client: MlflowClient = field(repr=False)

    @classmethod
    def at(cls, url: str) -> Self:
        """The store of `mlflow+http://host:port`.

        Raises:
            UsageError: The URL has no host, or credentials; or the extra `mlflow` is not installed.
        """
        parts = urlsplit(url)
        if not parts.netloc or "@" in parts.netloc or parts.query or parts.fragment:
            raise UsageError(
                "registry_url: write mlflow+http://host:port. Credentials are those of the environment: "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
            )
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            # For `pyfunc`, which training needs when it is too late.
            import pandas  # noqa: F401, ICN001
            from mlflow import MlflowClient
        except ImportError:
            raise UsageError(
                "registry_url: mlflow+http:// needs the extra mlflow: pip install 'batchscore[mlflow]', or build the "
                "image with it."
            ) from None
        # It warns of each attempt of a request; what came of them all is ours to tell.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        server = url.removeprefix("mlflow+").rstrip("/")
        return cls(url.rstrip("/"), MlflowClient(server, server))

    def where(self, *parts: object) -> str:
        return "/".join([self.url, *map(str, parts)])

    def names(self) -> list[str]:
        with _told(self.where(), "cannot be read"):
            # A server may hold many models that are none of ours.
            return sorted({each.name for each in _pages(self.client.search_model_versions, filter_string=_OURS)})

    def versions(self, name: str) -> list[int]:
        with _told(self.where(name), "cannot be read"):
            found = _pages(self.client.search_model_versions, filter_string=f"name = '{name}' AND {_OURS}")
            return sorted(int(each.version) for each in found)

    def read(self, name: str, version: int) -> dict[str, bytes]:
        from mlflow.artifacts import download_artifacts

        from batchscore.model.pyfunc import BUNDLE

        where = self.where(name, version)
        with _told(where, "cannot be read"), tempfile.TemporaryDirectory() as folder:
            found = _or_none(lambda: self.client.get_model_version(name, str(version)))
            if found is None or _DIGEST not in found.tags:
                raise BundleNotFound(f"{where} is not there. See: batchscore models list.")
            root = Path(
                download_artifacts(
                    artifact_uri=f"{found.source}/{BUNDLE}", dst_path=folder, tracking_uri=self.client.tracking_uri
                )
            )
            paths = sorted(root.iterdir())
            if folders := [path.name for path in paths if path.is_dir()]:
                raise BundleCorrupt(
                    f"{name} version {version}: files were added: {folders[0]}/. Take it out of {found.source}/"
                    f"{BUNDLE}, or retrain."
                )
            return {path.name: path.read_bytes() for path in paths}

    def add(self, name: str, files: Callable[[int], Mapping[str, bytes]]) -> int:
        with _told(self.where(name), "cannot be written", "Nothing was registered."):
            _or_none(lambda: self.client.create_registered_model(name), "RESOURCE_ALREADY_EXISTS")
            run = self.client.create_run(self._experiment(name), run_name=f"{name} in training")
            made = None
            try:
                made = self.client.create_model_version(
                    name, f"{run.info.artifact_uri}/{_MODEL}", run.info.run_id, await_creation_for=0
                )
                version = int(made.version)
                packed = files(version)
                manifest = Manifest.model_validate_json(packed[MANIFEST])
                self._log(run.info.run_id, manifest, packed)
                self.client.set_model_version_tag(name, made.version, _DIGEST, manifest.digest)
            except BaseException:
                with contextlib.suppress(Exception):
                    self.client.set_terminated(run.info.run_id, "FAILED")
                    if made is not None:
                        self.client.delete_model_version(name, made.version)
                raise
            return version

    def _experiment(self, name: str) -> str:
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", name)
        if found := self.client.get_experiment_by_name(wanted):
            return str(found.experiment_id)
        made = _or_none(lambda: self.client.create_experiment(wanted), "RESOURCE_ALREADY_EXISTS")
        return str(made) if made is not None else self._experiment(name)

    def _log(self, run: str, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        """Write what a run shows: parameters, metrics, tags, the card, and the model with the bundle in it."""
        from mlflow.entities import Metric, Param, RunTag

        from batchscore.model.pyfunc import save

        evaluation = Evaluation.model_validate_json(files["evaluation.json"])
        at = int(datetime.fromisoformat(manifest.created_at).timestamp() * 1000)
        self.client.update_run(run, name=f"{manifest.name} {manifest.version}")
        parameters = [Param(key, value) for key, value in _parameters(manifest, evaluation).items()]
        for first in range(0, len(parameters), _AT_ONCE):
            self.client.log_batch(run, params=parameters[first : first + _AT_ONCE])
        self.client.log_batch(
            run,
            metrics=[Metric(key, value, at, 0) for key, value in _metrics(evaluation).items()],
            tags=[RunTag(key, value) for key, value in _tags(manifest).items()],
        )
        with tempfile.TemporaryDirectory() as folder:
            save(files, Path(folder, _MODEL))
            self.client.log_artifacts(run, str(Path(folder, _MODEL)), _MODEL)
            for name in ("card.html", "evaluation.json"):
                Path(folder, name).write_bytes(files[name])
                self.client.log_artifact(run, str(Path(folder, name)))
        self.client.set_terminated(run, "FINISHED")

    def remove(self, name: str, version: int) -> None:
        with _told(self.where(name, version), "cannot be removed"):
            _or_none(lambda: self.client.delete_model_version(name, str(version)))

    def aliases(self, name: str) -> bytes | None:
        with _told(self.where(name, ALIASES), "cannot be read"):
            model = _or_none(lambda: self.client.get_registered_model(name))
        if model is None:
            return None
        aliases = {alias: int(version) for alias, version in model.aliases.items() if VERSION.fullmatch(str(version))}
        moves: list[Move] = []
        for alias, version in sorted(aliases.items()):
            own = _moves(model.tags.get(f"{_MOVES}{alias}", "[]"), self.where(name, alias))
            last = own[-1].after if own else None
            if last != version:
                # Moved in MLflow, which does not say when: at the earliest when anything of the model was changed last.
                at = datetime.fromtimestamp(model.last_updated_timestamp / 1000, UTC).isoformat(timespec="seconds")
                at = max([at, *(move.at for move in own[-1:])])
                own.append(Move(alias=alias, before=last, after=version, at=at, by="MLflow"))
            moves += own
        return Aliases(
            aliases=dict(sorted(aliases.items())), history=tuple(sorted(moves, key=lambda each: each.at))
        ).to_bytes()

    def change_aliases(self, name: str, change: Change) -> None:
        with _told(self.where(name, ALIASES), "cannot be written", "Look at the aliases: batchscore models list."):
            for _ in range(_ATTEMPTS):
                before = self.aliases(name)
                after = change(before)
                if self.aliases(name) == before:
                    self._move(name, Aliases.parsed(before), Aliases.parsed(after))
                    return
        raise TransientError(
            f"{self.where(name, ALIASES)}: others changed it {_ATTEMPTS} times meanwhile. No alias was changed. Try "
            "again later."
        )

    def _move(self, name: str, before: Aliases, after: Aliases) -> None:
        for alias, version in after.aliases.items():
            if before.aliases.get(alias) != version:
                self.client.set_registered_model_alias(name, alias, str(version))
                # Later than the alias: a move that is not in the history is seen by where the alias stands.
                own = [move.model_dump(mode="json") for move in after.history if move.alias == alias]
                while len(text := json.dumps(own, separators=(",", ":"))) > _TAG_LENGTH:
                    own = own[1:]
                self.client.set_registered_model_tag(name, f"{_MOVES}{alias}", text)


def _parameters(manifest: Manifest, evaluation: Evaluation) -> dict[str, str]:
    """What the model was made of, as text."""
    training = manifest.training
    told: dict[str, object] = {
        "task": manifest.problem.task,
        "target": manifest.problem.target,
        "from": training.start,
        "to": training.end,
        **{f"rows.{part}": count for part, count in evaluation.rows.items()},
        "threshold": manifest.threshold,
        **evaluation.parameters,
    }
    if evaluation.search is not None:
        told |= {f"search.{name}": value for name, value in evaluation.search.best.items()}
    # A step of a pipeline may be called as it likes.
    return {_NO_NAME.sub("_", name)[:_NAME_LENGTH]: str(value) for name, value in told.items() if value is not None}


def _metrics(evaluation: Evaluation) -> dict[str, float]:
    """Each metric on test rows, with its interval, on training and on validation rows, and of the baselines."""
    told: dict[str, float | None] = {}
    for name, measured in evaluation.test.items():
        told |= {name: measured.value, f"{name}.low": measured.low, f"{name}.high": measured.high}
    told |= {f"{name}.train": value for name, value in evaluation.train.items()}
    told |= {f"{name}.validation": value for name, value in evaluation.validation.items()}
    for baseline, metrics in evaluation.baselines.items():
        told |= {f"{name}.{baseline}": value for name, value in metrics.items()}
    told["latency_us_per_row"] = evaluation.latency_us_per_row
    return {name: value for name, value in told.items() if value is not None}


def _tags(manifest: Manifest) -> dict[str, str]:
    return {
        "batchscore.job": manifest.job,
        "batchscore.model": manifest.name,
        "batchscore.version": str(manifest.version),
        _DIGEST: manifest.digest,
        "mlflow.source.name": f"batchscore {manifest.batchscore}",
        "mlflow.note.content": manifest.problem.objective,
    }


def _moves(text: str, where: str) -> list[Move]:
    try:
        return [Move.model_validate(each) for each in json.loads(text)]
    except ValueError as error:
        raise BundleCorrupt(
            f"{where}: the tag with its moves is not one. Remove the tags that begin with {_MOVES} in MLflow."
        ) from error


def _pages(search: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
    """What a search finds, page by page."""
    page = search(**arguments)
    yield from page
    while page.token:
        page = search(**arguments, page_token=page.token)
        yield from page


def _or_none(ask: Callable[[], Any], unless: str = "RESOURCE_DOES_NOT_EXIST") -> Any:
    """What the server answers; None where its error has that code."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code == unless:
            return None
        raise


@contextmanager
def _told(where: str, doing: str, after: str = "") -> Iterator[None]:
    """A block whose errors of the server become ours, without what a library tells of its insides."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except BatchscoreError:
        raise
    except (MlflowException, requests.RequestException, OSError) as error:
        reason = _first_line(error)
        code, status = getattr(error, "error_code", ""), _status(error)
        kind: type[BatchscoreError] = WarehouseError
        if status in (401, 403) or code in _NOT_ALLOWED:
            reason = f"it answered {code or status}"
            advice = "Check MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN, and what they may do."
        elif code in _LATER or (
            isinstance(error, requests.RequestException) and status in (None, 429, *range(500, 600))
        ):
            kind = TransientError
            advice = "Try again; check BATCHSCORE_REGISTRY_URL, and that the server answers."
        else:
            advice = "Check BATCHSCORE_REGISTRY_URL and the server's log."
        # Without its cause, whose text shows requests with all that they carry.
        raise kind(f"{where} {doing}: {reason}. {advice}" + (f" {after}" if after else "")) from None


def _status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0].strip(" .") if lines else type(error).__name__
