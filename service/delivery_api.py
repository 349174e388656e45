"""`/api/webhooks/{id}/deliveries...` and `/replays...`: what became of events, and once more.

All need a token with the scope `admin` and without limits.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.answer import describe_filter, moment_or_none, reply
from service.auth import Caller, Tokens, bearer_token
from service.body import read_body
from service.cursor import Params, parse_query
from service.delivery_admin import DeliveryAdmin
from service.delivery_list import Attempt, Delivery
from service.delivery_wish import PARAMS, parse_listing, parse_position, parse_replay
from service.errors import UnknownReplay
from service.event import timestamp
from service.replay import Replay, Wanted
from service.webhook import Webhooks, unknown

_LAST = 2**63 - 1


class DeliveryApi:
    """The endpoints."""

    def __init__(self, admin: DeliveryAdmin, webhooks: Webhooks, tokens: Tokens) -> None:
        self._admin = admin
        self._webhooks = webhooks
        self._tokens = tokens

    async def deliveries(self, request: Request) -> Response:
        """Answer a webhook's deliveries, the newest first, and how much waits for its cursor."""
        _, params = await self._authenticate(request, PARAMS)
        listed = await self._admin.list(_webhook_id(request), parse_listing(params))
        return reply(
            {
                "deliveries": [_describe(delivery) for delivery in listed.deliveries],
                "next": listed.next,
                "waiting": listed.reach.waiting,
            }
        )

    async def delivery(self, request: Request) -> Response:
        """Answer one delivery with its attempts, the newest first."""
        await self._authenticate(request)
        id_ = _webhook_id(request)
        position = parse_position(request.path_params["position"])
        await self._admin.deliveries.reach(id_)
        delivery, attempts = await self._admin.deliveries.read(id_, position)
        return reply(_describe(delivery) | {"tries": [_describe_try(one) for one in attempts]})

    async def replay_one(self, request: Request) -> Response:
        """Send one event again, at once."""
        caller, _ = await self._authenticate(request)
        position = parse_position(request.path_params["position"])
        outcome = await self._admin.replay_one(_webhook_id(request), position, caller.name)
        return reply({"position": position, "outcome": outcome}, 202)

    async def replays(self, request: Request) -> Response:
        """Answer a webhook's replays (GET), or begin one, or only count what it would send."""
        caller, _ = await self._authenticate(request)
        id_ = _webhook_id(request)
        if request.method != "POST":
            await self._admin.deliveries.reach(id_)
            replays = await self._admin.replays.all(id_)
            return reply({"replays": [_describe_replay(replay) for replay in replays]})
        wish = parse_replay(await read_body(request.stream()))
        wanted, events = await self._admin.count(id_, wish)
        if wish.is_dry_run:
            eta = {"eta_seconds": events / wanted.per_s}
            return reply({"dry_run": True, **_describe_wanted(wanted), "events": events, **eta})
        replay = await self._admin.begin(id_, wanted, events, caller.name)
        return reply(_describe_replay(replay), 201)

    async def replay(self, request: Request) -> Response:
        """Answer how far a replay is (GET), or stop it (DELETE)."""
        caller, _ = await self._authenticate(request)
        id_, text = _webhook_id(request), request.path_params["replay_id"]
        if not _is_number(text):
            raise UnknownReplay(f"the webhook {id_} has no replay {text[:32]!r}")
        await self._admin.deliveries.reach(id_)
        if request.method != "DELETE":
            return reply(_describe_replay(await self._admin.replays.read(id_, int(text))))
        return reply(_describe_replay(await self._admin.cancel(id_, int(text), caller.name)))

    async def _authenticate(
        self, request: Request, known: frozenset[str] = frozenset()
    ) -> tuple[Caller, Params]:
        holder = await self._tokens.log_in(bearer_token(request.scope["headers"]))
        params = parse_query(request.scope["query_string"], known)
        self._webhooks.require()
        return holder.caller, params


def _webhook_id(request: Request) -> int:
    text: str = request.path_params["id"]
    if not _is_number(text):
        raise unknown(text)
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= _LAST


def _describe(delivery: Delivery) -> dict[str, Any]:
    return {
        "position": delivery.position,
        "id": delivery.id,
        "type": delivery.type,
        "source": delivery.source,
        "item_id": delivery.item_id,
        "received_at": moment_or_none(delivery.received_at),
        "state": delivery.state,
        "attempts": delivery.attempts,
        "in_flight": delivery.is_in_flight,
        "held": delivery.is_held,
        "next_attempt_at": moment_or_none(delivery.next_attempt_at),
        "last_attempted_at": moment_or_none(delivery.attempted_at),
        "last_status": delivery.status,
        "last_error": delivery.error,
        "settled_at": moment_or_none(delivery.settled_at),
        "is_replay": delivery.is_replay,
    }


def _describe_try(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "started_at": timestamp(attempt.started_at),
        "duration_seconds": attempt.duration_s,
        "status": attempt.status,
        "error": attempt.error,
        "answer": attempt.answer.decode("utf-8", "replace"),
    }


def _describe_wanted(wanted: Wanted) -> dict[str, Any]:
    return {
        "state": wanted.state,
        "filter": describe_filter(wanted.filter),
        "from": wanted.after + 1,
        "until": wanted.until,
        "rate": wanted.per_s,
    }


def _describe_replay(replay: Replay) -> dict[str, Any]:
    return {
        "id": replay.replay_id,
        "webhook_id": replay.webhook_id,
        "status": replay.status,
        **_describe_wanted(replay.wanted),
        "events": replay.events,
        "queued": replay.queued,
        "position": replay.position,
        "eta_seconds": replay.eta_s,
        "requested_at": timestamp(replay.requested_at),
        "requested_by": replay.requested_by,
        "finished_at": moment_or_none(replay.finished_at),
        "cancelled_at": moment_or_none(replay.cancelled_at),
    }
