"""Metrics from counted outcomes, beside those of the rows."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import numpy as np
import polars as pl
import pytest

from batchscore.model.metrics import evaluate
from batchscore.model.tally import Tally
from batchscore.problem import Task
from batchscore.schema import type_name

CLASSES: dict[Task, tuple[Any, ...]] = {"binary": (False, True), "multiclass": ("a", "b", "c"), "regression": ()}
TASKS = tuple(CLASSES)


def labelled(task: Task, n: int, seed: int = 0) -> tuple[pl.Series, pl.DataFrame]:
    """Labels, and answers that know something of them."""
    rng = np.random.default_rng(seed)
    if task == "regression":
        truth = rng.normal(10, 30, n)
        return pl.Series(truth), pl.DataFrame({"prediction": truth * 0.8 + rng.standard_t(3, n) * 5})
    if task == "binary":
        score = 1 / (1 + np.exp(-rng.normal(-2, 3, n)))
        return pl.Series(rng.random(n) < score), pl.DataFrame({"prediction": score >= 0.4, "score": score})
    scores = rng.dirichlet([1, 2, 0.5], n)
    names = np.array(CLASSES[task])
    truth = names[(rng.random((n, 1)) > scores.cumsum(1)).sum(1).clip(0, 2)]
    columns = {f"score_{name}": scores[:, i] for i, name in enumerate(names)}
    return pl.Series(truth), pl.DataFrame({"prediction": names[scores.argmax(1)], **columns})


@pytest.mark.parametrize("task", TASKS)
def test_metrics(task: Task) -> None:
    """They are those of the rows: what rests on labels and predictions exactly, the rest to a five hundredth."""
    truth, answers = labelled(task, 20_000)
    exact = evaluate(task, truth, answers, CLASSES[task])
    counted = Tally.of(task, CLASSES[task], truth, answers).metrics()

    assert exact.keys() == counted.keys()
    for name, value in exact.items():
        tolerance = (
            0.003
            if name in ("roc_auc", "average_precision", "brier", "log_loss", "roc_auc_macro", "median_error")
            else 1e-9
        )
        assert math.isclose(counted[name], value, rel_tol=tolerance), name


@pytest.mark.parametrize("task", TASKS)
def test_merge(task: Task) -> None:
    """Tallies of parts merge into the tally of all, in any order, and read back from JSON as they were."""
    truth, answers = labelled(task, 3_000)
    whole = Tally.of(task, CLASSES[task], truth, answers)
    parts = [Tally.of(task, CLASSES[task], truth[i::7], answers[i::7]) for i in range(7)]
    merged = reduce(Tally.merge, parts[::-1])
    label = type_name(whole.cells["prediction"].dtype)
    assert label

    assert whole.rows == merged.rows == 3_000
    for name, value in whole.metrics().items():
        assert math.isclose(merged.metrics()[name], value, rel_tol=1e-9), name
    assert whole.cells["count"].to_list() == merged.cells["count"].to_list()
    assert Tally.from_json(whole.to_json(), task, CLASSES[task], label).cells.equals(whole.cells)


def test_ties() -> None:
    """Of scores that have few values every metric is exact, and merged from parts it is the very same."""
    rng = np.random.default_rng(3)
    score = rng.choice(rng.random(20), 999)
    truth, answers = pl.Series(rng.random(999) < score), pl.DataFrame({"prediction": score >= 0.5, "score": score})
    exact = evaluate("binary", truth, answers, (False, True))
    parts = [Tally.of("binary", (False, True), truth[i::3], answers[i::3]) for i in range(3)]

    for counted in (Tally.of("binary", (False, True), truth, answers), reduce(Tally.merge, parts)):
        assert exact == pytest.approx(counted.metrics(), abs=1e-9)


def hard(task: Task, n: int) -> tuple[pl.Series, pl.DataFrame, tuple[Any, ...]]:
    """Labels and answers that are all different: eight classes, scores and errors over many orders of magnitude."""
    if task == "binary":
        return *labelled(task, n), CLASSES[task]
    rng = np.random.default_rng(1)
    if task == "regression":
        truth = np.exp(rng.normal(0, 5, n)) * rng.choice([-1, 1], n)
        prediction = truth * 0.7 + np.exp(rng.normal(0, 5, n)) * rng.choice([-1, 1], n)
        return pl.Series(truth), pl.DataFrame({"prediction": prediction}), ()
    names = np.array([f"class {i}" for i in range(8)])
    raw = rng.gamma(0.7, 1.0, (n, 8))
    scores = raw / raw.sum(1, keepdims=True)
    truth = names[(rng.random((n, 1)) > scores.cumsum(1)).sum(1).clip(0, 7)]
    prediction = names[(scores * rng.uniform(0.5, 1.5, 8)).argmax(1)]
    columns = {f"score_{name}": scores[:, i] for i, name in enumerate(names)}
    return pl.Series(truth), pl.DataFrame({"prediction": prediction, **columns}), tuple(names.tolist())


@pytest.mark.parametrize("task", TASKS)
def test_bounded(task: Task) -> None:
    """Of 200,000 rows that are all different there are no more than 8,192 cells, whose metrics are near the rows'."""
    truth, answers, classes = hard(task, 200_000)

    tally = Tally.of(task, classes, truth, answers)

    assert tally.cells.height <= (2_100 if task == "binary" else 8_192)
    assert len(tally.to_json()) < 900_000
    assert tally.rows == 200_000
    assert (tally.joined == 0) == (task == "binary")
    counted = tally.metrics()
    for name, value in evaluate(task, truth, answers, classes).items():
        rough = ("roc_auc", "average_precision", "brier", "ece", "bias", "roc_auc_macro", "median_error")
        off = 0.005 if name in rough or (task, name) == ("binary", "log_loss") else 1e-9
        assert math.isclose(counted[name], value, rel_tol=off), name


