"""OpenLineage events: from which rows each interval was scored, into which table, and what became of it.

They are off, and cost nothing, until the environment names a collector by the client's own `OPENLINEAGE_URL`; a key in
`OPENLINEAGE_API_KEY`, a path in `OPENLINEAGE_ENDPOINT`, a namespace in `OPENLINEAGE_NAMESPACE`, and the run of a
scheduler in `OPENLINEAGE_PARENT_ID` (`namespace/job/run id`) hold too. Losing them stops nothing.

Datasets are named as OpenLineage's naming specification has it: `postgres://host:port` and `database.schema.table`,
`mysql://host:port` and `database.table`, `file` and a path. It has no word for DuckDB and SQLite; as other integrations
do, these are `duckdb://path` and `schema.table`. A table that a query names without its schema is taken for one of the
default schema.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

import batchscore
from batchscore import ledger
from batchscore.database import Database
from batchscore.errors import IntervalLeased, Terminated
from batchscore.interval import Interval
from batchscore.ledger import Run
from batchscore.logs import Event, log, redacted
from batchscore.monitor.channels import Undelivered, within
from batchscore.monitor.harmless import harmless
from batchscore.run.scoring import Scoring
from batchscore.sources import SqlSource

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset
    from openlineage.client.facet_v2 import RunFacet

__all__ = ["Lineage"]

_PRODUCER = "https://pypi.org/project/batchscore"
_TIMEOUT_SECONDS = 5.0
# What a collector that is well stays far below, and what all events of a command may take beyond it, together: their
# number says nothing of the collector.
_PROMPT_SECONDS = 0.5
_MOST_SECONDS = 30.0
# As sqlglot and the naming specification call them.
_DIALECTS = {"postgresql": "postgres", "mariadb": "mysql"}
_PORTS = {"postgres": 5432, "mysql": 3306}
_SCHEMAS = {"postgres": "public", "duckdb": "main", "sqlite": "main"}


@dataclass
class Lineage:
    """Tells a collector of each interval that is scored.

    Attributes:
        transport: The client's way to the collector; None where nothing is told.
        waited: How many seconds it has been waited for beyond half a second an event.
    """

    transport: Any = None
    waited: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def begin(cls) -> Lineage:
        """One that tells where `OPENLINEAGE_URL` is set, and `OPENLINEAGE_DISABLED` is not `true`."""
        url = os.environ.get("OPENLINEAGE_URL")
        if not url or os.environ.get("OPENLINEAGE_DISABLED", "").lower() == "true":
            return cls()
        try:
            from openlineage.client.facet_v2 import set_producer
            from openlineage.client.transport.http import HttpConfig, HttpTransport

            set_producer(_PRODUCER)
            settings: dict[str, Any] = {"url": url, "timeout": _TIMEOUT_SECONDS, "retry": {"total": 1, "read": 0}}
            if endpoint := os.environ.get("OPENLINEAGE_ENDPOINT"):
                settings["endpoint"] = endpoint
            if key := os.environ.get("OPENLINEAGE_API_KEY"):
                settings["auth"] = {"type": "api_key", "apiKey": key}
            # The transport alone: the client around it would write the key into further variables of this process.
            return cls(HttpTransport(HttpConfig.from_dict(settings)))
        except ImportError:
            log.warning(Event.LINEAGE_OFF, error="OpenLineage is not installed: pip install 'batchscore[openlineage]'")
        except Exception as error:  # noqa: BLE001 - a variable that the client cannot read must not stop a run
            log.warning(Event.LINEAGE_OFF, error=redacted(str(error)))
        return cls()

    def follow(self, scoring: Scoring, interval: Interval, score: Callable[[], Run]) -> Run:
        """Score an interval, and tell when that begins and how it ends.

        An attempt is a run of OpenLineage's; ours, which may take several, is in its facet `batchscore_run`.
        """
        if self.transport is None:
            return score()
        from openlineage.client.event_v2 import RunState
        from openlineage.client.uuid import generate_new_uuid

        attempt = str(generate_new_uuid())
        self._tell(RunState.START, attempt, scoring, interval)
        try:
            run = score()
        except BaseException as error:
            left = isinstance(error, (Terminated, IntervalLeased))
            self._tell(RunState.ABORT if left else RunState.FAIL, attempt, scoring, interval, error=error)
            raise
        self._tell(RunState.COMPLETE, attempt, scoring, interval, run)
        return run

    def _tell(
        self,
        state: Any,
        attempt: str,
        scoring: Scoring,
        interval: Interval,
        run: Run | None = None,
        error: BaseException | None = None,
    ) -> None:
        from openlineage.client.event_v2 import Job, RunEvent
        from openlineage.client.event_v2 import Run as Attempt

        with self.lock:
            if self.transport is None:
                return
            try:
                event = RunEvent(
                    eventType=state,
                    eventTime=datetime.now(UTC).isoformat(),
                    run=Attempt(attempt, facets=_run_facets(scoring, interval, run, error)),
                    job=Job(os.environ.get("OPENLINEAGE_NAMESPACE", "default"), scoring.job.name, _job_facets(scoring)),
                    inputs=_inputs(scoring, run),
                    outputs=[_output(scoring, run)],
                )
                self._emit(event)
            except Exception as failure:  # noqa: BLE001 - whatever an event or its sending runs into stops no run
                # One that does not answer would cost each interval as much again.
                self.transport = None
                log.warning(Event.LINEAGE_OFF, error=redacted(str(failure)))

    def _emit(self, event: Any) -> None:
        begun = time.monotonic()
        emit = partial(self.transport.emit, event)
        try:
            within(_PROMPT_SECONDS + max(0.0, _MOST_SECONDS - self.waited), emit)
        except Undelivered:
            told = f"its events took together {_MOST_SECONDS:g} s longer than {_PROMPT_SECONDS:g} s each"
            raise Undelivered(told, passing=True) from None
        self.waited += max(0.0, time.monotonic() - begun - _PROMPT_SECONDS)


def _run_facets(
    scoring: Scoring, interval: Interval, run: Run | None, error: BaseException | None
) -> dict[str, RunFacet]:
    from openlineage.client.facet_v2 import (
        RunFacet,
        error_message_run,
        nominal_time_run,
        parent_run,
        processing_engine_run,
    )

    bundle = scoring.bundle
    ours: dict[str, Any] = {
        "modelName": bundle.name,
        "modelVersion": bundle.version,
        "bundleDigest": bundle.digest,
    }
    if run is not None:
        ours |= {"runId": run.run_id, "revision": run.revision, "rejects": run.rejects}
    facets: dict[str, RunFacet] = {
        "nominalTime": nominal_time_run.NominalTimeRunFacet(interval.start.isoformat(), interval.end.isoformat()),
        "processing_engine": processing_engine_run.ProcessingEngineRunFacet(batchscore.__version__, "batchscore"),
        "batchscore_run": RunFacet().with_additional_properties(**ours),  # type: ignore[dict-item]
    }
    if parent := os.environ.get("OPENLINEAGE_PARENT_ID"):
        namespace, name, run_id = parent.rsplit("/", 2)
        started = parent_run.ParentRunFacet(parent_run.Run(run_id), parent_run.Job(namespace, name))
        facets["parent"] = started
    if error is not None:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(redacted(str(error)), "PYTHON")
    return facets


def _job_facets(scoring: Scoring) -> dict[str, Any]:
    from openlineage.client.facet_v2 import job_type_job, sql_job

    facets: dict[str, Any] = {"jobType": job_type_job.JobTypeJobFacet("BATCH", "BATCHSCORE", jobType="JOB")}
    if isinstance(scoring.source, SqlSource):
        dialect = _dialect(scoring.source.database)
        facets["sql"] = sql_job.SQLJobFacet(scoring.source.statement.text, dialect=dialect)
    return facets


def _inputs(scoring: Scoring, run: Run | None) -> list[InputDataset]:
    """What the rows come from. Where that is one dataset, what was read of it is told too: of a join nobody knows."""
    from openlineage.client.event_v2 import InputDataset

    from batchscore.sources.parquet import ParquetSource

    source = scoring.source
    names: list[tuple[str, str]] = []
    if isinstance(source, SqlSource):
        names = _tables(source)
    elif isinstance(source, ParquetSource):
        names = [_at(source.path)]
    if len(names) != 1:
        return [InputDataset(*each) for each in names]
    columns = [(column.name, column.type) for column in scoring.bundle.schema.columns]
    facets = {"schema": _schema(columns)}
    return [InputDataset(*names[0], facets=facets, inputFacets=_read(scoring, run) if run else {})]


def _read(scoring: Scoring, run: Run) -> dict[str, Any]:
    """How many rows a run read, and what it saw in their columns."""
    from openlineage.client.facet_v2 import data_quality_metrics_input_dataset as quality
    from openlineage.client.facet_v2 import input_statistics_input_dataset as statistics

    facets: dict[str, Any] = {"inputStatistics": statistics.InputStatisticsInputDatasetFacet(rowCount=run.rows_read)}
    seen: list[Mapping[str, Any]] = []
    with harmless(run_id=run.run_id), scoring.warehouse.begin("what a run saw") as tx:
        seen = [row for row in ledger.profiles_of(tx.connection, run.run_id) if row["role"] == "input"]
    columns = {}
    for row in seen:
        # Of an instant or a text they are microseconds and characters.
        name = row["column_name"]
        number = row["kind"] in ("numeric", "integer") and name not in scoring.job.source.private
        columns[name] = quality.ColumnMetrics(
            nullCount=row["null_count"],
            count=row["row_count"] - row["null_count"],
            distinctCount=row["distinct_count"],
            min=row["minimum"] if number else None,
            max=row["maximum"] if number else None,
        )
    facets["dataQualityMetrics"] = quality.DataQualityMetricsInputDatasetFacet(columns, rowCount=run.rows_read)
    return facets


def _output(scoring: Scoring, run: Run | None) -> OutputDataset:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics

    columns = [(column.name, column.type) for column in scoring.output.all_columns]
    written: dict[str, Any] = {}
    if run is not None:
        written["outputStatistics"] = statistics.OutputStatisticsOutputDatasetFacet(rowCount=run.predictions)
    if scoring.warehouse.lake:
        named = _at(scoring.table)
    else:
        schema, _, table = scoring.table.rpartition(".")
        named = _named(scoring.warehouse.database, schema, table)
    return OutputDataset(*named, facets={"schema": _schema(columns)}, outputFacets=written)


def _at(path: str) -> tuple[str, str]:
    """The namespace and the name of a dataset that is files."""
    scheme, mark, rest = path.partition("://")
    bucket, _, below = rest.partition("/")
    return (f"{scheme}://{bucket}", below) if mark else ("file", str(Path(path).absolute()))


def _schema(columns: Sequence[tuple[str, str]]) -> Any:
    from openlineage.client.facet_v2 import schema_dataset

    fields = [schema_dataset.SchemaDatasetFacetFields(name, type_) for name, type_ in columns]
    return schema_dataset.SchemaDatasetFacet(fields=fields)


def _tables(source: SqlSource) -> list[tuple[str, str]]:
    """The tables that a query reads; none where sqlglot cannot read it, though its database can."""
    try:
        parsed = sqlglot.parse_one(source.statement.text, dialect=_dialect(source.database))
    except SqlglotError:
        return []
    common = {each.alias for each in parsed.find_all(exp.CTE)}
    found = (table for table in parsed.find_all(exp.Table) if table.name and (table.db or table.name not in common))
    return sorted({_named(source.database, table.db, table.name) for table in found})


def _dialect(database: Database) -> str:
    return _DIALECTS.get(database.dialect, database.dialect)


def _named(database: Database, schema: str, table: str) -> tuple[str, str]:
    """The namespace and the name of a table's dataset."""
    scheme, url = _dialect(database), database.url
    if scheme in ("duckdb", "sqlite"):
        return f"{scheme}://{Path(database.path).absolute()}", f"{schema or _SCHEMAS[scheme]}.{table}"
    namespace = f"{scheme}://{url.host or 'localhost'}:{url.port or _PORTS.get(scheme, 0)}".removesuffix(":0")
    if scheme == "mysql":
        return namespace, f"{schema or url.database}.{table}"
    parts = [url.database, schema or _SCHEMAS.get(scheme), table]
    return namespace, ".".join(part for part in parts if part)
