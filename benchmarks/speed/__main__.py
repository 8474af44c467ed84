"""Measure, and write what was measured into RESULTS.md and results.json.

    python -m benchmarks.speed [--quick] [--rows N] [--rounds N] [--only JOB] [--out FOLDER] [--peers PYTHON]

Starts a Postgres of its own, makes the rows there and in files, trains each model once, and runs each contender in
fresh processes, in turn. Needs the extra `demo`, and Linux, which tells how much memory a tree of processes holds.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.speed.bench import Bench
from benchmarks.speed.contenders import Interpreters
from benchmarks.speed.machine import facts, postgres
from benchmarks.speed.plan import FULL, QUICK
from benchmarks.speed.project import Project
from benchmarks.speed.report import Report
from benchmarks.speed.targets import targets_of

_ROOT = Path(__file__).parents[2]


def main() -> None:
    """Parse, run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows, rounds and workloads")
    parser.add_argument("--rows", type=int, help="rows of a workload, instead of the plan's")
    parser.add_argument("--rounds", type=int, help="turns of each contender, instead of the plan's")
    parser.add_argument("--only", help="only workloads whose job's name begins so, and nothing else")
    parser.add_argument("--out", type=Path, default=_ROOT / "benchmarks", help="where the results go")
    parser.add_argument("--peers", type=Path, default=_ROOT / ".venv-bench/bin/python", help="the peers' interpreter")
    given = parser.parse_args()
    plan = (QUICK if given.quick else FULL).of(given.rows, given.rounds, given.only)
    # As Ctrl+C does: the server is stopped, and the folder removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bs-") as folder, postgres(Path(folder)) as server:
        machine = facts(server)
        bench = Bench(plan, Project(Path(folder), server.uri), server, Interpreters.found(given.peers))
        bench.run()
    taken = (time.monotonic() - begun) / 60
    Report(
        machine,
        bench.versions(),
        {"command": _command(given), "words": plan.words(), "minutes": round(taken, 1)},
        bench.cells,
        bench.floors,
        bench.start,
        bench.left,
        targets_of(bench.cells, bench.floors, bench.start),
    ).write(given.out)
    print(f"{given.out / 'RESULTS.md'}: it took {taken:.1f} minutes", flush=True)


def _command(given: argparse.Namespace) -> str:
    if given.rows or given.rounds or given.only:
        return " ".join(["python -m benchmarks.speed", *sys.argv[1:]])
    return "make bench-quick" if given.quick else "make bench"


if __name__ == "__main__":
    main()
