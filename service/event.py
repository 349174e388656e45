"""What an event is, and its spellings.

Pure: Bridge's bytes → `NewEvent`, a row of the log → `Event`, and an event as an SSE block or as
CloudEvents 1.0 JSON. The body's bytes are never printed again from parsed values: they are stored,
split at line ends for SSE as the standard demands, or spliced into the JSON as they are.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from service.errors import NotAnEvent
from service.filter import topic_of

# Always the same bytes, so two of them are two events although their bytes are equal (BRIDGE.md).
TEST_EVENT = "TEST_EVENT"
# What is left of an event whose body was erased. Bridge's own types have no such beginning.
ERASED = "causeway.erased"
GENESIS_POSITION = 0
_TYPE = re.compile(r"[^\x00-\x1f\x7f\x85\u2028\u2029]{1,128}")
_INT64 = 2**63
_FIRST_MILLISECOND = 10**11  # a smaller timestamp is in seconds (BRIDGE.md)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LINE_END = re.compile(rb"\r\n|\r|\n")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_LAST_YEAR = 9998  # what Python and Postgres both keep without special values


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A verified call of Bridge, not yet in the log. `digest` is SHA-256 of `body`."""

    source: str
    type: str
    topic: str
    occurred_at: datetime | None
    item_id: int | None
    account_id: int | None
    user_uuid: str | None
    digest: bytes
    body: bytes
    received_at: datetime

    @property
    def is_repeatable(self) -> bool:
        """True if equal bytes are a new event each time."""
        return self.type == TEST_EVENT


@dataclass(frozen=True, slots=True)
class Event:
    """A row of the log. `link` (32 bytes) chains it to all the rows before it."""

    position: int
    link: bytes
    received_at: datetime
    source: str
    type: str
    topic: str
    occurred_at: datetime | None
    item_id: int | None
    account_id: int | None
    user_uuid: str | None
    digest: bytes
    body: bytes

    @property
    def id(self) -> str:
        return event_id(self.position, self.link)

    @property
    def is_erased(self) -> bool:
        """True for a tombstone: position, receipt, digest and link are the event's, no more."""
        return self.type == ERASED


def parse_event(body: bytes, source: str, received_at: datetime) -> NewEvent:
    """Read the little of Bridge's body that the log indexes; anything else in it is left alone.

    Unknown types and fields are good. An id that is no 64-bit integer, or no UUID, is not indexed.
    Raises `NotAnEvent` if the body is not a JSON object with a usable `type`.
    """
    try:
        envelope = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NotAnEvent(f"the body is not JSON: {error.msg} at byte {error.pos}") from error
    if not isinstance(envelope, dict):
        raise NotAnEvent("the body is JSON, but not an object with a type")
    type_ = envelope.get("type")
    if not isinstance(type_, str) or not _TYPE.fullmatch(type_):
        raise NotAnEvent("`type` must be a string of 1 to 128 characters on one line")
    content = envelope.get("content")
    content = content if isinstance(content, dict) else {}
    return NewEvent(
        source=source,
        type=type_,
        topic=topic_of(type_),
        occurred_at=_occurred_at(envelope.get("timestamp")),
        item_id=_integer(content.get("item_id")),
        account_id=_integer(content.get("account_id")),
        user_uuid=_uuid(content.get("user_uuid")),
        digest=hashlib.sha256(body).digest(),
        body=body,
        received_at=received_at,
    )


def tombstone(event: Event) -> Event:
    """Return what readers see of an event without a body: its type is `causeway.erased`.

    The topic stays, so that who asked for the event's type gets the tombstone in its place.
    """
    data = {"erased": True, "position": event.position, "type": event.type}
    return replace(event, type=ERASED, body=orjson.dumps(data))


