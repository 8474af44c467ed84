"""What `runs list` and `runs show` say of runs that went well, went wrong, or are not over."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import toy
from toy import Project

DAYS = ("--from", "2024-02-01", "--to", "2024-02-03")


def listed(project: Project) -> list[dict[str, Any]]:
    """The runs as JSON."""
    runs: list[dict[str, Any]] = json.loads(project.call("runs", "list", "--format", "json").out)
    return runs


def facts(shown: str) -> dict[str, str]:
    """The first table of `runs show`."""
    return dict(re.split(r"  +", line, maxsplit=1) for line in shown.partition("\n\n")[0].splitlines())


class TestList:
    def test_fits_a_terminal(self, project: Project) -> None:
        """A line has short id, job, interval, status, model and counts in 100 columns; JSON has the rest."""
        project.call("backfill", "toy", *DAYS)

        lines = project.call("runs", "list", "toy").out.splitlines()
        runs = listed(project)

        assert lines[0].split() == ["run", "job", "interval", "status", "model", "predictions", "rejects"]
        assert [line.split() for line in lines[1:]] == [
            [run["run_id"][:8], "toy", day, "published", "toy", "1", "100", "0"]
            for run, day in zip(runs, ("2024-02-01", "2024-02-02"), strict=True)
        ]
        # With a job of this name and a model of the same.
        assert max(map(len, lines)) + 2 * (len("flight_delay") - len("toy")) <= 100
        assert runs[0]["interval_start"] == "2024-02-01T00:00:00+00:00"
        assert {"interval_end", "rows_read", "chunks", "scored_at", "published_at", "sql_accepted"} <= runs[0].keys()

    def test_names_of_intervals(self, project: Project) -> None:
        """An interval has the name that commands take; without the job's file, or its calendar, it is a span in UTC.

        A span is the start and the length, which is not 24 hours where the clocks change.
        """
        project.edit("jobs/toy.toml", ('every = "day"', 'every = "day"\ntimezone = "Europe/Berlin"'))
        assert project.call("backfill", "toy", "--from", "2024-03-30", "--to", "2024-04-01").code == 0

        named = project.call("runs", "list", "toy").out
        project.edit("jobs/toy.toml", ('timezone = "Europe/Berlin"', 'timezone = "Asia/Tokyo"'))
        otherwise = project.call("runs", "list", "toy").out
        (project.root / "jobs/toy.toml").unlink()
        spans = project.call("runs", "list").out

        assert re.findall(r"2024-03-\d\d[^a-z]*\b", named) == ["2024-03-30  ", "2024-03-31  "]
        assert re.findall(r"2024-03-\d\d \d\d:\d\dZ \+\w+", spans) == [
            "2024-03-29 23:00Z +1d",
            "2024-03-30 23:00Z +23h",
        ]
        assert otherwise == spans


class TestShow:
    def test_a_beginning_of_the_id_will_do(self, project: Project) -> None:
        """Any beginning that one run alone has names it; one that several have, or none, is an error that says so."""
        project.call("backfill", "toy", *DAYS)
        ids = [run["run_id"] for run in listed(project)]

        for length in (8, 12, 36):
            assert facts(project.call("runs", "show", ids[0][:length]).out)["run"] == ids[0]
        several = project.call("runs", "show", "")
        assert several.code == 2
        assert all(id_ in several.error for id_ in ids)
        none = project.call("runs", "show", "no-such")
        assert none.code == 2
        assert "no run's id begins with 'no-such'" in none.error

    def test_a_published_run(self, project: Project) -> None:
        """Its counts, and no row that has nothing to say."""
        project.call("backfill", "toy", *DAYS)

        shown = facts(project.call("runs", "show", listed(project)[0]["run_id"]).out)

        assert (shown["rows read"], shown["predictions"], shown["rejects"], shown["chunks"]) == ("100", "100", "0", "1")
        assert shown["interval"] == "2024-02-01 00:00Z +1d"
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\dZ", shown["published at"])
        assert "None" not in shown.values()
        assert "query accepted" not in shown

    def test_a_failed_run(self, project: Project) -> None:
        """Why it failed, how many rejects are kept, that these are the first of them, and what the next attempt does."""
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE id <= 3126")
        assert project.call("score", "toy", "--interval", "2024-02-01").code == 11
        (run,) = listed(project)

        out = project.call("runs", "show", run["run_id"]).out
        shown = json.loads(project.call("runs", "show", run["run_id"], "--format", "json").out)

        assert facts(out)["rejects"] == "26"
        assert facts(out)["published"] == "nothing"
        assert facts(out)["committed"] == "100 rows in 1 chunk(s); the next attempt goes on behind them"
        assert "None" not in out
        assert "\n26 of 100 rows" in out
        assert "rejects: the first 20 of 26\n" in out
        assert out.count("unexpected_null  column a") == 20
        assert "what it saw" not in out
        assert (shown["rejects_kept"], len(shown["rejects"]), shown["error"]) == (26, 20, run["error"])

    def test_an_overtaken_run(self, project: Project) -> None:
        """A run that failed, and whose interval another run published, never had predictions, and has no next attempt."""
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE id <= 3126")
        one = ("score", "toy", "--interval", "2024-02-01")
        assert project.call(*one).code == 11
        project.edit("sql/toy/rows.sql", ("FROM toy WHERE", "FROM toy WHERE a IS NOT NULL AND"))
        for force in ((), ("--force",)):
            assert project.call(*one, *force, "--accept-sql", "without the bad rows").code == 0
        failed, replaced, _ = sorted(listed(project), key=lambda run: str(run["scored_at"]))

        out = project.call("runs", "show", failed["run_id"]).out
        table = project.call("runs", "list").out

        assert (failed["status"], replaced["status"]) == ("superseded", "superseded")
        assert facts(out)["published"] == "nothing: another run of its interval was published instead"
        assert "next attempt" not in out
        assert "\n26 of 100 rows" in out
        assert re.findall(r"overtaken|superseded|published", table) == ["overtaken", "superseded", "published"]

    def test_few_rejects(self, project: Project) -> None:
        """When all of the rejects are shown it says so."""
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE id IN (3101, 3102)")
        assert project.call("score", "toy", "--interval", "2024-02-01").code == 0

        out = project.call("runs", "show", listed(project)[0]["run_id"]).out

        assert facts(out)["rejects"] == "2"
        assert "rejects: 2, all of them\n" in out

    def test_a_run_that_can_go_on(self, project: Project) -> None:
        """A run that stopped for a reason outside its rows tells what is committed and goes on behind it."""
        toy.execute(project.url, "INSERT INTO toy SELECT * FROM toy WHERE id = 3150")
        assert project.call("backfill", "toy", *DAYS, "--chunk-rows", "10").code == 11
        run = listed(project)[0]
        # As after a lost connection: the chunks that were committed before it are kept.
        toy.execute(
            project.url,
            f"DELETE FROM batchscore_chunks WHERE run_id = '{run['run_id']}'",
            "INSERT INTO batchscore_chunks SELECT "
            f"'{run['run_id']}', shard, chunk, key_low, key_high, rows_read, predictions, rejects, "
            "shadow_predictions, shadow_failures, input_hash, committed_at, profile "
            f"FROM batchscore_chunks WHERE run_id <> '{run['run_id']}' AND chunk < 3",
        )

        shown = facts(project.call("runs", "show", run["run_id"]).out)

        assert shown["status"] == "failed"
        assert shown["committed"] == "30 rows in 3 chunk(s); the next attempt goes on behind them"

    @pytest.mark.parametrize(
        ("rows_a_day", "words"),
        [(20, "not enough data to compare with training"), (100, "nothing moved against training")],
    )
    def test_what_did_not_move(self, project: Project, rows_a_day: int, words: str) -> None:
        """That nothing moved is said only where something was compared."""
        project.edit(
            "jobs/toy.toml", ('every = "day"', 'every = "week"'), ("2024-02-01\n\n[labels", "2024-01-29\n\n[labels")
        )
        toy.execute(project.url, f"DELETE FROM toy WHERE ts >= '2024-01-29' AND id % 100 >= {rows_a_day}")
        project.call("backfill", "toy", "--from", "2024-01-29", "--to", "2024-02-05")
        run = listed(project)[0]["run_id"]

        assert words in project.call("runs", "show", run).out
        toy.execute(project.url, "DELETE FROM batchscore_drift")
        assert "not compared with training" in project.call("runs", "show", run).out

    def test_a_profile_in_the_units_of_its_columns(self, project: Project) -> None:
        """Of a time the mean and the ends are instants, and the spread a length; of a text they are characters."""
        project.edit("sql/toy/rows.sql", ("b, c", "b, c, 'n' || id AS name"))
        assert project.call("train", "toy", "--promote").code == 0
        project.call("backfill", "toy", *DAYS)

        out = project.call("runs", "show", listed(project)[0]["run_id"]).out

        (ts,) = re.findall(r"^input +ts .*$", out, re.MULTILINE)
        assert re.findall(r"2024-02-01 \d\d:\d\dZ|[\d.]+h", ts) == [
            "2024-02-01 11:52Z",
            "7h",
            "2024-02-01 00:00Z",
            "2024-02-01 23:45Z",
        ]
        (name,) = re.findall(r"^input +name .*$", out, re.MULTILINE)
        assert name.split()[-8:] == ["5", "characters", "0", "characters", "5", "characters", "5", "characters"]
