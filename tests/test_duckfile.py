"""A DuckDB file survives a process that is killed in the middle of a checkpoint."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import CapturingLogger

from batchscore import duckfile
from batchscore.database import Database
from batchscore.errors import WarehouseError
from batchscore.warehouse import open_warehouse

HEADERS, BLOCK, PAGE = 3 * 4096, 262144, 4096
ROWS = "SELECT count(*), sum(i), (SELECT list(name ORDER BY name) FROM names) FROM numbers"


class Died(Exception):
    """Stands for SIGKILL."""


class Mortal:
    """A connection whose process dies when it begins a checkpoint."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        with self._connection.cursor() as self._cursor:
            yield self

    def execute(self, statement: str) -> duckdb.DuckDBPyConnection:
        if statement == "CHECKPOINT":
            raise Died
        return self._cursor.execute(statement)


@dataclass(frozen=True)
class Case:
    """A file before a checkpoint and after it, its log, and what was saved to undo it."""

    before: bytes
    after: bytes
    log: bytes
    undo: bytes
    rows: tuple[Any, ...]

    @property
    def torn(self) -> list[int]:
        """Of every block the first page is written."""
        return [1] * len(self.whole)

    @property
    def whole(self) -> list[int]:
        """Every block is written."""
        return [BLOCK // PAGE] * ((len(self.after) - HEADERS) // BLOCK)

    def lay_out(self, path: Path, *, blocks: list[int] | None = None, headers: bytes | None = None) -> None:
        """The file in the middle of its checkpoint; of each block so many pages are written."""
        torn = bytearray(self.before.ljust(len(self.after), b"\0"))
        torn[:HEADERS] = headers or self.before[:HEADERS]
        for number, pages in enumerate(blocks or []):
            start = HEADERS + number * BLOCK
            torn[start : start + pages * PAGE] = self.after[start : start + pages * PAGE]
        path.write_bytes(torn)
        Path(f"{path}.wal").write_bytes(self.log)
        Path(f"{path}.batchscore-undo").write_bytes(self.undo)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Some tables that were checkpointed, and commits since."""
    path = tmp_path_factory.mktemp("case") / "file"
    log, undo = Path(f"{path}.wal"), Path(f"{path}.batchscore-undo")
    with closing(duckfile.connect(str(path))) as connection:
        connection.execute("CREATE TABLE numbers AS SELECT i FROM range(300000) r(i)")
        connection.execute("CREATE TABLE names (name VARCHAR PRIMARY KEY)")
        connection.execute("INSERT INTO names VALUES ('a')")
        duckfile.checkpoint(connection, str(path))
        connection.execute("CREATE TABLE more AS SELECT i FROM range(1000) r(i)")
        connection.execute("DELETE FROM numbers WHERE i < 1000")
        connection.execute("INSERT INTO names VALUES ('b')")
        with pytest.raises(Died):
            duckfile.checkpoint(Mortal(connection), str(path))  # type: ignore[arg-type]
        rows = connection.execute(ROWS).fetchone()
        assert rows is not None
        before, saved, logged = path.read_bytes(), undo.read_bytes(), log.read_bytes()
        duckfile.checkpoint(connection, str(path))
        assert not undo.exists()
        return Case(before, path.read_bytes(), logged, saved, rows)


def _look(path: Path) -> Any:
    with closing(duckfile.connect(str(path))) as connection:
        return connection.execute(ROWS).fetchone()


class TestKilled:
    @given(data=st.data())
    @settings(max_examples=60, deadline=None)
    def test_at_any_write(self, case: Case, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
        """Whatever of the new blocks is written, in part or whole, with the old header all that was committed is there."""
        count = len(case.whole)
        pages = st.sampled_from([0, 1, 2, 31, BLOCK // PAGE]) | st.integers(0, BLOCK // PAGE)
        blocks = data.draw(st.lists(pages, min_size=count, max_size=count))
        path = tmp_path_factory.mktemp("torn") / "file"
        case.lay_out(path, blocks=blocks)

        assert _look(path) == case.rows
        assert not Path(f"{path}.batchscore-undo").exists()
        with closing(duckfile.connect(str(path))) as connection:
            duckfile.checkpoint(connection, str(path))
        assert _look(path) == case.rows
        shutil.rmtree(path.parent)

    def test_without_undo(self, case: Case, tmp_path: Path) -> None:
        """Without what was saved the same file is lost: this is what all of this is for."""
        case.lay_out(tmp_path / "file", blocks=case.torn)
        (tmp_path / "file.batchscore-undo").unlink()

        with pytest.raises(duckdb.Error, match="Corrupt database file"):
            _look(tmp_path / "file")

    def test_told(self, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was put back is told, in one line."""
        case.lay_out(tmp_path / "file", blocks=case.torn)

        told = CapturingLogger()
        monkeypatch.setattr(duckfile, "log", structlog.wrap_logger(told, [], structlog.BoundLogger))

        assert _look(tmp_path / "file") == case.rows

        (call,) = told.calls
        assert call.method_name == "warning"
        assert call.kwargs == {"event": "checkpoint.undone", "path": str(tmp_path / "file")}

    def test_after_the_header(self, case: Case, tmp_path: Path) -> None:
        """A checkpoint that got as far as its header is not undone."""
        case.lay_out(tmp_path / "file", blocks=case.whole, headers=case.after[:HEADERS])
        (tmp_path / "file.wal").unlink()

        assert _look(tmp_path / "file") == case.rows
        assert (tmp_path / "file").read_bytes() == case.after
        assert not (tmp_path / "file.batchscore-undo").exists()

    @pytest.mark.parametrize("undo", [b"nonsense", b"\0" * 16 + b"x", b"\1\0\0\0\0\0\0\0\5\0\0\0\0\0\0\0ab"])
    def test_undo_of_another_hand(self, case: Case, tmp_path: Path, undo: bytes) -> None:
        """An undo file that cannot be one is not used, and a sound file is opened."""
        case.lay_out(tmp_path / "file")
        (tmp_path / "file.batchscore-undo").write_bytes(undo)

        assert _look(tmp_path / "file") == case.rows

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can take a right away from itself and become another user")
    def test_who_may_only_read(self, case: Case, tmp_path: Path) -> None:
        """A user who may not write the file is told that it is to be undone, and by whom, and exits with 12."""
        case.lay_out(tmp_path / "file", blocks=case.torn)
        for path in (tmp_path, *tmp_path.parents):
            if path.stat().st_uid == os.getuid() and str(path).startswith("/tmp/"):
                path.chmod(0o755)
        code = (
            "import os, sys; from batchscore.database import Database; import batchscore.warehouse.duckdb\n"
            "from batchscore.warehouse import open_warehouse; os.setuid(65534)\n"
            "try: open_warehouse(Database.at(sys.argv[1]), read_only=True)\n"
            "except Exception as error: print(type(error).__name__, error)"
        )
        command = [sys.executable, "-c", code, f"duckdb:///{tmp_path}/file"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)

        assert done.stdout.startswith("WarehouseError")
        assert "Any command of batchscore by a user who may write both puts it back." in done.stdout

    def test_while_saving(self, case: Case, tmp_path: Path) -> None:
        """Half of what was to be saved is not used."""
        case.lay_out(tmp_path / "file")
        (tmp_path / "file.batchscore-undo").rename(tmp_path / "file.batchscore-undo-half")
        (tmp_path / "file.batchscore-undo-half").write_bytes(case.undo[: len(case.undo) // 2])

        assert _look(tmp_path / "file") == case.rows

    def test_to_look(self, case: Case, tmp_path: Path) -> None:
        """Who only looks finds the file whole as well."""
        case.lay_out(tmp_path / "file", blocks=case.torn)

        with closing(duckfile.connect(str(tmp_path / "file"), read_only=True)) as connection:
            assert connection.execute(ROWS).fetchone() == case.rows


class TestOthers:
    def test_at_work(self, case: Case, tmp_path: Path) -> None:
        """While another process has the file open nothing in it is touched."""
        case.lay_out(tmp_path / "file")
        holder = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
        command = [sys.executable, "-c", holder, str(tmp_path / "file")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            with pytest.raises(duckdb.Error, match="lock"):
                _look(tmp_path / "file")
            assert (tmp_path / "file.batchscore-undo").exists()
            process.kill()

        assert _look(tmp_path / "file") == case.rows

    def test_open_here(self, case: Case, tmp_path: Path) -> None:
        """A second connection of this process neither undoes a checkpoint that is on nor lets the file's lock go."""
        path = tmp_path / "file"
        case.lay_out(path)
        Path(f"{path}.batchscore-undo").unlink()
        with closing(duckfile.connect(str(path))):
            Path(f"{path}.batchscore-undo").write_bytes(case.undo)
            with closing(duckfile.connect(str(path))):
                assert Path(f"{path}.batchscore-undo").exists()
            code = f"import duckdb; duckdb.connect({str(path)!r})"
            other = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
            assert re.search("Could not set lock", other.stderr)


class TestWarehouse:
    def test_in_memory(self) -> None:
        """A warehouse in memory has no file, and nothing to fold into it."""
        with open_warehouse(Database.at("duckdb:///:memory:")) as warehouse:
            with warehouse.begin() as tx:
                tx.connection.exec_driver_sql("CREATE TABLE t (i INTEGER)")
            warehouse.settle()
            with warehouse.begin() as tx:
                assert tx.has_table("t")

    def test_corrupt(self, case: Case, tmp_path: Path) -> None:
        """A file that is corrupt for another reason is the warehouse's error, and no bug of ours."""
        case.lay_out(tmp_path / "file", blocks=case.torn)
        (tmp_path / "file.batchscore-undo").unlink()

        with pytest.raises(WarehouseError, match="Corrupt database file"):
            open_warehouse(Database.at(f"duckdb:///{tmp_path}/file"))

    def test_a_name_that_is_too_long(self, tmp_path: Path) -> None:
        """A path that cannot be is the warehouse's error."""
        with pytest.raises(WarehouseError):
            open_warehouse(Database.at(f"duckdb:///{tmp_path}/{'x' * 300}"))


class TestLog:
    def test_no_checkpoint_but_ours(self, tmp_path: Path) -> None:
        """However long the log grows, and when the file is closed, DuckDB does not checkpoint by itself."""
        path = tmp_path / "file"
        with closing(duckfile.connect(str(path))) as connection:
            duckfile.checkpoint(connection, str(path))
            header = path.read_bytes()[:HEADERS]
            connection.execute("CREATE TABLE t (i BIGINT, s VARCHAR)")
            for k in range(5):
                connection.execute(f"INSERT INTO t SELECT i, md5(i::VARCHAR) FROM range({k}, {k} + 100000) r(i)")
            assert Path(f"{path}.wal").stat().st_size > 16 * 2**20
        assert path.read_bytes()[:HEADERS] == header

        with closing(duckfile.connect(str(path))) as connection:
            assert path.read_bytes()[:HEADERS] == header
            duckfile.checkpoint_large_log(connection, str(path))
            assert path.read_bytes()[:HEADERS] != header
            assert not Path(f"{path}.wal").exists()

    def test_a_warehouse_keeps_it_short(self, tmp_path: Path) -> None:
        """A warehouse folds a long log into the file before its next transaction, and any log when it is closed."""
        log = tmp_path / "file.wal"
        with open_warehouse(Database.at(f"duckdb:///{tmp_path}/file")) as warehouse:
            for k in range(5):
                with warehouse.begin() as tx:
                    assert not log.exists() or log.stat().st_size < 21 * 2**20
                    rows = f"SELECT i, md5(i::VARCHAR) AS s FROM range({k}, {k} + 100000) r(i)"
                    made = "CREATE TABLE t AS " if k == 0 else "INSERT INTO t "
                    tx.connection.exec_driver_sql(made + rows)
            assert log.exists()
        assert not log.exists()
