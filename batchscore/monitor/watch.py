"""Compare what runs saw with what training saw, from the profiles in the ledger alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from batchscore import ledger
from batchscore.ledger import Run
from batchscore.logs import Event, log
from batchscore.model.bundle import Bundle
from batchscore.monitor.drift import Drift, compare
from batchscore.profile import ColumnProfile, Profile

__all__ = ["ROLES", "drift_from_training", "record_drift", "seen_by"]

ROLES = ("input", "output")
REFERENCE = "training"


def record_drift(tx: sa.Connection, bundle: Bundle, run: Run) -> list[tuple[str, Drift]]:
    """Compare a published run with training, keep the result in the ledger, and log what moved.

    Returns:
        Role (`input` or `output`) and drift, for every column and metric.
    """
    found = drift_from_training(bundle, seen_by(tx, bundle, [run]))
    ledger.save_drift(tx, run.run_id, (_row(role, drift) for role, drift in found))
    for role, drift in found:
        if drift.verdict == "moved":
            log.warning(Event.RUN_DRIFT, run_id=run.run_id, role=role, reference=REFERENCE, **asdict(drift))
    return found


def drift_from_training(bundle: Bundle, seen: Mapping[str, Profile]) -> list[tuple[str, Drift]]:
    """Every column and metric of profiles, by role, against the bundle's references.

    The key is left out: new rows have new ones by nature.
    """
    references = {"input": bundle.input_reference, "output": bundle.output_reference}
    current = {role: _without(seen[role], bundle.key) for role in ROLES}
    return [(role, drift) for role in ROLES for drift in compare(current[role], references[role])]


def _without(profile: Profile, names: Sequence[str]) -> Profile:
    columns = {name: column for name, column in profile.columns.items() if name not in names}
    return Profile(columns, {name: profile.layouts[name] for name in columns})


def seen_by(tx: sa.Connection, bundle: Bundle, runs: Sequence[Run]) -> dict[str, Profile]:
    """The merged profile of runs of this bundle, by role; runs of another bundle are left out."""
    references = {"input": bundle.input_reference, "output": bundle.output_reference}
    seen = {role: Profile.empty(reference.layouts) for role, reference in references.items()}
    for run in runs:
        if run.bundle_digest == bundle.digest:
            rows = ledger.profiles_of(tx, run.run_id)
            seen = {role: profile.merge(_read(rows, role, profile)) for role, profile in seen.items()}
    return seen


def _read(rows: Sequence[Mapping[str, Any]], role: str, empty: Profile) -> Profile:
    kept = {row["column_name"]: json.loads(row["profile"]) for row in rows if row["role"] == role}
    columns = {
        name: ColumnProfile.from_dict(kept[name], layout) for name, layout in empty.layouts.items() if name in kept
    }
    return Profile(columns, empty.layouts) if len(columns) == len(empty.layouts) else Profile.empty(empty.layouts)


def _row(role: str, drift: Drift) -> dict[str, Any]:
    return {
        "reference": REFERENCE,
        "role": role,
        "column_name": drift.column,
        "metric": drift.metric,
        "value": drift.value,
        "floor": drift.floor,
        "band": drift.band,
        "verdict": drift.verdict,
        "row_count": drift.n,
        "reference_count": drift.reference_n,
    }
