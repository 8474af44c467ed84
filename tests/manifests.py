"""The objects of the kustomizations in k8s/."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PAGES = ("overlays/dev", "overlays/prod", "backfill", "evaluate", "retrain", "migrate")


def render(page: str) -> list[dict[str, Any]]:
    """The objects of a kustomization, as kubectl would apply them."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", ROOT / "k8s" / page], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))
