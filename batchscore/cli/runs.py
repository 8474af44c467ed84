"""`batchscore runs`."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from batchscore import ledger
from batchscore.cli.drift import SPARE, drawn, watch
from batchscore.cli.render import Cell, Format, instant, print_json, show
from batchscore.cli.session import Session, history_of, runs_of
from batchscore.cli.spark import Past
from batchscore.database import Database
from batchscore.errors import BatchscoreError, BundleCorrupt, UsageError
from batchscore.interval import Calendar, Interval, age_of
from batchscore.job import Job, read_job
from batchscore.ledger import Owner, Run, Totals
from batchscore.logs import Event, log
from batchscore.model.bundle import Bundle
from batchscore.person import person
from batchscore.run.lease import leased
from batchscore.run.prune import prune as prune_warehouse
from batchscore.run.prune import would_prune
from batchscore.run.publish import clear_up, publish
from batchscore.run.scoring import output_of
from batchscore.run.sending import settle
from batchscore.run.shadow import side_of
from batchscore.warehouse import Output, Warehouse

__all__ = ["list_", "prune", "publish_run", "show_rejects", "show_run"]

_REJECTS_SHOWN = 20
# As many characters as a person tells runs apart by; any beginning that only one run has will do.
_SHORT_ID = 8
_LEFT_OUT = ("role", "p_value", "importance", "row_count", "reference_count")


def list_(session: Session, job: str | None, limit: int, format_: Format) -> None:
    """Print the latest runs; the table leaves out what is rarely asked for."""
    if job is not None:
        session.job(job)
    with session.warehouse(read_only=True) as warehouse:
        history = history_of(warehouse, job, limit)
    calendars = _calendars(session, {run.job for run in history})
    rows = [_row(run) if format_ == "json" else _brief(run, calendars.get(run.job)) for run in history]
    show(rows, format_, empty="no run yet")


def _calendars(session: Session, jobs: Iterable[str]) -> dict[str, Calendar]:
    """The calendars of those jobs whose file is here and can be read."""
    found = {}
    for name in jobs:
        with contextlib.suppress(UsageError):
            found[name] = read_job(name, session.settings.jobs_dir).calendar
    return found


def show_run(session: Session, prefix: str, format_: Format) -> None:
    """Print one run: its counts, its error, its rejects, what it saw, and what of that moved.

    Raises:
        UsageError: No run, or several, begin so.
    """
    with session.warehouse(read_only=True) as warehouse, warehouse.begin("the ledger") as tx:
        run = _only(ledger.find(tx.connection, prefix) if tx.has_table(ledger.RUNS.name) else [], prefix)
        committed = ledger.totals_of(tx.connection, run.run_id)
        kept = ledger.rejects_kept(tx.connection, run.run_id)
        rejects = _readable(ledger.rejects_of(tx.connection, run.run_id, _REJECTS_SHOWN))
        profiles = ledger.profiles_of(tx.connection, run.run_id)
        drift = ledger.drift_of(tx.connection, run.run_id)
        past = Past.of(tx.connection, run)
    moved = [
        _without(row, "run_id") | {"history": past(row["reference"], row["role"], row["column_name"], row["metric"])}
        for row in drift
        if row["verdict"] == "moved"
    ]
    if format_ == "json":
        columns = [_without(row, "run_id", "profile") for row in profiles]
        print_json(
            {
                "run": _row(run),
                "error": run.error,
                "rejects_kept": kept,
                "rejects": rejects,
                "columns": columns,
                "moved": moved,
            }
        )
        return
    facts = _facts(run, committed, kept)
    show([{"what": what, "value": value} for what, value in facts.items()])
    if run.error:
        passed_over = "passed over: " if run.override_reason is not None else ""
        print(f"\n{passed_over}{run.error}")
    if rejects:
        first = f"the first {len(rejects)} of {kept:,}" if kept > len(rejects) else f"{kept}, all of them"
        print()
        show(rejects, title=f"rejects: {first}")
    if run.rows_read is not None:
        print()
        show([_told_column(row) for row in profiles], title="what it saw", empty="its profile is gone")
        print()
        told = [drawn(row, _LEFT_OUT) for row in moved]
        show(told, title="what moved", empty=_told_steady(drift), spare=(*SPARE, "told", "role"))


def show_rejects(session: Session, name: str, start: str, limit: int | None, format_: Format) -> None:
    """Print the rows of an interval that its last run could not score, published or not."""
    job = session.job(name)
    interval = job.calendar.at(start)
    with session.warehouse(read_only=True) as warehouse:
        runs = [run for run in runs_of(warehouse, job) if run.interval == interval and run.status != "superseded"]
        runs.sort(key=lambda run: run.scored_at)
        with warehouse.begin("the ledger") as tx:
            found = _readable(ledger.rejects_of(tx.connection, runs[-1].run_id, limit)) if runs else []
    empty = f"run {runs[-1].run_id[:_SHORT_ID]} of {start} has no rejects" if runs else f"{start} was never scored"
    title = f"run {runs[-1].run_id[:_SHORT_ID]}, {runs[-1].status}" if runs else ""
    show(found, format_, title=title, empty=empty)


def _readable(rejects: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rejects with their keys as they are at the source: the ledger has them in ASCII, which every database holds."""
    return [dict(row) | {"row_key": json.dumps(json.loads(row["row_key"]), ensure_ascii=False)} for row in rejects]


