"""The command line: parse, call one function, show the result, turn an error into its exit code."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import threading
from typing import NoReturn

from batchscore import cgroup, stop
from batchscore.errors import BUG_EXIT_CODE, BatchscoreError, Terminated

__all__ = ["main", "process"]


def main() -> None:
    """Run the command on the process's arguments and exit with its code."""
    # First of all: before it, a signal has no handler, and the first process of a container would ignore it.
    stop.listen()
    try:
        _limit_threads()
        code = _run()
    except Terminated as request:
        _tell(request)
        _end_traces(1.0)
        # Threads may still wait for a query; what is committed is committed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(request.exit_code)
    stop.end()
    _end_traces(5.0)
    sys.exit(code)


def process() -> NoReturn:
    """The same, as all that this process is for: it begins and ends sooner than Python would have it."""
    # What libraries define as they are imported stays, and looking through it for garbage takes time.
    gc.set_threshold(50_000, 20, 100)
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    # What is to be done at the end is; taking every module apart, which is half a second, is not.
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    if all(thread.daemon for thread in others):
        atexit._run_exitfuncs()  # noqa: SLF001 - it has no other name
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 0)
    sys.exit(code)


def _limit_threads() -> None:
    """Let no library start more threads than the process has cores to run them on, unless its variable says so."""
    threads = str(cgroup.cores())
    for name in (*cgroup.THREADS, "LOKY_MAX_CPU_COUNT"):
        os.environ.setdefault(name, threads)
    # OpenMP threads that wait by spinning take the cores from the reader and the writer; where a container has less
    # than its cores, they take the whole quota. Scoring 50,000 rows beside two busy processes: 2.2 s, and 0.4 s so.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _run() -> int:
    from batchscore.cli.app import app

    try:
        app(prog_name="batchscore")
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 0
    except Terminated:
        raise
    except BatchscoreError as error:
        stop.check()
        from batchscore.cli.render import show_error

        show_error(error)
        return error.exit_code
    except BaseException as bug:  # noqa: BLE001 - a panic of an extension's too; the exit code must say that it is ours
        stop.check()
        from batchscore.cli.render import show_bug

        show_bug(bug)
        return BUG_EXIT_CODE
    return 0


def _tell(request: Terminated) -> None:
    # A module whose import the signal cut short may be in the way; the exit code is what counts.
    with contextlib.suppress(Exception):
        from batchscore.cli.render import show_stop

        show_stop(request)


def _end_traces(seconds: float) -> None:
    # Where it was not imported, none was begun.
    if trace := sys.modules.get("batchscore.trace"):
        trace.end(seconds)
