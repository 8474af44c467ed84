"""`batchscore check`: everything that a run needs, looked at and left as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import typer

from batchscore import settings as settings_module
from batchscore.cli.render import Format, show
from batchscore.cli.session import Session
from batchscore.database import Database
from batchscore.errors import BatchscoreError
from batchscore.job import Job
from batchscore.model.bundle import Bundle
from batchscore.run.execute import output_of
from batchscore.settings import Settings
from batchscore.sources import read_frame

__all__ = ["check"]

T = TypeVar("T")

_SAMPLE_ROWS = 100


@dataclass(slots=True)
class _Findings:
    rows: list[dict[str, str]] = field(default_factory=list)
    first: BatchscoreError | None = None

    def look(self, what: str, call: Callable[[], T], told: Callable[[T], str]) -> T | None:
        """Do one check; a failure is kept and the others go on."""
        try:
            found = call()
        except BatchscoreError as error:
            self.rows.append({"check": what, "status": "failed", "detail": str(error)})
            self.first = self.first or error
            return None
        self.rows.append({"check": what, "status": "ok", "detail": told(found)})
        return found


def check(session: Session, name: str, format_: Format) -> None:
    """Print each setting with its origin and each thing a run of the job needs, and exit as a run would fail."""
    findings = _Findings()
    _settings(session.settings, findings)
    job = findings.look("job", lambda: session.job(name), lambda job: f"{job.problem.task}: {job.problem.objective}")
    if job is not None:
        findings.look("features", lambda: session.features(job), lambda _: f"{session.features_path(job)} runs")
        bundle = findings.look("bundle", lambda: session.bundle(job), _told_bundle)
        _source(session, job, bundle, findings)
        _warehouse(session, job, bundle, findings)
    show(findings.rows, format_)
    if findings.first is not None:
        raise typer.Exit(findings.first.exit_code)


def _settings(settings: Settings, findings: _Findings) -> None:
    for name, origin in settings.origins.items():
        value = getattr(settings, name)
        if name.endswith("_url") and value is not None and name != "registry_url":
            value = Database.at(value.get_secret_value())
        findings.rows.append({"check": name, "status": "ok", "detail": f"{value} (from {origin})"})
    for variable in settings_module.unknown_variables():
        findings.rows.append({"check": variable, "status": "unknown", "detail": "no setting has this name"})


def _told_bundle(bundle: Bundle) -> str:
    return f"{bundle}, digest {bundle.digest[:12]}, {bundle.golden_rows.height} golden rows agree"


def _source(session: Session, job: Job, bundle: Bundle | None, findings: _Findings) -> None:
    def sample() -> str:
        source = session.source(job, job.source)
        window = job.calendar.containing(job.start)
        wanted = bundle.schema.names if bundle is not None else None
        rows = read_frame(source, window, key=job.source.key, limit=_SAMPLE_ROWS, columns=wanted)
        if bundle is None or rows.is_empty():
            return f"{source.where} gives {rows.width} columns, {rows.height} sampled rows of {window}"
        bundle.schema.conform(rows, source.where)
        extra = bundle.schema.undeclared(rows)
        return f"{source.where}: {rows.height} sampled rows of {window} conform" + (
            f"; ignored: {extra}" if extra else ""
        )

    findings.look("source", sample, str)
    if bundle is not None:
        change = findings.look(
            "query", lambda: session.query_change(job, bundle), lambda c: "as trained" if not c else ""
        )
        if change:
            findings.rows[-1] |= {"status": "changed", "detail": f"retrain, or score with --accept-sql:\n{change}"}


def _warehouse(session: Session, job: Job, bundle: Bundle | None, findings: _Findings) -> None:
    def look() -> str:
        with session.warehouse(read_only=True) as warehouse:
            missing = warehouse.missing_privileges(job.output.table)
            if missing:
                return f"{warehouse.database}: connected; missing: {', '.join(missing)}"
            if bundle is None:
                return f"{warehouse.database}: connected, privileges are there"
            exists = warehouse.check(output_of(job, bundle))
            table = f"{job.output.table} takes the predictions" if exists else f"{job.output.table} will be created"
            return f"{warehouse.database}: connected, privileges are there; {table}"

    told = findings.look("warehouse", look, str)
    if told and "missing:" in told:
        findings.rows[-1]["status"] = "failed"
