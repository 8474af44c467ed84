"""`batchscore train`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from batchscore import stop
from batchscore.cli.found import show_evaluation
from batchscore.cli.render import on_terminal, say, step
from batchscore.cli.session import Session
from batchscore.errors import BundleNotFound, GateTripped, TransientError, WarehouseError
from batchscore.job import Job
from batchscore.logs import Event, log
from batchscore.model.bundle import Bundle
from batchscore.model.scorer import check_golden
from batchscore.train.explore import Asked
from batchscore.train.workflow import promotable
from batchscore.train.workflow import train as train_bundle

__all__ = ["UNFINISHED", "put_to_use", "read_back", "register", "registered", "train"]

UNFINISHED = (TransientError, WarehouseError, BundleNotFound)
"""What a registry or a warehouse that is gone fails with, when a version is registered and no more."""


def train(session: Session, name: str, *, promote: bool, asked: Asked | None = None) -> str:
    """Train, register, and promote when the job's bar is reached and either nothing is in use or `promote` is set.

    Args:
        session: The session.
        name: The job.
        promote: Whether it becomes the version in use even when there is one.
        asked: Which curves are wanted.

    Returns:
        What became of the version, in words.

    Raises:
        GateTripped: The version is registered, and misses the bar.
    """
    job = session.job(name)
    # Before an hour of training: a key that is none, or a registry that is away, is told here.
    session.registry.probe(job.model.name)
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
    )
    made = register(session, bundle)
    with registered(made, str(job.model.use)):
        stored = read_back(session, made)
        return session.patience().persist(lambda: put_to_use(session, job, stored, promote=promote))


def put_to_use(session: Session, job: Job, stored: Bundle, *, promote: bool) -> str:
    """Promote a version when it reaches the job's bar and either nothing is in use or `promote` is set.

    Returns:
        What became of the version, in words.

    Raises:
        GateTripped: It misses the bar.
    """
    registry, version = session.registry, stored.version
    if (missed := promotable(job, stored)) is not None:
        first = not str(job.model.use).isdecimal() and str(job.model.use) not in registry.aliases(stored.name)
        stays = "No version is in use yet." if first else "What was in use stays in use."
        raise GateTripped(
            f"{stored} is registered and not promoted: {missed}. {stays} To use it all the same: "
            f"batchscore models promote {stored.name} {version} --alias {job.model.use}."
        )
    success = job.problem.success
    metric = success.metric if success else next(iter(stored.manifest.metrics))
    value = stored.manifest.metrics[metric]
    signed = f", signed by key {key}" if (key := registry.trust.signs_as) else ""
    told = f"{stored} is registered{signed}: {metric} {value:.3f} on {stored.manifest.training.tested:,} rows held out"
    if str(job.model.use).isdecimal():
        return f"{told}; the job uses version {job.model.use}"
    # Where an answer was lost, it is in use already.
    if promote or registry.aliases(stored.name).get(str(job.model.use)) in (None, version):
        registry.promote(stored.name, version, str(job.model.use))
        log.info(Event.BUNDLE_PROMOTED, model=stored.name, version=version, alias=job.model.use)
        return f"{told}; it is now {job.model.use}"
    return f"{told}; {job.model.use} stays. To use it: batchscore models promote {stored.name} {version}"


def register(session: Session, bundle: Bundle) -> Bundle:
    """The bundle under the number that the registry gave it, in which it is now."""
    version = session.patience().persist(lambda: session.registry.register(bundle))
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"version": version}))


@contextmanager
def registered(made: Bundle, alias: str) -> Iterator[None]:
    """A block behind `register`: what is gone by then must not take the training with it.

    Raises:
        TransientError, WarehouseError, BundleNotFound: The block's, with the version and how to point the alias at it.
    """
    try:
        yield
    except UNFINISHED as error:
        command = f"batchscore models promote {made.name} {made.version} --alias {alias}"
        then = "" if alias.isdecimal() else f" When that is mended: {command}"
        raise type(error)(f"{error} {made} is registered all the same.{then}", **error.context) from error


def read_back(session: Session, made: Bundle) -> Bundle:
    """The bundle as the registry has it now: what was written is what will score, so it is read back and tried.

    Raises:
        BundleError: It is not what was written, or does not give what it gave.
    """
    stored = session.patience().persist(lambda: session.load(made.name, made.version))
    check_golden(stored)
    log.info(
        Event.BUNDLE_WRITTEN, model=stored.name, version=stored.version, digest=stored.digest, **stored.manifest.metrics
    )
    if on_terminal():
        show_evaluation(str(stored), stored.evaluation)
        say(f"All that was found out: batchscore models card {stored.name} {stored.version}")
    return stored
