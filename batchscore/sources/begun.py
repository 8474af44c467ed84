"""A source whose first rows are on their way while what is to score them is still being loaded."""

from __future__ import annotations

import threading
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from batchscore.ahead import ahead
from batchscore.faults import fault
from batchscore.interval import Interval
from batchscore.schema import Column, Schema
from batchscore.sources import WHOLE, Source, reading_of

__all__ = ["begun"]

# Beside the one in the thread's hands: the first of a source is empty, and a chunk may come in two.
_WAITING = 2


@contextmanager
def begun(
    source: Source, interval: Interval, *, schema: Schema, key: Sequence[str], chunk_rows: int
) -> Iterator[Source]:
    """A block in which the source is there, and its rows of an interval are being read, a chunk of them or so.

    They are given to the first who asks for them as `read_chunks` does, given the same; what failed is raised there.
    Whoever asks for others, or comes second, reads the source itself.
    """
    asked = reading_of(schema, key, chunk_rows)
    with ExitStack() as stack:
        batches = source.batches(interval, **asked)
        waiting = stack.enter_context(ahead(_until_there(batches, chunk_rows), depth=_WAITING))
        yield _Begun(source, {"interval": interval, **asked}, waiting, stack)


def _until_there(batches: Generator[pl.DataFrame], chunk_rows: int) -> Iterator[pl.DataFrame]:
    """The batches; once there is a chunk of them, a fault may be."""
    rows = 0
    with closing(batches):
        for batch in batches:
            before, rows = rows, rows + batch.height
            if before < chunk_rows <= rows:
                fault("after_begun")
            yield batch


@dataclass(frozen=True, slots=True)
class _Begun:
    """See `begun`."""

    source: Source
    asked: dict[str, Any]
    waiting: Iterator[pl.DataFrame]
    stack: ExitStack
    free: threading.Lock = field(default_factory=threading.Lock)

    @property
    def where(self) -> str:
        return self.source.where

    @property
    def caution(self) -> str | None:
        return self.source.caution

    @property
    def private(self) -> Collection[str]:
        return self.source.private

    def batches(self, interval: Interval, **asked: Any) -> Generator[pl.DataFrame]:
        if not self._is_what_was_begun({"interval": interval, **asked}) or not self.free.acquire(blocking=False):
            yield from self.source.batches(interval, **asked)
            return
        with self.stack:
            yield from self.waiting

    def cuts(self, interval: Interval, column: Column, parts: int) -> list[int | str]:
        return self.source.cuts(interval, column, parts)

    def _is_what_was_begun(self, asked: dict[str, Any]) -> bool:
        # The whole of an interval, whether that is said or not.
        return asked.pop("span", WHOLE) == WHOLE and asked == self.asked
