"""Parquet files of an object store, as DuckDB finds and reads them.

DuckDB does all that it does with a local file: it asks for the footers, for the declared columns of the row groups that
may hold the interval, several at a time and ahead of what it decodes. Only the bytes come from here: each request asks
for the object as it was listed, so that what is read is one version of it.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import duckdb
import fsspec

from batchscore import cgroup
from batchscore.errors import BatchscoreError, TransientError
from batchscore.objectstore import ObjectStore

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta

__all__ = ["Objects"]

# Requests at a time for lists, of which a window of a year has as many as days, and for footers.
_REQUESTS = 8
# What files end with, which is all of a small file, is asked for by each connection: so much of the memory keeps it.
_TAILS_SHARE = 16


@dataclass(frozen=True, slots=True)
class _Listed:
    """An object as it was listed."""

    url: str
    path: str
    size: int
    tag: str | None
    modified: datetime


class Objects(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The objects of one bucket, as a file system that DuckDB reads from.

    DuckDB turns an exception of ours into its own. The first one is kept, and every later read fails for it.

    Attributes:
        protocol: What its URLs begin with.
        failure: Why an object could not be read; None where none failed.
    """

    # The class of fsspec would give the same one for the same arguments.
    cachable = False

    def __init__(self, store: ObjectStore) -> None:
        super().__init__()
        self.protocol = store.url.partition("://")[0]
        self.failure: BatchscoreError | None = None
        self._store = store
        self._listed: dict[str, _Listed] = {}
        self._tails: dict[str, tuple[int, bytes]] = {}
        self._room = cgroup.memory() // _TAILS_SHARE

    def find_all(self, connection: duckdb.DuckDBPyConnection, patterns: Sequence[str]) -> list[str]:
        """The URLs that match any of some patterns, a pattern's own in order; it matches as it does local files.

        Raises:
            WarehouseError, TransientError: See `ObjectStore.told`.
            duckdb.IOException: A pattern has more than one `**`.
        """
        # Days of one folder are patterns of one list.
        places = {pattern: _fixed(self._path(pattern)) for pattern in patterns}
        first = {place: pattern for pattern, place in reversed(places.items())}
        with _pool() as pool:
            candidates = dict(zip(first, pool.map(self._candidates, first.values()), strict=True))
        for pattern, place in places.items():
            listed = candidates[place]
            names = _matching(connection, [each.path for each in listed], self._path(pattern))
            found = sorted((each for each in listed if each.path in names), key=lambda each: each.url)
            self._listed |= {each.url: each for each in found if each.size or self._is_there(each.path)}
        return list(self._listed)

    def look_ahead(self, connection: duckdb.DuckDBPyConnection, files: Sequence[str]) -> None:
        """Read the footers of files, several at a time: DuckDB itself reads one after another.

        Raises:
            duckdb.Error: One cannot be read.
        """

        def look(file: str) -> None:
            with closing(connection.cursor()) as cursor:
                cursor.execute("SELECT 1 FROM parquet_file_metadata($file)", {"file": file}).fetchall()

        with _pool() as pool:
            list(pool.map(look, files))

    def glob(self, path: str, **_: Any) -> list[str]:
        """The object itself: DuckDB is given names, and takes some of them for patterns."""
        return [path] if path in self._listed else []

    def unstrip_protocol(self, name: str) -> str:
        """The name, which has its protocol."""
        return name

    def size(self, path: str) -> int:
        """How many bytes an object had when it was listed."""
        return self._listed[path].size

    def modified(self, path: str) -> datetime:
        """When an object was last changed before it was listed."""
        return self._listed[path].modified

    def open(self, path: str, mode: str = "rb", **_: Any) -> _Handle:
        """An object to read from; nothing is asked of the store yet."""
        return _Handle(partial(self._read, self._listed[path]))

    def _path(self, url: str) -> str:
        return url.removeprefix(self._store.url).removeprefix("/")

    def _candidates(self, pattern: str) -> list[_Listed]:
        """Every object that a pattern may match, and others."""
        import obstore

        path = self._path(pattern)
        fixed = _fixed(path)
        with self._store.told(pattern, "cannot be listed"):
            if fixed == path:
                try:
                    return [self._seen(obstore.head(self._store.client, path))]
                except FileNotFoundError:
                    # An answer without a body does not say whether it is the bucket that is missing.
                    fixed = path.rpartition("/")[0]
                    next(iter(obstore.list(self._store.client, fixed, chunk_size=1)), None)
                    return []
            pages = obstore.list(self._store.client, fixed or None, chunk_size=1_000)
            return [self._seen(each) for page in pages for each in page]

    def _seen(self, found: ObjectMeta) -> _Listed:
        path = found["path"]
        return _Listed(f"{self._store.url}/{path}", path, found["size"], found["e_tag"], found["last_modified"])

    def _is_there(self, path: str) -> bool:
        """Whether an empty object is one, and not the mark of a folder, which is listed without its slash."""
        import obstore

        with self._store.told(f"{self._store.url}/{path}", "cannot be read"):
            try:
                obstore.head(self._store.client, path)
            except FileNotFoundError:
                return False
        return True

    def _read(self, listed: _Listed, start: int, end: int) -> bytes:
        """Some bytes of an object, as many as there are."""
        end = min(end, listed.size)
        kept, tail = self._tails.get(listed.url, (listed.size, b""))
        if start >= kept:
            return tail[start - kept : end - kept]
        if self.failure:
            raise self.failure
        try:
            data = self._fetch(listed, start, end)
        except BatchscoreError as error:
            self.failure = self.failure or error
            raise
        if end == listed.size and len(data) <= self._room:
            self._room -= len(data)
            self._tails[listed.url] = start, data
        return data

    def _fetch(self, listed: _Listed, start: int, end: int) -> bytes:
        import obstore
        from obstore.exceptions import PreconditionError

        with self._store.told(listed.url, "cannot be read"):
            options: GetOptions = {"range": (start, end), "if_match": _quoted(listed.tag)}
            try:
                got = obstore.get(self._store.client, listed.path, options=options)
                # A store may not know If-Match.
                if _quoted(got.meta["e_tag"]) != _quoted(listed.tag) or got.meta["size"] != listed.size:
                    _changed(listed)
                return bytes(got.bytes())
            except PreconditionError:
                _changed(listed)


