"""Runs: who may write one, what became of it, and which there are."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from batchscore.fingerprint import Fingerprint
from batchscore.interval import Interval
from batchscore.ledger.chunks import Totals, forget_chunks, forget_rejects
from batchscore.ledger.leases import clock
from batchscore.ledger.tables import CHUNKS, PROFILES, RUNS

__all__ = [
    "Run",
    "announce",
    "begin",
    "confirm",
    "cut",
    "disown",
    "doubtful",
    "fail",
    "find",
    "history",
    "hold_back",
    "is_published",
    "output_tables",
    "publish",
    "published",
    "published_before",
    "published_ids",
    "published_last",
    "rows_of_last",
    "run_id_of",
    "select_runs",
    "shadowers_of_table",
    "users_of_table",
]

Status = Literal["running", "published", "failed", "held", "superseded"]

# The name space of our run ids.
_NAMESPACE = uuid.UUID("6f0a4a2e-7f43-5c55-9f2b-3a0e6b9b7a51")


@dataclass(frozen=True, slots=True)
class Run:
    """One (job, interval, bundle) scored, as the ledger has it.

    Attributes:
        revision: One more than that of the interval's run published before it; 0 for the first.
        output_table: Where its predictions go, schema and all.
        shadow_version: The version that scores beside it, of the same name; None where none does.
        shadow_predictions: How many rows of it are published; None where there is none.
        scored_at: The one instant that every row of the run carries.
        sql_accepted: Why a query other than the bundle's was run; None where it was the bundle's.
        cuts: The values of the first key column that cut its rows into shards, as a JSON list; None where nothing does.
        ticket: The number by which its rows were sent to a Delta table; see `announce`.
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
    shadow_version: int | None = None
    status: Status = "running"
    sql_accepted: str | None = None
    cuts: str | None = None
    published_at: datetime | None = None
    rows_read: int | None = None
    predictions: int | None = None
    rejects: int | None = None
    chunks: int | None = None
    shadow_predictions: int | None = None
    input_hash: str | None = None
    error: str | None = None
    override_reason: str | None = None
    override_by: str | None = None
    ticket: int | None = None

    @property
    def stage(self) -> str:
        """The name of the table that holds its rows until they are published."""
        return f"batchscore_stage_{self.run_id.replace('-', '')[:20]}"

    @property
    def stamp(self) -> dict[str, str | int | datetime]:
        """What each of its rows carries in the output table."""
        return {
            "model_name": self.model_name,
            "model_version": self.model_version,
            "interval_start": self.interval.start,
            "scored_at": self.scored_at,
            "run_id": self.run_id,
        }


def run_id_of(
    job: str,
    interval: Interval,
    *,
    bundle_digest: str,
    query_digest: str,
    table: str,
    carry: Sequence[str],
    revision: int,
    shadow_digest: str | None = None,
) -> str:
    """A UUIDv5 of exactly what decides a run's result: the same work has the same id, on any machine."""
    bounds = [interval.start.isoformat(), interval.end.isoformat()]
    parts: list[object] = [job, *bounds, bundle_digest, query_digest, table, list(carry), revision]
    parts += [] if shadow_digest is None else [shadow_digest]
    return str(uuid.uuid5(_NAMESPACE, json.dumps(parts)))


def begin(tx: sa.Connection, run: Run, version: str) -> Run:
    """Enter the run, or take up the one that is there with its own `scored_at`. The caller has the interval's lease.

    Args:
        tx: An open transaction.
        run: The run as planned.
        version: batchscore's version, for the record.

    Returns:
        The run as the ledger has it; `published`, or `superseded` since, when another process was quicker.
    """
    # Between two releases it has a commit and a date, and may be longer than the column.
    record = {"batchscore_version": version[:32]}
    found = tx.execute(sa.select(RUNS).where(RUNS.c.run_id == run.run_id)).mappings().one_or_none()
    if found is None:
        tx.execute(sa.insert(RUNS).values(_columns(run) | record))
        return run
    taken = _run(found)
    if taken.status in ("published", "superseded"):
        return taken
    taken = replace(taken, status="running", error=None, sql_accepted=run.sql_accepted)
    tx.execute(sa.update(RUNS).where(RUNS.c.run_id == run.run_id).values(_columns(taken) | record))
    return taken


