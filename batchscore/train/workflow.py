"""From a job's query, labels and features to a bundle that says how good it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs

import batchscore
from batchscore.errors import TrainingError, nearest
from batchscore.interval import Interval
from batchscore.job import Job
from batchscore.layout import Layout
from batchscore.model.bundle import FORMAT, Bundle, Manifest, Training, libraries_here
from batchscore.model.explain import Explainer, reason_types
from batchscore.model.features import Features, check_row_wise
from batchscore.model.metrics import evaluate
from batchscore.model.predictor import Predictor, StageError, in_threads
from batchscore.problem import REASON
from batchscore.profile import Profile
from batchscore.schema import Schema, TypeName, type_name
from batchscore.sources import Source, read_frame
from batchscore.trace import span
from batchscore.train.split import split

__all__ = ["check_columns", "promotable", "train"]

GOLDEN_ROWS = 200

# What reasons are relative to: enough rows for the mean of a column, few enough to explain in a moment.
_BACKGROUND_ROWS = 10_000

Step = Callable[[str], None]


def train(job: Job, features: Features, query: str, rows: Source, labels: Source, on_step: Step) -> Bundle:
    """Fit the job's pipeline on its training window and test it on the rows held out.

    Args:
        job: The job; it has `[training]` and `[labels]`.
        features: The job's features module, which the bundle freezes.
        query: Everything that decides which rows `rows` gives, as text, which the bundle freezes.
        rows: What the query gives.
        labels: The key and the target, one row for each row whose label is known.
        on_step: Told in words what is being done.

    Returns:
        The bundle, fitted on the rows that were not held out, as version 0: the registry numbers it.

    Raises:
        UsageError: The job cannot be trained.
        TrainingError: The rows, the features or the pipeline cannot give a bundle.
        SchemaMismatch, KeyViolation: See `read_frame`.
    """
    window = job.training_window()
    on_step(f"reading rows of {window}")
    with span("read"):
        given = _read_rows(job, rows, window)
    schema = Schema.of(given)
    on_step(f"checking that features() is row-wise on {given.height:,} rows")
    _guarded("features()", check_row_wise, features, given)
    on_step("reading labels")
    with span("read labels"):
        known = _read_labels(job, labels, window, schema)
    labelled = given.join(known, on=job.source.key, how="inner", maintain_order="left")
    if labelled.is_empty():
        raise TrainingError(
            f"none of the {given.height:,} rows of {window} has a label. Check that {labels.where} gives the same keys."
        )
    target_type = _target_type(job, labelled[job.problem.target])
    fit, test = split(labelled, job.training.split)  # type: ignore[union-attr]
    on_step(f"fitting on {fit.height:,} rows")
    with span("fit", {"batchscore.rows": fit.height}):
        predictor = _explained(job, _predictor(job, features, _fit(job, features, fit), target_type), fit)
    on_step(f"testing on {test.height:,} rows held out")
    held_out = schema.conform(test, "the rows held out")
    with span("test", {"batchscore.rows": test.height}):
        predictions = _predicted(predictor, held_out)
        if predictor.explainer is not None:
            predictor.explainer.check(features.transform(_some(held_out)))
    golden = held_out.gather_every(max(1, test.height // GOLDEN_ROWS)).head(GOLDEN_ROWS)
    return Bundle(
        manifest=Manifest(
            format=FORMAT,
            name=job.model.name,
            version=0,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            batchscore=batchscore.__version__,
            job=job.name,
            task=job.problem.task,
            target=job.problem.target,
            classes=predictor.classes,
            key=job.source.key,
            columns=tuple(schema.to_dicts()),
            output_types=dict(predictor.output_types),
            training=Training(
                start=window.start.isoformat(),
                end=window.end.isoformat(),
                rows=given.height,
                labelled=labelled.height,
                fitted=fit.height,
                tested=test.height,
            ),
            metrics=_metrics(predictor, test[job.problem.target], predictions),
            libraries=libraries_here(),
            files={},
        ),
        schema=schema,
        predictor=predictor,
        query=query,
        input_reference=Profile.of(given, Profile.layouts_of(given)),
        output_reference=Profile.of(predictions, {c.name: _output_layout(c) for c in predictions.iter_columns()}),
        golden_rows=golden,
        golden_predictions=_predicted(predictor, golden),
    )


def _read_rows(job: Job, source: Source, window: Interval) -> pl.DataFrame:
    def check(columns: Sequence[str]) -> None:
        check_columns(job, columns, source.where)

    given = read_frame(source, window, key=job.source.key, on_columns=check)
    if given.is_empty():
        raise TrainingError(f"{source.where} gives no row for {window}. Widen [training] from and to.")
    return given


def check_columns(job: Job, columns: Sequence[str], where: str) -> None:
    """Refuse rows whose columns are not those that the job is to be trained on.

    Args:
        job: The job.
        columns: Which columns the rows have.
        where: What gives them, for messages.

    Raises:
        TrainingError: The target is among them, or one that is carried or split by is not.
    """
    if job.problem.target in columns:
        raise TrainingError(
            f"{where} gives the target {job.problem.target!r} itself: the model would learn to read it. "
            "Leave it out of the rows; it comes from [labels]."
        )
    named = [("[output] carry", name) for name in job.output.carry]
    if job.training and job.training.split.column:
        named.append(("[training] split", job.training.split.column))
    for place, name in named:
        if name not in columns:
            guess = f" Did you mean {near}?" if (near := nearest(name, columns)) else ""
            raise TrainingError(
                f"{place} names {name!r}, which {where} does not give.{guess} It has: {', '.join(columns)}."
            )


def _read_labels(job: Job, source: Source, window: Interval, schema: Schema) -> pl.DataFrame:
    target = job.problem.target
    wanted = {name: schema[name].type for name in job.source.key} | {target: None}
    given = read_frame(source, window, key=job.source.key, columns=wanted)
    if target not in given.columns:
        raise TrainingError(f"{source.where} has no column {target!r}, the target. It has: {', '.join(given.columns)}.")
    keys = Schema(tuple(schema[name] for name in job.source.key)).conform(given, source.where)
    return keys.with_columns(given[target]).drop_nulls(target)


def _fit(job: Job, features: Features, rows: pl.DataFrame) -> Any:
    target = rows[job.problem.target]
    if job.problem.task != "regression" and target.n_unique() < 2:
        raise TrainingError(
            f"the rows to fit on have one class of {target.name} only: {target[0]!r}. Widen the training window."
        )
    inputs = _guarded("features()", features.transform, rows.drop(target.name))
    pipeline = _guarded("pipeline()", features.pipeline)
    with in_threads():
        return _guarded("pipeline().fit", lambda: pipeline.fit(inputs, target.to_numpy()))


def _guarded(what: str, call: Callable[..., Any], *args: Any) -> Any:
    """Call the user's code; its failure is an error of training's, with the cause kept."""
    try:
        return call(*args)
    except (TrainingError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise TrainingError(f"{what} fails on the training rows: {type(error).__name__}: {error}.") from error


def _predictor(job: Job, features: Features, pipeline: Any, target_type: TypeName) -> Predictor:
    task = job.problem.task
    if task == "regression":
        return Predictor(features, pipeline, task, (), {"prediction": "float"})
    if not hasattr(pipeline, "predict_proba"):
        raise TrainingError("pipeline() gives no probabilities. Wrap its last step in CalibratedClassifierCV.")
    types: dict[str, TypeName] = {"prediction": target_type}
    classes = tuple(np.asarray(pipeline.classes_).tolist())
    if task == "binary" and len(classes) != 2:
        raise TrainingError(f"the task is binary, but the target has classes {classes}. Say task = 'multiclass'.")
    names = ["score"] if task == "binary" else [f"score_{_plain(label)}" for label in classes]
    if len(set(names)) < len(names):
        raise TrainingError(f"two classes would share a score column: {', '.join(sorted(names))}. Rename a class.")
    return Predictor(features, pipeline, task, classes, types | dict.fromkeys(names, "float"))


def _explained(job: Job, predictor: Predictor, fit: pl.DataFrame) -> Predictor:
    """The same with an explainer, where the job asks for reasons."""
    top = job.problem.explain_top
    if not top:
        return predictor
    background = predictor.features.transform(_some(fit.drop(job.problem.target)))
    with in_threads():
        explainer = Explainer.fitted(predictor.pipeline, background, top)
    return replace(predictor, explainer=explainer, output_types={**predictor.output_types, **reason_types(top)})


def _some(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.gather_every(max(1, rows.height // _BACKGROUND_ROWS)).head(_BACKGROUND_ROWS)


def _target_type(job: Job, target: pl.Series) -> TypeName:
    name = type_name(target.dtype)
    allowed: tuple[TypeName, ...] = ("boolean", "integer", "string")
    if job.problem.task == "regression":
        allowed = ("integer", "float")
    if name not in allowed:
        raise TrainingError(
            f"the target {target.name!r} is {name}; a {job.problem.task} target is {' or '.join(allowed)}. "
            "Cast it in the labels."
        )
    if name == "float" and not target.is_finite().all():
        raise TrainingError(f"the target {target.name!r} is NaN or infinite in some labels. Leave them out, or NULL.")
    return name


def _plain(label: object) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "_" for c in str(label).lower())


def _predicted(predictor: Predictor, rows: pl.DataFrame) -> pl.DataFrame:
    try:
        predictions = predictor.predict(rows)
    except StageError as error:
        raise TrainingError(f"the {error.stage} fails on the rows held out: {error}.") from error
    for series in predictions.select(cs.float() - cs.starts_with(REASON)):
        if odd := series.len() - int(series.is_finite().sum()):
            raise TrainingError(f"the pipeline gives no finite {series.name} for {odd} of {rows.height} rows held out.")
    return predictions


def _metrics(predictor: Predictor, labels: pl.Series, predictions: pl.DataFrame) -> dict[str, float]:
    measured = evaluate(predictor.task, labels, predictions, predictor.classes)
    return {name: value for name, value in measured.items() if math.isfinite(value)}


def _output_layout(series: pl.Series) -> Layout:
    return Layout.uniform(0.0, 1.0, 200) if series.name.startswith("score") else Layout.of(series)


def promotable(job: Job, bundle: Bundle) -> str | None:
    """Why the bundle must not be promoted, in words; None when it reaches the job's success metric, or none is set."""
    success = job.problem.success
    if success is None:
        return None
    value = bundle.manifest.metrics.get(success.metric)
    if value is None:
        return f"{success.metric} is not defined on the held-out rows, whose labels have too few or unknown classes"
    return None if success.met_by(value) else f"{success.metric} is {value:.4f} on held-out rows, want {success}"
