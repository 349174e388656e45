"""The overlay with the mirror in NATS: what the chart made, and who may do what in its servers.

The servers' configuration is tried on a real server: its users, by their certificates.
"""

import json
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats as nats_py
import pytest
import yaml
from nats.aio.client import Client
from nats.js.api import ConsumerConfig

from service.config import load, variables
from service.errors import MirrorUnavailable
from service.mirror_stream import MirrorStream
from service.nats import connected
from service.nats_feed import fetch_range
from tests.certificates import Authority
from tests.k8s import K8S, Manifest, build, of_kind, one, pod_spec, run
from tests.k8s import production as production  # fixtures
from tests.logkeeping import sample
from tests.mirroring import STREAM, fill, until_level
from tests.nats_feeder import be_patient
from tests.nats_server import NatsServer, find_server, nats_server
from tests.reader import Block, follow
from tests.running import WITHIN_S, Running, eventually, make_settings
from tests.test_receive import Start

FOLDER = K8S / "overlays" / "nats"
VALUES: dict[str, Any] = yaml.safe_load((FOLDER / "values.yaml").read_text())
USERS = ("mirror", "gateway", "operator", "billing")


@pytest.fixture(scope="module")
def overlay() -> list[Manifest]:
    """k8s/overlays/nats, built."""
    return build("overlays/nats")


def configuration(overlay: list[Manifest]) -> dict[str, Any]:
    """Return the servers' configuration: JSON, but for a variable and a size."""
    text = one(overlay, "ConfigMap", "causeway-nats-config")["data"]["nats.conf"]
    text = text.replace("$SERVER_NAME", '"name"')
    found: dict[str, Any] = json.loads(re.sub(r"\b(\d+Gi)\b", r'"\1"', text))
    return found


def environment_of(overlay: list[Manifest], name: str) -> dict[str, str]:
    """Return what a Deployment's ConfigMaps say, the last one last."""
    [container] = pod_spec(one(overlay, "Deployment", name))["containers"]
    given: dict[str, str] = {}
    for source in container["envFrom"]:
        given |= one(overlay, "ConfigMap", source["configMapRef"]["name"])["data"]
    return given


def test_the_chart_was_given_the_values_that_stand_beside_it(overlay: list[Manifest]) -> None:
    made, config = configuration(overlay), VALUES["config"]
    assert made["accounts"] == config["merge"]["accounts"]
    assert made["max_payload"] == config["merge"]["max_payload"]
    assert made["jetstream"]["sync_interval"] == config["jetstream"]["merge"]["sync_interval"]
    assert made["jetstream"]["max_file_store"] == config["jetstream"]["fileStore"]["maxSize"]
    assert made["tls"]["verify_and_map"] is made["cluster"]["tls"]["verify"] is True
    servers = one(overlay, "StatefulSet", "causeway-nats")
    spec = servers["spec"]
    assert spec["replicas"] == config["cluster"]["replicas"] == 3
    [claim] = spec["volumeClaimTemplates"]
    size = config["jetstream"]["fileStore"]["pvc"]["size"]
    assert claim["spec"]["resources"]["requests"]["storage"] == size
    by_name = {container["name"]: container for container in pod_spec(servers)["containers"]}
    assert by_name["nats"]["resources"] == VALUES["container"]["resources"]
    assert by_name["reloader"]["resources"] == VALUES["reloader"]["merge"]["resources"]
    assert by_name["prom-exporter"]["resources"] == VALUES["promExporter"]["merge"]["resources"]
    version = servers["metadata"]["labels"]["helm.sh/chart"].removeprefix("nats-")
    for file in ("values.yaml", "kustomization.yaml"):
        assert f"--version {version}" in (FOLDER / file).read_text()


def test_a_server_takes_the_configuration(tmp_path: Path, overlay: list[Manifest]) -> None:
    """As it is, but for the folders of the certificates."""
    authority = Authority(tmp_path)
    certificate = authority.issue("127.0.0.1")
    (tmp_path / "ca.crt").write_text(authority.pem())
    text = one(overlay, "ConfigMap", "causeway-nats-config")["data"]["nats.conf"]
    text = text.replace("/etc/nats-ca-cert", str(tmp_path))
    text = re.sub(r"/etc/nats-certs/\w+/tls.crt", certificate.chain, text)
    text = re.sub(r"/etc/nats-certs/\w+/tls.key", certificate.key, text)
    (tmp_path / "nats.conf").write_text(text)
    run(["env", "SERVER_NAME=n", find_server(), "-t", "-c", str(tmp_path / "nats.conf")])


