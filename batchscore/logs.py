"""Log events: their names, and how they are written."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, MutableMapping, Sequence
from contextlib import AbstractContextManager
from datetime import date, datetime
from enum import StrEnum
from typing import Any, Literal, NoReturn, TextIO

import structlog

import batchscore

__all__ = ["ECS", "Event", "about", "configure", "log", "redacted", "redactor", "told_apart"]

LogFormat = Literal["auto", "json", "ecs", "console", "silent"]
ECS = {
    "timestamp": "@timestamp",
    "level": "log.level",
    "message": "message",
    "event": "event.action",
    "error": "error.message",
    "error_type": "error.type",
    "exception": "error.stack_trace",
    "exit_code": "process.exit_code",
    "trace_id": "trace.id",
    "span_id": "span.id",
}
"""What the Elastic Common Schema calls a field of ours."""
# Of a line in words: what it begins with, and what a person who watches knows.
_NOT_FOR_PEOPLE = ("timestamp", "level", "event", "job", "interval_start", "model_version")
_URL_PASSWORD = re.compile(r"(://[^\s:/@]*:)\S+(@)")


class Event(StrEnum):
    """Every event that batchscore logs; the value is the line's `event`."""

    BUNDLE_LOADED = "bundle.loaded"
    """Digest, versions and golden rows are good."""
    BUNDLE_LIBRARIES = "bundle.libraries"
    """The bundle was made with other versions than those here; golden rows agree all the same."""
    BUNDLE_UNSIGNED = "bundle.unsigned"
    """A bundle was loaded without a signature that was looked at: a warning where keys are set and unsigned bundles are
    let in all the same, and else a line of what is so."""
    MODEL_COMPILED = "model.compiled"
    """The bundle's trees score as compiled for this architecture: on how many rows they gave what the original gives,
    and in how many threads they run."""
    MODEL_UNCOMPILED = "model.uncompiled"
    """The bundle has compiled trees, and the original scores all the same, and why: at info where they are compiled for
    other architectures, and else a warning."""
    FEATURES_DIFFER = "features.differ"
    """The features in the job folder are not the bundle's; the bundle's ran."""
    SQL_ACCEPTED = "sql.accepted"
    """A query other than the bundle's runs, for the reason given."""
    SQL_LOOSE = "sql.loose"
    """The rows' query uses one bound of the interval only, so that a row may come in several intervals."""
    RUN_STARTED = "run.started"
    """A run begins with the first row of its interval."""
    RUN_RESUMED = "run.resumed"
    """An earlier process committed some chunks of this run; reading goes on behind them."""
    RUN_CUT = "run.cut"
    """A run is cut into shards by its key: how many, fewer than workers where there are too few keys."""
    RUN_SPOILT = "run.spoilt"
    """What an earlier process staged is gone or changed by another hand; the run starts from nothing."""
    RUN_RESTARTED = "run.restarted"
    """Rows that the run had read are no longer what they were; it starts from nothing."""
    RUN_FOUND = "run.found"
    """The run is published already, by this process before it lost its connection, or by another."""
    RUN_EMPTY = "run.empty"
    """The source gave no row for the interval, which is published with none."""
    COLUMNS_IGNORED = "columns.ignored"
    """The source gives columns that the bundle does not declare."""
    CHUNK_BOUNDED = "chunk.bounded"
    """The job's chunk_rows are more than the memory has room for; so many are taken instead."""
    CHUNK_COMMITTED = "chunk.committed"
    """A chunk is staged and in the ledger: it will not be scored again."""
    SHADOW_LOADED = "shadow.loaded"
    """Another version scores the same rows, and its predictions go to the side table."""
    SHADOW_NONE = "shadow.none"
    """The job's `shadow` is not in the registry, or is the version that scores already: nothing is shadowed."""
    SHADOW_OFF = "shadow.off"
    """The job's `shadow`, or the side table, cannot be used; predictions are published as they are without it."""
    SHADOW_FAILED = "shadow.failed"
    """Rows that have a prediction, and none of the shadow's: how many of those that this process scored, and what the
    first failed with. Where its code failed on more than 100 rows of a run it is `given_up`, and none is published."""
    RUN_PROFILE = "run.profile"
    """Summary statistics of one column over one run."""
    RUN_DRIFT = "run.drift"
    """A published run compared with training, once a run: how many metrics moved, and each that did (role, column,
    metric, value, floor, band)."""
    RUN_CONFIRMED = "run.confirmed"
    """An earlier process had committed the run to its Delta table, and not lived to record it: now it is recorded."""
    RUN_DISOWNED = "run.disowned"
    """An earlier process was about to commit the run to its Delta table, and had not: now it never can."""
    RUN_PUBLISHED = "run.published"
    """The interval's predictions are in the output table."""
    RUN_OVERRIDDEN = "run.overridden"
    """Somebody published a held run past the gates that held it, for the reason given."""
    RUNS_PRUNED = "runs.pruned"
    """How many superseded runs, stages and rejects were removed, and unfinished runs made to begin anew; or would be,
    with `dry_run`."""
    STAGE_LEFT = "run.stage_left"
    """The run is published; its stage could not be dropped, or the database's log not folded in."""
    CHECKPOINT_UNDONE = "checkpoint.undone"
    """A process was killed while it folded DuckDB's log into the file; what it had half written is put back, and the
    log has all that was committed."""
    LEASE_UNRENEWED = "lease.unrenewed"
    """The end of an interval's lease could not be put off; it is tried again before the lease ends."""
    ATTEMPT_FAILED = "attempt.failed"
    """A database or network failed for now; it is tried again after the wait."""
    RUN_FAILED = "run.failed"
    """A run stopped; nothing of it is published."""
    RUN_LEFT = "run.left"
    """Another process has the interval, or published it meanwhile; this one writes nothing more of it."""
    RUN_UNREAD = "run.unread"
    """The rows of a published run could not be read again, so whether they have changed is not known; it stays."""
    TABLES_READY = "tables.ready"
    """The output table and the ledger's tables are there, with all that a run needs of them."""
    COLUMN_ADDED = "column.added"
    """A table of the ledger that an earlier version made was given a column that came since, with NULL in its rows."""
    VIEWS_READY = "views.ready"
    """The views for dashboards are there: what was done about each, `made`, `replaced`, or `made anew` with other
    columns."""
    NOTHING_DUE = "run.nothing_due"
    """No interval is to be scored; the command ends with 0."""
    INTERVALS_DONE = "plan.intervals_done"
    """What became of the intervals of a command, by number: its last line but for an error's."""
    INTERVALS_LEFT = "plan.intervals_left"
    """More intervals are missing than one call catches up with, or than it tried before a database was gone."""
    BUNDLE_WRITTEN = "bundle.written"
    """A version was registered, read back and found sound; with its metrics on the rows held out."""
    BUNDLE_COMPILED = "bundle.compiled"
    """A version was registered once more, with its trees compiled for the architectures `made`; it is the same in all
    else as the version `of`. Where none was left to compile for, it is that version."""
    BUNDLE_PROMOTED = "bundle.promoted"
    """An alias points at another version; back at an earlier one, with `rolled_back_from`."""
    BUNDLES_PRUNED = "bundles.pruned"
    """The versions that were removed from the registry; or would be, with `dry_run`."""
    AUDIT = "training.audit"
    """The training rows were looked at: how many findings there are, and each one that is a suspect."""
    BASELINE_FAILED = "training.baseline_failed"
    """A baseline, or the version in use, cannot score the test rows; the new model is not compared with it."""
    TRAINING = "training.progress"
    """The step that training has come to."""
    RETRAIN_REASON = "retrain.reason"
    """A condition of `retrain`: whether it holds, and by what figures."""
    RETRAIN_DECIDED = "retrain.decided"
    """What `retrain` did, and why: `first`, `not due`, `waiting`, `due` (`--dry-run`), `promoted` or `kept`."""
    COMMAND_FAILED = "command.failed"
    """What ended the command, with its exit code; the last line, but for spans that could not be sent."""
    TRACES_OFF = "traces.off"
    """The environment names a collector of traces, and it gets none or not the last: OpenTelemetry is not installed,
    refuses a variable, or the collector does not answer."""
    LINEAGE_OFF = "lineage.off"
    """`OPENLINEAGE_URL` names a collector of lineage, and it gets nothing more of this command: OpenLineage is not
    installed, refuses a variable, or the collector does not take an event, or takes too long over them."""
    LIBRARY_WARNED = "library.warned"
    """A library's own warning or error, such as that traces could not be sent; what it means for the run, its own lines
    say."""
    MONITORING_FAILED = "monitoring.failed"
    """The predictions are published; comparing the run's profile with training failed."""
    ALERT_FIRING = "alert.firing"
    """Something of `[alerts]` has begun, or goes on after `repeat`: which alert, what was found, since when."""
    ALERT_RECOVERED = "alert.recovered"
    """What was firing is so no longer."""
    ALERTS_UNDELIVERED = "alerts.undelivered"
    """A webhook or command did not take a notice, which the next command sends again; what was scored stands."""
    METRICS_UNPUSHED = "metrics.unpushed"
    """The Pushgateway did not take the metrics of a command, which is as good or bad as it was without them."""
    METRICS_UNWRITTEN = "metrics.unwritten"
    """The file of a job's metrics could not be replaced; what it says is of an earlier command."""


