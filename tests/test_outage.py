"""Postgres goes away and comes back under load: no 200 is lost, streams stay, nobody helps."""

import asyncio
import hashlib
import os
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path

import asyncpg
import httpx2
import pytest

from service import app as app_module
from service import db
from service.embedded import EmbeddedPostgres
from service.migrate import migrate
from tests.bridge import body, post
from tests.load import Load, under_load
from tests.logkeeping import (
    SMALL_BYTES,
    STALLING_EVENTS,
    Owner,
    impatient,
    sample,
    stall,
)
from tests.reader import Reader, reading
from tests.running import WITHIN_S, Database, Running, eventually, make_settings, running_service

Start = Callable[..., Awaitable[Running]]
APPEND_LOCK = "hashtext('causeway'), hashtext('append_events')"


async def assert_all_in_log_once(connection: Owner, load: Load) -> None:
    """Every 200, and nothing else, is in the log, once; positions are dense."""
    rows = await connection.fetch("SELECT position, digest FROM causeway.event ORDER BY position")
    assert [row["position"] for row in rows] == list(range(1, len(rows) + 1))
    digests = [row["digest"] for row in rows]
    assert len(set(digests)) == len(digests)
    assert set(digests) == {hashlib.sha256(payload).digest() for payload in load.accepted}
    assert sorted(load.accepted) == sorted(load.sent)


def assert_polite(load: Load) -> None:
    """Whatever was not 200 was a 503 that says when to come back."""
    assert load.refused
    assert load.lost == 0
    for answer in load.refused:
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["error"]["code"] in ("log_unavailable", "overloaded")


async def assert_each_once(reader: Reader, head: int) -> None:
    """The one open connection brought every position up to `head`, in order."""
    while not (seen := [b.position for b in reader.seen if b.is_event]) or seen[-1] < head:
        await reader.block()
    assert seen == list(range(1, head + 1))


