"""`batchscore check`: everything that a run needs, looked at and left as it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import typer

from batchscore import ledger
from batchscore import settings as settings_module
from batchscore.cli.alerts import told_to
from batchscore.cli.render import Format, show
from batchscore.cli.session import Session, runs_of, told_lacking
from batchscore.database import Database
from batchscore.errors import BatchscoreError, BundleNotFound, SchemaMismatch, SourceChanged, WarehouseError
from batchscore.interval import Interval
from batchscore.job import Job
from batchscore.model.bundle import Bundle
from batchscore.model.trust import Trust
from batchscore.monitor.truth import check_labels
from batchscore.run.plan import Planned, plan
from batchscore.run.publish import refuse_shared_table
from batchscore.run.scoring import output_of
from batchscore.run.shadow import refuse_lake, refuse_shadow_table, side_of
from batchscore.settings import Settings
from batchscore.sources import read_frame
from batchscore.train.rows import check_columns
from batchscore.train.split import check_times

__all__ = ["check"]

T = TypeVar("T")

_SAMPLE_ROWS = 100


@dataclass(slots=True)
class _Findings:
    """What was looked at, one row each, and the first thing that would stop a run."""

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

    def tell(self, what: str, status: str, detail: str) -> None:
        """Tell of something that stops nothing."""
        self.rows.append({"check": what, "status": status, "detail": detail})


def check(session: Session, name: str, accept_sql: str | None, format_: Format) -> None:
    """Print each setting with its origin and each thing that the job needs, and exit as a run would.

    What only `train` needs, the features file and the labels, is looked at last: it gives the exit code where nothing
    would stop a run.
    """
    findings = _Findings()
    # What the user's own module prints is not the answer.
    with redirect_stdout(sys.stderr):
        _look(session, name, accept_sql, findings)
    show(findings.rows, format_)
    if findings.first is not None:
        raise typer.Exit(findings.first.exit_code)


def _look(session: Session, name: str, accept_sql: str | None, findings: _Findings) -> None:
    _settings(session.settings, findings)
    job = findings.look("job", lambda: session.job(name), lambda job: f"{job.problem.task}: {job.problem.objective}")
    if job is not None:
        bundle = findings.look("bundle", lambda: session.bundle(job), _told_bundle)
        if bundle is not None and (compiled := _told_compiled(job, bundle)):
            findings.tell("compiled", *compiled)
            _query(session, job, bundle, accept_sql, findings)
        planned: list[Planned] | None = None
        warehouse = findings.look("warehouse", lambda: _permitted(session, job), _told_warehouse)
        if warehouse and bundle is not None:
            findings.look("output", lambda: _output(session, job, bundle), str)
            if job.model.shadow is not None:
                findings.tell("shadow", *_shadow(session, job, bundle))
            if warehouse.lacking:
                findings.tell("plan", "unsure", "it can be told once the ledger's tables have what they lack")
            else:
                planned = findings.look("plan", lambda: _planned(session, job, bundle), partial(_told_plan, job))
        sample = _to_sample(job, planned or [])
        sampled = findings.look("source", lambda: _sampled(session, job, bundle, sample), str)
        if sampled:
            caution = session.source(job, job.source).caution
            findings.rows[-1] |= {"status": "unsure", "detail": caution} if caution else {}
        _features(session, job, bundle, findings)
        if sampled and job.training:
            findings.look("training", lambda: _training(session, job, sample), str)
        findings.tell("alerts", *told_to(session, job))
        if job.labels is None:
            findings.tell("labels", "ok", "the job has none, so it can score and cannot be trained")
        else:
            findings.look("labels", lambda: _labels(session, job), str)


def _settings(settings: Settings, findings: _Findings) -> None:
    for name, origin in settings.origins.items():
        value = getattr(settings, name)
        if name == "source_url" and value is None:
            findings.tell(name, "ok", "not set: rows are read from the warehouse")
            continue
        if name.endswith("_url") and value is not None and name not in ("registry_url", "delta_url"):
            value = Database.at(value.get_secret_value())
        if name == "verify_keys" and value is not None:
            findings.look(name, partial(Trust.of, value), partial(_told_keys, origin))
            continue
        findings.tell(name, "ok", "not set" if value is None else f"{value} (from {origin})")
    for variable in settings_module.unknown_variables():
        findings.tell(variable, "unknown", "no setting has this name, so it changes nothing")


def _told_bundle(bundle: Bundle) -> str:
    golden = f"its {bundle.golden_rows.height} golden rows score here as they did at training"
    return f"{bundle} (digest {bundle.digest[:12]}): {golden}"


def _told_compiled(job: Job, bundle: Bundle) -> tuple[str, str] | None:
    """Whether compiled trees score here, of a model that has some; nothing about that stops a run."""
    from batchscore.model.ensemble import has_trees

    if not has_trees(bundle.predictor.pipeline):
        return None
    made = ", ".join(sorted(bundle.compiled))
    if not bundle.compiled:
        return "none", f"{bundle} has no compiled trees: batchscore models compile {bundle.name} {bundle.version}"
    if bundle.predictor.compiled:
        return "ok", f"its trees are compiled for {made}, and give here what the original gives"
    if not job.model.compile:
        return "off", f"its trees are compiled for {made}, and [model] compile is false: the original scores"
    return "off", f"its trees are compiled for {made}, and the original scores here; the log of a run says why"


def _query(session: Session, job: Job, bundle: Bundle, accept_sql: str | None, findings: _Findings) -> None:
    def change() -> str:
        changed = session.query_change(job, bundle)
        if changed and accept_sql is None:
            raise SourceChanged(
                f"it is not what {bundle} was trained with. Retrain (batchscore train {job.name}), or accept it for a "
                f'run: --accept-sql "why it is the same".\n{changed}'
            )
        return changed

    changed = findings.look("query", change, lambda changed: f"as {bundle} was trained with" if not changed else "")
    if changed:
        findings.rows[-1] |= {"status": "accepted", "detail": f"{accept_sql}\n{changed}"}


def _told_keys(origin: str, trust: Trust) -> str:
    return f"{', '.join(trust.keys)} (from {origin})"


def _to_sample(job: Job, planned: Sequence[Planned]) -> Interval:
    """The interval that the next run reads first; where none is due the last one, and at worst the job's first."""
    due = [each.interval for each in planned if each.selected_by("missing")]
    if due:
        return due[0]
    return planned[-1].interval if planned else job.calendar.containing(job.start)


