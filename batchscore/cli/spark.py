"""How a metric went over the last runs, in one word of a terminal, from the rows of `batchscore_drift`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from batchscore import ledger
from batchscore.cli.render import on_terminal
from batchscore.ledger import Run

__all__ = ["Past", "spark"]

_BLOCKS = "▁▂▃▄▅▆▇█"
# For a pipe, a file and a terminal that has no blocks: from low to high by how much ink they take.
_PLAIN = "_.:-=+*#"
# Two weeks of days.
_RUNS = 14


@dataclass(frozen=True, slots=True)
class Past:
    """The last published runs of a bundle, the newest last, and what each metric was in them.

    Attributes:
        ids: The runs, 14 at most.
        values: By reference, role, column and metric, and by run.
    """

    ids: Sequence[str]
    values: Mapping[tuple[str, str, str, str], Mapping[str, float | None]]

    @classmethod
    def of(cls, tx: sa.Connection, run: Run) -> Past:
        """The runs up to a published one, of its bundle."""
        before = ledger.published_before(tx, run.job, run.bundle_digest, run.interval.start, _RUNS - 1)
        ids = [each.run_id for each in (*before, run)]
        return cls(ids, ledger.values_of(tx, ids))

    def __call__(self, reference: str, role: str, column: str, metric: str) -> list[float | None]:
        """The values of a metric, one for each run; None where a run was not compared so."""
        values = self.values.get((reference, role, column, metric), {})
        return [values.get(run_id) for run_id in self.ids]


def spark(values: Sequence[float | None], band: float | None) -> str:
    """A sign for each value, the higher the larger, whatever its side of 0; a gap for None.

    The highest sign is the largest value, or the band where none reaches it: noise fills no whole sign.
    """
    signs = _BLOCKS if on_terminal() and _utf8() else _PLAIN
    most = max([abs(value) for value in values if value is not None] + [band or 0.0], default=0.0)
    return "".join(" " if value is None else signs[_level(value, most, len(signs))] for value in values)


def _level(value: float, most: float, levels: int) -> int:
    return min(levels - 1, int(abs(value) / most * levels)) if most else 0


def _utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
