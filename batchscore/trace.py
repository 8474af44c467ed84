"""Spans for OpenTelemetry: what of a command took how long.

They are off, and cost nothing, until the environment names a collector by OpenTelemetry's own variables. Losing them
stops nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import structlog

import batchscore
from batchscore.logs import Event, log, redacted

__all__ = ["begin", "each", "end", "span"]

T = TypeVar("T")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_provider: Any = None
_tracer: Any = None
_outer: Any = None


def begin() -> None:
    """Turn spans on where `OTEL_EXPORTER_OTLP_ENDPOINT` is set, and `OTEL_SDK_DISABLED` is not `true`.

    `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` and the rest of the SDK's variables hold. A trace that `TRACEPARENT`
    names is gone on with (W3C Trace Context, in an environment variable as OpenTelemetry has it for batch jobs).
    """
    global _provider, _tracer, _outer  # noqa: PLW0603 - like the SDK's own, it is the process's
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if _tracer is not None or disabled or not any(os.environ.get(name) for name in _ENDPOINTS):
        return
    try:
        _provider, _outer = _set_up()
    except ImportError:
        log.warning(Event.TRACES_OFF, error="OpenTelemetry is not installed: pip install 'batchscore[otel]'")
    except Exception as error:  # noqa: BLE001 - a variable of the SDK's that it cannot read must not stop a run
        log.warning(Event.TRACES_OFF, error=str(error))
    else:
        _tracer = _provider.get_tracer("batchscore", batchscore.__version__)


def _set_up() -> tuple[Any, Any]:
    """What makes spans, and what to give back to the SDK in the end."""
    from opentelemetry import context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in (None, "", "http/protobuf"):
        raise ValueError(f"spans are sent as http/protobuf, and OTEL_EXPORTER_OTLP_PROTOCOL asks for {protocol}")
    told = "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "") or os.environ.get("OTEL_SERVICE_NAME")
    named = {} if told else {"service.name": "batchscore"}
    resource = Resource.create(named | {"service.version": batchscore.__version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    carrier = {name.lower(): os.environ[name] for name in ("TRACEPARENT", "TRACESTATE") if name in os.environ}
    return provider, context.attach(TraceContextTextMapPropagator().extract(carrier))


def end(seconds: float) -> None:
    """Send what is left, and turn spans off.

    Args:
        seconds: How long to wait for a collector that does not answer; the SDK itself would for minutes.
    """
    global _provider, _tracer  # noqa: PLW0603
    if _provider is not None:
        from opentelemetry import context

        context.detach(_outer)
        sending = threading.Thread(target=_provider.shutdown, daemon=True, name="batchscore-traces")
        sending.start()
        sending.join(seconds)
        if sending.is_alive():
            log.warning(Event.TRACES_OFF, error=f"the collector took no spans for {seconds:.0f} s; the last are lost")
    _provider = _tracer = None


@contextmanager
def span(name: str, attributes: Mapping[str, Any] | None = None) -> Iterator[None]:
    """A block that is one span, within the one around it; its log lines have `trace_id` and `span_id`.

    Args:
        name: What is done.
        attributes: What with: OpenTelemetry's names where it has one, and `batchscore.…` else.
    """
    if _tracer is None:
        yield
        return
    from opentelemetry.trace import Status, StatusCode, format_span_id, format_trace_id

    # Without the SDK's own record of an exception, whose text may hold a secret.
    unrecorded = {"record_exception": False, "set_status_on_exception": False}
    with _tracer.start_as_current_span(name, attributes=dict(attributes or {}), **unrecorded) as current:
        ids = current.get_span_context()
        told = {"trace_id": format_trace_id(ids.trace_id), "span_id": format_span_id(ids.span_id)}
        with structlog.contextvars.bound_contextvars(**told):
            try:
                yield
            except BaseException as error:
                current.set_attribute("error.type", type(error).__qualname__)
                current.set_status(Status(StatusCode.ERROR, redacted(str(error))))
                raise


def each(name: str, items: Iterable[T]) -> Iterator[T]:
    """The items, each one's making a span."""
    iterator, none = iter(items), object()
    while True:
        with span(name):
            item = next(iterator, none)
        if item is none:
            return
        yield item  # type: ignore[misc]
