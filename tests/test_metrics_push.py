"""What score and backfill did, and how their job stands, is pushed or left in a file; a real Prometheus has it from there."""

from __future__ import annotations

import math
import os
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import toy
from monitoring import (
    CONFIGURATION,
    asked,
    fetch,
    free_port,
    node_exporter,
    program,
    prometheus,
    pushed,
    pushgateway,
    told,
)
from toy import Project

FIRST = ("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-04")
CANARY = "canary-p4ssw0rd"
# Of the password "right", as a gateway's configuration wants it.
RIGHT = "$2b$04$NsPRhKfEW7.4kAz21aKpheqt/Iny6Pk041ZVUq8nrCV9VBGDmf74O"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Pushgateway that holds nothing yet."""
    with pushgateway(tmp_path_factory.mktemp("gateway")) as url:
        yield url


@pytest.fixture
def empty(gateway: str) -> str:
    """The gateway, emptied of the toy's group."""
    group = urllib.request.Request(f"{gateway}/metrics/job/batchscore/batchscore_job/toy", method="DELETE")
    urllib.request.urlopen(group, timeout=10).close()
    return gateway


class TestFigures:
    def test_of_a_success(self, project: Project, empty: str) -> None:
        """They are the command's own, and what the ledger says of the job: counts, the last interval, its drift."""
        # As many a day as a comparison with training wants.
        toy.load(project.url, toy.rows(a_day=300))
        toy.execute(
            project.url, "UPDATE toy SET a = NULL WHERE id = 9901", "UPDATE toy SET b = b + 5 WHERE day = '2024-02-03'"
        )
        before = time.time()

        result = project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=empty)

        assert result.code == 0, result.out
        found = pushed(empty)
        assert before <= found.pop("last_completion_timestamp_seconds") <= time.time()
        assert before <= found.pop("last_success_timestamp_seconds") <= time.time()
        assert 0 < found.pop("run_duration_seconds") < 60
        drift = {name: found.pop(name) for name in list(found) if name.startswith("drift_")}
        # Before there are labels all is estimated.
        estimated = {name: found.pop(name) for name in list(found) if name.startswith("performance")}
        assert {name.split("/")[1] for name in estimated} == {"estimated"}
        assert 0 < estimated["performance/estimated/roc_auc"] <= 1
        assert found == {
            "last_exit_code": 0,
            "last_intervals/published": 3,
            "last_intervals/failed": 0,
            "last_intervals/elsewhere": 0,
            "last_intervals/untried": 0,
            "runs_published_total": 3,
            "run_rows_total": 900,
            "last_interval_end_timestamp_seconds": datetime(2024, 2, 4, tzinfo=UTC).timestamp(),
            "interval_seconds": 86_400,
            "last_interval_rows/predicted": 299,
            "last_interval_rows/rejected": 1,
            "model_info/toy/1": 1,
        }
        rows = toy.query(
            project.url,
            "SELECT reference, role, sum(CASE WHEN told THEN 1 ELSE 0 END), "
            "max(CASE WHEN verdict IN ('moved', 'steady') THEN abs(value) / band END) "
            "FROM batchscore_drift JOIN batchscore_runs USING (run_id) WHERE interval_start >= '2024-02-03' GROUP BY 1, 2",
        )
        assert {row[0] for row in rows} == {"training", "previous", "four_weeks"}
        for reference, role, moves, ratio in rows:
            assert drift.pop(f"drift_told_metrics/{reference}/{role}") == moves
            assert drift.pop(f"drift_band_ratio/{reference}/{role}") == pytest.approx(ratio)
        assert {(row[0], row[1]): row[2] > 0 for row in rows}["training", "input"]
        assert max(row[3] for row in rows) > 1
        # Of nothing to compare with nothing is said.
        assert {name: value for name, value in drift.items() if value == value} == {
            f"drift_told_metrics/last_week/{role}": 0 for role in ("input", "output")
        }

    def test_counters_never_fall(self, project: Project, empty: str) -> None:
        """Scored again with fewer rows, and pruned of what that replaced, both grow by what was published."""
        assert project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=empty).code == 0
        first = pushed(empty)
        toy.execute(project.url, "DELETE FROM toy WHERE day = '2024-02-01' AND id > 3110")
        again = ("score", "toy", "--interval", "2024-02-01", "--force")
        assert project.call(*again, BATCHSCORE_PUSHGATEWAY_URL=empty).code == 0
        second = pushed(empty)
        toy.execute(project.url, "UPDATE batchscore_runs SET scored_at = '2020-01-01' WHERE status = 'superseded'")
        assert project.call("runs", "prune", "--older-than", "1d").code == 0
        assert ("superseded",) not in toy.query(project.url, "SELECT status FROM batchscore_runs")

        assert project.call(*FIRST, "--only", "missing", BATCHSCORE_PUSHGATEWAY_URL=empty).code == 0

        counts = [(each["runs_published_total"], each["run_rows_total"]) for each in (first, second, pushed(empty))]
        assert counts == [(3, 300), (4, 310), (4, 310)]

    def test_of_a_failure_that_leaves_the_last_success(self, project: Project, empty: str) -> None:
        """A failed interval gives its exit code and is counted; the time of the last success stays what it was."""
        assert project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=empty).code == 0
        before = pushed(empty)
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE id > 3400 AND id <= 3450")

        result = project.call(
            "backfill", "toy", "--from", "2024-02-03", "--to", "2024-02-05", "--only", "all",
            BATCHSCORE_PUSHGATEWAY_URL=empty,
        )  # fmt: skip

        found = pushed(empty)
        assert found["last_exit_code"] == result.code == 11
        assert found["last_intervals/published"] == 1
        assert found["last_intervals/failed"] == 1
        assert found["runs_published_total"] == 4
        assert found["last_success_timestamp_seconds"] == before["last_success_timestamp_seconds"]
        assert found["last_completion_timestamp_seconds"] > before["last_completion_timestamp_seconds"]
        assert found["last_interval_end_timestamp_seconds"] == before["last_interval_end_timestamp_seconds"]

    def test_of_a_command_that_never_came_to_an_interval(self, project: Project, empty: str) -> None:
        """A job file that cannot be read is pushed too, as the exit code that it gives; nothing of the ledger is."""
        (project.root / "jobs/toy.toml").write_text("[job")

        assert project.call("score", "toy", BATCHSCORE_PUSHGATEWAY_URL=empty).code == 2

        found = pushed(empty)
        assert found["last_exit_code"] == 2
        assert not {"last_success_timestamp_seconds", "runs_published_total", "last_interval_rows/predicted"} & set(
            found
        )

    def test_of_nothing_to_do(self, project: Project, empty: str) -> None:
        """A night with nothing to score is a success, and the job stands as it did."""
        assert project.call(*FIRST).code == 0

        assert project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=empty).code == 0

        found = pushed(empty)
        assert "last_success_timestamp_seconds" in found
        assert (found["last_intervals/published"], found["runs_published_total"]) == (0, 3)
        # A hundred rows are too few to say how far anything has moved.
        assert all(math.isnan(value) for name, value in found.items() if name.startswith("drift_band_ratio"))

    def test_of_the_labels(self, project: Project, empty: str) -> None:
        """What `evaluate` measured of the latest mature interval is told, and whether it may reach the job's bar."""
        toy.load(project.url, toy.rows(a_day=300))
        assert project.call(*FIRST).code == 0
        assert project.call("evaluate", "toy", "--format", "json").code == 0
        # The labels of the last day are not known yet, for all that anybody can tell.
        toy.execute(
            project.url, "UPDATE batchscore_performance SET state = 'immature' WHERE window_start >= '2024-02-03'"
        )

        assert project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=empty).code == 0
        project.edit("jobs/toy.toml", ("at_least = 0.6", "at_least = 0.999"))
        reached = pushed(empty)
        assert project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=empty).code == 0
        missed = pushed(empty)

        measured = toy.query(
            project.url,
            "SELECT metric, value FROM batchscore_performance "
            "WHERE cohort = 'scored' AND kind = 'measured' AND slice_column = '' "
            "AND window_start < '2024-02-03' AND window_start >= '2024-02-02'",
        )
        assert len(measured) > 3
        assert all(reached[f"performance/measured/{metric}"] == pytest.approx(value) for metric, value in measured)
        assert len([name for name in reached if name.startswith("performance/measured/")]) == len(measured)
        end = datetime(2024, 2, 3, tzinfo=UTC).timestamp()
        assert reached["performance_interval_end_timestamp_seconds/measured"] == end
        assert (reached["performance_success/measured"], missed["performance_success/measured"]) == (1, 0)

    def test_of_a_command_that_is_stopped(self, project: Project, empty: str) -> None:
        """SIGTERM gives 143, and the intervals published before."""
        toy.slow_down(project)
        slow = {"SLOW": "1", "BATCHSCORE_REGISTRY_URL": "slow", "BATCHSCORE_PUSHGATEWAY_URL": empty}
        process = project.start("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-06",
                                "--chunk-rows", "50", **slow)  # fmt: skip
        toy.wait_for_chunks(process, 3)

        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)

        found = pushed(empty)
        assert found["last_exit_code"] == process.returncode == 143
        assert 1 <= found["last_intervals/published"] < 5

    def test_other_commands_push_nothing(self, project: Project, empty: str) -> None:
        """A command that only looks leaves the gateway alone."""
        assert project.call("plan", "toy", BATCHSCORE_PUSHGATEWAY_URL=empty).code == 0

        assert pushed(empty) == {}

    def test_each_job_has_a_group(self, project: Project, empty: str) -> None:
        """What another job pushes does not take the place of this one's."""
        assert project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=empty).code == 0
        before = pushed(empty)

        assert project.call("score", "other", BATCHSCORE_PUSHGATEWAY_URL=empty).code == 2

        assert str(pushed(empty)) == str(before)
        assert pushed(empty, "other")["last_exit_code"] == 2

    def test_names_are_as_prometheus_wants_them(self, project: Project, empty: str) -> None:
        """Linting finds no fault in the names, units and help texts, neither at the gateway nor in the file."""
        toy.load(project.url, toy.rows(a_day=300))
        assert project.call(*FIRST).code == 0
        assert project.call("evaluate", "toy", "--format", "json").code == 0
        asking = {"BATCHSCORE_PUSHGATEWAY_URL": empty, "BATCHSCORE_METRICS_DIR": str(project.root)}
        assert project.call(*FIRST, **asking).code == 0
        lines = fetch(f"{empty}/metrics").splitlines()
        ours = "".join(f"{line}\n" for line in lines if re.match(r"batchscore_|# (HELP|TYPE) batchscore_", line))

        for text in (ours, (project.root / "batchscore_toy.prom").read_text()):
            done = subprocess.run(
                [program("promtool", "prometheus"), "check", "metrics"],
                input=text, capture_output=True, text=True, check=False,
            )  # fmt: skip

            assert "batchscore_performance_success" in text
            assert (done.returncode, done.stdout + done.stderr) == (0, "")


