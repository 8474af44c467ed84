"""The things around the code: the wheel, the lock files, the manifest, the image's recipe."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest
import toy
from toy import Project

from batchscore import errors

ROOT = Path(__file__).parent.parent


@pytest.mark.long
class TestWheel:
    def test_runs_a_job_from_another_folder(self, tmp_path: Path) -> None:
        """The wheel alone, in an environment of its own, prints its help and runs a job away from the checkout."""
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT],
            check=True,
            capture_output=True,
        )
        (wheel,) = (tmp_path / "dist").glob("*.whl")
        python = _environment_with(wheel, tmp_path / "alone")
        project = Project.at(tmp_path / "elsewhere", f"duckdb:///{tmp_path}/elsewhere/warehouse.duckdb")
        toy.load(project.url, toy.rows())

        def run(*args: str) -> str:
            done = subprocess.run(
                [python.parent / "batchscore", *args],
                cwd=project.root,
                env=project.environment(),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        assert "Score a scikit-learn model" in run("--help")
        run("train", "toy")
        run("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-03")
        assert len(project.table()) == 200
        assert '"toy_predictions_daily": "made"' in run("views", "apply", "toy")
        where = subprocess.run(
            [python, "-c", "import batchscore; print(batchscore.__file__)"],
            cwd=project.root,
            capture_output=True,
            text=True,
            check=True,
        )
        assert str(tmp_path / "alone") in where.stdout

    def test_holds_the_package_and_nothing_else(self, tmp_path: Path) -> None:
        """No test, job or lock file is in the wheel; the type marker is."""
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
            check=True,
            capture_output=True,
        )
        (wheel,) = tmp_path.glob("*.whl")

        listed = subprocess.run(
            [sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True, check=True
        )

        names = [line.split()[0] for line in listed.stdout.splitlines()[1:]]
        assert {name.split("/")[0] for name in names} == {
            "batchscore",
            f"batchscore-{wheel.name.split('-')[1]}.dist-info",
        }
        assert "batchscore/py.typed" in names


class TestSdist:
    def test_holds_the_checkout(self, tmp_path: Path) -> None:
        """Whatever lies at the root of the checkout, and its tests may read, is in the source distribution."""
        subprocess.run(
            [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT],
            check=True,
            capture_output=True,
        )
        (sdist,) = tmp_path.glob("*.tar.gz")

        with tarfile.open(sdist) as archive:
            names = {name.split("/")[1] for name in archive.getnames()}
        made = {".venv", "var", "dist", "build"}
        wanted = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - made
        assert wanted <= names, wanted - names


def _environment_with(wheel: Path, folder: Path) -> Path:
    """An empty environment, filled with the locked requirements of a run and the wheel."""
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "-r", ROOT / "requirements.lock"], check=True)
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    return python


LOCKS = [path for folder in (".", "docs/integrations", "benchmarks") for path in (ROOT / folder).glob("*.lock")]


class TestLockFiles:
    @pytest.mark.parametrize("name", sorted(str(path.relative_to(ROOT)) for path in LOCKS))
    def test_every_requirement_has_a_version_and_hashes(self, name: str) -> None:
        """Each line pins a version with SHA-256 hashes, and no address of an index stands anywhere."""
        text = (ROOT / name).read_text()
        blocks = re.split(r"\n(?=[a-z])", text)

        assert not re.search(r"https?://|file:|--index|--find-links", text)
        for block in blocks:
            assert re.match(r"[a-z0-9._-]+==\S+", block), block
            assert "--hash=sha256:" in block, block

    def test_every_dependency_is_locked(self) -> None:
        """What pyproject asks for is in the lock file of a run."""
        import tomllib

        wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        locked = {line.split("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line}

        assert {re.split(r"[\[<>=]", name)[0] for name in wanted} <= locked


class TestHouse:
    def test_the_layers_are_those_of_the_design(self) -> None:
        """import-linter's contract lists every module of the package."""
        import tomllib

        contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
        layers = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
        modules = {
            f"batchscore.{path.stem if path.is_file() else path.name}"
            for path in (ROOT / "batchscore").iterdir()
            if path.name not in ("__init__.py", "__main__.py", "__pycache__", "py.typed")
        }

        assert modules == layers

    def test_events_are_json_ready(self, tmp_path: Path) -> None:
        """Every error's context can be logged as JSON."""
        error = errors.SchemaMismatch.type_of("a", "float", "string", "rows.sql", "Cast it.")

        assert json.loads(json.dumps(error.context)) == {"column": "a", "want": "float", "got": "string"}
