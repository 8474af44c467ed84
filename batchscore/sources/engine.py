"""DuckDB in memory, that finds and reads Parquet files where they are."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import duckdb

from batchscore import cgroup
from batchscore.errors import UsageError, WarehouseError
from batchscore.objectstore import ObjectStore
from batchscore.sources.statement import Page, identifier

if TYPE_CHECKING:
    from batchscore.sources.objects import Objects

__all__ = ["Engine", "fetch", "literal"]

# What the sort may hold, as a share of the memory: a night's rows come through in order, however many they are.
_SHARE = 4
_SETTING = "parquet"


@dataclass(frozen=True, slots=True)
class Engine:
    """DuckDB in memory, with the room that its sort may take, and the objects that it may read.

    Attributes:
        settings: Of each connection.
        objects: Of a bucket; None for local files.
    """

    settings: Mapping[str, str | int | bool]
    objects: Objects | None

    @staticmethod
    def refuse(path: str) -> None:
        """Refuse a path whose files cannot be reached, before anything else is done.

        Raises:
            UsageError: It is of a kind of store that nothing here reads, or see `ObjectStore.at`.
        """
        scheme, mark, _ = path.partition("://")
        if ObjectStore.is_meant(path):
            _objects(path)
        elif mark and scheme != "file":
            raise UsageError(f"{_SETTING}: {scheme}:// is not read. Write a local path, s3://, gs:// or az://.")

    @classmethod
    @contextmanager
    def reading(cls, path: str, page: Page) -> Iterator[Self]:
        """What reads the files of a path, with a folder for what does not fit in the memory.

        Raises:
            UsageError: See `ObjectStore.at`.
            WarehouseError: There is no place for a folder.
            WarehouseError, TransientError: What the store said, where DuckDB has it only in its own words.
        """
        objects = _objects(path) if ObjectStore.is_meant(path) else None
        with _folder() as spill:
            settings: dict[str, str | int | bool] = {
                "memory_limit": f"{cgroup.memory() // _SHARE} B",
                "temp_directory": spill,
                # Whatever a path may look like, nothing is downloaded for it.
                "autoinstall_known_extensions": False,
            }
            if objects is not None and page.limit is not None:
                # A few rows are asked for, and what lies far behind them would be fetched too.
                settings["read_ahead_depth"] = 1
            try:
                yield cls(settings, objects)
            except duckdb.Error:
                if objects is not None and objects.failure is not None:
                    raise objects.failure from None
                raise

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A database of its own."""
        connection = duckdb.connect(":memory:", config={**self.settings})
        if self.objects is not None:
            connection.register_filesystem(self.objects)
        return connection

    def find_all(self, connection: duckdb.DuckDBPyConnection, patterns: Sequence[str]) -> list[str]:
        """The files that match any of some patterns, each once."""
        if self.objects is not None:
            return self.objects.find_all(connection, patterns)
        return list({file: None for pattern in patterns for file in _glob(connection, pattern)})

    def look_ahead(self, connection: duckdb.DuckDBPyConnection, files: Sequence[str]) -> None:
        """Have at hand what will be asked of each file."""
        if self.objects is not None:
            self.objects.look_ahead(connection, files)

    def guilty(self, files: Sequence[str], page: Page, error: duckdb.Error) -> str:
        """Which file it is, in words: DuckDB does not name one where the bytes inside it make no sense."""
        if named := [file for file in files if file in str(error)]:
            return named[0]
        for file in files:
            with closing(self.connect()) as connection:
                try:
                    table = f"read_parquet({literal(file)})"
                    names = [name for name, *_ in fetch(connection, f"DESCRIBE FROM {table}") if page.wants(name)]
                    # A plain count would be told by the file's footer.
                    hashes = ", ".join(f"max(hash({identifier(name)}))" for name in names) or "count(*)"
                    fetch(connection, f"SELECT {hashes} FROM {table}")
                except duckdb.Error:
                    return file
        return f"{files[0]}, or one of {len(files) - 1} more," if len(files) > 1 else files[0]


def _objects(path: str) -> Objects:
    scheme, _, rest = path.partition("://")
    bucket, _, inside = rest.partition("/")
    store = ObjectStore.at(
        # Without a path there is nothing to read, and without a bucket no store.
        f"{scheme}://{bucket if inside else ''}",
        setting=_SETTING,
        named_by="the parquet path of the job",
        form=f"{scheme}://bucket/path/*.parquet",
    )
    try:
        from batchscore.sources.objects import Objects
    except ImportError:
        raise ObjectStore.lacking(_SETTING, scheme) from None
    return Objects(store)


@contextmanager
def _folder() -> Iterator[str]:
    """A folder for what a sort cannot keep in memory.

    Raises:
        WarehouseError: There is no place for one.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="batchscore-")
    except OSError as error:
        raise WarehouseError(
            f"no temporary folder can be made: {error}. Give a writable /tmp, or set TMPDIR to a folder that is."
        ) from error
    with folder as name:
        yield name


def _glob(connection: duckdb.DuckDBPyConnection, pattern: str) -> list[str]:
    return sorted(file for (file,) in fetch(connection, f"SELECT file FROM glob({literal(pattern)})"))


def fetch(connection: duckdb.DuckDBPyConnection, sql: str) -> list[Any]:
    """The rows of a query."""
    return connection.sql(sql).fetchall()


def literal(text: str) -> str:
    """A text as SQL quotes it."""
    return "'" + text.replace("'", "''") + "'"
