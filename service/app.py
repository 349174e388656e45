"""Assembly: one async context manager that opens every part in its order, and closes it in reverse.

Nothing is decided here but what is connected to what.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from service.acks import Acks
from service.appender import Appender
from service.auth import Tokens
from service.config import Settings
from service.consumer import Consumers
from service.consumer_api import ConsumerApi
from service.db import Pool, create_pool, prepare
from service.delivery_api import DeliveryApi
from service.delivery_list import DeliveryList
from service.documents import Documents
from service.errors import Problem
from service.eventlog import EventLog
from service.forget import forget_digests
from service.hub import Hub
from service.lag import watch_lag
from service.lease import Leases
from service.metrics import Metrics
from service.migrate import check_schema
from service.ops import Ops
from service.pages import Pages
from service.problems import (
    Front,
    answer_http_exception,
    answer_problem,
    answer_unknown,
)
from service.receive import ReceiveWebhook
from service.relaying import Relaying, open_relaying
from service.sources import Sources
from service.stream import Stream
from service.supervise import Supervisor
from service.tail import Tail
from service.turn import Turns
from service.webhook_api import PATH, WebhookApi
from service.window import Window

log = logging.getLogger("causeway.app")

DATABASE_WAIT_S = 60.0
STALE_READ_S = 5.0
LOST_LOOPS = 3
RELAY_CONNECTIONS = 3  # claim, record, and one for everything else


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
    relaying: Relaying
    metrics: Metrics
    supervisor: Supervisor


@dataclass(frozen=True, slots=True)
class _Database:
    """Ways to the database: readers that queue must delay neither append, tail nor relay."""

    direct_dsn: str
    readers: Pool
    writer: Pool
    tail: Pool
    relay: Pool


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
        relaying = open_relaying(stack, supervisor, settings, database.relay, metrics)
        tail = _tail(settings, database, window, hub, relaying, metrics)
        consumers = Consumers(database.readers)
        leases = Leases(consumers, metrics)
        acks = Acks(consumers)
        turns = Turns(consumers, leases, acks, eventlog)
        receive = ReceiveWebhook(settings, sources, appender, metrics)
        stream = Stream(settings, eventlog, window, hub, tokens, turns, metrics)
        pages = Pages(eventlog, window, tokens)
        consumer_api = ConsumerApi(consumers, acks, eventlog, window, tokens)
        ops = _ops(settings, metrics, supervisor, tail, hub)
        admin = _admin_routes(settings, database, relaying, eventlog, window, tokens)
        app = _starlette(receive, stream, pages, consumer_api, admin, ops)
        front = Front(app, {("POST", "/webhooks/bridge"): receive, ("GET", "/stream"): stream})
        supervisor.start("appender", appender.run, max_failures=LOST_LOOPS)
        supervisor.start("tail", tail.run)
        supervisor.start("listen", tail.listen)
        supervisor.start("pulse", hub.pulse, max_failures=LOST_LOOPS)
        supervisor.start("tokens", hub.check_tokens)
        supervisor.start("touch", tokens.touch)
        supervisor.start("sources", sources.watch)
        supervisor.start("leases", leases.renew, max_failures=LOST_LOOPS)
        supervisor.start("acks", acks.run, max_failures=LOST_LOOPS)
        supervisor.start("lag", partial(watch_lag, consumers, metrics))
        supervisor.start("forget", partial(forget_digests, eventlog, settings.duplicate_window_s))
        yield Service(
            front, app, appender, hub, tail, window, eventlog, relaying, metrics, supervisor
        )


async def _open_database(stack: AsyncExitStack, settings: Settings, dsn: str) -> _Database:
    direct = settings.database_direct_url
    direct_dsn = direct.get_secret_value() if direct else dsn
    role = await prepare(direct_dsn, check_schema, wait_s=DATABASE_WAIT_S)
    pooled = partial(create_pool, dsn, role=role, is_pooler=direct is not None)
    single = partial(create_pool, direct_dsn, role=role, max_size=1)
    return _Database(
        direct_dsn,
        readers=await stack.enter_async_context(pooled(max_size=settings.pool_max_connections)),
        writer=await stack.enter_async_context(single()),
        tail=await stack.enter_async_context(single()),
        relay=await stack.enter_async_context(pooled(max_size=RELAY_CONNECTIONS)),
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
    settings: Settings,
    database: _Database,
    window: Window,
    hub: Hub,
    relaying: Relaying,
    metrics: Metrics,
) -> Tail:
    return Tail(
        EventLog(database.tail),
        window,
        metrics,
        dsn=database.direct_dsn,
        poll_s=settings.poll_s,
        preload_events=settings.window_events,
        on_changed=partial(hub.close_all, "diverged"),
        on_news=relaying.relay.wake,
    )


def _starlette(
    receive: ReceiveWebhook,
    stream: Stream,
    pages: Pages,
    consumers: ConsumerApi,
    admin: list[Route],
    ops: Ops,
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
            *admin,
            Route("/metrics", ops.metrics),
            Route("/livez", ops.livez),
            Route("/readyz", ops.readyz),
            Route("/openapi.json", documents.openapi),
            Route("/asyncapi.json", documents.asyncapi),
        ],
        exception_handlers={
            Problem: answer_problem,
            HTTPException: answer_http_exception,
            Exception: answer_unknown,
        },
    )
    app.router.redirect_slashes = False  # no path has two spellings: 404, not 307
    return app


def _admin_routes(
    settings: Settings,
    database: _Database,
    relaying: Relaying,
    eventlog: EventLog,
    window: Window,
    tokens: Tokens,
) -> list[Route]:
    webhooks, deliveries = relaying.webhooks, DeliveryList(database.readers)
    webhook_api = WebhookApi(settings, webhooks, relaying.callbacks, eventlog, window, tokens)
    delivery_api = DeliveryApi(webhooks, deliveries, relaying.replays, eventlog, tokens)
    return [*_webhook_routes(webhook_api), *_delivery_routes(delivery_api)]


def _webhook_routes(api: WebhookApi) -> list[Route]:
    one = f"{PATH}/{{id}}"
    return [
        Route(PATH, api.webhooks, methods=["GET", "POST"]),
        Route(one, api.webhook, methods=["GET", "PATCH", "DELETE"]),
        Route(f"{one}/disable", api.disable, methods=["POST"]),
        Route(f"{one}/enable", api.enable, methods=["POST"]),
        Route(f"{one}/rotate", api.rotate, methods=["POST"]),
        Route(f"{one}/test", api.test, methods=["POST"]),
    ]


def _delivery_routes(api: DeliveryApi) -> list[Route]:
    one = f"{PATH}/{{id}}"
    return [
        Route(f"{one}/deliveries", api.deliveries),
        Route(f"{one}/deliveries/{{position}}", api.delivery),
        Route(f"{one}/deliveries/{{position}}/replay", api.replay_one, methods=["POST"]),
        Route(f"{one}/replays", api.replays, methods=["GET", "POST"]),
        Route(f"{one}/replays/{{replay_id}}", api.replay, methods=["GET", "DELETE"]),
    ]


def _ops(
    settings: Settings,
    metrics: Metrics,
    supervisor: Supervisor,
    tail: Tail,
    hub: Hub,
) -> Ops:
    stale_s = STALE_READ_S + 2 * settings.poll_s

    def read_lately() -> str | None:
        behind = tail.behind_s()
        return None if behind < stale_s else f"the log could not be read for {behind:.0f} s"

    def tail_is_close() -> str | None:
        if not tail.has_begun:
            return "the tail has not read the log yet"
        lag = tail.lag()
        return None if lag <= settings.window_events else f"the tail is {lag} events behind"

    return Ops(
        metrics,
        live={"loops": lambda: None if supervisor.is_alive() else "a loop has ended"},
        ready={
            "loops": lambda: None if supervisor.is_alive() else "a loop has ended",
            "database": read_lately,
            "tail": tail_is_close,
            "draining": lambda: "this process is stopping" if hub.is_draining else None,
        },
    )
