"""What was measured, as JSON for programs and as Markdown for people."""

from __future__ import annotations

import json
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.speed.measure import Measured

__all__ = ["Cell", "Difference", "Floor", "Left", "Phases", "Report", "Start", "Target"]

# What the maintainer says of a missed target, by its id, from a profile.
_REASONS = Path(__file__).parents[1] / "reasons.toml"
SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Difference:
    """Some predictions beside ours, row by row.

    Attributes:
        rows: How many rows have the same key in both.
        labels: How many of those have another prediction.
        score: The largest difference of their scores.
    """

    rows: int
    labels: int
    score: float | None


@dataclass(frozen=True, slots=True)
class Phases:
    """Where one of our runs spent its time, in seconds, by its log.

    Attributes:
        outside: Before it began and after it was published: imports, the model and its golden rows, drift, the end.
        chunks: From its beginning until its last chunk was committed.
        publishing: From then until all was in the output.
    """

    outside: float
    chunks: float
    publishing: float


@dataclass(slots=True)
class Cell:
    """Who scored a workload, how often, and what it took each time.

    Attributes:
        workload: Its name.
        job: Its short name.
        who: The contender.
        rows: How many rows it has.
        measured: Each time.
        server_cpu: What Postgres took each time, in seconds of processor time.
        phases: Of ours, each time.
        difference: From ours; None of our own, and where nobody looked.
        note: Why there is nothing, or not all.
    """

    workload: str
    job: str
    who: str
    rows: int
    measured: list[Measured] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)
    phases: list[Phases] = field(default_factory=list)
    difference: Difference | None = None
    note: str = ""

    def median(self, name: str) -> float:
        """Of one of `Measured`'s fields."""
        return statistics.median(getattr(each, name) for each in self.measured)

    @property
    def differs(self) -> bool:
        """Whether its predictions are not ours."""
        return self.difference is not None and (
            (self.difference.rows, self.difference.labels) != (self.rows, 0) or (self.difference.score or 0.0) > SAME
        )

    def told(self) -> dict[str, Any]:
        """The cell, for JSON."""
        shown: dict[str, Any] = {
            "workload": self.workload,
            "job": self.job,
            "who": self.who,
            "rows": self.rows,
            "n": len(self.measured),
            "note": self.note,
            "difference": asdict(self.difference) if self.difference else None,
            "differs": self.differs,
        }
        if not self.measured:
            return shown
        seconds = [each.seconds for each in self.measured]
        return shown | {
            "seconds": [round(each, 3) for each in seconds],
            "median": round(self.median("seconds"), 3),
            "rows_per_second": round(self.rows / self.median("seconds")),
            "cpu_seconds": round(self.median("cpu_seconds"), 2),
            "server_cpu_seconds": round(statistics.median(self.server_cpu), 2),
            "peak_mb": round(self.median("peak_mb")),
            "processes": max(each.processes for each in self.measured),
            "phases": self._phases(),
        }

    def _phases(self) -> dict[str, float] | None:
        """The median of each phase; None where a contender has none."""
        if not self.phases:
            return None
        named = [asdict(each) for each in self.phases]
        return {name: round(statistics.median(each[name] for each in named), 3) for name in named[0]}


@dataclass(frozen=True, slots=True)
class Floor:
    """The parts of a workload alone, and what follows: nobody is done before its longest part, or the cores' work.

    Attributes:
        parts: By part ("read", "score", "write") the seconds, and the processor time, of the server too.
        cores: How many there are.
    """

    workload: str
    job: str
    rows: int
    parts: Mapping[str, tuple[float, float]]
    cores: int

    @property
    def longest(self) -> float:
        """The longest part."""
        return max(seconds for seconds, _ in self.parts.values())

    @property
    def work(self) -> float:
        """The processor time of all, over the cores."""
        return sum(cpu for _, cpu in self.parts.values()) / self.cores

    @property
    def seconds(self) -> float:
        """The floor."""
        return max(self.longest, self.work)

    def told(self) -> dict[str, Any]:
        """The floor, for JSON."""
        parts = {name: {"seconds": round(s, 3), "cpu_seconds": round(c, 3)} for name, (s, c) in self.parts.items()}
        shown = {"longest": round(self.longest, 3), "work": round(self.work, 3), "floor": round(self.seconds, 3)}
        return {"workload": self.workload, "job": self.job, "rows": self.rows, "parts": parts, **shown}