def test_what_speaks_nats_is_told_where_it_is(overlay: list[Manifest]) -> None:
    """Each setting is one of ours, and fits; the others follow Postgres and know of nothing."""
    gateway, mirror = (environment_of(overlay, f"causeway-{n}") for n in ("stream", "mirror"))
    for given in (gateway, mirror):
        assert given.keys() <= set(variables())
        assert load(given).nats_replicas == 3
    assert (load(gateway).tail, load(mirror).tail) == ("nats", "postgres")
    [container] = pod_spec(one(overlay, "Deployment", "causeway-mirror"))["containers"]
    assert container["args"] == ["serve", "--roles", "mirror"]
    for name in ("ingest", "relay"):
        assert "CAUSEWAY_NATS_URL" not in environment_of(overlay, f"causeway-{name}")
    assert one(overlay, "Service", "causeway-nats")["spec"]["ports"][0]["port"] == 4222
    assert gateway["CAUSEWAY_NATS_URL"] == "tls://causeway-nats:4222"


def test_of_two_mirrors_one_stands_by(overlay: list[Manifest], production: list[Manifest]) -> None:
    mirror = one(overlay, "Deployment", "causeway-mirror")
    assert mirror["spec"]["replicas"] == 2
    scaled = {m["metadata"]["name"] for m in of_kind(overlay, "HorizontalPodAutoscaler")}
    assert scaled == {m["metadata"]["name"] for m in of_kind(production, "HorizontalPodAutoscaler")}
    images = {
        pod_spec(manifest)["containers"][0]["image"] for manifest in of_kind(overlay, "Deployment")
    }
    assert len(images) == 1


def test_postgres_lets_in_as_many_connections_as_mirrors_and_gateways_may_hold(
    overlay: list[Manifest],
) -> None:
    """Rollouts at the largest, and the jobs, included; as if NATS were away."""
    spec = one(overlay, "Cluster", "causeway-postgres")["spec"]
    [login] = spec["managed"]["roles"]
    counts = {
        scaler["spec"]["scaleTargetRef"]["name"]: scaler["spec"]["maxReplicas"] + 1
        for scaler in of_kind(overlay, "HorizontalPodAutoscaler")
    }
    counts["causeway-mirror"] = 3
    wanted = sum(
        count * (load(environment_of(overlay, name)).pool_max_connections + 6)
        for name, count in counts.items()
    )
    assert wanted + 2 <= login["connectionLimit"]
    assert login["connectionLimit"] + 30 <= int(spec["postgresql"]["parameters"]["max_connections"])


def test_each_user_has_a_certificate_and_each_pod_its_users(overlay: list[Manifest]) -> None:
    users = {
        user["user"].partition(".")[0]
        for account in configuration(overlay)["accounts"].values()
        for user in account["users"]
    }
    assert users == set(USERS)
    issued = {m["metadata"]["name"]: m["spec"] for m in of_kind(overlay, "Certificate")}
    for user in users:
        spec = issued[f"causeway-nats-{user}"]
        assert spec["dnsNames"] == [f"{user}.causeway-nats"]
        assert spec["usages"] == ["client auth"]
    for deployment, user in (("mirror", "mirror"), ("stream", "gateway")):
        volumes = pod_spec(one(overlay, "Deployment", f"causeway-{deployment}"))["volumes"]
        [secret] = [volume["secret"] for volume in volumes if volume["name"] == "nats"]
        assert secret["secretName"] == f"causeway-nats-{user}"
    assert "causeway-nats-ca" not in json.dumps(of_kind(overlay, "StatefulSet", "Deployment"))


