"""What a cluster does to the manifests, once they are applied."""

import asyncio
import re
import shutil
import sys
import textwrap
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s import K8S, ROOT, Manifest, Tools, build, of_kind, one, pod_spec
from tests.k8s import production as production  # fixtures
from tests.k8s import tools as tools
from tests.running import START_S, STREAM_TOKEN, Running, environment

OVERLAYS = (".", "overlays/production", "overlays/nats")
NAMESPACE = "kubernetes.io/metadata.name"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_node_that_is_emptied_keeps_no_pod_from_the_others(overlay: str) -> None:
    """Counted as a node that has none, it would let each of the others have one pod and no more.

    The evicted pod would wait for it, and the eviction of the next for that pod.
    """
    for manifest in of_kind(build(overlay), "Deployment"):
        constraints = pod_spec(manifest)["topologySpreadConstraints"]
        assert {it["topologyKey"] for it in constraints} >= {"kubernetes.io/hostname"}
        assert {it["nodeTaintsPolicy"] for it in constraints} == {"Honor"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_neither_a_rollout_nor_an_eviction_takes_the_last_pod(overlay: str) -> None:
    """And an apply takes no pod that the autoscaler gave: only one of them says how many."""
    manifests = build(overlay)
    fewest = {
        manifest["spec"]["scaleTargetRef"]["name"]: manifest["spec"]["minReplicas"]
        for manifest in of_kind(manifests, "HorizontalPodAutoscaler")
    }
    for manifest in of_kind(manifests, "Deployment"):
        name, spec = manifest["metadata"]["name"], manifest["spec"]
        assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
        assert ("replicas" in spec) is not (name in fewest)
        budget = one(manifests, "PodDisruptionBudget", name)["spec"]
        assert budget["selector"] == spec["selector"]
        assert 0 < budget["maxUnavailable"] < fewest.get(name, spec.get("replicas", 0))


def test_who_proves_the_host_name_to_the_issuer_is_heard(production: list[Manifest]) -> None:
    """cert-manager's pod for HTTP-01, in this namespace, called by the ingress controllers."""
    policy = one(production, "NetworkPolicy", "challenges")["spec"]
    assert policy["podSelector"] == {"matchLabels": {"acme.cert-manager.io/http01-solver": "true"}}
    [rule] = policy["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8089}]
    controllers = one(production, "NetworkPolicy", "callers")["spec"]["ingress"][0]["from"][:2]
    assert rule["from"] == controllers


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_first_sync_does_not_wait_for_what_it_brings_itself(overlay: str) -> None:
    """The migration needs the database: before everything else it would wait for ever."""
    [job] = of_kind(build(overlay), "Job")
    assert job["metadata"]["annotations"]["argocd.argoproj.io/hook"] == "Sync"


@pytest.mark.parametrize("overlay", OVERLAYS[1:])
def test_every_namespace_that_may_call_is_named_in_one_place(tmp_path: Path, overlay: str) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    site = tmp_path / "k8s/overlays/production/site.yaml"
    own = yaml.safe_load(site.read_text())
    names = [key for key in own["data"] if key.endswith("-namespace")]
    own["data"] |= {key: f"own-{key}" for key in names}
    site.write_text(yaml.safe_dump(own))
    policies = of_kind(build(str(tmp_path / "k8s" / overlay)), "NetworkPolicy")
    said = set(labels_of(policies, NAMESPACE))
    assert said == {f"own-{key}" for key in names} | {"kube-system"}


def labels_of(within: Any, label: str) -> Iterator[str]:
    """Yield the values that a label has anywhere within."""
    if isinstance(within, dict):
        for key, value in within.items():
            yield from [value] if key == label else labels_of(value, label)
    elif isinstance(within, list):
        for value in within:
            yield from labels_of(value, label)


def test_the_cluster_of_a_restore_is_one_that_the_operator_takes(
    tools: Tools, production: list[Manifest]
) -> None:
    page = (ROOT / "docs" / "backup.md").read_text().split("## In the production overlay", 1)[1]
    lines = [line for line in page.splitlines() if line.startswith("    ")]
    change = yaml.safe_load(textwrap.dedent("\n".join(lines)))["spec"]
    cluster = one(production, "Cluster", "causeway-postgres")
    restored = {**cluster, "spec": {**cluster["spec"], **change}}
    assert tools.faults([restored]) == []
    [old] = change["externalClusters"]
    assert change["bootstrap"]["recovery"]["source"] == old["name"]
    was, is_now = old["plugin"]["parameters"], change["plugins"][0]["parameters"]
    [plugin] = cluster["spec"]["plugins"]
    assert was["serverName"] == cluster["metadata"]["name"] != is_now["serverName"]
    stores = {it["barmanObjectName"] for it in (was, is_now, plugin["parameters"])}
    assert len(stores) == 1
    created = cluster["spec"]["bootstrap"]["initdb"]
    assert change["bootstrap"]["recovery"].items() >= {
        (key, created[key]) for key in ("database", "owner")
    }


async def test_the_runbooks_command_in_a_pod_has_its_token(
    service: Running, production: list[Manifest], tmp_path: Path
) -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    [(deployment, script)] = re.findall(r"^    k exec deploy/(\S+) -- sh -c '(.+)'$", runbook, re.M)
    [container] = pod_spec(one(production, "Deployment", deployment))["containers"]
    files = {it["name"]: it["value"] for it in container["env"]}
    assert files["CAUSEWAY_STREAM_TOKEN_FILE"] in script
    (tmp_path / "token").write_text(STREAM_TOKEN)
    here = script.replace(files["CAUSEWAY_STREAM_TOKEN_FILE"], str(tmp_path / "token"))
    assert here.endswith(" causeway consumers list")
    env = environment(CAUSEWAY_URL=service.url)
    del env["CAUSEWAY_STREAM_TOKEN"]
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = await asyncio.create_subprocess_exec(
        *("sh", "-c", f"{here} --json"), env=env, stdout=PIPE, stderr=PIPE
    )
    out, err = await asyncio.wait_for(done.communicate(), START_S)
    assert (done.returncode, out) == (0, b"[]\n"), err