@pytest.mark.parametrize("task", TASKS)
def test_joined_bins_merge(task: Task) -> None:
    """What parts are joined to does not show: they merge in any order into the cells of all rows, through JSON too."""
    truth, answers, classes = hard(task, 30_000)
    whole = Tally.of(task, classes, truth, answers)
    slices = [slice(0, 300), slice(300, 20_000), slice(20_000, 21_000), slice(21_000, 30_000)]
    parts = [Tally.of(task, classes, truth[each], answers[each]) for each in slices]
    label = type_name(answers["prediction"].dtype)
    assert label
    read = [Tally.from_json(each.to_json(), task, classes, label) for each in parts]
    keys = [name for name in whole.cells.columns if whole.cells[name].dtype != pl.Float64]

    for merged in (reduce(Tally.merge, read), reduce(Tally.merge, parts[::-1])):
        assert merged.joined == whole.joined
        assert merged.cells.select(keys).equals(whole.cells.select(keys))
    if task != "binary":
        assert len({each.joined for each in parts}) > 1


def test_a_label_that_is_no_class() -> None:
    """It counts as wrong, and there is neither a ROC area nor a log loss, as with the rows."""
    truth, answers = labelled("multiclass", 500)
    truth = pl.concat([truth[:-1], pl.Series(["new"])])
    exact = evaluate("multiclass", truth, answers, CLASSES["multiclass"])

    counted = Tally.of("multiclass", CLASSES["multiclass"], truth, answers).metrics()

    assert counted == pytest.approx({name: value for name, value in exact.items() if not math.isnan(value)})
    assert "roc_auc_macro" not in counted


def test_each_prediction_once() -> None:
    """Each row is counted once with the score of the class that it has predicted, rightly or wrongly."""
    truth, answers = labelled("multiclass", 500)
    cells = Tally.of("multiclass", CLASSES["multiclass"], truth, answers).cells

    for place, label in enumerate("abc"):
        of_class = cells.filter(pl.col("class") == place, pl.col("prediction") == label)
        predicted = answers.filter(pl.col("prediction") == label)
        right = of_class.filter(pl.col("truth").is_not_null())
        assert of_class["count"].sum() == predicted.height
        assert of_class["score"].sum() == pytest.approx(predicted[f"score_{label}"].sum())
        assert right["count"].sum() == ((truth == label) & (answers["prediction"] == label)).sum()


@pytest.mark.parametrize("task", TASKS)
def test_resampled(task: Task) -> None:
    """Samples scatter about the metric as the metric itself scatters over other rows of the same kind."""
    tallies = [Tally.of(task, CLASSES[task], *labelled(task, 500, seed)) for seed in range(40)]
    names = {"binary": ("roc_auc", "brier"), "multiclass": ("accuracy", "log_loss", "roc_auc_macro")}
    for name in names.get(task, ("mae",)):
        real = np.std([each.metrics()[name] for each in tallies])
        drawn = np.std(tallies[0].resampled()[name])

        assert 0.6 * real < drawn < 1.7 * real


@pytest.mark.parametrize("task", TASKS)
def test_nothing(task: Task) -> None:
    """Without a row there is no metric, and merging it changes nothing."""
    truth, answers = labelled(task, 50)
    nothing = Tally.of(task, CLASSES[task], truth[:0], answers[:0])
    some = Tally.of(task, CLASSES[task], truth, answers)

    assert {} == nothing.metrics() == nothing.resampled()
    assert some.merge(nothing).cells.equals(some.cells)