def publish_run(session: Session, prefix: str, reason: str, *, override: bool) -> str:
    """Publish a held run past its gates, and say so.

    Raises:
        UsageError: `override` is not said, the reason is empty, or the run is not held or not for the job's table.
        IntervalLeased: Another process works on its interval.
        WarehouseError: There is no such file.
    """
    if not override:
        raise UsageError("a gate holds the run. To publish it all the same, say --override.")
    if not reason.strip():
        raise UsageError("--reason is empty, and the ledger keeps why a run is right. Say it.")
    with _there(session) as warehouse:
        patience = session.patience()
        run = patience.persist(lambda: _held(warehouse, prefix))
        job = session.job(run.job)
        if patience.persist(lambda: _full_name(warehouse, job)) != run.output_table:
            raise UsageError(
                f"run {run.run_id} was scored for {run.output_table}, and job {job.name} has table = "
                f"{job.output.table!r} now. Name the old table in [output], or score the interval again."
            )
        bundle = session.load(run.model_name, run.model_version)
        if bundle.digest != run.bundle_digest:
            raise BundleCorrupt(f"{bundle} is not the bundle that scored run {run.run_id}. Score the interval again.")
        bundle = bundle.without_values(job.source.private)
        watcher = session.watcher(job, bundle)
        held = replace(run, override_reason=reason, override_by=person())
        done = patience.persist(lambda: _override(session, warehouse, held, bundle, job))
        log.warning(Event.RUN_OVERRIDDEN, run_id=run.run_id, reason=reason, by=held.override_by, gates=run.error)
        watch(warehouse, watcher, done)
    return f"run {run.run_id[:_SHORT_ID]} is published: {done.predictions:,} predictions, past: {run.error}"


def _override(session: Session, warehouse: Warehouse, held: Run, bundle: Bundle, job: Job) -> Run:
    begun, lease_seconds = time.monotonic(), session.settings.lease_seconds
    with leased(warehouse, held.job, held.interval, Owner.here(), lease_seconds) as lease:
        settle(warehouse, held.job, held.output_table, lease)
        # Another process may have taken it up before this one had the lease; and a commit that nobody answered may
        # have been this one's own.
        now = _found(warehouse, held.run_id)
        ours = (held.override_reason, held.override_by)
        output = _outputs(session, job, bundle, held)
        if now.status == "published" and (now.override_reason, now.override_by) == ours:
            clear_up(warehouse, output, [now])
            return now
        _refuse_not_held(now)
        if (now.error, now.input_hash, now.rows_read) != (held.error, held.input_hash, held.rows_read):
            raise UsageError(
                f"run {held.run_id} was scored again since this command looked, and is held for: {now.error}. Look at "
                "it with batchscore runs show, and decide again."
            )
        return publish(warehouse, output, held, lease, bundle, job, begun=begun)


