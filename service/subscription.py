"""What a subscriber of `/stream` knows and does next, without any I/O.

Pure protocol: what to ask for, what a received block means, whether positions are dense, which
lease its events are acknowledged under, and how long to wait before the next try. `client` and
`client_sync` drive it over a socket.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic

from service.answers import Hole, Patience, Unreadable
from service.consumer_calls import Hold
from service.received import Acked, Event, Send, parse_cloudevent, parse_id, send_nothing
from service.wanted import Parameters, beginning

CONTROL_EVENTS = frozenset(
    {"stream.caught_up", "stream.fell_behind", "stream.closing", "stream.lease"}
)
_SHARD = re.compile(r"(\d{1,2})/(\d{1,2})")


@dataclass(frozen=True, slots=True)
class Ask:
    """What to send next: the query of `GET /stream`, and its headers beside the token."""

    parameters: tuple[tuple[str, str], ...]
    headers: dict[str, str]


class Subscription(Generic[Acked]):
    """One reader's state over all its connections: its place, its tries, what it asks for.

    With a `consumer` the service keeps the place: each connection begins where the service says,
    which may be before the last event received; its filter and beginning are the consumer's; and
    the events carry the lease they came under.
    """

    def __init__(
        self,
        *,
        after: str | int | None = None,
        from_start: bool = False,
        since: datetime | str | None = None,
        filters: Parameters = (),
        consumer: str | None = None,
        shard: str | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Raises ValueError for two beginnings, or one that cannot be understood."""
        self._begin = beginning(after, from_start, since)
        self.last_id = None if after is None else str(after)
        self.position = None if self.last_id is None else parse_id(self.last_id)
        self.send: Send[Acked] = send_nothing
        self.patience = Patience(draw)
        self._consumer = consumer
        self._shard = check_shard(consumer, shard)
        self._hold: Hold | None = None
        self._filters = filters
        self._is_dense = not self._filters
        self._closing: str | None = None

    def ask(self) -> Ask:
        """Return the next request: on from the last id, or from the beginning that was wished."""
        parameters = (("format", "cloudevents"), *self._turn(), *self._filters)
        if self.last_id is not None:
            return Ask(parameters, {"Last-Event-ID": self.last_id})
        return Ask((*parameters, *self._begin), {})

    def opened(self, *, is_filtered: bool, lease: str | None = None) -> None:
        """Note an accepted connection: whether it is filtered (places then jump), and its lease.

        Without a lease a consumer's connection stands by: nothing on it is a place to go on from.
        """
        self.patience.renew()
        self._closing = None
        self._is_dense = not (self._filters or is_filtered)
        if self._consumer is not None:
            self.last_id = self.position = None
            self._hold = None
            if lease is not None:
                self._take(lease)

    def receive(
        self, id_: str, name: str, data: str, retry_ms: int | None = None
    ) -> Event[Acked] | None:
        """Return the event in a block, or None if the block only moves the place or says nothing.

        An id without data is the server's word that nothing for this reader lies before it.
        Raises `Hole` and `Unreadable`; the place then stays before the bad block.
        """
        if retry_ms is not None:
            self.patience.begin_with(retry_ms / 1000)
        if name in CONTROL_EVENTS:
            self._control(id_, name, data)
            return None
        if not data:
            self._move(id_)
            return None
        if self._consumer is not None and self._hold is None:
            raise Unreadable("an event came to a consumer that stands by")
        event = parse_cloudevent(data, self._hold, self.send)
        self._check(event.position)
        self.last_id, self.position = event.id, event.position
        return event

    def ended(self) -> str:
        """Say why the server ended the connection, as far as it said."""
        reason = f": {self._closing}" if self._closing else ""
        return f"the server ended the stream{reason}"

    def _turn(self) -> tuple[tuple[str, str], ...]:
        if self._consumer is None:
            return ()
        shard = () if self._shard is None else (("shard", self._shard),)
        return (("consumer", self._consumer), *shard, ("control", "1"))

    def _control(self, id_: str, name: str, data: str) -> None:
        if self._consumer is None or name not in ("stream.lease", "stream.closing"):
            return
        try:
            said = json.loads(data)
            if name == "stream.closing":
                self._closing = str(said["reason"])
                return
            self._take(said["lease"])
            # Whatever was said while standing by, here is where the consumer stands.
            self.position = int(said["position"])
            self.last_id = id_ or str(self.position)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise Unreadable(f"the event {name} is not in Causeway's form") from error

    def _take(self, lease: Any) -> None:
        try:
            number = int(lease)
        except (ValueError, TypeError, OverflowError) as error:
            raise Unreadable("the lease is not a number") from error
        self._hold = Hold(self._consumer or "", self._shard or "0/1", number)

    def _move(self, id_: str) -> None:
        if not id_ or (self._consumer is not None and self._hold is None):
            return
        try:
            position = parse_id(id_)
        except ValueError as error:
            raise Unreadable("a block came with an id that is not one of Causeway's") from error
        if self.position is None or position >= self.position:
            self.last_id, self.position = id_, position

    def _check(self, position: int) -> None:
        if self.position is None:
            return
        expected = self.position + 1
        if position < expected or (self._is_dense and position != expected):
            raise Hole(expected, position)


def check_shard(consumer: str | None, shard: str | None) -> str | None:
    """Return `shard` if it is `i/n`, i below n; raises ValueError otherwise."""
    if shard is None:
        return None
    if consumer is None:
        raise ValueError("shard goes with consumer")
    match = _SHARD.fullmatch(shard)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"shard={shard!r}: i/n was expected, i from 0 to n - 1, such as 0/4")
    return shard
