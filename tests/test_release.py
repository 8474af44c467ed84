"""What a release is made of, where two files say the same thing or one calls the other."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _workflow(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())


def _commands(workflow: Path) -> list[str]:
    """What the steps of a workflow run."""
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return [step["run"] for job in jobs for step in job.get("steps", []) if "run" in step]


class TestWorkflows:
    def test_the_pythons_are_the_promised_ones(self) -> None:
        """Each Python that pyproject names is tested, and no other; the oldest is the least that pip accepts."""
        tested = _workflow("ci")["jobs"]["test"]["strategy"]["matrix"]["python"]

        assert [f"Programming Language :: Python :: {each}" for each in tested] == [
            each for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)
        ]
        assert PROJECT["requires-python"] == f">={tested[0]}"

    def test_every_make_target_is_there(self) -> None:
        """What a workflow or .ci/run asks of make, the Makefile has."""
        there = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        text = "\n".join([(ROOT / ".ci/run").read_text(), *(line for each in WORKFLOWS for line in _commands(each))])
        wanted = set(re.findall(r"\bmake ([\w-]+)$", text, re.MULTILINE))

        assert {"check", "test", "proof", "audit"} <= wanted
        assert wanted <= there, wanted - there

    def test_every_script_is_there(self) -> None:
        """A workflow calls only scripts of .ci that are there and may be executed, and calls all but those."""
        called = {name for each in WORKFLOWS for line in _commands(each) for name in re.findall(r"\.ci/[\w-]+", line)}

        assert called == {f".ci/{path.name}" for path in (ROOT / ".ci").iterdir()}
        assert all(os.access(ROOT / name, os.X_OK) for name in called)

    def test_the_dockerfile_takes_what_the_release_gives(self) -> None:
        """Each build argument of the release is one of the Dockerfile's: docker ignores another, and says so nowhere."""
        steps = _workflow("release")["jobs"]["image"]["steps"]
        (given,) = (step["with"]["build-args"] for step in steps if "build-args" in step.get("with", {}))
        taken = set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))

        assert {line.split("=")[0] for line in given.splitlines()} <= taken


def _notes(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / ".ci/release-notes", *args], capture_output=True, text=True, check=False)


class TestReleaseNotes:
    @pytest.fixture
    def changelog(self, tmp_path: Path) -> Path:
        """Two releases, one of them with a name that another begins with, and one with nothing to tell."""
        path = tmp_path / "CHANGELOG.md"
        path.write_text(
            "# Changelog\n\n## [Unreleased]\n\n- later\n\n## [0.1.10] - 2026-03-01\n\n- ten\n\n"
            "## [0.1.1] - 2026-02-01\n\n### Added\n\n- one\n- two\n\n### Fixed\n\n- three\n\n## [0.1.0] - 2026-01-01\n"
        )
        return path

    @pytest.mark.parametrize("tag", ["v0.1.1", "0.1.1"])
    def test_are_the_section_of_the_tag(self, tag: str, changelog: Path) -> None:
        """They are what stands below the version's heading, up to the next version."""
        assert _notes(tag, changelog).stdout == "### Added\n\n- one\n- two\n\n### Fixed\n\n- three\n"

    @pytest.mark.parametrize("tag", ["v0.1", "v0.2.0", "vUnreleased", "v0.1.0"])
    def test_a_tag_without_a_section_fails(self, tag: str, changelog: Path) -> None:
        """No section, or an empty one, is an error that says what to do, and prints no notes."""
        done = _notes(tag, changelog)

        assert (done.returncode, done.stdout) == (1, "")
        assert f"'## [{tag.removeprefix('v')}] - <date>'" in done.stderr
        assert "Unreleased" in done.stderr


class TestChangelog:
    def test_keeps_the_form(self) -> None:
        """Keep a Changelog: Unreleased first, then dated versions, newest first, each in the six kinds of change."""
        text = (ROOT / "CHANGELOG.md").read_text()
        first, *releases = re.findall(r"^## (.+)$", text, re.MULTILINE)
        kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))

        assert text.startswith("# Changelog\n")
        assert first == "[Unreleased]"
        assert all(re.fullmatch(r"\[\d+(\.\d+)*\S*\] - \d{4}-\d{2}-\d{2}", each) for each in releases)
        dates = [each.split(" - ")[1] for each in releases]
        assert all(newer >= older for newer, older in pairwise(dates))
        assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
