"""Each snippet of docs/clients.md does what the page says, on a real service."""

import asyncio
import re
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from service.client import SubscribeError, call, get_consumer, put_consumer
from service.connection import Wishes
from service.filter import shard_of
from tests.bridge import body, post
from tests.conftest import need_program
from tests.running import ROOT, STREAM_TOKEN, Running, environment, eventually
from tests.test_journey import node_client  # noqa: F401 - a fixture
from tests.test_receive import Start

PAGE = (ROOT / "docs" / "clients.md").read_text()
DEADLINE_S = 180.0
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def snippet(language: str, heading: str, number: int = 0) -> str:
    """Return a fenced block under a heading of the page."""
    section = re.split(rf"^#+ {re.escape(heading)}\n", PAGE, maxsplit=1, flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", BLOCK.sub(lambda m: m[0].replace("\n#", "\n\0"), section))[0]
    section = section.split("\n## ", 1)[0].split("\n### ", 1)[0].replace("\0", "#")
    return [match[2] for match in BLOCK.finditer(section) if match[1] == language][number]


@asynccontextmanager
async def running(
    service: Running,
    *command: str,
    folder: Path = ROOT,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program that knows the service; it is ended with the block."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment(CAUSEWAY_URL=service.url, **settings),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def lines(process: asyncio.subprocess.Process, count: int) -> list[str]:
    assert process.stdout is not None
    read = [(await process.stdout.readline()).decode().strip() for _ in range(count)]
    if not all(read):
        assert process.stderr is not None
        pytest.fail((await process.stderr.read()).decode())
    return read


async def printed(service: Running, code: str, count: int, **settings: str) -> list[str]:
    """Run Python code until it has printed so many lines."""
    async with running(service, sys.executable, "-c", code, settings=settings) as process:
        return await lines(process, count)


async def fill(service: Running) -> None:
    events: tuple[tuple[str, dict[str, Any]], ...] = (
        ("item.created", {"item_id": 7}),
        ("item.account.updated", {"account_id": 9, "balance": 1.25}),
        ("item.refreshed", {"item_id": 8}),
        ("item.refreshed", {"item_id": 8}),
    )
    for type_, content in events:
        assert (await post(service.url, body(type_, **content))).status_code == 200


async def place(service: Running, name: str) -> int:
    return int((await call(service.url, STREAM_TOKEN, get_consumer(name)))["position"])


async def reached(service: Running, name: str, position: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await place(service, name) < position:
            await asyncio.sleep(0.02)


async def test_python_makes_its_consumer_and_moves_its_place(service: Running) -> None:
    await fill(service)
    code = snippet("python", "Python")
    async with running(service, sys.executable, "-c", code) as process:
        first = await lines(process, 4)
        await reached(service, "billing", 4)
    assert first == [
        "1 item.created 7",
        "2 item.account.updated 4568477",
        "3 item.refreshed 8",
        "4 item.refreshed 8",
    ]
    await post(service.url, body("item.deleted", item_id=5))
    assert await printed(service, code, 1) == ["5 item.deleted 5"]


async def test_typed_contents(service: Running) -> None:
    await fill(service)
    assert await printed(service, snippet("python", "Python", 1), 1) == ["9 1.25"]


async def test_python_without_asyncio(service: Running) -> None:
    await fill(service)
    code = snippet("python", "Python without asyncio")
    async with running(service, sys.executable, "-c", code) as process:
        assert len(await lines(process, 4)) == 4
        await reached(service, "reports", 4)


async def test_many_events_a_second(service: Running) -> None:
    await fill(service)
    code = snippet("python", "Many events a second")
    async with running(service, sys.executable, "-c", code) as process:
        assert await lines(process, 4) == ["1", "2", "3", "4"]
        await reached(service, "fast", 4)


async def test_effectively_once_goes_on_where_the_database_is(
    service: Running, tmp_path: Path
) -> None:
    await fill(service)
    code, database = snippet("python", "Effectively once"), str(tmp_path / "effects.db")
    assert await printed(service, code, 2, DATABASE=database) == ["3", "4"]
    await post(service.url, body("item.refreshed", item_id=8))
    assert await printed(service, code, 1, DATABASE=database) == ["5"]
    with closing(sqlite3.connect(database)) as db:
        assert db.execute("SELECT item_id, times FROM refreshes").fetchall() == [(8, 3)]


async def test_curl(start: Start) -> None:
    """But for the two seconds of the page, after which a slow machine has not seen everything."""
    need_program("curl")
    service = await start(heartbeat_s=0.5)  # what comes next tells curl that nobody reads it
    await fill(service)
    code = snippet("bash", "curl")
    timed = ('--max-time 2 -H "$auth"', '/stream?consumer=shell" ||')
    for each in timed:
        assert code.count(each) == 1
    code = code.replace(timed[0], '-H "$auth"')
    code = code.replace(timed[1], f"{timed[1][:-2]}| sed -u '/^id: 4\\./,/^$/{{/^$/q}}' ||")
    async with running(service, need_program("bash"), "-ec", code) as process:
        out, err = await process.communicate()
    shown = out.decode()
    assert process.returncode == 0, err
    assert "causeway-lease: 1" in shown
    assert shown.count("event: item.refreshed") == 2
    assert '{"position":2}' in shown
    assert await place(service, "shell") == 2


@pytest.mark.parametrize("number", [0, 1])
async def test_browsers_and_node(
    service: Running, request: pytest.FixtureRequest, number: int
) -> None:
    folder: Path = request.getfixturevalue("node_client")
    await fill(service)
    code = snippet("js", "Browsers and Node", number)
    if number == 0:  # what a browser has of its own
        code = (
            'import { EventSource } from "eventsource"; globalThis.EventSource = EventSource;\n'
            "const { CAUSEWAY_URL, CAUSEWAY_STREAM_TOKEN } = process.env;\n" + code
        )
    (folder / "page.mjs").write_text(code)
    async with running(service, need_program("node"), "page.mjs", folder=folder) as process:
        seen = await lines(process, 2)
    assert [line.partition(".")[0] for line in seen] == ["3", "4"]
    assert [line.split()[1] for line in seen] == ["8", "8"]


def test_every_parameter_and_error_of_the_client_is_on_the_page() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE))
    errors = {each.__name__ for each in SubscribeError.__subclasses__()}
    assert set(Wishes.__annotations__) <= named
    assert errors <= named


# --- Kubernetes ---


def stateful_set() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(snippet("yaml", "Kubernetes"))
    return document


def test_the_manifest_is_valid() -> None:
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(stateful_set(), version, strict=True)


def test_each_pod_has_a_shard_and_knows_of_how_many() -> None:
    spec = stateful_set()["spec"]
    [container] = spec["template"]["spec"]["containers"]
    variables = {each["name"]: each for each in container["env"]}
    assert variables["SHARDS"]["value"] == str(spec["replicas"])
    assert "pod-index" in variables["SHARD"]["valueFrom"]["fieldRef"]["fieldPath"]
    used = set(re.findall(r'environ\[["\'](\w+)', snippet("python", "Kubernetes")))
    assert used == set(variables)


async def test_the_workers_share_the_events_and_end_on_sigterm(service: Running) -> None:
    for item in range(12):
        await post(service.url, body(item_id=item))
    events = await service.service.eventlog.read_after(0)
    await call(service.url, STREAM_TOKEN, put_consumer("ledger", start="start", lease_s=60))
    code = snippet("python", "Kubernetes")
    for shard in range(2):
        own = [each.position for each in events if shard_of(each, 2) == shard]
        settings = {"SHARD": str(shard), "SHARDS": "2"}
        async with running(service, sys.executable, "-c", code, settings=settings) as process:
            got = await lines(process, len(own))
            assert [int(line.split()[0]) for line in got] == own
            process.send_signal(signal.SIGTERM)
            _, said = await process.communicate()
            assert (process.returncode, said) == (0, b"")
    await eventually(lambda: len(service.service.hub) == 0)
    # Nobody holds a shard any more, long before the leases run out: another number may begin.
    only = {"SHARD": "0", "SHARDS": "1"}
    await post(service.url, body(item_id=1))
    assert await printed(service, code, 1, **only)
