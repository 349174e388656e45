"""Who reaches whom: the policies of each overlay, judged as a cluster's network does.

A pod that some policy selects for a direction is closed in it, but for what one of its policies
allows; a way must be open at both ends. Outside the namespace nothing is closed.
"""

import ipaddress
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from tests.k8s import Manifest, build, of_kind

INGRESS_NGINX, MONITORING, DNS, CNPG = "ingress-nginx", "monitoring", "kube-system", "cnpg-system"
NAMED_PORTS = {"http": 8000, "postgres": 5432}
INTERNET, METADATA = "1.1.1.1", "169.254.169.254"


@dataclass(frozen=True, slots=True)
class End:
    """A pod of the namespace, by its labels; or one of another namespace; or an address."""

    labels: dict[str, str] | None = None
    namespace: dict[str, str] | None = None
    address: str | None = None


def ours(component: str, **more: str) -> End:
    """Return a pod as the overlays label it."""
    labels = {"app.kubernetes.io/name": "causeway", "app.kubernetes.io/component": component}
    return End(labels | {f"causeway.io/{name}": "true" for name in more})


def elsewhere(namespace: str, **labels: str) -> End:
    """Return a pod of another namespace; `labels` are the namespace's, as `causeway.io/...`."""
    more = {f"causeway.io/{name}": value for name, value in labels.items()}
    return End(None, {"kubernetes.io/metadata.name": namespace} | more)


@dataclass(frozen=True, slots=True)
class Network:
    """All policies of an overlay, which are of one namespace."""

    policies: list[Manifest]

    def lets(self, source: End, target: End, port: int, protocol: str = "TCP") -> bool:
        """Say whether `source` may open a connection to a port of `target`."""
        wanted = (port, protocol)
        return self._open("Egress", source, target, wanted) and self._open(
            "Ingress", target, source, wanted
        )

    def _open(self, way: str, at: End, peer: End, wanted: tuple[int, str]) -> bool:
        if at.labels is None:
            return True
        key, side = way.lower(), "to" if way == "Egress" else "from"
        chosen = [
            it["spec"]
            for it in self.policies
            if way in it["spec"]["policyTypes"] and selects(it["spec"]["podSelector"], at.labels)
        ]
        return not chosen or any(
            ports_match(rule, wanted) and peers_match(rule.get(side), peer)
            for spec in chosen
            for rule in spec.get(key, [])
        )


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Say whether a selector, which has no expressions here, chooses these labels."""
    assert selector.keys() <= {"matchLabels"}
    chosen: dict[str, str] = selector.get("matchLabels", {})
    return chosen.items() <= labels.items()


def ports_match(rule: Manifest, wanted: tuple[int, str]) -> bool:
    """Say whether a rule is about a port; a rule without ports is about all."""
    ports = rule.get("ports")
    return ports is None or wanted in {
        (NAMED_PORTS.get(it["port"], it["port"]), it.get("protocol", "TCP")) for it in ports
    }


def peers_match(peers: list[Manifest] | None, end: End) -> bool:
    """Say whether some of a rule's peers is this one; a rule without peers is about everybody."""
    return peers is None or any(peer_matches(peer, end) for peer in peers)


def peer_matches(peer: Manifest, end: End) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        return (
            end.address is not None
            and contains(block["cidr"], end.address)
            and not any(contains(cidr, end.address) for cidr in block.get("except", []))
        )
    if "namespaceSelector" in peer:
        assert "podSelector" not in peer
        return end.namespace is not None and selects(peer["namespaceSelector"], end.namespace)
    return end.labels is not None and selects(peer["podSelector"], end.labels)


def contains(cidr: str, address: str) -> bool:
    """Say whether a network has an address."""
    return ipaddress.ip_address(address) in ipaddress.ip_network(cidr)


@cache
def built(overlay: str) -> list[Manifest]:
    """Return an overlay's manifests."""
    return build(overlay)


def network(overlay: str) -> Network:
    """Return an overlay's policies."""
    return Network(of_kind(built(overlay), "NetworkPolicy"))


