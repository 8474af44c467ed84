"""What stands between a run and its database: a pool, and a line that breaks."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
import toy
from toy import Project

DAY = ("--from", "2024-02-01", "--to", "2024-02-02")
CHUNKS = ("--chunk-rows", "25")
COLUMNS = ("id", "day", "prediction", "score", "model_version")


@pytest.fixture
def project(trained: Project, tmp_path: Path, postgres_url: str) -> Project:
    """The toy project on Postgres, unscored."""
    return toy.unscored(tmp_path, postgres_url, trained)


def found(project: Project) -> tuple[object, ...]:
    """What a day's run has left behind, but for ids and times."""
    counts = "SELECT status, rows_read, predictions, rejects, chunks, input_hash FROM batchscore_runs"
    chunks = "SELECT chunk, rows_read, predictions, input_hash FROM batchscore_chunks ORDER BY chunk"
    profiles = "SELECT role, column_name, profile FROM batchscore_profiles ORDER BY role, column_name"
    return (project.table(), *(toy.query(project.url, sql) for sql in (counts, chunks, profiles)))


def start_again(project: Project) -> None:
    """Drop what a run has made."""
    made = [name for name in toy.tables(project.url) if name != "toy" and name.startswith(("toy", "batchscore"))]
    toy.execute(project.url, *(f"DROP TABLE {name}" for name in made))


class TestPool:
    def test_a_run_behind_a_pool_is_the_same(self, project: Project, pooled_url: str) -> None:
        """Behind PgBouncer, which gives every transaction another session, a run does what it does without."""
        assert project.call("backfill", "toy", *DAY, *CHUNKS).code == 0
        plain = found(project)
        start_again(project)

        pooled = Project(project.root, pooled_url)
        result = pooled.call("backfill", "toy", *DAY, *CHUNKS)

        assert result.code == 0, result.out
        assert not result.named("attempt.failed")
        assert found(project) == plain
        assert pooled.call("check", "toy").code == 0
        assert pooled.call("score", "toy", "--interval", "2024-02-01").named("run.nothing_due")


class Line:
    """A line from a port of this host to Postgres that breaks when the n-th COMMIT has been carried out.

    The client is not told: its connection ends instead of the answer.
    """

    def __init__(self, server: str, cut_at: int) -> None:
        self._server, self._cut_at = server, cut_at
        self.commits = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        # Closing alone would leave the thread waiting for one.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                threading.Thread(target=self._carry, args=(client, server), daemon=True).start()

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        cutting = threading.Event()
        back = threading.Thread(target=self._answer, args=(server, client, cutting), daemon=True)
        with closing(client), closing(server), suppress(OSError):
            back.start()
            # What comes first has no type byte.
            server.sendall(_message(client, typed=False))
            while message := _message(client):
                if message[:1] == b"Q" and b"COMMIT" in message:
                    with self._lock:
                        self.commits += 1
                        if self.commits == self._cut_at:
                            cutting.set()
                server.sendall(message)
                if cutting.is_set():
                    # Until the server has answered, and then for good.
                    back.join()
                    return

    def _answer(self, server: socket.socket, client: socket.socket, cutting: threading.Event) -> None:
        with suppress(OSError):
            while message := _message(server):
                if cutting.is_set():
                    if message[:1] == b"Z":
                        return
                    continue
                client.sendall(message)
            client.shutdown(socket.SHUT_RDWR)


def _message(sock: socket.socket, *, typed: bool = True) -> bytes:
    """The next message of Postgres' protocol, whole; empty at the end."""
    head = _exactly(sock, 5 if typed else 4)
    if not head:
        return b""
    (length,) = struct.unpack("!i", head[-4:])
    return head + _exactly(sock, length - 4)


def _exactly(sock: socket.socket, count: int) -> bytes:
    parts = b""
    while len(parts) < count:
        part = sock.recv(count - len(parts))
        if not part:
            return b""
        parts += part
    return parts


@pytest.fixture
def server_socket(postgres_server: sa.URL) -> str:
    """Where the Postgres of this session listens."""
    return f"{postgres_server.query['host']}/.s.PGSQL.5432"


@pytest.mark.long
class TestLine:
    def test_an_unanswered_commit_is_resolved_by_the_ledger(self, project: Project, server_socket: str) -> None:
        """Whichever COMMIT of a run stays unanswered, the same process goes on, and the result is that of a calm run."""
        assert project.call("backfill", "toy", *DAY, *CHUNKS).code == 0
        calm = found(project)
        for cut_at in self._places(project, server_socket, calm):
            assert cut_at < 60, "the run never ends"

    def _places(self, project: Project, server_socket: str, calm: tuple[object, ...]) -> Iterator[int]:
        cut_at, cuts = 1, 0
        while True:
            start_again(project)
            line = Line(server_socket, cut_at)
            try:
                plain = {"sslmode": "disable", "gssencmode": "disable"}
                through = sa.make_url(project.url).set(host="127.0.0.1", port=line.port, query=plain)
                result = Project(project.root, through.render_as_string(hide_password=False)).call(
                    "backfill", "toy", *DAY, *CHUNKS
                )
            finally:
                line.close()
            assert result.code == 0, f"{cut_at}: {result.events[-2:]}"
            assert found(project) == calm, cut_at
            if line.commits < cut_at:
                # A run without a cut: before, every one of its commits was cut once.
                assert cuts > 8
                return
            # Letting go of a lease may fail in silence: the lease ends by itself.
            cuts += bool(result.named("attempt.failed"))
            yield cut_at
            cut_at += 1
