"""Parquet files in an object store: found, fetched as far as they are wanted, and what a store may do to that.

That they give the rows, types, order and errors of local files is held in test_sources.py, by the same tests.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import obstore
import polars as pl
import pytest
import toy
from blobs import Blobs
from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store
from s3 import Proxy, Request, Spoilt, bucket_at, proxied, serving, store_at, upload
from toy import Project

from batchscore.errors import TransientError, UsageError, WarehouseError
from batchscore.interval import Calendar, Interval
from batchscore.job import Source as JobSource
from batchscore.objectstore import ObjectStore
from batchscore.sources import Source, open_source, read_frame
from batchscore.sources.engine import Engine
from batchscore.sources.objects import Objects
from batchscore.sources.statement import Page

DAY = Interval(datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 3, tzinfo=UTC))
DAYS = Calendar("day", ZoneInfo("UTC"))
CANARY = "canary-of-s3"


@dataclass
class Lake:
    """A bucket behind a proxy that counts and spoils, and a folder whose files are put there."""

    url: str
    proxy: Proxy
    folder: Path

    def put(self, name: str, frame: pl.DataFrame, **options: int) -> None:
        """Put one file there."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(path, **options)
        obstore.put(self.client, name, path.read_bytes())

    @property
    def client(self) -> S3Store:
        return store_at(self.url)

    def source(self, path: str, time_column: str | None = "seen") -> Source:
        """A source over a path in the bucket, from which on requests are counted."""
        self.proxy.seen.clear()
        return opened(f"{self.url}/{path}", time_column)


def opened(path: str, time_column: str | None = "seen") -> Source:
    """A source over a path."""
    rows = JobSource(parquet=path, key=("id",), time_column=time_column)
    return open_source(rows, database=None, text=None, where="rows.parquet", calendar=DAYS)


def numbered(count: int, first: int = 0, day: int = 2) -> pl.DataFrame:
    """Rows of one day of January, in the order of their time, with ten columns of numbers besides."""
    start = datetime(2024, 1, day, tzinfo=UTC)
    times = [start + timedelta(seconds=86_400 * i / count) for i in range(count)]
    hashed = {f"x{i}": pl.Series(range(count)).hash(i).cast(pl.Float64) for i in range(10)}
    return pl.DataFrame({"id": range(first, first + count), "seen": times, **hashed})


def ids(source: Source, interval: Interval = DAY, **wanted: object) -> list[int]:
    """The keys of a source's rows."""
    return read_frame(source, interval, key=["id"], **wanted)["id"].to_list()


@pytest.fixture
def lake(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Lake]:
    """An empty one, with the environment that leads to it."""
    with proxied(s3_server) as proxy:
        yield Lake(bucket_at(proxy.endpoint, monkeypatch), proxy, tmp_path)


