"""Where bundles live: `<name>/<version>/`, written whole, never changed, with aliases beside the versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from batchscore.errors import BundleCorrupt, BundleNotFound, UsageError, nearest
from batchscore.model.aliases import Aliases, Move
from batchscore.model.bundle import MANIFEST, Bundle, Manifest, pack, pack_compiled
from batchscore.model.store import ALIASES, Store, open_store
from batchscore.model.trust import SIGNATURE, Trust
from batchscore.person import person
from batchscore.schema import Schema

__all__ = ["Registry", "Verified"]


@dataclass(frozen=True, slots=True)
class Verified:
    """The files of a version, every one of which is what its manifest says; nothing of them is unpickled yet.

    Attributes:
        manifest: What it says of itself.
        files: Its files.
        signed_by: The id of the trusted key that signed it; None where no signature was looked at.
    """

    manifest: Manifest
    files: Mapping[str, bytes]
    signed_by: str | None

    def __str__(self) -> str:
        return f"{self.manifest.name} version {self.manifest.version}"

    @property
    def schema(self) -> Schema:
        """The input columns."""
        return Schema.from_dicts(self.manifest.columns)

    @property
    def query(self) -> str:
        """The frozen text of what gave its rows."""
        return self.files["rows.sql"].decode()


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry in a folder, in an object store or in MLflow.

    Attributes:
        store: Where its files are.
        trust: What a bundle must be signed with and made of to be loaded.
    """

    store: Store
    trust: Trust = field(default_factory=Trust)

    @classmethod
    def at(cls, url: str | Path, trust: Trust | None = None) -> Registry:
        """The registry of a path or a URL, as `open_store` takes it.

        Raises:
            UsageError: Any other URL.
        """
        return cls(open_store(url), trust or Trust())

    def __str__(self) -> str:
        return self.store.where()

    def probe(self, name: str) -> None:
        """Ask once which versions of a model there are: a place that is away is noticed before an hour of training.

        Raises:
            TransientError: It cannot be reached.
            WarehouseError: It refuses.
        """
        self.store.versions(name)

    def names(self) -> list[str]:
        """The models it holds."""
        return [name for name in self.store.names() if self.versions(name)]

    def versions(self, name: str) -> list[int]:
        """The versions of a model, oldest first; none when it is unknown."""
        return self.store.versions(name)

    def aliases(self, name: str) -> dict[str, int]:
        """The model's aliases.

        Raises:
            BundleCorrupt: The alias file is not one.
            WarehouseError: It cannot be read.
        """
        return self._parsed(name, self.store.aliases(name)).aliases

    def history(self, name: str) -> tuple[Move, ...]:
        """The last moves of the model's aliases, oldest first.

        Raises:
            BundleCorrupt, WarehouseError: See `aliases`.
        """
        return self._parsed(name, self.store.aliases(name)).history

    def _parsed(self, name: str, text: bytes | None) -> Aliases:
        try:
            return Aliases.parsed(text)
        except ValueError as error:
            raise BundleCorrupt(
                f"{self.store.where(name, ALIASES)} is not an alias file. Remove it, and set each alias again with "
                "`batchscore models promote`."
            ) from error

    def resolve(self, name: str, use: str | int) -> int:
        """The version that an alias, or a number, stands for.

        Raises:
            BundleNotFound: There is none; the message lists what there is.
        """
        versions, aliases = self.versions(name), self.aliases(name)
        if not versions:
            raise self._unknown(name)
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

    def _unknown(self, name: str) -> BundleNotFound:
        known = self.names()
        guess = f" Did you mean {near}?" if (near := nearest(name, known)) else ""
        return BundleNotFound(
            f"{self} holds no model {name!r}.{guess} Train it: batchscore train <job>."
            + (f" It holds: {', '.join(known)}." if known else "")
        )

    def read(self, name: str, version: int) -> dict[str, bytes]:
        """Every file of a version, unverified.

        Raises:
            BundleNotFound: There is no such version.
            BundleCorrupt: A folder lies among its files.
            WarehouseError: A file cannot be read.
        """
        return self.store.read(name, version)

    def manifest(self, name: str, version: int) -> Manifest:
        """What a version says of itself, verified with all its files and its signature.

        Raises:
            BundleNotFound: There is no such version.
            BundleCorrupt: The bytes are not those that were written, or they are another version's.
            BundleUntrusted: No key that is trusted signed it.
            WarehouseError: A file cannot be read.
        """
        return self.verified(name, version).manifest

    def verified(self, name: str, version: int) -> Verified:
        """The same, with the very bytes that it says it of.

        Raises:
            BundleError, WarehouseError: See `manifest`.
        """
        files, where = self.read(name, version), f"{name} version {version}"
        signed_by = self._trusted(files, where)
        manifest = Manifest.verified(files, where)
        self._refuse_other(manifest, name, version)
        return Verified(manifest, files, signed_by)

    def load(self, name: str, use: str | int) -> Bundle:
        """The bundle that an alias or version stands for, verified before anything of it is loaded.

        Raises:
            BundleNotFound: There is none.
            BundleCorrupt: See `manifest`.
            BundleUntrusted: See `manifest`; or its pipeline names what none may.
            BundleIncompatible: See `Bundle.load`.
            WarehouseError: A file cannot be read.
        """
        return self.unpacked(self.verified(name, self.resolve(name, use)))

    def unpacked(self, verified: Verified) -> Bundle:
        """The bundle that these files are.

        Raises:
            BundleUntrusted, BundleIncompatible: See `load`.
        """
        bundle = Bundle.load(verified.files, str(verified), self.trust.modules)
        return replace(bundle, signed_by=verified.signed_by)

    def _trusted(self, files: dict[str, bytes], where: str) -> str | None:
        return self.trust.check(files.get(MANIFEST, b""), files.get(SIGNATURE), where)

    def _refuse_other(self, manifest: Manifest, name: str, version: int) -> None:
        if (manifest.name, manifest.version) != (name, version):
            raise BundleCorrupt(
                f"{self.store.where(name, version)} holds {manifest.name} version {manifest.version}: a version was "
                "copied or renamed by hand. Remove it; to use a version under another name, promote it to an "
                "alias or train again under that name."
            )

    def register(self, bundle: Bundle) -> int:
        """Write the bundle as the next version, whole or not at all, signed where a key is set.

        Returns:
            The version; two that register at once get two.

        Raises:
            WarehouseError: The place cannot be written.
        """
        return self.store.add(bundle.name, lambda version: self._signed(pack(bundle, version)))

    def register_compiled(self, name: str, version: int, bundle: Bundle) -> int:
        """Write a version once more, as the next one, with what was compiled of it besides; it itself stays as it is.

        Args:
            name: The model.
            version: Which.
            bundle: The same version, with its trees compiled.

        Returns:
            The next version.

        Raises:
            BundleError, WarehouseError: See `verified` and `register`.
        """
        files = self.verified(name, version).files
        compiled, built = bundle.compiled, bundle.built
        if built is None:
            raise ValueError(f"{bundle} has nothing that was compiled")
        return self.store.add(name, lambda next_: self._signed(pack_compiled(files, compiled, built, next_)))

    def _signed(self, files: dict[str, bytes]) -> dict[str, bytes]:
        return files | self.trust.sign(files[MANIFEST])

    def promote(self, name: str, version: int, alias: str) -> None:
        """Point an alias at a version; two that promote at once lose nothing of each other.

        Raises:
            BundleNotFound: There is no such version.
            WarehouseError: The place cannot be written.
        """
        self.resolve(name, version)

        def moved(aliases: Aliases) -> Aliases:
            self._refuse_pruned(name, version, aliases)
            return aliases.moved(alias, version, _now(), person())

        self._change(name, moved)

    def supersede(self, name: str, alias: str, before: int, after: int) -> bool:
        """Move an alias from one version to another, unless somebody has moved it meanwhile.

        Returns:
            Whether it stands for the other now.

        Raises:
            BundleNotFound: There is no such version.
            WarehouseError: The place cannot be written.
        """
        self.resolve(name, after)
        stands = False

        def moved(aliases: Aliases) -> Aliases:
            nonlocal stands
            self._refuse_pruned(name, after, aliases)
            stands = aliases.aliases.get(alias) in (before, after)
            return aliases.moved(alias, after, _now(), person()) if stands else aliases

        self._change(name, moved)
        return stands

    def before(self, name: str, alias: str) -> int:
        """The version that an alias stood for before it was moved to the one that it stands for.

        Raises:
            BundleNotFound: There is no such alias, it never stood for another, or that version is gone.
        """
        self.resolve(name, alias)
        before = self._parsed(name, self.store.aliases(name)).before(alias)
        if before is None:
            raise BundleNotFound(
                f"{alias} of model {name!r} has stood for no other version, as far as its history goes. Point it at "
                f"one: batchscore models promote {name} <version> --alias {alias}."
            )
        return self.resolve(name, before)

    def roll_back(self, name: str, alias: str, version: int) -> None:
        """Move an alias back to the version that `before` gave.

        Raises:
            UsageError: Somebody has moved it meanwhile.
            WarehouseError: The place cannot be written.
        """

        def moved(aliases: Aliases) -> Aliases:
            if aliases.before(alias) != version:
                raise UsageError(f"{alias} of model {name!r} was moved meanwhile. See: batchscore models list.")
            self._refuse_pruned(name, version, aliases)
            return aliases.moved(alias, version, _now(), person(), back=True)

        self._change(name, moved)

    def prunable(self, name: str, keep: int, older_than: timedelta | None, now: datetime) -> list[int]:
        """The versions that may go: none of the newest `keep`, none that an alias stands for or would go back to.

        Args:
            name: The model.
            keep: How many of the newest to keep, at least one: the highest number is never free to be given again.
            older_than: Only versions whose training is longer ago.
            now: The instant to count from.

        Raises:
            BundleNotFound: There is no such model.
            BundleCorrupt, BundleUntrusted: A version's age cannot be told.
        """
        versions = self.versions(name)
        if not versions:
            raise self._unknown(name)
        needed = self._parsed(name, self.store.aliases(name)).needed()
        old = [version for version in versions[:-keep] if version not in needed]
        if older_than is None:
            return old
        return [each for each in old if datetime.fromisoformat(self.manifest(name, each).created_at) < now - older_than]

    def prune(self, name: str, versions: list[int]) -> list[int]:
        """Remove versions, but for those that an alias needs by now.

        They are marked in the alias file first, so that none of them is promoted while it goes.

        Returns:
            Those that were removed.

        Raises:
            WarehouseError: The place cannot be written; what is marked and left, the next call removes.
        """
        removed: list[int] = []

        def marked(aliases: Aliases) -> Aliases:
            removed[:] = [version for version in versions if version not in aliases.needed()]
            return aliases.without(removed)

        if versions:
            self._change(name, marked)
        for version in removed:
            self.store.remove(name, version)
        return removed

    def _change(self, name: str, change: Callable[[Aliases], Aliases]) -> None:
        def changed(text: bytes | None) -> bytes:
            before = self._parsed(name, text)
            after = change(before)
            return text if text is not None and after == before else after.to_bytes()

        self.store.change_aliases(name, changed)

    def _refuse_pruned(self, name: str, version: int, aliases: Aliases) -> None:
        if version in aliases.pruned:
            raise BundleNotFound(f"{name} version {version} is being pruned, and cannot be promoted any more.")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
