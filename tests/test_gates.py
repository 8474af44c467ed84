"""Gates: a run that does not pass is held, and nothing but a person with a reason lets it through."""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import polars as pl
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st
from toy import Project

from batchscore.cli import runs as command
from batchscore.job import Publish
from batchscore.ledger import Totals
from batchscore.profile import Profile
from batchscore.run.gates import tripped

DAY = ("--from", "2024-02-04", "--to", "2024-02-05")
FOUR_DAYS = ("--from", "2024-02-01", "--to", "2024-02-05")
NAMES_OF_USER = ("LOGNAME", "USER", "LNAME", "USERNAME")
FEW_ROWS = "DELETE FROM toy WHERE id BETWEEN 3401 AND 3460"


def outputs(score: Any = (0.1, 0.9), prediction: Any = None) -> Profile:
    """The profile of scores and predictions, laid out by training's: uniform scores, as many of each class."""
    return Profile.of(_frame(score, prediction), REFERENCE_LAYOUTS)


def _frame(score: Any, prediction: Any = None) -> pl.DataFrame:
    scores = np.asarray(score, dtype=float)
    labels = np.asarray(scores > 0.5 if prediction is None else prediction)
    return pl.DataFrame({"prediction": labels, "score": scores})


UNIFORM = np.linspace(0, 1, 2000)
REFERENCE_LAYOUTS = Profile.layouts_of(_frame(UNIFORM))
REFERENCE = Profile.of(_frame(UNIFORM), REFERENCE_LAYOUTS)


def names(
    gates: Publish,
    rows: int = 100,
    rejects: int = 0,
    earlier: tuple[int, ...] = (),
    given: Profile | None = None,
    reference: Profile = REFERENCE,
) -> list[str]:
    """The gates that trip, by the name at the head of their words."""
    totals = Totals(1, rows, rows - rejects, rejects)
    return [words.partition(":")[0] for words in tripped(gates, totals, earlier, given or outputs(), reference)]


class TestRows:
    """`least_rows` and `most_rows`."""

    @pytest.mark.parametrize(("rows", "trips"), [(49, ["least_rows"]), (50, []), (200, []), (201, ["most_rows"])])
    def test_bounds(self, rows: int, trips: list[str]) -> None:
        """Half of the median and twice the median are well; a row less or more is not."""
        assert names(Publish(least_rows=0.5, most_rows=2.0), rows, earlier=(90, 100, 5000)) == trips

    @pytest.mark.parametrize(("earlier", "trips"), [((), []), ((100, 100), []), ((100,) * 3, ["least_rows"])])
    def test_few_intervals(self, earlier: tuple[int, ...], trips: list[str]) -> None:
        """Fewer than three earlier intervals are not judged by."""
        assert names(Publish(least_rows=0.5), 1, earlier=earlier) == trips

    def test_even(self) -> None:
        """The median of an even number of intervals lies between the two in the middle."""
        gates = Publish(least_rows=1.0)

        assert [names(gates, rows, earlier=(1, 100, 101, 900)) for rows in (100, 101)] == [["least_rows"], []]

    @pytest.mark.parametrize(("rows", "trips"), [(0, []), (1, ["most_rows"])])
    def test_empty(self, rows: int, trips: list[str]) -> None:
        """Where intervals are empty as a rule, an empty one is well."""
        assert names(Publish(least_rows=0.5, most_rows=2.0), rows, earlier=(0, 0, 0, 7)) == trips

    @given(st.integers(1, 300), st.integers(1, 10_000).map(lambda n: n * 100))
    def test_as_it_is_written(self, percent: int, middle: int) -> None:
        """A share in decimals is meant exactly: 0.07 times 100 rows are 7 rows, though not in floats."""
        share, rows = float(f"{percent / 100:.2f}"), percent * middle // 100
        gates = Publish(least_rows=share, most_rows=share)

        found = [names(gates, rows + more, earlier=(middle,) * 3) for more in (-1, 0, 1)]

        assert found == [["least_rows"], [], ["most_rows"]]

    def test_words(self) -> None:
        """The words have the count, the gate's share and what it is measured by."""
        words = tripped(Publish(least_rows=0.5), Totals(1, 400, 400, 0), (900, 1000, 1200), outputs(), REFERENCE)

        assert words == [
            "least_rows: 400 rows are less than 0.5 times the median of the last 3 published intervals, 1,000"
        ]


