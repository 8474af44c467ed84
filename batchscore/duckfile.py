"""Opening a DuckDB file, and checkpoints of it that a killed process cannot leave torn.

A checkpoint (of DuckDB 2.0.0, as its system calls show) writes blocks of metadata in place, while the header in force
still refers to them. A write of 256 KiB that SIGKILL or a power cut stops half-way leaves a block whose checksum no
later open gets past: the whole file is lost, about once in a thousand kills. So what stands in those blocks is copied
beside the file first, and put back by the next open, unless the checkpoint got as far as its new header. What was
committed since is in DuckDB's log either way.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
from pathlib import Path

import duckdb

from batchscore.logs import Event, log

__all__ = ["checkpoint", "checkpoint_large_log", "connect"]

# The main header, and the two that take turns.
_HEADERS = 3 * 4096
_PLACE = struct.Struct("<QQ")
_METADATA = "SELECT DISTINCT block_id FROM pragma_metadata_info()"
_BLOCK_SIZE = "SELECT block_size FROM pragma_database_size() WHERE database_name = current_database()"
# As DuckDB's own checkpoint_threshold.
_LARGE_LOG = 16 * 2**20

_one_at_a_time = threading.Lock()


def connect(path: str, *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """Open a file, which need not be there unless to read only; a checkpoint that was killed is undone first.

    The file is not checkpointed by DuckDB itself any more, only by this module's functions.

    Raises:
        duckdb.Error: DuckDB refuses it.
    """
    with _one_at_a_time:
        # Whatever keeps this process from putting the blocks back, DuckDB says what is wrong with the file.
        with contextlib.suppress(OSError, struct.error):
            _undo_torn(path)
        try:
            connection = duckdb.connect(path, read_only=read_only)
        except duckdb.Error as error:
            if "Corrupt database file" not in str(error) or not os.path.exists(_undo_path(path)):  # noqa: PTH110
                raise
            raise duckdb.IOException(
                f"{error}: a process was killed while it wrote this, and {_undo_path(path)} has what stood there. Any "
                "command of batchscore by a user who may write both puts it back."
            ) from None
    if not read_only:
        connection.execute("SET checkpoint_threshold = '1 TB'")
        connection.execute("PRAGMA disable_checkpoint_on_shutdown")
    return connection


def checkpoint(connection: duckdb.DuckDBPyConnection, path: str) -> None:
    """Fold the log into the file. With another transaction of this process open it is left to the next time.

    Raises:
        duckdb.Error: DuckDB cannot, a full disk being the most likely cause; what is committed stays in the log.
        OSError: What stands in the file cannot be saved first; nothing of it is touched.
    """
    with _one_at_a_time, connection.cursor() as cursor:
        undo = _save(cursor, path)
        with contextlib.suppress(duckdb.TransactionException):
            cursor.execute("CHECKPOINT")
        undo.unlink()


def checkpoint_large_log(connection: duckdb.DuckDBPyConnection, path: str) -> None:
    """The same, when the log has grown so long that the next open would take a while.

    Raises:
        duckdb.Error, OSError: See `checkpoint`.
    """
    log_file = Path(f"{path}.wal")
    if log_file.exists() and log_file.stat().st_size > _LARGE_LOG:
        checkpoint(connection, path)


def _undo_path(path: str) -> Path:
    return Path(f"{path}.batchscore-undo")


def _save(cursor: duckdb.DuckDBPyConnection, path: str) -> Path:
    """Copy the headers and all blocks of metadata beside the file."""
    undo, half = _undo_path(path), Path(f"{path}.batchscore-undo-half")
    ((size,),) = cursor.execute(_BLOCK_SIZE).fetchall()
    blocks = [block for (block,) in cursor.execute(_METADATA).fetchall()]
    file = _open_here(path)
    if file is None:
        raise OSError(f"{path} is open, and its descriptor is not in /dev/fd")
    with half.open("wb") as copy:
        for offset, length in [(0, _HEADERS), *((_HEADERS + block * size, size) for block in blocks)]:
            # A block that was never written lies behind the end of the file.
            if len(found := os.pread(file, length, offset)) == length:
                copy.write(_PLACE.pack(offset, length) + found)
        copy.flush()
        os.fsync(copy.fileno())
    half.rename(undo)
    _sync_folder(undo.parent)
    return undo


def _undo_torn(path: str) -> None:
    """Put back what a checkpoint overwrote that did not come to its end; nothing where another process is at work."""
    undo = _undo_path(path)
    # Whoever closes a file lets every lock go that its process has on it, so one that is open here is left alone.
    if not undo.exists() or _open_here(path) is not None:
        return
    with Path(path).open("rb+", buffering=0) as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another process may have done it just now.
        if not undo.exists():
            return
        torn = False
        for offset, block in _saved(undo):
            there = os.pread(file.fileno(), len(block), offset)
            if offset == 0 and there != block:
                # It came to its end after all.
                break
            if there != block:
                os.pwrite(file.fileno(), block, offset)
                torn = True
        os.fsync(file.fileno())
        undo.unlink()
        if torn:
            log.warning(Event.CHECKPOINT_UNDONE, path=path)


def _saved(undo: Path) -> list[tuple[int, bytes]]:
    """Offsets in the file, and what stood there."""
    content, place, found = undo.read_bytes(), 0, []
    while place < len(content):
        offset, length = _PLACE.unpack_from(content, place)
        place += _PLACE.size + length
        found.append((offset, content[place - length : place]))
    if place != len(content):
        raise OSError(f"{undo} ends in the middle")
    return found


def _open_here(path: str) -> int | None:
    """The descriptor by which this process has the file open; None where it has not."""
    try:
        wanted = Path(path).stat()
    except FileNotFoundError:
        return None
    for each in Path("/dev/fd").iterdir():
        # The folder's own is in the list, and may be closed by now.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(int(each.name)), wanted):
                return int(each.name)
    return None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