def _outputs(session: Session, job: Job, bundle: Bundle, run: Run) -> Output:
    """The output table, with the side table where the run has a shadow that the registry still knows."""
    output = output_of(job, bundle)
    if run.shadow_version is None:
        return output
    try:
        shadow = session.registry.manifest(run.model_name, run.shadow_version)
    except BatchscoreError as error:
        log.warning(Event.SHADOW_OFF, shadow=f"{run.model_name} version {run.shadow_version}", error=str(error))
        return output
    return replace(output, side=side_of(output, job, shadow.output_types))


def _full_name(warehouse: Warehouse, job: Job) -> str:
    with warehouse.begin("the output table") as tx:
        return tx.full_name(job.output.table)


def _held(warehouse: Warehouse, prefix: str) -> Run:
    run = _found(warehouse, prefix)
    _refuse_not_held(run)
    return run


def _found(warehouse: Warehouse, prefix: str) -> Run:
    with warehouse.begin("the ledger") as tx:
        return _only(ledger.find(tx.connection, prefix) if tx.has_table(ledger.RUNS.name) else [], prefix)


def _refuse_not_held(run: Run) -> None:
    if run.status != "held":
        raise UsageError(f"run {run.run_id} is {run.status}, and only a held one can be published so.")


def prune(session: Session, age: str, *, dry_run: bool) -> str:
    """Remove what is older than an age and serves nobody, and say what.

    Raises:
        UsageError: The age cannot be read.
        WarehouseError: There is no such file.
    """
    try:
        before = session.now - age_of(age, "--older-than")
    except OverflowError:
        raise UsageError(f"--older-than {age!r} is before all calendars. Write less: 90d.") from None
    with _there(session, read_only=dry_run) as warehouse:
        if dry_run:
            pruned = session.patience().persist(lambda: would_prune(warehouse, before))
        else:
            lease_seconds = session.settings.lease_seconds
            pruned = prune_warehouse(warehouse, before, lease_seconds=lease_seconds, patience=session.patience())
    log.info(Event.RUNS_PRUNED, dry_run=dry_run, before=before.isoformat(), **asdict(pruned))
    removed = "would remove" if dry_run else "removed"
    return (
        f"{removed}: {pruned.superseded_runs} superseded run(s), {pruned.stages} stage(s), {pruned.rejects} reject(s); "
        f"{pruned.abandoned_runs} unfinished run(s) begin anew"
    )


def _there(session: Session, *, read_only: bool = False) -> Warehouse:
    """The warehouse; of an embedded one the file must be there, for a new one would hold nothing to work on."""
    Database.at(session.settings.warehouse()).existing_file()
    return session.warehouse(read_only=read_only)


def _only(found: Sequence[Run], prefix: str) -> Run:
    match found:
        case [run]:
            return run
        case []:
            raise UsageError(f"no run's id begins with {prefix!r}. See: batchscore runs list.")
        case _:
            listed = ", ".join(run.run_id for run in found)
            raise UsageError(f"the ids of {len(found)} runs or more begin with {prefix!r}: {listed}. Give more of it.")


def _row(run: Run) -> dict[str, Cell]:
    return {
        "run_id": run.run_id,
        "job": run.job,
        "interval_start": run.interval.start,
        "interval_end": run.interval.end,
        "status": run.status,
        "model": f"{run.model_name} {run.model_version}",
        "rows_read": run.rows_read,
        "predictions": run.predictions,
        "rejects": run.rejects,
        "chunks": run.chunks,
        "shadow_version": run.shadow_version,
        "shadow_predictions": run.shadow_predictions,
        "scored_at": run.scored_at,
        "published_at": run.published_at,
        "sql_accepted": run.sql_accepted,
        "override_reason": run.override_reason,
        "override_by": run.override_by,
        "output_table": run.output_table,
        "error": run.error,
    }


