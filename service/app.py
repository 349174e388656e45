"""Assembly: one async context manager that opens every part in its order, and closes it in reverse.

Nothing is decided here but what is connected to what.
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from service.acks import Acks
from service.admin import Admin
from service.appender import Appender
from service.audits import Audits
from service.auth import Tokens
from service.config import Settings
from service.consumer import Consumers
from service.consumer_api import ConsumerApi
from service.dashboard.site import Parts, dashboard_routes
from service.db import Pool, create_pool, prepare
from service.documents import Documents
from service.errors import Problem
from service.eventlog import EventLog
from service.forget import forget_digests
from service.history import History
from service.hub import Hub
from service.lag import watch_lag
from service.lease import Leases
from service.metrics import Metrics
from service.migrate import check_schema
from service.ops import Check, Ops
from service.overview import Overview
from service.pages import Pages
from service.problems import (
    Front,
    answer_http_exception,
    answer_problem,
    answer_unknown,
)
from service.receive import ReceiveWebhook
from service.sources import Sources
from service.stats import Stats
from service.stream import Stream
from service.supervise import Loop, Supervisor
from service.tail import Tail
from service.turn import Turns
from service.window import Window

log = logging.getLogger("causeway.app")

DATABASE_WAIT_S = 60.0
STALE_READ_S = 5.0
LOST_LOOPS = 3


@dataclass(frozen=True, slots=True)
class Service:
    """Every part that others meet: the ASGI app, what a shutdown needs, what a test looks at."""

    front: ASGIApp
    app: Starlette
    appender: Appender
    hub: Hub
    tail: Tail
    window: Window
    eventlog: EventLog
    metrics: Metrics
    supervisor: Supervisor
    stats: Stats


@dataclass(frozen=True, slots=True)
class _Database:
    """Three ways to the database: readers that queue must delay neither the append nor the tail."""

    direct_dsn: str
    readers: Pool
    writer: Pool
    tail: Pool


@asynccontextmanager
async def open_service(
    settings: Settings, dsn: str, on_fatal: Callable[[str], None]
) -> AsyncIterator[Service]:
    """Open every part on the database at `dsn`, and run the loops until the end of the block.

    `on_fatal` is called with a loop's name if it has ended for good. Raises SchemaError if the
    schema is not this code's, ConfigError if the database cannot be reached for a minute.
    """
    sources = Sources(settings)
    async with AsyncExitStack() as stack:
        database = await _open_database(stack, settings, dsn)
        supervisor = await stack.enter_async_context(Supervisor(on_fatal))
        metrics = Metrics()
        metrics.watch_pool(database.readers.get_size, database.readers.get_idle_size)
        eventlog = EventLog(database.readers, database.writer)
        tokens = Tokens(settings, database.readers)
        appender = _appender(settings, eventlog, metrics)
        window = Window(max_events=settings.window_events, max_bytes=settings.window_bytes)
        hub = Hub(settings, tokens, metrics)
        tail = _tail(settings, database, window, hub, metrics)
        consumers = Consumers(database.readers)
        leases = Leases(consumers, metrics)
        acks = Acks(consumers)
        turns = Turns(consumers, leases, acks, eventlog)
        receive = ReceiveWebhook(settings, sources, appender, metrics)
        stream = Stream(settings, eventlog, window, hub, tokens, turns, metrics)
        pages = Pages(eventlog, window, tokens)
        consumer_api = ConsumerApi(consumers, acks, eventlog, window, tokens)
        history = History(database.readers)
        stats = Stats(metrics, history, tail.head)
        ready = _ready(settings, supervisor, tail, hub)
        overview = Overview(stats, history, sources, consumers, tokens, tail, ready)
        audits = Audits(eventlog)
        admin = Admin(tokens, eventlog, overview)
        seen = (eventlog, history, window, stream, overview, audits, metrics)
        dashboard = dashboard_routes(Parts(settings, tokens, sources, consumers, *seen))
        ops = Ops(metrics, live={"loops": ready["loops"]}, ready=ready)
        app = _starlette(receive, stream, pages, consumer_api, admin, ops, dashboard)
        front = Front(app, {("POST", "/webhooks/bridge"): receive, ("GET", "/stream"): stream})
        vital = {"appender": appender.run, "pulse": hub.pulse}
        _start(supervisor, vital | {"leases": leases.renew, "acks": acks.run}, LOST_LOOPS)
        _start(supervisor, {"tail": tail.run, "listen": tail.listen, "sources": sources.watch})
        _start(supervisor, {"tokens": hub.check_tokens, "touch": tokens.touch})
        _start(supervisor, {"stats": stats.run, "audits": audits.run})
        supervisor.start("lag", partial(watch_lag, consumers, metrics))
        supervisor.start("forget", partial(forget_digests, eventlog, settings.duplicate_window_s))
        parts = (appender, hub, tail, window, eventlog, metrics, supervisor, stats)
        yield Service(front, app, *parts)


def _start(
    supervisor: Supervisor, loops: Mapping[str, Loop], max_failures: int | None = None
) -> None:
    for name, loop in loops.items():
        supervisor.start(name, loop, max_failures=max_failures)


async def _open_database(stack: AsyncExitStack, settings: Settings, dsn: str) -> _Database:
    direct = settings.database_direct_url
    direct_dsn = direct.get_secret_value() if direct else dsn
    role = await prepare(direct_dsn, check_schema, wait_s=DATABASE_WAIT_S)
    readers = create_pool(
        dsn, max_size=settings.pool_max_connections, role=role, is_pooler=direct is not None
    )
    return _Database(
        direct_dsn,
        readers=await stack.enter_async_context(readers),
        writer=await stack.enter_async_context(create_pool(direct_dsn, max_size=1, role=role)),
        tail=await stack.enter_async_context(create_pool(direct_dsn, max_size=1, role=role)),
    )


def _appender(settings: Settings, eventlog: EventLog, metrics: Metrics) -> Appender:
    return Appender(
        partial(eventlog.append, timeout_s=settings.append_timeout_s),
        metrics,
        max_events=settings.append_queue_events,
        max_bytes=settings.append_queue_bytes,
        batch_events=settings.append_batch_events,
    )


def _tail(
    settings: Settings, database: _Database, window: Window, hub: Hub, metrics: Metrics
) -> Tail:
    return Tail(
        EventLog(database.tail),
        window,
        metrics,
        dsn=database.direct_dsn,
        poll_s=settings.poll_s,
        preload_events=settings.window_events,
        on_changed=partial(hub.close_all, "diverged"),
    )


def _starlette(
    receive: ReceiveWebhook,
    stream: Stream,
    pages: Pages,
    consumers: ConsumerApi,
    admin: Admin,
    ops: Ops,
    dashboard: Sequence[BaseRoute],
) -> Starlette:
    documents = Documents()
    app = Starlette(
        routes=[
            Route("/webhooks/bridge", receive, methods=["POST"]),
            Route("/webhooks/bridge/{source}", receive, methods=["POST"]),
            Route("/stream", stream, methods=["GET"]),
            Route("/events", pages.list_events),
            Route("/events/{position}", pages.get_event),
            Route("/consumers", consumers.list_consumers),
            Route("/consumers/{name}", consumers.consumer, methods=["GET", "PUT", "DELETE"]),
            Route("/consumers/{name}/ack", consumers.ack, methods=["POST"]),
            Route("/api/tokens", admin.tokens, methods=["GET", "POST"]),
            Route("/api/tokens/{token_id}", admin.token, methods=["DELETE"]),
            Route("/api/sources", admin.sources),
            Route("/api/stats", admin.stats),
            Route("/api/log/checkpoint", admin.checkpoint),
            Route("/metrics", ops.metrics),
            Route("/livez", ops.livez),
            Route("/readyz", ops.readyz),
            Route("/openapi.json", documents.openapi),
            Route("/asyncapi.json", documents.asyncapi),
            *dashboard,
        ],
        exception_handlers={
            Problem: answer_problem,
            HTTPException: answer_http_exception,
            Exception: answer_unknown,
        },
    )
    app.router.redirect_slashes = False  # no path has two spellings: 404, not 307
    return app


def _ready(settings: Settings, supervisor: Supervisor, tail: Tail, hub: Hub) -> dict[str, Check]:
    """Return what must hold for this process to be ready: each check says what is wrong."""
    stale_s = STALE_READ_S + 2 * settings.poll_s

    def read_lately() -> str | None:
        behind = tail.behind_s()
        return None if behind < stale_s else f"the log could not be read for {behind:.0f} s"

    def tail_is_close() -> str | None:
        if not tail.has_begun:
            return "the tail has not read the log yet"
        lag = tail.lag()
        return None if lag <= settings.window_events else f"the tail is {lag} events behind"

    return {
        "loops": lambda: None if supervisor.is_alive() else "a loop has ended",
        "database": read_lately,
        "tail": tail_is_close,
        "draining": lambda: "this process is stopping" if hub.is_draining else None,
    }
