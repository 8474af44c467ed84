"""A registry's files in S3, or in a store that speaks its protocol.

An object appears whole or not at all, and a put may ask that none is there yet (`If-None-Match`) or that it is the one
that was read (`If-Match`). That is enough: a version's manifest is put last, and a version is there when that is.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from batchscore.errors import BundleCorrupt, BundleNotFound, TransientError, WarehouseError
from batchscore.model.store import ALIASES, VERSION, Change
from batchscore.objectstore import ObjectStore

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

__all__ = ["Bucket"]

_MANIFEST = "bundle.json"
# Numbers that a training has taken. They stay, and so no number is given twice.
_TAKEN = ".taken"
_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket and a prefix in it; credentials, region and endpoint are those of the AWS_ environment."""

    store: ObjectStore

    @classmethod
    def at(cls, url: str) -> Self:
        """The store of `s3://bucket/prefix`.

        Raises:
            UsageError: See `ObjectStore.at`.
        """
        form, named_by = "s3://bucket/prefix", "BATCHSCORE_REGISTRY_URL"
        return cls(ObjectStore.at(url, setting="registry_url", named_by=named_by, form=form))

    @property
    def objects(self) -> Client:
        return self.store.client

    def where(self, *parts: object) -> str:
        return "/".join([self.store.url, *map(str, parts)])

    def names(self) -> list[str]:
        import obstore

        with self.store.told(self.where(), "cannot be read"):
            return sorted(obstore.list_with_delimiter(self.objects)["common_prefixes"])

    def versions(self, name: str) -> list[int]:
        with self.store.told(self.where(name), "cannot be read"):
            return sorted(int(parts[0]) for parts in self._below(name) if _is_manifest(parts))

    def read(self, name: str, version: int) -> dict[str, bytes]:
        where = self.where(name, version)
        with self.store.told(where, "cannot be read"):
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
        with self.store.told(self.where(name), "cannot be written", "Nothing was registered."):
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

        with self.store.told(self.where(name, version), "cannot be removed"):
            files = ["/".join(parts) for parts in self._below(name, str(version))]
            for file in sorted(files, key=lambda file: file != _MANIFEST):
                obstore.delete(self.objects, f"{name}/{version}/{file}")

    def aliases(self, name: str) -> bytes | None:
        with self.store.told(self.where(name, ALIASES), "cannot be read"):
            found = self._get(name, ALIASES)
        return found[0] if found else None

    def change_aliases(self, name: str, change: Change) -> None:
        import obstore
        from obstore.exceptions import PreconditionError

        with self.store.told(self.where(name, ALIASES), "cannot be written", "No alias was changed."):
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
