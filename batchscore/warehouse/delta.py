"""Delta tables below a folder or a bucket, for output; the ledger, the stages and the rejects stay in the database.

An interval is replaced by one commit to the table's log, so that whoever reads the table sees its old rows or its new
ones. With the commit goes an application transaction, `batchscore/<job>/<interval_start>`, whose version is the run's
ticket: delta-rs does not look at it when it writes, so it is looked at here before, and the log's own check of commits
that came between (of the same application transaction, or of rows of the same interval) covers the rest.

Tables are not partitioned. A file that a run wrote holds one interval, which its statistics say, and so another
interval's replacement leaves it alone; and where files are compacted over intervals, it rewrites those that it must.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import polars as pl
import pyarrow as pa

from batchscore.ahead import ahead
from batchscore.errors import (
    BatchscoreError,
    IntervalLeased,
    OutputMismatch,
    TransientError,
    UsageError,
    WarehouseError,
)
from batchscore.interval import Interval
from batchscore.objectstore import speaks_plainly
from batchscore.schema import TypeName, dtype_of
from batchscore.warehouse.tables import STAGE_PREFIX, LiveColumn, Narrow, Output, check_live, named

if TYPE_CHECKING:
    from deltalake import DeltaTable

    from batchscore.warehouse.transaction import Stamp, Transaction, Warehouse

__all__ = ["TYPES", "Lake", "Sending"]

TYPES: Mapping[TypeName, str] = {
    "boolean": "boolean",
    "integer": "long",
    "float": "double",
    "string": "string",
    "date": "date",
    "timestamp": "timestamp_ntz",
    "timestamp_tz": "timestamp",
}
"""Delta's word for each type of ours."""

