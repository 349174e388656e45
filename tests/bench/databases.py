"""Fresh, migrated databases on the embedded Postgres, and prepared events to fill them with."""

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import asyncpg

from service.db import create_pool
from service.embedded import EmbeddedPostgres
from service.event import NewEvent, parse_event
from service.eventlog import EventLog
from service.migrate import migrate
from service.payloads import events as bridge_events
from tests.running import Database, execute_alone

APPEND_TIMEOUT_S = 60.0
_numbers = itertools.count(1)


@asynccontextmanager
async def fresh_database(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    """A database with an empty log; dropped at the end of the block."""
    name = f"bench_{next(_numbers)}"
    connection = await asyncpg.connect(postgres.owner_url)
    try:
        await execute_alone(connection, f"CREATE DATABASE {name}")
        database = Database(_named(postgres.owner_url, name), _named(postgres.service_url, name))
        await migrate(database.owner_dsn)
        await postgres.allow_service_login()
        yield database
        await execute_alone(connection, f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


@asynccontextmanager
async def open_log(database: Database) -> AsyncIterator[EventLog]:
    """The log on one session, set up as the service sets up its own."""
    async with create_pool(database.service_dsn, max_size=1) as pool:
        yield EventLog(pool)


def new_events(seed: int) -> Iterator[NewEvent]:
    """Yield Bridge's documented events as the receiver hands them on; all distinct, for ever."""
    for _, body in bridge_events(seed):
        yield parse_event(body, "default", datetime.now(UTC))


def _named(url: str, name: str) -> str:
    base, _, query = url.partition("?")
    return f"{base.rpartition('/')[0]}/{name}?{query}"