def _sampled(session: Session, job: Job, bundle: Bundle | None, interval: Interval) -> str:
    """Read some rows of the interval."""
    source = session.source(job, job.source)
    wanted = None if bundle is None else bundle.schema.types
    rows = read_frame(source, interval, key=job.source.key, limit=_SAMPLE_ROWS, columns=wanted)
    sample = f"{source.where}: {rows.height or 'no'} rows of {job.calendar.label(interval)} read"
    if bundle is None:
        return f"{sample}, with columns {', '.join(rows.columns)}"
    with SchemaMismatch.unquoted(source.private, source.where):
        bundle.schema.conform(rows, source.where)
    extra = bundle.schema.undeclared(rows)
    fits = "every column that the bundle needs is there" + (", with values of its type" if rows.height else "")
    return f"{sample}; {fits}" + (f"; the bundle makes no use of {', '.join(extra)}" if extra else "")


class _Permitted(NamedTuple):
    """A warehouse in which this user may do all that a run does, in words, and what its ledger lacks."""

    told: str
    lacking: str = ""


def _permitted(session: Session, job: Job) -> _Permitted:
    with session.warehouse(read_only=True, outdated=True) as warehouse:
        missing = warehouse.missing_privileges(job.output.table)
        if missing:
            raise WarehouseError(
                f"{warehouse.database}: connected, but a run needs what this user may not do: {', '.join(missing)}. "
                "Have it granted by whoever owns the warehouse."
            )
        if not warehouse.database.is_there():
            return _Permitted(f"{warehouse.database}: not there yet; the first run makes it")
        told = f"{warehouse.database}: connected, and this user may do all that a run does"
        return _Permitted(told, told_lacking(warehouse.outdated(ledger.METADATA)))