_DTYPES: Mapping[str, tuple[pl.DataType, ...]] = {
    "short": (pl.Int16(),),
    "integer": (pl.Int32(),),
    **{declared: (dtype_of(type_),) for type_, declared in TYPES.items()},
}
# As many characters of a table's name as the ledger keeps.
_LONGEST = 128
# Of so many columns delta-rs keeps statistics unless it is told otherwise; interval_start is one of the last.
_WITH_STATISTICS = 32
# How long the store is tried for, as for a registry in one.
_STORE = {"max_retries": "5", "retry_timeout": "20s", "connect_timeout": "5s", "timeout": "60s"}
# Delta takes a folder with such a name for none of its own.
_PROBE = "_batchscore/create_only"
_CODE = re.compile(r"<Code>(\w+)</Code>")
_NO_CREDENTIALS = re.compile(r"http://169\.254\.|http://\[fd00:ec2|Missing.*(ACCESS_KEY|credential)", re.IGNORECASE)
_MAY_PASS = re.compile(
    r"error sending request|timed out|connection (closed|reset)|non-2xx status code\W+(5\d\d|408|429)|SlowDown",
    re.DOTALL,
)
_NO_ANSWER = re.compile(r"error sending request|timed out|connection (closed|reset)")
# What another commit that was quicker makes of one; any other failure to commit would come again.
_CONFLICT = re.compile(r"concurrent|changed since last commit|transaction: \d+$", re.IGNORECASE)
# What surrounds the reason in delta-rs' words: colours, rows that it quotes, and its own insides.
_COLOURS = re.compile(r"\x1b\[\d+m|↳")
_INSIDES = re.compile(r"\n\s*(0: |<\?xml|Preview of |Help: |Detail: Python).*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Sending:
    """A run on its way into a Delta table.

    Attributes:
        job: Its job.
        start: The first instant of its interval.
        ticket: Its number; above that of every run of the interval that was sent before.
    """

    job: str
    start: datetime
    ticket: int

    @property
    def app_id(self) -> str:
        """The name of the application transaction whose version is the ticket of what the table holds."""
        return f"batchscore/{self.job}/{_spelled(self.start)}"


@dataclass(frozen=True, slots=True)
class Lake:
    """Where Delta tables are: `<root>/<table>`, and `<root>/<schema>/<table>` of one whose name has a schema."""

    root: str
    storage: Mapping[str, str] = field(repr=False)

    @classmethod
    def at(cls, url: str) -> Self:
        """The lake in a folder, or of `s3://bucket/prefix` with credentials and endpoint as the AWS_ variables say.

        Raises:
            UsageError: The URL is neither, or the extra `delta` is not installed.
        """
        parts = urlsplit(url)
        if "://" in url and (parts.scheme != "s3" or not parts.netloc or "@" in url or parts.query or parts.fragment):
            raise UsageError("delta_url: write a folder, or s3://bucket/prefix; what the store asks for is in AWS_….")
        try:
            # Whoever has them not is told before anything is begun.
            import deltalake  # noqa: F401
            import obstore  # noqa: F401
        except ImportError:
            raise UsageError(
                "delta_url: Delta tables need the extra delta: pip install 'batchscore[delta]', or build the image "
                "with it."
            ) from None
        if parts.scheme != "s3":
            return cls(str(Path(url).absolute()), {})
        plain = speaks_plainly("s3")
        return cls(url.rstrip("/"), {**_STORE, "allow_http": str(plain).lower()})

    def location(self, table: str) -> str:
        """Where an output table is.

        Raises:
            UsageError: The ledger has no room for it.
        """
        location = f"{self.root}/{table.replace('.', '/')}"
        if len(location) > _LONGEST:
            raise UsageError(
                f"delta_url: {location} has {len(location)} characters, and the ledger keeps {_LONGEST} of a table's "
                "name. Shorten it."
            )
        return location

    def full_name(self, tx: Transaction, table: str) -> str:
        return self.location(table)

    def called(self, table: str) -> str:
        return self.location(table)

    def stage_schema(self, table: str) -> str | None:
        return None

    def prepare(self, warehouse: Warehouse, output: Output) -> dict[str, Narrow]:
        location = self.location(output.table)
        if self.storage:
            self._prove_create_only(location)
        table = self._open(location)
        if table is None:
            # One process at a time: delta-rs would let a second one put its own schema over that of the first.
            with warehouse.begin(f"the output table {location}") as tx:
                warehouse.backend.lock_tables(tx.connection)
                table = self._open(location) or self._make(location, output)
        return _fits(location, output, table)

    def check(self, warehouse: Warehouse, output: Output) -> bool:
        location = self.location(output.table)
        if table := self._open(location):
            _fits(location, output, table)
        return table is not None

    def missing_privileges(self, warehouse: Warehouse, table: str) -> list[str]:
        with warehouse.begin("privileges") as tx:
            # Of the database a run needs what it needs for the ledger and the stages, and no other table.
            missing = warehouse.backend.missing_privileges(tx.connection, named(f"{STAGE_PREFIX}of_none"))
        location = Path(self.location(table))
        if self.root.startswith("s3://"):
            # Nobody can tell: the first run does.
            return missing
        there = next(folder for folder in (location, *location.parents) if folder.exists())
        return missing if there.is_dir() and os.access(there, os.W_OK) else [*missing, f"write permission on {there}"]

    def published(self, warehouse: Warehouse, output: Output, window: Interval, runs: Collection[str]) -> pl.DataFrame:
        location = self.location(output.table)
        schema = {column.name: dtype_of(column.type) for column in output.columns}
        table = self._open(location)
        if table is None:
            return pl.DataFrame(schema=schema)
        window_of = f"interval_start >= '{_spelled(window.start)}' AND interval_start < '{_spelled(window.end)}'"
        with _told(location, "cannot be read"):
            found = pl.DataFrame(table.scan([*schema, "run_id"], window_of))
        ours = found.filter(pl.col("run_id").is_in(list(runs)))
        return ours.select(pl.col(name).cast(dtype) for name, dtype in schema.items())

    def replace(
        self,
        location: str,
        sending: Sending,
        output: Output,
        stamp: Stamp,
        told: Mapping[str, str],
        rows: Callable[[], Iterator[pl.DataFrame]],
    ) -> bool:
        """Put rows, stamped, in place of an interval's, by one commit; rows that are there already are left alone.

        Args:
            location: The table's full name.
            sending: The interval, and the number of the run.
            output: The table as it is to be.
            stamp: What every row carries beside `output.columns`.
            told: What the table's history tells of the commit.
            rows: What is to be there: `output.columns`, called once.

        Returns:
            Whether they are there; False where another commit was in the way, and it is to be looked at again.

        Raises:
            IntervalLeased: What is there was sent under a higher number: nothing may take its place.
            OutputMismatch: The live table cannot take them exactly, any more.
            WarehouseError: It cannot be written, or is not there any more.
            TransientError: The store may take it later; nobody knows whether it has.
        """
        from deltalake import CommitProperties, Transaction, write_deltalake
        from deltalake.exceptions import CommitFailedError

        table = self._existing(location)
        there = table.transaction_version(sending.app_id)
        if there == sending.ticket:
            return True
        if there is not None and there > sending.ticket:
            raise IntervalLeased(
                f"{location}: the interval from {_spelled(sending.start)} was sent there under a higher number, by "
                "another process or from another ledger. Nothing was written; run again to see what is left to do."
            )
        _fits(location, output, table)
        with _told(location, "cannot be written"), _raised_here(rows, table, output, stamp) as stream:
            try:
                write_deltalake(
                    table,
                    stream,
                    mode="overwrite",
                    predicate=f"interval_start = '{_spelled(sending.start)}'",
                    commit_properties=CommitProperties(
                        custom_metadata={f"batchscore.{name}": value for name, value in told.items()},
                        app_transactions=[Transaction(sending.app_id, sending.ticket)],
                    ),
                )
            except CommitFailedError as error:
                if not _CONFLICT.search(str(error)):
                    raise
                return False
        return True

    def settled(self, location: str, sending: Sending) -> bool | None:
        """Whether what was sent is there; where it is not it never will be, for this keeps it out.

        Returns:
            None where another commit was in the way, and it is to be looked at again.
        """
        table = self._open(location)
        there = None if table is None else table.transaction_version(sending.app_id)
        if table is None or (there is not None and there >= sending.ticket):
            return there == sending.ticket
        with _told(location, "cannot be written"):
            return False if _mark(table, sending.app_id, sending.ticket + 1) else None

    def _open(self, location: str) -> DeltaTable | None:
        """The table as it is now; None where it can be made."""
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        folder = Path(location)
        # Its own words for a folder that may not be read are those for one that is not there.
        if not self.storage and folder.exists() and not (folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)):
            raise WarehouseError(f"{location} is no folder that this user may read. Name another table, or mend that.")
        with _told(location, "cannot be read"):
            try:
                return DeltaTable(location, storage_options=dict(self.storage))
            except TableNotFoundError:
                if not self.storage and folder.exists() and any(folder.iterdir()):
                    raise WarehouseError(
                        f"{location} holds files and is no Delta table. Name another table in [output], or make it one."
                    ) from None
                return None

    def _existing(self, location: str) -> DeltaTable:
        if table := self._open(location):
            return table
        raise WarehouseError(f"{location}: the Delta table is gone. Run again: it is made anew.")

    def _make(self, location: str, output: Output) -> DeltaTable:
        from deltalake import DeltaTable, Field, Schema
        from deltalake.schema import PrimitiveType

        columns = output.all_columns
        wide = {"delta.dataSkippingNumIndexedCols": str(len(columns))} if len(columns) > _WITH_STATISTICS else None
        schema = Schema([Field(column.name, PrimitiveType(TYPES[column.type])) for column in columns])
        with _told(location, "cannot be made"):
            DeltaTable.create(location, schema, configuration=wide, storage_options=dict(self.storage))
        return self._existing(location)

    def _prove_create_only(self, location: str) -> None:
        """Refuse a store that would let one process write over another's commit."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError
        from obstore.store import S3Store

        bucket, _, place = location.removeprefix("s3://").partition("/")
        store = S3Store(
            bucket,
            prefix=place,
            client_options={"allow_http": self.storage["allow_http"] == "true", "timeout": "60s"},
            retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=20)},
        )
        with _told(location, "cannot be written"):
            try:
                # What is there already, from an earlier time, must not be written over, and what is put now neither.
                for _ in range(2):
                    obstore.put(store, _PROBE, b"", mode="create")
            except AlreadyExistsError:
                return
            except BaseError as error:
                raise OSError(str(error)) from None
        raise WarehouseError(
            f"{location}: the store overwrites what it is asked to leave alone (If-None-Match), so two processes could "
            "write one version of the table. No prediction was written. Take a store that honours it, such as S3."
        )


def _mark(table: DeltaTable, app_id: str, version: int) -> bool:
    """Commit an application transaction and no rows; whether no other commit was in the way."""
    from deltalake import CommitProperties, Transaction, write_deltalake
    from deltalake.exceptions import CommitFailedError

    properties = CommitProperties(app_transactions=[Transaction(app_id, version)])
    nothing = pa.RecordBatchReader.from_batches(pa.schema(table.schema().to_arrow()), [])
    try:
        # Not create_write_transaction, which keeps every other thread of this process waiting for the store.
        write_deltalake(table, nothing, mode="append", commit_properties=properties)
    except CommitFailedError as error:
        if not _CONFLICT.search(str(error)):
            raise
        return False
    return True


def _spelled(instant: datetime) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _fits(location: str, output: Output, table: DeltaTable) -> dict[str, Narrow]:
    """See `check_live`."""
    live = {
        field.name: LiveColumn(
            declared := getattr(field.type, "type", str(field.type)), _DTYPES.get(declared, ()), not field.nullable
        )
        for field in table.schema().fields
    }
    narrow = check_live(output, live, location)
    if table.metadata().configuration.get("delta.appendOnly", "").lower() == "true":
        raise OutputMismatch(
            f"{location} is append-only (delta.appendOnly), so an interval cannot be scored again. Nothing was written."
        )
    return narrow


@contextmanager
def _raised_here(
    rows: Callable[[], Iterator[pl.DataFrame]], table: DeltaTable, output: Output, stamp: Stamp
) -> Iterator[pa.RecordBatchReader]:
    """The rows with the table's own columns and types; an error in reading them is raised here, as what it is.

    In the middle of delta-rs' own threads it would become a text.
    """
    schema = pa.schema(table.schema().to_arrow())
    ours = output.all_columns[len(output.columns) :]
    stamps = [pl.lit(stamp[column.name], dtype_of(column.type)).alias(column.name) for column in ours]
    failed: list[Exception] = []

    def batches(frames: Iterator[pl.DataFrame]) -> Iterator[pa.RecordBatch]:
        try:
            for frame in frames:
                yield _arrow(frame.with_columns(stamps), schema)
        except Exception as error:
            failed.append(error)
            raise

    with ahead(rows()) as frames:
        try:
            yield pa.RecordBatchReader.from_batches(schema, batches(frames))
        except Exception:
            if failed:
                raise failed[0] from None
            raise


def _arrow(frame: pl.DataFrame, schema: pa.Schema) -> pa.RecordBatch:
    """The frame in the columns of a table, NULL in those that are not ours."""
    given = frame.to_arrow()
    arrays = [
        given[column.name].combine_chunks().cast(column.type)
        if column.name in given.column_names
        else pa.nulls(given.num_rows, column.type)
        for column in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


@contextmanager
def _told(location: str, doing: str) -> Iterator[None]:
    """A block whose errors of delta-rs and its stores become ours, without the rows and the insides that they quote."""
    from deltalake.exceptions import DeltaError

    try:
        yield
    except BatchscoreError:
        raise
    except (DeltaError, OSError) as error:
        text = _COLOURS.sub("", str(error))
        kind: type[BatchscoreError] = WarehouseError
        advice = "Mend it and run the same command again."
        said = " ".join(_INSIDES.sub("", text).split()).rstrip(".")
        if _NO_CREDENTIALS.search(text):
            said = "no credentials were found"
            advice = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role."
        elif code := _CODE.search(text):
            said, advice = code.group(1), "Check the bucket, and what the AWS_ credentials may do in it."
        elif _MAY_PASS.search(text):
            kind, advice = TransientError, "Nothing is lost: run the same command again."
            if _NO_ANSWER.search(text):
                said, advice = "the store does not answer", f"{advice} Check AWS_ENDPOINT_URL and the network."
        raise kind(f"{location} {doing}: {said}. {advice}") from None