class TestRejects:
    """`rejects`."""

    @pytest.mark.parametrize(("rejects", "trips"), [(0, []), (2, []), (3, ["rejects"]), (100, ["rejects"])])
    def test_bounds(self, rejects: int, trips: list[str]) -> None:
        """The share itself is well; a row more is not."""
        assert names(Publish(rejects=0.02), 100, rejects) == trips

    def test_none(self) -> None:
        """With 0, no row may be rejected; of no rows none is."""
        assert [names(Publish(rejects=0.0), *counts) for counts in ((100, 1), (100, 0), (0, 0))] == [
            ["rejects"],
            [],
            [],
        ]

    @given(st.integers(0, 99))
    def test_as_it_is_written(self, percent: int) -> None:
        """A share in decimals is meant exactly: 0.29 of 100 rows are 29 rows, though not in floats."""
        gates = Publish(rejects=float(f"{percent / 100:.2f}"))

        assert [names(gates, 100, percent + more) for more in (0, 1)] == [[], ["rejects"]]


class TestScores:
    """`varying` and `score_range`."""

    @pytest.mark.parametrize(
        ("score", "trips"), [([0.3] * 5, ["varying"]), ([0.3, 0.3, 0.30001], []), ([0.3], []), ([], [])]
    )
    def test_varying(self, score: list[float], trips: list[str]) -> None:
        """Two rows or more with one score trip; a single row cannot vary."""
        assert names(Publish(varying=True), given=outputs(score)) == trips

    def test_a_class_alone_does_not_trip(self) -> None:
        """Where there are scores it is they that must vary: every prediction may be the same."""
        assert names(Publish(varying=True), given=outputs([0.1, 0.2], [False, False])) == []

    @pytest.mark.parametrize(
        ("score", "trips"),
        [([0.1, 0.9], []), ([0.0999, 0.5], ["score_range"]), ([0.5, 0.9001], ["score_range"]), ([], [])],
    )
    def test_range(self, score: list[float], trips: list[str]) -> None:
        """The bounds themselves are well; beyond them is not."""
        assert names(Publish(score_range=(0.1, 0.9)), given=outputs(score)) == trips

    def test_each_class(self) -> None:
        """Each score of a multiclass job is judged, and named."""
        frame = pl.DataFrame({"prediction": ["a", "b"], "score_a": [0.5, 0.5], "score_b": [0.1, 1.5]})
        profile = Profile.of(frame, Profile.layouts_of(frame))
        gates = Publish(varying=True, score_range=(0, 1))

        words = tripped(gates, Totals(1, 2, 2, 0), (), profile, profile)

        assert words == [
            "varying: score_a is 0.5 in all 2 rows",
            "score_range: score_b goes from 0.1 to 1.5, out of [0.0, 1.0]",
        ]

    def test_regression(self) -> None:
        """A regression has no score: its predictions are judged."""
        frame = pl.DataFrame({"prediction": [7.0, 7.0]})
        profile = Profile.of(frame, Profile.layouts_of(frame))

        assert names(Publish(varying=True, score_range=(0, 5)), given=profile, reference=profile) == [
            "varying",
            "score_range",
        ]


class TestShift:
    """`score_psi`."""

    def test_bounds(self) -> None:
        """Scores that moved trip a gate below their index and pass one above it; words name each column."""
        moved = outputs(UNIFORM**3)
        (score,) = [
            float(words.partition("PSI of ")[2].partition(" ")[0])
            for words in tripped(Publish(score_psi=0.05), Totals(1, 2000, 2000, 0), (), moved, REFERENCE)
            if "score has" in words
        ]

        assert 0.2 < score < 5
        assert "score_psi" in names(Publish(score_psi=score * 0.99), given=moved)
        assert names(Publish(score_psi=score * 1.01), given=moved) == []

    def test_chance(self) -> None:
        """What chance explains at so few rows never trips, however low the gate is."""
        sample = np.random.default_rng(1).uniform(size=250)

        assert names(Publish(score_psi=1e-9), given=outputs(sample)) == []

    def test_few_rows(self) -> None:
        """Fewer rows than can tell pass, however far they moved."""
        assert names(Publish(score_psi=0.01), given=outputs([0.99] * 199)) == []
        assert names(Publish(score_psi=0.01), given=outputs([0.99] * 200)) == ["score_psi"] * 2


