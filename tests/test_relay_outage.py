"""Postgres goes away under the relay and comes back: results wait, nothing is lost or forgotten."""

import asyncio
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from service.db import Connection
from service.embedded import EmbeddedPostgres
from service.migrate import migrate
from tests.logkeeping import sample
from tests.receiver import Receiver
from tests.relaying import RELAY, add_to, append, calls_of, pass_time, settled
from tests.running import (
    WITHIN_S,
    Database,
    Running,
    eventually,
    make_settings,
    running_service,
)

Start = Callable[..., Awaitable[Running]]
EVENTS = 60
ROOM = 8
SETTINGS = RELAY | {"relay_concurrency": ROOM}

DONE = "SELECT count(*) FROM causeway.delivery WHERE state = 'delivered'"
DONE_OR_CLAIMED = """
SELECT count(*) FROM causeway.delivery WHERE state = 'delivered' OR claim IS NOT NULL
"""
BACKENDS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
RECORD_WAITS = """
SELECT pid
FROM pg_locks
WHERE relation = 'causeway.attempt'::regclass AND NOT granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@pytest.fixture
async def own_postgres() -> AsyncIterator[EmbeddedPostgres]:
    """A Postgres that the test may stop, ready for a service."""
    folder = Path(tempfile.mkdtemp(prefix="causeway-outage-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        with EmbeddedPostgres(folder) as server:
            await migrate(server.owner_url)
            await server.allow_service_login()
            yield server
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@asynccontextmanager
async def owner_of(postgres: EmbeddedPostgres) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(postgres.owner_url)
    try:
        yield connection
    finally:
        await connection.close()


def crash(postgres: EmbeddedPostgres) -> None:
    assert postgres.pid is not None
    os.kill(postgres.pid, signal.SIGKILL)


@pytest.mark.parametrize("end", [EmbeddedPostgres.stop, crash])
async def test_results_wait_while_postgres_is_away_and_no_more_calls_are_made_than_there_is_room(
    own_postgres: EmbeddedPostgres, end: Callable[[EmbeddedPostgres], None], receiver: Receiver
) -> None:
    database = Database(own_postgres.owner_url, own_postgres.service_url)
    async with running_service(make_settings(**SETTINGS), database) as running:
        hook = await add_to(running, f"{receiver.url}/held/{ROOM}")
        await append(running.service.eventlog, EVENTS)
        await receiver.wait_for(
            2 * ROOM
        )  # as many as there is room are open, those before are done
        async with owner_of(own_postgres) as owner:
            async with asyncio.timeout(WITHIN_S):
                while await owner.fetchval(DONE) < ROOM:
                    await asyncio.sleep(0.02)
            backends = [row["pid"] for row in await owner.fetch(BACKENDS)]
        await asyncio.to_thread(end, own_postgres)
        await eventually(lambda: not any(map(is_running, backends)))  # after a crash, one by one
        await asyncio.to_thread(receiver.release)
        await eventually(
            lambda: sample(running, "relay_attempts_total", outcome="success") == 2 * ROOM
        )
        for _ in range(10):  # longer than it waits between two tries
            assert sample(running, "relay_in_flight") == ROOM  # their results wait
            await asyncio.sleep(0.1)
        assert receiver.count() == 2 * ROOM
        await asyncio.to_thread(own_postgres.start)
        async with owner_of(own_postgres) as owner:
            await until_only_lost_claims_are_left(running, owner, EVENTS)
            await pass_time(owner, running.service.relaying.relay.lease_s)
            found = await settled(owner, EVENTS)
            assert found == dict.fromkeys(range(1, EVENTS + 1), "delivered")
            claims = await owner.fetchval(
                "SELECT count(*) FROM causeway.delivery WHERE claim IS NOT NULL"
            )
        assert claims == 0
        # What was done before the end, or while Postgres was away, was not done again.
        assert calls_of(await receiver.wait_for(EVENTS)) == Counter(range(1, EVENTS + 1))
        orphans = await running.service.relaying.deliveries.orphans(hook.webhook_id, 0, EVENTS)
        assert orphans == (0, None)
        await eventually(lambda: sample(running, "relay_in_flight") == 0)
        assert running.fatal == []


def is_running(pid: int) -> bool:
    """Tell whether a process is there and has not ended, waited for by its parent or not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


async def until_only_lost_claims_are_left(running: Running, owner: Connection, events: int) -> None:
    """Wait until the relay has nothing to do: claims that are left are those it never heard of."""
    relay = running.service.relaying.relay
    async with asyncio.timeout(WITHIN_S):
        while (
            await owner.fetchval(DONE_OR_CLAIMED) < events
            or relay._claiming.locked()
            or sample(running, "relay_in_flight") > 0
        ):
            await asyncio.sleep(0.02)


async def test_sessions_killed_again_and_again_lose_no_delivery(
    start: Start, owner: Connection, receiver: Receiver
) -> None:
    running = await start(**SETTINGS)
    hook = await add_to(running, receiver.url + "/slow?s=0.05")
    await append(running.service.eventlog, 200)
    for goal in range(10, 110, 10):
        await receiver.wait_for(goal)
        await owner.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'causeway'"
        )
    await until_only_lost_claims_are_left(running, owner, 200)
    await pass_time(owner, running.service.relaying.relay.lease_s)
    found = await settled(owner, 200)
    assert found == dict.fromkeys(range(1, 201), "delivered")
    called = calls_of(await receiver.wait_for(200))
    assert called.keys() == set(range(1, 201))
    assert called.total() == 200  # a claim whose answer was lost was never sent
    orphans = await running.service.relaying.deliveries.orphans(hook.webhook_id, 0, 200)
    assert orphans == (0, None)
    assert running.fatal == []


async def test_a_result_that_the_database_refused_for_now_is_written_later_and_once(
    start: Start, owner: Connection, receiver: Receiver
) -> None:
    running = await start(**SETTINGS)
    await add_to(running, receiver.url + "/held/0")
    await append(running.service.eventlog, 3)
    await receiver.wait_for(3)
    async with owner.transaction():
        await owner.execute("LOCK TABLE causeway.attempt IN ACCESS EXCLUSIVE MODE")
        await asyncio.to_thread(receiver.release)
        async with asyncio.timeout(WITHIN_S):
            while not (waiting := await owner.fetch(RECORD_WAITS)):
                await asyncio.sleep(0.02)
        for row in waiting:
            await owner.execute("SELECT pg_cancel_backend($1)", row["pid"])
        assert sample(running, "relay_in_flight") == 3
    assert set((await settled(owner, 3)).values()) == {"delivered"}
    assert await owner.fetchval("SELECT count(*) FROM causeway.attempt") == 3
    assert receiver.count() == 3
