"""`batchscore models`, and every command on a registry that is in S3 or asks for signatures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import toy
from s3 import bucket_at, serving
from toy import Project, Result


class TestModels:
    """`models rollback`, `prune` and `keygen`, and bundles that must be signed."""

    def test_rollback(self, project: Project) -> None:
        """The alias goes back to what it was before, and the history says so."""
        assert project.call("train", "toy", "--promote").code == 0
        back = project.call("models", "rollback", "toy")

        assert (0, 1, 2) == (back.code, *(back.events[-1][name] for name in ("version", "rolled_back_from")))
        assert [1] == [each["version"] for each in project.call("models", "verify", "toy").named("bundle.loaded")]
        shown = project.call("models", "show", "toy")
        assert ["promote", "promote", "rollback"] == re.findall(r"\b(promote|rollback)\b", shown.out)
        again = project.call("models", "rollback", "toy")
        assert (10, True) == (again.code, "has stood for no other version" in again.error)

    def test_prune(self, project: Project) -> None:
        """What may go is told, and goes only without --dry-run; an age that is none is refused."""
        for _ in range(2):
            assert project.call("train", "toy").code == 0
        told = project.call("models", "prune", "toy", "--keep", "1", "--dry-run")
        assert ([2], True) == tuple(told.events[-1][name] for name in ("versions", "dry_run"))
        assert [2] == project.call("models", "prune", "toy", "--keep", "1").events[-1]["versions"]
        listed = json.loads(project.call("models", "list", "--format", "json").out)

        assert [1, 3] == [each["version"] for each in listed]
        assert 2 == project.call("models", "prune", "toy", "--keep", "1", "--older-than", "1y").code
        assert [] == project.call("models", "prune", "toy", "--keep", "1", "--older-than", "90d").events[-1]["versions"]

    def test_signed(self, project: Project) -> None:
        """What is trained with the key is scored where it is asked for; what is not signed stops there."""
        made = project.call("models", "keygen")
        private, public = "keys/signing_key.pem", "keys/verify_keys.pem"
        assert (0, True) == (made.code, f"BATCHSCORE_SIGNING_KEY_FILE={private}" in made.out)
        again = project.call("models", "keygen")
        assert (2, "", 1) == (again.code, again.out, len(again.err.splitlines()))
        assert again.error == f"{public}: File exists. No key was written; give another folder with --to."
        refused = project.call("score", "toy", BATCHSCORE_VERIFY_KEYS_FILE=public)
        assert (10, True) == (refused.code, "toy version 1 is not signed" in refused.error)
        let_in = project.call(
            "models", "verify", "toy", BATCHSCORE_VERIFY_KEYS_FILE=public, BATCHSCORE_ALLOW_UNSIGNED="true"
        )
        assert (0, ["warning"]) == (let_in.code, [each["level"] for each in let_in.named("bundle.unsigned")])

        keys = {"BATCHSCORE_SIGNING_KEY_FILE": private, "BATCHSCORE_VERIFY_KEYS_FILE": public}
        trained = project.call("train", "toy", "--promote", **keys)
        scored = project.call("score", "toy", BATCHSCORE_VERIFY_KEYS_FILE=public)
        checked = project.call("check", "toy", "--format", "json", **keys)

        assert (0, 0) == (trained.code, scored.code)
        key = made.out.split()[1]
        signers = {
            version: re.search(
                r"^signed_by +(.*)", project.call("models", "show", "toy", version, **given).out, re.MULTILINE
            )[1]
            for version, given in {"1": {}, "2": {}, "champion": keys}.items()
        }
        assert signers["1"] == "nobody"
        assert signers["2"] == "a key that is not verified here: BATCHSCORE_VERIFY_KEYS is not set"
        assert signers["champion"] == f"key {key}"
        assert json.loads(project.call("models", "show", "toy", "--format", "json", **keys).out)["signed_by"] == key
        first = project.call("retrain", "toy", "--if", "drifted", BATCHSCORE_REGISTRY_URL="own", **keys)
        assert f"toy version 1 is registered, signed by key {key}: roc_auc" in first.events[-1]["told"]
        assert [] == scored.named("bundle.unsigned") == trained.named("bundle.unsigned")
        statuses = [
            each["status"] for each in json.loads(project.call("models", "list", "--format", "json", **keys).out)
        ]
        assert ["untrusted", "ok"] == statuses
        secret = (project.root / private).read_text().splitlines()[1]
        assert secret not in checked.out + trained.out + trained.err
        assert json.loads(checked.out) != []

    def test_unsigned_is_logged(self, project: Project) -> None:
        """Without keys every load is told in a line that is no warning."""
        scored = project.call("score", "toy")

        assert ["info"] == [each["level"] for each in scored.named("bundle.unsigned")]

    def test_unsigned_is_logged_wherever_it_is_loaded(self, project: Project) -> None:
        """Training, a shadow and a held run's publishing say it of each version that they load."""
        trained = project.call("train", "toy")
        assert [2] == _unsigned(trained)
        project.edit("jobs/toy.toml", ('name = "toy"\n\n[output]', 'name = "toy"\nshadow = 2\n\n[output]'))
        first = ("--from", "2024-02-01", "--to", "2024-02-02")
        assert [1, 2] == _unsigned(project.call("backfill", "toy", *first, "--only", "all"))
        project.edit("jobs/toy.toml", ("[limits]", "[publish]\nscore_range = [0.4, 0.6]\n\n[limits]"))
        held = project.call("backfill", "toy", *first, "--only", "all")
        assert 31 == held.code
        run_id = next(each["run_id"] for each in held.events if "run_id" in each)
        published = project.call("runs", "publish", run_id, "--override", "--reason", "it is right")
        assert (0, [1]) == (published.code, _unsigned(published))

    def test_lists_names(self, project: Project) -> None:
        """`verify` lists what the pipeline names, and the guard's setting lets more in."""
        names = project.call("models", "verify", "toy").named("bundle.loaded")[0]["names"]

        assert "sklearn.pipeline.Pipeline" in names
        assert any(re.fullmatch(r"batchscore_features_\w+\.log1p", name) for name in names)


