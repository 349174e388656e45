"""A log for tests: open it as the service does, fill it, read it, and damage it as an owner could.

What is done with an owner's connection here (prune, restart) the service's role may not do.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

from service.db import Connection, create_pool
from service.event import Event, NewEvent, parse_event
from service.eventlog import Appended, EventLog
from tests.bridge import TEST_EVENT, new_event
from tests.running import WITHIN_S, Database

TIMEOUT_S = WITHIN_S
APPEND_LOCK = "SELECT pg_advisory_xact_lock(hashtext('causeway'), hashtext('append_events'))"


@asynccontextmanager
async def open_log(database: Database) -> AsyncIterator[EventLog]:
    """Open the log with the service's role: four readers, one writer."""
    async with (
        create_pool(database.service_dsn, max_size=4) as readers,
        create_pool(database.service_dsn, max_size=1) as writer,
    ):
        yield EventLog(readers, writer)


async def append(log: EventLog, *events: NewEvent) -> list[Appended]:
    """Commit `events` as one batch."""
    return await log.append(events, timeout_s=TIMEOUT_S)


async def fill(log: EventLog, count: int) -> list[NewEvent]:
    """Commit `count` distinct events as one batch; return them."""
    events = [new_event() for _ in range(count)]
    await append(log, *events)
    return events


async def read_all(log: EventLog) -> list[Event]:
    """Read the log page by page, oldest first."""
    events: list[Event] = []
    while page := await log.read_after(events[-1].position if events else 0):
        events += page
    return events


def bridge_test() -> NewEvent:
    """Return what "Send a test" sends: always the same bytes."""
    return parse_event(TEST_EVENT, "default", datetime.now(UTC))


def received(event: NewEvent, moment: datetime) -> NewEvent:
    """Return `event` as if it had been received at `moment`."""
    return replace(event, received_at=moment)


def positions(events: Sequence[Event]) -> list[int]:
    """Return the events' positions in their order."""
    return [event.position for event in events]


async def prune(owner: Connection, last: int) -> None:
    """Take the events up to `last` out of the log, as an operator would: the anchor follows."""
    async with owner.transaction():
        await owner.execute("ALTER TABLE causeway.event DISABLE TRIGGER event_is_append_only")
        await owner.execute(
            "UPDATE causeway.log SET anchor_position = position, anchor_link = link "
            "FROM causeway.event WHERE position = $1",
            last,
        )
        await owner.execute("DELETE FROM causeway.event WHERE position <= $1", last)
        await owner.execute("ALTER TABLE causeway.event ENABLE TRIGGER event_is_append_only")


async def remove(owner: Connection, first: int, last: int) -> None:
    """Lose the events from `first` to `last`, as a damaged disk or a restore would."""
    async with owner.transaction():
        await owner.execute("ALTER TABLE causeway.event DISABLE TRIGGER event_is_append_only")
        await owner.execute(
            "DELETE FROM causeway.event WHERE position BETWEEN $1 AND $2", first, last
        )
        await owner.execute(
            "DELETE FROM causeway.digest WHERE position BETWEEN $1 AND $2", first, last
        )
        await owner.execute("ALTER TABLE causeway.event ENABLE TRIGGER event_is_append_only")


async def wait_until_blocked(
    owner: Connection, *, sessions: int = 1, within_s: float = TIMEOUT_S
) -> None:
    """Return when `sessions` sessions of the database wait for the append lock."""
    deadline = asyncio.get_running_loop().time() + within_s
    while sessions > await owner.fetchval(
        "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database "
        "WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted"
    ):
        assert asyncio.get_running_loop().time() < deadline, "nobody waits for the lock"
        await asyncio.sleep(0.01)
