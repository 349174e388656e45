"""The main job on a real process: webhooks in, events out through clients as people use them.

Between the first and the second half of each journey the process is killed as by a crash. What
resumes by itself must do so: no event is missed, none comes twice, no byte is changed.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.client import subscribe
from service.embedded import EmbeddedPostgres
from tests.bridge import body, post
from tests.conftest import REQUIRE_ALL, need_program
from tests.load import Load, under_load
from tests.reader import Block, follow
from tests.running import (
    STREAM_TOKEN,
    WITHIN_S,
    Database,
    Process,
    environment,
    eventually,
    service_process,
)

TYPES = ("item.created", "item.refreshed", "item.account.updated", "ACCOUNT_UPDATED")
CLIENT_FOLDER = Path(__file__).parent / "eventsource"

Line = dict[str, Any]


def payloads() -> list[bytes]:
    """Return an event of each type, one with more than one line."""
    pretty = json.dumps(json.loads(body("item.created", balance=10.5)), indent=1).encode()
    return [body(type_, text="Crédit — 10 €") for type_ in TYPES] + [pretty]


async def send(url: str, bodies: list[bytes]) -> None:
    for payload in bodies:
        assert (await post(url, payload)).status_code == 200


async def journey(
    database: Database,
    log: Path,
    is_open: Callable[[], bool],
    seen: Callable[[], Awaitable[list[Line]]],
    begin: Callable[[Process], Awaitable[None]],
    resume: Callable[[Process], Awaitable[None]],
) -> None:
    """Send events before and after a crash; all must come out of `seen`, once and in order."""
    env = environment(DATABASE_URL=database.service_dsn)
    first, second = payloads(), payloads()
    with service_process(env, log) as process:
        await send(process.url, first[:2])
        await begin(process)
        await eventually(is_open)
        await send(process.url, first[2:])
        await until(seen, len(first))
        process.kill()
    with service_process(env, log) as process:
        await send(process.url, second)
        await resume(process)
        lines = await until(seen, len(first) + len(second))
        assert process.terminate() == 0
    assert [line["data"].encode() for line in lines] == first + second
    assert [int(line["id"].partition(".")[0]) for line in lines] == list(range(1, 11))
    assert {line["type"] for line in lines} == set(TYPES)


async def until(seen: Callable[[], Awaitable[list[Line]]], count: int) -> list[Line]:
    """Return what was seen once it is `count` events; clients rest for a while before a retry."""
    async with asyncio.timeout(3 * WITHIN_S):
        while len(lines := await seen()) < count:
            await asyncio.sleep(0.02)
    return lines


async def nothing(_process: Process) -> None:
    """A client that resumes by itself needs nothing."""


# Python: httpx2's EventSource.


async def test_httpx2s_eventsource(database: Database, tmp_path: Path) -> None:
    lines: list[Line] = []
    tasks: list[asyncio.Task[None]] = []

    async def read(process: Process) -> None:
        headers = process.headers | ({"last-event-id": lines[-1]["id"]} if lines else {})
        url = f"{process.url}/stream?from=start"
        async with (
            httpx2.AsyncClient(timeout=WITHIN_S) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            async for event in httpx2.EventSource(response):
                if event.data:
                    line = {"id": event.id, "type": event.event, "data": event.data}
                    lines.append(line)

    async def begin(process: Process) -> None:
        tasks.append(asyncio.create_task(read(process)))

    async def seen() -> list[Line]:
        return lines

    await journey(database, tmp_path / "log", lambda: bool(lines), seen, begin, begin)
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_causeways_own_client(database: Database, tmp_path: Path) -> None:
    lines: list[Line] = []
    tasks: list[asyncio.Task[None]] = []

    async def read(url: str) -> None:
        async for event in subscribe(url, STREAM_TOKEN, from_start=True):
            line = {"id": event.id, "type": event.type, "data": event.data.decode()}
            lines.append(line)

    async def begin(process: Process) -> None:
        tasks.append(asyncio.create_task(read(process.url)))

    async def seen() -> list[Line]:
        return lines

    await journey(database, tmp_path / "log", lambda: bool(lines), seen, begin, nothing)
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# curl.


async def test_curl(database: Database, tmp_path: Path) -> None:
    curl = need_program("curl")
    outputs = [tmp_path / "first", tmp_path / "second"]
    started: list[subprocess.Popen[bytes]] = []

    async def begin(process: Process) -> None:
        with outputs[len(started)].open("wb") as output:
            headers = [f"Authorization: Bearer {STREAM_TOKEN}"]
            headers += [f"Last-Event-ID: {(await seen())[-1]['id']}"] if started else []
            words = [word for header in headers for word in ("-H", header)]
            command = [curl, "-sN", *words, f"{process.url}/stream?from=start"]
            started.append(subprocess.Popen(command, stdout=output))

    async def seen() -> list[Line]:
        # What is written just now may end within a letter.
        texts = [path.read_text(errors="replace") for path in outputs if path.exists()]
        whole = [block for text in texts for block in text.split("\n\n")[:-1]]
        blocks = [block for block in map(Block.parse, whole) if block.is_event]
        return [{"id": b.id, "type": b.event, "data": b.data} for b in blocks]

    await journey(database, tmp_path / "log", outputs[0].exists, seen, begin, begin)
    first, second = [process.wait(WITHIN_S) for process in started]
    assert first != 0  # cut by the crash
    assert second == 0  # ended in order


# Node: npm's eventsource.


@pytest.fixture
def node_client(tmp_path: Path) -> Path:
    """The client's folder with its packages; skipped by name where they cannot be installed."""
    need_program("node")
    npm = need_program("npm")
    folder = tmp_path / "eventsource"
    shutil.copytree(CLIENT_FOLDER, folder, ignore=shutil.ignore_patterns("node_modules"))
    command = [npm, "ci", "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        if REQUIRE_ALL:
            pytest.fail(f"npm ci: {done.stderr[-500:]}")
        pytest.skip("npm's eventsource cannot be installed here")
    return folder


async def test_npms_eventsource_under_node(
    database: Database, tmp_path: Path, node_client: Path
) -> None:
    output = tmp_path / "node-output"
    started: list[subprocess.Popen[bytes]] = []

    async def begin(process: Process) -> None:
        url = f"{process.url}/stream?from=start"
        command = [need_program("node"), "client.js", url, STREAM_TOKEN, *TYPES]
        with output.open("wb") as stdout:
            started.append(subprocess.Popen(command, cwd=node_client, stdout=stdout))

    async def seen() -> list[Line]:
        whole = output.read_text(errors="replace").split("\n")[:-1]
        return [line for line in map(json.loads, whole) if line["type"] != "open"]

    try:
        await journey(
            *(database, tmp_path / "log", lambda: b'"open"' in output.read_bytes()),
            *(seen, begin, nothing),
        )
    finally:
        for process in started:
            process.kill()
            process.wait()


# A browser: Chromium's own EventSource, on a page of the service.

SUBSCRIBE = """
window.seen = [];
window.opened = 0;
const source = new EventSource("/stream?from=start&access_token=" + arguments[0]);
source.onopen = () => { window.opened += 1; };
for (const type of arguments[1]) {
  source.addEventListener(type, (e) => {
    window.seen.push({type, id: e.lastEventId, data: e.data});
  });
}
"""
CHROMIUM_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *(
        "--disable-sync",
        "--disable-default-apps",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ),
)