def test_only_who_speaks_nats_reaches_it(overlay: list[Manifest]) -> None:
    speaking = {"causeway.io/nats": "true"}
    chosen = {
        manifest["metadata"]["name"]
        for manifest in of_kind(overlay, "Deployment")
        if speaking.items() <= manifest["spec"]["template"]["metadata"]["labels"].items()
    }
    assert chosen == {"causeway-mirror", "causeway-stream"}
    guard = one(overlay, "NetworkPolicy", "nats")["spec"]
    labels = one(overlay, "StatefulSet", "causeway-nats")["spec"]["template"]["metadata"]["labels"]
    assert guard["podSelector"]["matchLabels"].items() <= labels.items()
    callers = {rule["ports"][0]["port"]: rule["from"] for rule in guard["ingress"]}
    assert callers == {
        4222: [
            {"podSelector": {"matchLabels": speaking}},
            {"namespaceSelector": {"matchLabels": {"causeway.io/reader": "true"}}},
        ],
        6222: [{"podSelector": guard["podSelector"]}],
        7777: [
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
        ],
    }
    assert guard["egress"] == [
        {"to": callers[6222], "ports": [{"protocol": "TCP", "port": 6222}]},
    ]
    way = one(overlay, "NetworkPolicy", "mirrored")["spec"]
    assert way["podSelector"]["matchLabels"] == speaking
    [rule] = way["egress"]
    assert rule["to"] == callers[6222]
    mirror = one(overlay, "Deployment", "causeway-mirror")["spec"]["template"]["metadata"]["labels"]
    for policy in ("database", "callers"):  # Postgres, and Prometheus
        chosen_by = one(overlay, "NetworkPolicy", policy)["spec"]["podSelector"]["matchLabels"]
        assert chosen_by.items() <= mirror.items()


# Rights


@dataclass(frozen=True, slots=True)
class Guarded:
    """A server with the overlay's users, and their certificates."""

    server: NatsServer
    authority: Authority
    folder: Path

    @property
    def url(self) -> str:
        return f"tls://127.0.0.1:{self.server.port}"

    def settings(self, user: str) -> dict[str, object]:
        """Return what a process of ours is told to be this user."""
        certificate = self.authority.issue(f"{user}.causeway-nats")
        return {
            "nats_url": self.url,
            "nats_ca": self.folder / "ca.pem",
            "nats_cert": certificate.chain,
            "nats_key": certificate.key,
        }

    @asynccontextmanager
    async def client(self, user: str, errors: list[str]) -> AsyncIterator[Client]:
        """Give a plain client of this user; what the server refuses goes into `errors`."""

        async def on_error(error: Exception) -> None:
            errors.append(str(error).lower())

        certificate = self.authority.issue(f"{user}.causeway-nats")
        tls: ssl.SSLContext = self.authority.client_tls()
        tls.load_cert_chain(certificate.chain, certificate.key)
        prefix = f"_INBOX_{user}" if user == "billing" else "_INBOX"
        client = await nats_py.connect(
            self.url,
            tls=tls,
            inbox_prefix=prefix.encode(),
            error_cb=on_error,
            connect_timeout=round(WITHIN_S),
        )
        try:
            yield client
        finally:
            await client.close()


@pytest.fixture
def guarded(
    tmp_path: Path, overlay: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Guarded]:
    """A server that is told what the chart's are told, but for its neighbours and folders."""
    be_patient(monkeypatch)
    authority = Authority(tmp_path)
    (tmp_path / "ca.pem").write_text(authority.pem())
    certificate = authority.issue("127.0.0.1")
    told = configuration(overlay)
    told["tls"] |= {
        "ca_file": str(tmp_path / "ca.pem"),
        "cert_file": certificate.chain,
        "key_file": certificate.key,
    }
    names = ("accounts", "tls")
    more = "\n".join(f"{name}: {json.dumps(told[name])}" for name in names)
    payload = str(told["max_payload"])
    with nats_server(tmp_path / "nats", more=more, max_payload=payload) as server:
        yield Guarded(server, authority, tmp_path)


