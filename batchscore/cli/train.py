"""`batchscore train`."""

from __future__ import annotations

from batchscore import stop
from batchscore.cli.found import show_evaluation
from batchscore.cli.render import on_terminal, say, step
from batchscore.cli.session import Session
from batchscore.errors import GateTripped
from batchscore.interval import Interval
from batchscore.logs import Event, log
from batchscore.model.bundle import Bundle
from batchscore.model.scorer import check_golden
from batchscore.train.explore import Asked
from batchscore.train.workflow import promotable
from batchscore.train.workflow import train as train_bundle

__all__ = ["registered", "train"]


def train(
    session: Session, name: str, *, promote: bool, asked: Asked | None = None, window: Interval | None = None
) -> str:
    """Train, register, and promote when the job's bar is reached and either nothing is in use or `promote` is set.

    Args:
        session: The session.
        name: The job.
        promote: Whether it becomes the version in use even when there is one.
        asked: Which curves are wanted.
        window: Which rows to learn from; `[training]` says it where None.

    Returns:
        What became of the version, in words.

    Raises:
        GateTripped: The version is registered, and misses the bar.
    """
    job = session.job(name)
    # Before an hour of training: a key that is none is told here.
    registry = session.registry
    stop.roll_back()
    rows = session.source(job, job.source)
    if rows.caution:
        log.warning(Event.SQL_LOOSE, told=rows.caution)
    bundle = train_bundle(
        job,
        session.features(job),
        session.query(job),
        rows,
        session.labels(job) if job.problem.supervised else None,
        on_step=step,
        asked=asked,
        window=window,
    )
    stored = registered(session, bundle)
    version = stored.version
    if (missed := promotable(job, stored)) is not None:
        raise GateTripped(
            f"{stored} is registered and not promoted: {missed}. What was in use stays in use. To use it all the "
            f"same: batchscore models promote {stored.name} {version} --alias {job.model.use}."
        )
    success = job.problem.success
    metric = success.metric if success else next(iter(stored.manifest.metrics))
    value = stored.manifest.metrics[metric]
    told = f"{stored} is registered: {metric} {value:.3f} on {stored.manifest.training.tested:,} rows held out"
    if str(job.model.use).isdecimal():
        return f"{told}; the job uses version {job.model.use}"
    if promote or job.model.use not in registry.aliases(stored.name):
        registry.promote(stored.name, version, str(job.model.use))
        log.info(Event.BUNDLE_PROMOTED, model=stored.name, version=version, alias=job.model.use)
        return f"{told}; it is now {job.model.use}"
    return f"{told}; {job.model.use} stays. To use it: batchscore models promote {stored.name} {version}"


def registered(session: Session, bundle: Bundle) -> Bundle:
    """The bundle as the registry has it now: what was written is what will score, so it is read back and tried.

    Raises:
        BundleError: It is not what was written, or does not give what it gave.
    """
    registry, patience = session.registry, session.patience()
    version = patience.persist(lambda: registry.register(bundle))
    stored = patience.persist(lambda: session.load(bundle.name, version))
    check_golden(stored)
    log.info(Event.BUNDLE_WRITTEN, model=stored.name, version=version, digest=stored.digest, **stored.manifest.metrics)
    if on_terminal():
        show_evaluation(str(stored), stored.evaluation)
        say(f"All that was found out: batchscore models card {stored.name} {version}")
    return stored
