"""What this process may use of its machine: a container's limits are not the host's numbers.

Read are version 2 of control groups and version 1, the process's own group and those above it, as far as they are to be
seen (kernel documentation, "Control Group v2" and "CFS Bandwidth Control").
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["THREADS", "cores", "memory"]

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
"""The variables by which numpy's and scikit-learn's libraries, and Polars, are told how many threads to use. Each reads
its own when it is imported."""

_MOUNT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores(mount: Path = _MOUNT, own: Path = _OWN) -> int:
    """How many cores' time the process gets, rounded up: those it may run on, or less where a quota allows less."""
    allowed = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for folder in _folders(mount, own, "cpu"):
        quota, period = _quota(folder)
        if quota and period:
            allowed = min(allowed, quota / period)
    return max(1, math.ceil(allowed))


def memory(mount: Path = _MOUNT, own: Path = _OWN) -> int:
    """How many bytes the process and those beside it in its container may hold: the machine's, or less."""
    limits = [
        limit
        for folder in _folders(mount, own, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := _number(folder / name))
    ]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def _folders(mount: Path, own: Path, controller: str) -> Iterator[Path]:
    """The folders of the process's group and of those above it."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        if controllers == "":
            roots = [mount, mount / "unified"]
        elif controller in controllers.split(","):
            roots = [mount / controllers, mount / controller]
        else:
            continue
        # A container may be told its path on the host, and see its own group at the top.
        for folder in (Path(path.lstrip("/")), *Path(path.lstrip("/")).parents):
            yield from {(root / folder).resolve() for root in roots}


def _quota(folder: Path) -> tuple[int | None, int | None]:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return (None, None) if quota == "max" else (int(quota), int(period))


def _number(file: Path) -> int | None:
    """The positive number in a file; None where there is no file or number, or -1 for no limit."""
    try:
        number = int(file.read_text())
    except (OSError, ValueError):
        return None
    return number if number > 0 else None