STARTED = re.compile(r"started successfully on port (\d+)\.")


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """A headless Chromium, and a client of its WebDriver session."""
    chromium, driver = need_program("chromium", "google-chrome"), need_program("chromedriver")
    output = folder / "chromedriver-output"
    with output.open("wb") as stdout:
        process = subprocess.Popen([driver, "--port=0"], stdout=stdout, start_new_session=True)
    try:
        await eventually(lambda: STARTED.search(output.read_text()))
        started = STARTED.search(output.read_text())
        assert started is not None
        port = started[1]
        options = [*CHROMIUM_OPTIONS, f"--user-data-dir={folder / 'profile'}"]
        wish = {"goog:chromeOptions": {"binary": chromium, "args": options}}
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as driving:
            answer = await driving.post("/session", json={"capabilities": {"alwaysMatch": wish}})
            assert answer.status_code == 200, answer.text
            session = f"/session/{answer.json()['value']['sessionId']}/"
            driving.base_url = driving.base_url.join(session)
            try:
                yield driving
            finally:
                answer = await driving.delete(str(driving.base_url).rstrip("/"))
                assert answer.status_code == 200, answer.text
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the driver, and a browser that did not quit
        process.wait()


async def test_a_browsers_eventsource(database: Database, tmp_path: Path) -> None:
    async with browser(tmp_path) as driving:

        async def run(script: str, *arguments: object) -> Any:
            wish = {"script": script, "args": arguments}
            answer = await driving.post("execute/sync", json=wish)
            assert answer.status_code == 200, answer.text
            return answer.json()["value"]

        async def begin(process: Process) -> None:
            await driving.post("url", json={"url": f"{process.url}/livez"})
            await run(SUBSCRIBE, STREAM_TOKEN, TYPES)
            async with asyncio.timeout(WITHIN_S):
                while not await run("return window.opened"):
                    await asyncio.sleep(0.02)

        async def seen() -> list[Line]:
            lines: list[Line] = await run("return window.seen")
            return lines

        await journey(database, tmp_path / "log", lambda: True, seen, begin, nothing)
        assert await run("return window.opened") == 2