class TestTextFile:
    def test_holds_what_is_pushed(self, project: Project, empty: str) -> None:
        """The file has the same metrics with the same values, under the job's label."""
        asking = {"BATCHSCORE_PUSHGATEWAY_URL": empty, "BATCHSCORE_METRICS_DIR": str(project.root)}
        assert project.call(*FIRST, **asking).code == 0

        text = (project.root / "batchscore_toy.prom").read_text()

        # Text, for NaN is no NaN's equal.
        assert {name: str(value) for name, value in told(text).items()} == {
            name: str(value) for name, value in pushed(empty).items()
        }

    def test_everybody_may_read_it(self, project: Project) -> None:
        """Under a umask that lets nobody, node-exporter's user can read it; nothing else is left in the folder."""
        (project.root / "metrics").mkdir()
        mask = os.umask(0o077)
        try:
            assert project.call(*FIRST, BATCHSCORE_METRICS_DIR="metrics").code == 0
        finally:
            os.umask(mask)

        (file,) = (project.root / "metrics").iterdir()
        assert (file.name, stat.S_IMODE(file.stat().st_mode)) == ("batchscore_toy.prom", 0o644)

    def test_a_failure_leaves_what_it_does_not_know(self, project: Project) -> None:
        """A job file that cannot be read changes the exit code; the last success and the ledger's part stay."""
        assert project.call(*FIRST, BATCHSCORE_METRICS_DIR=str(project.root)).code == 0
        before = told((project.root / "batchscore_toy.prom").read_text())
        (project.root / "jobs/toy.toml").write_text("[job")

        assert project.call("score", "toy", BATCHSCORE_METRICS_DIR=str(project.root)).code == 2

        after = told((project.root / "batchscore_toy.prom").read_text())
        changed = {name for name in before if str(before[name]) != str(after[name])}
        assert before.keys() == after.keys()
        assert changed == {
            "last_exit_code", "last_completion_timestamp_seconds", "run_duration_seconds", "last_intervals/published",
        }  # fmt: skip
        assert (before["last_exit_code"], after["last_exit_code"]) == (0, 2)

    def test_a_name_that_leads_elsewhere(self, project: Project) -> None:
        """What no job can be called makes no file, in the folder or out of it."""
        (project.root / "metrics/batchscore_").mkdir(parents=True)
        before = set(project.root.rglob("*"))

        assert project.call("score", "/../../toy", BATCHSCORE_METRICS_DIR="metrics").code == 2

        assert set(project.root.rglob("*")) == before

    def test_a_file_that_somebody_spoilt(self, project: Project) -> None:
        """It is replaced."""
        (project.root / "batchscore_toy.prom").write_text('batchscore_last_exit_code{job="to')

        assert project.call(*FIRST, BATCHSCORE_METRICS_DIR=str(project.root)).code == 0

        assert told((project.root / "batchscore_toy.prom").read_text())["last_exit_code"] == 0

    def test_a_folder_that_is_not_there(self, project: Project) -> None:
        """It costs the run a warning that names the file, and nothing else."""
        result = project.call(*FIRST, BATCHSCORE_METRICS_DIR="nowhere")

        assert result.code == 0
        assert len(project.table()) == 300
        (warning,) = result.named("metrics.unwritten")
        assert (warning["level"], warning["path"]) == ("warning", "nowhere/batchscore_toy.prom")

    def test_node_exporter_hands_it_to_prometheus(self, project: Project, tmp_path: Path) -> None:
        """Two jobs' files in one folder are scraped from node-exporter, and Prometheus answers a query with them."""
        (project.root / "metrics").mkdir()
        assert project.call(*FIRST, BATCHSCORE_METRICS_DIR="metrics").code == 0
        assert project.call("score", "other", BATCHSCORE_METRICS_DIR="metrics").code == 2

        with node_exporter(tmp_path, project.root / "metrics") as node, prometheus(tmp_path, node) as server:
            (error,) = asked(server, "node_textfile_scrape_error")
            codes = asked(server, "batchscore_last_exit_code")
            (rows,) = asked(server, 'batchscore_run_rows_total{batchscore_job="toy"}')

        assert error["value"][1] == "0"
        assert {each["metric"]["batchscore_job"]: each["value"][1] for each in codes} == {"toy": "0", "other": "2"}
        assert rows["value"][1] == "300"


