"""Alerts: each is told once, to a real web server and a real program, whatever breaks; and scoring never depends on it."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import toy
from toy import Project

from batchscore import ledger
from batchscore.database import Database
from batchscore.job import read_job
from batchscore.monitor.alerts import notice, tell
from batchscore.monitor.channels import Command, Undelivered, Webhook
from batchscore.warehouse import Warehouse, open_warehouse
from tests.test_render import at_terminal

CANARY = "T0000/B0000/canaryp4ssw0rd"
NOW = datetime(2024, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
# A run's rejects that nobody allows.
SPOILT = "UPDATE toy SET a = NULL WHERE day = '2024-02-01'"
MENDED = "UPDATE toy SET a = 1 WHERE day = '2024-02-01'"


@dataclass
class Hook:
    """A web server: what it got, and what it answers, the last answer again and again."""

    url: str = ""
    answers: list[int | str] = field(default_factory=lambda: [200])
    got: list[dict[str, Any]] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None
    closing: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving() -> Iterator[Hook]:
    """A server on loopback. An answer is a status, a URL to redirect to, `silence`, or a `trickle` without an end."""
    hook = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            hook.methods.append("POST")
            hook.got.append(json.loads(body) | {"type": self.headers["Content-Type"], "path": self.path})
            hook.meanwhile()
            answer = hook.answers.pop(0) if len(hook.answers) > 1 else hook.answers[0]
            if answer == "silence":
                hook.closing.wait(30)
            elif answer == "trickle":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while not hook.closing.wait(0.05):
                    self.wfile.write(b"X: y\r\n")
            elif isinstance(answer, str):
                self.send_response(307 if answer.endswith("?307") else 302)
                self.send_header("Location", answer)
                self.end_headers()
            else:
                self.send_response(answer)
                self.end_headers()
                self.wfile.write(b"ok")

        def do_GET(self) -> None:
            hook.methods.append("GET")
            self.send_response(200)
            self.end_headers()

        def handle(self) -> None:
            # Whoever hung up is no failure of the server's.
            with suppress(OSError):
                super().handle()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hook.url = f"http://127.0.0.1:{server.server_port}/services/{CANARY}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hook
    finally:
        hook.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hook() -> Iterator[Hook]:
    """A server that takes every notice."""
    with serving() as server:
        yield server


def days(first: int, last: int) -> tuple[str, ...]:
    """The command that scores these days of February."""
    return ("backfill", "toy", "--from", f"2024-02-{first:02}", "--to", f"2024-02-{last + 1:02}")


def told(hook: Hook) -> list[dict[str, list[str]]]:
    """Of each notice the alerts that fire and those that have recovered."""
    return [{state: [one["alert"] for one in got[state]] for state in ("firing", "recovered")} for got in hook.got]


def listed(project: Project, *options: str) -> list[dict[str, Any]]:
    """What `alerts list` gives as JSON."""
    result = project.call("alerts", "list", "toy", *options, "--format", "json")
    assert result.code == 0, result.out
    found: list[dict[str, Any]] = json.loads(result.out)
    return found


def rows_of_alerts(project: Project) -> list[dict[str, Any]]:
    """The rows of the ledger."""
    with open_warehouse(Database.at(project.url)) as warehouse, warehouse.begin() as tx:
        return [dict(row) for row in ledger.alerts_of(tx.connection)]


def command_of(project: Project, *lines: str) -> None:
    """Give the job a command: a program of these lines, which has the notice as `given`."""
    script = project.root / "told.py"
    script.write_text("\n".join(["import json, os, sys, time", "given = json.load(sys.stdin)", *lines]))
    project.edit(
        "jobs/toy.toml", ("[output]", f"[alerts]\ncommand = {json.dumps([sys.executable, str(script)])}\n\n[output]")
    )


class TestFires:
    def test_drift_once_and_until_it_has_recovered(self, project: Project, hook: Hook) -> None:
        """A column that moved is told once, by one notice for a window; and once that it is steady again."""
        toy.load(project.url, toy.rows(a_day=300))
        toy.execute(project.url, "UPDATE toy SET a = a + 10 WHERE day = '2024-02-02'")
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}

        first = project.call(*days(1, 2), **url)
        again = project.call(*days(1, 2), **url)
        (firing,) = [row for row in listed(project) if row["alert"] == "drift input a"]
        third = project.call(*days(3, 3), **url)

        assert (first.code, again.code, third.code) == (0, 0, 0)
        assert [event["alert"] for event in first.named("alert.firing")].count("drift input a") == 1
        assert again.named("run.nothing_due")
        assert not again.named("alert.firing")
        assert "drift input a" in [event["alert"] for event in third.named("alert.recovered")]
        assert len(hook.got) == 2
        assert "drift input a" in told(hook)[0]["firing"]
        assert "drift input a" in told(hook)[1]["recovered"]
        assert (firing["state"], firing["times"]) == ("firing", 2)
        assert firing["detail"].startswith("2024-02-02: moved: ")
        assert "psi" in firing["detail"]
        assert not [row for row in listed(project) if row["alert"] == "drift input a"]
        assert [row["state"] for row in listed(project, "--all") if row["alert"] == "drift input a"] == ["recovered"]

    def test_the_latest_interval_decides(self, project: Project, hook: Hook) -> None:
        """What moved in the middle of a window and is steady at its end is not told, nor what an old interval saw."""
        toy.load(project.url, toy.rows(a_day=300))
        toy.execute(project.url, "UPDATE toy SET a = a + 10 WHERE day = '2024-02-02'")
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}

        assert project.call(*days(3, 3), **url).code == 0
        result = project.call(*days(1, 2), **url)

        assert result.code == 0
        assert any(move["column"] == "a" for event in result.named("run.drift") for move in event["moves"])
        assert hook.got == []

    def test_too_few_rows_say_nothing(self, project: Project, hook: Hook) -> None:
        """After a day of few rows, which say nothing, what fired goes on firing, and nothing is told of it."""
        toy.load(project.url, toy.rows(a_day=300))
        toy.execute(
            project.url,
            "UPDATE toy SET a = a + 10 WHERE day = '2024-02-02'",
            "DELETE FROM toy WHERE day = '2024-02-03' AND id % 3 > 0",
        )
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}
        assert project.call(*days(2, 2), **url).code == 0

        assert project.call(*days(3, 3), **url).code == 0

        assert len(hook.got) == 1
        assert "drift input a" in [row["alert"] for row in listed(project)]

    def test_a_failed_interval(self, project: Project, hook: Hook) -> None:
        """A run that failed is told with its error, whatever else was published, and again when it is published."""
        toy.execute(project.url, SPOILT)
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}

        failed = project.call(*days(1, 2), **url)
        toy.execute(project.url, MENDED)
        mended = project.call(*days(1, 2), **url)

        assert (failed.code, mended.code) == (11, 0)
        assert told(hook) == [
            {"firing": ["failed 2024-02-01"], "recovered": []},
            {"firing": [], "recovered": ["failed 2024-02-01"]},
        ]
        (first, _) = hook.got
        assert first["firing"][0]["detail"].startswith("failed: ")
        assert "rejects" in first["firing"][0]["detail"]
        assert (first["job"], first["type"], first["path"]) == ("toy", "application/json", f"/services/{CANARY}")
        assert first["text"].splitlines()[0] == "batchscore toy: 1 firing"
        assert first["text"].splitlines()[1].startswith("firing: failed 2024-02-01 (")

    def test_a_killed_run(self, project: Project, hook: Hook) -> None:
        """A run whose process died is told once nobody holds its interval any more, and not before."""
        died = project.run(*days(1, 1), BATCHSCORE_FAULT="after_commit:0:kill")
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}
        project.call(*days(2, 2), **url)
        early = told(hook)
        toy.execute(project.url, "UPDATE batchscore_leases SET expires_at = '2024-01-01 00:00:00'")
        project.call(*days(2, 2), **url)
        project.call(*days(1, 1), **url)

        assert died.code == -9
        assert early == []
        assert told(hook) == [
            {"firing": ["failed 2024-02-01"], "recovered": []},
            {"firing": [], "recovered": ["failed 2024-02-01"]},
        ]
        assert "stopped or killed" in hook.got[0]["text"]

    def test_a_metric_that_is_worse(self, project: Project, hook: Hook) -> None:
        """`evaluate` tells of metrics that are worse than on the test rows, and that they are as good again.

        Of a day whose labels are too few to compare it tells nothing.
        """
        toy.load(project.url, toy.rows(a_day=300))
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}
        project.edit("jobs/toy.toml", ("[output]", '[alerts]\non = ["performance"]\n\n[output]'))
        assert project.call(*days(1, 3), **url).code == 0
        toy.execute(
            project.url,
            "UPDATE toy SET y = NOT y WHERE day = '2024-02-02'",
            "CREATE TABLE later AS SELECT * FROM toy WHERE day = '2024-02-03'",
            "UPDATE toy SET y = NULL WHERE day = '2024-02-03'",
        )

        first = project.call("evaluate", "toy", **url)
        again = project.call("evaluate", "toy", **url)
        toy.execute(project.url, "UPDATE toy SET y = later.y FROM later WHERE toy.id = later.id")
        last = project.call("evaluate", "toy", **url)

        assert (first.code, again.code, last.code) == (0, 0, 0)
        assert told(hook) == [
            {"firing": ["performance measured"], "recovered": []},
            {"firing": [], "recovered": ["performance measured"]},
        ]
        detail = hook.got[0]["firing"][0]["detail"]
        assert re.match(
            r"2024-02-02: toy 1 is worse than on its test rows: .*roc_auc 0\.\d+ \(0\.\d+ to 0\.\d+\), "
            r"0\.\d+ on test rows and worse beyond 0\.\d+;? .*first interval 2024-02-02$",
            detail,
        )
        assert hook.got[1]["recovered"][0]["recovered_by"] == "data"

    def test_a_metric_with_two_sides(self, project: Project, hook: Hook) -> None:
        """A bias is worse on either side of 0, and its bound is told so."""
        toy.load(project.url, toy.rows(a_day=300))
        assert project.call(*days(1, 1)).code == 0
        toy.execute(project.url, "UPDATE toy SET y = TRUE WHERE day = '2024-02-01'")

        assert project.call("evaluate", "toy", BATCHSCORE_ALERT_WEBHOOK_URL=hook.url).code == 0

        (alert,) = [each for each in hook.got[0]["firing"] if each["alert"] == "performance measured"]
        told = [each for each in alert["detail"].split("; ") if "bias " in each]
        assert re.search(r"bias -0\.\d+ \(.*on test rows and worse beyond ±0\.\d+$", told[0])
        assert alert["detail"].count("±") == 1

    def test_scored_again_and_not_evaluated_yet(self, project: Project, hook: Hook) -> None:
        """A metric that was worse is not over because the interval was scored again, but as soon as that is as good."""
        toy.load(project.url, toy.rows(a_day=300))
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}
        project.edit("jobs/toy.toml", ("[output]", '[alerts]\non = ["performance"]\n\n[output]'))
        assert project.call(*days(1, 2)).code == 0
        toy.execute(project.url, "UPDATE toy SET y = NOT y WHERE day = '2024-02-02'")
        assert project.call("evaluate", "toy", **url).code == 0
        assert project.call("train", "toy", "--promote").code == 0

        assert project.call(*days(2, 2), "--only", "all", **url).code == 0
        between = told(hook)
        toy.execute(project.url, "UPDATE toy SET y = NOT y WHERE day = '2024-02-02'")
        assert project.call("evaluate", "toy", **url).code == 0

        assert between == [{"firing": ["performance measured"], "recovered": []}]
        assert told(hook)[1:] == [{"firing": [], "recovered": ["performance measured"]}]
        assert hook.got[1]["recovered"][0]["recovered_by"] == "model"

    def test_what_a_metric_is_judged_by(self, project: Project, hook: Hook) -> None:
        """A metric is told with its value on the test rows, its bound, and the first interval since which it is worse.

        A day between with too few labels is no day on which it was as good.
        """
        toy.load(project.url, toy.rows(a_day=300))
        project.edit("jobs/toy.toml", ("[output]", '[alerts]\non = ["performance"]\n\n[output]'))
        assert project.call(*days(1, 4)).code == 0
        toy.execute(
            project.url,
            "UPDATE toy SET y = NOT y WHERE day IN ('2024-02-02', '2024-02-04')",
            "UPDATE toy SET y = NULL WHERE day = '2024-02-03'",
        )

        assert project.call("evaluate", "toy", BATCHSCORE_ALERT_WEBHOOK_URL=hook.url).code == 0

        (alert,) = hook.got[0]["firing"]
        shown = json.loads(project.call("models", "show", "toy", "--format", "json").out)
        (auc,) = [each for each in alert["metrics"] if each["metric"] == "roc_auc"]
        assert alert["detail"].startswith("2024-02-04: ")
        assert (alert["first_interval"], auc["first_interval"]) == ("2024-02-02", "2024-02-02")
        assert "worse beyond ±" not in alert["detail"].partition("roc_auc")[2].partition(";")[0]
        assert auc["test_value"] == shown["metrics"]["roc_auc"]
        assert auc["low"] < auc["value"] < auc["high"] < auc["bound"] < auc["test_value"]
        assert [row["first_interval"][:10] for row in listed(project)] == ["2024-02-02"]

    def test_the_shares_of_nulls(self, project: Project, hook: Hook) -> None:
        """Of more NULLs both shares are told, and the difference that matters; and since when it is so."""
        toy.load(project.url, toy.rows(a_day=300))
        toy.execute(project.url, "UPDATE toy SET b = NULL WHERE day >= '2024-02-02' AND id % 2 = 0")

        assert project.call(*days(1, 3), BATCHSCORE_ALERT_WEBHOOK_URL=hook.url).code == 0

        (alert,) = [each for each in hook.got[0]["firing"] if each["alert"] == "drift input b"]
        (nulls,) = [each for each in alert["metrics"] if each["metric"] == "null_share"]
        assert nulls["value"] == pytest.approx(nulls["share"] - nulls["reference_share"])
        words = f"NULL or NaN in {nulls['share']:.1%} of rows, {nulls['reference_share']:.1%} in training"
        assert f"{words}, where a difference of 2.0% matters" in alert["detail"]
        assert nulls["share"] > 0.5 > nulls["reference_share"] > 0
        assert alert["detail"].endswith("; first interval 2024-02-02")
        assert alert["first_interval"] == "2024-02-02"

    @pytest.mark.parametrize(
        ("change", "drifts", "by"),
        [
            # The column is as far off as it was.
            (
                "[drift]\nbands = { psi = 100, ks = 2, outside_share = 2, null_share = 2 }\n\n[output]",
                True,
                "configuration",
            ),
            ('[drift]\nagainst = ["previous"]\n\n[output]', True, "configuration"),
            # It is back, whatever else has changed.
            ("[drift]\nbands = { psi = 100 }\n\n[output]", False, "data"),
            ("[output]", False, "data"),
        ],
    )
    def test_what_it_recovered_by(self, project: Project, hook: Hook, change: str, drifts: bool, by: str) -> None:
        """A notice tells what is over because the job file changed from what is over because the data did."""
        toy.load(project.url, toy.rows(a_day=300))
        days_off = "('2024-02-02', '2024-02-03')" if drifts else "('2024-02-02')"
        toy.execute(project.url, f"UPDATE toy SET a = a + 10 WHERE day IN {days_off}")
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}
        assert project.call(*days(2, 2), **url).code == 0

        project.edit("jobs/toy.toml", ("[output]", change))
        result = project.call(*days(3, 3), **url)

        (over,) = [each for each in hook.got[1]["recovered"] if each["alert"] == "drift input a"]
        (logged,) = [event for event in result.named("alert.recovered") if event["alert"] == "drift input a"]
        assert (over["recovered_by"], logged["recovered_by"]) == (by, by)
        words = "recovered by a change of the job file: drift input a" in hook.got[1]["text"]
        assert words == (by == "configuration")

    def test_a_column_that_became_private(self, project: Project, hook: Hook) -> None:
        """What is no longer measured of it is over by the job file, for the column is as far off as it was."""
        toy.load(project.url, toy.rows(a_day=300))
        toy.execute(project.url, "UPDATE toy SET a = a + 10 WHERE day IN ('2024-02-02', '2024-02-03')")
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}
        assert project.call(*days(2, 2), **url).code == 0

        project.edit("jobs/toy.toml", ("[source]\n", '[source]\nprivate = ["a"]\n'))
        assert project.call(*days(3, 3), **url).code == 0

        (over,) = [each for each in hook.got[1]["recovered"] if each["alert"] == "drift input a"]
        assert over["recovered_by"] == "configuration"

    def test_what_was_not_measured(self, project: Project, hook: Hook) -> None:
        """What was told against a week before goes on firing after a night that has none, and nobody hears it is over."""
        toy.load(project.url, toy.rows(days=45, a_day=300))
        toy.execute(project.url, "UPDATE toy SET a = a + 10 WHERE day >= '2024-02-09'")
        project.edit("jobs/toy.toml", ("[output]", '[drift]\nagainst = ["last_week"]\n\n[output]'))
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}
        for day in (2, 9):
            assert project.call(*days(day, day), **url).code == 0
        first = told(hook)

        assert project.call(*days(10, 10), **url).code == 0

        assert "drift input a" in first[-1]["firing"]
        assert told(hook) == first
        assert "drift input a" in [row["alert"] for row in listed(project)]

    def test_from_an_earlier_version(self, project: Project, hook: Hook) -> None:
        """An alert that was entered without what it was judged by is over without a word of what ended it."""
        toy.load(project.url, toy.rows(a_day=300))
        toy.execute(project.url, "UPDATE toy SET a = a + 10 WHERE day = '2024-02-02'")
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}
        assert project.call(*days(2, 2), **url).code == 0
        toy.execute(project.url, "UPDATE batchscore_alerts SET found = NULL, first_interval = NULL")

        assert project.call(*days(3, 3), **url).code == 0

        (over,) = [each for each in hook.got[1]["recovered"] if each["alert"] == "drift input a"]
        assert over["recovered_by"] is None
        assert "recovered: drift input a" in hook.got[1]["text"]

    def test_a_gate_that_was_moved(self, project: Project, hook: Hook) -> None:
        """A held run that is published behind another gate, or past it, has not recovered by its data."""
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}
        project.edit("jobs/toy.toml", ("[limits]", "[publish]\nscore_range = [2, 3]\n\n[limits]"))
        assert project.call(*days(1, 2), **url).code == 31
        (held, *_) = [row for row in rows_of_alerts(project) if row["alert"] == "failed 2024-02-01"]
        held_runs = "SELECT run_id FROM batchscore_runs WHERE status = 'held' ORDER BY interval_start"
        ((run_id,), *_) = toy.query(project.url, held_runs)
        assert project.call("runs", "publish", run_id, "--override", "--reason", "seen", **url).code == 0
        project.edit("jobs/toy.toml", ("[2, 3]", "[0, 1]"))
        assert project.call(*days(2, 2), **url).code == 0

        by = {each["alert"]: each["recovered_by"] for got in hook.got for each in got["recovered"]}
        assert held["state"] == "firing"
        assert by == {"failed 2024-02-01": "override", "failed 2024-02-02": "configuration"}

    def test_a_command_that_logs_nothing(self, project: Project) -> None:
        """`evaluate` logs nothing, so where there is only the log the next `score` tells it."""
        toy.load(project.url, toy.rows(a_day=300))
        assert project.call(*days(2, 2)).code == 0
        toy.execute(project.url, "UPDATE toy SET y = NOT y")

        evaluated, scored = project.call("evaluate", "toy"), project.call(*days(2, 2))

        assert evaluated.code == 0
        assert "performance measured" in [event["alert"] for event in scored.named("alert.firing")]

    def test_a_gate(self, project: Project, hook: Hook) -> None:
        """A run that a gate holds is told so."""
        project.edit("jobs/toy.toml", ("[limits]", "[publish]\nscore_range = [2, 3]\n\n[limits]"))

        result = project.call(*days(1, 1), BATCHSCORE_ALERT_WEBHOOK_URL=hook.url)

        assert result.code == 31
        assert hook.got[0]["firing"][0]["detail"].startswith("held by a gate: ")

    def test_only_what_is_wanted(self, project: Project, hook: Hook) -> None:
        """`on` chooses; what it no longer names is told to be over by the job file, once, and is not looked at again."""
        toy.execute(project.url, SPOILT)
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}
        project.call(*days(1, 1), **url)
        project.edit("jobs/toy.toml", ("[output]", '[alerts]\non = ["drift"]\n\n[output]'))

        for _ in range(2):
            project.call(*days(1, 1), **url)

        assert told(hook) == [
            {"firing": ["failed 2024-02-01"], "recovered": []},
            {"firing": [], "recovered": ["failed 2024-02-01"]},
        ]
        assert hook.got[1]["recovered"][0]["recovered_by"] == "configuration"
        assert listed(project) == []

    def test_again_after_a_while(self, project: Project, hook: Hook) -> None:
        """What goes on firing is told again when the last notice is older than `repeat`, and not before."""
        toy.execute(project.url, SPOILT)
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}
        for _ in range(2):
            project.call(*days(1, 1), **url)
        assert len(hook.got) == 1
        long_ago = datetime.now(UTC) - timedelta(days=8)
        toy.execute(project.url, f"UPDATE batchscore_alerts SET notified_at = '{long_ago:%Y-%m-%d %H:%M:%S}'")

        for _ in range(2):
            project.call(*days(1, 1), **url)

        assert len(hook.got) == 2
        assert hook.got[1]["firing"][0]["times"] == 3

    def test_an_interval_that_is_left_behind(self, project: Project, hook: Hook) -> None:
        """Once a later one is published, one that failed is told again for four weeks alone; it fires until it is published."""
        toy.execute(project.url, SPOILT)
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}
        project.call(*days(1, 1), **url)

        def after(weeks: int, day: int) -> int:
            """How many notices there are after a command so long behind the beginning, and 8 days behind the last."""
            now = datetime.now(UTC)
            began, last = now - timedelta(weeks=weeks), now - timedelta(days=8)
            toy.execute(
                project.url,
                f"UPDATE batchscore_alerts SET first_at = '{began:%Y-%m-%d %H:%M:%S}', "
                f"notified_at = '{last:%Y-%m-%d %H:%M:%S}'",
            )
            project.call(*days(day, day), **url)
            return len(hook.got)

        alone = after(50, day=1)
        passed = [after(weeks, day=2) for weeks in (3, 5, 50)]
        firing = [row["alert"] for row in listed(project)]
        toy.execute(project.url, MENDED)
        project.call(*days(1, 1), **url)

        assert (alone, passed, firing) == (2, [3, 3, 3], ["failed 2024-02-01"])
        assert told(hook)[3:] == [{"firing": [], "recovered": ["failed 2024-02-01"]}]

    @pytest.mark.parametrize(
        "change",
        [('table = "toy_predictions"', 'table = "toy_others"'), ('every = "day"', 'every = "hour"')],
    )
    def test_an_interval_that_is_the_jobs_no_longer(
        self, project: Project, hook: Hook, change: tuple[str, str]
    ) -> None:
        """With another table, or time cut otherwise, a failure is not told to be over by the data, for nothing is."""
        toy.execute(project.url, SPOILT)
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}
        project.call(*days(1, 1), **url)
        project.edit("jobs/toy.toml", change)

        project.call("backfill", "toy", "--from", "2024-02-02", "--to", "2024-02-03", **url)

        (row,) = [row for row in rows_of_alerts(project) if row["alert"] == "failed 2024-02-01"]
        assert (row["state"], row["recovered_by"]) == ("recovered", "configuration")

    def test_a_command_that_could_do_nothing(self, project: Project, hook: Hook) -> None:
        """A command that is refused before it scores tells what was left to tell, and ends as it would have."""
        toy.execute(project.url, SPOILT)
        project.call(*days(1, 1))
        toy.execute(project.url, "UPDATE batchscore_alerts SET due = true")
        project.edit("sql/toy/rows.sql", ("SELECT id,", "SELECT id, 1 AS more,"))

        result = project.call(*days(1, 1), BATCHSCORE_ALERT_WEBHOOK_URL=hook.url)

        assert result.code == 10
        assert told(hook) == [{"firing": ["failed 2024-02-01"], "recovered": []}]

    def test_nobody_to_tell(self, project: Project) -> None:
        """Without webhook and command the log is told, once, and the ledger knows."""
        toy.execute(project.url, SPOILT)

        first, second = (project.call(*days(1, 1)) for _ in range(2))

        assert [event["level"] for event in first.named("alert.firing")] == ["warning"]
        assert second.named("alert.firing") == []
        (row,) = rows_of_alerts(project)
        assert (row["due"], row["told_to"], row["notified_at"] is None) == (False, "log", False)


class TestWebhook:
    """What a server may do to a notice."""

    def send(self, hook: Hook, seconds: float = 1.0) -> tuple[str, float]:
        """Why a notice did not arrive, and how long that took."""
        started = time.monotonic()
        with pytest.raises(Undelivered) as caught:
            Webhook(hook.url, seconds).send(b"{}")
        assert CANARY not in str(caught.value)
        return str(caught.value), time.monotonic() - started

    def test_tries_again(self, project: Project, hook: Hook) -> None:
        """A server that fails for a moment is tried again within the command, and that is no warning."""
        toy.execute(project.url, SPOILT)
        hook.answers = [500, 429, 200]

        result = project.call(*days(1, 1), BATCHSCORE_ALERT_WEBHOOK_URL=hook.url)

        assert len(hook.got) == 3
        assert not result.named("alerts.undelivered")
        assert rows_of_alerts(project)[0]["told_to"] == "log,webhook"

    @pytest.mark.parametrize("answer", ["silence", "trickle", 500])
    def test_bounded(self, hook: Hook, answer: str | int) -> None:
        """However a server is slow, or fails, trying ends when its time is over."""
        hook.answers = [answer]

        why, seconds = self.send(hook)

        assert seconds < 3
        assert "500" in why if answer == 500 else "did not answer" in why or "cannot be reached" in why

    def test_a_host_that_cannot_be(self, project: Project) -> None:
        """A host that is no name is a warning, and the run is as it was."""
        toy.execute(project.url, SPOILT)
        result = project.call(*days(1, 1), BATCHSCORE_ALERT_WEBHOOK_URL=f"https://hooks..example/{CANARY}")

        assert result.code == 11
        (warning,) = result.named("alerts.undelivered")
        assert warning["error"] == "its host is no name that can be looked up"

    def test_nobody_there(self, hook: Hook) -> None:
        """A port that nobody listens on, and a host that is none, are told by their reasons."""
        gone = Hook(url=f"http://127.0.0.1:1/{CANARY}")
        nowhere = Hook(url=f"http://nowhere.invalid/{CANARY}")

        assert "cannot be reached" in self.send(gone)[0]
        assert re.match("it (cannot be reached|did not answer)", self.send(nowhere)[0])

    @pytest.mark.parametrize("status", ["302", "307"])
    def test_a_redirect_leads_nowhere(self, hook: Hook, status: str) -> None:
        """A redirect is not followed: nobody but the URL that is set gets anything, by whatever method."""
        with serving() as elsewhere:
            hook.answers = [f"{elsewhere.url}?{status}"]

            why, _ = self.send(hook)

            assert f"it answered {status}, which leads elsewhere" in why
            assert (len(hook.got), elsewhere.methods) == (1, [])

    def test_no_longer_there(self, project: Project, hook: Hook) -> None:
        """A server that refuses is a warning; the run stands, and the next command tells it, as if for the first time."""
        toy.execute(project.url, SPOILT)
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}
        hook.answers = [404, 200]

        first = project.call(*days(1, 2), **url)
        (kept,) = rows_of_alerts(project)
        second = project.call(*days(1, 2), **url)
        third = project.call(*days(1, 2), **url)

        assert (first.code, len(project.table())) == (11, 100)
        (warning,) = first.named("alerts.undelivered")
        assert (warning["level"], warning["channel"], warning["error"]) == ("warning", "webhook", "it answered 404")
        assert (kept["due"], kept["told_to"], kept["notified_at"], kept["claimed_by"]) == (True, "log", None, None)
        assert not second.named("alerts.undelivered")
        assert not second.named("alert.firing")
        assert not third.named("alerts.undelivered")
        assert told(hook) == [{"firing": ["failed 2024-02-01"], "recovered": []}] * 2

    def test_never_printed(self, project: Project, hook: Hook) -> None:
        """Neither the URL nor its path is in anything that is printed or kept, even where an error quotes it."""
        toy.execute(project.url, SPOILT)
        # What a source says is quoted in the run's error, and from there in the notice.
        project.edit("jobs/toy.toml", ('sql = "toy/rows.sql"', f'sql = "services/{CANARY}.sql"'))
        outs = []
        for answers in ([404], [200]):
            hook.answers = list(answers)
            for command in (days(1, 1), ("alerts", "test", "toy"), ("check", "toy"), ("alerts", "list", "--all")):
                result = project.call(*command, BATCHSCORE_ALERT_WEBHOOK_URL=hook.url)
                outs.append(result.out + result.err)

        assert CANARY not in "".join(outs)
        assert "***" in "".join(outs)


class TestCommand:
    def test_gets_the_notice(self, project: Project) -> None:
        """It has the notice on standard input and no setting of batchscore's, and there is no shell to read it."""
        command_of(
            project,
            "given['settings'] = [name for name in os.environ if name.startswith('BATCHSCORE_')]",
            f"open({str(project.root / 'got.json')!r}, 'w').write(json.dumps(given))",
        )
        toy.execute(project.url, SPOILT)

        result = project.call(*days(1, 1))

        got = json.loads((project.root / "got.json").read_text())
        assert result.code == 11, result.err
        assert [one["alert"] for one in got["firing"]] == ["failed 2024-02-01"]
        assert got["settings"] == []
        assert rows_of_alerts(project)[0]["told_to"] == "command,log"

    def test_one_of_two_fails(self, project: Project, hook: Hook) -> None:
        """Who got a notice does not get it again because another did not."""
        command_of(project, f"open({str(project.root / 'got')!r}, 'a').write('x')")
        toy.execute(project.url, SPOILT)
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}
        hook.answers = [404, 200]

        for _ in range(3):
            project.call(*days(1, 1), **url)

        assert (project.root / "got").read_text() == "x"
        assert len(hook.got) == 2

    @pytest.mark.parametrize(
        ("script", "why"),
        [
            ("exit 3", "sh exited with 3"),
            # Its child has the same group, and a pipe that nobody reads would keep whoever waits for its end.
            ("sleep 60 & sleep 60", "sh did not end within 0.5 s"),
        ],
    )
    def test_fails(self, script: str, why: str) -> None:
        """A program that fails, or does not end, is undelivered in bounded time; large notices make no difference."""
        started = time.monotonic()

        with pytest.raises(Undelivered, match=why):
            Command(["sh", "-c", script], 0.5).send(b"x" * 10_000_000)

        assert time.monotonic() - started < 5

    def test_leaves_nobody_behind(self, tmp_path: Path) -> None:
        """What a program that was stopped had started is stopped with it."""
        with pytest.raises(Undelivered):
            Command(["sh", "-c", f"sh -c 'sleep 1; echo late > {tmp_path}/late' & sleep 60"], 0.3).send(b"")
        time.sleep(1.5)

        assert not (tmp_path / "late").exists()

    def test_no_place_for_a_file(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Without a folder for temporary files it is undelivered, and nothing worse."""
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))

        with pytest.raises(Undelivered, match="cannot be run: No such file or directory"):
            Command(["true"]).send(b"")

    def test_is_not_there(self, project: Project) -> None:
        """A program that is not there is a warning by name, and the run is as it was."""
        project.edit("jobs/toy.toml", ("[output]", '[alerts]\ncommand = ["no-such-program"]\n\n[output]'))
        toy.execute(project.url, SPOILT)

        result = project.call(*days(1, 1))

        assert result.code == 11
        (warning,) = result.named("alerts.undelivered")
        assert warning["error"] == "no-such-program cannot be run: No such file or directory"


class TestTwice:
    """Nobody is told twice, and nothing is lost."""

    def test_a_process_that_dies_between_claim_and_delivery(self, project: Project, hook: Hook) -> None:
        """Its predictions stand; its notice is left alone as long as it may live, and then sent by the next command."""
        command_of(project, "os.kill(os.getppid(), 9)")
        toy.execute(project.url, SPOILT)
        died = project.run(*days(1, 2))
        text = (project.root / "jobs/toy.toml").read_text()
        (project.root / "jobs/toy.toml").write_text(
            "\n".join(line for line in text.splitlines() if "command" not in line)
        )
        url = {"BATCHSCORE_ALERT_WEBHOOK_URL": hook.url}

        project.call(*days(1, 2), **url)
        early = list(hook.got)
        toy.execute(project.url, "UPDATE batchscore_alerts SET claimed_until = '2024-01-01 00:00:00'")
        project.call(*days(1, 2), **url)
        project.call(*days(1, 2), **url)

        assert died.code == -9
        assert len(project.table()) == 100
        assert early == []
        assert told(hook) == [{"firing": ["failed 2024-02-01"], "recovered": []}]

    def test_two_at_once(self, trained: Project, tmp_path: Path, postgres_url: str, hook: Hook) -> None:
        """Of four processes' worth of threads that find the same alert at the same time, one sends it."""
        project = toy.unscored(tmp_path, postgres_url, trained)
        toy.execute(postgres_url, SPOILT)
        assert project.call(*days(1, 1)).code == 11
        toy.execute(postgres_url, "DELETE FROM batchscore_alerts")
        job = read_job("toy", project.root / "jobs")
        hook.meanwhile = lambda: time.sleep(0.5)

        def one(_: int) -> None:
            with open_warehouse(Database.at(postgres_url)) as warehouse:
                tell(warehouse, job, [Webhook(hook.url)])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, range(4)))

        assert told(hook) == [{"firing": ["failed 2024-02-01"], "recovered": []}]
        (row,) = rows_of_alerts(project)
        assert (row["times"], row["due"], row["claimed_by"]) == (4, False, None)


