"""What tests do to a log and ask of it: append, prune, put back, and read a metric."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import asyncpg

from service.event import NewEvent, parse_event
from tests.bridge import body, new_event
from tests.reader import Block
from tests.running import Running, eventually

if TYPE_CHECKING:
    Owner = asyncpg.Connection[asyncpg.Record]
else:  # generic only for the type checker
    Owner = asyncpg.Connection
USER_2 = "11111111-2222-4333-8444-555555555555"
MARCH = datetime(2026, 3, 1, tzinfo=UTC)
SMALL_BYTES = 4096  # of a socket's receive buffer
PAD = "x" * 50_000
# What the kernel and uvicorn hold for a client that does not read stays far below this.
STALLING_EVENTS = 150
STILL_TURNS = 30


async def append(running: Running, *events: NewEvent) -> None:
    """Append `events` in one batch, and wait until the streams can have them."""
    eventlog = running.service.eventlog
    await eventlog.append(events or [new_event()], timeout_s=30)
    head = (await eventlog.bounds()).head_position
    await eventually(lambda: running.service.window.position >= head)


async def append_many(running: Running, count: int, **content: object) -> None:
    """Append `count` events, 100 in a batch."""
    for first in range(0, count, 100):
        await append(running, *(new_event(**content) for _ in range(min(100, count - first))))  # type: ignore[arg-type]


@contextmanager
def impatient(running: Running, timeout_s: float = 0.3) -> Iterator[None]:
    """Let a commit count as failed after `timeout_s`, for the block alone."""
    appender = running.service.appender
    patient = appender._commit
    appender._commit = partial(running.service.eventlog.append, timeout_s=timeout_s)
    try:
        yield
    finally:
        appender._commit = patient


def sample(running: Running, name: str, **labels: str) -> float:
    """Return the value of one of the service's metrics."""
    value = running.service.metrics.registry.get_sample_value(f"causeway_{name}", labels)
    assert value is not None, name
    return value


def positions(blocks: Iterable[Block]) -> list[int]:
    return [block.position for block in blocks]


async def id_of(running: Running, position: int) -> str:
    """Return the id of the event at `position`."""
    link = await running.service.eventlog.link_at(position)
    assert link is not None
    return f"{position}.{link[:4].hex()}"


async def prune(owner: Owner, up_to: int) -> None:
    """Take the events up to `up_to` out of the log, as retention does."""
    async with owner.transaction():
        await owner.execute("ALTER TABLE causeway.event DISABLE TRIGGER event_is_append_only")
        await owner.execute(
            "UPDATE causeway.log SET anchor_position = $1, "
            "anchor_link = (SELECT link FROM causeway.event WHERE position = $1)",
            up_to,
        )
        await owner.execute("DELETE FROM causeway.event WHERE position <= $1", up_to)
        await owner.execute("ALTER TABLE causeway.event ENABLE TRIGGER event_is_append_only")


async def replace_log(owner: Owner, kept: int) -> None:
    """Put the log back to `kept` events, as a restore from an old backup does."""
    async with owner.transaction():
        await owner.execute("ALTER TABLE causeway.event DISABLE TRIGGER event_is_append_only")
        await owner.execute("DELETE FROM causeway.event WHERE position > $1", kept)
        await owner.execute("DELETE FROM causeway.digest WHERE position > $1", kept)
        await owner.execute("ALTER TABLE causeway.event ENABLE TRIGGER event_is_append_only")


async def append_four_kinds(running: Running) -> None:
    """Append one event of each kind that the filters tell apart, and a last one for the end."""
    await append(
        running,
        new_event("item.created", item_id=1, account_id=None),
        new_event("item.account.updated", item_id=2, account_id=20, user_uuid=USER_2),
        new_event("ACCOUNT_UPDATED", item_id=3, account_id=30),
        parse_event(body("payment.link.updated", item_id=2), "shop", datetime.now(UTC)),
        new_event("transfer.created", item_id=9_007_199_254_740_993, account_id=40),
    )


async def append_large(running: Running, count: int) -> None:
    """Append `count` events of 50 kB, 10 in a batch."""
    for _ in range(count // 10):
        await append(running, *(new_event(pad=PAD) for _ in range(10)))


async def stall(running: Running) -> None:
    """Append so much that whoever does not read hangs in a write, or was cut for it by now.

    It hangs if nothing has moved for so many turns of the loop that the kernel takes no more.
    """
    await append_large(running, STALLING_EVENTS)
    seen: list[object] = []

    def is_still() -> bool:
        connections = running.server.server_state.connections
        hanging = {
            (subscriber.position, subscriber.sending_since)
            for subscriber in running.service.hub._subscribers
            if subscriber.sending_since is not None
        }
        seen.append((hanging, sum(c.transport.get_write_buffer_size() for c in connections)))
        is_cut = sample(running, "stream_closed_total", reason="send_timeout") > 0
        return is_cut or (bool(hanging) and seen[-STILL_TURNS:] == seen[-1:] * STILL_TURNS)

    await eventually(is_still)
