"""The ledger's promises, on every warehouse."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import polars as pl
import pytest
import sqlalchemy as sa
import toy
from hypothesis import given
from hypothesis import strategies as st

from batchscore import ledger
from batchscore.database import Database
from batchscore.errors import IntervalLeased, WarehouseError
from batchscore.fingerprint import Fingerprint
from batchscore.interval import Interval
from batchscore.ledger import Lease, Owner, Progress, Run, Totals, encode_key, run_id_of
from batchscore.ledger.runs import select_runs
from batchscore.warehouse import Output, OutputColumn, Warehouse, open_warehouse

P = ParamSpec("P")
T = TypeVar("T")

DAY = Interval(datetime(2013, 10, 1, 4, tzinfo=UTC), datetime(2013, 10, 2, 4, tzinfo=UTC))
NEXT_DAY = Interval(DAY.end, DAY.end + timedelta(days=1))
NOW = datetime(2013, 10, 3, 1, 2, 3, 456_789, tzinfo=UTC)
NOTHING = Totals(0, 0, 0, 0)
OWNER = Owner.here()
OUTPUT = Output("predictions", (OutputColumn("id", "integer"), OutputColumn("prediction", "string")))

many_writers = pytest.mark.parametrize("database", toy.DATABASES[1:], indirect=True)


def run_of(run_id: str = "a", interval: Interval = DAY, **values: Any) -> Run:
    """A run as planned."""
    fields = {
        "job": "flights",
        "model_name": "model",
        "model_version": 3,
        "bundle_digest": "digest",
        "revision": 0,
        "output_table": OUTPUT.table,
        "scored_at": NOW,
    }
    return Run(run_id=run_id, interval=interval, **(fields | values))


def call(
    warehouse: Warehouse, function: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kw: P.kwargs
) -> T:
    """Call a function of the ledger in a transaction of its own."""
    with warehouse.begin() as tx:
        return function(tx.connection, *args, **kw)


def begin(warehouse: Warehouse, run: Run) -> Run:
    """Begin a run."""
    return call(warehouse, ledger.begin, run, "0.1.0")


def complete(warehouse: Warehouse, run: Run, chunk: int, rows: int = 10, rejects: int = 0, shard: int = 0) -> None:
    """Complete a chunk, its profile telling where it is from."""
    call(
        warehouse,
        ledger.complete,
        run.run_id,
        shard=shard,
        chunk=chunk,
        keys=((chunk, "low"), (chunk, "high")),
        totals=Totals(1, rows, rows - rejects, rejects),
        inputs=inputs(chunk, rows),
        profile={"of": [shard, chunk]},
        committed_at=NOW,
    )


def inputs(chunk: int, rows: int = 10) -> Fingerprint:
    """The fingerprint that `complete` gives a chunk."""
    return Fingerprint(rows, 2**63 + chunk)


def publish(warehouse: Warehouse, run: Run) -> Run:
    """Begin a run and publish it without rows."""
    begun = begin(warehouse, run)
    call(warehouse, ledger.publish, begun, NOTHING, Fingerprint(), [], NOW)
    return begun


def runs(warehouse: Warehouse) -> dict[str, Run]:
    """Every run by its id."""
    return {run.run_id: run for run in call(warehouse, ledger.history)}


def statuses(warehouse: Warehouse) -> dict[str, str]:
    """The status of every run."""
    return {run_id: run.status for run_id, run in runs(warehouse).items()}


def rejects(
    warehouse: Warehouse, run_id: str, chunk: int, *details: str | None, reason: str = "predict_failed"
) -> None:
    """Keep a reject for each detail."""
    n = len(details)
    frame = pl.DataFrame(
        {
            "run_id": [run_id] * n,
            "shard": pl.Series([0] * n, dtype=pl.Int64),
            "chunk": pl.Series([chunk] * n, dtype=pl.Int64),
            "row_key": [encode_key((chunk, i)) for i in range(n)],
            "stage": ["predict"] * n,
            "reason": [reason] * n,
            "detail": pl.Series(details, dtype=pl.String),
            "row_values": ['{"x": 1}'] * n,
        }
    )
    with warehouse.begin() as tx:
        tx.load(ledger.REJECTS, frame)


class TestRunId:
    """`run_id_of`."""

    PARTS = MappingProxyType(
        {
            "job": "flights",
            "interval": DAY,
            "bundle_digest": "bundle",
            "query_digest": "query",
            "table": "table",
            "carry": ("a", "b"),
            "revision": 0,
        }
    )

    def test_same_everywhere(self) -> None:
        """The same work has the same id in every process, whatever its hash seed, zone or version of batchscore."""
        code = (
            "from datetime import datetime, UTC\n"
            "from batchscore.interval import Interval\n"
            "from batchscore.ledger import run_id_of\n"
            "day = Interval(datetime(2013, 10, 1, 4, tzinfo=UTC), datetime(2013, 10, 2, 4, tzinfo=UTC))\n"
            "print(run_id_of('flights', day, bundle_digest='bundle', query_digest='query', table='table',"
            " carry=['a', 'b'], revision=0))"
        )
        environment = {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
        other = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        )

        assert other.stdout.strip() == run_id_of(**self.PARTS) == "e9608235-6e51-5220-968d-2b4efc395d7b"

    @pytest.mark.parametrize(
        "changed",
        [
            {"job": "flight"},
            {"interval": NEXT_DAY},
            {"interval": Interval(DAY.start, NEXT_DAY.end)},
            {"bundle_digest": "bundl", "query_digest": "equery"},
            {"query_digest": "query2"},
            {"bundle_digest": "query", "query_digest": "bundle"},
            {"table": "other.table"},
            {"carry": ("a",)},
            {"carry": ("b", "a")},
            {"carry": ("ab",)},
            {"revision": 1},
        ],
    )
    def test_every_part_counts(self, changed: dict[str, Any]) -> None:
        """Other work has another id, whichever part is other."""
        assert run_id_of(**(self.PARTS | changed)) != run_id_of(**self.PARTS)


class TestBegin:
    """`begin`."""

    def test_new(self, warehouse: Warehouse) -> None:
        """A new run is entered as it was planned, and is running."""
        planned = run_of(sql_accepted="only a comment")

        assert begin(warehouse, planned) == planned
        assert runs(warehouse) == {"a": planned}
        assert planned.status == "running"

    def test_a_long_version_is_cut(self, warehouse: Warehouse) -> None:
        """The version of a commit between two releases, longer than its column, does not stop a run."""
        for _ in range(2):
            call(warehouse, ledger.begin, run_of(), "0.1.1.dev1234+gcfdef1c73.d20261121")

        rows = call(warehouse, lambda tx: tx.execute(sa.select(ledger.RUNS.c.batchscore_version)).scalars().all())
        assert rows == ["0.1.1.dev1234+gcfdef1c73.d202611"]

    def test_taken_up(self, warehouse: Warehouse) -> None:
        """Whoever takes a run up keeps its instant, and runs it for its own reason."""
        begin(warehouse, run_of(sql_accepted="mine"))
        later = run_of(scored_at=NOW + timedelta(hours=1), sql_accepted=None)

        assert begin(warehouse, later) == begin(warehouse, later) == run_of(sql_accepted=None)
        assert runs(warehouse) == {"a": run_of(sql_accepted=None)}

    def test_after_failure(self, warehouse: Warehouse) -> None:
        """A failed run runs again, without its error."""
        begin(warehouse, run_of())
        call(warehouse, ledger.fail, "a", "why")

        taken = begin(warehouse, run_of())

        assert (taken.status, taken.error) == ("running", None)
        assert runs(warehouse) == {"a": taken}

    def test_published(self, warehouse: Warehouse) -> None:
        """A published run is left as it is and handed back, so that its work is not done twice."""
        publish(warehouse, run_of())
        before = runs(warehouse)["a"]

        assert begin(warehouse, run_of(scored_at=NOW + timedelta(hours=1))) == before
        assert runs(warehouse) == {"a": before}
        assert before.status == "published"

    def test_held(self, warehouse: Warehouse) -> None:
        """A run that a gate holds runs again without the gate's words, and keeps its chunks."""
        run = begin(warehouse, run_of())
        complete(warehouse, run, 0)
        call(warehouse, ledger.hold_back, run, Totals(1, 10, 10, 0), inputs(0), [], "least_rows: too few")

        taken = begin(warehouse, run_of())

        assert (taken.status, taken.error) == ("running", None)
        assert runs(warehouse) == {"a": taken}
        assert call(warehouse, ledger.progress, "a", 0).chunks == 1

    def test_superseded(self, warehouse: Warehouse) -> None:
        """A run that another has overtaken is left as it is and handed back: its work is not wanted any more."""
        begin(warehouse, run_of())
        publish(warehouse, run_of("b"))

        assert begin(warehouse, run_of()).status == "superseded"
        assert statuses(warehouse) == {"a": "superseded", "b": "published"}