def observed(
    warehouse: Warehouse, at: datetime, *firing: str, unknown: tuple[str, ...] = (), passed: tuple[str, ...] = ()
) -> None:
    """Enter what fires."""
    alarms = ledger.Alarms(dict.fromkeys(firing, ledger.Firing("why")), set(unknown), set(passed))
    with warehouse.begin() as tx:
        week, weeks = at - timedelta(days=7), at - timedelta(days=28)
        ledger.observe(tx.connection, "toy", alarms, lambda _: "data", at, week, weeks)


def claimed(warehouse: Warehouse, owner: str, at: datetime) -> list[dict[str, Any]]:
    """Take up what is due, for an hour."""
    with warehouse.begin() as tx:
        return [dict(row) for row in ledger.claim_alerts(tx.connection, "toy", owner, at, at + HOUR)]


def settled(warehouse: Warehouse, rows: list[dict[str, Any]], at: datetime, *reached: str, complete: bool) -> None:
    """Give it back."""
    with warehouse.begin() as tx:
        ledger.settle_claim(tx.connection, rows, reached, at, complete=complete)


def states(warehouse: Warehouse) -> dict[str, tuple[str, bool]]:
    """Each alert's state, and whether a notice is due."""
    with warehouse.begin() as tx:
        return {row["alert"]: (row["state"], row["due"]) for row in ledger.alerts_of(tx.connection)}


