"""A version in the registry is whole, never changes, and is the only one of its number."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchscore.errors import BundleCorrupt, BundleNotFound, UsageError, WarehouseError
from batchscore.model.bundle import Bundle
from batchscore.model.registry import Registry
from batchscore.model.scorer import check_golden
from tests.models import bundle

NOBODY = 65534
START = "import sys; from pathlib import Path; from batchscore.model.registry import Registry; "
REGISTER_MANY = START + (
    "registry = Registry(Path(sys.argv[1])); bundle = registry.load('trips', 1); print('ready', flush=True); "
    "input(); print([registry.register(bundle) for _ in range(6)])"
)
REGISTER_FOREVER = START + (
    "registry = Registry(Path(sys.argv[1])); bundle = registry.load('trips', 1)\nwhile True: registry.register(bundle)"
)
PROMOTE_FOREVER = START + (
    "registry = Registry(Path(sys.argv[1])); print('ready', flush=True)\n"
    "while True: registry.promote('trips', 1, 'champion'); registry.promote('trips', 2, 'champion')"
)
PROMOTE_MANY = START + (
    "registry = Registry(Path(sys.argv[1])); print('ready', flush=True); input()\n"
    "for i in range(100): registry.promote('trips', 1, f'{sys.argv[2]}_{i}')"
)
# Root may do everything, so it becomes somebody else; it imports all there is before, for Python may be root's own.
AS_NOBODY = START + (
    "import os; from batchscore.errors import BatchscoreError\n"
    "bundle = Registry(Path(sys.argv[3])).load('trips', 1)\n"
    "os.getuid() or os.setuid(int(sys.argv[2]))\n"
    "registry = Registry(Path(sys.argv[1]))\n"
    "for call in sys.argv[4:]:\n"
    "  try: print(eval(call))\n"
    "  except BatchscoreError as error: print(type(error).__name__, error)"
)


@pytest.fixture(scope="module")
def trained() -> Bundle:
    """A small bundle that no registry has numbered yet."""
    return bundle()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """An empty registry, whose folder is not there yet."""
    return Registry(tmp_path / "models")


@pytest.fixture(scope="module")
def stock(trained: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry to copy: versions 1, 2 and 3 of trips, version 1 of hotels."""
    root = tmp_path_factory.mktemp("stock")
    for each in (trained, trained, trained, named(trained, "hotels")):
        Registry(root).register(each)
    return root


@pytest.fixture
def stocked(registry: Registry, stock: Path) -> Registry:
    """A registry of one's own with versions 1, 2 and 3 of trips and version 1 of hotels, and no alias."""
    shutil.copytree(stock, registry.root)
    return registry


