"""`/api/webhooks/{id}/deliveries...` and `/replays...`: what became of events, and once more.

All need a token with the scope `admin`.
"""

import logging
from datetime import datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.auth import Caller, Tokens, bearer_token
from service.body import read_body
from service.cursor import Params, Place, Start, parse_query
from service.delivery_list import Attempt, Delivery, DeliveryList, Look, Reach
from service.delivery_wish import (
    PARAMS,
    Bound,
    Listing,
    ReplayWish,
    parse_listing,
    parse_position,
    parse_replay,
)
from service.errors import BadRequest, UnknownReplay
from service.event import timestamp
from service.eventlog import EventLog
from service.filter import Filter
from service.replay import Replay, Replays, Wanted
from service.webhook import Webhooks, unknown

log = logging.getLogger("causeway.delivery_api")

_LAST = 2**63 - 1


class DeliveryApi:
    """The endpoints."""

    def __init__(
        self,
        webhooks: Webhooks,
        deliveries: DeliveryList,
        replays: Replays,
        eventlog: EventLog,
        tokens: Tokens,
    ) -> None:
        self._webhooks = webhooks
        self._deliveries = deliveries
        self._replays = replays
        self._eventlog = eventlog
        self._tokens = tokens

    async def deliveries(self, request: Request) -> Response:
        """Answer a webhook's deliveries, the newest first, and how much waits for its cursor."""
        _, params = await self._authenticate(request, PARAMS)
        id_ = _webhook_id(request)
        listing = parse_listing(params)
        reach = await self._deliveries.reach(id_)
        found, next_ = await self._deliveries.page(id_, await self._look(listing))
        return _json(
            {
                "deliveries": [_describe(delivery) for delivery in found],
                "next": next_,
                "waiting": reach.waiting,
            }
        )

    async def _look(self, listing: Listing) -> Look:
        after, until = listing.after or 0, _LAST
        if listing.before is not None:
            until = listing.before - 1
        if listing.since is not None:
            after = max(after, await self._eventlog.find_time(listing.since) - 1)
        if listing.until is not None:
            until = min(until, await self._eventlog.find_time(listing.until) - 1)
        return Look(after, until, listing.limit, listing.state, listing.filter)

    async def delivery(self, request: Request) -> Response:
        """Answer one delivery with its attempts, the newest first."""
        await self._authenticate(request)
        id_ = _webhook_id(request)
        position = parse_position(request.path_params["position"])
        await self._deliveries.reach(id_)
        delivery, attempts = await self._deliveries.read(id_, position)
        return _json(_describe(delivery) | {"tries": [_describe_try(one) for one in attempts]})

    async def replay_one(self, request: Request) -> Response:
        """Send one event again, at once."""
        caller, _ = await self._authenticate(request)
        id_ = _webhook_id(request)
        position = parse_position(request.path_params["position"])
        outcome = await self._replays.one(id_, position)
        fields = {"webhook": id_, "position": position, "by": caller.name}
        log.info("delivery replayed", extra=fields)
        return _json({"position": position, "outcome": outcome}, 202)

    async def replays(self, request: Request) -> Response:
        """Answer a webhook's replays (GET), or begin one, or only count what it would send."""
        caller, _ = await self._authenticate(request)
        id_ = _webhook_id(request)
        if request.method != "POST":
            await self._deliveries.reach(id_)
            replays = await self._replays.all(id_)
            return _json({"replays": [_describe_replay(replay) for replay in replays]})
        wish = parse_replay(await read_body(request.stream()))
        reach = await self._deliveries.reach(id_)
        wanted = await self._resolve(wish, reach)
        events = await self._replays.count(id_, reach.filter, wanted)
        if wish.is_dry_run:
            eta = {"eta_seconds": events / wanted.per_s}
            return _json({"dry_run": True, **_describe_wanted(wanted), "events": events, **eta})
        replay = await self._replays.create(id_, wanted, events, caller.name)
        fields = {"webhook": id_, "replay": replay.replay_id, "events": events, "by": caller.name}
        log.info("replay begun", extra=fields)
        return _json(_describe_replay(replay), 201)

    async def replay(self, request: Request) -> Response:
        """Answer how far a replay is (GET), or stop it (DELETE)."""
        caller, _ = await self._authenticate(request)
        id_, text = _webhook_id(request), request.path_params["replay_id"]
        if not _is_number(text):
            raise UnknownReplay(f"the webhook {id_} has no replay {text[:32]!r}")
        await self._deliveries.reach(id_)
        if request.method != "DELETE":
            return _json(_describe_replay(await self._replays.read(id_, int(text))))
        replay = await self._replays.cancel(id_, int(text))
        fields = {"webhook": id_, "replay": replay.replay_id, "by": caller.name}
        log.info("replay cancelled", extra=fields)
        return _json(_describe_replay(replay))

    async def _resolve(self, wish: ReplayWish, reach: Reach) -> Wanted:
        """Return the wish with positions, none beyond the cursor. Raises for impossible ranges."""
        first = await self._first(wish.begin, reach)
        last = await self._last(wish.end, reach)
        if wish.end is not None and first > last and not _is_span(wish):
            raise BadRequest(f"from is after until: {first} is after {last}")
        if isinstance(wish.begin, Place) and first > reach.cursor:
            raise BadRequest(
                f"from: the webhook got to position {reach.cursor}; what follows comes by itself"
            )
        after = first - 1
        until = max(after, min(last, reach.cursor))
        return Wanted(wish.state, wish.filter, after, until, wish.per_s)

    async def _first(self, begin: Bound | None, reach: Reach) -> int:
        if begin is None or isinstance(begin, Start):
            return reach.anchor + 1
        if isinstance(begin, datetime):
            return await self._eventlog.find_time(begin)
        await self._check(begin)
        first = max(1, begin.position)
        await self._eventlog.check_kept(first - 1)
        return first

    async def _last(self, end: Bound | None, reach: Reach) -> int:
        if isinstance(end, datetime):
            return await self._eventlog.find_time(end) - 1
        if isinstance(end, Place):
            await self._check(end)
            return end.position
        return reach.head

    async def _check(self, place: Place) -> None:
        if place.link_digits is not None:
            await self._eventlog.check(place.position, place.link_digits)

    async def _authenticate(
        self, request: Request, known: frozenset[str] = frozenset()
    ) -> tuple[Caller, Params]:
        params = parse_query(request.scope["query_string"], known)
        token = bearer_token(request.scope["headers"])
        caller = await self._tokens.authenticate(token, "admin")
        self._webhooks.require()
        return caller, params


