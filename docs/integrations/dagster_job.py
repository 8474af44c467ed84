"""Dagster: a partition for each day, scored in the pod of k8s/base/cronjob.yaml. README.md says how to try it."""

from copy import deepcopy
from pathlib import Path

import dagster as dg
import yaml
from dagster_k8s import PipesK8sClient
from dagster_k8s.client import DagsterK8sError
from kubernetes.client import CoreV1Api, V1Pod

# The pod, the schedule and the exit codes stand in the manifest, and nowhere a second time.
OBJECTS = yaml.safe_load_all(Path(__file__).with_name("batchscore.yaml").read_text())
CRONJOB = next(each for each in OBJECTS if each["kind"] == "CronJob")
JOB = CRONJOB["spec"]["jobTemplate"]["spec"]
PERMANENT = next(rule["onExitCodes"]["values"] for rule in JOB["podFailurePolicy"]["rules"] if "onExitCodes" in rule)
NAMESPACE = CRONJOB["metadata"].get("namespace", "default")
MINUTE, HOUR, *_ = CRONJOB["spec"]["schedule"].split()


def pods(label: str) -> list[V1Pod]:
    """The pods with a label; the exit code is in them alone, for the client does not tell it."""
    return CoreV1Api().list_namespaced_pod(NAMESPACE, label_selector=label).items


@dg.asset(
    # The intervals of jobs/flight_delay.toml, so that Dagster's own backfill works.
    partitions_def=dg.DailyPartitionsDefinition(start_date="2013-10-01", timezone=CRONJOB["spec"]["timeZone"]),
    # The lease of a process that was killed lasts a minute.
    retry_policy=dg.RetryPolicy(max_retries=JOB["backoffLimit"], delay=120),
    # A backfill starts a pod for each day; a limit on this pool spares the warehouse.
    pool="batchscore",
)
def flight_delay_predictions(
    context: dg.AssetExecutionContext, k8s: dg.ResourceParam[PipesK8sClient]
) -> dg.MaterializeResult:
    """Score the partition's interval; one that is published already is left as it is."""
    pod = deepcopy(JOB["template"]["spec"])
    pod["containers"][0]["args"] = ["score", "flight_delay", "--interval", context.partition_key]
    attempt = f"{context.run.run_id}-{context.retry_number}"
    try:
        # batchscore knows nothing of Dagster's pipes: its log goes to the run's, and that is all that comes back.
        return k8s.run(
            context=context,
            namespace=NAMESPACE,
            base_pod_meta={"labels": JOB["template"]["metadata"]["labels"] | {"attempt": attempt}},
            base_pod_spec=pod,
            # Its exit code is read first.
            delete_pod_on_completion=False,
        ).get_materialize_result()
    except DagsterK8sError as error:
        statuses = [status for each in pods(f"attempt={attempt}") for status in each.status.container_statuses or []]
        ended = [each.state.terminated for each in statuses if each.name == "batchscore"]
        for code in (each.exit_code for each in ended if each):
            if code in PERMANENT:
                raise dg.Failure(f"exit code {code}, see batchscore/errors.py", allow_retries=False) from error
        raise
    finally:
        for each in pods(f"attempt={attempt}"):
            CoreV1Api().delete_namespaced_pod(each.metadata.name, NAMESPACE)


nightly = dg.define_asset_job(
    "flight_delay",
    [flight_delay_predictions],
    # A night that hangs ends before the next one begins.
    tags={"dagster/max_runtime": JOB["activeDeadlineSeconds"]},
)

defs = dg.Definitions(
    assets=[flight_delay_predictions],
    schedules=[dg.build_schedule_from_partitioned_job(nightly, hour_of_day=int(HOUR), minute_of_hour=int(MINUTE))],
    resources={"k8s": PipesK8sClient()},
)
