"""Airflow: the night of k8s/base/cronjob.yaml, and a backfill. README.md says how to try it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG, CronTriggerTimetable, Param
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from kubernetes.client import V1Pod

# The pod, the schedule and the exit codes stand in the manifest, and nowhere a second time.
OBJECTS = yaml.safe_load_all(Path(__file__).with_name("batchscore.yaml").read_text())
CRONJOB = next(each for each in OBJECTS if each["kind"] == "CronJob")
JOB = CRONJOB["spec"]["jobTemplate"]["spec"]
PERMANENT = next(rule["onExitCodes"]["values"] for rule in JOB["podFailurePolicy"]["rules"] if "onExitCodes" in rule)


class BatchscoreOperator(KubernetesPodOperator):
    """A pod that is not tried again where it would fail again with nothing changed."""

    # Not in a callback: what `cleanup` raises takes the place of what a callback raised. And not `skip_on_exit_code`:
    # a night without predictions is a failure.
    def cleanup(self, pod: V1Pod, remote_pod: V1Pod, **kwargs: Any) -> None:
        """Fail for good on a permanent exit code, and as the provider does on any other."""
        try:
            super().cleanup(pod, remote_pod, **kwargs)
        except AirflowException as error:
            statuses = (remote_pod.status and remote_pod.status.container_statuses) or []
            ended = [each.state.terminated for each in statuses if each.name == self.base_container_name]
            for code in (each.exit_code for each in ended if each):
                if code in PERMANENT:
                    raise AirflowFailException(f"exit code {code}, see batchscore/errors.py") from error
            raise


POD = {
    "pod_template_dict": JOB["template"],
    # None is where Airflow runs its own pods.
    "namespace": CRONJOB["metadata"].get("namespace"),
    "base_container_name": "batchscore",
    # The operator has a word of its own in this, over the pod's.
    "termination_message_policy": JOB["template"]["spec"]["containers"][0]["terminationMessagePolicy"],
    # A node may have to be added first.
    "startup_timeout_seconds": 600,
    "retries": JOB["backoffLimit"],
    # The lease of a process that was killed lasts a minute.
    "retry_delay": timedelta(minutes=2),
}
NIGHT = {
    # A second would find every interval leased.
    "max_active_runs": 1,
    # The job finds the missing intervals itself, so a missed night is made up by the next.
    "catchup": False,
}

with DAG(
    "flight_delay",
    schedule=CronTriggerTimetable(CRONJOB["spec"]["schedule"], timezone=CRONJOB["spec"]["timeZone"]),
    # A night that hangs ends before the next one begins.
    dagrun_timeout=timedelta(seconds=JOB["activeDeadlineSeconds"]),
    **NIGHT,
) as nightly:
    BatchscoreOperator(task_id="score", **POD)

# By hand; it may run beside a night, for they do not score the same interval at once.
with DAG(
    "flight_delay_backfill",
    schedule=None,
    params={name: Param(type="string", format="date") for name in ("from", "to")},
    **NIGHT,
) as backfill:
    BatchscoreOperator(
        task_id="backfill",
        arguments=["backfill", "flight_delay", "--from", "{{ params['from'] }}", "--to", "{{ params['to'] }}"],
        **POD,
    )
