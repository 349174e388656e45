"""Connections to NATS: who may come in, with the rights that README names, over TLS."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.config import Settings
from service.errors import ConfigError, MirrorUnavailable
from service.nats import connected
from tests.certificates import Authority
from tests.mirroring import assert_mirrored, fill, read_stream, until_level
from tests.nats_feeder import be_patient
from tests.nats_server import NatsServer, nats_server
from tests.running import ADMIN_TOKEN, WITHIN_S, Running, free_port, make_settings
from tests.test_receive import Start

PASSWORD = "p-0123456789"
RIGHTS = """
publish: ["bridge.>", "$JS.API.STREAM.*.CAUSEWAY", "$JS.API.STREAM.MSG.*.CAUSEWAY"],
subscribe: ["_INBOX.>"]
"""
USERS = f"""
authorization {{ users: [
    {{ user: mirror, password: "{PASSWORD}", permissions: {{ {RIGHTS} }} }},
    {{ user: reader, password: "{PASSWORD}" }}
] }}
"""
TLS = """
tls {{ cert_file: "{chain}", key_file: "{key}", ca_file: "{ca}", verify: true }}
"""


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    be_patient(monkeypatch)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[NatsServer]:
    """A server with users."""
    with nats_server(tmp_path / "nats", more=USERS) as server:
        yield server


async def test_the_mirror_needs_no_more_rights_than_are_named(
    start: Start, service: Running, guarded: NatsServer
) -> None:
    mirror = await start(
        roles="mirror", nats_url=guarded.url, nats_user="mirror", nats_password=PASSWORD
    )
    await fill(service.service.eventlog, 20)
    await until_level(mirror, 20)
    guarded.login = f"reader:{PASSWORD}"
    assert await assert_mirrored(guarded, service.service.eventlog) == 20
    assert len(await read_stream(guarded)) == 20


@pytest.mark.parametrize("user", [{}, {"nats_user": "mirror", "nats_password": "wrong"}])
async def test_who_may_not_come_in_is_told_so(guarded: NatsServer, user: dict[str, str]) -> None:
    settings = make_settings(nats_url=guarded.url, **user)
    with pytest.raises(MirrorUnavailable, match="Authorization Violation"):
        await _connect(settings)


async def test_a_user_may_stand_in_the_address(guarded: NatsServer) -> None:
    await _connect(make_settings(nats_url=guarded.url.replace("//", f"//mirror:{PASSWORD}@")))


async def test_a_token_lets_in(tmp_path: Path) -> None:
    more = f'authorization {{ token: "{ADMIN_TOKEN}" }}'
    with nats_server(tmp_path / "nats", more=more) as server:
        await _connect(make_settings(nats_url=server.url, nats_token=ADMIN_TOKEN))
        with pytest.raises(MirrorUnavailable, match="Authorization Violation"):
            await _connect(make_settings(nats_url=server.url))


async def test_where_nobody_listens_it_says_so_at_once() -> None:
    async with asyncio.timeout(WITHIN_S):
        with pytest.raises(MirrorUnavailable, match="NATS cannot answer now"):
            await _connect(make_settings(nats_url=f"nats://127.0.0.1:{free_port()}"))


async def test_of_several_servers_one_that_answers_will_do(nats: NatsServer) -> None:
    for _ in range(4):  # the library shuffles them
        await _connect(make_settings(nats_url=f"nats://127.0.0.1:{free_port()},{nats.url}"))


async def test_both_sides_show_a_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate = authority.issue("127.0.0.1")
    ca = tmp_path / "ca.pem"
    ca.write_text(authority.pem())
    chain, key = certificate.chain, certificate.key
    ours = {"nats_cert": chain, "nats_key": key}
    more = TLS.format(chain=chain, key=key, ca=ca)
    with nats_server(tmp_path / "nats", more=more) as server:
        await _connect(make_settings(nats_url=server.url, nats_ca=ca, **ours))
        for wrong in ({"nats_ca": ca}, ours, {}):
            with pytest.raises(MirrorUnavailable):
                await _connect(make_settings(nats_url=server.url, **wrong))
    with pytest.raises(ConfigError, match="CAUSEWAY_NATS_CA"):
        await _connect(make_settings(nats_url=server.url, nats_ca=tmp_path / "nothing.pem"))


@pytest.mark.parametrize("role", [{"roles": "mirror"}, {"roles": "stream", "tail": "nats"}])
@pytest.mark.parametrize(
    ("name", "value"), [("nats_ca", "/nothing.pem"), ("nats_credentials", "no such text")]
)
async def test_what_nobody_could_log_in_with_stops_the_start(
    start: Start, role: dict[str, str], name: str, value: str
) -> None:
    with pytest.raises(ConfigError, match=f"CAUSEWAY_{name.upper()}"):
        await start(nats_url="nats://127.0.0.1:1", **role, **{name: value})


async def _connect(settings: Settings) -> None:
    async with connected(settings, "a test") as connection:
        await connection.client.flush(timeout=60)
