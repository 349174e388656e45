"""The manifests are valid Kubernetes, and fit the code."""

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from service.config import load, variables

BASE = Path(__file__).parent.parent / "k8s" / "base"
FILES = sorted(path for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml")


def read(name: str) -> dict[str, Any]:
    """Return the one document of a manifest."""
    document: dict[str, Any] = yaml.safe_load((BASE / name).read_text())
    return document


def pod(name: str) -> dict[str, Any]:
    """Return a workload's pod spec."""
    spec: dict[str, Any] = read(name)["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_manifest_is_valid(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_the_kustomization_lists_every_manifest() -> None:
    assert sorted(read("kustomization.yaml")["resources"]) == [path.name for path in FILES]


def test_only_real_settings_are_set_and_their_values_are_good() -> None:
    data = read("configmap.yaml")["data"]
    load(data)
    assert set(data) <= set(variables())
    for name in ("deployment.yaml", "migrate.yaml"):
        for variable in pod(name)["containers"][0]["env"]:
            assert variable["name"].removesuffix("_FILE") in variables()


def test_each_secret_file_is_mounted() -> None:
    for name in ("deployment.yaml", "migrate.yaml"):
        container = pod(name)["containers"][0]
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        for variable in container["env"]:
            assert any(variable["value"].startswith(f"{mount}/") for mount in mounts)


def test_the_grace_is_longer_than_the_way_down() -> None:
    spec = pod("deployment.yaml")
    pre_stop = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    settings = load({})
    longest = pre_stop + settings.drain_s + 2 * settings.shutdown_s
    assert spec["terminationGracePeriodSeconds"] > longest


@pytest.mark.parametrize("name", ["deployment.yaml", "migrate.yaml"])
def test_pods_are_restricted(name: str) -> None:
    spec = pod(name)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False  # else CAUSEWAY_PORT becomes tcp://...
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_probes_and_scrapes_go_to_paths_that_exist() -> None:
    container = pod("deployment.yaml")["containers"][0]
    paths = {container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "startupProbe")}
    assert paths == {"/livez"}
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    annotations = read("deployment.yaml")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == "/metrics"