def _is_span(wish: ReplayWish) -> bool:
    """True for two times in their order: nothing may have been received between them."""
    begin, end = wish.begin, wish.end
    return isinstance(begin, datetime) and isinstance(end, datetime) and begin < end


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
        "received_at": _moment(delivery.received_at),
        "state": delivery.state,
        "attempts": delivery.attempts,
        "in_flight": delivery.is_in_flight,
        "held": delivery.is_held,
        "next_attempt_at": _moment(delivery.next_attempt_at),
        "last_attempted_at": _moment(delivery.attempted_at),
        "last_status": delivery.status,
        "last_error": delivery.error,
        "settled_at": _moment(delivery.settled_at),
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
        "filter": _describe_filter(wanted.filter),
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
        "finished_at": _moment(replay.finished_at),
        "cancelled_at": _moment(replay.cancelled_at),
    }


def _describe_filter(filter_: Filter) -> dict[str, list[Any]]:
    fields = {
        "types": filter_.topics,
        "item_ids": filter_.item_ids,
        "account_ids": filter_.account_ids,
        "user_uuids": filter_.user_uuids,
        "sources": filter_.sources,
    }
    return {name: sorted(values) for name, values in fields.items() if values is not None}


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)


def _json(content: object, status: int = 200) -> Response:
    return Response(
        orjson.dumps(content), status, {"cache-control": "no-store"}, "application/json"
    )
