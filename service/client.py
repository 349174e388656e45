"""The client: `subscribe` gives Bridge's events, in order, for as long as you listen.

Needs httpx2 and nothing else of Causeway's (`pip install causeway`). Delivery is at least once and
in order. Keep `event.id` with your own data and start again with `after=`, or let the service keep
the place of a named consumer and acknowledge what is done:

    async for event in subscribe("https://causeway.example", token, consumer="billing"):
        await handle(event.json())
        await event.ack()

The protocol itself is `subscription`; here is only the socket. `subscribe_sync` is the same for
code without asyncio. The errors are drawn in `answers`.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, TypeAlias, Unpack, cast

import httpx2

from service import received
from service.answers import (
    Diverged,
    Hole,
    LeaseLost,
    OtherFilter,
    Patience,
    Pruned,
    Refused,
    SubscribeError,
    Unreachable,
    Unreadable,
)
from service.client_sync import SyncEvent, call_sync, subscribe_sync
from service.connection import (
    ANSWER_MAX_BYTES,
    BLOCK_MAX_BYTES,
    PASSING,
    Ended,
    Interruption,
    Reading,
    Service,
    Wishes,
    address,
    is_loopback,
    lost,
    meaning,
    place,
    refused,
)
from service.consumer_calls import (
    Call,
    delete_consumer,
    get_consumer,
    list_consumers,
    put_consumer,
    reset_consumer,
)

__all__ = [
    "Call",
    "Diverged",
    "Event",
    "Hole",
    "Interruption",
    "LeaseLost",
    "OtherFilter",
    "Pruned",
    "Refused",
    "SubscribeError",
    "SyncEvent",
    "Unreachable",
    "Unreadable",
    "address",
    "call",
    "call_sync",
    "delete_consumer",
    "get_consumer",
    "is_loopback",
    "list_consumers",
    "put_consumer",
    "reset_consumer",
    "subscribe",
    "subscribe_sync",
]

Event: TypeAlias = received.Event[Awaitable[int]]
_Reading: TypeAlias = Reading[Awaitable[int]]


def subscribe(url: str, token: str, **wishes: Unpack[Wishes]) -> AsyncGenerator[Event, None]:
    """Yield the log's events in order, resuming by itself when a connection ends.

    `after`, `from_start` or `since` say where to begin, `types`, `item_ids`, `account_ids`,
    `user_uuids` and `sources` which events; with `consumer`, and `shard` for a part of its events,
    the service keeps the place, and `await event.ack()` moves it. While another holds the consumer
    this stands by, silently. See `connection.Reading` for each. Without a filter the positions are
    checked to be dense. Endless: leave the loop, or close it with `aclosing`; cancelling closes the
    connection.

    Raises ValueError at once for arguments that cannot be right, and from the loop
    `SubscribeError`: `Refused`, `OtherFilter`, `Diverged`, `Pruned`, `Hole`, `Unreadable`.
    """
    return _events(Reading(url, token, **wishes))


async def call(url: str, token: str, what: Call) -> Any:
    """Make one call, such as `put_consumer("billing", types=["item.*"])`, and return its answer.

    Raises `Refused`; `Unreachable` if the service cannot answer now.
    """
    service = Service(url, token)
    async with httpx2.AsyncClient(**service.options) as client:
        try:
            return await _try(client, service, what)
        except Ended as end:
            raise Unreachable(f"{url}: {end.reason}") from end


async def _events(reading: _Reading) -> AsyncGenerator[Event, None]:
    async with httpx2.AsyncClient(**reading.service.options) as client:

        async def acknowledge(what: Call) -> int:
            return place(await _insist(client, reading, what))

        reading.subscription.send = acknowledge
        if (need := reading.need) is not None:
            missing = need.missing(await _insist(client, reading, need.look))
            if missing is not None:
                await _insist(client, reading, missing)
        while True:
            try:
                async with aclosing(_connection(client, reading)) as events:
                    async for event in events:
                        yield event
            except Ended as end:
                await asyncio.sleep(reading.wait_s(end))


async def _connection(client: httpx2.AsyncClient, reading: _Reading) -> AsyncGenerator[Event, None]:
    """Yield the events of one connection; always ends with `Ended` or a `SubscribeError`."""
    try:
        async with client.stream("GET", **reading.request()) as response:
            if response.status_code != httpx2.codes.OK:
                body = await _body(response)
                raise refused(response.status_code, response.headers, body)
            reading.opened(response.headers)
            async with aclosing(_blocks(response)) as blocks:
                async for block in blocks:
                    if (event := reading.receive(block)) is not None:
                        yield event
    except httpx2.SSEError as error:
        raise Unreadable(f"{error} Is the address right?") from error
    except PASSING as error:
        raise lost(error) from error
    raise Ended(reading.subscription.ended())


def _blocks(response: httpx2.Response) -> AsyncGenerator[httpx2.ServerSentEvent, None]:
    source = httpx2.EventSource(response, max_event_size=BLOCK_MAX_BYTES)
    # It is a generator, although its type is wider: closing it at once keeps clean-up in order.
    return cast(AsyncGenerator[httpx2.ServerSentEvent, None], aiter(source))


async def _body(response: httpx2.Response) -> bytes:
    body = b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > ANSWER_MAX_BYTES:
            break
    return body


async def _insist(client: httpx2.AsyncClient, reading: _Reading, what: Call) -> Any:
    """Make a call until it is answered; whatever passes by itself is waited for."""
    patience = Patience()
    while True:
        is_open = not client.is_closed
        try:
            if is_open:
                return await _try(client, reading.service, what)
            # The loop was left: its last events can be acknowledged nevertheless.
            async with httpx2.AsyncClient(**reading.service.options) as own:
                return await _try(own, reading.service, what)
        except Ended as end:
            if is_open and client.is_closed:
                continue  # cut by the end of the loop, not by the service
            await asyncio.sleep(reading.wait_s(end, patience))


async def _try(client: httpx2.AsyncClient, service: Service, what: Call) -> Any:
    try:
        return meaning(what, await client.request(**service.request(what)))
    except PASSING as error:
        raise lost(error) from error
