"""Roles: what a process does alone, what it refuses, and that together they do all."""

import re
from collections.abc import Iterator

import httpx2
import pytest

from service.errors import ConfigError
from service.roles import ALL, Role, parse_roles, spell
from service.settings import CoreSettings
from service.tail import Tail
from tests.bridge import body, post
from tests.commands import command
from tests.reader import reading
from tests.receiver import Receiver
from tests.relaying import RELAY
from tests.running import (
    ADMIN_TOKEN,
    WITHIN_S,
    Database,
    Running,
    eventually,
    make_settings,
    running_service,
)
from tests.test_ops import until
from tests.test_receive import Start

NEVER_S = 60.0
NOWHERE = "nats://127.0.0.1:9"
PATHS = {
    Role.INGEST: ["/webhooks/bridge", "/webhooks/bridge/default"],
    Role.STREAM: ["/stream", "/events", "/events/1", "/consumers", "/consumers/billing"],
    Role.ADMIN: ["/api/webhooks", "/api/webhooks/1", "/api/webhooks/1/deliveries"],
}
SHARED = ["/metrics", "/livez", "/openapi.json", "/asyncapi.json"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ingest", {Role.INGEST}),
        (" relay , admin,", {Role.RELAY, Role.ADMIN}),
        ("stream,stream", {Role.STREAM}),
        ("admin,relay,stream,ingest", ALL),
    ],
)
def test_roles_are_named_in_any_order(text: str, expected: set[Role]) -> None:
    assert parse_roles(text) == expected
    assert parse_roles(spell(frozenset(expected))) == expected


@pytest.mark.parametrize("text", ["", " , ", "reader", "ingest,reader", "INGEST"])
def test_an_unknown_role_is_named_beside_the_known_ones(text: str) -> None:
    with pytest.raises(ValueError, match="ingest, stream, relay, admin, mirror") as caught:
        parse_roles(text)
    assert not re.search("reader|INGEST", text) or re.search("'(reader|INGEST)'", str(caught.value))


async def test_the_option_wins_over_the_environment() -> None:
    done = await command("serve", "--roles", "reader", CAUSEWAY_ROLES="ingest")
    assert done.code == 1
    assert "CAUSEWAY_ROLES='reader'" in done.err
    done = await command("serve", CAUSEWAY_ROLES="writer", CAUSEWAY_WORKERS="0")
    assert "CAUSEWAY_ROLES='writer'" in done.err
    assert "CAUSEWAY_WORKERS='0'" in done.err
    assert CoreSettings.model_fields["roles"].default == ALL


@pytest.mark.parametrize("role", Role)
async def test_a_role_answers_its_own_paths_and_names_itself_for_others(
    start: Start, role: Role
) -> None:
    running = await start(roles=role, nats_url=NOWHERE)
    headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    async with httpx2.AsyncClient(base_url=running.url, headers=headers) as client:
        for owner, paths in PATHS.items():
            for path in paths:
                # HEAD, because a stream would not end; an unknown method of one's own is 405.
                answer = await client.head(path)
                assert (answer.status_code == 421) is (owner is not role), path
        for path in SHARED:
            assert (await client.get(path)).status_code == 200
        elsewhere = Role.STREAM if role is Role.INGEST else Role.INGEST
        error = (await client.post(PATHS[elsewhere][0])).json()["error"]
    assert error["code"] == "not_served_here"
    assert f"no role {elsewhere}" in error["message"]
    assert error["message"].endswith(f"it has {role}")


@pytest.mark.parametrize("role", Role)
async def test_a_role_is_ready_by_checks_that_fit_it(start: Start, role: Role) -> None:
    running = await start(roles=role, nats_url=NOWHERE)
    checks = await until(running, "/readyz", 200)
    reads = {"tail"} if role is Role.STREAM else set()
    assert set(checks) == {"loops", "database", "draining"} | reads


@pytest.mark.parametrize("role", [Role.INGEST, Role.RELAY])
async def test_a_role_without_a_tail_finds_out_that_the_database_is_away(
    database: Database, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.app.STALE_READ_S", 0.5)
    async with running_service(make_settings(roles=role), database) as running:
        await until(running, "/readyz", 200)

        async def away(_self: object) -> None:
            raise ConnectionRefusedError

        with monkeypatch.context() as broken:
            broken.setattr("service.eventlog.EventLog.bounds", away)
            checks = await until(running, "/readyz", 503)
            assert checks["database"] != "ok"
        await until(running, "/readyz", 200)


async def test_only_ingest_needs_a_secret_of_bridges(start: Start) -> None:
    for role in (Role.STREAM, Role.RELAY, Role.ADMIN):
        await start(roles=role, bridge_webhook_secret=())
    with pytest.raises(ConfigError, match="BRIDGE_WEBHOOK_SECRET"):
        await start(roles=Role.INGEST, bridge_webhook_secret=())


async def test_the_mirror_needs_to_be_asked_for_and_to_know_where_nats_is(start: Start) -> None:
    assert Role.MIRROR not in ALL
    with pytest.raises(ConfigError, match="CAUSEWAY_NATS_URL"):
        await start(roles=Role.MIRROR)


async def test_roles_apart_do_together_what_one_process_does(
    start: Start, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Polls are a minute apart: what arrives was woken by LISTEN."""
    heard: list[int] = []
    hear = Tail.hear

    def hear_and_note(tail: Tail, head: int) -> None:
        heard.append(head)
        hear(tail, head)

    monkeypatch.setattr(Tail, "hear", hear_and_note)
    by_role: dict[Role, Running] = {
        role: await start(roles=role, poll_s=NEVER_S, **RELAY) for role in ALL
    }
    async with httpx2.AsyncClient(timeout=WITHIN_S) as client:
        answer = await client.post(
            f"{by_role[Role.ADMIN].url}/api/webhooks",
            headers={"authorization": f"Bearer {ADMIN_TOKEN}"},
            json={"application": "billing", "name": "books", "url": f"{receiver.url}/good"},
        )
        assert answer.status_code == 201, answer.text
    by_role[Role.RELAY].service.relaying.relay.wake()
    async with reading(by_role[Role.STREAM].url) as reader:
        payload = body()
        answer = await post(by_role[Role.INGEST].url, payload)
        assert answer.status_code == 200
        block = await reader.event()
    await eventually(lambda: 1 in heard)
    assert block.data == payload.decode()
    [call] = await receiver.wait_for(1)
    assert call.body == payload
