"""What comes and goes leaves nothing behind: tasks, files, sessions, metrics, objects of ours.

A first round brings everything to life that stays (pools, plans, kept connections); whatever more
the second, larger round leaves is a leak.
"""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx2

from service.metrics import Metrics
from service.ops import Ops
from service.protocol import Protocol
from tests.bridge import body, post
from tests.logkeeping import Owner, sample
from tests.raw import wire
from tests.receiver import Receiver
from tests.relaying import RELAY
from tests.running import ADMIN_TOKEN, STREAM_TOKEN, Running, eventually

Start = Callable[..., Awaitable[Running]]
SESSIONS = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND backend_type = 'client backend'"
)
# Values that an answer or a cache of a fixed size may hold a little longer: what lives on is asked.
SESSIONS_MAX = 8 + 3 + 3 + 1  # readers, append and tail and LISTEN, relay, and the one that asks
CALLBACKS_MAX = 10
BOUNDS = ("sessions too many", "callbacks too many", "replies without a connection")
WITHIN_S = 60.0
LIVING = ("hub", "lease", "turn", "window", "writer", "callback_connection", "webhook", "relay")


def objects() -> Counter[str]:
    """Return how many objects of ours live, by their class, of those modules that hold state."""
    gc.collect()
    classes = (type(thing) for thing in gc.get_objects())
    ours = {f"service.{module}" for module in LIVING}
    living = Counter(kind.__qualname__ for kind in classes if kind.__module__ in ours)
    del living["Frame"]  # the window's, one for each event
    return living


def series(metrics: Metrics) -> set[str]:
    """Return the names and labels of all that `/metrics` shows."""
    lines = Ops(metrics, live={}, ready={}).expose().splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


@asynccontextmanager
async def streams(running: Running, paths: list[str]) -> AsyncIterator[None]:
    """Hold a stream open at each path, and cut them all at the end of the block."""
    async with AsyncExitStack() as stack:
        for path in paths:
            opened = await stack.enter_async_context(wire(running.url))
            head = f"GET {path} HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {STREAM_TOKEN}\r\n\r\n"
            await opened.send(head.encode())
            assert (await opened.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")
        await eventually(lambda: len(running.service.hub) == len(paths))
        yield
    await eventually(lambda: not len(running.service.hub))


async def come_and_go(running: Running, receiver: Receiver, count: int) -> None:
    """Let a third of `count` streams, consumers and callbacks each come, be used, and go."""
    admin = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    some = range(count // 3)
    plain = [f"/stream?type=item.n{n}" if n % 2 else "/stream?control=1" for n in some]
    async with httpx2.AsyncClient(base_url=running.url, headers=admin) as client:
        for n in some:
            (await client.put(f"/consumers/c{n}", json={"lease_s": 600})).raise_for_status()
        async with streams(running, [*plain, *(f"/stream?consumer=c{n}" for n in some)]):
            for first in range(0, len(some), 10):  # an application may have ten
                await call_back(client, running, receiver, len(some[first : first + 10]))
        for n in some:
            (await client.delete(f"/consumers/c{n}")).raise_for_status()


async def call_back(
    client: httpx2.AsyncClient, running: Running, receiver: Receiver, count: int
) -> None:
    """Make `count` webhooks, let one event come to each, and delete them."""
    before = await asyncio.to_thread(receiver.count)
    wishes = [{"url": f"{receiver.url}/good/{n}"} for n in range(count)]
    made = [await client.post("/api/webhooks", json=wish) for wish in wishes]
    assert (await post(running.url, body(), client=client)).status_code == 200
    await receiver.wait_for(before + count)
    for answer in made:
        path = f"/api/webhooks/{answer.raise_for_status().json()['id']}"
        (await client.delete(path)).raise_for_status()


async def rest(running: Running, owner: Owner) -> Counter[str]:
    """Return how many of each are left. Sessions and kept connections have bounds of their own."""
    sessions = await owner.fetchval(SESSIONS)
    living = objects()
    kept = living.pop("CallbackConnection", 0)
    over = (sessions - SESSIONS_MAX, kept - CALLBACKS_MAX, living.pop("Reply", 0) - kept)
    living.update({name: max(0, count) for name, count in zip(BOUNDS, over, strict=True)})
    names = (getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())
    living.update(f"task of {name}" for name in names)
    living["files"] = sum(1 for _ in Path("/proc/self/fd").iterdir()) - sessions - kept
    living["connections"] = len(running.server.server_state.connections)
    living["series"] = len(series(running.service.metrics))
    return living


async def at_rest(running: Running, owner: Owner) -> Counter[str]:
    """Return what is left once nothing is under way any more; the most that was seen of each."""
    await eventually(lambda: sample(running, "relay_in_flight") == 0)
    found = await rest(running, owner)
    for _ in range(5):  # what just closes may be counted in one place, and no more in the other
        await asyncio.sleep(0.1)
        found |= await rest(running, owner)
    assert not [name for name in BOUNDS if found[name]]
    return found


async def test_what_came_and_went_leaves_nothing_behind(start: Start, owner: Owner) -> None:
    running = await start(**RELAY)
    with Receiver() as receiver:
        await come_and_go(running, receiver, 15)
        base = await at_rest(running, owner)
        await come_and_go(running, receiver, 300)
        deadline = time.monotonic() + WITHIN_S
        while more := await rest(running, owner) - base:
            assert time.monotonic() < deadline, f"left behind: {more}"
            await asyncio.sleep(0.1)


async def test_what_was_refused_leaves_nothing_behind(start: Start) -> None:
    """An exception that is kept keeps the frames that it was raised in, and all that they knew."""
    running = await start()
    for head in (b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n", b"GET /\xff HTTP/1.1\r\n"):
        sent = head if head.endswith(b"\r\n\r\n") else head + b"Host: a\r\n" * 2 + b"\r\n"
        for _ in range(5):
            async with wire(running.url) as it:
                await it.send(sent)
                assert (await it.answer()).status == 400
    await eventually(lambda: not protocols())


def protocols() -> list[Protocol]:
    gc.collect()
    return [thing for thing in gc.get_objects() if isinstance(thing, Protocol)]