def waiting(future: Future[T]) -> Future[T]:
    """The future, after making sure that it waits for somebody."""
    with pytest.raises(TimeoutError):
        future.result(timeout=0.3)
    return future


class TestChunks:
    """What a run has done."""

    def test_progress(self, warehouse: Warehouse) -> None:
        """A shard goes on behind its own last chunk, with the fingerprint of all rows up to there."""
        run = begin(warehouse, run_of())
        none = call(warehouse, ledger.progress, "a", 0)
        for chunk in range(11):
            complete(warehouse, run, chunk)
        complete(warehouse, run, 0, shard=1)
        complete(warehouse, begin(warehouse, run_of("b")), 30)

        assert none == Progress(0, Fingerprint(0, 0))
        read = sum((inputs(chunk) for chunk in range(11)), Fingerprint())
        assert call(warehouse, ledger.progress, "a", 0) == Progress(11, read)
        assert read == Fingerprint(110, 2**63 + sum(range(11)))
        assert call(warehouse, ledger.progress, "a", 1) == Progress(1, inputs(0))
        assert call(warehouse, ledger.progress, "a", 2) == Progress(0)

    def test_failures(self, warehouse: Warehouse) -> None:
        """Rows on which the features or the pipeline failed are counted over the run; other rejects are not."""
        stages = ["features", "pipeline", "input", "prediction", "pipeline"]
        frame = pl.DataFrame({"stage": stages}).select(
            pl.lit("a").alias("run_id"), pl.lit(0).alias("shard"), pl.lit(0).alias("chunk"),
            pl.lit("[1]").alias("row_key"), "stage", pl.lit("why").alias("reason"), pl.lit(None, pl.String).alias("detail"),
            pl.lit("{}").alias("row_values"),
        )  # fmt: skip
        with warehouse.begin() as tx:
            tx.load(ledger.REJECTS, frame)

        assert [call(warehouse, ledger.progress, run_id, 0).failures for run_id in "ab"] == [3, 0]

    def test_totals(self, warehouse: Warehouse) -> None:
        """The totals are sums over every shard of one run, and zero before the first chunk."""
        run = begin(warehouse, run_of())
        none = call(warehouse, ledger.totals_of, "a")
        complete(warehouse, run, 0, rows=2**40, rejects=1)
        complete(warehouse, run, 1, rows=5, rejects=2)
        complete(warehouse, run, 0, rows=7, shard=1)
        complete(warehouse, begin(warehouse, run_of("b")), 0)

        assert none == Totals(0, 0, 0, 0)
        assert call(warehouse, ledger.totals_of, "a") == Totals(3, 2**40 + 12, 2**40 + 9, 3)

    def test_twice(self, warehouse: Warehouse) -> None:
        """A chunk is done once: doing it again fails, and takes what it wrote along."""
        run = begin(warehouse, run_of())
        complete(warehouse, run, 0)

        def again() -> None:
            with warehouse.begin() as tx:
                tx.connection.execute(sa.update(ledger.RUNS).values(revision=99))
                ledger.complete(
                    tx.connection,
                    "a",
                    shard=0,
                    chunk=0,
                    keys=((5,), (6,)),
                    totals=Totals(1, 1, 1, 0),
                    inputs=Fingerprint(1, 7),
                    profile={},
                    committed_at=NOW,
                )

        with pytest.raises(WarehouseError):
            again()
        assert call(warehouse, ledger.totals_of, "a") == Totals(1, 10, 10, 0)
        assert call(warehouse, ledger.progress, "a", 0) == Progress(1, inputs(0))
        assert runs(warehouse)["a"].revision == 0

    def test_profiles(self, warehouse: Warehouse) -> None:
        """The chunks' profiles come in the order of shard and chunk, however they were committed."""
        run = begin(warehouse, run_of())
        for shard, chunk in ((1, 0), (0, 10), (0, 2), (0, 0), (1, 1)):
            complete(warehouse, run, chunk, shard=shard)

        found = call(warehouse, ledger.chunk_profiles, "a")

        assert found == [{"of": [0, 0]}, {"of": [0, 2]}, {"of": [0, 10]}, {"of": [1, 0]}, {"of": [1, 1]}]

    def test_forget(self, warehouse: Warehouse) -> None:
        """A run that starts again forgets its own chunks and rejects, and may do them anew in the same transaction."""
        run, other = begin(warehouse, run_of()), begin(warehouse, run_of("b"))
        for each in (run, other):
            complete(warehouse, each, 0, rejects=1)
            rejects(warehouse, each.run_id, 0, "why")

        with warehouse.begin() as tx:
            ledger.forget_chunks(tx.connection, "a")
            ledger.forget_rejects(tx.connection, "a")
            ledger.complete(
                tx.connection,
                "a",
                shard=0,
                chunk=0,
                keys=((7,), (8,)),
                totals=Totals(1, 3, 3, 0),
                inputs=Fingerprint(3, 8),
                profile={},
                committed_at=NOW,
            )

        assert call(warehouse, ledger.progress, "a", 0) == Progress(1, Fingerprint(3, 8))
        assert call(warehouse, ledger.totals_of, "b") == Totals(1, 10, 9, 1)
        assert [call(warehouse, ledger.rejects_kept, run_id) for run_id in "ab"] == [0, 1]