def test_no_gate() -> None:
    """A job without [publish] publishes whatever it has."""
    assert names(Publish(), 100, 100, (1, 1, 1), outputs([9.0] * 1000)) == []


def test_every_gate_tells() -> None:
    """Every gate that trips is told, not the first alone."""
    gates = Publish(least_rows=2, rejects=0.1, varying=True, score_range=(0, 0.5), score_psi=0.2)

    found = names(gates, 1000, 500, (1000,) * 3, outputs([0.9] * 500))

    assert found == ["least_rows", "rejects", "varying", "score_range", "score_psi", "score_psi"]


@pytest.fixture
def held(anywhere: Project) -> Project:
    """Four days are published; then the last loses 60 of its 100 rows, is scored again, and held."""
    assert anywhere.call("backfill", "toy", *FOUR_DAYS).code == 0
    _gate(anywhere, "least_rows = 0.5")
    toy.execute(anywhere.url, FEW_ROWS)
    assert anywhere.call("score", "toy", "--interval", "2024-02-04", "--force", "--chunk-rows", "15").code == 31
    return anywhere


def _gate(project: Project, gate: str) -> None:
    project.edit("jobs/toy.toml", ("[limits]", f"[publish]\n{gate}\n\n[limits]"))


def _run(project: Project, status: str) -> dict[str, Any]:
    """The one run of that status."""
    (run,) = [
        run for run in json.loads(project.call("runs", "list", "--format", "json").out) if run["status"] == status
    ]
    return dict(run)


