"""The relay's part of the assembly: everything about outgoing webhooks but their endpoints."""

import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from service.callback import Callbacks
from service.callback_url import AddressPolicy
from service.config import Settings
from service.db import Pool
from service.delivery import Deliveries
from service.metrics import Metrics
from service.relay import Relay
from service.relay_watch import RelayWatch, keep_sealed, prune_deliveries
from service.replay import Replays
from service.roles import Role
from service.seal import Sealer
from service.supervise import Supervisor
from service.tracing import Traces
from service.webhook import Webhooks

log = logging.getLogger("causeway.relaying")


@dataclass(frozen=True, slots=True)
class Relaying:
    """The parts that endpoints and tests meet."""

    webhooks: Webhooks
    deliveries: Deliveries
    callbacks: Callbacks
    replays: Replays
    relay: Relay
    watch: RelayWatch


def open_relaying(
    stack: AsyncExitStack,
    supervisor: Supervisor,
    settings: Settings,
    database: Pool,
    metrics: Metrics,
    traces: Traces | None = None,
) -> Relaying:
    """Make the parts; with the role `relay` also start their loops. The server drains the relay."""
    sealer = Sealer(settings.secret_keys) if settings.secret_keys else None
    webhooks = Webhooks(database, sealer, max_per_application=settings.relay_max_webhooks)
    deliveries = Deliveries(database)
    callbacks = Callbacks(
        AddressPolicy(settings.relay_allowed_networks),
        timeout_s=settings.relay_timeout_s,
        max_idle=settings.relay_concurrency,
    )
    stack.push_async_callback(callbacks.close)
    relay = Relay(settings, webhooks, deliveries, callbacks, metrics, traces)
    replays, watch = Replays(database), RelayWatch(deliveries, metrics)
    relaying = Relaying(webhooks, deliveries, callbacks, replays, relay, watch)
    if Role.RELAY in settings.roles:
        _run(supervisor, settings, relaying)
    return relaying


def _run(supervisor: Supervisor, settings: Settings, relaying: Relaying) -> None:
    deliveries, relay = relaying.deliveries, relaying.relay
    if settings.secret_keys:
        supervisor.start("seals", partial(keep_sealed, relaying.webhooks))
    supervisor.start("relay", relay.run)
    supervisor.start("recorder", relay.record)
    supervisor.start("replays", partial(relaying.replays.run, relay.wake))
    supervisor.start("backlog", relaying.watch.run)
    supervisor.start(
        "prune_deliveries", partial(prune_deliveries, deliveries, settings.relay_retention_s)
    )
