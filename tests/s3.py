"""A server that speaks S3's protocol, and buckets in it."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

import pytest
import werkzeug.serving

if TYPE_CHECKING:
    from obstore.store import S3Store

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "canary-of-s3",
    "AWS_REGION": "us-east-1",
}


class _Quiet(werkzeug.serving.WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug names it so
        """Nobody reads it."""


# Of a spoilt answer: an error of the server, half of the body, or no answer at all.
Spoilt = tuple[int, str] | Literal["cut", "reset"]
_SIZES = ("content-length", "transfer-encoding")


@dataclass
class Request:
    """A request that a proxy passed on, with the number of bytes that were sent back."""

    method: str
    path: str
    headers: dict[str, str]
    sent: int = 0


@contextmanager
def serving(app: Callable[..., Any]) -> Iterator[str]:
    """Serve an application on a free port of this machine's own, a thread for each request; gives its URL."""
    server = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()


class Proxy:
    """A proxy before such a server, which counts what goes through it and spoils what it is told to.

    Attributes:
        endpoint: Where it listens.
        seen: Each request that came, in order.
        spoil: Asked for each request; `None` lets it through, and otherwise see `Spoilt`.
        seconds: How long each answer takes.
        most: How many requests there were at a time.
    """

    def __init__(self, upstream: str) -> None:
        self.endpoint = ""
        self.seen: list[Request] = []
        self.spoil: Callable[[Request], Spoilt | None] = lambda _: None
        self.seconds = 0.0
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        self._upstream = urlsplit(upstream).netloc

    @property
    def reads(self) -> list[Request]:
        """The requests for an object's bytes."""
        return [each for each in self.seen if each.method == "GET" and "list-type" not in each.path]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Pass a request on and its answer back."""
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        headers = {name: value for name, value in handler.headers.items() if name.lower() != "connection"}
        request = Request(handler.command, unquote(handler.path), headers)
        with self._lock:
            self.seen.append(request)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            time.sleep(self.seconds)
            self._pass_on(handler, request, body)
        finally:
            with self._lock:
                self._now -= 1

    def _pass_on(self, handler: BaseHTTPRequestHandler, request: Request, body: bytes) -> None:
        spoilt = self.spoil(request)
        match spoilt:
            case "reset":
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                handler.connection.close()
                handler.close_connection = True
                return
            case (int(status), str(code)):
                told = f"<Error><Code>{code}</Code></Error>".encode()
                _send(handler, status, {"content-type": "application/xml"}, told)
                return
        with closing(http.client.HTTPConnection(self._upstream)) as connection:
            connection.request(handler.command, handler.path, body, request.headers)
            answer = connection.getresponse()
            data = answer.read()
        request.sent = len(data)
        sized = {
            name: value
            for name, value in answer.getheaders()
            if handler.command == "HEAD" or name.lower() not in _SIZES
        }
        if spoilt == "cut":
            _send(handler, answer.status, sized, data[: len(data) // 2], len(data))
            handler.close_connection = True
        else:
            _send(handler, answer.status, sized, data)


def _send(
    handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], data: bytes, length: int | None = None
) -> None:
    handler.send_response_only(status)
    for name, value in headers.items():
        if name.lower() not in ("connection", "server", "date", "transfer-encoding"):
            handler.send_header(name, value)
    if handler.command != "HEAD":
        handler.send_header("content-length", str(len(data) if length is None else length))
    handler.end_headers()
    handler.wfile.write(data)


@contextmanager
def proxied(upstream: str) -> Iterator[Proxy]:
    """A proxy on a free port of this machine's own."""
    proxy = Proxy(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            proxy.answer(self)

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - the class finds them by these names

        def log_message(self, *args: Any) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    proxy.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()


def bucket_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a registry in a new bucket of that server, which the environment leads to from now on."""
    import obstore
    from obstore.store import HTTPStore

    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint}).items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    bucket = f"models-{uuid.uuid4()}"
    # A bucket is made by a PUT of its name, which this server takes from anybody.
    obstore.put(HTTPStore(endpoint, client_options={"allow_http": True}), bucket, b"")
    return f"s3://{bucket}/team/registry"


def upload(folder: Path, url: str) -> None:
    """Copy the files of a folder to where a URL says, below which nothing else is left."""
    import obstore

    client = store_at(url)
    # Of an empty folder in S3 not even the name is there.
    if there := [each["path"] for page in obstore.list(client) for each in page]:
        obstore.delete(client, there)
    for path in folder.rglob("*"):
        if path.is_file():
            obstore.put(client, path.relative_to(folder).as_posix(), path.read_bytes())


def store_at(url: str) -> S3Store:
    """A client of the library's for a bucket, or a prefix in it, that the environment leads to."""
    from obstore.store import S3Store

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return S3Store(bucket, prefix=prefix or None, client_options={"allow_http": True})