def _told_warehouse(found: _Permitted) -> str:
    if not found.lacking:
        return found.told
    return f"{found.told}. An earlier version made the ledger; the first run adds to it: {found.lacking}"


def _output(session: Session, job: Job, bundle: Bundle) -> str:
    output = output_of(job, bundle)
    with session.warehouse(read_only=True, outdated=True) as warehouse:
        with warehouse.begin("the ledger") as tx:
            if tx.has_table(ledger.RUNS.name):
                refuse_shared_table(tx, job.name, output.table)
        table = warehouse.outputs.called(output.table)
        if warehouse.check(output):
            return f"{table}: there, and its columns take the predictions"
        return f"{table}: not there yet; the first run creates it"


def _shadow(session: Session, job: Job, bundle: Bundle) -> tuple[str, str]:
    """Whether a run would be shadowed, and by what; nothing about that stops one."""
    try:
        shadow = session.challenger(job, bundle)
        side = side_of(output_of(job, bundle), job, shadow.predictor.output_types)
        with session.warehouse(read_only=True, outdated=True) as warehouse:
            refuse_lake(warehouse)
            with warehouse.begin("the ledger") as tx:
                if tx.has_table(ledger.RUNS.name):
                    refuse_shadow_table(tx, job)
            there = warehouse.check(side)
            if missing := warehouse.missing_privileges(job.shadow_table) if there else []:
                raise WarehouseError(f"{job.shadow_table}: this user lacks {', '.join(missing)}. Have it granted.")
    except BundleNotFound as error:
        return "none", str(error)
    except BatchscoreError as error:
        return "off", str(error)
    table = "there, and its columns take the predictions" if there else "not there yet; the first run creates it"
    return "ok", f"{shadow} scores beside it; {job.shadow_table}: {table}"


def _planned(session: Session, job: Job, bundle: Bundle) -> list[Planned]:
    with session.warehouse(read_only=True, outdated=True) as warehouse:
        history = runs_of(warehouse, job)
    return plan(job, history, first=None, last=None, now=session.now, digest=bundle.digest)


def _told_plan(job: Job, planned: Sequence[Planned]) -> str:
    due = sum(each.selected_by("missing") for each in planned)
    return f"{due} of {len(planned)} complete interval(s) since {job.interval.start} are due"


def _features(session: Session, job: Job, bundle: Bundle | None, findings: _Findings) -> None:
    path = session.features_path(job)
    found = findings.look("features", lambda: session.features(job), lambda _: f"{path} runs")
    if found and bundle is not None and found.source != bundle.predictor.features.source:
        told = f"{path} is not what {bundle} was trained with. Runs use the bundle's own; retrain to use the file's."
        findings.rows[-1] |= {"status": "differs", "detail": told}


def _training(session: Session, job: Job, interval: Interval) -> str:
    """Ask for the rows' columns and a row, whatever the bundle needs of them."""
    source = session.source(job, job.source)
    with SchemaMismatch.unquoted(source.private, source.where), closing(source.batches(interval, limit=1)) as batches:
        for batch in batches:
            check_columns(job, batch.columns, source.where)
            if job.training:
                check_times(job.training, batch)
    return f"{source.where}: gives the columns that training names"


def _labels(session: Session, job: Job) -> str:
    """Read a label, or none, for its columns."""
    source = session.labels(job)
    batches = list(source.batches(job.calendar.containing(job.start), limit=1))
    check_labels(job, batches[0].columns if batches else [], source.where)
    return f"{source.where}: gives the key and the target {job.problem.target}"