@pytest.fixture
def shared(stock: Path) -> Iterator[Registry]:
    """The same in a folder that other users may look into; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        root = shutil.copytree(stock, Path(parent) / "models")
        # Folders that pytest makes are closed as well, and a copy is as they are.
        root.chmod(0o755)
        yield Registry(root)
        root.chmod(0o755)


def named(bundle: Bundle, name: str) -> Bundle:
    """The bundle of another model."""
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"name": name}))


def child(script: str, registry: Registry, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that runs the script on the registry."""
    command = [sys.executable, "-c", script, registry.root, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def as_nobody(stock: Path, registry: Registry, *calls: str) -> list[str]:
    """What each call prints in a process that may not do everything, and has loaded `bundle` from the stock."""
    return child(AS_NOBODY, registry, NOBODY, stock, *calls).communicate()[0].splitlines()


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestRegister:
    """`Registry.register`."""

    def test_counts_up(self, registry: Registry, trained: Bundle) -> None:
        """Versions are 1, 2, 3 … for each model by itself, and the manifest says the same."""
        assert [1, 2, 3] == [registry.register(trained) for _ in range(3)]
        assert 1 == registry.register(named(trained, "other"))
        assert [1, 2, 3] == registry.versions("trips")
        assert ["other", "trips"] == registry.names()
        assert [1, 2, 3] == [registry.manifest("trips", version).version for version in (1, 2, 3)]
        assert ("other", 1) == (registry.load("other", 1).name, registry.load("other", 1).version)

    def test_ten_is_after_nine(self, registry: Registry, trained: Bundle) -> None:
        """Versions are numbers, not texts: 10 follows 9, and a gap is never filled."""
        registry.register(trained)
        for folder in ("9", "10"):
            (registry.root / "trips" / folder).mkdir()

        assert 11 == registry.register(trained)
        assert [1, 9, 10, 11] == registry.versions("trips")

    def test_earlier_versions_stay(self, registry: Registry, trained: Bundle) -> None:
        """Registering touches no version that is there, and leaves nothing else behind."""
        registry.register(trained)
        before = content(registry.root / "trips")
        registry.register(trained)
        after = content(registry.root / "trips")

        assert before.items() <= after.items()
        assert {"1", "2"} == {path.split("/")[0] for path in after}
        assert {"1", "2"} == {path.name for path in (registry.root / "trips").iterdir()}

    def test_others_may_read(self, shared: Registry, trained: Bundle, stock: Path) -> None:
        """A version that one user has registered and promoted, another can load."""
        version = shared.register(trained)
        shared.promote("trips", version, "champion")

        assert ["trips version 4"] == as_nobody(stock, shared, "registry.load('trips', 'champion')")

    def test_two_at_once(self, registry: Registry, trained: Bundle) -> None:
        """Two processes that register at the same time get different versions, each of them whole."""
        registry.register(trained)
        children = [child(REGISTER_MANY, registry) for _ in range(2)]
        for process in children:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
        for process in children:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        taken = [version for process in children for version in json.loads(process.communicate()[0])]

        assert list(range(2, 14)) == sorted(taken)
        assert list(range(1, 14)) == registry.versions("trips")
        assert list(range(1, 14)) == [registry.manifest("trips", version).version for version in range(1, 14)]
        assert not list((registry.root / "trips").glob(".writing-*"))

    def test_killed(self, registry: Registry, trained: Bundle) -> None:
        """A process killed while it writes leaves no version that can be seen, and the next takes the number."""
        registry.register(trained)
        process = child(REGISTER_FOREVER, registry)
        home = registry.root / "trips"
        # Stopped first: what is there while it stands still is what the kill leaves behind.
        while not (half := _half_written(process, home)):
            process.send_signal(signal.SIGCONT)
            time.sleep(0.001)
        process.kill()
        process.communicate()
        versions = registry.versions("trips")

        assert half.is_dir()
        assert list(range(1, len(versions) + 1)) == versions
        assert versions == [registry.manifest("trips", version).version for version in versions]
        assert ["trips"] == registry.names()
        assert len(versions) + 1 == registry.register(trained)
        check_golden(registry.load("trips", len(versions) + 1))

    def test_leftover(self, registry: Registry, trained: Bundle) -> None:
        """What a crash left of a first version is no version, and no model either."""
        leftover = registry.root / "trips" / ".writing-a1b2c3"
        leftover.mkdir(parents=True)
        (leftover / "bundle.json").write_text("{")

        assert [] == registry.versions("trips")
        assert [] == registry.names()
        assert 1 == registry.register(trained)
        assert [1] == registry.versions("trips")

    def test_read_only(self, shared: Registry, stock: Path) -> None:
        """A registry that may be read and not written refuses to register or promote, and stays as it was."""
        for path in (shared.root, shared.root / "trips"):
            path.chmod(0o555)
        before = content(shared.root)
        calls = "registry.register(bundle)", "registry.promote('trips', 1, 'champion')"
        registering, promoting = as_nobody(stock, shared, *calls)

        assert f"{shared.root}/trips cannot be written: Permission denied. Nothing was registered." in registering
        assert "aliases.json cannot be written: Permission denied. No alias was changed." in promoting
        assert registering.startswith("WarehouseError")
        assert promoting.startswith("WarehouseError")
        assert before == content(shared.root)

    def test_unreadable(self, shared: Registry, stock: Path) -> None:
        """A registry that may not be read says so by its path, and is not taken for an empty one."""
        shared.root.chmod(0)
        for printed in as_nobody(stock, shared, "registry.load('trips', 'champion')", "registry.names()"):
            assert printed.startswith(f"WarehouseError {shared.root}")
            assert "cannot be read: Permission denied. Check its permissions." in printed

    def test_no_folder(self, registry: Registry, trained: Bundle) -> None:
        """A file where the model's folder should be is refused by its path."""
        registry.root.mkdir()
        (registry.root / "trips").write_text("")

        with pytest.raises(WarehouseError, match=r"models/trips cannot be written: .*\. Nothing was registered"):
            registry.register(trained)


def _half_written(process: subprocess.Popen[str], home: Path) -> Path | None:
    """The folder that the process, which is then stopped, is about to write; None when it is between crowned."""
    deadline = time.monotonic() + 60
    while not any(home.glob(".writing-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    found = [path for path in home.glob(".writing-*") if any(path.iterdir())]
    return found[0] if found else None


class TestAliases:
    """`Registry.promote` and `Registry.aliases`."""

    def test_promote(self, stocked: Registry) -> None:
        """An alias stands for the version it was last pointed at; the others stay where they are."""
        stocked.promote("trips", 1, "champion")
        stocked.promote("trips", 2, "challenger")
        stocked.promote("trips", 3, "champion")

        assert {"champion": 3, "challenger": 2} == stocked.aliases("trips")
        assert (3, 2) == (stocked.resolve("trips", "champion"), stocked.resolve("trips", "challenger"))
        assert 3 == stocked.load("trips", "champion").version

    def test_to_nothing(self, stocked: Registry) -> None:
        """An alias cannot be pointed at a version that is not there."""
        with pytest.raises(BundleNotFound, match="no version 4"):
            stocked.promote("trips", 4, "champion")

        assert {} == stocked.aliases("trips")

    @pytest.mark.parametrize("text", ["", "[]", '"x"', '{"champion": "one"}', '{"champion": null}', "\udc80"])
    def test_broken_file(self, stocked: Registry, text: str) -> None:
        """An alias file that is none is refused by its path, and not read as no aliases; removing it helps, as told."""
        path = stocked.root / "trips" / "aliases.json"
        path.write_bytes(text.encode(errors="surrogateescape"))

        with pytest.raises(BundleCorrupt, match=r"trips/aliases\.json is not an alias file\. Remove it, and set each"):
            stocked.resolve("trips", "champion")

        path.unlink()
        stocked.promote("trips", 1, "champion")
        assert 1 == stocked.resolve("trips", "champion")

    def test_whole_at_any_instant(self, stocked: Registry) -> None:
        """Who reads while another promotes sees the old alias or the new one, and never half a file or none."""
        stocked.promote("trips", 1, "champion")
        process = child(PROMOTE_FOREVER, stocked)
        try:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
            seen = {stocked.resolve("trips", "champion") for _ in range(2_000)}
        finally:
            process.kill()
            process.communicate()

        assert {1, 2} == seen

    def test_two_at_once(self, stocked: Registry) -> None:
        """Two processes that promote at the same time lose no alias of either."""
        children = [child(PROMOTE_MANY, stocked, name) for name in ("one", "two")]
        for process in children:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
        for process in children:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in children:
            process.communicate()

        assert {f"{name}_{i}": 1 for name in ("one", "two") for i in range(100)} == stocked.aliases("trips")


class TestResolve:
    """`Registry.resolve`, `names` and `versions`."""

    @pytest.fixture
    def crowned(self, stocked: Registry) -> Registry:
        """The first of three versions of trips is the champion."""
        stocked.promote("trips", 1, "champion")
        return stocked

    @pytest.mark.parametrize(("use", "version"), [("champion", 1), (1, 1), (3, 3), ("2", 2)])
    def test_finds(self, crowned: Registry, use: str | int, version: int) -> None:
        """A version is found by alias or by number, the number also as text."""
        assert version == crowned.resolve("trips", use)

    @pytest.mark.parametrize(
        ("name", "use", "says"),
        [
            ("trip", "champion", r"no model 'trip'\. Did you mean trips\? .* It holds: hotels, trips\."),
            ("zzz", "champion", r"no model 'zzz'\. Train it: batchscore train <job>\. It holds: hotels, trips\."),
            ("trips", "chalenger", r"no alias 'chalenger'\. Versions: 1, 2, 3; aliases: champion = 1\."),
            ("trips", 4, r"no version 4\. Versions: 1, 2, 3; aliases: champion = 1\. Give one of these\.$"),
            ("trips", "0", r"no version '0'\. Versions: 1, 2, 3"),
            ("trips", -1, "no alias -1"),
            ("hotels", "champion", r"none\. Set one: batchscore models promote hotels <version> --alias champion\.$"),
            ("", "champion", "no model ''"),
        ],
    )
    def test_says_what_there_is(self, crowned: Registry, name: str, use: str | int, says: str) -> None:
        """What cannot be found is refused with what there is, and the nearest name."""
        with pytest.raises(BundleNotFound, match=says):
            crowned.resolve(name, use)

    def test_empty(self, registry: Registry) -> None:
        """A registry that is not there yet holds nothing, and says how to begin."""
        assert [] == registry.names() == registry.versions("trips")
        with pytest.raises(BundleNotFound, match=r"holds no model 'trips'\. Train it: batchscore train <job>\.$"):
            registry.resolve("trips", "champion")

    def test_alias_of_nothing(self, crowned: Registry) -> None:
        """An alias whose version somebody has removed resolves to nothing, and not to another version."""
        (crowned.root / "trips" / "1").rename(crowned.root.parent / "kept")

        with pytest.raises(BundleNotFound, match="Versions: 2, 3; aliases: champion = 1"):
            crowned.resolve("trips", "champion")
        with pytest.raises(BundleNotFound, match="trips/1 is not there"):
            crowned.read("trips", 1)

    @pytest.mark.parametrize("foreign", ["notes", "01", "0", "v3", "3.bak", "²", "٣", ".9", "-1", "1e3"])
    def test_foreign_folders(self, crowned: Registry, foreign: str) -> None:
        """A folder that is not a number as we write it is no version, and no number is taken by it."""
        (crowned.root / "trips" / foreign).mkdir()
        (crowned.root / foreign).mkdir()

        assert [1, 2, 3] == crowned.versions("trips")
        assert ["hotels", "trips"] == crowned.names()

    def test_foreign_files(self, crowned: Registry, trained: Bundle) -> None:
        """A file beside the versions or the models is neither; a file of the next number is in the way, and stays."""
        (crowned.root / "README.md").write_text("ours")
        (crowned.root / "trips" / "7").write_text("a file")

        assert [1, 2, 3] == crowned.versions("trips")
        assert ["hotels", "trips"] == crowned.names()
        assert 4 == crowned.register(trained)

    def test_file_of_the_next_number(self, crowned: Registry, trained: Bundle) -> None:
        """A file that has the next version's number is refused by what it is, and stays."""
        (crowned.root / "trips" / "4").write_text("a file")

        with pytest.raises(WarehouseError, match=r"trips cannot be written: Not a directory\. Nothing was registered"):
            crowned.register(trained)
        assert "a file" == (crowned.root / "trips" / "4").read_text()
        assert not list((crowned.root / "trips").glob(".writing-*"))

    def test_tampered_on_disk(self, crowned: Registry) -> None:
        """A file changed in, added to or removed from a version's folder is found by whoever reads the version."""
        folder = crowned.root / "trips" / "2"
        changes: list[Callable[[], Any]] = [
            lambda: (folder / "rows.sql").write_text("SELECT 1"),
            lambda: (folder / "extra").write_text(""),
            (folder / "rows.sql").unlink,
        ]
        for change in changes:
            change()
            with pytest.raises(BundleCorrupt, match=r"^trips version 2"):
                crowned.manifest("trips", 2)
            with pytest.raises(BundleCorrupt, match=r"^trips version 2"):
                crowned.load("trips", 2)

        assert 1 == crowned.load("trips", 1).version

    def test_folder_in_a_version(self, crowned: Registry) -> None:
        """A folder beside a version's files is named as what was added."""
        (crowned.root / "trips" / "2" / "notes").mkdir()

        with pytest.raises(BundleCorrupt, match=r"^trips version 2: files were added: notes/\. Take it out of "):
            crowned.read("trips", 2)

    @pytest.mark.parametrize(("name", "version"), [("trips", 4), ("trips", 2), ("hotels", 1), ("planes", 1)])
    def test_copied_version(self, crowned: Registry, name: str, version: int) -> None:
        """A version copied to another number or name is not taken for that: the message says both."""
        shutil.copytree(crowned.root / "trips" / "1", crowned.root / name / str(version), dirs_exist_ok=True)

        for read in (crowned.manifest, crowned.load):
            with pytest.raises(BundleCorrupt, match=rf"{name}/{version} holds trips version 1: .*Remove the folder"):
                read(name, version)


class TestUrl:
    """`Registry.at`."""

    @pytest.mark.parametrize(
        ("url", "path"),
        [
            ("models", "models"),
            ("/srv/models", "/srv/models"),
            ("file:///srv/models", "/srv/models"),
            ("file:///srv/my%20models", "/srv/my models"),
        ],
    )
    def test_folder(self, url: str, path: str) -> None:
        """A path is itself, and a file URL its path."""
        assert Path(path) == Registry.at(url).root

    @pytest.mark.parametrize("scheme", ["s3", "https", "mlflow"])
    def test_other_schemes(self, scheme: str) -> None:
        """A URL of another scheme is refused, and never a folder of that name."""
        with pytest.raises(UsageError, match=f"registry_url: {scheme}:// is not supported"):
            Registry.at(f"{scheme}://host/models")
