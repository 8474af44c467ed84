"""A server that speaks S3's protocol, and buckets in it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import werkzeug.serving

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "canary-of-s3",
    "AWS_REGION": "us-east-1",
}


class _Quiet(werkzeug.serving.WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug names it so
        """Nobody reads it."""


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
