"""An event as a client receives it. Pure: Causeway's CloudEvents JSON → Event."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Generic, NoReturn, TypeVar

from service.answers import Unreadable
from service.consumer_calls import Call, Hold

Acked = TypeVar("Acked")  # the consumer's place: an int, or what is awaited for it
Send = Callable[[Call], Acked]

_ID = re.compile(r"(\d{1,18})(?:\.[0-9a-f]{8})?")
ERASED = "causeway.erased"
_SOURCE_PREFIX = "/bridge/"
_DATA = ',"data":'  # the server splices the body in last; in a JSON string the quotes are escaped


def send_nothing(_: Call) -> NoReturn:
    """Stand where nothing can be sent."""
    raise RuntimeError("this event came without a way to acknowledge it")


@dataclass(frozen=True, slots=True)
class Event(Generic[Acked]):
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
    hold: Hold | None = field(default=None, repr=False)
    send: Send[Acked] = field(default=send_nothing, repr=False, compare=False)

    @property
    def is_erased(self) -> bool:
        """True if the event's body was erased: `data` says what its type was, and no more."""
        return self.type == ERASED

    def json(self) -> Any:
        """Parse `data`; a number with a fraction becomes a `Decimal`, so money keeps its digits."""
        return json.loads(self.data, parse_float=Decimal) if self.data else None

    def ack(self) -> Acked:
        """Say that this event and all before it are done; returns the consumer's place.

        To be awaited unless it came from `subscribe_sync`. Returns when it is on disk; waits, as
        the subscription does, for a service that is away. Raises `LeaseLost` if another holder, or
        a later connection of this one, has the consumer now; `Refused` if the consumer is gone;
        RuntimeError if the event did not come by way of a consumer.
        """
        if self.hold is None:
            raise RuntimeError("there is nothing to acknowledge: subscribe with consumer=NAME")
        return self.send(self.hold.ack(self.id))


def parse_id(id_: str) -> int:
    """Return the position in an id such as `1042.9f3ac01b` or `1042`; raises ValueError."""
    if not (match := _ID.fullmatch(id_)):
        raise ValueError(
            f"{id_!r} is not an event's id: expected one such as 1042.9f3ac01b or 1042"
        )
    return int(match[1])


def parse_cloudevent(
    text: str, hold: Hold | None = None, send: Send[Acked] = send_nothing
) -> Event[Acked]:
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
            hold=hold,
            send=send,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable("a block came that is not one of Causeway's CloudEvents") from error