class TestLedger:
    """The table, on every database."""

    def test_a_claim_keeps_others_out(self, warehouse: Warehouse) -> None:
        """While a claim lasts nobody else has any of it; when it is over the next has it, and the first can settle no more."""
        observed(warehouse, NOW, "failed 1", "failed 2")

        first, second = claimed(warehouse, "one", NOW), claimed(warehouse, "two", NOW)
        third = claimed(warehouse, "three", NOW + 2 * HOUR)
        settled(warehouse, first, NOW, "log", complete=True)
        late = states(warehouse)
        settled(warehouse, third, NOW, "log", complete=True)

        assert [len(rows) for rows in (first, second, third)] == [2, 0, 2]
        assert set(late.values()) == {("firing", True)}
        assert set(states(warehouse).values()) == {("firing", False)}

    def test_recovers_while_it_is_being_told(self, warehouse: Warehouse) -> None:
        """What ends while its beginning is being sent is told to have ended, by the next."""
        observed(warehouse, NOW, "failed 1")
        sending = claimed(warehouse, "one", NOW)
        observed(warehouse, NOW + HOUR / 2)
        assert claimed(warehouse, "two", NOW + HOUR / 2) == []

        settled(warehouse, sending, NOW + HOUR / 2, "log", "webhook", complete=True)
        (row,) = claimed(warehouse, "three", NOW + HOUR / 2)

        assert (row["state"], row["told_to"]) == ("recovered", "")

    def test_never_told(self, warehouse: Warehouse) -> None:
        """Of what ended before anybody was told nobody is told that it ended."""
        observed(warehouse, NOW, "failed 1")
        observed(warehouse, NOW + HOUR)

        assert states(warehouse) == {"failed 1": ("recovered", False)}

    def test_fires_again(self, warehouse: Warehouse) -> None:
        """What fires again after it has recovered begins anew."""
        for hour, firing in enumerate((("failed 1",), (), ("failed 1",))):
            at = NOW + hour * HOUR
            observed(warehouse, at, *firing)
            rows = claimed(warehouse, str(hour), at)
            settled(warehouse, rows, at, "log", complete=hour < 2)

        with warehouse.begin() as tx:
            (row,) = ledger.alerts_of(tx.connection)
        assert (row["state"], row["first_at"], row["times"]) == ("firing", NOW + 2 * HOUR, 1)
        assert (row["due"], row["notified_at"]) == (True, None)

    def test_unknown_stays(self, warehouse: Warehouse) -> None:
        """An alert of which nothing is known fires on, and is not told again."""
        observed(warehouse, NOW, "drift input a", "drift input b")
        settled(warehouse, claimed(warehouse, "one", NOW), NOW, "log", complete=True)

        observed(warehouse, NOW + HOUR, unknown=("drift input a",))

        assert states(warehouse) == {"drift input a": ("firing", False), "drift input b": ("recovered", True)}

    def test_passed(self, warehouse: Warehouse) -> None:
        """What has passed is due again for four weeks from its beginning, and what has not without an end."""
        observed(warehouse, NOW, "failed 1", "failed 2")
        settled(warehouse, claimed(warehouse, "one", NOW), NOW, "log", complete=True)
        due = []
        for day in (8, 16, 24, 32, 40):
            at = NOW + timedelta(days=day)
            observed(warehouse, at, "failed 1", "failed 2", passed=("failed 1",))
            rows = claimed(warehouse, str(day), at)
            due.append([row["alert"] for row in rows])
            settled(warehouse, rows, at, "log", complete=True)

        assert due == [["failed 1", "failed 2"]] * 3 + [["failed 2"]] * 2
        assert set(states(warehouse).values()) == {("firing", False)}

    def test_pruned_when_it_is_over(self, warehouse: Warehouse) -> None:
        """What recovered long ago and was told is removed; what fires, or is still to be told, stays."""
        observed(warehouse, NOW, "failed 1", "failed 2", "failed 3")
        settled(warehouse, claimed(warehouse, "one", NOW), NOW, "log", complete=True)
        observed(warehouse, NOW + HOUR, "failed 1", "failed 2")
        settled(warehouse, claimed(warehouse, "two", NOW + HOUR), NOW, "log", complete=True)
        observed(warehouse, NOW + HOUR, "failed 1")

        with warehouse.begin() as tx:
            ledger.forget_old(tx.connection, NOW)
        kept = states(warehouse)
        with warehouse.begin() as tx:
            ledger.forget_old(tx.connection, NOW + 2 * HOUR)

        assert set(kept) == {"failed 1", "failed 2", "failed 3"}
        assert set(states(warehouse)) == {"failed 1", "failed 2"}


