"""Gates between a scored run and the output table: pure judgements of counts and profiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from statistics import median

from batchscore.drift import compare
from batchscore.job import Publish
from batchscore.ledger import Totals
from batchscore.problem import REASON
from batchscore.profile import Profile

__all__ = ["times", "tripped"]

# A median of fewer intervals says little of the next.
_FEWEST = 3


def tripped(gates: Publish, totals: Totals, earlier: Sequence[int], outputs: Profile, reference: Profile) -> list[str]:
    """The gates that a run does not pass, each in words; none when all is well.

    Args:
        gates: The job's `[publish]`.
        totals: Sums over the run's chunks.
        earlier: Rows read by the last published intervals, at most `gates.over` of them.
        outputs: What the run gave, by column.
        reference: What the bundle gave on the rows held out at training.
    """
    return [
        *_rows(gates, totals.rows_read, earlier),
        *_rejects(gates, totals),
        *_scores(gates, _answers(outputs)),
        *_shift(gates, _answers(outputs), reference),
    ]


def times(share: float, count: float) -> Fraction:
    """The product of a share as it is written and a count, exactly: 0.29 of 100 is 29, and in floats it is less."""
    return Fraction(str(share)) * Fraction(count)


def _rows(gates: Publish, rows: int, earlier: Sequence[int]) -> Iterator[str]:
    if len(earlier) < _FEWEST:
        return
    middle = median(earlier)
    of = f"the median of the last {len(earlier)} published intervals, {middle:,.0f}"
    if gates.least_rows is not None and rows < times(gates.least_rows, middle):
        yield f"least_rows: {rows:,} rows are less than {gates.least_rows} times {of}"
    if gates.most_rows is not None and rows > times(gates.most_rows, middle):
        yield f"most_rows: {rows:,} rows are more than {gates.most_rows} times {of}"


def _rejects(gates: Publish, totals: Totals) -> Iterator[str]:
    if gates.rejects is not None and totals.rejects > times(gates.rejects, totals.rows_read):
        yield f"rejects: {totals.rejects:,} of {totals.rows_read:,} rows are more than {gates.rejects} of them"


def _answers(outputs: Profile) -> Profile:
    """Predictions and scores, without the reasons for them."""
    columns = {name: column for name, column in outputs.columns.items() if not name.startswith(REASON)}
    return Profile(columns, {name: outputs.layouts[name] for name in columns})


def _scores(gates: Publish, outputs: Profile) -> Iterator[str]:
    for name, (low, high, count) in _numbers(outputs).items():
        if gates.varying and count > 1 and low == high:
            yield f"varying: {name} is {low:g} in all {count:,} rows"
        if gates.score_range is not None and (low < gates.score_range[0] or high > gates.score_range[1]):
            yield f"score_range: {name} goes from {low:g} to {high:g}, out of {list(gates.score_range)}"


def _numbers(outputs: Profile) -> Mapping[str, tuple[float, float, int]]:
    """Smallest, largest and count of each score; of the prediction, where a task has no score."""
    scores = {name: column for name, column in outputs.columns.items() if name != "prediction"} or outputs.columns
    return {
        name: (column.minimum, column.maximum, column.n)
        for name, column in scores.items()
        if column.minimum is not None and column.maximum is not None
    }


def _shift(gates: Publish, outputs: Profile, reference: Profile) -> Iterator[str]:
    if gates.score_psi is None:
        return
    for drift in compare(outputs, reference):
        enough = drift.verdict != "not enough data" and drift.value is not None and drift.floor is not None
        if drift.metric == "psi" and enough and drift.value > max(gates.score_psi, drift.floor):  # type: ignore[operator, type-var]
            yield f"score_psi: {drift.column} has a PSI of {drift.value:.3g} against training, over {gates.score_psi}"
