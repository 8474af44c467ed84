"""`runs prune` removes what is old and serves nobody, exactly as it says, and never a published row."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
import toy
from toy import Project

from batchscore import ledger
from batchscore.cli import session as session_module
from batchscore.database import Database
from batchscore.errors import TransientError
from batchscore.interval import Interval
from batchscore.ledger import Lease, Owner, Run, Totals
from batchscore.run.lease import leased
from batchscore.warehouse import Warehouse, open_warehouse

LONG_AGO = "2024-06-01 00:00:00"
OF_RUNS = ("runs", "chunks", "rejects", "profiles", "drift")


def day(number: int) -> tuple[str, ...]:
    """The options for one day of February, in two chunks."""
    return ("--from", f"2024-02-0{number}", "--to", f"2024-02-0{number + 1}", "--chunk-rows", "50")


@pytest.fixture
def used(anywhere: Project) -> Project:
    """Day 1 published twice, with a reject; day 2 failed; day 3 killed half-way; day 4 held, and day 5 without rows."""
    url = anywhere.url
    toy.execute(
        url,
        "UPDATE toy SET a = NULL WHERE id = 3101 OR id BETWEEN 3201 AND 3220",
        "UPDATE toy SET a = 1, b = 1, c = 'x' WHERE id BETWEEN 3401 AND 3500",
        "DELETE FROM toy WHERE id > 3500",
    )
    anywhere.edit("jobs/toy.toml", ("[limits]", "[publish]\nvarying = true\nleast_rows = 0.5\nover = 3\n\n[limits]"))
    assert anywhere.call("backfill", "toy", *day(1)).code == 0
    assert anywhere.call("backfill", "toy", *day(1), "--only", "all").code == 0
    assert anywhere.call("backfill", "toy", *day(2)).code == 11
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batchscore.faults._spent", False)
        assert anywhere.call("backfill", "toy", *day(3), BATCHSCORE_FAULT="after_commit:0:raise").code == 70
    toy.execute(url, "UPDATE batchscore_runs SET status = 'running', error = NULL WHERE error LIKE 'RuntimeError%'")
    assert anywhere.call("backfill", "toy", *day(4)).code == 31
    assert statuses(anywhere) == ["failed", "held", "published", "running", "superseded"]
    return anywhere


def statuses(project: Project) -> list[str]:
    """The status of every run, sorted."""
    return [status for (status,) in toy.query(project.url, "SELECT status FROM batchscore_runs ORDER BY status")]


def age(project: Project, where: str = "1 = 1", to: str = LONG_AGO) -> None:
    """Let runs have begun long ago."""
    toy.execute(project.url, f"UPDATE batchscore_runs SET scored_at = '{to}' WHERE {where}")


def everything(project: Project) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of every table that batchscore has there."""
    return {
        name: sorted(toy.query(project.url, f"SELECT * FROM {name}"), key=repr)
        for name in toy.tables(project.url)
        if name.startswith(("batchscore_", "toy_")) and not name.startswith("batchscore_leases")
    }


def stages(project: Project) -> set[str]:
    """The names of all stages."""
    return {name for name in toy.tables(project.url) if "stage" in name}


def of_status(project: Project, status: str) -> str:
    """The id of the one run of that status."""
    ((run_id,),) = toy.query(project.url, f"SELECT run_id FROM batchscore_runs WHERE status = '{status}'")
    return str(run_id)


def kept(project: Project, run_id: str) -> dict[str, int]:
    """How many rows of each of the ledger's tables are about a run."""
    counts = {}
    for name in OF_RUNS:
        sql = f"SELECT count(*) FROM batchscore_{name} WHERE run_id = '{run_id}'"
        ((counts[name],),) = toy.query(project.url, sql)
    return counts


def stage_of(run_id: str) -> str:
    """The name of a run's stage."""
    return f"batchscore_stage_{run_id.replace('-', '')[:20]}"


def prune(project: Project, older_than: str = "30d", *options: str) -> dict[str, int]:
    """Prune, and give what it says of how much: nothing of what is none."""
    result = project.call("runs", "prune", "--older-than", older_than, *options)
    assert result.code == 0, result.out
    (event,) = result.events
    assert (event["event"], event["dry_run"]) == ("runs.pruned", "--dry-run" in options)
    counts = ("superseded_runs", "stages", "rejects", "abandoned_runs")
    return {name: event[name] for name in counts if event[name]}


