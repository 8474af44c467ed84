"""Trying again what a database or a network may grant later."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from batchscore.errors import TransientError
from batchscore.logs import Event, log

__all__ = ["Patience"]

T = TypeVar("T")


class Patience:
    """How long to go on trying: `seconds` since the last time that anything got done.

    Waits are drawn anew each time, up to twice as long as before ("full jitter"; M. Brooker, "Exponential Backoff And
    Jitter", AWS Architecture Blog, 2015), so that jobs which lost the same database do not come back together.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def progress(self) -> None:
        """Something got done: the time starts again."""
        self._last = time.monotonic()

    def persist(self, call: Callable[[], T]) -> T:
        """The call's result; a TransientError is met by calling again.

        Raises:
            TransientError: The last one, when `seconds` have passed without progress.
        """
        self.progress()
        retrying = Retrying(
            retry=retry_if_exception_type(TransientError),
            wait=wait_random_exponential(multiplier=0.5, max=60),
            stop=self._is_over,
            before_sleep=self._tell,
            reraise=True,
        )
        result: T = retrying(call)
        return result

    def _is_over(self, state: RetryCallState) -> bool:
        return bool(time.monotonic() - self._last + state.upcoming_sleep > self._seconds)

    def _tell(self, state: RetryCallState) -> None:
        log.warning(
            Event.ATTEMPT_FAILED,
            attempt=state.attempt_number,
            waits_seconds=round(state.upcoming_sleep, 3),
            gives_up_in_seconds=round(self._seconds - (time.monotonic() - self._last), 1),
            error=str(state.outcome.exception()) if state.outcome else None,
        )