# Crashes in the middle of everything.


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data folder that Postgres' own user can reach; nothing is left running on it."""
    folder = Path(tempfile.mkdtemp(prefix="causeway-journey-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        with EmbeddedPostgres(folder):  # takes over what a failed test left
            pass
        shutil.rmtree(folder)


@asynccontextmanager
async def running_process(env: dict[str, str], log: Path) -> AsyncIterator[Process]:
    """Run a real process; calls go on, and fail, while it starts."""
    process = service_process(env, log)
    yield await asyncio.to_thread(process.__enter__)
    await asyncio.to_thread(process.__exit__, None, None, None)


async def crash_again_and_again(env: dict[str, str], log: Path, times: int) -> None:
    """Kill the process under load; every 200 is in the log once, every reader sees all once."""
    url = f"http://127.0.0.1:{env['CAUSEWAY_PORT']}"
    everything: list[Block] = []
    filtered: list[Block] = []
    async with asyncio.TaskGroup() as group, under_load(url) as load:
        readers = [
            group.create_task(follow(url, everything)),
            group.create_task(follow(url, filtered, query="from=start&type=user.*")),
        ]
        for _ in range(times):
            async with running_process(env, log) as process:
                await eventually(more_accepted(load, 100))
                lost = load.lost
                process.kill()
                await eventually(lambda lost=lost: load.lost > lost)
        async with running_process(env, log) as process:
            await eventually(more_accepted(load, 100))
            load.is_over = True
            await eventually(lambda: len(load.accepted) == len(load.sent))
            deleted = sum(b"user.deleted" in payload for payload in load.accepted)
            await eventually(lambda: len(everything) >= len(load.accepted))
            await eventually(lambda: len(filtered) >= deleted)
            in_log: list[Block] = []
            await follow(url, in_log, until=len(load.accepted))
            for reader in readers:
                reader.cancel()
            assert process.terminate() == 0
    assert [block.position for block in in_log] == list(range(1, len(load.accepted) + 1))
    assert sorted(block.data or "" for block in in_log) == sorted(
        payload.decode() for payload in load.accepted
    )
    assert everything == in_log
    assert filtered == [block for block in in_log if block.event == "user.deleted"]


def more_accepted(load: Load, count: int) -> Callable[[], bool]:
    goal = len(load.accepted) + count
    return lambda: len(load.accepted) >= goal


async def test_a_service_that_crashes_under_load_loses_nothing_it_answered_200(
    database: Database, tmp_path: Path
) -> None:
    env = environment(DATABASE_URL=database.service_dsn, CAUSEWAY_WINDOW_EVENTS="50")
    await crash_again_and_again(env, tmp_path / "log", times=3)


async def test_with_its_embedded_postgres_it_does_not_either(
    data_dir: Path, tmp_path: Path
) -> None:
    await crash_again_and_again(environment(CAUSEWAY_DATA_DIR=str(data_dir)), tmp_path / "log", 2)
