"""Named consumers for tests: on the database itself, and over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from service.consumer import Consumers, Held, Lease
from service.db import create_pool
from service.eventlog import EventLog
from service.filter import EVERYTHING, Filter
from tests.logkeeping import Owner
from tests.reader import Reader
from tests.running import STREAM_TOKEN, WITHIN_S, Database

NAME = "billing"


@pytest.fixture(autouse=True)
def patient_acks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an acknowledgement wait as long as the test for the sender's word on how far it got.

    For the modules that import it; who tests the refusal sets AHEAD_S anew.
    """
    monkeypatch.setattr("service.acks.AHEAD_S", WITHIN_S / 2)


@asynccontextmanager
async def open_consumers(database: Database) -> AsyncIterator[Consumers]:
    """Open the consumers with the service's role."""
    async with create_pool(database.service_dsn, max_size=4) as pool:
        yield Consumers(pool, 100)


async def put(
    consumers: Consumers,
    log: EventLog,
    name: str = NAME,
    *,
    position: int = 0,
    ack_mode: str = "explicit",
    lease_s: int = 3600,  # none ends by itself during a test, however slow that is
    filter_: Filter = EVERYTHING,
    is_reset: bool = False,
) -> bool:
    """Make a consumer that begins after `position`; True if it is new."""
    link = await log.check(position, None)
    return await consumers.put(
        name,
        ack_mode=ack_mode,
        lease_s=lease_s,
        filter_=filter_,
        position=position,
        link=link,
        is_reset=is_reset,
    )


def held(lease: Lease, sent: int = 0, done: int = 0) -> Held:
    """Return what a holder says when it renews."""
    return (lease.name, lease.shard, lease.number, sent, done, None)


async def expire(owner: Owner) -> None:
    """Let every lease run out, as time would."""
    await owner.execute(
        "UPDATE causeway.consumer_shard SET lease_until = clock_timestamp() - interval '1 s' "
        "WHERE lease_until IS NOT NULL"
    )


async def assert_no_event(reader: Reader, for_s: float = 1.0) -> None:
    """Read what comes for `for_s`: comments, which must come, and none of Bridge's events."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + for_s
    while clock() < deadline:
        assert not (await reader.block()).is_event


async def call(
    url: str,
    method: str,
    path: str,
    body: Any = None,
    *,
    token: str | None = STREAM_TOKEN,
    content: bytes | None = None,
) -> httpx2.Response:
    """Call an endpoint with a JSON body, or with `content` as it is."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx2.AsyncClient(timeout=WITHIN_S) as client:
        if content is not None:
            return await client.request(method, url + path, headers=headers, content=content)
        return await client.request(method, url + path, headers=headers, json=body)


async def make(url: str, name: str = NAME, **wish: Any) -> dict[str, Any]:
    """Make a consumer by PUT; from the log's start unless `wish` says otherwise."""
    answer = await call(url, "PUT", f"/consumers/{name}", {"start": "start"} | wish)
    assert answer.status_code in (200, 201), answer.text
    described: dict[str, Any] = answer.json()
    return described


async def look(url: str, name: str = NAME) -> dict[str, Any]:
    """Return what GET tells of a consumer."""
    answer = await call(url, "GET", f"/consumers/{name}")
    assert answer.status_code == 200, answer.text
    described: dict[str, Any] = answer.json()
    return described


async def acknowledge(url: str, position: int | str, name: str = NAME, **more: Any) -> int:
    """Acknowledge `position`, which must be taken; return the place then.

    First it must be written down that it was sent: the service waits for that, but not for long.
    """
    number = int(str(position).partition(".")[0])
    shard = int(str(more.get("shard", "0")).partition("/")[0])
    await sent(url, number, name, shard)
    answer = await call(url, "POST", f"/consumers/{name}/ack", {"position": position} | more)
    assert answer.status_code == 200, answer.text
    place: int = answer.json()["position"]
    return place


async def sent(url: str, position: int, name: str = NAME, shard: int = 0) -> None:
    """Wait until it is written down that the holder was sent `position`."""
    async with asyncio.timeout(WITHIN_S):
        while (await look(url, name))["shards"][shard]["sent_position"] < position:
            await asyncio.sleep(0.02)
