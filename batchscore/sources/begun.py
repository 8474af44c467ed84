"""Rows that are on their way while what is to score them is still being loaded."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field

import polars as pl

from batchscore.ahead import ahead
from batchscore.faults import fault
from batchscore.interval import Interval
from batchscore.schema import Schema
from batchscore.sources import Reading, Source, reading_of

__all__ = ["Begun", "begun"]

# Beside the one in the thread's hands: the first of a source is empty, and a chunk may come in two.
_WAITING = 2


@dataclass(frozen=True, slots=True)
class Begun:
    """The reading of an interval that has begun.

    Attributes:
        interval: Which.
        asked: How its batches are asked for.
        batches: The batches.
        ends: Ends the reading.
    """

    interval: Interval
    asked: Reading
    batches: Iterator[pl.DataFrame]
    ends: ExitStack
    _free: threading.Lock = field(default_factory=threading.Lock)

    def taken(self, interval: Interval, asked: Reading) -> AbstractContextManager[Iterator[pl.DataFrame]] | None:
        """The batches, for the first who asks for these; None for anybody else, and where other rows are asked for."""
        if (interval, asked) != (self.interval, self.asked) or not self._free.acquire(blocking=False):
            return None
        return self._used()

    @contextmanager
    def _used(self) -> Iterator[Iterator[pl.DataFrame]]:
        with self.ends:
            yield self.batches


@contextmanager
def begun(
    source: Source, interval: Interval, *, schema: Schema, key: Sequence[str], chunk_rows: int
) -> Iterator[Begun]:
    """A block in which the interval's rows are read, a chunk of them or so, for `read_chunks` to go on with.

    It is to be given the same. What fails meanwhile is raised there.
    """
    asked = reading_of(schema, key, chunk_rows)
    with ExitStack() as stack:
        batches = _until_there(source.batches(interval, **asked), chunk_rows)
        yield Begun(interval, asked, stack.enter_context(ahead(batches, depth=_WAITING)), stack)


def _until_there(batches: Generator[pl.DataFrame], chunk_rows: int) -> Iterator[pl.DataFrame]:
    """The batches; once there is a chunk of them, a fault may be."""
    rows = 0
    with closing(batches):
        for batch in batches:
            before, rows = rows, rows + batch.height
            if before < chunk_rows <= rows:
                fault("after_begun")
            yield batch
