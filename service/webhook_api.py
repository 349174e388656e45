"""`/api/webhooks...`: make webhooks, list, read, change, disable, enable, rotate, test, delete."""

import logging
import secrets
import time
from datetime import datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.auth import Caller, Tokens, bearer_token
from service.body import read_body
from service.callback import Callbacks
from service.callback_url import CallbackUrl, parse_callback_url
from service.config import Settings
from service.cursor import Begin, Live, parse_query, resolve
from service.errors import BadRequest
from service.event import timestamp
from service.eventlog import EventLog
from service.outgoing import Signer
from service.payloads import TEST_EVENT
from service.webhook import Webhooks, unknown
from service.webhook_body import MASK, parse_change, parse_start, parse_wish
from service.webhook_value import Webhook
from service.window import Window

log = logging.getLogger("causeway.webhook_api")

PATH = "/api/webhooks"
_SHOWN_BYTES = 1024
_INT64 = 2**63

_DISABLED = {
    "admin": "an administrator disabled it; enabled, it goes on where it stands",
    "gone": "its callback answered 410 Gone; enable it when the callback is there again",
    "failing": "its callback failed for days on end; enable it when the callback works again",
    "log_diverged": "the log was restored or replaced, and does not continue from its place; "
    "enable it with a start",
    "position_pruned": "what follows its place is no longer kept; enable it with a start",
}


class WebhookApi:
    """The endpoints; all need a token with the scope `admin`."""

    def __init__(
        self,
        settings: Settings,
        webhooks: Webhooks,
        callbacks: Callbacks,
        eventlog: EventLog,
        window: Window,
        tokens: Tokens,
    ) -> None:
        self._webhooks = webhooks
        self._callbacks = callbacks
        self._eventlog = eventlog
        self._window = window
        self._tokens = tokens
        self._allow_http = settings.relay_allow_http

    async def webhooks(self, request: Request) -> Response:
        """Answer all webhooks (GET), or make one (POST): the only time that its secret is shown."""
        caller = await self._authenticate(request)
        if request.method != "POST":
            return _json({"webhooks": [_describe(one) for one in await self._webhooks.all()]})
        wish = parse_wish(await read_body(request.stream()), allow_http=self._allow_http)
        await self._check(wish.url)
        position, link = await self._place(wish.begin)
        webhook = await self._webhooks.create(
            application=wish.application,
            name=wish.name,
            url=wish.url.text,
            filter_=wish.filter,
            headers=wish.headers,
            is_ordered=wish.is_ordered,
            position=position,
            link=link,
            created_by=caller.name,
        )
        _report("webhook created", webhook.webhook_id, caller)
        location = {"location": f"{PATH}/{webhook.webhook_id}"}
        return _json(_describe(webhook) | {"secret": webhook.secret}, 201, location)

    async def webhook(self, request: Request) -> Response:
        """Answer one webhook (GET); change it (PATCH); forget it and its secrets (DELETE)."""
        caller = await self._authenticate(request)
        id_ = _parse_id(request)
        if request.method == "DELETE":
            await self._webhooks.delete(id_)
            _report("webhook deleted", id_, caller)
            return Response(status_code=204)
        if request.method == "PATCH":
            return await self._change(id_, request, caller)
        return _json(_describe(await self._webhooks.read(id_)))

    async def _change(self, id_: int, request: Request, caller: Caller) -> Response:
        body = await read_body(request.stream())
        change, url = parse_change(body, allow_http=self._allow_http)
        if url is not None:
            await self._check(url)
        webhook = await self._webhooks.change(id_, change)
        _report("webhook changed", id_, caller, fields=sorted(change.fields))
        return _json(_describe(webhook))

    async def disable(self, request: Request) -> Response:
        """Call it no more until it is enabled; calls under way end."""
        caller = await self._authenticate(request)
        webhook = await self._webhooks.disable(_parse_id(request), "admin")
        _report("webhook disabled", webhook.webhook_id, caller)
        return _json(_describe(webhook))

    async def enable(self, request: Request) -> Response:
        """Call it again, from where it stands or from a `start` further on."""
        caller = await self._authenticate(request)
        id_ = _parse_id(request)
        begin = parse_start(await read_body(request.stream()))
        start = None if begin is None else await self._place(begin)
        webhook = await self._webhooks.enable(id_, start)
        _report("webhook enabled", id_, caller)
        return _json(_describe(webhook))

    async def rotate(self, request: Request) -> Response:
        """Give it a new secret, shown now and never again; the old one signs for a day more."""
        caller = await self._authenticate(request)
        webhook = await self._webhooks.rotate(_parse_id(request))
        _report("webhook secret rotated", webhook.webhook_id, caller)
        return _json(_describe(webhook) | {"secret": webhook.secret})

    async def test(self, request: Request) -> Response:
        """Send Bridge's test event at once, and answer what came back. Counts for nothing."""
        caller = await self._authenticate(request)
        webhook = await self._webhooks.read(_parse_id(request))
        signer, url = Signer(webhook), self._parse_url(webhook)
        message_id = f"test_{secrets.token_hex(16)}"
        headers = signer.headers(message_id, TEST_EVENT, time.time(), position=None, attempt=1)
        answer = await self._callbacks.post(url, headers, TEST_EVENT)
        _report("webhook tested", webhook.webhook_id, caller)
        return _json(
            {
                "delivered": answer.is_success,
                "status": answer.status,
                "error": answer.error,
                "duration_seconds": round(answer.duration_s, 6),
                "answer": answer.body[:_SHOWN_BYTES].decode("utf-8", "replace"),
                "message_id": message_id,
            }
        )

    def _parse_url(self, webhook: Webhook) -> CallbackUrl:
        try:
            return parse_callback_url(webhook.url, allow_http=self._allow_http)
        except ValueError as error:  # the settings have changed since it was made
            raise BadRequest(f"url: {error}") from error

    async def _check(self, url: CallbackUrl) -> None:
        refusal = await self._callbacks.check(url)
        if refusal is not None:
            raise BadRequest(f"url: {refusal}; see CAUSEWAY_RELAY_ALLOWED_NETWORKS")

    async def _place(self, begin: Begin) -> tuple[int, bytes]:
        """Return the position to begin after and its link, if the log continues from there."""
        if isinstance(begin, Live):  # the head itself: the window may be a moment behind
            bounds = await self._eventlog.bounds()
            return bounds.head_position, bounds.head_link
        position = await resolve(begin, self._eventlog, self._window)
        return position, await self._eventlog.check(position, None)

    async def _authenticate(self, request: Request) -> Caller:
        parse_query(request.scope["query_string"], ())
        token = bearer_token(request.scope["headers"])
        caller = await self._tokens.authenticate(token, "admin")
        self._webhooks.require()
        return caller


