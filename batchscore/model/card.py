"""The model card: one HTML page with all that training found out about a model, for people to read and to print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from markupsafe import Markup

from batchscore import page
from batchscore.model.built import Built
from batchscore.model.bundle import Manifest
from batchscore.model.evaluation import Confusion, Evaluation, Slice
from batchscore.model.pictures import CLASSES, pictures
from batchscore.model.words import costs_told, gap_told, interval_told, sliced_told, verdict
from batchscore.problem import Problem, better
from batchscore.rounding import digits_of, rounded

__all__ = ["SMALL", "card"]

SMALL = 100
"""Fewer rows than these are too few for a slice's metrics to mean much."""

# Of a table that somebody would still read.
_ROWS = 40
_FOLDS = 10


def card(manifest: Manifest, evaluation: Evaluation, built: Built | None = None) -> str:
    """The page: HTML with its style and pictures in it, no script, and nothing that a browser would fetch.

    What the evaluation does not have is left out. Names and values of the data are escaped.

    Args:
        manifest: What the bundle says of itself; its digest, which covers the card, is not told.
        evaluation: What training found out.
        built: What was compiled of it, if anything was.
    """
    problem = manifest.problem
    template = page.template(Path(__file__).with_name("card.html"))
    return template.render(
        manifest=manifest,
        evaluation=evaluation,
        built=built,
        problem=problem,
        style=page.style(),
        headline=evaluation.test.get(evaluation.metric),
        better=better(evaluation.metric),
        met=_met(evaluation, problem),
        verdicts=[verdict(evaluation, name) for name in evaluation.baselines],
        gap=gap_told(evaluation),
        baselines=list(evaluation.baselines),
        metrics=[_metric_row(evaluation, metric) for metric in evaluation.test],
        by_class=_by_class(evaluation.confusion) if evaluation.confusion else [],
        slices=_slices(evaluation),
        sliced=[metric for metric in evaluation.test if any(metric in one.metrics for one in evaluation.slices)],
        costs=list(costs_told(evaluation)),
        sliced_told=[sliced_told(evaluation, one) for one in evaluation.sliced],
        small=SMALL,
        folds=_folds(evaluation),
        chosen=_chosen(evaluation),
        limits=_limits(manifest, evaluation),
        many=_ROWS,
        pictures={name: [Markup(svg) for svg in svgs] for name, svgs in pictures(manifest, evaluation)},  # noqa: S704 - escaped there
    )


def _met(evaluation: Evaluation, problem: Problem) -> str:
    if problem.success is None:
        return ""
    measured = evaluation.test.get(problem.success.metric)
    if measured is None:
        return "not met: the test rows do not define the metric"
    return "met" if problem.success.met_by(measured.value) else f"not met: it is {rounded(measured.value)}"


def _metric_row(evaluation: Evaluation, metric: str) -> dict[str, Any]:
    measured = evaluation.test[metric]
    others = [values.get(metric) for values in evaluation.baselines.values()]
    known = [measured.value, measured.low, measured.high, evaluation.train.get(metric), *others]
    digits = digits_of(known)
    return {
        "name": metric,
        "better": better(metric),
        "test": rounded(measured.value, digits),
        "interval": interval_told(measured, digits),
        "validation": rounded(evaluation.validation.get(metric), digits),
        "train": rounded(evaluation.train.get(metric), digits),
        "baselines": [rounded(value, digits) for value in others],
    }


def _by_class(confusion: Confusion) -> list[dict[str, Any]]:
    """Rows, recall and precision of each class; the least recalled first where they are too many for a matrix."""
    predicted = [sum(column) for column in zip(*confusion.counts, strict=True)]
    classes = [
        {
            "name": str(name),
            "rows": sum(row),
            "recall": row[i] / sum(row) if sum(row) else None,
            "precision": row[i] / predicted[i] if predicted[i] else None,
        }
        for i, (name, row) in enumerate(zip(confusion.classes, confusion.counts, strict=True))
    ]
    return classes if len(classes) <= CLASSES else sorted(classes, key=lambda one: (one["recall"] or 0, -one["rows"]))


def _slices(evaluation: Evaluation) -> list[Slice]:
    """The worst by the evaluation's metric first; those that do not define it last."""
    sign = -1.0 if better(evaluation.metric) == "lower" else 1.0

    def worse(one: Slice) -> tuple[bool, float]:
        value = one.metrics.get(evaluation.metric)
        return (value is None, 0.0 if value is None else sign * value)

    return sorted(evaluation.slices, key=worse)


def _folds(evaluation: Evaluation) -> dict[str, Any]:
    """A row for each metric: of several folds their mean and deviation, and then each fold, ten of them at most."""
    if (cross := evaluation.cross_validation) is None:
        return {}
    count = max(map(len, cross.metrics.values()), default=0)
    names = ["mean", "deviation", *map(str, range(1, min(count, _FOLDS) + 1))] if count > 1 else ["all rows"]
    return {"names": names, "rows": [_fold_row(metric, values) for metric, values in cross.metrics.items()]}


def _fold_row(metric: str, values: Sequence[float]) -> dict[str, Any]:
    digits = digits_of(values)
    told = [mean(values), stdev(values), *values[:_FOLDS]] if len(values) > 1 else values
    return {"metric": metric, "figures": [rounded(value, digits) for value in told]}


def _chosen(evaluation: Evaluation) -> str:
    """What the model has beside its pipeline, in words; empty where it has nothing."""
    has = {"calibration": "training.calibrate" in evaluation.parameters, "threshold": evaluation.threshold}
    return " and ".join(name for name, there in has.items() if there)


def _limits(manifest: Manifest, evaluation: Evaluation) -> Iterable[str]:
    """What a reader must know before using the scores."""
    yield from _meaning(manifest, evaluation)
    if evaluation.calibration and evaluation.calibration.method is None:
        yield "Scores were not calibrated: see the calibration curve before taking one for a rate."
    if any(measured.low is not None for measured in evaluation.test.values()):
        yield (
            "The intervals hold 95 % of a metric's values over resampled test rows. "
            + (
                "They take rows for independent: where several are of one customer, or one day, the truth is wider."
                if evaluation.resampled == "rows"
                else f"Whole {evaluation.resampled} were drawn, because their rows depend on each other."
            )
        )
    if evaluation.validation:
        yield "What was chosen on validation rows looks better on them than it is. Only test rows are free of that."
    if evaluation.importance:
        yield "Importance says what this model uses, not what causes the outcome. Columns that tell the same share it."
    if evaluation.slices:
        yield "The worst of many slices is bad by chance too: look at its rows before acting on it."
    end = page.instant(manifest.training.end)
    yield f"It was made from rows before {end}. Where later ones differ, `batchscore drift` says so."


def _meaning(manifest: Manifest, evaluation: Evaluation) -> Iterable[str]:
    match manifest.problem.task:
        case "binary":
            no, yes = manifest.classes
            yield f"The score is the probability of {yes}, as the pipeline sees it."
            if evaluation.threshold:
                at = rounded(evaluation.threshold.value)
                yield f"The prediction is {yes} from a score of {at} on, and {no} below it."
        case "multiclass":
            yield "Each score is the probability of its class; the prediction is a class."
        case "regression":
            yield f"The prediction is in the unit of {manifest.problem.target}. It has no interval of its own."
        case "clustering":
            yield "The prediction is a cluster. Clusters have no order, and another training may name them otherwise."
        case "anomaly":
            yield "A row is odd from a score of 0 on, the more the higher. Nobody has labelled what is odd."
