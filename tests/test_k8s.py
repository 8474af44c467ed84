"""The manifests are valid, safe, alike, and agree with the errors, the settings and the image."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from manifests import PAGES, render
from typer.testing import CliRunner

from batchscore import errors
from batchscore.cli.app import app
from batchscore.settings import Settings

ROOT = Path(__file__).parent.parent
# Of the Kubernetes whose schemas are the newest that the validator has.
VERSION = "1.37"
ERRORS = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.BatchscoreError)]
PERMANENT = {each.exit_code for each in ERRORS if not each.retryable} | {errors.BUG_EXIT_CODE}


@pytest.fixture(scope="module")
def pages() -> dict[str, list[dict[str, Any]]]:
    """Every kustomization, rendered."""
    return {page: render(page) for page in PAGES}


def jobs(pages: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The specification of every Job, those of CronJobs too, and where it comes from."""
    for page, objects in pages.items():
        for each in objects:
            if each["kind"] == "Job":
                yield page, each["spec"]
            if each["kind"] == "CronJob":
                yield page, each["spec"]["jobTemplate"]["spec"]


def containers(pages: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every pod and its one container."""
    for page, job in jobs(pages):
        pod = job["template"]["spec"]
        (container,) = pod["containers"]
        yield page, pod, container


def test_every_object_is_valid(pages: dict[str, list[dict[str, Any]]]) -> None:
    """Each object has the fields that its kind has, and no other."""
    objects = [each for page in pages.values() for each in page]
    kinds = {"ConfigMap", "CronJob", "Job", "NetworkPolicy", "PersistentVolumeClaim", "ServiceAccount"}
    assert {each["kind"] for each in objects} == kinds

    for each in objects:
        kubernetes_validate.validate(each, VERSION, strict=True)


def test_the_validator_sees_a_wrong_field(pages: dict[str, list[dict[str, Any]]]) -> None:
    """A misspelt field is found."""
    (job,) = pages["migrate"]
    job = job | {"spec": job["spec"] | {"backofLimit": 1}}

    with pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
        kubernetes_validate.validate(job, VERSION, strict=True)


def test_retries_what_the_errors_call_retryable(pages: dict[str, list[dict[str, Any]]]) -> None:
    """`podFailurePolicy` fails on exactly the exit codes of errors that are not retryable, and evictions come first."""
    retryable = {each.exit_code for each in ERRORS if each.retryable} | {errors.Terminated.exit_code}

    for page, job in jobs(pages):
        eviction, codes = job["podFailurePolicy"]["rules"]
        assert eviction == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
        assert set(codes["onExitCodes"]["values"]) == PERMANENT
        assert not PERMANENT & retryable
        assert codes["action"] == ("FailIndex" if page == "backfill" else "FailJob")
        # Kubernetes admits a policy for pods that fail in no other way.
        assert job["template"]["spec"]["restartPolicy"] == "Never"
        assert job["podReplacementPolicy"] == "Failed"


def test_the_how_to_tells_the_same_codes() -> None:
    """What the how-to says is not tried again is what the errors say."""
    told = re.search(r"a pod that ends with ([\d, or]+) fails the Job", (ROOT / "docs/howto.md").read_text())

    assert told
    assert {int(code) for code in re.findall(r"\d+", told[1])} == PERMANENT


def test_pods_may_do_nothing_that_they_need_not(pages: dict[str, list[dict[str, Any]]]) -> None:
    """No root, no token, no capability, no privilege, no writable root, and the image's own user."""
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert user
    for _, pod, container in containers(pages):
        assert pod["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] == "batchscore"
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert (security["runAsUser"], security["runAsGroup"]) == (int(user[1]), int(user[2]))
        assert int(user[1]) > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} == set(container["resources"]["limits"])


def test_a_failure_can_be_read_where_the_pod_is_described(pages: dict[str, list[dict[str, Any]]]) -> None:
    """The end of the log is what a pod that failed says of itself."""
    assert all(each["terminationMessagePolicy"] == "FallbackToLogsOnError" for _, _, each in containers(pages))


def test_the_claim_is_there_and_all_may_mount_it(pages: dict[str, list[dict[str, Any]]]) -> None:
    """The pods' claim is applied with each overlay, and pods on several nodes may have it at once."""
    for page in ("overlays/dev", "overlays/prod"):
        (claim,) = [each for each in pages[page] if each["kind"] == "PersistentVolumeClaim"]
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        named = {
            volume["persistentVolumeClaim"]["claimName"]
            for _, pod, _ in containers(pages)
            for volume in pod["volumes"]
            if "persistentVolumeClaim" in volume
        }
        assert named == {claim["metadata"]["name"]}


def test_pods_are_alike(pages: dict[str, list[dict[str, Any]]]) -> None:
    """Pods differ in their arguments, resources, the secret, and whether they may write models, and in nothing else."""

    def shape(pod: dict[str, Any], container: dict[str, Any]) -> Any:
        free = {"args", "resources"}
        mounts = [mount | {"readOnly": True} for mount in container["volumeMounts"] if mount["name"] != "tmp"]
        volumes = [volume["name"] for volume in pod["volumes"]]
        rest = {name: value for name, value in container.items() if name not in free | {"volumeMounts"}}
        return (
            mounts,
            volumes,
            rest,
            {name: value for name, value in pod.items() if name not in ("containers", "volumes")},
        )

    shapes = [shape(pod, container) for _, pod, container in containers(pages)]

    assert len(shapes) == len(PAGES)
    assert all(each == shapes[0] for each in shapes)
    writers = [
        page
        for page, _, container in containers(pages)
        if not next(mount for mount in container["volumeMounts"] if mount["name"] == "models").get("readOnly")
    ]
    assert writers == ["retrain"]


def test_commands_and_settings_are_ours(pages: dict[str, list[dict[str, Any]]]) -> None:
    """Each container's arguments parse, and each variable is a setting's."""
    for _, _, container in containers(pages):
        verb, *rest = container["args"]
        arguments = [word.replace("$(JOB_COMPLETION_INDEX)", "3") for word in rest]
        parsed = CliRunner().invoke(app, [verb, *arguments, "--help"])
        assert parsed.exit_code == 0, parsed.output
        for option in (word for word in arguments if word.startswith("--")):
            assert option in parsed.output
        names = {variable["name"].removesuffix("_FILE") for variable in container["env"]}
        assert names <= {f"BATCHSCORE_{name.upper()}" for name in Settings.model_fields}


def test_every_part_of_a_window_is_taken(pages: dict[str, list[dict[str, Any]]]) -> None:
    """The backfill's indices and its parts are as many."""
    ((_, job),) = [(page, job) for page, job in jobs(pages) if page == "backfill"]
    (container,) = job["template"]["spec"]["containers"]

    assert container["args"][-2:] == ["--part", f"$(JOB_COMPLETION_INDEX)/{job['completions']}"]
    assert job["parallelism"] == job["completions"]
    # As many as there are would be no limit.
    assert job["maxFailedIndexes"] < job["completions"]
    assert job["completionMode"] == "Indexed"


def test_the_files_of_the_jobs_are_mounted_where_they_lie(pages: dict[str, list[dict[str, Any]]]) -> None:
    """What the pods find under /batchscore is what jobs/ and sql/ hold of their job, each file with its text."""
    maps = {each["metadata"]["name"]: each["data"] for each in pages["overlays/prod"] if each["kind"] == "ConfigMap"}
    _, pod, container = next(iter(containers({"overlays/prod": pages["overlays/prod"]})))
    found = {}
    for mount in container["volumeMounts"]:
        (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
        if "configMap" in volume:
            data = maps[volume["configMap"]["name"]]
            items = volume["configMap"].get("items", [{"key": key, "path": key} for key in data])
            found |= {f"{mount['mountPath']}/{item['path']}": data[item["key"]] for item in items}

    files = [*ROOT.glob("jobs/flight_delay.*"), *ROOT.glob("sql/flight_delay/*.sql")]
    assert found == {f"/batchscore/{path.relative_to(ROOT)}": path.read_text() for path in files}


def test_the_how_to_renames_all_that_is_the_flights(tmp_path: Path) -> None:
    """Its commands leave nothing of the flights' job in any kustomization, and one image in all of them."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    told = re.search(r"^ +```sh\n(.*?)```", (ROOT / "docs/howto.md").read_text(), re.MULTILINE | re.DOTALL)
    assert told
    for folder in ("k8s", "jobs", "sql"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "sql/parcels").mkdir()
    for file in ("jobs/parcels.toml", "jobs/parcels.py", "sql/parcels/rows.sql", "sql/parcels/labels.sql"):
        (tmp_path / file).touch()

    done = subprocess.run(["bash", "-c", told[1]], cwd=tmp_path, capture_output=True, text=True, check=False)
    rendered = [
        subprocess.run(["kubectl", "kustomize", tmp_path / "k8s" / page], capture_output=True, text=True, check=True)
        for page in PAGES
    ]

    assert (done.stdout, done.stderr) == ("", "")
    for each in rendered:
        assert not re.search("flight|New_York", each.stdout)
        assert re.findall(r"image: (.*)", each.stdout) == ["registry.example.com/batchscore:0.1.0"]


def test_dev_runs_when_asked_and_prod_every_night(pages: dict[str, list[dict[str, Any]]]) -> None:
    """The development overlay is suspended; both have a namespace of their own, and one pod at a time."""
    nightly = {
        page: next(each for each in pages[page] if each["kind"] == "CronJob")
        for page in ("overlays/dev", "overlays/prod")
    }
    assert nightly["overlays/dev"]["spec"]["suspend"] is True
    assert "suspend" not in nightly["overlays/prod"]["spec"]
    namespaces = {page: each["metadata"]["namespace"] for page, each in nightly.items()}
    assert namespaces == {"overlays/dev": "batchscore-dev", "overlays/prod": "batchscore"}
    for each in nightly.values():
        assert each["spec"]["concurrencyPolicy"] == "Forbid"
        assert each["spec"]["timeZone"]
        assert each["spec"]["startingDeadlineSeconds"]
