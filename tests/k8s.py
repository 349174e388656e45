"""The manifests as a cluster gets them: built by kubectl, which PyPI brings."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import need_program

ROOT = Path(__file__).parent.parent
K8S = ROOT / "k8s"
TOOLS = Path(__file__).parent / "manifests"
KUBECTL = Path(sys.executable).with_name("kubectl")  # of the test dependencies
OVERLAYS = (".", "base", "overlays/try", "overlays/production", "overlays/nats")

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tools:
    """The schemas and types of custom kinds."""

    folder: Path

    @classmethod
    def install(cls, folder: Path) -> "Tools":
        """Install what tests/manifests/package-lock.json pins."""
        need_program("npm")
        shutil.copytree(TOOLS, folder, dirs_exist_ok=True)
        command = ("npm", "ci", "--silent", "--no-audit", "--no-fund", "--prefer-offline")
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        return cls(folder)

    def faults(self, manifests: list[Manifest]) -> list[str]:
        """Return what is wrong with manifests of custom kinds, unknown names too."""
        lines = "\n".join(json.dumps(manifest) for manifest in manifests)
        said = run(["node", "check.mjs"], cwd=self.folder, text_in=lines).splitlines()
        assert len(said) == len(manifests)
        return [line for line in said if line != "valid"]


def build(overlay: str) -> list[Manifest]:
    """Return what kubectl makes of a folder of k8s/."""
    return read(run([need_program(str(KUBECTL)), "kustomize", str(K8S / overlay)]))


def run(command: list[str], *, cwd: Path = ROOT, text_in: str = "") -> str:
    """Return what a command printed; fail the test if it failed."""
    done = subprocess.run(
        command, cwd=cwd, input=text_in, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def read(text: str) -> list[Manifest]:
    """Return all documents of a YAML text that are not empty."""
    return [document for document in yaml.safe_load_all(text) if document]


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    """Return those of some kinds."""
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """Return the only one of a kind with a name; a generated suffix does not count."""
    spelling = re.compile(re.escape(name) + "(-[a-z0-9]{10})?")
    found = [m for m in of_kind(manifests, kind) if spelling.fullmatch(m["metadata"]["name"])]
    assert len(found) == 1, (kind, name, [m["metadata"]["name"] for m in found])
    return found[0]


def pod_spec(manifest: Manifest) -> Manifest:
    """Return the pod that a workload makes."""
    spec = manifest["spec"]
    if manifest["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    pod: Manifest = spec["template"]["spec"]
    return pod


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    """The schemas, installed once a session."""
    return Tools.install(tmp_path_factory.mktemp("manifests"))


@pytest.fixture(scope="session")
def production() -> list[Manifest]:
    """k8s/overlays/production, built."""
    return build("overlays/production")


@pytest.fixture(scope="session")
def trial() -> list[Manifest]:
    """What `kubectl apply -k k8s/` sends."""
    return build(".")
