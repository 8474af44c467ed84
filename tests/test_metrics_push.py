"""What score and backfill did is pushed to a real Pushgateway, and a real Prometheus has it from there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy
from monitoring import CONFIGURATION, asked, fetch, free_port, program, prometheus, pushed, pushgateway
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
        """They are the command's own: exit code, duration, times, and what became of the intervals."""
        # As many a day as a comparison with training wants.
        toy.load(project.url, toy.rows(a_day=300))
        toy.execute(
            project.url, "UPDATE toy SET a = NULL WHERE id = 9301", "UPDATE toy SET b = b + 5 WHERE day = '2024-02-02'"
        )
        before = time.time()

        result = project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=empty)

        assert result.code == 0, result.out
        found = pushed(empty)
        assert before <= found.pop("batchscore_last_run_timestamp_seconds") <= time.time()
        assert before <= found.pop("batchscore_last_success_timestamp_seconds") <= time.time()
        assert 0 < found.pop("batchscore_last_run_duration_seconds") < 60
        assert found == {
            "batchscore_last_exit_code": 0,
            "batchscore_last_run_predictions": 899,
            "batchscore_last_run_rejects": 1,
            "batchscore_last_run_intervals_moved": 1,
            "batchscore_last_run_intervals/published": 3,
            "batchscore_last_run_intervals/failed": 0,
            "batchscore_last_run_intervals/elsewhere": 0,
            "batchscore_last_run_intervals/untried": 0,
        }

    def test_of_a_failure_that_leaves_the_last_success(self, project: Project, empty: str) -> None:
        """A failed interval gives its exit code and is counted; the time of the last success stays what it was."""
        assert project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=empty).code == 0
        success = pushed(empty)["batchscore_last_success_timestamp_seconds"]
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE id > 3400 AND id <= 3450")

        result = project.call(
            "backfill", "toy", "--from", "2024-02-03", "--to", "2024-02-05", "--only", "all",
            BATCHSCORE_PUSHGATEWAY_URL=empty,
        )  # fmt: skip

        found = pushed(empty)
        assert found["batchscore_last_exit_code"] == result.code == 11
        assert found["batchscore_last_run_intervals/published"] == 1
        assert found["batchscore_last_run_intervals/failed"] == 1
        assert found["batchscore_last_success_timestamp_seconds"] == success
        assert found["batchscore_last_run_timestamp_seconds"] > success

    def test_of_a_command_that_never_came_to_an_interval(self, project: Project, empty: str) -> None:
        """A job file that cannot be read is pushed too, as the exit code that it gives."""
        (project.root / "jobs/toy.toml").write_text("[job")

        assert project.call("score", "toy", BATCHSCORE_PUSHGATEWAY_URL=empty).code == 2

        found = pushed(empty)
        assert found["batchscore_last_exit_code"] == 2
        assert "batchscore_last_success_timestamp_seconds" not in found

    def test_of_nothing_to_do(self, project: Project, empty: str) -> None:
        """A night with nothing to score is a success."""
        assert project.call(*FIRST).code == 0

        assert project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=empty).code == 0

        found = pushed(empty)
        assert "batchscore_last_success_timestamp_seconds" in found
        assert found["batchscore_last_run_intervals/published"] == 0

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
        assert found["batchscore_last_exit_code"] == process.returncode == 143
        assert 1 <= found["batchscore_last_run_intervals/published"] < 5

    def test_other_commands_push_nothing(self, project: Project, empty: str) -> None:
        """A command that only looks leaves the gateway alone."""
        assert project.call("plan", "toy", BATCHSCORE_PUSHGATEWAY_URL=empty).code == 0

        assert pushed(empty) == {}

    def test_each_job_has_a_group(self, project: Project, empty: str) -> None:
        """What another job pushes does not take the place of this one's."""
        assert project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=empty).code == 0
        before = pushed(empty)

        assert project.call("score", "other", BATCHSCORE_PUSHGATEWAY_URL=empty).code == 2

        assert pushed(empty) == before
        assert pushed(empty, "other")["batchscore_last_exit_code"] == 2

    def test_names_are_as_prometheus_wants_them(self, project: Project, empty: str) -> None:
        """Linting finds no fault in the names, units and help texts."""
        assert project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=empty).code == 0
        lines = fetch(f"{empty}/metrics").splitlines()
        ours = "".join(f"{line}\n" for line in lines if re.match(r"batchscore_|# (HELP|TYPE) batchscore_", line))

        done = subprocess.run(
            [program("promtool", "prometheus"), "check", "metrics"],
            input=ours, capture_output=True, text=True, check=False,
        )  # fmt: skip

        assert (done.returncode, done.stdout + done.stderr) == (0, "")


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

    def test_without_the_package(self, project: Project) -> None:
        """It is a usage error that says what to install, before anything is scored."""
        script = "import sys; sys.modules['prometheus_client'] = None; from batchscore.cli import main; main()"

        done = subprocess.run(
            [sys.executable, "-c", script, *FIRST],
            cwd=project.root,
            env=os.environ | project.environment(BATCHSCORE_PUSHGATEWAY_URL="http://127.0.0.1:1"),
            capture_output=True, text=True, check=False,
        )  # fmt: skip

        assert done.returncode == 2
        assert "pip install 'batchscore[prometheus]'" in done.stdout
        assert "toy_predictions" not in toy.tables(project.url)


class TestPrometheus:
    def test_the_configuration_is_sound(self) -> None:
        """Prometheus accepts the file that compose.yaml mounts."""
        subprocess.run([program("promtool", "prometheus"), "check", "config", CONFIGURATION], check=True)

    def test_it_scrapes_what_was_pushed(self, project: Project, empty: str, tmp_path: Path) -> None:
        """With that file it has the metrics under the labels they were pushed with, and answers a query."""
        assert project.call(*FIRST, BATCHSCORE_PUSHGATEWAY_URL=empty).code == 0

        with prometheus(tmp_path, empty) as server:
            (found,) = asked(server, 'batchscore_last_run_intervals{batchscore_job="toy", outcome="published"}')
            (age,) = asked(server, 'time() - batchscore_last_success_timestamp_seconds{batchscore_job="toy"}')

        assert found["metric"] | {"instance": ""} == {
            "__name__": "batchscore_last_run_intervals", "batchscore_job": "toy", "instance": "",
            "job": "batchscore", "outcome": "published",
        }  # fmt: skip
        assert found["value"][1] == "3"
        assert 0 <= float(age["value"][1]) < 60
