"""A disk that can be filled."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Disk:
    """A folder whose disk can be filled: by a file, or by a limit on how far any file may grow."""

    folder: Path
    mounted: bool

    @contextmanager
    def full(self, leave: int = 0, *, process: int = 0) -> Iterator[None]:
        """For a process of this user, this one when it is 0."""
        if self.mounted:
            filler = self.folder / "filler"
            free = os.statvfs(self.folder)
            filler.write_bytes(bytes(free.f_bavail * free.f_bsize - leave))
            try:
                yield
            finally:
                filler.unlink()
            return
        before = resource.prlimit(process, resource.RLIMIT_FSIZE)
        resource.prlimit(process, resource.RLIMIT_FSIZE, (8192, before[1]))
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process, resource.RLIMIT_FSIZE, before)