def cut(tx: sa.Connection, run: Run, cuts: Sequence[int | str]) -> Run:
    """Cut a run of which no chunk is committed into shards, for good."""
    done = replace(run, cuts=json.dumps(cuts))
    tx.execute(sa.update(RUNS).where(RUNS.c.run_id == run.run_id).values(cuts=done.cuts))
    return done


def published(tx: sa.Connection, run: Run) -> Run | None:
    """The run whose rows the output table holds for this run's interval now."""
    query = sa.select(RUNS).where(_same_interval(run), RUNS.c.status == "published")
    found = tx.execute(query).mappings().one_or_none()
    return _run(found) if found else None


def is_published(tx: sa.Connection, run: Run) -> bool:
    """Whether the output table holds this run's rows, and not those of another that replaced it."""
    now = published(tx, run)
    return now is not None and now.run_id == run.run_id


def published_last(tx: sa.Connection, job: str, output_table: str) -> Run | None:
    """The published run of the latest interval of a job into a table, by its full name."""
    c = RUNS.c
    query = sa.select(RUNS).where(c.job == job, c.output_table == output_table, c.status == "published")
    found = tx.execute(query.order_by(c.interval_start.desc()).limit(1)).mappings().one_or_none()
    return _run(found) if found else None


def output_tables(tx: sa.Connection) -> list[str]:
    """The full names of every output table that a run was begun for."""
    return list(tx.execute(sa.select(RUNS.c.output_table).distinct()).scalars())


def publish(
    tx: sa.Connection,
    run: Run,
    totals: Totals,
    inputs: Fingerprint,
    profiles: Sequence[Mapping[str, Any]],
    at: datetime,
) -> list[Run]:
    """Mark the run published and the interval's others superseded, in the transaction that replaces its rows.

    Args:
        tx: The publishing transaction, which has checked the interval's lease.
        run: The run.
        totals: Sums over its chunks.
        inputs: The fingerprint of the rows read.
        profiles: Rows of `batchscore_profiles` without `run_id`: the merged profile, one a column.
        at: Now.

    Returns:
        The runs overtaken before they were published: their stages serve nobody any more.
    """
    _finish(tx, run, _overriding(run), totals, inputs, profiles)
    return confirm(tx, run, at)


def announce(
    tx: sa.Connection, run: Run, totals: Totals, inputs: Fingerprint, profiles: Sequence[Mapping[str, Any]]
) -> Run:
    """Record all of a run that is about to be sent to a Delta table, for whoever has to `confirm` it; see `publish`.

    Until that is done or it is disowned, nobody knows whether the table has its rows.

    Returns:
        The run with its ticket, and how many rows are to be sent. The ticket is even, and above every other of the
        interval; it begins at the clock's microseconds, so that it is above those of an earlier ledger too.
    """
    last = tx.execute(sa.select(sa.func.max(RUNS.c.ticket)).where(_same_interval(run))).scalar() or 0
    ticket = max(int(clock(tx).timestamp() * 1_000_000), int(last) + 1)
    announced = replace(run, ticket=ticket + ticket % 2, predictions=totals.predictions)
    _finish(tx, run, {"ticket": announced.ticket, **_overriding(run)}, totals, inputs, profiles)
    return announced


def doubtful(tx: sa.Connection, job: str, output_table: str, start: datetime | None = None) -> list[Run]:
    """The runs of a job that were announced and neither confirmed nor disowned; of one interval, where it is given."""
    c = RUNS.c
    conditions = [c.job == job, c.output_table == output_table, c.status.in_(("running", "failed", "held")), in_doubt()]
    return select_runs(tx, *conditions, *([] if start is None else [c.interval_start == start]))


