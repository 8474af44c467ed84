"""`batchscore views`."""

from __future__ import annotations

from batchscore import ledger, views
from batchscore.cli.session import Session
from batchscore.errors import UsageError
from batchscore.job import Job
from batchscore.logs import Event, log
from batchscore.views import View
from batchscore.warehouse import Transaction

__all__ = ["apply_views", "show_views"]


def apply_views(session: Session, name: str | None) -> str:
    """Make the views over the ledger, whose tables are made where they are missing, and those over a job's output.

    Returns:
        What was done about each, in words.

    Raises:
        UsageError: They are not written for such a database, or the output table is not there.
        WarehouseError: The role may not, or a table has the name of one.
    """
    job = session.job(name) if name else None
    with session.warehouse() as warehouse:
        session.patience().persist(lambda: warehouse.create(ledger.METADATA))
        with warehouse.begin("the views") as tx:
            done = views.apply(tx, _views(tx, job))
        warehouse.settle()
    log.info(Event.VIEWS_READY, views=done)
    return "\n".join(f"{view}: {what}" for view, what in done.items())


def show_views(session: Session, name: str | None) -> None:
    """Print the statements that `apply_views` runs where no view is there yet; see there for what it raises."""
    job = session.job(name) if name else None
    with session.warehouse(read_only=True) as warehouse, warehouse.begin("the views") as tx:
        for view in _views(tx, job):
            for statement in views.statements(view, tx.connection.dialect):
                print(f"{statement};\n")


def _views(tx: Transaction, job: Job | None) -> list[View]:
    found = views.of_ledger(tx.connection.dialect)
    if job is None:
        return found
    if "/" in (table := tx.full_name(job.output.table)):
        raise UsageError(
            f"the output of job {job.name} is the Delta table {table}, over which the warehouse can make no views. "
            "Leave the job out for those over the ledger."
        )
    live = tx.columns(job.output.table)
    if "interval_start" not in live:
        raise UsageError(
            f"there is no output table {job.output.table} yet, over which to make views. First: batchscore migrate "
            f"{job.name}"
        )
    return [*found, *views.of_job(job, live, tx.connection.dialect)]
