"""Published intervals whose rows are no longer those that were scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from batchscore.fingerprint import Fingerprint
from batchscore.interval import Interval
from batchscore.model.bundle import Bundle
from batchscore.run.plan import Planned
from batchscore.sources import Source, read_chunks

__all__ = ["input_of", "with_changes"]


def with_changes(planned: Sequence[Planned], source: Source, bundle: Bundle, *, chunk_rows: int) -> list[Planned]:
    """The same intervals; one that is `published` and whose rows have changed since is `changed-input`.

    Every published interval is read, and none is scored.

    Raises:
        InputError, WarehouseError, TransientError: See `read_chunks`.
    """
    return [
        replace(each, state="changed-input")
        if each.state == "published" and _changed(each, input_of(source, each.interval, bundle, chunk_rows=chunk_rows))
        else each
        for each in planned
    ]


def input_of(source: Source, interval: Interval, bundle: Bundle, *, chunk_rows: int) -> Fingerprint:
    """The fingerprint of an interval's rows as they are now, by the bundle's columns."""
    chunks = read_chunks(source, interval, schema=bundle.schema, key=bundle.key, chunk_rows=chunk_rows)
    return sum((Fingerprint.of(chunk.rows) for chunk in chunks), Fingerprint())


def _changed(planned: Planned, now: Fingerprint) -> bool:
    run = planned.run
    return run is not None and (run.rows_read, run.input_hash) != (now.rows, str(now))
