"""What the tests of faults share: a way that breaks, and what the log must hold."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx2

from tests.chaos.proxy import Proxy, proxy_to
from tests.load import Load
from tests.logkeeping import Owner
from tests.reader import Reader
from tests.running import WITHIN_S, Database, Running, make_settings, running_service


@asynccontextmanager
async def behind_proxy(
    database: Database, **settings: object
) -> AsyncIterator[tuple[Running, Proxy]]:
    """Run a service that reaches its database by a proxy only."""
    async with (
        proxy_to(database.service_dsn) as proxy,
        running_service(make_settings(**settings), by(proxy, database)) as running,
    ):
        yield running, proxy


def by(proxy: Proxy, database: Database) -> Database:
    """Return the way of the service through the proxy; the owner's is as before."""
    return replace(database, service_dsn=proxy.dsn(database.service_dsn))


async def assert_all_in_log_once(connection: Owner, load: Load) -> None:
    """Every 200, and nothing else, is in the log, once; positions are dense."""
    rows = await connection.fetch("SELECT position, digest FROM causeway.event ORDER BY position")
    assert [row["position"] for row in rows] == list(range(1, len(rows) + 1))
    digests = [row["digest"] for row in rows]
    assert len(set(digests)) == len(digests)
    assert set(digests) == {hashlib.sha256(payload).digest() for payload in load.accepted}
    assert sorted(load.accepted) == sorted(load.sent)


def assert_polite(answer: httpx2.Response, *codes: str) -> None:
    """It is a 503 that says why, and when to come back."""
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] in (codes or ("log_unavailable", "overloaded"))


async def assert_each_once(reader: Reader, head: int) -> None:
    """The one open connection brought every position up to `head`, in order."""
    while not (seen := [b.position for b in reader.seen if b.is_event]) or seen[-1] < head:
        await reader.block()
    assert seen == list(range(1, head + 1))


async def wait_for_ready(running: Running, status: int) -> None:
    """Return once `/readyz` answers with `status`."""
    async with asyncio.timeout(WITHIN_S), httpx2.AsyncClient() as client:
        while (await client.get(f"{running.url}/readyz")).status_code != status:
            await asyncio.sleep(0.02)
