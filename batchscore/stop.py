"""A request to stop: SIGTERM or Ctrl-C.

It is raised at once wherever the main thread is, and a library may lose it there: psycopg raises another error while it
leaves a pipeline that was cut short, and Python drops whatever a finalizer raises. So it is remembered, and raised once
more wherever a library's error is translated and before each piece of work.
"""

from __future__ import annotations

import signal
from types import FrameType

from batchscore.errors import Interrupted, Terminated

__all__ = ["check", "listen"]

_asked: Terminated | None = None


def listen() -> None:
    """Take both signals as requests to stop, from now on."""
    global _asked  # noqa: PLW0603 - signals are the process's
    _asked = None
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)


def check() -> None:
    """Stop where that was asked for.

    Raises:
        Terminated: It was.
    """
    if _asked is not None:
        raise _asked


def _stop(number: int, _: FrameType | None) -> None:
    global _asked  # noqa: PLW0603
    # Once is enough: a second SIGTERM would interrupt the rollback of the first. A second Ctrl-C is somebody who will
    # not wait for it: the database rolls back by itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _asked = Interrupted("interrupted") if number == signal.SIGINT else Terminated("terminated")
    raise _asked
