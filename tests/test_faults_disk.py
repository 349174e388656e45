"""Postgres' disk is full for a while: 503 until there is room, nothing is lost, and it goes on."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import asyncpg
import pytest

from service.embedded import EmbeddedPostgres
from service.errors import CausewayError
from service.migrate import migrate
from tests.bridge import body, post
from tests.chaos.disk import Disk, Missing, slow_commits, small_disk
from tests.conftest import REQUIRE_ALL
from tests.faulty import assert_all_in_log_once, assert_each_once, assert_polite
from tests.load import under_load
from tests.logkeeping import sample
from tests.reader import reading
from tests.running import WITHIN_S, Database, Running, eventually, make_settings, running_service
from tests.test_receive import append_lock

MEGABYTES = {"data": 200, "wal": 100}
COMMIT_S = 0.1
SENDERS = 40
AGAIN_S = 180.0  # Postgres may have to start again, and again


@pytest.fixture
async def disk(request: pytest.FixtureRequest) -> AsyncIterator[Disk]:
    try:
        with small_disk(MEGABYTES[request.param]) as disk:
            yield disk
    except Missing as missing:
        assert not REQUIRE_ALL, str(missing)
        pytest.skip(str(missing))


@pytest.fixture
async def cramped(disk: Disk, request: pytest.FixtureRequest) -> AsyncIterator[EmbeddedPostgres]:
    """A Postgres on the small disk: all of it, or only its write-ahead log."""
    folder = Path(tempfile.mkdtemp(prefix="causeway-disk-", dir="/tmp"))
    folder.chmod(0o755)
    postgres = EmbeddedPostgres(disk.folder if request.node.callspec.id == "data" else folder)
    try:
        with postgres:
            await migrate(postgres.owner_url)
            await postgres.allow_service_login()
        if request.node.callspec.id == "wal":
            disk.hold_wal(postgres.data_dir)
        with postgres:
            yield postgres
    finally:
        shutil.rmtree(folder)


async def begin_wal_segment(postgres: EmbeddedPostgres) -> None:
    """Begin a segment of the write-ahead log, so that this disk's end is not the log's as well."""
    connection = await asyncpg.connect(postgres.owner_url, timeout=WITHIN_S)
    try:
        await connection.execute("SELECT pg_switch_wal()")
        await connection.execute("SELECT pg_logical_emit_message(false, '', '')")
    finally:
        await connection.close()


async def use_up_wal(postgres: EmbeddedPostgres) -> None:
    """Go from one segment of the write-ahead log to the next, until there is none."""
    with suppress(asyncpg.PostgresError, OSError):
        connection = await asyncpg.connect(postgres.owner_url, timeout=WITHIN_S)
        try:
            async with asyncio.timeout(WITHIN_S):
                while True:
                    await connection.execute("SELECT pg_logical_emit_message(false, '', '')")
                    await connection.execute("SELECT pg_switch_wal()")
        finally:
            connection.terminate()


async def keep(postgres: EmbeddedPostgres) -> None:
    """Start Postgres again whenever it is down, as an operator's supervisor does."""
    while True:
        with suppress(CausewayError):
            await postgres.keep_running()
        await asyncio.sleep(0.2)


@pytest.mark.parametrize("disk", ["data", "wal"], indirect=True, ids=["data", "wal"])
async def test_a_full_disk_is_503_and_with_room_again_everything_goes_on(
    disk: Disk, cramped: EmbeddedPostgres, request: pytest.FixtureRequest
) -> None:
    is_wal = request.node.callspec.id == "wal"
    database = Database(cramped.owner_url, cramped.service_url)
    async with (
        running_service(make_settings(), database) as running,
        reading(running.url, "from=start") as reader,
    ):
        keeping = asyncio.create_task(keep(cramped))
        async with under_load(running.url) as load:
            await eventually(lambda: len(load.accepted) > 50)
            if not is_wal:
                await begin_wal_segment(cramped)
            disk.fill()
            if is_wal:
                await use_up_wal(cramped)
            refused = len(load.refused)
            await eventually(lambda: len(load.refused) > refused + 50, within_s=AGAIN_S)
            accepted = len(load.accepted)
            assert disk.free_bytes < 2**20  # Postgres itself may give back a little
            disk.give_back()
            await eventually(lambda: len(load.accepted) > accepted + 50, within_s=AGAIN_S)
        keeping.cancel()
        for answer in load.refused:
            assert_polite(answer)
        assert load.lost == 0
        await assert_each_once(reader, len(load.accepted))
        connection = await asyncpg.connect(cramped.owner_url)
        try:
            await assert_all_in_log_once(connection, load)
        finally:
            await connection.close()
        assert running.fatal == []
    server_log = "".join(path.read_text() for path in (cramped.data_dir / "log").glob("*.log"))
    assert ("PANIC" in server_log) == is_wal


async def test_slow_commits_cost_time_for_each_batch_and_not_for_each_event(
    postgres: EmbeddedPostgres, database: Database, start: Callable[..., Awaitable[Running]]
) -> None:
    running = await start(append_timeout_s=300.0)

    def batches() -> tuple[float, float]:
        """Return how many there were, and how many events they had."""
        name = "append_batch_events"
        return sample(running, f"{name}_count"), sample(running, f"{name}_sum")

    def queued() -> float:
        return sample(running, "append_queue_events")

    async with reading(running.url, "from=start") as reader:
        async with slow_commits(postgres.owner_url, COMMIT_S):
            # The server takes its settings up a moment after it was told.
            await _until_an_append_takes(running, COMMIT_S)
            before = batches()
            async with AsyncExitStack() as held:
                await held.enter_async_context(append_lock(database))
                async with under_load(running.url, senders=SENDERS) as load:
                    await eventually(lambda: batches()[1] + queued() == before[1] + SENDERS)
                    load.is_over = True
                    await held.aclose()
        # One commit was under way, and all that came meanwhile was the next.
        count, events = batches()
        assert events == before[1] + SENDERS
        assert before[0] < count <= before[0] + 2
        assert load.refused == []
        await assert_each_once(reader, int(events))


async def _until_an_append_takes(running: Running, seconds: float) -> None:
    async with asyncio.timeout(WITHIN_S):
        while True:
            began = time.monotonic()
            assert (await post(running.url, body())).status_code == 200
            if time.monotonic() - began >= seconds:
                return