class TestFound:
    """Which objects a path means."""

    NAMES = (
        "a.parquet", "b.parquet", ".hidden.parquet", "d/a.parquet", "d/e/f.parquet", "d/.h/x.parquet", "x[1].parquet",
        "[a].parquet", "A.parquet", "ab.parquet", "a-b.parquet", "q?.parquet", "st*r.parquet", "d/e/g/h.parquet",
        "{a,b}.parquet", "^.parquet", "!.parquet", "]x.parquet", "ä.parquet", "k=New%20York/it's a.parquet",
        "k=#1&+/~.parquet", "k=漢/x.parquet",
    )  # fmt: skip
    PATTERNS = (
        "*.parquet", "**", "**/*.parquet", "d/**", "**/e/*.parquet", "d/**/*.parquet", "?.parquet", "[ab].parquet",
        "[!a].parquet", "[^a].parquet", "[a-b].parquet", "[b-a].parquet", "[-a].parquet", "x[1].parquet",
        "x[[]1].parquet", "{a,b}.parquet", "a*", "*/*.parquet", "d", "d/*", "**.parquet", "[].parquet", "[]x].parquet",
        "[a", "q?.parquet", "st*r.parquet", "*b.parquet", "k=*/*", "k=New%20York/*.parquet", "k=#1&+/~.parquet",
        "none/*.parquet", "none.parquet", "**/none", "k=*/**",
    )  # fmt: skip

    def test_globs(self, s3_url: str, tmp_path: Path) -> None:
        """A pattern finds in a bucket what DuckDB finds by it in a folder, for every sign that it knows."""
        for name in self.NAMES:
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(b"x")
        upload(tmp_path, s3_url)

        for pattern in self.PATTERNS:
            local, there = (_found(f"{place}/{pattern}", place) for place in (str(tmp_path), s3_url))
            assert (pattern, there) == (pattern, local)

    def test_two_deep_globs(self, s3_url: str) -> None:
        """Two `**` are refused as they are in a folder."""
        with pytest.raises(WarehouseError, match=r"rows\.parquet: .*Cannot use multiple '\*\*' in one path"):
            ids(opened(f"{s3_url}/**/a/**/*.parquet"))

    def test_more_than_a_page(self, lake: Lake) -> None:
        """Objects beyond the thousand that one answer lists are found."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: obstore.put(lake.client, f"many/{number:04d}.txt", b""), range(1_050)))
        lake.put("many/2000.parquet", numbered(2))

        assert ids(lake.source("many/*.parquet")) == [0, 1]
        assert len([each for each in lake.proxy.seen if "list-type" in each.path]) == 2

    def test_folders_that_are_marked(self, lake: Lake) -> None:
        """The empty object by which a console makes a folder is no file of it."""
        lake.put("made/1.parquet", numbered(2))
        bucket, _, prefix = lake.url.removeprefix("s3://").partition("/")
        plain = HTTPStore(lake.proxy.endpoint, client_options={"allow_http": True})
        obstore.put(plain, f"{bucket}/{prefix}/made/inner", b"")
        # The library leaves the last slash away, and so the name is put as the server wants it.
        with closing(http.client.HTTPConnection(lake.proxy.endpoint.removeprefix("http://"))) as connection:
            connection.request("PUT", f"/{bucket}/{prefix}/made/folder/", b"")
            assert connection.getresponse().status == 200
        obstore.delete(lake.client, "made/inner")

        assert ids(lake.source("made/*")) == [0, 1]

    def test_a_file_without_bytes(self, lake: Lake) -> None:
        """An empty object that is no mark of a folder is a file that cannot be read, and is named."""
        obstore.put(lake.client, "empty.parquet", b"")

        with pytest.raises(WarehouseError, match=rf"{lake.url}/empty\.parquet"):
            ids(lake.source("*.parquet"))

    def test_names_that_no_client_takes(self, lake: Lake) -> None:
        """A name that the library cannot ask for is told, and not passed over."""
        bucket = lake.url.removeprefix("s3://")
        with closing(http.client.HTTPConnection(lake.proxy.endpoint.removeprefix("http://"))) as connection:
            connection.request("PUT", f"/{bucket}/odd//a.parquet", b"x")
            assert connection.getresponse().status == 200

        with pytest.raises(WarehouseError, match=r"cannot be listed: .*odd//a\.parquet.* empty path segment"):
            ids(lake.source("*/*.parquet"))


def _found(pattern: str, place: str) -> list[str]:
    with Engine.reading(pattern, Page()) as engine, closing(engine.connect()) as connection:
        return [file.removeprefix(f"{place}/") for file in engine.find_all(connection, [pattern])]


class TestFetched:
    """Of what is there, only what is wanted goes over the network."""

    def test_days_of_the_path(self, lake: Lake) -> None:
        """Where the path names the interval, no other object is asked for, nor listed."""
        for day in range(1, 5):
            lake.put(f"day=2024-01-0{day}/part.parquet", numbered(3, day * 10, day))

        assert ids(lake.source("day={interval_start:%Y-%m-%d}/*.parquet")) == [20, 21, 22]
        assert all("2024-01-02" in each.path for each in lake.proxy.seen)

    def test_days_of_the_directories(self, lake: Lake) -> None:
        """Where directories are the time column, the files of other days are not opened, and their faults not met."""
        for day in range(1, 5):
            lake.put(f"day=2024-01-0{day}/part.parquet", numbered(3, day * 10, day).drop("seen"))
        obstore.put(lake.client, "day=2024-01-09/part.parquet", b"no parquet")
        obstore.put(lake.client, "day=__HIVE_DEFAULT_PARTITION__/part.parquet", b"no parquet")

        rows = read_frame(lake.source("*/*.parquet", "day"), DAY, key=["id"])

        assert rows["day"].to_list() == [date(2024, 1, 2)] * 3
        assert {each.path.split("/")[-2] for each in lake.proxy.reads} == {"day=2024-01-02"}

    def test_days_that_are_not_there(self, lake: Lake) -> None:
        """A day without a directory has no rows, but all columns."""
        lake.put("day=2024-01-05/part.parquet", numbered(3).drop("seen"))

        rows = read_frame(lake.source("*/*.parquet", "day"), DAY, key=["id"])

        assert (rows.height, "x3" in rows.columns, "day" in rows.columns) == (0, True, True)

    def test_a_year_of_lists(self, lake: Lake) -> None:
        """A long window asks for its lists several at a time."""
        for day in range(1, 32):
            lake.put(f"{day:02d}/part.parquet", numbered(1, day, day))
        lake.proxy.seconds = 0.05
        window = Interval(datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 2, 1, tzinfo=UTC))
        lake.proxy.most = 0

        assert ids(lake.source("{interval_start:%d}/*.parquet", None), window) == list(range(1, 32))
        assert lake.proxy.most > 3

    def test_days_of_one_folder(self, lake: Lake) -> None:
        """Days that are files of one folder are found in one list of it."""
        for day in range(1, 5):
            lake.put(f"days/2024-01-0{day}-0.parquet", numbered(1, day, day))
        window = Interval(datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 4, tzinfo=UTC))

        assert ids(lake.source("days/{interval_start:%Y-%m-%d}-*.parquet", None), window) == [1, 2, 3]
        assert len(lake.proxy.seen) - len(lake.proxy.reads) == 1

    def test_columns_and_times(self, lake: Lake) -> None:
        """Only the wanted columns are fetched, of the row groups that may hold the interval, and each once."""
        for day in range(1, 4):
            lake.put(f"{day}.parquet", numbered(150_000, day * 1_000_000, day), row_group_size=50_000)
        size = (lake.folder / "2.parquet").stat().st_size

        wanted = {"id": "integer", "x1": "float"}
        rows = read_frame(lake.source("*.parquet"), DAY, key=["id"], columns=wanted)
        bodies = [each for each in lake.proxy.reads if each.sent > 50_000]
        few = sum(each.sent for each in lake.proxy.reads)
        everything = ids(lake.source("*.parquet"))

        assert rows["id"].to_list() == everything == list(range(2_000_000, 2_150_000))
        assert (rows["x1"].dtype, rows["x2"].dtype) == (pl.Float64, pl.Null)
        # Of twelve columns three, of three files the footers and one of the bodies.
        assert few < 0.2 * size
        assert {each.path[-9:] for each in bodies} == {"2.parquet"}
        assert all("if-match" in each.headers for each in lake.proxy.reads)
        assert len({(each.path, each.headers.get("range")) for each in lake.proxy.reads}) == len(lake.proxy.reads)
        assert sum(each.sent for each in lake.proxy.reads) < 1.2 * size

    def test_ahead(self, lake: Lake) -> None:
        """Row groups and footers are fetched several at a time, ahead of what is decoded."""
        lake.put("big.parquet", numbered(200_000), row_group_size=10_000)
        for number in range(10):
            lake.put(f"{number}.parquet", numbered(2, 1_000_000 + number * 10))
        lake.proxy.seconds = 0.05
        for path in ("big.parquet", "?.parquet"):
            lake.proxy.most = 0
            ids(lake.source(path))
            assert lake.proxy.most > 3
        # A small file is fetched whole, and once.
        assert len(lake.proxy.reads) == 10

    def test_threads(self, lake: Lake) -> None:
        """Threads that share an open object, as DuckDB's do, each read on from where they are."""
        obstore.put(lake.client, "digits", b"0123456789")
        url = f"{lake.url}/digits"
        with Engine.reading(url, Page()) as engine, closing(engine.connect()) as connection:
            assert engine.find_all(connection, [url]) == [url]
            opened = engine.objects.open(url)
            opened.seek(2)
            with ThreadPoolExecutor(1) as other:
                other.submit(opened.seek, 7).result()
                assert opened.read(2) == b"23"
                assert other.submit(opened.read, 2).result() == b"78"
                assert opened.read(9) == b"456789"

    def test_a_few_rows(self, lake: Lake) -> None:
        """A look at a few rows, as `check` takes it, does not fetch what lies far behind them."""
        lake.put("big.parquet", numbered(400_000), row_group_size=10_000)

        assert len(read_frame(lake.source("big.parquet"), DAY, key=["id"], limit=100)) == 100
        assert sum(each.sent for each in lake.proxy.reads) < (lake.folder / "big.parquet").stat().st_size / 16


