"""Chunks and rejects: how far a run has come, and what it could not score."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa

from batchscore.fingerprint import Fingerprint
from batchscore.ledger.tables import CHUNKS, REJECTS

__all__ = [
    "Key",
    "Progress",
    "Totals",
    "chunk_profiles",
    "complete",
    "encode_key",
    "forget_chunks",
    "forget_rejects",
    "progress",
    "reject_counts",
    "reject_reasons",
    "rejects_kept",
    "rejects_of",
    "totals_of",
]

Key = Sequence[int | str | bool | date | datetime]

_SUMMED = ("rows_read", "predictions", "rejects", "shadow_predictions", "shadow_failures")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run, or one shard of it, has come.

    Attributes:
        chunks: Chunks committed.
        inputs: The fingerprint of their rows.
        failures: Rows of the run, whichever shard's, on which the features or the pipeline failed.
        shadow_failures: Rows on which those of its shadow did.
    """

    chunks: int
    inputs: Fingerprint = field(default_factory=Fingerprint)
    failures: int = 0
    shadow_failures: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the committed chunks of a run; each field but the first is a column of `batchscore_chunks`."""

    chunks: int
    rows_read: int
    predictions: int
    rejects: int
    shadow_predictions: int = 0
    shadow_failures: int = 0


def complete(
    tx: sa.Connection,
    run_id: str,
    *,
    shard: int,
    chunk: int,
    keys: tuple[Key, Key],
    totals: Totals,
    inputs: Fingerprint,
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
        **{name: getattr(totals, name) for name in _SUMMED},
        "input_hash": str(inputs),
        "committed_at": committed_at,
        "profile": json.dumps(profile, separators=(",", ":"), allow_nan=False),
    }
    tx.execute(sa.insert(CHUNKS).values(values))


def progress(tx: sa.Connection, run_id: str, shard: int | None = None) -> Progress:
    """Where a shard goes on; of the whole run where none is named."""
    c = CHUNKS.c
    query = sa.select(c.shard, c.chunk, c.rows_read, c.input_hash, c.shadow_failures).where(c.run_id == run_id)
    if shard is not None:
        query = query.where(c.shard == shard)
    done = tx.execute(query.order_by(c.shard, c.chunk)).all()
    # A chunk that lacks one before it, which somebody has removed, is counted with that one.
    chunks = sum({chunk.shard: chunk.chunk + 1 for chunk in done}.values())
    inputs = sum((Fingerprint.parse(chunk.rows_read, chunk.input_hash) for chunk in done), Fingerprint())
    return Progress(chunks, inputs, failures(tx, run_id), sum(chunk.shadow_failures for chunk in done))


def failures(tx: sa.Connection, run_id: str) -> int:
    """On how many rows of a run the features or the pipeline failed."""
    failed = sa.and_(REJECTS.c.run_id == run_id, REJECTS.c.stage.in_(("features", "pipeline")))
    return int(tx.execute(sa.select(sa.func.count()).where(failed)).scalar_one())


def totals_of(tx: sa.Connection, run_id: str) -> Totals:
    """Sums over the run's committed chunks."""
    sums = [sa.func.coalesce(sa.func.sum(CHUNKS.c[name]), 0) for name in _SUMMED]
    row = tx.execute(sa.select(sa.func.count(), *sums).where(CHUNKS.c.run_id == run_id)).one()
    return Totals(*(int(value) for value in row))


def chunk_profiles(tx: sa.Connection, run_id: str) -> list[Mapping[str, Any]]:
    """The profiles of the run's chunks, in chunk order, so that merging them gives the same floats every time."""
    query = sa.select(CHUNKS.c.profile).where(CHUNKS.c.run_id == run_id).order_by(CHUNKS.c.shard, CHUNKS.c.chunk)
    return [json.loads(profile) for profile in tx.execute(query).scalars()]


def forget_chunks(tx: sa.Connection, run_id: str) -> None:
    """Forget what a run has committed, so that it starts from nothing."""
    tx.execute(sa.delete(CHUNKS).where(CHUNKS.c.run_id == run_id))


def forget_rejects(tx: sa.Connection, run_id: str) -> None:
    """Forget the rejects of an attempt that starts again."""
    tx.execute(sa.delete(REJECTS).where(REJECTS.c.run_id == run_id))


def rejects_kept(tx: sa.Connection, run_id: str) -> int:
    """How many rejects of the run are kept."""
    return int(tx.execute(sa.select(sa.func.count()).where(REJECTS.c.run_id == run_id)).scalar_one())


def reject_reasons(tx: sa.Connection, run_id: str, limit: int = 5) -> list[tuple[str, str, int]]:
    """Reason, detail and count of a run's rejects, the most frequent first."""
    c = REJECTS.c
    count = sa.func.count().label("rejects")
    query = sa.select(c.reason, c.detail, count).where(c.run_id == run_id).group_by(c.reason, c.detail)
    return [(row.reason, row.detail, row.rejects) for row in tx.execute(query.order_by(count.desc()).limit(limit))]


def reject_counts(tx: sa.Connection, run_ids: Collection[str]) -> list[Mapping[str, Any]]:
    """How many rejects these runs have of each stage, reason and detail, by run, the most frequent first."""
    c = REJECTS.c
    count = sa.func.count().label("rejects")
    query = sa.select(c.run_id, c.stage, c.reason, c.detail, count).where(c.run_id.in_(run_ids))
    grouped = query.group_by(c.run_id, c.stage, c.reason, c.detail).order_by(count.desc(), c.run_id, c.reason)
    return [dict(row) for row in tx.execute(grouped).mappings()]


def rejects_of(tx: sa.Connection, run_id: str, limit: int | None = None) -> list[Mapping[str, Any]]:
    """The rows of a run that could not be scored, by chunk and key."""
    c = REJECTS.c
    query = (
        sa.select(c.row_key, c.stage, c.reason, c.detail, c.row_values)
        .where(c.run_id == run_id)
        .order_by(c.chunk, c.row_key)
        .limit(limit)
    )
    return [dict(row) for row in tx.execute(query).mappings()]


def encode_key(key: Key) -> str:
    """A key as JSON; dates and instants tell their type."""
    return json.dumps([_tagged(part) for part in key])


def _tagged(part: object) -> object:
    if isinstance(part, datetime):
        return {"datetime": part.isoformat()}
    return {"date": part.isoformat()} if isinstance(part, date) else part
