"""Assembly: one async context manager that opens every part in its order, and closes it in reverse.

Nothing is decided here but what is connected to what.
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from starlette.applications import Starlette
from starlette.types import ASGIApp

from service.acks import Acks
from service.admin import Admin
from service.administering import Administering, open_administering
from service.appender import Appender
from service.auth import Tokens
from service.config import Settings
from service.consumer import Consumers
from service.consumer_api import ConsumerApi
from service.dashboard.site import Parts, dashboard_routes
from service.db import Pool, create_pool, prepare
from service.delivery import Deliveries
from service.delivery_admin import DeliveryAdmin
from service.delivery_api import DeliveryApi
from service.delivery_list import DeliveryList
from service.eventlog import EventLog
from service.forget import forget_digests
from service.hub import Hub
from service.lag import watch_lag
from service.lease import Leases
from service.metrics import Metrics
from service.migrate import check_schema
from service.ops import Check, Ops
from service.pages import Pages
from service.problems import Front
from service.receive import ReceiveWebhook
from service.relaying import Relaying, open_relaying
from service.routes import Endpoints, application
from service.sources import Sources
from service.standing import Standings
from service.stream import Stream
from service.supervise import Loop, Supervisor
from service.tail import Tail
from service.turn import Turns
from service.webhook_admin import WebhookAdmin
from service.webhook_api import WebhookApi
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
    administering: Administering
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


@dataclass(frozen=True, slots=True)
class _Base:
    """What all parts stand on."""

    settings: Settings
    database: _Database
    supervisor: Supervisor
    metrics: Metrics
    eventlog: EventLog
    tokens: Tokens
    sources: Sources
    consumers: Consumers
    window: Window


@asynccontextmanager
async def open_service(
    settings: Settings, dsn: str, on_fatal: Callable[[str], None]
) -> AsyncIterator[Service]:
    """Open every part on the database at `dsn`, and run the loops until the end of the block.

    `on_fatal` is called with a loop's name if it has ended for good. Raises SchemaError if the
    schema is not this code's, ConfigError if the database cannot be reached for a minute.
    """
    async with AsyncExitStack() as stack:
        base = await _open_base(stack, settings, dsn, on_fatal)
        supervisor, metrics, window = base.supervisor, base.metrics, base.window
        eventlog, tokens, consumers = base.eventlog, base.tokens, base.consumers
        appender = _appender(settings, eventlog, metrics)
        hub = Hub(settings, tokens, metrics)
        relaying = open_relaying(stack, supervisor, settings, base.database.relay, metrics)
        tail = _tail(base, hub, relaying)
        acks, leases = Acks(consumers), Leases(consumers, metrics)
        turns = Turns(consumers, leases, acks, eventlog)
        receive = ReceiveWebhook(settings, base.sources, appender, metrics)
        stream = Stream(settings, eventlog, window, hub, tokens, turns, metrics)
        ready = _ready(settings, supervisor, tail, hub)
        administering = _administer(base, tail, relaying, ready)
        app = _application(base, receive, stream, acks, relaying, administering, ready)
        front = Front(app, {("POST", "/webhooks/bridge"): receive, ("GET", "/stream"): stream})
        vital = {"appender": appender.run, "pulse": hub.pulse}
        _start(supervisor, vital | {"leases": leases.renew, "acks": acks.run}, LOST_LOOPS)
        _start(supervisor, {"tail": tail.run, "listen": tail.listen, "sources": base.sources.watch})
        _start(supervisor, {"tokens": hub.check_tokens, "touch": tokens.touch})
        supervisor.start("lag", partial(watch_lag, consumers, metrics))
        supervisor.start("forget", partial(forget_digests, eventlog, settings.duplicate_window_s))
        looked_at = (appender, hub, tail, window, eventlog, relaying, administering)
        yield Service(front, app, *looked_at, metrics, supervisor)


async def _open_base(
    stack: AsyncExitStack, settings: Settings, dsn: str, on_fatal: Callable[[str], None]
) -> _Base:
    sources = Sources(settings)
    database = await _open_database(stack, settings, dsn)
    metrics = Metrics()
    metrics.watch_pool(database.readers.get_size, database.readers.get_idle_size)
    return _Base(
        settings,
        database,
        await stack.enter_async_context(Supervisor(on_fatal)),
        metrics,
        EventLog(database.readers, database.writer),
        Tokens(settings, database.readers),
        sources,
        Consumers(database.readers),
        Window(max_events=settings.window_events, max_bytes=settings.window_bytes),
    )


def _administer(
    base: _Base, tail: Tail, relaying: Relaying, ready: dict[str, Check]
) -> Administering:
    deliveries = Deliveries(base.database.readers)
    return open_administering(
        base.supervisor,
        base.database.readers,
        metrics=base.metrics,
        eventlog=base.eventlog,
        sources=base.sources,
        consumers=base.consumers,
        tokens=base.tokens,
        tail=tail,
        ready=ready,
        standings=Standings(relaying.webhooks, deliveries, relaying.watch.orphans),
    )


def _application(
    base: _Base,
    receive: ReceiveWebhook,
    stream: Stream,
    acks: Acks,
    relaying: Relaying,
    administering: Administering,
    ready: dict[str, Check],
) -> Starlette:
    settings, eventlog, tokens, window = base.settings, base.eventlog, base.tokens, base.window
    webhooks = WebhookAdmin(settings, relaying.webhooks, relaying.callbacks, eventlog, window)
    listed = DeliveryList(base.database.readers)
    deliveries = DeliveryAdmin(listed, relaying.replays, eventlog)
    watched = (base.sources, base.consumers, eventlog, window, stream, administering, base.metrics)
    return application(
        Endpoints(
            receive,
            stream,
            Pages(eventlog, window, tokens),
            ConsumerApi(base.consumers, acks, eventlog, window, tokens),
            Admin(tokens, eventlog, administering.overview),
            WebhookApi(webhooks, tokens),
            DeliveryApi(deliveries, relaying.webhooks, tokens),
            Ops(base.metrics, live={"loops": ready["loops"]}, ready=ready),
            dashboard_routes(Parts(settings, tokens, *watched, webhooks, deliveries)),
        )
    )


def _start(
    supervisor: Supervisor, loops: Mapping[str, Loop], max_failures: int | None = None
) -> None:
    for name, loop in loops.items():
        supervisor.start(name, loop, max_failures=max_failures)


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


def _tail(base: _Base, hub: Hub, relaying: Relaying) -> Tail:
    return Tail(
        EventLog(base.database.tail),
        base.window,
        base.metrics,
        dsn=base.database.direct_dsn,
        poll_s=base.settings.poll_s,
        preload_events=base.settings.window_events,
        on_changed=partial(hub.close_all, "diverged"),
        on_news=relaying.relay.wake,
    )


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
