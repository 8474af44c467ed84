"""docs/integrations/airflow_dag.py in the real Airflow, which tests/test_integrations.py starts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock
from zoneinfo import ZoneInfo

import kube
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.base import TimeRestriction
from kube import Cluster
from kubernetes.client import ApiClient

SPEC = kube.CRONJOB["spec"]


@pytest.fixture(scope="module")
def dags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Airflow finds in a folder of DAGs that holds the example and the manifest."""
    folder = tmp_path_factory.mktemp("dags")
    kube.install("airflow_dag.py", folder)
    bag = DagBag(folder)
    assert bag.import_errors == {}
    return bag.dags


def pod(task: Any) -> dict[str, Any]:
    """The pod that an operator would make, as it is sent."""
    return ApiClient().sanitize_for_serialization(task.build_pod_request_obj(dry_run=True))


def test_every_dag_is_found_and_can_be_stored(dags: dict[str, Any]) -> None:
    """Airflow imports both DAGs without an error, and serializes them for its scheduler."""
    assert set(dags) == {"flight_delay", "flight_delay_backfill"}
    for dag in dags.values():
        assert DagSerialization.from_dict(DagSerialization.to_dict(dag)).dag_id == dag.dag_id


def test_a_night_is_the_manifests(dags: dict[str, Any]) -> None:
    """It runs at the CronJob's time in its zone, in summer and winter, alone, and is never made up for."""
    dag = dags["flight_delay"]
    timetable = DagSerialization.from_dict(DagSerialization.to_dict(dag)).timetable
    for day, hour in ((datetime(2025, 1, 10, 12, tzinfo=UTC), 9), (datetime(2025, 7, 10, 12, tzinfo=UTC), 8)):
        last = timetable.infer_manual_data_interval(run_after=day)
        info = timetable.next_dagrun_info(
            last_automated_data_interval=last, restriction=TimeRestriction(earliest=None, latest=None, catchup=True)
        )
        assert (info.run_after.hour, info.run_after.minute) == (hour, 0)
        assert info.run_after.astimezone(ZoneInfo(SPEC["timeZone"])).hour == 4
    assert SPEC["schedule"] == "0 4 * * *"
    assert (dag.max_active_runs, dag.catchup) == (1, False)
    assert dag.dagrun_timeout == timedelta(seconds=SPEC["jobTemplate"]["spec"]["activeDeadlineSeconds"])
    assert dag.task_dict["score"].retries == SPEC["jobTemplate"]["spec"]["backoffLimit"]


def test_the_pod_is_the_manifests(dags: dict[str, Any]) -> None:
    """Image, user, mounts and whatever else the manifest says stand in the pod; a backfill has its own arguments."""
    (container,) = kube.TEMPLATE["spec"]["containers"]
    night = pod(dags["flight_delay"].task_dict["score"])
    task = dags["flight_delay_backfill"].task_dict["backfill"]
    task.render_template_fields({"params": {"from": "2013-10-01", "to": "2013-11-01"}})

    assert kube.alike(night, container["args"])
    assert kube.alike(pod(task), ["backfill", "flight_delay", "--from", "2013-10-01", "--to", "2013-11-01"])
    assert not kube.alike(night, ["score", "another"])
    assert len(night["spec"]["containers"]) == 1


def run(task: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, *, code: int | None) -> Cluster:
    """Execute a task over an API that answers as Kubernetes does, with a pod that ends so."""
    cluster = Cluster(code)
    with kube.serving(cluster, folder) as config:
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", '{"conn_type": "kubernetes"}')
        task = task.prepare_for_execution()
        # It may hold the way to another cluster from a test before.
        vars(task).pop("hook", None)
        task.config_file = str(config)
        instance = MagicMock(dag_id="flight_delay", task_id="score", try_number=1, map_index=-1)
        context = {"ti": instance, "run_id": "manual", "dag": SimpleNamespace(), "task_state_store": None}
        try:
            task.execute(context)
        finally:
            assert cluster.unknown == []
            assert len(cluster.made) == 1
            assert cluster.pods == {}
    return cluster


@pytest.mark.parametrize("code", kube.exit_codes(retryable=False))
def test_a_permanent_exit_code_is_not_tried_again(
    code: int, dags: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The operator raises what Airflow never retries, and names the exit code."""
    with pytest.raises(AirflowFailException, match=f"exit code {code}"):
        run(dags["flight_delay"].task_dict["score"], monkeypatch, tmp_path, code=code)


@pytest.mark.parametrize("code", [*kube.exit_codes(retryable=True), 137, None])
def test_what_may_pass_is_tried_again(
    code: int | None, dags: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The operator raises what Airflow retries; so it does for a pod that was killed or evicted."""
    with pytest.raises(AirflowException) as raised:
        run(dags["flight_delay"].task_dict["score"], monkeypatch, tmp_path, code=code)
    assert not isinstance(raised.value, AirflowFailException)


def test_a_good_night_succeeds(dags: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The pod that was asked for is the manifest's, and nothing is raised."""
    cluster = run(dags["flight_delay"].task_dict["score"], monkeypatch, tmp_path, code=0)

    assert kube.alike(cluster.made[0], kube.TEMPLATE["spec"]["containers"][0]["args"])
