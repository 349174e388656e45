"""A standby takes over: nothing that was answered 200 is lost, and what is lost shows as 409."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import httpx2
import pytest

from service.db import create_pool
from service.embedded import EmbeddedPostgres
from service.eventlog import EventLog
from service.migrate import migrate
from tests.bridge import body, new_event, post
from tests.chaos.proxy import proxy_to
from tests.chaos.standby import Standby, crash, set_synchronous, standby_of
from tests.consuming import call, look, make
from tests.faulty import (
    assert_all_in_log_once,
    assert_each_once,
    assert_polite,
    behind_proxy,
    wait_for_ready,
)
from tests.load import under_load
from tests.logkeeping import Owner, append, id_of, sample
from tests.reader import Block, follow, reading
from tests.receiver import Receiver
from tests.relaying import RELAY, add_to, calls_of, pass_time, settled
from tests.running import WITHIN_S, Database, Running, eventually, make_settings, running_service

KEPT, LOST = 10, 5
COUNT = "SELECT count(*) FROM causeway.event"


@pytest.fixture
async def primary() -> AsyncIterator[EmbeddedPostgres]:
    """A Postgres that the test may end, ready for a service."""
    folder = Path(tempfile.mkdtemp(prefix="causeway-failover-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        with EmbeddedPostgres(folder) as server:
            await migrate(server.owner_url)
            await server.allow_service_login()
            yield server
    finally:
        shutil.rmtree(folder)


def database_of(server: EmbeddedPostgres | Standby) -> Database:
    return Database(server.owner_url, server.service_url)


@asynccontextmanager
async def owner_of(server: EmbeddedPostgres | Standby) -> AsyncIterator[Owner]:
    connection = await asyncpg.connect(server.owner_url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def subscribed(running: Running) -> AsyncIterator[tuple[list[Block], list[Block]]]:
    """Let two clients follow, one as a named consumer, and resume whenever they are cut off."""
    await make(running.url, "billing", ack_mode="auto")
    plain: list[Block] = []
    named: list[Block] = []
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(follow(running.url, plain)),
            group.create_task(follow(running.url, named, query="consumer=billing")),
        ]
        yield plain, named
        for task in tasks:
            task.cancel()


async def test_a_synchronous_standby_takes_over_under_load_and_nobody_notices_but_by_503(
    primary: EmbeddedPostgres,
) -> None:
    async with AsyncExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        standby = await stack.enter_async_context(standby_of(primary, is_synchronous=True))
        first = await stack.enter_async_context(proxy_to(primary.service_url))
        second = await stack.enter_async_context(proxy_to(standby.service_url))
        hosts = f"127.0.0.1:{second.port},127.0.0.1:{first.port}"
        dsn = first.dsn(primary.service_url).replace(f"127.0.0.1:{first.port}", hosts)
        dsn += "?target_session_attrs=read-write"
        database = Database(primary.owner_url, dsn)
        settings = make_settings(**RELAY, send_timeout_s=3600)  # one reads only in the end
        running = await stack.enter_async_context(running_service(settings, database))
        await add_to(running, f"{receiver.url}/good")
        live = await stack.enter_async_context(reading(running.url, "from=start"))
        plain, named = await stack.enter_async_context(subscribed(running))
        async with under_load(running.url) as load:
            await eventually(lambda: len(load.accepted) > 100)
            crash(primary)
            await eventually(lambda: load.refused)
            await standby.promote()
            await set_synchronous(standby, "")
            accepted = len(load.accepted)
            await eventually(lambda: len(load.accepted) > accepted + 100)
        for answer in load.refused:
            assert_polite(answer)
        head = len(load.accepted)
        async with owner_of(standby) as owner:
            await assert_all_in_log_once(owner, load)
            await pass_time(owner, 3600)  # what was claimed and not heard of is due again
        await assert_each_once(live, head)
        await eventually(lambda: named and named[-1].position == head)
        assert sorted({block.position for block in named}) == [*range(1, head + 1)]
        await eventually(lambda: plain and plain[-1].position == head)
        assert [block.position for block in plain] == [*range(1, head + 1)]
        await eventually(lambda: len(calls_of(receiver.requests())) == head)
        calls = calls_of(receiver.requests())
        assert sorted(calls) == [*range(1, head + 1)]
        await wait_for_ready(running, 200)
        assert sample(running, "log_damaged") == 0
        assert running.fatal == []


async def until_taken(running: Running, payload: bytes) -> httpx2.Response:
    """Send an event as Bridge does, until the answer is 200: a standby may take its time."""
    async with asyncio.timeout(WITHIN_S):
        while (answer := await post(running.url, payload)).status_code != 200:
            assert_polite(answer)
    return answer


async def test_a_retry_is_not_200_before_a_synchronous_standby_has_its_event(
    primary: EmbeddedPostgres,
) -> None:
    async with (
        standby_of(primary, is_synchronous=True) as standby,
        behind_proxy(database_of(primary), append_timeout_s=1.0) as (running, proxy),
        owner_of(primary) as owner,
    ):
        await until_taken(running, body())
        await standby.cut()
        payload = body()
        async with asyncio.timeout(WITHIN_S):  # it may be given up before it gets to its commit
            while await owner.fetchval(COUNT) == 1:
                assert_polite(await post(running.url, payload), "log_unavailable")
        # Whose wait for a standby was cancelled is committed here, and known from now on.
        assert_polite(await post(running.url, payload), "log_unavailable")
        assert await owner.fetchval(COUNT) == 2
        await standby.join()
        answer = await until_taken(running, payload)
        assert answer.headers["causeway-position"] == "2"
        crash(primary)
        await standby.promote()
        await set_synchronous(standby, "")
        proxy.point_to(standby.service_url)
        async with owner_of(standby) as successor:
            assert await successor.fetchval(COUNT) == 2


async def test_a_wait_for_the_standby_that_somebody_cancels_is_no_200(
    primary: EmbeddedPostgres,
) -> None:
    async with (
        standby_of(primary, is_synchronous=True) as standby,
        running_service(make_settings(append_timeout_s=600), database_of(primary)) as running,
        owner_of(primary) as owner,
    ):
        assert (await post(running.url, body())).status_code == 200
        await standby.cut()
        payload = body()
        posting = asyncio.create_task(post(running.url, payload))
        await _cancel_the_wait(owner, "append_events")
        assert_polite(await posting, "log_unavailable")
        making = asyncio.create_task(call(running.url, "PUT", "/consumers/new", {}))
        await _cancel_the_wait(owner, "COMMIT")
        assert_polite(await making, "log_unavailable")
        await standby.join()
        answer = await post(running.url, payload)
        assert (answer.status_code, answer.headers["causeway-duplicate"]) == (200, "true")
        assert (await call(running.url, "PUT", "/consumers/new", {})).status_code == 200


async def _cancel_the_wait(owner: Owner, statement: str) -> None:
    """Cancel the wait of a statement that commits, as an operator does who wants it over."""
    async with asyncio.timeout(WITHIN_S):
        while not await owner.fetchval(
            "SELECT bool_or(pg_cancel_backend(pid)) FROM pg_stat_activity "
            "WHERE wait_event = 'SyncRep' AND strpos(query, $1) > 0",
            statement,
        ):
            await asyncio.sleep(0.05)


async def test_events_that_an_asynchronous_standby_lacked_show_as_409_to_all_who_saw_them(
    primary: EmbeddedPostgres,
) -> None:
    async with AsyncExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        standby = await stack.enter_async_context(standby_of(primary, is_synchronous=False))
        running, proxy = await stack.enter_async_context(
            behind_proxy(database_of(primary), **RELAY)
        )
        await add_to(running, f"{receiver.url}/good")
        await make(running.url, "all", ack_mode="auto")
        await make(running.url, "explicit")
        await make(running.url, "narrow", ack_mode="auto", filter={"types": ["user.deleted"]})
        queries = ("from=start", *(f"consumer={name}" for name in ("all", "explicit", "narrow")))
        await append(running, *(new_event() for _ in range(KEPT)))
        async with owner_of(primary) as owner:
            await settled(owner, KEPT)  # written down, so that no lease outlives the primary
        before = await id_of(running, KEPT)
        readers = [await stack.enter_async_context(reading(running.url, q)) for q in queries]
        await standby.caught_up()  # it knows these leases
        await standby.cut()
        await append(running, *(new_event() for _ in range(LOST)))
        for reader in readers[:3]:
            await assert_each_once(reader, KEPT + LOST)
        await eventually(lambda: receiver.count() == KEPT + LOST)
        await _until_placed(running.url, "narrow", KEPT + LOST)
        seen = await id_of(running, KEPT + LOST)
        crash(primary)
        await standby.promote()
        await _append_others(standby)
        proxy.point_to(standby.service_url)
        for reader in readers:  # who is connected is cut off, and gets no id of another history
            await reader.rest()
            assert reader.last_id is None or int(reader.last_id.partition(".")[0]) <= KEPT + LOST
        await eventually(lambda: sample(running, "log_damaged") == 1)
        await _assert_told(running, seen)
        await _assert_goes_on(running, before)
        # No receiver takes two events for one because they had one position, before and after.
        await eventually(lambda: len(_sent(receiver)) == 2 * KEPT + LOST)
        assert len({id_ for position, id_ in _sent(receiver) if position == KEPT + 1}) == 2


async def test_a_service_that_was_led_to_a_read_only_server_finds_the_primary_by_itself(
    database: Database, owner: Owner
) -> None:
    name = await owner.fetchval("SELECT current_database()")
    await owner.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    async with running_service(make_settings(), database) as running:
        assert_polite(await post(running.url, body()), "log_unavailable")
        # As when the address moves: new connections lead elsewhere, old ones live on.
        await owner.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        assert (await post(running.url, body())).status_code == 200


def _sent(receiver: Receiver) -> set[tuple[int, str]]:
    """Return the positions and the ids of the events that a receiver was sent."""
    return {
        (int(call.headers["causeway-position"]), call.headers["webhook-id"])
        for call in receiver.requests()
    }


async def _until_placed(url: str, name: str, position: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        while (await look(url, name))["position"] != position:
            await asyncio.sleep(0.02)


async def _append_others(standby: Standby) -> None:
    """Give the lost positions, and more, to other events: what the narrow consumer waits for."""
    async with create_pool(standby.service_url, max_size=1) as pool:
        others = [new_event("user.deleted") for _ in range(KEPT)]
        appended = await EventLog(pool).append(others, timeout_s=30)
    assert appended[0].position == KEPT + 1


async def _assert_told(running: Running, seen: str) -> None:
    """Whoever says that it saw a lost event gets 409, whatever it asks."""
    said = {"last-event-id": seen}
    async with httpx2.AsyncClient(base_url=running.url, headers=running.headers) as client:
        for answer in (
            await client.get("/stream", headers=said),
            await client.get("/stream", params={"after": seen}),
            await client.get("/stream", params={"consumer": "all"}, headers=said),
            await client.get("/events", params={"after": seen}),
            await client.post("/consumers/all/ack", json={"position": seen}),
            await client.post("/consumers/explicit/ack", json={"position": seen}),
            await client.post("/consumers/narrow/ack", json={"position": seen}),
        ):
            assert answer.status_code == 409, answer.request.url
            code = answer.json()["error"]["code"]
            assert code in ("log_diverged", "ack_ahead"), answer.request.url


async def _assert_goes_on(running: Running, before: str) -> None:
    """Who saw no lost event, or whose place the server keeps, gets all that is in the log now."""
    head = 2 * KEPT
    async with reading(running.url, last_event_id=before) as reader:
        assert [(await reader.event()).position for _ in range(KEPT)] == [
            *range(KEPT + 1, head + 1)
        ]
    for name in ("all", "explicit", "narrow"):
        async with reading(running.url, f"consumer={name}") as reader:
            while (block := await reader.event()).position <= KEPT:
                pass
            rest = [block.position, *[b.position for b in await reader.events(KEPT - 1)]]
            assert rest == [*range(KEPT + 1, head + 1)], name
