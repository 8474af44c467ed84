"""As much of Kubernetes' API as a client needs to run a pod, with pods that have ended as soon as they are made."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent

if not shutil.which("kubectl"):
    pytest.skip("kubectl, which makes the manifest, is not installed", allow_module_level=True)

# As the README says: kubectl kustomize k8s/overlays/prod > batchscore.yaml
MANIFEST = subprocess.run(
    ["kubectl", "kustomize", ROOT / "k8s/overlays/prod"], capture_output=True, text=True, check=True
).stdout
CRONJOB = next(each for each in yaml.safe_load_all(MANIFEST) if each["kind"] == "CronJob")
NAMESPACE = CRONJOB["metadata"]["namespace"]
TEMPLATE = CRONJOB["spec"]["jobTemplate"]["spec"]["template"]


def load(name: str, path: Path) -> ModuleType:
    """A file as a module; batchscore itself is not installed where Airflow and Dagster are."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exit_codes(*, retryable: bool) -> list[int]:
    """The exit codes of batchscore/errors.py that are worth another try, or those that are not."""
    errors = load("errors", ROOT / "batchscore/errors.py")
    ours = [
        each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.BatchscoreError)
    ]
    other = errors.Terminated.exit_code if retryable else errors.BUG_EXIT_CODE
    return sorted({each.exit_code for each in ours if each.retryable is retryable} | {other})


def install(example: str, folder: Path) -> Path:
    """Put an example and the manifest beside each other, as its README says."""
    (folder / "batchscore.yaml").write_text(MANIFEST)
    target = folder / example
    target.write_text((ROOT / "docs/integrations" / example).read_text())
    return target


def alike(pod: dict[str, Any], args: list[str]) -> bool:
    """Whether a pod is the manifest's, with these arguments: all that the manifest says stands in it."""
    (container,) = TEMPLATE["spec"]["containers"]
    wanted = TEMPLATE | {"spec": TEMPLATE["spec"] | {"containers": [container | {"args": args}]}}
    return _within(wanted, pod)


def _within(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(_within(value, found.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(found, list):
        # A client may add variables of its own behind ours.
        return len(wanted) <= len(found) and all(map(_within, wanted, found))
    return wanted == found


class Cluster:
    """What is asked of it, and what it answers.

    Attributes:
        ends: The exit codes of the pods to come; None is an eviction.
        made: The bodies of the pods that were made.
        pods: Those that are there, by name.
        unknown: The requests that it has no answer for.
    """

    def __init__(self, *ends: int | None) -> None:
        self.ends = list(ends)
        self.made: list[dict[str, Any]] = []
        self.pods: dict[str, dict[str, Any]] = {}
        self.unknown: list[str] = []

    def answer(self, method: str, path: str, body: Any) -> Any:
        """The JSON of the answer, or the text of a log.

        Raises:
            LookupError: There is no such thing.
        """
        url = urlsplit(path)
        place, asked = url.path.strip("/").split("/")[:4], url.path.strip("/").split("/")[4:]
        # Nothing is in another namespace than the manifest's.
        match method, asked if place == ["api", "v1", "namespaces", NAMESPACE] else None:
            case "POST", ["pods"]:
                self.made.append(body)
                return self.pods.setdefault(body["metadata"]["name"], body | {"status": self._status(body)})
            case "GET", ["pods"]:
                return {"items": [pod for pod in self.pods.values() if _selected(pod, parse_qs(url.query))]}
            case "GET", ["pods", name]:
                return self.pods[name]
            case "GET", ["pods", name, "log"]:
                return f"{name} did something\n"
            case "PATCH", ["pods", name]:
                self.pods[name]["metadata"]["labels"] |= body["metadata"]["labels"]
                return self.pods[name]
            case "DELETE", ["pods", name]:
                return self.pods.pop(name)
            case "GET", ["events"]:
                return {"items": []}
        self.unknown.append(f"{method} {path}")
        raise LookupError(path)

    def _status(self, body: dict[str, Any]) -> dict[str, Any]:
        code = self.ends.pop(0)
        if code is None:
            return {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
        end = {"exitCode": code, "reason": "Error" if code else "Completed"}
        container = {"name": body["spec"]["containers"][0]["name"], "image": "", "imageID": "", "ready": False}
        return {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [container | {"restartCount": 0, "state": {"terminated": end}}],
        }


def _selected(pod: dict[str, Any], query: dict[str, list[str]]) -> bool:
    """Whether a pod has the name and the labels that are asked for."""
    (field,), (label,) = query.get("fieldSelector", [""]), query.get("labelSelector", [""])
    if field and field != f"metadata.name={pod['metadata']['name']}":
        return False
    found = pod["metadata"]["labels"]
    for each in filter(None, label.split(",")):
        name, _, value = each.partition("=")
        if each.startswith("!"):
            fits = each[1:] not in found
        elif name.endswith("!"):
            fits = found.get(name[:-1]) != value
        else:
            fits = found.get(name) == value
        if not fits:
            return False
    return True


@contextmanager
def serving(cluster: Cluster, folder: Path) -> Iterator[Path]:
    """The cluster on a port of this machine, and the kubeconfig that leads there."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            try:
                found, status = cluster.answer(self.command, self.path, body), 200
            except LookupError as error:
                found, status = {"kind": "Status", "message": str(error)}, 404
            data = (found if isinstance(found, str) else json.dumps(found)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(found, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = folder / "kubeconfig"
        config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
                    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
                    "users": [{"name": "here", "user": {}}],
                }
            )
        )
        yield config
        server.shutdown()
