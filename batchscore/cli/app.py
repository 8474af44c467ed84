"""The commands and their options. Each opens a session and hands over; nothing heavy is imported to print a help."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from batchscore import stop

if TYPE_CHECKING:
    from batchscore.cli.session import Session

__all__ = ["app"]


class _Commands(TyperGroup):
    """The commands; a value that is none of an option's is told in plain words."""

    def invoke(self, *args: Any) -> Any:
        with _plain_words():
            return super().invoke(*args)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _plain_words():
            return super().make_context(*args, **kwargs)


@contextmanager
def _plain_words() -> Iterator[None]:
    try:
        yield
    except typer.BadParameter as error:
        words = error.message.removeprefix("Value error, ").replace("Input should be", "it should be")
        error.message = words.partition(", unable to parse")[0]
        raise


app = typer.Typer(
    name="batchscore",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
models_app = typer.Typer(help="What is in the registry.", no_args_is_help=True, rich_markup_mode=None)
runs_app = typer.Typer(help="What is in the ledger.", no_args_is_help=True, rich_markup_mode=None)
alerts_app = typer.Typer(help="What is told of jobs.", no_args_is_help=True, rich_markup_mode=None)
views_app = typer.Typer(help="Views for dashboards.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models_app, name="models")
app.add_typer(runs_app, name="runs")
app.add_typer(views_app, name="views")
app.add_typer(alerts_app, name="alerts")

# typer reads these annotations at run time, and on Python 3.11 it wants Optional there.
JobName = Annotated[str, typer.Argument(metavar="JOB", help="The job's name: jobs/JOB.toml.")]
MaybeJob = Annotated[str | None, typer.Argument(metavar="[JOB]")]
AsFormat = Annotated[Literal["table", "json"], typer.Option("--format", help="table, or json with every field.")]
From = Annotated[str | None, typer.Option("--from", help="First interval: 2013-10-01 (the job's time zone).")]
To = Annotated[str | None, typer.Option("--to", help="Not this interval and none after it.")]
OnlyWhich = Annotated[
    Literal["missing", "failed", "stale-model", "changed-input", "all"],
    typer.Option(
        "--only",
        help="missing: nothing published; stale-model: published by another bundle; changed-input: published from rows "
        "that have changed since, for which each is read again.",
    ),
]
AcceptSql = Annotated[
    str | None,
    typer.Option("--accept-sql", metavar="REASON", help="Run a query that is not the bundle's; the ledger keeps why."),
]
ChunkRows = Annotated[
    int | None, typer.Option("--chunk-rows", min=1, help="Rows per chunk, instead of [limits] chunk_rows.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from batchscore import __version__

        print(__version__)
        raise typer.Exit


Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        min=1,
        max=64,
        help="Intervals scored at a time; where there are fewer, each is cut into shards, by its key.",
    ),
]
Backend = Annotated[
    Literal["threading", "loky", "dask", "ray"],
    typer.Option(
        "--backend",
        help="Whether workers are threads, processes (loky), or those of a Dask or Ray cluster.",
    ),
]


@app.callback()
def main(
    context: typer.Context,
    jobs_dir: Annotated[Path | None, typer.Option(help="Folder of JOB.toml and JOB.py. [jobs]")] = None,
    sql_dir: Annotated[Path | None, typer.Option(help="Folder that SQL paths are relative to. [sql]")] = None,
    registry_url: Annotated[
        str | None, typer.Option(help="Folder of bundles, s3://bucket/prefix or mlflow+http://host. [var/registry]")
    ] = None,
    delta_url: Annotated[
        str | None, typer.Option(help="Folder or s3://bucket/prefix: output tables are Delta tables there.")
    ] = None,
    log_format: Annotated[
        Literal["auto", "json", "ecs", "console"] | None,
        typer.Option(help="auto: progress and tables on a terminal, JSON lines elsewhere. [auto]"),
    ] = None,
    version: Annotated[  # noqa: ARG001 - its callback runs before a command is asked for
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Score a scikit-learn model over a warehouse every night.

    Databases are set by BATCHSCORE_WAREHOUSE_URL and BATCHSCORE_SOURCE_URL, or files named by
    BATCHSCORE_WAREHOUSE_URL_FILE and so on: a password has no place on a command line.
    """
    context.obj = {
        "jobs_dir": jobs_dir,
        "sql_dir": sql_dir,
        "registry_url": registry_url,
        "delta_url": delta_url,
        "log_format": log_format,
    }


def _session(context: typer.Context, *, looks: bool = False) -> Session:
    from batchscore import trace
    from batchscore.logs import configure
    from batchscore.settings import load_settings

    # Without the settings there is no log format yet, and their own errors must be told too.
    configure("auto", quiet=looks)
    settings = load_settings(context.obj)
    from batchscore.cli.render import Aside
    from batchscore.cli.session import Session, secrets_of

    secrets = secrets_of(settings)
    configure(settings.log_format, secrets, quiet=looks)
    if not looks and not sys.stdout.isatty():
        # One JSON object a line, and nothing else: what a job's own code prints goes beside it.
        configure(settings.log_format, secrets, stream=sys.stdout)
        sys.stdout = Aside()
    if not looks:
        trace.begin()
        context.with_resource(trace.span(context.command_path))
    return Session.of(settings)


def _say(text: str) -> None:
    from batchscore.cli.render import say

    say(text)


@app.command()
def check(context: typer.Context, job: JobName, accept_sql: AcceptSql = None, format_: AsFormat = "table") -> None:
    """Look at everything JOB needs, touch nothing, and exit as a run would; or as train, where only that would fail."""
    from batchscore.cli.check import check

    check(_session(context, looks=True), job, accept_sql, format_)


@app.command()
def train(
    context: typer.Context,
    job: JobName,
    promote: Annotated[
        bool, typer.Option("--promote", help="Make it the version in use even when there is one already.")
    ] = False,
    curve: Annotated[
        str | None,
        typer.Option(
            "--curve",
            metavar="NAME=VALUES",
            help="Draw the metric over a parameter of the pipeline: model__max_depth=1:25, both ends included, "
            "model__alpha=0:1:0.1 by steps, or a list, model__criterion=gini,entropy.",
        ),
    ] = None,
    learning_curve: Annotated[
        bool, typer.Option("--learning-curve", help="Draw the metric over the number of training rows.")
    ] = False,
) -> None:
    """Train JOB's pipeline and register the next version of its model.

    The first version that reaches the job's bars becomes the one in use.
    """
    stop.leaves(stop.TRAINING)
    from batchscore.cli.train import train
    from batchscore.train.explore import Asked

    _say(train(_session(context), job, promote=promote, asked=Asked(curve, learning_curve)))


@app.command()
def retrain(
    context: typer.Context,
    job: JobName,
    conditions: Annotated[
        str | None,
        typer.Option(
            "--if",
            metavar="REASONS",
            help="drifted, degraded, older-than=7d, new-labels=10000: any of them is enough. [[retrain] reasons]",
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", help="Where the rows to learn from end. [the last interval that is over]"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell whether there is a reason, and do nothing.")] = False,
) -> None:
    """Train JOB anew where there is a reason to, and use the new version where it is better on the same rows.

    Exits with 0 whether it trained or not, and promoted or not; it says which, and why. Where there is no model yet, it
    trains the first.
    """
    stop.leaves(stop.TRAINING)
    from batchscore.cli.retrain import retrain

    _say(retrain(_session(context), job, conditions, to, dry_run=dry_run))


@app.command()
def predict(
    context: typer.Context,
    job: JobName,
    row: Annotated[
        str,
        typer.Option(
            "--row",
            metavar="JSON",
            help="An object with the input columns, or a list of them; @FILE reads it there, - on standard input.",
        ),
    ],
    format_: AsFormat = "table",
) -> None:
    """Score rows given as JSON with the model that JOB uses. Needs no warehouse, and writes nothing."""
    from batchscore.cli.predict import predict

    predict(_session(context, looks=True), job, row, format_)


@app.command()
def plan(
    context: typer.Context,
    job: JobName,
    from_: From = None,
    to: To = None,
    only: OnlyWhich = "missing",
    format_: AsFormat = "table",
) -> None:
    """List JOB's intervals, what became of each, and what would score it. Writes nothing."""
    from batchscore.cli.score import show_plan

    show_plan(_session(context, looks=True), job, from_, to, only, format_)


@app.command()
def score(
    context: typer.Context,
    job: JobName,
    interval: Annotated[
        str | None, typer.Option("--interval", metavar="START", help="Only the interval that starts here.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With --interval: score it again even when it is published.")
    ] = False,
    chunk_rows: ChunkRows = None,
    accept_sql: AcceptSql = None,
    workers: Workers = 1,
    backend: Backend = "threading",
) -> None:
    """Score what is due: every complete interval of JOB that has no published predictions, oldest first.

    Then those of the last [interval] lookback ones whose rows have changed.
    """
    from batchscore.cli.score import Asked, score

    asked = Asked(chunk_rows, accept_sql, workers, backend=backend)
    _say(score(_session(context), job, interval, asked, force=force))


@app.command()
def backfill(
    context: typer.Context,
    job: JobName,
    from_: Annotated[str, typer.Option("--from", help="First interval: 2013-10-01 (the job's time zone).")],
    to: Annotated[str, typer.Option("--to", help="Not this interval and none after it.")],
    only: OnlyWhich = "missing",
    chunk_rows: ChunkRows = None,
    accept_sql: AcceptSql = None,
    workers: Workers = 1,
    backend: Backend = "threading",
    part: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="Of the window's intervals, counted from 0, the I-th and every N-th behind it, for N processes.",
        ),
    ] = "0/1",
) -> None:
    """Score JOB's intervals from --from up to, not including, --to. A failed one does not stop the others."""
    from batchscore.cli.score import Asked, backfill

    asked = Asked(chunk_rows, accept_sql, workers, part, backend)
    _say(backfill(_session(context), job, (from_, to), only, asked))


@app.command()
def migrate(context: typer.Context, job: JobName) -> None:
    """Make the tables that JOB needs, with a role that may, so that the role that scores need not.

    What the ledger's tables lack, because an earlier version made them, is added.
    """
    from batchscore.cli.score import migrate

    _say(migrate(_session(context), job))


@app.command()
def rejects(
    context: typer.Context,
    job: JobName,
    interval: Annotated[str, typer.Option("--interval", metavar="START", help="The interval that starts here.")],
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many; all of them without it.")] = None,
    format_: AsFormat = "table",
) -> None:
    """The rows of an interval of JOB that could not be scored: key, stage, reason and values."""
    from batchscore.cli.runs import show_rejects

    show_rejects(_session(context, looks=True), job, interval, limit, format_)


@app.command()
def drift(
    context: typer.Context,
    job: JobName,
    from_: From = None,
    to: To = None,
    against: Annotated[
        Literal["training", "previous", "last_week", "four_weeks"] | None,
        typer.Option("--against", help="What they are compared with. Else what [drift] says: training."),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            min=0,
            max=100_000,
            help="So many rows of each side for a classifier to tell apart, of runs from the source, of training from "
            "the bundle; 0 for none. Else what [drift] says.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="What stayed steady too.")] = False,
    format_: AsFormat = "table",
) -> None:
    """Compare what JOB's published runs saw with what their version was trained on, or with runs before them.

    Without dates: the run of the latest interval.
    """
    from batchscore.cli.drift import drift

    drift(_session(context, looks=True), job, from_, to, against, sample, everything, format_)


@app.command()
def evaluate(
    context: typer.Context,
    job: JobName,
    from_: From = None,
    to: To = None,
    everything: Annotated[bool, typer.Option("--all", help="Every metric, and every slice.")] = False,
    format_: AsFormat = "table",
) -> None:
    """Hold JOB's published predictions against the labels that are known by now, and keep the metrics.

    Without dates: the last 31 intervals that are published, and all of the last 31 days.
    """
    from batchscore.cli.evaluate import evaluate

    evaluate(_session(context, looks=True), job, from_, to, everything, format_)


@app.command()
def report(
    context: typer.Context,
    job: JobName,
    from_: From = None,
    to: To = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Where to; - for standard output. [JOB-report.html]")
    ] = None,
) -> None:
    """Write how JOB fares as one HTML page: what changed and what to do, runs, drift, performance, rejects, versions.

    Without dates: the last 92 intervals. With --to, what should be there by then is what is judged late.
    """
    from batchscore.cli.report import report

    report(_session(context, looks=True), job, from_, to, output)


@app.command()
def demo(
    context: typer.Context,
    warehouse: Annotated[
        bool, typer.Option("--warehouse", help="In the warehouse that is set, DuckDB or Postgres, instead of var/.")
    ] = False,
    data: Annotated[bool, typer.Option("--data", help="Load the data of every job of jobs/, and stop.")] = False,
) -> None:
    """Train, score and backfill the flights of New York in 2013, in var/."""
    from batchscore.cli.demo import demo

    demo(context.obj, in_warehouse=warehouse, data=data)


@models_app.command("list")
def models_list(context: typer.Context, format_: AsFormat = "table") -> None:
    """Every version of every model, with its aliases."""
    from batchscore.cli.models import list_

    list_(_session(context, looks=True), format_)


@models_app.command("show")
def models_show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    use: Annotated[str, typer.Argument(metavar="VERSION|ALIAS")] = "champion",
    format_: AsFormat = "table",
) -> None:
    """What a version was trained on, with what, and how good it is."""
    from batchscore.cli.models import show_model

    show_model(_session(context, looks=True), name, use, format_)


@models_app.command("card")
def models_card(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    use: Annotated[str, typer.Argument(metavar="VERSION|ALIAS")] = "champion",
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Where to; - for standard output. [NAME-VERSION.html]")
    ] = None,
) -> None:
    """Write the model card of a version: one HTML page with all that training found out about it."""
    from batchscore.cli.models import write_card

    write_card(_session(context, looks=True), name, use, to)