SERVICE = ours("service", serves="", relays="")
INGEST = ours("ingest", serves="")
STREAM, RELAY = (ours(it, serves="", relays="") for it in ("stream", "relay"))
JOBS = tuple(ours(it) for it in ("migrate", "prune", "audit"))
TRIAL_POSTGRES = End({"app.kubernetes.io/name": "causeway-postgres"})
POSTGRES = End({"cnpg.io/cluster": "causeway-postgres", "cnpg.io/instanceName": "one"})
SOLVER = End({"acme.cert-manager.io/http01-solver": "true"})
MIRROR = ours("mirror", serves="", nats="")
GATEWAY = ours("stream", serves="", relays="", nats="")
NATS = End({"app.kubernetes.io/name": "nats", "app.kubernetes.io/instance": "causeway-nats"})
PUBLIC, SCRAPER, NAMES = (elsewhere(it) for it in (INGRESS_NGINX, MONITORING, DNS))
OPERATOR, STRANGER = elsewhere(CNPG), elsewhere("default")
READER = elsewhere("billing", reader="true")
WEB, INSIDE = End(address=INTERNET), End(address="10.0.0.1")
OVERLAYS = (".", "overlays/production", "overlays/nats")


def serving(overlay: str) -> tuple[End, ...]:
    """Return a pod of each Deployment."""
    if overlay == ".":
        return (SERVICE,)
    return (INGEST, RELAY, *((STREAM,) if "production" in overlay else (GATEWAY, MIRROR)))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pods_here_are_those_of_the_overlay(overlay: str) -> None:
    """Else what follows is about pods that there are not."""
    templates = [
        manifest["spec"].get("jobTemplate", manifest)["spec"]["template"]
        for manifest in of_kind(built(overlay), "Deployment", "Job", "CronJob")
    ]
    made = sorted(sorted(template["metadata"]["labels"].items()) for template in templates)
    assert made == sorted(sorted((it.labels or {}).items()) for it in (*serving(overlay), *JOBS))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everybody_finds_names_and_ours_the_database(overlay: str) -> None:
    net, postgres = network(overlay), TRIAL_POSTGRES if overlay == "." else POSTGRES
    for pod in (*serving(overlay), *JOBS):
        assert net.lets(pod, postgres, 5432)
        assert not net.lets(pod, postgres, 22)
    for pod in (*serving(overlay), *JOBS, postgres):
        assert net.lets(pod, NAMES, 53)
        assert net.lets(pod, NAMES, 53, "UDP")
        assert net.lets(pod, End(address="169.254.20.10"), 53, "UDP")
    for stranger in (STRANGER, READER, PUBLIC, SOLVER):
        assert not net.lets(stranger, postgres, 5432)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_callers_and_prometheus_reach_who_serves_and_nobody_else_does(overlay: str) -> None:
    net = network(overlay)
    for pod in serving(overlay):
        for caller in (PUBLIC, SCRAPER, READER):
            assert net.lets(caller, pod, 8000)
            assert not net.lets(caller, pod, 8001)
        for stranger in (STRANGER, OPERATOR, NAMES, *JOBS, TRIAL_POSTGRES, POSTGRES):
            assert not net.lets(stranger, pod, 8000)
    for job in JOBS:
        assert not net.lets(SCRAPER, job, 8000)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_internet_is_for_callbacks_and_nothing_private_is(overlay: str) -> None:
    net = network(overlay)
    for pod in (*serving(overlay), *JOBS):
        calls = "causeway.io/relays" in (pod.labels or {})
        assert net.lets(pod, WEB, 443) is calls
        assert not net.lets(pod, WEB, 80)
        for private in (INSIDE, End(address=METADATA), End(address="127.0.0.1")):
            assert not net.lets(pod, private, 443)


@pytest.mark.parametrize("overlay", OVERLAYS[1:])
def test_postgres_reaches_its_like_its_store_and_its_operator_it(overlay: str) -> None:
    net = network(overlay)
    for port in (5432, 8000):
        assert net.lets(POSTGRES, POSTGRES, port)
        assert net.lets(OPERATOR, POSTGRES, port)
    assert net.lets(SCRAPER, POSTGRES, 9187)
    assert net.lets(POSTGRES, WEB, 443)  # the backups
    assert net.lets(POSTGRES, End(address="10.96.0.1"), 443)  # Kubernetes' API
    assert net.lets(PUBLIC, SOLVER, 8089)
    assert not net.lets(STRANGER, SOLVER, 8089)


def test_nats_is_for_who_speaks_it() -> None:
    net = network("overlays/nats")
    for client in (MIRROR, GATEWAY, READER):
        assert net.lets(client, NATS, 4222)
    for other in (INGEST, RELAY, STRANGER, PUBLIC, *JOBS):
        assert not net.lets(other, NATS, 4222)
    assert net.lets(NATS, NATS, 6222)
    assert net.lets(SCRAPER, NATS, 7777)
    assert not net.lets(NATS, WEB, 443)
