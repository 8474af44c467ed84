"""What a command did and how its job stands, as Prometheus metrics: pushed to a Pushgateway, or left in a text file.

A job that has ended cannot be scraped, so what it knows is left where somebody else can be: at a Pushgateway, or in a
file that node-exporter's textfile collector reads. Both keep the last value until the next command brings another.

A process that ends has counted its own rows only, and starts from nothing the next time: a counter of these would go
back at each push, and rate() would take that for a restart. So the counters are read from the ledger, which has counted
since the first run and never falls. All else is a gauge: how the last command ended and how long it took, as
Prometheus asks of batch jobs, and how the last published interval looks.

What a failure does not know it leaves as it was: the time of the last success, and, where the ledger could not be read,
all that comes from it. Labels have few values: never a column's or a row's.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit

from batchscore.errors import UsageError
from batchscore.job import Job
from batchscore.ledger import Standing
from batchscore.logs import Event, log
from batchscore.monitor.channels import Undelivered, within
from batchscore.watching import REFERENCES

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

__all__ = ["Figures", "metrics_of", "push", "require_client", "write"]

# A gateway that does not answer may delay the end of a command by this, one that trickles by twice as much, and a pod's
# grace period has room for it.
TIMEOUT_SECONDS = 5.0
# Not `job`, which is whoever is scraped.
_JOB = "batchscore_job"


@dataclass(frozen=True, slots=True)
class Figures:
    """What one command did.

    Attributes:
        exit_code: What it exits with.
        seconds: How long it took.
        intervals: How many intervals, by what became of them.
        job: The job, where its file could be read.
        standing: How the job stands in the ledger, where that could be read.
    """

    exit_code: int
    seconds: float
    intervals: Mapping[str, int]
    job: Job | None
    standing: Standing | None


def require_client(setting: str) -> None:
    """See that metrics can be made, before any work is done.

    Args:
        setting: The variable that asks for them.

    Raises:
        UsageError: The package that does it is not installed.
    """
    try:
        import prometheus_client  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError(
            f"{setting} is set, and the package that makes metrics is not installed: "
            "pip install 'batchscore[prometheus]', in the image too. Or unset it."
        ) from None


def metrics_of(name: str, figures: Figures) -> CollectorRegistry:
    """The metrics of a command, each with the job's name as its label `batchscore_job`."""
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    families = _Families(registry, name)
    now = time.time()
    families.gauge("last_completion_timestamp_seconds", "When the last score or backfill ended, however it did.", now)
    families.gauge("last_exit_code", "What it exited with; 0 is success.", figures.exit_code)
    families.gauge("run_duration_seconds", "How long it took.", figures.seconds)
    families.gauges("last_intervals", "Its intervals, by what became of them.", ("outcome",), _keyed(figures.intervals))
    if figures.exit_code == 0:
        families.gauge("last_success_timestamp_seconds", "When the last one that exited with 0 ended.", now)
    if figures.standing is not None:
        _tell_standing(families, figures.standing)
    if figures.standing is not None and figures.job is not None:
        _tell_performance(families, figures.job, figures.standing)
    return registry


def push(url: str, job: str, registry: CollectorRegistry) -> None:
    """Push metrics into the group of the job; a gateway that does not take them is a warning and no more."""
    from prometheus_client.exposition import basic_auth_handler, pushadd_to_gateway

    try:
        parts = urlsplit(url)
        # http.client would take a password for a part of the host's name.
        login = partial(
            basic_auth_handler,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password or ""),
        )
        gateway = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        # Added to the group and not in its place: a failure leaves the last success as it was.
        told = {_JOB: job}
        push_it = partial(pushadd_to_gateway, gateway, "batchscore", registry, told, TIMEOUT_SECONDS, login)
        within(2 * TIMEOUT_SECONDS, push_it)
    except (OSError, HTTPException, ValueError, Undelivered) as error:
        if isinstance(error, HTTPError):
            error.close()
        log.warning(Event.METRICS_UNPUSHED, gateway=url.rpartition("@")[2], error=str(error))