KEYS = st.lists(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(["", "null", '{"date": "2024-01-01"}', "2024-01-01", "NaN", "\0", '"', "\\"])
    | st.dates()
    | st.datetimes(timezones=st.none() | st.just(UTC)),
    min_size=1,
    max_size=4,
)


class TestKeys:
    """`encode_key`."""

    @given(KEYS, KEYS)
    def test_told_apart(self, one: list[Any], other: list[Any]) -> None:
        """Keys have the same text exactly when they have the same values of the same types."""

        def of(key: list[Any]) -> list[tuple[type, Any, Any]]:
            return [(type(part), part, getattr(part, "tzinfo", None)) for part in key]

        assert (encode_key(one) == encode_key(other)) == (of(one) == of(other))
        assert encode_key(one) == encode_key(tuple(one))

    @given(KEYS)
    def test_plain_text(self, key: list[Any]) -> None:
        """A key is written as one line of ASCII without NUL, which every database can hold, and is a JSON list."""
        text = encode_key(key)

        assert text.isascii()
        assert not {"\0", "\n", "\r"} & set(text)
        assert len(json.loads(text)) == len(key)


class TestPublish:
    """`publish` and `published`."""

    def test_supersedes(self, warehouse: Warehouse) -> None:
        """Every other run of the same job, interval and table is superseded; those never published are told."""
        publish(warehouse, run_of("old"))
        publish(warehouse, run_of("beside", NEXT_DAY))
        publish(warehouse, run_of("elsewhere", job="trains"))
        publish(warehouse, run_of("aside", output_table="other"))
        for name in ("failed", "held", "running"):
            complete(warehouse, begin(warehouse, run_of(name)), 0, rejects=1)
            rejects(warehouse, name, 0, "why")
        call(warehouse, ledger.fail, "failed", "why")
        call(warehouse, ledger.hold_back, runs(warehouse)["held"], Totals(1, 10, 9, 1), inputs(0), [], "why")
        new = begin(warehouse, run_of("new"))

        overtaken = call(warehouse, ledger.publish, new, NOTHING, Fingerprint(), [], NOW)

        names = ["failed", "held", "running"]
        assert sorted(run.run_id for run in overtaken) == names
        assert [call(warehouse, ledger.progress, name, 0).chunks for name in names] == [0, 0, 0]
        assert [call(warehouse, ledger.rejects_kept, name) for name in names] == [0, 0, 0]
        assert statuses(warehouse) == {
            "old": "superseded",
            "beside": "published",
            "elsewhere": "published",
            "aside": "published",
            "failed": "superseded",
            "held": "superseded",
            "running": "superseded",
            "new": "published",
        }

    def test_again(self, warehouse: Warehouse) -> None:
        """However often an interval is published, its last run alone is published."""
        for name in "abcd":
            publish(warehouse, run_of(name))

        assert statuses(warehouse) == {"a": "superseded", "b": "superseded", "c": "superseded", "d": "published"}

    def test_record(self, warehouse: Warehouse) -> None:
        """A published run has its totals, its input, its time and no error, and its chunks stay without profiles."""
        run = begin(warehouse, run_of())
        complete(warehouse, run, 0, rows=10, rejects=1)
        complete(warehouse, begin(warehouse, run_of("b", NEXT_DAY)), 0)

        call(warehouse, ledger.publish, run, Totals(1, 10, 9, 1), Fingerprint(10, 0xAB), [], NOW)

        done = {
            "status": "published",
            "published_at": NOW,
            "rows_read": 10,
            "predictions": 9,
            "rejects": 1,
            "chunks": 1,
            "input_hash": "00000000000000ab",
        }
        assert runs(warehouse)["a"] == replace(run, **done)
        assert call(warehouse, ledger.totals_of, "a") == Totals(1, 10, 9, 1)
        with warehouse.begin() as tx:
            kept = tx.connection.execute(sa.select(ledger.CHUNKS.c.run_id, ledger.CHUNKS.c.profile)).all()
        assert {(run_id, profile is None) for run_id, profile in kept} == {("a", True), ("b", False)}

    def test_profiles(self, warehouse: Warehouse) -> None:
        """The merged profile is kept a row a column, every figure as it was."""
        full = {
            "role": "input",
            "column_name": "x é",
            "kind": "numeric",
            "row_count": 2**40,
            "null_count": 1,
            "null_share": 1 / 3,
            "unseen_share": 5e-324,
            "outside_share": 0.25,
            "distinct_count": 2**40,
            "mean": 1e-300,
            "std": 0.1 + 0.2,
            "minimum": -1.7976931348623157e308,
            "maximum": 2.0**53,
            "profile": '{"edges": [1, 2]}',
        }
        empty = dict.fromkeys(full) | {
            "role": "output",
            "column_name": "x é",
            "kind": "text",
            "row_count": 0,
            "null_count": 0,
            "profile": "{}",
        }
        run = begin(warehouse, run_of())

        call(warehouse, ledger.publish, run, NOTHING, Fingerprint(), [full, empty], NOW)

        found = sorted(call(warehouse, ledger.profiles_of, "a"), key=lambda row: row["role"])
        assert found == [{"run_id": "a", **full}, {"run_id": "a", **empty}]
        assert call(warehouse, ledger.profiles_of, "b") == []

    def test_published(self, warehouse: Warehouse) -> None:
        """The published run of an interval is the one of the same job and table."""
        publish(warehouse, run_of("old"))
        for other in (run_of("b", NEXT_DAY), run_of("c", job="trains"), run_of("d", output_table="other")):
            publish(warehouse, other)
            begin(warehouse, replace(other, run_id=f"{other.run_id} again"))

        found = {
            name: call(warehouse, ledger.published, run)
            for name, run in {
                "same": run_of("new"),
                "none": run_of("new", Interval(NEXT_DAY.end, NEXT_DAY.end + timedelta(days=1))),
                "other schema": run_of("new", output_table="elsewhere.predictions"),
                "next": run_of("new", NEXT_DAY),
            }.items()
        }

        assert {name: run and run.run_id for name, run in found.items()} == {
            "same": "old",
            "none": None,
            "other schema": None,
            "next": "b",
        }

    @many_writers
    def test_one_waits(self, database: Database, warehouse: Warehouse) -> None:
        """Whoever takes the interval's lease waits for a publish in hand; its publisher cannot publish again."""
        with open_warehouse(database) as other, ThreadPoolExecutor(1) as pool:
            warehouse.prepare(OUTPUT)
            first, second = staged(warehouse, "a", 100), staged(warehouse, "b", 70)
            mine = lease(warehouse)
            with warehouse.begin() as tx:
                publish_staged(tx, first, mine)
                taking = waiting(pool.submit(lease, other))
            taking.result()
            with pytest.raises(IntervalLeased), warehouse.begin() as tx:
                publish_staged(tx, second, mine)

        assert statuses(warehouse) == {"a": "published", "b": "superseded"}
        assert output_rows(warehouse) == {"a": 100}

    @many_writers
    def test_at_once(self, database: Database, warehouse: Warehouse) -> None:
        """Publishers of one interval that start together leave one published run, and the rows of exactly that one."""
        warehouse.prepare(OUTPUT)
        sizes: dict[str, int] = {}
        with open_warehouse(database) as one, open_warehouse(database) as two, ThreadPoolExecutor(2) as pool:
            for turn in range(6):
                names = [f"{name}{turn}" for name in "ab"]
                sizes |= {names[0]: 100 + turn, names[1]: 50 + turn}
                rivals = [staged(warehouse, name, sizes[name]) for name in names]
                start = threading.Barrier(2)
                jobs = zip((one, two), rivals, strict=True)
                racing = [pool.submit(publish_in_turn, process, run, start) for process, run in jobs]
                done = [each.result() for each in racing]
                assert any(done)

                found = statuses(warehouse)
                (winner,) = [run_id for run_id, status in found.items() if status == "published"]
                assert winner in names
                assert found == dict.fromkeys(sizes, "superseded") | {winner: "published"}
                assert output_rows(warehouse) == {winner: sizes[winner]}


