"""The examples of docs/integrations do what k8s/base/cronjob.yaml does; `make integrations` runs this."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from batchscore.cli.app import app

# The first start of another environment, beside other work, takes minutes.
pytestmark = [pytest.mark.integrations, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs/integrations/crontab"
SPEC = yaml.safe_load((ROOT / "k8s/base/cronjob.yaml").read_text())["spec"]
POD = SPEC["jobTemplate"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("tool", ["airflow", "dagster"])
def test_an_orchestrator_runs_its_example(tool: str, tmp_path: Path) -> None:
    """The checks of the example pass in an environment of its own, with the real package."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl, which makes the manifest, is not installed")
    home = {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "DAGSTER_HOME": ""}
    _check(tool, home | {"PYTHONPATH": str(ROOT / "tests/integrations")})


@pytest.mark.timeout(1800)
def test_mlflow_keeps_and_serves_bundles() -> None:
    """The checks of a registry in MLflow pass, with its real servers, in an environment of its own."""
    _check("mlflow", {"PYTHONPATH": str(ROOT / "tests")})


def _check(tool: str, environment: dict[str, str]) -> None:
    python = ROOT / f".venv-{tool}/bin/python"
    if not python.exists():
        pytest.skip(f"no .venv-{tool}, which `make integrations` makes")
    # Neither this project's configuration nor its fixtures: their plugins are not in that environment.
    alone = ["-c", "/dev/null", "--noconftest", "-p", "no:cacheprovider", "-q"]

    done = subprocess.run(
        [python, "-m", "pytest", *alone, ROOT / f"tests/integrations/{tool}_checks.py"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE)


def test_the_page_says_what_is_never_tried_again() -> None:
    """Its row has the exit codes of the manifest, which tests/test_k8s.py compares with those of the errors."""
    _, codes = SPEC["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    page = (ROOT / "docs/integrations/README.md").read_text()

    (row,) = re.findall(r"^\| ([\d, ]+) \| never", page, re.MULTILINE)

    assert [int(code) for code in row.split(", ")] == codes["onExitCodes"]["values"]


@pytest.fixture
def crontab() -> Any:
    """The file, parsed."""
    from crontab import CronTab

    return CronTab(tabfile=str(FILE))


@pytest.fixture
def words(crontab: Any) -> list[str]:
    """What cron's shell makes of the line."""
    (line,) = crontab
    told = subprocess.run(
        ["sh", "-c", f"set -f; printf '%s\\n' {line.command}"],
        env={"PATH": os.environ["PATH"]} | dict(crontab.env),
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.splitlines()


class TestCrontab:
    def test_runs_when_the_manifest_does(self, crontab: Any) -> None:
        """One line, every night, at the CronJob's time in its zone."""
        (line,) = crontab

        assert line.is_valid()
        assert line.is_enabled()
        assert str(line.slices) == SPEC["schedule"]
        assert crontab.env["CRON_TZ"] == SPEC["timeZone"]

    def test_cron_takes_it(self) -> None:
        """Cron's own check, which is `crontab -T` of cronie and `crontab -n` of Debian, finds no error."""
        program = shutil.which("crontab")
        if not program:
            pytest.skip("no crontab")
        usage = subprocess.run([program, "-h"], capture_output=True, text=True, check=False)
        subprocess.run([program, "-n" if "dry run" in usage.stdout + usage.stderr else "-T", FILE], check=True)

    def test_the_shell_takes_it(self, crontab: Any) -> None:
        """The line is a command without a fault that shellcheck knows; its variables are split into words on purpose."""
        (line,) = crontab
        script = "#!/bin/sh\n" + "".join(f"{name}={shlex.quote(value)}\n" for name, value in crontab.env.items())

        subprocess.run(["bash", "-n"], input=line.command, text=True, check=True)
        done = subprocess.run(
            [Path(sys.executable).with_name("shellcheck"), "--exclude", "SC2086,SC2034", "-"],
            input=f"{script}{line.command}\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        # Cron makes a line break of it.
        assert "%" not in line.command

    def test_scores_what_the_manifest_scores(self, words: list[str]) -> None:
        """The image and the arguments are the manifest's, and batchscore parses them."""
        (container,) = POD["containers"]
        image = words.index(container["image"])
        verb, *rest = words[image + 1 :]

        assert [verb, *rest] == container["args"]
        assert CliRunner().invoke(app, [verb, *rest, "--help"]).exit_code == 0

    def test_may_do_what_the_manifests_pod_may(self, words: list[str]) -> None:
        """Cores, memory, a root that is read only, no capability and no new privilege, as in the manifest."""
        (container,) = POD["containers"]
        options = {word: after for word, after in pairwise(words) if word.startswith("--")}

        assert options["--cpus"] == container["resources"]["limits"]["cpu"]
        assert options["--memory"] == container["resources"]["limits"]["memory"].lower().removesuffix("i")
        assert "--read-only" in options
        assert options["--tmpfs"] == "/tmp"
        assert options["--cap-drop"] == "all"
        assert options["--security-opt"] == "no-new-privileges"

    def test_mounts_what_the_how_to_mounts(self, words: list[str]) -> None:
        """Each place in the container is one that docs/howto.md mounts, read only."""
        howto = (ROOT / "docs/howto.md").read_text()
        wanted = re.findall(r'--volume "[^:"]+:([^"]+)"', howto)
        mounts = [after for word, after in pairwise(words) if word == "--volume"]

        assert sorted(mount.split(":", 1)[1] for mount in mounts) == sorted(wanted)
        assert all(each.endswith(":ro") for each in wanted)