@models_app.command("compare")
def models_compare(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    one: Annotated[str, typer.Argument(metavar="VERSION|ALIAS")],
    other: Annotated[str, typer.Argument(metavar="VERSION|ALIAS")],
    from_: From = None,
    to: To = None,
    format_: AsFormat = "table",
) -> None:
    """Measure two versions on the same rows with labels: without dates, on all behind those they learned from.

    `better by` is how much better the second is, with its 95 % interval: above 0 it is, whichever way the metric goes.
    """
    from batchscore.cli.models import compare

    compare(_session(context, looks=True), name, (one, other), (from_, to), format_)


@models_app.command("verify")
def models_verify(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    use: Annotated[str, typer.Argument(metavar="VERSION|ALIAS")] = "champion",
) -> None:
    """Check a version's signature and digests, list what its pipeline names, load it, score its golden rows here."""
    from batchscore.cli.models import verify

    verify(_session(context), name, use)


@models_app.command("compile")
def models_compile(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    use: Annotated[str, typer.Argument(metavar="VERSION|ALIAS")] = "champion",
) -> None:
    """Register a version once more, with its trees compiled for this machine; needs a C compiler.

    A version is never changed, so what was compiled later is a version of its own: promote it to use it.
    """
    from batchscore.cli.models import compile_

    compile_(_session(context), name, use)


