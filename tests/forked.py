"""Processes of Python that need not import what most of them do, for tests that start hundreds of them."""

from __future__ import annotations

import ctypes
import inspect
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# prctl(2): orphans below this process become its children.
_SUBREAPER = 36
_SIGNATURE = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]
_server: socket.socket | None = None


class Forked(subprocess.Popen[str]):
    """`Popen` of this Python with `-m MODULE` or `-c CODE`: a fork of a process that has imported the libraries already.

    It is a child of this process like any other. What those libraries read from the environment when they are imported,
    such as the number of threads, it has from the tests.
    """

    def _execute_child(self, *given: Any) -> None:
        """Have the other process fork, where `Popen` itself would, with the same files as standard input and outputs."""
        asked = _SIGNATURE.bind(self, *given).arguments
        python, kind, *rest = map(str, asked["args"])
        assert python == sys.executable
        environment = dict(os.environ if asked["env"] is None else asked["env"])
        request = {"run": (kind, *rest), "cwd": str(asked["cwd"] or Path.cwd()), "environment": environment}
        pipes = [asked[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        ends = [end if end >= 0 else number for number, end in enumerate((pipes[0], pipes[3], pipes[5]))]
        self.pid = _forked(request, ends)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _forked(request: Mapping[str, Any], ends: Sequence[int]) -> int:
    global _server
    if _server is None:
        _server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # It ends when this process does, and the other end of the socket with it.
        with theirs:
            os.posix_spawn(
                sys.executable,
                [sys.executable, __file__],
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)],
            )
    prctl = ctypes.CDLL(None).prctl
    prctl(_SUBREAPER, 1, 0, 0, 0)
    socket.send_fds(_server, [json.dumps(request).encode()], ends)
    pid = int(_server.recv(100))
    prctl(_SUBREAPER, 0, 0, 0, 0)
    return pid


@dataclass(frozen=True)
class Command:
    """A command at work, and the file that its output goes to."""

    process: Forked
    out: Path

    @classmethod
    def start(cls, args: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> Command:
        """Start `batchscore` with arguments, in a folder."""
        out = cwd / "out.jsonl"
        words = [sys.executable, "-m", "batchscore", *args]
        with out.open("w") as file:
            process = Forked(
                words, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        return cls(process, out)

    def kill(self) -> int:
        """End it as the kernel ends what uses too much memory."""
        os.kill(self.process.pid, signal.SIGKILL)
        return self.process.wait()

    def wait_until_it_hangs(self) -> None:
        """Return when it has used no time for a while."""
        used, since = self._time(), time.monotonic()
        while time.monotonic() - since < 0.5:
            time.sleep(0.05)
            if self._time() != used:
                used, since = self._time(), time.monotonic()

    def _time(self) -> list[str]:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]

    @property
    def events(self) -> list[dict[str, Any]]:
        """Its log lines; one that was cut off is left out."""
        return [json.loads(line) for line in self.out.read_text().splitlines() if line.endswith("}")]

    def named(self, event: str) -> list[dict[str, Any]]:
        """The log lines of that event."""
        return [each for each in self.events if each["event"] == event]


def _serve(client: socket.socket) -> None:
    import sklearn.compose
    import sklearn.ensemble  # noqa: F401

    import batchscore.cli.app
    import batchscore.cli.demo
    import batchscore.cli.runs
    import batchscore.cli.score
    import batchscore.sources.anysql
    import batchscore.sources.duckdb
    import batchscore.sources.postgres
    import batchscore.sources.sqlite
    import batchscore.warehouse.anysql
    import batchscore.warehouse.duckdb
    import batchscore.warehouse.postgres
    import batchscore.warehouse.sqlite  # noqa: F401

    while True:
        message, ends, _, _ = socket.recv_fds(client, 1 << 20, 3)
        if not message:
            return
        told, tell = os.pipe()
        middle = os.fork()
        if not middle:
            # What a process that has ended forked is the asker's.
            if pid := os.fork():
                os.write(tell, str(pid).encode())
                os._exit(0)
            for number, end in enumerate(ends):
                os.dup2(end, number)
            # Its number is given out again, and is another's by the time that this is cleared away.
            client.detach()
            os.closerange(3, 1024)
            _become(json.loads(message))
            return
        os.waitpid(middle, 0)
        client.send(os.read(told, 100))
        for end in (told, tell, *ends):
            os.close(end)


def _become(asked: Mapping[str, Any]) -> None:
    """Go on as a Python that was started for this alone."""
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    encoding = os.environ.get("PYTHONIOENCODING") or None
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            open(number, "wb", closefd=False),  # noqa: SIM115
            encoding,
            errors,
            line_buffering=number == 2 or os.isatty(number),
            write_through=unbuffered,
        )
        for number, errors in ((1, "strict"), (2, "backslashreplace"))
    )
    kind, what, *rest = asked["run"]
    sys.path[0] = asked["cwd"]
    if kind == "-m":
        sys.argv = ["", *rest]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *rest]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(sys.modules["__main__"]))


if __name__ == "__main__":
    _serve(socket.socket(fileno=3))
