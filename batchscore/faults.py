"""Points at which the tests break a run, to see that nothing is lost: nothing happens unless one is asked for.

`BATCHSCORE_FAULT=after_stage:2:kill` ends the process the way SIGKILL does when chunk 2 has been staged. The ways:
`kill`; `hang`, until the process is killed; `stop`, until it is sent SIGCONT; `raise`, an exception that nobody
foresaw; `lose`, a lost connection.
"""

from __future__ import annotations

import os
import signal
import time

from batchscore.errors import TransientError

__all__ = ["DELTA_POINTS", "POINTS", "VARIABLE", "fault"]

VARIABLE = "BATCHSCORE_FAULT"
POINTS = (
    "after_begun",
    "after_lease",
    "in_take_up",
    "after_take_up",
    "after_read",
    "after_score",
    "after_stage",
    "before_commit",
    "after_commit",
    "in_publish",
    "before_publish_commit",
    "after_publish",
    "after_clear_up",
)
# Behind before_publish_commit, where the output is a Delta table; there is no in_publish then.
DELTA_POINTS = ("before_delta_commit", "after_delta_commit", "before_confirm_commit")

_spent = False


def fault(point: str, chunk: int = 0) -> None:
    """Break here, once, when `BATCHSCORE_FAULT` says so."""
    global _spent  # noqa: PLW0603 - one fault for one process
    wanted = os.environ.get(VARIABLE)
    if wanted is None or _spent or not wanted.startswith(f"{point}:{chunk}:"):
        return
    _spent = True
    match wanted.rpartition(":")[2]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(3600)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            return
        case "lose":
            raise TransientError(f"a fault was asked for at {point} of chunk {chunk}.")
    raise RuntimeError(f"a fault was asked for at {point} of chunk {chunk}")
