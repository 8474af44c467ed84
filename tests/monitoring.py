"""A real Pushgateway, node-exporter and Prometheus on loopback, and what they are asked."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

ROOT = Path(__file__).parent.parent
CONFIGURATION = ROOT / "compose/prometheus.yml"


@contextlib.contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on loopback that answers by the handler: its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def program(name: str, package: str) -> str:
    """The path of a program; without it the test is skipped."""
    path = shutil.which(name)
    if not path:
        pytest.skip(f"no {name} is installed: apt-get install {package}")
    return path


def free_port() -> int:
    """A port of loopback's that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def fetch(url: str) -> str:
    """What a GET gives."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


@contextlib.contextmanager
def _served(command: list[str], url: str, log: Path) -> Iterator[None]:
    with log.open("w") as lines:
        process = subprocess.Popen(command, stdout=lines, stderr=lines)
    try:
        while True:
            assert process.poll() is None, log.read_text()
            try:
                fetch(f"{url}/-/ready")
                break
            except urllib.error.HTTPError as error:
                # One that asks for a password is there, and one that has no such page.
                if error.code in (401, 404):
                    break
            except OSError:
                pass
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def pushgateway(folder: Path, web: str = "") -> Iterator[str]:
    """The URL of a Pushgateway; `web` is its configuration file for the web, where it has one."""
    url = f"127.0.0.1:{free_port()}"
    command = [program("prometheus-pushgateway", "prometheus-pushgateway"), f"--web.listen-address={url}"]
    with _served([*command, *([f"--web.config.file={web}"] if web else [])], f"http://{url}", folder / "gateway.log"):
        yield f"http://{url}"


@contextlib.contextmanager
def node_exporter(folder: Path, files: Path) -> Iterator[str]:
    """The URL of a node-exporter that tells nothing but what the text files in a folder hold."""
    url = f"127.0.0.1:{free_port()}"
    command = [
        program("prometheus-node-exporter", "prometheus-node-exporter"),
        "--collector.disable-defaults",
        "--collector.textfile",
        f"--collector.textfile.directory={files}",
        f"--web.listen-address={url}",
    ]
    with _served(command, f"http://{url}", folder / "node.log"):
        yield f"http://{url}"


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """The URL of a Prometheus that scrapes a target as compose.yaml's does the gateway, only sooner."""
    text = CONFIGURATION.read_text()
    for old, new in (("pushgateway:9091", target.removeprefix("http://")), ("interval: 15s", "interval: 200ms")):
        assert old in text
        text = text.replace(old, new)
    (folder / "prometheus.yml").write_text(text)
    url = f"127.0.0.1:{free_port()}"
    command = [
        program("prometheus", "prometheus"),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/tsdb",
        f"--web.listen-address={url}",
    ]
    with _served(command, f"http://{url}", folder / "prometheus.log"):
        yield f"http://{url}"


def told(text: str, job: str = "toy") -> dict[str, float]:
    """The metrics of a job of ours in Prometheus' text format, by `name/value/of/labels`, labels by their names."""
    found = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"(batchscore_\w+)\{(.*)\} (\S+)", line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            if labels.pop("batchscore_job") == job:
                values = [value for name, value in sorted(labels.items()) if name not in ("instance", "job")]
                found["/".join([match[1].removeprefix("batchscore_"), *values])] = float(match[3])
    return found


def pushed(gateway: str, job: str = "toy") -> dict[str, float]:
    """The metrics that the gateway holds of a job of ours."""
    text = fetch(f"{gateway}/metrics")
    assert all('job="batchscore"' in line for line in text.splitlines() if line.startswith("batchscore_"))
    return told(text, job)


def asked(server: str, query: str, patience: float = 20) -> list[dict[str, Any]]:
    """What Prometheus answers to an instant query, once it has an answer; nothing when it gets none."""
    deadline = time.monotonic() + patience
    while True:
        answer = json.loads(fetch(f"{server}/api/v1/query?{urlencode({'query': query})}"))
        assert answer["status"] == "success", answer
        result: list[dict[str, Any]] = answer["data"]["result"]
        if result or time.monotonic() > deadline:
            return result
        time.sleep(0.1)