class _Handle:
    """An open object: threads that share it each have a place of their own in it."""

    def __init__(self, read: Any) -> None:
        self._read = read
        self._places: dict[int, int] = {}

    def seek(self, place: int) -> None:
        self._places[threading.get_ident()] = place

    def read(self, size: int) -> bytes:
        start = self._places.pop(threading.get_ident(), 0)
        data: bytes = self._read(start, start + size)
        self.seek(start + len(data))
        return data

    def close(self) -> None:
        """Nothing is held."""


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests; where one fails, those that wait are not made."""
    pool = ThreadPoolExecutor(_REQUESTS, thread_name_prefix="batchscore-objects")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _changed(listed: _Listed) -> NoReturn:
    raise TransientError(
        f"{listed.url} was replaced while it was read: it is no longer the object that was listed. Run the same "
        "command again; if that comes again, write the files of an interval before it is scored, or under other names."
    )


def _quoted(tag: str | None) -> str | None:
    """A tag as a header has it; a list of Azure's gives it bare."""
    return tag if tag is None or tag.endswith('"') else f'"{tag}"'


def _fixed(path: str) -> str:
    """The folder that a pattern names, as far as it is no pattern; the whole of what is none."""
    parts = path.split("/")
    plain = [not _is_pattern(part) for part in parts]
    return path if all(plain) else "/".join(parts[: plain.index(False)])


def _is_pattern(part: str) -> bool:
    return any(sign in part for sign in "*?[")


def _matching(connection: duckdb.DuckDBPyConnection, paths: Sequence[str], pattern: str) -> set[str]:
    """The paths that match a pattern, by DuckDB's own rules."""
    if pattern in paths:
        return {pattern}
    parts = pattern.split("/")
    if parts.count("**") > 1:
        # DuckDB's own words for a local path.
        raise duckdb.IOException("Cannot use multiple '**' in one path")
    before, deep, after = parts, False, list[str]()
    if "**" in parts:
        place = parts.index("**")
        before, deep, after = parts[:place], True, parts[place + 1 :] or ["*"]
    least = len(before) + len(after)
    found = [path.split("/") for path in paths]
    found = [path for path in found if len(path) == least or (deep and len(path) > least)]
    for place, part in [*enumerate(before), *((n - len(after), part) for n, part in enumerate(after))]:
        names = _named(connection, {path[place] for path in found}, part)
        found = [path for path in found if path[place] in names]
    return {"/".join(path) for path in found}


def _named(connection: duckdb.DuckDBPyConnection, names: Collection[str], part: str) -> set[str]:
    """Which of some names match one part of a pattern."""
    if not _is_pattern(part):
        return {part} & set(names)
    sql = "SELECT name FROM (SELECT unnest($names::VARCHAR[]) AS name) WHERE name GLOB $part"
    return {name for (name,) in connection.sql(sql, params={"names": list(names), "part": part}).fetchall()}