def every(n: int, spoilt: Spoilt) -> object:
    """Spoil each n-th request for bytes or a list."""
    count = iter(range(1, 1_000_000))
    return lambda request: spoilt if request.method == "GET" and next(count) % n == 0 else None


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are tried twice only."""
    monkeypatch.setattr("batchscore.objectstore._RETRY", {"max_retries": 1})


class TestTroubled:
    """What a store and a network may do."""

    @pytest.mark.parametrize("spoilt", [(503, "SlowDown"), (429, "SlowDown"), (500, "InternalError"), "reset", "cut"])
    def test_passing(self, lake: Lake, spoilt: Spoilt) -> None:
        """Throttling, a server's errors, resets and answers that break off are met by asking again: every row comes."""
        frame = numbered(60_000)
        lake.put("rows.parquet", frame, row_group_size=5_000)
        source = lake.source("*.parquet")
        lake.proxy.spoil = every(3, spoilt)

        assert read_frame(source, DAY, key=["id"]).equals(frame)
        assert len(lake.proxy.seen) > 10

    @pytest.mark.parametrize("spoilt", [(503, "SlowDown"), "reset", "cut"])
    @pytest.mark.parametrize("asked", ["list", "rows"])
    def test_lasting(self, lake: Lake, impatient: None, spoilt: Spoilt, asked: str) -> None:
        """What goes on is an error that is worth another run, and names the object or the pattern."""
        lake.put("rows.parquet", numbered(60_000), row_group_size=5_000)
        source = lake.source("*.parquet")
        lake.proxy.spoil = lambda request: spoilt if (asked == "list") == ("list-type" in request.path) else None
        where = rf"^{lake.url}/" + (
            r"\*\.parquet cannot be listed: " if asked == "list" else r"rows\.parquet cannot be read: "
        )

        with pytest.raises(
            TransientError, match=rf"{where}.* Try again; check AWS_ENDPOINT_URL and the network"
        ) as caught:
            ids(source)
        assert "DuckDB" not in str(caught.value)
        assert "Traceback" not in str(caught.value)

    def test_in_the_middle(self, lake: Lake, impatient: None) -> None:
        """A store that goes away while rows are read is named too, and not taken for a corrupt file."""
        lake.put("rows.parquet", numbered(60_000), row_group_size=5_000)
        source = lake.source("*.parquet")
        lake.proxy.spoil = lambda _: (503, "SlowDown") if len(lake.proxy.reads) > 4 else None

        with pytest.raises(TransientError, match=r"rows\.parquet cannot be read: SlowDown"):
            ids(source)

    def test_once(self, lake: Lake, impatient: None) -> None:
        """What has failed for good is not asked for again by the reads that follow."""
        obstore.put(lake.client, "digits", b"0123456789")
        url = f"{lake.url}/digits"
        with Engine.reading(url, Page()) as engine, closing(engine.connect()) as connection:
            engine.find_all(connection, [url])
            lake.proxy.spoil = lambda _: (503, "SlowDown")
            lake.proxy.seen.clear()
            for _ in range(3):
                with pytest.raises(TransientError, match="digits cannot be read: SlowDown"):
                    engine.objects.open(url).read(2)
        assert len(lake.proxy.seen) == 2

    def test_secrets(self, lake: Lake) -> None:
        """Of a URL in a library's words neither a password nor a signature is told."""
        store = ObjectStore.at(lake.url, setting="parquet", named_by="the job", form="")
        with (
            pytest.raises(WarehouseError, match=r"^it fails: bad http://host/path at all\.") as caught,
            store.told("it", "fails"),
        ):
            raise ValueError(f"bad http://me:{CANARY}@host/path?sig={CANARY}&a=b at all")
        assert CANARY not in str(caught.value)

    @pytest.mark.parametrize("knows", [True, False])
    def test_replaced(self, lake: Lake, knows: bool) -> None:
        """Rows of two versions of an object are never mixed, whether the store knows `If-Match` or not."""
        lake.put("rows.parquet", numbered(60_000), row_group_size=5_000)
        source, direct = lake.source("*.parquet"), lake.client
        numbered(60_000, first=7).write_parquet(lake.folder / "newer.parquet")
        newer = iter([(lake.folder / "newer.parquet").read_bytes()])

        def replace(request: Request) -> None:
            if not knows:
                request.headers = {k: v for k, v in request.headers.items() if k.lower() != "if-match"}
            if len(lake.proxy.reads) > 4 and (data := next(newer, None)):
                obstore.put(direct, "rows.parquet", data)

        lake.proxy.spoil = replace

        with pytest.raises(TransientError, match=rf"^{lake.url}/rows\.parquet was replaced while it was read.*again"):
            ids(source)
        assert ids(lake.source("*.parquet")) == list(range(7, 60_007))

    def test_removed(self, lake: Lake) -> None:
        """An object that goes after it was listed is missed by name."""
        lake.put("rows.parquet", numbered(60_000), row_group_size=5_000)
        source, direct = lake.source("*.parquet"), lake.client
        there = iter(["rows.parquet"])
        lake.proxy.spoil = lambda _: obstore.delete(direct, next(there, [])) if lake.proxy.reads else None

        with pytest.raises(WarehouseError, match=rf"^{lake.url}/rows\.parquet cannot be read: NoSuchKey"):
            ids(source)

    @pytest.mark.parametrize("path", ["*.parquet", "rows.parquet", "a/{interval_start:%Y-%m-%d}/*.parquet"])
    def test_no_bucket(self, lake: Lake, path: str) -> None:
        """A bucket that is not there is told from one without such files, by path and by pattern."""
        with pytest.raises(
            WarehouseError, match=r"no-such-bucket/.*NoSuchBucket\. Make the bucket, or correct the parquet path of"
        ):
            ids(opened(f"s3://no-such-bucket/{path}"))
        with pytest.raises(WarehouseError, match=r"no file matches s3://"):
            ids(lake.source(path))

    def test_credentials(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keys that the server does not know are refused as that, and not told."""

        def ask_for_keys(count: bytes) -> None:
            with closing(http.client.HTTPConnection(lake.proxy.endpoint.removeprefix("http://"))) as connection:
                connection.request("POST", "/moto-api/reset-auth", count)
                assert connection.getresponse().status == 200

        source = lake.source("*.parquet")
        ask_for_keys(b"0")
        try:
            with pytest.raises(
                WarehouseError, match=r"cannot be listed: InvalidAccessKeyId\. Check the AWS_ credentials"
            ) as caught:
                ids(source)
        finally:
            ask_for_keys(b"inf")
        assert CANARY not in str(caught.value)

    def test_forbidden(self, lake: Lake) -> None:
        """What one object's rule forbids is told with its name, when it is read."""
        lake.put("rows.parquet", numbered(3))
        source = lake.source("rows.parquet")
        lake.proxy.spoil = lambda request: (403, "AccessDenied") if request.method == "GET" else None

        with pytest.raises(
            WarehouseError, match=r"/rows\.parquet cannot be read: AccessDenied\. Check the AWS_ credentials"
        ):
            ids(source)


class TestNamed:
    """Which paths mean an object store, and which are refused before anything is asked for."""

    @pytest.mark.parametrize(
        "path",
        [
            "s3://bucket",
            "s3:///a.parquet",
            "s3://key:secret@bucket/a.parquet",
            "gs://b?x/a",
            "az://{interval_start:%Y}/a",
        ],
    )
    def test_not_a_bucket(self, path: str) -> None:
        """A path without a bucket, or with secrets in it, is refused, and the secrets are not repeated."""
        scheme = path.partition(":")[0]
        with pytest.raises(
            UsageError, match=rf"^parquet: write {scheme}://bucket/path/\*\.parquet\. Credentials"
        ) as caught:
            opened(path)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("path", ["http://somewhere/a.parquet", "s3a://bucket/a.parquet", "hf://a/b.parquet"])
    def test_another_kind(self, path: str) -> None:
        """What is not read is refused by its kind, and nothing is downloaded to read it with."""
        with pytest.raises(UsageError, match=r"is not read\. Write a local path, s3://, gs:// or az://\."):
            opened(path)

    @pytest.mark.parametrize("module", ["obstore", "fsspec"])
    @pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
    def test_without_the_extra(self, monkeypatch: pytest.MonkeyPatch, module: str, scheme: str) -> None:
        """One extra serves all three kinds, and is named where a package of it is missing."""
        for name in (module, f"{module}.store", f"{module}.exceptions"):
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, "batchscore.sources.objects", raising=False)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")

        with pytest.raises(UsageError, match=rf"{scheme}:// needs the extra s3: pip install 'batchscore\[s3\]'"):
            opened(f"{scheme}://bucket/a.parquet")

    @pytest.mark.parametrize(("scheme", "store"), [("s3", S3Store), ("gs", GCSStore), ("az", AzureStore)])
    def test_all_three(self, monkeypatch: pytest.MonkeyPatch, scheme: str, store: type) -> None:
        """Each kind is opened by the same library, with what the environment says."""
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        found = ObjectStore.at(f"{scheme}://bucket", setting="parquet", named_by="the job", form="")

        assert isinstance(found.client, store)
        assert isinstance(Objects(found).protocol, str)

    def test_of_google(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        """gs:// is read, by a server that speaks S3's protocol, whose lists and objects Google's are written like."""
        bucket = f"b{uuid.uuid4().hex}"
        plain = HTTPStore(lake.proxy.endpoint, client_options={"allow_http": True})
        obstore.put(plain, bucket, b"")
        numbered(3).write_parquet(lake.folder / "a.parquet")
        obstore.put(plain, f"{bucket}/day=2/a.parquet", (lake.folder / "a.parquet").read_bytes())
        monkeypatch.setenv("GOOGLE_BASE_URL", lake.proxy.endpoint)
        monkeypatch.setenv("GOOGLE_BEARER_TOKEN", CANARY)

        assert ids(opened(f"gs://{bucket}/*/*.parquet")) == [0, 1, 2]
        with pytest.raises(WarehouseError, match=r"^gs://none/a/\*\.parquet cannot be listed: NoSuchBucket"):
            ids(opened("gs://none/a/*.parquet"))
        lake.proxy.spoil = lambda _: (403, "AccessDenied")
        with pytest.raises(WarehouseError, match=r"AccessDenied\. Check the GOOGLE_ credentials") as caught:
            ids(opened(f"gs://{bucket}/*/*.parquet"))
        assert CANARY not in str(caught.value)

    def test_of_azure(self, monkeypatch: pytest.MonkeyPatch, impatient: None, tmp_path: Path) -> None:
        """az:// is read from a stand-in that lists bare tags, as Azure does; a signature in a URL is not told."""
        numbered(3).write_parquet(tmp_path / "a.parquet")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", f"sv=2026&sig={CANARY}")
        with serving(Blobs({"day=2/a.parquet": (tmp_path / "a.parquet").read_bytes()})) as endpoint:
            monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{endpoint}/account")

            assert ids(opened("az://lake/*/*.parquet")) == [0, 1, 2]
            assert ids(opened("az://lake/day=2/a.parquet")) == [0, 1, 2]
            with pytest.raises(WarehouseError, match=r"ContainerNotFound\. Make the container"):
                ids(opened("az://none/*/*.parquet"))
        with pytest.raises(TransientError, match=r"check AZURE_STORAGE_ENDPOINT") as caught:
            ids(opened("az://lake/*/*.parquet"))
        assert CANARY not in str(caught.value)

    def test_no_account(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the environment lacks is told with the names of its variables."""
        for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_USE_EMULATOR"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(
            UsageError, match=r"az://bucket: .*Account must be specified\. Look at the AZURE_ variables"
        ):
            opened("az://bucket/a.parquet")


@pytest.fixture
def job(project: Project, lake: Lake) -> Project:
    """The toy project, whose rows of each day and whose labels are objects."""
    for (day,), rows in toy.rows().drop("y").group_by("day"):
        lake.put(f"rows/day={day}/rows.parquet", rows.drop("day").sample(fraction=1.0, shuffle=True, seed=1))
    lake.put("labels.parquet", toy.rows().select("id", "ts", "y"))
    path = f"{lake.url}/rows/day={{interval_start:%Y-%m-%d}}/*.parquet"
    project.edit("jobs/toy.toml", ('sql = "toy/rows.sql"', f'parquet = "{path}"'))
    project.edit("jobs/toy.toml", ('sql = "toy/labels.sql"', f'parquet = "{lake.url}/labels.parquet"'))
    return project


class TestJob:
    """A job whose files are objects."""

    DAYS = ("--from", "2024-02-01", "--to", "2024-02-04")
    ACCEPTED = ("--accept-sql", "exported")

    def test_whole_life(self, job: Project) -> None:
        """Checked, scored, evaluated and trained from a bucket as from the database; the secret is never told."""
        file = job.root / "jobs/toy.toml"
        of_objects = file.read_text().replace("toy_predictions", "from_objects")
        file.write_text(toy.JOB.format(source='sql = "toy/rows.sql"'))
        assert job.call("backfill", "toy", *self.DAYS).code == 0
        file.write_text(of_objects)

        checked = job.call("check", "toy", *self.ACCEPTED, "--format", "json")
        scored = job.call("backfill", "toy", *self.DAYS, *self.ACCEPTED, "--only", "all")
        found = toy.query(job.url, "SELECT id, day, prediction, score, model_version FROM from_objects ORDER BY id")
        evaluated = job.call("evaluate", "toy", *self.DAYS)
        trained = job.call("train", "toy", "--promote")
        again = job.call("check", "toy", "--format", "json")

        assert [0] * 5 == [each.code for each in (checked, scored, evaluated, trained, again)]
        assert found == job.table()
        looked = {each["check"]: each for each in json.loads(again.out)}
        assert {"ok"} == {looked[what]["status"] for what in ("query", "source", "training", "labels")}
        assert "100 rows of 2024-02-04 read; every column that the bundle needs" in looked["source"]["detail"]
        assert CANARY not in "".join(each.out + each.err for each in (checked, scored, evaluated, trained, again))

    def test_replaced(self, job: Project, lake: Lake) -> None:
        """An object that is replaced while a run reads it has the run take itself up again, with the rows of the new one."""
        rows = toy.rows().drop("y").filter(pl.col("day") == date(2024, 2, 1))
        lake.put("rows/day=2024-02-01/rows.parquet", rows.drop("day"))
        newer = lake.folder / "newer.parquet"
        rows.drop("day").filter(pl.col("id") % 2 == 0).write_parquet(newer)
        direct, data = lake.client, iter([newer.read_bytes()])

        def replace(request: Request) -> None:
            if request.method == "GET" and "list-type" not in request.path and (found := next(data, None)):
                obstore.put(direct, "rows/day=2024-02-01/rows.parquet", found)

        lake.proxy.spoil = replace
        result = job.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-02", *self.ACCEPTED)

        assert result.code == 0
        (failed,) = result.named("attempt.failed")
        assert "was replaced while it was read" in failed["error"]
        assert [row[0] for row in job.table()] == rows.filter(pl.col("id") % 2 == 0)["id"].to_list()

    def test_stays_away(self, job: Project, lake: Lake) -> None:
        """A store that does not come back ends the run with 20, and one that refuses with 12; nothing else is told."""
        backfill = ("backfill", "toy", *self.DAYS, *self.ACCEPTED)
        lake.proxy.spoil = lambda _: (503, "SlowDown")
        away = job.run(*backfill, BATCHSCORE_RETRY_SECONDS="0")
        lake.proxy.spoil = lambda _: (403, "AccessDenied")
        refused = job.run(*backfill)

        assert (away.code, refused.code) == (20, 12)
        assert "SlowDown. It was tried for" in away.error
        assert "AccessDenied. Check the AWS_ credentials" in refused.error
        assert (away.err, refused.err) == ("", "")
        assert CANARY not in away.out + refused.out

    def test_ended(self, job: Project, lake: Lake) -> None:
        """A request to stop, while a store lets a run wait, is met at once."""
        asked = threading.Event()

        def wait(request: Request) -> None:
            if "rows.parquet" in request.path:
                asked.set()
                time.sleep(20)

        lake.proxy.spoil = wait
        process = job.start("backfill", "toy", *self.DAYS, *self.ACCEPTED)
        assert asked.wait(60)
        begun = time.monotonic()
        process.terminate()
        said, _ = process.communicate(timeout=60)

        assert process.returncode == 143
        assert time.monotonic() - begun < 10
        assert all(json.loads(line) for line in said.splitlines())
