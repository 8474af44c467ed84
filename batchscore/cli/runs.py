"""`batchscore runs`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from batchscore import ledger
from batchscore.cli.render import Format, show
from batchscore.cli.session import Session, history_of
from batchscore.errors import UsageError
from batchscore.ledger import Run

__all__ = ["list_", "show_run"]

_REJECTS_SHOWN = 20


def list_(session: Session, job: str | None, limit: int, format_: Format) -> None:
    """Print the latest runs."""
    if job is not None:
        session.job(job)
    with session.warehouse(read_only=True) as warehouse:
        history = history_of(warehouse, job, limit)
    show([_row(run) for run in history], format_, empty="the ledger holds no run")


def show_run(session: Session, prefix: str, format_: Format) -> None:
    """Print one run with its rejects and the profile of what it saw.

    Raises:
        UsageError: No run, or several, begin so.
    """
    with session.warehouse(read_only=True) as warehouse, warehouse.begin("the ledger") as tx:
        found = ledger.find(tx.connection, prefix) if tx.has_table(ledger.RUNS.name) else []
        if len(found) != 1:
            raise UsageError(f"{len(found) or 'no'} run(s) begin with {prefix!r}. See: batchscore runs list.")
        run = found[0]
        rejects = ledger.rejects_of(tx.connection, run.run_id, _REJECTS_SHOWN)
        profiles = ledger.profiles_of(tx.connection, run.run_id)
        drift = ledger.drift_of(tx.connection, run.run_id)
    columns = [_without(row, "run_id", "profile") for row in profiles]
    moved = [_without(row, "run_id", "verdict") for row in drift if row["verdict"] == "moved"]
    if format_ is Format.json:
        content = {"run": _row(run), "error": run.error, "rejects": rejects, "columns": columns, "moved": moved}
        print(json.dumps(content, default=str, indent=2, allow_nan=False))
        return
    show([{"what": what, "value": str(value)} for what, value in _row(run).items()], Format.table)
    if run.error:
        print(f"\n{run.error}")
    if rejects:
        print()
        show(rejects, Format.table, title=f"rejects, the first {len(rejects)} of {run.rejects or len(rejects)}")
    print()
    show(columns, Format.table, title="what it saw", empty="no profile: the run is not published")
    if moved:
        print()
        show(moved, Format.table, title="what moved")


def _without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def _row(run: Run) -> dict[str, str | int | None]:
    return {
        "run_id": run.run_id,
        "job": run.job,
        "interval_start": run.interval.start.isoformat(),
        "interval_end": run.interval.end.isoformat(),
        "status": run.status,
        "model": f"{run.model_name} {run.model_version}",
        "rows_read": run.rows_read,
        "predictions": run.predictions,
        "rejects": run.rejects,
        "chunks": run.chunks,
        "scored_at": run.scored_at.isoformat(timespec="seconds"),
        "published_at": run.published_at.isoformat(timespec="seconds") if run.published_at else None,
        "sql_accepted": run.sql_accepted,
    }