def _parse_id(request: Request) -> int:
    text: str = request.path_params["id"]
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) < _INT64):
        raise unknown(text)
    return int(text)


def _report(what: str, webhook_id: int, caller: Caller, **fields: Any) -> None:
    """Say who did what; a URL or a header may hold a secret, and is never part of it."""
    log.info(what, extra={"webhook": webhook_id, "by": caller.name, **fields})


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
        "explanation": _explain(webhook),
        "disabled_at": _moment(webhook.disabled_at),
        "disabled_reason": webhook.disabled_reason,
        "failures": webhook.failures,
        "failing_since": _moment(webhook.failing_since),
        "next_probe_at": _moment(webhook.open_until),
        "position": webhook.cursor_position,
        "position_id": webhook.cursor_id,
        "head": webhook.head_position,
        "lag_events": max(0, webhook.head_position - webhook.cursor_position),
        "backfill_until": webhook.backfill_until,
        "previous_secret_until": _moment(webhook.previous_secret_until),
        "created_at": timestamp(webhook.created_at),
        "created_by": webhook.created_by,
        "enabled_at": timestamp(webhook.enabled_at),
    }


def _explain(webhook: Webhook) -> str:
    """Return the state in a sentence, for whoever was woken by it."""
    if webhook.disabled_reason is not None:
        return _DISABLED.get(webhook.disabled_reason, webhook.disabled_reason)
    if webhook.unreadable is not None:
        return f"{webhook.unreadable}; if it is lost, set the headers anew and rotate the secret"
    if webhook.failing_since is None:
        return "its last call succeeded, or none was made yet"
    failing = f"{webhook.failures} calls failed since {timestamp(webhook.failing_since)}"
    if webhook.open_until is None:
        return failing
    return f"{failing}; one probe at a time until one succeeds, see next_probe_at"


def _sorted(values: frozenset[str] | None) -> list[str] | None:
    return None if values is None else sorted(values)


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)


def _json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    headers = {"cache-control": "no-store", **(headers or {})}
    return Response(orjson.dumps(content), status, headers, "application/json")
