"""A version in the registry, in a folder or in S3, is whole, never changes, and is the only one of its number."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
from forked import Forked

from batchscore.errors import BundleCorrupt, BundleNotFound, TransientError, UsageError, WarehouseError
from batchscore.model.bucket import Bucket
from batchscore.model.bundle import Bundle, pack
from batchscore.model.registry import Registry
from batchscore.model.scorer import check_golden
from batchscore.model.store import Folder
from tests.models import bundle
from tests.s3 import ENVIRONMENT, bucket_at, serving

NOBODY = 65534
START = "import sys; from batchscore.model.registry import Registry; "
REGISTER_MANY = START + (
    "registry = Registry.at(sys.argv[1]); bundle = registry.load('trips', 1); print('ready', flush=True); "
    "input(); print([registry.register(bundle) for _ in range(3)])"
)
REGISTER_FOREVER = START + (
    "registry = Registry.at(sys.argv[1]); bundle = registry.load('trips', 1)\nwhile True: registry.register(bundle)"
)
PROMOTE_FOREVER = START + (
    "registry = Registry.at(sys.argv[1]); print('ready', flush=True)\n"
    "while True: registry.promote('trips', 1, 'champion'); registry.promote('trips', 2, 'champion')"
)
PROMOTE_MANY = START + (
    "registry = Registry.at(sys.argv[1]); print('ready', flush=True); input()\n"
    "for i in range(30): registry.promote('trips', 1, f'{sys.argv[2]}_{i}')"
)
# Root may do everything, so it becomes somebody else; it imports all there is before, for Python may be root's own.
AS_NOBODY = START + (
    "import os; from batchscore.errors import BatchscoreError; from batchscore.model.bundle import pack\n"
    "bundle = Registry.at(sys.argv[3]).load('trips', 1)\n"
    # What packing imports late, while the interpreter's own files are sure to be in reach.
    "pack(bundle, 1)\n"
    "os.getuid() or os.setuid(int(sys.argv[2]))\n"
    "registry = Registry.at(sys.argv[1])\n"
    "for call in sys.argv[4:]:\n"
    "  try: print(eval(call))\n"
    "  except BatchscoreError as error: print(type(error).__name__, error)"
)


@pytest.fixture(scope="module")
def trained() -> Bundle:
    """A small bundle that no registry has numbered yet."""
    return bundle()


@pytest.fixture(params=["folder", "s3"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    """An empty registry of each kind; the folder is not there yet."""
    return Registry.at(tmp_path / "models" if request.param == "folder" else request.getfixturevalue("s3_url"))


@pytest.fixture
def folder(tmp_path: Path) -> Registry:
    """An empty registry in a folder that is not there yet."""
    return Registry.at(tmp_path / "models")


@pytest.fixture
def bucket(s3_url: str) -> Registry:
    """An empty registry in S3."""
    return Registry.at(s3_url)


@pytest.fixture(scope="module")
def stock(trained: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry to copy: versions 1, 2 and 3 of trips, version 1 of hotels."""
    root = tmp_path_factory.mktemp("stock")
    for each in (trained, trained, trained, named(trained, "hotels")):
        Registry.at(root).register(each)
    return root


@pytest.fixture
def stocked(registry: Registry, stock: Path) -> Registry:
    """A registry of one's own with versions 1, 2 and 3 of trips and version 1 of hotels, and no alias."""
    for path, data in content(Registry.at(stock)).items():
        put(registry, path, data)
    return registry


@pytest.fixture
def crowned(stocked: Registry) -> Registry:
    """The first of three versions of trips is the champion."""
    stocked.promote("trips", 1, "champion")
    return stocked


@pytest.fixture
def crowned_folder(stock: Path, folder: Registry) -> Registry:
    """The same in a folder."""
    shutil.copytree(stock, root(folder))
    folder.promote("trips", 1, "champion")
    return folder


