"""The JSON that callers send about named consumers, checked: what is wrong is named."""

from dataclasses import dataclass
from typing import Any

from service.body import (
    is_integer,
    is_text,
    is_uuid,
    parse_begin,
    parse_flag,
    parse_object,
    parse_types,
    parse_values,
)
from service.consumer import Ack, check_name, is_name
from service.cursor import Begin, Place, parse_place
from service.errors import BadRequest
from service.filter import Filter
from service.turn import parse_shard

DEFAULT_LEASE_S = 30
MAX_LEASE_S = 3600
_INT64 = 2**63


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
    fields = parse_object(body or b"{}", known)
    lease_s = fields.get("lease_s", DEFAULT_LEASE_S)
    if not is_integer(lease_s) or not 1 <= lease_s <= MAX_LEASE_S:
        raise BadRequest(f"lease_s: a whole number from 1 to {MAX_LEASE_S} was expected")
    ack_mode = fields.get("ack_mode", "explicit")
    if ack_mode not in ("auto", "explicit"):
        raise BadRequest("ack_mode: `auto` or `explicit` was expected")
    is_reset = parse_flag(fields, "reset")
    begin = parse_begin(fields.get("start", "now"))
    return ConsumerWish(begin, _parse_filter(fields.get("filter", {})), ack_mode, lease_s, is_reset)


def parse_ack(name: str, body: bytes) -> Ack:
    """Return the acknowledgement of a POST. Raises BadRequest naming what is wrong."""
    check_name(name)
    fields = parse_object(body, ("position", "shard", "lease"))
    place = _parse_position(fields.get("position"))
    lease = fields.get("lease")
    if lease is not None and (not is_integer(lease) or not 0 <= lease < _INT64):
        raise BadRequest("lease: the number that the stream was given was expected")
    shard = fields.get("shard")
    if shard is not None and not isinstance(shard, str):
        raise BadRequest("shard: i/n was expected")
    return Ack(name, place.position, *parse_shard(shard), lease=lease, digits=place.link_digits)


def _parse_position(value: Any) -> Place:
    if is_integer(value) and 0 <= value < 10**18:
        return Place(value)
    if isinstance(value, str):
        return parse_place(value, "position")
    raise BadRequest("position: an event's position, or its id, was expected")


def _parse_filter(value: Any) -> Filter:
    known = ("types", "item_ids", "account_ids", "user_uuids", "sources")
    if not isinstance(value, dict) or not value.keys() <= set(known):
        raise BadRequest(f"filter: an object with any of {', '.join(known)} was expected")
    return Filter(
        topics=parse_types(value, "filter."),
        item_ids=parse_values(value, "item_ids", _is_id, "a list of integers", "filter."),
        account_ids=parse_values(value, "account_ids", _is_id, "a list of integers", "filter."),
        user_uuids=parse_values(
            value, "user_uuids", is_uuid, "a list of UUIDs in lower case", "filter."
        ),
        sources=parse_values(value, "sources", is_text, "a list of sources", "filter."),
    )


def _is_id(value: Any) -> bool:
    return is_integer(value) and -_INT64 <= value < _INT64
