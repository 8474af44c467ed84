"""How far metrics that are estimated without labels are from what the labels say: New York's flights, late in 2013.

Runs the demo and `evaluate` in the folder that it is called from, whose var/ may hold a demo already, and the job
`arrival_kind`, which has three classes: some minutes the first time.

    python benchmarks/estimation.py

It needs the extra `demo`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from statistics import fmean
from typing import Any

from batchscore.cli.demo import END, JOB, NIGHT, OWN

SHOWN = ("roc_auc", "brier")
SEVERAL = "arrival_kind"


def command(*args: str) -> str:
    """What a command of batchscore prints."""
    environment = os.environ | {"BATCHSCORE_WAREHOUSE_URL": OWN}
    done = subprocess.run(
        [sys.executable, "-m", "batchscore", *args], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def mature(job: str) -> list[dict[str, Any]]:
    """What is measured and estimated of each day of the last quarter that has its labels."""
    found = json.loads(command("evaluate", job, "--from", NIGHT, "--to", END, "--all", "--format", "json"))
    return [row for row in found if row["state"] == "mature"]


def days(rows: list[dict[str, Any]]) -> None:
    """Print each day of December."""
    december = [row for row in rows if row["interval"].startswith("2013-12") and row["metric"] in SHOWN]
    names = [f"{name} {what}" for name in SHOWN for what in ("measured", "estimated", "interval")]
    print(f"| day | labelled | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}")
    for first in december[:: len(SHOWN)]:
        cells = []
        for row in (row for row in december if row["interval"] == first["interval"]):
            interval = f"{row['estimated_low']:.3f} to {row['estimated_high']:.3f}"
            cells += [f"{row['value']:.3f}", f"{row['estimated']:.3f}", interval]
        print(f"| {first['interval']} | {first['labelled']} | {' | '.join(cells)} |")


def errors(rows: list[dict[str, Any]]) -> None:
    """Print, for each metric and month, the mean error and the share of days whose interval holds what is measured."""
    print(
        "\n| metric | month | days | mean absolute error | mean error | measured, from day to day | in the interval |"
    )
    print("|---|---|---|---|---|---|---|")
    rows = [row for row in rows if row["estimated"] is not None]
    for metric in dict.fromkeys(row["metric"] for row in rows):
        for month in ("2013-10", "2013-11", "2013-12"):
            some = [row for row in rows if row["metric"] == metric and row["interval"].startswith(month)]
            off = [row["estimated"] - row["value"] for row in some]
            middle = fmean(row["value"] for row in some)
            scatter = fmean(abs(row["value"] - middle) for row in some)
            held = sum(row["estimated_low"] <= row["value"] <= row["estimated_high"] for row in some)
            error = f"{fmean(map(abs, off)):.4f} | {fmean(off):+.4f}"
            print(f"| {metric} | {month} | {len(some)} | {error} | {scatter:.4f} | {held} |")


def verdicts(rows: list[dict[str, Any]]) -> None:
    """Print how many days each month are worse than the test rows, by what is measured."""
    print("\n| metric | October | November | December |\n|---|---|---|---|")
    for metric in dict.fromkeys(row["metric"] for row in rows if row["verdict"] != "not compared"):
        counts = [
            sum(
                row["metric"] == metric and row["interval"].startswith(month) and row["verdict"] == "worse"
                for row in rows
            )
            for month in ("2013-10", "2013-11", "2013-12")
        ]
        print(f"| {metric} | {' | '.join(map(str, counts))} |")


if __name__ == "__main__":
    command("demo")
    flights = mature(JOB)
    days(flights)
    errors(flights)
    verdicts(flights)
    command("train", SEVERAL)
    command("backfill", SEVERAL, "--from", NIGHT, "--to", END)
    kinds = mature(SEVERAL)
    print(f"\n{SEVERAL}")
    errors(kinds)
    verdicts(kinds)
