"""What a fan-out server is told to publish, and how it does so. Runs in the children.

One event, or one burst, and then nothing more until every subscriber has taken it: no server may
join what was published one by one.
"""

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from service.event import Event, chain_link
from service.payloads import events as bridge_events

GENESIS = bytes(32)


def prepare(order: dict[str, Any], position: int, link: bytes) -> list[Event]:
    """Make the events that `order` asks for, following `position` and `link`.

    It says how many (`count`), and the `mark` with which the last body ends.
    """
    bodies = islice(bridge_events(seed=position), order["count"] - 1)
    last = ("bench.end", b'{"content":{},"type":"%b"}' % order["mark"].encode())
    events = []
    for type_, body in (*bodies, last):
        position += 1
        now = datetime.now(UTC)
        link = chain_link(link, GENESIS, position, now, "default")
        values = (now, "default", type_, type_, None, None, None, None, GENESIS, body)
        events.append(Event(position, link, *values))
    return events


def bursts(events: list[Event], size: int) -> Iterator[list[Event]]:
    """Yield the events `size` at a time."""
    for at in range(0, len(events), size):
        yield events[at : at + size]


async def publish(
    events: list[Event],
    burst: int,
    send: Callable[[list[Event]], None],
    is_taken: Callable[[], bool],
) -> None:
    """Send `burst` events at a time; `is_taken` says that every subscriber has what was sent."""
    for some in bursts(events, burst):
        send(some)
        await asyncio.sleep(0)
        while not is_taken():
            await asyncio.sleep(0)
