"""compose.yaml is valid, safe, and agrees with the settings, the image and the pods; its dashboard's queries run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import toy
import yaml
from manifests import render
from monitoring import asked, prometheus, pushgateway
from psql import grant
from toy import Project
from typer.testing import CliRunner

from batchscore.cli.app import app
from batchscore.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "compose"
DASHBOARD = FOLDER / "grafana/dashboards/batchscore.json"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DASHBOARDS: dict[str, Any] = json.loads(DASHBOARD.read_text())
PANELS = [panel for panel in DASHBOARDS["panels"] if panel["type"] != "row"]
POSTGRES, PROMETHEUS = "grafana-postgresql-datasource", "prometheus"
MEASURED = (
    "FROM batchscore_performance WHERE metric = 'roc_auc' AND cohort = 'scored' AND slice_column = '' "
    "GROUP BY window_start ORDER BY window_start"
)


def queries(kind: str) -> Iterator[tuple[str, str]]:
    """The queries of a kind of data source, with the title of their panel."""
    for panel in PANELS:
        for target in panel["targets"]:
            if target["datasource"]["type"] == kind:
                yield panel["title"], target["rawSql" if kind == POSTGRES else "expr"]


def mounts() -> Iterator[tuple[str, str, str]]:
    """What services mount from the checkout, secrets too: service, path here, path there."""
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source, target, *_ = volume.split(":")
            if source.startswith("."):
                yield name, source, target
        for secret in service.get("secrets", []):
            yield name, COMPOSE["secrets"][secret]["file"], f"/run/secrets/{secret}"


class TestFile:
    def test_is_valid(self) -> None:
        """It is what the Compose specification's schema wants."""
        checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
        done = subprocess.run([*checker, ROOT / "compose.yaml"], capture_output=True, text=True, check=False)

        assert done.returncode == 0, done.stdout + done.stderr

    def test_the_schema_sees_a_wrong_field(self, tmp_path: Path) -> None:
        """A misspelt field is found."""
        (tmp_path / "compose.yaml").write_text((ROOT / "compose.yaml").read_text().replace("cap_drop", "cap_dropp"))
        checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
        done = subprocess.run([*checker, tmp_path / "compose.yaml"], capture_output=True, text=True, check=False)

        assert done.returncode == 1
        assert "cap_dropp" in done.stdout

    def test_mounts_what_is_there(self) -> None:
        """Each file and folder that a service mounts is in the checkout, and each volume is declared."""
        named = {
            volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])
        } - {source for _, source, _ in mounts()}  # fmt: skip

        assert all((ROOT / source).exists() for _, source, _ in mounts())
        assert named == set(COMPOSE["volumes"])

    def test_listens_on_loopback_only(self) -> None:
        """No port is published to the network that the laptop is in, and the database's not at all."""
        ports = {name: service.get("ports", []) for name, service in SERVICES.items()}

        assert all(port.startswith("127.0.0.1:") for each in ports.values() for port in each)
        assert {name for name, each in ports.items() if each} == {"pushgateway", "prometheus", "grafana"}

    def test_images_have_a_version(self) -> None:
        """What is pulled next year is what was pulled this year."""
        pulled = [service["image"] for service in SERVICES.values() if "build" not in service]

        assert all(re.search(r":v?\d", image) for image in pulled), pulled

    def test_up_starts_servers_only(self) -> None:
        """What runs once waits to be asked for."""
        assert {name for name, service in SERVICES.items() if "profiles" in service} == {"job", "models"}


