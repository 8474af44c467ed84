"""From a job's query, labels and features to a bundle that says how good it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import polars as pl

import batchscore
from batchscore.interval import Interval
from batchscore.job import Job
from batchscore.layout import Layout
from batchscore.logs import Event, log
from batchscore.model.bundle import FORMAT, Bundle, Manifest, Training, libraries_here
from batchscore.model.compiled import compiled
from batchscore.model.ensemble import NotCompiled, has_trees
from batchscore.model.evaluation import Evaluation, Finding, Threshold
from batchscore.model.explain import Explainer, reason_types, refuse_unexplainable
from batchscore.model.features import Features, check_row_wise
from batchscore.model.predictor import Predictor, in_threads
from batchscore.model.sample import HASH, lowest, sampled_columns
from batchscore.model.tally import Tally
from batchscore.profile import Profile
from batchscore.schema import Schema
from batchscore.sources import Source
from batchscore.trace import span
from batchscore.train.audit import audit, refuse
from batchscore.train.evaluate import evaluate
from batchscore.train.explore import Asked, explore, model_is_searched
from batchscore.train.fit import (
    Part,
    baselines_of,
    calibrated,
    fitted,
    guarded,
    part_of,
    pipeline_of,
    predicted,
    raw_times,
    refuse_fatal,
    threshold,
    unfitted,
)
from batchscore.train.rivals import Rival, champion_of, learned_until
from batchscore.train.rows import read_rows, with_labels
from batchscore.train.split import Parts, split

__all__ = ["promotable", "train"]

GOLDEN_ROWS = 200

# What reasons are relative to: enough rows for the mean of a column, few enough to explain in a moment.
_BACKGROUND_ROWS = 10_000

# As many rows as a chunk usually has.
_SPEED_ROWS = 50_000

Step = Callable[[str], None]


def train(
    job: Job,
    features: Features,
    query: str,
    rows: Source,
    labels: Source | None,
    on_step: Step,
    asked: Asked | None = None,
    champion: Bundle | None = None,
    window: Interval | None = None,
) -> Bundle:
    """Fit the job's pipeline on its training window, choose on validation rows, and test on the rows held out.

    Rows are held out before anything learns. The pipeline, its search and its baselines are fitted on training rows
    alone; the threshold and the calibration are chosen on validation rows; test rows are measured on, once.

    Args:
        job: The job; it has `[training]`.
        features: The job's features module, which the bundle freezes.
        query: Everything that decides which rows `rows` gives, as text, which the bundle freezes.
        rows: What the query gives.
        labels: The key and the target, one row for each row whose label is known; None for a task without labels.
        on_step: Told in words what is being done.
        asked: Which curves are wanted.
        champion: The version in use, to be measured on the same test rows.
        window: Which rows to learn from; `[training]` says it where None.

    Returns:
        The bundle, fitted on the training rows, as version 0: the registry numbers it.

    Raises:
        UsageError: The job cannot be trained.
        TrainingError: The rows, the features or the pipeline cannot give a bundle, or the audit refuses them.
        SchemaMismatch, KeyViolation: See `read_frame`.
    """
    window = window or job.training_window()
    asked = asked or Asked()
    pipeline = pipeline_of(features)
    asked.check(job, pipeline)
    if job.problem.explain_top and not model_is_searched(job, features, pipeline):
        refuse_unexplainable(pipeline)
    on_step(f"reading rows of {window}")
    with span("read"):
        given = read_rows(job, rows, window)
    schema = Schema.of(given)
    on_step(f"checking that features() is row-wise on {given.height:,} rows")
    guarded("features()", check_row_wise, features, given, quote=job.source.quotable)
    labelled = given
    if labels is not None:
        on_step("reading labels")
        with span("read labels"):
            labelled = with_labels(job, labels, window, schema, given)
        if unlabelled := given.height - labelled.height:
            on_step(f"leaving out {unlabelled:,} of {given.height:,} rows, which have no label")
    parts = _split(job, labelled)
    on_step(f"looking at {parts.train.height:,} rows to fit on")
    findings = _audited(job, parts)
    predictor = unfitted(job, features, _target(job, parts.train))
    train, validation, test = (
        _part(job, features, schema, part) for part in (parts.train, parts.validation, parts.test)
    )
    refuse_fatal(predictor, train.features)
    if raw := raw_times(train.features):
        on_step(f"of the features, {raw}, unless the pipeline does so")
    tried = explore(job, predictor, parts.train, train, validation, asked, on_step)
    on_step(f"fitting on {len(train):,} rows")
    with span("fit", {"batchscore.rows": len(train)}):
        predictor = fitted(tried.predictor, train)
        simpler = baselines_of(predictor, train)
    predictor, chosen = _choose(job, predictor, validation)
    # With a threshold and a calibration of their own, or ours would be better by these alone.
    rivals = {name: Rival(_choose(job, each, validation)[0]) for name, each in simpler.items()}
    if champion is not None and (rival := champion_of(job, champion, schema, test)):
        rivals["champion"] = rival
    predictor = _explained(job, predictor, train, test)
    on_step(f"testing on {len(test):,} rows held out")
    with span("test", {"batchscore.rows": len(test)}):
        evaluation, predictions = evaluate(
            job,
            predictor,
            rivals,
            train,
            validation,
            test,
            findings=findings,
            threshold=chosen,
            cross_validation=tried.cross_validation,
            search=tried.search,
            curves=tried.curves,
        )
        layouts = Profile.layouts_of(given, job.source.private)
        answers = {
            series.name: _output_layout(job, series, predictor.threshold) for series in predictions.iter_columns()
        }
    golden = test.rows.gather_every(max(1, len(test) // GOLDEN_ROWS)).head(GOLDEN_ROWS)
    bundle = Bundle(
        manifest=_manifest(job, predictor, schema, window, given, labelled, train, validation, evaluation),
        schema=schema,
        predictor=predictor,
        query=query,
        input_reference=Profile.of(given, layouts),
        output_reference=Profile.of(predictions, answers),
        golden_rows=golden,
        golden_predictions=predicted(predictor, golden),
        evaluation=evaluation,
        tested=_tested(predictor, test, predictions),
        sample=_sample(job, given, layouts),
    )
    return _compiled(job, bundle, test, on_step)


def _compiled(job: Job, bundle: Bundle, test: Part, on_step: Step) -> Bundle:
    """The bundle with its trees compiled, where the job wants that and it can be; what became of it is told."""
    if not job.model.compile or not has_trees(bundle.predictor.pipeline):
        return bundle
    try:
        with span("compile"):
            bundle = compiled(bundle, test.some(_SPEED_ROWS).rows)
    except NotCompiled as error:
        on_step(f"its trees are not compiled: {error}")
    else:
        on_step(f"its trees are compiled for {bundle.built}")
    return bundle


def _sample(job: Job, given: pl.DataFrame, layouts: Mapping[str, Layout]) -> pl.DataFrame | None:
    count, key = job.drift.sample, job.source.key
    return lowest(given, sampled_columns(layouts, key), key, count).drop(HASH) if count else None


def _split(job: Job, labelled: pl.DataFrame) -> Parts:
    classes = job.problem.task in ("binary", "multiclass")
    return split(labelled, job.training.split, job.problem.target if classes else None)  # type: ignore[union-attr]


def _audited(job: Job, parts: Parts) -> list[Finding]:
    findings = audit(job, parts.train)
    suspects = [finding for finding in findings if finding.suspect]
    log.info(
        Event.AUDIT,
        rows=parts.train.height,
        findings=len(findings),
        suspects=[{"check": each.check, "column": each.column, "value": each.value} for each in suspects],
    )
    refuse(findings, job.training.audit)  # type: ignore[union-attr]
    return findings


def _target(job: Job, rows: pl.DataFrame) -> pl.Series | None:
    return rows[job.problem.target] if job.problem.supervised else None


def _part(job: Job, features: Features, schema: Schema, rows: pl.DataFrame) -> Part:
    target = _target(job, rows)
    return part_of(job, features, schema.conform(rows, "the training rows"), target)


def _choose(job: Job, predictor: Predictor, validation: Part) -> tuple[Predictor, Threshold | None]:
    """Calibrate, and then choose the threshold, on validation rows; what the job does not ask for stays as it is."""
    recipe = job.training
    if recipe is not None and recipe.calibrate is not None:
        predictor = calibrated(predictor, recipe.calibrate, validation)
    if recipe is None or recipe.threshold is None:
        return predictor, None
    chosen = threshold(predictor, recipe.threshold, validation)
    return replace(predictor, threshold=chosen.value), chosen


def _manifest(
    job: Job,
    predictor: Predictor,
    schema: Schema,
    window: Interval,
    given: pl.DataFrame,
    labelled: pl.DataFrame,
    train: Part,
    validation: Part,
    evaluation: Evaluation,
) -> Manifest:
    return Manifest(
        format=FORMAT,
        name=job.model.name,
        version=0,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        batchscore=batchscore.__version__,
        job=job.name,
        problem=job.problem,
        classes=predictor.classes,
        threshold=predictor.threshold,
        key=job.source.key,
        columns=tuple(schema.to_dicts()),
        output_types=dict(predictor.output_types),
        training=Training(
            start=window.start.isoformat(),
            end=window.end.isoformat(),
            rows=given.height,
            labelled=labelled.height,
            fitted=evaluation.rows["train"],
            validated=evaluation.rows["validation"],
            tested=evaluation.rows["test"],
            learned_until=learned_until(job, train.rows, validation.rows),
        ),
        metrics={name: measured.value for name, measured in evaluation.test.items()},
        libraries=libraries_here(),
        files={},
    )


def _tested(predictor: Predictor, test: Part, predictions: pl.DataFrame) -> Tally | None:
    return None if test.target is None else Tally.of(predictor.task, predictor.classes, test.target, predictions)


def _explained(job: Job, predictor: Predictor, train: Part, test: Part) -> Predictor:
    """The predictor with what says why, where the job asks for reasons; that they add up is seen on test rows too."""
    top = job.problem.explain_top
    if not top:
        return predictor
    with in_threads():
        explainer = Explainer.fitted(
            predictor.pipeline, train.some(_BACKGROUND_ROWS).features, top, quote=predictor.quote
        )
        explainer.check(test.some(_BACKGROUND_ROWS).features, quote=predictor.quote)
    return replace(predictor, explainer=explainer, output_types={**predictor.output_types, **reason_types(top)})


def _output_layout(job: Job, series: pl.Series, threshold: float | None) -> Layout:
    probability = series.name.startswith("score") and job.problem.task != "anomaly"
    return Layout.uniform(0.0, 1.0, 200, threshold) if probability else Layout.of(series)


def promotable(job: Job, bundle: Bundle) -> str | None:
    """Why the bundle must not be promoted, in words; None when it reaches every bar that the job sets."""
    missed = [missed for missed in (_success(job, bundle), _latency(job, bundle)) if missed]
    return "; ".join(missed) or None


def _success(job: Job, bundle: Bundle) -> str | None:
    success = job.problem.success
    if success is None:
        return None
    value = bundle.manifest.metrics.get(success.metric)
    if value is None:
        return f"{success.metric} is not defined on the held-out rows, whose labels have too few or unknown classes"
    return None if success.met_by(value) else f"{success.metric} is {value:.4f} on held-out rows, want {success}"


def _latency(job: Job, bundle: Bundle) -> str | None:
    most, took = job.problem.max_latency_us_per_row, bundle.evaluation.latency_us_per_row
    return f"a row takes {took:.1f} µs, want at most {most:g}" if most is not None and took > most else None
