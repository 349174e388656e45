"""What all parts stand on: the settings, the ways to the database, the log, who may do what."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from service.auth import Tokens
from service.config import Settings
from service.consumer import Consumers
from service.db import Pool, close, create_pool, prepare
from service.eventlog import EventLog
from service.metrics import Metrics
from service.migrate import check_schema
from service.sources import Sources
from service.supervise import Supervisor
from service.tracing import Traces, open_traces
from service.window import Window

DATABASE_WAIT_S = 60.0
RELAY_CONNECTIONS = 3  # claim, record, and one for everything else


@dataclass(frozen=True, slots=True)
class Database:
    """Ways to the database: readers that queue must delay neither append, tail nor relay."""

    direct_dsn: str
    readers: Pool
    writer: Pool
    tail: Pool
    relay: Pool


@dataclass(frozen=True, slots=True)
class Base:
    """What all parts stand on."""

    settings: Settings
    database: Database
    supervisor: Supervisor
    metrics: Metrics
    eventlog: EventLog
    tokens: Tokens
    sources: Sources
    consumers: Consumers
    window: Window
    traces: Traces | None


async def open_base(
    stack: AsyncExitStack, settings: Settings, dsn: str, on_fatal: Callable[[str], None]
) -> Base:
    """Open the database and what stands on it; `stack` closes it. Raises as `open_service` does."""
    sources = Sources(settings)
    database = await _open_database(stack, settings, dsn)
    metrics = Metrics()
    metrics.watch_tasks(asyncio.get_running_loop())
    metrics.watch_pool(database.readers.get_size, database.readers.get_idle_size)
    supervisor = await stack.enter_async_context(Supervisor(on_fatal))
    eventlog = EventLog(database.readers, database.writer)
    traces = None
    if settings.traces:
        traces = open_traces(stack, eventlog, metrics)
        supervisor.start("traces", traces.run)
    return Base(
        settings,
        database,
        supervisor,
        metrics,
        eventlog,
        Tokens(settings, database.readers),
        sources,
        Consumers(database.readers, settings.consumers_max),
        Window(max_events=settings.window_events, max_bytes=settings.window_bytes),
        traces,
    )


async def _open_database(stack: AsyncExitStack, settings: Settings, dsn: str) -> Database:
    direct = settings.database_direct_url
    direct_dsn = direct.get_secret_value() if direct else dsn
    role = await prepare(direct_dsn, check_schema, wait_s=DATABASE_WAIT_S)
    pooled = partial(create_pool, dsn, role=role, is_pooler=direct is not None)
    single = partial(create_pool, direct_dsn, role=role, max_size=1)

    async def opened(pool: Pool) -> Pool:
        stack.push_async_callback(close, pool)
        return await pool

    return Database(
        direct_dsn,
        readers=await opened(pooled(max_size=settings.pool_max_connections)),
        writer=await opened(single()),
        tail=await opened(single()),
        relay=await opened(pooled(max_size=RELAY_CONNECTIONS)),
    )
