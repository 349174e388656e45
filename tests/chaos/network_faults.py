"""Faults of the way between a replica and Postgres."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.chaos.fault import Act, Fault
from tests.chaos.proxy import Proxy, is_listening
from tests.chaos.schedule import Planned
from tests.chaos.world import World

AGAIN_S = 0.3
SLOW_S = (0.02, 0.2)


def _on_way(break_: Callable[[Proxy], object], *, again: bool = False) -> Act:
    """Return a fault of one replica's way: done once, or again and again."""

    @asynccontextmanager
    async def act(world: World, planned: Planned) -> AsyncIterator[None]:
        way = world.ways[planned.replica]

        async def keep_breaking() -> None:
            while again:
                await asyncio.sleep(AGAIN_S)
                break_(way)

        break_(way)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(keep_breaking())
            try:
                yield
            finally:
                task.cancel()
                await way.heal()

    return act


@asynccontextmanager
async def _slow(world: World, planned: Planned) -> AsyncIterator[None]:
    least, most = SLOW_S
    for way in world.ways:
        way.latency_s = least + planned.draw * (most - least)
    try:
        yield
    finally:
        for way in world.ways:
            await way.heal()


def _refuse(way: Proxy) -> None:
    way.refuse()
    way.reset()


FAULTS = (
    Fault(
        "network_slow",
        "20 to 200 ms more for each packet, each way, between all replicas and Postgres",
        "slower, and nothing else",
        "network",
        (3.0, 6.0),
        _slow,
    ),
    Fault(
        "network_stalled",
        "nothing passes between one replica and Postgres; connections stay open",
        "503 there after at most 10 s; the other replica takes over; it catches up",
        "network",
        (3.0, 8.0),
        _on_way(Proxy.stall),
    ),
    Fault(
        "network_reset",
        f"one replica's connections to Postgres are reset, each {AGAIN_S} s",
        "503 for what was under way; its retry finds its own event",
        "network",
        (2.0, 5.0),
        _on_way(Proxy.reset, again=True),
    ),
    Fault(
        "network_refused",
        "one replica's connections are reset, and new ones refused",
        "503 there; its streams stay open and catch up",
        "network",
        (2.0, 6.0),
        _on_way(_refuse),
    ),
    Fault(
        "network_half_open",
        "one replica's connections go half-open: what is sent is dropped without a word",
        "given up after 10 s; the append lock is not held by the dead",
        "network",
        (3.0, 8.0),
        _on_way(Proxy.freeze),
    ),
    Fault(
        "listen_deaf",
        "one replica's LISTEN connection goes half-open: it hears nothing",
        "the poll finds each event within a second",
        "network",
        (4.0, 8.0),
        _on_way(lambda way: way.freeze(is_listening)),
    ),
    Fault(
        "answer_lost",
        f"the connection is cut after COMMIT, before its answer, each {AGAIN_S} s",
        "503, and the retry finds its own event: same position, no double",
        "network",
        (2.0, 5.0),
        _on_way(lambda way: way.lose_answer("append_events"), again=True),
    ),
    Fault(
        "answer_lost_silently",
        "the same, and the connection stays half-open instead of being cut",
        "503 after at most 10 s, and the retry finds its own event",
        "network",
        (2.0, 5.0),
        _on_way(lambda way: way.lose_answer("append_events", is_silent=True), again=True),
    ),
)
