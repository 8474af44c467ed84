"""The ledger's promises, on every warehouse."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import polars as pl
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from batchscore import ledger
from batchscore.database import Database
from batchscore.errors import IntervalLeased, WarehouseError
from batchscore.interval import Interval
from batchscore.ledger import Progress, Run, Totals, decode_key, encode_key, run_id_of
from batchscore.warehouse import Output, OutputColumn, Warehouse, open_warehouse

P = ParamSpec("P")
T = TypeVar("T")

DAY = Interval(datetime(2013, 10, 1, 4, tzinfo=UTC), datetime(2013, 10, 2, 4, tzinfo=UTC))
NEXT_DAY = Interval(DAY.end, DAY.end + timedelta(days=1))
NOW = datetime(2013, 10, 3, 1, 2, 3, 456_789, tzinfo=UTC)
OUTPUT = Output("predictions", (OutputColumn("id", "integer"), OutputColumn("prediction", "string")))

many_writers = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)


@pytest.fixture(params=["duckdb", "sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """Each kind of database, empty."""
    if request.param == "postgres":
        return Database.at(request.getfixturevalue("postgres_url"))
    return Database.at(f"{request.param}:///{tmp_path / 'warehouse'}")


@pytest.fixture
def warehouse(database: Database) -> Iterator[Warehouse]:
    """A warehouse with an empty ledger."""
    with open_warehouse(database) as opened:
        opened.create(ledger.METADATA)
        yield opened


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
        profile={"of": [shard, chunk]},
        committed_at=NOW,
    )


def publish(warehouse: Warehouse, run: Run) -> Run:
    """Begin a run and publish it without rows."""
    held = begin(warehouse, run)
    call(warehouse, ledger.publish, held, Totals(0, 0, 0, 0), [], NOW)
    return held


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
        """A new run is entered as it was planned, with the first fence."""
        planned = run_of(sql_accepted="only a comment")

        assert begin(warehouse, planned) == planned
        assert runs(warehouse) == {"a": planned}
        assert (planned.fence, planned.status) == (1, "running")

    def test_taken_up(self, warehouse: Warehouse) -> None:
        """Whoever takes a run up counts the fence up, keeps its instant, and runs it for its own reason."""
        begin(warehouse, run_of(sql_accepted="mine"))
        later = run_of(scored_at=NOW + timedelta(hours=1), sql_accepted=None)

        taken = begin(warehouse, later), begin(warehouse, later)

        assert [run.fence for run in taken] == [2, 3]
        assert {run.scored_at for run in taken} == {NOW}
        assert runs(warehouse) == {"a": replace(run_of(), fence=3)}

    def test_after_failure(self, warehouse: Warehouse) -> None:
        """A failed run runs again, without its error."""
        begin(warehouse, run_of())
        call(warehouse, ledger.fail, "a", "why")

        taken = begin(warehouse, run_of())

        assert (taken.status, taken.error, taken.fence) == ("running", None, 2)
        assert runs(warehouse) == {"a": taken}

    def test_published(self, warehouse: Warehouse) -> None:
        """A published run is left as it is and handed back, so that its work is not done twice."""
        publish(warehouse, run_of())
        before = runs(warehouse)["a"]

        assert begin(warehouse, run_of(scored_at=NOW + timedelta(hours=1))) == before
        assert runs(warehouse) == {"a": before}
        assert before.status == "published"

    @many_writers
    def test_at_once(self, database: Database, warehouse: Warehouse) -> None:
        """Of two that begin the same new run together one enters it, and the other takes it up after the first."""
        with open_warehouse(database) as other, ThreadPoolExecutor(1) as pool:
            with warehouse.begin() as tx:
                first = ledger.begin(tx.connection, run_of(), "0.1.0")
                second = waiting(pool.submit(begin, other, run_of(scored_at=NOW + timedelta(seconds=1))))

            assert second.result().fence == first.fence + 1
        assert runs(warehouse)["a"].scored_at == NOW


def waiting(future: Future[T]) -> Future[T]:
    """The future, after making sure that it waits for somebody."""
    with pytest.raises(TimeoutError):
        future.result(timeout=0.3)
    return future


class TestHold:
    """`hold`."""

    def test_holder(self, warehouse: Warehouse) -> None:
        """Whoever began the run last holds it, as often as it asks."""
        begin(warehouse, run_of())
        held = begin(warehouse, run_of())

        for _ in range(2):
            call(warehouse, ledger.hold, held)

    def test_earlier_holder(self, warehouse: Warehouse) -> None:
        """A process whose run was taken up since commits nothing more, not even when the other has failed."""
        first = begin(warehouse, run_of())
        complete(warehouse, first, 0)
        begin(warehouse, run_of())

        def commit() -> None:
            with warehouse.begin() as tx:
                tx.connection.execute(sa.update(ledger.CHUNKS).values(rows_read=-1))
                ledger.hold(tx.connection, first)

        with pytest.raises(IntervalLeased, match=r"run a of .*another process has taken it up"):
            commit()
        call(warehouse, ledger.fail, "a", "why")
        with pytest.raises(IntervalLeased):
            commit()
        assert call(warehouse, ledger.totals_of, "a") == Totals(1, 10, 10, 0)

    @pytest.mark.parametrize("end", ["published", "failed", "gone"])
    def test_ended(self, warehouse: Warehouse, end: str) -> None:
        """A run that has ended, or is not in the ledger, is nobody's to write, and nobody's to publish."""
        run = publish(warehouse, run_of()) if end == "published" else run_of()
        if end == "failed":
            run = begin(warehouse, run)
            call(warehouse, ledger.fail, "a", "why")

        for hold in (ledger.hold, ledger.hold_interval):
            with pytest.raises(IntervalLeased):
                call(warehouse, hold, run)

    @many_writers
    def test_begin_waits(self, database: Database, warehouse: Warehouse) -> None:
        """A run is not taken up in the middle of a commit: the chunk counts, and then its process is shut out."""
        first = begin(warehouse, run_of())
        with open_warehouse(database) as other, ThreadPoolExecutor(1) as pool:
            with warehouse.begin() as tx:
                ledger.hold(tx.connection, first)
                taking_up = waiting(pool.submit(begin, other, run_of()))
            second = taking_up.result()

            call(other, ledger.hold, second)
            with pytest.raises(IntervalLeased):
                call(warehouse, ledger.hold, first)


class TestChunks:
    """What a run has done."""

    def test_progress(self, warehouse: Warehouse) -> None:
        """A shard goes on behind its own last chunk; before the first there is no key."""
        run = begin(warehouse, run_of())
        none = call(warehouse, ledger.progress, "a", 0)
        for chunk in range(11):
            complete(warehouse, run, chunk)
        complete(warehouse, run, 0, shard=1)
        complete(warehouse, begin(warehouse, run_of("b")), 30)

        assert none == Progress(0, None)
        assert call(warehouse, ledger.progress, "a", 0) == Progress(11, (10, "high"))
        assert call(warehouse, ledger.progress, "a", 1) == Progress(1, (0, "high"))
        assert call(warehouse, ledger.progress, "a", 2) == Progress(0, None)

    def test_failures(self, warehouse: Warehouse) -> None:
        """Rows on which the features or the pipeline failed are counted over the run; other rejects are not."""
        stages = ["features", "pipeline", "input", "prediction", "pipeline"]
        frame = pl.DataFrame({"stage": stages}).select(
            pl.lit("a").alias("run_id"), pl.lit(0).alias("shard"), pl.lit(0).alias("chunk"),
            pl.lit("[1]").alias("row_key"), "stage", pl.lit("why").alias("reason"), pl.lit(None, pl.String).alias("detail"),
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
                tx.connection.execute(sa.update(ledger.RUNS).values(fence=99))
                ledger.complete(
                    tx.connection,
                    "a",
                    shard=0,
                    chunk=0,
                    keys=((5,), (6,)),
                    totals=Totals(1, 1, 1, 0),
                    profile={},
                    committed_at=NOW,
                )

        with pytest.raises(WarehouseError):
            again()
        assert call(warehouse, ledger.totals_of, "a") == Totals(1, 10, 10, 0)
        assert call(warehouse, ledger.progress, "a", 0) == Progress(1, (0, "high"))
        assert runs(warehouse)["a"].fence == 1

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
                profile={},
                committed_at=NOW,
            )

        assert call(warehouse, ledger.progress, "a", 0) == Progress(1, (8,))
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
    """`encode_key` and `decode_key`."""

    @given(KEYS)
    def test_round_trip(self, key: list[Any]) -> None:
        """A key of any types comes back equal and of the same types; an instant stays an instant."""
        found = decode_key(encode_key(key))

        assert [(type(part), part) for part in found] == [(type(part), part) for part in key]
        assert [getattr(part, "tzinfo", None) for part in found] == [getattr(part, "tzinfo", None) for part in key]

    @given(KEYS)
    def test_plain_text(self, key: list[Any]) -> None:
        """A key is written as one line of ASCII without NUL, which every database can hold."""
        text = encode_key(key)

        assert text.isascii()
        assert not {"\0", "\n", "\r"} & set(text)

    @pytest.mark.parametrize(
        "key",
        [(1, "a"), (True,), ("\0é\n",), (date(1969, 12, 31),), (datetime(2024, 1, 2, 3, 4, 5, 6),), (NOW, -(2**63))],
    )
    def test_resume(self, warehouse: Warehouse, key: tuple[Any, ...]) -> None:
        """A shard goes on behind the very key that was committed."""
        begin(warehouse, run_of())
        call(
            warehouse,
            ledger.complete,
            "a",
            shard=0,
            chunk=0,
            keys=(key, key),
            totals=Totals(1, 1, 1, 0),
            profile={},
            committed_at=NOW,
        )

        assert call(warehouse, ledger.progress, "a", 0).key_high == key


class TestPublish:
    """`publish` and `hold_interval`."""

    def test_supersedes(self, warehouse: Warehouse) -> None:
        """Every other run of the same job, interval and table is superseded; those never published are told."""
        publish(warehouse, run_of("old", output_table="main.predictions"))
        publish(warehouse, run_of("beside", NEXT_DAY))
        publish(warehouse, run_of("elsewhere", job="trains"))
        publish(warehouse, run_of("aside", output_table="other"))
        for name in ("failed", "running"):
            complete(warehouse, begin(warehouse, run_of(name)), 0)
        call(warehouse, ledger.fail, "failed", "why")
        new = begin(warehouse, run_of("new"))

        overtaken = call(warehouse, ledger.publish, new, Totals(0, 0, 0, 0), [], NOW)

        assert {run.run_id for run in overtaken} == {"failed", "running"}
        assert [call(warehouse, ledger.progress, name, 0).chunks for name in ("failed", "running")] == [0, 0]
        assert statuses(warehouse) == {
            "old": "superseded",
            "beside": "published",
            "elsewhere": "published",
            "aside": "published",
            "failed": "superseded",
            "running": "superseded",
            "new": "published",
        }

    def test_again(self, warehouse: Warehouse) -> None:
        """However often an interval is published, its last run alone is published."""
        for name in "abcd":
            publish(warehouse, run_of(name))

        assert statuses(warehouse) == {"a": "superseded", "b": "superseded", "c": "superseded", "d": "published"}

    def test_record(self, warehouse: Warehouse) -> None:
        """A published run has its totals, its time and no error, and its chunks stay without their profiles."""
        run = begin(warehouse, run_of())
        complete(warehouse, run, 0, rows=10, rejects=1)
        complete(warehouse, begin(warehouse, run_of("b", NEXT_DAY)), 0)

        call(warehouse, ledger.publish, run, Totals(1, 10, 9, 1), [], NOW)

        done = {
            "status": "published",
            "published_at": NOW,
            "rows_read": 10,
            "predictions": 9,
            "rejects": 1,
            "chunks": 1,
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

        call(warehouse, ledger.publish, run, Totals(0, 0, 0, 0), [full, empty], NOW)

        found = sorted(call(warehouse, ledger.profiles_of, "a"), key=lambda row: row["role"])
        assert found == [{"run_id": "a", **full}, {"run_id": "a", **empty}]
        assert call(warehouse, ledger.profiles_of, "b") == []

    @many_writers
    def test_one_waits(self, database: Database, warehouse: Warehouse) -> None:
        """A second publisher of an interval waits for the first, finds itself overtaken, and writes nothing."""
        with open_warehouse(database) as other, ThreadPoolExecutor(1) as pool:
            warehouse.prepare(OUTPUT)
            first, second = staged(warehouse, "a", 100), staged(warehouse, "b", 70)
            with warehouse.begin() as tx:
                publish_staged(tx, first)
                publishing = waiting(pool.submit(publish_in_turn, other, second))
            publishing.result()

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
                for each in racing:
                    each.result()

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


def publish_staged(tx: Any, run: Run) -> None:
    """What publishing does in its transaction."""
    ledger.hold_interval(tx.connection, run)
    stamp = {
        "model_name": run.model_name,
        "model_version": run.model_version,
        "interval_start": run.interval.start,
        "scored_at": run.scored_at,
        "run_id": run.run_id,
    }
    tx.replace(OUTPUT, run.stage, stamp)
    ledger.publish(tx.connection, run, Totals(0, 0, 0, 0), [], NOW)


def publish_in_turn(warehouse: Warehouse, run: Run, start: threading.Barrier | None = None) -> None:
    """Publish a staged run, starting with others."""
    if start:
        start.wait()
    # Whoever comes second has been overtaken.
    with contextlib.suppress(IntervalLeased), warehouse.begin() as tx:
        publish_staged(tx, run)


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


class TestHistory:
    """`history`, `find` and `users_of_table`."""

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
        held = begin(warehouse, run_of(scored_at=at))
        call(warehouse, ledger.publish, held, Totals(0, 0, 0, 0), [], at)

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

        assert found[-1] == {"row_key": "[10, 0]", "stage": "predict", "reason": "predict_failed", "detail": "last"}
        assert {(decode_key(row["row_key"]), row["detail"]) for row in found[:2]} == {
            ((2, 0), 'first, "quoted"\nline'),
            ((2, 1), None),
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


class TestDrift:
    """What monitoring found."""

    ROW: ClassVar = {
        "reference": "training",
        "role": "input",
        "column_name": "x",
        "metric": "psi",
        "value": 0.1 + 0.2,
        "floor": None,
        "band": 0.2,
        "verdict": "not enough data",
        "row_count": 2**40,
        "reference_count": 3,
    }

    def test_round_trip(self, warehouse: Warehouse) -> None:
        """What is saved of a run's drift comes back, by column, for the run asked for."""
        unknown = self.ROW | {"metric": "ks", "value": None, "column_name": "a"}
        for run_id in "bca":
            call(warehouse, ledger.save_drift, run_id, [self.ROW, unknown])

        assert call(warehouse, ledger.drift_of, "b") == [{"run_id": "b"} | row for row in (unknown, self.ROW)]
        assert call(warehouse, ledger.drift_of, "z") == []

    def test_again(self, warehouse: Warehouse) -> None:
        """Saving again replaces what was known of that run alone, in one transaction too."""
        call(warehouse, ledger.save_drift, "a", [self.ROW, self.ROW | {"column_name": "y"}])
        call(warehouse, ledger.save_drift, "b", [self.ROW])

        call(warehouse, ledger.save_drift, "a", [self.ROW | {"value": 0.5}])
        call(warehouse, ledger.save_drift, "b", [])

        assert call(warehouse, ledger.drift_of, "a") == [{"run_id": "a"} | self.ROW | {"value": 0.5}]
        assert call(warehouse, ledger.drift_of, "b") == []