def staged(warehouse: Warehouse, run_id: str, rows: int) -> Run:
    """A run by a bundle of its own, begun, with rows in its stage."""
    run = begin(warehouse, run_of(run_id, bundle_digest=run_id))
    with warehouse.begin() as tx:
        tx.open_stage(OUTPUT, run.stage)
    with warehouse.begin() as tx:
        tx.stage(OUTPUT, run.stage, {}, pl.DataFrame({"id": range(rows), "prediction": ["yes"] * rows}))
    return run


def lease(warehouse: Warehouse) -> Lease:
    """The interval's lease, taken anew by this test: whoever had it of this test's own owner has lost it."""
    return call(warehouse, ledger.acquire, "flights", DAY, OWNER, seconds=60)


def publish_staged(tx: Any, run: Run, held: Lease) -> None:
    """What publishing does in its transaction."""
    ledger.check(tx.connection, held)
    stamp = {
        "model_name": run.model_name,
        "model_version": run.model_version,
        "interval_start": run.interval.start,
        "scored_at": run.scored_at,
        "run_id": run.run_id,
    }
    tx.replace(OUTPUT, run.stage, stamp)
    ledger.publish(tx.connection, run, NOTHING, Fingerprint(), [], NOW)


def publish_in_turn(warehouse: Warehouse, run: Run, start: threading.Barrier) -> bool:
    """Take the lease and publish a staged run, starting with others; whether nobody took the lease in between."""
    start.wait()
    with contextlib.suppress(IntervalLeased):
        held = lease(warehouse)
        with warehouse.begin() as tx:
            publish_staged(tx, run, held)
        return True
    return False


