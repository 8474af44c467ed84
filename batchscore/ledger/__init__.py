"""The ledger: what ran, what is done, what was seen. Tables in the warehouse, beside the predictions.

Every function takes the connection of an open transaction and opens none, so that work and its record commit
together or not at all.
"""

from __future__ import annotations

from batchscore.ledger.chunks import (
    Progress,
    Totals,
    chunk_profiles,
    complete,
    decode_key,
    encode_key,
    forget_chunks,
    forget_rejects,
    progress,
    reject_reasons,
    rejects_kept,
    rejects_of,
    totals_of,
)
from batchscore.ledger.runs import (
    Run,
    begin,
    fail,
    find,
    history,
    hold,
    hold_interval,
    publish,
    run_id_of,
    same_table,
    users_of_table,
)
from batchscore.ledger.seen import drift_of, profiles_of, runs_without_drift, save_drift
from batchscore.ledger.tables import CHUNKS, DRIFT, METADATA, PROFILES, REJECTS, RUNS

__all__ = [
    "CHUNKS",
    "DRIFT",
    "METADATA",
    "PROFILES",
    "REJECTS",
    "RUNS",
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
    "runs_without_drift",
    "same_table",
    "save_drift",
    "totals_of",
    "users_of_table",
]
