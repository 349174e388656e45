"""How many acknowledgements of named consumers are accepted, and how many commits they cost.

One real process (`python -m service serve`), one consumer whose open stream was sent the whole log,
and a client in a process of its own with many connections: each acknowledges one position after
another, and sends the next when it has its 200. An acknowledgement is accepted when it is on disk.
Commits are those of the whole server that wrote something; nothing but the service writes then.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path

import asyncpg
import httpx2

from service.embedded import EmbeddedPostgres
from tests.bench.children import Child, child
from tests.bench.databases import APPEND_TIMEOUT_S, fresh_database, new_events, open_log
from tests.bench.effort import Effort
from tests.bench.figures import Figure, at_least, at_most, figure, ratio
from tests.running import Database, Process, environment, service_process

NAME = "bench"
BATCH = 500
SENT_WITHIN_S = 60.0
COMMITS = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"


async def measure(postgres: EmbeddedPostgres, effort: Effort) -> list[Figure]:
    """Return acknowledgements and commits in a second."""
    async with fresh_database(postgres) as database:
        await _fill(database, effort.ack_events)
        owner = await asyncpg.connect(database.owner_dsn)
        try:
            async with _storm(database, effort) as sender:
                rounds = [await _round(owner, sender, effort) for _ in range(effort.rounds)]
        finally:
            await owner.close()
    accepted, commits = [acks for acks, _ in rounds], [commits for _, commits in rounds]
    return [
        figure("acknowledgements accepted", "acks/s", accepted, at_least(5000)),
        figure("commits meanwhile", "commits/s", commits, at_most(50)),
        ratio("acknowledgements in a commit", accepted, commits),
    ]


async def _fill(database: Database, count: int) -> None:
    fresh = new_events(seed=1)
    async with open_log(database) as eventlog:
        for _ in range(0, count, BATCH):
            await eventlog.append(list(islice(fresh, BATCH)), timeout_s=APPEND_TIMEOUT_S)


@asynccontextmanager
async def _storm(database: Database, effort: Effort) -> AsyncIterator[Child]:
    """A service whose consumer was sent all events, and the client that acknowledges them."""
    env = environment(DATABASE_URL=database.service_dsn)
    with (
        tempfile.NamedTemporaryFile(prefix="causeway-acks-", suffix=".log") as log,
        service_process(env, Path(log.name)) as process,
    ):
        async with (
            httpx2.AsyncClient(headers=process.headers, timeout=SENT_WITHIN_S) as client,
            _holding(client, process, effort.ack_events),
        ):
            port = process.url.rpartition(":")[2]
            arguments = (port, NAME, str(effort.ack_connections), str(effort.ack_events))
            with child("tests.bench.acks_sender", environment(), *arguments) as sender:
                yield sender


@asynccontextmanager
async def _holding(
    client: httpx2.AsyncClient, process: Process, events: int
) -> AsyncIterator[None]:
    """Hold the consumer with a stream that was sent all events, and stays open."""
    consumer = f"{process.url}/consumers/{NAME}"
    (await client.put(consumer, json={"start": "start"})).raise_for_status()
    url = f"{process.url}/stream?consumer={NAME}"
    async with client.stream("GET", url) as response, asyncio.timeout(SENT_WITHIN_S) as limit:
        async for line in response.aiter_lines():
            if line.startswith(f"id: {events}."):
                break
        while (await client.get(consumer)).json()["shards"][0]["sent_position"] < events:
            await asyncio.sleep(0.05)
        limit.reschedule(None)
        yield


async def _round(
    owner: "asyncpg.Connection[asyncpg.Record]", sender: Child, effort: Effort
) -> tuple[float, float]:
    """Return acknowledgements and commits in a second, of one storm."""
    before: int = await owner.fetchval(COMMITS)
    done = await asyncio.to_thread(sender.ask, seconds=effort.ack_s)
    commits = await owner.fetchval(COMMITS) - before
    return done["accepted"] / done["elapsed_s"], commits / done["elapsed_s"]