def output_rows(warehouse: Warehouse) -> dict[str, int]:
    """How many rows each run has in the output table."""
    table = OUTPUT.sql_table()
    with warehouse.begin() as tx:
        counted = sa.select(table.c.run_id, sa.func.count().label("rows")).group_by(table.c.run_id)
        return {row.run_id: row.rows for row in tx.connection.execute(counted)}


class TestFail:
    """`fail`."""

    def test_reason(self, warehouse: Warehouse) -> None:
        """A running run is failed with its reason, its chunks stay, and no other run is touched."""
        run = begin(warehouse, run_of())
        begin(warehouse, run_of("b"))
        complete(warehouse, run, 0)

        call(warehouse, ledger.fail, "a", "InputError: column x\nsecond line é")

        assert runs(warehouse) == {
            "a": replace(run, status="failed", error="InputError: column x\nsecond line é"),
            "b": run_of("b"),
        }
        assert call(warehouse, ledger.progress, "a", 0).chunks == 1

    def test_published(self, warehouse: Warehouse) -> None:
        """A run that is published cannot fail any more."""
        publish(warehouse, run_of())

        call(warehouse, ledger.fail, "a", "why")

        assert statuses(warehouse) == {"a": "published"}

    def test_any_text(self, warehouse: Warehouse) -> None:
        """An error that quotes a NUL is kept too, wherever text cannot hold one."""
        begin(warehouse, run_of())

        call(warehouse, ledger.fail, "a", "key 'x\0y' is doubled")

        assert runs(warehouse)["a"].error == "key 'x\\0y' is doubled"


