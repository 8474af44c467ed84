"""What one command works with, built from the settings when it is first asked for."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import structlog

from batchscore import cgroup, ledger, stop
from batchscore.database import Database
from batchscore.errors import (
    BatchscoreError,
    BundleIncompatible,
    BundleNotFound,
    SourceChanged,
    UsageError,
    WarehouseError,
)
from batchscore.job import Job, Rows, read_job
from batchscore.ledger import Run
from batchscore.logs import Event, log
from batchscore.model.bundle import Bundle, libraries_changed
from batchscore.model.features import Features
from batchscore.model.registry import Registry, Verified
from batchscore.model.scorer import check_golden
from batchscore.model.trust import Trust
from batchscore.monitor.apart import Samples
from batchscore.monitor.watch import Watcher
from batchscore.run.retry import Patience
from batchscore.run.scoring import Scoring, prepare
from batchscore.run.sending import settle_all
from batchscore.run.shadow import check_fits, without_reasons
from batchscore.schema import Schema
from batchscore.settings import Settings
from batchscore.sources import Source, open_source
from batchscore.sources.begun import Begun
from batchscore.warehouse import Warehouse, open_warehouse

__all__ = ["Session", "history_of", "runs_of", "secrets_of", "told_lacking"]

# Chunks of which there is room in memory: eight times a chunk's rows are held between reading and writing (measured on
# 300 columns: 17 KB for each row more of 2.4 KB), and they may take half of it.
_COPIES = 16
# A shorter one tells nobody anything, and its letters may stand in any word.
_SHORTEST_PATH = 12
_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "OPENLINEAGE_API_KEY",
)


@dataclass(frozen=True)
class Session:
    """The settings, one reading of the clock, and what they lead to."""

    settings: Settings
    now: datetime

    @classmethod
    def of(cls, settings: Settings) -> Session:
        """A session that begins now."""
        return cls(settings, datetime.now(UTC))

    @cached_property
    def registry(self) -> Registry:
        """Where bundles live."""
        settings = self.settings
        signing_key = settings.signing_key.get_secret_value() if settings.signing_key else None
        return Registry.at(
            settings.registry_url,
            Trust.of(settings.verify_keys, signing_key, settings.allow_unsigned, settings.allowed_modules),
        )

    def job(self, name: str) -> Job:
        """The job of that name, which every log line carries from now on."""
        structlog.contextvars.bind_contextvars(job=name)
        return read_job(name, self.settings.jobs_dir)

    def features(self, job: Job) -> Features:
        """The features module in the job folder."""
        return Features.at(self.features_path(job))

    def features_path(self, job: Job) -> Path:
        """Where the job's features module is."""
        return self.settings.jobs_dir / f"{job.name}.py"

    def query(self, job: Job) -> str:
        """All that decides which rows there are, as a bundle freezes it: the SQL and its parameters, or the path.

        Raises:
            UsageError: The file of the SQL cannot be read.
        """
        text = self.sql(job.source)
        if text is None:
            return f"-- parquet = {job.source.parquet!r}\n-- time_column = {job.source.time_column!r}"
        given = sorted(job.source.parameters.items())
        shown = [
            f"-- parameter {name} = {value!r}" if isinstance(value, str) else f"-- parameter {name} = {value}"
            for name, value in given
        ]
        return "\n".join([text, *shown])

    def sql(self, rows: Rows) -> str | None:
        """The text of a query in the SQL folder; None for Parquet.

        Raises:
            UsageError: The file cannot be read.
        """
        if rows.sql is None:
            return None
        path = self.settings.sql_dir / rows.sql
        try:
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{path} cannot be read: {error}. Paths in a job are relative to {self.settings.sql_dir}/."
            ) from error

    def source(self, job: Job, rows: Rows) -> Source:
        """The rows that the job's query or Parquet path gives, now."""
        database = None if rows.sql is None else Database.at(self.settings.source())
        where = str(rows.sql or rows.parquet)
        return open_source(rows, database=database, text=self.sql(rows), where=where, calendar=job.calendar)

    def scorer(self, job: Job, run: Run) -> Bundle:
        """What scored a run, without the values of what the job calls private by now.

        Raises:
            BundleNotFound: The registry no longer holds that version.
            BundleIncompatible: It holds another one under that number, or one that cannot be used here.
        """
        bundle = self.load(run.model_name, run.model_version)
        if bundle.digest != run.bundle_digest:
            raise BundleIncompatible(f"{bundle} in {self.registry} is another one than scored them")
        return bundle.without_values(job.source.private)

    def watcher(self, job: Job, bundle: Bundle) -> Watcher:
        """What compares runs of the bundle, as the job's `[drift]` has it."""
        size = job.drift.sample
        return Watcher(job, bundle, Samples(self.source(job, job.source), bundle, size) if size else None)

    def labels(self, job: Job) -> Source:
        """The job's labels.

        Raises:
            UsageError: The job has none.
        """
        if job.labels is None:
            raise UsageError(
                f"job {job.name} has no [labels]. Add it to the job's file: what gives the key and the target."
            )
        return self.source(job, job.labels)

    def load(self, name: str, use: str | int) -> Bundle:
        """A version, verified; where no signature of it was looked at, the log says so.

        Raises:
            BundleNotFound: There is none.
            BundleError: It cannot be used.
        """
        return self.registry.unpacked(self._verified(name, use))

    def _verified(self, name: str, use: str | int) -> Verified:
        found = self.registry.verified(name, self.registry.resolve(name, use))
        name, version = found.manifest.name, found.manifest.version
        # Where keys are set, somebody let it in past them; where none are, that is how the registry is used.
        if found.signed_by is None and self.registry.trust.keys:
            log.warning(Event.BUNDLE_UNSIGNED, model=name, version=version)
        elif found.signed_by is None:
            log.info(Event.BUNDLE_UNSIGNED, model=name, version=version)
        return found

    def verified(self, job: Job) -> Verified:
        """The files of the bundle that the job uses, verified; see `load`."""
        try:
            return self.patience().persist(lambda: self._verified(job.model.name, job.model.use))
        except BundleNotFound as error:
            # The registry knows models, and not which job trains one.
            raise BundleNotFound(str(error).replace("<job>", job.name)) from None

    def bundle(self, job: Job, verified: Verified | None = None) -> Bundle:
        """The bundle the job uses, its golden rows scored here, and without the values of private columns.

        Args:
            job: The job.
            verified: Its files, where they are at hand.
        """
        bundle = self.registry.unpacked(verified or self.verified(job))
        check_golden(bundle)
        bundle = self.compiled(job, bundle)
        log.info(Event.BUNDLE_LOADED, model=bundle.name, version=bundle.version, digest=bundle.digest)
        if changed := libraries_changed(bundle.manifest):
            log.warning(Event.BUNDLE_LIBRARIES, model=bundle.name, version=bundle.version, libraries=changed)
        path = self.features_path(job)
        # The bundle's features run: a file that is not here, or may not be read, says nothing of them.
        with contextlib.suppress(OSError):
            if path.read_text("utf-8", errors="replace") != bundle.predictor.features.source:
                log.warning(Event.FEATURES_DIFFER, path=str(path), ran=f"{bundle}")
        return bundle.without_values(job.source.private)

    def compiled(self, job: Job, bundle: Bundle) -> Bundle:
        """The bundle with its compiled trees in use, where the job wants that and they agree with the original."""
        if not job.model.compile or not bundle.compiled:
            return bundle
        from batchscore.model.compiled import put_to_use

        # Where keys are set, and somebody let it in past them, its code is not trusted that far.
        return put_to_use(bundle, trusted=bundle.signed_by is not None or not self.registry.trust.keys)

    def challenger(self, job: Job, bundle: Bundle) -> Bundle:
        """The bundle that the job wants scored beside its own, verified like that one, without its reasons.

        Raises:
            BundleNotFound: There is none, or it is the job's own.
            BundleError: It cannot be used, or not on these rows.
            WarehouseError: A file of it cannot be read.
        """
        name, wanted = job.model.name, job.model.shadow
        if wanted is None:
            raise BundleNotFound(f"job {job.name} has no shadow in [model].")
        if (version := self.registry.resolve(name, wanted)) == bundle.version:
            raise BundleNotFound(f"{wanted} is {bundle}, which scores already.")
        try:
            shadow = self.load(name, version)
            check_golden(shadow)
            shadow = self.compiled(job, shadow)
        except BatchscoreError:
            raise
        except Exception as error:
            raise BundleIncompatible(
                f"{name} version {version} cannot be loaded: {type(error).__name__}: {error}. Retrain it."
            ) from error
        check_fits(shadow, bundle, self.query(job))
        return without_reasons(shadow)

    def shadow(self, job: Job, bundle: Bundle) -> Bundle | None:
        """The same; None where there is none or it cannot be used, which the log tells."""
        if job.model.shadow is None:
            return None
        try:
            shadow = self.challenger(job, bundle)
        except BundleNotFound as error:
            log.info(Event.SHADOW_NONE, shadow=str(job.model.shadow), why=str(error))
            return None
        except BatchscoreError as error:
            log.warning(Event.SHADOW_OFF, shadow=str(job.model.shadow), error=str(error))
            return None
        log.info(Event.SHADOW_LOADED, model=shadow.name, version=shadow.version, digest=shadow.digest)
        return shadow

    def patience(self) -> Patience:
        """How long to go on trying what fails for now."""
        return Patience(self.settings.retry_seconds)

    def warehouse(self, *, read_only: bool = False, outdated: bool = False) -> Warehouse:
        """The warehouse, connected; an embedded one that another process has open is waited for.

        Args:
            read_only: For a command that only looks.
            outdated: Whether it may look at a ledger whose tables lack columns, for an earlier version made them. One
                that writes adds them.

        Raises:
            WarehouseError: They lack some that cannot be added, or are only looked at.
        """
        database = Database.at(self.settings.warehouse())
        if read_only and not database.is_there():
            print(f"{database} is not there yet", file=sys.stderr)
        delta_url = self.settings.delta_url
        warehouse = self.patience().persist(lambda: open_warehouse(database, read_only=read_only, delta_url=delta_url))
        if not read_only:
            stop.roll_back()
        if not outdated:
            try:
                self.patience().persist(lambda: _up_to_date(warehouse, read_only=read_only))
            except BaseException:
                warehouse.close()
                raise
        return warehouse

    def settle(self, warehouse: Warehouse, job: Job) -> None:
        """Record what earlier processes committed to the job's Delta table and did not live to record.

        Raises:
            WarehouseError, TransientError: The table or the ledger cannot be read or written.
        """
        settle_all(warehouse, job.name, job.output.table, self.patience(), self.settings.lease_seconds)

    def chunk_rows(self, job: Job, schema: Schema, workers: int = 1) -> int:
        """The job's rows a chunk, or fewer where the memory would not hold them for each worker."""
        memory = cgroup.memory()
        most = max(1, memory // (_COPIES * workers * schema.row_bytes))
        if most < job.limits.chunk_rows:
            log.info(Event.CHUNK_BOUNDED, chunk_rows=most, asked=job.limits.chunk_rows, memory=memory)
        return min(job.limits.chunk_rows, most)

    def scoring(
        self,
        job: Job,
        bundle: Bundle,
        warehouse: Warehouse,
        accept: str | None,
        chunk_rows: int,
        begun: Begun | None = None,
        shards: int = 1,
    ) -> Scoring:
        """Everything that scoring needs, with the output table made or checked.

        Raises:
            SourceChanged: See `accepted_change`.
        """
        changed = self.accepted_change(job, bundle, accept)
        if changed:
            log.warning(Event.SQL_ACCEPTED, reason=accept, change=changed)
        shadow = self.shadow(job, bundle)
        return self.patience().persist(
            lambda: prepare(
                job,
                bundle,
                self.source(job, job.source),
                warehouse,
                shadow=shadow,
                query_digest=hashlib.sha256(self.query(job).encode()).hexdigest(),
                sql_accepted=accept if changed else None,
                chunk_rows=chunk_rows,
                lease_seconds=self.settings.lease_seconds,
                retry_seconds=self.settings.retry_seconds,
                begun=begun,
                shards=shards,
            )
        )

    def accepted_change(self, job: Job, bundle: Bundle | Verified, accept: str | None) -> str:
        """How the job's query differs from the one the bundle froze; empty when it does not.

        Raises:
            SourceChanged: It does, and nobody accepted that.
            UsageError: Somebody accepted it without a reason.
        """
        if accept is not None and not accept.strip():
            raise UsageError("--accept-sql wants a reason, which the ledger keeps: say why the change does no harm.")
        changed = self.query_change(job, bundle)
        if changed and accept is None:
            raise SourceChanged(
                f"{job.source.sql or job.source.parquet} is not what {bundle} was trained with:\n{changed}\n"
                f'Retrain (batchscore train {job.name}), or accept it for this run: --accept-sql "why it is the same".'
            )
        return changed

    def query_change(self, job: Job, bundle: Bundle | Verified) -> str:
        """How the job's query differs from the one the bundle froze; empty when it does not."""
        now, then = self.query(job), bundle.query
        if now == then:
            return ""
        lines = difflib.unified_diff(
            then.splitlines(), now.splitlines(), f"{bundle}", str(job.source.sql or job.source.parquet), lineterm=""
        )
        return "\n".join(f"  {line}" for line in lines)


def _up_to_date(warehouse: Warehouse, *, read_only: bool) -> None:
    if not read_only:
        warehouse.complete(ledger.METADATA)
    elif lacking := told_lacking(warehouse.outdated(ledger.METADATA)):
        raise WarehouseError(
            f"{warehouse.database}: an earlier version made the ledger's tables, which lack {lacking}. Run batchscore "
            "migrate, which adds that, as the next run does."
        )


def told_lacking(outdated: Mapping[str, Sequence[str]]) -> str:
    """What tables lack, in words; none where they lack nothing."""
    return "; ".join(f"{', '.join(columns)} ({table})" for table, columns in outdated.items())


def secrets_of(settings: Settings) -> list[str]:
    """Every secret in the settings, and in the environment for what is elsewhere, in each of its spellings."""
    passwords = [secret for url in settings.urls() for secret in Database.at(url).secrets()]
    key = settings.signing_key.get_secret_value() if settings.signing_key else ""
    # Line by line: a message may hold one of them.
    lines = [line for line in key.splitlines() if line and not line.startswith("-----")]
    webhook = settings.alert_webhook_url.get_secret_value() if settings.alert_webhook_url else ""
    # Whoever has the path may post, whatever the host is called in front of it.
    path = webhook.partition("://")[2].partition("/")[2]
    webhooks = [webhook, path if len(path) >= _SHORTEST_PATH else ""]
    # Without a scheme it is no URL, and its password no password to those who parse one.
    login = os.environ.get("OPENLINEAGE_URL", "").rpartition("@")[0].rpartition("//")[2]
    return [
        *passwords,
        *lines,
        *webhooks,
        login,
        login.partition(":")[2],
        *(os.environ.get(name, "") for name in _SECRET_VARIABLES),
    ]


def runs_of(warehouse: Warehouse, job: Job) -> list[Run]:
    """The runs of a job into its output table, by interval and then by age; none where there is no ledger yet."""
    with warehouse.begin("the ledger") as tx:
        if not tx.has_table(ledger.RUNS.name):
            return []
        table = tx.full_name(job.output.table)
        return [run for run in ledger.history(tx.connection, job.name) if run.output_table == table]


def history_of(warehouse: Warehouse, job: str | None = None, limit: int | None = None) -> list[Run]:
    """The runs in a warehouse's ledger; none where there is no ledger yet."""
    with warehouse.begin("the ledger") as tx:
        return ledger.history(tx.connection, job, limit=limit) if tx.has_table(ledger.RUNS.name) else []
