"""Work ahead of the consumer: an iterator drained by a thread of its own into a bounded queue."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["ahead"]

T = TypeVar("T")

# A thread that is in the middle of a long query is left to end with the process.
_JOIN_SECONDS = 2.0
_WAKE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _Failed:
    error: BaseException


class _End:
    pass


@contextmanager
def ahead(items: Iterable[T], depth: int = 1) -> Iterator[Iterator[T]]:
    """Yield the items while a thread produces up to `depth` more.

    The thread's exception is raised to the consumer, in its place in the order. When the block ends early the thread
    stops at its next item and its generator is closed, in that thread.

    Args:
        items: Consumed by the thread alone.
        depth: How many finished items may wait; one more is in the thread's hands.
    """
    waiting: queue.Queue[T | _Failed | _End] = queue.Queue(maxsize=depth)
    stopped = threading.Event()
    # What lines and spans of the thread are about is what the block is about.
    run, work = contextvars.copy_context().run, (_produce, items, waiting, stopped)
    thread = threading.Thread(target=run, args=work, daemon=True, name="batchscore-ahead")
    thread.start()
    try:
        yield _consume(waiting)
    finally:
        stopped.set()
        _drain(waiting)
        thread.join(_JOIN_SECONDS)
        # A thread that reads these items and outlives its own block must not wait for one more.
        with contextlib.suppress(queue.Full):
            waiting.put_nowait(_End())


def _produce(items: Iterable[T], waiting: queue.Queue[T | _Failed | _End], stopped: threading.Event) -> None:
    try:
        for item in items:
            _put(waiting, item, stopped)
            if stopped.is_set():
                break
        _put(waiting, _End(), stopped)
    except BaseException as error:  # noqa: BLE001 - the consumer raises it
        _put(waiting, _Failed(error), stopped)
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


def _put(waiting: queue.Queue[T], item: T, stopped: threading.Event) -> None:
    while not stopped.is_set():
        with contextlib.suppress(queue.Full):
            waiting.put(item, timeout=0.1)
            return


def _consume(waiting: queue.Queue[T | _Failed | _End]) -> Iterator[T]:
    while not isinstance(item := _next(waiting), _End):
        if isinstance(item, _Failed):
            raise item.error
        yield item


def _next(waiting: queue.Queue[T | _Failed | _End]) -> T | _Failed | _End:
    while True:
        # A signal may reach another thread; this one, which must act on it, sees it when it wakes.
        with contextlib.suppress(queue.Empty):
            return waiting.get(timeout=_WAKE_SECONDS)


def _drain(waiting: queue.Queue[T]) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            waiting.get_nowait()
