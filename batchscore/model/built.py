"""What was compiled of a model, and for which machines."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict

__all__ = ["ARCHITECTURES", "BUILT", "Built", "Speed", "architecture", "architectures_in", "file_of"]

ARCHITECTURES = ("aarch64", "x86_64")
"""What is compiled for, as `uname -m` names them."""

BUILT = "compiled.json"
"""The file of a bundle that says what was compiled."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Speed(_Record):
    """Rows a second through features and pipeline, beside each other on the machine that compiled.

    Attributes:
        architecture: That machine's.
        rows: How many were scored.
        original: With the pipeline as it was fitted.
        compiled: With its trees compiled.
    """

    architecture: str
    rows: int
    original: float
    compiled: float

    def __str__(self) -> str:
        return (
            f"{self.compiled:,.0f} rows a second instead of {self.original:,.0f}, features and pipeline "
            f"({self.compiled / self.original:.1f} times as many)"
        )


class Built(_Record):
    """The content of `compiled.json`.

    Attributes:
        compilers: What compiled, by architecture.
        speed: How fast it is; None where nothing was compiled for the machine that compiled.
    """

    compilers: Mapping[str, str]
    speed: Speed | None = None

    def __str__(self) -> str:
        return ", ".join(sorted(self.compilers)) + (f"; {self.speed}" if self.speed else "")


def architecture() -> str:
    """This machine's, in one of the names of `ARCHITECTURES` where it is one of these."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def file_of(architecture: str) -> str:
    """The file of a bundle that holds what was compiled for an architecture."""
    return f"compiled-{architecture}.so"


def architectures_in(files: Iterable[str]) -> tuple[str, ...]:
    """The architectures that a bundle of these files is compiled for."""
    there = set(files)
    return tuple(each for each in ARCHITECTURES if file_of(each) in there)