@models_app.command("promote")
def models_promote(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    version: Annotated[int, typer.Argument(metavar="VERSION")],
    alias: Annotated[str, typer.Option(help="The alias to point at it.")] = "champion",
) -> None:
    """Point an alias at a version."""
    from batchscore.cli.models import promote

    promote(_session(context), name, version, alias)


@models_app.command("rollback")
def models_rollback(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    alias: Annotated[str, typer.Option(help="The alias to move.")] = "champion",
) -> None:
    """Point an alias at the version it stood for before; said again, at the one before that."""
    from batchscore.cli.models import roll_back

    roll_back(_session(context), name, alias)


@models_app.command("prune")
def models_prune(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    keep: Annotated[int, typer.Option(min=1, help="The newest so many stay.")],
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Only what was trained so long ago: 90d, 36h.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell.")] = False,
) -> None:
    """Remove old versions, but for those that an alias stands for or would go back to."""
    from batchscore.cli.models import prune

    prune(_session(context), name, keep, older_than, dry_run=dry_run)


@models_app.command("keygen")
def models_keygen(
    to: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write them into.")] = Path("keys"),
) -> None:
    """Make a pair of keys: one signs the bundles that train registers, the other verifies them."""
    from batchscore.cli.models import keygen
    from batchscore.logs import configure

    configure("auto", quiet=True)

    keygen(to)


