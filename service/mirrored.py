"""An event as a NATS message, and back. Pure.

A message is a CloudEvent in the binary mode of its NATS binding: each attribute a header `ce-…`,
percent-encoded, the body Bridge's bytes. Its headers have all that the log knows, so that a reader
of the stream rebuilds the very same `Event`. The digest is not among them: a reader computes it
from the body, so that the chain proves the body; only a tombstone, whose body is gone, brings it.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from service.errors import NotMirrored
from service.event import ERASED, Event, event_id, timestamp
from service.filter import topic_of

SUBJECTS = "bridge.>"
MESSAGE_ID = "Nats-Msg-Id"
EXPECTED_LAST = "Nats-Expected-Last-Sequence"
EXPECTED_STREAM = "Nats-Expected-Stream"
MAX_TYPE = 256  # of a subject: NATS takes 4 KiB for all of a message's first line
# NATS ends a token at a dot, and gives a meaning to a star and to an arrow.
_UNSAFE_IN_TOKEN = re.compile(r"[^A-Za-z0-9_\-]")
# CloudEvents' HTTP binding, 3.1.3.2, which the NATS binding uses.
_UNSAFE_IN_HEADER = re.compile(r"[^\x21-\x7e]|[\"%]")
_ESCAPE = re.compile(r"(?:%[0-9A-Fa-f]{2})+")


@dataclass(frozen=True, slots=True)
class Message:
    """What is published: `headers` are the event's own, without those that NATS acts on."""

    subject: str
    headers: dict[str, str]
    body: bytes


def message_of(event: Event) -> Message:
    """Return the event as a message, which says all that `event_of` needs."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": event.id,
        "ce-source": _escape(_UNSAFE_IN_HEADER, f"/bridge/{event.source}"),
        "ce-type": _escape(_UNSAFE_IN_HEADER, event.type),
        "ce-datacontenttype": "application/json",
        "ce-position": str(event.position),
        "ce-link": event.link.hex(),
        "ce-receivedtime": timestamp(event.received_at),
    }
    if event.occurred_at is not None:
        headers["ce-time"] = timestamp(event.occurred_at)
    if event.item_id is not None:
        headers["ce-itemid"] = str(event.item_id)
    if event.account_id is not None:
        headers["ce-accountid"] = str(event.account_id)
    if event.user_uuid is not None:
        headers["ce-useruuid"] = event.user_uuid
    if event.is_erased:
        headers["ce-erasedtopic"] = _escape(_UNSAFE_IN_HEADER, event.topic)
        headers["ce-eraseddigest"] = event.digest.hex()
    return Message(subject_of(event), headers, event.body)


def subject_of(event: Event) -> str:
    """Return `bridge.<source>.<type>.<item or user>`; the last is `-` if there is neither.

    The dots of a type are NATS' own, so that `bridge.*.item.>` means what `item.*` does in a
    filter. What NATS could misread is percent-encoded; a type is cut at MAX_TYPE characters.
    """
    tokens = event.topic.split(".")
    parts = tokens if all(tokens) else [event.topic]
    type_ = ".".join(_escape(_UNSAFE_IN_TOKEN, part) for part in parts)[:MAX_TYPE].rstrip(".")
    whose = str(event.item_id) if event.item_id is not None else event.user_uuid or "-"
    return f"bridge.{_escape(_UNSAFE_IN_TOKEN, event.source)}.{type_}.{whose}"


def event_of(headers: Mapping[str, str], body: bytes) -> Event:
    """Return the event that a message was made of. Raises NotMirrored if it is none of ours."""
    try:
        event = _read(headers, body)
    except (KeyError, ValueError) as error:
        raise NotMirrored(f"a message of the stream is no event: {error!r}") from error
    if event.id != headers.get("ce-id") or len(event.link) != 32 or len(event.digest) != 32:
        raise NotMirrored("a message of the stream is not the event that it says it is")
    return event


def _read(headers: Mapping[str, str], body: bytes) -> Event:
    type_ = _unescape(headers["ce-type"])
    source = _unescape(headers["ce-source"])
    is_erased = type_ == ERASED
    if headers["ce-specversion"] != "1.0" or not source.startswith("/bridge/"):
        raise ValueError("not a CloudEvent of Causeway")
    if is_erased:
        digest = bytes.fromhex(headers["ce-eraseddigest"])
    else:
        digest = hashlib.sha256(body).digest()
    return Event(
        position=int(headers["ce-position"]),
        link=bytes.fromhex(headers["ce-link"]),
        received_at=datetime.fromisoformat(headers["ce-receivedtime"]),
        source=source.removeprefix("/bridge/"),
        type=type_,
        topic=_unescape(headers["ce-erasedtopic"]) if is_erased else topic_of(type_),
        occurred_at=_moment(headers.get("ce-time")),
        item_id=_integer(headers.get("ce-itemid")),
        account_id=_integer(headers.get("ce-accountid")),
        user_uuid=headers.get("ce-useruuid"),
        digest=digest,
        body=body,
    )


def published_headers(event: Event, message: Message, stream: str) -> dict[str, str]:
    """Return the headers to publish with: the event's own, and those that hold it to its place.

    The stream takes the message only as its sequence number `position`, and only once.
    """
    return message.headers | {
        MESSAGE_ID: event_id(event.position, event.link),
        EXPECTED_LAST: str(event.position - 1),
        EXPECTED_STREAM: stream,
    }


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _integer(text: str | None) -> int | None:
    return None if text is None else int(text)


def _escape(unsafe: re.Pattern[str], text: str) -> str:
    if unsafe.search(text) is None:
        return text
    return unsafe.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), text)


def _unescape(text: str) -> str:
    if "%" not in text:
        return text
    return _ESCAPE.sub(lambda match: bytes.fromhex(match[0].replace("%", "")).decode(), text)
