"""Assembly: one async context manager that opens every part in its order, and closes it in reverse.

Nothing is decided here but what is connected to what. Every part is made in every process, which
costs next to nothing; a process's roles decide which loops run and which paths are answered.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from starlette.applications import Starlette

from service.acks import Acks
from service.address import AllowList
from service.admin import Admin
from service.administering import Administering, open_administering
from service.appender import Appender
from service.base import Base, open_base
from service.config import Settings
from service.consumer_api import ConsumerApi
from service.dashboard.site import Parts, dashboard_routes
from service.delivery import Deliveries
from service.delivery_admin import DeliveryAdmin
from service.delivery_api import DeliveryApi
from service.delivery_list import DeliveryList
from service.erase import start_erasing
from service.errors import ConfigError
from service.eventlog import EventLog
from service.follower import Follower, WindowFollower
from service.following import follow, make_following
from service.forget import forget_digests
from service.hub import Hub
from service.intake import Intake
from service.lag import EVERY_S as LAG_EVERY_S
from service.lag import watch_lag
from service.lease import Leases
from service.metrics import Metrics
from service.ops import Check, Note, Ops
from service.pages import Pages
from service.partition import make_partitions
from service.peers import Peers
from service.problems import Front, RequestIds
from service.receive import ReceiveWebhook
from service.relaying import Relaying, open_relaying
from service.roles import Role
from service.routes import Endpoints, build
from service.standing import Standings
from service.stream import Stream
from service.supervise import Supervisor
from service.turn import Turns
from service.upkeep import watch_upkeep
from service.webhook_admin import WebhookAdmin
from service.webhook_api import WebhookApi
from service.window import Window

log = logging.getLogger("causeway.app")

STALE_READ_S = 5.0
LOST_LOOPS = 3
GATEWAY_LAG_EVERY_S = 30.0


@dataclass(frozen=True, slots=True)
class Service:
    """Every part that others meet: the ASGI app, what a shutdown needs, what a test looks at."""

    front: Front
    intake: Intake
    app: Starlette
    appender: Appender
    hub: Hub
    tail: WindowFollower
    window: Window
    eventlog: EventLog
    relaying: Relaying
    administering: Administering
    metrics: Metrics
    supervisor: Supervisor


@asynccontextmanager
async def open_service(
    settings: Settings, dsn: str, on_fatal: Callable[[str], None], peers: Peers | None = None
) -> AsyncIterator[Service]:
    """Open every part on the database at `dsn`, and run the loops until the end of the block.

    `on_fatal` is called with a loop's name if it has ended for good. `peers`: the workers that
    share the port. Raises SchemaError if the schema is not this code's, ConfigError if the database
    cannot be reached for a minute.
    """
    async with AsyncExitStack() as stack:
        base = await open_base(stack, settings, dsn, on_fatal)
        supervisor, metrics, window = base.supervisor, base.metrics, base.window
        eventlog, consumers, readers = base.eventlog, base.consumers, base.database.readers
        appender = _appender(base)
        hub = Hub(settings, base.tokens, metrics)
        relaying = open_relaying(
            stack, supervisor, settings, base.database.relay, metrics, base.traces
        )
        following = make_following(base, partial(hub.close_all, "diverged"))
        tail = following.tail
        leases, acks = Leases(consumers, metrics), Acks(consumers)
        turns = Turns(consumers, leases, acks, eventlog)
        stream = Stream(settings, following.log, window, hub, base.tokens, turns, metrics)
        follower = follow(base, tail, relaying.relay.wake)
        ready = _ready(base, follower, tail, hub)
        notes = dict(following.notes)
        if Role.MIRROR in settings.roles:
            notes["mirror"] = _mirror(base)
        live = {"loops": ready["loops"]}
        ops = Ops(metrics, live=live, ready=ready, notes=notes, peers=peers)
        administering = _administer(base, follower, relaying, ready)
        request_ids = RequestIds()
        allow_list = AllowList(settings.allowed_ips, settings.trusted_proxies)
        intake = Intake(appender, base.sources, metrics, request_ids, allow_list=allow_list)
        receive = ReceiveWebhook(settings, base.sources, appender, intake, metrics, base.traces)
        endpoints = _endpoints(base, receive, stream, acks, relaying, administering, ops)
        if Role.INGEST in settings.roles:
            _run_ingest(base, appender)
        if Role.STREAM in settings.roles:
            _run_stream(base, hub, leases, acks)
        supervisor.start("touch", base.tokens.touch)
        start_erasing(supervisor, settings, readers, eventlog, window)
        if peers is not None:
            supervisor.start("peers", partial(peers.serve, ops.expose))
        upkeep = partial(watch_upkeep, settings, base.sources, readers, metrics)
        supervisor.start("upkeep", upkeep)
        front, app = build(settings.roles, endpoints, request_ids)
        looked_at = (appender, hub, tail, window, eventlog, relaying, administering)
        yield Service(front, intake, app, *looked_at, metrics, supervisor)


def _administer(
    base: Base, follower: Follower, relaying: Relaying, ready: dict[str, Check]
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
        follower=follower,
        ready=ready,
        standings=Standings(relaying.webhooks, deliveries, relaying.watch.orphans),
    )


def _endpoints(
    base: Base,
    receive: ReceiveWebhook,
    stream: Stream,
    acks: Acks,
    relaying: Relaying,
    administering: Administering,
    ops: Ops,
) -> Endpoints:
    settings, eventlog, tokens, window = base.settings, base.eventlog, base.tokens, base.window
    webhooks = WebhookAdmin(settings, relaying.webhooks, relaying.callbacks, eventlog, window)
    listed = DeliveryList(base.database.readers)
    deliveries = DeliveryAdmin(listed, relaying.replays, eventlog)
    watched = (base.sources, base.consumers, eventlog, window, stream, administering, base.metrics)
    return Endpoints(
        receive,
        stream,
        Pages(eventlog, window, tokens, settings.send_timeout_s),
        ConsumerApi(base.consumers, acks, eventlog, window, tokens),
        Admin(tokens, eventlog, administering.overview),
        WebhookApi(webhooks, tokens),
        DeliveryApi(deliveries, relaying.webhooks, tokens),
        ops,
        dashboard_routes(Parts(settings, tokens, *watched, webhooks, deliveries)),
    )


def _run_ingest(base: Base, appender: Appender) -> None:
    window_s = base.settings.duplicate_window_s
    supervisor = base.supervisor
    supervisor.start("appender", appender.run, max_failures=LOST_LOOPS)
    supervisor.start("sources", base.sources.watch)
    supervisor.start("partitions", partial(make_partitions, base.eventlog))
    supervisor.start("forget", partial(forget_digests, base.eventlog, window_s))


def _mirror(base: Base) -> Note:
    """Run the mirror; return what it says of itself. Its library comes with an extra."""
    try:
        from service.mirroring import start_mirroring
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"{missing.name} is missing, the role mirror needs it: install causeway[server,nats]"
        ) from missing
    return start_mirroring(base).says


def _run_stream(base: Base, hub: Hub, leases: Leases, acks: Acks) -> None:
    supervisor = base.supervisor
    # The lag is the same in every process: gateways, which may be many, look it up less often.
    lag_every_s = LAG_EVERY_S if base.settings.tail == "postgres" else GATEWAY_LAG_EVERY_S
    supervisor.start("pulse", hub.pulse, max_failures=LOST_LOOPS)
    supervisor.start("tokens", hub.check_tokens)
    supervisor.start("leases", leases.renew, max_failures=LOST_LOOPS)
    supervisor.start("acks", acks.run, max_failures=LOST_LOOPS)
    supervisor.start("lag", partial(watch_lag, base.consumers, base.metrics, lag_every_s))


def _appender(base: Base) -> Appender:
    settings = base.settings
    return Appender(
        partial(base.eventlog.append, timeout_s=settings.append_timeout_s),
        base.metrics,
        max_events=settings.append_queue_events,
        max_bytes=settings.append_queue_bytes,
        batch_events=settings.append_batch_events,
        on_committed=None if base.traces is None else base.traces.committed,
    )


def _ready(base: Base, follower: Follower, tail: WindowFollower, hub: Hub) -> dict[str, Check]:
    """Return what must hold for this process to be ready: each check says what is wrong."""
    stale_s = STALE_READ_S + 2 * base.settings.poll_s

    def read_lately() -> str | None:
        behind = follower.behind_s()
        return None if behind < stale_s else f"the log could not be read for {behind:.0f} s"

    def tail_is_close() -> str | None:
        if not tail.has_begun:
            return "the tail has not read the log yet"
        lag = tail.lag()
        is_close = lag <= base.settings.window_events
        return None if is_close else f"the tail is {lag} events behind"

    return {
        "loops": lambda: None if base.supervisor.is_alive() else "a loop has ended",
        "database": read_lately,
        **({"tail": tail_is_close} if follower is tail else {}),
        "draining": lambda: "this process is stopping" if hub.is_draining else None,
    }
