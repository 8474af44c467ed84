"""Spans, as a collector gets them."""

from __future__ import annotations

import gzip
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from monitoring import listening
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from toy import Project

WEEK = ("--from", "2024-02-01", "--to", "2024-02-03")


@dataclass
class Collector:
    """What an OTLP collector has been sent over HTTP.

    Attributes:
        endpoint: Its address.
        spans: Every span as protobuf has it.
        services: The attributes of the resources.
    """

    endpoint: str = ""
    spans: list[Any] = field(default_factory=list)
    services: list[dict[str, str]] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        """One request."""
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services.append({each.key: each.value.string_value for each in resource.resource.attributes})
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Any]:
        """The spans of that name."""
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector on loopback that speaks OTLP, as far as it decodes what comes with OpenTelemetry's own protobufs."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            collector.take(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing is said."""

    with listening(Handler) as url:
        collector.endpoint = url
        yield collector


def run(project: Project, *arguments: str, **variables: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit code of a command, and its lines."""
    result = project.call(*arguments, **variables)
    return result.code, [json.loads(line) for line in result.out.splitlines()]


def attributes(span: Any) -> dict[str, Any]:
    """A span's attributes."""
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}


def test_a_backfill_is_one_trace(project: Project, collector: Collector) -> None:
    """Command, intervals, and each chunk's reading, scoring and committing are spans, each within its own."""
    code, lines = run(
        project, "backfill", "toy", *WEEK, "--chunk-rows", "50", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint
    )

    assert code == 0
    assert len({span.trace_id for span in collector.spans}) == 1
    assert Counter(span.name for span in collector.spans) == {
        "batchscore backfill": 1, "interval": 2, "read": 6, "score": 4, "commit": 4, "publish": 2,
    }  # fmt: skip
    (root,) = collector.named("batchscore backfill")
    assert root.parent_span_id == b""
    intervals = {span.span_id: attributes(span) for span in collector.named("interval")}
    assert all(span.parent_span_id == root.span_id for span in collector.named("interval"))
    for name in ("read", "score", "commit", "publish"):
        assert {span.parent_span_id for span in collector.named(name)} == intervals.keys()
    published = {line["run_id"]: line for line in lines if line["event"] == "run.published"}
    assert {each["batchscore.run_id"] for each in intervals.values()} == published.keys()
    assert {each["batchscore.job"] for each in intervals.values()} == {"toy"}
    assert sum(attributes(span)["batchscore.rows"] for span in collector.named("commit")) == 200
    assert collector.services[0]["service.name"] == "batchscore"
    assert collector.services[0]["service.version"]


def test_lines_lead_to_their_spans(project: Project, collector: Collector) -> None:
    """A line that is logged within a span has its ids, in the form that OpenTelemetry gives for logs."""
    _, lines = run(project, "backfill", "toy", *WEEK, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)

    commits = {span.span_id.hex(): span.trace_id.hex() for span in collector.named("interval")}
    found = [line for line in lines if line["event"] == "chunk.committed"]
    assert len(found) == 2
    assert {line["span_id"]: line["trace_id"] for line in found} == commits


def test_goes_on_with_the_trace_of_whoever_started_it(project: Project, collector: Collector) -> None:
    """A scheduler's TRACEPARENT is the parent of the command."""
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    run(
        project, "score", "toy", "--interval", "2024-02-01",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, TRACEPARENT=f"00-{trace}-{parent}-01",
        OTEL_SERVICE_NAME="nightly",
    )  # fmt: skip

    (root,) = collector.named("batchscore score")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (trace, parent)
    assert collector.services[0]["service.name"] == "nightly"


def test_a_failure_is_in_the_span_and_a_secret_is_not(project: Project, collector: Collector) -> None:
    """The spans that an error ends say of which kind it was; a password in its words is masked."""
    url = "postgresql://ana:s3cr3t@127.0.0.1:1/none"
    code, _ = run(
        project, "backfill", "toy", *WEEK,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, BATCHSCORE_SOURCE_URL=url, BATCHSCORE_RETRY_SECONDS="0",
    )  # fmt: skip

    assert code == 20
    failed = collector.named("interval")[0]
    assert failed.status.code == 2
    assert attributes(failed)["error.type"] == "TransientError"
    assert failed.status.message
    assert not failed.events
    assert not any(b"s3cr3t" in span.SerializeToString() for span in collector.spans)


def test_training_has_its_steps(project: Project, collector: Collector) -> None:
    """Reading, fitting, testing and compiling are spans of `train`."""
    code, _ = run(project, "train", "toy", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)

    assert code == 0
    assert [span.name for span in collector.spans] == [
        "read",
        "read labels",
        "fit",
        "test",
        "compile",
        "batchscore train",
    ]


@pytest.mark.long
def test_a_collector_that_is_gone_stops_nothing(project: Project) -> None:
    """The run is published, the command ends soon, and a line says that spans were lost; nothing is said beside it."""
    begun = time.monotonic()
    done = project.run("backfill", "toy", *WEEK, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")

    lines = [json.loads(line) for line in done.out.splitlines()]
    assert (done.code, done.err) == (0, "")
    assert [line["event"] for line in lines].count("run.published") == 2
    lost = [line for line in lines if line["event"] == "library.warned"]
    assert lost
    assert all(line["logger"].startswith("opentelemetry.exporter") for line in lost)
    assert time.monotonic() - begun < 40


def test_a_collector_that_does_not_answer(project: Project) -> None:
    """Where it takes the connection and says nothing, the command waits a few seconds, and says what was lost."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        # In a process of its own: in this one its sender would live on, and send to whoever has the port next.
        result = project.run(
            "backfill", "toy", *WEEK,
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}",
        )  # fmt: skip
        lines = [json.loads(line) for line in result.out.splitlines()]

    assert result.code == 0
    assert lines[-1]["event"] == "traces.off"
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_BSP_MAX_QUEUE_SIZE": "-1"},
        {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "x"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_a_variable_that_the_sdk_cannot_read(project: Project, collector: Collector, variables: dict[str, str]) -> None:
    """It is told, and the run goes on without spans."""
    code, lines = run(project, "backfill", "toy", *WEEK, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, **variables)

    assert code == 0
    assert len([line for line in lines if line["event"] == "traces.off"]) == 1
    assert collector.spans == []


def test_without_the_package_it_says_so(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the extra is not installed, one line tells how to, and the run goes on."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)

    code, lines = run(project, "backfill", "toy", *WEEK, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")

    off = [line["error"] for line in lines if line["event"] == "traces.off"]
    assert (code, off) == (0, ["OpenTelemetry is not installed: pip install 'batchscore[otel]'"])


@pytest.mark.parametrize("variables", [{}, {"OTEL_SDK_DISABLED": "true"}])
def test_is_off_until_it_is_asked_for(project: Project, collector: Collector, variables: dict[str, str]) -> None:
    """Without an endpoint, or with the SDK switched off, nothing is sent and no line has ids."""
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint} if variables else {}
    _, lines = run(project, "backfill", "toy", *WEEK, **variables, **endpoint)

    assert collector.spans == []
    assert not any("trace_id" in line for line in lines)
