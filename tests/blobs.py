"""A stand-in for Azure's Blob service, as far as files are listed and read, after its documentation."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

_LIST = '<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>{}</Blobs><NextMarker/></EnumerationResults>'
_BLOB = (
    "<Blob><Name>{name}</Name><Properties><Last-Modified>{time}</Last-Modified><Etag>{tag}</Etag>"
    "<Content-Length>{size}</Content-Length><Content-Type>application/octet-stream</Content-Type>"
    "<BlobType>BlockBlob</BlobType></Properties></Blob>"
)
_TIME = "Tue, 02 Jan 2024 00:00:00 GMT"


class Blobs:
    """One container, named `lake`, of the account `account`, as a WSGI application."""

    def __init__(self, blobs: Mapping[str, bytes]) -> None:
        self._blobs = blobs

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        account, container, name = f"{environ['PATH_INFO']}/".lstrip("/").split("/", 2)
        name = name.rstrip("/")
        query = parse_qs(environ["QUERY_STRING"])
        assert account == "account"
        assert "sig" in query
        if container != "lake":
            return _refuse(start, "404 Not Found", "ContainerNotFound")
        if query.get("comp") == ["list"]:
            prefix = query.get("prefix", [""])[0]
            found = [(each, data) for each, data in self._blobs.items() if each.startswith(prefix)]
            listed = [
                _BLOB.format(name=escape(each), time=_TIME, tag=_tag(data), size=len(data)) for each, data in found
            ]
            start("200 OK", [("Content-Type", "application/xml")])
            return [_LIST.format("".join(listed)).encode()]
        if name not in self._blobs:
            return _refuse(start, "404 Not Found", "BlobNotFound")
        data = self._blobs[name]
        tag = f'"{_tag(data)}"'
        if environ.get("HTTP_IF_MATCH", tag) != tag:
            return _refuse(start, "412 Precondition Failed", "ConditionNotMet")
        headers = [("ETag", tag), ("Last-Modified", _TIME), ("x-ms-blob-type", "BlockBlob")]
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", environ.get("HTTP_RANGE", "")):
            first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
            part = data[first : last + 1]
            told = [("Content-Range", f"bytes {first}-{last}/{len(data)}"), ("Content-Length", str(len(part)))]
            start("206 Partial Content", [*headers, *told])
            return [part]
        start("200 OK", [*headers, ("Content-Length", str(len(data)))])
        return [data]


def _tag(data: bytes) -> str:
    return f"0x{hashlib.sha256(data).hexdigest()[:15].upper()}"


def _refuse(start: Callable[..., Any], status: str, code: str) -> list[bytes]:
    start(status, [("Content-Type", "application/xml"), ("x-ms-error-code", code)])
    return [f"<Error><Code>{code}</Code></Error>".encode()]