def write(folder: Path, job: str, registry: CollectorRegistry) -> None:
    """Replace the job's file `batchscore_<job>.prom`, as a whole; a folder that does not take it is a warning.

    What the file has of metrics that are not given stays. Everybody may read it: node-exporter has a user of its own.
    """
    from prometheus_client import CollectorRegistry, generate_latest

    path = folder / f"batchscore_{job}.prom"
    # The collector reads files whose names end with .prom, so it never sees half a file.
    part = folder / f".{path.name}.{os.getpid()}"
    given = list(registry.collect())
    names = {family.name for family in given}
    both = CollectorRegistry()
    try:
        both.register(_Given([*given, *(family for family in _families_in(path) if family.name not in names)]))
        part.write_bytes(generate_latest(both))
        part.chmod(0o644)
        part.replace(path)
    except OSError as error:
        log.warning(Event.METRICS_UNWRITTEN, path=str(path), error=str(error))
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _families_in(path: Path) -> list[Metric]:
    """The metrics of a file; none where it is not there, or is no longer what was written."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        return list(text_string_to_metric_families(path.read_text("utf-8")))
    except (FileNotFoundError, ValueError):
        return []


class _Given:
    """A collector of metrics that are there."""

    def __init__(self, families: list[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterator[Metric]:
        yield from self.families


@dataclass(frozen=True, slots=True)
class _Families:
    """Where metrics of a job are put."""

    registry: CollectorRegistry
    job: str

    def gauge(self, name: str, text: str, value: float) -> None:
        self.gauges(name, text, (), {(): value})

    def gauges(self, name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> None:
        from prometheus_client import Gauge

        family = Gauge(f"batchscore_{name}", text, [_JOB, *labels], registry=self.registry)
        for each, value in values.items():
            family.labels(self.job, *each).set(value)

    def counter(self, name: str, text: str, value: float) -> None:
        from prometheus_client.metrics_core import CounterMetricFamily

        # Not its Counter, which says that it was created now, and that is when a count from nothing begins.
        family = CounterMetricFamily(f"batchscore_{name}", text, labels=[_JOB])
        family.add_metric([self.job], value)
        self.registry.register(_Given([family]))


def _tell_standing(families: _Families, standing: Standing) -> None:
    families.counter("runs_published", "Runs that were published, those replaced since among them.", standing.runs)
    families.counter("run_rows", "Rows that they read, rejects among them.", standing.rows)
    last = standing.last
    if last is None:
        return
    end, length = last.interval.end.timestamp(), (last.interval.end - last.interval.start).total_seconds()
    families.gauge("last_interval_end_timestamp_seconds", "When the latest published interval ends.", end)
    families.gauge("interval_seconds", "How long that interval is.", length)
    rows = {"predicted": last.predictions or 0, "rejected": last.rejects or 0}
    families.gauges("last_interval_rows", "Its rows, by what became of them.", ("outcome",), _keyed(rows))
    model = {(last.model_name, str(last.model_version)): 1.0}
    families.gauges("model_info", "Which version scored it.", ("model_name", "model_version"), model)
    told = {(reference, role): 0.0 for reference in REFERENCES for role in ("input", "output")}
    # So that nothing of an earlier interval stays where this one has nothing to compare with.
    ratios = dict.fromkeys(told, math.nan)
    for row in standing.drift:
        which = row["reference"], row["role"]
        told[which] += bool(row["told"])
        if row["verdict"] in ("moved", "steady") and row["band"]:
            ratios[which] = _largest(ratios[which], abs(row["value"]) / row["band"])
    by = ("reference", "role")
    families.gauges("drift_told_metrics", "Metrics of its columns that moved and are told.", by, told)
    text = "The largest drift of its columns, as a multiple of the value at which it matters."
    families.gauges("drift_band_ratio", text, by, ratios)


def _tell_performance(families: _Families, job: Job, standing: Standing) -> None:
    found = standing.performance
    if not found:
        return
    values = {(row["metric"], row["kind"]): row["value"] for row in found}
    text = "Metrics of the latest mature interval, measured on labels, or estimated without."
    families.gauges("performance", text, ("metric", "kind"), values)
    ends = {(row["kind"],): row["window_end"].timestamp() for row in found}
    families.gauges("performance_interval_end_timestamp_seconds", "When that interval ends.", ("kind",), ends)
    success = job.problem.success
    if success is None:
        return
    reached = {
        (row["kind"],): float(any(success.met_by(value) for value in _interval(row)))
        for row in found
        if row["metric"] == success.metric
    }
    text = "Whether the metric of [problem] success may reach its bound: 0 where its whole 95 % interval is beyond."
    families.gauges("performance_success", text, ("kind",), reached)


def _interval(row: Mapping[str, Any]) -> list[float]:
    return [value for value in (row["low"], row["value"], row["high"]) if value is not None]


def _largest(so_far: float, value: float) -> float:
    return value if math.isnan(so_far) else max(so_far, value)


def _keyed(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(key,): float(value) for key, value in values.items()}
