"""`batchscore drift`."""

from __future__ import annotations

from collections.abc import Sequence

from batchscore.cli.render import Format, show
from batchscore.cli.session import Session, history_of
from batchscore.ledger import Run
from batchscore.model.bundle import Bundle
from batchscore.monitor.drift import Drift
from batchscore.monitor.watch import drift_from_training, seen_by
from batchscore.warehouse import Warehouse

__all__ = ["drift", "drift_rows"]


def drift(session: Session, name: str, first: str | None, last: str | None, everything: bool, format_: Format) -> None:
    """Print how what a window's published runs saw differs from training; without dates, the last run's."""
    job = session.job(name)
    bundle = session.registry.load(job.model.name, job.model.use)
    with session.warehouse(read_only=True) as warehouse:
        runs = [run for run in history_of(warehouse, name) if run.status == "published"]
        if first or last:
            start = job.calendar.parse(first) if first else job.start
            end = job.calendar.parse(last) if last else session.now
            runs = [run for run in runs if start <= run.interval.start < end]
        else:
            runs = runs[-1:]
        rows = drift_rows(warehouse, bundle, runs, everything=everything)
    title = f"{len(runs)} run(s) against training of {bundle}"
    if runs:
        title += f": {job.calendar.label(runs[0].interval)} to {job.calendar.label(runs[-1].interval)}"
    show(rows, format_, title=title, empty=f"{title}: nothing moved" if runs else "no published run there")


def drift_rows(
    warehouse: Warehouse, bundle: Bundle, runs: Sequence[Run], *, everything: bool
) -> list[dict[str, str | int | float | None]]:
    """What moved, the strongest first, as rows to show; with `everything`, what stayed steady too."""
    with warehouse.begin("the ledger") as tx:
        seen = seen_by(tx.connection, bundle, runs)
    found = [(role, each) for role, each in drift_from_training(bundle, seen) if runs]
    kept = [(role, each) for role, each in found if everything or each.verdict == "moved"]
    return [_row(role, each) for role, each in sorted(kept, key=lambda pair: -_strength(pair[1]))]


def _strength(each: Drift) -> float:
    return abs(each.value or 0.0) / each.band


def _row(role: str, each: Drift) -> dict[str, str | int | float | None]:
    return {
        "role": role,
        "column": each.column,
        "metric": each.metric,
        "value": each.value,
        "band": each.band,
        "floor": each.floor,
        "verdict": each.verdict,
        "n": each.n,
        "reference_n": each.reference_n,
    }
