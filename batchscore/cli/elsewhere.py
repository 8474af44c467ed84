"""What a command scores with, made once more in another process: on this machine, or a worker of a cluster."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial

import structlog

from batchscore.cli.session import Session, secrets_of
from batchscore.database import Database
from batchscore.errors import SourceChanged, UsageError
from batchscore.job import Job
from batchscore.logs import configure
from batchscore.run.scoring import Backend, Crew, Scoring
from batchscore.settings import Settings, load_settings
from batchscore.warehouse import open_warehouse

__all__ = ["crew_of", "refuse_alone"]


def refuse_alone(settings: Settings, backend: Backend) -> None:
    """Refuse processes beside this one where the warehouse admits one.

    Raises:
        UsageError: It does, and they are asked for.
    """
    warehouse = Database.at(settings.warehouse())
    if backend != "threading" and warehouse.dialect in ("duckdb", "sqlite"):
        raise UsageError(
            f"--backend {backend}: several processes cannot write into {warehouse} at a time. Leave it out, and the "
            "workers are threads; or use a warehouse on a server."
        )


def crew_of(session: Session, scoring: Scoring, workers: int, backend: Backend) -> Crew:
    """Who scores the shards of the runs; those in other processes score with the very job and versions of this one."""
    if backend == "threading":
        return Crew(workers)
    settings = session.settings
    # Flags alone: whatever may be secret a worker has from its own environment or files.
    flags = {
        "jobs_dir": str(settings.jobs_dir),
        "sql_dir": str(settings.sql_dir),
        "registry_url": settings.registry_url,
        "delta_url": settings.delta_url,
        "log_format": settings.log_format,
    }
    shadow = scoring.shadow.bundle.version if scoring.shadow else None
    model = scoring.job.model.model_copy(update={"use": scoring.bundle.version, "shadow": shadow})
    order = _Order(
        uuid.uuid4().hex,
        flags,
        scoring.job.model_copy(update={"model": model}),
        scoring.bundle.digest,
        scoring.sql_accepted,
        scoring.chunk_rows,
    )
    address = {"dask": settings.dask_scheduler, "ray": settings.ray_address}.get(backend)
    remake: Callable[[], Scoring] = partial(_remade, order)
    return Crew(workers, backend, remake, address)


@dataclass(frozen=True, slots=True)
class _Order:
    """What a command has its workers score with.

    Attributes:
        command: Which command's it is; a worker of a cluster outlives it.
        flags: The settings that they share.
        job: The job as the command has read it, with the versions in place of aliases.
        digest: The bundle's.
        accept: Why another query than the bundle's may run.
        chunk_rows: Rows a chunk.
    """

    command: str
    flags: dict[str, str | None] = field(compare=False)
    job: Job = field(compare=False)
    digest: str = field(compare=False)
    accept: str | None = field(compare=False)
    chunk_rows: int = field(compare=False)


@lru_cache(maxsize=2)
def _remade(order: _Order) -> Scoring:
    """The scoring of a command, with a connection of this process's own, for as long as the command lasts.

    Raises:
        SourceChanged: The bundle here is another one; nothing of it was loaded.
    """
    settings = load_settings(dict(order.flags))
    configure(settings.log_format, secrets_of(settings))
    structlog.contextvars.bind_contextvars(job=order.job.name)
    session = Session.of(settings)
    found = session.verified(order.job)
    if found.manifest.digest != order.digest:
        raise SourceChanged(
            f"a worker has another {found} in {session.registry} than the process that asks it to work. Give every "
            "worker the same registry."
        )
    bundle = session.bundle(order.job, found)
    warehouse = open_warehouse(Database.at(settings.warehouse()), delta_url=settings.delta_url)
    return session.scoring(order.job, bundle, warehouse, order.accept, order.chunk_rows)
