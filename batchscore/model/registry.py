"""Where bundles live: a folder `<name>/<version>/`, written whole, never changed, with aliases beside the versions."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from batchscore.errors import BundleCorrupt, BundleNotFound, UsageError, WarehouseError, nearest
from batchscore.model.bundle import Bundle, Manifest, pack

__all__ = ["Registry"]

_ALIASES = "aliases.json"
_LOCK = ".aliases.lock"
_VERSION = re.compile("[1-9][0-9]*")


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry in a folder."""

    root: Path

    @classmethod
    def at(cls, url: str) -> Registry:
        """The registry of a path or `file://` URL.

        Raises:
            UsageError: Any other URL.
        """
        if "://" not in url:
            return cls(Path(url))
        parts = urlsplit(url)
        if parts.scheme != "file":
            raise UsageError(f"registry_url: {parts.scheme}:// is not supported. Give a folder, or file:///path.")
        return cls(Path(unquote(parts.path)))

    def names(self) -> list[str]:
        """The models it holds."""
        return sorted(path.name for path in _folders(self.root) if self.versions(path.name))

    def versions(self, name: str) -> list[int]:
        """The versions of a model, oldest first; none when it is unknown."""
        return sorted(int(path.name) for path in _folders(self.root / name) if _VERSION.fullmatch(path.name))

    def aliases(self, name: str) -> dict[str, int]:
        """The model's aliases.

        Raises:
            BundleCorrupt: The alias file is not one.
            WarehouseError: It cannot be read.
        """
        path = self.root / name / _ALIASES
        try:
            return {str(alias): int(version) for alias, version in json.loads(path.read_text("utf-8")).items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, TypeError) as error:
            raise BundleCorrupt(
                f"{path} is not an alias file. Remove it, and set each alias again with `batchscore models promote`."
            ) from error
        except OSError as error:
            raise _unreadable(path, error) from error

    def resolve(self, name: str, use: str | int) -> int:
        """The version that an alias, or a number, stands for.

        Raises:
            BundleNotFound: There is none; the message lists what there is.
        """
        versions, aliases = self.versions(name), self.aliases(name)
        if not versions:
            known = self.names()
            guess = f" Did you mean {near}?" if (near := nearest(name, known)) else ""
            raise BundleNotFound(
                f"{self.root} holds no model {name!r}.{guess} Train it: batchscore train <job>."
                + (f" It holds: {', '.join(known)}." if known else "")
            )
        numbered = str(use).isdecimal()
        version = int(use) if numbered else aliases.get(str(use))
        if version in versions:
            return version
        listed = ", ".join(f"{alias} = {v}" for alias, v in sorted(aliases.items())) or "none"
        raise BundleNotFound(
            f"model {name!r} has no {'version' if numbered else 'alias'} {use!r}. "
            f"Versions: {', '.join(map(str, versions))}; aliases: {listed}. "
            + (
                "Give one of these."
                if numbered
                else f"Set one: batchscore models promote {name} <version> --alias {use}."
            )
        )

    def read(self, name: str, version: int) -> dict[str, bytes]:
        """Every file of a version, unverified.

        Raises:
            BundleNotFound: There is no such version.
            BundleCorrupt: A folder lies among its files.
            WarehouseError: A file cannot be read.
        """
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

    def manifest(self, name: str, version: int) -> Manifest:
        """What a version says of itself, verified with all its files.

        Raises:
            BundleNotFound: There is no such version.
            BundleCorrupt: The bytes are not those that were written, or they are another version's.
            WarehouseError: A file cannot be read.
        """
        manifest = Manifest.verified(self.read(name, version), f"{name} version {version}")
        self._refuse_other(manifest, name, version)
        return manifest

    def load(self, name: str, use: str | int) -> Bundle:
        """The bundle that an alias or version stands for, verified before anything of it is loaded.

        Raises:
            BundleNotFound: There is none.
            BundleCorrupt: See `manifest`.
            BundleIncompatible: See `Bundle.load`.
            WarehouseError: A file cannot be read.
        """
        version = self.resolve(name, use)
        bundle = Bundle.load(self.read(name, version), f"{name} version {version}")
        self._refuse_other(bundle.manifest, name, version)
        return bundle

    def _refuse_other(self, manifest: Manifest, name: str, version: int) -> None:
        if (manifest.name, manifest.version) != (name, version):
            raise BundleCorrupt(
                f"{self.root / name / str(version)} holds {manifest.name} version {manifest.version}: a version was "
                "copied or renamed by hand. Remove the folder; to use a version under another name, promote it to an "
                "alias or train again under that name."
            )

    def register(self, bundle: Bundle) -> int:
        """Write the bundle as the next version, whole or not at all.

        Returns:
            The version; two that register at once get two.

        Raises:
            WarehouseError: The folder cannot be written.
        """
        home = self.root / bundle.name
        try:
            home.mkdir(parents=True, exist_ok=True)
            while True:
                version = max(self.versions(bundle.name), default=0) + 1
                if _write_folder(home, str(version), pack(bundle, version)):
                    return version
        except OSError as error:
            raise WarehouseError(f"{home} cannot be written: {error.strerror}. Nothing was registered.") from error

    def promote(self, name: str, version: int, alias: str) -> None:
        """Point an alias at a version; two that promote at once wait for one another.

        Raises:
            BundleNotFound: There is no such version.
            WarehouseError: The folder cannot be written.
        """
        self.resolve(name, version)
        path = self.root / name / _ALIASES
        try:
            with _locked(path.with_name(_LOCK)):
                aliases = self.aliases(name) | {alias: version}
                _replace(path, json.dumps(aliases, indent=2, sort_keys=True) + "\n")
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


def _replace(path: Path, text: str) -> None:
    handle, aside = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(aside).unlink()
