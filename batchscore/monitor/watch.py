"""Compare what runs saw with what training saw, from the profiles in the ledger alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import reduce
from typing import Any

import sqlalchemy as sa

from batchscore import ledger
from batchscore.drift import Drift, compare
from batchscore.ledger import Run
from batchscore.logs import Event, log
from batchscore.model.bundle import Bundle
from batchscore.profile import Profile

__all__ = ["compare_with_training", "record_drift"]

REFERENCE = "training"


def record_drift(tx: sa.Connection, bundle: Bundle, run: Run) -> list[tuple[str, Drift]]:
    """Compare a published run with training, keep the result in the ledger, and log it as one event.

    Returns:
        Role (`input` or `output`) and drift, for every column and metric.
    """
    _, found = compare_with_training(tx, bundle, [run])
    ledger.save_drift(tx, run.run_id, (_row(role, drift) for role, drift in found))
    verdicts = [drift.verdict for _, drift in found]
    log.info(
        Event.RUN_DRIFT,
        run_id=run.run_id,
        reference=REFERENCE,
        moved=verdicts.count("moved"),
        steady=verdicts.count("steady"),
        not_enough_data=verdicts.count("not enough data"),
        moves=[_move(role, drift) for role, drift in found if drift.verdict == "moved"],
    )
    return found


def _move(role: str, drift: Drift) -> dict[str, Any]:
    measured = {"value": drift.value, "floor": drift.floor, "band": drift.band}
    return {"role": role, "column": drift.column, "metric": drift.metric, **measured}


def compare_with_training(
    tx: sa.Connection, bundle: Bundle, runs: Sequence[Run]
) -> tuple[list[Run], list[tuple[str, Drift]]]:
    """Merge what published runs of a bundle saw, and compare it with the rows that the bundle was trained on.

    The key is left out: new rows have new ones by nature.

    Args:
        tx: An open transaction on the ledger.
        bundle: What scored them.
        runs: Runs of this very bundle.

    Returns:
        The runs that were compared, which are those whose profile the ledger holds, and role (`input` or `output`)
        and drift for every column and metric. Both are empty where it holds none.
    """
    profiles = {run: seen for run in runs if (seen := _seen_by(tx, bundle, run)) is not None}
    if not profiles:
        return [], []
    drifts = []
    for role, reference in _references(bundle).items():
        current = reduce(Profile.merge, (seen[role] for seen in profiles.values()))
        drifts += [(role, drift) for drift in compare(_without(current, bundle.key), reference)]
    return list(profiles), drifts


def _references(bundle: Bundle) -> dict[str, Profile]:
    return {"input": bundle.input_reference, "output": bundle.output_reference}


def _without(profile: Profile, names: Sequence[str]) -> Profile:
    columns = {name: column for name, column in profile.columns.items() if name not in names}
    return Profile(columns, {name: profile.layouts[name] for name in columns})


def _seen_by(tx: sa.Connection, bundle: Bundle, run: Run) -> dict[str, Profile] | None:
    """What a run saw, by role; None where the ledger no longer holds all of it."""
    kept = {(row["role"], row["column_name"]): row["profile"] for row in ledger.profiles_of(tx, run.run_id)}
    layouts = {role: reference.layouts for role, reference in _references(bundle).items()}
    if any((role, name) not in kept for role, columns in layouts.items() for name in columns):
        return None
    return {
        role: Profile.from_dict({name: json.loads(kept[role, name]) for name in columns}, columns)
        for role, columns in layouts.items()
    }


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
