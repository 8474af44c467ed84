"""`batchscore report`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from batchscore.cli.render import say
from batchscore.cli.session import Session, runs_of
from batchscore.errors import BundleIncompatible, BundleNotFound, UsageError
from batchscore.job import Job
from batchscore.ledger import Run
from batchscore.model.bundle import Bundle
from batchscore.monitor.history import History

__all__ = ["report"]

# A quarter of days.
_LAST = 92


def report(session: Session, name: str, first: str | None, last: str | None, to: Path | None) -> None:
    """Write the page over a window, or over the last 92 intervals that were scored, and say where.

    Raises:
        UsageError: The window is none, or the file cannot be written.
    """
    # A page is text of templates, which no other command needs.
    from batchscore.monitor.report import report

    job = session.job(name)
    start, end = job.calendar.window(first, last)
    until = min(end or session.now, session.now)
    with session.warehouse(read_only=True) as warehouse:
        runs = [run for run in runs_of(warehouse, job) if run.interval.start < until]
        if start is None:
            starts = sorted({run.interval.start for run in runs})[-_LAST:]
            runs = [run for run in runs if run.interval.start in starts]
        else:
            runs = [run for run in runs if run.interval.start >= start]
        # What the module inside a bundle prints is not the answer.
        with redirect_stdout(sys.stderr):
            bundles = _bundles(session, job, runs)
        with warehouse.begin("the ledger") as tx:
            history = History.of(tx.connection, job, runs, bundles, until)
    text = report(history, session.now)
    if to == Path("-"):
        sys.stdout.buffer.write(text.encode())
        return
    path = to or Path(f"{job.name}-report.html")
    try:
        path.write_text(text, "utf-8", newline="\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}. Give another file with --output.") from error
    print(path)


def _bundles(session: Session, job: Job, runs: Sequence[Run]) -> dict[str, Bundle]:
    """What scored the runs, by digest; one that is gone, or another by now, is told and left out."""
    found: dict[str, Bundle] = {}
    for run in {run.bundle_digest: run for run in runs}.values():
        try:
            found[run.bundle_digest] = session.scorer(job, run)
        except (BundleNotFound, BundleIncompatible) as error:
            say(f"without {run.model_name} version {run.model_version}: {error}")
    return found
