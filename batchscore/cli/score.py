"""`batchscore migrate`, `plan`, `score` and `backfill`."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import typer

from batchscore import ledger
from batchscore.cli.alerts import alerting
from batchscore.cli.drift import watch
from batchscore.cli.elsewhere import crew_of, refuse_alone
from batchscore.cli.render import Cell, Format, intervals_progress, on_terminal, say, show
from batchscore.cli.session import Session, runs_of
from batchscore.errors import (
    BUG_EXIT_CODE,
    BatchscoreError,
    BundleNotFound,
    IntervalLeased,
    Terminated,
    TransientError,
    UsageError,
)
from batchscore.job import Job
from batchscore.ledger import Run, Standing
from batchscore.logs import Event, log, redacted
from batchscore.model.bundle import Bundle
from batchscore.model.registry import Verified
from batchscore.monitor import metrics
from batchscore.monitor.findings import window_of
from batchscore.monitor.harmless import harmless
from batchscore.monitor.lineage import Lineage
from batchscore.monitor.watch import Watcher
from batchscore.run.again import has_changed
from batchscore.run.crew import at_work
from batchscore.run.execute import score_interval
from batchscore.run.plan import Only, Planned, plan
from batchscore.run.scoring import Backend, Scoring, make_tables
from batchscore.run.workers import in_turn
from batchscore.settings import PREFIX, Settings
from batchscore.sources.begun import Begun, begun
from batchscore.warehouse import Warehouse

__all__ = ["Asked", "backfill", "migrate", "score", "show_plan"]

Failure = tuple[Planned, BatchscoreError]
R = TypeVar("R")


def migrate(session: Session, name: str) -> str:
    """Make the tables that the job needs, so that whoever scores need not own them; those that are there are checked.

    Those of the ledger get the columns that they lack, as for any command that writes: see `Session.warehouse`.

    Returns:
        What is there now, in words.
    """
    job = session.job(name)
    bundle = session.bundle(job)
    # The side table is there before the first challenger is, who will answer as the bundle does.
    shadow = None if job.model.shadow is None else session.shadow(job, bundle) or bundle
    with session.warehouse() as warehouse:
        made = session.patience().persist(lambda: make_tables(job, bundle, warehouse, shadow))
    side = made.output.side.table if made.output.side else None
    log.info(
        Event.TABLES_READY,
        output_table=made.table,
        shadow_table=side,
        ledger_tables=len(ledger.METADATA.tables),
    )
    both = f"{made.table}, {side}" if side else made.table
    return f"{both} and the ledger's {len(ledger.METADATA.tables)} tables are there"


def show_plan(session: Session, name: str, first: str | None, last: str | None, only: Only, format_: Format) -> None:
    """Print the intervals that `only` selects; writes nothing. For `changed-input` published rows are read again.

    Raises:
        BatchscoreError: Some could not be read again; the others are printed before.
    """
    job = session.job(name)
    try:
        manifest = session.registry.manifest(job.model.name, session.registry.resolve(job.model.name, job.model.use))
        scorer, digest = f"{manifest.name} version {manifest.version}", manifest.digest
    except BundleNotFound as error:
        typer.echo(redacted(str(error)), err=True)
        scorer, digest = None, None
    outcome = _Outcome()
    with session.warehouse(read_only=True) as warehouse:
        history = session.patience().persist(lambda: runs_of(warehouse, job))
        planned = _plan(session, job, history, digest, first, last)
        if only == "changed-input" and digest is not None:
            planned = _with_changes(session, job, session.bundle(job), planned, outcome)
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
        if each.selected_by(only) or each.state == "unread"
    ]
    show(rows, format_, empty=f"nothing to do: {_nothing_in_window(job, planned, first, last, only)}")
    _told(job, "", outcome, format_)


@dataclass(slots=True)
class _Outcome:
    """What became of the intervals of one command.

    Attributes:
        published: Runs, and how many metrics moved in each.
        failures: What failed, or could not be read again, and why.
        elsewhere: How many another process had, which has published them by now.
        untried: How many were left when a database was gone for good.
        job: The job, once its file was read.
        standing: How the job stands in the ledger, once the command has come to its end.
    """

    published: list[tuple[Run, int]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    elsewhere: int = 0
    untried: int = 0
    job: Job | None = None
    standing: Standing | None = None

    @property
    def intervals(self) -> int:
        """How many there were."""
        return len(self.published) + len(self.failures) + self.elsewhere + self.untried

    @property
    def predictions(self) -> int:
        """Rows published."""
        return sum(run.predictions or 0 for run, _ in self.published)

    @property
    def rejects(self) -> int:
        """Rows of published intervals that could not be scored."""
        return sum(run.rejects or 0 for run, _ in self.published)

    def figures(self, exit_code: int, seconds: float) -> metrics.Figures:
        """What a metric is made of."""
        intervals = {
            "published": len(self.published),
            "failed": len(self.failures),
            "elsewhere": self.elsewhere,
            "untried": self.untried,
        }
        return metrics.Figures(exit_code, seconds, intervals, self.job, self.standing)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a command was asked about how to score.

    Attributes:
        chunk_rows: Rows a chunk; the job's own number when None.
        accept_sql: Why another query than the bundle's may run.
        workers: How many score at a time: intervals, and where there are fewer, the shards that each is cut into.
        backend: Whether workers are threads, or else whose processes.
        part: "i/n": of the window's intervals, counted from 0, the i-th and every n-th behind it.
    """

    chunk_rows: int | None = None
    accept_sql: str | None = None
    workers: int = 1
    part: str = "0/1"
    backend: Backend = "threading"

    def at_once(self, intervals: int) -> int:
        """How many of so many intervals are scored at a time.

        With loky it is one: there is one pool of its processes, and an error in one interval would end the others' too.
        """
        return 1 if self.backend == "loky" else min(self.workers, intervals)

    def shards(self, intervals: int) -> int:
        """Into how many parts each of so many intervals is cut."""
        return self.workers // self.at_once(intervals)

    def of(self, planned: Sequence[Planned]) -> Sequence[Planned]:
        """The part of a window's intervals; which ones does not depend on what became of any.

        Raises:
            UsageError: `part` is none.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", self.part)
        if not match or int(match[1]) >= int(match[2]):
            raise UsageError(f"--part {self.part!r} is none. Write 0/8 for the first of eight, and 7/8 for the last.")
        return planned[int(match[1]) :: int(match[2])]


def score(session: Session, name: str, interval: str | None, asked: Asked, *, force: bool = False) -> str:
    """Score one interval, or what is due, oldest first, up to the job's `catch_up`; then what `lookback` finds changed.

    A failed interval does not stop the others, unless a database is gone for good; see `_score_all`.

    Returns:
        What was done, in words.
    """
    with _measured(session, name) as outcome:
        return _score(session, name, interval, asked, outcome, force=force)


def _score(session: Session, name: str, interval: str | None, asked: Asked, outcome: _Outcome, *, force: bool) -> str:
    job = outcome.job = session.job(name)
    if force and not interval:
        raise UsageError("--force scores one interval again: name it with --interval.")
    refuse_alone(session.settings, asked.backend)
    found = session.verified(job)
    with _opened(session, job, outcome) as warehouse, alerting(session, warehouse, job):
        session.settle(warehouse, job)
        history = session.patience().persist(lambda: runs_of(warehouse, job))
        planned = _plan(session, job, history, found.manifest.digest, None, None)
        if interval:
            wanted = job.calendar.at(interval)
            only: Only = "all" if force else "missing"
            chosen = due = [each for each in planned if each.interval == wanted and each.selected_by(only)]
        else:
            due = [each for each in planned if each.selected_by("missing")]
            chosen = _first_due(due, job.interval.catch_up)
        with _reading(session, job, found, asked, chosen) as reading:
            bundle = session.bundle(job, found)
            if not interval:
                chosen = chosen + _changed_lately(session, job, bundle, planned, outcome)
            if not _score_chosen(session, job, bundle, warehouse, asked, reading, chosen, history, outcome):
                why = _nothing_due(session, job, planned, interval)
                log.info(Event.NOTHING_DUE, job=name, interval=interval, why=why)
                return f"nothing to do: {why}"
    told = _words(job, outcome)
    if left := [each for each in due if each not in chosen]:
        log.warning(Event.INTERVALS_LEFT, left=len(left), catch_up=job.interval.catch_up)
        told += (
            f"\n{len(left)} more interval(s) are due; catch_up is {job.interval.catch_up}. Run again, or: batchscore "
            f"backfill {name} {window_of([each.interval for each in left], job.calendar)}"
        )
    return _told(job, told, outcome)


def backfill(session: Session, name: str, window: tuple[str, str], only: Only, asked: Asked) -> str:
    """Score a window's intervals; as in `score`, a failed one does not stop the others.

    Returns:
        What was done, in words.
    """
    with _measured(session, name) as outcome:
        return _backfill(session, name, window, only, asked, outcome)


def _backfill(session: Session, name: str, window: tuple[str, str], only: Only, asked: Asked, outcome: _Outcome) -> str:
    job = outcome.job = session.job(name)
    refuse_alone(session.settings, asked.backend)
    found = session.verified(job)
    with _opened(session, job, outcome) as warehouse, alerting(session, warehouse, job):
        session.settle(warehouse, job)
        history = session.patience().persist(lambda: runs_of(warehouse, job))
        planned = asked.of(_plan(session, job, history, found.manifest.digest, *window))
        chosen = [each for each in planned if each.selected_by(only)]
        with _reading(session, job, found, asked, chosen) as reading:
            bundle = session.bundle(job, found)
            if only == "changed-input":
                planned = _with_changes(session, job, bundle, planned, outcome)
                chosen = [each for each in planned if each.selected_by(only)]
            if not _score_chosen(session, job, bundle, warehouse, asked, reading, chosen, history, outcome):
                why = _nothing_in_window(job, planned, *window, only)
                log.info(Event.NOTHING_DUE, job=name, intervals=len(planned), only=only, why=why)
                return f"nothing to do: {why}"
    told = _words(job, outcome)
    if job.calendar.parse(window[0]) < job.start:
        told += f"\nwhat of the window is before the job's start, {job.interval.start}, was left out"
    return _told(job, told, outcome)


@contextmanager
def _measured(session: Session, name: str) -> Iterator[_Outcome]:
    """A block that fills in an outcome; however it ends, its metrics go where the settings ask for them.

    Raises:
        UsageError: They do, and the package that makes metrics is not installed.
    """
    outcome, code, settings = _Outcome(), BUG_EXIT_CODE, session.settings
    places = {"PUSHGATEWAY_URL": settings.pushgateway_url, "METRICS_DIR": settings.metrics_dir}
    asking = [setting for setting, value in places.items() if value is not None]
    for setting in asking:
        metrics.require_client(f"{PREFIX}{setting}")
    started = time.perf_counter()
    try:
        yield outcome
        code = 0
    except (BatchscoreError, Terminated) as error:
        code = error.exit_code
        raise
    finally:
        if asking:
            with harmless():
                _give_metrics(settings, name, outcome.figures(code, time.perf_counter() - started))


def _give_metrics(settings: Settings, name: str, figures: metrics.Figures) -> None:
    registry = metrics.metrics_of(name, figures)
    if settings.pushgateway_url is not None:
        metrics.push(settings.pushgateway_url.get_secret_value(), name, registry)
    # What no job can be called may lead out of the folder.
    if settings.metrics_dir is not None and re.fullmatch(r"[a-z0-9_]{1,48}", name):
        metrics.write(settings.metrics_dir, name, registry)


@contextmanager
def _opened(session: Session, job: Job, outcome: _Outcome) -> Iterator[Warehouse]:
    """The warehouse; what its ledger says of the job in the end is asked once more where metrics are made of it."""
    with session.warehouse() as warehouse:
        yield warehouse
        if session.settings.pushgateway_url is None and session.settings.metrics_dir is None:
            return
        with harmless(), warehouse.begin("the standing of the job") as tx:
            if all(tx.has_table(table.name) for table in (ledger.RUNS, ledger.DRIFT, ledger.PERFORMANCE)):
                outcome.standing = ledger.standing(tx.connection, job.name)


@contextmanager
def _reading(
    session: Session, job: Job, found: Verified, asked: Asked, chosen: Sequence[Planned]
) -> Iterator[tuple[int, Begun | None]]:
    """How many rows make a chunk; and the reading of the first interval, which goes on while the bundle is loaded."""
    chunk_rows = asked.chunk_rows or session.chunk_rows(job, found.schema, asked.workers)
    if not chosen or asked.backend != "threading" or asked.shards(len(chosen)) > 1:
        yield chunk_rows, None
        return
    session.accepted_change(job, found, asked.accept_sql)
    source, first = session.source(job, job.source), chosen[0].interval
    with begun(source, first, schema=found.schema, key=found.manifest.key, chunk_rows=chunk_rows) as reading:
        yield chunk_rows, reading


def _score_chosen(
    session: Session,
    job: Job,
    bundle: Bundle,
    warehouse: Warehouse,
    asked: Asked,
    reading: tuple[int, Begun | None],
    chosen: Sequence[Planned],
    history: Sequence[Run],
    outcome: _Outcome,
) -> bool:
    """Score what was chosen, and compare what was not compared; whether anything was to be done, or failed before."""
    watcher = session.watcher(job, bundle)
    _watch_again(warehouse, watcher)
    if chosen:
        shards = asked.shards(len(chosen))
        scoring = session.scoring(job, bundle, warehouse, asked.accept_sql, *reading, shards)
        scoring = replace(scoring, crew=crew_of(session, scoring, asked.workers, asked.backend))
        with at_work(scoring.crew):
            _score_all(scoring, watcher, chosen, history, outcome, asked.at_once(len(chosen)))
    return bool(chosen or outcome.failures)


def _first_due(due: Sequence[Planned], catch_up: int) -> list[Planned]:
    """The oldest, at most `catch_up`; behind the others those tried before, which may kill a process each time."""
    return sorted(due, key=lambda each: (each.state != "missing", each.interval.start))[:catch_up]


def _changed_lately(
    session: Session, job: Job, bundle: Bundle, planned: Sequence[Planned], outcome: _Outcome
) -> list[Planned]:
    """Of the last published intervals, as many as `lookback` says, those by the bundle in use that have changed."""
    if not job.interval.lookback:
        return []
    last = [each for each in planned if each.state in ("published", "stale-model")][-job.interval.lookback :]
    published = [each for each in last if each.state == "published"]
    return [each for each in _with_changes(session, job, bundle, published, outcome) if each.state == "changed-input"]


def _with_changes(
    session: Session, job: Job, bundle: Bundle, planned: Sequence[Planned], outcome: _Outcome
) -> list[Planned]:
    """The same intervals; one that is `published` and whose rows have changed since is `changed-input`.

    One whose rows cannot be read is `unread`, and a failure; where the source stays gone the rest is `unread` too.
    """
    source = session.source(job, job.source)
    found, gone, chunk_rows = list(planned), False, session.chunk_rows(job, bundle.schema)
    for place, each in enumerate(planned):
        if each.state != "published" or each.run is None:
            continue
        if gone:
            found[place] = replace(each, state="unread")
            outcome.untried += 1
            continue
        look = partial(has_changed, each.run, source, bundle, chunk_rows=chunk_rows)
        try:
            if session.patience().persist(look):
                found[place] = replace(each, state="changed-input")
        except BatchscoreError as error:
            log.error(Event.RUN_UNREAD, run_id=each.run.run_id, interval=str(each.interval), error=str(error))
            outcome.failures.append((each, error))
            found[place] = replace(each, state="unread")
            gone = isinstance(error, TransientError)
    return found


def _plan(
    session: Session, job: Job, history: Sequence[Run], digest: str | None, first: str | None, last: str | None
) -> list[Planned]:
    begin, end = job.calendar.window(first, last)
    return plan(job, history, first=begin, last=end, now=session.now, digest=digest)


def _nothing_in_window(job: Job, planned: Sequence[Planned], first: str | None, last: str | None, only: Only) -> str:
    """Why there is nothing to do in a window, or without one."""
    if last is not None and job.calendar.parse(last) <= job.start:
        return f"the window ends before the job's start, {job.interval.start}"
    return f"{len(planned)} complete interval(s){' in the window' if first or last else ''}, none of them {only}"


def _nothing_due(session: Session, job: Job, planned: Sequence[Planned], interval: str | None) -> str:
    """Why there is nothing to do: nothing at all, or not in the interval that was asked for."""
    if interval is None:
        if not planned:
            return f"no interval since the job's start, {job.interval.start}, has ended yet"
        return f"every complete interval of {job.name} is published"
    asked = job.calendar.at(interval)
    if asked.end > session.now:
        return f"{interval} ends at {asked.end:%Y-%m-%d %H:%M}Z, and is scored when it has ended"
    if asked.start < job.start:
        return f"{interval} is before the job's start, {job.interval.start}"
    return f"{interval} is published. To score it again: batchscore score {job.name} --interval {interval} --force"


def _score_all(
    scoring: Scoring,
    watcher: Watcher,
    chosen: Sequence[Planned],
    history: Sequence[Run],
    outcome: _Outcome,
    at_once: int,
) -> None:
    """Score the intervals, so many at a time, and compare each with training.

    An error is an interval's own, and the others are tried: a file that is not there, rows that break the contract,
    another process at work. Only where a database or network stays gone, which the rest would wait for as long, none
    is begun any more. A full disk looks like the first, and costs each interval its first chunk.

    Raises:
        Exception: A bug, which is no such failure.
    """
    gone, lineage = threading.Event(), Lineage.begin()
    with intervals_progress(len(chosen), scoring.job.name) as (next_interval, more_rows):

        def one(each: Planned, stopping: threading.Event) -> Run | None:
            def committed(rows: int) -> None:
                more_rows(rows)
                if stopping.is_set():
                    raise Terminated("stopped with the others")

            if gone.is_set():
                return None
            next_interval(scoring.job.calendar.label(each.interval))
            try:
                score = partial(score_interval, scoring, each.interval, history, committed)
                run = lineage.follow(scoring, each.interval, score)
            except TransientError:
                gone.set()
                raise
            return run

        with closing(in_turn(one, chosen, at_once)) as results:
            for each, result in _in_order(chosen, results):
                if result is None:
                    outcome.untried += 1
                elif isinstance(result, BatchscoreError):
                    outcome.failures.append((each, result))
                else:
                    outcome.published.append((result, watch(scoring.warehouse, watcher, result)))
    _look_again(scoring, history, outcome)


def _in_order(chosen: Sequence[Planned], results: Iterable[tuple[Planned, R]]) -> Iterator[tuple[Planned, R]]:
    """What the workers gave, in the order that was asked for: a run is compared with those before it too."""
    early: dict[int, R] = {}
    places = {id(each): place for place, each in enumerate(chosen)}
    following = 0
    for each, result in results:
        early[places[id(each)]] = result
        while following in early:
            yield chosen[following], early.pop(following)
            following += 1


def _look_again(scoring: Scoring, history: Sequence[Run], outcome: _Outcome) -> None:
    """Look once more at the intervals that another process had: one that it has published since is no failure."""
    if not any(isinstance(error, IntervalLeased) for _, error in outcome.failures):
        return
    before = {run.run_id for run in history if run.status == "published"}
    now: Sequence[Run] = []
    # Of a ledger that cannot be asked any more nothing new is known.
    with suppress(BatchscoreError):
        now = runs_of(scoring.warehouse, scoring.job)
    published = {run.interval for run in now if run.status == "published" and run.run_id not in before}
    failures: list[Failure] = []
    for each, error in outcome.failures:
        if not isinstance(error, IntervalLeased):
            failures.append((each, error))
        elif each.interval in published:
            outcome.elsewhere += 1
        else:
            failures.append((each, IntervalLeased(f"left to another process: {error}", **error.context)))
    outcome.failures = failures


def _words(job: Job, outcome: _Outcome) -> str:
    """What was done."""
    told: list[str] = []
    if outcome.published:
        rows, rejects = f"{outcome.predictions:,} predictions", f"{outcome.rejects:,} rejects"
        told.append(f"{len(outcome.published)} interval(s) published into {job.output.table}: {rows}, {rejects}")
    elif not outcome.elsewhere:
        told.append(f"nothing published into {job.output.table}")
    if moved := sorted(run.interval for run, count in outcome.published if count):
        last = window_of(moved[-1:], job.calendar)
        against = " or ".join(each.replace("_", " ") for each in job.drift.against)
        told.append(
            f"{len(moved)} interval(s) saw something move against {against}: batchscore drift {job.name} {last}"
        )
    if outcome.elsewhere:
        told.append(f"{outcome.elsewhere} interval(s) left to another process, which has published them")
    return "\n".join(told)


def _told(job: Job, told: str, outcome: _Outcome, format_: Format = "table") -> str:
    """What was done, in words; none from a command that only looks.

    Raises:
        BatchscoreError: The failure whose exit code tells most, after all of them were shown.
    """
    if outcome.untried:
        log.warning(Event.INTERVALS_LEFT, left=outcome.untried, why="stopped: a database or network stays gone")
    if told:
        log.info(
            Event.INTERVALS_DONE,
            job=job.name,
            published=len(outcome.published),
            not_done=len(outcome.failures),
            elsewhere=outcome.elsewhere,
            untried=outcome.untried,
            predictions=outcome.predictions,
            rejects=outcome.rejects,
        )
    if not outcome.failures:
        return told
    if on_terminal() and outcome.intervals > 1 and format_ == "table":
        failures = sorted(outcome.failures, key=lambda failure: failure[0].interval)
        rows = [{"interval": job.calendar.label(each.interval), "error": str(error)} for each, error in failures]
        stopped = f"; stopped, {outcome.untried} not tried" if outcome.untried else ""
        show(rows, title=f"{len(failures)} of {outcome.intervals} interval(s) not done{stopped}")
    if told and (outcome.intervals > 1 or "\n" in told):
        say(told)
    raise max((error for _, error in outcome.failures), key=lambda error: (not error.retryable, error.exit_code))


def _watch_again(warehouse: Warehouse, watcher: Watcher) -> None:
    """Compare what a process published and did not live to compare; failing here stops nothing."""
    runs: list[Run] = []
    with harmless(), warehouse.begin("the drift of earlier runs") as tx:
        if all(tx.has_table(table.name) for table in (ledger.RUNS, ledger.DRIFT)):
            runs = ledger.runs_without_drift(tx.connection, watcher.job.name, watcher.bundle.digest)
    for run in runs:
        watch(warehouse, watcher, run, again=True)
