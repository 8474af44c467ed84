"""One command in a fresh process: its wall time, the processor time and the most memory of it and all it starts.

`python measure.py RESULT COMMAND …` runs a command, tells in a JSON file what it took, and ends with its exit code.
It is a process of its own so that whatever the command leaves behind becomes its child, and is counted and ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Self

import psutil

__all__ = ["Failed", "Measured", "measure"]

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_EVERY_SECONDS = 0.1
_LOOKS = 5


@dataclass(frozen=True, slots=True)
class Measured:
    """What a process and its descendants took.

    Attributes:
        seconds: From its start to its end.
        cpu_seconds: Of all of them, the kernel's part included.
        peak_mb: The largest sum of their memory, each shared page counted once (PSS), of looks ten times a second.
        processes: The most of them at one look.
        output: What it printed.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    processes: int
    output: str = ""


class Failed(Exception):
    """The command ended with another exit code than 0; its message is the last thing it said."""


def measure(
    command: Iterable[str], folder: Path, environment: Mapping[str, str], *, killed: bool = False, most: float = 600
) -> Measured:
    """Run a command and measure it.

    Args:
        command: The command.
        folder: Where it runs.
        environment: Its environment variables.
        killed: It ends itself by SIGKILL.
        most: How many seconds it may take.

    Raises:
        Failed: It did not end as it should, or in time.
    """
    with tempfile.TemporaryDirectory(prefix="bs-") as scratch:
        result, said = Path(scratch) / "result.json", Path(scratch) / "said"
        with said.open("w") as out, (Path(scratch) / "errors").open("w") as errors:
            watcher = subprocess.Popen(
                [sys.executable, __file__, str(result), *command],
                cwd=folder,
                env=dict(environment),
                stdout=out,
                stderr=errors,
                stdin=subprocess.DEVNULL,
            )
            try:
                code = watcher.wait(most)
            except subprocess.TimeoutExpired:
                raise Failed(f"took more than {most} s") from None
            finally:
                watcher.terminate()
                watcher.wait()
        if code != (137 if killed else 0):
            words = (Path(scratch) / "errors").read_text().strip() or said.read_text().strip()
            raise Failed(words.splitlines()[-1] if words else f"exit code {code}")
        return Measured(**json.loads(result.read_text()), output=said.read_text())


class _Tree:
    """All descendants of this process, looked at again and again."""

    def __init__(self) -> None:
        self.peak = 0
        self.processes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look_on(self) -> None:
        there: list[psutil.Process] = []
        for look in count():
            if self._done.wait(_EVERY_SECONDS):
                return
            # Who is there takes longer to find out than how much each holds.
            there = there if look % _LOOKS else psutil.Process().children(recursive=True)
            sizes = list(_sizes(there))
            self.peak, self.processes = max(self.peak, sum(sizes)), max(self.processes, len(sizes))


def _sizes(processes: Iterable[psutil.Process]) -> Iterator[int]:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            # Only Linux tells of PSS.
            full = process.memory_full_info()
            yield getattr(full, "pss", full.rss)


def _main(result: str, *command: str) -> int:
    # An orphan among its descendants becomes its child; it ends with whoever started it.
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        with _Tree() as tree:
            begun = time.perf_counter()
            code = subprocess.Popen(command).wait()
            seconds = time.perf_counter() - begun
    finally:
        _end_all()
    usage = os.times()
    spent = usage.children_user + usage.children_system
    told = {"seconds": seconds, "cpu_seconds": spent, "peak_mb": tree.peak / 2**20, "processes": tree.processes}
    Path(result).write_text(json.dumps(told))
    return code if code >= 0 else 128 - code


def _end_all() -> None:
    """End whatever is left of the descendants, and take in what it used."""
    while left := psutil.Process().children(recursive=True):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, 0):
                pass


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