class TestPrune:
    """What goes and what stays."""

    def test_exactly(self, used: Project) -> None:
        """All of a superseded run goes, chunks and rejects of unfinished ones, their stages, and rejects of published.

        A held run keeps all it has.
        """
        age(used)
        names = ("superseded", "published", "failed", "running", "held")
        ids = {status: of_status(used, status) for status in names}
        before, rows = {status: kept(used, run_id) for status, run_id in ids.items()}, used.table(("id", "run_id"))
        assert len(stages(used)) == 3

        rejects = sum(counts["rejects"] for counts in before.values())
        assert rejects == 22

        said = prune(used)

        assert said == {"superseded_runs": 1, "stages": 2, "rejects": rejects, "abandoned_runs": 2}
        assert used.table(("id", "run_id")) == rows
        assert stages(used) == {stage_of(ids["held"])}
        after = {status: kept(used, run_id) for status, run_id in ids.items()}
        assert set(after["superseded"].values()) == {0}
        assert after["published"] == before["published"] | {"rejects": 0}
        assert before["published"]["rejects"] == 1
        assert after["held"] == before["held"]
        for status in ("failed", "running"):
            assert before[status]["chunks"] > 0
            assert after[status] == before[status] | {"chunks": 0, "rejects": 0}
        assert before["failed"]["rejects"] == 20

    def test_again(self, used: Project) -> None:
        """What is removed once is not told of again."""
        age(used)
        prune(used)

        assert prune(used) == {}

    def test_dry_run(self, used: Project) -> None:
        """With --dry-run it says the same and removes nothing."""
        age(used)
        before = everything(used)

        said = prune(used, "30d", "--dry-run")

        assert everything(used) == before
        assert prune(used) == said
        assert said["superseded_runs"] == 1

    def test_young(self, used: Project) -> None:
        """What is younger stays, a run that is held without a single row too, which can still be published."""
        used.edit("jobs/toy.toml", ("over = 3", "over = 3\nscore_range = [0.0, 1.0]"))
        toy.execute(used.url, "UPDATE batchscore_runs SET rows_read = 100 WHERE status = 'held'")
        _publish_three_before(used)
        assert used.call("backfill", "toy", *day(5)).code == 31
        before = everything(used)

        assert prune(used) == {}

        assert everything(used) == before
        (empty,) = toy.query(used.url, "SELECT run_id FROM batchscore_runs WHERE status = 'held' AND rows_read = 0")
        done = used.call("runs", "publish", empty[0], "--override", "--reason", "nobody flew")
        assert done.code == 0, done.out

    @pytest.mark.parametrize("status", ["superseded", "published", "running"])
    def test_one_is_old(self, used: Project, status: str) -> None:
        """Only what is about the old run goes."""
        run_id = of_status(used, status)
        others = {other: kept(used, of_status(used, other)) for other in statuses(used) if other != status}
        age(used, f"run_id = '{run_id}'")

        said = prune(used)

        removed = {"superseded": {"superseded_runs": 1, "rejects": 1}, "published": {"rejects": 1}}
        assert said == removed.get(status, {"stages": 1, "abandoned_runs": 1})
        assert {other: kept(used, of_status(used, other)) for other in others} == others
        assert len(stages(used)) == (3 if status in ("superseded", "published") else 2)

    def test_at_work(self, used: Project) -> None:
        """Nothing is taken from a run whose lease is live, however old it is; when the lease has ended it is."""
        age(used)
        run_id = of_status(used, "running")
        before = kept(used, run_id)
        lease = (
            "UPDATE batchscore_leases SET owner = 'far/1/1/x', expires_at = '{}' "
            "WHERE interval_start = (SELECT interval_start FROM batchscore_runs WHERE status = 'running')"
        )
        toy.execute(used.url, lease.format("2100-01-01 00:00:00"))

        assert prune(used) == {"superseded_runs": 1, "stages": 1, "rejects": 22, "abandoned_runs": 1}
        assert kept(used, run_id) == before
        assert stages(used) == {stage_of(run_id), stage_of(of_status(used, "held"))}

        toy.execute(used.url, lease.format(LONG_AGO))
        assert prune(used) == {"stages": 1, "abandoned_runs": 1}

    @pytest.mark.parametrize("anywhere", toy.DATABASES[1:], indirect=True)
    def test_taken_up_meanwhile(self, used: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """A run that somebody takes up, or finishes, after it was found abandoned keeps all it has."""
        age(used)
        running, failed = of_status(used, "running"), of_status(used, "failed")
        before = {run_id: kept(used, run_id) for run_id in (running, failed)}
        taken = f"interval_start = (SELECT interval_start FROM batchscore_runs WHERE run_id = '{running}')"
        meanwhile = [
            f"UPDATE batchscore_leases SET owner = 'far/1/1/x', expires_at = '2100-01-01 00:00:00' WHERE {taken}",
            f"UPDATE batchscore_runs SET status = 'held' WHERE run_id = '{failed}'",
        ]

        def slow(*args: Any) -> AbstractContextManager[Lease]:
            toy.execute(used.url, *meanwhile)
            return leased(*args)

        monkeypatch.setattr("batchscore.run.prune.leased", slow)

        assert prune(used) == {"superseded_runs": 1, "rejects": 2}
        assert {run_id: kept(used, run_id) for run_id in (running, failed)} == before
        assert {stage_of(running), stage_of(failed)} <= stages(used)

    def test_a_connection_that_is_lost(self, used: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a database refuses for now is tried again, step by step, and the counts are the same."""
        age(used)
        steps = {"forget_old": ledger.forget_old, "forget_work": ledger.forget_work, "check": ledger.check}
        failed: list[str] = []

        def flaky(name: str, *args: Any, **kwargs: Any) -> Any:
            if name not in failed:
                failed.append(name)
                raise TransientError(f"{name} is not to be had")
            return steps[name](*args, **kwargs)

        for name in steps:
            monkeypatch.setattr(ledger, name, partial(flaky, name))
        result = used.call("runs", "prune", "--older-than", "30d")

        assert result.code == 0, result.out
        assert len(result.named("attempt.failed")) == 3
        (event,) = result.named("runs.pruned")
        assert (event["superseded_runs"], event["stages"], event["rejects"], event["abandoned_runs"]) == (1, 2, 22, 2)

    def test_a_process_that_stood_still(self, used: Project) -> None:
        """Whoever had the lease of a run that was pruned, and wakes, can commit no more."""
        age(used)
        fence = (
            "SELECT fence FROM batchscore_leases WHERE interval_start = "
            "(SELECT interval_start FROM batchscore_runs WHERE status = 'running')"
        )
        before = toy.query(used.url, fence)

        prune(used)

        assert toy.query(used.url, fence) > before

    def test_begins_anew(self, used: Project) -> None:
        """A run that was pruned is scored from its first row when it is taken up, and published like any other."""
        age(used)
        prune(used)

        result = used.call("backfill", "toy", *day(3))

        assert result.code == 0, result.out
        assert not result.named("run.resumed")
        assert [event["chunk"] for event in result.named("chunk.committed")] == [0, 1]
        assert result.named("run.published")[0]["rows_read"] == 100

    def test_a_held_run_waits(self, used: Project) -> None:
        """However old it is, a held run can be published after a prune; overtaken, it goes like any other."""
        age(used)
        prune(used)

        result = used.call("runs", "publish", of_status(used, "held"), "--override", "--reason", "why")

        assert result.code == 0, result.out
        assert {row[0] for row in used.table()} == {*range(3102, 3201), *range(3401, 3501)}
        assert stages(used) == set()

    def test_a_held_run_is_overtaken(self, used: Project) -> None:
        """When its interval is published by another run, a held run is superseded, and the next prune takes it away."""
        held = of_status(used, "held")
        used.edit("jobs/toy.toml", ("varying = true\n", ""))
        used.edit("sql/toy/rows.sql", ("FROM toy", "FROM toy /* mended */"))
        assert used.call("backfill", "toy", *day(4), "--accept-sql", "mended").code == 0
        age(used, f"run_id = '{held}'")

        assert prune(used) == {"superseded_runs": 1}
        assert set(kept(used, held).values()) == {0}

    def test_a_new_id(self, anywhere: Project) -> None:
        """An interval that is scored again after its superseded runs were pruned gets an id that no run had before."""
        for _ in range(3):
            assert anywhere.call("backfill", "toy", *day(1), "--only", "all").code == 0
        ids = {run_id for (run_id,) in toy.query(anywhere.url, "SELECT run_id FROM batchscore_runs")}
        assert len(ids) == 3
        age(anywhere)

        assert prune(anywhere) == {"superseded_runs": 2}
        assert anywhere.call("backfill", "toy", *day(1), "--only", "all").code == 0

        assert {run_id for (run_id,) in anywhere.table(("run_id",))}.isdisjoint(ids)
        revisions = "SELECT status, revision FROM batchscore_runs ORDER BY status"
        assert toy.query(anywhere.url, revisions) == [("published", 3), ("superseded", 2)]

    @pytest.mark.parametrize("anywhere", ["postgres", "sqlite"], indirect=True)
    def test_years(self, anywhere: Project) -> None:
        """A ledger of more runs than a statement takes parameters is pruned like any other."""
        for _ in range(2):
            assert anywhere.call("backfill", "toy", *day(1), "--only", "all").code == 0
        with open_warehouse(Database.at(anywhere.url)) as warehouse, warehouse.begin() as tx:
            numbers = sa.literal(1).label("n")
            series = sa.select(numbers).cte("series", recursive=True)
            series = series.union_all(sa.select(series.c.n + 1).where(series.c.n < 70_000))
            values = [
                (sa.cast(series.c.n, sa.String) if name == "run_id" else column).label(name)
                for name, column in ledger.RUNS.c.items()
            ]
            copies = (
                sa.select(*values)
                .select_from(series.join(ledger.RUNS, sa.true()))
                .where(ledger.RUNS.c.status == "superseded")
            )
            tx.connection.execute(sa.insert(ledger.RUNS).from_select(list(ledger.RUNS.c.keys()), copies))
        age(anywhere)

        assert prune(anywhere, "30d", "--dry-run") == {"superseded_runs": 70_001}
        assert prune(anywhere) == {"superseded_runs": 70_001}
        assert statuses(anywhere) == ["published"]

    @pytest.mark.parametrize("anywhere", ["postgres", "sqlite", "duckdb"], indirect=True)
    def test_a_dry_run_only_reads(self, used: Project) -> None:
        """--dry-run opens the warehouse to read: it counts the same and needs no right to write."""
        age(used)
        with pytest.MonkeyPatch.context() as patch:
            opened: list[bool] = []
            whole = session_module.open_warehouse

            def watched(database: Database, *, read_only: bool, delta_url: str | None) -> Warehouse:
                opened.append(read_only)
                return whole(database, read_only=read_only, delta_url=delta_url)

            patch.setattr(session_module, "open_warehouse", watched)
            said = prune(used, "30d", "--dry-run")

        assert opened == [True]
        assert said == prune(used)

    @pytest.mark.parametrize("scheme", ["duckdb", "sqlite"])
    @pytest.mark.parametrize(
        "command",
        [
            ("prune", "--older-than", "30d"),
            ("prune", "--older-than", "30d", "--dry-run"),
            ("publish", "abc", "--override", "--reason", "why"),
        ],
        ids=["prune", "dry run", "publish"],
    )
    def test_no_warehouse(self, project: Project, scheme: str, command: tuple[str, ...]) -> None:
        """A file that is not there is an error that names it, and neither it nor its folder is made."""
        path = project.root / "new" / "warehouse"

        result = project.call("runs", *command, BATCHSCORE_WAREHOUSE_URL=f"{scheme}:///{path}")

        assert result.code == 12
        assert f"{path}: there is no such file" in result.error
        assert not path.parent.exists()

    def test_no_ledger(self, anywhere: Project) -> None:
        """Where nothing ever ran there is nothing to remove, and no table is made."""
        before = toy.tables(anywhere.url)

        assert prune(anywhere) == {}
        assert toy.tables(anywhere.url) == before


def _publish_three_before(project: Project) -> None:
    """Let the ledger have three published intervals of a hundred rows before any other."""
    with open_warehouse(Database.at(project.url)) as warehouse, warehouse.begin() as tx:
        (model,) = [run for run in ledger.history(tx.connection) if run.status == "published"]
        for number in (1, 2, 3):
            start = model.interval.start - timedelta(days=number)
            run = _run(f"before {number}", Interval(start, start + timedelta(days=1)), output_table=model.output_table)
            ledger.begin(tx.connection, run, "0.1.0")
            _publish(tx.connection, run)


class TestAges:
    """`--older-than`."""

    @pytest.mark.parametrize("text", ["90", "d", "", "1y", "-1d", "1.5d", "1 d", "999999999999999w"])
    def test_wrong(self, project: Project, text: str) -> None:
        """An age that cannot be read, or lies before all calendars, is a usage error that shows one that can."""
        result = project.call("runs", "prune", f"--older-than={text}")

        assert result.code == 2
        assert f"--older-than {text!r}" in result.error
        assert "90d" in result.error

    @pytest.mark.parametrize(("text", "hours"), [("30h", 30), ("2d", 48), ("1w", 168)])
    def test_units(self, project: Project, text: str, hours: int) -> None:
        """An hour, a day and a week have their lengths: a minute more is old, a minute less is not."""
        assert project.call("backfill", "toy", *day(1)).code == 0
        assert project.call("backfill", "toy", *day(1), "--only", "all").code == 0
        limit, minute = datetime.now(UTC) - timedelta(hours=hours), timedelta(minutes=1)

        age(project, "status = 'superseded'", str(limit + minute))
        assert prune(project, text) == {}
        age(project, "status = 'superseded'", str(limit - minute))
        assert prune(project, text) == {"superseded_runs": 1}


NOW = datetime(2024, 6, 1, tzinfo=UTC)
DAY = Interval(datetime(2024, 2, 1, tzinfo=UTC), datetime(2024, 2, 2, tzinfo=UTC))


def _run(run_id: str, interval: Interval = DAY, *, scored_at: datetime = NOW, output_table: str = "predictions") -> Run:
    return Run(
        run_id=run_id,
        job="toy",
        interval=interval,
        model_name="toy",
        model_version=1,
        bundle_digest="digest",
        revision=0,
        output_table=output_table,
        scored_at=scored_at,
    )


def _publish(connection: Any, run: Run) -> None:
    none = ledger.Progress(0).inputs
    ledger.publish(connection, run, Totals(1, 100, 100, 0), none, [], NOW)


class TestLedger:
    """`forget_old`, `abandoned` and `stages_in_use`."""

    @pytest.fixture
    def warehouse(self, tmp_path: Any) -> Any:
        """A warehouse with an empty ledger."""
        with open_warehouse(Database.at(f"sqlite:///{tmp_path}/warehouse")) as opened:
            opened.create(ledger.METADATA)
            yield opened

    def test_at_the_instant(self, warehouse: Warehouse) -> None:
        """A run that began at the very instant is not before it."""
        with warehouse.begin() as tx:
            for run in (_run("a"), _run("b")):
                ledger.begin(tx.connection, run, "0.1.0")
                _publish(tx.connection, run)

            assert ledger.forget_old(tx.connection, NOW) == (0, 0)
            assert ledger.forget_old(tx.connection, NOW + timedelta(microseconds=1)) == (1, 0)
            assert [run.run_id for run in ledger.history(tx.connection)] == ["b"]

    def test_abandoned(self, warehouse: Warehouse) -> None:
        """Abandoned are unfinished old runs that nobody has the lease of; stages in use those of all that may go on."""
        with warehouse.begin() as tx:
            intervals = [Interval(DAY.start + timedelta(days=i), DAY.end + timedelta(days=i)) for i in range(4)]
            names = ("published", "young", "old", "old at work")
            times = {"young": NOW + timedelta(days=1), "published": NOW + timedelta(days=1)}
            runs = {
                name: _run(f"{i}-{name}", interval, scored_at=times.get(name, NOW))
                for i, (name, interval) in enumerate(zip(names, intervals, strict=True))
            }
            for run in runs.values():
                ledger.begin(tx.connection, run, "0.1.0")
            _publish(tx.connection, runs["published"])
            ledger.acquire(tx.connection, "toy", intervals[3], Owner.here(), seconds=60)

            found = ledger.abandoned(tx.connection, NOW + timedelta(hours=1))

            assert [run.run_id for run in found] == [runs["old"].run_id]
            assert ledger.stages_in_use(tx.connection) == {runs[name].stage for name in names if name != "published"}
