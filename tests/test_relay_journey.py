"""The relay in processes: replicas killed or stopped under load, an administrator with curl."""

import asyncio
import json
import re
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from standardwebhooks import Webhook as StandardWebhook

from service.db import Connection, create_pool
from tests.bridge import TEST_EVENT, body, post
from tests.conftest import need_program
from tests.receiver import Receiver
from tests.relaying import KEY, Desk, append, calls_of, pass_time
from tests.running import (
    ADMIN_TOKEN,
    WITHIN_S,
    Database,
    Process,
    environment,
    service_process,
)

EVENTS = 400
ROOM = 8
TIMEOUT_S = 300.0  # the longest there is: no call ends by it, however long a test holds its answer
LEASE_S = 2 * TIMEOUT_S + 10
DELIVERED = """
SELECT count(*) FROM causeway.delivery WHERE webhook_id = $1 AND state = 'delivered'
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
async def desk(database: Database) -> AsyncIterator[Desk]:
    async with create_pool(database.service_dsn, max_size=4) as pool:
        yield Desk(pool)


def settings(database: Database, **more: str) -> dict[str, str]:
    """Return the environment of a replica that may call receivers on this machine."""
    return environment(
        DATABASE_URL=database.service_dsn,
        CAUSEWAY_SECRET_KEY=KEY,
        CAUSEWAY_RELAY_ALLOW_HTTP="true",
        CAUSEWAY_RELAY_ALLOWED_NETWORKS="127.0.0.0/8",
        CAUSEWAY_RELAY_TIMEOUT_S=str(TIMEOUT_S),
        CAUSEWAY_RELAY_CONCURRENCY=str(ROOM),
        CAUSEWAY_SHUTDOWN_S="10",
        CAUSEWAY_POLL_S="0.2",
        **more,
    )


@asynccontextmanager
async def under_load(desk: Desk) -> AsyncIterator[None]:
    """Append the events in the background, faster than they can be delivered."""

    async def run() -> None:
        for _ in range(EVENTS // 10):
            await append(desk.eventlog, 9)
            await append(desk.eventlog, type_="user.deleted")
            await asyncio.sleep(0.05)

    load = asyncio.create_task(run())
    try:
        yield
    finally:
        await load


async def metric(process: Process, name: str) -> float:
    """Return the sum of a metric's values over its labels, once there are any."""
    values: list[str] = []
    async with httpx2.AsyncClient() as client, asyncio.timeout(WITHIN_S):
        while not values:
            text = (await client.get(f"{process.url}/metrics")).text
            values = re.findall(rf"^causeway_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, values))


async def until(process: Process, name: str, least: float) -> None:
    async with asyncio.timeout(WITHIN_S):
        while await metric(process, name) < least:
            await asyncio.sleep(0.02)


async def delivered(owner: Connection, webhook_id: int, count: int = EVENTS) -> None:
    """Wait until so many events are delivered to a webhook."""
    async with asyncio.timeout(3 * WITHIN_S):
        while await owner.fetchval(DELIVERED, webhook_id) < count:
            await asyncio.sleep(0.05)


async def until_called(receiver: Receiver, path: str) -> None:
    """Wait until a call of a path has arrived."""
    async with asyncio.timeout(WITHIN_S):
        while not any(c.path == path for c in await asyncio.to_thread(receiver.requests)):
            await asyncio.sleep(0.02)


async def assert_each_event_arrived(
    desk: Desk, owner: Connection, receiver: Receiver, webhook_id: int
) -> Counter[int]:
    """Every event is delivered and has its delivery; return how often each was called."""
    [state] = await owner.fetch(
        "SELECT count(*) FILTER (WHERE state = 'delivered') AS delivered, count(*) AS deliveries, "
        "count(claim) AS claims FROM causeway.delivery WHERE webhook_id = $1",
        webhook_id,
    )
    assert tuple(state) == (EVENTS, EVENTS, 0)
    assert await desk.deliveries.orphans(webhook_id, 0, EVENTS) == (0, None)
    called = calls_of([c for c in await receiver.wait_for(EVENTS) if c.status == 200])
    assert called.keys() == set(range(1, EVENTS + 1))
    return called


async def test_a_replica_killed_under_load_loses_nothing_and_repeats_only_what_was_open(
    database: Database, desk: Desk, owner: Connection, receiver: Receiver, tmp_path: Path
) -> None:
    hook = await desk.add(receiver.url + "/held/100")
    with (
        service_process(settings(database), tmp_path / "first.log") as first,
        service_process(settings(database), tmp_path / "second.log") as second,
    ):
        async with under_load(desk):
            # Both are in the middle of as many calls as they may have, all of which have arrived;
            # what was answered before is written down: until then it takes room.
            await receiver.wait_for(100 + 2 * ROOM)
            first.kill()
            await asyncio.to_thread(receiver.release)
        # All but what it had claimed is delivered; that comes back when its lease ends, by itself.
        await delivered(owner, hook.webhook_id, EVENTS - ROOM)
        await pass_time(owner, LEASE_S)
        await delivered(owner, hook.webhook_id)
        called = await assert_each_event_arrived(desk, owner, receiver, hook.webhook_id)
        assert called.total() - EVENTS == ROOM
        assert await metric(second, "relay_orphans") == 0
        for call in await receiver.wait_for(EVENTS):
            assert call.headers["causeway-attempt"] in ("1", "2")
        repeated = {position for position, count in called.items() if count > 1}
        again = await owner.fetch("SELECT position FROM causeway.delivery WHERE attempts = 2")
        assert repeated == {row["position"] for row in again}


async def test_a_replica_that_is_stopped_under_load_ends_its_calls_and_repeats_none(
    database: Database, desk: Desk, owner: Connection, receiver: Receiver, tmp_path: Path
) -> None:
    hook = await desk.add(receiver.url + "/slow?s=0.15")
    hanging = await desk.add(receiver.url + "/hang-head", types=["user.deleted"])
    with service_process(settings(database), tmp_path / "first.log") as first:
        async with under_load(desk):
            await until(first, "relay_attempts_total", 50)
            await until_called(receiver, "/hang-head")
            assert await asyncio.to_thread(first.terminate) == 0, first.output()
            # All is written down, and what was cut is due at once: no lease holds anything.
            cut = await owner.fetch(
                "SELECT DISTINCT claim, attempts, state, due_at <= clock_timestamp() AS is_due "
                "FROM causeway.delivery WHERE webhook_id = $1",
                hanging.webhook_id,
            )
            assert [tuple(row) for row in cut] == [(None, 0, "pending", True)]
            assert await owner.fetchval("SELECT count(claim) FROM causeway.delivery") == 0
            done = await owner.fetchval(
                "SELECT count(*) FROM causeway.delivery WHERE state = 'delivered'"
            )
            assert done == len(calls_of([c for c in receiver.requests() if c.status == 200]))
    await desk.webhooks.delete(hanging.webhook_id)
    with service_process(settings(database), tmp_path / "second.log"):
        await delivered(owner, hook.webhook_id)
        called = await assert_each_event_arrived(desk, owner, receiver, hook.webhook_id)
        assert called.total() == EVENTS


class Admin:
    """An administrator with curl."""

    def __init__(self, process: Process) -> None:
        self._url = f"{process.url}/api/webhooks"
        self._curl = need_program("curl")

    async def __call__(self, method: str, path: str = "", **fields: Any) -> dict[str, Any]:
        """Make one call; return the answer."""
        headers = (f"Authorization: Bearer {ADMIN_TOKEN}", "Content-Type: application/json")
        command = [self._curl, "-sS", "--fail-with-body", "-X", method, self._url + path]
        command += [part for header in headers for part in ("-H", header)]
        if fields:
            command += ["-d", json.dumps(fields)]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        answer: dict[str, Any] = json.loads(output)
        return answer


async def test_an_admin_makes_tries_rotates_and_replays_a_webhook(
    database: Database, owner: Connection, receiver: Receiver, tmp_path: Path
) -> None:
    with service_process(settings(database), tmp_path / "service.log") as process:
        admin = Admin(process)
        wish: dict[str, Any] = {
            "url": f"{receiver.url}/bridge",
            "types": ["item.*"],
            "headers": {"X-Key": "k"},
        }
        made = await admin("POST", **wish)
        id_, secret = made["id"], made["secret"]
        await asyncio.to_thread(receiver.set_secrets, secret)
        tried = await admin("POST", f"/{id_}/test")
        assert (tried["delivered"], tried["status"], tried["answer"]) == (True, 200, "ok")
        sent = [TEST_EVENT]

        async def deliver(*known: str) -> None:
            """Let Bridge send two events, one of them wanted, to a handler that knows secrets."""
            await asyncio.to_thread(receiver.set_secrets, *known)
            for payload in (body(), body("user.deleted")):
                assert (await post(process.url, payload)).status_code == 200
                sent.extend([payload] if b"item." in payload else [])
            call = (await receiver.wait_for(len(sent)))[-1]
            assert (call.body, call.status) == (sent[-1], 200)
            StandardWebhook(known[-1]).verify(call.body, call.headers)

        await deliver(secret)
        new_secret = (await admin("POST", f"/{id_}/rotate"))["secret"]
        await deliver(secret)
        await deliver(new_secret)
        shown = await admin("GET", f"/{id_}")
        assert shown["state"] == "enabled"
        assert not {secret, new_secret} & set(json.dumps(shown).split('"'))

        async def until_settled() -> list[int]:
            """Return the positions of all deliveries once they are written down as made."""
            async with asyncio.timeout(WITHIN_S):
                while True:
                    listed = (await admin("GET", f"/{id_}/deliveries"))["deliveries"]
                    if all(delivery["state"] == "delivered" for delivery in listed):
                        return [delivery["position"] for delivery in listed]

        assert await until_settled() == [5, 3, 1]
        await admin("POST", f"/{id_}/deliveries/3/replay")
        again = (await receiver.wait_for(5))[-1]
        assert (again.body, again.headers["causeway-attempt"]) == (sent[2], "2")
        await until_settled()
        wish = {"state": "all", "from": "start"}
        assert (await admin("POST", f"/{id_}/replays", **wish, dry_run=True))["events"] == 3
        await admin("POST", f"/{id_}/replays", **wish)
        calls = await receiver.wait_for(8)
        assert Counter(call.body for call in calls[5:]) == Counter(sent[1:])
        assert {call.status for call in calls} == {200}
        await admin("POST", f"/{id_}/disable")
        assert (await admin("GET", f"/{id_}"))["disabled_reason"] == "admin"
    assert not {secret, new_secret} & set(re.split(r'[\s"]+', process.output()))