class TestJob:
    def test_is_as_protected_as_a_pod(self) -> None:
        """The user, the read-only root, the dropped capabilities and the limits are those of the CronJob's pod."""
        (cronjob,) = [each for each in render("overlays/prod") if each["kind"] == "CronJob"]
        pod = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        job = SERVICES["job"]

        assert job["user"] == f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
        assert job["read_only"] is container["securityContext"]["readOnlyRootFilesystem"] is True
        assert job["cap_drop"] == container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert job["security_opt"] == ["no-new-privileges:true"]
        assert not {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc"} & set(job)
        assert {"cpus", "mem_limit"} <= set(job)
        assert {"cpu", "memory"} == set(container["resources"]["limits"])
        assert job["stop_grace_period"] == f"{pod['terminationGracePeriodSeconds']}s"

    def test_may_write_models_and_nothing_else(self) -> None:
        """Every mount but the models' is read-only, and they lie where a pod's lie."""
        found = [volume.split(":") for volume in SERVICES["job"]["volumes"]]

        assert [each[1] for each in found if each[2:] != ["ro"]] == ["/models"]
        assert {each[1] for each in found} == {"/batchscore/jobs", "/batchscore/sql", "/models"}
        assert [mount.split(":")[0] for mount in SERVICES["job"]["tmpfs"]] == ["/tmp"]

    def test_whoever_gives_the_models_away_can_do_that_only(self) -> None:
        """Root in its container has one capability, no network, and one place to write to."""
        models = SERVICES["models"]

        assert (models["cap_drop"], models["cap_add"], models["network_mode"]) == (["ALL"], ["CHOWN"], "none")
        assert models["volumes"] == ["models:/models"]
        assert models["entrypoint"][1] == SERVICES["job"]["user"]

    def test_settings_are_ours(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each variable and secret is a setting's, and the settings are read from them."""
        names = {f"BATCHSCORE_{name.upper()}" for name in Settings.model_fields}
        job = SERVICES["job"]
        for secret in job["secrets"]:
            (tmp_path / secret).write_text((ROOT / COMPOSE["secrets"][secret]["file"]).read_text())
        for name, value in job["environment"].items():
            monkeypatch.setenv(name, value)

        settings = load_settings(secrets_dir=tmp_path)

        assert set(job["environment"]) <= names
        assert {secret.upper() for secret in job["secrets"]} <= names
        assert sa.make_url(settings.warehouse()).host in SERVICES
        assert settings.pushgateway_url
        assert sa.make_url(settings.pushgateway_url.get_secret_value()).host in SERVICES

    def test_its_command_and_its_extras_exist(self) -> None:
        """The command parses, and each extra has a lock file that the image is built from."""
        verb, name = SERVICES["job"]["command"]
        extras = SERVICES["job"]["build"]["args"]["EXTRAS"].split()

        assert CliRunner().invoke(app, [verb, name, "--help"]).exit_code == 0
        assert (ROOT / f"jobs/{name}.toml").exists()
        assert set(extras) <= set(
            tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        )
        assert all((ROOT / f"requirements-{extra}.lock").exists() for extra in extras)


class TestGrafana:
    def test_data_sources_are_the_services(self) -> None:
        """Each data source is at a service's port, and the panels use these and no others."""
        sources = yaml.safe_load((FOLDER / "grafana/provisioning/datasources/datasources.yaml").read_text())[
            "datasources"
        ]
        hosts = {re.sub(r"^http://|:\d+$", "", each["url"]) for each in sources}
        used = {
            (target["datasource"]["type"], target["datasource"]["uid"])
            for panel in PANELS
            for target in panel["targets"]
        }

        assert hosts <= set(SERVICES)
        assert used == {(each["type"], each["uid"]) for each in sources}

    def test_finds_its_files(self) -> None:
        """The dashboards' folder and the password's file are where Grafana's files say."""
        text = "".join(path.read_text() for path in sorted((FOLDER / "grafana/provisioning").rglob("*.yaml")))
        there = {target for name, _, target in mounts() if name == "grafana"}

        (folder,) = re.findall(r"path: (\S+)", text)
        (secret,) = re.findall(r"\$__file\{(.*)\}", text)
        assert {folder, secret, "/etc/grafana/provisioning"} == there

    def test_panels_say_what_they_show(self) -> None:
        """Each has a title of its own, a unit and a description, and a place that no other has."""
        cells = [
            (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
            for panel in DASHBOARDS["panels"]
            for x in range(panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["h"])
        ]
        ids = [panel["id"] for panel in DASHBOARDS["panels"]]

        assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)
        assert len({panel["title"] for panel in PANELS}) == len(PANELS)
        assert len(set(ids)) == len(ids)
        # From 36 on a panel names its data source by type and uid, as these do.
        assert DASHBOARDS["schemaVersion"] >= 36
        assert len(set(cells)) == len(cells)
        assert max(x for x, _ in cells) < 24

    def test_the_dashboard_is_formatted(self) -> None:
        """It is JSON of two spaces, so that a change shows as one."""
        assert DASHBOARD.read_text() == json.dumps(DASHBOARDS, indent=2, ensure_ascii=False) + "\n"


def test_one_password() -> None:
    """The warehouse's URL gives the password that the roles are made with, and the role and database of those."""
    url = sa.make_url((FOLDER / "secrets/batchscore_warehouse_url").read_text().strip())
    roles = (FOLDER / "postgres/roles.sql").read_text()

    assert url.password == (FOLDER / "secrets/password").read_text().strip()
    assert f"CREATE DATABASE {url.database} OWNER {url.username};" in roles


@pytest.fixture(scope="module")
def roles(postgres_server: sa.URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.URL]:
    """The URL of the owner's database, made by the file that Postgres runs when its volume is new."""
    admin = postgres_server.render_as_string(hide_password=False)
    copied = tmp_path_factory.mktemp("roles") / "roles.sql"
    text = (FOLDER / "postgres/roles.sql").read_text()
    assert "/run/secrets/password" in text
    copied.write_text(text.replace("/run/secrets/password", str(FOLDER / "secrets/password")))
    grant(admin, str(copied))
    yield postgres_server.set(username="batchscore", database="warehouse")
    uri = postgres_server.set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg.connect(uri, autocommit=True)) as connection:
        connection.execute("DROP DATABASE warehouse WITH (FORCE)")
        connection.execute("DROP ROLE batchscore, dashboards")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Pushgateway of the module's own."""
    with pushgateway(tmp_path_factory.mktemp("gateway")) as url:
        yield url


@pytest.fixture(scope="module")
def scored(roles: sa.URL, gateway: str, trained: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The toy as the role batchscore scored it: three intervals, a reject in the first, a shift in the second, and a fourth that failed."""
    url = roles.render_as_string(hide_password=False)
    project = toy.unscored(tmp_path_factory.mktemp("scored"), url, trained)
    # As many a day as a comparison with training wants.
    toy.load(url, toy.rows(a_day=300))
    toy.execute(
        url,
        "UPDATE toy SET b = b + 5 WHERE day = '2024-02-02'",
        "UPDATE toy SET a = NULL WHERE id = 9301 OR id > 10200 AND id <= 10250",
    )
    window = ("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-05")
    assert project.call(*window[:-1], "2024-02-04", BATCHSCORE_PUSHGATEWAY_URL=gateway).code == 0
    assert project.call(*window, BATCHSCORE_PUSHGATEWAY_URL=gateway).code == 11
    # The labels of the third are not known yet.
    toy.execute(url, "UPDATE toy SET y = NULL WHERE day = '2024-02-03' AND id % 3 = 0")
    assert project.call("evaluate", "toy", "--format", "json").code == 0
    grant(url, "readers.sql", role="dashboards", schema="public", output="toy_predictions")
    return Project(project.root, roles.set(username="dashboards").render_as_string(hide_password=False))


def substituted(text: str, **values: str) -> str:
    """The query as Grafana sends it, over the last hour."""
    now = datetime.now(UTC)
    start, end = (f"'{instant:%Y-%m-%dT%H:%M:%S.%fZ}'" for instant in (now - timedelta(hours=1), now))
    text = text.replace("${job:sqlstring}", "'toy'").replace("$job", "toy").replace("$intervals", "92")
    text = text.replace("${metric:sqlstring}", "'roc_auc'")
    for name, value in values.items():
        text = text.replace(f"${{{name}:raw}}", value)
    text = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN {start} AND {end}", text)
    assert "$" not in text, text
    return text


class TestDashboard:
    def test_every_sql_query(self, scored: Project) -> None:
        """As a role that reads, each gives what the toy's runs left in the tables."""
        variables = {each["name"]: each for each in DASHBOARDS["templating"]["list"]}
        jobs = toy.query(scored.url, variables["job"]["query"])
        ((output,),) = toy.query(scored.url, substituted(variables["output"]["query"]))

        found = {title: toy.query(scored.url, substituted(text, output=output)) for title, text in queries(POSTGRES)}

        days = [f"2024-02-0{day} 00:00" for day in (1, 2, 3)]
        assert (jobs, output) == ([("toy",)], "public.toy_predictions")
        metrics = toy.query(scored.url, substituted(variables["metric"]["query"]))
        assert ("roc_auc",) in metrics
        ((freshness,),) = found.pop("Freshness")
        assert float(freshness) == pytest.approx(time.time() - datetime(2024, 2, 4, tzinfo=UTC).timestamp(), abs=120)
        ((name, version, count, _),) = found.pop("Model versions")
        assert (name, version, count) == ("toy", 1, 899)
        assert found.pop("Failed or held intervals") == [(1,)]
        assert found.pop("Predictions") == list(zip(days, (299, 300, 300), strict=True))
        assert found.pop("Rejects") == list(zip(days, (1, 0, 0), strict=True))
        scores = toy.query(
            scored.url, "SELECT avg(score) FROM toy_predictions GROUP BY interval_start ORDER BY interval_start"
        )
        assert [day for day, _ in found["Average score"]] == days
        assert [score for _, score in found.pop("Average score")] == pytest.approx([score for (score,) in scores])
        moved = (
            "SELECT role, column_name, metric, count(DISTINCT run_id) FROM batchscore_drift WHERE told GROUP BY 1, 2, 3"
        )
        assert {row[:4] for row in found["What moved most often"]} == set(toy.query(scored.url, moved))
        assert ("input", "b", "psi", 1) in {row[:4] for row in found.pop("What moved most often")}
        assert [(day, inputs > 0) for day, inputs, _ in found.pop("What moved")] == list(
            zip(days, (False, True, False), strict=True)
        )
        assert [0 <= seconds < 60 for _, seconds in found.pop("Duration of runs")] == [True] * 3
        ((_, day, status, _, error),) = found.pop("Runs that failed or are held")
        assert (day, status) == ("2024-02-04 00:00", "failed")
        of_each = ", ".join(f"max({name}) FILTER (WHERE kind = 'measured')" for name in ("value", "low", "high"))
        of_each += ", max(value) FILTER (WHERE kind = 'estimated')"
        measured = toy.query(scored.url, f"SELECT {of_each} {MEASURED}")
        assert found.pop("Performance") == [(day, *row) for day, row in zip(days, measured, strict=True)]
        assert [coverage for _, coverage in found.pop("Label coverage")] == pytest.approx([1, 1, 2 / 3], abs=0.01)
        assert "50 of 300 rows" in error
        assert not found

    def test_every_promql_query(self, scored: Project, gateway: str, tmp_path: Path) -> None:
        """Prometheus answers each with what the last command pushed, and the success before it."""
        with prometheus(tmp_path, gateway) as server:
            found = {title: asked(server, substituted(text)) for title, text in queries(PROMETHEUS)}

        values = {title: [float(each["value"][1]) for each in result] for title, result in found.items()}
        assert values["Exit code"] == [11]
        assert 0 < values["Since the last success"][0] < 120
        assert 0 < values["Duration"][0] < 60
        outcomes = {each["metric"]["outcome"]: float(each["value"][1]) for each in found["Intervals"]}
        assert outcomes == {"published": 0, "failed": 1, "elsewhere": 0, "untried": 0}
        assert len(values) == 4