class TestHeld:
    """A run that a gate stops."""

    def test_old_rows_stay(self, held: Project) -> None:
        """What was published stays, row for row; the candidate's rows stay staged, and its run is held."""
        assert [row[0] for row in held.table()] == list(range(3101, 3501))
        assert {run_id for (run_id,) in held.table(("run_id",))}.isdisjoint({_run(held, "held")["run_id"]})
        (stage,) = [name for name in toy.tables(held.url) if "stage" in name]
        assert toy.query(held.url, f"SELECT min(id), count(*) FROM {stage}") == [(3461, 40)]
        plan = json.loads(held.call("plan", "toy", *DAY, "--only", "all", "--format", "json").out)
        assert [(row["state"], row["rows"]) for row in plan] == [("published", 100)]

    def test_shown(self, held: Project) -> None:
        """`runs show` tells the counts, the gate's words and what the run saw."""
        run = _run(held, "held")
        why = "least_rows: 40 rows are less than 0.5 times the median of the last 3 published intervals, 100"

        table = held.call("runs", "show", run["run_id"]).out
        shown = json.loads(held.call("runs", "show", run["run_id"], "--format", "json").out)

        assert (run["rows_read"], run["predictions"], run["rejects"], run["chunks"]) == (40, 40, 0, 3)
        assert run["published_at"] is run["override_reason"] is run["override_by"] is None
        assert "nothing: a gate holds it" in table
        assert why in table
        assert shown["error"] == run["error"] == why
        assert {column["row_count"] for column in shown["columns"]} == {40}

    @pytest.mark.parametrize(
        "again",
        [
            ("score", "toy", "--interval", "2024-02-04", "--force"),
            ("backfill", "toy", *DAY, "--only", "all", "--chunk-rows", "7"),
        ],
        ids=["score", "backfill"],
    )
    def test_again(self, held: Project, again: tuple[str, ...]) -> None:
        """The next attempt scores no chunk a second time, trips again and tells how to go on; the same run is held."""
        before, table = _run(held, "held"), held.table()

        result = held.call(*again)

        assert result.code == 31
        assert not result.named("chunk.committed")
        assert [event["chunks"] for event in result.named("run.resumed")] == [3]
        assert f"batchscore runs publish {before['run_id'][:8]} --override" in result.error
        assert _run(held, "held") == before
        assert held.table() == table

    def test_mended(self, held: Project) -> None:
        """When the missing rows have come, the interval is scored anew and published, and nothing of it is left over."""
        before = _run(held, "held")
        toy.load(held.url, toy.rows())

        result = held.call("score", "toy", "--interval", "2024-02-04", "--force")

        assert result.code == 0, result.out
        assert result.named("run.restarted")
        assert result.named("run.published")[0]["rows_read"] == 100
        assert not [name for name in toy.tables(held.url) if "stage" in name]
        shown = json.loads(held.call("runs", "show", before["run_id"], "--format", "json").out)
        assert (shown["run"]["status"], shown["error"]) == ("published", None)

    def test_first_time(self, anywhere: Project) -> None:
        """An interval without earlier rows has none when it is held; it is due, is tried again, and holds up no other."""
        _gate(anywhere, "varying = true")
        anywhere.edit("jobs/toy.toml", ("start = 2024-02-01", "start = 2024-02-01\ncatch_up = 3"))
        toy.execute(anywhere.url, "UPDATE toy SET a = 1, b = 1, c = 'x' WHERE id BETWEEN 3201 AND 3300")

        first = anywhere.call("score", "toy")
        plan = json.loads(anywhere.call("plan", "toy", *FOUR_DAYS, "--only", "failed", "--format", "json").out)
        second = anywhere.call("score", "toy", "--interval", "2024-02-02")
        third = anywhere.call("backfill", "toy", *FOUR_DAYS)

        assert [result.code for result in (first, second, third)] == [31, 31, 31]
        assert [event["interval_start"][:10] for event in first.named("run.published")] == ["2024-02-01", "2024-02-03"]
        assert [(row["interval"], row["state"]) for row in plan] == [("2024-02-02", "held")]
        assert plan[0]["why"].startswith("held: varying: score is 0.")
        assert not second.named("chunk.committed")
        assert [event["interval_start"][:10] for event in third.named("run.published")] == ["2024-02-04"]
        assert [row[0] for row in anywhere.table()] == [*range(3101, 3201), *range(3301, 3501)]

    def test_rejects_and_range(self, anywhere: Project) -> None:
        """Gates on rejects and scores are asked too; a hold keeps the rejects, and every gate's words."""
        _gate(anywhere, "rejects = 0.02\nscore_range = [0.4, 0.6]")
        toy.execute(anywhere.url, "UPDATE toy SET a = NULL WHERE id IN (3401, 3402, 3403)")

        result = anywhere.call("backfill", "toy", *DAY)

        assert result.code == 31
        run = _run(anywhere, "held")
        first, second = run["error"].splitlines()
        assert first == "rejects: 3 of 100 rows are more than 0.02 of them"
        assert second.startswith("score_range: score goes from 0.")
        shown = json.loads(anywhere.call("runs", "show", run["run_id"], "--format", "json").out)
        assert [reject["row_key"] for reject in shown["rejects"]] == ["[3401]", "[3402]", "[3403]"]