@dataclass(frozen=True, slots=True)
class Start:
    """How long until something is done, of fresh processes; and the heaviest imports on the way."""

    help_seconds: Sequence[float]
    chunk_seconds: Sequence[float]
    imports: Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Left:
    """What one of our runs leaves in Postgres, in bytes.

    Attributes:
        output: The output table with its index, vacuumed.
        ledger: All tables of the ledger with theirs.
        chunks: How many chunks the run had.
        log: What went into the write-ahead log meanwhile.
    """

    workload: str
    rows: int
    output: int
    ledger: int
    chunks: int
    log: int


@dataclass(frozen=True, slots=True)
class Target:
    """What was promised, and what is: `value` must be at least, or at most, `bound`."""

    id: str
    words: str
    value: float
    bound: float
    least: bool = False
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether it is kept."""
        return self.value >= self.bound if self.least else self.value <= self.bound

    def told(self, reasons: Mapping[str, str]) -> dict[str, Any]:
        """The target, for JSON; a reason only where it is missed."""
        reason = None if self.met else reasons.get(self.id)
        return {**asdict(self), "value": round(self.value, 3), "met": self.met, "reason": reason}


@dataclass(frozen=True, slots=True)
class Report:
    """All of it."""

    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    how: Mapping[str, Any]
    cells: Sequence[Cell]
    floors: Sequence[Floor]
    start: Start | None
    left: Sequence[Left]
    targets: Sequence[Target]

    def write(self, folder: Path) -> None:
        """Write RESULTS.md and results.json."""
        reasons = tomllib.loads(_REASONS.read_text()) if _REASONS.exists() else {}
        told = {
            "machine": self.machine,
            "versions": self.versions,
            "how": self.how,
            "cells": [each.told() for each in self.cells],
            "floors": [each.told() for each in self.floors],
            "start": asdict(self.start) if self.start else None,
            "left": [asdict(each) for each in self.left],
            "targets": [each.told(reasons) for each in self.targets],
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        (folder / "RESULTS.md").write_text("\n".join(_markdown(told)) + "\n")


def _markdown(told: Mapping[str, Any]) -> Iterable[str]:
    machine, how = told["machine"], told["how"]
    yield "# How fast\n"
    yield f"Printed by `{how['command']}`. {how['words']}\n"
    postgres = ", ".join(f"{name} {value}" for name, value in machine["postgres"].items())
    yield (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB; {machine['system']}; Python "
        f"{machine['python']}; Postgres: {postgres}; load before: {machine['load_before']}; commit "
        f"{machine['commit']}; all of it took {how['minutes']} minutes.\n"
    )
    yield ", ".join(f"{name} {version}" for name, version in told["versions"].items()) + ".\n"
    yield "## Targets\n"
    yield from _table(
        ["", "is", "should be", ""],
        (
            [
                each["words"],
                f"{each['value']:.2f}{each['unit']}",
                f"{'≥' if each['least'] else '≤'} {each['bound']:g}{each['unit']}",
                "met" if each["met"] else "missed" + (f": {each['reason']}" if each["reason"] else ""),
            ]
            for each in told["targets"]
        ),
    )
    for job in dict.fromkeys(each["job"] for each in told["cells"]):
        yield from _workload([each for each in told["cells"] if each["job"] == job])
    if told["floors"]:
        yield from _floors(told["floors"])
    yield from _phases(told)
    if told["start"]:
        yield from _start(told["start"])
    if told["left"]:
        yield from _left(told["left"])


def _workload(cells: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    rows = sorted({each["rows"] for each in cells})
    yield f"## {cells[0]['workload']}, {' and '.join(f'{each:,}' for each in rows)} rows\n"
    ours = {each["rows"]: each["median"] for each in cells if each["who"] == "batchscore" and each["n"]}
    head = ["", "rows", "n", "seconds: median (least to most)", "rows/s", "times ours", "CPU s", "Postgres CPU s"]
    yield from _table([*head, "peak MB", "processes", "largest difference"], (_line(each, ours) for each in cells))


def _line(each: Mapping[str, Any], ours: Mapping[int, float]) -> list[str]:
    name, rows = each["who"], f"{each['rows']:,}"
    if not each["n"]:
        return [name, rows, "0", each["note"], *[""] * 7]
    seconds = f"{each['median']:.2f} ({min(each['seconds']):.2f} to {max(each['seconds']):.2f})"
    times = f"{each['median'] / ours[each['rows']]:.2f}" if each["rows"] in ours else ""
    figures = (f"{each['rows_per_second']:,}", times, f"{each['cpu_seconds']:.1f}", f"{each['server_cpu_seconds']:.1f}")
    memory = (f"{each['peak_mb']:,}", str(each["processes"]))
    note = f"; {each['note']}" if each["note"] else ""
    return [name, rows, str(each["n"]), seconds + note, *figures, *memory, _difference(each)]


def _difference(each: Mapping[str, Any]) -> str:
    found = each["difference"]
    if not found:
        return ""
    if each["differs"]:
        missing = each["rows"] - found["rows"]
        return (
            f"**differs**: {missing} rows missing, {found['labels']} other predictions, scores by {found['score']:.1g}"
        )
    return f"{found['score']:.1g}"


def _floors(floors: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    yield "## The parts alone\n"
    yield (
        "Rows read to nowhere and written from memory by ADBC, Arrow or DuckDB, and scored from memory by the same "
        "compiled trees and encoders as in a run, each in a process of its own, without its start-up, the least of "
        "three times: seconds, and processor time with Postgres's. The floor is the longest part, or all processor "
        "time over the cores, whichever is more. Our time over it has start-up in it too.\n"
    )
    names = ("read", "score", "write")
    yield from _table(
        ["", *(f"{name}: s (CPU s)" for name in names), "longest, s", "CPU over cores, s", "floor, s", "rows/s"],
        (
            [
                each["workload"],
                *(f"{each['parts'][n]['seconds']:.2f} ({each['parts'][n]['cpu_seconds']:.2f})" for n in names),
                *(f"{each[name]:.2f}" for name in ("longest", "work", "floor")),
                f"{each['rows'] / each['floor']:,.0f}",
            ]
            for each in floors
        ),
    )


def _phases(told: Mapping[str, Any]) -> Iterable[str]:
    floors = {each["job"]: each["floor"] for each in told["floors"]}
    yield "## Where our time goes\n"
    yield (
        "By the log of each run, the median in seconds. Outside of the run are the imports, the model and its golden "
        "rows before it, and drift, alerts and the end of the process after it: that does not grow with the rows. The "
        "last column is the run alone, over the floor.\n"
    )
    yield from _table(
        ["", "", "rows", "outside, s", "chunks, s", "publishing, s", "chunks and publishing, over the floor"],
        (
            [
                *(each["workload"], each["who"], f"{each['rows']:,}"),
                *(f"{each['phases'][name]:.2f}" for name in ("outside", "chunks", "publishing")),
                f"{_run(each) / floors[each['job']]:.2f} x" if each["job"] in floors else "",
            ]
            for each in told["cells"]
            if each.get("phases")
        ),
    )


def _run(cell: Mapping[str, Any]) -> float:
    phases: Mapping[str, float] = cell["phases"]
    return phases["chunks"] + phases["publishing"]


def _start(start: Mapping[str, Any]) -> Iterable[str]:
    yield "## Start-up\n"
    lines = {
        "`batchscore --help`": start["help_seconds"],
        "from the start of `batchscore backfill` until its first chunk is read": start["chunk_seconds"],
    }
    yield from _table(
        ["", "n", "seconds: median (least to most)"],
        (
            [name, str(len(seconds)), f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"]
            for name, seconds in lines.items()
        ),
    )
    yield "The packages on the way whose modules take longest to import (`-X importtime`, which slows them):\n"
    yield from _table(["", "seconds"], ([f"`{name}`", f"{seconds:.2f}"] for name, seconds in start["imports"]))


def _left(left: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    yield "## What a run leaves in Postgres\n"
    yield from _table(
        ["", "rows", "output, bytes a row", "write-ahead log, bytes a row", "chunks", "ledger, bytes a chunk"],
        (
            [
                each["workload"],
                f"{each['rows']:,}",
                *(f"{each[name] / each['rows']:.0f}" for name in ("output", "log")),
                str(each["chunks"]),
                f"{each['ledger'] / each['chunks']:,.0f}",
            ]
            for each in left
        ),
    )


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterable[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for line in lines:
        yield f"| {' | '.join(line)} |"
    yield ""
