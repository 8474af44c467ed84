"""What scoring needs, put together once for a command: the job, the bundle, where rows come from and where they go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from batchscore import ledger
from batchscore.errors import SourceChanged, UsageError, nearest
from batchscore.interval import Interval
from batchscore.job import Job
from batchscore.ledger import Owner
from batchscore.model.bundle import Bundle
from batchscore.run.publish import refuse_shared_table
from batchscore.run.shadow import Shadow, with_shadow
from batchscore.sources import Source
from batchscore.sources.begun import Begun
from batchscore.warehouse import Narrow, Output, OutputColumn, Warehouse

__all__ = ["ALONE", "Backend", "Crew", "Scoring", "Tables", "make_tables", "output_of", "prepare"]


Backend = Literal["threading", "loky", "dask", "ray"]


@dataclass(frozen=True, slots=True)
class Crew:
    """Who scores the shards of a run.

    Attributes:
        workers: How many do at a time.
        backend: `threading`: threads of this process; else joblib's: `loky`, processes of this machine; `dask` and
            `ray`, those of a cluster.
        remake: For other processes: what makes the same `Scoring` there; to be pickled.
        address: Of the cluster; None has one made here.
    """

    workers: int = 1
    backend: Backend = "threading"
    remake: Callable[[], Scoring] | None = None
    address: str | None = None


ALONE = Crew()


@dataclass(frozen=True, slots=True)
class Scoring:
    """Everything that stays the same from interval to interval of one command.

    Attributes:
        table: The output table's full name.
        narrow: The columns of the live output table that do not hold every value.
        shadow: What scores beside the bundle, into `output.side`; None where nothing does.
        query_digest: SHA-256 of the query that runs.
        sql_accepted: Why it is not the bundle's; None where it is.
        owner: Who takes the leases.
        lease_seconds: How long a lease lasts without being renewed.
        retry_seconds: How long to try again without progress.
        begun: What is being read already; None where nothing is.
        shards: Into how many parts each run is cut.
        crew: Who scores them.
    """

    job: Job
    bundle: Bundle
    source: Source
    warehouse: Warehouse
    output: Output
    table: str
    narrow: Mapping[str, Narrow]
    shadow: Shadow | None
    query_digest: str
    sql_accepted: str | None
    chunk_rows: int
    owner: Owner
    lease_seconds: float
    retry_seconds: float
    begun: Begun | None = None
    shards: int = 1
    crew: Crew = ALONE

    def run_id(self, interval: Interval, revision: int) -> str:
        """The id of the run of an interval, made of all that decides its result; see `ledger.run_id_of`."""
        return ledger.run_id_of(
            self.job.name,
            interval,
            bundle_digest=self.bundle.digest,
            query_digest=self.query_digest,
            table=self.table,
            carry=self.job.output.carry,
            revision=revision,
            shadow_digest=self.shadow.bundle.digest if self.shadow else None,
        )


def output_of(job: Job, bundle: Bundle) -> Output:
    """The output table that a job's predictions by a bundle go to.

    Raises:
        SourceChanged: The job's key is not the bundle's.
        UsageError: A carried or private column is not among the bundle's.
    """
    if job.source.key != bundle.key:
        raise SourceChanged(
            f"job {job.name} has key {list(job.source.key)}, and {bundle} was trained with {list(bundle.key)}. Retrain."
        )
    named = [("[output] carry", name) for name in job.output.carry]
    named += [("[source] private", name) for name in job.source.private]
    for place, name in named:
        if name not in bundle.schema.names:
            guess = f" Did you mean {near}?" if (near := nearest(name, bundle.schema.names)) else ""
            raise UsageError(
                f"{place} of job {job.name} names {name!r}, which is no column of {bundle}.{guess} Its columns: "
                f"{', '.join(bundle.schema.names)}. Name one of them, or give the column at the source and retrain."
            )
    passed = [OutputColumn(name, bundle.schema[name].type) for name in (*job.source.key, *job.output.carry)]
    given = [OutputColumn(name, type_) for name, type_ in bundle.predictor.output_types.items()]
    return Output(job.output.table, (*passed, *given))


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of a job; see `Scoring`."""

    output: Output
    table: str
    narrow: Mapping[str, Narrow]
    shadow: Shadow | None


def make_tables(job: Job, bundle: Bundle, warehouse: Warehouse, shadow: Bundle | None = None) -> Tables:
    """Make the ledger's tables and the output table where they are missing, and check the output table that is there.

    The same with the side table, for a shadow; what is wrong with that one is told in the log alone.

    Raises:
        UsageError: Another job has published into the same table.
        OutputMismatch: The output table cannot take the predictions exactly.
        SourceChanged, UsageError: See `output_of`.
    """
    output = output_of(job, bundle)
    warehouse.create(ledger.METADATA)
    with warehouse.begin("the ledger") as tx:
        refuse_shared_table(tx, job.name, output.table)
        table = tx.full_name(output.table)
    narrow = warehouse.prepare(output)
    output, beside = (output, None) if shadow is None else with_shadow(output, job, shadow, warehouse)
    return Tables(output, table, narrow, beside)


def prepare(
    job: Job,
    bundle: Bundle,
    source: Source,
    warehouse: Warehouse,
    *,
    shadow: Bundle | None,
    query_digest: str,
    sql_accepted: str | None,
    chunk_rows: int,
    lease_seconds: float,
    retry_seconds: float,
    begun: Begun | None = None,
    shards: int = 1,
) -> Scoring:
    """Everything that scoring needs, with its tables made or checked.

    Raises:
        BatchscoreError: See `make_tables`.
    """
    tables = make_tables(job, bundle, warehouse, shadow)
    return Scoring(
        job,
        bundle,
        source,
        warehouse,
        tables.output,
        tables.table,
        tables.narrow,
        tables.shadow,
        query_digest,
        sql_accepted,
        chunk_rows,
        Owner.here(),
        lease_seconds,
        retry_seconds,
        begun,
        shards,
    )
