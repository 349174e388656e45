"""A real process at its start and its end: its port, SIGTERM with open streams, a second SIGINT."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from service import serve as serving
from service.server import Server, listen
from tests.bridge import body, post
from tests.logkeeping import Owner
from tests.raw import wire
from tests.reader import Block, Cut, Ended, Reader, reading
from tests.running import (
    ROOT,
    START_S,
    STREAM_TOKEN,
    WITHIN_S,
    Database,
    Process,
    environment,
    make_settings,
    service_process,
)

StartProcess = Callable[..., Process]
APPEND_LOCK = "hashtext('causeway'), hashtext('append_events')"


@pytest.fixture
def start_process(database: Database, tmp_path: Path) -> Iterator[StartProcess]:
    """Start a real process on the test's database; settings by their variables' names."""
    with ExitStack() as stack:

        def start(**settings: str) -> Process:
            env = environment(DATABASE_URL=database.service_dsn, **settings)
            return stack.enter_context(service_process(env, tmp_path / "service.log"))

        yield start


async def exit_code(process: Process) -> int:
    return await asyncio.to_thread(process.popen.wait, WITHIN_S)


async def until_not_ready(process: Process, client: httpx2.AsyncClient) -> dict[str, str]:
    """Return the checks of the first answer of `/readyz` that is a 503."""
    async with asyncio.timeout(WITHIN_S):
        while (answer := await client.get(f"{process.url}/readyz")).status_code != 503:
            pass
    checks: dict[str, str] = answer.json()["checks"]
    return checks


async def until_not_listening(process: Process) -> None:
    """Return once the process takes no new connection."""
    host, _, port = process.url.removeprefix("http://").partition(":")
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionError:
                return
            writer.close()
            await asyncio.sleep(0.02)


@asynccontextmanager
async def many_readers(url: str, count: int) -> AsyncIterator[list[Reader]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(reading(url, "from=start")) for _ in range(count)]


async def test_sigterm_ends_500_streams_in_order_while_webhooks_are_still_answered(
    start_process: StartProcess,
) -> None:
    # The drain is the time for all that is asked below before the listener closes.
    process = start_process(CAUSEWAY_DRAIN_S="20", CAUSEWAY_SHUTDOWN_S="60")
    async with (
        httpx2.AsyncClient(timeout=WITHIN_S) as client,
        many_readers(process.url, 500) as readers,
    ):
        for _ in range(3):
            assert (await post(process.url, body(), client=client)).status_code == 200
        async with reading(process.url, "from=start") as watcher:
            await watcher.events(3)  # the window has them
        rests = [asyncio.create_task(reader.rest()) for reader in readers]
        process.popen.send_signal(signal.SIGTERM)
        checks = await until_not_ready(process, client)
        assert checks["draining"] != "ok"
        async with reading(process.url) as late:
            assert (late.status, (await late.error())["code"]) == (503, "draining")
            assert "retry-after" in late.headers
        answers = [await post(process.url, body(), client=client) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200] * 5
        ended = await asyncio.gather(*rests)
    assert await exit_code(process) == 0
    for blocks in ended:
        events = [block.position for block in blocks if block.is_event]
        assert events == list(range(1, len(events) + 1))
        assert len(events) >= 3
        assert blocks[-1].is_checkpoint
        assert blocks[-1].position == len(events)


async def test_streams_do_not_all_end_at_once(start_process: StartProcess) -> None:
    process = start_process(CAUSEWAY_DRAIN_S="120")
    async with many_readers(process.url, 100) as readers:
        open_ = {asyncio.create_task(reader.rest()) for reader in readers}
        process.popen.send_signal(signal.SIGTERM)
        for _ in range(2):  # the rest has minutes
            ended, open_ = await first_to_end(open_)
            assert all(task.result()[-1].is_checkpoint for task in ended)
            assert open_
        process.popen.send_signal(signal.SIGINT)
        await asyncio.gather(*open_, return_exceptions=True)
    assert await exit_code(process) == 0


Rest = asyncio.Task[list[Block]]


async def first_to_end(open_: set[Rest]) -> tuple[set[Rest], set[Rest]]:
    """Return the streams that have ended, once there is one, and those that are open."""
    return await asyncio.wait(open_, timeout=WITHIN_S, return_when=asyncio.FIRST_COMPLETED)


async def test_sigterm_is_not_held_up_by_a_stalled_client(start_process: StartProcess) -> None:
    process = start_process(
        CAUSEWAY_DRAIN_S="0.5", CAUSEWAY_SHUTDOWN_S="1", CAUSEWAY_SEND_TIMEOUT_S="600"
    )
    async with (
        httpx2.AsyncClient(timeout=WITHIN_S) as client,
        reading(process.url, "from=start", receive_bytes=4096) as stalled,
        reading(process.url, "from=start") as good,
    ):
        events = asyncio.create_task(good.events(60))
        for _ in range(60):
            answer = await post(process.url, body(pad="x" * 200_000), client=client)
            assert answer.status_code == 200
        await events
        process.popen.send_signal(signal.SIGTERM)
        rest = await good.rest()
        assert rest[-1].position == 60
        assert await exit_code(process) == 0
        with pytest.raises(Cut):
            while True:
                await stalled.block()
    assert stalled.last_id is not None


async def test_an_append_in_flight_at_sigterm_still_gets_its_200(
    start_process: StartProcess, owner: Owner
) -> None:
    process = start_process(CAUSEWAY_DRAIN_S="0.2", CAUSEWAY_SHUTDOWN_S="60")
    await owner.execute("ALTER FUNCTION causeway.append_events SET lock_timeout = '60s'")
    payload = body()
    async with owner.transaction():
        await owner.execute(f"SELECT pg_advisory_xact_lock({APPEND_LOCK})")
        posting = asyncio.create_task(post(process.url, payload))
        await until_waiting_for_the_lock(owner)
        process.popen.send_signal(signal.SIGTERM)
        await until_not_listening(process)
        assert not posting.done()
    answer = await asyncio.wait_for(posting, WITHIN_S)
    assert (answer.status_code, answer.headers["causeway-position"]) == (200, "1")
    assert await exit_code(process) == 0
    assert await owner.fetchval("SELECT body FROM causeway.event") == payload


async def until_waiting_for_the_lock(owner: Owner) -> None:
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    async with asyncio.timeout(WITHIN_S):
        while await owner.fetchval(waiting) == 0:
            await asyncio.sleep(0.01)


async def test_a_long_poll_is_answered_at_sigterm(start_process: StartProcess) -> None:
    process = start_process(CAUSEWAY_DRAIN_S="0.3", CAUSEWAY_SHUTDOWN_S="20")
    head = f"GET /events?wait=60 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {STREAM_TOKEN}"
    async with wire(process.url) as caller:
        await caller.send(f"{head}\r\n\r\n".encode())  # whole, before the signal
        polling = asyncio.create_task(caller.answer())
        done, _ = await asyncio.wait([polling], timeout=1.0)
        assert not done
        process.popen.send_signal(signal.SIGTERM)
        answer = await polling
    assert answer.status == 200
    assert json.loads(answer.body)["events"] == []
    assert await exit_code(process) == 0


async def test_a_second_sigint_waits_for_nobody(start_process: StartProcess) -> None:
    process = start_process(CAUSEWAY_DRAIN_S="60", CAUSEWAY_SHUTDOWN_S="60")
    async with reading(process.url) as first, reading(process.url) as second:
        process.popen.send_signal(signal.SIGINT)
        async with httpx2.AsyncClient() as client:
            await until_not_ready(process, client)
        process.popen.send_signal(signal.SIGINT)
        assert await exit_code(process) == 0
        for reader in (first, second):
            with pytest.raises((Ended, Cut)):
                while True:
                    await reader.block()


async def test_the_last_event_reaches_streams_that_are_being_drained(
    start_process: StartProcess,
) -> None:
    process = start_process(CAUSEWAY_DRAIN_S="1200")
    async with many_readers(process.url, 4) as readers:
        async with httpx2.AsyncClient() as client:
            process.popen.send_signal(signal.SIGTERM)
            await until_not_ready(process, client)
            assert (await post(process.url, body(), client=client)).status_code == 200
        # The first was told to end at once; those that end later, after minutes, have the event.
        found = await asyncio.gather(
            *(reader.event() for reader in readers), return_exceptions=True
        )
        assert sum(isinstance(event, Ended) for event in found) == 1
        assert [event.position for event in found if isinstance(event, Block)] == [1, 1, 1]
        process.popen.send_signal(signal.SIGINT)
        assert await exit_code(process) == 0


async def test_nobody_is_let_in_before_streams_can_begin(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser's EventSource that is back after a restart gives up for ever at a 503."""
    positions: list[int] = []

    async def serve(self: Server, sockets: list[socket.socket] | None = None) -> None:
        del sockets
        positions.append(self._service.window.position)

    monkeypatch.setattr(Server, "serve", serve)
    monkeypatch.setattr(serving, "calm_garbage_collector", lambda: None)
    monkeypatch.setattr(serving, "BEGIN_S", WITHIN_S)
    settings = make_settings()
    with listen(settings) as sock:
        assert await serving._serve(settings, database.service_dsn, sock, {}) == 0
    assert positions == [0]


def test_a_port_in_use_is_one_sentence_that_names_the_setting(
    database: Database,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        env = environment(DATABASE_URL=database.service_dsn, CAUSEWAY_PORT=str(port))
        done = subprocess.run(
            [sys.executable, "-m", "service", "serve"],
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=START_S,
        )
    assert done.returncode == 1
    assert f"CAUSEWAY_PORT={port}" in done.stderr
    assert "in use" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
