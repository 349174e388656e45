"""What a subscriber of `/stream` knows and does next, without any I/O.

Pure protocol: what to ask for, what a received block means, whether positions are dense, which
answers are final, and how long to wait before the next try. `client` drives it over a socket.

    SubscribeError
    ├── Refused       the server said no, and would say no again: status, code, message
    ├── Diverged      the log is not the one this reader read before (409): read from the start
    ├── Pruned        the events after the reader's place are gone (410)
    ├── Hole          a position is missing or came twice: the log or the way to it is damaged
    └── Unreadable    what came is not a stream of Causeway
"""

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

CONTROL_EVENTS = frozenset({"stream.caught_up", "stream.fell_behind", "stream.closing"})
BACKOFF_BASE_S = 1.0  # the server's `retry:` replaces it
BACKOFF_CAP_S = 30.0
_RETRY_FLOOR_S = 0.01
_RETRY_AFTER_CAP_S = 3600.0  # a broken proxy must not silence a subscriber for days
_SPREAD = 0.25  # of Retry-After, so that all who were sent away together come back apart
_ID = re.compile(r"(\d{1,18})(?:\.[0-9a-f]{8})?")
_SOURCE_PREFIX = "/bridge/"
_DATA = ',"data":'  # the server splices the body in last; in a JSON string the quotes are escaped
_TRANSIENT = frozenset({408, 425, 429})


class SubscribeError(Exception):
    """The root of what ends a subscription. Whatever passes by itself is retried instead."""


class Refused(SubscribeError):
    """The server refused, and asking again would not help: `status`, stable `code`, `message`."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"the server answered {status} {code}: {message}")
        self.status, self.code, self.message = status, code, message


class Diverged(SubscribeError):
    """The log has another history than the one that gave out the id, or ends before it."""


class Pruned(SubscribeError):
    """The log no longer has the events that follow the id; the message says what is left."""


class Hole(SubscribeError):
    """The log's positions are dense, but the next one received was not the next one."""

    def __init__(self, expected: int, received: int) -> None:
        super().__init__(f"expected position {expected}, received {received}: the log is damaged")
        self.expected, self.received = expected, received


class Unreadable(SubscribeError):
    """What came is not a stream of Causeway: is the address right?"""


@dataclass(frozen=True, slots=True)
class Event:
    """One of Bridge's events at its place in the log.

    `id` proves the place and is what to keep for `after=`. `time` is Bridge's own timestamp, if it
    gave one. `data` is Bridge's body as it came, each digit of it; only a CR in its white space is
    read as LF (SSE knows one line end). `cloudevent` is the CloudEvents JSON around it.
    """

    id: str
    position: int
    type: str
    source: str
    time: datetime | None
    received_at: datetime
    data: bytes = field(repr=False)
    cloudevent: str = field(repr=False)

    def json(self) -> Any:
        """Parse `data`; a number with a fraction becomes a `Decimal`, so money keeps its digits."""
        return json.loads(self.data, parse_float=Decimal) if self.data else None


@dataclass(frozen=True, slots=True)
class Ask:
    """What to send next: the query of `GET /stream`, and its headers beside the token."""

    parameters: tuple[tuple[str, str], ...]
    headers: dict[str, str]


