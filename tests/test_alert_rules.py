"""The alert rules fire when they should, ask for metrics that there are, and are applied with the dashboard."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import toy
import yaml
from manifests import render
from monitoring import fetch, program, pushgateway
from toy import Project

ROOT = Path(__file__).parent.parent
RULES = ROOT / "k8s/monitoring/alerts.yaml"
TESTS = ROOT / "tests/alerts.yaml"
ALERTS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]


def promtool(*arguments: str | Path) -> tuple[int, str]:
    """What promtool ends with and says."""
    command = [program("promtool", "prometheus"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_rules_are_sound() -> None:
    """Prometheus takes every rule, and each says how bad it is, what it is about, and what to do."""
    assert promtool("check", "rules", RULES)[0] == 0
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert set(alert["annotations"]) == {"summary", "description"}
        assert "$labels.batchscore_job" in alert["annotations"]["summary"]


def test_each_rule_fires_when_it_should() -> None:
    """Its own tests pass, and each alert is seen quiet and firing in them."""
    code, said = promtool("test", "rules", TESTS)

    assert code == 0, said
    text = TESTS.read_text()
    for alert in ALERTS:
        assert re.search(rf"alertname: {alert['alert']}\n +eval_time: \w+\n +exp_alerts: \[\]", text)
        assert re.search(rf"alertname: {alert['alert']}\n +eval_time: \w+\n +exp_alerts:\n", text)


def test_each_rule_is_tested(tmp_path: Path) -> None:
    """Of rules that never fire promtool's tests find each one."""
    (tmp_path / "k8s/monitoring").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/alerts.yaml").write_text(TESTS.read_text())
    rules = [alert | {"expr": "vector(1) > 2"} for alert in ALERTS]
    broken = {"groups": [{"name": "batchscore", "rules": rules}]}
    (tmp_path / "k8s/monitoring/alerts.yaml").write_text(yaml.safe_dump(broken))

    code, said = promtool("test", "rules", tmp_path / "tests/alerts.yaml")

    assert code != 0
    missed = {alert["alert"] for alert in ALERTS if f"alertname: {alert['alert']}" in said}
    assert missed == {alert["alert"] for alert in ALERTS}


def test_the_metrics_of_the_rules_are_there(project: Project, tmp_path: Path) -> None:
    """Whatever a rule asks for is pushed by a job that scores and evaluates, with the labels that it names."""
    window = ("--from", "2024-02-01", "--to", "2024-02-04")
    with pushgateway(tmp_path) as gateway:
        # Of fewer than two hundred a day no metric is mature.
        toy.load(project.url, toy.rows(a_day=200))
        assert project.call("backfill", "toy", *window).code == 0
        assert project.call("evaluate", "toy", "--format", "json").code == 0
        assert project.call("backfill", "toy", *window, BATCHSCORE_PUSHGATEWAY_URL=gateway).code == 0
        pushed = fetch(f"{gateway}/metrics")

    there = set(re.findall(r"^batchscore_\w+", pushed, re.MULTILINE))
    asked = {name for alert in ALERTS for name in re.findall(r"batchscore_\w+", alert["expr"])} - {"batchscore_job"}
    assert asked <= there
    assert re.search(r'^batchscore_last_interval_rows\{.*outcome="rejected"', pushed, re.MULTILINE)


def test_rules_and_dashboard_are_applied_as_they_are() -> None:
    """The kustomization has both files, unchanged, in ConfigMaps that are valid; Grafana's sidecar sees the second."""
    objects = {each["metadata"]["name"]: each for each in render("monitoring")}
    for each in objects.values():
        kubernetes_validate.validate(each, "1.37", strict=True)

    dashboard = ROOT / "compose/grafana/dashboards/batchscore.json"
    assert objects["batchscore-alerts"]["data"] == {"alerts.yaml": RULES.read_text()}
    assert objects["batchscore-dashboard"]["data"] == {"batchscore.json": dashboard.read_text()}
    assert objects["batchscore-dashboard"]["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert {each["metadata"]["namespace"] for each in objects.values()} == {"monitoring"}
    assert len(json.dumps(objects)) < 1_000_000