def chain_link(
    previous: bytes, digest: bytes, position: int, received_at: datetime, source: str
) -> bytes:
    """Return the link of the row at `position`: SHA-256 over the parts below, in their order.

    previous link (32 bytes), digest (32 bytes), position and received_at (8 bytes each, big-endian,
    signed; microseconds since 2000-01-01 UTC, as Postgres keeps them), source (UTF-8). The same
    rule stands in SQL in `append_events`.
    """
    micros = (received_at - _POSTGRES_EPOCH) // _MICROSECOND
    numbers = position.to_bytes(8, "big") + micros.to_bytes(8, "big", signed=True)
    return hashlib.sha256(previous + digest + numbers + source.encode()).digest()


def event_id(position: int, link: bytes) -> str:
    """Return the id that proves itself: `<position>.<first 8 hex digits of its link>`."""
    return f"{position}.{link[:4].hex()}"


def sse_block(event: Event) -> bytes:
    """Return the event as one SSE block: its id, Bridge's type, Bridge's bytes."""
    return _block(event, event.body)


def cloudevent_block(event: Event) -> bytes:
    """Return the event as one SSE block whose data is CloudEvents JSON."""
    return _block(event, cloudevent_json(event))


def checkpoint_block(position: int, link: bytes) -> bytes:
    """Return a block that dispatches nothing and moves a client's Last-Event-ID.

    HTML standard, 9.2.6: an empty data buffer sets the last event id and dispatches no event.
    """
    return f"id: {event_id(position, link)}\n\n".encode()


def control_block(name: str, **values: Any) -> bytes:
    """Return a control event, `stream.<name>`, with JSON data; it has no id of its own."""
    return b"event: stream.%b\ndata: %b\n\n" % (name.encode(), orjson.dumps(values))


def _block(event: Event, data: bytes) -> bytes:
    if b"\n" in data or b"\r" in data:
        data = _LINE_END.sub(b"\ndata: ", data)
    return b"id: %d.%b\nevent: %b\ndata: %b\n\n" % (
        event.position,
        event.link[:4].hex().encode(),
        event.type.encode(),
        data,
    )


def cloudevent_json(event: Event) -> bytes:
    """Return the event as a CloudEvents 1.0 JSON object, Bridge's bytes spliced in as `data`.

    `position` is a string because a CloudEvents integer has 32 bits. `time` is Bridge's own and
    missing if Bridge gave none.
    """
    attributes: dict[str, str] = {
        "specversion": "1.0",
        "id": event.id,
        "source": f"/bridge/{event.source}",
        "type": event.type,
    }
    if event.occurred_at is not None:
        attributes["time"] = timestamp(event.occurred_at)
    attributes |= {
        "datacontenttype": "application/json",
        "position": str(event.position),
        "link": event.link.hex(),
        "receivedtime": timestamp(event.received_at),
    }
    return orjson.dumps(attributes)[:-1] + b',"data":' + event.body + b"}"


def one_line(json: bytes) -> bytes:
    """Return the same JSON on one line: a raw line end can only be white space between tokens."""
    return _LINE_END.sub(b" ", json)


def timestamp(moment: datetime) -> str:
    """Return RFC 3339 in UTC with microseconds, for example `2021-02-08T12:23:08.323000Z`."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def from_unix(value: float) -> datetime:
    """Return the moment of a Unix time, in seconds if it is under 10^11, else in milliseconds.

    Raises OverflowError or ValueError if no calendar has it.
    """
    unit = timedelta(seconds=1) if abs(value) < _FIRST_MILLISECOND else timedelta(milliseconds=1)
    return _EPOCH + value * unit


def _occurred_at(value: Any) -> datetime | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        return None
    try:
        moment = from_unix(value)
    except (OverflowError, ValueError):
        return None
    return moment if moment.year <= _LAST_YEAR else None


def _integer(value: Any) -> int | None:
    good = isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64
    return value if good else None


def _uuid(value: Any) -> str | None:
    """Return the UUID in its canonical lower case, or None."""
    return value.lower() if isinstance(value, str) and _UUID.fullmatch(value) else None
