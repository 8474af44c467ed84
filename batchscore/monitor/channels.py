"""Whom a notice is sent to: a webhook, or a program."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Protocol
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tenacity import Retrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from batchscore import __version__
from batchscore.settings import PREFIX

__all__ = ["Channel", "Command", "Undelivered", "Webhook", "within"]

# What a notice may delay the end of a command by, all tries together; a pod's grace period has room for both.
WEBHOOK_SECONDS = 20.0
COMMAND_SECONDS = 10.0
_ATTEMPT_SECONDS = 5.0
_TOO_MANY, _TIMED_OUT, _SERVER = 429, 408, 500
_REDIRECTS = range(300, 400)


class Undelivered(Exception):
    """A notice did not arrive, in words that hold no secret.

    Attributes:
        passing: Whether the same notice may arrive later with nothing changed.
    """

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


class _Passing(Undelivered):
    """One that is tried again at once."""

    def __init__(self, message: str) -> None:
        super().__init__(message, passing=True)


class Channel(Protocol):
    """One who is told."""

    @property
    def name(self) -> str:
        """What the ledger calls it."""

    def send(self, notice: bytes) -> None:
        """Deliver a notice, in bounded time.

        Raises:
            Undelivered: It did not arrive, or nobody knows whether it did.
        """


class _NoRedirect(HTTPRedirectHandler):
    """Who is told is whom the settings name, and nobody whom an answer names."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Webhook:
    """A URL that takes a POST of JSON.

    Attributes:
        url: The URL, which is a secret.
        seconds: How long to try.
    """

    url: str = field(repr=False)
    seconds: float = WEBHOOK_SECONDS
    name: str = "webhook"

    def send(self, notice: bytes) -> None:
        retrying = Retrying(
            retry=retry_if_exception_type(_Passing),
            wait=wait_random_exponential(multiplier=0.5, max=4),
            stop=stop_before_delay(self.seconds / 2),
            reraise=True,
        )
        within(self.seconds, lambda: retrying(self._post, notice))

    def _post(self, notice: bytes) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": f"batchscore/{__version__}"}
        request = Request(self.url, notice, headers, method="POST")  # noqa: S310 - the settings admit http and https
        try:
            with build_opener(_NoRedirect).open(request, timeout=min(_ATTEMPT_SECONDS, self.seconds / 2)):
                return
        except HTTPError as error:
            code = error.code
            error.close()
        except URLError as error:
            raise _Passing(f"it cannot be reached: {error.reason}") from None
        except UnicodeError:
            raise Undelivered("its host is no name that can be looked up", passing=False) from None
        except (OSError, HTTPException) as error:
            raise _Passing(f"it did not answer: {type(error).__name__}") from None
        if code >= _SERVER or code in (_TOO_MANY, _TIMED_OUT):
            raise _Passing(f"it answered {code}")
        led = ", which leads elsewhere and is not followed: set the URL that it leads to" if code in _REDIRECTS else ""
        raise Undelivered(f"it answered {code}{led}", passing=False)


def within(seconds: float, call: Callable[[], None]) -> None:
    """Call in a thread of its own, and wait no longer than that: a name server or a trickle knows no other bound.

    Raises:
        Undelivered: It takes longer, and is left to itself.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise Undelivered(f"it did not answer within {seconds:g} s", passing=True)
    if failed:
        raise failed[0]


@dataclass(frozen=True, slots=True)
class Command:
    """A program that reads the notice on standard input.

    Attributes:
        arguments: The program and its arguments.
        seconds: How long it may take; then it is killed, with all that it started in its group.
    """

    arguments: Sequence[str]
    seconds: float = COMMAND_SECONDS
    name: str = "command"

    def obstacle(self) -> str:
        """Why the program cannot be run here, in words; empty where it can."""
        program = self.arguments[0]
        if shutil.which(program):
            return ""
        if os.sep in program and Path(program).exists():
            return f"{program} may not be executed by this user: a program wants chmod +x, and a script its interpreter"
        return f"{program} is not there{'' if os.sep in program else ', in no folder of PATH'}"

    def send(self, notice: bytes) -> None:
        program = self.arguments[0]
        # The settings hold passwords, which are nothing to it.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        try:
            # From a file, for a program that does not read would fill a pipe and be waited for.
            with tempfile.TemporaryFile() as given:
                given.write(notice)
                given.seek(0)
                process = subprocess.Popen(  # noqa: S603 - the job file says which, as it says what Python runs
                    list(self.arguments), stdin=given, stdout=2, env=environment, start_new_session=True
                )
        except OSError as error:
            raise Undelivered(f"{program} cannot be run: {error.strerror}", passing=False) from None
        try:
            code = process.wait(self.seconds)
        except subprocess.TimeoutExpired:
            raise Undelivered(f"{program} did not end within {self.seconds:g} s", passing=True) from None
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code:
            raise Undelivered(f"{program} exited with {code}", passing=True)
