"""`batchscore runs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from batchscore import ledger
from batchscore.cli.render import Cell, Format, instant, print_json, show
from batchscore.cli.session import Session, history_of
from batchscore.errors import UsageError
from batchscore.interval import Interval
from batchscore.ledger import Run, Totals

__all__ = ["list_", "show_run"]

_REJECTS_SHOWN = 20
# As many characters as a person tells runs apart by; any beginning that only one run has will do.
_SHORT_ID = 8


def list_(session: Session, job: str | None, limit: int, format_: Format) -> None:
    """Print the latest runs; the table leaves out what is rarely asked for."""
    if job is not None:
        session.job(job)
    with session.warehouse(read_only=True) as warehouse:
        history = history_of(warehouse, job, limit)
    show([_row(run) if format_ is Format.json else _brief(run) for run in history], format_, empty="no run yet")


def show_run(session: Session, prefix: str, format_: Format) -> None:
    """Print one run: its counts, its error, its rejects, what it saw, and what of that moved.

    Raises:
        UsageError: No run, or several, begin so.
    """
    with session.warehouse(read_only=True) as warehouse, warehouse.begin("the ledger") as tx:
        run = _only(ledger.find(tx.connection, prefix) if tx.has_table(ledger.RUNS.name) else [], prefix)
        committed = ledger.totals_of(tx.connection, run.run_id)
        kept = ledger.rejects_kept(tx.connection, run.run_id)
        rejects = ledger.rejects_of(tx.connection, run.run_id, _REJECTS_SHOWN)
        profiles = ledger.profiles_of(tx.connection, run.run_id)
        drift = ledger.drift_of(tx.connection, run.run_id)
    moved = [_without(row, "run_id", "verdict") for row in drift if row["verdict"] == "moved"]
    if format_ is Format.json:
        columns = [_without(row, "run_id", "profile") for row in profiles]
        print_json(
            {
                "run": _row(run),
                "error": run.error,
                "rejects_kept": kept,
                "rejects": rejects,
                "columns": columns,
                "moved": moved,
            }
        )
        return
    facts = _facts(run, committed, kept)
    show([{"what": what, "value": value} for what, value in facts.items()], Format.table)
    if run.error:
        print(f"\n{run.error}")
    if rejects:
        first = f"the first {len(rejects)} of {kept:,}" if kept > len(rejects) else f"{kept}, all of them"
        print()
        show(rejects, Format.table, title=f"rejects: {first}")
    if run.published_at is not None:
        print()
        show([_told_column(row) for row in profiles], Format.table, title="what it saw", empty="its profile is gone")
        print()
        show(moved, Format.table, title="what moved against training", empty=_told_steady(drift))


def _only(found: Sequence[Run], prefix: str) -> Run:
    match found:
        case [run]:
            return run
        case []:
            raise UsageError(f"no run's id begins with {prefix!r}. See: batchscore runs list.")
        case _:
            listed = ", ".join(run.run_id for run in found)
            raise UsageError(f"the ids of {len(found)} runs or more begin with {prefix!r}: {listed}. Give more of it.")


def _row(run: Run) -> dict[str, Cell]:
    return {
        "run_id": run.run_id,
        "job": run.job,
        "interval_start": run.interval.start,
        "interval_end": run.interval.end,
        "status": run.status,
        "model": f"{run.model_name} {run.model_version}",
        "rows_read": run.rows_read,
        "predictions": run.predictions,
        "rejects": run.rejects,
        "chunks": run.chunks,
        "scored_at": run.scored_at,
        "published_at": run.published_at,
        "sql_accepted": run.sql_accepted,
        "output_table": run.output_table,
        "error": run.error,
    }


def _brief(run: Run) -> dict[str, Cell]:
    return {
        "run": run.run_id[:_SHORT_ID],
        "job": run.job,
        "interval": _span(run.interval),
        "status": run.status,
        "model": f"{run.model_name} {run.model_version}",
        "predictions": run.predictions,
        "rejects": run.rejects,
    }


def _facts(run: Run, committed: Totals, rejects_kept: int) -> dict[str, Cell]:
    facts: dict[str, Cell] = {
        "run": run.run_id,
        "job": run.job,
        "interval": _span(run.interval),
        "status": run.status,
        "model": f"{run.model_name} {run.model_version}",
        "output table": run.output_table,
        "scored at": run.scored_at,
    }
    if run.published_at is not None:
        facts |= {"published at": run.published_at, "rows read": f"{run.rows_read:,}"}
        facts |= {"predictions": f"{run.predictions:,}", "rejects": f"{run.rejects:,}", "chunks": f"{run.chunks:,}"}
    elif committed.chunks:
        rows = f"{committed.rows_read:,} rows in {committed.chunks:,} chunk(s)"
        facts |= {"published": "nothing", "committed": f"{rows}; the next attempt goes on behind them"}
    else:
        facts |= {"published": "nothing", "committed": "nothing; the next attempt starts from the first row"}
    if run.published_at is None and rejects_kept:
        facts["rejects"] = f"{rejects_kept:,}"
    if run.sql_accepted is not None:
        facts["query accepted"] = run.sql_accepted
    return facts


def _told_column(row: Mapping[str, Any]) -> dict[str, Cell]:
    """A row of `batchscore_profiles` in the units that its column has."""
    told = _without(row, "run_id", "profile")
    for name in ("mean", "std", "minimum", "maximum"):
        value = told[name]
        if value is None:
            continue
        if row["kind"] == "text":
            told[name] = f"{value:.4g} characters"
        elif row["kind"] == "datetime":
            length = timedelta(microseconds=value)
            told[name] = _length(length) if name == "std" else datetime(1970, 1, 1, tzinfo=UTC) + length
    return told


def _told_steady(drift: Sequence[Mapping[str, Any]]) -> str:
    if not drift:
        return "not compared with training"
    steady = any(row["verdict"] == "steady" for row in drift)
    return "nothing moved against training" if steady else "not enough data to compare with training"


def _span(interval: Interval) -> str:
    """An interval in UTC: `2013-10-01 04:00Z +1d`."""
    return f"{instant(interval.start)} +{_length(interval.end - interval.start)}"


def _length(length: timedelta) -> str:
    """A length of time in the largest unit that it is a whole number of, or else to the tenth of an hour."""
    hours = length / timedelta(hours=1)
    if hours >= 24 and hours % 24 == 0:
        return f"{hours / 24:.0f}d"
    return f"{hours:.1f}h".replace(".0h", "h")


def _without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}
