"""The ledger: what ran, what is done, what was seen. Tables in the warehouse, beside the predictions.

Every function takes the connection of an open transaction and opens none, so that work and its record commit
together or not at all.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from batchscore.errors import IntervalLeased
from batchscore.interval import Interval

__all__ = [
    "METADATA",
    "Progress",
    "Run",
    "Totals",
    "begin",
    "chunk_profiles",
    "complete",
    "decode_key",
    "drift_of",
    "encode_key",
    "fail",
    "find",
    "forget_chunks",
    "forget_rejects",
    "history",
    "hold",
    "hold_interval",
    "profiles_of",
    "progress",
    "publish",
    "reject_reasons",
    "rejects_kept",
    "rejects_of",
    "run_id_of",
    "save_drift",
    "totals_of",
    "users_of_table",
]

Status = Literal["running", "published", "failed", "superseded"]
Key = Sequence[int | str | bool | date | datetime]

# The name space of our run ids.
_NAMESPACE = uuid.UUID("6f0a4a2e-7f43-5c55-9f2b-3a0e6b9b7a51")


class _Instant(sa.types.TypeDecorator[datetime]):
    """An aware instant, in UTC on the way in and out, on databases with and without time zones."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


METADATA = sa.MetaData()

RUNS = sa.Table(
    "batchscore_runs",
    METADATA,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("job", sa.String(64), nullable=False),
    sa.Column("interval_start", _Instant, nullable=False),
    sa.Column("interval_end", _Instant, nullable=False),
    sa.Column("model_name", sa.String(64), nullable=False),
    sa.Column("model_version", sa.BigInteger, nullable=False),
    sa.Column("bundle_digest", sa.String(64), nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("output_table", sa.String(128), nullable=False),
    sa.Column("sql_accepted", sa.Text),
    sa.Column("scored_at", _Instant, nullable=False),
    sa.Column("published_at", _Instant),
    sa.Column("rows_read", sa.BigInteger),
    sa.Column("predictions", sa.BigInteger),
    sa.Column("rejects", sa.BigInteger),
    sa.Column("chunks", sa.BigInteger),
    sa.Column("error", sa.Text),
    sa.Column("batchscore_version", sa.String(32), nullable=False),
)
"""One row for each run.

Attributes:
    run_id: A UUIDv5 of what decides the run's result.
    job: The job's name.
    interval_start: The interval's first instant.
    interval_end: The first instant behind the interval.
    model_name: The bundle's name.
    model_version: The bundle's version.
    bundle_digest: The bundle's digest.
    revision: How many runs of this interval by this bundle were published before it.
    status: `running`, `published`, `failed`, or `superseded`: published once, and replaced since.
    fence: How many processes have taken the run up; only the last of them may commit.
    output_table: Where its predictions go.
    sql_accepted: The reason given for a query that is not the bundle's; NULL where it was the bundle's.
    scored_at: The one instant that every row of the run carries.
    published_at: When it was published.
    rows_read: Predictions and rejects together; NULL until it is published, like the next three.
    predictions: Rows published.
    rejects: Rows that could not be scored.
    chunks: Chunks committed.
    error: Why it failed.
    batchscore_version: The version that ran last.
"""

CHUNKS = sa.Table(
    "batchscore_chunks",
    METADATA,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("shard", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("chunk", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key_low", sa.Text, nullable=False),
    sa.Column("key_high", sa.Text, nullable=False),
    sa.Column("rows_read", sa.BigInteger, nullable=False),
    sa.Column("predictions", sa.BigInteger, nullable=False),
    sa.Column("rejects", sa.BigInteger, nullable=False),
    sa.Column("committed_at", _Instant, nullable=False),
    sa.Column("profile", sa.Text),
)
"""One row for each committed chunk: where a run resumes.

Attributes:
    run_id: The run.
    shard: 0.
    chunk: The chunk's number in the run, from 0.
    key_low: The key of its first row, as JSON.
    key_high: The key of its last row, as JSON.
    rows_read: Predictions and rejects together.
    predictions: Rows staged.
    rejects: Rows that could not be scored.
    committed_at: When it was committed.
    profile: What it saw, as JSON; NULL once the run is published and `batchscore_profiles` has the whole.
"""

REJECTS = sa.Table(
    "batchscore_rejects",
    METADATA,
    sa.Column("run_id", sa.String(36), nullable=False),
    sa.Column("shard", sa.BigInteger, nullable=False),
    sa.Column("chunk", sa.BigInteger, nullable=False),
    sa.Column("row_key", sa.Text, nullable=False),
    sa.Column("stage", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(32), nullable=False),
    sa.Column("detail", sa.Text),
)
"""One row for each row that could not be scored.

Attributes:
    run_id: The run.
    shard: 0.
    chunk: The chunk that it was in.
    row_key: Its key, as a JSON list.
    stage: Where it failed: `input`, `features`, `pipeline` or `prediction`.
    reason: `unexpected_null`, `unexpected_nan` or `unexpected_infinity`: a column holds what training never saw in it;
        `features_failed`, `pipeline_failed`: the code raised; `score_not_finite`: the pipeline gave no number.
    detail: The column, or the exception.
"""

PROFILES = sa.Table(
    "batchscore_profiles",
    METADATA,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("role", sa.String(16), primary_key=True),
    sa.Column("column_name", sa.String(128), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("row_count", sa.BigInteger, nullable=False),
    sa.Column("null_count", sa.BigInteger, nullable=False),
    sa.Column("null_share", sa.Double),
    sa.Column("unseen_share", sa.Double),
    sa.Column("mean", sa.Double),
    sa.Column("std", sa.Double),
    sa.Column("minimum", sa.Double),
    sa.Column("maximum", sa.Double),
    sa.Column("profile", sa.Text, nullable=False),
)
"""One row for each column that a published run saw or gave.

Attributes:
    run_id: The run.
    role: `input`: a column of the source, rejects included; `output`: the prediction or a score.
    column_name: The column.
    kind: `numeric`, `categorical`, `boolean`, `datetime` or `text`; fixed by the training rows.
    row_count: Rows.
    null_count: Rows with NULL.
    null_share: Share of rows with NULL or NaN.
    unseen_share: Share of rows with a category that training never saw; categorical only.
    mean: Mean of the finite values: microseconds since 1970 for a datetime, characters for a text.
    std: Their standard deviation.
    minimum: The smallest.
    maximum: The largest.
    profile: All of it as JSON, bins included.
"""

DRIFT = sa.Table(
    "batchscore_drift",
    METADATA,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("reference", sa.String(32), primary_key=True),
    sa.Column("role", sa.String(16), primary_key=True),
    sa.Column("column_name", sa.String(128), primary_key=True),
    sa.Column("metric", sa.String(32), primary_key=True),
    sa.Column("value", sa.Double),
    sa.Column("floor", sa.Double),
    sa.Column("band", sa.Double, nullable=False),
    sa.Column("verdict", sa.String(24), nullable=False),
    sa.Column("row_count", sa.BigInteger, nullable=False),
    sa.Column("reference_count", sa.BigInteger, nullable=False),
)
"""One row for each metric of each column of a published run.

Attributes:
    run_id: The run.
    reference: What it is compared with: `training`.
    role: `input` or `output`.
    column_name: The column.
    metric: The drift metric.
    value: Its value; NULL where either side has nothing to measure.
    floor: What chance explains at these row counts.
    band: The value at which it matters.
    verdict: `moved`, `steady` or `not enough data`.
    row_count: What the value is measured over: rows, or rows with a value.
    reference_count: The same in the reference.
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One (job, interval, bundle) scored, as the ledger has it.

    Attributes:
        revision: How many runs of the same work were published before it.
        fence: Counts the processes that took the run up; only the last of them may commit.
        scored_at: The one instant that every row of the run carries.
        sql_accepted: Why a query other than the bundle's was run; None where it was the bundle's.
    """

    run_id: str
    job: str
    interval: Interval
    model_name: str
    model_version: int
    bundle_digest: str
    revision: int
    output_table: str
    scored_at: datetime
    status: Status = "running"
    fence: int = 1
    sql_accepted: str | None = None
    published_at: datetime | None = None
    rows_read: int | None = None
    predictions: int | None = None
    rejects: int | None = None
    chunks: int | None = None
    error: str | None = None

    @property
    def stage(self) -> str:
        """The name of the table that holds its rows until they are published."""
        return f"batchscore_stage_{self.run_id.replace('-', '')[:20]}"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one shard of a run has come.

    Attributes:
        chunks: Chunks committed.
        key_high: The last key committed; None before the first chunk.
    """

    chunks: int
    key_high: tuple[Any, ...] | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the committed chunks of a run."""

    chunks: int
    rows_read: int
    predictions: int
    rejects: int


def run_id_of(job: str, interval: Interval, bundle_digest: str, sql_digest: str, table: str, revision: int) -> str:
    """A UUIDv5 of exactly what decides a run's result: the same work has the same id, on any machine."""
    parts = [job, interval.start.isoformat(), interval.end.isoformat(), bundle_digest, sql_digest, table, revision]
    return str(uuid.uuid5(_NAMESPACE, json.dumps(parts)))


def begin(tx: sa.Connection, run: Run, version: str) -> Run:
    """Enter the run, or take up the one that is there with its own `scored_at`, shutting out whoever held it.

    Args:
        tx: An open transaction.
        run: The run as planned.
        version: batchscore's version, for the record.

    Returns:
        The run as the ledger has it; `published`, or `superseded` since, when another process was quicker.
    """
    record = {"batchscore_version": version}
    # Postgres' INSERT … ON CONFLICT is SQLite's and DuckDB's too. It waits for another that is entering the same run.
    entered = insert(RUNS).values(_columns(run) | record).on_conflict_do_nothing().returning(RUNS.c.run_id)
    if tx.execute(entered).one_or_none():
        return run
    taken = _run(tx.execute(_locked(sa.select(RUNS).where(RUNS.c.run_id == run.run_id), tx)).mappings().one())
    if taken.status in ("published", "superseded"):
        return taken
    taken = replace(taken, status="running", fence=taken.fence + 1, error=None, sql_accepted=run.sql_accepted)
    tx.execute(sa.update(RUNS).where(RUNS.c.run_id == run.run_id).values(_columns(taken) | record))
    return taken


def hold(tx: sa.Connection, run: Run) -> None:
    """Make sure, until the transaction ends, that the run is still this process's to write.

    Raises:
        IntervalLeased: Another process took the run up, or it is no longer running.
    """
    query = sa.select(RUNS.c.fence, RUNS.c.status).where(RUNS.c.run_id == run.run_id)
    found = tx.execute(_locked(query, tx)).one_or_none()
    if found is None or (found.fence, found.status) != (run.fence, "running"):
        raise IntervalLeased(
            f"run {run.run_id} of {run.interval}: another process has taken it up since. This one stops and writes "
            "nothing more; let the other finish, or run again when it has ended.",
            run_id=run.run_id,
        )


def forget_chunks(tx: sa.Connection, run_id: str) -> None:
    """Forget what a run has committed, so that it starts from nothing."""
    tx.execute(sa.delete(CHUNKS).where(CHUNKS.c.run_id == run_id))


def forget_rejects(tx: sa.Connection, run_id: str) -> None:
    """Forget the rejects of an attempt that starts again."""
    tx.execute(sa.delete(REJECTS).where(REJECTS.c.run_id == run_id))


def progress(tx: sa.Connection, run_id: str, shard: int) -> Progress:
    """Where the shard goes on."""
    query = sa.select(CHUNKS.c.chunk, CHUNKS.c.key_high).where(CHUNKS.c.run_id == run_id, CHUNKS.c.shard == shard)
    last = tx.execute(query.order_by(CHUNKS.c.chunk.desc()).limit(1)).one_or_none()
    return Progress(0, None) if last is None else Progress(last.chunk + 1, decode_key(last.key_high))


def complete(
    tx: sa.Connection,
    run_id: str,
    *,
    shard: int,
    chunk: int,
    keys: tuple[Key, Key],
    totals: Totals,
    profile: Mapping[str, Any],
    committed_at: datetime,
) -> None:
    """Record a chunk as done, in the transaction that stages its rows."""
    values = {
        "run_id": run_id,
        "shard": shard,
        "chunk": chunk,
        "key_low": encode_key(keys[0]),
        "key_high": encode_key(keys[1]),
        "rows_read": totals.rows_read,
        "predictions": totals.predictions,
        "rejects": totals.rejects,
        "committed_at": committed_at,
        "profile": json.dumps(profile, separators=(",", ":"), allow_nan=False),
    }
    tx.execute(sa.insert(CHUNKS).values(values))


def rejects_kept(tx: sa.Connection, run_id: str) -> int:
    """How many rejects of the run are kept."""
    return int(tx.execute(sa.select(sa.func.count()).where(REJECTS.c.run_id == run_id)).scalar_one())


def reject_reasons(tx: sa.Connection, run_id: str, limit: int = 5) -> list[tuple[str, str, int]]:
    """Reason, detail and count of a run's rejects, the most frequent first."""
    c = REJECTS.c
    count = sa.func.count().label("rejects")
    query = sa.select(c.reason, c.detail, count).where(c.run_id == run_id).group_by(c.reason, c.detail)
    return [(row.reason, row.detail, row.rejects) for row in tx.execute(query.order_by(count.desc()).limit(limit))]


def totals_of(tx: sa.Connection, run_id: str) -> Totals:
    """Sums over the run's committed chunks."""
    c = CHUNKS.c
    sums = [sa.func.coalesce(sa.func.sum(column), 0) for column in (c.rows_read, c.predictions, c.rejects)]
    row = tx.execute(sa.select(sa.func.count(), *sums).where(c.run_id == run_id)).one()
    return Totals(*(int(value) for value in row))


def chunk_profiles(tx: sa.Connection, run_id: str) -> list[Mapping[str, Any]]:
    """The profiles of the run's chunks, in chunk order, so that merging them gives the same floats every time."""
    query = sa.select(CHUNKS.c.profile).where(CHUNKS.c.run_id == run_id).order_by(CHUNKS.c.shard, CHUNKS.c.chunk)
    return [json.loads(profile) for profile in tx.execute(query).scalars()]


def hold_interval(tx: sa.Connection, run: Run) -> None:
    """`hold`, and every other run of the interval with it.

    A second publisher of the interval waits here, and then sees the first one's rows.

    Raises:
        IntervalLeased: See `hold`.
    """
    same = sa.and_(RUNS.c.job == run.job, RUNS.c.interval_start == run.interval.start)
    tx.execute(_locked(sa.select(RUNS.c.run_id).where(same).order_by(RUNS.c.run_id), tx)).all()
    hold(tx, run)


def publish(tx: sa.Connection, run: Run, totals: Totals, profiles: Sequence[Mapping[str, Any]], at: datetime) -> None:
    """Mark the run published and the interval's earlier one superseded, in the transaction that replaces its rows.

    Args:
        tx: The publishing transaction, holding the interval.
        run: The run.
        totals: Sums over its chunks.
        profiles: Rows of `batchscore_profiles` without `run_id`: the merged profile, one a column.
        at: Now.
    """
    earlier = sa.and_(
        RUNS.c.job == run.job,
        RUNS.c.interval_start == run.interval.start,
        RUNS.c.status == "published",
        RUNS.c.run_id != run.run_id,
    )
    tx.execute(sa.update(RUNS).where(earlier).values(status="superseded"))
    done = {
        "status": "published",
        "published_at": at,
        "rows_read": totals.rows_read,
        "predictions": totals.predictions,
        "rejects": totals.rejects,
        "chunks": totals.chunks,
        "error": None,
    }
    tx.execute(sa.update(RUNS).where(RUNS.c.run_id == run.run_id).values(done))
    # A chunk's profile has served once it is merged.
    tx.execute(sa.update(CHUNKS).where(CHUNKS.c.run_id == run.run_id).values(profile=None))
    if profiles:
        tx.execute(sa.insert(PROFILES), [{"run_id": run.run_id, **profile} for profile in profiles])


def fail(tx: sa.Connection, run_id: str, error: str) -> None:
    """Record why a run stopped. Its chunks stay, and the next attempt goes on behind them."""
    unpublished = sa.and_(RUNS.c.run_id == run_id, RUNS.c.status == "running")
    # Postgres has no NUL in text, and an error may quote one.
    tx.execute(sa.update(RUNS).where(unpublished).values(status="failed", error=error.replace("\0", "\\0")))


def history(tx: sa.Connection, job: str | None = None, *, limit: int | None = None) -> list[Run]:
    """The runs of a job, or of every job, by interval and then by age; with `limit` only the latest intervals'."""
    query = sa.select(RUNS)
    if job is not None:
        query = query.where(RUNS.c.job == job)
    query = query.order_by(RUNS.c.interval_start.desc(), RUNS.c.scored_at.desc()).limit(limit)
    return [_run(row) for row in reversed(tx.execute(query).mappings().all())]


def find(tx: sa.Connection, prefix: str) -> list[Run]:
    """The runs whose id begins with `prefix`."""
    query = sa.select(RUNS).where(RUNS.c.run_id.startswith(prefix, autoescape=True)).limit(10)
    return [_run(row) for row in tx.execute(query).mappings()]


def users_of_table(tx: sa.Connection, table: str) -> set[str]:
    """The jobs that have published into an output table."""
    query = sa.select(RUNS.c.job).where(RUNS.c.output_table == table, RUNS.c.published_at.is_not(None))
    return set(tx.execute(query.distinct()).scalars())


def rejects_of(tx: sa.Connection, run_id: str, limit: int | None = None) -> list[Mapping[str, Any]]:
    """The rows of a run that could not be scored, by chunk and key."""
    c = REJECTS.c
    query = (
        sa.select(c.row_key, c.stage, c.reason, c.detail)
        .where(c.run_id == run_id)
        .order_by(c.chunk, c.row_key)
        .limit(limit)
    )
    return [dict(row) for row in tx.execute(query).mappings()]


def profiles_of(tx: sa.Connection, run_id: str) -> list[Mapping[str, Any]]:
    """The merged profile of a published run, one row of `batchscore_profiles` a column."""
    return [dict(row) for row in tx.execute(sa.select(PROFILES).where(PROFILES.c.run_id == run_id)).mappings()]


def save_drift(tx: sa.Connection, run_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace what is known of a run's drift. Rows of `batchscore_drift` without `run_id`."""
    tx.execute(sa.delete(DRIFT).where(DRIFT.c.run_id == run_id))
    listed = [{"run_id": run_id, **row} for row in rows]
    if listed:
        tx.execute(sa.insert(DRIFT), listed)


def drift_of(tx: sa.Connection, run_id: str) -> list[Mapping[str, Any]]:
    """How a run's columns compare with training, by role, column and metric."""
    c = DRIFT.c
    query = sa.select(DRIFT).where(c.run_id == run_id).order_by(c.role, c.column_name, c.metric)
    return [dict(row) for row in tx.execute(query).mappings()]


def encode_key(key: Key) -> str:
    """A key as JSON; dates and instants tell their type."""
    return json.dumps([_tagged(part) for part in key])


def decode_key(text: str) -> tuple[Any, ...]:
    """What `encode_key` wrote."""
    return tuple(_untagged(part) for part in json.loads(text))


def _tagged(part: object) -> object:
    if isinstance(part, datetime):
        return {"datetime": part.isoformat()}
    return {"date": part.isoformat()} if isinstance(part, date) else part


def _untagged(part: Any) -> object:
    match part:
        case {"datetime": text}:
            return datetime.fromisoformat(text)
        case {"date": text}:
            return date.fromisoformat(text)
        case _:
            return part


def _locked(query: sa.Select[Any], tx: sa.Connection) -> sa.Select[Any]:
    # DuckDB has no row locks and one process; SQLite locks the file when a transaction begins.
    return query if tx.dialect.name == "duckdb" else query.with_for_update()


def _columns(run: Run) -> dict[str, Any]:
    values = {name: getattr(run, name) for name in Run.__slots__ if name != "interval"}
    return values | {"interval_start": run.interval.start, "interval_end": run.interval.end}


def _run(row: Mapping[Any, Any]) -> Run:
    values = {name: row[name] for name in Run.__slots__ if name != "interval"}
    return Run(interval=Interval(row["interval_start"], row["interval_end"]), **values)
