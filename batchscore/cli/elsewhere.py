"""What a command scores with, made once more in another process: on this machine, or a worker of a cluster."""

from __future__ import annotations

from functools import cache, partial

from batchscore.cli.session import Session, secrets_of
from batchscore.database import Database
from batchscore.errors import UsageError
from batchscore.job import Job
from batchscore.logs import configure
from batchscore.model.bundle import Bundle
from batchscore.run.scoring import Backend, Crew, Scoring
from batchscore.settings import load_settings
from batchscore.warehouse import open_warehouse

__all__ = ["crew_of"]


def crew_of(
    session: Session, job: Job, bundle: Bundle, workers: int, backend: Backend, accept: str | None, chunk_rows: int
) -> Crew:
    """Who scores the shards of the job's runs.

    Raises:
        UsageError: Other processes are to, and the warehouse admits one.
    """
    if backend == "threading":
        return Crew(workers)
    settings = session.settings
    if Database.at(settings.warehouse()).dialect in ("duckdb", "sqlite"):
        raise UsageError(
            f"--backend {backend}: several processes cannot write into {Database.at(settings.warehouse())} at a time. "
            "Leave it out, and the workers are threads; or use a warehouse on a server."
        )
    # Flags alone: whatever may be secret a worker has from its own environment or files.
    flags = {
        "jobs_dir": str(settings.jobs_dir),
        "sql_dir": str(settings.sql_dir),
        "registry_url": settings.registry_url,
        "delta_url": settings.delta_url,
        "log_format": settings.log_format,
    }
    remake = partial(_remade, tuple(flags.items()), job.name, bundle.version, accept, chunk_rows)
    address = {"dask": settings.dask_scheduler, "ray": settings.ray_address}.get(backend)
    return Crew(workers, backend, remake, address)


@cache
def _remade(
    flags: tuple[tuple[str, str | None], ...], name: str, version: int, accept: str | None, chunk_rows: int
) -> Scoring:
    """The scoring of a version, with a connection of its own, for as long as this process lives."""
    settings = load_settings(dict(flags))
    configure(settings.log_format, secrets_of(settings))
    session = Session.of(settings)
    job = session.job(name)
    job = job.model_copy(update={"model": job.model.model_copy(update={"use": version})})
    warehouse = open_warehouse(Database.at(settings.warehouse()), delta_url=settings.delta_url)
    return session.scoring(job, session.bundle(job), warehouse, accept, chunk_rows)
