"""A registry's files in S3, or in a store that speaks its protocol.

An object appears whole or not at all, and a put may ask that none is there yet (`If-None-Match`) or that it is the one
that was read (`If-Match`). That is enough: a version's manifest is put last, and a version is there when that is.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from batchscore.errors import BatchscoreError, BundleCorrupt, BundleNotFound, TransientError, UsageError, WarehouseError
from batchscore.model.store import ALIASES, VERSION, Change

if TYPE_CHECKING:
    from obstore.store import S3Store

__all__ = ["Bucket"]

_MANIFEST = "bundle.json"
# Numbers that a training has taken. They stay, and so no number is given twice.
_TAKEN = ".taken"
_ATTEMPTS = 100
_RETRY_SECONDS = 20
_CODE = re.compile(r"<Code>(\w+)</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
# All of 4xx but what asks to come back.
_REFUSED = re.compile(r"4(?!08|29)\d\d")
# What a request that cannot find credentials asks for last: the address of a cloud machine's own service.
_NO_CREDENTIALS = re.compile(r"http://169\.254\.|http://\[fd00:ec2|Missing.*(ACCESS_KEY|credential)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket and a prefix in it; credentials, region and endpoint are those of the AWS_ environment."""

    url: str
    objects: S3Store = field(repr=False)

    @classmethod
    def at(cls, url: str) -> Self:
        """The store of `s3://bucket/prefix`.

        Raises:
            UsageError: The URL has no bucket, or more than these parts; or the extra `s3` is not installed.
        """
        parts = urlsplit(url)
        if not parts.netloc or "@" in parts.netloc or parts.query or parts.fragment:
            raise UsageError(
                "registry_url: write s3://bucket/prefix. Credentials and endpoint are those of the environment: "
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL."
            )
        try:
            from obstore.exceptions import BaseError
            from obstore.store import S3Store
        except ImportError:
            raise UsageError(
                "registry_url: s3:// needs the extra s3: pip install 'batchscore[s3]', or build the image with it."
            ) from None
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
        try:
            objects = S3Store(
                parts.netloc,
                prefix=parts.path.strip("/") or None,
                client_options={
                    "allow_http": endpoint.startswith("http://"),
                    "connect_timeout": "5s",
                    "timeout": "60s",
                },
                retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)},
            )
        except (BaseError, ValueError) as error:
            raise UsageError(f"registry_url: {url}: {_first_line(error)}. Look at the AWS_ variables.") from None
        return cls(url.rstrip("/"), objects)

    def where(self, *parts: object) -> str:
        return "/".join([self.url, *map(str, parts)])

    def names(self) -> list[str]:
        import obstore

        with _told(self.where(), "cannot be read"):
            return sorted(obstore.list_with_delimiter(self.objects)["common_prefixes"])

    def versions(self, name: str) -> list[int]:
        with _told(self.where(name), "cannot be read"):
            return sorted(int(parts[0]) for parts in self._below(name) if _is_manifest(parts))

    def read(self, name: str, version: int) -> dict[str, bytes]:
        where = self.where(name, version)
        with _told(where, "cannot be read"):
            listed = ["/".join(parts) for parts in self._below(name, str(version))]
            if folders := [file for file in listed if "/" in file]:
                raise BundleCorrupt(
                    f"{name} version {version}: files were added: {folders[0]}. Take it out of {where}, or retrain."
                )
            files = {file: self._get(name, str(version), file) for file in sorted(listed)}
        if not files or any(found is None for found in files.values()):
            raise BundleNotFound(f"{where} is not there. See: batchscore models list.")
        return {file: found[0] for file, found in files.items() if found is not None}

    def add(self, name: str, files: Callable[[int], Mapping[str, bytes]]) -> int:
        with _told(self.where(name), "cannot be written", "Nothing was registered."):
            numbers = [int(part) for parts in self._below(name) for part in parts if VERSION.fullmatch(part)]
            version = max(numbers, default=0) + 1
            while not self._add(name, version, files):
                version += 1
            return version

    def _add(self, name: str, version: int, files: Callable[[int], Mapping[str, bytes]]) -> bool:
        """Write that version; False where the number is taken."""
        if not self._put_new(b"", name, _TAKEN, str(version)):
            return False
        if self._put_new(b"", name, _TAKEN, str(version)):
            raise WarehouseError(
                f"{self.where(name)}: the store overwrites what it is asked to leave alone (If-None-Match), so two "
                "trainings could write one version. Nothing was registered. Take a store that honours it, such as S3."
            )
        import obstore

        packed = files(version)
        for file, data in packed.items():
            if file != _MANIFEST:
                obstore.put(self.objects, f"{name}/{version}/{file}", data)
        return self._put_new(packed[_MANIFEST], name, str(version), _MANIFEST)

    def remove(self, name: str, version: int) -> None:
        import obstore

        with _told(self.where(name, version), "cannot be removed"):
            files = ["/".join(parts) for parts in self._below(name, str(version))]
            for file in sorted(files, key=lambda file: file != _MANIFEST):
                obstore.delete(self.objects, f"{name}/{version}/{file}")

    def aliases(self, name: str) -> bytes | None:
        with _told(self.where(name, ALIASES), "cannot be read"):
            found = self._get(name, ALIASES)
        return found[0] if found else None

    def change_aliases(self, name: str, change: Change) -> None:
        import obstore
        from obstore.exceptions import PreconditionError

        with _told(self.where(name, ALIASES), "cannot be written", "No alias was changed."):
            for attempt in range(_ATTEMPTS):
                found = self._get(name, ALIASES)
                before = found[0] if found else None
                after = change(before)
                if after == before:
                    return
                if found is None:
                    if self._put_new(after, name, ALIASES):
                        return
                else:
                    try:
                        obstore.put(self.objects, f"{name}/{ALIASES}", after, mode={"e_tag": found[1]})
                    except (PreconditionError, FileNotFoundError):
                        pass
                    else:
                        return
                # Another was faster: look again, not in step with it.
                time.sleep(random.uniform(0, min(0.5, 0.01 * (attempt + 1))))  # noqa: S311 - it keeps nothing secret
        raise TransientError(
            f"{self.where(name, ALIASES)}: others changed it {_ATTEMPTS} times meanwhile. No alias was changed. Try "
            "again later."
        )

    def _below(self, *place: str) -> Iterator[list[str]]:
        """The path of each object below a place, from there, in its parts."""
        import obstore

        prefix = "/".join(place) + "/"
        for page in obstore.list(self.objects, prefix, chunk_size=1000):
            for each in page:
                if each["path"].startswith(prefix):
                    yield each["path"].removeprefix(prefix).split("/")

    def _get(self, *place: str) -> tuple[bytes, str | None] | None:
        """An object with its tag, if it is there."""
        import obstore

        try:
            found = obstore.get(self.objects, "/".join(place))
            return bytes(found.bytes()), found.meta["e_tag"]
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise
            return None

    def _put_new(self, data: bytes, *place: str) -> bool:
        """Put an object where none is; False where one is."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            obstore.put(self.objects, "/".join(place), data, mode="create")
        except AlreadyExistsError:
            # Where an answer was lost, it may be what was put a moment ago.
            found = self._get(*place) if data else None
            return found is not None and found[0] == data
        return True


def _is_manifest(parts: list[str]) -> bool:
    return len(parts) == 2 and parts[1] == _MANIFEST and VERSION.fullmatch(parts[0]) is not None


@contextmanager
def _told(where: str, doing: str, after: str = "") -> Iterator[None]:
    """A block whose errors of the store become ours, without what a library tells of its insides."""
    from obstore.exceptions import BaseError, GenericError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except BatchscoreError:
        raise
    except (BaseError, FileNotFoundError, ValueError) as error:
        text = str(error)
        code, status = _CODE.search(text), _STATUS.search(text)
        reason = code.group(1) if code else _first_line(error)
        kind: type[BatchscoreError] = WarehouseError
        if _NO_CREDENTIALS.search(text):
            reason = "no credentials were found"
            advice = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role."
        elif reason == "NoSuchBucket":
            advice = "Make the bucket, or correct BATCHSCORE_REGISTRY_URL."
        elif isinstance(error, PermissionDeniedError | UnauthenticatedError) or (
            status and status.group(1) in ("401", "403")
        ):
            advice = "Check the AWS_ credentials, and what they may do in this bucket."
        elif not isinstance(error, GenericError) or (status and _REFUSED.fullmatch(status.group(1))):
            advice = "Check the bucket, the names and the AWS_ variables."
        else:
            kind = TransientError
            advice = f"It was tried for {_RETRY_SECONDS} s at most. Try again; check AWS_ENDPOINT_URL and the network."
        # Without its cause, whose text shows requests with all that they carry.
        raise kind(f"{where} {doing}: {reason}. {advice}" + (f" {after}" if after else "")) from None


def _first_line(error: Exception) -> str:
    """The reason at the end of the first line: a library's text goes on with its own insides."""
    line = str(error).splitlines()[0]
    return line.rpartition(" - ")[2].strip(" .") or type(error).__name__
