"""Several intervals at a time, in threads of one process."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from batchscore.errors import BatchscoreError

__all__ = ["in_turn"]

T = TypeVar("T")
R = TypeVar("R")

_WAKE_SECONDS = 0.2
# How long to wait for the chunks in hand; whatever then still waits for a query ends with the process.
_GRACE_SECONDS = 10.0


def in_turn(
    call: Callable[[T, threading.Event], R], items: Sequence[T], workers: int
) -> Generator[tuple[T, R | BatchscoreError]]:
    """Each item with what the call gave or refused, as they are done; with one worker in their order.

    Threads and not processes: reading, scoring and writing leave Python's lock for most of their time, and an embedded
    warehouse admits one process. When the consumer stops, closing the iterator, what has not begun is never begun; the
    event that each call was given is set for what has, which is waited for a while.

    Raises:
        Exception: What the call raises and no user or operator could act on: a bug.
    """
    stopping = threading.Event()
    if workers == 1:
        for item in items:
            yield item, _outcome(call, item, stopping)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batchscore-worker")
    futures: dict[Future[R | BatchscoreError], T] = {
        # The thread's log lines carry what this one's do.
        pool.submit(contextvars.copy_context().run, _outcome, call, item, stopping): item
        for item in items
    }
    try:
        pending = set(futures)
        while pending:
            # A signal may reach another thread; this one, which must act on it, sees it when it wakes.
            done, pending = wait(pending, _WAKE_SECONDS, FIRST_COMPLETED)
            for future in done:
                yield futures[future], future.result()
    finally:
        stopping.set()
        pool.shutdown(wait=False, cancel_futures=True)
        wait([future for future in futures if not future.cancelled()], _GRACE_SECONDS)


def _outcome(call: Callable[[T, threading.Event], R], item: T, stopping: threading.Event) -> R | BatchscoreError:
    try:
        return call(item, stopping)
    except BatchscoreError as error:
        return error
