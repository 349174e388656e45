"""The manifests are what a cluster takes, and fit the code."""

import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from opentelemetry.sdk import environment_variables

from service import __version__
from service.config import load, variables
from service.db import CLOSE_TIMEOUT_S
from service.relay import FLUSH_S
from service.server import LAST_APPENDS_S
from service.tracing import FLUSH_S as TRACES_FLUSH_S
from tests.conftest import need_program
from tests.k8s import K8S, OVERLAYS, ROOT, Manifest, Tools, build, of_kind, one, pod_spec, run
from tests.k8s import production as production  # fixtures
from tests.k8s import tools as tools
from tests.k8s import trial as trial

CUSTOM = {
    "cert-manager.io",
    "postgresql.cnpg.io",
    "barmancloud.cnpg.io",
    "monitoring.coreos.com",
    "external-secrets.io",
}
APPLIED = (".", "overlays/production", "overlays/nats")
WORKLOADS = ("Deployment", "Job", "CronJob", "StatefulSet")
SETTINGS_ENV = (K8S / "base" / "common" / "settings.env").read_text().splitlines()


def is_custom(manifest: Manifest) -> bool:
    """True for kinds that an operator brings."""
    return manifest["apiVersion"].partition("/")[0] in CUSTOM


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_manifest_is_valid(tools: Tools, overlay: str) -> None:
    manifests = build(overlay)
    version = kubernetes_validate.latest_version()
    for manifest in manifests:
        if not is_custom(manifest):
            kubernetes_validate.validate(manifest, version, strict=True)
    assert tools.faults([m for m in manifests if is_custom(m)]) == []


def test_a_fault_in_a_custom_kind_is_found(tools: Tools, production: list[Manifest]) -> None:
    cluster = one(production, "Cluster", "causeway-postgres")
    [fault] = tools.faults([{**cluster, "spec": {**cluster["spec"], "instances": "three"}}])
    assert "instances must be integer" in fault


def test_a_name_that_a_cluster_would_drop_is_found(
    tools: Tools, production: list[Manifest]
) -> None:
    unknown: dict[tuple[str, str], Manifest] = {
        ("Cluster", "causeway-postgres"): {"minSyncReplica": 1},
        ("ObjectStore", "causeway-backups"): {"retention": "30d"},
        ("PodMonitor", "causeway"): {"podMetricEndpoints": []},
        ("ExternalSecret", "causeway"): {"refreshIntervals": "10m"},
    }
    faulty = []
    for (kind, name), more in unknown.items():
        manifest = one(production, kind, name)
        faulty.append({**manifest, "spec": {**manifest["spec"], **more}})
    faults = tools.faults(faulty)
    assert len(faults) == 4
    for fault, more in zip(faults, unknown.values(), strict=True):
        assert next(iter(more)) in fault


def test_checkov_finds_nothing_that_is_not_explained(tmp_path: Path) -> None:
    """`.checkov.yaml` says why for each check that it leaves out."""
    checkov = need_program("checkov")
    for overlay in OVERLAYS:
        text = yaml.safe_dump_all(build(overlay))
        (tmp_path / f"{Path(overlay).name or 'try'}.yaml").write_text(text)
    shutil.copy(ROOT / "Dockerfile", tmp_path)
    options = ("--config-file", str(ROOT / ".checkov.yaml"), "--output", "json", "--skip-download")
    said = json.loads(run([checkov, *options, "--directory", str(tmp_path)]))
    by_type = {part["check_type"]: part["summary"] for part in said}
    assert {kind: part["failed"] for kind, part in by_type.items()} == {
        "kubernetes": 0,
        "dockerfile": 0,
    }
    assert by_type["kubernetes"]["passed"] > 500


def test_a_bare_cluster_needs_no_operator_and_nothing_else(trial: list[Manifest]) -> None:
    assert not [manifest for manifest in trial if is_custom(manifest)]
    assert one(trial, "Namespace", "causeway")
    kinds = {kind for manifest in trial for kind in [manifest["kind"]]}
    assert {"Deployment", "StatefulSet", "Job", "Secret", "Service", "Ingress"} <= kinds


