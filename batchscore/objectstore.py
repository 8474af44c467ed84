"""An object store by the URL of a bucket: how it is reached, and what its errors mean.

A registry and sources both stand on it. The library's exceptions are turned into ours here and nowhere else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple, Self

from batchscore.errors import BatchscoreError, TransientError, UsageError, WarehouseError

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, RetryConfig, S3Store

__all__ = ["ObjectStore", "speaks_plainly"]

# Waits are drawn anew each time, up to three times as long as before: some ten seconds altogether. A run that has been
# through them takes itself up again from the ledger.
_RETRY_SECONDS = 20
_RETRY: RetryConfig = {
    "max_retries": 7,
    "retry_timeout": timedelta(seconds=_RETRY_SECONDS),
    "backoff": {"init_backoff": timedelta(seconds=0.1), "base": 3, "max_backoff": timedelta(seconds=5)},
}
_CODE = re.compile(r"<Code>(\w+)</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
# All of 4xx but what asks to come back.
_REFUSED = re.compile(r"4(?!08|29)\d\d")
# What a request that cannot find credentials asks for last: the address of a cloud machine's own service.
_NO_CREDENTIALS = re.compile(
    r"http://169\.254\.|http://\[fd00:ec2|metadata\.google|Missing.*(ACCESS_KEY|credential)", re.IGNORECASE
)
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
# A request may carry a signature behind its question mark, and an endpoint a password before its at sign.
_IN_URLS = re.compile(r"(?<=://)[^\s/@]*@|\?[^\s)\"']*")


class _Kind(NamedTuple):
    """What differs between the three clouds in words."""

    bucket: str
    variables: str
    endpoints: tuple[str, ...]
    told: str
    credentials: str


_KINDS: Mapping[str, _Kind] = {
    "s3": _Kind(
        "bucket",
        "AWS_",
        ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL",
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role.",
    ),
    "gs": _Kind(
        "bucket",
        "GOOGLE_",
        ("GOOGLE_BASE_URL",),
        "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT, GOOGLE_BASE_URL",
        "Set GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT, or give the machine a service account.",
    ),
    "az": _Kind(
        "container",
        "AZURE_",
        ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
        "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, AZURE_STORAGE_ENDPOINT",
        "Set AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or give the machine an identity.",
    ),
}


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """A bucket, and a prefix in it where there is one; credentials, region and endpoint are those of the environment.

    Attributes:
        url: `s3://bucket/prefix`, `gs://…` or `az://container/…`, without a slash at its end.
        named_by: What names it, for messages: "BATCHSCORE_REGISTRY_URL".
        client: The library's own store, whose paths are those below the prefix. Its text may hold secrets.
    """

    url: str
    named_by: str
    client: S3Store | GCSStore | AzureStore = field(repr=False)

    @classmethod
    def at(cls, url: str, *, setting: str, named_by: str, form: str) -> Self:
        """The store of a URL.

        Args:
            url: One of the three kinds.
            setting: What the URL was given as, before a message: "registry_url".
            named_by: See the class.
            form: How to write it: "s3://bucket/prefix".

        Raises:
            UsageError: The URL has no bucket, or more than these parts; the extra `s3`, which serves all three, is not
                installed; or the environment makes no sense. The URL is not repeated, for it may hold a secret.
        """
        scheme = url.partition(":")[0]
        kind = _KINDS[scheme]
        name, _, prefix = url.partition("://")[2].partition("/")
        if not re.fullmatch(r"[\w.-]+", name) or re.search("[?#]", prefix):
            raise UsageError(
                f"{setting}: write {form}. Credentials and endpoint are those of the environment: {kind.told}."
            )
        try:
            from obstore.exceptions import BaseError
            from obstore.store import AzureStore, GCSStore, S3Store
        except ImportError:
            raise cls.lacking(setting, scheme) from None
        store = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[scheme]
        plain = speaks_plainly(scheme)
        try:
            client = store(
                name,
                prefix=prefix.strip("/") or None,
                client_options={"connect_timeout": "5s", "timeout": "60s"} | ({"allow_http": True} if plain else {}),
                retry_config=_RETRY,
            )
        except (BaseError, ValueError) as error:
            advice = f"Look at the {kind.variables} variables."
            raise UsageError(f"{setting}: {scheme}://{name}: {_reason(error)}. {advice}") from None
        return cls(url.rstrip("/"), named_by, client)

    @staticmethod
    def lacking(setting: str, scheme: str) -> UsageError:
        """What to say where a package of the extra is missing."""
        return UsageError(
            f"{setting}: {scheme}:// needs the extra s3: pip install 'batchscore[s3]', or build the image with it."
        )

    @staticmethod
    def is_meant(url: str) -> bool:
        """Whether a text begins as the URL of one of the three kinds does."""
        scheme, mark, _ = url.partition("://")
        return bool(mark) and scheme in _KINDS

    @contextmanager
    def told(self, where: str, doing: str, after: str = "") -> Iterator[None]:
        """A block whose errors of the store become ours, without what a library tells of its insides.

        Raises:
            WarehouseError: The store refuses, and would refuse again.
            TransientError: It did not answer, or not well, and may answer later.
        """
        from obstore.exceptions import BaseError

        try:
            yield
        except BatchscoreError:
            raise
        except (BaseError, FileNotFoundError, ValueError) as error:
            kind, reason, advice = self._meant(error)
            # Without its cause, whose text shows requests with all that they carry.
            raise kind(f"{where} {doing}: {reason}. {advice}" + (f" {after}" if after else "")) from None

    def _meant(self, error: Exception) -> tuple[type[BatchscoreError], str, str]:
        """What an error is, what it says, and what to do next."""
        from obstore.exceptions import GenericError, PermissionDeniedError, UnauthenticatedError

        kind = _KINDS[self.url.partition("://")[0]]
        text = str(error)
        code, status = _CODE.search(text), _STATUS.search(text)
        reason = code.group(1) if code else _reason(error)
        if _NO_CREDENTIALS.search(text):
            return WarehouseError, "no credentials were found", kind.credentials
        if reason in _NO_BUCKET:
            return WarehouseError, reason, f"Make the {kind.bucket}, or correct {self.named_by}."
        refused = status.group(1) if status else ""
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or refused in ("401", "403"):
            advice = f"Check the {kind.variables} credentials, and what they may do in this {kind.bucket}."
            return WarehouseError, reason, advice
        if not isinstance(error, GenericError) or (_REFUSED.fullmatch(refused) and reason != "RequestTimeout"):
            return WarehouseError, reason, f"Check the {kind.bucket}, the names and the {kind.variables} variables."
        advice = f"It was tried for {_RETRY_SECONDS} s at most. Try again; check {kind.endpoints[0]} and the network."
        return TransientError, reason, advice


def speaks_plainly(scheme: str) -> bool:
    """Whether a kind of store is reached without TLS, which is so only where the environment says it.

    A variable that is empty counts as not set, and is not from then on: the libraries read them themselves.

    Raises:
        UsageError: A variable holds no URL. It is not repeated, for it may hold a secret.
    """
    given = {name: os.environ[name] for name in _KINDS[scheme].endpoints if name in os.environ}
    for name, url in given.items():
        if not url:
            del os.environ[name]
        elif not re.match(r"https?://[^/\s]", url):
            raise UsageError(f"{name}: write http://host:port or https://host, or unset it for the cloud's own.")
    return any(url.startswith("http://") for url in given.values())


def _reason(error: Exception) -> str:
    """The reason at the end of the first line: a library's text goes on with its own insides."""
    line = str(error).splitlines()[0].rpartition(" - ")[2].removeprefix("Server returned non-2xx status code: ")
    return _IN_URLS.sub("", line).strip(" .:") or type(error).__name__
