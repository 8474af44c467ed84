"""Whether metrics of published predictions are worse than they were on the rows that the model was tested on."""

from __future__ import annotations

from typing import Literal

from batchscore.model.bundle import Bundle
from batchscore.model.evaluation import Measured
from batchscore.problem import better

__all__ = ["FEWEST_ROWS", "TWO_SIDED", "State", "Verdict", "bound_of", "state_of", "tested", "verdict", "worse"]

State = Literal["mature", "immature", "not enough data"]
Verdict = Literal["worse", "as good", "not compared", "immature", "not enough data"]

FEWEST_ROWS = 200
"""Fewer labelled rows say little of a metric."""

TWO_SIDED = "bias"
"""The metric that is wrong on either side of 0."""

# Chance alone adds to it, the more the fewer rows there are: a day is always worse than a month.
_GROWS_WITH_FEWER_ROWS = "ece"
_SCATTERS = 2


def state_of(labelled: int, predictions: int, mature: float) -> State:
    """Whether metrics of so many labelled predictions may be compared.

    Args:
        labelled: Predictions whose label is known.
        predictions: All of them.
        mature: The share whose label must be known: `[performance] mature`.
    """
    if labelled < FEWEST_ROWS:
        return "not enough data"
    return "mature" if labelled >= mature * predictions else "immature"


def tested(bundle: Bundle, metric: str | None) -> dict[str, float | None]:
    """What a metric is judged by: `test_value` and `bound` of `batchscore_performance`; both None without one."""
    then = bundle.evaluation.test.get(metric) if metric else None
    if metric is None or then is None:
        return {"test_value": None, "bound": None}
    return {"test_value": then.value, "bound": bound_of(metric, then, bundle.evaluation.scatter.get(metric, 0.0))}


def verdict(bundle: Bundle, metric: str, measured: Measured, state: State) -> Verdict:
    """How a metric of all rows of a window compares with that of the bundle's test rows.

    Args:
        bundle: What predicted.
        metric: Its name.
        measured: Its value and interval.
        state: Whether it may be compared.
    """
    if state != "mature":
        return state
    then = bundle.evaluation.test.get(metric)
    fell = None if then is None else worse(metric, measured, then, bundle.evaluation.scatter.get(metric, 0.0))
    return "not compared" if fell is None else "worse" if fell else "as good"


def worse(metric: str, now: Measured, then: Measured, scatter: float = 0.0) -> bool | None:
    """Whether a metric is worse than it was by more than chance: its whole interval lies beyond the other's worse end.

    A bias is worse when it lies further from 0, on whichever side. The rows of one day are not independent, and so
    metrics vary from day to day by more than their intervals say: what two of `scatter` explain is not worse.

    Args:
        metric: Its name.
        now: Of a window.
        then: Of the test rows.
        scatter: The standard deviation from one window of test rows to the next, as far as it is known.

    Returns:
        None for a metric that is good neither way, that depends on the number of rows (ece), or without an interval.
    """
    if now.low is None or now.high is None:
        return None
    bound = bound_of(metric, then, scatter)
    if bound is None:
        return None
    if metric == TWO_SIDED:
        return now.low > bound or now.high < -bound
    return now.low > bound if better(metric) == "lower" else now.high < bound


def bound_of(metric: str, then: Measured, scatter: float) -> float | None:
    """The value beyond which a whole interval must lie to be worse; of a bias on either side of 0.

    Args:
        metric: Its name.
        then: Of the test rows.
        scatter: See `worse`.

    Returns:
        None where `worse` has no answer.
    """
    if then.low is None or then.high is None or metric == _GROWS_WITH_FEWER_ROWS:
        return None
    if metric == TWO_SIDED:
        return max(abs(then.low), abs(then.high)) + _SCATTERS * scatter
    match better(metric):
        case "lower":
            return then.high + _SCATTERS * scatter
        case "higher":
            return then.low - _SCATTERS * scatter
        case _:
            return None