@pytest.fixture
def shared(stock: Path) -> Iterator[Registry]:
    """The same in a folder that other users may look into; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        models = shutil.copytree(stock, Path(parent) / "models")
        # Folders that pytest makes are closed as well, and a copy is as they are.
        models.chmod(0o755)
        yield Registry.at(models)
        models.chmod(0o755)


def named(bundle: Bundle, name: str) -> Bundle:
    """The bundle of another model."""
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"name": name}))


def child(script: str, registry: Registry, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that runs the script on the registry."""
    command = [sys.executable, "-c", script, str(registry), *map(str, arguments)]
    return Forked(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def as_nobody(stock: Path, registry: Registry, *calls: str) -> list[str]:
    """What each call prints in a process that may not do everything, and has loaded `bundle` from the stock."""
    return child(AS_NOBODY, registry, NOBODY, stock, *calls).communicate()[0].splitlines()


def root(registry: Registry) -> Path:
    """The folder of a registry in one."""
    assert isinstance(registry.store, Folder)
    return registry.store.root


def content(registry: Registry) -> dict[str, bytes]:
    """Every file of a registry by its path in it, but for locks and for what keeps numbers taken."""
    if isinstance(registry.store, Bucket):
        listed = (each["path"] for page in obstore.list(registry.store.objects) for each in page)
        found = {path: bytes(obstore.get(registry.store.objects, path).bytes()) for path in listed}
    else:
        paths = [path for path in root(registry).rglob("*") if path.is_file()]
        found = {str(path.relative_to(root(registry))): path.read_bytes() for path in paths}
    return {path: data for path, data in found.items() if "/." not in path}


def put(registry: Registry, path: str, data: bytes) -> None:
    """Write a file into a registry by another hand."""
    if isinstance(registry.store, Bucket):
        obstore.put(registry.store.objects, path, data)
    else:
        (root(registry) / path).parent.mkdir(parents=True, exist_ok=True)
        (root(registry) / path).write_bytes(data)


def delete(registry: Registry, path: str) -> None:
    """Remove a file from a registry by another hand."""
    if isinstance(registry.store, Bucket):
        obstore.delete(registry.store.objects, path)
    else:
        (root(registry) / path).unlink()


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

    def test_ten_is_after_nine(self, folder: Registry, trained: Bundle) -> None:
        """Versions are numbers, not texts: 10 follows 9, and a gap is never filled."""
        folder.register(trained)
        for number in ("9", "10"):
            (root(folder) / "trips" / number).mkdir()

        assert 11 == folder.register(trained)
        assert [1, 9, 10, 11] == folder.versions("trips")

    def test_earlier_versions_stay(self, registry: Registry, trained: Bundle) -> None:
        """Registering touches no version that is there, and leaves nothing else behind."""
        registry.register(trained)
        before = content(registry)
        registry.register(trained)
        after = content(registry)

        assert before.items() <= after.items()
        assert {"trips/1", "trips/2"} == {path.rpartition("/")[0] for path in after}

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

        assert list(range(2, 8)) == sorted(taken)
        assert list(range(1, 8)) == registry.versions("trips")
        assert list(range(1, 8)) == [registry.manifest("trips", version).version for version in range(1, 8)]
        assert not any(".writing-" in path for path in content(registry))

    def test_killed(self, folder: Registry, trained: Bundle) -> None:
        """A process killed while it writes leaves no version that can be seen, and the next takes the number."""
        folder.register(trained)
        process = child(REGISTER_FOREVER, folder)
        home = root(folder) / "trips"
        # Stopped first: what is there while it stands still is what the kill leaves behind.
        while not (half := _half_written(process, home)):
            process.send_signal(signal.SIGCONT)
            time.sleep(0.001)
        process.kill()
        process.communicate()
        versions = folder.versions("trips")

        assert half.is_dir()
        assert list(range(1, len(versions) + 1)) == versions
        assert versions == [folder.manifest("trips", version).version for version in versions]
        assert ["trips"] == folder.names()
        assert len(versions) + 1 == folder.register(trained)
        check_golden(folder.load("trips", len(versions) + 1))

    def test_leftover(self, folder: Registry, trained: Bundle) -> None:
        """What a crash left of a first version is no version, and no model either."""
        leftover = root(folder) / "trips" / ".writing-a1b2c3"
        leftover.mkdir(parents=True)
        (leftover / "bundle.json").write_text("{")

        assert [] == folder.versions("trips")
        assert [] == folder.names()
        assert 1 == folder.register(trained)
        assert [1] == folder.versions("trips")

    def test_read_only(self, shared: Registry, stock: Path) -> None:
        """A registry that may be read and not written refuses to register or promote, and stays as it was."""
        for path in (root(shared), root(shared) / "trips"):
            path.chmod(0o555)
        before = content(shared)
        calls = "registry.register(bundle)", "registry.promote('trips', 1, 'champion')"
        registering, promoting = as_nobody(stock, shared, *calls)

        assert f"{root(shared)}/trips cannot be written: Permission denied. Nothing was registered." in registering
        assert "aliases.json cannot be written: Permission denied. No alias was changed." in promoting
        assert registering.startswith("WarehouseError")
        assert promoting.startswith("WarehouseError")
        assert before == content(shared)

    def test_unreadable(self, shared: Registry, stock: Path) -> None:
        """A registry that may not be read says so by its path, and is not taken for an empty one."""
        root(shared).chmod(0)
        for printed in as_nobody(stock, shared, "registry.load('trips', 'champion')", "registry.names()"):
            assert printed.startswith(f"WarehouseError {root(shared)}")
            assert "cannot be read: Permission denied. Check its permissions." in printed

    def test_no_folder(self, folder: Registry, trained: Bundle) -> None:
        """A file where the model's folder should be is refused by its path."""
        root(folder).mkdir()
        (root(folder) / "trips").write_text("")

        with pytest.raises(WarehouseError, match=r"models/trips cannot be written: .*\. Nothing was registered"):
            folder.register(trained)


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
        put(stocked, "trips/aliases.json", text.encode(errors="surrogateescape"))

        with pytest.raises(BundleCorrupt, match=r"trips/aliases\.json is not an alias file\. Remove it, and set each"):
            stocked.resolve("trips", "champion")

        delete(stocked, "trips/aliases.json")
        stocked.promote("trips", 1, "champion")
        assert 1 == stocked.resolve("trips", "champion")

    def test_whole_at_any_instant(self, stocked: Registry) -> None:
        """Who reads while another promotes sees the old alias or the new one, and never half a file or none."""
        stocked.promote("trips", 1, "champion")
        process = child(PROMOTE_FOREVER, stocked)
        try:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
            looks = 2_000 if isinstance(stocked.store, Folder) else 100
            seen = {stocked.aliases("trips")["champion"] for _ in range(looks)}
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

        assert {f"{name}_{i}": 1 for name in ("one", "two") for i in range(30)} == stocked.aliases("trips")


class TestHistory:
    """`Registry.history`, `before` and `roll_back`."""

    def test_who_moved_it(self, crowned: Registry) -> None:
        """Each move says from what to what, when and by whom; to promote what is promoted already is none."""
        crowned.promote("trips", 1, "champion")
        crowned.promote("trips", 3, "champion")
        moves = crowned.history("trips")

        assert [("champion", None, 1), ("champion", 1, 3)] == [(each.alias, each.before, each.after) for each in moves]
        assert all(datetime.now(UTC) - datetime.fromisoformat(each.at) < timedelta(minutes=5) for each in moves)
        assert all(each.by.endswith(f"@{socket.gethostname()}") for each in moves)

    def test_rolls_back(self, crowned: Registry) -> None:
        """An alias goes back step by step, each time to what it stood for before that; another alias stays."""
        crowned.promote("trips", 2, "champion")
        crowned.promote("trips", 2, "challenger")
        crowned.promote("trips", 3, "champion")
        seen = []
        for _ in range(2):
            crowned.roll_back("trips", "champion", crowned.before("trips", "champion"))
            seen.append(crowned.aliases("trips"))

        assert [{"champion": 2, "challenger": 2}, {"champion": 1, "challenger": 2}] == seen
        assert [False, False, False, False, True, True] == [each.back for each in crowned.history("trips")]
        with pytest.raises(BundleNotFound, match=r"has stood for no other version.*Point it at one"):
            crowned.before("trips", "champion")

    def test_after_a_rollback(self, crowned: Registry) -> None:
        """What is promoted after a rollback goes back to what the rollback had brought."""
        crowned.promote("trips", 2, "champion")
        crowned.roll_back("trips", "champion", 1)
        crowned.promote("trips", 3, "champion")

        assert 1 == crowned.before("trips", "champion")

    def test_moved_meanwhile(self, crowned: Registry) -> None:
        """A rollback to a version that is no longer the one before is refused, and the alias stays."""
        crowned.promote("trips", 2, "champion")
        before = crowned.before("trips", "champion")
        crowned.promote("trips", 3, "champion")

        with pytest.raises(UsageError, match="was moved meanwhile"):
            crowned.roll_back("trips", "champion", before)
        assert {"champion": 3} == crowned.aliases("trips")

    def test_keeps_twenty(self, crowned: Registry) -> None:
        """Of each alias the last twenty moves are kept, whatever the others do."""
        crowned.promote("trips", 1, "challenger")
        for version in (2, 3) * 15:
            crowned.promote("trips", version, "champion")
        kept = [each.alias for each in crowned.history("trips")]

        assert (20, 1) == (kept.count("champion"), kept.count("challenger"))
        assert 2 == crowned.before("trips", "champion")

    def test_file_without_history(self, crowned: Registry) -> None:
        """An alias file of before there was a history is read, and has one from the next move on."""
        put(crowned, "trips/aliases.json", b'{"champion": 2, "aliases": 1}')
        crowned.promote("trips", 3, "champion")

        assert {"champion": 3, "aliases": 1} == crowned.aliases("trips")
        assert 2 == crowned.before("trips", "champion")


class TestPrune:
    """`Registry.prunable` and `prune`."""

    @pytest.mark.parametrize(
        ("keep", "promoted", "gone"),
        [(1, [], [1, 2]), (2, [], [1]), (3, [], []), (9, [], []), (1, [1], [2]), (1, [1, 3], [2]), (1, [2, 1, 3], [2])],
    )
    def test_what_may_go(self, stocked: Registry, keep: int, promoted: list[int], gone: list[int]) -> None:
        """All but the newest, what an alias stands for and what it goes back to; the others are whole as before."""
        for version in promoted:
            stocked.promote("trips", version, "champion")
        chosen = stocked.prunable("trips", keep, None, datetime.now(UTC))

        assert gone == chosen == stocked.prune("trips", chosen)
        assert [version for version in (1, 2, 3) if version not in gone] == stocked.versions("trips")
        assert all(stocked.manifest("trips", version) for version in stocked.versions("trips"))
        assert [1] == stocked.versions("hotels")
        places = {path.split("/")[1] for path in content(stocked) if path.startswith("trips/")}
        assert {str(version) for version in (1, 2, 3) if version not in gone} == places - {"aliases.json"}

    def test_age(self, stocked: Registry) -> None:
        """With an age, only what was trained longer ago than that may go."""
        now = datetime.now(UTC)

        assert [] == stocked.prunable("trips", 1, timedelta(days=90), now)
        assert [1, 2] == stocked.prunable("trips", 1, timedelta(days=90), now + timedelta(days=91))

    def test_number_is_not_given_again(self, stocked: Registry, trained: Bundle) -> None:
        """The next version after a prune has a number that none had before."""
        stocked.prune("trips", stocked.prunable("trips", 1, None, datetime.now(UTC)))

        assert 4 == stocked.register(trained)

    def test_promoted_meanwhile(self, stocked: Registry) -> None:
        """What was promoted after it was chosen stays; what is marked can be promoted no more, and is pruned again."""
        chosen = stocked.prunable("trips", 1, None, datetime.now(UTC))
        stocked.promote("trips", 1, "champion")

        assert [1, 2] == chosen
        assert [2] == stocked.prune("trips", chosen)
        aliases = json.loads(stocked.store.aliases("trips") or b"")
        put(stocked, "trips/aliases.json", json.dumps(aliases | {"pruned": [2, 3]}).encode())
        with pytest.raises(BundleNotFound, match="version 3 is being pruned"):
            stocked.promote("trips", 3, "champion")

    def test_unknown_model(self, stocked: Registry) -> None:
        """A model that is not there is refused with what there is."""
        with pytest.raises(BundleNotFound, match=r"no model 'trip'.*Did you mean trips"):
            stocked.prunable("trip", 1, None, datetime.now(UTC))


class TestVanishing:
    """A registry that goes while it is read."""

    def test_between_alias_and_bundle(self, crowned: Registry) -> None:
        """A version that is removed between its alias and its files is told by its place, and never half loaded."""
        version = crowned.resolve("trips", "champion")
        delete(crowned, f"trips/{version}/bundle.json")
        with pytest.raises((BundleNotFound, BundleCorrupt), match=r"trips.*(1 is not there|has no bundle.json)"):
            crowned.manifest("trips", version)

        crowned.store.remove("trips", version)
        with pytest.raises(BundleNotFound, match=r"trips/1 is not there. See: batchscore models list"):
            crowned.manifest("trips", version)

    def test_folder(self, crowned_folder: Registry) -> None:
        """A folder that is gone, as one that is not mounted, holds no model; its path is told."""
        version = crowned_folder.resolve("trips", "champion")
        root(crowned_folder).rename(root(crowned_folder).with_name("elsewhere"))

        with pytest.raises(BundleNotFound, match="models/trips/1 is not there"):
            crowned_folder.manifest("trips", version)
        with pytest.raises(BundleNotFound, match="models holds no model 'trips'"):
            crowned_folder.load("trips", "champion")

    def test_server(self, monkeypatch: pytest.MonkeyPatch, s3_url: str, stock: Path) -> None:
        """A server that does not answer is a failure that may pass, of reading and of writing alike."""
        from moto.server import DomainDispatcherApplication, create_backend_app

        with serving(DomainDispatcherApplication(create_backend_app)) as endpoint:
            registry = Registry.at(bucket_at(endpoint, monkeypatch))
            for path, data in content(Registry.at(stock)).items():
                put(registry, path, data)
            version = registry.resolve("trips", 1)

        with pytest.raises(
            TransientError, match=r"trips/1 cannot be read: .*Try again; check AWS_ENDPOINT_URL"
        ) as caught:
            registry.manifest("trips", version)
        assert "canary-of-s3" not in str(caught.value)
        with pytest.raises(TransientError, match=r"trips cannot be written: .*Nothing was registered"):
            registry.store.add("trips", lambda version: {})
        with pytest.raises(TransientError, match=r"cannot be written: .*No alias was changed"):
            registry.store.change_aliases("trips", lambda before: b"{}")


class TestBucket:
    """What only S3 has."""

    def test_number_that_was_taken(self, bucket: Registry, trained: Bundle) -> None:
        """A training that died between its files and its manifest leaves no version, and its number is not given again."""
        bucket.register(trained)
        put(bucket, "trips/.taken/2", b"")
        put(bucket, "trips/2/features.py", b"half")

        assert [1] == bucket.versions("trips")
        assert 3 == bucket.register(trained)
        assert [1, 3] == bucket.versions("trips")
        assert 3 == bucket.manifest("trips", 3).version

    def test_manifest_is_last(self, bucket: Registry, trained: Bundle) -> None:
        """While a version's files are being written nobody sees it: its manifest, by which it is known, comes last."""
        put(bucket, "trips/1/features.py", b"")
        for file, data in pack(trained, 1).items():
            if file != "bundle.json":
                put(bucket, f"trips/1/{file}", data)

        assert [] == bucket.versions("trips") == bucket.names()
        with pytest.raises(BundleNotFound, match="holds no model 'trips'"):
            bucket.load("trips", 1)

    def test_no_bucket(self, s3_url: str, trained: Bundle) -> None:
        """A bucket that is not there is refused by its name, whatever is asked of it."""
        registry = Registry.at("s3://no-such-bucket/registry")
        calls = registry.names, lambda: registry.load("trips", 1), lambda: registry.register(trained)
        for call in calls:
            with pytest.raises(WarehouseError, match=r"s3://no-such-bucket/registry.*NoSuchBucket\. Make the bucket"):
                call()

    def test_access_denied(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that forbids is refused as that, with where to look, and the secret is not told."""

        def forbids(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]

        with serving(forbids) as endpoint:
            for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint}).items():
                monkeypatch.setenv(name, value)
            with pytest.raises(WarehouseError, match=r"AccessDenied. Check the AWS_ credentials") as caught:
                Registry.at("s3://theirs/registry").load("trips", 1)
        assert "canary-of-s3" not in str(caught.value)

    def test_store_without_conditions(self, monkeypatch: pytest.MonkeyPatch, trained: Bundle) -> None:
        """A store that overwrites what it is asked to leave alone is refused before a version is written."""
        from moto.server import DomainDispatcherApplication, create_backend_app

        moto = DomainDispatcherApplication(create_backend_app)

        def careless(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
            environ.pop("HTTP_IF_NONE_MATCH", None)
            return moto(environ, start)

        with serving(careless) as endpoint:
            registry = Registry.at(bucket_at(endpoint, monkeypatch))
            with pytest.raises(WarehouseError, match="the store overwrites what it is asked to leave alone"):
                registry.register(trained)
            assert {} == content(registry)

    @pytest.mark.parametrize(
        "url", ["s3://", "s3:///models", "s3://key:secret@bucket/models", "s3://bucket/a?region=x"]
    )
    def test_url(self, url: str) -> None:
        """A URL without a bucket, or with secrets or options in it, is refused, and the secrets are not repeated."""
        with pytest.raises(UsageError, match=r"write s3://bucket/prefix. Credentials") as caught:
            Registry.at(url)
        assert "secret@" not in str(caught.value)


class TestResolve:
    """`Registry.resolve`, `names` and `versions`."""

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
        crowned.store.remove("trips", 1)

        with pytest.raises(BundleNotFound, match="Versions: 2, 3; aliases: champion = 1"):
            crowned.resolve("trips", "champion")
        with pytest.raises(BundleNotFound, match="trips/1 is not there"):
            crowned.read("trips", 1)

    @pytest.mark.parametrize("foreign", ["notes", "01", "0", "v3", "3.bak", "²", "٣", ".9", "-1", "1e3"])
    def test_foreign_folders(self, crowned_folder: Registry, foreign: str) -> None:
        """A folder that is not a number as we write it is no version, and no number is taken by it."""
        (root(crowned_folder) / "trips" / foreign).mkdir()
        (root(crowned_folder) / foreign).mkdir()

        assert [1, 2, 3] == crowned_folder.versions("trips")
        assert ["hotels", "trips"] == crowned_folder.names()

    def test_foreign_files(self, crowned: Registry, trained: Bundle) -> None:
        """A file beside the versions or the models is neither; a file of the next number is in the way, and stays."""
        put(crowned, "README.md", b"ours")
        put(crowned, "trips/7", b"a file")

        assert [1, 2, 3] == crowned.versions("trips")
        assert ["hotels", "trips"] == crowned.names()
        assert (8 if isinstance(crowned.store, Bucket) else 4) == crowned.register(trained)

    def test_file_of_the_next_number(self, crowned_folder: Registry, trained: Bundle) -> None:
        """A file that has the next version's number is refused by what it is, and stays."""
        (root(crowned_folder) / "trips" / "4").write_text("a file")

        with pytest.raises(WarehouseError, match=r"trips cannot be written: Not a directory\. Nothing was registered"):
            crowned_folder.register(trained)
        assert "a file" == (root(crowned_folder) / "trips" / "4").read_text()
        assert not list((root(crowned_folder) / "trips").glob(".writing-*"))

    def test_tampered_on_disk(self, crowned: Registry) -> None:
        """A file changed in, added to or removed from a version's folder is found by whoever reads the version."""
        changes: list[Callable[[], Any]] = [
            lambda: put(crowned, "trips/2/rows.sql", b"SELECT 1"),
            lambda: put(crowned, "trips/2/extra", b"1"),
            lambda: delete(crowned, "trips/2/rows.sql"),
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
        put(crowned, "trips/2/notes/today", b"")

        with pytest.raises(BundleCorrupt, match=r"^trips version 2: files were added: notes/.*\. Take it out of "):
            crowned.read("trips", 2)

    @pytest.mark.parametrize(("name", "version"), [("trips", 4), ("trips", 2), ("hotels", 1), ("planes", 1)])
    def test_copied_version(self, crowned: Registry, name: str, version: int) -> None:
        """A version copied to another number or name is not taken for that: the message says both."""
        for path, data in content(crowned).items():
            if path.startswith("trips/1/"):
                put(crowned, f"{name}/{version}/{path.removeprefix('trips/1/')}", data)

        for read in (crowned.manifest, crowned.load):
            with pytest.raises(BundleCorrupt, match=rf"{name}/{version} holds trips version 1: .*Remove it"):
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
            ("file:/srv/models", "/srv/models"),
            ("models:v2", "models:v2"),
        ],
    )
    def test_folder(self, url: str, path: str) -> None:
        """A path is itself, and a file URL its path."""
        assert Path(path) == root(Registry.at(url))

    @pytest.mark.parametrize("url", ["gs://host/models", "https://host", "mlflow://host", "gs:/models", "models:/"])
    def test_other_schemes(self, url: str) -> None:
        """A URL of another scheme is refused with the forms that are taken, and never a folder of that name."""
        scheme = url.partition(":")[0]
        with pytest.raises(UsageError, match=f"registry_url: {scheme}:/ is not supported. Give a folder, file:///path"):
            Registry.at(url)

    @pytest.mark.parametrize("url", ["s3:/bucket", "mlflow+http:/host"])
    def test_one_slash(self, url: str) -> None:
        """A URL that lacks a slash is refused with how to write it, and is no folder."""
        with pytest.raises(UsageError, match=rf"registry_url: write {re.escape(url.partition(':')[0])}://"):
            Registry.at(url)

    @pytest.mark.parametrize(
        ("url", "use"),
        [("models:/toy@challenger", '"challenger"'), ("models:/toy/3", "3")],
    )
    def test_one_model(self, url: str, use: str) -> None:
        """MLflow's name of one version is no registry, and is answered with how to say the same."""
        said = re.escape(f'mlflow+http://host:port, and in the job file, under [model], name = "toy" and use = {use}.')
        with pytest.raises(UsageError, match=rf"{url} is one version.*{said} Give a folder"):
            Registry.at(url)
