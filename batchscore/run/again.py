"""Published intervals whose rows are no longer those that were scored."""

from __future__ import annotations

from batchscore.fingerprint import Fingerprint
from batchscore.interval import Interval
from batchscore.ledger import Run
from batchscore.model.bundle import Bundle
from batchscore.sources import Source, read_chunks

__all__ = ["has_changed", "input_of"]


def has_changed(run: Run, source: Source, bundle: Bundle, *, chunk_rows: int) -> bool:
    """Whether the rows of a published run's interval, all of which are read, are no longer those that it scored.

    Raises:
        InputError, WarehouseError, TransientError: See `read_chunks`.
    """
    now = input_of(source, run.interval, bundle, chunk_rows=chunk_rows)
    return (run.rows_read, run.input_hash) != (now.rows, str(now))


def input_of(source: Source, interval: Interval, bundle: Bundle, *, chunk_rows: int) -> Fingerprint:
    """The fingerprint of an interval's rows as they are now, by the bundle's columns."""
    chunks = read_chunks(source, interval, schema=bundle.schema, key=bundle.key, chunk_rows=chunk_rows)
    return sum((Fingerprint.of(chunk.rows) for chunk in chunks), Fingerprint())