class TestHoldBack:
    """`hold_back`."""

    def test_record(self, warehouse: Warehouse) -> None:
        """A held run has its totals, its input and the gates' words, and keeps its chunks with their profiles."""
        run = begin(warehouse, run_of())
        complete(warehouse, run, 0, rejects=1)
        profile = dict.fromkeys(c.name for c in ledger.PROFILES.c if c.name != "run_id") | {
            "role": "input", "column_name": "x", "kind": "text", "row_count": 10, "null_count": 0, "profile": "{}",
        }  # fmt: skip

        for _ in range(2):
            call(warehouse, ledger.hold_back, run, Totals(1, 10, 9, 1), Fingerprint(10, 0xAB), [profile], "one\ntwo")

        assert runs(warehouse)["a"] == replace(
            run,
            status="held",
            error="one\ntwo",
            rows_read=10,
            predictions=9,
            rejects=1,
            chunks=1,
            input_hash="00000000000000ab",
        )
        assert call(warehouse, ledger.chunk_profiles, "a") == [{"of": [0, 0]}]
        assert call(warehouse, ledger.profiles_of, "a") == [{"run_id": "a"} | profile]

    def test_published_past_it(self, warehouse: Warehouse) -> None:
        """A held run that is published keeps who did it and why, and what the gates had said."""
        run = begin(warehouse, run_of())
        complete(warehouse, run, 0)
        call(warehouse, ledger.hold_back, run, Totals(1, 10, 10, 0), inputs(0), [], "why")
        overridden = replace(runs(warehouse)["a"], override_reason="it is right", override_by="ann@desk")

        call(warehouse, ledger.publish, overridden, Totals(1, 10, 10, 0), inputs(0), [], NOW)

        found = runs(warehouse)["a"]
        assert (found.status, found.error, found.override_reason, found.override_by) == (
            "published", "why", "it is right", "ann@desk",
        )  # fmt: skip


class TestHistory:
    """`history`, `find`, `select_runs`, `rows_of_last` and `users_of_table`."""

    def test_order(self, warehouse: Warehouse) -> None:
        """Runs come by interval and then by age; a limit keeps the latest, in the same order."""
        hour = timedelta(hours=1)
        begin(warehouse, run_of("late", NEXT_DAY, scored_at=NOW - hour))
        begin(warehouse, run_of("second", scored_at=NOW + hour))
        begin(warehouse, run_of("first", scored_at=NOW))
        begin(warehouse, run_of("trains", NEXT_DAY, job="trains", scored_at=NOW))

        def ids(*args: Any, **kwargs: Any) -> list[str]:
            return [run.run_id for run in call(warehouse, ledger.history, *args, **kwargs)]

        assert ids() == ["first", "second", "late", "trains"]
        assert ids("flights") == ["first", "second", "late"]
        assert ids("flights", limit=2) == ["second", "late"]
        assert ids(limit=1) == ["trains"]
        assert ids("nothing") == []

    def test_instants(self, warehouse: Warehouse) -> None:
        """Every instant comes back in UTC, to the microsecond, whatever zone it was given in."""
        at = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
        begun = begin(warehouse, run_of(scored_at=at))
        call(warehouse, ledger.publish, begun, NOTHING, Fingerprint(), [], at)

        run = runs(warehouse)["a"]

        assert [run.scored_at, run.published_at, run.interval.start, run.interval.end] == [NOW, NOW, DAY.start, DAY.end]
        assert {each.tzinfo for each in (run.scored_at, run.published_at, run.interval.start, run.interval.end)} == {
            UTC
        }

    def test_find(self, warehouse: Warehouse) -> None:
        """Runs are found by the beginning of their id, letter for letter."""
        for run_id in ("abc1", "abd2", "xabc"):
            begin(warehouse, run_of(run_id))

        def found(prefix: str) -> set[str]:
            return {run.run_id for run in call(warehouse, ledger.find, prefix)}

        assert [found("ab"), found("abc"), found("z")] == [{"abc1", "abd2"}, {"abc1"}, set()]
        assert found("%") == found("a_c") == set()

    def test_select_runs(self, warehouse: Warehouse) -> None:
        """Runs are selected by every condition given, and by none all of them are."""
        for run in (run_of("a"), run_of("b", NEXT_DAY), run_of("c", job="trains")):
            begin(warehouse, run)
        c = ledger.RUNS.c

        def ids(*conditions: sa.ColumnElement[bool]) -> set[str]:
            return {run.run_id for run in call(warehouse, select_runs, *conditions)}

        assert ids() == {"a", "b", "c"}
        assert ids(c.job == "flights", c.interval_start == DAY.start) == {"a"}
        assert ids(c.scored_at < NOW) == set()

    def test_rows_of_last(self, warehouse: Warehouse) -> None:
        """The row counts are those of the last published intervals before the run's own, of its job and table."""
        days = [Interval(DAY.start + timedelta(days=i), DAY.end + timedelta(days=i)) for i in range(6)]
        for rows, interval in enumerate(days):
            for run in (
                run_of(f"old {rows}", interval),
                run_of(f"new {rows}", interval),
                run_of(f"trains {rows}", interval, job="trains"),
                run_of(f"other {rows}", interval, output_table="other"),
            ):
                read = Totals(1, rows if run.run_id.startswith("new") else 99, 0, 0)
                call(warehouse, ledger.publish, begin(warehouse, run), read, Fingerprint(), [], NOW)
        begin(warehouse, run_of("attempt", days[3]))

        def last(interval: Interval, count: int) -> list[int]:
            return call(warehouse, ledger.rows_of_last, run_of("now", interval), count)

        assert last(days[5], 3) == [4, 3, 2]
        assert last(days[5], 9) == [4, 3, 2, 1, 0]
        assert last(days[1], 3) == [0]
        assert last(days[0], 3) == []

    def test_users_of_table(self, warehouse: Warehouse) -> None:
        """The users of a table are the jobs that have published into it, superseded or not, and no others."""
        publish(warehouse, run_of("a"))
        publish(warehouse, run_of("b"))
        publish(warehouse, run_of("c", job="trains"))
        publish(warehouse, run_of("d", job="ships", output_table="other"))
        begin(warehouse, run_of("e", job="planes"))

        assert call(warehouse, ledger.users_of_table, OUTPUT.table) == {"flights", "trains"}
        assert call(warehouse, ledger.users_of_table, "none") == set()


