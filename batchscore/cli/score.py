"""`batchscore plan`, `score` and `backfill`."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from batchscore import ledger
from batchscore.cli.render import Cell, Format, intervals_progress, on_terminal, say, show
from batchscore.cli.session import Session, history_of
from batchscore.errors import BatchscoreError, BundleNotFound, InputError
from batchscore.job import Job
from batchscore.ledger import Run
from batchscore.logs import Event, log
from batchscore.model.bundle import Bundle
from batchscore.monitor.watch import record_drift
from batchscore.run.execute import Scoring, score_interval
from batchscore.run.plan import Only, Planned, plan
from batchscore.warehouse import Warehouse

__all__ = ["backfill", "score", "show_plan"]

Failure = tuple[Planned, BatchscoreError]


def show_plan(session: Session, name: str, first: str | None, last: str | None, only: Only, format_: Format) -> None:
    """Print the intervals that `only` selects; writes nothing."""
    job = session.job(name)
    try:
        manifest = session.registry.manifest(job.model.name, session.registry.resolve(job.model.name, job.model.use))
        scorer, digest = f"{manifest.name} version {manifest.version}", manifest.digest
    except BundleNotFound as error:
        typer.echo(str(error), err=True)
        scorer, digest = None, None
    with session.warehouse(read_only=True) as warehouse:
        planned = _plan(session, job, history_of(warehouse, name), digest, first, last)
    rows: list[dict[str, Cell]] = [
        {
            "interval": job.calendar.label(each.interval),
            "state": each.state,
            "start": each.interval.start,
            "end": each.interval.end,
            "rows": each.run.rows_read if each.run else None,
            "would_score": scorer,
            "why": each.why,
        }
        for each in planned
        if each.selected_by(only)
    ]
    show(rows, format_, empty=f"nothing to do: {len(planned)} complete interval(s), none of them {only}")


def score(session: Session, name: str, interval: str | None, chunk_rows: int | None, accept_sql: str | None) -> str:
    """Score one interval, or what is due, oldest first, up to the job's `catch_up`.

    An interval whose rows break the contract does not stop those behind it; anything else would stop them too.

    Returns:
        What was done, in words.
    """
    job = session.job(name)
    bundle = session.bundle(job)
    with session.warehouse() as warehouse:
        history = history_of(warehouse, name)
        wanted = job.calendar.at(interval) if interval else None
        due = [
            each
            for each in _plan(session, job, history, bundle.digest, None, None)
            if each.selected_by("missing") and wanted in (None, each.interval)
        ]
        chosen = due if interval else due[: job.interval.catch_up]
        _watch_again(warehouse, bundle, job)
        if not chosen:
            return _nothing_due(session, job, interval)
        scoring = session.scoring(job, bundle, warehouse, accept_sql, chunk_rows)
        told, failures = _score_all(scoring, chosen, history, go_on_past=InputError)
    if left := due[len(chosen) :]:
        log.warning(Event.INTERVALS_LEFT, left=len(left), catch_up=job.interval.catch_up)
        told += (
            f"\n{len(left)} more interval(s) are due; catch_up is {job.interval.catch_up}. Run again, or: batchscore "
            f"backfill {name} --from {job.calendar.label(left[0].interval)} --to <date>"
        )
    return _told(job, told, failures, len(chosen))


def backfill(
    session: Session,
    name: str,
    window: tuple[str, str],
    only: Only,
    chunk_rows: int | None,
    accept_sql: str | None,
) -> str:
    """Score a window's intervals; a failed one does not stop the others, and the worst gives the exit code.

    Returns:
        What was done, in words.
    """
    job = session.job(name)
    bundle = session.bundle(job)
    with session.warehouse() as warehouse:
        history = history_of(warehouse, name)
        planned = _plan(session, job, history, bundle.digest, *window)
        chosen = [each for each in planned if each.selected_by(only)]
        _watch_again(warehouse, bundle, job)
        if not chosen:
            log.info(Event.NOTHING_DUE, job=name, intervals=len(planned), only=only)
            return f"nothing to do: {len(planned)} complete interval(s) in the window, none of them {only}"
        scoring = session.scoring(job, bundle, warehouse, accept_sql, chunk_rows)
        told, failures = _score_all(scoring, chosen, history, go_on_past=BatchscoreError)
    return _told(job, told, failures, len(chosen))


def _plan(
    session: Session, job: Job, history: Sequence[Run], digest: str | None, first: str | None, last: str | None
) -> list[Planned]:
    begin, end = job.calendar.window(first, last)
    return plan(job, history, first=begin, last=end, now=session.now, digest=digest)


def _nothing_due(session: Session, job: Job, interval: str | None) -> str:
    log.info(Event.NOTHING_DUE, job=job.name, interval=interval)
    asked = job.calendar.at(interval) if interval else None
    if asked is None:
        why = f"every complete interval of {job.name} is published"
    elif asked.end > session.now:
        why = f"{interval} ends at {asked.end:%Y-%m-%d %H:%M}Z, and is scored when it has ended"
    elif asked.start < job.start:
        why = f"{interval} is before the job's start, {job.interval.start}"
    else:
        label = job.calendar.label
        again = f"--from {label(asked)} --to {label(job.calendar.containing(asked.end))} --only all"
        why = f"{interval} is published. To score it again: batchscore backfill {job.name} {again}"
    return f"nothing to do: {why}"


def _score_all(
    scoring: Scoring, chosen: Sequence[Planned], history: Sequence[Run], *, go_on_past: type[BatchscoreError]
) -> tuple[str, list[Failure]]:
    """Score the intervals in turn and compare each with training.

    Returns:
        What was done, in words; and what failed and why. A bug is no such failure: it flies.
    """
    failures: list[Failure] = []
    done = 0
    rows = rejects = 0
    with intervals_progress(len(chosen), scoring.job.name) as (next_interval, more_rows):
        for each in chosen:
            next_interval(scoring.job.calendar.label(each.interval))
            try:
                run = score_interval(scoring, each.interval, history, more_rows)
            except BatchscoreError as error:
                failures.append((each, error))
                if not isinstance(error, go_on_past):
                    break
                continue
            done += 1
            rows, rejects = rows + (run.predictions or 0), rejects + (run.rejects or 0)
            _watch(scoring.warehouse, scoring.bundle, run)
    told = f"{done} interval(s) published into {scoring.output.table}: {rows:,} predictions, {rejects:,} rejects"
    return told, failures


def _told(job: Job, told: str, failures: Sequence[Failure], tried: int) -> str:
    """What was done, in words.

    Raises:
        BatchscoreError: The failure whose exit code tells most, after all of them were shown.
    """
    if not failures:
        return told
    if on_terminal() and tried > 1:
        rows = [{"interval": job.calendar.label(each.interval), "error": str(error)} for each, error in failures]
        show(rows, Format.table, title=f"{len(failures)} of {tried} interval(s) failed")
        say(told)
    raise max((error for _, error in failures), key=lambda error: (not error.retryable, error.exit_code))


def _watch_again(warehouse: Warehouse, bundle: Bundle, job: Job) -> None:
    """Compare with training what a process published and did not live to compare."""
    with warehouse.begin("the drift of earlier runs") as tx:
        known = all(tx.has_table(table.name) for table in (ledger.RUNS, ledger.DRIFT))
        runs = ledger.runs_without_drift(tx.connection, job.name, bundle.digest) if known else []
    for run in runs:
        _watch(warehouse, bundle, run)


def _watch(warehouse: Warehouse, bundle: Bundle, run: Run) -> None:
    """Compare the run with training. The predictions are published: failing here is told and stops nothing."""
    try:
        with warehouse.begin("the drift of a run") as tx:
            record_drift(tx.connection, bundle, run)
    except BatchscoreError as error:
        log.error(Event.MONITORING_FAILED, run_id=run.run_id, error=str(error))
