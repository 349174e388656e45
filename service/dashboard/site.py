"""The dashboard put together: every path, its page, and who may see it."""

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from service.administering import Administering
from service.auth import Tokens
from service.config import Settings
from service.consumer import Consumers
from service.dashboard.assets import serve_asset
from service.dashboard.consumers import ConsumersPage
from service.dashboard.deliveries import DeliveriesPage
from service.dashboard.door import Door
from service.dashboard.event import EventPage
from service.dashboard.events import Events, Feed
from service.dashboard.home import Home
from service.dashboard.items import Items
from service.dashboard.log import LogPage
from service.dashboard.replays import ReplaysPage
from service.dashboard.session import Sessions
from service.dashboard.sources import SourcesPage
from service.dashboard.tokens import TokensPage
from service.dashboard.webhook import WebhookPage
from service.dashboard.webhook_list import WebhookList
from service.dashboard.webhooks import WebhooksPage
from service.delivery_admin import DeliveryAdmin
from service.errors import NotFound
from service.eventlog import EventLog
from service.metrics import Metrics
from service.sources import Sources
from service.stream import Stream
from service.webhook_admin import WebhookAdmin
from service.window import Window


@dataclass(frozen=True, slots=True)
class Parts:
    """What the pages look at, and act on."""

    settings: Settings
    tokens: Tokens
    sources: Sources
    consumers: Consumers
    eventlog: EventLog
    window: Window
    stream: Stream
    administering: Administering
    metrics: Metrics
    webhooks: WebhookAdmin
    deliveries: DeliveryAdmin


def dashboard_routes(parts: Parts) -> Sequence[BaseRoute]:
    """Return the routes, all below `/dashboard`."""
    sessions = Sessions(parts.settings, parts.tokens)
    door = Door(parts.settings, parts.tokens, sessions, parts.metrics)
    return [
        Route("/dashboard/login", door.login, methods=["GET", "POST"]),
        Route("/dashboard/logout", door.guard(door.logout), methods=["POST"]),
        Route("/dashboard/static/{name:path}", serve_asset),
        Route("/dashboard/stream", Feed(parts.stream, door), methods=["GET"]),
        *_looking(parts, door),
        *_acting(parts, door),
        *_relaying(parts, door),
        Route("/dashboard/{path:path}", door.guard(_not_found)),
    ]


def _looking(parts: Parts, door: Door) -> Sequence[BaseRoute]:
    home = Home(parts.administering.overview, parts.eventlog)
    events = Events(parts.eventlog, parts.administering.history)
    event = EventPage(
        parts.eventlog, parts.consumers, parts.administering.standings, parts.deliveries.deliveries
    )
    items = Items(parts.eventlog, parts.administering.history)
    sources = SourcesPage(parts.administering.overview, parts.sources, parts.metrics)
    return [
        Route("/dashboard", door.guard(home.page)),
        Route("/dashboard/alarms", door.guard(home.alarms, is_quiet=True)),
        Route("/dashboard/stats", door.guard(home.stats, is_quiet=True)),
        Route("/dashboard/events", door.guard(events.page)),
        Route("/dashboard/events/rows", door.guard(events.rows)),
        Route("/dashboard/events/{position}", door.guard(event.page)),
        Route("/dashboard/events/{position}/body", door.guard(event.body)),
        Route("/dashboard/items", door.guard(items.page)),
        Route("/dashboard/sources", door.guard(sources.page)),
    ]


def _acting(parts: Parts, door: Door) -> Sequence[BaseRoute]:
    consumers = ConsumersPage(parts.consumers, parts.eventlog, parts.window)
    tokens = TokensPage(parts.tokens)
    log = LogPage(parts.eventlog, parts.administering.history, parts.administering.audits)
    one = "/dashboard/consumers/{name}"
    return [
        Route("/dashboard/consumers", door.guard(consumers.page)),
        Route("/dashboard/consumers/table", door.guard(consumers.table, is_quiet=True)),
        Route(f"{one}/reset", door.guard(consumers.reset), methods=["POST"]),
        Route(f"{one}/delete", door.guard(consumers.delete), methods=["POST"]),
        Route("/dashboard/tokens", door.guard(tokens.page)),
        Route("/dashboard/tokens/create", door.guard(tokens.create), methods=["POST"]),
        Route("/dashboard/tokens/{token_id}/revoke", door.guard(tokens.revoke), methods=["POST"]),
        Route("/dashboard/log", door.guard(log.page)),
        Route("/dashboard/log/audit", door.guard(log.audit, is_quiet=True), methods=["GET"]),
        Route("/dashboard/log/audit/start", door.guard(log.start_audit), methods=["POST"]),
    ]


def _relaying(parts: Parts, door: Door) -> Sequence[BaseRoute]:
    lists = WebhookList(parts.deliveries)
    webhooks = WebhooksPage(parts.webhooks, parts.administering.standings)
    webhook = WebhookPage(parts.webhooks, parts.administering.standings, lists)
    deliveries = DeliveriesPage(parts.deliveries, parts.administering.standings, lists)
    replays = ReplaysPage(parts.deliveries, lists)
    one = "/dashboard/webhooks/{id}"
    delivery = f"{one}/deliveries/{{position}}"
    acts = {
        "change": webhook.change,
        "rotate": webhook.rotate,
        "disable": webhook.disable,
        "enable": webhook.enable,
        "delete": webhook.delete,
        "test": webhook.test,
        "replays/count": replays.count,
        "replays/begin": replays.begin,
        "replays/{replay_id}/cancel": replays.cancel,
        "deliveries/{position}/replay": deliveries.replay,
    }
    return [
        Route("/dashboard/webhooks", door.guard(webhooks.page)),
        Route("/dashboard/webhooks/table", door.guard(webhooks.table, is_quiet=True)),
        Route("/dashboard/webhooks/new", door.guard(webhooks.new)),
        Route("/dashboard/webhooks/create", door.guard(webhooks.create), methods=["POST"]),
        Route(one, door.guard(webhook.page)),
        Route(f"{one}/standing", door.guard(webhook.standing, is_quiet=True)),
        Route(f"{one}/replays", door.guard(replays.part, is_quiet=True)),
        Route(f"{one}/deliveries/newest", door.guard(deliveries.rows, is_quiet=True)),
        Route(f"{one}/deliveries/rows", door.guard(deliveries.rows)),
        Route(delivery, door.guard(deliveries.page)),
        Route(f"{delivery}/part", door.guard(deliveries.part, is_quiet=True)),
        *(Route(f"{one}/{path}", door.guard(act), methods=["POST"]) for path, act in acts.items()),
    ]


async def _not_found(request: Request) -> Response:
    raise NotFound(f"there is no page {request.url.path[:128]}")
