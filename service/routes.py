"""Which path is answered by whom; every answer to a path that nobody has."""

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route

from service.admin import Admin
from service.consumer_api import ConsumerApi
from service.delivery_api import DeliveryApi
from service.documents import Documents
from service.errors import Problem
from service.ops import Ops
from service.pages import Pages
from service.problems import answer_http_exception, answer_problem, answer_unknown
from service.receive import ReceiveWebhook
from service.stream import Stream
from service.webhook_api import PATH, WebhookApi


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Everything that answers."""

    receive: ReceiveWebhook
    stream: Stream
    pages: Pages
    consumers: ConsumerApi
    admin: Admin
    webhooks: WebhookApi
    deliveries: DeliveryApi
    ops: Ops
    dashboard: Sequence[BaseRoute]


def application(endpoints: Endpoints) -> Starlette:
    """Return the ASGI app."""
    app = Starlette(
        routes=[
            *_public(endpoints),
            *_admin(endpoints.admin),
            *_webhooks(endpoints.webhooks),
            *_deliveries(endpoints.deliveries),
            *_operation(endpoints.ops),
            *endpoints.dashboard,
        ],
        exception_handlers={
            Problem: answer_problem,
            HTTPException: answer_http_exception,
            Exception: answer_unknown,
        },
    )
    app.router.redirect_slashes = False  # no path has two spellings: 404, not 307
    return app


def _public(endpoints: Endpoints) -> list[Route]:
    receive, pages, consumers = endpoints.receive, endpoints.pages, endpoints.consumers
    return [
        Route("/webhooks/bridge", receive, methods=["POST"]),
        Route("/webhooks/bridge/{source}", receive, methods=["POST"]),
        Route("/stream", endpoints.stream, methods=["GET"]),
        Route("/events", pages.list_events),
        Route("/events/{position}", pages.get_event),
        Route("/consumers", consumers.list_consumers),
        Route("/consumers/{name}", consumers.consumer, methods=["GET", "PUT", "DELETE"]),
        Route("/consumers/{name}/ack", consumers.ack, methods=["POST"]),
    ]


def _admin(admin: Admin) -> list[Route]:
    return [
        Route("/api/tokens", admin.tokens, methods=["GET", "POST"]),
        Route("/api/tokens/{token_id}", admin.token, methods=["DELETE"]),
        Route("/api/sources", admin.sources),
        Route("/api/stats", admin.stats),
        Route("/api/log/checkpoint", admin.checkpoint),
    ]


def _webhooks(api: WebhookApi) -> list[Route]:
    one = f"{PATH}/{{id}}"
    return [
        Route(PATH, api.webhooks, methods=["GET", "POST"]),
        Route(one, api.webhook, methods=["GET", "PATCH", "DELETE"]),
        Route(f"{one}/disable", api.disable, methods=["POST"]),
        Route(f"{one}/enable", api.enable, methods=["POST"]),
        Route(f"{one}/rotate", api.rotate, methods=["POST"]),
        Route(f"{one}/test", api.test, methods=["POST"]),
    ]


def _deliveries(api: DeliveryApi) -> list[Route]:
    one = f"{PATH}/{{id}}"
    return [
        Route(f"{one}/deliveries", api.deliveries),
        Route(f"{one}/deliveries/{{position}}", api.delivery),
        Route(f"{one}/deliveries/{{position}}/replay", api.replay_one, methods=["POST"]),
        Route(f"{one}/replays", api.replays, methods=["GET", "POST"]),
        Route(f"{one}/replays/{{replay_id}}", api.replay, methods=["GET", "DELETE"]),
    ]


def _operation(ops: Ops) -> list[Route]:
    documents = Documents()
    return [
        Route("/metrics", ops.metrics),
        Route("/livez", ops.livez),
        Route("/readyz", ops.readyz),
        Route("/openapi.json", documents.openapi),
        Route("/asyncapi.json", documents.asyncapi),
    ]