class TestRejects:
    """Rows that could not be scored."""

    def test_round_trip(self, warehouse: Warehouse) -> None:
        """Rejects come back by chunk, with key, stage, reason and detail; a limit cuts the tail off."""
        rejects(warehouse, "a", 10, "last")
        rejects(warehouse, "a", 2, 'first, "quoted"\nline', None)
        rejects(warehouse, "b", 0, "of another run")

        found = call(warehouse, ledger.rejects_of, "a")

        assert found[-1] == {
            "row_key": "[10, 0]",
            "stage": "predict",
            "reason": "predict_failed",
            "detail": "last",
            "row_values": '{"x": 1}',
        }
        assert {(row["row_key"], row["detail"]) for row in found[:2]} == {
            ("[2, 0]", 'first, "quoted"\nline'),
            ("[2, 1]", None),
        }
        assert len(found) == 3
        assert call(warehouse, ledger.rejects_of, "a", 2) == found[:2]
        assert call(warehouse, ledger.rejects_kept, "a") == 3

    def test_reasons(self, warehouse: Warehouse) -> None:
        """Reasons come with their counts, the most frequent first, no more than asked for."""
        rejects(warehouse, "a", 0, "x", "y", "x", "z", "x", "z")
        rejects(warehouse, "a", 1, "y", "x", reason="unexpected_null")
        rejects(warehouse, "b", 0, *["q"] * 9)

        assert call(warehouse, ledger.reject_reasons, "a", 2) == [
            ("predict_failed", "x", 3),
            ("predict_failed", "z", 2),
        ]
        assert len(call(warehouse, ledger.reject_reasons, "a")) == 5
        counted = call(warehouse, ledger.reject_counts, ["a", "b", "z"])
        assert sum(row["rejects"] for row in counted if row["run_id"] == "a") == call(
            warehouse, ledger.rejects_kept, "a"
        )
        assert [(row["run_id"], row["detail"], row["rejects"]) for row in counted[:2]] == [("b", "q", 9), ("a", "x", 3)]
        assert counted[0].keys() == {"run_id", "stage", "reason", "detail", "rejects"}


