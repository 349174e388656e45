"""What the two clients share of a connection: where it leads, what it takes, what its end means.

Knows httpx2's values, but opens no socket: `client` and `client_sync` do.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypedDict

import httpx2

from service.answers import (
    LeaseLost,
    Patience,
    Unreadable,
    problem,
    refusal,
    retry_after_s,
)
from service.consumer_calls import Call, Need
from service.received import Acked, Event
from service.subscription import Subscription
from service.wanted import beginning, filter_body, filters

IDLE_S = 45.0  # three of the server's heartbeats
CALL_S = 30.0
BLOCK_MAX_BYTES = 64 * 1024 * 1024  # above any body that a server may be set to take
ANSWER_MAX_BYTES = 64 * 1024
_CONNECT_S = 10.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_HEADERS = {
    "Accept": "text/event-stream",
    "Accept-Encoding": "identity",  # who compresses a stream also holds it back
    "Cache-Control": "no-store",
}
# To an acknowledgement: its shard is no more, or the process that sent the event was killed before
# it wrote that down.
_SENT_AGAIN = frozenset({"shards_held", "ack_ahead"})
PASSING = (
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


class Ended(Exception):
    """A connection, or the try of a call, ended in a way that passes by itself."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.retry_after_s = reason, retry_after_s


class Wishes(TypedDict, total=False):
    """What a subscription can be asked for; `Reading` says what each means."""

    after: str | int | None
    from_start: bool
    since: datetime | str | None
    types: Iterable[str]
    item_ids: Iterable[int]
    account_ids: Iterable[int]
    user_uuids: Iterable[str]
    sources: Iterable[str]
    consumer: str | None
    shard: str | None
    idle_s: float
    on_interruption: Callable[[Interruption], None] | None


class Reading(Generic[Acked]):
    """A checked subscription: where to, as whom, and the protocol's state."""

    def __init__(
        self,
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
        consumer: str | None = None,
        shard: str | None = None,
        idle_s: float = IDLE_S,
        on_interruption: Callable[[Interruption], None] | None = None,
    ) -> None:
        """Begin after the id `after`, at the first event (`from_start`), at a time (`since`, an
        aware datetime or ISO text), or with the next event (default).

        Filters: any value within a field, and all the fields. With a `consumer` the service keeps
        the place, and `shard` (`i/n`) is the part of its events to get; the beginning and the
        filters then describe the consumer, which is made so if there is none of that name
        (OtherFilter if there is one with another filter). Given neither, it must exist. A
        connection silent for `idle_s` seconds counts as lost. Raises ValueError for what cannot be
        right.
        """
        wanted = filters(types, item_ids, account_ids, user_uuids, sources)
        begin = beginning(after, from_start, since)
        self.need: Need | None = None
        if consumer is None:
            self.subscription: Subscription[Acked] = Subscription(
                after=after, from_start=from_start, since=since, filters=wanted
            )
        else:
            self.subscription = Subscription(consumer=consumer, shard=shard)
            if wanted or begin:
                start = begin[0][1] if begin else "now"
                self.need = Need(consumer, start, filter_body(wanted))
        if consumer is None and shard is not None:
            raise ValueError("shard goes with consumer")
        self.service = Service(url, token, idle_s)
        self._on_interruption = on_interruption

    def wait_s(self, end: Ended, patience: Patience | None = None) -> float:
        """Return the seconds to wait after `end`, and report it."""
        wait_s = (patience or self.subscription.patience).next_s(end.retry_after_s)
        if self._on_interruption is not None:
            self._on_interruption(Interruption(end.reason, wait_s, self.subscription.last_id))
        return wait_s

    def request(self) -> dict[str, Any]:
        """Return the arguments of the next request for the stream."""
        ask = self.subscription.ask()
        return {
            "url": self.service.address("/stream"),
            "params": ask.parameters,
            "headers": _HEADERS | ask.headers,
        }

    def opened(self, headers: httpx2.Headers) -> None:
        """Note that the stream was opened."""
        self.subscription.opened(
            is_filtered=headers.get("Causeway-Filtered") == "true",
            lease=headers.get("Causeway-Lease"),
        )

    def receive(self, block: httpx2.ServerSentEvent) -> Event[Acked] | None:
        """Return the event in a block, if there is one."""
        return self.subscription.receive(block.id, block.event, block.data, block.retry)


class Service:
    """Where the service is, and as whom to ask it."""

    def __init__(self, url: str, token: str, read_s: float = CALL_S) -> None:
        """Raises ValueError for an address or a token that cannot be one."""
        target = address(url, "/")
        if not (token and token.isascii() and token.isprintable()):
            raise ValueError("the token must be printable ASCII text")
        self._url = url
        self.options: dict[str, Any] = {
            "headers": {"Authorization": f"Bearer {token}"},
            "timeout": httpx2.Timeout(_CONNECT_S, read=read_s),
            "trust_env": not is_loopback(target),
        }

    def address(self, path: str) -> httpx2.URL:
        """Return the address of a path."""
        return address(self._url, path)

    def request(self, call: Call) -> dict[str, Any]:
        """Return the arguments of the request for a call."""
        arguments = {"method": call.method, "url": self.address(call.path)}
        return arguments if call.body is None else arguments | {"json": call.body}


def meaning(call: Call, response: httpx2.Response) -> Any:
    """Return a call's answer, parsed. Raises Ended if it passes by itself, else what is final."""
    if response.is_success:
        try:
            return response.json() if response.content else None
        except ValueError as error:
            raise Unreadable("the answer is not JSON: is the address right?") from error
    code, message = problem(response.content)
    if call.may_miss and code == "unknown_consumer":
        return None
    if code in _SENT_AGAIN:
        raise LeaseLost(message)
    raise refused(response.status_code, response.headers, response.content)


def refused(status: int, headers: httpx2.Headers, body: bytes) -> Exception:
    """Return what an answer other than 2xx means: Ended if it passes by itself, else the error."""
    return refusal(status, body) or passing(status, headers, body)


def place(answer: Any) -> int:
    """Return the consumer's place that an acknowledgement was answered with."""
    try:
        return int(answer["position"])
    except (ValueError, KeyError, TypeError) as error:
        raise Unreadable("the acknowledgement was not answered in Causeway's form") from error


def passing(status: int, headers: httpx2.Headers, body: bytes) -> Ended:
    """Return how an answer that passes by itself ends a try."""
    code = problem(body)[0]
    reason = f"the server answered {status}" + ("" if code == "unknown" else f" {code}")
    return Ended(reason, retry_after_s(headers.get("Retry-After")))


def lost(error: Exception) -> Ended:
    """Return how an error of the way to the service ends a try."""
    if isinstance(error, httpx2.ReadTimeout):
        return Ended("nothing came for too long")
    return Ended(str(error) or type(error).__name__)


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