async def test_a_mirror_and_a_gateway_need_no_more_rights_than_they_have(
    start: Start, service: Running, guarded: Guarded
) -> None:
    mirror = await start(roles="mirror", **guarded.settings("mirror"))
    await fill(service.service.eventlog, 30)
    await until_level(mirror, 30)
    ours = guarded.settings("gateway")
    gateway = await start(roles="stream", tail="nats", window_events=10, **ours)
    await eventually(lambda: sample(gateway, "tail_source", source="nats") == 1)
    found: list[Block] = []
    await fill(service.service.eventlog, 10)
    await follow(gateway.url, found, until=40, query="from=start")
    assert len(found) == 40
    assert sample(gateway, "tail_source", source="nats") == 1
    async with connected(make_settings(**ours), "a test") as connection:  # what is far back
        assert len(await fetch_range(connection, STREAM, 1, 30, 10**6)) == 30
    async with connected(make_settings(**guarded.settings("mirror")), "a test") as connection:
        stream = MirrorStream(connection, STREAM)
        await stream.erase(7)  # as after an erasure
        assert await stream.event(7) is None
        await stream.delete()  # as `causeway mirror rebuild` does


async def test_an_application_takes_from_its_consumer_and_can_do_nothing_else(
    start: Start, service: Running, guarded: Guarded
) -> None:
    mirror = await start(roles="mirror", **guarded.settings("mirror"))
    await fill(service.service.eventlog, 5)
    await until_level(mirror, 5)
    errors: list[str] = []
    async with guarded.client("operator", errors) as client:
        config = ConsumerConfig(durable_name="billing", filter_subject="bridge.default.>")
        jetstream = client.jetstream(timeout=WITHIN_S)
        await jetstream.add_consumer(STREAM, config)
        await jetstream.consumer_info(STREAM, "billing")
        assert await jetstream.find_stream_name_by_subject("bridge.default.>") == STREAM
        assert len(await jetstream.streams_info()) == 1
        assert (await jetstream.stream_info(STREAM)).state.messages == 5
        assert (await jetstream.get_msg(STREAM, 5)).seq == 5
        assert (await jetstream.account_info()).streams == 1
        assert len(await jetstream.consumers_info(STREAM)) == 1
        await _refused(client, errors, "bridge.default.item.created.1")
    async with guarded.client("billing", errors) as client:
        await client.jetstream(timeout=WITHIN_S).consumer_info(STREAM, "billing")
        consumer = await client.jetstream(timeout=WITHIN_S).pull_subscribe_bind(
            "billing", stream=STREAM
        )
        messages = await consumer.fetch(5, timeout=60)
        assert [message.metadata.sequence.stream for message in messages] == [1, 2, 3, 4, 5]
        for message in messages:
            await message.ack_sync(timeout=WITHIN_S)
        assert errors == []
        for subject in (
            "bridge.default.item.created.1",
            f"$JS.API.STREAM.MSG.GET.{STREAM}",
            f"$JS.API.STREAM.DELETE.{STREAM}",
            f"$JS.API.CONSUMER.CREATE.{STREAM}",
            f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.other",
        ):
            await _refused(client, errors, subject)
        for subject in ("bridge.>", "_INBOX.>", "_INBOX_other.>", "$JS.EVENT.>"):
            await client.subscribe(subject)
            await _until_refused(client, errors, subject)


async def test_a_gateway_may_publish_nothing_and_a_stranger_is_not_let_in(guarded: Guarded) -> None:
    errors: list[str] = []
    async with guarded.client("gateway", errors) as client:
        await client.publish(f"$JS.FC.{STREAM}.consumer.1")  # flow control: more than a test sends
        await client.flush(timeout=60)
        assert errors == []
        await _refused(client, errors, "bridge.default.item.created.1")
        await _refused(client, errors, f"$JS.API.STREAM.DELETE.{STREAM}")
        await _refused(client, errors, f"$JS.API.STREAM.PURGE.{STREAM}")
    stranger = make_settings(**guarded.settings("stranger"))
    with pytest.raises(MirrorUnavailable, match="Authorization Violation"):
        async with connected(stranger, "a test"):
            pass


async def _refused(client: Client, errors: list[str], subject: str) -> None:
    """Publish, and wait until the server has refused it."""
    await client.publish(subject, b"{}")
    await _until_refused(client, errors, subject)


async def _until_refused(client: Client, errors: list[str], subject: str) -> None:
    await client.flush(timeout=60)
    await eventually(lambda: any(subject.lower() in error for error in errors))
    errors.clear()
