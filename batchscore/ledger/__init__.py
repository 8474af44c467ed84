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
    encode_key,
    forget_chunks,
    forget_rejects,
    progress,
    reject_reasons,
    rejects_kept,
    rejects_of,
    totals_of,
)
from batchscore.ledger.leases import Lease, Owner, acquire, check, clock, keep_others_out, release, renew
from batchscore.ledger.retention import abandoned, forget_old, forget_work, stages_in_use
from batchscore.ledger.retrains import last_retrained, record_retrain, retrained_for
from batchscore.ledger.runs import (
    Run,
    begin,
    fail,
    find,
    history,
    hold_back,
    output_tables,
    publish,
    published,
    published_last,
    rows_of_last,
    run_id_of,
    shadowers_of_table,
    users_of_table,
)
from batchscore.ledger.seen import drift_of, profiles_of, runs_without_drift, save_drift
from batchscore.ledger.tables import CHUNKS, DRIFT, LEASES, METADATA, PROFILES, REJECTS, RETRAINS, RUNS

__all__ = [
    "CHUNKS",
    "DRIFT",
    "LEASES",
    "METADATA",
    "PROFILES",
    "REJECTS",
    "RETRAINS",
    "RUNS",
    "Lease",
    "Owner",
    "Progress",
    "Run",
    "Totals",
    "abandoned",
    "acquire",
    "begin",
    "check",
    "chunk_profiles",
    "clock",
    "complete",
    "drift_of",
    "encode_key",
    "fail",
    "find",
    "forget_chunks",
    "forget_old",
    "forget_rejects",
    "forget_work",
    "history",
    "hold_back",
    "keep_others_out",
    "last_retrained",
    "output_tables",
    "profiles_of",
    "progress",
    "publish",
    "published",
    "published_last",
    "record_retrain",
    "reject_reasons",
    "rejects_kept",
    "rejects_of",
    "release",
    "renew",
    "retrained_for",
    "rows_of_last",
    "run_id_of",
    "runs_without_drift",
    "save_drift",
    "shadowers_of_table",
    "stages_in_use",
    "totals_of",
    "users_of_table",
]
