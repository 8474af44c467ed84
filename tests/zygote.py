"""A process that has imported everything and forks the real command, for tests that need hundreds of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Command:
    """A command at work: its process, and the file that its output goes to."""

    zygote: Zygote
    pid: int
    out: Path

    def kill(self) -> int:
        """End it as the kernel ends what uses too much memory."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        """Its exit code; minus the signal that ended it."""
        return int(self.zygote.answer()["status"])

    def wait_until_it_hangs(self) -> None:
        """Return when it has used no time for a while."""
        used, since = self._time(), time.monotonic()
        while time.monotonic() - since < 0.5:
            time.sleep(0.05)
            if self._time() != used:
                used, since = self._time(), time.monotonic()

    def _time(self) -> list[str]:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:13]

    @property
    def events(self) -> list[dict[str, Any]]:
        """Its log lines; one that was cut off is left out."""
        return [json.loads(line) for line in self.out.read_text().splitlines() if line.endswith("}")]

    def named(self, event: str) -> list[dict[str, Any]]:
        """The log lines of that event."""
        return [each for each in self.events if each["event"] == event]


class Zygote:
    """Starts commands one at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=30)

    def start(self, args: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> Command:
        """Start `batchscore` with arguments, in a folder."""
        assert self._process.stdin
        out = cwd / "out.jsonl"
        request = {"args": list(args), "cwd": str(cwd), "environment": dict(environment), "out": str(out)}
        self._process.stdin.write(json.dumps(request) + "\n")
        return Command(self, int(self.answer()["pid"]), out)

    def run(self, args: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> tuple[int, Command]:
        """Run it to its end: the exit code, and what it wrote."""
        command = self.start(args, cwd, environment)
        return command.wait(), command

    def answer(self) -> dict[str, Any]:
        """The next line that the process says."""
        assert self._process.stdout
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def _serve() -> None:
    import sklearn.compose
    import sklearn.ensemble  # noqa: F401

    import batchscore.cli.app
    import batchscore.cli.demo
    import batchscore.cli.runs
    import batchscore.cli.score
    import batchscore.sources.anysql
    import batchscore.sources.duckdb
    import batchscore.warehouse.anysql
    import batchscore.warehouse.duckdb
    import batchscore.warehouse.postgres
    import batchscore.warehouse.sqlite  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            _become(request)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


def _become(request: dict[str, Any]) -> None:
    code = 1
    try:
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        out = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv = ["batchscore", *request["args"]]
        from batchscore.cli import main

        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
