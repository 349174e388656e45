"""`/api/webhooks...`: make webhooks, list, read, change, disable, enable, rotate, test, delete."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.answer import moment_or_none, reply
from service.auth import Caller, Tokens, bearer_token
from service.body import read_body
from service.cursor import parse_query
from service.event import timestamp
from service.webhook import unknown
from service.webhook_admin import WebhookAdmin, explain
from service.webhook_body import MASK
from service.webhook_value import Webhook

PATH = "/api/webhooks"
_INT64 = 2**63


class WebhookApi:
    """The endpoints; all need a token with the scope `admin` and without limits."""

    def __init__(self, admin: WebhookAdmin, tokens: Tokens) -> None:
        self._admin = admin
        self._tokens = tokens

    async def webhooks(self, request: Request) -> Response:
        """Answer all webhooks (GET), or make one (POST): the only time that its secret is shown."""
        caller = await self._authenticate(request)
        if request.method != "POST":
            return reply({"webhooks": [_describe(one) for one in await self._admin.webhooks.all()]})
        webhook = await self._admin.create(await read_body(request.stream()), caller.name)
        location = {"location": f"{PATH}/{webhook.webhook_id}"}
        return reply(_describe(webhook) | {"secret": webhook.secret}, 201, location)

    async def webhook(self, request: Request) -> Response:
        """Answer one webhook (GET); change it (PATCH); forget it and its secrets (DELETE)."""
        caller = await self._authenticate(request)
        id_ = _parse_id(request)
        if request.method == "DELETE":
            await self._admin.delete(id_, caller.name)
            return Response(status_code=204)
        if request.method == "PATCH":
            body = await read_body(request.stream())
            return reply(_describe(await self._admin.change(id_, body, caller.name)))
        return reply(_describe(await self._admin.webhooks.read(id_)))

    async def disable(self, request: Request) -> Response:
        """Call it no more until it is enabled; calls under way end."""
        caller = await self._authenticate(request)
        return reply(_describe(await self._admin.disable(_parse_id(request), caller.name)))

    async def enable(self, request: Request) -> Response:
        """Call it again, from where it stands or from a `start` further on."""
        caller = await self._authenticate(request)
        id_ = _parse_id(request)
        body = await read_body(request.stream())
        return reply(_describe(await self._admin.enable(id_, body, caller.name)))

    async def rotate(self, request: Request) -> Response:
        """Give it a new secret, shown now and never again; the old one signs for a day more."""
        caller = await self._authenticate(request)
        webhook = await self._admin.rotate(_parse_id(request), caller.name)
        return reply(_describe(webhook) | {"secret": webhook.secret})

    async def test(self, request: Request) -> Response:
        """Send Bridge's test event at once, and answer what came back. Counts for nothing."""
        caller = await self._authenticate(request)
        tested = await self._admin.test(_parse_id(request), caller.name)
        answer = tested.answer
        return reply(
            {
                "delivered": answer.is_success,
                "status": answer.status,
                "error": answer.error,
                "duration_seconds": round(answer.duration_s, 6),
                "answer": tested.text,
                "message_id": tested.message_id,
            }
        )

    async def _authenticate(self, request: Request) -> Caller:
        # Without limits: a webhook could be sent, and its deliveries show, what they leave out.
        holder = await self._tokens.log_in(bearer_token(request.scope["headers"]))
        parse_query(request.scope["query_string"], ())
        self._admin.webhooks.require()
        return holder.caller


def _parse_id(request: Request) -> int:
    text: str = request.path_params["id"]
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) < _INT64):
        raise unknown(text)
    return int(text)


def _describe(webhook: Webhook) -> dict[str, Any]:
    return {
        "id": webhook.webhook_id,
        "application": webhook.application,
        "name": webhook.name,
        "url": webhook.url,
        "types": _sorted(webhook.filter.topics),
        "sources": _sorted(webhook.filter.sources),
        "headers": dict.fromkeys(webhook.headers, MASK),
        "ordered": webhook.is_ordered,
        "state": webhook.state,
        "explanation": explain(webhook),
        "disabled_at": moment_or_none(webhook.disabled_at),
        "disabled_reason": webhook.disabled_reason,
        "failures": webhook.failures,
        "failing_since": moment_or_none(webhook.failing_since),
        "next_probe_at": moment_or_none(webhook.open_until),
        "position": webhook.cursor_position,
        "position_id": webhook.cursor_id,
        "head": webhook.head_position,
        "lag_events": max(0, webhook.head_position - webhook.cursor_position),
        "backfill_until": webhook.backfill_until,
        "previous_secret_until": moment_or_none(webhook.previous_secret_until),
        "created_at": timestamp(webhook.created_at),
        "created_by": webhook.created_by,
        "enabled_at": timestamp(webhook.enabled_at),
    }


def _sorted(values: frozenset[str] | None) -> list[str] | None:
    return None if values is None else sorted(values)