class TestNotice:
    def row(self, number: int, **changes: Any) -> dict[str, Any]:
        """A row of the ledger."""
        row = {"alert": f"failed {number}", "state": "firing", "detail": "why", "first_at": NOW, "last_at": NOW}
        return row | {"times": 1, "first_interval": None, "found": "{}", "recovered_by": None} | changes

    def test_of_many(self, trained: Project) -> None:
        """The text names ten and how many more there are; the fields hold all."""
        content = json.loads(notice(read_job("toy", trained.root / "jobs"), [self.row(number) for number in range(90)]))

        lines = content["text"].splitlines()
        assert (len(lines), lines[0], lines[-1]) == (
            12, "batchscore toy: 90 firing", "and 80 more: batchscore alerts list toy",
        )  # fmt: skip
        assert len(content["firing"]) == 90
        assert content["firing"][0]["first_at"] == "2024-03-01T00:00:00+00:00"

    def test_calls_nobody(self, trained: Project) -> None:
        """What a value holds is no markup in the text, and as it was in the fields."""
        content = json.loads(
            notice(read_job("toy", trained.root / "jobs"), [self.row(1, detail="<!channel> & <https://a|b>")])
        )

        assert "&lt;!channel&gt; &amp; &lt;https://a|b&gt;" in content["text"]
        assert content["firing"][0]["detail"] == "<!channel> & <https://a|b>"


