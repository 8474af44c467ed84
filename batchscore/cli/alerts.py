"""`batchscore alerts`, and what `score` and `backfill` tell at their end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from batchscore import ledger
from batchscore.cli.render import Cell, Format, show
from batchscore.cli.session import Session
from batchscore.errors import BatchscoreError, TransientError, UsageError
from batchscore.interval import Calendar
from batchscore.job import Job
from batchscore.logs import Event, log
from batchscore.monitor.alerts import notice, tell
from batchscore.monitor.channels import Channel, Command, Undelivered, Webhook
from batchscore.monitor.harmless import harmless
from batchscore.warehouse import Warehouse

__all__ = ["alerting", "list_", "send_test", "told_to"]


@contextmanager
def alerting(session: Session, warehouse: Warehouse, job: Job, *, looks: bool = False) -> Iterator[None]:
    """A block at whose end alerts are told, also where it could do nothing; failing here is told and stops nothing.

    Args:
        session: The session.
        warehouse: The warehouse.
        job: The job.
        looks: For a command that logs nothing: who but the log is to know is told, and where nobody is, the next tells.
    """
    try:
        yield
    except TransientError:
        # Of a warehouse that is gone nothing can be asked.
        raise
    except BatchscoreError:
        _tell(session, warehouse, job, looks)
        raise
    _tell(session, warehouse, job, looks)


def _tell(session: Session, warehouse: Warehouse, job: Job, looks: bool) -> None:
    channels = _channels(session, job)
    if looks and not channels:
        return
    with harmless():
        tell(warehouse, job, channels, logged=not looks)


def _channels(session: Session, job: Job) -> list[Channel]:
    url = session.settings.alert_webhook_url
    found: list[Channel] = [Webhook(url.get_secret_value())] if url else []
    return [*found, Command(job.alerts.command)] if job.alerts.command else found


def told_to(session: Session, job: Job) -> tuple[str, str]:
    """Whether somebody but the log is told, `ok`, `none` or `off` where one cannot be; and who, in words."""
    if not job.alerts.on:
        return "none", "[alerts] on is empty, so nothing is told"
    hook = bool(session.settings.alert_webhook_url)
    command = Command(job.alerts.command) if job.alerts.command else None
    if command and (obstacle := command.obstacle()):
        also = "the webhook and the log are" if hook else "the log alone is"
        return "off", f"[alerts] command: {obstacle}; {also} told. Mend it, and see: batchscore alerts test {job.name}"
    unset = "BATCHSCORE_ALERT_WEBHOOK_URL is not set"
    if not hook and not command:
        return "none", f"told is the log alone: {unset}, and [alerts] has no command"
    who = [f"the command {job.alerts.command[0]}"] if command else []
    who += ["the webhook"] if hook else []
    return "ok", f"told are the log, {' and '.join(who)}" + ("" if hook else f"; no webhook: {unset}")


def list_(session: Session, name: str | None, everything: bool, format_: Format) -> None:
    """Print what fires, and with `everything` what has recovered."""
    if name is not None:
        session.job(name)
    with session.warehouse(read_only=True) as warehouse, warehouse.begin("the alerts") as tx:
        known = tx.has_table(ledger.ALERTS.name)
        found = ledger.alerts_of(tx.connection, name) if known else []
    label = _labels(session)
    rows: list[dict[str, Cell]] = [
        {
            "job": row["job"],
            "alert": row["alert"],
            "state": row["state"],
            "since": row["first_at"],
            "first_interval": label(row),
            "last_at": row["last_at"],
            "times": row["times"],
            "notified_at": row["notified_at"],
            "detail": row["detail"],
        }
        | ({"recovered_by": row["recovered_by"]} if everything else {})
        for row in found
        if everything or row["state"] == "firing"
    ]
    empty = "no alert" if everything else "nothing fires"
    show(rows, format_, empty=empty, spare=("notified_at", "last_at"), below="detail")


def _labels(session: Session) -> Callable[[Mapping[str, Any]], Cell]:
    """What an alert's first interval is called by its job; the instant where the job's file is gone or wrong."""
    calendars: dict[str, Calendar | None] = {}

    def label(row: Mapping[str, Any]) -> Cell:
        name, start = row["job"], row["first_interval"]
        if name not in calendars:
            calendars[name] = None
            with suppress(BatchscoreError):
                calendars[name] = session.job(name).calendar
        calendar = calendars[name]
        return start if calendar is None or start is None else calendar.label(calendar.containing(start))

    return label


def send_test(session: Session, name: str) -> str:
    """Send a notice that it is a test to everybody who would get one; the ledger knows nothing of it.

    Returns:
        Whom it reached, in words.

    Raises:
        UsageError: There is nobody, or one will not take it.
        TransientError: One did not take it, and may later.
    """
    job = session.job(name)
    channels = _channels(session, job)
    if not channels:
        raise UsageError(
            f"job {name} tells nobody but the log: set BATCHSCORE_ALERT_WEBHOOK_URL, or a command in [alerts]."
        )
    body = notice(job, [], f"batchscore {name}: a test, nothing is wrong")
    failures: list[Undelivered] = []
    for channel in channels:
        try:
            channel.send(body)
        except Undelivered as error:
            log.warning(Event.ALERTS_UNDELIVERED, channel=channel.name, alerts=0, error=str(error))
            failures.append(error)
    if failures:
        kind = TransientError if all(error.passing for error in failures) else UsageError
        raise kind(f"the test did not arrive: {'; '.join(str(error) for error in failures)}.")
    return f"sent to: {', '.join(channel.name for channel in channels)}"
