"""The JSON that callers send about named consumers, checked: what is wrong is named."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

from service.consumer import Ack, check_name, is_name
from service.cursor import Begin, Live, Place, Start, parse_place, parse_time
from service.errors import BadRequest
from service.filter import Filter, parse_topics
from service.turn import parse_shard

T = TypeVar("T", str, int)

DEFAULT_LEASE_S = 30
MAX_LEASE_S = 3600
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PLACE = re.compile(r"\d{1,18}(?:\.[0-9a-f]{8})?")
_INT64 = 2**63
_MAX_VALUES = 1000


@dataclass(frozen=True, slots=True)
class ConsumerWish:
    """How a consumer should be."""

    begin: Begin
    filter: Filter
    ack_mode: str
    lease_s: int
    is_reset: bool


def parse_wish(name: str, body: bytes) -> ConsumerWish:
    """Return the wish of a PUT. Raises BadRequest naming what is wrong."""
    if not is_name(name):
        raise BadRequest("a consumer's name has 1 to 63 of a-z, 0-9, `.`, `_` and `-`")
    known = ("start", "filter", "ack_mode", "lease_s", "reset")
    fields = _object(body or b"{}", "the body", known)
    lease_s = fields.get("lease_s", DEFAULT_LEASE_S)
    if not _is_integer(lease_s) or not 1 <= lease_s <= MAX_LEASE_S:
        raise BadRequest(f"lease_s: a whole number from 1 to {MAX_LEASE_S} was expected")
    ack_mode = fields.get("ack_mode", "explicit")
    if ack_mode not in ("auto", "explicit"):
        raise BadRequest("ack_mode: `auto` or `explicit` was expected")
    is_reset = fields.get("reset", False)
    if not isinstance(is_reset, bool):
        raise BadRequest("reset: true or false was expected")
    begin = _parse_begin(fields.get("start", "now"))
    return ConsumerWish(begin, _parse_filter(fields.get("filter", {})), ack_mode, lease_s, is_reset)


def parse_ack(name: str, body: bytes) -> Ack:
    """Return the acknowledgement of a POST. Raises BadRequest naming what is wrong."""
    check_name(name)
    fields = _object(body, "the body", ("position", "shard", "lease"))
    place = _parse_position(fields.get("position"))
    lease = fields.get("lease")
    if lease is not None and (not _is_integer(lease) or not 0 <= lease < _INT64):
        raise BadRequest("lease: the number that the stream was given was expected")
    shard = fields.get("shard")
    if shard is not None and not isinstance(shard, str):
        raise BadRequest("shard: i/n was expected")
    return Ack(name, place.position, *parse_shard(shard), lease=lease, digits=place.link_digits)


def _parse_position(value: Any) -> Place:
    if _is_integer(value) and 0 <= value < 10**18:
        return Place(value)
    if isinstance(value, str):
        return parse_place(value, "position")
    raise BadRequest("position: an event's position, or its id, was expected")


def _parse_begin(start: Any) -> Begin:
    """Return where a consumer begins: now, start, a position or an id, a time."""
    if start == "now":
        return Live()
    if start == "start":
        return Start()
    if _is_integer(start) and 0 <= start < 10**18:
        return Place(start)
    if isinstance(start, str):
        return (
            parse_place(start, "start") if _PLACE.fullmatch(start) else parse_time(start, "start")
        )
    raise BadRequest("start: now, start, a position, an id or an ISO 8601 time was expected")


def _parse_filter(value: Any) -> Filter:
    known = ("types", "item_ids", "account_ids", "user_uuids", "sources")
    if not isinstance(value, dict) or not value.keys() <= set(known):
        raise BadRequest(f"filter: an object with any of {', '.join(known)} was expected")
    types = _values(value, "types", _is_text, "a list of types")
    try:
        topics = None if types is None else parse_topics(types)
    except ValueError as error:
        raise BadRequest(f"filter.types: {error}") from error
    return Filter(
        topics=topics,
        item_ids=_values(value, "item_ids", _is_id, "a list of integers"),
        account_ids=_values(value, "account_ids", _is_id, "a list of integers"),
        user_uuids=_values(value, "user_uuids", _is_uuid, "a list of UUIDs in lower case"),
        sources=_values(value, "sources", _is_text, "a list of sources"),
    )


def _values(
    fields: dict[str, Any], name: str, is_good: Callable[[Any], bool], expected: str
) -> frozenset[Any] | None:
    values = fields.get(name)
    if values is None:
        return None
    if not isinstance(values, list) or not 1 <= len(values) <= _MAX_VALUES:
        raise BadRequest(f"filter.{name}: {expected} was expected, 1 to {_MAX_VALUES} of them")
    if not all(is_good(value) for value in values):
        raise BadRequest(f"filter.{name}: {expected} was expected")
    return frozenset(values)


def _object(body: bytes, name: str, known: tuple[str, ...]) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"{name} is not JSON: {error.msg}") from error
    if not isinstance(value, dict):
        raise BadRequest(f"{name}: a JSON object was expected")
    if strange := sorted(value.keys() - set(known)):
        raise BadRequest(f"unknown field {strange[0][:64]!r}; known are {', '.join(known)}")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return _is_integer(value) and -_INT64 <= value < _INT64


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 128 and value.isprintable()


def _is_uuid(value: Any) -> bool:
    return isinstance(value, str) and _UUID.fullmatch(value) is not None
