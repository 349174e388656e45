"""`/consumers...`: make, read, list and delete named consumers, and acknowledge what is done."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.acks import Acks
from service.answer import describe_filter, moment_or_none, reply
from service.auth import Tokens, bearer_token
from service.body import read_body
from service.consumer import Consumer, Consumers, Shard
from service.consumer_body import parse_ack, parse_wish
from service.cursor import parse_query, resolve
from service.errors import Forbidden, UnknownConsumer
from service.event import timestamp
from service.eventlog import EventLog
from service.filter import Filter
from service.window import Window


class ConsumerApi:
    """The endpoints; all need a token with the scope `stream`."""

    def __init__(
        self, consumers: Consumers, acks: Acks, eventlog: EventLog, window: Window, tokens: Tokens
    ) -> None:
        self._consumers = consumers
        self._acks = acks
        self._eventlog = eventlog
        self._window = window
        self._tokens = tokens

    async def list_consumers(self, request: Request) -> Response:
        """Answer every consumer that the token may see, by name."""
        limits = await self._authenticate(request)
        shown = []
        for consumer in await self._consumers.all():
            await asyncio.sleep(0)  # a comparison with 1,000 types takes milliseconds
            if _covers(limits, consumer.filter):
                shown.append(_describe(consumer))
        return reply({"consumers": shown})

    async def consumer(self, request: Request) -> Response:
        """Answer one consumer (GET); make or change it (PUT); forget it and its place (DELETE)."""
        limits = await self._authenticate(request)
        name = request.path_params["name"]
        if request.method == "PUT":
            return await self._put(name, request, limits)
        await self._check_limits(name, limits)
        if request.method == "DELETE":
            await self._consumers.delete(name)
            return Response(status_code=204)
        return reply(_describe(await self._consumers.read(name)))

    async def _put(self, name: str, request: Request, limits: Filter) -> Response:
        wish = parse_wish(name, await read_body(request.stream()))
        if not _covers(limits, wish.filter):
            raise Forbidden("this token may not see all that the consumer wants: name a filter")
        await self._check_limits(name, limits)
        position = await resolve(wish.begin, self._eventlog, self._window)
        is_new = await self._consumers.put(
            name,
            ack_mode=wish.ack_mode,
            lease_s=wish.lease_s,
            filter_=wish.filter,
            position=position,
            link=await self._eventlog.check(position, None),
            is_reset=wish.is_reset,
        )
        return reply(_describe(await self._consumers.read(name)), 201 if is_new else 200)

    async def ack(self, request: Request) -> Response:
        """Write down that everything up to a position is done; answer the place then."""
        limits = await self._authenticate(request)
        await self._check_limits(request.path_params["name"], limits)
        ack = parse_ack(request.path_params["name"], await read_body(request.stream()))
        return reply({"position": await self._acks.ack(ack)})

    async def _check_limits(self, name: str, limits: Filter) -> None:
        """Raise Forbidden if the consumer has events that the token may not see."""
        if limits.is_everything:
            return
        try:
            consumer = await self._consumers.read(name)
        except UnknownConsumer:
            return  # the call makes it, or says the same
        if not _covers(limits, consumer.filter):
            raise Forbidden(f"this token may not see all that the consumer {name} wants")

    async def _authenticate(self, request: Request) -> Filter:
        token = bearer_token(request.scope["headers"])
        caller = await self._tokens.authenticate(token, "stream")
        parse_query(request.scope["query_string"], ())
        return caller.limits


def _covers(limits: Filter, filter_: Filter) -> bool:
    """True if a token with `limits` may see all that `filter_` matches."""
    return filter_.intersect(limits) == filter_


def _describe(consumer: Consumer) -> dict[str, Any]:
    place = consumer.furthest_behind
    return {
        "name": consumer.name,
        "ack_mode": consumer.ack_mode,
        "lease_s": consumer.lease_s,
        "filter": describe_filter(consumer.filter),
        "created_at": timestamp(consumer.created_at),
        "position": place.position,
        "id": place.id,
        "head": place.position + place.lag_events,
        "lag_events": place.lag_events,
        "lag_seconds": max(shard.lag_s for shard in consumer.shards),
        "shards": [_describe_shard(shard, len(consumer.shards)) for shard in consumer.shards],
    }


def _describe_shard(shard: Shard, count: int) -> dict[str, Any]:
    return {
        "shard": f"{shard.number}/{count}",
        "position": shard.position,
        "id": shard.id,
        "sent_position": shard.sent_position,
        "lag_events": shard.lag_events,
        "lag_seconds": shard.lag_s,
        "held_by": shard.held_by,
        "held_since": moment_or_none(shard.held_since),
        "lease_until": moment_or_none(shard.lease_until),
    }