log: structlog.stdlib.BoundLogger = structlog.get_logger()

_TOLD_BY_COMMANDS = (
    *(Event.RUN_FAILED, Event.RUN_LEFT, Event.RUN_UNREAD),
    *(Event.COMMAND_FAILED, Event.INTERVALS_LEFT, Event.ALERT_FIRING, Event.ALERT_RECOVERED),
)
_told_apart = False
_secrets: tuple[str, ...] = ()


def configure(
    format_: LogFormat, secrets: Iterable[str] = (), *, quiet: bool = False, stream: TextIO | None = None
) -> None:
    """Set up logging for this process: JSON lines, or lines for people.

    Args:
        format_: `auto` writes JSON, and on a terminal only what went wrong or may, in words; `ecs` writes JSON with
            the names of the Elastic Common Schema; `console` writes everything in words; `silent` never writes.
        secrets: Values that never appear in a line, nor in what `redacted` gives; passwords inside URLs are masked
            besides.
        quiet: Errors only, and to standard error, for a command whose output is what it was asked for.
        stream: Where lines go, instead of there; otherwise it is standard output, as a container's log is. A progress
            bar takes that stream's place while it moves, so it is looked up for each line.
    """

    def target() -> TextIO:
        return stream or (sys.stderr if quiet else sys.stdout)

    watched = target().isatty()
    global _told_apart, _secrets  # noqa: PLW0603 - like structlog's own configuration, they are the process's
    _secrets = _sorted(secrets)
    _told_apart = format_ == "silent" or (watched and format_ not in ("json", "ecs"))
    people = format_ == "console" or (format_ == "auto" and watched)
    # At a terminal the commands speak for themselves.
    least = logging.ERROR if quiet else logging.WARNING if format_ == "auto" and watched else logging.INFO
    renderer: Any = structlog.processors.JSONRenderer()
    if format_ == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=watched)
    elif people:
        renderer = _sentence
    structlog.configure(
        processors=[
            *([_drop] if format_ == "silent" else []),
            *([_drop_told_apart] if _told_apart else []),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
            # Locals of a frame may hold a URL with its password.
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
            if not people and format_ != "ecs"
            else structlog.processors.format_exc_info,
            redactor(_secrets),
            *([_with_ecs_names] if format_ == "ecs" else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=lambda *_: structlog.WriteLogger(target()),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    if not any(isinstance(handler, _Library) for handler in root.handlers):
        root.addHandler(_Library(logging.WARNING))


def about(run_id: str, interval_start: datetime, model_version: int) -> AbstractContextManager[None]:
    """A block of whose lines each says which run it is about."""
    facts = {"run_id": run_id, "interval_start": interval_start.isoformat(), "model_version": model_version}
    return structlog.contextvars.bound_contextvars(**facts)


class _Library(logging.Handler):
    """What libraries log, as events of ours: a container's log has one form, and secrets are masked in it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            told = record.getMessage()
        except Exception as error:  # noqa: BLE001 - a library's mistake in a message of its own stops nothing
            told = f"{record.msg} ({error})"
        if record.levelno >= logging.ERROR:
            log.error(Event.LIBRARY_WARNED, logger=record.name, message=told, exc_info=record.exc_info)
        else:
            log.warning(Event.LIBRARY_WARNED, logger=record.name, message=told, exc_info=record.exc_info)


def told_apart() -> bool:
    """Whether the command itself tells a person what became of it, and the log leaves that out."""
    return _told_apart


def redacted(value: Any) -> Any:
    """The value, texts inside it without the secrets that `configure` was given; for what is told beside the log."""
    return _clean(value, _secrets)


def _drop(_: Any, __: str, ___: MutableMapping[str, Any]) -> NoReturn:
    raise structlog.DropEvent


def _drop_told_apart(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if event["event"] in _TOLD_BY_COMMANDS:
        raise structlog.DropEvent
    return event


def _with_ecs_names(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The line with the schema's name for what it names, and `batchscore.` before the rest."""
    named = {ECS.get(name, f"batchscore.{name}"): value for name, value in event.items()}
    first = {name: named.pop(name) for name in ("@timestamp", "log.level")}
    service = {"ecs.version": "8.11.0", "service.name": "batchscore", "service.version": batchscore.__version__}
    return first | {"message": event["event"]} | service | named


def _sentence(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    """One line: level, event, and what it is about; of a text of many lines the first one."""
    facts = {name: str(value) for name, value in event.items() if name not in _NOT_FOR_PEOPLE}
    lines = {name: text.splitlines() or [""] for name, text in facts.items()}
    told = ", ".join(f"{name}: {first.strip()}" + (" …" if rest else "") for name, (first, *rest) in lines.items())
    return f"{event['level']} {event['event']} ({told})"


def redactor(secrets: Iterable[str]) -> structlog.types.Processor:
    """A processor that masks secrets anywhere in an event, nested values and tracebacks included."""
    values = _sorted(secrets)

    def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        # What every line has comes first, where an eye looks for it.
        first = [key for key in ("timestamp", "level", "event") if key in event]
        return {key: _clean(event[key], values) for key in dict.fromkeys([*first, *event])}

    return redact


def _sorted(secrets: Iterable[str]) -> tuple[str, ...]:
    # One may be part of another.
    return tuple(sorted({secret for secret in secrets if secret}, key=len, reverse=True))


def _clean(value: Any, secrets: Sequence[str]) -> Any:
    match value:
        case str():
            for secret in secrets:
                value = value.replace(secret, "***")
            return _URL_PASSWORD.sub(r"\1***\2", value)
        case dict():
            return {key: _clean(inner, secrets) for key, inner in value.items()}
        case list() | tuple():
            return [_clean(inner, secrets) for inner in value]
        case None | bool() | int() | float() | date():
            return value
        case _:
            # The renderers write anything else as its repr.
            return _clean(repr(value), secrets)