def in_doubt() -> sa.ColumnElement[bool]:
    """Whether an unfinished run was announced and not disowned since; NULL where it never was."""
    return RUNS.c.ticket % 2 == 0


def disown(tx: sa.Connection, run: Run) -> None:
    """Record that an announced run is not in the Delta table and never will be: its ticket becomes the odd one behind.

    A reason to override the gates goes too: whoever gave it has to decide again.
    """
    given_up = {"ticket": RUNS.c.ticket + 1, "override_reason": None, "override_by": None}
    tx.execute(sa.update(RUNS).where(RUNS.c.run_id == run.run_id, RUNS.c.ticket == run.ticket).values(given_up))


def confirm(tx: sa.Connection, run: Run, at: datetime) -> list[Run]:
    """Mark a run published of which everything else is recorded already; see `publish`."""
    query = sa.select(RUNS).where(_same_interval(run), RUNS.c.run_id != run.run_id, RUNS.c.status != "superseded")
    others = [_run(row) for row in tx.execute(query).mappings()]
    ids = [other.run_id for other in others]
    before = sa.select(RUNS.c.rows_so_far).where(_same_interval(run), RUNS.c.status == "published")
    its_own = sa.select(RUNS.c.rows_read).where(RUNS.c.run_id == run.run_id)
    so_far = tx.execute(its_own).scalar_one() + (tx.execute(before).scalar() or 0)
    tx.execute(sa.update(RUNS).where(RUNS.c.run_id.in_(ids)).values(status="superseded"))
    overtaken = [other for other in others if other.status != "published"]
    for other in overtaken:
        forget_chunks(tx, other.run_id)
        forget_rejects(tx, other.run_id)
    passed_over = None if run.override_reason is None else run.error
    done = {"status": "published", "published_at": at, "rows_so_far": so_far, "error": passed_over}
    tx.execute(sa.update(RUNS).where(RUNS.c.run_id == run.run_id).values(done))
    # A chunk's profile has served once it is merged.
    tx.execute(sa.update(CHUNKS).where(CHUNKS.c.run_id == run.run_id).values(profile=None))
    return overtaken


def _overriding(run: Run) -> dict[str, Any]:
    return {"override_reason": run.override_reason, "override_by": run.override_by}


def hold_back(
    tx: sa.Connection, run: Run, totals: Totals, inputs: Fingerprint, profiles: Sequence[Mapping[str, Any]], why: str
) -> None:
    """Record that a gate keeps the run, all of whose chunks are committed, from being published; see `publish`."""
    _finish(tx, run, {"status": "held", "error": why}, totals, inputs, profiles)


def _finish(
    tx: sa.Connection,
    run: Run,
    values: Mapping[str, Any],
    totals: Totals,
    inputs: Fingerprint,
    profiles: Sequence[Mapping[str, Any]],
) -> None:
    counts = {name: getattr(totals, name) for name in ("rows_read", "predictions", "rejects", "chunks")}
    done = {**values, **counts, "input_hash": str(inputs)}
    if run.shadow_version is not None:
        done["shadow_predictions"] = totals.shadow_predictions
    tx.execute(sa.update(RUNS).where(RUNS.c.run_id == run.run_id).values(done))
    tx.execute(sa.delete(PROFILES).where(PROFILES.c.run_id == run.run_id))
    if profiles:
        tx.execute(sa.insert(PROFILES), [{"run_id": run.run_id, **profile} for profile in profiles])


def fail(tx: sa.Connection, run_id: str, error: str) -> None:
    """Record why a run stopped. Its chunks stay, and the next attempt goes on behind them."""
    unpublished = sa.and_(RUNS.c.run_id == run_id, RUNS.c.status == "running")
    # Postgres has no NUL in text, and an error may quote one.
    tx.execute(sa.update(RUNS).where(unpublished).values(status="failed", error=error.replace("\0", "\\0")))