def _brief(run: Run, calendar: Calendar | None) -> dict[str, Cell]:
    interval = _span(run.interval)
    # By the name that commands take, where the job still cuts time so.
    if calendar is not None and calendar.containing(run.interval.start) == run.interval:
        interval = calendar.label(run.interval)
    return {
        "run": run.run_id[:_SHORT_ID],
        "job": run.job,
        "interval": interval,
        # The ledger calls it superseded too, as one whose predictions were replaced.
        "status": "overtaken" if run.status == "superseded" and run.published_at is None else run.status,
        "model": f"{run.model_name} {run.model_version}",
        "predictions": run.predictions,
        "rejects": run.rejects,
    }


def _facts(run: Run, committed: Totals, rejects_kept: int) -> dict[str, Cell]:
    facts: dict[str, Cell] = {
        "run": run.run_id,
        "job": run.job,
        "interval": _span(run.interval),
        "status": run.status,
        "model": f"{run.model_name} {run.model_version}",
        "output table": run.output_table,
        "scored at": run.scored_at,
    }
    if run.published_at is not None:
        facts |= {"published at": run.published_at, "rows read": f"{run.rows_read:,}"}
        facts |= {"predictions": f"{run.predictions:,}", "rejects": f"{run.rejects:,}", "chunks": f"{run.chunks:,}"}
    elif run.status == "superseded":
        facts["published"] = "nothing: another run of its interval was published instead"
    elif run.status == "held":
        facts |= {"published": "nothing: a gate holds it", "rows read": f"{run.rows_read:,}"}
        facts |= {"predictions": f"{run.predictions:,}", "rejects": f"{run.rejects:,}", "chunks": f"{run.chunks:,}"}
    elif committed.chunks:
        rows = f"{committed.rows_read:,} rows in {committed.chunks:,} chunk(s)"
        facts |= {"published": "nothing", "committed": f"{rows}; the next attempt goes on behind them"}
    else:
        facts |= {"published": "nothing", "committed": "nothing; the next attempt starts from the first row"}
    if run.shadow_version is not None:
        rows = "" if run.shadow_predictions is None else f", {run.shadow_predictions:,} predictions"
        facts["shadow"] = f"{run.model_name} {run.shadow_version}{rows}"
    if run.override_reason is not None:
        facts |= {"override reason": run.override_reason, "override by": run.override_by}
    if run.status not in ("held", "published", "superseded") and rejects_kept:
        facts["rejects"] = f"{rejects_kept:,}"
    if run.sql_accepted is not None:
        facts["query accepted"] = run.sql_accepted
    return facts


def _told_column(row: Mapping[str, Any]) -> dict[str, Cell]:
    """A row of `batchscore_profiles` in the units that its column has."""
    told = _without(row, "run_id", "profile")
    for name in ("mean", "std", "minimum", "maximum"):
        value = told[name]
        if value is None:
            continue
        if row["kind"] == "text":
            told[name] = f"{value:.4g} characters"
        elif row["kind"] == "datetime":
            length = timedelta(microseconds=value)
            told[name] = _length(length) if name == "std" else datetime(1970, 1, 1, tzinfo=UTC) + length
    return told


def _told_steady(drift: Sequence[Mapping[str, Any]]) -> str:
    if not drift:
        return "not compared with training"
    steady = any(row["verdict"] == "steady" for row in drift)
    return "nothing moved against training" if steady else "not enough data to compare with training"


def _span(interval: Interval) -> str:
    """An interval in UTC: `2013-10-01 04:00Z +1d`."""
    return f"{instant(interval.start)} +{_length(interval.end - interval.start)}"


def _length(length: timedelta) -> str:
    """A length of time in the largest unit that it is a whole number of, or else to the tenth of an hour."""
    hours = length / timedelta(hours=1)
    if hours >= 24 and hours % 24 == 0:
        return f"{hours / 24:.0f}d"
    return f"{hours:.1f}h".replace(".0h", "h")


def _without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}
