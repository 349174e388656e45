"""The client for code without asyncio: `subscribe_sync` and `call_sync`, as `client` has them.

The protocol is `subscription`, as there; here is only the socket.

    for event in subscribe_sync("https://causeway.example", token, consumer="billing"):
        handle(event.json())
        event.ack()
"""

import time
from collections.abc import Generator
from contextlib import closing
from typing import Any, TypeAlias, Unpack, cast

import httpx2

from service import received
from service.answers import Patience, Unreachable, Unreadable
from service.connection import (
    ANSWER_MAX_BYTES,
    BLOCK_MAX_BYTES,
    PASSING,
    Ended,
    Reading,
    Service,
    Wishes,
    lost,
    meaning,
    place,
    refused,
)
from service.consumer_calls import Call

SyncEvent: TypeAlias = received.Event[int]
_Reading: TypeAlias = Reading[int]


def subscribe_sync(
    url: str, token: str, **wishes: Unpack[Wishes]
) -> Generator[SyncEvent, None, None]:
    """Yield the log's events in order, as `client.subscribe` does; `event.ack()` needs no await.

    Endless: leave the loop, or close it with `closing`.
    """
    return _events(Reading(url, token, **wishes))


def call_sync(url: str, token: str, what: Call) -> Any:
    """Make one call and return its answer. Raises `Refused`, `Unreachable`."""
    service = Service(url, token)
    with httpx2.Client(**service.options) as client:
        try:
            return _try(client, service, what)
        except Ended as end:
            raise Unreachable(f"{url}: {end.reason}") from end


def _events(reading: _Reading) -> Generator[SyncEvent, None, None]:
    with httpx2.Client(**reading.service.options) as client:

        def acknowledge(what: Call) -> int:
            return place(_insist(client, reading, what))

        reading.subscription.send = acknowledge
        if (need := reading.need) is not None:
            missing = need.missing(_insist(client, reading, need.look))
            if missing is not None:
                _insist(client, reading, missing)
        while True:
            try:
                with closing(_connection(client, reading)) as events:
                    yield from events
            except Ended as end:
                time.sleep(reading.wait_s(end))


def _connection(client: httpx2.Client, reading: _Reading) -> Generator[SyncEvent, None, None]:
    """Yield the events of one connection; always ends with `Ended` or a `SubscribeError`."""
    try:
        with client.stream("GET", **reading.request()) as response:
            if response.status_code != httpx2.codes.OK:
                raise refused(response.status_code, response.headers, _body(response))
            reading.opened(response.headers)
            with closing(_blocks(response)) as blocks:
                for block in blocks:
                    if (event := reading.receive(block)) is not None:
                        yield event
    except httpx2.SSEError as error:
        raise Unreadable(f"{error} Is the address right?") from error
    except PASSING as error:
        raise lost(error) from error
    raise Ended(reading.subscription.ended())


def _blocks(response: httpx2.Response) -> Generator[httpx2.ServerSentEvent, None, None]:
    source = httpx2.EventSource(response, max_event_size=BLOCK_MAX_BYTES)
    # It is a generator, although its type is wider: closing it at once keeps clean-up in order.
    return cast(Generator[httpx2.ServerSentEvent, None, None], iter(source))


def _body(response: httpx2.Response) -> bytes:
    body = b""
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > ANSWER_MAX_BYTES:
            break
    return body


def _insist(client: httpx2.Client, reading: _Reading, what: Call) -> Any:
    """Make a call until it is answered; whatever passes by itself is waited for."""
    patience = Patience()
    while True:
        is_open = not client.is_closed
        try:
            if is_open:
                return _try(client, reading.service, what)
            # The loop was left: its last events can be acknowledged nevertheless.
            with httpx2.Client(**reading.service.options) as own:
                return _try(own, reading.service, what)
        except Ended as end:
            if is_open and client.is_closed:
                continue  # cut by the end of the loop, not by the service
            time.sleep(reading.wait_s(end, patience))


def _try(client: httpx2.Client, service: Service, what: Call) -> Any:
    try:
        return meaning(what, client.request(**service.request(what)))
    except PASSING as error:
        raise lost(error) from error
