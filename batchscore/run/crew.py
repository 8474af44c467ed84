"""The shards of a run, several at a time: in threads, in processes, or on the workers of a cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor

from batchscore import cgroup, ledger
from batchscore.ahead import ahead
from batchscore.errors import BatchscoreError, SourceChanged, Terminated, TransientError, UsageError
from batchscore.ledger import Lease, Run
from batchscore.run.scoring import Backend, Crew, Scoring
from batchscore.run.shard import OnChunk, Shard, score_shard
from batchscore.run.workers import in_turn

__all__ = ["at_work", "score_shards"]

_WATCH_SECONDS = 1.0
# Whose errors say that a worker is gone, and not that its work was wrong.
_CLUSTERS = ("joblib.externals.loky", "distributed", "ray", "concurrent.futures.process")


def score_shards(scoring: Scoring, run: Run, lease: Lease, shards: Sequence[Shard], on_chunk: OnChunk) -> int:
    """Score what is left of every shard.

    Args:
        scoring: What it takes, and the crew.
        run: The run, whose stage is there.
        lease: That of its interval, which this process renews.
        shards: Its shards.
        on_chunk: Told how many rows each committed chunk has read, by a thread; of other processes each shard.

    Returns:
        How many chunks they have.

    Raises:
        InputMoved: See `score_shard`.
        TransientError: A worker process is gone.
        BatchscoreError: See `score_interval`; the first that is met.
    """
    if scoring.crew.remake is None:
        return _in_threads(scoring, run, lease, shards, on_chunk)
    return _elsewhere(scoring, scoring.crew.remake, run, lease, shards, on_chunk)


def _in_threads(scoring: Scoring, run: Run, lease: Lease, shards: Sequence[Shard], on_chunk: OnChunk) -> int:
    def one(shard: Shard, stopping: threading.Event) -> int:
        def committed(rows: int) -> None:
            on_chunk(rows)
            if stopping.is_set():
                raise Terminated("stopped with the others")

        return score_shard(scoring, run, lease, shard, committed)

    chunks = 0
    with closing(in_turn(one, shards, min(scoring.crew.workers, len(shards)))) as results:
        for _, result in results:
            if isinstance(result, BatchscoreError):
                raise result
            chunks += result
    return chunks


def _elsewhere(
    scoring: Scoring,
    remake: Callable[[], Scoring],
    run: Run,
    lease: Lease,
    shards: Sequence[Shard],
    on_chunk: OnChunk,
) -> int:
    crew, chunks = scoring.crew, 0
    # Workers of this machine are to end with this process, however it ends.
    parent = os.getpid() if crew.backend == "loky" else None
    with _translated(crew.backend), parallel_config(crew.backend):
        # Ray's gives them all in the end.
        how = "list" if crew.backend == "ray" else "generator_unordered"
        parallel = Parallel(n_jobs=crew.workers, return_as=how, pre_dispatch="all", batch_size=1)
        # In a thread: a signal reaches the main one only between two waits.
        with ahead(_drawn(parallel, [delayed(_one)(remake, parent, run, lease, shard) for shard in shards])) as results:
            for done, rows in results:
                chunks += done
                on_chunk(rows)
    return chunks


def _drawn(parallel: Parallel, calls: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """What the calls give, as they are done; the work is begun, and where need be ended, by the thread that draws."""
    results = parallel(calls)
    try:
        yield from results
    finally:
        if isinstance(results, Generator):
            results.close()


def _one(remake: Callable[[], Scoring], parent: int | None, run: Run, lease: Lease, shard: Shard) -> tuple[int, int]:
    """Score a shard in this process, which is not the one that asks: its chunks, and the rows of the new ones."""
    if parent is not None:
        _end_with(parent)
    scoring = remake()
    # Whatever decides the result is in the id.
    if scoring.run_id(run.interval, run.revision) != run.run_id:
        raise SourceChanged(
            f"a worker has other SQL for job {run.job}, another shadow, or another warehouse, than the process that "
            "asks it to work. Give every worker the same SQL, registry and settings."
        )
    # A scheduler may have given the work to another before, which has ended.
    with scoring.warehouse.begin(f"the shards of {run.interval}") as tx:
        shard = replace(shard, done=ledger.progress(tx.connection, run.run_id, shard.number))
    rows: list[int] = []
    chunks = score_shard(scoring, run, lease, shard, rows.append)
    return chunks, sum(rows)


@cache
def _end_with(parent: int) -> None:
    """Have this process end when the one that started it has: it would wait for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="batchscore-parent").start()


@contextmanager
def at_work(crew: Crew) -> Iterator[None]:
    """A block in which the crew is there: its processes, or the connection to a cluster.

    Raises:
        UsageError: What the backend needs is not installed.
        TransientError: The cluster does not answer.
    """
    with contextlib.ExitStack() as stack:
        try:
            with _translated(crew.backend):
                _gather(crew, stack)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"--backend {crew.backend} needs {error.name}: pip install 'batchscore[{crew.backend}]', in the image "
                "too."
            ) from None
        yield


def _gather(crew: Crew, stack: contextlib.ExitStack) -> None:
    # What this process was started with stays; those that it starts have their share of the cores.
    threads = str(max(1, cgroup.cores() // crew.workers))
    match crew.backend:
        case "loky":
            os.environ.update(dict.fromkeys(cgroup.THREADS, threads))
            stack.callback(_dismiss)
        case "dask":
            from distributed import Client, LocalCluster

            address: Any = crew.address
            if address is None:
                os.environ.update(dict.fromkeys(cgroup.THREADS, threads))
                cluster = LocalCluster(n_workers=crew.workers, threads_per_worker=1, dashboard_address=None)
                address = stack.enter_context(cluster)
            with _reached("BATCHSCORE_DASK_SCHEDULER", "tcp://scheduler:8786", crew.address):
                stack.enter_context(Client(address))
        case "ray":
            import ray
            from ray.util.joblib import register_ray

            # It reports to its makers unless it is told not to. What workers log stays with Ray: it would put words in
            # front of each line.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            given: dict[str, Any] = {}
            if crew.address is None:
                os.environ.update(dict.fromkeys(cgroup.THREADS, threads))
                given = {"num_cpus": crew.workers}
            with _reached("BATCHSCORE_RAY_ADDRESS", "ray://head:10001", crew.address):
                ray.init(
                    crew.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **given
                )
            stack.callback(ray.shutdown)
            register_ray()


@contextmanager
def _reached(variable: str, form: str, address: str | None) -> Iterator[None]:
    """A block that joins the cluster at an address, where there is one.

    Raises:
        UsageError: It is none.
        TransientError: Nobody answers there.
    """
    try:
        yield
    except ValueError as error:
        if address is None:
            raise
        raise UsageError(f"{variable}: {error}. Write {form}.") from None
    except OSError as error:
        if address is None:
            raise
        raise TransientError(
            f"{variable}: no scheduler answers at {address}: {error}. Look whether it is there, and run the same "
            "command again."
        ) from None


def _dismiss() -> None:
    get_reusable_executor().shutdown(wait=True, kill_workers=True)


@contextmanager
def _translated(backend: Backend) -> Iterator[None]:
    try:
        yield
    except BatchscoreError:
        raise
    except Exception as error:
        if not type(error).__module__.startswith(_CLUSTERS):
            raise
        raise TransientError(
            f"a worker of {backend} has ended, or cannot be reached: {type(error).__name__}: {error}. What it had "
            "committed is kept; where this comes again and again, it is the memory that is short: use fewer workers."
        ) from error
