"""One day of Parquet files in an object store, in key order: batchscore beside files on disk, Polars and Arrow.

Starts moto's server, which speaks S3's protocol, in a process of its own, and lets each answer wait as a distant one
does. Everything runs in this process in turn; the server's share of the processor is in all but the first line.

    python benchmarks/objects.py [--rows 1000000] [--files 4] [--wait 0.02] [--rounds 3]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import obstore
import polars as pl
import pyarrow.dataset as ds
import pyarrow.fs
from obstore.store import HTTPStore, S3Store

from batchscore.interval import Calendar, Interval
from batchscore.schema import Column
from batchscore.sources.parquet import ParquetSource

DAY = Interval(datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 3, tzinfo=UTC))
WANTED = {"id": "integer", "seen": "timestamp_tz", "x0": "float", "x1": "float", "x2": "float", "kind": "string"}
KEYS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_REGION": "us-east-1"}
BUCKET = "lake"


@dataclass(frozen=True)
class Server:
    """An object store, with what it has answered so far."""

    endpoint: str
    requests: Any
    sent: Any


def serve(port: Any, requests: Any, sent: Any, wait: float) -> None:
    """Answer S3's protocol until the process is ended, and count."""
    import werkzeug.serving
    from moto.server import DomainDispatcherApplication, create_backend_app

    moto = DomainDispatcherApplication(create_backend_app)

    def counted(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        time.sleep(wait)
        body = b"".join(moto(environ, start))
        with requests.get_lock():
            requests.value += 1
            sent.value += len(body) if environ["REQUEST_METHOD"] == "GET" else 0
        return [body]

    class Quiet(werkzeug.serving.WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None:
            """Nobody reads it."""

    server = werkzeug.serving.make_server("127.0.0.1", 0, counted, threaded=True, request_handler=Quiet)
    port.put(server.port)
    server.serve_forever()


@contextmanager
def serving(wait: float) -> Iterator[Server]:
    """A store with an empty bucket, to which the environment leads."""
    context = multiprocessing.get_context("spawn")
    requests, sent, port = context.Value("q", 0), context.Value("q", 0), context.Queue()
    process = context.Process(target=serve, args=(port, requests, sent, wait), daemon=True)
    process.start()
    endpoint = f"http://127.0.0.1:{port.get()}"
    os.environ.update(KEYS, AWS_ENDPOINT_URL=endpoint)
    obstore.put(HTTPStore(endpoint, client_options={"allow_http": True}), BUCKET, b"")
    try:
        yield Server(endpoint, requests, sent)
    finally:
        process.terminate()
        process.join()


def write(folder: Path, rows: int, files: int) -> int:
    """Three days of twenty columns, each in some files, whose keys are in no order; the bytes of all."""
    rng = np.random.default_rng(0)
    client = S3Store(BUCKET, client_options={"allow_http": True})
    size = 0
    for day in range(3):
        first = DAY.start + timedelta(days=day - 1)
        for number in range(files):
            count = rows // files
            part = (day * files + number) * count
            times = np.sort(rng.integers(0, 86_400_000_000, count))
            frame = pl.DataFrame(
                {
                    "id": rng.permutation(count) + part,
                    "seen": pl.Series(times).cast(pl.Duration("us")) + first,
                    **{f"x{i}": rng.normal(size=count) for i in range(17)},
                    "kind": rng.choice([f"kind {i}" for i in range(50)], count),
                }
            )
            name = f"{day}-{number}.parquet"
            frame.write_parquet(folder / name, row_group_size=100_000)
            obstore.put(client, name, (folder / name).read_bytes(), use_multipart=False)
            size += (folder / name).stat().st_size
    return size


def ours(path: str) -> int:
    """The rows that a run scores, in the order of their key."""
    source = ParquetSource(path, "rows", "seen", Calendar("day", ZoneInfo("UTC")))
    order = [Column("id", "integer", nullable=False)]
    return sum(batch.height for batch in source.batches(DAY, order=order, columns=WANTED))


def polars(path: str) -> int:
    """The same by Polars, which reads S3 itself."""
    seen = pl.col("seen").is_between(DAY.start, DAY.end, closed="left")
    options = {"aws_endpoint_url": os.environ["AWS_ENDPOINT_URL"], "aws_allow_http": "true"}
    found = pl.scan_parquet(path, storage_options=options if "://" in path else None)
    return found.filter(seen).select(list(WANTED)).sort("id").collect(engine="streaming").height


def arrow(path: str) -> int:
    """The same by Arrow, which reads S3 itself."""
    files: Any = pyarrow.fs.LocalFileSystem()
    folder = path
    if "://" in path:
        host = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
        files, folder = pyarrow.fs.S3FileSystem(endpoint_override=host, scheme="http"), BUCKET
    seen = ds.field("seen")
    dataset = ds.dataset(folder, filesystem=files, format="parquet")
    found = dataset.to_table(columns=list(WANTED), filter=(seen >= DAY.start) & (seen < DAY.end))
    return int(found.sort_by("id").num_rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the day")
    parser.add_argument("--files", type=int, default=4, help="files of each day")
    parser.add_argument("--wait", type=float, default=0.02, help="seconds that each answer waits")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(given.wait) as server:
        size = write(Path(folder), given.rows, given.files)
        glob = f"s3://{BUCKET}/*.parquet"
        ways: list[tuple[str, Callable[[str], int], str]] = [
            ("batchscore, on disk", ours, f"{folder}/*.parquet"),
            ("batchscore, s3://", ours, glob),
            ("polars.scan_parquet, s3://", polars, glob),
            ("pyarrow.dataset, s3://", arrow, glob),
        ]
        seconds: dict[str, list[float]] = {name: [] for name, _, _ in ways}
        busy: dict[str, list[float]] = {name: [] for name, _, _ in ways}
        fetched: dict[str, tuple[int, int]] = {}
        for _ in range(given.rounds):
            for name, read, path in ways:
                before, begun = (server.requests.value, server.sent.value), time.perf_counter()
                spent = time.process_time()
                rows = read(path)
                seconds[name].append(time.perf_counter() - begun)
                busy[name].append(time.process_time() - spent)
                fetched[name] = (server.requests.value - before[0], server.sent.value - before[1])
    print(f"{rows:,} rows of one day in {given.files} of {3 * given.files} files, {len(WANTED)} of 20 columns;")
    print(
        f"{size / 1e6:,.0f} MB in the store; each answer waits {given.wait * 1e3:.0f} ms; {os.cpu_count()} processors\n"
    )
    base = statistics.median(seconds["batchscore, on disk"])
    print(f"{'':28}{'s':>7}{'rows/s':>12}{'of disk':>9}{'processor s':>13}{'requests':>10}{'MB':>8}")
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        requests, sent = fetched[name]
        work = statistics.median(busy[name])
        told = f"{name:28}{middle:7.2f}{rows / middle:12,.0f}{base / middle:9.2f}{work:13.2f}"
        print(f"{told}{requests:10}{sent / 1e6:8.1f}")


if __name__ == "__main__":
    main()