@pytest.mark.parametrize("overlay", APPLIED)
def test_everything_that_a_pod_mounts_or_reads_exists(overlay: str) -> None:
    manifests = build(overlay)
    made = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    made |= {("Secret", m["spec"]["target"]["name"]) for m in of_kind(manifests, "ExternalSecret")}
    made |= {("Secret", m["spec"]["secretName"]) for m in of_kind(manifests, "Certificate")}
    for cluster in of_kind(manifests, "Cluster"):  # CloudNativePG makes these
        made |= {("Secret", f"{cluster['metadata']['name']}-{end}") for end in ("app", "ca")}
    for manifest in of_kind(manifests, *WORKLOADS):
        pod = pod_spec(manifest)
        for volume in pod["volumes"]:
            if "secret" in volume and not volume["secret"].get("optional"):
                assert ("Secret", volume["secret"]["secretName"]) in made
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in made
        claims = manifest["spec"].get("volumeClaimTemplates", [])
        volumes = {part["name"] for part in pod["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in claims}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
            for source in container.get("envFrom", []):
                assert ("ConfigMap", source["configMapRef"]["name"]) in made


def test_every_setting_stands_in_the_settings_file_and_only_those() -> None:
    names = [
        match[1]
        for line in SETTINGS_ENV
        if (match := re.match(r"(?:# )?([A-Z][A-Z_]+)(?:=|: )", line))
    ]
    assert names == list(variables())


def test_the_settings_are_the_defaults_but_for_the_address() -> None:
    given = dict(line.split("=", 1) for line in SETTINGS_ENV if line and not line.startswith("#"))
    assert given.pop("CAUSEWAY_HOST") == "0.0.0.0"
    assert load(given) == load({})
    assert len(given) >= 25


@pytest.mark.parametrize("overlay", APPLIED)
def test_only_real_settings_are_set_and_their_files_are_mounted(overlay: str) -> None:
    for manifest in of_kind(build(overlay), "Deployment", "Job", "CronJob"):
        [container] = pod_spec(manifest)["containers"]
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        for variable in container["env"]:
            if variable["value"] == "verify-full":
                assert variable["name"] == "PGSSLMODE"
                continue
            name = variable["name"].removesuffix("_FILE")
            assert name in variables() or name == "PGSSLROOTCERT"
            path = variable["value"]
            assert any(f"{path}/".startswith(f"{mount}/") for mount in mounts)


def test_the_releases_version_is_the_codes(trial: list[Manifest]) -> None:
    assert one(trial, "Job", f"causeway-migrate-{__version__.replace('.', '-')}")
    images = {
        container["image"]
        for manifest in of_kind(trial, "Deployment", "Job", "CronJob")
        for container in pod_spec(manifest)["containers"]
    }
    assert images == {f"causeway:{__version__}"}


def test_the_grace_is_longer_than_the_way_down(production: list[Manifest]) -> None:
    settings = load({})
    deployments = of_kind(production, "Deployment")
    assert len(deployments) == 3
    for manifest in deployments:
        spec = pod_spec(manifest)
        pre_stop = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
        streams_and_calls = max(settings.drain_s, settings.shutdown_s + FLUSH_S)
        answers = settings.shutdown_s + LAST_APPENDS_S
        database = 4 * CLOSE_TIMEOUT_S
        longest = pre_stop + streams_and_calls + answers + TRACES_FLUSH_S + database
        assert spec["terminationGracePeriodSeconds"] > longest


@pytest.mark.parametrize("overlay", APPLIED)
def test_pods_are_restricted(overlay: str) -> None:
    for manifest in of_kind(build(overlay), *WORKLOADS):
        spec = pod_spec(manifest)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False  # else CAUSEWAY_PORT becomes tcp://...
        for container in spec["containers"]:
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_the_internet_reaches_bridges_path_only(
    trial: list[Manifest], production: list[Manifest]
) -> None:
    for manifests in (trial, production):
        assert paths(one(manifests, "Ingress", "causeway-bridge")) == {"/webhooks/bridge"}
        inside = paths(one(manifests, "Ingress", "causeway-internal"))
        assert {"/stream", "/events", "/consumers", "/dashboard", "/api"} <= inside
        assert not {"/", "/metrics", "/livez", "/readyz", "/webhooks/bridge"} & inside
        annotations = one(manifests, "Ingress", "causeway-internal")["metadata"]["annotations"]
        prefix = "nginx.ingress.kubernetes.io"
        assert annotations[f"{prefix}/proxy-buffering"] == "off"
        timeout_s = int(annotations[f"{prefix}/proxy-read-timeout"])
        assert timeout_s > load({}).stream_max_age_s


def paths(ingress: Manifest) -> set[str]:
    """Return the paths that an Ingress lets through."""
    return {path["path"] for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]}


def test_every_ingress_leads_to_a_service_and_every_service_to_pods(
    trial: list[Manifest], production: list[Manifest]
) -> None:
    for manifests in (trial, production):
        services = {m["metadata"]["name"]: m for m in of_kind(manifests, "Service")}
        for ingress in of_kind(manifests, "Ingress"):
            for rule in ingress["spec"]["rules"]:
                for path in rule["http"]["paths"]:
                    assert path["backend"]["service"]["name"] in services
        labels = [pod_labels(m) for m in of_kind(manifests, "Deployment", "StatefulSet")]
        for manifest in of_kind(manifests, "Service"):
            assert len([one for one in labels if matches(manifest["spec"]["selector"], one)]) == 1
        for manifest in of_kind(manifests, "PodDisruptionBudget"):
            selector = manifest["spec"]["selector"]["matchLabels"]
            assert len([one for one in labels if matches(selector, one)]) == 1


def pod_labels(manifest: Manifest) -> dict[str, str]:
    """Return the labels of a workload's pods."""
    spec = manifest["spec"]
    if manifest["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    labels: dict[str, str] = spec["template"]["metadata"]["labels"]
    return labels


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """True if a selector chooses a pod with these labels."""
    return selector.items() <= labels.items()


def test_each_role_has_its_own_deployment_and_scaler(production: list[Manifest]) -> None:
    args = {
        manifest["metadata"]["name"]: pod_spec(manifest)["containers"][0]["args"]
        for manifest in of_kind(production, "Deployment")
    }
    roles = {"ingest": "ingest", "stream": "stream,admin", "relay": "relay"}
    assert args == {f"causeway-{name}": ["serve", "--roles", role] for name, role in roles.items()}
    scaled = {
        manifest["spec"]["scaleTargetRef"]["name"]
        for manifest in of_kind(production, "HorizontalPodAutoscaler")
    }
    assert scaled == set(args)


def test_only_who_calls_callbacks_reaches_the_internet(production: list[Manifest]) -> None:
    """The relay, and the administration's "Send a test"; over TLS, and nothing that is private."""
    policy = one(production, "NetworkPolicy", "callbacks")
    selector = policy["spec"]["podSelector"]["matchLabels"]
    workloads = of_kind(production, "Deployment", "Job", "CronJob")
    chosen = {m["metadata"]["name"] for m in workloads if matches(selector, pod_labels(m))}
    assert chosen == {"causeway-relay", "causeway-stream"}
    [rule] = policy["spec"]["egress"]
    assert [port["port"] for port in rule["ports"]] == [443]
    [v4, v6] = [block["ipBlock"] for block in rule["to"]]
    assert {"10.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16"} <= set(v4["except"])
    assert {"fc00::/7", "fe80::/10"} <= set(v6["except"])
    deny = one(production, "NetworkPolicy", "default-deny")
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_every_pod_of_ours_reaches_the_database_and_it_lets_them_in(
    trial: list[Manifest], production: list[Manifest]
) -> None:
    for manifests in (trial, production):
        [rule] = one(manifests, "NetworkPolicy", "database")["spec"]["egress"]
        [there] = [peer["podSelector"]["matchLabels"] for peer in rule["to"]]
        guard = one(manifests, "NetworkPolicy", "postgres")["spec"]
        assert guard["podSelector"]["matchLabels"] == there
        allowed = guard["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
        for manifest in of_kind(manifests, "Deployment", "Job", "CronJob"):
            assert matches(allowed, pod_labels(manifest))


def test_the_log_is_pruned_exactly_if_there_is_a_retention(trial: list[Manifest]) -> None:
    settings: dict[str, Any] = one(trial, "ConfigMap", "causeway")["data"]
    has_retention = any(name.startswith("CAUSEWAY_RETENTION_") for name in settings)
    is_suspended = one(trial, "CronJob", "causeway-prune")["spec"].get("suspend", False)
    assert is_suspended is not has_retention


def test_probes_and_scrapes_go_to_paths_that_exist(production: list[Manifest]) -> None:
    for manifest in of_kind(production, "Deployment"):
        container = pod_spec(manifest)["containers"][0]
        for probe in ("livenessProbe", "startupProbe"):
            assert container[probe]["httpGet"] == {"path": "/livez", "port": "http"}
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    monitor = one(production, "PodMonitor", "causeway")["spec"]
    assert monitor["podMetricsEndpoints"][0]["path"] == "/metrics"
    chosen = {
        m["metadata"]["name"]
        for m in of_kind(production, "Deployment", "Job", "CronJob")
        if matches(monitor["selector"]["matchLabels"], pod_labels(m))
    }
    assert chosen == {"causeway-ingest", "causeway-stream", "causeway-relay"}


def test_a_commit_waits_for_a_second_instance(production: list[Manifest]) -> None:
    spec = one(production, "Cluster", "causeway-postgres")["spec"]
    assert spec["instances"] == 3
    assert spec["postgresql"]["synchronous"] == {
        "method": "any",
        "number": 1,
        "dataDurability": "required",
        "failoverQuorum": True,
    }


def test_the_backups_and_the_log_go_to_the_store_that_there_is(production: list[Manifest]) -> None:
    [plugin] = one(production, "Cluster", "causeway-postgres")["spec"]["plugins"]
    assert plugin["isWALArchiver"] is True
    store = one(production, "ObjectStore", plugin["parameters"]["barmanObjectName"])
    assert store["spec"]["retentionPolicy"] == "30d"
    schedule = one(production, "ScheduledBackup", "causeway-postgres")["spec"]
    assert (schedule["method"], schedule["pluginConfiguration"]["name"]) == (
        "plugin",
        plugin["name"],
    )
    assert len(schedule["schedule"].split()) == 6  # with seconds: five would be another time


def test_postgres_lets_in_as_many_connections_as_all_replicas_may_hold(
    production: list[Manifest],
) -> None:
    """A rollout of every Deployment at its largest, and the jobs, included."""
    spec = one(production, "Cluster", "causeway-postgres")["spec"]
    [login] = spec["managed"]["roles"]
    each = load({}).pool_max_connections + 6
    scalers = of_kind(production, "HorizontalPodAutoscaler")
    processes = sum(scaler["spec"]["maxReplicas"] + 1 for scaler in scalers)
    assert processes * each + 2 <= login["connectionLimit"]
    assert login["connectionLimit"] + 30 <= int(spec["postgresql"]["parameters"]["max_connections"])


def test_everything_that_is_ones_own_is_named_in_one_place(
    tmp_path: Path, production: list[Manifest]
) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    site = tmp_path / "k8s/overlays/production/site.yaml"
    own = yaml.safe_load(site.read_text())
    own["data"] = {key: f"own-{key}" for key in own["data"]}
    site.write_text(yaml.safe_dump(own))
    kustomization = site.with_name("kustomization.yaml")
    text = kustomization.read_text()
    kustomization.write_text(text.replace("registry.example", "own-registry"))
    built = build(str(kustomization.parent))
    assert not [m for m in built if "example" in json.dumps({**m, "data": None})]
    assert all(value in json.dumps(built) for value in own["data"].values())
    assert "example" in json.dumps(production)


def test_the_template_has_every_key_that_is_mounted(trial: list[Manifest]) -> None:
    template = {
        m["metadata"]["name"]: m["stringData"]
        for m in yaml.safe_load_all((K8S / "base/common/secrets.example.yaml").read_text())
    }
    container = pod_spec(one(trial, "Deployment", "causeway"))["containers"][0]
    files = [v["value"] for v in container["env"] if v["value"].startswith("/secrets/causeway/")]
    assert {file.rpartition("/")[2] for file in files} == set(template["causeway"])
    assert set(template["causeway-database"]) == {"owner-url", "service-url"}


@pytest.mark.parametrize("overlay", ["overlays/production", "overlays/nats"])
def test_the_component_of_traces_switches_them_on_and_lets_them_out(
    tmp_path: Path, overlay: str
) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"../k8s/{overlay}"],
        "components": ["../k8s/components/traces"],
    }
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    built = build(str(tmp_path / "own"))
    policy = one(built, "NetworkPolicy", "traces")
    kubernetes_validate.validate(policy, kubernetes_validate.latest_version(), strict=True)
    settings = one(built, "ConfigMap", "causeway")
    chosen = policy["spec"]["podSelector"]["matchLabels"]
    for manifest in of_kind(built, "Deployment"):
        assert matches(chosen, pod_labels(manifest))
        [container] = pod_spec(manifest)["containers"]
        assert container["envFrom"][0]["configMapRef"]["name"] == settings["metadata"]["name"]
    ours = {name: it for name, it in settings["data"].items() if not name.startswith("OTEL_")}
    assert load(ours) == load({"CAUSEWAY_HOST": "0.0.0.0", "CAUSEWAY_TRACES": "true"})
    standard = {name: it for name, it in settings["data"].items() if name not in ours}
    assert standard.keys() <= set(vars(environment_variables))
    endpoint = urlsplit(standard["OTEL_EXPORTER_OTLP_ENDPOINT"])
    [rule] = policy["spec"]["egress"]
    [there] = rule["to"]
    namespace = there["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert str(endpoint.hostname).endswith(f".{namespace}")
    assert rule["ports"] == [{"protocol": "TCP", "port": endpoint.port}]