class TestOverride:
    """`runs publish`."""

    def test_published(self, held: Project) -> None:
        """The staged rows replace the old ones as they were scored; the ledger keeps who did it and why."""
        run, before = _run(held, "held"), held.table()

        result = held.call("runs", "publish", run["run_id"][:8], "--override", "--reason", "a holiday: 'few' flew")

        assert result.code == 0, result.out
        assert held.table() == [row for row in before if not 3401 <= row[0] <= 3460]
        assert set(held.table(("id", "run_id"))[-40:]) == {(id_, run["run_id"]) for id_ in range(3461, 3501)}
        shown = json.loads(held.call("runs", "show", run["run_id"], "--format", "json").out)
        done, by = shown["run"], f"{getpass.getuser()}@{socket.gethostname()}"
        assert (done["status"], done["override_reason"], done["override_by"]) == (
            "published",
            "a holiday: 'few' flew",
            by,
        )
        assert (done["predictions"], done["error"], done["scored_at"]) == (40, run["error"], run["scored_at"])
        assert f"\npassed over: {run['error']}\n" in held.call("runs", "show", run["run_id"]).out
        told = [
            (event["level"], event["reason"], event["by"], event["gates"]) for event in result.named("run.overridden")
        ]
        assert told == [("warning", "a holiday: 'few' flew", by, run["error"])]
        assert _run(held, "superseded")["rows_read"] == 100
        assert not [name for name in toy.tables(held.url) if "stage" in name]
        assert toy.query(held.url, f"SELECT count(*) > 0 FROM batchscore_drift WHERE run_id = '{run['run_id']}'")[0][0]
        assert held.call("backfill", "toy", *FOUR_DAYS).named("run.nothing_due")

    def test_next_is_judged_by_it(self, held: Project) -> None:
        """Publishing past a gate is for one run: the next that does not pass is held."""
        held.call("runs", "publish", _run(held, "held")["run_id"], "--override", "--reason", "a holiday")

        again = held.call("score", "toy", "--interval", "2024-02-04", "--force")

        assert again.code == 31
        assert _run(held, "held")["override_reason"] is None

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (("--reason", "a holiday"), "say --override"),
            (("--override", "--reason", "  "), "--reason is empty"),
        ],
    )
    def test_said_in_full(self, held: Project, options: tuple[str, ...], told: str) -> None:
        """Without --override, or without a reason, nothing is published and the call is wrong."""
        before = held.table(("id", "run_id"))

        result = held.call("runs", "publish", _run(held, "held")["run_id"], *options)

        assert result.code == 2
        assert told in result.error
        assert held.table(("id", "run_id")) == before
        assert _run(held, "held")

    def test_only_held(self, held: Project) -> None:
        """A run that no gate holds, and one that is not there, are refused."""
        published = json.loads(held.call("runs", "list", "--format", "json").out)[0]["run_id"]

        found = [
            held.call("runs", "publish", run, "--override", "--reason", "why") for run in (published, "ffffffff-none")
        ]

        assert [result.code for result in found] == [2, 2]
        assert "is published, and only a held one can be published so" in found[0].error
        assert "no run's id begins with" in found[1].error

    def test_other_cut(self, anywhere: Project) -> None:
        """A held run whose time is published in another cut is refused: its rows would be there twice."""
        before = (anywhere.root / "jobs/toy.toml").read_text()
        _gate(anywhere, "varying = true")
        toy.execute(anywhere.url, "UPDATE toy SET a = 1, b = 1, c = 'x' WHERE id BETWEEN 3201 AND 3300")
        assert anywhere.call("score", "toy", "--interval", "2024-02-02").code == 31
        (anywhere.root / "jobs/toy.toml").write_text(before.replace('every = "day"', 'every = "month"'))
        assert anywhere.call("score", "toy", "--interval", "2024-02-01").code == 0
        rows = anywhere.table(("id", "run_id"))

        result = anywhere.call("runs", "publish", _run(anywhere, "held")["run_id"], "--override", "--reason", "why")

        assert result.code == 2
        assert "cuts time otherwise now" in result.error
        assert anywhere.table(("id", "run_id")) == rows
        assert len(rows) == 500

    def test_other_table(self, held: Project) -> None:
        """A job that names another output table since is refused: the run was scored for the one in the ledger."""
        before = held.table(("id", "run_id"))
        held.edit("jobs/toy.toml", ('table = "toy_predictions"', 'table = "elsewhere"'))
        assert held.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-02").code == 0

        result = held.call("runs", "publish", _run(held, "held")["run_id"], "--override", "--reason", "why")

        assert result.code == 2
        assert "toy_predictions, and job toy has table = 'elsewhere' now" in result.error
        assert held.table(("id", "run_id")) == before
        assert toy.query(held.url, "SELECT count(*) FROM elsewhere") == [(100,)]

    @pytest.mark.parametrize("lost", ["before", "after"])
    def test_a_commit_that_nobody_answers(self, held: Project, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
        """A connection that is lost in the publish is resolved by reading the ledger: published once, and said so."""
        point = {"before": "before_publish_commit", "after": "after_publish"}[lost]
        monkeypatch.setattr("batchscore.faults._spent", False)
        run_id = _run(held, "held")["run_id"]

        result = held.call(
            "runs", "publish", run_id, "--override", "--reason", "why", BATCHSCORE_FAULT=f"{point}:0:lose"
        )

        assert result.code == 0, result.out
        assert len(result.named("attempt.failed")) == 1
        assert len(result.named("run.overridden")) == 1
        rows = toy.query(held.url, "SELECT id, run_id FROM toy_predictions WHERE id > 3400 ORDER BY id")
        assert [row[0] for row in rows] == list(range(3461, 3501))
        assert {row[1] for row in rows} == {run_id}

    @pytest.mark.parametrize("anywhere", ["postgres", "duckdb"], indirect=True)
    def test_a_table_that_was_changed(self, held: Project) -> None:
        """Rows that were staged are not published into a table which has become too narrow for them."""
        before = held.table(("id", "run_id"))
        toy.execute(held.url, "ALTER TABLE toy_predictions ALTER COLUMN score TYPE REAL")

        result = held.call("runs", "publish", _run(held, "held")["run_id"], "--override", "--reason", "why")

        assert result.code == 12
        assert "score" in result.error
        assert held.table(("id", "run_id")) == before
        assert _run(held, "held")

    def test_taken_up_meanwhile(self, held: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """A run that another process took up before the lease was had is no longer what was looked at."""
        before = held.table(("id", "run_id"))
        run_id = _run(held, "held")["run_id"]
        leased = command.leased

        @contextmanager
        def late(warehouse: Any, *args: Any) -> Iterator[Any]:
            with warehouse.begin() as tx:
                tx.connection.exec_driver_sql(f"UPDATE batchscore_runs SET status = 'failed' WHERE run_id = '{run_id}'")
            with leased(warehouse, *args) as lease:
                yield lease

        monkeypatch.setattr(command, "leased", late)
        result = held.call("runs", "publish", run_id, "--override", "--reason", "why")

        assert result.code == 2
        assert "is failed, and only a held one" in result.error
        assert held.table(("id", "run_id")) == before

    def test_at_work(self, held: Project) -> None:
        """While another process has the interval's lease the run is not published."""
        toy.execute(
            held.url,
            "UPDATE batchscore_leases SET owner = 'elsewhere/1/1/far', expires_at = '2100-01-01 00:00:00' "
            "WHERE owner IS NULL",
        )

        result = held.call("runs", "publish", _run(held, "held")["run_id"], "--override", "--reason", "why")

        # Where the database admits one process, it is known to have ended.
        assert result.code == (0 if held.url.startswith("duckdb") else 21)

    def test_drift_that_cannot_be_kept(self, held: Project) -> None:
        """Published is published: where the comparison with training cannot be kept, that is told and the code is 0."""
        run_id = _run(held, "held")["run_id"]
        toy.execute(held.url, "DROP TABLE batchscore_drift")

        result = held.call("runs", "publish", run_id, "--override", "--reason", "why")

        assert result.code == 0, result.out
        told = [event["event"] for event in result.events][-3:]
        assert told == ["run.published", "run.overridden", "monitoring.failed"]
        assert _run(held, "superseded")

    @pytest.mark.skipif(os.getuid() != 0, reason="only root may become a user that nobody knows")
    def test_a_user_without_a_name(self) -> None:
        """Under a user id that has no name, as in a container, the ledger keeps the number."""
        become = "import os; from batchscore.person import person; os.setuid(54321); print(person())"
        environment = {name: value for name, value in os.environ.items() if name not in NAMES_OF_USER}

        done = subprocess.run(
            [sys.executable, "-c", become], env=environment, capture_output=True, text=True, check=False
        )

        assert done.stdout == f"54321@{socket.gethostname()}\n", done.stderr