class Subscription:
    """One reader's state over all its connections: its place, its tries, what it asks for."""

    def __init__(
        self,
        *,
        after: str | int | None = None,
        from_start: bool = False,
        since: datetime | str | None = None,
        filters: Sequence[tuple[str, str]] = (),
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Raises ValueError for two beginnings, or one that cannot be understood."""
        if sum((after is not None, from_start, since is not None)) > 1:
            raise ValueError("give only one of after, from_start and since")
        self.last_id = None if after is None else str(after)
        self.position = None if self.last_id is None else parse_id(self.last_id)
        self._begin = _begin(from_start, since)
        self._filters = tuple(filters)
        self._is_dense = not self._filters
        self._tries = 0
        self._base_s = BACKOFF_BASE_S
        self._draw = draw

    def ask(self) -> Ask:
        """Return the next request: on from the last id, or from the beginning that was wished."""
        parameters = (("format", "cloudevents"), *self._filters)
        if self.last_id is not None:
            return Ask(parameters, {"Last-Event-ID": self.last_id})
        return Ask((*parameters, *self._begin), {})

    def opened(self, *, is_filtered: bool) -> None:
        """Note an accepted connection, and whether a token's limits filter it: places then jump."""
        self._tries = 0
        self._is_dense = not (self._filters or is_filtered)

    def receive(self, id_: str, name: str, data: str, retry_ms: int | None = None) -> Event | None:
        """Return the event in a block, or None if the block only moves the place or says nothing.

        An id without data is the server's word that nothing for this reader lies before it.
        Raises `Hole` and `Unreadable`; the place then stays before the bad block.
        """
        if retry_ms is not None:
            self._base_s = min(max(retry_ms / 1000, _RETRY_FLOOR_S), BACKOFF_CAP_S)
        if name in CONTROL_EVENTS:
            return None
        if not data:
            self._move(id_)
            return None
        event = parse_cloudevent(data)
        self._check(event.position)
        self.last_id, self.position = event.id, event.position
        return event

    def next_try_s(self, retry_after_s: float | None = None) -> float:
        """Count a connection that ended, and return the seconds to wait before the next.

        Never less than Retry-After. The first wait is the server's `retry:`; it doubles with each
        try that was not accepted.
        """
        wait_s = backoff(self._tries, self._base_s, self._draw())
        self._tries += 1
        if retry_after_s is None:
            return wait_s
        return max(wait_s, retry_after_s * (1 + _SPREAD * self._draw()))

    def _move(self, id_: str) -> None:
        if not id_:
            return
        position = parse_id(id_)
        if self.position is None or position >= self.position:
            self.last_id, self.position = id_, position

    def _check(self, position: int) -> None:
        if self.position is None:
            return
        expected = self.position + 1
        if position < expected or (self._is_dense and position != expected):
            raise Hole(expected, position)


def filters(
    types: Iterable[str] = (),
    item_ids: Iterable[int] = (),
    account_ids: Iterable[int] = (),
    user_uuids: Iterable[str] = (),
    sources: Iterable[str] = (),
) -> tuple[tuple[str, str], ...]:
    """Return the query parameters of a filter: any value within a field, and all the fields."""
    if isinstance(types, str) or isinstance(user_uuids, str) or isinstance(sources, str):
        raise TypeError("a filter takes a sequence of strings, not one string")
    fields: tuple[tuple[str, Iterable[str | int]], ...] = (
        ("type", types),
        ("item_id", item_ids),
        ("account_id", account_ids),
        ("user_uuid", user_uuids),
        ("source", sources),
    )
    return tuple((name, str(value)) for name, values in fields for value in values)


def parse_id(id_: str) -> int:
    """Return the position in an id such as `1042.9f3ac01b` or `1042`; raises ValueError."""
    if not (match := _ID.fullmatch(id_)):
        raise ValueError(
            f"{id_!r} is not an event's id: expected one such as 1042.9f3ac01b or 1042"
        )
    return int(match[1])


def parse_cloudevent(text: str) -> Event:
    """Read Causeway's CloudEvents JSON; the body is cut out of it, never parsed or printed again.

    Raises `Unreadable`.
    """
    head, found, rest = text.partition(_DATA)
    try:
        attributes = json.loads(head + "}" if found else head)
        time = attributes.get("time")
        return Event(
            id=attributes["id"],
            position=parse_id(attributes["id"]),
            type=attributes["type"],
            source=attributes["source"].removeprefix(_SOURCE_PREFIX),
            time=None if time is None else datetime.fromisoformat(time),
            received_at=datetime.fromisoformat(attributes["receivedtime"]),
            data=rest.removesuffix("}").encode(),
            cloudevent=text,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable("a block came that is not one of Causeway's CloudEvents") from error


def refusal(status: int, body: bytes) -> SubscribeError | None:
    """Return the error that an answer other than 200 means, or None if asking again may help."""
    if status >= 500 or status in _TRANSIENT:
        return None
    code, message = _problem(body)
    if status == 409:
        return Diverged(message)
    if status == 410:
        return Pruned(message)
    return Refused(status, code, message)


def retry_after_s(value: str | None) -> float | None:
    """Return the seconds in a Retry-After header; None if there is none, or if it is a date."""
    if value is None or not (value.isascii() and value.isdigit()):
        return None
    return min(float(value), _RETRY_AFTER_CAP_S)


def backoff(tries: int, base_s: float, draw: float, cap_s: float = BACKOFF_CAP_S) -> float:
    """Return the seconds to wait after `tries` vain tries: doubling, capped, from half to whole.

    `draw` in [0, 1) spreads those who lost their connections together.
    """
    return float(min(cap_s, base_s * 2 ** min(tries, 32))) * (0.5 + draw / 2)


def _begin(from_start: bool, since: datetime | str | None) -> tuple[tuple[str, str], ...]:
    if from_start:
        return (("from", "start"),)
    if since is None:
        return ()
    if isinstance(since, str):
        return (("since", since),)
    if since.tzinfo is None:
        raise ValueError("since must be a datetime with a time zone")
    return (("since", since.isoformat()),)


def _problem(body: bytes) -> tuple[str, str]:
    """Return the stable code and the message of an error answer, whoever wrote it."""
    try:
        error = json.loads(body)["error"]
        return str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return "unknown", "no reason in Causeway's form: is the address right?"
