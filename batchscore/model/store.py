"""Where the files of a registry are kept: what a place must do, and a folder that does it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from batchscore.errors import BundleCorrupt, BundleNotFound, UsageError, WarehouseError

__all__ = ["ALIASES", "VERSION", "Change", "Folder", "Store", "open_store"]

ALIASES = "aliases.json"
VERSION = re.compile("[1-9][0-9]*")
Change = Callable[[bytes | None], bytes]
_LOCK = ".aliases.lock"
# One letter before the colon is a drive.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_FORMS = "Give a folder, file:///path, s3://bucket/prefix or mlflow+http://host:port."
_ONE_MODEL = re.compile(r"models:/+(?P<name>[^/@]+)[@/](?P<use>[^/@]+)")


class Store(Protocol):
    """A place for versions and aliases. Names and versions are paths in it: `<name>/<version>/<file>`.

    Every method raises `WarehouseError` where the place refuses, and `TransientError` where it may answer later.
    """

    def where(self, *parts: object) -> str:
        """How the place, or something in it, is told."""

    def names(self) -> list[str]:
        """What may be a model."""

    def versions(self, name: str) -> list[int]:
        """The versions of a model, oldest first; only whole ones."""

    def read(self, name: str, version: int) -> dict[str, bytes]:
        """Every file of a version.

        Raises:
            BundleNotFound: There is none.
            BundleCorrupt: There is a folder among them.
        """

    def add(self, name: str, files: Callable[[int], Mapping[str, bytes]]) -> int:
        """Write the files of the next version, whole or not at all; two that add at once get two versions.

        Args:
            name: The model.
            files: Gives the files for a version; it may be asked again, for a later one.
        """

    def remove(self, name: str, version: int) -> None:
        """Remove a version, which is gone at once for whoever looks; none is no error."""

    def aliases(self, name: str) -> bytes | None:
        """The alias file, if there is one."""

    def change_aliases(self, name: str, change: Change) -> None:
        """Replace the alias file by what `change` makes of it, with no other's change in between.

        Args:
            name: The model.
            change: Gives the new file for the one that is there; it may be asked again, and what it raises is raised.
        """


def open_store(url: str | Path) -> Store:
    """The store of a path, a `file://`, an `s3://`, or an `mlflow+http://` or `mlflow+https://` URL.

    Raises:
        UsageError: Any other URL, and so MLflow's own `models:/name@alias`: it is one version and no place for others.
    """
    if isinstance(url, Path) or not _URL.match(url):
        return Folder(Path(url))
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Folder(Path(unquote(parts.path)))
    if parts.scheme == "s3":
        from batchscore.model.bucket import Bucket

        return Bucket.at(url)
    if parts.scheme in ("mlflow+http", "mlflow+https"):
        from batchscore.model.tracking import Tracking

        return Tracking.at(url)
    if one := _ONE_MODEL.fullmatch(url):
        name = one["name"]
        use = one["use"] if one["use"].isdecimal() else f'"{one["use"]}"'
        raise UsageError(
            f"registry_url: {url} is one version, and a registry is a place of many. Give the MLflow server, "
            f'mlflow+http://host:port, and in the job file, under [model], name = "{name}" and '
            f"use = {use}. {_FORMS}"
        )
    raise UsageError(f"registry_url: {parts.scheme}:/ is not supported. {_FORMS}")


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder: a version is written aside and renamed, and who changes aliases holds a lock."""

    root: Path

    def where(self, *parts: object) -> str:
        return str(self.root.joinpath(*map(str, parts)))

    def names(self) -> list[str]:
        return sorted(path.name for path in _folders(self.root))

    def versions(self, name: str) -> list[int]:
        return sorted(int(path.name) for path in _folders(self.root / name) if VERSION.fullmatch(path.name))

    def read(self, name: str, version: int) -> dict[str, bytes]:
        folder = self.root / name / str(version)
        try:
            paths = sorted(folder.iterdir())
            if folders := [path.name for path in paths if path.is_dir()]:
                raise BundleCorrupt(
                    f"{name} version {version}: files were added: {folders[0]}/. Take it out of {folder}, or retrain."
                )
            return {path.name: path.read_bytes() for path in paths}
        except FileNotFoundError:
            raise BundleNotFound(f"{folder} is not there. See: batchscore models list.") from None
        except OSError as error:
            raise _unreadable(folder, error) from error

    def add(self, name: str, files: Callable[[int], Mapping[str, bytes]]) -> int:
        home = self.root / name
        try:
            home.mkdir(parents=True, exist_ok=True)
            while True:
                version = max(self.versions(name), default=0) + 1
                if _write_folder(home, str(version), files(version)):
                    return version
        except OSError as error:
            raise WarehouseError(f"{home} cannot be written: {error.strerror}. Nothing was registered.") from error

    def remove(self, name: str, version: int) -> None:
        folder = self.root / name / str(version)
        try:
            aside = Path(tempfile.mkdtemp(prefix=".removing-", dir=folder.parent))
            with contextlib.suppress(FileNotFoundError):
                folder.rename(aside / folder.name)
            shutil.rmtree(aside)
        except OSError as error:
            raise WarehouseError(f"{folder} cannot be removed: {error.strerror}. Check its permissions.") from error

    def aliases(self, name: str) -> bytes | None:
        path = self.root / name / ALIASES
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from error

    def change_aliases(self, name: str, change: Change) -> None:
        path = self.root / name / ALIASES
        try:
            with _locked(path.with_name(_LOCK)):
                before = self.aliases(name)
                after = change(before)
                if after != before:
                    _replace(path, after)
        except OSError as error:
            raise WarehouseError(f"{path} cannot be written: {error.strerror}. No alias was changed.") from error


def _folders(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    except OSError as error:
        raise _unreadable(root, error) from error


def _unreadable(path: Path, error: OSError) -> WarehouseError:
    return WarehouseError(f"{path} cannot be read: {error.strerror}. Check its permissions.")


def _write_folder(home: Path, name: str, files: Mapping[str, bytes]) -> bool:
    """Write the files aside and rename; False when the name was taken meanwhile."""
    aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=home))
    try:
        for file, data in files.items():
            with (aside / file).open("wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
        # mkdtemp keeps others out; a scoring job may run as another user.
        aside.chmod(0o755)
        aside.rename(home / name)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    else:
        return True
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of that file, which stays: to remove it would let a third process in beside one that waits."""
    # Opened for writing, because over NFS a lock that others respect needs that.
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(path: Path, data: bytes) -> None:
    handle, aside = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(aside).unlink()
