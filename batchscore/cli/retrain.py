"""`batchscore retrain`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from batchscore import ledger
from batchscore.cli.render import step
from batchscore.cli.session import Session, runs_of
from batchscore.cli.train import UNFINISHED, put_to_use, read_back, register, registered
from batchscore.errors import BatchscoreError, GateTripped, IntervalLeased, TrainingError, UsageError
from batchscore.interval import Interval, age_of
from batchscore.job import Job
from batchscore.ledger import Lease, Owner, Run
from batchscore.logs import Event, log
from batchscore.model.bundle import Bundle
from batchscore.monitor.due import Reason, degraded, drifted, new_labels, older_than
from batchscore.monitor.labelled import Evaluator
from batchscore.problem import better
from batchscore.recipe import Condition
from batchscore.run.lease import leased
from batchscore.run.scoring import output_of
from batchscore.sources import read_frame
from batchscore.train.workflow import promotable, train
from batchscore.warehouse import Transaction, Warehouse

__all__ = ["retrain"]

CHALLENGER = "challenger"
# There is one lease of a job's retraining, and leases are of intervals.
_ALWAYS = Interval(datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 2, tzinfo=UTC))


def retrain(session: Session, name: str, conditions: str | None, to: str | None, *, dry_run: bool) -> str:
    """Train a challenger when there is a reason to, and promote it when it is better than the version in use.

    Where no version is in use yet it trains one, and promotes it when it reaches the job's bar.

    Args:
        session: The session.
        name: The job.
        conditions: Those of `--if`; the job's own where None.
        to: Where the rows to learn from end; the last interval that is over where None.
        dry_run: Only tell whether there is a reason.

    Returns:
        What was decided, in words.

    Raises:
        IntervalLeased: Another process is at it.
        GateTripped: No version was in use yet, and the one trained misses the job's bar.
        BatchscoreError: See `train`.
    """
    job = session.job(name)
    asked = _conditions(job, conditions)
    session.registry.probe(job.model.name)
    end = job.calendar.at(to).start if to else job.calendar.containing(session.now).start
    with session.warehouse() as warehouse:
        if not dry_run:
            session.patience().persist(lambda: warehouse.create(ledger.METADATA))
        return _retrain(session, job, warehouse, asked, end, dry_run=dry_run)


def _retrain(
    session: Session, job: Job, warehouse: Warehouse, asked: Sequence[Condition], end: datetime, *, dry_run: bool
) -> str:
    window, champion = job.window_until(end), None
    if _unused(session, job):
        # Of versions that missed the bar on the rows of [training], another on the same would too.
        window = window if session.registry.versions(job.model.name) else job.training_window()
        reasons = [Reason("unused", True, "no version is in use yet")]
    else:
        champion = session.bundle(job)
        reasons = list(_reasons(session, job, champion, warehouse, asked, end))
    for reason in reasons:
        log.info(Event.RETRAIN_REASON, reason=reason.name, holds=reason.holds, told=reason.told)
    due = [reason for reason in reasons if reason.holds]
    if not due:
        return _decided("not due", "; ".join(reason.told for reason in reasons))
    if wait := _wait(session, job, warehouse, window.end, due):
        return _decided("waiting", wait)
    why = "; ".join(reason.told for reason in due)
    _refuse_empty(session, job, warehouse, window, why)
    if dry_run:
        return _decided("due", f"{why}. It would train on rows of {window}")
    step(f"due: {why}")
    with _alone(session, warehouse, job) as lease:
        # Another process may have been at it while this one looked.
        if wait := _wait(session, job, warehouse, window.end, due):
            return _decided("waiting", wait)
        return _trained(session, job, champion, warehouse, lease, window, due)


def _refuse_empty(session: Session, job: Job, warehouse: Warehouse, window: Interval, why: str) -> None:
    """Refuse a window that the query gives no row for, as a dry run must tell too.

    Raises:
        TrainingError: It gives none; the message names the end of the last run that had rows.
        BatchscoreError: See `read_frame`.
    """
    rows = session.source(job, job.source)
    if not read_frame(rows, window, key=job.source.key, limit=1).is_empty():
        return
    if window == job.training_window():
        raise TrainingError(f"{rows.where} gives no row for {window}. Widen [training] from and to.")
    ends = [run.interval.end for run in runs_of(warehouse, job) if run.status == "published" and run.rows_read]
    to = "with --to"
    if ends:
        label = job.calendar.label(job.calendar.containing(max(ends)))
        to = f"--to {label} is where the last run with rows ended"
    raise TrainingError(
        f"due: {why}. But {rows.where} gives no row for {window}, which it would train on. Say where the rows to learn "
        f"from end: {to}."
    )


@contextmanager
def _alone(session: Session, warehouse: Warehouse, job: Job) -> Iterator[Lease]:
    """A block that no other process retrains the job in, whatever the window.

    Raises:
        IntervalLeased: Another process does.
    """
    taken = False
    try:
        with leased(warehouse, f"retrain:{job.name}", _ALWAYS, Owner.here(), session.settings.lease_seconds) as lease:
            taken = True
            yield lease
    except IntervalLeased as error:
        if taken:
            raise
        raise IntervalLeased(f"another process retrains job {job.name}. Let it finish, or run again.") from error


def _unused(session: Session, job: Job) -> bool:
    """Whether no version is in use yet, where the job names an alias."""
    use = str(job.model.use)
    return not use.isdecimal() and use not in session.registry.aliases(job.model.name)


def _conditions(job: Job, given: str | None) -> list[Condition]:
    if given is not None:
        try:
            return [Condition.parse(text) for text in given.split(",")]
        except ValueError as error:
            raise UsageError(f"--if: {error}") from None
    conditions = [Condition.parse(text) for text in job.retrain.reasons]
    if not conditions and job.problem.retrain_every:
        conditions = [Condition("older-than", job.problem.retrain_every)]
    if not conditions:
        raise UsageError(
            f"job {job.name} does not say when to train anew. Give --if drifted,degraded,older-than=7d,"
            "new-labels=10000 (one of them or several), or write [retrain] reasons in its file."
        )
    return conditions


def _reasons(
    session: Session,
    job: Job,
    champion: Bundle,
    warehouse: Warehouse,
    conditions: Sequence[Condition],
    end: datetime,
) -> Iterator[Reason]:
    runs = _last_runs(warehouse, job, champion)
    for condition in conditions:
        if condition.name in ("degraded", "new-labels") and not job.problem.supervised:
            raise UsageError(f"--if {condition.name}: a {job.problem.task} task has no labels to go by.")
        match condition.name:
            case "older-than":
                yield older_than(champion, age_of(condition.bound, "older-than"), session.now)
            case "new-labels":
                yield new_labels(job, champion, session.labels(job), end, int(condition.bound))
            case "drifted":
                with warehouse.begin("the ledger") as tx:
                    yield drifted(tx.connection, job, champion, runs)
            case "degraded":
                evaluator = Evaluator(job, champion, output_of(job, champion), session.labels(job))
                yield degraded(warehouse, evaluator, runs)


def _last_runs(warehouse: Warehouse, job: Job, champion: Bundle) -> list[Run]:
    history = runs_of(warehouse, job)
    scored = [run for run in history if run.status == "published" and run.bundle_digest == champion.digest]
    return scored[-job.retrain.over :]


def _wait(session: Session, job: Job, warehouse: Warehouse, end: datetime, due: Sequence[Reason]) -> str | None:
    """Why nothing is trained although it is due, in words."""
    with warehouse.begin("the ledger") as tx:
        if not tx.has_table(ledger.RETRAINS.name):
            return None
        done = ledger.retrained_for(tx.connection, job.name, end)
        last = ledger.last_retrained(tx.connection, job.name)
    if not [reason for reason in due if reason.name not in done]:
        told = " ".join(dict.fromkeys(done.values()))
        return f"trained for this already, on rows up to {end:%Y-%m-%d %H:%MZ}: {', '.join(sorted(done))}. {told}"
    if last is not None and session.now < (until := last[0] + age_of(job.retrain.cooldown, "cooldown")):
        at, told = last
        return f"it was trained at {at:%Y-%m-%d %H:%MZ}, and the cooldown lasts until {until:%Y-%m-%d %H:%MZ}. {told}"
    return None


def _trained(
    session: Session,
    job: Job,
    champion: Bundle | None,
    warehouse: Warehouse,
    lease: Lease,
    window: Interval,
    due: Sequence[Reason],
) -> str:
    """Train, register, decide, and keep the decision."""
    rows = session.source(job, job.source)
    if rows.caution:
        log.warning(Event.SQL_LOOSE, told=rows.caution)
    made = train(
        job,
        session.features(job),
        session.query(job),
        rows,
        session.labels(job) if job.problem.supervised else None,
        on_step=step,
        champion=champion,
        window=window,
    )
    made = register(session, made)
    patience = session.patience()
    alias = CHALLENGER if champion is not None and _missed(job, champion, made) else str(job.model.use)
    try:
        with registered(made, alias):
            stored = read_back(session, made)
            if champion is None:
                return patience.persist(lambda: _settle_first(session, job, stored, warehouse, lease, window, due))
            patience.persist(lambda: session.registry.promote(stored.name, stored.version, CHALLENGER))
            return patience.persist(lambda: _settle(session, job, champion, stored, warehouse, lease, window, due))
    except UNFINISHED as error:
        decision, told = "first" if champion is None else "kept", str(error)
        # Or the next run would train the same again.
        with suppress(BatchscoreError):
            patience.persist(lambda: _keep(job, champion, made, warehouse, lease, window, due, decision, told))
        raise


def _keep(
    job: Job,
    champion: Bundle | None,
    made: Bundle,
    warehouse: Warehouse,
    lease: Lease,
    window: Interval,
    due: Sequence[Reason],
    decision: str,
    told: str,
) -> None:
    """Keep what was decided, and nothing else."""
    with warehouse.begin("the ledger") as tx:
        ledger.check(tx.connection, lease)
        _record(tx, job, champion, made, window, due, decision, told)


def _settle_first(
    session: Session,
    job: Job,
    stored: Bundle,
    warehouse: Warehouse,
    lease: Lease,
    window: Interval,
    due: Sequence[Reason],
) -> str:
    """Promote the first version where it reaches the bar, and keep what became of it either way."""
    below = None
    with warehouse.begin("the ledger") as tx:
        ledger.check(tx.connection, lease)
        try:
            told = put_to_use(session, job, stored, promote=False)
        except GateTripped as error:
            told, below = str(error), error
        _record(tx, job, None, stored, window, due, "first", told)
    if below is not None:
        raise below
    return _decided("first", told)


def _settle(
    session: Session,
    job: Job,
    champion: Bundle,
    challenger: Bundle,
    warehouse: Warehouse,
    lease: Lease,
    window: Interval,
    due: Sequence[Reason],
) -> str:
    """Promote the challenger where it is better, and keep what was decided, as long as nobody has taken the lease."""
    with warehouse.begin("the ledger") as tx:
        ledger.check(tx.connection, lease)
        missed = _missed(job, champion, challenger)
        use = str(job.model.use)
        if not missed and not session.registry.supersede(challenger.name, use, champion.version, challenger.version):
            missed = f"is {CHALLENGER} only: {use} was moved from version {champion.version} while it was trained"
        decision = "kept" if missed else "promoted"
        told = f"{challenger} {missed or f'takes the place of version {champion.version}'}"
        _record(tx, job, champion, challenger, window, due, decision, told)
    if not missed:
        log.info(Event.BUNDLE_PROMOTED, model=challenger.name, version=challenger.version, alias=use)
    return _decided(decision, told)


def _missed(job: Job, champion: Bundle, challenger: Bundle) -> str | None:
    """Why the challenger does not take the champion's place, in words."""
    if str(job.model.use).isdecimal():
        return f"is {CHALLENGER}; the job uses version {job.model.use}, whatever is better"
    if below := promotable(job, challenger):
        return f"is {CHALLENGER} only: {below}"
    metric, lead = job.problem.metric, challenger.evaluation.ahead.get("champion")
    if lead is None:
        return (
            f"is {CHALLENGER} only: it cannot be compared with {champion} on the same rows. To use it all the same: "
            f"batchscore models promote {challenger.name} {challenger.version}"
        )
    if lead.value <= job.retrain.margin:
        return (
            f"is {CHALLENGER} only: by {metric} it is {abs(lead.value):.4f} {'worse' if lead.value < 0 else 'better'} "
            f"than {champion} on the same rows, and must be more than {job.retrain.margin:g} better"
        )
    return None


