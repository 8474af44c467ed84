"""What monitoring runs into: it is told, and stops nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from batchscore.errors import BatchscoreError
from batchscore.logs import Event, log, redacted

__all__ = ["harmless"]


@contextmanager
def harmless(**facts: str) -> Iterator[None]:
    """A block in which any error, a bug too, is logged as `monitoring.failed` and goes no further; a signal does.

    Args:
        facts: What the log line says besides.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - predictions that are published stand, whatever becomes of what is said of them
        told = str(error) if isinstance(error, BatchscoreError) else f"{type(error).__name__}: {error}"
        log.error(Event.MONITORING_FAILED, error=redacted(told), **facts)
