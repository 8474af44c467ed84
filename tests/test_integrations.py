"""What needs others' packages: examples of docs/integrations, MLflow, Evidently's distances; for `make integrations`."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from batchscore.cli.app import app
from batchscore.drift import compare
from batchscore.profile import Profile

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


def test_distances_are_evidentlys(tmp_path: Path) -> None:
    """PSI, Jensen-Shannon and Hellinger of a category, Wasserstein of a number, and the p-value of KS, of the same rows.

    Evidently's logarithm in Jensen-Shannon is natural and ours to base 2; ours adds half a row to each bin of PSI; and
    ours of numbers are of 140 bins, and not of the rows.
    """
    python = ROOT / ".venv-evidently/bin/python"
    if not python.exists():
        pytest.skip("no .venv-evidently, which `make integrations` makes")
    rng = np.random.default_rng(0)
    words = ["a", "b", "c", "d", "e"]
    sides = {
        "num_reference": rng.lognormal(size=20_000),
        "num_current": rng.lognormal(0.02, 1, size=5_000),
        "cat_reference": rng.choice(words, 20_000, p=[0.4, 0.3, 0.15, 0.1, 0.05]),
        "cat_current": rng.choice(words, 5_000, p=[0.3, 0.3, 0.2, 0.1, 0.1]),
    }
    np.savez(tmp_path / "sides.npz", **sides)
    done = subprocess.run(
        [python, ROOT / "tests/integrations/evidently_values.py", tmp_path / "sides.npz"],
        env=os.environ | {"DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    profiles = {}
    for kind in ("num", "cat"):
        reference = pl.DataFrame({kind: sides[f"{kind}_reference"]})
        layouts = Profile.layouts_of(reference)
        current = pl.DataFrame({kind: sides[f"{kind}_current"]})
        profiles[kind] = {
            each.metric: each for each in compare(*(Profile.of(s, layouts) for s in (current, reference)))
        }

    ours = {name: profiles["cat"][name].value or 0 for name in ("psi", "js", "hellinger")}
    assert math.isclose(ours["psi"], theirs["cat"]["psi"], rel_tol=0.01)
    assert math.isclose(ours["js"], theirs["cat"]["jensenshannon"] / math.sqrt(math.log(2)), rel_tol=0.001)
    assert math.isclose(ours["hellinger"], theirs["cat"]["hellinger"], rel_tol=0.001)
    assert math.isclose(profiles["num"]["wasserstein"].value or 0, theirs["num"]["wasserstein"], rel_tol=0.05)
    assert math.isclose(profiles["num"]["ks"].p_value or 0, theirs["num"]["ks"], rel_tol=0.25)


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