class TestGateway:
    def test_gone(self, project: Project) -> None:
        """A gateway that is not there costs the run a warning, and nothing else."""
        result = project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=f"http://127.0.0.1:{free_port()}")

        assert result.code == 0
        assert len(project.table()) == 300
        (warning,) = result.named("metrics.unpushed")
        assert (warning["level"], warning["job"]) == ("warning", "toy")
        assert "refused" in warning["error"]
        assert "127.0.0.1:" in warning["gateway"]

    def test_gone_when_the_run_fails(self, project: Project) -> None:
        """The run's own error stays the one that it ends with."""
        (project.root / "sql/toy/rows.sql").unlink()

        result = project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=f"http://127.0.0.1:{free_port()}")

        assert result.code == 2
        assert "rows.sql" in result.error
        assert result.named("metrics.unpushed")

    def test_a_password(self, project: Project, tmp_path: Path) -> None:
        """The name and password of the URL open a gateway that asks for them, percent-encoded or not."""
        (tmp_path / "web.yml").write_text(f"basic_auth_users:\n  pu/sher: {RIGHT}\n")
        with pushgateway(tmp_path, str(tmp_path / "web.yml")) as url:
            host = url.removeprefix("http://")
            right, wrong = f"http://pu%2Fsher:r%69ght@{host}", f"http://pu%2Fsher:{CANARY}@{host}"

            refused = project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=wrong)
            taken = project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=right)

        assert (refused.code, taken.code) == (0, 0)
        assert "401" in refused.named("metrics.unpushed")[0]["error"]
        assert not taken.named("metrics.unpushed")

    @pytest.mark.parametrize("host", ["127.0.0.1:1", "127.0.0.1:none", "[::1", "no-such-host.invalid:9091"])
    def test_its_password_is_never_shown(self, project: Project, host: str) -> None:
        """Neither a run nor `check` prints it, whatever is wrong with the rest of the URL."""
        url = f"http://pusher:{CANARY}@{host}"

        results = [project.call(*command, BATCHSCORE_PUSHGATEWAY_URL=url) for command in (FIRST, ("check", "toy"))]

        assert CANARY not in "".join(result.out + result.err for result in results)

    @pytest.mark.parametrize("setting", ["BATCHSCORE_PUSHGATEWAY_URL", "BATCHSCORE_METRICS_DIR"])
    def test_without_the_package(self, project: Project, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
        """It is a usage error that says what to install, before anything is scored."""
        for name in [name for name in sys.modules if name.partition(".")[0] == "prometheus_client"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "prometheus_client", None)

        result = project.call(*FIRST, **{setting: "http://127.0.0.1:1"})

        assert result.code == 2
        assert result.error.startswith(f"{setting} is set")
        assert "pip install 'batchscore[prometheus]'" in result.error
        assert "toy_predictions" not in toy.tables(project.url)


class TestPrometheus:
    def test_the_configuration_is_sound(self) -> None:
        """Prometheus accepts the file that compose.yaml mounts."""
        subprocess.run([program("promtool", "prometheus"), "check", "config", CONFIGURATION], check=True)

    def test_it_scrapes_what_was_pushed(self, project: Project, empty: str, tmp_path: Path) -> None:
        """With that file it has the metrics under the labels they were pushed with, and answers a query."""
        assert project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=empty).code == 0

        with prometheus(tmp_path, empty) as server:
            (found,) = asked(server, 'batchscore_last_intervals{batchscore_job="toy", outcome="published"}')
            (age,) = asked(server, 'time() - batchscore_last_success_timestamp_seconds{batchscore_job="toy"}')

        assert found["metric"] | {"instance": ""} == {
            "__name__": "batchscore_last_intervals", "batchscore_job": "toy", "instance": "",
            "job": "batchscore", "outcome": "published",
        }  # fmt: skip
        assert found["value"][1] == "3"
        assert 0 <= float(age["value"][1]) < 60
