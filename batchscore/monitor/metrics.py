"""What a command did, pushed as Prometheus metrics to a Pushgateway: a job that has ended cannot be scraped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from urllib.parse import unquote, urlsplit

from batchscore.errors import UsageError
from batchscore.logs import Event, log

__all__ = ["Figures", "push", "require_client"]

# A gateway that does not answer may delay the end of a command by this, and a pod's grace period has room for it.
TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What one command did.

    Attributes:
        exit_code: What it exits with.
        seconds: How long it took.
        intervals: How many intervals, by what became of them.
        predictions: Rows published.
        rejects: Rows that could not be scored.
        moved: How many published intervals saw something move against training.
    """

    exit_code: int
    seconds: float
    intervals: Mapping[str, int]
    predictions: int
    rejects: int
    moved: int


def require_client() -> None:
    """See that metrics can be pushed, before any work is done.

    Raises:
        UsageError: The package that does it is not installed.
    """
    try:
        import prometheus_client  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError(
            "BATCHSCORE_PUSHGATEWAY_URL is set, and the package that pushes is not installed: "
            "pip install 'batchscore[prometheus]', in the image too. Or unset it."
        ) from None


def push(url: str, job: str, figures: Figures) -> None:
    """Push the figures in the group of the job; a gateway that does not take them is a warning and no more."""
    from prometheus_client import CollectorRegistry, Gauge
    from prometheus_client.exposition import basic_auth_handler, pushadd_to_gateway

    registry, now = CollectorRegistry(), time.time()

    def gauge(name: str, text: str, value: float) -> None:
        Gauge(f"batchscore_last_{name}", text, registry=registry).set(value)

    gauge("run_timestamp_seconds", "When the last score or backfill ended.", now)
    gauge("run_duration_seconds", "How long it took.", figures.seconds)
    gauge("exit_code", "What it exited with; 0 is success.", figures.exit_code)
    gauge("run_predictions", "Predictions that it published.", figures.predictions)
    gauge("run_rejects", "Rows of published intervals that it could not score.", figures.rejects)
    gauge("run_intervals_moved", "Intervals that it published and that moved against training.", figures.moved)
    intervals = Gauge("batchscore_last_run_intervals", "Its intervals.", ["outcome"], registry=registry)
    for outcome, count in figures.intervals.items():
        intervals.labels(outcome).set(count)
    if figures.exit_code == 0:
        gauge("success_timestamp_seconds", "When the last one that exited with 0 ended.", now)
    try:
        parts = urlsplit(url)
        # http.client would take a password for a part of the host's name.
        login = partial(
            basic_auth_handler,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password or ""),
        )
        gateway = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        group = {"batchscore_job": job}
        # Added to the group and not in its place: a failure leaves the last success as it was.
        pushadd_to_gateway(gateway, "batchscore", registry, group, timeout=TIMEOUT_SECONDS, handler=login)
    except (OSError, HTTPException, ValueError) as error:
        log.warning(Event.METRICS_UNPUSHED, gateway=url.rpartition("@")[2], error=str(error))