class TestDrift:
    """What monitoring found."""

    ROW: ClassVar = {
        "reference": "training",
        "role": "input",
        "column_name": "x",
        "metric": "psi",
        "value": 0.1 + 0.2,
        "share": None,
        "reference_share": None,
        "floor": None,
        "p_value": None,
        "band": 0.2,
        "verdict": "not enough data",
        "importance": None,
        "told": False,
        "row_count": 2**40,
        "reference_count": 3,
    }

    def test_round_trip(self, warehouse: Warehouse) -> None:
        """What is saved of a run's drift comes back, by column, for the run asked for."""
        unknown = self.ROW | {"metric": "ks", "value": None, "column_name": "a"}
        for run_id in "bca":
            self.save(warehouse, run_id, self.ROW, unknown)

        assert call(warehouse, ledger.drift_of, "b") == [{"run_id": "b"} | row for row in (unknown, self.ROW)]
        assert call(warehouse, ledger.drift_of, "z") == []

    def test_forget(self, warehouse: Warehouse) -> None:
        """What is known of one run alone is forgotten."""
        self.save(warehouse, "a", self.ROW)
        self.save(warehouse, "b", self.ROW)
        call(warehouse, ledger.forget_drift, "a")

        assert call(warehouse, ledger.drift_of, "a") == []
        assert call(warehouse, ledger.drift_of, "b") == [{"run_id": "b"} | self.ROW]

    def test_moves(self, warehouse: Warehouse) -> None:
        """It is counted in how many of some runs each metric of each column has moved."""
        for run_id, verdict in zip("abc", ("moved", "steady", "moved"), strict=True):
            self.save(warehouse, run_id, self.ROW | {"verdict": verdict}, self.ROW | {"metric": "ks"})
        key = ("training", "input", "x", "psi")

        assert call(warehouse, ledger.moves_of, ["a", "b", "c"]) == {key: 2}
        assert call(warehouse, ledger.moves_of, ["b"]) == call(warehouse, ledger.moves_of, []) == {}

    def test_of_several_runs(self, warehouse: Warehouse) -> None:
        """Of the runs asked for come all values by what they are of, and whole rows of those that are judged."""
        unjudged = self.ROW | {"metric": "js", "band": None, "verdict": "not judged"}
        for run_id in "abc":
            self.save(warehouse, run_id, self.ROW, unjudged)
        key = ("training", "input", "x")

        judged = call(warehouse, ledger.judged_of, ["a", "c"])

        assert sorted(judged, key=lambda row: row["run_id"]) == [{"run_id": each} | self.ROW for each in "ac"]
        value = self.ROW["value"]
        assert call(warehouse, ledger.values_of, ["a", "b"]) == {
            (*key, "psi"): {"a": value, "b": value},
            (*key, "js"): {"a": value, "b": value},
        }
        assert call(warehouse, ledger.judged_of, []) == []
        assert call(warehouse, ledger.values_of, []) == {}

    def save(self, warehouse: Warehouse, run_id: str, *rows: dict[str, Any]) -> None:
        """Let the ledger have rows of a run's drift."""
        call(warehouse, lambda tx: tx.execute(sa.insert(ledger.DRIFT), [{"run_id": run_id, **row} for row in rows]))


class TestStanding:
    def test_of_a_job_that_published_nothing(self, warehouse: Warehouse) -> None:
        """It has counted nothing, whatever it began and whatever other jobs did."""
        begin(warehouse, run_of("a"))
        publish(warehouse, run_of("b", job="others"))

        found = call(warehouse, ledger.standing, "flights")

        assert found == ledger.Standing(0, 0, None, [], [])

    def test_counts_what_was_replaced_and_pruned(self, warehouse: Warehouse) -> None:
        """Runs and rows are counted once for each publish, and pruning what was replaced takes none away."""
        for run_id, interval, revision, rows in (("a", DAY, 0, 10), ("b", NEXT_DAY, 0, 5), ("c", DAY, 1, 2)):
            begun = begin(warehouse, run_of(run_id, interval, revision=revision))
            call(warehouse, ledger.publish, begun, Totals(1, rows, rows, 0), Fingerprint(), [], NOW)
        before = call(warehouse, ledger.standing, "flights")
        call(warehouse, ledger.forget_old, NOW + timedelta(days=1))

        after = call(warehouse, ledger.standing, "flights")

        assert sorted(runs(warehouse)) == ["b", "c"]
        assert before == after
        assert (after.runs, after.rows, after.last) == (3, 17, runs(warehouse)["b"])

    def test_has_the_latest_mature_performance_of_each_kind(self, warehouse: Warehouse) -> None:
        """An immature or older window, a slice and another cohort are left out; of two versions the later is told."""
        publish(warehouse, run_of("a"))
        row = {
            "job": "flights", "cohort": "scored", "window_start": DAY.start, "window_end": DAY.end,
            "model_name": "model", "model_version": 1, "slice_column": "", "slice_value": "", "metric": "roc_auc",
            "kind": "measured", "value": 0.1, "low": None, "high": None, "predictions": 1, "labelled": 1,
            "coverage": 1.0, "state": "mature", "verdict": "as good", "evaluated_at": NOW,
        }  # fmt: skip
        later = {"window_start": NEXT_DAY.start, "window_end": NEXT_DAY.end}
        others = (
            {"value": 0.2, "model_version": 3},
            {"value": 0.3, "slice_column": "carrier", "slice_value": "AA"},
            {"value": 0.4, "cohort": "labelled"},
            {"value": 0.5, "state": "immature"} | later,
            {"value": 0.6, "kind": "estimated"} | later,
            {"value": 0.7, "job": "others"} | later,
        )
        with warehouse.begin() as tx:
            tx.connection.execute(sa.insert(ledger.PERFORMANCE), [row, *(row | other for other in others)])

        found = call(warehouse, ledger.standing, "flights").performance

        assert [(each["kind"], each["value"], each["window_end"]) for each in found] == [
            ("estimated", 0.6, NEXT_DAY.end),
            ("measured", 0.2, DAY.end),
        ]