def _record(
    tx: Transaction,
    job: Job,
    champion: Bundle | None,
    challenger: Bundle,
    window: Interval,
    due: Sequence[Reason],
    decision: str,
    told: str,
) -> None:
    """Write the decision into the ledger, once for each reason."""
    evaluation, metric = challenger.evaluation, job.problem.metric
    lead = evaluation.ahead.get("champion")
    theirs = evaluation.baselines.get("champion", {}).get(metric)
    sign = -1 if better(metric) == "lower" else 1
    ours = challenger.manifest.metrics.get(metric)
    if champion is not None:
        # On the rows that the champion was measured on, which may be fewer than all test rows.
        ours = None if lead is None or theirs is None else theirs + sign * lead.value
    facts = {
        "decision": decision,
        "told": f"{told} ({'; '.join(reason.told for reason in due)})",
        "champion_version": champion.version if champion else None,
        "challenger_version": challenger.version,
        "metric": metric,
        "champion": theirs,
        "challenger": ours,
        "ahead": lead.value if lead else None,
        "ahead_low": lead.low if lead else None,
        "ahead_high": lead.high if lead else None,
        "row_count": evaluation.rows["test"],
        "decided_at": datetime.now(UTC),
    }
    ledger.record_retrain(tx.connection, job.name, window.end, [reason.name for reason in due], facts)


def _decided(decision: str, told: str) -> str:
    log.info(Event.RETRAIN_DECIDED, decision=decision, told=told)
    return f"{decision}: {told}"