def select_runs(tx: sa.Connection, *conditions: sa.ColumnElement[bool]) -> list[Run]:
    """The runs that meet all conditions on the columns of `batchscore_runs`."""
    return [_run(row) for row in tx.execute(sa.select(RUNS).where(*conditions)).mappings()]


def history(tx: sa.Connection, job: str | None = None, *, limit: int | None = None) -> list[Run]:
    """The runs of a job, or of every job, by interval and then by age; with `limit` only the latest intervals'."""
    query = sa.select(RUNS)
    if job is not None:
        query = query.where(RUNS.c.job == job)
    query = query.order_by(RUNS.c.interval_start.desc(), RUNS.c.scored_at.desc()).limit(limit)
    return [_run(row) for row in reversed(tx.execute(query).mappings().all())]


def published_ids(tx: sa.Connection, job: str, bundle_digest: str, since: datetime, until: datetime) -> list[str]:
    """The ids of the job's published runs of a bundle whose intervals start in `[since, until)`, by interval."""
    c = RUNS.c
    query = sa.select(c.run_id).where(
        c.job == job,
        c.bundle_digest == bundle_digest,
        c.status == "published",
        c.interval_start >= since,
        c.interval_start < until,
    )
    return list(tx.execute(query.order_by(c.interval_start)).scalars())


def published_before(tx: sa.Connection, job: str, bundle_digest: str, start: datetime, count: int) -> list[Run]:
    """The job's last published runs of a bundle whose intervals start before that, by interval; at most `count`."""
    c = RUNS.c
    query = sa.select(RUNS).where(
        c.job == job, c.bundle_digest == bundle_digest, c.status == "published", c.interval_start < start
    )
    rows = tx.execute(query.order_by(c.interval_start.desc()).limit(count)).mappings().all()
    return [_run(row) for row in reversed(rows)]


def find(tx: sa.Connection, prefix: str) -> list[Run]:
    """The runs whose id begins with `prefix`."""
    query = sa.select(RUNS).where(RUNS.c.run_id.startswith(prefix, autoescape=True)).limit(10)
    return [_run(row) for row in tx.execute(query).mappings()]


def rows_of_last(tx: sa.Connection, run: Run, count: int) -> list[int]:
    """How many rows the last published intervals of the run's job and table before its own had, at most `count`."""
    c = RUNS.c
    of_table = sa.and_(c.job == run.job, c.output_table == run.output_table)
    earlier = sa.and_(of_table, c.status == "published", c.interval_start < run.interval.start)
    query = sa.select(c.rows_read).where(earlier).order_by(c.interval_start.desc()).limit(count)
    return [int(rows) for rows in tx.execute(query).scalars()]


def users_of_table(tx: sa.Connection, table: str) -> set[str]:
    """The jobs that have published into an output table, by its full name."""
    published = sa.and_(RUNS.c.output_table == table, RUNS.c.published_at.is_not(None))
    return set(tx.execute(sa.select(RUNS.c.job).where(published)).scalars())


def shadowers_of_table(tx: sa.Connection, table: str) -> set[str]:
    """The jobs that have published a shadow's predictions beside an output table, by its full name."""
    shadowed = sa.and_(RUNS.c.output_table == table, RUNS.c.shadow_predictions.is_not(None))
    return set(tx.execute(sa.select(RUNS.c.job).where(shadowed, RUNS.c.published_at.is_not(None))).scalars())


def _same_interval(run: Run) -> sa.ColumnElement[bool]:
    c = RUNS.c
    return sa.and_(c.job == run.job, c.interval_start == run.interval.start, c.output_table == run.output_table)


def _columns(run: Run) -> dict[str, Any]:
    values = {name: getattr(run, name) for name in Run.__slots__ if name != "interval"}
    return values | {"interval_start": run.interval.start, "interval_end": run.interval.end}


def _run(row: Mapping[Any, Any]) -> Run:
    values = {name: row[name] for name in Run.__slots__ if name != "interval"}
    return Run(interval=Interval(row["interval_start"], row["interval_end"]), **values)
