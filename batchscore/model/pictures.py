"""The charts of a model card, by section."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from batchscore import charts
from batchscore.charts import Axis, Bar, Series
from batchscore.model.bundle import Manifest
from batchscore.model.evaluation import Curve, Evaluation
from batchscore.model.words import held_out_told, importance_told
from batchscore.problem import Problem
from batchscore.rounding import digits_of, rounded

__all__ = ["CLASSES", "pictures"]

CLASSES = 30
"""Of more than these a confusion matrix cannot be read, and is not drawn."""

_BARS = 25
_HALF = 0.5


def pictures(manifest: Manifest, evaluation: Evaluation) -> Iterable[tuple[str, Sequence[str]]]:
    """The charts of each section that has some."""
    yield "headline", list(_headline(evaluation, manifest.problem))
    yield "confusion", list(_confusion(evaluation))
    yield "ranking", [*_ranking(manifest, evaluation), *_calibration(manifest, evaluation)]
    yield "residuals", list(_residuals(manifest, evaluation))
    sizes = [Bar(str(name), rows, f"{rows:,}") for name, rows in evaluation.sizes.items()]
    yield (
        "sizes",
        [charts.bars("Cluster sizes", "Test rows by cluster.", Axis("test rows", low=0), sizes)] if sizes else [],
    )
    yield "importance", list(_importance(evaluation))
    yield "curves", [_curve(evaluation, curve) for curve in evaluation.curves if curve.points]


def _headline(evaluation: Evaluation, problem: Problem) -> Iterable[str]:
    measured, metric = evaluation.test.get(evaluation.metric), evaluation.metric
    if measured is None:
        return
    others = {name: values[metric] for name, values in evaluation.baselines.items() if metric in values}
    told = ", ".join([f"this model {rounded(measured.value)}", *(f"{name} {rounded(v)}" for name, v in others.items())])
    rows = [Bar("this model", measured.value, rounded(measured.value), measured.low, measured.high)]
    rows += [Bar(name, value, rounded(value)) for name, value in others.items()]
    bar, mark = problem.success, None
    if bar is not None and bar.metric == metric:
        bound = bar.at_least if bar.at_least is not None else bar.at_most or 0.0
        mark = (bound, f"the bar, {rounded(bound)}")
    yield charts.dots(f"{metric} beside the baselines", told, Axis(f"{metric} on test rows"), rows, mark)


def _confusion(evaluation: Evaluation) -> Iterable[str]:
    confusion = evaluation.confusion
    if confusion and len(confusion.classes) <= CLASSES:
        told = "Test rows: actual classes down, predicted ones across; the share of its row shades a cell."
        yield charts.matrix("Confusion matrix", told, [str(name) for name in confusion.classes], confusion.counts)


def _ranking(manifest: Manifest, evaluation: Evaluation) -> Iterable[str]:
    point, rate = None, None
    if (confusion := evaluation.confusion) and len(confusion.classes) == 2:
        (kept, false), (missed, found) = confusion.counts
        if kept + false and missed + found:
            rate = (missed + found) / (kept + false + missed + found)
            point = (
                false / (kept + false),
                found / (missed + found),
                found / (found + false) if found + false else None,
            )
    at = f"at {evaluation.threshold.value:.4g}" if evaluation.threshold else "as predicted"
    if evaluation.roc:
        marked = [Series(at, [point[:2]], "dots")] if point else []
        area = evaluation.test.get("roc_auc")
        yield charts.plot(
            "ROC curve",
            f"Recall over the false positive rate{f'; the area is {rounded(area.value)}' if area else ''}.",
            Axis("false positive rate", 0, 1),
            Axis("recall · ROC curve", 0, 1),
            [Series("chance", [(0, 0), (1, 1)], "rule"), Series("", evaluation.roc), *marked],
        )
    if evaluation.precision_recall:
        marked = [Series(at, [(point[1], point[2])], "dots")] if point and point[2] is not None else []
        chance = [Series("chance", [(0, rate), (1, rate)], "rule")] if rate is not None else []
        yield charts.plot(
            "Precision-recall curve",
            f"Precision over recall of {manifest.classes[1]}.",
            Axis("recall", 0, 1),
            Axis("precision", 0, 1),
            [*chance, Series("", evaluation.precision_recall), *marked],
        )


def _calibration(manifest: Manifest, evaluation: Evaluation) -> Iterable[str]:
    if not evaluation.calibration or not (bins := evaluation.calibration.bins):
        return
    # A rare class has no score near 1, and what there is would lie in a corner.
    most = max(max(one.score, one.observed) for one in bins)
    end = 1.0 if most > _HALF else 1.1 * most or 1.0
    yield charts.plot(
        "Calibration curve",
        f"Share of {manifest.classes[1]} over the mean score, in {len(bins)} bins of "
        f"{min(one.rows for one in bins):,} to {max(one.rows for one in bins):,} rows.",
        Axis("mean score of the bin", 0, end),
        Axis(f"share of {manifest.classes[1]} · calibration", 0, end),
        [
            Series("exact", [(0, 0), (end, end)], "rule"),
            Series("", [(one.score, one.observed) for one in bins], "points", [one.rows for one in bins]),
        ],
    )


def _residuals(manifest: Manifest, evaluation: Evaluation) -> Iterable[str]:
    if not (points := evaluation.residuals):
        return
    low, high = min(prediction for prediction, _ in points), max(prediction for prediction, _ in points)
    yield charts.plot(
        "Target over prediction",
        f"{len(points):,} test rows; on the line the prediction is right.",
        Axis("prediction"),
        Axis(f"{manifest.problem.target}, actual"),
        [Series("exact", [(low, low), (high, high)], "rule"), Series("", points, "dots")],
    )
    yield charts.plot(
        "Residuals over prediction",
        "The same rows; above the line the prediction is too low.",
        Axis("prediction"),
        Axis("actual minus prediction"),
        [
            Series("exact", [(low, 0), (high, 0)], "rule"),
            Series("", [(prediction, actual - prediction) for prediction, actual in points], "dots"),
        ],
    )


def _importance(evaluation: Evaluation) -> Iterable[str]:
    if not (first := evaluation.importance[:_BARS]):
        return
    digits = digits_of([one.mean for one in first])
    rows = [
        Bar(
            one.column,
            one.mean,
            f"{rounded(one.mean, digits)} ± {rounded(one.deviation, digits)}",
            one.mean - one.deviation,
            one.mean + one.deviation,
        )
        for one in first
    ]
    told = f"{importance_told(evaluation, 1)}."
    yield charts.bars("Permutation importance", told, Axis(f"{evaluation.metric} lost when shuffled"), rows)


def _curve(evaluation: Evaluation, curve: Curve) -> str:
    numbers = [one.at for one in curve.points if isinstance(one.at, (int, float))]
    over = "training rows" if curve.over == "rows" else curve.over
    if len(numbers) == len(curve.points):
        across = Axis(over, log=min(numbers) > 0 and max(numbers) >= 1000 * min(numbers))
        places = numbers
    else:
        across = Axis(over, names=[str(one.at) for one in curve.points])
        places = [float(i) for i in range(len(curve.points))]
    held_out = held_out_told(evaluation).partition(" ")[0]
    lines = {"train": [one.train for one in curve.points], held_out: [one.validation for one in curve.points]}
    return charts.plot(
        f"{curve.metric} over {over}",
        "; ".join(f"{name} from {rounded(values[0])} to {rounded(values[-1])}" for name, values in lines.items()),
        across,
        Axis(curve.metric),
        # The line of rows held out is what counts, and is the whole one.
        [Series(name, list(zip(places, lines[name], strict=True)), "points") for name in (held_out, "train")],
    )
