"""How far one machine goes: what more and more rows a night take, worked out from benchmarks/results.json.

    python benchmarks/scale.py

Prints the table of docs/scale.md. What a row takes is the difference of a large and a small interval, over the rows
that one has more than the other; what does not grow with the rows is left out.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

_RESULTS = Path(__file__).parent / "results.json"
_NIGHTS = {"1 M": 10**6, "100 M": 10**8, "10 G": 10**10}
_CORES = (2, 16, 64)
_CHUNK_ROWS = 50_000
_OURS = "batchscore"
_WIDTH = 120
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def main() -> None:
    """Print what a row takes, and what nights take."""
    row = _of_a_row(json.loads(_RESULTS.read_text()))
    micros = {name: f"{row[name] * 1e6:.2f} µs" for name in ("ours", "Postgres", "publishing")}
    told = (
        f"A row: {micros['ours']} of our processor time, {micros['Postgres']} of Postgres's; {micros['publishing']} of "
        f"waiting while it is published; {row['output']:.0f} bytes of output, {row['log']:.0f} of write-ahead log. A "
        f"chunk: {row['ledger'] / 1000:.1f} kB of ledger."
    )
    print(textwrap.fill(told, _WIDTH), end="\n\n")
    cores = [f"at {each} cores" for each in _CORES]
    head = ["rows", "processor time", *cores, "publishing alone", "output", "write-ahead log", "ledger"]
    print(f"| {' | '.join(head)} |")
    print("|" + "---|" * len(head))
    for name, rows in _NIGHTS.items():
        work = rows * (row["ours"] + row["Postgres"])
        ledger = rows / _CHUNK_ROWS * row["ledger"]
        shown = [
            *(_time(work), *(_time(work / each) for each in _CORES), _time(rows * row["publishing"])),
            *(_size(size) for size in (rows * row["output"], rows * row["log"], ledger)),
        ]
        print(f"| {name} | {' | '.join(shown)} |")


def _of_a_row(told: dict[str, Any]) -> dict[str, float]:
    """Seconds and bytes of a row, and the ledger's bytes of a chunk."""
    cells = [each for each in told["cells"] if each["job"].endswith("_large") and each["who"] == _OURS]
    small, large = sorted(cells, key=lambda each: each["rows"])
    left = [each for each in told["left"] if each["workload"] == large["workload"]]
    before, after = sorted(left, key=lambda each: each["rows"])
    more = large["rows"] - small["rows"]
    return {
        "ours": (large["cpu_seconds"] - small["cpu_seconds"]) / more,
        "Postgres": (large["server_cpu_seconds"] - small["server_cpu_seconds"]) / more,
        "publishing": (large["phases"]["publishing"] - small["phases"]["publishing"]) / more,
        "output": (after["output"] - before["output"]) / more,
        "log": (after["log"] - before["log"]) / more,
        "ledger": (after["ledger"] - before["ledger"]) / (after["chunks"] - before["chunks"]),
    }


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    unit, name = next(((unit, name) for unit, name in _UNITS if size >= unit), _UNITS[-1])
    return f"{size / unit:,.1f} {name}"


if __name__ == "__main__":
    main()