@runs_app.command("list")
def runs_list(
    context: typer.Context,
    job: Annotated[str | None, typer.Argument(metavar="[JOB]")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The latest so many.")] = 30,
    format_: AsFormat = "table",
) -> None:
    """Runs, the latest intervals last. A run's id may be cut short wherever one is asked for."""
    from batchscore.cli.runs import list_

    list_(_session(context, looks=True), job, limit, format_)


@runs_app.command("show")
def runs_show(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run id, or its beginning.")],
    format_: AsFormat = "table",
) -> None:
    """One run: its counts, its error, its first rejects, what it saw, and what of that moved."""
    from batchscore.cli.runs import show_run

    show_run(_session(context, looks=True), run, format_)


@runs_app.command("publish")
def runs_publish(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", help="The id of a held run, or its beginning.")],
    reason: Annotated[str, typer.Option(help="Why it is right; the ledger keeps it, and who said so.")],
    override: Annotated[
        bool, typer.Option("--override", help="Past the gates that hold it; there is no other way.")
    ] = False,
) -> None:
    """Publish a run that a gate of [publish] holds."""
    from batchscore.cli.runs import publish_run

    _say(publish_run(_session(context), run, reason, override=override))


@runs_app.command("prune")
def runs_prune(
    context: typer.Context,
    older_than: Annotated[str, typer.Option("--older-than", metavar="AGE", help="90d, 12h or 4w.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and remove nothing.")] = False,
) -> None:
    """Remove superseded runs, rejects and unfinished stages older than AGE. Published rows and runs stay."""
    from batchscore.cli.runs import prune

    _say(prune(_session(context), older_than, dry_run=dry_run))


@views_app.command("apply")
def views_apply(context: typer.Context, job: MaybeJob = None) -> None:
    """Make the views over the ledger, and with JOB those over its output table, or bring them up to date.

    With a role that owns the tables, as for migrate.
    """
    from batchscore.cli.views import apply_views

    _say(apply_views(_session(context), job))


@views_app.command("show")
def views_show(context: typer.Context, job: MaybeJob = None) -> None:
    """Print the SQL that apply runs, for those who look at it first or run it themselves."""
    from batchscore.cli.views import show_views

    show_views(_session(context, looks=True), job)


@alerts_app.command("list")
def alerts_list(
    context: typer.Context,
    job: MaybeJob = None,
    everything: Annotated[bool, typer.Option("--all", help="Those that have recovered too.")] = False,
    format_: AsFormat = "table",
) -> None:
    """What fires now, of JOB or of every job, and when somebody was told."""
    from batchscore.cli.alerts import list_

    list_(_session(context, looks=True), job, everything, format_)


@alerts_app.command("test")
def alerts_test(context: typer.Context, job: JobName) -> None:
    """Send a notice to the webhook that is set and to JOB's command, to see that it arrives."""
    from batchscore.cli.alerts import send_test

    _say(send_test(_session(context), job))