def _unsigned(result: Result) -> list[int]:
    """The versions that the log says were loaded without a signature."""
    return [each["version"] for each in result.named("bundle.unsigned")]


@dataclass
class Flaky:
    """An object store that answers some requests with 503, so many of them once a certain object was put."""

    app: Callable[..., Any]
    after: str = ""
    failures: int = 0
    of: str = "PUT .*aliases.json"
    put: set[str] = field(default_factory=set)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        """Answer one request."""
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        if self.after in self.put and self.failures and re.match(self.of, request):
            self.failures -= 1
            start("503 Service Unavailable", [])
            return [b""]
        if request.startswith("PUT") and request.endswith(self.after):
            self.put.add(self.after)
        return self.app(environ, start)


class TestS3:
    """Every command on a registry in S3."""

    def test_whole_life(self, tmp_path: Path, trained: Project, s3_url: str) -> None:
        """Trained, promoted, scored, looked at, rolled back and pruned, as in a folder; the secret is never told."""
        project = toy.unscored(tmp_path, f"duckdb:///{tmp_path}/warehouse.duckdb", trained)
        told = []

        def call(*args: str) -> Result:
            result = project.call("--registry-url", s3_url, *args)
            told.append(result.out + result.err)
            return result

        assert [0, 0] == [call("train", "toy", *more).code for more in ((), ("--promote",))]
        scored = call("score", "toy")
        details = {each["check"]: each["detail"] for each in json.loads(call("check", "toy", "--format", "json").out)}
        listed = json.loads(call("models", "list", "--format", "json").out)
        assert 0 == scored.code
        assert {2} == {row[-1] for row in project.table()}
        assert f"{s3_url} (from --registry-url)" == details["registry_url"]
        assert [(1, ""), (2, "champion")] == [(each["version"], each["aliases"]) for each in listed]
        assert [0, 0, 0] == [call("models", *verb, "toy").code for verb in (["show"], ["verify"], ["rollback"])]
        assert 0 == call("models", "promote", "toy", "2").code
        assert 0 == call("drift", "toy").code
        assert "canary-of-s3" not in "".join(told)

    def test_fails_once_it_is_registered(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """Away when the version is registered: waited for; and where it stays away, the version and the way out are told."""
        from moto.server import DomainDispatcherApplication, create_backend_app

        flaky = Flaky(DomainDispatcherApplication(create_backend_app))
        with serving(flaky) as endpoint:
            url = bucket_at(endpoint, monkeypatch)
            # What the client itself tries again is one failure.
            flaky.after, flaky.failures = "toy/1/bundle.json", 8
            waited = project.call("--registry-url", url, "train", "toy")
            flaky.after, flaky.failures = "toy/2/bundle.json", 8
            again = project.call(
                "--registry-url", url, "retrain", "toy", "--if", "new-labels=400", "--to", "2024-02-05"
            )
            flaky.after, flaky.failures, flaky.of = "toy/3/bundle.json", 1000, ""
            away = project.call("--registry-url", url, "train", "toy", "--promote", BATCHSCORE_RETRY_SECONDS="0")
            flaky.failures = 0
            (command,) = re.findall("When that is mended: batchscore (.*)", away.error)
            mended = project.call("--registry-url", url, *command.split())
            listed = json.loads(project.call("--registry-url", url, "models", "list", "--format", "json").out)

        assert (waited.code, again.code, away.code, mended.code) == (0, 0, 20, 0)
        assert all(each.named("attempt.failed") for each in (waited, again))
        assert waited.named("bundle.promoted")
        assert again.named("retrain.decided")
        assert re.search(r"/toy cannot be read: .* toy version 3 is registered all the same\.", away.error)
        assert [row["aliases"] for row in listed if row["version"] == 3] == ["champion"]

    def test_gone(self, project: Project, s3_url: str) -> None:
        """A bucket that is not there stops a run with 12, and one that does not answer with 20."""
        gone = project.call("score", "toy", BATCHSCORE_REGISTRY_URL="s3://no-such-bucket/x")
        silent = project.call(
            "score",
            "toy",
            BATCHSCORE_REGISTRY_URL=s3_url,
            BATCHSCORE_RETRY_SECONDS="0",
            AWS_ENDPOINT_URL="http://127.0.0.1:1",
        )

        assert (12, True) == (gone.code, "NoSuchBucket. Make the bucket" in gone.error)
        assert (20, True) == (silent.code, "check AWS_ENDPOINT_URL and the network" in silent.error)

    def test_an_endpoint_that_is_no_url(self, project: Project, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is told as a mistake in the environment, and one that is empty counts as not set."""
        odd = project.call("models", "list", BATCHSCORE_REGISTRY_URL=s3_url, AWS_ENDPOINT_URL="127.0.0.1:9000")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "")
        empty = project.call("models", "list", BATCHSCORE_REGISTRY_URL=s3_url)

        assert (2, True) == (odd.code, "AWS_ENDPOINT_URL: write http://host:port" in odd.error)
        assert empty.code == 0, empty.out + empty.err
