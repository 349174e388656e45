"""The client: `subscribe` gives Bridge's events, in order, for as long as you listen.

Needs httpx2 and nothing else of Causeway's (`pip install causeway`). Delivery is at least once and
in order: whoever keeps `event.id` after the event was dealt with, and starts again with `after=`,
misses nothing. The protocol itself is `subscription`; here is only the socket.

    async for event in subscribe("https://causeway.example", token, types=["item.*"]):
        await handle(event.json())
        save(event.id)
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import httpx2

from service.subscription import (
    Diverged,
    Event,
    Hole,
    Pruned,
    Refused,
    SubscribeError,
    Subscription,
    Unreadable,
    filters,
    refusal,
    retry_after_s,
)

__all__ = [
    "Diverged",
    "Event",
    "Hole",
    "Interruption",
    "Pruned",
    "Refused",
    "SubscribeError",
    "Unreadable",
    "address",
    "is_loopback",
    "subscribe",
]

IDLE_S = 45.0  # three of the server's heartbeats
_CONNECT_S = 10.0
_BLOCK_MAX_BYTES = 64 * 1024 * 1024  # above any body that a server may be set to take
_ANSWER_MAX_BYTES = 64 * 1024
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_HEADERS = {
    "Accept": "text/event-stream",
    "Accept-Encoding": "identity",  # who compresses a stream also holds it back
    "Cache-Control": "no-store",
}
_PASSING = (
    httpx2.NetworkError,
    httpx2.TimeoutException,
    httpx2.RemoteProtocolError,
    httpx2.ProxyError,
    httpx2.DecodingError,
)


@dataclass(frozen=True, slots=True)
class Interruption:
    """A connection ended; the subscription goes on after `last_id` in `wait_s` seconds."""

    reason: str
    wait_s: float
    last_id: str | None


class _Ended(Exception):
    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.retry_after_s = reason, retry_after_s


def subscribe(
    url: str,
    token: str,
    *,
    after: str | int | None = None,
    from_start: bool = False,
    since: datetime | str | None = None,
    types: Iterable[str] = (),
    item_ids: Iterable[int] = (),
    account_ids: Iterable[int] = (),
    user_uuids: Iterable[str] = (),
    sources: Iterable[str] = (),
    idle_s: float = IDLE_S,
    on_interruption: Callable[[Interruption], None] | None = None,
) -> AsyncGenerator[Event, None]:
    """Yield the log's events in order, resuming by itself when a connection ends.

    Begins after the id `after`, at the first event (`from_start`), at a time (`since`, an aware
    datetime or ISO text), or with the next event (default). Filters: any value within a field, and
    all the fields. A connection silent for `idle_s` seconds counts as lost. Without a filter the
    positions are checked to be dense. Endless: leave the loop, or close it with `aclosing`;
    cancelling closes the connection.

    Raises ValueError at once for arguments that cannot be right, and from the loop
    `SubscribeError`: `Refused`, `Diverged`, `Pruned`, `Hole`, `Unreadable`.
    """
    wanted = filters(types, item_ids, account_ids, user_uuids, sources)
    subscription = Subscription(after=after, from_start=from_start, since=since, filters=wanted)
    target = address(url, "/stream")
    if not (token and token.isascii() and token.isprintable()):
        raise ValueError("the token must be printable ASCII text")
    options = {
        "headers": {"Authorization": f"Bearer {token}"},
        "timeout": httpx2.Timeout(_CONNECT_S, read=idle_s),
        "trust_env": not is_loopback(target),
    }
    return _events(options, target, subscription, on_interruption)


async def _events(
    options: dict[str, Any],
    target: httpx2.URL,
    subscription: Subscription,
    on_interruption: Callable[[Interruption], None] | None,
) -> AsyncGenerator[Event, None]:
    async with httpx2.AsyncClient(**options) as client:
        while True:
            try:
                async with aclosing(_connection(client, target, subscription)) as events:
                    async for event in events:
                        yield event
            except _Ended as end:
                wait_s = subscription.next_try_s(end.retry_after_s)
                if on_interruption is not None:
                    on_interruption(Interruption(end.reason, wait_s, subscription.last_id))
                await asyncio.sleep(wait_s)


async def _connection(
    client: httpx2.AsyncClient, target: httpx2.URL, subscription: Subscription
) -> AsyncGenerator[Event, None]:
    """Yield the events of one connection; always ends with `_Ended` or a `SubscribeError`."""
    ask = subscription.ask()
    headers = _HEADERS | ask.headers
    try:
        async with client.stream("GET", target, params=ask.parameters, headers=headers) as response:
            await _check(response)
            subscription.opened(is_filtered=response.headers.get("Causeway-Filtered") == "true")
            async with aclosing(_blocks(response)) as blocks:
                async for block in blocks:
                    event = subscription.receive(block.id, block.event, block.data, block.retry)
                    if event is not None:
                        yield event
    except httpx2.SSEError as error:
        raise Unreadable(f"{error} Is the address right?") from error
    except _PASSING as error:
        raise _Ended(_reason(error)) from error
    raise _Ended("the server ended the stream")


def _blocks(response: httpx2.Response) -> AsyncGenerator[httpx2.ServerSentEvent, None]:
    source = httpx2.EventSource(response, max_event_size=_BLOCK_MAX_BYTES)
    # It is a generator, although its type is wider: closing it at once keeps clean-up in order.
    return cast(AsyncGenerator[httpx2.ServerSentEvent, None], aiter(source))


async def _check(response: httpx2.Response) -> None:
    """Return if the answer is 200; raise what it means otherwise."""
    if response.status_code == httpx2.codes.OK:
        return
    body = b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > _ANSWER_MAX_BYTES:
            break
    if (error := refusal(response.status_code, body)) is not None:
        raise error
    wait_s = retry_after_s(response.headers.get("Retry-After"))
    raise _Ended(f"the server answered {response.status_code}", wait_s)


def address(url: str, path: str) -> httpx2.URL:
    """Return the address of `path` at the service at `url`; ValueError if there can be none."""
    try:
        base = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"{url!r} is not an address: {error}") from error
    if base.scheme not in ("http", "https") or not base.host:
        raise ValueError(f"{url!r} is not an address such as https://causeway.example")
    return base.copy_with(path=base.path.rstrip("/") + path, query=None, fragment=None)


def is_loopback(target: httpx2.URL) -> bool:
    """Return whether the address is this machine's own: no proxy of the environment leads there."""
    return target.host in _LOOPBACK


def _reason(error: Exception) -> str:
    """Say in a few words why the connection was lost."""
    if isinstance(error, httpx2.ReadTimeout):
        return "nothing came for too long"
    return str(error) or type(error).__name__
