"""docs/integrations/dagster_job.py in the real Dagster, which tests/test_integrations.py starts."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import dagster as dg
import kube
import pytest
from dagster_k8s import PipesK8sClient
from kube import Cluster

SPEC = kube.CRONJOB["spec"]
DAY = "2013-10-01"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The example, beside the manifest."""
    return kube.load("dagster_job", kube.install("dagster_job.py", tmp_path_factory.mktemp("code")))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is to be tried again is ready at once."""
    monkeypatch.setattr(dg.RetryPolicy, "calculate_delay", lambda *_: 0)


def test_definitions_are_whole(example: ModuleType) -> None:
    """Dagster resolves the asset, the job, the schedule and the resource."""
    dg.Definitions.validate_loadable(example.defs)


def test_a_night_is_the_manifests(example: ModuleType) -> None:
    """The schedule has the CronJob's time and zone, asks for the day that has just ended, and bounds the run."""
    schedule = example.defs.resolve_schedule_def("flight_delay_schedule")
    context = dg.build_schedule_context(
        scheduled_execution_time=datetime(2025, 7, 10, 8, tzinfo=UTC), repository_def=example.defs.get_repository_def()
    )
    (asked,) = schedule.evaluate_tick(context).run_requests

    assert (schedule.cron_schedule, schedule.execution_timezone) == (SPEC["schedule"], SPEC["timeZone"])
    assert asked.partition_key == "2025-07-09"
    seconds = SPEC["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    assert example.defs.resolve_job_def("flight_delay").tags["dagster/max_runtime"] == str(seconds)


def test_partitions_are_the_intervals(example: ModuleType) -> None:
    """They begin where the job's intervals do, are as long, and are cut in the same time zone."""
    interval = tomllib.loads((kube.ROOT / "jobs/flight_delay.toml").read_text())["interval"]
    days = example.flight_delay_predictions.partitions_def

    assert interval["every"] == "day"
    assert days.timezone == interval["timezone"]
    assert days.get_first_partition_key() == interval["start"].isoformat()


def run(example: ModuleType, folder: Path, *ends: int) -> tuple[Cluster, dg.ExecuteInProcessResult]:
    """Materialize a day over an API that answers as Kubernetes does, with pods that end so."""
    cluster = Cluster(*ends)
    with kube.serving(cluster, folder) as config:
        done = dg.materialize(
            [example.flight_delay_predictions],
            partition_key=DAY,
            resources={"k8s": PipesK8sClient(kubeconfig_file=str(config), poll_interval=0.01)},
            raise_on_error=False,
        )
    assert cluster.unknown == []
    assert cluster.pods == {}
    return cluster, done


def test_the_pod_is_the_manifests(example: ModuleType, tmp_path: Path) -> None:
    """Image, user, mounts and whatever else the manifest says stand in the pod, whose arguments name the partition."""
    cluster, done = run(example, tmp_path, 0)

    assert done.success
    (pod,) = cluster.made
    assert kube.alike(pod, ["score", "flight_delay", "--interval", DAY])
    assert len(pod["spec"]["containers"]) == 1


@pytest.mark.parametrize("code", kube.exit_codes(retryable=False))
def test_a_permanent_exit_code_is_not_tried_again(code: int, example: ModuleType, tmp_path: Path) -> None:
    """One pod, and a failure that names the exit code."""
    cluster, done = run(example, tmp_path, code)

    assert not done.success
    assert len(cluster.made) == 1
    (failure,) = done.filter_events(lambda event: event.is_step_failure)
    assert f"exit code {code}" in failure.event_specific_data.error_display_string


@pytest.mark.parametrize("code", [*kube.exit_codes(retryable=True), 137])
def test_what_may_pass_is_tried_again(code: int, example: ModuleType, tmp_path: Path) -> None:
    """A pod that ends so is followed by another, which is a success here; so it is for one that was killed."""
    cluster, done = run(example, tmp_path, code, 0)

    assert done.success
    assert len(cluster.made) == 2


def test_tries_are_counted(example: ModuleType, tmp_path: Path) -> None:
    """There are as many as the manifest allows, and no more."""
    tries = 1 + SPEC["jobTemplate"]["spec"]["backoffLimit"]

    cluster, done = run(example, tmp_path, *[20] * tries)

    assert not done.success
    assert len(cluster.made) == tries