async def wait_for_ready(running: Running, status: int) -> None:
    async with asyncio.timeout(WITHIN_S), httpx2.AsyncClient() as client:
        while (await client.get(f"{running.url}/readyz")).status_code != status:
            await asyncio.sleep(0.02)


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A Postgres that the test may stop."""
    folder = Path(tempfile.mkdtemp(prefix="causeway-outage-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        with EmbeddedPostgres(folder) as server:
            yield server
    finally:
        shutil.rmtree(folder)


def crash(postgres: EmbeddedPostgres) -> None:
    assert postgres.pid is not None
    os.kill(postgres.pid, signal.SIGKILL)


@pytest.mark.parametrize("end", [EmbeddedPostgres.stop, crash])
async def test_postgres_goes_and_comes_back_under_load(
    own_postgres: EmbeddedPostgres,
    end: Callable[[EmbeddedPostgres], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app_module, "STALE_READ_S", 0.5)
    await migrate(own_postgres.owner_url)
    await own_postgres.allow_service_login()
    database = Database(own_postgres.owner_url, own_postgres.service_url)
    settings = make_settings(heartbeat_s=0.3, checkpoint_events=20, window_events=50)
    async with running_service(settings, database) as running, AsyncExitStack() as stack:
        live = await stack.enter_async_context(reading(running.url, "from=start"))
        filtered = await stack.enter_async_context(
            reading(running.url, "from=start&type=user.deleted")
        )
        async with under_load(running.url) as load:
            await eventually(lambda: len(load.accepted) > 50)
            await live.events(20)
            await asyncio.to_thread(end, own_postgres)
            await eventually(lambda: len(load.refused) > 20)
            await wait_for_ready(running, 503)
            async with reading(running.url, "from=start") as late:
                assert (late.status, (await late.error())["code"]) == (503, "log_unavailable")
                assert int(late.headers["retry-after"]) > 0
            accepted = len(load.accepted)
            await asyncio.to_thread(own_postgres.start)
            await eventually(lambda: len(load.accepted) > accepted + 50)
        await wait_for_ready(running, 200)
        assert_polite(load)
        await assert_each_once(live, len(load.accepted))
        connection = await asyncpg.connect(own_postgres.owner_url)
        try:
            await assert_all_in_log_once(connection, load)
            wanted = await connection.fetch(
                "SELECT position FROM causeway.event WHERE topic = 'user.deleted' ORDER BY position"
            )
        finally:
            await connection.close()
        expected = [row["position"] for row in wanted]
        while len(seen := [b.position for b in filtered.seen if b.is_event]) < len(expected):
            await filtered.block()
        assert seen == expected
        assert sample(running, "stream_subscribers") == 2  # the same two as in the beginning
        assert running.fatal == []


async def test_a_stream_that_catches_up_stays_open_while_postgres_is_away(
    own_postgres: EmbeddedPostgres,
) -> None:
    await migrate(own_postgres.owner_url)
    await own_postgres.allow_service_login()
    database = Database(own_postgres.owner_url, own_postgres.service_url)
    settings = make_settings(heartbeat_s=0.2, window_events=10)
    async with (
        running_service(settings, database) as running,
        reading(running.url, "from=start", receive_bytes=SMALL_BYTES) as reader,
    ):
        await stall(running)
        await asyncio.to_thread(own_postgres.stop)
        got: list[int] = []
        while (block := await reader.block()).comments != ("",) or not got:
            got.extend([block.position] if block.is_event else [])
        assert got[-1] < STALLING_EVENTS  # it has what was on its way, and waits
        await asyncio.to_thread(own_postgres.start)
        await assert_each_once(reader, STALLING_EVENTS)


async def test_sessions_killed_again_and_again_lose_nothing(start: Start, owner: Owner) -> None:
    running = await start(window_events=20)
    async with (
        reading(running.url, "from=start") as reader,
        under_load(running.url) as load,
    ):
        for _ in range(8):
            accepted = len(load.accepted)
            await owner.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name = 'causeway'"
            )
            await eventually(lambda goal=accepted + 20: len(load.accepted) > goal)
        load.is_over = True
        await eventually(lambda: len(load.accepted) == len(load.sent))
        await assert_each_once(reader, len(load.accepted))
    await assert_all_in_log_once(owner, load)
    for answer in load.refused:
        assert answer.status_code == 503
    assert running.fatal == []


@pytest.mark.parametrize("limit", ["lock_timeout", "append_timeout"])
async def test_a_stranger_that_holds_the_append_lock_costs_time_and_no_event(
    start: Start, owner: Owner, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    if limit == "lock_timeout":
        monkeypatch.setitem(db.SESSION, "lock_timeout", "300ms")
    running = await start()
    async with reading(running.url, "from=start") as reader:
        await owner.execute(f"SELECT pg_advisory_lock({APPEND_LOCK})")
        async with under_load(running.url, senders=3) as load:
            short = impatient(running, 0.5) if limit == "append_timeout" else nullcontext()
            with short:  # and no more of it once the lock is free
                await eventually(lambda: len(load.refused) >= 6)
            assert load.accepted == []
            assert await owner.fetchval("SELECT count(*) FROM causeway.event") == 0
            load.is_over = True
            await owner.execute(f"SELECT pg_advisory_unlock({APPEND_LOCK})")
        assert_polite(load)
        assert len(load.accepted) == 3
        await assert_each_once(reader, 3)
    await assert_all_in_log_once(owner, load)


async def test_a_session_killed_in_the_middle_of_an_append_gets_503_and_the_retry_200(
    start: Start, owner: Owner
) -> None:
    running = await start()
    payload = body()
    async with owner.transaction():
        await owner.execute(f"SELECT pg_advisory_xact_lock({APPEND_LOCK})")
        posting = asyncio.create_task(post(running.url, payload))
        async with asyncio.timeout(WITHIN_S):
            while not await owner.fetchval(
                "SELECT bool_or(pg_terminate_backend(pid)) FROM pg_locks "
                "WHERE locktype = 'advisory' AND NOT granted"
            ):
                await asyncio.sleep(0.01)
        answer = await posting
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "log_unavailable"
    assert await owner.fetchval("SELECT count(*) FROM causeway.event") == 0
    again = await post(running.url, payload)
    assert (again.status_code, again.headers["causeway-position"]) == (200, "1")
