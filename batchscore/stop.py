"""A request to stop: SIGTERM or Ctrl-C.

Until a command has something to roll back it ends the process on the spot: an exception in the middle of an import
leaves modules half made, and extension modules turn it into errors of their own. From then on it is raised wherever the
main thread is. A library may lose it there: psycopg raises another error while it leaves a pipeline that was cut short,
and Python drops whatever a finalizer raises. So it is remembered, and raised once more wherever a library's error is
translated and before each piece of work.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from contextlib import suppress
from datetime import UTC, datetime
from types import FrameType

from batchscore.errors import Interrupted, Terminated

__all__ = ["TRAINING", "check", "end", "leaves", "listen", "roll_back", "told"]

_SCORING = (
    "chunks that are committed are kept, and nothing unfinished is published. The same command goes on behind them; in "
    "place of --only all say --only failed."
)
TRAINING = "what was trained and is not registered yet is lost. The same command begins anew."
"""What is left of a training."""

_asked: Terminated | None = None
_left = _SCORING


def listen() -> None:
    """Take both signals as requests to stop at once, from now on."""
    global _asked, _left
    _asked, _left = None, _SCORING
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)


def leaves(left: str) -> None:
    """Have a request say from now on that this is left of the work, in place of what is left of scoring."""
    global _left  # noqa: PLW0603
    _left = left


def told(request: Terminated) -> str:
    """The request, and what it leaves, in words."""
    return f"{request}: {_left}"


def roll_back() -> None:
    """Raise a request from now on, for what is begun to be rolled back and let go; in another thread, do nothing."""
    if _is_main():
        signal.signal(signal.SIGTERM, _raise)
        signal.signal(signal.SIGINT, _raise)


def end() -> None:
    """Take no more requests: the work is done, and what is left takes seconds."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def check() -> None:
    """Stop where that was asked for; in the main thread, which the others' work ends with.

    Raises:
        Terminated: It was.
    """
    if _asked is not None and _is_main():
        raise _asked


def _is_main() -> bool:
    """Whether this thread is the one that signals come to."""
    return threading.current_thread() is threading.main_thread()


def _request(number: int) -> Terminated:
    return Interrupted("interrupted") if number == signal.SIGINT else Terminated("terminated")


def _leave(number: int, _: FrameType | None) -> None:
    request = _request(number)
    line = {
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "level": "error",
        "event": "command.failed",
        "error": told(request),
        "error_type": type(request).__name__,
        "exit_code": request.exit_code,
        "retryable": True,
    }
    watched = os.isatty(1)
    # Past every buffer and library, none of which may be whole yet.
    with suppress(OSError):
        os.write(2 if watched else 1, f"{told(request) if watched else json.dumps(line)}\n".encode())
    os._exit(request.exit_code)


def _raise(number: int, _: FrameType | None) -> None:
    global _asked  # noqa: PLW0603
    # Once is enough: a second SIGTERM would interrupt the rollback of the first. A second Ctrl-C is somebody who will
    # not wait for it: the database rolls back by itself.
    end()
    _asked = _request(number)
    raise _asked
