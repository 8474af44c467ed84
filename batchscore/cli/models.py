"""`batchscore models`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import polars as pl
import typer

from batchscore.cli.found import show_evaluation
from batchscore.cli.render import Cell, Format, instant, on_terminal, print_json, say, show, show_error
from batchscore.cli.session import Session
from batchscore.errors import BatchscoreError, BundleCorrupt, BundleNotFound, BundleUntrusted, UsageError
from batchscore.interval import Interval, age_of
from batchscore.logs import Event, log
from batchscore.model.built import BUILT, Built, architectures_in
from batchscore.model.bundle import Manifest
from batchscore.model.evaluation import Evaluation
from batchscore.model.scorer import check_golden
from batchscore.model.trust import SIGNATURE, write_keys
from batchscore.model.unpickle import names_in
from batchscore.train import compare as comparing

__all__ = [
    "compare",
    "compile_",
    "keygen",
    "list_",
    "promote",
    "prune",
    "roll_back",
    "show_model",
    "verify",
    "write_card",
]

# How fast it is, is measured on the golden rows, again and again up to so many.
_COMPILED_ROWS = 50_000
_UNVERIFIED = "a key that is not verified here: BATCHSCORE_VERIFY_KEYS is not set"
P = ParamSpec("P")
T = TypeVar("T")


def list_(session: Session, format_: Format) -> None:
    """Print every version of every model; a corrupt one is listed too, told on stderr, and gives the exit code."""
    registry = session.registry
    rows: list[dict[str, Any]] = []
    failures: list[BatchscoreError] = []
    for name in registry.names():
        aliases = _attempt(failures, registry.aliases, name)
        for version in registry.versions(name):
            manifest = _attempt(failures, registry.manifest, name, version)
            rows.append(
                {"name": name, "version": version, "aliases": _told_aliases(aliases, version), **_facts(manifest)}
            )
    if format_ == "json":
        print_json(rows)
    else:
        told = [row | {"metrics": _told_metrics(row["metrics"])} for row in rows]
        show(told, format_, empty=f"{registry} holds no model. Train one: batchscore train <job>")
    for failure in failures:
        show_error(failure)
    if failures:
        raise typer.Exit(failures[0].exit_code)


def _attempt(
    failures: list[BatchscoreError], call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T | BatchscoreError:
    """What the call gives, or its failure, which is kept."""
    try:
        return call(*args, **kwargs)
    except BatchscoreError as error:
        failures.append(error)
        return error


def _told_aliases(aliases: Mapping[str, int] | BatchscoreError, version: int) -> str | None:
    if isinstance(aliases, BatchscoreError):
        return None
    return ", ".join(sorted(alias for alias, v in aliases.items() if v == version))


def _told_metrics(metrics: Mapping[str, float] | None) -> str | None:
    return None if metrics is None else ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items())


def _facts(manifest: Manifest | BatchscoreError) -> dict[str, Any]:
    if isinstance(manifest, BatchscoreError):
        told: dict[type[BatchscoreError], str] = {BundleCorrupt: "corrupt", BundleUntrusted: "untrusted"}
        status = told.get(type(manifest), "unreadable")
        return {"status": status} | dict.fromkeys(("task", "metrics", "trained_rows", "created_at", "digest"))
    return {
        "status": "ok",
        "task": manifest.problem.task,
        "metrics": manifest.metrics,
        "trained_rows": manifest.training.fitted,
        "created_at": datetime.fromisoformat(manifest.created_at),
        "digest": manifest.digest[:12],
    }


def show_model(session: Session, name: str, use: str, format_: Format) -> None:
    """Print what a version says of itself, in short what training found out about it, and how its aliases moved."""
    found = session.registry.verified(name, _resolved(session, "show", name, use))
    manifest, files, key = found.manifest, found.files, found.signed_by
    evaluation = Evaluation.model_validate_json(files["evaluation.json"])
    if format_ == "json":
        told = manifest.model_dump(mode="json") | {
            "signed_by": key,
            "compiled": architectures_in(files),
            "evaluation": evaluation.model_dump(mode="json"),
        }
        print(json.dumps(told, indent=2))
        return
    training = manifest.training
    facts = {
        "version": manifest.version,
        "digest": manifest.digest,
        "signed_by": f"key {key}" if key else _UNVERIFIED if SIGNATURE in files else "nobody",
        "created_at": instant(datetime.fromisoformat(manifest.created_at)),
        "job": manifest.job,
        "objective": manifest.problem.objective,
        "task": f"{manifest.problem.task} on {manifest.problem.target}".removesuffix(" on "),
        "classes": ", ".join(map(str, manifest.classes)),
        **({"compiled": str(Built.model_validate_json(files[BUILT]))} if BUILT in files else {}),
        **({"score": f"the probability of {manifest.classes[1]}"} if manifest.problem.task == "binary" else {}),
        "key": ", ".join(manifest.key),
        "training": " to ".join(instant(datetime.fromisoformat(end)) for end in (training.start, training.end)),
        "rows": f"{training.rows:,}, of which labelled {training.labelled:,}",
        "fitted, validated and tested": f"{training.fitted:,}, {training.validated:,} and {training.tested:,}",
        **{f"library {library}": version for library, version in manifest.libraries.items()},
    }
    show([{"what": what, "value": str(value)} for what, value in facts.items()], title=name)
    columns = [
        {"column": c["name"], "type": c["type"], "nullable": c["nullable"], "nan": c["nan"]} for c in manifest.columns
    ]
    print()
    show(columns, title="input columns")
    print()
    show_evaluation(f"{name} version {manifest.version}", evaluation)
    moves: list[dict[str, Cell]] = [
        {
            "alias": move.alias,
            "from": move.before,
            "to": move.after,
            "at": instant(datetime.fromisoformat(move.at)),
            "by": move.by,
            "how": "rollback" if move.back else "promote",
        }
        for move in session.registry.history(name)
    ]
    if moves:
        print()
        show(moves, title="aliases, as they moved")


def _resolved(session: Session, command: str, name: str, use: str) -> int:
    """The version meant; where an alias is not set yet, as when a first version missed the bar, the newest is named."""
    registry = session.registry
    try:
        return registry.resolve(name, use)
    except BundleNotFound as error:
        versions = registry.versions(name)
        if not versions or use.isdecimal():
            raise
        raise BundleNotFound(f"{error} For the newest: batchscore models {command} {name} {versions[-1]}.") from None


def write_card(session: Session, name: str, use: str, to: Path | None) -> None:
    """Write the page out of the bundle, whose every file is verified; over a file that is there.

    Raises:
        UsageError: The file cannot be written.
    """
    found = session.registry.verified(name, _resolved(session, "card", name, use))
    card = found.files["card.html"]
    if to == Path("-"):
        sys.stdout.buffer.write(card)
        return
    path = to or Path(f"{found.manifest.name}-{found.manifest.version}.html")
    try:
        path.write_bytes(card)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}. Give another file with --to.") from error
    print(path)


def compare(
    session: Session, name: str, uses: tuple[str, str], window: tuple[str | None, str | None], format_: Format
) -> None:
    """Print the metrics of two versions on the same rows, by default those behind what either learned from.

    Raises:
        UsageError: The window holds no interval, or the versions' job cannot be compared on labels.
        GoldenRowsDiffer: A version does not give here what it gave at training.
    """
    # What the features modules inside the bundles print is not the answer.
    with redirect_stdout(sys.stderr):
        one, other = (session.load(name, use) for use in uses)
        for bundle in (one, other):
            check_golden(bundle)
    job = session.job(other.manifest.job)
    if not job.problem.supervised:
        raise UsageError(f"a {job.problem.task} task has no labels to compare versions by.")
    first, last = job.calendar.window(*window)
    learned = max(datetime.fromisoformat(each.manifest.training.end) for each in (one, other))
    begin, end = first or learned, last or job.calendar.containing(session.now).start
    if begin >= end:
        raise UsageError(f"there is no row between {instant(begin)} and {instant(end)}: give --from and --to.")
    with redirect_stdout(sys.stderr):
        found = comparing.compare(
            job, one, other, session.source(job, job.source), session.labels(job), Interval(begin, end)
        )
    rows: list[dict[str, Cell]] = [
        {
            "metric": metric,
            f"version {one.version}": found.one[metric].value if metric in found.one else None,
            f"version {other.version}": measured.value,
            "better by": lead.value if (lead := found.ahead.get(metric)) else None,
            "low": lead.low if lead else None,
            "high": lead.high if lead else None,
        }
        for metric, measured in found.other.items()
    ]
    title = f"{found.rows:,} rows with a label, from {instant(begin)} to {instant(end)}"
    show(rows, format_, title=title)
    if format_ == "table" and begin < learned:
        print(f"Versions of rows up to {instant(learned)} have learned from some of these: that flatters them.")


def verify(session: Session, name: str, use: str) -> None:
    """Check signature and digests, list what the pipeline is made of, load it, and score the golden rows."""
    registry = session.registry
    version = registry.resolve(name, use)
    found = registry.verified(name, version)
    names = names_in(found.files["pipeline.joblib"], f"{found}")
    say(f"{found} names {', '.join(names)}")
    bundle = session.load(name, version)
    check_golden(bundle)
    log.info(
        Event.BUNDLE_LOADED,
        model=name,
        version=version,
        digest=bundle.digest,
        golden_rows=bundle.golden_rows.height,
        names=names,
        signed_by=bundle.signed_by,
    )
    say(f"{bundle}: files, digest and all {bundle.golden_rows.height} golden rows agree ({bundle.digest[:12]})")
    if not bundle.compiled:
        return
    from batchscore.model.compiled import put_to_use

    trusted = bundle.signed_by is not None or not registry.trust.keys
    if put_to_use(bundle, trusted=trusted).predictor.compiled:
        say(f"{bundle}: its compiled trees give what the original gives")


def compile_(session: Session, name: str, use: str) -> None:
    """Register a version once more, with its trees compiled for every architecture that a compiler is here for.

    Raises:
        UsageError: It cannot be compiled here.
    """
    from batchscore.model.compiled import compiled
    from batchscore.model.ensemble import CompiledAlready, NotCompiled

    registry = session.registry
    bundle = session.load(name, _resolved(session, "compile", name, use))
    check_golden(bundle)
    before = tuple(bundle.compiled)
    often = _COMPILED_ROWS // bundle.golden_rows.height
    try:
        with redirect_stdout(sys.stderr):
            bundle = compiled(bundle, pl.concat([bundle.golden_rows] * often))
    except CompiledAlready as error:
        same = {"model": name, "version": bundle.version, "of": bundle.version, "digest": bundle.digest}
        log.info(Event.BUNDLE_COMPILED, **same, made=[])
        say(f"nothing to do: {bundle}: {error}")
        return
    except NotCompiled as error:
        raise UsageError(f"{bundle} cannot be compiled: {error}. Its original scores as it did.") from error
    version = session.patience().persist(lambda: registry.register_compiled(name, bundle.version, bundle))
    manifest = registry.manifest(name, version)
    made = sorted(set(bundle.compiled) - set(before))
    log.info(Event.BUNDLE_COMPILED, model=name, version=version, of=bundle.version, digest=manifest.digest, made=made)
    say(
        f"{name} version {version} is version {bundle.version} with its trees compiled for {bundle.built}. "
        f"To use it: batchscore models promote {name} {version}"
    )


def promote(session: Session, name: str, version: int, alias: str) -> None:
    """Point an alias at a version that is sound.

    Raises:
        UsageError: The alias reads as a version number.
    """
    if alias.isdecimal():
        raise UsageError(f"{alias!r} cannot be an alias: it reads as a version. Take a word, such as champion.")
    manifest = session.registry.manifest(name, session.registry.resolve(name, version))
    session.registry.promote(name, manifest.version, alias)
    log.info(Event.BUNDLE_PROMOTED, model=name, version=version, alias=alias)
    if on_terminal():
        say(f"{name} version {version} is now {alias}")


def roll_back(session: Session, name: str, alias: str) -> None:
    """Move an alias back to the version it stood for before, when that is sound."""
    registry = session.registry
    left = registry.resolve(name, alias)
    version = registry.before(name, alias)
    registry.manifest(name, version)
    registry.roll_back(name, alias, version)
    log.info(Event.BUNDLE_PROMOTED, model=name, version=version, alias=alias, rolled_back_from=left)
    if on_terminal():
        say(f"{name} version {version} is {alias} again, in the place of version {left}")


def prune(session: Session, name: str, keep: int, older_than: str | None, *, dry_run: bool) -> None:
    """Remove old versions that no alias stands for or goes back to.

    Raises:
        UsageError: `older_than` is no age.
    """
    registry = session.registry
    chosen = registry.prunable(
        name, keep, None if older_than is None else age_of(older_than, "--older-than"), session.now
    )
    removed = chosen if dry_run else registry.prune(name, chosen)
    log.info(Event.BUNDLES_PRUNED, model=name, versions=removed, dry_run=dry_run)
    if on_terminal():
        listed = ", ".join(map(str, removed)) or "none"
        say(f"{name}: {'would remove' if dry_run else 'removed'} {len(removed)} version(s): {listed}")


def keygen(folder: Path) -> None:
    """Write a pair of keys, and say what to set."""
    private, public, key = write_keys(folder)
    print(
        f"key {key}\n"
        f"{private}: signs. Keep it where you train, and nowhere else: BATCHSCORE_SIGNING_KEY_FILE={private}\n"
        f"{public}: verifies. Set it where you score and where you train: BATCHSCORE_VERIFY_KEYS_FILE={public}"
    )
