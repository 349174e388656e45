"""Which role answers which path. What only other processes answer is refused here by its name."""

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.admin import Admin
from service.consumer_api import ConsumerApi
from service.delivery_api import DeliveryApi
from service.documents import Documents
from service.errors import NotServedHere, Problem
from service.ops import Ops
from service.pages import Pages
from service.problems import (
    Front,
    RequestIds,
    answer_http_exception,
    answer_problem,
    answer_unknown,
)
from service.receive import ReceiveWebhook
from service.roles import Role, Roles, spell
from service.stream import Stream
from service.webhook_api import PATH, WebhookApi

FEED = "/dashboard/stream"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """All endpoints of a process, those of roles that it does not have among them."""

    receive: ReceiveWebhook
    stream: Stream
    pages: Pages
    consumers: ConsumerApi
    admin: Admin
    webhooks: WebhookApi
    deliveries: DeliveryApi
    ops: Ops
    dashboard: Sequence[BaseRoute]


def build(roles: Roles, endpoints: Endpoints, request_ids: RequestIds) -> tuple[Front, Starlette]:
    """Return the way in, and the app behind it."""
    app = Starlette(
        routes=[
            *_of(Role.INGEST, roles, _ingest_routes(endpoints)),
            *_of(Role.STREAM, roles, _stream_routes(endpoints)),
            *_of(Role.ADMIN, roles, _admin_routes(endpoints)),
            *_of(Role.ADMIN, roles, _dashboard_routes(roles, endpoints)),
            *_shared_routes(endpoints),
        ],
        exception_handlers={
            Problem: answer_problem,
            HTTPException: answer_http_exception,
            Exception: answer_unknown,
        },
    )
    app.router.redirect_slashes = False  # no path has two spellings: 404, not 307
    hot: dict[tuple[str, str], ASGIApp] = {}
    if Role.INGEST in roles:
        hot["POST", "/webhooks/bridge"] = endpoints.receive
    if Role.STREAM in roles:
        hot["GET", "/stream"] = endpoints.stream
    return Front(app, hot, request_ids), app


class _Elsewhere:
    """Stands for the endpoints of a role that this process does not have."""

    def __init__(self, role: Role, roles: Roles) -> None:
        self._message = (
            f"this process has no role {role}, which answers here: it has {spell(roles)}"
        )

    async def __call__(self, _scope: Scope, _receive: Receive, _send: Send) -> None:
        raise NotServedHere(self._message)


def _of(role: Role, roles: Roles, routes: Sequence[BaseRoute]) -> Sequence[BaseRoute]:
    if role in roles:
        return routes
    elsewhere = _Elsewhere(role, roles)
    return [Route(route.path, elsewhere) for route in routes if isinstance(route, Route)]


def _ingest_routes(endpoints: Endpoints) -> list[Route]:
    return [
        Route("/webhooks/bridge", endpoints.receive, methods=["POST"]),
        Route("/webhooks/bridge/{source}", endpoints.receive, methods=["POST"]),
    ]


def _stream_routes(endpoints: Endpoints) -> list[Route]:
    pages, consumers = endpoints.pages, endpoints.consumers
    return [
        Route("/stream", endpoints.stream, methods=["GET"]),
        Route("/events", pages.list_events),
        Route("/events/{position}", pages.get_event),
        Route("/consumers", consumers.list_consumers),
        Route("/consumers/{name}", consumers.consumer, methods=["GET", "PUT", "DELETE"]),
        Route("/consumers/{name}/ack", consumers.ack, methods=["POST"]),
    ]


def _admin_routes(endpoints: Endpoints) -> list[Route]:
    admin, api, deliveries = endpoints.admin, endpoints.webhooks, endpoints.deliveries
    one = f"{PATH}/{{id}}"
    return [
        Route("/api/tokens", admin.tokens, methods=["GET", "POST"]),
        Route("/api/tokens/{token_id}", admin.token, methods=["DELETE"]),
        Route("/api/sources", admin.sources),
        Route("/api/stats", admin.stats),
        Route("/api/log/checkpoint", admin.checkpoint),
        Route(PATH, api.webhooks, methods=["GET", "POST"]),
        Route(one, api.webhook, methods=["GET", "PATCH", "DELETE"]),
        Route(f"{one}/disable", api.disable, methods=["POST"]),
        Route(f"{one}/enable", api.enable, methods=["POST"]),
        Route(f"{one}/rotate", api.rotate, methods=["POST"]),
        Route(f"{one}/test", api.test, methods=["POST"]),
        Route(f"{one}/deliveries", deliveries.deliveries),
        Route(f"{one}/deliveries/{{position}}", deliveries.delivery),
        Route(f"{one}/deliveries/{{position}}/replay", deliveries.replay_one, methods=["POST"]),
        Route(f"{one}/replays", deliveries.replays, methods=["GET", "POST"]),
        Route(f"{one}/replays/{{replay_id}}", deliveries.replay, methods=["GET", "DELETE"]),
    ]


def _dashboard_routes(roles: Roles, endpoints: Endpoints) -> Sequence[BaseRoute]:
    """The dashboard; its live feed is a stream, and only where streams are."""
    if Role.STREAM in roles:
        return endpoints.dashboard
    return [Route(FEED, _Elsewhere(Role.STREAM, roles)), *endpoints.dashboard]


def _shared_routes(endpoints: Endpoints) -> list[Route]:
    documents = Documents()
    return [
        Route("/metrics", endpoints.ops.metrics),
        Route("/livez", endpoints.ops.livez),
        Route("/readyz", endpoints.ops.readyz),
        Route("/openapi.json", documents.openapi),
        Route("/asyncapi.json", documents.asyncapi),
    ]