class TestVerbs:
    def test_nothing_yet(self, project: Project) -> None:
        """Without a ledger, and without alerts, nothing fires."""
        assert project.call("alerts", "list").out == "nothing fires\n"
        assert project.call(*days(1, 1)).code == 0
        assert project.call("alerts", "list", "toy", "--all").out == "no alert\n"
        assert project.call("alerts", "list", "tory").code == 2

    @pytest.mark.parametrize("width", [80, 100, 140])
    def test_at_a_terminal(self, project: Project, width: int) -> None:
        """Below each alert its words take the whole width; the columns stand under one head."""
        toy.execute(project.url, SPOILT, SPOILT.replace("02-01", "02-02"))
        assert project.call(*days(1, 2)).code == 11
        details = [row["detail"] for row in listed(project)]

        _, seen = at_terminal(project, "alerts", "list", COLUMNS=str(width))

        lines = [line.rstrip() for line in seen.splitlines()]
        assert [i for i, line in enumerate(lines) if line.startswith("job ")] == [0]
        heads = [i for i, line in enumerate(lines) if line.startswith("toy  failed 2024-02-0")]
        for detail, i, end in zip(details, heads, [*heads[1:], len(lines)], strict=True):
            words = [line for line in lines[i + 1 : end] if line.startswith("  ")]
            assert " ".join(line.strip() for line in words) == detail
            assert all(len(line) > width * 0.7 for line in words[:-1])
        assert max(map(len, lines)) <= width

    def test_a_test_arrives(self, project: Project, hook: Hook) -> None:
        """It reaches whoever is set, says that it is a test, and leaves no trace in the ledger."""
        result = project.call("alerts", "test", "toy", BATCHSCORE_ALERT_WEBHOOK_URL=hook.url)

        assert result.code == 0, result.out
        assert hook.got[0]["text"] == "batchscore toy: a test, nothing is wrong"
        assert (hook.got[0]["job"], hook.got[0]["firing"], hook.got[0]["recovered"]) == ("toy", [], [])
        assert "batchscore_alerts" not in toy.tables(project.url)

    def test_a_test_that_does_not_arrive(self, project: Project, hook: Hook) -> None:
        """Nobody to tell, a refusal and a command that fails end with the codes of usage and of what may pass."""
        hook.answers = [403]

        nobody = project.call("alerts", "test", "toy")
        refused = project.call("alerts", "test", "toy", BATCHSCORE_ALERT_WEBHOOK_URL=hook.url)
        command_of(project, "sys.exit(4)")
        failed = project.call("alerts", "test", "toy")

        assert (nobody.code, refused.code, failed.code) == (2, 2, 20)
        assert "BATCHSCORE_ALERT_WEBHOOK_URL, or a command in [alerts]" in nobody.error
        assert "it answered 403" in refused.error
        assert f"{sys.executable} exited with 4" in failed.error


def test_a_ledger_of_before(project: Project) -> None:
    """Where the role may not make the table, nothing is told and scoring goes on as it did."""
    assert project.call(*days(1, 1)).code == 0
    toy.execute(project.url, "DROP TABLE batchscore_alerts")

    result = project.call(*days(1, 1))

    assert result.code == 0
    assert not result.named("monitoring.failed")
    assert os.environ.get("BATCHSCORE_ALERT_WEBHOOK_URL") is None
